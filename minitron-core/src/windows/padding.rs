//! Sequences of different lengths as one batch.

use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Numbers of the host onto a device. A GPU fetches them from memory that stays in place, while the
/// host goes on.
pub(super) fn onto<T: Element>(numbers: &[T], device: Device) -> Result<Tensor> {
    let on_host = Tensor::f_from_slice(numbers)?;
    match device {
        Device::Cpu => Ok(on_host),
        Device::Cuda(_) => {
            let pinned = on_host.f_pin_memory(device)?;
            Ok(pinned.f_to_device_(device, on_host.f_kind()?, true, false)?)
        }
        _ => Ok(on_host.f_to_device(device)?),
    }
}

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
    let ids_bt = onto(&ids, device)?.f_view([sequences.len() as i64, width])?;
    if lengths.iter().all(|&length| length == width) {
        return Ok((ids_bt, None));
    }
    let position_t = Tensor::f_arange(width, (Kind::Int64, device))?;
    let length_b1 = onto(&lengths, device)?.f_unsqueeze(1)?;
    Ok((ids_bt, Some(position_t.f_lt_tensor(&length_b1)?)))
}
