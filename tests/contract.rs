//! Every registered plugin: its example, its round trip, its law. A new plugin is met here without being named.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use minitron::{
    axes, config, families, groups, random_weights, reads_no_file, registry, root, score, some_windows, tiny_bert,
    tiny_llama,
};
use minitron_core::blueprint::{Blueprint, ModelFolder};
use minitron_core::calibrate::{Metric, Pass, Scores};
use minitron_core::checkpoint::{WriteOptions, write_model};
use minitron_core::contract::{
    Allocator, Axis, Corpus, Document, Evaluator, LogitLoss, Measurements, SitePair, StateLoss, States, Subject,
    TeacherNeed,
};
use minitron_core::data::{Tokenizer, Windows};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Site, Tap, Transformer};
use minitron_core::plan::{Rankings, Space};
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use minitron_core::registry::{Contract, Descriptor, Kind, PluginSpec};
use serde_json::{Value, json};
use tch::{Kind as Element, Tensor};

/// What users rely on: a tag that goes missing here breaks recipes.
const BUILT_IN: [(Kind, &[&str]); 9] = [
    (Kind::Architecture, &["bert", "gpt2", "llama", "nemotron"]),
    (Kind::Axis, &["depth", "heads", "hidden", "kv_heads", "mlp"]),
    (
        Kind::Importance,
        &[
            "activation",
            "block_influence",
            "fluctuation",
            "magnitude",
            "perplexity",
            "random",
            "task_accuracy",
            "taylor",
            "torchscript",
            "wanda",
        ],
    ),
    (Kind::Allocator, &["budget", "fixed", "memory", "ratio"]),
    (Kind::Healing, &["bias_compensation", "head_merge", "least_squares", "rotation", "torchscript"]),
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
    (Kind::StateLoss, &["attention_relation", "embedding", "hidden_state", "mlp_input", "torchscript_states"]),
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
    (Kind::Corpus, &["jsonl", "megatron", "parquet", "stories", "text", "tokens"]),
];

#[test]
fn the_built_ins_are_all_there() {
    let registry = registry();
    for (kind, tags) in BUILT_IN {
        let found: Vec<&str> = registry.of_kind(kind).map(|descriptor| descriptor.tag).collect();
        let missing: Vec<&&str> = tags.iter().filter(|tag| !found.contains(tag)).collect();
        assert!(missing.is_empty(), "{kind}: {missing:?} vanished; there are {found:?}");
    }
    assert_eq!(Kind::ALL.len(), BUILT_IN.len());
}

#[test]
fn every_plugin_says_what_it_is() {
    for plugin in registry().descriptors() {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_snake = plugin.tag.chars().all(plain) && plugin.tag.starts_with(|c: char| c.is_ascii_lowercase());
        assert!(is_snake && !plugin.tag.contains("__"), "`{}` is not snake_case", plugin.tag);
        assert!(!plugin.summary.is_empty() && !plugin.summary.contains('\n'), "{}: {}", plugin.tag, plugin.summary);
        assert!(!plugin.source.is_empty(), "`{}` does not say where it comes from", plugin.tag);
        assert!(plugin.origin.split_once(' ').is_some(), "{}: {}", plugin.tag, plugin.origin);
    }
}

/// `{"type": tag, ...example}`.
fn tagged(plugin: &Descriptor) -> Value {
    let mut value = (plugin.example)();
    value["type"] = plugin.tag.into();
    value
}

#[test]
fn every_example_builds_and_is_written_as_it_was_read() {
    for plugin in registry().descriptors() {
        let value = tagged(plugin);
        assert_eq!(plugin.rewritten(value.clone()).unwrap(), value, "{} `{}`", plugin.kind, plugin.tag);
    }
}

#[test]
fn every_plugin_refuses_a_stray_key_by_name() {
    for plugin in registry().descriptors() {
        let mut value = tagged(plugin);
        value["stray_key"] = 1.into();
        let error = plugin.rewritten(value).unwrap_err().to_string();
        assert!(error.contains("stray_key"), "{} `{}`: {error}", plugin.kind, plugin.tag);
    }
}

#[test]
fn every_parameter_is_described() {
    for plugin in registry().descriptors() {
        let schema = (plugin.schema)().to_value();
        let example = (plugin.example)();
        let known = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let keys: HashSet<&String> = example.as_object().unwrap().keys().collect();
        assert_eq!(known.keys().collect::<HashSet<_>>(), keys, "{} `{}`", plugin.kind, plugin.tag);
        for (key, of) in &known {
            let description = of.get("description").and_then(Value::as_str).unwrap_or_default();
            assert!(!description.is_empty(), "{} `{}`: `{key}` has no description", plugin.kind, plugin.tag);
        }
        let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        assert!(!description.is_empty(), "{} `{}` has no description", plugin.kind, plugin.tag);
    }
}

#[test]
fn an_unknown_tag_is_answered_with_the_known_ones() {
    for (kind, tags) in BUILT_IN {
        let error = registry().find(kind, "activaton").unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_usage() && text.contains(&format!("no {kind} plugin is called `activaton`; known: ")),
            "{text}"
        );
        assert!(tags.iter().all(|tag| text.contains(tag)), "{text}");
    }
}

// --- laws ----------------------------------------------------------------------------------------------------------

fn all<C: Contract + ?Sized>() -> Result<Vec<(&'static Descriptor, Box<C>)>> {
    let registry = registry();
    let build = |plugin: &'static Descriptor| Ok((plugin, registry.build(&PluginSpec::bare(plugin.tag))?));
    registry.of_kind(C::KIND).map(build).collect()
}

fn model(value: &Value, seed: u64) -> Result<(Blueprint, Transformer)> {
    let blueprint = Blueprint::from_config(&config(value)?, &registry())?;
    let model = Transformer::load(&random_weights(&blueprint, seed)?, &blueprint, LoadOptions::default())?;
    Ok((blueprint, model))
}

#[test]
fn a_family_recognises_its_own_configs_alone_and_describes_them_alike_each_time() {
    for value in families() {
        let config = config(&value).unwrap();
        let recognised = all::<dyn minitron_core::contract::Architecture>().unwrap();
        let tags: Vec<&str> =
            recognised.iter().filter(|(_, family)| family.recognises(&config)).map(|(plugin, _)| plugin.tag).collect();
        assert_eq!(tags, [value["model_type"].as_str().unwrap()]);
        let [one, two] = [(); 2].map(|()| Blueprint::from_config(&config, &registry()).unwrap());
        assert_eq!((&one.tensors, &one.dims, &one.options), (&two.tensors, &two.dims, &two.options));
    }
}

#[test]
fn every_axis_names_dims_of_the_model_once_with_all_their_units() {
    let mut found: HashSet<&str> = HashSet::new();
    for value in families() {
        let blueprint = Blueprint::from_config(&config(&value).unwrap(), &registry()).unwrap();
        let mut seen = HashSet::new();
        for (plugin, axis) in all::<dyn Axis>().unwrap() {
            let groups = axis.groups(&blueprint).unwrap();
            // An axis is called as the dim it prunes; a family may lack one (only grouped queries have key/value heads).
            let has_dim = blueprint.size(plugin.tag) > 0;
            assert_eq!(!groups.is_empty(), has_dim, "`{}` in {}", plugin.tag, blueprint.architecture);
            found.extend(has_dim.then_some(plugin.tag));
            for group in groups {
                assert_eq!(blueprint.dim(&group.dim).unwrap().size, group.n_units, "{}", group.dim);
                assert!(group.n_parts > 0 && group.n_units.is_multiple_of(group.n_parts) && group.block > 0);
                assert!(seen.insert(group.dim.clone()), "`{}` is named twice", group.dim);
            }
        }
    }
    assert_eq!(found.len(), all::<dyn Axis>().unwrap().len(), "an axis that no family has: {found:?}");
}

#[test]
fn every_metric_gives_each_unit_one_finite_score() {
    for value in families() {
        let blueprint = Blueprint::from_config(&config(&value).unwrap(), &registry()).unwrap();
        let source = random_weights(&blueprint, 1).unwrap();
        let groups = groups(&blueprint).unwrap();
        // A metric of a task file has a test of its own.
        for (plugin, importance) in all().unwrap().into_iter().filter(|(plugin, _)| reads_no_file(plugin)) {
            let metric = Metric { label: plugin.tag.to_owned(), importance };
            let scores = score(&source, &blueprint, vec![metric], &some_windows(4, 10, 61, 2).unwrap(), 3).unwrap();
            assert!(!scores.by_name.is_empty());
            for (name, scores) in &scores.by_name {
                let group = groups.iter().find(|group| name.ends_with(&format!("/{}", group.dim))).unwrap();
                assert!(scores.len() == group.n_units && scores.iter().all(|score| score.is_finite()), "{name}");
                assert!(scores.iter().any(|score| *score != scores[0]), "{name} tells no units apart");
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
    let (blueprint, model) = model(&value, 6).unwrap();
    let tokenizer = Tokenizer::load(&demo, &blueprint.config, 512, true).unwrap();
    let windows = some_windows(2, 12, 512, 8).unwrap();
    let path = task_file(dir.path());
    fn subject<'a>(model: &'a Transformer, windows: &'a Windows, tokenizer: &'a Tokenizer) -> Subject<'a> {
        let (windows, tokenizer) = (Some(windows), Some(tokenizer));
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
    for plugin in registry().of_kind(Kind::Importance).filter(|plugin| plugin.tag == "task_accuracy") {
        let spec = PluginSpec::bare(plugin.tag).with("path", path.to_string_lossy().as_ref());
        let metric = Metric { label: plugin.tag.into(), importance: registry().build(&spec).unwrap() };
        let mut pass = Pass::new(vec![metric], &groups(&blueprint).unwrap(), 0).unwrap();
        pass.measure(&subject(&model, &windows, &tokenizer)).unwrap();
        let scores = pass.finish().unwrap();
        for (layer, score) in scores.by_name[&format!("{}/depth", plugin.tag)].iter().enumerate() {
            let without = model.without(layer..layer + 1);
            let accuracy = choice.evaluate(&subject(&without, &windows, &tokenizer)).unwrap()["acc"];
            assert_eq!(*score, (1.0 - accuracy) as f32, "layer {layer}");
        }
    }
}

/// Parameters that a tiny model can meet, where the example is for large ones.
fn for_tiny(tag: &str, blueprint: &Blueprint) -> PluginSpec {
    let spec = PluginSpec::bare(tag);
    match tag {
        "budget" => spec.with("params", format!("{}+-5%", blueprint.n_params() * 7 / 10)).with("n_plans", 3),
        // Four bytes a parameter, no cache: 70 % of the whole.
        "memory" => spec
            .with("memory", format!("{}", blueprint.n_params() * 28 / 10))
            .with("bytes_per_param", 4)
            .with("batch_size", 0),
        "fixed" => spec.with("sizes", json!({ "mlp": 24, "depth": 2 })),
        _ => spec,
    }
}

#[test]
fn every_allocator_gives_legal_plans() {
    for value in families() {
        let blueprint = Blueprint::from_config(&config(&value).unwrap(), &registry()).unwrap();
        let groups = groups(&blueprint).unwrap();
        let mut random = SplitMix::new(3);
        let mut scores = Scores::default();
        for group in &groups {
            let values = (0..group.n_units).map(|_| random.unit() as f32).collect();
            scores.by_name.insert(format!("random/{}", group.dim), values);
        }
        let rankings = Rankings::new(&scores, &groups, &BTreeMap::new()).unwrap();
        let space = Space::new(&blueprint, &axes(&registry()).unwrap()).unwrap();
        for plugin in registry().of_kind(Kind::Allocator) {
            let allocator = registry().build::<dyn Allocator>(&for_tiny(plugin.tag, &blueprint)).unwrap();
            let plans = allocator.allocate(&space, &rankings, &blueprint).unwrap();
            assert!(!plans.is_empty(), "{}", plugin.tag);
            for plan in &plans {
                assert_eq!(&plan.clone().checked(&space, &blueprint).unwrap(), plan, "{}", plugin.tag);
                assert!(blueprint.n_params_at(&plan.sizes()) < blueprint.n_params(), "{}", plugin.tag);
            }
            assert_eq!(allocator.allocate(&space, &rankings, &blueprint).unwrap(), plans, "{}", plugin.tag);
        }
    }
}

/// Logits [N, V] with rows of very different size.
fn logits(seed: u64) -> Tensor {
    let mut random = SplitMix::new(seed);
    let row = |n: i32| f64::from(n).exp2();
    let values: Vec<f32> = (0..6 * 11).map(|i| (row(i / 11) * (2.0 * random.unit() - 1.0)) as f32).collect();
    Tensor::from_slice(&values).view([6, 11])
}

#[test]
fn every_loss_is_finite_and_of_its_own_row_alone() {
    let (student_nv, teacher_nv) = (logits(4), logits(5));
    let labels_n = Tensor::from_slice(&[0i64, 10, 3, 3, 7, 1]);
    for (plugin, loss) in all::<dyn LogitLoss>().unwrap().into_iter().filter(|(plugin, _)| reads_no_file(plugin)) {
        let student_nv = student_nv.copy().set_requires_grad(true);
        let teacher = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
        let loss_n = loss.rows(&student_nv, teacher, &labels_n).unwrap();
        assert_eq!(loss_n.size(), [6], "{}", plugin.tag);
        assert!(bool::try_from(loss_n.isfinite().all()).unwrap(), "{}", plugin.tag);
        loss_n.sum(Element::Float).backward();
        assert!(bool::try_from(student_nv.grad().isfinite().all()).unwrap(), "{}", plugin.tag);
        for row in 0..6 {
            let one = |x: &Tensor| x.narrow(0, row, 1);
            let alone = loss.rows(&one(&student_nv), teacher.map(one).as_ref(), &one(&labels_n)).unwrap();
            let (alone, among) = (alone.double_value(&[0]), loss_n.double_value(&[row]));
            assert!((alone - among).abs() <= 1e-6 * among.abs().max(1.0), "{}: row {row}", plugin.tag);
        }
    }
}

/// A plugin with its defaults, and with what else its kind's parameters can be.
fn variants(plugin: &Descriptor) -> Vec<PluginSpec> {
    let bare = PluginSpec::bare(plugin.tag);
    let example = (plugin.example)();
    let others =
        [("temperature", json!(2.5)), ("k", json!(3)), ("distance", json!("mse")), ("layers", json!("uniform"))];
    let others = others.into_iter().filter(|(key, _)| example.get(*key).is_some());
    std::iter::once(bare.clone()).chain(others.map(|(key, value)| bare.clone().with(key, value))).collect()
}

/// Largest difference between a gradient and central differences in f64, relative to the largest of the gradient.
fn gradient_error(x: &Tensor, value: impl Fn(&Tensor) -> Tensor) -> f64 {
    let leaf = x.copy().set_requires_grad(true);
    value(&leaf).backward();
    let gradient = Vec::<f64>::try_from(leaf.grad().reshape([-1])).unwrap();
    let step = 1e-5;
    let moved = |idx: usize, by: f64| {
        let moved = x.copy();
        let _ = moved.view([-1]).get(idx as i64).f_add_scalar_(by).unwrap();
        value(&moved).double_value(&[])
    };
    let differences = (0..gradient.len()).map(|idx| (moved(idx, step) - moved(idx, -step)) / (2.0 * step));
    let largest = gradient.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
    differences.zip(&gradient).fold(0.0_f64, |most, (d, g)| most.max((d - g).abs())) / largest
}

/// Numbers from −size to size in f64.
fn uniform(shape: &[i64], size: f64, seed: u64) -> Tensor {
    let mut random = SplitMix::new(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_: i64| size * (2.0 * random.unit() - 1.0)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Every loss of a kind, with its parameters as [`variants`] has them.
fn all_variants<C: Contract + ?Sized>() -> Vec<(PluginSpec, Box<C>)> {
    let registry = registry();
    // What a file says is tested with one.
    let plugins = registry.of_kind(C::KIND).filter(|plugin| reads_no_file(plugin));
    let specs: Vec<PluginSpec> = plugins.flat_map(variants).collect();
    specs.into_iter().map(|spec| (spec.clone(), registry.build(&spec).unwrap())).collect()
}

/// States of a model with heads of four channels.
fn states<'a>(x_btc: &'a Tensor, seen_bt: Option<&'a Tensor>, causal: bool) -> States<'a> {
    States { x_btc, seen_bt, causal, head_dim: 4 }
}

#[test]
fn the_gradient_of_every_loss_is_that_of_finite_differences() {
    let labels_n = Tensor::from_slice(&[0i64, 6, 3]);
    let (student_nv, teacher_nv) = (uniform(&[3, 7], 3.0, 1), uniform(&[3, 7], 3.0, 2));
    for (spec, loss) in all_variants::<dyn LogitLoss>() {
        let teacher = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
        let error = gradient_error(&student_nv, |x| loss.rows(x, teacher, &labels_n).unwrap().sum(Element::Double));
        assert!(error <= 1e-7, "{spec}: {error:e}");
    }
    let seen_bt = Tensor::from_slice(&[1i64, 1, 1, 0, 1, 1, 1, 1]).view([2, 4]).to_kind(Element::Bool);
    let (student, teacher) = (uniform(&[2, 4, 8], 2.0, 3), uniform(&[2, 4, 8], 2.0, 4));
    for (spec, loss) in all_variants::<dyn StateLoss>() {
        for (causal, seen_bt) in [(true, None), (false, Some(&seen_bt)), (true, Some(&seen_bt))] {
            let other = states(&teacher, seen_bt, causal);
            let error = gradient_error(&student, |x| loss.loss(&states(x, seen_bt, causal), &other).unwrap());
            assert!(error <= 1e-7, "{spec}: {error:e}");
        }
    }
}

#[test]
fn every_loss_is_finite_for_large_logits_and_gives_the_teacher_no_gradient() {
    let labels_n = Tensor::from_slice(&[0i64, 10, 3, 3, 7, 1]);
    for (spec, loss) in all_variants::<dyn LogitLoss>() {
        for seed in 0..4 {
            let far = |seed| uniform(&[6, 11], 1.0, seed).sign().to_kind(Element::Float) * 1e4;
            let [student_nv, teacher_nv] = [seed, seed + 10].map(|seed| far(seed).set_requires_grad(true));
            let teacher = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
            let loss_n = loss.rows(&student_nv, teacher, &labels_n).unwrap();
            assert!(bool::try_from(loss_n.isfinite().all()).unwrap(), "{spec}");
            loss_n.sum(Element::Float).backward();
            assert!(bool::try_from(student_nv.grad().isfinite().all()).unwrap(), "{spec}");
            assert!(!teacher_nv.grad().defined(), "{spec}");
        }
    }
}

#[test]
fn a_loss_of_the_teacher_itself_is_zero_and_no_constant_of_a_row_changes_a_distribution() {
    let labels_n = Tensor::from_slice(&[0i64, 6, 3]);
    let (student_nv, teacher_nv) = (uniform(&[3, 7], 3.0, 5), uniform(&[3, 7], 3.0, 6));
    let shifted_nv = &teacher_nv + Tensor::from_slice(&[1e3, -20.0, 0.5]).view([3, 1]);
    for (spec, loss) in all_variants::<dyn LogitLoss>() {
        let rows = |student: &Tensor, teacher: &Tensor| loss.rows(student, Some(teacher), &labels_n).unwrap();
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
        assert!(plain.min().double_value(&[]) > 1e-3, "{spec} does not tell one from the other");
        let change = (rows(&student_nv, &shifted_nv) - &plain).abs().max().double_value(&[]);
        let is_of_distributions = matches!(loss.teacher(), TeacherNeed::Distribution { .. });
        assert_eq!(change <= 1e-10, is_of_distributions, "{spec}: {change:e}");
    }
}

#[test]
fn every_loss_on_states_names_sites_of_both_models() {
    let blueprint = |value: &Value| Blueprint::from_config(&config(value).unwrap(), &registry()).unwrap();
    for value in families() {
        let mut small = value.clone();
        let layers = if small.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" };
        small[layers] = 5.into();
        let (one, other) = (blueprint(&value), blueprint(&small));
        for (student, teacher) in [(&one, &other), (&other, &one)] {
            for (spec, loss) in all_variants::<dyn StateLoss>() {
                let pairs = loss.pairs(student, teacher).unwrap();
                assert!(!pairs.is_empty(), "{spec}");
                let shown = [
                    sites(student, pairs.iter().map(|pair: &SitePair| pair.student)),
                    sites(teacher, pairs.iter().map(|pair| pair.teacher)),
                ];
                assert_eq!(shown, [pairs.len(), pairs.len()], "{spec}: a site that the model does not show");
            }
        }
    }
}

/// How many of these sites a model of this shape shows in a forward pass.
fn sites(blueprint: &Blueprint, wanted: impl Iterator<Item = Site>) -> usize {
    struct Seen(HashSet<Site>, Vec<Site>);
    impl Tap for Seen {
        fn wants(&self, site: Site) -> bool {
            self.1.contains(&site)
        }
        fn see(&mut self, site: Site, _x: &Tensor) -> Result<()> {
            self.0.insert(site);
            Ok(())
        }
    }
    let model = Transformer::load(&random_weights(blueprint, 1).unwrap(), blueprint, LoadOptions::default()).unwrap();
    let mut seen = Seen(HashSet::new(), wanted.collect());
    let _ = model.hidden(&Tensor::from_slice(&[3i64, 5, 7]).view([1, 3]), &mut seen, None).unwrap();
    seen.1.iter().filter(|site| seen.0.contains(site)).count()
}

#[test]
fn losses_on_states_keep_their_law() {
    let seen_bt = Tensor::from_slice(&[1i64, 0, 1, 0, 0, 0, 1, 1, 1, 1]).view([2, 5]).to_kind(Element::Bool);
    let filling_bt1 = seen_bt.logical_not().unsqueeze(-1);
    let elsewhere = |x: &Tensor, value: f64| x.masked_fill(&filling_bt1, value);
    for (spec, loss) in all_variants::<dyn StateLoss>() {
        for kind in [Element::Float, Element::Half, Element::Double] {
            let (student, teacher) =
                (uniform(&[2, 5, 12], 2.0, 7).to_kind(kind), uniform(&[2, 5, 12], 2.0, 8).to_kind(kind));
            for causal in [false, true] {
                let run = |student: &Tensor, teacher: &Tensor, seen_bt: Option<&Tensor>| {
                    loss.loss(&states(student, seen_bt, causal), &states(teacher, seen_bt, causal)).unwrap()
                };
                let leaf = |x: &Tensor| x.copy().set_requires_grad(true);
                let (student_leaf, teacher_leaf) = (leaf(&student), leaf(&teacher));
                let found = run(&student_leaf, &teacher_leaf, Some(&seen_bt));
                assert!(found.dim() == 0 && found.double_value(&[]) > 1e-3, "{spec}: {found:?}");
                found.backward();
                assert!(!teacher_leaf.grad().defined(), "{spec}");
                let same = run(&student, &student, Some(&seen_bt)).double_value(&[]);
                assert!(same.abs() <= 1e-6, "{spec}: {same:e}");
                for value in [0.0, -1e4, f64::NAN] {
                    let other_leaf = leaf(&elsewhere(&student, value));
                    let other = run(&other_leaf, &elsewhere(&teacher, value), Some(&seen_bt));
                    assert!(other.equal(&found), "{spec}: {other:?} {found:?} with {value} as filling");
                    other.backward();
                    assert!(other_leaf.grad().equal(&student_leaf.grad()), "{spec} with {value} as filling");
                }
                let of_filling = student_leaf.grad().masked_select(&filling_bt1.expand_as(&student));
                assert_eq!(of_filling.abs().max().double_value(&[]), 0.0, "{spec}");
                let nothing_seen = run(&student, &teacher, Some(&seen_bt.zeros_like())).double_value(&[]);
                assert!(nothing_seen == 0.0, "{spec}: {nothing_seen} of no tokens");
                assert!(run(&student, &teacher, None).double_value(&[]).is_finite(), "{spec}");
            }
        }
    }
}

#[test]
fn states_and_layers_that_do_not_fit_are_refused() {
    let blueprint = Blueprint::from_config(&config(&tiny_llama()).unwrap(), &registry()).unwrap();
    let refusal = |spec: &str| {
        let loss = registry().build::<dyn StateLoss>(&spec.parse().unwrap())?;
        loss.pairs(&blueprint, &blueprint)
    };
    for (spec, says) in [
        ("hidden_state:layers=3:0", "the teacher has no layer 3, its 3 layers"),
        ("mlp_input:layers=1:1+0:5", "the student has no layer 5, its 3 layers"),
        ("attention_relation:layers=-1:0", "teacher:student"),
        ("hidden_state:layers=2", "an array of strings"),
        ("hidden_state:distance=l1", "cosine"),
        ("attention_relation:relation_heads=5", "got 5"),
        ("attention_relation:relations=query+keys", "query key value"),
        ("attention_relation:relations=", "query key value"),
    ] {
        let error = refusal(spec).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(says), "{spec}: {error}");
    }
    assert_eq!(refusal("hidden_state:layers=2:0+1:1").unwrap().len(), 2);
    // Two of the three relations, at two pairs of layers.
    assert_eq!(refusal("attention_relation:layers=2:0 1:1,relations=value+query").unwrap().len(), 4);

    for spec in ["temperature=0", "temperature=-1", "temperature=true"] {
        for tag in ["forward_kl", "reverse_kl", "jensen_shannon", "top_k_kl"] {
            assert!(
                registry().build::<dyn LogitLoss>(&format!("{tag}:{spec}").parse().unwrap()).is_err(),
                "{tag}:{spec}"
            );
        }
    }
    for spec in ["jensen_shannon:beta=0", "jensen_shannon:beta=1", "top_k_kl:k=0"] {
        let error = registry().build::<dyn LogitLoss>(&spec.parse().unwrap()).unwrap_err();
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
            "prompt": prompt, "completion": completion, "context": prompt, "choices": ["a red ball.", "sad", "home"],
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

fn assert_same(tag: &str, one: &Measurements, other: &Measurements) {
    assert!(!one.is_empty(), "{tag}");
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{tag}");
    for (name, value) in one {
        let is_rate = name.contains("per_second") || name.ends_with("_s");
        let difference = (value - other[name]).abs();
        assert!(
            value.is_finite() && (is_rate || difference <= 1e-5 * value.abs()),
            "{tag}: {name} {value} {}",
            other[name]
        );
    }
}

#[test]
fn every_evaluator_gives_finite_values_whatever_the_batch_size() {
    let demo = root().join("examples/demo");
    let dir = tempfile::tempdir().unwrap();
    let mut value = tiny_llama();
    value["vocab_size"] = 512.into();
    let ((blueprint, model), (_, teacher)) = (model(&value, 6).unwrap(), self::model(&value, 7).unwrap());
    let tokenizer = Tokenizer::load(&demo, &blueprint.config, 512, true).unwrap();
    let windows = some_windows(7, 12, 512, 8).unwrap();
    let path = task_file(dir.path());
    for plugin in registry().of_kind(Kind::Evaluator) {
        let mut spec = PluginSpec::bare(plugin.tag);
        if (plugin.example)().get("path").is_some() {
            spec = spec.with("path", path.to_string_lossy().as_ref());
        }
        let evaluator = registry().build::<dyn Evaluator>(&spec).unwrap();
        let measure = |batch_size| {
            let subject = Subject {
                model: &model,
                teacher: Some(&teacher),
                kept_hidden: None,
                windows: Some(&windows),
                tokenizer: Some(&tokenizer),
                batch_size,
                seed: 1,
                progress: &Silent,
            };
            evaluator.evaluate(&subject).unwrap()
        };
        assert_same(plugin.tag, &measure(8), &measure(8));
        assert_same(plugin.tag, &measure(3), &measure(1));
        assert_same(plugin.tag, &measure(3), &measure(8));
    }
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
        assert!(matches!(error, minitron_core::error::Error::Data(_)), "{}: {error}", plugin.tag);
    }
}

/// One column `text` of the rows "one" and "two": a page, its metadata, their length.
const PARQUET: &[u8] = b"PAR1\x15\x00\x15\x1c\x15\x1c,\x15\x04\x15\x00\x15\x06\x15\x06\x00\x00\x03\x00\x00\x00one\x03\
    \x00\x00\x00two\x15\x02\x19,H\x01m\x15\x02\x00\x15\x0c%\x00\x18\x04text%\x00\x00\x16\x04\x19\x1c\x19\x1c&\x08\x1c\
    \x15\x0c\x19\x15\x00\x19\x18\x04text\x15\x00\x16\x04\x16>\x16>&\x08\x00\x00\x16>\x16\x04\x00\x00>\x00\x00\x00PAR1";

/// Version 1, of u16; two sequences of one id, at bytes 0 and 2, a document each.
const MEGATRON: &[u8] = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x08\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0\
    \0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";

/// Bytes that a corpus of this ending reads.
fn sample(extension: &str) -> Option<&'static [u8]> {
    Some(match extension {
        "txt" => b"one two",
        "jsonl" => b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n",
        "parquet" => PARQUET,
        "bin" => &[1, 0, 2, 0],
        "idx" => MEGATRON,
        _ => return None,
    })
}

#[test]
fn every_corpus_gives_the_same_documents_twice_and_names_its_files() {
    let dir = tempfile::tempdir().unwrap();
    for plugin in registry().of_kind(Kind::Corpus) {
        let bare = registry().build::<dyn Corpus>(&PluginSpec::bare(plugin.tag)).ok();
        let mut spec = PluginSpec::bare(plugin.tag);
        let mut files = Vec::new();
        if (plugin.example)().get("path").is_some() {
            // A file corpus does not build without its file, so each kind of file is tried.
            assert!(bare.is_none(), "`{}` reads a file, and takes none", plugin.tag);
            let extensions = registry().build::<dyn Corpus>(&spec.clone().with("path", "x")).unwrap().extensions();
            let found = extensions.iter().find_map(|extension| Some((extension, sample(extension)?)));
            let (extension, bytes) = found.unwrap_or_else(|| panic!("no sample for `{}`: {extensions:?}", plugin.tag));
            let path = dir.path().join(format!("{}.{extension}", plugin.tag));
            std::fs::write(&path, bytes).unwrap();
            spec = spec.with("path", path.to_string_lossy().as_ref());
            let by_ending = registry().corpus_for(&path, &[]).unwrap();
            assert_eq!(serde_json::to_value(&by_ending).unwrap()["type"], plugin.tag);
            files.push(path.clone());
            if plugin.tag == "megatron" {
                let ids = path.with_extension("bin");
                std::fs::write(&ids, sample("bin").unwrap()).unwrap();
                files.push(ids);
            }
        }
        let corpus = registry().build::<dyn Corpus>(&spec).unwrap();
        assert_eq!(corpus.files(), files, "{}", plugin.tag);
        let read =
            |corpus: &dyn Corpus| corpus.documents(3).unwrap().take(50).collect::<Result<Vec<Document>>>().unwrap();
        let documents = read(corpus.as_ref());
        assert!(!documents.is_empty(), "{}", plugin.tag);
        assert_eq!(read(corpus.as_ref()), documents, "{}", plugin.tag);
        let again = registry().build::<dyn Corpus>(&spec).unwrap();
        assert_eq!(read(again.as_ref()), documents, "{}", plugin.tag);
        for n_items in 0..=documents.len() {
            let from = corpus.documents_from(3, n_items as u64).unwrap();
            let rest = from.take(documents.len() - n_items).collect::<Result<Vec<Document>>>().unwrap();
            assert_eq!(rest, documents[n_items..], "{} from {n_items}", plugin.tag);
        }
    }
}

#[test]
fn every_family_is_written_and_read_back_whole() {
    for value in families() {
        let config = config(&value).unwrap();
        let blueprint = Blueprint::from_config(&config, &registry()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &config, &random_weights(&blueprint, 10).unwrap(), None, WriteOptions::default())
            .unwrap();
        let folder = ModelFolder::open(dir.path(), &registry()).unwrap();
        assert!(folder.unknown_tensors.is_empty());
        assert_eq!(folder.blueprint.tensors, blueprint.tensors, "{}", blueprint.architecture);
    }
}
