//! What sections are made of: tables that can be sorted, figures with a text beside them, numbers.

use maud::{Markup, html};
use minitron_engine::report::{Point, grouped, in_units, number};

use super::charts::{Mark, key, short};

/// A table's cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    sort: Option<f64>,
    best: bool,
    words: bool,
}

impl Cell {
    /// A word.
    pub fn text(text: impl Into<String>) -> Self {
        Cell {
            text: text.into(),
            ..Cell::default()
        }
    }

    /// A number, a dash where there is none.
    pub fn number(value: Option<f64>) -> Self {
        Cell::sorted(value.map_or("–".into(), number), value)
    }

    /// A number in the unit that its key says.
    pub fn of(key: &str, value: Option<f64>) -> Self {
        Cell::sorted(value.map_or("–".into(), |x| in_units(key, x)), value)
    }

    /// A text that is sorted by a number.
    pub fn sorted(text: impl Into<String>, sort: Option<f64>) -> Self {
        Cell {
            text: text.into(),
            sort,
            ..Cell::default()
        }
    }

    /// A whole number.
    pub fn count(value: Option<u64>) -> Self {
        Cell::sorted(value.map_or("–".into(), grouped), value.map(|n| n as f64))
    }

    /// Words, though they are sorted by a number.
    pub fn words(mut self) -> Self {
        self.words = true;
        self
    }

    /// The best of its column, where it is.
    pub fn best(mut self, best: bool) -> Self {
        self.best = best;
        self
    }
}

/// Rows under a header; the first column names the row.
#[derive(Debug, Default)]
pub struct HtmlTable {
    caption: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
    /// Rows that sorting leaves at the top.
    n_fixed: usize,
}

impl HtmlTable {
    /// With these columns.
    pub fn new<T: Into<String>>(
        caption: impl Into<String>,
        columns: impl IntoIterator<Item = T>,
    ) -> Self {
        HtmlTable {
            caption: caption.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            ..HtmlTable::default()
        }
    }

    /// Adds a row that the others are compared with, before them.
    pub fn reference(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.row(cells);
        self.n_fixed = self.rows.len();
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// In a box of its own, which scrolls where the page is narrow.
    pub fn draw(&self) -> Markup {
        if self.rows.is_empty() {
            return html! {};
        }
        html! {
            p.caption { (self.caption) }
            div.scroll tabindex="0" role="region" aria-label=(self.caption) {
                table.sortable[self.rows.len() > 1] aria-label=(self.caption) {
                    thead { tr {
                        @for (idx, title) in self.columns.iter().enumerate() {
                            th scope="col" class=[self.is_number(idx).then_some("n")] { (title) }
                        }
                    } }
                    tbody { @for (row_idx, row) in self.rows.iter().enumerate() {
                        tr.reference[row_idx < self.n_fixed] { (self.cells(row)) }
                    } }
                }
            }
        }
    }

    fn cells(&self, row: &[Cell]) -> Markup {
        html! {
            @for (idx, cell) in row.iter().enumerate() {
                @if idx == 0 { th scope="row" data-v=[cell.sort] { (cell.text) } }
                @else {
                    td class=[self.class(idx, cell)] data-v=[cell.sort] {
                        @if cell.best { strong { (cell.text) } } @else { (cell.text) }
                    }
                }
            }
        }
    }

    /// Whether a column holds numbers, which stand at the right.
    fn is_number(&self, idx: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(idx));
        idx > 0 && cells.any(|cell| cell.sort.is_some() && !cell.words)
    }

    fn class(&self, idx: usize, cell: &Cell) -> Option<&'static str> {
        match (self.is_number(idx), cell.words) {
            (true, _) => Some("n"),
            (_, true) => Some("w"),
            _ => None,
        }
    }
}

/// What a legend says of a series.
#[derive(Debug, Clone)]
pub struct Named {
    /// As the series.
    pub style: usize,
    /// As the series.
    pub mark: Mark,
    /// For people.
    pub name: String,
}

impl Named {
    /// A line of a legend.
    pub fn new(style: usize, mark: Mark, name: impl Into<String>) -> Self {
        Named {
            style,
            mark,
            name: name.into(),
        }
    }
}

/// A drawing, what it shows, and its numbers for those who do not see it.
pub fn figure(caption: &Markup, legend: &[Named], drawing: &Markup, numbers: &HtmlTable) -> Markup {
    if drawing.0.is_empty() {
        return html! {};
    }
    html! {
        figure {
            figcaption { (caption) }
            @if !legend.is_empty() {
                ul.legend { @for named in legend {
                    li { (key(named.style, named.mark)) (named.name) }
                } }
            }
            (drawing)
            details { summary { "Numbers" } (numbers.draw()) }
        }
    }
}

/// At most twelve points of every curve, under each other.
pub fn curve_table(caption: &str, curves: &[(String, &[Point])]) -> HtmlTable {
    const MOST: usize = 12;
    let mut table = HtmlTable::new(caption, ["curve", "tokens", "loss"]);
    for (name, points) in curves {
        let run = points.len().div_ceil(MOST).max(1);
        let last = points.len().saturating_sub(1);
        for (idx, point) in points.iter().enumerate() {
            if idx % run == 0 || idx == last {
                let tokens = Cell::sorted(short(point.tokens), Some(point.tokens));
                table.row([Cell::text(name.as_str()), tokens, Cell::number(point.loss)]);
            }
        }
    }
    table
}

/// Places of a curve, those without a loss left out.
pub fn places(points: &[Point]) -> Vec<(f64, f64)> {
    points
        .iter()
        .filter_map(|point| Some((point.tokens, point.loss?)))
        .collect()
}
