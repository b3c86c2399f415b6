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

// NF4, whose scales lie apart, and rows of it by token.
void run_nf4(Verdict& verdict) {
  constexpr int kRows = 37, kRowBlocks = 3, kBlocks = kRows * kRowBlocks, kCols = kRowBlocks * 64,
                kFirst = 200;
  constexpr float kMean = 0.11f;
  std::vector<unsigned char> packed, codes;
  for (int32_t b : integers(size_t{kBlocks} * 32, 11, 0, 255)) packed.push_back(b);
  for (int32_t c : integers(kBlocks, 12, 0, 255)) codes.push_back(c);
  std::vector<float> values, steps{0.031f, 0.17f};
  for (int i = 0; i < 256; ++i) values.push_back(float(i - 127) / 150.0f);
  std::vector<double> want;
  for (int b = 0; b < kBlocks; ++b) {
    const float product = float(double(values[codes[b]]) * double(steps[(kFirst + b) / 256]));
    const float scale = float(double(product) + double(kMean));
    for (int i = 0; i < 64; ++i) {
      const int byte = packed[b * 32 + i / 2];
      want.push_back(double(float(double(nf4_value(i % 2 ? byte & 15 : byte >> 4)) * double(scale))));
    }
  }
  const std::vector<int32_t> tokens{5, -1, 36, 0, 5};
  std::vector<float> prompt(kCols, 0.5f);
  std::vector<double> rows;
  for (int32_t t : tokens)
    for (int j = 0; j < kCols; ++j) rows.push_back(t < 0 ? 0.5 : want[size_t(t) * kCols + j]);
  Values<unsigned char> packed_d(packed), codes_d(codes);
  Values<float> values_d(values), steps_d(steps), prompt_d(prompt), y_d(want.size()), x_d(rows.size());
  Values<int32_t> tokens_d(tokens);
  const Nf4Tensor tensor{
      .codes = codes_d, .steps = steps_d, .values = values_d, .mean = kMean, .first = kFirst};
  dequantize_nf4_kernel<float, true, kThreads>
      <<<(kBlocks * 8 + kThreads - 1) / kThreads, kThreads>>>(packed_d, tensor, y_d, kBlocks * 8);
  embed_packed_kernel<PackedCode::kNf4, float, true, 128>
      <<<int(tokens.size()), 128>>>(packed_d, tensor, tokens_d, prompt_d, true, x_d, 0, kRows, kCols);
  finished("NF4 kernels");
  verdict.check("NF4", y_d.host(), want, 0.0);
  verdict.check("  rows by token", x_d.host(), rows, 0.0);
}

}  // namespace

int main() {
  Verdict verdict;
  run<PackedCode::kQ8_0>("Q8_0", verdict);
  run<PackedCode::kQ4_0>("Q4_0", verdict);
  run<PackedCode::kQ4_1>("Q4_1", verdict);
  run<PackedCode::kQ4_K>("Q4_K", verdict);
  run<PackedCode::kQ6_K>("Q6_K", verdict);
  run_nf4(verdict);
  return verdict.finish();
}
