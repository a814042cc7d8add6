//! A short convolution over the tokens before, channel by channel.

use tch::{Kind, Tensor};

use crate::error::{Present, Result};

/// Its weights. C channels, K taps, the last of which is for the token itself.
#[derive(Debug)]
pub(super) struct Convolution {
    pub weight_c1k: Tensor,
    pub bias_c: Option<Tensor>,
}

impl Convolution {
    /// From x [B, T, C], the K − 1 tokens before it (zeros where there are none) and the documents
    /// of its tokens, to what they become and the last K − 1 tokens.
    pub fn forward(
        &self,
        x_btc: &Tensor,
        tail_bsc: Option<&Tensor>,
        document_bt: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (_, n_tokens, n_channels) = x_btc.size3()?;
        let n_before = self.weight_c1k.size3()?.2 - 1;
        let x_bsc = match tail_bsc {
            Some(tail_bsc) => Tensor::f_cat(&[tail_bsc, x_btc], 1)?,
            None => x_btc.f_constant_pad_nd([0, 0, n_before, 0])?,
        };
        let tail_bsc = x_bsc.f_narrow(1, n_tokens, n_before)?.f_contiguous()?;
        if let Some(document_bt) = document_bt {
            return Ok((self.inside_documents(&x_bsc, document_bt)?, tail_bsc));
        }
        let y_bct = x_bsc.f_transpose(1, 2)?.f_convolution(
            &self.weight_c1k,
            self.bias_c.as_ref(),
            [1i64],
            [0i64],
            [1i64],
            false,
            [0i64],
            n_channels,
        )?;
        Ok((y_bct.f_transpose(1, 2)?, tail_bsc))
    }

    /// Tap by tap, of which those that reach into another document take nothing.
    fn inside_documents(&self, x_bsc: &Tensor, document_bt: &Tensor) -> Result<Tensor> {
        let (_, _, n_taps) = self.weight_c1k.size3()?;
        let n_tokens = document_bt.size2()?.1;
        // What comes before all tokens is of document 0, as they are until the first that begins.
        let document_bs = document_bt.f_constant_pad_nd([n_taps - 1, 0])?;
        let mut sum: Option<Tensor> = None;
        for tap in 0..n_taps {
            let is_same_bt1 = document_bs
                .f_narrow(1, tap, n_tokens)?
                .f_eq_tensor(document_bt)?
                .f_unsqueeze(-1)?;
            let weight_c = self.weight_c1k.f_select(2, tap)?.f_squeeze_dim(1)?;
            let term_btc = x_bsc
                .f_narrow(1, tap, n_tokens)?
                .f_mul(&is_same_bt1)?
                .f_mul(&weight_c)?;
            sum = Some(match sum {
                Some(sum) => sum.f_add(&term_btc)?,
                None => term_btc,
            });
        }
        let sum_btc = sum.present("a tap of a convolution")?;
        Ok(match &self.bias_c {
            Some(bias_c) => sum_btc.f_add(bias_c)?,
            None => sum_btc,
        })
    }
}

/// f32 at least: what sums over many tokens is added up in.
pub(super) fn wide(x: &Tensor) -> Result<Kind> {
    Ok(match x.f_kind()? {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    })
}
