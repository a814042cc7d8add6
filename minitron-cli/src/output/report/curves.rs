//! Curves of trainings: each quantity has a figure of its own, named with its unit.

use maud::{Markup, html};
use minitron_engine::report::{Point, Row, Term, Training};

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
    fn of_held_out(terms: &[Term]) -> Self {
        let on_tokens = |term: &Term| {
            let of_states = ["logit_mse", "logit_cosine"].contains(&term.label.as_str());
            of_states || Quantity::of(&term.label).unit.is_some()
        };
        match terms.iter().any(on_tokens) {
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

/// A curve of a figure.
struct Curve<'a> {
    name: &'a str,
    style: usize,
    mark: Mark,
    points: &'a [Point],
}

fn drawn(caption: &str, axis: &str, curves: &[Curve], has_legend: bool) -> Markup {
    let curves = || curves.iter().filter(|curve| !curve.points.is_empty());
    let series = curves().map(|curve| Series {
        style: curve.style,
        mark: curve.mark,
        points: places(curve.points),
    });
    let series: Vec<Series> = series.collect();
    let legend = curves()
        .filter(|_| has_legend)
        .map(|curve| Named::new(curve.style, curve.mark, curve.name));
    let numbers: Vec<(String, &[Point])> = curves()
        .map(|curve| (curve.name.to_owned(), curve.points))
        .collect();
    let label = format!("{caption}: {axis}, against tokens");
    let drawing = plot(&Plot {
        label: &label,
        x: "tokens",
        y: axis,
        from_zero: true,
        series: &series,
    });
    figure(
        &html! { strong { (caption) } },
        &legend.collect::<Vec<_>>(),
        &drawing,
        &curve_table(&label, &numbers),
    )
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
pub fn of_training(training: &Training) -> Markup {
    let same = |a: &[Point], b: &[Point]| {
        let is_near = |(a, b): (&Point, &Point)| {
            a.loss
                .zip(b.loss)
                .is_some_and(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(b.abs()))
        };
        a.len() == b.len() && !a.is_empty() && a.iter().zip(b).all(is_near)
    };
    let quantity = Quantity::of_held_out(&training.terms);
    // A loss that is also what is reported as the held-out loss needs one figure.
    let is_shown = training.terms.iter().any(|term| {
        term.label == "cross_entropy" && !term.held_out.is_empty()
            || same(&term.held_out, &training.held_out)
    });
    html! {
        div.figures {
            @for term in &training.terms {
                @let Quantity { name, .. } = Quantity::of(&term.label);
                (drawn(&name, &Quantity::of(&term.label).axis(), &both(&term.curve, &term.held_out), true))
            }
            @if training.terms.len() != 1 && !training.curve.is_empty() {
                (drawn("What is minimised", "weighted sum of all losses", &both(&training.curve, &[]), true))
            }
            @if !is_shown && !training.held_out.is_empty() {
                (drawn(&quantity.name, &quantity.axis(), &both(&[], &training.held_out), true))
            }
        }
    }
}

/// A row of a comparison, and how it is drawn in all figures.
pub struct DrawnCurve<'a> {
    /// The row.
    pub row: &'a Row,
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

    fn term(&self, label: &str) -> Option<&'a Term> {
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
    let terms: Vec<Term> = rows
        .iter()
        .flat_map(|drawn| drawn.row.terms.iter().cloned())
        .collect();
    let held_out = Quantity::of_held_out(&terms);
    let on_held_out: Vec<Curve> = rows
        .iter()
        .map(|drawn| drawn.curve(&drawn.row.curve))
        .collect();
    html! {
        @if on_held_out.iter().any(|curve| !curve.points.is_empty()) {
            (drawn(&format!("On held-out text: {}", held_out.name), &held_out.axis(), &on_held_out, has_legend))
        }
        @for label in labels {
            (drawn(
                &format!("In training: {}", Quantity::of(label).name),
                &Quantity::of(label).axis(),
                &rows.iter().filter_map(|drawn| Some(drawn.curve(&drawn.term(label)?.curve))).collect::<Vec<_>>(),
                has_legend,
            ))
        }
    }
}
