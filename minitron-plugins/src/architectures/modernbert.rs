use minitron_core::architectures::stated_windows;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate, Layout, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, ClientLimit, ConfigKey, Constraint, DEPTH, Embedding, Head, Layer,
    ModelSpec, Norm, NormKind, Options, ParamKind, Role, Rotary, RotaryDefaults, Shape, ShapeKeys,
    Side, Sizes, Sublayer, Table, fixed,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bert::KEYS;
use super::clients::llama_cpp_counts_layers;
use super::encoder::class;

/// ModernBERT: rotations of two kinds, local windows in two of three layers, gated MLPs, norms
/// before each part.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Modernbert {}

#[typetag::serde(name = "modernbert")]
impl Architecture for Modernbert {
    fn recognises(&self, config: &Config) -> bool {
        config.is_type("modernbert")
    }

    fn spec(&self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        let config = evidence.config;
        let keys = ShapeKeys { ..KEYS };
        let shape = Shape::read(config, &keys, Some(1152), Some(8192))?;
        let class = class(evidence, "ModernBertForMaskedLM");
        let file = File {
            prefix: if evidence.has(
                "model.embeddings.tok_embeddings.weight",
                class != "ModernBertModel",
            ) {
                "model."
            } else {
                ""
            },
            has_head: evidence.has("head.dense.weight", class == "ModernBertForMaskedLM"),
            tied: config.flag_or("tie_word_embeddings", true)?,
        };
        let norm = Norm {
            kind: NormKind::Layer,
            eps: config.number_or("norm_eps", 1e-5)?,
        };
        let every = config.size_or("global_attn_every_n_layers", 3)?;
        let slides = match stated_windows(config, shape.n_layers)? {
            Some(stated) => stated,
            None => (0..shape.n_layers)
                .map(|layer| !layer.is_multiple_of(every))
                .collect(),
        };
        let head_activation = Activation::read(config, "classifier_activation", "gelu")?;
        let head = Head {
            transform: Some((head_activation, norm)),
            ..Head::default()
        };
        let options = Options {
            causal: false,
            max_positions: shape.max_positions,
            vocab: shape.vocab,
            tied: file.tied,
            embedding: Embedding {
                norm: Some(norm),
                ..Embedding::default()
            },
            final_norm: Some(norm),
            head: file.has_head.then_some(head),
            initializer_range: config.number_or("initializer_range", 0.02)?,
        };
        let table = file.rows(config, &shape)?;
        let layers = layers(config, &shape, norm, &slides)?;
        let word = |&slides: &bool| {
            if slides {
                "sliding_attention"
            } else {
                "full_attention"
            }
            .into()
        };
        let pattern = ConfigKey::pattern("layer_types", slides.iter().map(word).collect());
        let mut dims = shape.dims(&keys);
        dims.iter_mut()
            .filter(|dim| dim.name == DEPTH)
            .for_each(|dim| dim.stated.push(pattern.clone()));
        let mut spec = ModelSpec::new("modernbert", config, dims, table, layers, options)?;
        spec.constraints
            .push(Constraint::no_head_dim(shape.head_dim));
        spec.fixed_layers = vec![(
            0,
            "its attention has no norm before it, as the class has it in the first layer alone",
        )];
        spec.reads = &[
            "is_causal",
            "layer_types",
            "hidden_activation",
            "use_bidirectional_attention",
        ];
        Ok(spec)
    }

    fn client_limits(&self, spec: &ModelSpec, sizes: &Sizes) -> Vec<ClientLimit> {
        let period = spec
            .config
            .size_or("global_attn_every_n_layers", 3)
            .unwrap_or(3);
        let what = format!("one layer in {period} for one without a window, from the first on");
        let word = |layer: usize| {
            if layer.is_multiple_of(period) {
                "full_attention"
            } else {
                "sliding_attention"
            }
            .into()
        };
        llama_cpp_counts_layers(spec, sizes, ("layer_types", &what), word)
            .into_iter()
            .collect()
    }
}

fn layers(config: &Config, shape: &Shape, norm: Norm, slides: &[bool]) -> Result<Vec<Layer>> {
    let far = RotaryDefaults {
        theta: 160_000.0,
        theta_key: "global_rope_theta",
        ..RotaryDefaults::default()
    };
    let near = RotaryDefaults {
        theta: 10_000.0,
        theta_key: "local_rope_theta",
        ..far
    };
    let full = Rotary::of_layer_type(config, shape, "full_attention", true, far)?;
    let sliding = Rotary::of_layer_type(config, shape, "sliding_attention", true, near)?;
    let reach = config.size_or("local_attention", 128)? / 2;
    let activation = Activation::read(config, "hidden_activation", "gelu")?;
    let of_layer = |(layer, &slides): (usize, &bool)| {
        let rotary = Some(if slides {
            sliding.clone()
        } else {
            full.clone()
        });
        let reach = slides.then_some(reach);
        let attention = Sublayer::new(Attention {
            layout: Layout::Fused,
            rotary,
            reach,
            ..Attention::new(shape.head_dim)
        });
        // The embeddings' norm stands before the first.
        let attention = if layer == 0 {
            attention
        } else {
            attention.pre(norm)
        };
        Layer(vec![
            attention,
            Sublayer::new(Mlp {
                activation,
                gate: Gate::Fused,
            })
            .pre(norm),
        ])
    };
    Ok(slides.iter().enumerate().map(of_layer).collect())
}

/// How this file spells the family.
struct File {
    prefix: &'static str,
    has_head: bool,
    tied: bool,
}

impl File {
    fn rows(&self, config: &Config, shape: &Shape) -> Result<Vec<minitron_core::spec::Param>> {
        let stream = || shape.stream();
        let norm = (
            "weight",
            config.flag_or("norm_bias", false)?.then_some("bias"),
        );
        let (attention_bias, mlp_bias) = (
            config.flag_or("attention_bias", false)?,
            config.flag_or("mlp_bias", false)?,
        );
        let mut table = Table::new(self.prefix);
        let sides = vec![fixed(shape.vocab), stream()];
        table.tensor(
            "embeddings.tok_embeddings.weight",
            Role::TOKEN_EMBEDDING,
            ParamKind::Weight,
            sides,
        );
        if self.tied {
            table.also_known_as(&["decoder.weight"]);
        }
        table.norm("embeddings.norm", Role::EMBEDDING_NORM, stream(), norm);
        for layer in 0..shape.n_layers {
            let (heads, neurons) = (shape.queries(layer), shape.neurons(layer));
            let fused = Side([heads.0.clone(), heads.0.clone(), heads.0.clone()].concat());
            let both = Side([neurons.0.clone(), neurons.0.clone()].concat());
            table.part(layer, 0);
            if layer > 0 {
                table.norm("layers.{l}.attn_norm", Role::INPUT_NORM, stream(), norm);
            }
            table
                .linear(
                    "layers.{l}.attn.Wqkv",
                    Role::QUERY_KEY_VALUE,
                    fused,
                    stream(),
                    attention_bias,
                )
                .linear(
                    "layers.{l}.attn.Wo",
                    Role::ATTENTION_OUTPUT,
                    stream(),
                    heads,
                    attention_bias,
                )
                .part(layer, 1)
                .norm("layers.{l}.mlp_norm", Role::INPUT_NORM, stream(), norm)
                .linear("layers.{l}.mlp.Wi", Role::GATE_UP, both, stream(), mlp_bias)
                .linear("layers.{l}.mlp.Wo", Role::DOWN, stream(), neurons, mlp_bias);
        }
        table
            .around()
            .norm("final_norm", Role::FINAL_NORM, stream(), norm);
        if !self.has_head {
            return Ok(table.finish());
        }
        let (dense_bias, bias) = (
            config.flag_or("classifier_bias", false)?,
            config.flag_or("decoder_bias", true)?,
        );
        table.unprefixed(|table| {
            table
                .linear(
                    "head.dense",
                    Role::HEAD_TRANSFORM,
                    stream(),
                    stream(),
                    dense_bias,
                )
                .norm("head.norm", Role::HEAD_NORM, stream(), norm);
            if !self.tied {
                table.linear("decoder", Role::HEAD, fixed(shape.vocab), stream(), false);
            }
            if bias {
                table.tensor(
                    "decoder.bias",
                    Role::HEAD,
                    ParamKind::Bias,
                    vec![fixed(shape.vocab)],
                );
            }
        });
        Ok(table.finish())
    }
}

minitron_core::plugin! {
    Architecture for Modernbert {
        tag: "modernbert",
        summary: "ModernBERT, bare or with its masked-language head (local windows, two rotations, \
                  gated MLPs)",
        source: "arXiv 2412.13663",
    }
}
