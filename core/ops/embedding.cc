#include "core/ops/embedding.h"

#include "core/ops/contract.h"

namespace gantrain {

void embed_forward(Device& device, const EmbedForward& a) {
  const contract::Checker check("embed_forward", device);
  GT_CHECK(a.table != nullptr, "embed_forward: table is missing");
  const int64_t n = a.tokens.dim(0), c = a.table->cols(), r = a.prompt.empty() ? 0 : a.prompt.dim(0);
  check.matrix("table", a.table, a.table->rows(), c);
  check.tensor("tokens", a.tokens, DType::kI32, {n});
  check.optional("prompt", a.prompt, DType::kF32, {r, c});
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.indices("tokens", a.tokens, -r, a.table->rows());
  if (n > 0) device.ops().embed_forward(a);
}

void embed_backward(Device& device, const EmbedBackward& a) {
  const contract::Checker check("embed_backward", device);
  check.rank("dprompt", a.dprompt, 2);
  const int64_t n = a.tokens.dim(0), r = a.dprompt.dim(0), c = a.dprompt.dim(1);
  check.tensor("dx", a.dx, DType::kF32, {n, c});
  check.tensor("tokens", a.tokens, DType::kI32, {n});
  check.tensor("dprompt", a.dprompt, DType::kF32, {r, c});
  check.indices("tokens", a.tokens, -r, int64_t{1} << 31);
  if (n > 0 && r > 0) device.ops().embed_backward(a);
}

int64_t embed_forward_bytes(const EmbedForward& a) {
  return a.tokens.bytes() + a.x.count() * dtype_size(a.table->dtype()) + a.x.bytes();
}
int64_t embed_backward_bytes(const EmbedBackward& a) {
  return a.tokens.bytes() + a.dx.bytes() + 2 * contract::bytes_of(a.dprompt);
}

}  // namespace gantrain
