use crate::model::Transformer;
use crate::progress::Progress;
use crate::windows::{Tokenize, Windows};

/// What is evaluated, and what it may be compared with.
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its teacher.
    pub teacher: Option<&'a Transformer>,
    /// Teacher's residual channels that the model kept, where it was pruned: for comparing hidden
    /// states.
    pub kept_hidden: Option<&'a [usize]>,
    /// Held-out windows.
    pub windows: Option<&'a Windows>,
    /// The model's tokenizer.
    pub tokenizer: Option<&'a dyn Tokenize>,
    /// Windows, or sequences, per batch.
    pub batch_size: usize,
    /// Seed of whatever is drawn.
    pub seed: u64,
    /// Where to report progress.
    pub progress: &'a dyn Progress,
}
