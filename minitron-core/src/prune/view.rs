//! A pruned model as a view over the whole one: slices on read, the source stays as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use tch::Tensor;

use super::config::student_config;
use super::indices::{kept_of, side_indices, source_layers};
use crate::checkpoint::{Config, PIECE_BYTES, TensorInfo, TensorSource, kind_of};
use crate::error::{Error, Present, Result};
use crate::plan::Plan;
use crate::spec::{CheckpointInfo, ModelSpec, Param, Side};

/// The tensors of a student, read through the teacher's.
pub struct PrunedView<'a> {
    source: &'a dyn TensorSource,
    entries: BTreeMap<String, PrunedEntry>,
}

struct PrunedEntry {
    source_name: String,
    info: TensorInfo,
    /// Bytes per element, and per row of the source.
    width: usize,
    source_row_bytes: usize,
    /// Kept rows of the source, ascending; `None` keeps all.
    rows: Option<Vec<usize>>,
    /// Kept elements of each row; `None` keeps all.
    columns: Option<Columns>,
}

/// Which elements of a flat row stay.
enum Columns {
    /// The same ones in every row.
    Same(Vec<u32>),
    /// Others in each row of the source, an expert: along its sides, so that no list is as long as
    /// the tensor.
    OfRow {
        /// Lengths of the sides behind the first.
        shape: Vec<usize>,
        /// Row by row, what stays of each side; `None` keeps all.
        kept: Vec<Vec<Option<Vec<usize>>>>,
    },
}

impl<'a> PrunedView<'a> {
    /// Works out names, shapes and index lists; reads no tensor.
    ///
    /// # Errors
    /// `Internal` when the source lacks a tensor: the spec was checked against it before.
    pub fn new(source: &'a dyn TensorSource, spec: &ModelSpec, plan: &Plan) -> Result<Self> {
        let layers = source_layers(spec, plan);
        let mut entries = BTreeMap::new();
        let n_kept = |dim: &str| plan.kept.get(dim).map(Vec::len);
        for param in &spec.params {
            if spec.goes_at(param.at, n_kept) {
                continue;
            }
            if let Some(place) = param.place_in(&layers, &kept_of(plan)) {
                let name = param.name_at(place);
                entries.insert(name, entry_of(source, param, spec, plan)?);
            }
        }
        Ok(PrunedView { source, entries })
    }
}

fn entry_of(
    source: &dyn TensorSource,
    param: &Param,
    spec: &ModelSpec,
    plan: &Plan,
) -> Result<PrunedEntry> {
    let source_name = param.name();
    let mut info = source
        .info(&source_name)
        .ok_or_else(|| cannot(&source_name, "it is absent"))?;
    // Rows of experts differ in what they keep, not in how much: the first kept one tells.
    let (by_row, first) = (
        param.sides.iter().any(Side::is_by_row),
        first_row(param, plan),
    );
    let in_row = |row: usize| -> Vec<Option<Vec<usize>>> {
        let sides = param.sides.iter().map(|side| side.in_row(row));
        sides.map(|side| side_indices(&side, spec, plan)).collect()
    };
    let mut kept = in_row(first);
    let mut sides = info.shape.iter().zip(&kept);
    let is_within = sides.all(|(len, kept)| kept.iter().flatten().all(|place| place < len));
    if kept.len() != info.shape.len() || !is_within {
        return Err(cannot(&source_name, "the plan goes beyond its sides"));
    }
    // Absent where a tensor has no sides.
    let behind = info.shape.get(1..).unwrap_or_default();
    let behind_first = kept.get(1..).unwrap_or_default();
    let n_rows = info.shape.first().copied().unwrap_or(0);
    let columns = match by_row && kept.iter().skip(1).any(Option::is_some) {
        true => Some(Columns::OfRow {
            shape: behind.to_vec(),
            kept: (0..n_rows).map(|row| in_row(row).split_off(1)).collect(),
        }),
        false => columns(behind, behind_first).map(Columns::Same),
    };
    let width = info.dtype.bitsize() / 8;
    let source_row_bytes = info.shape.iter().skip(1).product::<usize>() * width;
    for (len, kept) in info.shape.iter_mut().zip(&kept) {
        *len = kept.as_ref().map_or(*len, Vec::len);
    }
    let rows = kept.first_mut().and_then(Option::take);
    Ok(PrunedEntry {
        source_name,
        info,
        width,
        source_row_bytes,
        rows,
        columns,
    })
}

/// The first row of a tensor that stays.
fn first_row(param: &Param, plan: &Plan) -> usize {
    let dim = param
        .sides
        .first()
        .and_then(|side| side.dims().first().copied());
    let kept = dim.and_then(|dim| plan.kept.get(dim));
    kept.and_then(|kept| kept.first()).copied().unwrap_or(0)
}

impl Columns {
    /// Those of a row of the source.
    fn of(&self, row: usize) -> Option<Cow<'_, [u32]>> {
        match self {
            Columns::Same(columns) => Some(Cow::Borrowed(columns)),
            Columns::OfRow { shape, kept } => columns(shape, kept.get(row)?).map(Cow::Owned),
        }
    }
}

fn cannot(source_name: &str, why: &str) -> Error {
    Error::Internal(format!("tensor `{source_name}` cannot be pruned: {why}"))
}

/// Kept elements of a flat row; `None` where every side behind the first stays whole.
fn columns(shape: &[usize], kept: &[Option<Vec<usize>>]) -> Option<Vec<u32>> {
    kept.iter().any(Option::is_some).then_some(())?;
    let mut flat = vec![0];
    for (&len, kept) in shape.iter().zip(kept) {
        let positions = kept.clone().unwrap_or_else(|| (0..len).collect());
        flat = flat
            .iter()
            .flat_map(|start| positions.iter().map(move |position| start * len + position))
            .collect();
    }
    Some(flat.into_iter().map(|position| position as u32).collect())
}

impl TensorSource for PrunedView<'_> {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get(name).map(|entry| entry.info.clone())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let info = self.info(name).unwrap_or(TensorInfo {
            dtype: Dtype::U8,
            shape: Vec::new(),
        });
        let kind = kind_of(info.dtype).ok_or_else(|| {
            Error::Internal(format!(
                "tensor `{name}` of type {:?} is pruned",
                info.dtype
            ))
        })?;
        let mut shape: Vec<i64> = info.shape.iter().map(|&side| side as i64).collect();
        if let Some(first) = shape.first_mut() {
            *first = rows.len() as i64;
        }
        let mut bytes = Vec::new();
        self.append_rows(name, rows, &mut bytes)?;
        Ok(Tensor::f_from_data_size(&bytes, &shape, kind)?)
    }

    fn append_rows(&self, name: &str, rows: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error::Internal(format!("no tensor `{name}` in the view")))?;
        if entry.rows.is_none() && entry.columns.is_none() {
            return self.source.append_rows(&entry.source_name, rows, bytes);
        }
        let kept: Vec<usize> = match &entry.rows {
            Some(kept) => kept
                .get(rows.clone())
                .present("as many rows of a tensor as are read")?
                .to_vec(),
            None => rows.collect(),
        };
        // Rows of the source in spans of bounded size, however far the kept ones lie apart.
        let max_rows = (PIECE_BYTES / entry.source_row_bytes.max(1)).max(1);
        let (mut rest, mut span) = (kept.as_slice(), Vec::new());
        while let Some(&from) = rest.first() {
            let (near, far) = rest.split_at(rest.partition_point(|&row| row < from + max_rows));
            let to = near.last().map_or(from, |last| last + 1);
            span.clear();
            self.source
                .append_rows(&entry.source_name, from..to, &mut span)?;
            for &row in near {
                let columns = entry.columns.as_ref().and_then(|columns| columns.of(row));
                let start = (row - from) * entry.source_row_bytes;
                let row = span
                    .get(start..start + entry.source_row_bytes)
                    .present("a kept row")?;
                slice(row, columns.as_deref(), entry.width, bytes)?;
            }
            rest = far;
        }
        Ok(())
    }
}

/// Appends the kept elements of a stored row. The only place that slices weights.
fn slice(row: &[u8], columns: Option<&[u32]>, width: usize, bytes: &mut Vec<u8>) -> Result<()> {
    /// With the width known to the compiler an element is one move.
    fn pick<const WIDTH: usize>(row: &[u8], columns: &[u32], bytes: &mut Vec<u8>) {
        let elements = row.as_chunks::<WIDTH>().0;
        bytes.extend(
            columns
                .iter()
                .flat_map(|&at| elements.get(at as usize).copied().unwrap_or([0; WIDTH])),
        );
    }
    match (columns, width) {
        (None, _) => bytes.extend_from_slice(row),
        (Some(columns), 1) => pick::<1>(row, columns, bytes),
        (Some(columns), 2) => pick::<2>(row, columns, bytes),
        (Some(columns), 4) => pick::<4>(row, columns, bytes),
        (Some(columns), 8) => pick::<8>(row, columns, bytes),
        (Some(_), width) => {
            return Err(Error::Internal(format!(
                "elements of {width} bytes are sliced"
            )));
        }
    }
    Ok(())
}

/// A student before it is written: its config, its description and its tensors.
pub struct Student<'a> {
    /// What its `config.json` will say.
    pub config: Config,
    /// The family's description of that config.
    pub spec: ModelSpec,
    /// Its tensors.
    pub view: PrunedView<'a>,
}

impl<'a> Student<'a> {
    /// Applies a plan to a model, and checks the result as if it were read from a folder.
    ///
    /// # Errors
    /// `Plan` when the student's config does not describe the pruned tensors: no config of the
    /// family can.
    pub fn new(source: &'a dyn TensorSource, spec: &ModelSpec, plan: &Plan) -> Result<Self> {
        let config = student_config(spec, plan);
        let view = PrunedView::new(source, spec, plan)?;
        let student = spec.redescribed(&CheckpointInfo::of(&config, &view))?;
        student.check(&view).map_err(|e| {
            Error::Plan(format!("no config of this family expresses the plan: {e}"))
        })?;
        let (predicted, found) = (spec.n_params_of(&plan.size_map(spec)), student.n_params());
        if predicted != found {
            return Err(Error::Internal(format!(
                "the plan predicts {predicted} parameters, the student has {found}"
            )));
        }
        Ok(Student {
            config,
            spec: student,
            view,
        })
    }
}
