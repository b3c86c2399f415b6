// Copies from global to shared memory that a thread starts and later waits for (cp.async). What a thread has
// copied becomes visible to the block by copy_wait and then a barrier.
#pragma once

#include <cstdint>

namespace gantrain::cuda {

// 16 bytes, past the first-level cache; both addresses are multiples of 16. Not `valid`: zeros, and nothing
// is read
// (`from` may then be any address).
__device__ inline void copy_async(uint32_t to_shared, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 8 bytes, and of 4: for what is no row of 16-byte pieces.
__device__ inline void copy_async_pair(uint32_t to_shared, const void* from, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 8 : 0)
               : "memory");
}
__device__ inline void copy_async_word(uint32_t to_shared, const void* from, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to_shared),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0)
               : "memory");
}
// Ends a group of copies.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the kPending latest groups of this thread are under way.
template <int kPending>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace gantrain::cuda
