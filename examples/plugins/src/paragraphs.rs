use std::path::PathBuf;

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A text file with documents between empty lines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Paragraphs {
    /// The file.
    pub path: PathBuf,
}

minitron_core::plugin! {
    Corpus for Paragraphs {
        tag: "paragraphs",
        summary: "documents between empty lines",
        source: "an example",
    }
}

#[typetag::serde(name = "paragraphs")]
impl Corpus for Paragraphs {
    fn extensions(&self) -> &'static [&'static str] {
        &["paragraphs"]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, _seed: u64) -> Result<Documents<'_>> {
        let text = std::fs::read_to_string(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let parts: Vec<String> = text
            .split("\n\n")
            .filter(|part| !part.trim().is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Box::new(
            parts.into_iter().map(|part| Ok(Document::Text(part))),
        ))
    }
}
