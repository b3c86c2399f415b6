// A stand-in for cuBLASLt: descriptors, the checks of a call, and the call as an operation of its stream. The
// contracts are those of NVIDIA's cuBLAS documentation ("Using the cuBLASLt API"); what a descriptor function
// answers was compared with the real library, whose descriptors need no GPU.
#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>

#include "cuda/softgpu/cublaslt_matmul.h"
#include "cuda/softgpu/library.h"

#define SOFTGPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace softgpu::lt {
namespace {

// --- descriptors, as they lie in the program's opaque structures

struct Layout {
  uint32_t type;
  int32_t order = CUBLASLT_ORDER_COL;
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch = 1;
  uint32_t mode = CUBLASLT_BATCH_MODE_STRIDED;
  int64_t stride = 0, plane = 0;
};
struct Operation {
  int32_t compute, scale_type;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N, trans_c = CUBLAS_OP_N, fill = CUBLAS_FILL_MODE_FULL;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  char* bias = nullptr;
  int64_t bias_stride = 0;
  char* aux = nullptr;
  int64_t aux_ld = 0, aux_stride = 0, alpha_stride = 0;
  int32_t sm_target = 0, reserved = 0;
  const float* scale[4] = {nullptr, nullptr, nullptr, nullptr};  // of a, b, c, d
  void* amax = nullptr;
  int32_t aux_type = -1, bias_type = -1;
  const void* aux_scale = nullptr;
  void* aux_amax = nullptr;
  int32_t scale_mode[5] = {0, 0, 0, 0, 0};  // of a, b, c, d, aux
  int32_t out_scale_mode = 0;
  void* out_scale = nullptr;
  void* emulation = nullptr;
  int8_t fast_accumulation = 0;
};
struct Preference {
  uint32_t search = CUBLASLT_SEARCH_BEST_FIT, reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
  float waves = 0;
  uint64_t implementations = ~uint64_t{0};
};
// What the heuristic found: it holds for these types and transpositions, buffers of these alignments, and a
// workspace of this size.
struct Algorithm {
  static constexpr uint64_t kMagic = 0x316d6c7467736f66;
  uint64_t magic;
  int32_t id;
  uint32_t types;  // a, b, c, d, a byte each
  uint64_t workspace;
  uint32_t alignment[4];
  int32_t compute, trans;
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));
constexpr int kAlgorithm = 1;
constexpr uint64_t kWorkspace = 1 << 20;  // what the algorithm would like to have

cublasStatus_t complain(cublasStatus_t status, const char* function, const std::string& what) {
  std::fputs(fmt::format("softgpu: {}: {}: {}\n", cublasLtGetStatusName(status), function, what).c_str(),
             stderr);
  return status;
}

struct Field {
  void* at = nullptr;
  size_t size = 0;
};
template <class T>
Field field(T& v) {
  return {&v, sizeof v};
}
Field find(Layout* l, int attribute) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return field(l->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return field(l->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return field(l->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return field(l->cols);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return field(l->ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return field(l->batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return field(l->stride);
    case CUBLASLT_MATRIX_LAYOUT_PLANE_OFFSET:
      return field(l->plane);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_MODE:
      return field(l->mode);
    default:
      return {};
  }
}
Field find(Operation* o, int attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return field(o->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return field(o->scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return field(o->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return field(o->trans_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return field(o->trans_b);
    case CUBLASLT_MATMUL_DESC_TRANSC:
      return field(o->trans_c);
    case CUBLASLT_MATMUL_DESC_FILL_MODE:
      return field(o->fill);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return field(o->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return field(o->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return field(o->bias_stride);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return field(o->aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return field(o->aux_ld);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return field(o->aux_stride);
    case CUBLASLT_MATMUL_DESC_ALPHA_VECTOR_BATCH_STRIDE:
      return field(o->alpha_stride);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return field(o->sm_target);
    case 16:  // not documented, but there
      return field(o->reserved);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_C_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
      return field(o->scale[attribute - CUBLASLT_MATMUL_DESC_A_SCALE_POINTER]);
    case CUBLASLT_MATMUL_DESC_AMAX_D_POINTER:
      return field(o->amax);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return field(o->aux_type);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_POINTER:
      return field(o->aux_scale);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_AMAX_POINTER:
      return field(o->aux_amax);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return field(o->fast_accumulation);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return field(o->bias_type);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_C_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_D_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_SCALE_MODE:
      return field(o->scale_mode[attribute - CUBLASLT_MATMUL_DESC_A_SCALE_MODE]);
    case CUBLASLT_MATMUL_DESC_D_OUT_SCALE_POINTER:
      return field(o->out_scale);
    case CUBLASLT_MATMUL_DESC_D_OUT_SCALE_MODE:
      return field(o->out_scale_mode);
    case CUBLASLT_MATMUL_DESC_EMULATION_DESCRIPTOR:
      return field(o->emulation);
    default:
      return {};
  }
}
Field find(Preference* p, int attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
      return field(p->search);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return field(p->workspace);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return field(p->reduction);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return field(p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]);
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT:
      return field(p->waves);
    case CUBLASLT_MATMUL_PREF_IMPL_MASK:
      return field(p->implementations);
    default:
      return {};
  }
}
template <class T>
cublasStatus_t set(const char* function, void* descriptor, int attribute, const void* from, size_t size) {
  const Field f = descriptor ? find(static_cast<T*>(descriptor), attribute) : Field();
  if (!f.at || !from || size != f.size)
    return complain(CUBLAS_STATUS_INVALID_VALUE, function,
                    fmt::format("attribute {}: {} bytes from {}, expected {} bytes", attribute, size,
                                from ? "memory" : "a null pointer", f.size));
  std::memcpy(f.at, from, size);
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t get(const char* function, void* descriptor, int attribute, void* to, size_t size,
                   size_t* written) {
  const Field f = descriptor ? find(static_cast<T*>(descriptor), attribute) : Field();
  if (!f.at || (size == 0 && !written) || (size && (!to || size != f.size)))
    return complain(CUBLAS_STATUS_INVALID_VALUE, function,
                    fmt::format("attribute {}: {} bytes wanted, expected {}", attribute, size, f.size));
  if (size) std::memcpy(to, f.at, size);
  if (written) *written = f.size;
  return CUBLAS_STATUS_SUCCESS;
}

// --- a call

struct Refusal {
  cublasStatus_t status;
  std::string what;
};
[[noreturn]] void invalid(const std::string& what) { throw Refusal{CUBLAS_STATUS_INVALID_VALUE, what}; }
[[noreturn]] void unsupported(const std::string& what) { throw Refusal{CUBLAS_STATUS_NOT_SUPPORTED, what}; }

const char* type_name(int type) {
  switch (type) {
    case CUDA_R_64F:
      return "64F";
    case CUDA_R_32F:
      return "32F";
    case CUDA_R_16F:
      return "16F";
    case CUDA_R_16BF:
      return "16BF";
    case CUDA_R_8F_E4M3:
      return "8F_E4M3";
    case CUDA_R_8F_E5M2:
      return "8F_E5M2";
    default:
      return "another type";
  }
}
bool is_float8(int type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

// The matrix behind a layout, transposed where `trans`.
Matrix view(const char* name, const Layout& l, const void* data, bool trans) {
  if (l.plane) unsupported(fmt::format("{}: planar complex matrices", name));
  if (l.mode != CUBLASLT_BATCH_MODE_STRIDED) unsupported(fmt::format("{}: batch mode {}", name, l.mode));
  if (l.order != CUBLASLT_ORDER_COL && l.order != CUBLASLT_ORDER_ROW)
    unsupported(fmt::format("{}: order {}; there are CUBLASLT_ORDER_COL and _ROW", name, l.order));
  if (!element_bytes(static_cast<cudaDataType>(l.type)))
    unsupported(fmt::format("{}: data type {}", name, l.type));
  constexpr uint64_t kMost = uint64_t{1} << 31;  // "usually only values that can be expressed as int32_t"
  if (!l.rows || !l.cols || l.rows >= kMost || l.cols >= kMost)
    invalid(fmt::format("{}: {} rows, {} columns", name, l.rows, l.cols));
  const bool column = l.order == CUBLASLT_ORDER_COL;
  const uint64_t least = column ? l.rows : l.cols;
  if (l.ld < static_cast<int64_t>(least) || l.ld >= int64_t{1} << 40)
    invalid(fmt::format("{}: leading dimension {}, expected at least the {} {}", name, l.ld, least,
                        column ? "rows" : "columns"));
  if (l.batch < 1) invalid(fmt::format("{}: batch count {}", name, l.batch));
  if (l.stride < 0 || l.stride >= int64_t{1} << 40)
    invalid(fmt::format("{}: batch stride {}", name, l.stride));
  Matrix m;
  m.data = static_cast<char*>(const_cast<void*>(data));
  m.type = static_cast<cudaDataType>(l.type);
  m.rows = l.rows, m.cols = l.cols, m.stride = l.stride;
  m.row = column ? 1 : l.ld, m.col = column ? l.ld : 1;
  if (trans) std::swap(m.rows, m.cols), std::swap(m.row, m.col);
  return m;
}

bool transposed(const char* name, int32_t op) {
  if (op != CUBLAS_OP_N && op != CUBLAS_OP_T && op != CUBLAS_OP_C)
    invalid(fmt::format("{}: transform {}", name, op));
  return op != CUBLAS_OP_N;  // conjugation is nothing to real numbers
}

// Types: the tables under cublasLtMatmul() in NVIDIA's documentation.
void check_types(const Operation& o, const Problem& p, const Layout& a, const Layout& b) {
  const auto names = fmt::format("A {}, B {}, C {}, D {}", type_name(p.a.type), type_name(p.b.type),
                                 type_name(p.c.type), type_name(p.d.type));
  switch (o.compute) {
    case CUBLAS_COMPUTE_64F:
    case CUBLAS_COMPUTE_64F_PEDANTIC:
      if (o.scale_type != CUDA_R_64F || p.a.type != CUDA_R_64F || p.b.type != CUDA_R_64F ||
          p.c.type != CUDA_R_64F || p.d.type != CUDA_R_64F)
        unsupported("CUBLAS_COMPUTE_64F with " + names + "; all, and the scale type, must be 64F");
      if (o.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        unsupported(fmt::format("64F with epilogue {}", o.epilogue));
      return;
    case CUBLAS_COMPUTE_32F:
    case CUBLAS_COMPUTE_32F_PEDANTIC:
      break;
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      if (p.a.type != CUDA_R_32F || p.b.type != CUDA_R_32F || p.c.type != CUDA_R_32F ||
          p.d.type != CUDA_R_32F)
        unsupported("CUBLAS_COMPUTE_32F_FAST_* with " + names + "; all must be 32F");
      break;
    default:
      unsupported(
          fmt::format("compute type {}; there are CUBLAS_COMPUTE_32F (and FAST_*) and _64F", o.compute));
  }
  if (o.scale_type != CUDA_R_32F)
    unsupported(fmt::format("scale type {} with CUBLAS_COMPUTE_32F", o.scale_type));
  if (is_float8(p.a.type) && is_float8(p.b.type)) {
    if (p.a.type == CUDA_R_8F_E5M2 && p.b.type == CUDA_R_8F_E5M2) unsupported("A and B both 8F_E5M2");
    if (softgpu_arch() < 89) unsupported("8-bit floats need compute capability 8.9");
    if (p.d.type != p.c.type || (p.d.type != CUDA_R_32F && p.d.type != CUDA_R_16BF && p.d.type != CUDA_R_16F))
      unsupported(names + "; for 8-bit floats C and D are both 32F, 16BF or 16F");
    if (!transposed("A", o.trans_a) || transposed("B", o.trans_b) || a.order != CUBLASLT_ORDER_COL ||
        b.order != CUBLASLT_ORDER_COL)
      unsupported("8-bit floats need column order, A transposed and B not (the \"TN\" format)");
    if (p.m % 16 || p.n % 16 || p.k % 16 || a.ld % 16 || b.ld % 16)
      unsupported(fmt::format("8-bit floats: m {}, n {}, k {} and leading dimensions must be multiples of 16",
                              p.m, p.n, p.k));
    return;
  }
  const bool good = p.c.type == p.d.type && p.a.type == p.b.type &&
                    ((p.a.type == CUDA_R_32F && p.d.type == CUDA_R_32F) ||
                     (p.a.type == CUDA_R_16BF && (p.d.type == CUDA_R_16BF || p.d.type == CUDA_R_32F)) ||
                     (p.a.type == CUDA_R_16F && (p.d.type == CUDA_R_16F || p.d.type == CUDA_R_32F)));
  if (!good) unsupported("CUBLAS_COMPUTE_32F with " + names);
  if (o.scale[0] || o.scale[1] || o.scale[2]) invalid("scale pointers are for 8-bit floats");
}

void check_epilogue(const Operation& o, const Layout& d, Problem* p) {
  static constexpr uint32_t known[] = {
      CUBLASLT_EPILOGUE_DEFAULT,  CUBLASLT_EPILOGUE_RELU,        CUBLASLT_EPILOGUE_RELU_AUX,
      CUBLASLT_EPILOGUE_BIAS,     CUBLASLT_EPILOGUE_RELU_BIAS,   CUBLASLT_EPILOGUE_RELU_AUX_BIAS,
      CUBLASLT_EPILOGUE_DRELU,    CUBLASLT_EPILOGUE_DRELU_BGRAD, CUBLASLT_EPILOGUE_GELU,
      CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_BIAS,   CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
      CUBLASLT_EPILOGUE_DGELU,    CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA,
      CUBLASLT_EPILOGUE_BGRADB};
  if (std::find(std::begin(known), std::end(known), o.epilogue) == std::end(known))
    invalid(fmt::format("epilogue {}", o.epilogue));
  p->epilogue = o.epilogue;
  if (p->adds_bias() || p->sums_rows() || p->sums_input()) {
    // The bias is of the type of D, but that of 8-bit floats with D 32F, which is 16BF.
    const int32_t usual = is_float8(p->a.type) && p->d.type == CUDA_R_32F ? CUDA_R_16BF : p->d.type;
    const int32_t type = o.bias_type == -1 ? usual : o.bias_type;
    if (type != usual)
      unsupported(fmt::format("a bias of type {}, expected {}", type_name(type), type_name(usual)));
    if (is_float8(p->a.type) && !p->adds_bias()) unsupported("bias gradients of 8-bit floats");
    if (!o.bias) invalid(fmt::format("epilogue {} needs CUBLASLT_MATMUL_DESC_BIAS_POINTER", o.epilogue));
    if (reinterpret_cast<uint64_t>(o.bias) % element_bytes(static_cast<cudaDataType>(type)))
      invalid("the bias pointer is misaligned");
    if (o.bias_stride < 0 ||
        (p->batch > 1 && !p->adds_bias() && o.bias_stride < static_cast<int64_t>(p->bias_count())))
      invalid(fmt::format("bias batch stride {}", o.bias_stride));
    p->bias = o.bias, p->bias_type = static_cast<cudaDataType>(type), p->bias_stride = o.bias_stride;
  }
  if (p->writes_aux() || p->reads_aux()) {
    if (d.order != CUBLASLT_ORDER_COL) unsupported("auxiliary buffers with D in row order");
    if (is_float8(p->a.type)) unsupported("auxiliary buffers of 8-bit floats");
    const int64_t unit = p->bits_aux() ? 128 : 8;
    if (!o.aux)
      invalid(fmt::format("epilogue {} needs CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER", o.epilogue));
    if (reinterpret_cast<uint64_t>(o.aux) % 16) invalid("the auxiliary buffer is not aligned to 16 bytes");
    if (o.aux_ld % unit || o.aux_ld < static_cast<int64_t>(p->m) || o.aux_ld >= int64_t{1} << 40)
      invalid(fmt::format("auxiliary leading dimension {}: expected a multiple of {}, at least the {} rows",
                          o.aux_ld, unit, p->m));
    if (p->batch > 1 && (o.aux_stride % unit || o.aux_stride < o.aux_ld * static_cast<int64_t>(p->n)))
      invalid(fmt::format("auxiliary batch stride {}", o.aux_stride));
    if (!p->bits_aux() && o.aux_type != -1 && o.aux_type != p->d.type)
      unsupported(fmt::format("an auxiliary buffer of type {}, expected {}", type_name(o.aux_type),
                              type_name(p->d.type)));
    p->aux = o.aux, p->aux_type = p->d.type, p->aux_ld = o.aux_ld, p->aux_stride = o.aux_stride;
  }
  if (p->sums_rows() && d.order != CUBLASLT_ORDER_COL) unsupported("bias gradients with D in row order");
}

// Whether two batches of d would write the same element.
bool collides(const Matrix& d, uint64_t batch) {
  if (batch == 1) return false;
  const bool column = d.row == 1;
  const int64_t minor = static_cast<int64_t>(column ? d.rows : d.cols),
                count = static_cast<int64_t>(column ? d.cols : d.rows);
  const int64_t ld = column ? d.col : d.row, batches = static_cast<int64_t>(batch);
  if (d.stride >= (count - 1) * ld + minor) return false;                 // one after the other
  return !(d.stride >= minor && (batches - 1) * d.stride + minor <= ld);  // side by side within a column
}

// The call without its pointers: what cublasLtMatmulAlgoGetHeuristic sees.
Problem describe(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  Problem p;
  if (o.fill != CUBLAS_FILL_MODE_FULL) unsupported(fmt::format("fill mode {}", o.fill));
  if (o.trans_c != CUBLAS_OP_N) unsupported("a transform of C");
  if (o.scale[3] || o.amax || o.aux_scale || o.aux_amax || o.out_scale)
    unsupported("scales or maxima of D and of the auxiliary buffer");
  for (const int32_t mode : o.scale_mode)
    if (mode) unsupported(fmt::format("scale mode {}", mode));
  if (o.out_scale_mode || o.emulation) unsupported("output scale modes and emulation");
  p.a = view("A", a, nullptr, transposed("A", o.trans_a));
  p.b = view("B", b, nullptr, transposed("B", o.trans_b));
  p.c = view("C", c, nullptr, false);
  p.d = view("D", d, nullptr, false);
  p.m = p.a.rows, p.k = p.a.cols, p.n = p.b.cols;
  if (p.b.rows != p.k)
    invalid(
        fmt::format("op(A) is {} x {}, op(B) {} x {}: the inner dimensions differ", p.m, p.k, p.b.rows, p.n));
  for (const auto& [name, x] : {std::pair<const char*, const Matrix&>("C", p.c), {"D", p.d}})
    if (x.rows != p.m || x.cols != p.n)
      invalid(fmt::format("{} is {} x {}, op(A) op(B) is {} x {}", name, x.rows, x.cols, p.m, p.n));
  if (a.batch != b.batch || a.batch != c.batch || a.batch != d.batch)
    invalid(fmt::format("batch counts: A {}, B {}, C {}, D {}", a.batch, b.batch, c.batch, d.batch));
  p.batch = static_cast<uint64_t>(d.batch);
  p.compute = static_cast<cublasComputeType_t>(o.compute);
  if (o.pointer_mode < CUBLASLT_POINTER_MODE_HOST ||
      o.pointer_mode > CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST)
    invalid(fmt::format("pointer mode {}", o.pointer_mode));
  check_types(o, p, a, b);
  check_epilogue(o, d, &p);
  if (collides(p.d, p.batch))
    invalid(fmt::format("the matrices of the batch of D share elements: stride {}, leading dimension {}",
                        d.stride, d.ld));
  p.name = fmt::format("cublasLtMatmul {} {} {}", p.m, p.n, p.k);
  if (p.batch > 1) p.name += fmt::format(" batch {}", p.batch);
  return p;
}

double scalar(const Operation& o, const void* from) {
  if (o.scale_type == CUDA_R_64F) {
    double v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  float v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
void scaling(const Operation& o, const void* alpha, const void* beta, Problem* p) {
  const auto mode = static_cast<cublasLtPointerMode_t>(o.pointer_mode);
  if (!alpha || (!beta && mode != CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_ZERO))
    invalid("alpha or beta is null");
  if (mode == CUBLASLT_POINTER_MODE_HOST) {
    p->alpha = scalar(o, alpha), p->beta = scalar(o, beta);
    return;
  }
  p->alpha_device = static_cast<const char*>(alpha);
  p->alpha_step = mode == CUBLASLT_POINTER_MODE_DEVICE ? 0 : 1;
  if (mode == CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_ZERO) {
    if (o.alpha_stride) invalid("a batch stride of alpha with beta zero");
  } else if (mode == CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST) {
    if (o.alpha_stride < 0) invalid("a negative batch stride of alpha");
    p->alpha_stride = o.alpha_stride;
    p->beta = scalar(o, beta);
  } else {
    p->beta_device = static_cast<const char*>(beta);
    p->beta_step = p->alpha_step;
  }
}

// --- the work, when its turn in the stream has come

struct Fault {
  int code;
  std::string what;
};
struct Stretches {  // of one matrix
  const char* at;
  uint64_t bytes, pitch, count;
  uint64_t end() const { return reinterpret_cast<uint64_t>(at) + pitch * (count - 1) + bytes; }
  uint64_t begin() const { return reinterpret_cast<uint64_t>(at); }
};
Stretches stretches(const Matrix& m, uint64_t batch) {
  const uint64_t e = element_bytes(m.type);
  const bool rows = m.row == 1;  // consecutive elements: of a column, or of a row
  uint64_t line = rows ? m.rows : m.cols, count = rows ? m.cols : m.rows;
  const uint64_t pitch = static_cast<uint64_t>(rows ? m.col : m.row);
  if (pitch == line) line *= count, count = 1;
  return {m.data + batch * static_cast<uint64_t>(m.stride) * e, line * e, pitch * e, count};
}
void check(const char* name, const Stretches& s, bool read) {
  char message[768];
  if (const int code = softgpu_check(s.at, s.bytes, s.pitch, s.count, read, message, sizeof message))
    throw Fault{code, fmt::format("{} {}: {}", read ? "read of" : "write of", name, message)};
}
Stretches aux_stretches(const Problem& p, uint64_t batch) {
  if (p.bits_aux())
    return {p.aux + batch * static_cast<uint64_t>(p.aux_stride) / 8, (p.m + 7) / 8,
            static_cast<uint64_t>(p.aux_ld) / 8, p.n};
  const uint64_t e = element_bytes(p.aux_type);
  return {p.aux + batch * static_cast<uint64_t>(p.aux_stride) * e, p.m * e,
          static_cast<uint64_t>(p.aux_ld) * e, p.n};
}
Stretches bias_stretch(const Problem& p, uint64_t batch) {
  const uint64_t e = element_bytes(p.bias_type);
  return {p.bias + batch * static_cast<uint64_t>(p.bias_stride) * e, p.bias_count() * e, 0, 1};
}
// No output may share memory with anything else of the call, but D with C where they are the same matrix.
void check_overlap(const Problem& p, bool c_used) {
  struct Range {
    const char* name;
    uint64_t lo, hi;
    bool written;
  };
  std::vector<Range> ranges;
  const auto add = [&](const char* name, const Stretches& first, const Stretches& last, bool written) {
    if (first.at) ranges.push_back({name, first.begin(), last.end(), written});
  };
  const uint64_t last = p.batch - 1;
  const auto matrix = [&](const char* name, const Matrix& m, bool written) {
    add(name, stretches(m, 0), stretches(m, last), written);
  };
  matrix("A", p.a, false), matrix("B", p.b, false), matrix("D", p.d, true);
  if (c_used && p.c.data != p.d.data) matrix("C", p.c, false);
  if (p.bias) add("the bias", bias_stretch(p, 0), bias_stretch(p, last), !p.adds_bias());
  if (p.aux) add("the auxiliary buffer", aux_stretches(p, 0), aux_stretches(p, last), p.writes_aux());
  if (p.workspace_bytes) {
    const Stretches s{p.workspace, p.workspace_bytes, 0, 1};
    add("the workspace", s, s, true);
  }
  for (const Range& x : ranges)
    for (const Range& y : ranges)
      if (&x != &y && x.written && x.lo < y.hi && y.lo < x.hi)
        throw Fault{cudaErrorLaunchFailure, fmt::format("{} and {} share memory", x.name, y.name)};
}

void work(const Problem& p) {
  const uint64_t scale_bytes =
      p.compute == CUBLAS_COMPUTE_64F || p.compute == CUBLAS_COMPUTE_64F_PEDANTIC ? 8 : 4;
  const auto vector = [&](const char* name, const char* at, uint64_t step, int64_t stride) {
    for (uint64_t i = 0; at && i < (stride ? p.batch : 1); ++i)
      check(name,
            {at + i * static_cast<uint64_t>(stride) * scale_bytes, (step ? p.m : 1) * scale_bytes, 0, 1},
            true);
  };
  vector("alpha", p.alpha_device, p.alpha_step, p.alpha_stride);
  vector("beta", p.beta_device, p.beta_step, 0);
  for (const float* s : p.scale)
    if (s) check("a scale", {reinterpret_cast<const char*>(s), 4, 0, 1}, true);
  bool c_used = p.beta_device || p.beta != 0;
  if (p.beta_device && !p.beta_step) {
    double v = 0;
    float single = 0;
    std::memcpy(scale_bytes == 8 ? static_cast<void*>(&v) : &single, p.beta_device, scale_bytes);
    c_used = v != 0 || single != 0;
  }
  for (uint64_t i = 0; i < p.batch; ++i) {
    check("A", stretches(p.a, i), true);
    check("B", stretches(p.b, i), true);
    if (c_used) check("C", stretches(p.c, i), true);
    check("D", stretches(p.d, i), false);
    if (p.bias) check("the bias", bias_stretch(p, i), p.adds_bias());
    if (p.aux) check("the auxiliary buffer", aux_stretches(p, i), p.reads_aux());
  }
  if (p.workspace_bytes) check("the workspace", {p.workspace, p.workspace_bytes, 0, 1}, false);
  check_overlap(p, c_used);
  // What was in the workspace is lost.
  if (p.workspace_bytes) softgpu_mark(p.workspace, p.workspace_bytes, 0, 1, 0);
  multiply(p);
  const auto mark = [](const Stretches& s) { softgpu_mark(s.at, s.bytes, s.pitch, s.count, 1); };
  for (uint64_t i = 0; i < p.batch; ++i) {
    mark(stretches(p.d, i));
    if (p.bias && !p.adds_bias()) mark(bias_stretch(p, i));
    if (p.aux && p.writes_aux()) mark(aux_stretches(p, i));
  }
}
int run(void* state, char* message, size_t size) {
  try {
    work(*static_cast<const Problem*>(state));
    return 0;
  } catch (const Fault& f) {
    std::snprintf(message, size, "%s", f.what.c_str());
    return f.code;
  }
}

std::mutex handles_mutex;
std::set<cublasLtHandle_t> handles;
bool is_handle(cublasLtHandle_t h) {
  const std::lock_guard lock(handles_mutex);
  return handles.count(h) != 0;
}

uint32_t types_of(const Problem& p) {
  return static_cast<uint32_t>(p.a.type) | static_cast<uint32_t>(p.b.type) << 8 |
         static_cast<uint32_t>(p.c.type) << 16 | static_cast<uint32_t>(p.d.type) << 24;
}
Algorithm algorithm_of(const cublasLtMatmulAlgo_t* from) {
  Algorithm a;
  std::memcpy(&a, from, sizeof a);
  if (a.magic != Algorithm::kMagic || a.id != kAlgorithm)
    invalid("the algorithm was not made by cublasLtMatmulAlgoGetHeuristic or cublasLtMatmulAlgoInit");
  return a;
}
void check_algorithm(const Algorithm& a, const Operation& o, const Problem& p) {
  if (a.types != types_of(p) || a.compute != o.compute)
    invalid("the algorithm was made for other types of data or of computation");
  if (a.trans != -1 && a.trans != (o.trans_a | o.trans_b << 8))
    invalid("the algorithm was made for other transforms of A and B");
}
const Operation& operation(cublasLtMatmulDesc_t d) {
  if (!d) invalid("the operation's descriptor is null");
  return *reinterpret_cast<const Operation*>(d);
}
const Layout& layout(const char* name, cublasLtMatrixLayout_t l) {
  if (!l) invalid(fmt::format("the layout of {} is null", name));
  return *reinterpret_cast<const Layout*>(l);
}
Problem describe(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                 cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  return describe(operation(o), layout("A", a), layout("B", b), layout("C", c), layout("D", d));
}

// Runs `f`, with a refusal as a status and a line on standard error.
template <class F>
cublasStatus_t guarded(const char* function, cublasLtHandle_t handle, F f) {
  if (!is_handle(handle))
    return complain(CUBLAS_STATUS_NOT_INITIALIZED, function, "no handle of cublasLtCreate");
  try {
    return f();
  } catch (const Refusal& r) {
    return complain(r.status, function, r.what);
  }
}

}  // namespace
}  // namespace softgpu::lt

using namespace softgpu::lt;

SOFTGPU_EXPORT cublasStatus_t cublasLtCreate(cublasLtHandle_t* out) {
  if (!out) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtCreate", "a null pointer");
  const std::lock_guard lock(handles_mutex);
  *out = reinterpret_cast<cublasLtHandle_t>(new char);
  handles.insert(*out);
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
  const std::lock_guard lock(handles_mutex);
  if (!handles.erase(h))
    return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtDestroy", "no handle of cublasLtCreate");
  delete reinterpret_cast<char*>(h);
  return CUBLAS_STATUS_SUCCESS;
}

namespace {
struct Status {
  int code;
  const char *name, *text;
};
constexpr Status kStatuses[] = {
    {0, "CUBLAS_STATUS_SUCCESS", "success"},
    {1, "CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"},
    {3, "CUBLAS_STATUS_ALLOC_FAILED", "the resource allocation failed"},
    {7, "CUBLAS_STATUS_INVALID_VALUE", "an unsupported value or parameter was passed to the function"},
    {8, "CUBLAS_STATUS_ARCH_MISMATCH",
     "the function requires an architectural feature absent from the device"},
    {11, "CUBLAS_STATUS_MAPPING_ERROR", "an access to GPU memory space failed"},
    {13, "CUBLAS_STATUS_EXECUTION_FAILED", "the function failed to launch on the GPU"},
    {14, "CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation failed"},
    {15, "CUBLAS_STATUS_NOT_SUPPORTED", "the requested functionality is not supported"},
    {16, "CUBLAS_STATUS_LICENSE_ERROR", "the license check failed"}};
}  // namespace

SOFTGPU_EXPORT const char* cublasLtGetStatusName(cublasStatus_t s) {
  for (const Status& x : kStatuses)
    if (x.code == static_cast<int>(s)) return x.name;
  return "unrecognized status";
}
SOFTGPU_EXPORT const char* cublasLtGetStatusString(cublasStatus_t s) {
  for (const Status& x : kStatuses)
    if (x.code == static_cast<int>(s)) return x.text;
  return "unrecognized status";
}
SOFTGPU_EXPORT size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
SOFTGPU_EXPORT size_t cublasLtGetCudartVersion(void) { return CUDART_VERSION; }
SOFTGPU_EXPORT cublasStatus_t cublasLtGetProperty(libraryPropertyType type, int* value) {
  if (!value || type < MAJOR_VERSION || type > PATCH_LEVEL)
    return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtGetProperty", "no such property");
  *value = type == MAJOR_VERSION   ? CUBLAS_VER_MAJOR
           : type == MINOR_VERSION ? CUBLAS_VER_MINOR
                                   : CUBLAS_VER_PATCH;
  return CUBLAS_STATUS_SUCCESS;
}

// Descriptors: the real library looks at nothing but the size of the space, and at values only when they are
// used.
SOFTGPU_EXPORT cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t l, size_t size,
                                                                cudaDataType type, uint64_t rows,
                                                                uint64_t cols, int64_t ld) {
  if (!l) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatrixLayoutInit", "a null pointer");
  if (size < sizeof *l)
    return complain(CUBLAS_STATUS_ALLOC_FAILED, "cublasLtMatrixLayoutInit", "too little space");
  Layout value{};
  value.type = static_cast<uint32_t>(type), value.rows = rows, value.cols = cols, value.ld = ld;
  std::memcpy(l, &value, sizeof value);
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* out, cudaDataType type,
                                                         uint64_t rows, uint64_t cols, int64_t ld) {
  if (!out) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatrixLayoutCreate", "a null pointer");
  *out = new cublasLtMatrixLayoutOpaque_t{};
  return cublasLtMatrixLayoutInit_internal(*out, sizeof **out, type, rows, cols, ld);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
  delete l;
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                               cublasLtMatrixLayoutAttribute_t a,
                                                               const void* from, size_t size) {
  return set<Layout>("cublasLtMatrixLayoutSetAttribute", l, a, from, size);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t l,
                                                               cublasLtMatrixLayoutAttribute_t a, void* to,
                                                               size_t size, size_t* written) {
  return get<Layout>("cublasLtMatrixLayoutGetAttribute", l, a, to, size, written);
}

SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t d, size_t size,
                                                              cublasComputeType_t compute,
                                                              cudaDataType_t scale) {
  if (!d) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulDescInit", "a null pointer");
  if (size < sizeof(Operation))
    return complain(CUBLAS_STATUS_ALLOC_FAILED, "cublasLtMatmulDescInit", "too little space");
  Operation value{};
  value.compute = compute, value.scale_type = scale;
  std::memcpy(d, &value, sizeof value);
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* out, cublasComputeType_t compute,
                                                       cudaDataType_t scale) {
  if (!out) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulDescCreate", "a null pointer");
  *out = new cublasLtMatmulDescOpaque_t{};
  return cublasLtMatmulDescInit_internal(*out, sizeof **out, compute, scale);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
  delete d;
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                                             cublasLtMatmulDescAttributes_t a,
                                                             const void* from, size_t size) {
  return set<Operation>("cublasLtMatmulDescSetAttribute", d, a, from, size);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t d,
                                                             cublasLtMatmulDescAttributes_t a, void* to,
                                                             size_t size, size_t* written) {
  return get<Operation>("cublasLtMatmulDescGetAttribute", d, a, to, size, written);
}

SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p,
                                                                    size_t size) {
  if (!p) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulPreferenceInit", "a null pointer");
  if (size < sizeof *p)
    return complain(CUBLAS_STATUS_ALLOC_FAILED, "cublasLtMatmulPreferenceInit", "too little space");
  const Preference value{};
  std::memcpy(p, &value, sizeof value);
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* out) {
  if (!out) return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulPreferenceCreate", "a null pointer");
  *out = new cublasLtMatmulPreferenceOpaque_t{};
  return cublasLtMatmulPreferenceInit_internal(*out, sizeof **out);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  delete p;
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                                   cublasLtMatmulPreferenceAttributes_t a,
                                                                   const void* from, size_t size) {
  return set<Preference>("cublasLtMatmulPreferenceSetAttribute", p, a, from, size);
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t p,
                                                                   cublasLtMatmulPreferenceAttributes_t a,
                                                                   void* to, size_t size, size_t* written) {
  return get<Preference>("cublasLtMatmulPreferenceGetAttribute", p, a, to, size, written);
}

// --- algorithms: there is one

SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
    cublasLtMatmulHeuristicResult_t results[], int* count) {
  return guarded("cublasLtMatmulAlgoGetHeuristic", handle, [&] {
    if (count) *count = 0;
    if (wanted < 1 || !results || !count || !preference) invalid("no result wanted, or a null pointer");
    const Problem p = describe(o, a, b, c, d);
    const Preference& want = *reinterpret_cast<const Preference*>(preference);
    for (const uint32_t x : want.alignment)
      if (!x || x & (x - 1)) invalid(fmt::format("a minimum alignment of {} bytes", x));
    if (want.search > CUBLASLT_SEARCH_LIMITED_BY_ALGO_ID)
      unsupported(fmt::format("search mode {}", want.search));
    if (want.search == CUBLASLT_SEARCH_LIMITED_BY_ALGO_ID) algorithm_of(&results[0].algo);
    Algorithm made{Algorithm::kMagic,
                   kAlgorithm,
                   types_of(p),
                   std::min(want.workspace, kWorkspace) / 256 * 256,
                   {},
                   operation(o).compute,
                   operation(o).trans_a | operation(o).trans_b << 8};
    std::copy(std::begin(want.alignment), std::end(want.alignment), made.alignment);
    results[0] = {};
    std::memcpy(&results[0].algo, &made, sizeof made);
    results[0].workspaceSize = made.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulAlgoGetIds(cublasLtHandle_t handle, cublasComputeType_t,
                                                       cudaDataType_t, cudaDataType_t, cudaDataType_t,
                                                       cudaDataType_t, cudaDataType_t, int wanted, int ids[],
                                                       int* count) {
  return guarded("cublasLtMatmulAlgoGetIds", handle, [&] {
    if (wanted < 1 || !ids || !count) invalid("no algorithm wanted, or a null pointer");
    ids[0] = kAlgorithm, *count = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t compute,
                                                     cudaDataType_t, cudaDataType_t a, cudaDataType_t b,
                                                     cudaDataType_t c, cudaDataType_t d, int id,
                                                     cublasLtMatmulAlgo_t* out) {
  return guarded("cublasLtMatmulAlgoInit", handle, [&] {
    if (!out || id != kAlgorithm) invalid(fmt::format("algorithm {}; there is {}", id, kAlgorithm));
    Problem p;
    p.a.type = a, p.b.type = b, p.c.type = c, p.d.type = d;
    const Algorithm made{Algorithm::kMagic, kAlgorithm, types_of(p), 0, {1, 1, 1, 1}, compute, -1};
    *out = {};
    std::memcpy(out, &made, sizeof made);
    return CUBLAS_STATUS_SUCCESS;
  });
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t o,
                                                      cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                      cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                      const cublasLtMatmulAlgo_t* algo,
                                                      cublasLtMatmulHeuristicResult_t* result) {
  return guarded("cublasLtMatmulAlgoCheck", handle, [&] {
    if (!algo || !result) invalid("a null pointer");
    const Algorithm known = algorithm_of(algo);
    check_algorithm(known, operation(o), describe(o, a, b, c, d));
    result->workspaceSize = known.workspace;
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}
SOFTGPU_EXPORT cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                                   cublasLtMatmulAlgoConfigAttributes_t a,
                                                                   void* to, size_t size, size_t* written) {
  if (!algo || a != CUBLASLT_ALGO_CONFIG_ID)
    return complain(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoConfigGetAttribute",
                    fmt::format("attribute {}; there is CUBLASLT_ALGO_CONFIG_ID", static_cast<int>(a)));
  const int32_t id = kAlgorithm;
  if ((size == 0 && !written) || (size && (!to || size != sizeof id)))
    return complain(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulAlgoConfigGetAttribute",
                    "the size of the value");
  if (size) std::memcpy(to, &id, sizeof id);
  if (written) *written = sizeof id;
  return CUBLAS_STATUS_SUCCESS;
}

SOFTGPU_EXPORT cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t o, const void* alpha, const void* a,
    cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
    const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
    const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  return guarded("cublasLtMatmul", handle, [&] {
    auto p = std::make_unique<Problem>(describe(o, a_layout, b_layout, c_layout, d_layout));
    scaling(operation(o), alpha, beta, p.get());
    if (is_float8(p->a.type)) std::copy_n(operation(o).scale, 3, p->scale);
    const auto place = [](const void* from, Matrix* to) {
      to->data = static_cast<char*>(const_cast<void*>(from));
    };
    place(a, &p->a), place(b, &p->b), place(c, &p->c), place(d, &p->d);
    const bool c_used = p->beta_device || p->beta != 0;
    if (!a || !b || !d || (c_used && !c)) invalid("a matrix is null");
    if (c == d && (p->c.type != p->d.type || p->c.row != p->d.row || p->c.col != p->d.col ||
                   p->c.stride != p->d.stride))
      invalid("C and D are the same memory, in different layouts");
    Algorithm chosen{Algorithm::kMagic, kAlgorithm, 0, 0, {1, 1, 1, 1}, 0, -1};
    if (algo) {
      chosen = algorithm_of(algo);
      check_algorithm(chosen, operation(o), *p);
    }
    static constexpr const char* names[] = {"A", "B", "C", "D"};
    const Matrix* matrices[] = {&p->a, &p->b, &p->c, &p->d};
    for (int i = 0; i < 4; ++i) {
      if (i == 2 && !c_used) continue;
      uint64_t needs = std::max<uint64_t>(element_bytes(matrices[i]->type), chosen.alignment[i]);
      if (is_float8(matrices[i]->type)) needs = std::max<uint64_t>(needs, 16);
      if (reinterpret_cast<uint64_t>(matrices[i]->data) % needs)
        invalid(fmt::format(
            "{} at {} is misaligned: the algorithm was asked for with an alignment of {} bytes "
            "(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{}_BYTES; {} for an element)",
            names[i], fmt::ptr(matrices[i]->data), needs, names[i], element_bytes(matrices[i]->type)));
    }
    if (workspace_bytes < chosen.workspace)
      invalid(
          fmt::format("a workspace of {} bytes, the algorithm needs {}", workspace_bytes, chosen.workspace));
    if (workspace_bytes && (!workspace || reinterpret_cast<uint64_t>(workspace) % 256))
      invalid(fmt::format("the workspace at {} must be aligned to 256 bytes", fmt::ptr(workspace)));
    p->workspace = static_cast<char*>(workspace), p->workspace_bytes = workspace_bytes;
    const auto bytes = [&](const Matrix& m) { return p->batch * m.rows * m.cols * element_bytes(m.type); };
    const std::string name = p->name;
    SoftgpuCall call{name.c_str(),
                     p->batch * p->m * p->n * p->k,
                     bytes(p->a) + bytes(p->b) + (c_used ? bytes(p->c) : 0),
                     bytes(p->d),
                     run,
                     [](void* state) { delete static_cast<Problem*>(state); },
                     p.release()};
    const int e = softgpu_submit(stream, &call);
    if (e != cudaSuccess)
      return complain(CUBLAS_STATUS_EXECUTION_FAILED, "cublasLtMatmul",
                      fmt::format("the stream answers {}", cudaGetErrorName(static_cast<cudaError_t>(e))));
    return CUBLAS_STATUS_SUCCESS;
  });
}

// --- what has no effect here

SOFTGPU_EXPORT cublasStatus_t cublasLtHeuristicsCacheGetCapacity(size_t* capacity) {
  if (!capacity) return CUBLAS_STATUS_INVALID_VALUE;
  *capacity = 0;
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtHeuristicsCacheSetCapacity(size_t) { return CUBLAS_STATUS_SUCCESS; }
SOFTGPU_EXPORT unsigned cublasLtDisableCpuInstructionsSetMask(unsigned) { return 0; }
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerSetCallback(cublasLtLoggerCallback_t) {
  return CUBLAS_STATUS_SUCCESS;
}
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerSetFile(FILE*) { return CUBLAS_STATUS_SUCCESS; }
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerOpenFile(const char*) { return CUBLAS_STATUS_SUCCESS; }
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerSetLevel(int) { return CUBLAS_STATUS_SUCCESS; }
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerSetMask(int) { return CUBLAS_STATUS_SUCCESS; }
SOFTGPU_EXPORT cublasStatus_t cublasLtLoggerForceDisable(void) { return CUBLAS_STATUS_SUCCESS; }
