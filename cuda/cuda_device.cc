#include "cuda/cuda_device.h"

#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/ops/cuda_ops.h"
#include "cuda/runtime/blaslt.h"
#include "cuda/runtime/gemm_choices.h"
#include "cuda/runtime/handle.h"
#include "cuda/runtime/matrix.h"

namespace gantrain {
namespace {

using cuda::check_call;

constexpr size_t kWorkspace = size_t{32} << 20;     // of cuBLASLt, as NVIDIA advises for Hopper
constexpr int64_t kFreezeBytes = int64_t{8} << 20;  // of f32 rows read at a time

uint64_t mix(uint64_t h, uint64_t word) {
  h ^= word * 0x9E3779B97F4A7C15ull;
  h = (h << 31 | h >> 33) * 0xBF58476D1CE4E5B9ull;
  return h ^ (h >> 29);
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaOptions& options) : context_(make_context(options.index)), ops_(context_) {
    stream_ = cuda::make_stream();
    context_.stream = stream_.get();
    // What is released stays in the pool: it is taken again a moment later.
    cudaMemPool_t pool = nullptr;
    GT_CUDA(cudaDeviceGetDefaultMemPool(&pool, context_.device));
    uint64_t keep = UINT64_MAX;
    GT_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    GT_CUDA(cudaMalloc(&small_, 512 * sizeof(double)));
    context_.partials = static_cast<double*>(small_);
    context_.total = context_.partials + 256;
    context_.flag = reinterpret_cast<int*>(context_.total + 1);
    open_library(options.gemm == Gemm::kDefault ? environment_gemm() : options.gemm);
  }
  ~CudaDevice() override {
    (void)cudaStreamSynchronize(stream_.get());
    (void)cudaFree(small_);
  }

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string description() const override {
    cudaDeviceProp p{};
    GT_CUDA(cudaGetDeviceProperties(&p, context_.device));
    return fmt::format("cuda: {}, compute capability {}.{}, {} multiprocessors, {} MiB", p.name, p.major,
                       p.minor, p.multiProcessorCount, p.totalGlobalMem >> 20);
  }
  Ops& ops() override { return ops_; }

  // Memory comes from the runtime's stream-ordered pool: what this stream has released it may take again at
  // once.
  void* allocate(int64_t bytes) override {
    GT_CHECK(bytes >= 0, "cannot allocate {} bytes", bytes);
    void* p = nullptr;
    GT_CUDA(cudaMallocAsync(&p, static_cast<size_t>(std::max<int64_t>(bytes, 1)), context_.stream));
    return p;
  }
  void release(void* memory, int64_t) noexcept override { (void)cudaFreeAsync(memory, context_.stream); }
  void copy_in(Tensor to, const void* from_host) override {
    if (to.bytes() == 0) return;
    GT_CUDA(cudaMemcpyAsync(to.raw(), from_host, static_cast<size_t>(to.bytes()), cudaMemcpyHostToDevice,
                            context_.stream));
    // The host's memory may change as soon as this returns.
    GT_CUDA(cudaStreamSynchronize(context_.stream));
  }
  void copy_out(void* to_host, ConstTensor from) override {
    if (from.bytes() == 0) return;
    GT_CUDA(cudaMemcpyAsync(to_host, from.raw(), static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToHost,
                            context_.stream));
    GT_CUDA(cudaStreamSynchronize(context_.stream));
  }
  void copy(Tensor to, ConstTensor from) override {
    GT_CHECK(to.bytes() == from.bytes(), "copy of {} bytes into {}", from.bytes(), to.bytes());
    if (to.bytes() > 0)
      GT_CUDA(cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(to.bytes()), cudaMemcpyDeviceToDevice,
                              context_.stream));
  }
  void fill_zero(Tensor t) override {
    if (t.bytes() > 0) GT_CUDA(cudaMemsetAsync(t.raw(), 0, static_cast<size_t>(t.bytes()), context_.stream));
  }
  void synchronize() override { GT_CUDA(cudaStreamSynchronize(context_.stream)); }
  DType kept_dtype(DType weights) const override { return weights; }
  bool fuses_norms(DType weights) const override {
    return weights == DType::kBF16 && context_.gemm != Gemm::kCublasLt;
  }
  bool has_fast_bf16() const override { return true; }
  cudaStream_t stream() const { return context_.stream; }
  void range_begin(const char* name) override { nvtxRangePushA(name); }
  void range_end() override { nvtxRangePop(); }
  void record(bool on) override {
    synchronize();
    GT_CUDA(on ? cudaProfilerStart() : cudaProfilerStop());
  }

  std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource& s, DType dtype) override {
    GT_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "a frozen matrix is f32 or bf16, not {}",
             dtype_name(dtype));
    GT_CHECK(s.rows > 0 && s.cols > 0, "a frozen matrix needs rows and columns, got ({}, {})", s.rows,
             s.cols);
    GT_CHECK(s.read || !s.direct.empty(), "a matrix source needs `read` or `direct`");
    if (!s.direct.empty())
      GT_CHECK(s.direct.shape() == (Shape{s.rows, s.cols}), "direct source is {}, expected ({}, {})",
               to_string(s.direct.shape()), s.rows, s.cols);
    auto matrix = std::make_unique<cuda::CudaMatrix>(s.rows, s.cols, dtype);
    const int64_t size = dtype_size(dtype), step = std::max<int64_t>(1, kFreezeBytes / (4 * s.cols));
    std::vector<float> rows(static_cast<size_t>(std::min(step, s.rows) * s.cols));
    std::vector<bf16> rounded(dtype == DType::kBF16 ? rows.size() : 0);
    for (int64_t begin = 0; begin < s.rows; begin += step) {
      const int64_t n = std::min(step, s.rows - begin), count = n * s.cols;
      if (s.read)
        s.read(begin, n, rows.data());
      else
        read_direct(s, begin, count, rows.data());
      const void* from = rows.data();
      if (dtype == DType::kBF16) {
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) rounded[i] = bf16(rows[i]);
        from = rounded.data();
      }
      GT_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(matrix->mutable_data()) + begin * s.cols * size, from,
                              static_cast<size_t>(count * size), cudaMemcpyHostToDevice, context_.stream));
      synchronize();  // the rows' memory is used again
    }
    return matrix;
  }

  uint64_t hash(const FrozenMatrix& matrix) override {
    const cuda::CudaMatrix& m = cuda::as_cuda(matrix);
    const int64_t bytes = m.rows() * m.cols() * dtype_size(m.dtype());
    std::vector<uint64_t> words(static_cast<size_t>((bytes + 7) / 8), 0);
    GT_CUDA(cudaMemcpyAsync(words.data(), m.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                            context_.stream));
    GT_CUDA(cudaStreamSynchronize(context_.stream));
    uint64_t all = mix(static_cast<uint64_t>(m.rows()), static_cast<uint64_t>(m.cols()));
    for (const uint64_t word : words) all = mix(all, word);
    return all;
  }

 private:
  static cuda::Context make_context(int index) {
    const std::string why = cuda_unavailable();
    if (!why.empty()) fail("device cuda: {}; use --device cpu", why);
    int count = 0;
    GT_CUDA(cudaGetDeviceCount(&count));
    if (index < 0 || index >= count) fail_usage("device cuda:{}: there are {} (from 0)", index, count);
    GT_CUDA(cudaSetDevice(index));
    const auto attribute = [&](cudaDeviceAttr a) {
      int value = 0;
      GT_CUDA(cudaDeviceGetAttribute(&value, a, index));
      return value;
    };
    cuda::Context c;
    c.device = index;
    c.processors = attribute(cudaDevAttrMultiProcessorCount);
    c.capability =
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    c.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (c.capability < 80)
      fail("device cuda: compute capability {}.{}, expected 8.0 or newer; use --device cpu",
           c.capability / 10, c.capability % 10);
    return c;
  }
  static Gemm environment_gemm() {
    const char* text = std::getenv("GANTRAIN_GEMM");
    return text ? parse_gemm(text, "GANTRAIN_GEMM") : Gemm::kOwn;
  }
  void open_library(Gemm gemm) {
    context_.gemm = gemm;
    if (gemm == Gemm::kOwn) return;
    std::string why;
    library_ = cuda::BlasLt::open(context_.capability >= 90 ? kWorkspace : kWorkspace / 4, &why);
    if (!library_ && gemm == Gemm::kCublasLt)
      fail("device cuda: {}; install cuBLAS 13, or use --gemm own", why);
    context_.library = library_.get();
    if (!library_ || gemm != Gemm::kAuto) return;
    cudaDeviceProp p{};
    GT_CUDA(cudaGetDeviceProperties(&p, context_.device));
    const std::string identity = fmt::format("gantrain {}, cuBLASLt {}, {}, compute capability {}.{}",
                                             GANTRAIN_VERSION, library_->version(), p.name, p.major, p.minor);
    choices_ = std::make_unique<cuda::GemmChoices>(cuda::gemm_choices_file(identity), identity);
    context_.choices = choices_.get();
  }
  static void read_direct(const MatrixSource& s, int64_t begin, int64_t count, float* out) {
    const auto* from = static_cast<const std::byte*>(s.direct.raw());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = begin * s.cols + i;
      if (s.direct.dtype() == DType::kF32) {
        std::memcpy(out + i, from + at * 4, 4);
      } else {
        bf16 b;
        std::memcpy(&b, from + at * 2, 2);
        out[i] = static_cast<float>(b);
      }
    }
  }

  cuda::Context context_;
  cuda::Stream stream_;
  void* small_ = nullptr;
  std::unique_ptr<cuda::BlasLt> library_;
  std::unique_ptr<cuda::GemmChoices> choices_;
  CudaOps ops_;
};

}  // namespace

std::string cuda_unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return fmt::format("the CUDA runtime finds no GPU here: {}", cudaGetErrorString(error));
  }
  return count > 0 ? "" : "the CUDA runtime finds no GPU here";
}

std::unique_ptr<Device> make_cuda_device(const CudaOptions& options) {
  return std::make_unique<CudaDevice>(options);
}

void* cuda_stream(const Device& device) {
  const auto* own = dynamic_cast<const CudaDevice*>(&device);
  GT_CHECK(own != nullptr, "a stream is asked for of a device that is no CUDA device");
  return own->stream();
}

}  // namespace gantrain
