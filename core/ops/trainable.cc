#include "core/ops/trainable.h"

#include "core/ops.h"
#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32, kI32 = DType::kI32;

// (P, C), (B, P, C), (B, C) of the two broadcasting ops, read off the large tensor.
struct Broadcast {
  Shape large, base, batch;
};
Broadcast broadcast_shapes(const char* op, const char* field, ConstTensor large) {
  expect_rank(op, field, large, 3);
  const int64_t b = large.dim(0), p = large.dim(1), c = large.dim(2);
  return {{b, p, c}, {p, c}, {b, c}};
}

}  // namespace

void linear_forward(Device& d, const LinearForward& a) {
  const char* op = "linear_forward";
  expect_rank(op, "x", a.x, 2);
  expect_rank(op, "w", a.w, 2);
  const int64_t n = a.x.dim(0), i = a.x.dim(1), o = a.w.dim(0);
  expect_tensor(d, op, "x", a.x, kF32, {n, i});
  expect_tensor(d, op, "w", a.w, kF32, {o, i});
  expect_optional(d, op, "b", a.b, kF32, {o});
  expect_tensor(d, op, "y", a.y, kF32, {n, o});
  d.ops().linear_forward(a);
}

void linear_backward(Device& d, const LinearBackward& a) {
  const char* op = "linear_backward";
  expect_rank(op, "x", a.x, 2);
  expect_rank(op, "w", a.w, 2);
  const int64_t n = a.x.dim(0), i = a.x.dim(1), o = a.w.dim(0);
  expect_tensor(d, op, "x", a.x, kF32, {n, i});
  expect_tensor(d, op, "w", a.w, kF32, {o, i});
  expect_tensor(d, op, "dy", a.dy, kF32, {n, o});
  expect_optional(d, op, "dx", a.dx, kF32, {n, i});
  expect_optional(d, op, "dw", a.dw, kF32, {o, i});
  expect_optional(d, op, "db", a.db, kF32, {o});
  d.ops().linear_backward(a);
}

void activation_forward(Device& d, const ActivationForward& a) {
  expect_tensor(d, "activation_forward", "x", a.x, kF32, a.x.shape());
  expect_tensor(d, "activation_forward", "y", a.y, kF32, a.x.shape());
  d.ops().activation_forward(a);
}

void activation_backward(Device& d, const ActivationBackward& a) {
  expect_tensor(d, "activation_backward", "x", a.x, kF32, a.x.shape());
  expect_tensor(d, "activation_backward", "dy", a.dy, kF32, a.x.shape());
  expect_tensor(d, "activation_backward", "dx", a.dx, kF32, a.x.shape());
  d.ops().activation_backward(a);
}

void broadcast_add_forward(Device& d, const BroadcastAddForward& a) {
  const char* op = "broadcast_add_forward";
  const Broadcast s = broadcast_shapes(op, "y", a.y);
  expect_tensor(d, op, "a", a.a, kF32, s.base);
  expect_tensor(d, op, "c", a.c, kF32, s.batch);
  expect_tensor(d, op, "y", a.y, kF32, s.large);
  d.ops().broadcast_add_forward(a);
}

void broadcast_add_backward(Device& d, const BroadcastAddBackward& a) {
  const char* op = "broadcast_add_backward";
  const Broadcast s = broadcast_shapes(op, "dy", a.dy);
  expect_tensor(d, op, "dy", a.dy, kF32, s.large);
  expect_tensor(d, op, "da", a.da, kF32, s.base);
  expect_tensor(d, op, "dc", a.dc, kF32, s.batch);
  d.ops().broadcast_add_backward(a);
}

void scaled_add_forward(Device& d, const ScaledAddForward& a) {
  const char* op = "scaled_add_forward";
  const Broadcast s = broadcast_shapes(op, "x", a.x);
  expect_tensor(d, op, "base", a.base, kF32, s.base);
  expect_tensor(d, op, "x", a.x, kF32, s.large);
  expect_tensor(d, op, "s", a.s, kF32, {1});
  expect_tensor(d, op, "y", a.y, kF32, s.large);
  d.ops().scaled_add_forward(a);
}

void scaled_add_backward(Device& d, const ScaledAddBackward& a) {
  const char* op = "scaled_add_backward";
  const Broadcast s = broadcast_shapes(op, "x", a.x);
  expect_tensor(d, op, "x", a.x, kF32, s.large);
  expect_tensor(d, op, "s", a.s, kF32, {1});
  expect_tensor(d, op, "dy", a.dy, kF32, s.large);
  expect_tensor(d, op, "dbase", a.dbase, kF32, s.base);
  expect_tensor(d, op, "dx", a.dx, kF32, s.large);
  expect_tensor(d, op, "ds", a.ds, kF32, {1});
  d.ops().scaled_add_backward(a);
}

void gather_rows(Device& d, const GatherRows& a) {
  const char* op = "gather_rows";
  expect_rank(op, "x", a.x, 2);
  expect_rank(op, "rows", a.rows, 1);
  expect_tensor(d, op, "x", a.x, kF32, a.x.shape());
  expect_tensor(d, op, "rows", a.rows, kI32, a.rows.shape());
  expect_tensor(d, op, "y", a.y, kF32, {a.rows.dim(0), a.x.dim(1)});
  d.ops().gather_rows(a);
}

void scatter_add_rows(Device& d, const ScatterAddRows& a) {
  const char* op = "scatter_add_rows";
  expect_rank(op, "dx", a.dx, 2);
  expect_rank(op, "rows", a.rows, 1);
  expect_tensor(d, op, "dy", a.dy, kF32, {a.rows.dim(0), a.dx.dim(1)});
  expect_tensor(d, op, "rows", a.rows, kI32, a.rows.shape());
  expect_tensor(d, op, "dx", a.dx, kF32, a.dx.shape());
  d.ops().scatter_add_rows(a);
}

void axpy(Device& d, const Axpy& a) {
  expect_tensor(d, "axpy", "x", a.x, kF32, a.x.shape());
  expect_tensor(d, "axpy", "y", a.y, kF32, a.x.shape());
  d.ops().axpy(a);
}

void add_noise(Device& d, const AddNoise& a) {
  expect_tensor(d, "add_noise", "x", a.x, kF32, a.x.shape());
  expect_tensor(d, "add_noise", "y", a.y, kF32, a.x.shape());
  d.ops().add_noise(a);
}

int64_t linear_forward_bytes(const LinearForward& a) {
  return a.x.bytes() + a.w.bytes() + (a.b ? a.b.bytes() : 0) + a.y.bytes();
}
int64_t linear_forward_flops(const LinearForward& a) { return 2 * a.x.dim(0) * a.x.dim(1) * a.w.dim(0); }
int64_t linear_backward_bytes(const LinearBackward& a) {  // += reads and writes
  return a.dy.bytes() + (a.dx ? a.w.bytes() + 2 * a.dx.bytes() : 0) +
         (a.dw ? a.x.bytes() + 2 * a.dw.bytes() : 0) + (a.db ? 2 * a.db.bytes() : 0);
}
int64_t linear_backward_flops(const LinearBackward& a) {
  const int64_t product = 2 * a.x.dim(0) * a.x.dim(1) * a.w.dim(0);
  return (a.dx ? product : 0) + (a.dw ? product : 0) + (a.db ? a.dy.count() : 0);
}
int64_t activation_forward_bytes(const ActivationForward& a) { return a.x.bytes() + a.y.bytes(); }
int64_t activation_backward_bytes(const ActivationBackward& a) {
  return a.x.bytes() + a.dy.bytes() + 2 * a.dx.bytes();
}

}  // namespace gantrain
