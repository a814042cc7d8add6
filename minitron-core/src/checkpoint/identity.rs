//! Which model an artefact belongs to: its weights, whatever files they lie in, and its tokenizer.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};

use serde::{Deserialize, Serialize};

use super::source::TensorSource;
use crate::digest;
use crate::error::{Error, Result};

/// What scores, plans and records say of the model that they were made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model's folder or hub id, for people.
    pub model: String,
    /// Digest of the weights, as [`weights_digest`] gives it.
    pub weights: String,
    /// Digest of tokenizer.json, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

const MODEL: &str = "model";
const WEIGHTS: &str = "weights";
const TOKENIZER: &str = "tokenizer";

impl Identity {
    /// As a file's header holds it.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let own = [(MODEL, &self.model), (WEIGHTS, &self.weights)];
        let pairs = own.into_iter().chain(
            self.tokenizer
                .iter()
                .map(|tokenizer| (TOKENIZER, tokenizer)),
        );
        pairs
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect()
    }

    /// Back from a file's header; none where it says nothing of weights.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        Some(Identity {
            model: metadata.get(MODEL).cloned().unwrap_or_default(),
            weights: metadata.get(WEIGHTS)?.clone(),
            tokenizer: metadata.get(TOKENIZER).cloned(),
        })
    }

    /// Whether both speak of the same weights.
    pub fn has_weights_of(&self, other: &Identity) -> bool {
        self.weights == other.weights
    }

    /// Whether both name a tokenizer, and not the same one.
    pub fn has_other_tokenizer(&self, other: &Identity) -> bool {
        self.tokenizer.is_some() && other.tokenizer.is_some() && self.tokenizer != other.tokenizer
    }
}

/// As messages name it: a name alone may stand for two models.
impl Display for Identity {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let digits: String = self.weights.chars().take(8).collect();
        write!(f, "`{}` (weights {digits})", self.model)
    }
}

/// Tensors up to this size count with all their bytes.
const WHOLE_BYTES: u64 = 1 << 20;
/// Blocks that are read of a larger one, evenly spaced, the first and last rows among them.
const N_BLOCKS: usize = 16;
/// Bytes of a block, where no row is longer.
const BLOCK_BYTES: u64 = 16 << 10;

/// Digest of weights: of every tensor its layer, type, shape, and bytes; of one above 1 MiB, 16
/// blocks of 16 KiB. An 8B model takes about 75 MB of reading.
///
/// Names, order and files do not count, so a model that is sharded otherwise or stored under a
/// prefix stays itself. A copy in another type is another model. One changed element of a large
/// tensor may be missed; training changes all of them.
///
/// # Errors
/// What reading a tensor gives.
pub fn weights_digest(
    source: &dyn TensorSource,
    tensors: impl IntoIterator<Item = (Option<usize>, String)>,
) -> Result<String> {
    let _span = tracing::debug_span!("identity").entered();
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    for (layer, name) in tensors {
        let info = source
            .info(&name)
            .ok_or_else(|| Error::Internal(format!("no tensor `{name}` to identify a model by")))?;
        bytes.clear();
        sample(source, &name, &mut bytes)?;
        let layer = layer.map_or_else(|| "-".to_owned(), |layer| layer.to_string());
        lines.push(format!(
            "{layer} {:?} {:?} {}",
            info.dtype,
            info.shape,
            digest::of_bytes(&bytes)
        ));
    }
    lines.sort_unstable();
    Ok(digest::of_text(&lines.join("\n")))
}

/// Appends a tensor's bytes, or those of evenly spaced rows.
fn sample(source: &dyn TensorSource, name: &str, bytes: &mut Vec<u8>) -> Result<()> {
    let info = source.info(name);
    let n_bytes = info
        .as_ref()
        .and_then(super::TensorInfo::n_bytes)
        .unwrap_or(0);
    let n_rows = info
        .and_then(|info| info.shape.first().copied())
        .unwrap_or(1);
    if n_bytes <= WHOLE_BYTES {
        return source.append_unchecked(name, 0..n_rows, bytes);
    }
    let row_bytes = n_bytes / n_rows.max(1) as u64;
    let n_in_block = ((BLOCK_BYTES / row_bytes.max(1)) as usize).clamp(1, n_rows.max(1));
    let last = n_rows.saturating_sub(n_in_block);
    for block in 0..N_BLOCKS {
        let start = last / (N_BLOCKS - 1) * block;
        // The division leaves a rest, which the last block must not miss.
        let start = if block + 1 == N_BLOCKS { last } else { start };
        source.append_unchecked(
            name,
            start..start.saturating_add(n_in_block).min(n_rows),
            bytes,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::checkpoint::MemorySource;

    const TENSORS: [(Option<usize>, &str); 4] = [
        (None, "table"),
        (Some(0), "up"),
        (Some(1), "up.1"),
        (None, "norm"),
    ];

    fn source(change: impl Fn(&str, Tensor) -> Tensor) -> MemorySource {
        let mut source = MemorySource::default();
        for (name, rows, columns) in [
            ("table", 3000, 100),
            ("up", 40, 20),
            ("up.1", 40, 20),
            ("norm", 20, 1),
        ] {
            // Drawn ones would be others beside another test that draws.
            let ramp = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu))
                .f_add_scalar(name.len() as f64)
                .unwrap();
            let tensor = ramp.sin().view([rows, columns]);
            source.insert(name, &change(name, tensor)).unwrap();
        }
        source
    }

    fn digest(source: &MemorySource, tensors: &[(Option<usize>, &str)]) -> String {
        weights_digest(
            source,
            tensors
                .iter()
                .map(|(layer, name)| (*layer, (*name).to_owned())),
        )
        .unwrap()
    }

    #[test]
    fn weights_have_one_digest_in_any_order_under_any_name_and_none_other_has_it() {
        let same = |_: &str, x: Tensor| x;
        let plain = digest(&source(same), &TENSORS);
        let mut turned = TENSORS;
        turned.reverse();
        assert_eq!(digest(&source(same), &turned), plain);
        let mut renamed = MemorySource::default();
        for (_, name) in TENSORS {
            renamed
                .insert(format!("model.{name}"), &source(same).read(name).unwrap())
                .unwrap();
        }
        let names: Vec<(Option<usize>, String)> = TENSORS
            .iter()
            .map(|(layer, name)| (*layer, format!("model.{name}")))
            .collect();
        assert_eq!(weights_digest(&renamed, names).unwrap(), plain);

        let other = |change: &dyn Fn(&str, Tensor) -> Tensor| digest(&source(change), &TENSORS);
        assert_ne!(other(&|_, x| x * 1.000_01), plain, "a step of training");
        assert_ne!(
            other(&|_, x| x.to_kind(Kind::BFloat16)),
            plain,
            "another type"
        );
        assert_ne!(
            other(&|name, x| if name == "up" {
                x.f_transpose(0, 1).unwrap()
            } else {
                x
            }),
            plain,
            "another shape"
        );
        let one = |at: i64| {
            move |name: &str, x: Tensor| -> Tensor {
                if name == "up" {
                    let _ = x.view([-1]).narrow(0, at, 1).fill_(9.0);
                }
                x
            }
        };
        assert_ne!(other(&one(0)), plain);
        assert_ne!(other(&one(799)), plain, "one element of a small tensor");
        let layers_swapped = [
            (None, "table"),
            (Some(1), "up"),
            (Some(0), "up.1"),
            (None, "norm"),
        ];
        assert_ne!(digest(&source(same), &layers_swapped), plain);
    }

    #[test]
    fn of_a_large_tensor_the_first_and_the_last_rows_count() {
        let marked = |row: i64| {
            source(move |name, x| {
                if name == "table" {
                    let _ = x.narrow(0, row, 1).fill_(1.0);
                }
                x
            })
        };
        let plain = digest(&source(|_, x| x), &TENSORS);
        for row in [0, 2999] {
            assert_ne!(digest(&marked(row), &TENSORS), plain, "{row}");
        }
    }

    #[test]
    fn an_identity_comes_back_from_a_header() {
        let identity = Identity {
            model: "base".into(),
            weights: "0123456789".into(),
            tokenizer: None,
        };
        assert_eq!(
            Identity::from_metadata(&identity.to_metadata()),
            Some(identity.clone())
        );
        assert_eq!(identity.to_string(), "`base` (weights 01234567)");
        assert_eq!(
            Identity::from_metadata(&BTreeMap::from([("format".to_owned(), "pt".to_owned())])),
            None
        );
        let own = Identity {
            tokenizer: Some("a".into()),
            ..identity.clone()
        };
        assert!(!own.has_other_tokenizer(&identity) && own.has_weights_of(&identity));
        assert!(own.has_other_tokenizer(&Identity {
            tokenizer: Some("b".into()),
            ..identity
        }));
    }
}
