//! Heads that lose channels in rope pairs.

use std::collections::BTreeMap;
use std::path::Path;

use minitron::{axes, families, forward, registry, some_ids, tiny_gpt2, tiny_llama, tiny_nemotron};
use minitron_core::checkpoint::{Config, MemorySource, TensorSource};
use minitron_core::error::Error;
use minitron_core::model::{Cache, NoTap};
use minitron_core::plan::{Plan, Rankings, Space};
use minitron_core::prune::{Student, student_config};
use minitron_core::reconstruct::{ReconstructInputs, StudentEditor};
use minitron_core::spec::{ModelSpec, PruneGroup, ROPE_PAIRS, Role, RotaryScaling, Side, Sizes};
use serde_json::{Value, json};
use tch::Tensor;

use super::pruning::{activation_scores, random_rankings};
use super::reconstruction::{Ward, logits};
use super::rescaling::decoder;
use super::{Model, REORDERED, load, relative};

/// Norms of heads, of whole projections and none; scales that follow from `head_dim` and stated
/// ones; one rotation and two.
fn with_pairs() -> Vec<Value> {
    let by_type = json!({
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 4,
        "query_pre_attn_scalar": 8
    });
    vec![
        decoder("llama", &json!({ "attention_bias": true })),
        decoder("mistral", &json!({ "sliding_window": 4 })),
        decoder(
            "ministral3",
            &json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e4 } }),
        ),
        decoder("qwen2", &json!({})),
        decoder("qwen3", &json!({})),
        decoder("gemma2", &by_type),
        decoder("gemma3_text", &by_type),
        decoder("olmo2", &json!({})),
        decoder("olmo3", &json!({ "sliding_window": 4 })),
        decoder("smollm3", &json!({ "no_rope_layers": [1, 0, 1] })),
        decoder("granite", &json!({ "attention_multiplier": 0.3 })),
        decoder(
            "starcoder2",
            &json!({ "sliding_window": 4, "norm_epsilon": 1e-12, "hidden_act": "gelu" }),
        ),
        decoder(
            "nemotron",
            &json!({ "partial_rotary_factor": 0.5, "head_dim": 16, "norm_eps": 1e-12 }),
        ),
    ]
}

fn space(spec: &ModelSpec) -> Space {
    Space::new(spec, &axes(&registry()).unwrap()).unwrap()
}

/// Without the channels of some pairs in queries, keys and values of every layer.
fn without_pairs(model: &Model, dead: &[usize]) -> MemorySource {
    let mut source = MemorySource::default();
    let size_of = |dim: &str| model.spec.dims.get(dim).map(|dim| dim.size);
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap().copy();
        if [Role::QUERY, Role::KEY, Role::VALUE].contains(&param.role) {
            // The channels that do not turn belong to no pair.
            let all = param.sides[0].positions(&size_of, &|dim| (dim == ROPE_PAIRS).then_some(&[]));
            for position in
                param.sides[0].positions(&size_of, &|dim| (dim == ROPE_PAIRS).then_some(dead))
            {
                if !all.contains(&position) {
                    let _ = tensor.narrow(0, position as i64, 1).zero_();
                }
            }
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    source
}

#[test]
fn dead_pairs_are_ranked_last_and_removing_them_changes_nothing() {
    for config in with_pairs() {
        let model = Model::new(&config, 40).unwrap();
        let dead = [1, 2];
        let source = without_pairs(&model, &dead);
        let whole = load(&source, &model.spec).unwrap();
        let groups = PruneGroup::of_kind(&model.spec, ROPE_PAIRS);
        assert_eq!(groups.len(), 1, "{}", model.family());
        let scores = activation_scores(&whole, &groups).unwrap();
        let rankings = Rankings::new(&scores, &groups, &BTreeMap::new()).unwrap();
        let mut last: Vec<usize> = rankings.by_dim[ROPE_PAIRS]
            .order()
            .skip(groups[0].n_units - 2)
            .collect();
        last.sort_unstable();
        assert_eq!(last, dead, "{}", model.family());

        let wanted = Sizes::from([(ROPE_PAIRS.to_owned(), groups[0].n_units - 2)]);
        let plan = space(&model.spec)
            .plan(&wanted, &rankings, &model.spec)
            .unwrap();
        let ward = Ward::new(Model { source, ..model }, &[]);
        let (registry, ids_bt) = (registry(), some_ids(2, 12, 61, 41).unwrap());
        let expected = forward(&whole, &ids_bt).unwrap();
        let student = |compensates: bool| {
            let inputs = ReconstructInputs {
                compensates,
                ..ward.inputs()
            };
            StudentEditor::new(inputs, plan.clone()).unwrap()
        };
        let difference = relative(&logits(&student(true), &ids_bt), &expected);
        assert!(
            difference <= REORDERED,
            "{}: {difference:e}",
            ward.model.family()
        );
        // Where the scale is stated and no norm is over heads, there is nothing to compensate.
        let difference = relative(&logits(&student(false), &ids_bt), &expected);
        let is_stated = ["granite", "gemma2"].contains(&ward.model.family());
        assert_eq!(
            difference > 1e-3,
            !is_stated,
            "{}: {difference:e}",
            ward.model.family()
        );

        // What zeros were assumed of is measured, and found to be so.
        let mut measured = student(true);
        let reconstruction = registry
            .build::<dyn minitron_core::contract::Reconstruction>(&"norm_rescale".parse().unwrap())
            .unwrap();
        measured.treat(reconstruction.as_ref()).unwrap();
        let difference = relative(&logits(&measured, &ids_bt), &expected);
        assert!(
            difference <= 1e-4,
            "{}: measured, {difference:e}",
            ward.model.family()
        );
    }
}

/// Kinds of rotation, in both ways of stating them.
fn rotations() -> Vec<Value> {
    let longrope = json!({
        "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5], "long_factor": [2.0, 3.0, 4.0,
            5.0, 6.0, 7.0, 8.0, 9.0]
    });
    let llama3 = json!({
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16
    });
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
            "original_max_position_embeddings": 16, "beta_fast": 4.0
    });
    vec![
        json!({}),
        json!({ "rope_theta": 500.0 }),
        json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 500.0 } }),
        json!({ "rope_theta": 500.0, "rope_scaling": { "type": "linear", "factor": 4.0 } }),
        json!({ "rope_theta": 500.0, "rope_scaling": llama3 }),
        json!({ "rope_parameters": llama3 }),
        json!({ "rope_parameters": yarn }),
        json!({ "rope_parameters": longrope }),
    ]
}

#[test]
fn the_pairs_that_stay_turn_as_before() {
    let kept = [0, 2, 3, 6];
    let plan = Plan {
        kept: BTreeMap::from([(ROPE_PAIRS.to_owned(), kept.to_vec())]),
    };
    for rotation in rotations() {
        let mut more = rotation.clone();
        more["head_dim"] = 16.into();
        let model = Model::new(&decoder("llama", &more), 42).unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        assert_eq!(student.spec.head_dim(), 8);
        let of = |spec: &ModelSpec| spec.rotaries[0].rotary.clone();
        let (before, after) = (of(&model.spec), of(&student.spec));
        assert!(matches!(after.scaling, RotaryScaling::Long { .. }));
        assert!((before.factor - after.factor).abs() < 1e-12, "{rotation}");
        for end in [10.0, 60.0] {
            let (all, found) = (before.frequencies(end), after.frequencies(end));
            assert_eq!(found.len(), 4);
            for (&pair, frequency) in kept.iter().zip(found) {
                assert!(
                    (frequency / all[pair] - 1.0).abs() < 1e-12,
                    "{rotation}: pair {pair}"
                );
            }
        }
    }
}

#[test]
fn states_hold_whatever_the_length() {
    let longer = json!({ "head_dim": 16, "max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8
    } });
    let model = Model::new(&decoder("llama", &longer), 42).unwrap();
    let plan = Plan {
        kept: BTreeMap::from([(ROPE_PAIRS.to_owned(), vec![0, 3, 5])]),
    };
    let student = Student::new(&model.source, &model.spec, &plan).unwrap();
    // Both lists are one, so nothing changes at the length where the second begins.
    assert!(student.spec.states_hold(4, 60));
    let (student, ids_bt) = (
        load(&student.view, &student.spec).unwrap(),
        some_ids(1, 20, 61, 43).unwrap(),
    );
    let _no_grad = tch::no_grad_guard();
    let (whole, mut cache) = (forward(&student, &ids_bt).unwrap(), Cache::new(&student));
    let parts: Vec<Tensor> = [(0, 5), (5, 1), (6, 14)]
        .into_iter()
        .map(|(start, n)| {
            let hidden = student
                .hidden(&ids_bt.narrow(1, start, n), &mut NoTap, Some(&mut cache))
                .unwrap();
            student.logits(&hidden).unwrap()
        })
        .collect();
    assert!(relative(&Tensor::cat(&parts, 1), &whole) <= REORDERED);
}

#[test]
fn a_student_of_a_student_turns_as_the_source_does() {
    for config in with_pairs() {
        let model = Model::new(&config, 43).unwrap();
        let spec = &model.spec;
        let plan = |kept: &[usize]| Plan {
            kept: BTreeMap::from([(ROPE_PAIRS.to_owned(), kept.to_vec())]),
        };
        let first = Student::new(&model.source, spec, &plan(&[0, 2, 3])).unwrap();
        let second = Student::new(&first.view, &first.spec, &plan(&[1, 2])).unwrap();
        let once = Student::new(&model.source, spec, &plan(&[2, 3])).unwrap();
        let composed = plan(&[0, 2, 3]).compose(&plan(&[1, 2]), spec);
        assert_eq!(composed.kept[ROPE_PAIRS], [2, 3]);
        let ids_bt = some_ids(2, 12, 61, 44).unwrap();
        let says = |student: &Student| {
            forward(&load(&student.view, &student.spec).unwrap(), &ids_bt).unwrap()
        };
        let difference = relative(&says(&second), &says(&once));
        assert!(
            difference <= REORDERED,
            "{}: {difference:e}",
            model.family()
        );
    }
}

#[test]
fn a_head_keeps_its_channels_where_no_config_says_which_go_and_the_reason_is_told() {
    let phi3 = decoder("phi3", &json!({}));
    let mut neox = phi3.clone();
    neox["model_type"] = "gpt_neox".into();
    let dynamic = decoder(
        "llama",
        &json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 2.0 } }),
    );
    let cases = [
        (tiny_gpt2(), "no head_dim"),
        (neox, "no head_dim"),
        (phi3, "divisor for each pair"),
        (dynamic, "changes with the length"),
    ];
    for (config, why) in cases {
        let model = Model::new(&config, 45).unwrap();
        let wanted = Sizes::from([(ROPE_PAIRS.to_owned(), 2)]);
        match space(&model.spec).complete(&wanted) {
            Err(Error::Recipe(message)) => {
                assert!(
                    message.contains("rope_pairs") && message.contains(why),
                    "{}: {message}",
                    model.family()
                );
            }
            other => unreachable!("{}: {other:?}", model.family()),
        }
    }
    let model = Model::new(&tiny_llama(), 45).unwrap();
    let square = space(&model.spec).squared(&model.spec);
    let message = square
        .complete(&Sizes::from([(ROPE_PAIRS.to_owned(), 2)]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("square"), "{message}");
}

#[test]
fn a_config_states_what_it_needs_and_keeps_what_else_it_says() {
    let stated = |config: &Value, kept: &[usize]| {
        let model = Model::new(config, 46).unwrap();
        let plan = Plan {
            kept: BTreeMap::from([(ROPE_PAIRS.to_owned(), kept.to_vec())]),
        };
        student_config(&model.spec, &plan).to_value()
    };
    let older = stated(&decoder("llama", &json!({ "rope_theta": 500.0 })), &[0, 2]);
    assert_eq!(
        (&older["head_dim"], &older["rope_theta"]),
        (&json!(4), &json!(500.0))
    );
    assert_eq!(older["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(older["rope_scaling"]["short_factor"], json!([1.0, 1.0]));
    assert!(
        older.get("rope_parameters").is_none() && older["rope_scaling"].get("rope_theta").is_none()
    );

    // Queries grow with their position by what else is stated there, if only by default.
    let grows = stated(
        &decoder("ministral3", &json!({ "max_position_embeddings": 262_144 })),
        &[0, 1],
    );
    let rope = &grows["rope_parameters"];
    assert_eq!(
        (&rope["llama_4_scaling_beta"], &rope["rope_theta"]),
        (&json!(0.1), &json!(1e6))
    );
    assert_eq!(rope["original_max_position_embeddings"], 16_384);
    assert!(rope["attention_factor"].as_f64().is_some() && rope.get("beta_fast").is_none());

    let by_type = json!({
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 4,
        "rope_theta": 1e6, "rope_local_base_freq": 100.0, "rope_scaling": { "rope_type": "linear",
            "factor": 8.0 }
    });
    let both = stated(&decoder("gemma3_text", &by_type), &[0, 3]);
    assert!(both.get("rope_scaling").is_none());
    let rope = &both["rope_parameters"];
    assert_eq!(rope["full_attention"]["rope_theta"], 1e6);
    assert_eq!(rope["sliding_attention"]["rope_theta"], 100.0);
    let first = |kind: &str| rope[kind]["short_factor"][0].as_f64().unwrap();
    assert!(
        (first("full_attention") - 8.0).abs() < 1e-12
            && (first("sliding_attention") - 1.0).abs() < 1e-12
    );

    let partial = stated(&tiny_nemotron(), &[1]);
    assert_eq!(partial["head_dim"], 6);
    let share = partial["rope_parameters"]["partial_rotary_factor"]
        .as_f64()
        .unwrap();
    assert_eq!((6.0 * share) as usize, 2);
}

#[test]
fn a_share_of_turning_channels_is_read_back_for_all_sizes() {
    for (pairs, head_dim) in [(12, 48), (22, 88), (32, 128), (48, 128), (9, 64)] {
        let share = 2.0 * f64::from(pairs) / f64::from(head_dim);
        let more = json!({ "partial_rotary_factor": share, "head_dim": head_dim });
        let model = Model::new(&decoder("nemotron", &more), 47).unwrap();
        for n in 1..pairs as usize {
            let plan = Plan {
                kept: BTreeMap::from([(ROPE_PAIRS.to_owned(), (0..n).collect())]),
            };
            let found = student_config(&model.spec, &plan);
            let config = Config::from_value(Path::new("config.json"), found.to_value()).unwrap();
            let student = ModelSpec::from_config(&config, &registry()).unwrap();
            assert_eq!(
                student.size(ROPE_PAIRS),
                n,
                "{n} of {pairs} pairs in {head_dim} channels"
            );
        }
    }
}

#[test]
fn parts_inside_units_are_counted_and_placed() {
    for config in families().into_iter().chain(with_pairs()) {
        let model = Model::new(&config, 48).unwrap();
        let rankings = random_rankings(&model.spec, 49).unwrap();
        let space = space(&model.spec);
        let Ok(axis) = space.axis(ROPE_PAIRS) else {
            continue;
        };
        let sizes = Sizes::from([
            (ROPE_PAIRS.to_owned(), axis.full / 2),
            ("heads".to_owned(), 2),
        ]);
        let plan = space.plan(&sizes, &rankings, &model.spec).unwrap();
        let student = Student::new(&model.source, &model.spec, &plan).unwrap();
        // Keys and values of a token, of narrower heads.
        let of_cache = |spec: &ModelSpec, sizes: &Sizes| spec.kv_cache_bytes_at(sizes, 8, 1);
        let (planned, found) = (
            of_cache(&model.spec, &plan.sizes()),
            of_cache(&student.spec, &Sizes::new()),
        );
        assert_eq!(planned, found, "{}", model.family());
        assert!(
            found < of_cache(&model.spec, &Sizes::new()),
            "{}",
            model.family()
        );
        let query = model
            .spec
            .params
            .iter()
            .find(|param| param.role == Role::QUERY)
            .unwrap();
        let kept =
            |side: &Side| minitron_core::prune::side_indices(side, &model.spec, &plan).unwrap();
        let rows = kept(&query.sides[0]);
        let (head_dim, pairs) = (model.spec.head_dim(), axis.full);
        let heads = &model.spec.dims_of("heads").next().unwrap().name;
        for row in rows {
            let (head, channel) = (row / head_dim, row % head_dim);
            let is_kept =
                channel >= 2 * pairs || plan.kept[ROPE_PAIRS].contains(&(channel % pairs));
            assert!(
                is_kept && plan.kept[heads].contains(&head),
                "{}: row {row}",
                model.family()
            );
        }
    }
}
