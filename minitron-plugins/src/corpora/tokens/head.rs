//! The head of a `.npy` file, looked at before `npyz` does: it multiplies sizes, which could
//! overflow, and makes room for as long a header as the file says.

/// The header of a plain 1-D array fits many times over; a longer one describes something else.
pub const LIMIT: u64 = 1024;

/// Why a file that begins like this is no array of ids.
pub fn objection(head: &[u8]) -> Option<String> {
    if !head.starts_with(b"\x93NUMPY") {
        return Some(
            "expected a .npy file, got one that does not begin as such; save it with `numpy.save`"
                .to_owned(),
        );
    }
    // Two bytes or four, by version.
    let len = match (head.get(6), head.get(8..10), head.get(8..12)) {
        (Some(1), Some([a, b]), _) => u32::from(u16::from_le_bytes([*a, *b])),
        (_, _, Some([a, b, c, d])) => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    };
    if u64::from(len) > LIMIT {
        return Some(format!(
            "expected a header of at most {LIMIT} bytes, got one of {len}; save it again"
        ));
    }
    let text = String::from_utf8_lossy(head);
    let shape = text
        .split_once("'shape'")
        .and_then(|(_, rest)| rest.split_once('('));
    let Some((shape, _)) = shape.and_then(|(_, rest)| rest.split_once(')')) else {
        return Some(
            "expected a 1-D array of integers, got a header without its shape; save it again"
                .to_owned(),
        );
    };
    let n_dims = shape
        .split(',')
        .filter(|size| !size.trim().is_empty())
        .count();
    let advice = "flatten it with `.reshape(-1)` before saving";
    (n_dims != 1).then(|| {
        format!("expected a 1-D array, got {n_dims} dimensions of shape ({shape}); {advice}")
    })
}
