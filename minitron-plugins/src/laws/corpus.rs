//! The same documents in the same order, and a place to go on from after every item.

use std::path::{Path, PathBuf};

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::{IoContext, Result};
use minitron_core::registry::PluginSpec;

use super::{Trial, UNTRIED, of_inputs};

/// One column `text` of the rows "one" and "two": a page, its metadata, their length.
const PARQUET: &[u8] =
    b"PAR1\x15\x00\x15\x1c\x15\x1c,\x15\x04\x15\x00\x15\x06\x15\x06\x00\x00\x03\x00\x00\x00one\
      \x03\x00\x00\x00two\x15\x02\x19,H\x01m\x15\x02\x00\x15\x0c%\x00\x18\x04text%\x00\x00\x16\
      \x04\x19\x1c\x19\x1c&\x08\x1c\x15\x0c\x19\x15\x00\x19\x18\x04text\x15\x00\x16\x04\x16>\x16>\
      &\x08\x00\x00\x16>\x16\x04\x00\x00>\x00\x00\x00PAR1";

/// Version 1, of u16; two sequences of one id, at bytes 0 and 2, a document each.
const MEGATRON: &[u8] =
    b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x08\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\
      \0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";

/// The ids 1 and 2 as u16.
const IDS: &[u8] = &[1, 0, 2, 0];

/// Of a corpus that never ends, so many are read.
const MAX_ITEMS: usize = 50;

/// Endings and bytes of a small file that a corpus of this ending may read, and of what lies beside
/// it.
fn sample(extension: &str) -> &'static [(&'static str, &'static [u8])] {
    match extension {
        "jsonl" => &[("jsonl", b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n")],
        "parquet" => &[("parquet", PARQUET)],
        "bin" => &[("bin", IDS)],
        "idx" => &[("idx", MEGATRON), ("bin", IDS)],
        _ => &[("", b"one two\n\nthree four\n\nfive\n")],
    }
}

/// Tries a corpus as it is, or on a small file with one of its endings.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial) -> Result<String> {
    let dir = tempfile::tempdir().at_path("a temporary folder")?;
    if !trial.lacks_its_file() {
        return documents(trial, trial.spec);
    }
    let none = with_path(trial, &dir.path().join("none"));
    let named = trial.registry.build::<dyn Corpus>(&none)?.extensions();
    trial.ensure(
        !named.is_empty(),
        "it reads a file and names no ending: no file would select it",
    )?;
    let mut verdicts = Vec::new();
    for extension in named {
        let path = write(dir.path(), extension)?;
        verdicts.push(documents(trial, &with_path(trial, &path))?);
    }
    // Of some endings there is no sample; one that was read is enough.
    let tried = verdicts
        .iter()
        .position(|verdict| !verdict.starts_with(UNTRIED))
        .unwrap_or(0);
    Ok(verdicts.swap_remove(tried))
}

fn with_path(trial: &Trial, path: &Path) -> PluginSpec {
    let spec = trial.spec.clone();
    spec.with("path", path.to_string_lossy().as_ref())
}

fn write(dir: &Path, extension: &str) -> Result<PathBuf> {
    let path = dir.join(format!("sample.{extension}"));
    for (ending, bytes) in sample(extension) {
        let path = if ending.is_empty() {
            path.clone()
        } else {
            path.with_extension(ending)
        };
        std::fs::write(&path, bytes).at_path(&path)?;
    }
    Ok(path)
}

fn documents(trial: &Trial, spec: &PluginSpec) -> Result<String> {
    let corpus = trial.registry.build::<dyn Corpus>(spec)?;
    let all = match read(corpus.documents(3)) {
        Ok(all) => all,
        Err(error) => {
            let reason = of_inputs(&error).ok_or(error)?;
            return Ok(format!("{UNTRIED} it has a file of its own: {reason}"));
        }
    };
    for (_, path) in spec.paths() {
        let files = corpus.files();
        trial.ensure(
            files.contains(&path),
            format!("its files lack the one it reads: {files:?}"),
        )?;
        trial.ensure(
            files.iter().all(|file| file.exists()),
            format!("it names files that are not there: {files:?}"),
        )?;
    }
    trial.ensure(!all.is_empty(), "it gives no document")?;
    trial.ensure(
        read(corpus.documents(3))? == all,
        "asked twice, it gives other documents",
    )?;
    let again = trial.registry.build::<dyn Corpus>(spec)?;
    trial.ensure(
        read(again.documents(3))? == all,
        "built again, it gives other documents",
    )?;
    let is_open = all.len() < MAX_ITEMS && matches!(all.last(), Some(Document::Part(_)));
    trial.ensure(
        !is_open,
        "its last item is a part: expected the end of a document",
    )?;
    for n_items in 0..=all.len() {
        let mut rest = read(corpus.documents_from(3, n_items as u64))?;
        // An endless one goes on beyond what was read before.
        if all.len() == MAX_ITEMS {
            rest.truncate(MAX_ITEMS - n_items);
        }
        let is_same = all.get(n_items..) == Some(rest.as_slice());
        trial.ensure(
            is_same,
            format!("after {n_items} items, it goes on with others than those after them"),
        )?;
    }
    Ok("the same documents twice, and from every item on".into())
}

fn read(documents: Result<Documents>) -> Result<Vec<Document>> {
    documents?.take(MAX_ITEMS).collect()
}
