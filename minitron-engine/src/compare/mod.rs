//! `compare`: strategies side by side. A row is a chain of jobs; jobs that are equal are one, so
//! what rows share is computed once, and a comparison is a run of stages named by their content.

mod chain;
mod checks;
mod spec;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Instant;

pub use spec::{Check, Ratio, Row, Spec};

use serde_json::{Value, json};

use self::chain::Link;
use self::checks::{checks, ratios};
use self::spec::Original;
use self::table::{Done, TableLine, columns};
use crate::jobs::context::Context;
use crate::recipe::run::{StagePlace, refuse_own_inputs, run_stage};
use crate::recipe::run_dir::RunDir;
use crate::train::clear_state;
use minitron_core::error::{Error, Result};
use minitron_core::output::write_atomic;

const FILE: &str = "compare.json";

/// Runs a comparison into a folder; what is there of it and did not change is left as it is. A row
/// that fails is kept, with what it failed of.
pub fn compare(context: &Context, spec: &Spec, out: &Path) -> Result<Value> {
    let begin = Instant::now();
    let mut comparison = Comparison::open(context, spec, out)?;
    // Before any stage: the folder is a comparison's from here on, whenever this ends.
    comparison.save(begin, false)?;
    let mut is_interrupted = comparison.original()?;
    let n_rows = if is_interrupted { 0 } else { spec.rows.len() };
    for row_idx in 0..n_rows {
        is_interrupted = comparison.row(row_idx, begin)?;
        comparison.save(begin, false)?;
        if is_interrupted {
            break;
        }
    }
    if !is_interrupted {
        comparison.warn_of_columns();
    }
    let mut report = comparison.save(begin, !is_interrupted)?;
    if let Some(error) = comparison.all_failed() {
        return Err(Error::Data(format!("every row failed, the first: {error}")));
    }
    if is_interrupted {
        report["interrupted"] = true.into();
    }
    report["out"] = json!(out);
    Ok(report)
}

struct Comparison<'a> {
    context: Context<'a>,
    spec: &'a Spec,
    out: &'a Path,
    run_dir: RunDir,
    lines: Vec<TableLine>,
    /// The original, where no row is that.
    original: Option<TableLine>,
    /// Those of no row.
    warnings: Vec<String>,
    known: BTreeMap<std::path::PathBuf, String>,
    /// Seconds of earlier processes.
    before: f64,
}

impl<'a> Comparison<'a> {
    fn open(context: &Context<'a>, spec: &'a Spec, out: &'a Path) -> Result<Self> {
        refuse_folder(context, spec, out)?;
        let mut run_dir = RunDir::open(out, context.force)?;
        let seed = spec.first_seed();
        run_dir.describe(&Context { seed, ..*context }, &spec.path);
        let mut lines = Vec::new();
        for row in &spec.rows {
            lines.push(TableLine::new(row, &spec.links(row, seed)?));
        }
        let names = stage_names(spec)?;
        let stages = &mut run_dir.record.stages;
        stages.retain(|stage| names.contains(&stage.name));
        Ok(Comparison {
            // Each stage owns its folder.
            context: Context {
                force: true,
                ..*context
            },
            spec,
            out,
            run_dir,
            lines,
            original: None,
            warnings: Vec::new(),
            known: BTreeMap::new(),
            before: earlier_seconds(out),
        })
    }

    /// Measures the original where no row is that; true where it was asked to end on the way.
    fn original(&mut self) -> Result<bool> {
        let Some(Original::Own(link)) = self.spec.original()? else {
            return Ok(false);
        };
        let mut line = TableLine::original(&self.spec.model, &link);
        let links = [*link];
        let progress = self.context.progress;
        progress.note("teacher: evaluated as the rows are");
        match self.links(&links) {
            Ok(true) => return Ok(true),
            Ok(false) => {
                let done = links.first().and_then(|link| done(&self.run_dir, link));
                line.fill_original(done.map_or(&Value::Null, |(result, ..)| result));
                line.status = "done";
            }
            Err(error) if error.is_of_the_system() => return Err(error.at("the original")),
            Err(error) => {
                progress.warn(&format!("the original could not be evaluated: {error}"));
                (line.status, line.error) = ("failed", Some(error.to_string()));
            }
        }
        line.warnings = self.warnings_of(&links);
        self.original = Some(line);
        Ok(false)
    }

    /// What jobs warned of, each once.
    fn warnings_of(&self, links: &[Link]) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        for link in links {
            let stage = self.run_dir.find(&link.stage.name);
            for warning in stage.into_iter().flat_map(|stage| &stage.warnings) {
                let warning = format!("{}: {warning}", link.word);
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        warnings
    }

    fn warn_of_columns(&mut self) {
        for key in &self.spec.columns {
            if self.lines.iter().any(|line| line.values.contains_key(key)) {
                continue;
            }
            let message = format!("columns: no row has `{key}`");
            self.context.progress.warn(&message);
            self.warnings.push(message);
        }
    }

    /// Every row's parameters as a share of the original's, where these are known.
    fn add_shares(&mut self) {
        let original = self.original.as_ref().or_else(|| self.original_row());
        let n_params = original.and_then(|line| line.values.get("n_params"));
        let Some(n_params) = n_params.map(|over| over.mean).filter(|n| *n > 0.0) else {
            return;
        };
        for line in self.lines.iter_mut().chain(&mut self.original) {
            line.add_share(n_params);
        }
    }

    /// The row that leaves the original as it is.
    fn original_row(&self) -> Option<&TableLine> {
        let Ok(Some(Original::Row(name))) = self.spec.original() else {
            return None;
        };
        self.lines.iter().find(|line| line.name == name)
    }

    /// All jobs of a row, for every seed; true where it was asked to end on the way.
    fn row(&mut self, row_idx: usize, begin: Instant) -> Result<bool> {
        let Some(row) = self.spec.rows.get(row_idx) else {
            return Ok(false);
        };
        self.lines[row_idx].status = "running";
        self.save(begin, false)?;
        let mut links_by_seed: Vec<Vec<Link>> = Vec::new();
        for &seed in self.spec.seeds_of(row) {
            let links = self.spec.links(row, seed)?;
            let (name, progress) = (&row.name, self.context.progress);
            let (place, n_rows) = (row_idx + 1, self.spec.rows.len());
            progress.note(&format!("row {place} of {n_rows}: {name}"));
            let done = self.links(&links);
            self.add_warnings(row_idx, &links);
            match done {
                Ok(true) => return Ok(true),
                Ok(false) => links_by_seed.push(links),
                // A full disk is not the strategy's failure, and would be the next one's too.
                Err(error) if error.is_of_the_system() => {
                    return Err(error.at(format!("row `{name}`")));
                }
                Err(error) => {
                    progress.warn(&format!("row `{name}` failed: {error}"));
                    let line = &mut self.lines[row_idx];
                    (line.status, line.error) = ("failed", Some(error.to_string()));
                    return Ok(false);
                }
            }
        }
        self.fill(row_idx, &links_by_seed);
        Ok(false)
    }

    fn add_warnings(&mut self, row_idx: usize, links: &[Link]) {
        let warnings = self.warnings_of(links);
        let of_row = &mut self.lines[row_idx].warnings;
        for warning in warnings {
            if !of_row.contains(&warning) {
                of_row.push(warning);
            }
        }
    }

    /// What a row's jobs came to, once all are done.
    fn fill(&mut self, row_idx: usize, links_by_seed: &[Vec<Link>]) {
        let mut by_seed = Vec::new();
        for links in links_by_seed {
            let mut results = Vec::new();
            for link in links {
                results.extend(done(&self.run_dir, link).map(|result| (link, result)));
            }
            by_seed.push(results);
        }
        let first = links_by_seed.first();
        let curve = first.map(|links| self.curve(links)).unwrap_or_default();
        let line = &mut self.lines[row_idx];
        line.fill(&by_seed);
        (line.status, line.curve) = ("done", curve);
    }

    fn links(&mut self, links: &[Link]) -> Result<bool> {
        let names: Vec<&str> = links.iter().map(|link| link.stage.name.as_str()).collect();
        let dir = self.spec.path.parent();
        let dir = dir.map(Path::to_path_buf).unwrap_or_default();
        for (idx, link) in links.iter().enumerate() {
            let place = StagePlace {
                dir: dir.clone(),
                earlier: names.get(..idx).unwrap_or_default(),
            };
            let context = Context {
                seed: link.seed,
                ..self.context
            };
            let (known, run_dir) = (&mut self.known, &mut self.run_dir);
            let ran = run_stage(&context, &link.stage, &place, known, run_dir);
            let is_halted = ran.map_err(|e| e.at(&link.word))?;
            if is_halted {
                return Ok(true);
            }
            // A comparison has many trainings, and none goes on once it has ended.
            clear_state(&self.run_dir.stage(&link.stage.name))?;
            if self.context.interrupt.is_asked() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Held-out losses by tokens of a chain's last training.
    fn curve(&self, links: &[Link]) -> Vec<Value> {
        let mut links = links.iter().rev();
        let last = links.find(|link| {
            let word = link.word.as_str();
            ["distill", "train", "scratch"].contains(&word)
        });
        let path = last.map(|link| self.run_dir.stage(&link.stage.name).join("metrics.jsonl"));
        let text = path.and_then(|path| std::fs::read_to_string(path).ok());
        text.unwrap_or_default()
            .lines()
            .filter_map(curve_point)
            .collect()
    }

    /// What the first row failed of, where all did.
    fn all_failed(&self) -> Option<&str> {
        let have_failed = self.lines.iter().all(|line| line.error.is_some());
        let first = self.lines.first()?.error.as_deref();
        first.filter(|_| have_failed)
    }

    /// compare.json as far as it is.
    fn save(&mut self, begin: Instant, is_complete: bool) -> Result<Value> {
        self.add_shares();
        let mut report = json!({
            "format": 1,
            "complete": is_complete,
            "title": self.spec.title,
            "spec": self.spec,
            "model": self.spec.model,
            "seeds": self.spec.seeds,
            "columns": columns(self.spec, &self.lines),
            "teacher": self.original,
            "rows": self.lines,
            "checks": checks(self.spec, &self.lines),
            "ratios": ratios(self.spec, &self.lines),
            "versions": { "minitron": env!("CARGO_PKG_VERSION") },
            "seconds": self.before + begin.elapsed().as_secs_f64(),
        });
        if !self.warnings.is_empty() {
            report["warnings"] = json!(self.warnings);
        }
        write_atomic(&self.out.join(FILE), format!("{report:#}\n"))?;
        Ok(report)
    }
}

/// Refuses a folder that holds something else, or what the comparison reads.
fn refuse_folder(context: &Context, spec: &Spec, out: &Path) -> Result<()> {
    if context.force {
        let named_in = serde_json::to_value(spec).unwrap_or_default();
        return refuse_own_inputs(&named_in, &spec.path, out);
    }
    if out.join(FILE).is_file() {
        return Ok(());
    }
    // One without stages may be a comparison's that was cut short before its first.
    let is_run = RunDir::read(out).is_ok_and(|record| !record.stages.is_empty());
    if is_run {
        return Err(Error::Recipe(format!(
            "`{}` holds a run, and no comparison; give another name",
            out.display()
        )));
    }
    Ok(())
}

/// Folders of all jobs.
fn stage_names(spec: &Spec) -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    for row in &spec.rows {
        for &seed in spec.seeds_of(row) {
            let links = spec.links(row, seed)?.into_iter();
            names.extend(links.map(|link| link.stage.name));
        }
    }
    if let Some(Original::Own(link)) = spec.original()? {
        names.insert(link.stage.name);
    }
    Ok(names)
}

/// What a job came to; none where it is not done.
fn done<'a>(run_dir: &'a RunDir, link: &Link) -> Option<Done<'a>> {
    let stage = run_dir.find(&link.stage.name)?;
    Some((stage.result.as_ref()?, stage.seconds, stage.peak_bytes))
}

/// What a line of a training's metrics says; none where it holds no held-out loss.
fn curve_point(line: &str) -> Option<Value> {
    let line: Value = serde_json::from_str(line).ok()?;
    let (tokens, loss) = (line["n_tokens"].as_u64()?, line["eval/loss"].as_f64()?);
    Some(json!({ "tokens": tokens, "loss": loss }))
}

fn earlier_seconds(out: &Path) -> f64 {
    let text = std::fs::read_to_string(out.join(FILE)).unwrap_or_default();
    serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["seconds"].as_f64())
        .unwrap_or(0.0)
}
