// Handles that cross to Rust, and the guard that turns exceptions into a kind and a text.
#pragma once
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/exception.h>
#include <chrono>
#include <exception>
#include <string>

struct StoreHandle { c10::intrusive_ptr<c10d::Store> store; };
struct GroupHandle {
  c10::intrusive_ptr<c10d::Backend> backend;
  // Whether ranks send each other parts of tensors directly, and the tag of the next parts.
  bool by_pairs = false;
  int tag = 0;
};
struct WorkHandle { c10::intrusive_ptr<c10d::Work> work; };

// ffi.rs names them.
enum ErrorKind {
  KIND_NONE = 0,
  KIND_BACKEND = 1,
  KIND_STORE = 2,
  KIND_NETWORK = 3,
  KIND_QUEUE_EMPTY = 4,
  KIND_TIMEOUT = 5,
};
struct LastError { int kind = KIND_NONE; std::string text; };
extern thread_local LastError last_error;

inline void keep(int kind, std::string text) { last_error = {kind, std::move(text)}; }

// The most special type first.
#define GUARDED(BODY, FAILED)                                                      \
  try { last_error = {}; BODY }                                                    \
  catch (const c10::DistQueueEmptyError& e) {                                      \
    keep(KIND_QUEUE_EMPTY, e.what_without_backtrace()); return FAILED; }           \
  catch (const c10d::TimeoutError& e) {                                            \
    keep(KIND_TIMEOUT, e.what_without_backtrace()); return FAILED; }               \
  catch (const c10::DistStoreError& e) {                                           \
    keep(KIND_STORE, e.what_without_backtrace()); return FAILED; }                 \
  catch (const c10::DistNetworkError& e) {                                         \
    keep(KIND_NETWORK, e.what_without_backtrace()); return FAILED; }               \
  catch (const c10::Error& e) {                                                    \
    keep(KIND_BACKEND, e.what_without_backtrace()); return FAILED; }               \
  catch (const std::exception& e) { keep(KIND_BACKEND, e.what()); return FAILED; } \
  catch (...) { keep(KIND_BACKEND, "an exception of no known type"); return FAILED; }

inline std::chrono::milliseconds millis(int64_t n) { return std::chrono::milliseconds(n); }
