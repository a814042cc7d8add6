//! `search`: candidates from sizes alone, screened as views, ranked by short distillation (arXiv
//! 2407.14679, section 2.3).

mod field;
mod options;
mod prepare;
mod record;
mod winner;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

pub use options::{SearchOptions, SizeList};

use serde_json::{Value, json};
use tracing::info_span;

use self::field::Field;
use self::options::Found;
use self::record::{Entry, Record, RungRecord, Winner};
use super::context::Context;
use crate::search::{Halving, Rung};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::output::{OutputDir, OutputLock, remove_atomic};
use minitron_core::progress::Recorder;

/// Searches for the best small shape; with `dry_run`, counts and lists the candidates from sizes
/// alone.
pub fn search(
    context: &Context,
    options: &SearchOptions,
    out: &Path,
    resume: bool,
    dry_run: bool,
) -> Result<Value> {
    if dry_run {
        return options.survey(context).map(|found| listing(&found));
    }
    let begin = Instant::now();
    let _claim = OutputLock::of(out)?;
    let recorder = Recorder::new(context.progress);
    let context = &Context {
        progress: &recorder,
        ..*context
    };
    let (field, mut record) =
        info_span!("candidates").in_scope(|| Field::open(context, options, out, resume))?;
    if record.complete && out.join("winner").join("config.json").is_file() {
        context
            .progress
            .note("search: complete, nothing left to do");
        return Ok(report(&record, out, false));
    }
    record.note_warnings(context.progress);
    let before = record.seconds;
    let _listening = context.interrupt.listen();
    field.forget(&record)?;
    let mut is_halted = screen(&field, &mut record, out)?;
    let rungs = rungs(&field, options, &record)?;
    for (rung_idx, rung) in rungs.iter().enumerate().skip(record.rungs.len()) {
        if is_halted {
            break;
        }
        let earlier = record.clone();
        is_halted = train(&field, &mut record, (rung_idx, rung, &rungs))?;
        let seconds = before + begin.elapsed().as_secs_f64();
        if is_halted {
            // The rung begins again with what its candidates have kept.
            record = Record { seconds, ..earlier };
        }
        record.seconds = seconds;
        record.note_warnings(context.progress);
        record.save(out)?;
        // Only now: a state that the record still asks for must not be missing.
        field.forget(&record)?;
    }
    if !is_halted {
        finish(&field, &mut record, out)?;
        record.seconds = before + begin.elapsed().as_secs_f64();
        record.note_warnings(context.progress);
        record.save(out)?;
    }
    Ok(report(&record, out, is_halted))
}

/// Losses before training, of all as views; then those that go on. True where it was asked to end
/// on the way.
fn screen(field: &Field, record: &mut Record, out: &Path) -> Result<bool> {
    let _span = info_span!("screen", n_candidates = record.candidates.len()).entered();
    let asked = |record: &Record| -> Vec<usize> {
        (0..record.candidates.len())
            .filter(|&idx| record.candidates[idx].zero_shot.is_none())
            .collect()
    };
    for group in field.groups(&asked(record), record) {
        let _span = info_span!("group", n_candidates = group.len()).entered();
        for (idx, found) in group.iter().zip(field.measure(&group, record)?) {
            record.candidates[*idx].zero_shot = Some(found);
        }
        record.note_warnings(field.context.progress);
        record.save(out)?;
        if field.context.interrupt.is_asked() {
            return Ok(true);
        }
    }
    record.rank_zero_shot();
    let n_screened = field.options.screen.unwrap_or(usize::MAX).max(1);
    if record.rungs.is_empty() {
        for (place, idx) in record.zero_shot_order().into_iter().enumerate() {
            record.candidates[idx].screened_out = place >= n_screened;
        }
    }
    record.save(out)?;
    Ok(false)
}

fn rungs(field: &Field, options: &SearchOptions, record: &Record) -> Result<Vec<Rung>> {
    let n_screened = record
        .candidates
        .iter()
        .filter(|entry| !entry.screened_out)
        .count();
    let halving = Halving {
        n_rungs: options.rungs,
        keep: options.keep_share,
    };
    halving.rungs(n_screened, field.n_steps, field.every)
}

/// One rung: everyone in it learns up to its end, the better ones stay. True where it was asked to
/// end on the way.
fn train(
    field: &Field,
    record: &mut Record,
    (rung_idx, rung, rungs): (usize, &Rung, &[Rung]),
) -> Result<bool> {
    let _span = info_span!("rung", rung_idx, until = rung.until).entered();
    let (begin, from) = (
        Instant::now(),
        record.rungs.last().map_or(0, |rung| rung.steps),
    );
    let remaining = record.remaining();
    let mut teacher_seconds = 0.0;
    for group in field.groups(&remaining, record) {
        let _span = info_span!("group", n_candidates = group.len()).entered();
        let progress = format!(
            "rung {} of {}: {} candidates to step {}",
            rung_idx + 1,
            rungs.len(),
            group.len(),
            rung.until
        );
        field.context.progress.note(&progress);
        let trained = field.train(&group, record, rung.until)?;
        teacher_seconds += trained.teacher_s;
        let n_tokens = rung
            .until
            .saturating_sub(from)
            .saturating_mul(field.tokens_per_step);
        record.shared_teacher.seconds += trained.teacher_s;
        record.shared_teacher.seconds_saved += trained.spared_s;
        record.shared_teacher.forward_tokens += n_tokens;
        record.shared_teacher.forward_tokens_unshared +=
            n_tokens.saturating_mul(group.len() as u64);
        if trained.is_interrupted {
            return Ok(true);
        }
        for (idx, failure) in group.iter().zip(trained.failures) {
            let entry = &mut record.candidates[*idx];
            entry.curve = field.curve(&entry.name)?;
            // One that was not finite at the end has none.
            let last = entry.curve.last().filter(|place| place.step == rung.until);
            entry.loss = last.map(|place| place.loss);
            if let Some(why) = &failure {
                field
                    .context
                    .progress
                    .warn(&format!("candidate {} goes no further: {why}", entry.name));
            }
            entry.failure = failure;
        }
    }
    let n_staying = rungs
        .get(rung_idx + 1)
        .map_or(usize::MAX, |next| next.n_candidates);
    eliminate(record, rung_idx, n_staying);
    record.rungs.push(RungRecord {
        n_candidates: remaining.len(),
        steps: rung.until,
        tokens: rung.until.saturating_mul(field.tokens_per_step),
        seconds: begin.elapsed().as_secs_f64(),
        teacher_seconds,
    });
    record.rank();
    Ok(false)
}

fn eliminate(record: &mut Record, rung_idx: usize, n_staying: usize) {
    let mut order = record.remaining();
    let loss = |idx: &usize| record.candidates[*idx].loss.unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    for idx in order.into_iter().skip(n_staying) {
        record.candidates[idx].eliminated_at = Some(rung_idx);
    }
}

fn finish(field: &Field, record: &mut Record, out: &Path) -> Result<()> {
    let _span = info_span!("winner").entered();
    record.conclude();
    let best = record
        .remaining()
        .into_iter()
        .min_by_key(|&idx| record.candidates[idx].rank);
    let best = best.ok_or_else(|| {
        Error::Data("every candidate of the last rung diverged; try a lower lr".into())
    })?;
    field.write(best, record, &out.join("winner"))?;
    record.winner = Some(Winner {
        name: record.candidates[best].name.clone(),
        dir: "winner".into(),
    });
    record.complete = true;
    Ok(())
}

fn listing(found: &Found) -> Value {
    let rows: Vec<Value> = found
        .candidates
        .iter()
        .map(|candidate| {
            json!({ "sizes": candidate.sizes, "n_params": candidate.n_params,
            "imbalance": candidate.imbalance })
        })
        .collect();
    json!({ "grid": found.survey, "n_params_source": found.spec.n_params(), "candidates": rows })
}

fn report(record: &Record, out: &Path, is_interrupted: bool) -> Value {
    let mut report = serde_json::to_value(record).unwrap_or_default();
    report["out"] = json!(out);
    if is_interrupted {
        report["interrupted"] = true.into();
    }
    report
}

/// Names of candidates in the order they were found: `c01`.
fn entries(found: &Found, bytes: &dyn Fn(&Found, usize) -> u64) -> Vec<Entry> {
    let width = found.candidates.len().to_string().len().max(2);
    let entry = |(idx, candidate): (usize, &crate::search::Candidate)| Entry {
        name: format!("c{:0width$}", idx + 1),
        sizes: candidate.sizes.clone(),
        n_params: candidate.n_params,
        memory_bytes: bytes(found, idx),
        imbalance: candidate.imbalance,
        ..Entry::default()
    };
    found.candidates.iter().enumerate().map(entry).collect()
}

/// Starts the folder, or goes on with what an earlier run of the same search left there.
fn start(context: &Context, out: &Path, resume: bool, fresh: Record) -> Result<Record> {
    let earlier = if resume { Record::load(out)? } else { None };
    if let Some(earlier) = earlier {
        if earlier.inputs == fresh.inputs {
            return Ok(earlier);
        }
        // A recipe's stage owns its folder.
        if !context.force {
            let is_other = !earlier.weights.is_empty() && earlier.weights != fresh.weights;
            let what = if is_other {
                format!("of another model (`{}`)", earlier.model)
            } else {
                "with other options".into()
            };
            let message = format!(
                "{}: holds a search {what}; start over with --force",
                out.display()
            );
            return Err(Error::Recipe(message));
        }
    }
    OutputDir::refuse_existing(out, context.force)?;
    remove_atomic(out)?;
    std::fs::create_dir_all(out).at_path(out)?;
    fresh.save(out)?;
    Ok(fresh)
}

/// A loss of every term by its name.
fn by_label<'l>(labels: impl Iterator<Item = &'l str>, values: &[f64]) -> BTreeMap<String, f64> {
    labels
        .map(str::to_owned)
        .zip(values.iter().copied())
        .filter(|(_, value)| value.is_finite())
        .collect()
}
