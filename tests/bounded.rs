//! Jobs on a model larger than the memory they are given.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::process::Command;

use minitron::{add_demo_tokenizer, tiny_llama, with_demo_vocabulary, write_tiny};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "slow: a model of 670 MB"]
fn scoring_layer_by_layer_and_pruning_keep_to_the_memory_they_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_demo_vocabulary(tiny_llama());
    let sizes = [
        ("hidden_size", 1024),
        ("intermediate_size", 4096),
        ("num_hidden_layers", 10),
        ("head_dim", 64),
    ];
    for (key, value) in sizes
        .into_iter()
        .chain([("num_attention_heads", 16), ("num_key_value_heads", 16)])
    {
        config[key] = json!(value);
    }
    config["initializer_range"] = json!(0.02);
    write_tiny(&dir.path().join("model"), &config, 1).unwrap();
    add_demo_tokenizer(&dir.path().join("model")).unwrap();
    fs::write(dir.path().join("text.txt"), minitron::some_text()).unwrap();
    let n_bytes = fs::metadata(dir.path().join("model/model.safetensors"))
        .unwrap()
        .len();
    let limits = [
        ("scores", 540 * MIB),
        ("pruned", 300 * MIB),
        ("reconstructed", 900 * MIB),
    ];
    let recipe = format!(
        "[[stages]]\nname = \"scores\"\ndo = \"score\"\nmodel = \"model\"\ndata = \
         [\"text.txt\"]\nsamples = 8\nseq_len = 64\n\
         batch_size = 2\nstream = true\nmax_memory = \"{}MiB\"\n[[stages]]\nname = \"pruned\"\ndo \
         = \"prune\"\nmodel = \"model\"\n\
         scores = \"scores\"\nmlp = 2048\nmax_memory = \"{}MiB\"\n[[stages]]\nname = \
         \"reconstructed\"\ndo = \"prune\"\nmodel = \"model\"\nscores = \"scores\"\nhidden = \
         512\nmlp = 2048\ndata = [\"text.txt\"]\nsamples = 32\nseq_len = 64\nbatch_size = \
         4\neval_data = [\"text.txt\"]\neval_samples = 8\nmax_memory = \"{}MiB\"\n",
        limits[0].1 / MIB,
        limits[1].1 / MIB,
        limits[2].1 / MIB
    );
    fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    let output = Command::new(minitron::binary())
        .args([
            "run",
            "recipe.toml",
            "--out",
            "run",
            "--json",
            "--quiet",
            "--threads",
            "1",
        ])
        .current_dir(dir.path())
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (stage, (name, limit)) in report["stages"].as_array().unwrap().iter().zip(limits) {
        let peak = stage["peak_bytes"].as_u64().unwrap();
        eprintln!(
            "{name}: {} of {} MiB, a model of {} MiB",
            peak / MIB,
            limit / MIB,
            n_bytes / MIB
        );
        assert!(
            stage["name"] == name && peak <= limit && (limit < n_bytes || name == "reconstructed"),
            "{name}: {peak} of {limit}"
        );
    }
}
