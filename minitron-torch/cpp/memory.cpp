// Where large tensors on the CPU lie.
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
