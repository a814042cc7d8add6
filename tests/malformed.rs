#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};

use minitron::{
    Workspace, add_demo_tokenizer, tiny_decilm, tiny_gpt2, tiny_llama, with_context,
    with_demo_vocabulary, write_tiny,
};
use minitron_core::checkpoint::{
    Checkpoint, Config, MemorySource, Reader, TensorSource, WriteOptions, write_model,
    write_tensors,
};
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::output::OutputDir;
use minitron_core::plan::Count;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_engine::jobs::{
    Context, EvalOptions, PruneOptions, ScoreOptions, TrainOptions, TrainingOptions, eval, prune,
    score, train,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

/// A folder with a model, a text and room for outputs.
struct Given {
    files: Workspace,
}

impl std::ops::Deref for Given {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Given {
    fn new(config: &Value) -> Self {
        Given {
            files: Workspace::new().model("model", config, 1).text("text.txt"),
        }
    }

    fn llama() -> Self {
        Self::new(&tiny_llama())
    }

    fn model(&self) -> PathBuf {
        self.at("model")
    }

    fn weights(&self) -> PathBuf {
        self.model().join("model.safetensors")
    }

    /// Replaces the weights by the given bytes.
    fn with_weights(self, bytes: &[u8]) -> Self {
        fs::write(self.weights(), bytes).unwrap();
        self
    }

    /// Writes the weights anew, some tensors changed or left out.
    fn with_tensors(self, change: impl Fn(&str, Tensor) -> Option<Tensor>) -> Self {
        let reader = Reader::open_file(&self.weights()).unwrap();
        let mut source = MemorySource::default();
        for name in reader.names() {
            if let Some(tensor) = change(&name, reader.read(&name).unwrap()) {
                source.insert(name, &tensor).unwrap();
            }
        }
        drop(reader);
        fs::remove_file(self.weights()).unwrap();
        write_tensors(&self.weights(), &source).unwrap();
        self
    }

    fn with_config(self, key: &str, value: Value) -> Self {
        let path = self.model().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
        self
    }

    /// Splits the weights into small shards with an index, and changes the index.
    fn sharded(self, change: impl Fn(&mut Value)) -> Self {
        let opened = Checkpoint::open(&self.model()).unwrap();
        let sharded = self.at("sharded");
        fs::create_dir(&sharded).unwrap();
        write_model(
            &sharded,
            &opened.config,
            &opened.tensors,
            Some(&self.model()),
            WriteOptions {
                max_shard_bytes: 40_000,
                ..WriteOptions::default()
            },
        )
        .unwrap();
        drop(opened);
        fs::remove_dir_all(self.model()).unwrap();
        fs::rename(sharded, self.model()).unwrap();
        let path = self.model().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut index);
        fs::write(path, index.to_string()).unwrap();
        self
    }

    fn score_options(&self) -> ScoreOptions {
        ScoreOptions {
            model: self.model().display().to_string(),
            data: vec![self.at("text.txt").display().to_string().parse().unwrap()],
            samples: 4,
            seq_len: Some(16),
            ..ScoreOptions::default()
        }
    }

    /// Scores the model, into `scores.safetensors`.
    fn scored(self) -> Self {
        with_context(false, |context| {
            score(
                context,
                &self.score_options(),
                &self.at("scores.safetensors"),
            )
        })
        .unwrap();
        self
    }

    fn prune_options(&self) -> PruneOptions {
        PruneOptions {
            model: self.model().display().to_string(),
            scores: Some(self.at("scores.safetensors").display().to_string()),
            ..PruneOptions::default()
        }
    }

    fn train_options(&self) -> TrainOptions {
        TrainOptions {
            model: Some(self.model().display().to_string()),
            training: TrainingOptions {
                data: vec![self.at("text.txt").display().to_string().parse().unwrap()],
                tokens: Count(256),
                seq_len: Some(16),
                batch_size: 2,
                checkpoint_every: Some(2),
                ..TrainingOptions::default()
            },
            ..TrainOptions::default()
        }
    }

    /// All files and folders, so that a refused job can be seen to have left nothing.
    fn listing(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        walk(self.root(), &mut found);
        found.sort();
        found
    }

    /// Runs a job that must fail, and checks blame, text, and that nothing was written.
    fn refuses<T>(&self, blame: &str, says: &[&str], job: impl FnOnce() -> Result<T>) -> String {
        let before = self.listing();
        let error = match job() {
            Ok(_) => panic!("expected an error that says {says:?}"),
            Err(error) => error,
        };
        let text = error.to_string();
        assert_eq!(blame_of(&error), blame, "{text}");
        assert!(!text.ends_with('.') && !text.contains('\n'), "{text:?}");
        for words in says {
            assert!(text.contains(words), "expected `{words}` in `{text}`");
        }
        assert_eq!(self.listing(), before, "{text}");
        text
    }

    /// The model is refused on opening, and by every job before it writes.
    fn refuses_model(&self, blame: &str, says: &[&str]) {
        let opened = self.refuses(blame, says, || open(&self.model()));
        let scored = self.refuses(blame, says, || {
            with_context(false, |context| {
                score(context, &self.score_options(), &self.at("s.safetensors"))
            })
        });
        let trained = self.refuses(blame, says, || {
            with_context(false, |context| {
                train(context, &self.train_options(), &self.at("out"), false)
            })
        });
        assert!(
            opened == scored && scored == trained,
            "{opened}\n{scored}\n{trained}"
        );
    }

    fn refuses_prune(&self, blame: &str, says: &[&str], change: impl FnOnce(&mut PruneOptions)) {
        let mut options = self.prune_options();
        change(&mut options);
        self.refuses(blame, says, || {
            with_context(false, |context| {
                prune(context, &options, &self.at("out"), false)
            })
        });
    }

    fn refuses_data(&self, blame: &str, says: &[&str], name: &str) {
        let data = vec![self.at(name).display().to_string().parse().unwrap()];
        let options = ScoreOptions {
            data: data.clone(),
            ..self.score_options()
        };
        self.refuses(blame, says, || {
            with_context(false, |context| {
                score(context, &options, &self.at("s.safetensors"))
            })
        });
        let mut options = self.train_options();
        options.training.data = data;
        self.refuses(blame, says, || {
            with_context(false, |context| {
                train(context, &options, &self.at("out"), false)
            })
        });
    }
}

fn open(dir: &Path) -> Result<ModelFolder> {
    ModelFolder::open(dir, &minitron::registry())
}

fn blame_of(error: &Error) -> &'static str {
    match error {
        Error::Recipe(_) => "recipe",
        Error::Checkpoint { .. } => "checkpoint",
        Error::Plan(_) => "plan",
        Error::Plugin { .. } => "plugin",
        Error::Data(_) => "data",
        Error::Torch { .. } => "torch",
        Error::Io { .. } => "io",
        Error::At { source, .. } => blame_of(source),
        _ => "internal",
    }
}

fn header(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

// --- weights
// ---------------------------------------------------------------------------------------------------------

#[test]
fn a_folder_that_is_not_there_is_named() {
    let given = Given::llama();
    fs::remove_dir_all(given.model()).unwrap();
    given.refuses_model(
        "checkpoint",
        &["no such model folder", "config.json and model.safetensors"],
    );
}

#[test]
fn a_folder_without_weights_says_which_files_it_needs() {
    let given = Given::llama();
    fs::remove_file(given.weights()).unwrap();
    given.refuses_model(
        "checkpoint",
        &[
            "expected model.safetensors or model.safetensors.index.json",
            "transformers",
        ],
    );
}

#[test]
fn weights_cut_off_inside_the_header_are_called_cut_off() {
    let bytes = fs::read(Given::llama().weights()).unwrap();
    for keep in [0, 5, 8, 100] {
        let says = [
            "model.safetensors: not a whole safetensors file",
            "copy it again",
        ];
        Given::llama()
            .with_weights(&bytes[..keep])
            .refuses_model("checkpoint", &says);
    }
}

#[test]
fn weights_cut_off_inside_the_data_are_called_cut_off() {
    let bytes = fs::read(Given::llama().weights()).unwrap();
    for keep in [bytes.len() / 2, bytes.len() - 1] {
        let says = [
            "model.safetensors: not a whole safetensors file",
            "copy it again",
        ];
        Given::llama()
            .with_weights(&bytes[..keep])
            .refuses_model("checkpoint", &says);
    }
}

#[test]
fn a_header_of_garbage_is_refused() {
    for garbage in [
        &b"\xff\xfe\x00garbage"[..],
        b"[1, 2]",
        b"{\"a\": 3}",
        b"{\"a\": {\"dtype\": \"F32\", \"shape\": [-1]}}",
    ] {
        let given = Given::llama().with_weights(&header(garbage));
        given.refuses_model(
            "checkpoint",
            &["model.safetensors: not a whole safetensors file"],
        );
    }
}

#[test]
fn a_header_longer_than_the_file_is_refused_without_allocating_it() {
    for length in [1u64 << 20, 1 << 40, u64::MAX] {
        let given = Given::llama().with_weights(&[&length.to_le_bytes()[..], &[b'{'; 64]].concat());
        given.refuses_model(
            "checkpoint",
            &["model.safetensors: not a whole safetensors file"],
        );
    }
}

#[test]
fn a_file_that_changes_while_it_is_open_is_an_error_and_not_the_end() {
    let given = Given::llama();
    let whole = fs::read(given.weights()).unwrap();
    let opened = open(&given.model()).unwrap();
    let read_all = || {
        opened
            .checkpoint
            .tensors
            .names()
            .iter()
            .try_for_each(|n| opened.checkpoint.tensors.read(n).map(drop))
    };
    read_all().unwrap();
    // Cut off in place, as a copy that begins anew does.
    for n_bytes in [whole.len() / 2, 100, 0] {
        fs::OpenOptions::new()
            .write(true)
            .open(given.weights())
            .unwrap()
            .set_len(n_bytes as u64)
            .unwrap();
        let error = read_all().unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors: changed while it was read"),
            "{error}"
        );
    }
    // Of the same length, with other bytes.
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(given.weights(), vec![0; whole.len()]).unwrap();
    let error = read_all().unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    let info = json!({ "a": { "dtype": "F32", "shape": [1u64 << 40, 1u64 << 40],
        "data_offsets": [0, 4] } });
    let given =
        Given::llama().with_weights(&[header(info.to_string().as_bytes()), vec![0; 4]].concat());
    given.refuses_model(
        "checkpoint",
        &["model.safetensors: not a whole safetensors file"],
    );
}

#[test]
fn an_absent_shard_is_named() {
    let given = Given::llama().sharded(|_| ());
    open(&given.model()).unwrap();
    let shard = fs::read_dir(given.model())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    fs::remove_file(
        shard
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .max()
            .unwrap(),
    )
    .unwrap();
    let says = [
        "model.safetensors.index.json",
        "names the shard `model-0000",
        "fetch the missing file",
    ];
    given.refuses_model("checkpoint", &says);
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    for outside in [
        "../x.safetensors",
        "/etc/passwd",
        "a/../../x",
        "sub/x.safetensors",
        "..",
        ".",
        "",
    ] {
        let given =
            Given::llama().sharded(|index| index["weight_map"]["lm_head.weight"] = json!(outside));
        // What the name points to exists, so that only the rule can refuse it.
        fs::write(given.at("x.safetensors"), "").unwrap();
        let says = [
            "index.json",
            &format!("`{outside}`, which is not a plain file name inside the folder"),
        ];
        given.refuses_model("checkpoint", &says);
    }
}

#[test]
fn a_tensor_that_its_shard_does_not_hold_is_named() {
    let given = Given::llama().sharded(|index| {
        let shard = index["weight_map"]["lm_head.weight"].clone();
        index["weight_map"]["model.extra.weight"] = shard;
    });
    given.refuses_model(
        "checkpoint",
        &[
            "index.json",
            "`model.extra.weight` in ",
            "which does not hold it",
        ],
    );
}

#[test]
fn an_index_without_a_map_is_refused() {
    let given = Given::llama().sharded(|index| *index = json!({ "weight_map": ["a"] }));
    given.refuses_model(
        "checkpoint",
        &["index.json", "expected an object with `weight_map`"],
    );
}

#[test]
fn links_out_of_a_model_folder_are_refused_wherever_they_hide() {
    use std::os::unix::fs::symlink;
    // A shard of any ending.
    let given = Given::llama().sharded(|_| ());
    let index_path = given.model().join("model.safetensors.index.json");
    let index = fs::read_to_string(&index_path).unwrap();
    let shard = "model-00001-of-";
    let name = index
        .split('"')
        .find(|word| word.starts_with(shard))
        .unwrap()
        .to_owned();
    fs::rename(given.model().join(&name), given.at("private")).unwrap();
    symlink(given.at("private"), given.model().join("w.bin")).unwrap();
    fs::write(&index_path, index.replace(&name, "w.bin")).unwrap();
    given.refuses_model("checkpoint", &["w.bin", "outside the model folder"]);

    // What a student gets along, and what a fresh model does.
    let given = Given::llama();
    fs::write(given.at("secret"), "{}").unwrap();
    fs::create_dir(given.model().join("1_Pooling")).unwrap();
    symlink(
        given.at("secret"),
        given.model().join("1_Pooling/config.json"),
    )
    .unwrap();
    let options = PruneOptions {
        plan: Some(given.at("plan.json")),
        scores: None,
        ..given.prune_options()
    };
    fs::write(given.at("plan.json"), json!({ "kept": {} }).to_string()).unwrap();
    given.refuses(
        "checkpoint",
        &["1_Pooling", "outside the model folder"],
        || {
            with_context(false, |context| {
                prune(context, &options, &given.at("out"), false)
            })
        },
    );
    let config = Some(given.model().join("config.json"));
    let options = TrainOptions {
        model: None,
        config,
        ..given.train_options()
    };
    given.refuses(
        "checkpoint",
        &["1_Pooling", "outside the model folder"],
        || {
            with_context(false, |context| {
                train(context, &options, &given.at("out"), false)
            })
        },
    );
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let given = Given::llama().with_tensors(|name, tensor| match name {
        "model.layers.1.mlp.up_proj.weight" => Some(tensor.narrow(0, 0, 47)),
        _ => Some(tensor),
    });
    let says = [
        "`model.layers.1.mlp.up_proj.weight`",
        "expected shape [48, 32] by config.json, got [47, 32]",
    ];
    given.refuses_model("checkpoint", &says);
}

#[test]
fn a_missing_tensor_is_named() {
    let given =
        Given::llama().with_tensors(|name, tensor| (name != "model.norm.weight").then_some(tensor));
    given.refuses_model(
        "checkpoint",
        &["tensor `model.norm.weight` is missing; `llama` of this config needs it"],
    );
}

#[test]
fn a_tensor_of_integers_is_refused() {
    let given = Given::llama().with_tensors(|name, tensor| match name {
        "model.norm.weight" => Some(tensor.to_kind(tch::Kind::Int64)),
        _ => Some(tensor),
    });
    given.refuses_model(
        "checkpoint",
        &["tensor `model.norm.weight`: expected f64, f32, f16 or bf16, got I64"],
    );
}

/// A given whose model has one weight that is not finite.
fn with_a_weight(x: f64) -> Given {
    Given::llama().with_tensors(|name, tensor| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            let _ = tensor.get(40).get(7).fill_(x);
        }
        Some(tensor)
    })
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_every_job() {
    for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let given = with_a_weight(x);
        let says = [
            "model.safetensors",
            "tensor `model.layers.1.mlp.up_proj.weight` is NaN or infinite at [40, 7]",
        ];
        let refuses = |job: &dyn Fn(&Context) -> Result<Value>| {
            given.refuses("checkpoint", &says, || {
                with_context(false, |context| job(context))
            });
        };
        let options = given.score_options();
        let ScoreOptions {
            model,
            data,
            seq_len,
            ..
        } = options.clone();
        refuses(&|context| score(context, &options, &given.at("s.safetensors")));
        let by_weights = ScoreOptions {
            metrics: vec!["magnitude".parse().unwrap()],
            ..options.clone()
        };
        refuses(&|context| score(context, &by_weights, &given.at("s.safetensors")));
        let options = EvalOptions {
            model,
            data,
            seq_len,
            ..EvalOptions::default()
        };
        refuses(&|context| eval(context, &options));
        refuses(&|context| train(context, &given.train_options(), &given.at("out"), false));
        // Streamed, it leaves what it has reached.
        let streamed = ScoreOptions {
            stream: true,
            ..given.score_options()
        };
        let error = with_context(false, |context| {
            score(context, &streamed, &given.at("s.safetensors"))
        })
        .unwrap_err();
        assert!(error.to_string().contains(says[1]), "{error}");
    }
}

#[test]
fn a_student_of_weights_that_are_not_finite_is_not_written() {
    let given = with_a_weight(f64::NAN);
    let plan =
        |mlp: &[usize]| json!({ "kept": { "mlp.0": mlp, "mlp.1": mlp, "mlp.2": mlp } }).to_string();
    let options = PruneOptions {
        plan: Some(given.at("plan.json")),
        scores: None,
        ..given.prune_options()
    };
    let prune = || {
        with_context(false, |context| {
            prune(context, &options, &given.at("out"), false)
        })
    };
    fs::write(given.at("plan.json"), plan(&[0, 1, 2, 3, 4, 5, 6, 40])).unwrap();
    given.refuses(
        "checkpoint",
        &["`model.layers.1.mlp.up_proj.weight` is NaN or infinite at [40, 7]"],
        prune,
    );
    // A student without that row is sound.
    fs::write(given.at("plan.json"), plan(&[0, 1, 2, 3, 4, 5, 6, 7])).unwrap();
    prune().unwrap();
}

// --- config.json
// -------------------------------------------------------------------------------------------------------

#[test]
fn an_unsupported_family_lists_the_supported_ones() {
    let given = Given::llama().with_config("model_type", json!("mamba"));
    let plugin = "A plugin can add a family: `minitron plugins new architecture DIR`";
    let says = [
        "config.json",
        "model_type `mamba` is not supported; supported: bamba, bert, ",
        "llama, ministral, ",
        plugin,
    ];
    given.refuses_model("checkpoint", &says);
    let given = Given::llama().with_config("model_type", Value::Null);
    given.refuses_model(
        "checkpoint",
        &["config.json: no `model_type`; expected a string"],
    );
}

#[test]
fn blocks_that_are_ill_formed_or_of_another_kind_are_refused() {
    let block = tiny_decilm()["block_configs"][0].clone();
    let with = |part: &str, key: &str, value: Value| {
        let mut block = block.clone();
        block[part][key] = value;
        block
    };
    let width = |value: Value| {
        let mut block = with("ffn", "intermediate_size", Value::Null);
        block["ffn"]["ffn_mult"] = value;
        block
    };
    for (found, says) in [
        (json!(3), "`block_configs[1]."),
        (
            json!({ "ffn": block["ffn"] }),
            "`block_configs[1].attention`: expected an object, got",
        ),
        (
            json!({ "attention": {}, "ffn": block["ffn"] }),
            "attention.n_heads_in_group`: expected a divisor of",
        ),
        (
            with("ffn", "no_op", json!("yes")),
            "ffn.no_op`: expected true or false, got \"yes\"",
        ),
        (
            with("attention", "n_heads_in_group", json!(0)),
            "expected a positive integer below 2^31",
        ),
        (
            with("attention", "n_heads_in_group", json!(3)),
            "expected a divisor of",
        ),
        (with("attention", "n_heads_in_group", json!(-2)), "got -2"),
        (
            with("attention", "replace_with_linear", json!(true)),
            "this variant is not supported",
        ),
        (
            with("ffn", "replace_with_linear", json!(true)),
            "ffn.replace_with_linear`",
        ),
        (
            with("attention", "window_length", json!(64)),
            "attention.window_length`: expected null",
        ),
        (
            with("ffn", "sparsify", json!("2:4")),
            "ffn.sparsify`: expected null or false",
        ),
        (
            with("ffn", "intermediate_size", json!(1u64 << 40)),
            "below 2^31",
        ),
        (
            width(json!(-1.5)),
            "ffn.ffn_mult`: expected a positive number",
        ),
        (
            width(json!(1e300)),
            "ffn.ffn_mult`: expected a positive number",
        ),
        (
            width(json!("1")),
            "ffn.ffn_mult`: expected a positive number",
        ),
        (
            width(Value::Null),
            "ffn.ffn_mult`: expected a positive number",
        ),
    ] {
        let blocks = json!([block, found, block]);
        let given = Given::new(&tiny_decilm()).with_config("block_configs", blocks);
        given.refuses_model("checkpoint", &["config.json: `block_configs[1]", says]);
    }
    for (blocks, says) in [
        (
            Value::Null,
            "no `block_configs`; expected a list of 3 objects, one for a layer",
        ),
        (json!("[]"), "`block_configs`: expected a list, got \"[]\""),
        (
            json!([block]),
            "`block_configs`: expected 3 entries, one for a layer, got 1",
        ),
    ] {
        let given = Given::new(&tiny_decilm()).with_config("block_configs", blocks);
        given.refuses_model("checkpoint", &["config.json: ", says]);
    }
}

#[test]
fn a_missing_config_is_named() {
    let given = Given::llama();
    fs::remove_file(given.model().join("config.json")).unwrap();
    given.refuses_model("checkpoint", &["config.json: no such file", "`model_type`"]);
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    for (text, says) in [
        (&b""[..], "not valid JSON"),
        (b"{\"model_type\": ", "not valid JSON"),
        (b"\xff\xfe{}", "got UTF-16; save it as UTF-8"),
        (b"[]", "expected a JSON object at the top"),
        (b"{}", "no `model_type`; expected a string"),
    ] {
        let given = Given::llama();
        fs::write(given.model().join("config.json"), text).unwrap();
        given.refuses_model("checkpoint", &["config.json", says]);
    }
}

#[test]
fn a_config_nested_without_end_is_refused() {
    let given = Given::llama();
    fs::write(given.model().join("config.json"), "[".repeat(1 << 20)).unwrap();
    given.refuses_model("checkpoint", &["config.json: not valid JSON"]);
}

#[test]
fn absurd_sizes_in_a_config_are_refused_without_allocating() {
    let keys = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "head_dim",
    ];
    for key in keys {
        for absurd in [
            json!(0),
            json!(-8),
            json!(8.5),
            json!(1u64 << 31),
            json!(1e300),
            json!("8"),
            json!([8]),
        ] {
            let says = [
                "config.json",
                &format!("`{key}`: expected a positive integer below 2^31, got {absurd}"),
            ];
            Given::llama()
                .with_config(key, absurd.clone())
                .refuses_model("checkpoint", &says);
        }
        // Thinkable, but not what the file holds.
        Given::llama()
            .with_config(key, json!((1u64 << 31) - 1))
            .refuses_model("checkpoint", &[]);
    }
}

#[test]
fn absurd_sizes_are_refused_before_random_weights_are_made() {
    for (key, size) in [
        ("hidden_size", 1 << 30),
        ("intermediate_size", (1u64 << 31) - 1),
        ("head_dim", (1 << 31) - 2),
    ] {
        let given = Given::llama().with_config(key, json!(size));
        let mut options = given.train_options();
        options.model = None;
        options.config = Some(given.model().join("config.json"));
        given.refuses(
            "checkpoint",
            &["config.json", "parameters, more than can be made in memory"],
            || {
                with_context(false, |context| {
                    train(context, &options, &given.at("out"), false)
                })
            },
        );
    }
}

#[test]
fn heads_that_do_not_share_keys_evenly_are_refused() {
    let given = Given::llama().with_config("num_key_value_heads", json!(3));
    given.refuses_model(
        "checkpoint",
        &["config.json", "num_attention_heads", "num_key_value_heads"],
    );
}

#[test]
fn a_tied_head_stored_with_other_values_is_refused() {
    let given = Given::llama().with_config("tie_word_embeddings", json!(true));
    given.refuses_model(
        "checkpoint",
        &[
            "ties `lm_head.weight` to `model.embed_tokens.weight`",
            "tie_word_embeddings",
        ],
    );
}

// --- text
// ------------------------------------------------------------------------------------------------------------

#[test]
fn a_tokenizer_that_exceeds_the_vocabulary_is_refused() {
    let given = Given {
        files: Workspace::new(),
    };
    write_tiny(&given.model(), &tiny_llama(), 1).unwrap();
    add_demo_tokenizer(&given.model()).unwrap();
    fs::write(given.at("text.txt"), minitron::some_text()).unwrap();
    let says = [
        "tokenizer.json: token `",
        "has id 511, the model's vocabulary ends at 60",
        "belongs to another model",
    ];
    given.refuses_data("checkpoint", &says, "text.txt");
}

#[test]
fn a_tokenizer_that_cannot_be_read_is_named() {
    let given = Given::llama();
    fs::write(given.model().join("tokenizer.json"), "{\"model\": 3}").unwrap();
    given.refuses_data(
        "checkpoint",
        &["tokenizer.json: not a tokenizer that can be read"],
        "text.txt",
    );
}

#[test]
fn text_without_a_tokenizer_says_what_to_add() {
    let given = Given::llama();
    fs::remove_file(given.model().join("tokenizer.json")).unwrap();
    given.refuses_data(
        "data",
        &["no tokenizer.json; add it, or give token files (.npy, .bin)"],
        "text.txt",
    );
}

#[test]
fn token_files_beyond_the_vocabulary_are_refused() {
    let given = Given::llama();
    fs::write(
        given.at("ids.bin"),
        [1u16, 600]
            .repeat(64)
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    given.refuses_data(
        "data",
        &[
            "ids.bin",
            "token 600 lies outside the model's vocabulary of 512",
        ],
        "ids.bin",
    );
}

#[test]
fn an_empty_file_is_refused() {
    let given = Given::llama();
    for name in ["empty.txt", "empty.jsonl"] {
        fs::write(given.at(name), "").unwrap();
        given.refuses_data("data", &[name, "no text in it"], name);
    }
}

#[test]
fn a_file_shorter_than_one_window_says_how_long_it_is() {
    let given = Given::llama();
    fs::write(given.at("short.txt"), "One").unwrap();
    given.refuses_data(
        "data",
        &["short.txt", "shorter than one window of 16", "--seq-len"],
        "short.txt",
    );
}

#[test]
fn an_unknown_ending_lists_the_known_ones() {
    let given = Given::llama();
    fs::write(given.at("text.docx"), "One day").unwrap();
    given.refuses_data(
        "recipe",
        &["text.docx", "known endings: ", ".jsonl", ".txt", ".parquet"],
        "text.docx",
    );
}

#[test]
fn a_missing_data_file_is_named() {
    Given::llama().refuses_data("data", &["absent.txt`: no such file"], "absent.txt");
}

#[test]
fn a_bad_line_is_named_by_its_number() {
    let given = Given::llama();
    fs::write(
        given.at("a.jsonl"),
        "{\"text\": \"One day\"}\n{\"text\": \n",
    )
    .unwrap();
    given.refuses_data(
        "data",
        &["a.jsonl: line 2: expected JSON, one value on each line"],
        "a.jsonl",
    );
    fs::write(given.at("b.jsonl"), "{\"body\": \"One day\"}\n").unwrap();
    given.refuses_data(
        "data",
        &[
            "b.jsonl: line 1",
            "its fields: `body`; choose one with `--field`",
        ],
        "b.jsonl",
    );
}

/// A pair of Megatron's: i32 ids, two sequences of three and two, a document each.
fn megatron() -> (Vec<u8>, Vec<u8>) {
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(4);
    index.extend([2u64, 3].iter().flat_map(|n| n.to_le_bytes()));
    index.extend([3i32, 2].iter().flat_map(|length| length.to_le_bytes()));
    index.extend([0i64, 12].iter().flat_map(|place| place.to_le_bytes()));
    index.extend([0i64, 1, 2].iter().flat_map(|bound| bound.to_le_bytes()));
    (
        index,
        [10i32, 11, 12, 13, 14]
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect(),
    )
}

#[test]
fn megatron_files_that_contradict_themselves_are_refused() {
    let given = Given::llama();
    let (index, ids) = megatron();
    let bytes = |value: i64| value.to_le_bytes().to_vec();
    // Where the bytes are changed, to what, and what is said.
    let cases: [(usize, Vec<u8>, &str); 16] = [
        (0, b"MMIDIDY".to_vec(), "does not begin as one"),
        (9, bytes(2), "expected version 1 of the index, got 2"),
        (17, vec![0], "got code 0"),
        (
            17,
            vec![7],
            "expected ids of an integer type (code 1 to 5 or 8), got code 7",
        ),
        (
            18,
            bytes(3),
            "bytes for 3 sequences and 3 bounds of documents",
        ),
        (
            18,
            bytes(-1),
            "more than any file bytes for 18446744073709551615 sequences",
        ),
        (26, bytes(i64::MAX), "more than any file"),
        (34, vec![4, 0, 0, 0], "expected sequence 1 within 20 bytes"),
        (34, vec![0xff; 4], "-1 ids at byte 0"),
        (
            38,
            vec![0xff, 0xff, 0xff, 0x7f],
            "2147483647 ids at byte 12",
        ),
        (42, bytes(-4), "3 ids at byte -4"),
        (50, bytes(16), "2 ids at byte 16"),
        (50, bytes(i64::MAX), "2 ids at byte 9223372036854775807"),
        (
            58,
            bytes(1),
            "expected the first document at sequence 0, got 1",
        ),
        (
            66,
            bytes(3),
            "expected document 0 to end at sequence 0 to 2, got 3",
        ),
        (
            74,
            bytes(0),
            "expected document 1 to end at sequence 1 to 2, got 0",
        ),
    ];
    for (idx, (at, change, says)) in cases.iter().enumerate() {
        let mut damaged = index.clone();
        damaged[*at..at + change.len()].copy_from_slice(change);
        let ids = if idx == 7 {
            ids[..16].to_vec()
        } else {
            ids.clone()
        };
        let says = if idx == 7 { "within 16 bytes" } else { says };
        fs::write(given.at("a.idx"), damaged).unwrap();
        fs::write(given.at("a.bin"), ids).unwrap();
        given.refuses_data("data", &["a.idx", says, "copy the pair again"], "a.idx");
    }
    fs::write(given.at("a.bin"), &ids).unwrap();
    for cut in 0..index.len() {
        fs::write(given.at("a.idx"), &index[..cut]).unwrap();
        given.refuses_data("data", &["a.idx"], "a.idx");
    }
    let missing = [&index[..26], &bytes(2), &index[34..74]].concat();
    fs::write(given.at("a.idx"), missing).unwrap();
    given.refuses_data(
        "data",
        &["a.idx", "expected documents of 2 sequences, got 1"],
        "a.idx",
    );
    fs::write(given.at("a.idx"), &index).unwrap();
    fs::write(given.at("a.bin"), [&ids[..16], &[0xff; 4]].concat()).unwrap();
    given.refuses_data(
        "data",
        &[
            "a.idx",
            "expected ids from 0 to 4294967295, got another in sequence 1",
        ],
        "a.idx",
    );
}

#[test]
fn half_a_megatron_pair_is_refused() {
    let given = Given::llama();
    let (index, ids) = megatron();
    fs::write(given.at("a.idx"), index).unwrap();
    given.refuses_data("io", &["a.bin"], "a.idx");
    fs::write(given.at("a.bin"), ids).unwrap();
    given.refuses_data(
        "recipe",
        &[
            "a.bin` is one half of a Megatron pair; name the other",
            "a.idx`",
        ],
        "a.bin",
    );
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let given = Given::llama();
    fs::write(given.at("latin.txt"), b"caf\xe9").unwrap();
    given.refuses_data("data", &["latin.txt", "expected UTF-8 text"], "latin.txt");
}

#[test]
fn windows_beyond_the_positions_say_how_long_they_may_be() {
    let given = Given::llama();
    let options = ScoreOptions {
        seq_len: Some(65),
        ..given.score_options()
    };
    given.refuses(
        "recipe",
        &["seq_len: 65 is longer than the model's positions allow; at most 64"],
        || {
            with_context(false, |context| {
                score(context, &options, &given.at("s.safetensors"))
            })
        },
    );
    let mut options = given.train_options();
    options.training.seq_len = Some(65);
    given.refuses("recipe", &["seq_len: 65", "at most 64"], || {
        with_context(false, |context| {
            train(context, &options, &given.at("out"), false)
        })
    });
}

// --- sizes, scores, plans
// --------------------------------------------------------------------------------------------

#[test]
fn illegal_sizes_name_the_nearest_legal_ones() {
    let given = Given::llama().scored();
    given.refuses_prune(
        "plan",
        &["mlp: 30 is not legal, expected a multiple of 4 up to 48; nearest: --mlp 32 or --mlp 28"],
        |o| {
            o.mlp = Some(30);
        },
    );
    given.refuses_prune(
        "plan",
        &[
            "hidden: 12 is not legal, expected a multiple of 8 up to 32; nearest: --hidden 16 or \
             --hidden 8",
        ],
        |o| {
            o.hidden = Some(12);
        },
    );
    given.refuses_prune(
        "plan",
        &["depth: 4 is not legal, expected a size up to 3; nearest: --layers 3"],
        |o| o.layers = Some(4),
    );
    given.refuses_prune(
        "plan",
        &["depth: 0 is not legal", "nearest: --layers 1"],
        |o| o.layers = Some(0),
    );
    given.refuses_prune("plan", &["mlp: 0 is not legal", "nearest: --mlp 4"], |o| {
        o.mlp = Some(0)
    });
}

#[test]
fn illegal_heads_under_grouped_queries_name_the_nearest_legal_ones() {
    let given = Given::llama().scored();
    given.refuses_prune(
        "plan",
        &["heads: 3 is not legal, expected a multiple of 2 up to 4; nearest: --heads 4 or --heads \
           2"],
        |o| {
            o.heads = Some(3);
        },
    );
    given.refuses_prune(
        "plan",
        &["heads: 1 is not legal", "nearest: --heads 2"],
        |o| o.heads = Some(1),
    );
}

#[test]
fn widths_that_a_family_cannot_express_name_the_nearest_ones() {
    let given = Given::new(&tiny_gpt2()).scored();
    given.refuses_prune(
        "plan",
        &[
            "hidden: 20 is not legal, expected a multiple of 8 up to 32; nearest: --hidden 24 or \
             --hidden 16",
        ],
        |o| {
            o.hidden = Some(20);
        },
    );
    let says = [
        "hidden 16 with 3 heads",
        "no head_dim",
        "--heads 2 --hidden 16",
        "--heads 3 --hidden 24",
    ];
    given.refuses_prune("plan", &says, |o| (o.hidden, o.heads) = (Some(16), Some(3)));
}

#[test]
fn a_ratio_out_of_range_is_refused() {
    let given = Given::llama().scored();
    for ratio in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY] {
        given.refuses_prune(
            "recipe",
            &["ratio", "expected a share above 0, at most 1"],
            |o| o.ratio = Some(ratio),
        );
    }
}

#[test]
fn a_budget_that_cannot_be_reached_names_the_nearest() {
    let given = Given::llama().scored();
    given.refuses_prune(
        "plan",
        &["10 parameters within 5.0 % cannot be reached; nearest: "],
        |o| {
            o.params = Some("10".into());
        },
    );
    given.refuses_prune("plan", &["cannot be reached; nearest: "], |o| {
        o.params = Some("4B".into())
    });
    given.refuses_prune(
        "recipe",
        &["expected a number such as 4B, 4.19B, 350M or 4096, got `many`"],
        |o| {
            o.params = Some("many".into());
        },
    );
}

#[test]
fn a_size_is_said_once() {
    let given = Given::llama().scored();
    given.refuses_prune(
        "recipe",
        &["say once how large the student shall be"],
        |_| (),
    );
    given.refuses_prune("recipe", &["say once"], |o| {
        (o.ratio, o.params) = (Some(0.5), Some("10k".into()))
    });
    given.refuses_prune("recipe", &["scores: needed to rank by"], |o| {
        (o.scores, o.mlp) = (None, Some(24))
    });
}

#[test]
fn scores_of_another_model_are_refused() {
    let mut wide = tiny_llama();
    wide["intermediate_size"] = json!(64);
    let (given, other) = (Given::llama(), Given::new(&wide).scored());
    let mut scores = PruneOptions {
        mlp: Some(24),
        ..given.prune_options()
    };
    scores.scores = Some(other.at("scores.safetensors").display().to_string());
    given.refuses_prune("recipe", &["scores of `model`", "--any-model"], |o| {
        *o = scores.clone()
    });
    scores.any_model = true;
    let says = ["`mlp.0` has 48 units, the scores hold 64", "score this one"];
    given.refuses_prune("recipe", &says, |o| *o = scores.clone());
}

#[test]
fn scores_that_hold_nothing_for_an_axis_say_so() {
    let given = Given::llama();
    let metrics = vec!["block_influence".parse().unwrap()];
    let options = ScoreOptions {
        metrics,
        ..given.score_options()
    };
    with_context(false, |context| {
        score(context, &options, &given.at("scores.safetensors"))
    })
    .unwrap();
    given.refuses_prune(
        "recipe",
        &["`mlp.0` is to shrink to 24, but the scores hold nothing for it"],
        |o| {
            o.mlp = Some(24);
        },
    );
}

#[test]
fn a_scores_file_that_is_none_is_refused() {
    let given = Given::llama();
    given.refuses_prune(
        "checkpoint",
        &["no such scores file; `minitron score` writes one"],
        |o| o.mlp = Some(24),
    );
    fs::write(given.at("scores.safetensors"), "scores").unwrap();
    given.refuses_prune(
        "checkpoint",
        &["scores.safetensors: not a whole safetensors file"],
        |o| o.mlp = Some(24),
    );
    let mut source = MemorySource::default();
    source
        .insert("activation/mlp.0", &Tensor::from_slice(&[f32::NAN; 48]))
        .unwrap();
    write_tensors(&given.at("scores.safetensors"), &source).unwrap();
    given.refuses_prune(
        "checkpoint",
        &["scores.safetensors: `activation/mlp.0`: score 0 is NaN"],
        |o| o.mlp = Some(24),
    );
}

#[test]
fn a_plan_that_does_not_fit_the_model_is_refused() {
    let given = Given::llama();
    let with_plan = |blame: &str, says: &[&str], text: &str| {
        fs::write(given.at("plan.json"), text).unwrap();
        given.refuses_prune(blame, says, |o| {
            (o.plan, o.scores) = (Some(given.at("plan.json")), None)
        });
    };
    let kept = |kept: Value| json!({ "kept": kept }).to_string();
    let in_order = &["`hidden`: expected units below 32, ascending, each once"];
    with_plan(
        "plan",
        in_order,
        &kept(json!({ "hidden": [0, 1, 2, 3, 4, 5, 6, 32] })),
    );
    with_plan(
        "plan",
        in_order,
        &kept(json!({ "hidden": [0, 1, 2, 3, 4, 5, 7, 6] })),
    );
    with_plan(
        "plan",
        in_order,
        &kept(json!({ "hidden": [0, 0, 2, 3, 4, 5, 6, 7] })),
    );
    let one_width = &["keeps ", "nearest: --", "one number for all layers"];
    with_plan("plan", one_width, &kept(json!({ "mlp.0": [0, 1, 2, 3] })));
    let per_head = &["`heads.0`: expected equally many query heads per key/value head, got [2, 0]"];
    with_plan(
        "plan",
        per_head,
        &kept(json!({ "heads.0": [0, 1], "heads.1": [0, 2], "heads.2": [0, 2] })),
    );
    with_plan(
        "plan",
        &["hidden: 4 is not legal", "nearest: "],
        &kept(json!({ "hidden": [0, 1, 2, 3] })),
    );
    with_plan(
        "plan",
        &["depth: 0 is not legal", "nearest: --layers 1"],
        &kept(json!({ "depth": [] })),
    );
    with_plan(
        "recipe",
        &["no dim is called `mlp.7`; known: depth, "],
        &kept(json!({ "mlp.7": [0] })),
    );
    with_plan("plan", one_width, &kept(json!({ "kv_heads.0": [1] })));
    let of_no_group = &["`heads.0`: unit 1 belongs to none of the key/value heads that stay ([1])"];
    with_plan(
        "plan",
        of_no_group,
        &kept(json!({ "kv_heads.0": [1], "heads.0": [1, 2] })),
    );
    with_plan(
        "recipe",
        &["plan.json: expected {\"kept\": {dim: [units]}}"],
        &kept(json!({ "hidden": [-1] })),
    );
    with_plan("recipe", &["plan.json: expected {\"kept\""], "{\"kept\": ");
    fs::write(
        given.at("plan.json"),
        kept(json!({ "hidden": [0, 1, 2, 3, 4, 5, 6, 7] })),
    )
    .unwrap();
    given.refuses_prune(
        "recipe",
        &["no axis of this model is called `hidden`; known: mlp"],
        |o| {
            (o.plan, o.scores, o.axes) = (
                Some(given.at("plan.json")),
                None,
                vec![PluginSpec::bare("mlp")],
            );
        },
    );
}

#[test]
fn a_missing_plan_is_named() {
    let given = Given::llama();
    given.refuses_prune("recipe", &["absent.json: no such plan"], |o| {
        (o.plan, o.scores) = (Some(given.at("absent.json")), None)
    });
}

// --- outputs
// ---------------------------------------------------------------------------------------------------------

#[test]
fn outputs_that_exist_are_kept_unless_forced() {
    let given = Given::llama().scored();
    let out = given.at("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "mine").unwrap();
    // What marks a folder as one that a command wrote.
    fs::write(out.join("result.json"), "{}").unwrap();
    let says = [
        "the output `",
        "exists; give another name or --force to replace it",
    ];
    let scores = given.at("scores.safetensors");
    given.refuses("recipe", &says, || {
        with_context(false, |context| {
            score(context, &given.score_options(), &scores)
        })
    });
    given.refuses_prune("recipe", &says, |o| o.mlp = Some(24));
    given.refuses("recipe", &says, || {
        with_context(false, |context| {
            train(context, &given.train_options(), &out, false)
        })
    });
    assert_eq!(fs::read_to_string(out.join("mine")).unwrap(), "mine");

    let options = PruneOptions {
        mlp: Some(24),
        ..given.prune_options()
    };
    with_context(true, |context| prune(context, &options, &out, false)).unwrap();
    assert!(open(&out).is_ok() && !out.join("mine").exists());
    with_context(true, |context| {
        train(context, &given.train_options(), &out, false)
    })
    .unwrap();
    assert_eq!(open(&out).unwrap().spec.size("mlp"), 48);
    with_context(true, |context| {
        score(context, &given.score_options(), &scores)
    })
    .unwrap();
}

#[test]
fn a_folder_of_other_files_is_not_replaced_even_by_force() {
    let given = Given::llama().scored();
    let out = given.at("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "mine").unwrap();
    let says = ["--force does not replace it"];
    let options = PruneOptions {
        mlp: Some(24),
        ..given.prune_options()
    };
    given.refuses("recipe", &says, || {
        with_context(true, |context| prune(context, &options, &out, false))
    });
    given.refuses("recipe", &says, || {
        with_context(true, |context| {
            train(context, &given.train_options(), &out, false)
        })
    });
    // Nor does --resume write beside what is no training.
    let says = ["exists; give another name"];
    given.refuses("recipe", &says, || {
        with_context(false, |context| {
            train(context, &given.train_options(), &out, true)
        })
    });
    let says = ["a folder or a file of the model"];
    let weights = given.model().join("model.safetensors");
    given.refuses("recipe", &says, || {
        with_context(true, |context| {
            score(context, &given.score_options(), &weights)
        })
    });
}

#[test]
fn a_forced_output_stays_when_the_job_is_refused() {
    let given = Given::llama().scored();
    let out = given.at("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "mine").unwrap();
    // What marks a folder as one that a command wrote.
    fs::write(out.join("result.json"), "{}").unwrap();
    let options = PruneOptions {
        mlp: Some(30),
        ..given.prune_options()
    };
    given.refuses("plan", &["mlp: 30"], || {
        with_context(true, |context| prune(context, &options, &out, false))
    });
    let mut options = given.train_options();
    options.training.data = vec![
        given
            .at("absent.txt")
            .display()
            .to_string()
            .parse()
            .unwrap(),
    ];
    given.refuses("data", &["absent.txt"], || {
        with_context(true, |context| train(context, &options, &out, false))
    });
    let mut options = given.train_options();
    options.training.seq_len = Some(65);
    given.refuses("recipe", &["seq_len: 65"], || {
        with_context(true, |context| train(context, &options, &out, false))
    });
}

#[test]
fn a_writer_that_gives_up_leaves_nothing() {
    let given = Given::llama();
    let before = given.listing();
    let output = OutputDir::create(&given.at("out"), false).unwrap();
    fs::write(output.path().join("config.json"), "{}").unwrap();
    drop(output);
    assert_eq!(given.listing(), before);
}

#[test]
fn what_a_killed_writer_leaves_is_not_taken_for_a_model_and_is_replaced_later() {
    let given = Given::llama().scored();
    let opened = Checkpoint::open(&given.model()).unwrap();
    let output = OutputDir::create(&given.at("out"), false).unwrap();
    let part = output.path().to_path_buf();
    write_model(
        &part,
        &opened.config,
        &opened.tensors,
        None,
        WriteOptions {
            max_shard_bytes: 1 << 40,
            ..WriteOptions::default()
        },
    )
    .unwrap();
    // A killed process runs no destructor.
    std::mem::forget(output);
    assert!(part.is_dir() && part.file_name().unwrap().to_string_lossy().starts_with('.'));
    let error = open(&given.at("out")).unwrap_err().to_string();
    assert!(error.contains("no such model folder"), "{error}");
    let options = PruneOptions {
        mlp: Some(24),
        ..given.prune_options()
    };
    with_context(false, |context| {
        prune(context, &options, &given.at("out"), false)
    })
    .unwrap();
    assert_eq!(open(&given.at("out")).unwrap().spec.size("mlp"), 24);
    assert!(!part.exists());
}

#[test]
fn an_interrupted_training_is_not_taken_for_a_model() {
    let given = Given::llama();
    let mut options = given.train_options();
    options.training.stop_after = Some(2);
    with_context(false, |context| {
        train(context, &options, &given.at("out"), false)
    })
    .unwrap();
    let error = open(&given.at("out")).unwrap_err().to_string();
    assert!(error.contains("config.json: no such file"), "{error}");
}

#[test]
fn resuming_with_other_settings_names_what_differs() {
    let given = Given::llama();
    let mut options = given.train_options();
    options.training.stop_after = Some(2);
    with_context(false, |context| {
        train(context, &options, &given.at("out"), false)
    })
    .unwrap();
    let resume = |options: &TrainOptions, says: &[&str]| {
        given.refuses("recipe", says, || {
            with_context(false, |context| {
                train(context, options, &given.at("out"), true)
            })
        });
    };
    let mut other = options.clone();
    other.training.lr = Some(5e-4);
    resume(
        &other,
        &[
            "resume: ",
            "state.json was written with other settings (settings.lr)",
            "use the same",
        ],
    );
    let mut other = options.clone();
    other.training.batch_size = 1;
    resume(&other, &["(settings.batch_size)"]);
    let mut other = options.clone();
    fs::write(
        given.at("other.txt"),
        minitron::some_text().replace("cat", "cow"),
    )
    .unwrap();
    other.training.data = vec![given.at("other.txt").display().to_string().parse().unwrap()];
    resume(&other, &["(inputs.data)"]);
    options.training.stop_after = None;
    with_context(false, |context| {
        train(context, &options, &given.at("out"), true)
    })
    .unwrap();
    assert!(open(&given.at("out")).is_ok());
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let given = Given::llama();
    type Change = fn(&mut TrainingOptions);
    let cases: [(&str, Change); 14] = [
        ("tokens: expected at least 1", |s| s.tokens = Count(0)),
        ("batch_size and accumulate: expected at least 1", |s| {
            s.batch_size = 0
        }),
        ("lr: expected a positive number", |s| s.lr = Some(f64::NAN)),
        ("clip: expected a positive number", |s| s.clip = -1.0),
        ("min_lr: expected 0 to lr", |s| s.min_lr = Some(1.0)),
        ("decay_share: expected more than 0 and at most 1", |s| {
            s.decay_share = 1.5
        }),
        ("beta1, beta2: expected 0 to 1", |s| s.beta2 = 1.0),
        ("eps: expected a positive number", |s| s.eps = 0.0),
        ("max_skipped, eval_every: expected at least 1", |s| {
            s.max_skipped = 0
        }),
        ("checkpoint_every, keep: expected at least 1", |s| {
            s.keep = 0
        }),
        ("checkpoint_minutes: expected a positive number", |s| {
            s.checkpoint_minutes = f64::NAN
        }),
        ("no eval_data is given", |s| s.eval_samples = Some(3)),
        ("seq_len: expected at least 2 tokens, got 1", |s| {
            s.seq_len = Some(1)
        }),
        (
            "no loss plugin is called `kl`; known: cross_entropy, ",
            |s| s.losses = vec!["kl".parse().unwrap()],
        ),
    ];
    for (says, change) in cases {
        let mut options = given.train_options();
        change(&mut options.training);
        given.refuses("recipe", &[says], || {
            with_context(false, |context| {
                train(context, &options, &given.at("out"), false)
            })
        });
    }
}

// --- random damage
// ---------------------------------------------------------------------------------------------------

/// Opens, checks and loads whatever lies there; an error is fine, a panic is not.
fn open_and_load(dir: &Path) {
    if let Ok(folder) = open(dir) {
        let _ = Transformer::load(
            &folder.checkpoint.tensors,
            &folder.spec,
            LoadOptions::default(),
        );
    }
}

fn damaged(bytes: &[u8], damage: &[(usize, u8)], keep: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (place, byte) in damage {
        let len = bytes.len();
        bytes[place % len] = *byte;
    }
    bytes.truncate(bytes.len() - keep % 3);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_weights_never_panic(
        damage in prop::collection::vec((0usize..2500, any::<u8>()), 1..6),
        cut in 0usize..4,
    ) {
        let given = Given::llama();
        let bytes = damaged(&fs::read(given.weights()).unwrap(), &damage, cut);
        open_and_load(&given.with_weights(&bytes).model());
    }

    #[test]
    fn damaged_configs_never_panic(
        damage in prop::collection::vec((any::<usize>(), b' '..b'~'), 1..6),
        cut in 0usize..4,
    ) {
        let given = Given::llama();
        let path = given.model().join("config.json");
        fs::write(&path, damaged(&fs::read(&path).unwrap(), &damage, cut)).unwrap();
        open_and_load(&given.model());
    }

    #[test]
    fn numbers_put_into_configs_never_panic(
        at in 0usize..12,
        number in prop_oneof![
            any::<i64>().prop_map(Value::from),
            (-2i64..70).prop_map(Value::from),
            any::<f64>().prop_map(|x| json!(x)),
        ],
    ) {
        for config in minitron::families() {
            let mut config = with_demo_vocabulary(config);
            let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
            config[keys[at % keys.len()].as_str()] = number.clone();
            let config = Config::from_value(Path::new("config.json"), config).unwrap();
            let _ = minitron_core::spec::ModelSpec::from_config(&config, &minitron::registry());
        }
    }
}
