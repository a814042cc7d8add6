#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use minitron::root;
use serde_json::Value;

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What cargo knows of all packages that are locked and built for this machine; nothing is fetched.
fn packages() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let about = String::from_utf8(rustc.stdout).unwrap();
    let host = about
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    // Of other platforms not everything lies here.
    let args = [
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        host,
    ];
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Words in quotes of an entry of deny.toml, from its name to the bracket that closes its list.
fn listed(deny: &str, entry: &str) -> Vec<String> {
    let (_, rest) = deny
        .split_once(&format!("\n{entry} = ["))
        .unwrap_or_else(|| panic!("no {entry} in deny.toml"));
    let list = rest.split_once("\n]").map_or(rest, |(list, _)| list);
    list.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Whether an expression of SPDX (`A OR (B AND C)`, older crates write `A/B`) can be met by what is
/// allowed.
fn is_met(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let expression = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let (met, rest) = either(&words, allowed);
    assert!(rest.is_empty(), "{expression}: {rest:?} is left");
    met
}

fn either<'w>(words: &'w [&'w str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = both(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (other, after) = both(more, allowed);
        (met, rest) = (met || other, after);
    }
    (met, rest)
}

fn both<'w>(words: &'w [&'w str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (other, after) = one(more, allowed);
        (met, rest) = (met && other, after);
    }
    (met, rest)
}

fn one<'w>(words: &'w [&'w str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'w [&'w str]) {
    match words {
        ["(", inner @ ..] => {
            let (met, rest) = either(inner, allowed);
            (met, rest.get(1..).unwrap_or_default())
        }
        [name, "WITH", exception, rest @ ..] => {
            (allowed(&format!("{name} WITH {exception}")), rest)
        }
        [name, rest @ ..] => (allowed(name), rest),
        [] => (false, &[]),
    }
}

#[test]
fn expressions_of_licences_are_read() {
    let allowed = |name: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&name);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("GPL-3.0 AND ISC OR BSD-3-Clause", false),
        ("Apache-2.0 WITH LLVM-exception", true),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_licence_of_what_is_locked_is_on_the_list() {
    let deny = read("deny.toml");
    let allowed = listed(&deny, "allow");
    let exceptions = listed(&deny, "exceptions");
    let packages = packages();
    assert!(
        packages.len() > 100,
        "cargo tells of {} packages",
        packages.len()
    );
    for package in &packages {
        let (name, licence) = (
            package["name"].as_str().unwrap(),
            package["license"].as_str(),
        );
        let licence = licence.unwrap_or_else(|| panic!("{name} says no licence"));
        // An exception names the licence, then the crate.
        let excepted = |word: &str| {
            exceptions
                .chunks(2)
                .any(|pair| pair == [word.to_owned(), name.to_owned()])
        };
        let is_allowed = |word: &str| allowed.iter().any(|other| other == word) || excepted(word);
        assert!(
            is_met(licence, &is_allowed),
            "{name}: {licence} is not on the list of deny.toml"
        );
    }
    for licence in &allowed {
        let uses = |package: &&Value| {
            package["license"]
                .as_str()
                .is_some_and(|said| said.contains(licence.as_str()))
        };
        assert!(
            packages.iter().any(|package| uses(&package)),
            "{licence} is on the list, and nothing needs it"
        );
    }
}

#[test]
fn everything_comes_from_the_registry_as_it_is_locked() {
    for package in packages() {
        let source = package["source"].as_str();
        let is_ours = package["name"].as_str().unwrap().starts_with("minitron");
        let is_registry = source.is_some_and(|source| {
            source.starts_with("registry+https://github.com/rust-lang/crates.io-index")
        });
        assert!(
            is_registry || is_ours && source.is_none(),
            "{}: {source:?}",
            package["name"]
        );
        assert!(
            !["openssl", "openssl-sys", "native-tls"].contains(&package["name"].as_str().unwrap())
        );
    }
    let lock = read("Cargo.lock");
    let locked = lock
        .split("[[package]]")
        .filter(|package| package.contains("source = "));
    assert!(
        locked
            .into_iter()
            .all(|package| package.contains("checksum = "))
    );
}

#[test]
fn builds_take_the_versions_that_are_locked() {
    let tracked = Command::new("git")
        .args(["ls-files", "Cargo.lock"])
        .current_dir(root())
        .output()
        .unwrap();
    // A copy without git's folder has nothing to ask.
    if tracked.status.success() {
        assert_eq!(
            String::from_utf8_lossy(&tracked.stdout).trim(),
            "Cargo.lock"
        );
    }
    let makefile = read("Makefile");
    let builds = |line: &&str| {
        let named = |job: &&str| {
            [format!("cargo {job} "), format!("$(CARGO) {job} ")]
                .iter()
                .any(|call| line.contains(call))
        };
        ["build", "test", "clippy", "doc", "bench"]
            .iter()
            .any(named)
    };
    let lines: Vec<&str> = makefile.lines().filter(builds).collect();
    assert!(
        lines.len() >= 6 && lines.iter().all(|line| line.contains("--locked")),
        "{lines:?}"
    );
    assert!(
        read(".ci/run")
            .lines()
            .filter(builds)
            .all(|line| line.contains("--locked"))
    );
}

#[test]
fn every_python_package_has_one_version() {
    let requirements = read("tools/requirements.txt");
    let pins = requirements
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut names = BTreeSet::new();
    for pin in pins {
        let (name, version) = pin
            .split_once("==")
            .unwrap_or_else(|| panic!("{pin}: expected NAME==VERSION"));
        assert!(names.insert(name), "{name} is there twice");
        assert!(
            version.starts_with(|c: char| c.is_ascii_digit())
                && !version.contains(['*', ',', ' ', '<', '>']),
            "{pin}"
        );
    }
    assert!(names.contains("torch") && names.contains("transformers"));
}

/// Sources below a folder.
fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn one_file_alone_speaks_with_the_network() {
    const NETWORK: [&str; 6] = [
        "hf_hub",
        "ureq",
        "std::net",
        "TcpStream",
        "UdpSocket",
        "reqwest",
    ];
    let mut found = Vec::new();
    for dir in [
        "minitron-core/src",
        "minitron-engine/src",
        "minitron-plugins/src",
        "minitron-cli/src",
        "examples/plugins/src",
    ] {
        sources(&root().join(dir), &mut found);
    }
    let speaks = |text: &str| NETWORK.iter().any(|word| text.contains(word));
    let names: Vec<&str> = found
        .iter()
        .filter(|(_, text)| speaks(text))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["minitron-cli/src/hub.rs"]);
}
