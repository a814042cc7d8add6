//! Writes libtorch's folder into whatever this crate links, so that no program of ours needs
//! `LD_LIBRARY_PATH`.
//!
//! An RPATH rather than a RUNPATH: `libtorch_cpu.so` looks up its own needs through the program's
//! RPATH alone.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(lib_dir) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{lib_dir}");
}
