// A group of ranks on GPUs; built with the feature `nccl` alone, which needs CUDA's headers.
#include "shim.h"
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" GroupHandle* mt_group_nccl(
    StoreHandle* store, int rank, int n_ranks, int64_t timeout_ms) {
  GUARDED({
    using Nccl = c10d::ProcessGroupNCCL;
    auto options = Nccl::Options::create();
    options->timeout = millis(timeout_ms);
    return new GroupHandle{c10::make_intrusive<Nccl>(store->store, rank, n_ranks, options)};
  }, nullptr)
}
