//! One vector per sentence. B batch, T tokens, E embed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::checkpoint::Config;
use crate::data::fill;
use crate::error::{Error, Result};
use crate::model::{Input, NoTap, Transformer};
use crate::progress::Progress;

/// How the last hidden states of a sentence become one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all its tokens, brackets included.
    #[default]
    Mean,
    /// That of its first token.
    Cls,
}

impl Pooling {
    /// What `1_Pooling/config.json` beside the model says, as sentence-transformers writes it; the mean where there is none.
    ///
    /// # Errors
    /// `Checkpoint` where it asks for another way.
    pub fn of(model: &Transformer) -> Result<Pooling> {
        let path = model.blueprint.config.path().with_file_name("1_Pooling").join("config.json");
        if !path.is_file() {
            return Ok(Pooling::Mean);
        }
        let config = Config::load(&path)?;
        let says = |way: &str| config.flag_or(way, false);
        const OTHERS: [&str; 4] = ["max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"];
        let mut has_other = false;
        for way in OTHERS {
            has_other |= says(&format!("pooling_mode_{way}"))?;
        }
        match (says("pooling_mode_mean_tokens")?, says("pooling_mode_cls_token")?) {
            (true, false) if !has_other => Ok(Pooling::Mean),
            (false, true) if !has_other => Ok(Pooling::Cls),
            _ => Err(config.error("expected `pooling_mode_mean_tokens` or `pooling_mode_cls_token` alone to be true")),
        }
    }

    /// [B, E] of [B, T, E]; filling does not count.
    fn pool(self, hidden_bte: &Tensor, seen_bt: Option<&Tensor>) -> Result<Tensor> {
        let mean = [1i64].as_slice();
        Ok(match (self, seen_bt) {
            (Pooling::Cls, _) => hidden_bte.f_select(1, 0)?,
            (Pooling::Mean, None) => hidden_bte.f_mean_dim(mean, false, Kind::Float)?,
            (Pooling::Mean, Some(seen_bt)) => {
                let seen_bt1 = seen_bt.f_unsqueeze(-1)?.f_to_kind(Kind::Float)?;
                let sum_be = hidden_bte.f_mul(&seen_bt1)?.f_sum_dim_intlist(mean, false, Kind::Float)?;
                sum_be.f_div(&seen_bt1.f_sum_dim_intlist(mean, false, Kind::Float)?)?
            }
        })
    }
}

/// Vectors [N, E] of length 1, in f32 on the model's device, of token sequences with their brackets, in their order. Those of
/// one length side by side need no filling.
///
/// # Errors
/// `Data` for a sequence without tokens, or longer than the model's positions.
pub fn sentence_embeddings(
    model: &Transformer,
    sentences: &[Vec<u32>],
    pooling: Pooling,
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    if sentences.is_empty() || sentences.iter().any(Vec::is_empty) {
        return Err(Error::Data("expected sentences of at least one token each".into()));
    }
    let mut embedded = Vec::new();
    progress.start("embed, sentences", sentences.len() as u64);
    for batch in sentences.chunks(batch_size.max(1)) {
        let sequences: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
        let (ids_bt, seen_bt) = fill(&sequences, model.device)?;
        let seen_bt = seen_bt.as_ref();
        let hidden_bte = model
            .hidden(Input { ids_bt: &ids_bt, seen_bt, positions_bt: None }, &mut NoTap, None)?
            .f_to_kind(Kind::Float)?;
        let pooled_be = pooling.pool(&hidden_bte, seen_bt)?;
        if !pooled_be.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
            return Err(Error::Data("the model gives states that are not finite, so sentences have no place".into()));
        }
        let length_b1 = pooled_be.f_norm_scalaropt_dim(2, [1i64].as_slice(), true)?.f_clamp_min(1e-12)?;
        embedded.push(pooled_be.f_div(&length_b1)?);
        progress.advance(batch.len() as u64, "");
    }
    progress.finish();
    Ok(Tensor::f_cat(&embedded, 0)?)
}
