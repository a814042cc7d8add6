use std::fmt::Debug;

use super::editor::StudentEditor;
use crate::error::{Error, Result};
use crate::plugin_spec::PluginSpec;

/// Repairs a pruned model in closed form, without training.
///
/// # Law
/// Shapes stay; a plan that removes nothing changes nothing, byte for byte; values are finite. The
/// framework checks.
#[typetag::serde(tag = "type")]
pub trait Reconstruction: Debug + Send + Sync {
    /// Whether it looks at calibration text.
    fn needs_text(&self) -> bool {
        true
    }

    /// Reads the student, its teacher and, where it needs any, calibration text from the editor,
    /// and replaces weights.
    ///
    /// # Errors
    /// `Recipe` where the family, the plan or the options leave nothing to work with.
    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()>;
}

impl StudentEditor<'_> {
    /// Applies one reconstruction, and checks its law.
    ///
    /// # Errors
    /// `Plugin` when it changed a student from which nothing was removed.
    pub fn treat(&mut self, reconstruction: &dyn Reconstruction) -> Result<()> {
        let value = serde_json::to_value(reconstruction)
            .map_err(|e| Error::Internal(format!("a reconstruction's parameters: {e}")))?;
        let spec: PluginSpec = serde_json::from_value(value)
            .map_err(|e| Error::Internal(format!("a reconstruction's parameters: {e}")))?;
        let (before, n_before) = (self.tag.clone(), self.reconstructed.len());
        self.tag.clone_from(&spec.tag);
        let _span = tracing::info_span!("reconstruct", name = %spec.tag).entered();
        reconstruction.reconstruct(self)?;
        if self.is_whole() && !self.is_untouched() {
            return Err(self.broken("changed a student from which nothing was removed".into()));
        }
        // One that is made of others is known by them.
        if self.reconstructed.len() == n_before {
            self.reconstructed.push(spec);
        }
        self.tag = before;
        Ok(())
    }
}
