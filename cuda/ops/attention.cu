#include "cuda/ops/dispatch.cuh"
namespace gantrain {
int64_t CudaOps::scratch(const AttentionForward&) const { return 0; }
int64_t CudaOps::scratch(const AttentionBackward&) const { return 0; }
void CudaOps::attention_forward(const AttentionForward&) {
  fail("attention_forward: not on this device yet");
}
void CudaOps::attention_backward(const AttentionBackward&) {
  fail("attention_backward: not on this device yet");
}
void CudaOps::kv_append(const KvAppend&) { fail("kv_append: not on this device yet"); }
}  // namespace gantrain
