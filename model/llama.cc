#include "model/llama.h"

#include <atomic>
#include <cmath>
#include <map>
#include <mutex>

#include "core/digest.h"
#include "core/ops.h"
#include "model/weights.h"

namespace gantrain {

FrozenVector::FrozenVector(Device& device, const std::vector<float>& values)
    : storage_(device, DType::kF32, {static_cast<int64_t>(values.size())}) {
  device.copy_in(storage_, values.data());
  view_ = storage_.view();
}

float Llama::attention_scale() const { return 1.0f / std::sqrt(static_cast<float>(config_.head_dim)); }

namespace {

// The 32-bit words of one row, mixed with the row's place: rows may be hashed in any order and summed.
uint64_t hash_row(const float* row, int64_t n, uint64_t place) {
  Digest digest;
  digest.value ^= place * 0x9E3779B97F4A7C15ull;
  for (int64_t i = 0; i < n; ++i) digest.add(std::bit_cast<uint32_t>(row[i]));
  return digest.value;
}

class Loader {
 public:
  Loader(Device& device, const Weights& weights, DType dtype,
         const std::function<void(int64_t, int64_t)>& progress, bool keep_packed)
      : device_(device), weights_(weights), dtype_(dtype), progress_(progress), keep_packed_(keep_packed) {
    total_ = static_cast<int64_t>(weights.tensors().size());
  }

  // Stacks tensors of equal width, top to bottom, into one frozen matrix. The table of embeddings and the
  // head are tall (MatrixSource).
  std::unique_ptr<const FrozenMatrix> matrix(const std::vector<std::string>& names, bool measure_rms = false,
                                             bool tall = false) {
    struct Part {
      std::string name;
      int64_t begin, rows;
    };
    std::vector<Part> parts;
    int64_t rows = 0, cols = 0;
    for (const std::string& name : names) {
      const TensorEntry& entry = find(name);
      GT_CHECK(entry.shape.rank == 2, "{}: {} is not a matrix", weights_.path(), name);
      parts.push_back({name, rows, entry.shape[0]});
      rows += entry.shape[0];
      cols = entry.shape[1];
      parameters_ += entry.shape.count();
    }
    std::atomic<uint64_t> hash{0};
    std::mutex mutex;
    double sum = 0.0;
    MatrixSource source;
    source.rows = rows;
    source.cols = cols;
    source.tall = tall;
    const uint64_t salt = salt_++;
    // Rows [from, to) of the matrix, which are `part`'s: every row passes here once.
    const auto check = [&](const Part& part, int64_t from, int64_t to, const float* values) {
      uint64_t h = 0;
      std::vector<double> row_sums;
      for (int64_t r = from; r < to; ++r) {
        const float* row = values + (r - from) * cols;
        double squares = 0.0;
        for (int64_t i = 0; i < cols; ++i) squares += static_cast<double>(row[i]) * row[i];
        if (!std::isfinite(squares))
          fail(
              "{}: tensor {} holds a value that is not finite in row {}; the file is damaged or was saved "
              "after a "
              "diverged run",
              weights_.path(), part.name, r - part.begin);
        row_sums.push_back(squares);
        h += hash_row(row, cols, (salt << 32) + static_cast<uint64_t>(r));
      }
      hash += h;
      if (measure_rms) {
        std::lock_guard lock(mutex);
        for (double s : row_sums) sum += s;
      }
    };
    source.read = [&](int64_t begin, int64_t n, float* out) {
      for (const Part& part : parts) {
        const int64_t from = std::max(begin, part.begin), to = std::min(begin + n, part.begin + part.rows);
        if (from >= to) continue;
        float* rows_out = out + (from - begin) * cols;
        weights_.read_rows(part.name, from - part.begin, to - from, rows_out);
        check(part, from, to, rows_out);
      }
    };
    // Packed blocks may go to the device as they are; the host expands each row only to check it.
    std::vector<std::pair<PackedType, int64_t>> types;
    for (const Part& part : parts) {
      auto packed = weights_.packed(part.name);
      if (!packed) {
        source.packed.clear();
        break;
      }
      const auto row = packed->row;
      packed->begin = part.begin;
      types.emplace_back(packed->type, part.rows * cols);
      const auto scales = packed->scales ? std::make_shared<const Nf4Quantised>(packed->scales()) : nullptr;
      packed->row = [&part, &check, row, scales, type = packed->type, cols](int64_t i) {
        const void* blocks = row(i);
        std::vector<float> values(static_cast<size_t>(cols));
        const int64_t row_blocks = cols / packed_block(type).values;
        if (scales)
          unpack_nf4(blocks,
                     {.codes = scales->codes.data() + i * row_blocks,
                      .steps = scales->steps.data(),
                      .mean = scales->mean,
                      .first = i * row_blocks},
                     row_blocks, values.data());
        else
          unpack_blocks(type, blocks, row_blocks, values.data());
        check(part, part.begin + i, part.begin + i + 1, values.data());
        return blocks;
      };
      source.packed.push_back(std::move(*packed));
    }
    source.keep_packed = keep_packed_ && !source.packed.empty();
    for (const auto& [type, count] : types) {
      if (source.keep_packed) packed_[packed_block(type).name] += count;
      // NF4 is not expanded on the way: `read` gives the values.
      if (!source.keep_packed && type == PackedType::kNf4) source.packed.clear();
    }
    std::unique_ptr<const FrozenMatrix> frozen = device_.freeze(source, dtype_);
    content_hash_ += hash.load();
    // Rounded to f32 far above the order-dependent last bits of the double sum.
    if (measure_rms) rms_ = static_cast<float>(std::sqrt(sum / static_cast<double>(rows * cols)));
    bytes_ += frozen->bytes();
    step(static_cast<int64_t>(names.size()));
    return frozen;
  }

  // Concatenates vectors; names that the file does not have are an error unless all are absent and
  // `optional`.
  FrozenVector vector(const std::vector<std::string>& names, bool optional = false) {
    std::vector<float> values;
    for (const std::string& name : names) {
      if (optional && !weights_.has(name)) return {};
      const TensorEntry& entry = find(name);
      const size_t at = values.size();
      values.resize(at + static_cast<size_t>(entry.shape.count()));
      weights_.read_rows(name, 0, 1, values.data() + at);
      for (size_t i = at; i < values.size(); ++i)
        if (!std::isfinite(values[i]))
          fail(
              "{}: tensor {} holds a value that is not finite at index {}; the file is damaged or was saved "
              "after a "
              "diverged run",
              weights_.path(), name, i - at);
      parameters_ += entry.shape.count();
    }
    content_hash_ += hash_row(values.data(), static_cast<int64_t>(values.size()), salt_++ << 32);
    FrozenVector v(device_, values);
    bytes_ += v.bytes();
    step(static_cast<int64_t>(names.size()));
    return v;
  }

  int64_t parameters_ = 0, bytes_ = 0;
  std::map<std::string, int64_t> packed_;  // parameters by the type of their blocks
  uint64_t content_hash_ = 0;
  float rms_ = 0.0f;

 private:
  const TensorEntry& find(const std::string& name) const {
    for (const TensorEntry& entry : weights_.tensors())
      if (entry.name == name) return entry;
    fail("{}: no tensor {}", weights_.path(), name);
  }
  void step(int64_t n) {
    done_ += n;
    if (progress_) progress_(done_, total_);
  }

  Device& device_;
  const Weights& weights_;
  DType dtype_;
  const std::function<void(int64_t, int64_t)>& progress_;
  bool keep_packed_;
  int64_t done_ = 0, total_ = 0;
  uint64_t salt_ = 1;
};

}  // namespace

std::unique_ptr<const Llama> Llama::load(Device& device, std::shared_ptr<const Weights> weights, DType dtype,
                                         const std::function<void(int64_t, int64_t)>& progress,
                                         bool keep_packed) {
  GT_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "a model runs in f32 or bf16, not {}",
           dtype_name(dtype));
  std::unique_ptr<Llama> m(new Llama());
  m->device_ = &device;
  m->config_ = weights->config();
  m->dtype_ = dtype;
  Loader load(device, *weights, dtype, progress, keep_packed);
  m->embedding_ = load.matrix({"model.embed_tokens.weight"}, true, true);
  m->embedding_rms_ = load.rms_;
  for (int64_t i = 0; i < m->config_.num_layers; ++i) {
    const std::string p = fmt::format("model.layers.{}.", i), att = p + "self_attn.", mlp = p + "mlp.";
    LlamaLayer layer;
    layer.attention_gain = load.vector({p + "input_layernorm.weight"});
    layer.qkv = load.matrix({att + "q_proj.weight", att + "k_proj.weight", att + "v_proj.weight"});
    layer.qkv_bias = load.vector({att + "q_proj.bias", att + "k_proj.bias", att + "v_proj.bias"}, true);
    layer.o = load.matrix({att + "o_proj.weight"});
    layer.o_bias = load.vector({att + "o_proj.bias"}, true);
    layer.mlp_gain = load.vector({p + "post_attention_layernorm.weight"});
    layer.gate_up = load.matrix({mlp + "gate_proj.weight", mlp + "up_proj.weight"});
    layer.gate_up_bias = load.vector({mlp + "gate_proj.bias", mlp + "up_proj.bias"}, true);
    layer.down = load.matrix({mlp + "down_proj.weight"});
    layer.down_bias = load.vector({mlp + "down_proj.bias"}, true);
    m->layers_.push_back(std::move(layer));
  }
  m->final_gain_ = load.vector({"model.norm.weight"});
  if (!m->config_.tie_word_embeddings) m->head_ = load.matrix({"lm_head.weight"}, false, true);
  m->inv_freq_ = FrozenVector(device, rope_inverse_frequencies(m->config_));
  m->parameters_ = load.parameters_;
  m->weight_bytes_ = load.bytes_ + device.expansion_bytes();
  for (const auto& [name, count] : load.packed_) {
    m->packed_parameters_ += count;
    m->packing_ += fmt::format("{}{} ({:.1f} M)", m->packing_.empty() ? "" : ", ", name,
                               static_cast<double>(count) * 1e-6);
  }
  if (m->packing_.empty()) m->packing_ = "nothing";
  m->content_hash_ = load.content_hash_;
  m->weights_ = std::move(weights);
  return m;
}

std::unique_ptr<const Llama> Llama::over(Device& device, const Llama& base, const Values& values) {
  std::unique_ptr<Llama> m(new Llama());
  m->device_ = &device;
  m->config_ = base.config_;
  m->dtype_ = DType::kF32;
  m->embedding_ = device.matrix_over(values.embedding);
  m->embedding_rms_ = base.embedding_rms_;
  for (const Values::Layer& v : values.layers) {
    LlamaLayer layer;
    layer.attention_gain = FrozenVector(v.attention_gain);
    layer.qkv = device.matrix_over(v.qkv);
    layer.qkv_bias = FrozenVector(v.qkv_bias);
    layer.o = device.matrix_over(v.o);
    layer.o_bias = FrozenVector(v.o_bias);
    layer.mlp_gain = FrozenVector(v.mlp_gain);
    layer.gate_up = device.matrix_over(v.gate_up);
    layer.gate_up_bias = FrozenVector(v.gate_up_bias);
    layer.down = device.matrix_over(v.down);
    layer.down_bias = FrozenVector(v.down_bias);
    m->layers_.push_back(std::move(layer));
  }
  m->final_gain_ = FrozenVector(values.final_gain);
  if (!values.head.empty()) m->head_ = device.matrix_over(values.head);
  m->inv_freq_ = FrozenVector(base.inv_freq_.view());
  m->parameters_ = base.parameters_;
  m->content_hash_ = base.content_hash_;
  m->weights_ = base.weights_;
  return m;
}

std::vector<float> Llama::embedding_rows(const std::vector<int32_t>& ids) const {
  for (int32_t id : ids)
    GT_CHECK(id >= 0 && id < config_.vocab_size, "token {} outside the vocabulary of {}", id,
             config_.vocab_size);
  const int64_t n = static_cast<int64_t>(ids.size());
  if (n == 0) return {};
  OwnedTensor tokens(*device_, DType::kI32, {n}), rows(*device_, DType::kF32, {n, config_.hidden_size});
  device_->copy_in(tokens, ids.data());
  embed_forward(*device_, {.table = embedding_.get(), .tokens = tokens, .prompt = {}, .x = rows});
  std::vector<float> host(static_cast<size_t>(n * config_.hidden_size));
  device_->copy_out(host.data(), rows);
  return host;
}

uint64_t Llama::memory_hash() const {
  uint64_t h = 0;
  uint64_t place = 1;
  auto add = [&](const FrozenMatrix& m) { h += device_->hash(m) * (2 * place++ + 1); };
  auto add_vector = [&](const FrozenVector& v) {
    if (v.view().empty()) return;
    std::vector<float> host(static_cast<size_t>(v.view().count()));
    device_->copy_out(host.data(), v);
    h += hash_row(host.data(), static_cast<int64_t>(host.size()), place++ << 32);
  };
  add(*embedding_);
  if (head_) add(*head_);
  add_vector(final_gain_);
  for (const LlamaLayer& layer : layers_) {
    for (const FrozenMatrix* m : {layer.qkv.get(), layer.o.get(), layer.gate_up.get(), layer.down.get()})
      add(*m);
    for (const FrozenVector* v : {&layer.attention_gain, &layer.qkv_bias, &layer.o_bias, &layer.mlp_gain,
                                  &layer.gate_up_bias, &layer.down_bias})
      add_vector(*v);
  }
  return h;
}

}  // namespace gantrain
