//! What runs and single stages hold.

use std::collections::BTreeMap;

use maud::{Markup, html};
use minitron_engine::report::{
    CutSummary, EvaluationReport, HeatMap, Pruning, SampleReport, StageSummary, TrainingReport,
    bytes, grouped, number, percent,
};
use serde_json::Value;

use super::charts::{HeatCells, heat};
use super::curves;
use super::parts::{Cell, HtmlTable, figure};
use crate::output::tables::title;
use crate::output::watch::duration;

/// What was done, in order.
pub fn stages(stages: &[StageSummary]) -> Markup {
    if stages.is_empty() {
        return html! {};
    }
    let mut table = HtmlTable::new(
        "Stages in order",
        [
            "stage",
            "job",
            "state",
            "time",
            "tokens/s",
            "memory",
            "inputs (SHA-256)",
        ],
    );
    for stage in stages {
        table.row([
            Cell::text(&stage.name),
            Cell::text(&stage.job),
            Cell::text(if stage.done { "done" } else { "unfinished" }),
            Cell::sorted(duration(stage.seconds), Some(stage.seconds)),
            Cell::number(stage.tokens_per_second.map(f64::round)),
            Cell::sorted(
                stage.peak_bytes.map_or("–".into(), bytes),
                stage.peak_bytes.map(|n| n as f64),
            ),
            Cell::text(stage.inputs.chars().take(12).collect::<String>()),
        ]);
    }
    html! { section { h3 { "What was done" } (table.draw()) } }
}

/// A row per evaluated model.
pub fn evaluations(evaluations: &[EvaluationReport]) -> Markup {
    if evaluations.is_empty() {
        return html! {};
    }
    let mut keys: Vec<&String> = Vec::new();
    for key in evaluations.iter().flat_map(|one| one.values.keys()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    // Measurements first, then counts.
    keys.sort_by_key(|key| key.starts_with("n_"));
    let first = evaluations
        .first()
        .map(|evaluation| evaluation.data.join(", "))
        .unwrap_or_default();
    let is_one_text = evaluations
        .iter()
        .all(|evaluation| evaluation.data.join(", ") == first);
    let caption = match is_one_text && !first.is_empty() {
        true => format!("Measured on held-out text: {first}"),
        false => "Measured on held-out data".to_owned(),
    };
    let titles = std::iter::once("model".to_owned()).chain(keys.iter().map(|key| title(key)));
    let mut table = HtmlTable::new(
        caption,
        titles.chain((!is_one_text).then(|| "text".to_owned())),
    );
    for evaluation in evaluations {
        let values = keys
            .iter()
            .map(|key| Cell::of(key, evaluation.values.get(*key).copied()));
        let text = (!is_one_text).then(|| Cell::text(evaluation.data.join(", ")).words());
        table.row(
            std::iter::once(Cell::text(&evaluation.model))
                .chain(values)
                .chain(text),
        );
    }
    html! { section { h3 { "Measured" } (table.draw()) } }
}

/// Texts side by side, those of one prompt together.
pub fn samples(samples: &[SampleReport]) -> Markup {
    let mut by_prompt: Vec<(&str, Vec<&SampleReport>)> = Vec::new();
    for sample in samples {
        let mut known = by_prompt.iter_mut();
        match known.find(|(prompt, _)| *prompt == sample.prompt) {
            Some((_, same)) => same.push(sample),
            None => by_prompt.push((&sample.prompt, vec![sample])),
        }
    }
    if by_prompt.is_empty() {
        return html! {};
    }
    html! {
        section {
            h3 { "Generated text" }
            @for (prompt, samples) in &by_prompt {
                @if !prompt.is_empty() { p { "After “" (prompt) "”" } }
                div.cards { @for sample in samples {
                    div.card { h4 { (sample.model) } p.sample { (sample.text) } }
                } }
            }
        }
    }
}

/// What every training came to, and a figure for each quantity.
pub fn trainings(trainings: &[TrainingReport]) -> Markup {
    if trainings.is_empty() {
        return html! {};
    }
    html! {
        section {
            h3 { "Training" }
            @for training in trainings {
                p { (training_words(training)) }
                (curves::of_training(training))
            }
        }
    }
}

fn training_words(training: &TrainingReport) -> Markup {
    let job = training.job.as_deref().unwrap_or("training");
    let steps = match training.n_planned {
        Some(planned) if planned != training.n_steps => {
            format!("{} of {}", grouped(training.n_steps), grouped(planned))
        }
        _ => grouped(training.n_steps),
    };
    html! {
        strong { (training.name) } " (" (job) "): "
        (steps) " steps, " (grouped(training.n_tokens)) " tokens, "
        (grouped(training.tokens_per_second.round() as u64)) " tokens/s, "
        (duration(training.elapsed_s))
        @if let (Some(kl), Some(lr)) = (training.kl_at_start, training.lr) {
            ", learning rate " (format!("{lr:.1e}")) " from a KL of " (number(kl)) " at the start"
        }
        @if let Some(loss) = training.loss { ", training loss in the end " (number(loss)) }
        @if let Some(best) = training.best {
            ", best held-out loss " (number(best.loss)) " at step " (grouped(best.step))
        }
        @if training.n_skipped > 0 { ", " (grouped(training.n_skipped)) " steps skipped" }
    }
}

/// What was removed, and how close the calls were.
pub fn prunings(prunings: &[Pruning]) -> Markup {
    html! { @for pruning in prunings { section {
        h3 { "Pruning: " (pruning.name) }
        (sizes(pruning))
        @if let Some(reconstructed) = &pruning.reconstructed {
            p { "Reconstructed by " code { (reconstructions(reconstructed)) } }
        }
        @if !pruning.kept.is_empty() {
            p.muted {
                "Share of the units that stay, darkest (on dark pages brightest) where all do."
            }
            div.figures { @for map in &pruning.kept { (kept_figure(map)) } }
        }
        (cuts(&pruning.cuts))
    } } }
}

/// As they are written on the command line.
fn reconstructions(reconstructed: &Value) -> String {
    let words = reconstructed.as_array().map(|list| {
        list.iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    });
    words
        .filter(|words| !words.is_empty())
        .unwrap_or_else(|| reconstructed.to_string())
}

fn sizes(pruning: &Pruning) -> Markup {
    let header = ["axis", "source", "student", "kept"];
    let mut table = HtmlTable::new("Sizes before and after", header);
    for size in &pruning.sizes {
        let source = size.source.map(|n| n as u64);
        table.row(size_row(&size.axis, source, Some(size.student as u64)));
    }
    let (source, student) = (pruning.n_params_source, pruning.n_params);
    table.row(size_row("parameters", source, student));
    table.draw()
}

fn size_row(name: &str, source: Option<u64>, student: Option<u64>) -> [Cell; 4] {
    let both = source.zip(student);
    let share = both.map(|(source, student)| student as f64 / source.max(1) as f64);
    let kept = Cell::sorted(share.map_or("–".into(), percent), share);
    [
        Cell::text(name),
        Cell::count(source),
        Cell::count(student),
        kept,
    ]
}

fn cuts(cuts: &[CutSummary]) -> Markup {
    if cuts.is_empty() {
        return html! {};
    }
    let titles = [
        "where",
        "metric",
        "margin",
        "last kept",
        "its score",
        "first dropped",
        "its score",
        "near the cut",
    ];
    // Only where the scores were resampled.
    let is_resampled = cuts.iter().any(|cut| cut.explained.stable.is_some());
    // Only where a reconstruction measured it.
    let is_measured = cuts.iter().any(|cut| cut.explained.error.is_some());
    let titles = titles
        .into_iter()
        .chain(is_resampled.then_some("stable"))
        .chain(is_measured.then_some("costs"));
    let mut table = HtmlTable::new("Cuts, the closest calls first", titles);
    for cut in cuts {
        let [stable, costs] = [cut.explained.stable, cut.explained.error]
            .map(|share| Cell::sorted(share.map_or("–".into(), percent), share));
        let cells = cut_row(cut).into_iter();
        let cells = cells.chain(is_resampled.then_some(stable));
        table.row(cells.chain(is_measured.then_some(costs)));
    }
    let n_near = cuts.iter().filter(|cut| cut.explained.near_tie).count();
    let noun = if cuts.len() == 1 { " cut" } else { " cuts" };
    html! {
        p {
            "Near ties: " (n_near) " of " (cuts.len()) (noun)
            ". Their margin, (a − b) / |a| for a just kept and b just dropped, is below 1 % \
             (bold), and a few calibration windows more might have decided otherwise. “Near the \
             cut” lists units within 5 % of it, + kept and − dropped, at most 8 on each side."
            @if is_measured {
                " “Costs” is what a reconstruction left: of what the part with these units has to \
                 add to the stream, the share that it brings the stream to lack; of channels, the \
                 largest share that a part lacks of its input."
            }
        }
        (table.draw())
    }
}

fn cut_row(cut: &CutSummary) -> [Cell; 8] {
    let explained = &cut.explained;
    let [kept, dropped] = cut.sides();
    let margin = Cell::sorted(percent(explained.margin), Some(explained.margin));
    let mut near: Vec<String> = Vec::new();
    for unit in &explained.borderline {
        near.push(format!(
            "{}{}",
            unit.unit,
            if unit.kept { "+" } else { "−" }
        ));
    }
    let near_words = match near.is_empty() {
        true => "none".into(),
        false => near.join(" "),
    };
    [
        Cell::text(&cut.dim),
        Cell::text(&explained.metric),
        margin.best(explained.near_tie),
        Cell::text(kept.0),
        Cell::number(Some(kept.1)),
        Cell::text(dropped.0),
        Cell::number(Some(dropped.1)),
        Cell::sorted(near_words, Some(near.len() as f64)).words(),
    ]
}

fn rows_table(caption: &str, map: &HeatMap) -> HtmlTable {
    let mut table = HtmlTable::new(caption, ["layer", "units", "lowest", "mean", "highest"]);
    for row in &map.rows {
        let layer = row.layer.map_or("all".into(), |layer| layer.to_string());
        let name = Cell::sorted(layer, row.layer.map(|layer| layer as f64));
        let values = [row.min, row.mean, row.max].map(|value| Cell::number(Some(value)));
        table.row(
            [name, Cell::count(Some(row.n_units as u64))]
                .into_iter()
                .chain(values),
        );
    }
    table
}

fn heat_figure(
    map: &HeatMap,
    label: &str,
    caption: &Markup,
    share: impl Fn(f64, &[f64]) -> f64,
) -> Markup {
    let rows = map.rows.iter().map(|row| HeatCells {
        name: row.layer.map_or(String::new(), |layer| layer.to_string()),
        shares: row
            .cells
            .iter()
            .map(|cell| share(*cell, &row.cells))
            .collect(),
    });
    let rows: Vec<HeatCells> = rows.collect();
    let x = if map.axis == "depth" {
        "layer".to_owned()
    } else {
        format!("unit of {}", map.axis)
    };
    figure(
        caption,
        &[],
        &heat(label, map.n_units, &x, &rows),
        &rows_table(label, map),
    )
}

fn kept_figure(map: &HeatMap) -> Markup {
    let label = format!("Units of {} that stay, by layer", map.axis);
    let caption =
        html! { strong { (map.axis) } ": which of " (grouped(map.n_units as u64)) " units stay" };
    heat_figure(map, &label, &caption, |cell, _| cell)
}

/// A figure per metric and axis.
pub fn importance(maps: &[HeatMap]) -> Markup {
    let mut by_metric: BTreeMap<&str, Vec<&HeatMap>> = BTreeMap::new();
    for map in maps {
        by_metric.entry(&map.what).or_default().push(map);
    }
    if maps.is_empty() {
        return html! {};
    }
    html! {
        section {
            h3 { "Importance" }
            p.muted {
                "A row per layer; cells are means over neighbouring units, shaded from the row's \
                 lowest to its highest, since units compete within their layer."
            }
            p.scale aria-hidden="true" {
                "low " @for idx in 0..9 { span style={ "background:var(--h" (idx) ")" } {} } " high"
            }
            div.figures { @for map in by_metric.values().flatten() { (importance_figure(map)) } }
        }
    }
}

fn importance_figure(map: &HeatMap) -> Markup {
    let label = format!("Scores of {} by {}, by layer", map.axis, map.what);
    let n_units = grouped(map.n_units as u64);
    let caption = html! { strong { (map.axis) } " by " (map.what) ", " (n_units) " units a row" };
    heat_figure(map, &label, &caption, share_in_row)
}

/// How far a cell is on the way from its row's lowest to its highest.
fn share_in_row(cell: f64, row: &[f64]) -> f64 {
    let min = row.iter().copied().fold(f64::INFINITY, f64::min);
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max > min {
        (cell - min) / (max - min)
    } else {
        0.0
    }
}
