//! `search`: candidates from sizes alone, screened as views, ranked by short distillation (arXiv
//! 2407.14679, section 2.3).

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tracing::info_span;

use super::field::Field;
use super::halving::{Halving, Rung};
use super::options::{Found, SearchOptions};
use super::record::{RungRecord, SearchRecord, Winner};
use super::workers::{Answer, Work, Workers};
use crate::jobs::context::Context;
use crate::ranks::Ranks;
use minitron_core::error::{Error, Result};
use minitron_core::output::OutputLock;
use minitron_core::progress::Recorder;

/// Searches for the best small shape; with `dry_run`, counts and lists the candidates from sizes
/// alone.
///
/// ```
/// use minitron_core::registry::Registry;
/// use minitron_engine::jobs::Context;
/// use minitron_engine::search::{SearchOptions, search};
///
/// # fn main() -> minitron_core::error::Result<()> {
/// minitron_plugins::link();
/// let registry = Registry::linked()?;
/// let context = Context::on_cpu(&registry, &minitron_plugins::BuiltIn);
/// let options = SearchOptions {
///     model: "../examples/demo".into(),
///     params: Some("700K+-5%".into()),
///     candidates: 4,
///     ..SearchOptions::default()
/// };
/// // Nothing is read but the config, and nothing written.
/// let found = search(&context, &options, "out".as_ref(), false, true)?;
/// assert_eq!(found["candidates"].as_array().map(Vec::len), Some(4));
/// # Ok(())
/// # }
/// ```
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
    let ranks = context.ranks;
    let mut claim = None;
    ranks.first(|| {
        claim = Some(OutputLock::of(out)?);
        Ok(())
    })?;
    let recorder = Recorder::new(context.progress);
    // A candidate is one rank's own.
    let context = &Context {
        progress: &recorder,
        ranks: Ranks::alone(),
        ..*context
    };
    let (field, record) = info_span!("candidates")
        .in_scope(|| Field::open(context, options, out, (resume, ranks)))?;
    let mut workers = Workers::new(ranks);
    if !ranks.is_first() {
        let _listening = context.interrupt.listen();
        workers.serve(&field)?;
        return Ok(report(&record, out, false));
    }
    let found = conduct(&field, record, &mut workers);
    workers.end()?;
    found
}

/// Screening, rungs, and the winner.
fn conduct(field: &Field, mut record: SearchRecord, workers: &mut Workers) -> Result<Value> {
    let begin = Instant::now();
    let (context, options, out) = (field.context, field.options, field.out);
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
    let mut is_halted = screen(field, &mut record, workers)?;
    let rungs = rungs(field, options, &record)?;
    for (rung_idx, rung) in rungs.iter().enumerate().skip(record.rungs.len()) {
        if is_halted {
            break;
        }
        let earlier = record.clone();
        is_halted = train(field, &mut record, (rung_idx, rung, &rungs), workers)?;
        let seconds = before + begin.elapsed().as_secs_f64();
        if is_halted {
            // The rung begins again with what its candidates have kept.
            record = SearchRecord { seconds, ..earlier };
        }
        record.seconds = seconds;
        record.note_warnings(context.progress);
        record.save(out)?;
        // Only now: a state that the record still asks for must not be missing.
        field.forget(&record)?;
    }
    if !is_halted {
        finish(field, &mut record, out)?;
        record.seconds = before + begin.elapsed().as_secs_f64();
        record.note_warnings(context.progress);
        record.save(out)?;
    }
    Ok(report(&record, out, is_halted))
}

/// Losses before training, of all as views; then those that go on. True where it was asked to end
/// on the way.
fn screen(field: &Field, record: &mut SearchRecord, workers: &mut Workers) -> Result<bool> {
    let _span = info_span!("screen", n_candidates = record.candidates.len()).entered();
    let unmeasured = record.unmeasured();
    let asked = (unmeasured.as_slice(), Work::Measure);
    let is_halted = workers.each(field, record, asked, |record, group, answer| {
        if let Answer::Measured(measured) = answer {
            for (idx, found) in group.iter().zip(measured) {
                record.candidates[*idx].zero_shot = Some(found);
            }
        }
        record.note_warnings(field.context.progress);
        record.save(field.out)?;
        Ok(field.context.interrupt.is_asked())
    })?;
    if is_halted {
        return Ok(true);
    }
    record.rank_zero_shot();
    let n_screened = field.options.screen.unwrap_or(usize::MAX).max(1);
    if record.rungs.is_empty() {
        for (place, idx) in record.zero_shot_order().into_iter().enumerate() {
            record.candidates[idx].screened_out = place >= n_screened;
        }
    }
    record.save(field.out)?;
    Ok(false)
}

fn rungs(field: &Field, options: &SearchOptions, record: &SearchRecord) -> Result<Vec<Rung>> {
    let candidates = record.candidates.iter();
    let n_screened = candidates.filter(|entry| !entry.screened_out).count();
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
    record: &mut SearchRecord,
    (rung_idx, rung, rungs): (usize, &Rung, &[Rung]),
    workers: &mut Workers,
) -> Result<bool> {
    let _span = info_span!("rung", rung_idx, until = rung.until).entered();
    let begin = Instant::now();
    let from = record.rungs.last().map_or(0, |rung| rung.steps);
    let n_steps = rung.until.saturating_sub(from);
    let n_tokens = n_steps.saturating_mul(field.tokens_per_step);
    let remaining = record.remaining();
    let mut teacher_seconds = 0.0;
    let (place, n_rungs, n_candidates) = (rung_idx + 1, rungs.len(), remaining.len());
    field.context.progress.note(&format!(
        "rung {place} of {n_rungs}: {n_candidates} candidates to step {}",
        rung.until
    ));
    let work = Work::Train { until: rung.until };
    let asked = (remaining.as_slice(), work);
    let is_halted = workers.each(field, record, asked, |record, group, answer| {
        let Answer::Trained(trained) = answer else {
            return Ok(false);
        };
        teacher_seconds += trained.teacher_s;
        let shared = &mut record.shared_teacher;
        shared.seconds += trained.teacher_s;
        shared.seconds_saved += trained.spared_s;
        shared.forward_tokens += n_tokens;
        shared.forward_tokens_unshared += n_tokens.saturating_mul(group.len() as u64);
        if trained.is_interrupted {
            return Ok(true);
        }
        note_losses(field, record, (group, trained.failures), rung.until)?;
        Ok(false)
    })?;
    if is_halted {
        return Ok(true);
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

/// What each of a group came to at the end of a rung.
fn note_losses(
    field: &Field,
    record: &mut SearchRecord,
    (group, failures): (&[usize], Vec<Option<String>>),
    until: u64,
) -> Result<()> {
    for (&idx, failure) in group.iter().zip(failures) {
        let entry = &mut record.candidates[idx];
        entry.curve = field.curve(&entry.name)?;
        // One that was not finite at the end has none.
        let last = entry.curve.last().filter(|place| place.step == until);
        entry.loss = last.map(|place| place.loss);
        if let Some(why) = &failure {
            let message = format!("candidate {} goes no further: {why}", entry.name);
            field.context.progress.warn(&message);
        }
        entry.failure = failure;
    }
    Ok(())
}

/// Those with the highest losses leave.
fn eliminate(record: &mut SearchRecord, rung_idx: usize, n_staying: usize) {
    for idx in record.remaining_by_loss().into_iter().skip(n_staying) {
        record.candidates[idx].eliminated_at = Some(rung_idx);
    }
}

fn finish(field: &Field, record: &mut SearchRecord, out: &Path) -> Result<()> {
    let _span = info_span!("winner").entered();
    record.conclude();
    let remaining = record.remaining().into_iter();
    let best = remaining.min_by_key(|&idx| record.candidates[idx].rank);
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
    let mut rows = Vec::new();
    for candidate in &found.candidates {
        rows.push(json!({
            "sizes": candidate.sizes,
            "n_params": candidate.n_params,
            "imbalance": candidate.imbalance,
        }));
    }
    json!({ "grid": found.survey, "n_params_source": found.spec.n_params(), "candidates": rows })
}

fn report(record: &SearchRecord, out: &Path, is_interrupted: bool) -> Value {
    let mut report = serde_json::to_value(record).unwrap_or_default();
    report["out"] = json!(out);
    if is_interrupted {
        report["interrupted"] = true.into();
    }
    report
}
