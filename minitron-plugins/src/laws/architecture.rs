//! The spec declares every weight with the sides that it is stored with, and is a function of its
//! argument alone.

use std::sync::Arc;

use minitron_core::checkpoint::{Config, TensorSource, WriteOptions, write_model};
use minitron_core::contract::Architecture;
use minitron_core::error::{IoContext, Result};
use minitron_core::model::{Cache, NoTap};
use minitron_core::plan::{Plan, Space};
use minitron_core::prune::Student;
use minitron_core::random::SplitMix;
use minitron_core::registry::{Kind, PluginSpec};
use minitron_core::spec::{DEPTH, KV_HEADS, ModelFolder, ModelSpec, ROPE_PAIRS, dim_of_layer};
use serde_json::Value;
use tch::Tensor;

use super::numbers::{is_finite, relative};
use super::samples::{
    config_of, described, half_of_all, halves, linked_axes, outputs, random_rankings,
};
use super::units::{reorder, reordered};
use super::{SampleModel, Trial, UNTRIED, of_inputs, random_weights, sample_config};

/// f32 sums taken in another order, relative to the largest value.
const REORDERED: f64 = 1e-5;
/// Tokens before the one that `ids_with` changes.
const UNCHANGED: i64 = 6;

/// Tries a family on a model of random weights with this config.
///
/// # Errors
/// `Plugin` with the rule and how it was broken.
pub fn check(trial: &Trial, config: &Value) -> Result<String> {
    let config = config_of(config)?;
    let family: Arc<dyn Architecture> = trial.build::<dyn Architecture>()?.into();
    let own = family.recognises(&config);
    alone(trial, family.as_ref(), &config)?;
    if !own {
        return Ok(format!("{UNTRIED} a model of it is given"));
    }
    let spec = match described(&family, &config) {
        Ok(spec) => spec,
        Err(error) => {
            let reason = of_inputs(&error).ok_or(error)?;
            return Ok(format!("{UNTRIED} a model of it is given: {reason}"));
        }
    };
    alike(trial, &spec, &described(&family, &config)?)?;
    let source = random_weights(&spec, 1)?;
    let sample = SampleModel { spec, source };
    read_back(trial, &sample)?;
    units(trial, &sample)?;
    tokens(trial, &sample)?;
    students(trial, &sample)?;
    let kept = "its own configs alone; written and read back whole; units trade places; a student \
                on every axis";
    Ok(kept.into())
}

/// No other family takes its configs, nor does it take theirs.
fn alone(trial: &Trial, family: &dyn Architecture, config: &Config) -> Result<()> {
    let families = trial.registry.of_kind(Kind::Architecture);
    for other in families.filter(|other| other.tag != trial.plugin.tag) {
        let theirs = config_of(&sample_config(other.tag))?;
        let message = format!(
            "it recognises a config of `{}`: ask for its own model_type alone",
            other.tag
        );
        trial.ensure(!family.recognises(&theirs), message)?;
        let spec = PluginSpec::bare(other.tag);
        let taken = trial
            .registry
            .build::<dyn Architecture>(&spec)?
            .recognises(config);
        let both = taken && family.recognises(config);
        let (tag, origin) = (other.tag, other.origin);
        let message = format!("`{tag}` of {origin} recognises its config, too");
        trial.ensure(!both, message)?;
    }
    Ok(())
}

fn alike(trial: &Trial, one: &ModelSpec, two: &ModelSpec) -> Result<()> {
    let is_named = one.architecture == trial.plugin.tag;
    let message = format!(
        "its spec is called `{}`: expected its tag",
        one.architecture
    );
    trial.ensure(is_named, message)?;
    let is_same = (&one.params, &one.dims, &one.options) == (&two.params, &two.dims, &two.options)
        && format!("{:?}", one.layers) == format!("{:?}", two.layers);
    trial.ensure(is_same, "asked twice, it gives two specs")
}

fn read_back(trial: &Trial, sample: &SampleModel) -> Result<()> {
    let SampleModel { spec, source } = sample;
    let dir = tempfile::tempdir().at_path("a temporary folder")?;
    let options = WriteOptions::default();
    write_model(dir.path(), &spec.config, source, None, options)?;
    let folder = ModelFolder::open(dir.path(), trial.registry)?;
    let unknown = &folder.unknown_tensors;
    trial.ensure(
        unknown.is_empty(),
        format!("read back, it does not know {}", unknown.join(", ")),
    )?;
    let is_same = folder.spec.params == spec.params;
    trial.ensure(
        is_same,
        "beside the weights, it describes other tensors than from the config alone",
    )?;
    for name in source.names() {
        let is_same = folder
            .checkpoint
            .tensors
            .read(&name)?
            .f_equal(&source.read(&name)?)?;
        trial.ensure(
            is_same,
            format!("`{name}` is another after it was written and read"),
        )?;
    }
    Ok(())
}

fn units(trial: &Trial, sample: &SampleModel) -> Result<()> {
    let SampleModel { spec, source } = sample;
    let whole = outputs(source, spec)?;
    trial.ensure(
        is_finite(&whole)?,
        "the outputs of random weights are not finite",
    )?;
    let mut random = SplitMix::new(1);
    for dim in spec.dims.values() {
        // Layers and rope pairs have places of their own.
        if [DEPTH, ROPE_PAIRS].contains(&dim.name.as_str()) {
            continue;
        }
        let moved = reordered(source, spec, &reorder(spec, dim, &mut random)?)?;
        let change = relative(&outputs(&moved, spec)?, &whole)?;
        let message = format!(
            "`{}` in another order changes the outputs by {change:.1e}, relatively",
            dim.name
        );
        trial.ensure(
            change <= REORDERED,
            format!("{message}: some tensor's sides do not say where its units are"),
        )?;
    }
    Ok(())
}

/// In a causal model a token sees those before it alone, and states of those give what all tokens
/// at once give.
fn tokens(trial: &Trial, sample: &SampleModel) -> Result<()> {
    if !sample.spec.options.causal {
        return Ok(());
    }
    let model = sample.load()?;
    let ids_bt = ids_with(9)?;
    let whole_bte = model.hidden(&ids_bt, &mut NoTap, None)?;
    let other_bte = model.hidden(&ids_with(1)?, &mut NoTap, None)?;
    let change = relative(
        &other_bte.f_narrow(1, 0, UNCHANGED)?,
        &whole_bte.f_narrow(1, 0, UNCHANGED)?,
    )?;
    trial.ensure(
        change <= REORDERED,
        format!("a token changes what stands before it by {change:.1e}, relatively"),
    )?;
    let mut cache = Cache::new(&model);
    let mut parts = Vec::new();
    for (start, n) in [(0, 3), (3, 1), (4, 4)] {
        let ids_bt = ids_bt.f_narrow(1, start, n)?;
        parts.push(model.hidden(&ids_bt, &mut NoTap, Some(&mut cache))?);
    }
    let change = relative(&Tensor::f_cat(&parts, 1)?, &whole_bte)?;
    let message =
        format!("behind states of earlier tokens, the outputs are {change:.1e} away, relatively");
    trial.ensure(change <= REORDERED, message)
}

/// One sequence of eight tokens [1, T], the last but one of which is given.
fn ids_with(other: i64) -> Result<Tensor> {
    let ids = [7i64, 3, 11, 5, 2, 13, other, 4];
    Ok(Tensor::f_from_slice(&ids)?.f_view([1, 8])?)
}

/// Whether some layer that stays has units of a kind, where layers have them.
fn is_in(spec: &ModelSpec, plan: &Plan, kind: &str) -> bool {
    match plan.kept.get(DEPTH) {
        Some(layers) if !spec.dims.contains_key(kind) => {
            let mut dims = layers.iter().map(|&layer| dim_of_layer(kind, layer));
            dims.any(|dim| spec.dims.contains_key(&dim))
        }
        _ => true,
    }
}

/// Student::new compares the view with what the family says of the student's config.
fn students(trial: &Trial, sample: &SampleModel) -> Result<()> {
    let SampleModel { spec, source } = sample;
    let space = Space::new(spec, &linked_axes(trial.registry)?)?;
    let rankings = random_rankings(&sample.groups(trial.registry)?, 5)?;
    let mut wanted = halves(&space);
    wanted.push(half_of_all(&space));
    for sizes in wanted {
        let plan: Plan = space.plan(&sizes, &rankings, spec)?;
        let student = Student::new(source, spec, &plan)
            .map_err(|error| trial.broken(format!("a student with {sizes:?}: {error}")))?;
        for (kind, size) in &sizes {
            let found = student.spec.size(kind);
            // Key/value heads that keep a query head each are no dim of their own, and the layers
            // that have a kind of unit may all be gone.
            let may_lack = kind == KV_HEADS || !is_in(spec, &plan, kind);
            let is_read = found == *size || found == 0 && may_lack;
            trial.ensure(
                is_read,
                format!("a student with {size} {kind}: its config says {found}"),
            )?;
        }
        let is_sound = is_finite(&outputs(&student.view, &student.spec)?)?;
        trial.ensure(
            is_sound,
            format!("a student with {sizes:?}: its outputs are not finite"),
        )?;
    }
    Ok(())
}
