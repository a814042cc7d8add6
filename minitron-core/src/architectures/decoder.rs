//! Decoders as people build them: embeddings, layers of attention and MLP, a norm, a head. A family
//! states what differs.

use std::sync::Arc;

use serde_json::Value;

use super::{Block, Experts, MambaShape, Names};
use crate::checkpoint::Config;
use crate::error::Result;
use crate::mixers::Mixer;
use crate::mixers::{Attention, Gate, Mlp, QkNorm};
use crate::spec::{
    Activation, ConfigKey, Constraint, Dim, Embedding, Head, Norm, Rotary, RotaryDefaults,
    RotaryScaling, Shape, ShapeKeys, StatedRotary,
};

/// Where norms stand in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// x + f(norm(x))
    Pre,
    /// x + norm(f(x))
    Post,
    /// x + norm(f(norm(x)))
    Around,
}

/// Which projections have biases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bias {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// Attention's output.
    pub attention_output: bool,
    /// The MLP.
    pub mlp: bool,
}

/// Sizes of each layer; those of a layer without the part say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerSizes {
    /// Neurons.
    pub mlp: Vec<usize>,
    /// Key/value heads.
    pub kv_heads: Vec<usize>,
}

/// A dim of a layer, with the places where the config states it.
pub type StatedDim = fn(Dim) -> Dim;

/// Makes the mixer that computes what this attention describes.
pub type AttentionBy = fn(&Attention) -> Arc<dyn Mixer>;

/// What a decoder is, before it is written out tensor by tensor. All fields may be changed until
/// [`Decoder::finish`].
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Tag of the architecture plugin.
    pub architecture: &'static str,
    /// The part of the config that describes the decoder, with the family's defaults.
    pub config: Config,
    /// Where that part stands: empty, or `text_config.`.
    pub scope: &'static str,
    /// Beginnings of names of tensors beside the decoder that travel as they are: a vision tower, a
    /// projector.
    pub beside: &'static [&'static str],
    /// Sizes.
    pub shape: Shape,
    /// Their keys.
    pub keys: ShapeKeys,
    /// Names of tensors.
    pub names: Names,
    /// Every norm around sublayers, and the last one.
    pub norm: Norm,
    /// Whether norms have biases.
    pub norm_bias: bool,
    /// Where they stand.
    pub norms: Norms,
    /// Biases of projections.
    pub bias: Bias,
    /// Attention, layer by layer.
    pub attention: Vec<Attention>,
    /// What computes it, where that is a mixer of the family's own with attention's weights.
    pub attention_by: Option<AttentionBy>,
    /// The rotations of all layers, as the config states them.
    pub rotaries: Vec<StatedRotary>,
    /// Why heads keep their channels, where the family's class wants that.
    pub keeps_channels: Option<&'static str>,
    /// The MLP of every layer.
    pub mlp: Mlp,
    /// Experts in the place of some layers' MLPs.
    pub experts: Option<Experts>,
    /// The parts of each layer, in order.
    pub blocks: Vec<Vec<Block>>,
    /// The Mamba mixer of every layer that has one.
    pub mamba: Option<MambaShape>,
    /// Whether the MLP reads what attention reads.
    pub parallel: bool,
    /// Factor of what sublayers add.
    pub residual_scale: f64,
    /// What comes before the layers.
    pub embedding: Embedding,
    /// What makes logits.
    pub head: Head,
    /// Whether the token table makes them.
    pub tied: bool,
    /// Longest sequence.
    pub max_positions: usize,
    /// What the config says of each layer, or implies by its index.
    pub patterns: Vec<ConfigKey>,
    /// Sizes that differ between layers, where some do.
    pub apart: Option<LayerSizes>,
    /// How the config states dims of layers, where that is not once for all of them.
    pub states: Option<StatedDim>,
    /// Entries that a student's config must state, since the source's may say another thing of it.
    pub pinned: Vec<(String, Value)>,
    /// Whether `hidden = heads x head_dim` always: the family has no key for `head_dim`.
    pub square: bool,
    /// What else ties sizes to each other.
    pub constraints: Vec<Constraint>,
    /// Endings of names under which older files hold buffers.
    pub buffers: &'static [&'static str],
    /// Keys that change other families and that this one reads.
    pub reads: &'static [&'static str],
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

impl Decoder {
    /// Llama's blocks under Llama's names: RMS norms before gated MLP and attention, no biases, no
    /// rotation yet. `defaults` are the family's values of keys that its configs may leave out.
    ///
    /// # Errors
    /// `Checkpoint` for a missing key, or sizes that do not go together.
    pub fn new(
        architecture: &'static str,
        config: &Config,
        keys: ShapeKeys,
        norm: Norm,
        defaults: Value,
    ) -> Result<Self> {
        let config = config.with_defaults(defaults);
        let shape = Shape::read(&config, &keys, None, None)?;
        Ok(Decoder {
            architecture,
            scope: "",
            beside: &[],
            keys,
            names: Names::USUAL,
            norm,
            norm_bias: false,
            norms: Norms::Pre,
            bias: Bias::default(),
            attention: vec![Attention::new(shape.head_dim); shape.n_layers],
            attention_by: None,
            rotaries: Vec::new(),
            keeps_channels: None,
            mlp: Mlp {
                activation: Activation::read(&config, "hidden_act", "silu")?,
                gate: Gate::Split,
            },
            experts: None,
            blocks: vec![Block::USUAL.to_vec(); shape.n_layers],
            mamba: None,
            parallel: false,
            residual_scale: 1.0,
            embedding: Embedding::default(),
            head: Head::default(),
            tied: config.flag_or("tie_word_embeddings", false)?,
            max_positions: shape.max_positions,
            patterns: Vec::new(),
            apart: None,
            states: None,
            pinned: Vec::new(),
            square: keys.head_dim.is_none(),
            constraints: Vec::new(),
            buffers: &[],
            reads: &[],
            initializer_range: config.number_or("initializer_range", 0.02)?,
            shape,
            config,
        })
    }

    /// Biases as most configs state them.
    ///
    /// # Errors
    /// `Checkpoint` for keys that are no flags.
    pub fn stated_biases(&mut self) -> Result<()> {
        let attention = self.config.flag_or("attention_bias", false)?;
        let mlp = self.config.flag_or("mlp_bias", false)?;
        self.bias = Bias {
            query_key_value: attention,
            attention_output: attention,
            mlp,
        };
        Ok(())
    }

    /// Experts, in the place of the MLPs of layers that have true.
    pub fn place_experts(&mut self, experts: Experts, layers: &[bool]) {
        for (blocks, _) in self
            .blocks
            .iter_mut()
            .zip(layers)
            .filter(|(_, is_in)| **is_in)
        {
            let mlps = blocks.iter_mut().filter(|block| **block == Block::Mlp);
            mlps.for_each(|block| *block = Block::Experts);
        }
        self.experts = Some(experts);
    }

    /// The shape with the sizes of one layer.
    pub(super) fn shape_in(&self, layer: usize) -> Shape {
        let mut shape = self.shape;
        if let Some(apart) = &self.apart {
            shape.mlp = apart.mlp.get(layer).copied().unwrap_or(shape.mlp);
            let kv_heads = apart.kv_heads.get(layer);
            shape.n_kv_heads = kv_heads.copied().unwrap_or(shape.n_kv_heads);
        }
        shape
    }

    /// Changes attention in every layer.
    pub fn attention(&mut self, change: impl Fn(usize, &mut Attention)) {
        self.attention
            .iter_mut()
            .enumerate()
            .for_each(|(layer, attention)| change(layer, attention));
    }

    /// The rotation of every layer, as the config states it for all of them. Where it turns a part
    /// of a head's channels, which `transformers` computes for few families, the family says so by
    /// its defaults.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn rotate(&mut self, defaults: RotaryDefaults) -> Result<()> {
        let mut rotary = Rotary::read(&self.config, &self.shape, defaults)?;
        self.check_partial(&mut rotary, defaults);
        self.max_positions = rotary.longest(self.shape.max_positions);
        self.attention(|_, attention| attention.rotary = Some(rotary.clone()));
        self.rotaries = vec![StatedRotary::new(&self.config, None, rotary)];
        Ok(())
    }

    /// Two rotations, for layers without a window and with one. Parameters for all layers are for
    /// the former alone.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn rotate_by_type(
        &mut self,
        slides: &[bool],
        full: RotaryDefaults,
        sliding: RotaryDefaults,
    ) -> Result<()> {
        let (config, shape) = (&self.config, &self.shape);
        let full = Rotary::of_layer_type(config, shape, "full_attention", true, full)?;
        let sliding = Rotary::of_layer_type(config, shape, "sliding_attention", false, sliding)?;
        self.rotaries = vec![
            StatedRotary::new(config, Some("full_attention"), full.clone()),
            StatedRotary::new(config, Some("sliding_attention"), sliding.clone()),
        ];
        self.attention(|layer, attention| {
            let slides = slides.get(layer) == Some(&true);
            attention.rotary = Some(if slides {
                sliding.clone()
            } else {
                full.clone()
            });
        });
        Ok(())
    }

    /// Families that always turn whole heads do so whatever `partial_rotary_factor` says.
    fn check_partial(&self, rotary: &mut Rotary, defaults: RotaryDefaults) {
        if defaults.partial == 1.0
            && !defaults.reads_partial
            && rotary.n_rotated != self.shape.head_dim
        {
            rotary.scaling = RotaryScaling::Unsupported {
                why: WHY_NOT_PARTIAL.to_owned(),
            };
        }
    }

    /// The sliding window of every layer, where `layer_types` or the family's pattern says that it
    /// slides.
    ///
    /// # Errors
    /// `Checkpoint` for a list of another length, or of words that are not known.
    pub fn sliding(
        &mut self,
        window: Option<usize>,
        slides_by_default: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>> {
        let n_layers = self.shape.n_layers;
        let slides = match stated_windows(&self.config, n_layers)? {
            None => (0..n_layers).map(slides_by_default).collect(),
            Some(stated) => stated,
        };
        if slides.contains(&true) && window.is_none() {
            return Err(self.config.error(
                "`layer_types`: some layers are sliding_attention, but `sliding_window` gives no \
                 window; state it, or make them full_attention",
            ));
        }
        let mut words = Vec::with_capacity(n_layers);
        for &slides in &slides {
            words.push(Value::from(match slides {
                true => "sliding_attention",
                false => "full_attention",
            }));
        }
        self.patterns.push(ConfigKey::pattern("layer_types", words));
        for (attention, &slides) in self.attention.iter_mut().zip(&slides) {
            attention.reach = window
                .filter(|_| slides)
                .map(|window| window.saturating_sub(1));
        }
        Ok(slides)
    }

    /// The same window in all layers, whatever `layer_types` says.
    pub fn window(&mut self, window: Option<usize>) {
        self.attention(|_, attention| {
            attention.reach = window.map(|window| window.saturating_sub(1))
        });
    }

    /// A value for each layer, under a key of the config that may imply it by a layer's index.
    pub fn by_layer(&mut self, key: &str, values: Vec<Value>) {
        self.patterns.push(ConfigKey::pattern(key, values));
    }

    /// Norms of queries and keys.
    pub fn qk_norm(&mut self, over: QkNorm) {
        let norm = self.norm;
        self.attention(|_, attention| attention.qk_norm = Some((over, norm)));
    }

    /// The language model inside a wrapper, whose other tensors travel as they are. A projector
    /// feeds the residual stream, so its width stays.
    ///
    /// # Errors
    /// `Checkpoint` for an outer key that is no flag.
    pub fn inside(
        mut self,
        architecture: &'static str,
        outer: &Config,
        names: (&'static str, &'static str),
        beside: &'static [&'static str],
    ) -> Result<Self> {
        (self.architecture, self.scope, self.beside) = (architecture, "text_config.", beside);
        (self.names.prefix, self.names.head) = names;
        self.tied = outer.flag_or("tie_word_embeddings", self.tied)?;
        Ok(self)
    }
}

/// Why heads that should turn in part are not computed.
const WHY_NOT_PARTIAL: &str = "\
    `partial_rotary_factor`: expected 1 in this family, got less; `transformers` turns all \
    channels whatever it says, other tools a part: take it out where all turn (what turns nothing \
    works)";

/// Which layers have a window, where `layer_types` says so.
///
/// # Errors
/// `Checkpoint` for a list of another length, or of words that are not known.
pub fn stated_windows(config: &Config, n_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(list) = config.list("layer_types")? else {
        return Ok(None);
    };
    if list.len() != n_layers {
        let found = list.len();
        return Err(config.error(format!(
            "`layer_types`: expected {n_layers} entries, one for a layer, got {found}"
        )));
    }
    let mut slides = Vec::with_capacity(n_layers);
    for word in list {
        slides.push(match word.as_str() {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            _ => {
                return Err(config.error(format!(
                    "`layer_types`: expected full_attention or sliding_attention, got {word}; \
                     other kinds are not computed"
                )));
            }
        });
    }
    Ok(Some(slides))
}
