use std::path::PathBuf;

use minitron_core::calibrate::Observation;
use minitron_core::contract::{Importance, Need, Scorer};
use minitron_core::error::Result;
use minitron_core::spec::{DEPTH, PruneGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::{RunScorer, Seen};
use crate::evaluators::multiple_choice::MultipleChoice;

/// Multiple-choice accuracy with one layer, or a contiguous run of `span` layers, removed: the
/// follow-up's criterion for depth (arXiv 2408.11796, on Winogrande), on any task file. The score
/// is 1 − accuracy, so that layers whose loss hurts most stay; with a span above 1 a layer's score
/// is that of the cheapest run that holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskAccuracy {
    /// The `.jsonl` task file.
    pub path: PathBuf,
    /// Layers in a run.
    pub span: usize,
    /// Whether a choice's likelihood is divided by its length in bytes.
    pub normed: bool,
    /// Questions asked, the first ones; all where 0.
    pub questions: usize,
}

impl Default for TaskAccuracy {
    fn default() -> Self {
        TaskAccuracy {
            path: PathBuf::new(),
            span: 1,
            normed: false,
            questions: 0,
        }
    }
}

minitron_core::plugin! {
    Importance for TaskAccuracy {
        tag: "task_accuracy",
        summary: "error on a multiple-choice task without a layer, or a run of layers",
        source: "arXiv 2408.11796 (depth pruning by Winogrande)",
    }
}

#[typetag::serde(name = "task_accuracy")]
impl Importance for TaskAccuracy {
    fn need(&self, group: &PruneGroup) -> Option<Need> {
        (group.kind() == DEPTH).then(|| Need::Measurements {
            span: self.span,
            evaluator: Box::new(MultipleChoice {
                path: self.path.clone(),
                questions: self.questions,
                ..MultipleChoice::default()
            }),
            name: if self.normed { "acc_norm" } else { "acc" },
        })
    }

    fn scorer(&self, group: &PruneGroup) -> Result<Box<dyn Scorer>> {
        RunScorer::boxed("task_accuracy", self.span, group, accuracy, |accuracy| {
            1.0 - accuracy
        })
    }
}

fn accuracy(observation: &Observation) -> Result<Seen> {
    let seen = observation.measured()?;
    Ok((seen.layers.start, seen.value, 1.0))
}
