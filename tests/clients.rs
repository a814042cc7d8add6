#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{
    Recorder, Workspace, axes, families, forward, load, max_difference, minitron, python, registry,
    root, shared, some_ids, tiny_bert, tiny_gpt2, tiny_llama, tiny_nemotron, with_context,
};
use minitron_core::checkpoint::{MemorySource, Reader, TensorSource, write_tensors};
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::{Pooling, SentenceModules, sentence_embeddings};
use minitron_core::model::Transformer;
use minitron_core::plan::{Count, Space};
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use minitron_core::spec::{
    At, DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, ModelSpec, ParamKind, ROPE_PAIRS, Role, Sizes,
};
use minitron_core::windows::Tokenize;
use minitron_engine::data::Tokenizer;
use minitron_engine::jobs::{
    Context, InspectOptions, PruneOptions, ReconstructOptions, ScoreOptions, TrainOptions, inspect,
    prune, score, train,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// A folder with a model and room for what is made of it.
struct Exported {
    files: Workspace,
}

impl std::ops::Deref for Exported {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Exported {
    fn new(config: &Value) -> Self {
        Exported {
            files: Workspace::new().model("model", config, 1),
        }
    }

    /// A sentence encoder 32 wide: pooling, and what else is named.
    fn encoder(pooling: &Value, more: &[&str]) -> Self {
        let mut config = tiny_bert();
        config["architectures"] = json!(["BertModel"]);
        let exported = Self::new(&config);
        let modules = ["Transformer", "Pooling"]
            .iter()
            .chain(more)
            .enumerate()
            .map(|(idx, kind)| {
                let path = if idx == 0 {
                    String::new()
                } else {
                    format!("{idx}_{kind}")
                };
                json!({ "idx": idx, "name": idx.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{kind}") })
            });
        exported.write("model/modules.json", Value::from_iter(modules).to_string());
        exported.write("model/1_Pooling/config.json", pooling.to_string());
        exported
    }

    /// Gives it a Dense that turns `n_in` values to 5.
    fn with_dense(self, n_in: i64) -> Self {
        tch::manual_seed(3);
        let mut tensors = MemorySource::default();
        tensors
            .insert(
                "linear.weight",
                &Tensor::randn([5, n_in], (Kind::Float, Device::Cpu)),
            )
            .unwrap();
        tensors
            .insert(
                "linear.bias",
                &Tensor::randn([5], (Kind::Float, Device::Cpu)),
            )
            .unwrap();
        let config = json!({ "in_features": n_in, "out_features": 5, "bias": true,
                             "activation_function": "torch.nn.modules.activation.Tanh" });
        self.write("model/2_Dense/config.json", config.to_string());
        write_tensors(&self.at("model/2_Dense/model.safetensors"), &tensors).unwrap();
        self
    }

    /// Prunes by a plan of kept units alone, which needs no scores.
    fn prune(&self, kept: &Value, out: &str) -> Result<Value> {
        self.write("plan.json", json!({ "kept": kept }).to_string());
        let options = PruneOptions {
            model: self.at("model").display().to_string(),
            plan: Some(self.at("plan.json")),
            ..PruneOptions::default()
        };
        with_context(false, |context| {
            prune(context, &options, &self.at(out), false)
        })
    }
}

/// Channels and heads of a BERT 32 wide that leave it 24 wide.
fn narrower() -> Value {
    let hidden: Vec<usize> = (0..32).filter(|channel| channel % 4 != 1).collect();
    json!({ "hidden": hidden, "heads.0": [0, 1, 3], "heads.1": [0, 2, 3], "heads.2": [1, 2, 3] })
}

fn space(config: &Value) -> (ModelSpec, Space) {
    let spec = ModelSpec::from_config(&minitron::config(config).unwrap(), &registry()).unwrap();
    let space = Space::new(&spec, &axes(&registry()).unwrap()).unwrap();
    (spec, space)
}

fn sizes(of: &[(&str, usize)]) -> Sizes {
    of.iter()
        .map(|&(kind, size)| (kind.to_owned(), size))
        .collect()
}

// --- sentence encoders
// -----------------------------------------------------------------------------------------------

#[test]
fn pooling_announces_the_width_of_the_student_in_both_formats() {
    for (key, pooling) in [
        (
            "word_embedding_dimension",
            json!({ "word_embedding_dimension": 32, "pooling_mode_mean_tokens": true }),
        ),
        (
            "embedding_dimension",
            json!({ "embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": true }),
        ),
    ] {
        let exported = Exported::encoder(&pooling, &["Normalize"]);
        exported.write("model/2_Normalize/config.json", "{}");
        exported.prune(&narrower(), "student").unwrap();
        let mut expected = pooling;
        expected[key] = json!(24);
        assert_eq!(exported.value("student/1_Pooling/config.json"), expected);
        assert_eq!(
            exported.value("student/modules.json"),
            exported.value("model/modules.json")
        );
        assert!(exported.at("student/2_Normalize/config.json").is_file());
        exported
            .prune(&json!({ "depth": [0, 2] }), "shallower")
            .unwrap();
        assert_eq!(
            exported.value("shallower/1_Pooling/config.json"),
            exported.value("model/1_Pooling/config.json")
        );
    }
}

#[test]
fn a_student_whose_pooling_speaks_of_its_teacher_is_set_right_when_it_is_trained() {
    let exported = Exported::new(&tiny_llama());
    exported.write(
        "model/modules.json",
        r#"[{"idx": 0, "path": "", "type": "Transformer"}, {"idx": 1, "path": "1_Pooling", "type": "Pooling"}]"#,
    );
    exported.write(
        "model/1_Pooling/config.json",
        r#"{"word_embedding_dimension": 384}"#,
    );
    exported.write("text.txt", minitron::some_text());
    let mut options = TrainOptions {
        model: Some(exported.at("model").display().to_string()),
        ..TrainOptions::default()
    };
    options.training.data = vec![
        exported
            .at("text.txt")
            .display()
            .to_string()
            .parse()
            .unwrap(),
    ];
    (
        options.training.tokens,
        options.training.seq_len,
        options.training.batch_size,
    ) = (Count(64), Some(16), 2);
    with_context(false, |context| {
        train(context, &options, &exported.at("out"), false)
    })
    .unwrap();
    assert_eq!(
        exported.value("out/1_Pooling/config.json"),
        json!({ "word_embedding_dimension": 32 })
    );
    let card = fs::read_to_string(exported.at("out/README.md")).unwrap();
    assert!(
        card.contains("base_model: \"model\"")
            && card.contains("| training loss | ")
            && card.contains("(step 2)"),
        "{card}"
    );
}

#[test]
fn the_first_dense_loses_the_columns_of_channels_that_went() {
    let pooling = json!({ "word_embedding_dimension": 32, "pooling_mode_mean_tokens": true });
    // Two ways of pooling side by side are twice as wide.
    for n_pooled in [1, 2] {
        let exported =
            Exported::encoder(&pooling, &["Dense", "Normalize"]).with_dense(32 * n_pooled);
        exported.prune(&narrower(), "student").unwrap();
        assert_eq!(
            exported.value("student/2_Dense/config.json")["in_features"],
            json!(24 * n_pooled)
        );
        let [before, after] = ["model", "student"]
            .map(|name| Reader::open(&exported.at(name).join("2_Dense")).unwrap());
        let kept: Vec<i64> = (0..32 * n_pooled)
            .filter(|channel| channel % 4 != 1)
            .collect();
        let expected = before
            .read("linear.weight")
            .unwrap()
            .index_select(1, &Tensor::from_slice(&kept));
        assert_eq!(after.read("linear.weight").unwrap(), expected);
        assert_eq!(
            after.read("linear.bias").unwrap(),
            before.read("linear.bias").unwrap()
        );
    }
}

#[test]
fn modules_that_cannot_follow_a_narrower_student_are_refused_by_name() {
    let pooling = json!({ "embedding_dimension": 32, "pooling_mode": "cls" });
    let refusal = |exported: &Exported| {
        exported
            .prune(&narrower(), "student")
            .unwrap_err()
            .to_string()
    };
    let norm = Exported::encoder(&pooling, &["LayerNorm"]);
    assert!(
        refusal(&norm).contains("`2_LayerNorm` (LayerNorm) cannot be pruned"),
        "{}",
        refusal(&norm)
    );
    norm.prune(&json!({ "depth": [0, 1] }), "shallower")
        .unwrap();
    let dense = Exported::encoder(&pooling, &["Dense"]);
    assert!(
        refusal(&dense).contains("modules.json names `2_Dense` (Dense)"),
        "{}",
        refusal(&dense)
    );
    let dense = dense.with_dense(32);
    fs::rename(
        dense.at("model/2_Dense/model.safetensors"),
        dense.at("model/2_Dense/pytorch_model.bin"),
    )
    .unwrap();
    assert!(
        refusal(&dense).contains("expected model.safetensors of module `2_Dense`"),
        "{}",
        refusal(&dense)
    );
    dense
        .prune(&json!({ "depth": [0, 1] }), "shallower")
        .unwrap();
    assert!(dense.at("shallower/2_Dense/pytorch_model.bin").is_file());
    let dense = Exported::encoder(&pooling, &["Dense"]).with_dense(30);
    assert!(
        refusal(&dense).contains("expected 32 or a multiple"),
        "{}",
        refusal(&dense)
    );
    for (path, says) in [
        ("../elsewhere", "inside the model's"),
        ("/etc", "inside the model's"),
    ] {
        let exported = Exported::encoder(&pooling, &[]);
        exported.write(
            "model/modules.json",
            json!([{ "path": path, "type": "Pooling" }]).to_string(),
        );
        assert!(refusal(&exported).contains(says), "{}", refusal(&exported));
    }
    assert!(!norm.at("student").exists());
}

#[test]
fn sentence_embeddings_pass_through_the_modules_that_the_folder_names() {
    let exported = Exported::encoder(
        &json!({ "embedding_dimension": 32, "pooling_mode": "mean" }),
        &["Dense", "Normalize"],
    );
    let exported = exported.with_dense(32);
    let (_, model) = load(&exported.at("model")).unwrap();
    let sentences = [vec![3u32, 5, 7], vec![9, 4]];
    let embed = |modules: &SentenceModules| {
        sentence_embeddings(&model, &sentences, modules, 1, &Silent).unwrap()
    };
    let dense = Reader::open(&exported.at("model/2_Dense")).unwrap();
    let expected = sentences.each_ref().map(|ids| {
        let ids = Tensor::from_slice(&ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>())
            .unsqueeze(0);
        let mean = forward(&model, &ids)
            .unwrap()
            .mean_dim([1i64].as_slice(), false, Kind::Float);
        let (weight, bias) = (
            dense.read("linear.weight").unwrap(),
            dense.read("linear.bias").unwrap(),
        );
        let out = mean.linear(&weight, Some(&bias)).tanh();
        let length = out.norm();
        out / length
    });
    let found = embed(&SentenceModules::of(&model, None).unwrap());
    assert!(max_difference(&found, &Tensor::cat(&expected, 0)).unwrap() < 1e-6);
    // Another way of pooling than the folder's changes pooling alone.
    assert_eq!(
        embed(&SentenceModules::of(&model, Some(Pooling::Cls)).unwrap()).size(),
        [2, 5]
    );
}

#[test]
fn pooling_is_read_in_both_formats_and_other_ways_are_refused_by_name() {
    let of = |pooling: Value, more: &[&str]| {
        let exported = Exported::encoder(&pooling, more);
        let (_, model) = load(&exported.at("model")).unwrap();
        SentenceModules::of(&model, None)
            .map(|modules| format!("{modules:?}"))
            .map_err(|e| e.to_string())
    };
    for pooling in [
        json!({ "pooling_mode": "cls" }),
        json!({ "pooling_mode": ["cls"] }),
        json!({ "pooling_mode_cls_token": true }),
    ] {
        assert!(of(pooling, &[]).unwrap().contains("pooling: Cls"));
    }
    for pooling in [
        json!({}),
        json!({ "pooling_mode": "mean" }),
        json!({ "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false }),
    ] {
        assert!(
            of(pooling, &["Normalize"])
                .unwrap()
                .contains("pooling: Mean")
        );
    }
    for (pooling, way) in [
        (json!({ "pooling_mode": "lasttoken" }), "lasttoken"),
        (json!({ "pooling_mode": ["cls", "mean"] }), "cls and mean"),
        (json!({ "pooling_mode_max_tokens": true }), "max"),
    ] {
        let error = of(pooling, &[]).unwrap_err();
        assert!(
            error.contains(&format!("pooling by {way} is not supported")),
            "{error}"
        );
    }
    let error = of(json!({ "pooling_mode": "mean" }), &["LayerNorm"]).unwrap_err();
    assert!(
        error.contains("module `2_LayerNorm` (LayerNorm) is not supported"),
        "{error}"
    );
}

// --- what a student is
// -----------------------------------------------------------------------------------------------

#[test]
fn licences_and_templates_travel_and_the_card_says_what_the_student_is() {
    let exported = Exported::new(&tiny_gpt2());
    let mut config = exported.value("model/config.json");
    config["_name_or_path"] = json!("somebody/else");
    exported.write("model/config.json", config.to_string());
    let front = "---\nlicense: other\nlicense_name: some-licence\nlicense_link: \
                 LICENSE\nlanguage:\n- en\n- de\n\
                 tags: [plain, 'of words']\nbase_model: somebody/else\nmetrics:\n- \
                 accuracy\n---\n# The teacher\nIt is the best.\n";
    exported.write("model/README.md", front);
    let texts = [
        "LICENSE",
        "License-MIT.txt",
        "NOTICE.md",
        "USE_POLICY.md",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ];
    texts
        .iter()
        .for_each(|name| exported.write(&format!("model/{name}"), name));
    exported.write("model/secret.env", "not to travel");
    exported
        .prune(&json!({ "depth": [0, 2] }), "student")
        .unwrap();
    for name in texts {
        assert_eq!(
            fs::read_to_string(exported.at("student").join(name)).unwrap(),
            name
        );
    }
    assert!(!exported.at("student/secret.env").exists());
    assert_eq!(
        exported.value("student/config.json").get("_name_or_path"),
        None
    );
    let card = fs::read_to_string(exported.at("student/README.md")).unwrap();
    let begin = "---\nbase_model: \"model\"\nlibrary_name: transformers\nlicense: \
                 other\nlicense_name: some-licence\n\
                 license_link: LICENSE\nlanguage:\n- en\n- de\npipeline_tag: text-generation\n\
                 tags:\n- \"plain\"\n- \"of words\"\n- \"minitron\"\n---\n\n# Made from model with \
                 minitron\n";
    assert!(card.starts_with(begin), "{card}");
    assert!(
        card.contains("| depth | 3 | 2 |") && card.contains("### prune"),
        "{card}"
    );
    assert!(
        !card.contains("best") && !card.contains(&exported.root().display().to_string()),
        "{card}"
    );
    // A student of the student is one of the first model, and says what happened to it.
    fs::rename(exported.at("model"), exported.at("first")).unwrap();
    fs::rename(exported.at("student"), exported.at("model")).unwrap();
    exported.prune(&json!({ "depth": [0] }), "again").unwrap();
    let again = fs::read_to_string(exported.at("again/README.md")).unwrap();
    assert!(again.starts_with(begin), "{again}");
    assert_eq!(again.matches("### prune").count(), 2);
    exported.prune(&json!({ "depth": [0] }), "same").unwrap();
    assert_eq!(
        fs::read_to_string(exported.at("same/README.md")).unwrap(),
        again
    );
}

// --- planning
// --------------------------------------------------------------------------------------------------------

/// Every alternative that an error offers.
fn advice(message: &str) -> Vec<Sizes> {
    let (_, offered) = message.split_once("nearest: ").unwrap();
    let read = |alternative: &str| {
        let words: Vec<&str> = alternative.split_whitespace().collect();
        let pair = |pair: &[&str]| {
            let (kind, size) = match pair[0].trim_start_matches("--") {
                "size" => pair[1].split_once('=').unwrap(),
                kind => (kind, pair[1]),
            };
            let kind = if kind == "layers" {
                DEPTH.to_owned()
            } else {
                kind.replace('-', "_")
            };
            (kind, size.parse().unwrap())
        };
        words.chunks(2).map(pair).collect()
    };
    offered.split(" or ").map(read).collect()
}

#[test]
fn what_an_error_advises_can_be_typed() {
    let mut prose = tiny_llama();
    let large = json!({ "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "intermediate_size": 768 });
    large
        .as_object()
        .unwrap()
        .iter()
        .for_each(|(key, value)| prose[key.as_str()] = value.clone());
    let mut random = SplitMix::new(5);
    let mut n_refused = 0;
    for config in families().iter().chain([&prose]) {
        let (spec, space) = space(config);
        for space in [space.clone(), space.squared(&spec)] {
            for _ in 0..60 {
                let wanted: Sizes = space
                    .axes
                    .iter()
                    .filter_map(|axis| match random.below(2) {
                        0 => Some((axis.kind.clone(), random.below(axis.full + 4))),
                        _ => None,
                    })
                    .collect();
                let Err(Error::Plan(message)) = space.complete(&wanted) else {
                    continue;
                };
                n_refused += 1;
                for offered in advice(&message) {
                    assert!(space.complete(&offered).is_ok(), "{wanted:?}: {message}");
                    assert!(
                        wanted.keys().all(|kind| offered.contains_key(kind)),
                        "{wanted:?}: {message}"
                    );
                }
            }
        }
    }
    assert!(n_refused > 200, "{n_refused}");
    // LlamaConfig wants hidden to be a multiple of heads: 3 key/value heads leave 6.
    let message = space(&prose)
        .1
        .complete(&sizes(&[(KV_HEADS, 3)]))
        .unwrap_err()
        .to_string();
    assert!(
        message.ends_with("nearest: --kv-heads 4 or --hidden 192 --kv-heads 3 or --kv-heads 2"),
        "{message}"
    );
}

#[test]
fn widths_step_by_quantisation_blocks_where_the_source_consists_of_them() {
    let step = |hidden: usize, mlp: usize| {
        let mut config = tiny_llama();
        (config["hidden_size"], config["intermediate_size"]) = (json!(hidden), json!(mlp));
        let (_, space) = space(&config);
        (
            space.axis(HIDDEN).unwrap().step,
            space.axis(MLP).unwrap().step,
        )
    };
    assert_eq!(step(576, 1536), (32, 32));
    assert_eq!(step(256, 248), (32, 4));
    // Coarser where the width is, finer where it is narrow or no multiple.
    assert_eq!(step(4096, 11008), (64, 128));
    assert_eq!(step(224, 300), (8, 4));
}

#[test]
fn tensor_parallel_sizes_divide_heads_and_mlp_and_share_key_value_heads_evenly() {
    let of = |heads: usize, kv_heads: usize, mlp: usize| {
        let mut config = tiny_llama();
        (config["num_attention_heads"], config["num_key_value_heads"]) =
            (json!(heads), json!(kv_heads));
        (config["hidden_size"], config["intermediate_size"]) = (json!(heads * 8), json!(mlp));
        space(&config).0.tensor_parallel_at(&Sizes::new())
    };
    assert_eq!(of(6, 3, 768), [1, 3, 6]);
    assert_eq!(of(8, 4, 768), [1, 2, 4, 8]);
    assert_eq!(of(32, 8, 11008), [1, 2, 4, 8, 16, 32]);
    assert_eq!(of(4, 4, 6), [1, 2]);
    let (gpt2, _) = space(&tiny_gpt2());
    assert_eq!(gpt2.tensor_parallel_at(&sizes(&[(HEADS, 3)])), [1, 3]);
}

/// Clients that a family's table names at some sizes, and what it says of them.
fn limits(config: &Value, of: &[(&str, usize)]) -> Vec<(String, String)> {
    let (spec, _) = space(config);
    let registry = registry();
    let family = registry.architecture_for(&spec.config).unwrap();
    let limits = family.client_limits(&spec, &sizes(of));
    limits
        .into_iter()
        .map(|limit| (limit.client, limit.message))
        .collect()
}

/// A decoder of six layers under Llama's keys.
fn six_layers(model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
            "max_position_embeddings": 64,
        "tie_word_embeddings": true,
    });
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn clients_that_compute_head_dim_are_named_by_family_where_hidden_is_another_width() {
    let clients = |model_type: &str, of: &[(&str, usize)]| -> Vec<String> {
        let limits = limits(&six_layers(model_type, &json!({})), of);
        assert!(
            limits
                .iter()
                .all(|(_, message)| message.contains("hidden 24; keep them equal with --square"))
        );
        limits.into_iter().map(|(client, _)| client).collect()
    };
    for (model_type, refuse) in [
        ("qwen2", &["vLLM", "llama.cpp"][..]),
        ("starcoder2", &["vLLM", "llama.cpp"]),
        ("olmo2", &["vLLM", "llama.cpp"]),
        ("olmo3", &["llama.cpp"]),
        ("phi3", &["llama.cpp"]),
        ("granite", &["llama.cpp"]),
        ("qwen3", &[]),
        ("mistral", &[]),
        ("smollm3", &[]),
    ] {
        assert_eq!(clients(model_type, &[(HIDDEN, 24)]), refuse, "{model_type}");
        assert_eq!(clients(model_type, &[]), [""; 0], "{model_type}");
        assert_eq!(
            clients(model_type, &[(HIDDEN, 16), (HEADS, 2)]),
            [""; 0],
            "{model_type}"
        );
    }
}

#[test]
fn a_class_that_turns_by_the_base_alone_is_named_where_the_config_says_more() {
    let named = |more: &Value, of: &[(&str, usize)]| -> Vec<String> {
        let mut limits = limits(&six_layers("starcoder2", more), of);
        limits.retain(|(_, message)| message.contains("by rope_theta alone"));
        limits.into_iter().map(|(client, _)| client).collect()
    };
    let linear = json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 2.0 });
    assert_eq!(named(&json!({ "rope_parameters": linear }), &[]), ["vLLM"]);
    assert_eq!(
        named(&json!({}), &[(ROPE_PAIRS, 2), (HIDDEN, 16)]),
        ["vLLM"]
    );
    assert_eq!(named(&json!({}), &[(HIDDEN, 16), (HEADS, 2)]), [""; 0]);
}

#[test]
fn layers_that_llama_cpp_counts_itself_are_compared_with_the_list() {
    let (full, slides) = (json!("full_attention"), json!("sliding_attention"));
    let gemma = json!({ "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4 });
    let other = |key: &str, list: Vec<Value>, model_type: &str| {
        let mut more = gemma.clone();
        more[key] = json!(list);
        limits(&six_layers(model_type, &more), &[])
    };
    for (model_type, key, kept) in [
        (
            "gemma2",
            "layer_types",
            vec![&slides, &full, &slides, &slides, &full, &slides],
        ),
        (
            "gemma3_text",
            "layer_types",
            vec![&slides, &slides, &slides, &slides, &full, &slides],
        ),
        (
            "modernbert",
            "layer_types",
            vec![&full, &slides, &full, &slides, &slides, &full],
        ),
        (
            "smollm3",
            "no_rope_layers",
            vec![
                &json!(1),
                &json!(1),
                &json!(0),
                &json!(1),
                &json!(1),
                &json!(1),
            ],
        ),
    ] {
        let whole = six_layers(model_type, &gemma);
        assert!(limits(&whole, &[]).is_empty(), "{model_type}");
        // Which layers a plan keeps is asked of the student.
        assert!(limits(&whole, &[(DEPTH, 5)]).is_empty(), "{model_type}");
        let said = other(key, kept.into_iter().cloned().collect(), model_type);
        let [(client, message)] = said.as_slice() else {
            panic!("{model_type}: {said:?}")
        };
        assert_eq!(client, "llama.cpp");
        assert!(
            message.contains("computes other logits")
                && message.contains("drop layers from the end"),
            "{message}"
        );
    }
}

#[test]
fn the_factor_that_llama_cpp_gives_gemma_is_compared_with_the_models() {
    let config = |layers: usize, scalar: usize| {
        let more = json!({ "head_dim": 8, "query_pre_attn_scalar": scalar, "sliding_window": 4,
            "num_hidden_layers": layers });
        six_layers("gemma3_text", &more)
    };
    let says = |config: &Value, of: &[(&str, usize)]| {
        limits(config, of)
            .into_iter()
            .map(|limit| limit.1)
            .collect::<String>()
    };
    assert_eq!(says(&config(6, 8), &[(HIDDEN, 24)]), "");
    let said = says(&config(6, 16), &[]);
    assert!(
        said.contains("root of head_dim (8)") && said.contains("query_pre_attn_scalar (16)"),
        "{said}"
    );
    // 62 layers are the largest one's, whose factor is of hidden / heads.
    assert_eq!(says(&config(62, 8), &[]), "");
    let said = says(&config(62, 8), &[(HIDDEN, 16)]);
    assert!(said.contains("root of hidden / heads (4)"), "{said}");
    assert_eq!(says(&config(62, 8), &[(DEPTH, 61)]), "");
}

#[test]
fn what_a_client_refuses_is_said_at_planning_by_its_name() {
    let heads = json!({ "heads.0": [0, 2], "heads.1": [1, 3], "heads.2": [0, 3] });
    let mlp: Value = (0..3)
        .map(|layer| (format!("mlp.{layer}"), json!((0..32).collect::<Vec<_>>())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (family, kept, client, says) in [
        (
            tiny_nemotron(),
            heads.clone(),
            "llama.cpp",
            "heads x head_dim is 16, hidden 32",
        ),
        (tiny_llama(), heads, "optimum", "use_cache=False"),
        (
            tiny_gpt2(),
            mlp,
            "llama.cpp",
            "gguf_set_metadata.py --force FILE.gguf gpt2.feed_forward_length 32",
        ),
    ] {
        let exported = Exported::new(&family);
        exported.write("plan.json", json!({ "kept": kept }).to_string());
        let options = PruneOptions {
            model: exported.at("model").display().to_string(),
            plan: Some(exported.at("plan.json")),
            ..PruneOptions::default()
        };
        let heard = Recorder::default();
        with_context(false, |context| {
            let context = Context {
                progress: &heard,
                ..*context
            };
            prune(&context, &options, &exported.at("student"), false)
        })
        .unwrap();
        // The plan is written by hand, which is said too.
        let warnings: Vec<String> = heard
            .warnings()
            .into_iter()
            .filter(|said| said.contains("refuses"))
            .collect();
        // Without sizes, so that every job of a run says the same.
        let message =
            "refuses the student's sizes; plan.json and `minitron inspect` say why, and what helps";
        assert_eq!(warnings, [format!("{client}: {message}")]);
        let saved = exported.value("student/plan.json");
        assert_eq!(saved["clients"][0]["client"], json!(client));
        assert!(
            saved["clients"][0]["message"]
                .as_str()
                .unwrap()
                .contains(says),
            "{saved}"
        );
        assert!(
            saved["tensor_parallel"]
                .as_array()
                .is_some_and(|sizes| sizes[0] == json!(1))
        );
        let options = InspectOptions {
            forecast: Default::default(),
            model: exported.at("student").display().to_string(),
            seq_len: None,
            batch_size: 1,
        };
        let report = with_context(false, |context| inspect(context, &options)).unwrap();
        assert_eq!(report["clients"], saved["clients"]);
        assert_eq!(report["tensor_parallel"], saved["tensor_parallel"]);
    }
}

#[test]
fn square_students_keep_hidden_at_heads_x_head_dim() {
    let exported = Exported::new(&tiny_nemotron());
    exported.write("text.txt", minitron::some_text());
    let model = exported.at("model").display().to_string();
    let scores = exported.at("scores.safetensors").display().to_string();
    let options = ScoreOptions {
        model: model.clone(),
        data: vec![
            exported
                .at("text.txt")
                .display()
                .to_string()
                .parse()
                .unwrap(),
        ],
        samples: 4,
        seq_len: Some(16),
        ..ScoreOptions::default()
    };
    with_context(false, |context| {
        score(context, &options, Path::new(&scores))
    })
    .unwrap();
    let base = PruneOptions {
        model,
        scores: Some(scores),
        square: true,
        ..PruneOptions::default()
    };
    let run = |options: PruneOptions, out: &str| {
        with_context(false, |context| {
            prune(context, &options, &exported.at(out), false)
        })
    };
    let error = run(
        PruneOptions {
            hidden: Some(16),
            heads: Some(4),
            ..base.clone()
        },
        "a",
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("hidden 16 with 4 heads: the student is to be square"),
        "{error}"
    );
    assert!(
        error.ends_with("nearest: --heads 2 --hidden 16 or --heads 4 --hidden 32"),
        "{error}"
    );
    let report = run(
        PruneOptions {
            hidden: Some(16),
            ..base.clone()
        },
        "b",
    )
    .unwrap();
    assert_eq!(report["sizes"][HEADS], json!(2));
    for ratio in [0.4, 0.5, 0.6] {
        let allocator = format!("ratio:ratio={ratio},tolerance=0.3")
            .parse()
            .unwrap();
        let report = run(
            PruneOptions {
                allocator: Some(allocator),
                ..base.clone()
            },
            &format!("c{ratio}"),
        )
        .unwrap();
        let size = |kind: &str| report["sizes"][kind].as_u64().unwrap();
        assert_eq!(size(HIDDEN), size(HEADS) * 8, "{report}");
        assert_eq!(report["clients"], json!([]));
    }
}

#[test]
fn rounds_keep_the_steps_of_the_source_where_those_of_a_student_would_be_coarser() {
    let mut config = tiny_llama();
    config["intermediate_size"] = json!(260);
    let exported = Exported::new(&config);
    exported.write("text.txt", minitron::some_text());
    let data = vec![
        exported
            .at("text.txt")
            .display()
            .to_string()
            .parse()
            .unwrap(),
    ];
    let model = exported.at("model").display().to_string();
    let scores = exported.at("scores.safetensors").display().to_string();
    let seq_len = Some(16);
    let options = ScoreOptions {
        model: model.clone(),
        data: data.clone(),
        samples: 4,
        seq_len,
        ..ScoreOptions::default()
    };
    with_context(false, |context| {
        score(context, &options, Path::new(&scores))
    })
    .unwrap();
    // After the first of two rounds it is 256 wide, whose own steps are 32.
    let steps = [260, 256].map(|mlp| {
        config["intermediate_size"] = json!(mlp);
        space(&config).1.axis(MLP).unwrap().step
    });
    assert_eq!(steps, [4, 32]);
    let reconstruction = ReconstructOptions {
        data,
        samples: 4,
        seq_len,
        ..ReconstructOptions::default()
    };
    let base = PruneOptions {
        model,
        scores: Some(scores),
        rounds: 2,
        reconstruction,
        ..PruneOptions::default()
    };
    let options = PruneOptions {
        mlp: Some(252),
        ..base
    };
    let report = with_context(false, |context| {
        prune(context, &options, &exported.at("student"), false)
    })
    .unwrap();
    assert_eq!(report["sizes"][MLP], json!(252));
    assert_eq!(
        exported.value("student/plan.json")["kept"]["mlp.1"]
            .as_array()
            .map(Vec::len),
        Some(252)
    );
    let (folder, _) = load(&exported.at("student")).unwrap();
    assert_eq!(folder.spec.size(MLP), 252);
}

// --- rotation
// --------------------------------------------------------------------------------------------------------

#[test]
fn a_spread_rotation_is_the_same_student_with_its_energy_evened_out() {
    // Random weights have their energy even as they are.
    let exported = Exported::new(&tiny_llama());
    let real = shared("models/stories260K");
    let (model, n_kept) = real
        .as_ref()
        .map_or((exported.at("model"), 24), |real| (real.clone(), 48));
    exported.write("text.txt", minitron::some_text());
    exported.write(
        "plan.json",
        json!({ "kept": { "hidden": (0..n_kept).collect::<Vec<_>>() } }).to_string(),
    );
    let logits_of = |reconstruct: &str| {
        let out = exported.at(&reconstruct.replace([':', '=', ','], "-"));
        let mut options = PruneOptions {
            model: model.display().to_string(),
            plan: Some(exported.at("plan.json")),
            ..PruneOptions::default()
        };
        options.reconstruction.reconstruct = vec![reconstruct.parse().unwrap()];
        options.reconstruction.data = vec![
            exported
                .at("text.txt")
                .display()
                .to_string()
                .parse()
                .unwrap(),
        ];
        (
            options.reconstruction.samples,
            options.reconstruction.seq_len,
        ) = (8, Some(32));
        with_context(false, |context| prune(context, &options, &out, false)).unwrap();
        let (folder, model) = load(&out).unwrap();
        let table = folder
            .spec
            .find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight)
            .unwrap()
            .name();
        let energy_e = folder
            .checkpoint
            .tensors
            .read(&table)
            .unwrap()
            .square()
            .mean_dim([0i64].as_slice(), false, Kind::Double);
        let peak = energy_e.max().double_value(&[]) / energy_e.median().double_value(&[]);
        (
            forward(&model, &some_ids(2, 24, 512, 1).unwrap()).unwrap(),
            peak,
        )
    };
    let ((plain, peak), (spread, spread_peak)) = (
        logits_of("rotation:untie=true"),
        logits_of("rotation:untie=true,spread=true"),
    );
    let difference = max_difference(&plain, &spread).unwrap();
    assert!(difference < 1e-4, "{difference:e}");
    assert!(
        real.is_none() || spread_peak < peak / 2.0,
        "{spread_peak} {peak}"
    );
    println!(
        "largest difference of logits {difference:e}; embedding energy, largest over median: \
         {peak:.1} and {spread_peak:.1}"
    );
}

// --- the programs themselves
// -----------------------------------------------------------------------------------------

const NODE_LLAMA_CPP: &str = "3.21.1";
const SENTENCE_TRANSFORMERS: &str = "6.2.0";

/// Where programs are installed once, out of what git sees.
fn tools() -> PathBuf {
    root().join("target/clients")
}

/// Runs a program to its end; what it printed, or none where it is absent or fails.
fn done(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    if !output.status.success() {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A Python that has these packages besides those of `make test`.
fn python_with(packages: &[&str]) -> Option<PathBuf> {
    let (own, dir) = (python()?, tools().join("python"));
    let found = dir.join("bin/python");
    if !found.exists() {
        done(&own, &["-m", "venv", word(&dir)])?;
    }
    let site = "import site; print(site.getsitepackages()[0])";
    let (theirs, ours) = (done(&own, &["-c", site])?, done(&found, &["-c", site])?);
    fs::write(Path::new(ours.trim()).join("make-test.pth"), theirs).ok()?;
    done(
        &found,
        &[
            &[
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ],
            packages,
        ]
        .concat(),
    )?;
    Some(found)
}

/// The folder of node-llama-cpp, and a clone of llama.cpp's source, which it brings along.
fn llama_cpp() -> Option<(PathBuf, PathBuf)> {
    let (node, source) = (tools().join("node"), tools().join("llama.cpp"));
    fs::create_dir_all(&node).ok()?;
    let packages = ["node-llama-cpp", "@node-llama-cpp/linux-x64"]
        .map(|name| format!("{name}@{NODE_LLAMA_CPP}"));
    let options = [
        "install",
        "--ignore-scripts",
        "--omit=optional",
        "--no-audit",
        "--no-fund",
        "--prefix",
        word(&node),
    ];
    // The runtime is prebuilt.
    done(
        "npm",
        &[&options[..], &packages.each_ref().map(String::as_str)].concat(),
    )?;
    if !source.exists() {
        let bundle = node.join("node_modules/node-llama-cpp/llama/gitRelease.bundle");
        done("git", &["clone", "--quiet", word(&bundle), word(&source)])?;
    }
    Some((node, source))
}

/// Runs the command line, which succeeds.
fn run(args: &[&str]) -> String {
    let output = minitron(&[&["--quiet"], args].concat()).unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Of log-probabilities: f32 on both sides, summed in another order.
const LOG_PROBABILITIES: f64 = 2e-3;

#[test]
#[ignore = "slow: installs node-llama-cpp and Python packages"]
fn a_pruned_reconstructed_and_distilled_model_is_the_same_in_llama_cpp() {
    let Some((client, teacher, text)) = LlamaCpp::with_stories() else {
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).display().to_string();
    let (teacher, text) = (teacher.display().to_string(), text.display().to_string());
    let (seen, learned) = (format!("{text}#0..60"), format!("{text}#60..400"));
    run(&[
        "score",
        &teacher,
        "--data",
        &seen,
        "--samples",
        "32",
        "--seq-len",
        "128",
        "--out",
        &at("s.safetensors"),
    ]);
    run(&[
        "prune",
        &teacher,
        "--scores",
        &at("s.safetensors"),
        "--hidden",
        "48",
        "--mlp",
        "128",
        "--kv-heads",
        "2",
        "--layers",
        "4",
        "--heal",
        "least_squares",
        "--data",
        &seen,
        "--samples",
        "16",
        "--seq-len",
        "128",
        "--out",
        &at("pruned"),
    ]);
    run(&[
        "distill",
        "--teacher",
        &teacher,
        "--student",
        &at("pruned"),
        "--data",
        &learned,
        "--tokens",
        "20k",
        "--seq-len",
        "128",
        "--batch-size",
        "8",
        "--lr",
        "1e-3",
        "--out",
        &at("student"),
    ]);
    let (model, tokenizer) = with_tokenizer(&work.path().join("student"));
    let ids = story(&text, &tokenizer);
    let (prompt, n_tokens) = ("Once upon a time", 32);
    let (whole, plain) = (
        tokenizer.encode_whole(&[prompt]).unwrap().remove(0),
        tokenizer.encode(prompt).unwrap(),
    );
    let begin = whole.strip_suffix(plain.as_slice()).unwrap();
    let asked = json!({ "ids": ids, "prompt": prompt, "begin": begin, "n_tokens": n_tokens });
    let found = client.ask(work.path(), "student", &asked);
    let worst = worst_difference(&model, &ids, &found);
    assert!(worst <= LOG_PROBABILITIES, "{worst:e}");
    let generated: Value = serde_json::from_str(&run(&[
        "generate",
        &at("student"),
        "--prompt",
        prompt,
        "--max-new-tokens",
        &n_tokens.to_string(),
        "--json",
    ]))
    .unwrap();
    assert_eq!(
        generated["completion"].as_str().unwrap().trim_start(),
        found["text"].as_str().unwrap().trim_start()
    );
    println!(
        "llama.cpp: worst difference of {} log-probabilities {worst:e}; {n_tokens} greedy tokens \
         say the same",
        ids.len() - 1
    );
}

#[test]
#[ignore = "slow: installs node-llama-cpp and Python packages"]
fn layers_that_differ_are_the_same_in_llama_cpp() {
    let Some((client, teacher, text)) = LlamaCpp::with_stories() else {
        return;
    };
    let config = fs::read(teacher.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    // Its widths are no multiples of 256, as llama.cpp's class has them.
    config["intermediate_size"] = json!(512);
    let here = Workspace::new().model("model", &config, 3);
    for entry in fs::read_dir(&teacher).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.contains("token") {
            fs::copy(entry.path(), here.at("model").join(&name)).unwrap();
        }
    }
    let text = text.display().to_string();
    let reading = format!("--data {text}#0..60 --samples 16 --seq-len 128");
    here.run(&format!("score model {reading} --out scores.safetensors"));
    here.run(&format!(
        "prune model --scores scores.safetensors --layers-apart --axis mlp:multiple_of=256 --axis \
         heads --axis kv_heads --size mlp.0=256,mlp.2=0,heads.2=0,heads.1=0 {reading} --out student"
    ));
    let (model, tokenizer) = with_tokenizer(&here.at("student"));
    assert_eq!(model.spec.architecture, "decilm");
    let ids = story(&text, &tokenizer);
    let asked = json!({ "ids": ids, "prompt": "Once", "begin": [], "n_tokens": 1 });
    let found = client.ask(here.root(), "student", &asked);
    let worst = worst_difference(&model, &ids, &found);
    assert!(worst <= LOG_PROBABILITIES, "{worst:e}");
    // What it computes wrongly is said where the student is planned.
    let alone = "mlp.2=0 --dry-run";
    let report = here.json(&format!(
        "prune model --scores scores.safetensors --layers-apart --size {alone}"
    ));
    let said = report["clients"].to_string();
    assert!(said.contains("its numbers are wrong where a layer has attention and no MLP"));
    println!(
        "llama.cpp, layers that differ: worst difference of {} log-probabilities {worst:e}",
        ids.len() - 1
    );
}

/// llama.cpp as node-llama-cpp runs it, and what converts a model for it.
struct LlamaCpp {
    node: PathBuf,
    source: PathBuf,
    python: PathBuf,
}

impl LlamaCpp {
    /// Installed, beside a model of stories and some of them; what is absent is said.
    fn with_stories() -> Option<(Self, PathBuf, PathBuf)> {
        let data = (
            shared("models/stories260K"),
            shared("text/tinystories_800.jsonl"),
        );
        let packages = ["gguf", "sentencepiece"];
        let (((Some(teacher), Some(text)), Some((node, source))), Some(python)) =
            ((data, llama_cpp()), python_with(&packages))
        else {
            println!(
                "absent, not tested: npm, the Python of `make test`, their registries, or the data"
            );
            return None;
        };
        let client = LlamaCpp {
            node,
            source,
            python,
        };
        Some((client, teacher, text))
    }

    /// Converts a model in a folder and asks it, as `llama.mjs` says.
    fn ask(&self, dir: &Path, model: &str, asked: &Value) -> Value {
        let at = |name: &str| dir.join(name).display().to_string();
        fs::write(at("asked.json"), asked.to_string()).unwrap();
        let converter = self.source.join("convert_hf_to_gguf.py");
        let (from, to) = (at(model), at("m.gguf"));
        let args = [
            word(&converter),
            &from,
            "--outfile",
            &to,
            "--outtype",
            "f32",
        ];
        done(&self.python, &args).unwrap();
        let script = root().join("tests/clients/llama.mjs");
        let (script, node) = (word(&script), word(&self.node));
        let files = [at("m.gguf"), at("asked.json"), at("out.json")];
        let files = files.each_ref().map(String::as_str);
        done("node", &[&[script, node][..], &files].concat()).unwrap();
        serde_json::from_slice(&fs::read(at("out.json")).unwrap()).unwrap()
    }
}

fn with_tokenizer(dir: &Path) -> (Transformer, Tokenizer) {
    let (folder, model) = load(dir).unwrap();
    let (checkpoint, options) = (&folder.checkpoint, &folder.spec.options);
    let tokenizer = Tokenizer::load(&checkpoint.dir, &checkpoint.config, options.vocab, true);
    (model, tokenizer.unwrap())
}

/// The beginning of one of the stories.
fn story(text: &str, tokenizer: &Tokenizer) -> Vec<u32> {
    let stories = fs::read_to_string(text).unwrap();
    let story: Value = serde_json::from_str(stories.lines().nth(700).unwrap()).unwrap();
    let ids = tokenizer.encode(story["text"].as_str().unwrap()).unwrap();
    ids.into_iter().take(128).collect()
}

/// Between log-probabilities of each token after those before it.
fn worst_difference(model: &Transformer, ids: &[u32], found: &Value) -> f64 {
    let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let ids_bt = Tensor::from_slice(&wide).unsqueeze(0);
    let log_p = forward(model, &ids_bt).unwrap();
    let log_p = log_p.log_softmax(-1, Kind::Double).squeeze();
    let next = found["next"].as_array().unwrap();
    assert_eq!(next.len(), ids.len() - 1);
    let ours = |idx: usize| log_p.double_value(&[idx as i64, wide[idx + 1]]);
    let theirs = next.iter().enumerate();
    theirs
        .map(|(idx, theirs)| (theirs.as_f64().unwrap() - ours(idx)).abs())
        .fold(0.0, f64::max)
}

/// Of vectors of length 1.
const EMBEDDINGS: f64 = 1e-4;

#[test]
#[ignore = "slow: installs sentence-transformers"]
fn a_narrower_sentence_encoder_is_the_same_in_sentence_transformers() {
    let package = format!("sentence-transformers=={SENTENCE_TRANSFORMERS}");
    let data = (
        shared("models/all-MiniLM-L6-v2-f16"),
        shared("eval/banking77_test.jsonl"),
    );
    let ((Some(teacher), Some(items)), Some(python)) = (data, python_with(&[package.as_str()]))
    else {
        println!("absent, not tested: the Python of `make test`, its registry, or the data");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).display().to_string();
    let script = root()
        .join("tests/clients/sentence_transformer.py")
        .display()
        .to_string();
    // The second one is written by sentence-transformers itself, and has a Dense.
    done(
        &python,
        &[&script, "with_dense", word(&teacher), &at("dense")],
    )
    .unwrap();
    let texts: Vec<Value> = fs::read_to_string(&items)
        .unwrap()
        .lines()
        .take(300)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let lines: String = texts.iter().map(|record| format!("{record}\n")).collect();
    fs::write(at("items.jsonl"), lines).unwrap();
    let texts: Vec<&str> = texts
        .iter()
        .map(|record| record["text"].as_str().unwrap())
        .take(64)
        .collect();
    fs::write(at("texts.json"), json!(texts).to_string()).unwrap();
    for (name, teacher, width) in [
        ("plain", word(&teacher), 256),
        ("with Dense", &at("dense"), 128),
    ] {
        let scores = at(&format!("{name}.safetensors"));
        let student = at(&format!("{name} student"));
        run(&[
            "score",
            teacher,
            "--metric",
            "magnitude",
            "--data",
            &at("items.jsonl"),
            "--samples",
            "4",
            "--out",
            &scores,
        ]);
        run(&[
            "prune", teacher, "--scores", &scores, "--hidden", "256", "--mlp", "1024", "--out",
            &student,
        ]);
        let (out, saved) = (at(&format!("{name} out")), at(&format!("{name} saved")));
        let said = done(
            &python,
            &[&script, "embed", &student, &at("texts.json"), &out, &saved],
        )
        .unwrap();
        let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(
            said,
            json!({ "dimension": width, "width": width }),
            "{name}"
        );
        let expected = Reader::open_file(Path::new(&out))
            .unwrap()
            .read("embeddings")
            .unwrap();
        let difference = max_difference(&embedded(Path::new(&student), &texts), &expected).unwrap();
        assert!(difference <= EMBEDDINGS, "{name}: {difference:e}");
        let accuracy = |folder: &str| {
            let task = format!("nearest_neighbour:path={}", at("items.jsonl"));
            serde_json::from_str::<Value>(&run(&["eval", folder, "--evaluator", &task, "--json"]))
                .unwrap()["accuracy"]
                .clone()
        };
        // Saved by sentence-transformers, and read back.
        assert_eq!(accuracy(&saved), accuracy(&student), "{name}");
        println!(
            "{name}: {width} values, worst difference of embeddings {difference:e}, accuracy {}",
            accuracy(&student)
        );
    }
}

/// Sentence embeddings as an evaluation has them.
fn embedded(dir: &Path, texts: &[&str]) -> Tensor {
    let (folder, model) = load(dir).unwrap();
    let options = &folder.spec.options;
    let tokenizer = Tokenizer::load(
        dir,
        &folder.checkpoint.config,
        options.vocab,
        options.causal,
    )
    .unwrap();
    let (cls, sep) = tokenizer.special_tokens.unwrap();
    let sentence =
        |text: &&str| [&[cls], tokenizer.encode(text).unwrap().as_slice(), &[sep]].concat();
    let sentences: Vec<Vec<u32>> = texts.iter().map(sentence).collect();
    sentence_embeddings(
        &model,
        &sentences,
        &SentenceModules::of(&model, None).unwrap(),
        8,
        &Silent,
    )
    .unwrap()
}
