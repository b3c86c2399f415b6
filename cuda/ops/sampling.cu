#include "cuda/ops/dispatch.cuh"
namespace gantrain {
int64_t CudaOps::scratch(const Sample&) const { return 0; }
void CudaOps::sample(const Sample&) { fail("sample: not on this device yet"); }
}  // namespace gantrain
