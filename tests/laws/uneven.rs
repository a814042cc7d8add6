//! Layers of different widths: a family whose config lists them.

use minitron::{axes, config, forward, random_weights, registry, some_ids, tiny_llama};
use minitron_core::architectures::Decoder;
use minitron_core::checkpoint::{Config, TensorSource};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::plan::{Plan, Space};
use minitron_core::prune::{PrunedView, student_config};
use minitron_core::spec::{
    CheckpointInfo, ConfigKey, DEPTH, HIDDEN, KV_HEADS, MLP, ModelSpec, Norm, NormKind,
    RotaryDefaults, ShapeKeys, Sizes, split_dim,
};
use serde_json::{Value, json};

use super::pruning::random_rankings;
use super::{REORDERED, relative};

/// Llama with a list of MLP widths, `widths`, beside a width that decides nothing.
fn spec_of(config: &Config) -> Result<ModelSpec> {
    let norm = Norm {
        kind: NormKind::Rms,
        eps: 1e-5,
    };
    let mut decoder = Decoder::new("llama", config, ShapeKeys::USUAL, norm, json!({}))?;
    decoder.rotate(RotaryDefaults::default())?;
    let spec = decoder.finish(&CheckpointInfo::config_alone(config))?;
    let widths = config.list("widths")?.cloned().unwrap_or_default();
    let mut dims: Vec<_> = spec.dims.values().cloned().collect();
    for dim in &mut dims {
        if let (MLP, Some(layer)) = split_dim(&dim.name) {
            dim.size = widths[layer].as_u64().unwrap() as usize;
            dim.stated = vec![ConfigKey::per_layer("widths")];
        }
    }
    let mut own = ModelSpec::new(
        "llama",
        config,
        dims,
        spec.params,
        spec.layers,
        spec.options,
    )?;
    (own.constraints, own.pinned) = (spec.constraints, spec.pinned);
    Ok(own)
}

pub(super) fn uneven(widths: &Value) -> ModelSpec {
    let mut value = tiny_llama();
    value["widths"] = widths.clone();
    spec_of(&config(&value).unwrap()).unwrap()
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

fn logits(source: &dyn TensorSource, spec: &ModelSpec) -> tch::Tensor {
    let model = Transformer::load(source, spec, LoadOptions::default()).unwrap();
    forward(&model, &some_ids(2, 9, 61, 4).unwrap()).unwrap()
}

#[test]
fn a_list_of_widths_gives_each_layer_an_axis_and_one_number_ties_them() {
    let unequal = space(&uneven(&json!([24, 16, 8])));
    let kinds = |space: &Space| {
        space
            .axes
            .iter()
            .map(|axis| axis.kind.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        kinds(&unequal)
            .iter()
            .filter(|kind| kind.starts_with(MLP))
            .count(),
        3
    );
    // One size for a kind is that of every layer, where all can have it; a layer's own goes before
    // it.
    assert_eq!(unequal.complete(&sizes(&[(MLP, 8)])).unwrap()["mlp.0"], 8);
    let mixed = unequal
        .complete(&sizes(&[(MLP, 8), ("mlp.0", 12)]))
        .unwrap();
    assert_eq!((mixed["mlp.0"], mixed["mlp.1"], mixed["mlp.2"]), (12, 8, 8));
    insta::assert_snapshot!(
        unequal.complete(&sizes(&[(MLP, 16)])).unwrap_err(),
        @"plan: mlp.2: 16 is not legal, expected a multiple of 4 up to 8; nearest: --size mlp.0=16 \
          --size mlp.1=16 --size mlp.2=8"
    );
    // Equal ones are one axis until somebody asks for one of them.
    let equal = space(&uneven(&json!([24, 24, 24])));
    assert_eq!(kinds(&equal), kinds(&space(&uneven(&json!([16, 16, 16])))));
    assert_eq!(equal.complete(&sizes(&[("mlp.1", 8)])).unwrap()[MLP], 24);
    insta::assert_snapshot!(
        equal.complete(&sizes(&[("mlp.1", 9)])).unwrap_err(),
        @"plan: mlp.1: 9 is not legal, expected a multiple of 4 up to 24; nearest: --size mlp.1=8 \
          or --size mlp.1=12"
    );
    let llama =
        space(&ModelSpec::from_config(&config(&tiny_llama()).unwrap(), &registry()).unwrap());
    insta::assert_snapshot!(
        llama.complete(&sizes(&[("mlp.1", 8)])).unwrap_err(),
        @"plan: `mlp.1`: this family's config has one number for all layers; --layers-apart writes \
          a student in a form whose layers may differ; nearest: --mlp 8"
    );
}

#[test]
fn unequal_widths_are_planned_counted_cut_and_listed_for_the_layers_that_stay() {
    for widths in [json!([24, 16, 8]), json!([24, 24, 24])] {
        let spec = uneven(&widths);
        let source = random_weights(&spec, 3).unwrap();
        let rankings = random_rankings(&spec, 5).unwrap();
        for wanted in [
            sizes(&[]),
            sizes(&[("mlp.0", 12), ("mlp.1", 16), ("mlp.2", 4)]),
            sizes(&[
                (DEPTH, 2),
                (HIDDEN, 24),
                (KV_HEADS, 1),
                ("mlp.1", 12),
                ("mlp.2", 8),
            ]),
            sizes(&[(MLP, 8)]),
        ] {
            let space = space(&spec);
            let plan = space
                .plan(&wanted, &rankings, &spec)
                .unwrap()
                .checked(&space, &spec)
                .unwrap();
            let student = spec_of(&student_config(&spec, &plan)).unwrap();
            let layers = plan.kept.get(DEPTH).cloned().unwrap_or_default();
            let of_layers: Vec<usize> = layers
                .iter()
                .map(|layer| plan.kept[&format!("mlp.{layer}")].len())
                .collect();
            let listed = student.config.list("widths").unwrap().unwrap();
            assert_eq!(json!(listed), json!(of_layers), "{wanted:?}");
            let view = PrunedView::new(&source, &spec, &plan).unwrap();
            assert!(student.check(&view).unwrap().is_empty());
            let n_written: u64 = view
                .names()
                .iter()
                .filter_map(|name| view.info(name)?.n_elements())
                .sum();
            assert_eq!(
                (student.n_params(), spec.n_params_of(&plan.size_map(&spec))),
                (n_written, n_written)
            );
            assert!(logits(&view, &student).isfinite().all().int64_value(&[]) == 1);
        }
        // Nothing asked for: the model itself.
        let whole = space(&spec).plan(&Sizes::new(), &rankings, &spec).unwrap();
        assert!(
            logits(&PrunedView::new(&source, &spec, &whole).unwrap(), &spec)
                .equal(&logits(&source, &spec))
        );
    }
}

#[test]
fn units_that_go_in_one_layer_alone_are_units_that_say_nothing() {
    let spec = uneven(&json!([24, 16, 8]));
    let source = random_weights(&spec, 7).unwrap();
    let plan = Plan {
        kept: [("mlp.1".to_owned(), (4..16).collect())].into(),
    };
    let plan = plan.checked(&space(&spec), &spec).unwrap();
    let student = spec_of(&student_config(&spec, &plan)).unwrap();
    let mut silent = minitron_core::checkpoint::MemorySource::default();
    for name in source.names() {
        let tensor = source.read(&name).unwrap().copy();
        if name.contains("layers.1.") && name.contains("down_proj") {
            let _ = tensor.narrow(1, 0, 4).zero_();
        }
        silent.insert(name, &tensor).unwrap();
    }
    let pruned = logits(&PrunedView::new(&source, &spec, &plan).unwrap(), &student);
    assert!(relative(&pruned, &logits(&silent, &spec)) <= REORDERED);
}

#[test]
fn a_plan_of_unequal_layers_is_refused_where_the_config_has_one_number() {
    let spec = ModelSpec::from_config(&config(&tiny_llama()).unwrap(), &registry()).unwrap();
    let plan = Plan {
        kept: [("mlp.1".to_owned(), (0..8).collect())].into(),
    };
    insta::assert_snapshot!(
        plan.checked(&space(&spec), &spec).unwrap_err(),
        @"plan: `mlp.1` keeps 8 units, `mlp.0` 48; this family's config has one number for all \
          layers (`intermediate_size`); --layers-apart writes a student in a form whose layers may differ; nearest: --mlp 32 or --mlp 36"
    );
}
