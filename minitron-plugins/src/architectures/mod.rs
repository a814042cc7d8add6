//! Families of transformers: each a table of tensors, and the config keys that give their sizes.

mod bert;
mod gpt2;
mod llama;
mod nemotron;

use minitron_core::blueprint::{Role, Shape, Table};

/// Four projections under the names that Llama gave them.
fn split_attention(table: &mut Table, shape: &Shape, layer_idx: usize, bias: bool) {
    let (queries, keys) = (shape.queries(layer_idx), shape.keys(layer_idx));
    table
        .linear("layers.{l}.self_attn.q_proj", Role::Query, queries.clone(), shape.stream(), bias)
        .linear("layers.{l}.self_attn.k_proj", Role::Key, keys.clone(), shape.stream(), bias)
        .linear("layers.{l}.self_attn.v_proj", Role::Value, keys, shape.stream(), bias)
        .linear("layers.{l}.self_attn.o_proj", Role::AttentionOutput, shape.stream(), queries, bias);
}
