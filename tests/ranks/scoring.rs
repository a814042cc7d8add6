use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minitron::{Workspace, tiny_bert, tiny_llama};
use minitron_core::checkpoint::{Reader, TensorSource};
use serde_json::json;
use tch::Kind;

use super::{run, succeeds};

const SCORE: &str = "score teacher --data text.txt --samples 11 --seq-len 16 --batch-size 3";

/// One process and several write the same file; gives that of one.
fn same_bytes(workspace: &Workspace, command: &str, sizes: &[usize]) -> Vec<u8> {
    succeeds(workspace, 1, &format!("{command} --out 1.safetensors"));
    let one = workspace.bytes("1.safetensors");
    for &n in sizes {
        let out = format!("{n}.safetensors");
        succeeds(workspace, n, &format!("{command} --out {out}"));
        assert!(workspace.bytes(&out) == one, "{command}: {n} ranks");
        assert!(!workspace.at(&format!(".{out}.streamed")).exists());
    }
    one
}

fn with_metrics(command: &str, metrics: &[&str]) -> String {
    let metrics = metrics.iter().map(|metric| format!(" --metric {metric}"));
    format!("{command}{}", metrics.collect::<String>())
}

#[test]
fn ranks_write_the_bytes_of_one_process() {
    let workspace = Workspace::with_teacher_and_student();
    same_bytes(&workspace, SCORE, &[2, 3]);
}

#[test]
fn ranks_write_the_bytes_of_one_process_for_every_reduction_and_for_resamples() {
    let workspace = Workspace::with_teacher_and_student();
    let mut metrics = vec!["activation:site=pre,as=pre".to_owned()];
    for batch in ["mean", "l2", "var"] {
        for seq in ["mean", "l2", "var"] {
            let label = format!("{batch}-{seq}");
            metrics.push(format!("activation:batch={batch},seq={seq},as={label}"));
        }
    }
    let metrics: Vec<&str> = metrics.iter().map(String::as_str).collect();
    let one = same_bytes(&workspace, &with_metrics(SCORE, &metrics), &[2, 3]);
    let resampled = with_metrics(SCORE, &["activation", "activation:batch=var,as=var"]);
    let resampled = format!("{resampled} --metric block_influence --bootstrap 3 --force");
    assert!(one != same_bytes(&workspace, &resampled, &[2, 3]));
}

#[test]
fn ranks_write_the_bytes_of_one_process_for_layers_and_weights() {
    let workspace = Workspace::with_teacher_and_student();
    let metrics = [
        "block_influence:span=2",
        "norm_ratio",
        "perplexity",
        "perplexity:span=2,as=two",
        "wanda",
        "fluctuation",
        "magnitude",
        "random",
    ];
    let command = with_metrics(SCORE, &metrics);
    let in_memory = same_bytes(&workspace, &command, &[2, 3]);
    let streamed = format!("{command} --stream --force");
    assert!(same_bytes(&workspace, &streamed, &[3]) == in_memory);
}

#[test]
fn ranks_without_a_window_take_part() {
    let workspace = Workspace::with_teacher_and_student();
    let command = "score teacher --data text.txt --samples 2 --seq-len 16 --bootstrap 2";
    let metrics = ["activation", "perplexity", "taylor"];
    let command = with_metrics(command, &metrics);
    same_bytes(&workspace, &command, &[3]);
    let streamed = "score teacher --data text.txt --samples 2 --seq-len 16 --stream --force";
    same_bytes(&workspace, streamed, &[3]);
}

#[test]
fn ranks_write_the_bytes_of_one_process_for_text_of_unequal_lengths() {
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let record = |idx: usize| {
        let asked = "a ball near house ".repeat(1 + idx % 4);
        let messages = [turn("user", &asked), turn("assistant", "the cat saw")];
        json!({ "messages": messages }).to_string()
    };
    let records: Vec<String> = (0..9).map(record).collect();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let workspace = Workspace::new()
        .model("teacher", &tiny_llama(), 1)
        .file("talks.jsonl", records.join("\n"))
        .file("teacher/chat_template.jinja", template);
    let metrics = ["activation", "block_influence", "perplexity"];
    let command = "score teacher --data talks.jsonl --batch-size 2 --seq-len 64";
    for how in ["--pack documents", "--pack whole --bootstrap 2 --force"] {
        let command = with_metrics(&format!("{command} {how}"), &metrics);
        same_bytes(&workspace, &command, &[2]);
    }
}

#[test]
fn ranks_write_the_bytes_of_one_process_for_an_encoder_and_for_tasks() {
    let task = |gold: usize| {
        json!({ "context": "One day, the cat", "choices": [" saw a ball", " lost"], "gold": gold })
            .to_string()
    };
    let workspace = Workspace::with_teacher_and_student()
        .model("encoder", &tiny_bert(), 3)
        .file("task.jsonl", [task(0), task(1), task(0)].join("\n"));
    // The demo's tokenizer has no token that masks.
    let tokenizer = String::from_utf8(workspace.bytes("encoder/tokenizer.json")).unwrap();
    let masking = tokenizer.replace("<|end|>", "[MASK]");
    workspace.write("encoder/tokenizer.json", masking);
    workspace.write("encoder/tokenizer_config.json", "{}");
    let tasks = with_metrics(SCORE, &["activation", "task_accuracy:path=task.jsonl"]);
    same_bytes(&workspace, &tasks, &[2]);
    let encoder = SCORE.replace("teacher", "encoder");
    let encoder = with_metrics(&encoder, &["activation", "perplexity"]);
    let in_memory = same_bytes(&workspace, &format!("{encoder} --force"), &[2]);
    assert!(same_bytes(&workspace, &format!("{encoder} --force --stream"), &[2]) == in_memory);
}

/// Sums of gradients in f32 depend on their order.
#[test]
fn gradients_of_ranks_are_those_of_one_process_up_to_rounding() {
    let workspace = Workspace::with_teacher_and_student();
    let command = with_metrics(SCORE, &["taylor", "activation"]);
    let mut of_sizes = Vec::new();
    for n in 1..=3 {
        succeeds(&workspace, n, &format!("{command} --out {n}.safetensors"));
        let reader = Reader::open_file(&workspace.at(&format!("{n}.safetensors"))).unwrap();
        of_sizes.push(reader);
    }
    let (one, several) = of_sizes.split_first().unwrap();
    for name in one.names() {
        let expected = one.read(&name).unwrap().to_kind(Kind::Double);
        for reader in several {
            let found = reader.read(&name).unwrap().to_kind(Kind::Double);
            let far = ((&found - &expected) / &expected).abs().max();
            let tolerance = if name.starts_with("taylor") {
                1e-6
            } else {
                0.0
            };
            assert!(far.double_value(&[]) <= tolerance, "{name}: {far:?}");
        }
    }
}

/// Starts the ranks of a job by hand: the launcher would end all where one is killed.
fn start(workspace: &Workspace, n: usize, port: usize, shell: &str) -> Vec<Child> {
    let program = minitron::binary();
    let script = shell.replace("minitron", &program.display().to_string());
    workspace.write("rank.sh", script);
    let start = |rank: usize| {
        Command::new("sh")
            .arg("rank.sh")
            .current_dir(workspace.root())
            .env("OMP_NUM_THREADS", "1")
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", n.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..n).map(start).collect()
}

#[test]
fn a_rank_with_other_data_is_refused_by_name() {
    let workspace = Workspace::with_teacher_and_student().file("text-1.txt", "the cat ".repeat(99));
    workspace.write("text-0.txt", workspace.bytes("text.txt"));
    let command = SCORE.replace("text.txt", "text-$RANK.txt");
    let command = format!("exec minitron {command} --out out.safetensors --quiet");
    for (rank, child) in start(&workspace, 2, 29872, &command)
        .into_iter()
        .enumerate()
    {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {said}");
        let expected = "scoring: rank 1 has not the same as rank 0 (data)";
        assert!(said.contains(expected), "{said}");
    }
    assert!(!workspace.at("out.safetensors").exists());
}

/// Waits for a file, at most so long.
fn appears(path: &Path) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(200) {
        if path.exists() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_streamed_scoring_of_ranks_goes_on_where_it_was_killed() {
    let workspace = Workspace::with_teacher_and_student();
    let command = "score teacher --data text.txt --samples 64 --seq-len 32 --batch-size 2 \
        --metric activation:batch=var --metric perplexity --stream";
    let killed = format!("exec minitron {command} --out 2.safetensors --quiet");
    let mut ranks = start(&workspace, 2, 29873, &killed);
    assert!(appears(
        &workspace.at(".2.safetensors.streamed/rank-1-of-2/parts-0-0")
    ));
    ranks[1].kill().unwrap();
    for rank in ranks {
        assert!(!rank.wait_with_output().unwrap().status.success());
    }
    assert!(!workspace.at("2.safetensors").exists());
    let output = run(&workspace, 2, &format!("{command} --out 2.safetensors"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("an interrupted scoring goes on at layer"),
        "{said}"
    );
    succeeds(&workspace, 1, &format!("{command} --out 1.safetensors"));
    assert!(workspace.bytes("1.safetensors") == workspace.bytes("2.safetensors"));
}
