//! How much memory the process takes, and sizes as people read them.

/// What a small job takes, libtorch's own pages included, where the system does not say.
const USUAL_BYTES: u64 = 256 << 20;

/// What libtorch and its matrix products take once they run, besides what the program takes by
/// then.
pub(crate) const LIBRARY_BYTES: u64 = 256 << 20;

/// The largest resident memory of this process so far, in bytes.
pub fn peak_bytes() -> u64 {
    kib_in("/proc/self/status", "VmHWM:").unwrap_or(USUAL_BYTES)
}

/// The resident memory of this process now, in bytes; what was freed and not yet given back to the
/// system counts.
pub fn resident_bytes() -> u64 {
    kib_in("/proc/self/status", "VmRSS:").unwrap_or(USUAL_BYTES)
}

/// A line of one of the system's tables, from KiB to bytes.
fn kib_in(table: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(table).ok()?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    });
    kib.map(|kib: u64| kib.saturating_mul(1024))
}

/// Lets [`peak_bytes`] begin anew, so that a stage tells its own. Where the system cannot or does
/// not permit it (no `/proc`, or one that is read-only, as in some containers), the old peak stays,
/// and stages tell the largest since the process began.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Memory that further work may take before the system has to make room, in bytes; none where it
/// does not say.
pub fn available_bytes() -> Option<u64> {
    kib_in("/proc/meminfo", "MemAvailable:")
}

/// Whole MiB, rounded up, as `--max-memory` reads them: `161MiB`.
pub fn mib(n_bytes: u64) -> String {
    format!("{}MiB", n_bytes.div_ceil(1 << 20))
}
