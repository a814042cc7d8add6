//! Wherever a teacher is, it says the same; what is remembered of it is what it said.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use minitron::{registry, some_windows, tiny_bert, tiny_gpt2, tiny_llama, tiny_nemotron};
use minitron_core::contract::{LogitLoss, ModelPair, SitePair, StateLoss, States};
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Port, Site, Transformer};
use minitron_core::progress::Silent;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::At;
use minitron_core::windows::{Batch, Task, Windows};
use minitron_engine::train::{
    CacheHeader, CacheType, CachedTeacher, Counts, InMemoryTeacher, Objective, StateTerm,
    StreamedTeacher, Teacher, TeacherCache, Term, TermStart, Weight,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{Model, REORDERED, relative};

/// All places at once, so that every way of the gradient is taken.
#[derive(Debug, Serialize, Deserialize)]
struct Everywhere {}

#[typetag::serde(name = "everywhere")]
impl StateLoss for Everywhere {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let inside = |layer| {
            let part = |sublayer, port| Site::Inside {
                at: At::Sublayer { layer, sublayer },
                port,
            };
            [
                Site::LayerInput(layer),
                part(0, Port::INPUT),
                part(0, Port::QUERY),
                part(0, Port::KEY),
                part(0, Port::VALUE),
                part(1, Port::STREAM),
                part(1, Port::NEURONS),
                Site::LayerOutput(layer),
            ]
        };
        let sites = (0..models.student.n_layers())
            .flat_map(inside)
            .chain([Site::Last]);
        Ok(sites.map(|site| SitePair::new(site, site)).collect())
    }

    fn projects(&self) -> bool {
        false
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        Ok(student
            .rows()?
            .f_sub(&teacher.rows()?)?
            .f_square()?
            .f_mean(student.x_btc.f_kind()?)?)
    }
}

/// One place, through a learned map where widths differ.
#[derive(Debug, Serialize, Deserialize)]
struct LastState {}

#[typetag::serde(name = "last_state")]
impl StateLoss for LastState {
    fn pairs(&self, _models: &ModelPair) -> Result<Vec<SitePair>> {
        Ok(vec![SitePair::new(Site::Last, Site::Last)])
    }

    fn projects(&self) -> bool {
        true
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        Everywhere {}.loss(student, teacher)
    }
}

pub(super) fn logit_term(weight: f64) -> Term {
    let loss = registry()
        .build::<dyn LogitLoss>(&PluginSpec::bare("forward_kl"))
        .unwrap();
    Term {
        label: "forward_kl".into(),
        weight,
        loss: loss.into(),
    }
}

fn state_term(
    loss: Box<dyn StateLoss>,
    weight: Weight,
    student: &Model,
    teacher: &Model,
) -> StateTerm {
    let start = TermStart {
        device: Device::Cpu,
        kind: Kind::Float,
        kept: None,
        seed: 3,
    };
    StateTerm::new(
        "states".into(),
        weight,
        loss,
        &student.spec,
        &teacher.spec,
        start,
    )
    .unwrap()
}

/// Gradients by name; they are taken away.
fn take_gradients(model: &Transformer) -> Vec<(String, Tensor)> {
    let defined = model
        .parameters()
        .iter()
        .filter(|parameter| parameter.tensor.grad().defined());
    let taken = defined.map(|parameter| (parameter.name.clone(), parameter.tensor.grad().copy()));
    let taken = taken.collect();
    model.parameters().iter().for_each(|parameter| {
        let mut gradient = parameter.tensor.grad();
        if gradient.defined() {
            let _ = gradient.zero_();
        }
    });
    taken
}

pub(super) fn batch(windows: &Windows, student: &Model) -> Batch {
    let chosen: Vec<usize> = (0..windows.len()).collect();
    let task = Task::of(student.spec.options.causal, Some(4), 1).unwrap();
    task.batch(windows, &chosen, Device::Cpu).unwrap()
}

fn families() -> [Value; 4] {
    [tiny_llama(), tiny_gpt2(), tiny_nemotron(), tiny_bert()]
}

#[test]
fn layers_that_run_twice_give_the_same_gradient() {
    for config in families() {
        let (student, teacher) = (
            Model::new(&config, 50).unwrap(),
            Model::new(&config, 51).unwrap(),
        );
        let (heard, model) = (teacher.load().unwrap(), student.trainable().unwrap());
        let windows = some_windows(4, 16, 61, 7).unwrap();
        let targets = batch(&windows, &student);
        let mut both = Vec::new();
        for recompute in [false, true] {
            let term = state_term(
                Box::new(Everywhere {}),
                Weight::Fixed(0.5),
                &student,
                &teacher,
            );
            let objective = Objective {
                terms: vec![logit_term(0.7)],
                states: vec![term],
                recompute,
            };
            let means = objective
                .backward(
                    &model,
                    Some(&mut InMemoryTeacher(&heard)),
                    &targets,
                    Counts::of(&targets).unwrap(),
                )
                .unwrap();
            both.push((means, take_gradients(&model)));
        }
        let [(held, expected), (again, found)] = both.try_into().unwrap();
        assert_eq!(held, again);
        assert_eq!(expected.len(), found.len(), "{}", student.family());
        let largest = expected
            .iter()
            .map(|(_, g)| g.abs().max().double_value(&[]))
            .fold(0.0, f64::max);
        for ((name, expected), (_, found)) in expected.iter().zip(&found) {
            let difference = (found - expected).abs().max().double_value(&[]) / largest;
            assert!(
                difference <= REORDERED,
                "{} {name}: {difference:e}",
                student.family()
            );
        }
    }
}

#[test]
fn states_alone_train_a_student_and_its_map() {
    let teacher = Model::new(&tiny_llama(), 52).unwrap();
    let mut config = tiny_llama();
    config["hidden_size"] = 16.into();
    let student = Model::new(&config, 53).unwrap();
    let (heard, model) = (teacher.load().unwrap(), student.trainable().unwrap());
    let targets = batch(&some_windows(4, 16, 61, 8).unwrap(), &student);
    for recompute in [false, true] {
        let term = state_term(
            Box::new(LastState {}),
            Weight::Fixed(1.0),
            &student,
            &teacher,
        );
        let objective = Objective {
            terms: Vec::new(),
            states: vec![term],
            recompute,
        };
        objective.check().unwrap();
        objective
            .backward(
                &model,
                Some(&mut InMemoryTeacher(&heard)),
                &targets,
                Counts::of(&targets).unwrap(),
            )
            .unwrap();
        let lift = objective.projects().next().expect("widths differ");
        assert_eq!(lift.tensor.size(), [32, 16]);
        assert!(lift.tensor.grad().abs().max().double_value(&[]) > 0.0);
        assert!(
            take_gradients(&model)
                .iter()
                .any(|(name, g)| name.contains("embed") && g.abs().max().double_value(&[]) > 0.0)
        );
    }
}

#[test]
fn a_dynamic_weight_makes_the_states_count_as_much_as_the_logits() {
    let (student, teacher) = (
        Model::new(&tiny_llama(), 54).unwrap(),
        Model::new(&tiny_llama(), 55).unwrap(),
    );
    let (heard, model) = (teacher.load().unwrap(), student.trainable().unwrap());
    let targets = batch(&some_windows(4, 16, 61, 9).unwrap(), &student);
    let term = |weight| state_term(Box::new(LastState {}), weight, &student, &teacher);
    let run = |weight| {
        let objective = Objective {
            terms: vec![logit_term(2.0)],
            states: vec![term(weight)],
            recompute: false,
        };
        let means = objective
            .backward(
                &model,
                Some(&mut InMemoryTeacher(&heard)),
                &targets,
                Counts::of(&targets).unwrap(),
            )
            .unwrap();
        (means, take_gradients(&model))
    };
    let (means, gradients) = run(Weight::Dynamic(0.5));
    let logits = 2.0 * means.terms[0];
    assert!(
        (means.total - 1.5 * logits).abs() <= 1e-9 * logits,
        "{means:?}"
    );
    // The factor itself carries no gradient: the same number, fixed, gives the same.
    let (_, fixed) = run(Weight::Fixed(0.5 * logits / means.terms[1]));
    for ((name, a), (_, b)) in gradients.iter().zip(&fixed) {
        assert!(a.equal(b), "{name}");
    }
    let alone = Objective {
        states: vec![term(Weight::Dynamic(1.0))],
        ..Objective::default()
    };
    assert!(
        alone
            .check()
            .unwrap_err()
            .to_string()
            .contains("alpha: dynamic")
    );
}

#[test]
fn a_teacher_read_layer_by_layer_says_the_same_to_the_last_bit() {
    for config in families() {
        let teacher = Model::new(&config, 56).unwrap();
        let loaded = teacher.load().unwrap();
        let targets = batch(&some_windows(3, 16, 61, 10).unwrap(), &teacher);
        let of = |layer, port| Site::Inside {
            at: At::Sublayer { layer, sublayer: 0 },
            port,
        };
        let sites: BTreeSet<Site> = [
            of(1, Port::INPUT),
            of(0, Port::VALUE),
            Site::LayerOutput(1),
            Site::Last,
        ]
        .into();
        let mut streamed =
            StreamedTeacher::new(&teacher.source, &teacher.spec, LoadOptions::default());
        let mut held = InMemoryTeacher(&loaded);
        let (a, b) = (
            streamed.forward(&targets, true, &sites).unwrap(),
            held.forward(&targets, true, &sites).unwrap(),
        );
        let nothing = Tensor::new();
        assert!(
            a.logits(2, 3, &nothing)
                .unwrap()
                .equal(&b.logits(2, 3, &nothing).unwrap()),
            "{}",
            teacher.family()
        );
        for site in sites {
            assert!(
                a.states(site).unwrap().equal(b.states(site).unwrap()),
                "{} {site:?}",
                teacher.family()
            );
        }
    }
}

#[test]
fn a_teacher_may_compute_in_less_than_its_student() {
    let (student, teacher) = (
        Model::new(&tiny_llama(), 58).unwrap(),
        Model::new(&tiny_llama(), 59).unwrap(),
    );
    let model = student.trainable().unwrap();
    let targets = batch(&some_windows(4, 16, 61, 10).unwrap(), &student);
    let run = |kind| {
        let options = LoadOptions {
            kind,
            ..LoadOptions::default()
        };
        let heard = Transformer::load(&teacher.source, &teacher.spec, options).unwrap();
        let states = vec![state_term(
            Box::new(LastState {}),
            Weight::Fixed(0.5),
            &student,
            &teacher,
        )];
        let objective = Objective {
            terms: vec![logit_term(1.0)],
            states,
            recompute: false,
        };
        objective
            .backward(
                &model,
                Some(&mut InMemoryTeacher(&heard)),
                &targets,
                Counts::of(&targets).unwrap(),
            )
            .unwrap()
    };
    let (exact, narrow) = (run(Kind::Float), run(Kind::BFloat16));
    // bf16 has eight bits: 2^-8 at each of some roundings, which average out over tokens.
    for (exact, narrow) in exact.terms.iter().zip(&narrow.terms) {
        assert!(
            exact != narrow && (exact - narrow).abs() <= 0.02 * exact,
            "{exact} {narrow}"
        );
    }
}

pub(super) const VOCAB: usize = 61;

pub(super) fn header(top_k: usize, dtype: CacheType) -> CacheHeader {
    CacheHeader::new("a teacher".into(), "float".into(), VOCAB, top_k, dtype)
}

/// A remembered teacher that counts how often the real one is loaded.
pub(super) fn remembered<'a>(
    teacher: &'a Model,
    dir: &Path,
    header: CacheHeader,
    n_loads: &Rc<Cell<usize>>,
) -> Result<CachedTeacher<'a>> {
    let n_loads = Rc::clone(n_loads);
    let loader = Box::new(move || {
        n_loads.set(n_loads.get() + 1);
        Ok(Box::new(InMemoryTeacher(teacher.load()?)) as Box<dyn Teacher>)
    });
    Ok(CachedTeacher::new(
        &teacher.spec,
        Kind::Float,
        TeacherCache::open(dir, header, 0)?,
        loader,
        &Silent,
    ))
}

/// Logits of all rows.
pub(super) fn words(teacher: &mut dyn Teacher, targets: &Batch, student_nv: &Tensor) -> Tensor {
    teacher
        .forward(targets, true, &BTreeSet::new())
        .unwrap()
        .logits(0, targets.n_rows(), student_nv)
        .unwrap()
}

#[test]
fn what_is_remembered_is_what_was_said_and_the_teacher_is_not_loaded_again() {
    for config in [tiny_llama(), tiny_bert()] {
        let teacher = Model::new(&config, 57).unwrap();
        let targets = batch(&some_windows(5, 16, VOCAB, 11).unwrap(), &teacher);
        let student_nv =
            Tensor::randn([targets.n_rows(), VOCAB as i64], (Kind::Float, Device::Cpu)) * 3.0;
        let said_nv = words(
            &mut InMemoryTeacher(teacher.load().unwrap()),
            &targets,
            &student_nv,
        )
        .log_softmax(-1, Kind::Float);
        let (dir, n_loads) = (tempfile::tempdir().unwrap(), Rc::new(Cell::new(0)));
        for expected_loads in [1, 1] {
            let mut teacher = remembered(
                &teacher,
                dir.path(),
                header(VOCAB, CacheType::F32),
                &n_loads,
            )
            .unwrap();
            let found_nv = words(&mut teacher, &targets, &student_nv);
            assert_eq!(n_loads.get(), expected_loads);
            assert!(
                relative(&found_nv, &said_nv) <= 1e-6,
                "{}",
                relative(&found_nv, &said_nv)
            );
        }
    }
}

#[test]
fn a_cut_distribution_teaches_its_largest_tokens_and_one_for_all_others() {
    let teacher = Model::new(&tiny_llama(), 58).unwrap();
    let targets = batch(&some_windows(5, 16, VOCAB, 12).unwrap(), &teacher);
    let n = targets.n_rows();
    let student_nv = (Tensor::randn([n, VOCAB as i64], (Kind::Float, Device::Cpu)) * 2.0)
        .set_requires_grad(true);
    let k = 7;
    let said_nv = words(
        &mut InMemoryTeacher(teacher.load().unwrap()),
        &targets,
        &student_nv,
    )
    .softmax(-1, Kind::Double);
    let (dir, n_loads) = (tempfile::tempdir().unwrap(), Rc::new(Cell::new(0)));
    let mut teacher =
        remembered(&teacher, dir.path(), header(k, CacheType::F32), &n_loads).unwrap();
    let teacher_nv = words(&mut teacher, &targets, &student_nv);
    let loss_n = logit_term(1.0)
        .loss
        .rows(&student_nv, Some(&teacher_nv), &targets.labels_n)
        .unwrap();
    loss_n.sum(Kind::Float).backward();
    let gradient = student_nv.grad().copy();

    // By the formula: k + 1 tokens, the last of which stands for all others.
    let student = student_nv
        .detach()
        .to_kind(Kind::Double)
        .set_requires_grad(true);
    let q_nv = student.softmax(-1, Kind::Double);
    let (p_nk, ids_nk) = said_nv.topk(k as i64, -1, true, true);
    let q_nk = q_nv.gather(-1, &ids_nk, false);
    let rest =
        |x: &Tensor| Tensor::from(1.0) - x.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
    let (p_n, q_n) = (rest(&p_nk), rest(&q_nk));
    let expected_n = (&p_nk * (p_nk.log() - q_nk.log())).sum_dim_intlist(
        [-1i64].as_slice(),
        false,
        Kind::Double,
    ) + &p_n * (p_n.log() - q_n.log());
    expected_n.sum(Kind::Double).backward();
    assert!(relative(&loss_n.detach(), &expected_n.detach().to_kind(Kind::Float)) <= 1e-4);
    assert!(relative(&gradient, &student.grad().to_kind(Kind::Float)) <= 1e-4);
}

/// A Llama with so many rows in its tables.
fn with_vocabulary(vocab: usize, seed: u64) -> Model {
    let mut config = tiny_llama();
    config["vocab_size"] = vocab.into();
    Model::new(&config, seed).unwrap()
}

/// Over the ids that all models here have, in f64.
fn log_p(model: &Transformer, targets: &Batch) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let hidden = model
        .hidden(targets.input(), &mut minitron_core::model::NoTap, None)
        .unwrap();
    let logits = model.logits(&targets.rows(&hidden).unwrap()).unwrap();
    logits
        .narrow(-1, 0, VOCAB as i64)
        .log_softmax(-1, Kind::Double)
}

#[test]
fn tables_of_different_sizes_are_compared_over_the_ids_that_both_have() {
    let padded = VOCAB + 3;
    for (ours, theirs) in [(VOCAB, padded), (padded, VOCAB)] {
        let (student, teacher) = (with_vocabulary(ours, 60), with_vocabulary(theirs, 61));
        let (heard, model) = (teacher.load().unwrap(), student.trainable().unwrap());
        let targets = batch(&some_windows(4, 16, VOCAB, 14).unwrap(), &student);
        let objective = Objective {
            terms: vec![logit_term(1.0)],
            states: Vec::new(),
            recompute: false,
        };
        let (log_p_nv, log_q_nv) = (log_p(&heard, &targets), log_p(&model, &targets));
        let kl = (log_p_nv.exp() * (&log_p_nv - &log_q_nv))
            .sum(Kind::Double)
            .double_value(&[]);
        let expected = kl / targets.n_rows() as f64;

        let (dir, n_loads) = (tempfile::tempdir().unwrap(), Rc::new(Cell::new(0)));
        let mut cached = remembered(
            &teacher,
            dir.path(),
            header(VOCAB, CacheType::F32),
            &n_loads,
        )
        .unwrap();
        let mut live = InMemoryTeacher(&heard);
        let teachers: [&mut dyn Teacher; 2] = [&mut live, &mut cached];
        for teacher in teachers {
            let means = objective
                .backward(
                    &model,
                    Some(teacher),
                    &targets,
                    Counts::of(&targets).unwrap(),
                )
                .unwrap();
            assert!(
                (means.total - expected).abs() <= 1e-5 * expected,
                "{ours} {theirs}: {} {expected}",
                means.total
            );
            for (name, gradient) in take_gradients(&model)
                .iter()
                .filter(|(_, x)| x.size()[0] == ours as i64)
            {
                let beyond = gradient
                    .narrow(0, VOCAB as i64, (ours - VOCAB) as i64)
                    .abs()
                    .sum(Kind::Double);
                assert_eq!(beyond.double_value(&[]), 0.0, "{name}");
                assert!(gradient.abs().max().double_value(&[]) > 0.0, "{name}");
            }
        }
    }
}

#[test]
fn a_damaged_or_foreign_cache_is_refused_by_name_and_a_torn_end_is_cut_off() {
    let model = Model::new(&tiny_llama(), 59).unwrap();
    let windows = some_windows(6, 16, VOCAB, 13).unwrap();
    let part = |chosen: &[usize]| {
        Task::NextToken
            .batch(&windows, chosen, Device::Cpu)
            .unwrap()
    };
    let (dir, n_loads) = (tempfile::tempdir().unwrap(), Rc::new(Cell::new(0)));
    let open = |header| remembered(&model, dir.path(), header, &n_loads);
    let student_nv = Tensor::zeros([45, VOCAB as i64], (Kind::Float, Device::Cpu));
    let before = words(
        &mut open(header(7, CacheType::F16)).unwrap(),
        &part(&[0, 1, 2]),
        &student_nv,
    );

    // As when the power went while the next window was written.
    for (name, tail) in [
        ("rows.bin", [1u8; 100].as_slice()),
        ("index.bin", &[2u8; 9]),
    ] {
        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(tail);
        std::fs::write(&path, bytes).unwrap();
    }
    let mut teacher = open(header(7, CacheType::F16)).unwrap();
    let _ = words(&mut teacher, &part(&[3, 4, 5]), &student_nv);
    drop(teacher);
    assert_eq!(n_loads.get(), 2);
    let mut teacher = open(header(7, CacheType::F16)).unwrap();
    assert!(words(&mut teacher, &part(&[0, 1, 2]), &student_nv).equal(&before));
    let _ = words(&mut teacher, &part(&[5, 0, 3]), &student_nv);
    assert_eq!(n_loads.get(), 2, "all windows were there");
    drop(teacher);

    for (foreign, says) in [
        (
            CacheHeader {
                teacher: "another".into(),
                ..header(7, CacheType::F16)
            },
            "teacher: stored",
        ),
        (header(8, CacheType::F16), "top_k: stored 7, wanted 8"),
        (header(7, CacheType::F32), "dtype"),
    ] {
        let error = open(foreign).unwrap_err().to_string();
        assert!(
            error.contains("cache.json") && error.contains(says),
            "{error}"
        );
    }
    let path = dir.path().join("rows.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut teacher = open(header(7, CacheType::F16)).unwrap();
    let error = teacher
        .forward(&part(&[0, 1, 2]), true, &BTreeSet::new())
        .err()
        .unwrap();
    assert!(
        matches!(error, Error::Checkpoint { .. }) && error.to_string().contains("damaged"),
        "{error}"
    );
}
