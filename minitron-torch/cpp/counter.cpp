// Counts what the dispatcher is asked for, by name.
#include "shim.h"
#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <map>
#include <mutex>

thread_local std::string mtt_last_error;

namespace {
// Where the backward pass runs in threads of its own, autograd takes this along with its callback.
constexpr auto KIND = c10::DebugInfoKind::TEST_INFO_2;

struct Counts : c10::DebugInfoBase {
  std::mutex lock;
  std::map<std::string, int64_t> by_name;
  void add(const std::string& name) {
    std::lock_guard<std::mutex> guard(lock);
    ++by_name[name];
  }
};

// A copy from a device that the host waits for.
bool waits(const at::RecordFunction& fn) {
  auto inputs = fn.inputs();
  if (inputs.size() < 2 || !inputs[0].isTensor() || !inputs[1].isTensor()) return false;
  bool is_async = inputs.size() > 2 && inputs[2].isBool() && inputs[2].toBool();
  return inputs[0].toTensor().is_cpu() && !inputs[1].toTensor().is_cpu() && !is_async;
}

std::unique_ptr<at::ObserverContext> count(const at::RecordFunction& fn) {
  auto* counts = static_cast<Counts*>(c10::ThreadLocalDebugInfo::get(KIND));
  if (counts) {
    std::string name = fn.name();
    if (name == "aten::copy_" && waits(fn)) counts->add("minitron::copy_to_host");
    counts->add(name);
  }
  return nullptr;
}
}  // namespace

struct Counter {
  std::shared_ptr<Counts> counts;
  at::CallbackHandle handle;
};

extern "C" {
const char* mtt_error() { return mtt_last_error.c_str(); }

Counter* mtt_counter_begin() {
  GUARDED(nullptr, {
    auto counts = std::make_shared<Counts>();
    c10::ThreadLocalDebugInfo::_push(KIND, counts);
    auto callback = at::RecordFunctionCallback(&count)
        .needsInputs(true)
        .scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE});
    return new Counter{counts, at::addThreadLocalCallback(callback)};
  })
}
// In the thread that began it.
int mtt_counter_end(Counter* counter, void (*sink)(void*, const char*, int64_t), void* into) {
  GUARDED(-1, {
    std::unique_ptr<Counter> ended(counter);
    at::removeCallback(ended->handle);
    c10::ThreadLocalDebugInfo::_pop(KIND);
    std::lock_guard<std::mutex> guard(ended->counts->lock);
    for (const auto& [name, n] : ended->counts->by_name) sink(into, name.c_str(), n);
    return 0;
  })
}
}
