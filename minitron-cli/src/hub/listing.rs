//! What the hub lists of a model, and which of it is wanted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use minitron_core::digest;
use minitron_core::error::{IoContext, Result};
use serde::Deserialize;
use sha1::{Digest, Sha1};

/// Endings of files that a model may need.
const WANTED: [&str; 5] = [".json", ".safetensors", ".model", ".txt", ".jinja"];
/// How names of licences and model cards begin, in capitals: students carry the one and draw on the
/// other.
const WANTED_TEXTS: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "NOTICE",
    "COPYING",
    "USE_POLICY",
    "README.MD",
];

/// What the hub says of a revision.
#[derive(Deserialize)]
pub(super) struct Listing {
    pub(super) sha: String,
    pub(super) siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sibling {
    pub(super) rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

impl Sibling {
    /// A model may do without a text that cannot be verified.
    pub(super) fn is_wanted(&self) -> bool {
        let is_announced = self.blob_id.is_some() || self.lfs.is_some();
        is_needed(&self.rfilename, &WANTED) || is_announced && is_needed(&self.rfilename, &[])
    }

    /// With its size and hash, or what they lack.
    pub(super) fn announced(self) -> std::result::Result<Announced, String> {
        let Sibling {
            rfilename: name,
            size,
            blob_id,
            lfs,
        } = self;
        let (n_bytes, hash) = match lfs {
            Some(lfs) => (
                lfs.size.or(size),
                Some(lfs.sha256)
                    .filter(|hex| is_hex(hex, 64))
                    .map(Hash::Sha256),
            ),
            None => (
                size,
                blob_id.filter(|hex| is_hex(hex, 40)).map(Hash::GitBlob),
            ),
        };
        match (n_bytes, hash) {
            (Some(n_bytes), Some(hash)) => Ok(Announced {
                name,
                n_bytes,
                hash,
            }),
            _ => Err(format!(
                "it announces no size and hash of `{name}` to verify it by"
            )),
        }
    }
}

/// Whether a model may need a file, by its place and its ending or as a text: those beside its
/// config, and those in folders of a sentence encoder's modules (`1_Pooling`) and of further chat
/// templates.
fn is_needed(name: &str, endings: &[&str]) -> bool {
    let (folder, file) = name.split_once('/').unwrap_or(("", name));
    let is_module = folder
        .split_once('_')
        .is_some_and(|(idx, _)| idx.parse::<u32>().is_ok());
    let is_text = WANTED_TEXTS
        .iter()
        .any(|begin| file.to_uppercase().starts_with(begin));
    let has_place = folder.is_empty() || is_module || folder == "additional_chat_templates";
    has_place
        && !file.contains('/')
        && (endings.iter().any(|end| file.ends_with(end)) || is_text && endings.is_empty())
}

/// A file as it was announced.
pub(super) struct Announced {
    pub(super) name: String,
    pub(super) n_bytes: u64,
    pub(super) hash: Hash,
}

/// Of large files the SHA-256 of their bytes, of the others that under which git keeps them.
pub(super) enum Hash {
    Sha256(String),
    GitBlob(String),
}

impl Hash {
    pub(super) fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::GitBlob(hex) => hex,
        }
    }

    /// The same of a file.
    pub(super) fn of(&self, path: &Path) -> Result<String> {
        match self {
            Hash::Sha256(_) => digest::of_file(path),
            Hash::GitBlob(_) => git_blob(path),
        }
    }
}

/// SHA-1 of git's header and a file's bytes: it tells damage, and no more was announced.
fn git_blob(path: &Path) -> Result<String> {
    let mut file = File::open(path).at_path(path)?;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", file.metadata().at_path(path)?.len()));
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).at_path(path)?;
        match buffer.get(..n) {
            Some(bytes) if n > 0 => hasher.update(bytes),
            _ => {
                return Ok(hasher
                    .finalize()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect());
            }
        }
    }
}

pub(super) fn is_hex(word: &str, len: usize) -> bool {
    word.len() == len
        && word
            .chars()
            .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}
