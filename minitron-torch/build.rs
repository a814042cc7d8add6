//! Compiles the shim over libtorch, and links what it needs.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // What torch-sys says of itself; it fails by itself where there is no libtorch.
    let Ok(lib_dir) = env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        return;
    };
    let include = lib_dir.with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        // libtorch is built so, and some of its headers' types have further fields otherwise.
        .define("NDEBUG", None)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["cpp/counter.cpp", "cpp/lists.cpp", "cpp/memory.cpp"])
        .compile("minitron_torch");
    println!("cargo:rustc-link-search=native={}", lib_dir.display());
    for library in ["torch_cpu", "c10", "stdc++"] {
        println!("cargo:rustc-link-lib={library}");
    }
    println!(
        "cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{}",
        lib_dir.display()
    );
}
