//! Models and texts at the edge of what numbers can hold: what comes out is finite, or an error
//! that says what is not.

use std::path::Path;

use minitron::{Workspace, families, least_squares, tiny_llama, with_context, without_groups};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{MemorySource, Reader, TensorSource, write_tensors};
use minitron_core::error::{Error, Result};
use minitron_core::plan::Count;
use minitron_engine::jobs::{
    Context, DistillOptions, EvalOptions, PruneOptions, ReconstructOptions, ScoreOptions,
    TrainingOptions, distill, eval, prune, score,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// A model and a text; jobs leave their outputs beside them.
struct Jobs {
    files: Workspace,
    kind: Kind,
    /// Whether there is something to predict.
    has_head: bool,
    /// What least squares is asked for.
    fitted: &'static str,
}

impl std::ops::Deref for Jobs {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Jobs {
    /// A random model, each tensor changed.
    fn new(config: &Value, change: impl Fn(&str, Tensor) -> Tensor) -> Self {
        let jobs = Jobs {
            files: Workspace::new().model("model", config, 1).text("text.txt"),
            kind: Kind::Float,
            has_head: config["model_type"] != "bert",
            fitted: least_squares(config),
        };
        let path = jobs.at("model/model.safetensors");
        let reader = Reader::open_file(&path).unwrap();
        let mut source = MemorySource::default();
        for name in reader.names() {
            source
                .insert(name.clone(), &change(&name, reader.read(&name).unwrap()))
                .unwrap();
        }
        write_tensors(&path, &source).unwrap();
        jobs
    }

    fn with_text(self, text: &str) -> Self {
        self.write("text.txt", text);
        self
    }

    fn with<T>(&self, job: impl FnOnce(&Context) -> Result<T>) -> Result<T> {
        with_context(true, |context| {
            job(&Context {
                kind: self.kind,
                ..*context
            })
        })
    }

    fn score(&self, seq_len: usize, batch_size: usize) -> Result<Value> {
        let metrics = [
            "activation",
            "block_influence",
            "taylor",
            "wanda",
            "fluctuation",
        ]
        .into_iter();
        let options = ScoreOptions {
            model: self.path("model"),
            data: vec![self.path("text.txt").parse().unwrap()],
            metrics: metrics
                .filter(|m| self.has_head || *m != "taylor")
                .map(|m| m.parse().unwrap())
                .collect(),
            samples: 4,
            seq_len: Some(seq_len),
            batch_size,
            ..ScoreOptions::default()
        };
        self.with(|context| score(context, &options, &self.at("scores")))
    }

    fn prune(&self, mlp: usize, reconstruct: &[&str]) -> Result<Value> {
        let options = PruneOptions {
            model: self.path("model"),
            scores: Some(self.path("scores")),
            mlp: Some(mlp),
            by: [(String::new(), "activation".to_owned())].into(),
            reconstruction: ReconstructOptions {
                reconstruct: reconstruct.iter().map(|h| h.parse().unwrap()).collect(),
                data: vec![self.path("text.txt").parse().unwrap()],
                samples: 4,
                seq_len: Some(16),
                ..ReconstructOptions::default()
            },
            ..PruneOptions::default()
        };
        self.with(|context| prune(context, &options, &self.at("pruned"), false))
    }

    fn distill(&self) -> Result<Value> {
        let training = TrainingOptions {
            data: vec![self.path("text.txt").parse().unwrap()],
            tokens: Count(256),
            seq_len: Some(16),
            batch_size: 1,
            ..TrainingOptions::default()
        };
        let options = DistillOptions {
            teacher: self.path("model"),
            student: self.path("pruned"),
            training,
            ..Default::default()
        };
        self.with(|context| distill(context, &options, &self.at("distilled"), false))
    }

    fn eval(&self, model: &str) -> Result<Value> {
        let options = EvalOptions {
            model: self.path(model),
            teacher: Some(self.path("model")),
            data: vec![self.path("text.txt").parse().unwrap()],
            seq_len: Some(16),
            ..EvalOptions::default()
        };
        self.with(|context| eval(context, &options))
    }
}

/// Finite numbers throughout, or an error that blames the model, the text or a plugin's result;
/// never the program.
fn is_clear(about: &str, done: &Result<Value>) -> bool {
    match done {
        Ok(report) => {
            // JSON has no NaN: one would stand there as null.
            for key in ["loss", "perplexity", "kl_to_teacher"] {
                assert!(
                    report.get(key).is_none_or(Value::is_number),
                    "{about}: {key} is {}",
                    report[key]
                );
            }
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                !matches!(blame(error), Error::Internal(_) | Error::Torch { .. }),
                "{about}: {text}"
            );
            assert!(
                text.contains("NaN") || text.contains("inf") || text.contains("finite"),
                "{about}: {text}"
            );
            false
        }
    }
}

fn blame(error: &Error) -> &Error {
    match error {
        Error::At { source, .. } => blame(source),
        other => other,
    }
}

fn assert_finite(path: &Path) {
    let reader = Reader::open(path).unwrap();
    for name in reader.names() {
        let tensor = reader.read(&name).unwrap().to_kind(Kind::Float);
        assert!(
            bool::try_from(tensor.isfinite().all()).unwrap(),
            "{}: {name}",
            path.display()
        );
    }
}

/// Every job on one jobs; what it leaves has to be finite. Gives the jobs that ended with an error.
fn go_through(about: &str, jobs: &Jobs) -> Vec<&'static str> {
    let mut refused = Vec::new();
    let mut note = |job: &'static str, done: Result<Value>| {
        let is_done = is_clear(&format!("{about}: {job}"), &done);
        if !is_done {
            refused.push(job);
        }
        is_done
    };
    if note("score", jobs.score(16, 1)) {
        let scores = Scores::load(&jobs.at("scores")).unwrap();
        assert!(
            scores
                .by_name
                .values()
                .flatten()
                .all(|score| score.is_finite()),
            "{about}"
        );
        if note("prune", jobs.prune(24, &[])) {
            assert_finite(&jobs.at("pruned"));
            if jobs.has_head {
                note("eval", jobs.eval("pruned"));
            }
            if jobs.has_head && note("distill", jobs.distill()) {
                assert_finite(&jobs.at("distilled"));
            }
        }
        if note("reconstruct", jobs.prune(24, &[jobs.fitted])) {
            assert_finite(&jobs.at("pruned"));
        }
    }
    refused
}

fn scaled(factor: f64) -> impl Fn(&str, Tensor) -> Tensor {
    move |_, tensor| tensor * factor
}

#[test]
fn a_model_of_zeros_goes_through_every_job() {
    for config in families() {
        let jobs = Jobs::new(&config, |_, tensor| tensor.zeros_like());
        assert_eq!(
            go_through(&format!("zeros {}", config["model_type"]), &jobs),
            Vec::<&str>::new()
        );
    }
}

#[test]
fn tiny_weights_go_through_every_job_in_f32_and_bf16() {
    for config in families() {
        for (kind, factor) in [
            (Kind::Float, 1e-38),
            (Kind::Float, 1e-20),
            (Kind::BFloat16, 1e-38),
        ] {
            let jobs = Jobs {
                kind,
                ..Jobs::new(&config, scaled(factor))
            };
            assert_eq!(
                go_through(
                    &format!("{factor} {kind:?} {}", config["model_type"]),
                    &jobs
                ),
                Vec::<&str>::new()
            );
        }
    }
}

#[test]
fn huge_weights_are_finite_or_said_to_overflow() {
    for config in families() {
        for (kind, factor) in [
            (Kind::Float, 1e4),
            (Kind::Float, 1e30),
            (Kind::BFloat16, 1e10),
            (Kind::BFloat16, 1e36),
        ] {
            let jobs = Jobs {
                kind,
                ..Jobs::new(&config, scaled(factor))
            };
            go_through(
                &format!("{factor} {kind:?} {}", config["model_type"]),
                &jobs,
            );
        }
    }
}

#[test]
fn weights_stored_as_denormals_of_bf16_are_read_as_they_are() {
    let jobs = Jobs::new(&tiny_llama(), |_, tensor| {
        (tensor * 1e-39).to_kind(Kind::BFloat16)
    });
    let reader = Reader::open(&jobs.at("model")).unwrap();
    let largest = |name: &String| {
        reader
            .read(name)
            .unwrap()
            .to_kind(Kind::Double)
            .abs()
            .max()
            .double_value(&[])
    };
    let all = reader.names().iter().map(largest).fold(0.0, f64::max);
    assert!(all > 0.0 && all < 1.2e-38, "{all}");
    drop(reader);
    assert_eq!(go_through("stored denormals", &jobs), Vec::<&str>::new());
}

#[test]
fn one_layer_one_head_and_one_of_both_go_through_every_job() {
    for config in families() {
        let key = |names: [&'static str; 2]| {
            names
                .into_iter()
                .find(|name| config.get(*name).is_some())
                .unwrap()
        };
        let (layers, heads) = (
            key(["num_hidden_layers", "n_layer"]),
            key(["num_attention_heads", "n_head"]),
        );
        for (n_layers, n_heads) in [(Some(1), None), (None, Some(1)), (Some(1), Some(1))] {
            let mut config = config.clone();
            if let Some(n_layers) = n_layers {
                config[layers] = json!(n_layers);
                config["hybrid_override_pattern"] = json!("-");
                config["attn_layer_indices"] = json!([]);
                if let Some(Value::Array(blocks)) = config.get_mut("block_configs") {
                    blocks.truncate(n_layers);
                }
            }
            if let Some(n_heads) = n_heads {
                config[heads] = json!(n_heads);
                without_groups(&mut config);
                for own in ["num_key_value_heads", "head_dim"] {
                    if config.get(own).is_some() {
                        config[own] = if own == "head_dim" {
                            json!(32)
                        } else {
                            json!(1)
                        };
                    }
                }
            }
            let jobs = Jobs::new(&config, |_, tensor| tensor);
            let about = format!(
                "{n_layers:?} layers, {n_heads:?} heads, {}",
                config["model_type"]
            );
            assert_eq!(go_through(&about, &jobs), Vec::<&str>::new());
        }
    }
}

#[test]
fn one_text_over_and_over_leaves_covariances_of_rank_one_and_finite_weights() {
    for config in families() {
        let jobs = Jobs::new(&config, |_, tensor| tensor).with_text(&"a".repeat(4000));
        assert_eq!(
            go_through(&format!("constant text {}", config["model_type"]), &jobs),
            Vec::<&str>::new()
        );
    }
}

#[test]
fn windows_of_one_token_are_refused_before_any_work() {
    let jobs = Jobs::new(&tiny_llama(), |_, tensor| tensor);
    let error = jobs.score(1, 1).unwrap_err().to_string();
    assert_eq!(error, "recipe: seq_len: expected at least 2 tokens, got 1");
    jobs.score(2, 1).unwrap();
}

#[test]
fn least_squares_on_covariances_of_any_rank_stays_finite() {
    // Channels that are copies of each other, dead, or of very different sizes.
    type Change = fn(&str, Tensor) -> Tensor;
    let ways: [(&str, Change); 4] = [
        ("dead channels", |name, tensor| {
            if name.contains("up_proj") {
                let _ = tensor.narrow(0, 0, 8).fill_(0.0);
            }
            tensor
        }),
        ("equal rows", |name, tensor| {
            if name.contains("mlp") {
                tensor.narrow(0, 0, 1).expand_as(&tensor).contiguous()
            } else {
                tensor
            }
        }),
        ("sizes far apart", |name, tensor| {
            if name.contains("up_proj") {
                let n = tensor.size()[0];
                let exponents = Tensor::linspace(-15.0, 15.0, n, (Kind::Float, Device::Cpu));
                tensor * Tensor::from(10f32).pow(&exponents).view([n, 1])
            } else {
                tensor
            }
        }),
        ("one token for all", |name, tensor| {
            if name.contains("embed_tokens") {
                tensor.narrow(0, 0, 1).expand_as(&tensor).contiguous()
            } else {
                tensor
            }
        }),
    ];
    for (about, change) in ways {
        let jobs = Jobs::new(&tiny_llama(), change);
        jobs.score(16, 2).unwrap();
        for reconstruct in ["least_squares", "rotation"] {
            let done = jobs.prune(16, &[reconstruct]);
            assert!(
                is_clear(&format!("{about}: {reconstruct}"), &done),
                "{about}: {reconstruct}: {done:?}"
            );
            assert_finite(&jobs.at("pruned"));
        }
    }
}

#[test]
fn a_batch_of_one_scores_as_a_batch_of_all() {
    let jobs = Jobs::new(&tiny_llama(), |_, tensor| tensor);
    jobs.score(16, 1).unwrap();
    let one = Scores::load(&jobs.at("scores")).unwrap();
    jobs.score(16, 4).unwrap();
    let all = Scores::load(&jobs.at("scores")).unwrap();
    for (name, scores) in &one.by_name {
        for (a, b) in scores.iter().zip(&all.by_name[name]) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-3), "{name}: {a} {b}");
        }
    }
}
