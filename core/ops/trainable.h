// Ops of the small trainable networks (generator, discriminator): f32 throughout, weight gradients included.
#pragma once

#include "core/device.h"

namespace gantrain {

// y = x w^T + b
struct LinearForward {
  ConstTensor x;  // (N, I) f32
  ConstTensor w;  // (O, I) f32
  ConstTensor b;  // (O) f32 or empty
  Tensor y;       // (N, O) f32  =
};
// dx += dy w;  dw += dy^T x;  db += sum_n dy. Any of the three may be empty: not wanted.
struct LinearBackward {
  ConstTensor x;   // (N, I) f32
  ConstTensor w;   // (O, I) f32
  ConstTensor dy;  // (N, O) f32
  Tensor dx;       // (N, I) f32  +=
  Tensor dw;       // (O, I) f32  +=
  Tensor db;       // (O) f32  +=
};

enum class Activation : uint8_t {
  kSilu,
  kGelu,
  kTanh
};  // gelu: the tanh form of Hendrycks & Gimpel 1606.08415
struct ActivationForward {
  ConstTensor x;  // any shape, f32
  Activation kind;
  Tensor y;  // as x  =
};
struct ActivationBackward {
  ConstTensor x;  // as in forward
  Activation kind;
  ConstTensor dy;  // as x
  Tensor dx;       // as x  +=
};

// y[b, p] = a[p] + c[b]: learned queries plus one projected noise vector an input.
struct BroadcastAddForward {
  ConstTensor a;  // (P, C) f32
  ConstTensor c;  // (B, C) f32
  Tensor y;       // (B, P, C) f32  =
};
struct BroadcastAddBackward {
  ConstTensor dy;  // (B, P, C) f32
  Tensor da;       // (P, C) f32  +=  sum over b in order
  Tensor dc;       // (B, C) f32  +=  sum over p in order
};

// y[b, p] = base[p] + s * x[b, p]: the generator's output around its hard prompt.
struct ScaledAddForward {
  ConstTensor base;  // (P, C) f32
  ConstTensor x;     // (B, P, C) f32
  ConstTensor s;     // (1) f32
  Tensor y;          // (B, P, C) f32  =
};
struct ScaledAddBackward {
  ConstTensor x;   // (B, P, C) f32
  ConstTensor s;   // (1) f32
  ConstTensor dy;  // (B, P, C) f32
  Tensor dbase;    // (P, C) f32  +=
  Tensor dx;       // (B, P, C) f32  +=
  Tensor ds;       // (1) f32  +=
};

// y[r] = x[rows[r]], bit for bit, of any type whose rows are a multiple of four bytes; and, in f32, its
// transpose dx[rows[r]] += dy[r], in order of r.
struct GatherRows {
  ConstTensor x;     // (N, C)
  ConstTensor rows;  // (R) i32
  Tensor y;          // (R, C)  =  of x's type
};
struct ScatterAddRows {
  ConstTensor dy;    // (R, C) f32
  ConstTensor rows;  // (R) i32
  Tensor dx;         // (N, C) f32  +=
};

// y += a * x
struct Axpy {
  ConstTensor x;  // any shape, f32
  float a;
  Tensor y;  // as x  +=
};

// y[i] = x[i] + sigma * normal_(first + i); normals 4j..4j+3 come from Philox(key)(counter, j): normal_pair
// of words (0, 1), then of words (2, 3).
struct AddNoise {
  ConstTensor x;  // any shape, f32
  float sigma;
  uint64_t key;
  uint64_t counter;
  int64_t first = 0;  // a multiple of 4: x is the part from there on of something larger
  Tensor y;           // as x  =
};

void linear_forward(Device&, const LinearForward&);
void linear_backward(Device&, const LinearBackward&);
void activation_forward(Device&, const ActivationForward&);
void activation_backward(Device&, const ActivationBackward&);
void broadcast_add_forward(Device&, const BroadcastAddForward&);
void broadcast_add_backward(Device&, const BroadcastAddBackward&);
void scaled_add_forward(Device&, const ScaledAddForward&);
void scaled_add_backward(Device&, const ScaledAddBackward&);
void gather_rows(Device&, const GatherRows&);
void scatter_add_rows(Device&, const ScatterAddRows&);
void axpy(Device&, const Axpy&);
void add_noise(Device&, const AddNoise&);
int64_t linear_forward_bytes(const LinearForward&);
int64_t linear_forward_flops(const LinearForward&);
int64_t linear_backward_bytes(const LinearBackward&);
int64_t linear_backward_flops(const LinearBackward&);
int64_t activation_forward_bytes(const ActivationForward&);
int64_t activation_backward_bytes(const ActivationBackward&);
int64_t broadcast_add_forward_bytes(const BroadcastAddForward&);
int64_t broadcast_add_backward_bytes(const BroadcastAddBackward&);
int64_t scaled_add_forward_bytes(const ScaledAddForward&);
int64_t scaled_add_backward_bytes(const ScaledAddBackward&);
int64_t gather_rows_bytes(const GatherRows&);
int64_t scatter_add_rows_bytes(const ScatterAddRows&);
int64_t axpy_bytes(const Axpy&);
int64_t add_noise_bytes(const AddNoise&);

}  // namespace gantrain
