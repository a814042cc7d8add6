//! What a plugin library says of how it was built, before anything of it is called.
//!
//! Trait objects cross from library to program, which Rust promises for nothing but the same
//! compiler and the same sources: so both are compared, field by field, as plain bytes.

use std::fmt;
use std::mem::{align_of, size_of};

use super::Descriptor;
use crate::calibrate::Observation;
use crate::checkpoint::Config;
use crate::contract::{Document, Need, States, Subject};
use crate::error::Error;
use crate::model::Transformer;
use crate::plan::{Plan, Rankings, Space};
use crate::reconstruct::StudentEditor;
use crate::spec::{CheckpointInfo, ModelSpec, PruneGroup};

/// The first bytes of every handshake.
const MAGIC: [u8; 16] = *b"minitron plugin\0";
/// Counts changes of the handshake itself.
const CONTRACT: u32 = 1;
/// Bytes of a word in it.
const WORD: usize = 96;

/// How every handshake begins, whatever follows: what is behind it may only be read where this
/// agrees.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Opening {
    magic: [u8; 16],
    contract: u32,
    n_bytes: u32,
}

impl Opening {
    /// What does not agree with ours: the field, ours, theirs.
    pub fn difference(&self) -> Option<(&'static str, String, String)> {
        let ours = Handshake::OURS.opening;
        if self.magic != ours.magic {
            return Some(("magic", text(&ours.magic), text(&self.magic)));
        }
        (*self != ours).then(|| ("contract", ours.described(), self.described()))
    }

    fn described(&self) -> String {
        format!("{} ({} bytes)", self.contract, self.n_bytes)
    }
}

/// Plain data, the same for every compiler.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Handshake {
    opening: Opening,
    core: [u8; WORD],
    rustc: [u8; WORD],
    tch: [u8; WORD],
    libtorch: [u8; WORD],
    target: [u8; WORD],
    features: [u8; WORD],
    layout: u64,
}

impl Handshake {
    /// Of this build of the core.
    pub const OURS: Handshake = Handshake {
        opening: Opening {
            magic: MAGIC,
            contract: CONTRACT,
            n_bytes: size_of::<Handshake>() as u32,
        },
        core: word(env!("MINITRON_CORE")),
        rustc: word(env!("MINITRON_RUSTC")),
        tch: word("0.24"),
        libtorch: word(env!("MINITRON_LIBTORCH")),
        target: word(env!("MINITRON_TARGET")),
        features: word(env!("MINITRON_FEATURES")),
        layout: layout(),
    };

    /// What does not agree with ours: the field, ours, theirs.
    pub fn differences(&self) -> Vec<(&'static str, String, String)> {
        let ours = Handshake::OURS;
        let words = [
            ("core", ours.core, self.core),
            ("rustc", ours.rustc, self.rustc),
            ("tch", ours.tch, self.tch),
            ("libtorch", ours.libtorch, self.libtorch),
            ("target", ours.target, self.target),
            ("features", ours.features, self.features),
        ];
        let words = words.iter().filter(|(_, ours, theirs)| ours != theirs);
        let mut found: Vec<_> = words
            .map(|(name, ours, theirs)| (*name, text(ours), text(theirs)))
            .collect();
        if self.layout != ours.layout {
            found.push((
                "layout",
                format!("{:016x}", ours.layout),
                format!("{:016x}", self.layout),
            ));
        }
        found
    }

    /// All fields, for people.
    pub fn fields(&self) -> [(&'static str, String); 8] {
        [
            ("contract", self.opening.contract.to_string()),
            ("core", text(&self.core)),
            ("rustc", text(&self.rustc)),
            ("tch", text(&self.tch)),
            ("libtorch", text(&self.libtorch)),
            ("target", text(&self.target)),
            ("features", text(&self.features)),
            ("layout", format!("{:016x}", self.layout)),
        ]
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_map().entries(self.fields()).finish()
    }
}

/// The descriptors of a library, which stays open.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PluginTable {
    first: *const &'static Descriptor,
    len: usize,
}

impl PluginTable {
    /// Of all plugins that were registered in this library.
    pub fn of_this_library() -> PluginTable {
        let all: Vec<&'static Descriptor> = inventory::iter::<Descriptor>.into_iter().collect();
        let all: &'static [&'static Descriptor] = Box::leak(all.into_boxed_slice());
        PluginTable {
            first: all.as_ptr(),
            len: all.len(),
        }
    }

    /// Where the descriptors lie, and how many.
    pub fn parts(&self) -> (*const &'static Descriptor, usize) {
        (self.first, self.len)
    }
}

const fn word(text: &str) -> [u8; WORD] {
    let (bytes, mut word, mut idx) = (text.as_bytes(), [0; WORD], 0);
    // Const code has no iterators.
    while idx < bytes.len() && idx < WORD {
        word[idx] = bytes[idx];
        idx += 1;
    }
    word
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// FNV-1a over sizes and alignments of what crosses: dependencies that differ show here.
const fn layout() -> u64 {
    const SIZES: [usize; 32] = [
        size_of::<Descriptor>(),
        align_of::<Descriptor>(),
        size_of::<ModelSpec>(),
        align_of::<ModelSpec>(),
        size_of::<CheckpointInfo>(),
        align_of::<CheckpointInfo>(),
        size_of::<PruneGroup>(),
        align_of::<PruneGroup>(),
        size_of::<Observation>(),
        align_of::<Observation>(),
        size_of::<Config>(),
        align_of::<Config>(),
        size_of::<Document>(),
        align_of::<Document>(),
        size_of::<Need>(),
        align_of::<Need>(),
        size_of::<States>(),
        align_of::<States>(),
        size_of::<Subject>(),
        align_of::<Subject>(),
        size_of::<StudentEditor>(),
        align_of::<StudentEditor>(),
        size_of::<Transformer>(),
        align_of::<Transformer>(),
        size_of::<Plan>(),
        align_of::<Plan>(),
        size_of::<Rankings>(),
        align_of::<Rankings>(),
        size_of::<Space>(),
        size_of::<Error>(),
        size_of::<serde_json::Value>(),
        size_of::<tch::Tensor>(),
    ];
    let (mut hash, mut idx) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while idx < SIZES.len() {
        hash = (hash ^ SIZES[idx] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        idx += 1;
    }
    hash
}

/// Makes the plugins of a library loadable: once in a crate of type `cdylib`, with what
/// [`plugin!`](crate::plugin) registers in it.
#[macro_export]
macro_rules! export_plugins {
    () => {
        /// What this library was built with.
        // SAFETY: nothing else has this name; plain data.
        #[unsafe(no_mangle)]
        #[allow(unsafe_code)]
        pub static MINITRON_HANDSHAKE: $crate::registry::Handshake =
            $crate::registry::Handshake::OURS;

        /// The plugins, for a program whose handshake is the same.
        // SAFETY: nothing else has this name; called after the handshake alone.
        #[unsafe(no_mangle)]
        #[allow(unsafe_code)]
        pub extern "C" fn minitron_plugins() -> $crate::registry::PluginTable {
            $crate::registry::PluginTable::of_this_library()
        }
    };
}
