//! The kernels that a step spends its time in besides matrix products: losses on logits, AdamW, slicing, statistics.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench stops at the first error")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use minitron_core::calibrate::{Activations, SequenceStat, Site};
use minitron_core::contract::LogitLoss;
use minitron_core::registry::PluginSpec;
use tch::{Device, Kind, Tensor};

fn randn(shape: &[i64]) -> Tensor {
    Tensor::f_randn(shape, (Kind::Float, Device::Cpu)).unwrap()
}

fn losses(criterion: &mut Criterion) {
    let registry = minitron::registry();
    let (rows, vocab) = (256, 32_000);
    let (student, teacher) = (randn(&[rows, vocab]).f_set_requires_grad(true).unwrap(), randn(&[rows, vocab]));
    let labels = Tensor::f_randint(vocab, [rows], (Kind::Int64, Device::Cpu)).unwrap();
    let mut group = criterion.benchmark_group("loss, forward and backward, 256 x 32000");
    group.throughput(Throughput::Elements(rows as u64)).sample_size(20);
    for tag in ["forward_kl", "cross_entropy", "reverse_kl", "jensen_shannon", "top_k_kl", "logit_mse", "logit_cosine"]
    {
        let loss = registry.build::<dyn LogitLoss>(&PluginSpec::bare(tag)).unwrap();
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
    group.throughput(Throughput::Elements(4 * 512)).sample_size(20);
    for (name, stat, block) in [
        ("mean", SequenceStat::Mean, 1),
        ("l2", SequenceStat::L2, 1),
        ("var", SequenceStat::Var, 1),
        ("mean of heads", SequenceStat::Mean, 64),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Activations::new(Site::MlpNeurons(0), &x_btc).per_window(stat, block).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, losses, statistics);
criterion_main!(benches);
