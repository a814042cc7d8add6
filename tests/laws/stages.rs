//! Longer windows in the last steps: as many tokens, the same bytes after an interruption.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use minitron::{some_windows, tiny_llama};
use minitron_core::model::Transformer;
use minitron_core::progress::Interrupt;
use minitron_core::windows::Windows;
use minitron_engine::data::DataLoader;
use minitron_engine::train::{HeldOut, LengthStage, LongWindows, TrainSettings, Trainer};

use super::training::{column, objective};
use super::{Model, learner, trainer};

/// Ten steps of four windows of 16 tokens, of which the last three have two of 32.
struct Staged {
    ours: Model,
    teacher: Transformer,
    windows: Arc<Windows>,
    long: Arc<Windows>,
}

impl Staged {
    fn new(long_width: usize) -> Self {
        Staged {
            ours: Model::new(&tiny_llama(), 91).unwrap(),
            teacher: Model::new(&tiny_llama(), 92).unwrap().load().unwrap(),
            windows: Arc::new(some_windows(11, 16, 61, 10).unwrap()),
            long: Arc::new(some_windows(5, long_width, 61, 11).unwrap()),
        }
    }

    /// Trains to a step, or goes on; what was learned.
    fn run(
        &self,
        out_dir: &Path,
        stop_after: Option<u64>,
    ) -> minitron_core::error::Result<Transformer> {
        let student = self.ours.trainable()?;
        let (objective, interrupt) = (objective()?, Interrupt::default());
        let settings = TrainSettings {
            n_tokens: 640,
            batch_size: 4,
            accumulate: 1,
            seed: 7,
            ..TrainSettings::default()
        };
        let loader = RefCell::new(DataLoader::of_windows(self.windows.clone(), 7));
        let long = RefCell::new(DataLoader::of_windows(self.long.clone(), 7));
        let stage: LengthStage = format!("0.3:{}", self.long.width()).parse()?;
        let passes = stage.passes((4, 1), 16)?;
        let learners = [learner(&student, &objective, out_dir)];
        let held_out = HeldOut {
            windows: &self.windows,
            batch_size: 4,
            every: Some(4),
        };
        let trainer = Trainer {
            stop_after,
            held_out: Some(held_out),
            long: Some(LongWindows {
                loader: &long,
                share: stage.share,
                batch_size: passes.batch_size,
                accumulate: passes.accumulate,
            }),
            ..trainer(&learners, &self.teacher, &loader, &settings, &interrupt)
        };
        trainer.check()?;
        trainer.run(true)?.single()?;
        drop(trainer);
        drop(learners);
        Ok(student)
    }
}

#[test]
fn the_last_steps_have_longer_windows_and_as_many_tokens() {
    let (staged, dir) = (Staged::new(32), tempfile::tempdir().unwrap());
    staged.run(dir.path(), None).unwrap();
    let tokens: Vec<f64> = (1..=10).map(|step| f64::from(64 * step)).collect();
    assert_eq!(column(dir.path(), "n_tokens"), tokens);
    // A window predicts all its tokens but the first.
    let predictions = column(dir.path(), "n_predictions");
    assert_eq!(predictions, [[60.0; 7].as_slice(), &[62.0; 3]].concat());
}

#[test]
fn a_run_with_a_length_stage_is_resumed_to_the_same_bytes() {
    let staged = Staged::new(32);
    let whole = tempfile::tempdir().unwrap();
    let expected = staged.run(whole.path(), None).unwrap();
    // In the first part, at its end, in the stage, and three times.
    for stops in [&[4][..], &[7], &[8], &[2, 7, 9]] {
        let dir = tempfile::tempdir().unwrap();
        for &stop in stops {
            staged.run(dir.path(), Some(stop)).unwrap();
        }
        let found = staged.run(dir.path(), None).unwrap();
        for (a, b) in expected.parameters().iter().zip(found.parameters()) {
            assert!(a.tensor.equal(&b.tensor), "{stops:?}: {}", a.name);
        }
        for key in ["loss", "n_predictions"] {
            assert_eq!(
                column(whole.path(), key),
                column(dir.path(), key),
                "{stops:?}"
            );
        }
    }
}

#[test]
fn windows_beyond_a_models_positions_are_refused() {
    // The model has 64.
    let (staged, dir) = (Staged::new(128), tempfile::tempdir().unwrap());
    let stage: LengthStage = "0.3:128".parse().unwrap();
    let error = stage.passes((4, 1), 16).unwrap_err().to_string();
    assert!(error.contains("64 tokens, which are no whole"), "{error}");
    let staged = Staged {
        long: Arc::new(some_windows(5, 64, 61, 11).unwrap()),
        ..staged
    };
    staged.run(dir.path(), Some(8)).unwrap();
    let mut small = tiny_llama();
    small["max_position_embeddings"] = 48.into();
    let staged = Staged {
        ours: Model::new(&small, 91).unwrap(),
        ..staged
    };
    let dir = tempfile::tempdir().unwrap();
    let error = staged.run(dir.path(), None).unwrap_err();
    let text = error.to_string();
    assert!(error.is_usage() && text.contains("length_stage"), "{text}");
}
