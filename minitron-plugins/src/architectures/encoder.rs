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
pub(super) struct Names {
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

/// What an encoder is, before it is written out.
pub(super) struct Encoder<'a> {
    pub architecture: &'static str,
    pub evidence: &'a CheckpointInfo<'a>,
    pub keys: ShapeKeys,
    pub shape: Shape,
    pub names: Names,
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
        let stream = || self.shape.stream();
        for (name, n_outputs, _) in self.carried.iter().filter(|(.., is_prefixed)| *is_prefixed) {
            table.linear(
                name,
                Role::CARRIED,
                n_outputs.map_or_else(stream, fixed),
                stream(),
                true,
            );
        }
        table.unprefixed(|table| {
            if self.has_head {
                self.head_rows(table);
            }
            for (name, n_outputs, _) in self.carried.iter().filter(|(.., is_prefixed)| !is_prefixed)
            {
                table.linear(
                    name,
                    Role::CARRIED,
                    n_outputs.map_or_else(stream, fixed),
                    stream(),
                    true,
                );
            }
        });
        let layer = Layer(vec![
            Sublayer::new(Attention::new(self.shape.head_dim)).after_sum(self.norm),
            Sublayer::new(Mlp {
                activation: self.activation,
                gate: Gate::None,
            })
            .after_sum(self.norm),
        ]);
        let head = Head {
            transform: Some((self.head_activation, self.norm)),
            ..Head::default()
        };
        let options = Options {
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
        };
        let (dims, layers) = (
            self.shape.dims(&self.keys),
            vec![layer; self.shape.n_layers],
        );
        let config = self.evidence.config;
        let mut spec = ModelSpec::new(
            self.architecture,
            config,
            dims,
            table.finish(),
            layers,
            options,
        )?;
        spec.constraints
            .push(Constraint::no_head_dim(self.shape.head_dim));
        spec.buffers = &["embeddings.position_ids"];
        spec.reads = &["is_causal", "use_bidirectional_attention"];
        Ok(spec)
    }

    /// The token table comes last, so that a tie can be added to it.
    fn embedding_rows(&self, table: &mut Table) {
        let mut rows = |name: &str, role, n_rows| {
            let sides = vec![fixed(n_rows), self.shape.stream()];
            table.tensor(
                &format!("embeddings.{name}.weight"),
                role,
                ParamKind::Weight,
                sides,
            );
        };
        rows(
            "position_embeddings",
            Role::POSITION_EMBEDDING,
            self.shape.max_positions,
        );
        if let Some(n_types) = self.n_types {
            rows("token_type_embeddings", Role::TYPE_EMBEDDING, n_types);
        }
        table.norm(
            "embeddings.LayerNorm",
            Role::EMBEDDING_NORM,
            self.shape.stream(),
            self.names.norm,
        );
        let sides = vec![fixed(self.shape.vocab), self.shape.stream()];
        table.tensor(
            "embeddings.word_embeddings.weight",
            Role::TOKEN_EMBEDDING,
            ParamKind::Weight,
            sides,
        );
        if self.tied {
            table.also_known_as(&[&format!("{}.weight", self.names.decoder)]);
        }
    }

    fn layer_rows(&self, table: &mut Table, layer: usize) {
        let (stream, neurons, heads) = (
            self.shape.stream(),
            self.shape.neurons(layer),
            self.shape.queries(layer),
        );
        let names = &self.names;
        let named = |name: &str| format!("{}{name}", names.layer);
        table.part(layer, 0);
        for (name, role) in names
            .projections
            .iter()
            .zip([Role::QUERY, Role::KEY, Role::VALUE])
        {
            table.linear(&named(name), role, heads.clone(), stream.clone(), true);
        }
        table
            .linear(
                &named(names.attention_output),
                Role::ATTENTION_OUTPUT,
                stream.clone(),
                heads,
                true,
            )
            .norm(
                &named(names.attention_norm),
                Role::SUM_NORM,
                stream.clone(),
                names.norm,
            )
            .part(layer, 1)
            .linear(
                &named(names.up),
                Role::UP,
                neurons.clone(),
                stream.clone(),
                true,
            )
            .linear(
                &named(names.down),
                Role::DOWN,
                stream.clone(),
                neurons,
                true,
            )
            .norm(&named(names.mlp_norm), Role::SUM_NORM, stream, names.norm);
    }

    /// The decoder has one bias under two names, of which a file may hold either or both.
    fn head_rows(&self, table: &mut Table) {
        let (names, vocab) = (&self.names, self.shape.vocab);
        let (stream, own) = (|| self.shape.stream(), names.bias);
        let decoder = format!("{}.bias", names.decoder);
        table
            .linear(
                names.head_transform,
                Role::HEAD_TRANSFORM,
                stream(),
                stream(),
                true,
            )
            .norm(names.head_norm, Role::HEAD_NORM, stream(), names.norm);
        if !self.tied {
            table.linear(names.decoder, Role::HEAD, fixed(vocab), stream(), false);
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
