//! Libraries opened while running.

mod cuda;

pub use cuda::make_cuda_visible;
