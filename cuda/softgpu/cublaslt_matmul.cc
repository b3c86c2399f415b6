// The arithmetic of cublasLtMatmul: tiles of d over the host threads; in a tile both operands are packed to
// f32 (f64) panels and multiplied by a kernel that keeps a block of d in registers. Sums run over k in order,
// each product rounded into an f32 (f64) sum by one fused multiply-add.
#include "cuda/softgpu/cublaslt_matmul.h"

#include <algorithm>
#include <cmath>

#include "cuda/softgpu/floats.h"
#include "cuda/softgpu/library.h"

namespace softgpu::lt {
namespace {

struct Floats8 {
  float e4m3[256], e5m2[256];
  Floats8() {
    for (int v = 0; v < 256; ++v) {
      const float sign = v & 128 ? -1.0f : 1.0f;
      int e = (v >> 3) & 15, f = v & 7;
      e4m3[v] =
          (v & 127) == 127 ? NAN : sign * (e ? std::ldexp(float(8 + f), e - 10) : std::ldexp(float(f), -9));
      e = (v >> 2) & 31, f = v & 3;
      e5m2[v] = e == 31 ? (f ? NAN : sign * INFINITY)
                        : sign * (e ? std::ldexp(float(4 + f), e - 17) : std::ldexp(float(f), -16));
    }
  }
};
const Floats8& floats8() {
  static const Floats8 tables;
  return tables;
}

// out[i] = element i * step of `from`, for i in [0, n).
template <class T>
void load(cudaDataType type, const char* from, int64_t step, uint64_t n, T* out) {
  const auto each = [&](auto* p, auto convert) {
    if (step == 1) {
      for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<T>(convert(p[i]));
    } else {
      for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<T>(convert(p[static_cast<int64_t>(i) * step]));
    }
  };
  switch (type) {
    case CUDA_R_64F:
      return each(reinterpret_cast<const double*>(from), [](double v) { return v; });
    case CUDA_R_16F:
      return each(reinterpret_cast<const u16*>(from), half_to_float);
    case CUDA_R_16BF:
      return each(reinterpret_cast<const u16*>(from), bf16_to_float);
    case CUDA_R_8F_E4M3:
      return each(reinterpret_cast<const u8*>(from), [t = floats8().e4m3](u8 v) { return t[v]; });
    case CUDA_R_8F_E5M2:
      return each(reinterpret_cast<const u8*>(from), [t = floats8().e5m2](u8 v) { return t[v]; });
    default:
      return each(reinterpret_cast<const float*>(from), [](float v) { return v; });
  }
}
template <class T>
T load_one(cudaDataType type, const char* base, int64_t index) {
  T v;
  load(type, base + index * static_cast<int64_t>(element_bytes(type)), 1, 1, &v);
  return v;
}
template <class T>
void store_one(cudaDataType type, char* base, int64_t index, T v) {
  char* to = base + index * static_cast<int64_t>(element_bytes(type));
  const auto put = [&](auto x) { std::memcpy(to, &x, sizeof x); };
  switch (type) {
    case CUDA_R_64F:
      return put(static_cast<double>(v));
    case CUDA_R_16F:
      return put(float_to_half(static_cast<float>(v)));
    case CUDA_R_16BF:
      return put(float_to_bf16(static_cast<float>(v)));
    default:
      return put(static_cast<float>(v));
  }
}

// What the tensor cores of a "fast" compute type are given in the place of an f32.
void round_inputs(cublasComputeType_t compute, float* v, uint64_t n) {
  const auto each = [&](auto f) {
    for (uint64_t i = 0; i < n; ++i) v[i] = f(v[i]);
  };
  if (compute == CUBLAS_COMPUTE_32F_FAST_TF32) each([](float x) { return round_tf32(x); });
  if (compute == CUBLAS_COMPUTE_32F_FAST_16BF) each([](float x) { return bf16_to_float(float_to_bf16(x)); });
  if (compute == CUBLAS_COMPUTE_32F_FAST_16F) each([](float x) { return half_to_float(float_to_half(x)); });
}
void round_inputs(cublasComputeType_t, double*, uint64_t) {}

constexpr uint64_t kTileM = 192, kTileN = 192, kTileK = 256;
template <class T>
struct Block {  // of d in registers: two vectors of 64 bytes by twelve columns
  typedef T Vector __attribute__((vector_size(64)));
  static constexpr uint64_t kLanes = 64 / sizeof(T), kRows = 2 * kLanes, kCols = 12;
};

// c[j][i] += sum over k of a[k][i] b[k][j], i in [0, kRows), j in [0, kCols).
template <class T>
void block_product(uint64_t k, const T* a, const T* b, T* c, uint64_t ldc) {
  using V = typename Block<T>::Vector;
  constexpr uint64_t kCols = Block<T>::kCols, kLanes = Block<T>::kLanes;
  V sum[kCols][2];
  for (uint64_t j = 0; j < kCols; ++j) std::memcpy(sum[j], c + j * ldc, sizeof sum[j]);
  for (; k; --k, a += 2 * kLanes, b += kCols) {
    V low, high;
    std::memcpy(&low, a, sizeof low), std::memcpy(&high, a + kLanes, sizeof high);
#pragma GCC unroll 12
    for (uint64_t j = 0; j < kCols; ++j) sum[j][0] += low * b[j], sum[j][1] += high * b[j];
  }
  for (uint64_t j = 0; j < kCols; ++j) std::memcpy(c + j * ldc, sum[j], sizeof sum[j]);
}

// Elements (i0 + i, k0 + x), i < count, x < depth, as panels of `width` i: panel, then x, then i; zeros past
// the end. `along` is the step between i, `across` between x.
template <class T>
void pack(const Matrix& m, const char* data, int64_t along, int64_t across, uint64_t i0, uint64_t count,
          uint64_t k0, uint64_t depth, uint64_t width, cublasComputeType_t compute, T* out) {
  const int64_t bytes = static_cast<int64_t>(element_bytes(m.type));
  const char* base = data + (static_cast<int64_t>(i0) * along + static_cast<int64_t>(k0) * across) * bytes;
  T line[kTileK];
  for (uint64_t p = 0; p < count; p += width) {
    const uint64_t n = std::min(width, count - p);
    T* panel = out + p * depth;
    if (along == 1) {
      for (uint64_t x = 0; x < depth; ++x) {
        load(m.type, base + (static_cast<int64_t>(p) + static_cast<int64_t>(x) * across) * bytes, 1, n,
             panel + x * width);
        std::fill(panel + x * width + n, panel + (x + 1) * width, T{0});
      }
    } else {
      for (uint64_t i = 0; i < width; ++i) {
        if (i < n) {
          load(m.type, base + static_cast<int64_t>(p + i) * along * bytes, across, depth, line);
        } else {
          std::fill_n(line, depth, T{0});
        }
        for (uint64_t x = 0; x < depth; ++x) panel[x * width + i] = line[x];
      }
    }
  }
  round_inputs(compute, out, (count + width - 1) / width * width * depth);
}

constexpr double kGelu = 0.7978845608028654, kCubic = 0.044715;  // sqrt(2 / pi)
float gelu(float x) {
  const float t = std::tanh(static_cast<float>(kGelu) * (x + static_cast<float>(kCubic) * x * x * x));
  return 0.5f * x * (1 + t);
}
float gelu_slope(float x) {
  const float inner = static_cast<float>(kGelu) * (x + static_cast<float>(kCubic) * x * x * x);
  const float t = std::tanh(inner);
  return 0.5f * (1 + t) +
         0.5f * x * (1 - t * t) * static_cast<float>(kGelu) * (1 + 3 * static_cast<float>(kCubic) * x * x);
}

template <class T>
struct Work {
  const Problem& p;
  uint64_t tiles_m, tiles_n;
  T scale;                  // of the product: a's times b's
  std::vector<T> row_sums;  // [batch][tile of n][m] of d, for a bias gradient
  uint64_t rows() const { return p.m; }

  T alpha(uint64_t batch, uint64_t i) const {
    if (!p.alpha_device) return static_cast<T>(p.alpha);
    return load_one<T>(scale_type(), p.alpha_device,
                       static_cast<int64_t>(i * p.alpha_step) + static_cast<int64_t>(batch) * p.alpha_stride);
  }
  T beta(uint64_t i) const {
    if (!p.beta_device) return static_cast<T>(p.beta);
    return load_one<T>(scale_type(), p.beta_device, static_cast<int64_t>(i * p.beta_step));
  }
  static cudaDataType scale_type() { return sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F; }

  void tile(uint64_t index) {
    static thread_local std::vector<T> sums, pa, pb;
    const uint64_t batch = index / (tiles_m * tiles_n), tn = index / tiles_m % tiles_n;
    const uint64_t i0 = index % tiles_m * kTileM, j0 = tn * kTileN;
    const uint64_t m = std::min(kTileM, p.m - i0), n = std::min(kTileN, p.n - j0);
    constexpr uint64_t kRows = Block<T>::kRows, kCols = Block<T>::kCols;
    const uint64_t padded_m = (m + kRows - 1) / kRows * kRows, padded_n = (n + kCols - 1) / kCols * kCols;
    sums.assign(padded_m * padded_n, T{0});
    pa.resize(padded_m * kTileK), pb.resize(padded_n * kTileK);
    const auto at = [&](const Matrix& x) {
      return x.data + static_cast<int64_t>(batch) * x.stride * static_cast<int64_t>(element_bytes(x.type));
    };
    for (uint64_t k0 = 0; k0 < p.k; k0 += kTileK) {
      const uint64_t k = std::min(kTileK, p.k - k0);
      pack(p.a, at(p.a), p.a.row, p.a.col, i0, m, k0, k, kRows, p.compute, pa.data());
      pack(p.b, at(p.b), p.b.col, p.b.row, j0, n, k0, k, kCols, p.compute, pb.data());
      for (uint64_t j = 0; j < padded_n; j += kCols)
        for (uint64_t i = 0; i < padded_m; i += kRows)
          block_product(k, pa.data() + i * k, pb.data() + j * k, sums.data() + j * padded_m + i, padded_m);
    }
    for (uint64_t j = 0; j < n; ++j) finish(batch, tn, i0, m, j0 + j, sums.data() + j * padded_m);
  }

  // Column j of d, rows i0 on, from the sums of products.
  void finish(uint64_t batch, uint64_t tn, uint64_t i0, uint64_t m, uint64_t j, T* x) {
    T buffer[kTileM], scaled[kTileM];
    const auto column = [&](const Matrix& matrix) {
      return matrix.data + (static_cast<int64_t>(batch) * matrix.stride +
                            static_cast<int64_t>(i0) * matrix.row + static_cast<int64_t>(j) * matrix.col) *
                               static_cast<int64_t>(element_bytes(matrix.type));
    };
    for (uint64_t i = 0; i < m; ++i) x[i] = alpha(batch, i0 + i) * scale * x[i];
    bool zero = p.beta_device == nullptr && p.beta == 0;
    if (p.beta_device && p.beta_step == 0) zero = beta(0) == 0;
    if (!zero) {
      load(p.c.type, column(p.c), p.c.row, m, buffer);
      const T c_scale = p.scale[2] ? static_cast<T>(*p.scale[2]) : T{1};
      for (uint64_t i = 0; i < m; ++i) scaled[i] = beta(i0 + i) * c_scale * buffer[i];
      for (uint64_t i = 0; i < m; ++i) x[i] += scaled[i];
    }
    if constexpr (sizeof(T) == 4) epilogue(batch, i0, m, j, x);
    if (p.sums_rows()) {
      T* sum = row_sums.data() + (batch * tiles_n + tn) * p.m + i0;
      for (uint64_t i = 0; i < m; ++i) sum[i] += x[i];
    }
    char* to = column(p.d);
    for (uint64_t i = 0; i < m; ++i) store_one(p.d.type, to, static_cast<int64_t>(i) * p.d.row, x[i]);
  }

  void epilogue(uint64_t batch, uint64_t i0, uint64_t m, uint64_t j, float* x) {
    if (p.adds_bias()) {
      float bias[kTileM];
      load(p.bias_type,
           p.bias + (static_cast<int64_t>(batch) * p.bias_stride + static_cast<int64_t>(i0)) *
                        static_cast<int64_t>(element_bytes(p.bias_type)),
           1, m, bias);
      for (uint64_t i = 0; i < m; ++i) x[i] += bias[i];
    }
    const int64_t place = static_cast<int64_t>(batch) * p.aux_stride + static_cast<int64_t>(j) * p.aux_ld +
                          static_cast<int64_t>(i0);
    if (p.has(8)) {                                                     // the gradient of ReLU
      const u8* bits = reinterpret_cast<const u8*>(p.aux) + place / 8;  // a tile starts at a whole byte
      for (uint64_t i = 0; i < m; ++i)
        if (!((bits[i / 8] >> (i % 8)) & 1)) x[i] = 0;
    } else if (p.has(64)) {  // of GELU
      for (uint64_t i = 0; i < m; ++i)
        x[i] *= gelu_slope(load_one<float>(p.aux_type, p.aux, place + static_cast<int64_t>(i)));
    } else if (p.has(32)) {
      if (p.writes_aux())
        for (uint64_t i = 0; i < m; ++i) store_one(p.aux_type, p.aux, place + static_cast<int64_t>(i), x[i]);
      for (uint64_t i = 0; i < m; ++i) x[i] = gelu(x[i]);
    } else if (p.has(2)) {
      if (p.writes_aux()) {
        u8* bits = reinterpret_cast<u8*>(p.aux) + place / 8;
        std::memset(bits, 0, (m + 7) / 8);
        for (uint64_t i = 0; i < m; ++i) bits[i / 8] |= static_cast<u8>((x[i] > 0) << (i % 8));
      }
      for (uint64_t i = 0; i < m; ++i) x[i] = x[i] <= 0 ? 0 : x[i];  // NaN stays
    }
  }

  void gradients() {
    const auto put = [&](uint64_t batch, uint64_t i, T v) {
      store_one(p.bias_type, p.bias, static_cast<int64_t>(batch) * p.bias_stride + static_cast<int64_t>(i),
                v);
    };
    for (uint64_t batch = 0; batch < p.batch && p.sums_rows(); ++batch)
      for (uint64_t i = 0; i < p.m; ++i) {
        T sum = 0;
        for (uint64_t t = 0; t < tiles_n; ++t) sum += row_sums[(batch * tiles_n + t) * p.m + i];
        put(batch, i, sum);
      }
    if (!p.sums_input()) return;
    const bool of_a = p.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    const Matrix& x = of_a ? p.a : p.b;
    const int64_t along = of_a ? x.row : x.col, across = of_a ? x.col : x.row;
    for (uint64_t batch = 0; batch < p.batch; ++batch)
      for (uint64_t i = 0; i < p.bias_count(); ++i) {
        T sum = 0;
        for (uint64_t k = 0; k < p.k; ++k)
          sum += load_one<T>(x.type, x.data,
                             static_cast<int64_t>(batch) * x.stride + static_cast<int64_t>(i) * along +
                                 static_cast<int64_t>(k) * across);
        put(batch, i, sum);
      }
  }
};

template <class T>
void compute(const Problem& p) {
  Work<T> work{p, (p.m + kTileM - 1) / kTileM, (p.n + kTileN - 1) / kTileN, T{1}, {}};
  for (int i = 0; i < 2; ++i)
    if (p.scale[i]) work.scale *= static_cast<T>(*p.scale[i]);
  if (p.sums_rows()) work.row_sums.assign(p.batch * work.tiles_n * p.m, T{0});
  softgpu_parallel(
      p.batch * work.tiles_m * work.tiles_n,
      [](void* user, uint64_t index) { static_cast<Work<T>*>(user)->tile(index); }, &work);
  work.gradients();
}

}  // namespace

uint32_t element_bytes(cudaDataType type) {
  switch (type) {
    case CUDA_R_64F:
      return 8;
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    case CUDA_R_8F_E4M3:
    case CUDA_R_8F_E5M2:
      return 1;
    default:
      return 0;
  }
}

void multiply(const Problem& p) {
  if (p.compute == CUBLAS_COMPUTE_64F || p.compute == CUBLAS_COMPUTE_64F_PEDANTIC) {
    compute<double>(p);
  } else {
    compute<float>(p);
  }
}

}  // namespace softgpu::lt
