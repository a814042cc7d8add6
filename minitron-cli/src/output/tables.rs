//! Tables from the same objects that `--json` prints.

mod models;
mod plugins;
mod runs;

use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use minitron_engine::report::grouped;
use serde_json::Value;

pub use models::{blocks_table, inspect_table, plan_table, scores_table};
pub use plugins::{plugin_table, plugins_table};
pub use runs::{comparison_table, generated_text, run_table, search_table, verify_table};

pub(in crate::output) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // Words wrap where a table would be wider than the terminal; whoever reads a pipe has whole
    // lines.
    if table.width().is_some() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    for line in [
        TableComponent::HorizontalLines,
        TableComponent::MiddleIntersections,
        TableComponent::LeftBorderIntersections,
        TableComponent::RightBorderIntersections,
    ] {
        table.remove_style(line);
    }
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}

/// Numbers under each other: every column but the first to the right.
pub(in crate::output) fn right_aligned(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Columns of text where there is no terminal to ask.
const WIDTH: usize = 100;
/// Most columns of text for the name of a row that is cut into blocks.
const NAME_WIDTH: usize = 36;

fn terminal_width() -> usize {
    Table::new().width().map_or(WIDTH, usize::from)
}

/// Rows with a name and numbers: where they are wider than the terminal, in blocks of columns, each
/// with the names.
fn in_blocks(header: &[String], rows: &[Vec<String>], width: usize) -> String {
    let all: Vec<&[String]> = std::iter::once(header)
        .chain(rows.iter().map(Vec::as_slice))
        .collect();
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut taken = 0;
    for idx in 1..header.len() {
        let own = column_width(&all, idx);
        match blocks.last_mut().filter(|_| taken + own <= width) {
            Some(block) => block.push(idx),
            None => {
                taken = column_width(&all, 0).min(NAME_WIDTH);
                blocks.push(vec![idx]);
            }
        }
        taken += own;
    }
    let mut drawn = Vec::new();
    for block in &blocks {
        let mut table = table(&[]);
        table.set_header(cells_of_block(header, block));
        table.set_content_arrangement(ContentArrangement::Disabled);
        for row in rows {
            table.add_row(cells_of_block(row, block));
        }
        drawn.push(right_aligned(table));
    }
    drawn.join("\n\n")
}

/// Of a column's longest cell, with a space on each side and one between two columns.
fn column_width(rows: &[&[String]], idx: usize) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(idx));
    cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + 3
}

/// A row's name and its cells in these columns.
fn cells_of_block(row: &[String], columns: &[usize]) -> Vec<String> {
    let name = row.first().map(|name| shortened(name, NAME_WIDTH - 2));
    let mut cells = vec![name.unwrap_or_default()];
    cells.extend(columns.iter().filter_map(|&idx| row.get(idx).cloned()));
    cells
}

fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() {
        n if n <= most => text.to_owned(),
        _ => text
            .chars()
            .take(most.saturating_sub(1))
            .chain(['…'])
            .collect(),
    }
}

/// A measurement's name for people.
pub(in crate::output) fn title(key: &str) -> String {
    match key {
        "n_params" => "parameters".into(),
        "n_non_embedding" => "without embeddings".into(),
        other => other.strip_prefix("n_").unwrap_or(other).replace('_', " "),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) => match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => grouped(n),
            (None, Some(x)) if x.fract() == 0.0 && (0.0..9e15).contains(&x) => grouped(x as u64),
            (None, Some(x)) if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e6) => format!("{x:.3e}"),
            (None, Some(x)) => format!("{x:.4}"),
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}

/// The values of a list; none where it is absent.
fn listed(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Plain facts, nested ones with their path.
pub fn facts_table(report: &Value) -> String {
    fn add(table: &mut Table, prefix: &str, value: &Value) {
        for (key, value) in entries(value) {
            match value {
                // They stand on stderr.
                Value::Array(_) if key == "warnings" && prefix.is_empty() => {}
                Value::Object(_) => add(table, &format!("{prefix}{key}."), value),
                _ => _ = table.add_row([format!("{prefix}{key}"), word(value)]),
            }
        }
    }
    let mut table = table(&[]);
    add(&mut table, "", report);
    right_aligned(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_too_wide_are_cut_into_blocks_with_their_names() {
        let header = ["", "first", "second", "third"].map(str::to_owned);
        let long = "a strategy whose title goes on and on, farther than any";
        let rows = [
            vec!["short".to_owned(), "1".into(), "2".into(), "3.0000".into()],
            vec![long.to_owned()],
        ];
        let text = in_blocks(&header, &rows, 54);
        assert!(
            text.lines().all(|line| line.chars().count() <= 54),
            "{text}"
        );
        assert_eq!(text.matches("short").count(), 2, "{text}");
        assert_eq!(
            text.matches("a strategy whose title goes on an…").count(),
            2,
            "{text}"
        );
        assert!(
            text.find("third").unwrap() > text.find("second").unwrap() && text.contains("3.0000"),
            "{text}"
        );
    }
}
