#include "cuda/ops/dispatch.cuh"
namespace gantrain {
int64_t CudaOps::scratch(const HeadLogits&) const { return 0; }
int64_t CudaOps::scratch(const HeadLoss&) const { return 0; }
void CudaOps::head_logits(const HeadLogits&) { fail("head_logits: not on this device yet"); }
void CudaOps::head_loss(const HeadLoss&) { fail("head_loss: not on this device yet"); }
}  // namespace gantrain
