//! Closed-form repairs of a pruned model.

mod auto;
mod bias_compensation;
mod expert_merge;
mod head_merge;
mod layer_merge;
mod least_squares;
mod none;
mod norm_rescale;
mod rotation;
mod temperature_scaling;
mod torchscript;
