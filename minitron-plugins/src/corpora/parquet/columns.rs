//! Which columns hold what a field names, and what they hold instead.

use std::fs::File;

use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::{Type, TypePtr};

use crate::corpora::example::BESIDE;
use crate::corpora::record::names;

/// Groups within groups that are named; deeper ones are not.
const DEEPEST: usize = 8;

/// Where documents are read from.
#[derive(Debug, PartialEq)]
pub(super) enum Chosen {
    /// A column of texts, by its place among all.
    Text(usize),
    /// Columns of the file of which rows are assembled.
    Columns(Vec<String>),
}

/// What a column, or a group of them, holds.
#[derive(Debug, PartialEq)]
enum ColumnKind {
    Text,
    /// In lists.
    Ids,
    Other(String),
}

/// Columns for a field as people name it.
///
/// # Errors
/// What the field holds instead, with the columns that are there.
pub(super) fn choose(reader: &SerializedFileReader<File>, field: &str) -> Result<Chosen, String> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let root = schema.root_schema().get_fields();
    let whole = find(root, field);
    let parts = if whole.is_some() {
        vec![field]
    } else {
        field.split('+').collect()
    };
    let (mut columns, mut text) = (Vec::new(), None);
    for name in &parts {
        let path = find(root, name).unwrap_or_default();
        let (Some(first), Some(last)) = (path.first(), path.last()) else {
            return Err(missing(root, name));
        };
        match kind_of(last) {
            ColumnKind::Other(_) => return Err(missing(root, name)),
            ColumnKind::Text => {
                text = Some(path.iter().map(|group| group.name()).collect::<Vec<_>>())
            }
            ColumnKind::Ids => {}
        }
        if !columns.iter().any(|column| column == first.name()) {
            columns.push(first.name().to_owned());
        }
    }
    let idx = text.filter(|_| parts.len() == 1).and_then(|path| {
        let mut all = schema.columns().iter();
        all.position(|column| column.path().parts() == path)
    });
    match idx {
        Some(idx) => Ok(Chosen::Text(idx)),
        None => Ok(Chosen::Columns(columns)),
    }
}

/// Columns that hold conversations: those under `field` where it is a list of groups, else the ones
/// that layouts name. None where there are none, unless the layout is named and decides itself.
pub(super) fn of_examples(
    reader: &SerializedFileReader<File>,
    field: &str,
    is_named: bool,
) -> Option<Chosen> {
    let root = reader
        .metadata()
        .file_metadata()
        .schema_descr()
        .root_schema()
        .get_fields();
    let chosen = find(root, field).filter(|path| path.last().is_some_and(|last| is_talk(last)));
    let talks: Vec<&str> = match chosen.as_ref().and_then(|path| path.first()) {
        Some(first) => vec![first.name()],
        None if *field != *crate::corpora::default_field() => Vec::new(),
        None => root
            .iter()
            .filter(|field| is_talk(field))
            .map(|field| field.name())
            .collect(),
    };
    let pairs = [["prompt", "completion"], ["instruction", "output"]];
    let by_pairs = chosen.is_none() && *field == *crate::corpora::default_field();
    let has_pair = by_pairs
        && pairs
            .iter()
            .any(|pair| pair.iter().all(|name| named(root, name).is_some()));
    let is_there = !talks.is_empty() || has_pair;
    if !is_there && !is_named {
        return None;
    }
    let others = pairs
        .iter()
        .flatten()
        .chain(&["input"])
        .chain(&BESIDE)
        .copied()
        .filter(|name| named(root, name).is_some());
    let mut columns: Vec<String> = Vec::new();
    for name in talks.into_iter().chain(others) {
        if !columns.iter().any(|column| column == name) {
            columns.push(name.to_owned());
        }
    }
    (!columns.is_empty()).then_some(Chosen::Columns(columns))
}

/// Groups on the way to a field, and itself; a name that has a dot wins.
fn find<'s>(fields: &'s [TypePtr], path: &str) -> Option<Vec<&'s Type>> {
    if let Some(found) = named(fields, path) {
        return Some(vec![found]);
    }
    let dots = path
        .match_indices('.')
        .filter_map(|(at, _)| Some((path.get(..at)?, path.get(at + 1..)?)));
    dots.filter_map(|(name, rest)| {
        let group = named(fields, name).filter(|group| group.is_group() && !is_list(group))?;
        let below = find(group.get_fields(), rest)?;
        Some([vec![group], below].concat())
    })
    .next()
}

fn named<'s>(fields: &'s [TypePtr], name: &str) -> Option<&'s Type> {
    let found = fields.iter().find(|field| field.name() == name);
    found.map(AsRef::as_ref)
}

/// Whether a field holds messages.
fn is_talk(field: &Type) -> bool {
    is_list(field) && element(field).is_group()
}

fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    is_repeated
        || matches!(
            info.converted_type(),
            ConvertedType::LIST | ConvertedType::MAP
        )
}

/// What a list holds: the field of its one repeated group, or what is repeated itself.
fn element(list: &Type) -> &Type {
    let mut found = list;
    // The list's own group, and the repeated one within.
    for _ in 0..2 {
        match found {
            Type::GroupType { fields, .. } if fields.len() == 1 => {
                found = fields.first().map_or(found, AsRef::as_ref)
            }
            _ => {}
        }
    }
    found
}

fn kind_of(field: &Type) -> ColumnKind {
    let info = field.get_basic_info();
    match field {
        _ if info.converted_type() == ConvertedType::MAP => ColumnKind::Other("a map".to_owned()),
        _ if is_list(field) => {
            let inner = element(field);
            match inner {
                Type::PrimitiveType {
                    physical_type: Physical::INT32 | Physical::INT64,
                    ..
                } => ColumnKind::Ids,
                _ if is_text(inner) => ColumnKind::Other("a list of strings".to_owned()),
                Type::PrimitiveType { physical_type, .. } => {
                    ColumnKind::Other(format!("a list of {physical_type}"))
                }
                _ if is_list(inner) && inner.get_fields().len() == 1 => {
                    ColumnKind::Other("a list of lists".to_owned())
                }
                _ => ColumnKind::Other(format!("a list of groups with {}", keys(inner))),
            }
        }
        _ if is_text(field) => ColumnKind::Text,
        Type::PrimitiveType { physical_type, .. } => {
            ColumnKind::Other(format!("one of {physical_type}"))
        }
        Type::GroupType { .. } => ColumnKind::Other(format!("a group with {}", keys(field))),
    }
}

/// Bytes that are no number; whether they are UTF-8 is seen where they are read.
fn is_text(field: &Type) -> bool {
    let is_number = matches!(
        field.get_basic_info().converted_type(),
        ConvertedType::DECIMAL | ConvertedType::BSON
    );
    !is_number
        && matches!(
            field,
            Type::PrimitiveType {
                physical_type: Physical::BYTE_ARRAY,
                ..
            }
        )
}

fn keys(group: &Type) -> String {
    let keys: Vec<String> = group
        .get_fields()
        .iter()
        .map(|field| field.name().to_owned())
        .collect();
    names(keys.iter())
}

fn missing(root: &[TypePtr], name: &str) -> String {
    let found = match find(root, name).and_then(|path| path.last().map(|last| kind_of(last))) {
        Some(ColumnKind::Other(found)) => found,
        _ => before(root, name).unwrap_or_else(|| "none of that name".to_owned()),
    };
    let columns = match listed(root) {
        columns if columns.is_empty() => "none".to_owned(),
        columns => columns.join(", "),
    };
    format!(
        "expected a column of strings `{name}`, got {found}; its columns: {columns}; choose one \
         with `--field`"
    )
}

/// What the beginning of a path leads to, where the whole leads nowhere.
fn before(root: &[TypePtr], name: &str) -> Option<String> {
    let (start, _) = name.rsplit_once('.')?;
    match find(root, start).and_then(|path| path.last().map(|last| kind_of(last))) {
        Some(ColumnKind::Other(found)) => Some(format!("none in `{start}`, {found}")),
        Some(_) => Some(format!("none in `{start}`, which is no group")),
        None => before(root, start),
    }
}

/// All columns by the names that choose them, groups by what is in them.
fn listed(root: &[TypePtr]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<(String, &Type, usize)> = root
        .iter()
        .rev()
        .map(|f| (f.name().to_owned(), f.as_ref(), 0))
        .collect();
    while let Some((name, field, depth)) = open.pop() {
        match kind_of(field) {
            ColumnKind::Text => found.push(format!("`{name}`")),
            ColumnKind::Ids => found.push(format!("`{name}` (integers)")),
            ColumnKind::Other(_) if field.is_group() && !is_list(field) && depth < DEEPEST => {
                let below = field.get_fields().iter().rev();
                open.extend(below.map(|f| (format!("{name}.{}", f.name()), f.as_ref(), depth + 1)));
            }
            ColumnKind::Other(_) => found.push(format!("`{name}` (no strings)")),
        }
    }
    found
}
