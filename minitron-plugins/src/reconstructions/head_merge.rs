use minitron_core::contract::Reconstruction;
use minitron_core::error::{Error, Result};
use minitron_core::reconstruct::StudentEditor;
use minitron_core::spec::{At, HEADS, ParamKind, Role, Side, dim_of_layer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Folds dropped heads into kept ones. With L heads ranked 1 (best) to L and K of them kept, for i
/// in [2K − L + 1, K]:
///
/// ```text
/// head_i := head_i + (head_i − head_{2K−i+1})
/// ```
/// on the rows of query, key and value projections and their biases; on the query projection alone
/// where queries share keys and values, within each key/value head. All numbers are the source's.
/// Needs K >= L/2, and the scores that the plan comes from. The paper prints the range from 2K − L
/// on, whose first partner would be head L + 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeadMerge {}

minitron_core::plugin! {
    Reconstruction for HeadMerge {
        tag: "head_merge",
        summary: "the difference to a dropped head added to a kept one",
        source: "arXiv 2407.14679, section 2.3",
    }
}

#[typetag::serde(name = "head_merge")]
impl Reconstruction for HeadMerge {
    fn needs_text(&self) -> bool {
        false
    }

    fn reconstruct(&self, editor: &mut StudentEditor) -> Result<()> {
        for layer_idx in 0..editor.n_layers() {
            let dim = dim_of_layer(HEADS, editor.source_layer(layer_idx));
            // Absent where a layer has no attention.
            let whole = editor.teacher_spec().dims.get(&dim);
            let n_kept = editor.kept(&dim).len();
            if n_kept > 0 && whole.is_some_and(|dim| n_kept < dim.size) {
                merge_layer(editor, layer_idx, &dim)?;
            }
        }
        Ok(())
    }
}

fn merge_layer(editor: &mut StudentEditor, layer_idx: usize, dim: &str) -> Result<()> {
    let pairs = pairs(editor, dim)?;
    let source_layer = editor.source_layer(layer_idx);
    let parts = editor.teacher_spec().sublayers(source_layer);
    let readers: Vec<(At, Role)> = parts
        .flat_map(|(at, part)| {
            part.mixer
                .ports()
                .readers
                .into_iter()
                .map(move |role| (at, role))
        })
        .collect();
    for (source, role) in readers {
        let at = source.in_layer(layer_idx);
        for kind in [ParamKind::Weight, ParamKind::Bias] {
            let Some(param) = editor.teacher_spec().find(source, role, kind) else {
                continue;
            };
            let outputs = if param.transposed {
                param.sides.last()
            } else {
                param.sides.first()
            };
            // Where queries share them, keys and values have no such heads.
            let Some(outputs) = outputs
                .filter(|side| blocks(editor, side, dim).any(|block| block.is_some()))
                .cloned()
            else {
                continue;
            };
            let mixing = mixing(editor, dim, &outputs, &pairs)?;
            let merged = mixing.f_matmul(&editor.read_all_heads(at, role, kind)?)?;
            editor.replace(at, role, kind, &merged)?;
        }
    }
    Ok(())
}

/// Every kept head with the dropped one that is folded into it.
fn pairs(editor: &StudentEditor, dim: &str) -> Result<Vec<(usize, Option<usize>)>> {
    let (kept, mut pairs) = (editor.kept(dim), Vec::new());
    for part in editor.ranked(dim)? {
        let n_kept = part.iter().filter(|head| kept.contains(head)).count();
        if n_kept == 0 {
            // Its key/value head is gone with all its queries: nothing is left to fold into.
            continue;
        }
        if 2 * n_kept < part.len() {
            return Err(Error::Recipe(format!(
                "head_merge: `{dim}` keeps {n_kept} of {} heads that are ranked together; merging \
                 needs at least half",
                part.len()
            )));
        }
        for (rank, &head) in part.iter().enumerate().take(n_kept) {
            if !kept.contains(&head) {
                return Err(Error::Recipe(format!(
                    "head_merge: the plan of `{dim}` does not keep the best-ranked heads"
                )));
            }
            // Zero-based, the partner of rank r is 2K - 1 - r; beyond the last head there is none.
            pairs.push((head, part.get(2 * n_kept - 1 - rank).copied()));
        }
    }
    pairs.sort_unstable();
    Ok(pairs)
}

/// Block sizes of a side's parts where they are heads of this dim. Heads that lost channels are
/// merged without them.
fn blocks<'s>(
    editor: &'s StudentEditor,
    side: &'s Side,
    dim: &'s str,
) -> impl Iterator<Item = Option<usize>> + 's {
    side.0.iter().map(move |part| {
        part.units(&|dim| editor.spec().dims.get(dim).map(|dim| dim.size))
            .filter(|(of, _)| *of == dim)
            .map(|(_, block)| block)
    })
}

/// The map from all rows of a projection to the student's: 2 for a kept head and −1 for its
/// partner, row by row.
fn mixing(
    editor: &StudentEditor,
    dim: &str,
    outputs: &Side,
    pairs: &[(usize, Option<usize>)],
) -> Result<Tensor> {
    let n_heads = editor.teacher_spec().dim(dim)?.size;
    let mut heads = vec![0f64; pairs.len() * n_heads];
    for (row, (head, partner)) in heads.chunks_mut(n_heads).zip(pairs) {
        for (column, value) in row.iter_mut().enumerate() {
            *value = match partner {
                _ if column == *head => 1.0 + f64::from(u8::from(partner.is_some())),
                Some(partner) if column == *partner => -1.0,
                _ => 0.0,
            };
        }
    }
    let heads = Tensor::f_from_slice(&heads)?.f_view([pairs.len() as i64, n_heads as i64])?;
    let mut diagonal = Vec::new();
    for (part, block) in outputs.0.iter().zip(blocks(editor, outputs, dim)) {
        let n_rows = Side(vec![part.clone()])
            .len(|dim| editor.teacher_spec().dims.get(dim).map(|dim| dim.size));
        diagonal.push(match block {
            Some(block) => heads.f_kron(&eye(block)?)?,
            None => eye(n_rows)?,
        });
    }
    Ok(Tensor::f_block_diag(&diagonal)?)
}

fn eye(n: usize) -> Result<Tensor> {
    Ok(Tensor::f_eye(n as i64, (Kind::Double, Device::Cpu))?)
}
