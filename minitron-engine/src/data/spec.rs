//! Data as people name it: a file, a range of its documents, or a corpus plugin.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::documents::DataSources;
use super::packing::{WholePacker, cut_at_turns};
use super::text_options::{Attend, LossMask, Pack, TextOptions};
use super::tokenise::Wants;
use super::tokenizer::Tokenizer;
use minitron_core::contract::Corpus;
use minitron_core::error::{Error, Result};
use minitron_core::registry::{Kind, PluginSpec, Registry};
use minitron_core::windows::Windows;
use minitron_core::windows::{Token, Tokenize};

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
    /// Fields, packing, which tokens count.
    pub text: TextOptions,
    /// Tokens per window.
    pub seq_len: usize,
    /// At most so many windows, the first ones.
    pub max_windows: Option<usize>,
    /// Seed of generated corpora.
    pub seed: u64,
}

impl Reading {
    /// Whether attention stays inside documents.
    pub(super) fn is_inside_documents(&self) -> bool {
        self.text.attend == Attend::Documents
    }

    /// What tokenising has to find out.
    pub(super) fn wants(&self, pack: Pack) -> Wants {
        Wants { answers: self.text.mask == LossMask::Answers, turns: matches!(pack, Pack::Documents | Pack::Whole) }
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
        self.text.check(tokenizer.special_tokens().is_some())?;
        let sources = DataSources::new(specs, self, registry)?;
        let (name, pack) = (sources.name(), sources.pack(&self.text)?);
        let kind = (name.as_str(), self.is_inside_documents());
        match pack {
            Pack::Documents => {
                let documents = self.documents(&sources, tokenizer, pack, self.max_windows)?;
                Windows::of_runs(documents, self.max_windows, tokenizer.special_tokens(), kind)
            }
            Pack::Whole => {
                let windows = self.packed(&sources, tokenizer)?;
                Windows::of_runs(windows, self.max_windows, tokenizer.special_tokens(), kind)
            }
            Pack::Auto | Pack::Stream => {
                let tokens = self.stream(&sources, tokenizer, pack)?;
                Windows::cut_stream(tokens, self.seq_len, self.max_windows, tokenizer.special_tokens(), kind)
            }
        }
    }

    /// All documents in one stream, as far as it is wanted.
    fn stream(&self, sources: &DataSources, tokenizer: &Tokenizer, pack: Pack) -> Result<Vec<Token>> {
        let wanted = self.max_windows.map_or(usize::MAX, |n| n.saturating_mul(self.seq_len));
        let mut tokens = Vec::new();
        for item in sources.tokenised(tokenizer, self.wants(pack)) {
            tokens.extend(item?.0);
            if tokens.len() >= wanted {
                break;
            }
        }
        Ok(tokens)
    }

    /// Documents cut at a window's length, or where the last turn ends that has room; at most so many of two tokens or more.
    fn documents(
        &self,
        sources: &DataSources,
        tokenizer: &Tokenizer,
        pack: Pack,
        most: Option<usize>,
    ) -> Result<Vec<Vec<Token>>> {
        let (mut documents, mut document, mut n_found) = (Vec::new(), Vec::new(), 0);
        for item in sources.tokenised(tokenizer, self.wants(pack)) {
            let (tokens, is_part) = item?;
            // Of a long document no more than its window is held.
            document.extend(tokens.into_iter().take(self.seq_len.saturating_add(1).saturating_sub(document.len())));
            if is_part {
                continue;
            }
            let first = cut_at_turns(&document, self.seq_len).first().map(|piece| piece.to_vec());
            document.clear();
            n_found += usize::from(first.as_ref().is_some_and(|piece| piece.len() > 1));
            documents.extend(first);
            if most.is_some_and(|most| n_found >= most) {
                break;
            }
        }
        Ok(documents)
    }

    /// Whole documents together, as many as a window has room for.
    fn packed(&self, sources: &DataSources, tokenizer: &Tokenizer) -> Result<Vec<Vec<Token>>> {
        let (mut packer, mut document) = (WholePacker::new(self.seq_len), Vec::new());
        for item in sources.tokenised(tokenizer, self.wants(Pack::Whole)) {
            let (tokens, is_part) = item?;
            document.extend(tokens);
            if !is_part {
                // One token is no document.
                packer.push(if document.len() > 1 { &document } else { &[] });
                document.clear();
            }
            if self.max_windows.is_some_and(|most| packer.n_closed() >= most) {
                break;
            }
        }
        Ok(packer.finish())
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
