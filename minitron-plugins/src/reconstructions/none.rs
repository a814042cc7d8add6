use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::reconstruct::StudentEditor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Leaves the student as it was cut, as the paper does: W' = W at the kept units.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct None {}

minitron_core::plugin! {
    Reconstruction for None {
        tag: "none",
        summary: "the plain cut",
        source: "arXiv 2407.14679, section 2.3",
    }
}

#[typetag::serde(name = "none")]
impl Reconstruction for None {
    fn needs_text(&self) -> bool {
        false
    }

    fn reconstruct(&self, _editor: &mut StudentEditor) -> Result<()> {
        Ok(())
    }
}
