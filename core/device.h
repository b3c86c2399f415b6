// A device: where buffers live and which Ops run. Frozen matrices are made once, by the device, in whatever
// layout it likes; after that nothing in the type system lets anyone write to them.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/packed.h"
#include "core/tensor.h"

namespace gantrain {

class Ops;

// A frozen weight matrix (rows = out features, cols = in features), row-major in meaning; the layout in
// memory is the backend's own business. Only a Device makes one; it has no mutable access on purpose.
class FrozenMatrix {
 public:
  virtual ~FrozenMatrix() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  virtual int64_t bytes() const = 0;  // memory owned by this object; 0 if it borrows it
  // Whether its values lie packed (core/packed.h) and are expanded, rounded once to dtype(), by what reads
  // them.
  virtual bool packed() const { return false; }
  virtual DeviceKind device() const = 0;

 protected:
  FrozenMatrix(int64_t rows, int64_t cols, DType dtype) : rows_(rows), cols_(cols), dtype_(dtype) {}
  FrozenMatrix(const FrozenMatrix&) = delete;
  FrozenMatrix& operator=(const FrozenMatrix&) = delete;

 private:
  int64_t rows_, cols_;
  DType dtype_;
};

// Where a frozen matrix comes from: `read(begin, n, out)` writes rows [begin, begin + n) as f32, thread-safe.
struct MatrixSource {
  int64_t rows = 0, cols = 0;
  std::function<void(int64_t begin, int64_t n, float* out)> read;
  ConstTensor direct{};  // the same values already in memory (f32 or bf16, row-major), if that is so
  std::shared_ptr<const void> owner{};  // keeps `direct` alive
  // All rows as they lie packed, in order, if that is so: a device may expand them itself (the same bits) and
  // then asks for each row once, and never calls `read`.
  std::vector<PackedRows> packed{};
  bool keep_packed = false;  // with `packed`: the matrix stays packed; it owns a copy of the blocks
  // A table of embeddings or a head: its many rows are the inputs of no product but the head's backward,
  // which takes kTallRows at a time.
  bool tall = false;
};
inline constexpr int64_t kTallRows = 8192;

// A copy of device memory on its way to the host.
struct HostCopy {
  std::vector<std::byte> bytes;
  bool ready = false;
};

// What a device has counted since it was made; zeros where a device does not count.
struct DeviceCounters {
  int64_t synchronisations = 0;  // times the host waited for the device
  // Memory that allocate() hands out: bytes taken from the system, in how many pieces, the most that were in
  // use.
  int64_t reserved_bytes = 0, reservations = 0, peak_bytes = 0;
  // Regions (see Device::region): graphs made, made anew from another capture, launched as they were; graphs
  // kept.
  int64_t graphs_instantiated = 0, graphs_updated = 0, graphs_replayed = 0, graphs_kept = 0;
};

// Who multiplies matrices on a GPU: our own kernels, a library's (cuBLASLt), or whichever is faster by
// timing; kDefault: as the environment says (GANTRAIN_GEMM), else our own.
enum class Gemm : uint8_t { kDefault, kOwn, kCublasLt, kAuto };

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  virtual std::string description() const = 0;  // one line for logs: name, threads, instruction set
  virtual Ops& ops() = 0;

  // Uninitialised memory, 64-byte aligned at least. Throws Error of kind kOutOfMemory.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory, int64_t bytes) noexcept = 0;
  // The host's memory may change as soon as this returns; the device may still be at earlier work.
  virtual void copy_in(Tensor to, const void* from_host) = 0;
  virtual void copy_out(void* to_host, ConstTensor from) = 0;  // waits for it
  // Does not wait: the values are there once the next synchronize() has returned. See Reading.
  virtual std::shared_ptr<const HostCopy> copy_out_later(ConstTensor from) {
    auto copy = std::make_shared<HostCopy>();
    copy->bytes.resize(static_cast<size_t>(from.bytes()));
    if (from.bytes() > 0) copy_out(copy->bytes.data(), from);
    copy->ready = true;
    return copy;
  }
  virtual void copy(Tensor to, ConstTensor from) = 0;  // same device, same bytes
  virtual void fill_zero(Tensor t) = 0;
  virtual void synchronize() = 0;
  // Whether work is queued, so that waiting for it has a price of its own.
  virtual bool queues_work() const { return false; }
  virtual DeviceCounters counters() const { return {}; }

  // Takes this much memory at once for later calls of allocate(), which take more only when it is used up.
  virtual void reserve(int64_t) {}
  // Runs `work`, which puts work on the device and never waits for it. A device that can replays it as one
  // graph: kept by `name` and `size` (a bucket of shapes) and brought up to date by running `work` again. A
  // `stamp` that is not 0 says that equal stamps mean equal work, same memory included: then `work` is not
  // even called again, so it must leave nothing behind on the host and copy nothing in. Regions inside a
  // region are part of it.
  virtual void region(const char* name, int64_t size, uint64_t stamp, const std::function<void()>& work) {
    static_cast<void>(name), static_cast<void>(size), static_cast<void>(stamp);
    work();
  }
  virtual void set_graphs(bool) {}  // off: regions just run

  // Stores the matrix as `dtype` (f32 or bf16), rounding once to nearest even.
  virtual std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource& source, DType dtype) = 0;
  // Memory that the device keeps for products with packed matrices, beside theirs: the part of one that is
  // expanded at a time. Grows while matrices are frozen, not afterwards.
  virtual int64_t expansion_bytes() const { return 0; }
  // A matrix that reads these values (R, C) f32, which belong to someone else and may change between ops:
  // weights that are trained. They must outlive it.
  virtual std::unique_ptr<const FrozenMatrix> matrix_over(ConstTensor values) = 0;
  // A hash of the matrix as it is in memory now: proves that a frozen base was not written to.
  virtual uint64_t hash(const FrozenMatrix& matrix) = 0;
  // The type in which q, k, v, o, g and u of a layer are kept beside weights of this type (see
  // core/ops/qkv.h).
  virtual DType kept_dtype(DType weights) const = 0;
  // Whether products with weights of this type do RMSNorm in their own kernels: forward reads the residual
  // stream times the gain, rounded to bf16, and scales rows of the result; backward takes the norm's gradient
  // at the end of the product. Then it pays that the ops of core/ops/{norm,qkv,mlp,projection}.h hand each
  // other the rounded streams and `dot`.
  virtual bool fuses_norms(DType) const { return false; }
  // Whether bf16 products are done by the hardware (a hint for `--dtype auto`).
  virtual bool has_fast_bf16() const = 0;

  // For profilers, and nothing where a device has none: a named span of work (docs/profiling.md lists the
  // names), and whether what runs is to be recorded.
  virtual void range_begin(const char*) {}
  virtual void range_end() {}
  virtual void record(bool) {}
};

// Values on their way to the host. get() waits for the device where they are not there yet.
template <typename T>
class Reading {
 public:
  Reading() = default;
  Reading(Device& device, ConstTensor from) : device_(&device), copy_(device.copy_out_later(from)) {
    GT_CHECK(dtype_size(from.dtype()) == static_cast<int64_t>(sizeof(T)), "a reading of {} as {} bytes",
             dtype_name(from.dtype()), sizeof(T));
  }
  bool ready() const { return !copy_ || copy_->ready; }
  std::vector<T> get() const {
    if (!ready()) device_->synchronize();
    std::vector<T> values(copy_ ? copy_->bytes.size() / sizeof(T) : 0);
    if (!values.empty()) std::memcpy(values.data(), copy_->bytes.data(), copy_->bytes.size());
    return values;
  }

 private:
  Device* device_ = nullptr;
  std::shared_ptr<const HostCopy> copy_;
};

// A span of work under this name, for as long as the object lives.
class Range {
 public:
  Range(Device& device, const char* name) : device_(device) { device_.range_begin(name); }
  ~Range() { device_.range_end(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  Device& device_;
};

}  // namespace gantrain
