// A device that computes nothing and counts what is allocated: the very code that trains runs on it, and the
// most it holds at once is what training will hold. Its memory is addresses without pages; every value read
// back is zero, but for tokens, which are drawn from those it was given.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/device.h"

namespace gantrain {

class CountingDevice final : public Device {
 public:
  // Sizes of scratch are asked of `real`; `tokens` are what a sampled answer consists of, never empty.
  CountingDevice(Device& real, std::vector<int32_t> tokens);
  ~CountingDevice() override;

  int64_t held() const { return held_; }
  int64_t peak() const { return peak_; }
  // What the peak consisted of: the names of the ranges that were open at each allocation, outermost first
  // and separated by slashes, and the bytes.
  const std::map<std::string, int64_t>& at_peak() const { return at_peak_; }

  DeviceKind kind() const override { return real_.kind(); }
  std::string description() const override { return real_.description(); }
  Ops& ops() override { return *ops_; }
  void* allocate(int64_t bytes) override;
  void release(void* memory, int64_t bytes) noexcept override;
  void copy_in(Tensor to, const void* from_host) override;
  void copy_out(void* to_host, ConstTensor from) override;
  void copy(Tensor, ConstTensor) override {}
  void fill_zero(Tensor) override {}
  void synchronize() override {}
  bool queues_work() const override { return real_.queues_work(); }
  std::unique_ptr<const FrozenMatrix> freeze(const MatrixSource& source, DType dtype) override;
  std::unique_ptr<const FrozenMatrix> matrix_over(ConstTensor values) override {
    return real_.matrix_over(values);
  }
  uint64_t hash(const FrozenMatrix&) override { return 0; }
  DType kept_dtype(DType weights) const override { return real_.kept_dtype(weights); }
  bool fuses_norms(DType weights) const override { return real_.fuses_norms(weights); }
  bool has_fast_bf16() const override { return real_.has_fast_bf16(); }
  void range_begin(const char* name) override { ranges_.push_back(name); }
  void range_end() override { ranges_.pop_back(); }

 private:
  struct Block {
    int64_t bytes, mapped;
    std::string label;
  };
  Device& real_;
  std::unique_ptr<Ops> ops_;
  std::vector<int32_t> tokens_;
  std::vector<const char*> ranges_;
  std::map<void*, Block> blocks_;
  std::map<std::string, int64_t> by_label_, at_peak_;
  int64_t held_ = 0, peak_ = 0;
  uint64_t reads_ = 0;
};

}  // namespace gantrain
