//! A model whose residual stream is turned into another orthonormal basis: the same function, other
//! channels.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::projections::exact;
use crate::checkpoint::{Config, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::spec::{
    At, CheckpointInfo, HIDDEN, ModelSpec, NormKind, Param, ParamKind, Part, Role, Side,
};

/// With Q [E, E] orthogonal and x' = x·Q in place of x:
///
/// ```text
/// tables    T·Q            writers, their biases   Qᵀ·W, Qᵀ·b
/// readers   W·diag(g)·Q    norms                   gain 1, since x / rms(x) turns with x
/// ```
/// where g is the gain of the norm that a reader stands behind. Tied embeddings come apart: the
/// final gain goes into the head. Follows SliceGPT (arXiv 2401.15024, section 3.2), with RMS norms
/// in the model already.
pub struct RotatedView<'a> {
    source: &'a dyn TensorSource,
    basis_ee: Tensor,
    entries: BTreeMap<String, RotatedEntry>,
    /// The tensor turned last, by name: each of its rows follows from all of the source's, and rows
    /// are asked for in pieces.
    last: RefCell<Option<(String, Tensor)>>,
}

struct RotatedEntry {
    source_name: String,
    info: TensorInfo,
    turn: SideTurn,
}

enum SideTurn {
    /// As it is.
    None,
    /// Ones.
    Gain,
    /// Along this side, behind this gain.
    Side(usize, Option<Tensor>),
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
                    info,
                    turn: turn_of(param, source, spec)?,
                },
            );
        }
        Ok(RotatedView {
            source,
            basis_ee: exact(basis_ee)?,
            entries,
            last: RefCell::default(),
        })
    }

    fn turned(&self, stored: &Tensor, side: usize, gain_e: Option<&Tensor>) -> Result<Tensor> {
        let mut x = exact(stored)?;
        if let Some(gain_e) = gain_e {
            let gain = if side == 0 && x.dim() > 1 {
                gain_e.f_unsqueeze(1)?
            } else {
                gain_e.shallow_clone()
            };
            x = x.f_mul(&gain)?;
        }
        let turned = if side == 0 {
            self.basis_ee.f_transpose(0, 1)?.f_matmul(&x)?
        } else {
            x.f_matmul(&self.basis_ee)?
        };
        Ok(turned.f_to_kind(stored.f_kind()?)?.f_contiguous()?)
    }
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
            SideTurn::Gain => Ok(self
                .source
                .read_rows(&entry.source_name, rows)?
                .f_ones_like()?),
            // Every row of the result follows from all rows of the source.
            SideTurn::Side(0, gain_e) => {
                let mut last = self.last.borrow_mut();
                let whole = match last.take() {
                    Some((of, whole)) if of == name => whole,
                    _ => self.turned(&self.source.read(&entry.source_name)?, 0, gain_e.as_ref())?,
                };
                let found = whole
                    .f_narrow(0, rows.start as i64, rows.len() as i64)?
                    .f_contiguous()?;
                *last = Some((name.to_owned(), whole));
                Ok(found)
            }
            SideTurn::Side(side, gain_e) => self.turned(
                &self.source.read_rows(&entry.source_name, rows)?,
                *side,
                gain_e.as_ref(),
            ),
        }
    }
}

fn turn_of(param: &Param, source: &dyn TensorSource, spec: &ModelSpec) -> Result<SideTurn> {
    if [Role::INPUT_NORM, Role::FINAL_NORM].contains(&param.role) {
        return Ok(SideTurn::Gain);
    }
    let Some(side) = param.sides.iter().position(is_stream) else {
        return Ok(SideTurn::None);
    };
    let gain = match param.at {
        At::Model if param.role == Role::HEAD => {
            spec.find(At::Model, Role::FINAL_NORM, ParamKind::Weight)
        }
        At::Sublayer { layer, sublayer } => {
            let part = spec
                .layers
                .get(layer)
                .and_then(|layer| layer.0.get(sublayer));
            let is_reader =
                part.is_some_and(|part| part.mixer.ports().readers.contains(&param.role));
            spec.find(param.at, Role::INPUT_NORM, ParamKind::Weight)
                .filter(|_| is_reader)
        }
        At::Model => None,
    };
    let gain_e = gain
        .map(|gain| exact(&source.read(&gain.name())?))
        .transpose()?;
    Ok(SideTurn::Side(side, gain_e))
}

fn is_stream(side: &Side) -> bool {
    side.0
        .iter()
        .any(|part| matches!(part, Part::Units { dim, .. } if dim == HIDDEN))
}

/// Refuses families whose norms do not turn with the stream.
pub(super) fn check_turns(spec: &ModelSpec) -> Result<()> {
    let Some(found) = fixed_norm(spec) else {
        return Ok(());
    };
    Err(Error::Recipe(format!(
        "the residual stream can be turned where RMS norms stand before each part, as in Llama; \
         `{}` has {found}: leave the rotation out",
        spec.architecture
    )))
}

/// What holds the stream's channels in their place, where something does.
fn fixed_norm(spec: &ModelSpec) -> Option<&'static str> {
    let options = &spec.options;
    if options.embedding.norm.is_some() && options.final_norm.is_none() {
        return Some("layer norms after its sums");
    }
    for part in spec.layers.iter().flat_map(|layer| &layer.0) {
        match (part.pre, part.post, part.after_sum) {
            (Some(pre), None, None) if pre.kind == NormKind::Rms => {}
            (_, _, Some(norm)) if norm.kind == NormKind::Rms => {
                return Some("RMS norms after its sums");
            }
            (_, _, Some(_)) => return Some("layer norms after its sums"),
            (_, Some(_), _) => return Some("norms on what each part adds"),
            (None, ..) => return Some("parts without a norm before them"),
            (Some(pre), ..) if pre.kind == NormKind::Rms1p => {
                return Some("RMS norms that store their gain less one");
            }
            (Some(_), ..) => return Some("layer norms, which take the mean over channels out"),
        }
    }
    match options.final_norm {
        Some(norm) if norm.kind == NormKind::Rms => None,
        _ => Some("no RMS norm after its last layer"),
    }
}

/// The model's description with embeddings untied.
pub(super) fn untied(source: &dyn TensorSource, spec: &ModelSpec) -> Result<(Config, ModelSpec)> {
    let mut config = spec.config.clone();
    if !spec.options.tied {
        return Ok((config, spec.clone()));
    }
    config.set("tie_word_embeddings", false);
    let described = spec.redescribed(&CheckpointInfo::of(&config, source))?;
    if described.options.tied {
        let message = format!(
            "`{}` has no config with untied embeddings, which a rotation needs",
            spec.architecture
        );
        return Err(Error::Recipe(message));
    }
    Ok((config, described))
}

/// QᵀQ = 1, within what f64 sums give.
pub(super) fn check_orthogonal(basis_ee: &Tensor, n_hidden: usize) -> Result<()> {
    let eye_ee = Tensor::f_eye(n_hidden as i64, (Kind::Double, Device::Cpu))?;
    if basis_ee.size() != eye_ee.size() {
        return Err(Error::Internal(format!(
            "a basis of shape {:?} for {n_hidden} channels",
            basis_ee.size()
        )));
    }
    let basis_ee = exact(basis_ee)?;
    let off = basis_ee
        .f_transpose(0, 1)?
        .f_matmul(&basis_ee)?
        .f_sub(&eye_ee)?
        .f_abs()?
        .f_max()?
        .f_double_value(&[])?;
    if off < 1e-8 {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "a basis that is orthonormal only within {off:e}"
    )))
}
