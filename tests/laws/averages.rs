//! A step is averaged over all its predictions and tokens: how it is split into passes does not
//! show.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use minitron::{
    Recorder, minitron, python, reads_no_file, registry, root, run_python, some_windows, tiny_bert,
    tiny_gpt2, tiny_llama,
};
use minitron_core::calibrate::{Alone, Calibration};
use minitron_core::checkpoint::TensorSource;
use minitron_core::contract::{LogitLoss, StateLoss};
use minitron_core::model::{LoadOptions, Transformer};
use minitron_core::plan::Plan;
use minitron_core::progress::{Interrupt, Silent};
use minitron_core::registry::{Kind as PluginKind, PluginSpec};
use minitron_core::spec::{HIDDEN, ModelSpec};
use minitron_core::windows::{Sample, Task, Windows};
use minitron_engine::data::{DataLoader, DataSpec, LoaderOptions, Pack, TextOptions, Tokenizer};
use minitron_engine::ranks::Ranks;
use minitron_engine::score::mean_gradient;
use minitron_engine::train::{
    AdamWSettings, CacheHeader, CacheType, CachedTeacher, Correction, Counts, HeldOut,
    InMemoryTeacher, Learner, Objective, Sharding, StateTerm, StreamedTeacher, Teacher,
    TeacherCache, Term, TermStart, TrainSettings, Trainer, Weight,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{Model, REORDERED, learner, relative, trainer};

/// Of a loss, relatively; of a weight, absolutely. In f64, or in f32 with an ε of AdamW that is
/// large beside rounding: AdamW makes a whole step of any gradient, also of one that is rounding
/// alone (a bias on keys has no other).
const LAW: f64 = 1e-6;
const EPS_OF_F32: f64 = 1e-4;

/// Four windows a step, in one, two and four passes.
const SPLITS: [(usize, usize); 3] = [(4, 1), (2, 2), (1, 4)];

const LENGTHS: [usize; 12] = [2, 3, 3, 5, 8, 8, 13, 17, 21, 34, 40, 48];
const N_STEPS: u64 = 6;
const SPECIAL_TOKENS: (u32, u32) = (2, 3);
const MASK: u32 = 4;

/// Windows of very different lengths: batches of several are padded.
fn documents(special_tokens: Option<(u32, u32)>) -> Windows {
    super::documents(LENGTHS, 17, special_tokens)
}

/// A loss by its tag, with a weight or a share.
#[derive(Clone)]
struct Asked {
    spec: PluginSpec,
    weight: Weight,
}

fn asked(spec: &str, weight: Weight) -> Asked {
    Asked {
        spec: spec.parse().unwrap(),
        weight,
    }
}

/// Who teaches.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Memory,
    Streamed,
    Cache,
    Corrected,
}

/// A training whose split varies.
struct Case {
    students: Vec<Value>,
    teacher: Value,
    losses: Vec<Asked>,
    from: Held,
    kind: Kind,
    recompute: bool,
}

impl Case {
    fn new(losses: Vec<Asked>) -> Self {
        let students = vec![tiny_llama()];
        Case {
            students,
            teacher: tiny_llama(),
            losses,
            from: Held::Memory,
            kind: Kind::Double,
            recompute: false,
        }
    }

    fn objective(&self, student: &Model, teacher: &Model) -> Objective {
        let mut objective = Objective {
            recompute: self.recompute,
            ..Objective::default()
        };
        let registry = registry();
        for Asked { spec, weight } in &self.losses {
            if registry
                .of_kind(PluginKind::StateLoss)
                .all(|known| known.tag != spec.tag)
            {
                let Weight::Fixed(weight) = *weight else {
                    panic!("a dynamic weight of a loss on logits")
                };
                let loss = registry.build::<dyn LogitLoss>(spec).unwrap().into();
                objective.terms.push(Term {
                    label: spec.tag.clone(),
                    weight,
                    loss,
                });
                continue;
            }
            let kept = first_units(&student.spec);
            let start = TermStart {
                device: Device::Cpu,
                kind: self.kind,
                kept: Some(&kept.clone().into()),
                seed: 3,
            };
            let loss = registry.build::<dyn StateLoss>(spec).unwrap();
            let (ours, theirs) = (&student.spec, &teacher.spec);
            let term =
                StateTerm::new(spec.tag.clone(), *weight, loss, ours, theirs, start).unwrap();
            objective.states.push(term);
        }
        objective
    }

    fn load(&self, model: &Model, trainable: bool) -> Transformer {
        let options = LoadOptions {
            kind: self.kind,
            trainable,
            ..LoadOptions::default()
        };
        Transformer::load(&model.source, &model.spec, options).unwrap()
    }

    /// Trains with a split; what the learners came to, and a corrected teacher.
    fn run(&self, split: (usize, usize), loader: DataLoader, cache: &Path) -> Vec<Found> {
        let teacher_model = Model::new(&self.teacher, 71).unwrap();
        let models: Vec<Model> = self
            .students
            .iter()
            .map(|config| Model::new(config, 70).unwrap())
            .collect();
        let students: Vec<Transformer> =
            models.iter().map(|model| self.load(model, true)).collect();
        let objectives: Vec<Objective> = models
            .iter()
            .map(|model| self.objective(model, &teacher_model))
            .collect();
        let loaded = self.load(&teacher_model, self.from == Held::Corrected);
        let by_labels = Objective {
            terms: vec![logit_term("cross_entropy")],
            ..Objective::default()
        };
        let teacher: Box<dyn Teacher> = match self.from {
            Held::Memory | Held::Corrected => Box::new(InMemoryTeacher(&loaded)),
            Held::Streamed => {
                let options = LoadOptions {
                    kind: self.kind,
                    ..LoadOptions::default()
                };
                Box::new(StreamedTeacher::new(
                    &teacher_model.source,
                    &teacher_model.spec,
                    options,
                ))
            }
            Held::Cache => {
                let header =
                    CacheHeader::new("a teacher".into(), "float".into(), 61, 8, CacheType::F16);
                let opened = TeacherCache::open(cache, header, 0).unwrap();
                let load =
                    || Ok(Box::new(InMemoryTeacher(teacher_model.load()?)) as Box<dyn Teacher>);
                Box::new(CachedTeacher::new(
                    &teacher_model.spec,
                    self.kind,
                    opened,
                    Box::new(load),
                    &Silent,
                ))
            }
        };
        let dirs: Vec<_> = models
            .iter()
            .map(|_| tempfile::tempdir().unwrap())
            .collect();
        let learner = |idx: usize| learner(&students[idx], &objectives[idx], dirs[idx].path());
        let learners: Vec<Learner> = (0..models.len()).map(learner).collect();
        let (batch_size, accumulate) = split;
        let n_tokens = N_STEPS * 4 * loader.mean_width() as u64;
        // No clipping: it would hide a gradient that is too large by a factor.
        let settings = TrainSettings {
            n_tokens,
            batch_size,
            accumulate,
            lr: 1e-3,
            clip: 1e9,
            warmup: Some(0),
            adamw: AdamWSettings {
                eps: if self.kind == Kind::Float {
                    EPS_OF_F32
                } else {
                    1e-8
                },
                ..AdamWSettings::default()
            },
            ..TrainSettings::default()
        };
        let task = Task::of_model(&models[0].spec.options, Some(MASK), 5).unwrap();
        let correction = Correction {
            model: &loaded,
            objective: &by_labels,
            rate: 0.5,
        };
        let (loader, interrupt) = (RefCell::new(loader), Interrupt::default());
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            teacher: Some(RefCell::new(teacher)),
            correction: (self.from == Held::Corrected).then_some(correction),
            task,
            ..trainer(&learners, &loaded, &loader, &settings, &interrupt)
        };
        for learner in trainer.run(false).unwrap().learners {
            assert_eq!(learner.unwrap().0.n_skipped, 0);
        }
        drop(trainer);
        let weights = |model: &Transformer, objective: &Objective| {
            let all = model.parameters().iter().chain(objective.projects());
            all.map(|parameter| parameter.tensor.detach().copy())
                .collect()
        };
        let trained = students.iter().zip(&objectives).zip(&dirs);
        let mut found: Vec<Found> = trained
            .map(|((student, objective), dir)| Found {
                lines: lines(dir.path()),
                weights: weights(student, objective),
            })
            .collect();
        if self.from == Held::Corrected {
            found.push(Found {
                lines: Vec::new(),
                weights: weights(&loaded, &by_labels),
            });
        }
        found
    }

    /// Largest differences of losses and weights from one pass a step, for two and four passes.
    fn differences(&self, loader: impl Fn() -> DataLoader) -> [Apart; 2] {
        let cache = tempfile::tempdir().unwrap();
        let [whole, halves, quarters] = SPLITS.map(|split| self.run(split, loader(), cache.path()));
        [&halves, &quarters].map(|split| {
            let apart = split
                .iter()
                .zip(&whole)
                .map(|(split, whole)| split.apart(whole));
            apart.reduce(Apart::most).unwrap()
        })
    }
}

fn logit_term(tag: &str) -> Term {
    let loss = registry()
        .build::<dyn LogitLoss>(&PluginSpec::bare(tag))
        .unwrap();
    Term {
        label: tag.to_owned(),
        weight: 1.0,
        loss: loss.into(),
    }
}

fn lines(out_dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out_dir.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a learner came to.
struct Found {
    lines: Vec<Value>,
    weights: Vec<Tensor>,
}

/// How far two trainings lie apart.
#[derive(Clone, Copy)]
struct Apart {
    /// Of any number that a step's losses and gradients give, relatively.
    loss: f64,
    /// Of any weight, absolutely.
    weights: f64,
}

impl Apart {
    fn most(self, other: Apart) -> Apart {
        Apart {
            loss: self.loss.max(other.loss),
            weights: self.weights.max(other.weights),
        }
    }
}

impl Found {
    fn apart(&self, whole: &Found) -> Apart {
        assert_eq!(self.lines.len(), whole.lines.len());
        let mut loss: f64 = 0.0;
        for (a, b) in self.lines.iter().zip(&whole.lines) {
            assert_eq!(
                (&a["n_predictions"], &a["n_states"]),
                (&b["n_predictions"], &b["n_states"])
            );
            let is_value = |key: &&String| {
                key.starts_with("loss") || key.contains("grad_norm") || key.contains("teacher/")
            };
            for key in b.as_object().unwrap().keys().filter(is_value) {
                let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
                // Gradients are sums over many more numbers: they are looked at through the
                // weights.
                let apart = (a - b).abs() / b.abs();
                loss = loss.max(if key.contains("grad_norm") {
                    0.1 * apart
                } else {
                    apart
                });
            }
        }
        let of_tensors = self.weights.iter().zip(&whole.weights);
        let weights = of_tensors
            .map(|(a, b)| (a - b).abs().max().double_value(&[]))
            .fold(0.0, f64::max);
        Apart { loss, weights }
    }
}

fn of_documents(special_tokens: Option<(u32, u32)>) -> impl Fn() -> DataLoader {
    move || DataLoader::of_windows(Arc::new(documents(special_tokens)), 7)
}

fn assert_lawful(what: &str, apart: [Apart; 2]) {
    for (n_passes, Apart { loss, weights }) in [2, 4].into_iter().zip(apart) {
        println!("{what:44} {n_passes} passes   loss {loss:.1e}   weights {weights:.1e}");
        assert!(
            loss <= LAW && weights <= LAW,
            "{what}, {n_passes} passes: loss {loss:e}, weights {weights:e}"
        );
    }
}

/// The losses of examples/pytorch as TorchScript, where PyTorch is there.
fn scripts(dir: &Path) -> Vec<Asked> {
    if python().is_none() {
        eprintln!("absent, not tested: PyTorch");
        return Vec::new();
    }
    let script = |(name, tag): (&str, &str)| {
        let path = dir.join(format!("{name}.pt"));
        let script = root().join(format!("examples/pytorch/{name}.py"));
        let output = run_python(&script, [&path]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Asked {
            spec: PluginSpec::bare(tag).with("path", path.display().to_string()),
            weight: Weight::Fixed(1.0),
        }
    };
    [
        ("loss", "torchscript"),
        ("state_loss", "torchscript_states"),
    ]
    .map(script)
    .into()
}

/// Every loss alone; prints how far apart the splits lie (`--nocapture`).
#[test]
fn every_loss_gives_the_same_weights_however_a_step_is_split() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry();
    let of = |kind| {
        registry
            .of_kind(kind)
            .filter(|known| reads_no_file(known))
            .map(|known| known.tag.to_owned())
    };
    let tags: Vec<String> = of(PluginKind::Loss)
        .chain(of(PluginKind::StateLoss))
        .collect();
    assert!(tags.len() >= 11, "{tags:?}");
    let named = tags.iter().map(|tag| asked(tag, Weight::Fixed(1.0)));
    for loss in named.chain(scripts(dir.path())) {
        for kind in [Kind::Float, Kind::Double] {
            let case = Case {
                kind,
                ..Case::new(vec![loss.clone()])
            };
            let bits = if kind == Kind::Float { "f32" } else { "f64" };
            assert_lawful(
                &format!("{}, {bits}", loss.spec.tag),
                case.differences(of_documents(None)),
            );
        }
    }
}

#[test]
fn sums_of_losses_with_dynamic_weights_and_recomputing_too() {
    let mut narrow = tiny_llama();
    narrow["hidden_size"] = 16.into();
    let losses = vec![
        asked("forward_kl", Weight::Fixed(0.7)),
        asked("cross_entropy", Weight::Fixed(0.3)),
        asked("hidden_state:layers=last", Weight::Dynamic(0.5)),
        asked("attention_relation", Weight::Dynamic(1.0)),
        asked("mlp_input:layers=uniform", Weight::Fixed(0.2)),
    ];
    for recompute in [false, true] {
        let students = vec![narrow.clone(), tiny_llama()];
        let case = Case {
            students,
            recompute,
            ..Case::new(losses.clone())
        };
        let what = format!("five losses, two learners, recompute {recompute}");
        assert_lawful(&what, case.differences(of_documents(None)));
    }
}

#[test]
fn wherever_the_teacher_is() {
    let kl = || {
        vec![
            asked("forward_kl", Weight::Fixed(1.0)),
            asked("cross_entropy", Weight::Fixed(0.5)),
        ]
    };
    for (name, from) in [
        ("streamed", Held::Streamed),
        ("cached", Held::Cache),
        ("corrected", Held::Corrected),
    ] {
        let case = Case {
            from,
            ..Case::new(kl())
        };
        assert_lawful(
            &format!("teacher {name}"),
            case.differences(of_documents(None)),
        );
    }
}

#[test]
fn masked_tokens_and_other_families_too() {
    for (config, special_tokens) in [(tiny_bert(), Some(SPECIAL_TOKENS)), (tiny_gpt2(), None)] {
        let losses = vec![
            asked("reverse_kl", Weight::Fixed(1.0)),
            asked("hidden_state:layers=last", Weight::Dynamic(1.0)),
        ];
        let case = Case {
            students: vec![config.clone()],
            teacher: config.clone(),
            ..Case::new(losses)
        };
        assert_lawful(
            &format!("{}", config["model_type"]),
            case.differences(of_documents(special_tokens)),
        );
    }
}

#[test]
fn weighted_mixtures_of_long_and_short_documents_too() {
    let data = tempfile::tempdir().unwrap();
    let specs: Vec<DataSpec> = [("long.jsonl", 0.6, 40), ("short.jsonl", 0.4, 4)]
        .map(|(name, weight, length)| {
            let document = |i: usize| {
                json!({ "ids": (0..length + i % 5).map(|t|
                    (7 * i + 3 * t) % 61).collect::<Vec<_>>() })
            };
            let text: Vec<String> = (0..30).map(|i| document(i).to_string()).collect();
            let path = data.path().join(name);
            std::fs::write(&path, text.join("\n")).unwrap();
            format!("{weight}*{}", path.display()).parse().unwrap()
        })
        .into();
    let none = minitron::config(&json!({})).unwrap();
    let tokenizer = Arc::new(Tokenizer::load(Path::new(""), &none, 61, true).unwrap());
    let field = Some("ids".to_owned());
    let text = TextOptions {
        field,
        pack: Pack::Documents,
        ..TextOptions::default()
    };
    let reading = text.reading(64, None, 7);
    let registry = registry();
    let options = LoaderOptions {
        reading: &reading,
        specs: &specs,
        tokenizer: &tokenizer,
        registry: &registry,
        block_tokens: minitron_engine::data::BLOCK_TOKENS,
    };
    let losses = vec![
        asked("forward_kl", Weight::Fixed(1.0)),
        asked("embedding", Weight::Fixed(1.0)),
    ];
    let case = Case::new(losses);
    assert_lawful(
        "a mixture",
        case.differences(|| DataLoader::open(&options, None).unwrap()),
    );
}

/// Windows of these tokens as a batch.
fn batch(windows: &[&[u32]]) -> minitron_core::windows::Batch {
    let pieces: Vec<Sample> = windows
        .iter()
        .zip(0..)
        .map(|(tokens, id)| Sample {
            id,
            tokens: tokens.to_vec(),
            marks: Vec::new(),
        })
        .collect();
    Task::NextToken.batch_of(&pieces, 0, Device::Cpu).unwrap()
}

#[test]
fn a_pass_without_predictions_counts_nothing() {
    let (student, teacher) = (
        Model::new(&tiny_llama(), 72).unwrap(),
        Model::new(&tiny_llama(), 73).unwrap(),
    );
    let (model, heard) = (student.trainable().unwrap(), teacher.load().unwrap());
    let (some, none) = (batch(&[&[5, 6, 7], &[8, 9]]), batch(&[&[11], &[12]]));
    let counts = [&some, &none].map(|targets| Counts::of(targets).unwrap());
    assert_eq!(
        counts.map(|counts| (counts.predictions, counts.tokens)),
        [(3, 5), (0, 2)]
    );
    let gradients = |targets: &[&minitron_core::windows::Batch], whole: Counts| {
        let objective = Objective {
            terms: vec![logit_term("forward_kl"), logit_term("cross_entropy")],
            ..Objective::default()
        };
        let total: f64 = targets
            .iter()
            .map(|targets| {
                objective
                    .backward(&model, Some(&mut InMemoryTeacher(&heard)), targets, whole)
                    .unwrap()
                    .total
            })
            .sum();
        let taken: Vec<Tensor> = model
            .parameters()
            .iter()
            .map(|p| p.tensor.grad().copy())
            .collect();
        model
            .parameters()
            .iter()
            .for_each(|p| drop(p.tensor.grad().zero_()));
        (total, taken)
    };
    let (alone, expected) = gradients(&[&some], counts[0]);
    let (both, found) = gradients(&[&none, &some], counts[0].plus(counts[1]));
    assert_eq!(alone, both);
    assert!(found.iter().zip(&expected).all(|(a, b)| a.equal(b)));
}

#[test]
fn a_step_without_predictions_changes_nothing_and_says_so() {
    let model = Model::new(&tiny_llama(), 74).unwrap();
    let windows =
        Arc::new(Windows::cut((0..61).collect(), 1, None, None, "single tokens").unwrap());
    let (student, heard) = (model.trainable().unwrap(), model.load().unwrap());
    let case = Case::new(vec![asked("hidden_state", Weight::Fixed(1.0))]);
    let with_states = Objective {
        terms: vec![logit_term("cross_entropy")],
        ..case.objective(&model, &model)
    };
    let alone = Objective {
        terms: vec![logit_term("cross_entropy")],
        ..Objective::default()
    };
    for (objective, n_skipped) in [(&alone, 8), (&with_states, 0)] {
        let (dir, warned) = (tempfile::tempdir().unwrap(), Recorder::default());
        let settings = TrainSettings {
            n_tokens: 8 * 4,
            batch_size: 2,
            accumulate: 2,
            ..TrainSettings::default()
        };
        let (loader, interrupt) = (
            RefCell::new(DataLoader::of_windows(Arc::clone(&windows), 7)),
            Interrupt::default(),
        );
        let learners = [learner(&student, objective, dir.path())];
        let trainer = Trainer {
            ranks: Ranks::alone(),
            sharding: Sharding::None,
            progress: &warned,
            ..trainer(&learners, &heard, &loader, &settings, &interrupt)
        };
        let (outcome, _) = trainer.run(false).unwrap().single().unwrap();
        // A mean over predictions, of which there are none.
        assert_eq!(
            (outcome.n_steps, outcome.n_skipped, outcome.loss),
            (8, n_skipped, None)
        );
        let lines = lines(dir.path());
        for line in &lines {
            let said = [&line["n_predictions"], &line["loss/cross_entropy"]];
            assert_eq!(said, [&json!(0), &Value::Null], "{line}");
            assert_eq!(line["loss"].is_null(), n_skipped == 8, "{line}");
            assert_eq!(
                line["n_states"],
                if n_skipped == 8 {
                    Value::Null
                } else {
                    json!(4)
                }
            );
        }
        let warnings = warned.warnings();
        let n_said = warnings
            .iter()
            .filter(|warning| warning.contains("nothing is predicted"))
            .count();
        assert_eq!(n_said, usize::from(n_skipped == 8), "{warnings:?}");
        if n_skipped == 8 {
            let before = model.load().unwrap();
            for (now, before) in student.parameters().iter().zip(before.parameters()) {
                assert!(
                    now.tensor.detach().equal(&before.tensor.detach()),
                    "{}",
                    now.name
                );
            }
        }
    }
}

#[test]
fn held_out_states_are_averaged_over_tokens_whatever_the_batches() {
    let (student, teacher) = (
        Model::new(&tiny_llama(), 75).unwrap(),
        Model::new(&tiny_llama(), 76).unwrap(),
    );
    let (model, heard) = (student.load().unwrap(), teacher.load().unwrap());
    let case = Case::new(vec![
        asked("forward_kl", Weight::Fixed(1.0)),
        asked("hidden_state", Weight::Dynamic(0.5)),
    ]);
    let objective = case.objective(&student, &teacher);
    let windows = documents(None);
    let evaluate = |batch_size| {
        let held_out = HeldOut {
            windows: &windows,
            batch_size,
            every: None,
        };
        objective
            .evaluate(
                &model,
                Some(&mut InMemoryTeacher(&heard)),
                Task::NextToken,
                &held_out,
            )
            .unwrap()
    };
    let found = evaluate(1);
    let (mut sums, mut whole) = ([0.0; 2], Counts::default());
    let trainable = student.trainable().unwrap();
    for window in 0..windows.len() {
        let targets = Task::NextToken
            .batch(&windows, &[window], Device::Cpu)
            .unwrap();
        let counts = Counts::of(&targets).unwrap();
        let means = objective
            .backward(
                &trainable,
                Some(&mut InMemoryTeacher(&heard)),
                &targets,
                counts,
            )
            .unwrap();
        sums[0] += means.terms[0] * counts.predictions as f64;
        sums[1] += means.terms[1] * counts.tokens as f64;
        whole = whole.plus(counts);
    }
    let expected = [
        sums[0] / whole.predictions as f64,
        sums[1] / whole.tokens as f64,
    ];
    for found in [&found, &evaluate(3)] {
        for (found, expected) in found.terms.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= LAW * expected,
                "{found} {expected}"
            );
        }
        assert!((found.objective - 1.5 * expected[0]).abs() <= LAW * expected[0]);
    }
}

#[test]
fn a_metrics_gradient_is_over_all_predictions_whatever_the_batches() {
    let model = Model::new(&tiny_llama(), 77).unwrap();
    let windows = documents(None);
    let gradient = |batch_size| {
        let input = Calibration {
            windows: &windows,
            batch_size,
            task: Some(Task::NextToken),
            world: &Alone,
            progress: &Silent,
        };
        let loss = registry()
            .build::<dyn LogitLoss>(&PluginSpec::bare("cross_entropy"))
            .unwrap();
        let model = model.trainable().unwrap();
        mean_gradient(&model, loss.into(), &input, Ranks::alone()).unwrap()
    };
    let (alone, together) = (gradient(1), gradient(5));
    // By hand: one padded batch of all windows.
    let trainable = model.trainable().unwrap();
    let all: Vec<usize> = (0..windows.len()).collect();
    let targets = Task::NextToken.batch(&windows, &all, Device::Cpu).unwrap();
    let objective = Objective {
        terms: vec![logit_term("cross_entropy")],
        ..Objective::default()
    };
    objective
        .backward(&trainable, None, &targets, Counts::of(&targets).unwrap())
        .unwrap();
    for parameter in trainable.parameters() {
        let expected = parameter.gradient().unwrap();
        for found in [&alone, &together] {
            let found = found.read(&parameter.name).unwrap();
            assert!(
                relative(&found, &expected) <= 10.0 * REORDERED,
                "{}",
                parameter.name
            );
        }
    }
}

/// The case of a long document beside a short one (`../shared/cases`), made where Python is there.
fn long_beside_short(dir: &Path) -> Option<PathBuf> {
    let make = root().join("../shared/cases/make.py");
    let Some(python) = python().filter(|_| make.exists()) else {
        eprintln!("absent, not tested: ../shared/cases, or the Python of `make test`");
        return None;
    };
    let output = Command::new(python)
        .arg(make)
        .arg(dir)
        .arg("c20")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(dir.join("c20"))
}

#[test]
fn a_long_document_beside_a_short_one_counts_by_its_tokens_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let Some(case) = long_beside_short(dir.path()) else {
        return;
    };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(case.join("expected.json")).unwrap()).unwrap();
    let at = |name: &str| case.join(name).display().to_string();
    let step = |command: &str, loss: &str, split: (usize, usize)| {
        let out = dir.path().join(format!("{command}-{loss}-{}", split.1));
        let (batch_size, accumulate) = (split.0.to_string(), split.1.to_string());
        let (model, data, to) = (at("model"), at("two.jsonl"), out.display().to_string());
        let mut args = match command {
            "distill" => vec![command, "--teacher", &model, "--student", &model],
            _ => vec![command, &model],
        };
        args.extend([
            "--data",
            &data,
            "--pack",
            "documents",
            "--seq-len",
            "128",
            "--tokens",
            "1",
            "--loss",
            loss,
        ]);
        args.extend([
            "--batch-size",
            &batch_size,
            "--accumulate",
            &accumulate,
            "--out",
            &to,
            "--quiet",
        ]);
        let output = minitron(&args).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        lines(&out).remove(0)
    };
    for command in ["train", "distill"] {
        let [whole, halves] = [(2, 1), (1, 2)].map(|split| step(command, "cross_entropy", split));
        for line in [&whole, &halves] {
            let found = (line["loss"].as_f64().unwrap() * 1e4).round() / 1e4;
            assert_eq!(
                json!(found),
                expected["loss of the step, both ways"],
                "{command}: {line}"
            );
            assert_eq!(
                line["n_predictions"], expected["n predictions"],
                "{command}"
            );
        }
        let [a, b] = [&whole, &halves].map(|line| line["grad_norm"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * a, "{command}: {a} {b}");
    }
}

#[test]
fn what_a_loss_is_averaged_over_is_on_record_beside_it() {
    let case = Case::new(vec![
        asked("cross_entropy", Weight::Fixed(1.0)),
        asked("embedding", Weight::Fixed(1.0)),
    ]);
    let windows = some_windows(8, 16, 61, 3).unwrap();
    let run = |case: &Case| {
        let loader = DataLoader::of_windows(Arc::new(windows.clone()), 7);
        case.run((2, 2), loader, Path::new(""))
            .remove(0)
            .lines
            .remove(0)
    };
    let both = run(&case);
    assert_eq!(
        (&both["n_predictions"], &both["n_states"]),
        (&json!(4 * 15), &json!(4 * 16))
    );
    let alone: BTreeMap<&str, Value> = ["cross_entropy", "embedding"]
        .map(|tag| (tag, run(&Case::new(vec![asked(tag, Weight::Fixed(1.0))]))))
        .into();
    assert!(
        alone["cross_entropy"].get("n_states").is_none()
            && alone["embedding"].get("n_predictions").is_none()
    );
    assert_eq!(alone["embedding"]["n_states"], json!(4 * 16));
}

/// As if a student had kept the first units of each dim, in another basis of the stream.
fn first_units(student: &ModelSpec) -> Plan {
    let dims = student.dims.values().filter(|dim| dim.name != HIDDEN);
    let kept = dims.map(|dim| (dim.name.clone(), (0..dim.size).collect()));
    Plan {
        kept: kept.collect(),
    }
}
