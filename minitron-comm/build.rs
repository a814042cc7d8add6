//! Compiles the shim over libtorch's c10d, and links what it needs.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=stubs");
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
        .define("USE_C10D_GLOO", None)
        // What c10d's headers name of gloo stands behind pointers: declarations serve.
        .include("stubs")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["cpp/store.cpp", "cpp/group.cpp"])
        .compile("minitron_c10d");
    println!("cargo:rustc-link-search=native={}", lib_dir.display());
    for library in ["torch_cpu", "c10", "stdc++"] {
        println!("cargo:rustc-link-lib={library}");
    }
    println!(
        "cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{}",
        lib_dir.display()
    );
}
