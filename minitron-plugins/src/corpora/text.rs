//! Plain text.

use std::io::Read as _;
use std::iter;
use std::path::PathBuf;

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A UTF-8 file as one document; an empty file holds none.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The file.
    pub path: PathBuf,
}

#[typetag::serde(name = "text")]
impl Corpus for Text {
    fn extensions(&self) -> &'static [&'static str] {
        &["txt", "tokens"]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, _seed: u64) -> Result<Documents<'_>> {
        let mut bytes = Vec::new();
        super::open(&self.path)?.read_to_end(&mut bytes).map_err(|e| super::read_error(&self.path, e))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let offset = e.utf8_error().valid_up_to();
            let byte = e.as_bytes().get(offset).copied().unwrap_or_default();
            let what =
                format!("expected UTF-8 text, got byte 0x{byte:02x} at offset {offset}; convert the file to UTF-8");
            super::bad(&self.path, what)
        })?;
        if text.is_empty() {
            return Ok(Box::new(iter::empty()));
        }
        Ok(Box::new(iter::once(Ok(Document::Text(text)))))
    }
}

minitron_core::plugin! {
    Corpus for Text { tag: "text", summary: "a UTF-8 text file as one document", source: "the Unicode Standard, UTF-8" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Document>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, bytes).unwrap();
        Text { path }.documents(0)?.collect()
    }

    #[test]
    fn the_file_is_one_document_byte_for_byte() {
        assert_eq!(read("é\r\n\n b ".as_bytes()).unwrap(), [Document::Text("é\r\n\n b ".to_owned())]);
        assert_eq!(read(b"").unwrap(), []);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_located() {
        let error = read(b"caf\xe9 noir").unwrap_err().to_string();
        assert!(error.contains("got byte 0xe9 at offset 3; convert"), "{error}");
    }
}
