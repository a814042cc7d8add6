//! Faults of the operating system under every command that writes. A small library between the
//! program and the C library (`faults/preload.c`) lets the k-th operation on the outputs fail,
//! fills the disk at a byte, or kills the process there; the program under test is the one that
//! users have.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use minitron::Workspace;
use minitron_core::digest;
use minitron_core::random::SplitMix;
use serde_json::Value;
use tempfile::TempDir;

/// A command that writes, and what holds when it is cut short.
struct Job {
    name: &'static str,
    words: &'static str,
    /// Below `outs`.
    out: &'static str,
    keeps: Keeps,
}

#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    /// What was there before, or the new artefact whole; `--force` replaces it.
    OldOrNew,
    /// What is needed to go on, with these words more.
    Progress(&'static str),
}

use Keeps::{OldOrNew, Progress};

const TRAIN: &str = "--data text.txt --eval-data text.txt --eval-samples 2 --seq-len 32 \
                     --batch-size 4 --lr 3e-3 \
                     --tokens 2k --checkpoint-every 4 --eval-every 8 --keep 2";

fn jobs() -> [Job; 12] {
    let job = |name, words, out, keeps| Job {
        name,
        words,
        out,
        keeps,
    };
    [
        job(
            "score",
            "score teacher --data text.txt --samples 8 --seq-len 32",
            "scores.safetensors",
            OldOrNew,
        ),
        job(
            "score --stream",
            "score teacher --data text.txt --samples 8 --seq-len 32 --stream",
            "s/scores",
            OldOrNew,
        ),
        job(
            "prune",
            "prune teacher --scores scores.safetensors --mlp 24 --hidden 24",
            "pruned",
            OldOrNew,
        ),
        job(
            "prune --max-memory",
            "prune teacher --scores scores.safetensors --mlp 24 --hidden 24 --data text.txt \
             --samples 8 --seq-len 32 --max-memory 4GiB",
            "pruned",
            OldOrNew,
        ),
        job("report", "report done", "report.html", OldOrNew),
        job(
            "plugins new",
            "plugins new importance",
            "plug",
            Progress(""),
        ),
        job(
            "train",
            "train student {train}",
            "trained",
            Progress("--resume"),
        ),
        job(
            "distill",
            "distill --teacher teacher --student student {train}",
            "distilled",
            Progress("--resume"),
        ),
        job(
            "distill --teacher-cache",
            "distill --teacher teacher --student student --teacher-cache outs/cache {train}",
            "distilled",
            Progress("--resume"),
        ),
        job("search", SEARCH, "search", Progress("--resume")),
        job("run", "run recipe.toml", "run", Progress("")),
        job("compare", "compare spec.toml", "compare", Progress("")),
    ]
}

const SEARCH: &str = "search teacher --scores scores.safetensors --params 26k+-25% --candidates 3 \
    --rungs 2 \
    --data text.txt --eval-data text.txt --eval-samples 2 --seq-len 32 --batch-size 4 --tokens 2k \
    --eval-every 8";

const RECIPE: &str = r#"
[[stages]]
name = "scores"
do = "score"
model = "teacher"
data = ["text.txt"]
samples = 8
seq_len = 32
[[stages]]
name = "pruned"
do = "prune"
model = "teacher"
scores = "scores"
mlp = 24
[[stages]]
name = "distilled"
do = "distill"
teacher = "teacher"
student = "pruned"
data = ["text.txt"]
tokens = "1k"
seq_len = 32
batch_size = 4
checkpoint_every = 4
[[stages]]
name = "evaluated"
do = "eval"
model = "distilled"
data = ["text.txt"]
samples = 4
seq_len = 32
"#;

const SPEC: &str = r#"
model = "teacher"
chain = ["score", "prune", "distill", "eval"]
columns = ["n_params", "loss"]
[all.score]
data = ["text.txt"]
samples = 8
seq_len = 32
[all.prune]
hidden = 24
[all.distill]
data = ["text.txt"]
tokens = 512
seq_len = 32
batch_size = 4
[all.eval]
data = ["text.txt"]
samples = 4
seq_len = 32
[[rows]]
name = "narrow"
prune = { mlp = 24 }
[[rows]]
name = "lower"
prune = { mlp = 24 }
distill = { lr = 1e-5 }
"#;

/// Where faults are tried: inputs, a folder for outputs, and what they are without faults.
struct Bench {
    files: Workspace,
}

impl Bench {
    fn new() -> Self {
        let files = Workspace::with_teacher_and_student()
            .file("recipe.toml", RECIPE)
            .file("spec.toml", SPEC);
        let bench = Bench { files };
        bench.must(
            "score teacher --data text.txt --samples 8 --seq-len 32 --out scores.safetensors",
        );
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.files.at(name)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = self.files.command(&words.replace("{train}", TRAIN));
        command
            .args(["--quiet", "--threads", "1"])
            .stdout(Stdio::null());
        command
    }

    fn must(&self, words: &str) {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words}: {}", stderr(&output));
    }

    /// Runs a job with a fault; FAULTS_COUNT tells how often the program came to where one could
    /// be.
    fn with_fault(&self, words: &str, fault: &Fault) -> Output {
        let mut command = self.command(words);
        command
            .env("LD_PRELOAD", preload().unwrap())
            .env("FAULTS_UNDER", self.at("outs").canonicalize().unwrap());
        command
            .env("FAULTS_COUNT", self.at("counted"))
            .env("FAULTS_OF", fault.of)
            .env("FAULTS_HOW", &fault.how);
        match fault.at {
            At::Operation(k) => command.env("FAULTS_AT", k.to_string()),
            At::Byte(k) => command.env("FAULTS_BYTES", k.to_string()),
        };
        command.output().unwrap()
    }

    /// Operations of a kind that a job comes to, and bytes that it writes.
    fn count(&self, words: &str, of: &'static str) -> (u64, u64) {
        let output = self.with_fault(
            words,
            &Fault {
                of,
                how: "0".into(),
                at: At::Operation(0),
            },
        );
        assert!(output.status.success(), "{words}: {}", stderr(&output));
        let text = fs::read_to_string(self.at("counted")).unwrap();
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        (numbers[0], numbers[1])
    }

    fn clear(&self) {
        fs::remove_dir_all(self.at("outs")).unwrap_or_default();
        fs::create_dir(self.at("outs")).unwrap();
    }
}

#[derive(Debug, Clone)]
struct Fault {
    of: &'static str,
    how: String,
    at: At,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Operation(u64),
    Byte(u64),
}

impl Fault {
    fn cause(&self) -> &'static str {
        match (self.at, self.how.as_str()) {
            (At::Byte(_), _) | (_, "28") => "No space left on device",
            (_, "5") => "Input/output error",
            other => unreachable!("{other:?}"),
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The library, built once; none where there is no C compiler, which is said.
fn preload() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let build = || {
        let dir = tempfile::tempdir().ok()?;
        let library = dir.path().join("faults.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(minitron::root().join("tests/faults/preload.c"))
            .arg("-ldl")
            .status();
        if !built.is_ok_and(|status| status.success()) {
            eprintln!("absent, not tested: a C compiler for tests/faults/preload.c");
            return None;
        }
        Some((dir, library))
    };
    BUILT
        .get_or_init(build)
        .as_ref()
        .map(|(_, library)| library.as_path())
}

/// Digests of a file or of all files in a folder; records without what no run repeats. States to go
/// on from, events and what begins with a dot are left out.
fn tree(path: &Path) -> BTreeMap<String, String> {
    fn visit(root: &Path, path: &Path, found: &mut BTreeMap<String, String>) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_left_out = name.starts_with('.') || ["checkpoint", "logs"].contains(&name.as_str());
        if is_left_out && path != root {
            return;
        }
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                visit(root, &entry.unwrap().path(), found);
            }
            return;
        }
        let is_record = [
            "metrics.jsonl",
            "run.json",
            "compare.json",
            "search.json",
            "result.json",
        ]
        .contains(&name.as_str());
        let content = if name == "compare.md" || (name == "report.html" && path != root) {
            // With times all over it.
            "there".to_owned()
        } else if is_record {
            let text = fs::read_to_string(path).unwrap();
            let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            let whole: Vec<Value> = values
                .by_ref()
                .map_while(Result::ok)
                .map(without_times)
                .collect();
            // What follows the last whole value is torn.
            digest::of_text(&format!(
                "{}{}",
                Value::from(whole),
                text[values.byte_offset()..].trim()
            ))
        } else {
            digest::of_file(path).unwrap()
        };
        found.insert(
            path.strip_prefix(root).unwrap().display().to_string(),
            content,
        );
    }
    let mut found = BTreeMap::new();
    if path.exists() {
        visit(path, path, &mut found);
    }
    found
}

const TIMES: [&str; 6] = [
    "seconds",
    "elapsed_s",
    "per_second",
    "memory",
    "peak_bytes",
    "seconds_saved",
];

fn without_times(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object
                .into_iter()
                .filter(|(key, _)| !TIMES.iter().any(|end| key.ends_with(end)));
            kept.map(|(key, value)| (key, without_times(value)))
                .collect()
        }
        Value::Array(list) => list.into_iter().map(without_times).collect(),
        other => other,
    }
}

/// What a job leaves, with an old artefact in its place before or without.
struct Case<'a> {
    bench: &'a Bench,
    job: &'a Job,
    words: String,
    /// Where `--force` replaces an old artefact: what that is.
    old: Option<BTreeMap<String, String>>,
    new: BTreeMap<String, String>,
}

impl<'a> Case<'a> {
    fn new(bench: &'a Bench, job: &'a Job, is_replacing: bool) -> Self {
        let out = if job.name == "plugins new" {
            format!("outs/{}", job.out)
        } else {
            format!("--out outs/{}", job.out)
        };
        let force = if is_replacing { " --force" } else { "" };
        let mut case = Case {
            bench,
            job,
            words: format!("{} {out}{force}", job.words),
            old: None,
            new: BTreeMap::new(),
        };
        if job.name == "report" && !bench.at("done").exists() {
            bench.must("run recipe.toml --out done");
        }
        bench.clear();
        if is_replacing {
            bench.must(&case.old_words());
            case.old = Some(tree(&case.out()));
        }
        bench.must(&case.words);
        case.new = tree(&case.out());
        assert!(!case.new.is_empty() && case.old.as_ref() != Some(&case.new));
        case
    }

    fn out(&self) -> PathBuf {
        self.bench.at("outs").join(self.job.out)
    }

    /// The job with another result.
    fn old_words(&self) -> String {
        let words = self
            .words
            .replace("--samples 8", "--samples 4")
            .replace("--mlp 24", "--mlp 32");
        words
            .replace("report done", "report done/pruned")
            .replace(" --force", "")
    }

    fn start(&self) {
        self.bench.clear();
        if self.old.is_some() {
            self.bench.must(&self.old_words());
        }
    }

    /// One fault. True where the job failed of it.
    fn try_fault(&self, fault: &Fault) -> bool {
        self.start();
        let output = self.bench.with_fault(&self.words, fault);
        let (text, about) = (stderr(&output), format!("{} with {fault:?}", self.words));
        if fault.how == "kill" {
            assert_eq!(output.status.signal(), Some(9), "{about}: {text}");
        } else if output.status.success() {
            // Where a lock or a remainder could not be removed, or there is another way.
            self.check_new(&about);
            return false;
        } else {
            assert_eq!(output.status.code(), Some(1), "{about}: {text}");
            assert!(
                text.contains(fault.cause()) && text.contains("outs"),
                "{about}: {text}"
            );
            assert!(!text.contains("panicked"), "{about}: {text}");
        }
        match self.job.keeps {
            OldOrNew => self.check_old_or_new(&about),
            Progress(more) => self.check_progress(more, &about),
        }
        true
    }

    fn check_old_or_new(&self, about: &str) {
        let found = tree(&self.out());
        let is_old = found == self.old.clone().unwrap_or_default();
        assert!(
            is_old || found == self.new,
            "{about}: a mixture: {:?}",
            found.keys()
        );
        let force = if is_old || self.old.is_some() {
            ""
        } else {
            " --force"
        };
        self.bench.must(&format!("{}{force}", self.words));
        self.check_new(about);
        let parent = self.out().parent().unwrap().to_path_buf();
        let names: Vec<_> = fs::read_dir(parent)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 1, "{about}: left behind {names:?}");
    }

    fn check_progress(&self, more: &str, about: &str) {
        let is_model = self.out().join("config.json").exists();
        if is_model && self.job.name != "plugins new" {
            assert_eq!(
                tree(&self.out().join("model.safetensors")),
                tree_of(&self.new, "model.safetensors"),
                "{about}"
            );
        }
        if tree(&self.out()) != self.new || !more.is_empty() {
            self.bench.must(&format!("{} {more}", self.words));
        }
        self.check_new(about);
    }

    fn check_new(&self, about: &str) {
        let found = tree(&self.out());
        let differs = |name: &&String| found.get(*name) != self.new.get(*name);
        let differing: Vec<&String> = self
            .new
            .keys()
            .chain(found.keys())
            .filter(differs)
            .collect();
        assert!(differing.is_empty(), "{about}: {differing:?} differ");
    }
}

fn tree_of(tree: &BTreeMap<String, String>, name: &str) -> BTreeMap<String, String> {
    tree.get(name)
        .map(|content| BTreeMap::from([(String::new(), content.clone())]))
        .unwrap_or_default()
}

/// So many of `1..=n`, all where there are no more.
fn some_of(n: u64, wanted: u64, random: &mut SplitMix) -> Vec<u64> {
    if n <= wanted {
        return (1..=n).collect();
    }
    (0..wanted)
        .map(|k| (k * n / wanted) + 1 + random.below((n / wanted) as usize) as u64)
        .collect()
}

/// Write faults of every kind, so many in all.
fn faults(case: &Case, wanted: u64) -> Vec<Fault> {
    let mut random = SplitMix::new(5);
    let mut faults = Vec::new();
    for (of, how) in [
        ("sync", "5"),
        ("rename", "5"),
        ("make", "28"),
        ("remove", "5"),
        ("write", "5"),
    ] {
        case.start();
        let (n, _) = case.bench.count(&case.words, of);
        let at = some_of(n, wanted / 6, &mut random)
            .into_iter()
            .map(At::Operation);
        faults.extend(at.map(|at| Fault {
            of,
            how: how.to_owned(),
            at,
        }));
    }
    case.start();
    let (_, n_bytes) = case.bench.count(&case.words, "write");
    let n_left = wanted.saturating_sub(faults.len() as u64);
    let bytes = some_of(n_bytes, n_left, &mut random)
        .into_iter()
        .map(|k| At::Byte(k - 1));
    faults.extend(bytes.map(|at| Fault {
        of: "write",
        how: "28".into(),
        at,
    }));
    faults
}

fn campaign(job: &Job, n_faults: u64) {
    if preload().is_none() {
        return;
    }
    let bench = Bench::new();
    let replaces: &[bool] = if job.keeps == OldOrNew {
        &[false, true]
    } else {
        &[false]
    };
    let (mut n_tried, mut n_failed) = (0, 0);
    for &is_replacing in replaces {
        let case = Case::new(&bench, job, is_replacing);
        for fault in faults(&case, n_faults / replaces.len() as u64) {
            n_tried += 1;
            n_failed += usize::from(case.try_fault(&fault));
        }
    }
    eprintln!(
        "{}: {n_tried} faults, {n_failed} ended it, each whole or gone on with to the same bytes",
        job.name
    );
}

fn kills(job: &Job, wanted: u64) {
    if preload().is_none() {
        return;
    }
    let bench = Bench::new();
    let case = Case::new(&bench, job, job.keeps == OldOrNew);
    case.start();
    let (n, _) = bench.count(&case.words, "change");
    let places = some_of(n, wanted, &mut SplitMix::new(7));
    for &k in &places {
        case.try_fault(&Fault {
            of: "change",
            how: "kill".into(),
            at: At::Operation(k),
        });
    }
    eprintln!(
        "{}: killed at {} of {n} operations; the same bytes afterwards",
        job.name,
        places.len()
    );
}

fn job(name: &str) -> Job {
    jobs().into_iter().find(|job| job.name == name).unwrap()
}

macro_rules! slow_campaigns {
    ($($test:ident: $name:literal, $n_faults:literal faults, $n_kills:literal kills;)*) => {$(
        mod $test {
            #[test]
            #[ignore = "slow: minutes of faults"]
            fn every_fault_leaves_it_whole() {
                super::campaign(&super::job($name), $n_faults);
            }

            #[test]
            #[ignore = "slow: minutes of killing"]
            fn every_kill_leaves_it_whole() {
                super::kills(&super::job($name), $n_kills);
            }
        }
    )*};
}

slow_campaigns! {
    score: "score", 120 faults, 20 kills;
    score_stream: "score --stream", 120 faults, 40 kills;
    prune: "prune", 120 faults, 40 kills;
    prune_bounded: "prune --max-memory", 120 faults, 40 kills;
    report: "report", 120 faults, 10 kills;
    plugins_new: "plugins new", 120 faults, 10 kills;
    train: "train", 120 faults, 20 kills;
    distill: "distill", 120 faults, 40 kills;
    teacher_cache: "distill --teacher-cache", 120 faults, 20 kills;
    search: "search", 120 faults, 40 kills;
    run: "run", 120 faults, 40 kills;
    compare: "compare", 120 faults, 40 kills;
}

#[test]
fn some_faults_under_commands_leave_them_whole() {
    // Of all: make test-slow.
    for name in ["score", "prune", "plugins new", "train"] {
        campaign(&job(name), 4);
    }
}

#[test]
fn some_kills_of_commands_leave_them_whole() {
    for name in ["score --stream", "prune", "distill", "run"] {
        kills(&job(name), 2);
    }
}

#[test]
fn a_file_system_that_cannot_exchange_folders_still_has_one_or_the_other() {
    if preload().is_none() {
        return;
    }
    let (bench, job) = (Bench::new(), job("prune"));
    let case = Case::new(&bench, &job, true);
    case.start();
    let (n, _) = bench.count(&case.words, "rename");
    // EINVAL, as such file systems say; it comes just before the two renames that then do it.
    let no_exchange = Fault {
        of: "rename",
        how: "22".into(),
        at: At::Operation(n),
    };
    case.start();
    let output = bench.with_fault(&case.words, &no_exchange);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(tree(&case.out()), case.new);
    assert_eq!(fs::read_dir(bench.at("outs")).unwrap().count(), 1);
}

#[test]
fn a_second_process_on_one_output_is_refused() {
    let bench = Bench::new();
    bench.clear();
    fs::write(bench.at("long.txt"), minitron::some_text().repeat(200)).unwrap();
    let slow =
        "train student --data long.txt --seq-len 32 --batch-size 4 --tokens 10M --out outs/slow";
    let mut first = bench.command(slow).spawn().unwrap();
    while !bench.at("outs/slow/metrics.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for second in [format!("{slow} --resume"), format!("{slow} --force")] {
        let output = bench.command(&second).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let expected = "error: recipe: the output `outs/slow` is being written by another process; \
                        wait until it is done, \
                        or give another name\n";
        assert_eq!(text, expected);
    }
    first.kill().unwrap();
    first.wait().unwrap();
    bench.must(
        &slow
            .replace("10M", "1k")
            .replace("outs/slow", "outs/slow --force"),
    );
    assert!(!bench.at("outs/.slow.lock").exists());
}

#[test]
fn reads_that_come_in_small_pieces_change_nothing() {
    let Some(library) = preload() else { return };
    let bench = Bench::new();
    bench.clear();
    let words =
        "score teacher --data text.txt --samples 8 --seq-len 32 --out outs/scores.safetensors";
    let mut command = bench.command(words);
    command
        .env("LD_PRELOAD", library)
        .env("FAULTS_UNDER", bench.files.root().canonicalize().unwrap());
    let output = command
        .env("FAULTS_OF", "read")
        .env("FAULTS_HOW", "short")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        fs::read(bench.at("outs/scores.safetensors")).unwrap(),
        fs::read(bench.at("scores.safetensors")).unwrap()
    );
}

#[test]
fn every_read_that_fails_names_a_file_and_leaves_nothing() {
    if preload().is_none() {
        return;
    }
    let bench = Bench::new();
    let (mut n_tried, words) = (
        0,
        "score teacher --data text.txt --samples 8 --seq-len 32 --out outs/scores",
    );
    for k in (1..).step_by(7) {
        bench.clear();
        let mut command = bench.command(words);
        command
            .env("LD_PRELOAD", preload().unwrap())
            .env("FAULTS_UNDER", bench.files.root().canonicalize().unwrap());
        command
            .env("FAULTS_OF", "read")
            .env("FAULTS_HOW", "5")
            .env("FAULTS_AT", k.to_string());
        let output = command.output().unwrap();
        if output.status.success() {
            break;
        }
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("Input/output error")
                && (text.contains("teacher") || text.contains("text.txt")),
            "{text}"
        );
        assert_eq!(
            fs::read_dir(bench.at("outs")).unwrap().count(),
            0,
            "read {k}"
        );
        n_tried += 1;
    }
    assert!(n_tried > 5, "{n_tried}");
}
