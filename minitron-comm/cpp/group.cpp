// Collectives of a group of ranks.
#include "shim.h"
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupWrapper.hpp>
#include <functional>

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

// Sends and receipts between pairs of ranks, and what is done with what came.
class Exchange : public c10d::Work {
 public:
  std::vector<c10::intrusive_ptr<c10d::Work>> under_way;
  std::function<void()> then;

  bool wait(std::chrono::milliseconds timeout) override {
    for (auto& work : under_way) work->wait(timeout);
    under_way.clear();
    at::NoGradGuard no_grad;
    if (then) then();
    then = nullptr;
    return true;
  }
};

// One step with every other rank: its part comes into the tensor that `place` names, and `part`
// goes to it. Ranks do the same in the same order, so a tag is that of one exchange.
static c10::intrusive_ptr<Exchange> exchange(
    GroupHandle* group, const std::function<Tensor(int)>& place,
    const std::function<Tensor(int)>& part) {
  auto& backend = *group->backend;
  auto work = c10::make_intrusive<Exchange>();
  const int rank = backend.getRank(), n_ranks = backend.getSize();
  group->tag = (group->tag + 1) & 0x3fffffff;
  for (int away = 1; away < n_ranks; ++away) {
    const int from = (rank + away) % n_ranks;
    std::vector<Tensor> coming{place(from)};
    work->under_way.push_back(backend.recv(coming, from, group->tag));
  }
  for (int away = 1; away < n_ranks; ++away) {
    const int to = (rank + n_ranks - away) % n_ranks;
    std::vector<Tensor> going{part(to)};
    work->under_way.push_back(backend.send(going, to, group->tag));
  }
  return work;
}

// Of a tensor that is the parts of all ranks, one after the other.
static Tensor part_of(const Tensor& all, const Tensor& part, int64_t rank) {
  return all.view({-1}).narrow(0, rank * part.numel(), part.numel());
}

// libtorch gathers into a second tensor over Gloo and copies; here parts come where they belong.
static WorkHandle* gather_by_pairs(GroupHandle* group, const Tensor& all, const Tensor& own) {
  at::NoGradGuard no_grad;
  auto flat = own.view({-1});
  part_of(all, own, group->backend->getRank()).copy_(flat);
  return new WorkHandle{exchange(
      group, [&](int rank) { return part_of(all, own, rank); }, [&](int) { return flat; })};
}

// libtorch has all ranks sum all parts over Gloo, and leaves each its own; here a part goes to its
// rank alone, which is half as much. They are added in the order of the ranks after it.
static WorkHandle* sum_by_pairs(GroupHandle* group, const Tensor& own, const Tensor& all) {
  at::NoGradGuard no_grad;
  const int rank = group->backend->getRank(), n_ranks = group->backend->getSize();
  auto sum = own.view({-1});
  std::vector<Tensor> others;
  auto work = exchange(
      group,
      [&](int from) {
        if (from == (rank + 1) % n_ranks) return sum;
        others.push_back(at::empty_like(sum));
        return others.back();
      },
      [&](int to) { return part_of(all, own, to); });
  work->then = [sum, others, mine = part_of(all, own, rank)]() mutable {
    sum.add_(mine);
    for (auto& other : others) sum.add_(other);
  };
  return new WorkHandle{work};
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
    auto backend = c10::make_intrusive<Gloo>(store->store, rank, n_ranks, options);
    auto* group = new GroupHandle{backend};
    group->by_pairs = n_ranks > 1;
    return group;
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
    if (group->by_pairs && reduce_op(op) == c10d::ReduceOp::SUM)
      return sum_by_pairs(group, *into, *from);
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduce_op(op);
    return new WorkHandle{group->backend->_reduce_scatter_base(*into, *from, options)};
  }, nullptr)
}
WorkHandle* mt_all_gather(GroupHandle* group, Tensor* into, Tensor* from) {
  GUARDED({
    if (group->by_pairs) return gather_by_pairs(group, *into, *from);
    return new WorkHandle{group->backend->_allgather_base(*into, *from)};
  }, nullptr)
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
