//! What can be removed. Data out; no tensors here.

mod depth;
mod expert_mlp;
mod experts;
mod heads;
mod hidden;
mod kv_heads;
mod mamba_head_dim;
mod mamba_heads;
mod mlp;
mod rope_pairs;
mod shared_mlp;
