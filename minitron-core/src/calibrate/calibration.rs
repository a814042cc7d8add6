use std::ops::Range;

use crate::progress::Progress;
use crate::windows::{Task, Windows};

/// What a pass runs over.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'a> {
    /// The text.
    pub windows: &'a Windows,
    /// What the model is asked to predict, where something needs predictions.
    pub task: Option<Task>,
    /// Windows per forward pass.
    pub batch_size: usize,
    /// Where to report.
    pub progress: &'a dyn Progress,
}

impl Calibration<'_> {
    /// Runs of windows, one a forward pass.
    pub fn batches(&self) -> Vec<Range<usize>> {
        self.windows.batches(self.batch_size)
    }
}
