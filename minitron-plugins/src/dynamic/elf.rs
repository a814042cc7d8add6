//! What a file is, from its first bytes: what the system's loader says of other files helps nobody.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use minitron_core::error::{IoContext, Result};
use minitron_core::files::open_regular;

/// Offsets in the header of an ELF file.
const CLASS: usize = 4;
const TYPE: usize = 16;
const MACHINE: usize = 18;
/// A shared object.
const SHARED: u16 = 3;

/// Why a file cannot be a library for this machine; none where it may be one.
pub fn objection(path: &Path) -> Result<Option<String>> {
    let mut header = Vec::with_capacity(64);
    open_regular(path)
        .at_path(path)?
        .take(64)
        .read_to_end(&mut header)
        .at_path(path)?;
    let (kind, processor) = (u16_at(&header, TYPE), u16_at(&header, MACHINE));
    if !header.starts_with(b"\x7fELF") || processor.is_none() {
        return Ok(Some("not a library: expected an ELF shared object".into()));
    }
    if header.get(CLASS) != Some(&2) || processor != Some(host()) {
        let found = processor.map_or("none", machine);
        return Ok(Some(format!(
            "built for another processor: expected {}, got {found}; build it on, or for, this \
             machine",
            machine(host())
        )));
    }
    if kind != Some(SHARED) {
        return Ok(Some(
            "not a library: a program or an object file; expected crate-type = [\"cdylib\"]".into(),
        ));
    }
    let needed = extent(path, &header)?;
    let found = std::fs::metadata(path).at_path(path)?.len();
    if needed > found {
        return Ok(Some(format!(
            "cut off: expected at least {needed} bytes, got {found}; copy it again"
        )));
    }
    Ok(None)
}

/// Where the last segment that is mapped ends: the loader maps what is beyond the end of a file,
/// too, and touching that ends the process.
fn extent(path: &Path, header: &[u8]) -> Result<u64> {
    let start = number_at(header, 32, 8);
    let (size, n) = (number_at(header, 54, 2), number_at(header, 56, 2));
    let end = start.saturating_add(size.saturating_mul(n));
    let mut file = File::open(path).at_path(path)?;
    file.seek(SeekFrom::Start(start)).at_path(path)?;
    let mut table = Vec::new();
    file.take(size.saturating_mul(n))
        .read_to_end(&mut table)
        .at_path(path)?;
    let segments = table.chunks(usize::try_from(size).unwrap_or(1).max(1));
    Ok(segments
        .map(|segment| number_at(segment, 8, 8).saturating_add(number_at(segment, 32, 8)))
        .fold(end, u64::max))
}

fn u16_at(header: &[u8], at: usize) -> Option<u16> {
    let bytes = header.get(at..at + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

/// A little-endian number of `n` bytes; 0 where there are none.
fn number_at(bytes: &[u8], at: usize, n: usize) -> u64 {
    let number = bytes.get(at..at.saturating_add(n)).unwrap_or_default();
    let from_last = number.iter().rev();
    from_last.fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn host() -> u16 {
    if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    }
}

fn machine(number: u16) -> &'static str {
    match number {
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        3 => "x86",
        40 => "arm",
        _ => "an unknown one",
    }
}
