// What the fused ops of the frozen model share: scratch in pieces, normalised rows, RMSNorm's backward.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <type_traits>

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

// Rotates `heads` heads of a row by +angle (sign = 1) or -angle (sign = -1); in place is fine. rotary: the
// row's cos (d / 2), then sin.
template <typename From, typename To>
void rotate_heads(const From* from, To* to, int64_t heads, int64_t d, const float* rotary, float sign) {
  const int64_t half = d / 2;
  const float *cos = rotary, *sin = rotary + half;
  for (int64_t h = 0; h < heads; ++h, from += d, to += d) {
    for (int64_t j = 0; j < half; ++j) {
      const float a = load(from + j), b = load(from + half + j), s = sin[j] * sign;
      store(to + j, a * cos[j] - b * s);
      store(to + half + j, b * cos[j] + a * s);
    }
  }
}

// Whole runs of stored values from and to f32: to[i] = from[i] * factor, rounded once.
template <typename T>
void widen(const T* from, float* to, int64_t count, float factor = 1.0f) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, f16>) {
    for (; i + 8 <= count; i += 8) {
      const __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
      _mm256_storeu_ps(to + i, _mm256_mul_ps(v, _mm256_set1_ps(factor)));
    }
  }
#endif
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]) * factor;
}
template <typename T>
void narrow(const float* from, T* to, int64_t count, float factor = 1.0f) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, f16>) {
    for (; i + 8 <= count; i += 8) {
      const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
  }
#endif
  if constexpr (std::is_same_v<T, f16>) {
    for (; i < count; ++i) to[i] = f16(from[i] * factor);
  } else {
    for (; i < count; ++i) store(to + i, from[i] * factor);
  }
}

// What a layer keeps of q, k, v, o, g and u: f16 beside bf16 weights. The same two bytes hold three more
// bits, and on this device none of them enters a product in bf16 as it is kept.
inline DType kept_type(DType weights) { return weights == DType::kF32 ? DType::kF32 : DType::kF16; }

// Calls f with null pointers of the types of the weights and of what is kept: the same type, or bf16 and f16.
template <typename F>
void with_pair(DType weights, DType kept, F f) {
  if (weights == DType::kF32)
    f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  else if (kept == DType::kBF16)
    f(static_cast<bf16*>(nullptr), static_cast<bf16*>(nullptr));
  else
    f(static_cast<bf16*>(nullptr), static_cast<f16*>(nullptr));
}
// The same where only kept tensors take part.
template <typename F>
void with_kept(DType kept, F f) {
  if (kept == DType::kF32)
    f(static_cast<float*>(nullptr));
  else if (kept == DType::kBF16)
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<f16*>(nullptr));
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
// out (N, C) = x * gain rounded to bf16 (gain may be null); nothing where `out` is empty.
void rounded_rows(ThreadPool& pool, const float* x, const float* gain, Tensor out);

}  // namespace gantrain
