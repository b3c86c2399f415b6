// mbarriers in shared memory (compute capability 9.0): a phase ends when the expected number of arrivals has
// come and every byte that was announced has been copied. A barrier is named by its shared address, a phase
// by its parity: 0 the first, 1 the second, and so on.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

constexpr int kMbarrierBytes = 8;

// By one thread, once, before anybody uses it; then mbarrier_visible() by that thread and a __syncthreads().
__device__ inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// The copies that run beside the threads see what this thread has initialised.
__device__ inline void mbarrier_visible() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and announces `bytes` of copies to this phase.
__device__ inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity has ended; returns at once where the one before it is the last that
// has.
__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "waiting_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra waiting_%=;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace gantrain::cuda
