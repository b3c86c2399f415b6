// Pieces that both players are made of: each keeps what its backward needs from the last forward. f32.
#pragma once

#include "core/ops.h"
#include "train/networks/parameters.h"

namespace gantrain {

// y = x w^T + b. Initial w: normal with deviation gain / sqrt(in); b: 0. gain = 0 gives a layer that starts
// at zero.
class Linear {
 public:
  Linear(ParameterSet& p, const std::string& name, int64_t in, int64_t out, uint64_t key, float gain = 1.0f,
         bool bias = true);
  OwnedTensor forward(Device&, ConstTensor x) const;  // (N, in) -> (N, out)
  // Accumulates parameter gradients; dx (N, in) += if wanted.
  void backward(Device&, ConstTensor x, ConstTensor dy, Tensor dx);
  int64_t out() const { return out_; }

 private:
  ParameterSet* p_;
  size_t w_, b_ = SIZE_MAX;
  int64_t out_;
};

// RMSNorm with a learned gain (starting at 1).
class Norm {
 public:
  Norm(ParameterSet& p, const std::string& name, int64_t width, float eps = 1e-5f);
  OwnedTensor forward(Device&, ConstTensor x);
  void backward(Device&, ConstTensor x, ConstTensor dy, Tensor dx);

 private:
  ParameterSet* p_;
  size_t w_;
  float eps_;
  OwnedTensor rstd_;
};

// One pre-norm block of width w:  x += O attention(Q n, K c, V c);  x += W2 silu(W1 n),  n the normed stream,
// c = n for self-attention or given rows for cross-attention. Both output projections start at zero: the
// block starts as identity.
class Block {
 public:
  Block(ParameterSet& p, const std::string& name, int64_t width, int64_t context_width, int64_t heads,
        uint64_t key);
  // x (N, w) is changed in place. context: (M, context_width) for cross-attention, empty for self-attention.
  void forward(Device&, Tensor x, ConstTensor context, const AttentionPlan& plan);
  // dx (N, w) in place; dcontext (M, context_width) += if wanted (cross-attention).
  void backward(Device&, Tensor dx, ConstTensor context, const AttentionPlan& plan, Tensor dcontext);

 private:
  int64_t width_, heads_;
  Norm norm1_, norm2_;
  Linear q_, k_, v_, o_, up_, down_;
  OwnedTensor x1_, n1_, query_, key_, value_, attended_, lse_, x2_, n2_, hidden_, activated_;
};

OwnedTensor zeros(Device& device, Shape shape);
OwnedTensor copy_of(Device& device, ConstTensor t);

}  // namespace gantrain
