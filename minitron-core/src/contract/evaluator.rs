use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::error::Result;
use crate::model::Transformer;
use crate::progress::Progress;
use crate::windows::Tokenize;
use crate::windows::Windows;

/// Named results.
pub type Measurements = BTreeMap<String, f64>;

/// What is evaluated, and what it may be compared with.
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Transformer,
    /// Its teacher.
    pub teacher: Option<&'a Transformer>,
    /// Teacher's residual channels that the model kept, where it was pruned: for comparing hidden states.
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

/// A measurement.
///
/// # Law
/// Finite values; the same subject gives the same values, whatever the batch size (1e-5 relative), apart from times and
/// rates, whose names end in `_s` or `_per_second`. It prints nothing.
#[typetag::serde(tag = "type")]
pub trait Evaluator: Debug + Send + Sync {
    /// Measures.
    ///
    /// # Errors
    /// `Data` where the subject lacks what is measured on.
    fn evaluate(&self, subject: &Subject) -> Result<Measurements>;
}
