//! Losses on logits, row by row, and on states inside the models.

pub(crate) mod cross_entropy;
mod distances;
pub(crate) mod divergences;

mod attention_relation;
mod embedding;
mod forward_kl;
mod hidden_state;
mod jensen_shannon;
mod layer_map;
mod logit_cosine;
mod logit_mse;
mod mlp_input;
mod neuron_clone;
mod pooled_state;
mod relations;
mod reverse_kl;
mod top_k_kl;
mod torchscript;
mod torchscript_states;

#[cfg(test)]
mod tests;
