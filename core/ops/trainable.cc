#include "core/ops/trainable.h"

#include "core/ops/contract.h"

namespace gantrain {
namespace {

constexpr DType kF32 = DType::kF32, kI32 = DType::kI32;

// (P, C), (B, P, C), (B, C) of the two broadcasting ops, read off the large tensor.
struct Broadcast {
  Shape large, base, batch;
};
Broadcast broadcast_shapes(const contract::Checker& check, const char* field, ConstTensor large) {
  check.rank(field, large, 3);
  const int64_t b = large.dim(0), p = large.dim(1), c = large.dim(2);
  return {{b, p, c}, {p, c}, {b, c}};
}

}  // namespace

void linear_forward(Device& d, const LinearForward& a) {
  const contract::Checker check("linear_forward", d);
  check.rank("x", a.x, 2);
  check.rank("w", a.w, 2);
  const int64_t n = a.x.dim(0), i = a.x.dim(1), o = a.w.dim(0);
  check.tensor("x", a.x, kF32, {n, i});
  check.tensor("w", a.w, kF32, {o, i});
  check.optional("b", a.b, kF32, {o});
  check.tensor("y", a.y, kF32, {n, o});
  d.ops().linear_forward(a);
}

void linear_backward(Device& d, const LinearBackward& a) {
  const contract::Checker check("linear_backward", d);
  check.rank("x", a.x, 2);
  check.rank("w", a.w, 2);
  const int64_t n = a.x.dim(0), i = a.x.dim(1), o = a.w.dim(0);
  check.tensor("x", a.x, kF32, {n, i});
  check.tensor("w", a.w, kF32, {o, i});
  check.tensor("dy", a.dy, kF32, {n, o});
  check.optional("dx", a.dx, kF32, {n, i});
  check.optional("dw", a.dw, kF32, {o, i});
  check.optional("db", a.db, kF32, {o});
  d.ops().linear_backward(a);
}

void activation_forward(Device& d, const ActivationForward& a) {
  const contract::Checker check("activation_forward", d);
  check.tensor("x", a.x, kF32, a.x.shape());
  check.tensor("y", a.y, kF32, a.x.shape());
  d.ops().activation_forward(a);
}

void activation_backward(Device& d, const ActivationBackward& a) {
  const contract::Checker check("activation_backward", d);
  check.tensor("x", a.x, kF32, a.x.shape());
  check.tensor("dy", a.dy, kF32, a.x.shape());
  check.tensor("dx", a.dx, kF32, a.x.shape());
  d.ops().activation_backward(a);
}

void broadcast_add_forward(Device& d, const BroadcastAddForward& a) {
  const contract::Checker check("broadcast_add_forward", d);
  const Broadcast s = broadcast_shapes(check, "y", a.y);
  check.tensor("a", a.a, kF32, s.base);
  check.tensor("c", a.c, kF32, s.batch);
  check.tensor("y", a.y, kF32, s.large);
  d.ops().broadcast_add_forward(a);
}

void broadcast_add_backward(Device& d, const BroadcastAddBackward& a) {
  const contract::Checker check("broadcast_add_backward", d);
  const Broadcast s = broadcast_shapes(check, "dy", a.dy);
  check.tensor("dy", a.dy, kF32, s.large);
  check.tensor("da", a.da, kF32, s.base);
  check.tensor("dc", a.dc, kF32, s.batch);
  d.ops().broadcast_add_backward(a);
}

void scaled_add_forward(Device& d, const ScaledAddForward& a) {
  const contract::Checker check("scaled_add_forward", d);
  const Broadcast s = broadcast_shapes(check, "x", a.x);
  check.tensor("base", a.base, kF32, s.base);
  check.tensor("x", a.x, kF32, s.large);
  check.tensor("s", a.s, kF32, {1});
  check.tensor("y", a.y, kF32, s.large);
  d.ops().scaled_add_forward(a);
}

void scaled_add_backward(Device& d, const ScaledAddBackward& a) {
  const contract::Checker check("scaled_add_backward", d);
  const Broadcast s = broadcast_shapes(check, "x", a.x);
  check.tensor("x", a.x, kF32, s.large);
  check.tensor("s", a.s, kF32, {1});
  check.tensor("dy", a.dy, kF32, s.large);
  check.tensor("dbase", a.dbase, kF32, s.base);
  check.tensor("dx", a.dx, kF32, s.large);
  check.tensor("ds", a.ds, kF32, {1});
  d.ops().scaled_add_backward(a);
}

void gather_rows(Device& d, const GatherRows& a) {
  const contract::Checker check("gather_rows", d);
  check.rank("x", a.x, 2);
  check.rank("rows", a.rows, 1);
  const int64_t n = a.x.dim(0), r = a.rows.dim(0), bytes = a.x.dim(1) * dtype_size(a.x.dtype());
  GT_CHECK(bytes % 4 == 0, "gather_rows: rows of {} {} are no whole words of four bytes", a.x.dim(1),
           dtype_name(a.x.dtype()));
  check.tensor("x", a.x, a.x.dtype(), a.x.shape());
  check.tensor("rows", a.rows, kI32, a.rows.shape());
  check.tensor("y", a.y, a.x.dtype(), {r, a.x.dim(1)});
  // Backends move words, whatever they hold.
  d.ops().gather_rows({.x = ConstTensor(a.x.raw(), kF32, {n, bytes / 4}, a.x.device()),
                       .rows = a.rows,
                       .y = Tensor(a.y.raw(), kF32, {r, bytes / 4}, a.y.device())});
}

void scatter_add_rows(Device& d, const ScatterAddRows& a) {
  const contract::Checker check("scatter_add_rows", d);
  check.rank("dx", a.dx, 2);
  check.rank("rows", a.rows, 1);
  check.tensor("dy", a.dy, kF32, {a.rows.dim(0), a.dx.dim(1)});
  check.tensor("rows", a.rows, kI32, a.rows.shape());
  check.tensor("dx", a.dx, kF32, a.dx.shape());
  d.ops().scatter_add_rows(a);
}

void axpy(Device& d, const Axpy& a) {
  const contract::Checker check("axpy", d);
  check.tensor("x", a.x, kF32, a.x.shape());
  check.tensor("y", a.y, kF32, a.x.shape());
  d.ops().axpy(a);
}

void add_noise(Device& d, const AddNoise& a) {
  const contract::Checker check("add_noise", d);
  check.tensor("x", a.x, kF32, a.x.shape());
  check.tensor("y", a.y, kF32, a.x.shape());
  GT_CHECK(a.first >= 0 && a.first % 4 == 0, "add_noise: first is {}, expected a multiple of 4", a.first);
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

int64_t broadcast_add_forward_bytes(const BroadcastAddForward& a) {
  return a.a.bytes() + a.c.bytes() + a.y.bytes();
}
int64_t broadcast_add_backward_bytes(const BroadcastAddBackward& a) {
  return a.dy.bytes() + 2 * contract::bytes_of(a.da) + 2 * contract::bytes_of(a.dc);
}
int64_t scaled_add_forward_bytes(const ScaledAddForward& a) {
  return a.base.bytes() + a.x.bytes() + a.s.bytes() + a.y.bytes();
}
int64_t scaled_add_backward_bytes(const ScaledAddBackward& a) {
  return a.x.bytes() + a.s.bytes() + a.dy.bytes() + 2 * contract::bytes_of(a.dbase) +
         2 * contract::bytes_of(a.dx) + 2 * contract::bytes_of(a.ds);
}
int64_t gather_rows_bytes(const GatherRows& a) { return 2 * a.y.bytes() + a.rows.bytes(); }
int64_t scatter_add_rows_bytes(const ScatterAddRows& a) { return 3 * a.dy.bytes() + a.rows.bytes(); }
int64_t axpy_bytes(const Axpy& a) { return a.x.bytes() + 2 * a.y.bytes(); }
int64_t add_noise_bytes(const AddNoise& a) { return a.x.bytes() + a.y.bytes(); }

}  // namespace gantrain
