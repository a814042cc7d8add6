//! One way to the records of a file, whatever its format: JSON lines, JSON, or Parquet, packed or
//! not.
//!
//! [`records`] gives each as a [`Value`] with the place that errors name. Corpora and evaluators
//! read through it.

use std::io::{BufRead, Read as _};
use std::path::{Path, PathBuf};

use minitron_core::error::{Error, Result};

use super::record::{Place, Record, Records};
use super::split::{MOST_BYTES, Values};
use super::{bad, parquet, plain, read_error};

/// Endings of files of JSON, by lines or as a whole.
pub(super) const ENDINGS: [&str; 9] = [
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "json",
    "json.gz",
    "json.zst",
    "ndjson",
    "ndjson.gz",
    "ndjson.zst",
];

/// Those with an array of records, one record, or records after one another; the others have one on
/// each line.
const WHOLE: [&str; 3] = ["json", "json.gz", "json.zst"];

/// Whether a file is read by its records, by its ending, in upper case or lower.
pub(crate) fn has_records(path: &Path) -> bool {
    super::ends(path, &ENDINGS) || super::ends(path, &parquet::ENDINGS)
}

/// The records of a file. Of a table, only `columns` are decoded where some are named; nested
/// groups, lists and maps become objects and arrays, and binary that is no text an object with its
/// length.
///
/// # Errors
/// `Data` for a file that is not what its ending says, damaged or not; also from the records.
pub(crate) fn records(path: &Path, columns: Option<&[String]>) -> Result<Records> {
    if super::ends(path, &parquet::ENDINGS) {
        return parquet::rows(path, columns);
    }
    let texts = Texts::open(path)?;
    let path = path.to_owned();
    Ok(Box::new(texts.map(move |text| parse(&path, text?))))
}

/// A record as it stands in its file, not yet parsed.
pub(super) struct Text {
    pub place: Place,
    pub bytes: Vec<u8>,
}

/// The texts of a JSON file's records. Blank lines are none.
pub(super) struct Texts {
    path: PathBuf,
    form: RecordForm,
    is_over: bool,
}

enum RecordForm {
    Lines(Box<dyn BufRead>, usize),
    Values(Values<Box<dyn BufRead>>),
}

impl Texts {
    /// # Errors
    /// As [`records`].
    pub fn open(path: &Path) -> Result<Self> {
        let reader = plain::open(path)?;
        let form = if super::ends(path, &WHOLE) {
            RecordForm::Values(Values::new(reader))
        } else {
            RecordForm::Lines(reader, 0)
        };
        Ok(Texts {
            path: path.to_owned(),
            form,
            is_over: false,
        })
    }

    fn advance(&mut self) -> Result<Option<Text>> {
        match &mut self.form {
            RecordForm::Values(values) => {
                let found = values.next(&self.path)?;
                Ok(found.map(|(line, bytes)| Text {
                    place: Place::Line(line),
                    bytes,
                }))
            }
            RecordForm::Lines(reader, number) => line(reader, number, &self.path),
        }
    }
}

impl Iterator for Texts {
    type Item = Result<Text>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let found = self.advance().transpose();
        self.is_over = !matches!(found, Some(Ok(_)));
        found
    }
}

fn line(reader: &mut dyn BufRead, number: &mut usize, path: &Path) -> Result<Option<Text>> {
    loop {
        *number += 1;
        let place = Place::Line(*number);
        let mut bytes = Vec::new();
        // One byte more shows that the line goes on.
        let n_read = reader.take(MOST_BYTES + 1).read_until(b'\n', &mut bytes);
        let n_read = n_read.map_err(|e| read_error_at(path, place, e))?;
        match n_read {
            0 => return Ok(None),
            n if n as u64 > MOST_BYTES => {
                return Err(bad(
                    path,
                    format!("{place}: expected at most {MOST_BYTES} bytes; split it"),
                ));
            }
            _ if bytes.trim_ascii().is_empty() => {}
            _ => return Ok(Some(Text { place, bytes })),
        }
    }
}

fn read_error_at(path: &Path, place: Place, source: std::io::Error) -> Error {
    match read_error(path, source) {
        Error::Data(message) => {
            let name = format!("{}: ", path.display());
            let message = message.strip_prefix(&name).unwrap_or(&message);
            bad(path, format!("{place}: {message}"))
        }
        other => other,
    }
}

/// A record's value.
///
/// # Errors
/// `Data` naming line and column of what is no JSON.
pub(super) fn parse(path: &Path, text: Text) -> Result<Record> {
    let Text { place, bytes } = text;
    // A line's own end would count as another line.
    let value = serde_json::from_slice(bytes.trim_ascii_end()).map_err(|e| {
        // serde_json counts lines of its own, from where the record begins.
        let text = e.to_string();
        let reason = text.split(" at line ").next().unwrap_or_default();
        let line = match place {
            Place::Line(first) => Place::Line(first + e.line().saturating_sub(1)),
            row @ Place::Row(_) => row,
        };
        let hint = if super::ends(path, &WHOLE) {
            "an array or one value after another"
        } else {
            "one value on each line"
        };
        let message = format!(
            "{line}: expected JSON, {hint}, got other text at column {} ({reason}); mend it",
            e.column()
        );
        bad(path, message)
    })?;
    Ok(Record { place, value })
}

#[cfg(test)]
mod tests;
