// The generator G: (input, noise) -> soft prompt of P vectors of the model's width (docs/method.md 1).
//
//   static        P0, a learned table: prompt tuning itself (Lester et al. 2104.08691)
//   mlp           P0 + W2 tanh(W1 (seeds + W_z z)): P-tuning's reparametrisation (Liu et al. 2103.10385)
//   conditional   P0 + s * RMSNorm(W_o XAttn(Q + W_z z; W_c h)), h frozen states of the input, 1 or 2 blocks
//   of width w
//
// The last layer starts at zero, so before the first step every kind gives exactly the hard prompt P0, which
// is learned too.
#pragma once

#include <memory>

#include "model/adapters/adapters.h"
#include "train/config.h"
#include "train/networks/layers.h"

namespace gantrain {

struct GeneratorInput {
  int64_t batch = 1;  // B inputs
  ConstTensor
      features;  // (N, C) f32: frozen states of all inputs, row-normalised by the generator; conditional only
  std::vector<KvSpan> spans;  // B spans of `features`; conditional only
  ConstTensor noise;          // (B, Z) f32; mlp and conditional with Z > 0
};

class Generator {
 public:
  // p0: (P, C) on the host. noise_dim 0: no noise.
  static std::unique_ptr<Generator> make(Device& device, const GeneratorConfig& config, int64_t width,
                                         std::vector<float> p0, uint64_t key, bool gradients = true);
  // What config.method trains on this model. start: the values a prompt or a prefix begins with
  // (train/play/generator_prompts.h), or empty: zeros, for one whose values are loaded. Without gradients it
  // can answer and not be trained.
  static std::unique_ptr<Generator> make(Device& device, const TrainConfig& config, const Llama& model,
                                         std::vector<float> start, uint64_t key, bool gradients = true);
  virtual ~Generator() = default;

  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }
  int64_t prompt_length() const { return length_; }
  // Distinct prompts for B inputs: 1 where neither input nor noise enters, else B.
  virtual int64_t prompts(int64_t batch) const = 0;
  virtual bool reads_input() const { return false; }
  // Where the trained thing is on the model itself, as the last forward left it; else nothing.
  virtual Adapters adapter() const { return {}; }
  virtual int64_t noise_dim() const { return 0; }
  // (G P, C) f32. Keeps what backward needs; a second forward replaces it.
  virtual OwnedTensor forward(const GeneratorInput& input) = 0;
  // dprompt: (G P, C). Accumulates parameter gradients.
  virtual void backward(const GeneratorInput& input, ConstTensor dprompt) = 0;
  // Values needed at inference: a table where one prompt serves all inputs, else the whole network.
  virtual int64_t deployed_parameters() const { return length_ * width_; }

 protected:
  Generator(Device& device, int64_t length, int64_t width, bool gradients)
      : device_(device), parameters_(device, !gradients), length_(length), width_(width) {}
  Device& device_;
  ParameterSet parameters_;
  int64_t length_, width_;
};

}  // namespace gantrain
