//! One vector per sentence. B batch, T tokens, E embed.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Config, DenseFile, Module, TensorSource, modules};
use crate::error::{Error, Result};
use crate::model::{Input, NoTap, Transformer};
use crate::progress::Progress;
use crate::windows::fill;

/// How the last hidden states of a sentence become one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all its tokens, special tokens included.
    #[default]
    Mean,
    /// That of its first token.
    Cls,
}

/// Keys that were true for a way each up to sentence-transformers 5, and what `pooling_mode` says
/// from 6 on.
const WAYS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

impl Pooling {
    /// What a Pooling's `config.json` says, in the old form or the new one.
    ///
    /// # Errors
    /// `Checkpoint` naming a way that is not supported.
    fn of(config: &Config) -> Result<Pooling> {
        let ways: Vec<String> = match config.get("pooling_mode") {
            Some(Value::String(way)) => vec![way.clone()],
            Some(Value::Array(ways)) => ways
                .iter()
                .map(|way| way.as_str().unwrap_or_default().to_owned())
                .collect(),
            Some(other) => {
                return Err(config.error(format!(
                    "`pooling_mode`: expected a word or a list, got {other}"
                )));
            }
            None => {
                let mut ways = Vec::new();
                for (key, way) in WAYS {
                    if config.flag_or(key, false)? {
                        ways.push(way.to_owned());
                    }
                }
                ways
            }
        };
        let words: Vec<&str> = ways.iter().map(String::as_str).collect();
        match words.as_slice() {
            // With nothing named, sentence-transformers takes the mean.
            [] | ["mean"] => Ok(Pooling::Mean),
            ["cls"] => Ok(Pooling::Cls),
            other => {
                let message = format!(
                    "pooling by {} is not supported; expected mean or cls alone",
                    other.join(" and ")
                );
                Err(config.error(message))
            }
        }
    }

    /// [B, E] of [B, T, E]; padding does not count, whatever stands there. Zeros of a sequence
    /// without tokens.
    ///
    /// # Errors
    /// `Torch` where the mask has another shape.
    pub fn pool(self, hidden_bte: &Tensor, attention_mask_bt: Option<&Tensor>) -> Result<Tensor> {
        let kind = hidden_bte.f_kind()?;
        let over_tokens = [1i64].as_slice();
        let Some(attention_mask_bt) = attention_mask_bt else {
            return Ok(match self {
                Pooling::Cls => hidden_bte.f_select(1, 0)?,
                Pooling::Mean => hidden_bte.f_mean_dim(over_tokens, false, kind)?,
            });
        };
        let seen_bt = attention_mask_bt.f_to_kind(Kind::Bool)?;
        let counted_bt = match self {
            Pooling::Mean => seen_bt,
            // The one token that is seen, and before which none is.
            Pooling::Cls => seen_bt
                .f_cumsum(1, Kind::Int64)?
                .f_eq(1)?
                .f_logical_and(&seen_bt)?,
        };
        let n_b1 = counted_bt.f_sum_dim_intlist(over_tokens, true, kind)?;
        let passed_over_bt1 = counted_bt.f_logical_not()?.f_unsqueeze(-1)?;
        let sum_be = hidden_bte
            .f_masked_fill(&passed_over_bt1, 0.0)?
            .f_sum_dim_intlist(over_tokens, false, kind)?;
        Ok(sum_be.f_div(&n_b1.f_clamp_min(1.0)?)?)
    }
}

/// What makes one vector of the last hidden states: the modules behind a sentence encoder's
/// transformer.
#[derive(Debug)]
pub struct SentenceModules {
    pooling: Pooling,
    after: Vec<ModuleStep>,
}

impl From<Pooling> for SentenceModules {
    fn from(pooling: Pooling) -> Self {
        SentenceModules {
            pooling,
            after: Vec::new(),
        }
    }
}

#[derive(Debug)]
enum ModuleStep {
    Dense {
        weight_of: Tensor,
        bias_o: Option<Tensor>,
        activation: DenseActivation,
    },
    Normalize,
}

#[derive(Debug, Clone, Copy)]
enum DenseActivation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
}

impl SentenceModules {
    /// Those that the model's folder names; `pooling` stands in for what it says. The mean alone
    /// where there are none.
    ///
    /// # Errors
    /// `Checkpoint` for a module that is not supported, or whose files are missing: without it the
    /// vectors would be others.
    pub fn of(model: &Transformer, pooling: Option<Pooling>) -> Result<Self> {
        let path = model.spec.config.path();
        let dir = path.parent().unwrap_or(path);
        let mut found = SentenceModules {
            pooling: pooling.unwrap_or_default(),
            after: Vec::new(),
        };
        let Some(modules) = modules(dir)? else {
            let config = Config::load_optional(&dir.join("1_Pooling").join("config.json"))?;
            if let (None, Some(config)) = (pooling, config) {
                found.pooling = Pooling::of(&config)?;
            }
            return Ok(found);
        };
        let mut is_pooled = false;
        for module in modules.iter().filter(|module| !module.is_transformer()) {
            match module.kind.as_str() {
                "Pooling" if !is_pooled => {
                    is_pooled = true;
                    if pooling.is_none() {
                        found.pooling = Pooling::of(&module.config(dir)?)?;
                    }
                }
                "Normalize" if is_pooled => found.after.push(ModuleStep::Normalize),
                "Dense" if is_pooled => found.after.push(ModuleStep::dense(dir, module, model)?),
                "Dropout" => {}
                _ => {
                    let place = if is_pooled { "" } else { " before pooling" };
                    let message = format!(
                        "modules.json: module {}{place} is not supported, and without it the \
                         vectors would be others",
                        module.name()
                    );
                    return Err(Error::checkpoint(dir, message));
                }
            }
        }
        Ok(found)
    }

    fn apply(&self, hidden_bte: &Tensor, attention_mask_bt: Option<&Tensor>) -> Result<Tensor> {
        let mut x_be = self.pooling.pool(hidden_bte, attention_mask_bt)?;
        for step in &self.after {
            x_be = match step {
                ModuleStep::Normalize => normalized(&x_be)?,
                ModuleStep::Dense {
                    weight_of,
                    bias_o,
                    activation,
                } => activation.of(&x_be.f_linear(weight_of, bias_o.as_ref())?)?,
            };
        }
        Ok(x_be)
    }
}

impl ModuleStep {
    fn dense(dir: &Path, module: &Module, model: &Transformer) -> Result<ModuleStep> {
        let config = module.config(dir)?;
        config.only("use_residual", false)?;
        for key in ["module_input_name", "module_output_name"] {
            let name = config.word_or(key, "sentence_embedding")?;
            if name != "sentence_embedding" {
                return Err(config.error(format!(
                    "`{key}`: expected sentence_embedding, got {name}; others are not supported"
                )));
            }
        }
        let class = config.word_or("activation_function", "Tanh")?;
        let activation = match class.rsplit('.').next().unwrap_or(class) {
            "Identity" => DenseActivation::Identity,
            "Tanh" => DenseActivation::Tanh,
            "ReLU" => DenseActivation::Relu,
            "GELU" => DenseActivation::Gelu,
            "Sigmoid" => DenseActivation::Sigmoid,
            _ => {
                let message = format!(
                    "`activation_function`: {class} is not supported; expected Identity, Tanh, \
                     ReLU, GELU or Sigmoid"
                );
                return Err(config.error(message));
            }
        };
        let file = DenseFile::open(dir, module, &config)?;
        let weight_of = read_float(&file, &file.weight, model.device)?;
        let bias_o = match &file.bias {
            Some(name) => Some(read_float(&file, name, model.device)?),
            None => None,
        };
        Ok(ModuleStep::Dense {
            weight_of,
            bias_o,
            activation,
        })
    }
}

fn read_float(file: &DenseFile, name: &str, device: Device) -> Result<Tensor> {
    let stored = file.tensors.read(name)?;
    Ok(stored.f_to_device(device)?.f_to_kind(Kind::Float)?)
}

impl DenseActivation {
    fn of(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            DenseActivation::Identity => x.shallow_clone(),
            DenseActivation::Tanh => x.f_tanh()?,
            DenseActivation::Relu => x.f_relu()?,
            DenseActivation::Gelu => x.f_gelu("none")?,
            DenseActivation::Sigmoid => x.f_sigmoid()?,
        })
    }
}

/// Of length 1.
fn normalized(x_be: &Tensor) -> Result<Tensor> {
    let length_b1 = x_be
        .f_norm_scalaropt_dim(2, [1i64].as_slice(), true)?
        .f_clamp_min(1e-12)?;
    Ok(x_be.f_div(&length_b1)?)
}

/// Vectors [N, E] of length 1, in f32 on the model's device, of token sequences with their special
/// tokens, in their order. Those of one length side by side need no padding.
///
/// # Errors
/// `Data` for a sequence without tokens, or longer than the model's positions.
pub fn sentence_embeddings(
    model: &Transformer,
    sentences: &[Vec<u32>],
    modules: &SentenceModules,
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    if sentences.is_empty() || sentences.iter().any(Vec::is_empty) {
        return Err(Error::Data(
            "expected sentences of at least one token each".into(),
        ));
    }
    let mut embedded = Vec::new();
    progress.start("embed, sentences", sentences.len() as u64);
    for batch in sentences.chunks(batch_size.max(1)) {
        let sequences: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
        let (ids_bt, attention_mask_bt) = fill(&sequences, model.device)?;
        let attention_mask_bt = attention_mask_bt.as_ref();
        let hidden_bte = model
            .hidden(
                Input {
                    ids_bt: &ids_bt,
                    attention_mask_bt,
                    positions_bt: None,
                },
                &mut NoTap,
                None,
            )?
            .f_to_kind(Kind::Float)?;
        let pooled_be = modules.apply(&hidden_bte, attention_mask_bt)?;
        if !pooled_be
            .f_sum(Kind::Double)?
            .f_double_value(&[])?
            .is_finite()
        {
            return Err(Error::Data(
                "the model gives states that are not finite, so sentences have no place".into(),
            ));
        }
        embedded.push(normalized(&pooled_be)?);
        progress.advance(batch.len() as u64, "");
    }
    progress.finish();
    Ok(Tensor::f_cat(&embedded, 0)?)
}
