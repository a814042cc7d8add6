//! What a run was made with.

use std::collections::BTreeMap;
use std::fs;

use minitron_core::registry::Handshake;

/// Everything besides recipe, inputs and seed that numbers can depend on to the last bit.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let fields = Handshake::OURS
        .fields()
        .into_iter()
        .filter(|(name, _)| !["contract", "layout", "tch"].contains(name));
    let here = [
        ("threads", tch::get_num_threads().to_string()),
        ("processor", processor()),
    ];
    fields
        .chain(here)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Kernels are chosen by it.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    name.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |name| name.trim().to_owned(),
    )
}
