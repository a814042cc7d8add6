#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use minitron::{Workspace, add_demo_tokenizer, minitron, tiny_llama, with_demo_vocabulary};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{Reader, TensorSource};
use serde_json::{Value, json};

/// A folder with a config, a tokenizer and texts to work in; `@` at the beginning of an argument
/// stands for it.
struct Shell {
    files: Workspace,
}

/// What a command left.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl std::ops::Deref for Shell {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Shell {
    fn new() -> Self {
        let config = with_demo_vocabulary(tiny_llama());
        let shell = Shell {
            files: Workspace::new()
                .file("config.json", config.to_string())
                .text("text.txt"),
        };
        add_demo_tokenizer(shell.root()).unwrap();
        let lines = (0..40)
            .map(|i| json!({ "text": format!("One day, the cat saw house {i}.") }).to_string());
        fs::write(shell.at("text.jsonl"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        shell
    }

    fn run(&self, args: &[&str]) -> Ran {
        let in_desk = |arg: &&str| match arg.split_once('@') {
            Some((before, name)) => format!("{before}{}", self.at(name).display()),
            None => (*arg).to_owned(),
        };
        let args: Vec<String> = args.iter().map(in_desk).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = minitron(&args).unwrap();
        // Temporary names would make every run's texts differ.
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(&self.root().display().to_string(), "DIR")
        };
        Ran {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Runs a command that succeeds, with `--json`: one object, on one line, and nothing else on
    /// stdout.
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json", "--quiet"]].concat());
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
        // What is quiet warns all the same.
        let said: Vec<&str> = ran
            .stderr
            .lines()
            .filter(|line| !line.starts_with("warning: "))
            .collect();
        assert!(said.is_empty(), "{args:?}: --quiet: {said:?}");
        assert_eq!(ran.stdout.lines().count(), 1, "{args:?}: {}", ran.stdout);
        let value: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(value.is_object(), "{value}");
        value
    }

    /// Runs a command that fails, and gives its text.
    fn error(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (Some(code), ""),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(
            ran.stderr.starts_with("error: "),
            "{args:?}: {}",
            ran.stderr
        );
        without_plugins(ran.stderr.trim_end())
    }

    /// A trained model in `teacher`.
    fn with_teacher(self) -> Self {
        self.json(
            &[
                &[
                    "train",
                    "--config",
                    "@config.json",
                    "--out",
                    "@teacher",
                    "--tokens",
                    "1k",
                ],
                TRAINING,
            ]
            .concat(),
        );
        self
    }
}

/// Short windows and few of them, since only the way is tested.
const TRAINING: &[&str] = &[
    "--data",
    "@text.txt",
    "--seq-len",
    "32",
    "--batch-size",
    "4",
];

/// Lists of plugins cut short: a new plugin is to change no test.
fn without_plugins(text: &str) -> String {
    for list in ["known: activation, ", "supported: bamba, bert, "] {
        if let Some((before, _)) = text.split_once(list) {
            return format!("{before}{list}…");
        }
    }
    text.to_owned()
}

fn assert_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "expected `{key}` in {value}");
    }
}

// --- the whole job
// ---------------------------------------------------------------------------------------------------

#[test]
fn the_whole_job_from_a_config_to_a_distilled_student() {
    let shell = Shell::new();
    let args = &[
        "train",
        "--config",
        "@config.json",
        "--out",
        "@teacher",
        "--tokens",
        "8k",
        "--lr",
        "5e-3",
    ];
    let trained = shell.json(&[args, TRAINING].concat());
    assert_keys(
        &trained,
        &[
            "out",
            "n_params",
            "n_steps",
            "n_tokens",
            "loss",
            "tokens_per_second",
            "complete",
        ],
    );
    assert_eq!(
        (&trained["complete"], &trained["n_tokens"]),
        (&json!(true), &json!(8064))
    );
    let metrics = fs::read_to_string(shell.at("teacher/metrics.jsonl")).unwrap();
    let metrics: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(metrics.len(), 63);
    assert_keys(
        &metrics[0],
        &[
            "step",
            "n_tokens",
            "loss",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "loss/cross_entropy",
        ],
    );
    let (first, last) = (
        metrics[0]["loss"].as_f64().unwrap(),
        metrics[62]["loss"].as_f64().unwrap(),
    );
    assert!(last < 0.7 * first, "{first} {last}");
    assert!(
        shell.at("teacher/checkpoint").is_dir() && shell.at("teacher/tokenizer.json").is_file()
    );

    let args = &[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--out",
        "@s.safetensors",
        "--seq-len",
        "32",
        "--samples",
        "8",
    ];
    let scored = shell.json(args);
    assert_eq!(
        (&scored["n_samples"], &scored["n_tokens"]),
        (&json!(8), &json!(256))
    );
    let scores = Reader::open_file(&shell.at("s.safetensors")).unwrap();
    let mut expected = BTreeMap::from([
        ("activation/hidden".to_owned(), 32),
        ("block_influence/depth".to_owned(), 3),
    ]);
    expected.insert("activation/rope_pairs".to_owned(), 4);
    for layer in 0..3 {
        expected.insert(format!("activation/mlp.{layer}"), 48);
        expected.insert(format!("activation/heads.{layer}"), 4);
        expected.insert(format!("activation/kv_heads.{layer}"), 2);
    }
    let found: BTreeMap<String, usize> = scores
        .names()
        .into_iter()
        .map(|name| {
            let info = scores.info(&name).unwrap();
            assert_eq!(format!("{:?}", info.dtype), "F32");
            (name, info.shape[0])
        })
        .collect();
    assert_eq!(found, expected);

    let sizes = [
        "--hidden", "16", "--mlp", "24", "--heads", "2", "--layers", "2",
    ];
    let prune = [
        &["prune", "@teacher", "--scores", "@s.safetensors"],
        &sizes[..],
    ]
    .concat();
    let planned = shell.json(&[&prune[..], &["--dry-run"]].concat());
    assert_keys(
        &planned,
        &[
            "n_params",
            "n_params_source",
            "sizes",
            "sizes_source",
            "kept",
        ],
    );
    assert!(!shell.at("pruned").exists());
    let pruned = shell.json(&[&prune[..], &["--out", "@pruned"]].concat());
    assert_eq!(pruned["n_params"], planned["n_params"]);
    let plan = shell.value("pruned/plan.json");
    assert_eq!(plan["kept"], planned["kept"]);
    let n_kept = |dim: &str| plan["kept"][dim].as_array().map(Vec::len);
    for (dim, n) in [
        ("hidden", 16),
        ("mlp.0", 24),
        ("mlp.2", 24),
        ("heads.0", 2),
        ("heads.2", 2),
        ("depth", 2),
    ] {
        assert_eq!(n_kept(dim), Some(n), "{dim}");
    }
    assert_eq!(
        shell.json(&["inspect", "@pruned"])["n_params"],
        pruned["n_params"]
    );
    // The same plan gives the same student.
    shell.json(&[
        "prune",
        "@teacher",
        "--plan",
        "@pruned/plan.json",
        "--out",
        "@again",
    ]);
    let weights = |dir: &str| fs::read(shell.at(dir).join("model.safetensors")).unwrap();
    assert_eq!(weights("pruned"), weights("again"));

    let args = &[
        "distill",
        "--teacher",
        "@teacher",
        "--student",
        "@pruned",
        "--out",
        "@student",
        "--tokens",
        "4k",
    ];
    let distilled = shell.json(&[args, TRAINING, &["--lr", "5e-3"]].concat());
    assert_eq!(
        (&distilled["complete"], &distilled["n_params"]),
        (&json!(true), &pruned["n_params"])
    );
    assert_eq!(shell.value("student/plan.json"), plan);

    let question =
        json!({ "context": "One day, the cat saw a", "choices": ["ball", "xylophone"], "gold": 0 });
    fs::write(shell.at("task.jsonl"), question.to_string()).unwrap();
    let eval = |model: &str| {
        let args = [
            "--data",
            "@text.txt",
            "--seq-len",
            "32",
            "--teacher",
            "@teacher",
            "--task",
            "balls=@task.jsonl",
        ];
        shell.json(&[&["eval", model], &args[..]].concat())
    };
    let (teacher, before, after) = (eval("@teacher"), eval("@pruned"), eval("@student"));
    assert_keys(
        &after,
        &[
            "architecture",
            "n_params",
            "loss",
            "perplexity",
            "n_tokens",
            "kl_to_teacher",
            "tasks",
        ],
    );
    assert_keys(
        &after["tasks"]["balls"],
        &["acc", "acc_norm", "n_questions"],
    );
    let number = |report: &Value, key: &str| report[key].as_f64().unwrap();
    assert!(number(&teacher, "kl_to_teacher").abs() < 1e-6, "{teacher}");
    assert!((number(&teacher, "loss").exp() - number(&teacher, "perplexity")).abs() < 1e-6);
    for key in ["loss", "kl_to_teacher"] {
        assert!(
            number(&after, key) < number(&before, key),
            "{key}: {before} {after}"
        );
    }

    let args = [
        "generate",
        "@student",
        "--prompt",
        "One day,",
        "--max-new-tokens",
        "5",
    ];
    let generated = shell.json(&args);
    assert_keys(
        &generated,
        &[
            "prompt",
            "text",
            "completion",
            "n_prompt_tokens",
            "n_new_tokens",
        ],
    );
    assert!(generated["text"].as_str().unwrap().starts_with("One day,"));
    assert_eq!(
        shell.run(&args).stdout.trim_end(),
        generated["text"].as_str().unwrap().trim_end()
    );
}

#[test]
fn a_resumed_training_writes_the_same_weights() {
    let shell = Shell::new();
    let train = |out: &str, more: &[&str]| {
        shell.json(
            &[
                &[
                    "train",
                    "--config",
                    "@config.json",
                    "--out",
                    out,
                    "--tokens",
                    "1k",
                ],
                TRAINING,
                more,
            ]
            .concat(),
        )
    };
    train("@whole", &[]);
    let part = train("@parts", &["--stop-after", "3"]);
    assert_eq!(
        (&part["complete"], &part["n_steps"]),
        (&json!(false), &json!(3))
    );
    assert!(!shell.at("parts/config.json").exists());
    assert_eq!(train("@parts", &["--resume"])["complete"], json!(true));
    let weights = |dir: &str| fs::read(shell.at(dir).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"));
    let steps = |dir: &str| {
        let text = fs::read_to_string(shell.at(dir).join("metrics.jsonl")).unwrap();
        let step = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            json!([line["step"], line["loss"], line["lr"]])
        };
        text.lines().map(step).collect::<Vec<_>>()
    };
    assert_eq!(steps("whole"), steps("parts"));
}

#[test]
fn the_best_student_is_a_model_of_its_own() {
    let shell = Shell::new();
    let args = ["train", "--config", "@config.json", "--tokens", "2k"];
    let more = [
        "--lr",
        "5e-3",
        "--schedule",
        "wsd",
        "--decay-share",
        "0.2",
        "--beta2",
        "0.99",
        "--out",
        "@out",
    ];
    let held_out = [
        "--eval-data",
        "@text.jsonl",
        "--eval-every",
        "3",
        "--eval-samples",
        "6",
    ];
    let report = shell.json(&[&args, TRAINING, &held_out, &more].concat());
    assert_eq!(
        (&report["n_skipped"], &report["interrupted"]),
        (&json!(0), &json!(false))
    );
    let text = fs::read_to_string(shell.at("out/metrics.jsonl")).unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let evaluated: Vec<Value> = records
        .filter(|record| record.get("eval/loss").is_some())
        .collect();
    assert_eq!(
        evaluated
            .iter()
            .map(|r| r["step"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [3, 6, 9, 12, 15, 16]
    );
    assert_keys(
        &evaluated[0],
        &[
            "loss/cross_entropy",
            "eval/cross_entropy",
            "n_skipped",
            "elapsed_s",
        ],
    );
    // The same number as `eval` gives.
    let eval = shell.json(&[
        "eval",
        "@out/best",
        "--data",
        "@text.jsonl",
        "--samples",
        "6",
        "--seq-len",
        "32",
    ]);
    let (found, expected) = (
        report["best"]["loss"].as_f64().unwrap(),
        eval["loss"].as_f64().unwrap(),
    );
    assert!((found - expected).abs() < 1e-6, "{report} {eval}");
    shell.json(&[
        "generate",
        "@out/best",
        "--prompt",
        "One day,",
        "--max-new-tokens",
        "2",
    ]);

    let error =
        |more: &[&str]| shell.error(2, &[&args[..], &["--out", "@o"], TRAINING, more].concat());
    insta::assert_snapshot!(
        error(&["--schedule", "cos"]),
        @r"
        error: invalid value 'cos' for '--schedule <SCHEDULE>': recipe: no schedule is called `cos`; known: cosine, linear, constant, wsd

        For more information, try '--help'.
        "
    );
    insta::assert_snapshot!(
        error(&["--eval-every", "3"]),
        @"error: recipe: eval_every, eval_samples: no eval_data is given to evaluate on"
    );
    insta::assert_snapshot!(
        error(&["--schedule", "constant", "--min-lr", "1e-4"]),
        @"error: recipe: min_lr: a constant schedule stays at lr; leave one of them out"
    );
    assert!(!shell.at("o").exists());
}

#[test]
fn a_student_is_pruned_by_key_value_heads_or_to_fit_a_memory() {
    let shell = Shell::new().with_teacher();
    let score = [
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--out",
        "@s.safetensors",
        "--seq-len",
        "32",
        "--samples",
        "8",
    ];
    shell.json(&score);
    let prune = |more: &[&str]| {
        shell.json(&[&["prune", "@teacher", "--scores", "@s.safetensors"], more].concat())
    };

    let by_heads = prune(&["--kv-heads", "1", "--out", "@one"]);
    assert_eq!(
        (&by_heads["sizes"]["kv_heads"], &by_heads["sizes"]["heads"]),
        (&json!(1), &json!(2))
    );
    let config = shell.value("one/config.json");
    assert_eq!(
        (
            &config["num_key_value_heads"],
            &config["num_attention_heads"]
        ),
        (&json!(1), &json!(2))
    );
    let plan = shell.value("one/plan.json");
    let kept = plan["kept"]["kv_heads.1"][0].as_u64().unwrap();
    assert_eq!(plan["kept"]["heads.1"], json!([2 * kept, 2 * kept + 1]));
    let why = &plan["explained"]["kv_heads.1"];
    assert_keys(
        why,
        &[
            "metric",
            "last_kept",
            "first_dropped",
            "margin",
            "near_tie",
            "borderline",
        ],
    );
    assert_eq!(
        (&why["metric"], &why["last_kept"]["unit"]),
        (&json!("activation"), &json!(kept))
    );
    assert!(plan["explained"].get("mlp.1").is_none() && by_heads.get("explained").is_none());
    let eval = shell.json(&["eval", "@one", "--data", "@text.txt", "--seq-len", "32"]);
    assert!(eval["loss"].as_f64().unwrap().is_finite());

    let to_fit = prune(&[
        "--memory",
        "150kB",
        "--kv-seq-len",
        "16",
        "--kv-batch-size",
        "2",
        "--out",
        "@fits",
    ]);
    let memory =
        &shell.json(&["inspect", "@fits", "--seq-len", "16", "--batch-size", "2"])["memory"];
    let n_bytes =
        memory["weights_bytes"].as_u64().unwrap() + memory["kv_cache_bytes"].as_u64().unwrap();
    assert!(n_bytes <= 150_000 && n_bytes > 142_500, "{memory}");
    assert_eq!(
        (&to_fit["sizes"]["kv_heads"], &to_fit["sizes"]["depth"]),
        (&json!(2), &json!(3))
    );

    let error = |args: &[&str]| {
        shell.error(
            2,
            &[&["prune", "@teacher", "--scores", "@s.safetensors"], args].concat(),
        )
    };
    insta::assert_snapshot!(
        error(&["--memory", "8Gib", "--out", "@o"]),
        @"error: recipe: expected a size such as 8GiB, 5GB or 4096, got `8Gib`"
    );
    insta::assert_snapshot!(
        error(&["--mlp", "24", "--bootstrap", "20", "--out", "@o"]),
        @"error: recipe: bootstrap: expected 20 replicates of `activation/mlp.0`, the scores hold \
          0; run `minitron score --bootstrap 20`"
    );
    insta::assert_snapshot!(
        error(&["--kv-heads", "1", "--heads", "4", "--out", "@o"]),
        @"error: plan: heads: 4 is not legal, expected a size up to 2 (with 1 kv_heads); nearest: \
          --heads 2 --kv-heads 1 or --heads 4 --kv-heads 2"
    );
    assert!(!shell.at("o").exists());
}

#[test]
fn a_near_tie_is_told_in_one_line() {
    let shell = Shell::new().with_teacher();
    let neurons: Vec<f32> = (0..48)
        .map(|unit| if unit == 24 { 23.001 } else { unit as f32 })
        .collect();
    let by_name = (0..3)
        .map(|layer| (format!("own/mlp.{layer}"), neurons.clone()))
        .collect();
    let scores = Scores {
        by_name,
        ..Scores::default()
    };
    scores.save(&shell.at("s.safetensors")).unwrap();
    let ran = shell.run(&[
        "prune",
        "@teacher",
        "--scores",
        "@s.safetensors",
        "--mlp",
        "24",
        "--dry-run",
    ]);
    assert_eq!(
        ran.stdout.lines().last(),
        Some("near ties (margin below 1 %): mlp.0, mlp.1, mlp.2"),
        "{}",
        ran.stderr
    );
    let ran = shell.run(&[
        "prune",
        "@teacher",
        "--scores",
        "@s.safetensors",
        "--mlp",
        "20",
        "--dry-run",
    ]);
    assert!(!ran.stdout.contains("near ties"), "{}", ran.stdout);
}

#[test]
fn an_output_that_exists_needs_force() {
    let shell = Shell::new().with_teacher();
    let train = [
        &[
            "train",
            "--config",
            "@config.json",
            "--out",
            "@teacher",
            "--tokens",
            "500",
        ],
        TRAINING,
    ]
    .concat();
    insta::assert_snapshot!(
        shell.error(2, &train),
        @"error: recipe: the output `DIR/teacher` exists; give another name or --force to replace \
          it"
    );
    shell.json(&[&train[..], &["--force"]].concat());
}

// --- recipes
// ---------------------------------------------------------------------------------------------------------

const RECIPE: &str = r#"
[[stages]]
name = "teacher"
do = "train"
config = "config.json"
data = ["text.txt"]
tokens = "1k"
seq_len = 32

[[stages]]
name = "scores"
do = "score"
model = "teacher"
data = ["text.jsonl#..-5"]
samples = 8
seq_len = 16

[[stages]]
name = "pruned"
do = "prune"
model = "teacher"
scores = "scores"
ratio = 0.5

[[stages]]
name = "distilled"
do = "distill"
teacher = "teacher"
student = "pruned"
data = ["text.txt"]
tokens = 500
seq_len = 32

[[stages]]
name = "eval-teacher"
do = "eval"
model = "teacher"
data = ["text.jsonl#-5.."]
seq_len = 16

[[stages]]
name = "eval-distilled"
do = "eval"
model = "distilled"
teacher = "teacher"
data = ["text.jsonl#-5.."]
seq_len = 16

[[stages]]
name = "say"
do = "generate"
model = "distilled"
prompt = "One day,"
max_new_tokens = 4
"#;

/// Digest and time of every stage: the time tells whether it ran again.
fn records(shell: &Shell) -> BTreeMap<String, Value> {
    let stages = shell.value("run/run.json")["stages"]
        .as_array()
        .unwrap()
        .clone();
    stages
        .into_iter()
        .map(|stage| (stage["name"].as_str().unwrap().to_owned(), stage))
        .collect()
}

#[test]
fn a_recipe_runs_its_stages_once_and_again_only_what_changed() {
    let shell = Shell::new();
    let run = |text: &str| {
        fs::write(shell.at("recipe.toml"), text).unwrap();
        shell.json(&["run", "@recipe.toml", "--out", "@run"])
    };
    let report = run(RECIPE);
    assert_keys(
        &report,
        &["minitron", "recipe", "seed", "device", "dtype", "stages"],
    );
    let first = records(&shell);
    assert_eq!(first.len(), 7);
    for (name, stage) in &first {
        assert_keys(
            stage,
            &["name", "do", "inputs", "result", "seconds", "options"],
        );
        assert!(shell.at("run").join(name).is_dir(), "{name}");
    }
    assert_keys(
        &first["eval-distilled"]["result"],
        &["loss", "perplexity", "kl_to_teacher"],
    );

    // Unchanged: not a byte of the record differs.
    let record = fs::read(shell.at("run/run.json")).unwrap();
    assert_eq!(run(RECIPE), report);
    assert_eq!(fs::read(shell.at("run/run.json")).unwrap(), record);
    let skipped = shell.run(&["run", "@recipe.toml", "--out", "@run"]);
    assert_eq!(
        skipped.stderr.matches(": unchanged, skipped").count(),
        7,
        "{}",
        skipped.stderr
    );

    // Another option: that stage and what follows from it.
    run(&RECIPE.replace("samples = 8", "samples = 7"));
    let second = records(&shell);
    for (name, stage) in &second {
        let follows = !["teacher", "eval-teacher"].contains(&name.as_str());
        assert_eq!(stage != &first[name], follows, "{name}");
        assert_eq!(stage["inputs"] != first[name]["inputs"], follows, "{name}");
    }

    // Another text: what read it and what follows.
    let text = fs::read_to_string(shell.at("text.jsonl")).unwrap();
    fs::write(shell.at("text.jsonl"), text.replace("cat", "dog")).unwrap();
    run(&RECIPE.replace("samples = 8", "samples = 7"));
    let third = records(&shell);
    assert_eq!(third["teacher"], second["teacher"]);
    assert_ne!(third["scores"]["inputs"], second["scores"]["inputs"]);
    assert_ne!(
        third["eval-teacher"]["result"],
        second["eval-teacher"]["result"]
    );

    // A lost artefact is made anew.
    fs::remove_file(shell.at("run/pruned/config.json")).unwrap();
    run(&RECIPE.replace("samples = 8", "samples = 7"));
    assert!(shell.at("run/pruned/config.json").is_file());
    assert_eq!(records(&shell)["teacher"], third["teacher"]);

    // One that is lost or damaged beside those that show a stage is done, too.
    let weights = shell.at("run/pruned/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    run(&RECIPE.replace("samples = 8", "samples = 7"));
    assert_eq!(fs::read(&weights).unwrap(), whole);
    fs::write(&weights, "no weights").unwrap();
    run(&RECIPE.replace("samples = 8", "samples = 7"));
    assert_eq!(fs::read(&weights).unwrap(), whole);
}

#[test]
fn a_training_whose_update_overflows_leaves_no_weights_that_are_not_finite() {
    let shell = Shell::new();
    let train = |flags: &[&str]| {
        let args = [
            "train",
            "--config",
            "@config.json",
            "--out",
            "@trained",
            "--force",
        ];
        shell.run(&[&args, TRAINING, flags].concat())
    };
    // Too few steps for so many skipped in a row, and more than that.
    for flags in [
        ["--tokens", "512", "--lr", "1e308"],
        ["--tokens", "8k", "--lr", "1e308"],
    ] {
        let ran = train(&[&flags[..], &["--checkpoint-every", "1", "--warmup", "0"]].concat());
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let says = [
            "training diverged",
            "not finite after step",
            "no checkpoint was written yet",
        ];
        assert!(
            says.iter().all(|words| ran.stderr.contains(words)),
            "{}",
            ran.stderr
        );
        assert!(
            !shell.at("trained/model.safetensors").exists()
                && !shell.at("trained/checkpoint").exists()
        );
    }
}

#[test]
fn requests_that_would_run_away_or_destroy_are_refused() {
    let shell = Shell::new().with_teacher();
    let refused = |says: &str, args: &[&str]| {
        let ran = shell.run(args);
        assert!(
            matches!(ran.code, Some(1 | 2)) && ran.stderr.contains(says),
            "{args:?}: {:?} {}",
            ran.code,
            ran.stderr
        );
    };
    let score = |flags: &[&'static str]| {
        [
            &[
                "score",
                "@teacher",
                "--data",
                "@text.txt",
                "--seq-len",
                "32",
            ],
            flags,
        ]
        .concat()
    };
    refused(
        "bootstrap: expected at most",
        &score(&["--out", "@s", "--bootstrap", "18446744073709551615"]),
    );
    refused(
        "batch_size: expected at least 1",
        &score(&["--out", "@s", "--batch-size", "0"]),
    );
    refused(
        "--threads: expected at most",
        &["inspect", "@teacher", "--threads", "65535"],
    );
    refused(
        "is a device or a pipe",
        &score(&["--out", "/dev/null", "--force"]),
    );
    fs::write(shell.at("notes"), "mine").unwrap();
    refused(
        "a file that holds no scores",
        &score(&["--out", "@notes", "--force"]),
    );
    refused(
        "exists and is no trace",
        &[
            "inspect",
            "@teacher",
            "--trace",
            "@teacher/model.safetensors",
        ],
    );
    shell.json(&score(&[
        "--out",
        "@s",
        "--batch-size",
        "1000000000000000",
        "--max-memory",
        "8GiB",
    ]));
    let prune = |flags: &[&'static str]| {
        [
            &["prune", "@teacher", "--scores", "@s", "--mlp", "24"],
            flags,
        ]
        .concat()
    };
    refused(
        "rounds: expected at most",
        &prune(&["--dry-run", "--rounds", "18446744073709551615"]),
    );
    refused(
        "is a file, where a folder would be written",
        &prune(&["--out", "@notes", "--force"]),
    );
    assert_eq!(fs::read(shell.at("notes")).unwrap(), b"mine");
    refused(
        "throughput: expected at most",
        &[
            "eval",
            "@teacher",
            "--evaluator",
            "throughput:batch=1000000000000",
        ],
    );
    fs::write(
        shell.at("q.jsonl"),
        r#"{"prompt": "One", "answer": " day"}"#,
    )
    .unwrap();
    refused(
        "two have one name",
        &[
            "eval",
            "@teacher",
            "--task",
            "q=@q.jsonl",
            "--task",
            "q=@q.jsonl",
        ],
    );

    // What waits for a writer, or never ends.
    assert!(
        Command::new("mkfifo")
            .arg(shell.at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    fs::create_dir(shell.at("piped")).unwrap();
    fs::rename(shell.at("pipe"), shell.at("piped/config.json")).unwrap();
    for args in [
        &["inspect", "@piped"][..],
        &["run", "@piped/config.json", "--out", "@r"],
        &["run", "/dev/zero", "--out", "@r"],
        &["recipe", "check", "@piped/config.json"],
        &["compare", "@piped/config.json", "--out", "@r"],
        &[
            "prune",
            "@teacher",
            "--plan",
            "@piped/config.json",
            "--out",
            "@r",
        ],
        &[
            "train",
            "--config",
            "@piped/config.json",
            "--data",
            "@text.txt",
            "--tokens",
            "1k",
            "--out",
            "@r",
        ],
        &[
            "score",
            "@teacher",
            "--data",
            "text:path=@piped/config.json",
            "--out",
            "@r",
        ],
        &["eval", "@teacher", "--task", "t=@piped/config.json"],
        &["eval", "@teacher", "--task", "t=/dev/zero"],
        &["plugins", "check", "@piped/config.json"],
    ] {
        refused("a pipe or a device", args);
    }
}

#[test]
fn a_temperature_near_zero_takes_the_likeliest_token() {
    let shell = Shell::new().with_teacher();
    let generate = |flags: &[&str]| {
        let args = [
            "generate",
            "@teacher",
            "--prompt",
            "One day",
            "--max-new-tokens",
            "8",
        ];
        shell.json(&[&args, flags].concat())["text"].clone()
    };
    let greedy = generate(&[]);
    for temperature in ["1e-46", "1e-300", "1e-9"] {
        assert_eq!(
            generate(&[
                "--temperature",
                temperature,
                "--top-k",
                "18446744073709551615"
            ]),
            greedy,
            "{temperature}"
        );
    }
}

#[test]
fn a_failed_stage_is_named_and_runs_again_later() {
    let shell = Shell::new();
    let stages: Vec<&str> = RECIPE.split("[[stages]]").take(4).collect();
    let recipe = stages.join("[[stages]]");
    fs::write(
        shell.at("recipe.toml"),
        recipe.replace("ratio = 0.5", "mlp = 30"),
    )
    .unwrap();
    let ran = shell.run(&["run", "@recipe.toml", "--out", "@run", "--quiet"]);
    assert_eq!(ran.code, Some(2));
    insta::assert_snapshot!(
        ran.stderr.trim_end(),
        @"error: stages[2] (pruned): plan: mlp: 30 is not legal, expected a multiple of 4 up to \
          48; nearest: --mlp 32 or --mlp 28"
    );
    assert!(records(&shell)["pruned"].get("result").is_none() && !shell.at("run/pruned").exists());
    fs::write(shell.at("recipe.toml"), &recipe).unwrap();
    shell.json(&["run", "@recipe.toml", "--out", "@run"]);
    assert_keys(&records(&shell)["pruned"], &["result"]);
}

#[test]
fn the_command_lines_seed_takes_the_place_of_a_comparisons() {
    let shell = Shell::new().with_teacher();
    let spec = r#"
        model = "teacher"
        chain = ["train"]
        seeds = [3, 4]
        [[rows]]
        name = "trained"
        train = { data = ["text.txt"], tokens = 256, seq_len = 32, batch_size = 4 }
    "#;
    fs::write(shell.at("spec.toml"), spec).unwrap();
    let compare = |flags: &[&str]| {
        shell.json(&[&["compare", "@spec.toml", "--out", "@compared"], flags].concat())
    };
    assert_eq!(compare(&[])["seeds"], json!([3, 4]));
    let other = compare(&["--seed", "7"]);
    assert_eq!(
        (&other["seeds"], &other["rows"][0]["status"]),
        (&json!([7]), &json!("done"))
    );
    // A job for each seed; what it could have gone on from went when it ended.
    let entries = fs::read_dir(shell.at("compared")).unwrap();
    let trained: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(trained.len(), 3);
    for path in trained {
        assert!(path.join("model.safetensors").is_file());
        assert!(!path.join("checkpoint").exists(), "{}", path.display());
    }
}

#[test]
fn a_folder_that_holds_no_run_is_not_written_into() {
    let shell = Shell::new();
    fs::write(shell.at("recipe.toml"), RECIPE).unwrap();
    fs::create_dir(shell.at("mine")).unwrap();
    insta::assert_snapshot!(
        shell.error(2, &["run", "@recipe.toml", "--out", "@mine"]),
        @"error: recipe: the output `DIR/mine` exists; give another name or --force to replace it"
    );
    assert_eq!(fs::read_dir(shell.at("mine")).unwrap().count(), 0);
}

#[test]
fn a_task_is_measured_by_what_its_fields_ask_for() {
    let shell = Shell::new().with_teacher();
    let write = |name: &str, record: Value| {
        fs::write(shell.at(name), format!("{record}\n{record}")).unwrap()
    };
    write(
        "choice.jsonl",
        json!({ "context": "One day, the cat", "choices": ["saw a ball", "x"], "gold": 0 }),
    );
    write(
        "word.jsonl",
        json!({ "context": "One day, the cat saw a", "target": "ball" }),
    );
    write(
        "blank.jsonl",
        json!({ "sentence": "A _ saw a ball.", "option1": "cat", "option2": "x", "answer": "1" }),
    );
    write(
        "exact.jsonl",
        json!({ "prompt": "One day,", "completion": " the cat" }),
    );
    write(
        "pages.jsonl",
        json!({ "text": "One day, the cat saw a ball." }),
    );
    let tasks = [
        "choice=@choice.jsonl",
        "word=@word.jsonl",
        "blank=@blank.jsonl",
        "exact=@exact.jsonl",
        "pages=@pages.jsonl",
        "book=@text.txt",
        "few=rolling_perplexity:documents=1,path=@pages.jsonl",
        "speed=throughput:",
    ];
    let words: Vec<&str> = tasks.iter().flat_map(|task| ["--task", task]).collect();
    let tasks = shell.json(&[&["eval", "@teacher"], &words[..]].concat())["tasks"].clone();
    let choosing = [
        "acc",
        "acc_norm",
        "acc_norm_stderr",
        "acc_stderr",
        "n_questions",
    ];
    let rolling = [
        "bits_per_byte",
        "byte_perplexity",
        "n_bytes",
        "n_documents",
        "n_tokens",
        "n_words",
        "word_perplexity",
    ];
    assert_keys(&tasks["choice"], &choosing);
    assert_keys(&tasks["blank"], &choosing);
    assert_keys(
        &tasks["word"],
        &["acc", "acc_stderr", "n_questions", "perplexity"],
    );
    assert_keys(&tasks["exact"], &["exact_match", "n_questions"]);
    for (name, n_documents) in [("pages", 2), ("book", 1), ("few", 1)] {
        assert_keys(&tasks[name], &rolling);
        assert_eq!(tasks[name]["n_documents"], json!(n_documents), "{name}");
    }
    assert_eq!(
        (&tasks["few"]["n_words"], &tasks["few"]["n_bytes"]),
        (&json!(7), &json!(28))
    );
    assert!(tasks["speed"]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    // In a recipe, paths are beside it, and a changed file is another stage.
    let recipe = "[[stages]]\nname = \"quality\"\ndo = \"eval\"\nmodel = \"teacher\"\ntasks = \
                  [\"one=rolling_perplexity:path=pages.jsonl\", \"other=word.jsonl\"]\n";
    fs::write(shell.at("recipe.toml"), recipe).unwrap();
    let run = || {
        shell.json(&["run", "@recipe.toml", "--out", "@run"])["stages"][0]["result"]["tasks"]
            .clone()
    };
    assert_eq!(run()["one"]["n_words"], json!(14));
    write("pages.jsonl", json!({ "text": "One day, the cat" }));
    assert_eq!(run()["one"]["n_words"], json!(8));
}

#[test]
fn sentences_are_labelled_by_their_neighbours() {
    let shell = Shell::new().with_teacher();
    let line = |(text, label): (&str, &str)| json!({ "text": text, "label": label }).to_string();
    let lines = |items: &[(&str, &str)]| {
        items
            .iter()
            .copied()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let items = [
        ("the cat saw a ball", "cat"),
        ("a dog lost", "dog"),
        ("the cat saw a ball", "cat"),
        ("a dog lost", "dog"),
    ];
    fs::create_dir(shell.at("data")).unwrap();
    fs::write(shell.at("data/items.jsonl"), lines(&items)).unwrap();
    fs::write(shell.at("data/reference.jsonl"), lines(&items[..1])).unwrap();
    // Each among the others, where nothing else is given: its twin is its nearest.
    let report = shell.json(&[
        "eval",
        "@teacher",
        "--evaluator",
        "nearest_neighbour:path=@data/items.jsonl",
    ]);
    assert_eq!(
        (&report["accuracy"], &report["n_items"]),
        (&json!(1.0), &json!(4))
    );
    let report = shell.json(&["eval", "@teacher", "--task", "pets=@data/items.jsonl"]);
    assert_eq!(
        report["tasks"]["pets"],
        json!({ "accuracy": 1.0, "n_items": 4 })
    );
    // Both files of a recipe lie beside it, and are inputs of its stage.
    let recipe = "[[stages]]\nname = \"quality\"\ndo = \"eval\"\nmodel = \"teacher\"\nevaluators = \
                  [{ type = \"nearest_neighbour\", path = \"data/items.jsonl\", \
                  reference = \"data/reference.jsonl\" }]\n";
    fs::write(shell.at("recipe.toml"), recipe).unwrap();
    let run = || {
        shell.json(&["run", "@recipe.toml", "--out", "@run"])["stages"][0]["result"]["accuracy"]
            .clone()
    };
    assert_eq!(run(), json!(0.5));
    fs::write(shell.at("data/reference.jsonl"), lines(&items[1..2])).unwrap();
    assert_eq!(run(), json!(0.5));
    fs::write(shell.at("data/reference.jsonl"), lines(&items[..2])).unwrap();
    assert_eq!(run(), json!(1.0));
    fs::remove_file(shell.at("data/reference.jsonl")).unwrap();
    assert!(
        shell
            .error(1, &["run", "@recipe.toml", "--out", "@run"])
            .contains("reference.jsonl")
    );
}

#[test]
fn recipes_say_where_they_are_wrong() {
    let shell = Shell::new();
    let error = |text: &str| {
        fs::write(shell.at("recipe.toml"), text).unwrap();
        let error = shell.error(2, &["run", "@recipe.toml", "--out", "@run"]);
        assert!(!shell.at("run").exists());
        error
    };
    insta::assert_snapshot!(
        error(&RECIPE.replace("do = \"score\"", "do = \"scare\"")),
        @"error: DIR/recipe.toml: stages[1] (scores): recipe: no stage is called `scare`; known: \
          score, blocks, prune, train, distill, eval, search, generate"
    );
    insta::assert_snapshot!(
        error(&RECIPE.replace("samples", "sample")),
        @"error: DIR/recipe.toml: stages[1] (scores): recipe: no option is called `sample`; known: \
          model, data, metrics, samples, sampling, seq_len, batch_size, field, form, token_type, \
          pack, mask, attend, date, bootstrap, stream, max_memory"
    );
    insta::assert_snapshot!(
        error(&RECIPE.replace("\"scores\"", "\"teacher\"")),
        @"error: recipe: DIR/recipe.toml: two stages are called `teacher`"
    );
    insta::assert_snapshot!(
        error("seed = -1\nstages = []"),
        @"error: recipe: DIR/recipe.toml: seed: expected a whole number, got -1"
    );
    insta::assert_snapshot!(
        error("[[stages]\n"),
        @r"
        error: recipe: DIR/recipe.toml: TOML parse error at line 1, column 10
          |
        1 | [[stages]
          |          ^
        unclosed array table, expected `]`
        "
    );
}

// --- what can be asked
// -----------------------------------------------------------------------------------------------

#[test]
fn inspect_describes_a_model() {
    let shell = Shell::new().with_teacher();
    let report = shell.json(&[
        "inspect",
        "@teacher",
        "--seq-len",
        "10",
        "--batch-size",
        "3",
    ]);
    assert_keys(
        &report,
        &["architecture", "n_params", "dims", "memory", "legal_sizes"],
    );
    let dims = json!({
        "hidden": 32, "mlp": 48, "heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 3, "vocab": 512
    });
    assert_eq!(
        (&report["architecture"], &report["dims"]),
        (&json!("llama"), &dims)
    );
    let embeddings = 2 * 512 * 32;
    let layer = 32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32;
    assert_eq!(report["n_params"], json!(embeddings + 3 * layer + 32));
    assert_eq!(
        report["memory"]["weights_bytes"],
        json!(4 * (embeddings + 3 * layer + 32))
    );
    // Keys and values, two bytes, layers, heads, channels, tokens, sequences.
    assert_eq!(
        report["memory"]["kv_cache_bytes"],
        json!(2 * 2 * 3 * 2 * 8 * 10 * 3)
    );
    let table = shell.run(&["inspect", "@teacher"]);
    assert!(
        table.code == Some(0)
            && table.stdout.contains("llama")
            && table.stdout.contains("multiples of 4")
    );
}

#[test]
fn inspect_and_prune_say_how_a_model_can_be_split_and_who_refuses_it() {
    let shell = Shell::new().with_teacher();
    let line = |text: &str, begin: &str| {
        let found = text
            .lines()
            .find(|line| line.trim_start().starts_with(begin));
        found
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let inspected = shell.run(&["inspect", "@teacher"]);
    assert_eq!(
        line(&inspected.stdout, "tensor parallel"),
        "tensor parallel 1, 2, 4",
        "{}",
        inspected.stdout
    );
    assert_eq!(
        line(&inspected.stdout, "optimum"),
        "",
        "{}",
        inspected.stdout
    );
    let kept = json!({ "heads.0": [0, 2], "heads.1": [1, 3], "heads.2": [0, 3] });
    fs::write(shell.at("plan.json"), json!({ "kept": kept }).to_string()).unwrap();
    let pruned = shell.run(&[
        "prune",
        "@teacher",
        "--plan",
        "@plan.json",
        "--out",
        "@student",
    ]);
    assert_eq!(
        line(&pruned.stdout, "tensor parallel:"),
        "tensor parallel: 1, 2",
        "{}",
        pruned.stdout
    );
    let refusal = line(&pruned.stdout, "optimum: ORTModelForCausalLM");
    assert!(
        refusal.contains("heads x head_dim is 16, hidden 32") && refusal.contains("--square"),
        "{refusal}"
    );
    assert_eq!(
        pruned.stderr.matches("warning: optimum: refuses").count(),
        1,
        "{}",
        pruned.stderr
    );
    let inspected = shell.run(&["inspect", "@student"]);
    assert_eq!(
        line(&inspected.stdout, "tensor parallel"),
        "tensor parallel 1, 2"
    );
    assert_eq!(
        line(&inspected.stdout, "optimum: ORTModelForCausalLM"),
        refusal
    );
}

#[test]
fn square_is_a_flag_of_search_and_a_key_of_recipes() {
    let shell = Shell::new().with_teacher();
    shell.json(&[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "4",
        "--seq-len",
        "16",
        "--out",
        "@s",
    ]);
    let search = [
        "search",
        "@teacher",
        "--grid",
        "hidden=16,24,32",
        "--grid",
        "heads=2,4",
        "--grid",
        "mlp=24,32",
    ];
    let search = [&search[..], &["--dry-run"]].concat();
    let shapes = |report: &Value| -> Vec<(u64, u64)> {
        let size = |row: &Value, kind: &str| row["sizes"][kind].as_u64().unwrap();
        report["candidates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (size(row, "hidden"), size(row, "heads")))
            .collect()
    };
    let is_square = |&(hidden, heads): &(u64, u64)| hidden == heads * 8;
    let free = shapes(&shell.json(&search));
    assert!(!free.iter().all(is_square), "{free:?}");
    let refused = free.iter().filter(|shape| !is_square(shape)).count();
    let said = shell.run(&search).stderr;
    let warning = format!(
        "warning: optimum: refuses {refused} of {} candidates",
        free.len()
    );
    assert!(
        said.contains(&warning) && said.matches("warning: ").count() == 1,
        "{warning}: {said}"
    );
    let square = shell.run(&[&search[..], &["--square", "--json"]].concat());
    assert!(!square.stderr.contains("warning: "), "{}", square.stderr);
    let square = shapes(&serde_json::from_str(&square.stdout).unwrap());
    assert!(square.iter().all(is_square), "{square:?}");
    assert_eq!(
        square
            .iter()
            .map(|shape| shape.0)
            .collect::<std::collections::BTreeSet<_>>(),
        [16, 32].into()
    );

    let pruned = |name: &str, options: &str| {
        format!(
            "[[stages]]\nname = \"{name}\"\ndo = \"prune\"\nmodel = \"teacher\"\nscores \
             = \"s\"\n{options}\n"
        )
    };
    let found = r#"
        [[stages]]
        name = "found"
        do = "search"
        model = "teacher"
        scores = "s"
        square = true
        grid = { hidden = [16, 24, 32], heads = [2, 4], mlp = [24] }
        data = ["text.txt"]
        tokens = 512
        seq_len = 16
        batch_size = 4
        rungs = 1
    "#;
    let stages = [
        pruned("square", "hidden = 16\nsquare = true"),
        pruned("narrow", "hidden = 16"),
        pruned("less-narrow", "hidden = 24"),
        found.to_owned(),
    ];
    fs::write(shell.at("recipe.toml"), stages.concat()).unwrap();
    let ran = shell.run(&["run", "@recipe.toml", "--out", "@run"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let sizes = |name: &str| shell.value(&format!("run/{name}/plan.json"))["sizes"].clone();
    assert_eq!(
        (&sizes("square")["hidden"], &sizes("square")["heads"]),
        (&json!(16), &json!(2))
    );
    assert_eq!(
        (&sizes("narrow")["hidden"], &sizes("narrow")["heads"]),
        (&json!(16), &json!(4))
    );
    assert!(
        shapes(&shell.value("run/found/search.json"))
            .iter()
            .all(is_square)
    );
    // Two of its jobs make what optimum refuses: once is enough.
    assert_eq!(
        ran.stderr.matches("optimum: refuses").count(),
        1,
        "{}",
        ran.stderr
    );
    let record = shell.value("run/run.json");
    let warned = record["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|stage| stage.get("warnings").is_some());
    assert!(warned.count() >= 1, "{record}");
}

#[test]
fn sizes_are_asked_for_by_dim_on_the_command_line_and_in_recipes() {
    let shell = Shell::new().with_teacher();
    shell.json(&[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "4",
        "--seq-len",
        "16",
        "--out",
        "@s",
    ]);
    let prune = ["prune", "@teacher", "--scores", "@s", "--dry-run"];
    let kept = |flags: &[&str]| shell.json(&[&prune, flags].concat())["kept"].clone();
    let short = kept(&["--mlp", "24", "--heads", "2", "--layers", "2"]);
    assert_eq!(
        kept(&["--size", "mlp=24,heads=2", "--size", "layers=2"]),
        short
    );
    assert_eq!(
        kept(&[
            "--size", "depth=2", "--size", "mlp=24", "--heads", "2", "--size", "heads=2"
        ]),
        short
    );
    let held = shell.json(&[&prune[..], &["--ratio", "0.75", "--size", "mlp=48"]].concat());
    assert_eq!(held["sizes"]["mlp"], 48);
    let error = |flags: &[&str]| shell.error(2, &[&prune, flags].concat());
    for (flags, says) in [
        (
            &["--size", "mlp=24", "--mlp", "32"][..],
            "size: `mlp` is given twice, 32 and 24; give one of them",
        ),
        (
            &["--size", "depth=2", "--layers", "1"],
            "size: `depth` is given twice, 1 and 2",
        ),
        (
            &["--size", "mlp=24", "--size", "mlp=32"],
            "--size: `mlp` is given twice, 24 and 32",
        ),
        (
            &["--size", "experts=4"],
            "no axis of this model is called `experts`; known: depth, heads, hidden, kv_heads, \
             mlp, rope_pairs",
        ),
        (
            &["--size", "mlp=30"],
            "mlp: 30 is not legal, expected a multiple of 4 up to 48; nearest: --mlp 32 or --mlp \
             28",
        ),
        (
            &["--size", "24"],
            "--size: expected DIM=N such as mlp=96,heads=4, got `24`",
        ),
        (&["--size", "=24"], "--size: expected DIM=N"),
        (
            &["--size", "mlp=24,32"],
            "--size mlp: expected one whole number, got `24,32`",
        ),
        (
            &["--size", "mlp=-1"],
            "--size mlp: expected one whole number, got `-1`",
        ),
        (
            &["--size", "mlp=24", "--ratio", "0.5", "--params", "10k"],
            "say once how large",
        ),
    ] {
        let said = error(flags);
        assert!(said.contains(says), "{flags:?}: {said}");
    }

    let search = |flags: &[&str]| {
        shell.json(
            &[
                &["search", "@teacher", "--scores", "@s", "--dry-run"],
                flags,
            ]
            .concat(),
        )
    };
    let (grid, size) = (
        search(&[
            "--grid",
            "hidden=16,24",
            "--grid",
            "mlp=24-28/4",
            "--grid",
            "layers=2",
        ]),
        search(&["--size", "hidden=16,24,mlp=24-28/4", "--size", "layers=2"]),
    );
    assert_eq!(grid["candidates"], size["candidates"]);
    assert_eq!(size["candidates"].as_array().unwrap().len(), 4);
    let twice = [
        "search",
        "@teacher",
        "--dry-run",
        "--grid",
        "layers=2,3",
        "--size",
        "depth=2",
    ];
    assert!(
        shell
            .error(2, &twice)
            .contains("grid, size: `depth` is given twice")
    );

    let stage = |options: &str| {
        let name = format!(
            "[[stages]]\nname = \"a\"\ndo = \"prune\"\nmodel = \"teacher\"\nscores \
             = \"s\"\n{options}\n"
        );
        fs::write(shell.at("recipe.toml"), name).unwrap();
    };
    stage("size = { mlp = 24, heads = 2, layers = 2 }");
    shell.json(&["run", "@recipe.toml", "--out", "@run"]);
    assert_eq!(shell.value("run/a/plan.json")["kept"], short);
    stage("size = { mlp = 24 }\nmlp = 32");
    let said = shell.error(2, &["recipe", "check", "@recipe.toml"]);
    assert!(
        said.contains("stages[0] (a): recipe: size: `mlp` is given twice, 32 and 24"),
        "{said}"
    );
}

#[test]
fn inspect_describes_a_config_without_weights() {
    let shell = Shell::new();
    let config = json!({
        "model_type": "nemotron", "hidden_size": 6144, "intermediate_size": 24576,
            "num_hidden_layers": 32,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256000,
        "max_position_embeddings": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16"
    });
    fs::create_dir(shell.at("nemotron")).unwrap();
    fs::write(shell.at("nemotron/config.json"), config.to_string()).unwrap();
    let report = shell.json(&["inspect", "@nemotron"]);
    // Nemotron-4 15B.
    assert_eq!(report["n_params"], json!(15_628_775_424_u64));
    assert_eq!(report["dims"]["vocab"], json!(256_000));
    assert_eq!(
        report["memory"]["weights_bytes"],
        json!(2 * 15_628_775_424_u64)
    );
    assert_eq!(report["memory"]["dtype"], json!("bf16"));
    assert_eq!(report["legal_sizes"]["hidden"]["multiple_of"], json!(64));
    let table = shell.run(&["inspect", "@nemotron"]);
    assert!(
        table.code == Some(0) && table.stderr.contains("no weights"),
        "{}",
        table.stderr
    );
}

#[test]
fn memory_that_pruning_cannot_keep_to_is_refused_before_it_starts() {
    let shell = Shell::new().with_teacher();
    shell.json(&[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "4",
        "--out",
        "@s",
    ]);
    let prune = [
        "prune",
        "@teacher",
        "--scores",
        "@s",
        "--mlp",
        "24",
        "--out",
        "@student",
        "--max-memory",
    ];
    let ran = shell.run(&[&prune[..], &["8MiB"]].concat());
    assert_eq!(ran.code, Some(2));
    assert!(!shell.at("student").exists());
    let needed = ran
        .stderr
        .split("needs ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert!(
        ran.stderr.contains("8MiB were given")
            && ran.stderr.contains(&format!("give {needed} or more"))
    );
    reconstructed_within_a_limit(&shell, &prune);
    // What it asks for, with room for another run's other pages, is enough.
    let needed: u64 = needed.trim_end_matches("MiB").parse().unwrap();
    shell.json(&[&prune[..], &[&format!("{}MiB", needed + 16)]].concat());
}

/// What a reconstruction needs is said; within it, it gives the bytes of one without a limit.
fn reconstructed_within_a_limit(shell: &Shell, prune: &[&str]) {
    let text = ["--data", "@text.txt", "--samples", "12", "--seq-len", "16"];
    let error = shell.error(2, &[prune, &["300MiB"], &text].concat());
    assert!(
        error.contains("max_memory: reconstructing this model needs")
            && error.contains("300MiB were given")
            && error.contains("--batch-size"),
        "{error}"
    );
    shell.json(&[prune, &["4GiB"], &text].concat());
    assert!(!shell.at(".student.reconstructed-0").exists());
    let weights = || fs::read(shell.at("student/model.safetensors")).unwrap();
    let bounded = weights();
    fs::remove_dir_all(shell.at("student")).unwrap();
    let (_, unbounded) = prune.split_last().unwrap();
    shell.json(&[unbounded, &text].concat());
    assert!(weights() == bounded);
    fs::remove_dir_all(shell.at("student")).unwrap();
}

#[test]
fn streamed_scoring_gives_the_file_of_the_one_in_memory_within_its_limit() {
    let shell = Shell::new().with_teacher();
    let score = [
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "12",
        "--seq-len",
        "16",
        "--bootstrap",
        "5",
    ];
    let metrics = [
        "--metric",
        "activation",
        "--metric",
        "magnitude",
        "--metric",
        "perplexity:span=2",
    ];
    shell.json(&[&score[..], &metrics, &["--out", "@whole"]].concat());
    shell.json(
        &[
            &score[..],
            &metrics,
            &["--out", "@streamed", "--stream", "--max-memory", "4GiB"],
        ]
        .concat(),
    );
    assert!(fs::read(shell.at("whole")).unwrap() == fs::read(shell.at("streamed")).unwrap());
    assert!(!shell.at(".streamed.streamed").exists());
    for more in [&["--stream"][..], &[]] {
        let error = shell.error(
            2,
            &[
                &score[..],
                more,
                &["--out", "@none", "--max-memory", "10MiB"],
            ]
            .concat(),
        );
        assert!(
            error.contains("max_memory: scoring needs") && error.contains("10MiB were given"),
            "{error}"
        );
    }
    let error = shell.error(
        2,
        &[
            &score[..],
            &["--metric", "taylor", "--stream", "--out", "@none"],
        ]
        .concat(),
    );
    assert!(
        error.contains("need the whole model in memory; leave --stream out"),
        "{error}"
    );
    assert!(!shell.at("none").exists());

    // What the resamples say of close calls stands in the plan.
    let prune = [
        "prune",
        "@teacher",
        "--scores",
        "@whole",
        "--by",
        "activation",
        "--mlp",
        "24",
    ];
    shell.json(&[&prune[..], &["--bootstrap", "5", "--out", "@student"]].concat());
    let plan = shell.value("student/plan.json");
    assert!(
        plan["explained"]["mlp.0"]["stable"].is_number(),
        "{}",
        plan["explained"]["mlp.0"]
    );
    let error = shell.error(
        2,
        &[&prune[..], &["--bootstrap", "6", "--dry-run"]].concat(),
    );
    assert!(error.contains("minitron score --bootstrap 6"), "{error}");
}

#[test]
fn rounds_score_the_student_of_the_round_before() {
    let shell = Shell::new().with_teacher();
    shell.json(&[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "8",
        "--seq-len",
        "16",
        "--out",
        "@s",
    ]);
    let prune = [
        "prune", "@teacher", "--scores", "@s", "--mlp", "16", "--hidden", "16",
    ];
    let text = ["--data", "@text.txt", "--samples", "8", "--seq-len", "16"];
    let error = shell.error(
        2,
        &[&prune[..], &["--rounds", "2", "--out", "@none"]].concat(),
    );
    assert!(
        error.contains("rounds: scoring between rounds needs calibration text"),
        "{error}"
    );
    shell.json(&[&prune[..], &["--out", "@once"]].concat());
    shell.json(&[&prune[..], &text, &["--rounds", "3", "--out", "@thrice"]].concat());
    let (once, thrice) = (
        shell.value("once/plan.json"),
        shell.value("thrice/plan.json"),
    );
    assert_eq!(once["sizes"], thrice["sizes"]);
    assert_ne!(once["kept"], thrice["kept"]);
    // The default metrics include one of layers, of which there is none to choose here.
    let axes = [
        "--axis", "mlp", "--axis", "hidden", "--rounds", "2", "--out", "@twice",
    ];
    shell.json(&[&prune[..], &text, &axes].concat());
    shell.json(&["eval", "@thrice", "--data", "@text.txt", "--seq-len", "16"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_written_to_its_end_is_named_and_the_output_before_stays() {
    let shell = Shell::new().with_teacher();
    shell.json(&[
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--samples",
        "4",
        "--out",
        "@s",
    ]);
    shell.json(&[
        "prune", "@teacher", "--scores", "@s", "--mlp", "24", "--out", "@student",
    ]);
    let before = fs::read(shell.at("student/model.safetensors")).unwrap();
    // A limit on the size of files ends a write as a full disk does: 16 blocks of 512 bytes or 1
    // KiB.
    let limited = Command::new("sh")
        .args(["-c", "ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(minitron::binary())
        .args([
            "prune".as_ref(),
            shell.at("teacher").as_os_str(),
            "--scores".as_ref(),
            shell.at("s").as_os_str(),
        ])
        .args(["--mlp", "32", "--force", "--quiet", "--out"])
        .arg(shell.at("student"))
        .output()
        .unwrap();
    let stderr = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("model.safetensors: File too large"),
        "{stderr}"
    );
    assert!(fs::read(shell.at("student/model.safetensors")).unwrap() == before);
    let names: Vec<_> = fs::read_dir(shell.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains(".part")),
        "{names:?}"
    );
}

#[test]
fn plugins_are_listed_and_shown() {
    let shell = Shell::new();
    let list = shell.json(&["plugins", "list"]);
    let plugins = list["plugins"].as_array().unwrap();
    let mut kinds = Vec::new();
    for plugin in plugins {
        assert_keys(plugin, &["kind", "name", "summary", "origin"]);
        // What is shown of each is looked at in `contract`; here, one of a kind.
        if kinds.contains(&&plugin["kind"]) {
            continue;
        }
        kinds.push(&plugin["kind"]);
        let name = format!(
            "{}/{}",
            plugin["kind"].as_str().unwrap(),
            plugin["name"].as_str().unwrap()
        );
        let shown = shell.json(&["plugins", "show", &name]);
        assert_keys(
            &shown,
            &[
                "kind", "name", "summary", "origin", "source", "defaults", "example", "schema",
            ],
        );
        assert!(
            shown["example"]
                .as_str()
                .unwrap()
                .starts_with(plugin["name"].as_str().unwrap())
        );
    }
    let has = |kind: &str, name: &str| {
        plugins
            .iter()
            .any(|p| p["kind"] == kind && p["name"] == name)
    };
    for (kind, name) in [
        ("architecture", "llama"),
        ("architecture", "gpt2"),
        ("architecture", "bert"),
        ("architecture", "nemotron"),
        ("axis", "mlp"),
        ("axis", "heads"),
        ("axis", "hidden"),
        ("axis", "depth"),
        ("axis", "kv_heads"),
        ("axis", "rope_pairs"),
        ("importance", "activation"),
        ("importance", "block_influence"),
        ("allocator", "fixed"),
        ("allocator", "budget"),
        ("allocator", "ratio"),
        ("allocator", "memory"),
        ("loss", "forward_kl"),
        ("loss", "cross_entropy"),
        ("loss", "reverse_kl"),
        ("loss", "jensen_shannon"),
        ("loss", "top_k_kl"),
        ("loss", "logit_mse"),
        ("loss", "logit_cosine"),
        ("state_loss", "hidden_state"),
        ("state_loss", "embedding"),
        ("state_loss", "mlp_input"),
        ("state_loss", "attention_relation"),
        ("evaluator", "perplexity"),
        ("evaluator", "multiple_choice"),
        ("corpus", "text"),
        ("corpus", "jsonl"),
        ("corpus", "parquet"),
        ("corpus", "tokens"),
        ("corpus", "stories"),
    ] {
        assert!(has(kind, name), "{kind}/{name} is not registered");
    }
    assert!(
        shell
            .run(&["plugins", "list"])
            .stdout
            .contains("block_influence")
    );
    assert!(
        shell
            .run(&["plugins", "show", "importance/activation"])
            .stdout
            .contains("arXiv 2407.14679")
    );
}

#[test]
fn every_command_explains_itself() {
    let shell = Shell::new();
    let help = shell.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    let commands = [
        "inspect",
        "plugins",
        "plugins list",
        "plugins show",
        "eval",
        "score",
        "prune",
        "train",
        "distill",
        "generate",
        "run",
        "demo",
    ];
    for command in commands {
        let ran = shell.run(&[&command.split(' ').collect::<Vec<_>>()[..], &["--help"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{command}");
        assert!(
            ran.stdout.contains(&format!("Usage: minitron {command}")),
            "{}",
            ran.stdout
        );
        for common in [
            "--device",
            "--dtype",
            "--threads",
            "--seed",
            "--json",
            "--quiet",
        ] {
            assert!(ran.stdout.contains(common), "{command}: {common}");
        }
        let first = command.split(' ').next().unwrap();
        assert!(
            help.stdout
                .lines()
                .any(|line| line.trim_start().starts_with(first)),
            "{first}"
        );
    }
    assert!(shell.run(&["--version"]).stdout.starts_with("minitron "));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["plugins", "list"][..],
        &["plugins", "list", "--json"],
        &["--help"],
    ] {
        let mut command = Command::new(minitron::binary());
        let mut child = command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Dropped before the first byte is read.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    }
}

// --- errors
// ----------------------------------------------------------------------------------------------------------

#[test]
fn wrong_requests_are_answered_with_code_2() {
    let shell = Shell::new().with_teacher();
    let error = |args: &[&str]| shell.error(2, args);
    insta::assert_snapshot!(
        error(&["plugins", "show", "importance/activaton"]),
        @"error: recipe: no importance plugin is called `activaton`; known: activation, …"
    );
    insta::assert_snapshot!(
        error(&["plugins", "show", "metric/activation"]),
        @"error: recipe: no kind is called `metric`; known: architecture, axis, importance, \
          allocator, reconstruction, loss, state_loss, evaluator, corpus"
    );
    insta::assert_snapshot!(
        error(&["plugins", "show", "activation"]),
        @"error: recipe: expected KIND/NAME, for example importance/activation, got `activation`"
    );
    insta::assert_snapshot!(
        error(&["eval", "@teacher"]),
        @"error: recipe: nothing to evaluate on; give data, a task or an evaluator"
    );
    insta::assert_snapshot!(
        error(&["--device", "gpu", "inspect", "@teacher"]),
        @"error: recipe: --device: expected auto, cpu, cuda or cuda:N, got `gpu`"
    );
    insta::assert_snapshot!(
        error(&["--dtype", "int8", "inspect", "@teacher"]),
        @"
    error: invalid value 'int8' for '--dtype <TYPE>': recipe: no type to compute in is called \
    `int8`; known: f32, bf16, f16

    For more information, try '--help'.
    "
    );
    insta::assert_snapshot!(
        error(&["--threads", "0", "inspect", "@teacher"]),
        @"error: recipe: --threads: expected at least 1"
    );
    insta::assert_snapshot!(
        error(&["prune", "@teacher", "--out", "@o", "--mlp", "24"]),
        @"error: recipe: scores: needed to rank by; `minitron score` writes them"
    );
    insta::assert_snapshot!(
        error(&["prune", "@teacher", "--out", "@o"]),
        @"error: recipe: say once how large the student shall be: sizes (hidden, mlp, heads, \
          kv_heads, layers, size), params, active_params, ratio or memory (sizes beside them are held), \
          allocator, or plan"
    );
    let score = [
        "score",
        "@teacher",
        "--data",
        "@text.txt",
        "--out",
        "@o",
        "--metric",
    ];
    let score = |metric: &str| error(&[&score[..], &[metric]].concat());
    insta::assert_snapshot!(
        score("activaton"),
        @"error: metrics[0]: recipe: no importance plugin is called `activaton`; known: \
          activation, …"
    );
    insta::assert_snapshot!(
        score("activation:batch=l3"),
        @"error: metrics[0]: recipe: importance `activation`: unknown variant `l3`, expected one \
          of `mean`, `l2`, `var`"
    );
    insta::assert_snapshot!(
        score("activation:bach=l2"),
        @"error: metrics[0]: recipe: importance `activation`: unknown field `bach`, expected one \
          of `batch`, `seq`, `site`"
    );
    insta::assert_snapshot!(
        score("activation:batch"),
        @r"
        error: invalid value 'activation:batch' for '--metric <METRICS>': recipe: `activation:batch`: expected `name` or `name:key=value,key=value`, got `batch`

        For more information, try '--help'.
        "
    );
    insta::assert_snapshot!(
        score("block_influence:x=1"),
        @"error: metrics[0]: recipe: importance `block_influence`: unknown field `x`, expected \
          `span`"
    );
    insta::assert_snapshot!(
        error(&["train", "@teacher", "--data", "@a", "--out", "@o", "--tokens", "many"]),
        @r"
        error: invalid value 'many' for '--tokens <TOKENS>': recipe: expected a number such as 4B, 4.19B, 350M or 4096, got `many`

        For more information, try '--help'.
        "
    );
    insta::assert_snapshot!(
        error(&["eval", "@teacher", "--data", "@text.txt#1..x"]),
        @r"
        error: invalid value 'DIR/text.txt#1..x' for '--data <DATA>...': recipe: `#1..x`: expected a range of documents such as #..-100, #-100.. or #0..50

        For more information, try '--help'.
        "
    );
    insta::assert_snapshot!(
        error(&["frobnicate"]),
        @r"
        error: unrecognized subcommand 'frobnicate'

        Usage: minitron [OPTIONS] <COMMAND>

        For more information, try '--help'.
        "
    );
    assert!(!shell.at("o").exists());
}

#[test]
fn starting_a_run_over_never_removes_what_its_recipe_names() {
    let shell = Shell::new().with_teacher();
    let recipe = "[[stages]]\nname = \"say\"\ndo = \"generate\"\nmodel = \"MODEL\"\nmax_new_tokens \
                  = 1\nprompt = \"A\"\n";
    fs::write(shell.at("recipe.toml"), recipe.replace("MODEL", "teacher")).unwrap();
    shell.json(&["run", "@recipe.toml", "--out", "@run"]);
    fs::rename(shell.at("teacher"), shell.at("run/mine")).unwrap();
    fs::write(shell.at("recipe.toml"), recipe.replace("MODEL", "run/mine")).unwrap();
    let error = shell.error(2, &["run", "@recipe.toml", "--out", "@run", "--force"]);
    assert!(
        error.contains("holds the input") && shell.at("run/mine/model.safetensors").is_file(),
        "{error}"
    );
    fs::rename(shell.at("recipe.toml"), shell.at("run/recipe.toml")).unwrap();
    shell.error(2, &["run", "@run/recipe.toml", "--out", "@run", "--force"]);
    assert!(shell.at("run/recipe.toml").is_file());
}

#[test]
fn failed_runs_are_answered_with_code_1() {
    let shell = Shell::new().with_teacher();
    insta::assert_snapshot!(
        shell.error(2, &["run", "@absent.toml", "--out", "@o"]),
        @"error: recipe: DIR/absent.toml: no such recipe"
    );
    let error = |args: &[&str]| shell.error(1, args);
    insta::assert_snapshot!(
        error(&["inspect", "@absent"]),
        @"error: checkpoint: DIR/absent: no such model folder; expected one with config.json and \
          model.safetensors, or a hub id `org/name`"
    );
    insta::assert_snapshot!(
        error(&["generate", "@"]),
        @"error: checkpoint: DIR/: no weights; expected model.safetensors or \
          model.safetensors.index.json, as `transformers` writes them"
    );
    insta::assert_snapshot!(
        error(&["score", "@teacher", "--data", "@absent.txt", "--out", "@o"]),
        @"error: data: `DIR/absent.txt`: no such file"
    );
    insta::assert_snapshot!(
        error(&["prune", "@teacher", "--scores", "@text.txt", "--mlp", "24", "--out", "@o"]),
        @"error: checkpoint: DIR/text.txt: not a whole safetensors file (its first bytes announce \
          a header longer than the file); it may be cut off: fetch or copy it again"
    );
    insta::assert_snapshot!(
        error(&["prune", "@teacher", "--scores", "@absent", "--mlp", "24", "--out", "@o"]),
        @"error: checkpoint: DIR/absent: no such scores file; `minitron score` writes one"
    );
    let config = fs::read_to_string(shell.at("teacher/config.json")).unwrap();
    fs::write(
        shell.at("teacher/config.json"),
        config.replace("\"llama\"", "\"mamba\""),
    )
    .unwrap();
    insta::assert_snapshot!(
        error(&["generate", "@teacher"]),
        @"error: checkpoint: DIR/teacher/config.json: model_type `mamba` is not supported; \
          supported: bamba, bert, …"
    );
    fs::write(shell.at("teacher/config.json"), config.replace("48", "52")).unwrap();
    insta::assert_snapshot!(
        error(&["generate", "@teacher"]),
        @"error: checkpoint: DIR/teacher: tensor `model.layers.0.mlp.gate_proj.weight`: expected \
          shape [52, 32] by config.json, got [48, 32]; the config belongs to other weights"
    );
    fs::write(shell.at("teacher/config.json"), &config).unwrap();
    let weights = fs::read(shell.at("teacher/model.safetensors")).unwrap();
    fs::write(
        shell.at("teacher/model.safetensors"),
        &weights[..weights.len() / 2],
    )
    .unwrap();
    insta::assert_snapshot!(
        error(&["inspect", "@teacher"]),
        @"error: checkpoint: DIR/teacher/model.safetensors: not a whole safetensors file (its \
          header announces 224128 bytes of data, 110532 follow); it may be cut off: fetch or \
          copy it again"
    );
    assert!(!shell.at("o").exists());
}
