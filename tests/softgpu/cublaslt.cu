// The cuBLASLt stand-in. Without arguments: products of every layout, type and epilogue, compared with loops
// of the host; what descriptors answer; a captured product. With CASE broken|sound: calls that a check must
// stop, each beside a sound twin (checks.py runs them).
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/softgpu/check.h"

#define CHECK_LT(call)                                                                                  \
  do {                                                                                                  \
    const cublasStatus_t check_status = (call);                                                         \
    if (check_status != CUBLAS_STATUS_SUCCESS) {                                                        \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cublasLtGetStatusString(check_status)); \
      std::exit(1);                                                                                     \
    }                                                                                                   \
  } while (0)

namespace {

uint32_t next_random() {
  static uint64_t x = 0x853c49e6748fea9bull;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return static_cast<uint32_t>(x >> 32);
}

// --- elements, written out here from the formats' definitions

size_t size_of(cudaDataType t) {
  return t == CUDA_R_64F ? 8 : t == CUDA_R_32F ? 4 : t == CUDA_R_16F || t == CUDA_R_16BF ? 2 : 1;
}
// A float of `exponent` and `fraction` bits, without infinities where `finite` (e4m3).
double small_float(uint32_t v, int exponent, int fraction, bool finite) {
  const int e = static_cast<int>(v >> fraction) & ((1 << exponent) - 1),
            f = static_cast<int>(v) & ((1 << fraction) - 1);
  const int bias = (1 << (exponent - 1)) - 1;
  const double sign = (v >> (exponent + fraction)) & 1 ? -1 : 1;
  if (!finite && e == (1 << exponent) - 1) return f ? NAN : sign * INFINITY;
  return sign * std::ldexp(e ? (1 << fraction) + f : f, (e ? e : 1) - bias - fraction);
}
double value(cudaDataType t, const void* p) {
  uint64_t bits = 0;
  std::memcpy(&bits, p, size_of(t));
  switch (t) {
    case CUDA_R_64F: {
      double d;
      std::memcpy(&d, p, 8);
      return d;
    }
    case CUDA_R_32F: {
      float f;
      std::memcpy(&f, p, 4);
      return f;
    }
    case CUDA_R_16F:
      return small_float(static_cast<uint32_t>(bits), 5, 10, false);
    case CUDA_R_16BF:
      return small_float(static_cast<uint32_t>(bits), 8, 7, false);
    case CUDA_R_8F_E4M3:
      return small_float(static_cast<uint32_t>(bits), 4, 3, true);
    default:
      return small_float(static_cast<uint32_t>(bits), 5, 2, false);
  }
}
void draw(cudaDataType t, void* p) {  // between about -1 and 1
  const uint32_t r = next_random();
  const double d = static_cast<int32_t>(r) / 2147483648.0;
  const float f = static_cast<float>(d);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (t == CUDA_R_64F) {
    std::memcpy(p, &d, 8);
  } else if (t == CUDA_R_32F) {
    std::memcpy(p, &f, 4);
  } else if (t == CUDA_R_16BF) {
    const uint16_t h = static_cast<uint16_t>(u >> 16);
    std::memcpy(p, &h, 2);
  } else if (t == CUDA_R_16F) {
    const uint16_t h = static_cast<uint16_t>((r & 0x8000) | (0x2c00 + r % 0x1000));
    std::memcpy(p, &h, 2);
  } else {  // e4m3: up to 1.875, e5m2: 1.75
    const uint8_t b = static_cast<uint8_t>((r & 0x80) | (r >> 8) % 0x40);
    std::memcpy(p, &b, 1);
  }
}
// Half a unit in the last place, with some room.
double rounding(cudaDataType t) {
  return t == CUDA_R_64F ? 1e-15 : t == CUDA_R_32F ? 1e-7 : t == CUDA_R_16F ? 1.0 / 2048 : 1.0 / 256;
}

// Reads every byte of `lines` lines, for the check that somebody has written it.
__global__ void read_lines(const char* p, int64_t pitch, int bytes) {
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) {
    int v;
    asm volatile("ld.global.s8 %0, [%1];" : "=r"(v) : "l"(p + blockIdx.x * pitch + i));
    if (v > 255) __trap();
  }
}

// --- a matrix, `batch` times, on the host and on the device. Between its lines nothing is ever written.

struct Matrix {
  cudaDataType type;
  int rows, cols, batch;
  bool by_rows;
  int64_t ld, stride;
  std::vector<char> host;
  char* device = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;

  Matrix(cudaDataType t, int r, int c, int b, bool row_order, int extra, bool side_by_side = false)
      : type(t), rows(r), cols(c), batch(b), by_rows(row_order) {
    const int line = by_rows ? cols : rows, lines = by_rows ? rows : cols;
    ld = side_by_side ? static_cast<int64_t>(line + extra) * batch : line + extra;
    stride = side_by_side ? line + extra : ld * lines + 3 * extra;
    const int64_t elements = (batch - 1) * stride + (lines - 1) * ld + line;
    host.assign(static_cast<size_t>(elements) * size_of(t), static_cast<char>(0xff));
    CHECK_CUDA(cudaMalloc(&device, host.size()));
    CHECK_LT(cublasLtMatrixLayoutCreate(&layout, t, rows, cols, ld));
    const int32_t order = by_rows ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL;
    CHECK_LT(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order));
    CHECK_LT(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
    CHECK_LT(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                              sizeof stride));
  }
  Matrix(const Matrix&) = delete;
  ~Matrix() {
    CHECK_CUDA(cudaFree(device));
    CHECK_LT(cublasLtMatrixLayoutDestroy(layout));
  }
  size_t place(int i, int j, int b) const {
    return static_cast<size_t>(b * stride + (by_rows ? i * ld + j : j * ld + i)) * size_of(type);
  }
  double at(int i, int j, int b) const { return value(type, host.data() + place(i, j, b)); }
  void fill() {
    for (int b = 0; b < batch; ++b)
      for (int j = 0; j < cols; ++j)
        for (int i = 0; i < rows; ++i) draw(type, host.data() + place(i, j, b));
    const int line = by_rows ? cols : rows, lines = by_rows ? rows : cols;
    for (int b = 0; b < batch; ++b)
      CHECK_CUDA(cudaMemcpy2D(device + place(0, 0, b), ld * size_of(type), host.data() + place(0, 0, b),
                              ld * size_of(type), line * size_of(type), lines, cudaMemcpyHostToDevice));
  }
  void fetch() {
    const int line = by_rows ? cols : rows, lines = by_rows ? rows : cols;
    for (int b = 0; b < batch; ++b)
      read_lines<<<lines, 32>>>(device + place(0, 0, b), ld * size_of(type), line * size_of(type));
    CHECK_CUDA(cudaMemcpy(host.data(), device, host.size(), cudaMemcpyDeviceToHost));
  }
  // The bytes between the lines are those that no one has written.
  bool untouched() const {
    std::vector<char> inside(host.size(), 0);
    for (int b = 0; b < batch; ++b)
      for (int j = 0; j < cols; ++j)
        for (int i = 0; i < rows; ++i) std::memset(inside.data() + place(i, j, b), 1, size_of(type));
    for (size_t k = 0; k < host.size(); ++k)
      if (!inside[k] && host[k] != static_cast<char>(0xff)) return false;
    return true;
  }
};

struct Spec {
  std::string name;
  int m = 37, n = 29, k = 45, batch = 1;
  bool trans_a = false, trans_b = false;
  int row_order = 0;  // bits: of a, b, c, d
  int extra = 0;      // of every leading dimension
  cudaDataType in = CUDA_R_32F, in_b = CUDA_R_32F, out = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  double alpha = 1, beta = 0;
  cublasLtPointerMode_t pointers = CUBLASLT_POINTER_MODE_HOST;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  bool in_place = false, side_by_side = false, heuristic = true, scales = false;
  double tolerance = 2e-6;  // of the sum of magnitudes
};

cublasLtHandle_t g_handle;

template <class T>
void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, T v) {
  CHECK_LT(cublasLtMatmulDescSetAttribute(d, a, &v, sizeof v));
}
template <class T>
T* upload(const std::vector<T>& v) {
  T* p;
  CHECK_CUDA(cudaMalloc(&p, v.size() * sizeof(T)));
  CHECK_CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }
double gelu_slope(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

bool run(const Spec& s) {
  Matrix a(s.in, s.trans_a ? s.k : s.m, s.trans_a ? s.m : s.k, s.batch, s.row_order & 1, s.extra);
  Matrix b(s.in_b, s.trans_b ? s.n : s.k, s.trans_b ? s.k : s.n, s.batch, s.row_order & 2, s.extra);
  Matrix c(s.out, s.m, s.n, s.batch, s.row_order & 4, s.extra, s.side_by_side);
  Matrix d(s.out, s.m, s.n, s.batch, s.row_order & 8, s.extra, s.side_by_side);
  a.fill(), b.fill();
  const bool device_pointers = s.pointers != CUBLASLT_POINTER_MODE_HOST;
  const bool vectors = s.pointers == CUBLASLT_POINTER_MODE_DEVICE_VECTOR;
  if (s.beta != 0 || s.in_place) c.fill();  // else c is never read
  cublasLtMatmulDesc_t op;
  const bool f64 = s.compute == CUBLAS_COMPUTE_64F;
  CHECK_LT(cublasLtMatmulDescCreate(&op, s.compute, f64 ? CUDA_R_64F : CUDA_R_32F));
  set<int32_t>(op, CUBLASLT_MATMUL_DESC_TRANSA, s.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set<int32_t>(op, CUBLASLT_MATMUL_DESC_TRANSB, s.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set<int32_t>(op, CUBLASLT_MATMUL_DESC_POINTER_MODE, s.pointers);
  set<uint32_t>(op, CUBLASLT_MATMUL_DESC_EPILOGUE, s.epilogue);

  // alpha and beta: in device memory a value for all, or one for each row, larger by row / 8.
  std::vector<float> alphas, betas;
  for (int i = 0; i < (vectors ? s.m : 1); ++i)
    alphas.push_back(static_cast<float>(s.alpha) + static_cast<float>(i) / 8),
        betas.push_back(static_cast<float>(s.beta) + static_cast<float>(i) / 8);
  float *device_alpha = upload(alphas), *device_beta = upload(betas);
  const double alpha64 = s.alpha, beta64 = s.beta;
  const void* alpha = device_pointers ? device_alpha
                      : f64           ? static_cast<const void*>(&alpha64)
                                      : alphas.data();
  const void* beta = device_pointers ? device_beta : f64 ? static_cast<const void*>(&beta64) : betas.data();
  const float scale_a = 0.5f, scale_b = 4.0f;
  float *device_sa = upload(std::vector<float>{scale_a}), *device_sb = upload(std::vector<float>{scale_b});
  if (s.scales) {
    set(op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, device_sa);
    set(op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, device_sb);
  }
  const double scale = s.scales ? scale_a * scale_b : 1;

  const uint32_t e = s.epilogue;
  const bool bias_in = e & 4, bias_out = e & (16 | 256 | 512);
  const bool bits = e & (2 | 8), aux_in = e & (8 | 64), aux_out = !aux_in && (e & 128);
  const cudaDataType bias_type = size_of(s.in) == 1 && s.out == CUDA_R_32F ? CUDA_R_16BF : s.out;
  const int bias_length = e == CUBLASLT_EPILOGUE_BGRADB ? s.n : s.m;
  Matrix bias(bias_type, bias_length, 1, s.batch, false, 5);
  if (bias_in) bias.fill();
  if (bias_in || bias_out) {
    set(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.device);
    set<int32_t>(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, bias_type);
    set(op, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, bias.stride);
  }
  // Bits: a matrix of bytes, eight rows in one.
  const int unit = bits ? 128 : 8, aux_ld = (s.m + unit - 1) / unit * unit + unit;
  Matrix aux(bits ? CUDA_R_8F_E4M3 : s.out, bits ? (s.m + 7) / 8 : s.m, s.n, s.batch, false,
             bits ? aux_ld / 8 - (s.m + 7) / 8 : aux_ld - s.m);
  if (aux_in) aux.fill();
  if (aux_in || aux_out) {
    // The stride counts the padding behind a matrix; it must stay a multiple of the unit.
    aux.stride = aux.ld * s.n;
    set(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.device);
    set<int64_t>(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld);
    set<int64_t>(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, static_cast<int64_t>(aux_ld) * s.n);
    if (aux_in) aux.fill();
  }

  cublasLtMatmulPreference_t preference;
  CHECK_LT(cublasLtMatmulPreferenceCreate(&preference));
  const uint64_t most = 1 << 16;
  CHECK_LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                                sizeof most));
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  CHECK_LT(cublasLtMatmulAlgoGetHeuristic(g_handle, op, a.layout, b.layout, c.layout, d.layout, preference, 1,
                                          &found, &count));
  if (count != 1 || found.state != CUBLAS_STATUS_SUCCESS || found.workspaceSize > most) {
    std::printf("%s: no algorithm\n", s.name.c_str());
    return false;
  }
  char* workspace;
  CHECK_CUDA(cudaMalloc(&workspace, found.workspaceSize));
  Matrix& result = s.in_place ? c : d;
  const std::vector<char> before = c.host;
  CHECK_LT(cublasLtMatmul(g_handle, op, alpha, a.device, a.layout, b.device, b.layout, beta, c.device,
                          c.layout, result.device, result.layout, s.heuristic ? &found.algo : nullptr,
                          workspace, found.workspaceSize, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  result.fetch();
  if (bias_out) bias.fetch();
  if (aux_out) aux.fetch();

  int wrong = 0;
  const auto compare = [&](const char* what, int i, int j, int batch, double got, double want, double limit) {
    if (std::fabs(got - want) <= limit) return;
    if (++wrong <= 3)
      std::printf("%s: %s (%d,%d) of batch %d: got %.9g, want %.9g, limit %.2g\n", s.name.c_str(), what, i, j,
                  batch, got, want, limit);
  };
  const double eps = rounding(s.out);
  for (int z = 0; z < s.batch; ++z) {
    std::vector<double> row_sum(s.m, 0), row_size(s.m, 0);
    for (int j = 0; j < s.n; ++j) {
      for (int i = 0; i < s.m; ++i) {
        double sum = 0, size = 0;
        for (int x = 0; x < s.k; ++x) {
          const double p =
              (s.trans_a ? a.at(x, i, z) : a.at(i, x, z)) * (s.trans_b ? b.at(j, x, z) : b.at(x, j, z));
          sum += p, size += std::fabs(p);
        }
        const double al = vectors ? alphas[i] : s.alpha, be = vectors ? betas[i] : s.beta;
        double v = al * scale * sum;
        size *= std::fabs(al) * scale;
        if (s.beta != 0) {
          const double old_value = value(c.type, before.data() + c.place(i, j, z));
          v += be * old_value, size += std::fabs(be * old_value);
        }
        if (bias_in) v += bias.at(i, 0, z), size += std::fabs(bias.at(i, 0, z));
        double limit = s.tolerance * size;
        if (aux_out && bits) {
          const int byte = static_cast<unsigned char>(aux.host[aux.place(i / 8, j, z)]),
                    bit = (byte >> (i % 8)) & 1;
          if (std::fabs(v) > limit) compare("bit", i, j, z, bit, v > 0, 0);
        } else if (aux_out) {
          compare("aux", i, j, z, aux.at(i, j, z), v, limit + eps * std::fabs(v));
        }
        if (e & 8) {
          const int byte = static_cast<unsigned char>(aux.host[aux.place(i / 8, j, z)]);
          if (!((byte >> (i % 8)) & 1)) v = 0, limit = 0;
        } else if (e & 64) {
          v *= gelu_slope(aux.at(i, j, z)), limit = limit * 1.2 + 1e-6;
        } else if (e & 32) {
          v = gelu(v), limit = limit * 1.2 + 1e-6;
        } else if (e & 2) {
          v = v > 0 ? v : 0;
        }
        row_sum[i] += v, row_size[i] += std::fabs(v) + limit;
        compare("d", i, j, z, result.at(i, j, z), v, limit + eps * std::fabs(v));
      }
    }
    for (int i = 0; i < bias_length && bias_out; ++i) {
      double want = row_sum[i], size = row_size[i] * 1e-5;
      if (e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB) {
        want = 0, size = 0;
        for (int x = 0; x < s.k; ++x) {
          const double v = e == CUBLASLT_EPILOGUE_BGRADA ? (s.trans_a ? a.at(x, i, z) : a.at(i, x, z))
                                                         : (s.trans_b ? b.at(i, x, z) : b.at(x, i, z));
          want += v, size += std::fabs(v) * 1e-6;
        }
      }
      compare("bias gradient", i, 0, z, bias.at(i, 0, z), want, size + eps * std::fabs(want));
    }
  }
  if (!result.untouched()) ++wrong, std::printf("%s: written between the lines of d\n", s.name.c_str());
  CHECK_LT(cublasLtMatmulPreferenceDestroy(preference));
  CHECK_LT(cublasLtMatmulDescDestroy(op));
  for (void* p :
       {static_cast<void*>(workspace), static_cast<void*>(device_alpha), static_cast<void*>(device_beta),
        static_cast<void*>(device_sa), static_cast<void*>(device_sb)})
    CHECK_CUDA(cudaFree(p));
  if (wrong) std::printf("%s: %d wrong\n", s.name.c_str(), wrong);
  return wrong == 0;
}

std::vector<Spec> specs() {
  std::vector<Spec> all;
  for (int trans = 0; trans < 4; ++trans)
    for (int extra : {0, 3}) {
      Spec s;
      s.name = "trans " + std::to_string(trans) + " extra " + std::to_string(extra);
      s.trans_a = trans & 1, s.trans_b = trans & 2, s.extra = extra;
      all.push_back(s);
      s.name += " large", s.m = 201, s.n = 397, s.k = 300, s.alpha = 0.5, s.beta = -2, s.tolerance = 1e-5;
      all.push_back(s);
    }
  for (int order = 1; order < 16; ++order) {
    Spec s;
    s.name = "row order " + std::to_string(order);
    s.row_order = order, s.extra = 2, s.trans_a = order & 1, s.beta = 1.5;
    all.push_back(s);
  }
  const auto add = [&](const char* name, auto change) {
    Spec s;
    s.name = name;
    change(s);
    all.push_back(s);
  };
  add("single", [](Spec& s) { s.m = s.n = s.k = 1; });
  add("vector", [](Spec& s) { s.n = 1, s.m = 300; });
  add("batch", [](Spec& s) { s.batch = 3, s.extra = 2, s.beta = 1; });
  add("batch side by side", [](Spec& s) { s.batch = 3, s.extra = 1, s.side_by_side = true, s.beta = 1; });
  add("in place", [](Spec& s) { s.in_place = true, s.beta = 1, s.extra = 1; });
  add("no algorithm", [](Spec& s) { s.heuristic = false; });
  add("device pointers",
      [](Spec& s) { s.pointers = CUBLASLT_POINTER_MODE_DEVICE, s.alpha = 0.25, s.beta = 3; });
  add("device beta 0", [](Spec& s) { s.pointers = CUBLASLT_POINTER_MODE_DEVICE, s.alpha = 0.25; });
  add("device vectors",
      [](Spec& s) { s.pointers = CUBLASLT_POINTER_MODE_DEVICE_VECTOR, s.alpha = 0.25, s.beta = 3; });
  add("f64", [](Spec& s) {
    s.in = s.in_b = s.out = CUDA_R_64F, s.compute = CUBLAS_COMPUTE_64F, s.alpha = -1.25, s.beta = 0.75,
    s.trans_b = true, s.m = 70, s.k = 300, s.tolerance = 1e-15;
  });
  for (const auto in : {CUDA_R_16BF, CUDA_R_16F})
    for (const auto out : {CUDA_R_32F, in})
      for (int trans = 0; trans < 4; ++trans)
        add("16 bits", [&](Spec& s) {
          s.name += in == CUDA_R_16F ? " half" : " bf16";
          s.name += std::to_string(size_of(out)) + " trans " + std::to_string(trans);
          s.in = s.in_b = in, s.out = out, s.trans_a = trans & 1, s.trans_b = trans & 2, s.extra = 1,
          s.beta = 0.5;
        });
  const auto tn8 = [](Spec& s) {
    s.trans_a = true, s.m = 48, s.n = 32, s.k = 64, s.in = s.in_b = CUDA_R_8F_E4M3, s.scales = true;
  };
  add("e4m3", tn8);
  add("e4m3 e5m2 bf16", [&](Spec& s) { tn8(s), s.in_b = CUDA_R_8F_E5M2, s.out = CUDA_R_16BF, s.beta = 1; });
  add("e5m2 e4m3 bias", [&](Spec& s) { tn8(s), s.in = CUDA_R_8F_E5M2, s.epilogue = CUBLASLT_EPILOGUE_BIAS; });
  // The inputs are rounded to 11, 8 and 11 bits.
  add("fast tf32", [](Spec& s) { s.compute = CUBLAS_COMPUTE_32F_FAST_TF32, s.tolerance = 1e-3; });
  add("fast bf16", [](Spec& s) { s.compute = CUBLAS_COMPUTE_32F_FAST_16BF, s.tolerance = 8e-3; });
  add("fast f16", [](Spec& s) { s.compute = CUBLAS_COMPUTE_32F_FAST_16F, s.tolerance = 1e-3; });
  for (const int e :
       {2, 4, 6, 8 | 128, 8 | 16 | 128, 32, 36, 64 | 128, 64 | 16 | 128, 130, 134, 160, 164, 256, 512})
    for (const auto out : {CUDA_R_32F, CUDA_R_16BF})
      for (int batch : {1, 2})
        add("epilogue", [&](Spec& s) {
          s.name += " " + std::to_string(e) + " size " + std::to_string(size_of(out)) + " batch " +
                    std::to_string(batch);
          s.epilogue = static_cast<cublasLtEpilogue_t>(e), s.out = out, s.in = s.in_b = out, s.batch = batch;
          s.m = 203, s.n = batch == 1 ? 211 : 30, s.k = 24, s.trans_a = batch == 2, s.trans_b = batch == 1,
          s.beta = 0.5, s.extra = 1, s.tolerance = 1e-6;
        });
  return all;
}

// --- descriptors: sizes, defaults and answers of the real library (13.1), which needs no GPU for them

bool descriptors() {
  bool good = true;
  const auto expect = [&](const char* what, long long got, long long want) {
    if (got == want) return;
    std::printf("%s: got %lld, want %lld\n", what, got, want);
    good = false;
  };
  cublasLtMatrixLayout_t l;
  CHECK_LT(cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, 8, 4, 7));
  const struct {
    int attribute;
    size_t size;
    long long value;
  } layout[] = {{0, 4, 0}, {1, 4, 0}, {2, 8, 8}, {3, 8, 4}, {4, 8, 7},
                {5, 4, 1}, {6, 8, 0}, {7, 8, 0}, {8, 4, 0}},
    operation[] = {{0, 4, 68},  {1, 4, 0},  {2, 4, 0},  {3, 4, 0},  {4, 4, 0},   {5, 4, 0},  {6, 4, 2},
                   {7, 4, 1},   {8, 8, 0},  {10, 8, 0}, {11, 8, 0}, {12, 8, 0},  {13, 8, 0}, {14, 8, 0},
                   {15, 4, 0},  {16, 4, 0}, {17, 8, 0}, {18, 8, 0}, {19, 8, 0},  {20, 8, 0}, {21, 8, 0},
                   {22, 4, -1}, {23, 8, 0}, {24, 8, 0}, {25, 1, 0}, {26, 4, -1}, {31, 4, 0}, {32, 4, 0},
                   {33, 4, 0},  {34, 4, 0}, {35, 4, 0}, {36, 8, 0}, {37, 4, 0},  {38, 8, 0}},
    preference[] = {{0, 4, 0},   {1, 8, 0},   {3, 4, 7}, {5, 4, 256}, {6, 4, 256},
                    {7, 4, 256}, {8, 4, 256}, {9, 4, 0}, {12, 8, -1}};
  const auto table = [&](const char* what, const auto& rows, auto get) {
    for (const auto& r : rows) {
      size_t size = 0;
      CHECK_LT(get(r.attribute, nullptr, 0, &size));
      expect(what, static_cast<long long>(size), static_cast<long long>(r.size));
      char bytes[8] = {};
      CHECK_LT(get(r.attribute, bytes, size, &size));
      long long v = 0;
      if (r.size == 8) {
        std::memcpy(&v, bytes, 8);
      } else if (r.size == 4) {
        int32_t i;
        std::memcpy(&i, bytes, 4), v = i;
      } else {
        v = bytes[0];
      }
      expect(what, v, r.value);
    }
  };
  table("layout", layout, [&](int a, void* to, size_t n, size_t* w) {
    return cublasLtMatrixLayoutGetAttribute(l, static_cast<cublasLtMatrixLayoutAttribute_t>(a), to, n, w);
  });
  cublasLtMatmulDesc_t d;
  CHECK_LT(cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  table("operation", operation, [&](int a, void* to, size_t n, size_t* w) {
    return cublasLtMatmulDescGetAttribute(d, static_cast<cublasLtMatmulDescAttributes_t>(a), to, n, w);
  });
  cublasLtMatmulPreference_t p;
  CHECK_LT(cublasLtMatmulPreferenceCreate(&p));
  table("preference", preference, [&](int a, void* to, size_t n, size_t* w) {
    return cublasLtMatmulPreferenceGetAttribute(p, static_cast<cublasLtMatmulPreferenceAttributes_t>(a), to,
                                                n, w);
  });
  long long v = 1;
  std::fprintf(stderr, "(the complaints that follow are wanted)\n");
  expect("order with 8 bytes", cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_ORDER, &v, 8), 7);
  expect("order of null", cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_ORDER, nullptr, 4), 7);
  expect("attribute 9",
         cublasLtMatmulDescSetAttribute(d, static_cast<cublasLtMatmulDescAttributes_t>(9), &v, 4), 7);
  expect("16 bytes of ld", cublasLtMatrixLayoutGetAttribute(l, CUBLASLT_MATRIX_LAYOUT_LD, &v, 16, nullptr),
         7);
  expect("nothing of ld", cublasLtMatrixLayoutGetAttribute(l, CUBLASLT_MATRIX_LAYOUT_LD, nullptr, 0, nullptr),
         7);
  expect("ld, size not wanted",
         cublasLtMatrixLayoutGetAttribute(l, CUBLASLT_MATRIX_LAYOUT_LD, &v, 8, nullptr), 0);
  cublasLtMatrixLayoutOpaque_t space;
  expect("little space", cublasLtMatrixLayoutInit_internal(&space, 8, CUDA_R_32F, 8, 4, 8), 3);
  expect("space", cublasLtMatrixLayoutInit(&space, CUDA_R_32F, 8, 4, 8), 0);
  expect("layout of null", cublasLtMatrixLayoutCreate(nullptr, CUDA_R_32F, 8, 4, 8), 7);
  expect("destroy null", cublasLtMatrixLayoutDestroy(nullptr), 0);
  expect("destroy no handle", cublasLtDestroy(nullptr), 7);
  int count = 0;
  cublasLtMatmulHeuristicResult_t found;
  expect("no handle", cublasLtMatmulAlgoGetHeuristic(nullptr, d, l, l, l, l, p, 1, &found, &count), 1);
  expect("nothing wanted", cublasLtMatmulAlgoGetHeuristic(g_handle, d, l, l, l, l, p, 0, &found, &count), 7);
  expect("name",
         std::strcmp(cublasLtGetStatusName(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED"), 0);
  expect("version", cublasLtGetVersion() == CUBLAS_VERSION && cublasLtGetCudartVersion() == CUDART_VERSION,
         1);
  int ids[4];
  CHECK_LT(cublasLtMatmulAlgoGetIds(g_handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
                                    CUDA_R_32F, CUDA_R_32F, 4, ids, &count));
  cublasLtMatmulAlgo_t algo;
  CHECK_LT(cublasLtMatmulAlgoInit(g_handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
                                  CUDA_R_32F, CUDA_R_32F, ids[0], &algo));
  cublasLtMatrixLayoutOpaque_t square;
  CHECK_LT(cublasLtMatrixLayoutInit(&square, CUDA_R_32F, 8, 8, 8));
  expect("check", cublasLtMatmulAlgoCheck(g_handle, d, &square, &square, &square, &square, &algo, &found), 0);
  CHECK_LT(cublasLtMatrixLayoutInit(&space, CUDA_R_16BF, 8, 8, 8));
  expect("check of another type",
         cublasLtMatmulAlgoCheck(g_handle, d, &space, &space, &space, &space, &algo, &found), 7);
  std::fprintf(stderr, "(end of the wanted complaints)\n");
  CHECK_LT(cublasLtMatrixLayoutDestroy(l));
  CHECK_LT(cublasLtMatmulDescDestroy(d));
  CHECK_LT(cublasLtMatmulPreferenceDestroy(p));
  return good;
}

// --- 64 x 64 x 64 of f32, for what follows

constexpr int kN = 64;
struct Square {
  float *a, *b, *c, *d;
  std::vector<float> host;
  cublasLtMatmulDesc_t op;
  cublasLtMatrixLayout_t la, lb, lc, ld;
  float alpha = 1, beta = 0;
  Square() : host(kN * kN) {
    for (float& x : host) x = static_cast<float>(next_random() % 9) - 4;
    a = upload(host), b = upload(host);
    CHECK_CUDA(cudaMalloc(&c, kN * kN * 4));
    CHECK_CUDA(cudaMalloc(&d, kN * kN * 4));
    CHECK_LT(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    for (auto* l : {&la, &lb, &lc, &ld}) CHECK_LT(cublasLtMatrixLayoutCreate(l, CUDA_R_32F, kN, kN, kN));
  }
  cublasStatus_t multiply(const cublasLtMatmulAlgo_t* algo = nullptr, void* workspace = nullptr,
                          size_t bytes = 0, cudaStream_t s = nullptr) {
    return cublasLtMatmul(g_handle, op, &alpha, a, la, b, lb, &beta, c, lc, d, ld, algo, workspace, bytes, s);
  }
  cublasLtMatmulHeuristicResult_t heuristic(uint64_t workspace) {
    cublasLtMatmulPreference_t p;
    CHECK_LT(cublasLtMatmulPreferenceCreate(&p));
    CHECK_LT(
        cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, 8));
    cublasLtMatmulHeuristicResult_t found;
    int count;
    CHECK_LT(cublasLtMatmulAlgoGetHeuristic(g_handle, op, la, lb, lc, ld, p, 1, &found, &count));
    CHECK_LT(cublasLtMatmulPreferenceDestroy(p));
    return found;
  }
  void set_ld(cublasLtMatrixLayout_t l, int64_t v) {
    CHECK_LT(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_LD, &v, 8));
  }
};

__global__ void add_one(float* x, const float* y) {
  x[blockIdx.x * blockDim.x + threadIdx.x] = y[blockIdx.x * blockDim.x + threadIdx.x] + 1;
}

// A captured product is a kernel node: nothing runs at capture, each launch sees the inputs of its time, and
// alpha is what it was.
bool capture() {
  Square q;
  cudaStream_t s;
  CHECK_CUDA(cudaStreamCreate(&s));
  CHECK_CUDA(cudaMemset(q.d, 0, kN * kN * 4));
  CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  add_one<<<kN, kN, 0, s>>>(q.c, q.a);
  q.alpha = 2, q.beta = 1;
  CHECK_LT(q.multiply(nullptr, nullptr, 0, s));
  q.alpha = 77, q.beta = 77;
  add_one<<<kN, kN, 0, s>>>(q.d, q.d);
  cudaGraph_t graph;
  CHECK_CUDA(cudaStreamEndCapture(s, &graph));
  size_t count = 0;
  CHECK_CUDA(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  CHECK_CUDA(cudaGraphGetNodes(graph, nodes.data(), &count));
  bool good = count == 3;
  for (cudaGraphNode_t n : nodes) {
    cudaGraphNodeType type;
    CHECK_CUDA(cudaGraphNodeGetType(n, &type));
    good &= type == cudaGraphNodeTypeKernel;
  }
  std::vector<float> got(kN * kN);
  CHECK_CUDA(cudaMemcpy(got.data(), q.d, got.size() * 4, cudaMemcpyDeviceToHost));
  for (float x : got) good &= x == 0;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  CHECK_CUDA(cudaGraphDestroy(graph));
  std::vector<float> a = q.host;
  for (int round = 0; round < 3; ++round) {
    for (float& x : a) x += static_cast<float>(round);
    CHECK_CUDA(cudaMemcpy(q.a, a.data(), a.size() * 4, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaGraphLaunch(exec, s));
    CHECK_CUDA(cudaStreamSynchronize(s));
    CHECK_CUDA(cudaMemcpy(got.data(), q.d, got.size() * 4, cudaMemcpyDeviceToHost));
    for (int j = 0; j < kN; ++j)
      for (int i = 0; i < kN; ++i) {
        float want = a[j * kN + i] + 2;
        for (int x = 0; x < kN; ++x) want += 2 * a[x * kN + i] * q.host[j * kN + x];
        good &= got[j * kN + i] == want;
      }
  }
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaStreamDestroy(s));
  if (!good) std::printf("capture: wrong\n");
  return good;
}

// --- calls that must be stopped. 86 for a status, as the program's own; faults give it at the end of the
// program.

int check_case(const std::string& name, bool broken) {
  Square q;
  const auto finish = [&](cublasStatus_t s) {
    if (s != CUBLAS_STATUS_SUCCESS) return 86;
    const cudaError_t e = cudaDeviceSynchronize();
    std::printf("%s: %s\n", name.c_str(), cudaGetErrorName(e));
    return e == cudaSuccess ? 0 : 1;
  };
  if (name == "input_bounds") {  // 64 columns, one element further apart than there is room for
    if (broken) q.set_ld(q.la, kN + 1);
  } else if (name == "output_bounds") {
    if (broken) q.set_ld(q.ld, kN + 1);
  } else if (name == "input_unwritten") {
    float* fresh;
    CHECK_CUDA(cudaMalloc(&fresh, kN * kN * 4));
    CHECK_CUDA(cudaMemcpy(fresh, q.b, kN * kN * 4 - (broken ? 4 : 0), cudaMemcpyDeviceToDevice));
    q.b = fresh;
  } else if (name == "addend_unwritten") {
    q.beta = broken ? 1.0f : 0.0f;
  } else if (name == "input_freed") {
    if (broken) CHECK_CUDA(cudaFree(q.a));
  } else if (name == "host_memory") {
    if (broken) q.b = q.host.data();
  } else if (name == "overlap") {
    q.d = broken ? q.a : q.d;
  } else if (name == "shape") {
    if (broken) CHECK_LT(cublasLtMatrixLayoutInit(q.lb, CUDA_R_32F, kN - 1, kN, kN));
  } else if (name == "leading_dimension") {
    q.set_ld(q.lb, broken ? kN - 1 : kN);
  } else if (name == "types") {
    if (broken) CHECK_LT(cublasLtMatrixLayoutInit(q.lb, CUDA_R_16BF, kN, kN, kN));
  } else if (name == "pointer_mode") {
    if (broken) set<int32_t>(q.op, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
  } else if (name == "bias_bounds") {
    float* bias = upload(std::vector<float>(kN - (broken ? 1 : 0)));
    set<uint32_t>(q.op, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(q.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  } else if (name == "aux_missing") {
    float* aux;
    CHECK_CUDA(cudaMalloc(&aux, kN * kN * 4));
    set<uint32_t>(q.op, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU_AUX);
    set<int64_t>(q.op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kN);
    if (!broken) set(q.op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
  } else if (name == "alignment") {  // 256 bytes were promised
    const auto found = q.heuristic(0);
    float* wide;
    CHECK_CUDA(cudaMalloc(&wide, (kN * kN + 1) * 4));
    CHECK_CUDA(cudaMemcpy(wide + (broken ? 1 : 0), q.a, kN * kN * 4, cudaMemcpyDeviceToDevice));
    q.a = wide + (broken ? 1 : 0);
    return finish(q.multiply(&found.algo));
  } else if (name == "workspace_short") {
    const auto found = q.heuristic(1 << 16);
    char* w;
    CHECK_CUDA(cudaMalloc(&w, found.workspaceSize));
    return finish(q.multiply(&found.algo, w, found.workspaceSize - (broken ? 256 : 0)));
  } else if (name == "workspace_bounds") {
    const auto found = q.heuristic(1 << 16);
    char* w;
    CHECK_CUDA(cudaMalloc(&w, found.workspaceSize - (broken ? 1 : 0)));
    return finish(q.multiply(&found.algo, w, found.workspaceSize));
  } else if (name == "workspace_kept") {  // what lay in the workspace is gone
    const auto found = q.heuristic(1 << 16);
    float* w;
    CHECK_CUDA(cudaMalloc(&w, 1 << 16));
    CHECK_CUDA(cudaMemset(w, 0, 1 << 16));
    const cublasStatus_t s = q.multiply(&found.algo, w, found.workspaceSize);
    add_one<<<kN, kN>>>(q.d, broken ? w : q.b);
    return finish(s);
  } else if (name == "other_algorithm") {
    const auto found = q.heuristic(0);
    if (broken) set<int32_t>(q.op, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    return finish(q.multiply(&found.algo));
  } else if (name == "captured_freed") {
    cudaStream_t s;
    CHECK_CUDA(cudaStreamCreate(&s));
    CHECK_CUDA(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    CHECK_LT(q.multiply(nullptr, nullptr, 0, s));
    cudaGraph_t graph;
    CHECK_CUDA(cudaStreamEndCapture(s, &graph));
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    if (broken) CHECK_CUDA(cudaFree(q.a));
    CHECK_CUDA(cudaGraphLaunch(exec, s));
    return finish(CUBLAS_STATUS_SUCCESS);
  } else {
    std::printf("no case %s\n", name.c_str());
    return 2;
  }
  return finish(q.multiply());
}

}  // namespace

int main(int argc, char** argv) {
  CHECK_LT(cublasLtCreate(&g_handle));
  if (argc == 3) return check_case(argv[1], !std::strcmp(argv[2], "broken"));
  int failed = 0, count = 0;
  for (const Spec& s : specs()) failed += !run(s), ++count;
  failed += !descriptors();
  failed += !capture();
  std::printf("cublaslt: %d products, %d failed\n", count, failed);
  CHECK_LT(cublasLtDestroy(g_handle));
  return failed ? 1 : 0;
}
