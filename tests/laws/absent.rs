//! Layers without attention or without MLP, and a Llama as a family that has such.

use std::path::Path;

use minitron::{
    Workspace, axes, config, forward, registry, some_ids, tiny_decilm, tiny_gpt2, tiny_llama,
    with_context, write_tiny,
};
use minitron_core::checkpoint::{MemorySource, TensorSource, WriteOptions, write_model};
use minitron_core::error::Error;
use minitron_core::model::{Cache, NoTap};
use minitron_core::plan::{Plan, Space};
use minitron_core::prune::Student;
use minitron_core::spec::{ModelFolder, ModelSpec, Sizes};
use minitron_engine::jobs::{InspectOptions, PruneOptions, inspect, prune};
use serde_json::{Value, json};
use tch::Tensor;

use super::reconstruction::{self, Ward};
use super::{Model, REORDERED, load, relative};

/// A folder with a Llama, described so that its layers may differ.
fn apart(dir: &Path) -> ModelFolder {
    write_tiny(dir, &tiny_llama(), 5).unwrap();
    ModelFolder::open_with_layers_apart(dir, &registry()).unwrap()
}

fn space(spec: &ModelSpec) -> Space {
    Space::new(spec, &axes(&registry()).unwrap()).unwrap()
}

fn sizes(pairs: &[(&str, usize)]) -> Sizes {
    pairs
        .iter()
        .map(|&(kind, size)| (kind.to_owned(), size))
        .collect()
}

fn plan(spec: &ModelSpec, kept: &[(&str, std::ops::Range<usize>)]) -> Plan {
    let kept = kept
        .iter()
        .map(|(dim, units)| ((*dim).to_owned(), units.clone().collect()));
    let plan = Plan {
        kept: kept.collect(),
    };
    plan.checked(&space(spec), spec).unwrap()
}

/// Layer 1 loses its attention, layer 2 its MLP, and layer 0 half of its neurons.
fn some_gone(spec: &ModelSpec) -> Plan {
    plan(
        spec,
        &[("heads.1", 0..0), ("mlp.2", 0..0), ("mlp.0", 0..24)],
    )
}

fn logits(source: &dyn TensorSource, spec: &ModelSpec) -> Tensor {
    let model = load(source, spec).unwrap();
    forward(&model, &some_ids(2, 9, 61, 4).unwrap()).unwrap()
}

#[test]
fn a_llama_in_another_familys_words_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let own = apart(dir.path());
    let llama = ModelFolder::open(dir.path(), &registry()).unwrap();
    assert_eq!(own.spec.architecture, "decilm");
    assert_eq!(own.spec.params, llama.spec.params);
    assert!(own.checkpoint.remarks.warnings.is_empty());
    let (one, other) = (
        logits(&own.checkpoint.tensors, &own.spec),
        logits(&llama.checkpoint.tensors, &llama.spec),
    );
    assert!(one.equal(&other));
    let written = own.spec.config.to_value();
    assert_eq!(written["model_type"], "nemotron-nas");
    assert_eq!(written["intermediate_size"], Value::Null);
    assert_eq!(written["num_key_value_heads"], Value::Null);
    let block = json!({
        "attention": { "n_heads_in_group": 2, "no_op": false, "replace_with_linear": false },
        "ffn": { "intermediate_size": 48, "no_op": false, "replace_with_linear": false },
    });
    assert_eq!(written["block_configs"], json!([block, block, block]));
}

#[test]
fn a_family_without_such_a_form_is_refused_and_one_that_has_it_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path(), &tiny_gpt2(), 5).unwrap();
    insta::assert_snapshot!(
        ModelFolder::open_with_layers_apart(dir.path(), &registry()).unwrap_err(),
        @"recipe: layers_apart: expected a model that has a form in which layers differ, `gpt2` \
          has none; leave it out, and give all layers one size"
    );
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path(), &tiny_decilm(), 5).unwrap();
    let own = ModelFolder::open_with_layers_apart(dir.path(), &registry()).unwrap();
    assert_eq!(own.spec.architecture, "decilm");
    // A window in every layer has no place there.
    let family = |value: &Value| {
        let config = config(value).unwrap();
        let family = registry().architecture_for(&config).unwrap();
        family.with_layers_apart(&config)
    };
    let mut mistral = tiny_llama();
    mistral["model_type"] = json!("mistral");
    assert!(family(&mistral).is_none());
    mistral["sliding_window"] = Value::Null;
    let stated = family(&mistral).unwrap();
    assert!(!stated.states("sliding_window"));
}

#[test]
fn parts_that_go_are_parts_that_add_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ModelFolder {
        checkpoint, spec, ..
    } = apart(dir.path());
    let source = &checkpoint.tensors;
    let plan = some_gone(&spec);
    let student = Student::new(source, &spec, &plan).unwrap();
    let mut silent = MemorySource::default();
    for name in source.names() {
        let tensor = source.read(&name).unwrap().copy();
        match name.as_str() {
            "model.layers.1.self_attn.o_proj.weight" | "model.layers.2.mlp.down_proj.weight" => {
                let _ = tensor.shallow_clone().zero_();
            }
            "model.layers.0.mlp.down_proj.weight" => {
                let _ = tensor.narrow(1, 24, 24).zero_();
            }
            _ => {}
        }
        silent.insert(name, &tensor).unwrap();
    }
    let found = logits(&student.view, &student.spec);
    assert!(relative(&found, &logits(&silent, &spec)) <= REORDERED);
    // The norm before a part goes with it.
    for gone in [
        "layers.1.self_attn",
        "layers.1.input_layernorm",
        "layers.2.mlp",
    ] {
        assert!(student.view.names().iter().all(|name| !name.contains(gone)));
    }
    let n_written: u64 = student
        .view
        .names()
        .iter()
        .filter_map(|name| student.view.info(name)?.n_elements())
        .sum();
    let predicted = plan.size_map(&spec);
    assert_eq!(spec.n_params_of(&predicted), n_written);
    let cache = spec.kv_cache_bytes_of(&predicted, 64, 1);
    assert_eq!(cache, student.spec.kv_cache_bytes_at(&Sizes::new(), 64, 1));
    assert_eq!(cache * 3, spec.kv_cache_bytes_at(&Sizes::new(), 64, 1) * 2);

    let dir = tempfile::tempdir().unwrap();
    let options = WriteOptions::default();
    write_model(dir.path(), &student.config, &student.view, None, options).unwrap();
    let folder = ModelFolder::open(dir.path(), &registry()).unwrap();
    assert!(folder.unknown_tensors.is_empty() && folder.checkpoint.remarks.warnings.is_empty());
    assert!(logits(&folder.checkpoint.tensors, &folder.spec).equal(&found));
}

#[test]
fn states_of_earlier_tokens_are_right_where_layers_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let folder = apart(dir.path());
    let plan = some_gone(&folder.spec);
    let student = Student::new(&folder.checkpoint.tensors, &folder.spec, &plan).unwrap();
    let model = load(&student.view, &student.spec).unwrap();
    let ids_bt = some_ids(2, 9, 61, 6).unwrap();
    let whole_bte = model.hidden(&ids_bt, &mut NoTap, None).unwrap();
    let mut cache = Cache::new(&model);
    let mut parts = Vec::new();
    for (start, n) in [(0, 4), (4, 1), (5, 4)] {
        let ids_bt = ids_bt.narrow(1, start, n);
        parts.push(model.hidden(&ids_bt, &mut NoTap, Some(&mut cache)).unwrap());
    }
    assert!(relative(&Tensor::cat(&parts, 1), &whole_bte) <= REORDERED);
}

#[test]
fn entries_say_what_readers_look_for() {
    // As wide as the multiplier can say, and another number of channels.
    let mut value = tiny_llama();
    value["intermediate_size"] = json!(512);
    value["hidden_size"] = json!(64);
    value["head_dim"] = json!(16);
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path(), &value, 5).unwrap();
    let folder = ModelFolder::open_with_layers_apart(dir.path(), &registry()).unwrap();
    let spec = &folder.spec;
    let of_plan = |kept: &[(&str, std::ops::Range<usize>)]| {
        let student = Student::new(&folder.checkpoint.tensors, spec, &plan(spec, kept)).unwrap();
        student.config.to_value()
    };
    let found = of_plan(&[("hidden", 0..48), ("mlp.1", 0..256), ("mlp.2", 0..480)]);
    assert_eq!(found["block_configs"][0]["ffn"]["ffn_mult"], json!(16.0));
    assert_eq!(found["block_configs"][1]["ffn"]["ffn_mult"], json!(8.0));
    assert_eq!(found["block_configs"][2]["ffn"].get("ffn_mult"), None);
    assert_eq!(found["block_configs"][2]["ffn"]["intermediate_size"], 480);
    assert_eq!(found["num_attention_heads"], 4);
    // Layers that go take their entries along; what else entries say stays.
    let found = of_plan(&[("depth", 1..3), ("mlp.2", 0..0), ("heads.1", 0..0)]);
    let expected = json!([
        {
            "attention": { "n_heads_in_group": null, "no_op": true, "replace_with_linear": false },
            "ffn": { "ffn_mult": 12.0, "intermediate_size": 512, "no_op": false,
                "replace_with_linear": false },
        },
        {
            "attention": { "n_heads_in_group": 2, "no_op": false, "replace_with_linear": false },
            "ffn": { "ffn_mult": null, "intermediate_size": null, "no_op": true,
                "replace_with_linear": false },
        },
    ]);
    assert_eq!(found["block_configs"], expected);
}

#[test]
fn nothing_is_left_where_somebody_asks_for_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spec = apart(dir.path()).spec;
    let space = space(&spec);
    assert!(space.axes.iter().all(|axis| !axis.legal().contains(&0)));
    let found = space
        .complete(&sizes(&[("heads.1", 0), ("mlp.2", 0)]))
        .unwrap();
    assert_eq!(
        (found["heads.1"], found["kv_heads.1"], found["mlp.2"]),
        (0, 0, 0)
    );
    assert_eq!((found["heads"], found["mlp"]), (4, 48));
    assert_eq!(
        space.complete(&sizes(&[("kv_heads.1", 0)])).unwrap()["heads.1"],
        0
    );
    let refused = |asked: &[(&str, usize)]| match space.complete(&sizes(asked)) {
        Err(Error::Plan(message)) => message,
        other => panic!("{other:?}"),
    };
    insta::assert_snapshot!(
        refused(&[("mlp", 0)]),
        @"mlp: 0 is not legal, expected a multiple of 4 up to 48; nearest: --mlp 4"
    );
    insta::assert_snapshot!(
        refused(&[("heads.1", 2)]),
        @"heads.1: 2 is not legal beside heads 4: the config has one number for all layers that have \
          some; give 4, or 0 for none; nearest: --heads 2 --size heads.1=2 or --size heads.1=4"
    );
    insta::assert_snapshot!(
        refused(&[("heads.1", 0), ("kv_heads.1", 1)]),
        @"heads.1 0 with kv_heads.1 1: attention goes as a whole; ask for 0 of both or of neither; \
          nearest: --size heads.1=4 --size kv_heads.1=2"
    );
    insta::assert_snapshot!(
        refused(&[("kv_heads.1", 1)]),
        @"heads.1: 4 is not legal, expected a size up to 2 (with 2 kv_heads); nearest: --heads 2 \
          --size kv_heads.1=1 or --kv-heads 1 --size kv_heads.1=1 or --size kv_heads.1=2"
    );
    insta::assert_snapshot!(
        refused(&[("hidden", 0)]),
        @"hidden: 0 is not legal, expected a multiple of 8 up to 32; nearest: --hidden 8"
    );
    // Fewer key/value heads in one layer, beside as many queries for all.
    let found = space
        .complete(&sizes(&[("heads", 2), ("kv_heads.1", 1)]))
        .unwrap();
    assert_eq!((found["kv_heads"], found["kv_heads.1"]), (2, 1));
    let one_of_both = Plan {
        kept: [
            ("heads.1".to_owned(), Vec::new()),
            ("kv_heads.1".to_owned(), vec![0]),
        ]
        .into(),
    };
    insta::assert_snapshot!(
        one_of_both.checked(&space, &spec).unwrap_err(),
        @"plan: `heads.1` keeps none, `kv_heads.1` 1: attention goes as a whole; leave `kv_heads.1` \
          out, or keep some of `heads.1`"
    );
}

#[test]
fn a_llamas_plan_of_unequal_layers_names_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    apart(dir.path());
    let spec = ModelFolder::open(dir.path(), &registry()).unwrap().spec;
    let space = space(&spec);
    insta::assert_snapshot!(
        space.complete(&sizes(&[("mlp.1", 8)])).unwrap_err(),
        @"plan: `mlp.1`: this family's config has one number for all layers; --layers-apart writes a \
          student in a form whose layers may differ; nearest: --mlp 8"
    );
    let plan = |dim: &str, n: usize| Plan {
        kept: [(dim.to_owned(), (0..n).collect())].into(),
    };
    insta::assert_snapshot!(
        plan("mlp.1", 8).checked(&space, &spec).unwrap_err(),
        @"plan: `mlp.1` keeps 8 units, `mlp.0` 48; this family's config has one number for all layers \
          (`intermediate_size`); --layers-apart writes a student in a form whose layers may differ; \
          nearest: --mlp 32 or --mlp 36"
    );
    insta::assert_snapshot!(
        plan("mlp.1", 0).checked(&space, &spec).unwrap_err(),
        @"plan: `mlp.1` keeps 0 units, `mlp.0` 48; this family's config has one number for all layers \
          (`intermediate_size`); --layers-apart writes a student in a form whose layers may differ; \
          nearest: --mlp 28 or --mlp 32"
    );
}

#[test]
fn reconstructions_go_past_parts_that_are_gone() {
    let llama = Model::new(&tiny_llama(), 30).unwrap();
    let family = registry().architecture_for(&llama.spec.config).unwrap();
    let config = family.with_layers_apart(&llama.spec.config).unwrap();
    let gone = [("heads.1", 0), ("mlp.0", 0), ("mlp.2", 16), ("hidden", 24)];
    let ward = Ward::of(&config.to_value(), &gone);
    let ids_bt = some_ids(2, 9, 61, 6).unwrap();
    let plain = reconstruction::distance(&ward, &ward.editor());
    for names in [
        &["least_squares"][..],
        &["least_squares:target=own"],
        &["norm_rescale"],
        &["rotation", "least_squares"],
        &["auto"],
        &["head_merge"],
    ] {
        let editor = ward.treated(names).unwrap();
        let found = reconstruction::logits(&editor, &ids_bt);
        assert!(found.isfinite().all().int64_value(&[]) == 1, "{names:?}");
        if names.contains(&"auto") {
            assert!(reconstruction::distance(&ward, &editor) < plain);
        }
    }
}

#[test]
fn a_pruned_llama_is_written_apart_and_says_who_loads_it() {
    let files = Workspace::new().model("model", &tiny_llama(), 1);
    let gone = json!({ "kept": { "heads.0": [], "mlp.2": [], "mlp.1": [0, 1, 2, 3] } });
    files.write("plan.json", gone.to_string());
    let options = PruneOptions {
        model: files.path("model"),
        plan: Some(files.at("plan.json")),
        layers_apart: true,
        ..PruneOptions::default()
    };
    with_context(false, |context| {
        let report = prune(context, &options, &files.at("out"), false).unwrap();
        let clients: Vec<&str> = report["clients"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|limit| limit["client"].as_str())
            .collect();
        assert_eq!(clients, ["transformers", "llama.cpp", "vLLM", "llama.cpp"]);
        assert_eq!(files.value("out/plan.json")["clients"], report["clients"]);
        let card = String::from_utf8(files.bytes("out/README.md")).unwrap();
        assert!(card.contains("- transformers: this is a DeciLM"), "{card}");
        let asked = InspectOptions {
            model: files.path("out"),
            seq_len: None,
            batch_size: 1,
            forecast: Default::default(),
        };
        let about = inspect(context, &asked).unwrap();
        assert_eq!(about["n_params"], report["n_params"]);
        let by_layer = json!({ "heads": [0, 4, 4], "kv_heads": [0, 2, 2], "mlp": [48, 4, 0] });
        assert_eq!(about["by_layer"], by_layer);
        // Without the flag it stays a Llama, of which all layers are alike.
        let llama = PruneOptions {
            layers_apart: false,
            ..options.clone()
        };
        let error = prune(context, &llama, &files.at("llama"), false).unwrap_err();
        assert!(error.to_string().contains("--layers-apart"), "{error}");
    });
}

/// As published: widths by multipliers, key/value heads that differ, a layer without attention.
#[test]
fn a_published_form_is_read_layer_by_layer() {
    let mut value = tiny_decilm();
    value["hidden_size"] = json!(64);
    value["head_dim"] = json!(16);
    let block = |group: Value, times: Value| {
        let (no_group, no_width) = (group.is_null(), times.is_null());
        json!({
            "attention": { "n_heads_in_group": group, "no_op": no_group, "num_sink_tokens": null,
                "replace_with_linear": false, "sparsify": null, "unshifted_sink": false,
                "window_length": null },
            "ffn": { "ffn_mult": times, "no_op": no_width, "replace_with_linear": false,
                "sparsify": null },
        })
    };
    let blocks = [
        block(json!(4), json!(5.25)),
        block(json!(2), json!(12.5)),
        block(Value::Null, json!(1.0)),
    ];
    value["block_configs"] = json!(blocks);
    let model = Model::new(&value, 3).unwrap();
    let spec = &model.spec;
    // 2 · 5.25 · 64 / 3 is 224, the next 533.
    let widths = ["mlp.0", "mlp.1", "mlp.2"].map(|name| spec.dims[name].size);
    assert_eq!(widths, [256, 768, 256]);
    assert_eq!(
        (spec.dims["kv_heads.0"].size, spec.dims["kv_heads.1"].size),
        (1, 2)
    );
    assert!(!spec.dims.contains_key("heads.2") && !spec.dims.contains_key("kv_heads.2"));
    let embeddings = 2 * 61 * 64 + 64;
    let attention = |n_kv_heads: u64| 64 + 2 * 64 * 64 + 2 * 64 * 16 * n_kv_heads;
    let mlp = |width: u64| 64 + 3 * 64 * width;
    let n_params = embeddings + attention(1) + attention(2) + mlp(256) + mlp(768) + mlp(256);
    assert_eq!(spec.n_params(), n_params);
    assert_eq!(
        spec.kv_cache_bytes_at(&Sizes::new(), 10, 1),
        2 * 10 * 2 * 16 * 3
    );
    let plan = plan(
        spec,
        &[("mlp.1", 0..512), ("heads.1", 0..0), ("hidden", 0..32)],
    );
    let student = Student::new(&model.source, spec, &plan).unwrap();
    let found = student.config.to_value()["block_configs"].clone();
    assert_eq!(found[0]["attention"]["n_heads_in_group"], 4);
    assert_eq!(found[0]["attention"]["window_length"], Value::Null);
    assert_eq!(found[0]["ffn"]["ffn_mult"], json!(12.0));
    assert_eq!(found[1]["ffn"]["ffn_mult"], json!(24.0));
    assert_eq!(found[1]["attention"]["no_op"], true);
    let outputs = logits(&student.view, &student.spec);
    assert_eq!(outputs.isfinite().all().int64_value(&[]), 1);
}
