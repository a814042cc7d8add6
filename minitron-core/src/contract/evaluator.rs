use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::error::Result;
use crate::evaluate::Subject;

/// Named results.
pub type Measurements = BTreeMap<String, f64>;

/// A measurement.
///
/// # Law
/// Finite values; the same subject gives the same values, whatever the batch size (1e-5 relative),
/// apart from times and rates, whose names end in `_s` or `_per_second`. It prints nothing.
#[typetag::serde(tag = "type")]
pub trait Evaluator: Debug + Send + Sync {
    /// Measures.
    ///
    /// # Errors
    /// `Data` where the subject lacks what is measured on.
    fn evaluate(&self, subject: &Subject) -> Result<Measurements>;
}
