//! What lies in the folders of finished and of running jobs, as data: a page or a terminal draws
//! it.
//!
//! Nothing here runs a model or changes a file. Folders are read leniently: what is missing is left
//! out, what is damaged is named in [`Folder::notes`], and a last line that is being written is
//! skipped.

mod comparison;
mod folder;
mod gather;
mod inputs;
mod maps;
mod markdown;
mod pruning;
mod repeat;
mod search;
mod training;
mod units;
mod warned;
mod watch;

pub use comparison::{
    CheckReport, ColumnReport, Comparison, MeasuredReport, RatioPoint, RatioReport, RowReport,
};
pub use folder::{EvaluationReport, Folder, FolderKind, SampleReport, StageSummary};
pub use gather::gather;
pub use maps::{HeatMap, HeatRow};
pub use markdown::comparison_markdown;
pub use pruning::{CutSummary, Pruning, SizeChange};
pub use repeat::Repeat;
pub use search::{
    CandidateReport, CorrelationReport, GridReport, RungReport, SearchReport, SharedTeacherReport,
    Sizes, TargetReport, WinnerReport, ZeroShotReport,
};
pub use training::{Point, TermReport, TrainingReport};
pub use units::{bytes, grouped, in_units, number, percent, spread};
pub use warned::Warned;
pub use watch::{JobProgress, StageProgress, StageState, watch};

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

use minitron_core::error::{Error, Result};
use minitron_core::files::read_text;

/// What a folder of each kind is known by.
const RUN: &str = "run.json";
const SEARCH: &str = "search.json";
const COMPARISON: &str = "compare.json";

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::Data(format!("{}: {e}", path.display())))
}

/// A folder's last name, also where it is given as `.`.
fn name_of(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_default();
    let whole = fs::canonicalize(dir).unwrap_or(absolute);
    whole
        .file_name()
        .unwrap_or(whole.as_os_str())
        .to_string_lossy()
        .into_owned()
}
