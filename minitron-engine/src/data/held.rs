//! All windows of some data at once, for scoring and evaluating.

use super::documents::DataSources;
use super::packing::{WholePacker, cut_at_turns};
use super::sampling::WindowSampling;
use super::spec::{DataSpec, Reading};
use super::text_options::{Attend, LossMask, Pack};
use super::tokenise::Wants;
use super::tokenizer::Tokenizer;
use minitron_core::error::{Error, Result};
use minitron_core::registry::Registry;
use minitron_core::windows::{Token, Tokenize, Windows, predicts};

impl Reading {
    /// Whether attention stays inside documents.
    pub(super) fn is_inside_documents(&self) -> bool {
        self.text.attend == Attend::Documents
    }

    /// What tokenising has to find out.
    pub(super) fn wants(&self, pack: Pack) -> Wants {
        Wants {
            answers: self.text.mask == LossMask::Answers,
            turns: matches!(pack, Pack::Documents | Pack::Whole),
        }
    }

    /// With windows taken so.
    pub fn sampled(self, sampling: WindowSampling) -> Self {
        Reading { sampling, ..self }
    }

    /// Windows that are read; none for all there are.
    fn n_read(&self) -> Option<usize> {
        let wanted = self.max_windows?;
        Some(self.sampling.n_read(wanted, self.seq_len))
    }

    /// Of so many that were read, those that are wanted; none for all.
    fn chosen(&self, n: usize) -> Option<Vec<usize>> {
        let wanted = self.max_windows?;
        self.sampling.chosen(n, wanted, self.seed)
    }

    /// Reads, tokenises, joins and cuts.
    ///
    /// # Errors
    /// `Data` when there is less than one window, or a token lies outside the vocabulary.
    pub fn windows(
        &self,
        specs: &[DataSpec],
        tokenizer: &Tokenizer,
        registry: &Registry,
    ) -> Result<Windows> {
        let _span = tracing::info_span!("tokenise").entered();
        if self.seq_len < 2 {
            return Err(Error::Recipe(format!(
                "seq_len: expected at least 2 tokens, got {}",
                self.seq_len
            )));
        }
        if self.max_windows == Some(0) {
            return Err(Error::Recipe("samples: expected at least 1".into()));
        }
        if specs.iter().any(|spec| spec.weight.is_some()) {
            return Err(Error::Recipe(
                "data: weights mix text for training; leave them out here".into(),
            ));
        }
        self.text.check(tokenizer.special_tokens().is_some())?;
        let sources = DataSources::new(specs, self, registry)?;
        let (name, pack) = (sources.name(), sources.pack(&self.text)?);
        let kind = (name.as_str(), self.is_inside_documents());
        match pack {
            Pack::Documents => {
                let documents = self.documents(&sources, tokenizer, pack)?;
                self.of_runs(documents, tokenizer, kind)
            }
            Pack::Whole => {
                let runs = self.packed(&sources, tokenizer)?;
                self.of_runs(runs, tokenizer, kind)
            }
            Pack::Auto | Pack::Stream => {
                let tokens = self.stream(&sources, tokenizer, pack)?;
                let windows = Windows::cut_stream(
                    tokens,
                    self.seq_len,
                    self.n_read(),
                    tokenizer.special_tokens(),
                    kind,
                )?;
                match self.chosen(windows.len()) {
                    Some(chosen) => windows.chosen(&chosen),
                    None => Ok(windows),
                }
            }
        }
    }

    /// A window each, those that are wanted.
    fn of_runs(
        &self,
        mut runs: Vec<Vec<Token>>,
        tokenizer: &Tokenizer,
        kind: (&str, bool),
    ) -> Result<Windows> {
        runs.retain(|run| predicts(run));
        runs.truncate(self.n_read().unwrap_or(usize::MAX));
        // Before they are sorted by length.
        if let Some(chosen) = self.chosen(runs.len()) {
            let mut places = 0..;
            runs.retain(|_| {
                let place = places.next();
                place.is_some_and(|place| chosen.binary_search(&place).is_ok())
            });
        }
        Windows::of_runs(runs, None, tokenizer.special_tokens(), kind)
    }

    /// All documents in one stream, as far as it is wanted.
    fn stream(
        &self,
        sources: &DataSources,
        tokenizer: &Tokenizer,
        pack: Pack,
    ) -> Result<Vec<Token>> {
        let wanted = self
            .n_read()
            .map_or(usize::MAX, |n| n.saturating_mul(self.seq_len));
        let mut tokens = Vec::new();
        for item in sources.tokenised(tokenizer, self.wants(pack)) {
            tokens.extend(item?.0);
            if tokens.len() >= wanted {
                break;
            }
        }
        Ok(tokens)
    }

    /// Documents cut at a window's length, or where the last turn ends that has room; those of two
    /// tokens or more are as many as are read.
    fn documents(
        &self,
        sources: &DataSources,
        tokenizer: &Tokenizer,
        pack: Pack,
    ) -> Result<Vec<Vec<Token>>> {
        let most = self.n_read();
        let (mut documents, mut document, mut n_found) = (Vec::new(), Vec::new(), 0);
        for item in sources.tokenised(tokenizer, self.wants(pack)) {
            let (tokens, is_part) = item?;
            // Of a long document no more than its window is held.
            document.extend(
                tokens.into_iter().take(
                    self.seq_len
                        .saturating_add(1)
                        .saturating_sub(document.len()),
                ),
            );
            if is_part {
                continue;
            }
            let first = cut_at_turns(&document, self.seq_len)
                .first()
                .map(|piece| piece.to_vec());
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
            if self.n_read().is_some_and(|most| packer.n_closed() >= most) {
                break;
            }
        }
        Ok(packer.finish())
    }
}
