//! Layers whose weights are brought when they run.

use std::cell::RefCell;
use std::sync::Arc;

use minitron::{some_windows, tiny_bert, tiny_llama};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, NoTap, Site, Tap, Transformer};
use minitron_core::progress::Interrupt;
use minitron_core::windows::Task;
use minitron_engine::data::DataLoader;
use minitron_engine::ranks::Ranks;
use minitron_engine::train::{
    InMemoryTeacher, MasterWeights, Objective, ShardedLayers, TrainSettings, Trainer,
};
use tch::{Kind, Tensor};

use super::training::{column, objective, settings};
use super::{Model, learner, trainer};

const TRAINABLE: LoadOptions = LoadOptions {
    device: tch::Device::Cpu,
    kind: Kind::Float,
    trainable: true,
};

/// Layers with values of their own, rather than shapes of nothing.
fn whole_layers(model: &Transformer) -> Vec<usize> {
    let mut layers: Vec<usize> = model
        .parameters()
        .iter()
        .filter(|it| it.tensor.stride().iter().any(|&stride| stride > 0))
        .filter_map(|it| it.layer)
        .collect();
    layers.dedup();
    layers
}

/// Counts them whenever something is seen.
struct Counting<'m>(&'m Transformer, Vec<usize>);

impl Tap for Counting<'_> {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn see(&mut self, _site: Site, _x: &Tensor) -> Result<()> {
        self.1.push(whole_layers(self.0).len());
        Ok(())
    }
}

#[test]
fn a_layer_is_whole_while_it_runs_and_at_no_other_time() {
    let model = Model::new(&tiny_llama(), 61).unwrap();
    let whole = model.load().unwrap();
    let (brought, _layers) =
        ShardedLayers::load(&model.source, &model.spec, TRAINABLE, Ranks::alone()).unwrap();
    assert_eq!(whole_layers(&brought), [0_usize; 0]);
    let ids_bt = Tensor::from_slice(&[5_i64, 6, 7, 8]).view([1, 4]);
    let mut counting = Counting(&brought, Vec::new());
    let found = brought.hidden(&ids_bt, &mut counting, None).unwrap();
    let counts = counting.1;
    assert!(
        counts.contains(&1) && counts.iter().all(|&n| n <= 1),
        "{counts:?}"
    );
    assert_eq!(whole_layers(&brought), [0_usize; 0]);
    assert!(found.equal(&whole.hidden(&ids_bt, &mut NoTap, None).unwrap()));
    // What it takes is less than all.
    let wide = brought
        .parameters()
        .iter()
        .map(|it| it.tensor.numel() as u64 * 4);
    assert_eq!(whole.n_bytes(), wide.sum::<u64>());
}

/// What is kept of a layer that has been let go is refused, rather than derived from whatever
/// stands where its weights were.
#[test]
fn what_is_kept_of_a_layer_that_is_gone_cannot_be_used() {
    let model = Model::new(&tiny_llama(), 64).unwrap();
    let (brought, _layers) =
        ShardedLayers::load(&model.source, &model.spec, TRAINABLE, Ranks::alone()).unwrap();
    let ids_bt = Tensor::from_slice(&[5_i64, 6, 7, 8]).view([1, 4]);
    let hidden_bte = brought.hidden(&ids_bt, &mut NoTap, None).unwrap();
    let refused = hidden_bte.sum(Kind::Float).f_backward().unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("modified by an inplace operation"), "{said}");
}

/// What a student learns whose layers are brought, and what one learns that has them.
#[test]
fn layers_that_are_brought_learn_the_same_bit_for_bit() {
    let configs = [tiny_llama(), tiny_bert()];
    for (config, recompute) in configs.iter().flat_map(|it| [(it, true), (it, false)]) {
        let model = Model::new(config, 62).unwrap();
        let teacher = Model::new(config, 63).unwrap();
        let windows = Arc::new(some_windows(11, 16, 61, 4).unwrap());
        let objective = Objective {
            recompute,
            ..objective().unwrap()
        };
        // A norm that nobody goes by: it is summed in another order.
        let settings = TrainSettings {
            clip: 1e9,
            ..settings()
        };
        let interrupt = Interrupt::default();
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let run = |student: &Transformer, teacher: &Transformer, layers, idx: usize| {
            let mut learner = learner(student, &objective, dirs[idx].path());
            learner.layers = layers;
            let loader = RefCell::new(DataLoader::of_windows(Arc::clone(&windows), settings.seed));
            let learners = [learner];
            let trainer = Trainer {
                task: Task::of(student.is_causal(), Some(4), 1).unwrap(),
                teacher: Some(RefCell::new(Box::new(InMemoryTeacher(teacher)))),
                ..trainer(&learners, teacher, &loader, &settings, &interrupt)
            };
            trainer.run(false).unwrap().single().unwrap().1.student
        };
        let student = model.trainable().unwrap();
        run(&student, &teacher.load().unwrap(), None, 0);
        let load = |model: &Model, options| {
            ShardedLayers::load(&model.source, &model.spec, options, Ranks::alone()).unwrap()
        };
        let (brought, layers) = load(&model, TRAINABLE);
        let (asked, _) = load(&teacher, LoadOptions::default());
        let masters = run(&brought, &asked, Some(&*layers), 1);
        for key in ["loss", "grad_norm"] {
            let [a, b] = [&dirs[0], &dirs[1]].map(|dir| column(dir.path(), key));
            let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * a.abs();
            assert!(a.iter().zip(&b).all(is_near), "{key}: {a:?} {b:?}");
        }
        assert_same_weights(&student, &brought, &masters);
    }
}

fn assert_same_weights(whole: &Transformer, brought: &Transformer, masters: &MasterWeights) {
    for (a, b) in whole.parameters().iter().zip(brought.parameters()) {
        let found = match b.layer {
            Some(_) => &masters[&b.name],
            None => &b.tensor,
        };
        assert!(a.tensor.detach().equal(&found.detach()), "{}", a.name);
    }
}
