//! Weights of 4 bits with a scale for 32 of them (OCP Microscaling, MXFP4), read as the numbers
//! that they stand for.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::open_file::StoredTensor;
use super::source::TensorInfo;
use crate::error::{Error, Result};

/// Ends of the names of codes and of their scales.
const CODES: &str = "_blocks";
const SCALES: &str = "_scales";
/// Bytes of a group of codes, two codes in each.
const GROUP_BYTES: usize = 16;

/// What a code's lower three bits stand for: one bit of sign, two of exponent, one of mantissa.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Codes [X | out | groups | 16] and scales [X | out | groups] that are read as one bf16 tensor
/// [X | in | out], as gpt-oss has its experts.
#[derive(Debug)]
pub(super) struct Packed {
    pub codes: StoredTensor,
    pub scales: StoredTensor,
    pub info: TensorInfo,
}

/// Takes pairs of codes and scales out of what a file holds, under the name that they share.
pub(super) fn taken_out(entries: &mut BTreeMap<String, StoredTensor>) -> BTreeMap<String, Packed> {
    let stems: Vec<String> = entries
        .keys()
        .filter_map(|name| name.strip_suffix(CODES).map(str::to_owned))
        .collect();
    let mut found = BTreeMap::new();
    for stem in stems {
        let names = [CODES, SCALES].map(|end| format!("{stem}{end}"));
        let [Some(codes), Some(scales)] = names.each_ref().map(|name| entries.get(name)) else {
            continue;
        };
        let is_free = !entries.contains_key(&stem);
        if let Some(info) = info_of(&codes.info, &scales.info).filter(|_| is_free)
            && let [Some(codes), Some(scales)] = names.map(|name| entries.remove(&name))
        {
            found.insert(
                stem,
                Packed {
                    codes,
                    scales,
                    info,
                },
            );
        }
    }
    found
}

fn info_of(codes: &TensorInfo, scales: &TensorInfo) -> Option<TensorInfo> {
    let is_coded = [codes.dtype, scales.dtype] == [Dtype::U8; 2];
    match (codes.shape.as_slice(), scales.shape.as_slice()) {
        (&[n, out, groups, GROUP_BYTES], of_scales)
            if is_coded && of_scales == [n, out, groups] =>
        {
            Some(TensorInfo {
                dtype: Dtype::BF16,
                shape: vec![n, groups.checked_mul(2 * GROUP_BYTES)?, out],
            })
        }
        _ => None,
    }
}

impl Packed {
    /// The bytes of some rows, experts, as bf16: m · 2^(scale − 127), exact but at the ends of
    /// bf16's range.
    ///
    /// # Errors
    /// `Internal` where there are not as many codes and scales as rows.
    pub fn unpacked(&self, codes: &[u8], scales: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let (n_in, n_out) = match self.info.shape.as_slice() {
            &[_, n_in, n_out] => (n_in, n_out),
            _ => (0, 0),
        };
        let n_groups = n_in / (2 * GROUP_BYTES);
        let of_expert = n_out * n_groups;
        if of_expert == 0 {
            return Ok(());
        }
        if codes.len() != scales.len() * GROUP_BYTES || !scales.len().is_multiple_of(of_expert) {
            return Err(Error::Internal(format!(
                "{} codes of 4 bits with {} scales",
                2 * codes.len(),
                scales.len()
            )));
        }
        let experts = codes.chunks(of_expert * GROUP_BYTES);
        for (codes, scales) in experts.zip(scales.chunks(of_expert)) {
            let groups = codes.as_chunks::<GROUP_BYTES>().0;
            for group in 0..n_groups {
                for place in 0..2 * GROUP_BYTES {
                    let of_rows = groups.iter().zip(scales).skip(group).step_by(n_groups);
                    for (group, &scale) in of_rows {
                        into.extend(value(code(group, place), scale));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The code at a place of a group: the lower half of a byte comes first.
fn code(group: &[u8; GROUP_BYTES], place: usize) -> u8 {
    let byte = group.get(place / 2).copied().unwrap_or(0);
    if place.is_multiple_of(2) {
        byte & 0xf
    } else {
        byte >> 4
    }
}

/// As bf16 lies in memory, rounded to nearest even.
fn value(code: u8, scale: u8) -> [u8; 2] {
    let magnitude = MAGNITUDES
        .get(usize::from(code & 7))
        .copied()
        .unwrap_or(0.0);
    let power = f64::from(i32::from(scale) - 127).exp2() as f32;
    let sign = u16::from(code & 8) << 12;
    let bits = (magnitude * power).to_bits();
    if magnitude * power == f32::INFINITY || (magnitude * power).is_nan() {
        // What is no number stays none, for who reads weights to refuse.
        return ((bits >> 16) as u16 | sign).to_le_bytes();
    }
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    ((rounded >> 16) as u16 | sign).to_le_bytes()
}
