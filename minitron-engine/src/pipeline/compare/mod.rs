//! `compare`: strategies side by side. A row is a chain of jobs; jobs that are equal are one, so
//! what rows share is computed once, and a comparison is a run of stages named by their content.

mod spec;
mod table;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Instant;

pub use spec::{Check, Ratio, Row, Spec};

use serde_json::{Value, json};

use self::spec::{Link, Original};
use self::table::{TableLine, checks, columns, ratios};
use super::context::Context;
use super::run::{StagePlace, refuse_own_inputs, run_stage};
use super::run_dir::RunDir;
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
        if context.force {
            refuse_own_inputs(
                &serde_json::to_value(spec).unwrap_or_default(),
                &spec.path,
                out,
            )?;
        } else if !out.join(FILE).is_file()
            && RunDir::read(out).is_ok_and(|record| !record.stages.is_empty())
        {
            // One without stages may be a comparison's that was cut short before its first.
            let message = format!(
                "`{}` holds a run, and no comparison; give another name",
                out.display()
            );
            return Err(Error::Recipe(message));
        }
        let mut run_dir = RunDir::open(out, context.force)?;
        run_dir.describe(
            &Context {
                seed: spec.seeds.first().copied().unwrap_or(0),
                ..*context
            },
            &spec.path,
        );
        let mut lines = Vec::new();
        let mut names = HashSet::new();
        for row in &spec.rows {
            for &seed in &spec.seeds {
                names.extend(
                    spec.links(row, seed)?
                        .into_iter()
                        .map(|link| link.stage.name),
                );
            }
            lines.push(TableLine::new(
                row,
                &spec.links(row, spec.seeds.first().copied().unwrap_or(0))?,
            ));
        }
        if let Some(Original::Own(link)) = spec.original()? {
            names.insert(link.stage.name);
        }
        run_dir
            .record
            .stages
            .retain(|stage| names.contains(&stage.name));
        let before = earlier_seconds(out);
        // Each stage owns its folder.
        let context = Context {
            force: true,
            ..*context
        };
        let (original, warnings, known) = (None, Vec::new(), BTreeMap::new());
        Ok(Comparison {
            context,
            spec,
            out,
            run_dir,
            lines,
            original,
            warnings,
            known,
            before,
        })
    }

    /// Measures the original where no row is that; true where it was asked to end on the way.
    fn original(&mut self) -> Result<bool> {
        let Some(Original::Own(link)) = self.spec.original()? else {
            return Ok(false);
        };
        let mut line = TableLine::original(&self.spec.model, &link);
        let links = [*link];
        self.context
            .progress
            .note("teacher: evaluated as the rows are");
        match self.links(&links) {
            Ok(true) => return Ok(true),
            Ok(false) => {
                let stage = links
                    .first()
                    .and_then(|link| self.run_dir.find(&link.stage.name));
                line.fill_original(
                    stage
                        .and_then(|stage| stage.result.as_ref())
                        .unwrap_or(&Value::Null),
                );
                line.status = "done";
            }
            Err(error) if error.is_of_the_system() => return Err(error.at("the original")),
            Err(error) => {
                self.context
                    .progress
                    .warn(&format!("the original could not be evaluated: {error}"));
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
            let of_stage = self
                .run_dir
                .find(&link.stage.name)
                .into_iter()
                .flat_map(|stage| &stage.warnings);
            for warning in of_stage.map(|warning| format!("{}: {warning}", link.word)) {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        warnings
    }

    fn warn_of_columns(&mut self) {
        let is_absent = |key: &&String| {
            self.lines
                .iter()
                .all(|line| !line.values.contains_key(*key))
        };
        let absent: Vec<String> = self
            .spec
            .columns
            .iter()
            .filter(is_absent)
            .cloned()
            .collect();
        for key in absent {
            let message = format!("columns: no row has `{key}`");
            self.context.progress.warn(&message);
            self.warnings.push(message);
        }
    }

    /// Every row's parameters as a share of the original's, where these are known.
    fn add_shares(&mut self) {
        let of_row = || {
            let Ok(Some(Original::Row(name))) = self.spec.original() else {
                return None;
            };
            self.lines.iter().find(|line| line.name == name)
        };
        let original = self
            .original
            .as_ref()
            .or_else(of_row)
            .and_then(|line| line.values.get("n_params"));
        let Some(n_params) = original
            .map(|over| over.mean)
            .filter(|n_params| *n_params > 0.0)
        else {
            return;
        };
        self.lines
            .iter_mut()
            .chain(&mut self.original)
            .for_each(|line| line.add_share(n_params));
    }

    /// All jobs of a row, for every seed; true where it was asked to end on the way.
    fn row(&mut self, row_idx: usize, begin: Instant) -> Result<bool> {
        let Some(row) = self.spec.rows.get(row_idx) else {
            return Ok(false);
        };
        self.lines[row_idx].status = "running";
        self.save(begin, false)?;
        let mut links_by_seed: Vec<Vec<Link>> = Vec::new();
        for &seed in &self.spec.seeds {
            let links = self.spec.links(row, seed)?;
            self.context.progress.note(&format!(
                "row {} of {}: {}",
                row_idx + 1,
                self.spec.rows.len(),
                row.name
            ));
            let done = self.links(&links);
            let warnings = self.warnings_of(&links);
            let of_row = &mut self.lines[row_idx].warnings;
            let more: Vec<String> = warnings
                .into_iter()
                .filter(|warning| !of_row.contains(warning))
                .collect();
            of_row.extend(more);
            match done {
                Ok(true) => return Ok(true),
                Ok(false) => links_by_seed.push(links),
                // A full disk is not the strategy's failure, and would be the next one's too.
                Err(error) if error.is_of_the_system() => {
                    return Err(error.at(format!("row `{}`", row.name)));
                }
                Err(error) => {
                    self.context
                        .progress
                        .warn(&format!("row `{}` failed: {error}", row.name));
                    let line = &mut self.lines[row_idx];
                    (line.status, line.error) = ("failed", Some(error.to_string()));
                    return Ok(false);
                }
            }
        }
        let done = |link: &Link| {
            let stage = self.run_dir.find(&link.stage.name)?;
            Some((stage.result.as_ref()?, stage.seconds, stage.peak_bytes))
        };
        let by_seed: Vec<Vec<(&Link, table::Done)>> = links_by_seed
            .iter()
            .map(|links| {
                links
                    .iter()
                    .filter_map(|link| Some((link, done(link)?)))
                    .collect()
            })
            .collect();
        let curve = links_by_seed
            .first()
            .map(|links| self.curve(links))
            .unwrap_or_default();
        let line = &mut self.lines[row_idx];
        line.fill(&by_seed);
        (line.status, line.curve) = ("done", curve);
        Ok(false)
    }

    fn links(&mut self, links: &[Link]) -> Result<bool> {
        let names: Vec<&str> = links.iter().map(|link| link.stage.name.as_str()).collect();
        let dir = self
            .spec
            .path
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        for (idx, link) in links.iter().enumerate() {
            let place = StagePlace {
                dir: dir.clone(),
                earlier: names.get(..idx).unwrap_or_default(),
            };
            let context = Context {
                seed: link.seed,
                ..self.context
            };
            let is_halted = run_stage(
                &context,
                &link.stage,
                &place,
                &mut self.known,
                &mut self.run_dir,
            )
            .map_err(|e| e.at(&link.word))?;
            if is_halted || self.context.interrupt.is_asked() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Held-out losses by tokens of a chain's last training.
    fn curve(&self, links: &[Link]) -> Vec<Value> {
        let is_training =
            |link: &&Link| ["distill", "train", "scratch"].contains(&link.word.as_str());
        let last = links.iter().rev().find(is_training);
        let path = last.map(|link| self.run_dir.stage(&link.stage.name).join("metrics.jsonl"));
        let text = path
            .and_then(|path| std::fs::read_to_string(path).ok())
            .unwrap_or_default();
        let point = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(json!({ "tokens": line["n_tokens"].as_u64()?,
                    "loss": line["eval/loss"].as_f64()? }))
        };
        text.lines().filter_map(point).collect()
    }

    /// What the first row failed of, where all did.
    fn all_failed(&self) -> Option<&str> {
        let errors: Vec<&str> = self
            .lines
            .iter()
            .filter_map(|line| line.error.as_deref())
            .collect();
        errors
            .first()
            .copied()
            .filter(|_| errors.len() == self.lines.len())
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

fn earlier_seconds(out: &Path) -> f64 {
    let text = std::fs::read_to_string(out.join(FILE)).unwrap_or_default();
    serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["seconds"].as_f64())
        .unwrap_or(0.0)
}
