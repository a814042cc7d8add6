use minitron::Workspace;
use serde_json::Value;

use super::{Victim, succeeds};

const SEARCH: &str = "search teacher --scores scores.safetensors --params 26k+-25% --candidates 5 \
    --rungs 2 --data text.txt --eval-data text.txt --eval-samples 2 --seq-len 32 --batch-size 4 \
    --tokens 2k --eval-every 8";

fn workspace() -> Workspace {
    let workspace = Workspace::with_teacher_and_student();
    let words = "score teacher --data text.txt --samples 4 --seq-len 32 --out scores.safetensors";
    workspace.json(words);
    workspace
}

/// What candidates came to, without times; the winner's weights are compared apart.
fn found(workspace: &Workspace, out: &str) -> Value {
    let mut record = workspace.value(&format!("{out}/search.json"));
    for rung in record["rungs"].as_array_mut().unwrap() {
        rung.as_object_mut()
            .unwrap()
            .retain(|key, _| !key.contains("seconds"));
    }
    let timed = ["seconds", "points_per_second"];
    record["grid"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !timed.contains(&key.as_str()));
    let record = record.as_object_mut().unwrap();
    record.retain(|key, _| !["seconds", "shared_teacher", "warnings"].contains(&key.as_str()));
    Value::Object(record.clone())
}

fn assert_same(workspace: &Workspace, a: &str, b: &str) {
    assert_eq!(found(workspace, a), found(workspace, b));
    let [one, other] =
        [a, b].map(|out| workspace.bytes(&format!("{out}/winner/model.safetensors")));
    assert!(one == other);
}

#[test]
fn ranks_find_what_one_process_finds() {
    let workspace = workspace();
    for n in [1, 2, 3] {
        succeeds(&workspace, n, &format!("{SEARCH} --out {n}"));
    }
    assert_same(&workspace, "1", "2");
    assert_same(&workspace, "1", "3");
    // Nothing is left to do, and all ranks go home.
    succeeds(&workspace, 2, &format!("{SEARCH} --out 2 --resume"));
    assert_same(&workspace, "1", "2");
}

#[test]
fn the_candidates_of_a_lost_rank_are_looked_at_by_the_others() {
    let workspace = workspace();
    succeeds(&workspace, 1, &format!("{SEARCH} --out calm"));
    let victim = Victim {
        rank: 1,
        // It has begun to train a candidate of its own.
        when: "grep -qs . out/candidates/*/metrics.jsonl",
        max_restarts: 0,
        tolerates_losses: true,
    };
    assert_eq!(victim.launch(&workspace, &format!("{SEARCH} --out out")), 0);
    assert_same(&workspace, "calm", "out");
}

/// A launcher that tolerates no loss starts all again.
#[test]
fn a_search_that_is_started_again_goes_on() {
    let workspace = workspace();
    succeeds(&workspace, 1, &format!("{SEARCH} --out calm"));
    let victim = Victim {
        rank: 0,
        when: "grep -qs . out/candidates/*/metrics.jsonl",
        max_restarts: 1,
        tolerates_losses: false,
    };
    assert_eq!(
        victim.launch(&workspace, &format!("{SEARCH} --out out --resume")),
        0
    );
    assert_same(&workspace, "calm", "out");
}
