//! Where documents come from: text, JSON lines, Parquet, token files and Megatron's pairs, and a story grammar that needs no file.
//!
//! A file's documents come in the order of the file, whatever the seed.

mod jsonl;
mod megatron;
mod parquet;
mod stories;
mod text;
mod tokens;

use std::fs::File;
use std::io;
use std::path::Path;

use minitron_core::contract::Corpus;
use minitron_core::error::{Error, Result};
use minitron_core::files::open_regular;

/// The texts of a file, by its ending: JSON lines and Parquet by `field`, all else as one text.
pub(crate) fn of_texts(path: &Path, field: &str) -> Box<dyn Corpus> {
    let (path, field) = (path.to_owned(), field.to_owned());
    let ends = |endings: &[&str]| endings.iter().any(|ending| path.to_string_lossy().ends_with(&format!(".{ending}")));
    let (jsonl, parquet) = (jsonl::Jsonl::default(), parquet::Parquet::default());
    if ends(jsonl.extensions()) {
        Box::new(jsonl::Jsonl { path, field })
    } else if ends(parquet.extensions()) {
        Box::new(parquet::Parquet { path, field })
    } else {
        Box::new(text::Text { path })
    }
}

/// Opens a data file, or says why it cannot be one.
fn open(path: &Path) -> Result<File> {
    if path.as_os_str().is_empty() {
        return Err(Error::Recipe("a corpus was given an empty `path`; name the file to read".to_owned()));
    }
    let refuse = |kind, text: &str| Error::io(path, io::Error::new(kind, text));
    open_regular(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => refuse(source.kind(), "there is no such file; check the path of the data"),
        io::ErrorKind::IsADirectory => {
            refuse(source.kind(), "is a folder, but a file is needed; name the files inside it")
        }
        _ => Error::io(path, source),
    })
}

/// A failed read: the system's own refusals stay as they are, all else is the fault of the content.
fn read_error(path: &Path, source: io::Error) -> Error {
    if source.raw_os_error().is_some() {
        Error::io(path, source)
    } else {
        bad(path, format!("{source}; copy it again"))
    }
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
        assert!(missing.ends_with("there is no such file; check the path of the data"), "{missing}");
        let folder = open(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("is a folder"), "{folder}");
        assert!(open(Path::new("")).unwrap_err().is_usage());
    }
}
