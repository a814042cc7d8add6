//! The tensors of a ModernBERT, in the spelling of its file.

use minitron_core::checkpoint::Config;
use minitron_core::error::Result;
use minitron_core::spec::{CheckpointInfo, Param, ParamKind, Role, Shape, Side, Table, fixed};

use crate::architectures::encoder::class;

/// What a file has of the family, and under which names.
pub(super) struct Spelling {
    prefix: &'static str,
    pub has_head: bool,
    pub tied: bool,
}

/// Names of a norm's gain and bias.
type NormNames = (&'static str, Option<&'static str>);

impl Spelling {
    pub fn read(evidence: &CheckpointInfo) -> Result<Self> {
        const EMBEDDINGS: &str = "model.embeddings.tok_embeddings.weight";
        let class = class(evidence, "ModernBertForMaskedLM");
        let is_prefixed = evidence.has(EMBEDDINGS, class != "ModernBertModel");
        let is_masked = class == "ModernBertForMaskedLM";
        Ok(Spelling {
            prefix: if is_prefixed { "model." } else { "" },
            has_head: evidence.has("head.dense.weight", is_masked),
            tied: evidence.config.flag_or("tie_word_embeddings", true)?,
        })
    }

    pub fn rows(&self, config: &Config, shape: &Shape) -> Result<Vec<Param>> {
        let has_norm_bias = config.flag_or("norm_bias", false)?;
        let norm = ("weight", has_norm_bias.then_some("bias"));
        let attention_bias = config.flag_or("attention_bias", false)?;
        let mlp_bias = config.flag_or("mlp_bias", false)?;
        let stream = shape.stream();
        let mut table = Table::new(self.prefix);
        let (name, role) = ("embeddings.tok_embeddings.weight", Role::TOKEN_EMBEDDING);
        let sides = vec![fixed(shape.vocab), stream.clone()];
        table.tensor(name, role, ParamKind::Weight, sides);
        if self.tied {
            table.also_known_as(&["decoder.weight"]);
        }
        let role = Role::EMBEDDING_NORM;
        table.norm("embeddings.norm", role, stream.clone(), norm);
        for layer in 0..shape.n_layers {
            attention_rows(&mut table, shape, layer, norm, attention_bias);
            mlp_rows(&mut table, shape, layer, norm, mlp_bias);
        }
        table
            .around()
            .norm("final_norm", Role::FINAL_NORM, stream, norm);
        if self.has_head {
            self.head_rows(&mut table, config, shape, norm)?;
        }
        Ok(table.finish())
    }

    fn head_rows(
        &self,
        table: &mut Table,
        config: &Config,
        shape: &Shape,
        norm: NormNames,
    ) -> Result<()> {
        let dense_bias = config.flag_or("classifier_bias", false)?;
        let has_bias = config.flag_or("decoder_bias", true)?;
        let (stream, vocab) = (shape.stream(), fixed(shape.vocab));
        table.unprefixed(|table| {
            let (role, width) = (Role::HEAD_TRANSFORM, stream.clone());
            table
                .linear("head.dense", role, width, stream.clone(), dense_bias)
                .norm("head.norm", Role::HEAD_NORM, stream.clone(), norm);
            if !self.tied {
                table.linear("decoder", Role::HEAD, vocab.clone(), stream, false);
            }
            if has_bias {
                table.tensor("decoder.bias", Role::HEAD, ParamKind::Bias, vec![vocab]);
            }
        });
        Ok(())
    }
}

fn attention_rows(table: &mut Table, shape: &Shape, layer: usize, norm: NormNames, bias: bool) {
    let (stream, heads) = (shape.stream(), shape.queries(layer));
    let fused = Side([heads.0.clone(), heads.0.clone(), heads.0.clone()].concat());
    table.part(layer, 0);
    if layer > 0 {
        let role = Role::INPUT_NORM;
        table.norm("layers.{l}.attn_norm", role, stream.clone(), norm);
    }
    let (input, output) = (Role::QUERY_KEY_VALUE, Role::ATTENTION_OUTPUT);
    table
        .linear("layers.{l}.attn.Wqkv", input, fused, stream.clone(), bias)
        .linear("layers.{l}.attn.Wo", output, stream, heads, bias);
}

fn mlp_rows(table: &mut Table, shape: &Shape, layer: usize, norm: NormNames, bias: bool) {
    let (stream, neurons) = (shape.stream(), shape.neurons(layer));
    let both = Side([neurons.0.clone(), neurons.0.clone()].concat());
    let (input, gate_up) = (Role::INPUT_NORM, Role::GATE_UP);
    table
        .part(layer, 1)
        .norm("layers.{l}.mlp_norm", input, stream.clone(), norm)
        .linear("layers.{l}.mlp.Wi", gate_up, both, stream.clone(), bias)
        .linear("layers.{l}.mlp.Wo", Role::DOWN, stream, neurons, bias);
}
