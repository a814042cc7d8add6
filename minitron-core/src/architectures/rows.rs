//! A decoder, written out tensor by tensor.

use super::{Block, Decoder, Experts, Norms};
use crate::error::Result;
use crate::mixers::{Absent, Attention, Gate, Layout, QkNorm, SINKS};
use crate::spec::{
    CheckpointInfo, Constraint, DEPTH, Dim, HEADS, HIDDEN, KV_HEADS, Layer, MLP, ModelSpec,
    Options, ParamKind, ROPE_PAIRS, Role, Side, StatedRotary, Sublayer, Table, fixed, split_dim,
};

impl Decoder {
    /// Writes it out.
    ///
    /// # Errors
    /// `Internal` where the family is at fault.
    pub fn finish(mut self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        self.choose_pairs();
        let params = self.rows(evidence).finish();
        let (dims, layers) = (self.take_dims(), self.layers());
        let options = Options {
            causal: true,
            max_positions: self.max_positions,
            vocab: self.shape.vocab,
            tied: self.tied,
            embedding: self.embedding,
            final_norm: Some(self.norm),
            head: Some(self.head),
            initializer_range: self.initializer_range,
        };
        let mut spec = ModelSpec::new(
            self.architecture,
            evidence.config,
            dims,
            params,
            layers,
            options,
        )?;
        match self.keys.head_dim {
            // Left out, it would be derived from the student's own width.
            Some(key) => spec
                .pinned
                .push((format!("{}{key}", self.scope), self.shape.head_dim.into())),
            None if self.square => spec
                .constraints
                .push(Constraint::no_head_dim(self.shape.head_dim)),
            None => {}
        }
        for (key, value) in self.pinned {
            spec.pinned.push((format!("{}{key}", self.scope), value));
        }
        spec.constraints.extend(self.constraints);
        spec.constraints
            .extend(self.experts.as_ref().map(Experts::constraint));
        if !self.beside.is_empty() {
            spec.constraints.push(Constraint::held(
                HIDDEN,
                "a projector from another tower feeds it",
            ));
        }
        spec.rotaries = self.rotaries;
        spec.rotaries
            .iter_mut()
            .for_each(|stated| stated.scope = self.scope);
        (spec.buffers, spec.reads) = (self.buffers, self.reads);
        Ok(spec)
    }

    /// Every tensor, in order.
    fn rows(&self, evidence: &CheckpointInfo) -> Table {
        let mut table = Table::new(self.names.prefix);
        let (stream, vocab) = (self.shape.stream(), self.shape.vocab);
        let tokens = format!("{}.weight", self.names.tokens);
        let sides = vec![fixed(vocab), stream.clone()];
        table.tensor(&tokens, Role::TOKEN_EMBEDDING, ParamKind::Weight, sides);
        if self.tied {
            let head = format!("{}.weight", self.names.head);
            table.also_known_as(&[&head]);
        }
        for (layer, blocks) in self.blocks.iter().enumerate() {
            let there = blocks.iter().enumerate();
            for (part, block) in there.filter(|(_, block)| **block != Block::Absent) {
                self.norm_rows(table.part(layer, part), part);
                match block {
                    Block::Attention => self.attention_rows(&mut table, layer),
                    Block::Mlp => self.mlp_rows(&mut table, layer),
                    Block::Mamba => self.mamba_rows(&mut table, layer),
                    Block::Experts => self.expert_rows(&mut table, (layer, part)),
                    Block::Absent => {}
                }
            }
        }
        table.around();
        let final_norm = self.names.final_norm;
        self.norm_row(&mut table, final_norm, Role::FINAL_NORM, stream.clone());
        table.unprefixed(|table| {
            if !self.tied {
                table.linear(self.names.head, Role::HEAD, fixed(vocab), stream, false);
            }
            for (name, shape) in evidence.tensors() {
                if self.beside.iter().any(|start| name.starts_with(start)) {
                    let sides = shape.iter().map(|&side| fixed(side)).collect();
                    table.tensor(name, Role::CARRIED, ParamKind::Weight, sides);
                }
            }
        });
        table
    }

    /// The dims; what the config says of each layer becomes part of the depth.
    fn take_dims(&mut self) -> Vec<Dim> {
        for pattern in &mut self.patterns {
            pattern.enter(self.scope);
        }
        let mut dims = self.dense_dims();
        // Layers without attention or MLP have no sizes of theirs.
        dims.retain(|dim| match split_dim(&dim.name) {
            (HEADS | KV_HEADS, Some(layer)) => self.has(layer, Block::Attention),
            (MLP, Some(layer)) => self.has(layer, Block::Mlp),
            _ => true,
        });
        for layer in 0..self.blocks.len() {
            let mut of_layer = Vec::new();
            if self.has(layer, Block::Mamba) {
                of_layer.extend(self.mamba.iter().flat_map(|mamba| mamba.dims(layer)));
            }
            if self.has(layer, Block::Experts) {
                of_layer.extend(self.experts.iter().flat_map(|experts| experts.dims(layer)));
            }
            let keys = of_layer.iter_mut().flat_map(|dim| &mut dim.stated);
            keys.for_each(|key| key.enter(self.scope));
            dims.append(&mut of_layer);
        }
        for dim in dims.iter_mut().filter(|dim| dim.name == DEPTH) {
            dim.stated.append(&mut self.patterns);
        }
        dims
    }

    /// Those of every layer as if it had attention and an MLP, and those that layers share.
    fn dense_dims(&self) -> Vec<Dim> {
        let mut dims = self.shape.shared_dims(&self.keys);
        for layer in 0..self.shape.n_layers {
            let of_layer = self.shape_in(layer).dims_of_layer(&self.keys, layer);
            match self.states {
                Some(states) => dims.extend(of_layer.into_iter().map(states)),
                None => dims.extend(of_layer),
            }
        }
        let keys = dims.iter_mut().flat_map(|dim| &mut dim.stated);
        keys.for_each(|key| key.enter(self.scope));
        dims
    }

    /// Channels of heads can go in pairs, where the config can say which.
    fn choose_pairs(&mut self) {
        match self.pairs_obstacle() {
            Some(why) => self.constraints.push(Constraint::held(ROPE_PAIRS, why)),
            None => {
                let pairs = self
                    .rotaries
                    .first()
                    .map(|stated| stated.rotary.n_rotated / 2);
                self.shape.rope_pairs = pairs;
                self.attention(|_, attention| attention.rope_pairs = pairs);
            }
        }
    }

    fn pairs_obstacle(&self) -> Option<&'static str> {
        let mut turned = self.rotaries.iter().map(|stated| stated.rotary.n_rotated);
        let first = turned.next().unwrap_or(0);
        let mut qk_norms = self.attention.iter().filter_map(|own| own.qk_norm);
        match self.attention.first() {
            _ if self.keys.head_dim.is_none() => Some("a config of this family has no head_dim"),
            _ if self.keeps_channels.is_some() => self.keeps_channels,
            _ if self.attention_by.is_some() => {
                Some("its attention is computed in a way of its own")
            }
            Some(attention) if attention.layout != Layout::Split => {
                Some("its queries, keys and values are one matrix")
            }
            _ if first == 0 => Some("nothing turns its queries and keys"),
            _ if turned.any(|other| other != first) => {
                Some("its layers turn unequal parts of heads")
            }
            _ if qk_norms.any(|(_, norm)| !norm.kind.is_rms()) => {
                Some("its norms of queries and keys take the mean out")
            }
            _ => self.rotaries.iter().find_map(StatedRotary::obstacle),
        }
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers = Vec::with_capacity(self.blocks.len());
        for (attention, blocks) in self.attention.iter().zip(&self.blocks) {
            let parts = blocks
                .iter()
                .filter_map(|&block| self.part(block, attention));
            layers.push(Layer(parts.collect()));
        }
        layers
    }

    /// One part of a layer.
    fn part(&self, block: Block, attention: &Attention) -> Option<Sublayer> {
        let part = match (block, self.attention_by) {
            (Block::Attention, Some(own)) => Sublayer::of(own(attention)),
            (Block::Attention, None) => Sublayer::new(attention.clone()),
            (Block::Mlp, _) => Sublayer {
                reads_layer_input: self.parallel,
                ..Sublayer::new(self.mlp.clone())
            },
            (Block::Mamba, _) => Sublayer::new(self.mamba.as_ref()?.mixer.clone()),
            (Block::Experts, _) => Sublayer {
                reads_layer_input: self.parallel,
                ..Sublayer::new(self.experts.as_ref()?.moe.clone())
            },
            (Block::Absent, _) => return Some(Sublayer::new(Absent)),
        };
        Some(self.normed(part))
    }

    /// A part of a layer with the norms around it.
    fn normed(&self, part: Sublayer) -> Sublayer {
        let part = match self.norms {
            Norms::Pre => part.pre(self.norm),
            Norms::Post => part.post(self.norm),
            Norms::Around => part.pre(self.norm).post(self.norm),
        };
        Sublayer {
            scale: self.residual_scale,
            ..part
        }
    }

    /// A name inside a layer.
    pub(super) fn in_layer(&self, name: &str) -> String {
        format!("{}{name}", self.names.layer)
    }

    fn norm_row(&self, table: &mut Table, name: &str, role: Role, over: Side) {
        table.norm(
            name,
            role,
            over,
            ("weight", self.norm_bias.then_some("bias")),
        );
    }

    /// The norms around one part of a layer.
    fn norm_rows(&self, table: &mut Table, part: usize) {
        let (names, stream) = (&self.names, self.shape.stream());
        let pre = names.pre_norms.get(part);
        if let Some(name) = pre.filter(|_| self.norms != Norms::Post) {
            let name = self.in_layer(name);
            self.norm_row(table, &name, Role::INPUT_NORM, stream.clone());
        }
        let post = names.post_norms.get(part);
        if let Some(name) = post.filter(|_| self.norms != Norms::Pre) {
            self.norm_row(table, &self.in_layer(name), Role::OUTPUT_NORM, stream);
        }
    }

    fn attention_rows(&self, table: &mut Table, layer: usize) {
        let Some(attention) = self.attention.get(layer) else {
            return;
        };
        let (names, shape) = (&self.names, &self.shape_in(layer));
        self.projection_rows(table, layer, attention.layout);
        table.linear(
            &self.in_layer(names.attention_output),
            Role::ATTENTION_OUTPUT,
            shape.stream(),
            shape.queries(layer),
            self.bias.attention_output,
        );
        if attention.sinks {
            let (name, each) = (self.in_layer(names.sinks), shape.heads_of_width(layer, 1));
            table.tensor(&name, SINKS, ParamKind::Weight, vec![each]);
        }
        if let Some((over, _)) = attention.qk_norm {
            let over = match over {
                QkNorm::Head => [shape.channels(), shape.channels()],
                QkNorm::Projection => [shape.queries(layer), shape.keys(layer)],
            };
            let roles = [Role::QUERY_NORM, Role::KEY_NORM];
            for ((name, role), over) in names.query_key_norms.iter().zip(roles).zip(over) {
                table.norm(&self.in_layer(name), role, over, ("weight", None));
            }
        }
    }

    /// What makes queries, keys and values of the stream.
    fn projection_rows(&self, table: &mut Table, layer: usize, layout: Layout) {
        let (names, shape) = (&self.names, &self.shape_in(layer));
        let (queries, keys) = (shape.queries(layer), shape.keys(layer));
        let rows = match layout {
            Layout::Split => vec![
                (names.query, Role::QUERY, queries),
                (names.key, Role::KEY, keys.clone()),
                (names.value, Role::VALUE, keys),
            ],
            Layout::Fused => {
                let all = Side([queries.0, keys.0.clone(), keys.0].concat());
                vec![(names.query_key_value, Role::QUERY_KEY_VALUE, all)]
            }
            Layout::FusedByHead => {
                let all = shape.heads_of_width(layer, 3 * shape.head_dim);
                vec![(names.query_key_value, Role::QUERY_KEY_VALUE, all)]
            }
        };
        for (name, role, out) in rows {
            let (name, bias) = (self.in_layer(name), self.bias.query_key_value);
            table.linear(&name, role, out, shape.stream(), bias);
        }
    }

    fn expert_rows(&self, table: &mut Table, (layer, part): (usize, usize)) {
        if let Some(experts) = &self.experts {
            let stream = self.shape.stream();
            experts.rows(table, (layer, part), &|name| self.in_layer(name), &stream);
        }
    }

    fn mlp_rows(&self, table: &mut Table, layer: usize) {
        let (names, stream, bias) = (&self.names, self.shape.stream(), self.bias.mlp);
        let neurons = self.shape.neurons(layer);
        let rows = match self.mlp.gate {
            Gate::None => vec![(names.up, Role::UP, neurons.clone())],
            Gate::Split => vec![
                (names.gate, Role::GATE, neurons.clone()),
                (names.up, Role::UP, neurons.clone()),
            ],
            Gate::Fused => {
                let both = Side([neurons.0.clone(), neurons.0.clone()].concat());
                vec![(names.gate_up, Role::GATE_UP, both)]
            }
        };
        for (name, role, out) in rows {
            table.linear(&self.in_layer(name), role, out, stream.clone(), bias);
        }
        table.linear(
            &self.in_layer(names.down),
            Role::DOWN,
            stream,
            neurons,
            bias,
        );
    }
}
