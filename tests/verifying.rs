//! What a run records of itself, and what differs from it later.
#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::process::Output;

use minitron::{Workspace, tiny_llama};
use serde_json::Value;

const RECIPE: &str = r#"
[[stages]]
name = "scores"
do = "score"
model = "teacher"
data = ["text.txt"]
samples = 8
seq_len = 32
[[stages]]
name = "pruned"
do = "prune"
model = "teacher"
scores = "scores"
mlp = 24
[[stages]]
name = "distilled"
do = "distill"
teacher = "teacher"
student = "pruned"
data = ["text.txt"]
eval_data = ["text.txt"]
tokens = "1k"
seq_len = 32
batch_size = 4
[[stages]]
name = "evaluated"
do = "eval"
model = "distilled"
data = ["text.txt"]
samples = 4
seq_len = 32
"#;

fn workspace() -> Workspace {
    Workspace::new()
        .model("teacher", &tiny_llama(), 1)
        .text("text.txt")
        .file("recipe.toml", RECIPE)
}

fn run(workspace: &Workspace, words: &str) -> Output {
    workspace.run(&format!("{words} --quiet --threads 1"))
}

/// The first object on stdout, and the exit code.
fn verify(workspace: &Workspace, words: &str) -> (Value, i32) {
    let output = run(workspace, &format!("{words} --json"));
    let found = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .next();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        found.unwrap_or_else(|| panic!("{text}")).unwrap(),
        output.status.code().unwrap(),
    )
}

/// Kinds, stages and names of what differs.
fn differences(report: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |found: &Value| {
        let what = text(&found["what"]);
        let name = what.rsplit('/').next().unwrap();
        format!("{} {} {name}", text(&found["kind"]), text(&found["stage"]))
    };
    report["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(one)
        .collect()
}

#[test]
fn a_run_repeats_to_the_byte_and_says_what_differs_where_it_does_not() {
    let workspace = workspace();
    assert!(
        run(&workspace, "run recipe.toml --out one")
            .status
            .success()
    );
    let (report, code) = verify(&workspace, "run --verify one");
    assert_eq!(
        (differences(&report), &report["verified"], code),
        (vec![], &Value::from(true), 0)
    );
    assert!(report["n_artefacts"].as_u64() > Some(8), "{report}");

    let (report, code) = verify(&workspace, "run recipe.toml --out two --verify one");
    assert_eq!((differences(&report), code), (vec![], 0), "{report}");

    // Another seed: everything that follows from it.
    let (report, code) = verify(
        &workspace,
        "run recipe.toml --out three --verify one --seed 5",
    );
    let found = differences(&report);
    assert_eq!(
        (code, &report["verified"]),
        (1, &Value::from(false)),
        "{found:?}"
    );
    for expected in [
        "artefact distilled model.safetensors",
        "artefact distilled metrics.jsonl",
        "setting  seed",
    ] {
        assert!(found.iter().any(|found| found == expected), "{found:?}");
    }
    assert!(
        !found.iter().any(|found| found.starts_with("input")),
        "{found:?}"
    );

    // What the run left, changed by hand; what it read, changed; a file gone, one too many.
    let weights = workspace.at("one/pruned/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(weights, bytes).unwrap();
    fs::remove_file(workspace.at("one/scores/scores.safetensors")).unwrap();
    fs::write(workspace.at("one/evaluated/more"), "").unwrap();
    fs::write(workspace.at("text.txt"), "other text").unwrap();
    let (report, code) = verify(&workspace, "run --verify one");
    let expected = [
        "artefact scores scores.safetensors",
        "input scores text.txt",
        "artefact pruned model.safetensors",
        "input distilled text.txt",
        "artefact evaluated more",
        "input evaluated text.txt",
    ];
    assert_eq!(
        (differences(&report), code),
        (expected.map(str::to_owned).to_vec(), 1)
    );
    let output = run(&workspace, "run --verify one");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("not verified: 4 stages") && table.contains("model.safetensors"),
        "{table}"
    );
}

#[test]
fn folders_that_hold_no_run_or_an_older_one_are_refused() {
    let workspace = workspace();
    let refusal =
        |words: &str| String::from_utf8_lossy(&run(&workspace, words).stderr).into_owned();
    assert!(refusal("run --verify teacher").contains("`teacher` holds no run: no run.json there"));
    fs::create_dir(workspace.at("old")).unwrap();
    let stage = r#"{"name": "a", "do": "eval", "inputs": "0", "result": {}, "seconds": 1.0}"#;
    let run = |stages: &str| {
        format!(
            r#"{{"minitron": "0", "recipe": "r", "seed": 0, "device": "cpu", "dtype": "float", "stages": [{stages}]}}"#
        )
    };
    fs::write(workspace.at("old/run.json"), run(stage)).unwrap();
    assert!(refusal("run --verify old").contains("recorded no digests"));
    fs::write(workspace.at("old/run.json"), "{}").unwrap();
    assert!(refusal("run --verify old").contains("not a run's record"));
    assert!(refusal("run").contains("required"), "{}", refusal("run"));
    assert!(
        refusal("run recipe.toml").contains("--out"),
        "{}",
        refusal("run recipe.toml")
    );
}
