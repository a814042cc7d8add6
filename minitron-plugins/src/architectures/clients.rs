//! What programs that load written folders make of several families.
//!
//! Of llama.cpp v0.4.0: `src/models/{qwen2,olmo2,phi3,gemma2,gemma3,smollm3}.cpp`,
//! `conversion/{base,llama,granite}.py`; of its commit 82234e0: `src/models/starcoder2.cpp`.
//! Of vLLM: `model_executor/models/{qwen2,olmo2}.py`,
//! `model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py`; of its commit b4e69e0:
//! `model_executor/models/starcoder2.py`.

use minitron_core::spec::{
    ClientLimit, DEPTH, HEADS, HIDDEN, ModelSpec, ROPE_PAIRS, RotaryScaling, Sizes,
};
use serde_json::Value;

pub(super) const LLAMA_CPP: &str = "llama.cpp";
pub(super) const VLLM: &str = "vLLM";

/// Of a program that takes all heads together for as wide as the residual stream.
pub(super) fn wants_square(
    client: &str,
    what: &str,
    spec: &ModelSpec,
    sizes: &Sizes,
) -> Option<ClientLimit> {
    let width = spec.attention_width_beside_hidden(sizes)?;
    let hidden = spec.size_at(HIDDEN, sizes);
    let message = format!(
        "{what}: heads x head_dim is {width}, hidden {hidden}; keep them equal with --square"
    );
    Some(ClientLimit::new(client, message))
}

/// The same of llama.cpp, whose tables have such matrices for the family.
pub(super) fn llama_cpp_wants_square(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let what = "its converter takes the folder, but the file does not load";
    wants_square(LLAMA_CPP, what, spec, sizes)
}

/// The same of vLLM, where its class of the family reads no `head_dim`.
pub(super) fn vllm_wants_square(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let what = "its own class of this family takes hidden / heads for head_dim in versions up to \
                0.8 at least";
    wants_square(VLLM, what, spec, sizes)
}

/// Of vLLM, where its class of the family reads no scaling of the rope: neither the source's nor
/// the list of a student's narrower heads.
pub(super) fn vllm_turns_plainly(spec: &ModelSpec, sizes: &Sizes) -> Option<ClientLimit> {
    let is_scaled = spec
        .rotaries
        .iter()
        .any(|stated| stated.rotary.scaling != RotaryScaling::None);
    if !is_scaled && spec.size_at(ROPE_PAIRS, sizes) == spec.size(ROPE_PAIRS) {
        return None;
    }
    let message = "its own class of this family turns heads by rope_theta alone, whatever scaling \
                   or list the config states, in versions up to 0.8 at least: it computes other \
                   logits; keep rope_pairs whole, or use another program";
    Some(ClientLimit::new(VLLM, message))
}

/// Of narrower heads, whose frequencies the config lists: llama.cpp's converter writes such a list
/// for Phi-3 alone, and kernels take heads of some widths.
pub(super) fn of_narrower_heads(spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
    let mut scalings = spec.rotaries.iter().map(|stated| &stated.rotary.scaling);
    let is_listed = scalings.any(|scaling| matches!(scaling, RotaryScaling::Long { .. }));
    if !is_listed && spec.size_at(ROPE_PAIRS, sizes) == spec.size(ROPE_PAIRS) {
        return Vec::new();
    }
    let mut limits = vec![ClientLimit::new(
        LLAMA_CPP,
        "it loads the file and computes other logits: its converter leaves out the frequencies \
         that the config lists (longrope); keep rope_pairs whole, or use another program",
    )];
    let head_dim = spec.head_dim_at(sizes);
    if !head_dim.is_multiple_of(8) {
        let message = format!(
            "its attention on GPUs takes heads of a multiple of 8 channels, not of {head_dim}; \
             keep a multiple of 4 rope_pairs"
        );
        limits.push(ClientLimit::new(VLLM, message));
    }
    limits
}

/// Of llama.cpp, where it counts layers itself and reads no list of the config: what it computes is
/// something else. Which layers a plan keeps is known of the student alone.
pub(super) fn llama_cpp_counts_layers(
    spec: &ModelSpec,
    sizes: &Sizes,
    (key, what): (&str, &str),
    expected: impl Fn(usize) -> Value,
) -> Option<ClientLimit> {
    if spec.size_at(DEPTH, sizes) != spec.n_layers() {
        return None;
    }
    let other = spec
        .pattern(key)?
        .iter()
        .enumerate()
        .position(|(layer, value)| *value != expected(layer))?;
    let message = format!(
        "it loads the file and computes other logits: it takes {what}, layer {other} is another \
         kind; drop layers from the end alone, or use another program"
    );
    Some(ClientLimit::new(LLAMA_CPP, message))
}

/// Words of `layer_types` for windows in all layers but every `period`-th.
pub(super) fn full_every(period: usize) -> impl Fn(usize) -> Value {
    move |layer| {
        if (layer + 1).is_multiple_of(period) {
            "full_attention"
        } else {
            "sliding_attention"
        }
        .into()
    }
}

/// Of llama.cpp's Gemmas, which compute the factor of attention from other sizes. `largest` is the
/// depth of the model whose factor comes from hidden / heads.
pub(super) fn llama_cpp_scales_gemma(
    spec: &ModelSpec,
    sizes: &Sizes,
    largest: usize,
    scalar: f64,
) -> Option<ClientLimit> {
    let (taken, name) = if spec.size_at(DEPTH, sizes) == largest {
        let (hidden, heads) = (spec.size_at(HIDDEN, sizes), spec.size_at(HEADS, sizes));
        (hidden.checked_div(heads)?, "hidden / heads")
    } else {
        (spec.head_dim_at(sizes), "head_dim")
    };
    let message = format!(
        "it loads the file and computes other logits: it divides scores by the root of {name} \
         ({taken}), the model by the root of query_pre_attn_scalar ({scalar}); use another program"
    );
    (taken as f64 != scalar).then(|| ClientLimit::new(LLAMA_CPP, message))
}
