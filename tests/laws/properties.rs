//! For any input that a generator can think of.

use std::collections::BTreeMap;
use std::path::Path;

use minitron::{axes, config, families, random_weights, registry};
use minitron_core::checkpoint::{Reader, TensorSource, write_tensors};
use minitron_core::error::Error;
use minitron_core::plan::{Plan, Space};
use minitron_core::prune::{PrunedView, side_indices, source_layers};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{ModelSpec, Sizes};
use minitron_engine::data::DataSpec;
use minitron_engine::recipe::Recipe;
use proptest::prelude::*;
use serde_json::Value;
use tch::Tensor;

use super::pruning::random_rankings;

fn spec(family: usize) -> ModelSpec {
    ModelSpec::from_config(&config(&families()[family]).unwrap(), &registry()).unwrap()
}

/// Some units of every dim, ascending; no law of any config holds.
fn any_plan() -> impl Strategy<Value = (ModelSpec, Plan)> {
    (0..4usize).prop_map(spec).prop_flat_map(|spec| {
        let kept: Vec<_> = spec
            .dims
            .values()
            .map(|dim| {
                (
                    Just(dim.name.clone()),
                    proptest::sample::subsequence((0..dim.size).collect::<Vec<_>>(), 1..=dim.size),
                )
            })
            .collect();
        (
            Just(spec),
            kept.prop_map(|kept| Plan {
                kept: kept.into_iter().collect(),
            }),
        )
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn kept_positions_ascend_lie_in_range_and_are_as_many_as_the_units_say(
        (spec, plan) in any_plan(),
    ) {
        let before = |dim: &str| spec.dims.get(dim).map(|dim| dim.size);
        let after = |dim: &str| plan.kept.get(dim).map(Vec::len);
        for side in spec.params.iter().flat_map(|tensor| &tensor.sides) {
            match side_indices(side, &spec, &plan) {
                Some(indices) => {
                    prop_assert!(indices.windows(2).all(|pair| pair[0] < pair[1]));
                    prop_assert!(indices.last().is_none_or(|&last| last < side.len(before)));
                    prop_assert_eq!(indices.len(), side.len(after));
                }
                None => prop_assert_eq!(side.len(before), side.len(after)),
            }
        }
    }

    #[test]
    fn rows_of_a_source_are_rows_of_its_tensors(
        (spec, plan) in any_plan(),
        ends: [prop::sample::Index; 2],
    ) {
        let memory = random_weights(&spec, 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.safetensors");
        write_tensors(&path, &memory).unwrap();
        let reader = Reader::open_file(&path).unwrap();
        let view = PrunedView::new(&reader, &spec, &plan).unwrap();
        for source in [&memory as &dyn TensorSource, &reader, &view] {
            for name in source.names() {
                let whole = source.read(&name).unwrap();
                let n_rows = whole.size()[0] as usize;
                let [a, b] = ends.map(|end| end.index(n_rows + 1));
                let rows = a.min(b)..a.max(b);
                let wanted = whole.narrow(0, rows.start as i64, rows.len() as i64);
                let found = source.read_rows(&name, rows.clone()).unwrap();
                prop_assert!(found.equal(&wanted), "{}", name);
                let mut bytes = vec![9];
                source.append_rows(&name, rows, &mut bytes).unwrap();
                let mut expected = vec![9; 1 + 4 * wanted.numel()];
                wanted.contiguous().copy_data_u8(&mut expected[1..], wanted.numel());
                prop_assert!(bytes == expected, "{}", name);
            }
        }
    }

    #[test]
    fn a_view_holds_the_kept_positions_of_every_side((spec, plan) in any_plan()) {
        let source = random_weights(&spec, 4).unwrap();
        let layers = source_layers(&spec, &plan);
        let view = PrunedView::new(&source, &spec, &plan).unwrap();
        for param in &spec.params {
            let kept_of = |dim: &str| plan.kept.get(dim).map(Vec::as_slice);
            let Some(place) = param.place_in(&layers, &kept_of) else {
                continue;
            };
            let mut wanted = source.read(&param.name()).unwrap();
            for (side, parts) in param.sides.iter().enumerate() {
                if let Some(kept) = side_indices(parts, &spec, &plan) {
                    let kept: Vec<i64> = kept.into_iter().map(|position| position as i64).collect();
                    wanted = wanted.index_select(side as i64, &Tensor::from_slice(&kept));
                }
            }
            let name = param.name_at(place);
            prop_assert!(view.read(&name).unwrap().equal(&wanted), "{}", name);
        }
    }

    #[test]
    fn a_plan_of_any_ranking_and_legal_sizes_passes_its_check(
        family in 0..4usize,
        seed: u64,
        picks: [prop::sample::Index; 5],
    ) {
        let spec = spec(family);
        let space = Space::new(&spec, &axes(&registry()).unwrap()).unwrap();
        let size = |(axis, pick): (&minitron_core::plan::AxisSizes, &prop::sample::Index)| {
            let legal = axis.legal();
            (axis.kind.clone(), legal[pick.index(legal.len())])
        };
        let sizes: Sizes = space.axes.iter().zip(&picks).map(size).collect();
        match space.plan(&sizes, &random_rankings(&spec, seed).unwrap(), &spec) {
            Ok(plan) => {
                prop_assert_eq!(&plan.clone().checked(&space, &spec).unwrap(), &plan);
                prop_assert!(sizes.iter().all(|(kind, size)| plan.sizes()[kind] == *size));
                for (dim, kept) in &plan.kept {
                    prop_assert!(kept.iter().all(|&unit| unit < spec.dims[dim].size));
                }
            }
            // Sizes that are legal one by one may not go together; nothing else is refused.
            Err(Error::Plan(message)) => {
                prop_assert!(!space.ties.is_empty(), "{}", message);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn any_sizes_give_a_plan_or_an_error_with_the_nearest(
        family in 0..4usize,
        sizes in prop::collection::btree_map("hidden|mlp|heads|kv_heads|depth|width", 0..80usize, 0..4),
    ) {
        let spec = spec(family);
        let space = Space::new(&spec, &axes(&registry()).unwrap()).unwrap();
        match space.plan(&sizes, &random_rankings(&spec, 1).unwrap(), &spec) {
            Ok(plan) => prop_assert!(plan.checked(&space, &spec).is_ok()),
            Err(Error::Plan(message)) => prop_assert!(message.contains("nearest"), "{}", message),
            Err(Error::Recipe(message)) => prop_assert!(message.contains("known: "), "{}", message),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_plugin_reads_back_as_it_is_written(
        tag in "[a-z][a-z0-9_]{0,12}",
        params in prop::collection::btree_map("[a-z_]{1,8}", any_value(), 0..4),
    ) {
        let spec = PluginSpec { tag, params: params.into_iter().collect() };
        prop_assert_eq!(spec.to_string().parse::<PluginSpec>().unwrap(), spec);
    }

    #[test]
    fn data_reads_back_as_it_is_written(
        name in "[a-z/_]{1,12}(\\.(txt|jsonl|bin))?(:n=[0-9])?",
        range in any::<Option<(Option<i64>, Option<i64>)>>(),
        weight in prop::option::of(1e-3..1e3f64),
    ) {
        let spec = DataSpec { name, range, weight };
        prop_assert_eq!(spec.to_string().parse::<DataSpec>().unwrap(), spec);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,60}") {
        let _ = text.parse::<PluginSpec>();
        let _ = text.parse::<DataSpec>();
        let _ = Recipe::parse(&text, Path::new("r.toml"));
        let _ = minitron_core::plan::parse_budget(&text);
        let _ = minitron_core::plan::parse_count(&text);
        let _ = minitron_core::plan::parse_bytes(&text);
    }

    #[test]
    fn no_recipe_makes_the_parser_panic(words in prop::collection::vec(recipe_word(), 0..24)) {
        let _ = Recipe::parse(&words.concat(), Path::new("r.toml"));
    }
}

/// What `key=value` can say: a string that reads as JSON would come back as that.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1000..1000i32).prop_map(|n| Value::from(f64::from(n) / 8.0)),
        "[a-zA-Z.+%/-]{1,8}"
            .prop_filter("is JSON", |word| serde_json::from_str::<Value>(word)
                .is_err())
            .prop_map(Value::from),
    ]
}

fn recipe_word() -> impl Strategy<Value = String> {
    const WORDS: [&str; 24] = [
        "[[stages]]\n",
        "name = \"a\"\n",
        "name = \"b\"\n",
        "do = \"score\"\n",
        "do = \"prune\"\n",
        "do = \"train\"\n",
        "do = \"distill\"\n",
        "do = \"eval\"\n",
        "do = \"generate\"\n",
        "seed = 1\n",
        "seed = -1\n",
        "model = \"m\"\n",
        "data = [\"a.txt#..-3\"]\n",
        "data = 3\n",
        "tokens = \"2M\"\n",
        "tokens = \"99999999999999B\"\n",
        "ratio = 0.5\n",
        "params = \"1B+-\"\n",
        "metrics = [\"activation:batch=\"]\n",
        "losses = [{ type = 1 }]\n",
        "hidden = 18446744073709551615\n",
        "mlp = -1\n",
        "[stages]\n",
        "stages = []\n",
    ];
    prop_oneof![3 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => "\\PC{0,8}\n"]
}

#[test]
fn a_plan_survives_its_file() {
    let kept = BTreeMap::from([
        ("mlp.0".to_owned(), vec![0, 2, 5]),
        ("depth".to_owned(), vec![0]),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.json");
    std::fs::write(
        &path,
        serde_json::to_string(&Plan { kept: kept.clone() }).unwrap(),
    )
    .unwrap();
    assert_eq!(Plan::load(&path).unwrap().kept, kept);
}
