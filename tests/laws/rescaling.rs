//! Widths that rescale silently: embeddings multiplied by the root of the width, norms that divide
//! by fewer values.

use minitron::{forward, some_ids, tiny_llama};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::reconstruct::{ReconstructInputs, StudentEditor};
use minitron_core::spec::{At, HIDDEN, ParamKind, Role, Side};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::reconstruction::{ATTENTION, Ward, logits};
use super::{Model, REORDERED, relative};

/// A tiny decoder with grouped queries and next to no epsilon, which would blur what is exact.
pub(super) fn decoder(family: &str, more: &Value) -> Value {
    let mut config = tiny_llama();
    config["model_type"] = family.into();
    config["architectures"] = json!([]);
    config["rms_norm_eps"] = 1e-12.into();
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn gemma3(tied: bool) -> Value {
    let layer_types = ["sliding_attention", "full_attention", "sliding_attention"];
    let more = json!({
        "layer_types": layer_types, "sliding_window": 4, "query_pre_attn_scalar": 8,
            "tie_word_embeddings": tied,
        "hidden_activation": "gelu_pytorch_tanh"
    });
    decoder("gemma3_text", &more)
}

/// Norms before parts, around them and after them; of heads, and of whole projections.
fn normed_by_mean_square() -> Vec<Value> {
    vec![
        decoder("llama", &json!({})),
        decoder("qwen3", &json!({ "tie_word_embeddings": true })),
        decoder(
            "gemma2",
            &json!({ "sliding_window": 4, "query_pre_attn_scalar": 8,
                "tie_word_embeddings": true }),
        ),
        gemma3(true),
        gemma3(false),
        decoder("olmo2", &json!({})),
        decoder(
            "granite",
            &json!({ "embedding_multiplier": 2.0, "residual_multiplier": 0.5 }),
        ),
    ]
}

/// The student as sliced, nothing compensated.
fn sliced(ward: &Ward) -> StudentEditor<'_> {
    StudentEditor::new(
        ReconstructInputs {
            compensates: false,
            spill: None,
            only: None,
            ..ward.inputs()
        },
        ward.plan.clone(),
    )
    .unwrap()
}

fn gain(source: &dyn TensorSource, editor: &StudentEditor, at: At, role: Role) -> Tensor {
    source
        .read(
            &editor
                .spec()
                .find(at, role, ParamKind::Weight)
                .unwrap()
                .name(),
        )
        .unwrap()
}

fn assert_same_bytes(one: &StudentEditor, other: &StudentEditor, what: &str) {
    let (one, other) = (one.student().unwrap(), other.student().unwrap());
    for name in one.names() {
        assert_eq!(
            one.read(&name).unwrap(),
            other.read(&name).unwrap(),
            "{what}: {name}"
        );
    }
}

fn teacher(ward: &Ward, ids_bt: &Tensor) -> Tensor {
    forward(&ward.model.load().unwrap(), ids_bt).unwrap()
}

/// Multiplies units of a dim on one side of some tensors, by stored order.
fn scale_units(model: &mut Model, roles: &[Role], dim: &str, factor_of: &dyn Fn(usize) -> f64) {
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let mut tensor = model.source.read(&param.name()).unwrap();
        let is_asked = |side: &Side| side.dims().contains(&dim);
        if let Some(side) = param
            .sides
            .iter()
            .position(is_asked)
            .filter(|_| roles.contains(&param.role))
        {
            let (n_units, length) = (model.spec.dims[dim].size, tensor.size()[side] as usize);
            let factors: Vec<f64> = (0..length)
                .map(|position| factor_of(position * n_units / length))
                .collect();
            let mut shape = vec![1; tensor.dim()];
            shape[side] = length as i64;
            tensor *= Tensor::from_slice(&factors)
                .to_kind(Kind::Float)
                .view(shape.as_slice());
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    model.source = source;
}

#[test]
fn a_stream_of_all_its_channels_is_compensated_for_nothing() {
    for config in normed_by_mean_square() {
        for sizes in [&[][..], &[("heads", 2), ("mlp", 24), ("depth", 2)]] {
            let ward = Ward::of(&config, sizes);
            assert!(!ward.editor().is_compensated(), "{}", ward.model.family());
            assert_same_bytes(&ward.editor(), &sliced(&ward), ward.model.family());
        }
        let whole = Ward::of(&config, &[]);
        assert_same_bytes(
            &whole.treated(&["norm_rescale"]).unwrap(),
            &whole.editor(),
            whole.model.family(),
        );
    }
}

#[test]
fn only_families_that_multiply_by_the_root_of_the_width_are_compensated() {
    for config in normed_by_mean_square() {
        let ward = Ward::of(&config, &[("hidden", 16)]);
        let is_gemma = ward.model.family().starts_with("gemma");
        assert_eq!(
            ward.editor().is_compensated(),
            is_gemma,
            "{}",
            ward.model.family()
        );
    }
}

#[test]
fn a_tied_table_is_scaled_and_its_logits_are_not() {
    let tied = Ward::of(&gemma3(true), &[("hidden", 16)]);
    let mut twin = Model::new(&gemma3(false), 30).unwrap();
    for param in &twin.spec.params {
        // The head of the one is the table of the other.
        let role = if param.role == Role::HEAD {
            Role::TOKEN_EMBEDDING
        } else {
            param.role
        };
        let name = tied
            .model
            .spec
            .find(param.at, role, param.kind)
            .unwrap()
            .name();
        twin.source
            .insert(param.name(), &tied.model.source.read(&name).unwrap())
            .unwrap();
    }
    let mut untied = Ward::new(twin, &[("hidden", 16)]);
    untied.plan = tied.plan.clone();
    let (tied, sliced_twin, untied) = (tied.editor(), sliced(&untied), untied.editor());
    let ids_bt = some_ids(2, 12, 61, 35).unwrap();
    let difference = relative(&logits(&tied, &ids_bt), &logits(&untied, &ids_bt));
    assert!(difference <= REORDERED, "{difference:e}");

    // 32 channels of which 16 stay: the table times the root of 2, and of the untied twin nothing
    // else.
    let (scaled, plain) = (untied.student().unwrap(), sliced_twin.student().unwrap());
    let table = untied
        .spec()
        .find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight)
        .unwrap()
        .name();
    for name in scaled.names() {
        let (scaled, plain) = (scaled.read(&name).unwrap(), plain.read(&name).unwrap());
        if name == table {
            assert!(relative(&scaled, &(plain * 2f64.sqrt())) < 1e-7, "{name}");
        } else {
            assert_eq!(scaled, plain, "{name}");
        }
    }
    // 1 + w is what the norm multiplies with.
    let tied_gain = gain(&tied.student().unwrap(), &tied, At::Model, Role::FINAL_NORM);
    let plain_gain = gain(&plain, &untied, At::Model, Role::FINAL_NORM);
    assert!(relative(&(tied_gain + 1.0), &((plain_gain + 1.0) / 2f64.sqrt())) < 1e-6);
}

/// Neither a table nor an output projection writes to the channels that go: a student without them,
/// its embeddings compensated and its gains corrected, is its teacher.
#[test]
fn channels_that_hold_nothing_go_unnoticed() {
    for config in normed_by_mean_square() {
        let mut ward = Ward::of(&config, &[("hidden", 24)]);
        let kept = ward.editor().kept(HIDDEN).to_vec();
        let writers = [Role::TOKEN_EMBEDDING, Role::ATTENTION_OUTPUT, Role::DOWN];
        scale_units(&mut ward.model, &writers, HIDDEN, &|channel| {
            f64::from(u8::from(kept.contains(&channel)))
        });
        let ids_bt = some_ids(2, 12, 61, 35).unwrap();
        let teacher = teacher(&ward, &ids_bt);
        let rescaled = relative(
            &logits(&ward.treated(&["norm_rescale"]).unwrap(), &ids_bt),
            &teacher,
        );
        assert!(rescaled <= 1e-4, "{}: {rescaled:e}", ward.model.family());
        let before = relative(&logits(&ward.editor(), &ids_bt), &teacher);
        assert!(before > 1e-2, "{}: {before:e} already", ward.model.family());
    }
}

/// Every token holds ±1 in the channels that stay and ±3 in those that go.
#[test]
fn gains_follow_the_share_of_the_mean_square_that_stays() {
    for config in [decoder("llama", &json!({})), gemma3(false)] {
        let mut ward = Ward::of(&config, &[("hidden", 24)]);
        let kept = ward.editor().kept(HIDDEN).to_vec();
        scale_units(
            &mut ward.model,
            &[Role::ATTENTION_OUTPUT, Role::DOWN],
            HIDDEN,
            &|_| 0.0,
        );
        let table = ward
            .model
            .spec
            .find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight)
            .unwrap()
            .name();
        let signs = ward.model.source.read(&table).unwrap().sign();
        ward.model.source.insert(table, &signs).unwrap();
        let share = |channel: usize| if kept.contains(&channel) { 1.0 } else { 3.0 };
        scale_units(&mut ward.model, &[Role::TOKEN_EMBEDDING], HIDDEN, &share);

        let (before, after) = (ward.editor(), ward.treated(&["norm_rescale"]).unwrap());
        let (sliced, rescaled) = (before.student().unwrap(), after.student().unwrap());
        let stored_less = f64::from(u8::from(ward.model.family().starts_with("gemma")));
        let expected = (1.0 / ((24.0 + 8.0 * 9.0) / 32.0f64)).sqrt();
        for (at, role) in [(ATTENTION, Role::INPUT_NORM), (At::Model, Role::FINAL_NORM)] {
            let (sliced, rescaled) = (
                gain(&sliced, &before, at, role),
                gain(&rescaled, &after, at, role),
            );
            let difference = relative(
                &(rescaled + stored_less),
                &((sliced + stored_less) * expected),
            );
            assert!(
                difference < 1e-6,
                "{} {role}: {difference:e}",
                ward.model.family()
            );
        }
        // What nothing passes through has no share: its gain stays.
        if stored_less > 0.0 {
            let output = |editor: &StudentEditor| {
                gain(
                    &editor.student().unwrap(),
                    editor,
                    ATTENTION,
                    Role::OUTPUT_NORM,
                )
            };
            assert_eq!(output(&after), output(&before));
        }
    }
}

/// OLMo 2 norms all queries at once, and all keys. Heads are alike but for a factor of 2 on those
/// that go, which add nothing: without them, queries and keys of the others stay what they were.
#[test]
fn norms_over_whole_projections_forget_the_heads_that_go() {
    for (sizes, kind) in [([("heads", 2)], "heads"), ([("kv_heads", 1)], "kv_heads")] {
        let mut ward = Ward::of(&decoder("olmo2", &json!({})), &sizes);
        let plan = ward.plan.kept.clone();
        let name_of =
            |model: &Model, at, role| model.spec.find(at, role, ParamKind::Weight).unwrap().name();
        for layer in 0..3 {
            let at = At::Sublayer { layer, sublayer: 0 };
            for (role, dim, n) in [(Role::QUERY, "heads", 4), (Role::KEY, "kv_heads", 2)] {
                let name = name_of(&ward.model, at, role);
                let first = ward.model.source.read(&name).unwrap().narrow(0, 0, 8);
                ward.model
                    .source
                    .insert(name, &first.repeat([n, 1]))
                    .unwrap();
                let dim = format!("{dim}.{layer}");
                let kept = &plan[&dim];
                scale_units(&mut ward.model, &[role], &dim, &|head| {
                    if kept.contains(&head) { 1.0 } else { 2.0 }
                });
            }
            let dim = format!("heads.{layer}");
            let kept = &plan[&dim];
            let stays = |head: usize| f64::from(u8::from(kept.contains(&head)));
            scale_units(&mut ward.model, &[Role::ATTENTION_OUTPUT], &dim, &stays);
        }
        let ids_bt = some_ids(2, 12, 61, 35).unwrap();
        let teacher = teacher(&ward, &ids_bt);
        let (before, after) = (ward.editor(), ward.treated(&["norm_rescale"]).unwrap());
        let rescaled = relative(&logits(&after, &ids_bt), &teacher);
        assert!(rescaled <= 1e-4, "{kind}: {rescaled:e}");
        assert!(
            relative(&logits(&before, &ids_bt), &teacher) > 1e-3,
            "{kind}"
        );

        let (sliced, reconstructed) = (before.student().unwrap(), after.student().unwrap());
        let half_gone = (1.0f64 / ((1.0 + 4.0) / 2.0)).sqrt();
        let keys = if kind == "kv_heads" { half_gone } else { 1.0 };
        for (role, expected) in [(Role::QUERY_NORM, half_gone), (Role::KEY_NORM, keys)] {
            let (sliced, reconstructed) = (
                gain(&sliced, &before, ATTENTION, role),
                gain(&reconstructed, &after, ATTENTION, role),
            );
            let difference = relative(&reconstructed, &(sliced * expected));
            assert!(difference < 1e-5, "{kind} {role}: {difference:e}");
        }
    }
}

/// Behind a gain of 0 a norm's input is not seen; what is seen decides.
#[test]
fn a_gain_of_nothing_leaves_the_others_finite() {
    let mut ward = Ward::of(&decoder("olmo2", &json!({})), &[("heads", 2)]);
    let name = ward
        .model
        .spec
        .find(ATTENTION, Role::QUERY_NORM, ParamKind::Weight)
        .unwrap()
        .name();
    let gains = ward.model.source.read(&name).unwrap();
    let _ = gains.narrow(0, 3, 20).zero_();
    ward.model.source.insert(name, &gains).unwrap();
    let (before, after) = (ward.editor(), ward.treated(&["norm_rescale"]).unwrap());
    let queries = |editor: &StudentEditor| {
        gain(
            &editor.student().unwrap(),
            editor,
            ATTENTION,
            Role::QUERY_NORM,
        )
    };
    let (before, after) = (queries(&before), queries(&after));
    assert_eq!(after.eq(0.0), before.eq(0.0));
    assert!(bool::try_from(after.isfinite().all()).unwrap());
}
