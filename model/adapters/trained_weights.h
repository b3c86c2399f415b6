// The tensors of a model all of whose weights are trained, as they lie in memory: q k v and gate and up are
// one matrix each.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "model/adapters/adapters.h"
#include "model/llama.h"

namespace gantrain {

struct TrainedTensor {
  struct Part {
    std::string name;  // Hugging Face's
    Shape shape;
  };
  std::string name;         // of the parts in common
  std::vector<Part> parts;  // top to bottom
  Shape shape;
  std::function<void(float*)> read;  // the base's values
};

// Every tensor of `base`, in the model's order.
std::vector<TrainedTensor> trained_tensors(const Llama& base);
// Asks `make` for value and gradient (or an empty view) of each and puts them where the model looks for them;
// `to.llama` is left to the caller.
void trained_tensors(const Llama& base, Llama::Values& values, TrainedWeights& to,
                     const std::function<std::pair<ConstTensor, Tensor>(const TrainedTensor&)>& make);

// The base's weights with gradients beside them (set to zero): for a look at those.
class OwnedWeights {
 public:
  OwnedWeights(Device& device, const Llama& base);
  OwnedWeights(const OwnedWeights&) = delete;
  OwnedWeights& operator=(const OwnedWeights&) = delete;
  const TrainedWeights& weights() const { return weights_; }
  // Gradients by Hugging Face's names, on the host.
  struct Gradient {
    std::string name;
    Shape shape;
    std::vector<float> values;
  };
  std::vector<Gradient> gradients(Device& device) const;

 private:
  std::vector<TrainedTensor> described_;
  std::vector<OwnedTensor> tensors_;  // value and gradient of each
  std::unique_ptr<const Llama> llama_;
  TrainedWeights weights_;
};

}  // namespace gantrain
