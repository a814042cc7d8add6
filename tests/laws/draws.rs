//! What is drawn from a teacher's distribution is right in the mean, and the same whoever draws.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use minitron::{some_windows, tiny_llama};
use minitron_core::windows::{Batch, Task};
use minitron_engine::train::{CacheHeader, CacheType, InMemoryTeacher};
use tch::{Device, Kind, Tensor};

use super::teachers::{VOCAB, batch, header, logit_term, remembered, words};
use super::{Model, relative};

fn drawing(n: usize, seed: u64) -> CacheHeader {
    header(7, CacheType::F16).drawing(n, seed)
}

/// What a cache in a folder says of a batch.
fn said(teacher: &Model, dir: &Path, header: CacheHeader, targets: &Batch) -> Tensor {
    let mut cached = remembered(teacher, dir, header, &Rc::new(Cell::new(0))).unwrap();
    // Draws need nothing of the student.
    words(&mut cached, targets, &Tensor::new())
}

/// The gradient of the divergence from a teacher in the student's logits.
fn gradient(student_nv: &Tensor, teacher_nv: &Tensor, targets: &Batch) -> Tensor {
    let student_nv = student_nv.copy().set_requires_grad(true);
    let loss = logit_term(1.0).loss;
    let loss_n = loss.rows(&student_nv, Some(teacher_nv), &targets.labels_n);
    loss_n.unwrap().sum(Kind::Float).backward();
    student_nv.grad().copy()
}

#[test]
fn the_mean_over_draws_is_the_gradient_of_the_whole_and_that_of_the_largest_is_not() {
    let teacher = Model::new(&tiny_llama(), 81).unwrap();
    let targets = batch(&some_windows(3, 16, VOCAB, 21).unwrap(), &teacher);
    let options = (Kind::Float, Device::Cpu);
    let student_nv = Tensor::randn([targets.n_rows(), VOCAB as i64], options) * 2.0;
    let whole_nv = words(
        &mut InMemoryTeacher(teacher.load().unwrap()),
        &targets,
        &student_nv,
    );
    let whole = gradient(&student_nv, &whole_nv, &targets);
    let (n_draws, n_seeds) = (12, 300);
    let mut mean = whole.zeros_like();
    for seed in 0..n_seeds {
        let dir = tempfile::tempdir().unwrap();
        let drawn_nv = said(&teacher, dir.path(), drawing(n_draws, seed), &targets);
        mean += gradient(&student_nv, &drawn_nv, &targets) / n_seeds as f64;
    }
    // A share of 3,600 draws has a deviation of at most 1/120.
    let worst = (&mean - &whole).abs().max().double_value(&[]);
    assert!(worst < 5.0 / 120.0, "{worst}");
    let mean_square = (&mean - &whole)
        .square()
        .mean(Kind::Double)
        .double_value(&[]);
    let p_nv = whole_nv.softmax(-1, Kind::Double);
    let variance = (&p_nv - p_nv.square()).mean(Kind::Double).double_value(&[]) / 3600.0;
    assert!(
        (mean_square / variance - 1.0).abs() < 0.2,
        "a variance of {mean_square}, of so many draws {variance}"
    );
    // The same bytes a token spent on the five likeliest: they err the same way every time.
    let dir = tempfile::tempdir().unwrap();
    let header = header(5, CacheType::F16);
    assert_eq!(
        header.bytes_per_token(),
        drawing(n_draws, 0).bytes_per_token()
    );
    let mut largest = remembered(&teacher, dir.path(), header, &Rc::new(Cell::new(0))).unwrap();
    let largest_nv = words(&mut largest, &targets, &student_nv);
    let cut = gradient(&student_nv, &largest_nv, &targets);
    let of_cut = (&cut - &whole)
        .square()
        .mean(Kind::Double)
        .double_value(&[]);
    assert!(of_cut > 4.0 * mean_square, "{of_cut} {mean_square}");
}

#[test]
fn draws_follow_from_seed_and_window_alone() {
    let teacher = Model::new(&tiny_llama(), 82).unwrap();
    let windows = some_windows(4, 16, VOCAB, 22).unwrap();
    let part = |chosen: &[usize]| {
        Task::NextToken
            .batch(&windows, chosen, Device::Cpu)
            .unwrap()
    };
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let together = said(
        &teacher,
        dirs[0].path(),
        drawing(32, 5),
        &part(&[0, 1, 2, 3]),
    );
    let mut alone = Vec::new();
    for window in [3, 1, 0, 2] {
        alone.push((
            window,
            said(&teacher, dirs[1].path(), drawing(32, 5), &part(&[window])),
        ));
    }
    alone.sort_by_key(|(window, _)| *window);
    let alone: Vec<Tensor> = alone.into_iter().map(|(_, said_nv)| said_nv).collect();
    assert!(Tensor::cat(&alone, 0).equal(&together));
    let other = said(
        &teacher,
        dirs[2].path(),
        drawing(32, 6),
        &part(&[0, 1, 2, 3]),
    );
    assert!(relative(&other.exp(), &together.exp()) > 0.01);
    // What was drawn is kept: n ids of two bytes a token, and the teacher is not asked again.
    let rows = std::fs::read(dirs[0].path().join("rows.bin")).unwrap();
    assert_eq!(rows.len(), 4 * 15 * 32 * 2);
    let again = said(&teacher, dirs[0].path(), drawing(32, 5), &part(&[2, 0]));
    assert!(again.narrow(0, 0, 15).equal(&together.narrow(0, 30, 15)));
    let shares = together.exp().sum_dim_intlist(-1, false, Kind::Double);
    assert!(relative(&shares, &shares.ones_like()) < 1e-6);
    for (foreign, says) in [
        (drawing(32, 6), "\"seed\":5"),
        (drawing(16, 5), "\"n\":32"),
        (header(7, CacheType::F16), "wanted null"),
    ] {
        let n_loads = Rc::new(Cell::new(0));
        let error = remembered(&teacher, dirs[0].path(), foreign, &n_loads).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
