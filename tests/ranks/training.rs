use std::collections::BTreeMap;
use std::net::TcpListener;

use minitron::Workspace;
use minitron_core::checkpoint::{Reader, TensorSource};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::{Victim, run, succeeds};

const DISTILL: &str = "distill --teacher teacher --student student --data text.txt --seq-len 32";
/// Ten steps and two evaluations.
const STEPS: &str = "--batch-size 4 --lr 1e-3 --tokens 1280 --eval-data text.txt --eval-samples 6 \
    --eval-every 5";

fn weights(workspace: &Workspace, out: &str) -> BTreeMap<String, Tensor> {
    let reader = Reader::open_file(&workspace.at(&format!("{out}/model.safetensors"))).unwrap();
    let names = reader.names();
    let read = |name: &String| reader.read(name).unwrap().to_kind(Kind::Double);
    names
        .iter()
        .map(|name| (name.clone(), read(name)))
        .collect()
}

fn lines(workspace: &Workspace, out: &str) -> Vec<Value> {
    let text = String::from_utf8(workspace.bytes(&format!("{out}/metrics.jsonl"))).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every number of every step, and all weights, are the same up to rounding.
fn assert_same(workspace: &Workspace, a: &str, b: &str, what: &str) {
    let (of_a, of_b) = (lines(workspace, a), lines(workspace, b));
    assert_eq!(of_a.len(), of_b.len(), "{what}");
    for (one, other) in of_a.iter().zip(&of_b) {
        for (key, value) in one.as_object().unwrap() {
            if ["elapsed_s", "tokens_per_second"].contains(&key.as_str()) {
                continue;
            }
            let tolerance = if key.ends_with("grad_norm") {
                1e-5
            } else {
                1e-6
            };
            let (x, y) = (value.as_f64().unwrap(), other[key].as_f64().unwrap());
            let is_near = (x - y).abs() <= tolerance * x.abs().max(1e-12);
            assert!(is_near, "{what}: step {}: {key}: {x} {y}", one["step"]);
        }
    }
    let (of_a, of_b) = (weights(workspace, a), weights(workspace, b));
    assert_eq!(of_a.len(), of_b.len(), "{what}");
    for (name, x) in of_a {
        let far = (&x - &of_b[&name]).abs().max().double_value(&[]);
        assert!(far <= 1e-5, "{what}: {name}: {far}");
    }
}

/// One process and several, which are to do the same.
fn compare(what: &str, options: &str, sizes: &[usize]) {
    let workspace = Workspace::with_teacher_and_student();
    succeeds(&workspace, 1, &format!("{DISTILL} {options} --out 1"));
    for &n in sizes {
        succeeds(&workspace, n, &format!("{DISTILL} {options} --out {n}"));
        assert_same(
            &workspace,
            "1",
            &n.to_string(),
            &format!("{what}, {n} ranks"),
        );
    }
}

#[test]
fn two_and_three_ranks_distil_as_one_process_does() {
    compare("plain", STEPS, &[2, 3]);
}

/// The distance at the start is that of all ranks' windows, and so is the rate that follows.
#[test]
fn ranks_take_the_rate_that_one_process_takes() {
    for more in ["", "--shard layers", "--loss hidden_state"] {
        let options = format!("--batch-size 4 --tokens 640 {more}");
        compare("rate by the distance", &options, &[2, 3]);
    }
}

#[test]
fn ranks_divide_the_windows_of_several_passes() {
    compare(
        "accumulate",
        &format!("{STEPS} --accumulate 2 --recompute"),
        &[3],
    );
}

#[test]
fn a_rank_without_a_window_takes_part_all_the_same() {
    compare("one window", "--batch-size 1 --tokens 160 --lr 1e-3", &[2]);
}

#[test]
fn losses_on_states_whose_weight_follows_from_the_step_are_the_same() {
    let states = "--loss forward_kl --loss hidden_state:alpha=dynamic";
    compare("states", &format!("{STEPS} {states}"), &[2]);
}

#[test]
fn a_teacher_that_learns_on_learns_the_same() {
    compare(
        "correction",
        &format!("{STEPS} --correct-teacher 0.2"),
        &[2],
    );
}

#[test]
fn a_teacher_in_another_type_says_the_same() {
    compare(
        "bf16 teacher",
        &format!("{STEPS} --teacher-dtype bf16"),
        &[2],
    );
}

#[test]
fn masks_of_unequal_counts_are_averaged_over_all_ranks() {
    let workspace = Workspace::with_teacher_and_student();
    let mut lines = String::new();
    for idx in 0..40 {
        let answer = "It was a boat. ".repeat(1 + idx % 7);
        let record = json!({ "prompt": "What did she see? ", "completion": answer });
        lines += &format!("{record}\n");
    }
    workspace.write("chat.jsonl", lines);
    let words = "train student --data chat.jsonl --seq-len 48 --batch-size 4 --lr 1e-3 \
        --tokens 1920 --mask answers --form prompt_completion";
    succeeds(&workspace, 1, &format!("{words} --out 1"));
    succeeds(&workspace, 3, &format!("{words} --out 3"));
    assert_same(&workspace, "1", "3", "masks");
}

#[test]
fn a_stage_of_longer_windows_is_shared_too() {
    compare(
        "longer windows",
        &format!("{STEPS} --length-stage 0.4:64"),
        &[2, 3],
    );
}

/// Whether a cache keeps the largest probabilities or draws.
#[test]
fn a_teachers_cache_is_written_and_read_by_all_ranks() {
    for kept in ["--cache-type f32 --cache-top-k 16", "--cache-samples 16"] {
        cached(kept);
    }
}

fn cached(kept: &str) {
    let workspace = Workspace::with_teacher_and_student();
    let words = format!("{DISTILL} {STEPS} {kept}");
    succeeds(&workspace, 1, &format!("{words} --teacher-cache a --out 1"));
    succeeds(&workspace, 2, &format!("{words} --teacher-cache b --out 2"));
    assert_same(&workspace, "1", "2", "cache");
    assert!(workspace.at("b/rank-1/rows.bin").metadata().unwrap().len() > 0);
    // What two wrote, one reads.
    let before = workspace.bytes("b/rows.bin");
    succeeds(
        &workspace,
        1,
        &format!("{words} --teacher-cache b --out again"),
    );
    assert_same(&workspace, "1", "again", "cache");
    assert_eq!(workspace.bytes("b/rows.bin"), before);
}

#[test]
fn the_same_ranks_give_the_same_bytes() {
    let workspace = Workspace::with_teacher_and_student();
    for out in ["a", "b"] {
        succeeds(&workspace, 2, &format!("{DISTILL} {STEPS} --out {out}"));
    }
    let [a, b] = ["a", "b"].map(|out| workspace.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b);
}

/// Fewer or more ranks go on where others stopped, with the windows that they would have had.
#[test]
fn another_number_of_ranks_goes_on() {
    let workspace = Workspace::with_teacher_and_student();
    let words = format!("{DISTILL} {STEPS}");
    succeeds(&workspace, 1, &format!("{words} --out 1"));
    for (out, worlds) in [("up", [1, 2, 3]), ("down", [3, 2, 1])] {
        for (n, until) in worlds.into_iter().zip([3, 7, 10]) {
            let words = format!("{words} --out {out} --resume --stop-after {until}");
            succeeds(&workspace, n, &words);
        }
        assert_same(&workspace, "1", out, out);
    }
}

/// Moments and masters in parts give the very weights of ranks that keep all of them.
#[test]
fn ranks_that_keep_parts_of_the_moments_give_the_same_bytes() {
    let workspace = Workspace::with_teacher_and_student();
    for (n, dtype) in [(2, "f32"), (3, "f32"), (2, "bf16")] {
        let words = format!("{DISTILL} {STEPS} --dtype {dtype}");
        let [all, parts] = ["all", "parts"].map(|what| format!("{what}-{n}-{dtype}"));
        let whole = succeeds(&workspace, n, &format!("{words} --out {all}"));
        let divided = succeeds(
            &workspace,
            n,
            &format!("{words} --out {parts} --shard optimizer"),
        );
        let [a, b] = [&all, &parts].map(|out| workspace.bytes(&format!("{out}/model.safetensors")));
        assert!(a == b, "{n} ranks in {dtype}");
        let [a, b] = [whole, divided].map(|report| report["memory"]["predicted_bytes"].clone());
        assert!(a.as_u64() > b.as_u64(), "{a} {b}");
    }
}

/// Layers in parts, brought together for as long as they run, learn what whole ones do.
#[test]
fn ranks_that_keep_parts_of_the_layers_learn_the_same() {
    let workspace = Workspace::with_teacher_and_student();
    let cases = [
        ("plain", STEPS, vec![2, 3]),
        ("window", "--batch-size 1 --tokens 160 --lr 1e-3", vec![3]),
        (
            "bf16",
            "--tokens 640 --lr 1e-3 --teacher-dtype bf16",
            vec![2],
        ),
        (
            "correction",
            "--tokens 640 --lr 1e-3 --correct-teacher 0.2",
            vec![2],
        ),
        (
            "streamed",
            "--tokens 640 --lr 1e-3 --stream-teacher",
            vec![2],
        ),
    ];
    for (what, options, sizes) in cases {
        let words = format!("{DISTILL} {options} --out {what}");
        succeeds(&workspace, 1, &words);
        for n in sizes {
            let parts = format!("{words}-{n} --shard layers");
            let held = succeeds(&workspace, n, &parts);
            let twice = parts.replace(" --shard", "-again --recompute --shard");
            let again = succeeds(&workspace, n, &twice);
            for out in [format!("{what}-{n}"), format!("{what}-{n}-again")] {
                assert_same(&workspace, what, &out, what);
            }
            // What a layer has inside is counted where it is held.
            let said = |report: &Value| report["memory"]["predicted_bytes"].as_u64();
            assert!(said(&held) > said(&again), "{what}: {held} {again}");
        }
    }
}

/// What some ranks kept in parts, any number goes on from; and one process with all of it.
#[test]
fn parts_are_read_by_another_number_of_ranks() {
    let workspace = Workspace::with_teacher_and_student();
    let words = format!("{DISTILL} {STEPS} --checkpoint-every 2");
    succeeds(&workspace, 1, &format!("{words} --out 1"));
    let worlds = [
        (2, "optimizer"),
        (3, "layers"),
        (3, "optimizer"),
        (2, "none"),
        (2, "layers"),
        (1, "layers"),
    ];
    for ((n, shard), until) in worlds.into_iter().zip([2, 4, 5, 7, 8, 10]) {
        let more = format!("--out parts --resume --stop-after {until} --shard {shard}");
        succeeds(&workspace, n, &format!("{words} {more}"));
        let kept = format!("parts/checkpoint/step-{until:08}");
        let has_parts = workspace
            .at(&format!("{kept}/state-00001-of-{n:05}.safetensors"))
            .exists();
        assert_eq!(has_parts, n > 1 && shard != "none", "{kept}");
    }
    assert_same(&workspace, "1", "parts", "parts");
}

#[test]
fn a_part_that_is_missing_is_named_and_an_older_state_is_taken() {
    let workspace = Workspace::with_teacher_and_student();
    let words = format!("{DISTILL} {STEPS} --checkpoint-every 2 --shard optimizer --out out");
    succeeds(&workspace, 2, &format!("{words} --stop-after 4"));
    let part = "out/checkpoint/step-00000004/state-00002-of-00002.safetensors";
    std::fs::remove_file(workspace.at(part)).unwrap();
    let output = run(&workspace, 2, &format!("{words} --resume"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("state-00002-of-00002.safetensors"), "{said}");
}

/// Kills of a rank at a moment of its training: the launcher starts all again, and the run ends as
/// one that nobody disturbed.
#[test]
fn a_rank_that_is_killed_costs_a_restart_and_no_byte() {
    let workspace = Workspace::with_teacher_and_student();
    let words = format!("{DISTILL} {STEPS} --checkpoint-every 2 --resume --comm-timeout 60");
    succeeds(&workspace, 2, &format!("{words} --out calm"));
    for rank in [0, 1] {
        let out = format!("killed{rank}");
        let when = format!("test $(cat {out}/metrics.jsonl 2>/dev/null | wc -l) -ge 3");
        let victim = Victim {
            rank,
            when: &when,
            max_restarts: 2,
            tolerates_losses: false,
        };
        assert_eq!(
            victim.launch(&workspace, &format!("{words} --out {out}")),
            0
        );
        let model = |out: &str| workspace.bytes(&format!("{out}/model.safetensors"));
        assert!(model("calm") == model(&out), "rank {rank}");
    }
}

/// Starts two ranks, of which each has words of its own in place of `EACH`.
fn each(workspace: &Workspace, words: &str, of_each: [&str; 2]) -> Vec<(Option<i32>, String)> {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port().to_string()
    };
    let mut children = Vec::new();
    for (rank, own) in of_each.into_iter().enumerate() {
        let mut command = workspace.command(&words.replace("EACH", own));
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", &port);
        children.push(command.spawn().unwrap());
    }
    let mut said = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push((output.status.code(), text));
    }
    said
}

#[test]
fn ranks_that_are_told_something_else_refuse_by_its_name() {
    let workspace = Workspace::with_teacher_and_student().text("other.txt");
    workspace.write("other.txt", "Another text, of some length. ".repeat(200));
    let common = "distill --teacher teacher --student student --seq-len 32 --tokens 1280 EACH \
        --out out --quiet";
    for (of_each, named) in [
        (
            ["--lr 1e-3 --data text.txt", "--lr 1e-4 --data text.txt"],
            "settings.lr",
        ),
        (
            ["--lr 1e-3 --data text.txt", "--data text.txt"],
            "settings.lr",
        ),
        (["--data text.txt", "--data other.txt"], "inputs.data"),
        (
            ["--data text.txt", "--data text.txt --shard layers"],
            "shard",
        ),
        (
            ["--data text.txt", "--data text.txt --loss jensen_shannon"],
            "inputs.losses",
        ),
    ] {
        for (rank, (code, said)) in each(&workspace, common, of_each).into_iter().enumerate() {
            assert_eq!(code, Some(1), "rank {rank}: {said}");
            let expected = format!("rank 1 has not the same as rank 0 ({named}");
            assert!(said.contains(&expected), "rank {rank}: {said}");
        }
        assert!(!workspace.at("out/metrics.jsonl").exists());
    }
}

#[test]
fn a_command_of_one_process_refuses_to_be_several() {
    let workspace = Workspace::with_teacher_and_student();
    let output = run(&workspace, 2, "inspect teacher");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`inspect` is done by one process"), "{said}");
    let words = format!("{DISTILL} --tokens 1k --out out --device cuda");
    let output = run(&workspace, 2, &words);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("on CPUs alone"), "{said}");
}
