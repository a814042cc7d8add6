//! The units of a dim in another order: what the output of a model does not depend on.

use std::collections::BTreeMap;

use minitron_core::checkpoint::{MemorySource, TensorSource};
use minitron_core::error::{Error, Result};
use minitron_core::random::SplitMix;
use minitron_core::spec::{At, Dim, ModelSpec, Param, Side};
use tch::Tensor;

/// The units of each dim in a new order: position → unit.
pub(super) type UnitOrder = BTreeMap<String, Vec<usize>>;

/// A new order of a dim's units. Those that another dim partitions, as query heads are by their
/// key/value heads, move inside their run, or the whole run moves.
pub(super) fn reorder(spec: &ModelSpec, dim: &Dim, random: &mut SplitMix) -> Result<UnitOrder> {
    if let Some(by) = &dim.partition {
        let n_runs = spec.dim(by)?.size.max(1);
        let inside = shuffled(dim.size / n_runs, random);
        let order = (0..n_runs).flat_map(|run| inside.iter().map(move |unit| (run, *unit)));
        let order = order.map(|(run, unit)| run * inside.len() + unit).collect();
        return Ok(UnitOrder::from([(dim.name.clone(), order)]));
    }
    let order = shuffled(dim.size, random);
    let mut orders = UnitOrder::new();
    if let Some(heads) = spec.carried_by(&dim.name) {
        let per = heads.size / dim.size.max(1);
        let moved = order.iter().flat_map(|&run| run * per..(run + 1) * per);
        orders.insert(heads.name.clone(), moved.collect());
    }
    orders.insert(dim.name.clone(), order);
    Ok(orders)
}

fn shuffled(n: usize, random: &mut SplitMix) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, random.below(last + 1));
    }
    // Never the identity.
    if order.is_sorted() {
        order.into_iter().rev().collect()
    } else {
        order
    }
}

/// The same model with units in another order, everywhere that the spec says they are.
pub(super) fn reordered(
    source: &dyn TensorSource,
    spec: &ModelSpec,
    order: &UnitOrder,
) -> Result<MemorySource> {
    let mut moved = MemorySource::default();
    for param in &spec.params {
        let mut tensor = source.read(&param.name_at(behind(param, order)))?;
        for (side, of) in param.sides.iter().enumerate() {
            if of.is_by_row() {
                tensor = in_rows(&tensor, (side, of), spec, order)?;
                continue;
            }
            tensor = tensor.f_index_select(
                side as i64,
                &Tensor::f_from_slice(&positions(of, spec, order)?)?,
            )?;
        }
        moved.insert(param.name(), &tensor)?;
    }
    Ok(moved)
}

/// Where the tensor of a unit, an expert, comes from.
fn behind(param: &Param, order: &UnitOrder) -> At {
    let of_unit = param.unit_of.as_ref().and_then(|dim| order.get(dim));
    match (param.at, of_unit) {
        (At::Unit { unit, .. }, Some(order)) => {
            param.at.unit(order.get(unit).copied().unwrap_or(unit))
        }
        _ => param.at,
    }
}

/// A side that differs from row to row.
fn in_rows(
    tensor: &Tensor,
    (side, of): (usize, &Side),
    spec: &ModelSpec,
    order: &UnitOrder,
) -> Result<Tensor> {
    let n_rows = tensor.size().first().copied().unwrap_or(0);
    let mut rows = Vec::new();
    for row in 0..n_rows {
        let places = positions(&of.in_row(row as usize), spec, order)?;
        let places = Tensor::f_from_slice(&places)?;
        let moved = tensor
            .f_select(0, row)?
            .f_index_select(side as i64 - 1, &places)?;
        rows.push(moved);
    }
    Ok(Tensor::f_stack(&rows, 0)?)
}

fn positions(side: &Side, spec: &ModelSpec, order: &UnitOrder) -> Result<Vec<i64>> {
    for dim in side.dims() {
        let (size, len) = (spec.dim(dim)?.size, order.get(dim).map(Vec::len));
        if len.is_some_and(|len| len != size) {
            return Err(Error::Internal(format!(
                "`{dim}`: {size} units in an order of {len:?}"
            )));
        }
    }
    let positions = side.positions(&|dim| spec.dims.get(dim).map(|dim| dim.size), &|dim| {
        order.get(dim).map(Vec::as_slice)
    });
    Ok(positions
        .into_iter()
        .map(|position| position as i64)
        .collect())
}
