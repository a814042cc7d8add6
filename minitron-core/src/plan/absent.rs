//! Sizes of zero: parts of layers that go as a whole, where somebody asks for it.

use std::collections::BTreeSet;

use super::saved::Plan;
use crate::error::{Error, Result};
use crate::spec::{ModelSpec, Sizes};

/// Dims of which nothing may be left, since the part that they measure can go.
#[derive(Debug, Clone, Default)]
pub(super) struct OptionalDims {
    names: BTreeSet<String>,
    /// Those that go together: query heads, and the key/value heads that they belong to.
    pairs: Vec<(String, String)>,
}

impl OptionalDims {
    pub fn of(spec: &ModelSpec) -> Self {
        let mut found = OptionalDims::default();
        for dim in spec.dims.values().filter(|dim| dim.optional) {
            found.names.insert(dim.name.clone());
            if let Some(by) = &dim.partition {
                found.pairs.push((dim.name.clone(), by.clone()));
            }
        }
        found
    }

    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Where one of a pair goes, the other goes too unless another size is asked for.
    pub fn follow(&self, sizes: &mut Sizes) {
        for (one, other) in &self.pairs {
            for (gone, follows) in [(one, other), (other, one)] {
                if sizes.get(gone) == Some(&0) {
                    sizes.entry(follows.clone()).or_insert(0);
                }
            }
        }
    }

    /// What is wrong with a pair of which one alone goes.
    pub fn objection(&self, sizes: &Sizes) -> Option<String> {
        let size = |name| sizes.get(name).copied();
        self.pairs.iter().find_map(|(one, other)| {
            let (of_one, of_other) = (size(one)?, size(other)?);
            ((of_one == 0) != (of_other == 0)).then(|| {
                format!(
                    "{one} {of_one} with {other} {of_other}: attention goes as a whole; ask for 0 \
                     of both or of neither"
                )
            })
        })
    }
}

/// How to get a student whose layers differ, where there is a way.
pub(super) fn way_out(may_be_apart: bool) -> &'static str {
    match may_be_apart {
        true => "; --layers-apart writes a student in a form whose layers may differ",
        false => "",
    }
}

impl Plan {
    /// Query heads and their key/value heads go together.
    ///
    /// # Errors
    /// `Plan` where one of them is to stay.
    pub(super) fn complete_absent(&mut self, spec: &ModelSpec) -> Result<()> {
        let optional = OptionalDims::of(spec);
        for (one, other) in &optional.pairs {
            for (gone, follows) in [(one, other), (other, one)] {
                if self.kept.get(gone).is_none_or(|kept| !kept.is_empty()) {
                    continue;
                }
                let n_kept = self.kept.entry(follows.clone()).or_default().len();
                if n_kept > 0 {
                    return Err(Error::Plan(format!(
                        "`{gone}` keeps none, `{follows}` {n_kept}: attention goes as a whole; \
                         leave `{follows}` out, or keep some of `{gone}`"
                    )));
                }
            }
        }
        Ok(())
    }
}
