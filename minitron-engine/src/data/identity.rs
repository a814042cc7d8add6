//! What tells training data apart, without reading hundreds of gigabytes.

use serde_json::{Value, json};

use super::documents::DataSources;
use super::spec::Reading;
use super::text_options::{Attend, LossMask, Pack};
use super::tokenizer::Tokenizer;
use crate::chat::ChatTemplate;
use minitron_core::digest;
use minitron_core::error::{Error, Result};

/// Digest of all that decides the windows of some data. Names do not count: a file counts by its
/// content ([`digest::of_data_file`]), a generated corpus by its parameters and seed; so do the
/// parameters of reading, ranges, weights, window length, packing, block size and the tokenizer.
pub(super) fn of(
    all_sources: &[DataSources],
    packs: &[Pack],
    reading: &Reading,
    tokenizer: &Tokenizer,
    block_tokens: usize,
) -> Result<String> {
    let sources: Vec<Vec<Value>> = all_sources.iter().map(of_sources).collect::<Result<_>>()?;
    let pack: Vec<&str> = packs.iter().map(|pack| name_of(*pack)).collect();
    let pack = match pack.as_slice() {
        [one, rest @ ..] if rest.iter().all(|other| other == one) => json!(one),
        several => json!(several),
    };
    let mut all = json!([
        sources,
        reading.seq_len,
        pack,
        block_tokens,
        reading.seed,
        tokenizer.digest()
    ]);
    let mut with_template = false;
    for sources in all_sources {
        with_template |= sources.holds_conversations()?;
    }
    let (mask, attend) = (reading.text.mask, reading.text.attend);
    if let (Some(all), true) = (
        all.as_array_mut(),
        (mask, attend) != (LossMask::None, Attend::Window),
    ) {
        all.push(json!([mask, attend]));
    }
    if let (Some(all), true) = (all.as_array_mut(), with_template) {
        // A prompt with its completion needs none.
        all.push(json!(
            tokenizer.chat_template().map(ChatTemplate::digest).ok()
        ));
    }
    Ok(digest::of_text(&all.to_string()))
}

fn name_of(pack: Pack) -> &'static str {
    match pack {
        Pack::Auto | Pack::Stream => "stream",
        Pack::Documents => "documents",
        Pack::Whole => "whole",
    }
}

fn of_sources(sources: &DataSources) -> Result<Vec<Value>> {
    let mut entries = Vec::new();
    for (spec, corpus) in sources.entries() {
        let mut parameters =
            serde_json::to_value(corpus).map_err(|e| Error::Internal(format!("a corpus: {e}")))?;
        if let Some(object) = parameters.as_object_mut() {
            object.remove("path");
            // What is not set decides nothing.
            object.retain(|_, value| !value.is_null());
        }
        let files: Vec<String> = corpus
            .files()
            .iter()
            .map(|path| digest::of_data_file(path))
            .collect::<Result<_>>()?;
        entries.push(json!([spec.weight, spec.range, parameters, files]));
    }
    Ok(entries)
}
