#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::path::Path;
use std::process::{Command, Output};

use minitron::{binary, root};

/// `tools/gpu_check.sh OUT`, and what it says.
fn gpu_check(out: &Path, variables: &[(&str, &str)]) -> Output {
    Command::new("bash")
        .arg(root().join("tools/gpu_check.sh"))
        .arg(out)
        .env("MINITRON", binary())
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn without_a_gpu_the_check_says_so_and_ends_with_an_error_of_its_own() {
    if Command::new("nvidia-smi").output().is_ok() {
        println!("absent, not tested: a machine without a GPU");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gpu_check.md");
    for (variables, code, says) in [
        (vec![], 77, "no GPU: nothing was checked"),
        (
            vec![("DEVICE", "tpu")],
            78,
            "expected cuda or cpu, got `tpu`",
        ),
        (
            vec![("DEVICE", "cpu"), ("MINITRON", "nowhere")],
            78,
            "no binary at nowhere",
        ),
    ] {
        let output = gpu_check(&out, &variables);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
        assert!(!out.exists());
    }
}

/// Nothing of a GPU: that the steps run and the table is written.
#[test]
#[ignore = "slow: a minute of small jobs"]
fn the_check_runs_from_end_to_end_on_a_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gpu_check.md");
    let output = gpu_check(&out, &[("DEVICE", "cpu")]);
    let table = std::fs::read_to_string(&out).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}");
    assert!(table.starts_with("a trial on the CPU"), "{table}");
    for row in [
        "eval in bf16",
        "score in f32",
        "distill in bf16, layers run again",
        "transformers",
    ] {
        assert!(table.contains(row), "no {row}: {table}");
    }
    assert!(!table.contains("not reached"), "{table}");
}
