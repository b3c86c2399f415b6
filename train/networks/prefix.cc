#include "train/networks/prefix.h"

#include "core/rng.h"

namespace gantrain {

PrefixGenerator::PrefixGenerator(Device& device, const LlamaConfig& model, const PrefixConfig& config,
                                 std::vector<float> start, uint64_t key, bool gradients)
    : Generator(device, 0, model.hidden_size, gradients) {
  const int64_t p = config.length, layers = model.num_layers, width = model.num_kv_heads * model.head_dim;
  table_ = parameters_.add("prefix", {p, 2 * layers, width},
                           start.empty() ? constant_init(0.0f) : values_init(std::move(start)));
  adapter_.table = parameters_.value(table_);
  adapter_.dtable = parameters_.grad(table_);
  if (!config.projection) return;
  seeds_ = parameters_.add("seeds", {p, width}, normal_init(derive_key(key, 1), 1.0f));
  up_ = std::make_unique<Linear>(parameters_, "up", width, config.hidden, derive_key(key, 2));
  down_ = std::make_unique<Linear>(parameters_, "down", config.hidden, 2 * layers * width, derive_key(key, 3),
                                   0.0f);
}

OwnedTensor PrefixGenerator::forward(const GeneratorInput&) {
  if (!up_) return {};
  const ConstTensor table = parameters_.value(table_);
  hidden_x_ = up_->forward(device_, parameters_.value(seeds_));
  hidden_y_ = OwnedTensor(device_, DType::kF32, hidden_x_.view().shape());
  activation_forward(device_, {.x = hidden_x_, .kind = Activation::kTanh, .y = hidden_y_});
  sum_ = down_->forward(device_, hidden_y_);
  const Tensor sum = sum_.view().view(table.shape());
  axpy(device_, {.x = table.view({table.count()}), .a = 1.0f, .y = sum.view({table.count()})});
  adapter_.table = sum;
  if (!parameters_.grad(table_).empty()) {
    dsum_ = zeros(device_, table.shape());
    adapter_.dtable = dsum_;
  }
  return {};
}

void PrefixGenerator::backward(const GeneratorInput&, ConstTensor) {
  if (!up_) return;
  const Tensor dtable = parameters_.grad(table_);
  const int64_t count = dtable.count();
  axpy(device_, {.x = dsum_.view().view({count}), .a = 1.0f, .y = dtable.view({count})});
  const int64_t p = dtable.dim(0);
  OwnedTensor dy = zeros(device_, hidden_y_.view().shape()), dx = zeros(device_, hidden_x_.view().shape());
  down_->backward(device_, hidden_y_, dsum_.view().view({p, count / p}), dy);
  activation_backward(device_, {.x = hidden_x_, .kind = Activation::kTanh, .dy = dy, .dx = dx});
  up_->backward(device_, parameters_.value(seeds_), dx, parameters_.grad(seeds_));
}

}  // namespace gantrain
