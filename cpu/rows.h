// What the fused ops of the frozen model share: scratch in pieces, normalised rows, RMSNorm's backward.
#pragma once

#include "core/tensor.h"
#include "cpu/matmul.h"
#include "cpu/parallel.h"

namespace gantrain {

// Hands out 64-byte aligned pieces of a scratch tensor; over an empty one it only counts.
class Pieces {
 public:
  Pieces() = default;
  explicit Pieces(const Tensor& scratch) : base_(static_cast<std::byte*>(scratch.raw())) {}
  void* take(int64_t bytes) {
    std::byte* p = base_ ? base_ + used_ : nullptr;
    used_ += (bytes + 63) / 64 * 64;
    return p;
  }
  float* floats(int64_t count) { return static_cast<float*>(take(count * 4)); }
  int64_t used() const { return used_; }

 private:
  std::byte* base_ = nullptr;
  int64_t used_ = 0;
};

constexpr int64_t kRowGrain = 16;  // rows a chunk of elementwise work

// The fused ops run over blocks of at most this many rows, so scratch does not grow with the batch.
constexpr int64_t kRowBlock = 1024;
inline int64_t row_block(int64_t n) {
  const int64_t blocks = (n + kRowBlock - 1) / kRowBlock;
  return blocks <= 1 ? n : ((n + blocks - 1) / blocks + 127) / 128 * 128;
}

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) { return static_cast<float>(*p); }
inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint32_t nan = (u >> 16) | 0x40u, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

float row_rstd_of(const float* x, int64_t c, float eps);
// out = x * rstd * gain (gain may be null), rounded once.
void normalise_row(const float* x, float rstd, const float* gain, int64_t c, DType dtype, void* out);
void normalise_rows(ThreadPool& pool, const float* x, const float* rstd, const float* gain, int64_t n,
                    int64_t c, DType dtype, void* out);
// dx += rstd * (d - xhat * mean(d * xhat)),  d = dxhat * gain, xhat = x * rstd
void norm_backward_row(const float* x, float rstd, const float* gain, const float* dxhat, int64_t c,
                       float* dx);
void norm_backward_rows(ThreadPool& pool, const float* x, const float* rstd, const float* gain,
                        const float* dxhat, int64_t n, int64_t c, float* dx);

}  // namespace gantrain
