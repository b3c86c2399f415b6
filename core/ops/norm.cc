#include "core/ops/norm.h"

#include "core/ops/contract.h"

namespace gantrain {

void row_rstd(Device& device, const RowRstd& a) {
  const contract::Checker check("row_rstd", device);
  check.rank("x", a.x, 2);
  check.tensor("x", a.x, DType::kF32, a.x.shape());
  check.tensor("rstd", a.rstd, DType::kF32, {a.x.dim(0)});
  check.optional("x_bf16", a.x_bf16, DType::kBF16, a.x.shape());
  check.optional("gain", a.gain, DType::kF32, {a.x.dim(1)});
  check.positive("columns of x", static_cast<double>(a.x.dim(1)));
  if (a.x.count() > 0) device.ops().row_rstd(a);
}

void rmsnorm_forward(Device& device, const RmsNormForward& a) {
  const contract::Checker check("rmsnorm_forward", device);
  check.rank("x", a.x, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.optional("w", a.w, DType::kF32, {c});
  check.tensor("y", a.y, DType::kF32, {n, c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.positive("columns of x", static_cast<double>(c));
  if (n > 0) device.ops().rmsnorm_forward(a);
}

void rmsnorm_backward(Device& device, const RmsNormBackward& a) {
  const contract::Checker check("rmsnorm_backward", device);
  check.rank("x", a.x, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1);
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.optional("w", a.w, DType::kF32, {c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.tensor("dy", a.dy, DType::kF32, {n, c});
  check.optional("dx", a.dx, DType::kF32, {n, c});
  check.optional("dw", a.dw, DType::kF32, {c});
  check.positive("columns of x", static_cast<double>(c));
  if (n > 0) device.ops().rmsnorm_backward(a);
}

int64_t row_rstd_bytes(const RowRstd& a) {
  return a.x.bytes() + a.rstd.bytes() + contract::bytes_of(a.x_bf16) + contract::bytes_of(a.gain);
}
int64_t rmsnorm_forward_bytes(const RmsNormForward& a) {
  return a.x.bytes() + contract::bytes_of(a.w) + a.y.bytes() + a.rstd.bytes();
}
int64_t rmsnorm_backward_bytes(const RmsNormBackward& a) {
  return a.x.bytes() + contract::bytes_of(a.w) + a.rstd.bytes() + a.dy.bytes() +
         2 * contract::bytes_of(a.dx) + 2 * contract::bytes_of(a.dw);
}

}  // namespace gantrain
