//! `plugins new`: a crate that builds, passes its tests and runs in a recipe as it is. It starts
//! from the example of its kind, which the tests of this project build.

use std::path::{Path, PathBuf};

use minitron_core::error::{Error, Result};
use minitron_core::output::{OutputDir, OutputLock};
use minitron_core::registry::Kind;
use serde_json::json;

use crate::args::Common;
use crate::output;

/// The versions that this program was built with: a plugin's own would lay out types differently.
const LOCK: &str = include_str!("../../../Cargo.lock");
const BUILD: &str = include_str!("../../../build.rs");

/// An example, and what it calls itself.
struct Template {
    text: &'static str,
    plugin: &'static str,
    tag: &'static str,
}

macro_rules! template {
    ($plugin:literal, $tag:literal) => {
        Template {
            text: include_str!(concat!("../../../examples/plugins/src/", $tag, ".rs")),
            plugin: $plugin,
            tag: $tag,
        }
    };
}

fn template(kind: Kind) -> Template {
    match kind {
        Kind::Architecture => template!("Glm4", "glm4"),
        Kind::Axis => template!("MlpTiles", "mlp_tiles"),
        Kind::Importance => template!("MeanPower", "mean_power"),
        Kind::Allocator => template!("HalfMlp", "half_mlp"),
        Kind::Reconstruction => template!("NormKeeping", "norm_keeping"),
        Kind::Loss => template!("SkewKl", "skew_kl"),
        Kind::StateLoss => template!("LogCosh", "log_cosh"),
        Kind::Evaluator => template!("TokenAccuracy", "token_accuracy"),
        Kind::Corpus => template!("Paragraphs", "paragraphs"),
    }
}

pub fn new(common: &Common, kind: Kind, dir: &Path) -> Result<()> {
    if dir.exists() {
        return Err(Error::Recipe(format!(
            "{}: there is something already; name a new folder",
            dir.display()
        )));
    }
    let tag = tag_of(dir)?;
    let plugin: String = tag.split('_').map(capitalised).collect();
    let core = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../minitron-core"));
    let core = core.canonicalize().map_err(|_| {
        let message =
            "plugins new: this program's own sources are not where it was built; clone them and \
             build it again";
        Error::Recipe(message.into())
    })?;
    let Template {
        text,
        plugin: from,
        tag: from_tag,
    } = template(kind);
    // By way of marks: a new name may hold the old one.
    let marked = text.replace(from, "\u{1}").replace(from_tag, "\u{2}");
    let code = marked.replace('\u{1}', &plugin).replace('\u{2}', &tag);
    let library = format!("target/release/lib{tag}.so");
    let files = [
        ("Cargo.toml", manifest(&tag, &core)),
        ("Cargo.lock", LOCK.to_owned()),
        (".cargo/config.toml", cargo_config()),
        (".gitignore", "/target\n".to_owned()),
        ("build.rs", BUILD.to_owned()),
        ("src/lib.rs", library_file(kind, &plugin, &tag)),
        (&format!("src/{tag}.rs"), code),
        ("README.md", readme(kind, &tag, &library)),
    ];
    let _claim = OutputLock::of(dir)?;
    let output = OutputDir::create(dir, false)?;
    for (name, text) in files.iter().filter(|(_, text)| !text.is_empty()) {
        let path = output.path().join(name);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    }
    output.commit()?;
    let next = format!(
        "cd {} && cargo test --release && cargo build --release && minitron plugins check \
         {library}",
        dir.display()
    );
    output::show(
        common.json,
        &json!({ "dir": dir, "plugin": format!("{kind}/{tag}"), "next": next }),
        output::facts_table,
    )
}

/// The folder's name as a tag.
fn tag_of(dir: &Path) -> Result<String> {
    let name = dir
        .file_name()
        .map(|name| name.to_string_lossy().replace('-', "_"))
        .unwrap_or_default();
    let is_tag = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_');
    const TAKEN: [&str; 16] = [
        "as", "crate", "enum", "fn", "impl", "loop", "match", "mod", "schemars", "self", "serde",
        "struct", "tch", "test", "type", "use",
    ];
    if TAKEN.contains(&name.as_str()) {
        return Err(Error::Recipe(format!(
            "`{name}` is a word of Rust or a crate it needs; call the folder otherwise"
        )));
    }
    if is_tag {
        return Ok(name);
    }
    Err(Error::Recipe(format!(
        "`{name}`: the folder gives the plugin its name: lower-case letters, digits, `_` or `-`"
    )))
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}

fn manifest(tag: &str, core: &Path) -> String {
    format!(
        r#"[package]
name = "{tag}"
version = "0.1.0"
edition = "2024"
publish = false

[lib]
crate-type = ["cdylib", "rlib"]

[dependencies]
# The very core that minitron was built from: the handshake asks for it.
minitron-core = {{ path = "{core}" }}
schemars = {{ version = "1", features = ["preserve_order"] }}
serde = {{ version = "1", features = ["derive"] }}
serde_json = {{ version = "1", features = ["float_roundtrip", "preserve_order"] }}
tch = "0.24"
torch-sys = "0.24"
typetag = "0.2"

# As minitron's own.
[profile.release]
debug = "line-tables-only"
incremental = true
overflow-checks = true
strip = "none"

# Not part of another workspace, wherever it lies.
[workspace]
"#,
        core = core.display()
    )
}

/// The libtorch of this program.
fn cargo_config() -> String {
    match option_env!("LIBTORCH") {
        Some(libtorch) => {
            format!("# A LIBTORCH of your own comes first.\n[env]\nLIBTORCH = \"{libtorch}\"\n")
        }
        None => String::new(),
    }
}

fn library_file(kind: Kind, plugin: &str, tag: &str) -> String {
    format!(
        r#"//! The {kind} plugin `{tag}`.

mod {tag};

pub use {tag}::{plugin};

minitron_core::export_plugins!();

#[cfg(test)]
mod tests {{
    use minitron_core::registry::{{Kind, Registry}};

    #[test]
    fn it_is_registered_with_its_defaults() {{
        let registry = Registry::linked().unwrap();
        let plugin = registry.find("{kind}".parse::<Kind>().unwrap(), "{tag}").unwrap();
        let defaults = serde_json::to_value(super::{plugin}::default()).unwrap();
        assert_eq!((plugin.example)(), defaults);
    }}
}}
"#
    )
}

fn readme(kind: Kind, tag: &str, library: &str) -> String {
    let used = match kind {
        Kind::Architecture => "minitron --plugin LIB inspect MODEL".to_owned(),
        Kind::Axis => format!(
            "minitron --plugin LIB prune MODEL --axis {tag} --mlp 128 --scores SCORES --out OUT"
        ),
        Kind::Importance => {
            format!("minitron --plugin LIB score MODEL --data TEXT --metric {tag} --out SCORES")
        }
        Kind::Allocator => {
            format!("minitron --plugin LIB prune MODEL --allocator {tag} --scores SCORES --out OUT")
        }
        Kind::Reconstruction => {
            format!(
                "minitron --plugin LIB prune MODEL --mlp 128 --scores SCORES --data TEXT \
                 --reconstruct {tag} --out OUT"
            )
        }
        Kind::Loss | Kind::StateLoss => {
            format!(
                "minitron --plugin LIB distill --teacher T --student S --data TEXT --loss {tag} \
                 --out OUT"
            )
        }
        Kind::Evaluator => {
            format!("minitron --plugin LIB eval MODEL --data TEXT --evaluator {tag}")
        }
        Kind::Corpus => format!("minitron --plugin LIB eval MODEL --data FILE.{tag}"),
    };
    format!(
        "# {tag}\n\nA plugin for minitron: {kind}.\n\n```\n\
         cargo test --release\n\
         cargo build --release\n\
         minitron plugins check {library}\n\
         minitron --plugin {library} plugins show {kind}/{tag}\n\
         {}\n```\n",
        used.replace("LIB", library)
    )
}
