use std::time::Instant;

use minitron_core::contract::{Evaluator, Measurements, Subject};
use minitron_core::error::{Error, Result};
use minitron_core::model::{Cache, NoTap, Transformer};
use minitron_core::random::SplitMix;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Speed of greedy generation with the key/value cache, on random tokens: `first_token_s` is the
/// time from a prompt to its first new token, `decode_token_s` the mean time of each later one;
/// `prefill_tokens_per_second` counts the prompts' tokens in the first, `decode_tokens_per_second`
/// the new ones of all sequences in the second. Each is the median of the repeats, after one that
/// is not counted. A model of fewer positions is asked for less; what was asked is in
/// `n_prompt_tokens`, `n_new_tokens` and `n_sequences`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Throughput {
    /// Tokens of a prompt.
    #[schemars(range(min = 1))]
    pub prompt_tokens: usize,
    /// Tokens generated after each, the first included.
    #[schemars(range(min = 2))]
    pub new_tokens: usize,
    /// Sequences side by side.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// Measured so often.
    #[schemars(range(min = 1))]
    pub repeats: usize,
}

/// Of tokens, sequences and repeats: beyond what anybody waits for.
const MOST: usize = 1 << 20;

impl Default for Throughput {
    fn default() -> Self {
        Throughput {
            prompt_tokens: 128,
            new_tokens: 64,
            batch: 1,
            repeats: 3,
        }
    }
}

minitron_core::plugin! {
    Evaluator for Throughput {
        tag: "throughput",
        summary: "tokens per second of reading a prompt and of generating, with the key/value \
                  cache",
        source: "the speed of arXiv 2408.11796, section 4 (runtime performance)",
    }
}

#[typetag::serde(name = "throughput")]
impl Evaluator for Throughput {
    fn evaluate(&self, subject: &Subject) -> Result<Measurements> {
        let _no_grad = tch::no_grad_guard();
        let model = subject.model;
        if !model.is_causal() {
            return Err(Error::Data(
                "throughput needs a causal language model, an encoder generates nothing".into(),
            ));
        }
        let asked = [
            self.prompt_tokens,
            self.new_tokens,
            self.batch,
            self.repeats,
        ];
        if asked.iter().any(|&n| n > MOST) {
            return Err(Error::Recipe(format!(
                "throughput: expected at most {MOST} of anything"
            )));
        }
        let positions = model.spec.options.max_positions;
        let (n_prompt, n_new) = self.fitted(positions)?;
        let prompt_bt = prompts(model, self.batch.max(1), n_prompt, subject.seed)?;
        let repeats = self.repeats.max(1);
        subject
            .progress
            .start("throughput, runs", repeats as u64 + 1);
        generate(model, &prompt_bt, n_new)?;
        let (mut firsts, mut laters) = (Vec::new(), Vec::new());
        for _ in 0..repeats {
            subject.progress.advance(1, "");
            let (first, later) = generate(model, &prompt_bt, n_new)?;
            firsts.push(first);
            laters.push(later / (n_new - 1) as f64);
        }
        subject.progress.finish();
        let (first, later) = (median(firsts), median(laters));
        let n_sequences = self.batch.max(1) as f64;
        Ok(Measurements::from([
            ("first_token_s".to_owned(), first),
            ("decode_token_s".to_owned(), later),
            (
                "prefill_tokens_per_second".to_owned(),
                n_sequences * n_prompt as f64 / first,
            ),
            ("decode_tokens_per_second".to_owned(), n_sequences / later),
            ("n_prompt_tokens".to_owned(), n_prompt as f64),
            ("n_new_tokens".to_owned(), n_new as f64),
            ("n_sequences".to_owned(), n_sequences),
        ]))
    }
}

impl Throughput {
    /// What is asked, as far as the positions reach: the last new token is not read. New tokens
    /// take half of them at most.
    fn fitted(&self, positions: usize) -> Result<(usize, usize)> {
        if positions < 3 {
            return Err(Error::Data(format!(
                "throughput needs a model of 3 positions at least, this one has {positions}"
            )));
        }
        let n_new = match self.prompt_tokens.max(1) + self.new_tokens.max(2) - 1 <= positions {
            true => self.new_tokens.max(2),
            false => self.new_tokens.clamp(2, positions / 2 + 1),
        };
        Ok((self.prompt_tokens.clamp(1, positions + 1 - n_new), n_new))
    }
}

fn prompts(model: &Transformer, n_sequences: usize, n_tokens: usize, seed: u64) -> Result<Tensor> {
    let mut random = SplitMix::new(seed);
    let vocab = model.spec.options.vocab;
    let ids: Vec<i64> = (0..n_sequences * n_tokens)
        .map(|_| random.below(vocab) as i64)
        .collect();
    Ok(Tensor::f_from_slice(&ids)?
        .f_view([n_sequences as i64, n_tokens as i64])?
        .f_to_device(model.device)?)
}

/// Seconds until the first new token, and those of all later ones.
fn generate(model: &Transformer, prompt_bt: &Tensor, n_new: usize) -> Result<(f64, f64)> {
    let mut cache = Cache::new(model);
    let begin = Instant::now();
    let mut next_b1 = next(model, prompt_bt, &mut cache)?;
    let first = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for _ in 1..n_new {
        next_b1 = next(model, &next_b1, &mut cache)?;
    }
    Ok((first, begin.elapsed().as_secs_f64()))
}

/// The likeliest next tokens [B, 1]. Each is looked at, as who generates does: a device works on
/// until then.
fn next(model: &Transformer, ids_bt: &Tensor, cache: &mut Cache) -> Result<Tensor> {
    let hidden_bte = model.hidden(ids_bt, &mut NoTap, Some(cache))?;
    let last_be = hidden_bte.f_select(1, hidden_bte.size3()?.1 - 1)?;
    let next_b1 = model.logits(&last_be)?.f_argmax(-1, true)?;
    let _ = Vec::<i64>::try_from(&next_b1.f_reshape([-1])?)?;
    Ok(next_b1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    // A clock may stand still over a tiny model; absent in no run.
    values
        .get(values.len() / 2)
        .copied()
        .unwrap_or_default()
        .max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_fits_the_positions() {
        let asked = |prompt_tokens, new_tokens| Throughput {
            prompt_tokens,
            new_tokens,
            ..Throughput::default()
        };
        assert_eq!(asked(128, 64).fitted(512).unwrap(), (128, 64));
        assert_eq!(asked(449, 64).fitted(512).unwrap(), (449, 64));
        assert_eq!(asked(128, 64).fitted(64).unwrap(), (32, 33));
        assert_eq!(asked(1000, 10).fitted(64).unwrap(), (55, 10));
        assert!(asked(1, 2).fitted(2).is_err());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
