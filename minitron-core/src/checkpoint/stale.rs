//! Keys of config.json that say how the source's files lie: what is written has files of its own.

use super::Config;
use super::weight_files::Remarks;

/// A key, and why it goes.
struct Stale {
    key: &'static str,
    why: &'static str,
    /// Whether other tools read the source otherwise for it.
    matters: bool,
}

const STALE: &[Stale] = &[
    Stale {
        key: "quantization_config",
        why: "the weights here are plain",
        matters: true,
    },
    Stale {
        key: "compression_config",
        why: "the weights here are plain",
        matters: true,
    },
    Stale {
        key: "quantization",
        why: "the weights here are plain",
        matters: true,
    },
    Stale {
        key: "auto_map",
        why: "it names Python files, which are not carried; the family's own class is",
        matters: true,
    },
    Stale {
        key: "transformers_weights",
        why: "it names the source's file",
        matters: false,
    },
    Stale {
        key: "transformers.js_config",
        why: "it describes the source's ONNX files",
        matters: false,
    },
    Stale {
        key: "neuron",
        why: "it describes files compiled from the source",
        matters: false,
    },
];

/// Older `transformers` cut projections into so many slices, which other sizes do not divide into;
/// nothing else depends on it.
const SLICES: &str = "pretraining_tp";

/// Takes these keys out of a config that was read, so that nothing written has them, and says so.
pub fn drop_stale(config: &mut Config) -> Remarks {
    let mut remarks = Remarks::default();
    for stale in STALE {
        if config.remove(stale.key) {
            let message = format!(
                "{}: `{}` is left out of what is written: {}",
                config.path().display(),
                stale.key,
                stale.why
            );
            if stale.matters {
                remarks.warnings.push(message)
            } else {
                remarks.notes.push(message)
            }
        }
    }
    if config.size_or(SLICES, 1).is_ok_and(|n| n > 1) {
        config.set(SLICES, 1);
        remarks.notes.push(format!(
            "{}: `{SLICES}` is 1 in what is written",
            config.path().display()
        ));
    }
    remarks
}
