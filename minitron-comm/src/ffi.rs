//! The C side of the shim, behind types that own what they point to.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{CommError, Result};

type Sink = extern "C" fn(*mut c_void, *const u8, usize);

#[repr(C)]
struct StoreHandle([u8; 0]);
#[repr(C)]
struct GroupHandle([u8; 0]);
#[repr(C)]
struct WorkHandle([u8; 0]);

// SAFETY: The declarations are those of cpp/store.cpp and cpp/group.cpp; no function throws.
unsafe extern "C" {
    fn mt_be_quiet();
    fn mt_error_kind() -> c_int;
    fn mt_error_text() -> *const c_char;
    fn mt_store_tcp(
        host: *const c_char,
        port: u16,
        is_server: bool,
        n_ranks: i64,
        timeout_ms: i64,
    ) -> *mut StoreHandle;
    fn mt_store_prefix(prefix: *const c_char, of: *mut StoreHandle) -> *mut StoreHandle;
    fn mt_store_free(store: *mut StoreHandle);
    fn mt_store_port(store: *mut StoreHandle) -> c_int;
    fn mt_store_set(
        store: *mut StoreHandle,
        key: *const c_char,
        value: *const u8,
        n: usize,
    ) -> c_int;
    fn mt_store_get(
        store: *mut StoreHandle,
        key: *const c_char,
        sink: Sink,
        into: *mut c_void,
    ) -> c_int;
    fn mt_store_has(store: *mut StoreHandle, key: *const c_char) -> c_int;
    fn mt_store_add(store: *mut StoreHandle, key: *const c_char, n: i64, sum: *mut i64) -> c_int;
    fn mt_store_queue_len(store: *mut StoreHandle, queue: *const c_char) -> i64;
    fn mt_store_push(
        store: *mut StoreHandle,
        queue: *const c_char,
        value: *const u8,
        n: usize,
    ) -> c_int;
    fn mt_store_pop(
        store: *mut StoreHandle,
        queue: *const c_char,
        sink: Sink,
        into: *mut c_void,
    ) -> c_int;
}

// SAFETY: As above.
unsafe extern "C" {
    fn mt_group_gloo(
        store: *mut StoreHandle,
        rank: c_int,
        n_ranks: c_int,
        timeout_ms: i64,
        interface: *const c_char,
    ) -> *mut GroupHandle;
    #[cfg(feature = "nccl")]
    fn mt_group_nccl(
        store: *mut StoreHandle,
        rank: c_int,
        n_ranks: c_int,
        timeout_ms: i64,
    ) -> *mut GroupHandle;
    fn mt_group_checked(group: *mut GroupHandle, helper: *mut GroupHandle) -> *mut GroupHandle;
    fn mt_group_free(group: *mut GroupHandle);
    fn mt_all_reduce(
        group: *mut GroupHandle,
        at: *mut *mut C_tensor,
        n: usize,
        op: c_int,
    ) -> *mut WorkHandle;
    fn mt_broadcast(group: *mut GroupHandle, tensor: *mut C_tensor, root: c_int)
    -> *mut WorkHandle;
    fn mt_reduce_scatter(
        group: *mut GroupHandle,
        into: *mut C_tensor,
        from: *mut C_tensor,
        op: c_int,
    ) -> *mut WorkHandle;
    fn mt_all_gather(
        group: *mut GroupHandle,
        into: *mut C_tensor,
        from: *mut C_tensor,
    ) -> *mut WorkHandle;
    fn mt_barrier(group: *mut GroupHandle, timeout_ms: i64) -> c_int;
    fn mt_work_wait(work: *mut WorkHandle) -> c_int;
    fn mt_work_free(work: *mut WorkHandle);
}

/// Where a store is met.
#[derive(Debug)]
pub(crate) struct Address {
    pub host: String,
    /// 0 for a free one, of a server.
    pub port: u16,
    pub is_server: bool,
    /// How many meet there; none where nobody is waited for.
    pub n_ranks: Option<usize>,
}

/// A client of a store, and its server where this process holds it.
#[derive(Debug)]
pub(crate) struct RawStore(NonNull<StoreHandle>);

// SAFETY: A store's client locks itself.
unsafe impl Send for RawStore {}

impl Drop for RawStore {
    fn drop(&mut self) {
        // SAFETY: The handle is ours, and nobody holds it after this.
        unsafe { mt_store_free(self.0.as_ptr()) }
    }
}

impl RawStore {
    pub fn tcp(address: &Address, timeout: Duration) -> Result<Self> {
        if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_none() {
            // SAFETY: It sets a number of libtorch's.
            unsafe { mt_be_quiet() };
        }
        let host = text(&address.host)?;
        let n_ranks = address.n_ranks.map_or(0, |n| n as i64);
        // SAFETY: The text lives through the call.
        let handle = unsafe {
            mt_store_tcp(
                host.as_ptr(),
                address.port,
                address.is_server,
                n_ranks,
                millis(timeout),
            )
        };
        owned(handle).map(RawStore)
    }

    pub fn with_prefix(&self, prefix: &str) -> Result<Self> {
        let prefix = text(prefix)?;
        // SAFETY: Both live through the call; the new handle shares the store.
        owned(unsafe { mt_store_prefix(prefix.as_ptr(), self.0.as_ptr()) }).map(RawStore)
    }

    pub fn port(&self) -> u16 {
        // SAFETY: The handle is alive.
        u16::try_from(unsafe { mt_store_port(self.0.as_ptr()) }).unwrap_or_default()
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: The value's bytes are copied before the call returns.
        done(unsafe { mt_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        let key = text(key)?;
        let mut value = Vec::new();
        let into = (&raw mut value).cast();
        // SAFETY: `into` is the vector that `fill` takes it for, and outlives the call.
        done(unsafe { mt_store_get(self.0.as_ptr(), key.as_ptr(), fill, into) })?;
        Ok(value)
    }

    pub fn has(&self, key: &str) -> Result<bool> {
        let key = text(key)?;
        // SAFETY: The text lives through the call.
        match unsafe { mt_store_has(self.0.as_ptr(), key.as_ptr()) } {
            found if found >= 0 => Ok(found == 1),
            _ => Err(last_error()),
        }
    }

    pub fn count(&self, key: &str, n: i64) -> Result<i64> {
        let key = text(key)?;
        let mut sum = 0;
        // SAFETY: `sum` outlives the call.
        done(unsafe { mt_store_add(self.0.as_ptr(), key.as_ptr(), n, &raw mut sum) })?;
        Ok(sum)
    }

    pub fn push(&self, queue: &str, value: &[u8]) -> Result<()> {
        let queue = text(queue)?;
        // SAFETY: The value's bytes are copied before the call returns.
        done(unsafe { mt_store_push(self.0.as_ptr(), queue.as_ptr(), value.as_ptr(), value.len()) })
    }

    pub fn queue_len(&self, queue: &str) -> Result<usize> {
        let queue = text(queue)?;
        // SAFETY: The text lives through the call.
        let len = unsafe { mt_store_queue_len(self.0.as_ptr(), queue.as_ptr()) };
        usize::try_from(len).map_err(|_| last_error())
    }

    pub fn pop(&self, queue: &str) -> Result<Vec<u8>> {
        let queue = text(queue)?;
        let mut value = Vec::new();
        let into = (&raw mut value).cast();
        // SAFETY: `into` is the vector that `fill` takes it for, and outlives the call.
        done(unsafe { mt_store_pop(self.0.as_ptr(), queue.as_ptr(), fill, into) })?;
        Ok(value)
    }
}

/// A group of ranks.
#[derive(Debug)]
pub(crate) struct RawGroup(NonNull<GroupHandle>);

// SAFETY: It is used by one thread at a time; c10d's own threads have their own references.
unsafe impl Send for RawGroup {}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: The handle is ours, and nobody holds it after this.
        unsafe { mt_group_free(self.0.as_ptr()) }
    }
}

impl RawGroup {
    pub fn gloo(
        store: &RawStore,
        (rank, n_ranks): (usize, usize),
        timeout: Duration,
        interface: Option<&str>,
    ) -> Result<Self> {
        let interface = interface.map(text).transpose()?;
        let name = interface
            .as_ref()
            .map_or(std::ptr::null(), |name| name.as_ptr());
        // SAFETY: Store and text live through the call; the group shares the store.
        let handle = unsafe {
            mt_group_gloo(
                store.0.as_ptr(),
                number(rank)?,
                number(n_ranks)?,
                millis(timeout),
                name,
            )
        };
        owned(handle).map(RawGroup)
    }

    /// On GPUs.
    #[cfg(feature = "nccl")]
    pub fn nccl(
        store: &RawStore,
        (rank, n_ranks): (usize, usize),
        timeout: Duration,
    ) -> Result<Self> {
        let (rank, n_ranks) = (number(rank)?, number(n_ranks)?);
        // SAFETY: The store lives through the call; the group shares it.
        let handle = unsafe { mt_group_nccl(store.0.as_ptr(), rank, n_ranks, millis(timeout)) };
        owned(handle).map(RawGroup)
    }

    /// On GPUs, which this build does not know.
    #[cfg(not(feature = "nccl"))]
    pub fn nccl(_: &RawStore, _: (usize, usize), _: Duration) -> Result<Self> {
        Err(CommError::Unsupported(
            "this build has no NCCL, so ranks compute on CPUs alone; build it with `make build \
             CUDA=1`, or cargo's --features nccl"
                .into(),
        ))
    }

    /// One that compares what the ranks are about to do, over `helper`.
    pub fn checked(&self, helper: &RawGroup) -> Result<Self> {
        // SAFETY: Both are alive; the new handle shares them.
        owned(unsafe { mt_group_checked(self.0.as_ptr(), helper.0.as_ptr()) }).map(RawGroup)
    }

    pub fn all_reduce(&self, tensors: &[&Tensor], op: c_int) -> Result<RawWork> {
        let mut at: Vec<*mut C_tensor> = tensors.iter().map(|tensor| raw(tensor)).collect();
        // SAFETY: The work holds its own references to the tensors.
        let handle = unsafe { mt_all_reduce(self.0.as_ptr(), at.as_mut_ptr(), at.len(), op) };
        owned(handle).map(RawWork)
    }

    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<RawWork> {
        // SAFETY: The work holds its own reference to the tensor.
        let handle = unsafe { mt_broadcast(self.0.as_ptr(), raw(tensor), number(root)?) };
        owned(handle).map(RawWork)
    }

    pub fn reduce_scatter(&self, into: &Tensor, from: &Tensor, op: c_int) -> Result<RawWork> {
        // SAFETY: The work holds its own references to the tensors.
        let handle = unsafe { mt_reduce_scatter(self.0.as_ptr(), raw(into), raw(from), op) };
        owned(handle).map(RawWork)
    }

    pub fn all_gather(&self, into: &Tensor, from: &Tensor) -> Result<RawWork> {
        // SAFETY: The work holds its own references to the tensors.
        let handle = unsafe { mt_all_gather(self.0.as_ptr(), raw(into), raw(from)) };
        owned(handle).map(RawWork)
    }

    pub fn barrier(&self, timeout: Duration) -> Result<()> {
        // SAFETY: The handle is alive.
        done(unsafe { mt_barrier(self.0.as_ptr(), millis(timeout)) })
    }
}

/// A collective under way.
#[derive(Debug)]
pub(crate) struct RawWork(NonNull<WorkHandle>);

// SAFETY: c10d's work locks itself.
unsafe impl Send for RawWork {}

impl Drop for RawWork {
    fn drop(&mut self) {
        // SAFETY: The handle is ours; while the collective runs, c10d has its own reference, and of
        // what goes between two ranks the work itself, whose end takes it back from them.
        unsafe { mt_work_free(self.0.as_ptr()) }
    }
}

impl RawWork {
    pub fn wait(&self) -> Result<()> {
        // SAFETY: The handle is alive.
        done(unsafe { mt_work_wait(self.0.as_ptr()) })
    }
}

extern "C" fn fill(into: *mut c_void, at: *const u8, n: usize) {
    if n > 0 {
        // SAFETY: `into` is a vector of the caller's, and `n` bytes stand at `at` during the call.
        let (value, bytes) = unsafe {
            (
                &mut *into.cast::<Vec<u8>>(),
                std::slice::from_raw_parts(at, n),
            )
        };
        value.extend_from_slice(bytes);
    }
}

fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        CommError::Unsupported(format!("expected no NUL in `{}`", text.escape_debug()))
    })
}

fn number(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| CommError::Unsupported(format!("{n} ranks are too many")))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn owned<T>(handle: *mut T) -> Result<NonNull<T>> {
    NonNull::new(handle).ok_or_else(last_error)
}

fn done(status: c_int) -> Result<()> {
    if status < 0 {
        Err(last_error())
    } else {
        Ok(())
    }
}

/// The last error of this thread; the kinds are those of shim.h.
fn last_error() -> CommError {
    // SAFETY: The text belongs to this thread and lives until its next call.
    let (kind, text) = unsafe { (mt_error_kind(), CStr::from_ptr(mt_error_text())) };
    let text = text.to_string_lossy();
    match kind {
        3 => CommError::PeerLost(first_line(&text)),
        4 => CommError::QueueEmpty,
        5 => CommError::Timeout(first_line(&text)),
        _ => CommError::of_backend(&text),
    }
}

/// What c10d says is followed by stacks.
fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().to_owned()
}
