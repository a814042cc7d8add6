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

use minitron_core::error::{Error, IoContext as _, Result};

/// Opens a data file, or says why it cannot be one.
fn open(path: &Path) -> Result<File> {
    if path.as_os_str().is_empty() {
        return Err(Error::Recipe("a corpus was given an empty `path`; name the file to read".to_owned()));
    }
    let refuse = |kind, text: &str| Error::io(path, io::Error::new(kind, text));
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => refuse(source.kind(), "there is no such file; check the path of the data"),
        _ => Error::io(path, source),
    })?;
    if file.metadata().at_path(path)?.is_dir() {
        return Err(refuse(io::ErrorKind::IsADirectory, "is a folder, but a file is needed; name the files inside it"));
    }
    Ok(file)
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
