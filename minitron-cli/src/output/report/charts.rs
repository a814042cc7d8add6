//! Drawings as SVG whose colours are the page's: a plotting library draws in stand-in colours,
//! which then become variables of the style sheet, so that one drawing serves light, dark and
//! paper.

use std::ops::Range;

use maud::{Markup, PreEscaped, html};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::Color;

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

/// A share of the way from the lowest to the highest shade.
fn shade(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * (N_SHADES - 1) as f64).round() as u8
}

/// The stand-in colours, as the library writes them, and what takes their place.
fn variables() -> impl Iterator<Item = (String, String)> {
    let hex = |colour: RGBColor| format!("\"#{:02X}{:02X}{:02X}\"", colour.0, colour.1, colour.2);
    // Lines first: the style sheet dashes them by their class.
    let lines = (0..N_SERIES).map(move |idx| {
        (
            format!("stroke={}", hex(series_colour(idx))),
            format!("class=\"s{idx}\" stroke=\"var(--s{idx})\""),
        )
    });
    let series =
        (0..N_SERIES).map(move |idx| (hex(series_colour(idx)), format!("\"var(--s{idx})\"")));
    let shades = (0..N_SHADES).map(move |idx| {
        (
            hex(RGBColor(idx as u8, 254, 2)),
            format!("\"var(--h{idx})\""),
        )
    });
    let rest = [(GRID, "grid"), (AXIS, "muted"), (TEXT, "muted")];
    lines
        .chain(series)
        .chain(shades)
        .chain(rest.map(|(colour, name)| (hex(colour), format!("\"var(--{name})\""))))
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

/// An axis: its ends, and where its marks are.
#[derive(Debug, Clone)]
struct ChartAxis {
    ends: (f64, f64),
    ticks: Vec<f64>,
    is_log: bool,
}

impl ChartAxis {
    /// Over these values; logarithmic where that is asked for and the ends are far apart.
    fn over(
        values: impl Iterator<Item = f64>,
        from_zero: bool,
        may_be_log: bool,
        n_ticks: usize,
    ) -> Option<Self> {
        let (min, max) = range(values)?;
        let is_log = may_be_log && min > 0.0 && max / min > 6.0;
        let at = |x: f64| if is_log { x.log10() } else { x };
        let ends = padded((if from_zero { 0.0 } else { at(min) }, at(max)), from_zero);
        let ticks = if is_log {
            log_ticks(ends, n_ticks)
        } else {
            linear_ticks(ends, n_ticks)
        };
        Some(ChartAxis {
            ends,
            ticks,
            is_log,
        })
    }

    fn at(&self, x: f64) -> f64 {
        if self.is_log { x.log10() } else { x }
    }

    fn text(&self, x: f64) -> String {
        short(if self.is_log { 10f64.powf(x) } else { x })
    }
}

/// The library's own coordinates choose their marks themselves.
impl Ranged for ChartAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, x: &f64, limit: (i32, i32)) -> i32 {
        let share = (x - self.ends.0) / (self.ends.1 - self.ends.0);
        let (from, to) = (f64::from(limit.0), f64::from(limit.1));
        (from + share * (to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.ends.0..self.ends.1
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, at most so many.
fn linear_ticks((min, max): (f64, f64), most: usize) -> Vec<f64> {
    let least = (max - min) / most.max(1) as f64;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= least * 0.999);
    let Some(step) = step.filter(|step| step.is_finite() && *step > 0.0) else {
        return Vec::new();
    };
    let (first, last) = ((min / step).ceil() as i64, (max / step).floor() as i64);
    (first..=last)
        .take(most + 2)
        .map(|n| n as f64 * step)
        .collect()
}

/// Logarithms of 1, 2, 5 in every decade, of 1 and 3, or of 1 alone: as many as there is room for.
fn log_ticks((min, max): (f64, f64), most: usize) -> Vec<f64> {
    let decades = || (min.floor() as i32..=max.ceil() as i32).take(40);
    let ticks = |steps: &[f64]| -> Vec<f64> {
        let all = decades().flat_map(|decade| {
            steps
                .iter()
                .map(move |step| f64::from(decade) + step.log10())
        });
        all.filter(|tick| (min..=max).contains(tick)).collect()
    };
    let choices: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    choices
        .into_iter()
        .map(ticks)
        .find(|ticks| ticks.len() <= most + 1)
        .unwrap_or_else(|| linear_ticks((min, max), most))
}

/// Draws a plot; nothing where no series has a point. The vertical axis is logarithmic where its
/// ends are far apart.
pub fn plot(plot: &Plot) -> Markup {
    let points = || {
        plot.series
            .iter()
            .flat_map(|series| series.points.iter().copied())
    };
    let x = ChartAxis::over(points().map(|p| p.0), plot.from_zero, false, 5);
    let (Some(x), Some(y)) = (x, ChartAxis::over(points().map(|p| p.1), false, true, 6)) else {
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
        let colour = series_colour(series.style);
        let points: Vec<(f64, f64)> = series
            .points
            .iter()
            .map(|point| (point.0, y.at(point.1)))
            .collect();
        if !matches!(series.mark, Mark::Dots { .. }) {
            chart.draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(6),
            ))?;
        }
        let (size, every) = match series.mark {
            Mark::Line => continue,
            Mark::Marked => (14, points.len().div_ceil(MARKERS).max(1)),
            Mark::Dots { large: false } => (14, 1),
            Mark::Dots { large: true } => (24, 1),
        };
        let last = points.len().saturating_sub(1);
        for (_, point) in points
            .iter()
            .enumerate()
            .filter(|(idx, _)| idx % every == 0 || *idx == last)
        {
            let (x, y) = chart.backend_coord(point);
            let corners = corners(series.style, f64::from(size)).into_iter();
            let at = |(dx, dy): (f64, f64)| {
                (
                    (f64::from(x) + dx).round() as i32,
                    (f64::from(y) + dy).round() as i32,
                )
            };
            let corners: Vec<(i32, i32)> = corners.map(at).collect();
            if corners.is_empty() {
                root.draw(&Circle::new((x, y), size, colour.filled()))?;
            } else {
                root.draw(&Polygon::new(corners, colour.filled()))?;
            }
        }
    }
    root.present()?;
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
    let star = |idx: u32| {
        let radius = if idx.is_multiple_of(2) { 1.5 } else { 0.65 };
        let (sin, cos) = (f64::from(idx) * std::f64::consts::PI / 5.0).sin_cos();
        (radius * sin, -radius * cos)
    };
    let outline = match style % N_SHAPES {
        _ if style == REFERENCE => (0..10).map(star).collect(),
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

/// A piece of line and a marker, as a legend shows them.
pub fn key(style: usize, mark: Mark) -> Markup {
    let (colour, class) = (
        format!("var(--s{})", style % N_SERIES),
        format!("s{}", style % N_SERIES),
    );
    let points = corners(style, 14.0)
        .into_iter()
        .map(|(x, y)| format!("{:.0},{:.0}", 60.0 + x, 22.0 + y));
    let outline = points.collect::<Vec<_>>().join(" ");
    html! {
        svg.key viewBox="0 0 120 44" aria-hidden="true" {
            @if !matches!(mark, Mark::Dots { .. }) {
                polyline class=(class) points="2,22 118,22" fill="none" stroke=(colour) stroke-width="8" {}
            }
            @if mark != Mark::Line && outline.is_empty() { circle cx="60" cy="22" r="15" fill=(colour) {} }
            @if mark != Mark::Line && !outline.is_empty() { polygon points=(outline) fill=(colour) {} }
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
    let name = |y: f64| {
        rows.get((last - y).round() as usize)
            .filter(|_| y.fract() == 0.0)
            .map(|row| row.name.clone())
    };
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
        let (width, y) = (
            n_units as f64 / row.shares.len().max(1) as f64,
            last - idx as f64,
        );
        let mut start = 0;
        for run in row.shares.chunk_by(|a, b| shade(*a) == shade(*b)) {
            let end = start + run.len();
            let corners = [
                (start as f64 * width, y - 0.5),
                (end as f64 * width, y + 0.5),
            ];
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
        svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) { (PreEscaped(inner)) }
    }
}

/// The lowest and the highest finite number.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |range, x| {
        Some(range.map_or((x, x), |(min, max): (f64, f64)| (min.min(x), max.max(x))))
    })
}

fn padded((min, max): (f64, f64), at_zero: bool) -> (f64, f64) {
    let room = if max > min {
        (max - min) * 0.06
    } else {
        min.abs().max(1e-3) * 0.1
    };
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
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
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
    fn marks_of_axes_are_round_numbers() {
        let logarithmic = |min: f64, max: f64| -> Vec<String> {
            log_ticks((min.log10(), max.log10()), 6)
                .into_iter()
                .map(|tick| short(10f64.powf(tick)))
                .collect()
        };
        assert_eq!(logarithmic(0.15, 5.6), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!(logarithmic(0.15, 80.0), ["0.3", "1", "3", "10", "30"]);
        assert_eq!(logarithmic(0.9e-4, 1.1e3), ["0.0001", "0.01", "1", "100"]);
        let linear = |min: f64, max: f64| -> Vec<String> {
            linear_ticks((min, max), 5).into_iter().map(short).collect()
        };
        assert_eq!(linear(0.0, 41_000.0), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(linear(5.02, 5.31), ["5.1", "5.2", "5.3"]);
        assert_eq!(linear(-1.0, 1.0), ["-1", "-0.5", "0", "0.5", "1"]);
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
    fn numbers_on_axes_are_short() {
        let texts: Vec<String> = [0.0, 0.5, 12.0, 1250.0, 4e6, 8.03e9, 0.0123]
            .into_iter()
            .map(short)
            .collect();
        assert_eq!(texts, ["0", "0.5", "12", "1.25k", "4M", "8.03B", "0.0123"]);
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
