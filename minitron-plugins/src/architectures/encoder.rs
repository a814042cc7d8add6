//! Encoders with norms after their sums, learned positions and a masked-language head: BERT and
//! what follows it.

use minitron_core::error::Result;
use minitron_core::mixers::{Attention, Gate, Mlp};
use minitron_core::spec::{
    Activation, CheckpointInfo, Constraint, Embedding, Head, Layer, ModelSpec, Norm, Options,
    ParamKind, Role, Shape, ShapeKeys, Sublayer, Table, fixed,
};

/// Names of an encoder's tensors, without `.weight` and `.bias`; `{l}` is the layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderNames {
    /// Before the names of embeddings and layers.
    pub prefix: &'static str,
    /// Before the names of a layer.
    pub layer: &'static str,
    /// Queries, keys, values.
    pub projections: [&'static str; 3],
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub mlp_norm: &'static str,
    /// Of gains and biases of norms.
    pub norm: (&'static str, Option<&'static str>),
    pub head_transform: &'static str,
    pub head_norm: &'static str,
    /// Output projection, with its own bias.
    pub decoder: &'static str,
    /// The bias that is added where embeddings and head are tied.
    pub bias: &'static str,
}

impl EncoderNames {
    /// The whole name of a layer's tensor.
    fn in_layer(&self, name: &str) -> String {
        format!("{}{name}", self.layer)
    }
}

/// What an encoder is, before it is written out.
pub(super) struct Encoder<'a> {
    pub architecture: &'static str,
    pub evidence: &'a CheckpointInfo<'a>,
    pub keys: ShapeKeys,
    pub shape: Shape,
    pub names: EncoderNames,
    pub norm: Norm,
    pub activation: Activation,
    /// Non-linearity of the head.
    pub head_activation: Activation,
    /// Rows of the segment table; none where there is no such table.
    pub n_types: Option<usize>,
    /// Row of the first token's position.
    pub first_position: usize,
    pub tied: bool,
    pub has_head: bool,
    /// Dense layers that are carried along: name, outputs, whether behind the prefix.
    pub carried: Vec<(&'static str, Option<usize>, bool)>,
    pub initializer_range: f64,
}

impl Encoder<'_> {
    pub fn finish(self) -> Result<ModelSpec> {
        let mut table = Table::new(self.names.prefix);
        self.embedding_rows(&mut table);
        for layer in 0..self.shape.n_layers {
            self.layer_rows(&mut table, layer);
        }
        table.around();
        self.carried_rows(&mut table, true);
        table.unprefixed(|table| {
            if self.has_head {
                self.head_rows(table);
            }
            self.carried_rows(table, false);
        });
        let attention = Attention::new(self.shape.head_dim);
        let mlp = Mlp {
            activation: self.activation,
            gate: Gate::None,
        };
        let layer = Layer(vec![
            Sublayer::new(attention).after_sum(self.norm),
            Sublayer::new(mlp).after_sum(self.norm),
        ]);
        let mut spec = ModelSpec::new(
            self.architecture,
            self.evidence.config,
            self.shape.dims(&self.keys),
            table.finish(),
            vec![layer; self.shape.n_layers],
            self.options(),
        )?;
        spec.constraints
            .push(Constraint::no_head_dim(self.shape.head_dim));
        spec.buffers = &["embeddings.position_ids"];
        spec.reads = &["is_causal", "use_bidirectional_attention"];
        Ok(spec)
    }

    fn options(&self) -> Options {
        let head = Head {
            transform: Some((self.head_activation, self.norm)),
            ..Head::default()
        };
        Options {
            causal: false,
            max_positions: self.shape.max_positions.saturating_sub(self.first_position),
            vocab: self.shape.vocab,
            tied: self.tied,
            embedding: Embedding {
                norm: Some(self.norm),
                first_position: self.first_position,
                ..Embedding::default()
            },
            final_norm: None,
            head: self.has_head.then_some(head),
            initializer_range: self.initializer_range,
        }
    }

    /// The token table comes last, so that a tie can be added to it.
    fn embedding_rows(&self, table: &mut Table) {
        let shape = &self.shape;
        let role = Role::POSITION_EMBEDDING;
        self.embedding_row(table, "position_embeddings", role, shape.max_positions);
        if let Some(n_types) = self.n_types {
            let role = Role::TYPE_EMBEDDING;
            self.embedding_row(table, "token_type_embeddings", role, n_types);
        }
        let (name, role) = ("embeddings.LayerNorm", Role::EMBEDDING_NORM);
        table.norm(name, role, shape.stream(), self.names.norm);
        self.embedding_row(table, "word_embeddings", Role::TOKEN_EMBEDDING, shape.vocab);
        if self.tied {
            table.also_known_as(&[&format!("{}.weight", self.names.decoder)]);
        }
    }

    fn embedding_row(&self, table: &mut Table, name: &str, role: Role, n_rows: usize) {
        let sides = vec![fixed(n_rows), self.shape.stream()];
        let name = format!("embeddings.{name}.weight");
        table.tensor(&name, role, ParamKind::Weight, sides);
    }

    fn layer_rows(&self, table: &mut Table, layer: usize) {
        let names = &self.names;
        let stream = self.shape.stream();
        let neurons = self.shape.neurons(layer);
        let heads = self.shape.queries(layer);
        table.part(layer, 0);
        let roles = [Role::QUERY, Role::KEY, Role::VALUE];
        for (name, role) in names.projections.iter().zip(roles) {
            let name = names.in_layer(name);
            table.linear(&name, role, heads.clone(), stream.clone(), true);
        }
        let name = names.in_layer(names.attention_output);
        table.linear(&name, Role::ATTENTION_OUTPUT, stream.clone(), heads, true);
        let name = names.in_layer(names.attention_norm);
        table.norm(&name, Role::SUM_NORM, stream.clone(), names.norm);
        table.part(layer, 1);
        let name = names.in_layer(names.up);
        table.linear(&name, Role::UP, neurons.clone(), stream.clone(), true);
        let name = names.in_layer(names.down);
        table.linear(&name, Role::DOWN, stream.clone(), neurons, true);
        let name = names.in_layer(names.mlp_norm);
        table.norm(&name, Role::SUM_NORM, stream, names.norm);
    }

    /// Dense layers that are carried along, behind the prefix or without it.
    fn carried_rows(&self, table: &mut Table, behind_prefix: bool) {
        let stream = self.shape.stream();
        for (name, n_outputs, is_prefixed) in &self.carried {
            if *is_prefixed == behind_prefix {
                let outputs = n_outputs.map_or_else(|| stream.clone(), fixed);
                table.linear(name, Role::CARRIED, outputs, stream.clone(), true);
            }
        }
    }

    /// The decoder has one bias under two names, of which a file may hold either or both.
    fn head_rows(&self, table: &mut Table) {
        let (names, vocab) = (&self.names, self.shape.vocab);
        let (stream, own) = (self.shape.stream(), names.bias);
        let decoder = format!("{}.bias", names.decoder);
        let (name, role) = (names.head_transform, Role::HEAD_TRANSFORM);
        table
            .linear(name, role, stream.clone(), stream.clone(), true)
            .norm(names.head_norm, Role::HEAD_NORM, stream.clone(), names.norm);
        if !self.tied {
            table.linear(names.decoder, Role::HEAD, fixed(vocab), stream, false);
        }
        // Untied, the decoder's own is the one that is added.
        let (first, second) = if self.tied {
            (own, decoder.as_str())
        } else {
            (decoder.as_str(), own)
        };
        let (bias, other) = if self.evidence.has(first, true) {
            (first, second)
        } else {
            (second, first)
        };
        table.tensor(bias, Role::HEAD, ParamKind::Bias, vec![fixed(vocab)]);
        if bias == other {
            return;
        }
        if self.tied {
            table.also_known_as(&[other]);
        } else if self.evidence.has(own, false) && bias != own {
            table.tensor(own, Role::CARRIED, ParamKind::Bias, vec![fixed(vocab)]);
        }
    }
}

/// The class that a config names first, or the family's usual one.
pub(super) fn class<'a>(evidence: &'a CheckpointInfo, usual: &'a str) -> &'a str {
    let classes = evidence
        .config
        .get("architectures")
        .and_then(|list| list.get(0));
    classes.and_then(serde_json::Value::as_str).unwrap_or(usual)
}
