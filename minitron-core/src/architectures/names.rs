//! What decoders call their tensors.

/// Names of a decoder's tensors, without `.weight` and `.bias`; `{l}` is the layer.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Before all names but the head's.
    pub prefix: &'static str,
    /// Token table.
    pub tokens: &'static str,
    /// Before all names of a layer.
    pub layer: &'static str,
    /// Queries, keys, values; their fused matrix; attention's output.
    pub query: &'static str,
    /// Keys.
    pub key: &'static str,
    /// Values.
    pub value: &'static str,
    /// All three in one matrix.
    pub query_key_value: &'static str,
    /// Attention's output projection.
    pub attention_output: &'static str,
    /// Norms of queries and keys.
    pub query_key_norms: [&'static str; 2],
    /// Logits that join the softmax, in full below the layer.
    pub sinks: &'static str,
    /// The activated projection.
    pub gate: &'static str,
    /// The other first projection.
    pub up: &'static str,
    /// Both in one matrix.
    pub gate_up: &'static str,
    /// The second projection.
    pub down: &'static str,
    /// Norms before attention and MLP.
    pub pre_norms: [&'static str; 2],
    /// Norms after them.
    pub post_norms: [&'static str; 2],
    /// The last norm.
    pub final_norm: &'static str,
    /// Output projection, in full.
    pub head: &'static str,
}

impl Names {
    /// Llama's, which most families took over.
    pub const USUAL: Names = Names {
        prefix: "model.",
        tokens: "embed_tokens",
        layer: "layers.{l}.",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        query_key_value: "self_attn.qkv_proj",
        attention_output: "self_attn.o_proj",
        query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        sinks: "self_attn.sinks",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        gate_up: "mlp.gate_up_proj",
        down: "mlp.down_proj",
        pre_norms: ["input_layernorm", "post_attention_layernorm"],
        post_norms: ["post_attention_layernorm", "post_feedforward_layernorm"],
        final_norm: "norm",
        head: "lm_head",
    };
}
