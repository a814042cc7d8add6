//! One part of a layer of a student: what it reads and writes with.

use super::editor::StudentEditor;
use crate::error::{Error, Result};
use crate::spec::{At, Sublayer, Writer};

/// A part of a layer of the student.
pub(super) struct Half<'p> {
    pub layer_idx: usize,
    pub number: usize,
    pub at: At,
    pub part: &'p Sublayer,
    pub is_last: bool,
}

impl Half<'_> {
    /// Its projections that write to the stream, linear in it: that of all tokens, and those of its
    /// equal parts.
    pub fn writers(&self) -> (Option<Writer>, Option<Writer>) {
        if self.part.post.is_some() {
            return (None, None);
        }
        let ports = self.part.mixer.ports();
        (ports.writer, ports.of_units)
    }
}

impl StudentEditor<'_> {
    /// Whether nothing is removed from a layer up to this part of it.
    pub(super) fn is_whole_up_to(&self, at: At) -> bool {
        let spec = self.teacher_spec();
        let Some((layer, last)) = at.place() else {
            return false;
        };
        let params = spec.params_in(Some(layer));
        let up_to = params.filter(|param| param.at.place().is_some_and(|(_, part)| part <= last));
        let mut dims = up_to.flat_map(|param| param.sides.iter().flat_map(|side| side.dims()));
        dims.all(|dim| self.kept(dim).len() == spec.dims.get(dim).map_or(0, |dim| dim.size))
    }

    /// Refuses families whose writers are not linear in the residual stream.
    ///
    /// # Errors
    /// `Recipe` with the reason.
    pub fn check_writers(&self, advice: &str) -> Result<()> {
        let parts = self.spec().layers.iter().flat_map(|layer| &layer.0);
        let Some(part) = parts.into_iter().find(|part| part.post.is_some()) else {
            return Ok(());
        };
        Err(Error::Recipe(format!(
            "`{}` has a norm after the output projection of its {}, so what it adds to the \
             residual stream is not linear in its weights and cannot be fitted; {advice}",
            self.spec().architecture,
            part.mixer.name()
        )))
    }
}
