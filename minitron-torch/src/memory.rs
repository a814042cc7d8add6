//! Memory of tensors on the CPU.

use crate::ffi;

/// From here on a tensor is mapped by itself, and given back when it goes.
const LARGE: usize = 2 << 20;

/// Has large tensors lie in mappings of their own. glibc keeps those of up to 32 MiB on its heap,
/// where what is freed between others stays: where layers come and go, that is half of all. A
/// mapping costs its first touch, so this is for those who need the room.
///
/// [`use_huge_pages`] makes it cheaper. MALLOC_MMAP_THRESHOLD_ and GLIBC_TUNABLES of the user's go
/// first.
pub fn map_large_tensors() {
    ffi::map_large_tensors(LARGE);
}

/// Has tensors of more than 2 MiB lie in huge pages, where the system has them. Called before the
/// first tensor, by a process of one thread; THP_MEM_ALLOC_ENABLE of the user's goes first.
pub fn use_huge_pages() {
    ffi::use_huge_pages();
}
