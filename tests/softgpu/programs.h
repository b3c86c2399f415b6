// Shared by the exercise programs: random inputs, bf16 on the host, comparison with a CPU computation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "tests/softgpu/check.h"

inline float bf16_float(uint16_t b) {
  const uint32_t u = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t float_bf16(float f) {  // to nearest even; finite values only
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline uint32_t next_random() {
  static uint64_t x = 0x9e3779b97f4a7c15ull;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return static_cast<uint32_t>(x >> 32);
}
inline float next_float() { return static_cast<float>(static_cast<int>(next_random() % 2001) - 1000) / 1000; }
inline std::vector<uint16_t> random_bf16(size_t n) {
  std::vector<uint16_t> v(n);
  for (uint16_t& x : v) x = float_bf16(next_float());
  return v;
}
template <class T>
T* upload(const std::vector<T>& v) {
  T* p;
  CHECK_CUDA(cudaMalloc(&p, v.size() * sizeof(T)));
  CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T>
T* room(size_t n) {
  T* p;
  CHECK_CUDA(cudaMalloc(&p, n * sizeof(T)));
  return p;
}
template <class T>
std::vector<T> download(const T* p, size_t n) {
  std::vector<T> v(n);
  CHECK_CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return v;
}
// Whether |got - want| <= limit everywhere; NaN is never within.
template <class T, class W>
bool within(const char* name, const std::vector<T>& got, const std::vector<W>& want, double limit) {
  if (got.size() != want.size()) return std::printf("%s: sizes differ\n", name), false;
  for (size_t i = 0; i < got.size(); ++i) {
    const double err = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (err <= limit) continue;
    std::printf("%s: element %zu: got %.9g, want %.9g, limit %g\n", name, i, static_cast<double>(got[i]),
                static_cast<double>(want[i]), limit);
    return false;
  }
  std::printf("%s: %zu elements equal the CPU's within %g\n", name, got.size(), limit);
  return true;
}
// c[m][n] = sum_k a[m][k] b(k, n), in double.
template <class B>
std::vector<double> cpu_gemm(const std::vector<uint16_t>& a, int m, int n, int k, B b) {
  std::vector<double> c(static_cast<size_t>(m) * n);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double s = 0;
      for (int x = 0; x < k; ++x)
        s += static_cast<double>(bf16_float(a[static_cast<size_t>(i) * k + x])) * b(x, j);
      c[static_cast<size_t>(i) * n + j] = s;
    }
  return c;
}
