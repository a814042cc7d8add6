//! Drawings as SVG whose colours are the page's: a plotting library draws in stand-in colours,
//! which then become variables of the style sheet, so that one drawing serves light, dark and
//! paper.

mod axis;

use maud::{Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::prelude::*;
use plotters::style::Color;

use self::axis::ChartAxis;
pub use self::axis::short;

/// Colours of series before they begin again; `--s0` and so on in the style sheet.
pub const N_SERIES: usize = 8;
/// The style of what all others are compared with: grey, and a star.
pub const REFERENCE: usize = 47;
/// Shapes of markers before they begin again: no common factor with the colours, so that 40 styles
/// differ.
const N_SHAPES: usize = 5;
/// Shades of heat maps; `--h0` and so on.
const N_SHADES: usize = 9;
/// Drawings are this wide, in units of which a page's width has fewer: coordinates are whole
/// numbers.
const WIDTH: u32 = 1260;
const HEIGHT: u32 = 800;
/// As the style sheet has it on narrow screens.
const FONT: u32 = 50;

const GRID: RGBColor = RGBColor(0, 254, 3);
const AXIS: RGBColor = RGBColor(1, 254, 3);
const TEXT: RGBColor = RGBColor(2, 254, 3);

fn series_colour(idx: usize) -> RGBColor {
    RGBColor((idx % N_SERIES) as u8, 254, 1)
}

fn shade_colour(idx: u8) -> RGBColor {
    RGBColor(idx, 254, 2)
}

/// A share of the way from the lowest to the highest shade.
fn shade(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * (N_SHADES - 1) as f64).round() as u8
}

/// The stand-in colours, as the library writes them, and what takes their place.
fn variables() -> impl Iterator<Item = (String, String)> {
    // Lines first: the style sheet dashes them by their class.
    let lines = (0..N_SERIES).map(|idx| {
        (
            format!("stroke={}", quoted(series_colour(idx))),
            format!("class=\"s{idx}\" stroke=\"var(--s{idx})\""),
        )
    });
    let series =
        (0..N_SERIES).map(|idx| (quoted(series_colour(idx)), format!("\"var(--s{idx})\"")));
    let shades = (0..N_SHADES).map(|idx| {
        (
            quoted(shade_colour(idx as u8)),
            format!("\"var(--h{idx})\""),
        )
    });
    let rest = [(GRID, "grid"), (AXIS, "muted"), (TEXT, "muted")];
    let rest = rest.map(|(colour, name)| (quoted(colour), format!("\"var(--{name})\"")));
    lines.chain(series).chain(shades).chain(rest)
}

/// A colour as an attribute's value.
fn quoted(colour: RGBColor) -> String {
    format!("\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2)
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A line.
    Line,
    /// A line with markers, at most [`MARKERS`] of them.
    Marked,
    /// Markers alone, the second kind larger.
    Dots { large: bool },
}

/// Markers on one line: more of them hide it.
const MARKERS: usize = 12;

/// One series of a plot.
#[derive(Debug)]
pub struct Series {
    /// Which of the page's colours, dashes and markers.
    pub style: usize,
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
    /// The vertical axis, with its unit.
    pub y: &'a str,
    /// Whether the horizontal axis begins at 0.
    pub from_zero: bool,
    /// The series, the last ones on top.
    pub series: &'a [Series],
}

impl Plot<'_> {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        let points = self.series.iter().map(|series| &series.points);
        points.flatten().copied()
    }
}

/// Draws a plot; nothing where no series has a point. The vertical axis is logarithmic where its
/// ends are far apart.
pub fn plot(plot: &Plot) -> Markup {
    let x = ChartAxis::over(plot.points().map(|p| p.0), plot.from_zero, false, 5);
    let y = ChartAxis::over(plot.points().map(|p| p.1), false, true, 6);
    let (Some(x), Some(y)) = (x, y) else {
        return html! {};
    };
    let mut svg = String::new();
    let drawn = draw_plot(&mut svg, plot, &x, &y);
    if drawn.is_ok() {
        themed(&svg, (WIDTH, HEIGHT), plot.label)
    } else {
        html! {}
    }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<ChartAxis, ChartAxis>>;

fn draw_plot(svg: &mut String, plot: &Plot, x: &ChartAxis, y: &ChartAxis) -> Drawn {
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let label = ("sans-serif", FONT).into_font().color(&TEXT);
    // Above the axis and not along it: words that stand upright need no turned head.
    root.draw_text(plot.y, &label, (FONT as i32 / 2, FONT as i32 / 8))?;
    let mut chart = ChartBuilder::on(&root)
        .margin(FONT / 2)
        .margin_top(FONT * 2)
        .x_label_area_size(FONT * 5 / 2)
        .y_label_area_size(FONT * 5 / 2)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(AXIS.stroke_width(3))
        .label_style(label.clone())
        .axis_desc_style(label)
        .x_desc(plot.x)
        .x_label_formatter(&|tick| x.text(*tick))
        .y_label_formatter(&|tick| y.text(*tick))
        .draw()?;
    for series in plot.series {
        draw_series(&root, &mut chart, series, y)?;
    }
    root.present()?;
    Ok(())
}

/// The line of a series, then its markers on top.
fn draw_series(root: &Area, chart: &mut Chart, series: &Series, y: &ChartAxis) -> Drawn {
    let colour = series_colour(series.style);
    let places = series.points.iter().map(|point| (point.0, y.at(point.1)));
    let points: Vec<(f64, f64)> = places.collect();
    if !matches!(series.mark, Mark::Dots { .. }) {
        let line = points.iter().copied();
        chart.draw_series(LineSeries::new(line, colour.stroke_width(6)))?;
    }
    let (size, every) = match series.mark {
        Mark::Line => return Ok(()),
        Mark::Marked => (14, points.len().div_ceil(MARKERS).max(1)),
        Mark::Dots { large: false } => (14, 1),
        Mark::Dots { large: true } => (24, 1),
    };
    let last = points.len().saturating_sub(1);
    for (idx, point) in points.iter().enumerate() {
        if idx % every == 0 || idx == last {
            draw_marker(root, series.style, size, chart.backend_coord(point))?;
        }
    }
    Ok(())
}

/// A style's marker around this pixel.
fn draw_marker(root: &Area, style: usize, size: i32, (x, y): (i32, i32)) -> Drawn {
    let filled = series_colour(style).filled();
    let mut corners_xy: Vec<(i32, i32)> = Vec::new();
    for (dx, dy) in corners(style, f64::from(size)) {
        let (x, y) = (f64::from(x) + dx, f64::from(y) + dy);
        corners_xy.push((x.round() as i32, y.round() as i32));
    }
    if corners_xy.is_empty() {
        root.draw(&Circle::new((x, y), size, filled))?;
    } else {
        root.draw(&Polygon::new(corners_xy, filled))?;
    }
    Ok(())
}

/// The outline of a style's marker about its middle; none for a circle.
fn corners(style: usize, size: f64) -> Vec<(f64, f64)> {
    const PLUS: [(f64, f64); 12] = [
        (-0.4, -1.2),
        (0.4, -1.2),
        (0.4, -0.4),
        (1.2, -0.4),
        (1.2, 0.4),
        (0.4, 0.4),
        (0.4, 1.2),
        (-0.4, 1.2),
        (-0.4, 0.4),
        (-1.2, 0.4),
        (-1.2, -0.4),
        (-0.4, -0.4),
    ];
    let outline = match style % N_SHAPES {
        _ if style == REFERENCE => (0..10).map(star_corner).collect(),
        0 => Vec::new(),
        1 => vec![(0.0, -1.2), (1.2, 1.0), (-1.2, 1.0)],
        2 => vec![(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        3 => vec![(0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)],
        _ => PLUS.to_vec(),
    };
    outline
        .into_iter()
        .map(|(x, y)| (size * x, size * y))
        .collect()
}

/// Of a star's ten corners, those with an even number outside.
fn star_corner(idx: u32) -> (f64, f64) {
    let radius = if idx.is_multiple_of(2) { 1.5 } else { 0.65 };
    let (sin, cos) = (f64::from(idx) * std::f64::consts::PI / 5.0).sin_cos();
    (radius * sin, -radius * cos)
}

/// A piece of line and a marker, as a legend shows them.
pub fn key(style: usize, mark: Mark) -> Markup {
    let class = format!("s{}", style % N_SERIES);
    let colour = format!("var(--{class})");
    let points = corners(style, 14.0)
        .into_iter()
        .map(|(x, y)| format!("{:.0},{:.0}", 60.0 + x, 22.0 + y));
    let outline = points.collect::<Vec<_>>().join(" ");
    let (has_line, has_marker) = (!matches!(mark, Mark::Dots { .. }), mark != Mark::Line);
    html! {
        svg.key viewBox="0 0 120 44" aria-hidden="true" {
            @if has_line {
                polyline class=(class) points="2,22 118,22" fill="none"
                    stroke=(colour) stroke-width="8" {}
            }
            @if has_marker && outline.is_empty() {
                circle cx="60" cy="22" r="15" fill=(colour) {}
            }
            @if has_marker && !outline.is_empty() {
                polygon points=(outline) fill=(colour) {}
            }
        }
    }
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
    let height = rows.len() as u32 * row_height + FONT * 9 / 2;
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
        .x_label_area_size(FONT * 5 / 2)
        .y_label_area_size(FONT * 3)
        .build_cartesian_2d(0f64..n_units as f64, -0.5..last + 0.5)?;
    let label = ("sans-serif", FONT).into_font().color(&TEXT);
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
        .y_label_formatter(&|y| row_name(rows, *y))
        .draw()?;
    for (idx, row) in rows.iter().enumerate() {
        let width = n_units as f64 / row.shares.len().max(1) as f64;
        let y = last - idx as f64;
        let mut start = 0;
        for run in row.shares.chunk_by(|a, b| shade(*a) == shade(*b)) {
            let end = start + run.len();
            let (left, right) = (start as f64 * width, end as f64 * width);
            let corners = [(left, y - 0.5), (right, y + 0.5)];
            let colour = shade_colour(run.first().map_or(0, |share| shade(*share)));
            chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            start = end;
        }
    }
    root.present()?;
    Ok(())
}

/// The name at a mark of the vertical axis, which counts rows from below; marks between rows have
/// none.
fn row_name(rows: &[HeatCells], y: f64) -> String {
    let last = rows.len() as f64 - 1.0;
    let row = rows.get((last - y).round() as usize);
    row.filter(|_| y.fract() == 0.0)
        .map_or(String::new(), |row| row.name.clone())
}

/// The drawing with the page's colours, as wide as its place.
fn themed(svg: &str, (width, height): (u32, u32), label: &str) -> Markup {
    let inner = svg
        .split_once('>')
        .map_or("", |(_, rest)| rest)
        .trim_end()
        .trim_end_matches("</svg>");
    let inner = variables().fold(inner.to_owned(), |text, (from, to)| {
        text.replace(&from, &to)
    });
    let inner = inner
        .replace(" opacity=\"1\"", "")
        .replace(" stroke=\"none\"", "")
        .replace(" font-family=\"sans-serif\"", "");
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) {
            (PreEscaped(inner))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_take_their_colours_from_the_page_and_their_texts_stay_texts() {
        let series = [Series {
            style: 9,
            mark: Mark::Marked,
            points: vec![(0.0, 1.0), (5e6, 0.01)],
        }];
        let drawn = plot(&Plot {
            label: "<b>",
            x: "</text><script>",
            y: "loss",
            from_zero: true,
            series: &series,
        });
        assert!(
            drawn.0.contains("class=\"s1\" stroke=\"var(--s1)\"")
                && drawn.0.contains("var(--grid)"),
            "{}",
            drawn.0
        );
        assert!(
            !drawn.0.contains('#') && !drawn.0.contains("<script") && !drawn.0.contains("<b>"),
            "{}",
            drawn.0
        );
        let rows = [HeatCells {
            name: "<i>".into(),
            shares: vec![0.0, 0.0, 1.0],
        }];
        let drawn = heat("map", 300, "units", &rows).0;
        assert_eq!(
            (
                drawn.matches("var(--h0)").count(),
                drawn.matches("var(--h8)").count()
            ),
            (1, 1),
            "{drawn}"
        );
        assert!(!drawn.contains("<i>"), "{drawn}");
    }

    #[test]
    fn styles_differ_without_their_colour() {
        let shapes: Vec<_> = (0..N_SHAPES).map(|style| corners(style, 14.0)).collect();
        assert!(
            shapes
                .iter()
                .enumerate()
                .all(|(idx, shape)| !shapes[..idx].contains(shape))
        );
        let keys: Vec<String> = (0..40)
            .chain([REFERENCE])
            .map(|style| key(style, Mark::Marked).0)
            .collect();
        assert!(
            keys.iter()
                .enumerate()
                .all(|(idx, key)| !keys[..idx].contains(key))
        );
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(
            plot(&Plot {
                label: "",
                x: "",
                y: "",
                from_zero: true,
                series: &[]
            })
            .0,
            ""
        );
        assert_eq!(heat("", 0, "", &[]).0, "");
    }
}
