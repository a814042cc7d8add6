use std::io::Write as _;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::*;

fn read(name: &str, bytes: &[u8]) -> Result<Vec<(Place, Value)>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let found = records(&path, None).map_err(|e| e.to_string())?;
    found
        .map(|record| {
            record
                .map(|r| (r.place, r.value))
                .map_err(|e| e.to_string())
        })
        .collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A zstd frame of a raw block, with a window's descriptor.
fn frame(bytes: &[u8], window: u8) -> Vec<u8> {
    let head = ((bytes.len() as u32) << 3) | 1;
    [
        &[0x28, 0xB5, 0x2F, 0xFD, 0, window],
        &head.to_le_bytes()[..3],
        bytes,
    ]
    .concat()
}

const LINES: &[u8] = b"{\"a\":1}\n\n{\"a\":\"}]\\\"\"}\n";

fn expected(lines: [usize; 2]) -> Result<Vec<(Place, Value)>, String> {
    Ok(vec![
        (Place::Line(lines[0]), json!({ "a": 1 })),
        (Place::Line(lines[1]), json!({ "a": "}]\"" })),
    ])
}

#[test]
fn the_same_records_however_they_are_packed() {
    let (head, tail) = LINES.split_at(11);
    let marked = [b"\xef\xbb\xbf", LINES].concat();
    let skippable = [
        b"\x50\x2a\x4d\x18\x04\0\0\0none",
        zst(head).as_slice(),
        &zst(tail),
    ]
    .concat();
    for (name, bytes) in [
        ("a.jsonl", LINES.to_vec()),
        ("a.ndjson", LINES.to_vec()),
        ("A.JSONL", marked.clone()),
        ("a.jsonl.gz", gz(LINES)),
        (
            "a.jsonl.GZ",
            [gz(head), gz(b""), gz(tail), vec![0; 1000]].concat(),
        ),
        ("a.jsonl.gz", gz(&marked)),
        ("a.jsonl", gz(LINES)),
        ("a.jsonl.zst", [zst(head), zst(tail)].concat()),
        ("a.Jsonl.Zst", skippable),
        ("a.jsonl.zst", zst(&marked)),
        ("a.jsonl.zst", frame(LINES, 0xA8)),
    ] {
        assert_eq!(read(name, &bytes), expected([1, 3]), "{name}");
    }
}

#[test]
fn a_json_file_is_an_array_a_record_or_several() {
    let array: &[u8] = b" [\n{\"a\":1},\n  {\"a\" : \"}]\\\"\"}\n]\n";
    for (name, bytes) in [
        ("a.json", array.to_vec()),
        ("a.JSON.gz", gz(array)),
        ("a.json.zst", zst(array)),
    ] {
        assert_eq!(read(name, &bytes), expected([2, 3]), "{name}");
    }
    assert_eq!(read("a.json", LINES), expected([1, 3]));
    assert_eq!(
        read("a.json", b"{\"a\":1}{\"a\":\"}]\\\"\"}"),
        expected([1, 1])
    );
    let one = read("a.json", b"\xef\xbb\xbf{\n \"a\": [1,\n 2]\n}\n").unwrap();
    assert_eq!(one, [(Place::Line(1), json!({ "a": [1, 2] }))]);
    assert_eq!(read("a.json", b"[1, null ,\"x, y\"]").unwrap().len(), 3);
    for empty in [&b""[..], b" \n", b"[]", b" [ \n ] "] {
        assert_eq!(read("a.json", empty), Ok(vec![]));
    }
    // A value longer than what is read at once.
    let long = format!("[{{\"a\": \"{}\"}}, {{}}]", "\\\"]}".repeat(100_000));
    assert_eq!(read("a.json", long.as_bytes()).unwrap().len(), 2);
}

#[test]
fn what_is_no_json_is_located() {
    for (name, bytes, expected) in [
        (
            "a.json",
            &b"[{\"a\":1},\n {\"a\":\n  x}]"[..],
            "line 3: expected JSON, an array or one value after another",
        ),
        (
            "a.json",
            b"[{\"a\":1}",
            "line 1: the array does not end; copy the file again",
        ),
        (
            "a.json",
            b"[{\"a\":1} {\"a\":1}]",
            "line 1: expected `,` or `]` after a record",
        ),
        (
            "a.json",
            b"[{\"a\":1}]\n[]",
            "line 2: expected nothing behind the array",
        ),
        ("a.json", b"{\"a\":1}}", "line 1: expected JSON"),
        ("a.json", b"{\"a\":", "line 1: expected JSON"),
        (
            "a.jsonl",
            b"{\"a\":1}\n{\"a\":\n1}\n",
            "line 2: expected JSON, one value on each line, got other text at column 5",
        ),
    ] {
        let error = read(name, bytes).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn only_what_is_damaged_is_called_so() {
    let whole = gz(LINES);
    for (name, bytes, expected) in [
        (
            "a.jsonl.gz",
            whole[..whole.len() - 6].to_vec(),
            "the data is damaged",
        ),
        (
            "a.jsonl.zst",
            zst(LINES)[..20].to_vec(),
            "the data is damaged",
        ),
        (
            "a.jsonl.gz",
            LINES.to_vec(),
            "expected gzip data, as its ending says",
        ),
        (
            "a.jsonl.zst",
            LINES.to_vec(),
            "expected zstd data, as its ending says",
        ),
        (
            "a.jsonl.gz",
            Vec::new(),
            "expected gzip data, got an empty file; copy it again",
        ),
        (
            "a.jsonl.gz",
            [gz(LINES), b"more".to_vec()].concat(),
            "other bytes follow the end of the gzip data",
        ),
        (
            "a.jsonl.zst",
            frame(LINES, 0xB0),
            "a window of more than 2 GiB; unpack it with `zstd -d",
        ),
        (
            "a.jsonl.bz2",
            b"BZh91AY&SYabc".to_vec(),
            "packed with bzip2, which is not read; unpack it first",
        ),
        ("a.jsonl", b"\xfd7zXZ\0abc".to_vec(), "packed with xz"),
        (
            "a.jsonl",
            b"{\0\"\0a\0\"\0".to_vec(),
            "got UTF-16; save it as UTF-8",
        ),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "fetch it with `git lfs pull`",
        ),
    ] {
        let error = read(name, &bytes).unwrap_err();
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(
            error.contains("damaged"),
            expected.contains("damaged"),
            "{error}"
        );
    }
}

/// Two rows: of an integer, messages (the second null), a nested text and token ids.
fn table() -> Vec<u8> {
    let schema = "message m { required int32 n;
        optional group messages (LIST) { repeated group list { optional group element {
            required binary role (UTF8); optional binary content (UTF8); } } }
        optional group data { optional binary text (UTF8); }
        required group ids (LIST) { repeated group list { required int32 element; } } }";
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::default()))
            .unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut ints = |values: &[i32], definition: Option<&[i16]>, repetition: Option<&[i16]>| {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int32Type>()
            .write_batch(values, definition, repetition)
            .unwrap();
        column.close().unwrap();
    };
    ints(&[7, 8], None, None);
    let mut texts = |values: &[&str], definition: &[i16], repetition: Option<&[i16]>| {
        let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(*text)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(definition), repetition)
            .unwrap();
        column.close().unwrap();
    };
    texts(&["user", "assistant"], &[3, 3, 0], Some(&[0, 1, 0]));
    texts(&["hi"], &[4, 3, 0], Some(&[0, 1, 0]));
    texts(&["deep"], &[2, 0], None);
    let mut ints = |values: &[i32], definition: Option<&[i16]>, repetition: Option<&[i16]>| {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int32Type>()
            .write_batch(values, definition, repetition)
            .unwrap();
        column.close().unwrap();
    };
    ints(&[1, 2, 3], Some(&[1, 1, 1]), Some(&[0, 1, 0]));
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn rows_of_a_table_are_records_too() {
    let messages =
        json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": null }]);
    let first = json!({ "n": 7, "messages": messages, "data": { "text": "deep" }, "ids": [1, 2] });
    let second = json!({ "n": 8, "messages": null, "data": null, "ids": [3] });
    let rows = read("a.parquet", &table()).unwrap();
    assert_eq!(rows, [(Place::Row(1), first), (Place::Row(2), second)]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    std::fs::write(&path, table()).unwrap();
    let chosen = records(&path, Some(&["ids".to_owned()])).unwrap();
    let chosen: Vec<Value> = chosen.map(|record| record.unwrap().value).collect();
    assert_eq!(chosen, [json!({ "ids": [1, 2] }), json!({ "ids": [3] })]);
    let error = records(&path, Some(&["no".to_owned()]))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.ends_with("expected a column `no`; its columns: `n`, `messages`, `data`, `ids`"),
        "{error}"
    );
}

#[test]
fn damaged_tables_never_panic() {
    let whole = table();
    for cut in (0..whole.len()).step_by(7) {
        assert!(read("a.parquet", &whole[..cut]).is_err());
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let _ = read("a.parquet", &bytes);
    }
}

#[test]
fn a_document_is_chosen_alike_in_both() {
    use minitron_core::contract::Document;
    let dir = tempfile::tempdir().unwrap();
    let parquet_path = dir.path().join("a.parquet");
    std::fs::write(&parquet_path, table()).unwrap();
    let lines_path = dir.path().join("a.jsonl");
    let lines: Vec<String> = records(&parquet_path, None)
        .unwrap()
        .map(|r| r.unwrap().value.to_string())
        .collect();
    std::fs::write(&lines_path, lines.join("\n")).unwrap();
    let read = |path: &Path, field: &str| -> Result<Vec<Document>, String> {
        let (path, field) = (path.to_owned(), field.to_owned());
        let corpus: Box<dyn minitron_core::contract::Corpus> =
            match path.extension().unwrap() == "parquet" {
                true => Box::new(crate::corpora::parquet::Parquet {
                    path,
                    field,
                    form: None,
                }),
                false => Box::new(crate::corpora::jsonl::Jsonl {
                    path,
                    field,
                    form: None,
                }),
            };
        let documents = corpus.documents(0).map_err(|e| e.to_string())?;
        documents.collect::<Result<_>>().map_err(|e| e.to_string())
    };
    let deep = vec![Document::Text("deep".to_owned())];
    let ids = vec![Document::Tokens(vec![1, 2]), Document::Tokens(vec![3])];
    for (field, expected) in [("data.text", deep), ("ids", ids)] {
        assert_eq!(read(&parquet_path, field), Ok(expected.clone()), "{field}");
        assert_eq!(read(&lines_path, field), Ok(expected), "{field}");
    }
    for (field, words) in [
        (
            "messages.content",
            [
                "none in `messages`, a list of groups",
                "none in `messages`, an array of objects",
            ],
        ),
        ("data", ["a group with `text`", "an object with `text`"]),
        ("n", ["one of INT32", "a number"]),
        ("ids+n", ["one of INT32", "a number"]),
        (
            "body",
            [
                "none of that name; its columns: `n` (no strings), `messages` (no strings), \
                 `data.text`, `ids` (integers)",
                "none of that name; its fields: `n`, `messages`, `data.text`, `ids`",
            ],
        ),
    ] {
        for (path, words) in [&parquet_path, &lines_path].into_iter().zip(words) {
            let error = read(path, field).unwrap_err();
            assert!(error.contains(words), "{field}: {error}");
        }
    }
}
