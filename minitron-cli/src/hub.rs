//! Models of the hub, for names that somebody gave: the one place that asks the network. A file
//! stands under its name only after its size and hash were those that the hub announced; what was
//! cut off waits beside it, and is gone on with.

mod listing;
mod snapshot;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use minitron_core::error::{Error, IoContext, Result};
use minitron_core::progress::Progress;
use tracing::{info, info_span};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;

use self::listing::{Announced, Listing, Sibling, is_hex};
use self::snapshot::{CONFIG, is_whole, link};
use crate::output::Bar;

type Response = ureq::http::Response<ureq::Body>;

/// Where models lie unless HF_ENDPOINT says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Without a byte for so long, a connection counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder behind a MODEL: itself, or a hub id's snapshot, fetched where the local cache lacks
/// it.
///
/// # Errors
/// `Data` where the hub does not give it, or gives something else than it announced; `Recipe` for a
/// revision that is none.
pub fn folder(model: &str, bar: &Bar) -> Result<PathBuf> {
    let path = Path::new(model);
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    if path.exists()
        || path.is_absolute()
        || id.split('/').count() != 2
        || !id.split('/').all(is_plain)
    {
        return Ok(path.to_path_buf());
    }
    if !revision.split('/').all(is_plain) {
        return Err(Error::Recipe(format!(
            "`{model}`: expected a branch, tag or commit after @, got `{revision}`"
        )));
    }
    let cache = Cache::from_env();
    let token = cache.token();
    let cache = cache.repo(Repo::with_revision(
        id.to_owned(),
        RepoType::Model,
        revision.to_owned(),
    ));
    if let Some(dir) = cached(&cache, revision) {
        info!(path = %dir.display(), "whole in the cache");
        return Ok(dir);
    }
    let offline = std::env::var("HF_HUB_OFFLINE")
        .unwrap_or_default()
        .to_lowercase();
    if ["1", "true", "yes", "on"].contains(&offline.as_str()) {
        return Err(Error::Data(format!(
            "`{model}` is no folder here and not whole in the cache, and HF_HUB_OFFLINE keeps it \
             from being fetched; unset it, or name a folder"
        )));
    }
    let _span = info_span!("fetch", name = model).entered();
    Hub::new(model, id, revision, token).fetch(&cache, bar)
}

/// A snapshot in the local cache that has a config and all weights.
fn cached(cache: &CacheRepo, revision: &str) -> Option<PathBuf> {
    let by_ref = cache
        .get(CONFIG)
        .and_then(|config| Some(config.parent()?.to_path_buf()));
    // A commit needs no reference to it.
    by_ref
        .into_iter()
        .chain([cache.pointer_path(revision)])
        .find(|dir| is_whole(dir))
}

/// One part of an id, a revision or a path: nothing that leads elsewhere.
fn is_plain(part: &str) -> bool {
    let mut letters = part.chars();
    !part.is_empty()
        && !part.starts_with('.')
        && letters.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// One model there.
struct Hub<'a> {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    model: &'a str,
    id: &'a str,
    revision: &'a str,
}

impl<'a> Hub<'a> {
    fn new(model: &'a str, id: &'a str, revision: &'a str, token: Option<String>) -> Self {
        let endpoint = std::env::var("HF_ENDPOINT")
            .ok()
            .filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint
            .unwrap_or_else(|| ENDPOINT.to_owned())
            .trim_end_matches('/')
            .to_owned();
        let config = Agent::config_builder()
            .https_only(endpoint.starts_with("https:"))
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("minitron/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        Hub {
            agent: config.into(),
            endpoint,
            token,
            model,
            id,
            revision,
        }
    }

    fn failed(&self, cause: impl std::fmt::Display) -> Error {
        Error::Data(format!(
            "`{}` is no folder here, and the hub did not give it: {cause}; check the name and the \
             network",
            self.model
        ))
    }

    /// Every file that is wanted, verified; only then the snapshot that holds them.
    fn fetch(&self, cache: &CacheRepo, bar: &Bar) -> Result<PathBuf> {
        let (commit, files) = self.listing()?;
        let dir = cache.pointer_path(&commit);
        let blobs = dir
            .parent()
            .and_then(Path::parent)
            .unwrap_or(&dir)
            .join("blobs");
        fs::create_dir_all(&blobs).at_path(&blobs)?;
        let n_files = files.len();
        bar.note(&format!(
            "{}: fetching {n_files} files from the hub",
            self.model
        ));
        let sizes = files.iter().map(|file| file.n_bytes);
        bar.start("fetch, bytes", sizes.fold(0, u64::saturating_add));
        let fetched = files
            .iter()
            .try_for_each(|file| self.blob(&commit, file, &blobs, bar));
        bar.finish();
        fetched?;
        fs::create_dir_all(&dir).at_path(&dir)?;
        files.iter().try_for_each(|file| link(&dir, &blobs, file))?;
        cache.create_ref(&commit).at_path(&dir)?;
        match is_whole(&dir) {
            true => Ok(dir),
            false => Err(self.failed("it has no config.json, or not all weights as safetensors")),
        }
    }

    /// The commit, and the files of it that a model may need.
    fn listing(&self) -> Result<(String, Vec<Announced>)> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            self.id,
            encoded(self.revision)
        );
        let mut response = self.get(&url, 0).map_err(|e| self.failed(e))?;
        let text = response
            .body_mut()
            .read_to_string()
            .map_err(|e| self.failed(e))?;
        let Listing { sha, siblings } = serde_json::from_str(&text)
            .map_err(|e| self.failed(format!("no list of files came ({e})")))?;
        if !is_hex(&sha, 40) {
            return Err(self.failed(format!("expected a commit, got `{sha}`")));
        }
        let outside = siblings.iter().find(|one| leads_outside(&one.rfilename));
        if let Some(Sibling { rfilename, .. }) = outside {
            return Err(self.failed(format!(
                "it lists `{rfilename}`, which would lie outside the model's folder"
            )));
        }
        let mut files = Vec::new();
        for sibling in siblings.into_iter().filter(Sibling::is_wanted) {
            files.push(sibling.announced().map_err(|cause| self.failed(cause))?);
        }
        info!(n_files = files.len(), commit = %sha, "listed");
        if files.is_empty() {
            Err(self.failed("the repository is empty"))
        } else {
            Ok((sha, files))
        }
    }

    /// Brings one file, verified, to where the cache keeps it.
    fn blob(&self, commit: &str, file: &Announced, blobs: &Path, bar: &Bar) -> Result<()> {
        let _span = info_span!("fetch file", name = %file.name, n_bytes = file.n_bytes).entered();
        let blob = blobs.join(file.hash.hex());
        let (part, guard) = (blob.with_extension("part"), blob.with_extension("lock"));
        // Another process that wants it too waits, and finds it.
        let lock = File::create(&guard).at_path(&guard)?;
        lock.lock().at_path(&guard)?;
        if blob.is_file() {
            if n_bytes_of(&blob) == file.n_bytes && file.hash.of(&blob)? == file.hash.hex() {
                bar.advance(file.n_bytes, "");
                return Ok(());
            }
            // Of a program that did not look.
            fs::remove_file(&blob).at_path(&blob)?;
        }
        if n_bytes_of(&part) > file.n_bytes {
            fs::remove_file(&part).at_path(&part)?;
        }
        let is_resumed = n_bytes_of(&part) > 0;
        self.append(commit, file, &part, bar)?;
        if is_resumed && file.hash.of(&part)? != file.hash.hex() {
            info!(name = %file.name, "what was begun does not fit; from the start");
            fs::remove_file(&part).at_path(&part)?;
            self.append(commit, file, &part, bar)?;
        }
        let found = file.hash.of(&part)?;
        if found != file.hash.hex() {
            fs::remove_file(&part).at_path(&part)?;
            let message = format!(
                "{}: expected hash {}, got {found}",
                file.name,
                file.hash.hex()
            );
            return Err(Error::Data(format!(
                "`{}`: {message}; nothing of it was kept, try again",
                self.model
            )));
        }
        fs::rename(&part, &blob).at_path(&blob)
    }

    /// Fetches what a begun file lacks.
    fn append(&self, commit: &str, file: &Announced, part: &Path, bar: &Bar) -> Result<()> {
        let path = file
            .name
            .split('/')
            .map(encoded)
            .collect::<Vec<_>>()
            .join("/");
        let url = format!("{}/{}/resolve/{commit}/{path}", self.endpoint, self.id);
        let begun = n_bytes_of(part);
        bar.advance(begun, "");
        if begun == file.n_bytes && part.is_file() {
            return Ok(());
        }
        let response = self
            .get(&url, begun)
            .map_err(|e| self.failed(format!("{}: {e}", file.name)))?;
        let range = response
            .headers()
            .get("content-range")
            .and_then(|range| range.to_str().ok());
        // Who ignores the range sends everything.
        let is_rest =
            begun > 0 && range.is_some_and(|range| range.starts_with(&format!("bytes {begun}-")));
        let out = match is_rest {
            true => OpenOptions::new().append(true).open(part),
            false => File::create(part),
        }
        .at_path(part)?;
        let skipped = if is_rest { begun } else { 0 };
        let left = file.n_bytes.saturating_sub(skipped);
        info!(name = %file.name, begun = skipped, n_bytes = left, "fetching");
        self.receive(response, left, file, part, out, bar)
    }

    /// Writes what comes, and refuses more or less than was announced.
    fn receive(
        &self,
        response: Response,
        mut left: u64,
        file: &Announced,
        part: &Path,
        mut out: File,
        bar: &Bar,
    ) -> Result<()> {
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|e| self.cut_off(file, part, &e))?;
            let bytes = buffer.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            if n as u64 > left {
                drop(out);
                fs::remove_file(part).at_path(part)?;
                let (name, n_bytes) = (&file.name, file.n_bytes);
                let message = format!("{name}: more came than the {n_bytes} bytes announced");
                return Err(Error::Data(format!(
                    "`{}`: {message}; nothing of it was kept",
                    self.model
                )));
            }
            out.write_all(bytes).at_path(part)?;
            left = left.saturating_sub(n as u64);
            bar.advance(n as u64, &file.name);
        }
        out.sync_all().at_path(part)?;
        if left > 0 {
            Err(self.cut_off(file, part, &"the connection ended"))
        } else {
            Ok(())
        }
    }

    fn cut_off(&self, file: &Announced, part: &Path, cause: &dyn std::fmt::Display) -> Error {
        let (name, begun, n_bytes) = (&file.name, n_bytes_of(part), file.n_bytes);
        Error::Data(format!(
            "`{}`: {name}: expected {n_bytes} bytes, got {begun} ({cause}); the same command goes \
             on there",
            self.model
        ))
    }

    fn get(&self, url: &str, begin: u64) -> std::result::Result<Response, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if begin > 0 {
            request = request.header("Range", format!("bytes={begin}-"));
        }
        request.call()
    }
}

/// Whether a file of that name would lie elsewhere than in the model's folder.
fn leads_outside(name: &str) -> bool {
    let mut parts = name.split('/');
    name.contains('\\') || parts.any(|part| part.is_empty() || part == "..")
}

/// An absent file has none.
fn n_bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

/// As a part of a URL.
fn encoded(word: &str) -> String {
    let mut text = String::new();
    for byte in word.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            other => text += &format!("%{other:02X}"),
        }
    }
    text
}
