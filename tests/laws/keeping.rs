//! What a training run keeps, whatever happens to it.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use minitron::{some_windows, tiny_llama, windows};
use minitron_core::checkpoint::Reader;
use minitron_core::error::Error;
use minitron_core::model::Transformer;
use minitron_core::windows::{Task, Windows};
use minitron_engine::train::{
    HeldOut, InMemoryTeacher, MasterWeights, Saving, ScheduleShape, TrainSettings,
};
use serde_json::Value;
use tch::IndexOp;

use super::training::{Run, assert_same_run, column, objective, settings};
use super::{Model, REORDERED};

/// Step folders in checkpoint/, sorted.
fn checkpoints(out_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(out_dir.join("checkpoint")).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn state(out_dir: &Path, step: u64) -> Value {
    let path = out_dir.join(format!("checkpoint/step-{step:08}/state.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn tensors(out_dir: &Path, step: u64) -> Vec<u8> {
    fs::read(out_dir.join(format!("checkpoint/step-{step:08}/state.safetensors"))).unwrap()
}

/// A student, its teacher and windows that epochs end inside steps of.
fn some_job() -> (Model, Transformer, Windows) {
    let teacher = Model::new(&tiny_llama(), 61).unwrap().load().unwrap();
    (
        Model::new(&tiny_llama(), 60).unwrap(),
        teacher,
        some_windows(11, 16, 61, 4).unwrap(),
    )
}

#[test]
fn one_state_is_enough_to_resume_from() {
    let (model, teacher, windows) = some_job();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = Run::new(&model, &teacher, &windows, one.path());
    whole.go(None, false).unwrap();
    assert_eq!(
        checkpoints(one.path()),
        ["step-00000008", "step-00000009"],
        "two are kept"
    );
    let saving = Saving {
        every: Some(3),
        keep: 1,
        ..Saving::default()
    };
    let run = || Run {
        saving,
        ..Run::new(&model, &teacher, &windows, two.path())
    };
    run().go(Some(4), false).unwrap();
    assert_eq!(checkpoints(two.path()), ["step-00000004"]);
    let resumed = run();
    assert!(resumed.go(None, true).unwrap().is_complete());
    assert_eq!(checkpoints(two.path()), ["step-00000009"]);
    assert_same_run(&whole, &resumed);
}

#[test]
fn no_time_at_all_keeps_every_state_and_changes_nothing() {
    let (model, teacher, windows) = some_job();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = Run::new(&model, &teacher, &windows, one.path());
    whole.go(None, false).unwrap();
    let saving = Saving {
        every: Some(100),
        minutes: 1e-12,
        keep: 100,
    };
    let often = Run {
        saving,
        ..Run::new(&model, &teacher, &windows, two.path())
    };
    often.go(None, false).unwrap();
    assert_eq!(checkpoints(two.path()).len(), 9);
    assert_same_run(&whole, &often);
}

#[test]
fn a_damaged_newest_state_is_passed_over_and_replaced() {
    let (model, teacher, windows) = some_job();
    let one = tempfile::tempdir().unwrap();
    let whole = Run::new(&model, &teacher, &windows, one.path());
    whole.go(None, false).unwrap();
    type Damage = fn(&Path);
    let damages: [Damage; 5] = [
        |dir| fs::write(dir.join("state.json"), "{\"step\": 5").unwrap(),
        |dir| fs::remove_file(dir.join("state.json")).unwrap(),
        |dir| fs::remove_file(dir.join("state.safetensors")).unwrap(),
        |dir| {
            let bytes = fs::read(dir.join("state.safetensors")).unwrap();
            fs::write(dir.join("state.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
        },
        |dir| fs::write(dir.join("state.safetensors"), "").unwrap(),
    ];
    for damage in damages {
        let two = tempfile::tempdir().unwrap();
        let saving = Saving {
            every: Some(1),
            ..Saving::default()
        };
        let run = || Run {
            saving,
            ..Run::new(&model, &teacher, &windows, two.path())
        };
        run().go(Some(5), false).unwrap();
        assert_eq!(checkpoints(two.path()), ["step-00000004", "step-00000005"]);
        damage(&two.path().join("checkpoint/step-00000005"));
        // What a killed process leaves of a write and of a removal.
        for rest in [".step-00000006.part", ".step-00000003.old"] {
            fs::create_dir(two.path().join("checkpoint").join(rest)).unwrap();
        }
        let resumed = run();
        resumed.go(None, true).unwrap();
        assert_eq!(checkpoints(two.path()), ["step-00000008", "step-00000009"]);
        assert_same_run(&whole, &resumed);
    }
}

#[test]
fn damaged_states_alone_are_an_error_rather_than_a_start_from_nothing() {
    let (model, teacher, windows) = some_job();
    let dir = tempfile::tempdir().unwrap();
    Run::new(&model, &teacher, &windows, dir.path())
        .go(Some(2), false)
        .unwrap();
    for step in 1..=2 {
        fs::write(
            dir.path()
                .join(format!("checkpoint/step-{step:08}/state.json")),
            "",
        )
        .unwrap();
    }
    let metrics = fs::read(dir.path().join("metrics.jsonl")).unwrap();
    let error = Run::new(&model, &teacher, &windows, dir.path())
        .go(None, true)
        .unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("none of 2 checkpoints can be read"),
        "{error}"
    );
    assert_eq!(fs::read(dir.path().join("metrics.jsonl")).unwrap(), metrics);
}

#[test]
fn a_run_that_is_asked_to_end_saves_the_step_at_hand_and_goes_on_later() {
    let (model, teacher, windows) = some_job();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = Run::new(&model, &teacher, &windows, one.path());
    assert!(!whole.go(None, false).unwrap().is_interrupted);
    for n_steps in 1..9 {
        let run = Run::new(&model, &teacher, &windows, two.path());
        run.interrupt
            .asked
            .store(true, std::sync::atomic::Ordering::SeqCst);
        let outcome = run.go(None, n_steps > 1).unwrap();
        assert_eq!(
            (
                outcome.n_steps,
                outcome.is_interrupted,
                outcome.is_complete()
            ),
            (n_steps, true, false)
        );
    }
    let last = Run::new(&model, &teacher, &windows, two.path());
    last.interrupt
        .asked
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let outcome = last.go(None, true).unwrap();
    // Nothing was left to interrupt.
    assert_eq!(
        (outcome.is_interrupted, outcome.is_complete()),
        (false, true)
    );
    assert_same_run(&whole, &last);
}

/// A teacher whose token 60 is infinite, a student, and windows of which the given ones hold it.
fn poisoned(holding: &[usize]) -> (Transformer, Model, Windows) {
    let (teacher, model) = (
        Model::new(&tiny_llama(), 63).unwrap().load().unwrap(),
        Model::new(&tiny_llama(), 62).unwrap(),
    );
    let table = teacher
        .parameters()
        .iter()
        .find(|parameter| parameter.tensor.size() == [61, 32])
        .unwrap();
    let _ = table.tensor.detach().i(60).fill_(f64::INFINITY);
    let mut tokens: Vec<u32> = (0..24 * 16).map(|i| (i * 7 % 60) as u32).collect();
    for window in holding {
        tokens[window * 16 + 3] = 60;
    }
    (teacher, model, windows(tokens, 16).unwrap())
}

#[test]
fn a_step_without_a_finite_loss_changes_nothing_and_is_counted() {
    let (teacher, model, windows) = poisoned(&[5]);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let saving = Saving {
        every: Some(1),
        keep: 100,
        ..Saving::default()
    };
    let whole = Run {
        saving,
        ..Run::new(&model, &teacher, &windows, one.path())
    };
    let outcome = whole.go(None, false).unwrap();
    // 8 of 24 windows a step: the one that holds it is met once in three steps.
    assert_eq!((outcome.n_skipped, outcome.n_steps), (3, 9));
    assert!(outcome.loss.unwrap().is_finite());
    let text = fs::read_to_string(one.path().join("metrics.jsonl")).unwrap();
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut n_skipped = 0;
    for step in 1..=9u64 {
        let record = &records[step as usize - 1];
        assert_eq!(record["step"].as_u64(), Some(step));
        n_skipped += u64::from(record["loss"].is_null());
        assert_eq!(record["n_skipped"].as_u64(), Some(n_skipped), "{record}");
        assert_eq!(
            state(one.path(), step)["n_skipped"].as_u64(),
            Some(n_skipped)
        );
        if step > 1 {
            assert_eq!(
                tensors(one.path(), step) == tensors(one.path(), step - 1),
                record["loss"].is_null(),
                "{step}"
            );
        }
    }
    assert_eq!(n_skipped, 3);
    // The schedule goes on by step, whatever is skipped.
    let expected: Vec<f64> = (1..=9)
        .map(|step| settings().schedule(16).at(step))
        .collect();
    assert_eq!(column(one.path(), "lr"), expected);

    // Resumed right behind a skipped step: counts and corrections of the optimiser go on.
    let skipped = records
        .iter()
        .position(|record| record["loss"].is_null())
        .unwrap() as u64
        + 1;
    Run::new(&model, &teacher, &windows, two.path())
        .go(Some(skipped), false)
        .unwrap();
    let resumed = Run::new(&model, &teacher, &windows, two.path());
    assert_eq!(resumed.go(None, true).unwrap().n_skipped, 3);
    for (a, b) in whole
        .student
        .parameters()
        .iter()
        .zip(resumed.student.parameters())
    {
        assert!(a.tensor.detach().equal(&b.tensor.detach()), "{}", a.name);
    }
}

#[test]
fn too_many_skipped_in_a_row_end_the_run_and_name_the_last_good_state() {
    let all: Vec<usize> = (0..24).collect();
    let (teacher, model, windows) = poisoned(&all);
    let dir = tempfile::tempdir().unwrap();
    let fail = |saving| {
        let run = Run {
            saving,
            ..Run::new(&model, &teacher, &windows, dir.path())
        };
        let error = run.go(None, false).unwrap_err();
        assert!(matches!(error, Error::Data(_)), "{error}");
        error.to_string()
    };
    let error = fail(Saving {
        every: Some(100),
        ..Saving::default()
    });
    for says in [
        "loss NaN",
        "at step 3",
        "3 skipped in a row",
        "no checkpoint was written yet",
    ] {
        assert!(error.contains(says), "expected `{says}` in `{error}`");
    }
    let error = fail(Saving {
        every: Some(2),
        ..Saving::default()
    });
    assert!(
        error.contains(&format!(
            "{}",
            dir.path().join("checkpoint/step-00000002").display()
        )),
        "{error}"
    );
    assert!(
        Reader::open_file(
            &dir.path()
                .join("checkpoint/step-00000002/state.safetensors")
        )
        .is_ok()
    );
}

#[test]
fn weight_decay_takes_from_matrices_and_tables_alone() {
    let (model, teacher, windows) = some_job();
    let after_one_step = |weight_decay| {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = TrainSettings {
            warmup: Some(0),
            ..settings()
        };
        settings.adamw.weight_decay = weight_decay;
        let run = Run {
            settings,
            ..Run::new(&model, &teacher, &windows, dir.path())
        };
        run.go(Some(1), false).unwrap();
        run.student
    };
    let (with, without) = (after_one_step(0.5), after_one_step(0.0));
    for (with, without) in with.parameters().iter().zip(without.parameters()) {
        let same = with.tensor.detach().equal(&without.tensor.detach());
        assert_eq!(same, with.tensor.dim() == 1, "{}", with.name);
    }
}

#[test]
fn a_schedule_is_followed_step_by_step() {
    let (model, teacher, windows) = some_job();
    for schedule in [
        ScheduleShape::Cosine,
        ScheduleShape::Linear,
        ScheduleShape::Constant,
        ScheduleShape::Wsd,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings = TrainSettings {
            schedule,
            decay_share: 0.3,
            warmup: Some(2),
            ..settings()
        };
        let expected: Vec<f64> = (1..=9).map(|step| settings.schedule(16).at(step)).collect();
        Run {
            settings,
            ..Run::new(&model, &teacher, &windows, dir.path())
        }
        .go(None, false)
        .unwrap();
        let found = column(dir.path(), "lr");
        assert_eq!(found, expected);
        if schedule == ScheduleShape::Wsd {
            // Three of nine steps decay, from the peak at the sixth.
            assert_eq!(found[1..6], [3e-3; 5]);
            assert!(
                (found[8] - 3e-4).abs() < 1e-12 && found[6] < 3e-3,
                "{found:?}"
            );
        }
    }
}

#[test]
fn evaluations_are_the_losses_and_disturb_nothing() {
    let (model, teacher, windows) = some_job();
    let held_out_windows = some_windows(5, 16, 61, 9).unwrap();
    let written = RefCell::new(Vec::new());
    let best_loss = RefCell::new(None::<f64>);
    let write_best = |masters: &MasterWeights| {
        assert!(masters.is_empty(), "an f32 model is its own master");
        written.borrow_mut().push(());
        Ok(())
    };
    let held_out = HeldOut {
        windows: &held_out_windows,
        batch_size: 2,
        every: Some(4),
    };
    let (one, two, three) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let plain = Run::new(&model, &teacher, &windows, one.path());
    plain.go(None, false).unwrap();
    let run = |dir| Run {
        held_out: Some(held_out),
        write_best: Some(&write_best),
        ..Run::new(&model, &teacher, &windows, dir)
    };
    let whole = run(two.path());
    let outcome = whole.go(None, false).unwrap();
    assert_same_run(&plain, &whole);

    let text = fs::read_to_string(two.path().join("metrics.jsonl")).unwrap();
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let evaluated: Vec<u64> = records
        .iter()
        .filter(|r| r.get("eval/loss").is_some())
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(evaluated, [4, 8, 9]);
    let mut n_best = 0;
    for record in records
        .iter()
        .filter(|record| record.get("eval/loss").is_some())
    {
        let loss = record["eval/loss"].as_f64().unwrap();
        if best_loss.borrow().is_none_or(|best| loss < best) {
            *best_loss.borrow_mut() = Some(loss);
            n_best += 1;
        }
    }
    assert_eq!(written.borrow().len(), n_best);
    let best = outcome.best.unwrap();
    assert_eq!(Some(best.loss), *best_loss.borrow());

    // The last evaluation is that of the trained model, by the plugins' own losses over all rows at
    // once.
    let targets = Task::NextToken
        .batch(&held_out_windows, &[0, 1, 2, 3, 4], tch::Device::Cpu)
        .unwrap();
    let objective = objective().unwrap();
    let found = objective
        .evaluate(
            &whole.student,
            Some(&mut InMemoryTeacher(&teacher)),
            Task::NextToken,
            &held_out,
        )
        .unwrap();
    assert_eq!(records[8]["eval/loss"].as_f64(), found.nll);
    assert_eq!(records[8]["eval/forward_kl"].as_f64(), Some(found.terms[0]));
    assert!((found.objective - 0.7 * found.terms[0] - 0.3 * found.terms[1]).abs() < 1e-12);
    assert!(
        (found.terms[1] - found.nll.unwrap()).abs() < 1e-6,
        "cross entropy is the likelihood"
    );
    let logits_nv = tch::no_grad(|| {
        let hidden = whole
            .student
            .hidden(&targets.ids_bt, &mut minitron_core::model::NoTap, None)
            .unwrap();
        whole
            .student
            .logits(&targets.rows(&hidden).unwrap())
            .unwrap()
    });
    let nll = logits_nv
        .cross_entropy_for_logits(&targets.labels_n)
        .double_value(&[]);
    assert!(
        (nll - found.nll.unwrap()).abs() <= REORDERED * nll,
        "{nll} {found:?}"
    );

    // Interrupted between evaluations, it remembers the best.
    run(three.path()).go(Some(5), false).unwrap();
    let resumed = run(three.path());
    assert_eq!(resumed.go(None, true).unwrap().best, outcome.best);
    assert_eq!(
        column_of_evaluations(three.path()),
        column_of_evaluations(two.path())
    );
    assert_same_run(&whole, &resumed);
}

fn column_of_evaluations(out_dir: &Path) -> Vec<(Value, Value)> {
    let text = fs::read_to_string(out_dir.join("metrics.jsonl")).unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .map(|record| (record["step"].clone(), record["eval/loss"].clone()))
        .collect()
}

#[test]
fn the_state_of_the_best_evaluation_outlives_newer_ones() {
    let (model, teacher, windows) = some_job();
    let held_out_windows = some_windows(5, 16, 61, 9).unwrap();
    let held_out = HeldOut {
        windows: &held_out_windows,
        batch_size: 5,
        every: Some(1),
    };
    let write_best = |_: &MasterWeights| Ok(());
    let dir = tempfile::tempdir().unwrap();
    let saving = Saving {
        every: Some(1),
        keep: 1,
        ..Saving::default()
    };
    // Uphill on purpose: random tokens are not learned, so what is held out is soon worse.
    let settings = TrainSettings {
        lr: 0.1,
        schedule: ScheduleShape::Constant,
        ..settings()
    };
    let run = || {
        let settings = settings.clone();
        Run {
            saving,
            settings,
            held_out: Some(held_out),
            write_best: Some(&write_best),
            ..Run::new(&model, &teacher, &windows, dir.path())
        }
    };
    let best = run().go(Some(6), false).unwrap().best.unwrap();
    let of = |step: u64| format!("step-{step:08}");
    let mut expected = vec![of(best.step), of(6)];
    expected.dedup();
    assert_eq!(checkpoints(dir.path()), expected);
    let outcome = run().go(None, true).unwrap();
    let mut expected = vec![of(outcome.best.unwrap().step), of(9)];
    expected.dedup();
    assert_eq!(checkpoints(dir.path()), expected);
    let losses = column(dir.path(), "eval/loss");
    assert_eq!(
        losses.iter().copied().fold(f64::INFINITY, f64::min),
        outcome.best.unwrap().loss
    );
}
