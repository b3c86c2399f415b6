#include "train/plan/counting_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "core/ops.h"
#include "core/rng.h"

namespace gantrain {
namespace {

// Does nothing, at once; asks another backend how much scratch it wants.
class CountingOps final : public Ops {
 public:
  explicit CountingOps(Ops& real) : real_(real) {}

  void embed_forward(const EmbedForward&) override {}
  void embed_backward(const EmbedBackward&) override {}
  void row_rstd(const RowRstd&) override {}
  void rmsnorm_forward(const RmsNormForward&) override {}
  void rmsnorm_backward(const RmsNormBackward&) override {}
  void rotary_table(const RotaryTable&) override {}
  void qkv_forward(const QkvForward&) override {}
  void qkv_backward(const QkvBackward&) override {}
  void attention_forward(const AttentionForward&) override {}
  void attention_backward(const AttentionBackward&) override {}
  void kv_append(const KvAppend&) override {}
  void prefix_forward(const PrefixForward&) override {}
  void prefix_backward(const PrefixBackward&) override {}
  void project_forward(const ProjectForward&) override {}
  void project_backward(const ProjectBackward&) override {}
  void gate_up_forward(const GateUpForward&) override {}
  void down_backward(const DownBackward&) override {}
  void gate_up_backward(const GateUpBackward&) override {}
  void swiglu(const Swiglu&) override {}
  void head_logits(const HeadLogits&) override {}
  void head_loss(const HeadLoss&) override {}
  void sample(const Sample&) override {}
  void dequantize(const Dequantize&) override {}

  int64_t scratch(const QkvForward& a) const override { return real_.scratch(a); }
  int64_t scratch(const QkvBackward& a) const override { return real_.scratch(a); }
  int64_t scratch(const AttentionForward& a) const override { return real_.scratch(a); }
  int64_t scratch(const AttentionBackward& a) const override { return real_.scratch(a); }
  int64_t scratch(const ProjectForward& a) const override { return real_.scratch(a); }
  int64_t scratch(const ProjectBackward& a) const override { return real_.scratch(a); }
  int64_t scratch(const GateUpForward& a) const override { return real_.scratch(a); }
  int64_t scratch(const DownBackward& a) const override { return real_.scratch(a); }
  int64_t scratch(const GateUpBackward& a) const override { return real_.scratch(a); }
  int64_t scratch(const HeadLogits& a) const override { return real_.scratch(a); }
  int64_t scratch(const HeadLoss& a) const override { return real_.scratch(a); }
  int64_t scratch(const Sample& a) const override { return real_.scratch(a); }

  void linear_forward(const LinearForward&) override {}
  void linear_backward(const LinearBackward&) override {}
  void activation_forward(const ActivationForward&) override {}
  void activation_backward(const ActivationBackward&) override {}
  void broadcast_add_forward(const BroadcastAddForward&) override {}
  void broadcast_add_backward(const BroadcastAddBackward&) override {}
  void scaled_add_forward(const ScaledAddForward&) override {}
  void scaled_add_backward(const ScaledAddBackward&) override {}
  void gather_rows(const GatherRows&) override {}
  void scatter_add_rows(const ScatterAddRows&) override {}
  void axpy(const Axpy&) override {}
  void add_noise(const AddNoise&) override {}
  void segment_mean_forward(const SegmentMeanForward&) override {}
  void segment_mean_backward(const SegmentMeanBackward&) override {}
  void pair_loss(const PairLoss&) override {}
  void generator_pair_loss(const GeneratorPairLoss&) override {}
  void rms_penalty(const RmsPenalty&) override {}
  void gradient_norm(const GradientNorm&) override {}
  void adamw(const AdamW&) override {}
  void ema(const Ema&) override {}
  bool all_finite(ConstTensor) override { return true; }

 private:
  Ops& real_;
};

}  // namespace

CountingDevice::CountingDevice(Device& real, std::vector<int32_t> tokens)
    : real_(real), ops_(std::make_unique<CountingOps>(real.ops())), tokens_(std::move(tokens)) {
  GT_CHECK(!tokens_.empty(), "a counting device needs a token to answer with");
}

CountingDevice::~CountingDevice() {
  for (const auto& [memory, block] : blocks_) ::munmap(memory, static_cast<size_t>(block.mapped));
}

void* CountingDevice::allocate(int64_t bytes) {
  GT_CHECK(bytes >= 0, "cannot allocate {} bytes", bytes);
  // What is never written costs nothing: reads find the system's page of zeros.
  const int64_t mapped = std::max<int64_t>(4096, (bytes + 4095) / 4096 * 4096);
  void* p = ::mmap(nullptr, static_cast<size_t>(mapped), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error(fmt::format("no addresses for a plan of {} bytes; use a smaller batch", bytes),
                ErrorKind::kOutOfMemory);
  std::string label;
  for (const char* name : ranges_) label.append(label.empty() ? "" : "/").append(name);
  held_ += bytes;
  by_label_[label] += bytes;
  blocks_[p] = {bytes, mapped, std::move(label)};
  if (held_ > peak_) {
    peak_ = held_;
    at_peak_ = by_label_;
  }
  return p;
}

void CountingDevice::release(void* memory, int64_t) noexcept {
  const auto block = blocks_.find(memory);
  if (block == blocks_.end()) return;
  held_ -= block->second.bytes;
  by_label_[block->second.label] -= block->second.bytes;
  ::munmap(memory, static_cast<size_t>(block->second.mapped));
  blocks_.erase(block);
}

void CountingDevice::copy_in(Tensor to, const void* from_host) {
  constexpr int64_t kSmall = int64_t{1} << 20;
  if (to.bytes() > 0 && to.bytes() <= kSmall)
    std::memcpy(to.raw(), from_host, static_cast<size_t>(to.bytes()));
}

void CountingDevice::copy_out(void* to_host, ConstTensor from) {
  if (from.bytes() == 0) return;
  std::memset(to_host, 0, static_cast<size_t>(from.bytes()));
  if (from.dtype() != DType::kI32) return;
  // Tokens, another sequence for every row: equal answers would be read once for all.
  ++reads_;
  auto* out = static_cast<int32_t*>(to_host);
  for (int64_t i = 0; i < from.count(); ++i)
    out[i] = tokens_[derive_key(1, reads_, static_cast<uint64_t>(i)) % tokens_.size()];
}

std::unique_ptr<const FrozenMatrix> CountingDevice::freeze(const MatrixSource&, DType) {
  GT_CHECK(false, "a plan is made for a model that is loaded: nothing is frozen on a counting device");
}

}  // namespace gantrain
