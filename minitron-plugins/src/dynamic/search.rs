//! Which libraries are opened: those named, and all in the folders of a search path.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use minitron_core::digest;
use minitron_core::error::{Error, IoContext, Result};
use minitron_engine::recipe::PluginFile;

/// Every library once, in order: those wanted, then those in the folders of `search_path`, which
/// colons divide.
///
/// # Errors
/// `Plugin` for a library whose content is not the pinned one, `Io` for a file or folder that
/// cannot be read.
pub fn find(wanted: &[PluginFile], search_path: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut found = FoundLibraries::default();
    for library in wanted {
        check_pin(library)?;
        found.add(&library.path)?;
    }
    let dirs = search_path.unwrap_or_default().split(':');
    for dir in dirs.filter(|dir| !dir.is_empty()).map(Path::new) {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).at_path(dir)? {
            paths.push(entry.at_path(dir)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "so"));
        paths.sort();
        paths.iter().try_for_each(|path| found.add(path))?;
    }
    Ok(found.paths)
}

#[derive(Default)]
struct FoundLibraries {
    paths: Vec<PathBuf>,
    /// Where they lie in truth, whatever links lead there.
    known: BTreeSet<PathBuf>,
}

impl FoundLibraries {
    /// Adds a library that is not there yet.
    fn add(&mut self, path: &Path) -> Result<()> {
        if self.known.insert(path.canonicalize().at_path(path)?) {
            self.paths.push(path.to_path_buf());
        }
        Ok(())
    }
}

fn check_pin(library: &PluginFile) -> Result<()> {
    let Some(pinned) = &library.sha256 else {
        return Ok(());
    };
    let found = digest::of_file(&library.path)?;
    if found.eq_ignore_ascii_case(pinned) {
        return Ok(());
    }
    Err(Error::Plugin {
        tag: library
            .path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        origin: library.path.display().to_string(),
        message: format!(
            "sha256: expected {pinned}, got {found}; another build than the one that was pinned"
        ),
    })
}
