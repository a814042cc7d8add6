//! Files of strangers, opened and read: nothing waits for a pipe, and nothing reads what never
//! ends.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Beyond any config, plan, recipe or record.
const MOST_BYTES: u64 = 1 << 28;

/// A regular file, to be read. Opening a pipe would wait until somebody writes, and a device may
/// never end.
///
/// # Errors
/// `InvalidInput` for pipes and devices, `IsADirectory`; else the system's.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(ErrorKind::IsADirectory.into()),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            "a pipe or a device, but a regular file is needed; save it as one",
        )),
    }
}

/// Bytes at the beginning of a file that tell how its text is encoded.
pub const HEAD: usize = 64;

/// Length of the byte order mark that a text begins with: 3, or 0 where there is none.
///
/// # Errors
/// `InvalidData` for UTF-16 and UTF-32, with a mark or without.
pub fn mark_len(head: &[u8]) -> Result<usize> {
    let found = match head {
        [0xEF, 0xBB, 0xBF, ..] => return Ok(3),
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => "UTF-32",
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "UTF-16",
        _ if is_utf_16(head) => "UTF-16",
        _ => return Ok(0),
    };
    Err(Error::new(
        ErrorKind::InvalidData,
        format!("expected UTF-8 text, got {found}; save it as UTF-8"),
    ))
}

/// Whether every second byte is zero, and no other: UTF-16 of Latin letters.
fn is_utf_16(head: &[u8]) -> bool {
    let head = head.get(..HEAD.min(head.len())).unwrap_or_default();
    head.len() >= 4 && (is_zero_only_at(0, head) || is_zero_only_at(1, head))
}

/// Whether the bytes at even places (of remainder 0), or at odd ones, are those that are zero.
fn is_zero_only_at(remainder: usize, bytes: &[u8]) -> bool {
    let mut places = bytes.iter().enumerate();
    places.all(|(idx, byte)| (*byte == 0) == (idx % 2 == remainder))
}

/// The text of a file of at most 256 MiB, without a byte order mark.
///
/// # Errors
/// As [`open_regular`]; `InvalidData` for what is not UTF-8, `FileTooLarge` for more.
pub fn read_text(path: &Path) -> Result<String> {
    read_at_most(path, MOST_BYTES)
}

fn read_at_most(path: &Path, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more shows that the file goes on.
    open_regular(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("longer than {most} bytes, which no file of this kind is");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    let n_marked = mark_len(&bytes)?;
    bytes.drain(..n_marked);
    String::from_utf8(bytes)
        .map_err(|e| Error::new(ErrorKind::InvalidData, format!("not UTF-8 text: {e}")))
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
        assert_eq!(
            read_at_most(&path, 3).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        std::fs::write(&path, b"f\xfcr").unwrap();
        assert_eq!(
            read_at_most(&path, 4).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("text");
        for (bytes, expected) in [
            ("\u{feff}für", "für"),
            ("\u{feff}", ""),
            ("\u{feff}\u{feff}a", "\u{feff}a"),
            ("a\0b", "a\0b"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_text(&path).unwrap(), expected);
        }
        let little: Vec<u8> = "{\"a\": 1}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let big: Vec<u8> = "{\"a\": 1}"
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        for (mark, bytes) in [
            (&[0xFF, 0xFE][..], &little),
            (&[0xFE, 0xFF], &big),
            (&[], &little),
            (&[], &big),
        ] {
            std::fs::write(&path, [mark, bytes].concat()).unwrap();
            let error = read_text(&path).unwrap_err().to_string();
            assert!(error.contains("got UTF-16; save it as UTF-8"), "{error}");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let pipe = dir.path().join("pipe");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        for (path, kind) in [
            (pipe.as_path(), ErrorKind::InvalidInput),
            (Path::new("/dev/zero"), ErrorKind::InvalidInput),
            (dir.path(), ErrorKind::IsADirectory),
            (Path::new("nowhere"), ErrorKind::NotFound),
        ] {
            assert_eq!(
                read_text(path).unwrap_err().kind(),
                kind,
                "{}",
                path.display()
            );
        }
    }
}
