//! Rows of a Parquet file as JSON values, whatever their columns hold.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minitron_core::error::Result;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::PageReader;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader as _, RowGroupReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, RowIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Number, Value};

use super::backed::{self, Backed};
use super::{guarded, open, unreadable};
use crate::corpora::record::{Place, Record, Records, names};

/// Groups within groups; rows are assembled by a function that calls itself.
const DEEPEST: usize = 32;

/// The rows of a file, of `columns` alone where some are named.
///
/// # Errors
/// As [`super::super::records::records`].
pub fn rows(path: &Path, columns: Option<&[String]>) -> Result<Records> {
    let (file, reader) = open(path)?;
    let schema = chosen(&reader, columns).map_err(|message| crate::corpora::bad(path, message))?;
    let mut rows = Rows {
        path: path.to_owned(),
        file,
        reader,
        schema,
        row_group: 0,
        open: None,
        row: 0,
        failed: false,
    };
    Ok(Box::new(std::iter::from_fn(move || rows.next_record())))
}

/// The schema with the chosen columns alone.
fn chosen(
    reader: &SerializedFileReader<File>,
    columns: Option<&[String]>,
) -> Result<SchemaDescPtr, String> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let all = schema.root_schema().get_fields();
    let mut fields = all.to_vec();
    if let Some(columns) = columns {
        fields.retain(|field| columns.iter().any(|column| column == field.name()));
    }
    let there: Vec<String> = all.iter().map(|field| field.name().to_owned()).collect();
    if fields.is_empty() {
        let wanted = names(columns.unwrap_or_default().iter());
        return Err(format!(
            "expected a column {wanted}; its columns: {}",
            names(there.iter())
        ));
    }
    if let Some(field) = fields.iter().find(|field| !is_readable(field, DEEPEST)) {
        return Err(format!(
            "column `{}` nests too deep, or holds an empty group; leave it out",
            field.name()
        ));
    }
    let root = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build()
        .map_err(|e| e.to_string())?;
    Ok(Arc::new(SchemaDescriptor::new(Arc::new(root))))
}

/// A group without a column would have as many rows as the footer says.
fn is_readable(field: &Type, n_deeper: usize) -> bool {
    match field {
        Type::PrimitiveType { .. } => true,
        Type::GroupType { fields, .. } => {
            n_deeper > 0
                && !fields.is_empty()
                && fields.iter().all(|field| is_readable(field, n_deeper - 1))
        }
    }
}

/// The place reached in a file.
struct Rows {
    path: PathBuf,
    file: File,
    reader: SerializedFileReader<File>,
    schema: SchemaDescPtr,
    row_group: usize,
    open: Option<ReaderIter>,
    row: usize,
    failed: bool,
}

impl Rows {
    fn next_record(&mut self) -> Option<Result<Record>> {
        if self.failed {
            return None;
        }
        match guarded(|| self.advance()) {
            Ok(row) => row.map(|row| {
                self.row += 1;
                Ok(Record {
                    place: Place::Row(self.row),
                    value: object(row),
                })
            }),
            Err(error) => {
                self.failed = true;
                Some(Err(unreadable(&self.path, &error)))
            }
        }
    }

    fn advance(&mut self) -> ParquetResult<Option<Row>> {
        loop {
            if let Some(row) = self.open.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            if self.row_group >= self.reader.num_row_groups() {
                return Ok(None);
            }
            self.open = Some(self.row_group(self.row_group)?);
            self.row_group += 1;
        }
    }

    fn row_group(&self, idx: usize) -> ParquetResult<ReaderIter> {
        let group = Checked {
            group: self.reader.get_row_group(idx)?,
            file: &self.file,
        };
        let n_rows = group.metadata().num_rows();
        for column in self.schema.columns() {
            let found = group
                .metadata()
                .columns()
                .iter()
                .find(|found| found.column_path() == column.path());
            if found.is_none_or(|found| found.num_values() < n_rows) || n_rows < 0 {
                return Err(ParquetError::General(
                    "it announces more rows than it holds".to_owned(),
                ));
            }
        }
        TreeBuilder::new().as_iter(Arc::clone(&self.schema), &group)
    }
}

/// A row group whose pages are looked at before room is made for them.
struct Checked<'f> {
    group: Box<dyn RowGroupReader + 'f>,
    file: &'f File,
}

impl RowGroupReader for Checked<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, idx: usize) -> ParquetResult<Box<dyn PageReader>> {
        let column = self
            .metadata()
            .columns()
            .get(idx)
            .ok_or_else(|| ParquetError::General("a row group lacks a column".to_owned()))?;
        backed::check_pages(self.file, column)?;
        Ok(Box::new(Backed::new(
            self.group.get_column_page_reader(idx)?,
            &column.column_descr_ptr(),
        )))
    }

    fn get_column_bloom_filter(&self, _idx: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, _projection: Option<Type>) -> ParquetResult<RowIter<'_>> {
        Err(ParquetError::NYI("rows are assembled by column".to_owned()))
    }
}

fn object(row: Row) -> Value {
    Value::Object(
        row.into_columns()
            .into_iter()
            .map(|(name, field)| (name, value(field)))
            .collect(),
    )
}

/// Numbers stay numbers; dates, times and decimals are what they read as.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(number.into()),
        Field::Float(number) => float(number.into()),
        Field::Double(number) => float(number),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => binary(&bytes),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, entry) in map.entries() {
                let name = match value(key.clone()) {
                    Value::String(text) => text,
                    key => key.to_string(),
                };
                object.insert(name, value(entry.clone()));
            }
            Value::Object(object)
        }
        other => other.to_string().into(),
    }
}

/// JSON has neither infinities nor NaN.
fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// A text that is not marked as one, else how long it is: numbers would be taken for token ids.
fn binary(bytes: &ByteArray) -> Value {
    match std::str::from_utf8(bytes.data()) {
        Ok(text) => text.into(),
        Err(_) => Value::Object(Map::from_iter([("bytes".to_owned(), bytes.len().into())])),
    }
}
