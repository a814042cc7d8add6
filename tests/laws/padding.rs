//! Sequences of different lengths side by side: padding is never seen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use minitron::{families, tiny_bert};
use minitron_core::contract::{ModelPair, SitePair, StateLoss, States};
use minitron_core::error::Result;
use minitron_core::evaluate::{Pooling, sentence_embeddings};
use minitron_core::model::{Input, LoadOptions, NoTap, Port, Site, Transformer};
use minitron_core::progress::{Interrupt, Silent};
use minitron_core::windows::{Batch, Task, Windows, fill};
use minitron_engine::data::DataLoader;
use minitron_engine::ranks::Ranks;
use minitron_engine::train::{
    Counts, InMemoryTeacher, Objective, Sharding, StateTerm, StreamedTeacher, Teacher, TermStart,
    TrainSettings, Trainer, Weight,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{Model, REORDERED, learner, relative, trainer};

/// Begin and end of every window.
const SPECIAL_TOKENS: (u32, u32) = (2, 3);
const MASK: u32 = 4;

/// Windows of these many tokens, special tokens included, in this order (shortest first).
fn documents(lengths: &[usize], seed: u64) -> Windows {
    super::documents(
        lengths.iter().map(|length| length - 2),
        seed,
        Some(SPECIAL_TOKENS),
    )
}

/// A BERT without a head, as sentence encoders are.
fn headless() -> Value {
    let mut config = tiny_bert();
    config["architectures"] = serde_json::json!(["BertModel"]);
    config
}

fn hidden(model: &Transformer, targets: &Batch) -> Tensor {
    tch::no_grad(|| model.hidden(targets.input(), &mut NoTap, None)).unwrap()
}

#[test]
fn a_window_has_the_same_states_alone_and_beside_a_longer_one() {
    let windows = documents(&[4, 9, 9, 23], 1);
    for config in families() {
        let model = Model::new(&config, 60).unwrap();
        let whole = model.load().unwrap();
        let together = Task::States
            .batch(&windows, &[0, 3, 1], Device::Cpu)
            .unwrap();
        assert_eq!(
            Vec::<i64>::try_from(
                together
                    .attention_mask_bt
                    .as_ref()
                    .unwrap()
                    .sum_dim_intlist(1, false, Kind::Int64)
            )
            .unwrap(),
            [4, 23, 9]
        );
        let together_bte = hidden(&whole, &together);
        for (row, window) in [(0, 0), (1, 3), (2, 1)] {
            let alone = Task::States
                .batch(&windows, &[window], Device::Cpu)
                .unwrap();
            assert!(alone.attention_mask_bt.is_none());
            let alone_te = hidden(&whole, &alone).get(0);
            let found_te = together_bte.get(row).narrow(0, 0, alone_te.size()[0]);
            assert!(
                relative(&found_te, &alone_te) <= REORDERED,
                "{}: {}",
                model.family(),
                relative(&found_te, &alone_te)
            );
        }
        // Windows of one length need no mask.
        assert!(
            Task::States
                .batch(&windows, &[1, 2], Device::Cpu)
                .unwrap()
                .attention_mask_bt
                .is_none()
        );
    }
}

#[test]
fn padding_is_not_seen_in_half_precision_either() {
    let windows = documents(&[4, 23], 2);
    let model = Model::new(&tiny_bert(), 61).unwrap();
    let options = LoadOptions {
        kind: Kind::BFloat16,
        ..LoadOptions::default()
    };
    let half = Transformer::load(&model.source, &model.spec, options).unwrap();
    let together = Task::States.batch(&windows, &[0, 1], Device::Cpu).unwrap();
    let alone = Task::States.batch(&windows, &[0], Device::Cpu).unwrap();
    let exact = |x: Tensor| x.to_kind(Kind::Float);
    let (found, alone) = (
        exact(hidden(&half, &together).get(0).narrow(0, 0, 4)),
        exact(hidden(&half, &alone).get(0)),
    );
    // Eight bits of mantissa through three layers.
    assert!(
        relative(&found, &alone) <= 0.05,
        "{}",
        relative(&found, &alone)
    );
    // What stands in the padding does not matter to the last bit.
    let (ids_bt, attention_mask_bt) = (together.ids_bt.copy(), together.attention_mask_bt.as_ref());
    let _ = ids_bt.get(0).narrow(0, 4, 19).fill_(17);
    let other = tch::no_grad(|| {
        half.hidden(
            Input {
                ids_bt: &ids_bt,
                attention_mask_bt,
                positions_bt: None,
            },
            &mut NoTap,
            None,
        )
    })
    .unwrap();
    assert!(exact(other.get(0).narrow(0, 0, 4)).equal(&found));
}

#[test]
fn masked_rows_of_documents_lie_inside_their_special_tokens_and_ask_for_what_stood_there() {
    let windows = documents(&[4, 6, 14, 33], 3);
    let chosen = [2, 0, 3, 1];
    let targets = Task::Masked {
        mask: MASK,
        seed: 5,
    }
    .batch(&windows, &chosen, Device::Cpu)
    .unwrap();
    let labels = Vec::<i64>::try_from(&targets.labels_n).unwrap();
    let mut labels = labels.iter();
    for (rows, window) in targets.windows().unwrap().iter().zip(chosen) {
        let original = windows.window(window).unwrap();
        assert_eq!(rows.tokens.len(), original.len());
        let inside = original.len() - 2;
        assert_eq!(
            rows.positions.len(),
            ((inside as f64 * 0.15).round() as usize).max(1)
        );
        for (position, (&token, &before)) in rows.tokens.iter().zip(original).enumerate() {
            let is_masked = rows.positions.contains(&(position as i64));
            assert_eq!(
                token,
                i64::from(if is_masked { MASK } else { before }),
                "window {window} at {position}"
            );
            assert!(!is_masked || (1..=inside).contains(&position));
        }
        for &position in &rows.positions {
            assert_eq!(labels.next(), Some(&i64::from(original[position as usize])));
        }
    }
    assert_eq!(labels.next(), None);
}

#[test]
fn a_batch_for_states_is_the_text_itself_and_predicts_nothing() {
    let windows = documents(&[4, 9], 4);
    let targets = Task::States.batch(&windows, &[0, 1], Device::Cpu).unwrap();
    assert!(
        targets
            .ids_bt
            .equal(&windows.batch([0, 1], Device::Cpu).unwrap())
    );
    assert_eq!(targets.n_rows(), 0);
    assert_eq!(
        targets
            .rows(&Tensor::zeros([2, 9, 5], (Kind::Float, Device::Cpu)))
            .unwrap()
            .size(),
        [0, 5]
    );
    let spec = |value: &Value| Model::new(value, 0).unwrap().spec;
    assert_eq!(
        Task::of_model(&spec(&headless()).options, None, 1).unwrap(),
        Task::States
    );
    let masked = Task::of_model(&spec(&tiny_bert()).options, Some(MASK), 1).unwrap();
    assert_eq!(
        masked,
        Task::Masked {
            mask: MASK,
            seed: 1
        }
    );
}

/// Squared distance at places inside and at the end.
#[derive(Debug, Serialize, Deserialize)]
struct Distance {}

#[typetag::serde(name = "distance")]
impl StateLoss for Distance {
    fn pairs(&self, models: &ModelPair) -> Result<Vec<SitePair>> {
        let sites = [
            models.student.site(1, Port::VALUE).unwrap(),
            Site::LayerOutput(1),
            Site::Last,
        ];
        Ok(sites.map(|site| SitePair::new(site, site)).into())
    }

    fn projects(&self) -> bool {
        false
    }

    fn loss(&self, student: &States, teacher: &States) -> Result<Tensor> {
        Ok(student
            .rows()?
            .f_sub(&teacher.rows()?)?
            .f_square()?
            .f_mean(Kind::Float)?)
    }
}

fn objective(student: &Model, teacher: &Model, recompute: bool) -> Objective {
    let start = TermStart {
        device: Device::Cpu,
        kind: Kind::Float,
        kept: None,
        seed: 3,
    };
    let (student, teacher) = (&student.spec, &teacher.spec);
    let term = StateTerm::new(
        "distance".into(),
        Weight::Fixed(1.0),
        Box::new(Distance {}),
        student,
        teacher,
        start,
    );
    Objective {
        terms: Vec::new(),
        states: vec![term.unwrap()],
        recompute,
    }
}

/// Gradients of all parameters, laid end to end; they are taken away.
fn take_gradients(model: &Transformer) -> Tensor {
    let defined = model
        .parameters()
        .iter()
        .map(|parameter| parameter.tensor.grad())
        .filter(Tensor::defined);
    let taken: Vec<Tensor> = defined
        .map(|mut gradient| {
            let copy = gradient.reshape([-1]).copy();
            let _ = gradient.zero_();
            copy
        })
        .collect();
    Tensor::cat(&taken, 0)
}

#[test]
fn the_gradient_of_a_filled_batch_is_that_of_its_windows_one_by_one() {
    let (student, teacher) = (
        Model::new(&headless(), 62).unwrap(),
        Model::new(&headless(), 63).unwrap(),
    );
    let (model, heard) = (student.trainable().unwrap(), teacher.load().unwrap());
    let windows = documents(&[4, 9, 23], 5);
    let batch = |chosen: &[usize]| Task::States.batch(&windows, chosen, Device::Cpu).unwrap();
    for recompute in [false, true] {
        let objective = objective(&student, &teacher, recompute);
        let whole = Counts::of(&batch(&[0, 1, 2])).unwrap();
        assert_eq!(whole.tokens, 36);
        let together = objective
            .backward(
                &model,
                Some(&mut InMemoryTeacher(&heard)),
                &batch(&[0, 1, 2]),
                whole,
            )
            .unwrap();
        let found = take_gradients(&model);
        // A mean over tokens: each window counts by its length.
        let mut alone = 0.0;
        for window in 0..3 {
            alone += objective
                .backward(
                    &model,
                    Some(&mut InMemoryTeacher(&heard)),
                    &batch(&[window]),
                    whole,
                )
                .unwrap()
                .total;
        }
        assert!(
            (together.total - alone).abs() <= REORDERED * alone,
            "{} {alone}",
            together.total
        );
        assert!(relative(&found, &take_gradients(&model)) <= REORDERED);
    }
}

#[test]
fn a_streamed_teacher_does_not_see_padding_either() {
    let teacher = Model::new(&tiny_bert(), 64).unwrap();
    let loaded = teacher.load().unwrap();
    let targets = Task::Masked {
        mask: MASK,
        seed: 1,
    }
    .batch(&documents(&[4, 9, 23], 6), &[0, 1, 2], Device::Cpu)
    .unwrap();
    let mut streamed = StreamedTeacher::new(&teacher.source, &teacher.spec, LoadOptions::default());
    let mut held = InMemoryTeacher(&loaded);
    let sites = BTreeSet::from([Site::Last]);
    let (a, b) = (
        streamed.forward(&targets, true, &sites).unwrap(),
        held.forward(&targets, true, &sites).unwrap(),
    );
    assert!(
        a.states(Site::Last)
            .unwrap()
            .equal(b.states(Site::Last).unwrap())
    );
    let (n_rows, nothing) = (targets.n_rows(), Tensor::new());
    assert!(
        a.logits(0, n_rows, &nothing)
            .unwrap()
            .equal(&b.logits(0, n_rows, &nothing).unwrap())
    );
}

#[test]
fn an_encoder_without_a_head_learns_its_teachers_states_from_documents() {
    let (student, teacher) = (
        Model::new(&headless(), 65).unwrap(),
        Model::new(&headless(), 66).unwrap(),
    );
    let (model, heard) = (student.trainable().unwrap(), teacher.load().unwrap());
    let windows = documents(&[4, 4, 6, 9, 9, 12, 20, 23], 7);
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainSettings {
        n_tokens: 87 * 40,
        batch_size: 4,
        lr: 1e-2,
        ..TrainSettings::default()
    };
    let objective = objective(&student, &teacher, false);
    let learners = [learner(&model, &objective, dir.path())];
    let (loader, interrupt) = (
        RefCell::new(DataLoader::of_windows(Arc::new(windows), 0)),
        Interrupt::default(),
    );
    let task = Task::of_model(&student.spec.options, None, 0).unwrap();
    let trainer = Trainer {
        ranks: Ranks::alone(),
        sharding: Sharding::None,
        task,
        ..trainer(&learners, &heard, &loader, &settings, &interrupt)
    };
    let (outcome, _) = trainer.run(false).unwrap().single().unwrap();
    let metrics = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(
        outcome.loss.unwrap() < 0.5 * first["loss"].as_f64().unwrap(),
        "{:?} {first}",
        outcome.loss
    );
}

#[test]
fn a_sentence_has_the_same_embedding_in_any_batch() {
    let windows = documents(&[4, 5, 5, 9, 30], 8);
    let sentences: Vec<Vec<u32>> = (0..windows.len())
        .map(|window| windows.window(window).unwrap().to_vec())
        .collect();
    let model = Model::new(&headless(), 67).unwrap().load().unwrap();
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let embed = |batch_size| {
            sentence_embeddings(&model, &sentences, &pooling.into(), batch_size, &Silent).unwrap()
        };
        let (alone, together) = (embed(1), embed(5));
        assert_eq!(alone.size(), [5, 32]);
        assert!(relative(&together, &alone) <= REORDERED);
        let lengths = alone.square().sum_dim_intlist(1, false, Kind::Double);
        assert!(f64::try_from((lengths - 1.0).abs().max()).unwrap() <= 1e-6);
    }
    // By hand.
    let (ids_bt, _) = fill(&[sentences[3].as_slice()], Device::Cpu).unwrap();
    let states_te = tch::no_grad(|| model.hidden(&ids_bt, &mut NoTap, None))
        .unwrap()
        .get(0);
    let found = sentence_embeddings(&model, &sentences, &Pooling::Mean.into(), 2, &Silent)
        .unwrap()
        .get(3);
    let mean_e = states_te.mean_dim(0, false, Kind::Float);
    assert!(relative(&found, &(&mean_e / mean_e.norm())) <= REORDERED);
}
