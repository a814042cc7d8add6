use std::sync::Arc;

use minitron_core::architectures::{Decoder, Names, Norms};
use minitron_core::checkpoint::Config;
use minitron_core::contract::{Architecture, Mixer, Observed, RunMixer};
use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate};
use minitron_core::model::{Linear, MixerContext, MixerState, PartWeights, Port, PortTap, Ports};
use minitron_core::serde_json::json;
use minitron_core::spec::{
    CheckpointInfo, Cost, HEADS, KV_HEADS, ModelSpec, Norm, NormKind, Role, Rotary, RotaryDefaults,
    ShapeKeys,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// GLM-4: norms before and after each part, gate and up in one matrix, and an attention that no
/// built-in mixer computes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Glm4 {}

minitron_core::plugin! {
    Architecture for Glm4 {
        tag: "glm4",
        summary: "GLM-4 (norms around parts; neighbouring channels of queries and keys turn \
                  together)",
        source: "arXiv 2406.12793",
    }
}

#[typetag::serde(name = "glm4")]
impl Architecture for Glm4 {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("glm4")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let norm = Norm {
            kind: NormKind::Rms,
            eps: config.number_or("rms_norm_eps", 1.5625e-7)?,
        };
        // What a config may leave to the class.
        let defaults = json!({ "head_dim": 128, "num_key_value_heads": 2,
            "max_position_embeddings": 131_072 });
        let mut decoder = Decoder::new("glm4", config, ShapeKeys::USUAL, norm, defaults)?;
        decoder.names = Names {
            post_norms: ["post_self_attn_layernorm", "post_mlp_layernorm"],
            ..Names::USUAL
        };
        decoder.norms = Norms::Around;
        decoder.bias.query_key_value = config.flag_or("attention_bias", true)?;
        decoder.mlp.gate = Gate::Fused;
        decoder.rotate(RotaryDefaults {
            partial: 0.5,
            reads_partial: true,
            ..RotaryDefaults::default()
        })?;
        decoder.attention_by = Some(|attention| Arc::new(Neighbours(attention.clone())));
        decoder.reads = &["partial_rotary_factor"];
        decoder.finish(evidence)
    }
}

/// Attention whose rotation turns neighbouring channels together: 0 with 1, 2 with 3. The built-in
/// one turns a channel with the one half a head away. Described as the built-in one, and computed
/// here.
#[derive(Debug, Clone)]
struct Neighbours(Attention);

impl Mixer for Neighbours {
    fn name(&self) -> &'static str {
        "attention"
    }

    // The roles under which `Decoder` declares attention's weights.
    fn ports(&self) -> Ports {
        let readers = vec![Role::QUERY, Role::KEY, Role::VALUE];
        Ports::new(readers, Role::ATTENTION_OUTPUT, Port::HEADS)
    }

    // Scores of heads, and of the key/value heads that they share, come from the writer's input.
    fn observed(&self) -> Vec<Observed> {
        [HEADS, KV_HEADS]
            .map(|kind| Observed {
                kind,
                port: Port::HEADS,
                width: self.0.head_dim,
            })
            .into()
    }

    fn shows(&self) -> Vec<Port> {
        vec![Port::QUERY, Port::KEY, Port::VALUE, Port::HEADS]
    }

    fn cost(&self, size: &dyn Fn(&str) -> usize) -> Cost {
        let n_heads = size(HEADS);
        // Without groups, there are no dims of this kind.
        let n_kv_heads = if size(KV_HEADS) == 0 {
            n_heads
        } else {
            size(KV_HEADS)
        };
        let per_head =
            |copies: usize, n: usize| (copies * self.0.head_dim).saturating_mul(n) as u64;
        // Keys and values; queries before and after they turned, keys and values for each of their
        // heads, the output.
        Cost {
            cache_per_token: per_head(2, n_kv_heads),
            inside: per_head(5, n_heads),
            ..Cost::default()
        }
    }

    // A kind of rope that is not known; states that a longer sequence turns otherwise.
    fn obstacle(&self) -> Option<String> {
        self.0.obstacle()
    }

    fn states_hold_for(&self) -> Option<usize> {
        self.0.states_hold_for()
    }

    fn load(&self, weights: &mut PartWeights) -> Result<Box<dyn RunMixer>> {
        Ok(Box::new(RunNeighbours {
            head_dim: self.0.head_dim as i64,
            rotary: self.0.rotary.clone(),
            query: weights.linear(Role::QUERY)?,
            key: weights.linear(Role::KEY)?,
            value: weights.linear(Role::VALUE)?,
            output: weights.linear(Role::ATTENTION_OUTPUT)?,
        }))
    }
}

#[derive(Debug)]
struct RunNeighbours {
    head_dim: i64,
    rotary: Option<Rotary>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl RunMixer for RunNeighbours {
    fn forward(
        &self,
        x_bte: &Tensor,
        context: &MixerContext,
        state: Option<&mut MixerState>,
        tap: &mut PortTap,
    ) -> Result<Tensor> {
        let (n_batch, n_tokens, _) = x_bte.size3()?;
        let mut heads = |projection: &Linear, port: Port| -> Result<Tensor> {
            let x_btc = projection.forward(x_bte)?;
            tap.show(port, &x_btc)?;
            Ok(x_btc.f_view([n_batch, n_tokens, -1, self.head_dim])?)
        };
        let query_bthk = self.turned(&heads(&self.query, Port::QUERY)?, context)?;
        let key_btgk = self.turned(&heads(&self.key, Port::KEY)?, context)?;
        let value_btgk = heads(&self.value, Port::VALUE)?;
        // Keys and values of earlier tokens stand before those of these: S of them in all.
        let (mut key_bgsk, mut value_bgsk) =
            (key_btgk.f_transpose(1, 2)?, value_btgk.f_transpose(1, 2)?);
        if let Some(state) = state
            && let [keys, values] = state
                .extended(&[&key_bgsk, &value_bgsk], 2, None)?
                .as_slice()
        {
            (key_bgsk, value_bgsk) = (keys.shallow_clone(), values.shallow_clone());
        }
        let mask = context.mask()?;
        let is_causal = context.causal && n_tokens > 1 && mask.is_none();
        let query_bhtk = query_bthk.f_transpose(1, 2)?;
        let is_grouped = query_bhtk.size4()?.1 != key_bgsk.size4()?.1;
        let mixed_bhtk = Tensor::f_scaled_dot_product_attention(
            &query_bhtk,
            &key_bgsk,
            &value_bgsk,
            mask.as_deref(),
            0.0,
            is_causal,
            None,
            is_grouped,
        )?;
        let mixed_btc = mixed_bhtk
            .f_transpose(1, 2)?
            .f_reshape([n_batch, n_tokens, -1])?;
        tap.show(Port::HEADS, &mixed_btc)?;
        self.output.forward(&mixed_btc)
    }
}

impl RunNeighbours {
    /// Queries or keys at their positions. First of each pair come before the seconds, as the
    /// built-in rotation wants them; queries and keys keep that order, so that their products are
    /// the same.
    fn turned(&self, x_bthk: &Tensor, context: &MixerContext) -> Result<Tensor> {
        let Some(rotary) = &self.rotary else {
            return Ok(x_bthk.shallow_clone());
        };
        let (n_batch, n_tokens, n_heads, head_dim) = x_bthk.size4()?;
        let turning = rotary.n_rotated as i64;
        let pairs = x_bthk.f_narrow(3, 0, turning)?.f_reshape([
            n_batch,
            n_tokens,
            n_heads,
            turning / 2,
            2,
        ])?;
        let halves = pairs
            .f_transpose(3, 4)?
            .f_reshape([n_batch, n_tokens, n_heads, turning])?;
        let rest = x_bthk.f_narrow(3, turning, head_dim - turning)?;
        context
            .rope(rotary)?
            .apply(&Tensor::f_cat(&[halves, rest], 3)?)
    }
}
