//! What TensorBoard reads: TFRecord files of `Event` messages with scalars.
//!
//! ```text
//! record   length u64, masked crc of it u32, bytes, masked crc of them u32; little-endian
//! masked   rotate_right(crc32c, 15) + 0xa282ead8, modulo 2³²
//! Event    1: wall_time f64   2: step   3: file_version   5: Summary
//!          7: SessionLog { 1: status, START = 1 }
//! Summary  1: Value { 1: tag   2: simple_value f32 }, repeated
//! ```
//!
//! Source: `event.proto`, `summary.proto` and `record_writer` of TensorFlow.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use minitron_core::error::{IoContext, Result};

const DIR: &str = "logs";
const PREFIX: &str = "events.out.tfevents.";

/// One file of a run's scalars. A resumed run starts another, which takes back what earlier ones
/// say from its first step on.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Starts a file in `out_dir/logs`; where the run starts at step 1, those of another run go.
    pub fn start(out_dir: &Path, first_step: u64) -> Result<Self> {
        let dir = out_dir.join(DIR);
        fs::create_dir_all(&dir).at_path(&dir)?;
        let mut latest = 0;
        for name in fs::read_dir(&dir)
            .at_path(&dir)?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
        {
            let name = name.to_string_lossy().into_owned();
            let Some(time) = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('.').next())
            else {
                continue;
            };
            if first_step <= 1 {
                fs::remove_file(dir.join(&name)).at_path(dir.join(&name))?;
            } else {
                latest = latest.max(time.parse::<u64>().unwrap_or(0));
            }
        }
        // Readers take files in the order of their names.
        let time = (seconds() as u64).max(latest + 1);
        let path = dir.join(format!("{PREFIX}{time:010}.minitron"));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&path)
            .at_path(&path)?;
        let mut events = Events { path, file };
        events.write(&event(0, |message| {
            bytes_field(message, 3, b"brain.Event:2")
        }))?;
        events.write(&event(first_step, |message| {
            bytes_field(message, 7, &[0x08, 0x01])
        }))?;
        Ok(events)
    }

    /// Every finite number of a step's record under its key.
    pub fn scalars(&mut self, step: u64, record: &Value) -> Result<()> {
        let mut summary = Vec::new();
        for (key, value) in record
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| *key != "step")
        {
            let Some(number) = value.as_f64() else {
                continue;
            };
            let mut scalar = Vec::new();
            bytes_field(&mut scalar, 1, key.as_bytes());
            varint(&mut scalar, (2 << 3) | 5);
            scalar.extend_from_slice(&(number as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &scalar);
        }
        self.write(&event(step, |message| bytes_field(message, 5, &summary)))
    }

    /// One whole record at once, so that a reader sees it or does not.
    fn write(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend_from_slice(&masked_crc(&length));
        record.extend_from_slice(message);
        record.extend_from_slice(&masked_crc(message));
        self.file.write_all(&record).at_path(&self.path)
    }
}

fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

fn event(step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = vec![(1 << 3) | 1];
    message.extend_from_slice(&seconds().to_le_bytes());
    varint(&mut message, 2 << 3);
    varint(&mut message, step);
    what(&mut message);
    message
}

fn bytes_field(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(message, (field << 3) | 2);
    varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn varint(message: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        message.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    message.push(n as u8);
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The messages of a file, their checksums checked.
    fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut rest, mut found) = (bytes, Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            assert_eq!(after[..4], masked_crc(length));
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(after[4 + n..8 + n], masked_crc(&after[4..4 + n]));
            found.push(after[4..4 + n].to_vec());
            rest = &after[8 + n..];
        }
        found
    }

    #[test]
    fn records_are_framed_and_encoded_as_the_formats_say() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::start(dir.path(), 1).unwrap();
        events
            .scalars(
                300,
                &json!({ "step": 300, "loss": 0.5, "grad_norm": null, "note": "x" }),
            )
            .unwrap();
        let found = messages(&fs::read(&events.path).unwrap());
        // Past the nine bytes of the time.
        assert_eq!(found[0][9..], *b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(found[1][9..], *b"\x10\x01\x3a\x02\x08\x01");
        assert_eq!(
            found[2][9..],
            *b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f"
        );
        // Known value: the checksum of nothing is 0, of `123456789` e3069283.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_resumed_run_adds_a_file_that_sorts_behind_and_a_new_run_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(dir.path().join(DIR))
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            names.sort();
            names
        };
        let started: Vec<PathBuf> = [1, 5, 5]
            .map(|step| Events::start(dir.path(), step).unwrap().path)
            .to_vec();
        assert_eq!(names(), started);
        let again = Events::start(dir.path(), 1).unwrap().path;
        assert_eq!(names(), [again]);
    }
}
