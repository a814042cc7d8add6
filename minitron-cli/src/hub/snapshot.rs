//! Snapshots in the local cache: when they are whole, and how a file comes into one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use minitron_core::error::{IoContext, Result};
use serde_json::Value;

use super::listing::Announced;

pub(super) const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a folder has a config and all weights.
pub(super) fn is_whole(dir: &Path) -> bool {
    dir.join(CONFIG).is_file() && has_weights(dir) && has_pooling(dir)
}

/// A single file goes first where there are both.
fn has_weights(dir: &Path) -> bool {
    dir.join(SINGLE).is_file()
        || shards(dir).is_some_and(|shards| shards.iter().all(|shard| dir.join(shard).is_file()))
}

/// Whether the settings are there that a sentence encoder's `modules.json` asks for: without them
/// it would be pooled otherwise.
fn has_pooling(dir: &Path) -> bool {
    let Ok(Some(modules)) = minitron_core::checkpoint::modules(dir) else {
        return true;
    };
    modules.iter().all(|module| {
        let needs_config = ["Pooling", "Dense"].contains(&module.kind.as_str());
        !needs_config || dir.join(&module.folder).join(CONFIG).is_file()
    })
}

/// Files that an index names.
fn shards(dir: &Path) -> Option<BTreeSet<String>> {
    let index: Value = serde_json::from_slice(&fs::read(dir.join(INDEX)).ok()?).ok()?;
    index["weight_map"]
        .as_object()?
        .values()
        .map(|shard| shard.as_str().map(str::to_owned))
        .collect()
}

/// Puts a verified file under its name.
pub(super) fn link(dir: &Path, blobs: &Path, file: &Announced) -> Result<()> {
    let (target, blob) = (dir.join(&file.name), blobs.join(file.hash.hex()));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).at_path(parent)?;
    }
    if fs::symlink_metadata(&target).is_ok() {
        // An earlier one, which may lead to nothing.
        fs::remove_file(&target).at_path(&target)?;
    }
    #[cfg(unix)]
    let linked = {
        // Out of each folder of the name first.
        let up = "../".repeat(file.name.matches('/').count() + 2);
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(file.hash.hex()), &target)
    };
    #[cfg(not(unix))]
    let linked = fs::copy(&blob, &target).map(|_| ());
    linked.at_path(&blob)
}
