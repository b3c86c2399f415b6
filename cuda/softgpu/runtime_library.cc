// The side of library.h that the runtime has.
#include "cuda/softgpu/library.h"

#include <fmt/format.h>

#include <atomic>
#include <cstring>

#include "cuda/softgpu/runtime.h"

namespace softgpu {
namespace {

int refuse(cudaError_t code, const std::string& what, char* message, size_t size) {
  std::snprintf(message, size, "%s", what.c_str());
  return code;
}

}  // namespace

LibraryCall::LibraryCall(const SoftgpuCall& c) : call(c), name(c.name) {}
LibraryCall::~LibraryCall() { call.destroy(call.state); }

cudaError_t run_library(Operation& op) {
  const LibraryCall& c = *op.library;
  KernelEntry& e = runtime().libraries[c.name];
  const uint64_t id = next_launch();
  const double start = now_seconds();
  char message[1024] = "";
  const cudaError_t result = static_cast<cudaError_t>(c.call.run(c.call.state, message, sizeof message));
  const double seconds = now_seconds() - start;
  ++e.launches;
  e.seconds += seconds;
  e.counters.multiply_adds += c.call.multiply_adds;
  e.counters.load_bytes += c.call.load_bytes;
  e.counters.store_bytes += c.call.store_bytes;
  trace(fmt::format("launch {} {} ms {:.3f}{}\n", id, c.name, seconds * 1e3,
                    result == cudaSuccess ? "" : " FAULT"));
  if (result != cudaSuccess) record_fault(result, fmt::format("{}: {}", c.name, message));
  return cudaSuccess;
}

}  // namespace softgpu

using namespace softgpu;

SOFTGPU_EXPORT int softgpu_submit(void* stream, const SoftgpuCall* call) {
  auto library = std::make_shared<LibraryCall>(*call);
  SOFTGPU_ENTER;
  Operation op;
  op.kind = Operation::kLibrary;
  op.library = std::move(library);
  return finish(submit(static_cast<cudaStream_t>(stream), std::move(op)));
}

SOFTGPU_EXPORT int softgpu_check(const void* address, uint64_t bytes, uint64_t pitch, uint64_t count,
                                 int read, char* message, size_t size) {
  const uint64_t first = reinterpret_cast<uint64_t>(address);
  if (!bytes || !count) return cudaSuccess;
  // No product may wrap: offsets from the start of one allocation are far below 2^63.
  const unsigned __int128 extent = static_cast<unsigned __int128>(pitch) * (count - 1) + bytes;
  const Allocation* a = memory().find(first);
  if (!a || !a->live)
    return refuse(cudaErrorIllegalAddress, fmt::format("{:#x}: {}", first, memory().describe(first)), message,
                  size);
  if (extent > a->end() - first)
    return refuse(
        cudaErrorIllegalAddress,
        fmt::format("{} stretches of {} bytes, {} bytes apart, leave the allocation: it starts at {}", count,
                    bytes, pitch, memory().describe(first)),
        message, size);
  if (!read || !options().init || !memory().in_arena(first)) return cudaSuccess;
  for (uint64_t i = 0; i < count; ++i) {
    const uint8_t* s = memory().shadow(first + i * pitch);
    uint64_t k = 0, bad = 0, v;
    for (; k + 8 <= bytes; k += 8) std::memcpy(&v, s + k, 8), bad |= v ^ 0x0101010101010101ull;
    for (; k < bytes; ++k) bad |= s[k] ^ kWritten;
    if (!bad) continue;
    for (k = 0; s[k] == kWritten;) ++k;
    return refuse(
        cudaErrorLaunchFailure,
        fmt::format("stretch {}, {}: byte {} was never written", i, memory().describe(first + i * pitch), k),
        message, size);
  }
  return cudaSuccess;
}

SOFTGPU_EXPORT void softgpu_mark(const void* address, uint64_t bytes, uint64_t pitch, uint64_t count,
                                 int written) {
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = reinterpret_cast<uint64_t>(address) + i * pitch;
    if (!memory().in_arena(at)) continue;
    if (!written) std::memset(reinterpret_cast<void*>(at), 0xff, bytes);
    std::memset(memory().shadow(at), written ? kWritten : kUnwritten, bytes);
  }
}

SOFTGPU_EXPORT void softgpu_parallel(uint64_t jobs, void (*job)(void*, uint64_t), void* user) {
  std::atomic<uint64_t> next{0};
  const std::function<void(int)> work = [&](int) {
    for (uint64_t i; (i = next.fetch_add(1)) < jobs;) job(user, i);
  };
  run_on_threads(jobs, work);
}

SOFTGPU_EXPORT int softgpu_arch(void) { return options().arch; }
