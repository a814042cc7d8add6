//! `metrics.jsonl`: the curves of a training.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::read_json;
use crate::train::Best;
use minitron_core::error::{IoContext, Result};

const METRICS: &str = "metrics.jsonl";
/// Points that a curve is thinned out to: more than a screen's width shows nothing more.
const MAX_POINTS: usize = 200;

/// A place on a curve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Trained on by then.
    pub tokens: f64,
    /// In nats where the loss is a likelihood.
    pub loss: Option<f64>,
}

/// One loss of the objective.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TermReport {
    /// Its label in the metrics.
    pub label: String,
    /// While it was trained, thinned out as [`TrainingReport::curve`].
    pub curve: Vec<Point>,
    /// On held-out text.
    pub held_out: Vec<Point>,
}

/// How a training went so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TrainingReport {
    /// The stage, or the folder.
    pub name: String,
    /// `train` or `distill`, where it is known.
    pub job: Option<String>,
    /// Steps done.
    pub n_steps: u64,
    /// Steps in all, where they are known.
    pub n_planned: Option<u64>,
    /// Tokens seen.
    pub n_tokens: u64,
    /// Steps that changed nothing: loss or gradient was not finite, or nothing was predicted.
    pub n_skipped: u64,
    /// Seconds taken, interruptions left out.
    pub elapsed_s: f64,
    /// Of the last step's record.
    pub tokens_per_second: f64,
    /// KL of the student to its teacher before the first step, where the rate follows from it.
    pub kl_at_start: Option<f64>,
    /// Highest learning rate so far.
    pub lr: Option<f64>,
    /// Mean of the last twentieth of the curve.
    pub loss: Option<f64>,
    /// The best held-out evaluation.
    pub best: Option<Best>,
    /// The last held-out evaluation.
    pub held_out_loss: Option<f64>,
    /// What is minimised, the weighted sum of all terms: means of neighbouring steps, at most 200.
    pub curve: Vec<Point>,
    /// Held-out loss at every evaluation: the likelihood in nats, or what is minimised where the
    /// model predicts no tokens.
    pub held_out: Vec<Point>,
    /// Its parts, in their order.
    pub terms: Vec<TermReport>,
    /// Lines that could not be read; one is being written while a training runs.
    pub n_damaged: usize,
}

/// What is read of a line.
#[derive(Debug, Deserialize)]
struct Line {
    step: u64,
    n_tokens: u64,
    loss: Option<f64>,
    #[serde(default)]
    n_skipped: u64,
    #[serde(default)]
    elapsed_s: f64,
    #[serde(default)]
    tokens_per_second: f64,
    #[serde(default)]
    lr: Option<f64>,
    #[serde(default)]
    kl_at_start: Option<f64>,
    #[serde(rename = "eval/loss", default)]
    evaluated: Option<f64>,
    /// Among others, every term's value.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl TrainingReport {
    /// Whether a folder has or had a training.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(METRICS).is_file()
    }

    /// Reads a training's folder.
    ///
    /// # Errors
    /// `Io` when metrics.jsonl cannot be read; lines that say nothing are counted alone.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(METRICS);
        let mut reader = BufReader::new(File::open(&path).at_path(&path)?);
        let mut training = TrainingReport {
            name: name.to_owned(),
            ..TrainingReport::default()
        };
        let (mut points, mut bytes, mut step_tokens) = (Vec::new(), Vec::new(), 0);
        while reader.read_until(b'\n', &mut bytes).at_path(&path)? > 0 {
            match serde_json::from_slice::<Line>(&bytes) {
                Ok(line) => {
                    step_tokens = step_tokens.max(line.n_tokens.saturating_sub(training.n_tokens));
                    points.push(Point {
                        tokens: line.n_tokens as f64,
                        loss: line.loss,
                    });
                    training.add(&line);
                }
                Err(_) => training.n_damaged += 1,
            }
            bytes.clear();
        }
        training.curve = thinned(&points);
        for term in &mut training.terms {
            term.curve = thinned(&term.curve);
        }
        training.loss = recent(&points);
        let planned = planned_tokens(dir).filter(|_| step_tokens > 0);
        training.n_planned =
            planned.map(|n_tokens| n_tokens.div_ceil(step_tokens).max(training.n_steps));
        Ok(training)
    }

    fn add(&mut self, line: &Line) {
        (self.n_steps, self.n_tokens, self.n_skipped) = (line.step, line.n_tokens, line.n_skipped);
        (self.elapsed_s, self.tokens_per_second) = (line.elapsed_s, line.tokens_per_second);
        self.kl_at_start = self.kl_at_start.or(line.kl_at_start);
        self.lr = line.lr.into_iter().chain(self.lr).reduce(f64::max);
        for (key, value) in &line.rest {
            let point = Point {
                tokens: line.n_tokens as f64,
                loss: value.as_f64(),
            };
            if let Some(label) = key.strip_prefix("loss/") {
                self.term(label).curve.push(point);
            } else if let Some(label) = key.strip_prefix("eval/") {
                self.term(label).held_out.push(point);
            }
        }
        let Some(loss) = line.evaluated else { return };
        self.held_out.push(Point {
            tokens: line.n_tokens as f64,
            loss: Some(loss),
        });
        self.held_out_loss = Some(loss);
        if self.best.is_none_or(|best| loss < best.loss) {
            self.best = Some(Best {
                step: line.step,
                loss,
            });
        }
    }

    fn term(&mut self, label: &str) -> &mut TermReport {
        let found = self.terms.iter().position(|term| term.label == label);
        let idx = found.unwrap_or(self.terms.len());
        if found.is_none() {
            self.terms.push(TermReport {
                label: label.to_owned(),
                ..TermReport::default()
            });
        }
        &mut self.terms[idx]
    }

    /// Tokens per step, and so steps in all, follow from how many tokens were asked for.
    pub(super) fn plan_for(&mut self, n_tokens: u64) {
        let per_step = (self.n_tokens)
            .checked_div(self.n_steps)
            .filter(|&per_step| per_step > 0);
        self.n_planned = per_step.map(|per_step| n_tokens.div_ceil(per_step).max(self.n_steps));
    }

    /// Seconds to the end at the speed so far.
    pub fn eta_s(&self) -> Option<f64> {
        let per_step = self.n_tokens as f64 / self.n_steps.max(1) as f64;
        let left = self.n_planned?.saturating_sub(self.n_steps) as f64 * per_step;
        (self.tokens_per_second > 0.0).then(|| left / self.tokens_per_second)
    }
}

/// What the newest state in the folder says was asked for.
fn planned_tokens(dir: &Path) -> Option<u64> {
    let states = std::fs::read_dir(dir.join("checkpoint")).ok()?;
    let newest = states
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("state.json").is_file());
    let state: Value = read_json(&newest.max()?.join("state.json")).ok()?;
    state.pointer("/identity/settings/n_tokens")?.as_u64()
}

/// Means of runs of neighbours, at most [`MAX_POINTS`]; points without a finite loss are left out.
pub(super) fn thinned(points: &[Point]) -> Vec<Point> {
    let run = points.len().div_ceil(MAX_POINTS).max(1);
    points.chunks(run).filter_map(mean_point).collect()
}

/// Over the points that have a loss.
fn mean_point(points: &[Point]) -> Option<Point> {
    let (mut tokens, mut losses, mut n) = (0.0, 0.0, 0.0);
    for point in points {
        if let Some(loss) = point.loss {
            tokens += point.tokens;
            losses += loss;
            n += 1.0;
        }
    }
    (n > 0.0).then(|| Point {
        tokens: tokens / n,
        loss: Some(losses / n),
    })
}

fn recent(points: &[Point]) -> Option<f64> {
    let losses: Vec<f64> = points.iter().filter_map(|point| point.loss).collect();
    let tail = losses.len().div_ceil(20);
    let tail = losses
        .get(losses.len().saturating_sub(tail)..)
        .unwrap_or_default();
    (!tail.is_empty()).then(|| tail.iter().sum::<f64>() / tail.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_being_written_or_was_damaged_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let lines = b"{\"step\":1,\"n_tokens\":64,\"loss\":4.0,\"lr\":2e-4,\
            \"kl_at_start\":0.25}\n\xff\xfe\n\
            {\"step\":2,\"n_tokens\":128,\"loss\":null,\"loss/kl\":0.5,\"eval/loss\":3.5,\
            \"eval/kl\":0.75,\"n_predictions\":64}\n\
            {\"step\":3,\"n_tokens\":192,\"loss\":2.0,\"eval/loss\":3.75,\
            \"tokens_per_second\":64.0}\n{\"step\":4,\"n_tok";
        std::fs::write(dir.path().join(METRICS), lines).unwrap();
        let mut training = TrainingReport::read(dir.path(), "t").unwrap();
        assert_eq!(
            (training.n_steps, training.n_tokens, training.n_damaged),
            (3, 192, 2)
        );
        assert_eq!(
            (training.lr, training.kl_at_start),
            (Some(2e-4), Some(0.25))
        );
        assert_eq!(training.best, Some(Best { step: 2, loss: 3.5 }));
        assert_eq!(
            (training.held_out_loss, training.loss),
            (Some(3.75), Some(2.0))
        );
        assert_eq!(training.curve.len(), 2);
        let at = |loss| {
            vec![Point {
                tokens: 128.0,
                loss: Some(loss),
            }]
        };
        assert_eq!(
            training.terms,
            [TermReport {
                label: "kl".into(),
                curve: at(0.5),
                held_out: at(0.75)
            }]
        );
        training.plan_for(600);
        assert_eq!(
            (training.n_planned, training.eta_s()),
            (Some(10), Some(7.0))
        );
    }

    #[test]
    fn a_long_curve_is_thinned_out_to_means() {
        let points: Vec<Point> = (0..1000)
            .map(|i| Point {
                tokens: f64::from(i),
                loss: Some(f64::from(i % 2)),
            })
            .collect();
        let thin = thinned(&points);
        assert_eq!(thin.len(), 200);
        assert_eq!(
            thin[0],
            Point {
                tokens: 2.0,
                loss: Some(0.4)
            }
        );
    }
}
