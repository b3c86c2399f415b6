// Runner: one packed batch at a time through the frozen model, with its memory managed. What training,
// evaluation and probe are written in.
#pragma once

#include <optional>

#include "model/llama_forward.h"

namespace gantrain {

// Which rows the head looks at, and what it wants of them; vectors have one entry a scored row.
struct HeadRequest {
  std::vector<int32_t> rows;            // rows of the batch; may repeat
  std::vector<int32_t> labels;          // the token each row should predict
  std::vector<float> ce_weight;         // seed weights, or empty
  ConstTensor reference;                // (R, C) f32: residual rows of the reference policy, or empty
  std::vector<float> kl_weight;         // or empty
  ConstTensor embedding_grad;           // (R, C) f32: straight-through Gumbel seed, or empty
  std::vector<int64_t> keys, counters;  // with embedding_grad
  float tau = 1.0f;
  int32_t top_k = 0;
  bool argmax = false;
};
struct HeadResult {
  std::vector<float> nll;       // -log p(label)
  std::vector<float> kl;        // with reference
  std::vector<int32_t> argmax;  // if asked for
};

class Runner {
 public:
  Runner(Device& device, const Llama& llama)
      : device_(device), llama_(llama), workspace_(device), head_workspace_(device) {}

  // Forward through `layers` layers (-1: all). `batch` and `prompt` must stay alive until the last call on
  // this batch. With `lora`, through its adapters; backward then adds to its gradients.
  void forward(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers = -1,
               const LoraAdapter* lora = nullptr);
  // Residual stream after the last layer that ran, (N, C) f32.
  ConstTensor output() const { return acts_.x_out; }
  // Copies of chosen rows of it, (R, C) f32.
  OwnedTensor output_rows(const std::vector<int32_t>& rows);

  // Logits of chosen rows, (R, V) on the host.
  std::vector<float> logits(const std::vector<int32_t>& rows);

  // Sets the gradient at the output to zero; seeds are then added by head() and add_output_gradient().
  void begin_backward();
  // Losses on scored rows; with `backward` the seeds' gradient is added to the output's. Throws Error naming
  // the first non-finite tensor if a loss is not finite.
  HeadResult head(const HeadRequest& request, bool backward);
  void add_output_gradient(ConstTensor dy, const std::vector<int32_t>& rows);  // (R, C) f32
  // Runs the layers backward; then the two below may be asked for.
  void backward();
  void add_prompt_gradient(Tensor dprompt);                           // (R, C) f32  +=
  OwnedTensor input_gradient_rows(const std::vector<int32_t>& rows);  // (R, C) f32: dL/d(embedding row)

  Device& device() const { return device_; }
  const Llama& llama() const { return llama_; }

 private:
  ForwardArgs args();

  Device& device_;
  const Llama& llama_;
  Workspace workspace_, head_workspace_;
  std::optional<DeviceBatch> batch_;
  ConstTensor prompt_;
  const LoraAdapter* lora_ = nullptr;
  Activations acts_;
};

}  // namespace gantrain
