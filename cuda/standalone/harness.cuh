// What the standalone programs share: device memory, random inputs, comparison with a CPU result in double.
// The plain runtime API only, so that any executor of CUDA programs can run them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <type_traits>
#include <vector>

#include "cuda/device/types.cuh"

namespace gantrain::standalone {

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}
// After each launch: what it did wrong is told here.
inline void finished(const char* kernel) {
  must(cudaGetLastError(), kernel);
  must(cudaDeviceSynchronize(), kernel);
}

// `count` values on the device.
template <typename T>
class Values {
 public:
  explicit Values(const std::vector<T>& host) : count_(host.size()) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T) + 1), "cudaMalloc");
    must(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  explicit Values(size_t count) : Values(std::vector<T>(count, T{})) {}
  ~Values() { (void)cudaFree(data_); }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  operator T*() { return data_; }
  std::vector<T> host() const {
    std::vector<T> out(count_);
    must(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

inline std::vector<float> normal(size_t count, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> x(count);
  for (float& v : x) v = draw(generator);
  return x;
}
inline std::vector<int32_t> integers(size_t count, unsigned seed, int low, int high) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int32_t> draw(low, high);
  std::vector<int32_t> x(count);
  for (int32_t& v : x) v = draw(generator);
  return x;
}
inline std::vector<__nv_bfloat16> to_bf16(const std::vector<float>& x) {
  std::vector<__nv_bfloat16> out;
  for (float v : x) out.push_back(__float2bfloat16(v));
  return out;
}
template <typename T>
std::vector<double> to_double(const std::vector<T>& x) {
  std::vector<double> out;
  for (const T& v : x) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
      out.push_back(static_cast<double>(__bfloat162float(v)));
    else
      out.push_back(static_cast<double>(v));
  }
  return out;
}

// f32: some roundings of the largest value. bf16: one rounding of it, and those.
constexpr double kUnits = 0x1p-19, kUnitsBf16 = 0x1p-8;

// Prints one line a result and remembers whether all were within their limits.
class Verdict {
 public:
  template <typename T>
  void check(const char* name, const std::vector<T>& got_values, const std::vector<double>& want,
             double units = kUnits) {
    const std::vector<double> got = to_double(got_values);
    double largest = 1e-3, worst = 0.0;
    bool good = got.size() == want.size();
    for (double w : want) largest = std::fmax(largest, std::fabs(w));
    const double limit = units * largest;
    for (size_t i = 0; good && i < want.size(); ++i) {
      const double error = std::fabs(got[i] - want[i]);
      worst = error <= worst ? worst : error;  // a NaN is kept
      if (!(error <= limit)) passed_ = false;
    }
    if (!good) passed_ = false;
    std::printf("%s: %zu values, worst error %.3g, limit %.3g%s\n", name, want.size(), worst, limit,
                good && worst <= limit ? "" : "  TOO LARGE");
  }
  int finish() const {
    std::printf(passed_ ? "PASS\n" : "FAIL\n");
    return passed_ ? 0 : 1;
  }

 private:
  bool passed_ = true;
};

}  // namespace gantrain::standalone
