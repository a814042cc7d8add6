//! Decoders as people build them: embeddings, layers of attention and MLP, a norm, a head. A family states what differs.

use serde_json::Value;

use super::part::{Side, Slot};
use super::table::{Table, fixed};
use super::{
    Activation, Blueprint, Constraint, Embedding, Evidence, HIDDEN, Head, Layer, LayerList, Norm, Options, Role,
    Rotary, RotaryDefaults, RotaryScaling, Shape, ShapeKeys, Sublayer,
};
use crate::checkpoint::Config;
use crate::error::Result;
use crate::mixers::{Attention, Gate, Layout, Mlp, QkNorm};

/// Names of a decoder's tensors, without `.weight` and `.bias`; `{l}` is the layer.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Before all names but the head's.
    pub prefix: &'static str,
    /// Token table.
    pub tokens: &'static str,
    /// Before all names of a layer.
    pub layer: &'static str,
    /// Queries, keys, values; their fused matrix; attention's output.
    pub query: &'static str,
    /// Keys.
    pub key: &'static str,
    /// Values.
    pub value: &'static str,
    /// All three in one matrix.
    pub query_key_value: &'static str,
    /// Attention's output projection.
    pub attention_output: &'static str,
    /// Norms of queries and keys.
    pub query_key_norms: [&'static str; 2],
    /// The activated projection.
    pub gate: &'static str,
    /// The other first projection.
    pub up: &'static str,
    /// Both in one matrix.
    pub gate_up: &'static str,
    /// The second projection.
    pub down: &'static str,
    /// Norms before attention and MLP.
    pub pre_norms: [&'static str; 2],
    /// Norms after them.
    pub post_norms: [&'static str; 2],
    /// The last norm.
    pub final_norm: &'static str,
    /// Output projection, in full.
    pub head: &'static str,
}

impl Names {
    /// Llama's, which most families took over.
    pub const USUAL: Names = Names {
        prefix: "model.",
        tokens: "embed_tokens",
        layer: "layers.{l}.",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        query_key_value: "self_attn.qkv_proj",
        attention_output: "self_attn.o_proj",
        query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        gate_up: "mlp.gate_up_proj",
        down: "mlp.down_proj",
        pre_norms: ["input_layernorm", "post_attention_layernorm"],
        post_norms: ["post_attention_layernorm", "post_feedforward_layernorm"],
        final_norm: "norm",
        head: "lm_head",
    };
}

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

/// What a decoder is, before it is written out tensor by tensor. All fields may be changed until [`Decoder::finish`].
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Tag of the architecture plugin.
    pub architecture: &'static str,
    /// The part of the config that describes the decoder, with the family's defaults.
    pub config: Config,
    /// Where that part stands: empty, or `text_config.`.
    pub scope: &'static str,
    /// Beginnings of names of tensors beside the decoder that travel as they are: a vision tower, a projector.
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
    /// The MLP of every layer.
    pub mlp: Mlp,
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
    /// Entries of the config with one value for each layer.
    pub layer_lists: Vec<LayerList>,
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
    /// Llama's blocks under Llama's names: RMS norms before gated MLP and attention, no biases, no rotation yet. `defaults` are the
    /// family's values of keys that its configs may leave out.
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
            mlp: Mlp { activation: Activation::read(&config, "hidden_act", "silu")?, gate: Gate::Split },
            parallel: false,
            residual_scale: 1.0,
            embedding: Embedding::default(),
            head: Head::default(),
            tied: config.flag_or("tie_word_embeddings", false)?,
            max_positions: shape.max_positions,
            layer_lists: Vec::new(),
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
        self.bias = Bias { query_key_value: attention, attention_output: attention, mlp };
        Ok(())
    }

    /// Changes attention in every layer.
    pub fn attention(&mut self, change: impl Fn(usize, &mut Attention)) {
        self.attention.iter_mut().enumerate().for_each(|(layer, attention)| change(layer, attention));
    }

    /// The rotation of every layer, as the config states it for all of them. Where it turns a part of a head's channels,
    /// which `transformers` computes for few families, the family says so by its defaults.
    ///
    /// # Errors
    /// `Checkpoint` for numbers that do not go together.
    pub fn rotate(&mut self, defaults: RotaryDefaults) -> Result<()> {
        let mut rotary = Rotary::read(&self.config, &self.shape, defaults)?;
        self.check_partial(&mut rotary, defaults);
        self.max_positions = rotary.longest(self.shape.max_positions);
        self.attention(|_, attention| attention.rotary = Some(rotary.clone()));
        Ok(())
    }

    /// Families that always turn whole heads do so whatever `partial_rotary_factor` says.
    fn check_partial(&self, rotary: &mut Rotary, defaults: RotaryDefaults) {
        if defaults.partial == 1.0 && !defaults.reads_partial && rotary.n_rotated != self.shape.head_dim {
            let why = "`partial_rotary_factor`: expected 1 in this family, got less; `transformers` turns all channels \
                       whatever it says, other tools a part: take it out where all turn (what turns nothing works)";
            rotary.scaling = RotaryScaling::Unsupported { why: why.to_owned() };
        }
    }

    /// The sliding window of every layer, where `layer_types` or the family's pattern says that it slides.
    ///
    /// # Errors
    /// `Checkpoint` for a list of another length, or of words that are not known.
    pub fn sliding(&mut self, window: Option<usize>, slides_by_default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let n_layers = self.shape.n_layers;
        let slides = match self.config.list("layer_types")? {
            None => (0..n_layers).map(slides_by_default).collect(),
            Some(list) => self.stated_types(list)?,
        };
        if slides.contains(&true) && window.is_none() {
            return Err(self.config.error(
                "`layer_types`: some layers are sliding_attention, but `sliding_window` gives no window; state it, or make \
                 them full_attention",
            ));
        }
        let word = |&slides: &bool| Value::from(if slides { "sliding_attention" } else { "full_attention" });
        let values = slides.iter().map(word).collect();
        self.layer_lists.push(LayerList { key: format!("{}layer_types", self.scope), values });
        for (attention, &slides) in self.attention.iter_mut().zip(&slides) {
            attention.reach = window.filter(|_| slides).map(|window| window.saturating_sub(1));
        }
        Ok(slides)
    }

    /// The same window in all layers, whatever `layer_types` says.
    pub fn window(&mut self, window: Option<usize>) {
        self.attention(|_, attention| attention.reach = window.map(|window| window.saturating_sub(1)));
    }

    /// A value for each layer, under a key of the config that may imply it by a layer's index.
    pub fn by_layer(&mut self, key: &str, values: Vec<Value>) {
        self.layer_lists.push(LayerList { key: format!("{}{key}", self.scope), values });
    }

    /// Norms of queries and keys.
    pub fn qk_norm(&mut self, over: QkNorm) {
        let norm = self.norm;
        self.attention(|_, attention| attention.qk_norm = Some((over, norm)));
    }

    fn stated_types(&self, list: &[Value]) -> Result<Vec<bool>> {
        if list.len() != self.shape.n_layers {
            let (n, found) = (self.shape.n_layers, list.len());
            return Err(self
                .config
                .error(format!("`layer_types`: expected {n} entries, one for a layer, got {found}")));
        }
        let slides = |word: &Value| match word.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self.config.error(format!(
                "`layer_types`: expected full_attention or sliding_attention, got {word}; other kinds are not computed"
            ))),
        };
        list.iter().map(slides).collect()
    }

    /// The language model inside a wrapper, whose other tensors travel as they are. A projector feeds the residual stream, so its
    /// width stays.
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
        for list in &mut self.layer_lists {
            list.key.insert_str(0, self.scope);
        }
        Ok(self)
    }

    /// Writes it out.
    ///
    /// # Errors
    /// `Internal` where the family is at fault.
    pub fn finish(self, evidence: &Evidence) -> Result<Blueprint> {
        let whole_config = evidence.config;
        let mut table = Table::new(self.names.prefix);
        let (stream, vocab) = (self.shape.stream(), self.shape.vocab);
        let tokens = format!("{}.weight", self.names.tokens);
        table.tensor(&tokens, Role::TOKEN_EMBEDDING, Slot::Weight, vec![fixed(vocab), stream.clone()]);
        let head = format!("{}.weight", self.names.head);
        if self.tied {
            table.also_known_as(&[&head]);
        }
        for layer in 0..self.shape.n_layers {
            self.attention_rows(&mut table, layer);
            self.mlp_rows(&mut table, layer);
        }
        table.around();
        self.norm_row(&mut table, self.names.final_norm, Role::FINAL_NORM, stream.clone());
        if !self.tied {
            table.unprefixed(|table| _ = table.linear(self.names.head, Role::HEAD, fixed(vocab), stream, false));
        }
        for (name, shape) in
            evidence.tensors().filter(|(name, _)| self.beside.iter().any(|start| name.starts_with(start)))
        {
            let sides = shape.iter().map(|&side| fixed(side)).collect();
            table.unprefixed(|table| _ = table.tensor(name, Role::CARRIED, Slot::Weight, sides));
        }
        let layers = self.layers();
        let options = Options {
            causal: true,
            max_positions: self.max_positions,
            vocab,
            tied: self.tied,
            embedding: self.embedding,
            final_norm: Some(self.norm),
            head: Some(self.head),
            initializer_range: self.initializer_range,
        };
        let dims = self.shape.dims_in(self.scope, &self.keys);
        let mut blueprint = Blueprint::new(self.architecture, whole_config, dims, table.finish(), layers, options)?;
        match self.keys.head_dim {
            // Left out, it would be derived from the student's own width.
            Some(key) => blueprint.pinned.push((format!("{}{key}", self.scope), self.shape.head_dim.into())),
            None if self.square => blueprint.constraints.push(Constraint::no_head_dim(self.shape.head_dim)),
            None => {}
        }
        blueprint.constraints.extend(self.constraints);
        if !self.beside.is_empty() {
            blueprint.constraints.push(Constraint::held(HIDDEN, "a projector from another tower feeds it"));
        }
        blueprint.layer_lists = self.layer_lists;
        (blueprint.buffers, blueprint.reads) = (self.buffers, self.reads);
        Ok(blueprint)
    }

    fn layers(&self) -> Vec<Layer> {
        let around = |part: Sublayer| {
            let part = match self.norms {
                Norms::Pre => part.pre(self.norm),
                Norms::Post => part.post(self.norm),
                Norms::Around => part.pre(self.norm).post(self.norm),
            };
            Sublayer { scale: self.residual_scale, ..part }
        };
        let of_layer = |attention: &Attention| {
            let mlp = Sublayer { reads_layer_input: self.parallel, ..around(Sublayer::new(self.mlp.clone())) };
            Layer(vec![around(Sublayer::new(attention.clone())), mlp])
        };
        self.attention.iter().map(of_layer).collect()
    }

    fn norm_row(&self, table: &mut Table, name: &str, role: Role, over: Side) {
        table.norm(name, role, over, ("weight", self.norm_bias.then_some("bias")));
    }

    /// The norms around one part of a layer.
    fn norm_rows(&self, table: &mut Table, part: usize) {
        let in_layer = |name: &str| format!("{}{name}", self.names.layer);
        let (pre, post) = (self.names.pre_norms.get(part), self.names.post_norms.get(part));
        if let Some(name) = pre.filter(|_| self.norms != Norms::Post) {
            self.norm_row(table, &in_layer(name), Role::INPUT_NORM, self.shape.stream());
        }
        if let Some(name) = post.filter(|_| self.norms != Norms::Pre) {
            self.norm_row(table, &in_layer(name), Role::OUTPUT_NORM, self.shape.stream());
        }
    }

    fn attention_rows(&self, table: &mut Table, layer: usize) {
        let Some(attention) = self.attention.get(layer) else { return };
        let (names, stream, bias) = (&self.names, self.shape.stream(), self.bias.query_key_value);
        let (queries, keys) = (self.shape.queries(layer), self.shape.keys(layer));
        let in_layer = |name: &str| format!("{}{name}", names.layer);
        self.norm_rows(table.part(layer, 0), 0);
        let mut linear = |name: &str, role, out: Side, input: Side, bias| {
            table.linear(&in_layer(name), role, out, input, bias);
        };
        match attention.layout {
            Layout::Split => {
                linear(names.query, Role::QUERY, queries.clone(), stream.clone(), bias);
                linear(names.key, Role::KEY, keys.clone(), stream.clone(), bias);
                linear(names.value, Role::VALUE, keys.clone(), stream.clone(), bias);
            }
            Layout::Fused => {
                let all = Side([queries.0.clone(), keys.0.clone(), keys.0.clone()].concat());
                linear(names.query_key_value, Role::QUERY_KEY_VALUE, all, stream.clone(), bias);
            }
            Layout::FusedByHead => {
                let all = self.shape.heads_of_width(layer, 3 * self.shape.head_dim);
                linear(names.query_key_value, Role::QUERY_KEY_VALUE, all, stream.clone(), bias);
            }
        }
        linear(names.attention_output, Role::ATTENTION_OUTPUT, stream, queries.clone(), self.bias.attention_output);
        if let Some((over, _)) = attention.qk_norm {
            let over = match over {
                QkNorm::Head => [fixed(self.shape.head_dim), fixed(self.shape.head_dim)],
                QkNorm::Projection => [queries, keys],
            };
            let roles = [Role::QUERY_NORM, Role::KEY_NORM];
            for ((name, role), over) in names.query_key_norms.iter().zip(roles).zip(over) {
                table.norm(&in_layer(name), role, over, ("weight", None));
            }
        }
    }

    fn mlp_rows(&self, table: &mut Table, layer: usize) {
        let (names, stream, bias) = (&self.names, self.shape.stream(), self.bias.mlp);
        let neurons = self.shape.neurons(layer);
        let in_layer = |name: &str| format!("{}{name}", names.layer);
        self.norm_rows(table.part(layer, 1), 1);
        let mut linear = |name: &str, role, out: Side, input: Side| {
            table.linear(&in_layer(name), role, out, input, bias);
        };
        match self.mlp.gate {
            Gate::None => linear(names.up, Role::UP, neurons.clone(), stream.clone()),
            Gate::Split => {
                linear(names.gate, Role::GATE, neurons.clone(), stream.clone());
                linear(names.up, Role::UP, neurons.clone(), stream.clone());
            }
            Gate::Fused => {
                let both = Side([neurons.0.clone(), neurons.0.clone()].concat());
                linear(names.gate_up, Role::GATE_UP, both, stream.clone());
            }
        }
        linear(names.down, Role::DOWN, stream, neurons);
    }
}
