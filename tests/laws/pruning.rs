//! What plans and views do to a model.

use std::collections::BTreeMap;

use minitron::{
    alike, axes, families, forward, groups, registry, some_ids, tiny_gpt2, tiny_llama,
    tiny_nemotron, tiny_nemotron_h, without_groups,
};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{MemorySource, Reader, TensorSource, WriteOptions, write_model};
use minitron_core::error::Result;
use minitron_core::mixers::{CORRECTION, MAMBA_HEADS, MAMBA_INPUT};
use minitron_core::model::Transformer;
use minitron_core::plan::{Plan, Ranking, Rankings, Space};
use minitron_core::prune::{PrunedView, Student};
use minitron_core::spec::{
    EXPERTS, HEADS, KV_HEADS, MLP, ModelFolder, ModelSpec, PruneGroup, Role, Side, Sizes,
};
use minitron_engine::ranks::Ranks;
use minitron_engine::score::{Metric, ScorerSet};
use minitron_plugins::laws;
use tch::Tensor;

use super::{Model, REORDERED, load, relative};

fn space(spec: &ModelSpec) -> Space {
    Space::new(spec, &axes(&registry()).unwrap()).unwrap()
}

#[test]
fn keeping_every_unit_is_the_identity_byte_for_byte() {
    for config in families() {
        let model = Model::new(&config, 4).unwrap();
        let plan = Plan::default()
            .checked(&space(&model.spec), &model.spec)
            .unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_model(
            before.path(),
            &model.spec.config,
            &model.source,
            None,
            WriteOptions::default(),
        )
        .unwrap();
        write_model(
            after.path(),
            &student.config,
            &student.view,
            None,
            WriteOptions::default(),
        )
        .unwrap();
        for file in ["config.json", "model.safetensors"] {
            let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
            assert!(
                read(&before) == read(&after),
                "{}: {file} differs",
                model.family()
            );
        }
    }
}

#[test]
fn chunks_of_any_size_write_the_same_bytes() {
    for config in families() {
        let model = Model::new(&config, 4).unwrap();
        let plan = half_on_every_axis(&model.spec, 5).unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        let write = |chunk_bytes| {
            let dir = tempfile::tempdir().unwrap();
            let options = WriteOptions {
                chunk_bytes,
                ..WriteOptions::default()
            };
            write_model(dir.path(), &student.config, &student.view, None, options).unwrap();
            std::fs::read(dir.path().join("model.safetensors")).unwrap()
        };
        let whole = write(usize::MAX);
        for chunk_bytes in [0, 1, 7, 100, 4096] {
            assert!(
                write(chunk_bytes) == whole,
                "{}: chunks of {chunk_bytes} bytes",
                model.family()
            );
        }
    }
}

#[test]
fn keeping_every_unit_adds_no_key_to_a_config_that_leaves_defaults_out() {
    for mut config in [tiny_llama(), tiny_nemotron()] {
        let object = config.as_object_mut().unwrap();
        for key in ["head_dim", "num_key_value_heads"] {
            object.remove(key);
        }
        let model = Model::new(&config, 5).unwrap();
        let plan = Plan::default()
            .checked(&space(&model.spec), &model.spec)
            .unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        assert_eq!(
            student.config.to_json().unwrap(),
            model.spec.config.to_json().unwrap()
        );
    }
}

#[test]
fn a_width_that_the_config_leaves_to_its_default_stays_when_the_stream_shrinks() {
    let mut config = tiny_gpt2();
    config.as_object_mut().unwrap().remove("n_inner");
    let model = Model::new(&config, 16).unwrap();
    let sizes = Sizes::from([("hidden".to_owned(), 16)]);
    let rankings = random_rankings(&model.spec, 17).unwrap();
    let plan = space(&model.spec)
        .plan(&sizes, &rankings, &model.spec)
        .unwrap();
    let student = Student::new(&model.source, &model.spec, &plan).unwrap();
    assert_eq!(student.config.get("n_inner"), Some(&128.into()));
}

/// A model without some units, whether or not a config could say so: each layer has its own dims.
fn without(model: &Model, source: &MemorySource, kept: Plan) -> Result<Transformer> {
    let view = PrunedView::new(source, &model.spec, &kept)?;
    let mut spec = model.spec.clone();
    for (name, kept) in &kept.kept {
        if let Some(dim) = spec.dims.get_mut(name) {
            dim.size = kept.len();
        }
    }
    load(&view, &spec)
}

/// Zeroes the given units of a dim on one side of every tensor of these roles.
fn zeroed(
    model: &Model,
    roles: &[Role],
    of_outputs: bool,
    dead: &BTreeMap<String, Vec<usize>>,
) -> Result<MemorySource> {
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name())?.copy();
        if roles.contains(&param.role) {
            // Stored [out | in], or the other way round; a bias has its outputs alone.
            let side = usize::from(param.sides.len() > 1 && param.transposed == of_outputs);
            let is_bias_of_inputs = param.sides.len() == 1 && !of_outputs;
            let size_of = |dim: &str| model.spec.dims.get(dim).map(|dim| dim.size);
            let mut start = 0;
            for (idx, part) in param.sides[side]
                .0
                .iter()
                .enumerate()
                .filter(|_| !is_bias_of_inputs)
            {
                // Queries, keys and values in a row: without its values, a head says nothing.
                let is_asked = param.role != Role::QUERY_KEY_VALUE
                    || idx == 2
                    || param.sides[side].0.len() == 1;
                if is_asked && part.dims().iter().any(|dim| dead.contains_key(*dim)) {
                    let own = Side(vec![part.clone()]);
                    for position in own.positions(&size_of, &|dim| dead.get(dim).map(Vec::as_slice))
                    {
                        let _ = tensor
                            .f_narrow(side as i64, (start + position) as i64, 1)?
                            .f_zero_()?;
                    }
                }
                start += part.len(&size_of);
            }
        }
        source.insert(param.name(), &tensor)?;
    }
    Ok(source)
}

pub(super) fn activation_scores(model: &Transformer, groups: &[PruneGroup]) -> Result<Scores> {
    scores_of(model, groups, "activation")
}

fn scores_of(model: &Transformer, groups: &[PruneGroup], metric: &str) -> Result<Scores> {
    let importance = registry().build(&metric.parse()?)?;
    let mut scorers = ScorerSet::new(
        vec![Metric {
            label: "by".into(),
            importance,
        }],
        groups,
        0,
    )?;
    scorers.run(
        model,
        &minitron::calibration(&model.spec, &minitron::some_windows(6, 12, 61, 5)?, 4)?,
        Ranks::alone(),
    )?;
    scorers.finish()
}

#[test]
fn experts_that_no_token_goes_through_have_no_score_and_go_without_a_trace() {
    let mut config = tiny_nemotron_h();
    config["hybrid_override_pattern"] = "ME*E".into();
    config["n_routed_experts"] = 6.into();
    config["moe_intermediate_size"] = 12.into();
    config["moe_shared_expert_intermediate_size"] = 20.into();
    let model = Model::new(&config, 6).unwrap();
    // What is added where experts are chosen keeps two of each layer from every token.
    let idle = [(1, [0, 4]), (3, [2, 3])];
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap().copy();
        let of_layer = idle.iter().find(|(layer, _)| param.layer() == Some(*layer));
        if let (CORRECTION, Some((_, experts))) = (param.role, of_layer) {
            experts
                .iter()
                .for_each(|&expert| _ = tensor.get(expert).fill_(-9.0));
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    let whole = load(&source, &model.spec).unwrap();
    let groups = PruneGroup::of_kind(&model.spec, EXPERTS);
    for metric in ["reap", "reap:of=sum", "reap:of=frequency", "activation"] {
        let scores = scores_of(&whole, &groups, metric).unwrap();
        let rankings = Rankings::new(&scores, &groups, &BTreeMap::new()).unwrap();
        for (layer, experts) in &idle {
            let ranking = &rankings.by_dim[&format!("experts.{layer}")];
            let mut last: Vec<i64> = ranking.order().skip(4).map(|unit| unit as i64).collect();
            last.sort_unstable();
            assert_eq!(last, experts, "{metric}");
            assert!(
                last.iter()
                    .all(|&unit| ranking.scores[unit as usize] == 0.0)
            );
        }
        let wanted = Sizes::from([(EXPERTS.to_owned(), 4)]);
        let plan = space(&model.spec).plan(&wanted, &rankings, &model.spec);
        let student = Student::new(&source, &model.spec, &plan.unwrap()).unwrap();
        let ids_bt = some_ids(2, 12, 61, 7).unwrap();
        let pruned = forward(&load(&student.view, &student.spec).unwrap(), &ids_bt).unwrap();
        let difference = relative(&pruned, &forward(&whole, &ids_bt).unwrap());
        assert!(difference <= REORDERED, "{metric}: {difference:e}");
    }
    // A token goes through two, so one is not legal.
    let one = Sizes::from([(EXPERTS.to_owned(), 1)]);
    let refused = space(&model.spec).settle(&one).unwrap_err().to_string();
    assert!(refused.contains("experts 1 is below 2"), "{refused}");
}

#[test]
fn dead_neurons_are_ranked_last_and_removing_them_changes_nothing() {
    for config in alike() {
        let model = Model::new(&config, 6).unwrap();
        let mut dead = BTreeMap::from([
            ("mlp.0".to_owned(), vec![0, 7, 20, 47]),
            ("mlp.1".to_owned(), vec![1, 2, 3, 4]),
            ("mlp.2".to_owned(), vec![10, 20, 30, 40]),
        ]);
        dead.retain(|dim, _| model.spec.dims.contains_key(dim));
        let source = zeroed(&model, &[Role::GATE, Role::UP], true, &dead).unwrap();
        let whole = load(&source, &model.spec).unwrap();
        let groups = PruneGroup::of_kind(&model.spec, MLP);
        let scores = activation_scores(&whole, &groups).unwrap();
        let rankings = Rankings::new(&scores, &groups, &BTreeMap::new()).unwrap();
        for (dim, dead) in &dead {
            let mut last: Vec<usize> = rankings.by_dim[dim].order().skip(44).collect();
            last.sort_unstable();
            assert_eq!(&last, dead, "{} {dim}", model.family());
        }
        let wanted = Sizes::from([(MLP.to_owned(), 44)]);
        let plan = space(&model.spec)
            .plan(&wanted, &rankings, &model.spec)
            .unwrap();
        let student = Student::new(&source, &model.spec, &plan).unwrap();
        let ids_bt = some_ids(2, 12, 61, 7).unwrap();
        let pruned = forward(&load(&student.view, &student.spec).unwrap(), &ids_bt).unwrap();
        let difference = relative(&pruned, &forward(&whole, &ids_bt).unwrap());
        assert!(
            difference <= REORDERED,
            "{}: {difference:e}",
            model.family()
        );
    }
}

#[test]
fn a_dead_head_is_ranked_last_and_removing_it_changes_nothing() {
    // Where a norm is over all heads, a dead one divides the others too: norm_rescale is for that.
    for mut config in families()
        .into_iter()
        .filter(|config| config["model_type"] != "olmo3")
    {
        // Here every query head has values of its own; grouped ones are dead only together.
        if config.get("num_key_value_heads").is_some() {
            config["num_key_value_heads"] = 4.into();
            without_groups(&mut config);
        }
        let model = Model::new(&config, 8).unwrap();
        let groups = PruneGroup::of_kind(&model.spec, HEADS);
        let group = &groups[groups.len() / 2];
        let dead = BTreeMap::from([(group.dim.clone(), vec![2])]);
        let source = zeroed(&model, &[Role::VALUE, Role::QUERY_KEY_VALUE], true, &dead).unwrap();
        let whole = load(&source, &model.spec).unwrap();
        let scores = activation_scores(&whole, &groups).unwrap();
        let ranking = Ranking::new(group, scores.of(&group.dim, None).unwrap()).unwrap();
        assert_eq!(ranking.order().last(), Some(2), "{}", model.family());
        let kept = Plan {
            kept: BTreeMap::from([(group.dim.clone(), ranking.best(3).unwrap())]),
        };
        let ids_bt = some_ids(2, 12, 61, 9).unwrap();
        let pruned = forward(&without(&model, &source, kept).unwrap(), &ids_bt).unwrap();
        let difference = relative(&pruned, &forward(&whole, &ids_bt).unwrap());
        assert!(
            difference <= REORDERED,
            "{}: {difference:e}",
            model.family()
        );
    }
}

/// In a layer of Mamba heads that say nothing, one of each group: with them goes what the norm over
/// the group divides by, which its gain makes up for.
#[test]
fn mamba_heads_that_say_nothing_are_ranked_last_and_go_from_each_group() {
    let mut config = tiny_nemotron_h();
    // Which is added to another mean square of fewer heads.
    config["layer_norm_epsilon"] = 1e-12.into();
    let model = Model::new(&config, 8).unwrap();
    let groups = PruneGroup::of_kind(&model.spec, MAMBA_HEADS);
    let group = &groups[0];
    assert_eq!((group.n_units, group.n_parts, group.block), (8, 2, 8));
    let dims = groups.iter().map(|group| group.dim.clone());
    let dead = dims.clone().map(|dim| (dim, vec![2, 5])).collect();
    let source = zeroed(&model, &[MAMBA_INPUT], true, &dead).unwrap();
    let whole = load(&source, &model.spec).unwrap();
    let scores = activation_scores(&whole, &groups).unwrap();
    let ranking = Ranking::new(group, scores.of(&group.dim, None).unwrap()).unwrap();
    let kept = ranking.best(6).unwrap();
    assert_eq!(kept, [0, 1, 3, 4, 6, 7], "{}", model.family());
    let plan = Plan {
        kept: dims.map(|dim| (dim, kept.clone())).collect(),
    };
    let student = Student::new(&source, &model.spec, &plan).unwrap();
    let gain = |name: &str, x: Tensor| match name.contains(".m") && name.ends_with(".norm.weight") {
        true => x.f_mul_scalar((8.0_f64 / 6.0).sqrt()).unwrap(),
        false => x,
    };
    let mut scaled = MemorySource::default();
    for name in student.view.names() {
        let x = gain(&name, student.view.read(&name).unwrap());
        scaled.insert(name, &x).unwrap();
    }
    let ids_bt = some_ids(2, 12, 61, 9).unwrap();
    let pruned = forward(&load(&scaled, &student.spec).unwrap(), &ids_bt).unwrap();
    let difference = relative(&pruned, &forward(&whole, &ids_bt).unwrap());
    assert!(
        difference <= REORDERED,
        "{}: {difference:e}",
        model.family()
    );
}

#[test]
fn removing_a_head_that_nothing_reads_from_each_group_changes_nothing() {
    for config in [tiny_llama(), tiny_nemotron()] {
        let model = Model::new(&config, 10).unwrap();
        let dead = BTreeMap::from([("heads.2".to_owned(), vec![0, 3])]);
        let source = zeroed(&model, &[Role::ATTENTION_OUTPUT], false, &dead).unwrap();
        let ids_bt = some_ids(2, 12, 61, 11).unwrap();
        let whole = forward(&load(&source, &model.spec).unwrap(), &ids_bt).unwrap();
        let kept = Plan {
            kept: BTreeMap::from([("heads.2".to_owned(), vec![1, 2])]),
        };
        let pruned = forward(&without(&model, &source, kept).unwrap(), &ids_bt).unwrap();
        assert!(relative(&pruned, &whole) <= REORDERED, "{}", model.family());
        let other = Plan {
            kept: BTreeMap::from([("heads.2".to_owned(), vec![0, 3])]),
        };
        let other = forward(&without(&model, &source, other).unwrap(), &ids_bt).unwrap();
        assert!(relative(&other, &whole) > 0.01, "{}", model.family());
    }
}

/// Scores from a generator, for every group.
pub(super) fn random_rankings(spec: &ModelSpec, seed: u64) -> Result<Rankings> {
    laws::random_rankings(&groups(spec)?, seed)
}

fn half_on_every_axis(spec: &ModelSpec, seed: u64) -> Result<Plan> {
    let sizes = [("hidden", 16), ("heads", 2), ("mlp", 20), ("depth", 2)];
    let sizes = sizes
        .iter()
        .map(|&(kind, size)| (kind.to_owned(), size))
        .collect();
    space(spec).plan(&sizes, &random_rankings(spec, seed)?, spec)
}

#[test]
fn a_pruned_folder_loads_as_its_view_does_and_has_the_predicted_parameters() {
    for config in families() {
        let model = Model::new(&config, 12).unwrap();
        let plan = half_on_every_axis(&model.spec, 13).unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write_model(
            dir.path(),
            &student.config,
            &student.view,
            None,
            WriteOptions::default(),
        )
        .unwrap();

        let folder = ModelFolder::open(dir.path(), &registry()).unwrap();
        assert!(folder.unknown_tensors.is_empty());
        let written = load(&folder.checkpoint.tensors, &folder.spec).unwrap();
        let viewed = load(&student.view, &student.spec).unwrap();
        for (written, viewed) in written.parameters().iter().zip(viewed.parameters()) {
            assert!(
                written.name == viewed.name && written.tensor.equal(&viewed.tensor),
                "{}",
                written.name
            );
        }
        let ids_bt = some_ids(2, 12, 61, 14).unwrap();
        assert!(
            forward(&written, &ids_bt)
                .unwrap()
                .equal(&forward(&viewed, &ids_bt).unwrap()),
            "{}",
            model.family()
        );

        let reader = Reader::open(dir.path()).unwrap();
        let n_written: u64 = reader
            .names()
            .iter()
            .map(|name| reader.info(name).unwrap().n_elements().unwrap())
            .sum();
        assert_eq!(
            model.spec.n_params_of(&plan.size_map(&model.spec)),
            n_written,
            "{}",
            model.family()
        );
        assert_eq!(folder.spec.n_params(), n_written, "{}", model.family());
        assert!(n_written < model.spec.n_params());
    }
}

#[test]
fn every_key_value_head_keeps_as_many_queries_and_the_best_of_them() {
    for config in [tiny_llama(), tiny_nemotron()] {
        let model = Model::new(&config, 15).unwrap();
        let group = &PruneGroup::of_kind(&model.spec, HEADS)[0];
        // The second group holds the two best of all, and still gives one up.
        let ranking = Ranking::new(group, &[0.1, 0.2, 0.9, 0.8]).unwrap();
        assert_eq!(ranking.best(2).unwrap(), [1, 2]);
        let unequal = Plan {
            kept: BTreeMap::from([("heads.0".to_owned(), vec![2, 3])]),
        };
        let error = unequal
            .checked(&space(&model.spec), &model.spec)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("equally many query heads per key/value head"),
            "{error}"
        );
    }
}

#[test]
fn a_dead_key_value_head_is_ranked_last_and_goes_with_its_queries_unnoticed() {
    for config in [tiny_llama(), tiny_nemotron()] {
        let model = Model::new(&config, 20).unwrap();
        let dead = (0..3)
            .map(|layer| (format!("kv_heads.{layer}"), vec![layer % 2]))
            .collect();
        let source = zeroed(&model, &[Role::VALUE], true, &dead).unwrap();
        let whole = load(&source, &model.spec).unwrap();
        let groups = groups(&model.spec).unwrap();
        let scores = activation_scores(&whole, &groups).unwrap();
        let rankings = Rankings::new(&scores, &groups, &BTreeMap::new()).unwrap();
        let wanted = Sizes::from([(KV_HEADS.to_owned(), 1)]);
        let plan = space(&model.spec)
            .plan(&wanted, &rankings, &model.spec)
            .unwrap();
        for layer in 0..3 {
            let alive = 1 - layer % 2;
            assert_eq!(plan.kept[&format!("kv_heads.{layer}")], [alive]);
            assert_eq!(
                plan.kept[&format!("heads.{layer}")],
                [2 * alive, 2 * alive + 1]
            );
        }
        let student = Student::new(&source, &model.spec, &plan).unwrap();
        assert_eq!(student.config.get("num_key_value_heads"), Some(&1.into()));
        let ids_bt = some_ids(2, 12, 61, 21).unwrap();
        let pruned = forward(&load(&student.view, &student.spec).unwrap(), &ids_bt).unwrap();
        let difference = relative(&pruned, &forward(&whole, &ids_bt).unwrap());
        assert!(
            difference <= REORDERED,
            "{}: {difference:e}",
            model.family()
        );
    }
}

/// Names, types, shapes and bytes of every tensor.
fn contents(source: &dyn TensorSource) -> Vec<String> {
    let of = |name: String| {
        format!(
            "{name} {:?} {:?}",
            source.info(&name),
            Vec::<f32>::try_from(flat(source, &name))
        )
    };
    source.names().into_iter().map(of).collect()
}

fn flat(source: &dyn TensorSource, name: &str) -> Tensor {
    source.read(name).unwrap().flatten(0, -1)
}

#[test]
fn pruning_twice_is_pruning_once_by_the_composed_plan_byte_for_byte() {
    let sizes = |pairs: &[(&str, usize)]| {
        pairs
            .iter()
            .map(|&(kind, size)| (kind.to_owned(), size))
            .collect::<Sizes>()
    };
    let widths = [
        sizes(&[("hidden", 16), ("heads", 2), ("mlp", 40)]),
        sizes(&[("hidden", 8), ("heads", 1), ("mlp", 20)]),
    ];
    let groups = [
        sizes(&[("kv_heads", 1), ("depth", 2)]),
        sizes(&[("heads", 1), ("mlp", 44), ("depth", 1)]),
    ];
    let layers = [
        sizes(&[("depth", 2), ("mlp", 40)]),
        sizes(&[("mlp", 32), ("depth", 1)]),
    ];
    let experts = [
        sizes(&[("experts", 4), ("expert_mlp", 8)]),
        sizes(&[("experts", 3), ("expert_mlp", 4), ("shared_mlp", 8)]),
    ];
    for (idx, config) in families().into_iter().enumerate() {
        let model = Model::new(&config, 30).unwrap();
        let is_grouped = model.spec.size(KV_HEADS) > 0;
        let has_experts = model.spec.size(EXPERTS) > 0;
        for [first, second] in [&widths, &groups, &layers, &experts]
            .into_iter()
            .filter(|steps| is_grouped || *steps != &groups)
            .filter(|steps| has_experts || *steps != &experts)
        {
            let of = |spec: &ModelSpec, wanted: &Sizes, seed: u64| {
                space(spec)
                    .plan(wanted, &random_rankings(spec, seed).unwrap(), spec)
                    .unwrap()
            };
            let one = of(&model.spec, first, 31 + idx as u64);
            let once = Student::new(&model.source, &model.spec, &one).unwrap();
            // Of a hybrid, all layers that have a kind of unit may be gone.
            if second.keys().any(|kind| once.spec.size(kind) == 0) {
                continue;
            }
            let two = of(&once.spec, second, 41 + idx as u64);
            let twice = Student::new(&once.view, &once.spec, &two).unwrap();
            let both = one
                .compose(&two, &model.spec)
                .checked(&space(&model.spec), &model.spec)
                .unwrap();
            let direct = Student::new(&model.source, &model.spec, &both).unwrap();
            assert_eq!(
                direct.config.to_json().unwrap(),
                twice.config.to_json().unwrap(),
                "{}",
                model.family()
            );
            assert!(
                contents(&direct.view) == contents(&twice.view),
                "{} {first:?} {second:?}",
                model.family()
            );
        }
    }
}
