#include "train/networks/parameters.h"

#include <algorithm>
#include <cmath>

#include "core/ops.h"
#include "core/rng.h"

namespace gantrain {

size_t ParameterSet::add(const std::string& name, Shape shape,
                         const std::function<void(std::vector<float>&)>& init) {
  Item item;
  item.name = name;
  const auto take = [&](OwnedTensor& t) {
    t = OwnedTensor(*device_, DType::kF32, shape);
    device_->fill_zero(t);
  };
  take(item.value);
  if (!values_only_) {
    const Range range(*device_, "optimizer state");
    for (OwnedTensor* t : {&item.grad, &item.m, &item.v}) take(*t);
  }
  std::vector<float> values(static_cast<size_t>(shape.count()), 0.0f);
  init(values);
  GT_CHECK(static_cast<int64_t>(values.size()) == shape.count(), "{}: {} initial values for {}", name,
           values.size(), to_string(shape));
  device_->copy_in(item.value, values.data());
  items_.push_back(std::move(item));
  return items_.size() - 1;
}

int64_t ParameterSet::count() const {
  int64_t n = 0;
  for (const Item& i : items_) n += i.value.view().count();
  return n;
}

int64_t ParameterSet::optimizer_bytes() const { return values_only_ ? 0 : 3 * 4 * count(); }

void ParameterSet::zero_grad() {
  for (Item& i : items_) device_->fill_zero(i.grad);
}

void ParameterSet::start_step(const AdamSettings& s) {
  GT_CHECK(!values_only_, "a step of parameters without gradients");
  const Range range(*device_, "optimizer");
  std::vector<Tensor> values, grads, m, v;
  for (Item& i : items_) {
    values.push_back(i.value.view());
    grads.push_back(i.grad.view());
    m.push_back(i.m.view());
    v.push_back(i.v.view());
  }
  gradient_norm(*device_, {.grads = grads, .out = norm_});
  adamw(*device_, {.params = values,
                   .grads = grads,
                   .m = m,
                   .v = v,
                   .norm = norm_,
                   .clip = s.clip,
                   .lr = s.lr,
                   .beta1 = s.beta1,
                   .beta2 = s.beta2,
                   .eps = s.eps,
                   .weight_decay = s.weight_decay,
                   .step = steps_ + 1});
  norm_read_ = Reading<float>(*device_, norm_);
  ++steps_;
  step_open_ = true;
}

double ParameterSet::finish_step() {
  GT_CHECK(step_open_, "no step was begun");
  step_open_ = false;
  const float norm = norm_read_.get().front();
  if (std::isfinite(norm)) return norm;
  --steps_;
  for (Item& i : items_)
    if (!all_finite(*device_, i.grad))
      fail("the gradient of '{}' is not finite; the step was not taken", i.name);
  fail("the gradient norm overflows f32; the step was not taken");
}

void ParameterSet::reset_moments() {
  steps_ = 0;
  for (Item& i : items_) {
    device_->fill_zero(i.m);
    device_->fill_zero(i.v);
  }
}

void ParameterSet::copy_values_from(const ParameterSet& other) {
  GT_CHECK(size() == other.size(), "{} tensors, {} in the other set", size(), other.size());
  for (size_t i = 0; i < size(); ++i) device_->copy(items_[i].value, other.items_[i].value);
}

void ParameterSet::sum_gradients(Communicator& ranks, Tensor buffer) {
  struct Piece {
    Tensor from;
    int64_t at;  // in the buffer
  };
  std::vector<Piece> pieces;
  int64_t used = 0;
  const auto sum = [&] {
    if (used == 0) return;
    for (const Piece& p : pieces) device_->copy(buffer.rows(p.at, p.from.count()), p.from);
    ranks.all_reduce(buffer.rows(0, used));
    for (const Piece& p : pieces) device_->copy(p.from, buffer.rows(p.at, p.from.count()));
    pieces.clear();
    used = 0;
  };
  for (Item& item : items_) {
    const Tensor grad = item.grad.view().view({item.grad.view().count()});
    for (int64_t at = 0; at < grad.count();) {
      const int64_t n = std::min(grad.count() - at, buffer.count() - used);
      pieces.push_back({grad.rows(at, n), used});
      used += n, at += n;
      if (used == buffer.count()) sum();
    }
  }
  sum();
}

void ParameterSet::broadcast_values(Communicator& ranks) {
  for (Item& i : items_) ranks.broadcast(i.value, 0);
}

void ParameterSet::average_from(const ParameterSet& other, float decay) {
  GT_CHECK(size() == other.size(), "{} tensors, {} in the other set", size(), other.size());
  std::vector<ConstTensor> values;
  std::vector<Tensor> means;
  for (size_t i = 0; i < size(); ++i) {
    values.push_back(other.items_[i].value.view());
    means.push_back(items_[i].value.view());
  }
  ema(*device_, {.x = values,
                 .decay = decay,
                 .ema = means,
                 .norm = other.step_open_ ? ConstTensor(other.norm_.view()) : ConstTensor()});
}

void ParameterSet::save(const std::string& prefix, bool with_moments,
                        const std::function<void(const std::string&, ConstTensor)>& add) const {
  for (const Item& i : items_) {
    add(prefix + i.name, i.value.view());
    if (with_moments) {
      add(prefix + i.name + ".m", i.m.view());
      add(prefix + i.name + ".v", i.v.view());
    }
  }
}

void ParameterSet::load(const std::string& prefix, bool with_moments,
                        const std::function<std::vector<float>(const std::string&, Shape)>& read) {
  auto fill = [&](const std::string& name, OwnedTensor& t) {
    const std::vector<float> values = read(prefix + name, t.view().shape());
    GT_CHECK(static_cast<int64_t>(values.size()) == t.view().count(), "{}: {} values for {}", name,
             values.size(), to_string(t.view().shape()));
    device_->copy_in(t, values.data());
  };
  for (Item& i : items_) {
    fill(i.name, i.value);
    if (with_moments) {
      fill(i.name + ".m", i.m);
      fill(i.name + ".v", i.v);
    }
  }
}

std::function<void(std::vector<float>&)> normal_init(uint64_t key, float deviation) {
  return [key, deviation](std::vector<float>& v) {
    for (size_t i = 0; i < v.size(); i += 2) {
      const auto words = Philox{key}(0, i / 2);
      const auto pair = normal_pair(words[0], words[1]);
      v[i] = deviation * pair[0];
      if (i + 1 < v.size()) v[i + 1] = deviation * pair[1];
    }
  };
}

std::function<void(std::vector<float>&)> uniform_init(uint64_t key, float bound) {
  return [key, bound](std::vector<float>& v) {
    for (size_t i = 0; i < v.size(); ++i)
      v[i] = bound * (2.0f * uniform_open(Philox{key}(0, static_cast<uint64_t>(i))[0]) - 1.0f);
  };
}

std::function<void(std::vector<float>&)> constant_init(float value) {
  return [value](std::vector<float>& v) { v.assign(v.size(), value); };
}

std::function<void(std::vector<float>&)> values_init(std::vector<float> values) {
  return [values = std::move(values)](std::vector<float>& v) { v = values; };
}

}  // namespace gantrain
