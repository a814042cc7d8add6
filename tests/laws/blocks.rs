//! What smaller parts of layers are said to cost, and plans by it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use minitron::{
    Workspace, axes, families, forward, groups, registry, tiny_decilm, tiny_llama, with_context,
};
use minitron_core::contract::Reconstruction;
use minitron_core::error::Result;
use minitron_core::model::{NoTap, Transformer};
use minitron_core::plan::{BlockChoice, BlockScores, Plan, Space};
use minitron_core::progress::Progress;
use minitron_core::reconstruct::{Distance, LayerTrials, StudentEditor};
use minitron_core::spec::{DEPTH, MLP, Sizes, split_dim};
use minitron_engine::jobs::{
    BlocksOptions, Context, PruneOptions, ScoreOptions, blocks, prune, score,
};
use minitron_plugins::laws::random_rankings;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::load;
use super::reconstruction::Ward;

/// KL and error of last states, from whole models at once.
fn apart(ward: &Ward, editor: &StudentEditor) -> (Option<f64>, f64) {
    let text = ward.inputs().calibration.unwrap().windows;
    let ids_bt = text.batch(0..text.len(), Device::Cpu).unwrap();
    let whole = ward.model.load().unwrap();
    let smaller = load(&editor.student().unwrap(), editor.spec()).unwrap();
    let states = |model: &Transformer| -> Tensor {
        let _no_grad = tch::no_grad_guard();
        model.hidden(&ids_bt, &mut NoTap, None).unwrap()
    };
    let (own, other) = (states(&whole), states(&smaller));
    let square = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]);
    let error = square(&(&own - &other)) / square(&own);
    let kl = whole.has_head().then(|| {
        let log_p = forward(&whole, &ids_bt)
            .unwrap()
            .log_softmax(-1, Kind::Double);
        let log_q = forward(&smaller, &ids_bt)
            .unwrap()
            .log_softmax(-1, Kind::Double);
        let kl = log_p.exp() * (&log_p - log_q);
        kl.sum(Kind::Double).double_value(&[]) / ids_bt.numel() as f64
    });
    (kl, error)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * a.abs().max(b.abs()) + 1e-7
}

#[test]
fn a_layer_left_out_costs_what_the_model_without_it_measures() {
    for config in families() {
        let ward = Ward::of(&config, &[]);
        let spec = &ward.model.spec;
        let mut trials = LayerTrials::start(ward.inputs()).unwrap();
        for layer in 0..spec.n_layers() {
            assert_eq!(trials.layer(), layer);
            let found = trials.judge(vec![trials.without(0).unwrap()]).unwrap();
            let mut plan = Plan::default();
            let rest = (0..spec.n_layers())
                .filter(|&other| other != layer)
                .collect();
            plan.kept.insert(DEPTH.to_owned(), rest);
            if let Ok(editor) = StudentEditor::new(ward.inputs(), plan) {
                let (kl, error) = apart(&ward, &editor);
                let [
                    Distance {
                        kl: own_kl,
                        error: own,
                    },
                ] = found[..]
                else {
                    panic!("one trial, {} distances", found.len());
                };
                assert!(close(own, error), "{}: {own} {error}", spec.architecture);
                let (own_kl, kl) = (own_kl.unwrap_or(0.0), kl.unwrap_or(0.0));
                assert!(close(own_kl, kl), "{}: {own_kl} {kl}", spec.architecture);
            }
            if layer + 1 < spec.n_layers() {
                trials.advance().unwrap();
            }
        }
    }
}

#[test]
fn a_smaller_part_costs_what_the_student_measures_that_has_it() {
    // Layers of this one differ, and some have no attention or no MLP.
    let ward = Ward::of(&tiny_decilm(), &[]);
    let (spec, registry) = (&ward.model.spec, registry());
    let space = Space::new(spec, &axes(&registry).unwrap()).unwrap();
    let rankings = random_rankings(&groups(spec).unwrap(), 31).unwrap();
    let mut trials = LayerTrials::start(ward.inputs()).unwrap();
    let mut n_tried = 0;
    for layer in 0..spec.n_layers() {
        let mut asked = Vec::new();
        for dim in spec
            .dims
            .values()
            .filter(|dim| split_dim(&dim.name).1 == Some(layer))
        {
            if dim.optional {
                asked.push(Sizes::from([(dim.name.clone(), 0)]));
            }
            if dim.is_listed() && split_dim(&dim.name).0 == MLP {
                asked.push(Sizes::from([(dim.name.clone(), dim.size / 2)]));
            }
        }
        for sizes in asked {
            let plan = space.plan(&sizes, &rankings, spec).unwrap();
            let editor = trials.editor(plan.clone()).unwrap();
            let trial = trials.through(&editor, 0).unwrap();
            let [Distance { kl, error }] = trials.judge(vec![trial]).unwrap()[..] else {
                panic!("one trial, another number of distances");
            };
            let whole = StudentEditor::new(ward.inputs(), plan).unwrap();
            let (own_kl, own) = apart(&ward, &whole);
            let (own_kl, kl) = (own_kl.unwrap(), kl.unwrap());
            assert!(close(own, error), "{sizes:?}: {own} {error}");
            assert!(close(own_kl, kl), "{sizes:?}: {own_kl} {kl}");
            n_tried += 1;
        }
        if layer + 1 < spec.n_layers() {
            trials.advance().unwrap();
        }
    }
    assert!(n_tried >= 4, "{n_tried}");
}

#[test]
fn a_part_is_reconstructed_from_what_enters_its_layer_and_nothing_else_changes() {
    let ward = Ward::of(&tiny_decilm(), &[]);
    let (spec, registry) = (&ward.model.spec, registry());
    let space = Space::new(spec, &axes(&registry).unwrap()).unwrap();
    let rankings = random_rankings(&groups(spec).unwrap(), 31).unwrap();
    let mut trials = LayerTrials::start(ward.inputs()).unwrap();
    // The last one with an MLP.
    let last = 1;
    while trials.layer() < last {
        trials.advance().unwrap();
    }
    let sizes = Sizes::from([(format!("{MLP}.{last}"), 8)]);
    let plan = space.plan(&sizes, &rankings, spec).unwrap();
    let repair = registry
        .build::<dyn Reconstruction>(&"least_squares".parse().unwrap())
        .unwrap();
    let plain = trials.editor(plan.clone()).unwrap();
    let mut fitted = trials.editor(plan).unwrap();
    fitted.treat(repair.as_ref()).unwrap();
    assert!(!fitted.fits().is_empty());
    assert!(
        fitted
            .fits()
            .iter()
            .all(|fit| fit.projections.at.layer() == Some(last))
    );
    let both = vec![
        trials.through(&plain, 0).unwrap(),
        trials.through(&fitted, 1).unwrap(),
    ];
    let found = trials.judge(both).unwrap();
    assert!(found[1].error < found[0].error, "{found:?}");
}

/// A teacher with scores, and its text.
fn scored(config: &Value) -> Workspace {
    let here = Workspace::new()
        .model("teacher", config, 4)
        .text("text.txt");
    let scoring = ScoreOptions {
        model: here.path("teacher"),
        data: here.data("text.txt"),
        samples: 8,
        seq_len: Some(16),
        ..ScoreOptions::default()
    };
    with_context(false, |context| {
        score(context, &scoring, &here.at("scores.safetensors"))
    })
    .unwrap();
    here
}

fn options(here: &Workspace) -> BlocksOptions {
    let mut options = BlocksOptions {
        model: here.path("teacher"),
        scores: here.path("scores.safetensors"),
        ..BlocksOptions::default()
    };
    options.reconstruction.data = here.data("text.txt");
    options.reconstruction.samples = 8;
    options.reconstruction.seq_len = Some(16);
    options
}

fn measure(here: &Workspace, options: &BlocksOptions, out: &str) -> Result<Value> {
    with_context(false, |context| blocks(context, options, &here.at(out)))
}

/// Ends the work at its second layer.
#[derive(Debug)]
struct Halting(AtomicU64);

impl Progress for Halting {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, n: u64, _: &str) {
        assert!(self.0.fetch_add(n, Ordering::Relaxed) < 1, "halted");
    }
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

#[test]
fn an_interrupted_measuring_goes_on_to_the_same_bytes() {
    let here = scored(&tiny_llama());
    let options = options(&here);
    measure(&here, &options, "whole.json").unwrap();
    let left = here.at(".part.json.measured");
    let halted = catch_unwind(AssertUnwindSafe(|| {
        with_context(false, |context| {
            let halting = Context {
                progress: &Halting(AtomicU64::new(0)),
                ..*context
            };
            blocks(&halting, &options, &here.at("part.json"))
        })
    }));
    assert!(halted.is_err() && left.exists() && !here.at("part.json").exists());
    // A number that only what was left holds shows that it is taken.
    let mut part = here.value(".part.json.measured");
    assert_eq!(part["n_layers"], 2);
    let own = part["blocks"][0]["choices"][0]["kl"].take();
    part["blocks"][0]["choices"][0]["kl"] = json!(7.0);
    here.write(".part.json.measured", part.to_string());
    let found = measure(&here, &options, "part.json").unwrap();
    assert_eq!(found["blocks"][0]["choices"][0]["kl"], 7.0);
    assert!(!left.exists());
    let mut part = here.value("part.json");
    part["blocks"][0]["choices"][0]["kl"] = own;
    assert_eq!(part, here.value("whole.json"));
    // What another measuring left is not taken.
    let mut other = here.value("part.json");
    other["identity"] = json!({});
    (other["n_layers"], other["path"]) = (json!(3), json!(""));
    here.write(".again.json.measured", other.to_string());
    measure(&here, &options, "again.json").unwrap();
    assert_eq!(here.bytes("again.json"), here.bytes("whole.json"));
}

#[test]
fn streams_that_wait_in_a_folder_give_the_same_table() {
    let here = scored(&tiny_llama());
    let in_memory = options(&here);
    measure(&here, &in_memory, "memory.json").unwrap();
    let waiting = BlocksOptions {
        max_memory: Some("4GiB".parse().unwrap()),
        ..in_memory
    };
    measure(&here, &waiting, "folder.json").unwrap();
    assert_eq!(here.bytes("folder.json"), here.bytes("memory.json"));
    let left = std::fs::read_dir(here.root()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with(".folder")),
        "{left:?}"
    );
}

#[test]
fn widths_of_layers_are_measured_planned_by_and_searched() {
    let here = scored(&tiny_llama());
    let options = BlocksOptions {
        layers_apart: true,
        time: true,
        shares: vec![0.5, 0.25, 0.0],
        ..options(&here)
    };
    let alike = BlocksOptions {
        layers_apart: false,
        shares: vec![0.5],
        ..options.clone()
    };
    let error = measure(&here, &alike, "alike.json").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("--layers-apart describes it so that layers may differ")
    );
    measure(&here, &options, "blocks.json").unwrap();
    let table = BlockScores::load(&here.at("blocks.json")).unwrap();
    let parts: Vec<&str> = table
        .blocks
        .iter()
        .map(|block| block.part.as_str())
        .collect();
    assert_eq!(parts, ["attention", "mlp"].repeat(3));
    for block in &table.blocks {
        let n = if block.part == "mlp" { 3 } else { 1 };
        assert_eq!(block.choices.len(), n);
        assert!(block.ms.is_some() && block.choices.iter().all(|choice| choice.ms.is_some()));
        assert!(
            block
                .choices
                .iter()
                .all(|choice| choice.kl.is_some_and(|kl| kl > 0.0))
        );
    }
    let pruning = |budget: &str, out: &str| {
        let words = format!(
            "prune teacher --scores scores.safetensors --blocks blocks.json --layers-apart {budget} \
             --out {out}"
        );
        here.json(&words)
    };
    for share in [0.9, 0.7, 0.5] {
        let report = pruning(&format!("--ratio {share} --non-embedding --force"), "st");
        let count = |key: &str| report[key].as_f64().unwrap();
        let kept = count("n_non_embedding") / count("n_non_embedding_source");
        assert!(kept <= share && kept > share - 0.1, "{share}: {kept}");
    }
    let whole: f64 = table.blocks.iter().filter_map(|block| block.ms).sum();
    let rest = table.timed.as_ref().unwrap().rest_ms;
    pruning(
        &format!("--latency-ms {} --force", rest + 0.8 * whole),
        "st",
    );
    let kept = here.value("st/plan.json")["kept"].clone();
    let sizes = |name: &str| kept[name].as_array().unwrap().len();
    let mut ms = rest;
    for block in &table.blocks {
        let is_chosen =
            |choice: &&BlockChoice| choice.sizes.iter().all(|(name, &size)| sizes(name) == size);
        let chosen = block.choices.iter().find(is_chosen);
        ms += chosen.map_or(block.ms, |choice| choice.ms).unwrap();
    }
    assert!(ms <= rest + 0.8 * whole + 1e-9);
    let n_params = here.json("inspect teacher")["n_params"].as_u64().unwrap() * 8 / 10;
    let found = here.json(&format!(
        "search teacher --scores scores.safetensors --blocks blocks.json --layers-apart --params \
         {n_params} --candidates 3 --rungs 1 --data text.txt --eval-data text.txt --tokens 256 \
         --seq-len 16 --batch-size 4 --eval-samples 4 --lr 1e-3 --out found"
    ));
    assert_eq!(found["candidates"].as_array().unwrap().len(), 3);
    let winner = here.json("inspect found/winner");
    assert_eq!(winner["architecture"], "decilm");
    assert!(winner["n_params"].as_u64().unwrap() <= n_params);
}

#[test]
fn layers_that_cost_least_go_until_the_budget_holds() {
    let here = scored(&tiny_llama());
    measure(&here, &options(&here), "blocks.json").unwrap();
    let table = BlockScores::load(&here.at("blocks.json")).unwrap();
    let mut costs: Vec<(f64, usize)> = Vec::new();
    for block in &table.blocks {
        costs.push((block.choices[0].kl.unwrap(), block.layer));
    }
    costs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let pruning = PruneOptions {
        model: here.path("teacher"),
        scores: Some(here.path("scores.safetensors")),
        blocks: Some(here.path("blocks.json")),
        ratio: Some(0.7),
        non_embedding: true,
        ..PruneOptions::default()
    };
    let report = with_context(false, |context| {
        prune(context, &pruning, &here.at("st"), false)
    });
    let report = report.unwrap();
    assert_eq!(report["sizes"][DEPTH], 2);
    let kept: Vec<usize> =
        serde_json::from_value(here.value("st/plan.json")["kept"][DEPTH].clone()).unwrap();
    let mut expected: Vec<usize> = costs[1..].iter().map(|(_, layer)| *layer).collect();
    expected.sort_unstable();
    assert_eq!(kept, expected);
    // The table of another model is refused by name.
    let other = here.model("other", &tiny_llama(), 5);
    let pruning = PruneOptions {
        model: other.path("other"),
        any_model: false,
        ..pruning
    };
    let error = with_context(true, |context| {
        prune(context, &pruning, &other.at("st"), false)
    });
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("scores of `teacher`")
    );
}
