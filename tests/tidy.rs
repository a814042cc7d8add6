#![allow(clippy::unwrap_used)] // A source file that cannot be read fails the test, as it should.

use std::fs;
use std::path::{Path, PathBuf};

use minitron::root;

const CRATES: [&str; 6] = [
    "minitron-core",
    "minitron-comm",
    "minitron-torch",
    "minitron-engine",
    "minitron-plugins",
    "minitron-cli",
];

/// One source file: its path from the repository, its lines, and the same without tests, comments'
/// texts left empty.
struct Source {
    path: String,
    lines: Vec<String>,
    code: Vec<String>,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        // A file of tests alone has no other code.
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
        let before_tests = lines
            .iter()
            .take_while(|line| !is_test && line.trim() != "#[cfg(test)]");
        let code = with_whole_strings(before_tests)
            .iter()
            .map(|line| without_comment(line).to_owned())
            .collect();
        let path = path
            .strip_prefix(root())
            .unwrap()
            .to_string_lossy()
            .replace('\\', "/");
        Source { path, lines, code }
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    fn stem(&self) -> &str {
        self.path
            .rsplit('/')
            .next()
            .unwrap()
            .trim_end_matches(".rs")
    }

    /// `path:line: text` of every code line that a rule objects to.
    fn objections<'a>(
        &'a self,
        objects: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = String> + 'a {
        let numbered = self
            .code
            .iter()
            .enumerate()
            .filter(move |(_, line)| objects(line));
        numbered.map(|(idx, line)| format!("{}:{}: {}", self.path, idx + 1, line.trim()))
    }
}

/// Lines with what continues their strings; in its place stand empty lines.
fn with_whole_strings<'a>(lines: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    let mut begun = None;
    for line in lines {
        let text = line.strip_suffix('\\').unwrap_or(line);
        match begun {
            Some(first) => {
                let first: &mut String = &mut whole[first];
                first.push_str(text.trim_start());
                whole.push(String::new());
            }
            None => whole.push(text.to_owned()),
        }
        begun = line
            .ends_with('\\')
            .then(|| begun.unwrap_or(whole.len() - 1));
    }
    whole
}

/// Everything before `//` that is not inside a string.
fn without_comment(line: &str) -> &str {
    let places = line.match_indices("//").map(|(at, _)| at);
    let outside = |at: &usize| line[..*at].matches('"').count().is_multiple_of(2);
    places
        .into_iter()
        .find(outside)
        .map_or(line, |at| &line[..at])
}

/// The string literals of a line.
fn literals(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

/// A line without its string literals.
fn outside_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// Files below a folder, sorted, build outputs and what git ignores left out.
fn files(dir: &Path) -> Vec<PathBuf> {
    const IGNORED: [&str; 5] = [".git", "target", ".deps", "out", "runs"];
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // In a worktree, `.git` is a file.
        if IGNORED.contains(&name.as_str()) || name == "__pycache__" {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<Source> {
    let paths = files(&root().join(folder))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let sources: Vec<Source> = paths.map(|path| Source::read(&path)).collect();
    assert!(!sources.is_empty(), "no sources in {folder}");
    sources
}

fn of_all_crates() -> Vec<Source> {
    CRATES
        .iter()
        .flat_map(|name| sources(&format!("{name}/src")))
        .collect()
}

fn assert_none(objections: impl IntoIterator<Item = String>, rule: &str) {
    let objections: Vec<String> = objections.into_iter().collect();
    assert!(objections.is_empty(), "{rule}:\n{}", objections.join("\n"));
}

/// Whether `word` stands in the text as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part)
    })
}

/// Names that follow a prefix: `after(line, ".f_")` of `x.f_add(y)` is `add`.
fn after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    line.match_indices(prefix).map(move |(at, _)| {
        let rest = &line[at + prefix.len()..];
        rest.split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .next()
            .unwrap()
    })
}

/// Files that register a plugin, with the plugin's contract, struct and tag.
fn plugins() -> Vec<(Source, String, String, String)> {
    let mut found = Vec::new();
    for source in sources("minitron-plugins/src") {
        let code = source.code.join("\n");
        let Some((_, registration)) = code.split_once("plugin! {") else {
            continue;
        };
        assert_eq!(
            code.matches("plugin! {").count(),
            1,
            "{}: one plugin a file",
            source.path
        );
        let mut words = registration.split_whitespace();
        let (contract, plugin) = (
            words.next().unwrap().to_owned(),
            words.nth(1).unwrap().to_owned(),
        );
        let tag = registration
            .split("tag: \"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        found.push((source, contract, plugin, tag));
    }
    assert!(
        found.len() > 15,
        "the pattern that finds plugins misses them"
    );
    found
}

#[test]
fn core_names_no_concrete_plugin() {
    let tags: Vec<String> = plugins()
        .into_iter()
        // An axis is called as the dim it prunes, which is core's word.
        .filter(|(_, contract, ..)| contract != "Axis")
        .map(|(.., tag)| tag)
        // Words of many options.
        .filter(|tag| !["auto", "none"].contains(&tag.as_str()))
        .collect();
    let core = ["minitron-core/src", "minitron-engine/src"]
        .map(sources)
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    // Before a colon it is a key of some JSON, and behind `requires` another option.
    let is_named = |line: &str, tag: &str| {
        let quoted = format!("\"{tag}\"");
        line.match_indices(&quoted).any(|(at, _)| {
            !line[..at].ends_with("requires = ") && !line[at + quoted.len()..].starts_with(':')
        })
    };
    let names_tag = |line: &str| line.contains('"') && tags.iter().any(|tag| is_named(line, tag));
    // Messages of a chat have parts of type `text`, whatever a corpus is called.
    let is_chat = |source: &Source| {
        [
            "minitron-core/src/conversation/",
            "minitron-engine/src/chat/",
        ]
        .iter()
        .any(|r| source.is_in(r))
    };
    let core = core.iter().filter(|source| !is_chat(source));
    assert_none(
        core.flat_map(|source| source.objections(names_tag)),
        "core names a plugin's tag",
    );
}

/// Core, engine, plugins, command line: each depends on those before it alone, and the core on
/// nothing heavy, since every crate of plugins builds it.
#[test]
fn dependencies_point_from_the_command_line_to_the_core() {
    const HEAVY: [&str; 7] = [
        "tokenizers",
        "minijinja",
        "toml",
        "parquet",
        "exmex",
        "chrono",
        "clap",
    ];
    for (idx, name) in CRATES.iter().enumerate() {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        // Tests and examples in the documentation need all of it.
        let manifest = manifest.split("[dev-dependencies]").next().unwrap();
        let depends = |on: &str| {
            manifest
                .lines()
                .any(|line| line.split(['.', ' ', '=']).next() == Some(on))
        };
        let heavy = HEAVY
            .iter()
            .filter(|on| *name == "minitron-core" && depends(on));
        let wrong: Vec<&str> = CRATES[idx + 1..]
            .iter()
            .filter(|on| depends(on))
            .chain(heavy)
            .copied()
            .collect();
        assert!(wrong.is_empty(), "{name} depends on {wrong:?}");
        assert!(
            !depends("anyhow") || *name == "minitron-cli",
            "{name} depends on anyhow"
        );
    }
    // What is built in is written as a plugin of anybody's: with the core alone.
    let strategies = plugins()
        .into_iter()
        .map(|(source, ..)| source)
        .collect::<Vec<_>>();
    let names_engine = |line: &str| has_word(line, "minitron_engine");
    assert_none(
        strategies
            .iter()
            .flat_map(|source| source.objections(names_engine)),
        "a plugin that needs the engine",
    );
}

#[test]
fn tensor_names_stand_in_architectures_alone() {
    const NAMES: [&str; 23] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "embed_tokens",
        "lm_head",
        "c_attn",
        "c_proj",
        "c_fc",
        "wte",
        "wpe",
        "ln_f",
        "ln_1",
        "ln_2",
        "attention.self",
        "LayerNorm",
        "input_layernorm",
        "word_embeddings",
        "pooler.dense",
        "cls.predictions",
    ];
    let is_name = |literal: &str| {
        NAMES.iter().any(|name| has_word(literal, name))
            || literal.ends_with(".weight")
            || literal.ends_with(".bias")
    };
    let elsewhere = |source: &&Source| {
        // The table writes `{name}.weight`; the name itself comes from the architecture.
        !source.is_in("minitron-plugins/src/architectures/")
            && !source.is_in("minitron-core/src/architectures/")
            && source.path != "minitron-core/src/spec/table.rs"
    };
    let all = of_all_crates();
    let objections = all
        .iter()
        .filter(elsewhere)
        .flat_map(|s| s.objections(|line| literals(line).any(is_name)));
    assert_none(objections, "a tensor's name outside architectures/");
}

#[test]
fn one_function_slices_weights() {
    // The one function, which takes elements out of stored rows; then what picks from activations
    // (predicted rows, states of tokens, logits of the likeliest ones, a teacher's channels that a
    // student kept, compared by an evaluator, aimed at by reconstructions, states that predict a
    // continuation, keys and values of what shares a context, tokens of an expert), what reads
    // codes of 4 bits and the numbers of token files or looks for those that are not finite, and what tries units in another order.
    const ALLOWED: [&str; 17] = [
        "minitron-core/src/prune/view.rs",
        "minitron-core/src/windows/batch.rs",
        "minitron-core/src/contract/state_loss.rs",
        "minitron-plugins/src/losses/top_k_kl.rs",
        "minitron-plugins/src/evaluators/hidden_cosine.rs",
        "minitron-plugins/src/corpora/tokens.rs",
        "minitron-plugins/src/corpora/tokens/evidence.rs",
        "minitron-core/src/reconstruct/kept.rs",
        "minitron-core/src/reconstruct/store.rs",
        "minitron-core/src/reconstruct/unit_writers.rs",
        "minitron-core/src/evaluate/likelihood.rs",
        "minitron-core/src/nn/state.rs",
        "minitron-core/src/checkpoint/mxfp4.rs",
        "minitron-core/src/mixers/moe.rs",
        "minitron-core/src/mixers/router.rs",
        "minitron-plugins/src/laws/units.rs",
        "minitron-core/src/checkpoint/finite.rs",
    ];
    let all = of_all_crates();
    let slices = |line: &str| {
        [".as_chunks::<", "index_select", ".f_gather(", ".f_take("]
            .iter()
            .any(|call| line.contains(call))
    };
    let elsewhere = all
        .iter()
        .filter(|source| !ALLOWED.contains(&source.path.as_str()));
    assert_none(
        elsewhere.flat_map(|source| source.objections(slices)),
        "rows or channels are picked elsewhere",
    );
    let view = all.iter().find(|source| source.path == ALLOWED[0]).unwrap();
    assert_eq!(view.objections(slices).count(), 1);
    let narrows = |line: &str| {
        [".f_narrow(", ".f_slice(", ".f_select("]
            .iter()
            .any(|call| line.contains(call))
    };
    let readers = all.iter().filter(|source| {
        // A source in memory gives out rows, as one on disk does.
        source.is_in("minitron-core/src/checkpoint/") && source.stem() != "source"
            || source.is_in("minitron-core/src/prune/")
            || source.is_in("minitron-core/src/spec/")
            || source.is_in("minitron-core/src/parts/")
    });
    assert_none(
        readers.flat_map(|source| source.objections(narrows)),
        "weights are sliced elsewhere",
    );
}

#[test]
fn axes_touch_no_tensors() {
    let axes = sources("minitron-plugins/src/axes");
    assert_none(
        axes.iter()
            .flat_map(|s| s.objections(|line| has_word(line, "tch"))),
        "an axis is data",
    );
}

#[test]
fn nothing_mutates_a_tensor_source() {
    let mut n_impls = 0;
    for source in of_all_crates() {
        let mut inside = false;
        for (idx, line) in source.code.iter().enumerate() {
            if line.contains("TensorSource for ") || line.contains("trait TensorSource") {
                inside = true;
                n_impls += 1;
            }
            assert!(
                !(inside && line.contains("&mut self")),
                "{}:{}: {line}",
                source.path,
                idx + 1
            );
            inside &= line != "}";
        }
        let by_mut = source.objections(|line| {
            line.contains("&mut dyn TensorSource") || line.contains("mut impl TensorSource")
        });
        assert_none(by_mut, "a tensor source is borrowed to be changed");
    }
    assert!(
        n_impls >= 4,
        "the pattern that finds implementations misses them"
    );
}

#[test]
fn plugins_are_looked_up_in_the_registry_alone() {
    let all = of_all_crates();
    let elsewhere = all
        .iter()
        .filter(|source| !source.is_in("minitron-core/src/registry/"));
    let objects = |line: &str| {
        // lib.rs hands the crates on to the macro.
        let is_export = line.trim_start().starts_with("pub use {inventory");
        let is_attribute = line.trim_start().starts_with("#[typetag::serde(");
        // In the manifest that `plugins new` writes.
        let is_export = is_export || line.starts_with("typetag = ");
        has_word(line, "inventory") && !is_export
            || has_word(line, "typetag") && !is_attribute && !is_export
    };
    assert_none(
        elsewhere.flat_map(|source| source.objections(objects)),
        "a lookup past the registry",
    );
}

#[test]
fn every_plugin_file_is_called_as_its_tag_and_its_struct() {
    for (source, _, plugin, tag) in plugins() {
        assert_eq!(source.stem(), tag, "{}", source.path);
        let mut snake = String::new();
        for (idx, c) in plugin.chars().enumerate() {
            if c.is_uppercase() && idx > 0 {
                snake.push('_');
            }
            snake.extend(c.to_lowercase());
        }
        assert_eq!(snake, tag, "{}: struct {plugin}", source.path);
        let attribute = format!("#[typetag::serde(name = \"{tag}\")]");
        assert!(
            source.code.iter().any(|line| line.trim() == attribute),
            "{}: expected {attribute}",
            source.path
        );
    }
}

#[test]
fn tensors_are_never_asked_in_a_way_that_panics() {
    // Beyond those in use: what one would reach for next.
    const KNOWN: [&str; 33] = [
        "matmul",
        "bmm",
        "addmm",
        "cat",
        "stack",
        "gather",
        "scatter",
        "masked_fill",
        "embedding",
        "softmax",
        "log_softmax",
        "unsqueeze",
        "squeeze",
        "permute",
        "expand",
        "expand_as",
        "repeat_interleave",
        "cumsum",
        "triu",
        "tril",
        "outer",
        "sigmoid",
        "argsort",
        "where_self",
        "to_kind",
        "to_device",
        "double_value",
        "int64_value",
        "index_add",
        "flip",
        "movedim",
        "to_dense",
        "nan_to_num",
    ];
    // Also methods of numbers, iterators, maps or of our own types; with a receiver that is a
    // tensor, the operators among them are caught by clippy, and the others have other arguments
    // than the tensor's (below).
    const AMBIGUOUS: [&str; 24] = [
        "abs",
        "ne",
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "max",
        "min",
        "sqrt",
        "exp",
        "sin",
        "cos",
        "log",
        "pow",
        "floor",
        "round",
        "sum",
        "transpose",
        "flatten",
        "kind",
        "backward",
        "linear",
        "norm",
    ];
    let all = of_all_crates();
    let lines = || all.iter().flat_map(|source| &source.code);
    let mut names: Vec<&str> = lines()
        .flat_map(|line| after(line, ".f_"))
        .chain(KNOWN)
        .collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !AMBIGUOUS.contains(name));
    assert!(
        names.len() > 60,
        "the pattern that finds tensor calls misses them"
    );
    let panics = |line: &str| {
        let line = outside_strings(line);
        let is_call = |name: &&str| line.contains(&format!(".{name}("));
        // An Option's transpose and an iterator's sum and flatten take no arguments.
        let by_arguments = [".transpose(", ".sum(", ".flatten("].iter().any(|call| {
            line.match_indices(call)
                .any(|(at, _)| !line[at + call.len()..].starts_with(')'))
        });
        let constructs = after(&line, "Tensor::").any(|name| {
            let is_function = name.starts_with(|c: char| c.is_ascii_lowercase());
            is_function && !name.starts_with("f_") && !["new", "from_ptr"].contains(&name)
        });
        names.iter().any(is_call) || by_arguments || constructs
    };
    let objections = all.iter().flat_map(|source| source.objections(panics));
    assert_none(
        objections,
        "a tensor call that panics; take its f_ form and `?`",
    );
}

#[test]
fn nothing_unwraps_or_panics_outside_tests() {
    const PANICS: [&str; 8] = [
        ".unwrap()",
        ".unwrap_err()",
        ".expect(",
        "panic!(",
        "todo!(",
        "unimplemented!(",
        "unreachable!(",
        "assert!(",
    ];
    let all = of_all_crates();
    let panics = |line: &str| PANICS.iter().any(|call| line.contains(call));
    assert_none(
        all.iter().flat_map(|source| source.objections(panics)),
        "a panic",
    );
}

#[test]
fn unsafe_stands_where_it_must_and_says_why_it_is_sound() {
    for source in of_all_crates() {
        let allowed = source.path == "minitron-core/src/checkpoint/reader.rs"
            || source.path == "minitron-core/src/registry/handshake.rs"
            || source.path == "minitron-comm/src/ffi.rs"
            || source.path == "minitron-torch/src/ffi.rs"
            || source.is_in("minitron-plugins/src/dynamic/");
        for (idx, line) in source
            .code
            .iter()
            .enumerate()
            .filter(|(_, line)| has_word(line, "unsafe"))
        {
            assert!(allowed, "{}:{}: {line}", source.path, idx + 1);
            let before = source.lines[..idx].iter().rev();
            let mut comment = before.take_while(|line| line.trim_start().starts_with("//"));
            assert!(
                comment.any(|line| line.contains("// SAFETY:")),
                "{}:{}: no // SAFETY:",
                source.path,
                idx + 1
            );
        }
    }
}

#[test]
fn the_output_room_alone_prints() {
    const PRINTS: [&str; 7] = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "stdout()",
        "stderr()",
    ];
    let all = of_all_crates();
    let elsewhere = all
        .iter()
        .filter(|source| !source.is_in("minitron-cli/src/output/"));
    let prints = |line: &str| PRINTS.iter().any(|call| line.contains(call));
    assert_none(
        elsewhere.flat_map(|source| source.objections(prints)),
        "printing outside output/",
    );
}

/// The rooms of a crate, in the order of the table in its lib.rs.
fn rooms(name: &str) -> Vec<String> {
    let map = fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("//! | "));
    let named = rows.filter_map(|row| row.trim_start_matches('[').strip_prefix('`'));
    named
        .filter_map(|row| row.split('`').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn rooms_look_left() {
    // All others are given what they work with.
    const FIND_PLUGINS: [&str; 5] = ["data", "jobs", "search", "recipe", "compare"];
    let mut objections = Vec::new();
    for name in [
        "minitron-core",
        "minitron-comm",
        "minitron-torch",
        "minitron-engine",
    ] {
        let rooms = rooms(name);
        let place = |room: &str| rooms.iter().position(|other| other == room);
        let folder = format!("{name}/src/");
        for source in sources(&folder) {
            let room = source
                .path
                .trim_start_matches(&folder)
                .trim_end_matches(".rs")
                .split('/')
                .next()
                .unwrap();
            if room == "lib" {
                continue;
            }
            let own = place(room)
                .unwrap_or_else(|| panic!("{room} has no place in the table of {name}/src/lib.rs"));
            for (idx, line) in source
                .code
                .iter()
                .enumerate()
                .filter(|(_, line)| !line.contains("$crate"))
            {
                let right = after(line, "crate::")
                    .filter(|seen| place(seen).is_some_and(|seen| seen > own));
                objections
                    .extend(right.map(|seen| {
                        format!("{}:{}: {room} looks at {seen}", source.path, idx + 1)
                    }));
                let looks_up = after(line, "minitron_core::").any(|seen| seen == "registry")
                    && !line.contains("PluginSpec");
                if name == "minitron-engine" && looks_up && !FIND_PLUGINS.contains(&room) {
                    objections.push(format!(
                        "{}:{}: {room} looks at registry",
                        source.path,
                        idx + 1
                    ));
                }
            }
        }
    }
    assert_none(objections, "a room looks right");
}

/// Where no table gives an order, rooms have one all the same.
#[test]
fn rooms_of_plugins_and_command_line_have_an_order() {
    for name in ["minitron-plugins", "minitron-cli"] {
        let folder = format!("{name}/src/");
        let all = sources(&folder);
        let room = |source: &Source| {
            source
                .path
                .trim_start_matches(&folder)
                .trim_end_matches(".rs")
                .split('/')
                .next()
                .unwrap()
                .to_owned()
        };
        let mut rooms: Vec<String> = all.iter().map(room).collect();
        rooms.dedup();
        let mut edges = Vec::new();
        for source in &all {
            let lines = source.code.iter().filter(|line| !line.contains("$crate"));
            let seen = lines
                .flat_map(|line| after(line, "crate::"))
                .filter(|seen| rooms.iter().any(|room| room == seen));
            edges.extend(
                seen.map(|seen| (room(source), seen.to_owned()))
                    .filter(|(from, to)| from != to),
            );
        }
        assert!(
            edges.len() > 3,
            "the pattern that finds rooms misses those of {name}"
        );
        // Whatever looks at no room that is left goes next.
        while let Some(idx) = rooms
            .iter()
            .position(|room| edges.iter().all(|(from, _)| from != room))
        {
            let placed = rooms.remove(idx);
            edges.retain(|(_, to)| *to != placed);
        }
        assert!(
            rooms.is_empty(),
            "{name}: these rooms look at each other: {rooms:?}"
        );
    }
}

/// Files that look at others of their crate by name never come back to where they began.
#[test]
fn no_files_look_at_each_other() {
    let mut n_seen = 0;
    for name in CRATES {
        let all = sources(&format!("{name}/src"));
        let seen: Vec<Vec<usize>> = all.iter().map(|source| siblings(source, &all)).collect();
        for begin in 0..all.len() {
            let (mut reached, mut open) = (vec![false; all.len()], seen[begin].clone());
            while let Some(idx) = open.pop() {
                assert_ne!(
                    idx, begin,
                    "{} looks at a file that leads back to it",
                    all[begin].path
                );
                if !reached[idx] {
                    reached[idx] = true;
                    open.extend(&seen[idx]);
                }
            }
        }
        n_seen += seen.iter().map(Vec::len).sum::<usize>();
    }
    assert!(
        n_seen > 300,
        "the pattern that finds them misses some: {n_seen}"
    );
}

/// The files that a file names by `super::` and `crate::`; what a `mod.rs` hands on is no file.
fn siblings(source: &Source, all: &[Source]) -> Vec<usize> {
    if ["mod", "lib", "main"].contains(&source.stem()) {
        return Vec::new();
    }
    let folders: Vec<&str> = source.path.split('/').collect();
    let mut found = Vec::new();
    for line in source.code.iter().filter(|line| !line.contains("$crate")) {
        let ups = line
            .match_indices("super::")
            .filter(|(at, _)| !line[..*at].ends_with("super::"));
        for (at, _) in ups {
            let names = line[at..].trim_start_matches("super::");
            let n_up = (line[at..].len() - names.len()) / "super::".len();
            found.extend(named(
                &folders[..folders.len().saturating_sub(n_up)],
                names,
                all,
            ));
        }
        for (at, _) in line.match_indices("crate::") {
            // CRATE/src
            found.extend(named(&folders[..2], &line[at + "crate::".len()..], all));
        }
    }
    found.retain(|idx| all[*idx].path != source.path);
    found
}

/// The files below a folder that `a::b::C` or `{a::A, b}` names.
fn named(folder: &[&str], names: &str, all: &[Source]) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let paths: Vec<&str> = match names.strip_prefix('{') {
        Some(list) => list.split(['{', '}', ',', ' ']).collect(),
        None => vec![
            names
                .split(|c: char| !is_word(c) && c != ':')
                .next()
                .unwrap(),
        ],
    };
    let mut found = Vec::new();
    for path in paths {
        let mut at = folder.join("/");
        for word in path
            .split("::")
            .filter(|word| !word.is_empty() && word.chars().all(is_word))
        {
            at = format!("{at}/{word}");
            found.extend(
                all.iter()
                    .position(|source| source.path == format!("{at}.rs")),
            );
        }
    }
    found
}

/// Where numbers are made, what an index misses is a mistake (`present(..)?`), or a comment above
/// says when it may be absent.
#[test]
fn an_index_that_cannot_fail_has_no_other_value() {
    const ROOMS: [&str; 18] = [
        "minitron-core/src/nn/",
        "minitron-core/src/model/",
        "minitron-core/src/mixers/",
        "minitron-core/src/windows/",
        "minitron-core/src/calibrate/",
        "minitron-core/src/plan/",
        "minitron-core/src/prune/",
        "minitron-core/src/reconstruct/",
        "minitron-core/src/evaluate/",
        "minitron-engine/src/data/",
        "minitron-engine/src/score/",
        "minitron-engine/src/train/",
        "minitron-engine/src/search/",
        "minitron-plugins/src/allocators/",
        "minitron-plugins/src/evaluators/",
        "minitron-plugins/src/reconstructions/",
        "minitron-plugins/src/importance/",
        "minitron-plugins/src/losses/",
    ];
    let looks_up = |text: &str| {
        [".get(", ".get_mut(", ".position("]
            .iter()
            .any(|call| text.contains(call))
    };
    let replaces = |text: &str| {
        [".unwrap_or_default()", ".unwrap_or(0)", ".unwrap_or(&"]
            .iter()
            .any(|call| text.contains(call))
    };
    let (mut n_excused, mut objections) = (0, Vec::new());
    for source in of_all_crates()
        .iter()
        .filter(|source| ROOMS.iter().any(|room| source.is_in(room)))
    {
        let mut statement = String::new();
        let mut begin = 0;
        for (idx, line) in source.code.iter().enumerate() {
            if !line.trim_start().starts_with('.') {
                (statement, begin) = (String::new(), idx);
            }
            statement.push_str(line.trim());
            if !(replaces(line) && looks_up(&statement)) {
                continue;
            }
            let above = source.lines[..=begin].iter().rev().skip(1).take(3);
            match above
                .map(|line| line.trim())
                .any(|line| line.starts_with("//") && line.contains("bsent"))
            {
                true => n_excused += 1,
                false => objections.push(format!("{}:{}: {}", source.path, idx + 1, line.trim())),
            }
        }
    }
    assert!(
        n_excused > 3,
        "the pattern that finds such places misses them"
    );
    assert_none(objections, "another value where an index misses");
}

#[test]
fn lines_fit_in_a_hundred_columns() {
    let all = of_all_crates();
    let long = all.iter().flat_map(|source| {
        let numbered = source.lines.iter().enumerate();
        let long = numbered.filter(|(_, line)| line.chars().count() > 100);
        long.map(|(idx, _)| format!("{}:{}", source.path, idx + 1))
    });
    assert_none(long, "over 100 columns");
}

/// A closure with a name is a function that hides in another: few read better so.
#[test]
fn named_closures_are_few() {
    for folder in CRATES {
        let sources = sources(&format!("{folder}/src"));
        let n_lines: usize = sources.iter().map(|source| source.code.len()).sum();
        let is_closure = |line: &&String| {
            let value = line.trim_start().strip_prefix("let ");
            let value = value.and_then(|rest| rest.split_once(" = "));
            value.is_some_and(|(_, value)| value.trim_start_matches("move ").starts_with('|'))
        };
        let all_lines = sources.iter().flat_map(|source| &source.code);
        let n_closures = all_lines.filter(is_closure).count();
        assert!(
            n_closures * 1000 <= 4 * n_lines,
            "{folder}: {n_closures} named closures in {n_lines} lines, at most 4 in 1000"
        );
    }
}

#[test]
fn files_fit_on_a_few_screens() {
    for source in ["minitron-core/src", "minitron-engine/src"]
        .map(sources)
        .iter()
        .flatten()
    {
        assert!(
            source.code.len() <= 400,
            "{}: {} lines, at most 400",
            source.path,
            source.code.len()
        );
    }
    for (source, ..) in plugins() {
        assert!(
            source.code.len() <= 250,
            "{}: {} lines before its tests, at most 250",
            source.path,
            source.code.len()
        );
    }
}

#[test]
fn functions_fit_on_a_screen_or_say_why_not() {
    let mut lengths = Vec::new();
    for source in of_all_crates() {
        let indent = |line: &str| line.len() - line.trim_start().len();
        for (start, line) in source.code.iter().enumerate() {
            let is_function =
                has_word(line, "fn") && !line.trim_end().ends_with(';') && !line.contains("|");
            let first = line.trim_start().split(' ').next().unwrap();
            if !is_function
                || ![
                    "fn",
                    "pub",
                    "pub(super)",
                    "pub(crate)",
                    "async",
                    "unsafe",
                    "const",
                ]
                .contains(&first)
            {
                continue;
            }
            // rustfmt closes a body at the indentation of its `fn`.
            let close = format!("{}}}", " ".repeat(indent(line)));
            // A declaration without a body ends in a semicolon there.
            let is_declared =
                |line: &String| indent(line) == indent(close.as_str()) && line.ends_with(';');
            let length = match line.contains('}') {
                true => 1,
                false => source.code[start..]
                    .iter()
                    .position(|line| *line == close || is_declared(line))
                    .map_or(1, |n| n + 1),
            };
            lengths.push(length);
            let before = source.lines[..start].iter().rev();
            let mut comment = before.take_while(|line| line.trim_start().starts_with(['/', '#']));
            let says_why = comment.any(|line| line.contains("Long because"));
            assert!(
                length <= 60 || says_why,
                "{}:{}: {length} lines, at most 60",
                source.path,
                start + 1
            );
        }
    }
    lengths.sort_unstable();
    assert!(
        lengths.len() > 300,
        "the pattern that finds functions misses them"
    );
    let ninetieth = lengths[lengths.len() * 9 / 10];
    assert!(
        ninetieth <= 28,
        "90 % of functions should have at most 28 lines, got {ninetieth}"
    );
}

#[test]
fn no_file_names_a_place_on_somebodys_machine() {
    // Put together here, so that this file does not name one.
    let places: Vec<String> = ["work", "root", "home", "Users"]
        .iter()
        .map(|top| format!("/{top}/"))
        .collect();
    for path in files(&root()) {
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for place in &places {
            let is_absolute = |(at, _): (usize, &str)| {
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}$)".contains(c))
            };
            assert!(
                !text.match_indices(place.as_str()).any(is_absolute),
                "{} names {place}",
                path.display()
            );
        }
    }
}

/// Cargo takes a path that a build script watches from the package that it is built for: one that
/// is missing there makes every build start over.
#[test]
fn what_a_build_script_watches_is_there() {
    let packages = [
        ("", "build.rs"),
        ("minitron-core", "minitron-core/build.rs"),
        ("minitron-torch", "minitron-torch/build.rs"),
        ("minitron-engine", "build.rs"),
    ];
    let packages = packages.into_iter().chain([
        ("minitron-plugins", "build.rs"),
        ("minitron-cli", "build.rs"),
        ("examples/plugins", "build.rs"),
    ]);
    for (package, script) in packages {
        let text = fs::read_to_string(root().join(script)).unwrap();
        for watched in text
            .split("rerun-if-changed=")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            let is_computed = watched.starts_with('{');
            assert!(
                is_computed || root().join(package).join(watched).exists(),
                "{package}: {script} watches {watched}"
            );
        }
    }
}
