//! Whole files of every kind, small ones, for a fuzzer to begin with.

use std::fs;
use std::path::Path;

use minitron::{families, fixture, root, tiny_llama, write_tiny};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{MemorySource, TensorSource, write_tensors};
use minitron_core::error::Result;
use serde_json::{Value, json};
use tch::Tensor;

use super::desk::BETWEEN;

/// Inputs by target and name.
pub type Seeds = Vec<(&'static str, String, Vec<u8>)>;

/// One input of several files.
fn joined(files: &[&[u8]]) -> Vec<u8> {
    files.join(BETWEEN)
}

/// The bytes of a safetensors file.
fn stored(source: &dyn TensorSource, dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("seed.safetensors");
    fs::remove_file(&path).unwrap_or_default();
    write_tensors(&path, source)?;
    Ok(fs::read(path).unwrap_or_default())
}

fn tensors(entries: &[(&str, Tensor)]) -> Result<MemorySource> {
    let mut source = MemorySource::default();
    entries
        .iter()
        .try_for_each(|(name, tensor)| source.insert(*name, tensor))?;
    Ok(source)
}

/// A safetensors file with a header of one's own.
pub fn with_header(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

/// What once ended in a panic, an abort or more memory than the file backs up, each with what it
/// was about.
pub fn crashes() -> Seeds {
    // Each is as long as numbers go; together they end eight bytes before 2^64.
    const HUGE: u64 = (1 << 61) - 1;
    let entry = |idx: u64| {
        let name = char::from(b'a' + idx as u8);
        let (start, end) = (idx * HUGE, (idx + 1) * HUGE);
        format!(r#""{name}":{{"dtype":"U8","shape":[{HUGE}],"data_offsets":[{start},{end}]}}"#)
    };
    let near_the_end = format!("{{{}}}", (0..8).map(entry).collect::<Vec<_>>().join(","));
    let no_rows = r#"{"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}}"#;
    let deep = "[".repeat(4_000);
    let of_kind = |kind: u8, bytes: &[u8]| [[kind].as_slice(), bytes].concat();
    // A footer that is a structure whose field 2 is a list of 2^31 - 1 structures.
    let footer = [
        b"\x29\xfc\xff\xff\xff\xff\x07".as_slice(),
        &7u32.to_le_bytes(),
        b"PAR1",
    ]
    .concat();
    let long_header = [
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'shape': (3,), ".as_slice(),
        &[b' '; 64],
    ]
    .concat();
    let zeros = "{\"text\":\"".to_owned() + &"0".repeat(1 << 20);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut gz, zeros.as_bytes()).unwrap_or_default();
    let gz = gz.finish().unwrap_or_default();
    let place = json!({ "epoch": 0, "block": u64::MAX, "window": u64::MAX, "n_carried": u64::MAX,
        "place": { "spec": 0, "item": u64::MAX, "document": u64::MAX } });
    let state = json!({ "step": 2, "n_tokens": 0, "n_skipped": 0, "n_skipped_in_row": 0,
        "elapsed_s": 0, "best": null,
        "identity": {}, "metrics_len": u64::MAX, "data": { "digest": "", "mean_width": u64::MAX,
            "lanes": [{ "start": place, "n_taken": 0, "n_total": 0 }] } });
    let turned = json!({ "model_type": "llama", "hidden_size": 2, "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 65536, "vocab_size": 2,
            "max_position_embeddings": 1048576 });
    let decoder = r#"{"version":"1.0","added_tokens":[],"decoder":{"type":},"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
    let run = json!({ "minitron": "", "recipe": "", "seed": 0, "device": "", "dtype": "",
        "stages": [
        { "name": "../../outside", "do": "score", "inputs": "" }] });
    let nested = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":{}",
        &deep[..2000]
    );
    let all: [(&'static str, &str, Vec<u8>); 18] = [
        (
            "safetensors",
            "offsets-near-2-64",
            with_header(&near_the_end, 8),
        ),
        ("safetensors", "no-rows-of-2-63", with_header(no_rows, 0)),
        (
            "safetensors",
            "header-of-2-63",
            (1u64 << 63).to_le_bytes().to_vec(),
        ),
        ("config", "deep", deep.clone().into_bytes()),
        ("plan", "deep", format!("{{\"kept\":{deep}").into_bytes()),
        (
            "recipe",
            "deep",
            format!("stages = {}", &deep[..2000]).into_bytes(),
        ),
        (
            "tokenizer",
            "deep",
            format!("{{\"model\":{}", &deep[..2000]).into_bytes(),
        ),
        ("tokenizer", "decoder", decoder.into()),
        ("texts", "footer-of-2-31-groups", of_kind(4, &footer)),
        ("texts", "line-of-a-megabyte", of_kind(2, &gz)),
        ("tokens", "header-of-4-gib", of_kind(0, &long_header)),
        (
            "cursor",
            "place-of-2-64",
            joined(&[state.to_string().as_bytes(), b""]),
        ),
        ("config", "angles", turned.to_string().into_bytes()),
        ("conversation", "deep", nested.into_bytes()),
        (
            "template",
            "loops",
            b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
                .to_vec(),
        ),
        (
            "template",
            "explodes",
            b"{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('ab') }}".to_vec(),
        ),
        (
            "template",
            "deep",
            format!("{{{{ {} }}}}", "[".repeat(4_000)).into_bytes(),
        ),
        (
            "report",
            "stage-outside",
            of_kind(0, run.to_string().as_bytes()),
        ),
    ];
    all.into_iter()
        .map(|(target, name, bytes)| (target, name.to_owned(), bytes))
        .collect()
}

/// All seeds; `dir` is for what passes through files.
pub fn all(dir: &Path) -> Result<Seeds> {
    let mut seeds = Seeds::new();
    weights(&mut seeds, dir)?;
    models(&mut seeds, dir)?;
    decisions(&mut seeds, dir)?;
    words(&mut seeds);
    token_files(&mut seeds);
    text_files(&mut seeds);
    chats(&mut seeds);
    trainings(&mut seeds, dir)?;
    libraries(&mut seeds);
    reports(&mut seeds, dir)?;
    Ok(seeds)
}

fn weights(seeds: &mut Seeds, dir: &Path) -> Result<()> {
    let some = Tensor::f_from_slice(&[1.5f32, -2.0, 0.25, 3.0, 0.5, 7.0])?.f_view([2, 3])?;
    let kinds = [
        tch::Kind::Double,
        tch::Kind::Half,
        tch::Kind::BFloat16,
        tch::Kind::Int64,
        tch::Kind::Int,
    ];
    let mut source = tensors(&[
        ("a", some.shallow_clone()),
        ("scalar", Tensor::f_from_slice(&[1f32])?.f_view([0i64; 0])?),
    ])?;
    for kind in kinds {
        source.insert(format!("{kind:?}"), &some.f_to_kind(kind)?)?;
    }
    seeds.push(("safetensors", "kinds".into(), stored(&source, dir)?));
    seeds.push(("safetensors", "none".into(), with_header("{}", 0)));
    let narrow = r#"{"__metadata__":{"format":"pt"},"u":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"BOOL","shape":[0,3],"data_offsets":[4,4]},"f8":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[4,8]},"f4":{"dtype":"F4","shape":[3,2],"data_offsets":[8,11]}}"#;
    seeds.push(("safetensors", "narrow".into(), with_header(narrow, 11)));
    Ok(())
}

fn models(seeds: &mut Seeds, dir: &Path) -> Result<()> {
    for family in families() {
        let name = family["model_type"].as_str().unwrap_or_default().to_owned();
        seeds.push(("config", name.clone(), family.to_string().into_bytes()));
        let mut small = family.clone();
        for (key, size) in [
            ("hidden_size", 4),
            ("n_embd", 4),
            ("intermediate_size", 4),
            ("n_inner", 4),
            ("num_hidden_layers", 1),
            ("n_layer", 1),
            ("num_attention_heads", 2),
            ("n_head", 2),
            ("num_key_value_heads", 1),
            ("head_dim", 2),
            ("vocab_size", 5),
            ("max_position_embeddings", 4),
            ("n_positions", 4),
        ] {
            if small.get(key).is_some() {
                small[key] = size.into();
            }
        }
        small
            .as_object_mut()
            .into_iter()
            .for_each(|object| drop(object.shift_remove("architectures")));
        if name == "nemotron" {
            small["partial_rotary_factor"] = 1.into();
        }
        let place = dir.join(&name);
        write_tiny(&place, &small, 1)?;
        let weights = fs::read(place.join("model.safetensors")).unwrap_or_default();
        seeds.push((
            "model",
            name,
            joined(&[small.to_string().as_bytes(), &weights]),
        ));
    }
    for name in [
        "llama_rope_llama3",
        "llama_rope_linear",
        "llama_rope_old_keys",
        "bert_pretraining",
        "gpt2_untied",
    ] {
        seeds.push((
            "config",
            name.into(),
            fs::read(fixture(name).join("config.json")).unwrap_or_default(),
        ));
    }
    let (a, b) = (
        tensors(&[("a", Tensor::f_from_slice(&[1f32])?)])?,
        tensors(&[("b", Tensor::f_from_slice(&[2f32])?)])?,
    );
    let (a, b) = (stored(&a, dir)?, stored(&b, dir)?);
    let index =
        json!({ "metadata": {}, "weight_map": { "a": "a.safetensors", "b": "b.safetensors" } })
            .to_string();
    let config = tiny_llama().to_string();
    seeds.push((
        "model",
        "shards".into(),
        joined(&[config.as_bytes(), index.as_bytes(), &a, &b]),
    ));
    let outside = index
        .replace("a.safetensors", "../a.safetensors")
        .replace("\"b.s", "\"/elsewhere/b.s");
    seeds.push((
        "model",
        "shards_outside".into(),
        joined(&[config.as_bytes(), outside.as_bytes(), &a, &b]),
    ));
    Ok(())
}

fn decisions(seeds: &mut Seeds, dir: &Path) -> Result<()> {
    let kept = json!({ "kept": {
        "depth": [0, 1], "hidden": [0, 1, 2, 3, 4, 5, 6, 7], "mlp.0": [0, 2, 4, 6], "mlp.1": [1, 2,
            3, 4],
        "heads.0": [0, 2], "heads.1": [1, 3], "kv_heads.0": [0, 1]
    }, "sizes": {} });
    seeds.push(("plan", "kept".into(), kept.to_string().into_bytes()));
    seeds.push((
        "plan",
        "depth".into(),
        json!({ "kept": { "depth": [1] } }).to_string().into_bytes(),
    ));
    let mut scores = Scores::default();
    for (dim, n_units) in [
        ("mlp.0", 12),
        ("mlp.1", 12),
        ("heads.0", 4),
        ("heads.1", 4),
        ("hidden", 16),
    ] {
        let values: Vec<f32> = (0..n_units)
            .map(|unit| (unit * 7 % 5) as f32 - 1.5)
            .collect();
        scores.replicates.insert(
            format!("activation/{dim}"),
            vec![values.clone(), values.clone()],
        );
        scores.by_name.insert(format!("activation/{dim}"), values);
    }
    let path = dir.join("scores.safetensors");
    scores.save(&path)?;
    seeds.push((
        "scores",
        "activation".into(),
        fs::read(&path).unwrap_or_default(),
    ));
    seeds.push((
        "report",
        "scores".into(),
        [b"\x06".as_slice(), &fs::read(&path).unwrap_or_default()].concat(),
    ));
    Ok(())
}

fn words(seeds: &mut Seeds) {
    for name in [
        "recipes/stories260k.toml",
        "recipes/capp-gpt.toml",
        "compare/healing.toml",
        "search/prose.toml",
    ] {
        let text = fs::read(root().join("examples").join(name)).unwrap_or_default();
        seeds.push(("recipe", name.replace(['/', '.'], "_"), text));
    }
    for (name, line) in [
        ("spec", "activation:batch=l2,seq=mean,as=x"),
        ("data", "0.7*web.jsonl#10..-3"),
        ("budget", "hidden=64,mlp=0.5,params=1.5B"),
        ("bytes", "1.5GiB"),
        ("predicate", "hidden >= 2 * heads && (mlp / hidden < 4.5)"),
        (
            "deep",
            "((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))",
        ),
    ] {
        seeds.push(("recipe", name.into(), line.as_bytes().to_vec()));
    }
    let added = json!([{ "id": 0, "content": "<s>", "special": true, "single_word": false,
        "lstrip": false,
        "rstrip": false, "normalized": false }]);
    let table = |model: Value, rest: Value| {
        let mut table = json!({ "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
                "model": model });
        rest.as_object()
            .into_iter()
            .flatten()
            .for_each(|(key, value)| table[key] = value.clone());
        table.to_string()
    };
    let vocab = json!({ "<s>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "O": 5, "n": 6, "c": 7, "e": 8,
        "##c": 9, "[UNK]": 10 });
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true });
    let bpe = table(
        json!({ "type": "BPE", "vocab": vocab, "merges": [["a", "b"]], "fuse_unk": false,
            "byte_fallback": true }),
        json!({ "pre_tokenizer": level, "decoder": level, "post_processor": level }),
    );
    let split = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "\\s+(?!\\S)|\\p{L}+" }, "behavior": "Isolated",
            "invert": false },
        { "type": "Digits", "individual_digits": true }] });
    let normal = json!({ "type": "Sequence", "normalizers": [{ "type": "NFKC" }, {
        "type": "Lowercase" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] });
    let pieces = table(
        json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab }),
        json!({ "pre_tokenizer": split, "normalizer": normal, "decoder": { "type": "WordPiece",
            "prefix": "##", "cleanup": true } }),
    );
    let unigram = table(
        json!({ "type": "Unigram", "unk_id": 0, "vocab": [["<s>", 0.0], ["▁", -1.0], ["O", -2.0],
            ["nce", -2.5]], "byte_fallback": false }),
        json!({ "pre_tokenizer": { "type": "Metaspace", "replacement": "▁",
            "prepend_scheme": "always", "split": true } }),
    );
    let config = br#"{"bos_token":"<s>","eos_token":{"content":"<s>"},"add_bos_token":true,"add_eos_token":false}"#;
    for (name, table) in [("bpe", bpe), ("pieces", pieces), ("unigram", unigram)] {
        seeds.push((
            "tokenizer",
            name.into(),
            joined(&[table.as_bytes(), config, "Once ab, 1 é <s>".as_bytes()]),
        ));
    }
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [
        b"\x93NUMPY\x01\x00".as_slice(),
        &(header.len() as u16).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn token_files(seeds: &mut Seeds) {
    let of_kind = |kind: u8, bytes: &[u8]| [[kind].as_slice(), bytes].concat();
    for (name, descr, width) in [
        ("u1", "|u1", 1),
        ("u2", "<u2", 2),
        ("i4", "<i4", 4),
        ("i8", ">i8", 8),
    ] {
        seeds.push((
            "tokens",
            name.into(),
            of_kind(0, &npy(descr, "(3,)", &vec![0; 3 * width])),
        ));
    }
    seeds.push((
        "tokens",
        "two_sides".into(),
        of_kind(0, &npy("<u2", "(2, 3)", &[0; 12])),
    ));
    seeds.push(("tokens", "bin_u16".into(), of_kind(1, &[1, 0, 2, 0])));
    seeds.push((
        "tokens",
        "bin_u32".into(),
        of_kind(2, &[1, 0, 0, 0, 2, 0, 0, 1]),
    ));
    for name in [
        "megatron_int32",
        "megatron_int64",
        "megatron_uint16",
        "megatron_uint8",
    ] {
        let read =
            |ending: &str| fs::read(fixture(&format!("{name}.{ending}"))).unwrap_or_default();
        seeds.push((
            "tokens",
            name.into(),
            of_kind(3, &joined(&[&read("idx"), &read("bin")])),
        ));
    }
}

fn text_files(seeds: &mut Seeds) {
    let of_kind = |kind: u8, bytes: &[u8]| [[kind].as_slice(), bytes].concat();
    let lines = "{\"text\":\"one\\n\",\"n\":1}\r\n\n  \n{\"n\":[2],\"text\":\"two é\"}\n{\"text\":[1,2,3]}\n";
    seeds.push((
        "texts",
        "text".into(),
        of_kind(0, "One é.\nTwo.\n".as_bytes()),
    ));
    seeds.push(("texts", "lines".into(), of_kind(1, lines.as_bytes())));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut gz, lines.as_bytes()).unwrap_or_default();
    seeds.push((
        "texts",
        "lines_gz".into(),
        of_kind(2, &gz.finish().unwrap_or_default()),
    ));
    seeds.push((
        "texts",
        "lines_zst".into(),
        of_kind(
            3,
            &zstd::encode_all(lines.as_bytes(), 3).unwrap_or_default(),
        ),
    ));
    for (name, compression) in [
        ("parquet", parquet::basic::Compression::UNCOMPRESSED),
        ("parquet_snappy", parquet::basic::Compression::SNAPPY),
        (
            "parquet_zstd",
            parquet::basic::Compression::ZSTD(Default::default()),
        ),
        (
            "parquet_brotli",
            parquet::basic::Compression::BROTLI(Default::default()),
        ),
        ("parquet_lz4", parquet::basic::Compression::LZ4),
        ("parquet_lz4_raw", parquet::basic::Compression::LZ4_RAW),
    ] {
        seeds.push((
            "texts",
            name.into(),
            of_kind(4, &parquet_file(compression).unwrap_or_default()),
        ));
    }
    let rows = parquet_file(parquet::basic::Compression::UNCOMPRESSED).unwrap_or_default();
    seeds.push(("texts", "parquet_rows".into(), of_kind(6, &rows)));
    let array =
        "\u{feff}[{\"text\":\"one\\n\"},\n {\"n\":[2], \"text\": \"]}\\\"\"}, {\"text\":null}]\n";
    seeds.push(("texts", "array".into(), of_kind(5, array.as_bytes())));
}

/// Conversations of every layout, beside each other and in files; templates of the families that
/// are compared.
fn chats(seeds: &mut Seeds) {
    let calls =
        json!([{ "type": "function", "function": { "name": "f", "arguments": { "x": 1.5 } } }]);
    let messages = json!([{ "role": "system", "content": "Short." },
        { "role": "user", "content": [{ "type": "text", "text": "one é?" }] },
        { "role": "assistant", "content": "1", "thinking": "it is" }, { "role": "user",
            "content": "two" },
        { "role": "assistant", "content": null, "tool_calls": calls, "weight": 1 }, {
            "role": "tool", "content": { "n": 2 } },
        { "role": "assistant", "content": " 2\n", "weight": 0 }]);
    let turns = json!([{ "from": "human", "value": "one" }, { "from": "gpt", "value": "1" },
        { "from": "function_call", "value": "{\"name\":\"f\",\"arguments\":{}}" }, {
            "from": "observation", "value": "2" }]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    for (name, record) in [
        ("list", messages.clone()),
        (
            "messages",
            json!({ "messages": messages, "tools": tools, "chat_template_kwargs": { "x": 1 } }),
        ),
        (
            "sharegpt",
            json!({ "conversations": turns, "system": "Short.", "tools": tools.to_string() }),
        ),
        ("texts", json!({ "prompt": "one é", "completion": " 1" })),
        (
            "prompt",
            json!({ "prompt": [{ "role": "user", "content": "one" }], "completion": [{
                "role": "assistant", "content": "1" }] }),
        ),
        (
            "alpaca",
            json!({ "instruction": "one", "input": "2", "output": "3", "history": [["a", "b"]],
                "system": "s" }),
        ),
    ] {
        seeds.push(("conversation", name.into(), record.to_string().into_bytes()));
        seeds.push((
            "texts",
            format!("chat_{name}"),
            [b"\x01", format!("{record}\n{record}\n").as_bytes()].concat(),
        ));
    }
    for name in [
        "chatml",
        "llama3",
        "mistral",
        "gemma",
        "qwen3",
        "deepseek_r1",
    ] {
        let source = fs::read(root().join(format!("tests/chat/{name}.jinja"))).unwrap_or_default();
        seeds.push(("template", name.into(), source));
    }
    let pieces = fs::read(root().join("tests/chat/pieces.txt")).unwrap_or_default();
    for (idx, piece) in pieces
        .split(|&byte| byte == b'\n')
        .filter(|piece| !piece.is_empty())
        .enumerate()
        .step_by(20)
    {
        seeds.push(("template", format!("piece_{idx}"), piece.to_vec()));
    }
}

fn parquet_file(compression: parquet::basic::Compression) -> parquet::errors::Result<Vec<u8>> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let schema =
        parquet::schema::parser::parse_message_type("message m { optional binary text (UTF8); }")?;
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut bytes = Vec::new();
    let mut writer = parquet::file::writer::SerializedFileWriter::new(
        &mut bytes,
        schema.into(),
        properties.into(),
    )?;
    for _ in 0..2 {
        let mut group = writer.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            let values = [
                ByteArray::from("one"),
                ByteArray::from("two, two, two, two, two"),
            ];
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&[1, 0, 1]), None)?;
            column.close()?;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(bytes)
}

fn trainings(seeds: &mut Seeds, dir: &Path) -> Result<()> {
    for (name, vocab, dtype, row) in [("f16", 100, "f16", 20), ("f32", 70_000, "f32", 36)] {
        let header = json!({ "format": "minitron teacher cache 1", "teacher": "t",
            "computed_in": "f32",
            "vocab": vocab, "top_k": 4, "dtype": dtype });
        let (mut index, mut rows) = (Vec::new(), Vec::new());
        for (first, n) in [(0u64, 2u32), (2, 1)] {
            let bytes: Vec<u8> = (0..row * n as usize).map(|at| at as u8).collect();
            index.extend([first as u8 + 7; 16]);
            index.extend(first.to_le_bytes());
            index.extend(n.to_le_bytes());
            index.extend(crc32c::crc32c(&bytes).to_le_bytes());
            rows.extend(bytes);
        }
        seeds.push((
            "cache",
            name.into(),
            joined(&[header.to_string().as_bytes(), &index, &rows]),
        ));
    }
    let state = json!({
        "step": 2, "n_tokens": 32, "n_skipped": 0, "n_skipped_in_row": 0, "elapsed_s": 0.5,
            "best": null,
        "identity": { "settings": { "lr": 0.1 } }, "metrics_len": 10,
        "data": { "digest": "x", "mean_width": 4, "lanes": [{ "start": { "epoch": 1, "block": 0,
            "window": 0,
            "place": { "spec": 0, "item": 0, "document": 0 }, "n_carried": 0 }, "n_taken": 1,
                "n_total": 4 }] }
    });
    let optimizer = super::targets::optimizer()?;
    let tensors = stored(&optimizer.to_source()?, dir)?;
    seeds.push((
        "cursor",
        "state".into(),
        joined(&[state.to_string().as_bytes(), &tensors]),
    ));
    Ok(())
}

fn libraries(seeds: &mut Seeds) {
    let ours = minitron_core::registry::Handshake::OURS;
    // SAFETY: plain data, as many bytes as it has.
    let bytes =
        unsafe { std::slice::from_raw_parts((&raw const ours).cast::<u8>(), size_of_val(&ours)) };
    seeds.push(("handshake", "ours".into(), bytes.to_vec()));
    // An ELF header with one segment, for each of the processors that are known.
    for (name, machine) in [("elf_x86_64", 62u8), ("elf_aarch64", 183)] {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[16], elf[18], elf[32], elf[54], elf[56]) = (3, machine, 64, 56, 1);
        elf[64 + 32] = 100;
        seeds.push(("handshake", name.into(), elf));
    }
}

fn reports(seeds: &mut Seeds, dir: &Path) -> Result<()> {
    let record = |first: &str, second: &str| -> u8 {
        const NAMES: [&str; 8] = [
            "run", "search", "compare", "metrics", "plan", "result", "scores", "events",
        ];
        let place = |name| NAMES.iter().position(|other| *other == name).unwrap_or(0) as u8;
        place(first) + 8 * place(second)
    };
    let run = json!({ "minitron": "0.1.0", "recipe": "r.toml", "seed": 1, "device": "cpu",
        "dtype": "float", "stages": [
        { "name": "a", "do": "prune", "inputs": "x", "result": { "seconds": 1.0, "n_params": 10 },
            "seconds": 2.0,
          "options": { "model": "m" } }] });
    seeds.push((
        "report",
        "run".into(),
        joined(&[
            &[&[record("run", "result")], run.to_string().as_bytes()].concat(),
            b"{}",
        ]),
    ));
    let metrics = "{\"step\":1,\"n_tokens\":10,\"loss\":2.5}\n{\"step\":2,\"n_tokens\":20,\"eval/loss\":2.25}\n";
    seeds.push((
        "report",
        "metrics".into(),
        [&[record("metrics", "events")], metrics.as_bytes()].concat(),
    ));
    let plan =
        json!({ "kept": { "mlp.0": [0, 1] }, "sizes": { "mlp": 2 }, "explained": {} }).to_string();
    seeds.push((
        "report",
        "plan".into(),
        [&[record("plan", "scores")], plan.as_bytes()].concat(),
    ));
    let _ = dir;
    Ok(())
}
