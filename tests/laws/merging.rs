//! Dropped experts that are merged into kept ones.

use minitron::{registry, some_ids, tiny_gpt_oss, tiny_llama, tiny_nemotron_h, tiny_qwen2_moe};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::contract::Reconstruction;
use minitron_core::mixers::{CORRECTION, EXPERTS_DOWN};
use minitron_core::reconstruct::{LayerTrials, ReconstructInputs, StudentEditor};
use minitron_core::spec::{
    At, EXPERT_MLP, EXPERTS, ModelSpec, Param, ParamKind, Part, Side, dim_of_layer, split_unit,
};
use serde_json::Value;
use tch::Tensor;

use super::reconstruction::{Ward, distance, logits};
use super::{Model, REORDERED, relative};

/// Experts in two of four layers, one for all tokens beside them.
fn hybrid() -> Value {
    let mut config = tiny_nemotron_h();
    config["hybrid_override_pattern"] = "ME*E".into();
    config["n_routed_experts"] = 6.into();
    config["moe_intermediate_size"] = 12.into();
    config["moe_shared_expert_intermediate_size"] = 20.into();
    config
}

/// Experts one by one and in one tensor; gated and not; with and without biases and a shared one.
pub(super) fn with_experts() -> [Value; 3] {
    [tiny_qwen2_moe(), tiny_gpt_oss(), hybrid()]
}

pub(super) const SIZES: [&[(&str, usize)]; 3] = [
    &[("experts", 5)],
    &[("experts", 5), ("expert_mlp", 8)],
    &[("experts", 3), ("expert_mlp", 8), ("hidden", 16)],
];

/// Dropped experts of a layer.
fn dropped(ward: &Ward, layer: usize) -> Vec<usize> {
    // Absent where a layer has no experts.
    let kept = ward.plan.kept.get(&dim_of_layer(EXPERTS, layer));
    let Some(kept) = kept else { return Vec::new() };
    (0..6).filter(|unit| !kept.contains(unit)).collect()
}

fn kept(ward: &Ward, layer: usize) -> &[usize] {
    &ward.plan.kept[&dim_of_layer(EXPERTS, layer)]
}

/// What of a tensor an expert's are: all of its own, or a row.
fn of_expert(spec: &ModelSpec, param: &Param, tensor: &Tensor, unit: usize) -> Option<Tensor> {
    match param.at {
        At::Unit { unit: own, .. } => (own == unit).then(|| tensor.copy()),
        _ => is_stacked(spec, param).then(|| tensor.get(unit as i64)),
    }
}

fn is_stacked(spec: &ModelSpec, param: &Param) -> bool {
    let layer = param.layer().into_iter();
    let mut parts = layer.flat_map(|layer| spec.sublayers(layer));
    parts.any(|(at, part)| {
        let active = part.mixer.active();
        at == param.at && active.is_some_and(|active| active.stacked.contains(&param.role))
    })
}

/// An expert's tensor with its neurons in another order.
fn reordered(param: &Param, unit: usize, tensor: &Tensor, order: &[usize]) -> Tensor {
    let n_before = param.sides.len() - tensor.dim();
    let mut moved = tensor.shallow_clone();
    for (side, Side(parts)) in param.sides.iter().skip(n_before).enumerate() {
        let [part] = parts.as_slice() else { continue };
        let Part::Units { dim, block } = part.in_row(unit) else {
            continue;
        };
        if split_unit(&dim).0 == EXPERT_MLP {
            let places = order.iter().flat_map(|at| at * block..(at + 1) * block);
            let places: Vec<i64> = places.map(|place| place as i64).collect();
            moved = moved.index_select(side as i64, &Tensor::from_slice(&places));
        }
    }
    moved
}

/// The model with experts of all layers that are copies of others, their neurons in another order:
/// `source_of(layer, expert)`.
fn with_copies(model: Model, source_of: &dyn Fn(usize, usize) -> usize) -> Model {
    let (
        Model {
            spec,
            source: before,
        },
        mut source,
    ) = (model, MemorySource::default());
    for param in &spec.params {
        let tensor = before.read(&param.name()).unwrap().copy();
        for unit in 0..6 {
            let Some(place) = of_expert(&spec, param, &tensor, unit) else {
                continue;
            };
            let from = source_of(param.layer().unwrap(), unit);
            if from == unit {
                continue;
            }
            let name = match param.at {
                At::Unit { .. } => param.name_at(param.at.unit(from)),
                _ => param.name(),
            };
            let theirs = before.read(&name).unwrap();
            let theirs = match param.at {
                At::Unit { .. } => theirs,
                _ => theirs.get(from as i64),
            };
            let order: Vec<usize> = (0..12).map(|neuron| (neuron * 5 + unit) % 12).collect();
            let moved = reordered(param, unit, &theirs, &order);
            match param.at {
                At::Unit { .. } => tensor.shallow_clone().copy_(&moved),
                _ => place.shallow_clone().copy_(&moved),
            };
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    Model { spec, source }
}

fn assert_same(one: &StudentEditor, other: &StudentEditor, what: &str) {
    let (one, other) = (one.student().unwrap(), other.student().unwrap());
    for name in one.names() {
        let (one, other) = (one.read(&name).unwrap(), other.read(&name).unwrap());
        assert_eq!(one, other, "{what}: {name}");
    }
}

#[test]
fn a_copy_with_its_neurons_in_another_order_is_merged_into_what_it_copies() {
    for config in with_experts() {
        for sizes in [SIZES[0], SIZES[1]] {
            let plan = Ward::of(&config, sizes);
            let source_of = |layer: usize, unit: usize| match dropped(&plan, layer).contains(&unit)
            {
                true => kept(&plan, layer)[2],
                false => unit,
            };
            let model = with_copies(Model::new(&config, 30).unwrap(), &source_of);
            let ward = Ward::new(model, sizes);
            assert_eq!(ward.plan, plan.plan);
            let merged = ward.treated(&["expert_merge:router=kept"]).unwrap();
            let family = ward.model.family();
            assert!(!merged.is_untouched(), "{family}: nothing was merged");
            assert_same(&ward.editor(), &merged, family);
        }
    }
}

/// Their weights add up to one, so a student of experts that all compute the same does, too.
#[test]
fn merged_experts_that_are_all_alike_give_what_the_teacher_does() {
    for config in with_experts() {
        let mut config = config;
        // Weights of a token's experts add up to one.
        config["norm_topk_prob"] = true.into();
        let model = with_copies(Model::new(&config, 30).unwrap(), &|_, _| 0);
        let ward = Ward::new(model, &[("experts", 3)]);
        let merged = ward.treated(&["expert_merge"]).unwrap();
        let ids_bt = some_ids(2, 12, 61, 35).unwrap();
        let teacher = minitron::forward(&ward.model.load().unwrap(), &ids_bt).unwrap();
        let difference = relative(&logits(&merged, &ids_bt), &teacher);
        let family = ward.model.family();
        assert!(difference < REORDERED, "{family}: {difference:e}");
    }
}

/// A vector that all experts share stays it: no weight is lost or counted twice.
#[test]
fn averages_are_of_weights_that_add_up_to_one() {
    let mut model = Model::new(&tiny_gpt_oss(), 30).unwrap();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap().copy();
        if (param.role, param.kind) == (EXPERTS_DOWN, ParamKind::Bias) {
            let first = tensor.get(0).copy();
            (0..6).for_each(|unit| tensor.get(unit).copy_(&first));
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    let ward = Ward::new(model, &[("experts", 2)]);
    let merged = ward.treated(&["expert_merge"]).unwrap();
    let (before, after) = (ward.editor(), merged.student().unwrap());
    for param in &merged.spec().params {
        let name = param.name();
        let is_same = after.read(&name).unwrap() == before.student().unwrap().read(&name).unwrap();
        let is_alike = (param.role, param.kind) == (EXPERTS_DOWN, ParamKind::Bias);
        assert!(is_same || !is_alike, "{name}");
        assert!(
            !is_same || !is_stacked(merged.spec(), param) || is_alike,
            "{name}"
        );
    }
}

#[test]
fn an_expert_that_no_token_goes_through_is_merged_into_none() {
    let plan = Ward::of(&hybrid(), &[("experts", 4)]);
    let mut model = Model::new(&hybrid(), 30).unwrap();
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap().copy();
        if param.role == CORRECTION {
            for unit in dropped(&plan, param.layer().unwrap()) {
                let _ = tensor.get(unit as i64).fill_(-9.0);
            }
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
    let ward = Ward::new(model, &[("experts", 4)]);
    let merged = ward.treated(&["expert_merge"]).unwrap();
    assert_same(&ward.editor(), &merged, "idle");
}

#[test]
fn where_no_expert_goes_nothing_changes_and_no_text_is_asked_for() {
    for config in with_experts() {
        for sizes in [&[("expert_mlp", 8)][..], &[("hidden", 16)], &[("heads", 2)]] {
            let ward = Ward::of(&config, sizes);
            let inputs = ReconstructInputs {
                calibration: None,
                ..ward.inputs()
            };
            let mut editor = StudentEditor::new(inputs, ward.plan.clone()).unwrap();
            editor.treat(merge().as_ref()).unwrap();
            assert_same(&ward.editor(), &editor, ward.model.family());
        }
    }
}

fn merge() -> Box<dyn Reconstruction> {
    registry()
        .build::<dyn Reconstruction>(&"expert_merge".parse().unwrap())
        .unwrap()
}

#[test]
fn a_merge_is_refused_where_it_would_be_none_or_undo_another() {
    let llama = Ward::of(&tiny_llama(), &[("mlp", 24)]);
    let refused = llama.treated(&["expert_merge"]).err().unwrap().to_string();
    assert!(
        refused.contains("`llama` model has no experts; leave"),
        "{refused}"
    );
    let ward = Ward::of(&tiny_qwen2_moe(), &[("experts", 3)]);
    let late = ward.treated(&["least_squares", "expert_merge"]);
    let refused = late.err().unwrap().to_string();
    assert!(refused.contains("name expert_merge before it"), "{refused}");
    let bare = ReconstructInputs {
        calibration: None,
        ..ward.inputs()
    };
    let mut editor = StudentEditor::new(bare, ward.plan.clone()).unwrap();
    let refused = editor.treat(merge().as_ref()).unwrap_err().to_string();
    assert!(
        refused.contains("needs calibration text: give --data"),
        "{refused}"
    );
}

#[test]
fn what_is_merged_is_the_same_from_a_folder_and_before_other_reconstructions() {
    let folder = tempfile::tempdir().unwrap();
    for (number, config) in with_experts().iter().enumerate() {
        for (which, sizes) in SIZES.iter().enumerate() {
            let ward = Ward::of(config, sizes);
            let here = ward.treated(&["expert_merge"]).unwrap();
            let place = folder.path().join(format!("{number}-{which}"));
            let inputs = ReconstructInputs {
                spill: Some(&place),
                ..ward.inputs()
            };
            let mut there = StudentEditor::new(inputs, ward.plan.clone()).unwrap();
            there.treat(merge().as_ref()).unwrap();
            let family = ward.model.family();
            assert!(!here.is_untouched(), "{family}");
            assert_same(&here, &there, family);
            there.spec().check(&there.student().unwrap()).unwrap();
            let both = ward.treated(&["expert_merge", "least_squares"]).unwrap();
            let (merged, fitted) = (distance(&ward, &here), distance(&ward, &both));
            assert!(fitted < merged, "{family} {sizes:?}: {merged} to {fitted}");
            if sizes.iter().any(|(kind, _)| *kind == "hidden") && family != "gpt_oss" {
                let turned = ward.treated(&["rotation", "expert_merge"]).unwrap();
                assert!(distance(&ward, &turned).is_finite(), "{family}");
            }
        }
    }
}

/// Where one layer alone is smaller, as block scores have it, it is merged as in the whole.
#[test]
fn a_layer_by_itself_is_merged_as_in_the_whole() {
    // The one layer that has experts.
    let (ward, last) = (Ward::of(&tiny_qwen2_moe(), &[("experts", 4)]), 2);
    let mut trials = LayerTrials::start(ward.inputs()).unwrap();
    while trials.layer() < last {
        trials.advance().unwrap();
    }
    let mut alone = trials.editor(ward.plan.clone()).unwrap();
    alone.treat(merge().as_ref()).unwrap();
    let whole = ward.treated(&["expert_merge"]).unwrap();
    assert!(!whole.is_untouched());
    assert_same(&whole, &alone, "alone");
}
