//! What every job that reads text is told about it.

use std::str::FromStr;

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::Moment;
use minitron_core::error::{Error, Result};

/// How files are read, and how what they hold becomes windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default)]
pub struct TextOptions {
    /// Field of JSON lines, column of Parquet files [default: text]
    #[arg(long)]
    pub field: Option<String>,
    /// How records hold conversations: messages, sharegpt, prompt_completion or alpaca [default:
    /// recognised]
    #[arg(long)]
    pub form: Option<String>,
    /// Element type of .bin files: u16 or u32 [default: u16]
    #[arg(long)]
    pub token_type: Option<String>,
    /// How documents become windows: stream (joined, cut at --seq-len), documents (one window
    /// each), whole (as many whole ones as a window has room for) or auto (whole for conversations,
    /// stream for the rest).
    #[arg(long, default_value = "auto")]
    pub pack: Pack,
    /// Which tokens are learned and measured: none (all of them) or answers (what the assistant
    /// says).
    #[arg(long, default_value = "none")]
    pub mask: LossMask,
    /// How far attention reaches: window, or documents (inside each document of a window alone).
    #[arg(long, default_value = "window")]
    pub attend: Attend,
    /// The day that chat templates write where they ask for one, 2026-11-28 [default: today]
    #[arg(long)]
    pub date: Option<String>,
}

impl TextOptions {
    /// The time that chat templates write.
    ///
    /// # Errors
    /// `Recipe` for a date that is none.
    pub fn now(&self) -> Result<Option<Moment>> {
        self.date
            .as_deref()
            .map(|date| date.parse::<Moment>().map_err(|e| e.at("date")))
            .transpose()
    }

    /// Refuses what an encoder, whose windows stand between special tokens and are masked at
    /// random, cannot take.
    pub(super) fn check(&self, is_encoder: bool) -> Result<()> {
        let asked = match (self.mask, self.attend) {
            (LossMask::Answers, _) => "mask: answers",
            (_, Attend::Documents) => "attend: documents",
            _ => return Ok(()),
        };
        match is_encoder {
            true => Err(Error::Recipe(format!(
                "{asked}: for causal models; an encoder predicts masked tokens, leave it out"
            ))),
            false => Ok(()),
        }
    }

    /// What corpora are told.
    pub(super) fn corpus_params(&self) -> Vec<(&'static str, String)> {
        let params = [
            ("field", &self.field),
            ("form", &self.form),
            ("token_type", &self.token_type),
        ];
        params
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.clone()?)))
            .collect()
    }
}

/// How documents become windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pack {
    /// `whole` where the first document is a conversation or answers alone count, else `stream`.
    #[default]
    Auto,
    /// All documents in one stream, cut into windows of one length without overlap.
    Stream,
    /// Each document a window of its own, cut at that length: for short records that each begin at
    /// the first position.
    Documents,
    /// As many whole documents in a window as it has room for. A longer conversation is cut where a
    /// turn ends, or where a window is full if its template cannot tell.
    Whole,
}

impl FromStr for Pack {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Pack::Auto),
            "stream" => Ok(Pack::Stream),
            "documents" => Ok(Pack::Documents),
            "whole" => Ok(Pack::Whole),
            other => Err(Error::unknown(
                "way to pack",
                other,
                ["auto", "stream", "documents", "whole"],
            )),
        }
    }
}

/// Which tokens of a text are learned and measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossMask {
    /// All of them.
    #[default]
    None,
    /// What the assistant says in conversations, or the completion after a prompt. Text without
    /// either is refused.
    Answers,
}

impl FromStr for LossMask {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(LossMask::None),
            "answers" => Ok(LossMask::Answers),
            other => Err(Error::unknown("mask", other, ["none", "answers"])),
        }
    }
}

/// How far attention reaches in a window that holds several documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attend {
    /// To all that stands before in the window, as in pre-training.
    #[default]
    Window,
    /// Inside each document alone, whose positions begin at zero, as if it had the window to
    /// itself. Its first token is predicted by none.
    Documents,
}

impl FromStr for Attend {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "window" => Ok(Attend::Window),
            "documents" => Ok(Attend::Documents),
            other => Err(Error::unknown(
                "reach of attention",
                other,
                ["window", "documents"],
            )),
        }
    }
}
