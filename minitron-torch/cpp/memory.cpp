// Where large tensors on the CPU lie, and memory that goes from one tensor to another.
#include "shim.h"
#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" void mtt_map_large_tensors(size_t n_bytes) {
#ifdef __GLIBC__
  if (!std::getenv("MALLOC_MMAP_THRESHOLD_") && !std::getenv("GLIBC_TUNABLES"))
    mallopt(M_MMAP_THRESHOLD, static_cast<int>(n_bytes));
#endif
}
// libtorch asks at its first allocation.
extern "C" void mtt_use_huge_pages() { setenv("THP_MEM_ALLOC_ENABLE", "1", 0); }

// Each of two tensors has the memory that the other had; views of them go with it.
extern "C" int mtt_swap_memory(at::Tensor* one, at::Tensor* other) {
  GUARDED(-1, {
    auto* a = one->storage().unsafeGetStorageImpl();
    auto* b = other->storage().unsafeGetStorageImpl();
    TORCH_CHECK(a != b, "expected tensors with memory of their own");
    TORCH_CHECK(
        a->device() == b->device(), "expected one device, got ", a->device(), " and ", b->device());
    const size_t n_bytes = a->nbytes();
    auto memory = a->set_data_ptr(at::DataPtr(nullptr, a->device()));
    a->set_data_ptr(b->set_data_ptr(std::move(memory)));
    a->set_nbytes(b->nbytes());
    b->set_nbytes(n_bytes);
    return 0;
  })
}
// What autograd has kept of a tensor at another version, it refuses.
extern "C" int mtt_set_version(at::Tensor* tensor, int64_t version) {
  GUARDED(-1, {
    auto counter = tensor->unsafeGetTensorImpl()->version_counter();
    counter.set_version(version);
    return 0;
  })
}
