// What the stand-ins of other libraries (cublaslt*.cc) use of this one: work in stream order, device memory
// and its shadow, host threads. C linkage, because they are shared libraries of their own.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// One operation of a library. In a stream that is captured it becomes a kernel node, run at each launch.
struct SoftgpuCall {
  const char* name;  // in messages, traces and counters
  uint64_t multiply_adds, load_bytes, store_bytes;
  // Does the work. 0, or a cudaError_t with what was wrong in `message`: a fault, as of a kernel.
  int (*run)(void* state, char* message, size_t size);
  void (*destroy)(void* state);
  void* state;  // the runtime's from the call of softgpu_submit on
};
// A cudaError_t: of the stream, or of an earlier fault.
int softgpu_submit(void* stream, const SoftgpuCall* call);

// `count` stretches of `bytes` bytes, `pitch` bytes apart (not negative): 0 where all lie in one live
// allocation and, with `read`, every byte has been written; else a cudaError_t with the reason in `message`.
int softgpu_check(const void* address, uint64_t bytes, uint64_t pitch, uint64_t count, int read,
                  char* message, size_t size);
// Marks bytes as written, or (`written` 0) as never written, with NaN in them.
void softgpu_mark(const void* address, uint64_t bytes, uint64_t pitch, uint64_t count, int written);

// job(user, 0), ..., job(user, jobs - 1) over the host threads (--threads).
void softgpu_parallel(uint64_t jobs, void (*job)(void* user, uint64_t index), void* user);
// The compute capability times ten.
int softgpu_arch(void);
}
