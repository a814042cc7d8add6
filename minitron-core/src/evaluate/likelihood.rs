//! How likely texts are after their contexts. B batch, T tokens, E embed, V vocab, N predicted
//! tokens, Q contexts.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tch::{Kind, Reduction, Tensor};

use super::Subject;
use crate::error::{Error, Present, Result};
use crate::model::{Cache, NoTap, Transformer, row_chunks};
use crate::windows::fill;

/// Tokens, and what stands before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// What is given: one token at least.
    pub context: Vec<u32>,
    /// What is scored: one token at least.
    pub tokens: Vec<u32>,
}

/// How a model takes a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Σ log p(token | all before it) over its tokens, in nats, each in f32 at least, summed in
    /// f64.
    pub log: f64,
    /// Whether each token is the likeliest at its place.
    pub is_greedy: bool,
}

/// Likelihoods of continuations, in their order.
///
/// A context too long for the model loses its beginning: the model reads as many tokens as it has
/// positions, all but the last of a continuation. Sequences go side by side by length, as many as
/// hold the tokens of a batch of full windows (512 tokens at most). A context that several
/// continuations share is read once where that saves a quarter of the tokens, equal continuations
/// of it are scored once, so that they tie.
///
/// # Errors
/// `Data` for an encoder, an empty context or continuation, or one longer than the model's
/// positions.
pub fn likelihoods(subject: &Subject, items: &[Continuation]) -> Result<Vec<Likelihood>> {
    let _no_grad = tch::no_grad_guard();
    let model = subject.model;
    if !model.is_causal() {
        return Err(Error::Data(
            "an encoder gives no likelihood of a text; give a causal language model".into(),
        ));
    }
    let max_positions = model.spec.options.max_positions;
    let texts = distinct(items, max_positions)?;
    let (mut alone, mut shared) = (Vec::new(), Vec::new());
    for group in texts.chunk_by(|a, b| a.context == b.context) {
        if is_saving(group, model) {
            shared.push(group);
        } else {
            alone.extend(group);
        }
    }
    // Longest first: what does not fit into memory fails at once.
    alone.sort_by_key(|text| Reverse(text.n_inputs()));
    shared.sort_by_key(|group| Reverse(n_context(group)));
    let budget = subject
        .batch_size
        .max(1)
        .saturating_mul(max_positions.min(512));
    let mut tally = Tally {
        model,
        found: vec![
            Likelihood {
                log: 0.0,
                is_greedy: true
            };
            items.len()
        ],
    };
    subject
        .progress
        .start("likelihood, texts", texts.len() as u64);
    for batch in batches(&alone, |batch| {
        batch.len() * batch.first().map_or(0, |text| text.n_inputs()) <= budget
    }) {
        tally.whole(batch)?;
        subject.progress.advance(batch.len() as u64, "");
    }
    for batch in batches(&shared, |batch| fits(batch, budget)) {
        tally.shared(batch)?;
        subject
            .progress
            .advance(batch.iter().map(|group| group.len() as u64).sum(), "");
    }
    subject.progress.finish();
    Ok(tally.found)
}

/// One continuation, and the items that it is.
#[derive(Debug)]
struct Text<'a> {
    context: &'a [u32],
    tokens: &'a [u32],
    items: Vec<usize>,
}

impl<'a> Text<'a> {
    /// The last token is predicted, and not read.
    fn n_inputs(&self) -> usize {
        self.context.len() + self.tokens.len() - 1
    }

    fn read(&self) -> &'a [u32] {
        self.tokens.split_last().map_or(&[], |(_, read)| read)
    }
}

/// By context; what does not fit the positions is cut off at the front.
fn distinct(items: &[Continuation], max_positions: usize) -> Result<Vec<Text<'_>>> {
    let mut texts: BTreeMap<(&[u32], &[u32]), Vec<usize>> = BTreeMap::new();
    for (idx, Continuation { context, tokens }) in items.iter().enumerate() {
        if context.is_empty() || tokens.is_empty() {
            return Err(Error::Data(
                "expected at least one token in a context and in what follows it".into(),
            ));
        }
        if tokens.len() > max_positions {
            let message = format!(
                "a continuation of {} tokens; this model has {max_positions} positions",
                tokens.len()
            );
            return Err(Error::Data(message));
        }
        let room = max_positions + 1 - tokens.len();
        let kept = context.split_at(context.len().saturating_sub(room)).1;
        texts.entry((kept, tokens)).or_default().push(idx);
    }
    Ok(texts
        .into_iter()
        .map(|((context, tokens), items)| Text {
            context,
            tokens,
            items,
        })
        .collect())
}

fn n_context(group: &[Text]) -> usize {
    group.first().map_or(0, |text| text.context.len())
}

fn is_saving(group: &[Text], model: &Transformer) -> bool {
    let longest = group.iter().map(Text::n_inputs).max().unwrap_or(0);
    if !model.spec.states_hold(n_context(group), longest) {
        return false;
    }
    let n_all: usize = group.iter().map(Text::n_inputs).sum();
    4 * n_context(group) * (group.len() - 1) >= n_all && group.len() > 1
}

/// Contexts of one length, whose continuations take no more than the budget with what they see.
fn fits(batch: &[&[Text]], budget: usize) -> bool {
    let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
        return true;
    };
    let texts = batch.iter().copied().flatten();
    let longest = texts.clone().map(Text::n_inputs).max().unwrap_or(0);
    n_context(first) == n_context(last) && longest * texts.count() <= budget
}

/// Greedy, one element at least in each.
fn batches<T>(sorted: &[T], fits: impl Fn(&[T]) -> bool) -> Vec<&[T]> {
    let (mut cut, mut rest) = (Vec::new(), sorted);
    while !rest.is_empty() {
        let mut n = 1;
        while rest.get(..n + 1).is_some_and(&fits) {
            n += 1;
        }
        let (batch, left) = rest.split_at(n);
        cut.push(batch);
        rest = left;
    }
    cut
}

/// Of texts in order, the longest first: whether little of a batch is padding.
fn are_about_as_long(texts: &[(usize, &Text)]) -> bool {
    match (texts.first(), texts.last()) {
        (Some((_, longest)), Some((_, shortest))) => {
            4 * shortest.tokens.len() >= 3 * longest.tokens.len()
        }
        _ => true,
    }
}

/// What was found of each item so far.
struct Tally<'m> {
    model: &'m Transformer,
    found: Vec<Likelihood>,
}

impl Tally<'_> {
    /// Context and continuation in one forward pass: later positions do not reach earlier ones, so
    /// padding does not show.
    fn whole(&mut self, batch: &[&Text]) -> Result<()> {
        let inputs: Vec<Vec<u32>> = batch
            .iter()
            .map(|text| [text.context, text.read()].concat())
            .collect();
        let (ids_bt, _) = fill(
            &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            self.model.device,
        )?;
        let hidden_bte = self.model.hidden(&ids_bt, &mut NoTap, None)?;
        let mut predicted = Vec::new();
        for (row, text) in batch.iter().enumerate() {
            let places = text.context.len() - 1..;
            predicted.extend(
                text.tokens
                    .iter()
                    .zip(places)
                    .map(|(&label, place)| Predicted {
                        text,
                        row,
                        place,
                        label,
                    }),
            );
        }
        self.take(&hidden_bte, &predicted)
    }

    /// Every context once, and its continuations behind its keys and values, those of about one
    /// length side by side.
    fn shared(&mut self, batch: &[&[Text]]) -> Result<()> {
        let contexts: Vec<&[u32]> = batch
            .iter()
            .filter_map(|group| group.first())
            .map(|text| text.context)
            .collect();
        let (ids_qt, _) = fill(&contexts, self.model.device)?;
        let mut cache = Cache::new(self.model);
        let hidden_qte = self.model.hidden(&ids_qt, &mut NoTap, Some(&mut cache))?;
        let texts = batch
            .iter()
            .enumerate()
            .flat_map(|(row, group)| group.iter().map(move |text| (row, text)));
        let (mut first, mut longer) = (Vec::new(), Vec::new());
        for (row, text) in texts {
            let label = text.tokens.first().copied().present("a token to predict")?;
            first.push(Predicted {
                text,
                row,
                place: text.context.len() - 1,
                label,
            });
            if text.tokens.len() > 1 {
                longer.push((row, text));
            }
        }
        self.take(&hidden_qte, &first)?;
        longer.sort_by_key(|(_, text)| Reverse(text.tokens.len()));
        for part in batches(&longer, are_about_as_long) {
            self.behind(&cache, part)?;
        }
        Ok(())
    }

    /// All tokens but the first of these texts, behind the rows of a cache that hold their
    /// contexts.
    fn behind(&mut self, cache: &Cache, texts: &[(usize, &Text)]) -> Result<()> {
        let rows: Vec<i64> = texts.iter().map(|(row, _)| *row as i64).collect();
        let mut cache =
            cache.rows(&Tensor::f_from_slice(&rows)?.f_to_device(self.model.device)?)?;
        let (ids_bt, _) = fill(
            &texts
                .iter()
                .map(|(_, text)| text.read())
                .collect::<Vec<_>>(),
            self.model.device,
        )?;
        let hidden_bte = self.model.hidden(&ids_bt, &mut NoTap, Some(&mut cache))?;
        let mut predicted = Vec::new();
        for (row, (_, text)) in texts.iter().enumerate() {
            let later = text.tokens.iter().skip(1).enumerate();
            predicted.extend(later.map(|(place, &label)| Predicted {
                text,
                row,
                place,
                label,
            }));
        }
        self.take(&hidden_bte, &predicted)
    }

    /// Adds what the hidden states [B, T, E] say of these tokens.
    fn take(&mut self, hidden_bte: &Tensor, predicted: &[Predicted]) -> Result<()> {
        let (_, n_tokens, n_embed) = hidden_bte.size3()?;
        let device = self.model.device;
        let flat: Vec<i64> = predicted
            .iter()
            .map(|p| p.row as i64 * n_tokens + p.place as i64)
            .collect();
        let flat_n = Tensor::f_from_slice(&flat)?.f_to_device(device)?;
        let labels: Vec<i64> = predicted.iter().map(|p| i64::from(p.label)).collect();
        let labels_n = Tensor::f_from_slice(&labels)?.f_to_device(device)?;
        let hidden_ne = hidden_bte
            .f_reshape([-1, n_embed])?
            .f_index_select(0, &flat_n)?;
        let mut left = predicted.iter();
        let vocab = self.model.spec.options.vocab;
        for (start, len) in row_chunks(predicted.len() as i64, vocab, device) {
            let logits_nv = self
                .model
                .logits(&hidden_ne.f_narrow(0, start, len)?)?
                .f_to_kind(Kind::Float)?;
            let labels_n = labels_n.f_narrow(0, start, len)?;
            let loss_n = logits_nv.f_cross_entropy_loss(
                &labels_n,
                None::<Tensor>,
                Reduction::None,
                -100,
                0.0,
            )?;
            let is_best_n = logits_nv.f_argmax(-1, false)?.f_eq_tensor(&labels_n)?;
            let losses = Vec::<f64>::try_from(&loss_n.f_to_kind(Kind::Double)?)?;
            let are_best = Vec::<bool>::try_from(&is_best_n)?;
            for ((loss, is_best), predicted) in losses.into_iter().zip(are_best).zip(left.by_ref())
            {
                self.add(predicted.text, loss, is_best);
            }
        }
        Ok(())
    }

    fn add(&mut self, text: &Text, loss: f64, is_best: bool) {
        for &item in &text.items {
            if let Some(found) = self.found.get_mut(item) {
                found.log -= loss;
                found.is_greedy &= is_best;
            }
        }
    }
}

/// A token, and where the state stands that predicts it.
struct Predicted<'a> {
    text: &'a Text<'a>,
    row: usize,
    place: usize,
    label: u32,
}
