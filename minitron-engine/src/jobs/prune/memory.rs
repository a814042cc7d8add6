//! What pruning takes of memory, and where a reconstruction's streams wait when that is bounded.

use std::fs;
use std::path::{Path, PathBuf};

use crate::jobs::context::Context;
use crate::memory::{LIBRARY_BYTES, mib, peak_bytes};
use minitron_core::checkpoint::{TensorSource, WriteOptions};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::plan::Bytes;
use minitron_core::spec::{HIDDEN, ModelFolder, ModelSpec, Param, Role};

/// How to write within a limit: what the process takes by now, and chunks of rows, which the
/// source's rows bound.
///
/// # Errors
/// `Recipe` when the smallest chunks do not fit.
pub(super) fn within(limit: Option<Bytes>, source: &dyn TensorSource) -> Result<WriteOptions> {
    let Some(Bytes(given)) = limit else {
        return Ok(WriteOptions::default());
    };
    let taken = peak_bytes();
    WriteOptions::within(given.saturating_sub(taken), source).map_err(|least| {
        let needed = mib(taken.saturating_add(least));
        Error::Recipe(format!(
            "max_memory: pruning this model needs {needed} ({} for the program, {} to copy rows), \
             {} were given; give {needed} or more",
            mib(taken),
            mib(least),
            mib(given),
        ))
    })
}

/// A folder beside the output in which streams and replaced weights wait; taken away with this.
#[derive(Debug)]
pub(super) struct WaitingRoom(PathBuf);

impl WaitingRoom {
    /// Empty, of this process alone.
    ///
    /// # Errors
    /// `Io` where it cannot be made.
    pub fn open(context: &Context, out: Option<&Path>) -> Result<Self> {
        let rank = context.ranks.rank();
        let place = match out {
            Some(out) => {
                let name = out.file_name().unwrap_or_default().to_string_lossy();
                out.with_file_name(format!(".{name}.reconstructed-{rank}"))
            }
            None => std::env::temp_dir().join(format!("minitron-{}", std::process::id())),
        };
        if place.exists() {
            fs::remove_dir_all(&place).at_path(&place)?;
        }
        fs::create_dir_all(&place).at_path(&place)?;
        Ok(WaitingRoom(place))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WaitingRoom {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a reconstruction takes at most beside the program, while streams and replaced weights wait
/// in a folder.
pub(super) struct Forecast {
    /// A batch on its way through a layer, and the larger layer of teacher and student.
    pass: u64,
    /// Sums over tokens and what is solved with them.
    squares: u64,
    n_tokens: u64,
}

/// Sums, copies and factors of squares that exist at once: all tokens and those held out, their
/// difference, the ridged one and its Cholesky factor.
const SOLVED: u64 = 5;
/// Covariance, what readers need of it, their roots, eigenvectors and libtorch's room for them.
const BASIS: u64 = 14;
/// Rows of a weight that are refitted together.
const ROWS: u64 = 8192;

impl Forecast {
    /// From sizes alone. The numbers are those of the code: N tokens a batch, E channels, K of
    /// them kept, C inputs of the widest writer.
    pub fn new(context: &Context, (source, student): (&ModelFolder, &ModelSpec), n: u64) -> Self {
        let spec = &source.spec;
        let element = context.kind.elt_size_in_bytes() as u64;
        let (hidden, kept) = (spec.size(HIDDEN) as u64, student.size(HIDDEN) as u64);
        let (inside, width) = (
            widest(spec, |spec, layer| spec.held_inside(layer)),
            writers(student),
        );
        let layer = |spec| widest(spec, ModelSpec::n_layer_params);
        let of_token = 16 * hidden + inside + inside / 4 + 2 * (width + hidden);
        // A turned layer is held as it is stored, and one of its tensors in f64 before.
        let stored = largest(source);
        let turned = match kept < hidden {
            true => layer(spec) * 4 + 3 * 8 * stored + 2 * 8 * hidden * hidden,
            false => 2 * 8 * stored,
        };
        let pass = n * of_token * 4 + (layer(spec) + layer(student)) * element + turned;
        let square = |c: u64, r: u64| 8 * (SOLVED * c * c + 6 * c * r);
        let readers = square(kept, hidden) + ROWS * 8 * 2 * (hidden + kept);
        let basis = match kept < hidden {
            true => 8 * (BASIS * hidden * hidden + 2 * ROWS * hidden),
            false => 0,
        };
        let squares = square(width, kept).max(readers).max(basis);
        let head = student
            .has_own_head()
            .then(|| rows_of_head(student) * kept * element * 2);
        Forecast {
            pass,
            squares: squares + head.unwrap_or(0),
            n_tokens: n,
        }
    }

    /// Refuses a limit that it does not fit.
    ///
    /// # Errors
    /// `Recipe` with what is needed.
    pub fn check(&self, context: &Context, Bytes(given): Bytes) -> Result<()> {
        let taken = peak_bytes().saturating_add(LIBRARY_BYTES);
        let needed = taken.saturating_add(self.pass).saturating_add(self.squares);
        if needed <= given {
            context
                .progress
                .note(&format!("memory: at most {}", mib(needed)));
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "max_memory: reconstructing this model needs {} ({} for the program, {} for a batch of \
             {} tokens in its widest layer, {} for sums of squares and what is solved with them), \
             {} were given; a smaller --batch-size needs less, --reconstruct none least",
            mib(needed),
            mib(taken),
            mib(self.pass),
            self.n_tokens,
            mib(self.squares),
            mib(given)
        )))
    }
}

fn widest(spec: &ModelSpec, of: impl Fn(&ModelSpec, usize) -> u64) -> u64 {
    let layers = 0..spec.n_layers();
    layers.map(|layer| of(spec, layer)).max().unwrap_or(0)
}

/// Inputs of the widest projection that writes to the stream.
fn writers(spec: &ModelSpec) -> u64 {
    let parts = spec.layers.iter().flat_map(|layer| &layer.0);
    let roles: Vec<_> = parts.map(|part| part.mixer.ports().writer).collect();
    let params = spec.params.iter();
    let writers = params.filter(|param| param.sides.len() > 1 && roles.contains(&param.role));
    let hidden = spec.size(HIDDEN).max(1) as u64;
    writers
        .map(|param| elements(spec, param) / hidden)
        .max()
        .unwrap_or(0)
}

fn elements(spec: &ModelSpec, param: &Param) -> u64 {
    let sides = param.sides.iter().map(|side| spec.len(side) as u64);
    sides.fold(1, u64::saturating_mul)
}

/// Elements of the largest tensor of a layer.
fn largest(folder: &ModelFolder) -> u64 {
    let params = folder.spec.params.iter();
    let of_layers = params.filter(|param| param.layer().is_some());
    of_layers
        .map(|param| elements(&folder.spec, param))
        .max()
        .unwrap_or(0)
}

fn rows_of_head(spec: &ModelSpec) -> u64 {
    let of_head = spec.params.iter().filter(|param| param.role == Role::HEAD);
    let hidden = spec.size(HIDDEN).max(1) as u64;
    of_head
        .map(|param| elements(spec, param) / hidden)
        .max()
        .unwrap_or(0)
}
