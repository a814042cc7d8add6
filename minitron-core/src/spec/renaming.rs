//! Names that a wrapper, a compiler or a bare model changed by one constant prefix, read as the
//! family's own.

use std::collections::{BTreeMap, BTreeSet};

use super::ModelSpec;

/// Segments that wrappers of PyTorch put anywhere into a name: compiled, sharded and recomputed
/// modules.
const WRAPPERS: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// Segments that may stand before all names, one after the other.
const MAX_PREFIX: usize = 4;

/// From the names in a file to those they stand for; names that stay are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Renaming {
    names: BTreeMap<String, String>,
    said: Vec<String>,
}

impl Renaming {
    /// Ways to read the names of a file, the least changed first: as they are, without wrappers,
    /// without what stands before most of them.
    pub fn candidates(names: &BTreeSet<String>) -> Vec<Renaming> {
        let mut candidates = vec![Renaming::default()];
        let unwrapped = Renaming::default().then(names, |name| {
            let kept: Vec<&str> = name
                .split('.')
                .filter(|segment| !WRAPPERS.contains(segment))
                .collect();
            (kept.len() < name.split('.').count()).then(|| kept.join("."))
        });
        let mut last = match unwrapped {
            Some((mut unwrapped, some_name)) => {
                let segments = some_name
                    .split('.')
                    .filter(|segment| WRAPPERS.contains(segment));
                unwrapped.said.push(format!(
                    "names carry `{}.`, which is read away",
                    distinct(segments).join(".")
                ));
                candidates.push(unwrapped.clone());
                unwrapped
            }
            None => Renaming::default(),
        };
        let mut prefix = String::new();
        for _ in 0..MAX_PREFIX {
            let Some(segment) = common_segment(&last.applied(names)) else {
                break;
            };
            let Some((mut shorter, _)) = last.then(names, |name| {
                name.strip_prefix(segment.as_str())?
                    .strip_prefix('.')
                    .map(str::to_owned)
            }) else {
                break;
            };
            prefix = format!("{prefix}{segment}.");
            shorter.said.retain(|said| !said.starts_with("names begin"));
            shorter
                .said
                .push(format!("names begin with `{prefix}`, which is read away"));
            candidates.push(shorter.clone());
            last = shorter;
        }
        candidates
    }

    /// The same, with what a family's names have in front and the file's have not, and a tie's one
    /// name for the other.
    ///
    /// Also how many of the family's tensors are still missing.
    pub fn completed(&self, names: &BTreeSet<String>, spec: &ModelSpec) -> (Renaming, usize) {
        let found = self.applied(names);
        let (mut more, mut said, mut n_missing) = (BTreeMap::new(), BTreeSet::new(), 0);
        for tensor in &spec.params {
            let name = tensor.name();
            if found.contains(&name) {
                continue;
            }
            let bare = name
                .split_once('.')
                .filter(|(_, rest)| found.contains(*rest));
            let tied = tensor.aliases.iter().find(|alias| found.contains(*alias));
            match (bare, tied) {
                (Some((first, rest)), _) => {
                    said.insert(format!("names lack `{first}.`, which is put in front"));
                    more.insert(rest.to_owned(), name);
                }
                (None, Some(tied)) => {
                    said.insert(format!(
                        "`{tied}` is read for the tied `{name}`, which the file leaves out"
                    ));
                    more.insert(tied.clone(), name);
                }
                (None, None) => n_missing += 1,
            }
        }
        let completed = self.then(names, |name| more.get(name).cloned());
        match completed {
            Some((mut completed, _)) => {
                completed.said.extend(said);
                (completed, n_missing)
            }
            None => (self.clone(), n_missing),
        }
    }

    /// Another change after this one; none where it changes nothing, or two names would become one.
    /// With a name that changes, as it was.
    fn then(
        &self,
        names: &BTreeSet<String>,
        change: impl Fn(&str) -> Option<String>,
    ) -> Option<(Renaming, String)> {
        let (mut all, mut taken, mut some_name) = (BTreeMap::new(), BTreeSet::new(), None);
        for name in names {
            let before = self.names.get(name).unwrap_or(name);
            let after = match change(before) {
                Some(after) => {
                    some_name.get_or_insert_with(|| before.clone());
                    after
                }
                None => before.clone(),
            };
            if after.is_empty() || !taken.insert(after.clone()) {
                return None;
            }
            if after != *name {
                all.insert(name.clone(), after);
            }
        }
        Some((
            Renaming {
                names: all,
                said: self.said.clone(),
            },
            some_name?,
        ))
    }

    /// The names as they are read.
    pub fn applied(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        names
            .iter()
            .map(|name| self.names.get(name).unwrap_or(name).clone())
            .collect()
    }

    /// What is read for each name of the file that is read differently.
    pub fn names(&self) -> &BTreeMap<String, String> {
        &self.names
    }

    /// What is done, for a person.
    pub fn said(&self) -> &[String] {
        &self.said
    }
}

/// The first segment of more than half of the names.
fn common_segment(names: &BTreeSet<String>) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (first, _) in names.iter().filter_map(|name| name.split_once('.')) {
        *counts.entry(first).or_default() += 1;
    }
    let (segment, n) = counts.into_iter().max_by_key(|(_, n)| *n)?;
    (2 * n > names.len()).then(|| segment.to_owned())
}

fn distinct<'a>(segments: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = segments.collect();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn candidates_begin_with_the_names_as_they_are_and_never_make_two_names_one() {
        let plain = set(&["a.layers.0.x", "a.layers.1.x", "a.norm"]);
        let read = |names: &BTreeSet<String>| -> Vec<BTreeSet<String>> {
            Renaming::candidates(names)
                .iter()
                .map(|candidate| candidate.applied(names))
                .collect()
        };
        assert_eq!(read(&plain)[0], plain);
        for wrapped in [
            set(&[
                "_orig_mod.a.layers.0.x",
                "_orig_mod.a.layers.1.x",
                "_orig_mod.a.norm",
            ]),
            set(&[
                "module.a.layers.0.x",
                "module.a.layers.1.x",
                "module.a.norm",
            ]),
            set(&[
                "module._orig_mod.a.layers.0.x",
                "module._orig_mod.a.layers.1.x",
                "module._orig_mod.a.norm",
            ]),
            set(&[
                "_orig_mod.module.a.layers.0.x",
                "_orig_mod.module.a.layers.1.x",
                "_orig_mod.module.a.norm",
            ]),
            set(&["a.layers.0._orig_mod.x", "a.layers.1._orig_mod.x", "a.norm"]),
            set(&["x.y.z.a.layers.0.x", "x.y.z.a.layers.1.x", "x.y.z.a.norm"]),
        ] {
            assert!(
                read(&wrapped).contains(&plain),
                "{wrapped:?}: {:?}",
                read(&wrapped)
            );
        }
        // What stands twice stays apart.
        let twice = set(&["_orig_mod.a.norm", "a.norm"]);
        assert!(read(&twice).iter().all(|names| names.len() == 2));
        assert_eq!(read(&set(&[])), [set(&[])]);
    }
}
