use std::path::PathBuf;

use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{IValue, Tensor};

use super::layer_map::Layers;
use crate::script::Script;

/// A loss on states written in PyTorch: `forward(student_nc, teacher_nc) -> scalar` of a module
/// that `torch.jit.script` saved. N tokens, without padding; C channels of the states after a
/// layer, as the next norm gives them out. Gradients go through it.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TorchscriptStates {
    /// The file.
    pub path: PathBuf,
    /// `last_but_two`, `last`, `uniform`, or pairs teacher:student counted from 0 such as `29:13
    /// 31:15`, between spaces or +.
    #[schemars(with = "String")]
    pub layers: Layers,
    #[serde(skip)]
    script: Script,
}

minitron_core::plugin! {
    StateLoss for TorchscriptStates {
        tag: "torchscript_states",
        summary: "a loss on states from a TorchScript file",
        source: "the file's author",
    }
}

#[typetag::serde(name = "torchscript_states")]
impl StateLoss for TorchscriptStates {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        self.layers
            .pairs("torchscript_states", models, |model, layer| {
                Ok(model.normed_output(layer))
            })
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        let rows = [student.rows()?, teacher.rows()?.f_detach()?];
        self.script
            .call(&self.path, "forward", &rows.map(IValue::Tensor))
    }
}
