// Packed blocks of every type to values, against one value at a time on the CPU.
#include "cuda/kernels/dequantize.cuh"
#include "cuda/standalone/harness.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

constexpr int kThreads = 256;

double half_of(const unsigned char* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return bits >> 15 ? -size : size;
}

double value(PackedCode type, const unsigned char* b, int i) {
  const auto nibble = [](int byte, bool high) { return high ? byte >> 4 : byte & 15; };
  const auto sign = [](int byte) { return byte < 128 ? byte : byte - 256; };
  switch (type) {
    case PackedCode::kQ8_0:
      return half_of(b) * sign(b[2 + i]);
    case PackedCode::kQ4_0:
      return half_of(b) * (nibble(b[2 + i % 16], i >= 16) - 8);
    case PackedCode::kQ4_1:
      return half_of(b) * nibble(b[4 + i % 16], i >= 16) + half_of(b + 2);
    case PackedCode::kQ4_K: {
      const int g = i / 32, k = g % 4;
      const int scale = g < 4 ? b[4 + k] & 63 : (b[12 + k] & 15) + 16 * (b[4 + k] >> 6);
      const int least = g < 4 ? b[8 + k] & 63 : (b[12 + k] >> 4) + 16 * (b[8 + k] >> 6);
      return half_of(b) * scale * nibble(b[16 + i / 64 * 32 + i % 32], i % 64 >= 32) - half_of(b + 2) * least;
    }
    default: {
      const int h = i / 128, at = i % 128;
      const int q =
          nibble(b[h * 64 + at % 64], at >= 64) + 16 * (b[128 + h * 32 + at % 32] >> at / 32 * 2 & 3);
      return half_of(b + 208) * sign(b[192 + i / 16]) * (q - 32);
    }
  }
}

template <PackedCode kType>
void run(const char* name, Verdict& verdict) {
  constexpr int kBytes = kPackedBytes<kType>, kValues = kPackedValues<kType>, kRun = 4096 / kValues;
  constexpr int kBlocks = 2 * kRun + 3;  // two whole runs and a part of one
  std::vector<unsigned char> packed;
  for (int32_t b : integers(size_t{kBlocks} * kBytes, 1 + int(kType), 0, 255)) packed.push_back(b);
  std::vector<double> want;
  for (int block = 0; block < kBlocks; ++block) {
    unsigned char* b = &packed[size_t(block) * kBytes];
    b[kType == PackedCode::kQ6_K ? 209 : 1] &= 0xbf;  // finite scales
    if (kType == PackedCode::kQ4_1 || kType == PackedCode::kQ4_K) b[3] &= 0xbf;
    for (int i = 0; i < kValues; ++i) want.push_back(double(float(value(kType, b, i))));
  }
  Values<unsigned char> packed_d(packed);
  Values<float> y_d(want.size());
  Values<__nv_bfloat16> y16_d(want.size());
  dequantize_kernel<kType, float, true, true, kThreads><<<3, kThreads>>>(packed_d, y_d, kBlocks);
  dequantize_kernel<kType, __nv_bfloat16, false, true, kThreads><<<3, kThreads>>>(packed_d, y16_d, kBlocks);
  finished("dequantize_kernel");
  verdict.check(name, y_d.host(), want, 0.0);
  for (double& w : want) w = double(__bfloat162float(__float2bfloat16(float(w))));
  verdict.check("  in bf16", y16_d.host(), want, 0.0);
}

}  // namespace

int main() {
  Verdict verdict;
  run<PackedCode::kQ8_0>("Q8_0", verdict);
  run<PackedCode::kQ4_0>("Q4_0", verdict);
  run<PackedCode::kQ4_1>("Q4_1", verdict);
  run<PackedCode::kQ4_K>("Q4_K", verdict);
  run<PackedCode::kQ6_K>("Q6_K", verdict);
  return verdict.finish();
}
