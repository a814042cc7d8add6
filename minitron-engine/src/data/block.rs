//! Blocks of windows that are shuffled as a whole, and what they are made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::documents::{DataSources, DocumentPosition};
use super::order::shuffle;
use super::text_options::Pack;
use super::tokenise::Wants;
use super::tokenizer::Tokenizer;
use minitron_core::windows::Windows;

/// Documents, and how they become blocks.
#[derive(Debug)]
pub(super) struct Source {
    pub sources: DataSources,
    pub tokenizer: Arc<Tokenizer>,
    /// Never `auto`.
    pub pack: Pack,
    /// What tokenising has to find out.
    pub wants: Wants,
    /// Whether attention stays inside documents.
    pub inside_documents: bool,
    pub seq_len: usize,
    /// Most tokens of a block, special tokens left out.
    pub block_tokens: usize,
    /// Of the order of windows.
    pub seed: u64,
    /// Among the sources of a mixture.
    pub idx: usize,
}

/// Where a block begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Passes over the data before it.
    pub epoch: u64,
    /// Blocks of this epoch before it.
    pub block: u64,
    /// Windows of this epoch before it.
    pub window: u64,
    /// The item with its first token.
    pub place: DocumentPosition,
    /// Tokens of this item that belong to the block before.
    pub n_carried: usize,
}

/// Windows that are visited in one permutation.
#[derive(Debug)]
pub(super) struct TokenBlock {
    pub start: Start,
    pub windows: Arc<Windows>,
    /// Windows in the order of training.
    pub order: Vec<usize>,
    /// Whether it holds a whole epoch, so that all others are this one in another order.
    pub is_epoch: bool,
}

impl TokenBlock {
    pub fn new(
        start: Start,
        windows: Arc<Windows>,
        is_epoch: bool,
        seed: u64,
        source: usize,
    ) -> Self {
        let mut order: Vec<usize> = (0..windows.len()).collect();
        shuffle(&mut order, seed, start.epoch, (source, start.block));
        TokenBlock {
            start,
            windows,
            order,
            is_epoch,
        }
    }
}
