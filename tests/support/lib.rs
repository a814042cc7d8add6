//! What tests and benches share: where things are, tiny models, running the command line and the
//! reference.

mod python;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use minitron_core::calibrate::{Alone, Calibration, Scores};
use minitron_core::checkpoint::{Config, TensorSource, WriteOptions, write_model};
use minitron_core::contract::Axis;
use minitron_core::error::{IoContext, Result};
use minitron_core::model::{Input, LoadOptions, NoTap, Transformer, fresh_weights};
use minitron_core::progress::{Interrupt, Progress, Silent};
use minitron_core::random::SplitMix;
use minitron_core::registry::{Descriptor, Kind, PluginSpec, Registry};
use minitron_core::spec::{ModelFolder, ModelSpec, PruneGroup};
use minitron_core::windows::{Task, Windows};
use minitron_engine::jobs::Context;
use minitron_engine::ranks::Ranks;
use minitron_engine::score::{self as scoring, Metric, ScoreInputs};
pub use minitron_plugins::laws::random_weights;
use serde_json::Value;
use tch::Tensor;

pub use python::{python, run_python, talk_to_python};
pub use workspace::Workspace;

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of the golden script.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/golden/fixtures").join(name)
}

/// All folders of the golden script, sorted.
pub fn fixtures() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/golden/fixtures"))
        .into_iter()
        .flatten()
        .flatten();
    let mut dirs: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    dirs
}

/// A file or folder of the data that may lie beside the repository; says so where it does not.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(relative);
    if !path.exists() {
        // Tests go on without it, but not silently.
        std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("absent, not tested: {relative}\n").as_bytes(),
        )
        .ok();
        return None;
    }
    path.canonicalize().ok()
}

/// The plugins that are linked.
pub fn registry() -> Registry {
    minitron_plugins::link();
    Registry::linked().unwrap_or_else(|e| unreachable!("{e}"))
}

/// Whether a plugin works without a file that somebody names; what others make of theirs is tested
/// with one.
pub fn reads_no_file(plugin: &Descriptor) -> bool {
    (plugin.example)().get("path").is_none()
}

/// Writes an untrained model of a config into `dir`; weights are spread so that logits differ.
pub fn write_tiny(dir: &Path, config: &Value, seed: u64) -> Result<()> {
    let mut config = config.clone();
    if config.get("initializer_range").is_none() {
        config["initializer_range"] = Value::from(0.3);
    }
    let config = Config::from_value(&dir.join("config.json"), config)?;
    let spec = ModelSpec::from_config(&config, &registry())?;
    std::fs::create_dir_all(dir).unwrap_or_default();
    write_model(
        dir,
        &config,
        &fresh_weights(&spec, seed)?,
        None,
        WriteOptions::default(),
    )
}

/// A small Llama with grouped queries.
pub fn tiny_llama() -> Value {
    serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 61,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
            "hidden_act": "silu"
    })
}

/// A small GPT-2.
pub fn tiny_gpt2() -> Value {
    serde_json::json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_inner": 48,
            "n_layer": 3,
        "n_head": 4, "vocab_size": 61, "n_positions": 64, "activation_function": "gelu_new"
    })
}

/// A small BERT with a masked-language head.
pub fn tiny_bert() -> Value {
    serde_json::json!({
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61,
            "max_position_embeddings": 64,
        "type_vocab_size": 2, "hidden_act": "gelu"
    })
}

/// A small Nemotron with grouped queries and partial rotation.
pub fn tiny_nemotron() -> Value {
    serde_json::json!({
        "model_type": "nemotron", "architectures": ["NemotronForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 61,
        "max_position_embeddings": 64, "partial_rotary_factor": 0.5, "tie_word_embeddings": false
    })
}

/// A small Gemma 3: tied, norms around parts, norms of queries and keys, windows in two of three
/// layers, two rotations.
pub fn tiny_gemma3() -> Value {
    serde_json::json!({
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 61,
        "max_position_embeddings": 64, "sliding_window": 5, "query_pre_attn_scalar": 12,
            "tie_word_embeddings": true,
        "sliding_window_pattern": 2
    })
}

/// A small OLMo 3: norms after parts alone, norms over whole queries and keys, windows in two of
/// three layers.
pub fn tiny_olmo3() -> Value {
    serde_json::json!({
        "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 61,
        "max_position_embeddings": 64, "sliding_window": 4, "tie_word_embeddings": false
    })
}

/// A small GPT-NeoX: attention beside the MLP, queries, keys and values fused head by head.
pub fn tiny_neox() -> Value {
    serde_json::json!({
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 61,
            "max_position_embeddings": 64,
        "rotary_pct": 0.5, "tie_word_embeddings": false
    })
}

/// A small Nemotron-H: one mixer in each layer.
pub fn tiny_nemotron_h() -> Value {
    serde_json::json!({
        "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "hybrid_override_pattern": "M-*M", "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8,
            "chunk_size": 4,
        "vocab_size": 61, "max_position_embeddings": 64, "tie_word_embeddings": false
    })
}

/// A small Bamba: Mamba or attention, then an MLP.
pub fn tiny_bamba() -> Value {
    serde_json::json!({
        "model_type": "bamba", "architectures": ["BambaForCausalLM"], "hidden_size": 32,
            "intermediate_size": 48,
        "num_hidden_layers": 3, "attn_layer_indices": [1], "num_attention_heads": 4,
            "num_key_value_heads": 2,
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8,
            "mamba_chunk_size": 4,
        "vocab_size": 61, "max_position_embeddings": 64, "tie_word_embeddings": true
    })
}

/// A small DeciLM: one layer without attention, one without MLP.
pub fn tiny_decilm() -> Value {
    let attention = serde_json::json!({ "n_heads_in_group": 2, "no_op": false });
    let ffn = serde_json::json!({ "intermediate_size": 48, "no_op": false });
    let none = serde_json::json!({ "no_op": true });
    let mut config = tiny_llama();
    config["model_type"] = Value::from("nemotron-nas");
    config["architectures"] = serde_json::json!(["DeciLMForCausalLM"]);
    config["intermediate_size"] = Value::Null;
    config["num_key_value_heads"] = Value::Null;
    config["block_configs"] = serde_json::json!([
        { "attention": attention, "ffn": ffn },
        { "attention": none, "ffn": ffn },
        { "attention": attention, "ffn": none },
    ]);
    config
}

/// Each query head has keys and values of its own, where a config says so layer by layer.
pub fn without_groups(config: &mut Value) {
    let blocks = config
        .get_mut("block_configs")
        .and_then(Value::as_array_mut);
    for block in blocks.into_iter().flatten() {
        if let Some(group) = block["attention"].get_mut("n_heads_in_group") {
            *group = Value::from(1);
        }
    }
}

/// What least squares is asked for in a family: not the writers of one that norms what they give.
pub fn least_squares(config: &Value) -> &'static str {
    let norms_what_is_added = ["gemma3_text", "olmo3"]
        .map(Value::from)
        .contains(&config["model_type"]);
    if norms_what_is_added {
        "least_squares:writers=false"
    } else {
        "least_squares"
    }
}

/// Small configs of families that differ in what their layers are made of.
pub fn families() -> [Value; 11] {
    [
        tiny_llama(),
        tiny_gpt2(),
        tiny_bert(),
        tiny_nemotron(),
        tiny_gemma3(),
        tiny_olmo3(),
        tiny_neox(),
        tiny_nemotron_h(),
        tiny_bamba(),
        tiny_qwen2_moe(),
        tiny_decilm(),
    ]
}

/// Those of them whose layers all have attention and an MLP.
pub fn alike() -> Vec<Value> {
    let mut alike = families().to_vec();
    alike.retain(|config| {
        !["nemotron_h", "bamba", "qwen2_moe", "nemotron-nas"]
            .map(Value::from)
            .contains(&config["model_type"])
    });
    alike
}

/// Experts of 12 neurons in one tensor, with biases.
pub fn tiny_gpt_oss() -> Value {
    serde_json::json!({
        "model_type": "gpt_oss", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": 6, "num_experts_per_tok": 2, "max_position_embeddings": 64,
        "layer_types": ["full_attention", "full_attention"], "attention_bias": true,
        "tie_word_embeddings": false, "rms_norm_eps": 1e-6
    })
}

/// Three layers, of which the last has experts and one for all tokens, the others an MLP.
pub fn tiny_qwen2_moe() -> Value {
    serde_json::json!({
        "model_type": "qwen2_moe", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20, "mlp_only_layers": [0, 1],
        "max_position_embeddings": 64, "tie_word_embeddings": false, "rms_norm_eps": 1e-6
    })
}

/// Opens and loads a folder in f32.
pub fn load(dir: &Path) -> Result<(ModelFolder, Transformer)> {
    let folder = ModelFolder::open(dir, &registry())?;
    let model = Transformer::load(
        &folder.checkpoint.tensors,
        &folder.spec,
        LoadOptions::default(),
    )?;
    Ok((folder, model))
}

/// Logits, or the last hidden state of a model without a head, of ids [B, T].
pub fn forward<'a>(model: &Transformer, input: impl Into<Input<'a>>) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let hidden = model.hidden(input, &mut NoTap, None)?;
    if model.has_head() {
        model.logits(&hidden)
    } else {
        Ok(hidden)
    }
}

/// Ids [B, T] below `vocab`, the same for the same seed.
pub fn some_ids(n_batch: i64, n_tokens: i64, vocab: i64, seed: i64) -> Result<Tensor> {
    tch::manual_seed(seed);
    Ok(Tensor::f_randint(
        vocab,
        [n_batch, n_tokens],
        (tch::Kind::Int64, tch::Device::Cpu),
    )?)
}

/// Largest absolute difference.
pub fn max_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (
        a.f_to_kind(tch::Kind::Double)?,
        b.f_to_kind(tch::Kind::Double)?,
    );
    Ok(a.f_sub(&b)?.f_abs()?.f_max()?.f_double_value(&[])?)
}

/// The built command line.
pub fn binary() -> PathBuf {
    // target/release/deps/index-… is what runs; the binary lies two folders up.
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .join("minitron")
}

/// Runs the command line from the repository's root.
pub fn minitron(args: &[&str]) -> std::io::Result<Output> {
    Command::new(binary())
        .args(args)
        .current_dir(root())
        .output()
}

/// The built-in plugins on the CPU in f32, as the command line sets them up; MODELs are folders.
pub fn with_context<T>(force: bool, job: impl FnOnce(&Context) -> T) -> T {
    let registry = registry();
    let resolve = |model: &str| Ok(PathBuf::from(model));
    job(&Context {
        registry: &registry,
        defaults: &minitron_plugins::BuiltIn,
        device: tch::Device::Cpu,
        kind: tch::Kind::Float,
        seed: 0,
        force,
        ranks: Ranks::alone(),
        progress: &Silent,
        interrupt: &Interrupt::default(),
        resolve: &resolve,
    })
}

/// Keeps what people are told.
#[derive(Debug, Default)]
pub struct Recorder {
    notes: Mutex<Vec<String>>,
    warnings: Mutex<Vec<String>>,
}

impl Recorder {
    /// What was noted since the last time.
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was warned of since the last time.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Progress for Recorder {
    fn start(&self, _what: &str, _total: u64) {}
    fn advance(&self, _n: u64, _note: &str) {}
    fn finish(&self) {}
    fn note(&self, message: &str) {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message.to_owned());
    }
    fn warn(&self, message: &str) {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message.to_owned());
    }
}

/// Writes an untrained model with the demo's tokenizer into `dir`.
pub fn write_tiny_with_tokenizer(dir: &Path, config: Value, seed: u64) -> Result<()> {
    write_tiny(dir, &with_demo_vocabulary(config), seed)?;
    add_demo_tokenizer(dir).at_path(dir)
}

/// A config with the vocabulary of the demo's tokenizer.
pub fn with_demo_vocabulary(mut config: Value) -> Value {
    config["vocab_size"] = Value::from(512);
    config["eos_token_id"] = Value::from(0);
    config
}

/// Puts the demo's tokenizer into a model folder.
pub fn add_demo_tokenizer(dir: &Path) -> std::io::Result<()> {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(root().join("examples/demo").join(name), dir.join(name))?;
    }
    Ok(())
}

/// A few kilobytes of text that repeats itself with variations.
pub fn some_text() -> String {
    let (who, what) = (
        ["the cat", "a dog", "my friend"],
        ["saw", "liked", "found", "lost"],
    );
    let sentence = |i: usize| {
        format!(
            "One day, {} {} a ball near house {}. ",
            who[i % 3],
            what[i % 4],
            i % 7
        )
    };
    (0..120).map(sentence).collect()
}

/// A config that lies in no folder.
pub fn config(value: &Value) -> Result<Config> {
    Config::from_value(Path::new("config.json"), value.clone())
}

/// Every linked axis with its defaults.
pub fn axes(registry: &Registry) -> Result<Vec<Box<dyn Axis>>> {
    registry
        .of_kind(Kind::Axis)
        .map(|descriptor| registry.build(&PluginSpec::bare(descriptor.tag)))
        .collect()
}

/// Everything that can be pruned.
pub fn groups(spec: &ModelSpec) -> Result<Vec<PruneGroup>> {
    let groups: Vec<Vec<PruneGroup>> = axes(&registry())?
        .iter()
        .map(|axis| axis.groups(spec))
        .collect::<Result<_>>()?;
    Ok(groups.concat())
}

/// Windows of given tokens, without special tokens.
pub fn windows(tokens: Vec<u32>, width: usize) -> Result<Windows> {
    Windows::cut(tokens, width, None, None, "tokens")
}

/// Windows of tokens below `vocab`, the same for the same seed.
pub fn some_windows(n_windows: usize, width: usize, vocab: usize, seed: u64) -> Result<Windows> {
    let mut random = SplitMix::new(seed);
    windows(
        (0..n_windows * width)
            .map(|_| random.below(vocab) as u32)
            .collect(),
        width,
    )
}

/// What a pass over some windows takes; an encoder's mask is its last token but one.
pub fn calibration<'a>(
    spec: &ModelSpec,
    windows: &'a Windows,
    batch_size: usize,
) -> Result<Calibration<'a>> {
    let mask = spec.options.vocab.checked_sub(2).map(|id| id as u32);
    let task = Some(Task::of(spec.options.causal, mask, 0)?);
    Ok(Calibration {
        windows,
        task,
        batch_size,
        world: &Alone,
        progress: &Silent,
    })
}

/// Scores by every metric that needs no task file, as the command line takes them.
pub fn score(
    source: &dyn TensorSource,
    spec: &ModelSpec,
    metrics: Vec<Metric>,
    windows: &Windows,
    batch_size: usize,
) -> Result<Scores> {
    let groups = groups(spec)?;
    let task = calibration(spec, windows, batch_size)?.task;
    let inputs = ScoreInputs {
        task,
        batch_size,
        ..ScoreInputs::new(source, spec, &groups, windows)
    };
    scoring::score(&inputs, metrics)
}

/// A metric under the name it is written with.
pub fn metric(spec: &str) -> Result<Metric> {
    Ok(Metric {
        label: spec.to_owned(),
        importance: registry().build(&spec.parse()?)?,
    })
}
