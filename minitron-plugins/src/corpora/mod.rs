//! Where documents come from: text, JSON lines, Parquet, token files and Megatron's pairs, and a
//! story grammar that needs no file.
//!
//! A file's documents come in the order of the file, whatever the seed.

mod example;
mod field;
mod jsonl;
mod megatron;
mod parquet;
mod plain;
pub(crate) mod record;
pub(crate) mod records;
mod split;
mod stories;
mod text;
mod tokens;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use minitron_core::contract::{Corpus, Document};
use minitron_core::error::{Error, Result};
use minitron_core::files::open_regular;

use self::record::Record;

/// A file as one text.
pub(crate) fn of_text(path: &Path) -> Box<dyn Corpus> {
    Box::new(text::Text {
        path: path.to_owned(),
    })
}

/// Whether a file is one text, by its ending.
pub(crate) fn is_text(path: &Path) -> bool {
    ends(path, &text::ENDINGS)
}

/// Whether a file has one of the endings, in upper case or lower.
fn ends(path: &Path, endings: &[&str]) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    endings.iter().any(|ending| {
        name.strip_suffix(ending)
            .is_some_and(|name| name.ends_with('.'))
    })
}

/// The columns that a field may begin with: of `a.b`, `a` and `a.b`.
pub(crate) fn roots(field: &str) -> Vec<String> {
    let mut roots = BTreeSet::new();
    for part in field.split('+').chain([field]) {
        roots.insert(part.to_owned());
        roots.extend(
            part.match_indices('.')
                .filter_map(|(at, _)| part.get(..at))
                .map(str::to_owned),
        );
    }
    roots.into_iter().collect()
}

/// The document of a record; none where it is null.
///
/// # Errors
/// `Data` with the record's place, what was found instead, and the fields that are there.
pub(crate) fn document(path: &Path, record: &Record, field: &str) -> Result<Option<Document>> {
    field::document(&record.value, field)
        .map_err(|missing| bad(path, format!("{}: {missing}", record.place)))
}

/// Opens a data file, or says why it cannot be one.
fn open(path: &Path) -> Result<File> {
    if path.as_os_str().is_empty() {
        return Err(Error::Recipe(
            "a corpus was given an empty `path`; name the file to read".to_owned(),
        ));
    }
    open_regular(path).map_err(|source| {
        let kind = source.kind();
        let what = match kind {
            io::ErrorKind::NotFound => "there is no such file; check the path of the data",
            io::ErrorKind::IsADirectory => {
                "is a folder, but a file is needed; name the files inside it"
            }
            _ => return Error::io(path, source),
        };
        Error::io(path, io::Error::new(kind, what))
    })
}

/// A failed read: the system's own refusals stay as they are, what is not supported says so, all
/// else is damage.
fn read_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        _ if source.raw_os_error().is_some() => Error::io(path, source),
        io::ErrorKind::Unsupported => bad(path, source),
        _ => bad(
            path,
            format!("the data is damaged: {source}; copy it again"),
        ),
    }
}

/// Refuses what stands in a file's place before Git LFS has fetched it.
fn check_fetched(path: &Path, begin: &[u8]) -> Result<()> {
    if begin.starts_with(b"version https://git-lfs.github.com/") {
        return Err(bad(
            path,
            "a pointer of Git LFS, not the data; fetch it with `git lfs pull`",
        ));
    }
    Ok(())
}

/// Content that cannot be read, with the file's name in front.
fn bad(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::Data(format!("{}: {message}", path.display()))
}

fn default_field() -> String {
    "text".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let missing = open(&dir.path().join("no.txt")).unwrap_err().to_string();
        assert!(
            missing.ends_with("there is no such file; check the path of the data"),
            "{missing}"
        );
        let folder = open(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("is a folder"), "{folder}");
        assert!(open(Path::new("")).unwrap_err().is_usage());
    }
}
