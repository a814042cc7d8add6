//! What a training step costs before a clock sees it: operations, and how often the host waits for
//! the device, by libtorch's own record of calls. On a GPU, an operation is a launch or more.

use std::cell::RefCell;
use std::sync::Arc;

use minitron::{registry, some_windows, tiny_llama};
use minitron_core::contract::{LogitLoss, StateLoss};
use minitron_core::model::{Parameter, row_chunks};
use minitron_core::progress::Interrupt;
use minitron_core::registry::PluginSpec;
use minitron_core::windows::{Task, Windows};
use minitron_engine::data::DataLoader;
use minitron_engine::ranks::Ranks;
use minitron_engine::train::{
    AdamW, AdamWSettings, Counts, Objective, Saving, StateTerm, Term, TermStart, TrainSettings,
    Trainer, Weight,
};
use minitron_torch::{OpCounter, OpCounts};
use tch::{Device, Kind, Tensor};

use super::{Model, learner, trainer};

/// A distillation of a small Llama.
struct Step {
    n_layers: usize,
    vocab: usize,
    width: usize,
    accumulate: usize,
    losses: &'static [&'static str],
    on_states: Option<Weight>,
    recompute: bool,
}

/// Of one loss, in one pass.
const PLAIN: Step = Step {
    n_layers: 2,
    vocab: 61,
    width: 16,
    accumulate: 1,
    losses: &["forward_kl"],
    on_states: None,
    recompute: false,
};

impl Step {
    fn model(&self, seed: u64) -> Model {
        let mut config = tiny_llama();
        config["num_hidden_layers"] = self.n_layers.into();
        config["vocab_size"] = self.vocab.into();
        Model::new(&config, seed).unwrap()
    }

    fn objective(&self, model: &Model) -> Objective {
        let registry = registry();
        let terms = self.losses.iter().map(|tag| Term {
            label: (*tag).to_owned(),
            weight: 0.5,
            loss: registry
                .build::<dyn LogitLoss>(&PluginSpec::bare(tag))
                .unwrap()
                .into(),
        });
        let start = TermStart {
            device: Device::Cpu,
            kind: Kind::Float,
            kept: None,
            seed: 0,
        };
        let states = self.on_states.iter().map(|weight| {
            let loss =
                registry.build::<dyn StateLoss>(&"hidden_state:layers=last".parse().unwrap());
            let (label, loss) = ("hidden_state".to_owned(), loss.unwrap());
            StateTerm::new(label, *weight, loss, &model.spec, &model.spec, start).unwrap()
        });
        Objective {
            terms: terms.collect(),
            states: states.collect(),
            recompute: self.recompute,
        }
    }

    /// What a run of so many steps asks for.
    fn run(&self, n_steps: u64) -> OpCounts {
        let (model, teacher) = (self.model(1), self.model(2).load().unwrap());
        let (student, objective) = (model.trainable().unwrap(), self.objective(&model));
        let dir = tempfile::tempdir().unwrap();
        let learners = [learner(&student, &objective, dir.path())];
        let per_step = 4 * self.accumulate * self.width;
        let settings = TrainSettings {
            n_tokens: 8 * per_step as u64,
            batch_size: 4,
            accumulate: self.accumulate,
            ..TrainSettings::default()
        };
        let windows = some_windows(64, self.width, self.vocab, 3).unwrap();
        let loader = RefCell::new(DataLoader::of_windows(Arc::new(windows), 0));
        let interrupt = Interrupt::default();
        let trainer = Trainer {
            // A checkpoint looks at every weight.
            saving: Saving {
                every: Some(1 << 20),
                ..Saving::default()
            },
            stop_after: Some(n_steps),
            ..trainer(&learners, &teacher, &loader, &settings, &interrupt)
        };
        let counter = OpCounter::begin().unwrap();
        let (outcome, _) = trainer.run(false).unwrap().single().unwrap();
        let counts = counter.end().unwrap();
        assert_eq!((outcome.n_steps, outcome.n_skipped), (n_steps, 0));
        counts
    }

    /// Operations and waits of one step; what a run begins and ends with is left out.
    fn cost(&self) -> (u64, u64) {
        // In the first one gradients are made.
        let (two, three) = (self.run(2), self.run(3));
        let n_calls = three.n_calls() - two.n_calls();
        (n_calls, three.n_waits() - two.n_waits())
    }
}

#[test]
fn the_host_waits_once_in_a_step_whatever_is_in_it() {
    let wide = 1 << 16;
    assert!(row_chunks(4 * 39, wide, Device::Cpu).count() > 1);
    for (what, step) in [
        ("one pass", Step { ..PLAIN }),
        (
            "more layers",
            Step {
                n_layers: 5,
                ..PLAIN
            },
        ),
        (
            "layers run again",
            Step {
                recompute: true,
                ..PLAIN
            },
        ),
        (
            "several passes",
            Step {
                accumulate: 3,
                ..PLAIN
            },
        ),
        (
            "several chunks of rows",
            Step {
                vocab: wide,
                width: 40,
                n_layers: 1,
                ..PLAIN
            },
        ),
        (
            "several losses",
            Step {
                losses: &["forward_kl", "cross_entropy"],
                ..PLAIN
            },
        ),
        (
            "a loss on states",
            Step {
                on_states: Some(Weight::Fixed(1.0)),
                ..PLAIN
            },
        ),
    ] {
        assert_eq!(step.cost().1, 1, "{what}");
    }
    // Its factor follows from the values, which the gradient needs.
    let dynamic = Step {
        on_states: Some(Weight::Dynamic(1.0)),
        ..PLAIN
    };
    assert_eq!(dynamic.cost().1, 2);
}

/// Counted on a CPU with libtorch 2.11, views and what operations call of each other included: a
/// change that adds a few is seen here before it is on a clock.
#[test]
fn a_step_asks_for_no_more_operations_than_it_did() {
    let of = |n_layers: usize| Step { n_layers, ..PLAIN }.cost().0;
    let (two, four) = (of(2), of(4));
    let per_layer = (four - two) / 2;
    let beside = two - 2 * per_layer;
    println!("{per_layer} operations a layer, {beside} beside them");
    assert!(per_layer <= 1520, "{per_layer} operations a layer");
    assert!(beside <= 620, "{beside} operations beside the layers");
}

/// Norm, update and what is cleared.
#[test]
fn an_update_asks_for_no_more_operations_than_it_did() {
    let of = |n: usize| {
        let parameters: Vec<Parameter> = (0..n)
            .map(|idx| {
                let like = Tensor::ones([6, 5], (Kind::Float, Device::Cpu));
                let name = format!("w{idx}");
                let parameter = Parameter::learned(name, &like, Device::Cpu, Kind::Float).unwrap();
                parameter.tensor.sum(Kind::Float).backward();
                parameter
            })
            .collect();
        let mut optimizer = AdamW::new(&parameters, AdamWSettings::default()).unwrap();
        let counter = OpCounter::begin().unwrap();
        optimizer.step(1e-3, &[0.5], Ranks::alone()).unwrap();
        counter.end().unwrap()
    };
    let (one, eleven) = (of(1), of(11));
    let per_parameter = (eleven.n_calls() - one.n_calls()) / 10;
    println!("{per_parameter} operations a parameter");
    assert!(
        per_parameter <= 64,
        "{per_parameter} operations a parameter"
    );
    assert_eq!((one.n_waits(), eleven.n_waits()), (0, 0));
}

#[test]
fn a_known_gradient_takes_fewer_operations_than_a_graph() {
    let registry = registry();
    for tag in ["forward_kl", "reverse_kl", "cross_entropy"] {
        let loss = registry
            .build::<dyn LogitLoss>(&PluginSpec::bare(tag))
            .unwrap();
        let random = || Tensor::randn([6, 50], (Kind::Float, Device::Cpu));
        let (mut student, teacher) = (random(), random());
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5]);
        let leaf = student.copy().set_requires_grad(true);
        let counter = OpCounter::begin().unwrap();
        let rows = loss.rows(&leaf, Some(&teacher), &labels).unwrap();
        rows.sum(Kind::Float).backward();
        let by_graph = counter.end().unwrap();
        let counter = OpCounter::begin().unwrap();
        let known = loss.rows_and_gradient(&mut student, Some(&teacher), &labels, 1.0);
        assert!(known.unwrap().is_some(), "{tag}");
        let known = counter.end().unwrap();
        println!(
            "{tag}: {} operations, {} by a graph",
            known.n_calls(),
            by_graph.n_calls()
        );
        assert!(known.n_calls() < by_graph.n_calls(), "{tag}");
        assert_eq!((known.n_waits(), by_graph.n_waits()), (0, 0), "{tag}");
    }
}

/// The host knows what a batch holds, so that nobody asks the device.
#[test]
fn a_batch_knows_what_it_compares() {
    let padded = super::documents([3, 9, 5], 1, None);
    let even: Windows = some_windows(3, 8, 61, 1).unwrap();
    for windows in [padded, even] {
        for task in [Task::NextToken, Task::States] {
            let batch = task.batch(&windows, &[0, 1, 2], Device::Cpu).unwrap();
            let counter = OpCounter::begin().unwrap();
            let counts = Counts::of(&batch).unwrap();
            assert_eq!(counter.end().unwrap(), OpCounts::default());
            let compared = match batch.compared_bt() {
                Some(compared_bt) => compared_bt.sum(Kind::Int64).int64_value(&[]),
                None => batch.ids_bt.numel() as i64,
            };
            assert_eq!(counts.tokens, compared);
        }
    }
}
