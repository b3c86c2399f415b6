#include "train/networks/generator.h"

#include <cmath>

#include "core/rng.h"
#include "train/networks/bottleneck.h"
#include "train/networks/full.h"
#include "train/networks/lora.h"
#include "train/networks/prefix.h"

namespace gantrain {
namespace {

float rms(const std::vector<float>& v) {
  double s = 0.0;
  for (float x : v) s += static_cast<double>(x) * x;
  return v.empty() ? 0.0f : static_cast<float>(std::sqrt(s / static_cast<double>(v.size())));
}

class StaticGenerator : public Generator {
 public:
  StaticGenerator(Device& device, int64_t length, int64_t width, std::vector<float> p0, bool gradients)
      : Generator(device, length, width, gradients) {
    table_ = parameters_.add("prompt", {length, width}, values_init(std::move(p0)));
  }
  int64_t prompts(int64_t) const override { return 1; }
  OwnedTensor forward(const GeneratorInput&) override { return copy_of(device_, parameters_.value(table_)); }
  void backward(const GeneratorInput&, ConstTensor dprompt) override {
    axpy(device_, {.x = dprompt, .a = 1.0f, .y = parameters_.grad(table_)});
  }

 private:
  size_t table_;
};

// What mlp and conditional share: learned rows Q (P, w) plus projected noise, and the way back around P0.
class MlpGenerator : public Generator {
 public:
  MlpGenerator(Device& device, const GeneratorConfig& c, int64_t width, std::vector<float> p0, uint64_t key,
               bool gradients)
      : Generator(device, c.prompt_length, width, gradients), hidden_(c.hidden), noise_dim_(c.noise_dim) {
    base_ = parameters_.add("prompt", {length_, width_}, values_init(std::move(p0)));
    seeds_ = parameters_.add("seeds", {length_, c.width}, normal_init(derive_key(key, 1), 1.0f));
    if (noise_dim_ > 0)
      noise_ = std::make_unique<Linear>(parameters_, "noise", noise_dim_, c.width, derive_key(key, 2), 1.0f,
                                        false);
    one_ = zeros(device_, {1});
    const float one = 1.0f;
    device_.copy_in(one_, &one);
    up_ = std::make_unique<Linear>(parameters_, "up", c.width, hidden_, derive_key(key, 3));
    down_ = std::make_unique<Linear>(parameters_, "down", hidden_, width_, derive_key(key, 4), 0.0f);
  }
  int64_t prompts(int64_t batch) const override { return noise_dim_ > 0 ? batch : 1; }
  int64_t noise_dim() const override { return noise_dim_; }
  int64_t deployed_parameters() const override {
    return noise_dim_ > 0 ? parameters_.count() : length_ * width_;
  }

  OwnedTensor forward(const GeneratorInput& in) override {
    const int64_t g = prompts(in.batch), w = parameters_.value(seeds_).dim(1);
    const OwnedTensor z = noise_ ? noise_->forward(device_, in.noise) : zeros(device_, {g, w});
    x_ = OwnedTensor(device_, DType::kF32, {g, length_, w});
    broadcast_add_forward(device_, {.a = parameters_.value(seeds_), .c = z, .y = x_});
    hidden_x_ = up_->forward(device_, x_.view().view({g * length_, w}));
    hidden_y_ = OwnedTensor(device_, DType::kF32, hidden_x_.view().shape());
    activation_forward(device_, {.x = hidden_x_, .kind = Activation::kTanh, .y = hidden_y_});
    out_ = down_->forward(device_, hidden_y_);
    OwnedTensor y(device_, DType::kF32, {g * length_, width_});
    scaled_add_forward(device_, {.base = parameters_.value(base_),
                                 .x = out_.view().view({g, length_, width_}),
                                 .s = one_,
                                 .y = y.view().view({g, length_, width_})});
    return y;
  }

  void backward(const GeneratorInput& in, ConstTensor dprompt) override {
    const int64_t g = prompts(in.batch), w = parameters_.value(seeds_).dim(1);
    OwnedTensor dout = zeros(device_, {g, length_, width_}), ds = zeros(device_, {1});
    scaled_add_backward(device_, {.x = out_.view().view({g, length_, width_}),
                                  .s = one_,
                                  .dy = dprompt.view({g, length_, width_}),
                                  .dbase = parameters_.grad(base_),
                                  .dx = dout,
                                  .ds = ds});
    OwnedTensor dy = zeros(device_, hidden_y_.view().shape()), dh = zeros(device_, hidden_x_.view().shape());
    OwnedTensor dx = zeros(device_, {g * length_, w}), dz = zeros(device_, {g, w});
    down_->backward(device_, hidden_y_, dout.view().view({g * length_, width_}), dy);
    activation_backward(device_, {.x = hidden_x_, .kind = Activation::kTanh, .dy = dy, .dx = dh});
    up_->backward(device_, x_.view().view({g * length_, w}), dh, dx);
    broadcast_add_backward(device_,
                           {.dy = dx.view().view({g, length_, w}), .da = parameters_.grad(seeds_), .dc = dz});
    if (noise_) noise_->backward(device_, in.noise, dz, {});
  }

 private:
  int64_t hidden_, noise_dim_;
  size_t base_, seeds_;
  std::unique_ptr<Linear> noise_, up_, down_;
  OwnedTensor one_, x_, hidden_x_, hidden_y_, out_;
};

class ConditionalGenerator : public Generator {
 public:
  ConditionalGenerator(Device& device, const GeneratorConfig& c, int64_t width, std::vector<float> p0,
                       uint64_t key, bool gradients)
      : Generator(device, c.prompt_length, width, gradients), noise_dim_(c.noise_dim) {
    // The output's scale starts at half the hard prompt's own.
    const float scale = 0.5f * rms(p0);
    base_ = parameters_.add("prompt", {length_, width_}, values_init(std::move(p0)));
    queries_ = parameters_.add("queries", {length_, c.width}, normal_init(derive_key(key, 1), 1.0f));
    scale_ = parameters_.add("scale", {1}, constant_init(scale > 0.0f ? scale : 1.0f));
    if (noise_dim_ > 0)
      noise_ = std::make_unique<Linear>(parameters_, "noise", noise_dim_, c.width, derive_key(key, 2), 1.0f,
                                        false);
    for (int64_t i = 0; i < c.blocks; ++i)
      blocks_.push_back(std::make_unique<Block>(parameters_, fmt::format("block{}", i), c.width, width,
                                                heads(c.width),
                                                derive_key(key, 3, static_cast<uint64_t>(i))));
    out_ = std::make_unique<Linear>(parameters_, "out", c.width, width, derive_key(key, 4), 0.0f, false);
  }
  int64_t prompts(int64_t batch) const override { return batch; }
  bool reads_input() const override { return true; }
  int64_t noise_dim() const override { return noise_dim_; }
  int64_t deployed_parameters() const override { return parameters_.count(); }

  OwnedTensor forward(const GeneratorInput& in) override {
    const int64_t b = in.batch, w = parameters_.value(queries_).dim(1), n = in.features.dim(0);
    GT_CHECK(static_cast<int64_t>(in.spans.size()) == b, "{} spans for {} inputs", in.spans.size(), b);
    plan_ = AttentionPlan();
    for (int64_t i = 0; i < b; ++i) {
      plan_.segments.push_back({.q_begin = static_cast<int32_t>(i * length_),
                                .q_count = static_cast<int32_t>(length_),
                                .span_begin = static_cast<int32_t>(i),
                                .span_count = 1,
                                .kv_begin = -1});
      plan_.spans.push_back(in.spans[static_cast<size_t>(i)]);
    }
    features_ = OwnedTensor(device_, DType::kF32, {n, width_});
    OwnedTensor rstd(device_, DType::kF32, {n});
    rmsnorm_forward(device_, {.x = in.features, .w = {}, .y = features_, .rstd = rstd});
    const OwnedTensor z = noise_ ? noise_->forward(device_, in.noise) : zeros(device_, {b, w});
    x_ = OwnedTensor(device_, DType::kF32, {b, length_, w});
    broadcast_add_forward(device_, {.a = parameters_.value(queries_), .c = z, .y = x_});
    const Tensor x = x_.view().view({b * length_, w});
    for (auto& block : blocks_) block->forward(device_, x, features_, plan_);
    raw_ = out_->forward(device_, x);
    normed_ = OwnedTensor(device_, DType::kF32, raw_.view().shape());
    rstd_ = OwnedTensor(device_, DType::kF32, {b * length_});
    rmsnorm_forward(device_, {.x = raw_, .w = {}, .y = normed_, .rstd = rstd_, .eps = kEps});
    OwnedTensor y(device_, DType::kF32, {b * length_, width_});
    scaled_add_forward(device_, {.base = parameters_.value(base_),
                                 .x = normed_.view().view({b, length_, width_}),
                                 .s = parameters_.value(scale_),
                                 .y = y.view().view({b, length_, width_})});
    return y;
  }

  void backward(const GeneratorInput& in, ConstTensor dprompt) override {
    const int64_t b = in.batch, w = parameters_.value(queries_).dim(1);
    OwnedTensor dnormed = zeros(device_, {b, length_, width_}), draw = zeros(device_, raw_.view().shape());
    scaled_add_backward(device_, {.x = normed_.view().view({b, length_, width_}),
                                  .s = parameters_.value(scale_),
                                  .dy = dprompt.view({b, length_, width_}),
                                  .dbase = parameters_.grad(base_),
                                  .dx = dnormed,
                                  .ds = parameters_.grad(scale_)});
    rmsnorm_backward(device_, {.x = raw_,
                               .w = {},
                               .rstd = rstd_,
                               .dy = dnormed.view().view({b * length_, width_}),
                               .dx = draw,
                               .dw = {}});
    OwnedTensor dx = zeros(device_, {b * length_, w});
    out_->backward(device_, x_.view().view({b * length_, w}), draw, dx);
    for (size_t i = blocks_.size(); i-- > 0;) blocks_[i]->backward(device_, dx, features_, plan_, {});
    OwnedTensor dz = zeros(device_, {b, w});
    broadcast_add_backward(
        device_, {.dy = dx.view().view({b, length_, w}), .da = parameters_.grad(queries_), .dc = dz});
    if (noise_) noise_->backward(device_, in.noise, dz, {});
  }

 private:
  // RMSNorm of a zero row multiplies gradients by 1 / sqrt(eps). With eps = 1 that factor is 1 at the start
  // (W_o = 0) and the output grows linearly with W_o until its own rms is about 1, where the norm takes over;
  // 1e-5 would make the first step 300 times too long.
  static constexpr float kEps = 1.0f;
  static int64_t heads(int64_t width) { return width % 8 == 0 ? 4 : 1; }

  int64_t noise_dim_;
  size_t base_, queries_, scale_;
  std::unique_ptr<Linear> noise_, out_;
  std::vector<std::unique_ptr<Block>> blocks_;
  AttentionPlan plan_;
  OwnedTensor features_, x_, raw_, normed_, rstd_;
};

}  // namespace

std::unique_ptr<Generator> Generator::make(Device& device, const GeneratorConfig& config, int64_t width,
                                           std::vector<float> p0, uint64_t key, bool gradients) {
  GT_CHECK(static_cast<int64_t>(p0.size()) == config.prompt_length * width,
           "hard prompt of {} values, expected {} x {}", p0.size(), config.prompt_length, width);
  switch (config.kind) {
    case GeneratorKind::kStatic:
      return std::make_unique<StaticGenerator>(device, config.prompt_length, width, std::move(p0), gradients);
    case GeneratorKind::kMlp:
      return std::make_unique<MlpGenerator>(device, config, width, std::move(p0), key, gradients);
    case GeneratorKind::kConditional:
      return std::make_unique<ConditionalGenerator>(device, config, width, std::move(p0), key, gradients);
  }
  fail("unknown generator kind");
}

std::unique_ptr<Generator> Generator::make(Device& device, const TrainConfig& config, const Llama& model,
                                           std::vector<float> start, uint64_t key, bool gradients) {
  const LlamaConfig& shape = model.config();
  switch (config.method) {
    case Method::kLora:
    case Method::kQlora:
      return std::make_unique<LoraGenerator>(device, shape, lora_shape(config.lora), key, gradients);
    case Method::kPrefix:
      return std::make_unique<PrefixGenerator>(device, shape, config.prefix, std::move(start), key,
                                               gradients);
    case Method::kAdapter:
      return std::make_unique<BottleneckGenerator>(device, shape, bottleneck_shape(config.bottleneck), key,
                                                   gradients);
    case Method::kFull:
      return std::make_unique<FullGenerator>(device, model, gradients);
    default:
      break;
  }
  if (start.empty()) start.resize(static_cast<size_t>(config.generator.prompt_length * shape.hidden_size));
  return make(device, config.generator, shape.hidden_size, std::move(start), key, gradients);
}

}  // namespace gantrain
