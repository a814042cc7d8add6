// Collectives of a group of ranks.
#include "shim.h"
#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupWrapper.hpp>

using Tensor = at::Tensor;

static std::vector<Tensor> tensors(Tensor** at, size_t n) {
  std::vector<Tensor> list;
  list.reserve(n);
  for (size_t idx = 0; idx < n; ++idx) list.push_back(*at[idx]);
  return list;
}
static c10d::ReduceOp reduce_op(int op) {
  return c10d::ReduceOp(static_cast<c10d::ReduceOp::RedOpType>(op));
}

extern "C" {
// Without an interface's name, the address that this machine's name stands for.
GroupHandle* mt_group_gloo(
    StoreHandle* store, int rank, int n_ranks, int64_t timeout_ms, const char* interface) {
  GUARDED({
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(millis(timeout_ms));
    options->devices.push_back(
        interface ? Gloo::createDeviceForInterface(interface) : Gloo::createDefaultDevice());
    return new GroupHandle{c10::make_intrusive<Gloo>(store->store, rank, n_ranks, options)};
  }, nullptr)
}
// Compares kind, shape and type of every collective over a group of its own, before it begins.
GroupHandle* mt_group_checked(GroupHandle* group, GroupHandle* helper) {
  GUARDED({
    return new GroupHandle{
        c10::make_intrusive<c10d::ProcessGroupWrapper>(group->backend, helper->backend)};
  }, nullptr)
}
void mt_group_free(GroupHandle* group) { delete group; }

WorkHandle* mt_all_reduce(GroupHandle* group, Tensor** at, size_t n, int op) {
  GUARDED({
    auto list = tensors(at, n);
    if (n == 1) {
      c10d::AllreduceOptions options;
      options.reduceOp = reduce_op(op);
      return new WorkHandle{group->backend->allreduce(list, options)};
    }
    c10d::AllreduceCoalescedOptions options;
    options.reduceOp = reduce_op(op);
    return new WorkHandle{group->backend->allreduce_coalesced(list, options)};
  }, nullptr)
}
WorkHandle* mt_broadcast(GroupHandle* group, Tensor* tensor, int root) {
  GUARDED({
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<Tensor> list{*tensor};
    return new WorkHandle{group->backend->broadcast(list, options)};
  }, nullptr)
}
WorkHandle* mt_reduce_scatter(GroupHandle* group, Tensor* into, Tensor* from, int op) {
  GUARDED({
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduce_op(op);
    return new WorkHandle{group->backend->_reduce_scatter_base(*into, *from, options)};
  }, nullptr)
}
WorkHandle* mt_all_gather(GroupHandle* group, Tensor* into, Tensor* from) {
  GUARDED({ return new WorkHandle{group->backend->_allgather_base(*into, *from)}; }, nullptr)
}
// On rank 0, the error names the ranks that do not come.
int mt_barrier(GroupHandle* group, int64_t timeout_ms) {
  GUARDED({
    c10d::BarrierOptions options;
    options.timeout = millis(timeout_ms);
    group->backend->monitoredBarrier(options, true);
    return 0;
  }, -1)
}
int mt_work_wait(WorkHandle* work) { GUARDED({ return work->work->wait() ? 0 : -1; }, -1) }
void mt_work_free(WorkHandle* work) { delete work; }
}
