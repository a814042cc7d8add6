//! Linear recurrences with a decay of their own at each token, in chunks: inside a chunk as one
//! masked product, between chunks by the states at their ends (arXiv 2405.21060, section 6).
//!
//! ```text
//! h_t = exp(a·s_t) · h_t−1 + s_t · b_t ⊗ x_t        y_t = c_t · h_t
//! ```
//!
//! Z chunks, L tokens of one and S those that they see, G groups of R heads with P channels each, N
//! numbers of a state for each channel, C channels of all heads of a group.

use tch::{Kind, Tensor};

use crate::error::{Present, Result};

/// What is scanned, all of one kind.
#[derive(Debug)]
pub(super) struct Scan {
    /// x.
    pub x_btgrp: Tensor,
    /// s, above 0.
    pub step_btgr: Tensor,
    /// a, below 0.
    pub decay_gr: Tensor,
    /// b.
    pub write_btgn: Tensor,
    /// c.
    pub read_btgn: Tensor,
    /// Which document a token is of, where a state ends with its own; that before the first token
    /// is of document 0.
    pub document_bt: Option<Tensor>,
    /// h before the first token.
    pub state_bgnc: Option<Tensor>,
}

/// The same in chunks, groups before tokens.
struct Chunks {
    /// s·x.
    x_bzglrp: Tensor,
    /// a·s summed from the first token of a chunk on.
    sum_bzglr: Tensor,
    write_bzgln: Tensor,
    read_bzgln: Tensor,
    documents: Option<Documents>,
}

/// What the tokens of chunks may see.
struct Documents {
    document_bzl: Tensor,
    /// Of the last token.
    last_bz: Tensor,
    /// Of the one before the first.
    before_bz: Tensor,
}

impl Scan {
    /// y [B, T, G, R, P], and h after the last token [B, G, N, C] where somebody `keeps` it.
    pub fn run(self, chunk: usize, keeps: bool) -> Result<(Tensor, Option<Tensor>)> {
        let (n_batch, n_tokens, n_groups, n_heads, n_channels) = self.x_btgrp.size5()?;
        let len = (chunk as i64).min(n_tokens).max(1);
        let chunks = Chunks::of(&self, len)?;
        let mut y_bzglrp = chunks.inside()?;
        let mut state = None;
        if keeps || n_tokens > len || self.state_bgnc.is_some() {
            let (before_bzgnc, after_bgnc) = chunks.states(self.state_bgnc.as_ref())?;
            y_bzglrp = y_bzglrp.f_add(&chunks.carried_on(&before_bzgnc)?)?;
            state = Some(after_bgnc);
        }
        let y_btgrp = y_bzglrp
            .f_transpose(2, 3)?
            .f_reshape([n_batch, -1, n_groups, n_heads, n_channels])?
            .f_narrow(1, 0, n_tokens)?;
        Ok((y_btgrp, state))
    }
}

impl Chunks {
    /// Tokens that fill up the last chunk take no step: a state passes them as it is.
    fn of(scan: &Scan, len: i64) -> Result<Self> {
        let steps_btgr = scan.step_btgr.f_mul(&scan.decay_gr)?;
        let x_btgrp = scan.x_btgrp.f_mul(&scan.step_btgr.f_unsqueeze(-1)?)?;
        let documents = scan
            .document_bt
            .as_ref()
            .map(|document_bt| Documents::of(document_bt, len));
        Ok(Chunks {
            x_bzglrp: in_chunks(&x_btgrp, len)?,
            sum_bzglr: in_chunks(&steps_btgr, len)?.f_cumsum(3, steps_btgr.f_kind()?)?,
            write_bzgln: in_chunks(&scan.write_btgn, len)?,
            read_bzgln: in_chunks(&scan.read_btgn, len)?,
            documents: documents.transpose()?,
        })
    }

    /// What tokens give those behind them in the same chunk.
    fn inside(&self) -> Result<Tensor> {
        let sum_bzgrl = self.sum_bzglr.f_transpose(3, 4)?;
        let between_bzgrls = sum_bzgrl
            .f_unsqueeze(-1)?
            .f_sub(&sum_bzgrl.f_unsqueeze(-2)?)?;
        let decay_bzgrls = between_bzgrls
            .f_masked_fill(&self.unseen()?, f64::NEG_INFINITY)?
            .f_exp()?;
        let score_bzgls = self
            .read_bzgln
            .f_matmul(&self.write_bzgln.f_transpose(-2, -1)?)?;
        let y_bzgrlp = score_bzgls
            .f_unsqueeze(3)?
            .f_mul(&decay_bzgrls)?
            .f_matmul(&self.x_bzglrp.f_transpose(3, 4)?)?;
        Ok(y_bzgrlp.f_transpose(3, 4)?)
    }

    /// The tokens of its chunk that a token does not see: later ones, and those of other documents.
    fn unseen(&self) -> Result<Tensor> {
        let len = self.sum_bzglr.size5()?.3;
        let options = (Kind::Bool, self.sum_bzglr.device());
        let later_ls = Tensor::f_ones([len, len], options)?.f_triu(1)?;
        let Some(documents) = &self.documents else {
            return Ok(later_ls);
        };
        let other_bzls = documents
            .document_bzl
            .f_unsqueeze(-1)?
            .f_ne_tensor(&documents.document_bzl.f_unsqueeze(-2)?)?;
        let unseen_bzls = other_bzls.f_logical_or(&later_ls)?;
        Ok(unseen_bzls.f_unsqueeze(2)?.f_unsqueeze(2)?)
    }

    /// States before each chunk [B, Z, G, N, C], and the one after the last.
    fn states(&self, first_bgnc: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (n_batch, n_chunks, n_groups, len, n_heads, n_channels) = size6(&self.x_bzglrp)?;
        let n_state = self.write_bzgln.size5()?.4;
        let total_bzgr = self.sum_bzglr.f_select(3, len - 1)?;
        let mut left_bzglr = total_bzgr.f_unsqueeze(3)?.f_sub(&self.sum_bzglr)?.f_exp()?;
        let mut passes_bzgr = total_bzgr.f_exp()?;
        if let Some(documents) = &self.documents {
            left_bzglr = left_bzglr.f_mul(&documents.stay()?)?;
            passes_bzgr = passes_bzgr.f_mul(&documents.pass()?)?;
        }
        let x_bzglc = self
            .x_bzglrp
            .f_mul(&left_bzglr.f_unsqueeze(-1)?)?
            .f_reshape([n_batch, n_chunks, n_groups, len, -1])?;
        let added_bzgnrp = self
            .write_bzgln
            .f_transpose(-2, -1)?
            .f_matmul(&x_bzglc)?
            .f_view([n_batch, n_chunks, n_groups, n_state, n_heads, n_channels])?;
        let passes_bzgnrp = passes_bzgr.f_unsqueeze(3)?.f_unsqueeze(-1)?;
        let shape = [n_batch, n_groups, n_state, n_heads, n_channels];
        let mut state_bgnrp = match first_bgnc {
            Some(first_bgnc) => first_bgnc.f_view(shape)?,
            None => added_bzgnrp.f_select(1, 0)?.f_zeros_like()?,
        };
        let mut before = Vec::new();
        for chunk in 0..n_chunks {
            before.push(state_bgnrp.shallow_clone());
            state_bgnrp = state_bgnrp
                .f_mul(&passes_bzgnrp.f_select(1, chunk)?)?
                .f_add(&added_bzgnrp.f_select(1, chunk)?)?;
        }
        let before_bzgnrp = Tensor::f_stack(&before, 1)?;
        Ok((
            before_bzgnrp.f_reshape([n_batch, n_chunks, n_groups, n_state, -1])?,
            state_bgnrp.f_reshape([n_batch, n_groups, n_state, -1])?,
        ))
    }

    /// What the state before a chunk gives its tokens.
    fn carried_on(&self, before_bzgnc: &Tensor) -> Result<Tensor> {
        let mut reach_bzglr = self.sum_bzglr.f_exp()?;
        if let Some(documents) = &self.documents {
            reach_bzglr = reach_bzglr.f_mul(&documents.reach()?)?;
        }
        let y_bzglrp = self
            .read_bzgln
            .f_matmul(before_bzgnc)?
            .f_view(self.x_bzglrp.size().as_slice())?;
        Ok(y_bzglrp.f_mul(&reach_bzglr.f_unsqueeze(-1)?)?)
    }
}

impl Documents {
    fn of(document_bt: &Tensor, len: i64) -> Result<Self> {
        let (n_batch, n_tokens) = document_bt.size2()?;
        // What fills up the last chunk is of the last document.
        let last_b1 = document_bt.f_narrow(1, n_tokens - 1, 1)?;
        let padding = padding(n_tokens, len);
        let padded = Tensor::f_cat(
            &[document_bt, &last_b1.f_expand([n_batch, padding], false)?],
            1,
        )?;
        let document_bzl = padded.f_view([n_batch, -1, len])?;
        let last_bz = document_bzl.f_select(2, len - 1)?;
        let n_chunks = last_bz.size2()?.1;
        let before_bz = last_bz
            .f_constant_pad_nd([1, 0])?
            .f_narrow(1, 0, n_chunks)?;
        Ok(Documents {
            document_bzl,
            last_bz,
            before_bz,
        })
    }

    /// Whether what a token writes is there at the end of its chunk, [B, Z, 1, L, 1].
    fn stay(&self) -> Result<Tensor> {
        let is_last_bzl = self
            .document_bzl
            .f_eq_tensor(&self.last_bz.f_unsqueeze(-1)?)?;
        Ok(is_last_bzl.f_unsqueeze(2)?.f_unsqueeze(-1)?)
    }

    /// Whether a state passes a whole chunk, [B, Z, 1, 1].
    fn pass(&self) -> Result<Tensor> {
        let is_one_bz = self.last_bz.f_eq_tensor(&self.before_bz)?;
        Ok(is_one_bz.f_unsqueeze(-1)?.f_unsqueeze(-1)?)
    }

    /// Whether the state before a chunk reaches a token of it, [B, Z, 1, L, 1].
    fn reach(&self) -> Result<Tensor> {
        let is_first_bzl = self
            .document_bzl
            .f_eq_tensor(&self.before_bz.f_unsqueeze(-1)?)?;
        Ok(is_first_bzl.f_unsqueeze(2)?.f_unsqueeze(-1)?)
    }
}

/// Tokens that fill up the last chunk.
fn padding(n_tokens: i64, len: i64) -> i64 {
    (len - n_tokens % len) % len
}

/// x [B, T, G, ..] to [B, Z, G, L, ..], filled up with zeros.
fn in_chunks(x: &Tensor, len: i64) -> Result<Tensor> {
    let shape = x.size();
    let n_tokens = shape.get(1).copied().present("a side of tokens")?;
    // Sides from the last to that of the tokens.
    let mut pad = vec![0; 2 * shape.len().saturating_sub(2)];
    pad.extend([0, padding(n_tokens, len)]);
    let mut split = shape;
    split.splice(1..2, [-1, len]);
    Ok(x.f_constant_pad_nd(pad)?
        .f_reshape(split)?
        .f_transpose(2, 3)?)
}

fn size6(x: &Tensor) -> Result<(i64, i64, i64, i64, i64, i64)> {
    match x.size().as_slice() {
        &[a, b, c, d, e, f] => Ok((a, b, c, d, e, f)),
        _ => Err(crate::error::Error::Internal(
            "a tensor of six sides".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const N_TOKENS: i64 = 13;

    /// x, steps, decays, writes, reads and a first state, of 2 groups with 3 heads of 4 channels.
    fn tensors() -> [Tensor; 6] {
        let shapes: [&[i64]; 6] = [
            &[2, N_TOKENS, 2, 3, 4],
            &[2, N_TOKENS, 2, 3],
            &[2, 3],
            &[2, N_TOKENS, 2, 5],
            &[2, N_TOKENS, 2, 5],
            &[2, 2, 5, 12],
        ];
        let mut made = shapes.into_iter().enumerate().map(|(idx, shape)| {
            let n = shape.iter().product::<i64>();
            let numbers = Tensor::arange(n, (Kind::Double, Device::Cpu)).view(shape);
            let sines = numbers.f_mul_scalar(0.7 + idx as f64).unwrap().sin();
            match idx {
                1 => sines.f_add_scalar(1.2).unwrap(),
                2 => sines.f_sub_scalar(1.5).unwrap(),
                _ => sines,
            }
        });
        std::array::from_fn(|_| made.next().unwrap())
    }

    /// Documents that begin inside of chunks and at their ends; the first began before.
    fn documents() -> Tensor {
        let one = [0i64, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3];
        let other = [1i64, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3];
        Tensor::from_slice(&[one, other].concat()).view([2, N_TOKENS])
    }

    fn scan(given: &[Tensor; 6], document_bt: Option<Tensor>) -> Scan {
        let [x, step, decay, write, read, state] = given.each_ref().map(Tensor::shallow_clone);
        Scan {
            x_btgrp: x,
            step_btgr: step,
            decay_gr: decay,
            write_btgn: write,
            read_btgn: read,
            document_bt,
            state_bgnc: Some(state),
        }
    }

    /// The recurrence as it is written down, token by token.
    fn by_token(scan: Scan) -> (Tensor, Tensor) {
        let mut state_bgnrp = scan.state_bgnc.unwrap().view([2, 2, 5, 3, 4]);
        let mut y = Vec::new();
        for token in 0..N_TOKENS {
            let at = |x: &Tensor| x.select(1, token);
            if let Some(document_bt) = &scan.document_bt {
                let last = match token {
                    0 => at(document_bt).zeros_like(),
                    _ => document_bt.select(1, token - 1),
                };
                let goes_on = at(document_bt).f_eq_tensor(&last).unwrap();
                state_bgnrp = state_bgnrp.f_mul(&goes_on.view([2, 1, 1, 1, 1])).unwrap();
            }
            let step_bgr = at(&scan.step_btgr);
            let decay_bgr = step_bgr.f_mul(&scan.decay_gr).unwrap().exp();
            let x_bgrp = at(&scan.x_btgrp).f_mul(&step_bgr.unsqueeze(-1)).unwrap();
            let write = at(&scan.write_btgn).view([2, 2, 5, 1, 1]);
            let added = write.f_mul(&x_bgrp.unsqueeze(2)).unwrap();
            let decay = decay_bgr.view([2, 2, 1, 3, 1]);
            state_bgnrp = state_bgnrp.f_mul(&decay).unwrap().f_add(&added).unwrap();
            let read = at(&scan.read_btgn).view([2, 2, 5, 1, 1]);
            let read_of = state_bgnrp.f_mul(&read).unwrap();
            y.push(read_of.sum_dim_intlist([2i64].as_slice(), false, Kind::Double));
        }
        (Tensor::stack(&y, 1), state_bgnrp.reshape([2, 2, 5, 12]))
    }

    /// Value, last state, and gradients of a weighted sum of both.
    fn all_of(documents: Option<Tensor>, run: impl Fn(Scan) -> (Tensor, Tensor)) -> Vec<Tensor> {
        let given = tensors().map(|x| x.set_requires_grad(true));
        let (y, state) = run(scan(&given, documents));
        let weighted = |x: &Tensor| {
            let weights = x.detach().f_mul_scalar(3.0).unwrap().cos();
            x.f_mul(&weights).unwrap().sum(Kind::Double)
        };
        weighted(&y).f_add(&weighted(&state)).unwrap().backward();
        let gradients = given.iter().map(Tensor::grad);
        [y.detach(), state.detach()]
            .into_iter()
            .chain(gradients)
            .collect()
    }

    #[test]
    fn chunks_of_any_length_are_the_recurrence_token_by_token() {
        for documents in [None, Some(documents())] {
            let of = || documents.as_ref().map(Tensor::shallow_clone);
            let expected = all_of(of(), by_token);
            for chunk in [1, 2, 3, 5, 12, 13, 64] {
                let found = all_of(of(), |scan| {
                    let (y, state) = scan.run(chunk, true).unwrap();
                    (y, state.unwrap())
                });
                for (found, expected) in found.iter().zip(&expected) {
                    let error = found.f_sub(expected).unwrap().abs().max();
                    let error = error.double_value(&[]);
                    assert!(error <= 1e-12, "chunks of {chunk}: {error}");
                }
            }
        }
    }

    #[test]
    fn decays_far_below_nothing_leave_finite_gradients() {
        let mut given = tensors().map(|x| x.to_kind(Kind::Float));
        given[2] = given[2].f_mul_scalar(1e4).unwrap();
        let given = given.map(|x| x.detach().set_requires_grad(true));
        let (y, state) = scan(&given, None).run(4, true).unwrap();
        let sum = y.sum(Kind::Float).f_add(&state.unwrap().sum(Kind::Float));
        sum.unwrap().backward();
        for gradient in given.iter().map(Tensor::grad) {
            assert!(bool::try_from(gradient.isfinite().all()).unwrap());
        }
    }
}
