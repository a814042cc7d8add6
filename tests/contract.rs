//! Every plugin, linked or of the example library, by the laws of `minitron_plugins::laws`: a new
//! one is met here without being named. What the built-in ones keep beyond their law stands here
//! too.

use std::collections::HashSet;
use std::path::Path;

use minitron::{
    binary, config, families, groups, random_weights, reads_no_file, registry, root, score,
    some_windows, tiny_bert, tiny_llama,
};
use minitron_core::contract::{
    Axis, Corpus, Evaluator, LogitLoss, ModelPair, StateLoss, States, Subject, TeacherNeed,
};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use minitron_core::registry::{Contract, Descriptor, Kind, PluginSpec, Registry};
use minitron_core::spec::ModelSpec;
use minitron_core::windows::{Tokenize, Windows};
use minitron_engine::data::Tokenizer;
use minitron_engine::ranks::Ranks;
use minitron_engine::score::{Metric, ScorerSet};
use minitron_plugins::laws::{self, SampleModel, Trial, UNTRIED, gradient_error};
use serde_json::{Value, json};
use tch::{Kind as Element, Tensor};

/// What users rely on: a tag that goes missing here breaks recipes.
const BUILT_IN: [(Kind, &[&str]); 9] = [
    (
        Kind::Architecture,
        &[
            "bamba",
            "bert",
            "decilm",
            "distilbert",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gpt2",
            "gpt_neox",
            "granite",
            "llama",
            "ministral",
            "ministral3",
            "mistral",
            "mistral3",
            "modernbert",
            "nemotron",
            "nemotron_h",
            "olmo2",
            "olmo3",
            "phi3",
            "qwen2",
            "qwen3",
            "roberta",
            "smollm3",
            "starcoder2",
        ],
    ),
    (
        Kind::Axis,
        &[
            "depth",
            "heads",
            "hidden",
            "kv_heads",
            "mamba_head_dim",
            "mamba_heads",
            "mlp",
            "rope_pairs",
        ],
    ),
    (
        Kind::Importance,
        &[
            "activation",
            "block_influence",
            "fluctuation",
            "magnitude",
            "norm_ratio",
            "normalised_error",
            "perplexity",
            "random",
            "task_accuracy",
            "taylor",
            "torchscript",
            "wanda",
        ],
    ),
    (
        Kind::Allocator,
        &["budget", "fixed", "knapsack", "memory", "ratio"],
    ),
    (
        Kind::Reconstruction,
        &[
            "bias_compensation",
            "expert_merge",
            "head_merge",
            "least_squares",
            "rotation",
            "torchscript",
        ],
    ),
    (
        Kind::Loss,
        &[
            "cross_entropy",
            "forward_kl",
            "jensen_shannon",
            "logit_cosine",
            "logit_mse",
            "reverse_kl",
            "top_k_kl",
            "torchscript",
        ],
    ),
    (
        Kind::StateLoss,
        &[
            "attention_relation",
            "embedding",
            "hidden_state",
            "mlp_input",
            "neuron_clone",
            "pooled_state",
            "torchscript_states",
        ],
    ),
    (
        Kind::Evaluator,
        &[
            "exact_match",
            "hidden_cosine",
            "last_word",
            "multiple_choice",
            "nearest_neighbour",
            "perplexity",
            "rolling_perplexity",
            "throughput",
        ],
    ),
    (
        Kind::Corpus,
        &["jsonl", "megatron", "parquet", "stories", "text", "tokens"],
    ),
];

#[test]
fn the_built_ins_are_all_there() {
    let registry = registry();
    for (kind, tags) in BUILT_IN {
        let found: Vec<&str> = registry
            .of_kind(kind)
            .map(|descriptor| descriptor.tag)
            .collect();
        let missing: Vec<&&str> = tags.iter().filter(|tag| !found.contains(tag)).collect();
        assert!(
            missing.is_empty(),
            "{kind}: {missing:?} vanished; there are {found:?}"
        );
    }
    assert_eq!(Kind::ALL.len(), BUILT_IN.len());
}

#[test]
fn an_unknown_tag_is_answered_with_the_known_ones() {
    for (kind, tags) in BUILT_IN {
        let error = registry().find(kind, "activaton").unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_usage()
                && text.contains(&format!("no {kind} plugin is called `activaton`; known: ")),
            "{text}"
        );
        assert!(tags.iter().all(|tag| text.contains(tag)), "{text}");
    }
}

// --- laws
// ----------------------------------------------------------------------------------------------------------

/// The linked plugins, and those of the example library that are not linked here, too.
fn everyone() -> Registry {
    let linked = registry();
    let opened =
        minitron_plugins::open(&binary().with_file_name("libminitron_examples.so")).unwrap();
    let opened = opened
        .into_iter()
        .filter(|plugin| linked.find(plugin.kind, plugin.tag).is_err())
        .collect();
    linked.with_library(String::new(), opened).unwrap()
}

/// A model of every family.
fn samples(registry: &Registry) -> Vec<SampleModel> {
    families()
        .iter()
        .map(|config| SampleModel::new(registry, config, 1).unwrap())
        .collect()
}

/// Tries every plugin of a kind; `untried` are those whose law needs what only their users have.
fn assert_lawful(kind: Kind, untried: &[&str]) {
    let registry = everyone();
    let samples = samples(&registry);
    let mut found = Vec::new();
    for plugin in registry.of_kind(kind) {
        for spec in variants(plugin) {
            let verdict = laws::check(
                &Trial {
                    registry: &registry,
                    plugin,
                    spec: &spec,
                },
                &samples,
            );
            let verdict = verdict.unwrap_or_else(|error| panic!("{kind}/{spec}: {error}"));
            found.extend(verdict.contains(UNTRIED).then_some(plugin.tag));
        }
    }
    // One that reads a file has it in no variant.
    found.dedup();
    assert_eq!(found, untried, "{kind}");
}

#[test]
fn every_architecture_keeps_its_law() {
    assert_lawful(Kind::Architecture, &[]);
    let registry = everyone();
    for config in families() {
        let spec = ModelSpec::from_config(&minitron::config(&config).unwrap(), &registry).unwrap();
        let tag = spec.architecture.as_str();
        let plugin = registry.find(Kind::Architecture, tag).unwrap();
        let trial = Trial {
            registry: &registry,
            plugin,
            spec: &PluginSpec::bare(tag),
        };
        let verdict = laws::architecture::check(&trial, &config).unwrap();
        assert!(!verdict.contains(UNTRIED), "{tag}: {verdict}");
    }
}

#[test]
fn every_axis_keeps_its_law() {
    assert_lawful(Kind::Axis, &[]);
}

#[test]
fn every_metric_keeps_its_law() {
    // One that measures on a task, and one in Python, read files.
    assert_lawful(Kind::Importance, &["task_accuracy", "torchscript"]);
}

#[test]
fn every_allocator_keeps_its_law() {
    // The default is a budget of billions, or none; below, they get one that can be met.
    assert_lawful(Kind::Allocator, &["budget", "knapsack"]);
}

#[test]
fn every_reconstruction_keeps_its_law() {
    assert_lawful(Kind::Reconstruction, &["torchscript"]);
}

#[test]
fn every_loss_keeps_its_law() {
    assert_lawful(Kind::Loss, &["torchscript"]);
}

#[test]
fn every_loss_on_states_keeps_its_law() {
    assert_lawful(Kind::StateLoss, &["torchscript_states"]);
}

#[test]
fn every_evaluator_keeps_its_law() {
    assert_lawful(Kind::Evaluator, &[]);
}

#[test]
fn every_corpus_keeps_its_law() {
    assert_lawful(Kind::Corpus, &[]);
}

fn model(value: &Value, seed: u64) -> Result<(ModelSpec, Transformer)> {
    let spec = ModelSpec::from_config(&config(value)?, &registry())?;
    let model = Transformer::load(&random_weights(&spec, seed)?, &spec, LoadOptions::default())?;
    Ok((spec, model))
}

fn all<C: Contract + ?Sized>() -> Result<Vec<(&'static Descriptor, Box<C>)>> {
    let registry = registry();
    let build =
        |plugin: &'static Descriptor| Ok((plugin, registry.build(&PluginSpec::bare(plugin.tag))?));
    registry.of_kind(C::KIND).map(build).collect()
}

#[test]
fn an_axis_is_called_as_the_dim_it_prunes() {
    let mut found: HashSet<&str> = HashSet::new();
    for value in families() {
        let spec = ModelSpec::from_config(&config(&value).unwrap(), &registry()).unwrap();
        for (plugin, axis) in all::<dyn Axis>().unwrap() {
            // A family may lack one: only grouped queries have key/value heads.
            let has_dim = spec.size(plugin.tag) > 0;
            let groups = axis.groups(&spec).unwrap();
            assert_eq!(
                !groups.is_empty(),
                has_dim,
                "`{}` in {}",
                plugin.tag,
                spec.architecture
            );
            found.extend(has_dim.then_some(plugin.tag));
        }
    }
    assert_eq!(
        found.len(),
        all::<dyn Axis>().unwrap().len(),
        "an axis that no family has: {found:?}"
    );
}

#[test]
fn every_metric_tells_units_apart() {
    for value in families() {
        let spec = ModelSpec::from_config(&config(&value).unwrap(), &registry()).unwrap();
        let source = random_weights(&spec, 1).unwrap();
        // A metric of a task file has a test of its own.
        for (plugin, importance) in all()
            .unwrap()
            .into_iter()
            .filter(|(plugin, _)| reads_no_file(plugin))
            .filter(|(plugin, _)| plugin.tag != "reap" || spec.has_idle())
        {
            let metric = Metric {
                label: plugin.tag.to_owned(),
                importance,
            };
            let scores = score(
                &source,
                &spec,
                vec![metric],
                &some_windows(4, 10, 61, 2).unwrap(),
                3,
            )
            .unwrap();
            assert!(
                !scores.by_name.is_empty(),
                "`{}` scores nothing in {}",
                plugin.tag,
                spec.architecture
            );
            for (name, scores) in &scores.by_name {
                assert!(
                    scores.iter().any(|score| *score != scores[0]),
                    "{name} tells no units apart"
                );
            }
        }
    }
}

#[test]
fn a_metric_of_a_task_is_the_tasks_error_without_each_layer() {
    let demo = root().join("examples/demo");
    let dir = tempfile::tempdir().unwrap();
    let mut value = tiny_llama();
    value["vocab_size"] = 512.into();
    let (spec, model) = model(&value, 6).unwrap();
    let tokenizer = Tokenizer::load(&demo, &spec.config, 512, true).unwrap();
    let windows = some_windows(2, 12, 512, 8).unwrap();
    let path = task_file(dir.path());
    fn subject<'a>(
        model: &'a Transformer,
        windows: &'a Windows,
        tokenizer: &'a Tokenizer,
    ) -> Subject<'a> {
        let (windows, tokenizer) = (Some(windows), Some(tokenizer as &dyn Tokenize));
        Subject {
            model,
            teacher: None,
            kept_hidden: None,
            windows,
            tokenizer,
            batch_size: 2,
            seed: 0,
            progress: &Silent,
        }
    }
    let choice = PluginSpec::bare("multiple_choice").with("path", path.to_string_lossy().as_ref());
    let choice = registry().build::<dyn Evaluator>(&choice).unwrap();
    for plugin in registry()
        .of_kind(Kind::Importance)
        .filter(|plugin| plugin.tag == "task_accuracy")
    {
        let asked = PluginSpec::bare(plugin.tag).with("path", path.to_string_lossy().as_ref());
        let metric = Metric {
            label: plugin.tag.into(),
            importance: registry().build(&asked).unwrap(),
        };
        let mut scorers = ScorerSet::new(vec![metric], &groups(&spec).unwrap(), 0).unwrap();
        scorers
            .measure(&subject(&model, &windows, &tokenizer), Ranks::alone())
            .unwrap();
        let scores = scorers.finish().unwrap();
        for (layer, score) in scores.by_name[&format!("{}/depth", plugin.tag)]
            .iter()
            .enumerate()
        {
            let without = model.without(layer..layer + 1);
            let accuracy = choice
                .evaluate(&subject(&without, &windows, &tokenizer))
                .unwrap()["acc"];
            assert_eq!(*score, (1.0 - accuracy) as f32, "layer {layer}");
        }
    }
}

/// Parameters that a tiny model can meet, where the example is for large ones.
fn for_tiny(tag: &str, spec: &ModelSpec) -> PluginSpec {
    let asked = PluginSpec::bare(tag);
    match tag {
        "budget" => asked
            .with("params", format!("{}+-5%", spec.n_params() * 7 / 10))
            .with("n_plans", 3),
        // Four bytes a parameter, no cache: 70 % of the whole.
        "memory" => asked
            .with("memory", format!("{}", spec.n_params() * 28 / 10))
            .with("bytes_per_param", 4)
            .with("batch_size", 0),
        "knapsack" => asked
            .with("params", format!("{}", spec.n_params() * 9 / 10))
            .with("n_plans", 3),
        "fixed" => asked.with("sizes", json!({ "mlp": 24, "depth": 2 })),
        _ => asked,
    }
}

#[test]
fn every_allocator_keeps_its_law_with_parameters_that_can_be_met() {
    let registry = everyone();
    for sample in samples(&registry) {
        for plugin in registry.of_kind(Kind::Allocator) {
            let spec = for_tiny(plugin.tag, &sample.spec);
            let trial = Trial {
                registry: &registry,
                plugin,
                spec: &spec,
            };
            let verdict = laws::check(&trial, std::slice::from_ref(&sample)).unwrap();
            assert!(
                !verdict.contains(UNTRIED),
                "`{}` in {}: {verdict}",
                plugin.tag,
                sample.spec.architecture
            );
        }
    }
}

/// A plugin with its defaults, and with what else its kind's parameters can be.
fn variants(plugin: &Descriptor) -> Vec<PluginSpec> {
    let bare = PluginSpec::bare(plugin.tag);
    let example = (plugin.example)();
    let others = [
        ("temperature", json!(2.5)),
        ("k", json!(3)),
        ("distance", json!("mse")),
        ("layers", json!("uniform")),
    ];
    let is_loss = matches!(plugin.kind, Kind::Loss | Kind::StateLoss);
    let others = others
        .into_iter()
        .filter(|(key, _)| is_loss && example.get(*key).is_some());
    std::iter::once(bare.clone())
        .chain(others.map(|(key, value)| bare.clone().with(key, value)))
        .collect()
}

/// Numbers from −size to size in f64.
fn uniform(shape: &[i64], size: f64, seed: u64) -> Tensor {
    let mut random = SplitMix::new(seed);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_: i64| size * (2.0 * random.unit() - 1.0))
        .collect();
    Tensor::from_slice(&values).view(shape)
}

/// Every loss of a kind, with its parameters as [`variants`] has them.
fn all_variants<C: Contract + ?Sized>() -> Vec<(PluginSpec, Box<C>)> {
    let registry = registry();
    // What a file says is tested with one.
    let plugins = registry
        .of_kind(C::KIND)
        .filter(|plugin| reads_no_file(plugin));
    let specs: Vec<PluginSpec> = plugins.flat_map(variants).collect();
    specs
        .into_iter()
        .map(|spec| (spec.clone(), registry.build(&spec).unwrap()))
        .collect()
}

/// States of a model with heads of four channels.
fn states<'a>(
    x_btc: &'a Tensor,
    attention_mask_bt: Option<&'a Tensor>,
    causal: bool,
) -> States<'a> {
    States {
        x_btc,
        attention_mask_bt,
        causal,
        head_dim: 4,
    }
}

#[test]
fn the_gradient_of_every_loss_is_that_of_finite_differences() {
    let labels_n = Tensor::from_slice(&[0i64, 6, 3]);
    let (student_nv, teacher_nv) = (uniform(&[3, 7], 3.0, 1), uniform(&[3, 7], 3.0, 2));
    for (spec, loss) in all_variants::<dyn LogitLoss>() {
        let teacher = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
        let value = |x: &Tensor| Ok(loss.rows(x, teacher, &labels_n)?.sum(Element::Double));
        let error = gradient_error(&student_nv, 1e-5, value).unwrap();
        assert!(error <= 1e-7, "{spec}: {error:e}");
    }
    let attention_mask_bt = Tensor::from_slice(&[1i64, 1, 1, 0, 1, 1, 1, 1])
        .view([2, 4])
        .to_kind(Element::Bool);
    let (student, teacher) = (uniform(&[2, 4, 8], 2.0, 3), uniform(&[2, 4, 8], 2.0, 4));
    for (spec, loss) in all_variants::<dyn StateLoss>() {
        for (causal, attention_mask_bt) in [
            (true, None),
            (false, Some(&attention_mask_bt)),
            (true, Some(&attention_mask_bt)),
        ] {
            let other = states(&teacher, attention_mask_bt, causal);
            let value = |x: &Tensor| loss.loss(&states(x, attention_mask_bt, causal), &other);
            let error = gradient_error(&student, 1e-5, value).unwrap();
            assert!(error <= 1e-7, "{spec}: {error:e}");
        }
    }
}

#[test]
fn a_loss_of_the_teacher_itself_is_zero_and_no_constant_of_a_row_changes_a_distribution() {
    let labels_n = Tensor::from_slice(&[0i64, 6, 3]);
    let (student_nv, teacher_nv) = (uniform(&[3, 7], 3.0, 5), uniform(&[3, 7], 3.0, 6));
    let shifted_nv = &teacher_nv + Tensor::from_slice(&[1e3, -20.0, 0.5]).view([3, 1]);
    for (spec, loss) in all_variants::<dyn LogitLoss>() {
        let rows = |student: &Tensor, teacher: &Tensor| {
            loss.rows(student, Some(teacher), &labels_n).unwrap()
        };
        if loss.teacher() == TeacherNeed::Nothing {
            continue;
        }
        for kind in [Element::Float, Element::Double] {
            for size in [1.0, 1e3] {
                let same_nv = (&teacher_nv * size).to_kind(kind);
                let largest = rows(&same_nv, &same_nv).abs().max().double_value(&[]);
                assert!(largest <= 1e-6, "{spec}: {largest:e}");
            }
        }
        let plain = rows(&student_nv, &teacher_nv);
        assert!(
            plain.min().double_value(&[]) > 1e-3,
            "{spec} does not tell one from the other"
        );
        let change = (rows(&student_nv, &shifted_nv) - &plain)
            .abs()
            .max()
            .double_value(&[]);
        let is_of_distributions = matches!(loss.teacher(), TeacherNeed::Distribution { .. });
        assert_eq!(change <= 1e-10, is_of_distributions, "{spec}: {change:e}");
    }
}

#[test]
fn a_loss_of_the_teachers_own_states_or_of_none_is_zero_in_every_type() {
    let attention_mask_bt = Tensor::from_slice(&[1i64, 0, 1, 0, 0, 0, 1, 1, 1, 1])
        .view([2, 5])
        .to_kind(Element::Bool);
    for (spec, loss) in all_variants::<dyn StateLoss>() {
        for kind in [Element::Float, Element::Half, Element::Double] {
            let [student, teacher] =
                [7, 8].map(|seed| uniform(&[2, 5, 12], 2.0, seed).to_kind(kind));
            for causal in [false, true] {
                let run = |student: &Tensor, teacher: &Tensor, attention_mask_bt: &Tensor| {
                    let states = |x| states(x, Some(attention_mask_bt), causal);
                    loss.loss(&states(student), &states(teacher))
                        .unwrap()
                        .double_value(&[])
                };
                assert!(
                    run(&student, &teacher, &attention_mask_bt) > 1e-3,
                    "{spec} does not tell one from the other"
                );
                let same = run(&student, &student, &attention_mask_bt);
                assert!(same.abs() <= 1e-6, "{spec}: {same:e}");
                assert_eq!(
                    run(&student, &teacher, &attention_mask_bt.zeros_like()),
                    0.0,
                    "{spec} of no tokens"
                );
            }
        }
    }
}

#[test]
fn states_and_layers_that_do_not_fit_are_refused() {
    let spec = ModelSpec::from_config(&config(&tiny_llama()).unwrap(), &registry()).unwrap();
    let refusal = |loss: &str| {
        let loss = registry().build::<dyn StateLoss>(&loss.parse().unwrap())?;
        loss.pairs(&ModelPair::new(&spec, &spec))
    };
    for (spec, says) in [
        (
            "hidden_state:layers=3:0",
            "the teacher has no layer 3, its 3 layers",
        ),
        (
            "mlp_input:layers=1:1+0:5",
            "the student has no layer 5, its 3 layers",
        ),
        ("attention_relation:layers=-1:0", "teacher:student"),
        ("hidden_state:layers=2", "an array of strings"),
        ("hidden_state:distance=l1", "cosine"),
        ("attention_relation:relation_heads=5", "got 5"),
        ("attention_relation:relations=query+keys", "query key value"),
        ("attention_relation:relations=", "query key value"),
    ] {
        let error = refusal(spec).unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains(says),
            "{spec}: {error}"
        );
    }
    assert_eq!(refusal("hidden_state:layers=2:0+1:1").unwrap().len(), 2);
    // Two of the three relations, at two pairs of layers.
    assert_eq!(
        refusal("attention_relation:layers=2:0 1:1,relations=value+query")
            .unwrap()
            .len(),
        4
    );

    for spec in ["temperature=0", "temperature=-1", "temperature=true"] {
        for tag in ["forward_kl", "reverse_kl", "jensen_shannon", "top_k_kl"] {
            assert!(
                registry()
                    .build::<dyn LogitLoss>(&format!("{tag}:{spec}").parse().unwrap())
                    .is_err(),
                "{tag}:{spec}"
            );
        }
    }
    for spec in [
        "jensen_shannon:beta=0",
        "jensen_shannon:beta=1",
        "top_k_kl:k=0",
    ] {
        let error = registry()
            .build::<dyn LogitLoss>(&spec.parse().unwrap())
            .unwrap_err();
        assert!(error.is_usage(), "{spec}: {error}");
    }
    for (plugin, loss) in all::<dyn StateLoss>().unwrap() {
        let of = |shape: &[i64]| uniform(shape, 1.0, 9);
        for (student, teacher) in [
            (of(&[2, 3, 8]), of(&[2, 4, 8])),
            (of(&[2, 3, 7]), of(&[2, 3, 8])),
            (of(&[2, 3, 0]), of(&[2, 3, 8])),
            (of(&[6]), of(&[2, 3, 8])),
        ] {
            let result = loss.loss(&states(&student, None, true), &states(&teacher, None, true));
            assert!(result.is_err(), "{}: {student:?}", plugin.tag);
        }
    }
}

/// A task file whose records serve every evaluator that reads one.
fn task_file(dir: &Path) -> std::path::PathBuf {
    let record = |prompt: &str, completion: &str| {
        json!({
            "prompt": prompt, "completion": completion, "context": prompt,
            "choices": ["a red ball.", "sad", "home"],
            "gold": 1, "text": prompt, "label": completion
        })
    };
    let records = [
        record("Once upon a time", " there was a"),
        record("Mia saw a", " dog"),
        record("Once upon a day Mia saw a big", " dog"),
        record("Once upon a time", " there was a"),
    ];
    let lines = records.map(|record| record.to_string());
    let path = dir.join("task.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap_or_default();
    path
}

#[test]
fn an_evaluator_without_what_it_measures_on_says_so() {
    let (_, model) = model(&tiny_bert(), 9).unwrap();
    for (plugin, evaluator) in all::<dyn Evaluator>().unwrap() {
        let subject = Subject {
            model: &model,
            teacher: None,
            kept_hidden: None,
            windows: None,
            tokenizer: None,
            batch_size: 1,
            seed: 1,
            progress: &Silent,
        };
        let error = evaluator.evaluate(&subject).unwrap_err();
        assert!(
            matches!(error, minitron_core::error::Error::Data(_)),
            "{}: {error}",
            plugin.tag
        );
    }
}

#[test]
fn a_file_is_read_by_the_corpus_that_names_its_ending_alone() {
    let registry = registry();
    for plugin in registry
        .of_kind(Kind::Corpus)
        .filter(|plugin| !reads_no_file(plugin))
    {
        let bare = PluginSpec::bare(plugin.tag);
        assert!(
            registry.build::<dyn Corpus>(&bare).is_err(),
            "`{}` reads a file, and takes none",
            plugin.tag
        );
        for extension in registry
            .build::<dyn Corpus>(&bare.with("path", "x"))
            .unwrap()
            .extensions()
        {
            let corpus = registry
                .corpus_for(Path::new(&format!("x.{extension}")), &[])
                .unwrap();
            assert_eq!(
                serde_json::to_value(&corpus).unwrap()["type"],
                plugin.tag,
                ".{extension}"
            );
        }
    }
}
