//! From common flags to what jobs share: device, threads, hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::pipeline::{Context, PluginFile, Recipe};
use minitron_core::progress::Interrupt;
use minitron_core::registry::Registry;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tch::{Cuda, Device};

use crate::args::Common;
use crate::output::Bar;

/// Builds the shared context and hands it to a command.
pub fn with_context<T>(
    common: &Common,
    force: bool,
    recipe: Option<&Recipe>,
    job: impl FnOnce(&Context) -> Result<T>,
) -> Result<T> {
    minitron_plugins::make_cuda_visible();
    if let Some(threads) = common.threads {
        if threads == 0 {
            return Err(Error::Recipe("--threads: expected at least 1".into()));
        }
        tch::set_num_threads(i32::from(threads));
        // Tokenising. Only fails where the pool runs already, and nothing has been tokenised yet.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global();
    }
    let registry = registry(common, recipe)?;
    let bar = Bar::new(common.quiet);
    let interrupt = Interrupt::default();
    catch_signals(&interrupt)?;
    let resolve = |model: &str| resolve(model, &bar);
    let context = Context {
        registry: &registry,
        defaults: &minitron_plugins::BuiltIn,
        device: device(&common.device)?,
        kind: common.dtype.kind(),
        seed: common.seed.or(recipe.and_then(|recipe| recipe.seed)).unwrap_or(0),
        force,
        progress: &bar,
        interrupt: &interrupt,
        resolve: &resolve,
    };
    job(&context)
}

/// The linked plugins, and those of the libraries that the command line, the recipe and the search path name.
pub fn registry(common: &Common, recipe: Option<&Recipe>) -> Result<Registry> {
    // Naming something of the crate is what keeps its registrations linked.
    minitron_plugins::link();
    let named = common.plugin.iter().map(|path| PluginFile { path: path.clone(), sha256: None });
    let wanted: Vec<PluginFile> = recipe.iter().flat_map(|recipe| recipe.plugins.clone()).chain(named).collect();
    let search_path = std::env::var("MINITRON_PLUGIN_PATH").ok();
    minitron_plugins::find(&wanted, search_path.as_deref())?.iter().try_fold(Registry::linked()?, |registry, path| {
        registry.with_library(digest::of_file(path)?, minitron_plugins::open(path)?)
    })
}

/// While a training listens, a first signal asks it to end and a second one ends it at once; at other times a signal does
/// what it always does.
fn catch_signals(interrupt: &Interrupt) -> Result<()> {
    /// As shells say of a program that Ctrl-C ended.
    const ENDED: i32 = 130;
    for signal in [SIGINT, SIGTERM] {
        // In this order when a signal comes.
        flag::register_conditional_default(signal, interrupt.deaf.clone())
            .and_then(|_| flag::register_conditional_shutdown(signal, ENDED, interrupt.asked.clone()))
            .and_then(|_| flag::register(signal, interrupt.asked.clone()))
            .map_err(|e| Error::io(format!("signal {signal}"), e))?;
    }
    Ok(())
}

fn device(word: &str) -> Result<Device> {
    let n_cuda = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    let index = match word {
        "cpu" => return Ok(Device::Cpu),
        "auto" if n_cuda == 0 => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|index| index.parse::<i64>().ok()) {
            Some(index) => index,
            None => return Err(Error::Recipe(format!("--device: expected auto, cpu, cuda or cuda:N, got `{other}`"))),
        },
    };
    if (0..n_cuda).contains(&index) {
        return Ok(Device::Cuda(index as usize));
    }
    Err(Error::Recipe(format!(
        "--device {word}: {n_cuda} CUDA devices are visible; a CUDA build of libtorch is needed (make libtorch CUDA=1)"
    )))
}

/// The folder behind a MODEL: itself, or a hub id's snapshot, downloaded where the local cache lacks it.
fn resolve(model: &str, bar: &Bar) -> Result<PathBuf> {
    let path = Path::new(model);
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let is_id = id.split('/').count() == 2 && id.split('/').all(|part| plain(part) && !part.starts_with('.'));
    if path.exists() || !is_id || path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    match cached(&repo) {
        Some(dir) => Ok(dir),
        None => download(repo, model, bar),
    }
}

/// A snapshot in the local cache that has a config and weights.
fn cached(repo: &Repo) -> Option<PathBuf> {
    let dir = Cache::from_env().repo(repo.clone()).get("config.json")?.parent()?.to_path_buf();
    let has = |name: &str| dir.join(name).exists();
    (has("model.safetensors") || has("model.safetensors.index.json")).then_some(dir)
}

fn download(repo: Repo, model: &str, bar: &Bar) -> Result<PathBuf> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::Data(format!(
            "`{model}` is no folder here, and the hub did not give it: {e}; check the name and the network"
        ))
    };
    let api: ApiRepo = ApiBuilder::from_env().build().map_err(|e| failed(&e))?.repo(repo);
    let info = api.info().map_err(|e| failed(&e))?;
    let wanted = |name: &str| {
        !name.contains('/')
            && [".json", ".safetensors", ".model", ".txt", ".jinja"].iter().any(|end| name.ends_with(end))
    };
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).filter(|name| wanted(name)).collect();
    bar.note(&format!("{model}: fetching {} files from the hub", names.len()));
    let mut dir = None;
    for name in &names {
        let path = api.get(name).map_err(|e| failed(&e))?;
        dir = path.parent().map(Path::to_path_buf);
    }
    dir.ok_or_else(|| failed(&"the repository is empty"))
}
