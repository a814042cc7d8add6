//! Strategies side by side.

use maud::{Markup, html};
use minitron_core::report::{Comparison, Measured, Ratio, Row};

use super::charts::{Mark, N_SERIES, Plot, Series, plot};
use super::parts::{Cell, Table, curve_table, figure, places, spread};
use crate::output::watch::duration;

/// All sections.
pub fn sections(comparison: &Comparison) -> Markup {
    html! {
        section {
            h3 { "Compared" }
            @if !comparison.is_complete() { p.warn { "This comparison is under way, or was interrupted." } }
            @if let Some(seconds) = comparison.seconds { p.muted { "In all " (duration(seconds)) } }
            (table(comparison))
            (failures(comparison))
        }
        (checks(comparison))
        (ratios(comparison))
        (curves(comparison))
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

fn ratio_table(ratio: &Ratio) -> Table {
    let header = ["row", "its tokens", "the reference's", "times as many"].map(str::to_owned);
    let mut table = Table::new("Read between the reference's budgets, over the logarithm of tokens".to_owned(), header);
    for point in &ratio.points {
        let words = Cell::sorted(point.words(), point.ratio);
        table.row([Cell::text(&point.row), Cell::number(point.n_tokens), Cell::number(point.reference_tokens), words]);
    }
    table
}

fn cell(measured: Option<&Measured>) -> Cell {
    let Some((mean, measured)) = measured.and_then(|measured| Some((measured.mean?, measured))) else {
        return Cell::number(None);
    };
    Cell::sorted(spread(mean, measured.std), Some(mean))
}

fn table(comparison: &Comparison) -> Markup {
    let arrow = |better: Option<&str>| match better {
        Some("lower") => " ↓",
        Some("higher") => " ↑",
        _ => "",
    };
    let titles =
        comparison.columns.iter().map(|column| format!("{}{}", column.title(), arrow(column.better.as_deref())));
    let caption = match comparison.seeds.len() {
        0 | 1 => "The best of each column is bold".to_owned(),
        n => format!("Mean ± standard deviation over {n} seeds; the best mean of each column is bold"),
    };
    let mut table = Table::new(caption, std::iter::once("row".to_owned()).chain(titles));
    for row in &comparison.rows {
        let values = comparison.columns.iter().map(|column| {
            let measured = row.values.get(&column.key);
            let mean = measured.and_then(|measured| measured.mean);
            cell(measured).best(mean.is_some() && mean == comparison.best(column))
        });
        table.row(std::iter::once(Cell::text(row.title())).chain(values));
    }
    table.draw()
}

fn failures(comparison: &Comparison) -> Markup {
    let failed: Vec<&Row> = comparison.rows.iter().filter(|row| row.is_failed()).collect();
    html! { @if !failed.is_empty() {
        div.warn role="note" {
            h4 { "Failed" }
            ul { @for row in failed { li { strong { (row.title()) } ": " (row.error.as_deref().unwrap_or("no reason given")) } } }
        }
    } }
}

fn checks(comparison: &Comparison) -> Markup {
    let verdict = |holds: Option<bool>| match holds {
        Some(true) => "✓ holds",
        Some(false) => "✗ does not hold",
        None => "? cannot be told",
    };
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

fn curves(comparison: &Comparison) -> Markup {
    let trained: Vec<&Row> = comparison.rows.iter().filter(|row| !row.curve.is_empty()).collect();
    if trained.is_empty() {
        return html! {};
    }
    let of = |(idx, row): (usize, &&Row)| Series { colour: idx, mark: Mark::DottedLine, points: places(&row.curve) };
    let series: Vec<Series> = trained.iter().enumerate().map(of).collect();
    let named = trained.iter().enumerate().map(|(idx, row)| (idx, row.title().to_owned()));
    // With more of them than colours, names would mislead: the table has them.
    let legend: Vec<(usize, String)> = if trained.len() > N_SERIES { Vec::new() } else { named.collect() };
    let numbers: Vec<_> = trained.iter().map(|row| (row.title().to_owned(), row.curve.as_slice())).collect();
    let label = "Loss of every row against tokens";
    let drawing = plot(&Plot { label, x: "tokens", y: "loss", from_zero: true, series: &series });
    html! {
        section {
            h3 { "Curves" }
            div.figures.wide { (figure(&html! { (label) }, &legend, &drawing, &curve_table(label, &numbers))) }
        }
    }
}

fn by_seed(comparison: &Comparison) -> Markup {
    if comparison.seeds.len() < 2 {
        return html! {};
    }
    let mut table = Table::new(
        "Every seed",
        ["row", "seed"]
            .map(str::to_owned)
            .into_iter()
            .chain(comparison.columns.iter().map(|column| column.title().to_owned())),
    );
    for row in &comparison.rows {
        for (idx, seed) in comparison.seeds.iter().enumerate() {
            let value = |key: &str| row.values.get(key).and_then(|measured| *measured.by_seed.get(idx)?);
            let values = comparison.columns.iter().map(|column| Cell::number(value(&column.key)));
            table.row([Cell::text(row.title()), Cell::count(Some(*seed))].into_iter().chain(values));
        }
    }
    html! { section.screen { h3 { "By seed" } details { summary { "Numbers" } (table.draw()) } } }
}

fn samples(comparison: &Comparison) -> Markup {
    let rows: Vec<&Row> = comparison.rows.iter().filter(|row| !row.samples.is_empty()).collect();
    html! { @if !rows.is_empty() {
        section {
            h3 { "Generated text" }
            div.cards { @for row in rows {
                div.card { h4 { (row.title()) } @for sample in &row.samples { p.sample { (sample) } } }
            } }
        }
    } }
}
