#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::cell::Cell;
use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;

use minitron::root;
use minitron_core::random::SplitMix;

/// Folders and answers.
mod desk;
/// What is held meanwhile.
#[allow(unsafe_code)]
mod memory;
/// Whole files to begin with.
mod seeds;
/// A function for each kind of file.
mod targets;

/// Inputs that are kept, in a folder for each target: seeds and what once went wrong, or what still
/// does.
fn kept(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = root().join("tests/fuzz").join(folder).join(target);
    if !dir.is_dir() {
        return Vec::new();
    }
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
#[ignore = "writes the seeds into tests/fuzz where WRITE_SEEDS is set"]
fn seeds_are_written_anew() {
    if std::env::var_os("WRITE_SEEDS").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (folder, kind, seeds) in [
        ("corpus", "seed", seeds::all(dir.path()).unwrap()),
        ("corpus", "crash", seeds::crashes()),
    ] {
        for (target, name, bytes) in seeds {
            let dir = root().join("tests/fuzz").join(folder).join(target);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{kind}-{name}")), bytes).unwrap();
        }
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a body. What panics under a guard is not printed: it is expected, and a backtrace takes
/// more memory than any file.
fn answered(body: fn(&[u8]), bytes: &[u8]) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |about| {
            if !IS_QUIET.get() {
                usual(about)
            }
        }));
    });
    IS_QUIET.set(true);
    let done = catch_unwind(AssertUnwindSafe(|| body(bytes)));
    IS_QUIET.set(false);
    done.map_err(|words| {
        let text = words.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| words.downcast_ref::<String>().cloned())
            .unwrap_or_default()
    })
}

#[test]
fn every_kept_input_has_an_answer_and_takes_no_more_memory_than_it_backs_up() {
    for (name, body) in targets::ALL {
        let kept = kept("corpus", name);
        assert!(!kept.is_empty(), "{name} has no seeds");
        kept.iter().for_each(|(path, bytes)| {
            assert_eq!(answered(body, bytes), Ok(()), "{}", path.display())
        });
    }
}

/// The same bytes with some of them changed, left out, doubled or taken from another input.
fn mutated(bytes: &[u8], other: &[u8], random: &mut SplitMix) -> Vec<u8> {
    const NUMBERS: [&[u8]; 8] = [
        b"0",
        b"-1",
        b"18446744073709551615",
        b"9223372036854775807",
        b"1e999",
        b"null",
        b"{}",
        b"[[[[",
    ];
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let (at, len) = (random.below(bytes.len() + 1), 1 + random.below(9));
        let end = (at + len).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            4 => drop(bytes.splice(
                at..end,
                NUMBERS[random.below(NUMBERS.len())].iter().copied(),
            )),
            5 => bytes.truncate(at),
            _ => {
                let from = random.below(other.len() + 1);
                let to = (from + len * 4).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
    bytes
}

#[test]
fn thousands_of_damaged_files_of_every_kind_have_an_answer() {
    const ROUNDS: usize = 400;
    for (name, body) in targets::ALL {
        let (kept, mut random) = (kept("corpus", name), SplitMix::new(name.len() as u64));
        for round in 0..ROUNDS {
            let (one, other) = (
                &kept[random.below(kept.len())],
                &kept[random.below(kept.len())],
            );
            let bytes = mutated(&one.1, &other.1, &mut random);
            if let Err(words) = answered(body, &bytes) {
                let path = root().join("target").join(format!("crash-{name}-{round}"));
                fs::write(&path, &bytes).unwrap();
                panic!(
                    "{name}: round {round}, from {}: {words}; kept as {}",
                    one.0.display(),
                    path.display()
                );
            }
        }
    }
}
