//! Texts after their contexts: one by one, side by side, behind a context that is read once.

use minitron::{families, forward};
use minitron_core::contract::Subject;
use minitron_core::error::Result;
use minitron_core::evaluate::{Continuation, Likelihood, likelihoods};
use minitron_core::model::Transformer;
use minitron_core::progress::Silent;
use minitron_core::random::SplitMix;
use tch::{Kind, Tensor};

use super::Model;

fn found(
    model: &Transformer,
    items: &[Continuation],
    batch_size: usize,
) -> Result<Vec<Likelihood>> {
    let subject = Subject {
        model,
        teacher: None,
        kept_hidden: None,
        windows: None,
        tokenizer: None,
        batch_size,
        seed: 0,
        progress: &Silent,
    };
    likelihoods(&subject, items)
}

/// One forward pass over the whole text.
fn alone(model: &Transformer, item: &Continuation) -> Likelihood {
    let ids: Vec<i64> = item
        .context
        .iter()
        .chain(&item.tokens)
        .map(|&id| i64::from(id))
        .collect();
    let logits_tv = forward(
        model,
        &Tensor::from_slice(&ids[..ids.len() - 1]).unsqueeze(0),
    )
    .unwrap()
    .get(0);
    let log_tv = logits_tv.log_softmax(-1, Kind::Double);
    let (mut log, mut is_greedy) = (0.0, true);
    for (place, &id) in ids.iter().enumerate().skip(item.context.len()) {
        let log_v = log_tv.get(place as i64 - 1);
        log += log_v.double_value(&[id]);
        is_greedy &= log_v.argmax(-1, false).int64_value(&[]) == id;
    }
    Likelihood { log, is_greedy }
}

fn assert_close(found: &[Likelihood], expected: &[Likelihood], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (idx, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = (found.log - expected.log).abs() <= 1e-5 * expected.log.abs().max(1.0);
        assert!(
            is_close && found.is_greedy == expected.is_greedy,
            "{what}, item {idx}: {found:?} {expected:?}"
        );
    }
}

/// Contexts of two lengths with one to four continuations each, of one token and of more; some of
/// them the likeliest.
fn questions(model: &Transformer, random: &mut SplitMix) -> Vec<Continuation> {
    let mut draw = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(61) as u32).collect() };
    let mut items = Vec::new();
    for question in 0..12 {
        let context = draw(if question % 3 == 0 { 9 } else { 14 });
        let ids: Vec<i64> = context.iter().map(|&id| i64::from(id)).collect();
        let logits_tv = forward(model, &Tensor::from_slice(&ids).unsqueeze(0))
            .unwrap()
            .get(0);
        let best = logits_tv.get(-1).argmax(-1, false).int64_value(&[]) as u32;
        items.push(Continuation {
            context: context.clone(),
            tokens: vec![best],
        });
        for choice in 0..question % 4 {
            items.push(Continuation {
                context: context.clone(),
                tokens: draw(1 + (question + choice) % 5),
            });
        }
    }
    items
}

#[test]
fn what_is_likely_does_not_depend_on_what_is_scored_beside_it() {
    let mut random = SplitMix::new(5);
    for config in families() {
        let model = Model::new(&config, 40).unwrap().load().unwrap();
        if !model.is_causal() {
            let item = Continuation {
                context: vec![1],
                tokens: vec![2],
            };
            assert!(
                found(&model, &[item], 1)
                    .unwrap_err()
                    .to_string()
                    .contains("an encoder")
            );
            continue;
        }
        let items = questions(&model, &mut random);
        let expected: Vec<Likelihood> = items.iter().map(|item| alone(&model, item)).collect();
        assert!(expected.iter().any(|e| e.is_greedy) && expected.iter().any(|e| !e.is_greedy));
        for batch_size in [1, 2, 100] {
            assert_close(
                &found(&model, &items, batch_size).unwrap(),
                &expected,
                &format!("{batch_size} windows"),
            );
        }
        // Equal choices tie, wherever they stand.
        let doubled = [items.as_slice(), items.as_slice()].concat();
        let twice = found(&model, &doubled, 2).unwrap();
        assert_eq!(twice[..items.len()], twice[items.len()..]);
    }
}

#[test]
fn a_context_too_long_loses_its_beginning() {
    let model = Model::new(&minitron::tiny_llama(), 41)
        .unwrap()
        .load()
        .unwrap();
    let long: Vec<u32> = (0..100).map(|idx| (idx * 7 % 61) as u32).collect();
    let items = [5, 64].map(|n| Continuation {
        context: long.clone(),
        tokens: long[..n].to_vec(),
    });
    // 64 positions are read, and the last one still predicts.
    let kept = [60, 1].map(|n| long[100 - n..].to_vec());
    let cut = items.iter().zip(kept).map(|(item, context)| Continuation {
        context,
        tokens: item.tokens.clone(),
    });
    let expected: Vec<Likelihood> = cut.map(|item| alone(&model, &item)).collect();
    assert_close(&found(&model, &items, 4).unwrap(), &expected, "cut");
    let refused = |context: Vec<u32>, n| {
        found(
            &model,
            &[Continuation {
                context,
                tokens: long[..n].to_vec(),
            }],
            4,
        )
    };
    assert!(
        refused(vec![1], 65)
            .unwrap_err()
            .to_string()
            .contains("65 tokens; this model has 64 positions")
    );
    assert!(refused(vec![1], 0).is_err() && refused(vec![], 3).is_err());
}
