mod rows;

use minitron_core::architectures::stated_windows;
use minitron_core::checkpoint::Config;
use minitron_core::contract::Architecture;
use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate, Layout, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, ClientLimit, ConfigKey, Constraint, DEPTH, Embedding, Head, Layer,
    ModelSpec, Norm, NormKind, Options, Rotary, RotaryDefaults, Shape, ShapeKeys, Sizes, Sublayer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::rows::Spelling;
use super::bert::KEYS;
use super::clients::llama_cpp_counts_layers;

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
        let spelling = Spelling::read(evidence)?;
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
        let options = options(config, &shape, norm, &spelling)?;
        let table = spelling.rows(config, &shape)?;
        let layers = layers(config, &shape, norm, &slides)?;
        let words = slides.iter().map(|&slides| layer_type(slides)).collect();
        let pattern = ConfigKey::pattern("layer_types", words);
        let mut dims = shape.dims(&keys);
        for dim in dims.iter_mut().filter(|dim| dim.name == DEPTH) {
            dim.stated.push(pattern.clone());
        }
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
        let every = spec.config.size_or("global_attn_every_n_layers", 3);
        let period = every.unwrap_or(3);
        let what = format!("one layer in {period} for one without a window, from the first on");
        let limit = llama_cpp_counts_layers(spec, sizes, ("layer_types", &what), |layer| {
            layer_type(!layer.is_multiple_of(period))
        });
        limit.into_iter().collect()
    }
}

fn layer_type(slides: bool) -> Value {
    match slides {
        true => "sliding_attention".into(),
        false => "full_attention".into(),
    }
}

fn options(config: &Config, shape: &Shape, norm: Norm, spelling: &Spelling) -> Result<Options> {
    let head_activation = Activation::read(config, "classifier_activation", "gelu")?;
    let head = Head {
        transform: Some((head_activation, norm)),
        ..Head::default()
    };
    Ok(Options {
        causal: false,
        max_positions: shape.max_positions,
        vocab: shape.vocab,
        tied: spelling.tied,
        embedding: Embedding {
            norm: Some(norm),
            ..Embedding::default()
        },
        final_norm: Some(norm),
        head: spelling.has_head.then_some(head),
        initializer_range: config.number_or("initializer_range", 0.02)?,
    })
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
    let mlp = Mlp {
        activation: Activation::read(config, "hidden_activation", "gelu")?,
        gate: Gate::Fused,
    };
    let mut layers = Vec::with_capacity(slides.len());
    for (idx, &slides) in slides.iter().enumerate() {
        let rotary = if slides { &sliding } else { &full };
        let mut attention = Sublayer::new(Attention {
            layout: Layout::Fused,
            rotary: Some(rotary.clone()),
            reach: slides.then_some(reach),
            ..Attention::new(shape.head_dim)
        });
        // The embeddings' norm stands before the first.
        if idx > 0 {
            attention = attention.pre(norm);
        }
        layers.push(Layer(vec![attention, Sublayer::new(mlp.clone()).pre(norm)]));
    }
    Ok(layers)
}

minitron_core::plugin! {
    Architecture for Modernbert {
        tag: "modernbert",
        summary: "ModernBERT, bare or with its masked-language head (local windows, two rotations, \
                  gated MLPs)",
        source: "arXiv 2412.13663",
    }
}
