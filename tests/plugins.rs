#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{
    add_demo_tokenizer, binary, minitron, python, registry, root, run_python, some_ids, tiny_llama,
    with_context, with_demo_vocabulary, write_tiny,
};
use minitron_core::calibrate::Scores;
use minitron_core::contract::{LogitLoss, StateLoss, States};
use minitron_core::model::{Cache, LoadOptions, NoTap, Transformer};
use minitron_core::registry::{Handshake, Kind, Registry};
use minitron_core::spec::ModelFolder;
use minitron_engine::jobs::{ScoreOptions, score};
use tch::Tensor;
use tempfile::TempDir;

/// The same source as in the library: here it is linked.
#[path = "../examples/plugins/src/mean_power.rs"]
mod mean_power;

/// The examples as a library.
fn examples() -> PathBuf {
    binary().with_file_name("libminitron_examples.so")
}

/// A command's standard error, with the folder's name taken out; it must fail with this code.
fn refusal(dir: &TempDir, args: &[&str], code: i32) -> String {
    let output = minitron(args).unwrap();
    let text =
        String::from_utf8_lossy(&output.stderr).replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    text.trim().to_owned()
}

fn succeed(args: &[&str]) {
    let output = minitron(args).unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A model, a text, and the words for them.
fn desk() -> (TempDir, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    write_tiny(&model, &with_demo_vocabulary(tiny_llama()), 3).unwrap();
    add_demo_tokenizer(&model).unwrap();
    let text = dir.path().join("text.txt");
    fs::write(&text, minitron::some_text()).unwrap();
    let words = |path: &Path| path.display().to_string();
    (dir, words(&model), words(&text))
}

#[test]
fn a_linked_and_an_opened_plugin_give_the_same_bytes() {
    let (dir, model, text) = desk();
    let out = |name: &str| dir.path().join(name).display().to_string();
    let (linked, opened) = (out("linked.safetensors"), out("opened.safetensors"));
    let options = ScoreOptions {
        model: model.clone(),
        data: vec![text.parse().unwrap()],
        metrics: vec!["mean_power:power=1.5".parse().unwrap()],
        samples: 8,
        seq_len: Some(32),
        ..ScoreOptions::default()
    };
    assert!(registry().find(Kind::Importance, "mean_power").is_ok());
    with_context(false, |context| {
        score(context, &options, Path::new(&linked))
    })
    .unwrap();
    let library = examples().display().to_string();
    succeed(&[
        "--plugin",
        &library,
        "score",
        &model,
        "--data",
        &text,
        "--metric",
        "mean_power:power=1.5",
        "--samples",
        "8",
        "--seq-len",
        "32",
        "--out",
        &opened,
    ]);
    assert!(fs::read(linked).unwrap() == fs::read(opened).unwrap());
}

#[test]
fn every_kind_of_opened_plugin_does_its_part() {
    let (dir, model, text) = desk();
    let library = examples().display().to_string();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let with =
        |args: &[&str]| succeed(&[&["--plugin", library.as_str(), "--quiet"], args].concat());
    succeed(&["plugins", "check", &library]);
    let (scores, student) = (at("scores.safetensors"), at("student"));
    with(&[
        "score",
        &model,
        "--data",
        &text,
        "--metric",
        "activation",
        "--samples",
        "8",
        "--out",
        &scores,
    ]);
    with(&[
        "prune",
        &model,
        "--scores",
        &scores,
        "--axis",
        "mlp_tiles:tile=8",
        "--allocator",
        "half_mlp",
        "--heal",
        "norm_keeping",
        "--out",
        &student,
    ]);
    let distilled = at("distilled");
    with(&[
        "distill",
        "--teacher",
        &model,
        "--student",
        &student,
        "--data",
        &text,
        "--loss",
        "skew_kl",
        "--loss",
        "log_cosh:weight=0.1",
        "--tokens",
        "256",
        "--seq-len",
        "32",
        "--batch-size",
        "2",
        "--out",
        &distilled,
    ]);
    let paragraphs = at("text.paragraphs");
    fs::write(
        &paragraphs,
        "One day, the cat saw a dog.\n\nThe dog saw the cat.\n".repeat(20),
    )
    .unwrap();
    with(&[
        "eval",
        &distilled,
        "--data",
        &paragraphs,
        "--evaluator",
        "token_accuracy",
        "--seq-len",
        "16",
    ]);
}

#[test]
fn a_recipe_names_its_libraries_and_pins_them() {
    let (dir, model, text) = desk();
    let recipe = |pin: &str| {
        let text = format!(
            "[plugins]\nmine = {{ path = \"{}\"{pin} }}\n[[stages]]\nname = \"scores\"\ndo \
             = \"score\"\n\
             model = \"{model}\"\ndata = [\"{text}\"]\nmetrics = [{{ type = \"mean_power\" \
             }}]\nsamples = 4\nseq_len = 32\n",
            examples().display()
        );
        let path = dir.path().join("recipe.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let out = dir.path().join("run").display().to_string();
    let digest = minitron_core::digest::of_file(&examples()).unwrap();
    succeed(&[
        "run",
        &recipe(&format!(", sha256 = \"{digest}\"")),
        "--out",
        &out,
    ]);
    let wrong = recipe(", sha256 = \"00\"");
    let text = refusal(&dir, &["run", &wrong, "--out", &out], 1);
    assert!(
        text.contains("sha256: expected 00, got ") && text.contains("libminitron_examples.so"),
        "{text}"
    );
    let stray = recipe(", sha = \"00\"");
    assert!(refusal(&dir, &["run", &stray, "--out", &out], 2).contains("unknown field `sha`"));
}

/// A library of the example's bytes with some of them changed.
fn patched(dir: &TempDir, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = fs::read(examples()).unwrap();
    change(&mut bytes);
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// Where the handshake lies in the library's file: its first bytes and the core's version.
fn handshake_at(bytes: &[u8]) -> usize {
    let core = Handshake::OURS.fields()[1].1.clone();
    let magic = b"minitron plugin\0";
    let is_here = |at: &usize| {
        bytes[*at..].starts_with(magic)
            && bytes
                .get(at + 24..)
                .is_some_and(|rest| rest.starts_with(core.as_bytes()))
    };
    (0..bytes.len() - magic.len()).find(is_here).unwrap()
}

#[test]
fn what_is_no_plugin_of_this_build_is_refused_by_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let check = |library: &str| refusal(&dir, &["plugins", "check", library], 1);
    let text = dir.path().join("text.so").display().to_string();
    fs::write(&text, "not a library").unwrap();
    insta::assert_snapshot!(
        check(&text),
        @"error: plugin: `text.so` (DIR/text.so): not a library: expected an ELF shared object"
    );
    let other = patched(&dir, "other.so", |bytes| bytes[18] = 183);
    insta::assert_snapshot!(
        check(&other),
        @"error: plugin: `other.so` (DIR/other.so): built for another processor: expected x86_64, \
          got aarch64; build it on, or for, this machine"
    );
    let absent = dir.path().join("absent.so").display().to_string();
    assert!(
        check(&absent).contains("absent.so: No such file"),
        "{}",
        check(&absent)
    );
    let cut = patched(&dir, "cut.so", |bytes| bytes.truncate(4096));
    assert!(
        check(&cut).contains("cut off: expected at least "),
        "{}",
        check(&cut)
    );

    let older = patched(&dir, "older.so", |bytes| {
        let at = handshake_at(bytes);
        bytes[at + 24..at + 29].copy_from_slice(b"0.0.9");
    });
    let text = check(&older);
    assert!(
        text.contains("built otherwise than this program: core: this program has 0.1.0+"),
        "{text}"
    );
    assert!(
        text.contains(", the library 0.0.9+") && text.contains("rebuild it against this core"),
        "{text}"
    );
    let contract = patched(&dir, "contract.so", |bytes| {
        let at = handshake_at(bytes);
        bytes[at + 16] = 9;
    });
    assert!(
        check(&contract).contains("contract: this program has 1 "),
        "{}",
        check(&contract)
    );
    let foreign = patched(&dir, "foreign.so", |bytes| {
        let at = handshake_at(bytes);
        bytes[at..at + 8].copy_from_slice(b"mini-me ");
    });
    assert!(
        check(&foreign).contains("magic: this program has minitron plugin"),
        "{}",
        check(&foreign)
    );
}

#[test]
fn libraries_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("empty.rs"), "").unwrap();
    let rustc = |args: &[&str]| {
        let output = Command::new("rustc")
            .current_dir(dir.path())
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    rustc(&["--crate-type", "cdylib", "-o", "plain.so", "empty.rs"]);
    insta::assert_snapshot!(
        refusal(&dir, &["plugins", "check", &at("plain.so")], 1),
        @"error: plugin: `plain.so` (DIR/plain.so): no MINITRON_HANDSHAKE in it: not a plugin of \
          minitron; call minitron_core::export_plugins!()"
    );
    // One that needs a libtorch which goes away.
    rustc(&[
        "--crate-type",
        "cdylib",
        "-o",
        "libtorch_gone.so",
        "empty.rs",
    ]);
    rustc(&[
        "--crate-type",
        "cdylib",
        "-o",
        "needy.so",
        "-C",
        "link-arg=-Wl,--no-as-needed",
        "-C",
        "link-arg=-L.",
        "-C",
        "link-arg=-l:libtorch_gone.so",
        "empty.rs",
    ]);
    fs::remove_file(at("libtorch_gone.so")).unwrap();
    let text = refusal(&dir, &["plugins", "check", &at("needy.so")], 1);
    assert!(
        text.contains("it needs a libtorch that is not here: libtorch_gone.so"),
        "{text}"
    );
    // Two libraries with the same plugins.
    let (one, two) = (
        examples().display().to_string(),
        patched(&dir, "again.so", |_| ()),
    );
    let text = refusal(
        &dir,
        &["--plugin", &one, "--plugin", &two, "plugins", "list"],
        1,
    );
    assert!(
        text.contains("another ")
            && text.contains(" plugin of that tag comes from minitron-examples"),
        "{text}"
    );
    // The search path opens each once, whoever names it too.
    let searched = Command::new(binary())
        .args(["--plugin", &two, "plugins", "list", "--json"])
        .env("MINITRON_PLUGIN_PATH", format!(":{}", dir.path().display()))
        .output()
        .unwrap();
    assert_eq!(searched.status.code(), Some(1));
    fs::remove_file(at("plain.so")).unwrap();
    fs::remove_file(at("needy.so")).unwrap();
    let searched = Command::new(binary())
        .args(["--plugin", &two, "plugins", "list", "--json"])
        .env("MINITRON_PLUGIN_PATH", format!(":{}", dir.path().display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&searched.stdout).into_owned();
    assert!(
        searched.status.success() && text.contains("skew_kl"),
        "{}",
        String::from_utf8_lossy(&searched.stderr)
    );
}

/// The guide's first chapter, step by step, outside the repository; then the same plugin with a
/// mistake.
/// What is tested is that it builds and runs, not how fast.
const QUICK: &str = "profile.release.package.minitron-core.opt-level=0";

#[test]
fn a_new_plugin_builds_passes_and_runs_as_it_is_and_its_panic_is_an_error() {
    let (dir, model, text) = desk();
    let crate_dir = dir.path().join("my-metric");
    let here = crate_dir.display().to_string();
    succeed(&["plugins", "new", "importance", &here]);
    assert!(
        refusal(&dir, &["plugins", "new", "importance", &here], 2)
            .contains("there is something already")
    );
    // The cargo of this build's target folder, so that what is compiled stays for the next time.
    let target = binary().ancestors().nth(2).unwrap().to_path_buf();
    let cargo = |args: &[&str]| {
        let output = Command::new("cargo")
            .current_dir(&crate_dir)
            .args(args)
            .args(["--release", "--offline", "--config", QUICK])
            .env("CARGO_TARGET_DIR", &target)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    cargo(&["test"]);
    cargo(&["build"]);
    let library = binary()
        .with_file_name("libmy_metric.so")
        .display()
        .to_string();
    succeed(&["plugins", "check", &library]);
    let out = dir.path().join("scores.safetensors").display().to_string();
    let score = [
        "--plugin",
        &library,
        "score",
        &model,
        "--data",
        &text,
        "--metric",
        "my_metric",
        "--samples",
        "4",
    ];
    let score = [&score[..], &["--seq-len", "32", "--out", &out, "--force"]].concat();
    succeed(&score);

    let code = crate_dir.join("src/my_metric.rs");
    let good = fs::read_to_string(&code).unwrap();
    // One that panics where it is asked, shown and dropped: no unwinding leaves its library.
    let broken = good.replace(
        "        // One number per window and unit;",
        "        assert!(self.power < 0.0, \"power is {}\", self.power);\n        // One number \
         per window and unit;",
    );
    let dropped = "\nimpl Drop for Seen \
                   {\n    fn drop(&mut self) {\n        panic!(\"at its end\");\n    }\n}\n";
    fs::write(&code, broken + dropped).unwrap();
    cargo(&["build"]);
    let said = refusal(&dir, &score, 1);
    let names = "error: plugin: `my_metric` (my_metric 0.1.0): ";
    assert!(
        said.contains("at its end") && said.ends_with(&format!("{names}it panicked: power is 1")),
        "{said}"
    );
    let said = refusal(&dir, &["plugins", "check", &library], 1);
    assert!(
        said.ends_with(&format!("{names}it panicked: power is 1")),
        "{said}"
    );

    // One that looks at how many windows came at once: every number is finite, and the law is
    // broken.
    fs::write(
        &code,
        good.replace(
            "value.powf(self.power)",
            "value.powf(self.power) / stat_bu.len() as f64",
        ),
    )
    .unwrap();
    cargo(&["build"]);
    let said = refusal(&dir, &["plugins", "check", &library], 1);
    assert!(
        said.ends_with(&format!(
            "{names}`my_metric/mlp.0` depends on how windows are batched"
        )),
        "{said}"
    );
}

/// Minutes: in the slow set.
#[test]
#[ignore = "slow: builds the program twice: minutes"]
fn a_change_of_the_engine_leaves_a_library_valid_and_one_of_the_core_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("minitron");
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .unwrap();
    if !listed.status.success() {
        println!("absent, not tested: git");
        return;
    }
    for name in String::from_utf8(listed.stdout)
        .unwrap()
        .split_terminator('\0')
    {
        let (from, to) = (root().join(name), at.join(name));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
    // What other packages were built to is taken over: as hard links, since cargo writes new files
    // and changes none.
    let built = binary().parent().unwrap().to_path_buf();
    let target = at.join("target/release");
    fs::create_dir_all(&target).unwrap();
    for part in ["deps", "build", ".fingerprint"] {
        let copied = Command::new("cp")
            .arg("-al")
            .args([built.join(part), target.join(part)])
            .status()
            .unwrap();
        assert!(copied.success());
    }
    // The one that those packages were built with.
    let libtorch = std::env::var_os("LIBTORCH")
        .map_or_else(|| root().join(".deps/libtorch/torch"), PathBuf::from);
    let built = |package: &str| {
        // The levels of development: what is asked is whether libraries open.
        let levels = ["core", "engine", "plugins", "cli"]
            .map(|name| format!("profile.release.package.minitron-{name}.opt-level=0"));
        let mut cargo = Command::new("cargo");
        cargo
            .current_dir(&at)
            .args(["build", "--release", "--offline", "--locked", "-p", package]);
        cargo.args(levels.iter().flat_map(|level| ["--config", level]));
        let output = cargo
            .env("CARGO_TARGET_DIR", at.join("target"))
            .env("LIBTORCH", &libtorch)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{package}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let check = || {
        let library = target.join("libminitron_examples.so");
        Command::new(target.join("minitron"))
            .args(["plugins", "check"])
            .arg(library)
            .output()
            .unwrap()
    };
    let change = |file: &str| {
        let text = fs::read_to_string(at.join(file)).unwrap();
        fs::write(at.join(file), text + "\n/// Added.\npub fn added() {}\n").unwrap();
    };
    built("minitron-examples");
    change("minitron-engine/src/memory.rs");
    built("minitron-cli");
    let output = check();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    change("minitron-core/src/random.rs");
    built("minitron-cli");
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("built otherwise than this program: core:"),
        "{error}"
    );
}

#[test]
#[ignore = "builds a crate of every kind: minutes"]
fn a_new_plugin_of_every_kind_builds_passes_and_keeps_its_law() {
    let dir = tempfile::tempdir().unwrap();
    let target = binary().ancestors().nth(2).unwrap().to_path_buf();
    for kind in Kind::ALL {
        let at = dir
            .path()
            .join(format!("own-{}", kind.name().replace('_', "-")));
        succeed(&["plugins", "new", kind.name(), &at.display().to_string()]);
        for job in ["test", "build"] {
            let output = Command::new("cargo")
                .current_dir(&at)
                .args([job, "--release", "--offline"])
                .env("CARGO_TARGET_DIR", &target)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{kind} {job}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let library = binary().with_file_name(format!("libown_{}.so", kind.name()));
        succeed(&["plugins", "check", &library.display().to_string()]);
        fs::remove_file(library).unwrap();
    }
}

/// Every other kind's crate is written, with names of its own; the example that it starts from is
/// built above.
#[test]
fn every_kind_has_a_crate_to_start_from() {
    let dir = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        let at = dir
            .path()
            .join(format!("own-{}", kind.name().replace('_', "-")));
        succeed(&["plugins", "new", kind.name(), &at.display().to_string()]);
        let tag = format!("own_{}", kind.name());
        let code = fs::read_to_string(at.join(format!("src/{tag}.rs"))).unwrap();
        let camel: String = kind
            .name()
            .split('_')
            .map(|w| w[..1].to_uppercase() + &w[1..])
            .collect();
        assert!(
            code.contains(&format!("for Own{camel} {{"))
                && code.contains(&format!("tag: \"{tag}\"")),
            "{code}"
        );
    }
    let bad = dir.path().join("Bad Name").display().to_string();
    assert!(
        refusal(&dir, &["plugins", "new", "loss", &bad], 2)
            .contains("the folder gives the plugin its name")
    );
}

const GLM4: &str = r#"
import sys, torch, numpy as np
from transformers import Glm4Config, Glm4ForCausalLM
job, folder = sys.argv[1:3]
if job == "make":
    torch.manual_seed(1)
    config = Glm4Config(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, vocab_size=512, max_position_embeddings=64, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        pad_token_id=0, eos_token_id=0, tie_word_embeddings=True)
    model = Glm4ForCausalLM(config)
    for name, p in model.named_parameters():
        if p.dim() == 1: torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.4)
    model.save_pretrained(folder)
else:
    model, info = Glm4ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ids = torch.from_numpy(np.load(sys.argv[3]))
    with torch.no_grad(): np.save(sys.argv[4], model.eval()(input_ids=ids).logits.numpy())
"#;

#[test]
fn a_family_of_a_library_is_transformers_own_whole_and_pruned() {
    if python().is_none() {
        std::io::Write::write_all(
            &mut std::io::stderr(),
            b"absent, not tested: transformers\n",
        )
        .ok();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let run = |args: &[&str]| {
        let output = run_python(Path::new(&at("glm4.py")), args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    fs::write(at("glm4.py"), GLM4).unwrap();
    run(&["make", &at("whole")]);
    add_demo_tokenizer(Path::new(&at("whole"))).unwrap();
    fs::write(at("text.txt"), minitron::some_text()).unwrap();
    let library = examples().display().to_string();
    let with =
        |args: &[&str]| succeed(&[&["--plugin", library.as_str(), "--quiet"], args].concat());
    with(&[
        "score",
        &at("whole"),
        "--data",
        &at("text.txt"),
        "--samples",
        "8",
        "--out",
        &at("scores.safetensors"),
    ]);
    with(&[
        "prune",
        &at("whole"),
        "--scores",
        &at("scores.safetensors"),
        "--hidden",
        "48",
        "--mlp",
        "64",
        "--kv-heads",
        "2",
        "--layers",
        "2",
        "--out",
        &at("pruned"),
    ]);
    let ids = some_ids(2, 20, 512, 1).unwrap();
    ids.write_npy(at("ids.npy")).unwrap();
    // One of its plugins is linked here, too.
    let opened = minitron_plugins::open(&examples()).unwrap();
    let opened = opened
        .into_iter()
        .filter(|plugin| plugin.kind == Kind::Architecture)
        .collect();
    let registry: Registry = registry().with_library(String::new(), opened).unwrap();
    for name in ["whole", "pruned"] {
        run(&["logits", &at(name), &at("ids.npy"), &at("logits.npy")]);
        let theirs = tch::Tensor::read_npy(at("logits.npy")).unwrap();
        let folder = ModelFolder::open(Path::new(&at(name)), &registry).unwrap();
        assert_eq!(folder.spec.architecture, "glm4");
        let model = Transformer::load(
            &folder.checkpoint.tensors,
            &folder.spec,
            LoadOptions::default(),
        )
        .unwrap();
        // All at once, and behind the states of earlier tokens.
        for pieces in [vec![(0, 20)], vec![(0, 9), (9, 1), (10, 10)]] {
            let mut cache = Cache::new(&model);
            let hidden = |(start, n)| {
                model
                    .hidden(&ids.narrow(1, start, n), &mut NoTap, Some(&mut cache))
                    .unwrap()
            };
            let ours = model
                .logits(&tch::Tensor::cat(
                    &pieces.into_iter().map(hidden).collect::<Vec<_>>(),
                    1,
                ))
                .unwrap();
            let difference = (&ours - &theirs).abs().max().double_value(&[]);
            assert!(
                difference <= 1e-4 && difference.is_finite(),
                "{name}: {difference:e}"
            );
        }
        assert!(theirs.abs().max().double_value(&[]) > 1.0);
    }
}

#[test]
fn recipes_are_checked_before_they_run_and_described_by_a_schema() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root().join("examples/recipes")).unwrap() {
        succeed(&[
            "recipe",
            "check",
            &entry.unwrap().path().display().to_string(),
        ]);
    }
    let recipe = |metrics: &str| {
        let path = dir.path().join("recipe.toml");
        let stage = "[[stages]]\nname = \"a\"\ndo = \"score\"\nmodel = \"m\"\n";
        fs::write(&path, format!("{stage}metrics = [{metrics}]\n")).unwrap();
        path.display().to_string()
    };
    let by_median = recipe("{ type = \"activation\", as = \"a\", seq = \"median\" }");
    insta::assert_snapshot!(
        refusal(&dir, &["recipe", "check", &by_median], 2),
        @"error: stages[0] (a): metrics: recipe: importance `activation`: unknown variant \
          `median`, expected one of `mean`, `l2`, `var`"
    );
    let unknown = refusal(
        &dir,
        &["recipe", "check", &recipe("{ type = \"skew_kl\" }")],
        2,
    );
    assert!(unknown.contains(
        "stages[0] (a): metrics: recipe: no importance plugin is called `skew_kl`; known: "
    ));
    let library = examples().display().to_string();
    let output = minitron(&["--plugin", &library, "recipe", "schema"]).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let losses = schema["$defs"]["losses"]["oneOf"].as_array().unwrap();
    let skewed = losses
        .iter()
        .find(|loss| loss["properties"]["type"]["const"] == "skew_kl")
        .unwrap();
    assert!(
        skewed["properties"]["share"]["description"]
            .as_str()
            .unwrap()
            .contains("share of the mixture")
    );
    assert_eq!(skewed["properties"]["share"]["maximum"], 1.0);
    assert_eq!(skewed["additionalProperties"], false);
    // Every reference leads somewhere.
    fn references(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                object.iter().for_each(|(key, value)| match value.as_str() {
                    Some(to) if key == "$ref" => found.push(to.to_owned()),
                    _ => references(value, found),
                })
            }
            serde_json::Value::Array(list) => {
                list.iter().for_each(|value| references(value, found))
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&schema, &mut found);
    assert!(
        !found.is_empty() && found.iter().all(|to| schema.pointer(&to[1..]).is_some()),
        "{found:?}"
    );
    assert_eq!(
        schema["properties"]["stages"]["items"]["oneOf"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
}

/// Whether a schema says what kind of value it takes.
fn is_typed(schema: &serde_json::Value) -> bool {
    let all = |key: &str| {
        schema[key]
            .as_array()
            .is_some_and(|choices| choices.iter().all(is_typed))
    };
    !schema["type"].is_null() || schema["$ref"].is_string() || all("oneOf") || all("anyOf")
}

#[test]
fn every_option_of_every_stage_has_a_type_and_a_description_and_no_null() {
    let output = minitron(&["recipe", "schema"]).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let stages = schema["properties"]["stages"]["items"]["oneOf"]
        .as_array()
        .unwrap();
    let mut n_options = 0;
    for stage in stages {
        for (key, option) in stage["properties"].as_object().unwrap() {
            n_options += 1;
            let place = format!("{} {key}: {option}", stage["properties"]["do"]["const"]);
            assert!(
                option["description"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{place}"
            );
            assert!(is_typed(option), "{place}");
            assert!(!option.to_string().contains("null"), "{place}");
        }
    }
    assert!(n_options > 100, "{n_options}");
    let option = |job: &str, key: &str| {
        let stage = stages
            .iter()
            .find(|stage| stage["properties"]["do"]["const"] == job)
            .unwrap();
        stage["properties"][key].clone()
    };
    assert_eq!(option("train", "lr")["type"], "number");
    assert_eq!(
        option("distill", "tokens")["anyOf"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(option("prune", "hidden")["type"], "integer");
    assert_eq!(
        option("prune", "hidden")["description"],
        "Residual channels to keep."
    );
    assert_eq!(
        option("prune", "size")["additionalProperties"]["type"],
        "integer"
    );
    assert_eq!(
        option("search", "size")["additionalProperties"],
        option("search", "grid")["additionalProperties"]
    );
    assert_eq!(option("distill", "stream_teacher")["default"], false);
    assert_eq!(option("score", "data")["items"]["type"], "string");
    assert_eq!(
        option("score", "metrics")["items"]["$ref"],
        "#/$defs/metrics"
    );
    let packs: Vec<_> = option("eval", "pack")["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["const"].clone())
        .collect();
    assert_eq!(packs, ["auto", "stream", "documents", "whole"]);
}

/// The templates of examples/pytorch, saved by the PyTorch that is installed.
fn scripts(dir: &Path) -> Option<[String; 4]> {
    if python().is_none() {
        std::io::Write::write_all(&mut std::io::stderr(), b"absent, not tested: PyTorch\n").ok();
        return None;
    }
    Some(
        ["importance", "loss", "state_loss", "reconstruction"].map(|name| {
            let script = root().join(format!("examples/pytorch/{name}.py"));
            let path = dir.join(format!("{name}.pt"));
            let output = run_python(&script, [&path]);
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            path.display().to_string()
        }),
    )
}

/// Value and gradient of a scalar.
fn with_gradient(x: &Tensor, value: impl Fn(&Tensor) -> Tensor) -> (Tensor, Tensor) {
    let leaf = x.copy().set_requires_grad(true);
    let value = value(&leaf);
    value.sum(tch::Kind::Double).backward();
    (value.detach(), leaf.grad())
}

fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    let (difference, size) = (
        (ours - theirs).abs().max().double_value(&[]),
        theirs.abs().max().double_value(&[]),
    );
    assert!(
        size > 0.0 && difference <= tolerance * size,
        "{what}: {difference:e} of {size}"
    );
}

#[test]
fn losses_in_pytorch_are_their_twins_in_rust_with_their_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let Some([_, loss, state_loss, _]) = scripts(dir.path()) else {
        return;
    };
    let registry = registry();
    let numbers = |shape: &[i64], phase: f64| {
        let values = Tensor::arange(
            shape.iter().product::<i64>(),
            (tch::Kind::Double, tch::Device::Cpu),
        );
        (((values * 0.7 + phase).sin()) * 3.0).view(shape)
    };
    let labels_n = Tensor::from_slice(&[0i64, 6, 3, 1]);
    let (student_nv, teacher_nv) = (numbers(&[4, 11], 0.0), numbers(&[4, 11], 1.0));
    let run = |spec: &str| {
        let loss = registry
            .build::<dyn LogitLoss>(&spec.parse().unwrap())
            .unwrap();
        // Several times: TorchScript changes how it runs a graph after some calls.
        let runs: Vec<_> = (0..4)
            .map(|_| {
                with_gradient(&student_nv, |x| {
                    loss.rows(x, Some(&teacher_nv), &labels_n).unwrap()
                })
            })
            .collect();
        for (value, gradient) in &runs {
            assert!(
                value.equal(&runs[0].0) && gradient.equal(&runs[0].1),
                "{spec} changes with the number of calls"
            );
        }
        runs.into_iter().next().unwrap()
    };
    let (ours, theirs) = (run("forward_kl"), run(&format!("torchscript:path={loss}")));
    assert_close("loss", &theirs.0, &ours.0, 1e-12);
    assert_close("gradient", &theirs.1, &ours.1, 1e-12);

    let (student, teacher) = (numbers(&[2, 5, 8], 0.0), numbers(&[2, 5, 8], 1.0));
    let run = |spec: &str| {
        let loss = registry
            .build::<dyn StateLoss>(&spec.parse().unwrap())
            .unwrap();
        fn states(x_btc: &Tensor) -> States<'_> {
            States {
                x_btc,
                attention_mask_bt: None,
                causal: true,
                head_dim: 4,
            }
        }
        with_gradient(&student, |x| {
            loss.loss(&states(x), &states(&teacher)).unwrap()
        })
    };
    let (ours, theirs) = (
        run("hidden_state"),
        run(&format!("torchscript_states:path={state_loss}")),
    );
    assert_close("loss on states", &theirs.0, &ours.0, 1e-6);
    assert_close("its gradient", &theirs.1, &ours.1, 1e-6);
}

#[test]
fn metrics_and_reconstructions_in_pytorch_are_their_twins_in_rust() {
    let (dir, model, text) = desk();
    let Some([importance, loss, _, reconstruction]) = scripts(dir.path()) else {
        return;
    };
    let at = |name: &str| dir.path().join(name).display().to_string();
    let library = examples().display().to_string();
    let scores = at("scores.safetensors");
    let scripted = format!("torchscript:path={importance}");
    succeed(&[
        "score",
        &model,
        "--data",
        &text,
        "--metric",
        "activation:batch=l2,seq=mean",
        "--metric",
        &scripted,
        "--metric",
        "block_influence",
        "--samples",
        "8",
        "--seq-len",
        "32",
        "--out",
        &scores,
    ]);
    let read = Scores::load(Path::new(&scores)).unwrap();
    let mut n_groups = 0;
    for (name, theirs) in read
        .by_name
        .iter()
        .filter(|(name, _)| name.starts_with("torchscript/"))
    {
        let ours = &read.by_name[&name.replace("torchscript/", "activation/")];
        n_groups += 1;
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 1e-6 * a.abs(), "{name}: {a} {b}");
        }
    }
    assert!(n_groups > 6, "{n_groups}");

    let weights = |reconstruct: &str, out: &str| {
        succeed(&[
            "--plugin",
            &library,
            "prune",
            &model,
            "--scores",
            &scores,
            "--by",
            "activation",
            "--mlp",
            "24",
            "--hidden",
            "24",
            "--layers",
            "2",
            "--heal",
            reconstruct,
            "--out",
            &at(out),
        ]);
        fs::read(dir.path().join(out).join("model.safetensors")).unwrap()
    };
    let (ours, theirs) = (
        weights("norm_keeping", "ours"),
        weights(&format!("torchscript:path={reconstruction}"), "theirs"),
    );
    assert!(ours == theirs);

    // Mistakes are answered by what they are.
    let metric = |path: &str| {
        let spec = format!("torchscript:path={path}");
        let args = [
            "score",
            &model,
            "--data",
            &text,
            "--metric",
            &spec,
            "--samples",
            "4",
            "--seq-len",
            "32",
            "--out",
        ];
        let output =
            minitron(&[&args[..], &[&at("none.safetensors"), "--quiet"]].concat()).unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(
        metric("").contains("path: expected a file that torch.jit.script"),
        "{}",
        metric("")
    );
    assert!(
        metric(&at("absent.pt")).contains("absent.pt: no such file"),
        "{}",
        metric(&at("absent.pt"))
    );
    assert!(
        metric(&text).contains("text.txt: not a TorchScript file"),
        "{}",
        metric(&text)
    );
    let said = metric(&loss);
    assert!(
        said.contains("loss.pt: `observe`: ") && !said.contains("panicked"),
        "{said}"
    );
}
