//! Columns of a Parquet file.

mod backed;
mod columns;
mod open;
mod rows;

use std::fs::File;
use std::iter;
use std::path::PathBuf;

use self::backed::Backed;
use self::columns::Chosen;
use self::open::{guarded, open, unreadable};
pub(super) use self::rows::rows;
use super::example;
use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::conversation::Form;
use minitron_core::error::Result;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows decoded at a time.
const BATCH: usize = 1024;

/// Endings of such files.
pub(super) const ENDINGS: [&str; 1] = ["parquet"];

/// One document a row. Rows without a value are skipped.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// The file.
    pub path: PathBuf,
    /// The column that holds the text, or lists of token ids; a dot leads into a group, `a+b` joins
    /// two as they are.
    #[serde(default = "super::default_field")]
    pub field: String,
    /// How a row holds a conversation: `messages`, `sharegpt`, `prompt_completion` or `alpaca`;
    /// recognised where not given and the column is not there.
    #[serde(default)]
    pub form: Option<String>,
}

impl Default for Parquet {
    fn default() -> Self {
        Parquet {
            path: PathBuf::new(),
            field: super::default_field(),
            form: None,
        }
    }
}

#[typetag::serde(name = "parquet")]
impl Corpus for Parquet {
    fn extensions(&self) -> &'static [&'static str] {
        &ENDINGS
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn documents(&self, _seed: u64) -> Result<Documents<'_>> {
        let (file, reader) = open(&self.path)?;
        let form = example::form_of(self.form.as_deref())?;
        let chosen = match form {
            Some(_) => columns::of_examples(&reader, &self.field, true)
                .ok_or_else(|| "no columns of conversations".to_owned()),
            None => columns::choose(&reader, &self.field).or_else(|message| {
                columns::of_examples(&reader, &self.field, false).ok_or(message)
            }),
        };
        let chosen = chosen.map_err(|message| super::bad(&self.path, message))?;
        let column_idx = match chosen {
            Chosen::Text(idx) => idx,
            Chosen::Columns(columns) => return self.of_rows(&columns, form),
        };
        let mut rows = ParquetTexts {
            corpus: self,
            file,
            reader,
            column_idx,
            row_group: 0,
            column: None,
            batch: Vec::new().into_iter(),
            n_rows: 0,
            failed: false,
        };
        Ok(Box::new(iter::from_fn(move || rows.next_document())))
    }
}

impl Parquet {
    /// What no single column of texts holds is assembled row by row.
    fn of_rows(&self, columns: &[String], form: Option<Form>) -> Result<Documents<'_>> {
        let mut rows = rows(&self.path, Some(columns))?;
        let mut failed = false;
        Ok(Box::new(iter::from_fn(move || {
            while !failed {
                let record = rows.next()?;
                let document = record
                    .and_then(|record| example::document(&self.path, &record, &self.field, form));
                failed = document.is_err();
                if let Some(found) = document.transpose() {
                    return Some(found);
                }
            }
            None
        })))
    }
}

/// The place reached in a column.
struct ParquetTexts<'a> {
    corpus: &'a Parquet,
    file: File,
    reader: SerializedFileReader<File>,
    column_idx: usize,
    row_group: usize,
    column: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: std::vec::IntoIter<ByteArray>,
    n_rows: usize,
    failed: bool,
}

impl ParquetTexts<'_> {
    fn next_document(&mut self) -> Option<Result<Document>> {
        while !self.failed {
            if let Some(value) = self.batch.next() {
                self.n_rows = self.n_rows.saturating_add(1);
                let document = self.document(&value);
                self.failed = document.is_err();
                return Some(document);
            }
            match guarded(|| self.fill()) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    self.failed = true;
                    return Some(Err(unreadable(&self.corpus.path, &e)));
                }
            }
        }
        None
    }

    fn document(&self, value: &ByteArray) -> Result<Document> {
        let text = String::from_utf8(value.data().to_vec()).map_err(|e| {
            let (field, row) = (&self.corpus.field, self.n_rows);
            let offset = e.utf8_error().valid_up_to();
            let message = format!(
                "value {row} of `{field}`: expected UTF-8 text, got another byte at offset {offset}"
            );
            super::bad(
                &self.corpus.path,
                format!("{message}; store the column as strings"),
            )
        })?;
        Ok(Document::Text(text))
    }

    /// Decodes the next values; false at the end of the file.
    fn fill(&mut self) -> Result<bool, ParquetError> {
        if self.column.is_none() {
            if self.row_group >= self.reader.num_row_groups() {
                return Ok(false);
            }
            let group = self.reader.get_row_group(self.row_group)?;
            self.row_group = self.row_group.saturating_add(1);
            let metadata = group.metadata().column(self.column_idx);
            backed::check_pages(&self.file, metadata)?;
            let description = metadata.column_descr_ptr();
            let pages = Backed::new(group.get_column_page_reader(self.column_idx)?, &description);
            let ColumnReader::ByteArrayColumnReader(column) =
                get_column_reader(description, Box::new(pages))
            else {
                return Err(ParquetError::General(
                    "a row group stores the column as another type".to_owned(),
                ));
            };
            self.column = Some(column);
        }
        if let Some(column) = &mut self.column {
            // Nulls have a level but no value, so they are left out by themselves.
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let (n_records, _, _) =
                column.read_records(BATCH, Some(&mut levels), None, &mut values)?;
            if n_records == 0 {
                self.column = None;
            }
            self.batch = values.into_iter();
        }
        Ok(true)
    }
}

minitron_core::plugin! {
    Corpus for Parquet {
        tag: "parquet",
        summary: "a string column of a Parquet file, one document a row",
        source: "the Apache Parquet format specification",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::Int64Type;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Two row groups; the second value of each is null.
    fn file(compression: parquet::basic::Compression) -> Vec<u8> {
        let schema = "message m { required int64 id; optional binary text (UTF8); \
                      required binary raw; repeated binary tags (UTF8); }";
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .build();
        let mut bytes = Vec::new();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
        for (first, third) in [("one", "é"), ("two", "")] {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<Int64Type>()
                .write_batch(&[1, 2, 3], None, None)
                .unwrap();
            column.close().unwrap();
            let texts = [ByteArray::from(first), ByteArray::from(third)];
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&texts, Some(&[1, 0, 1]), None)
                .unwrap();
            column.close().unwrap();
            let raw = [
                ByteArray::from("a"),
                ByteArray::from(vec![b'b', 0xff]),
                ByteArray::from("c"),
            ];
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&raw, None, None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&[], Some(&[0; 3]), Some(&[0; 3]))
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    fn read(bytes: &[u8], field: &str) -> Vec<Result<Document, String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        std::fs::write(&path, bytes).unwrap();
        match (Parquet {
            path,
            field: field.to_owned(),
            form: None,
        })
        .documents(0)
        {
            Ok(documents) => documents
                .map(|document| document.map_err(|e| e.to_string()))
                .collect(),
            Err(e) => vec![Err(e.to_string())],
        }
    }

    fn error(bytes: &[u8], field: &str) -> String {
        read(bytes, field).pop().unwrap().unwrap_err()
    }

    #[test]
    fn all_row_groups_without_their_nulls() {
        use parquet::basic::Compression;
        let expected: Vec<_> = ["one", "é", "two", ""]
            .map(|text| Ok(Document::Text(text.to_owned())))
            .into();
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
        ] {
            assert_eq!(read(&file(compression), "text"), expected);
        }
    }

    #[test]
    fn columns_that_hold_no_text_are_refused_with_those_that_do() {
        let bytes = file(parquet::basic::Compression::UNCOMPRESSED);
        let names = "its columns: `id` (no strings), `text`, `raw`, `tags` (no strings); choose \
                     one with `--field`";
        for (field, found) in [
            ("body", "none of that name"),
            ("id", "one of INT64"),
            ("tags", "a list of strings"),
        ] {
            let error = error(&bytes, field);
            assert!(
                error.ends_with(&format!("strings `{field}`, got {found}; {names}")),
                "{error}"
            );
        }
        let documents = read(&bytes, "raw");
        assert_eq!(documents.len(), 2, "nothing follows an error");
        assert!(
            error(&bytes, "raw")
                .contains("value 2 of `raw`: expected UTF-8 text, got another byte at offset 1")
        );
    }

    #[test]
    fn damaged_files_never_panic() {
        let whole = file(parquet::basic::Compression::SNAPPY);
        assert!(error(b"", "text").contains("expected a Parquet file"));
        for cut in (0..whole.len()).step_by(7) {
            assert!(read(&whole[..cut], "text").pop().unwrap().is_err());
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            read(&bytes, "text");
        }
    }
}
