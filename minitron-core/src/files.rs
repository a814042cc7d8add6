//! Files of strangers, opened and read: nothing waits for a pipe, and nothing reads what never ends.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Beyond any config, plan, recipe or record.
const MOST_BYTES: u64 = 1 << 28;

/// A regular file, to be read. Opening a pipe would wait until somebody writes, and a device may never end.
///
/// # Errors
/// `InvalidInput` for pipes and devices, `IsADirectory`; else the system's.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(ErrorKind::IsADirectory.into()),
        _ => {
            Err(Error::new(ErrorKind::InvalidInput, "a pipe or a device, but a regular file is needed; save it as one"))
        }
    }
}

/// The text of a file of at most 256 MiB.
///
/// # Errors
/// As [`open_regular`]; `InvalidData` for what is not UTF-8, `FileTooLarge` for more.
pub fn read_text(path: &Path) -> Result<String> {
    read_at_most(path, MOST_BYTES)
}

fn read_at_most(path: &Path, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more shows that the file goes on.
    open_regular(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("longer than {most} bytes, which no file of this kind is");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidData, format!("not UTF-8 text: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "für").unwrap();
        assert_eq!(read_at_most(&path, 4).unwrap(), "für");
        assert_eq!(read_at_most(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        std::fs::write(&path, b"f\xfcr").unwrap();
        assert_eq!(read_at_most(&path, 4).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for (path, kind) in [
            (pipe.as_path(), ErrorKind::InvalidInput),
            (Path::new("/dev/zero"), ErrorKind::InvalidInput),
            (dir.path(), ErrorKind::IsADirectory),
            (Path::new("nowhere"), ErrorKind::NotFound),
        ] {
            assert_eq!(read_text(path).unwrap_err().kind(), kind, "{}", path.display());
        }
    }
}
