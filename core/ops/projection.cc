#include "core/ops/projection.h"

#include "core/ops/contract.h"

namespace gantrain {

void project_forward(Device& device, const ProjectForward& a) {
  const contract::Checker check("project_forward", device);
  check.rank("a", a.a, 2);
  check.rank("residual", a.residual, 2);
  const int64_t n = a.a.dim(0), i = a.a.dim(1), c = a.residual.dim(1);
  check.matrix("w", a.w, c, i);
  check.kept("a", a.a, a.w->dtype(), {n, i});
  check.optional("bias", a.bias, DType::kF32, {c});
  check.tensor("residual", a.residual, DType::kF32, {n, c});
  check.tensor("out", a.out, DType::kF32, {n, c});
  check.optional("rstd", a.rstd, DType::kF32, {n});
  check.optional("out_bf16", a.out_bf16, DType::kBF16, {n, c});
  check.optional("out_gain", a.out_gain, DType::kF32, {c});
  check.lora(a.lora, n, i, c);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().project_forward(a);
}

void project_backward(Device& device, const ProjectBackward& a) {
  const contract::Checker check("project_backward", device);
  check.rank("dout", a.dout, 2);
  check.rank("da", a.da, 2);
  const int64_t n = a.dout.dim(0), c = a.dout.dim(1), i = a.da.dim(1);
  check.matrix("w", a.w, c, i);
  check.tensor("dout", a.dout, DType::kF32, {n, c});
  check.tensor("da", a.da, a.w->dtype(), {n, i});
  check.rounded("dout_bf16", a.dout_bf16, a.w->dtype(), {n, c});
  check.lora(a.lora, n, i, c);
  if (!a.lora.empty()) check.kept("a", a.a, a.w->dtype(), {n, i});
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().project_backward(a);
}

int64_t project_forward_scratch(Device& device, const ProjectForward& a) { return device.ops().scratch(a); }
int64_t project_backward_scratch(Device& device, const ProjectBackward& a) { return device.ops().scratch(a); }

int64_t project_forward_bytes(const ProjectForward& a) {
  return a.a.bytes() + contract::bytes_of(a.w) + contract::bytes_of(a.bias) + a.residual.bytes() +
         a.out.bytes() + contract::bytes_of(a.rstd) + contract::bytes_of(a.out_bf16) + lora_bytes(a.lora);
}
int64_t project_forward_flops(const ProjectForward& a) {
  return 2 * a.a.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.a.dim(0));
}
int64_t project_backward_bytes(const ProjectBackward& a) {
  return contract::bytes_of(a.dout_bf16.empty() ? a.dout : a.dout_bf16) + contract::bytes_of(a.w) +
         a.da.bytes() + (a.lora.empty() ? 0 : contract::bytes_of(a.a)) + lora_bytes(a.lora);
}
int64_t project_backward_flops(const ProjectBackward& a) {
  return 2 * a.dout.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.dout.dim(0));
}

}  // namespace gantrain
