//! From a training's options to what the loop takes.

use super::options::TrainingOptions;
use crate::data::{Reading, Tokenizer};
use crate::jobs::context::{Context, seq_len_or_default};
use crate::train::{AdamWSettings, HeldOut, Saving, TrainSettings};
use minitron_core::error::{Error, Result};
use minitron_core::spec::ModelSpec;
use minitron_core::windows::Windows;

/// Windows of the held-out text where nothing is stated.
pub(crate) const EVAL_SAMPLES: usize = 64;

impl TrainingOptions {
    /// With the learning rate of trainings that are given none.
    pub(crate) fn settings(&self, seed: u64) -> TrainSettings {
        let settings = TrainSettings::default();
        TrainSettings {
            n_tokens: self.tokens.0,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            lr: self.lr.unwrap_or(settings.lr),
            schedule: self.schedule,
            decay_share: self.decay_share,
            min_lr: self.min_lr,
            warmup: self.warmup,
            clip: self.clip,
            adamw: AdamWSettings {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay,
            },
            seed,
        }
    }

    pub(crate) fn saving(&self) -> Saving {
        Saving {
            every: self.checkpoint_every,
            minutes: self.checkpoint_minutes,
            keep: self.keep,
        }
    }

    /// The held-out text, cut as the training text is.
    ///
    /// # Errors
    /// `Recipe` where evaluations are spoken of and no text is given.
    pub(crate) fn eval_windows(
        &self,
        context: &Context,
        spec: &ModelSpec,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Windows>> {
        if self.eval_data.is_empty() {
            return match (self.eval_every, self.eval_samples) {
                (None, None) => Ok(None),
                _ => Err(Error::Recipe(
                    "eval_every, eval_samples: no eval_data is given to evaluate on".into(),
                )),
            };
        }
        let seq_len = seq_len_or_default(self.seq_len, spec, tokenizer);
        let max_windows = Some(self.eval_samples.unwrap_or(EVAL_SAMPLES));
        let reading = Reading {
            max_windows,
            ..self.reading(seq_len, context.seed)
        };
        reading
            .windows(&self.eval_data, tokenizer, context.registry)
            .map(Some)
            .map_err(|e| e.at("eval_data"))
    }

    pub(crate) fn held_out<'a>(&self, windows: &'a Windows) -> HeldOut<'a> {
        HeldOut {
            windows,
            batch_size: self.batch_size,
            every: self.eval_every,
        }
    }
}
