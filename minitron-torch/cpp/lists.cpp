// Operations on lists of tensors: on a GPU a few kernels, however many tensors there are.
#include "shim.h"
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/record_function.h>

// ffi.rs has it too.
struct AdamWStep {
  double lr, beta1, beta2, weight_decay, eps;
  double n_steps;
};

extern "C" {
// Gradients are divided by `divisor`, a scalar in f32 on their device, where there is one.
int mtt_fused_adamw(
    List weights, List gradients, List ms, List vs, const AdamWStep* step, at::Tensor* divisor_at) {
  GUARDED(-1, {
    if (weights.n == 0) return 0;
    at::NoGradGuard no_grad;
    auto w = weights.tensors();
    auto options = w[0].options().dtype(at::kFloat);
    std::vector<at::Tensor> steps(weights.n, at::full({}, step->n_steps, options));
    std::optional<at::Tensor> divisor;
    if (divisor_at) divisor = *divisor_at;
    at::_fused_adamw_(
        w, gradients.tensors(), ms.tensors(), vs.tensors(), {}, steps, step->lr, step->beta1,
        step->beta2, step->weight_decay, step->eps, false, false, divisor, std::nullopt);
    return 0;
  })
}
// A scalar for each, in f32.
int mtt_foreach_norm(List tensors, void (*sink)(void*, at::Tensor*), void* into) {
  GUARDED(-1, {
    at::NoGradGuard no_grad;
    if (tensors.n == 0) return 0;
    for (auto& norm : at::_foreach_norm(tensors.tensors(), 2, at::kFloat))
      sink(into, new at::Tensor(norm));
    return 0;
  })
}
int mtt_foreach_copy(List into, List from) {
  GUARDED(-1, {
    at::NoGradGuard no_grad;
    if (into.n > 0) at::_foreach_copy_(into.tensors(), from.tensors());
    return 0;
  })
}
int mtt_foreach_zero(List tensors) {
  GUARDED(-1, {
    at::NoGradGuard no_grad;
    if (tensors.n > 0) at::_foreach_zero_(tensors.tensors());
    return 0;
  })
}
// All numbers of some tensors, one after the other: the host waits for the device once.
int mtt_read(List tensors, double* into, size_t n) {
  GUARDED(-1, {
    at::NoGradGuard no_grad;
    RECORD_FUNCTION("minitron::read", std::vector<c10::IValue>());
    std::vector<at::Tensor> flat;
    for (auto& tensor : tensors.tensors()) flat.push_back(tensor.detach().reshape({-1}));
    if (flat.empty()) return 0;
    auto all = (flat.size() == 1 ? flat[0] : at::cat(flat)).cpu().to(at::kDouble).contiguous();
    auto found = static_cast<size_t>(all.numel());
    TORCH_CHECK(found == n, "expected ", n, " numbers, got ", found);
    const double* at = all.const_data_ptr<double>();
    std::copy(at, at + n, into);
    return 0;
  })
}
}
