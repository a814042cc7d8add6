//! The loop, the objective, resuming.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use minitron::{reads_no_file, registry, some_windows, tiny_bert, tiny_llama};
use minitron_core::contract::{LogitLoss, StateLoss};
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, NoTap, Transformer, row_chunks};
use minitron_core::progress::{Interrupt, Silent};
use minitron_core::registry::PluginSpec;
use minitron_core::windows::{Batch, Task, Windows};
use minitron_engine::data::{Cursor, DataLoader, DataSpec, LoaderOptions, TextOptions, Tokenizer};
use minitron_engine::ranks::Ranks;
use minitron_engine::train::{
    Correction, Counts, HeldOut, InMemoryTeacher, Learner, Objective, Outcome, Saving, Sharding,
    StateTerm, Term, TermStart, TrainSettings, Trainer, Weight, WriteStudent, saved_cursor,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{Model, REORDERED, learner, relative, trainer};

pub(super) fn objective() -> Result<Objective> {
    let term = |tag: &str, weight| {
        Ok::<_, Error>(Term {
            label: tag.to_owned(),
            weight,
            loss: registry()
                .build::<dyn LogitLoss>(&PluginSpec::bare(tag))?
                .into(),
        })
    };
    Ok(Objective {
        terms: vec![term("forward_kl", 0.7)?, term("cross_entropy", 0.3)?],
        ..Objective::default()
    })
}

/// Takes the gradients away and returns them.
fn take_gradients(model: &Transformer) -> Vec<(String, Tensor)> {
    let take = |tensor: &Tensor| {
        let gradient = tensor.grad().copy();
        let _ = tensor.grad().zero_();
        gradient
    };
    let defined = model
        .parameters()
        .iter()
        .filter(|parameter| parameter.tensor.grad().defined());
    defined
        .map(|parameter| (parameter.name.clone(), take(&parameter.tensor)))
        .collect()
}

fn assert_same_gradients(found: &[(String, Tensor)], expected: &[(String, Tensor)]) {
    assert_eq!(found.len(), expected.len());
    // Of the whole gradient: single parameters may have none to speak of (a bias on keys).
    let largest = expected
        .iter()
        .map(|(_, g)| g.abs().max().double_value(&[]))
        .fold(0.0, f64::max);
    for ((name, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!(name, other);
        let difference = (found - expected).abs().max().double_value(&[]) / largest;
        assert!(difference <= REORDERED, "{name}: {difference:e}");
    }
}

/// The unchunked loss, as the formula says it.
fn direct(
    student: &Transformer,
    teacher: &Transformer,
    targets: &Batch,
    objective: &Objective,
) -> Result<Vec<f64>> {
    let logits = |model: &Transformer| {
        model.logits(&targets.rows(&model.hidden(&targets.ids_bt, &mut NoTap, None)?)?)
    };
    let teacher_nv = tch::no_grad(|| logits(teacher))?;
    let student_nv = logits(student)?;
    let mut total = Tensor::f_zeros([1], (student_nv.f_kind()?, Device::Cpu))?;
    let mut means = Vec::new();
    for term in &objective.terms {
        let mean = term
            .loss
            .rows(&student_nv, Some(&teacher_nv), &targets.labels_n)?
            .f_mean(student_nv.f_kind()?)?;
        means.push(mean.f_double_value(&[])?);
        total = total.f_add(&mean.f_mul_scalar(term.weight)?)?;
    }
    total.f_sum(total.f_kind()?)?.f_backward()?;
    Ok(means)
}

#[test]
fn a_loss_in_row_chunks_is_the_loss_and_so_is_its_gradient() {
    let objective = objective().unwrap();
    for (mut config, task) in [
        (tiny_llama(), Task::NextToken),
        (tiny_bert(), Task::Masked { mask: 4, seed: 1 }),
    ] {
        config["vocab_size"] = (1 << 17).into();
        config["num_hidden_layers"] = 1.into();
        let (student, teacher) = (
            Model::new(&config, 40).unwrap(),
            Model::new(&config, 41).unwrap().load().unwrap(),
        );
        let student = student.trainable().unwrap();
        // 15 % of an encoder's positions give rows, all but one of a decoder's.
        let windows =
            some_windows(if student.is_causal() { 5 } else { 24 }, 32, 1 << 17, 2).unwrap();
        let chosen: Vec<usize> = (0..windows.len()).collect();
        let targets = task.batch(&windows, &chosen, Device::Cpu).unwrap();
        assert!(row_chunks(targets.n_rows(), 1 << 17, Device::Cpu).count() > 1);

        let chunked = objective
            .backward(
                &student,
                Some(&mut InMemoryTeacher(&teacher)),
                &targets,
                Counts::of(&targets).unwrap(),
            )
            .unwrap();
        let gradients = take_gradients(&student);
        let whole = direct(&student, &teacher, &targets, &objective).unwrap();
        for (chunked, whole) in chunked.terms.iter().zip(&whole) {
            assert!(
                (chunked - whole).abs() <= REORDERED * whole.abs(),
                "{chunked} {whole}"
            );
        }
        assert_same_gradients(&gradients, &take_gradients(&student));
    }
}

/// In f64, where the order of summation hardly shows: 1e-6 is what is promised, for every loss on
/// logits.
#[test]
fn every_loss_in_row_chunks_is_the_loss_whatever_it_is() {
    let mut config = tiny_llama();
    config["vocab_size"] = (1 << 17).into();
    config["num_hidden_layers"] = 1.into();
    let options = LoadOptions {
        kind: Kind::Double,
        ..LoadOptions::default()
    };
    let of = |seed, trainable| {
        let model = Model::new(&config, seed).unwrap();
        Transformer::load(
            &model.source,
            &model.spec,
            LoadOptions {
                trainable,
                ..options
            },
        )
        .unwrap()
    };
    let (student, teacher) = (of(40, true), of(41, false));
    let windows = some_windows(3, 32, 1 << 17, 2).unwrap();
    let targets = Task::NextToken
        .batch(&windows, &[0, 1, 2], Device::Cpu)
        .unwrap();
    assert!(row_chunks(targets.n_rows(), 1 << 17, Device::Cpu).count() > 1);
    for descriptor in registry()
        .of_kind(minitron_core::registry::Kind::Loss)
        .filter(|d| reads_no_file(d))
    {
        let loss = registry()
            .build::<dyn LogitLoss>(&PluginSpec::bare(descriptor.tag))
            .unwrap()
            .into();
        let term = Term {
            label: descriptor.tag.into(),
            weight: 0.7,
            loss,
        };
        let objective = Objective {
            terms: vec![term],
            ..Objective::default()
        };
        let chunked = objective
            .backward(
                &student,
                Some(&mut InMemoryTeacher(&teacher)),
                &targets,
                Counts::of(&targets).unwrap(),
            )
            .unwrap();
        let gradients = take_gradients(&student);
        let whole = direct(&student, &teacher, &targets, &objective).unwrap();
        let difference = (chunked.terms[0] - whole[0]).abs() / whole[0].abs();
        assert!(difference <= 1e-9, "{}: {difference:e}", descriptor.tag);
        let expected = take_gradients(&student);
        let largest = expected
            .iter()
            .map(|(_, g)| g.abs().max().double_value(&[]))
            .fold(0.0, f64::max);
        for ((name, found), (_, expected)) in gradients.iter().zip(&expected) {
            let difference = (found - expected).abs().max().double_value(&[]) / largest;
            assert!(
                difference <= 1e-9,
                "{} {name}: {difference:e}",
                descriptor.tag
            );
        }
    }
}

#[test]
fn two_passes_of_four_are_one_of_eight() {
    let objective = objective().unwrap();
    let model = Model::new(&tiny_llama(), 42).unwrap();
    let teacher = Model::new(&tiny_llama(), 43).unwrap().load().unwrap();
    let student = model.trainable().unwrap();
    let windows = some_windows(8, 16, 61, 3).unwrap();
    let targets = |chosen: &[usize]| {
        Task::NextToken
            .batch(&windows, chosen, Device::Cpu)
            .unwrap()
    };
    let whole = Counts::of(&targets(&[0, 1, 2, 3, 4, 5, 6, 7])).unwrap();
    let backward = |chosen: &[usize]| {
        objective
            .backward(
                &student,
                Some(&mut InMemoryTeacher(&teacher)),
                &targets(chosen),
                whole,
            )
            .unwrap()
    };
    backward(&[0, 1, 2, 3]);
    backward(&[4, 5, 6, 7]);
    let accumulated = take_gradients(&student);
    backward(&[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_same_gradients(&accumulated, &take_gradients(&student));

    let settings = |batch_size, accumulate| TrainSettings {
        batch_size,
        accumulate,
        ..settings()
    };
    let losses = |settings: TrainSettings| {
        let dir = tempfile::tempdir().unwrap();
        Run {
            settings,
            ..Run::new(&model, &teacher, &windows, dir.path())
        }
        .go(None, false)
        .unwrap();
        column(dir.path(), "loss")
    };
    let (halves, whole) = (losses(settings(4, 2)), losses(settings(8, 1)));
    assert_eq!(halves.len(), whole.len());
    for (halves, whole) in halves.iter().zip(&whole) {
        assert!(
            (halves - whole).abs() <= REORDERED * whole.abs(),
            "{halves} {whole}"
        );
    }
}

pub(super) fn settings() -> TrainSettings {
    TrainSettings {
        n_tokens: 8 * 16 * 9,
        batch_size: 4,
        accumulate: 2,
        lr: 3e-3,
        seed: 7,
        ..TrainSettings::default()
    }
}

pub(super) struct Run<'a> {
    pub student: Transformer,
    pub teacher: &'a Transformer,
    pub windows: &'a Windows,
    pub settings: TrainSettings,
    pub saving: Saving,
    pub held_out: Option<HeldOut<'a>>,
    pub write_best: Option<WriteStudent<'a>>,
    pub interrupt: Interrupt,
    pub out_dir: &'a Path,
}

impl<'a> Run<'a> {
    pub fn new(
        student: &Model,
        teacher: &'a Transformer,
        windows: &'a Windows,
        out_dir: &'a Path,
    ) -> Self {
        let (student, interrupt) = (student.trainable().unwrap(), Interrupt::default());
        let (settings, saving) = (settings(), Saving::default());
        Run {
            student,
            teacher,
            windows,
            settings,
            saving,
            held_out: None,
            write_best: None,
            interrupt,
            out_dir,
        }
    }

    pub fn go(&self, stop_after: Option<u64>, resume: bool) -> Result<Outcome> {
        let learner = Learner {
            student: &self.student,
            layers: None,
            objective: &objective()?,
            identity: Value::from(self.windows.digest()),
            kl_at_start: None,
            out_dir: self.out_dir,
            write_best: self.write_best,
        };
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            learners: &[learner],
            teacher: Some(RefCell::new(Box::new(InMemoryTeacher(self.teacher)))),
            correction: None,
            loader: &RefCell::new(DataLoader::of_windows(
                Arc::new(self.windows.clone()),
                self.settings.seed,
            )),
            long: None,
            task: Task::of(self.student.is_causal(), Some(4), 1)?,
            settings: &self.settings,
            saving: self.saving,
            held_out: self.held_out,
            max_skipped: 3,
            stop_after,
            progress: &Silent,
            interrupt: &self.interrupt,
        };
        trainer.run(resume)?.single().map(|(outcome, _)| outcome)
    }
}

/// A number of every line of metrics.jsonl.
pub(super) fn column(out_dir: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(out_dir.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()[key]
                .as_f64()
                .unwrap()
        })
        .collect()
}

pub(super) fn assert_same_run(a: &Run, b: &Run) {
    for (a, b) in a.student.parameters().iter().zip(b.student.parameters()) {
        assert!(
            a.name == b.name && a.tensor.detach().equal(&b.tensor.detach()),
            "{} differs",
            a.name
        );
    }
    for key in [
        "step",
        "n_tokens",
        "loss",
        "lr",
        "grad_norm",
        "loss/forward_kl",
        "loss/cross_entropy",
    ] {
        assert_eq!(column(a.out_dir, key), column(b.out_dir, key), "{key}");
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_bit_for_bit() {
    for config in [tiny_llama(), tiny_bert()] {
        let model = Model::new(&config, 44).unwrap();
        let teacher = Model::new(&config, 45).unwrap().load().unwrap();
        // Epochs end inside steps.
        let windows = some_windows(11, 16, 61, 4).unwrap();
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let whole = Run::new(&model, &teacher, &windows, one.path());
        assert!(whole.go(None, false).unwrap().is_complete());

        let halted = Run::new(&model, &teacher, &windows, two.path())
            .go(Some(4), false)
            .unwrap();
        assert_eq!(
            (halted.n_steps, halted.n_planned, halted.is_complete()),
            (4, 9, false)
        );
        // As after a kill between checkpoints: lines of steps that will be done again.
        let metrics = two.path().join("metrics.jsonl");
        let text = std::fs::read_to_string(&metrics).unwrap() + "{\"step\":5,\"loss\":1";
        std::fs::write(&metrics, text).unwrap();
        let resumed = Run::new(&model, &teacher, &windows, two.path());
        assert!(resumed.go(None, true).unwrap().is_complete());
        assert_same_run(&whole, &resumed);

        let first = relative(
            &whole.student.parameters()[0].tensor.detach(),
            &model.load().unwrap().parameters()[0].tensor,
        );
        assert!(first > 1e-3, "nothing was trained");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let model = Model::new(&tiny_llama(), 46).unwrap();
    let teacher = Model::new(&tiny_llama(), 47).unwrap().load().unwrap();
    let windows = some_windows(11, 16, 61, 5).unwrap();
    let dirs = [
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    ];
    let run = |dir: usize, seed| {
        let run = Run {
            settings: TrainSettings { seed, ..settings() },
            ..Run::new(&model, &teacher, &windows, dirs[dir].path())
        };
        run.go(None, false).unwrap();
        run
    };
    assert_same_run(&run(0, 7), &run(1, 7));
    run(2, 8);
    assert_ne!(
        column(dirs[0].path(), "loss"),
        column(dirs[2].path(), "loss")
    );
}

#[test]
fn a_run_with_other_settings_is_not_resumed() {
    let model = Model::new(&tiny_llama(), 48).unwrap();
    let teacher = model.load().unwrap();
    let windows = some_windows(11, 16, 61, 6).unwrap();
    let dir = tempfile::tempdir().unwrap();
    Run::new(&model, &teacher, &windows, dir.path())
        .go(Some(2), false)
        .unwrap();
    let other = TrainSettings {
        lr: 1e-4,
        ..settings()
    };
    let other = Run {
        settings: other,
        ..Run::new(&model, &teacher, &windows, dir.path())
    };
    let error = other.go(None, true).unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("other settings"),
        "{error}"
    );
}

#[test]
fn a_run_over_a_mixture_is_resumed_within_its_blocks_bit_for_bit() {
    let model = Model::new(&tiny_llama(), 49).unwrap();
    let teacher = Model::new(&tiny_llama(), 50).unwrap().load().unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut specs: Vec<DataSpec> = Vec::new();
    for (name, weight, n_ids) in [("a.bin", 0.7, 16 * 40 + 5), ("b.bin", 0.3, 16 * 15)] {
        let path = data.path().join(name);
        let ids: Vec<u8> = (0..n_ids)
            .flat_map(|id| ((id * id % 61_u32) as u16).to_le_bytes())
            .collect();
        std::fs::write(&path, ids).unwrap();
        specs.push(format!("{weight}*{}", path.display()).parse().unwrap());
    }
    let none = minitron::config(&serde_json::json!({})).unwrap();
    let tokenizer = &Arc::new(Tokenizer::load(Path::new(""), &none, 61, true).unwrap());
    let reading = &TextOptions::default().reading(16, None, 7);
    let registry = &registry();
    let options = LoaderOptions {
        reading,
        specs: &specs,
        tokenizer,
        registry,
        block_tokens: 16 * 9,
    };
    let run = |out_dir: &Path, stop_after, cursor: Option<&Cursor>| {
        let student = model.trainable().unwrap();
        let settings = settings();
        let objective = objective().unwrap();
        let (loader, interrupt) = (
            RefCell::new(DataLoader::open(&options, cursor).unwrap()),
            Interrupt::default(),
        );
        let learners = [learner(&student, &objective, out_dir)];
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            stop_after,
            ..trainer(&learners, &teacher, &loader, &settings, &interrupt)
        };
        trainer.run(true).unwrap().single().unwrap();
        column(out_dir, "loss")
    };
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let whole = run(dirs[0].path(), None, None);
    for (dir, peek) in [(&dirs[1], false), (&dirs[2], true)] {
        assert_eq!(run(dir.path(), Some(4), None), whole[..4]);
        // Opened at the place that was reached, or at the beginning and led there.
        let cursor = if peek { saved_cursor(dir.path()) } else { None };
        assert_eq!(peek, cursor.is_some());
        assert_eq!(run(dir.path(), None, cursor.as_ref()), whole);
    }
}

#[test]
fn a_teacher_that_is_corrected_learns_its_labels_and_is_resumed_with_its_student() {
    let (ours, theirs) = (
        Model::new(&tiny_llama(), 51).unwrap(),
        Model::new(&tiny_llama(), 52).unwrap(),
    );
    let windows = Arc::new(some_windows(11, 16, 61, 9).unwrap());
    let term = |tag: &str| {
        let loss = registry()
            .build::<dyn LogitLoss>(&PluginSpec::bare(tag))
            .unwrap();
        Objective {
            terms: vec![Term {
                label: tag.into(),
                weight: 1.0,
                loss: loss.into(),
            }],
            ..Objective::default()
        }
    };
    let (by_teacher, by_labels) = (term("forward_kl"), term("cross_entropy"));
    let run = |out_dir: &Path, stop_after| {
        let (student, teacher) = (ours.trainable().unwrap(), theirs.trainable().unwrap());
        let settings = TrainSettings {
            n_tokens: 8 * 16 * 40,
            ..settings()
        };
        let (loader, interrupt) = (
            RefCell::new(DataLoader::of_windows(Arc::clone(&windows), 7)),
            Interrupt::default(),
        );
        let learners = [learner(&student, &by_teacher, out_dir)];
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            correction: Some(Correction {
                model: &teacher,
                objective: &by_labels,
                rate: 0.5,
            }),
            stop_after,
            ..trainer(&learners, &teacher, &loader, &settings, &interrupt)
        };
        trainer.run(true).unwrap().single().unwrap();
        drop(trainer);
        drop(learners);
        (student, teacher)
    };
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = run(dirs[0].path(), None);
    run(dirs[1].path(), Some(17));
    let resumed = run(dirs[1].path(), None);
    for (a, b) in [(&whole.0, &resumed.0), (&whole.1, &resumed.1)] {
        for (a, b) in a.parameters().iter().zip(b.parameters()) {
            assert!(a.tensor.detach().equal(&b.tensor.detach()), "{}", a.name);
        }
    }
    let losses = column(dirs[0].path(), "teacher/loss");
    assert!(losses[39] < 0.9 * losses[0], "{losses:?}");
}

#[test]
fn a_learned_map_is_resumed_with_its_student() {
    let mut narrow = tiny_llama();
    narrow["hidden_size"] = 16.into();
    let (ours, theirs) = (
        Model::new(&narrow, 53).unwrap(),
        Model::new(&tiny_llama(), 54).unwrap(),
    );
    let teacher = theirs.load().unwrap();
    let windows = Arc::new(some_windows(11, 16, 61, 10).unwrap());
    let run = |out_dir: &Path, stop_after| {
        let student = ours.trainable().unwrap();
        let spec = PluginSpec::bare("hidden_state").with("layers", "last");
        let loss = registry().build::<dyn StateLoss>(&spec).unwrap();
        let start = TermStart {
            device: Device::Cpu,
            kind: Kind::Float,
            kept: None,
            seed: 3,
        };
        let (label, weight) = ("hidden_state".to_owned(), Weight::Dynamic(1.0));
        let term = StateTerm::new(label, weight, loss, &ours.spec, &theirs.spec, start).unwrap();
        let objective = Objective {
            states: vec![term],
            ..objective().unwrap()
        };
        let settings = settings();
        let (loader, interrupt) = (
            RefCell::new(DataLoader::of_windows(Arc::clone(&windows), 7)),
            Interrupt::default(),
        );
        let learners = [learner(&student, &objective, out_dir)];
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            stop_after,
            ..trainer(&learners, &teacher, &loader, &settings, &interrupt)
        };
        trainer.run(true).unwrap().single().unwrap();
        let lift = objective.projects().next().unwrap().tensor.detach().copy();
        (
            lift,
            column(out_dir, "loss"),
            column(out_dir, "loss/hidden_state"),
        )
    };
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = run(dirs[0].path(), None);
    let _ = run(dirs[1].path(), Some(4));
    let resumed = run(dirs[1].path(), None);
    assert!(whole.0.equal(&resumed.0));
    assert_eq!((whole.1, whole.2), (resumed.1, resumed.2));
}

#[test]
fn students_that_share_a_teacher_learn_what_each_learns_alone() {
    let teacher = Model::new(&tiny_llama(), 55).unwrap().load().unwrap();
    let windows = Arc::new(some_windows(11, 16, 61, 11).unwrap());
    let mut narrow = tiny_llama();
    narrow["intermediate_size"] = 16.into();
    let models = [
        Model::new(&tiny_llama(), 56).unwrap(),
        Model::new(&narrow, 57).unwrap(),
    ];
    let objective = objective().unwrap();
    let held_out_windows = some_windows(5, 16, 61, 12).unwrap();
    let held_out = HeldOut {
        windows: &held_out_windows,
        batch_size: 2,
        every: Some(3),
    };
    let run = |students: &[&Transformer], dirs: &[&Path], stop_after| {
        let (settings, interrupt) = (settings(), Interrupt::default());
        let loader = RefCell::new(DataLoader::of_windows(Arc::clone(&windows), 7));
        let learners: Vec<Learner> = students
            .iter()
            .zip(dirs)
            .map(|(student, dir)| learner(student, &objective, dir))
            .collect();
        let trainer = trainer(&learners, &teacher, &loader, &settings, &interrupt);
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            stop_after,
            held_out: Some(held_out),
            ..trainer
        };
        for learned in trainer.run(true).unwrap().learners {
            assert_eq!(learned.unwrap().0.n_steps, stop_after.unwrap_or(9));
        }
    };
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [one, two, three, four] = dirs.each_ref().map(|dir| dir.path());
    let load = || models.each_ref().map(|model| model.trainable().unwrap());
    let (alone, together) = (load(), load());
    run(&[&alone[0]], &[one], None);
    run(&[&alone[1]], &[two], None);
    // One of them is ahead when both go on.
    let [first, _] = load();
    run(&[&first], &[three], Some(5));
    run(&[&together[0], &together[1]], &[three, four], None);
    for (a, b) in alone.iter().zip(&together) {
        for (a, b) in a.parameters().iter().zip(b.parameters()) {
            assert!(a.tensor.detach().equal(&b.tensor.detach()), "{}", a.name);
        }
    }
    let lines = |dir: &Path| {
        std::fs::read_to_string(dir.join("metrics.jsonl"))
            .unwrap()
            .matches("eval/loss")
            .count()
    };
    for (a, b) in [(one, three), (two, four)] {
        assert_eq!(column(a, "loss"), column(b, "loss"));
        assert_eq!(lines(a), 3);
        assert_eq!(lines(b), 3);
    }
}
