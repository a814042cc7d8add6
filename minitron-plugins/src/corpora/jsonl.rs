//! JSON lines and JSON, plain or packed.

use std::iter;
use std::path::PathBuf;

use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::conversation::Form;
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::example;
use super::records::{self, Text, Texts};

/// One record a line (`.jsonl`), or an array of records, a single one, or one after another
/// (`.json`); one of its fields is the document, or the whole record a conversation. Blank lines
/// are skipped, and records of which the field is null.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jsonl {
    /// The file; gzip and zstd are unpacked on the way.
    pub path: PathBuf,
    /// The field that holds the text, or a list of token ids; a dot leads into an object, `a+b`
    /// joins two as they are.
    #[serde(default = "super::default_field")]
    pub field: String,
    /// How a record holds a conversation: `messages`, `sharegpt`, `prompt_completion` or `alpaca`;
    /// recognised where not given and the field is not there.
    #[serde(default)]
    pub form: Option<String>,
}

impl Default for Jsonl {
    fn default() -> Self {
        Jsonl {
            path: PathBuf::new(),
            field: super::default_field(),
            form: None,
        }
    }
}

#[typetag::serde(name = "jsonl")]
impl Corpus for Jsonl {
    fn extensions(&self) -> &'static [&'static str] {
        &records::ENDINGS
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        self.documents_from(seed, 0)
    }

    fn documents_from(&self, _seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let form = example::form_of(self.form.as_deref())?;
        let mut texts = Texts::open(&self.path)?;
        let (mut failed, mut n_to_skip) = (false, n_items);
        Ok(Box::new(iter::from_fn(move || {
            // What follows a damaged record cannot be trusted.
            while !failed {
                let text = texts.next()?;
                let document = match text {
                    // What holds no null is a document, or an error before which nobody came this
                    // far.
                    Ok(text) if n_to_skip > 0 && !has_null(&text.bytes) => {
                        Ok(Some(Document::Text(String::new())))
                    }
                    text => text.and_then(|text| self.document(text, form)),
                };
                failed = document.is_err();
                match document.transpose() {
                    None => {}
                    Some(Ok(_)) if n_to_skip > 0 => n_to_skip -= 1,
                    Some(found) => return Some(found),
                }
            }
            None
        })))
    }
}

impl Jsonl {
    fn document(&self, text: Text, form: Option<Form>) -> Result<Option<Document>> {
        let record = records::parse(&self.path, text)?;
        example::document(&self.path, &record, &self.field, form)
    }
}

fn has_null(record: &[u8]) -> bool {
    record.windows(4).any(|bytes| bytes == b"null")
}

minitron_core::plugin! {
    Corpus for Jsonl {
        tag: "jsonl",
        summary: "JSON lines (.jsonl) and JSON (.json), plain, .gz or .zst: a field of each record",
        source: "jsonlines.org; RFC 8259, RFC 1952 and RFC 8878",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TWO: &str = "{\"text\":\"one\\n\",\"n\":1}\r\n\n  \n{\"n\":2,\"text\":\"two\"}";

    fn read(name: &str, bytes: &[u8], field: &str) -> (Vec<Document>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let corpus = Jsonl {
            path,
            field: field.to_owned(),
            form: None,
        };
        let (mut documents, mut error) = (Vec::new(), None);
        match corpus.documents(0) {
            Ok(found) => {
                for document in found {
                    match document {
                        Ok(document) => documents.push(document),
                        Err(e) => error = Some(e.to_string()),
                    }
                }
            }
            Err(e) => error = Some(e.to_string()),
        }
        (documents, error)
    }

    fn gz(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_compressed_files_hold_the_same_documents() {
        let expected = (
            vec![
                Document::Text("one\n".to_owned()),
                Document::Text("two".to_owned()),
            ],
            None,
        );
        assert_eq!(read("a.jsonl", TWO.as_bytes(), "text"), expected);
        assert_eq!(read("a.jsonl.gz", &gz(TWO), "text"), expected);
        let (head, tail) = TWO.split_at(30);
        assert_eq!(
            read("a.jsonl.gz", &[gz(head), gz(tail)].concat(), "text"),
            expected,
            "several gzip members"
        );
        assert_eq!(
            read(
                "a.jsonl.zst",
                &zstd::encode_all(TWO.as_bytes(), 1).unwrap(),
                "text"
            ),
            expected
        );
        assert_eq!(read("a.jsonl", b"", "text"), (vec![], None));
    }

    #[test]
    fn errors_name_the_line_and_end_the_documents() {
        let (documents, error) = read(
            "a.jsonl",
            b"{\"text\":\"one\"}\n\n{\"text\":\n{\"text\":\"two\"}\n",
            "text",
        );
        assert_eq!(documents.len(), 1);
        let error = error.unwrap();
        assert!(
            error.contains(
                "a.jsonl: line 3: expected JSON, one value on each line, got other text at"
            ),
            "{error}"
        );
        let (_, error) = read("a.jsonl", b"[\"text\"]", "text");
        assert!(
            error
                .unwrap()
                .contains("line 1: expected an object with a string field `text`, got an array")
        );
        let (_, error) = read("a.jsonl", b"{\"text\":\"\xff\"}", "text");
        assert!(error.unwrap().contains("line 1: expected JSON"));
    }

    #[test]
    fn another_field_is_offered() {
        let (_, error) = read("a.jsonl", TWO.as_bytes(), "body");
        let expected =
            "`body`, got none of that name; its fields: `text`, `n`; choose one with `--field`";
        assert!(error.unwrap().ends_with(expected));
        let (_, error) = read("a.jsonl", TWO.as_bytes(), "n");
        assert!(
            error
                .unwrap()
                .contains("`n`, got a number; its fields: `text`, `n`")
        );
    }

    #[test]
    fn damaged_streams_are_data_errors() {
        for (name, mut bytes) in [
            ("a.jsonl.gz", gz(TWO)),
            ("a.jsonl.zst", zstd::encode_all(TWO.as_bytes(), 1).unwrap()),
        ] {
            bytes.truncate(bytes.len() - 6);
            let error = read(name, &bytes, "text").1.unwrap();
            assert!(
                error.starts_with("data: ") && error.ends_with("copy it again"),
                "{error}"
            );
        }
        assert!(read("a.jsonl.gz", TWO.as_bytes(), "text").1.is_some());
    }
}
