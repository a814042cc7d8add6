//! Sequences of different lengths as one batch.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Token ids [B, T], shorter sequences filled up with token 0 on the right, and whether each
/// position holds a token of its sequence [B, T]; none where all have one length.
pub fn fill(sequences: &[&[u32]], device: Device) -> Result<(Tensor, Option<Tensor>)> {
    let lengths: Vec<i64> = sequences
        .iter()
        .map(|sequence| sequence.len() as i64)
        .collect();
    let width = lengths.iter().max().copied().unwrap_or(0);
    let mut ids: Vec<i64> = Vec::with_capacity(sequences.len() * width as usize);
    for (row, sequence) in sequences.iter().enumerate() {
        ids.extend(sequence.iter().map(|&id| i64::from(id)));
        ids.resize((row + 1) * width as usize, 0);
    }
    let ids_bt = Tensor::f_from_slice(&ids)?
        .f_view([sequences.len() as i64, width])?
        .f_to_kind(Kind::Int64)?;
    let ids_bt = ids_bt.f_to_device(device)?;
    if lengths.iter().all(|&length| length == width) {
        return Ok((ids_bt, None));
    }
    let position_t = Tensor::f_arange(width, (Kind::Int64, device))?;
    let length_b1 = Tensor::f_from_slice(&lengths)?
        .f_to_device(device)?
        .f_unsqueeze(1)?;
    Ok((ids_bt, Some(position_t.f_lt_tensor(&length_b1)?)))
}
