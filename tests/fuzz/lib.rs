//! libFuzzer's side of the targets: their bodies lie in `tests/hostile`.

#[path = "../hostile/desk.rs"]
pub mod desk;
#[path = "../hostile/memory.rs"]
pub mod memory;
#[path = "../hostile/targets.rs"]
pub mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

pub use libfuzzer_sys;

static LAST_WORDS: Mutex<String> = Mutex::new(String::new());

/// Takes libFuzzer's own hook away, which ends the process although somebody catches the panic: the
/// guard of Parquet files does.
pub fn begin() {
    tch::set_num_threads(1);
    set_hook(Box::new(|panic| {
        let mut last_words = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        *last_words = panic.to_string();
    }));
}

/// One execution.
pub fn run(body: fn(&[u8]), bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| body(bytes))).is_err() {
        eprintln!("{}", LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
}

/// A target by the name of its body.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::begin(),
            |bytes: &[u8]| $crate::run($crate::targets::$name, bytes)
        );
    };
}
