#include "cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <thread>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/matmul.h"
#include "cpu/rows.h"

namespace gantrain {
namespace {

constexpr int64_t kAlignment = 64;
// Blocks from this size on are the system's own mappings: what is released is given back at once, so that
// what the process holds is what is in use. Smaller ones are malloc's, which keeps their pages for the next.
constexpr int64_t kMapped = int64_t{1} << 20, kLargePages = int64_t{16} << 20;

void* allocate_aligned(int64_t bytes) {
  GT_CHECK(bytes >= 0, "cannot allocate {} bytes", bytes);
  void* p = nullptr;
  if (bytes >= kMapped) {
    p = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
               0);
    if (p == MAP_FAILED) p = nullptr;
    // Large pages: fewer faults in a first step, and fewer misses of the processor's page tables in all.
    if (p && bytes >= kLargePages) (void)::madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  } else {
    const auto size =
        static_cast<size_t>(std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    p = std::aligned_alloc(kAlignment, size);
  }
  if (!p) {
    throw Error(fmt::format("out of memory: {} bytes on the CPU; use a smaller batch or model", bytes),
                ErrorKind::kOutOfMemory);
  }
  return p;
}

void release_aligned(void* p, int64_t bytes) noexcept {
  if (bytes >= kMapped)
    (void)::munmap(p, static_cast<size_t>(bytes));
  else
    std::free(p);
}

std::shared_ptr<void> allocate_shared(int64_t bytes) {
  return std::shared_ptr<void>(allocate_aligned(bytes), [bytes](void* p) { release_aligned(p, bytes); });
}

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  }
  return "CPU";
}

uint64_t mix(uint64_t h, uint64_t word) {
  h ^= word * 0x9E3779B97F4A7C15ull;
  h = (h << 31 | h >> 33) * 0xBF58476D1CE4E5B9ull;
  return h ^ (h >> 29);
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : pool_(threads), ops_(pool_) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string description() const override {
    return fmt::format("cpu: {}, {} thread{}, {}{}", cpu_name(), pool_.threads(),
                       pool_.threads() == 1 ? "" : "s",
                       __builtin_cpu_supports("avx512f") ? "avx512"
                       : __builtin_cpu_supports("avx2")  ? "avx2"
                                                         : "no avx2",
                       cpu_has_bf16() ? " with bf16" : "");
  }
  Ops& ops() override { return ops_; }

  void* allocate(int64_t bytes) override { return allocate_aligned(bytes); }
  void release(void* memory, int64_t bytes) noexcept override { release_aligned(memory, bytes); }
  void copy_in(Tensor to, const void* from_host) override { copy_bytes(to.raw(), from_host, to.bytes()); }
  void copy_out(void* to_host, ConstTensor from) override { copy_bytes(to_host, from.raw(), from.bytes()); }
  void copy(Tensor to, ConstTensor from) override {
    GT_CHECK(to.bytes() == from.bytes(), "copy of {} bytes into {}", from.bytes(), to.bytes());
    copy_bytes(to.raw(), from.raw(), to.bytes());
  }
  void fill_zero(Tensor t) override {
    if (t.bytes() > 0) std::memset(t.raw(), 0, static_cast<size_t>(t.bytes()));
  }
  void synchronize() override {}
  DType kept_dtype(DType weights) const override { return kept_type(weights); }
  bool has_fast_bf16() const override { return cpu_has_bf16(); }

  std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource& s, DType dtype) override {
    GT_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "a frozen matrix is f32 or bf16, not {}",
             dtype_name(dtype));
    GT_CHECK(s.rows > 0 && s.cols > 0, "a frozen matrix needs rows and columns, got ({}, {})", s.rows,
             s.cols);
    const int64_t size = dtype_size(dtype);
    if (s.keep_packed) {
      GT_CHECK(!s.packed.empty(), "a matrix that stays packed needs `packed`");
      auto weights = std::make_unique<const PackedWeights>(pool_, s, dtype, expansion_);
      if (const int64_t wanted = weights->wanted(); wanted > expansion_->bytes) {
        expansion_->memory.reset();
        expansion_->memory = allocate_shared(wanted);
        std::memset(expansion_->memory.get(), 0,
                    static_cast<size_t>(wanted));  // held from now on, not at first use
        expansion_->bytes = wanted;
      }
      return std::make_unique<const CpuMatrix>(s.rows, s.cols, dtype, std::move(weights));
    }
    if (!s.direct.empty()) {
      GT_CHECK(s.direct.shape() == (Shape{s.rows, s.cols}), "direct source is {}, expected ({}, {})",
               to_string(s.direct.shape()), s.rows, s.cols);
      const bool aligned = reinterpret_cast<uintptr_t>(s.direct.raw()) % static_cast<uintptr_t>(size) == 0;
      if (s.owner && s.direct.dtype() == dtype && aligned)
        return std::make_unique<const CpuMatrix>(s.rows, s.cols, dtype, s.owner, s.direct.raw(), 0);
    }
    GT_CHECK(s.read || !s.direct.empty(), "a matrix source needs `read` or `direct`");
    const int64_t bytes = s.rows * s.cols * size;
    const std::shared_ptr<void> memory = allocate_shared(bytes);
    const int64_t grain = std::clamp<int64_t>((1 << 16) / s.cols, 1, s.rows);
    pool_.parallel_ranges(s.rows, grain, [&](int64_t begin, int64_t end) {
      std::byte* to = static_cast<std::byte*>(memory.get()) + begin * s.cols * size;
      const int64_t count = (end - begin) * s.cols;
      if (!s.read && s.direct.dtype() == dtype) {
        copy_bytes(to, static_cast<const std::byte*>(s.direct.raw()) + begin * s.cols * size, count * size);
        return;
      }
      float* f32 = dtype == DType::kF32 ? reinterpret_cast<float*>(to) : thread_scratch(0, count);
      if (s.read)
        s.read(begin, end - begin, f32);
      else
        read_direct(s, begin, count, f32);
      if (dtype == DType::kBF16) convert_to_bf16(f32, reinterpret_cast<bf16*>(to), count);
    });
    return std::make_unique<const CpuMatrix>(s.rows, s.cols, dtype, memory, memory.get(), bytes);
  }

  std::unique_ptr<const FrozenMatrix> matrix_over(ConstTensor values) override {
    GT_CHECK(values.rank() == 2 && values.dtype() == DType::kF32, "a matrix over {} {}, expected f32 (R, C)",
             dtype_name(values.dtype()), to_string(values.shape()));
    return std::make_unique<const CpuMatrix>(values.dim(0), values.dim(1), DType::kF32, nullptr, values.raw(),
                                             0);
  }

  uint64_t hash(const FrozenMatrix& matrix) override {
    const CpuMatrix& m = as_cpu(matrix);
    uint64_t all = mix(static_cast<uint64_t>(m.rows()), static_cast<uint64_t>(m.cols()));
    const auto add = [&](const void* data, int64_t bytes) {
      for (const uint64_t part : hashes(data, bytes)) all = mix(all, part);
    };
    if (m.weights())
      m.weights()->each_piece(add);
    else
      add(m.data(), m.rows() * m.cols() * dtype_size(m.dtype()));
    return all;
  }
  int64_t expansion_bytes() const override { return expansion_->bytes; }

 private:
  // Of the bytes in pieces of 1 MiB.
  std::vector<uint64_t> hashes(const void* data, int64_t bytes) {
    const int64_t grain = int64_t{1} << 20;
    std::vector<uint64_t> parts(static_cast<size_t>((bytes + grain - 1) / grain));
    pool_.parallel_ranges(bytes, grain, [&](int64_t begin, int64_t end) {
      uint64_t h[4] = {1, 2, 3, 4};
      for (int64_t i = begin; i < end; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, static_cast<const std::byte*>(data) + i,
                    static_cast<size_t>(std::min<int64_t>(8, end - i)));
        h[i / 8 % 4] = mix(h[i / 8 % 4], word);
      }
      parts[static_cast<size_t>(begin / grain)] = mix(mix(h[0], h[1]), mix(h[2], h[3]));
    });
    return parts;
  }
  static void copy_bytes(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
  }
  static void read_direct(const MatrixSource& s, int64_t begin, int64_t count, float* out) {
    const int64_t size = dtype_size(s.direct.dtype());
    const auto* from = static_cast<const std::byte*>(s.direct.raw()) + begin * s.cols * size;
    for (int64_t i = 0; i < count; ++i) {
      if (size == 4) {
        std::memcpy(out + i, from + i * 4, 4);
      } else {
        bf16 b;
        std::memcpy(&b, from + i * 2, 2);
        out[i] = static_cast<float>(b);
      }
    }
  }

  ThreadPool pool_;
  CpuOps ops_;
  const std::shared_ptr<Expansion> expansion_ = std::make_shared<Expansion>();
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::make_unique<CpuDevice>(threads);
}

}  // namespace gantrain
