//! What mixers have to know of a batch besides its stream: the same for all layers, worked out once
//! for each kind of rotation and mask that some layer asks for.

use std::cell::RefCell;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::rope::Rope;
use crate::error::{Error, Result};
use crate::parts::Rotary;

/// Token ids, and which of them are there: what a model is given. B batch, T tokens.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Token ids [B, T].
    pub ids_bt: &'a Tensor,
    /// Whether a position holds a token rather than padding on the right [B, T], boolean; none
    /// where all do.
    pub attention_mask_bt: Option<&'a Tensor>,
    /// Each token's position in its document [B, T], where attention stays inside documents; none
    /// where it does not, and a sequence is one document.
    pub positions_bt: Option<&'a Tensor>,
}

/// Sequences of one length, nothing filled up.
impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(ids_bt: &'a Tensor) -> Self {
        Input {
            ids_bt,
            attention_mask_bt: None,
            positions_bt: None,
        }
    }
}

/// How the tokens of a batch lie. S keys: the tokens, behind those of a state.
#[derive(Debug)]
pub struct MixerContext {
    /// Tokens before these, which states hold.
    pub start: i64,
    /// Tokens of a sequence.
    pub n_tokens: i64,
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    pub(super) attention_mask_bt: Option<Tensor>,
    positions_bt: Option<Tensor>,
    device: Device,
    kind: Kind,
    ropes: RefCell<Vec<(Rotary, Rc<Rope>)>>,
    masks: RefCell<Vec<(MaskKey, Rc<Tensor>)>>,
}

/// What a mask follows from, besides the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MaskKey {
    Full,
    /// Positions that a query reaches, over the last so many keys.
    Window(i64, i64),
    /// The same in blocks of queries, for so many sequences.
    Band {
        reach: i64,
        n_batch: i64,
    },
}

impl MixerContext {
    /// Of `n_tokens` tokens from position `start` on, all of them seen.
    pub fn new(causal: bool, start: i64, n_tokens: i64, device: Device, kind: Kind) -> Self {
        let (ropes, masks) = (RefCell::default(), RefCell::default());
        MixerContext {
            start,
            n_tokens,
            causal,
            attention_mask_bt: None,
            positions_bt: None,
            device,
            kind,
            ropes,
            masks,
        }
    }

    /// Where some positions hold no tokens, and where documents are told apart: their positions
    /// begin at zero with each.
    ///
    /// # Errors
    /// `Recipe` for documents told apart in an encoder.
    pub fn beside(
        mut self,
        attention_mask_bt: Option<&Tensor>,
        positions_bt: Option<&Tensor>,
    ) -> Result<Self> {
        if positions_bt.is_some() && !self.causal {
            let message =
                "attend: documents: an encoder's windows hold one stretch of text; leave it out";
            return Err(Error::Recipe(message.into()));
        }
        self.attention_mask_bt =
            attention_mask_bt.map(|attention_mask_bt| attention_mask_bt.shallow_clone());
        self.positions_bt = positions_bt.map(|positions_bt| positions_bt.shallow_clone());
        Ok(self)
    }

    /// The rotation of these tokens. Rotations depend on distances alone, so they go by the
    /// window's positions.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn rope(&self, rotary: &Rotary) -> Result<Rc<Rope>> {
        let found = self
            .ropes
            .borrow()
            .iter()
            .find(|(of, _)| of == rotary)
            .map(|(_, rope)| Rc::clone(rope));
        if let Some(rope) = found {
            return Ok(rope);
        }
        let rope = Rc::new(Rope::at(
            rotary,
            self.start,
            self.n_tokens,
            self.device,
            self.kind,
        )?);
        self.ropes
            .borrow_mut()
            .push((rotary.clone(), Rc::clone(&rope)));
        Ok(rope)
    }

    /// Each token's position \[T\], or in its document [B, T].
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn positions(&self) -> Result<Tensor> {
        match &self.positions_bt {
            Some(positions_bt) => Ok(positions_bt.shallow_clone()),
            None => Ok(Tensor::f_arange_start(
                self.start,
                self.start + self.n_tokens,
                (Kind::Int64, self.device),
            )?),
        }
    }

    /// Whether a single document without gaps fills every sequence: who sees whom then follows from
    /// positions alone.
    pub fn is_plain(&self) -> bool {
        self.positions_bt.is_none() && self.attention_mask_bt.is_none()
    }

    /// Whether documents are told apart.
    pub fn has_documents(&self) -> bool {
        self.positions_bt.is_some()
    }

    /// The number of each token's document [B, T], where documents are told apart: 1 for the first
    /// that begins here, 0 for what is of one that began before.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn documents(&self) -> Result<Option<Tensor>> {
        self.positions_bt.as_ref().map(numbered).transpose()
    }

    /// Which keys a query sees, boolean, where that is neither all of them nor, in a causal model
    /// without a state, all before: keys that are no padding, [B, 1, 1, T], what several tokens see
    /// behind those of a state, [T, S], or what lies before in the same document, [B, 1, T, T].
    /// Padding on the right lies after all that a causal position sees.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn mask(&self) -> Result<Option<Rc<Tensor>>> {
        let is_cut = match self.causal {
            // Padding stands on the right, where no token looks; from the first token on, the
            // kernel needs no mask.
            true => self.start > 0 && self.n_tokens > 1,
            false => self.attention_mask_bt.is_some(),
        };
        if self.positions_bt.is_none() && !is_cut {
            return Ok(None);
        }
        self.cached(MaskKey::Full, || {
            match (&self.positions_bt, &self.attention_mask_bt) {
                (Some(positions_bt), _) => inside_documents(positions_bt),
                (None, Some(attention_mask_bt)) if !self.causal => {
                    Ok(attention_mask_bt.f_unsqueeze(1)?.f_unsqueeze(1)?)
                }
                _ => {
                    let all = Tensor::f_ones(
                        [self.n_tokens, self.start + self.n_tokens],
                        (Kind::Bool, self.device),
                    )?;
                    Ok(all.f_tril(self.start)?)
                }
            }
        })
        .map(Some)
    }

    /// The same for a query that sees `reach` positions back (and, in an encoder, ahead), its own
    /// not counted, among the last `n_keys` keys: [T, S], or [B, 1, T, T] where sequences differ.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn window_mask(&self, reach: i64, n_keys: i64) -> Result<Rc<Tensor>> {
        self.cached(MaskKey::Window(reach, n_keys), || {
            let end = self.start + self.n_tokens;
            let (query_t, key_s) = (self.range(self.start, end)?, self.range(end - n_keys, end)?);
            let back_ts = query_t.f_unsqueeze(1)?.f_sub(&key_s.f_unsqueeze(0)?)?;
            let near_ts = self.within(&back_ts, reach)?;
            match (&self.positions_bt, &self.attention_mask_bt) {
                (Some(positions_bt), _) => {
                    Ok(near_ts.f_logical_and(&inside_documents(positions_bt)?)?)
                }
                (None, Some(attention_mask_bt)) if !self.causal => {
                    let seen = attention_mask_bt.f_unsqueeze(1)?.f_unsqueeze(1)?;
                    // Padding sees itself, so that no row is empty.
                    Ok(near_ts
                        .f_logical_and(&seen)?
                        .f_logical_or(&back_ts.f_eq(0)?)?)
                }
                _ => Ok(near_ts),
            }
        })
    }

    /// The same in blocks of `reach` queries, which see their own block and its neighbours: [N, 1,
    /// Q, C], N blocks of all sequences, Q queries of a block, C the keys of two blocks (three in
    /// an encoder). For no state and no documents.
    ///
    /// # Errors
    /// As tensor operations do.
    pub fn band_mask(&self, n_batch: i64, block: i64, reach: i64) -> Result<Rc<Tensor>> {
        self.cached(MaskKey::Band { reach, n_batch }, || {
            let (n_blocks, n_keys) = (blocks(self.n_tokens, block), self.keys_of_block(block));
            let (query_q, key_c) = (self.range(block, 2 * block)?, self.range(0, n_keys)?);
            let back_qc = query_q.f_unsqueeze(1)?.f_sub(&key_c.f_unsqueeze(0)?)?;
            let near_qc = self.within(&back_qc, reach)?;
            let place_bt = match &self.attention_mask_bt {
                Some(attention_mask_bt) if !self.causal => attention_mask_bt.shallow_clone(),
                _ => Tensor::f_ones([1, self.n_tokens], (Kind::Bool, self.device))?,
            };
            let after = n_blocks * block - self.n_tokens + (n_keys - 2 * block);
            let there_bnc = place_bt
                .f_constant_pad_nd([block, after])?
                .f_unfold(1, n_keys, block)?;
            let there = there_bnc.f_unsqueeze(2)?.f_unsqueeze(2)?;
            let mask = near_qc
                .f_logical_and(&there)?
                .f_logical_or(&back_qc.f_eq(0)?)?;
            Ok(mask
                .f_expand([n_batch, -1, -1, -1, -1], false)?
                .f_reshape([n_batch * n_blocks, 1, block, n_keys])?)
        })
    }

    /// Keys that a block of queries looks at.
    pub fn keys_of_block(&self, block: i64) -> i64 {
        if self.causal { 2 * block } else { 3 * block }
    }

    /// Positions from `start` up to `end`.
    fn range(&self, start: i64, end: i64) -> Result<Tensor> {
        Ok(Tensor::f_arange_start(
            start,
            end,
            (Kind::Int64, self.device),
        )?)
    }

    /// Of distances back: those within reach.
    fn within(&self, back: &Tensor, reach: i64) -> Result<Tensor> {
        let ahead = if self.causal { 0 } else { reach };
        Ok(back.f_le(reach)?.f_logical_and(&back.f_ge(-ahead)?)?)
    }

    fn cached(&self, key: MaskKey, make: impl FnOnce() -> Result<Tensor>) -> Result<Rc<Tensor>> {
        let found = self
            .masks
            .borrow()
            .iter()
            .find(|(of, _)| *of == key)
            .map(|(_, mask)| Rc::clone(mask));
        if let Some(mask) = found {
            return Ok(mask);
        }
        let mask = Rc::new(make()?);
        self.masks.borrow_mut().push((key, Rc::clone(&mask)));
        Ok(mask)
    }
}

/// Blocks that so many tokens fill.
pub fn blocks(n_tokens: i64, block: i64) -> i64 {
    (n_tokens + block - 1) / block
}

/// Which earlier tokens of its own document each token sees [B, 1, T, T].
fn inside_documents(positions_bt: &Tensor) -> Result<Tensor> {
    let document_bt = numbered(positions_bt)?;
    let is_same_btt = document_bt
        .f_unsqueeze(2)?
        .f_eq_tensor(&document_bt.f_unsqueeze(1)?)?;
    Ok(is_same_btt.f_tril(0)?.f_unsqueeze(1)?)
}

/// Documents that began up to each token [B, T].
fn numbered(positions_bt: &Tensor) -> Result<Tensor> {
    Ok(positions_bt.f_eq(0)?.f_cumsum(1, Kind::Int64)?)
}
