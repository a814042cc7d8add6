use std::collections::BTreeMap;

use minitron::Workspace;
use minitron_core::checkpoint::{Reader, TensorSource};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{run, succeeds};

const DISTILL: &str = "distill --teacher teacher --student student --data text.txt \
    --eval-data text.txt --eval-samples 6 --eval-every 5 --seq-len 32 --batch-size 4 --lr 1e-3 \
    --tokens 2560";

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
    compare("plain", "", &[2, 3]);
}

#[test]
fn ranks_divide_the_windows_of_several_passes_and_fewer_windows_than_ranks() {
    compare("accumulate", "--accumulate 2", &[3]);
    compare("one window", "--batch-size 1 --tokens 640", &[2]);
}

#[test]
fn ranks_that_are_told_something_else_refuse_by_its_name() {
    let workspace = Workspace::with_teacher_and_student();
    // The launcher gives all ranks the same words: the shell gives each its own.
    let script = format!(
        "exec {} {DISTILL} --lr 1e-$((RANK + 3)) --out out --quiet",
        minitron::binary().display()
    );
    workspace.write("rank.sh", script);
    let children: Vec<_> = (0..2)
        .map(|rank: usize| {
            let mut command = std::process::Command::new("sh");
            command
                .arg("rank.sh")
                .current_dir(workspace.root())
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", "2")
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", "29871")
                .stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (rank, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {said}");
        assert!(
            said.contains("rank 1 has not the same as rank 0 (settings.lr"),
            "{said}"
        );
    }
    assert!(!workspace.at("out/metrics.jsonl").exists());
}

#[test]
fn a_command_of_one_process_refuses_to_be_several() {
    let workspace = Workspace::with_teacher_and_student();
    let output = run(&workspace, 2, "inspect teacher");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`inspect` is done by one process"), "{said}");
}
