//! What `prune` says of held-out text is what `eval` says of the folders that it would write.

use minitron::{
    Workspace, tiny_bert, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_nemotron_h, tiny_qwen2_moe,
};
use serde_json::{Value, json};

const TEXT: &str = "--seq-len 16 --batch-size 3";

/// A teacher with scores, and text to fit to and to hold out.
fn scored(config: &Value) -> Workspace {
    let workspace = Workspace::new().model("teacher", config, 1);
    let workspace = workspace.text("text.txt");
    let held_out: String = minitron::some_text().chars().rev().collect();
    let workspace = workspace.file("held-out.txt", held_out);
    workspace.json(&format!(
        "score teacher --data text.txt --samples 8 {TEXT} --metric activation --metric \
         block_influence --out scores.safetensors"
    ));
    workspace
}

fn prune(workspace: &Workspace, sizes: &str, words: &str) -> Value {
    workspace.json(&format!(
        "prune teacher --scores scores.safetensors --by depth=block_influence --by activation \
         {sizes} --eval-data held-out.txt --eval-samples 7 {TEXT} {words} --force"
    ))["held_out"]
        .clone()
}

/// Of one of the two, as evaluations call it.
fn agrees(found: &Value, evaluated: &Value, about: &str) {
    let mut n_compared = 0;
    for (key, name) in [
        ("loss", "loss"),
        ("kl", "kl_to_teacher"),
        ("cosine", "hidden_cosine"),
    ] {
        let Some(found) = found[key].as_f64() else {
            continue;
        };
        let expected = evaluated[name].as_f64().unwrap();
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= 1e-5, "{about}: {key} {found}, {name} {expected}");
        n_compared += 1;
    }
    assert!(n_compared > 0, "{about}: {found}");
}

#[test]
fn held_out_numbers_are_those_of_evaluations() {
    let mut headless = tiny_llama();
    headless["architectures"] = json!(["LlamaModel"]);
    let mut encoder = tiny_bert();
    encoder["architectures"] = json!(["BertModel"]);
    for (config, sizes) in [
        (tiny_llama(), "--hidden 24 --mlp 24 --layers 2"),
        (headless, "--mlp 24 --layers 2"),
        (tiny_gpt2(), "--hidden 24"),
        (encoder, "--mlp 24"),
        (tiny_gemma3(), "--mlp 24"),
        (tiny_nemotron_h(), "--size mamba_heads=4"),
        (tiny_qwen2_moe(), "--size experts=3"),
    ] {
        let workspace = scored(&config);
        let about = format!("{} {sizes}", config["architectures"][0]);
        let evaluated = |model: &str| {
            workspace.json(&format!(
                "eval {model} --teacher teacher --data held-out.txt --samples 7 {TEXT}"
            ))
        };
        let plain = prune(&workspace, sizes, "--reconstruct none --out plain");
        assert_eq!(plain["student"], plain["plain"], "{about}");
        agrees(&plain["plain"], &evaluated("plain"), &about);
        let text = "--data text.txt --samples 8";
        let found = prune(&workspace, sizes, &format!("{text} --out student"));
        assert_eq!(found["plain"], plain["plain"], "{about}");
        agrees(&found["student"], &evaluated("student"), &about);
        if let Some(of_source) = found["loss_source"].as_f64() {
            let expected = evaluated("teacher")["loss"].as_f64().unwrap();
            assert!((of_source - expected).abs() <= 1e-5, "{about}");
        }
        let saved = workspace.value("student/plan.json");
        assert_eq!(saved["held_out"], found, "{about}");
        let streamed = format!("{text} --max-memory 8GiB --out streamed");
        assert_eq!(prune(&workspace, sizes, &streamed), found, "{about}");
        let dry = format!("{text} --dry-run");
        assert_eq!(prune(&workspace, sizes, &dry), found, "{about}");
    }
}

#[test]
fn a_student_that_went_farther_than_the_plain_cut_is_warned_of() {
    let workspace = scored(&tiny_llama());
    let words = |reconstruct: &str| {
        format!(
            "prune teacher --scores scores.safetensors --by activation --mlp 40 --data text.txt \
             --samples 1 --seq-len 4 --reconstruct {reconstruct} --eval-data held-out.txt \
             --dry-run --json"
        )
    };
    let said = |reconstruct: &str| {
        let output = workspace.run(&words(reconstruct));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kl = |of: &str| report["held_out"][of]["kl"].as_f64().unwrap();
        let is_farther = kl("student") > kl("plain");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (is_farther, stderr.contains("farther from its source"))
    };
    // Four tokens tell nothing of the rest.
    assert_eq!(said("least_squares:ridge=1e-6"), (true, true));
    assert_eq!(said("least_squares:ridge=1e6"), (false, false));
}

#[test]
fn held_out_options_that_ask_for_nothing_are_refused() {
    let workspace = scored(&tiny_llama());
    for (words, code, says) in [
        ("--eval-samples 3", 2, "no eval_data is given"),
        ("--eval-data absent.txt", 1, "eval_data: data: `absent.txt`"),
        ("--eval-data out", 2, "eval_data"),
    ] {
        let output = workspace.run(&format!(
            "prune teacher --scores scores.safetensors --mlp 24 --by activation {words} --out out"
        ));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words}: {stderr}");
        assert!(stderr.contains(says), "{words}: {stderr}");
    }
}
