//! Data as people name it: a file, a range of its documents, or a corpus plugin.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sampling::WindowSampling;
use super::text_options::TextOptions;
use minitron_core::contract::Corpus;
use minitron_core::error::{Error, Result};
use minitron_core::registry::{Kind, PluginSpec, Registry};

/// `FILE`, `FILE#a..b` (documents a to b, negative from the end, as in Python), or
/// `corpus:key=value`; `0.7*` in front of any of them is its share in a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct DataSpec {
    /// The file or the corpus plugin.
    pub name: String,
    /// Documents, where not all.
    pub range: Option<(Option<i64>, Option<i64>)>,
    /// Share of training windows, relative to the others'; none where data are read one after
    /// another.
    pub weight: Option<f64>,
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (weight, text) = split_weight(text)?;
        let (name, range) = match text.rsplit_once('#') {
            Some((name, range)) if range.contains("..") && !Path::new(text).exists() => {
                (name, Some(range))
            }
            _ => (text, None),
        };
        let range = range.map(parse_range).transpose()?;
        if name.is_empty() {
            return Err(Error::Recipe(format!("`{text}`: expected a data file")));
        }
        Ok(DataSpec {
            name: name.to_owned(),
            range,
            weight,
        })
    }
}

/// A file that is called like a weighted one is meant as it is called.
fn split_weight(text: &str) -> Result<(Option<f64>, &str)> {
    let split = text
        .split_once('*')
        .and_then(|(weight, name)| Some((weight.trim().parse::<f64>().ok()?, name)));
    match split.filter(|_| !Path::new(text).exists()) {
        None => Ok((None, text)),
        Some((weight, name)) if weight.is_finite() && weight > 0.0 => Ok((Some(weight), name)),
        Some(_) => Err(Error::Recipe(format!(
            "`{text}`: expected a positive weight, as in 0.7*web.jsonl"
        ))),
    }
}

fn parse_range(text: &str) -> Result<(Option<i64>, Option<i64>)> {
    let (from, to) = text.split_once("..").unwrap_or((text, ""));
    match (parse_bound(from), parse_bound(to)) {
        (Ok(from), Ok(to)) => Ok((from, to)),
        _ => Err(Error::Recipe(format!(
            "`#{text}`: expected a range of documents such as #..-100, #-100.. or #0..50"
        ))),
    }
}

/// None where the range is open.
fn parse_bound(word: &str) -> std::result::Result<Option<i64>, std::num::ParseIntError> {
    match word.trim() {
        "" => Ok(None),
        word => word.parse().map(Some),
    }
}

impl TryFrom<String> for DataSpec {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DataSpec> for String {
    fn from(spec: DataSpec) -> String {
        spec.to_string()
    }
}

impl std::fmt::Display for DataSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if let Some(weight) = self.weight {
            write!(f, "{weight}*")?;
        }
        f.write_str(&self.name)?;
        if let Some((from, to)) = self.range {
            let [from, to] = [from, to].map(|bound| bound.map_or(String::new(), |b| b.to_string()));
            write!(f, "#{from}..{to}")?;
        }
        Ok(())
    }
}

impl DataSpec {
    /// The corpus behind the name: the file's, by its ending, or the named plugin's.
    ///
    /// # Errors
    /// `Recipe` for an ending that no corpus reads, `Data` for a file that is not there.
    pub fn corpus(&self, registry: &Registry, reading: &Reading) -> Result<Box<dyn Corpus>> {
        let path = Path::new(&self.name);
        let tag = self.name.split(':').next().unwrap_or_default();
        if !path.exists() && registry.of_kind(Kind::Corpus).any(|d| d.tag == tag) {
            return registry.build::<dyn Corpus>(&self.name.parse::<PluginSpec>()?);
        }
        let corpus = registry.corpus_for(path, &reading.text.corpus_params())?;
        if !path.is_file() {
            return Err(Error::Data(format!("`{}`: no such file", path.display())));
        }
        Ok(corpus)
    }

    /// The name with a relative file path taken from `dir`.
    #[must_use]
    pub fn relative_to(&self, dir: &Path, registry: &Registry) -> Self {
        let tag = self.name.split(':').next().unwrap_or_default();
        if registry.of_kind(Kind::Corpus).any(|d| d.tag == tag) {
            let spec = self
                .name
                .parse::<PluginSpec>()
                .map(|spec| spec.relative_to(dir).to_string());
            // A spec that does not read is answered where it is built.
            return DataSpec {
                name: spec.unwrap_or_else(|_| self.name.clone()),
                ..*self
            };
        }
        DataSpec {
            name: dir.join(&self.name).to_string_lossy().into_owned(),
            ..*self
        }
    }
}

/// How files are read and cut.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Fields, packing, which tokens count.
    pub text: TextOptions,
    /// Tokens per window.
    pub seq_len: usize,
    /// At most so many windows.
    pub max_windows: Option<usize>,
    /// Which of them.
    pub sampling: WindowSampling,
    /// Seed of generated corpora and of spread samples.
    pub seed: u64,
}

impl TextOptions {
    /// With the length and number of windows, the first ones. `seed` is that of generated corpora
    /// and of spread samples.
    pub fn reading(&self, seq_len: usize, max_windows: Option<usize>, seed: u64) -> Reading {
        Reading {
            text: self.clone(),
            seq_len,
            max_windows,
            sampling: WindowSampling::First,
            seed,
        }
    }
}

/// Files behind a list of data, for hashing.
pub fn files_of(
    specs: &[DataSpec],
    registry: &Registry,
    reading: &Reading,
) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for spec in specs {
        files.extend(spec.corpus(registry, reading)?.files());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_like_slices() {
        let spec: DataSpec = "a.jsonl#..-100".parse().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.range),
            ("a.jsonl", Some((None, Some(-100))))
        );
        assert_eq!(spec.to_string(), "a.jsonl#..-100");
        assert_eq!("a.txt".parse::<DataSpec>().unwrap().range, None);
        assert_eq!(
            "dir#1/a.txt".parse::<DataSpec>().unwrap().name,
            "dir#1/a.txt"
        );
        assert!("a.jsonl#x..".parse::<DataSpec>().is_err());
    }

    #[test]
    fn a_weight_stands_in_front() {
        let spec: DataSpec = "0.7*web.jsonl#..-100".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.weight), ("web.jsonl", Some(0.7)));
        assert_eq!(spec.to_string(), "0.7*web.jsonl#..-100");
        assert_eq!("a*b.txt".parse::<DataSpec>().unwrap().name, "a*b.txt");
        for wrong in ["0*a.txt", "-1*a.txt", "inf*a.txt", "NaN*a.txt"] {
            assert!(wrong.parse::<DataSpec>().unwrap_err().is_usage(), "{wrong}");
        }
    }
}
