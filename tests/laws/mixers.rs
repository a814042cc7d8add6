//! Options of mixers, against what they come to at their ends.

use minitron::{config, forward, random_weights, some_ids, tiny_llama};
use minitron_core::architectures::{Block, Decoder, MambaKeys, MambaShape};
use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::mixers::{MAMBA_STEP, Mamba2, SINKS};
use minitron_core::model::{Cache, Input, LoadOptions, NoTap, Transformer, fresh_weights};
use minitron_core::plan::Plan;
use minitron_core::prune::PrunedView;
use minitron_core::spec::{
    Activation, At, CheckpointInfo, ModelSpec, Norm, NormKind, ParamKind, Role, RotaryDefaults,
    ShapeKeys, dim_of_layer,
};
use serde_json::json;
use tch::Tensor;

use super::{REORDERED, relative};

/// Llama's blocks with changed attention.
fn decoder(change: impl Fn(&mut Decoder)) -> ModelSpec {
    let config = config(&tiny_llama()).unwrap();
    let norm = Norm {
        kind: NormKind::Rms,
        eps: 1e-5,
    };
    let mut decoder = Decoder::new("llama", &config, ShapeKeys::USUAL, norm, json!({})).unwrap();
    decoder.rotate(RotaryDefaults::default()).unwrap();
    change(&mut decoder);
    decoder
        .finish(&CheckpointInfo::config_alone(&config))
        .unwrap()
}

fn loaded(source: &dyn TensorSource, spec: &ModelSpec) -> Transformer {
    Transformer::load(source, spec, LoadOptions::default()).unwrap()
}

/// The same weights, some of them changed.
fn changed(source: &MemorySource, change: impl Fn(&str, Tensor) -> Tensor) -> MemorySource {
    let mut other = MemorySource::default();
    for name in source.names() {
        other
            .insert(name.clone(), &change(&name, source.read(&name).unwrap()))
            .unwrap();
    }
    other
}

#[test]
fn sinks_far_below_are_none_and_far_above_take_all() {
    let (plain, with_sinks) = (
        decoder(|_| {}),
        decoder(|of| of.attention(|_, attention| attention.sinks = true)),
    );
    let source = random_weights(&with_sinks, 3).unwrap();
    let ids_bt = some_ids(2, 9, 61, 4).unwrap();
    let at = |value: f64| {
        let sunk = changed(&source, |name, x| {
            if name.ends_with("sinks") {
                x.full_like(value)
            } else {
                x
            }
        });
        forward(&loaded(&sunk, &with_sinks), &ids_bt).unwrap()
    };
    let none = forward(&loaded(&source, &plain), &ids_bt).unwrap();
    assert!(relative(&at(-1e4), &none) <= REORDERED);
    let silent = changed(&source, |name, x| {
        if name.ends_with("o_proj.weight") {
            x.zeros_like()
        } else {
            x
        }
    });
    assert!(
        relative(
            &at(1e4),
            &forward(&loaded(&silent, &plain), &ids_bt).unwrap()
        ) <= REORDERED
    );
    assert!(
        relative(&at(0.0), &none) > 1e-3,
        "sinks of 0 are one more key whose value is nothing"
    );
}

#[test]
fn sinks_go_with_their_heads_and_hold_in_generation() {
    let spec = decoder(|of| of.attention(|_, attention| attention.sinks = true));
    let source = random_weights(&spec, 5).unwrap();
    // The second head of each pair goes.
    let kept = (0..3)
        .map(|layer| (dim_of_layer("heads", layer), vec![0, 2]))
        .collect();
    let view = PrunedView::new(&source, &spec, &Plan { kept }).unwrap();
    for layer in 0..3 {
        let at = At::Sublayer { layer, sublayer: 0 };
        let name = spec.find(at, SINKS, ParamKind::Weight).unwrap().name();
        let (whole, pruned) = (source.read(&name).unwrap(), view.read(&name).unwrap());
        assert_eq!(pruned, Tensor::stack(&[whole.get(0), whole.get(2)], 0));
        assert!(spec.find(at, Role::QUERY, ParamKind::Weight).is_some());
    }
    let model = loaded(&source, &spec);
    let ids_bt = some_ids(1, 9, 61, 6).unwrap();
    assert_stepwise(&model, &ids_bt);
}

#[test]
fn a_window_in_blocks_is_the_window_token_by_token() {
    // Shorter than the text by a lot, a little, and not at all; 1 sees itself alone.
    for window in [1, 2, 3, 5, 8, 12, 23, 24, 40] {
        for capped in [false, true] {
            let spec = decoder(|of| {
                of.window(Some(window));
                of.attention(|_, attention| attention.softcap = capped.then_some(3.0));
            });
            let model = loaded(&random_weights(&spec, 7).unwrap(), &spec);
            assert_stepwise(&model, &some_ids(2, 23, 61, 8).unwrap());
        }
    }
}

/// All tokens at once give what they give one by one, and in runs behind a state.
fn assert_stepwise(model: &Transformer, ids_bt: &Tensor) {
    let _no_grad = tch::no_grad_guard();
    let whole = forward(model, ids_bt).unwrap();
    let n_tokens = ids_bt.size()[1];
    for run in [1, 3, 7] {
        let (mut cache, mut parts) = (Cache::new(model), Vec::new());
        for start in (0..n_tokens).step_by(run) {
            let part = ids_bt.narrow(1, start, (run as i64).min(n_tokens - start));
            let hidden = model.hidden(&part, &mut NoTap, Some(&mut cache)).unwrap();
            parts.push(model.logits(&hidden).unwrap());
        }
        assert!(
            relative(&Tensor::cat(&parts, 1), &whole) <= REORDERED,
            "in runs of {run}"
        );
    }
}

/// Llama's blocks of which the first and the last are Mamba instead of attention, in chunks of so
/// many tokens.
fn hybrid(chunk: usize) -> ModelSpec {
    decoder(|of| {
        of.blocks = vec![vec![Block::Mamba, Block::Mlp]; 3];
        of.blocks[1] = Block::USUAL.to_vec();
        of.mamba = Some(MambaShape {
            mixer: Mamba2 {
                head_dim: 6,
                state_size: 5,
                taps: 4,
                chunk,
                steps: (0.01, f64::INFINITY),
                eps: 1e-5,
                activation: Activation::Silu,
            },
            n_heads: 6,
            n_groups: 2,
            keys: MambaKeys {
                heads: "mamba_heads",
                head_dim: "mamba_head_dim",
                groups: "mamba_groups",
            },
            bias: true,
            convolution_bias: true,
            name: "mamba",
        });
    })
}

#[test]
fn mamba_is_the_same_in_chunks_of_any_length_and_behind_states() {
    let source = random_weights(&hybrid(4), 9).unwrap();
    let ids_bt = some_ids(2, 23, 61, 10).unwrap();
    let whole = forward(&loaded(&source, &hybrid(64)), &ids_bt).unwrap();
    for chunk in [1, 4, 5, 23] {
        let model = loaded(&source, &hybrid(chunk));
        let found = forward(&model, &ids_bt).unwrap();
        assert!(relative(&found, &whole) <= REORDERED, "chunks of {chunk}");
        assert_stepwise(&model, &ids_bt);
    }
}

#[test]
fn mamba_sees_neither_later_tokens_nor_other_documents() {
    let spec = hybrid(4);
    let model = loaded(&random_weights(&spec, 11).unwrap(), &spec);
    let ids_bt = some_ids(1, 21, 61, 12).unwrap();
    let whole = forward(&model, &ids_bt).unwrap();
    let first = forward(&model, &ids_bt.narrow(1, 0, 9)).unwrap();
    assert!(relative(&first, &whole.narrow(1, 0, 9)) <= REORDERED);
    // A document from the ninth token on, and one of a single token.
    let starts = [(0, 9), (9, 1), (10, 11)];
    let positions: Vec<i64> = starts.iter().flat_map(|&(_, n)| 0..n).collect();
    let positions_bt = Tensor::from_slice(&positions).unsqueeze(0);
    let input = Input {
        ids_bt: &ids_bt,
        attention_mask_bt: None,
        positions_bt: Some(&positions_bt),
    };
    let together = forward(&model, input).unwrap();
    for (start, n) in starts {
        let alone = forward(&model, &ids_bt.narrow(1, start, n)).unwrap();
        let found = together.narrow(1, start, n);
        assert!(relative(&found, &alone) <= REORDERED, "from {start} on");
    }
    assert!(relative(&together.narrow(1, 10, 11), &whole.narrow(1, 10, 11)) > 1e-3);
}

#[test]
fn fresh_mamba_weights_take_the_steps_that_its_authors_start_with() {
    let spec = hybrid(4);
    let source = fresh_weights(&spec, 13).unwrap();
    let at = At::Sublayer {
        layer: 0,
        sublayer: 0,
    };
    let name = spec.find(at, MAMBA_STEP, ParamKind::Weight).unwrap().name();
    let steps = source.read(&name).unwrap().softplus();
    let (least, most) = (steps.min().double_value(&[]), steps.max().double_value(&[]));
    assert!(
        least >= 1e-3 * 0.999 && most <= 1e-1 * 1.001 && least < most,
        "{least} {most}"
    );
    let logits = forward(&loaded(&source, &spec), &some_ids(1, 9, 61, 14).unwrap()).unwrap();
    assert!(bool::try_from(logits.isfinite().all()).unwrap());
}
