//! Units of dropped layers in the place of a kept layer's own, as data.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// Units that a layer of the student took from a dropped layer of its teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TakenUnits {
    /// The layer, in the student's numbering.
    pub layer: usize,
    /// The part of it.
    pub part: usize,
    /// The dropped layer, in the teacher's numbering.
    pub from: usize,
    /// By kind of dim.
    pub units: BTreeMap<String, Replaced>,
}

/// What a student has of its teacher's units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptUnits {
    /// Those that its plan keeps.
    pub plan: Plan,
    /// Those of dropped layers that stand in the place of some of them.
    pub taken: Vec<TakenUnits>,
}

impl From<Plan> for KeptUnits {
    fn from(plan: Plan) -> Self {
        KeptUnits {
            plan,
            taken: Vec::new(),
        }
    }
}

/// Which units stand where; both ascend and are equally many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Replaced {
    /// Units of the student.
    pub places: Vec<usize>,
    /// Units of the dropped layer.
    pub units: Vec<usize>,
}
