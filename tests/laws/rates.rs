//! The learning rate that a distillation takes where none is given.

use std::fs;

use minitron::{Recorder, Workspace, tiny_bert, with_context};
use minitron_core::error::Result;
use minitron_core::plan::Count;
use minitron_engine::jobs::{Context, DistillOptions, TrainOptions, TrainingOptions};
use minitron_engine::jobs::{distill, train};
use minitron_engine::train::StartRate;
use serde_json::{Value, json};

/// Channels of the models.
const WIDTH: usize = 32;
/// Tokens of their steps.
const STEP: u64 = 4 * 32;

/// Two models, a text, and what was said.
struct Desk {
    files: Workspace,
    heard: Recorder,
}

impl Desk {
    fn new() -> Self {
        Desk {
            files: Workspace::with_teacher_and_student(),
            heard: Recorder::default(),
        }
    }

    fn options(&self) -> DistillOptions {
        DistillOptions {
            teacher: self.files.path("teacher"),
            student: self.files.path("student"),
            training: TrainingOptions {
                data: self.files.data("text.txt"),
                tokens: Count(1280),
                seq_len: Some(32),
                batch_size: 4,
                ..TrainingOptions::default()
            },
            ..DistillOptions::default()
        }
    }

    fn with<T>(&self, job: impl FnOnce(&Context) -> T) -> T {
        with_context(true, |context| {
            job(&Context {
                progress: &self.heard,
                ..*context
            })
        })
    }

    fn go(
        &self,
        out: &str,
        resume: bool,
        change: impl FnOnce(&mut DistillOptions),
    ) -> Result<Value> {
        let mut options = self.options();
        change(&mut options);
        self.with(|context| distill(context, &options, &self.files.at(out), resume))
    }

    fn distill(&self, out: &str, change: impl FnOnce(&mut DistillOptions)) -> Value {
        self.go(out, false, change).unwrap()
    }

    /// The highest rate of the metrics: warm-up is none in so few steps.
    fn peak(&self, out: &str) -> f64 {
        let lines = self.lines(out);
        let rates = lines.iter().map(|line| line["lr"].as_f64().unwrap());
        rates.fold(0.0, f64::max)
    }

    fn lines(&self, out: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.files.at(out).join("metrics.jsonl")).unwrap();
        let line = |line| serde_json::from_str(line).unwrap();
        text.lines().map(line).collect()
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        self.files.bytes(&format!("{out}/model.safetensors"))
    }

    fn card(&self, out: &str) -> String {
        String::from_utf8(self.files.bytes(&format!("{out}/README.md"))).unwrap()
    }

    /// What was said of learning rates since the last time.
    fn said(&self) -> Vec<String> {
        let mut notes = self.heard.notes();
        notes.retain(|note| note.starts_with("learning rate"));
        notes
    }
}

fn is_near(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 1e-12
}

/// A constant schedule has its highest rate in every step.
fn constant(options: &mut DistillOptions) {
    options.training.schedule = "constant".parse().unwrap();
}

#[test]
fn a_rate_that_is_not_given_follows_from_the_distance_and_is_told() {
    let desk = Desk::new();
    let report = desk.distill("fitted", constant);
    let (kl, lr) = (
        report["kl_at_start"].as_f64().unwrap(),
        report["lr"].as_f64().unwrap(),
    );
    // In nothing but which step it is of does it differ from the first step's loss.
    let first = &desk.lines("fitted")[0];
    assert!(kl > 0.0 && (kl / first["loss"].as_f64().unwrap() - 1.0).abs() < 0.5);
    assert_eq!(lr, StartRate::of_kl(kl, WIDTH, STEP).lr);
    assert!(is_near(desk.peak("fitted"), lr));
    assert_eq!(first["kl_at_start"], json!(kl));
    assert!(desk.lines("fitted")[1].get("kl_at_start").is_none());
    let said = desk.said();
    assert!(
        said.len() == 1 && said[0].contains(&format!("{lr:.1e}")),
        "{said:?}"
    );
    assert!(said[0].contains(&format!("{kl:.4} nats")), "{said:?}");
    let card = desk.card("fitted");
    assert!(
        card.contains(&format!("| kl at start | {kl:.4} |\n| lr | {lr} |")),
        "{card}"
    );

    // The same rate from somebody is the same training: measuring leaves no trace in it.
    let given = desk.distill("given", |options| {
        constant(options);
        options.training.lr = Some(lr);
    });
    assert!(desk.weights("fitted") == desk.weights("given"));
    assert!(given.get("kl_at_start").is_none() && given.get("lr").is_none());
    assert!(desk.said().is_empty() && !desk.card("given").contains("kl at start"));
}

#[test]
fn a_rate_that_is_given_wins() {
    let desk = Desk::new();
    desk.distill("given", |options| {
        constant(options);
        options.training.lr = Some(3e-4);
    });
    assert!(is_near(desk.peak("given"), 3e-4));
}

#[test]
fn a_nearer_student_gets_a_lower_rate() {
    let desk = Desk::new();
    let far = desk.distill("far", constant);
    // What learned for long is nearer.
    let (start, longer) = (
        desk.files.path("far"),
        desk.distill("far", |o| {
            o.training.tokens = Count(12_800);
            o.training.lr = Some(3e-3);
        }),
    );
    assert_eq!(longer["complete"], json!(true));
    let near = desk.distill("near", |o| {
        constant(o);
        o.student = start;
    });
    let same = desk.distill("same", |o| {
        constant(o);
        o.student.clone_from(&o.teacher);
    });
    let rates = [&far, &near, &same].map(|report| report["lr"].as_f64().unwrap());
    assert!(rates.is_sorted_by(|a, b| a > b), "{rates:?}");
    assert_eq!(rates[2], StartRate::of_kl(0.0, WIDTH, STEP).lr);
}

/// A run that goes on takes the rate of its first start, though its student is nearer by then.
#[test]
fn a_resumed_run_keeps_the_rate_that_it_began_with() {
    let desk = Desk::new();
    let whole = desk.distill("whole", |_| {});
    desk.said();
    desk.distill("parts", |o| o.training.stop_after = Some(4));
    assert_eq!(desk.said().len(), 1);
    let resumed = desk.go("parts", true, |_| {}).unwrap();
    // Not measured again.
    assert!(desk.said().is_empty());
    for key in ["lr", "kl_at_start", "loss"] {
        assert_eq!(whole[key], resumed[key], "{key}");
    }
    assert!(desk.weights("whole") == desk.weights("parts"));
    assert_eq!(desk.card("whole"), desk.card("parts"));

    // Somebody who read it off may say it; another one is another run's.
    let stopped = |out: &str| desk.distill(out, |o| o.training.stop_after = Some(4));
    let lr = stopped("said")["lr"].as_f64().unwrap();
    desk.go("said", true, |o| o.training.lr = Some(lr)).unwrap();
    assert!(desk.weights("whole") == desk.weights("said"));
    stopped("other");
    let refused = desk.go("other", true, |o| o.training.lr = Some(lr * 2.0));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("settings.lr"), "{refused}");
    // A run that was given one goes on with it.
    desk.distill("given", |o| {
        (o.training.lr, o.training.stop_after) = (Some(2e-4), Some(4));
    });
    desk.said();
    desk.go("given", true, |_| {}).unwrap();
    assert!(desk.said().is_empty() && desk.peak("given") <= 2e-4);
}

/// Whatever a student learns by, and however its teacher is asked, the distance is the same.
#[test]
fn the_distance_is_that_to_the_teacher_whatever_the_losses() {
    let desk = Desk::new();
    let kl = |out: &str, change: &dyn Fn(&mut DistillOptions)| {
        let report = desk.distill(out, |options| change(options));
        report["kl_at_start"].as_f64().unwrap()
    };
    let expected = kl("plain", &|_| {});
    let losses: [&[&str]; 4] = [
        &["cross_entropy"],
        &["hidden_state"],
        &["reverse_kl", "cross_entropy:weight=0.5"],
        &["forward_kl:temperature=4"],
    ];
    for named in losses {
        let found = kl(named[0], &|o| {
            o.training.losses = named.iter().map(|loss| loss.parse().unwrap()).collect();
        });
        assert!(
            (found / expected - 1.0).abs() < 1e-6,
            "{named:?}: {found} {expected}"
        );
    }
    type Change = fn(&mut DistillOptions, String);
    let asked: [(&str, Change); 3] = [
        ("streamed", |o, _| o.teacher_options.stream_teacher = true),
        ("passes", |o, _| {
            (o.training.batch_size, o.training.accumulate) = (2, 2)
        }),
        ("draws", |o, dir| {
            o.teacher_options.teacher_cache = Some(dir.into());
            o.teacher_options.cache_samples = Some(16);
        }),
    ];
    let change_in = |what: &str, change: Change| {
        kl(what, &|o| {
            change(o, desk.files.path(&format!("{what}-cache")))
        })
    };
    for (what, change) in asked {
        let found = change_in(what, change);
        assert!(
            (found / expected - 1.0).abs() < 1e-6,
            "{what}: {found} {expected}"
        );
    }
    // Of the largest probabilities and the mass of the rest it is a part.
    let found = change_in("top", |o, dir| {
        o.teacher_options.teacher_cache = Some(dir.into())
    });
    assert!((0.1 * expected..expected).contains(&found), "{found}");
}

/// Where there is no distance, and where there is no teacher, the rate is that of all trainings.
#[test]
fn what_has_no_logits_or_no_teacher_takes_the_usual_rate() {
    let desk = Desk::new();
    let mut options = desk.options();
    constant(&mut options);
    let options = TrainOptions {
        model: Some(desk.files.path("student")),
        training: options.training,
        ..TrainOptions::default()
    };
    let out = desk.files.at("trained");
    let report = desk
        .with(|context| train(context, &options, &out, false))
        .unwrap();
    assert!(report.get("lr").is_none() && desk.said().is_empty());
    assert!(is_near(desk.peak("trained"), StartRate::default().lr));

    let mut headless = tiny_bert();
    headless["architectures"] = json!(["BertModel"]);
    let files = Workspace::new()
        .model("teacher", &headless, 1)
        .model("student", &headless, 2);
    let desk = Desk {
        files: files.text("text.txt"),
        ..desk
    };
    let report = desk.distill("states", |o| {
        constant(o);
        o.training.losses = vec!["hidden_state".parse().unwrap()];
    });
    assert!(report.get("lr").is_none());
    assert!(is_near(desk.peak("states"), StartRate::default().lr));
    let said = desk.said();
    assert!(said.len() == 1 && said[0].contains("no logits"), "{said:?}");
}

#[test]
fn a_last_rate_above_the_one_that_was_found_is_refused() {
    let desk = Desk::new();
    let refused = desk.go("out", false, |o| {
        o.student.clone_from(&o.teacher);
        o.training.min_lr = Some(5e-4);
    });
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("min_lr: expected at most") && refused.contains("give lr too"),
        "{refused}"
    );
    assert!(!desk.files.at("out").exists());
}
