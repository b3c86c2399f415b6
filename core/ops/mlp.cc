#include "core/ops/mlp.h"

#include "core/ops/contract.h"

namespace gantrain {

void gate_up_forward(Device& device, const GateUpForward& a) {
  const contract::Checker check("gate_up_forward", device);
  check.rank("x", a.x, 2);
  check.rank("a", a.a, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f = a.a.dim(1);
  check.matrix("w", a.w, 2 * f, c);
  const DType t = a.w->dtype();
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.optional("bias", a.bias, DType::kF32, {2 * f});
  GT_CHECK(a.g.empty() == a.u.empty(), "gate_up_forward: g and u are wanted both or neither");
  if (!a.g.empty()) {
    check.kept("g", a.g, t, {n, f});
    check.tensor("u", a.u, a.g.dtype(), {n, f});
  }
  check.tensor("a", a.a, t, {n, f});
  check.rounded("x_bf16", a.x_bf16, t, {n, c});
  check.lora(a.lora, n, c, 2 * f);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().gate_up_forward(a);
}

void down_backward(Device& device, const DownBackward& a) {
  const contract::Checker check("down_backward", device);
  check.rank("dout", a.dout, 2);
  check.rank("g", a.g, 2);
  const int64_t n = a.dout.dim(0), c = a.dout.dim(1), f = a.g.dim(1);
  check.matrix("w", a.w, c, f);
  const DType t = a.w->dtype();
  check.tensor("dout", a.dout, DType::kF32, {n, c});
  check.rounded("dout_bf16", a.dout_bf16, t, {n, c});
  check.kept("g", a.g, t, {n, f});
  check.tensor("u", a.u, a.g.dtype(), {n, f});
  check.tensor("dy", a.dy, t, {n, 2 * f});
  check.optional("dot", a.dot, DType::kF32, {n});
  check.lora(a.lora, n, f, c);
  if (!a.lora.empty()) check.kept("a", a.a, t, {n, f});
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().down_backward(a);
}

void gate_up_backward(Device& device, const GateUpBackward& a) {
  const contract::Checker check("gate_up_backward", device);
  check.rank("x", a.x, 2);
  check.rank("dy", a.dy, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), f2 = a.dy.dim(1);
  check.matrix("w", a.w, f2, c);
  const DType t = a.w->dtype();
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.tensor("dy", a.dy, t, {n, f2});
  check.optional("dot", a.dot, DType::kF32, {n});
  check.tensor("dx", a.dx, DType::kF32, {n, c});
  check.rounded("dx_bf16", a.dx_bf16, t, {n, c});
  check.trained(t, !a.dnormed.empty());
  check.optional("dnormed", a.dnormed, DType::kF32, {n, c});
  check.lora(a.lora, n, c, f2);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().gate_up_backward(a);
}

void swiglu(Device& device, const Swiglu& a) {
  const contract::Checker check("swiglu", device);
  check.rank("a", a.a, 2);
  GT_CHECK(a.a.dtype() == DType::kF32 || a.a.dtype() == DType::kBF16, "swiglu: a is {}, expected f32 or bf16",
           dtype_name(a.a.dtype()));
  check.kept("g", a.g, a.a.dtype(), a.a.shape());
  check.tensor("u", a.u, a.g.dtype(), a.a.shape());
  check.tensor("a", a.a, a.a.dtype(), a.a.shape());
  if (a.a.count() > 0) device.ops().swiglu(a);
}

int64_t gate_up_forward_scratch(Device& device, const GateUpForward& a) { return device.ops().scratch(a); }
int64_t down_backward_scratch(Device& device, const DownBackward& a) { return device.ops().scratch(a); }
int64_t gate_up_backward_scratch(Device& device, const GateUpBackward& a) { return device.ops().scratch(a); }

int64_t gate_up_forward_bytes(const GateUpForward& a) {
  return contract::bytes_of(a.x_bf16.empty() ? a.x : a.x_bf16) + a.rstd.bytes() + contract::bytes_of(a.gain) +
         contract::bytes_of(a.w) + contract::bytes_of(a.bias) + contract::bytes_of(a.g) +
         contract::bytes_of(a.u) + a.a.bytes() + lora_bytes(a.lora);
}
int64_t gate_up_forward_flops(const GateUpForward& a) {
  return 2 * a.x.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.x.dim(0));
}
int64_t down_backward_bytes(const DownBackward& a) {
  return contract::bytes_of(a.dout_bf16.empty() ? a.dout : a.dout_bf16) + contract::bytes_of(a.w) +
         a.g.bytes() + a.u.bytes() + a.dy.bytes() + contract::bytes_of(a.dot) +
         (a.lora.empty() ? 0 : contract::bytes_of(a.a)) + lora_bytes(a.lora);
}
int64_t down_backward_flops(const DownBackward& a) {
  return 2 * a.dout.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.dout.dim(0));
}
int64_t gate_up_backward_bytes(const GateUpBackward& a) {
  return a.x.bytes() + a.rstd.bytes() + contract::bytes_of(a.gain) + contract::bytes_of(a.w) + a.dy.bytes() +
         contract::bytes_of(a.dot) + 2 * a.dx.bytes() + contract::bytes_of(a.dx_bf16) + lora_bytes(a.lora) +
         contract::bytes_of(a.dnormed);
}
int64_t gate_up_backward_flops(const GateUpBackward& a) {
  return 2 * a.x.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.x.dim(0));
}
int64_t swiglu_bytes(const Swiglu& a) { return a.g.bytes() + a.u.bytes() + a.a.bytes(); }

}  // namespace gantrain
