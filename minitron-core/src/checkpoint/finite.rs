//! Looks through stored elements for NaN and infinities, at the pace of memory.

use safetensors::Dtype;

/// Elements looked at before it is asked whether one of them was: without a branch in between they
/// go many at a time.
const BLOCK_ELEMENTS: usize = 1024;

/// The first element that is NaN or infinite; `None` for types that hold neither.
pub fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    // Neither is finite whose exponent has all bits set.
    match dtype {
        Dtype::F64 => first(bytes, |x| {
            u64::from_le_bytes(x) & (0x7ff << 52) == 0x7ff << 52
        }),
        Dtype::F32 => first(bytes, |x| {
            u32::from_le_bytes(x) & 0x7f80_0000 == 0x7f80_0000
        }),
        Dtype::F16 => first(bytes, |x| u16::from_le_bytes(x) & 0x7c00 == 0x7c00),
        Dtype::BF16 => first(bytes, |x| u16::from_le_bytes(x) & 0x7f80 == 0x7f80),
        _ => None,
    }
}

fn first<const WIDTH: usize>(
    bytes: &[u8],
    is_meant: impl Fn([u8; WIDTH]) -> bool,
) -> Option<usize> {
    let mut start = 0;
    for block in bytes.as_chunks::<WIDTH>().0.chunks(BLOCK_ELEMENTS) {
        if block.iter().fold(false, |any, &x| any | is_meant(x)) {
            return block.iter().position(|&x| is_meant(x)).map(|at| start + at);
        }
        start += block.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::checkpoint::append_tensor;

    #[test]
    fn every_type_and_place_is_as_libtorch_has_it() {
        let kinds = [
            (Kind::Double, Dtype::F64),
            (Kind::Float, Dtype::F32),
            (Kind::Half, Dtype::F16),
            (Kind::BFloat16, Dtype::BF16),
        ];
        for (kind, dtype) in kinds {
            let mut tensor = Tensor::randn([2500], (Kind::Double, Device::Cpu)).to_kind(kind);
            // The type's extremes, which are finite.
            let largest = if kind == Kind::Half { 65504.0 } else { 3.38e38 };
            for (at, x) in [(0, largest), (1, -largest), (2, 0.0), (3, -0.0), (4, 1e-40)] {
                let _ = tensor.get(at).fill_(x);
            }
            for at in [None, Some(2499), Some(1024), Some(1023), Some(0)] {
                for x in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                    if let Some(at) = at {
                        let _ = tensor.get(at).fill_(x);
                    }
                    let mut bytes = Vec::new();
                    append_tensor(&tensor, &mut bytes).unwrap();
                    let is_finite = bool::try_from(tensor.isfinite().all()).unwrap();
                    assert_eq!(is_finite, at.is_none(), "{kind:?} {x}");
                    assert_eq!(
                        first_not_finite(&bytes, dtype),
                        at.map(|at| at as usize),
                        "{kind:?} {x}"
                    );
                }
            }
            tensor = tensor.nan_to_num(0.0, 0.0, 0.0);
            assert!(bool::try_from(tensor.isfinite().all()).unwrap());
        }
    }

    #[test]
    fn integers_are_always_finite() {
        for dtype in [Dtype::I64, Dtype::I32, Dtype::U8, Dtype::BOOL] {
            assert_eq!(first_not_finite(&[0xff; 64], dtype), None);
        }
    }
}
