//! One function for each kind of file: whatever the bytes, it returns.

use std::fs;
use std::mem::size_of;
use std::path::Path;

use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{Config, MemorySource, Reader, TensorSource};
use minitron_core::contract::{Axis, Corpus, Document};
use minitron_core::conversation::{Conversation, Example, Form};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer, fresh_weights};
use minitron_core::plan::{Plan, Rankings, Space, parse_budget, parse_bytes, parse_count};
use minitron_core::prune::Student;
use minitron_core::registry::{Handshake, Kind, Opening, PluginSpec, Registry};
use minitron_core::spec::{CheckpointInfo, ModelFolder, ModelSpec};
use minitron_core::windows::{Tokenize, Windows};
use minitron_engine::chat::{ChatTemplate, Moment, Rendered};
use minitron_engine::compare::Spec;
use minitron_engine::data::{DataLoader, DataSpec, Tokenizer};
use minitron_engine::recipe::{Recipe, check_recipe};
use minitron_engine::report;
use minitron_engine::search::Predicate;
use minitron_engine::train::{
    AdamW, AdamWSettings, CacheHeader, CacheType, TeacherCache, saved_cursor,
};
use serde_json::{Value, json};

use super::desk::{answer, dir, files, put, with_registry, within};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 15] = [
    ("safetensors", safetensors),
    ("model", model),
    ("config", config),
    ("plan", plan),
    ("scores", scores),
    ("recipe", recipe),
    ("tokenizer", tokenizer),
    ("tokens", tokens),
    ("texts", texts),
    ("conversation", conversation),
    ("template", template),
    ("cache", cache),
    ("cursor", cursor),
    ("handshake", handshake),
    ("report", report),
];

const MIB: usize = 1 << 20;

/// A weight file: every tensor is within it, and is read.
pub fn safetensors(bytes: &[u8]) {
    let path = put(&dir(), "model.safetensors", Some(bytes));
    within(bytes.len(), MIB, || {
        if let Some(reader) = answer(Reader::open_file(&path)) {
            read_all(&reader, bytes.len());
        }
    });
}

fn read_all(source: &dyn TensorSource, n_stored: usize) {
    let mut n_bytes = 0;
    for name in source.names() {
        let info = source
            .info(&name)
            .unwrap_or_else(|| panic!("`{name}` is listed and has no type"));
        n_bytes += info
            .n_bytes()
            .unwrap_or_else(|| panic!("`{name}` is larger than numbers go"));
        assert!(
            n_bytes <= n_stored as u64,
            "`{name}` is larger than its file"
        );
        if let Some(tensor) = answer(source.read(&name)) {
            assert_eq!(Some(tensor.numel() as u64), info.n_elements(), "{name}");
        }
        let n_rows = info.shape.first().copied().unwrap_or(1);
        let mut rows = Vec::new();
        answer(source.append_rows(&name, 0..n_rows, &mut rows));
        answer(source.append_rows(&name, n_rows / 2..n_rows, &mut rows));
    }
}

/// A model folder: config.json, then either one weight file or an index and two shards.
pub fn model(bytes: &[u8]) {
    let [config, weights, shard_a, shard_b] = files(bytes);
    let dir = dir().join("model");
    fs::create_dir_all(&dir).unwrap_or_default();
    put(&dir, "config.json", config);
    let is_sharded = shard_a.is_some();
    put(&dir, "model.safetensors", weights.filter(|_| !is_sharded));
    put(
        &dir,
        "model.safetensors.index.json",
        weights.filter(|_| is_sharded),
    );
    put(&dir, "a.safetensors", shard_a);
    put(&dir, "b.safetensors", shard_b);
    if config.is_none_or(has_many_layers) {
        return;
    }
    within(bytes.len(), 4 * MIB, || {
        let folder = answer(with_registry(|registry| ModelFolder::open(&dir, registry)));
        if let Some(folder) = folder {
            assert!(folder.n_bytes() <= bytes.len() as u64);
            answer(Transformer::load(
                &folder.checkpoint.tensors,
                &folder.spec,
                LoadOptions::default(),
            ));
        }
    });
}

/// A layer costs some kilobytes of names, whatever the config's length; up to 4096 are allowed.
/// That many take a while.
fn has_many_layers(config: &[u8]) -> bool {
    const MANY: u64 = 64;
    let value: Value = serde_json::from_slice(config).unwrap_or_default();
    ["num_hidden_layers", "n_layer"]
        .iter()
        .any(|key| value[*key].as_u64().is_some_and(|n| n > MANY))
}

/// config.json of every family, and what follows from it alone.
pub fn config(bytes: &[u8]) {
    if has_many_layers(bytes) {
        return;
    }
    let path = put(&dir(), "config.json", Some(bytes));
    within(bytes.len(), 4 * MIB, || {
        let Some(config) = answer(Config::load(&path)) else {
            return;
        };
        with_registry(|registry| {
            let Some(spec) = answer(ModelSpec::from_config(&config, registry)) else {
                return;
            };
            let sizes = spec.sizes();
            assert_eq!(spec.n_params(), spec.n_params_at(&sizes));
            assert!(spec.n_non_embedding_at(&sizes) <= spec.n_params());
            spec.kv_cache_bytes_at(&sizes, 4096, 8);
            if let Some(space) = answer(Space::new(&spec, &axes(registry))) {
                answer(space.complete(&sizes));
            }
            answer(config.to_json());
        });
        answer(with_registry(|registry| {
            let none = MemorySource::default();
            registry
                .architecture_for(&config)?
                .spec(&CheckpointInfo::of(&config, &none))
        }));
    });
}

fn axes(registry: &Registry) -> Vec<Box<dyn Axis>> {
    let tags = registry
        .of_kind(Kind::Axis)
        .map(|descriptor| PluginSpec::bare(descriptor.tag));
    tags.filter_map(|spec| answer(registry.build(&spec)))
        .collect()
}

/// A model that plans and scores are for.
struct Source {
    spec: ModelSpec,
    space: Space,
    weights: MemorySource,
}

fn with_source(work: impl FnOnce(&Source, &Registry)) {
    thread_local! { static SOURCE: Option<Source> = with_registry(source).ok(); }
    SOURCE.with(|source| {
        let source = source
            .as_ref()
            .unwrap_or_else(|| panic!("the model for plans cannot be made"));
        with_registry(|registry| work(source, registry));
    });
}

fn source(registry: &Registry) -> Result<Source> {
    let value = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 8,
        "max_position_embeddings": 8
    });
    let config = Config::from_value(Path::new("config.json"), value)?;
    let spec = ModelSpec::from_config(&config, registry)?;
    let space = Space::new(&spec, &axes(registry))?;
    let weights = fresh_weights(&spec, 0)?;
    Ok(Source {
        spec,
        space,
        weights,
    })
}

/// plan.json, up to the student that it makes.
pub fn plan(bytes: &[u8]) {
    let path = put(&dir(), "plan.json", Some(bytes));
    with_source(|source, _| {
        within(bytes.len(), MIB, || {
            let Some(plan) = answer(Plan::load(&path)) else {
                return;
            };
            let Some(plan) = answer(plan.checked(&source.space, &source.spec)) else {
                return;
            };
            let student = answer(Student::new(&source.weights, &source.spec, &plan));
            if let Some(student) = student {
                student
                    .view
                    .names()
                    .iter()
                    .for_each(|name| drop(answer(student.view.read(name))));
            }
            let twice = plan.compose(&plan, &source.spec);
            assert!(twice.kept.values().flatten().all(|&unit| unit < 16));
        });
    });
}

/// scores.safetensors, up to the plan that they make.
pub fn scores(bytes: &[u8]) {
    let path = put(&dir(), "scores.safetensors", Some(bytes));
    with_source(|source, registry| {
        within(bytes.len(), MIB, || {
            let Some(scores) = answer(Scores::load(&path)) else {
                return;
            };
            assert!(
                scores
                    .by_name
                    .values()
                    .flatten()
                    .all(|score| score.is_finite())
            );
            let groups = axes(registry)
                .into_iter()
                .filter_map(|axis| answer(axis.groups(&source.spec)))
                .flatten();
            let groups: Vec<_> = groups.collect();
            let Some(rankings) = answer(Rankings::new(&scores, &groups, &Default::default()))
            else {
                return;
            };
            let sizes = [("mlp".to_owned(), 8), ("heads".to_owned(), 2)].into();
            let Some(plan) = answer(source.space.plan(&sizes, &rankings, &source.spec)) else {
                return;
            };
            answer(plan.explain(&rankings, &source.spec, Some(4)));
        });
    });
}

/// A recipe, and the same text as all else that people write in a line.
pub fn recipe(bytes: &[u8]) {
    let path = put(&dir(), "recipe.toml", Some(bytes));
    within(bytes.len(), 4 * MIB, || {
        if let Some(recipe) = answer(Recipe::load(&path)) {
            answer(with_registry(|registry| check_recipe(registry, &recipe)));
        }
        answer(Spec::load(&path));
        let Some(line) = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.len() < 512)
        else {
            return;
        };
        if let Some(spec) = answer(line.parse::<PluginSpec>()) {
            assert!(!spec.to_string().is_empty());
        }
        answer(line.parse::<DataSpec>());
        answer(parse_budget(line));
        answer(parse_bytes(line));
        answer(parse_count(line));
        if let Some(predicate) = answer(Predicate::parse(line)) {
            answer(predicate.holds(&|name| (name != "nothing").then_some(2.5)));
        }
    });
}

/// tokenizer.json, tokenizer_config.json and a text.
pub fn tokenizer(bytes: &[u8]) {
    let [table, config, text] = files(bytes);
    let dir = dir().join("tokenizer");
    fs::create_dir_all(&dir).unwrap_or_default();
    put(&dir, "tokenizer.json", table);
    put(&dir, "tokenizer_config.json", config);
    within(bytes.len(), 16 * MIB, || {
        let none = answer(Config::from_value(
            &dir.join("config.json"),
            json!({ "eos_token_id": 1 }),
        ));
        let Some(none) = none else { return };
        for is_causal in [true, false] {
            let Some(tokenizer) = answer(Tokenizer::load(&dir, &none, 512, is_causal)) else {
                continue;
            };
            let text =
                String::from_utf8_lossy(text.unwrap_or(b"Once upon a time, in 1 house:\n\t<s>"));
            for ids in answer(tokenizer.encode_whole(&[&text]))
                .into_iter()
                .flatten()
            {
                assert!(ids.iter().all(|&id| id < 512));
                answer(tokenizer.decode(&ids));
            }
            answer(tokenizer.encode(&text));
            answer(tokenizer.decode(&[0, 1, 511, 9999]));
        }
    });
}

/// Token files: the first byte says of which kind.
pub fn tokens(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let dir = dir();
    let [index, ids] = files(bytes);
    let (tag, name, first, params) = match kind % 4 {
        0 => ("tokens", "t.npy", Some(bytes), json!({})),
        1 => (
            "tokens",
            "u.bin",
            Some(bytes),
            json!({ "token_type": "u16" }),
        ),
        2 => (
            "tokens",
            "u.bin",
            Some(bytes),
            json!({ "token_type": "u32" }),
        ),
        _ => ("megatron", "m.idx", index, json!({})),
    };
    put(&dir, "m.bin", ids);
    let path = put(&dir, name, first);
    within(bytes.len(), MIB, || {
        read_documents(tag, &path, params, bytes.len())
    });
}

/// Texts: the first byte says of which kind.
pub fn texts(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let (tag, name, params) = match kind {
        5 => ("jsonl", "t.json", json!({})),
        // Two fields are assembled row by row.
        6 => ("parquet", "t.parquet", json!({ "field": "text+text" })),
        kind => match kind % 5 {
            0 => ("text", "t.txt", json!({})),
            1 => ("jsonl", "t.jsonl", json!({})),
            2 => ("jsonl", "t.jsonl.gz", json!({})),
            3 => ("jsonl", "t.jsonl.zst", json!({})),
            _ => ("parquet", "t.parquet", json!({})),
        },
    };
    let path = put(&dir(), name, Some(bytes));
    // What is compressed unfolds: a line, or a page.
    let is_plain = matches!(name, "t.txt" | "t.jsonl" | "t.json");
    let constant = if is_plain { MIB } else { 16 * MIB };
    within(bytes.len(), constant, || {
        read_documents(tag, &path, params, bytes.len())
    });
}

fn read_documents(tag: &str, path: &Path, params: Value, n_bytes: usize) {
    let Value::Object(params) = params else {
        return;
    };
    let spec = PluginSpec {
        tag: tag.to_owned(),
        params,
    }
    .with("path", path.to_string_lossy().as_ref());
    let Some(corpus) = answer(with_registry(|registry| {
        registry.build::<dyn Corpus>(&spec)
    })) else {
        return;
    };
    let n_all = n_documents(corpus.as_ref(), 0, n_bytes);
    let n_rest = n_documents(corpus.as_ref(), 1, n_bytes);
    if let (Some(all), Some(rest)) = (n_all, n_rest) {
        assert_eq!(
            rest,
            all.saturating_sub(1),
            "{tag}: the documents after the first"
        );
    }
}

/// How many there are from one on; none where one of them cannot be read.
fn n_documents(corpus: &dyn Corpus, first: u64, n_bytes: usize) -> Option<usize> {
    // A compressed file may hold far more than it is long; what matters has happened by then.
    let most = 64 + n_bytes;
    let (mut n, mut is_whole) = (0, true);
    for document in answer(corpus.documents_from(0, first))?.take(most) {
        is_whole &= answer(document).map(|document| length(&document)).is_some();
        n += 1;
    }
    (is_whole && n < most).then_some(n)
}

fn length(document: &Document) -> usize {
    match document {
        Document::Text(text) => text.len(),
        Document::Tokens(ids) => ids.len(),
        Document::Part(part) => length(part),
        Document::Example(example) => example.n_bytes(),
    }
}

/// A record of conversations in every layout, up to its text by templates with and without marks.
pub fn conversation(bytes: &[u8]) {
    const MARKED: &str = include_str!("../chat/chatml.jinja");
    const UNMARKED: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim \
                            }}[end]{% endfor %}\
                            {% if add_generation_prompt %}[assistant]{% endif %}";
    thread_local! { static TEMPLATES: Vec<ChatTemplate> = [MARKED,
    UNMARKED].into_iter().filter_map(compiled).collect(); }
    let Ok(record) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    TEMPLATES.with(|templates| {
        assert_eq!(templates.len(), 2);
        within(bytes.len(), MIB, || {
            for form in [None].into_iter().chain(Form::ALL.map(Some)) {
                match answer(Example::from_record(&record, form)).flatten() {
                    Some(Example::Chat(chat)) => templates
                        .iter()
                        .for_each(|template| render(template, &chat)),
                    Some(Example::Completion { prompt, completion }) => {
                        check_answers(&Rendered::completion(&prompt, &completion));
                    }
                    None => {}
                }
            }
        });
    });
}

fn compiled(source: &str) -> Option<ChatTemplate> {
    let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    let now: Moment = answer("2026-02-03T04:05:06".parse())?;
    answer(ChatTemplate::from_source(
        "chat_template.jinja",
        source,
        tokens.as_object()?.clone(),
        now,
    ))
}

fn render(template: &ChatTemplate, chat: &Conversation) {
    for prompt in [false, true] {
        if let Some(rendered) = answer(template.render(chat, prompt)) {
            check_answers(&rendered);
        }
    }
}

/// Answers are parts of the text, in order and apart.
fn check_answers(rendered: &Rendered) {
    let mut end = 0;
    for range in &rendered.answers {
        assert!(
            end <= range.start && rendered.text.get(range.clone()).is_some(),
            "{range:?} of {:?}",
            rendered.text
        );
        end = range.end;
    }
    assert_eq!(rendered.answers_in_chars().len(), rendered.answers.len());
}

/// A chat template, rendered for a conversation with a system's message, tools and calls.
pub fn template(bytes: &[u8]) {
    thread_local! {
        static CHAT: Option<Conversation> = {
            let call = json!({ "type": "function", "function": { "name": "f", "arguments": {
                "x": 1 } } });
            let record = json!({
                "messages": [
                    { "role": "system", "content": "Short." },
                    { "role": "user", "content": "one é?" },
                    { "role": "assistant", "content": "1", "reasoning_content": "it is" },
                    { "role": "user", "content": [{ "type": "text", "text": "two" }] },
                    { "role": "assistant", "tool_calls": [call] }, { "role": "tool",
                        "content": "2" },
                    { "role": "assistant", "content": "2\n" },
                ],
                "tools": [{ "type": "function", "function": { "name": "f", "parameters": {} } }],
            });
            match answer(Example::from_record(&record, None)) {
                Some(Some(Example::Chat(chat))) => Some(chat),
                _ => None,
            }
        };
    }
    CHAT.with(|chat| {
        let chat = chat
            .as_ref()
            .unwrap_or_else(|| panic!("the conversation for templates cannot be read"));
        within(bytes.len(), MIB, || {
            if let Some(template) = compiled(&String::from_utf8_lossy(bytes)) {
                render(&template, chat);
                render(&template, &Conversation::ask(None, "one"));
            }
        });
    });
}

/// A teacher cache: cache.json, index and rows.
pub fn cache(bytes: &[u8]) {
    let [header, index, rows] = files(bytes);
    let dir = dir().join("cache");
    fs::create_dir_all(&dir).unwrap_or_default();
    put(&dir, "cache.json", header);
    put(&dir, "index.bin", index);
    put(&dir, "rows.bin", rows);
    within(bytes.len(), MIB, || {
        for (vocab, dtype) in [(100, CacheType::F16), (70_000, CacheType::F32)] {
            let wanted = CacheHeader::new("t".into(), "f32".into(), vocab, 4, dtype);
            let Some(cache) = answer(TeacherCache::open(&dir, wanted, 0)) else {
                continue;
            };
            let keys = index
                .unwrap_or_default()
                .chunks_exact(32)
                .filter_map(|entry| entry.get(..16)?.try_into().ok());
            for key in keys {
                let mut rows = Default::default();
                answer(cache.read(&key, &mut rows));
                assert_eq!(rows.ids.len(), 4 * rows.log_tail.len());
            }
        }
    });
}

/// What a training left: state.json and state.safetensors.
pub fn cursor(bytes: &[u8]) {
    let [state, tensors] = files(bytes);
    let out = dir().join("training");
    let step = out.join("checkpoint/step-00000002");
    fs::create_dir_all(&step).unwrap_or_default();
    put(&step, "state.json", state);
    let path = put(&step, "state.safetensors", tensors.or(Some(b"")));
    within(bytes.len(), MIB, || {
        if let Some(mut cursor) = saved_cursor(&out) {
            let Some(mut loader) = answer(loader()) else {
                return;
            };
            cursor.digest = loader.digest().to_owned();
            if answer(loader.seek(&cursor)).is_some() {
                answer(loader.take(5));
                assert!(!loader.cursor().streams.is_empty());
            }
        }
        if let (Some(reader), Some(mut optimizer)) =
            (answer(Reader::open_file(&path)), answer(optimizer()))
        {
            answer(optimizer.restore(&reader, 2));
        }
    });
}

fn loader() -> Result<DataLoader> {
    let windows = Windows::cut((0..12).collect(), 4, None, None, "tokens")?;
    Ok(DataLoader::of_windows(windows.into(), 0))
}

/// Of a model of a few numbers.
pub fn optimizer() -> Result<AdamW> {
    let spec = with_registry(|registry| ModelSpec::from_config(&dwarf()?, registry))?;
    let options = LoadOptions {
        trainable: true,
        ..LoadOptions::default()
    };
    let model = Transformer::load(&fresh_weights(&spec, 0)?, &spec, options)?;
    AdamW::new(model.parameters(), AdamWSettings::default())
}

/// A config of the least sizes.
pub fn dwarf() -> Result<Config> {
    let value = json!({
        "model_type": "llama", "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 2, "vocab_size": 3, "max_position_embeddings": 4,
        "tie_word_embeddings": true
    });
    Config::from_value(Path::new("config.json"), value)
}

/// The first bytes of a library, and what it says of how it was built.
pub fn handshake(bytes: &[u8]) {
    let path = put(&dir(), "library.so", Some(bytes));
    within(bytes.len(), MIB, || {
        answer(minitron_plugins::objection(&path));
        if let Some(opening) = from_bytes::<Opening>(bytes) {
            opening.difference();
        }
        if let Some(handshake) = from_bytes::<Handshake>(bytes) {
            assert_eq!(handshake.fields().len(), 8);
            handshake.differences();
        }
    });
}

/// Plain data: any bytes are some value.
fn from_bytes<T: Copy>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as it has; both types are made of numbers alone.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Records of jobs, which reports read: the first byte says which.
pub fn report(bytes: &[u8]) {
    const NAMES: [&str; 8] = [
        "run.json",
        "search.json",
        "compare.json",
        "metrics.jsonl",
        "plan.json",
        "result.json",
        "scores.safetensors",
        "events.jsonl",
    ];
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let dir = dir().join("job");
    fs::create_dir_all(&dir).unwrap_or_default();
    let parts = files::<2>(bytes);
    for (idx, name) in NAMES.iter().enumerate() {
        let is_at = |place: u8| idx == usize::from(place % 8);
        put(
            &dir,
            name,
            if is_at(*first) {
                parts[0]
            } else if is_at(first / 8) {
                parts[1]
            } else {
                None
            },
        );
    }
    within(bytes.len(), 2 * MIB, || {
        if let Some(folder) = answer(report::gather(&dir)) {
            assert!(serde_json::to_string(&folder).is_ok());
        }
        answer(report::watch(&dir));
    });
}
