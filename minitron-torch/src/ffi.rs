//! The C side of the shim, behind types that own what they point to.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{NonNull, null};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

#[repr(C)]
struct CounterHandle([u8; 0]);

/// Pointers to tensors that live through a call.
#[repr(C)]
struct List {
    at: *const *const C_tensor,
    n: usize,
}

/// The constants of an update, as lists.cpp has them.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RawStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub eps: f64,
    pub n_steps: f64,
}

/// What an update takes: weights, gradients, first and second moments.
pub(crate) type AdamWLists<'a> = [&'a [Tensor]; 4];

type CountSink = extern "C" fn(*mut c_void, *const c_char, i64);
type TensorSink = extern "C" fn(*mut c_void, *mut C_tensor);

// SAFETY: The declarations are those of the files in cpp/; no function throws.
unsafe extern "C" {
    fn mtt_error() -> *const c_char;
    fn mtt_counter_begin() -> *mut CounterHandle;
    fn mtt_counter_end(counter: *mut CounterHandle, sink: CountSink, into: *mut c_void) -> c_int;
    fn mtt_fused_adamw(
        weights: List,
        gradients: List,
        ms: List,
        vs: List,
        step: *const RawStep,
        divisor: *const C_tensor,
    ) -> c_int;
    fn mtt_foreach_norm(tensors: List, sink: TensorSink, into: *mut c_void) -> c_int;
    fn mtt_foreach_copy(into: List, from: List) -> c_int;
    fn mtt_foreach_zero(tensors: List) -> c_int;
    fn mtt_read(tensors: List, into: *mut f64, n: usize) -> c_int;
    fn mtt_map_large_tensors(n_bytes: usize);
    fn mtt_use_huge_pages();
    fn mtt_swap_memory(one: *mut C_tensor, other: *mut C_tensor) -> c_int;
    fn mtt_set_version(tensor: *mut C_tensor, version: i64) -> c_int;
}

pub(crate) fn use_huge_pages() {
    // SAFETY: It sets a variable of the environment; the caller has one thread.
    unsafe { mtt_use_huge_pages() }
}

pub(crate) fn map_large_tensors(n_bytes: usize) {
    // SAFETY: It sets a number of the C library, which locks itself.
    unsafe { mtt_map_large_tensors(n_bytes) }
}

pub(crate) fn swap_memory(one: &Tensor, other: &Tensor) -> Result<(), TchError> {
    let (one, other) = (one.as_ptr().cast_mut(), other.as_ptr().cast_mut());
    // SAFETY: Both live through the call. Whoever calls sees to it that nothing reads a tensor
    // whose memory is gone.
    done(unsafe { mtt_swap_memory(one, other) })
}

pub(crate) fn set_version(tensor: &Tensor, version: i64) -> Result<(), TchError> {
    // SAFETY: The tensor lives through the call; a version is a number beside its values.
    done(unsafe { mtt_set_version(tensor.as_ptr().cast_mut(), version) })
}

/// A counter of this thread; it stays there.
#[derive(Debug)]
pub(crate) struct RawCounter {
    handle: Option<NonNull<CounterHandle>>,
    of_thread: PhantomData<*const ()>,
}

impl RawCounter {
    pub fn begin() -> Result<Self, TchError> {
        // SAFETY: It gives a handle that is ours, or none.
        let handle = unsafe { mtt_counter_begin() };
        Ok(RawCounter {
            handle: Some(NonNull::new(handle).ok_or_else(last_error)?),
            of_thread: PhantomData,
        })
    }

    pub fn end(mut self) -> Result<Vec<(String, u64)>, TchError> {
        let mut counts = Vec::new();
        self.finish(&mut counts)?;
        Ok(counts)
    }

    fn finish(&mut self, counts: &mut Vec<(String, u64)>) -> Result<(), TchError> {
        let Some(handle) = self.handle.take() else {
            return Ok(());
        };
        let into: *mut Vec<(String, u64)> = counts;
        // SAFETY: The handle is ours and taken, so that it ends once; it cannot have left its
        // thread. `into` is the vector that `keep_count` takes it for, and outlives the call.
        done(unsafe { mtt_counter_end(handle.as_ptr(), keep_count, into.cast()) })
    }
}

impl Drop for RawCounter {
    fn drop(&mut self) {
        let _ = self.finish(&mut Vec::new());
    }
}

extern "C" fn keep_count(into: *mut c_void, name: *const c_char, n: i64) {
    // SAFETY: `into` is a vector of the caller's, and the name stands there during the call.
    let (counts, name) = unsafe {
        (
            &mut *into.cast::<Vec<(String, u64)>>(),
            CStr::from_ptr(name),
        )
    };
    counts.push((name.to_string_lossy().into_owned(), n.unsigned_abs()));
}

extern "C" fn keep_tensor(into: *mut c_void, tensor: *mut C_tensor) {
    // SAFETY: `into` is a vector of the caller's, and the tensor is handed over.
    let (tensors, tensor) = unsafe { (&mut *into.cast::<Vec<Tensor>>(), Tensor::from_ptr(tensor)) };
    tensors.push(tensor);
}

pub(crate) fn fused_adamw(
    lists: AdamWLists,
    step: &RawStep,
    divisor: Option<&Tensor>,
) -> Result<(), TchError> {
    let [weights, ..] = lists;
    lists
        .iter()
        .try_for_each(|other| same_len(weights, other))?;
    let pointers = lists.map(pointers);
    let [weights, gradients, ms, vs] = pointers.each_ref().map(|pointers| list(pointers));
    let divisor = divisor.map_or(null(), |divisor| divisor.as_ptr());
    // SAFETY: Lists, step and divisor live through the call; tensors change as tch changes them.
    done(unsafe { mtt_fused_adamw(weights, gradients, ms, vs, step, divisor) })
}

pub(crate) fn foreach_norm(tensors: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let pointers = pointers(tensors);
    let mut norms: Vec<Tensor> = Vec::with_capacity(tensors.len());
    let into = (&raw mut norms).cast();
    // SAFETY: `into` is the vector that `keep_tensor` takes it for, and outlives the call.
    done(unsafe { mtt_foreach_norm(list(&pointers), keep_tensor, into) })?;
    Ok(norms)
}

pub(crate) fn foreach_copy(into: &[Tensor], from: &[Tensor]) -> Result<(), TchError> {
    same_len(into, from)?;
    let (into, from) = (pointers(into), pointers(from));
    // SAFETY: The lists live through the call.
    done(unsafe { mtt_foreach_copy(list(&into), list(&from)) })
}

pub(crate) fn foreach_zero(tensors: &[Tensor]) -> Result<(), TchError> {
    let pointers = pointers(tensors);
    // SAFETY: The list lives through the call.
    done(unsafe { mtt_foreach_zero(list(&pointers)) })
}

pub(crate) fn read(tensors: &[Tensor]) -> Result<Vec<f64>, TchError> {
    let pointers = pointers(tensors);
    let mut numbers = vec![0.0; tensors.iter().map(|it| it.numel()).sum()];
    // SAFETY: The list lives through the call, and there is room for as many numbers as it is told.
    done(unsafe { mtt_read(list(&pointers), numbers.as_mut_ptr(), numbers.len()) })?;
    Ok(numbers)
}

fn same_len(one: &[Tensor], other: &[Tensor]) -> Result<(), TchError> {
    if one.len() == other.len() {
        return Ok(());
    }
    let (one, other) = (one.len(), other.len());
    let message = format!("expected lists of one length, got {one} and {other}");
    Err(TchError::Torch(message))
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|it| it.as_ptr()).collect()
}

fn list(pointers: &[*const C_tensor]) -> List {
    List {
        at: pointers.as_ptr(),
        n: pointers.len(),
    }
}

fn done(status: c_int) -> Result<(), TchError> {
    if status < 0 {
        Err(last_error())
    } else {
        Ok(())
    }
}

/// The last error of this thread.
fn last_error() -> TchError {
    // SAFETY: The text belongs to this thread and lives until its next call.
    let text = unsafe { CStr::from_ptr(mtt_error()) };
    TchError::Torch(text.to_string_lossy().into_owned())
}
