//! What stands around the layers: embeddings before, the final norm and the head after.

use std::collections::{BTreeSet, HashMap};

use tch::{Device, Kind, Tensor};

use super::LoadOptions;
use super::head::LmHead;
use super::weights::Weights;
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::nn::NormLayer;
use crate::nn::{Input, MixerContext};
use crate::nn::{Tap, show};
use crate::spec::{At, ModelSpec, Param, ParamKind, Role, Site};

/// Embeddings, final norm and head.
#[derive(Debug)]
pub struct Frame {
    architecture: String,
    max_positions: usize,
    tokens: TokenTable,
    /// Factor of the token table's rows.
    scale: Option<Tensor>,
    position_table: Option<Tensor>,
    first_position: i64,
    type_table: Option<Tensor>,
    embedding_norm: Option<NormLayer>,
    causal: bool,
    kind: Kind,
    final_norm: Option<NormLayer>,
    head: Option<LmHead>,
}

/// The token table, or those of its rows that some text needs.
#[derive(Debug)]
struct TokenTable {
    table_ve: Tensor,
    rows: Option<HashMap<i64, i64>>,
}

/// The rows of some tokens, in their order. Those that lie near each other are read together: views
/// may have work with every read.
fn rows_of(source: &dyn TensorSource, name: &str, tokens: &BTreeSet<u32>) -> Result<Tensor> {
    /// Tokens further apart are read by themselves.
    const NEAR: u32 = 16;
    /// Rows that are read together.
    const TOGETHER: u32 = 512;
    let (mut rows, mut span) = (Vec::with_capacity(tokens.len()), Vec::new());
    let mut read = |span: &[u32]| -> Result<()> {
        let (Some(&first), Some(&last)) = (span.first(), span.last()) else {
            return Ok(());
        };
        let all = source.read_rows(name, first as usize..last as usize + 1)?;
        for &token in span {
            rows.push(all.f_narrow(0, i64::from(token - first), 1)?.copy());
        }
        Ok(())
    };
    for &token in tokens {
        let is_near = |first: u32, last: u32| token - last <= NEAR && token - first < TOGETHER;
        let bounds = span.first().copied().zip(span.last().copied());
        if bounds.is_some_and(|(first, last)| !is_near(first, last)) {
            read(&span)?;
            span.clear();
        }
        span.push(token);
    }
    read(&span)?;
    Ok(Tensor::f_cat(&rows, 0)?)
}

impl Frame {
    /// Reads what stands around the layers, without them: of the token table the rows of `tokens`,
    /// and the head only where it is asked for.
    pub fn open(
        source: &dyn TensorSource,
        spec: &ModelSpec,
        options: LoadOptions,
        tokens: &BTreeSet<u32>,
        with_head: bool,
    ) -> Result<Self> {
        let mut weights = Weights::new(source, spec, options);
        let param = spec.find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight);
        let Some(name) = param.map(Param::name) else {
            let message = format!("`{}` declares no token table", spec.architecture);
            return Err(Error::Internal(message));
        };
        let table_ve = rows_of(source, &name, tokens)?
            .f_to_device(options.device)?
            .f_to_kind(options.kind)?;
        let places = tokens
            .iter()
            .enumerate()
            .map(|(row, &token)| (i64::from(token), row as i64));
        let tokens = TokenTable {
            table_ve,
            rows: Some(places.collect()),
        };
        let whole = match with_head && spec.options.tied {
            true => Some(
                weights
                    .part(At::Model)
                    .tensor(Role::TOKEN_EMBEDDING, ParamKind::Weight)?,
            ),
            false => None,
        };
        let head = if with_head {
            LmHead::load(&mut weights, whole.as_ref())?
        } else {
            None
        };
        Self::around(&mut weights, tokens, head)
    }

    /// The head is read after the layers, so that parameters come in the order of the forward pass.
    pub(super) fn load(weights: &mut Weights, table_ve: Tensor) -> Result<Self> {
        let head = LmHead::load(weights, Some(&table_ve))?;
        Self::around(
            weights,
            TokenTable {
                table_ve,
                rows: None,
            },
            head,
        )
    }

    fn around(weights: &mut Weights, tokens: TokenTable, head: Option<LmHead>) -> Result<Self> {
        weights.spec.check_computable()?;
        let (spec, place) = (weights.spec, weights.options);
        let (embedding, final_norm) = (&spec.options.embedding, spec.options.final_norm);
        // Rounded to the type computed in, as `transformers` does.
        let scale = match embedding.scale == 1.0 {
            true => None,
            false => Some(Tensor::f_full(
                [1i64],
                embedding.scale,
                (place.kind, place.device),
            )?),
        };
        Ok(Frame {
            architecture: spec.architecture.clone(),
            max_positions: spec.options.max_positions,
            tokens,
            scale,
            position_table: weights
                .part(At::Model)
                .tensor_opt(Role::POSITION_EMBEDDING, ParamKind::Weight)?,
            first_position: embedding.first_position as i64,
            type_table: weights
                .part(At::Model)
                .tensor_opt(Role::TYPE_EMBEDDING, ParamKind::Weight)?,
            embedding_norm: embedding
                .norm
                .map(|norm| weights.part(At::Model).norm(Role::EMBEDDING_NORM, norm))
                .transpose()?,
            causal: spec.options.causal,
            kind: place.kind,
            final_norm: final_norm
                .map(|norm| weights.part(At::Model).norm(Role::FINAL_NORM, norm))
                .transpose()?,
            head,
        })
    }

    /// What enters the first layer, [B, T, E], of token ids [B, T] at positions from `start` on, or
    /// where documents are told apart at their positions in them.
    ///
    /// # Errors
    /// `Data` when the sequence is longer than the model's positions, or a token's row was left
    /// out.
    pub fn embed<'a>(&self, input: impl Into<Input<'a>>, start: i64) -> Result<Tensor> {
        let Input {
            ids_bt,
            positions_bt,
            ..
        } = input.into();
        let (_, n_tokens) = ids_bt.size2()?;
        let max = self.max_positions as i64;
        if start + n_tokens > max {
            let n_tokens = start + n_tokens;
            return Err(Error::Data(format!(
                "a sequence of {n_tokens} tokens; this model has {max} positions"
            )));
        }
        let rows_bt = self.tokens.rows_of(ids_bt)?;
        let mut x_bte = Tensor::f_embedding(&self.tokens.table_ve, &rows_bt, -1, false, false)?;
        if let Some(scale) = &self.scale {
            x_bte = x_bte.f_mul(scale)?;
        }
        if let Some(table) = &self.position_table {
            x_bte = match positions_bt {
                Some(positions_bt) => {
                    let rows_bt = positions_bt.f_add_scalar(self.first_position)?;
                    x_bte.f_add(&Tensor::f_embedding(table, &rows_bt, -1, false, false)?)?
                }
                None => {
                    x_bte.f_add(&table.f_narrow(0, self.first_position + start, n_tokens)?)?
                }
            };
        }
        if let Some(table) = &self.type_table {
            x_bte = x_bte.f_add(&table.f_select(0, 0)?)?;
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(&x_bte),
            None => Ok(x_bte),
        }
    }

    /// How `n_tokens` positions from `start` on lie, of which those hold tokens that are
    /// `attention_mask_bt` [B, T]; none: all. `positions_bt` [B, T] begin at zero with each
    /// document where attention stays inside them.
    ///
    /// # Errors
    /// `Recipe` for documents told apart in an encoder.
    pub fn context(
        &self,
        start: i64,
        n_tokens: i64,
        attention_mask_bt: Option<&Tensor>,
        positions_bt: Option<&Tensor>,
    ) -> Result<MixerContext> {
        let device = self.tokens.table_ve.device();
        MixerContext::new(self.causal, start, n_tokens, device, self.kind)
            .beside(attention_mask_bt, positions_bt)
    }

    /// The last hidden state of what leaves the last layer.
    pub fn finish(&self, x_bte: Tensor) -> Result<Tensor> {
        match &self.final_norm {
            Some(norm) => norm.forward(&x_bte),
            None => Ok(x_bte),
        }
    }

    /// The same, shown to who looks.
    pub(super) fn last(&self, x_bte: Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        let hidden_bte = self.finish(x_bte)?;
        show(tap, Site::Last, &hidden_bte)?;
        Ok(hidden_bte)
    }

    /// Logits [.., V] of hidden states [.., E].
    ///
    /// # Errors
    /// `Data` for an encoder without a head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let head = self.head()?;
        head.project(&head.inputs(hidden)?)
    }

    /// What makes logits.
    ///
    /// # Errors
    /// `Data` for an encoder without a head.
    pub fn head(&self) -> Result<&LmHead> {
        self.head.as_ref().ok_or_else(|| {
            Error::Data(format!(
                "this `{}` model has no language-model head",
                self.architecture
            ))
        })
    }

    /// Whether [`Frame::logits`] works.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }
}

impl TokenTable {
    fn rows_of(&self, ids_bt: &Tensor) -> Result<Tensor> {
        let Some(rows) = &self.rows else {
            return Ok(ids_bt.shallow_clone());
        };
        let ids = Vec::<i64>::try_from(ids_bt.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(row) = rows.get(&id) else {
                let message = format!("token {id} is not among those announced");
                return Err(Error::Internal(message));
            };
            found.push(*row);
        }
        Ok(Tensor::f_from_slice(&found)?
            .f_view(ids_bt.size().as_slice())?
            .f_to_kind(Kind::Int64)?
            .f_to_device(ids_bt.device())?)
    }
}
