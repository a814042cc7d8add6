//! What a training run is told.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adamw::AdamWSettings;
use super::schedule::{Schedule, ScheduleShape};
use minitron_core::error::{Error, Result};

const MAX_WINDOWS_PER_STEP: usize = 1 << 20;

/// Everything that decides the result besides models, data and losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// Tokens to train on; rounded up to whole steps.
    pub n_tokens: u64,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Forward passes per step.
    pub accumulate: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// How the learning rate goes on after warm-up.
    pub schedule: ScheduleShape,
    /// Share of all steps that a `wsd` schedule decays over, at the end.
    pub decay_share: f64,
    /// Last learning rate; a tenth of the highest where not given.
    pub min_lr: Option<f64>,
    /// Warm-up steps; a twentieth of all where not given.
    pub warmup: Option<u64>,
    /// Largest norm of the gradient; larger ones are scaled down.
    pub clip: f64,
    /// Constants of the optimiser.
    pub adamw: AdamWSettings,
    /// Seed of the order of windows.
    pub seed: u64,
}

/// What ranks keep a part of each, rather than all of it on every rank. It decides nothing about
/// the result, and nothing at all in one process.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Every rank has all.
    #[default]
    None,
    /// Moments and master weights (ZeRO stage 1).
    Optimizer,
    /// Of every layer, those, its weights and its gradients, and the weights of a teacher that is
    /// held in memory (ZeRO stage 3); moments and masters of all else. Layers run a second time in
    /// the backward pass.
    Layers,
}

impl Default for TrainSettings {
    fn default() -> Self {
        TrainSettings {
            n_tokens: 1_000_000,
            batch_size: 8,
            accumulate: 1,
            lr: 1e-3,
            schedule: ScheduleShape::default(),
            decay_share: 0.1,
            min_lr: None,
            warmup: None,
            clip: 1.0,
            adamw: AdamWSettings::default(),
            seed: 0,
        }
    }
}

impl TrainSettings {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// `Recipe` naming the setting.
    pub fn check(&self) -> Result<()> {
        let wrong = match self {
            s if s.n_tokens == 0 => "tokens: expected at least 1",
            s if s.batch_size == 0 || s.accumulate == 0 => {
                "batch_size and accumulate: expected at least 1"
            }
            s if s.batch_size.saturating_mul(s.accumulate) > MAX_WINDOWS_PER_STEP => {
                "batch_size times accumulate: expected at most 1048576 windows per step"
            }
            s if !(s.lr.is_finite() && s.lr > 0.0) => "lr: expected a positive number",
            s if s.clip.is_nan() || s.clip <= 0.0 => "clip: expected a positive number",
            s if s.min_lr.is_some_and(|lr| !(0.0..=s.lr).contains(&lr)) => {
                "min_lr: expected 0 to lr"
            }
            s if s.min_lr.is_some() && s.schedule == ScheduleShape::Constant => {
                "min_lr: a constant schedule stays at lr; leave one of them out"
            }
            s if !(s.decay_share > 0.0 && s.decay_share <= 1.0) => {
                "decay_share: expected more than 0 and at most 1"
            }
            s if [s.adamw.beta1, s.adamw.beta2]
                .iter()
                .any(|beta| !(0.0..1.0).contains(beta)) =>
            {
                "beta1, beta2: expected 0 to 1"
            }
            s if s.adamw.eps.is_nan()
                || s.adamw.eps <= 0.0
                || !s.adamw.weight_decay.is_finite()
                || s.adamw.weight_decay < 0.0 =>
            {
                "eps: expected a positive number; weight_decay: expected at least 0"
            }
            _ => return Ok(()),
        };
        Err(Error::Recipe(wrong.to_owned()))
    }

    /// Tokens of one step for windows of this width.
    pub fn tokens_per_step(&self, width: usize) -> u64 {
        (self.batch_size as u64)
            .saturating_mul(self.accumulate as u64)
            .saturating_mul(width as u64)
            .max(1)
    }

    /// The learning rates for windows of this width.
    pub fn schedule(&self, width: usize) -> Schedule {
        let n_steps = self.n_tokens.div_ceil(self.tokens_per_step(width));
        let n_warmup = self.warmup.unwrap_or(n_steps / 20).min(n_steps);
        // Rounded up: a decay has at least one step.
        let n_decay = (self.decay_share * n_steps as f64).ceil() as u64;
        let minimum = self.min_lr.unwrap_or(self.lr / 10.0);
        Schedule {
            shape: self.schedule,
            peak: self.lr,
            minimum,
            n_warmup,
            n_decay,
            n_steps,
        }
    }
}
