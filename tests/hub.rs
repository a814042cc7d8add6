#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use minitron::{registry, tiny_llama, write_tiny};
use minitron_core::checkpoint::{Config, WriteOptions, write_model};
use minitron_core::digest;
use minitron_core::model::fresh_weights;
use minitron_core::spec::ModelSpec;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server does with a file.
#[derive(Clone)]
enum Answer {
    /// Gives what is asked for.
    Gives(Vec<u8>),
    /// Announces all, sends so many bytes of what is asked for and hangs up; at the next request,
    /// as [`Answer::Gives`].
    CutsOff(Vec<u8>, usize),
    /// Sends everything whatever is asked for.
    IgnoresRanges(Vec<u8>),
    /// Announces no length, and ends early.
    EndsEarly(Vec<u8>, usize),
    /// Refuses.
    Status(u16),
}

/// A hub of one model on this machine, and the cache of whoever asks it.
struct Hub {
    dir: TempDir,
    port: u16,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    /// Paths asked for, with the range where there was one.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_tiny(&dir.path().join("model"), &tiny_llama(), 1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answers, asked) = (Arc::default(), Arc::default());
        let hub = Hub {
            dir,
            port,
            answers,
            asked,
        };
        let (answers, asked) = (hub.answers.clone(), hub.asked.clone());
        std::thread::spawn(move || {
            listener
                .incoming()
                .flatten()
                .for_each(|stream| serve(stream, &answers, &asked))
        });
        hub.list(&hub.files());
        for name in ["config.json", "model.safetensors"] {
            hub.answer(name, Answer::Gives(hub.bytes(name)));
        }
        hub
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("model").join(name)).unwrap()
    }

    /// As the hub announces them: a small file by git's hash, a large one by its own.
    fn files(&self) -> Vec<Value> {
        let config = self.bytes("config.json");
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", config.len()));
        hasher.update(&config);
        let blob_id: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let weights = self.dir.path().join("model/model.safetensors");
        let (n_bytes, sha256) = (
            self.bytes("model.safetensors").len(),
            digest::of_file(&weights).unwrap(),
        );
        vec![
            json!({ "rfilename": "config.json", "size": config.len(), "blobId": blob_id }),
            json!({ "rfilename": "model.safetensors", "size": n_bytes, "blobId": "0".repeat(40),
                    "lfs": { "sha256": sha256, "size": n_bytes, "pointerSize": 134 } }),
            json!({ "rfilename": "README.md", "size": 3 }),
            json!({ "rfilename": "onnx/model.json", "size": 3 }),
        ]
    }

    fn list(&self, files: &[Value]) {
        let listing = json!({ "id": "org/tiny", "sha": COMMIT, "siblings": files }).to_string();
        let path = "/api/models/org/tiny/revision/main?blobs=true".to_owned();
        self.answers
            .lock()
            .unwrap()
            .insert(path, Answer::Gives(listing.into_bytes()));
    }

    fn answer(&self, name: &str, answer: Answer) {
        self.answers
            .lock()
            .unwrap()
            .insert(format!("/org/tiny/resolve/{COMMIT}/{name}"), answer);
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(minitron::binary());
        command
            .args(words.split_whitespace())
            .current_dir(self.dir.path());
        for name in [
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "HF_HUB_OFFLINE",
        ] {
            command.env_remove(name);
        }
        let endpoint = format!("http://127.0.0.1:{}/", self.port);
        command
            .env("HF_ENDPOINT", endpoint)
            .env("HF_HOME", self.dir.path().join("home"));
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// Fetches and describes the model, which succeeds.
    fn inspect(&self) -> Value {
        let output = self.run("inspect org/tiny --json --quiet");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Fails to fetch the model: the data are at fault. What is said.
    fn failure(&self) -> String {
        let output = self.run("inspect org/tiny --json --quiet");
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["error"]["kind"], json!("data"));
        error["error"]["message"].as_str().unwrap().to_owned()
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("home/hub/models--org--tiny")
    }

    /// Names of what the cache keeps of files, locks left out.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache().join("blobs"))
            .into_iter()
            .flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
        names.sort();
        names
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn weights_hash(&self) -> String {
        self.files()[1]["lfs"]["sha256"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Nothing stands under a name that a model would be read by.
    fn assert_no_snapshot(&self) {
        assert!(!self.cache().join("snapshots").exists() && !self.cache().join("refs").exists());
    }
}

/// One request, one answer.
fn serve(
    mut stream: TcpStream,
    answers: &Mutex<BTreeMap<String, Answer>>,
    asked: &Mutex<Vec<String>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let path = lines
        .next()
        .unwrap_or_default()
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let range = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    let begin: usize = range.as_ref().map_or(0, |range| {
        range["bytes=".len()..range.len() - 1].parse().unwrap()
    });
    asked
        .lock()
        .unwrap()
        .push(range.map_or(path.clone(), |range| format!("{path} {range}")));
    let answer = answers
        .lock()
        .unwrap()
        .get(&path)
        .cloned()
        .unwrap_or(Answer::Status(404));
    let (head, body) = match answer {
        Answer::Gives(bytes) => (head(begin, bytes.len()), bytes[begin..].to_vec()),
        Answer::CutsOff(bytes, n) => {
            let part = bytes[begin..begin + n].to_vec();
            let head = head(begin, bytes.len());
            answers.lock().unwrap().insert(path, Answer::Gives(bytes));
            (head, part)
        }
        Answer::IgnoresRanges(bytes) => (head(0, bytes.len()), bytes),
        Answer::EndsEarly(bytes, n) => ("HTTP/1.1 200 OK\r\n".to_owned(), bytes[..n].to_vec()),
        Answer::Status(status) => (
            format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n"),
            Vec::new(),
        ),
    };
    // Who asked may have hung up.
    let _ = stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(&body);
}

fn head(begin: usize, len: usize) -> String {
    match begin {
        0 => format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n"),
        _ => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes \
             {begin}-{}/{len}\r\ncontent-length: {}\r\n",
            len - 1,
            len - begin
        ),
    }
}

#[test]
fn a_model_is_fetched_once_and_verified() {
    let hub = Hub::new();
    assert_eq!(hub.inspect()["architecture"], json!("llama"));
    let asked = hub.take_asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked[0].starts_with("/api/models/org/tiny/revision/main"),
        "{asked:?}"
    );
    let snapshot = hub.cache().join("snapshots").join(COMMIT);
    assert!(
        fs::read(snapshot.join("model.safetensors")).unwrap() == hub.bytes("model.safetensors")
    );
    assert_eq!(
        fs::read_to_string(hub.cache().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(
        hub.blobs().iter().all(|name| !name.ends_with(".part")),
        "{:?}",
        hub.blobs()
    );

    hub.inspect();
    let by_commit = hub
        .command(&format!("inspect org/tiny@{COMMIT}"))
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(
        by_commit.status.success(),
        "{}",
        String::from_utf8_lossy(&by_commit.stderr)
    );
    assert_eq!(hub.take_asked(), [""; 0]);
}

#[test]
fn wrong_bytes_are_refused_and_nothing_of_them_is_kept() {
    let hub = Hub::new();
    let mut bytes = hub.bytes("model.safetensors");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    hub.answer("model.safetensors", Answer::Gives(bytes));
    let said = hub.failure();
    assert!(
        said.contains(&format!(
            "model.safetensors: expected hash {}, got ",
            hub.weights_hash()
        )),
        "{said}"
    );
    hub.assert_no_snapshot();
    assert_eq!(hub.blobs().len(), 1, "{:?}", hub.blobs());

    let mut config = hub.bytes("config.json");
    config.push(b' ');
    fs::remove_dir_all(hub.cache()).unwrap();
    hub.answer(
        "config.json",
        Answer::EndsEarly(config.clone(), config.len()),
    );
    let said = hub.failure();
    assert!(
        said.contains(&format!(
            "config.json: more came than the {} bytes announced",
            config.len() - 1
        )),
        "{said}"
    );
    assert_eq!(hub.blobs(), [""; 0]);
}

#[test]
fn a_body_that_ends_early_is_no_file_and_the_next_call_goes_on_with_it() {
    let hub = Hub::new();
    let (bytes, blob) = (hub.bytes("model.safetensors"), hub.weights_hash());
    for answer in [
        Answer::CutsOff(bytes.clone(), 5000),
        Answer::EndsEarly(bytes.clone(), 5000),
    ] {
        fs::remove_dir_all(hub.cache()).unwrap_or_default();
        hub.answer("model.safetensors", answer);
        let said = hub.failure();
        assert!(
            said.contains(&format!(
                "model.safetensors: expected {} bytes, got 5000 (",
                bytes.len()
            )),
            "{said}"
        );
        assert!(said.ends_with("the same command goes on there"), "{said}");
        hub.assert_no_snapshot();
        assert!(
            hub.blobs().contains(&format!("{blob}.part")) && !hub.blobs().contains(&blob),
            "{:?}",
            hub.blobs()
        );
        hub.take_asked();
        hub.answer("model.safetensors", Answer::Gives(bytes.clone()));
        hub.inspect();
        let asked = hub.take_asked();
        // What was whole is not fetched again.
        assert_eq!(
            asked[1..],
            [format!(
                "/org/tiny/resolve/{COMMIT}/model.safetensors bytes=5000-"
            )],
            "{asked:?}"
        );
        assert!(
            hub.blobs().contains(&blob) && hub.blobs().len() == 2,
            "{:?}",
            hub.blobs()
        );
    }
}

#[test]
fn what_was_begun_is_dropped_where_it_does_not_fit() {
    let hub = Hub::new();
    let (bytes, blob) = (hub.bytes("model.safetensors"), hub.weights_hash());
    let part = hub.cache().join("blobs").join(format!("{blob}.part"));
    let begin = |content: &[u8]| {
        fs::remove_dir_all(hub.cache()).unwrap_or_default();
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, content).unwrap();
    };
    // Of another file; longer than it can be; whole; and a server that knows no ranges.
    let cases = [
        (vec![7; 100], Answer::Gives(bytes.clone()), 2),
        (vec![7; bytes.len() + 1], Answer::Gives(bytes.clone()), 1),
        (bytes.clone(), Answer::Gives(bytes.clone()), 0),
        (vec![7; 100], Answer::IgnoresRanges(bytes.clone()), 1),
    ];
    for (content, answer, n_requests) in cases {
        begin(&content);
        hub.answer("model.safetensors", answer);
        hub.inspect();
        let asked = hub.take_asked();
        assert_eq!(
            asked
                .iter()
                .filter(|path| path.contains("model.safetensors"))
                .count(),
            n_requests,
            "{asked:?}"
        );
        assert!(!part.exists());
    }
    // A file under its own name is looked at as well.
    fs::remove_dir_all(hub.cache().join("refs")).unwrap();
    fs::write(hub.cache().join("blobs").join(&blob), "damaged").unwrap();
    fs::remove_dir_all(hub.cache().join("snapshots")).unwrap();
    hub.inspect();
    assert!(fs::read(hub.cache().join("blobs").join(&blob)).unwrap() == bytes);
}

#[test]
fn a_hub_that_refuses_or_announces_nonsense_gives_no_model() {
    let hub = Hub::new();
    hub.answer("model.safetensors", Answer::Status(404));
    let said = hub.failure();
    assert!(
        said.contains("the hub did not give it: model.safetensors: ") && said.contains("404"),
        "{said}"
    );
    hub.assert_no_snapshot();
    let unknown = hub.run("inspect org/other");
    assert_eq!(unknown.status.code(), Some(1));
    hub.take_asked();

    for name in [
        "../config.json",
        "a/../../../config.json",
        "/config.json",
        "..\\config.json",
    ] {
        let mut files = hub.files();
        files.push(json!({ "rfilename": name, "size": 1, "blobId": "0".repeat(40) }));
        hub.list(&files);
        let said = hub.failure();
        assert!(
            said.contains("which would lie outside the model's folder"),
            "{said}"
        );
        assert_eq!(hub.take_asked().len(), 1, "{name}: something was fetched");
    }
    let mut files = hub.files();
    for blob_id in [json!("../../../../config.json"), json!(null), json!("ABC")] {
        files[0]["blobId"] = blob_id;
        hub.list(&files);
        let said = hub.failure();
        assert!(
            said.contains("it announces no size and hash of `config.json` to verify it by"),
            "{said}"
        );
    }
    let revision = hub.run("inspect org/tiny@../../main");
    assert_eq!(
        revision.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&revision.stderr)
    );
}

#[test]
fn a_snapshot_that_lacks_a_shard_is_not_whole() {
    let hub = Hub::new();
    let config = Config::load(&hub.dir.path().join("model/config.json")).unwrap();
    let weights = fresh_weights(&ModelSpec::from_config(&config, &registry()).unwrap(), 1).unwrap();
    let sharded = hub.dir.path().join("sharded");
    fs::create_dir(&sharded).unwrap();
    let options = WriteOptions {
        max_shard_bytes: 30_000,
        ..WriteOptions::default()
    };
    write_model(&sharded, &config, &weights, None, options).unwrap();
    let mut files = Vec::new();
    for entry in fs::read_dir(&sharded).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (
            path.file_name().unwrap().to_str().unwrap(),
            fs::read(&path).unwrap(),
        );
        files.push(
            json!({ "rfilename": name, "lfs": { "sha256": digest::of_file(&path).unwrap(),
                "size": bytes.len() } }),
        );
        hub.answer(name, Answer::Gives(bytes));
    }
    assert!(files.len() > 3, "{files:?}");
    hub.list(&files);
    hub.inspect();
    let shards = fs::read_dir(hub.cache().join("snapshots").join(COMMIT))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = shards
        .into_iter()
        .find(|path| path.display().to_string().contains("model-00002-of-"))
        .unwrap();
    fs::remove_file(&shard).unwrap();
    hub.take_asked();
    let offline = hub
        .command("inspect org/tiny")
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&offline.stderr).into_owned();
    assert_eq!(
        (offline.status.code(), hub.take_asked().len()),
        (Some(1), 0),
        "{said}"
    );
    assert!(
        said.contains("not whole in the cache, and HF_HUB_OFFLINE keeps it from being fetched"),
        "{said}"
    );
    hub.inspect();
    // The list alone: all files are there, under their hashes.
    assert_eq!((shard.is_file(), hub.take_asked().len()), (true, 1));
}

#[test]
fn folders_of_modules_and_templates_come_along_and_without_their_settings_a_snapshot_is_not_whole()
{
    let hub = Hub::new();
    let module = |idx: usize, kind: &str| {
        let path = if idx == 0 {
            String::new()
        } else {
            format!("{idx}_{kind}")
        };
        json!({ "idx": idx, "name": idx.to_string(), "path": path,
            "type": format!("sentence_transformers.models.{kind}") })
    };
    let modules = json!([
        module(0, "Transformer"),
        module(1, "Pooling"),
        module(2, "Dense"),
        module(3, "Normalize")
    ]);
    let wanted = [
        ("modules.json", modules.to_string()),
        (
            "1_Pooling/config.json",
            r#"{"word_embedding_dimension":32,"pooling_mode_mean_tokens":true}"#.to_owned(),
        ),
        (
            "2_Dense/config.json",
            r#"{"in_features":32,"out_features":5}"#.to_owned(),
        ),
        ("2_Dense/model.safetensors", "weights".to_owned()),
        (
            "additional_chat_templates/tool_use.jinja",
            "{{ 1 }}".to_owned(),
        ),
        ("LICENSE.txt", "Free.".to_owned()),
    ];
    let others = [
        "1_Pooling/deeper/config.json",
        "openvino/config.json",
        "2_Dense/pytorch_model.bin",
        "model.onnx",
    ];
    let mut files = hub.files();
    let of = hub.dir.path().join("file");
    for (name, text) in wanted
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .chain(others.map(|name| (name, "{}")))
    {
        fs::write(&of, text).unwrap();
        let lfs = json!({ "sha256": digest::of_file(&of).unwrap(), "size": text.len() });
        files.push(json!({ "rfilename": name, "lfs": lfs }));
        hub.answer(name, Answer::Gives(text.as_bytes().to_vec()));
    }
    hub.list(&files);
    hub.inspect();
    let asked = hub.take_asked();
    assert_eq!(asked.len(), 1 + 2 + wanted.len(), "{asked:?}");
    assert!(
        others
            .iter()
            .all(|other| asked.iter().all(|path| !path.ends_with(other))),
        "{asked:?}"
    );
    let snapshot = hub.cache().join("snapshots").join(COMMIT);
    for (name, text) in &wanted {
        assert_eq!(
            fs::read_to_string(snapshot.join(name)).unwrap(),
            *text,
            "{name}"
        );
    }
    for name in ["1_Pooling/config.json", "2_Dense/config.json"] {
        fs::remove_file(snapshot.join(name)).unwrap();
        let offline = hub
            .command("inspect org/tiny")
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&offline.stderr).into_owned();
        assert!(
            offline.status.code() == Some(1) && said.contains("not whole in the cache"),
            "{name}: {said}"
        );
        hub.inspect();
        // The list alone: all files are there, under their hashes.
        assert_eq!(
            (snapshot.join(name).is_file(), hub.take_asked().len()),
            (true, 1),
            "{name}"
        );
    }
}

#[test]
fn log_lines_tell_of_every_file_that_is_fetched() {
    let hub = Hub::new();
    let output = hub.run("inspect org/tiny --log info");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for file in ["config.json", "model.safetensors"] {
        assert!(
            said.lines()
                .any(|line| line.contains("minitron::hub") && line.contains(file)),
            "{said}"
        );
    }
    assert!(
        said.lines()
            .any(|line| line == "org/tiny: fetching 2 files from the hub"),
        "{said}"
    );
}
