//! `generate`: text, to look at.

use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::context::Context;
use crate::data::{TextOptions, Tokenizer};
use minitron_core::conversation::Conversation;
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::{self, Sampling};
use minitron_core::model::Transformer;
use minitron_core::windows::Tokenize;

/// Options of `generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Args)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Folder or hub id.
    pub model: String,
    /// Text to continue, or with --chat what a user says.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Answer as the assistant of the model's own chat template; without --prompt, line after line
    /// of standard input.
    #[arg(long)]
    pub chat: bool,
    /// What the system says first, in a chat.
    #[arg(long, requires = "chat")]
    pub system: Option<String>,
    /// The day that the chat template writes where it asks for one, 2026-11-28 [default: today]
    #[arg(long, requires = "chat")]
    pub date: Option<String>,
    /// At most so many new tokens.
    #[arg(long, default_value_t = Self::default().max_new_tokens)]
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token, more draws.
    #[arg(long, default_value_t = Self::default().temperature)]
    pub temperature: f64,
    /// Draw from the k likeliest only; 0 means all.
    #[arg(long, default_value_t = Self::default().top_k)]
    pub top_k: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            model: String::new(),
            prompt: String::new(),
            chat: false,
            system: None,
            date: None,
            max_new_tokens: 100,
            temperature: 0.0,
            top_k: 0,
        }
    }
}

/// Continues a prompt, or answers it as the assistant of a chat.
pub fn generate(context: &Context, options: &GenerateOptions) -> Result<Value> {
    if options.chat {
        return Chat::open(context, options)?.say(&options.prompt);
    }
    if options.system.is_some() || options.date.is_some() {
        return Err(Error::Recipe(
            "system, date: for chats; add chat, or leave them out".into(),
        ));
    }
    let speaker = Speaker::open(context, options)?;
    // With the special tokens that the tokenizer puts around a text: many models are trained to
    // begin with one.
    let mut prompt = speaker
        .tokenizer
        .encode_whole(&[&options.prompt])?
        .pop()
        .unwrap_or_default();
    if prompt.is_empty() {
        // The beginning of a document is what follows the end of another.
        prompt.extend(speaker.tokenizer.eos());
    }
    let new = speaker.continuation(&prompt)?;
    let whole: Vec<u32> = prompt.iter().copied().chain(new.iter().copied()).collect();
    Ok(json!({
        "prompt": options.prompt,
        "text": speaker.tokenizer.decode(&whole)?,
        "completion": speaker.tokenizer.decode(&new)?,
        "n_prompt_tokens": prompt.len(),
        "n_new_tokens": new.len(),
    }))
}

/// A conversation with a model, turn by turn.
#[derive(Debug)]
pub struct Chat {
    speaker: Speaker,
    conversation: Conversation,
}

impl Chat {
    /// Loads the model of some options, whose system's turn comes first.
    ///
    /// # Errors
    /// `Data` where the model has no chat template.
    pub fn open(context: &Context, options: &GenerateOptions) -> Result<Self> {
        let speaker = Speaker::open(context, options)?;
        speaker.tokenizer.chat_template()?;
        context.warn_of_date(&speaker.tokenizer);
        let mut conversation = Conversation::default();
        if let Some(system) = &options.system {
            conversation.push("system", system);
        }
        Ok(Chat {
            speaker,
            conversation,
        })
    }

    /// A user's turn, and the assistant's that answers it.
    ///
    /// # Errors
    /// `Data` where the template refuses the conversation, or the model has no positions left for
    /// it.
    pub fn say(&mut self, user: &str) -> Result<Value> {
        self.conversation.push("user", user);
        let Speaker { tokenizer, .. } = &self.speaker;
        let prompt =
            tokenizer.encode(&tokenizer.chat_template()?.text(&self.conversation, true)?)?;
        let new = self.speaker.continuation(&prompt)?;
        let completion = tokenizer.decode(&new)?;
        self.conversation.push("assistant", &completion);
        Ok(json!({
            "prompt": user,
            "text": completion,
            "completion": completion,
            "n_prompt_tokens": prompt.len(),
            "n_new_tokens": new.len(),
        }))
    }
}

/// A loaded model that continues tokens.
#[derive(Debug)]
struct Speaker {
    model: Transformer,
    tokenizer: Tokenizer,
    sampling: Sampling,
}

impl Speaker {
    fn open(context: &Context, options: &GenerateOptions) -> Result<Self> {
        if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
            return Err(Error::Recipe(
                "temperature: expected 0 (greedy) or a positive number".into(),
            ));
        }
        let folder = context.open_to_run(&options.model)?;
        let text = TextOptions {
            date: options.date.clone(),
            ..TextOptions::default()
        };
        let tokenizer = context.reader(&folder, &text)?;
        let sampling = Sampling {
            max_new_tokens: options.max_new_tokens,
            temperature: options.temperature,
            top_k: options.top_k,
            seed: context.seed,
        };
        let model = context.load(&folder.checkpoint.tensors, &folder.spec, false)?;
        Ok(Speaker {
            model,
            tokenizer,
            sampling,
        })
    }

    fn continuation(&self, prompt: &[u32]) -> Result<Vec<u32>> {
        let _span = tracing::info_span!("generate", n_prompt_tokens = prompt.len()).entered();
        let prompts = [prompt.to_vec()];
        let outputs =
            evaluate::generate(&self.model, &prompts, self.tokenizer.ends(), &self.sampling)?;
        Ok(outputs.into_iter().next().unwrap_or_default())
    }
}
