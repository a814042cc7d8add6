//! Against PyTorch and transformers: what golden/make.py computed, from the files that lie in
//! golden/fixtures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use minitron::{
    axes, calibration, fixture, fixtures, forward, groups, load, max_difference, metric, minitron,
    random_weights, reads_no_file, registry, root, score, windows,
};
use minitron_core::checkpoint::{Reader, TensorSource};
use minitron_core::contract::{Document, LogitLoss, StateLoss, States};
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::plan::Plan;
use minitron_core::prune::Student;
use minitron_core::registry::{self, PluginSpec};
use minitron_core::spec::{ModelFolder, ModelSpec};
use minitron_core::windows::Task;
use minitron_engine::ranks::Ranks;
use minitron_engine::score::{Metric, ScorerSet};
use minitron_engine::train::{
    AdamW, AdamWSettings, Counts, InMemoryTeacher, Objective, StateTerm, TermStart, Weight,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Logits and hidden states, max absolute: both sides sum in f32 in their own order, over values of
/// up to some tens.
const OUTPUTS: f64 = 1e-4;
/// Scores, relative to the largest of their dim: units are compared with each other, and a variance
/// near zero keeps the absolute error of the large activations around it.
const SCORES: f64 = 1e-4;
/// Losses and their gradients, absolute below 1 and relative above: the fixture computes in f64,
/// the plugins in f32.
const LOSSES: f64 = 1e-5;
/// The same where the plugins compute in f64 too: what differs is the order of summation, over
/// values of up to some hundreds.
const FORMULAS: f64 = 1e-12;
/// Parameters of order 1 after five steps in f32.
const PARAMETERS: f64 = 1e-6;

fn expected(dir: &Path) -> Result<Reader> {
    Reader::open_file(&dir.join("expected.safetensors"))
}

fn name(dir: &Path) -> String {
    dir.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[test]
fn the_fixtures_cover_every_family() {
    let names: Vec<String> = fixtures().iter().map(|dir| name(dir)).collect();
    assert!(names.len() >= 20, "{names:?}");
    // It has no class there: Llamas in its words stand for it.
    let registry = registry();
    let families = registry.of_kind(minitron_core::registry::Kind::Architecture);
    for family in families.filter(|family| family.tag != "decilm") {
        assert!(
            names.iter().any(|name| name.starts_with(family.tag)),
            "no fixture of `{}`",
            family.tag
        );
    }
}

#[test]
fn logits_and_hidden_states_are_those_of_transformers() {
    let mut worst = 0.0_f64;
    for dir in fixtures() {
        let expected = expected(&dir).unwrap();
        let (_, model) = load(&dir).unwrap();
        let output = if model.has_head() {
            "logits"
        } else {
            "last_hidden_state"
        };
        let found = forward(&model, &expected.read("input_ids").unwrap()).unwrap();
        let difference = max_difference(&found, &expected.read(output).unwrap()).unwrap();
        assert!(
            difference <= OUTPUTS,
            "{}: {output} differ by {difference:e}",
            name(&dir)
        );
        worst = worst.max(difference);
    }
    println!("worst difference of outputs, fixtures: {worst:e}");
}

#[test]
fn llamas_in_the_words_of_a_family_whose_layers_differ_are_those_of_transformers() {
    let mut llamas = fixtures();
    llamas.retain(|dir| name(dir).starts_with("llama"));
    assert!(llamas.len() > 5);
    for dir in llamas {
        let expected = expected(&dir).unwrap();
        let folder = ModelFolder::open_with_layers_apart(&dir, &registry()).unwrap();
        assert_eq!(folder.spec.architecture, "decilm");
        let (source, options) = (&folder.checkpoint.tensors, LoadOptions::default());
        let model = Transformer::load(source, &folder.spec, options).unwrap();
        let found = forward(&model, &expected.read("input_ids").unwrap()).unwrap();
        let difference = max_difference(&found, &expected.read("logits").unwrap()).unwrap();
        assert!(difference <= OUTPUTS, "{}: {difference:e}", name(&dir));
    }
}

#[test]
fn codes_of_four_bits_are_read_as_transformers_reads_them() {
    let folder = root().join("tests/golden/fixtures");
    let [coded, plain] = ["mxfp4", "mxfp4_plain"]
        .map(|name| Reader::open_file(&folder.join(format!("{name}.safetensors"))).unwrap());
    assert_eq!(coded.names(), ["w"]);
    assert_eq!(coded.info("w"), plain.info("w"));
    let wanted = plain.read("w").unwrap();
    assert!(coded.read("w").unwrap().equal(&wanted));
    assert!(
        coded
            .read_rows("w", 1..3)
            .unwrap()
            .equal(&wanted.narrow(0, 1, 2))
    );
}

/// All nine aggregations, the influence of blocks and their ratio of norms, under the fixtures'
/// labels.
fn metrics() -> Result<Vec<Metric>> {
    let registry = registry();
    let metric = |label: String, spec: PluginSpec| {
        Ok::<_, Error>(Metric {
            label,
            importance: registry.build(&spec)?,
        })
    };
    let depth = ["block_influence", "norm_ratio"];
    let depth = depth.map(|tag| metric(tag.to_owned(), PluginSpec::bare(tag)));
    let mut metrics: Vec<Metric> = depth.into_iter().collect::<Result<_>>()?;
    for of in ["mean", "sum", "frequency"] {
        let spec = PluginSpec::bare("reap").with("of", of);
        metrics.push(metric(format!("reap.{of}"), spec)?);
    }
    for seq in ["mean", "l2", "var"] {
        for batch in ["mean", "l2", "var"] {
            let spec = PluginSpec::bare("activation")
                .with("seq", seq)
                .with("batch", batch);
            metrics.push(metric(format!("activation.{seq}.{batch}"), spec)?);
        }
    }
    Ok(metrics)
}

#[test]
fn scores_are_those_of_hooks_in_pytorch() {
    let mut worst = 0.0_f64;
    for dir in fixtures() {
        let expected = expected(&dir).unwrap();
        let (folder, model) = load(&dir).unwrap();
        let ids_bt = expected.read("input_ids").unwrap();
        let ids = Vec::<i64>::try_from(&ids_bt.reshape([-1])).unwrap();
        let windows = windows(
            ids.iter().map(|&id| id as u32).collect(),
            ids_bt.size()[1] as usize,
        )
        .unwrap();
        let mut metrics = metrics().unwrap();
        metrics.retain(|metric| folder.spec.has_idle() || !metric.label.starts_with("reap"));
        let mut scorers = ScorerSet::new(metrics, &groups(&folder.spec).unwrap(), 0).unwrap();
        let input = calibration(&folder.spec, &windows, 2).unwrap();
        scorers.run(&model, &input, Ranks::alone()).unwrap();
        let mut scores = scorers.finish().unwrap().by_name;
        // Laws tie key/value heads to their queries (`laws/scoring.rs`) and say which pairs go
        // first (`laws/pairs.rs`).
        scores.retain(|name, _| !name.contains("/kv_heads.") && !name.contains("/rope_pairs"));

        let names: Vec<String> = expected
            .names()
            .into_iter()
            .filter(|name| name.contains('/'))
            .collect();
        assert_eq!(
            names,
            scores.keys().cloned().collect::<Vec<_>>(),
            "{}",
            name(&dir)
        );
        for (score, values) in &scores {
            let wanted = expected.read(score).unwrap();
            let largest = wanted.abs().max().double_value(&[]);
            let difference =
                max_difference(&Tensor::from_slice(values), &wanted).unwrap() / largest;
            assert!(
                difference <= SCORES,
                "{}: `{score}` differs by {difference:e}",
                name(&dir)
            );
            worst = worst.max(difference);
        }
    }
    println!("worst relative difference of scores: {worst:e}");
}

#[test]
fn scores_of_weights_gradients_and_ablations_are_those_of_pytorch() {
    let mut n_checked = 0;
    for dir in fixtures() {
        let Ok(wanted) = Reader::open_file(&dir.join("metrics.safetensors")) else {
            continue;
        };
        let (folder, _) = load(&dir).unwrap();
        let ids_bt = expected(&dir).unwrap().read("input_ids").unwrap();
        let ids = Vec::<i64>::try_from(&ids_bt.reshape([-1])).unwrap();
        let windows = windows(
            ids.iter().map(|&id| id as u32).collect(),
            ids_bt.size()[1] as usize,
        )
        .unwrap();
        let specs = ["magnitude", "taylor", "perplexity", "normalised_error"]
            .map(|tag| metric(tag).unwrap());
        let scores = score(
            &folder.checkpoint.tensors,
            &folder.spec,
            specs.into(),
            &windows,
            1,
        )
        .unwrap();
        for name in wanted.names() {
            let wanted = wanted.read(&name).unwrap();
            let found = Tensor::from_slice(&scores.by_name[&name]);
            let difference =
                max_difference(&found, &wanted).unwrap() / wanted.abs().max().double_value(&[]);
            assert!(
                difference <= SCORES,
                "{}: `{name}` differs by {difference:e}",
                self::name(&dir)
            );
            n_checked += 1;
        }
    }
    assert!(
        n_checked >= 30,
        "only {n_checked} scores have a counterpart"
    );
}

/// Largest of |a − b| / max(1, |b|).
fn scaled_difference(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).abs() / b.abs().clamp_min(1.0))
        .max()
        .double_value(&[])
}

/// The precisions a loss is computed in, with what it may differ by.
const PRECISIONS: [(Kind, f64); 2] = [(Kind::Float, LOSSES), (Kind::Double, FORMULAS)];

#[test]
fn losses_and_their_gradients_are_those_of_pytorch() {
    let fixture = Reader::open_file(&fixture("losses.safetensors")).unwrap();
    let read = |name: &str| fixture.read(name).unwrap();
    let names = fixture.names();
    let losses = names
        .iter()
        .filter(|name| name.contains('/') && !name.ends_with(".gradient"));
    let mut tags = BTreeSet::new();
    for name in losses {
        let (inputs, plugin) = name.split_once('/').unwrap();
        let spec: PluginSpec = plugin.parse().unwrap();
        let loss = registry().build::<dyn LogitLoss>(&spec).unwrap();
        for (kind, tolerance) in PRECISIONS {
            let teacher_nv = read(&format!("{inputs}.teacher")).to_kind(kind);
            let student_nv = read(&format!("{inputs}.student"))
                .to_kind(kind)
                .copy()
                .set_requires_grad(true);
            let loss_n = loss
                .rows(
                    &student_nv,
                    Some(&teacher_nv),
                    &read(&format!("{inputs}.labels")),
                )
                .unwrap();
            loss_n.mean(kind).backward();
            let value: f64 = scaled_difference(&loss_n.detach(), &read(name));
            assert!(value <= tolerance, "{name} in {kind:?}: {value:e}");
            let gradient =
                scaled_difference(&student_nv.grad(), &read(&format!("{name}.gradient")));
            assert!(
                gradient <= tolerance,
                "gradient of {name} in {kind:?}: {gradient:e}"
            );
            println!("{name} in {kind:?}: values differ by {value:e}, gradients by {gradient:e}");
        }
        tags.insert(spec.tag);
    }
    let known: BTreeSet<String> = registry()
        .of_kind(registry::Kind::Loss)
        .filter(|p| reads_no_file(p))
        .map(|p| p.tag.to_owned())
        .collect();
    assert_eq!(tags, known, "a loss without a counterpart");
}

/// scale · sin(0.7·i + phase), i counting the elements.
fn sines(shape: &[i64], scale: f64, phase: f64) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|i: i64| scale * (0.7 * i as f64 + phase).sin())
        .collect();
    Tensor::from_slice(&values).view(shape)
}

#[test]
fn divergences_have_the_values_that_others_publish() {
    // 2 x 3 tokens, 5 words. Labels [[1, −100, 3], [0, 4, −100]] leave the tokens 0, 2, 3 and 4.
    let (student_nv, teacher_nv) = (sines(&[6, 5], 2.0, 0.0), sines(&[6, 5], 3.0, 1.0));
    let labels_n = Tensor::zeros([6], (Kind::Int64, tch::Device::Cpu));
    let labelled = Tensor::from_slice(&[0i64, 2, 3, 4]);
    for kind in [Kind::Float, Kind::Double] {
        let rows = |spec: &str| {
            let loss = registry()
                .build::<dyn LogitLoss>(&spec.parse().unwrap())
                .unwrap();
            loss.rows(
                &student_nv.to_kind(kind),
                Some(&teacher_nv.to_kind(kind)),
                &labels_n,
            )
            .unwrap()
        };
        let forward = [
            0.784_289_2,
            0.394_297_0,
            0.671_923_1,
            0.114_844_2,
            0.301_407_2,
            0.444_699_3,
        ];
        // The values are given to seven digits.
        assert!(
            max_difference(&rows("forward_kl"), &Tensor::from_slice(&forward)).unwrap() <= 4e-7
        );
        for (beta, expected) in [("0.1", 0.041_489_7), ("0.5", 0.116_758_0)] {
            let loss_n = rows(&format!("jensen_shannon:beta={beta}")).index_select(0, &labelled);
            let mean = loss_n.mean(Kind::Double).double_value(&[]);
            assert!((mean - expected).abs() <= 2e-7, "beta {beta}: {mean}");
        }
    }
}

#[test]
fn cloned_neurons_and_their_gradients_are_those_of_pytorch() {
    let mut n_checked = 0;
    for dir in fixtures() {
        let Ok(wanted) = Reader::open_file(&dir.join("neuron_clone.safetensors")) else {
            continue;
        };
        let (folder, teacher) = load(&dir).unwrap();
        let mut kept = BTreeMap::new();
        for name in wanted.names() {
            if let Some(dim) = name.strip_prefix("kept/") {
                let units = Vec::<i64>::try_from(wanted.read(&name).unwrap()).unwrap();
                kept.insert(
                    dim.to_owned(),
                    units.iter().map(|&unit| unit as usize).collect(),
                );
            }
        }
        let plan = Plan { kept };
        let cut = Student::new(&folder.checkpoint.tensors, &folder.spec, &plan).unwrap();
        let options = LoadOptions {
            trainable: true,
            ..LoadOptions::default()
        };
        let student = Transformer::load(&cut.view, &cut.spec, options).unwrap();
        let spec = PluginSpec::bare("neuron_clone");
        let start = TermStart {
            device: Device::Cpu,
            kind: Kind::Float,
            kept: Some(&plan.clone().into()),
            seed: 0,
        };
        let term = StateTerm::new(
            spec.tag.clone(),
            Weight::Fixed(1.0),
            registry().build::<dyn StateLoss>(&spec).unwrap(),
            &cut.spec,
            &folder.spec,
            start,
        );
        let objective = Objective {
            states: vec![term.unwrap()],
            ..Objective::default()
        };
        let ids_bt = expected(&dir).unwrap().read("input_ids").unwrap();
        let ids = Vec::<i64>::try_from(&ids_bt.reshape([-1])).unwrap();
        let ids = ids.iter().map(|&id| id as u32).collect();
        let windows = windows(ids, ids_bt.size()[1] as usize).unwrap();
        let batch = Task::NextToken
            .batch(&windows, &[0, 1], Device::Cpu)
            .unwrap();
        let counts = Counts::of(&batch).unwrap();
        let means = objective
            .backward(
                &student,
                Some(&mut InMemoryTeacher(&teacher)),
                &batch,
                counts,
            )
            .unwrap();
        let value = wanted.read("value").unwrap().double_value(&[]);
        let difference = (means.terms[0] - value).abs() / value.max(1.0);
        assert!(difference <= LOSSES, "{}: {difference:e}", name(&dir));
        for parameter in student.parameters() {
            let Ok(mut gradient) = wanted.read(&format!("gradient/{}", parameter.name)) else {
                continue;
            };
            let found = parameter.tensor.grad();
            if found.size() != gradient.size() {
                // GPT-2 stores [in, out].
                gradient = gradient.transpose(0, 1);
            }
            let largest = gradient.abs().max().double_value(&[]);
            let difference = max_difference(&found, &gradient).unwrap() / largest.max(1.0);
            println!("{}, {}: {difference:e}", name(&dir), parameter.name);
            assert!(difference <= LOSSES, "{}: {difference:e}", parameter.name);
            n_checked += 1;
        }
    }
    assert!(n_checked >= 12, "only {n_checked} gradients were compared");
}

/// A case of the fixture: the plugin, whether the models are causal, channels of a head in student
/// and teacher.
const STATE_LOSSES: [(&str, &str, bool, [usize; 2]); 15] = [
    ("cosine", "hidden_state", true, [3, 3]),
    ("cosine_filled", "mlp_input", true, [3, 3]),
    ("cosine_filled", "embedding", false, [3, 3]),
    ("mse", "embedding:distance=mse", true, [3, 3]),
    ("mse_filled", "hidden_state:distance=mse", true, [3, 3]),
    ("mse_filled", "mlp_input:distance=mse", false, [3, 3]),
    ("mse_filled", "neuron_clone", true, [3, 3]),
    ("embedding_cosine", "pooled_state", false, [3, 3]),
    ("embedding_cosine_filled", "pooled_state", false, [3, 3]),
    (
        "embedding_mse_cls_filled",
        "pooled_state:distance=mse,pooling=cls",
        true,
        [3, 3],
    ),
    // Three heads of the student's; the teacher's six of four channels are taken two by two.
    ("relation_3_heads_of_6", "attention_relation", false, [4, 4]),
    (
        "relation_3_heads_of_6_causal",
        "attention_relation",
        true,
        [4, 4],
    ),
    // Four heads do not divide the teacher's width, but two divide four and six.
    (
        "relation_common_divisor",
        "attention_relation",
        false,
        [3, 3],
    ),
    (
        "relation_common_divisor_causal",
        "attention_relation",
        true,
        [3, 3],
    ),
    (
        "relation_given",
        "attention_relation:relation_heads=6",
        true,
        [3, 3],
    ),
];

#[test]
fn losses_on_states_and_their_gradients_are_those_of_pytorch() {
    let fixture = Reader::open_file(&fixture("state_losses.safetensors")).unwrap();
    let read = |name: String| fixture.read(&name).unwrap();
    for (case, plugin, causal, head_dims) in STATE_LOSSES {
        let loss = registry()
            .build::<dyn StateLoss>(&plugin.parse().unwrap())
            .unwrap();
        let attention_mask_bt = read(format!("{case}.seen")).to_kind(Kind::Bool);
        let attention_mask_bt = if bool::try_from(attention_mask_bt.all()).unwrap() {
            None
        } else {
            Some(&attention_mask_bt)
        };
        for (kind, tolerance) in PRECISIONS {
            let student = read(format!("{case}.student"))
                .to_kind(kind)
                .copy()
                .set_requires_grad(true);
            let teacher = read(format!("{case}.teacher")).to_kind(kind);
            let states = |x_btc, head_dim| States {
                x_btc,
                attention_mask_bt,
                causal,
                head_dim,
            };
            let found = loss
                .loss(
                    &states(&student, head_dims[0]),
                    &states(&teacher, head_dims[1]),
                )
                .unwrap();
            found.backward();
            let value: f64 = scaled_difference(&found.detach(), &read(case.to_owned()));
            assert!(
                value <= tolerance,
                "{case}, {plugin} in {kind:?}: {value:e}"
            );
            let gradient = scaled_difference(&student.grad(), &read(format!("{case}.gradient")));
            assert!(
                gradient <= tolerance,
                "gradient of {case}, {plugin} in {kind:?}: {gradient:e}"
            );
            println!(
                "{case}, {plugin} in {kind:?}: values differ by {value:e}, gradients by \
                 {gradient:e}"
            );
        }
    }
    for plugin in registry()
        .of_kind(registry::Kind::StateLoss)
        .filter(|plugin| reads_no_file(plugin))
    {
        let is_checked = STATE_LOSSES
            .iter()
            .any(|(_, spec, ..)| spec.starts_with(plugin.tag));
        assert!(is_checked, "`{}` without a counterpart", plugin.tag);
    }
}

#[test]
fn five_steps_of_adamw_are_those_of_pytorch() {
    let fixture = Reader::open_file(&fixture("adamw.safetensors")).unwrap();
    // A model whose token table has the fixture's shape: the optimiser takes a model's parameters,
    // nothing less.
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 3, "intermediate_size": 1, "num_hidden_layers": 1,
            "vocab_size": 4,
        "num_attention_heads": 1, "head_dim": 2, "max_position_embeddings": 4,
            "tie_word_embeddings": true
    });
    let spec = ModelSpec::from_config(&minitron::config(&config).unwrap(), &registry()).unwrap();
    let options = LoadOptions {
        trainable: true,
        ..LoadOptions::default()
    };
    let model = Transformer::load(&random_weights(&spec, 0).unwrap(), &spec, options).unwrap();
    let table = &model.parameters()[0];
    assert!(table.decays && table.tensor.size() == [4, 3]);
    tch::no_grad(|| {
        table
            .tensor
            .detach()
            .copy_(&fixture.read("parameter.0").unwrap())
    });

    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let mut optimizer = AdamW::new(model.parameters(), settings).unwrap();
    for step in 1..=5 {
        let gradient = fixture.read(&format!("gradient.{step}")).unwrap();
        // d/dw of sum(w · g) is g.
        (&table.tensor * gradient).sum(Kind::Float).backward();
        optimizer.step(1e-2, &[1.0], Ranks::alone()).unwrap();
        let expected = fixture.read(&format!("parameter.{step}")).unwrap();
        let difference = max_difference(&table.tensor.detach(), &expected).unwrap();
        assert!(difference <= PARAMETERS, "step {step}: {difference:e}");
    }
}

#[test]
fn keeping_every_unit_of_a_fixture_gives_back_its_tensors_and_its_config() {
    use minitron_core::plan::{Plan, Space};
    use minitron_core::prune::Student;

    for dir in fixtures() {
        let (folder, _) = load(&dir).unwrap();
        let source = &folder.checkpoint.tensors;
        let space = Space::new(&folder.spec, &axes(&registry()).unwrap()).unwrap();
        let plan = Plan::default().checked(&space, &folder.spec).unwrap();
        let student = Student::new(source, &folder.spec, &plan).unwrap();
        assert_eq!(
            student.config.to_json().unwrap(),
            folder.checkpoint.config.to_json().unwrap(),
            "{}",
            name(&dir)
        );
        for param in &folder.spec.params {
            let tensor = param.name();
            assert_eq!(
                student.view.info(&tensor),
                source.info(&tensor),
                "{}: {tensor}",
                name(&dir)
            );
            assert!(
                student
                    .view
                    .read(&tensor)
                    .unwrap()
                    .equal(&source.read(&tensor).unwrap()),
                "{}: {tensor}",
                name(&dir)
            );
        }
    }
}

#[test]
fn megatrons_own_files_hold_what_was_written() {
    let text = std::fs::read_to_string(fixture("megatron.json")).unwrap();
    let held: std::collections::BTreeMap<String, Vec<Vec<u32>>> =
        serde_json::from_str(&text).unwrap();
    assert_eq!(held.len(), 4);
    for (element, documents) in held {
        let corpus = registry()
            .corpus_for(&fixture(&format!("megatron_{element}.idx")), &[])
            .unwrap();
        for (from, _) in documents.iter().enumerate() {
            let found: Vec<Document> = corpus
                .documents_from(0, from as u64)
                .unwrap()
                .collect::<Result<_>>()
                .unwrap();
            let expected: Vec<Document> = documents[from..]
                .iter()
                .cloned()
                .map(Document::Tokens)
                .collect();
            assert_eq!(found, expected, "{element} from {from}");
        }
    }
}

/// `older/` was written at commit 6144524, before a model was described layer by layer. What it
/// decided stays decided.
#[test]
fn scores_plans_and_recipes_of_an_older_program_mean_what_they_meant() {
    let older = root().join("tests/golden/older");
    let (model, work) = (fixture("llama_untied"), tempfile::tempdir().unwrap());
    let at = |path: &Path| path.display().to_string();
    let student = |name: &str, by: &[&str]| {
        let out = work.path().join(name);
        let (model, out_dir) = (at(&model), at(&out));
        let output =
            minitron(&[&["prune", &model, "--out", &out_dir, "--quiet"], by].concat()).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        digest::of_file(&out.join("model.safetensors")).unwrap()
    };
    let (scores, plan) = (
        at(&older.join("scores.safetensors")),
        at(&older.join("plan.json")),
    );
    let sizes = [
        "--hidden", "24", "--mlp", "40", "--heads", "2", "--layers", "2",
    ];
    let then = "d9b075ba55c2edf3bc47d46b5fdd729b244f2cce4b41e07124eca22936cc5d59";
    assert_eq!(
        student("by-scores", &[&["--scores", &scores], &sizes[..]].concat()),
        then
    );
    assert_eq!(student("by-plan", &["--plan", &plan]), then);

    let (recipe, out) = (at(&older.join("recipe.toml")), at(&work.path().join("run")));
    let output = minitron(&["run", &recipe, "--out", &out, "--quiet"]).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let kept = |path: &Path| {
        let plan: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        plan["kept"].clone()
    };
    let (now, then) = (
        kept(&work.path().join("run/student/plan.json")),
        kept(&older.join("plan.json")),
    );
    for (dim, units) in then.as_object().unwrap() {
        assert_eq!(now[dim], *units, "{dim}");
    }
    // Axes that came later keep all.
    let later: Vec<_> = now
        .as_object()
        .unwrap()
        .keys()
        .filter(|dim| then.get(dim.as_str()).is_none())
        .collect();
    assert_eq!(later, ["rope_pairs"]);
    assert_eq!(now["rope_pairs"], json!([0, 1, 2, 3]));
}
