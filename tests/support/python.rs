//! Python scripts: one process imports PyTorch and `transformers`, and runs each in a fork.
// Set-up of tests: what fails here is the test's own fault.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::root;

/// The Python of the interop tests, where it was set up (`make test` does).
pub fn python() -> Option<PathBuf> {
    let python = root().join(".deps/venv/bin/python");
    python.exists().then_some(python)
}

/// The process that forks: `python.py`, which says how it is asked.
struct Server {
    /// It ends when its input does, with this process.
    _child: Child,
    socket: PathBuf,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(python().unwrap())
            .env("HF_DATASETS_OFFLINE", "1")
            .env("HF_HUB_OFFLINE", "1")
            // Threads wait for each other actively, beside other tests; those that NumPy begins
            // when it is imported forbid forks.
            .env("OMP_NUM_THREADS", "1")
            .env("OPENBLAS_NUM_THREADS", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TRANSFORMERS_VERBOSITY", "error")
            .arg(root().join("tests/support/python.py"))
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut socket = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut socket)
            .unwrap();
        let socket = PathBuf::from(socket.trim_end());
        assert!(socket.exists(), "tests/support/python.py did not start");
        Server {
            _child: child,
            socket,
        }
    }

    fn ask(script: &Path, words: Vec<String>, talks: bool) -> UnixStream {
        static SHARED: OnceLock<Server> = OnceLock::new();
        let server = SHARED.get_or_init(Server::start);
        let argv = [vec![script.display().to_string()], words].concat();
        let mut connection = UnixStream::connect(&server.socket).unwrap();
        writeln!(connection, "{}", json!({ "argv": argv, "talks": talks })).unwrap();
        connection
    }
}

fn in_utf8<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Vec<String> {
    let word = |word: S| word.as_ref().to_str().unwrap().to_owned();
    words.into_iter().map(word).collect()
}

/// Runs a script to its end, from the repository's root, as `python SCRIPT WORDS` does.
pub fn run_python<S: AsRef<OsStr>>(script: &Path, words: impl IntoIterator<Item = S>) -> Output {
    let mut answer = Vec::new();
    Server::ask(script, in_utf8(words), false)
        .read_to_end(&mut answer)
        .unwrap();
    let line = answer.iter().position(|&byte| byte == b'\n').unwrap();
    let head: Value = serde_json::from_slice(&answer[..line]).unwrap();
    let number = |name: &str| head[name].as_i64().unwrap();
    let (stdout, stderr) = answer[line + 1..].split_at(number("stdout") as usize);
    Output {
        status: ExitStatus::from_raw(number("status") as i32),
        stdout: stdout.to_vec(),
        stderr: stderr.to_vec(),
    }
}

/// Starts a script whose input and output this is; it ends when its input does.
pub fn talk_to_python(script: &Path, words: &[&str]) -> UnixStream {
    Server::ask(script, in_utf8(words), true)
}
