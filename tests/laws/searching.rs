//! Candidates from sizes alone, successive halving, comparisons.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use minitron::{Workspace, axes, config, families, registry, tiny_llama, with_context};
use minitron_core::plan::{Count, Space};
use minitron_core::progress::{Interrupt, Progress};
use minitron_core::random::SplitMix;
use minitron_core::spec::{ModelSpec, Sizes};
use minitron_engine::compare::{Spec, compare};
use minitron_engine::jobs::{Context, ScoreOptions, TrainingOptions, score};
use minitron_engine::search::{CountPolynomial, Grid, GridAxis, Halving, Within};
use minitron_engine::search::{SearchOptions, search};
use serde_json::{Value, json};

#[test]
fn the_polynomial_counts_what_the_spec_counts() {
    let mut random = SplitMix::new(1);
    let family =
        |value: &Value| ModelSpec::from_config(&config(value).unwrap(), &registry()).unwrap();
    let uneven = super::uneven::uneven(&json!([24, 16, 8]));
    for spec in families().iter().map(family).chain([uneven]) {
        let kinds: Vec<String> = spec.sizes().into_keys().collect();
        let cost = CountPolynomial::of(&spec, &kinds);
        assert_eq!(
            cost.at(&spec.sizes().into_values().collect::<Vec<_>>()),
            spec.n_params()
        );
        for _ in 0..200 {
            let sizes: Vec<usize> = kinds.iter().map(|_| 1 + random.below(4096)).collect();
            let named: Sizes = kinds.iter().cloned().zip(sizes.clone()).collect();
            assert_eq!(
                cost.at(&sizes),
                spec.n_params_at(&named),
                "{}: {named:?}",
                spec.architecture
            );
        }
    }
}

/// Nemotron-4 15B (arXiv 2407.14679, appendix).
fn nemotron_15b() -> ModelSpec {
    let value = json!({
        "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "hidden_size": 6144,
        "intermediate_size": 24576, "num_hidden_layers": 32, "num_attention_heads": 48,
            "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 256_000, "max_position_embeddings": 4096, "norm_eps": 1e-5,
            "hidden_act": "relu2",
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    ModelSpec::from_config(&config(&value).unwrap(), &registry()).unwrap()
}

fn survey(heads: &[usize], hidden: &[usize], within: Within) -> Vec<u64> {
    let spec = nemotron_15b();
    assert_eq!(spec.n_params(), 15_628_775_424);
    let space = Space::new(&spec, &axes(&registry()).unwrap()).unwrap();
    let sizes = |kind: &str, sizes: &[usize]| GridAxis::Sizes(kind.into(), sizes.to_vec());
    let grid = Grid::new(vec![
        GridAxis::MlpFactors(vec![2.5, 3.0, 3.5, 4.0]),
        sizes("depth", &[29, 30, 31, 32]),
        sizes("heads", heads),
        sizes("hidden", hidden),
    ])
    .unwrap();
    let (found, survey) = grid
        .survey(
            &spec,
            &space,
            &|n_params, _| n_params,
            (within, &|_, _| Ok(true)),
        )
        .unwrap();
    assert_eq!(survey.n_points, (16 * heads.len() * hidden.len()) as u64);
    assert_eq!(survey.n_legal, found.len() as u64);
    for candidate in &found {
        assert_eq!(candidate.n_params, spec.n_params_at(&candidate.sizes));
    }
    found.iter().map(|candidate| candidate.n_params).collect()
}

#[test]
fn the_papers_grids_hold_the_papers_candidates() {
    let found = survey(
        &[24, 32, 48],
        &[2560, 3072, 3584, 4096, 4608],
        Within::around(4_000_000_000, 0.05),
    );
    assert_eq!(found.len(), 18);
    assert!(found.contains(&4_190_509_056), "Minitron 4B is among them");
    let within = Within {
        least: 7_780_000_000,
        most: 8_540_000_000,
    };
    let found = survey(&[32, 48], &[4096, 4608, 5120, 5632, 6144], within);
    assert_eq!(found.len(), 15);
    assert!(found.contains(&8_271_699_968), "Minitron 8B is among them");
}

#[test]
fn rungs_end_at_evaluations_and_each_costs_about_the_same() {
    let halving = Halving {
        n_rungs: 3,
        keep: 0.5,
    };
    let rungs = halving.rungs(32, 400, 20).unwrap();
    assert_eq!(
        rungs
            .iter()
            .map(|rung| (rung.n_candidates, rung.until))
            .collect::<Vec<_>>(),
        [(32, 100), (16, 200), (8, 400)]
    );
    // As short as it can be, each rung still has an evaluation of its own.
    let rungs = halving.rungs(3, 3, 1).unwrap();
    assert_eq!(
        rungs
            .iter()
            .map(|rung| (rung.n_candidates, rung.until))
            .collect::<Vec<_>>(),
        [(3, 1), (2, 2), (1, 3)]
    );
    assert!(halving.rungs(3, 2, 1).is_err());
    assert!(
        Halving {
            n_rungs: 1,
            keep: 0.0
        }
        .rungs(3, 9, 1)
        .is_err()
    );
}

/// A tiny model with a tokenizer, its scores and a text.
fn workspace() -> Workspace {
    let workspace = Workspace::new()
        .model("model", &tiny_llama(), 3)
        .text("text.txt");
    let options = ScoreOptions {
        model: workspace.path("model"),
        data: workspace.data("text.txt"),
        samples: 8,
        seq_len: Some(16),
        ..ScoreOptions::default()
    };
    with_context(false, |context| {
        score(context, &options, &workspace.at("scores.safetensors"))
    })
    .unwrap();
    workspace
}

fn options(workspace: &Workspace) -> SearchOptions {
    let text = workspace.data("text.txt");
    SearchOptions {
        model: workspace.path("model"),
        scores: workspace.path("scores.safetensors"),
        grid: [("hidden", "16,24,32"), ("mlp", "24,32"), ("layers", "2-3")]
            .map(|(kind, sizes)| (kind.to_owned(), sizes.parse().unwrap()))
            .into(),
        filter: Some("mlp >= hidden && n_params > 1000".into()),
        candidates: 6,
        rungs: 3,
        training: TrainingOptions {
            data: text.clone(),
            eval_data: text,
            eval_samples: Some(4),
            eval_every: Some(2),
            tokens: Count(16 * 4 * 12),
            seq_len: Some(16),
            batch_size: 4,
            lr: Some(3e-3),
            checkpoint_every: Some(3),
            ..TrainingOptions::default()
        },
        ..SearchOptions::default()
    }
}

/// Without what a clock says.
fn timeless(mut value: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(object) => {
                object.retain(|key, _| !key.contains("second") && key != "out");
                object.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value
}

/// Asks for an end after so many reports.
#[derive(Debug)]
struct Impatient<'a>(AtomicU64, &'a Interrupt);

impl Progress for Impatient<'_> {
    fn start(&self, _what: &str, _total: u64) {}
    fn advance(&self, _n: u64, _note: &str) {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.asked.store(true, Ordering::SeqCst);
        }
    }
    fn finish(&self) {}
    fn note(&self, _message: &str) {}
    fn warn(&self, _message: &str) {}
}

#[test]
fn a_search_interrupted_anywhere_ends_as_one_that_was_not() {
    let workspace = workspace();
    let options = options(&workspace);
    let whole = with_context(false, |context| {
        search(context, &options, &workspace.at("whole"), false, false)
    })
    .unwrap();
    let candidates = whole["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 6);
    let evaluations = |row: &Value| row["curve"].as_array().unwrap().len();
    // Twelve steps: to 4 (3 rounds to an evaluation), 6 and 12, with 6, 3 and 2 candidates.
    let mut lengths: Vec<usize> = candidates.iter().map(evaluations).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [2, 2, 2, 3, 6, 6]);
    let ranks: Vec<u64> = candidates
        .iter()
        .map(|row| row["rank"].as_u64().unwrap())
        .collect();
    for (row, rank) in candidates.iter().zip(&ranks) {
        assert_eq!(*rank <= 2, evaluations(row) == 6, "{row}");
    }
    let winner = candidates.iter().find(|row| row["rank"] == 1).unwrap();
    assert_eq!(whole["winner"]["name"], winner["name"]);
    assert!(winner["loss"].as_f64() < winner["zero_shot"]["loss"].as_f64());
    let plan: Value =
        serde_json::from_slice(&fs::read(workspace.at("whole/winner/plan.json")).unwrap()).unwrap();
    assert_eq!(plan["n_params"], winner["n_params"]);

    for (name, patience) in [("one", 2), ("two", 5), ("three", 9)] {
        let out = workspace.at(name);
        let interrupt = Interrupt::default();
        let impatient = Impatient(AtomicU64::new(patience), &interrupt);
        let halted = with_context(false, |context| {
            let context = Context {
                progress: &impatient,
                interrupt: &interrupt,
                ..*context
            };
            search(&context, &options, &out, false, false)
        })
        .unwrap();
        assert_eq!(halted["interrupted"], true, "{name}");
        // How many learn side by side decides nothing.
        let room = (name == "two").then(|| "1kB".parse().unwrap());
        let options = SearchOptions {
            max_memory: room,
            ..options.clone()
        };
        let resumed = with_context(false, |context| {
            search(context, &options, &out, true, false)
        })
        .unwrap();
        let [resumed, whole] = [resumed, whole.clone()].map(|report| {
            let report = timeless(report);
            json!([
                report["candidates"],
                report["rungs"],
                report["winner"],
                report["correlation"],
                report["settled_at"]
            ])
        });
        assert_eq!(resumed, whole, "{name}");
        let weights = |dir: &Path| fs::read(dir.join("winner/model.safetensors")).unwrap();
        assert!(weights(&out) == weights(&workspace.at("whole")), "{name}");
    }
    let other = SearchOptions {
        keep_share: 0.4,
        ..options
    };
    let error = with_context(false, |context| {
        search(context, &other, &workspace.at("one"), true, false)
    })
    .unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("other options"),
        "{error}"
    );
}

#[test]
fn what_a_search_lost_or_did_not_clear_up_is_made_up_for() {
    let workspace = workspace();
    let options = options(&workspace);
    let run = |resume| {
        with_context(false, |context| {
            search(context, &options, &workspace.at("out"), resume, false)
        })
        .unwrap()
    };
    let whole = timeless(run(false));
    // Killed behind the last rung, before those that left were cleared and the winner was written.
    let path = workspace.at("out/search.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (record["complete"], record["winner"]) = (false.into(), Value::Null);
    fs::write(&path, record.to_string()).unwrap();
    fs::create_dir_all(workspace.at("out/candidates/c06/checkpoint/step-00000004")).unwrap();
    fs::remove_dir_all(workspace.at("out/winner")).unwrap();
    assert_eq!(timeless(run(true)), whole);
    // A winner that somebody removed is written again.
    fs::remove_dir_all(workspace.at("out/winner")).unwrap();
    assert_eq!(timeless(run(true)), whole);
    assert!(workspace.at("out/winner/config.json").is_file());
}

#[test]
fn those_that_are_screened_out_are_not_trained_nor_counted() {
    let workspace = workspace();
    let options = SearchOptions {
        screen: Some(3),
        rungs: 2,
        ..options(&workspace)
    };
    let report = with_context(false, |context| {
        search(context, &options, &workspace.at("out"), false, false)
    })
    .unwrap();
    for row in report["candidates"].as_array().unwrap() {
        let is_out = row["zero_shot"]["rank"].as_u64() > Some(3);
        assert_eq!(
            (row["screened_out"] == true, row["curve"] == json!([])),
            (is_out, is_out),
            "{row}"
        );
        assert_eq!(row["rank"].as_u64() > Some(3), is_out, "{row}");
    }
    assert_eq!(report["rungs"][0]["n_candidates"], 3);
}

/// A mixture is learned from by weight; what repairs candidates is read one after the other.
#[test]
fn candidates_are_repaired_on_the_text_of_a_mixture() {
    let workspace = workspace();
    let of = |reconstruct: &[&str]| {
        let mut options = options(&workspace);
        options.reconstruct = reconstruct.iter().map(|tag| tag.parse().unwrap()).collect();
        options.reconstruct_samples = 4;
        for data in &mut options.training.data {
            data.weight = Some(0.5);
        }
        with_context(false, |context| {
            let out = workspace.at(&reconstruct.join("-"));
            search(context, &options, &out, false, false)
        })
        .unwrap()
    };
    let kl = |report: &Value| report["candidates"][0]["zero_shot"].clone();
    assert_ne!(kl(&of(&["none"])), kl(&of(&["least_squares"])));
}

#[test]
fn candidates_that_take_turns_come_to_what_they_come_to_together() {
    let workspace = workspace();
    let together = options(&workspace);
    // Room for one at a time.
    let in_turns = SearchOptions {
        max_memory: Some("1kB".parse().unwrap()),
        ..options(&workspace)
    };
    let run = |options: &SearchOptions, out: &str| {
        with_context(false, |context| {
            search(context, options, &workspace.at(out), false, false)
        })
        .unwrap()
    };
    let (together, in_turns) = (run(&together, "together"), run(&in_turns, "turns"));
    let losses = |report: &Value| -> Vec<Value> {
        report["candidates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["curve"].clone())
            .collect()
    };
    assert_eq!(losses(&together), losses(&in_turns));
    let tokens = |report: &Value, key: &str| report["shared_teacher"][key].as_u64().unwrap();
    assert_eq!(
        tokens(&together, "forward_tokens_unshared"),
        tokens(&in_turns, "forward_tokens")
    );
    assert!(tokens(&together, "forward_tokens") < tokens(&in_turns, "forward_tokens"));
}

#[test]
fn what_cannot_be_searched_is_said_before_any_work() {
    let workspace = workspace();
    let refusal = |options: SearchOptions| {
        let error = with_context(false, |context| {
            search(context, &options, &workspace.at("out"), false, false)
        })
        .unwrap_err();
        assert!(error.is_usage() && !workspace.at("out").exists(), "{error}");
        error.to_string()
    };
    let with = |change: &dyn Fn(&mut SearchOptions)| {
        let mut options = options(&workspace);
        change(&mut options);
        refusal(options)
    };
    type Change<'a> = &'a dyn Fn(&mut SearchOptions);
    let changes: [(&str, Change); 12] = [
        ("none of 12 points", &|o| o.params = Some("9M".into())),
        ("give one of the two", &|o| {
            (o.params, o.memory) = (Some("1k".into()), Some("1MiB".into()))
        }),
        ("there is no `width`", &|o| {
            o.filter = Some("width > 2".into())
        }),
        ("comparison", &|o| o.filter = Some("mlp".into())),
        ("known: ", &|o| {
            _ = o.grid.insert("experts".into(), "4".parse().unwrap())
        }),
        ("whole numbers", &|o| {
            _ = o.grid.insert("mlp".into(), "2.5".parse().unwrap())
        }),
        ("as many evaluations", &|o| o.rungs = 9),
        ("keep", &|o| o.keep_share = f64::NAN),
        ("stop_after", &|o| o.training.stop_after = Some(3)),
        ("correct_teacher", &|o| {
            o.teacher_options.correct_teacher = Some(0.2)
        }),
        ("no loss plugin is called", &|o| {
            o.training.losses = vec!["forward_kld".parse().unwrap()]
        }),
        ("say how large", &|o| o.grid.clear()),
    ];
    for (says, change) in changes {
        let message = with(change);
        assert!(message.contains(says), "{says}: {message}");
    }
}

#[test]
fn rows_share_what_they_have_in_common_and_failures_are_kept() {
    let workspace = workspace();
    let spec = r#"
title = "tiny"
model = "model"
seeds = [1, 2]
[all.score]
data = ["text.txt"]
samples = 8
seq_len = 16
[all.eval]
data = ["text.txt"]
samples = 4
seq_len = 16
[all.distill]
data = ["text.txt"]
tokens = 256
seq_len = 16
batch_size = 4
[all.scratch]
data = ["text.txt"]
tokens = 256
seq_len = 16
batch_size = 4
[[rows]]
name = "width"
prune = { hidden = 24, mlp = 32 }
[[rows]]
name = "lower"
title = "a lower rate"
prune = { hidden = 24, mlp = 32 }
distill = { lr = 1e-5 }
[[rows]]
name = "broken"
prune = { hidden = 23 }
[[rows]]
name = "scratch"
chain = ["score", "prune", "scratch", "eval"]
seeds = [1]
prune = { hidden = 24, mlp = 32 }
[[rows]]
name = "twice"
chain = ["score", "prune", "distill", "score", "prune", "eval"]
"prune.1" = { mlp = 40 }
"prune.2" = { mlp = 32 }
[[checks]]
says = "one learns, the other hardly"
holds = "{width.kl_to_teacher} < {lower.kl_to_teacher} && {width.n_tokens} / 512 == 0.5"
[[checks]]
says = "unknown"
holds = "{broken.loss} < 1"
[[ratios]]
rows = ["width"]
reference = ["scratch"]
"#;
    fs::write(workspace.at("spec.toml"), spec).unwrap();
    let spec = Spec::load(&workspace.at("spec.toml")).unwrap();
    let run = || {
        with_context(false, |context| {
            compare(context, &spec, &workspace.at("out"))
        })
        .unwrap()
    };
    let report = run();
    let row = |name: &str| {
        report["rows"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(row("broken")["status"], "failed");
    assert!(
        row("broken")["error"]
            .as_str()
            .unwrap()
            .contains("23 is not legal"),
        "{}",
        row("broken")
    );
    let folders = |word: &str| {
        let names = fs::read_dir(workspace.at("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(word)).count()
    };
    // Trainings are per seed; scores of the original and the first student are shared, the
    // retrained ones are scored anew.
    assert_eq!(
        (folders("score-"), folders("distill-"), folders("scratch-")),
        (3, 6, 1)
    );
    let dear = &row("scratch")["values"]["loss"];
    assert!(
        dear["by_seed"].as_array().unwrap().len() == 1 && dear["std"].is_null(),
        "{dear}"
    );
    let over = &row("width")["values"]["loss"];
    let by_seed: Vec<f64> = serde_json::from_value(over["by_seed"].clone()).unwrap();
    assert!(
        by_seed.len() == 2 && by_seed[0] != by_seed[1] && over["std"].as_f64() > Some(0.0),
        "{over}"
    );
    let zero_shot = &row("width")["values"]["zero_shot_loss"];
    assert_eq!(zero_shot["by_seed"][0], zero_shot["by_seed"][1]);
    assert_eq!(zero_shot, &row("lower")["values"]["zero_shot_loss"]);
    assert!(row("scratch")["values"].get("zero_shot_loss").is_none());
    assert_eq!(row("twice")["values"]["n_tokens"]["mean"], 256.0);
    assert_eq!(report["checks"][0]["holds"], true, "{}", report["checks"]);
    assert!(report["checks"][1]["holds"].is_null());
    assert_eq!(report["ratios"][0]["points"][0]["row"], "width");

    // Nothing is done again, but for what failed.
    let stamps = |report: &Value| timeless(report.clone());
    assert_eq!(stamps(&run()), stamps(&report));
}

#[test]
fn the_specs_that_come_along_can_be_meant() {
    let files = |dir: &str| {
        let entries = fs::read_dir(minitron::root().join("examples").join(dir)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<PathBuf>>()
    };
    let (comparisons, searches) = (files("compare"), files("search"));
    assert!(
        comparisons.len() >= 10 && searches.len() >= 3,
        "{comparisons:?} {searches:?}"
    );
    for path in comparisons {
        let spec = Spec::load(&path).unwrap();
        assert!(
            spec.rows.len() > 1 && !spec.title.is_empty(),
            "{}",
            path.display()
        );
    }
    for path in searches {
        let recipe = minitron_engine::recipe::Recipe::load(&path).unwrap();
        minitron_engine::recipe::check_recipe(&registry(), &recipe).unwrap();
    }
}

#[test]
fn a_comparison_that_cannot_be_meant_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spec.toml");
    for (text, says) in [
        ("model = \"m\"\nrows = []", "at least one"),
        (
            "model = \"m\"\n[[rows]]\nname = \"a b\"",
            "expected letters",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\n[[rows]]\nname = \"a\"",
            "two rows",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\nprunes = {}",
            "row `a`",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\nprune = { hiden = 1 }",
            "row `a`: prune: recipe: no option is called `hiden`",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\nchain = [\"bake\"]",
            "known: score, blocks, prune",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\n[[checks]]\nsays = \"\"\nholds = \"{b.loss} < \
             1\"",
            "ROW.COLUMN",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\n[[ratios]]\nrows = [\"b\"]\nreference = []",
            "no row is called `b`",
        ),
        (
            "model = \"m\"\n[[rows]]\nname = \"a\"\nseeds = []",
            "row `a`: seeds: expected at least one",
        ),
        ("rows = 1", "invalid type"),
        (
            "model = \"m\"\ncolour = 1\n[[rows]]\nname = \"a\"",
            "unknown field `colour`",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = Spec::load(&path).unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains(says),
            "{text}\n{error}"
        );
    }
    assert!(
        Spec::load(&dir.path().join("none.toml"))
            .unwrap_err()
            .to_string()
            .contains("no such spec")
    );
}
