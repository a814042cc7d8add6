//! From common flags to what jobs share: device, threads, plugins, signals.

use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::progress::{Interrupt, Recorder};
use minitron_core::registry::Registry;
use minitron_engine::jobs::Context;
use minitron_engine::recipe::{PluginFile, Recipe};
use serde_json::{Value, json};
use signal_hook::consts::signal::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use tch::{Cuda, Device};

use crate::args::Common;
use crate::hub;
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
        let most =
            std::thread::available_parallelism().map_or(64, |n| n.get().saturating_mul(4).max(64));
        if threads == 0 {
            return Err(Error::Recipe("--threads: expected at least 1".into()));
        }
        if usize::from(threads) > most {
            return Err(Error::Recipe(format!(
                "--threads: expected at most {most} on this machine, got {threads}"
            )));
        }
        tch::set_num_threads(i32::from(threads));
        // Tokenising. Only fails where the pool runs already, and nothing has been tokenised yet.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global();
    }
    let registry = registry(common, recipe)?;
    let bar = Bar::new(common.quiet);
    let recorder = Recorder::new(&bar);
    let interrupt = Interrupt::default();
    catch_signals(&interrupt)?;
    let context = Context {
        registry: &registry,
        defaults: &minitron_plugins::BuiltIn,
        device: device(&common.device)?,
        kind: common.dtype.kind(),
        seed: common
            .seed
            .or(recipe.and_then(|recipe| recipe.seed))
            .unwrap_or(0),
        force,
        progress: &recorder,
        interrupt: &interrupt,
        resolve: &|model| hub::folder(model, &bar),
    };
    job(&context)
}

/// What a single job came to; `warnings` lists what it warned of, where it did.
pub fn single(
    common: &Common,
    force: bool,
    job: impl FnOnce(&Context) -> Result<Value>,
) -> Result<Value> {
    with_context(common, force, None, |context| {
        let mut report = job(context)?;
        let warnings = context.progress.warnings();
        if let Some(report) = report.as_object_mut().filter(|_| !warnings.is_empty()) {
            report.entry("warnings").or_insert_with(|| json!(warnings));
        }
        Ok(report)
    })
}

/// The linked plugins, and those of the libraries that the command line, the recipe and the search
/// path name.
pub fn registry(common: &Common, recipe: Option<&Recipe>) -> Result<Registry> {
    // Naming something of the crate is what keeps its registrations linked.
    minitron_plugins::link();
    let named = common.plugin.iter().map(|path| PluginFile {
        path: path.clone(),
        sha256: None,
    });
    let wanted: Vec<PluginFile> = recipe
        .iter()
        .flat_map(|recipe| recipe.plugins.clone())
        .chain(named)
        .collect();
    let search_path = std::env::var("MINITRON_PLUGIN_PATH").ok();
    minitron_plugins::find(&wanted, search_path.as_deref())?
        .iter()
        .try_fold(Registry::linked()?, |registry, path| {
            registry.with_library(digest::of_file(path)?, minitron_plugins::open(path)?)
        })
}

/// While a training listens, a first signal asks it to end and a second one ends it at once; at
/// other times a signal does what it always does.
fn catch_signals(interrupt: &Interrupt) -> Result<()> {
    /// As shells say of a program that Ctrl-C ended.
    const ENDED: i32 = 130;
    // A write beyond the limit on file sizes (`ulimit -f`) fails, and its error says so, instead of
    // ending the process.
    flag::register(SIGXFSZ, std::sync::Arc::default())
        .map_err(|e| Error::io("signal SIGXFSZ", e))?;
    for signal in [SIGINT, SIGTERM] {
        // In this order when a signal comes.
        flag::register_conditional_default(signal, interrupt.deaf.clone())
            .and_then(|_| {
                flag::register_conditional_shutdown(signal, ENDED, interrupt.asked.clone())
            })
            .and_then(|_| flag::register(signal, interrupt.asked.clone()))
            .map_err(|e| Error::io(format!("signal {signal}"), e))?;
    }
    Ok(())
}

fn device(word: &str) -> Result<Device> {
    let n_cuda = if Cuda::is_available() {
        Cuda::device_count()
    } else {
        0
    };
    let index = match word {
        "cpu" => return Ok(Device::Cpu),
        "auto" if n_cuda == 0 => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        other => match other
            .strip_prefix("cuda:")
            .and_then(|index| index.parse::<i64>().ok())
        {
            Some(index) => index,
            None => {
                return Err(Error::Recipe(format!(
                    "--device: expected auto, cpu, cuda or cuda:N, got `{other}`"
                )));
            }
        },
    };
    if (0..n_cuda).contains(&index) {
        return Ok(Device::Cuda(index as usize));
    }
    Err(Error::Recipe(format!(
        "--device {word}: {n_cuda} CUDA devices are visible; a CUDA build of libtorch is needed \
         (make libtorch CUDA=1)"
    )))
}
