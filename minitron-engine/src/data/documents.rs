//! The documents of a list of data, one after another, from any place on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::spec::{DataSpec, Reading};
use super::text_options::{LossMask, Pack, TextOptions};
use super::tokenise::Wants;
use super::tokenizer::Tokenizer;
use minitron_core::contract::{Corpus, Document, Documents};
use minitron_core::error::{Error, Result};
use minitron_core::registry::Registry;
use minitron_core::windows::Token;

/// Parts of documents that are held back at most, of a few MiB each.
const MOST_PARTS: usize = 256;

/// A place in a list of data: before the first item of a document, or before a later part of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentPosition {
    /// Which of the list.
    pub spec: usize,
    /// Items of its corpus before it.
    pub item: u64,
    /// Documents of its corpus that end before it.
    pub document: u64,
}

/// Data in the order in which it was named.
#[derive(Debug)]
pub(super) struct DataSources {
    entries: Vec<(DataSpec, Box<dyn Corpus>)>,
    seed: u64,
}

impl DataSources {
    /// # Errors
    /// `Recipe` for an ending that no corpus reads, `Data` for a file that is not there.
    pub fn new(specs: &[DataSpec], reading: &Reading, registry: &Registry) -> Result<Self> {
        let mut entries = Vec::with_capacity(specs.len());
        for spec in specs {
            entries.push((spec.clone(), spec.corpus(registry, reading)?));
        }
        Ok(DataSources {
            entries,
            seed: reading.seed,
        })
    }

    /// As errors name it.
    pub fn name(&self) -> String {
        let names = self.entries.iter().map(|(spec, _)| {
            DataSpec {
                weight: None,
                ..spec.clone()
            }
            .to_string()
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// An error of one of the list, with its name in front where it does not name it itself.
    pub fn named(&self, spec: usize, error: Error) -> Error {
        match (error, self.entries.get(spec)) {
            (Error::Data(message), Some((spec, _))) if !message.contains(&spec.name) => {
                Error::Data(format!("`{}`: {message}", spec.name))
            }
            (other, _) => other,
        }
    }

    /// What lies on it: the spec and its corpus.
    pub fn entries(&self) -> impl Iterator<Item = (&DataSpec, &dyn Corpus)> {
        self.entries
            .iter()
            .map(|(spec, corpus)| (spec, corpus.as_ref()))
    }

    /// How documents are packed where `auto` leaves it to the first of them.
    pub fn pack(&self, text: &TextOptions) -> Result<Pack> {
        if text.pack != Pack::Auto {
            return Ok(text.pack);
        }
        if text.mask == LossMask::Answers {
            return Ok(Pack::Whole);
        }
        Ok(if self.holds_conversations()? {
            Pack::Whole
        } else {
            Pack::Stream
        })
    }

    /// Whether the first document is a conversation, or a prompt with its completion.
    pub fn holds_conversations(&self) -> Result<bool> {
        let first = self.read(DocumentPosition::default()).next().transpose()?;
        Ok(first.is_some_and(|(_, document)| matches!(document, Document::Example(_))))
    }

    /// The tokens of each item from the beginning on, and whether the document goes on with the
    /// next.
    pub fn tokenised<'s>(
        &'s self,
        tokenizer: &'s Tokenizer,
        wants: Wants,
    ) -> impl Iterator<Item = Result<(Vec<Token>, bool)>> + 's {
        let mut is_inside = false;
        self.read(DocumentPosition::default()).map(move |item| {
            let (place, document) = item?;
            let is_part = matches!(document, Document::Part(_));
            let tokens = tokenizer
                .tokenise(&document, wants)
                .map_err(|error| self.named(place.spec, error))?;
            let begins = !std::mem::replace(&mut is_inside, is_part);
            Ok((if begins { Token::begin(tokens) } else { tokens }, is_part))
        })
    }

    /// The items from a place on, each with its own.
    pub fn read(&self, from: DocumentPosition) -> DocumentReader<'_> {
        DocumentReader {
            sources: self,
            spec: from.spec,
            from: Some(from),
            open: None,
        }
    }
}

/// Reads the sources; what follows an error is not to be read.
pub(super) struct DocumentReader<'s> {
    sources: &'s DataSources,
    spec: usize,
    from: Option<DocumentPosition>,
    open: Option<Range<'s>>,
}

impl DocumentReader<'_> {
    fn advance(&mut self) -> Result<Option<(DocumentPosition, Document)>> {
        while let Some((spec, corpus)) = self.sources.entries.get(self.spec) {
            let range = match &mut self.open {
                Some(range) => range,
                None => {
                    let range = match self.from.take().filter(|place| place.item > 0) {
                        None => Range::new(self.spec, spec, corpus.documents(self.sources.seed)?),
                        Some(place) => Range::resumed(
                            place,
                            spec,
                            corpus.documents_from(self.sources.seed, place.item)?,
                        ),
                    };
                    self.open.insert(range)
                }
            };
            if let Some(found) = range.advance()? {
                return Ok(Some(found));
            }
            self.open = None;
            self.spec += 1;
        }
        Ok(None)
    }
}

impl Iterator for DocumentReader<'_> {
    type Item = Result<(DocumentPosition, Document)>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self
            .advance()
            .map_err(|error| self.sources.named(self.spec, error));
        found.transpose()
    }
}

/// Some documents of a corpus. Bounds from the end hold as many documents back as they count.
struct Range<'s> {
    items: Documents<'s>,
    /// Of the next item to be read.
    place: DocumentPosition,
    held: VecDeque<(DocumentPosition, Document)>,
    from: i64,
    to: Option<i64>,
    is_read: bool,
}

impl<'s> Range<'s> {
    fn new(spec: usize, data: &DataSpec, items: Documents<'s>) -> Self {
        let (from, to) = data.range.unwrap_or_default();
        let place = DocumentPosition {
            spec,
            ..DocumentPosition::default()
        };
        Range {
            items,
            place,
            held: VecDeque::new(),
            from: from.unwrap_or(0),
            to,
            is_read: false,
        }
    }

    /// At a place that was reached, the lower bound lies behind.
    fn resumed(place: DocumentPosition, data: &DataSpec, items: Documents<'s>) -> Self {
        Range {
            place,
            from: 0,
            ..Range::new(place.spec, data, items)
        }
    }

    fn advance(&mut self) -> Result<Option<(DocumentPosition, Document)>> {
        loop {
            if self
                .held
                .front()
                .is_some_and(|(place, _)| self.is_known_inside(place))
            {
                return Ok(self.held.pop_front());
            }
            if self.is_read {
                return Ok(None);
            }
            match self.items.next().transpose()? {
                Some(document) => self.hold(document)?,
                None => self.end(),
            }
        }
    }

    /// Whether what was read so far is enough to say that the range holds the document at this
    /// place.
    fn is_known_inside(&self, place: &DocumentPosition) -> bool {
        let n_to_follow = self.to.filter(|to| *to < 0).map_or(0, i64::unsigned_abs);
        let n_following = self.place.document.saturating_sub(place.document + 1);
        self.is_read || (self.from >= 0 && n_following >= n_to_follow)
    }

    fn hold(&mut self, document: Document) -> Result<()> {
        let place = self.place;
        let counts_from_end = self.from < 0 || self.to.is_some_and(|to| to < 0);
        if counts_from_end && matches!(document, Document::Part(_)) && self.held.len() >= MOST_PARTS
        {
            let message = "a range that counts from the end holds documents back; this one is too \
                           long for that";
            return Err(Error::Data(format!(
                "{message}; count from the beginning, or split the file"
            )));
        }
        self.place.item += 1;
        self.place.document += u64::from(!matches!(document, Document::Part(_)));
        let before = self.from >= 0 && place.document < self.from.unsigned_abs();
        let beyond = self
            .to
            .is_some_and(|to| to >= 0 && place.document >= to.unsigned_abs());
        if !before && !beyond {
            self.held.push_back((place, document));
        }
        if beyond && self.from >= 0 {
            self.is_read = true;
        }
        if self.from < 0 {
            let first = self.place.document.saturating_sub(self.from.unsigned_abs());
            while self
                .held
                .front()
                .is_some_and(|(place, _)| place.document < first)
            {
                self.held.pop_front();
            }
        }
        Ok(())
    }

    /// What is still held was waiting for the number of documents.
    fn end(&mut self) {
        self.is_read = true;
        if let Some(to) = self.to.filter(|to| *to < 0) {
            let last = self.place.document.saturating_sub(to.unsigned_abs());
            self.held.retain(|(place, _)| place.document < last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(documents: &[u32]) -> Documents<'static> {
        // Odd ones come in two parts.
        let items = documents.iter().flat_map(|&id| {
            let whole = Document::Tokens(vec![id]);
            let parts = if id % 2 == 1 {
                vec![Document::Part(Box::new(whole.clone())), whole]
            } else {
                vec![whole]
            };
            parts.into_iter().map(Ok)
        });
        Box::new(items.collect::<Vec<_>>().into_iter())
    }

    fn rest(mut range: Range) -> Vec<(DocumentPosition, Document)> {
        std::iter::from_fn(|| range.advance().unwrap()).collect()
    }

    #[test]
    fn ranges_are_slices_and_any_place_in_them_can_be_entered() {
        let documents: Vec<u32> = (0..7).collect();
        let bounds = [
            None,
            Some(0),
            Some(2),
            Some(9),
            Some(-1),
            Some(-3),
            Some(-9),
        ];
        for (from, to) in bounds.iter().flat_map(|from| bounds.map(|to| (*from, to))) {
            let place = |bound: i64| match bound < 0 {
                true => (7 + bound).max(0) as usize,
                false => bound.min(7) as usize,
            };
            let (start, end) = (from.map_or(0, place), to.map_or(7, place));
            let expected = &documents[start..end.max(start)];
            let spec = DataSpec {
                name: "x".into(),
                range: Some((from, to)),
                weight: None,
            };
            let found = rest(Range::new(0, &spec, some(&documents)));
            let mut ids: Vec<u32> = found
                .iter()
                .map(|(place, _)| place.document as u32)
                .collect();
            ids.dedup();
            assert_eq!(ids, expected, "{spec}");
            for (idx, (place, _)) in found
                .iter()
                .enumerate()
                .filter(|(_, (place, _))| place.item > 0)
            {
                let mut items = some(&documents);
                items.by_ref().take(place.item as usize).for_each(drop);
                assert_eq!(
                    rest(Range::resumed(*place, &spec, items)),
                    found[idx..],
                    "{spec} at {place:?}"
                );
            }
        }
    }

    #[test]
    fn of_a_range_without_its_end_only_the_end_is_held() {
        let spec: DataSpec = "x#..-2".parse().unwrap();
        let mut range = Range::new(
            0,
            &spec,
            Box::new((0..).map(|id| Ok(Document::Tokens(vec![id])))),
        );
        for id in 0..1000 {
            assert_eq!(
                range.advance().unwrap().unwrap().1,
                Document::Tokens(vec![id])
            );
            assert!(range.held.len() <= 3);
        }
    }
}
