//! JSON lines, plain or compressed.

use std::io::{BufRead, BufReader, Read as _};
use std::iter;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes of a line at most: one that unfolds without end out of a small file would take all memory.
const MOST_BYTES: u64 = 1 << 28;

/// One JSON object a line, one of its string fields a document. Blank lines are skipped.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jsonl {
    /// The file; `.gz` and `.zst` are decompressed on the way.
    pub path: PathBuf,
    /// The field that holds the text, or a list of token ids; `a+b` joins two as they are.
    #[serde(default = "super::default_field")]
    pub field: String,
}

impl Default for Jsonl {
    fn default() -> Self {
        Jsonl { path: PathBuf::new(), field: super::default_field() }
    }
}

#[typetag::serde(name = "jsonl")]
impl Corpus for Jsonl {
    fn extensions(&self) -> &'static [&'static str] {
        &["jsonl", "jsonl.gz", "jsonl.zst"]
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, seed: u64) -> Result<Documents<'_>> {
        self.documents_from(seed, 0)
    }

    fn documents_from(&self, _seed: u64, n_items: u64) -> Result<Documents<'_>> {
        let mut reader = decompressed(&self.path)?;
        let (mut line_number, mut failed, mut n_to_skip) = (0_usize, false, n_items);
        Ok(Box::new(iter::from_fn(move || {
            // What follows a damaged line cannot be trusted.
            while !failed {
                let mut line = Vec::new();
                line_number = line_number.saturating_add(1);
                let document = match reader.by_ref().take(MOST_BYTES).read_until(b'\n', &mut line) {
                    Ok(0) => return None,
                    Ok(n) if n as u64 == MOST_BYTES => {
                        Err(self.line_error(line_number, format!("expected less than {MOST_BYTES} bytes; split it")))
                    }
                    Ok(_) if line.trim_ascii().is_empty() => continue,
                    Ok(_) if n_to_skip > 0 => {
                        n_to_skip = n_to_skip.saturating_sub(1);
                        continue;
                    }
                    Ok(_) => self.document(&line, line_number),
                    Err(e) if e.raw_os_error().is_some() => Err(Error::io(&self.path, e)),
                    Err(e) => {
                        Err(self.line_error(line_number, format!("the compressed data is damaged: {e}; copy it again")))
                    }
                };
                failed = document.is_err();
                return Some(document);
            }
            None
        })))
    }
}

impl Jsonl {
    fn document(&self, line: &[u8], line_number: usize) -> Result<Document> {
        let field = &self.field;
        let expected = format!("expected an object with a string field `{field}`");
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let value: Value = serde_json::from_slice(line).map_err(|e| {
            // serde_json counts lines of its own; there is only this one.
            let text = e.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default();
            let message = format!("{expected}, got no valid JSON at column {} ({reason}); mend that line", e.column());
            self.line_error(line_number, message)
        })?;
        let Value::Object(mut object) = value else {
            let message = format!("{expected}, got {}; put one object on each line", kind_of(&value));
            return Err(self.line_error(line_number, message));
        };
        let parts: Vec<Option<Document>> = field.split('+').map(|field| object.get_mut(field).and_then(part)).collect();
        match parts.into_iter().reduce(join).flatten() {
            Some(document) => Ok(document),
            None => {
                let found = field.split('+').map(|field| object.get(field)).find(|found| found.is_none_or(not_a_part));
                let found = found.flatten().map_or("none of that name", |value| kind_of(value));
                let fields: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
                let fields = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
                let message = format!("{expected}, got {found}; its fields: {fields}; choose one with `--field`");
                Err(self.line_error(line_number, message))
            }
        }
    }

    fn line_error(&self, line_number: usize, message: String) -> Error {
        super::bad(&self.path, format!("line {line_number}: {message}"))
    }
}

/// A text, or a list of token ids.
fn part(value: &mut Value) -> Option<Document> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::String(text) => Some(Document::Text(std::mem::take(text))),
        Value::Array(list) => list.iter().map(id).collect::<Option<Vec<u32>>>().map(Document::Tokens),
        _ => None,
    }
}

fn not_a_part(value: &Value) -> bool {
    !(value.is_string() || value.is_array())
}

fn join(first: Option<Document>, second: Option<Document>) -> Option<Document> {
    match (first?, second?) {
        (Document::Text(a), Document::Text(b)) => Some(Document::Text(a + &b)),
        (Document::Tokens(a), Document::Tokens(b)) => Some(Document::Tokens([a, b].concat())),
        _ => None,
    }
}

fn decompressed(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = BufReader::new(super::open(path)?);
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        Some("zst") => {
            let decoder = zstd::Decoder::with_buffer(file).map_err(|e| super::read_error(path, e))?;
            Box::new(BufReader::new(decoder))
        }
        _ => Box::new(file),
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

minitron_core::plugin! {
    Corpus for Jsonl {
        tag: "jsonl",
        summary: "JSON lines (.jsonl, .jsonl.gz, .jsonl.zst), one document a line",
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
        let corpus = Jsonl { path, field: field.to_owned() };
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
        let expected = (vec![Document::Text("one\n".to_owned()), Document::Text("two".to_owned())], None);
        assert_eq!(read("a.jsonl", TWO.as_bytes(), "text"), expected);
        assert_eq!(read("a.jsonl.gz", &gz(TWO), "text"), expected);
        let (head, tail) = TWO.split_at(30);
        assert_eq!(read("a.jsonl.gz", &[gz(head), gz(tail)].concat(), "text"), expected, "several gzip members");
        assert_eq!(read("a.jsonl.zst", &zstd::encode_all(TWO.as_bytes(), 1).unwrap(), "text"), expected);
        assert_eq!(read("a.jsonl", b"", "text"), (vec![], None));
    }

    #[test]
    fn errors_name_the_line_and_end_the_documents() {
        let (documents, error) = read("a.jsonl", b"{\"text\":\"one\"}\n\n{\"text\":\n{\"text\":\"two\"}\n", "text");
        assert_eq!(documents.len(), 1);
        let error = error.unwrap();
        assert!(
            error.contains("a.jsonl: line 3: expected an object with a string field `text`, got no valid"),
            "{error}"
        );
        let (_, error) = read("a.jsonl", b"[\"text\"]", "text");
        assert!(error.unwrap().contains("line 1: expected an object with a string field `text`, got an array"));
        let (_, error) = read("a.jsonl", b"{\"text\":\"\xff\"}", "text");
        assert!(error.unwrap().contains("no valid JSON"));
    }

    #[test]
    fn another_field_is_offered() {
        let (_, error) = read("a.jsonl", TWO.as_bytes(), "body");
        let expected = "`body`, got none of that name; its fields: `text`, `n`; choose one with `--field`";
        assert!(error.unwrap().ends_with(expected));
        let (_, error) = read("a.jsonl", TWO.as_bytes(), "n");
        assert!(error.unwrap().contains("`n`, got a number; its fields: `text`, `n`"));
    }

    #[test]
    fn damaged_streams_are_data_errors() {
        for (name, mut bytes) in
            [("a.jsonl.gz", gz(TWO)), ("a.jsonl.zst", zstd::encode_all(TWO.as_bytes(), 1).unwrap())]
        {
            bytes.truncate(bytes.len() - 6);
            let error = read(name, &bytes, "text").1.unwrap();
            assert!(error.starts_with("data: ") && error.ends_with("copy it again"), "{error}");
        }
        assert!(read("a.jsonl.gz", TWO.as_bytes(), "text").1.is_some());
    }
}
