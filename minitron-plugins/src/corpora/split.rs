//! The values of a JSON file, cut apart as they are read: an array's elements, or values that
//! follow one another.

use std::io::BufRead;
use std::path::Path;

use minitron_core::error::{Error, Result};

use super::read_error;

/// Bytes of a record at most: one that unfolds without end out of a small file would take all
/// memory.
pub(super) const MOST_BYTES: u64 = 1 << 28;

/// Where the next value stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum SplitState {
    /// Nothing was read.
    Start,
    /// In the array that is the file; true before its first element.
    Array(bool),
    /// Behind that array.
    Behind,
    /// Between values of which each stands for itself.
    Stream,
}

/// Cuts values apart by their brackets, and leaves all else of JSON to who reads them.
pub(super) struct Values<R> {
    reader: R,
    state: SplitState,
    line: usize,
}

impl<R: BufRead> Values<R> {
    pub fn new(reader: R) -> Self {
        Values {
            reader,
            state: SplitState::Start,
            line: 1,
        }
    }

    /// The bytes of the next value, and the line where it begins.
    ///
    /// # Errors
    /// `Data` for a value beyond the limit, and for what stands between or behind values.
    pub fn next(&mut self, path: &Path) -> Result<Option<(usize, Vec<u8>)>> {
        loop {
            let byte = self.after_space().map_err(|e| read_error(path, e))?;
            match (self.state, byte) {
                (SplitState::Array(_), None) => {
                    let what = "the array does not end; copy the file again";
                    return Err(bad_line(path, self.line, what));
                }
                (_, None) => return Ok(None),
                (SplitState::Start, Some(b'[')) => self.pass(SplitState::Array(true)),
                (SplitState::Start, Some(_)) => self.state = SplitState::Stream,
                (SplitState::Array(_), Some(b']')) => self.pass(SplitState::Behind),
                (SplitState::Array(false), Some(b',')) => self.pass(SplitState::Array(true)),
                (SplitState::Array(true) | SplitState::Stream, Some(_)) => {
                    let line = self.line;
                    let value = self.value().map_err(|e| read_error(path, e))?;
                    if value.len() as u64 > MOST_BYTES {
                        let what =
                            format!("expected a record of at most {MOST_BYTES} bytes; split it");
                        return Err(bad_line(path, line, &what));
                    }
                    if self.state != SplitState::Stream {
                        self.state = SplitState::Array(false);
                    }
                    return Ok(Some((line, value)));
                }
                (SplitState::Array(false), Some(_)) => {
                    let what = "expected `,` or `]` after a record";
                    return Err(bad_line(path, self.line, what));
                }
                (SplitState::Behind, Some(_)) => {
                    let what = "expected nothing behind the array; mend the file";
                    return Err(bad_line(path, self.line, what));
                }
            }
        }
    }

    fn pass(&mut self, state: SplitState) {
        self.reader.consume(1);
        self.state = state;
    }

    /// The first byte that is no white space, which stays unread.
    fn after_space(&mut self) -> std::io::Result<Option<u8>> {
        loop {
            let bytes = self.reader.fill_buf()?;
            let n_space = bytes
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let (found, is_over) = (bytes.get(n_space).copied(), bytes.is_empty());
            self.line += bytes
                .iter()
                .take(n_space)
                .filter(|byte| **byte == b'\n')
                .count();
            self.reader.consume(n_space);
            if found.is_some() || is_over {
                return Ok(found);
            }
        }
    }

    /// The value that begins here, to its end or the file's.
    fn value(&mut self) -> std::io::Result<Vec<u8>> {
        let (mut value, mut nesting) = (Vec::new(), Nesting::default());
        loop {
            let bytes = self.reader.fill_buf()?;
            let n_taken = bytes
                .iter()
                .take_while(|byte| nesting.takes(**byte))
                .count();
            let is_over = bytes.is_empty() || n_taken < bytes.len();
            // A bracket that closes nothing is a value of its own, so that something is read.
            let n_bytes = match value.is_empty() {
                true => n_taken.max(1).min(bytes.len()),
                false => n_taken,
            };
            value.extend(bytes.iter().take(n_bytes));
            self.line += bytes
                .iter()
                .take(n_bytes)
                .filter(|byte| **byte == b'\n')
                .count();
            self.reader.consume(n_bytes);
            if is_over || value.len() as u64 > MOST_BYTES {
                return Ok(value);
            }
        }
    }
}

/// How deep in brackets, and whether in a string.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    is_over: bool,
}

impl Nesting {
    /// Whether the next byte is still of the value.
    fn takes(&mut self, byte: u8) -> bool {
        if self.is_over {
            return false;
        }
        if self.in_string {
            self.in_string = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            self.is_over = !self.in_string && self.depth == 0;
            return true;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth == 0 => return false,
            b'}' | b']' => {
                self.depth -= 1;
                self.is_over = self.depth == 0;
            }
            b',' if self.depth == 0 => return false,
            byte if self.depth == 0 && byte.is_ascii_whitespace() => return false,
            _ => {}
        }
        true
    }
}

/// A file that goes wrong in a line.
fn bad_line(path: &Path, line: usize, what: &str) -> Error {
    super::bad(path, format!("line {line}: {what}"))
}
