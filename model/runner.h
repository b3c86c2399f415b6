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
  const Llama* policy = nullptr;        // whose they are, where it has a head of its own
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

class Runner;

// Losses on their way to the host.
class HeadReading {
 public:
  // Waits for the device where they are not there yet. Throws Error if a loss is not finite: it names the
  // first tensor that is not, where the runner still holds the batch.
  HeadResult get() const;

 private:
  friend class Runner;
  Runner* runner_ = nullptr;
  int64_t batch_ = 0;
  Reading<float> nll_, kl_;
  Reading<int32_t> argmax_;
};

class Runner {
 public:
  Runner(Device& device, const Llama& llama)
      : device_(device), llama_(llama), workspace_(device), head_workspace_(device) {}

  // Forward through `layers` layers (-1: all). `batch` and `prompt` must stay alive until the last call on
  // this batch. With `adapters`, through them; backward then adds to their gradients. `rows`: which rows the
  // calls below will name; where it says so, no others may be.
  void forward(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers = -1,
               const Adapters& adapters = {}, const BatchRows& rows = {});
  // The same through all layers of the base, of which keys and values are kept: row i's in the cache's row
  // slots[i]. Nothing else may be asked for afterwards.
  void fill(const PackedBatch& batch, KvCache& cache, const std::vector<int32_t>& slots);
  // Residual stream after the last layer that ran, of the rows that are read, (R, C) f32.
  ConstTensor output() const { return acts_.x_out; }
  // Copies of chosen rows of it, (R, C) f32.
  OwnedTensor output_rows(const std::vector<int32_t>& rows);

  // Logits of chosen rows, (R, V) on the host.
  std::vector<float> logits(const std::vector<int32_t>& rows);

  // Sets the gradient at the output to zero; seeds are then added by head() and add_output_gradient().
  void begin_backward();
  // Losses on scored rows; with `backward` the seeds' gradient is added to the output's. Throws Error naming
  // the first non-finite tensor if a loss is not finite.
  HeadResult head(const HeadRequest& request, bool backward) { return head_later(request, backward).get(); }
  // The same without waiting; a device that does not queue its work throws here already. To name a tensor the
  // batch's prompt must stay alive until the losses are read.
  HeadReading head_later(const HeadRequest& request, bool backward);
  void add_output_gradient(ConstTensor dy, const std::vector<int32_t>& rows);  // (R, C) f32
  // Runs the layers backward; then the two below may be asked for.
  void backward();
  void add_prompt_gradient(Tensor dprompt);                           // (R, C) f32  +=
  OwnedTensor input_gradient_rows(const std::vector<int32_t>& rows);  // (R, C) f32: dL/d(embedding row)

  Device& device() const { return device_; }
  const Llama& llama() const { return llama_; }

 private:
  friend class HeadReading;
  ForwardArgs args();
  void take(const PackedBatch& batch, ConstTensor prompt, Saving saving, int layers, const Adapters& adapters,
            const BatchRows& rows);
  OwnedTensor upload_read(const std::vector<int32_t>& rows);       // (R) i32: their places in output()
  const Llama& answering() const { return adapters_.on(llama_); }  // the discriminator's stays llama_

  Device& device_;
  const Llama& llama_;
  Workspace workspace_, head_workspace_;
  std::optional<DeviceBatch> batch_;
  int64_t batches_ = 0;  // run so far
  ConstTensor prompt_;
  Adapters adapters_;
  Activations acts_;
};

}  // namespace gantrain
