use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Opens `libtorch_cuda.so` beside the libtorch in use, where there is one. Nothing links it by
/// name, and libtorch sees no GPU until it is loaded.
#[allow(unsafe_code)]
pub fn make_cuda_visible() {
    // SAFETY: libtorch's own library, whose initialisers only register its kernels; it is kept open
    // to the end.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }
    {
        std::mem::forget(library);
    }
}
