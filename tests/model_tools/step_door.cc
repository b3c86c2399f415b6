// A door to what a training step issues: one step of prompt tuning, or of LoRA, on a Llama of the given
// shape, on the CUDA device. A line to standard error before each op of the frozen model: its name, `_bytes`,
// `_flops`, scratch, weight (rows, columns; 0 0 without one) and ranks of its adapters; beside them
// `tools/softgpu --dry --trace -` writes a line for each launch, so that no value is ever computed. Weights
// are zeros. usage: step_door LAYERS C H K D F V TIED SEQUENCES TOKENS PROMPT SCORED [RANK TARGETS] (SCORED
// rows of each sequence; targets of core/ops/lora.h's adapters by name, as q,v)
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "core/ops.h"
#include "model/adapters/lora.h"
#include "model/runner.h"
#include "model/weights.h"
#include "tests/support/devices.h"

namespace gantrain {
namespace {

class ZeroWeights : public Weights {
 public:
  explicit ZeroWeights(const LlamaConfig& config) : config_(config), entries_(expected_tensors(config)) {}
  const LlamaConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::string format() const override { return "memory"; }
  const std::vector<TensorEntry>& tensors() const override { return entries_; }
  bool has(std::string_view name) const override {
    for (const TensorEntry& e : entries_)
      if (e.name == name) return true;
    return false;
  }
  void read_rows(std::string_view name, int64_t, int64_t n, float* out) const override {
    for (const TensorEntry& e : entries_)
      if (e.name == name) std::fill_n(out, n * (e.shape.rank == 2 ? e.shape[1] : e.shape.count()), 0.0f);
  }
  ConstTensor direct(std::string_view) const override { return {}; }

 private:
  LlamaConfig config_;
  std::string path_ = "(zeros)";
  std::vector<TensorEntry> entries_;
};

template <typename Args>
void note(const char* op, const Args& a, int64_t bytes, int64_t flops, int64_t scratch) {
  int64_t rows = 0, columns = 0;
  if constexpr (requires { a.w->cols(); }) rows = a.w->rows(), columns = a.w->cols();
  std::string ranks;
  if constexpr (requires { a.lora; })
    for (const auto& part : a.lora) ranks += fmt::format(" {}", part.a.dim(0));
  std::fprintf(stderr, "op %s bytes %lld flops %lld scratch %lld weight %lld %lld ranks%s\n", op,
               static_cast<long long>(bytes), static_cast<long long>(flops), static_cast<long long>(scratch),
               static_cast<long long>(rows), static_cast<long long>(columns), ranks.c_str());
}

}  // namespace

// The linker puts wrap_OP in the place of OP and calls the op itself real_OP (--wrap, tests/CMakeLists.txt).
#define WRAPPED(NAME_LENGTH, NAME, ARGS_LENGTH, ARGS, FLOPS, SCRATCH)                      \
  void real_##NAME(Device&, const ARGS&) asm("__real__ZN8gantrain" #NAME_LENGTH #NAME      \
                                             "ERNS_6DeviceERKNS_" #ARGS_LENGTH #ARGS "E"); \
  void wrap_##NAME(Device&, const ARGS&) asm("__wrap__ZN8gantrain" #NAME_LENGTH #NAME      \
                                             "ERNS_6DeviceERKNS_" #ARGS_LENGTH #ARGS "E"); \
  void wrap_##NAME(Device& device, const ARGS& a) {                                        \
    note(#NAME, a, NAME##_bytes(a), FLOPS, SCRATCH);                                       \
    real_##NAME(device, a);                                                                \
  }
#define WITH_PRODUCT(L, NAME, M, ARGS) WRAPPED(L, NAME, M, ARGS, NAME##_flops(a), NAME##_scratch(device, a))
WRAPPED(13, embed_forward, 12, EmbedForward, 0, 0)
WRAPPED(14, embed_backward, 13, EmbedBackward, 0, 0)
WRAPPED(8, row_rstd, 7, RowRstd, 0, 0)
WRAPPED(12, rotary_table, 11, RotaryTable, 0, 0)
WRAPPED(11, gather_rows, 10, GatherRows, 0, 0)
WITH_PRODUCT(11, qkv_forward, 10, QkvForward)
WITH_PRODUCT(12, qkv_backward, 11, QkvBackward)
WITH_PRODUCT(17, attention_forward, 16, AttentionForward)
WITH_PRODUCT(18, attention_backward, 17, AttentionBackward)
WITH_PRODUCT(15, project_forward, 14, ProjectForward)
WITH_PRODUCT(16, project_backward, 15, ProjectBackward)
WITH_PRODUCT(15, gate_up_forward, 13, GateUpForward)
WITH_PRODUCT(13, down_backward, 12, DownBackward)
WITH_PRODUCT(16, gate_up_backward, 14, GateUpBackward)
WRAPPED(6, swiglu, 6, Swiglu, 0, 0)
WITH_PRODUCT(9, head_loss, 8, HeadLoss)

namespace {

void run(const std::vector<int32_t>& n, const std::string& targets) {
  LlamaConfig config;
  config.num_layers = n[0];
  config.hidden_size = n[1];
  config.num_heads = n[2];
  config.num_kv_heads = n[3];
  config.head_dim = n[4];
  config.intermediate_size = n[5];
  config.vocab_size = n[6];
  config.tie_word_embeddings = n[7] != 0;
  config.rms_norm_eps = 1e-5f;
  const int32_t sequences = n[8], tokens = n[9], prompt_rows = n[10], scored = n[11];
  config.max_position_embeddings = tokens + prompt_rows;

  std::unique_ptr<Device> device;
  for (const test::DeviceCase& c : test::device_cases())
    if (c.name == "cuda") device = c.make(1);
  if (!device) fail("no CUDA device here: run this by tools/softgpu --dry");
  const auto llama = Llama::load(*device, std::make_shared<ZeroWeights>(config), DType::kBF16);

  PackedBatch batch;
  const int32_t parent = prompt_rows > 0 ? batch.add_prompt(0, prompt_rows) : -1;
  const std::vector<int32_t> text(static_cast<size_t>(tokens), 0);
  HeadRequest head;
  for (int32_t s = 0; s < sequences; ++s) {
    const int32_t end = batch.last_row(batch.add(parent, text)) + 1;
    for (int32_t r = end - scored; r < end; ++r) head.rows.push_back(r);
  }
  head.labels.assign(head.rows.size(), 0);
  head.ce_weight.assign(head.rows.size(), 1.0f);
  OwnedTensor x(*device, DType::kF32, {prompt_rows, config.hidden_size});
  device->fill_zero(x);
  std::optional<OwnedLora> lora;
  if (!targets.empty()) {
    LoraShape shape{.rank = n[12]};
    for (size_t t = 0; t < kLoraTargets; ++t)
      shape.targets[t] =
          ("," + targets + ",").find(fmt::format(",{},", kLoraTargetNames[t])) != std::string::npos;
    lora.emplace(*device, config, shape, true);
    for (size_t l = 0; l < static_cast<size_t>(config.num_layers); ++l)
      for (size_t t = 0; t < kLoraTargets; ++t)
        if (shape.targets[t]) {
          device->fill_zero(lora->a(l, t));
          device->fill_zero(lora->b(l, t));
        }
  }
  Runner runner(*device, *llama);
  std::fprintf(stderr, "step rows %lld scored %zu\n", static_cast<long long>(batch.rows()), head.rows.size());
  runner.forward(batch, x, Saving::kAll, -1, lora ? Adapters(&lora->adapter()) : Adapters(),
                 {.read = head.rows, .gradient = {}});
  runner.begin_backward();
  (void)runner.head(head, true);
  runner.backward();
  if (prompt_rows > 0) {
    OwnedTensor gradient(*device, DType::kF32, {prompt_rows, config.hidden_size});
    device->fill_zero(gradient);
    runner.add_prompt_gradient(gradient);
  }
  device->synchronize();
  std::fprintf(stderr, "end\n");
}

}  // namespace
}  // namespace gantrain

int main(int argc, char** argv) {
  try {
    if (argc != 13 && argc != 15) throw std::runtime_error("expected 12 numbers, or 13 and targets");
    std::vector<int32_t> n;
    for (int i = 1; i < std::min(argc, 14); ++i) n.push_back(std::stoi(argv[i]));
    gantrain::run(n, argc == 15 ? argv[14] : "");
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "step_door: %s\n", e.what());
    return 2;
  }
}
