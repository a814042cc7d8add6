//! Tokenised documents of Megatron-LM: an index (`.idx`) beside its ids (`.bin`).

mod pair;

use std::fs::File;
use std::io::Read as _;
use std::iter;
use std::path::{Path, PathBuf};

use minitron_core::contract::{Corpus, Documents};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::pair::{IndexedFile, MAGIC};

/// The documents of a pair, each of its sequences joined. End-of-document tokens are those that are
/// in the file.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Megatron {
    /// The index; the ids lie beside it, as `.bin`.
    pub path: PathBuf,
}

#[typetag::serde(name = "megatron")]
impl Corpus for Megatron {
    fn extensions(&self) -> &'static [&'static str] {
        &["idx"]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone(), self.ids()]
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        self.documents_from(seed, 0)
    }

    fn documents_from(&self, _seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let mut pair = IndexedFile::open(&self.path, self.ids())?;
        pair.enter(n_items)?;
        let mut failed = false;
        Ok(Box::new(iter::from_fn(move || {
            let found = (!failed)
                .then(|| pair.next_document().transpose())
                .flatten();
            failed = found.as_ref().is_some_and(Result::is_err);
            found
        })))
    }
}

impl Megatron {
    fn ids(&self) -> PathBuf {
        self.path.with_extension("bin")
    }
}

/// Whether an index of this kind lies beside a file of ids.
pub(super) fn has_index(ids: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    let read =
        File::open(ids.with_extension("idx")).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == MAGIC
}

minitron_core::plugin! {
    Corpus for Megatron {
        tag: "megatron",
        summary: "tokenised documents of Megatron-LM: NAME.idx with NAME.bin beside it",
        source: "Megatron-LM, megatron/core/datasets/indexed_dataset.py",
    }
}
