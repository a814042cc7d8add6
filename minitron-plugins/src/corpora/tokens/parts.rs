//! Ids as one document, read part by part.

use std::iter;
use std::ops::Range;

use minitron_core::contract::{Document, Documents};
use minitron_core::error::Result;

use super::PART;

/// One document of `n_ids` from an id on; nothing follows an error.
pub(super) fn parts<'a>(
    n_ids: u64,
    first: u64,
    mut read: impl FnMut(Range<u64>) -> Result<Vec<u32>> + 'a,
) -> Documents<'a> {
    let mut start = first;
    Box::new(iter::from_fn(move || {
        let end = start.saturating_add(PART).min(n_ids);
        let ids = (start < end).then(|| read(start..end))?;
        start = if ids.is_ok() { end } else { n_ids };
        let document = ids.map(Document::Tokens);
        Some(if end < n_ids {
            document.map(|part| Document::Part(Box::new(part)))
        } else {
            document
        })
    }))
}
