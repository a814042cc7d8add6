//! The kernels that a step spends its time in besides matrix products: losses on logits, AdamW,
//! slicing, statistics.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops at the first error"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use minitron_core::calibrate::{Activations, SequenceStat, Site};
use minitron_core::checkpoint::{MemorySource, Reader, TensorSource, write_tensors};
use minitron_core::contract::LogitLoss;
use minitron_core::model::{LoadOptions, NoTap, Transformer};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelSpec;
use minitron_core::windows::Task;
use minitron_engine::train::{Counts, InMemoryTeacher, Objective, Term};
use tch::{Device, Kind, Tensor};

fn randn(shape: &[i64]) -> Tensor {
    Tensor::f_randn(shape, (Kind::Float, Device::Cpu)).unwrap()
}

fn losses(criterion: &mut Criterion) {
    let registry = minitron::registry();
    let (rows, vocab) = (256, 32_000);
    let (student, teacher) = (
        randn(&[rows, vocab]).f_set_requires_grad(true).unwrap(),
        randn(&[rows, vocab]),
    );
    let labels = Tensor::f_randint(vocab, [rows], (Kind::Int64, Device::Cpu)).unwrap();
    let mut group = criterion.benchmark_group("loss, forward and backward, 256 x 32000");
    group
        .throughput(Throughput::Elements(rows as u64))
        .sample_size(20);
    for tag in [
        "forward_kl",
        "cross_entropy",
        "reverse_kl",
        "jensen_shannon",
        "top_k_kl",
        "logit_mse",
        "logit_cosine",
    ] {
        let loss = registry
            .build::<dyn LogitLoss>(&PluginSpec::bare(tag))
            .unwrap();
        group.bench_function(tag, |bencher| {
            bencher.iter(|| {
                let loss_n = loss.rows(&student, Some(&teacher), &labels).unwrap();
                loss_n.f_mean(Kind::Float).unwrap().f_backward().unwrap();
            });
        });
    }
    group.finish();
}

fn statistics(criterion: &mut Criterion) {
    let x_btc = randn(&[4, 512, 2048]);
    let mut group = criterion.benchmark_group("per-window statistics, 4 x 512 x 2048");
    group
        .throughput(Throughput::Elements(4 * 512))
        .sample_size(20);
    for (name, stat, block) in [
        ("mean", SequenceStat::Mean, 1),
        ("l2", SequenceStat::L2, 1),
        ("var", SequenceStat::Var, 1),
        ("mean of heads", SequenceStat::Mean, 64),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                Activations::new(Site::LayerInput(0), &x_btc)
                    .per_window(stat, block)
                    .unwrap()
            });
        });
    }
    group.finish();
}

/// What distillation does with the logits of a head over 128,256 tokens, forward and backward: in
/// row chunks, and whole.
fn objective(criterion: &mut Criterion) {
    const VOCAB: usize = 128_256;
    let mut config = minitron::tiny_llama();
    config["vocab_size"] = VOCAB.into();
    config["hidden_size"] = 512.into();
    config["num_hidden_layers"] = 1.into();
    let model = |seed, trainable| {
        let spec =
            ModelSpec::from_config(&minitron::config(&config).unwrap(), &minitron::registry())
                .unwrap();
        let source = minitron::random_weights(&spec, seed).unwrap();
        Transformer::load(
            &source,
            &spec,
            LoadOptions {
                trainable,
                ..LoadOptions::default()
            },
        )
        .unwrap()
    };
    let (student, teacher) = (model(1, true), model(2, false));
    let windows = minitron::some_windows(8, 64, VOCAB, 3).unwrap();
    let targets = Task::NextToken
        .batch(&windows, &(0..8).collect::<Vec<_>>(), Device::Cpu)
        .unwrap();
    let loss = minitron::registry()
        .build::<dyn LogitLoss>(&PluginSpec::bare("forward_kl"))
        .unwrap();
    let term = Term {
        label: "forward_kl".into(),
        weight: 1.0,
        loss: loss.into(),
    };
    let objective = Objective {
        terms: vec![term],
        ..Objective::default()
    };
    let mut group = criterion.benchmark_group("forward_kl with its heads, 504 x 512 x 128256");
    group
        .throughput(Throughput::Elements(targets.n_rows() as u64))
        .sample_size(10);
    group.bench_function("in row chunks", |bencher| {
        let whole = Counts::of(&targets).unwrap();
        bencher.iter(|| {
            objective
                .backward(
                    &student,
                    Some(&mut InMemoryTeacher(&teacher)),
                    &targets,
                    whole,
                )
                .unwrap()
        });
    });
    group.bench_function("whole", |bencher| {
        bencher.iter(|| {
            let logits = |model: &Transformer| {
                model.logits(&targets.rows(&model.hidden(targets.input(), &mut NoTap, None)?)?)
            };
            let teacher_nv = tch::no_grad(|| logits(&teacher)).unwrap();
            let loss_n = objective.terms[0].loss.rows(
                &logits(&student).unwrap(),
                Some(&teacher_nv),
                &targets.labels_n,
            );
            loss_n
                .unwrap()
                .f_mean(Kind::Float)
                .unwrap()
                .f_backward()
                .unwrap();
        });
    });
    group.finish();
}

/// Stored rows into a buffer, from the page cache: as they are, and looked through for NaN and
/// infinities on the way.
fn reading(criterion: &mut Criterion) {
    const N_BYTES: usize = 1 << 28;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let mut source = MemorySource::default();
    source
        .insert(
            "weight",
            &randn(&[1 << 14, 1 << 13]).to_kind(Kind::BFloat16),
        )
        .unwrap();
    write_tensors(&path, &source).unwrap();
    let mut group = criterion.benchmark_group("read 256 MiB of bf16 in pieces of 16 MiB");
    group
        .throughput(Throughput::Bytes(N_BYTES as u64))
        .sample_size(20);
    for (name, is_weight) in [("as they are", false), ("as weights", true)] {
        let mut reader = Reader::open_file(&path).unwrap();
        reader.expect_weights(is_weight.then(|| "weight".to_owned()));
        let mut bytes = Vec::with_capacity(N_BYTES / 16);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for start in (0..1 << 14).step_by(1 << 10) {
                    bytes.clear();
                    reader
                        .append_rows("weight", start..start + (1 << 10), &mut bytes)
                        .unwrap();
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, losses, objective, statistics, reading);
criterion_main!(benches);
