#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;

use minitron::{Recorder, Workspace, python, root, tiny_llama, with_context};
use minitron_core::error::{Error, Result};
use minitron_engine::data::TextOptions;
use minitron_engine::jobs::{Context, EvalOptions, eval};
use minitron_engine::recipe::Recipe;
use parquet::basic::Compression;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a model, and files that it is measured on.
struct Measured {
    files: Workspace,
}

impl std::ops::Deref for Measured {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Measured {
    fn new() -> Self {
        Self::of(tiny_llama())
    }

    fn of(config: Value) -> Self {
        Measured {
            files: Workspace::new().model("model", &config, 1),
        }
    }

    fn eval(&self, change: impl FnOnce(&mut EvalOptions)) -> (Result<Value>, Vec<String>) {
        let model = self.at("model").display().to_string();
        let mut options = EvalOptions {
            model,
            seq_len: Some(32),
            ..EvalOptions::default()
        };
        change(&mut options);
        let heard = Recorder::default();
        let found = with_context(false, |context| {
            eval(
                &Context {
                    progress: &heard,
                    ..*context
                },
                &options,
            )
        });
        (found, heard.warnings())
    }

    /// Loss and tokens on a file.
    fn loss(&self, name: &str, field: Option<&str>) -> Result<(f64, u64)> {
        let (found, _) = self.eval(|options| {
            options.data = vec![self.at(name).display().to_string().parse().unwrap()];
            options.text.field = field.map(str::to_owned);
        });
        found.map(|found| {
            (
                found["loss"].as_f64().unwrap(),
                found["n_tokens"].as_u64().unwrap(),
            )
        })
    }

    fn refusal(&self, name: &str, field: Option<&str>) -> String {
        self.loss(name, field).unwrap_err().to_string()
    }

    /// What a task measures, and the warnings.
    fn task(&self, task: &str) -> (Result<Value>, Vec<String>) {
        let (found, heard) =
            self.eval(|options| options.tasks = vec![format!("task={task}").parse().unwrap()]);
        (found.map(|found| found["tasks"]["task"].clone()), heard)
    }

    fn task_of(&self, name: &str) -> Result<Value> {
        self.task(&self.at(name).display().to_string()).0
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn marked(text: &str) -> Vec<u8> {
    [b"\xef\xbb\xbf", text.as_bytes()].concat()
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

/// A table with columns of strings.
fn table(columns: &[&str], rows: &[Vec<&str>], compression: Compression) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let fields: String = columns
        .iter()
        .map(|name| format!("required binary {name} (UTF8); "))
        .collect();
    let schema =
        parquet::schema::parser::parse_message_type(&format!("message m {{ {fields} }}")).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut bytes = Vec::new();
    let mut writer = parquet::file::writer::SerializedFileWriter::new(
        &mut bytes,
        Arc::new(schema),
        Arc::new(properties),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    for idx in 0..columns.len() {
        let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row[idx])).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn sentences() -> Vec<String> {
    minitron::some_text()
        .split_inclusive(". ")
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_text_is_measured_alike_however_it_is_stored() {
    let measured = Measured::new();
    let text = minitron::some_text();
    measured.write("text.txt", &text);
    let expected = measured.loss("text.txt", None).unwrap();
    for (name, bytes) in [
        ("marked.txt", marked(&text)),
        ("TEXT.TXT", text.clone().into_bytes()),
        ("text.txt.gz", gz(&marked(&text))),
        ("text.txt.zst", zst(text.as_bytes())),
    ] {
        measured.write(name, bytes);
        assert_eq!(measured.loss(name, None).unwrap(), expected, "{name}");
    }
    let records: Vec<Value> = sentences()
        .iter()
        .map(|text| json!({ "text": text, "n": 1 }))
        .collect();
    measured.write("a.jsonl", lines(&records));
    let expected = measured.loss("a.jsonl", None).unwrap();
    let nested: Vec<Value> = sentences()
        .iter()
        .map(|text| json!({ "id": 1, "data": { "text": text } }))
        .collect();
    measured.write("nested.jsonl", lines(&nested));
    assert_eq!(
        measured.loss("nested.jsonl", Some("data.text")).unwrap(),
        expected
    );
    let with_null = [
        &[json!({ "text": null })],
        &records[..3],
        &[json!({ "text": null })],
        &records[3..],
    ]
    .concat();
    let texts = sentences();
    let rows: Vec<Vec<&str>> = texts.iter().map(|text| vec![text.as_str()]).collect();
    for (name, bytes) in [
        (
            "marked.jsonl",
            marked(&lines(&records).replace('\n', "\r\n")),
        ),
        ("A.JSONL", lines(&records).into_bytes()),
        ("null.jsonl", lines(&with_null).into_bytes()),
        ("a.json", json!(records).to_string().into_bytes()),
        (
            "pretty.json",
            marked(&serde_json::to_string_pretty(&records).unwrap()),
        ),
        ("lines.json", lines(&records).into_bytes()),
        ("a.json.gz", gz(json!(records).to_string().as_bytes())),
        (
            "a.jsonl.gz",
            [
                gz(&lines(&records).as_bytes()[..99]),
                gz(&lines(&records).as_bytes()[99..]),
                vec![0; 9],
            ]
            .concat(),
        ),
        ("a.JSONL.ZST", zst(lines(&records).as_bytes())),
        (
            "a.parquet",
            table(&["text"], &rows, Compression::BROTLI(Default::default())),
        ),
        ("b.parquet", table(&["text"], &rows, Compression::LZ4_RAW)),
        ("c.PARQUET", table(&["text"], &rows, Compression::LZ4)),
    ] {
        measured.write(name, bytes);
        assert_eq!(measured.loss(name, None).unwrap(), expected, "{name}");
    }
    // Python's text mode would turn them into "\n"; here bytes are text.
    measured.write("crlf.txt", text.replace(". ", ".\r\n"));
    measured.write("lf.txt", text.replace(". ", ".\n"));
    assert_ne!(
        measured.loss("crlf.txt", None).unwrap(),
        measured.loss("lf.txt", None).unwrap()
    );
}

#[test]
fn a_model_and_a_recipe_with_byte_order_marks_are_read() {
    let measured = Measured::new();
    measured.write("text.txt", minitron::some_text());
    let expected = measured.loss("text.txt", None).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = measured.at("model").join(name);
        fs::write(&path, marked(&fs::read_to_string(&path).unwrap())).unwrap();
    }
    assert_eq!(measured.loss("text.txt", None).unwrap(), expected);
    let recipe =
        "[[stages]]\nname = \"a\"\ndo = \"eval\"\nmodel = \"model\"\ndata = [\"text.txt\"]\n";
    measured.write("recipe.toml", marked(recipe));
    assert!(Recipe::load(&measured.at("recipe.toml")).is_ok());
    let wide: Vec<u8> = recipe.encode_utf16().flat_map(u16::to_le_bytes).collect();
    measured.write("recipe.toml", wide);
    let error = Recipe::load(&measured.at("recipe.toml"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("got UTF-16; save it as UTF-8"), "{error}");
}

#[test]
fn a_task_is_measured_alike_however_it_is_stored() {
    let measured = Measured::new();
    let records: Vec<Value> = sentences()
        .iter()
        .take(6)
        .map(|text| json!({ "text": text.trim_end(), "label": text.split(' ').nth(3).unwrap() }))
        .collect();
    let rows: Vec<Vec<&str>> = records
        .iter()
        .map(|record| {
            vec![
                record["text"].as_str().unwrap(),
                record["label"].as_str().unwrap(),
            ]
        })
        .collect();
    measured.write("a.jsonl", lines(&records));
    let expected = measured.task_of("a.jsonl").unwrap();
    assert_eq!(expected["n_items"], json!(6));
    for (name, bytes) in [
        (
            "marked.jsonl",
            marked(&lines(&records).replace('\n', "\r\n")),
        ),
        ("a.json", json!(records).to_string().into_bytes()),
        ("a.jsonl.gz", gz(lines(&records).as_bytes())),
        ("A.JSONL.ZST", zst(lines(&records).as_bytes())),
        (
            "a.parquet",
            table(&["text", "label"], &rows, Compression::SNAPPY),
        ),
    ] {
        measured.write(name, bytes);
        assert_eq!(measured.task_of(name).unwrap(), expected, "{name}");
    }
    measured.write(
        "pages.jsonl",
        lines(
            &records
                .iter()
                .map(|r| json!({ "text": r["text"] }))
                .collect::<Vec<_>>(),
        ),
    );
    measured.write(
        "pages.parquet",
        table(&["text"], &rows, Compression::SNAPPY),
    );
    let expected = measured.task_of("pages.jsonl").unwrap();
    assert_eq!(expected["n_documents"], json!(6));
    assert_eq!(measured.task_of("pages.parquet").unwrap(), expected);
}

/// For an evaluator: what can be scored, what cannot, and how the first of those is named.
type Broken = (&'static str, Vec<Value>, Vec<Value>, &'static str);

fn broken() -> Vec<Broken> {
    let long = "the cat saw a ball. ".repeat(40);
    let choice = |choices: Value, gold: Value| json!({ "context": "One day, the cat", "choices": choices, "gold": gold });
    let good = choice(json!(["saw a ball", "lost a house"]), json!(0));
    let words = |target: &str| json!({ "context": "One day, the cat saw a", "target": target });
    let exact =
        |prompt: &str, completion: &str| json!({ "prompt": prompt, "completion": completion });
    let item = |text: &str, label: Value| json!({ "text": text, "label": label });
    vec![
        (
            "multiple_choice",
            vec![good.clone(), good],
            vec![
                json!({ "context": "One day, the cat", "choices": ["a", "b"] }),
                choice(json!([]), json!(0)),
                choice(json!(["saw", long]), json!(0)),
                choice(json!(["saw", null]), json!(5)),
            ],
            ":2: expected the right choice's index under `gold` or `label`, got None",
        ),
        (
            "last_word",
            vec![words("ball"), words("house")],
            vec![json!({ "context": "One day, the cat saw a" }), words(&long)],
            ":2: ",
        ),
        (
            "exact_match",
            vec![exact("One day,", " the cat"), exact("One day,", " a dog")],
            vec![
                exact("One day,", ""),
                exact(&long, " a"),
                exact("a", &long),
                json!({ "prompt": "a" }),
            ],
            ":2: expected at least one token in the prompt",
        ),
        (
            "nearest_neighbour",
            vec![
                item("the cat", json!("a")),
                item("the cat", json!("a")),
                item("a dog", json!(2)),
            ],
            vec![
                item("the cat", Value::Null),
                json!({ "label": "a" }),
                item("", json!("a")),
            ],
            ":2: expected a label under `label`",
        ),
        (
            "rolling_perplexity",
            vec![
                json!({ "text": "One day" }),
                json!({ "text": "the cat saw a ball" }),
            ],
            vec![
                json!({ "text": null }),
                json!({ "body": "a" }),
                json!({ "text": ["a"] }),
                json!({ "text": [1] }),
            ],
            ": line 2: `text` is null",
        ),
    ]
}

#[test]
fn a_record_that_cannot_be_scored_does_not_cost_the_others() {
    let measured = Measured::new();
    for (tag, good, bad, first) in broken() {
        let spec = |name: &str| format!("{tag}:path={}", measured.at(name).display());
        measured.write("good.jsonl", lines(&good));
        let (expected, heard) = measured.task(&spec("good.jsonl"));
        let mut expected = expected.unwrap();
        assert!(
            heard.is_empty() && expected.get("n_skipped").is_none(),
            "{tag}: {heard:?}"
        );
        let mixed = [&good[..1], &bad[..], &good[1..]].concat();
        measured.write("mixed.jsonl", lines(&mixed));
        let (found, heard) = measured.task(&spec("mixed.jsonl"));
        expected["n_skipped"] = json!(bad.len());
        assert_eq!(found.unwrap(), expected, "{tag}");
        let [warning] = heard.as_slice() else {
            panic!("{tag}: {heard:?}")
        };
        let expected = format!(
            "mixed.jsonl: {} records were skipped, which cannot be scored; the first: ",
            bad.len()
        );
        assert!(
            warning.contains(&expected) && warning.contains(first),
            "{tag}: {warning}"
        );
        let (strict, _) = measured.task(&format!("{},strict=true", spec("mixed.jsonl")));
        assert!(strict.unwrap_err().to_string().contains(first), "{tag}");
        measured.write("bad.jsonl", lines(&bad));
        let (none, _) = measured.task(&spec("bad.jsonl"));
        assert_eq!(none.unwrap_err().kind(), "data", "{tag}");
    }
}

#[test]
fn token_files_of_another_type_are_found_out() {
    let measured = Measured::new();
    let ids: Vec<u32> = (0..4000u32)
        .map(|idx| idx.wrapping_mul(2_654_435_761) % 499)
        .collect();
    measured.write(
        "u16.bin",
        ids.iter()
            .flat_map(|id| (*id as u16).to_le_bytes())
            .collect::<Vec<u8>>(),
    );
    measured.write(
        "u32.bin",
        ids.iter()
            .flat_map(|id| id.to_le_bytes())
            .collect::<Vec<u8>>(),
    );
    let read = |name: &str, token_type: &str| {
        let (found, _) = measured.eval(|options| {
            options.data = vec![measured.at(name).display().to_string().parse().unwrap()];
            options.text.token_type = Some(token_type.to_owned());
        });
        found
            .map(|found| found["n_tokens"].clone())
            .map_err(|e: Error| e.to_string())
    };
    assert_eq!(read("u16.bin", "u16"), read("u32.bin", "u32"));
    let error = read("u32.bin", "u16").unwrap_err();
    assert!(
        error.contains("read as u16, every second id is 0; these are u32 ids"),
        "{error}"
    );
    let error = read("u16.bin", "u32").unwrap_err();
    assert!(
        error.contains("read as u32, an id is") && error.contains("seem to be u16 ids"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_read_is_named_and_not_called_damaged() {
    let measured = Measured::new();
    measured.write(
        "tags.jsonl",
        lines(&[json!({ "tags": ["One", "day"], "id": 1 })]),
    );
    measured.write(
        "wide.txt",
        minitron::some_text()
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>(),
    );
    measured.write(
        "pointer.txt",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    );
    measured.write("arrow.parquet", b"ARROW1\0\0and more");
    for (name, field, expected) in [
        (
            "tags.jsonl",
            Some("tags"),
            "`tags`, got an array of strings",
        ),
        (
            "tags.jsonl",
            None,
            "got none of that name; its fields: `tags`, `id`",
        ),
        ("wide.txt", None, "got UTF-16; save it as UTF-8"),
        ("pointer.txt", None, "fetch it with `git lfs pull`"),
        (
            "arrow.parquet",
            None,
            "expected a Parquet file, got an Arrow file",
        ),
    ] {
        let error = measured.refusal(name, field);
        assert!(
            error.contains(expected) && !error.contains("damaged"),
            "{name}: {error}"
        );
    }
}

/// The cases of `../shared/cases`, made anew; none where they, or Python, are absent.
fn cases(names: &[&str]) -> Option<TempDir> {
    let make = root().join("../shared/cases/make.py");
    let Some(python) = python().filter(|_| make.exists()) else {
        eprintln!("absent, not tested: ../shared/cases/make.py, or Python");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(python)
        .arg(make)
        .arg(dir.path())
        .args(names)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Some(dir)
}

#[test]
fn the_cases_from_the_field_have_their_figures() {
    let Some(dir) = cases(&["c09", "c10", "c11", "c12"]) else {
        return;
    };
    let expected = |case: &str, key: &str| {
        let text = fs::read(dir.path().join(case).join("expected.json")).unwrap();
        let figures: Value = serde_json::from_slice(&text).unwrap();
        (
            figures[key]["loss"].as_f64().unwrap(),
            figures[key]["n_tokens"].as_u64().unwrap(),
        )
    };
    let runs = [
        (
            "c09",
            "plain = multi.zst = multi.gz",
            None,
            &[
                "plain.jsonl",
                "multi.jsonl.zst",
                "multi.jsonl.gz",
                "long.jsonl.zst",
            ][..],
        ),
        (
            "c10",
            "flat.jsonl = nested.jsonl --field data.text",
            None,
            &["flat.jsonl"],
        ),
        (
            "c10",
            "flat.jsonl = nested.jsonl --field data.text",
            Some("data.text"),
            &["nested.jsonl"],
        ),
        (
            "c11",
            "plain.jsonl = bom.jsonl",
            None,
            &["plain.jsonl", "bom.jsonl"],
        ),
        (
            "c12",
            "all but messages",
            None,
            &[
                "plain.jsonl",
                "none.parquet",
                "gzip.parquet",
                "gzip2.parquet",
                "lz4_raw.parquet",
                "large_string.parquet",
                "dictionary.parquet",
                "brotli.parquet",
            ],
        ),
    ];
    for (case, key, field, files) in runs {
        let (loss, n_tokens) = expected(case, key);
        for file in files {
            let path = dir.path().join(case).join(file);
            // Some are there only where pyarrow is.
            if !path.exists() {
                continue;
            }
            let options = EvalOptions {
                model: dir.path().join(case).join("model").display().to_string(),
                data: vec![path.display().to_string().parse().unwrap()],
                text: TextOptions {
                    field: field.map(str::to_owned),
                    ..TextOptions::default()
                },
                seq_len: Some(32),
                ..EvalOptions::default()
            };
            let found = with_context(false, |context| eval(context, &options)).unwrap();
            assert_eq!(found["n_tokens"], json!(n_tokens), "{case}/{file}");
            assert!(
                (found["loss"].as_f64().unwrap() - loss).abs() < 1e-4,
                "{case}/{file}: {found}, expected {loss}"
            );
        }
    }
    let task = |file: &str| {
        let options = EvalOptions {
            model: dir.path().join("c11/model").display().to_string(),
            tasks: vec![
                format!("task={}", dir.path().join("c11").join(file).display())
                    .parse()
                    .unwrap(),
            ],
            ..EvalOptions::default()
        };
        with_context(false, |context| eval(context, &options)).unwrap()["tasks"]["task"].clone()
    };
    assert_eq!(task("task.jsonl")["n_questions"], json!(10));
    assert_eq!(task("task.jsonl"), task("bom_task.jsonl"));
}
