//! Several processes on the loopback: every test starts itself again as ranks.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)] // Tests panic.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use minitron_comm::{C10d, C10dOptions, CommError, Communicator, ReduceOp, Solo, Store, World};
use tch::{Device, Kind, Tensor};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `body` in each of `n` processes, of which some may be left out; returns what they wrote,
/// none where this process is one of them.
fn ranks(n: usize, test: &str, body: impl Fn(World)) -> Option<Vec<Output>> {
    started(n, 0..n, test, body)
}

fn started(
    n: usize,
    which: std::ops::Range<usize>,
    test: &str,
    body: impl Fn(World),
) -> Option<Vec<Output>> {
    let world = World::from_env().unwrap();
    if world.has_others() {
        body(world);
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let children: Vec<_> = which
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--nocapture", "--include-ignored"])
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", n.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env("OMP_NUM_THREADS", "1")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    Some(outputs.collect())
}

fn assert_all_passed(outputs: Option<Vec<Output>>) {
    for (rank, output) in outputs.into_iter().flatten().enumerate() {
        assert!(
            output.status.success(),
            "rank {rank}:\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn joined(world: &World, timeout: Duration, is_checked: bool) -> C10d {
    let options = C10dOptions {
        timeout,
        is_checked,
        ..C10dOptions::default()
    };
    C10d::join(world, options).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap()
}

#[test]
fn collectives_give_what_they_say_in_every_type() {
    assert_collectives("collectives_give_what_they_say_in_every_type", false);
}

#[test]
fn collectives_that_are_checked_give_the_same() {
    assert_collectives("collectives_that_are_checked_give_the_same", true);
}

fn assert_collectives(test: &str, is_checked: bool) {
    let outputs = ranks(3, test, |world| {
        let comm = joined(&world, TIMEOUT, is_checked);
        let mine = world.rank as f64 + 1.0;
        for kind in [
            Kind::Float,
            Kind::Double,
            Kind::BFloat16,
            Kind::Half,
            Kind::Int64,
        ] {
            let options = (kind, Device::Cpu);
            let full = |x: f64| Tensor::full([2, 3], x, options);
            for (op, expected) in [
                (ReduceOp::Sum, 6.0),
                (ReduceOp::Min, 1.0),
                (ReduceOp::Max, 3.0),
            ] {
                let tensor = full(mine);
                comm.all_reduce(&[&tensor], op).unwrap().wait().unwrap();
                assert_eq!(values(&tensor), [expected; 6], "{kind:?} {op:?}");
            }
            let (a, b) = (full(mine), Tensor::full([5], 10.0 * mine, options));
            comm.all_reduce(&[&a, &b], ReduceOp::Sum)
                .unwrap()
                .wait()
                .unwrap();
            assert_eq!((values(&a), values(&b)), (vec![6.0; 6], vec![60.0; 5]));
            let all = Tensor::zeros([6], options);
            let part = Tensor::full([2], mine, options);
            comm.all_gather(&all, &part).unwrap().wait().unwrap();
            assert_eq!(values(&all), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
            comm.reduce_scatter(&part, &all, ReduceOp::Sum)
                .unwrap()
                .wait()
                .unwrap();
            assert_eq!(values(&part), [3.0 * mine; 2]);
            let told = full(mine);
            comm.broadcast(&told, 2).unwrap().wait().unwrap();
            assert_eq!(values(&told), [3.0; 6]);
        }
        let mut numbers = [mine, -mine];
        comm.reduce_numbers(&mut numbers, ReduceOp::Max).unwrap();
        assert_eq!(numbers, [3.0, -1.0]);
        assert!(comm.any(world.rank == 2).unwrap());
        assert!(!comm.any(false).unwrap());
        comm.barrier().unwrap();
    });
    assert_all_passed(outputs);
}

#[test]
fn a_world_of_one_does_the_same_at_once() {
    let part = Tensor::from_slice(&[1f32, 2.0]);
    let all = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    Solo.all_gather(&all, &part).unwrap().wait().unwrap();
    assert_eq!(values(&all), [1.0, 2.0]);
    Solo.all_reduce(&[&all], ReduceOp::Sum)
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(values(&all), [1.0, 2.0]);
    let mut numbers = [3.0];
    Solo.reduce_numbers(&mut numbers, ReduceOp::Sum).unwrap();
    assert_eq!(numbers, [3.0]);
    assert!(Solo.any(true).unwrap() && !Solo.any(false).unwrap());
}

#[test]
fn tensors_that_no_collective_takes_are_refused() {
    let outputs = ranks(2, "tensors_that_no_collective_takes_are_refused", |world| {
        let comm = joined(&world, TIMEOUT, false);
        let refused = |result: Result<minitron_comm::Work, CommError>, words: &str| {
            let error = result.map(|_| ()).unwrap_err();
            assert!(matches!(error, CommError::Unsupported(_)));
            assert!(error.to_string().contains(words), "{error}");
        };
        let square = Tensor::ones([3, 3], (Kind::Float, Device::Cpu));
        let view = square.transpose(0, 1).narrow(0, 0, 2);
        refused(comm.all_reduce(&[&view], ReduceOp::Sum), "contiguous");
        refused(comm.broadcast(&view, 0), "contiguous");
        let other = square.to_kind(Kind::Double);
        refused(
            comm.all_reduce(&[&square, &other], ReduceOp::Sum),
            "one type",
        );
        refused(comm.all_gather(&square, &square), "2 equal parts");
        refused(
            comm.reduce_scatter(&square, &square, ReduceOp::Sum),
            "2 equal parts",
        );
        comm.barrier().unwrap();
    });
    assert_all_passed(outputs);
}

#[test]
fn ranks_that_do_not_do_the_same_are_told_so() {
    let outputs = ranks(2, "ranks_that_do_not_do_the_same_are_told_so", |world| {
        let comm = joined(&world, TIMEOUT, true);
        let tensor = Tensor::ones([2 + world.rank as i64], (Kind::Float, Device::Cpu));
        let error = comm.all_reduce(&[&tensor], ReduceOp::Sum).unwrap_err();
        assert!(matches!(error, CommError::Mismatch(_)), "{error}");
        assert!(error.to_string().contains("[2]") || error.to_string().contains("TensorShape"));
    });
    assert_all_passed(outputs);
}

/// Sums until a rank is gone, and returns what the others say.
fn sum_until(world: &World, timeout: Duration, end: impl Fn(&C10d)) -> CommError {
    let comm = joined(world, timeout, false);
    let tensor = Tensor::ones([1000], (Kind::Float, Device::Cpu));
    for step in 0.. {
        if step == 3 {
            end(&comm);
        }
        let done = comm
            .all_reduce(&[&tensor], ReduceOp::Sum)
            .and_then(|work| work.wait());
        if let Err(error) = done {
            return error;
        }
        assert!(step < 1000, "nobody noticed");
    }
    unreachable!()
}

fn killed(n: usize, which: usize, test: &str, words: &str) {
    let begin = Instant::now();
    let outputs = ranks(n, test, |world| {
        let rank = world.rank;
        let error = sum_until(&world, TIMEOUT, |_| {
            if rank == which {
                std::process::abort();
            }
        });
        assert!(matches!(error, CommError::PeerLost(_)), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    });
    for (rank, output) in outputs.into_iter().flatten().enumerate() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.success(),
            rank != which,
            "rank {rank}: {said}"
        );
        assert!(begin.elapsed() < TIMEOUT, "took as long as a rank waits");
    }
}

#[test]
fn a_rank_that_is_killed_is_named() {
    let test = "a_rank_that_is_killed_is_named";
    killed(3, 2, test, "no sign of life from rank 2");
}

#[test]
fn the_rank_that_serves_the_store_is_named_too() {
    let test = "the_rank_that_serves_the_store_is_named_too";
    killed(3, 0, test, "rank 0, which serves the store");
}

#[test]
fn a_rank_that_is_stuck_ends_the_wait_of_the_others() {
    let test = "a_rank_that_is_stuck_ends_the_wait_of_the_others";
    let outputs = ranks(2, test, |world| {
        let rank = world.rank;
        let error = sum_until(&world, Duration::from_secs(3), |_| {
            if rank == 1 {
                std::thread::sleep(Duration::from_secs(7));
            }
        });
        if rank == 0 {
            assert!(matches!(error, CommError::Timeout(_)), "{error}");
            assert!(error.to_string().contains("every rank shows signs of life"));
        }
    });
    assert_all_passed(outputs);
}

#[test]
fn a_rank_that_never_comes_is_missed_in_time() {
    let test = "a_rank_that_never_comes_is_missed_in_time";
    let begin = Instant::now();
    let outputs = started(2, 0..1, test, |world| {
        let options = C10dOptions {
            timeout: Duration::from_secs(3),
            ..C10dOptions::default()
        };
        let error = C10d::join(&world, options).unwrap_err();
        assert!(matches!(error, CommError::Rendezvous(_)), "{error}");
        assert!(error.to_string().contains("1/2"), "{error}");
    });
    assert_all_passed(outputs);
    assert!(begin.elapsed() < TIMEOUT);
}

#[test]
fn a_store_has_keys_counters_and_queues() {
    let server = Store::serve(0, TIMEOUT).unwrap();
    let store = Store::connect("127.0.0.1", server.port(), TIMEOUT).unwrap();
    let store = store.with_prefix("job").unwrap();
    assert!(!store.has("key").unwrap());
    store.set("key", b"value").unwrap();
    assert_eq!(store.read("key").unwrap(), b"value");
    assert!(store.has("key").unwrap() && !server.has("key").unwrap());
    assert_eq!(
        [store.count("n", 2).unwrap(), store.count("n", 1).unwrap()],
        [2, 3]
    );
    assert_eq!(store.pop("queue").unwrap(), None);
    store.push("queue", b"a").unwrap();
    store.push("queue", b"").unwrap();
    assert_eq!(store.pop("queue").unwrap().unwrap(), b"a");
    assert_eq!(store.pop("queue").unwrap().unwrap(), b"");
    assert!(matches!(
        store.set("a\0b", b""),
        Err(CommError::Unsupported(_))
    ));
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = Store::connect("127.0.0.1", nobody, Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, CommError::Rendezvous(_)), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = Store::connect("127.0.0.1", port, Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("nobody answers"), "{error}");
}
