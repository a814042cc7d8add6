#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{
    Workspace, fixture, fixtures, forward, load, max_difference, python, registry, root,
    run_python, shared, some_ids, tiny_llama, with_context,
};
use minitron_core::checkpoint::{
    Checkpoint, Config, MemorySource, Reader, TensorSource, WriteOptions, write_model,
    write_tensors,
};
use minitron_core::contract::{Evaluator, LogitLoss, Subject};
use minitron_core::evaluate::{Sampling, SentenceModules, generate, sentence_embeddings};
use minitron_core::model::{Input, LoadOptions, Transformer};
use minitron_core::plan::Space;
use minitron_core::progress::Silent;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, ModelSpec, Sizes};
use minitron_core::windows::{Batch, Sample, Task, Tokenize};
use minitron_engine::data::Tokenizer;
use minitron_engine::jobs::{EvalOptions, PruneOptions, ScoreOptions, eval, prune, score};
use minitron_engine::train::{Counts, Objective, Term};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// f32 on both sides, summed in another order.
const TOLERANCE: f64 = 1e-4;

/// Fixtures of the golden script, and the real models beside the repository.
fn models() -> Vec<PathBuf> {
    // RoBERTa counts positions by ids, past those of padding, which random texts hold: `families`
    // compares it.
    let mut models = fixtures();
    models.retain(|dir| {
        !dir.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("roberta"))
    });
    assert!(models.len() > 15, "fixtures are missing");
    for name in [
        "stories260K",
        "capp-gpt",
        "all-MiniLM-L6-v2-f16",
        "prose-llama",
        "prose-nemotron",
    ] {
        models.extend(shared(&format!("models/{name}")));
    }
    models
}

/// About half of every axis, as far as the family can express it.
fn smaller_sizes(space: &Space) -> Sizes {
    let mut sizes = Sizes::new();
    for axis in space.axes.iter().filter(|axis| axis.kind != HIDDEN) {
        let near = axis.nearest((axis.full / 2).max(1));
        // A router takes so many experts.
        let is_legal = |size: &&usize| {
            let one = Sizes::from([(axis.kind.clone(), **size)]);
            space.complete(&one).is_ok()
        };
        let size = near.iter().find(is_legal).unwrap_or(&near[0]);
        sizes.insert(axis.kind.clone(), *size);
    }
    if let Some(queries) = space.ties.led(&|kind| kind == KV_HEADS).first() {
        // Half of the key/value heads, and half of the query heads of each that stays.
        let kv_heads = (space.axis(KV_HEADS).unwrap().full / 2).max(1);
        sizes.insert(KV_HEADS.to_owned(), kv_heads);
        sizes.insert(HEADS.to_owned(), kv_heads * (queries.size(1) / 2).max(1));
    }
    let (hidden, mut refused) = (space.axis(HIDDEN).unwrap(), String::new());
    if hidden.held.is_some() {
        return space.complete(&sizes).unwrap();
    }
    for size in hidden
        .legal()
        .into_iter()
        .rev()
        .filter(|&size| size < hidden.full)
    {
        let mut with_hidden = sizes.clone();
        with_hidden.insert(HIDDEN.to_owned(), size);
        match space.complete(&with_hidden) {
            Ok(complete) => return complete,
            Err(error) => refused = error.to_string(),
        }
    }
    panic!("no legal shape with a smaller hidden size: {refused}");
}

/// Scores a model on random tokens and prunes all its axes.
fn prune_everything(model: &Path, work: &Path) -> PathBuf {
    let (folder, _) = load(model).unwrap();
    let options = &folder.spec.options;
    let ids = some_ids(4, 12, options.vocab as i64, 5).unwrap();
    let tokens = work.join("ids.bin");
    let ids: Vec<i64> = Vec::try_from(ids.view([-1])).unwrap();
    fs::write(
        &tokens,
        ids.iter()
            .flat_map(|&id| (id as u16).to_le_bytes())
            .collect::<Vec<_>>(),
    )
    .unwrap();
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
        let space = Space::new(&folder.spec, &context.axes(&[]).unwrap()).unwrap();
        let sizes = smaller_sizes(&space);
        assert_eq!(sizes.len(), space.axes.len(), "{sizes:?}");
        let pruning = PruneOptions {
            model: scoring.model.clone(),
            scores: Some(scores.display().to_string()),
            hidden: sizes.get("hidden").copied(),
            mlp: sizes.get("mlp").copied(),
            heads: sizes.get("heads").copied(),
            kv_heads: sizes.get(KV_HEADS).copied(),
            layers: sizes.get("depth").copied(),
            size: sizes
                .clone()
                .into_iter()
                .filter(|(kind, _)| ![HIDDEN, MLP, HEADS, KV_HEADS, DEPTH].contains(&kind.as_str()))
                .collect(),
            ..PruneOptions::default()
        };
        prune(context, &pruning, &out, false).unwrap();
    });
    let pruned = Checkpoint::open(&out).unwrap();
    for param in &load(&out).unwrap().0.spec.params {
        // A student's layers are renamed, its types are not changed.
        let (was, is) = (
            folder.checkpoint.tensors.info(&param.name()),
            pruned.tensors.info(&param.name()),
        );
        // In a hybrid, there may have been a layer of another kind.
        let Some(was) = was else { continue };
        assert_eq!(
            was.dtype,
            is.unwrap().dtype,
            "{}: {}",
            model.display(),
            param.name()
        );
    }
    out
}

/// The same model in several files with an index.
fn shard(model: &Path, out: PathBuf) -> PathBuf {
    let opened = Checkpoint::open(model).unwrap();
    let n_bytes: u64 = opened
        .tensors
        .names()
        .iter()
        .filter_map(|name| opened.tensors.info(name)?.n_bytes())
        .sum();
    fs::create_dir(&out).unwrap();
    write_model(
        &out,
        &opened.config,
        &opened.tensors,
        Some(model),
        WriteOptions {
            max_shard_bytes: n_bytes / 3,
            ..WriteOptions::default()
        },
    )
    .unwrap();
    assert!(
        out.join("model.safetensors.index.json").is_file()
            && !out.join("model.safetensors").exists()
    );
    out
}

/// One comparison: a folder, and files for its input and for what `transformers` makes of it.
struct Comparison {
    model: PathBuf,
    ids: PathBuf,
    out: PathBuf,
}

/// Fixtures that a training step is compared on.
const STEPS: [&str; 2] = ["llama_tied", "gpt2_gelu_new"];

/// The second of two sequences is shorter by so much.
const N_FILLED: i64 = 7;

impl Comparison {
    fn new(model: PathBuf, work: &Path, name: &str) -> Self {
        let options = load(&model).unwrap().0.spec.options;
        let mut source = MemorySource::default();
        let n_tokens = options.max_positions.min(24) as i64;
        source
            .insert(
                "input_ids",
                &some_ids(2, n_tokens, options.vocab as i64, 7).unwrap(),
            )
            .unwrap();
        if name == "filled" {
            let attention_mask_bt = Tensor::ones([2, n_tokens], (Kind::Int64, Device::Cpu));
            let _ = attention_mask_bt
                .get(1)
                .narrow(0, n_tokens - N_FILLED, N_FILLED)
                .fill_(0);
            source.insert("attention_mask", &attention_mask_bt).unwrap();
        }
        let ids = work.join(format!("{name}.ids.safetensors"));
        write_tensors(&ids, &source).unwrap();
        Comparison {
            model,
            ids,
            out: work.join(format!("{name}.out.safetensors")),
        }
    }

    /// Largest difference between our outputs and those of `transformers`.
    fn difference(&self) -> f64 {
        let expected = Reader::open_file(&self.out).unwrap();
        let [name] = expected.names().try_into().unwrap();
        let (_, model) = load(&self.model).unwrap();
        assert_eq!(
            model.has_head(),
            name == "logits",
            "{}",
            self.model.display()
        );
        let input = Reader::open_file(&self.ids).unwrap();
        let ids_bt = input.read("input_ids").unwrap();
        let attention_mask_bt = input
            .read("attention_mask")
            .ok()
            .map(|attention_mask_bt| attention_mask_bt.to_kind(Kind::Bool));
        let ours = forward(
            &model,
            Input {
                ids_bt: &ids_bt,
                attention_mask_bt: attention_mask_bt.as_ref(),
                positions_bt: None,
            },
        )
        .unwrap();
        let theirs = expected.read(&name).unwrap();
        assert_eq!(ours.size(), theirs.size(), "{}", self.model.display());
        let at_tokens = |x: Tensor| match &attention_mask_bt {
            Some(attention_mask_bt) => {
                x.where_self(&attention_mask_bt.unsqueeze(-1), &Tensor::from(0f32))
            }
            None => x,
        };
        max_difference(&at_tokens(ours), &at_tokens(theirs)).unwrap()
    }
}

/// A training step of two passes of unequal lengths, the first padded, whose gradient
/// `transformers` takes too.
struct Gradient {
    model: PathBuf,
    passes: [Batch; 2],
    ids: PathBuf,
    out: PathBuf,
}

impl Gradient {
    fn new(name: &str, work: &Path) -> Self {
        let model = fixture(name);
        let vocab = load(&model).unwrap().0.spec.options.vocab as i64;
        let tokens: Vec<u32> = Vec::<i64>::try_from(some_ids(1, 33, vocab, 9).unwrap().view([-1]))
            .unwrap()
            .iter()
            .map(|&id| id as u32)
            .collect();
        let piece = |range: std::ops::Range<usize>| Sample {
            id: range.start as u64,
            tokens: tokens[range].to_vec(),
            marks: Vec::new(),
        };
        let batch = |pieces: &[Sample]| Task::NextToken.batch_of(pieces, 0, Device::Cpu).unwrap();
        let passes = [batch(&[piece(0..9), piece(9..13)]), batch(&[piece(13..33)])];
        let mut source = MemorySource::default();
        for (idx, targets) in passes.iter().enumerate() {
            let labels_bt = match &targets.attention_mask_bt {
                Some(attention_mask_bt) => targets
                    .ids_bt
                    .where_self(attention_mask_bt, &Tensor::from(-100i64)),
                None => targets.ids_bt.shallow_clone(),
            };
            source
                .insert(format!("ids.{idx}"), &targets.ids_bt)
                .unwrap();
            source.insert(format!("labels.{idx}"), &labels_bt).unwrap();
        }
        let [ids, out] =
            ["ids", "out"].map(|what| work.join(format!("{name}.gradient.{what}.safetensors")));
        write_tensors(&ids, &source).unwrap();
        Gradient {
            model,
            passes,
            ids,
            out,
        }
    }

    /// Largest difference of the gradient, relative to its largest number, and of the loss.
    fn difference(&self) -> f64 {
        let folder = load(&self.model).unwrap().0;
        let options = LoadOptions {
            trainable: true,
            ..LoadOptions::default()
        };
        let model = Transformer::load(&folder.checkpoint.tensors, &folder.spec, options).unwrap();
        let loss = registry()
            .build::<dyn LogitLoss>(&PluginSpec::bare("cross_entropy"))
            .unwrap();
        let terms = vec![Term {
            label: "cross_entropy".into(),
            weight: 1.0,
            loss: loss.into(),
        }];
        let objective = Objective {
            terms,
            ..Objective::default()
        };
        let whole: Counts = self
            .passes
            .iter()
            .map(|targets| Counts::of(targets).unwrap())
            .sum();
        assert_eq!(whole.predictions, 8 + 3 + 19);
        let step = self.passes.iter().map(|targets| {
            objective
                .backward(&model, None, targets, whole)
                .unwrap()
                .total
        });
        let (loss, expected) = (step.sum::<f64>(), Reader::open_file(&self.out).unwrap());
        let mut difference = (loss - expected.read("loss").unwrap().double_value(&[0])).abs();
        let (mut largest, mut n_compared) = (0.0_f64, 0);
        let mut apart = 0.0_f64;
        for parameter in model.parameters() {
            let Ok(theirs) = expected.read(&parameter.name) else {
                continue;
            };
            apart = apart.max(max_difference(&parameter.gradient().unwrap(), &theirs).unwrap());
            largest = largest.max(theirs.abs().max().double_value(&[]));
            n_compared += 1;
        }
        assert_eq!(
            n_compared,
            expected.names().len() - 1,
            "{}",
            self.model.display()
        );
        difference = difference.max(apart / largest);
        difference
    }
}

/// Their outputs, who is merged into whom, the alignment of neurons and the averages.
#[test]
fn merged_experts_are_those_of_pytorch() {
    if python().is_none() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    for name in ["qwen2_moe_shared", "mixtral_windowed", "gpt_oss_windowed"] {
        let (scoring, scores, inputs) = scored(work.path(), name, &fixture(name));
        for (sizes, of, router) in [
            (json!({ "experts": 2 }), "all", "kept"),
            (json!({ "experts": 3, "expert_mlp": 4 }), "routed", "mean"),
        ] {
            let out = work.path().join(format!("{name}-{of}"));
            let merge = format!("expert_merge:of={of},router={router}");
            write_student((&scoring, &scores), sizes, &[&merge], &out);
            let (of, router) = (Path::new(of), Path::new(router));
            run_script("experts.py", [&fixture(name), &inputs, &out, of, router]);
        }
    }
}

/// Options that a fixture was scored with, its scores, and the same text as PyTorch reads it.
fn scored(work: &Path, name: &str, model: &Path) -> (ScoreOptions, PathBuf, PathBuf) {
    let ids = some_ids(5, 12, 28, 5).unwrap();
    let (tokens, inputs) = (work.join("ids.bin"), work.join("ids"));
    let flat: Vec<i64> = Vec::try_from(ids.view([-1])).unwrap();
    let bytes: Vec<u8> = flat
        .iter()
        .flat_map(|&id| (id as u16).to_le_bytes())
        .collect();
    fs::write(&tokens, bytes).unwrap();
    let mut source = MemorySource::default();
    source.insert("input_ids", &ids).unwrap();
    write_tensors(&inputs, &source).unwrap();
    let scores = work.join(format!("{name}.safetensors"));
    let scoring = ScoreOptions {
        model: model.display().to_string(),
        data: vec![tokens.display().to_string().parse().unwrap()],
        seq_len: Some(12),
        ..ScoreOptions::default()
    };
    with_context(false, |context| score(context, &scoring, &scores)).unwrap();
    (scoring, scores, inputs)
}

/// A student of these sizes, repaired on the text that it was scored on.
fn write_student(
    (scoring, scores): (&ScoreOptions, &Path),
    sizes: Value,
    treatments: &[&str],
    out: &Path,
) {
    let mut options = PruneOptions {
        model: scoring.model.clone(),
        scores: Some(scores.display().to_string()),
        size: serde_json::from_value(sizes).unwrap(),
        ..PruneOptions::default()
    };
    let treatments = treatments.iter().map(|it| it.parse().unwrap());
    options.reconstruction.reconstruct = treatments.collect();
    options.reconstruction.data = scoring.data.clone();
    options.reconstruction.seq_len = scoring.seq_len;
    // The last batch is a short one.
    options.reconstruction.batch_size = 2;
    with_context(false, |context| prune(context, &options, out, false)).unwrap();
}

/// What units add, which are taken, and what reads and writes for them as refitted; behind one kept
/// layer one dropped one or two.
#[test]
fn merged_layers_are_those_of_pytorch() {
    if python().is_none() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    // Layers that change the stream little, as trained ones do.
    let quiet = |name: &str, tensor: Tensor| {
        let writes = ["o_proj.", "down_proj."].map(|part| name.contains(part));
        let factor = if writes.contains(&true) { 0.05 } else { 1.0 };
        Some((name.to_owned(), tensor * factor))
    };
    for (family, layers) in [
        ("llama_untied", 1),
        ("llama_untied", 2),
        ("llama_mha_biases", 1),
    ] {
        let work = work.path().join(format!("{family}-{layers}"));
        fs::create_dir(&work).unwrap();
        let teacher = changed(family, work.join("teacher"), |_| (), quiet);
        let (scoring, scores, inputs) = scored(&work, family, &teacher);
        let out = work.join("student");
        let ridge = Path::new("0.01");
        let treatments = ["layer_merge", "least_squares:ridge=0.01"];
        let sizes = json!({ "depth": layers });
        write_student((&scoring, &scores), sizes, &treatments, &out);
        run_script("layers.py", [&teacher, &inputs, &out, ridge]);
    }
}

/// The factor of all logits behind dropped layers: norms with and without biases, a gain that is
/// stored less one, heads that are tied, factors of their own and a cap.
#[test]
fn the_factor_of_logits_is_that_of_pytorch() {
    if python().is_none() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let sure = |name: &str, tensor: Tensor| {
        let writes = ["o_proj.", "down_proj.", "c_proj."].map(|part| name.contains(part));
        let factor = match name {
            "model.norm.weight" | "transformer.ln_f.weight" => 4.0,
            _ if writes.contains(&true) => 0.1,
            _ => 1.0,
        };
        Some((name.to_owned(), tensor * factor))
    };
    for family in [
        "llama_untied",
        "gpt2_gelu_new",
        "gemma2_tied",
        "granite_biased",
    ] {
        let work = work.path().join(family);
        fs::create_dir(&work).unwrap();
        let teacher = changed(family, work.join("teacher"), |_| (), sure);
        let (scoring, scores, inputs) = scored(&work, family, &teacher);
        let [plain, student] = ["none", "temperature_scaling:tokens=1000"].map(|treatment| {
            let out = work.join(&treatment[..4]);
            let sizes = json!({ "depth": 1 });
            write_student((&scoring, &scores), sizes, &[treatment], &out);
            out
        });
        let folders = [&teacher, &plain, &student, &inputs];
        run_script("temperature.py", folders.map(PathBuf::as_path));
    }
}

fn run_script<'p>(name: &str, words: impl IntoIterator<Item = &'p Path>) {
    let output = run_python(&root().join("tests/interop").join(name), words);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A fixture with another config and other names, types or files of its weights.
fn changed(
    name: &str,
    out: PathBuf,
    config: impl FnOnce(&mut Value),
    tensor: impl Fn(&str, Tensor) -> Option<(String, Tensor)>,
) -> PathBuf {
    let source = Checkpoint::open(&fixture(name)).unwrap();
    let mut object = source.config.to_value();
    config(&mut object);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), object.to_string()).unwrap();
    let mut tensors = MemorySource::default();
    for name in source.tensors.names() {
        if let Some((name, tensor)) = tensor(&name, source.tensors.read(&name).unwrap()) {
            tensors.insert(name, &tensor).unwrap();
        }
    }
    write_tensors(&out.join("model.safetensors"), &tensors).unwrap();
    out
}

/// Folders that differ by what should make no difference, or the one that `transformers` makes of
/// it.
fn odd_folders(work: &Path) -> Vec<PathBuf> {
    let at = |name: &str| work.join(format!("odd-{name}"));
    let as_is = |name: &str, tensor: Tensor| Some((name.to_owned(), tensor));
    let dynamic = json!({ "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0 });
    let old_dynamic = json!({ "type": "dynamic", "factor": 2.0 });
    let both = changed("llama_untied", at("both"), |_| (), as_is);
    let shards = changed(
        "llama_untied",
        at("shards"),
        |_| (),
        |name, tensor| Some((name.to_owned(), tensor + 1)),
    );
    fs::rename(
        shards.join("model.safetensors"),
        both.join("model-00001-of-00001.safetensors"),
    )
    .unwrap();
    let map: serde_json::Map<_, _> = Reader::open(&both)
        .unwrap()
        .names()
        .into_iter()
        .map(|name| (name, json!("model-00001-of-00001.safetensors")))
        .collect();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(both.join("model.safetensors.index.json"), index).unwrap();
    let bare = |name: &str, tensor| {
        Some((
            name.strip_prefix("model.").unwrap_or(name).to_owned(),
            tensor,
        ))
    };
    let head_alone = |name: &str, tensor| {
        let is_table = name == "model.embed_tokens.weight";
        Some((
            if is_table { "lm_head.weight" } else { name }.to_owned(),
            tensor,
        ))
    };
    vec![
        both,
        changed(
            "llama_untied",
            at("dynamic"),
            |config| config["rope_parameters"] = dynamic.clone(),
            as_is,
        ),
        changed(
            "nemotron_untied",
            at("old_dynamic"),
            |config| config["rope_scaling"] = old_dynamic,
            as_is,
        ),
        changed(
            "llama_untied",
            at("double"),
            |_| (),
            |name, t| Some((name.to_owned(), t.to_kind(Kind::Double))),
        ),
        changed("llama_untied", at("bare"), |_| (), bare),
        changed("llama_tied", at("head_alone"), |_| (), head_alone),
        changed(
            "llama_untied",
            at("multipliers"),
            |config| config["logits_scaling"] = json!(8.0),
            as_is,
        ),
    ]
}

/// Where a folder's two configs end a generation, as `transformers` has it.
struct Ended {
    model: PathBuf,
    ids: PathBuf,
    out: PathBuf,
}

const N_NEW: i64 = 12;

impl Ended {
    /// One folder for each way to state them; the ids are those that the model comes by.
    fn all(work: &Path) -> Vec<Ended> {
        let (_, model) = load(&fixture("llama_untied")).unwrap();
        let prompt = some_ids(1, 6, model.spec.options.vocab as i64, 3).unwrap();
        let ids: Vec<i64> = Vec::try_from(prompt.view([-1])).unwrap();
        let prompt_ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let sampling = Sampling {
            max_new_tokens: N_NEW as usize,
            ..Sampling::default()
        };
        let found = generate(&model, &[prompt_ids], &[], &sampling)
            .unwrap()
            .remove(0);
        let (early, late) = (found[2], found[7]);
        let cases = [
            (json!(early), None),
            (json!([late, early]), None),
            (json!(early), Some(json!(late))),
            (json!(early), Some(json!([late, early]))),
            (Value::Null, Some(json!([late]))),
        ];
        let ends = |(idx, (config_ends, generation)): (usize, (Value, Option<Value>))| {
            let set = |config: &mut Value| config["eos_token_id"] = config_ends.clone();
            let out = work.join(format!("ends-{idx}"));
            let model = changed("llama_untied", out, set, |name, tensor| {
                Some((name.to_owned(), tensor))
            });
            if let Some(ends) = generation {
                let config = json!({ "eos_token_id": ends }).to_string();
                fs::write(model.join("generation_config.json"), config).unwrap();
            }
            let mut source = MemorySource::default();
            source.insert("input_ids", &prompt).unwrap();
            source
                .insert("n_new", &Tensor::from_slice(&[N_NEW]))
                .unwrap();
            let (ids, out) = (model.join("ids"), model.join("out"));
            write_tensors(&ids, &source).unwrap();
            Ended { model, ids, out }
        };
        cases.into_iter().enumerate().map(ends).collect()
    }

    fn check(&self) {
        let (folder, model) = load(&self.model).unwrap();
        let vocab = folder.spec.options.vocab;
        let tokenizer =
            Tokenizer::load(&self.model, &folder.checkpoint.config, vocab, true).unwrap();
        let ids = Reader::open_file(&self.ids)
            .unwrap()
            .read("input_ids")
            .unwrap();
        let prompt: Vec<u32> = Vec::<i64>::try_from(ids.view([-1]))
            .unwrap()
            .iter()
            .map(|&id| id as u32)
            .collect();
        let sampling = Sampling {
            max_new_tokens: N_NEW as usize,
            ..Sampling::default()
        };
        let ours = generate(&model, &[prompt], tokenizer.ends(), &sampling)
            .unwrap()
            .remove(0);
        let theirs = Reader::open_file(&self.out)
            .unwrap()
            .read("continued")
            .unwrap();
        let theirs = Vec::<i64>::try_from(theirs).unwrap();
        // Theirs holds the token at which it ended.
        let is_end = |id: &i64| tokenizer.ends().contains(&(*id as u32));
        let theirs: Vec<u32> = theirs
            .iter()
            .take_while(|id| !is_end(id))
            .map(|&id| id as u32)
            .collect();
        assert_eq!(ours, theirs, "{}", self.model.display());
        assert!(
            ours.len() < N_NEW as usize,
            "{}: it never ended",
            self.model.display()
        );
    }
}

/// One Python process for all.
#[test]
fn models_and_their_pruned_students_give_the_outputs_of_transformers() {
    if python().is_none() {
        eprintln!("absent, not tested: the Python of `make test`");
        return;
    }
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
    let steps = STEPS.map(|name| Gradient::new(name, work.path()));
    for folder in odd_folders(work.path()) {
        let dir = folder.join("compared");
        fs::create_dir(&dir).unwrap();
        comparisons.push(Comparison::new(folder, &dir, "whole"));
    }
    let ended = Ended::all(work.path());
    let words = comparisons
        .iter()
        .flat_map(|Comparison { model, ids, out }| [model, ids, out]);
    let words = words.chain(steps.iter().flat_map(
        |Gradient {
             model, ids, out, ..
         }| [model, ids, out],
    ));
    let words = words.chain(
        ended
            .iter()
            .flat_map(|Ended { model, ids, out }| [model, ids, out]),
    );
    run_script(
        "reference.py",
        [Path::new("logits")]
            .into_iter()
            .chain(words.map(PathBuf::as_path)),
    );
    ended.iter().for_each(Ended::check);
    let differences: Vec<(f64, &Path)> = comparisons
        .iter()
        .map(|c| (c.difference(), c.model.as_path()))
        .collect();
    // A difference that is no number is no agreement either.
    let apart: Vec<_> = differences
        .iter()
        .filter(|(difference, _)| difference.is_nan() || *difference > TOLERANCE)
        .collect();
    assert!(apart.is_empty(), "{apart:#?}");
    let worst = differences
        .iter()
        .map(|(difference, _)| *difference)
        .fold(0.0, f64::max);
    for step in &steps {
        let difference = step.difference();
        assert!(
            difference <= TOLERANCE,
            "{}: gradient of two unequal passes: {difference:e}",
            step.model.display()
        );
        println!(
            "gradient of two unequal passes, {}: {difference:e}",
            step.model.display()
        );
    }
    println!(
        "worst difference of outputs, live, {} folders: {worst:e}",
        differences.len()
    );
}

/// Every `step`-th line of a file.
fn thinned(path: &Path, step: usize, out: PathBuf) -> PathBuf {
    let text = fs::read_to_string(path).unwrap();
    fs::write(
        &out,
        text.lines().step_by(step).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    out
}

/// Vectors of unit length: absolute is relative.
const EMBEDDINGS: f64 = 1e-5;

#[test]
fn sentence_embeddings_and_their_neighbours_are_those_of_transformers() {
    let paths = [
        "models/all-MiniLM-L6-v2-f16",
        "eval/banking77_test.jsonl",
        "eval/banking77_train.jsonl",
    ]
    .map(shared);
    let (Some(_), [Some(model_dir), Some(items), Some(others)]) = (python(), paths) else {
        eprintln!("absent, not tested: the Python of `make test`, or the data");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let items = thinned(&items, 20, work.path().join("items.jsonl"));
    let others = thinned(&others, 25, work.path().join("reference.jsonl"));
    let out = work.path().join("out.safetensors");
    run_script(
        "sentences.py",
        [&model_dir, &items, &others, &out].map(PathBuf::as_path),
    );
    let expected = Reader::open_file(&out).unwrap();

    let (folder, model) = load(&model_dir).unwrap();
    let options = &folder.spec.options;
    let tokenizer = Tokenizer::load(
        &model_dir,
        &folder.checkpoint.config,
        options.vocab,
        options.causal,
    )
    .unwrap();
    let (cls, sep) = tokenizer.special_tokens.unwrap();
    for (name, path) in [("items", &items), ("reference", &others)] {
        let sentence = |line: &str| {
            let record: Value = serde_json::from_str(line).unwrap();
            [
                &[cls],
                tokenizer
                    .encode(record["text"].as_str().unwrap())
                    .unwrap()
                    .as_slice(),
                &[sep],
            ]
            .concat()
        };
        let sentences: Vec<Vec<u32>> = fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(sentence)
            .collect();
        let modules = SentenceModules::of(&model, None).unwrap();
        let found = sentence_embeddings(&model, &sentences, &modules, 32, &Silent).unwrap();
        let difference = max_difference(&found, &expected.read(name).unwrap()).unwrap();
        assert!(
            found.size()[0] > 150 && difference <= EMBEDDINGS,
            "{name}: {difference:e}"
        );
        println!(
            "worst difference of {} embeddings of {name}: {difference:e}",
            sentences.len()
        );
    }
    let file = |path: &Path| path.display().to_string();
    let spec = PluginSpec::bare("nearest_neighbour")
        .with("path", file(&items))
        .with("reference", file(&others));
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
    let measured = registry()
        .build::<dyn Evaluator>(&spec)
        .unwrap()
        .evaluate(&subject)
        .unwrap();
    let accuracy = expected.read("accuracy").unwrap().double_value(&[0]);
    assert!(
        (measured["accuracy"] - accuracy).abs() <= 1e-12,
        "{measured:?} {accuracy}"
    );
    println!("accuracy over {} items: {accuracy}", measured["n_items"]);
}

/// Mean KL(teacher ‖ model) in nats by PyTorch's own operator, over as many ids as the smaller
/// table has; the last position of a window predicts nothing.
fn kl_of_torch(teacher: &Path, model: &Path) -> f64 {
    let logits = |path: &Path| {
        let logits_btv = Reader::open_file(path)
            .unwrap()
            .read("logits")
            .unwrap()
            .to_kind(Kind::Double);
        let (_, n_tokens, vocab) = logits_btv.size3().unwrap();
        logits_btv
            .narrow(1, 0, n_tokens - 1)
            .contiguous()
            .view([-1, vocab])
    };
    let (p_nv, q_nv) = (logits(teacher), logits(model));
    let n_shared = p_nv.size()[1].min(q_nv.size()[1]);
    let log_of = |x: &Tensor| x.narrow(1, 0, n_shared).log_softmax(-1, Kind::Double);
    let kl = log_of(&q_nv).kl_div(&log_of(&p_nv), tch::Reduction::Sum, true);
    kl.double_value(&[]) / p_nv.size()[0] as f64
}

#[test]
fn padded_vocabularies_are_compared_as_pytorch_compares_the_rows_that_both_have() {
    let (Some(python), Some(cases)) = (
        python(),
        root().join("../shared/cases/make.py").canonicalize().ok(),
    ) else {
        eprintln!("absent, not tested: the Python of `make test`, or cases/make.py");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let made = Command::new(&python)
        .arg(cases)
        .arg(work.path())
        .arg("c18")
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let at = |name: &str| work.path().join("c18").join(name);
    // As many rows as `narrow`, and other weights: between `wide` and `narrow` there is nothing to
    // measure.
    let mut config: Value =
        serde_json::from_slice(&fs::read(at("narrow/config.json")).unwrap()).unwrap();
    config["initializer_range"] = 0.3.into();
    minitron::write_tiny(&at("other"), &config, 5).unwrap();
    fs::copy(at("narrow/tokenizer.json"), at("other/tokenizer.json")).unwrap();
    let eval = |model: &str, teacher: &str| {
        let options = EvalOptions {
            model: at(model).display().to_string(),
            teacher: Some(at(teacher).display().to_string()),
            data: vec![at("text.txt").display().to_string().parse().unwrap()],
            seq_len: Some(32),
            ..EvalOptions::default()
        };
        let report = with_context(false, |context| eval(context, &options)).unwrap();
        (
            report["loss"].as_f64().unwrap(),
            report["kl_to_teacher"].as_f64().unwrap(),
        )
    };
    let expected: Value = serde_json::from_slice(&fs::read(at("expected.json")).unwrap()).unwrap();
    for (model, teacher) in [("narrow", "wide"), ("wide", "narrow")] {
        let (loss, kl) = eval(model, teacher);
        assert!(
            (loss - expected[model]["loss"].as_f64().unwrap()).abs() < 1e-4,
            "{model}: {loss} {expected}"
        );
        assert!(kl.abs() < 1e-7, "{model}: {kl}");
    }

    let (folder, _) = load(&at("narrow")).unwrap();
    let tokenizer = Tokenizer::load(&at("narrow"), &folder.checkpoint.config, 128, true).unwrap();
    let mut ids = tokenizer
        .encode(&fs::read_to_string(at("text.txt")).unwrap())
        .unwrap();
    ids.extend(tokenizer.eos());
    ids.truncate(ids.len() / 32 * 32);
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let mut source = MemorySource::default();
    source
        .insert("input_ids", &Tensor::from_slice(&ids).view([-1, 32]))
        .unwrap();
    write_tensors(&at("ids.safetensors"), &source).unwrap();
    let (wide, other) = (at("wide.out.safetensors"), at("other.out.safetensors"));
    let words = [
        &at("wide"),
        &at("ids.safetensors"),
        &wide,
        &at("other"),
        &at("ids.safetensors"),
        &other,
    ];
    run_script(
        "reference.py",
        [Path::new("logits")]
            .into_iter()
            .chain(words.map(PathBuf::as_path)),
    );
    for (model, teacher, expected) in [
        ("other", "wide", kl_of_torch(&wide, &other)),
        ("wide", "other", kl_of_torch(&other, &wide)),
    ] {
        let (_, kl) = eval(model, teacher);
        assert!(
            expected > 0.01 && (kl - expected).abs() < 1e-5 * expected,
            "{model}: {kl} {expected}"
        );
    }
}

/// A DeciLM as a Llama: MLPs as wide as the widest, parts that are not there as parts that add
/// nothing.
fn padded(student: &Path, llama: &Value, out: &Path) {
    let (folder, _) = load(student).unwrap();
    let config = Config::from_value(&out.join("config.json"), llama.clone()).unwrap();
    let whole = ModelSpec::from_config(&config, &registry()).unwrap();
    let mut source = MemorySource::default();
    for param in &whole.params {
        let shape: Vec<i64> = param
            .sides
            .iter()
            .map(|side| whole.len(side) as i64)
            .collect();
        let (name, own) = (param.name(), &folder.checkpoint.tensors);
        let tensor = match own.info(&name) {
            None if param.sides.len() == 1 => Tensor::ones(shape, (Kind::Float, Device::Cpu)),
            None => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
            Some(_) => {
                let tensor = own.read(&name).unwrap();
                let found = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
                let mut place = found.shallow_clone();
                for (side, len) in tensor.size().into_iter().enumerate() {
                    place = place.narrow(side as i64, 0, len);
                }
                place.copy_(&tensor);
                found
            }
        };
        source.insert(name, &tensor).unwrap();
    }
    let options = WriteOptions::default();
    write_model(out, &config, &source, None, options).unwrap();
}

#[test]
fn a_student_whose_layers_differ_computes_what_a_llama_with_zeros_does() {
    let files = Workspace::new().model("model", &tiny_llama(), 3);
    let kept = json!({
        "hidden": (0..24).collect::<Vec<_>>(), "heads.1": [], "mlp.2": [],
        "mlp.0": (8..48).collect::<Vec<_>>(), "mlp.1": [0, 1, 2, 5],
    });
    files.write("plan.json", json!({ "kept": kept }).to_string());
    let options = PruneOptions {
        model: files.path("model"),
        plan: Some(files.at("plan.json")),
        layers_apart: true,
        ..PruneOptions::default()
    };
    with_context(false, |context| {
        prune(context, &options, &files.at("student"), false).unwrap();
    });
    let mut llama = files.value("model/config.json");
    (llama["intermediate_size"], llama["hidden_size"]) = (json!(40), json!(24));
    fs::create_dir(files.at("padded")).unwrap();
    padded(&files.at("student"), &llama, &files.at("padded"));
    let ids_bt = some_ids(2, 20, 512, 5).unwrap();
    let (_, student) = load(&files.at("student")).unwrap();
    let ours = forward(&student, &ids_bt).unwrap();
    let (_, whole) = load(&files.at("padded")).unwrap();
    let difference = max_difference(&ours, &forward(&whole, &ids_bt).unwrap()).unwrap();
    assert!(difference <= 1e-5, "{difference:e}");
    if python().is_none() {
        return;
    }
    let mut source = MemorySource::default();
    source.insert("input_ids", &ids_bt).unwrap();
    write_tensors(&files.at("ids.safetensors"), &source).unwrap();
    let words = ["padded", "ids.safetensors", "out.safetensors"].map(|name| files.at(name));
    let all = [Path::new("logits")].into_iter();
    run_script(
        "reference.py",
        all.chain(words.iter().map(PathBuf::as_path)),
    );
    let theirs = Reader::open_file(&words[2])
        .unwrap()
        .read("logits")
        .unwrap();
    let difference = max_difference(&ours, &theirs).unwrap();
    assert!(difference <= TOLERANCE, "{difference:e}");
}
