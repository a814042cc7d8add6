//! Errors by blame: the variant says whose fault it is, the text what was expected, what was found
//! and what to do.

use std::panic::Location;
use std::path::{Path, PathBuf};

use tch::TchError;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the user asked for cannot be meant: an unknown name, a bad flag, an output that is
    /// already there.
    #[error("recipe: {0}")]
    Recipe(String),
    /// A model folder is damaged, incomplete or of an unsupported kind.
    #[error("checkpoint: {}: {message}", path.display())]
    Checkpoint {
        /// File or folder at fault.
        path: PathBuf,
        /// Expected, found, next step.
        message: String,
    },
    /// The sizes asked for cannot be reached by any student of this family.
    #[error("plan: {0}")]
    Plan(String),
    /// A plugin broke the law of its contract.
    #[error("plugin: `{tag}` ({origin}): {message}")]
    Plugin {
        /// Tag of the plugin.
        tag: String,
        /// Crate or library that it comes from.
        origin: String,
        /// The law, and how it was broken.
        message: String,
    },
    /// Text, token or task files do not hold what is needed.
    #[error("data: {0}")]
    Data(String),
    /// A tensor operation failed; `op` is the place in our code.
    #[error("torch: {op}: {message}")]
    Torch {
        /// Source file and line of the call.
        op: String,
        /// First line of libtorch's message.
        message: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder at fault.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Processes at one job do not reach each other, or do not agree.
    #[error("ranks: {0}")]
    Ranks(String),
    /// Our bug: no input should lead here.
    #[error("internal error, a bug in minitron: {0}")]
    Internal(String),
    /// Another error, with the place in the recipe or run that it belongs to.
    #[error("{place}: {source}")]
    At {
        /// For example `stages[2] (prune)`.
        place: String,
        /// The error itself.
        #[source]
        source: Box<Error>,
    },
}

impl Error {
    /// A damaged or unsupported model folder.
    pub fn checkpoint(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Checkpoint {
            path: path.as_ref().to_path_buf(),
            message: message.into(),
        }
    }

    /// A refusal of the operating system.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// An unknown name, answered with the known ones.
    pub fn unknown<'a>(kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        Error::Recipe(format!(
            "no {kind} is called `{name}`; known: {}",
            known.join(", ")
        ))
    }

    /// The error with the place it belongs to in front.
    pub fn at(self, place: impl Into<String>) -> Self {
        Error::At {
            place: place.into(),
            source: Box::new(self),
        }
    }

    /// Whose fault it is, in one word: the variant's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Recipe(_) => "recipe",
            Error::Checkpoint { .. } => "checkpoint",
            Error::Plan(_) => "plan",
            Error::Plugin { .. } => "plugin",
            Error::Data(_) => "data",
            Error::Torch { .. } => "torch",
            Error::Io { .. } => "io",
            Error::Ranks(_) => "ranks",
            Error::Internal(_) => "internal",
            Error::At { source, .. } => source.kind(),
        }
    }

    /// File or folder at fault, where it is known.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Checkpoint { path, .. } | Error::Io { path, .. } => Some(path),
            Error::At { source, .. } => source.path(),
            _ => None,
        }
    }

    /// Places in the recipe or run, outer ones first; none where the error names none.
    pub fn place(&self) -> Option<String> {
        let Error::At { place, source } = self else {
            return None;
        };
        Some(
            source
                .place()
                .map_or_else(|| place.clone(), |inner| format!("{place}: {inner}")),
        )
    }

    /// What is said besides the kind, the path and the place.
    pub fn message(&self) -> String {
        match self {
            Error::Recipe(message)
            | Error::Plan(message)
            | Error::Data(message)
            | Error::Ranks(message)
            | Error::Internal(message) => message.clone(),
            Error::Checkpoint { message, .. } => message.clone(),
            Error::Plugin {
                tag,
                origin,
                message,
            } => format!("`{tag}` ({origin}): {message}"),
            Error::Torch { op, message } => format!("{op}: {message}"),
            Error::Io { source, .. } => source.to_string(),
            Error::At { source, .. } => source.message(),
        }
    }

    /// Whether the operating system refused something, wherever that was.
    pub fn is_of_the_system(&self) -> bool {
        match self {
            Error::Io { .. } => true,
            Error::At { source, .. } => source.is_of_the_system(),
            _ => false,
        }
    }

    /// Whether the request itself was wrong (exit code 2) rather than its execution (exit code 1).
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Recipe(_) | Error::Plan(_) => true,
            Error::At { source, .. } => source.is_usage(),
            _ => false,
        }
    }
}

impl From<TchError> for Error {
    #[track_caller]
    fn from(error: TchError) -> Self {
        let place = Location::caller();
        let text = error.to_string();
        let line = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("Internal torch error: ");
        Error::Torch {
            op: format!("{}:{}", place.file(), place.line()),
            message: line.to_owned(),
        }
    }
}

/// What is there unless this program is wrong.
pub trait Present<T> {
    /// `slice.get(idx).present("a window of the block")?`: a mistake of ours is an error, never
    /// another value.
    fn present(self, what: &str) -> Result<T>;
}

impl<T> Present<T> for Option<T> {
    fn present(self, what: &str) -> Result<T> {
        self.ok_or_else(|| Error::Internal(format!("expected {what}, and there is none")))
    }
}

/// Adds the path to an I/O error.
pub trait IoContext<T> {
    /// `read(path).at_path(path)?`
    fn at_path(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at_path(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(path, source))
    }
}
