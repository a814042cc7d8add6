//! Continuations, greedy or sampled, with a key/value cache.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::{Cache, NoTap, Transformer};
use crate::random::SplitMix;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token; otherwise logits are divided by it and drawn from.
    pub temperature: f64,
    /// Only the k likeliest tokens are drawn from; 0 means all.
    pub top_k: usize,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            max_new_tokens: 64,
            temperature: 0.0,
            top_k: 0,
            seed: 0,
        }
    }
}

/// Continues prompts of equal length until one of `ends` (not included), the given number of
/// tokens, or the model's last position.
///
/// # Errors
/// `Data` for an empty prompt, prompts of different lengths, one beyond the model's positions, or
/// an encoder.
pub fn generate(
    model: &Transformer,
    prompts: &[Vec<u32>],
    ends: &[u32],
    sampling: &Sampling,
) -> Result<Vec<Vec<u32>>> {
    let _no_grad = tch::no_grad_guard();
    let n_prompt = prompts.first().map_or(0, Vec::len);
    if n_prompt == 0 || prompts.iter().any(|prompt| prompt.len() != n_prompt) {
        return Err(Error::Data(
            "expected prompts of one length, at least one token each".into(),
        ));
    }
    if !model.is_causal() {
        return Err(Error::Data(
            "an encoder cannot generate; give a causal language model".into(),
        ));
    }
    let flat: Vec<i64> = prompts.iter().flatten().map(|&id| i64::from(id)).collect();
    let mut input = Tensor::f_from_slice(&flat)?
        .f_view([prompts.len() as i64, n_prompt as i64])?
        .f_to_device(model.device)?;
    let (mut cache, mut whole) = (Cache::new(model), input.shallow_clone());
    let mut random = SplitMix::new(sampling.seed);
    let mut outputs: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut done = vec![false; prompts.len()];
    let room = model.spec.options.max_positions.saturating_sub(n_prompt);
    for _ in 0..sampling.max_new_tokens.min(room.saturating_add(1)) {
        let hidden = model.hidden(&input, &mut NoTap, Some(&mut cache))?;
        let last = hidden
            .f_narrow(1, hidden.size3()?.1 - 1, 1)?
            .f_squeeze_dim(1)?;
        let next = choose(
            &model.logits(&last)?.f_to_kind(Kind::Float)?,
            sampling,
            &mut random,
        )?;
        for ((output, done), &id) in outputs.iter_mut().zip(&mut done).zip(&next) {
            *done |= ends.iter().any(|&end| i64::from(end) == id);
            if !*done {
                output.push(id as u32);
            }
        }
        if done.iter().all(|&done| done) || cache.len() as usize >= model.spec.options.max_positions
        {
            break;
        }
        input = Tensor::f_from_slice(&next)?
            .f_view([prompts.len() as i64, 1])?
            .f_to_device(model.device)?;
        whole = Tensor::f_cat(&[&whole, &input], 1)?;
        let n_before = cache.len() as usize;
        if !model.spec.states_hold(n_before, n_before + 1) {
            (cache, input) = (Cache::new(model), whole.shallow_clone());
        }
    }
    Ok(outputs)
}

fn choose(logits_bv: &Tensor, sampling: &Sampling, random: &mut SplitMix) -> Result<Vec<i64>> {
    if sampling.temperature <= 0.0 {
        return Ok(Vec::<i64>::try_from(&logits_bv.f_argmax(-1, false)?)?);
    }
    let vocab = logits_bv.size2()?.1;
    let k = if sampling.top_k == 0 {
        vocab
    } else {
        i64::try_from(sampling.top_k).unwrap_or(vocab).min(vocab)
    };
    let (top_bk, ids_bk) = logits_bv.f_topk(k, -1, true, true)?;
    // The largest at zero, so that no temperature makes it overflow.
    let below_bk = top_bk
        .f_to_kind(Kind::Double)?
        .f_sub(&top_bk.f_narrow(1, 0, 1)?)?;
    let probability_bk = below_bk
        .f_div_scalar(sampling.temperature)?
        .f_softmax(-1, Kind::Double)?;
    let mut next = Vec::new();
    for row in 0..logits_bv.size2()?.0 {
        let probabilities = Vec::<f64>::try_from(&probability_bk.f_select(0, row)?)?;
        let mut left = random.unit();
        let drawn = probabilities.iter().position(|p| {
            left -= p;
            left < 0.0
        });
        let column = drawn.unwrap_or(probabilities.len().saturating_sub(1)) as i64;
        next.push(ids_bk.f_int64_value(&[row, column])?);
    }
    Ok(next)
}
