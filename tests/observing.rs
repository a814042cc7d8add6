#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use minitron::Workspace;
use serde_json::{Value, json};

const RECIPE: &str = r#"
[[stages]]
name = "scores"
do = "score"
model = "teacher"
data = ["text.txt"]
samples = 64
seq_len = 32

[[stages]]
name = "small"
do = "prune"
model = "teacher"
scores = "scores"
mlp = 24
heal = [{ type = "least_squares" }]
data = ["text.txt"]
samples = 16
seq_len = 32

[[stages]]
name = "distilled"
do = "distill"
teacher = "teacher"
student = "small"
data = ["text.txt"]
eval_data = ["text.txt"]
tokens = "20k"
seq_len = 32
batch_size = 8
checkpoint_every = 20

[[stages]]
name = "measured"
do = "eval"
model = "distilled"
teacher = "teacher"
data = ["text.txt"]
seq_len = 32

[[stages]]
name = "said"
do = "generate"
model = "distilled"
prompt = "One"
max_new_tokens = 40
"#;

const DISTILL: &str = "distill --teacher teacher --student student --data text.txt --seq-len 32 \
                       --batch-size 4 --lr 3e-3 --threads 1";

fn workspace() -> Workspace {
    Workspace::with_teacher_and_student().file("recipe.toml", RECIPE)
}

/// Runs a command that succeeds; its stderr.
fn stderr_of(workspace: &Workspace, words: &str) -> String {
    let output = workspace.run(words);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{words}: {stderr}");
    stderr
}

/// What the file of a trace holds.
fn trace(workspace: &Workspace, name: &str) -> Vec<Event> {
    let event = |value: &Value| Event {
        name: value["name"].as_str().unwrap().to_owned(),
        phase: value["ph"].as_str().unwrap().to_owned(),
        tid: value["tid"].as_u64().unwrap(),
        begin: value["ts"].as_f64().unwrap_or(0.0),
        end: value["ts"].as_f64().unwrap_or(0.0) + value["dur"].as_f64().unwrap_or(0.0),
        args: value["args"].clone(),
    };
    workspace.value(name)["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .map(event)
        .collect()
}

struct Event {
    name: String,
    phase: String,
    tid: u64,
    begin: f64,
    end: f64,
    args: Value,
}

impl Event {
    /// Whether another span of the same thread lies in this one.
    fn holds(&self, other: &Event) -> bool {
        self.tid == other.tid
            && self.begin <= other.begin
            && other.end <= self.end
            && !std::ptr::eq(self, other)
    }
}

/// Spans right below another: in it, and in none that is in it.
fn children<'e>(spans: &[&'e Event], parent: &Event) -> Vec<&'e Event> {
    let inside: Vec<&Event> = spans
        .iter()
        .copied()
        .filter(|span| parent.holds(span))
        .collect();
    inside
        .iter()
        .copied()
        .filter(|span| !inside.iter().any(|other| other.holds(span)))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_stage_has_a_span_that_holds_those_of_its_phases_in_their_order() {
    let workspace = workspace();
    stderr_of(
        &workspace,
        "run recipe.toml --out run --quiet --threads 1 --trace trace.json",
    );
    let events = trace(&workspace, "trace.json");
    let spans: Vec<&Event> = events.iter().filter(|event| event.phase == "X").collect();
    let command = spans
        .iter()
        .find(|span| span.name == "command run")
        .unwrap();
    let phases: [(&str, &[&str]); 5] = [
        (
            "scores",
            &["inputs", "open", "tokenise", "load", "calibrate"],
        ),
        (
            "small",
            &[
                "open",
                "tokenise",
                "plan",
                "reconstruct least_squares",
                "write",
            ],
        ),
        (
            "distilled",
            &["open", "read data", "load", "train", "write"],
        ),
        (
            "measured",
            &["open", "tokenise", "load", "evaluate perplexity"],
        ),
        ("said", &["open", "load", "generate"]),
    ];
    let record: Value =
        serde_json::from_slice(&fs::read(workspace.at("run/run.json")).unwrap()).unwrap();
    for (idx, (stage, phases)) in phases.iter().enumerate() {
        let span = spans
            .iter()
            .find(|span| span.name == format!("stage {stage}"))
            .unwrap();
        assert!(command.holds(span), "{stage}");
        let inside = children(&spans, span);
        let names: Vec<&str> = inside.iter().map(|span| span.name.as_str()).collect();
        let mut order: Vec<&str> = Vec::new();
        for name in names.iter().copied().filter(|name| phases.contains(name)) {
            if !order.contains(&name) {
                order.push(name);
            }
        }
        assert_eq!(order, *phases, "{stage}: {names:?}");
        // One after another: what is nested deeper was left out of them.
        let in_turn = inside
            .windows(2)
            .all(|pair| pair[0].tid != pair[1].tid || pair[0].begin <= pair[1].begin);
        assert!(in_turn, "{stage}: {names:?}");
        assert!(record["stages"][idx]["seconds"].is_f64(), "{stage}");
    }
    let train = spans.iter().find(|span| span.name == "train").unwrap();
    let steps: Vec<&Event> = spans
        .iter()
        .copied()
        .filter(|span| span.name == "step")
        .collect();
    assert_eq!(
        steps.len(),
        record["stages"][2]["result"]["n_steps"].as_u64().unwrap() as usize
    );
    for step in &steps {
        let names: Vec<&str> = children(&spans, step)
            .iter()
            .map(|span| span.name.as_str())
            .collect();
        assert!(
            train.holds(step)
                && ["data", "teacher", "student", "optimise"]
                    .iter()
                    .all(|n| names.contains(n))
        );
    }
    assert_eq!(steps[4].args["step"], json!(5));
    let threads: Vec<&Value> = events
        .iter()
        .filter(|event| event.name == "thread_name")
        .map(|event| &event.args["name"])
        .collect();
    assert!(
        threads.contains(&&json!("main")) && threads.contains(&&json!("write")),
        "{threads:?}"
    );
}

#[test]
fn a_trace_is_whole_json_however_the_command_ends() {
    let workspace = workspace();
    let failed = workspace.run("inspect nowhere --trace failed.json");
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        trace(&workspace, "failed.json")
            .iter()
            .any(|event| event.name == "command inspect")
    );
    for (signal, name) in [("INT", "asked.json"), ("KILL", "killed.json")] {
        let out = name.trim_end_matches(".json");
        let words = format!("{DISTILL} --tokens 100M --quiet --out {out} --trace {name}");
        let mut child = workspace.command(&words).spawn().unwrap();
        while fs::read_to_string(workspace.at(&format!("{out}/metrics.jsonl")))
            .map_or(0, |text| text.len())
            < 2000
        {
            assert!(child.try_wait().unwrap().is_none(), "{name}: ended early");
            sleep(Duration::from_millis(10));
        }
        // The file is behind the steps by a pause, or by what is gathered.
        while fs::read_to_string(workspace.at(name))
            .map_or(0, |text| text.matches("\"step\"").count())
            < 10
        {
            assert!(child.try_wait().unwrap().is_none(), "{name}: ended early");
            sleep(Duration::from_millis(10));
        }
        assert!(
            Command::new("kill")
                .args([format!("-{signal}"), child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        child.wait().unwrap();
        let events = trace(&workspace, name);
        assert!(
            events.iter().filter(|event| event.name == "step").count() > 3,
            "{name}"
        );
        assert_eq!(
            events.iter().any(|event| event.name == "command distill"),
            signal == "INT"
        );
    }
    let unwritable = workspace.run("inspect teacher --trace nowhere/trace.json");
    assert_eq!(unwritable.status.code(), Some(1));
    assert!(
        text(&unwritable.stderr).starts_with("error: nowhere/trace.json: "),
        "{}",
        text(&unwritable.stderr)
    );
}

#[test]
fn log_lines_say_what_was_asked_for_and_nothing_unless_asked() {
    let workspace = workspace();
    assert_eq!(stderr_of(&workspace, "inspect teacher"), "");
    assert_eq!(stderr_of(&workspace, "inspect teacher --log warn"), "");
    let info = stderr_of(&workspace, "inspect teacher --log info");
    let lines: Vec<&str> = info
        .lines()
        .map(|line| line.trim_start().split_once(' ').unwrap().1)
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("info  minitron_engine::jobs::context: command: open ")),
        "{info}"
    );
    assert!(
        lines
            .last()
            .unwrap()
            .starts_with("info  minitron::commands: command name=\"inspect\" took "),
        "{info}"
    );
    let by_variable = workspace
        .command("inspect teacher")
        .env("MINITRON_LOG", "info")
        .output()
        .unwrap();
    assert_eq!(text(&by_variable.stderr).lines().count(), lines.len());
    let quieter = workspace
        .command("inspect teacher --log error")
        .env("MINITRON_LOG", "info")
        .output()
        .unwrap();
    assert_eq!(text(&quieter.stderr), "");

    let steps = stderr_of(
        &workspace,
        &format!("{DISTILL} --tokens 1k --quiet --out out --log minitron_engine::train=debug"),
    );
    assert!(
        steps
            .lines()
            .all(|line| line.contains(" minitron_engine::train")),
        "{steps}"
    );
    assert!(
        steps
            .lines()
            .any(|line| line.contains(": train: step step=3 took ")),
        "{steps}"
    );
    for wrong in ["loud", "info,", "minitron_core=", "=info"] {
        let output = workspace.run(&format!("inspect teacher --log {wrong}"));
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(
            text(&output.stderr).contains("--log: expected error, warn, info, debug or trace"),
            "{wrong}"
        );
    }
}

#[test]
fn what_people_are_told_is_a_log_line_only_where_they_are_not_told() {
    let workspace = workspace();
    let words = format!("{DISTILL} --tokens 1k --log info --out");
    let told = stderr_of(&workspace, &format!("{words} told"));
    assert!(
        told.lines().all(|line| !line.contains("minitron::said")),
        "{told}"
    );
    let quiet = stderr_of(&workspace, &format!("{words} quiet --quiet"));
    assert!(
        quiet
            .lines()
            .any(|line| line.contains(" info  minitron::said: ")),
        "{quiet}"
    );
}

#[test]
fn a_warning_is_shown_once_whatever_is_asked_and_kept_with_what_it_is_of() {
    const WARNING: &str = "data: nothing looks at it; leave it out, or take another reconstruction";
    let workspace = workspace();
    let stages: Vec<&str> = RECIPE.split("[[stages]]").take(3).collect();
    let recipe = stages
        .join("[[stages]]")
        .replace("\"least_squares\"", "\"none\"");
    fs::write(workspace.at("recipe.toml"), recipe).unwrap();
    let run = "run recipe.toml --out run --threads 1 --quiet";
    assert_eq!(stderr_of(&workspace, run), format!("warning: {WARNING}\n"));
    let stages = || -> Vec<Value> {
        let record: Value =
            serde_json::from_slice(&fs::read(workspace.at("run/run.json")).unwrap()).unwrap();
        record["stages"].as_array().unwrap().clone()
    };
    let recorded = stages();
    assert_eq!(
        (recorded[0].get("warnings"), &recorded[1]["warnings"]),
        (None, &json!([WARNING]))
    );
    // A stage that is skipped keeps it.
    assert_eq!(stderr_of(&workspace, run), "");
    assert_eq!(stages(), recorded);
    for more in ["", " --log warn", " --quiet --log warn", " --log info"] {
        let told = stderr_of(
            &workspace,
            &format!("run recipe.toml --out again --threads 1 --force{more}"),
        );
        assert_eq!(told.matches(WARNING).count(), 1, "{more}: {told}");
        assert!(
            told.lines()
                .any(|line| line == format!("warning: {WARNING}")),
            "{more}: {told}"
        );
    }
    let watched = text(&workspace.run("watch run --once").stdout);
    assert!(
        watched
            .lines()
            .any(|line| line == format!("warning  small: {WARNING}")),
        "{watched}"
    );
    stderr_of(&workspace, "report run run/small --out page.html");
    let page = fs::read_to_string(workspace.at("page.html")).unwrap();
    assert!(
        page.contains(&format!("<strong>small</strong>: {WARNING}")),
        "{page}"
    );
    assert_eq!(page.matches("<h3>Warnings</h3>").count(), 2);
    // A command that leaves no record says it in its result.
    let words = "prune teacher --mlp 24 --scores run/scores --data text.txt --reconstruct none \
                 --out alone --quiet";
    let alone = workspace.run(&format!("{words} --json"));
    let said: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert_eq!(
        (&said["warnings"], text(&alone.stderr)),
        (&json!([WARNING]), format!("warning: {WARNING}\n"))
    );
    let table = workspace.run(&format!("{words} --force"));
    assert!(
        !text(&table.stdout).contains("nothing looks"),
        "{}",
        text(&table.stdout)
    );
}

/// A failing command's object, and its text for people.
fn failure(workspace: &Workspace, code: i32, words: &str) -> (Value, String) {
    let output = workspace.run(&format!("{words} --json"));
    assert_eq!(output.status.code(), Some(code), "{words}");
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 1);
    (value["error"].clone(), text(&output.stderr))
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let workspace = workspace();
    let (error, stderr) = failure(&workspace, 1, "inspect nowhere");
    assert_eq!(
        (&error["kind"], &error["exit_code"]),
        (&json!("checkpoint"), &json!(1)),
        "{error}"
    );
    let (path, message) = (
        error["path"].as_str().unwrap(),
        error["message"].as_str().unwrap(),
    );
    assert_eq!(stderr, format!("error: checkpoint: {path}: {message}\n"));
    assert_eq!(error.get("place"), None);

    let recipe = RECIPE.replace("model = \"teacher\"\nscores", "model = \"absent\"\nscores");
    fs::write(workspace.at("recipe.toml"), recipe).unwrap();
    let (error, stderr) = failure(&workspace, 1, "run recipe.toml --out run --quiet");
    assert_eq!(
        (&error["kind"], &error["place"]),
        (&json!("checkpoint"), &json!("stages[1] (small)")),
        "{error}"
    );
    assert!(
        error["path"].as_str().unwrap().ends_with("absent"),
        "{error}"
    );
    assert!(
        stderr.starts_with("error: stages[1] (small): checkpoint: "),
        "{stderr}"
    );

    let (error, _) = failure(
        &workspace,
        2,
        "prune teacher --mlp 24 --heal nothing_known --scores run/scores --out small",
    );
    assert_eq!(
        (&error["kind"], &error["place"]),
        (&json!("recipe"), &json!("reconstruct[0]")),
        "{error}"
    );
    let (error, _) = failure(&workspace, 2, "inspect teacher --device moon");
    assert_eq!(
        (&error["kind"], error.get("path")),
        (&json!("recipe"), None),
        "{error}"
    );
}

#[test]
fn with_json_what_cannot_be_read_is_an_object_too() {
    let workspace = workspace();
    for words in [
        "inspect",
        "inspect teacher --seq-len many",
        "inspekt teacher",
        "--no-such-flag",
    ] {
        let (error, stderr) = failure(&workspace, 2, words);
        assert_eq!(
            (&error["kind"], &error["exit_code"]),
            (&json!("usage"), &json!(2)),
            "{error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            stderr.starts_with(&format!(
                "error: {}",
                message.split_whitespace().next().unwrap()
            )),
            "{error}"
        );
        assert!(
            !message.contains("Usage:") && !message.contains('\n'),
            "{error}"
        );
    }
    let help = workspace.run("--help --json");
    assert_eq!(
        (help.status.code(), text(&help.stderr).as_str()),
        (Some(0), "")
    );
}

#[test]
fn a_run_keeps_the_most_memory_of_every_stage() {
    let workspace = workspace();
    let table = workspace.run("run recipe.toml --out run --quiet --threads 1");
    let table = text(&table.stdout);
    assert!(table.contains(" tokens/s   peak memory "), "{table}");
    assert!(
        table.lines().filter(|line| line.contains(" MiB")).count() == 5,
        "{table}"
    );
    let record: Value =
        serde_json::from_slice(&fs::read(workspace.at("run/run.json")).unwrap()).unwrap();
    for stage in record["stages"].as_array().unwrap() {
        let n_bytes = stage["peak_bytes"].as_u64().unwrap();
        assert!((1 << 20..1 << 36).contains(&n_bytes), "{stage}");
    }
    let page = workspace.run("report run --out page.html");
    assert!(page.status.success(), "{}", text(&page.stderr));
    let markup = fs::read_to_string(workspace.at("page.html")).unwrap();
    let rows: Vec<&str> = markup
        .split("<tr")
        .filter(|row| row.contains(">score<") || row.contains(">prune<"))
        .collect();
    assert!(
        rows.len() == 2 && rows.iter().all(|row| row.contains(" MiB<")),
        "{rows:?}"
    );
}
