//! Compiles the shim over libtorch's c10d, and links what it needs.
//!
//! With the feature `nccl`, CUDA's headers are looked for in CUDA_HOME, and where the `torch` package
//! for CUDA brings them: beside it in `nvidia/`.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=stubs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // What torch-sys says of itself; it fails by itself where there is no libtorch.
    let Ok(lib_dir) = env::var("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        return;
    };
    let include = lib_dir.with_file_name("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .define("USE_C10D_GLOO", None)
        // As libtorch is built: its classes are bases here.
        .define("NDEBUG", None)
        // What c10d's headers name of gloo stands behind pointers: declarations serve.
        .include("stubs")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["cpp/store.cpp", "cpp/group.cpp"]);
    let mut libraries = vec!["torch_cpu", "c10", "stdc++"];
    if env::var_os("CARGO_FEATURE_NCCL").is_some() {
        build.define("USE_C10D_NCCL", None).file("cpp/nccl.cpp");
        for headers in cuda_headers(&lib_dir) {
            build.include(headers);
        }
        libraries.splice(..0, ["torch_cuda", "c10_cuda"]);
    }
    build.compile("minitron_c10d");
    println!("cargo:rustc-link-search=native={}", lib_dir.display());
    for library in libraries {
        println!("cargo:rustc-link-lib={library}");
    }
    println!(
        "cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{}",
        lib_dir.display()
    );
}

/// Folders of headers that are there.
fn cuda_headers(lib_dir: &Path) -> impl Iterator<Item = PathBuf> {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    // .../torch/lib, and beside torch the packages that it depends on.
    let packages = lib_dir.join("../../nvidia");
    let brought = ["nccl/include", "cu13/include", "cu13/include/cccl"];
    let brought = brought.map(|headers| packages.join(headers));
    home.into_iter().chain(brought).filter(|it| it.is_dir())
}
