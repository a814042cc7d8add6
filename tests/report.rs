#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use minitron::{add_demo_tokenizer, minitron, root, tiny_llama, with_demo_vocabulary};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A short run with a stage of every kind, and one that was stopped on the way.
struct Runs {
    dir: TempDir,
}

static RUNS: LazyLock<Runs> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(
        at("config.json"),
        with_demo_vocabulary(tiny_llama()).to_string(),
    )
    .unwrap();
    add_demo_tokenizer(dir.path()).unwrap();
    fs::write(at("text.txt"), minitron::some_text()).unwrap();
    let training = "data = [\"text.txt\"]\nseq_len = 32\nbatch_size = 4\neval_data = \
                    [\"text.txt\"]\neval_samples = 4\n";
    let stage = |name: &str, job: &str, rest: &str| {
        format!("[[stages]]\nname = \"{name}\"\ndo = \"{job}\"\n{rest}\n")
    };
    let whole = [
        stage(
            "teacher",
            "train",
            &format!("config = \"config.json\"\ntokens = 4000\n{training}"),
        ),
        stage(
            "scores",
            "score",
            "model = \"teacher\"\ndata = [\"text.txt\"]\nseq_len = 32\nsamples = 8\nbootstrap = 5",
        ),
        stage(
            "pruned",
            "prune",
            "model = \"teacher\"\nscores = \"scores\"\nhidden = 24\nmlp = 32\nlayers = 2",
        ),
        stage(
            "distilled",
            "distill",
            &format!("teacher = \"teacher\"\nstudent = \"pruned\"\ntokens = 2000\n{training}"),
        ),
        stage(
            "measured",
            "eval",
            "model = \"distilled\"\nteacher = \"teacher\"\ndata = [\"text.txt\"]\nseq_len = 32",
        ),
        stage(
            "said",
            "generate",
            "model = \"distilled\"\nprompt = \"One <b>day</b>\"\nmax_new_tokens = 8",
        ),
    ];
    fs::write(at("whole.toml"), whole.concat()).unwrap();
    let stopped = format!("config = \"config.json\"\ntokens = 4000\nstop_after = 12\n{training}");
    let stopped = [stage("teacher", "train", &stopped), whole[1].clone()];
    fs::write(at("stopped.toml"), stopped.concat()).unwrap();
    for name in ["whole", "stopped"] {
        let path = |name: &str| at(name).display().to_string();
        let ran = minitron(&[
            "run",
            &path(&format!("{name}.toml")),
            "--out",
            &path(name),
            "--quiet",
        ])
        .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Runs { dir }
});

fn run_dir(name: &str) -> PathBuf {
    RUNS.dir.path().join(name)
}

/// A page about folders, and what `--json` says of it.
fn report(dirs: &[&Path]) -> (String, Value) {
    let desk = tempfile::tempdir().unwrap();
    let out = desk.path().join("page.html").display().to_string();
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let args: Vec<&str> = dirs
        .iter()
        .map(String::as_str)
        .chain(["--out", &out, "--json"])
        .collect();
    let ran = minitron(&[&["report"], args.as_slice()].concat()).unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    (
        fs::read_to_string(out).unwrap(),
        serde_json::from_slice(&ran.stdout).unwrap(),
    )
}

fn watch(dir: &Path) -> (String, Value) {
    let dir = dir.display().to_string();
    let say = |more: &[&str]| {
        let ran = minitron(&[&["watch", &dir, "--once"], more].concat()).unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        String::from_utf8(ran.stdout).unwrap()
    };
    (say(&[]), serde_json::from_str(&say(&["--json"])).unwrap())
}

/// A folder with one file.
fn folder(name: &str, value: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), value.to_string()).unwrap();
    dir
}

fn a_search() -> Value {
    let curve = json!([{ "tokens": 1000, "step": 1, "loss": 5.0 }, { "tokens": 2000, "step": 2,
        "loss": 4.0 }]);
    let candidate = |name: &str, n_params: u64, loss: f64, out: Value| {
        json!({ "name": name, "sizes": { "hidden": 48, "mlp": 96 }, "n_params": n_params,
            "memory_bytes": 4 * n_params,
            "zero_shot": { "loss": 6.0, "rank": 1 }, "curve": curve, "loss": loss, "rank": 1,
                "eliminated_at": out })
    };
    json!({ "format": 1, "minitron": "0.1.0", "model": "teacher", "target": { "params": 100_000,
        "tolerance": 0.05 }, "seed": 3,
        "candidates": [candidate("c01", 100_000, 4.0, Value::Null), candidate("c02", 99_000, 4.5,
            json!(0))],
        "rungs": [{ "n_candidates": 2, "tokens": 1000, "steps": 1, "seconds": 2.5 }], "winner": {
            "name": "c01", "dir": "winner" } })
}

fn a_comparison() -> Value {
    let row = |name: &str, loss: f64| {
        json!({ "name": name, "status": "done", "values": { "loss": { "mean": loss, "std": 0.01,
            "by_seed": [loss, loss] } },
            "curve": [{ "tokens": 1, "loss": 5.0 }, { "tokens": 2, "loss": loss }],
                "samples": ["<script>alert(1)</script>"] })
    };
    json!({ "format": 1, "title": "Losses", "seeds": [0, 1], "spec": { "tokens": 5,
        "skipped": null },
        "columns": [{ "key": "loss", "title": "held-out loss", "better": "lower" }],
        "rows": [row("kl", 4.0), row("mse", 4.25), { "name": "bad", "status": "failed",
            "error": "no <memory>" }],
        "checks": [{ "says": "kl is best", "holds": true, "detail": "4 < 4.25" }] })
}

#[test]
fn a_run_becomes_one_page() {
    let (page, said) = report(&[&run_dir("whole")]);
    let folder = &said["folders"][0];
    assert_eq!(
        (&folder["kind"], &folder["notes"]),
        (&json!("run"), &json!([]))
    );
    assert_eq!(folder["trainings"].as_array().unwrap().len(), 2);
    assert!(folder["trainings"][0]["held_out"].as_array().unwrap().len() > 1);
    let maps = folder["importance"].as_array().unwrap();
    assert!(
        maps.iter()
            .any(|map| map["axis"] == "mlp" && map["rows"].as_array().unwrap().len() == 3),
        "{maps:?}"
    );
    let pruning = &folder["prunings"][0];
    assert!(
        pruning["cuts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|cut| cut["stable"].is_number()),
        "{pruning}"
    );
    assert_eq!(folder["samples"][0]["model"], "distilled");
    // The recipe's own text, since the file is as it was.
    assert!(
        folder["repeat"]["file"]
            .as_str()
            .unwrap()
            .starts_with("[[stages]]\nname = \"teacher\"")
    );
    for wanted in [
        "Importance",
        "Pruning: pruned",
        "Near ties: ",
        "held-out text",
        "Measured",
        "One &lt;b&gt;day",
        "var(--h8)",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    // What each loss is, in its unit: the divergence that is minimised is not the likelihood.
    for quantity in [
        "cross entropy, nats per token",
        "KL divergence from the teacher, nats per token",
    ] {
        assert!(
            page.contains(&format!(">\n{quantity}\n<"))
                || page.contains(&format!("{quantity}, against")),
            "{quantity}"
        );
    }
    let terms = folder["trainings"][1]["terms"].as_array().unwrap();
    assert!(
        terms.len() == 1 && terms[0]["held_out"].as_array().unwrap().len() > 1,
        "{terms:?}"
    );
    // Model and texts are named before any number.
    let facts: Vec<&str> = folder["facts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fact| fact[0].as_str().unwrap())
        .collect();
    assert_eq!(
        facts[..4],
        ["model", "held-out text", "trained on", "calibrated on"]
    );
    assert_eq!(folder["evaluations"][0]["data"], json!(["text.txt"]));
    assert!(!page.contains("<b>day") && !page.contains("://"));
}

#[test]
fn stages_alone_and_several_folders_become_a_page_too() {
    let whole = run_dir("whole");
    let (page, said) = report(&[
        &whole.join("distilled"),
        &whole.join("scores"),
        &whole.join("measured"),
        &whole,
    ]);
    let folders = said["folders"].as_array().unwrap();
    let kinds: Vec<&str> = folders
        .iter()
        .map(|folder| folder["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["stage", "stage", "stage", "run"]);
    // The run around a stage says what it was.
    assert_eq!(folders[0]["stages"][0]["job"], "distill");
    assert_eq!(folders[0]["prunings"].as_array().unwrap().len(), 1);
    assert!(!folders[1]["importance"].as_array().unwrap().is_empty());
    assert!(folders[2]["evaluations"][0]["values"]["loss"].is_number());
    assert!(page.contains("4 folders") && page.contains("href=\"#f3\""));
}

#[test]
fn searches_and_comparisons_become_pages() {
    let (search, comparison) = (
        folder("search.json", &a_search()),
        folder("compare.json", &a_comparison()),
    );
    let (page, said) = report(&[search.path(), comparison.path()]);
    assert_eq!(said["folders"][0]["facts"][1], json!(["minitron", "0.1.0"]));
    assert_eq!(
        said["folders"][0]["search"]["candidates"][1]["eliminated_at"],
        0
    );
    for wanted in [
        "Candidates",
        "Rungs",
        "100,000 parameters, ± 5.0 %",
        "--params 100000+-5% --seed 3",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    for wanted in [
        "<strong>4 ± 0",
        "✓ holds",
        "no &lt;memory&gt;",
        "tokens = 5",
        "&lt;script&gt;alert(1)",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert_eq!(page.matches("<script").count(), 1);
    // Rungs count from 1, as in the terminal; what was not trained is in no picture of losses after
    // training.
    let mut search = a_search();
    let mut screened = search["candidates"][1].clone();
    screened["name"] = json!("c03");
    ["loss", "rank", "eliminated_at"]
        .iter()
        .for_each(|key| screened[*key] = Value::Null);
    screened["curve"] = json!([]);
    screened["zero_shot"]["loss"] = json!(7.625);
    search["candidates"].as_array_mut().unwrap().push(screened);
    let search = folder("search.json", &search);
    let (page, _) = report(&[search.path()]);
    let cells = |row: &str| -> Vec<String> {
        let row = page
            .split("<tr")
            .find(|part| part.contains(&format!(">{row}<")) && part.contains("data-v=\"96\""))
            .unwrap();
        let text = |cell: &str| {
            cell.split('>')
                .nth(1)
                .unwrap_or_default()
                .split('<')
                .next()
                .unwrap()
                .trim()
                .to_owned()
        };
        row.split("<td").skip(1).map(text).collect()
    };
    assert_eq!(
        (cells("c02")[4].as_str(), cells("c03")[4].as_str()),
        ("1", "not trained"),
        "{:?}",
        cells("c03")
    );
    assert_eq!(
        page.matches("data-v=\"7.625\"").count(),
        1,
        "in the table of candidates alone"
    );
    // A search that keeps its options names its text, and is repeated by them.
    let mut search = a_search();
    search["options"] = json!({ "model": "teacher", "scores": "scores", "data": ["train.txt"],
        "eval_data": ["valid.txt"], "screen": null });
    search["warnings"] = json!(["candidate c02 goes no further"]);
    let search = folder("search.json", &search);
    let (page, said) = report(&[search.path()]);
    let repeat = &said["folders"][0]["repeat"];
    assert!(
        repeat["command"]
            .as_str()
            .unwrap()
            .starts_with("minitron run SEARCH.toml --seed 3 --out "),
        "{repeat}"
    );
    let recipe = repeat["file"].as_str().unwrap();
    assert!(
        recipe.contains("do = \"search\"\n") && recipe.contains("eval_data = [\"valid.txt\"]\n"),
        "{recipe}"
    );
    assert!(!recipe.contains("screen"), "{recipe}");
    assert_eq!(
        said["folders"][0]["facts"][1],
        json!(["held-out text", "valid.txt"])
    );
    assert!(page.contains("<h3>Warnings</h3>") && page.contains("candidate c02 goes no further"));
}

/// Two strategies and one that fails, trained on a few tokens.
const SPEC: &str = r#"
model = "teacher"
columns = ["n_params", "zero_shot_loss", "loss", "kl_to_teacher", "n_tokens", "training_seconds", "peak_bytes", "speed"]
[all.score]
data = ["text.txt"]
samples = 8
seq_len = 32
[all.prune]
data = ["text.txt"]
reconstruct = [{ type = "none" }]
[all.distill]
data = ["text.txt"]
tokens = 2000
seq_len = 32
batch_size = 4
[all.eval]
data = ["text.txt"]
samples = 8
seq_len = 32
[[rows]]
name = "narrow"
prune = { hidden = 24 }
[[rows]]
name = "thin"
prune = { mlp = 32 }
[[rows]]
name = "broken"
prune = { mlp = 23 }
"#;

#[test]
fn a_comparison_shows_the_teacher_curves_warnings_and_what_failed() {
    const WARNING: &str = "data: nothing looks at it; leave it out, or take another reconstruction";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let from = run_dir("whole/teacher").display().to_string();
    assert!(
        Command::new("cp")
            .args(["-r", &from, &at("teacher")])
            .status()
            .unwrap()
            .success()
    );
    fs::write(at("text.txt"), minitron::some_text()).unwrap();
    fs::write(at("spec.toml"), SPEC).unwrap();
    let ran = minitron(&["compare", &at("spec.toml"), "--out", &at("out"), "--quiet"]).unwrap();
    let (table, told) = (
        String::from_utf8(ran.stdout).unwrap(),
        String::from_utf8(ran.stderr).unwrap(),
    );
    assert!(ran.status.success(), "{told}");
    // Once each: rows share the job that warns of the text.
    assert_eq!(
        told.lines().filter(|line| line.ends_with(WARNING)).count(),
        1,
        "{told}"
    );
    assert!(
        told.contains("warning: row `broken` failed")
            && told.contains("warning: columns: no row has `speed`"),
        "{told}"
    );
    // The table is as wide as a terminal, and the reason of a failure stands below.
    let (rows, failed) = table.split_once("\nfailed: broken: ").unwrap();
    assert!(
        rows.lines().all(|line| line.chars().count() <= 100) && failed.contains("23 is not legal"),
        "{table}"
    );
    assert!(
        rows.contains("teacher (teacher)") && rows.contains("100 %") && rows.contains(" MiB"),
        "{table}"
    );

    let said: Value = serde_json::from_slice(&fs::read(at("out/compare.json")).unwrap()).unwrap();
    let teacher = &said["teacher"];
    let value = |row: &Value, key: &str| row["values"][key]["mean"].as_f64().unwrap();
    assert_eq!(
        (
            value(teacher, "params_share"),
            value(teacher, "kl_to_teacher")
        ),
        (1.0, 0.0)
    );
    assert_eq!(value(teacher, "loss"), value(teacher, "zero_shot_loss"));
    for row in &said["rows"].as_array().unwrap()[..2] {
        assert_eq!(
            value(row, "params_share"),
            value(row, "n_params") / value(teacher, "n_params")
        );
        // Beside what clients refuse the sizes.
        let said = row["warnings"].as_array().unwrap();
        assert!(
            said.contains(&json!(format!("prune: {WARNING}"))),
            "{said:?}"
        );
    }
    assert_eq!(said["warnings"], json!(["columns: no row has `speed`"]));
    assert_eq!(said["columns"][1]["key"], "params_share");
    let markdown = fs::read_to_string(at("out/compare.md")).unwrap();
    assert!(
        markdown.contains("| teacher (teacher) | ") && markdown.contains("## Warnings"),
        "{markdown}"
    );

    let page = fs::read_to_string(at("out/report.html")).unwrap();
    for wanted in [
        "<h3>Warnings</h3>",
        "<strong>narrow, thin",
        "Loss against parameters",
        "In training: ",
        "tr class=\"reference\"",
        "text.txt",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert_eq!(
        page.matches("<svg viewBox").count(),
        2,
        "a figure of curves, one of sizes"
    );
    // Nothing is done again: the teacher's evaluation is a job like others.
    let again = minitron(&["compare", &at("spec.toml"), "--out", &at("out")]).unwrap();
    assert_eq!(
        String::from_utf8(again.stderr)
            .unwrap()
            .matches(": unchanged, skipped")
            .count(),
        12
    );
}

#[test]
fn damage_is_named_on_the_page_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run_dir("whole");
    for name in [
        "run.json",
        "pruned/plan.json",
        "scores/scores.safetensors",
        "teacher/metrics.jsonl",
    ] {
        let to = dir.path().join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(whole.join(name), to).unwrap();
    }
    fs::write(dir.path().join("pruned/plan.json"), "{").unwrap();
    fs::write(dir.path().join("scores/scores.safetensors"), "damaged").unwrap();
    let (page, said) = report(&[dir.path()]);
    assert_eq!(said["folders"][0]["notes"].as_array().unwrap().len(), 2);
    assert!(page.contains("Not read") && page.contains("plan.json") && page.contains("var(--s0)"));
}

#[test]
fn what_cannot_be_reported_is_refused_and_no_file_is_lost() {
    let desk = tempfile::tempdir().unwrap();
    let (dir, file) = (
        desk.path().display().to_string(),
        desk.path().join("notes.html"),
    );
    let fails = |args: &[&str], says: &str| {
        let ran = minitron(args).unwrap();
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(
            ran.status.code() == Some(2) && text.contains(says),
            "{args:?}: {text}"
        );
    };
    let out = file.display().to_string();
    fails(
        &["report", &dir, "--out", &out],
        "found none of these files",
    );
    fails(&["watch", &dir, "--once"], "found none of these files");
    fails(
        &["watch", &dir, "--interval", "0"],
        "expected 0.1 to 86400 seconds",
    );
    fs::write(&file, "mine").unwrap();
    let whole = run_dir("whole").display().to_string();
    fails(
        &["report", &whole, "--out", &out],
        "is no page of `minitron report`",
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    for more in [&["--force"][..], &[]] {
        assert!(
            minitron(&[&["report", &whole, "--out", &out], more].concat())
                .unwrap()
                .status
                .success()
        );
    }
}

#[test]
fn a_job_is_watched_while_it_runs_and_after() {
    let (text, said) = watch(&run_dir("stopped"));
    assert_eq!(said["complete"], false);
    let states: Vec<&str> = said["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["running", "waiting"]);
    let training = &said["training"];
    assert_eq!(
        (&training["n_steps"], &training["n_planned"]),
        (&json!(12), &json!(32))
    );
    assert!(said["eta_s"].as_f64().unwrap() > 0.0);
    assert!(
        text.contains("step 12 of 32 (38 %)") && text.contains("to go") && text.contains('█'),
        "{text}"
    );

    let (text, said) = watch(&run_dir("whole"));
    assert_eq!(
        (&said["complete"], &said["eta_s"]),
        (&json!(true), &Value::Null)
    );
    assert!(
        text.contains("whole: complete") && text.contains("held out") && text.contains("memory"),
        "{text}"
    );
    assert_eq!(watch(&run_dir("whole/distilled")).1["complete"], true);
    // Alone, it is known by its state what was asked for.
    let (_, alone) = watch(&run_dir("stopped/teacher"));
    assert_eq!(
        (&alone["complete"], &alone["training"]["n_planned"]),
        (&json!(false), &json!(32))
    );
}

#[test]
fn searches_and_comparisons_under_way_are_watched() {
    let (mut search, mut comparison) = (a_search(), a_comparison());
    (search["complete"], comparison["complete"]) = (json!(false), json!(false));
    search.as_object_mut().unwrap().remove("winner");
    let (search, comparison) = (
        folder("search.json", &search),
        folder("compare.json", &comparison),
    );
    let at_work = comparison.path().join("rows/cosine");
    fs::create_dir_all(&at_work).unwrap();
    fs::write(
        at_work.join("metrics.jsonl"),
        "{\"step\":1,\"n_tokens\":64,\"loss\":4.0}\n{\"step\":2,",
    )
    .unwrap();
    let (text, said) = watch(search.path());
    assert_eq!(
        (&said["complete"], &said["stages"][1]["name"]),
        (&json!(false), &json!("c01"))
    );
    assert!(text.contains("leads"), "{text}");
    let (text, said) = watch(comparison.path());
    assert_eq!(
        (&said["training"]["name"], &said["training"]["n_damaged"]),
        (&json!("cosine"), &json!(1))
    );
    assert!(
        text.contains("Losses: running") && text.contains("failed"),
        "{text}"
    );
}

#[test]
fn pages_render_in_a_browser_as_narrow_as_a_phone() {
    let desk = tempfile::tempdir().unwrap();
    let (search, comparison) = (
        folder("search.json", &a_search()),
        folder("compare.json", &a_comparison()),
    );
    for dirs in [
        vec![run_dir("whole")],
        vec![search.path().to_owned(), comparison.path().to_owned()],
    ] {
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        let page = desk.path().join("page.html");
        fs::write(&page, report(&dirs).0).unwrap();
        let script = root().join("tests/report/screenshots.sh");
        let ran = Command::new("sh")
            .arg(script)
            .args([&page, desk.path()])
            .arg("--check")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        if ran.status.code() == Some(77) {
            eprintln!("skipped: {said}");
            return;
        }
        assert!(
            ran.status.success(),
            "{} {said}",
            String::from_utf8_lossy(&ran.stdout)
        );
    }
}
