//! Fingerprints of inputs: SHA-256, in hex.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result};

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of token ids.
pub fn of_tokens(tokens: &[u32]) -> String {
    let mut hasher = Sha256::new();
    for chunk in tokens.chunks(1 << 14) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|token| token.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hex(hasher)
}

/// Of a text.
pub fn of_text(text: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(text.as_bytes());
    hex(hasher)
}

/// Of a file's bytes.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at_path(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).at_path(path)?;
        match buffer.get(..n) {
            Some(bytes) if n > 0 => hasher.update(bytes),
            _ => return Ok(hex(hasher)),
        }
    }
}
