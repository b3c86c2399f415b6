// Named trainable tensors with everything an optimiser keeps beside them. f32.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/communicator.h"
#include "core/ops/optimizer.h"

namespace gantrain {

struct AdamSettings {
  float lr = 1e-3f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.0f;
  float clip = 1.0f;  // largest gradient norm over the whole set; 0: no clipping
};

class ParameterSet {
 public:
  // values_only: without gradients and moments, for what is read and never trained.
  explicit ParameterSet(Device& device, bool values_only = false)
      : device_(&device), norm_(device, DType::kF32, {1}), values_only_(values_only) {}

  // Adds a tensor and returns its index. Values come from `init`, which fills them on the host.
  size_t add(const std::string& name, Shape shape, const std::function<void(std::vector<float>&)>& init);

  size_t size() const { return items_.size(); }
  const std::string& name(size_t i) const { return items_[i].name; }
  Tensor value(size_t i) { return items_[i].value.view(); }
  ConstTensor value(size_t i) const { return items_[i].value.view(); }
  // Empty while gradients are off and where there are none: backward then only passes through.
  Tensor grad(size_t i) { return gradients_on_ ? items_[i].grad.view() : Tensor(); }
  void set_gradients(bool on) { gradients_on_ = on; }
  int64_t count() const;            // values in all tensors
  int64_t optimizer_bytes() const;  // gradients and both moments

  void zero_grad();
  // One AdamW step (its number counted here); returns the gradient's norm before clipping. A norm that is not
  // finite throws Error naming the first such tensor, and changes nothing.
  double step(const AdamSettings& settings) {
    start_step(settings);
    return finish_step();
  }
  // The same in two parts, so that nothing waits between them: the step is put on the device, which refuses
  // one along a norm that is not finite; then the norm is read and the error thrown.
  void start_step(const AdamSettings& settings);
  double finish_step();
  // Forgets both moments and the step count: for another phase with other betas.
  void reset_moments();
  int64_t steps() const { return steps_; }

  void copy_values_from(const ParameterSet& other);
  // With several ranks: every gradient becomes the sum of theirs, through `buffer` (f32, any length), as much
  // at a time as it holds; every value becomes rank 0's.
  void sum_gradients(Communicator& ranks, Tensor buffer);
  void broadcast_values(Communicator& ranks);
  // value = decay * value + (1 - decay) * other's value; not if the other's last step was refused
  void average_from(const ParameterSet& other, float decay);

  // Everything that a continued run needs, where it lies: "<prefix><name>", ".m", ".v"; `steps` goes along in
  // `counters`.
  void save(const std::string& prefix, bool with_moments,
            const std::function<void(const std::string&, ConstTensor)>& add) const;
  void load(const std::string& prefix, bool with_moments,
            const std::function<std::vector<float>(const std::string&, Shape)>& read);
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  struct Item {
    std::string name;
    OwnedTensor value, grad, m, v;
  };
  Device* device_;
  std::vector<Item> items_;
  OwnedTensor norm_;  // (1) f32: of the last step
  bool values_only_;
  Reading<float> norm_read_;
  bool step_open_ = false;
  int64_t steps_ = 0;
  bool gradients_on_ = true;
};

// Initialisers. Normal draws from Philox(key), numbered from 0.
std::function<void(std::vector<float>&)> normal_init(uint64_t key, float deviation);
std::function<void(std::vector<float>&)> uniform_init(uint64_t key, float bound);  // in +-bound
std::function<void(std::vector<float>&)> constant_init(float value);
std::function<void(std::vector<float>&)> values_init(std::vector<float> values);

}  // namespace gantrain
