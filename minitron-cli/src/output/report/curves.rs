//! Curves of trainings: each quantity has a figure of its own, named with its unit.

use maud::{Markup, html};
use minitron_engine::report::{Point, RowReport, TermReport, TrainingReport};

use super::charts::{Mark, Plot, Series, plot};
use super::parts::{Named, curve_table, figure, places};

const NATS: &str = "nats per token";

/// What a loss is called, and its unit where it has one that people know.
struct Quantity {
    name: String,
    unit: Option<&'static str>,
}

impl Quantity {
    fn of(label: &str) -> Self {
        let known = match label {
            "cross_entropy" => "cross entropy",
            "forward_kl" => "KL divergence from the teacher",
            "reverse_kl" => "reverse KL divergence from the teacher",
            "top_k_kl" => "KL divergence over the teacher’s top k",
            "jensen_shannon" => "Jensen–Shannon divergence",
            _ => {
                return Quantity {
                    name: label.replace('_', " "),
                    unit: None,
                };
            }
        };
        Quantity {
            name: known.into(),
            unit: Some(NATS),
        }
    }

    /// What `eval/loss` is: the likelihood, where the losses show that tokens are predicted.
    fn of_held_out(terms: &[TermReport]) -> Self {
        match terms.iter().any(is_on_tokens) {
            true => Quantity::of("cross_entropy"),
            false => Quantity {
                name: "held-out loss".into(),
                unit: None,
            },
        }
    }

    fn axis(&self) -> String {
        self.unit.map_or_else(
            || self.name.clone(),
            |unit| format!("{}, {unit}", self.name),
        )
    }
}

/// Whether a loss compares predictions of tokens.
fn is_on_tokens(term: &TermReport) -> bool {
    let of_logits = ["logit_mse", "logit_cosine"].contains(&term.label.as_str());
    of_logits || Quantity::of(&term.label).unit.is_some()
}

/// A curve of a figure.
struct Curve<'a> {
    name: &'a str,
    style: usize,
    mark: Mark,
    points: &'a [Point],
}

fn drawn(caption: &str, axis: &str, curves: &[Curve], has_legend: bool) -> Markup {
    let (mut series, mut legend, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
        series.push(Series {
            style: curve.style,
            mark: curve.mark,
            points: places(curve.points),
        });
        if has_legend {
            legend.push(Named::new(curve.style, curve.mark, curve.name));
        }
        numbers.push((curve.name.to_owned(), curve.points));
    }
    let label = format!("{caption}: {axis}, against tokens");
    let drawing = plot(&Plot {
        label: &label,
        x: "tokens",
        y: axis,
        from_zero: true,
        series: &series,
    });
    let table = curve_table(&label, &numbers);
    figure(&html! { strong { (caption) } }, &legend, &drawing, &table)
}

fn both<'a>(curve: &'a [Point], held_out: &'a [Point]) -> [Curve<'a>; 2] {
    [
        Curve {
            name: "training, means of neighbouring steps",
            style: 0,
            mark: Mark::Line,
            points: curve,
        },
        Curve {
            name: "held out",
            style: 1,
            mark: Mark::Marked,
            points: held_out,
        },
    ]
}

/// One figure per quantity of a training.
pub fn of_training(training: &TrainingReport) -> Markup {
    let held_out = Quantity::of_held_out(&training.terms);
    // A loss that is also what is reported as the held-out loss needs one figure.
    let is_shown = training.terms.iter().any(|term| {
        term.label == "cross_entropy" && !term.held_out.is_empty()
            || is_same(&term.held_out, &training.held_out)
    });
    let minimised = both(&training.curve, &[]);
    html! {
        div.figures {
            @for term in &training.terms {
                @let quantity = Quantity::of(&term.label);
                (drawn(&quantity.name, &quantity.axis(), &both(&term.curve, &term.held_out), true))
            }
            @if training.terms.len() != 1 && !training.curve.is_empty() {
                (drawn("What is minimised", "weighted sum of all losses", &minimised, true))
            }
            @if !is_shown && !training.held_out.is_empty() {
                (drawn(&held_out.name, &held_out.axis(), &both(&[], &training.held_out), true))
            }
        }
    }
}

/// Whether two curves show the same numbers.
fn is_same(a: &[Point], b: &[Point]) -> bool {
    a.len() == b.len() && !a.is_empty() && a.iter().zip(b).all(|(a, b)| is_near(a.loss, b.loss))
}

fn is_near(a: Option<f64>, b: Option<f64>) -> bool {
    a.zip(b)
        .is_some_and(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(b.abs()))
}

/// A row of a comparison, and how it is drawn in all figures.
pub struct DrawnCurve<'a> {
    /// The row.
    pub row: &'a RowReport,
    /// Of its line and markers.
    pub style: usize,
}

impl<'a> DrawnCurve<'a> {
    fn curve(&self, points: &'a [Point]) -> Curve<'a> {
        Curve {
            name: self.row.title(),
            style: self.style,
            mark: Mark::Marked,
            points,
        }
    }

    fn term(&self, label: &str) -> Option<&'a TermReport> {
        self.row.terms.iter().find(|term| term.label == label)
    }
}

/// Losses of all rows against tokens, one line a row: on held-out text, then what each was trained
/// by.
pub fn of_rows(rows: &[DrawnCurve], has_legend: bool) -> Markup {
    let mut labels: Vec<&str> = Vec::new();
    for term in rows.iter().flat_map(|drawn| &drawn.row.terms) {
        if !labels.contains(&term.label.as_str()) {
            labels.push(&term.label);
        }
    }
    let terms: Vec<TermReport> = rows
        .iter()
        .flat_map(|drawn| drawn.row.terms.iter().cloned())
        .collect();
    let held_out = Quantity::of_held_out(&terms);
    let title = format!("On held-out text: {}", held_out.name);
    let curves = rows.iter().map(|drawn| drawn.curve(&drawn.row.curve));
    let curves: Vec<Curve> = curves.collect();
    html! {
        @if curves.iter().any(|curve| !curve.points.is_empty()) {
            (drawn(&title, &held_out.axis(), &curves, has_legend))
        }
        @for label in labels { (in_training(label, rows, has_legend)) }
    }
}

/// One loss of the rows that were trained by it.
fn in_training(label: &str, rows: &[DrawnCurve], has_legend: bool) -> Markup {
    let quantity = Quantity::of(label);
    let mut curves = Vec::new();
    for drawn in rows {
        curves.extend(drawn.term(label).map(|term| drawn.curve(&term.curve)));
    }
    let title = format!("In training: {}", quantity.name);
    drawn(&title, &quantity.axis(), &curves, has_legend)
}
