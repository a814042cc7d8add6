//! A library from file to descriptors.

use std::error::Error as _;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use minitron_core::error::{Error, Result};
use minitron_core::registry::{Descriptor, Handshake, Opening, PluginTable};

use super::elf;

/// Opens a plugin library for good, and returns its plugins.
///
/// # Errors
/// `Plugin` when the file is no library for this machine, lacks a library or a symbol, or was built
/// otherwise than this program; `Io` when it cannot be read.
pub fn open(path: &Path) -> Result<Vec<&'static Descriptor>> {
    let library = load(path)?;
    check(path, &shake(path, &library)?)?;
    let descriptors = descriptors(path, &library)?;
    // Descriptors point into it.
    std::mem::forget(library);
    if descriptors.is_empty() {
        return Err(error(
            path,
            "no plugin in it: declare one with plugin! beside export_plugins!".into(),
        ));
    }
    Ok(descriptors)
}

/// What a library says of how it was built, and the fields in which this program was built
/// otherwise.
///
/// # Errors
/// As [`open`], but for the differences.
pub fn handshake(path: &Path) -> Result<Handshake> {
    let library = load(path)?;
    let found = shake(path, &library)?;
    std::mem::forget(library);
    Ok(found)
}

fn error(path: &Path, message: String) -> Error {
    let tag = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Error::Plugin {
        tag,
        origin: path.display().to_string(),
        message,
    }
}

#[allow(unsafe_code)]
fn load(path: &Path) -> Result<Library> {
    if let Some(objection) = elf::objection(path)? {
        return Err(error(path, objection));
    }
    let path = path.canonicalize().map_err(|e| Error::io(path, e))?;
    // SAFETY: opening runs the library's initialisers, which is what naming it on the command line
    // asks for; those of the plugin macros only link their descriptors up.
    unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|refusal| {
        let text = refusal
            .source()
            .map_or_else(|| refusal.to_string(), ToString::to_string);
        let message = match text.contains("libtorch") || text.contains("libc10") {
            true => format!(
                "it needs a libtorch that is not here: {text}; build it with this program's own \
                 LIBTORCH"
            ),
            false => format!("the system cannot open it: {text}"),
        };
        error(&path, message)
    })
}

#[allow(unsafe_code)]
fn shake(path: &Path, library: &Library) -> Result<Handshake> {
    // SAFETY: the address alone is taken here.
    let symbol = unsafe { library.get::<*const Handshake>(b"MINITRON_HANDSHAKE\0") };
    let symbol = symbol.map_err(|_| {
        error(
            path,
            "no MINITRON_HANDSHAKE in it: not a plugin of minitron; call \
             minitron_core::export_plugins!()"
                .into(),
        )
    })?;
    let handshake: *const Handshake = *symbol;
    // SAFETY: a static of this name in an open library; every handshake begins with these 24 bytes.
    let opening = unsafe { handshake.cast::<Opening>().read_unaligned() };
    if let Some(difference) = opening.difference() {
        return Err(otherwise(path, &[difference]));
    }
    // SAFETY: it says that it is as long as ours.
    Ok(unsafe { handshake.read_unaligned() })
}

fn check(path: &Path, theirs: &Handshake) -> Result<()> {
    let differences = theirs.differences();
    if differences.is_empty() {
        Ok(())
    } else {
        Err(otherwise(path, &differences))
    }
}

fn otherwise(path: &Path, differences: &[(&'static str, String, String)]) -> Error {
    let lines: Vec<String> = differences
        .iter()
        .map(|(field, ours, theirs)| {
            format!("{field}: this program has {ours}, the library {theirs}")
        })
        .collect();
    error(
        path,
        format!(
            "built otherwise than this program: {}; rebuild it against this core: cargo build \
             --release",
            lines.join("; ")
        ),
    )
}

#[allow(unsafe_code)]
fn descriptors(path: &Path, library: &Library) -> Result<Vec<&'static Descriptor>> {
    // SAFETY: the handshake agrees, so the function is that of `export_plugins!` of this very core.
    let table = unsafe { library.get::<extern "C" fn() -> PluginTable>(b"minitron_plugins\0") };
    let table = table.map_err(|_| {
        error(
            path,
            "no minitron_plugins in it; call minitron_core::export_plugins!()".into(),
        )
    })?;
    let (first, len) = table().parts();
    // SAFETY: a leaked slice of the library, which stays open to the end.
    Ok(unsafe { std::slice::from_raw_parts(first, len) }.to_vec())
}
