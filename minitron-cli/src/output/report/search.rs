//! What a search found.

use maud::{Markup, html};
use minitron_engine::report::{CandidateReport, SearchReport, bytes, grouped, number, percent};

use super::charts::{Mark, Plot, Series, plot};
use super::parts::{Cell, HtmlTable, Named, curve_table, figure, places};
use crate::output::watch::duration;

const MIB: f64 = (1 << 20) as f64;

/// All sections.
pub fn sections(search: &SearchReport) -> Markup {
    html! {
        section {
            h3 { "Search" }
            @if !search.is_complete() { p.warn { "This search is under way, or was interrupted." } }
            (in_words(search))
            div.figures { (pareto(search)) (curves(search)) }
            (candidates(search))
            (rungs(search))
        }
    }
}

fn in_words(search: &SearchReport) -> Markup {
    let (target, grid) = (&search.target, &search.grid);
    html! {
        ul {
            @if let Some(params) = target.params {
                li {
                    "Target: " (number(params)) " parameters"
                    @if let Some(share) = target.tolerance { ", ± " (percent(share)) }
                }
            }
            @if let Some(n_bytes) = target.memory_bytes {
                li { "Target: at most " (bytes(n_bytes as u64)) }
            }
            @if let Some(n) = search.n_params_source {
                li { "Source: " (grouped(n)) " parameters" }
            }
            @if grid.n_points.is_some() {
                li {
                    (count_text(grid.n_points)) " shapes looked at, "
                    (count_text(grid.n_legal)) " legal"
                    @if target.params.is_some() || target.memory_bytes.is_some() {
                        ", " (count_text(grid.n_within)) " within the target"
                    }
                    @if let Some(seconds) = grid.seconds { " (" (duration(seconds)) ")" }
                }
            }
            @if let Some(winner) = &search.winner {
                li {
                    "Winner: " strong { (winner.name) }
                    @if let Some(dir) = &winner.dir { " in " code { (dir) } }
                }
            }
            (of_training(search))
            @if let Some(seconds) = search.seconds { li { "In all " (duration(seconds)) } }
        }
    }
}

/// What the trainings changed, and what they shared.
fn of_training(search: &SearchReport) -> Markup {
    let settled_at = search.settled_at.as_ref().and_then(|at| at.tokens);
    html! {
        @if let Some(correlation) = &search.correlation {
            li {
                "The order before training against that after it:"
                @if let Some(rho) = correlation.spearman { " Spearman’s ρ " (number(rho)) }
                @if let Some(tau) = correlation.kendall { ", Kendall’s τ " (number(tau)) }
            }
        }
        @if let Some(tokens) = settled_at {
            li { "The order stays as it is from " (number(tokens)) " tokens on" }
        }
        @if let Some(shared) = &search.shared_teacher {
            @let tokens = shared.forward_tokens.zip(shared.forward_tokens_unshared);
            li {
                "The teacher was asked once for all candidates"
                @if let Some((asked, alone)) = tokens {
                    ": " (number(asked)) " tokens instead of " (number(alone))
                }
                @if let Some(saved) = shared.seconds_saved { ", " (duration(saved)) " saved" }
            }
        }
    }
}

fn count_text(n: Option<u64>) -> String {
    n.map_or("–".into(), grouped)
}

/// What a candidate costs: MiB of memory where that is the target, parameters elsewhere.
fn cost(search: &SearchReport, candidate: &CandidateReport) -> Option<f64> {
    match search.target.memory_bytes {
        Some(_) => candidate.memory_bytes.map(|n| n as f64 / MIB),
        None => candidate.n_params.map(|n| n as f64),
    }
}

/// A loss that compares with those of the others: after training, and before it only where none was
/// trained so far.
fn last_loss(search: &SearchReport, candidate: &CandidateReport) -> Option<f64> {
    match is_trained(search) {
        true => candidate.loss,
        false => candidate.zero_shot.as_ref()?.loss,
    }
}

/// Cost and loss, where both are known.
fn place(search: &SearchReport, candidate: &CandidateReport) -> Option<(f64, f64)> {
    Some((cost(search, candidate)?, last_loss(search, candidate)?))
}

fn is_trained(search: &SearchReport) -> bool {
    search
        .candidates
        .iter()
        .any(|candidate| candidate.loss.is_some())
}

fn pareto(search: &SearchReport) -> Markup {
    let x = if search.target.memory_bytes.is_some() {
        "MiB of weights and key/value cache"
    } else {
        "parameters"
    };
    let places = search.candidates.iter().map(|one| place(search, one));
    let mut all: Vec<(f64, f64)> = places.flatten().collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in &all {
        if front.last().is_none_or(|last| point.1 < last.1) {
            front.push(*point);
        }
    }
    let winner = search.leader().and_then(|leader| place(search, leader));
    let series = [
        Series {
            style: 7,
            mark: Mark::Dots { large: false },
            points: all,
        },
        Series {
            style: 0,
            mark: Mark::Marked,
            points: front,
        },
        Series {
            style: 1,
            mark: Mark::Dots { large: true },
            points: winner.into_iter().collect(),
        },
    ];
    let label = format!("Held-out loss against {x}, a dot per candidate");
    let mut numbers = HtmlTable::new(label.as_str(), ["candidate", x, "loss"]);
    for candidate in &search.candidates {
        let (cost, loss) = (cost(search, candidate), last_loss(search, candidate));
        if loss.is_some() {
            numbers.row([
                Cell::text(&candidate.name),
                Cell::number(cost),
                Cell::number(loss),
            ]);
        }
    }
    let mut legend = vec![
        Named::new(7, Mark::Dots { large: false }, "candidates"),
        Named::new(0, Mark::Marked, "none is smaller and better"),
    ];
    legend.extend(winner.map(|_| Named::new(1, Mark::Dots { large: true }, "the best")));
    let drawing = plot(&Plot {
        label: &label,
        x,
        y: "held-out loss",
        from_zero: false,
        series: &series,
    });
    figure(&html! { strong { (label) } }, &legend, &drawing, &numbers)
}

fn curves(search: &SearchReport) -> Markup {
    let best = search.leader().map(|leader| leader.name.as_str());
    let mut trained: Vec<&CandidateReport> = search
        .candidates
        .iter()
        .filter(|candidate| !candidate.curve.is_empty())
        .collect();
    // The best one is drawn last.
    trained.sort_by_key(|candidate| {
        let is_best = best == Some(candidate.name.as_str());
        (is_best, candidate.eliminated_at.is_none())
    });
    let mut series = Vec::new();
    let mut numbers = Vec::new();
    for candidate in trained {
        let style = if best == Some(candidate.name.as_str()) {
            1
        } else if candidate.eliminated_at.is_none() {
            0
        } else {
            7
        };
        series.push(Series {
            style,
            mark: Mark::Marked,
            points: places(&candidate.curve),
        });
        numbers.push((candidate.name.clone(), candidate.curve.as_slice()));
    }
    let named = [
        (7, "left out on the way"),
        (0, "trained to the end"),
        (1, "the best"),
    ];
    let legend = named.map(|(style, name)| Named::new(style, Mark::Marked, name));
    let label = "Held-out loss of every candidate against tokens";
    let drawing = plot(&Plot {
        label,
        x: "tokens",
        y: "held-out loss",
        from_zero: true,
        series: &series,
    });
    figure(
        &html! { strong { (label) } },
        &legend,
        &drawing,
        &curve_table(label, &numbers),
    )
}

fn candidates(search: &SearchReport) -> Markup {
    let mut axes: Vec<&String> = Vec::new();
    for axis in search.candidates.iter().flat_map(|one| one.sizes.keys()) {
        if !axes.contains(&axis) {
            axes.push(axis);
        }
    }
    let titles = [
        "candidate",
        "rank",
        "loss",
        "rank before training",
        "loss before training",
        "left out after rung",
        "parameters",
        "memory",
    ];
    let titles = titles
        .into_iter()
        .map(str::to_owned)
        .chain(axes.iter().map(|axis| axis.replace('_', " ")));
    let mut table = HtmlTable::new("Candidates", titles);
    let best = search.leader().map(|leader| leader.name.as_str());
    for candidate in &search.candidates {
        let before = candidate.zero_shot.clone().unwrap_or_default();
        let memory = candidate.memory_bytes;
        let own = [
            Cell::text(&candidate.name),
            Cell::count(candidate.rank),
            Cell::number(candidate.loss).best(best == Some(candidate.name.as_str())),
            Cell::count(before.rank),
            Cell::number(before.loss),
            left_out(search, candidate),
            Cell::count(candidate.n_params),
            Cell::sorted(memory.map_or("–".into(), bytes), memory.map(|n| n as f64)),
        ];
        let sizes = axes
            .iter()
            .map(|axis| Cell::count(candidate.sizes.get(*axis).copied()));
        table.row(own.into_iter().chain(sizes));
    }
    table.draw()
}

/// The rung after which a candidate left, the first of them 1.
fn left_out(search: &SearchReport, candidate: &CandidateReport) -> Cell {
    match candidate.eliminated_at {
        Some(rung) => Cell::count(Some(rung.saturating_add(1))),
        None if candidate.loss.is_none() && search.is_complete() && is_trained(search) => {
            Cell::sorted("not trained", Some(0.0))
        }
        None => Cell::count(None),
    }
}

fn rungs(search: &SearchReport) -> Markup {
    let mut table = HtmlTable::new(
        "Rungs",
        [
            "rung",
            "candidates",
            "tokens",
            "steps",
            "time",
            "teacher’s time",
        ],
    );
    for (rung_no, rung) in (1u64..).zip(&search.rungs) {
        table.row([
            Cell::count(Some(rung_no)),
            Cell::count(Some(rung.n_candidates)),
            Cell::number(rung.tokens),
            Cell::number(rung.steps),
            time_cell(rung.seconds),
            time_cell(rung.teacher_seconds),
        ]);
    }
    table.draw()
}

fn time_cell(seconds: Option<f64>) -> Cell {
    Cell::sorted(seconds.map_or("–".into(), duration), seconds)
}
