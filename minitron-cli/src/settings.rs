//! From common flags to what jobs share: device, threads, plugins, signals, other ranks.

use std::time::Duration;

use minitron_comm::{C10d, C10dOptions, Communicator, HAS_NCCL, Solo, World};
use minitron_core::digest;
use minitron_core::error::{Error, Result};
use minitron_core::progress::{Interrupt, Recorder, Silent};
use minitron_core::registry::Registry;
use minitron_engine::jobs::{ComputeType, Context};
use minitron_engine::ranks::{Ranks, of_comm};
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
    let world = World::from_env().map_err(of_comm)?;
    if let Some(threads) = common.threads.or_else(|| threads_of(&world)) {
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
    let bar = Bar::new(common.quiet || !world.is_first());
    // What all ranks would say alike, one says.
    let recorder = match world.is_first() {
        true => Recorder::new(&bar),
        false => Recorder::new(&Silent),
    };
    let interrupt = Interrupt::default();
    catch_signals(&interrupt)?;
    let device = device(&common.device, &world)?;
    let dtype = common.dtype.unwrap_or(ComputeType::usual_on(device));
    let comm = communicator(common, &world, device)?;
    let ranks = Ranks::of(comm);
    if ranks.has_others() {
        ranks.same("program", &about_program()?)?;
    }
    let context = Context {
        registry: &registry,
        defaults: &minitron_plugins::BuiltIn,
        device,
        kind: dtype.kind(),
        seed: common
            .seed
            .or(recipe.and_then(|recipe| recipe.seed))
            .unwrap_or(0),
        force,
        ranks,
        progress: &recorder,
        interrupt: &interrupt,
        resolve: &|model| hub::folder(model, &bar),
    };
    let done = job(&context)?;
    comm.leave().map_err(of_comm)?;
    Ok(done)
}

/// The others, where there are some; met once, for as long as the process lives.
fn communicator(
    common: &Common,
    world: &World,
    device: Device,
) -> Result<&'static dyn Communicator> {
    if !world.has_others() {
        return Ok(&Solo);
    }
    let options = C10dOptions {
        timeout: Duration::from_secs(common.comm_timeout.max(1)),
        is_checked: common.check_collectives,
        device,
    };
    let comm = C10d::join(world, options).map_err(of_comm)?;
    Ok(Box::leak(Box::new(comm)))
}

/// Ranks of one machine share its cores, where nobody says otherwise.
fn threads_of(world: &World) -> Option<u16> {
    let is_said = std::env::var_os("OMP_NUM_THREADS").is_some();
    if !world.has_others() || is_said {
        return None;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from((cores / world.local_size.max(1)).max(1)).ok()
}

/// What must be the same on all ranks before anything else.
fn about_program() -> Result<Value> {
    let program = std::env::current_exe().map_err(|e| Error::io("minitron", e))?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "program": digest::of_file(&program)?,
    }))
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

/// Of several ranks, each of a machine has a GPU of its own, where the build knows how they meet.
fn device(word: &str, world: &World) -> Result<Device> {
    if !world.has_others() {
        return device_of_one(word);
    }
    match word {
        "cpu" => Ok(Device::Cpu),
        "auto" if !(HAS_NCCL && Cuda::is_available()) => Ok(Device::Cpu),
        "auto" | "cuda" if HAS_NCCL => device_of_one(&format!("cuda:{}", world.local_rank)),
        "cuda" => Err(Error::Recipe(
            "--device cuda: several processes of this build compute on CPUs alone; build it with \
             `make build CUDA=1`, leave --device out, or start one process"
                .into(),
        )),
        _ => Err(Error::Recipe(format!(
            "--device {word}: expected auto, cpu or cuda of several processes, each of which takes \
             the GPU of its own place on its machine"
        ))),
    }
}

fn device_of_one(word: &str) -> Result<Device> {
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
