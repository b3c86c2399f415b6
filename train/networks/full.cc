#include "train/networks/full.h"

#include "model/adapters/trained_weights.h"

namespace gantrain {

FullGenerator::FullGenerator(Device& device, const Llama& base, bool gradients)
    : Generator(device, 0, base.config().hidden_size, gradients) {
  Llama::Values values;
  trained_tensors(base, values, weights_, [&](const TrainedTensor& t) {
    const size_t i = parameters_.add(t.name, t.shape, [&](std::vector<float>& v) { t.read(v.data()); });
    return std::pair<ConstTensor, Tensor>(parameters_.value(i), parameters_.grad(i));
  });
  llama_ = Llama::over(device, base, values);
  weights_.llama = llama_.get();
}

}  // namespace gantrain
