use minitron::{Workspace, tiny_gpt_oss, tiny_qwen2_moe};

use super::succeeds;

const TEXT: &str = "--data text.txt --samples 11 --seq-len 16 --batch-size 3";

fn with_scores() -> Workspace {
    let workspace = Workspace::with_teacher_and_student();
    let score = "score teacher --data text.txt --samples 8 --seq-len 16 --out scores.safetensors";
    succeeds(&workspace, 1, score);
    workspace
}

#[test]
fn ranks_reconstruct_to_the_bytes_of_one_process() {
    let workspace = with_scores();
    for heal in [
        "--heal rotation --heal least_squares",
        "--heal norm_rescale --heal least_squares:ridge=0.01",
        "--heal least_squares:target=own --rounds 2",
        "--layers 1 --heal layer_merge --heal least_squares --heal temperature_scaling:tokens=100",
    ] {
        let command = format!(
            "prune teacher --scores scores.safetensors --hidden 24 --mlp 24 {TEXT} {heal} \
             --eval-data text.txt --eval-samples 5 --force"
        );
        succeeds(&workspace, 1, &format!("{command} --out 1"));
        let one = workspace.bytes("1/model.safetensors");
        for n in [2, 3] {
            succeeds(&workspace, n, &format!("{command} --out {n}"));
            assert!(
                workspace.bytes(&format!("{n}/model.safetensors")) == one,
                "{heal}: {n} ranks"
            );
            let held_out = |n: usize| workspace.value(&format!("{n}/plan.json"))["held_out"].take();
            assert!(held_out(1)["student"]["kl"].is_number());
            assert_eq!(held_out(n), held_out(1), "{heal}: {n} ranks");
        }
    }
}

#[test]
fn ranks_merge_and_refit_experts_to_the_bytes_of_one_process() {
    for (config, heal) in [
        (tiny_qwen2_moe(), "--heal expert_merge --heal least_squares"),
        (tiny_gpt_oss(), "--heal least_squares"),
    ] {
        let workspace = Workspace::new().model("teacher", &config, 1);
        let workspace = workspace.text("text.txt");
        let score =
            "score teacher --data text.txt --samples 8 --seq-len 16 --out scores.safetensors";
        succeeds(&workspace, 1, score);
        let command =
            format!("prune teacher --scores scores.safetensors --size experts=3 {TEXT} {heal}");
        for n in [1, 2, 3] {
            succeeds(&workspace, n, &format!("{command} --out {n}"));
            let (one, other) = ["1", &n.to_string()]
                .map(|out| workspace.bytes(&format!("{out}/model.safetensors")))
                .into();
            assert!(one == other, "{heal}: {n} ranks");
        }
    }
}

#[test]
fn a_rank_without_a_batch_takes_part_in_a_reconstruction() {
    let workspace = with_scores();
    let command = "prune teacher --scores scores.safetensors --mlp 24 --heal least_squares \
                   --data text.txt --samples 2 --seq-len 16";
    succeeds(&workspace, 1, &format!("{command} --out 1"));
    succeeds(&workspace, 3, &format!("{command} --out 3"));
    assert!(workspace.bytes("1/model.safetensors") == workspace.bytes("3/model.safetensors"));
}

#[test]
fn ranks_measure_blocks_to_the_bytes_of_one_process() {
    let workspace = Workspace::with_teacher_and_student();
    let text = "--data text.txt --samples 7 --seq-len 16 --batch-size 2";
    succeeds(
        &workspace,
        1,
        &format!("score teacher {text} --out scores.safetensors"),
    );
    let command = format!("blocks teacher --scores scores.safetensors {text}");
    succeeds(&workspace, 1, &format!("{command} --out 1.json"));
    for n in [2, 3] {
        succeeds(&workspace, n, &format!("{command} --out {n}.json"));
        let name = format!("{n}.json");
        assert_eq!(
            workspace.bytes(&name),
            workspace.bytes("1.json"),
            "{n} ranks"
        );
    }
}
