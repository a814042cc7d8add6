//! What every plugin has to keep, asked of those that a library brings.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use minitron_core::blueprint::Blueprint;
use minitron_core::calibrate::{Calibration, Metric, Pass};
use minitron_core::checkpoint::Config;
use minitron_core::contract::{Axis, LogitLoss, StateLoss, States, TeacherNeed};
use minitron_core::data::{Task, Tokenizer, Windows};
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Transformer, fresh_weights};
use minitron_core::plan::Space;
use minitron_core::progress::Silent;
use minitron_core::registry::{Descriptor, Kind, PluginSpec, Registry};
use serde_json::{Value, json};
use tch::{Kind as Element, Tensor};

/// Vocabulary of the model that plugins are tried on.
const VOCAB: usize = 61;

/// For every plugin that a library brought, what was checked.
///
/// # Errors
/// `Plugin` naming the plugin, the rule and how it was broken.
pub fn check_opened(registry: &Registry) -> Result<BTreeMap<String, String>> {
    let mut checked = BTreeMap::new();
    for &plugin in registry.descriptors().iter().filter(|plugin| registry.is_opened(plugin)) {
        let blame = |error: Error| match error {
            Error::Plugin { .. } => error,
            other => broken(plugin, other.to_string()),
        };
        form(plugin).map_err(blame)?;
        let law = law(registry, plugin).map_err(blame)?;
        checked.insert(format!("{}/{}", plugin.kind, plugin.tag), format!("form, {law}"));
    }
    Ok(checked)
}

fn broken(plugin: &Descriptor, message: impl Into<String>) -> Error {
    Error::Plugin { tag: plugin.tag.to_owned(), origin: plugin.origin.to_owned(), message: message.into() }
}

fn ensure(plugin: &Descriptor, holds: bool, message: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(broken(plugin, message)) }
}

/// Tag, words, example, parameters.
fn form(plugin: &Descriptor) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_snake = plugin.tag.chars().all(plain) && plugin.tag.starts_with(|c: char| c.is_ascii_lowercase());
    ensure(plugin, is_snake, "tag: expected snake_case")?;
    ensure(plugin, !plugin.summary.is_empty() && !plugin.source.is_empty(), "summary, source: expected a line each")?;
    let example = (plugin.example)();
    ensure(plugin, example.is_object(), "its parameters: expected a struct with named fields")?;
    let mut tagged = example.clone();
    tagged["type"] = plugin.tag.into();
    let again = plugin.rewritten(tagged.clone()).map_err(|e| broken(plugin, format!("its own example: {e}")))?;
    ensure(plugin, again == tagged, format!("its example is {tagged}, and written again {again}"))?;
    let mut stray = tagged;
    stray["stray_key"] = 1.into();
    let refusal = plugin.rewritten(stray).err().map(|error| error.to_string()).unwrap_or_default();
    let is_refused = refusal.contains("stray_key");
    ensure(plugin, is_refused, "it takes a parameter that it does not have: add #[serde(deny_unknown_fields)]")?;
    let schema = (plugin.schema)().to_value();
    let described = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let (known, keys): (HashSet<&String>, HashSet<&String>) =
        (described.keys().collect(), example.as_object().into_iter().flat_map(|object| object.keys()).collect());
    ensure(plugin, known == keys, format!("parameters {keys:?}, described {known:?}"))?;
    // What the engine takes for itself before a plugin sees it.
    let taken = keys.iter().find(|key| ["type", "as", "weight", "alpha"].contains(&key.as_str()));
    let name = taken.map(|key| key.as_str()).unwrap_or_default();
    ensure(plugin, taken.is_none(), format!("`{name}` is not for plugins: call the parameter something else"))?;
    ensure(plugin, schema.get("description").is_some(), "no description: add a doc comment to the struct")?;
    let silent = described.iter().find(|(_, of)| of.get("description").is_none());
    let name = silent.map(|(key, _)| key.as_str()).unwrap_or_default();
    ensure(plugin, silent.is_none(), format!("`{name}` has no description: add a doc comment"))
}

/// The law of its contract on a tiny model, where that needs nothing from outside; what was checked.
fn law(registry: &Registry, plugin: &Descriptor) -> Result<&'static str> {
    let spec = PluginSpec::bare(plugin.tag);
    if (plugin.example)().get("path").is_some() {
        return Ok("its law where it has a file");
    }
    let blueprint = tiny(registry)?;
    match plugin.kind {
        Kind::Axis => axis(plugin, registry.build::<dyn Axis>(&spec)?, &blueprint),
        Kind::Importance => importance(plugin, registry, &blueprint),
        Kind::Loss => logit_loss(plugin, registry.build::<dyn LogitLoss>(&spec)?.as_ref()),
        Kind::StateLoss => state_loss(plugin, registry.build::<dyn StateLoss>(&spec)?.as_ref(), &blueprint),
        _ => Ok("its law where it is used"),
    }
}

fn tiny(registry: &Registry) -> Result<Blueprint> {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "initializer_range": 0.3,
    });
    Blueprint::from_config(&Config::from_value(Path::new("a tiny llama"), config)?, registry)
}

fn axis(plugin: &Descriptor, axis: Box<dyn Axis>, blueprint: &Blueprint) -> Result<&'static str> {
    let groups = axis.groups(blueprint)?;
    let mut seen = HashSet::new();
    for group in &groups {
        let size = blueprint.dims.get(&group.dim).map(|dim| dim.size);
        let is_dim = size == Some(group.n_units) && seen.insert(&group.dim);
        ensure(plugin, is_dim, format!("group `{}` of {} units; the model has {size:?}", group.dim, group.n_units))?;
    }
    Space::new(blueprint, &[axis])?;
    Ok("every group a dim of the model, once")
}

fn importance(plugin: &Descriptor, registry: &Registry, blueprint: &Blueprint) -> Result<&'static str> {
    let axes = registry.of_kind(Kind::Axis).filter(|axis| !registry.is_opened(axis));
    let axes = axes.map(|axis| registry.build::<dyn Axis>(&PluginSpec::bare(axis.tag)));
    let groups = axes.map(|axis| axis?.groups(blueprint)).collect::<Result<Vec<_>>>()?.concat();
    let ids: Vec<u32> = (0..80).map(|idx| (idx * 7 % VOCAB) as u32).collect();
    // Tokens, so no folder with a tokenizer.
    let tokenizer = Tokenizer::load(Path::new("/dev/null"), &blueprint.config, VOCAB, true)?;
    let windows = Windows::cut(ids, 10, None, &tokenizer, "made-up tokens")?;
    let source = fresh_weights(blueprint, 1)?;
    let model = Transformer::load(&source, blueprint, LoadOptions::default())?;
    let run = |batch_size| {
        let importance = registry.build(&PluginSpec::bare(plugin.tag))?;
        let mut pass = Pass::new(vec![Metric { label: plugin.tag.to_owned(), importance }], &groups, 0)?;
        if pass.gradient_loss()?.is_some() || pass.wants_measurements() {
            return Ok(None);
        }
        let task = Some(Task::of(blueprint.options.causal, None, 0)?);
        pass.run(&model, &Calibration { windows: &windows, task, batch_size, progress: &Silent })?;
        pass.weigh(&source, None, blueprint, &Silent)?;
        pass.finish().map(Some)
    };
    let (Some(one), Some(again), Some(three)) = (run(1)?, run(1)?, run(3)?) else {
        return Ok("its law where it is used");
    };
    ensure(plugin, one.by_name == again.by_name, "asked twice, it gives two answers")?;
    for (name, scores) in &one.by_name {
        let others = three.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5 * a.abs().max(b.abs());
        let is_same = scores.len() == others.len() && !scores.iter().zip(others).any(differs);
        ensure(plugin, is_same, format!("`{name}` depends on how windows are batched"))?;
    }
    ensure(plugin, !one.by_name.is_empty(), "it scores no group of a Llama")?;
    Ok("one finite score per unit, the same twice and whatever the batch size")
}

fn logit_loss(plugin: &Descriptor, loss: &dyn LogitLoss) -> Result<&'static str> {
    let logits = |phase: f64| {
        let values: Vec<f32> = (0..33).map(|idx| (4.0 * (0.7 * f64::from(idx) + phase).sin()) as f32).collect();
        Tensor::f_from_slice(&values)?.f_view([3, 11])
    };
    let student_nv = logits(0.0)?.f_set_requires_grad(true)?;
    let (teacher_nv, labels_n) = (logits(1.0)?, Tensor::f_from_slice(&[0i64, 10, 4])?);
    let teacher = (loss.teacher() != TeacherNeed::Nothing).then_some(&teacher_nv);
    let loss_n = loss.rows(&student_nv, teacher, &labels_n)?;
    ensure(plugin, loss_n.size() == [3], format!("expected one loss for each of 3 rows, got {:?}", loss_n.size()))?;
    let again_n = loss.rows(&student_nv, teacher, &labels_n)?;
    ensure(plugin, again_n.f_equal(&loss_n)?, "asked twice, it gives two answers")?;
    loss_n.f_sum(Element::Float)?.f_backward()?;
    let gradient = student_nv.f_grad()?;
    ensure(plugin, gradient.defined(), "no gradient reaches the student's logits")?;
    let is_finite = [&loss_n, &gradient].into_iter().all(finite);
    ensure(plugin, is_finite, "it, or its gradient, is not finite for finite logits")?;
    for row in 0..3 {
        let one = |x: &Tensor| x.f_narrow(0, row, 1);
        let alone = loss.rows(&one(&student_nv)?, teacher.map(one).transpose()?.as_ref(), &one(&labels_n)?)?;
        let (alone, among) = (alone.f_double_value(&[0])?, loss_n.f_double_value(&[row])?);
        let is_own = (alone - among).abs() <= 1e-6 * among.abs().max(1.0);
        ensure(plugin, is_own, format!("row {row} depends on others: {alone} alone, {among} among them"))?;
    }
    Ok("one finite loss per row, of that row alone, with a gradient")
}

fn state_loss(plugin: &Descriptor, loss: &dyn StateLoss, blueprint: &Blueprint) -> Result<&'static str> {
    ensure(plugin, !loss.pairs(blueprint, blueprint)?.is_empty(), "it compares nothing")?;
    let numbers = |phase: f64| {
        let values: Vec<f32> = (0..80).map(|idx| (0.7 * f64::from(idx) + phase).sin() as f32).collect();
        Tensor::f_from_slice(&values)?.f_view([2, 5, 8])
    };
    let (student, teacher) = (numbers(0.0)?.f_set_requires_grad(true)?, numbers(1.0)?);
    let states = |x_btc| States { x_btc, seen_bt: None, causal: true, head_dim: 4 };
    let value = loss.loss(&states(&student), &states(&teacher))?;
    ensure(plugin, value.numel() == 1, format!("expected one number, got {:?}", value.size()))?;
    value.f_backward()?;
    let gradient = student.f_grad()?;
    ensure(plugin, gradient.defined(), "no gradient reaches the student's states")?;
    let is_finite = [&value, &gradient].into_iter().all(finite);
    ensure(plugin, is_finite, "it, or its gradient, is not finite for finite states")?;
    Ok("a finite number with a gradient")
}

fn finite(x: &Tensor) -> bool {
    x.f_isfinite().and_then(|is| is.f_min()).and_then(|least| least.f_double_value(&[])).is_ok_and(|least| least > 0.0)
}
