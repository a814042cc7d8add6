//! Plain text.

use std::io::{BufRead, Read as _};
use std::iter;
use std::path::PathBuf;

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes of a part.
const PART: usize = 1 << 22;

/// Endings of such files.
pub(super) const ENDINGS: [&str; 4] = ["txt", "tokens", "txt.gz", "txt.zst"];

/// A UTF-8 file as one document, byte for byte (line ends stay, a byte order mark goes), plain,
/// `.gz` or `.zst`; an empty file holds none. One of more than 4 MiB is read in parts, which are
/// tokenised on their own: they end where a line does, between words that hardly any tokenizer
/// joins; one that puts a mark before every text puts one before every part.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The file.
    pub path: PathBuf,
}

#[typetag::serde(name = "text")]
impl Corpus for Text {
    fn extensions(&self) -> &'static [&'static str] {
        &ENDINGS
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, _seed: u64) -> Result<Documents<'_>> {
        self.parts(PART)
    }
}

impl Text {
    fn parts(&self, size: usize) -> Result<Documents<'_>> {
        let mut file = super::plain::open(&self.path)?;
        let (mut bytes, mut n_before, mut is_over) = (Vec::new(), 0_usize, false);
        Ok(Box::new(iter::from_fn(move || {
            if is_over {
                return None;
            }
            let part = self.part(&mut *file, &mut bytes, size, n_before);
            n_before = n_before.saturating_add(part.as_ref().map_or(0, String::len));
            is_over = bytes.is_empty() || part.is_err();
            match part {
                Ok(text) if text.is_empty() => None,
                Ok(text) if is_over => Some(Ok(Document::Text(text))),
                Ok(text) => Some(Ok(Document::Part(Box::new(Document::Text(text))))),
                Err(error) => Some(Err(error)),
            }
        })))
    }

    /// Fills up what was read beyond the last part, and takes the next one away.
    fn part(
        &self,
        file: &mut dyn BufRead,
        bytes: &mut Vec<u8>,
        size: usize,
        n_before: usize,
    ) -> Result<String> {
        // One byte more shows that the file goes on.
        let n_missing = size.saturating_add(1).saturating_sub(bytes.len());
        file.take(n_missing as u64)
            .read_to_end(bytes)
            .map_err(|e| super::read_error(&self.path, e))?;
        let end = if bytes.len() > size {
            end_of_part(bytes)
        } else {
            bytes.len()
        };
        let rest = bytes.split_off(end);
        String::from_utf8(std::mem::replace(bytes, rest)).map_err(|e| {
            let within = e.utf8_error().valid_up_to();
            let byte = e.as_bytes().get(within).copied().unwrap_or_default();
            let offset = n_before.saturating_add(within);
            let what = format!(
                "expected UTF-8 text, got byte 0x{byte:02x} at offset {offset}; convert the file \
                 to UTF-8"
            );
            super::bad(&self.path, what)
        })
    }
}

/// After the last line break with words on both sides; else after the last line break, or before
/// the last character.
fn end_of_part(bytes: &[u8]) -> usize {
    if let Some(at) = bytes.windows(3).rposition(is_between_words) {
        return at.saturating_add(2);
    }
    let before_last = bytes.len().saturating_sub(1);
    let head = bytes.get(..before_last).unwrap_or_default();
    if let Some(at) = head.iter().rposition(|byte| *byte == b'\n') {
        return at.saturating_add(1);
    }
    match bytes.iter().rposition(starts_character) {
        Some(at) if at > 0 => at,
        _ => head.len().max(1),
    }
}

/// Whether three bytes are a line break with words on both sides.
fn is_between_words(around: &[u8]) -> bool {
    match around {
        [before, b'\n', after] => !before.is_ascii_whitespace() && !after.is_ascii_whitespace(),
        _ => false,
    }
}

fn starts_character(byte: &u8) -> bool {
    byte & 0xC0 != 0x80
}

minitron_core::plugin! {
    Corpus for Text {
        tag: "text",
        summary: "a UTF-8 text file as one document",
        source: "the Unicode Standard, UTF-8",
    }
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
        assert_eq!(
            read("é\r\n\n b ".as_bytes()).unwrap(),
            [Document::Text("é\r\n\n b ".to_owned())]
        );
        assert_eq!(read(b"").unwrap(), []);
    }

    #[test]
    fn a_long_file_comes_in_parts_that_end_with_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        for text in [
            "one two\nthree four\n\nfive\nsix",
            "ééééééééééééé",
            "\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
            "a\nb",
            "",
        ] {
            std::fs::write(&path, text).unwrap();
            let corpus = Text { path: path.clone() };
            let whole: Vec<Document> = corpus.documents(0).unwrap().collect::<Result<_>>().unwrap();
            assert_eq!(whole.len(), usize::from(!text.is_empty()));
            for size in 4..30 {
                let mut parts: Vec<Document> =
                    corpus.parts(size).unwrap().collect::<Result<_>>().unwrap();
                let last = parts.pop();
                assert!(last.iter().all(|part| matches!(part, Document::Text(_))));
                let mut joined = String::new();
                for part in &parts {
                    let Document::Part(part) = part else {
                        panic!("{part:?} ends the document")
                    };
                    let Document::Text(part) = part.as_ref() else {
                        panic!("{part:?} is no text")
                    };
                    assert!(!part.is_empty() && part.len() <= size);
                    joined += part;
                }
                if let Some(Document::Text(last)) = last {
                    joined += &last;
                }
                assert_eq!(joined, text, "parts of {size}");
            }
        }
        std::fs::write(&path, "one two\nthree four\n\nfive\nsix").unwrap();
        let first = Text { path }.parts(20).unwrap().next().unwrap().unwrap();
        assert_eq!(
            first,
            Document::Part(Box::new(Document::Text("one two\n".to_owned())))
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_located() {
        let error = read(b"caf\xe9 noir").unwrap_err().to_string();
        assert!(
            error.contains("got byte 0xe9 at offset 3; convert"),
            "{error}"
        );
    }
}
