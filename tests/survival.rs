#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use minitron::{Workspace, python};
use minitron_core::random::SplitMix;
use serde_json::{Value, json};

/// A distillation that evaluates and saves often.
const DISTILL: &str = "distill --teacher teacher --student student --data text.txt --eval-data \
    text.txt \
    --eval-samples 2 --seq-len 32 --batch-size 4 --lr 3e-3 --threads 1 --checkpoint-every 7 \
    --eval-every 14";

/// Starts a command and returns once a file is there.
fn start(workspace: &Workspace, words: &str, file: &str) -> Child {
    start_until(workspace, words, file, |_| true)
}

/// Starts a training and returns once it has done a step.
fn start_steps(workspace: &Workspace, words: &str, metrics: &str) -> Child {
    start_until(workspace, words, metrics, |bytes| bytes.contains(&b'\n'))
}

/// Starts a command and returns once a file is there and holds what it should.
fn start_until(
    workspace: &Workspace,
    words: &str,
    file: &str,
    holds: impl Fn(&[u8]) -> bool,
) -> Child {
    let mut child = workspace.command(words).spawn().unwrap();
    let path = workspace.at(file);
    while !(path.is_dir() || fs::read(&path).is_ok_and(|bytes| holds(&bytes))) {
        assert!(
            child.try_wait().unwrap().is_none(),
            "{words}: ended before {file} was there"
        );
        sleep(Duration::from_millis(5));
    }
    child
}

/// What every step did, times left out.
fn steps(workspace: &Workspace, out: &str) -> Vec<Value> {
    let text = String::from_utf8(workspace.bytes(&format!("{out}/metrics.jsonl"))).unwrap();
    let step = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["elapsed_s", "tokens_per_second"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    };
    text.lines().map(step).collect()
}

/// Everything that two runs leave is the same.
fn assert_same(workspace: &Workspace, one: &str, two: &str) {
    for file in ["model.safetensors", "best/model.safetensors", "config.json"] {
        assert!(
            workspace.bytes(&format!("{one}/{file}")) == workspace.bytes(&format!("{two}/{file}")),
            "{file} differs"
        );
    }
    assert_eq!(steps(workspace, one), steps(workspace, two));
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const HOW_TO_GO_ON: &str = "interrupted; all that was done is saved: go on with the same command";

#[test]
fn a_signal_ends_a_training_behind_its_step_and_says_how_to_go_on() {
    let workspace = Workspace::with_teacher_and_student();
    let job = format!("{DISTILL} --tokens 60k");
    let whole = workspace.json(&format!("{job} --out whole"));
    assert_eq!(
        (&whole["complete"], &whole["interrupted"]),
        (&json!(true), &json!(false))
    );
    for (name, more) in [("TERM", ""), ("INT", " --resume")] {
        fs::remove_file(workspace.at("parts/metrics.jsonl")).unwrap_or_default();
        let child = start_steps(
            &workspace,
            &format!("{job} --out parts --json --quiet{more}"),
            "parts/metrics.jsonl",
        );
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(stderr, format!("{HOW_TO_GO_ON} with --resume\n"));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&report["complete"], &report["interrupted"]),
            (&json!(false), &json!(true)),
            "{report}"
        );
        assert!(
            report["n_steps"].as_u64() > Some(0) && !workspace.at("parts/config.json").exists()
        );
    }
    let resumed = workspace.json(&format!("{job} --out parts --resume"));
    assert_eq!(
        (&resumed["complete"], &resumed["best"]),
        (&json!(true), &whole["best"])
    );
    for file in ["model.safetensors", "best/model.safetensors"] {
        assert!(
            workspace.bytes(&format!("whole/{file}")) == workspace.bytes(&format!("parts/{file}")),
            "{file} differs"
        );
    }
}

#[test]
fn a_second_signal_ends_a_training_at_once_and_other_work_ends_at_the_first() {
    let workspace = Workspace::with_teacher_and_student();
    // Steps of many seconds.
    let job = format!("{DISTILL} --tokens 100M --accumulate 20000 --out slow");
    let child = start(&workspace, &job, "slow/metrics.jsonl");
    signal(&child, "INT");
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));

    fs::write(workspace.at("long.txt"), minitron::some_text().repeat(300)).unwrap();
    let words = "eval teacher --data long.txt --seq-len 32 --threads 1 --log info";
    let mut child = workspace.command(words).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // Opening the model is over, and measuring it takes long.
    assert!(lines.any(|line| line.unwrap().contains(": open ")));
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(15));
}

#[test]
fn an_interrupted_recipe_goes_on_with_the_same_command() {
    let workspace = Workspace::with_teacher_and_student();
    let recipe = "[[stages]]\nname = \"long\"\ndo = \"distill\"\nteacher = \"teacher\"\nstudent \
                  = \"student\"\n\
                  data = [\"text.txt\"]\neval_data = [\"text.txt\"]\nschedule = \"wsd\"\ntokens \
                  = \"60k\"\nseq_len = 32\n\
                  batch_size = 4\nkeep = 1\n\n[[stages]]\nname = \"say\"\ndo = \"generate\"\nmodel \
                  = \"long\"\nprompt = \"A\"\n";
    fs::write(workspace.at("recipe.toml"), recipe).unwrap();
    let child = start_steps(
        &workspace,
        "run recipe.toml --out run --json",
        "run/long/metrics.jsonl",
    );
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.ends_with(&format!("{HOW_TO_GO_ON}\n")), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["interrupted"], json!(true));
    let stages = report["stages"].as_array().unwrap();
    assert!(
        stages.len() == 1 && stages[0].get("result").is_none(),
        "{report}"
    );
    let n_before = steps(&workspace, "run/long").len() as u64;
    let report = workspace.json("run recipe.toml --out run");
    assert!(report.get("interrupted").is_none());
    assert_eq!(report["stages"][0]["result"]["complete"], json!(true));
    assert!(n_before > 0 && report["stages"][1]["result"]["text"].is_string());
    let steps = steps(&workspace, "run/long");
    assert_eq!(
        steps.len() as u64,
        report["stages"][0]["result"]["n_steps"].as_u64().unwrap()
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_a_training_with_the_file_at_fault_and_the_states_before_stay() {
    let workspace = Workspace::with_teacher_and_student();
    let job = format!("{DISTILL} --tokens 4k");
    workspace.json(&format!("{job} --out whole"));
    workspace.json(&format!("{job} --out parts --stop-after 3"));
    // A limit on the size of files ends a write as a full disk does: 200 blocks of 512 bytes or 1
    // KiB.
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 200; exec \"$0\" \"$@\""])
        .arg(minitron::binary())
        .args(format!("{job} --out parts --resume --quiet").split_whitespace())
        .current_dir(workspace.root())
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with(
            "error: parts/checkpoint/.step-00000007.part/state.safetensors: File too large"
        ),
        "{stderr}"
    );
    let names: Vec<_> = fs::read_dir(workspace.at("parts/checkpoint"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["step-00000003"]);
    workspace.json(&format!("{job} --out parts --resume"));
    assert_same(&workspace, "whole", "parts");
}

/// Reads a folder's event files as TensorBoard does: per tag, steps and values.
const READ_EVENTS: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"#;

#[test]
fn tensorboard_reads_every_step_once_after_a_kill() {
    let imports = |python: &PathBuf| {
        Command::new(python)
            .args(["-c", "import tensorboard"])
            .output()
            .unwrap()
            .status
            .success()
    };
    let Some(python) = python().filter(imports) else {
        eprintln!("absent, not tested: the Python package tensorboard");
        return;
    };
    let workspace = Workspace::with_teacher_and_student();
    let job = format!("{DISTILL} --tokens 30k --out out");
    let mut child = start(&workspace, &job, "out/checkpoint/step-00000035");
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.json(&format!("{job} --resume"));
    let output = Command::new(python)
        .args(["-c", READ_EVENTS])
        .arg(workspace.at("out/logs"))
        .output()
        .unwrap();
    let tags: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let records = steps(&workspace, "out");
    for tag in [
        "loss",
        "lr",
        "grad_norm",
        "n_skipped",
        "loss/forward_kl",
        "eval/loss",
        "eval/forward_kl",
    ] {
        let with_tag = records.iter().filter(|record| record.get(tag).is_some());
        let expected: Vec<(u64, f32)> = with_tag
            .map(|r| (r["step"].as_u64().unwrap(), r[tag].as_f64().unwrap() as f32))
            .collect();
        let found: Vec<(u64, f64)> = serde_json::from_value(tags[tag].clone()).unwrap();
        let found: Vec<(u64, f32)> = found
            .into_iter()
            .map(|(step, value)| (step, value as f32))
            .collect();
        assert_eq!(found, expected, "{tag}");
    }
}

/// Interrupts a run of many steps again and again, each process a random time after it has begun to
/// train, or (every fifth, where `early`) while it reads and loads; then lets it end.
fn interrupt(workspace: &Workspace, job: &str, early: bool, mut end: impl FnMut(Child)) {
    let mut random = SplitMix::new(17);
    for time in 0..20 {
        // An event file of its own says that the process trains.
        let n_logs = || fs::read_dir(workspace.at("out/logs")).map_or(0, Iterator::count);
        let before = n_logs();
        let mut child = workspace
            .command(&format!("{job} --resume"))
            .spawn()
            .unwrap();
        while !(early && time % 5 == 4) && n_logs() == before && child.try_wait().unwrap().is_none()
        {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(random.below(500) as u64));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended by itself at time {time}; make it longer"
        );
        end(child);
    }
    let n_before = steps(workspace, "out").len();
    let report = workspace.json(&format!("{job} --resume"));
    assert_eq!(
        (&report["complete"], &report["interrupted"]),
        (&json!(true), &json!(false))
    );
    assert_same(workspace, "whole", "out");
    eprintln!(
        "interrupted 20 times within {n_before} of {} steps; the same bytes",
        steps(workspace, "out").len()
    );
}

#[test]
#[ignore = "slow: minutes of killing"]
fn a_run_killed_twenty_times_ends_with_the_bytes_of_the_uninterrupted_one() {
    let workspace = Workspace::with_teacher_and_student();
    let job = format!("{DISTILL} --tokens 200k");
    workspace.json(&format!("{job} --out whole"));
    interrupt(
        &workspace,
        &format!("{job} --out out"),
        true,
        |mut child| {
            child.kill().unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        },
    );
}

#[test]
#[ignore = "slow: minutes of interrupting"]
fn a_run_asked_to_end_twenty_times_ends_with_the_bytes_of_the_uninterrupted_one() {
    let workspace = Workspace::with_teacher_and_student();
    let job = format!("{DISTILL} --tokens 200k");
    workspace.json(&format!("{job} --out whole"));
    interrupt(&workspace, &format!("{job} --out out"), false, |child| {
        signal(&child, "TERM");
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(
            stderr.ends_with(&format!("{HOW_TO_GO_ON} with --resume\n")),
            "{stderr}"
        );
    });
}
