#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{binary, root};

fn chapters() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs/src"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    found.sort();
    found
}

/// Targets of `[text](target)`, without code.
fn links(text: &str) -> Vec<String> {
    let is_prose = |(idx, part): (usize, &'_ str)| idx.is_multiple_of(2).then_some(part.to_owned());
    let prose: String = text.split("```").enumerate().filter_map(is_prose).collect();
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// As mdBook makes them from headings.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept: String = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .collect();
    kept.replace(' ', "-")
}

#[test]
fn every_link_of_the_guide_leads_somewhere_and_every_chapter_is_in_its_summary() {
    let summary = fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    let mut n_links = 0;
    for path in chapters() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("]({name})")),
            "{name} is not in the summary"
        );
        for link in links(&fs::read_to_string(&path).unwrap()) {
            n_links += 1;
            if link.starts_with("https://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            let text =
                fs::read_to_string(&target).unwrap_or_else(|e| panic!("{name}: {link}: {e}"));
            let mut headings = text
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(anchor);
            assert!(
                part.is_empty() || headings.any(|heading| heading == part),
                "{name}: {link}: no such heading"
            );
        }
    }
    assert!(n_links > 8, "the pattern that finds links misses them");
}

#[test]
fn the_chapter_on_families_shows_the_code_of_the_example_that_is_tested() {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let chapter = fs::read_to_string(root().join("docs/src/families.md")).unwrap();
    let example = plain(&fs::read_to_string(root().join("examples/plugins/src/glm4.rs")).unwrap());
    let blocks: Vec<&str> = chapter
        .split("```rust\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 4);
    for block in blocks {
        assert!(
            example.contains(&plain(block)),
            "not in the example: {block}"
        );
    }
}

/// Blocks of a chapter that show commands, each command with its output.
fn consoles(text: &str) -> Vec<Vec<(String, String)>> {
    let blocks = text
        .split("```console\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    let block = |block: &str| {
        let mut commands: Vec<(String, String)> = Vec::new();
        for line in block.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((command, _))) if command.ends_with('\\') => {
                    command.pop();
                    command.push_str(line.trim_start());
                }
                (None, Some((_, output))) => output.extend([line, "\n"]),
                (None, None) => panic!("output before a command: {line}"),
            }
        }
        commands
    };
    blocks.map(block).collect()
}

/// Whether an output is the expected one, line by line: words alike, numbers within a hundredth,
/// anything for `…`, which at the end of a line stands for all that follows. Rules of tables are as
/// long as the widest value.
fn is_as_expected(found: &str, expected: &str) -> bool {
    let is_text =
        |line: &&str| !line.trim().is_empty() && line.contains(|c: char| !"─═ ".contains(c));
    let (found, expected) = (
        found.lines().filter(is_text),
        expected.lines().filter(is_text),
    );
    let lines: Vec<(&str, &str)> = found.clone().zip(expected.clone()).collect();
    found.count() == lines.len()
        && expected.count() == lines.len()
        && lines.iter().all(|(a, b)| is_line(a, b))
}

fn is_line(found: &str, expected: &str) -> bool {
    let number = |text: &str| text.trim_end_matches(['%', ',', ';']).parse::<f64>().ok();
    let alike = |(found, expected): (&str, &str)| match (number(found), number(expected)) {
        (Some(found), Some(expected)) => (found - expected).abs() <= 1e-2 * expected.abs(),
        _ => found == expected || expected == "…",
    };
    let n_expected = expected.split_whitespace().count();
    let n_found = found.split_whitespace().count();
    let is_open = expected.trim_end().ends_with('…') && n_found >= n_expected;
    (n_found == n_expected || is_open)
        && found
            .split_whitespace()
            .zip(expected.split_whitespace())
            .all(alike)
}

#[test]
fn the_examples_give_the_output_that_the_guide_shows() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display().to_string();
    let text = fs::read_to_string(root().join("docs/src/examples.md")).unwrap();
    let path = format!(
        "{}:{}",
        binary().parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let library = binary().with_file_name("libminitron_examples.so");
    let mut n_outputs = 0;
    // The first block builds.
    for (command, expected) in consoles(&text).into_iter().skip(1).flatten() {
        let run = run(&command.replace("out/examples", &here), &path, &library);
        let found = run.replace(&here, "out/examples");
        assert!(
            is_as_expected(&found, &expected),
            "$ {command}\n{found}\nexpected:\n{expected}"
        );
        n_outputs += usize::from(!expected.is_empty());
    }
    assert!(n_outputs >= 8, "{n_outputs} commands with an output");
}

/// Both streams of a command, whether or not it succeeds.
fn run(command: &str, path: &str, library: &Path) -> String {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(root())
        .env("PATH", path)
        .env("LIB", library);
    let output = shell.output().unwrap();
    [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

#[test]
fn the_comparison_of_outputs_can_fail() {
    assert!(is_as_expected("loss 1.004", "loss  1.0"));
    assert!(is_as_expected("took 3 s", "took … s"));
    assert!(is_as_expected("──\nties: a b\n", "ties: …"));
    for (found, expected) in [
        ("loss 1.02", "loss 1.0"),
        ("loss", "loss 1"),
        ("loss 1 x", "loss 1"),
        ("lost 1", "loss 1"),
        ("a\nb", "a"),
    ] {
        assert!(!is_as_expected(found, expected), "{found}");
    }
    assert_eq!(
        consoles("```console\n$ a \\\n  b\nc\n```").concat(),
        [("a b".to_owned(), "c\n".to_owned())]
    );
}

/// The command lines of a text's shell blocks, in one line each.
fn command_lines(text: &str) -> Vec<String> {
    let is_shell = |block: &&str| block.starts_with("sh\n") || block.starts_with("console\n");
    let blocks = text.split("```").skip(1).step_by(2).filter(is_shell);
    let whole = blocks
        .map(|block| block.replace("\\\n", " "))
        .collect::<Vec<_>>()
        .join("\n");
    let lines = whole
        .lines()
        .map(|line| line.trim_start_matches("$ ").trim());
    lines
        .filter(|line| line.starts_with("minitron "))
        .map(str::to_owned)
        .collect()
}

/// Its words, without a comment at its end; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (c, quote, found.last_mut().unwrap()) {
            ('#', None, last) if last.is_empty() => break,
            (' ' | '|', None, _) => found.push(String::new()),
            ('\'' | '"', None, _) => quote = Some(c),
            (c, Some(open), _) if c == open => quote = None,
            (c, _, last) => last.push(c),
        }
    }
    found.retain(|word| !word.is_empty());
    found
}

fn help(command: &[String]) -> Option<String> {
    let output = Command::new(binary())
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_guide_names_every_command_and_types_no_flag_that_its_command_lacks() {
    let readme = root().join("README.md");
    let texts: Vec<String> = chapters()
        .iter()
        .chain([&readme])
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let lines: Vec<Vec<String>> = texts
        .iter()
        .flat_map(|text| command_lines(text))
        .map(|line| words(&line))
        .collect();
    // What `launch` starts is a command of its own.
    let lines: Vec<&[String]> = lines
        .iter()
        .flat_map(|line| line.split(|word| word == "--"))
        .collect();
    assert!(
        lines.len() > 50,
        "the pattern that finds command lines misses them: {}",
        lines.len()
    );
    let all = help(&[]).unwrap();
    let listed = all
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let commands: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for command in commands
        .iter()
        .filter(|command| !["help", "demo"].contains(command))
    {
        assert!(
            lines
                .iter()
                .any(|line| line.iter().any(|word| word == command)),
            "no page shows `{command}`"
        );
    }
    let mut helps = std::collections::BTreeMap::new();
    for line in &lines {
        let Some(at) = line
            .iter()
            .position(|word| commands.contains(&word.as_str()))
        else {
            assert!(line[1].starts_with("--"), "no such command: {line:?}");
            continue;
        };
        // `plugins show`, `recipe check`: two words are one command.
        let two = ["plugins", "recipe"].contains(&line[at].as_str()) && line.len() > at + 1;
        let command = line[at..=at + usize::from(two)].to_vec();
        let text = helps
            .entry(command.clone())
            .or_insert_with(|| help(&command));
        let text = text
            .as_ref()
            .unwrap_or_else(|| panic!("no such command: {command:?}"));
        for flag in line.iter().filter(|word| word.starts_with("--")) {
            let flag = flag.split('=').next().unwrap();
            let is_there = text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .any(|word| word == flag);
            assert!(
                is_there,
                "`{}` has no {flag}: {}",
                command.join(" "),
                line.join(" ")
            );
        }
    }
}
