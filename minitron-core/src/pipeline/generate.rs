//! `generate`: text, to look at.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::Context;
use crate::error::{Error, Result};
use crate::evaluate::{self, Sampling};

/// Options of `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// The model.
    pub model: String,
    /// Text to continue.
    pub prompt: String,
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Draw from the k likeliest only; 0 means all.
    pub top_k: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { model: String::new(), prompt: String::new(), max_new_tokens: 100, temperature: 0.0, top_k: 0 }
    }
}

/// Continues a prompt.
pub fn generate(context: &Context, options: &GenerateOptions) -> Result<Value> {
    if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
        return Err(Error::Recipe("temperature: expected 0 (greedy) or a positive number".into()));
    }
    let folder = context.open_to_run(&options.model)?;
    let tokenizer = context.tokenizer(&folder)?;
    let mut prompt = tokenizer.encode(&options.prompt)?;
    if prompt.is_empty() {
        // The beginning of a document is what follows the end of another.
        prompt.extend(tokenizer.eos());
    }
    let model = context.load(&folder.checkpoint.tensors, &folder.blueprint, false)?;
    let sampling = Sampling {
        max_new_tokens: options.max_new_tokens,
        temperature: options.temperature,
        top_k: options.top_k,
        seed: context.seed,
    };
    let n_prompt_tokens = prompt.len();
    let _span = tracing::info_span!("generate", n_prompt_tokens).entered();
    let mut outputs = evaluate::generate(&model, std::slice::from_ref(&prompt), tokenizer.ends(), &sampling)?;
    let new = outputs.pop().unwrap_or_default();
    let whole: Vec<u32> = prompt.into_iter().chain(new.iter().copied()).collect();
    Ok(json!({
        "prompt": options.prompt,
        "text": tokenizer.decode(&whole)?,
        "completion": tokenizer.decode(&new)?,
        "n_prompt_tokens": n_prompt_tokens,
        "n_new_tokens": new.len(),
    }))
}
