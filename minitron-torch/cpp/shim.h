// What crosses to Rust, and the guard that turns exceptions into a text.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <exception>
#include <string>
#include <vector>

// Of this thread, until its next call.
extern thread_local std::string mtt_last_error;

// What is given where the body throws, and the body.
#define GUARDED(FAILED, ...)                                                             \
  try { mtt_last_error.clear(); __VA_ARGS__ }                                            \
  catch (const c10::Error& e) { mtt_last_error = e.what_without_backtrace(); return FAILED; } \
  catch (const std::exception& e) { mtt_last_error = e.what(); return FAILED; }          \
  catch (...) { mtt_last_error = "an exception of no known type"; return FAILED; }

// A list of tensors as Rust has it: pointers that live through the call.
struct List {
  at::Tensor* const* at;
  size_t n;
  std::vector<at::Tensor> tensors() const {
    std::vector<at::Tensor> all;
    all.reserve(n);
    for (size_t idx = 0; idx < n; ++idx) all.push_back(*at[idx]);
    return all;
  }
};
