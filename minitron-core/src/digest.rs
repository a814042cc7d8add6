//! Fingerprints of inputs: SHA-256, in hex.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result};
use crate::files::open_regular;

fn hex(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
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
    of_bytes(text.as_bytes())
}

/// Of bytes.
pub fn of_bytes(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    hex(hasher)
}

const MIB: u64 = 1 << 20;
const SAMPLED_ABOVE: u64 = 256 * MIB;
const N_SAMPLES: u64 = 64;

/// Of a data file: of all bytes up to 256 MiB; of a larger file, of its length and 64 evenly spaced
/// MiB, first and last included, so that hundreds of gigabytes need not be read to be told apart.
pub fn of_data_file(path: &Path) -> Result<String> {
    let mut file = open_regular(path).at_path(path)?;
    let n_bytes = file.metadata().at_path(path)?.len();
    if n_bytes <= SAMPLED_ABOVE {
        return of_file(path);
    }
    let mut hasher = Sha256::new();
    hasher.update(n_bytes.to_le_bytes());
    let mut buffer = vec![0u8; MIB as usize];
    for sample in 0..N_SAMPLES {
        let start = (n_bytes - MIB) / (N_SAMPLES - 1) * sample;
        // The division leaves a rest, which the last sample must not miss.
        let start = if sample + 1 == N_SAMPLES {
            n_bytes - MIB
        } else {
            start
        };
        file.seek(SeekFrom::Start(start)).at_path(path)?;
        file.read_exact(&mut buffer).at_path(path)?;
        hasher.update(&buffer);
    }
    Ok(hex(hasher))
}

/// Of a file's bytes.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = open_regular(path).at_path(path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_large_files_the_length_the_samples_and_the_end_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let digest = |n_bytes: u64, mark: Option<u64>| {
            let mut file = std::fs::File::create(&path).unwrap();
            file.set_len(n_bytes).unwrap();
            if let Some(at) = mark {
                file.seek(SeekFrom::Start(at)).unwrap();
                std::io::Write::write_all(&mut file, b"x").unwrap();
            }
            of_data_file(&path).unwrap()
        };
        let n_bytes = SAMPLED_ABOVE + 12_345;
        let plain = digest(n_bytes, None);
        assert_eq!(plain, digest(n_bytes, None));
        assert_ne!(plain, digest(n_bytes + 1, None));
        assert_ne!(plain, digest(n_bytes, Some(n_bytes - 1)));
        assert_ne!(plain, digest(n_bytes, Some(0)));
        assert_eq!(digest(100, Some(3)), of_file(&path).unwrap());
    }
}
