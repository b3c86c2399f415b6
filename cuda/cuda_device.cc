#include "cuda/cuda_device.h"

#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "cuda/ops/cuda_ops.h"
#include "cuda/ops/dequantize.h"
#include "cuda/runtime/blaslt.h"
#include "cuda/runtime/cudnn.h"
#include "cuda/runtime/gemm_choices.h"
#include "cuda/runtime/graphs.h"
#include "cuda/runtime/handle.h"
#include "cuda/runtime/matrix.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/staging.h"

namespace gantrain {
namespace {

using cuda::check_call;

constexpr size_t kWorkspace = size_t{32} << 20;     // of cuBLASLt, as NVIDIA advises for Hopper
constexpr int64_t kFreezeBytes = int64_t{8} << 20;  // of f32 rows read at a time
// Copies in go through pinned memory in pieces of this size; when this much of it waits for the device, the
// host waits too. A training step copies a few hundred KB.
constexpr int64_t kStagedPiece = int64_t{4} << 20, kStagedMost = int64_t{64} << 20;

uint64_t mix(uint64_t h, uint64_t word) {
  h ^= word * 0x9E3779B97F4A7C15ull;
  h = (h << 31 | h >> 33) * 0xBF58476D1CE4E5B9ull;
  return h ^ (h >> 29);
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaOptions& options)
      : context_(make_context(options.index)),
        memory_(options.pooled && environment("GANTRAIN_POOL")),
        ops_(context_) {
    stream_ = cuda::make_stream();
    context_.stream = stream_.get();
    context_.memory = &memory_;
    context_.staging = &staging_;
    memory_.set_stream(context_.stream);
    graphs_allowed_ = memory_.pooled() && environment("GANTRAIN_GRAPHS");
    // What is released stays in the runtime's pool: it is taken again a moment later.
    cudaMemPool_t pool = nullptr;
    GT_CUDA(cudaDeviceGetDefaultMemPool(&pool, context_.device));
    uint64_t keep = UINT64_MAX;
    GT_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    GT_CUDA(cudaMalloc(&small_, 512 * sizeof(double)));
    context_.partials = static_cast<double*>(small_);
    context_.total = context_.partials + 256;
    context_.flag = reinterpret_cast<int*>(context_.total + 1);
    constexpr size_t kArrivalBytes = cuda::kMostArrivals * sizeof(unsigned);
    GT_CUDA(cudaMalloc(&arrivals_, kArrivalBytes));
    context_.arrivals = static_cast<unsigned*>(arrivals_);
    GT_CUDA(cudaMemsetAsync(arrivals_, 0, kArrivalBytes, context_.stream));
    open_library(options.gemm == Gemm::kDefault ? environment_gemm() : options.gemm);
    open_attention(options.attention ? *options.attention : environment_attention());
  }
  ~CudaDevice() override {
    (void)cudaStreamSynchronize(stream_.get());
    (void)cudaFree(small_);
    (void)cudaFree(arrivals_);
  }

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string description() const override {
    cudaDeviceProp p{};
    GT_CUDA(cudaGetDeviceProperties(&p, context_.device));
    return fmt::format("cuda: {}, compute capability {}.{}, {} multiprocessors, {} MiB", p.name, p.major,
                       p.minor, p.multiProcessorCount, p.totalGlobalMem >> 20);
  }
  Ops& ops() override { return ops_; }

  void* allocate(int64_t bytes) override { return memory_.allocate(bytes); }
  void release(void* memory, int64_t) noexcept override { memory_.release(memory); }
  void reserve(int64_t bytes) override { memory_.reserve(bytes); }
  void copy_in(Tensor to, const void* from_host) override {
    graphs_.refuse_in_stamped("copy in");
    for (int64_t at = 0; at < to.bytes(); at += kStagedPiece) {
      const int64_t bytes = std::min(kStagedPiece, to.bytes() - at);
      if (staging_.in_use() + bytes > kStagedMost && !graphs_.capturing()) synchronize();
      std::byte* staged = staging_.take(bytes);
      std::memcpy(staged, static_cast<const std::byte*>(from_host) + at, static_cast<size_t>(bytes));
      GT_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(to.raw()) + at, staged, static_cast<size_t>(bytes),
                              cudaMemcpyHostToDevice, context_.stream));
    }
  }
  void copy_out(void* to_host, ConstTensor from) override {
    if (from.bytes() == 0) return;
    GT_CHECK(!graphs_.capturing(), "a region must not wait for what it computes");
    GT_CUDA(cudaMemcpyAsync(to_host, from.raw(), static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToHost,
                            context_.stream));
    synchronize();
  }
  std::shared_ptr<const HostCopy> copy_out_later(ConstTensor from) override {
    graphs_.refuse_in_stamped("copy out");
    auto copy = std::make_shared<HostCopy>();
    copy->bytes.resize(static_cast<size_t>(from.bytes()));
    copy->ready = from.bytes() == 0;
    if (copy->ready) return copy;
    std::byte* staged = staging_.take(from.bytes());
    GT_CUDA(cudaMemcpyAsync(staged, from.raw(), copy->bytes.size(), cudaMemcpyDeviceToHost, context_.stream));
    under_way_.push_back({staged, copy});
    return copy;
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
  void synchronize() override {
    GT_CHECK(!graphs_.capturing(), "a region must not wait for what it computes");
    GT_CUDA(cudaStreamSynchronize(context_.stream));
    ++synchronisations_;
    for (const auto& [staged, copy] : under_way_) {
      std::memcpy(copy->bytes.data(), staged, copy->bytes.size());
      copy->ready = true;
    }
    under_way_.clear();
    staging_.reset();
  }
  bool queues_work() const override { return true; }
  DeviceCounters counters() const override {
    return {.synchronisations = synchronisations_,
            .reserved_bytes = memory_.reserved(),
            .reservations = memory_.reservations(),
            .peak_bytes = memory_.peak(),
            .graphs_instantiated = graphs_.instantiated,
            .graphs_updated = graphs_.updated,
            .graphs_replayed = graphs_.replayed,
            .graphs_kept = graphs_.kept()};
  }
  void region(const char* name, int64_t size, uint64_t stamp, const std::function<void()>& work) override {
    const Range range(*this, name);
    if (!graphs_on_ || !graphs_allowed_ || in_region_) {
      work();
      return;
    }
    in_region_ = true;
    try {
      graphs_.run(context_.stream, fmt::format("{} {}", name, size), stamp, work);
    } catch (...) {
      in_region_ = false;
      ops_.forget_plans();  // what a capture that was dropped should have copied is not there
      throw;
    }
    in_region_ = false;
  }
  void set_graphs(bool on) override { graphs_on_ = on; }
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
    GT_CHECK(s.read || !s.direct.empty() || !s.packed.empty(),
             "a matrix source needs `read`, `direct` or `packed`");
    if (!s.direct.empty())
      GT_CHECK(s.direct.shape() == (Shape{s.rows, s.cols}), "direct source is {}, expected ({}, {})",
               to_string(s.direct.shape()), s.rows, s.cols);
    if (s.keep_packed) return keep_packed(s, dtype);
    auto matrix = std::make_unique<cuda::CudaMatrix>(s.rows, s.cols, dtype);
    if (!s.packed.empty()) {
      expand(s, *matrix);
      return matrix;
    }
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

  std::unique_ptr<const FrozenMatrix> matrix_over(ConstTensor values) override {
    GT_CHECK(values.rank() == 2 && values.dtype() == DType::kF32, "a matrix over {} {}, expected f32 (R, C)",
             dtype_name(values.dtype()), to_string(values.shape()));
    return std::make_unique<cuda::CudaMatrix>(values.dim(0), values.dim(1), values.raw());
  }

  uint64_t hash(const FrozenMatrix& matrix) override {
    const cuda::CudaMatrix& m = cuda::as_cuda(matrix);
    const int64_t bytes = m.bytes();
    std::vector<uint64_t> words(static_cast<size_t>((bytes + 7) / 8), 0);
    GT_CUDA(cudaMemcpyAsync(words.data(), m.memory(), static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                            context_.stream));
    GT_CUDA(cudaStreamSynchronize(context_.stream));
    uint64_t all = mix(static_cast<uint64_t>(m.rows()), static_cast<uint64_t>(m.cols()));
    for (const uint64_t word : words) all = mix(all, word);
    for (const cuda::PackedPart& part : m.parts()) all = mix(all, std::bit_cast<uint32_t>(part.mean));
    return all;
  }
  int64_t expansion_bytes() const override { return expansion_->bytes; }

 private:
  static cuda::Context make_context(int index) {
    const std::string why = cuda_unavailable();
    if (!why.empty()) fail("device cuda: {}; use --device cpu", why);
    int count = 0;
    GT_CUDA(cudaGetDeviceCount(&count));
    if (index < 0 || index >= count)
      fail_usage("device cuda:{}: this machine has {}, counted from 0; each rank needs a GPU of its own",
                 index, count);
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
  // A switch of the environment: on, unless it is set to 0 or off.
  static bool environment(const char* name) {
    const char* text = std::getenv(name);
    const std::string value = text ? text : "1";
    if (value == "1" || value == "on") return true;
    if (value == "0" || value == "off") return false;
    fail_usage("{}: '{}', expected 0 or off, 1 or on", name, value);
  }
  static Gemm environment_gemm() {
    const char* text = std::getenv("GANTRAIN_GEMM");
    return text ? parse_gemm(text, "GANTRAIN_GEMM") : Gemm::kOwn;
  }
  static CudaAttention environment_attention() {
    const char* text = std::getenv("GANTRAIN_ATTENTION");
    return text ? parse_cuda_attention(text, "GANTRAIN_ATTENTION") : CudaAttention::kOwn;
  }
  void open_attention(CudaAttention attention) {
    if (attention == CudaAttention::kOwn) return;
    std::string why;
    attention_ = cuda::Cudnn::open(&why);
    if (!attention_) fail("device cuda: {}; install cuDNN 9, or use our own attention (own)", why);
    context_.attention = attention_.get();
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
  // f(part, begin, n, bytes) for some packed rows at a time, in order, made to lie one behind the other.
  template <typename F>
  static void packed_pieces(const MatrixSource& s, F f) {
    int64_t done = 0;
    std::vector<std::byte> rows;
    for (const PackedRows& part : s.packed) {
      const PackedBlock block = packed_block(part.type);
      GT_CHECK(part.begin == done && part.rows > 0 && s.cols % block.values == 0,
               "packed rows of {} from {} on, {} of them, {} wide: expected rows from {} on and whole blocks",
               block.name, part.begin, part.rows, s.cols, done);
      done += part.rows;
      const int64_t row = packed_row_bytes(part.type, s.cols),
                    step = std::clamp<int64_t>(kFreezeBytes / row, 1, part.rows);
      rows.resize(std::max(rows.size(), static_cast<size_t>(step * row)));
      for (int64_t begin = 0; begin < part.rows; begin += step) {
        const int64_t n = std::min(step, part.rows - begin);
        for (int64_t i = 0; i < n; ++i)
          std::memcpy(rows.data() + i * row, part.row(begin + i), static_cast<size_t>(row));
        f(part, begin, n, rows.data());
      }
    }
    GT_CHECK(done == s.rows, "packed rows: {} of {}", done, s.rows);
  }
  // Packed rows go to the device as they are, and stay so.
  std::unique_ptr<const FrozenMatrix> keep_packed(const MatrixSource& s, DType dtype) {
    GT_CHECK(!s.packed.empty(), "a matrix that stays packed needs `packed`");
    std::vector<cuda::PackedPart> parts;
    int64_t bytes = 0;
    const auto take = [&](int64_t size) {  // a place of its own, aligned
      const int64_t at = bytes;
      bytes += (size + 255) / 256 * 256;
      return at;
    };
    struct Place {
      int64_t blocks, codes, steps, values;
    };
    std::vector<Place> places;
    for (const PackedRows& from : s.packed) {
      const int64_t size = from.rows * packed_row_bytes(from.type, s.cols),
                    blocks = from.rows * s.cols / packed_block(from.type).values;
      const bool nf4 = from.type == PackedType::kNf4;
      places.push_back({take(size), nf4 ? take(blocks) : 0,
                        nf4 ? take((blocks + kNf4Group - 1) / kNf4Group * 4) : 0, nf4 ? take(256 * 4) : 0});
      parts.push_back(
          {.type = from.type, .begin = from.begin, .rows = from.rows, .blocks = nullptr, .bytes = size});
    }
    void* memory = nullptr;
    GT_CUDA(cudaMalloc(&memory, static_cast<size_t>(bytes)));
    const auto matrix_of = [&] {
      return std::make_unique<const cuda::CudaMatrix>(s.rows, s.cols, dtype, std::move(parts), memory, bytes,
                                                      expansion_);
    };
    auto* base = static_cast<unsigned char*>(memory);
    const auto upload = [&](void* to, const void* from, int64_t size) {
      GT_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(size), cudaMemcpyHostToDevice, context_.stream));
      synchronize();  // the source is used again
    };
    try {
      GT_CUDA(
          cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), context_.stream));  // what lies between, too
      size_t index = 0;
      packed_pieces(s, [&](const PackedRows& from, int64_t begin, int64_t n, const std::byte* rows) {
        if (begin == 0 && from.begin > 0) ++index;
        const int64_t row = packed_row_bytes(from.type, s.cols);
        upload(base + places[index].blocks + begin * row, rows, n * row);
      });
      for (size_t i = 0; i < parts.size(); ++i) {
        cuda::PackedPart& part = parts[i];
        const Place& at = places[i];
        part.blocks = base + at.blocks;
        if (part.type != PackedType::kNf4) continue;
        GT_CHECK(s.packed[i].scales, "packed rows of NF4 need their scales");
        const Nf4Quantised q = s.packed[i].scales();
        const auto blocks = static_cast<size_t>(part.rows * s.cols / 64);
        GT_CHECK(q.codes.size() == blocks && q.steps.size() == (blocks + kNf4Group - 1) / kNf4Group,
                 "NF4 scales: {} codes and {} steps for {} blocks", q.codes.size(), q.steps.size(), blocks);
        part.codes = base + at.codes;
        part.steps = reinterpret_cast<float*>(base + at.steps);
        part.values = reinterpret_cast<float*>(base + at.values);
        part.mean = q.mean;
        upload(part.codes, q.codes.data(), static_cast<int64_t>(q.codes.size()));
        upload(part.steps, q.steps.data(), static_cast<int64_t>(q.steps.size() * sizeof(float)));
        upload(part.values, nf4_scale_values(), 256 * sizeof(float));
      }
    } catch (...) {
      (void)cudaFree(memory);
      throw;
    }
    auto matrix = matrix_of();
    // A product expands the whole matrix, the head's some of its rows.
    const int64_t wanted = (s.tall ? std::min(s.rows, kTallRows) : s.rows) * s.cols * dtype_size(dtype);
    if (wanted > expansion_->bytes) {
      synchronize();
      graphs_.forget();  // they know the old address
      GT_CUDA(cudaFree(expansion_->data));
      expansion_->data = nullptr;
      expansion_->bytes = 0;
      GT_CUDA(cudaMalloc(&expansion_->data, static_cast<size_t>(wanted)));
      expansion_->bytes = wanted;
    }
    return matrix;
  }
  // Packed rows go to the device as they are, some at a time, and are expanded there.
  void expand(const MatrixSource& s, cuda::CudaMatrix& matrix) {
    const int64_t size = dtype_size(matrix.dtype());
    packed_pieces(s, [&](const PackedRows& part, int64_t begin, int64_t n, const std::byte* rows) {
      const int64_t row = packed_row_bytes(part.type, s.cols);
      const Buffer staging(*this, n * row);
      GT_CUDA(cudaMemcpyAsync(staging.data(), rows, static_cast<size_t>(n * row), cudaMemcpyHostToDevice,
                              context_.stream));
      cuda::dequantize_blocks(
          context_, part.type, staging.data(), matrix.dtype(),
          static_cast<std::byte*>(matrix.mutable_data()) + (part.begin + begin) * s.cols * size,
          n * s.cols / packed_block(part.type).values);
      synchronize();  // the rows' memory is used again
    });
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

  struct UnderWay {
    const std::byte* staged;
    std::shared_ptr<HostCopy> copy;
  };

  cuda::Context context_;
  cuda::Stream stream_;
  cuda::Memory memory_;
  cuda::Staging staging_;
  cuda::Graphs graphs_;
  std::vector<UnderWay> under_way_;
  const std::shared_ptr<cuda::Expansion> expansion_ = std::make_shared<cuda::Expansion>();
  int64_t synchronisations_ = 0;
  bool graphs_allowed_ = false, graphs_on_ = true, in_region_ = false;
  void* small_ = nullptr;
  void* arrivals_ = nullptr;
  std::unique_ptr<cuda::BlasLt> library_;
  std::unique_ptr<cuda::Cudnn> attention_;
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
