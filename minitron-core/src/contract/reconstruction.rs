use std::fmt::Debug;

use crate::error::Result;
use crate::reconstruct::StudentEditor;

/// Repairs a pruned model in closed form, without training.
///
/// # Law
/// Shapes stay; a plan that removes nothing changes nothing, byte for byte; values are finite. The framework checks.
#[typetag::serde(tag = "type")]
pub trait Reconstruction: Debug + Send + Sync {
    /// Reads the student, its teacher and, where it needs any, calibration text from the editor, and replaces weights.
    ///
    /// # Errors
    /// `Recipe` where the family, the plan or the options leave nothing to work with.
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()>;
}
