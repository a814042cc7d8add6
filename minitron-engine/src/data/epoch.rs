//! Documents of one epoch after another, read, tokenised and packed into blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use super::block::{Source, Start, TokenBlock};
use super::documents::{DocumentPosition, DocumentReader};
use super::packing::{WholePacker, cut_at_turns};
use super::text_options::Pack;
use minitron_core::contract::Document;
use minitron_core::error::{Error, Present, Result};
use minitron_core::windows::{Token, Tokenize, Windows};

/// Bytes of text or ids that are tokenised together, at least.
const GROUP_BYTES: usize = 1 << 22;
/// Documents that are tokenised together, at most.
const GROUP_LEN: usize = 4096;

/// Sends block after block, epoch after epoch, until the other side is gone, an error was sent, or
/// a single block turned out to be the whole epoch.
pub(super) fn send_blocks(
    source: &Source,
    start: Start,
    blocks: &SyncSender<Result<TokenBlock>>,
    stop: &AtomicBool,
) {
    if let Err(error) = pack_all(source, start, blocks, stop) {
        // Nobody waits for it any more where this fails.
        blocks.send(Err(error)).unwrap_or_default();
    }
}

fn pack_all(
    source: &Source,
    mut start: Start,
    blocks: &SyncSender<Result<TokenBlock>>,
    stop: &AtomicBool,
) -> Result<()> {
    loop {
        let mut packer = Packer::new(source, start, stop);
        while let Some(block) =
            tracing::debug_span!("tokenise block").in_scope(|| packer.block())?
        {
            let is_last = block.is_epoch;
            if blocks.send(Ok(block)).is_err() || is_last {
                return Ok(());
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        start = Start {
            epoch: start.epoch + 1,
            ..Start::default()
        };
    }
}

/// Tokens of one item.
struct Item {
    place: DocumentPosition,
    tokens: Vec<Token>,
    /// Whether the document goes on with the next.
    is_part: bool,
}

/// Packs one epoch.
struct Packer<'s> {
    source: &'s Source,
    stop: &'s AtomicBool,
    reader: DocumentReader<'s>,
    /// Tokenised, in no block yet.
    pending: VecDeque<Item>,
    /// Tokens of the first pending item that are in a block.
    n_carried: usize,
    /// Met behind what is pending.
    failure: Option<Error>,
    is_read: bool,
    /// Whether the last item read leaves its document open.
    is_inside: bool,
    next: Start,
}

impl<'s> Packer<'s> {
    fn new(source: &'s Source, start: Start, stop: &'s AtomicBool) -> Self {
        Packer {
            source,
            stop,
            reader: source.sources.read(start.place),
            pending: VecDeque::new(),
            n_carried: start.n_carried,
            failure: None,
            is_read: false,
            is_inside: false,
            next: start,
        }
    }

    /// The next block; none at the end of the epoch, or where it was told to stop.
    fn block(&mut self) -> Result<Option<TokenBlock>> {
        let mut start = self.next;
        if self.fill()? {
            let front = self.pending.front();
            start.place = front.map_or(start.place, |item| item.place);
            start.n_carried = self.n_carried;
        }
        let is_first = start.block == 0;
        let source = self.source;
        let name = source.sources.name();
        let kind = (name.as_str(), source.inside_documents);
        let windows = match source.pack {
            Pack::Auto | Pack::Stream => {
                let tokens = self.stream()?;
                if self.is_stopped() || (tokens.len() < source.seq_len && !is_first) {
                    return Ok(None);
                }
                Windows::cut_stream(
                    tokens,
                    source.seq_len,
                    None,
                    source.tokenizer.special_tokens(),
                    kind,
                )?
            }
            Pack::Documents | Pack::Whole => {
                let documents = self.documents()?;
                if self.is_stopped() || (documents.is_empty() && !is_first) {
                    return Ok(None);
                }
                Windows::of_runs(
                    self.runs(documents),
                    None,
                    source.tokenizer.special_tokens(),
                    kind,
                )?
            }
        };
        self.next = Start {
            block: start.block + 1,
            window: start.window + windows.len() as u64,
            ..start
        };
        let is_epoch = is_first && self.is_read && self.pending.is_empty();
        Ok(Some(TokenBlock::new(
            start,
            Arc::new(windows),
            is_epoch,
            source.seed,
            source.idx,
        )))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tokens of as many windows as a block holds, or those left in the epoch.
    fn stream(&mut self) -> Result<Vec<Token>> {
        let Source {
            seq_len,
            block_tokens,
            ..
        } = *self.source;
        let goal = (block_tokens / seq_len).max(1) * seq_len;
        let mut tokens = Vec::new();
        while tokens.len() < goal && self.fill()? {
            let Some(item) = self.pending.front() else {
                break;
            };
            let left = item
                .tokens
                .get(self.n_carried..)
                .present("the rest of a document")?;
            let taken = left.get(..goal - tokens.len()).unwrap_or(left);
            tokens.extend_from_slice(taken);
            self.n_carried += taken.len();
            if taken.len() == left.len() {
                self.pending.pop_front();
                self.n_carried = 0;
            }
        }
        Ok(tokens)
    }

    /// What a window holds each, of documents.
    fn runs(&self, documents: Vec<Vec<Token>>) -> Vec<Vec<Token>> {
        let seq_len = self.source.seq_len;
        if self.source.pack == Pack::Whole {
            let mut packer = WholePacker::new(seq_len);
            documents.iter().for_each(|document| packer.push(document));
            return packer.finish();
        }
        let mut runs = Vec::with_capacity(documents.len());
        for document in documents {
            if let Some(first) = cut_at_turns(&document, seq_len).first() {
                runs.push(first.to_vec());
            }
        }
        runs
    }

    /// Documents of two tokens or more that fit into a block or are left in the epoch.
    fn documents(&mut self) -> Result<Vec<Vec<Token>>> {
        let (mut documents, mut n_tokens) = (Vec::new(), 0);
        let most = if self.source.pack == Pack::Whole {
            usize::MAX
        } else {
            self.source.seq_len
        };
        while let Some(document) = self.document()? {
            if document.tokens.len() < 2 {
                continue;
            }
            n_tokens += document.tokens.len().min(most);
            if n_tokens > self.source.block_tokens && !documents.is_empty() {
                self.pending.push_front(document);
                break;
            }
            documents.push(document.tokens);
        }
        Ok(documents)
    }

    /// The next document as one item: of one that has a window of its own, no more than says
    /// whether it has room.
    fn document(&mut self) -> Result<Option<Item>> {
        let Source {
            pack,
            seq_len,
            block_tokens,
            ..
        } = *self.source;
        let most = if pack == Pack::Whole {
            block_tokens
        } else {
            seq_len.saturating_add(1)
        };
        let mut whole: Option<Item> = None;
        while self.fill()? {
            let Some(item) = self.pending.pop_front() else {
                break;
            };
            let is_part = item.is_part;
            let whole = whole.get_or_insert(Item {
                place: item.place,
                tokens: Vec::new(),
                is_part: false,
            });
            whole.tokens.extend(item.tokens);
            if whole.tokens.len() > most && pack == Pack::Whole {
                let message = format!(
                    "a document of more than {most} tokens is too long to stay whole; pack: stream"
                );
                return Err(self
                    .source
                    .sources
                    .named(whole.place.spec, Error::Data(message)));
            }
            whole.tokens.truncate(most);
            if !is_part {
                break;
            }
        }
        Ok(whole)
    }

    /// Sees to it that something is pending; false at the end of the epoch, or where it was told to
    /// stop.
    fn fill(&mut self) -> Result<bool> {
        while self.pending.is_empty() && !self.is_read {
            if self.is_stopped() {
                return Ok(false);
            }
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            let group = self.group();
            for alike in group.chunk_by(|a, b| a.0.spec == b.0.spec) {
                let (places, documents): (Vec<DocumentPosition>, Vec<&Document>) =
                    alike.iter().map(|(p, d)| (*p, d)).unzip();
                let spec = places.first().map_or(0, |place| place.spec);
                let Source {
                    sources,
                    tokenizer,
                    wants,
                    ..
                } = self.source;
                let tokens = tokenizer.tokenise_all(&documents, *wants);
                let tokens = tokens.map_err(|error| sources.named(spec, error))?;
                let mut items = Vec::with_capacity(documents.len());
                for ((place, document), tokens) in places.into_iter().zip(documents).zip(tokens) {
                    let is_part = matches!(document, Document::Part(_));
                    let begins = !std::mem::replace(&mut self.is_inside, is_part);
                    items.push(Item {
                        place,
                        tokens: if begins { Token::begin(tokens) } else { tokens },
                        is_part,
                    });
                }
                // Without tokens there is nothing to begin a block with; the end of a document says
                // something all the same.
                let is_stream = matches!(self.source.pack, Pack::Auto | Pack::Stream);
                self.pending.extend(
                    items
                        .into_iter()
                        .filter(|item| !item.tokens.is_empty() || !is_stream),
                );
            }
        }
        Ok(!self.pending.is_empty())
    }

    /// Items to tokenise together.
    fn group(&mut self) -> Vec<(DocumentPosition, Document)> {
        let (mut group, mut n_bytes) = (Vec::new(), 0);
        while n_bytes < GROUP_BYTES && group.len() < GROUP_LEN {
            match self.reader.next() {
                None => {
                    self.is_read = true;
                    break;
                }
                Some(Err(error)) => {
                    self.failure = Some(error);
                    break;
                }
                Some(Ok((place, document))) => {
                    n_bytes += n_bytes_of(&document);
                    group.push((place, document));
                }
            }
        }
        group
    }
}

fn n_bytes_of(document: &Document) -> usize {
    match document {
        Document::Text(text) => text.len(),
        Document::Tokens(ids) => size_of_val(ids.as_slice()),
        Document::Part(part) => n_bytes_of(part),
        // Templates add little.
        Document::Example(example) => example.n_bytes(),
    }
}
