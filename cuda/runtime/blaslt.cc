#include "cuda/runtime/blaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <utility>

#include "cuda/runtime/check.h"

namespace gantrain::cuda {
namespace {

constexpr const char* kLibrary = "libcublasLt.so.13";
constexpr size_t kPlans = 4096;  // that are remembered

// The functions that are used, by the names of the header.
struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};
template <typename F>
void find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  if (!*function) fail("{}: there is no {} in it; expected cuBLASLt 13, or use --gemm own", kLibrary, name);
}

// A pointer to something of the library's, which a function of it destroys.
template <typename T>
using Owned = std::unique_ptr<T, cublasStatus_t (*)(T*)>;

class BlasLtLibrary final : public BlasLt {
 public:
  BlasLtLibrary(const Functions& functions, size_t workspace) : f_(functions), workspace_bytes_(workspace) {
    call(f_.create(&handle_), "cublasLtCreate");
    const cudaError_t error = cudaMalloc(&workspace_, workspace);
    if (error != cudaSuccess) {
      (void)f_.destroy(handle_);
      GT_CUDA(error);
    }
  }
  ~BlasLtLibrary() override {
    plans_.clear();
    (void)cudaFree(workspace_);
    (void)f_.destroy(handle_);
  }

  // Row-major C = A B is column-major C^T = B^T A^T: the library's first operand is our b, its second our a,
  // and a matrix that lies (rows, columns) here is one of (columns, rows) with the same leading dimension
  // there.
  bool multiply(cudaStream_t stream, const Product& p) override {
    const Plan& plan = plan_for(p);
    if (!plan.found) return false;
    const float one = 1, beta = p.addend ? 1 : 0;
    if (p.bias) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    call(f_.matmul(handle_, plan.desc.get(), &one, p.b, plan.first.get(), p.a, plan.second.get(), &beta,
                   p.addend ? static_cast<const void*>(p.addend) : p.c, plan.c.get(), p.c, plan.c.get(),
                   &plan.algorithm, workspace_, workspace_bytes_, stream),
         "cublasLtMatmul");
    return true;
  }
  size_t version() const override { return f_.version(); }

 private:
  struct Plan {
    Owned<cublasLtMatmulDescOpaque_t> desc;
    Owned<cublasLtMatrixLayoutOpaque_t> first, second, c;
    bool found = false;
    cublasLtMatmulAlgo_t algorithm = {};
  };
  using Key = std::array<int64_t, 8>;

  void call(cublasStatus_t status, const char* name) const {
    if (status != CUBLAS_STATUS_SUCCESS)
      fail("{}: {}: {}; --gemm own does without it", kLibrary, name, f_.status_string(status));
  }
  template <typename T>
  void set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, const T& value) const {
    call(f_.desc_set(plan.desc.get(), attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  }
  static cudaDataType_t type_of(DType t) { return t == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }
  // Of an address, in bytes, as far as algorithms care.
  static uint32_t alignment(const void* p) {
    uint32_t bytes = 256;
    while (reinterpret_cast<uintptr_t>(p) % bytes != 0) bytes /= 2;
    return bytes;
  }
  Owned<cublasLtMatrixLayoutOpaque_t> layout(DType type, int64_t width, int64_t rows, int64_t stride) const {
    cublasLtMatrixLayout_t l = nullptr;
    call(f_.layout_create(&l, type_of(type), static_cast<uint64_t>(width), static_cast<uint64_t>(rows),
                          stride),
         "cublasLtMatrixLayoutCreate");
    return {l, f_.layout_destroy};
  }

  const Plan& plan_for(const Product& p) {
    const uint32_t align[] = {alignment(p.b), alignment(p.a), alignment(p.addend ? p.addend : p.c),
                              alignment(p.c)};
    int64_t flags = p.transpose_a | p.transpose_b << 1 | (p.dtype == DType::kF32) << 2 |
                    (p.c_dtype == DType::kF32) << 3 | (p.bias != nullptr) << 4 | (p.addend != nullptr) << 5;
    int64_t alignments = 0;
    for (const uint32_t a : align) alignments = alignments << 9 | a;
    const Key key = {p.m, p.n, p.k, p.lda, p.ldb, p.ldc, flags, alignments};
    if (const auto it = plans_.find(key); it != plans_.end()) return it->second;
    if (plans_.size() >= kPlans) plans_.clear();

    cublasLtMatmulDesc_t desc = nullptr;
    call(f_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    Plan plan{.desc = {desc, f_.desc_destroy},
              .first = p.transpose_b ? layout(p.dtype, p.k, p.n, p.ldb) : layout(p.dtype, p.n, p.k, p.ldb),
              .second = p.transpose_a ? layout(p.dtype, p.m, p.k, p.lda) : layout(p.dtype, p.k, p.m, p.lda),
              .c = layout(p.c_dtype, p.n, p.m, p.ldc)};
    set(plan, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) {
      set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
    cublasLtMatmulPreference_t raw = nullptr;
    call(f_.preference_create(&raw), "cublasLtMatmulPreferenceCreate");
    const Owned<cublasLtMatmulPreferenceOpaque_t> preference(raw, f_.preference_destroy);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      call(f_.preference_set(preference.get(), attribute, &value, sizeof(value)),
           "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes_));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align[0]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align[1]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align[2]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align[3]);
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    const cublasStatus_t status =
        f_.heuristic(handle_, plan.desc.get(), plan.first.get(), plan.second.get(), plan.c.get(),
                     plan.c.get(), preference.get(), 1, &result, &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) call(status, "cublasLtMatmulAlgoGetHeuristic");
    plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algorithm = result.algo;
    return plans_.emplace(key, std::move(plan)).first->second;
  }

  Functions f_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<BlasLt> BlasLt::open(size_t workspace, std::string* why) {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);  // for the life of the process
  if (!library) {
    *why = fmt::format("cuBLASLt cannot be opened: {}", dlerror());
    return nullptr;
  }
  Functions f = {};
  find(library, "cublasLtCreate", &f.create);
  find(library, "cublasLtDestroy", &f.destroy);
  find(library, "cublasLtGetStatusString", &f.status_string);
  find(library, "cublasLtGetVersion", &f.version);
  find(library, "cublasLtMatmul", &f.matmul);
  find(library, "cublasLtMatmulAlgoGetHeuristic", &f.heuristic);
  find(library, "cublasLtMatmulDescCreate", &f.desc_create);
  find(library, "cublasLtMatmulDescDestroy", &f.desc_destroy);
  find(library, "cublasLtMatmulDescSetAttribute", &f.desc_set);
  find(library, "cublasLtMatrixLayoutCreate", &f.layout_create);
  find(library, "cublasLtMatrixLayoutDestroy", &f.layout_destroy);
  find(library, "cublasLtMatmulPreferenceCreate", &f.preference_create);
  find(library, "cublasLtMatmulPreferenceDestroy", &f.preference_destroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", &f.preference_set);
  return std::make_unique<BlasLtLibrary>(f, workspace);
}

}  // namespace gantrain::cuda
