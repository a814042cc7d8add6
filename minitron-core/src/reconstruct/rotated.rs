//! A model whose residual stream is turned into another orthonormal basis: the same function, other
//! channels.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::projections::exact;
use crate::checkpoint::{TensorInfo, TensorSource};
use crate::error::{Error, Present, Result};
use crate::spec::{At, HIDDEN, ModelSpec, Param, ParamKind, Part, Role, Side};

/// With Q [E, E] orthogonal and x' = x·Q in place of x:
///
/// ```text
/// tables    T·Q            writers, their biases   Qᵀ·W, Qᵀ·b
/// readers   W·diag(g)·Q    norms                   gain 1, since x / rms(x) turns with x
/// ```
/// where g is the gain of the norm that a reader stands behind. Tied embeddings come apart: the
/// final gain goes into the head. Follows SliceGPT (arXiv 2401.15024, section 3.2).
///
/// A layer norm takes the mean over channels out first. That is done once, by what writes: tables
/// and writers lose their mean over channels before they are turned, x has none any more, and its
/// layer norms are RMS norms. What a norm adds, b, becomes (b / g)·Q.
pub struct RotatedView<'a> {
    source: &'a dyn TensorSource,
    basis_ee: Tensor,
    /// Whether tables and writers lose their mean.
    is_centred: bool,
    entries: BTreeMap<String, RotatedEntry>,
    /// The layer that was read last, as turned: it is asked for in pieces, and more than once.
    last: RefCell<TurnedLayer>,
}

/// Tensors of one layer, by name, in the stored type.
#[derive(Default)]
struct TurnedLayer {
    layer: Option<usize>,
    tensors: BTreeMap<String, Tensor>,
}

struct RotatedEntry {
    source_name: String,
    layer: Option<usize>,
    info: TensorInfo,
    turn: SideTurn,
}

enum SideTurn {
    /// As it is.
    None,
    /// As a gain of 1 is stored.
    Gain(f64),
    /// What a norm adds, behind its gain.
    Shift(Tensor),
    /// Along this side, by what reads the stream behind this gain.
    Reader(usize, Option<Tensor>),
    /// Along this side, by what writes to the stream.
    Writer(usize),
}

impl<'a> RotatedView<'a> {
    /// Works out what happens to each tensor; `rotated` is the model's description with embeddings
    /// untied.
    pub fn new(
        source: &'a dyn TensorSource,
        spec: &ModelSpec,
        rotated: &ModelSpec,
        basis_ee: &Tensor,
    ) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for param in &rotated.params {
            let of_source = match spec.find(param.at, param.role, param.kind) {
                None if param.role == Role::HEAD => {
                    spec.find(At::Model, Role::TOKEN_EMBEDDING, ParamKind::Weight)
                }
                other => other,
            };
            let found = of_source.and_then(|behind| {
                let name = behind.name();
                source.info(&name).map(|info| (name, info))
            });
            let Some((source_name, info)) = found else {
                let message = format!("no tensor behind `{}` to turn", param.name());
                return Err(Error::Internal(message));
            };
            entries.insert(
                param.name(),
                RotatedEntry {
                    source_name,
                    layer: param.layer(),
                    info,
                    turn: turn_of(param, source, spec)?,
                },
            );
        }
        Ok(RotatedView {
            source,
            basis_ee: exact(basis_ee)?,
            is_centred: has_layer_norms(spec),
            entries,
            last: RefCell::default(),
        })
    }

    fn turned(&self, stored: &Tensor, turn: &SideTurn) -> Result<Tensor> {
        let mut x = exact(stored)?;
        let side = match turn {
            SideTurn::None | SideTurn::Gain(_) => return Ok(stored.shallow_clone()),
            SideTurn::Shift(gain_e) => {
                x = shifted(&x, gain_e)?;
                0
            }
            SideTurn::Reader(side, gain_e) => {
                if let Some(gain_e) = gain_e {
                    x = x.f_mul(&along(gain_e, *side, x.dim())?)?;
                }
                *side
            }
            SideTurn::Writer(side) => {
                if self.is_centred {
                    let over = [*side as i64];
                    x = x.f_sub(&x.f_mean_dim(Some(over.as_slice()), true, Kind::Double)?)?;
                }
                *side
            }
        };
        let turned = if side == 0 || side + 1 < x.dim() {
            self.basis_ee.f_transpose(0, 1)?.f_matmul(&x)?
        } else {
            x.f_matmul(&self.basis_ee)?
        };
        Ok(turned.f_to_kind(stored.f_kind()?)?.f_contiguous()?)
    }
}

/// A value for each place of a side.
fn along(gain_e: &Tensor, side: usize, n_sides: usize) -> Result<Tensor> {
    match side + 1 < n_sides {
        true => Ok(gain_e.f_unsqueeze(1)?),
        false => Ok(gain_e.shallow_clone()),
    }
}

/// b / g, 0 where both are.
fn shifted(bias_e: &Tensor, gain_e: &Tensor) -> Result<Tensor> {
    let is_zero = gain_e.f_eq(0.0)?;
    let lost = bias_e
        .f_masked_select(&is_zero)?
        .f_abs()?
        .f_sum(Kind::Double)?;
    if lost.f_double_value(&[])? > 0.0 {
        return Err(Error::Recipe(
            "a layer norm has a gain of 0 at a channel to which it adds something; such a stream \
             cannot be turned: leave the rotation out"
                .into(),
        ));
    }
    let divisor_e = gain_e.f_masked_fill(&is_zero, 1.0)?;
    Ok(bias_e.f_div(&divisor_e)?)
}

impl TensorSource for RotatedView<'_> {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|entry| entry.info.clone())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error::Internal(format!("no tensor `{name}` in the view")))?;
        match &entry.turn {
            SideTurn::None => self.source.read_rows(&entry.source_name, rows),
            SideTurn::Gain(one) => Ok(self
                .source
                .read_rows(&entry.source_name, rows)?
                .f_full_like(*one)?),
            // Tables, whose rows turn each by itself, and of which few may be asked for.
            SideTurn::Reader(1, _) | SideTurn::Writer(1) if entry.layer.is_none() => {
                let rows = self.source.read_rows(&entry.source_name, rows)?;
                self.turned(&rows, &entry.turn)
            }
            turn => {
                let mut last = self.last.borrow_mut();
                if last.layer != entry.layer {
                    last.tensors.clear();
                    last.layer = entry.layer;
                }
                if !last.tensors.contains_key(name) {
                    let whole = self.turned(&self.source.read(&entry.source_name)?, turn)?;
                    last.tensors.insert(name.to_owned(), whole);
                }
                let whole = last.tensors.get(name).present("a tensor that was turned")?;
                let rows = whole.f_narrow(0, rows.start as i64, rows.len() as i64)?;
                Ok(rows.f_contiguous()?)
            }
        }
    }
}

fn turn_of(param: &Param, source: &dyn TensorSource, spec: &ModelSpec) -> Result<SideTurn> {
    if [Role::INPUT_NORM, Role::FINAL_NORM].contains(&param.role) {
        let gain = spec.find(param.at, param.role, ParamKind::Weight);
        let Some(gain) = gain else {
            return Ok(SideTurn::None);
        };
        return Ok(match param.kind {
            ParamKind::Weight => SideTurn::Gain(1.0 - stored_less(spec, gain)),
            ParamKind::Bias => SideTurn::Shift(gain_of(source, spec, gain)?),
        });
    }
    let Some(side) = param.sides.iter().position(is_stream) else {
        return Ok(SideTurn::None);
    };
    let (is_reader, norm) = match param.at.place() {
        None => (param.role == Role::HEAD, Role::FINAL_NORM),
        Some((layer, sublayer)) => {
            let part = spec
                .layers
                .get(layer)
                .and_then(|layer| layer.0.get(sublayer));
            let readers = part.map(|part| part.mixer.ports().readers);
            let is_reader = readers.is_some_and(|readers| readers.contains(&param.role));
            (is_reader, Role::INPUT_NORM)
        }
    };
    if !is_reader {
        return Ok(SideTurn::Writer(side));
    }
    let gain = spec.find(param.at.whole(), norm, ParamKind::Weight);
    let gain_e = gain.map(|gain| gain_of(source, spec, gain)).transpose()?;
    Ok(SideTurn::Reader(side, gain_e))
}

/// What is taken off a gain before it is stored.
fn stored_less(spec: &ModelSpec, gain: &Param) -> f64 {
    let norm = spec.norm_of(gain);
    match norm.is_some_and(|norm| norm.kind.stores_gain_less_one()) {
        true => 1.0,
        false => 0.0,
    }
}

/// A norm's gain in f64.
pub(super) fn gain_of(source: &dyn TensorSource, spec: &ModelSpec, gain: &Param) -> Result<Tensor> {
    let stored_e = exact(&source.read(&gain.name())?)?;
    Ok(stored_e.f_add_scalar(stored_less(spec, gain))?)
}

fn is_stream(side: &Side) -> bool {
    side.0
        .iter()
        .any(|part| matches!(part, Part::Units { dim, .. } if dim == HIDDEN))
}

/// Whether layer norms stand before its parts.
pub(super) fn has_layer_norms(spec: &ModelSpec) -> bool {
    let mut parts = spec.layers.iter().flat_map(|layer| &layer.0);
    parts.any(|part| part.pre.is_some_and(|norm| !norm.kind.is_rms()))
}
