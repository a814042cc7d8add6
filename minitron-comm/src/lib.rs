//! Several processes of minitron: collectives and a store, on libtorch's own c10d.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | what went wrong between ranks, by kind |
//! | [`world`] | who this process is among others, as its launcher says |
//! | `ffi` | the C side of the shim |
//! | [`store`] | keys, counters and queues that ranks share |
//! | `peers` | which ranks show signs of life |
//! | [`communicator`] | the collectives, whoever does them |
//! | [`solo`] | one process: every collective is done at once |
//! | [`c10d`] | several, over Gloo and NCCL |
//! | [`launch`] | ranks on one machine, started and watched |

pub mod c10d;
pub mod communicator;
pub mod error;
mod ffi;
pub mod launch;
mod peers;
pub mod solo;
pub mod store;
pub mod world;

pub use c10d::{C10d, C10dOptions, HAS_NCCL};
pub use communicator::{Communicator, ReduceOp, Work};
pub use error::{CommError, Result};
pub use solo::Solo;
pub use store::Store;
pub use world::{Launcher, World};
