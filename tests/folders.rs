#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{
    add_demo_tokenizer, alike, config, families, forward, load, max_difference, python, registry,
    root, some_ids, tiny_gpt2, tiny_llama, tiny_nemotron, with_context, with_demo_vocabulary,
    write_tiny,
};
use minitron_core::checkpoint::{MemorySource, Reader, TensorSource, write_tensors};
use minitron_core::plan::Count;
use minitron_core::spec::{ModelFolder, ModelSpec};
use minitron_core::windows::Tokenize;
use minitron_engine::data::Tokenizer;
use minitron_engine::jobs::{
    EvalOptions, GenerateOptions, InspectOptions, PruneOptions, ScoreOptions, TrainOptions,
    TrainingOptions, eval, generate, inspect, prune, score, train,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tempfile::TempDir;

/// A model folder that a test changes.
struct Folder {
    root: TempDir,
}

impl Folder {
    fn new(config: &Value) -> Self {
        let folder = Folder {
            root: tempfile::tempdir().unwrap(),
        };
        write_tiny(&folder.dir(), config, 3).unwrap();
        folder
    }

    /// With a tokenizer, and a text beside it.
    fn with_text(config: &Value) -> Self {
        let folder = Self::new(&with_demo_vocabulary(config.clone()));
        add_demo_tokenizer(&folder.dir()).unwrap();
        fs::write(folder.beside("text.txt"), minitron::some_text()).unwrap();
        folder
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("model")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn model(&self) -> String {
        self.dir().display().to_string()
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let mut config: Value =
            serde_json::from_slice(&fs::read(self.at("config.json")).unwrap()).unwrap();
        change(&mut config);
        fs::write(self.at("config.json"), config.to_string()).unwrap();
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let reader = Reader::open(&self.dir()).unwrap();
        reader
            .names()
            .into_iter()
            .map(|name| (name.clone(), reader.read(&name).unwrap()))
            .collect()
    }

    fn write(&self, file: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        let mut source = MemorySource::default();
        tensors
            .into_iter()
            .for_each(|(name, tensor)| source.insert(name, &tensor).unwrap());
        write_tensors(&self.at(file), &source).unwrap();
    }

    fn rename(&self, change: impl Fn(&str) -> String) {
        let tensors = self.tensors();
        self.write(
            "model.safetensors",
            tensors
                .into_iter()
                .map(|(name, tensor)| (change(&name), tensor)),
        );
    }

    /// Adds tensors of other types than any that is written.
    fn write_raw(&self, tensors: &[(&str, &str, &[usize], usize)]) {
        let (mut header, mut n_bytes) = (serde_json::Map::new(), 0);
        for (name, dtype, shape, len) in tensors {
            header.insert(
                (*name).into(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [n_bytes, n_bytes + len]}),
            );
            n_bytes += len;
        }
        let text = serde_json::to_vec(&header).unwrap();
        let bytes = [
            &(text.len() as u64).to_le_bytes()[..],
            &text,
            &vec![0; n_bytes],
        ]
        .concat();
        fs::write(self.at("model.safetensors"), bytes).unwrap();
    }

    fn open(&self) -> minitron_core::error::Result<ModelFolder> {
        ModelFolder::open(&self.dir(), &registry())
    }

    fn warnings(&self) -> Vec<String> {
        self.open().unwrap().checkpoint.remarks.warnings
    }

    fn refusal(&self) -> String {
        let error = self.open().unwrap_err();
        assert_eq!(error.kind(), "checkpoint", "{error}");
        error.to_string()
    }

    fn outputs(&self) -> Tensor {
        let (_, model) = load(&self.dir()).unwrap();
        forward(&model, &some_ids(2, 12, 61, 5).unwrap()).unwrap()
    }

    /// Whether the model is another's, as far as outputs show.
    fn is_as(&self, expected: &Tensor) -> bool {
        max_difference(&self.outputs(), expected).unwrap() == 0.0
    }

    /// Prunes to a third of the layers less, by a plan, which needs no scores.
    fn pruned(&self) -> PathBuf {
        let (plan, out) = (self.beside("plan.json"), self.beside("student"));
        fs::write(&plan, json!({ "kept": { "depth": [0, 2] } }).to_string()).unwrap();
        let options = PruneOptions {
            model: self.model(),
            plan: Some(plan),
            ..PruneOptions::default()
        };
        with_context(true, |context| prune(context, &options, &out, false)).unwrap();
        out
    }

    fn score_options(&self, metric: &str) -> ScoreOptions {
        ScoreOptions {
            model: self.model(),
            data: vec![
                self.beside("text.txt")
                    .display()
                    .to_string()
                    .parse()
                    .unwrap(),
            ],
            metrics: vec![metric.parse().unwrap()],
            samples: 2,
            seq_len: Some(16),
            ..ScoreOptions::default()
        }
    }

    /// What commands say that run the model.
    fn refusals_to_run(&self) -> Vec<String> {
        let data = || {
            vec![
                self.beside("text.txt")
                    .display()
                    .to_string()
                    .parse()
                    .unwrap(),
            ]
        };
        let evaluating = EvalOptions {
            model: self.model(),
            data: data(),
            seq_len: Some(16),
            ..EvalOptions::default()
        };
        let generating = GenerateOptions {
            model: self.model(),
            prompt: "One".into(),
            ..GenerateOptions::default()
        };
        let training = TrainingOptions {
            data: data(),
            tokens: Count(64),
            seq_len: Some(16),
            batch_size: 2,
            ..TrainingOptions::default()
        };
        let training = TrainOptions {
            model: Some(self.model()),
            training,
            ..TrainOptions::default()
        };
        with_context(true, |context| {
            let (out, scores) = (self.beside("trained"), self.beside("run.safetensors"));
            let results = [
                eval(context, &evaluating),
                generate(context, &generating),
                train(context, &training, &out, false),
                score(context, &self.score_options("activation"), &scores),
                score(
                    context,
                    &ScoreOptions {
                        stream: true,
                        ..self.score_options("activation")
                    },
                    &scores,
                ),
            ];
            let refusals = results
                .into_iter()
                .map(|result| result.unwrap_err().to_string())
                .collect();
            let left: Vec<_> = fs::read_dir(self.root.path())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            assert_eq!(left.len(), 2, "{left:?}");
            refusals
        })
    }
}

fn assert_said(said: &[String], words: &[&str]) {
    assert!(
        said.iter()
            .any(|said| words.iter().all(|word| said.contains(word))),
        "expected {words:?} in {said:?}"
    );
}

/// A name without its layer's number.
fn unnumbered(name: &str) -> String {
    let segments = name
        .split('.')
        .filter(|segment| segment.parse::<usize>().is_err());
    segments.collect::<Vec<_>>().join(".")
}

// --- names
// -----------------------------------------------------------------------------------------------------------

#[test]
fn a_constant_prefix_is_read_away_and_named_in_every_family() {
    for config in alike() {
        let folder = Folder::new(&config);
        let (plain, outputs) = (folder.tensors(), folder.outputs());
        let prefixes = [
            "module.",
            "_orig_mod.",
            "_orig_mod.module.",
            "module._orig_mod.",
            "net.",
            "a.b.module.",
        ];
        for prefix in prefixes
            .into_iter()
            .chain(["model.model.", "_fsdp_wrapped_module."])
        {
            folder.write(
                "model.safetensors",
                plain
                    .iter()
                    .map(|(name, t)| (format!("{prefix}{name}"), t.shallow_clone())),
            );
            let place = format!("{prefix} {}", config["model_type"]);
            assert!(folder.is_as(&outputs), "{place}");
            let opened = folder.open().unwrap();
            let said = prefix
                .split('.')
                .find(|segment| !segment.is_empty())
                .unwrap();
            assert_said(
                &opened.checkpoint.remarks.warnings,
                &["names", said, "read away"],
            );
            assert!(
                opened.unknown_tensors.is_empty(),
                "{place}: {:?}",
                opened.unknown_tensors
            );
            let student = Reader::open(&folder.pruned()).unwrap();
            // Layers move up, in hybrids to where others of another kind were.
            let known: BTreeSet<String> = plain.keys().map(|name| unnumbered(name)).collect();
            let mut names = student.names().into_iter();
            let unknown = names.find(|name| !known.contains(&unnumbered(name)));
            assert_eq!(unknown, None, "{place}");
        }
        // Wrapped inside, as layers that are compiled or recomputed one by one are.
        folder.write(
            "model.safetensors",
            plain.iter().map(|(name, t)| {
                (
                    name.replace(".0.", ".0._orig_mod.")
                        .replace(".1.", ".1._checkpoint_wrapped_module."),
                    t.shallow_clone(),
                )
            }),
        );
        assert!(folder.is_as(&outputs), "{}", config["model_type"]);
    }
}

#[test]
fn a_base_models_names_get_the_familys_prefix() {
    for mut config in [tiny_llama(), tiny_nemotron(), tiny_gpt2()] {
        config["tie_word_embeddings"] = json!(true);
        let folder = Folder::new(&config);
        let (plain, outputs) = (folder.tensors(), folder.outputs());
        let own = plain
            .keys()
            .next()
            .unwrap()
            .split('.')
            .next()
            .unwrap()
            .to_owned();
        for wrapper in ["", "module.", "_orig_mod."] {
            folder.write(
                "model.safetensors",
                plain.iter().map(|(name, t)| {
                    (
                        name.replacen(&format!("{own}."), wrapper, 1),
                        t.shallow_clone(),
                    )
                }),
            );
            assert!(folder.is_as(&outputs), "{wrapper} {own}");
            if own == "model" {
                assert_said(&folder.warnings(), &["names lack `model.`"]);
                let student = Reader::open(&folder.pruned()).unwrap();
                assert!(
                    student.names().iter().all(|name| plain.contains_key(name)),
                    "{:?}",
                    student.names()
                );
            }
        }
    }
    // With a head of its own, which never has the prefix.
    let folder = Folder::new(&tiny_llama());
    let outputs = folder.outputs();
    folder.rename(|name| name.trim_start_matches("model.").to_owned());
    assert!(folder.is_as(&outputs));
}

#[test]
fn two_names_never_become_one() {
    let folder = Folder::new(&tiny_llama());
    let outputs = folder.outputs();
    let mut tensors = folder.tensors();
    let norm = tensors["model.norm.weight"].shallow_clone();
    tensors.insert("module.model.norm.weight".into(), &norm + 1);
    folder.write("model.safetensors", tensors);
    assert!(folder.is_as(&outputs));
    assert_eq!(
        folder.open().unwrap().unknown_tensors,
        ["module.model.norm.weight"]
    );
}

#[test]
fn a_tied_file_may_hold_the_head_alone() {
    for (mut config, head) in [
        (tiny_llama(), "lm_head.weight"),
        (tiny_gpt2(), "lm_head.weight"),
    ] {
        config["tie_word_embeddings"] = json!(true);
        let folder = Folder::new(&config);
        let outputs = folder.outputs();
        let is_table =
            |name: &str| name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight");
        folder.rename(|name| {
            if is_table(name) {
                head.to_owned()
            } else {
                name.to_owned()
            }
        });
        assert!(folder.is_as(&outputs));
        assert_said(
            &folder.warnings(),
            &["`lm_head.weight` is read for the tied"],
        );
        let student = Reader::open(&folder.pruned()).unwrap();
        assert!(
            student.names().iter().any(|name| is_table(name))
                && !student.names().contains(&head.to_owned())
        );
    }
}

#[test]
fn a_model_without_the_head_that_it_unties_is_refused_by_that_name() {
    for prefix in ["model.", ""] {
        let folder = Folder::new(&tiny_llama());
        let tensors = folder
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != "lm_head.weight");
        folder.write(
            "model.safetensors",
            tensors.map(|(name, t)| (name.replacen("model.", prefix, 1), t)),
        );
        let refusal = folder.refusal();
        for words in [
            "`lm_head.weight` is missing",
            "without its head",
            "tie_word_embeddings",
        ] {
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}

#[test]
fn weights_of_double_precision_are_read() {
    let folder = Folder::with_text(&tiny_llama());
    let outputs = folder.outputs();
    let tensors = folder.tensors();
    folder.write(
        "model.safetensors",
        tensors
            .into_iter()
            .map(|(name, t)| (name, t.to_kind(Kind::Double))),
    );
    assert!(folder.is_as(&outputs));
    for metric in ["magnitude", "activation"] {
        let scores = folder.beside("scores.safetensors");
        with_context(true, |context| {
            score(context, &folder.score_options(metric), &scores)
        })
        .unwrap();
    }
    // Copied, so as they are.
    let student = Reader::open(&folder.pruned()).unwrap();
    assert_eq!(
        student.read("model.norm.weight").unwrap().kind(),
        Kind::Double
    );
}

// --- rope
// ------------------------------------------------------------------------------------------------------------

#[test]
fn dynamic_scaling_is_plain_within_the_positions_and_carried_as_it_is() {
    for base in [tiny_llama(), tiny_nemotron()] {
        let outputs = Folder::new(&base).outputs();
        for (key, scaling) in [
            ("rope_scaling", json!({ "type": "dynamic", "factor": 4.0 })),
            (
                "rope_parameters",
                json!({ "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0 }),
            ),
        ] {
            let mut config = base.clone();
            config[key] = scaling.clone();
            let folder = Folder::new(&config);
            assert!(folder.is_as(&outputs));
            let student = fs::read(folder.pruned().join("config.json")).unwrap();
            assert_eq!(
                serde_json::from_slice::<Value>(&student).unwrap()[key],
                scaling
            );
            let (_, model) = load(&folder.dir()).unwrap();
            // Beyond them, angles stretch up to as many times the positions as the factor says.
            assert!(forward(&model, &some_ids(1, 65, 61, 1).unwrap()).is_ok());
            let error = forward(&model, &some_ids(1, 257, 61, 1).unwrap())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("257 tokens") && error.contains("256 positions"),
                "{error}"
            );
        }
    }
}

#[test]
fn what_is_not_computed_is_refused_where_the_model_is_run_alone() {
    let cases = [
        (
            "rope_scaling",
            json!({ "rope_type": "helix", "factor": 4.0 }),
            "`helix` are not computed",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "spiral", "rope_theta": 5.0 }),
            "`spiral` are not computed",
        ),
        (
            "rope_parameters",
            json!({ "full_attention": { "rope_theta": 5.0 } }),
            "`rope_parameters.full_attention`",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "`partial_rotary_factor`: expected 1 in this family",
        ),
        (
            "is_causal",
            json!(false),
            "`is_causal`: expected true, got false",
        ),
        (
            "hidden_act",
            json!("tanhshrink"),
            "`hidden_act`: no activation function is called `tanhshrink`; known: silu",
        ),
    ];
    for (key, value, says) in cases {
        let mut config = tiny_llama();
        config[key] = value.clone();
        let folder = Folder::with_text(&config);
        for refusal in folder.refusals_to_run() {
            assert!(
                refusal.starts_with("checkpoint: ") && refusal.contains(says),
                "{key}: {refusal}"
            );
        }
        // What turns nothing works, and hands the key on.
        let scores = folder.beside("scores.safetensors");
        let inspecting = InspectOptions {
            forecast: Default::default(),
            model: folder.model(),
            seq_len: None,
            batch_size: 1,
        };
        with_context(true, |context| {
            score(context, &folder.score_options("magnitude"), &scores).unwrap();
            inspect(context, &inspecting).unwrap();
            let options = PruneOptions {
                model: folder.model(),
                scores: Some(scores.display().to_string()),
                mlp: Some(24),
                ..PruneOptions::default()
            };
            prune(context, &options, &folder.beside("student"), false).unwrap();
        });
        let student = fs::read(folder.beside("student/config.json")).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&student).unwrap()[key],
            value
        );
    }
}

#[test]
fn positions_of_the_first_training_beside_the_scaling_go_first() {
    let scaling = |original: Option<u64>| {
        let mut scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0});
        if let Some(original) = original {
            scaling["original_max_position_embeddings"] = json!(original);
        }
        scaling
    };
    let outputs = |beside: Option<u64>, inside: Option<u64>| {
        let mut config = tiny_llama();
        config["rope_scaling"] = scaling(inside);
        if let Some(beside) = beside {
            config["original_max_position_embeddings"] = json!(beside);
        }
        Folder::new(&config).outputs()
    };
    let expected = outputs(None, Some(16));
    assert_eq!(
        max_difference(&outputs(Some(16), Some(48)), &expected).unwrap(),
        0.0
    );
    assert!(max_difference(&outputs(None, Some(48)), &expected).unwrap() > 1e-3);
}

// --- keys of the files
// -----------------------------------------------------------------------------------------------

#[test]
fn keys_that_describe_the_sources_files_are_said_and_not_written() {
    let mut config = tiny_llama();
    config["quantization_config"] = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
    config["auto_map"] = json!({ "AutoModelForCausalLM": "modeling_x.X" });
    config["transformers.js_config"] = json!({ "dtype": "q4" });
    config["pretraining_tp"] = json!(2);
    config["dtype"] = json!("float32");
    let folder = Folder::with_text(&config);
    let opened = folder.open().unwrap();
    for key in ["quantization_config", "auto_map"] {
        assert_said(
            &opened.checkpoint.remarks.warnings,
            &[&format!("`{key}` is left out of what is written")],
        );
    }
    let training = |folder: &Folder| TrainingOptions {
        data: vec![
            folder
                .beside("text.txt")
                .display()
                .to_string()
                .parse()
                .unwrap(),
        ],
        tokens: Count(64),
        seq_len: Some(16),
        batch_size: 2,
        ..TrainingOptions::default()
    };
    let (trained, fresh) = (folder.beside("trained"), folder.beside("fresh"));
    folder.config(|config| config["dtype"] = json!("bfloat16"));
    with_context(true, |context| {
        let options = TrainOptions {
            model: Some(folder.model()),
            training: training(&folder),
            ..TrainOptions::default()
        };
        train(context, &options, &trained, false).unwrap();
        let config = Some(folder.at("config.json"));
        let options = TrainOptions {
            config,
            training: training(&folder),
            ..TrainOptions::default()
        };
        train(context, &options, &fresh, false).unwrap();
    });
    for out in [folder.pruned(), trained, fresh.clone()] {
        let config: Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        for key in ["quantization_config", "auto_map", "transformers.js_config"] {
            assert!(config.get(key).is_none(), "{}: {key}", out.display());
        }
        assert_eq!(config["pretraining_tp"], 1);
        // Fresh weights are f32 whatever the config says; others stay what they were.
        assert_eq!(
            config["dtype"],
            if out == fresh { "float32" } else { "bfloat16" }
        );
    }
}

/// A format, words of the way back, and its tensors for one weight: ending, type, bytes.
type QuantisedAs<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str, usize)]);

#[test]
fn weights_that_are_codes_are_refused_by_the_name_of_their_format() {
    let at = "model.layers.0.self_attn.q_proj";
    let formats: [QuantisedAs; 9] = [
        (
            "bitsandbytes, 4 bits",
            "dequantize()",
            &[("weight", "U8", 512), ("weight.absmax", "U8", 16)],
        ),
        (
            "bitsandbytes, 8 bits",
            "dequantize()",
            &[("weight", "I8", 1024), ("SCB", "F32", 128)],
        ),
        (
            "GPTQ or AWQ",
            "quantised from",
            &[
                ("qweight", "I32", 512),
                ("qzeros", "I32", 64),
                ("scales", "F16", 64),
            ],
        ),
        (
            "compressed-tensors",
            "CompressedTensorsConfig",
            &[("weight_packed", "I32", 128), ("weight_scale", "BF16", 64)],
        ),
        (
            "fp8 with scales a block",
            "FineGrainedFP8Config",
            &[("weight", "F8_E4M3", 1024), ("weight_scale_inv", "F32", 4)],
        ),
        (
            "fp8 or int8 with scales",
            "quantised from",
            &[("weight", "F8_E4M3", 1024), ("weight_scale", "F32", 4)],
        ),
        (
            "fp8: tensor",
            "quantised from",
            &[("weight", "F8_E5M2", 1024)],
        ),
        (
            "MLX",
            "mlx_lm",
            &[
                ("weight", "U32", 512),
                ("scales", "F16", 64),
                ("biases", "F16", 64),
            ],
        ),
        ("HQQ", "quantised from", &[("W_q", "U8", 512)]),
    ];
    for (name, way, marks) in formats {
        let folder = Folder::new(&tiny_llama());
        let tensors = folder.tensors();
        let mut raw: Vec<(String, &str, Vec<usize>, usize)> = tensors
            .iter()
            .filter(|(tensor, _)| **tensor != format!("{at}.weight"))
            .map(|(name, t)| {
                (
                    name.clone(),
                    "F32",
                    t.size().iter().map(|&n| n as usize).collect(),
                    4 * t.numel(),
                )
            })
            .collect();
        for &(mark, dtype, n_bytes) in marks {
            let width = match dtype {
                "I32" | "F32" | "U32" => 4,
                "F16" | "BF16" => 2,
                _ => 1,
            };
            let shape = if n_bytes == 1024 {
                vec![32, 32]
            } else {
                vec![n_bytes / width]
            };
            raw.push((format!("{at}.{mark}"), dtype, shape, n_bytes));
        }
        let raw: Vec<_> = raw
            .iter()
            .map(|(name, dtype, shape, n)| (name.as_str(), *dtype, shape.as_slice(), *n))
            .collect();
        folder.write_raw(&raw);
        let refusal = folder.refusal();
        assert!(
            refusal.contains(&format!("the weights are quantised ({name}"))
                && refusal.contains(way),
            "{refusal}"
        );
    }
}

// --- which weights
// ---------------------------------------------------------------------------------------------------

/// Two shards, with an index of both.
fn shard(folder: &Folder) -> (BTreeMap<String, Tensor>, Value) {
    let tensors = folder.tensors();
    let (first, second) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    let (mut parts, mut map) = ([Vec::new(), Vec::new()], serde_json::Map::new());
    for (idx, (name, tensor)) in tensors.iter().enumerate() {
        let part = usize::from(idx >= tensors.len() / 2);
        parts[part].push((name.clone(), tensor.shallow_clone()));
        map.insert(name.clone(), json!([first, second][part]));
    }
    fs::remove_file(folder.at("model.safetensors")).unwrap();
    let [one, two] = parts;
    folder.write(first, one);
    folder.write(second, two);
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.at("model.safetensors.index.json"), index.to_string()).unwrap();
    (tensors, index)
}

#[test]
fn of_two_sets_of_weights_the_single_file_is_read_and_both_are_named() {
    let folder = Folder::new(&tiny_llama());
    let outputs = folder.outputs();
    let (tensors, _) = shard(&folder);
    assert!(folder.is_as(&outputs) && folder.warnings().is_empty());
    folder.write(
        "model.safetensors",
        tensors.iter().map(|(name, t)| (name.clone(), t + 1)),
    );
    assert!(!folder.is_as(&outputs));
    assert_said(
        &folder.warnings(),
        &["model.safetensors and model.safetensors.index.json are both there"],
    );
    // The file that the config names goes before both.
    folder.write("chosen.safetensors", tensors);
    folder.config(|config| config["transformers_weights"] = json!("chosen.safetensors"));
    assert!(folder.is_as(&outputs));
    let student: Value =
        serde_json::from_slice(&fs::read(folder.pruned().join("config.json")).unwrap()).unwrap();
    assert!(student.get("transformers_weights").is_none());
    for outside in ["../x.safetensors", "absent.safetensors", "config.json"] {
        folder.config(|config| config["transformers_weights"] = json!(outside));
        assert!(folder.refusal().contains("`transformers_weights`"));
    }
}

#[test]
fn what_shards_hold_is_read_whatever_a_stale_index_says_of_it() {
    let folder = Folder::new(&tiny_llama());
    let outputs = folder.outputs();
    let (tensors, index) = shard(&folder);
    let save = |index: &Value| {
        fs::write(folder.at("model.safetensors.index.json"), index.to_string()).unwrap()
    };
    // Left out of the index.
    let mut partial = index.clone();
    let map = partial["weight_map"].as_object_mut().unwrap();
    map.remove("model.norm.weight");
    map.remove("lm_head.weight");
    save(&partial);
    assert!(folder.is_as(&outputs));
    assert_said(
        &folder.warnings(),
        &["2 tensors in its shards are not in it and are read, `lm_head.weight` first"],
    );
    // In another shard than it says.
    let mut stale = index.clone();
    stale["weight_map"]["lm_head.weight"] = json!("model-00002-of-00002.safetensors");
    save(&stale);
    assert!(folder.is_as(&outputs));
    assert_said(
        &folder.warnings(),
        &["`lm_head.weight` is read from model-00001-of-00002.safetensors, not from"],
    );
    // In two shards: the later one is read.
    let head = &tensors["lm_head.weight"] + 1;
    let late = tensors
        .iter()
        .skip(tensors.len() / 2)
        .map(|(name, t)| (name.clone(), t.shallow_clone()));
    folder.write(
        "model-00002-of-00002.safetensors",
        late.chain([("lm_head.weight".to_owned(), head)]),
    );
    save(&index);
    assert!(!folder.is_as(&outputs));
    assert_said(
        &folder.warnings(),
        &["`lm_head.weight` is read from model-00002-of-00002.safetensors, not from"],
    );
    // A shard that it does not name.
    let mut short = index;
    let map = short["weight_map"].as_object_mut().unwrap();
    map.retain(|_, shard| shard == "model-00001-of-00002.safetensors");
    save(&short);
    let refusal = folder.refusal();
    assert!(
        refusal.contains("is missing") && refusal.contains("model-00002-of-00002.safetensors"),
        "{refusal}"
    );
}

#[test]
fn an_adapter_is_never_taken_for_the_model() {
    let folder = Folder::new(&tiny_llama());
    let outputs = folder.outputs();
    let adapter = json!({ "peft_type": "LORA", "base_model_name_or_path": "some/base" });
    fs::write(folder.at("adapter_config.json"), adapter.to_string()).unwrap();
    fs::copy(
        folder.at("model.safetensors"),
        folder.at("adapter_model.safetensors"),
    )
    .unwrap();
    assert!(folder.is_as(&outputs));
    assert_said(
        &folder.warnings(),
        &[
            "an adapter lies beside the weights and is not applied",
            "merge_and_unload()",
        ],
    );
    for file in ["model.safetensors", "config.json"] {
        fs::remove_file(folder.at(file)).unwrap();
        let refusal = folder.refusal();
        assert!(
            refusal.contains("an adapter of some/base lies there"),
            "{refusal}"
        );
        assert!(
            refusal.contains("merge_and_unload().save_pretrained("),
            "{refusal}"
        );
    }
}

#[test]
fn weights_that_are_not_read_are_named_with_the_way_to_make_them_so() {
    let cases = [
        (
            "pytorch_model.bin",
            "LlamaForCausalLM as M; M.from_pretrained('",
        ),
        ("pytorch_model.bin.index.json", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        (
            "model-00001-of-00002.safetensors",
            "fetch or copy model.safetensors.index.json",
        ),
        ("model.fp16.safetensors", "rename the file"),
        ("consolidated.safetensors", "their author's own layout"),
        ("consolidated.00.pth", "their author's own layout"),
        ("x-Q4_K_M.gguf", "gguf_file='x-Q4_K_M.gguf'"),
        ("zero_to_fp32.py", "python zero_to_fp32.py . ."),
        ("__0_0.distcp", "accelerate merge-weights"),
        ("tf_model.h5", "TensorFlow"),
        ("model.onnx", "ONNX"),
    ];
    for (name, says) in cases {
        let folder = Folder::new(&tiny_llama());
        fs::write(folder.at(name), "").unwrap();
        // Beside the weights they change nothing.
        assert!(
            folder.warnings().is_empty(),
            "{name}: {:?}",
            folder.warnings()
        );
        fs::remove_file(folder.at("model.safetensors")).unwrap();
        let refusal = folder.refusal();
        assert!(
            refusal.contains(&format!("{name} lies there, ")) && refusal.contains(says),
            "{name}: {refusal}"
        );
    }
    let outer = tempfile::tempdir().unwrap();
    write_tiny(&outer.path().join("checkpoint-500"), &tiny_llama(), 1).unwrap();
    let error = ModelFolder::open(outer.path(), &registry())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("checkpoint-500 has one: give that folder"),
        "{error}"
    );
}

// --- what another tool would read
// ------------------------------------------------------------------------------------

#[test]
fn keys_of_other_families_are_said_once_and_change_nothing() {
    let outputs = Folder::new(&tiny_llama()).outputs();
    for (key, value) in [
        ("rotary_pct", json!(0.25)),
        ("attn_logit_softcapping", json!(50.0)),
        ("sliding_window", json!(16)),
        ("attention_multiplier", json!(0.5)),
        ("residual_multiplier", json!(0.22)),
        ("embedding_multiplier", json!(12)),
        ("logits_scaling", json!(8.0)),
        ("use_qk_norm", json!(true)),
        ("clip_qkv", json!(8.0)),
        (
            "layer_types",
            json!(["sliding_attention", "full_attention", "full_attention"]),
        ),
        ("architectures", json!(["MistralForCausalLM"])),
    ] {
        let mut config = tiny_llama();
        config[key] = value;
        let folder = Folder::new(&config);
        let warnings = folder.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].contains(&format!("`{key}`")),
            "{warnings:?}"
        );
        assert!(folder.is_as(&outputs), "{key}");
    }
    for config in families() {
        assert_eq!(Folder::new(&config).warnings(), [""; 0]);
    }
}

#[test]
fn kinds_of_layers_that_are_not_computed_are_refused_by_name_in_every_family_that_lists_them() {
    for model_type in ["gemma2", "gemma3_text", "olmo3", "modernbert"] {
        for (list, says) in [
            (
                json!(["full_attention", "chunked_attention"]),
                "sliding_attention, got \"chunked_attention\"",
            ),
            (json!(["full_attention", 1]), "sliding_attention, got 1"),
            (
                json!(["full_attention"]),
                "expected 2 entries, one for a layer, got 1",
            ),
        ] {
            let of = json!({
                "model_type": model_type, "hidden_size": 32, "intermediate_size": 48,
                    "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96,
                "max_position_embeddings": 64, "sliding_window": 8, "layer_types": list,
            });
            let error = ModelSpec::from_config(&config(&of).unwrap(), &registry())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("`layer_types`") && error.contains(says),
                "{model_type}: {error}"
            );
        }
    }
}

// --- tokenizers
// ------------------------------------------------------------------------------------------------------

#[test]
fn a_tokenizer_in_an_older_format_is_named_with_the_command_that_converts_it() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["tokenizer.model"],
            "tokenizer.model lies there, of which this makes one (with sentencepiece installed): ",
        ),
        (&["spiece.model", "vocab.txt"], "spiece.model lies there, "),
        (
            &["vocab.json", "merges.txt"],
            "vocab.json and merges.txt lies there, of which this makes one: python -c",
        ),
        (
            &["vocab.txt"],
            "vocab.txt lies there, of which this makes one: python -c",
        ),
        (
            &[],
            "no tokenizer.json; add it, or give token files (.npy, .bin)",
        ),
    ];
    for (names, says) in cases {
        let folder = Folder::with_text(&tiny_llama());
        fs::remove_file(folder.at("tokenizer.json")).unwrap();
        names
            .iter()
            .for_each(|name| fs::write(folder.at(name), "").unwrap());
        let scores = folder.beside("s.safetensors");
        let error = with_context(false, |c| {
            score(c, &folder.score_options("activation"), &scores)
        })
        .unwrap_err();
        let error = error.to_string();
        assert!(error.contains(says), "{error}");
        let command = format!(
            "AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
            folder.model()
        );
        assert_eq!(error.contains(&command), !names.is_empty(), "{error}");
    }
}

#[test]
fn generation_ends_at_every_id_of_the_config_that_transformers_takes() {
    let ends = |config: Value, generation: Option<Value>| {
        let dir = tempfile::tempdir().unwrap();
        if let Some(generation) = generation {
            fs::write(
                dir.path().join("generation_config.json"),
                generation.to_string(),
            )
            .unwrap();
        }
        let tokenizer =
            Tokenizer::load(dir.path(), &minitron::config(&config).unwrap(), 61, true).unwrap();
        (tokenizer.ends().to_vec(), tokenizer.eos())
    };
    let one = || json!({ "eos_token_id": 2 });
    assert_eq!(
        ends(one(), Some(json!({ "eos_token_id": [5, 7] }))),
        (vec![5, 7], Some(2))
    );
    assert_eq!(
        ends(one(), Some(json!({ "eos_token_id": 5 }))),
        (vec![5], Some(2))
    );
    assert_eq!(
        ends(json!({ "eos_token_id": [2, 9] }), None),
        (vec![2, 9], Some(2))
    );
    // Of files that name none, or none of the vocabulary, the other's.
    assert_eq!(
        ends(one(), Some(json!({ "temperature": 0.6 }))),
        (vec![2], Some(2))
    );
    assert_eq!(
        ends(one(), Some(json!({ "eos_token_id": [128_001] }))),
        (vec![2], Some(2))
    );
    assert_eq!(ends(json!({}), None), (vec![], None));
}

#[test]
fn a_text_ends_at_the_second_of_two_end_ids() {
    let folder = Folder::with_text(&tiny_llama());
    let new = || {
        let prompt = "One day, the cat saw a ball".to_owned();
        let options = GenerateOptions {
            model: folder.model(),
            prompt,
            max_new_tokens: 12,
            ..GenerateOptions::default()
        };
        with_context(false, |context| generate(context, &options)).unwrap()["n_new_tokens"]
            .as_u64()
            .unwrap()
    };
    folder.config(|config| config["eos_token_id"] = json!(511));
    let (opened, model) = load(&folder.dir()).unwrap();
    let tokenizer = Tokenizer::load(&folder.dir(), &opened.checkpoint.config, 512, true).unwrap();
    let prompt = tokenizer.encode("One day, the cat saw a ball").unwrap();
    let sampling = minitron_core::evaluate::Sampling {
        max_new_tokens: 12,
        ..Default::default()
    };
    let found = minitron_core::evaluate::generate(&model, &[prompt], &[], &sampling)
        .unwrap()
        .remove(0);
    let before = found.iter().position(|&id| id == found[6]).unwrap() as u64;
    assert!(new() > before);
    fs::write(
        folder.at("generation_config.json"),
        json!({ "eos_token_id": [510, found[6]] }).to_string(),
    )
    .unwrap();
    assert_eq!(new(), before);
}

// --- cases beside the repository
// -------------------------------------------------------------------------------------

/// Every case of the kind of this file, made by the script beside the repository, which computes
/// the right values without us.
#[test]
fn the_cases_from_the_field_have_their_values() {
    let script = root().join("../shared/cases/make.py");
    let (Some(python), true) = (python(), script.is_file()) else {
        eprintln!(
            "absent, not tested: the cases beside the repository, or the Python of `make test`"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let names = ["c01", "c02", "c04", "c06", "c07", "c08", "c15"];
    let made = Command::new(python)
        .arg(script)
        .arg(dir.path())
        .args(names)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let at = |name: &str| dir.path().join(name);
    let expected = |case: &str| -> Value {
        serde_json::from_slice(&fs::read(at(case).join("expected.json")).unwrap()).unwrap()
    };
    let assert_loss = |model: &str, data: &str, expected: &Value| {
        let report = measure(&at(model), &at(data), expected["seq_len"].as_u64().unwrap()).unwrap();
        let difference =
            (report["loss"].as_f64().unwrap() - expected["loss"].as_f64().unwrap()).abs();
        assert!(difference <= 1e-4, "{model} {data}: {report} {expected}");
        assert_eq!(report["n_tokens"], expected["n_tokens"], "{model} {data}");
    };
    for expected in expected("c01")["plain = dynamic = dynamic_v5"]
        .as_array()
        .unwrap()
    {
        for model in ["c01/plain", "c01/dynamic", "c01/dynamic_v5"] {
            assert_loss(model, "c01/text.txt", expected);
        }
    }
    for model in ["c02/good", "c02/claimed"] {
        assert_loss(model, "c02/text.txt", &expected("c02")["good = claimed"]);
    }
    for model in ["c04/good", "c04/bare", "c04/orig_mod", "c04/ddp"] {
        assert_loss(model, "c04/text.txt", &expected("c04")["good = bare"]);
    }
    for model in ["c06/base", "c06/nometa", "c06/emptymeta", "c06/extras"] {
        assert_loss(
            model,
            "c06/text.txt",
            &expected("c06")["base = nometa = emptymeta = extras"],
        );
    }
    for data in ["one.txt", "two.jsonl"] {
        assert_loss("c07/model", &format!("c07/{data}"), &expected("c07")[data]);
    }
    let error = measure(&at("c07/model"), &at("c07/beyond.jsonl"), 10)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token 12") && error.contains("vocabulary of 12"),
        "{error}"
    );
    assert_loss(
        "c08/model",
        "c08/tokens.npy",
        &expected("c08")["tokens.npy"],
    );
    let error = measure(&at("c08/model"), &at("c08/text.txt"), 32)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokenizer.model lies there") && error.contains("AutoTokenizer"),
        "{error}"
    );
    one_key_head(&at("c15"), &expected("c15"), &assert_loss);
}

fn measure(model: &Path, data: &Path, seq_len: u64) -> minitron_core::error::Result<Value> {
    let options = EvalOptions {
        model: model.display().to_string(),
        data: vec![data.display().to_string().parse()?],
        seq_len: Some(seq_len as usize),
        ..EvalOptions::default()
    };
    with_context(false, |context| eval(context, &options))
}

/// Queries that share one key/value head: those that do nothing go, and nothing changes.
fn one_key_head(case: &Path, expected: &Value, assert_loss: &dyn Fn(&str, &str, &Value)) {
    assert_loss(
        "c15/model",
        "c15/text.txt",
        &expected["before = after --heads 4"],
    );
    let (model, student) = (
        case.join("model").display().to_string(),
        case.join("student"),
    );
    let scores = case.join("scores.safetensors");
    let scoring = ScoreOptions {
        model: model.clone(),
        data: vec![case.join("text.txt").display().to_string().parse().unwrap()],
        seq_len: Some(32),
        ..ScoreOptions::default()
    };
    let pruning = PruneOptions {
        model,
        scores: Some(scores.display().to_string()),
        heads: Some(4),
        ..PruneOptions::default()
    };
    with_context(false, |context| {
        score(context, &scoring, &scores).unwrap();
        prune(context, &pruning, &student, false).unwrap();
    });
    let plan: Value =
        serde_json::from_slice(&fs::read(student.join("plan.json")).unwrap()).unwrap();
    for (dim, kept) in expected["kept"].as_object().unwrap() {
        assert_eq!(&plan["kept"][dim], kept, "{dim}");
    }
    assert_loss(
        "c15/student",
        "c15/text.txt",
        &expected["before = after --heads 4"],
    );
}
