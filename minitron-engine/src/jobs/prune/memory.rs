//! What pruning takes of memory, and where a reconstruction's streams wait when that is bounded.

use std::fs;
use std::path::{Path, PathBuf};

use crate::jobs::context::Context;
use crate::memory::{LIBRARY_BYTES, mib, peak_bytes};
use minitron_core::checkpoint::{TensorSource, WriteOptions};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::plan::Bytes;
use minitron_core::reconstruct::{ROWS_AT_ONCE, last_states_bytes};
use minitron_core::spec::{HIDDEN, ModelFolder, ModelSpec, Param, Role};
use minitron_torch::map_large_tensors;

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
pub(crate) struct WaitingRoom(PathBuf);

impl WaitingRoom {
    /// Empty, of this process alone.
    ///
    /// # Errors
    /// `Io` where it cannot be made.
    pub fn open(context: &Context, out: Option<&Path>) -> Result<Self> {
        // Layers come and go: what each leaves free between others would stay.
        map_large_tensors();
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

/// What texts take at most beside the program, while streams and replaced weights wait in a folder.
pub(crate) struct Forecast {
    /// A layer as it was turned, and the basis; nothing where nothing is reconstructed.
    turned: u64,
    /// A batch on its way through a layer, the layer of teacher and student, and sums.
    pass: u64,
    /// What is solved with them or finds the basis, refits a head, or compares logits.
    squares: u64,
    /// A batch of held-out text on its way, or what makes logits of both.
    held_out: u64,
    n_tokens: u64,
}

/// Sums, copies and factors of squares that exist at once: all tokens and those held out, their
/// difference, the ridged one and its Cholesky factor.
const SOLVED: u64 = 5;
/// Covariance, what readers need of it, their roots, eigenvectors and libtorch's room for them.
const BASIS: u64 = 14;
/// Logits of some rows in f32, of both models, their logarithms and what compares them.
const LOGITS: u64 = 6;
const CHUNK_BYTES: u64 = 32 << 20;
/// Rows of a weight that are refitted together.
const ROWS: u64 = ROWS_AT_ONCE as u64;

impl Forecast {
    /// From sizes alone: N tokens a batch of the calibration text and of held-out text, E channels,
    /// K of them kept, C inputs of the widest writer.
    pub fn new(
        context: &Context,
        (source, student): (&ModelFolder, &ModelSpec),
        (n, n_held_out): (Option<u64>, Option<u64>),
    ) -> Self {
        let spec = &source.spec;
        let element = context.kind.elt_size_in_bytes() as u64;
        let (hidden, kept) = (spec.size(HIDDEN) as u64, student.size(HIDDEN) as u64);
        let (inside, width) = (widest(spec, ModelSpec::held_inside), writers(student));
        let layer = |spec| widest(spec, ModelSpec::n_layer_params);
        let stored = stored_bytes(source);
        let (turned, basis) = match kept < hidden && n.is_some() {
            true => (
                layer(spec) * stored + 2 * 8 * hidden * hidden,
                8 * (BASIS * hidden * hidden + 2 * ROWS * hidden),
            ),
            false => (0, 0),
        };
        let of_token = 16 * hidden + inside + inside / 4 + 2 * (width + hidden);
        // All of them and those held out in f64, those of a batch in f32.
        let sums = (2 * 8 + 4) * (width * width + width * kept).max(kept * kept + hidden * kept);
        // A tensor of a layer stands beside itself in f64, and as it was turned there.
        let opened = 3 * 8 * largest(source);
        let layers = (layer(spec) + layer(student)) * element + opened;
        let pass = n.map_or(0, |n| n * of_token * 4 + layers + sums);
        let square = |c: u64, r: u64| 8 * (SOLVED * c * c + 6 * c * r);
        let head = match student.has_own_head() {
            true => 3 * stored * rows_of_head(student) * kept,
            false => 8 * 8 * hidden * hidden,
        };
        let readers = square(kept, hidden) + ROWS * 8 * 2 * (hidden + kept) + head;
        let squares = square(width, kept).max(readers).max(basis);
        let vocab = spec.options.vocab as u64;
        let compared = last_states_bytes(n.unwrap_or(0), (hidden, kept), vocab);
        let squares = squares.max(compared);
        let heads = vocab * (hidden + kept) * (element + stored);
        let logits = heads + LOGITS * CHUNK_BYTES;
        Forecast {
            turned,
            pass,
            squares: n.map_or(0, |_| squares),
            held_out: n_held_out.map_or(0, |n| n * of_token * 4 + layers.max(logits)),
            n_tokens: n.max(n_held_out).unwrap_or(0),
        }
    }

    /// Refuses a limit that it does not fit.
    ///
    /// # Errors
    /// `Recipe` with what is needed.
    pub fn check(&self, context: &Context, Bytes(given): Bytes) -> Result<()> {
        let taken = peak_bytes().saturating_add(LIBRARY_BYTES);
        let most = self.pass.max(self.squares).max(self.held_out);
        let at_work = self.turned.saturating_add(most);
        let needed = taken.saturating_add(at_work);
        if needed <= given {
            context
                .progress
                .note(&format!("memory: at most {}", mib(needed)));
            return Ok(());
        }
        let of_held_out = match self.held_out {
            0 => String::new(),
            held_out => format!(" or {} for held-out text", mib(held_out)),
        };
        Err(Error::Recipe(format!(
            "max_memory: reconstructing this model needs {} ({} for the program, {} for a turned \
             layer, then {} for a batch of {} tokens in its widest layer or {} for what is \
             solved{of_held_out}), {} were given; a smaller --batch-size needs less, \
             --reconstruct none least",
            mib(needed),
            mib(taken),
            mib(self.turned),
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
    let roles: Vec<_> = parts
        .flat_map(|part| {
            let ports = part.mixer.ports();
            ports.writer.into_iter().chain(ports.of_units)
        })
        .map(|writer| writer.role)
        .collect();
    let params = spec.params.iter();
    let writers = params.filter(|param| param.sides.len() > 1 && roles.contains(&param.role));
    let hidden = spec.size(HIDDEN).max(1) as u64;
    // Of experts in one tensor, one at a time.
    let n_at_once = |param: &Param| match param.sides.as_slice() {
        [experts, _, _] => spec.len(experts).max(1) as u64,
        _ => 1,
    };
    writers
        .map(|param| elements(spec, param) / hidden / n_at_once(param))
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

/// Of an element of the widest stored type.
fn stored_bytes(folder: &ModelFolder) -> u64 {
    let infos = folder.spec.params.iter();
    let infos = infos.filter_map(|param| folder.checkpoint.tensors.info(&param.name()));
    let bits = infos.map(|info| info.dtype.bitsize()).max().unwrap_or(32);
    bits.div_ceil(8) as u64
}

fn rows_of_head(spec: &ModelSpec) -> u64 {
    let of_head = spec.params.iter().filter(|param| param.role == Role::HEAD);
    let hidden = spec.size(HIDDEN).max(1) as u64;
    of_head
        .map(|param| elements(spec, param) / hidden)
        .max()
        .unwrap_or(0)
}
