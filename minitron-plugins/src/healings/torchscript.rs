use std::path::PathBuf;

use minitron_core::contract::Healing;
use minitron_core::error::{Error, Result};
use minitron_core::heal::Patient;
use minitron_core::spec::{HIDDEN, MLP, Role, Slot, dim_of_layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{IValue, Tensor};

use crate::script::Script;

/// A repair of the MLPs' second projections written in PyTorch: `forward(student_ef, teacher_ef, kept_e, kept_f) -> weight_ef` of a
/// module that `torch.jit.script` saved, layer by layer. The student's weight [E, F] and the teacher's whole one in
/// f64, and which of the teacher's rows and columns the student has; the result replaces the student's.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Torchscript {
    /// The file.
    pub path: PathBuf,
    #[serde(skip)]
    script: Script,
}

minitron_core::plugin! {
    Healing for Torchscript {
        tag: "torchscript",
        summary: "a repair of second projections from a TorchScript file",
        source: "the file's author",
    }
}

#[typetag::serde(name = "torchscript")]
impl Healing for Torchscript {
    fn heal(&self, patient: &mut Patient) -> Result<()> {
        if patient.is_whole() {
            return Ok(());
        }
        for layer in 0..patient.n_layers() {
            let Some(at) = patient.spec().part_with(layer, Role::DOWN) else { continue };
            let student_ef = patient.read(at, Role::DOWN, Slot::Weight)?;
            let teacher_ef = patient.read_teacher(at, Role::DOWN, Slot::Weight)?;
            let kept = |dim: &str| {
                let kept: Vec<i64> = patient.kept(dim).iter().map(|&unit| unit as i64).collect();
                Tensor::f_from_slice(&kept)
            };
            let (kept_e, kept_f) = (kept(HIDDEN)?, kept(&dim_of_layer(MLP, patient.source_layer(layer)))?);
            let shape = student_ef.size();
            let arguments = [student_ef, teacher_ef, kept_e, kept_f].map(IValue::Tensor);
            let healed_ef = tch::no_grad(|| self.script.call(&self.path, "forward", &arguments))?;
            if healed_ef.size() != shape {
                let message = format!("expected a weight of {shape:?}, got {:?}", healed_ef.size());
                return Err(Error::Data(format!("{}: `forward`: {message}", self.path.display())));
            }
            patient.replace(at, Role::DOWN, Slot::Weight, &healed_ef)?;
        }
        Ok(())
    }
}
