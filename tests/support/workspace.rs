//! A folder of a test's own: models, texts and commands that run in it.
// Set-up of tests: what fails here is the test's own fault.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use minitron_engine::data::DataSpec;
use serde_json::Value;
use tempfile::TempDir;

use crate::{binary, some_text, tiny_llama, write_tiny_with_tokenizer};

/// Gone with the test.
#[derive(Debug)]
pub struct Workspace {
    dir: TempDir,
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace {
            dir: tempfile::tempdir().unwrap(),
        }
    }
}

impl Workspace {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// With two small Llamas, `teacher` and `student`, and `text.txt`.
    pub fn with_teacher_and_student() -> Self {
        let workspace =
            Self::new()
                .model("teacher", &tiny_llama(), 1)
                .model("student", &tiny_llama(), 2);
        workspace.text("text.txt")
    }

    /// Adds an untrained model with the demo's tokenizer.
    #[must_use]
    pub fn model(self, name: &str, config: &Value, seed: u64) -> Self {
        write_tiny_with_tokenizer(&self.at(name), config.clone(), seed).unwrap();
        self
    }

    /// Adds a few kilobytes of text.
    #[must_use]
    pub fn text(self, name: &str) -> Self {
        self.file(name, some_text())
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.write(name, bytes);
        self
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Where something in it lies.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The same as text.
    pub fn path(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// One of its files as data.
    pub fn data(&self, name: &str) -> Vec<DataSpec> {
        vec![self.path(name).parse().unwrap()]
    }

    /// Writes a file, and the folders that it lies in.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    /// What a file holds.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The same as JSON.
    pub fn value(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A command in it, in one thread: words are parted by white space.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(words.split_whitespace())
            .current_dir(self.root())
            .env("OMP_NUM_THREADS", "1");
        command
            .env_remove("MINITRON_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs one.
    pub fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs one that succeeds, with `--json`.
    pub fn json(&self, words: &str) -> Value {
        let output = self.run(&format!("{words} --json"));
        assert!(
            output.status.success(),
            "{words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
