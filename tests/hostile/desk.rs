//! Bytes as the files of a folder, and what every answer to them has to be.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use minitron_core::error::{Error, Result};
use minitron_core::registry::Registry;

use super::memory;

/// Stands between the files of an input that is several.
pub const BETWEEN: &[u8] = b"\xff|\xff";

thread_local! {
    static DIR: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    static REGISTRY: Registry = {
        minitron_plugins::link();
        Registry::linked().unwrap_or_else(|e| panic!("{e}"))
    };
}

/// Runs some work with the built-in plugins.
pub fn with_registry<T>(work: impl FnOnce(&Registry) -> T) -> T {
    REGISTRY.with(work)
}

/// This thread's folder; what another input left there is written over.
pub fn dir() -> PathBuf {
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| tempfile::tempdir().unwrap_or_else(|e| panic!("{e}")));
        dir.path().to_path_buf()
    })
}

/// The files of an input, the last of them with all that follows.
pub fn files<const N: usize>(bytes: &[u8]) -> [Option<&[u8]>; N] {
    let mut rest = Some(bytes);
    std::array::from_fn(|idx| {
        let all = rest?;
        let end = all
            .windows(BETWEEN.len())
            .position(|window| window == BETWEEN)
            .filter(|_| idx + 1 < N);
        rest = end.map(|end| &all[end + BETWEEN.len()..]);
        Some(&all[..end.unwrap_or(all.len())])
    })
}

/// Writes a file of the folder, or takes it away.
pub fn put(dir: &Path, name: &str, bytes: Option<&[u8]>) -> PathBuf {
    let path = dir.join(name);
    let done = match bytes {
        Some(bytes) => fs::write(&path, bytes),
        None => fs::remove_file(&path).or(Ok(())),
    };
    done.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// What came of it; an error has to have words, and to be nobody's but the file's.
pub fn answer<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(
                !is_internal(&error) && !text.contains("it panicked"),
                "a file led to a bug: {text}"
            );
            assert!(text.len() > 8, "an error without words: {text}");
            None
        }
    }
}

fn is_internal(error: &Error) -> bool {
    match error {
        Error::Internal(_) => true,
        Error::At { source, .. } => is_internal(source),
        _ => false,
    }
}

/// Bytes of memory for each byte of a file: one of JSON becomes a value, a key and a place in a
/// table.
const PER_BYTE: usize = 64;

/// Runs some work, which may hold so much at a time: a multiple of its input and a constant.
pub fn within(n_bytes: usize, constant: usize, work: impl FnOnce()) {
    let peak = memory::peak_of(work);
    let most = n_bytes * PER_BYTE + constant;
    assert!(
        peak <= most,
        "{n_bytes} bytes took {peak} bytes of memory, at most {most} expected"
    );
}
