//! Experts in the place of a decoder's MLPs, written out tensor by tensor.

use crate::checkpoint::Config;
use crate::error::Result;
use crate::mixers::{
    CORRECTION, EXPERTS_DOWN, EXPERTS_GATE_UP, Gate, Mlp, Moe, ROUTER, SHARED_GATE, Selection,
    Storage,
};
use crate::spec::{
    Constraint, Dim, EXPERT_GROUPS, EXPERT_MLP, EXPERTS, ParamKind, Part, Role, SHARED_MLP, Side,
    Table, dim_of_layer, dim_of_unit, even_step, units,
};

/// The experts of a decoder: what they compute, how many and how wide they are, what they are
/// called.
#[derive(Debug, Clone)]
pub struct Experts {
    /// What computes them.
    pub moe: Moe,
    /// Experts of a layer.
    pub n: usize,
    /// Neurons of each.
    pub width: usize,
    /// Neurons of the shared one; 0 where there is none.
    pub shared_width: usize,
    /// Keys of config.json.
    pub keys: ExpertKeys,
    /// Names of tensors.
    pub names: ExpertNames,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// Whether experts have biases.
    pub bias: bool,
    /// Whether the shared one has.
    pub shared_bias: bool,
}

/// Where config.json states sizes of experts.
#[derive(Debug, Clone)]
pub struct ExpertKeys {
    /// Their number; all of these that are there.
    pub n: Vec<&'static str>,
    /// Neurons of each.
    pub width: &'static str,
    /// Neurons of the shared one.
    pub shared: Option<&'static str>,
}

impl ExpertKeys {
    /// Keys of which a config has some, and the one that is written where it has none.
    pub fn of_number(config: &Config, known: &[&'static str]) -> Vec<&'static str> {
        let is_there = |key: &&&str| config.get(key).is_some();
        let mut found: Vec<&'static str> = known.iter().filter(is_there).copied().collect();
        if found.is_empty() {
            found.extend(known.first());
        }
        found
    }
}

/// Names inside a layer, without `.weight` and `.bias`; `{e}` is the expert.
#[derive(Debug, Clone, Copy)]
pub struct ExpertNames {
    /// The router.
    pub router: &'static str,
    /// What is added to scores where experts are chosen, in full.
    pub correction: &'static str,
    /// Each expert's activated projection, or the matrix of gate and up that holds all.
    pub gate: &'static str,
    /// Each expert's other projection.
    pub up: &'static str,
    /// Each expert's second projection, or the tensor that holds all.
    pub down: &'static str,
    /// The same three of the shared expert.
    pub shared: [&'static str; 3],
    /// Its own gate.
    pub shared_gate: &'static str,
}

impl ExpertNames {
    /// Qwen2-MoE's, which most families took over.
    pub const USUAL: ExpertNames = ExpertNames {
        router: "mlp.gate",
        correction: "mlp.gate.e_score_correction_bias",
        gate: "mlp.experts.{e}.gate_proj",
        up: "mlp.experts.{e}.up_proj",
        down: "mlp.experts.{e}.down_proj",
        shared: [
            "mlp.shared_expert.gate_proj",
            "mlp.shared_expert.up_proj",
            "mlp.shared_expert.down_proj",
        ],
        shared_gate: "mlp.shared_expert_gate",
    };
}

impl Experts {
    /// A router takes so many of them, out of so many groups.
    pub fn constraint(&self) -> Constraint {
        let router = &self.moe.router;
        let least = match router.groups {
            None => router.top_k,
            Some(groups) => {
                // A group is judged by its two best.
                let of_group = router.top_k.div_ceil(groups.top_k.max(1)).max(2);
                groups.n.saturating_mul(of_group)
            }
        };
        Constraint::AtLeast {
            kind: EXPERTS.to_owned(),
            least,
            why: "each token goes through so many, of the groups that it may take",
        }
    }

    /// The sizes of a layer.
    pub fn dims(&self, layer: usize) -> Vec<Dim> {
        let mut number = Dim::new(dim_of_layer(EXPERTS, layer), self.n, &self.keys.n);
        let mut dims = Vec::new();
        if let Some(groups) = self.moe.router.groups.filter(|groups| groups.n > 1) {
            let groups = Dim::new(dim_of_layer(EXPERT_GROUPS, layer), groups.n, &[]);
            number = number.partition(groups.name.clone());
            dims.push(groups);
        }
        dims.push(number);
        let step = even_step(self.width, 4);
        for expert in 0..self.n {
            let name = dim_of_unit(EXPERT_MLP, layer, expert);
            dims.push(Dim::new(name, self.width, &[self.keys.width]).multiple_of(step));
        }
        if let Some(key) = self.keys.shared.filter(|_| self.moe.shared.is_some()) {
            let dim = Dim::new(dim_of_layer(SHARED_MLP, layer), self.shared_width, &[key]);
            dims.push(dim.multiple_of(even_step(self.shared_width, 4)));
        }
        dims
    }

    /// The tensors of a layer; `name` puts a name into it.
    pub fn rows(
        &self,
        table: &mut Table,
        (layer, part): (usize, usize),
        name: &dyn Fn(&str) -> String,
        stream: &Side,
    ) {
        let experts = dim_of_layer(EXPERTS, layer);
        let each = units(experts.clone(), 1);
        let router = name(self.names.router);
        let out = each.clone();
        table.linear(&router, ROUTER, out, stream.clone(), self.router_bias);
        if self.moe.router.selection == Selection::Sigmoid {
            let correction = name(self.names.correction);
            table.tensor(&correction, CORRECTION, ParamKind::Bias, vec![each]);
        }
        match self.moe.storage {
            Storage::OneByOne => {
                for expert in 0..self.n {
                    let rows = table.part(layer, part).unit(&experts, expert);
                    let neurons = units(dim_of_unit(EXPERT_MLP, layer, expert), 1);
                    let names = [self.names.gate, self.names.up, self.names.down].map(name);
                    mlp_rows(
                        rows,
                        &self.moe.expert,
                        &names,
                        (stream, &neurons),
                        self.bias,
                    );
                }
            }
            Storage::Stacked(_) => self.stacked_rows(table, layer, name, stream),
        }
        if let Some(shared) = &self.moe.shared {
            let rows = table.part(layer, part);
            let neurons = units(dim_of_layer(SHARED_MLP, layer), 1);
            let names = self.names.shared.map(name);
            mlp_rows(
                rows,
                &shared.mlp,
                &names,
                (stream, &neurons),
                self.shared_bias,
            );
            if shared.gated {
                let one = Side(vec![Part::Fixed(1)]);
                let gate = name(self.names.shared_gate);
                rows.linear(&gate, SHARED_GATE, one, stream.clone(), false);
            }
        }
    }

    /// All experts in one tensor, [X | in | out].
    fn stacked_rows(
        &self,
        table: &mut Table,
        layer: usize,
        name: &dyn Fn(&str) -> String,
        stream: &Side,
    ) {
        let dims: Vec<String> = (0..self.n)
            .map(|expert| dim_of_unit(EXPERT_MLP, layer, expert))
            .collect();
        let neurons = |block| {
            Side(vec![Part::OfRow {
                dims: dims.clone(),
                block,
            }])
        };
        let each = units(dim_of_layer(EXPERTS, layer), 1);
        let rows = [
            (self.names.gate, EXPERTS_GATE_UP, stream.clone(), neurons(2)),
            (self.names.down, EXPERTS_DOWN, neurons(1), stream.clone()),
        ];
        for (of, role, input, out) in rows {
            let of = name(of);
            let sides = vec![each.clone(), input, out.clone()];
            table
                .tensor(&of, role, ParamKind::Weight, sides)
                .transposed();
            if self.bias {
                let sides = vec![each.clone(), out];
                table.tensor(&format!("{of}_bias"), role, ParamKind::Bias, sides);
            }
        }
    }
}

/// The projections of one MLP: gate, up, down.
fn mlp_rows(
    table: &mut Table,
    mlp: &Mlp,
    [gate, up, down]: &[String; 3],
    (stream, neurons): (&Side, &Side),
    bias: bool,
) {
    if mlp.gate != Gate::None {
        table.linear(gate, Role::GATE, neurons.clone(), stream.clone(), bias);
    }
    table.linear(up, Role::UP, neurons.clone(), stream.clone(), bias);
    table.linear(down, Role::DOWN, stream.clone(), neurons.clone(), bias);
}

/// The layers with experts where every `step`-th has them, but for those that are named
/// (`decoder_sparse_step`, `mlp_only_layers`).
///
/// # Errors
/// `Checkpoint` for a list of something else than layers.
pub fn sparse_layers(config: &Config, n_layers: usize) -> Result<Vec<bool>> {
    let step = config.count_or("decoder_sparse_step", 1)?;
    let mut layers: Vec<bool> = (1..=n_layers)
        .map(|layer| step > 0 && layer.is_multiple_of(step))
        .collect();
    for dense in config.list("mlp_only_layers")?.into_iter().flatten() {
        let Some(layer) = dense.as_u64().and_then(|layer| usize::try_from(layer).ok()) else {
            return Err(config.error(format!(
                "`mlp_only_layers`: expected numbers of layers, got {dense}"
            )));
        };
        if let Some(is_sparse) = layers.get_mut(layer) {
            *is_sparse = false;
        }
    }
    Ok(layers)
}
