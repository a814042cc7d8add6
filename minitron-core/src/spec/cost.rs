//! What a model costs at some sizes: parameters, bytes of its cache, numbers that a backward pass
//! holds.

use std::collections::BTreeMap;

use super::{At, Cost, DEPTH, ModelSpec, Param, Role, Sizes, split_dim};

/// Sizes of dims: uniform by kind, single dims apart where layers differ, and the layers that stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SizeMap {
    /// By kind (`mlp`) or full name (`mlp.3`), which goes first.
    pub by_name: Sizes,
    /// The layers that stay; without it, `depth` of them, of which each costs what they cost on
    /// average.
    pub layers: Option<Vec<usize>>,
}

impl SizeMap {
    /// The size of a dim that measures `full`.
    fn size(&self, name: &str, full: usize) -> usize {
        let found = self
            .by_name
            .get(name)
            .or_else(|| self.by_name.get(split_dim(name).0));
        found.copied().unwrap_or(full)
    }

    /// Whether layers that are alike stay alike.
    fn is_uniform(&self) -> bool {
        self.by_name.keys().all(|name| split_dim(name).1.is_none())
    }
}

/// Sizes by kind where all dims of it have one, else by dim; dims of which nothing is left under
/// their own names, whatever the others have.
pub fn by_kind<'a>(sizes: impl Iterator<Item = (&'a str, usize)>) -> Sizes {
    let all: Vec<(&str, usize)> = sizes.collect();
    let mut first: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for &(name, size) in all.iter().filter(|(_, size)| *size > 0) {
        let (of_first, are_equal) = first.entry(split_dim(name).0).or_insert((size, true));
        *are_equal &= *of_first == size;
    }
    let mut sizes = Sizes::new();
    for (name, size) in all {
        let kind = split_dim(name).0;
        let are_equal = size > 0 && first.get(kind).is_some_and(|(_, are_equal)| *are_equal);
        let name = if are_equal { kind } else { name };
        sizes.insert(name.to_owned(), size);
    }
    sizes
}

/// As they are.
impl From<&Sizes> for SizeMap {
    fn from(sizes: &Sizes) -> Self {
        SizeMap {
            by_name: sizes.clone(),
            layers: None,
        }
    }
}

/// Layers that are equal in all their tensors and mixers: each costs what the first of them does.
pub(super) fn classes(spec: &ModelSpec) -> Vec<(usize, usize)> {
    let mut classes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let n_layers = spec.layers.len();
    let mut described = vec![String::new(); n_layers];
    for param in &spec.params {
        if let Some((layer, sublayer)) = param.at.place()
            && let Some(text) = described.get_mut(layer)
        {
            let sides: Vec<usize> = param.sides.iter().map(|side| spec.len(side)).collect();
            text.push_str(&format!(
                "{sublayer} {} {:?} {sides:?};",
                param.role, param.kind
            ));
        }
    }
    for (layer, text) in described.into_iter().enumerate() {
        let mixers: Vec<String> = spec
            .sublayers(layer)
            .map(|(_, part)| format!("{:?}", part.mixer))
            .collect();
        classes
            .entry(text + &mixers.join(";"))
            .or_insert((layer, 0))
            .1 += 1;
    }
    classes.into_values().collect()
}

impl ModelSpec {
    /// Whether all layers are equal, so that any of them cost as much.
    pub fn is_even(&self) -> bool {
        self.classes.len() <= 1
    }

    /// Length of a side at full size.
    pub fn len(&self, side: &super::Side) -> usize {
        side.len(|dim| self.dims.get(dim).map(|dim| dim.size))
    }

    /// Number of parameters at these sizes, ties counted once; kinds left out keep their size.
    pub fn n_params_at(&self, sizes: &Sizes) -> u64 {
        self.n_params_of(&sizes.into())
    }

    /// The same of sizes that may differ between layers.
    pub fn n_params_of(&self, sizes: &SizeMap) -> u64 {
        self.total(sizes, |at| self.volume(at, sizes, |_| true))
    }

    /// The same without embeddings and output head: what the papers' ratios are about on small
    /// models.
    pub fn n_non_embedding_at(&self, sizes: &Sizes) -> u64 {
        self.n_non_embedding_of(&sizes.into())
    }

    /// The same of sizes that may differ between layers.
    pub fn n_non_embedding_of(&self, sizes: &SizeMap) -> u64 {
        self.total(sizes, |at| {
            self.volume(at, sizes, |param| !param.role.is_vocabulary())
        })
    }

    /// Number of parameters of this very model.
    pub fn n_params(&self) -> u64 {
        self.n_params_at(&Sizes::new())
    }

    /// Parameters that one token goes through at these sizes: of a layer's experts so many as its
    /// router chooses, all of the rest.
    pub fn n_active_at(&self, sizes: &Sizes) -> u64 {
        self.n_active_of(&sizes.into())
    }

    /// The same of sizes that may differ between layers.
    pub fn n_active_of(&self, sizes: &SizeMap) -> u64 {
        self.total(sizes, |layer| {
            let idle = layer.map_or(0, |layer| self.idle(layer, sizes));
            self.volume(layer, sizes, |_| true).saturating_sub(idle)
        })
    }

    /// Whether tokens go through some parameters alone.
    pub fn has_idle(&self) -> bool {
        let mut parts = self.layers.iter().flat_map(|layer| &layer.0);
        parts.any(|part| part.mixer.active().is_some())
    }

    /// The share of tokens that go through a tensor, were experts equally busy.
    pub fn active_share(&self, param: &Param) -> f64 {
        let Some((layer, sublayer)) = param.at.place() else {
            return 1.0;
        };
        let part = self
            .layers
            .get(layer)
            .and_then(|layer| layer.0.get(sublayer));
        let Some(active) = part.and_then(|part| part.mixer.active()) else {
            return 1.0;
        };
        if !active.holds(param) {
            return 1.0;
        }
        let n_units = self.size_in(layer, active.kind, &SizeMap::default());
        (active.n as f64 / n_units.max(1) as f64).min(1.0)
    }

    /// Parameters of a layer's experts that a token does not go through.
    fn idle(&self, layer: usize, sizes: &SizeMap) -> u64 {
        let mut idle = 0u64;
        for (at, part) in self.sublayers(layer) {
            let Some(active) = part.mixer.active() else {
                continue;
            };
            let n_units = self.size_in(layer, active.kind, sizes) as u64;
            let of_units = self.volume(Some(layer), sizes, |param| {
                active.holds(param) && param.at.whole() == at
            });
            let n_idle = n_units.saturating_sub(active.n as u64);
            let share = (of_units / n_units.max(1)).saturating_mul(n_idle);
            idle = idle.saturating_add(share);
        }
        idle
    }

    /// Parameters of one layer.
    pub fn n_layer_params(&self, layer: usize) -> u64 {
        self.volume(Some(layer), &SizeMap::default(), |_| true)
    }

    /// Bytes of the cache of generation at these sizes, two per element (f16 or bf16); 0 for
    /// encoders.
    pub fn kv_cache_bytes_at(&self, sizes: &Sizes, seq_len: usize, batch_size: usize) -> u64 {
        self.kv_cache_bytes_of(&sizes.into(), seq_len, batch_size)
    }

    /// The same of sizes that may differ between layers.
    pub fn kv_cache_bytes_of(&self, sizes: &SizeMap, seq_len: usize, batch_size: usize) -> u64 {
        if !self.options.causal {
            return 0;
        }
        let numbers = self.total(sizes, |layer| {
            let costs = layer
                .into_iter()
                .flat_map(|layer| self.mixer_costs(layer, sizes));
            costs.fold(0, |sum, cost| {
                let n_tokens = cost.cached_tokens.map_or(seq_len, |most| most.min(seq_len)) as u64;
                let of_tokens = cost.cache_per_token.saturating_mul(n_tokens);
                sum.saturating_add(of_tokens).saturating_add(cost.state)
            })
        });
        numbers.saturating_mul(2).saturating_mul(batch_size as u64)
    }

    /// Numbers per token that a layer's backward pass needs: what its mixers hold, and the norms
    /// around them with their inputs.
    pub fn held_in(&self, layer: usize) -> u64 {
        let hidden = self.size(super::HIDDEN) as u64;
        let norms = self.sublayers(layer).map(|(_, part)| {
            let n = [part.pre, part.post, part.after_sum]
                .iter()
                .flatten()
                .count() as u64;
            n.max(1).saturating_mul(2).saturating_mul(hidden)
        });
        norms.fold(self.held_inside(layer), u64::saturating_add)
    }

    /// The part of it that mixers hold.
    pub fn held_inside(&self, layer: usize) -> u64 {
        self.mixer_costs(layer, &SizeMap::default())
            .map(|cost| cost.inside)
            .fold(0, u64::saturating_add)
    }

    /// What the mixers of a layer cost.
    pub fn mixer_costs(&self, layer: usize, sizes: &SizeMap) -> impl Iterator<Item = Cost> {
        self.sublayers(layer)
            .map(move |(_, part)| part.mixer.cost(&|kind| self.size_in(layer, kind, sizes)))
    }

    /// The size of a kind in one layer.
    fn size_in(&self, layer: usize, kind: &str, sizes: &SizeMap) -> usize {
        let of_layer = self.dims.get(&super::dim_of_layer(kind, layer));
        let of_unit = self.dims.get(&super::dim_of_unit(kind, layer, 0));
        of_layer
            .or(of_unit)
            .or_else(|| self.dims.get(kind))
            .map_or(0, |dim| sizes.size(&dim.name, dim.size))
    }

    /// Over what stands around the layers (none) and every layer that stays.
    fn total(&self, sizes: &SizeMap, of: impl Fn(Option<usize>) -> u64) -> u64 {
        let around = of(None);
        if let Some(layers) = &sizes.layers {
            return layers
                .iter()
                .map(|&layer| of(Some(layer)))
                .fold(around, u64::saturating_add);
        }
        let each = (0..self.layers.len()).map(|layer| (layer, 1)).collect();
        let classes = if sizes.is_uniform() {
            &self.classes
        } else {
            &each
        };
        let total = classes
            .iter()
            .map(|&(layer, n)| of(Some(layer)).saturating_mul(n as u64))
            .fold(0, u64::saturating_add);
        let n_full = self.layers.len().max(1);
        let n_layers = sizes.by_name.get(DEPTH).copied().unwrap_or(n_full);
        let share = u128::from(total)
            .saturating_mul(n_layers as u128)
            .checked_div(n_full as u128)
            .unwrap_or(0);
        around.saturating_add(u64::try_from(share).unwrap_or(u64::MAX))
    }

    /// Elements of the tensors of a layer, or of those around the layers.
    fn volume(
        &self,
        layer: Option<usize>,
        sizes: &SizeMap,
        counts: impl Fn(&Param) -> bool,
    ) -> u64 {
        let mut total = 0u64;
        let size_of = |dim: &str| Some(sizes.size(dim, self.dims.get(dim)?.size));
        for param in self.params_in(layer).filter(|param| counts(param)) {
            if self.goes_at(param.at, size_of) {
                continue;
            }
            let mut volume = self.n_alike(param, sizes);
            for side in &param.sides {
                let len = side.len(size_of);
                volume = volume.saturating_mul(len as u64);
            }
            total = total.saturating_add(volume);
        }
        total
    }

    /// How many tensors one stands for: that of the first unit for those of all units that stay,
    /// which have as many numbers each.
    fn n_alike(&self, param: &Param, sizes: &SizeMap) -> u64 {
        match (param.at, &param.unit_of) {
            (At::Unit { unit: 0, .. }, Some(dim)) => {
                let full = self.dims.get(dim).map_or(0, |dim| dim.size);
                sizes.size(dim, full) as u64
            }
            (At::Unit { .. }, Some(_)) => 0,
            _ => 1,
        }
    }

    /// Tensors of a layer, or of those around the layers.
    pub fn params_in(&self, layer: Option<usize>) -> impl Iterator<Item = &Param> {
        let found = self.by_layer.get(layer.map_or(0, |layer| layer + 1));
        found
            .into_iter()
            .flatten()
            .filter_map(|&idx| self.params.get(idx))
    }

    /// Indices of the tensors around the layers, then of each layer.
    pub(super) fn grouped(params: &[Param], n_layers: usize) -> Vec<Vec<usize>> {
        let mut groups = vec![Vec::new(); n_layers + 1];
        for (idx, param) in params.iter().enumerate() {
            if let Some(group) = groups.get_mut(param.layer().map_or(0, |layer| layer + 1)) {
                group.push(idx);
            }
        }
        groups
    }

    /// Whether what a state of `n_before` tokens holds is still right in a sequence of `n_tokens`.
    pub fn states_hold(&self, n_before: usize, n_tokens: usize) -> bool {
        let parts = self.layers.iter().flat_map(|layer| &layer.0);
        let limits = parts.filter_map(|part| part.mixer.states_hold_for());
        limits
            .min()
            .is_none_or(|limit| n_before > limit || n_tokens <= limit)
    }

    /// Whether the model has an output projection of its own.
    pub fn has_own_head(&self) -> bool {
        self.find(At::Model, Role::HEAD, super::ParamKind::Weight)
            .is_some()
    }
}
