//! Data as people name it: a file, a range of its documents, or a corpus plugin.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::documents::{Place, Shelf};
use super::tokenizer::Tokenizer;
use super::windows::Windows;
use crate::contract::{Corpus, Document};
use crate::error::{Error, Result};
use crate::registry::{Kind, PluginSpec, Registry};

/// `FILE`, `FILE#a..b` (documents a to b, negative from the end, as in Python), or `corpus:key=value`; `0.7*` in front of
/// any of them is its share in a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct DataSpec {
    /// The file or the corpus plugin.
    pub name: String,
    /// Documents, where not all.
    pub range: Option<(Option<i64>, Option<i64>)>,
    /// Share of training windows, relative to the others'; none where data are read one after another.
    pub weight: Option<f64>,
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (weight, text) = split_weight(text)?;
        let (name, range) = match text.rsplit_once('#') {
            Some((name, range)) if range.contains("..") && !Path::new(text).exists() => (name, Some(range)),
            _ => (text, None),
        };
        let range = range.map(parse_range).transpose()?;
        if name.is_empty() {
            return Err(Error::Recipe(format!("`{text}`: expected a data file")));
        }
        Ok(DataSpec { name: name.to_owned(), range, weight })
    }
}

/// A file that is called like a weighted one is meant as it is called.
fn split_weight(text: &str) -> Result<(Option<f64>, &str)> {
    let split = text.split_once('*').and_then(|(weight, name)| Some((weight.trim().parse::<f64>().ok()?, name)));
    match split.filter(|_| !Path::new(text).exists()) {
        None => Ok((None, text)),
        Some((weight, name)) if weight.is_finite() && weight > 0.0 => Ok((Some(weight), name)),
        Some(_) => Err(Error::Recipe(format!("`{text}`: expected a positive weight, as in 0.7*web.jsonl"))),
    }
}

fn parse_range(text: &str) -> Result<(Option<i64>, Option<i64>)> {
    let bound = |word: &str| match word.trim() {
        "" => Ok(None),
        word => word.parse::<i64>().map(Some).map_err(|_| {
            Error::Recipe(format!("`#{text}`: expected a range of documents such as #..-100, #-100.. or #0..50"))
        }),
    };
    let (from, to) = text.split_once("..").unwrap_or((text, ""));
    Ok((bound(from)?, bound(to)?))
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
            let bound = |b: Option<i64>| b.map_or(String::new(), |b| b.to_string());
            write!(f, "#{}..{}", bound(from), bound(to))?;
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
        let corpus = registry.corpus_for(path, &reading.params())?;
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
            let spec = self.name.parse::<PluginSpec>().map(|spec| spec.relative_to(dir).to_string());
            // A spec that does not read is answered where it is built.
            return DataSpec { name: spec.unwrap_or_else(|_| self.name.clone()), ..*self };
        }
        DataSpec { name: dir.join(&self.name).to_string_lossy().into_owned(), ..*self }
    }
}

/// How files are read and cut.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Field of JSON lines, column of Parquet files.
    pub field: Option<String>,
    /// Element type of `.bin` files.
    pub token_type: Option<String>,
    /// Tokens per window.
    pub seq_len: usize,
    /// At most so many windows, the first ones.
    pub max_windows: Option<usize>,
    /// Seed of generated corpora.
    pub seed: u64,
    /// How documents become windows.
    pub pack: Pack,
}

/// How documents become windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pack {
    /// All documents in one stream, cut into windows of one length without overlap.
    #[default]
    Stream,
    /// Each document a window of its own, cut at that length: for short records that each begin at the first position.
    Documents,
}

impl FromStr for Pack {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "stream" => Ok(Pack::Stream),
            "documents" => Ok(Pack::Documents),
            other => Err(Error::unknown("way to pack", other, ["stream", "documents"])),
        }
    }
}

impl Reading {
    fn params(&self) -> Vec<(&'static str, String)> {
        let pair = |key, value: &Option<String>| value.clone().map(|value| (key, value));
        [pair("field", &self.field), pair("token_type", &self.token_type)].into_iter().flatten().collect()
    }

    /// Reads, tokenises, joins and cuts.
    ///
    /// # Errors
    /// `Data` when there is less than one window, or a token lies outside the vocabulary.
    pub fn windows(&self, specs: &[DataSpec], tokenizer: &Tokenizer, registry: &Registry) -> Result<Windows> {
        let _span = tracing::info_span!("tokenise").entered();
        if self.seq_len < 2 {
            return Err(Error::Recipe(format!("seq_len: expected at least 2 tokens, got {}", self.seq_len)));
        }
        if self.max_windows == Some(0) {
            return Err(Error::Recipe("samples: expected at least 1".into()));
        }
        if specs.iter().any(|spec| spec.weight.is_some()) {
            return Err(Error::Recipe("data: weights mix text for training; leave them out here".into()));
        }
        let wanted = self.max_windows.map(|n| n.saturating_mul(self.seq_len));
        let shelf = Shelf::new(specs, self, registry)?;
        let mut tokens: Vec<u32> = Vec::new();
        let (mut ends, mut n_documents) = (Vec::new(), 0);
        for item in shelf.read(Place::default()) {
            let (place, document) = item?;
            tokenizer.append(&document, &mut tokens).map_err(|error| shelf.named(place.spec, error))?;
            let start = ends.last().copied().unwrap_or(0);
            if self.pack == Pack::Documents {
                tokens.truncate(self.seq_len.saturating_add(start));
            }
            if !matches!(document, Document::Part(_)) {
                // One token is no window.
                n_documents += usize::from(tokens.len() - start > 1);
                ends.push(tokens.len());
            }
            let is_enough = match self.pack {
                Pack::Stream => wanted.is_some_and(|wanted| tokens.len() >= wanted),
                Pack::Documents => self.max_windows.is_some_and(|n| n_documents >= n),
            };
            if is_enough {
                break;
            }
        }
        let name = shelf.name();
        if self.pack == Pack::Stream {
            return Windows::cut(tokens, self.seq_len, self.max_windows, tokenizer, &name);
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let document = |(from, &to): (usize, &usize)| tokens.get(from..to).unwrap_or_default().to_vec();
        let documents = starts.zip(&ends).map(document).collect();
        Windows::of_documents(documents, self.seq_len, self.max_windows, tokenizer, &name)
    }
}

/// Files behind a list of data, for hashing.
pub fn files_of(specs: &[DataSpec], registry: &Registry, reading: &Reading) -> Result<Vec<PathBuf>> {
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
        assert_eq!((spec.name.as_str(), spec.range), ("a.jsonl", Some((None, Some(-100)))));
        assert_eq!(spec.to_string(), "a.jsonl#..-100");
        assert_eq!("a.txt".parse::<DataSpec>().unwrap().range, None);
        assert_eq!("dir#1/a.txt".parse::<DataSpec>().unwrap().name, "dir#1/a.txt");
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
