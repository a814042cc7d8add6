// The key-value store that ranks meet in.
#include "shim.h"
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

thread_local LastError last_error;

using Sink = void (*)(void*, const uint8_t*, size_t);

static std::vector<uint8_t> bytes(const uint8_t* at, size_t n) { return {at, at + n}; }

extern "C" {
// Errors come back as errors; what c10d logs besides is stacks.
void mt_be_quiet() {
  FLAGS_caffe2_log_level = 3;
  c10::UpdateLoggingLevelsFromFlags();
}
int mt_error_kind() { return last_error.kind; }
const char* mt_error_text() { return last_error.text.c_str(); }

StoreHandle* mt_store_tcp(
    const char* host, uint16_t port, bool is_server, int64_t n_ranks, int64_t timeout_ms) {
  GUARDED({
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server;
    options.timeout = millis(timeout_ms);
    // Of no number: nobody is waited for.
    options.waitWorkers = n_ranks > 0;
    if (n_ranks > 0) options.numWorkers = static_cast<size_t>(n_ranks);
    return new StoreHandle{c10::make_intrusive<c10d::TCPStore>(host, options)};
  }, nullptr)
}
StoreHandle* mt_store_prefix(const char* prefix, StoreHandle* of) {
  GUARDED({ return new StoreHandle{c10::make_intrusive<c10d::PrefixStore>(prefix, of->store)}; }, nullptr)
}
void mt_store_free(StoreHandle* store) { delete store; }
int mt_store_port(StoreHandle* store) {
  GUARDED({
    auto* tcp = dynamic_cast<c10d::TCPStore*>(store->store.get());
    return tcp ? tcp->getPort() : 0;
  }, -1)
}
int mt_store_set(StoreHandle* store, const char* key, const uint8_t* value, size_t n) {
  GUARDED({ store->store->set(key, bytes(value, n)); return 0; }, -1)
}
int mt_store_get(StoreHandle* store, const char* key, Sink sink, void* into) {
  GUARDED({
    auto value = store->store->get(key);
    sink(into, value.data(), value.size());
    return 0;
  }, -1)
}
int mt_store_add(StoreHandle* store, const char* key, int64_t n, int64_t* sum) {
  GUARDED({ *sum = store->store->add(key, n); return 0; }, -1)
}
int mt_store_has(StoreHandle* store, const char* key) {
  GUARDED({ return store->store->check({std::string(key)}) ? 1 : 0; }, -1)
}
int64_t mt_store_queue_len(StoreHandle* store, const char* queue) {
  GUARDED({ return store->store->queueLen(queue); }, -1)
}
int mt_store_push(StoreHandle* store, const char* queue, const uint8_t* value, size_t n) {
  GUARDED({ store->store->queuePush(queue, bytes(value, n)); return 0; }, -1)
}
int mt_store_pop(StoreHandle* store, const char* queue, Sink sink, void* into) {
  GUARDED({
    auto value = store->store->queuePop(queue, false);
    sink(into, value.data(), value.size());
    return 0;
  }, -1)
}
}
