#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{fixtures, forward, load, max_difference, python, registry, root, shared, some_ids, with_context};
use minitron_core::blueprint::{HEADS, HIDDEN, KV_HEADS, Sizes};
use minitron_core::checkpoint::{
    Checkpoint, MemorySource, Reader, TensorSource, WriteOptions, write_model, write_tensors,
};
use minitron_core::contract::{Evaluator, Subject};
use minitron_core::data::Tokenizer;
use minitron_core::evaluate::{SentenceModules, sentence_embeddings};
use minitron_core::model::Input;
use minitron_core::pipeline::{PruneOptions, ScoreOptions, prune, score};
use minitron_core::plan::Space;
use minitron_core::progress::Silent;
use minitron_core::registry::PluginSpec;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// f32 on both sides, summed in another order.
const TOLERANCE: f64 = 1e-4;

/// Fixtures of the golden script, and the real models beside the repository.
fn models() -> Vec<PathBuf> {
    let mut models = fixtures();
    assert!(models.len() > 15, "fixtures are missing");
    for name in ["stories260K", "capp-gpt", "all-MiniLM-L6-v2-f16", "prose-llama", "prose-nemotron"] {
        models.extend(shared(&format!("models/{name}")));
    }
    models
}

/// About half of every axis, as far as the family can express it.
fn smaller_sizes(space: &Space) -> Sizes {
    let mut sizes = Sizes::new();
    for axis in space.axes.iter().filter(|axis| axis.kind != HIDDEN) {
        sizes.insert(axis.kind.clone(), axis.nearest((axis.full / 2).max(1))[0]);
    }
    if let Some(queries) = &space.queries {
        // Half of the key/value heads, and half of the query heads of each that stays.
        let kv_heads = (space.axis(KV_HEADS).unwrap().full / 2).max(1);
        sizes.insert(KV_HEADS.to_owned(), kv_heads);
        sizes.insert(HEADS.to_owned(), kv_heads * (queries.per_kv_head / 2).max(1));
    }
    let hidden = space.axis(HIDDEN).unwrap();
    for size in hidden.legal().into_iter().rev().filter(|&size| size < hidden.full) {
        let mut with_hidden = sizes.clone();
        with_hidden.insert(HIDDEN.to_owned(), size);
        if let Ok(complete) = space.complete(&with_hidden) {
            return complete;
        }
    }
    panic!("no legal shape with a smaller hidden size in {space:?}");
}

/// Scores a model on random tokens and prunes all its axes.
fn prune_everything(model: &Path, work: &Path) -> PathBuf {
    let (folder, _) = load(model).unwrap();
    let options = &folder.blueprint.options;
    let ids = some_ids(4, 12, options.vocab as i64, 5).unwrap();
    let tokens = work.join("ids.bin");
    let ids: Vec<i64> = Vec::try_from(ids.view([-1])).unwrap();
    fs::write(&tokens, ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let scoring = ScoreOptions {
        model: model.display().to_string(),
        data: vec![tokens.display().to_string().parse().unwrap()],
        seq_len: Some(12),
        ..ScoreOptions::default()
    };
    let out = work.join("pruned");
    with_context(false, |context| {
        let scores = work.join("scores.safetensors");
        score(context, &scoring, &scores).unwrap();
        let sizes = smaller_sizes(&Space::new(&folder.blueprint, &context.axes(&[]).unwrap()).unwrap());
        let n_axes = if sizes.contains_key(KV_HEADS) { 5 } else { 4 };
        assert_eq!(sizes.len(), n_axes, "{sizes:?}");
        let pruning = PruneOptions {
            model: scoring.model.clone(),
            scores: Some(scores.display().to_string()),
            hidden: sizes.get("hidden").copied(),
            mlp: sizes.get("mlp").copied(),
            heads: sizes.get("heads").copied(),
            kv_heads: sizes.get(KV_HEADS).copied(),
            layers: sizes.get("depth").copied(),
            ..PruneOptions::default()
        };
        prune(context, &pruning, &out, false).unwrap();
    });
    let pruned = Checkpoint::open(&out).unwrap();
    for spec in &load(&out).unwrap().0.blueprint.tensors {
        // A student's layers are renamed, its types are not changed.
        let (was, is) = (folder.checkpoint.tensors.info(&spec.name()), pruned.tensors.info(&spec.name()));
        assert_eq!(was.unwrap().dtype, is.unwrap().dtype, "{}: {}", model.display(), spec.name());
    }
    out
}

/// The same model in several files with an index.
fn shard(model: &Path, out: PathBuf) -> PathBuf {
    let opened = Checkpoint::open(model).unwrap();
    let n_bytes: u64 = opened.tensors.names().iter().filter_map(|name| opened.tensors.info(name)?.n_bytes()).sum();
    fs::create_dir(&out).unwrap();
    write_model(
        &out,
        &opened.config,
        &opened.tensors,
        Some(model),
        WriteOptions { max_shard_bytes: n_bytes / 3, ..WriteOptions::default() },
    )
    .unwrap();
    assert!(out.join("model.safetensors.index.json").is_file() && !out.join("model.safetensors").exists());
    out
}

/// One comparison: a folder, and files for its input and for what `transformers` makes of it.
struct Comparison {
    model: PathBuf,
    ids: PathBuf,
    out: PathBuf,
}

/// The second of two sequences is shorter by so much.
const N_FILLED: i64 = 7;

impl Comparison {
    fn new(model: PathBuf, work: &Path, name: &str) -> Self {
        let options = load(&model).unwrap().0.blueprint.options;
        let mut source = MemorySource::default();
        let n_tokens = options.max_positions.min(24) as i64;
        source.insert("input_ids", &some_ids(2, n_tokens, options.vocab as i64, 7).unwrap()).unwrap();
        if name == "filled" {
            let seen_bt = Tensor::ones([2, n_tokens], (Kind::Int64, Device::Cpu));
            let _ = seen_bt.get(1).narrow(0, n_tokens - N_FILLED, N_FILLED).fill_(0);
            source.insert("attention_mask", &seen_bt).unwrap();
        }
        let ids = work.join(format!("{name}.ids.safetensors"));
        write_tensors(&ids, &source).unwrap();
        Comparison { model, ids, out: work.join(format!("{name}.out.safetensors")) }
    }

    /// Largest difference between our outputs and those of `transformers`.
    fn difference(&self) -> f64 {
        let expected = Reader::open_file(&self.out).unwrap();
        let [name] = expected.names().try_into().unwrap();
        let (_, model) = load(&self.model).unwrap();
        assert_eq!(model.has_head(), name == "logits", "{}", self.model.display());
        let input = Reader::open_file(&self.ids).unwrap();
        let ids_bt = input.read("input_ids").unwrap();
        let seen_bt = input.read("attention_mask").ok().map(|seen_bt| seen_bt.to_kind(Kind::Bool));
        let ours = forward(&model, Input { ids_bt: &ids_bt, seen_bt: seen_bt.as_ref() }).unwrap();
        let theirs = expected.read(&name).unwrap();
        assert_eq!(ours.size(), theirs.size(), "{}", self.model.display());
        let at_tokens = |x: Tensor| match &seen_bt {
            Some(seen_bt) => x.where_self(&seen_bt.unsqueeze(-1), &Tensor::from(0f32)),
            None => x,
        };
        max_difference(&at_tokens(ours), &at_tokens(theirs)).unwrap()
    }
}

fn run_script<'p>(python: &Path, name: &str, words: impl IntoIterator<Item = &'p Path>) {
    let mut command = Command::new(python);
    command.env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1").env("TRANSFORMERS_VERBOSITY", "error");
    let output = command.arg(root().join("tests/interop").join(name)).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One Python process for all: importing `transformers` takes longer than everything else.
#[test]
fn models_and_their_pruned_students_give_the_outputs_of_transformers() {
    let Some(python) = python() else {
        eprintln!("absent, not tested: the Python of `make test`");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let mut comparisons = Vec::new();
    for model in models() {
        let name = model.file_name().unwrap().to_string_lossy().into_owned();
        let dir = work.path().join(&name);
        fs::create_dir(&dir).unwrap();
        let pruned = prune_everything(&model, &dir);
        let sharded = shard(&pruned, dir.join("sharded"));
        comparisons.push(Comparison::new(model.clone(), &dir, "filled"));
        comparisons.push(Comparison::new(model, &dir, "whole"));
        comparisons.push(Comparison::new(pruned, &dir, "pruned"));
        comparisons.push(Comparison::new(sharded, &dir, "sharded"));
    }
    let words = comparisons.iter().flat_map(|Comparison { model, ids, out }| [model, ids, out]);
    run_script(&python, "reference.py", [Path::new("logits")].into_iter().chain(words.map(PathBuf::as_path)));
    let differences: Vec<(f64, &Path)> = comparisons.iter().map(|c| (c.difference(), c.model.as_path())).collect();
    // A difference that is no number is no agreement either.
    let apart: Vec<_> =
        differences.iter().filter(|(difference, _)| difference.is_nan() || *difference > TOLERANCE).collect();
    assert!(apart.is_empty(), "{apart:#?}");
    let worst = differences.iter().map(|(difference, _)| *difference).fold(0.0, f64::max);
    println!("worst difference of outputs, live, {} folders: {worst:e}", differences.len());
}

/// Every `step`-th line of a file.
fn thinned(path: &Path, step: usize, out: PathBuf) -> PathBuf {
    let text = fs::read_to_string(path).unwrap();
    fs::write(&out, text.lines().step_by(step).collect::<Vec<_>>().join("\n")).unwrap();
    out
}

/// Vectors of unit length: absolute is relative.
const EMBEDDINGS: f64 = 1e-5;

#[test]
fn sentence_embeddings_and_their_neighbours_are_those_of_transformers() {
    let paths = ["models/all-MiniLM-L6-v2-f16", "eval/banking77_test.jsonl", "eval/banking77_train.jsonl"].map(shared);
    let (Some(python), [Some(model_dir), Some(items), Some(others)]) = (python(), paths) else {
        eprintln!("absent, not tested: the Python of `make test`, or the data");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let items = thinned(&items, 10, work.path().join("items.jsonl"));
    let others = thinned(&others, 10, work.path().join("reference.jsonl"));
    let out = work.path().join("out.safetensors");
    run_script(&python, "sentences.py", [&model_dir, &items, &others, &out].map(PathBuf::as_path));
    let expected = Reader::open_file(&out).unwrap();

    let (folder, model) = load(&model_dir).unwrap();
    let options = &folder.blueprint.options;
    let tokenizer = Tokenizer::load(&model_dir, &folder.checkpoint.config, options.vocab, options.causal).unwrap();
    let (cls, sep) = tokenizer.brackets.unwrap();
    for (name, path) in [("items", &items), ("reference", &others)] {
        let sentence = |line: &str| {
            let record: Value = serde_json::from_str(line).unwrap();
            [&[cls], tokenizer.encode(record["text"].as_str().unwrap()).unwrap().as_slice(), &[sep]].concat()
        };
        let sentences: Vec<Vec<u32>> = fs::read_to_string(path).unwrap().lines().map(sentence).collect();
        let modules = SentenceModules::of(&model, None).unwrap();
        let found = sentence_embeddings(&model, &sentences, &modules, 32, &Silent).unwrap();
        let difference = max_difference(&found, &expected.read(name).unwrap()).unwrap();
        assert!(found.size()[0] > 300 && difference <= EMBEDDINGS, "{name}: {difference:e}");
        println!("worst difference of {} embeddings of {name}: {difference:e}", sentences.len());
    }
    let file = |path: &Path| path.display().to_string();
    let spec = PluginSpec::bare("nearest_neighbour").with("path", file(&items)).with("reference", file(&others));
    let subject = Subject {
        model: &model,
        teacher: None,
        kept_hidden: None,
        windows: None,
        tokenizer: Some(&tokenizer),
        batch_size: 8,
        seed: 0,
        progress: &Silent,
    };
    let measured = registry().build::<dyn Evaluator>(&spec).unwrap().evaluate(&subject).unwrap();
    let accuracy = expected.read("accuracy").unwrap().double_value(&[0]);
    assert!((measured["accuracy"] - accuracy).abs() <= 1e-12, "{measured:?} {accuracy}");
    println!("accuracy over {} items: {accuracy}", measured["n_items"]);
}
