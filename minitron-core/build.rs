//! What this core is built with, for the handshake of plugin libraries; and libtorch's folder into
//! our own test programs.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.toml");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    set(
        "MINITRON_CORE",
        &format!("{}+{:016x}", variable("CARGO_PKG_VERSION"), sources()),
    );
    set("MINITRON_RUSTC", &rustc());
    set("MINITRON_TARGET", &variable("TARGET"));
    set(
        "MINITRON_FEATURES",
        &format!("panic={}", variable("CARGO_CFG_PANIC")),
    );
    let lib_dir = variable("DEP_TCH_LIBTORCH_LIB");
    set(
        "MINITRON_LIBTORCH",
        &libtorch(&Path::new(&lib_dir).join("..")),
    );
    if !lib_dir.is_empty() {
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib_dir}");
    }
}

fn set(name: &str, value: &str) {
    println!("cargo:rustc-env={name}={value}");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn rustc() -> String {
    let output = Command::new(variable("RUSTC")).arg("--version").output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn read(path: &Path) -> String {
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read_to_string(path).unwrap_or_default()
}

/// libtorch's archive has a file with its version, Python's package a line in another.
fn libtorch(dir: &Path) -> String {
    let package = read(&dir.join("version.py"));
    let line = package
        .lines()
        .find_map(|line| line.strip_prefix("__version__ = "));
    line.map_or_else(
        || read(&dir.join("build-version")).trim().to_owned(),
        |version| version.trim_matches('\'').to_owned(),
    )
}

/// A version says too little while a core is being worked on: two that differ in one line may lay
/// out a type differently.
fn sources() -> u64 {
    let mut paths = Vec::new();
    collect(Path::new("src"), &mut paths);
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths {
        hasher.write(path.to_string_lossy().as_bytes());
        hasher.write(&fs::read(&path).unwrap_or_default());
    }
    hasher.finish()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            paths.push(path);
        }
    }
}
