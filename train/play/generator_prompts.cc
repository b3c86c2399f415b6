#include "train/play/generator_prompts.h"

#include "core/rng.h"

namespace gantrain {

Prompts GeneratorPrompts::make(ExampleSpan inputs, uint64_t noise_key, std::span<const int64_t> places) {
  GT_CHECK(places.empty() || places.size() == inputs.size(), "{} places of {} inputs", places.size(),
           inputs.size());
  Device& device = runner_.device();
  const int64_t b = static_cast<int64_t>(inputs.size());
  input_ = GeneratorInput();
  input_.batch = b;
  if (generator_.reads_input()) {
    // States of the inputs alone: the frozen model reads them without a prompt, up to the feature layer.
    PackedBatch batch;
    std::vector<int32_t> rows;
    for (const TokenizedExample* e : inputs) {
      const int32_t s = batch.add(-1, e->prompt);
      GT_CHECK(!e->prompt.empty(), "line {}: a conditional generator needs a non-empty input", e->line);
      input_.spans.push_back({batch.segment(s).row_begin, batch.segment(s).rows});
    }
    for (int32_t i = 0; i < batch.rows(); ++i) rows.push_back(i);
    runner_.forward(batch, {}, Saving::kNothing, static_cast<int>(feature_layer_));
    features_ = runner_.output_rows(rows);
    input_.features = features_.view();
  }
  if (const int64_t z = generator_.noise_dim(); z > 0) {
    // Noise of an input depends on the key and its place in the call.
    std::vector<float> noise(static_cast<size_t>(b * z));
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < z; ++j) {
        const int64_t place = places.empty() ? i : places[static_cast<size_t>(i)];
        const auto words = Philox{noise_key}(static_cast<uint64_t>(place), static_cast<uint64_t>(j));
        noise[static_cast<size_t>(i * z + j)] = normal_pair(words[0], words[1])[0];
      }
    noise_ = OwnedTensor(device, DType::kF32, {b, z});
    device.copy_in(noise_, noise.data());
    input_.noise = noise_.view();
  }
  Prompts out;
  out.count = generator_.prompt_length();
  out.rows = generator_.forward(input_);
  out.adapter = generator_.adapter();
  const int64_t groups = generator_.prompts(b);
  for (int64_t i = 0; i < b; ++i) out.first.push_back(groups == 1 ? 0 : i * out.count);
  return out;
}

std::vector<int32_t> text_tokens(const std::vector<int32_t>& text, int64_t length) {
  if (text.empty())
    fail("generator.init_text has no token; give a text, or set generator.init = \"vocabulary\"");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) ids.push_back(text[static_cast<size_t>(i) % text.size()]);
  return ids;
}

std::vector<int32_t> vocabulary_tokens(const Llama& llama, int64_t length, uint64_t key) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) {
    const uint64_t word = Philox{key}(0, static_cast<uint64_t>(i))[0];
    ids.push_back(static_cast<int32_t>(word * static_cast<uint64_t>(llama.config().vocab_size) >> 32));
  }
  return ids;
}

std::vector<float> keys_and_values(Device& device, const Llama& llama, const std::vector<int32_t>& ids) {
  const LlamaConfig& c = llama.config();
  const auto p = static_cast<int64_t>(ids.size());
  const int64_t layers = c.num_layers, width = c.num_kv_heads * c.head_dim;
  PackedBatch batch;
  batch.add(-1, ids);
  KvCache cache(device, llama, p);
  std::vector<int32_t> slots(ids.size());
  for (int32_t i = 0; i < static_cast<int32_t>(slots.size()); ++i) slots[static_cast<size_t>(i)] = i;
  Runner(device, llama).fill(batch, cache, slots);
  std::vector<float> table(static_cast<size_t>(p * 2 * layers * width));
  const auto put = [&](const OwnedTensor& from, int64_t part) {
    const ConstTensor t = from.view();
    const auto spread = [&]<typename S>(const S*) {
      std::vector<S> host(static_cast<size_t>(t.count()));
      device.copy_out(host.data(), t);
      for (int64_t i = 0; i < p; ++i)
        for (int64_t j = 0; j < width; ++j)
          table[static_cast<size_t>((i * 2 * layers + part) * width + j)] =
              static_cast<float>(host[static_cast<size_t>(i * width + j)]);
    };
    if (t.dtype() == DType::kF32)
      spread(static_cast<const float*>(nullptr));
    else if (t.dtype() == DType::kBF16)
      spread(static_cast<const bf16*>(nullptr));
    else
      spread(static_cast<const f16*>(nullptr));
  };
  for (int64_t l = 0; l < layers; ++l) {
    put(cache.k[static_cast<size_t>(l)], 2 * l);
    put(cache.v[static_cast<size_t>(l)], 2 * l + 1);
  }
  return table;
}

}  // namespace gantrain
