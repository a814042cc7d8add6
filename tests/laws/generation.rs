//! Continuations with and without the key/value cache.

use minitron::{families, forward};
use minitron_core::error::Result;
use minitron_core::evaluate::{Sampling, generate};
use minitron_core::model::Transformer;
use tch::Tensor;

use super::Model;

/// Greedy, the whole sequence anew for every token.
fn without_cache(model: &Transformer, prompt: &[u32], n_new: usize) -> Result<Vec<u32>> {
    let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    for _ in 0..n_new {
        let logits_tv =
            forward(model, &Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?)?.f_select(0, 0)?;
        ids.push(
            logits_tv
                .f_select(0, -1)?
                .f_argmax(-1, false)?
                .f_int64_value(&[])?,
        );
    }
    Ok(ids.iter().skip(prompt.len()).map(|&id| id as u32).collect())
}

#[test]
fn the_cache_changes_no_token() {
    let prompts = vec![vec![3, 14, 15, 9, 2], vec![6, 5, 35, 8, 9]];
    for config in families() {
        let model = Model::new(&config, 30).unwrap().load().unwrap();
        let sampling = Sampling {
            max_new_tokens: 24,
            ..Sampling::default()
        };
        if !model.is_causal() {
            assert!(generate(&model, &prompts, &[], &sampling).is_err());
            continue;
        }
        let found = generate(&model, &prompts, &[], &sampling).unwrap();
        for (prompt, found) in prompts.iter().zip(found) {
            assert_eq!(found, without_cache(&model, prompt, 24).unwrap());
        }
    }
}

#[test]
fn generation_ends_at_the_last_position_and_before_the_end_token() {
    let model = Model::new(&minitron::tiny_gpt2(), 31)
        .unwrap()
        .load()
        .unwrap();
    let prompt: Vec<u32> = (0..50).collect();
    let sampling = Sampling {
        max_new_tokens: 100,
        ..Sampling::default()
    };
    let found = generate(&model, std::slice::from_ref(&prompt), &[], &sampling)
        .unwrap()
        .remove(0);
    // 64 positions are read, and the last one still predicts.
    assert_eq!(found, without_cache(&model, &prompt, 15).unwrap());
    let end = found[4];
    let n_before = found.iter().position(|&id| id == end).unwrap();
    let stopped = generate(&model, &[prompt], &[60, end], &sampling)
        .unwrap()
        .remove(0);
    assert_eq!(stopped, found[..n_before]);
}

#[test]
fn draws_follow_from_the_seed() {
    let model = Model::new(&minitron::tiny_llama(), 32)
        .unwrap()
        .load()
        .unwrap();
    let draw = |seed, top_k| {
        let sampling = Sampling {
            max_new_tokens: 16,
            temperature: 1.0,
            top_k,
            seed,
        };
        generate(&model, &[vec![1, 2, 3]], &[], &sampling).unwrap()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(2, 0));
    // Of one candidate, the likeliest is drawn.
    assert_eq!(
        draw(1, 1)[0],
        without_cache(&model, &[1, 2, 3], 16).unwrap()
    );
}
