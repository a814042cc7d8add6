//! Closed-form repairs of a pruned model.

mod bias_compensation;
mod head_merge;
mod least_squares;
mod norm_rescale;
mod rotation;
mod torchscript;
