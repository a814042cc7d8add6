//! Mamba mixers in some layers of a decoder, written out tensor by tensor.

use super::Decoder;
use crate::checkpoint::Config;
use crate::error::Result;
use crate::mixers::{
    MAMBA_CONVOLUTION, MAMBA_DECAY, MAMBA_GROUPS, MAMBA_HEAD_DIM, MAMBA_HEADS, MAMBA_INPUT,
    MAMBA_NORM, MAMBA_OUTPUT, MAMBA_SKIP, MAMBA_STEP, Mamba2,
};
use crate::spec::{Dim, ParamKind, Part, Side, Table, dim_of_layer, fixed, units};

/// What one part of a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// The layer's attention.
    Attention,
    /// The MLP.
    Mlp,
    /// The Mamba mixer.
    Mamba,
    /// Experts.
    Experts,
    /// Nothing, in the place of one of them.
    Absent,
}

impl Block {
    /// What most decoders have in each layer.
    pub const USUAL: [Block; 2] = [Block::Attention, Block::Mlp];
}

/// Where a family's config states the sizes of Mamba mixers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MambaKeys {
    /// Heads.
    pub heads: &'static str,
    /// Channels of a head.
    pub head_dim: &'static str,
    /// Groups of heads.
    pub groups: &'static str,
}

/// The Mamba mixers of a decoder, alike in all layers that have one.
#[derive(Debug, Clone)]
pub struct MambaShape {
    /// What they compute.
    pub mixer: Mamba2,
    /// Heads of a layer.
    pub n_heads: usize,
    /// Groups that they fall into.
    pub n_groups: usize,
    /// Where the config states that.
    pub keys: MambaKeys,
    /// Whether projections have biases.
    pub bias: bool,
    /// Whether the convolution has one.
    pub convolution_bias: bool,
    /// Before the names of its tensors, below the layer.
    pub name: &'static str,
}

impl MambaShape {
    /// The same, where its sizes go together.
    ///
    /// # Errors
    /// `Checkpoint` for heads that do not fall into the groups.
    pub fn checked(self, config: &Config) -> Result<Self> {
        if self.n_groups > 0 && self.n_heads.is_multiple_of(self.n_groups) {
            return Ok(self);
        }
        Err(config.error(format!(
            "expected `{}` to be a multiple of `{}`, got {} and {}; correct config.json",
            self.keys.heads, self.keys.groups, self.n_heads, self.n_groups
        )))
    }

    /// Named sizes of a layer that has one.
    pub(super) fn dims(&self, layer: usize) -> [Dim; 3] {
        let groups = dim_of_layer(MAMBA_GROUPS, layer);
        let heads = Dim::new(
            dim_of_layer(MAMBA_HEADS, layer),
            self.n_heads,
            &[self.keys.heads],
        );
        let head_dim = self.mixer.head_dim;
        // Kernels of the scan take channels by eights.
        let step = [8, 4, 2].into_iter().find(|&n| head_dim >= 4 * n);
        let channels = Dim::new(
            dim_of_layer(MAMBA_HEAD_DIM, layer),
            head_dim,
            &[self.keys.head_dim],
        );
        [
            heads.partition(groups.clone()),
            channels.multiple_of(step.unwrap_or(1)),
            Dim::new(groups, self.n_groups, &[self.keys.groups]),
        ]
    }

    /// Channels of all heads, in order.
    fn inner(&self, layer: usize) -> Side {
        Side(vec![Part::Each {
            dim: dim_of_layer(MAMBA_HEADS, layer),
            parts: units(dim_of_layer(MAMBA_HEAD_DIM, layer), 1).0,
        }])
    }

    fn rows(&self, table: &mut Table, name: &str, layer: usize, stream: &Side) {
        let (inner, each) = (
            self.inner(layer),
            units(dim_of_layer(MAMBA_HEADS, layer), 1),
        );
        let states = units(dim_of_layer(MAMBA_GROUPS, layer), self.mixer.state_size);
        let convolved = Side([inner.0.clone(), states.0.clone(), states.0].concat());
        let all = Side([inner.0.clone(), convolved.0.clone(), each.0.clone()].concat());
        let taps = vec![convolved.clone(), fixed(1), fixed(self.mixer.taps)];
        let named = |last: &str| format!("{name}.{last}");
        table
            .tensor(
                &named("dt_bias"),
                MAMBA_STEP,
                ParamKind::Weight,
                vec![each.clone()],
            )
            .tensor(
                &named("A_log"),
                MAMBA_DECAY,
                ParamKind::Weight,
                vec![each.clone()],
            )
            .tensor(&named("D"), MAMBA_SKIP, ParamKind::Weight, vec![each])
            .tensor(
                &named("conv1d.weight"),
                MAMBA_CONVOLUTION,
                ParamKind::Weight,
                taps,
            );
        if self.convolution_bias {
            let sides = vec![convolved];
            table.tensor(
                &named("conv1d.bias"),
                MAMBA_CONVOLUTION,
                ParamKind::Bias,
                sides,
            );
        }
        table
            .linear(
                &named("in_proj"),
                MAMBA_INPUT,
                all,
                stream.clone(),
                self.bias,
            )
            .norm(&named("norm"), MAMBA_NORM, inner.clone(), ("weight", None))
            .linear(
                &named("out_proj"),
                MAMBA_OUTPUT,
                stream.clone(),
                inner,
                self.bias,
            );
    }
}

impl Decoder {
    /// The tensors of a layer's Mamba mixer.
    pub(super) fn mamba_rows(&self, table: &mut Table, layer: usize) {
        if let Some(mamba) = &self.mamba {
            let name = self.in_layer(mamba.name);
            mamba.rows(table, &name, layer, &self.shape.stream());
        }
    }

    /// Whether some part of a layer is of a kind.
    pub(super) fn has(&self, layer: usize, block: Block) -> bool {
        self.blocks
            .get(layer)
            .is_some_and(|blocks| blocks.contains(&block))
    }
}
