//! Drawings as SVG whose colours are the page's: a plotting library draws in stand-in colours, which then become variables
//! of the style sheet, so that one drawing serves light, dark and paper.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;
use plotters::style::Color;

/// Colours of series before they begin again; `--s0` and so on in the style sheet.
pub const N_SERIES: usize = 8;
/// Shades of heat maps; `--h0` and so on.
const N_SHADES: usize = 9;
/// Drawings are this wide, in units of which a page's width has fewer: coordinates are whole numbers.
const WIDTH: u32 = 1260;
const HEIGHT: u32 = 800;
const FONT: u32 = 48;

const GRID: RGBColor = RGBColor(0, 254, 3);
const AXIS: RGBColor = RGBColor(1, 254, 3);
const TEXT: RGBColor = RGBColor(2, 254, 3);

fn series_colour(idx: usize) -> RGBColor {
    RGBColor((idx % N_SERIES) as u8, 254, 1)
}

/// A share of the way from the lowest to the highest shade.
fn shade(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * (N_SHADES - 1) as f64).round() as u8
}

/// The stand-in colours, as the library writes them, and what takes their place.
fn variables() -> impl Iterator<Item = (String, String)> {
    let hex = |colour: RGBColor| format!("\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
    let series = (0..N_SERIES).map(move |idx| (hex(series_colour(idx)), format!("\"var(--s{idx})\"")));
    let shades = (0..N_SHADES).map(move |idx| (hex(RGBColor(idx as u8, 254, 2)), format!("\"var(--h{idx})\"")));
    let rest = [(GRID, "grid"), (AXIS, "muted"), (TEXT, "muted")];
    series.chain(shades).chain(rest.map(|(colour, name)| (hex(colour), format!("\"var(--{name})\""))))
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A line.
    Line,
    /// A line with a dot at every point.
    DottedLine,
    /// Dots alone, the second kind larger.
    Dots { large: bool },
}

/// One series of a plot.
#[derive(Debug)]
pub struct Series {
    /// Which of the page's colours.
    pub colour: usize,
    /// How it is drawn.
    pub mark: Mark,
    /// Places, finite.
    pub points: Vec<(f64, f64)>,
}

/// Series over two axes.
#[derive(Debug)]
pub struct Plot<'a> {
    /// What a screen reader says of it.
    pub label: &'a str,
    /// The horizontal axis.
    pub x: &'a str,
    /// The vertical axis.
    pub y: &'a str,
    /// Whether the horizontal axis begins at 0.
    pub from_zero: bool,
    /// The series, the last ones on top.
    pub series: &'a [Series],
}

/// Draws a plot; nothing where no series has a point. The vertical axis is logarithmic where its ends are far apart.
pub fn plot(plot: &Plot) -> Markup {
    let points = || plot.series.iter().flat_map(|series| series.points.iter().copied());
    let (Some(xs), Some(ys)) = (range(points().map(|p| p.0)), range(points().map(|p| p.1))) else { return html! {} };
    let is_log = ys.0 > 0.0 && ys.1 / ys.0 > 6.0;
    let at = |y: f64| if is_log { y.log10() } else { y };
    let xs = if plot.from_zero { (0.0, xs.1) } else { xs };
    let (xs, ys) = (padded(xs, plot.from_zero), padded((at(ys.0), at(ys.1)), false));
    let mut svg = String::new();
    let drawn = draw_plot(&mut svg, plot, xs, ys, is_log);
    if drawn.is_ok() {
        themed(&svg, (WIDTH, HEIGHT), plot.label)
    } else {
        html! {}
    }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_plot(svg: &mut String, plot: &Plot, xs: (f64, f64), ys: (f64, f64), is_log: bool) -> Drawn {
    let at = |(x, y): &(f64, f64)| (*x, if is_log { y.log10() } else { *y });
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(FONT / 2)
        .x_label_area_size(FONT * 2)
        .y_label_area_size(FONT * 3)
        .build_cartesian_2d(xs.0..xs.1, ys.0..ys.1)?;
    let label = ("sans-serif", FONT).into_font().color(&TEXT);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(AXIS.stroke_width(3))
        .label_style(label.clone())
        .axis_desc_style(label)
        .x_desc(plot.x)
        .y_desc(plot.y)
        .x_labels(5)
        .y_labels(6)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(if is_log { 10f64.powf(*y) } else { *y }))
        .draw()?;
    for series in plot.series {
        let colour = series_colour(series.colour);
        let points = || series.points.iter().map(at);
        if matches!(series.mark, Mark::Line | Mark::DottedLine) {
            chart.draw_series(LineSeries::new(points(), colour.stroke_width(6)))?;
        }
        let size = match series.mark {
            Mark::Line => continue,
            Mark::Dots { large: true } => 22,
            _ => 13,
        };
        chart.draw_series(points().map(|point| Circle::new(point, size, colour.filled())))?;
    }
    root.present()?;
    Ok(())
}

/// A row of cells, each a share of the way from lowest to highest.
#[derive(Debug)]
pub struct HeatCells {
    /// Beside the row.
    pub name: String,
    /// 0 to 1.
    pub shares: Vec<f64>,
}

/// Draws rows of cells over `n_units` units, the first row at the top.
pub fn heat(label: &str, n_units: usize, x: &str, rows: &[HeatCells]) -> Markup {
    let row_height = match rows.len() {
        0 => return html! {},
        1..=2 => 110,
        3..=12 => 64,
        _ => 36,
    };
    let height = rows.len() as u32 * row_height + 4 * FONT;
    let mut svg = String::new();
    let drawn = draw_heat(&mut svg, height, n_units.max(1), x, rows);
    if drawn.is_ok() {
        themed(&svg, (WIDTH, height), label)
    } else {
        html! {}
    }
}

fn draw_heat(svg: &mut String, height: u32, n_units: usize, x: &str, rows: &[HeatCells]) -> Drawn {
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let last = rows.len() as f64 - 1.0;
    // Rows are centred on whole numbers, where the library puts its marks.
    let mut chart = ChartBuilder::on(&root)
        .margin(FONT / 2)
        .x_label_area_size(FONT * 2)
        .y_label_area_size(FONT * 3)
        .build_cartesian_2d(0f64..n_units as f64, -0.5..last + 0.5)?;
    let label = ("sans-serif", FONT).into_font().color(&TEXT);
    let name = |y: f64| rows.get((last - y).round() as usize).filter(|_| y.fract() == 0.0).map(|row| row.name.clone());
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(AXIS.stroke_width(3))
        .label_style(label.clone())
        .axis_desc_style(label)
        .x_desc(x)
        .x_labels(5)
        .y_labels(rows.len().min(12))
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| name(*y).unwrap_or_default())
        .draw()?;
    for (idx, row) in rows.iter().enumerate() {
        let (width, y) = (n_units as f64 / row.shares.len().max(1) as f64, last - idx as f64);
        let mut start = 0;
        for run in row.shares.chunk_by(|a, b| shade(*a) == shade(*b)) {
            let end = start + run.len();
            let corners = [(start as f64 * width, y - 0.5), (end as f64 * width, y + 0.5)];
            let colour = RGBColor(run.first().map_or(0, |share| shade(*share)), 254, 2);
            chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            start = end;
        }
    }
    root.present()?;
    Ok(())
}

/// The drawing with the page's colours, as wide as its place.
fn themed(svg: &str, (width, height): (u32, u32), label: &str) -> Markup {
    let inner = svg.split_once('>').map_or("", |(_, rest)| rest).trim_end().trim_end_matches("</svg>");
    let inner = variables().fold(inner.to_owned(), |text, (from, to)| text.replace(&from, &to));
    let inner =
        inner.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "").replace(" font-family=\"sans-serif\"", "");
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) { (PreEscaped(inner)) }
    }
}

/// The lowest and the highest finite number.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |range, x| Some(range.map_or((x, x), |(min, max): (f64, f64)| (min.min(x), max.max(x)))))
}

fn padded((min, max): (f64, f64), at_zero: bool) -> (f64, f64) {
    let room = if max > min { (max - min) * 0.06 } else { min.abs().max(1e-3) * 0.1 };
    (if at_zero { min } else { min - room }, max + room)
}

/// 1250000 as 1.25M.
pub fn short(x: f64) -> String {
    let (scaled, unit) = match x.abs() {
        size if size >= 1e9 => (x / 1e9, "B"),
        size if size >= 1e6 => (x / 1e6, "M"),
        size if size >= 1e3 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let digits = match scaled.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_take_their_colours_from_the_page_and_their_texts_stay_texts() {
        let series = [Series { colour: 9, mark: Mark::DottedLine, points: vec![(0.0, 1.0), (5e6, 0.01)] }];
        let drawn = plot(&Plot { label: "<b>", x: "</text><script>", y: "loss", from_zero: true, series: &series });
        assert!(drawn.0.contains("var(--s1)") && drawn.0.contains("var(--grid)"), "{}", drawn.0);
        assert!(!drawn.0.contains('#') && !drawn.0.contains("<script") && !drawn.0.contains("<b>"), "{}", drawn.0);
        let rows = [HeatCells { name: "<i>".into(), shares: vec![0.0, 0.0, 1.0] }];
        let drawn = heat("map", 300, "units", &rows).0;
        assert_eq!((drawn.matches("var(--h0)").count(), drawn.matches("var(--h8)").count()), (1, 1), "{drawn}");
        assert!(!drawn.contains("<i>"), "{drawn}");
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let texts: Vec<String> = [0.0, 0.5, 12.0, 1250.0, 4e6, 8.03e9, 0.0123].into_iter().map(short).collect();
        assert_eq!(texts, ["0", "0.5", "12", "1.25k", "4M", "8.03B", "0.0123"]);
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(plot(&Plot { label: "", x: "", y: "", from_zero: true, series: &[] }).0, "");
        assert_eq!(heat("", 0, "", &[]).0, "");
    }
}
