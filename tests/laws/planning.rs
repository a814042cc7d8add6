//! Sizes, budgets, rounds and what a plan says of itself.

use std::collections::BTreeMap;

use minitron::{
    axes, config, families, groups, registry, tiny_llama, tiny_nemotron, tiny_nemotron_h,
};
use minitron_core::calibrate::Scores;
use minitron_core::contract::{Allocator, Axis};
use minitron_core::plan::{Cut, Plan, Rankings, Space, schedule};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, HEADS, HIDDEN, KV_HEADS, MLP, ModelSpec, PruneGroup, Sizes};
use serde_json::{Value, json};

use super::pruning::random_rankings;

fn spec(value: &Value) -> ModelSpec {
    ModelSpec::from_config(&config(value).unwrap(), &registry()).unwrap()
}

fn space(spec: &ModelSpec) -> Space {
    Space::new(spec, &axes(&registry()).unwrap()).unwrap()
}

fn sizes(pairs: &[(&str, usize)]) -> Sizes {
    pairs
        .iter()
        .map(|&(kind, size)| (kind.to_owned(), size))
        .collect()
}

// --- the papers' models
// ----------------------------------------------------------------------------------------------

fn nemotron(hidden: usize, heads: usize, mlp: usize) -> Value {
    json!({
        "model_type": "nemotron", "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": 32,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 256_000,
        "max_position_embeddings": 4096, "partial_rotary_factor": 0.5, "tie_word_embeddings": false
    })
}

fn llama(layers: usize, hidden: usize, mlp: usize) -> Value {
    json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp,
            "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "tie_word_embeddings": false
    })
}

#[test]
fn the_papers_models_have_exactly_the_printed_parameters() {
    let table = [
        ("Nemotron-4 15B", nemotron(6144, 48, 24576), 15_628_775_424),
        ("Minitron 8B", nemotron(4096, 48, 16384), 8_271_699_968),
        ("Minitron 4B", nemotron(3072, 24, 9216), 4_190_509_056),
        ("Llama-3.1-8B", llama(32, 4096, 14336), 8_030_261_248),
        (
            "Llama-3.1-Minitron-4B-Width",
            llama(32, 3072, 9216),
            4_512_746_496,
        ),
        (
            "Llama-3.1-Minitron-4B-Depth",
            llama(16, 4096, 14336),
            4_540_469_248u64,
        ),
    ];
    for (name, config, n_params) in table {
        assert_eq!(spec(&config).n_params(), n_params, "{name}");
    }
}

#[test]
fn the_papers_shapes_are_legal_and_have_the_printed_parameters_as_sizes_of_their_sources() {
    let (large, small) = (
        spec(&nemotron(6144, 48, 24576)),
        spec(&llama(32, 4096, 14336)),
    );
    for hidden in [2560, 3072, 3584, 4096, 4608, 5120, 5632, 6144] {
        for half_factors in 5..=8 {
            for (heads, layers) in [(24, 29), (32, 30), (48, 32)] {
                let mlp = hidden * half_factors / 2;
                let shape = sizes(&[
                    (HIDDEN, hidden),
                    (MLP, mlp),
                    (HEADS, heads),
                    (DEPTH, layers),
                ]);
                space(&large).complete(&shape).unwrap();
            }
        }
    }
    let n_params = |spec: &ModelSpec, shape: &[(&str, usize)]| {
        spec.n_params_at(&space(spec).complete(&sizes(shape)).unwrap())
    };
    assert_eq!(
        n_params(&large, &[(HIDDEN, 4096), (MLP, 16384)]),
        8_271_699_968
    );
    assert_eq!(
        n_params(&large, &[(HIDDEN, 3072), (MLP, 9216), (HEADS, 24)]),
        4_190_509_056
    );
    assert_eq!(
        n_params(&small, &[(HIDDEN, 3072), (MLP, 9216)]),
        4_512_746_496
    );
    assert_eq!(n_params(&small, &[(DEPTH, 16)]), 4_540_469_248);
}

#[test]
fn widths_are_divisible_as_matrix_units_like_it_unless_the_axis_says_otherwise() {
    let large = spec(&nemotron(6144, 48, 24576));
    let step = |kind: &str, spec: &ModelSpec| space(spec).axis(kind).unwrap().step;
    assert_eq!((step(HIDDEN, &large), step(MLP, &large)), (64, 256));
    assert_eq!(
        (
            step(HEADS, &large),
            step(KV_HEADS, &large),
            step(DEPTH, &large)
        ),
        (8, 1, 1)
    );
    let tiny = spec(&tiny_llama());
    assert_eq!((step(HIDDEN, &tiny), step(MLP, &tiny)), (8, 4));
    let own = PluginSpec::bare("mlp").with("multiple_of", 64);
    let own = Space::new(&large, &[registry().build::<dyn Axis>(&own).unwrap()]).unwrap();
    assert_eq!(own.axis(MLP).unwrap().step, 64);
}

// --- key/value heads
// -------------------------------------------------------------------------------------------------

#[test]
fn fewer_key_value_heads_leave_equally_many_query_heads_each() {
    // 8 key/value heads of 4 queries each.
    let model = spec(&llama(2, 4096, 14336));
    let space = space(&model);
    let heads = |wanted: &[(&str, usize)]| space.complete(&sizes(wanted)).map(|sizes| sizes[HEADS]);
    assert_eq!(heads(&[]).unwrap(), 32);
    assert_eq!(heads(&[(KV_HEADS, 4)]).unwrap(), 16);
    assert_eq!(heads(&[(KV_HEADS, 4), (HEADS, 4)]).unwrap(), 4);
    insta::assert_snapshot!(
        heads(&[(KV_HEADS, 4), (HEADS, 20)]).unwrap_err(),
        @"plan: heads: 20 is not legal, expected a multiple of 4 up to 16 (with 4 kv_heads); \
          nearest: --heads 16 --kv-heads 4"
    );
    let rankings = random_rankings(&model, 1).unwrap();
    let plan = space
        .plan(&sizes(&[(KV_HEADS, 4), (HEADS, 8)]), &rankings, &model)
        .unwrap();
    for layer in 0..2 {
        let (heads, kv_heads) = (
            &plan.kept[&format!("heads.{layer}")],
            &plan.kept[&format!("kv_heads.{layer}")],
        );
        let owners: Vec<usize> = heads.iter().map(|head| head / 4).collect();
        assert_eq!(
            owners,
            kv_heads
                .iter()
                .flat_map(|&kv_head| [kv_head, kv_head])
                .collect::<Vec<_>>()
        );
    }
    assert_eq!(&plan.clone().checked(&space, &model).unwrap(), &plan);
}

#[test]
fn a_plan_from_elsewhere_may_name_key_value_heads_alone() {
    let model = spec(&tiny_nemotron());
    let kept = |kept: &[(&str, &[usize])]| {
        let kept = kept
            .iter()
            .map(|(dim, units)| ((*dim).to_owned(), units.to_vec()))
            .collect();
        Plan { kept }.checked(&space(&model), &model)
    };
    let kv_heads: [(&str, &[usize]); 3] = [
        ("kv_heads.0", &[1]),
        ("kv_heads.1", &[0]),
        ("kv_heads.2", &[1]),
    ];
    let plan = kept(&kv_heads).unwrap();
    assert_eq!(
        (&plan.kept["heads.0"], &plan.kept["heads.1"]),
        (&vec![2, 3], &vec![0, 1])
    );
    insta::assert_snapshot!(
        kept(&[&kv_heads[..], &[("heads.0", &[0])]].concat()).unwrap_err(),
        @"plan: `heads.0`: unit 0 belongs to none of the key/value heads that stay ([1])"
    );
}

#[test]
fn a_key_value_axis_alone_takes_its_queries_along() {
    let model = spec(&tiny_llama());
    let axis = registry()
        .build::<dyn Axis>(&PluginSpec::bare("kv_heads"))
        .unwrap();
    let groups = axis.groups(&model).unwrap();
    // Two query heads of eight channels.
    assert!(
        groups
            .iter()
            .all(|group| group.n_units == 2 && group.block == 16 && group.n_parts == 1)
    );
    let space = Space::new(&model, &[axis]).unwrap();
    let plan = space
        .plan(
            &sizes(&[(KV_HEADS, 1)]),
            &random_rankings(&model, 2).unwrap(),
            &model,
        )
        .unwrap();
    assert_eq!(
        (plan.sizes()[HEADS], plan.kept.contains_key(HIDDEN)),
        (2, false)
    );
}

// --- budgets
// ---------------------------------------------------------------------------------------------------------

fn best(asked: PluginSpec, spec: &ModelSpec) -> minitron_core::error::Result<Sizes> {
    let allocator = registry().build::<dyn Allocator>(&asked).unwrap();
    let rankings = random_rankings(spec, 3).unwrap();
    Ok(allocator.allocate(&space(spec), &rankings, spec)?[0].sizes())
}

#[test]
fn budgets_take_layers_and_key_value_heads_on_request_alone() {
    for value in [tiny_llama(), tiny_nemotron()] {
        let model = spec(&value);
        let specs = [
            PluginSpec::bare("budget").with("params", format!("{}", model.n_params() / 2)),
            PluginSpec::bare("ratio"),
            PluginSpec::bare("memory")
                .with("memory", format!("{}", model.n_params()))
                .with("batch_size", 0),
        ];
        for spec in specs {
            let free = best(spec.clone(), &model).unwrap();
            assert_eq!((free[DEPTH], free[KV_HEADS]), (3, 2), "{spec}");
            let held = best(
                spec.clone()
                    .with("hold", json!({ "kv_heads": 1, "depth": 2 })),
                &model,
            )
            .unwrap();
            assert_eq!((held[DEPTH], held[KV_HEADS]), (2, 1), "{spec}");
            assert!(held[HEADS] <= 2, "{spec}: {held:?}");
        }
        let free = json!(["kv_heads", "heads", "mlp"]);
        let spec = PluginSpec::bare("ratio")
            .with("ratio", 0.6)
            .with("free", free)
            .with("tolerance", 0.1);
        assert_eq!(best(spec, &model).unwrap()[KV_HEADS], 1);
    }
}

#[test]
fn memory_is_a_ceiling() {
    for value in families() {
        let model = spec(&value);
        let bytes =
            |sizes: &Sizes| 2 * model.n_params_at(sizes) + model.kv_cache_bytes_at(sizes, 16, 3);
        let whole = bytes(&Sizes::new());
        let spec = |memory: u64| {
            let spec = PluginSpec::bare("memory").with("memory", memory.to_string());
            spec.with("seq_len", 16).with("batch_size", 3)
        };
        for percent in [40, 55, 63, 70, 81, 95, 100, 300] {
            let memory = whole * percent / 100;
            let found = best(spec(memory), &model).unwrap();
            assert!(
                bytes(&found) <= memory,
                "{}: {percent} % {found:?}",
                model.architecture
            );
            assert_eq!(
                percent >= 100,
                found == space(&model).full(),
                "{}: {percent} %",
                model.architecture
            );
        }
        let error = best(spec(10), &model).unwrap_err().to_string();
        let text = "plan: at most 10 bytes cannot be reached; nearest: ";
        assert!(
            error.starts_with(text) && error.ends_with("allow more or free another axis"),
            "{error}"
        );
    }
}

/// Layers of a hybrid cost unequally: those that stay are counted, not so many of them on average.
#[test]
fn a_budget_of_a_hybrid_is_that_of_the_layers_that_stay() {
    let model = spec(&tiny_nemotron_h());
    let (space, rankings) = (space(&model), random_rankings(&model, 5).unwrap());
    let n_params = |plan: &Plan| model.n_params_of(&plan.size_map(&model));
    for depth in 1..4 {
        let cut = space.plan(&sizes(&[(DEPTH, depth)]), &rankings, &model);
        let params = n_params(&cut.unwrap()) * 9 / 10;
        let budget = PluginSpec::bare("budget")
            .with("params", format!("{params}+-5%"))
            .with("hold", json!({ "depth": depth }));
        let allocator = registry().build::<dyn Allocator>(&budget).unwrap();
        let plans = allocator.allocate(&space, &rankings, &model).unwrap();
        let found = n_params(&plans[0]);
        assert!(found.abs_diff(params) * 20 <= params, "{found} {params}");
    }
}

#[test]
fn a_ceiling_that_no_shape_comes_near_is_answered_with_the_largest_below_it() {
    let model = spec(&tiny_llama());
    let hold = json!({ "hidden": 32, "mlp": 48, "heads": 4 });
    let layers = |n: usize| 2 * model.n_params_at(&sizes(&[(DEPTH, n)]));
    let spec = PluginSpec::bare("memory")
        .with("batch_size", 0)
        .with("hold", hold)
        .with("free", json!(["depth"]));
    let found = best(spec.with("memory", (layers(3) - 1).to_string()), &model).unwrap();
    assert_eq!(found[DEPTH], 2);
    assert!((layers(2) as f64) < 0.95 * layers(3) as f64);
}

// --- rounds
// ----------------------------------------------------------------------------------------------------------

#[test]
fn a_schedule_falls_through_legal_sizes_to_the_target() {
    let large = spec(&nemotron(6144, 48, 24576));
    let targets = [
        sizes(&[(HIDDEN, 16), (MLP, 20), (HEADS, 2), (DEPTH, 1)]),
        sizes(&[(HIDDEN, 8), (HEADS, 1), (KV_HEADS, 1)]),
        sizes(&[(HEADS, 2), (KV_HEADS, 1), (MLP, 4)]),
        sizes(&[(MLP, 24)]),
    ];
    let of_large = sizes(&[(HIDDEN, 3072), (MLP, 9216), (HEADS, 24), (DEPTH, 29)]);
    let mut cases: Vec<(ModelSpec, Sizes)> = vec![(large, of_large)];
    for value in families() {
        let legal = |target: &&Sizes| space(&spec(&value)).complete(target).is_ok();
        cases.extend(
            targets
                .iter()
                .filter(legal)
                .map(|target| (spec(&value), target.clone())),
        );
    }
    assert!(cases.len() > 8);
    for (model, target) in cases {
        let space = space(&model);
        let (full, target) = (space.full(), space.complete(&target).unwrap());
        for n_rounds in 1..6 {
            let mut before = full.clone();
            for round in 1..=n_rounds {
                let now = schedule(&full, &target, round, n_rounds, &space);
                assert_eq!(space.complete(&now).unwrap(), now);
                let falls = now
                    .iter()
                    .all(|(kind, size)| *size <= before[kind] && *size >= target[kind]);
                assert!(
                    falls,
                    "{} {before:?} {now:?} {target:?}",
                    model.architecture
                );
                if let (Some(kv_heads), Some(last)) = (now.get(KV_HEADS), target.get(KV_HEADS)) {
                    assert!(
                        now[HEADS] / kv_heads >= target[HEADS] / last,
                        "{now:?} {target:?}"
                    );
                }
                before = now;
            }
            assert_eq!(before, target);
        }
    }
    let halfway = schedule(
        &sizes(&[(MLP, 48)]),
        &sizes(&[(MLP, 24)]),
        1,
        2,
        &space(&spec(&tiny_nemotron())),
    );
    assert_eq!(halfway[MLP], 36);
}

// --- what a plan says of itself
// --------------------------------------------------------------------------------------

/// Scores of a tiny Llama that are far apart, but where said otherwise.
fn scores(changed: &[(&str, &[f32])]) -> (ModelSpec, Scores) {
    let model = spec(&tiny_llama());
    let mut scores = Scores::default();
    for group in groups(&model).unwrap() {
        let far_apart = (0..group.n_units)
            .map(|unit| 1.5f32.powi(unit as i32))
            .collect();
        scores.by_name.insert(format!("m/{}", group.dim), far_apart);
    }
    for (dim, values) in changed {
        scores.by_name.insert(format!("m/{dim}"), values.to_vec());
    }
    (model, scores)
}

fn rankings(model: &ModelSpec, scores: &Scores, contiguous: bool) -> Rankings {
    let mut groups = groups(model).unwrap();
    for group in groups.iter_mut().filter(|group| group.dim == DEPTH) {
        *group = PruneGroup {
            contiguous,
            ..group.clone()
        };
    }
    Rankings::new(scores, &groups, &BTreeMap::new()).unwrap()
}

#[test]
fn a_plan_explains_the_dims_that_shrink_and_names_near_ties() {
    let mut mlp = vec![5.0f32; 48];
    mlp[..24].fill(1.0);
    // The cut lies between units 30 and 3: 4.0 stays, 3.99 goes; 4.1 and 3.9 are near it.
    for (unit, score) in [(30, 4.0), (31, 4.1), (3, 3.99), (4, 3.9)] {
        mlp[unit] = score;
    }
    let (model, scores) = scores(&[("mlp.0", &mlp), ("heads.0", &[9.0, 1.0, 5.0, 4.9])]);
    let rankings = rankings(&model, &scores, false);
    let wanted = sizes(&[(MLP, 24), (HEADS, 2), (DEPTH, 2)]);
    let plan = space(&model).plan(&wanted, &rankings, &model).unwrap();
    let explained = plan.explain(&rankings, &model, None).unwrap();
    // Layer 0 has the lowest depth score and is dropped, so its dims have no effect; hidden stays
    // whole.
    assert_eq!(
        explained.keys().collect::<Vec<_>>(),
        ["depth", "heads.1", "heads.2", "mlp.1", "mlp.2"]
    );
    let whole_depth = space(&model)
        .plan(&sizes(&[(MLP, 24), (HEADS, 2)]), &rankings, &model)
        .unwrap();
    let explained = whole_depth.explain(&rankings, &model, None).unwrap();
    assert_eq!(
        explained
            .keys()
            .filter(|dim| explained[*dim].near_tie)
            .collect::<Vec<_>>(),
        ["mlp.0"]
    );
    let text = |dim: &str| serde_json::to_string(&explained[dim]).unwrap();
    insta::assert_snapshot!(
        text("mlp.0"),
        @r#"{"metric":"m","last_kept":{"unit":30,"score":4.0},"first_dropped":{"unit":3,"score":3.99},"margin":0.002499997615814209,"near_tie":true,"borderline":[{"unit":30,"score":4.0,"kept":true},{"unit":3,"score":3.99,"kept":false},{"unit":4,"score":3.9,"kept":false},{"unit":31,"score":4.1,"kept":true}]}"#
    );
    // The second key/value head decides between 5.0 and 4.9; the first is far from a tie.
    insta::assert_snapshot!(
        text("heads.0"),
        @r#"{"metric":"m","part":1,"last_kept":{"unit":2,"score":5.0},"first_dropped":{"unit":3,"score":4.9},"margin":0.019999980926513672,"near_tie":false,"borderline":[{"unit":2,"score":5.0,"kept":true},{"unit":3,"score":4.9,"kept":false}]}"#
    );
}

#[test]
fn a_block_is_explained_by_the_next_best_one() {
    let (model, scores) = scores(&[(DEPTH, &[3.0, 1.0, 2.9])]);
    let rankings = rankings(&model, &scores, true);
    let plan = space(&model)
        .plan(&sizes(&[(DEPTH, 1)]), &rankings, &model)
        .unwrap();
    assert_eq!(plan.kept[DEPTH], [0]);
    let explained = plan.explain(&rankings, &model, None).unwrap();
    let Cut::Blocks { removed, next } = &explained[DEPTH].cut else {
        unreachable!()
    };
    assert_eq!(
        (removed.first, removed.last, next.first, next.last),
        (1, 2, 0, 1)
    );
    assert!((explained[DEPTH].margin - 0.025).abs() < 1e-6 && !explained[DEPTH].near_tie);
    let borderline: Vec<(usize, bool)> = explained[DEPTH]
        .borderline
        .iter()
        .map(|b| (b.unit, b.kept))
        .collect();
    assert_eq!(borderline, [(0, true), (2, false)]);
}

#[test]
fn an_axis_of_contiguous_layers_drops_one_block() {
    let (model, scores) = scores(&[(DEPTH, &[1.0, 3.0, 1.5])]);
    let spec: PluginSpec = "depth:contiguous=true".parse().unwrap();
    let axis = registry().build::<dyn Axis>(&spec).unwrap();
    let rankings = Rankings::new(&scores, &axis.groups(&model).unwrap(), &BTreeMap::new()).unwrap();
    let plan = Space::new(&model, &[axis])
        .unwrap()
        .plan(&sizes(&[(DEPTH, 1)]), &rankings, &model)
        .unwrap();
    // One by one, layer 1 would stay.
    assert_eq!(plan.kept[DEPTH], [2]);
}

#[test]
fn replicates_say_which_units_survive() {
    let (model, mut scores) = scores(&[(
        "mlp.0",
        &[&[5.0; 23][..], &[4.0, 3.99], &[1.0; 23]].concat(),
    )]);
    let mut other = scores.by_name["m/mlp.0"].clone();
    other.swap(23, 24);
    let same = scores.by_name["m/mlp.0"].clone();
    scores.replicates.insert(
        "m/mlp.0".into(),
        vec![same.clone(), other, same.clone(), same],
    );
    let rankings = rankings(&model, &scores, false);
    let plan = space(&model)
        .plan(&sizes(&[(MLP, 24)]), &rankings, &model)
        .unwrap();
    let explained = plan.explain(&rankings, &model, None).unwrap();
    let survives: Vec<_> = explained["mlp.0"]
        .borderline
        .iter()
        .map(|b| (b.unit, b.survives))
        .collect();
    assert_eq!(survives, [(23, Some(0.75)), (24, Some(0.25))]);
    assert_eq!(explained["mlp.0"].stable, Some(23.0 / 24.0));
    assert!(explained["mlp.1"].stable.is_none());
    insta::assert_snapshot!(
        plan.explain(&rankings, &model, Some(4)).unwrap_err(),
        @"recipe: bootstrap: expected 4 replicates of `m/mlp.1`, the scores hold 0; run `minitron \
          score --bootstrap 4`"
    );
}

#[test]
fn replicates_survive_their_file_and_are_no_scores_of_their_own() {
    let (_, mut scores) = scores(&[]);
    scores.replicates.insert(
        "m/mlp.0".into(),
        vec![vec![0.5; 48], vec![0.25; 48], vec![2.0; 48]],
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.safetensors");
    scores.save(&path).unwrap();
    let loaded = Scores::load(&path).unwrap();
    assert_eq!(loaded, scores);
    assert!(loaded.of("mlp.0", None).is_ok() && !loaded.covers("mlp.0@bootstrap"));
}

#[test]
fn what_a_config_class_insists_on_holds_also_where_the_other_axis_is_not_asked_for() {
    // Five heads of a stream of 36 channels: LlamaConfig refuses that, whatever head_dim says.
    let mut config = tiny_llama();
    config["num_attention_heads"] = 6.into();
    config["num_key_value_heads"] = 6.into();
    config["hidden_size"] = 36.into();
    let spec = ModelSpec::from_config(&minitron::config(&config).unwrap(), &registry()).unwrap();
    let heads = registry()
        .build::<dyn Axis>(&PluginSpec::bare("heads"))
        .unwrap();
    let space = Space::new(&spec, &[heads]).unwrap();
    assert!(
        space
            .complete(&Sizes::from([("heads".to_owned(), 4)]))
            .is_ok()
    );
    let error = space
        .complete(&Sizes::from([("heads".to_owned(), 5)]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("hidden 36 with 5 heads"), "{error}");
}
