//! `search`.

use std::path::PathBuf;

use clap::Args;
use minitron_core::plan::Count;
use minitron_engine::data::DataSpec;
use minitron_engine::search::SearchOptions;

/// `search`
#[derive(Debug, Args)]
pub struct Search {
    #[command(flatten)]
    pub options: SearchOptions,
    /// Sizes to try, KIND=LIST: `layers=29-32`, `heads=24,32,48`, `hidden=2560-4608/512`,
    /// `mlp_factor=2.5,3` (of the hidden width) [default: all legal widths and heads]
    #[arg(long)]
    pub grid: Vec<String>,
    /// The same for several kinds, as `prune` has it: `mlp=96,heads=2,4`
    #[arg(long, value_name = "DIM=N,…")]
    pub size: Vec<String>,
    /// Which metric decides where two scored an axis: LABEL, or KIND=LABEL
    #[arg(long = "by")]
    pub by: Vec<String>,
    /// Training text: FILE, FILE#a..b for some of its documents, or WEIGHT*FILE, each, for a
    /// mixture
    #[arg(long, num_args = 1.., required_unless_present = "dry_run")]
    pub data: Vec<DataSpec>,
    /// Tokens that a candidate that stays to the end is trained on, for example 5M
    #[arg(long, required_unless_present = "dry_run")]
    pub tokens: Option<Count>,
    /// Folder of search.json, candidates/ and winner/
    #[arg(long, required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Count and list the candidates, from sizes alone
    #[arg(long)]
    pub dry_run: bool,
    /// Go on where an interrupted search was, to the same result as without the interruption
    #[arg(long)]
    pub resume: bool,
    /// Replace an existing output
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
}
