//! Strategies side by side.

use maud::{Markup, html};
use minitron_engine::report::{
    ColumnReport, Comparison, MeasuredReport, RatioReport, RowReport, spread,
};

use super::charts::{Mark, Plot, REFERENCE, Series, plot};
use super::curves::{self, DrawnCurve};
use super::parts::{Cell, HtmlTable, Named, figure};
use crate::output::watch::duration;

/// Rows that a legend names: with more, the best one alone stands out.
const MOST_NAMED: usize = 16;
/// Style of a row that no legend names.
const UNNAMED: usize = 7;
/// Style of the best one, where no legend names it.
const BEST: usize = 13;

/// All sections.
pub fn sections(comparison: &Comparison) -> Markup {
    html! {
        section {
            h3 { "Compared" }
            @if !comparison.is_complete() {
                p.warn { "This comparison is under way, or was interrupted." }
            }
            @if let Some(seconds) = comparison.seconds { p.muted { "In all " (duration(seconds)) } }
            (table(comparison))
            (failures(comparison))
        }
        (figures(comparison))
        (checks(comparison))
        (ratios(comparison))
        (by_seed(comparison))
        (samples(comparison))
    }
}

/// How many tokens some rows save.
fn ratios(comparison: &Comparison) -> Markup {
    html! {
        @for ratio in &comparison.ratios {
            section {
                h3 { "Tokens to the same " (ratio.by) }
                (ratio_table(ratio).draw())
            }
        }
    }
}

fn ratio_table(ratio: &RatioReport) -> HtmlTable {
    let header = ["row", "its tokens", "the reference's", "times as many"].map(str::to_owned);
    let mut table = HtmlTable::new(
        "Read between the reference's budgets, over the logarithm of tokens".to_owned(),
        header,
    );
    for point in &ratio.points {
        let words = Cell::sorted(point.words(), point.ratio);
        table.row([
            Cell::text(&point.row),
            Cell::number(point.n_tokens),
            Cell::number(point.reference_tokens),
            words,
        ]);
    }
    table
}

fn cell(column: &ColumnReport, measured: Option<&MeasuredReport>) -> Cell {
    let Some((mean, measured)) = measured.and_then(|measured| Some((measured.mean?, measured)))
    else {
        return Cell::number(None);
    };
    Cell::sorted(spread(&column.key, mean, measured.std), Some(mean))
}

fn table(comparison: &Comparison) -> Markup {
    let titles = comparison
        .columns
        .iter()
        .map(|column| format!("{}{}", column.title(), arrow(column.better.as_deref())));
    let caption = match comparison.seeds.len() {
        0 | 1 => "The best of each column is bold".to_owned(),
        n => format!(
            "Mean ± standard deviation over {n} seeds; the best mean of each column is bold"
        ),
    };
    let mut table = HtmlTable::new(caption, std::iter::once("row".to_owned()).chain(titles));
    if let Some(teacher) = &comparison.teacher {
        let values = comparison
            .columns
            .iter()
            .map(|column| cell(column, teacher.values.get(&column.key)));
        table.reference(std::iter::once(Cell::text(teacher.title())).chain(values));
    }
    for row in &comparison.rows {
        let values = comparison.columns.iter().map(|column| {
            let measured = row.values.get(&column.key);
            let mean = measured.and_then(|measured| measured.mean);
            cell(column, measured).best(mean.is_some() && mean == comparison.best(column))
        });
        table.row(std::iter::once(Cell::text(row.title())).chain(values));
    }
    table.draw()
}

/// Beside a column's title: where the better numbers are.
fn arrow(better: Option<&str>) -> &'static str {
    match better {
        Some("lower") => " ↓",
        Some("higher") => " ↑",
        _ => "",
    }
}

fn failures(comparison: &Comparison) -> Markup {
    let failed: Vec<&RowReport> = comparison
        .all_rows()
        .filter(|row| row.is_failed())
        .collect();
    html! { @if !failed.is_empty() {
        div.warn role="note" {
            h4 { "Failed" }
            ul { @for row in failed {
                @let reason = row.error.as_deref().unwrap_or("no reason given");
                li { strong { (row.title()) } ": " (reason) }
            } }
        }
    } }
}

fn checks(comparison: &Comparison) -> Markup {
    html! { @if !comparison.checks.is_empty() {
        section {
            h3 { "Checks" }
            ul.checks { @for check in &comparison.checks {
                li {
                    strong { (verdict(check.holds)) } ": " (check.says)
                    @if let Some(detail) = &check.detail { " " span.muted { (detail) } }
                }
            } }
        }
    } }
}

fn verdict(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "✓ holds",
        Some(false) => "✗ does not hold",
        None => "? cannot be told",
    }
}

fn figures(comparison: &Comparison) -> Markup {
    let is_named = comparison.rows.len() <= MOST_NAMED;
    let best = best_row(comparison);
    let mut rows: Vec<DrawnCurve> = Vec::new();
    for (idx, row) in comparison.rows.iter().enumerate() {
        let is_best = best.is_some_and(|best| std::ptr::eq(best, row));
        let style = if is_named {
            idx
        } else if is_best {
            BEST
        } else {
            UNNAMED
        };
        rows.push(DrawnCurve { row, style });
    }
    // The best one is drawn last where it alone has a colour.
    if !is_named {
        rows.sort_by_key(|drawn| drawn.style);
    }
    let curves = curves::of_rows(&rows, is_named);
    let sizes = loss_by_size(comparison, &rows, is_named);
    html! { @if !curves.0.is_empty() || !sizes.0.is_empty() {
        section {
            h3 { "Curves" }
            @if let Some(best) = best.filter(|_| !is_named) {
                p.muted { "The one with a colour is “" (best.title()) "”." }
            }
            div.figures { (sizes) (curves) }
        }
    } }
}

/// The column that rows are drawn by: the loss in the end, or before any training.
fn loss_column(comparison: &Comparison) -> Option<&'static str> {
    ["loss", "zero_shot_loss"].into_iter().find(|key| {
        let mut rows = comparison.rows.iter();
        rows.any(|row| row.values.contains_key(*key))
    })
}

fn mean(row: &RowReport, key: &str) -> Option<f64> {
    row.values.get(key)?.mean.filter(|mean| mean.is_finite())
}

fn best_row(comparison: &Comparison) -> Option<&RowReport> {
    let key = loss_column(comparison)?;
    let losses = comparison
        .rows
        .iter()
        .filter_map(|row| Some((mean(row, key)?, row)));
    losses
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, row)| row)
}

/// A marker a row, the original among them.
fn loss_by_size(comparison: &Comparison, rows: &[DrawnCurve], is_named: bool) -> Markup {
    let Some(key) = loss_column(comparison) else {
        return html! {};
    };
    let teacher = comparison
        .teacher
        .iter()
        .map(|row| (row, REFERENCE, Mark::Dots { large: true }));
    let all = rows
        .iter()
        .map(|drawn| (drawn.row, drawn.style, Mark::Dots { large: false }))
        .chain(teacher);
    let placed = all.filter_map(|(row, style, mark)| {
        Some((row, style, mark, (mean(row, "n_params")?, mean(row, key)?)))
    });
    let placed: Vec<_> = placed.collect();
    if placed.len() < 2 {
        return html! {};
    }
    let label = "Held-out loss against parameters, a marker per row";
    let mut numbers = HtmlTable::new(label, ["row", "parameters", "loss"]);
    let (mut series, mut legend) = (Vec::new(), Vec::new());
    for (row, style, mark, point) in placed {
        numbers.row([
            Cell::text(row.title()),
            Cell::of("n_params", Some(point.0)),
            Cell::number(Some(point.1)),
        ]);
        if is_named || style == REFERENCE {
            legend.push(Named::new(style, mark, row.title()));
        }
        series.push(Series {
            style,
            mark,
            points: vec![point],
        });
    }
    let y = match key {
        "loss" => "held-out loss, nats per token",
        _ => "held-out loss before training, nats per token",
    };
    let drawing = plot(&Plot {
        label,
        x: "parameters",
        y,
        from_zero: false,
        series: &series,
    });
    figure(
        &html! { strong { "Loss against parameters" } },
        &legend,
        &drawing,
        &numbers,
    )
}

fn by_seed(comparison: &Comparison) -> Markup {
    if comparison.seeds.len() < 2 {
        return html! {};
    }
    let columns = &comparison.columns;
    let titles = columns.iter().map(|column| column.title().to_owned());
    let header = ["row", "seed"].map(str::to_owned).into_iter().chain(titles);
    let mut table = HtmlTable::new("Every seed", header);
    for row in &comparison.rows {
        for (idx, seed) in comparison.seeds.iter().enumerate() {
            let mut cells = vec![Cell::text(row.title()), Cell::count(Some(*seed))];
            for ColumnReport { key, .. } in columns {
                cells.push(Cell::of(key, of_seed(row, key, idx)));
            }
            table.row(cells);
        }
    }
    html! { section.screen { h3 { "By seed" } details { summary { "Numbers" } (table.draw()) } } }
}

fn of_seed(row: &RowReport, key: &str, seed_idx: usize) -> Option<f64> {
    *row.values.get(key)?.by_seed.get(seed_idx)?
}

fn samples(comparison: &Comparison) -> Markup {
    let rows: Vec<&RowReport> = comparison
        .rows
        .iter()
        .filter(|row| !row.samples.is_empty())
        .collect();
    html! { @if !rows.is_empty() {
        section {
            h3 { "Generated text" }
            div.cards { @for row in rows {
                div.card {
                    h4 { (row.title()) }
                    @for sample in &row.samples { p.sample { (sample) } }
                }
            } }
        }
    } }
}
