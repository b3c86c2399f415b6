#include "core/ops/qkv.h"

#include "core/ops/contract.h"

namespace gantrain {

void rotary_table(Device& device, const RotaryTable& a) {
  const contract::Checker check("rotary_table", device);
  check.rank("table", a.table, 2);
  const int64_t n = a.table.dim(0), d = a.table.dim(1);
  GT_CHECK(d % 2 == 0, "rotary_table: RoPE needs an even head size, got {}", d);
  check.tensor("positions", a.positions, DType::kI32, {n});
  check.tensor("inv_freq", a.inv_freq, DType::kF32, {d / 2});
  check.tensor("table", a.table, DType::kF32, {n, d});
  check.indices("positions", a.positions, 0, int64_t{1} << 31);
  if (n == 0 || d == 0) return;
  device.ops().rotary_table(a);
}

void qkv_forward(Device& device, const QkvForward& a) {
  const contract::Checker check("qkv_forward", device);
  check.rank("x", a.x, 2);
  check.rank("q", a.q, 3);
  check.rank("k", a.k, 3);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), h = a.q.dim(1), d = a.q.dim(2), k = a.k.dim(1);
  GT_CHECK(d % 2 == 0, "qkv_forward: RoPE needs an even head size, got {}", d);
  check.matrix("w", a.w, (h + 2 * k) * d, c);
  const DType t = a.w->dtype();
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.optional("bias", a.bias, DType::kF32, {(h + 2 * k) * d});
  check.tensor("rotary", a.rotary, DType::kF32, {n, d});
  check.kept("q", a.q, t, {n, h, d});
  check.tensor("k", a.k, a.q.dtype(), {n, k, d});
  check.tensor("v", a.v, a.q.dtype(), {n, k, d});
  check.rounded("x_bf16", a.x_bf16, t, {n, c});
  check.lora(a.lora, n, c, (h + 2 * k) * d);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().qkv_forward(a);
}

void qkv_backward(Device& device, const QkvBackward& a) {
  const contract::Checker check("qkv_backward", device);
  check.rank("x", a.x, 2);
  check.rank("dy", a.dy, 2);
  const int64_t n = a.x.dim(0), c = a.x.dim(1), out = a.dy.dim(1);
  check.matrix("w", a.w, out, c);
  const DType t = a.w->dtype();
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rstd", a.rstd, DType::kF32, {n});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.tensor("dy", a.dy, t, {n, out});
  check.tensor("dx", a.dx, DType::kF32, {n, c});
  if (!a.dot.empty()) {
    check.rank("dot", a.dot, 2);
    check.tensor("dot", a.dot, DType::kF32, {n, a.dot.dim(1)});
  }
  check.rounded("dx_bf16", a.dx_bf16, t, {n, c});
  check.trained(t, !a.dnormed.empty());
  check.optional("dnormed", a.dnormed, DType::kF32, {n, c});
  check.lora(a.lora, n, c, out);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().qkv_backward(a);
}

int64_t qkv_forward_scratch(Device& device, const QkvForward& a) { return device.ops().scratch(a); }
int64_t qkv_backward_scratch(Device& device, const QkvBackward& a) { return device.ops().scratch(a); }

int64_t rotary_table_bytes(const RotaryTable& a) {
  return a.positions.bytes() + a.inv_freq.bytes() + a.table.bytes();
}
int64_t qkv_forward_bytes(const QkvForward& a) {
  return contract::bytes_of(a.x_bf16.empty() ? a.x : a.x_bf16) + a.rstd.bytes() + contract::bytes_of(a.gain) +
         contract::bytes_of(a.w) + contract::bytes_of(a.bias) + a.rotary.bytes() + a.q.bytes() + a.k.bytes() +
         a.v.bytes() + lora_bytes(a.lora);
}
int64_t qkv_forward_flops(const QkvForward& a) {
  return 2 * a.x.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.x.dim(0));
}
int64_t qkv_backward_bytes(const QkvBackward& a) {
  return a.x.bytes() + a.rstd.bytes() + contract::bytes_of(a.gain) + contract::bytes_of(a.w) + a.dy.bytes() +
         contract::bytes_of(a.dot) + 2 * a.dx.bytes() + contract::bytes_of(a.dx_bf16) + lora_bytes(a.lora) +
         contract::bytes_of(a.dnormed);
}
int64_t qkv_backward_flops(const QkvBackward& a) {
  return 2 * a.x.dim(0) * a.w->rows() * a.w->cols() + lora_flops(a.lora, a.x.dim(0));
}

}  // namespace gantrain
