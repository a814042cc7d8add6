//! A decoder, written out tensor by tensor.

use super::{Decoder, Norms};
use crate::error::Result;
use crate::mixers::{Attention, Gate, Layout, QkNorm, SINKS};
use crate::spec::{
    CheckpointInfo, Constraint, DEPTH, HIDDEN, Layer, ModelSpec, Options, ParamKind, ROPE_PAIRS,
    Role, Side, StatedRotary, Sublayer, Table, fixed,
};

impl Decoder {
    /// Writes it out.
    ///
    /// # Errors
    /// `Internal` where the family is at fault.
    pub fn finish(mut self, evidence: &CheckpointInfo) -> Result<ModelSpec> {
        self.choose_pairs();
        let whole_config = evidence.config;
        let mut table = Table::new(self.names.prefix);
        let (stream, vocab) = (self.shape.stream(), self.shape.vocab);
        let tokens = format!("{}.weight", self.names.tokens);
        table.tensor(
            &tokens,
            Role::TOKEN_EMBEDDING,
            ParamKind::Weight,
            vec![fixed(vocab), stream.clone()],
        );
        let head = format!("{}.weight", self.names.head);
        if self.tied {
            table.also_known_as(&[&head]);
        }
        for layer in 0..self.shape.n_layers {
            self.attention_rows(&mut table, layer);
            self.mlp_rows(&mut table, layer);
        }
        table.around();
        self.norm_row(
            &mut table,
            self.names.final_norm,
            Role::FINAL_NORM,
            stream.clone(),
        );
        if !self.tied {
            table.unprefixed(|table| {
                _ = table.linear(self.names.head, Role::HEAD, fixed(vocab), stream, false)
            });
        }
        for (name, shape) in evidence
            .tensors()
            .filter(|(name, _)| self.beside.iter().any(|start| name.starts_with(start)))
        {
            let sides = shape.iter().map(|&side| fixed(side)).collect();
            table.unprefixed(|table| {
                _ = table.tensor(name, Role::CARRIED, ParamKind::Weight, sides)
            });
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
        let mut dims = self.shape.dims_in(self.scope, &self.keys);
        self.patterns
            .iter_mut()
            .for_each(|pattern| pattern.enter(self.scope));
        dims.iter_mut()
            .filter(|dim| dim.name == DEPTH)
            .for_each(|dim| dim.stated.append(&mut self.patterns));
        let mut spec = ModelSpec::new(
            self.architecture,
            whole_config,
            dims,
            table.finish(),
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
        spec.constraints.extend(self.constraints);
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
        let n_rotated = |stated: &StatedRotary| stated.rotary.n_rotated;
        let all = self.rotaries.first().map_or(0, n_rotated);
        let is_rms =
            |attention: &Attention| attention.qk_norm.is_none_or(|(_, norm)| norm.kind.is_rms());
        match self.attention.first() {
            _ if self.keys.head_dim.is_none() => Some("a config of this family has no head_dim"),
            _ if self.keeps_channels.is_some() => self.keeps_channels,
            _ if self.attention_by.is_some() => {
                Some("its attention is computed in a way of its own")
            }
            Some(attention) if attention.layout != Layout::Split => {
                Some("its queries, keys and values are one matrix")
            }
            _ if all == 0 => Some("nothing turns its queries and keys"),
            _ if self.rotaries.iter().any(|stated| n_rotated(stated) != all) => {
                Some("its layers turn unequal parts of heads")
            }
            _ if !self.attention.iter().all(is_rms) => {
                Some("its norms of queries and keys take the mean out")
            }
            _ => self.rotaries.iter().find_map(StatedRotary::obstacle),
        }
    }

    fn layers(&self) -> Vec<Layer> {
        let around = |part: Sublayer| {
            let part = match self.norms {
                Norms::Pre => part.pre(self.norm),
                Norms::Post => part.post(self.norm),
                Norms::Around => part.pre(self.norm).post(self.norm),
            };
            Sublayer {
                scale: self.residual_scale,
                ..part
            }
        };
        let of_layer = |attention: &Attention| {
            let mlp = Sublayer {
                reads_layer_input: self.parallel,
                ..around(Sublayer::new(self.mlp.clone()))
            };
            let attention = match self.attention_by {
                Some(own) => Sublayer::of(own(attention)),
                None => Sublayer::new(attention.clone()),
            };
            Layer(vec![around(attention), mlp])
        };
        self.attention.iter().map(of_layer).collect()
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
        let in_layer = |name: &str| format!("{}{name}", self.names.layer);
        let (pre, post) = (
            self.names.pre_norms.get(part),
            self.names.post_norms.get(part),
        );
        if let Some(name) = pre.filter(|_| self.norms != Norms::Post) {
            self.norm_row(
                table,
                &in_layer(name),
                Role::INPUT_NORM,
                self.shape.stream(),
            );
        }
        if let Some(name) = post.filter(|_| self.norms != Norms::Pre) {
            self.norm_row(
                table,
                &in_layer(name),
                Role::OUTPUT_NORM,
                self.shape.stream(),
            );
        }
    }

    fn attention_rows(&self, table: &mut Table, layer: usize) {
        let Some(attention) = self.attention.get(layer) else {
            return;
        };
        let (names, stream, bias) = (&self.names, self.shape.stream(), self.bias.query_key_value);
        let (queries, keys) = (self.shape.queries(layer), self.shape.keys(layer));
        let in_layer = |name: &str| format!("{}{name}", names.layer);
        self.norm_rows(table.part(layer, 0), 0);
        let mut linear = |name: &str, role, out: Side, input: Side, bias| {
            table.linear(&in_layer(name), role, out, input, bias);
        };
        match attention.layout {
            Layout::Split => {
                linear(
                    names.query,
                    Role::QUERY,
                    queries.clone(),
                    stream.clone(),
                    bias,
                );
                linear(names.key, Role::KEY, keys.clone(), stream.clone(), bias);
                linear(names.value, Role::VALUE, keys.clone(), stream.clone(), bias);
            }
            Layout::Fused => {
                let all = Side([queries.0.clone(), keys.0.clone(), keys.0.clone()].concat());
                linear(
                    names.query_key_value,
                    Role::QUERY_KEY_VALUE,
                    all,
                    stream.clone(),
                    bias,
                );
            }
            Layout::FusedByHead => {
                let all = self.shape.heads_of_width(layer, 3 * self.shape.head_dim);
                linear(
                    names.query_key_value,
                    Role::QUERY_KEY_VALUE,
                    all,
                    stream.clone(),
                    bias,
                );
            }
        }
        linear(
            names.attention_output,
            Role::ATTENTION_OUTPUT,
            stream,
            queries.clone(),
            self.bias.attention_output,
        );
        if attention.sinks {
            let each = self.shape.heads_of_width(layer, 1);
            table.tensor(&in_layer(names.sinks), SINKS, ParamKind::Weight, vec![each]);
        }
        if let Some((over, _)) = attention.qk_norm {
            let over = match over {
                QkNorm::Head => [self.shape.channels(), self.shape.channels()],
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
