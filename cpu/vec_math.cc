#include "cpu/vec_math.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/rng.h"

namespace gantrain {
namespace {

constexpr int64_t kBlock = 1024;  // f32 partial sums over this many values, then f64

// Sixteen Philox counters side by side; word w of counter i goes to words[w][i]. Same integers as core/rng.h.
void philox_block(uint64_t key, uint64_t hi, uint64_t lo, uint32_t words[4][16]) {
  uint32_t c0[16], c1[16], c2[16], c3[16];
  for (uint32_t i = 0; i < 16; ++i) {
    c0[i] = static_cast<uint32_t>(lo + i);
    c1[i] = static_cast<uint32_t>((lo + i) >> 32);
    c2[i] = static_cast<uint32_t>(hi);
    c3[i] = static_cast<uint32_t>(hi >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 16; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0[i], p1 = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(p1);
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  std::memcpy(words[0], c0, sizeof c0);
  std::memcpy(words[1], c1, sizeof c1);
  std::memcpy(words[2], c2, sizeof c2);
  std::memcpy(words[3], c3, sizeof c3);
}

}  // namespace

void gumbel_noise(uint64_t key, uint64_t counter, int64_t count, float* out) {
  // Always whole blocks of 64 tokens, the tail through a copy: one code path, one rounding.
  for (int64_t begin = 0; begin < count; begin += 64) {
    uint32_t words[4][16];
    philox_block(key, counter, static_cast<uint64_t>(begin / 4), words);
    float g[64];
    for (int w = 0; w < 4; ++w) {
      for (int i = 0; i < 16; ++i) {
        const float u = (static_cast<float>(static_cast<int32_t>(words[w][i] >> 9)) + 0.5f) * 0x1p-23f;
        g[i * 4 + w] = -fast_log(-fast_log(u));
      }
    }
    std::memcpy(out + begin, g, static_cast<size_t>(std::min<int64_t>(64, count - begin)) * sizeof(float));
  }
}

float row_max(const float* x, int64_t count) {
  float m = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < count; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

double exp_sum(const float* x, int64_t count, float shift, float scale, float* out) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const float e = fast_exp((x[i] - shift) * scale);
      out[i] = e;
      sum += e;
    }
    total += static_cast<double>(sum);
  }
  return total;
}

double exp_sum(const float* x, int64_t count, float shift, float scale) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += fast_exp((x[i] - shift) * scale);
    total += static_cast<double>(sum);
  }
  return total;
}

int32_t row_argmax(const float* x, int64_t count) {
  const float m = row_max(x, count);
  for (int64_t i = 0; i < count; ++i)
    if (x[i] == m) return static_cast<int32_t>(i);
  return 0;  // all NaN
}

}  // namespace gantrain
