//! What travels beside a model's weights: tokenizer, settings, licence, the modules of a sentence
//! encoder.

use std::fs;
use std::path::{Path, PathBuf};

use super::links::refuse_link_outside;
use super::modules::{MODULES, modules};
use crate::error::{IoContext, Result};
use crate::output::parent_of;

/// Files that travel under their names.
const NAMES: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    MODULES,
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "token_mappings.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// How names of licences and their conditions begin, in capitals: several ask for a copy with every
/// derivative.
const LICENCES: [&str; 5] = ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"];

/// Templates besides the first one, where a tokenizer has several.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// Files that go along from a model folder, by path within it, sorted. The folder's README.md is
/// not among them: it speaks of another model.
///
/// # Errors
/// `Checkpoint` for a link out of the folder, and for a `modules.json` that cannot be followed.
pub fn companions(from: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = NAMES
        .iter()
        .map(PathBuf::from)
        .filter(|name| from.join(name).is_file())
        .collect();
    found.extend(licences(from)?);
    let mut templates = files_below(from, Path::new(CHAT_TEMPLATES))?;
    templates.retain(|path| path.extension().is_some_and(|ending| ending == "jinja"));
    found.append(&mut templates);
    match modules(from)? {
        Some(modules) => {
            for module in modules
                .iter()
                .filter(|module| !module.folder.as_os_str().is_empty())
            {
                found.extend(files_below(from, &module.folder)?);
            }
        }
        // Of a folder that lost its list.
        None => found.extend(
            [PathBuf::from("1_Pooling/config.json")]
                .into_iter()
                .filter(|path| from.join(path).is_file()),
        ),
    }
    found.sort();
    found.dedup();
    found
        .iter()
        .try_for_each(|name| refuse_link_outside(from, &from.join(name)))?;
    Ok(found)
}

fn licences(from: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(from).at_path(from)? {
        let name = entry.at_path(from)?.file_name();
        let capitals = name.to_string_lossy().to_uppercase();
        if LICENCES.iter().any(|begin| capitals.starts_with(begin)) && from.join(&name).is_file() {
            found.push(PathBuf::from(name));
        }
    }
    Ok(found)
}

/// Regular files of a folder within the model's and of those in it; none where it is absent.
fn files_below(from: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let dir = from.join(&folder);
        if !dir.is_dir() {
            continue;
        }
        refuse_link_outside(from, &dir)?;
        for entry in fs::read_dir(&dir).at_path(&dir)? {
            let entry = entry.at_path(&dir)?;
            let name = folder.join(entry.file_name());
            // A link to a folder may lead back to where it stands.
            if entry.file_type().at_path(&dir)?.is_dir() {
                folders.push(name);
            } else if from.join(&name).is_file() {
                found.push(name);
            }
        }
    }
    Ok(found)
}

/// Copies them into another folder.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    copy_files(from, to, companions(from)?)
}

/// Files that make up a tokenizer.
const TOKENIZER: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Puts a model's tokenizer in the place of whatever another folder has of one.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for path in TOKENIZER
        .iter()
        .map(|name| to.join(name))
        .filter(|path| path.is_file())
    {
        fs::remove_file(&path).at_path(&path)?;
    }
    let mut files = companions(from)?;
    files.retain(|path| {
        TOKENIZER.iter().any(|name| path == Path::new(name)) || path.starts_with(CHAT_TEMPLATES)
    });
    copy_files(from, to, files)
}

fn copy_files(from: &Path, to: &Path, names: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    for name in names {
        let target = to.join(&name);
        let parent = parent_of(&target);
        fs::create_dir_all(&parent).at_path(&parent)?;
        fs::copy(from.join(&name), &target).at_path(&target)?;
    }
    Ok(())
}
