// open_weights: the three formats seen through Hugging Face names, and every way a model can be incomplete.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/ops.h"
#include "core/rng.h"
#include "model/formats/gguf.h"
#include "model/formats/safetensors.h"
#include "model/runner.h"
#include "model/weights.h"
#include "tests/model/formats_support.h"
#include "tests/support/devices.h"
#include "tests/support/paths.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::append;
using test::GgufBuilder;
using test::message_of;

// Two layers, GQA, head_dim that is not hidden / heads, biases, untied.
LlamaConfig small_config() {
  LlamaConfig c;
  c.vocab_size = 11;
  c.hidden_size = 8;
  c.intermediate_size = 12;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 6;
  c.max_position_embeddings = 16;
  c.rms_norm_eps = 1e-5f;
  c.attention_bias = c.mlp_bias = true;
  return c;
}
json config_json(const LlamaConfig& c) {
  return {{"model_type", "llama"},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_hidden_layers", c.num_layers},
          {"num_attention_heads", c.num_heads},
          {"num_key_value_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", c.max_position_embeddings},
          {"tie_word_embeddings", c.tie_word_embeddings},
          {"attention_bias", c.attention_bias},
          {"mlp_bias", c.mlp_bias}};
}

// Values small enough to be exact in f16 and bf16, different in every tensor.
struct Model {
  LlamaConfig config;
  std::vector<TensorEntry> entries;
  std::map<std::string, std::vector<float>> values;
  explicit Model(const LlamaConfig& c) : config(c), entries(expected_tensors(c)) {
    for (const TensorEntry& e : entries) add(e.name, e.shape);
  }
  void add(const std::string& name, Shape shape) {
    std::vector<float>& v = values[name];
    const Philox rng{derive_key(7, values.size())};
    for (int64_t i = 0; i < shape.count(); ++i)
      v.push_back(static_cast<float>(rng(0, static_cast<uint64_t>(i))[0] % 255) / 64.0f - 2.0f);
  }
  std::vector<NamedTensor> named() const {
    std::vector<NamedTensor> out;
    for (const TensorEntry& e : entries)
      out.push_back({e.name, ConstTensor(values.at(e.name).data(), DType::kF32, e.shape)});
    return out;
  }
};

void expect_same_rows(const Weights& weights, const Model& model) {
  ASSERT_EQ(weights.tensors().size(), model.entries.size());
  for (const TensorEntry& e : model.entries) {
    ASSERT_TRUE(weights.has(e.name)) << e.name;
    const std::vector<float>& expected = model.values.at(e.name);
    std::vector<float> all(expected.size());
    const int64_t rows = e.shape.rank == 1 ? 1 : e.shape[0], cols = e.shape.count() / rows;
    weights.read_rows(e.name, 0, rows, all.data());
    EXPECT_EQ(all, expected) << e.name;
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<float> row(static_cast<size_t>(cols));
      weights.read_rows(e.name, r, 1, row.data());
      EXPECT_TRUE(std::equal(row.begin(), row.end(), expected.begin() + r * cols)) << e.name << " row " << r;
    }
    EXPECT_THROW(weights.read_rows(e.name, rows, 1, all.data()), Error) << e.name;
  }
}

class FormatsWeights : public ::testing::Test {
 protected:
  void write_config(const LlamaConfig& c) { folder_.write("config.json", config_json(c).dump()); }
  void write_all(const Model& m, const char* name = "model.safetensors") {
    write_config(m.config);
    write_safetensors(folder_.file(name), m.named());
  }
  std::string refusal() {
    return message_of([&] { open_weights(folder_.path()); });
  }
  test::TemporaryFolder folder_;
};

TEST_F(FormatsWeights, FolderOfOneFile) {
  const Model m(small_config());
  write_all(m);
  const auto w = open_weights(folder_.path());
  EXPECT_EQ(w->format(), "safetensors");
  EXPECT_EQ(w->path(), folder_.path());
  EXPECT_TRUE(w->notes().empty());
  expect_same_rows(*w, m);
  const ConstTensor d = w->direct("model.layers.1.mlp.up_proj.weight");
  ASSERT_FALSE(d.empty());
  EXPECT_EQ(d.shape(), (Shape{12, 8}));
  EXPECT_EQ(std::memcmp(d.raw(), m.values.at("model.layers.1.mlp.up_proj.weight").data(), 12 * 8 * 4), 0);
}

TEST_F(FormatsWeights, HalfTypesAreWidened) {
  const Model m(small_config());
  for (const DType type : {DType::kF16, DType::kBF16}) {
    std::vector<std::vector<uint16_t>> bits;
    bits.reserve(m.entries.size());
    std::vector<NamedTensor> tensors;
    for (const TensorEntry& e : m.entries) {
      bits.emplace_back();
      for (float v : m.values.at(e.name))
        bits.back().push_back(type == DType::kF16 ? f16(v).bits : bf16(v).bits);
      tensors.push_back({e.name, ConstTensor(bits.back().data(), type, e.shape)});
    }
    write_config(m.config);
    write_safetensors(folder_.file("model.safetensors"), tensors);
    const auto w = open_weights(folder_.path());
    expect_same_rows(*w, m);
    EXPECT_EQ(w->tensors()[0].stored_type, dtype_name(type));
    EXPECT_EQ(w->direct("model.norm.weight").dtype(), type);
  }
}

// A header of odd length puts every tensor at an odd address: it is read, and never handed out as it lies.
TEST_F(FormatsWeights, UnalignedTensorsAreReadNotLent) {
  const Model m(small_config());
  write_all(m);
  std::string bytes = test::read_all(folder_.file("model.safetensors"));
  uint64_t n = 0;
  std::memcpy(&n, bytes.data(), 8);
  bytes.insert(8 + n, 1, ' ');
  ++n;
  std::memcpy(bytes.data(), &n, 8);
  folder_.write("model.safetensors", bytes);
  const auto w = open_weights(folder_.path());
  expect_same_rows(*w, m);
  EXPECT_TRUE(w->direct("model.norm.weight").empty());
}

TEST_F(FormatsWeights, Shards) {
  const Model m(small_config());
  write_config(m.config);
  std::vector<NamedTensor> part[2];
  json map;
  for (size_t i = 0; i < m.named().size(); ++i) {
    part[i % 2].push_back(m.named()[i]);
    map[m.named()[i].name] = fmt::format("model-0000{}-of-00002.safetensors", i % 2 + 1);
  }
  for (int i = 0; i < 2; ++i)
    write_safetensors(folder_.file(fmt::format("model-0000{}-of-00002.safetensors", i + 1)), part[i]);
  auto write_index = [&](const json& weight_map) {
    folder_.write("model.safetensors.index.json", json{{"metadata", {}}, {"weight_map", weight_map}}.dump());
  };
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "2 safetensors files and no model.safetensors.index.json");
  write_index(map);
  expect_same_rows(*open_weights(folder_.path()), m);

  const std::string first = m.named()[0].name;
  auto changed = [&](const std::string& name, const json& value) {
    json copy = map;
    copy[name] = value;
    write_index(copy);
    return refusal();
  };
  GT_EXPECT_MESSAGE(changed("extra.weight", map[first]), folder_.path(),
                    "places 'extra.weight' in model-00001");
  GT_EXPECT_MESSAGE(changed(first, "model-00002-of-00002.safetensors"), folder_.path(),
                    "which the index places in");
  GT_EXPECT_MESSAGE(changed(first, "model-00009-of-00002.safetensors"), folder_.path(), "");
  GT_EXPECT_MESSAGE(changed(first, "../model.safetensors"), folder_.path(), "is not a plain file name");
  GT_EXPECT_MESSAGE(changed(first, ".."), folder_.path(), "is not a plain file name");
  GT_EXPECT_MESSAGE(changed(first, 5), folder_.path(), "expected a file name, got number");
  json without = map;
  without.erase(first);
  write_index(without);
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "which the index does not name");
  folder_.write("model.safetensors.index.json", "{\"weight_map\": []}");
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "expected an object with 'weight_map'");
  folder_.write("model.safetensors.index.json", "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}");
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "key 'a' stands twice");
  folder_.write("model.safetensors.index.json", "{");
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "index.json: not valid JSON");
}

TEST_F(FormatsWeights, MissingMisshapenAndUnexpectedAreListedTogether) {
  Model m(small_config());
  std::vector<NamedTensor> tensors = m.named();
  auto erase = [&](const char* name) {
    tensors.erase(
        std::find_if(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; }));
  };
  erase("model.layers.0.self_attn.k_proj.bias");
  erase("lm_head.weight");
  for (NamedTensor& t : tensors)
    if (t.name == "model.layers.1.mlp.down_proj.weight") t.tensor = t.tensor.view({12, 8});  // transposed
  const std::vector<float> extra(4);
  tensors.push_back({"model.layers.2.mlp.gate_proj.weight", ConstTensor(extra.data(), DType::kF32, {2, 2})});
  write_config(m.config);
  write_safetensors(folder_.file("model.safetensors"), tensors);
  const std::string message = refusal();
  GT_EXPECT_MESSAGE(message, folder_.path(), "missing (2):");
  for (const char* part :
       {"model.layers.0.self_attn.k_proj.bias", "lm_head.weight",
        "of the wrong shape (1):", "model.layers.1.mlp.down_proj.weight: expected (8, 12), got (12, 8)",
        "unexpected (1):", "model.layers.2.mlp.gate_proj.weight"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
}

// A list of what is missing would have 20 of 9,200 names.
TEST_F(FormatsWeights, FewerTensorsThanLayersAreRefusedAtOnce) {
  const Model m(small_config());
  LlamaConfig c = m.config;
  c.num_layers = 1000;
  write_config(c);
  write_safetensors(folder_.file("model.safetensors"), m.named());
  GT_EXPECT_MESSAGE(
      refusal(), folder_.path(),
      fmt::format("the configuration has 1000 layers, and there are {} tensors", m.named().size()));
}

TEST_F(FormatsWeights, HarmlessTensorsAreNoted) {
  LlamaConfig c = small_config();
  c.tie_word_embeddings = true;
  const Model m(c);
  std::vector<NamedTensor> tensors = m.named();
  const std::vector<float> extra(11 * 8);
  tensors.push_back({"lm_head.weight", ConstTensor(extra.data(), DType::kF32, {11, 8})});
  tensors.push_back(
      {"model.layers.0.self_attn.rotary_emb.inv_freq", ConstTensor(extra.data(), DType::kF32, {3})});
  write_config(c);
  write_safetensors(folder_.file("model.safetensors"), tensors);
  const auto w = open_weights(folder_.path());
  ASSERT_EQ(w->notes().size(), 2u);
  EXPECT_EQ(w->notes()[0], "lm_head.weight: not used (the head is tied to the embedding)");
  EXPECT_EQ(w->notes()[1],
            "model.layers.0.self_attn.rotary_emb.inv_freq: not used (frequencies are computed)");
  EXPECT_FALSE(w->has("lm_head.weight"));
  expect_same_rows(*w, m);
}

TEST_F(FormatsWeights, FoldersThatAreNoModel) {
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "no config.json in this folder");
  write_config(small_config());
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "no *.safetensors");
  const std::vector<int32_t> ids(4);
  write_safetensors(folder_.file("model.safetensors"), {{"w", ConstTensor(ids.data(), DType::kI32, {4})}});
  GT_EXPECT_MESSAGE(refusal(), folder_.path(), "'w': expected F32, F16 or BF16 weights, got i32");
  const std::string file = folder_.file("model.safetensors"), absent = folder_.file("absent");
  GT_EXPECT_MESSAGE(message_of([&] { open_weights(file); }), file, "give the folder");
  GT_EXPECT_MESSAGE(message_of([&] { open_weights(absent); }), absent, "no such file or folder");
  GT_EXPECT_MESSAGE(message_of([&] { open_weights("/dev/null"); }), "/dev/null",
                    "neither a folder nor a regular");
}

// --- llama2.c

// The model's bytes as llama2.c version 0 has them: kind by kind, q and k in adjacent pairs.
std::vector<float> pairs(const std::vector<float>& half_split, int64_t heads, int64_t d, int64_t cols) {
  std::vector<float> out(half_split.size());
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < d / 2; ++j)
      for (int64_t side = 0; side < 2; ++side)
        for (int64_t x = 0; x < cols; ++x)
          out[static_cast<size_t>((h * d + 2 * j + side) * cols + x)] =
              half_split[static_cast<size_t>((h * d + side * (d / 2) + j) * cols + x)];
  return out;
}
std::string llama2c_bytes(const Model& m) {
  const LlamaConfig& c = m.config;
  std::string out;
  const int64_t vocab = c.tie_word_embeddings ? c.vocab_size : -c.vocab_size;
  for (int64_t x : {c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads, vocab,
                    c.max_position_embeddings})
    append(out, static_cast<int32_t>(x));
  auto put = [&](const std::vector<float>& v) {
    out.append(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float));
  };
  auto each = [&](const char* part, int64_t heads = 0) {
    for (int64_t i = 0; i < c.num_layers; ++i) {
      const auto& v = m.values.at(fmt::format("model.layers.{}.{}.weight", i, part));
      put(heads ? pairs(v, heads, c.head_dim, c.hidden_size) : v);
    }
  };
  put(m.values.at("model.embed_tokens.weight"));
  each("input_layernorm");
  each("self_attn.q_proj", c.num_heads);
  each("self_attn.k_proj", c.num_kv_heads);
  each("self_attn.v_proj");
  each("self_attn.o_proj");
  each("post_attention_layernorm");
  each("mlp.gate_proj");
  each("mlp.down_proj");
  each("mlp.up_proj");
  put(m.values.at("model.norm.weight"));
  put(std::vector<float>(static_cast<size_t>(c.max_position_embeddings * c.head_dim), 0.5f));  // cos and sin
  if (!c.tie_word_embeddings) put(m.values.at("lm_head.weight"));
  return out;
}
LlamaConfig llama2c_config(bool tied) {
  LlamaConfig c = small_config();
  c.attention_bias = c.mlp_bias = false;
  c.tie_word_embeddings = tied;
  c.hidden_size = 16;
  c.head_dim = 4;
  return c;
}

TEST_F(FormatsWeights, Llama2cTiedAndUntied) {
  for (bool tied : {true, false}) {
    const Model m(llama2c_config(tied));
    const auto w = open_weights(folder_.write("m.bin", llama2c_bytes(m)));
    EXPECT_EQ(w->format(), "llama2c");
    EXPECT_EQ(w->config().tie_word_embeddings, tied);
    EXPECT_EQ(w->config().vocab_size, 11);
    EXPECT_EQ(w->config().rms_norm_eps, 1e-5f);
    EXPECT_EQ(w->has("lm_head.weight"), !tied);
    expect_same_rows(*w, m);
    EXPECT_TRUE(w->direct("model.layers.0.self_attn.q_proj.weight").empty())
        << "its rows lie in another order";
    EXPECT_FALSE(w->direct("model.layers.0.self_attn.v_proj.weight").empty());
    ASSERT_EQ(w->notes().size(), 1u);
    EXPECT_NE(w->notes()[0].find("freqs_cos"), std::string::npos);
  }
}

TEST_F(FormatsWeights, Llama2cOfTheWrongSize) {
  const std::string whole = llama2c_bytes(Model(llama2c_config(false)));
  const std::string path = folder_.file("m.bin");
  for (size_t n = 0; n < whole.size(); n += n < 64 ? 1 : 97) {
    SCOPED_TRACE(n);
    folder_.write("m.bin", whole.substr(0, n));
    GT_EXPECT_MESSAGE(message_of([&] { open_weights(path); }), path, "");
  }
  folder_.write("m.bin", whole.substr(0, whole.size() - 4));
  GT_EXPECT_MESSAGE(message_of([&] { open_weights(path); }), path, "'lm_head.weight' ends at byte");
  folder_.write("m.bin", whole + "1234");
  GT_EXPECT_MESSAGE(message_of([&] { open_weights(path); }), path,
                    fmt::format("has {} bytes, the file has {}", whole.size(), whole.size() + 4));
}

TEST_F(FormatsWeights, Llama2cHeadersThatLie) {
  const std::string whole = llama2c_bytes(Model(llama2c_config(true)));
  const std::string path = folder_.file("m.bin");
  auto with = [&](size_t field, int32_t value) {
    std::string bytes = whole;
    std::memcpy(bytes.data() + 4 * field, &value, 4);
    folder_.write("m.bin", bytes);
    return message_of([&] { open_weights(path); });
  };
  GT_EXPECT_MESSAGE(with(0, 0x616b3432), path, "export version 0");
  for (size_t field = 0; field < 7; ++field)
    for (int32_t value : {0, -1, 1 << 16, INT32_MAX, INT32_MIN}) {
      SCOPED_TRACE(fmt::format("field {} value {}", field, value));
      GT_EXPECT_MESSAGE(with(field, value), path, "");
    }
  folder_.write("m.bin", "this is a text file and no model at all, really");
  GT_EXPECT_MESSAGE(message_of([&] { open_weights(path); }), path, "llama2.c version 0");
}

// --- GGUF

GgufBuilder gguf_metadata(const LlamaConfig& c) {
  GgufBuilder b;
  b.text("general.architecture", "llama");
  auto put = [&](const char* key, int64_t v) {
    b.scalar(std::string("llama.") + key, 4, static_cast<uint32_t>(v));
  };
  put("embedding_length", c.hidden_size), put("block_count", c.num_layers);
  put("feed_forward_length", c.intermediate_size), put("attention.head_count", c.num_heads);
  put("attention.head_count_kv", c.num_kv_heads), put("attention.key_length", c.head_dim);
  put("attention.value_length", c.head_dim), put("rope.dimension_count", c.head_dim);
  put("context_length", c.max_position_embeddings);
  b.scalar("llama.attention.layer_norm_rms_epsilon", 6, c.rms_norm_eps);
  b.scalar("llama.rope.freq_base", 6, 5e5f);
  b.scalar("tokenizer.ggml.bos_token_id", 4, uint32_t{1});
  b.scalar("tokenizer.ggml.eos_token_id", 4, uint32_t{2});
  b.scalar("tokenizer.ggml.eot_token_id", 4, uint32_t{3});
  return b;
}
std::string gguf_name(std::string name) {
  const std::pair<const char*, const char*> kParts[] = {{"model.embed_tokens", "token_embd"},
                                                        {"model.norm", "output_norm"},
                                                        {"lm_head", "output"},
                                                        {"model.layers.", "blk."},
                                                        {"input_layernorm", "attn_norm"},
                                                        {"post_attention_layernorm", "ffn_norm"},
                                                        {"self_attn.q_proj", "attn_q"},
                                                        {"self_attn.k_proj", "attn_k"},
                                                        {"self_attn.v_proj", "attn_v"},
                                                        {"self_attn.o_proj", "attn_output"},
                                                        {"mlp.gate_proj", "ffn_gate"},
                                                        {"mlp.up_proj", "ffn_up"},
                                                        {"mlp.down_proj", "ffn_down"}};
  for (const auto& [from, to] : kParts)
    if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, std::strlen(from), to);
  return name;
}
void put_gguf(GgufBuilder& b, const Model& m, const std::string& name, const Shape& shape) {
  std::vector<float> v = m.values.at(name);
  const LlamaConfig& c = m.config;
  const int64_t cols = shape.rank == 1 ? 1 : shape[1];
  if (name.find("q_proj") != std::string::npos) v = pairs(v, c.num_heads, c.head_dim, cols);
  if (name.find("k_proj") != std::string::npos) v = pairs(v, c.num_kv_heads, c.head_dim, cols);
  std::vector<uint64_t> ne;
  for (int i = shape.rank - 1; i >= 0; --i) ne.push_back(static_cast<uint64_t>(shape[i]));
  b.tensor(gguf_name(name), ne, 0,
           std::string_view(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float)));
}

TEST_F(FormatsWeights, GgufWithBiasesAndFactors) {
  const Model m(small_config());
  GgufBuilder b = gguf_metadata(m.config);
  for (const TensorEntry& e : m.entries) put_gguf(b, m, e.name, e.shape);
  std::string factors;
  for (float f : {1.0f, 2.0f, 8.0f}) append(factors, f);
  b.tensor("rope_freqs.weight", {3}, 0, factors);
  const auto w = open_weights(folder_.write("m.gguf", b.bytes()));
  EXPECT_EQ(w->format(), "gguf");
  const LlamaConfig& c = w->config();
  EXPECT_EQ(c.head_dim, 6);
  EXPECT_EQ(c.rope.theta, 5e5);
  EXPECT_EQ(c.rope.factors, (std::vector<float>{1.0f, 2.0f, 8.0f}));
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{2, 3}));
  EXPECT_TRUE(c.attention_bias && c.mlp_bias && !c.tie_word_embeddings);
  expect_same_rows(*w, m);
  EXPECT_TRUE(w->direct("model.layers.0.self_attn.k_proj.weight").empty());
  EXPECT_TRUE(w->direct("model.layers.0.self_attn.k_proj.bias").empty());
}

TEST_F(FormatsWeights, GgufThatDoesNotFit) {
  const Model m(small_config());
  const std::string path = folder_.file("m.gguf");
  // The whole model, with one change to the metadata and one tensor left out or added.
  using Change = std::function<void(GgufBuilder&)>;
  auto refuse = [&](const Change& metadata, const std::string& without, const Change& more) {
    GgufBuilder b;
    metadata(b);
    for (const TensorEntry& e : m.entries)
      if (e.name != without) put_gguf(b, m, e.name, e.shape);
    more(b);
    folder_.write("m.gguf", b.bytes());
    return message_of([&] { open_weights(path); });
  };
  const Change none = [](GgufBuilder&) {};
  auto refused = [&](const Change& metadata) { return refuse(metadata, "", none); };
  auto plain = [&](GgufBuilder& b) { b = gguf_metadata(m.config); };
  auto plus = [&](auto change) {
    return [&, change](GgufBuilder& b) {
      b = gguf_metadata(m.config);
      change(b);
    };
  };
  GT_EXPECT_MESSAGE(refused([](GgufBuilder& b) { b.text("general.architecture", "qwen2"); }), path,
                    "general.architecture 'qwen2' is not supported; supported: llama");
  GT_EXPECT_MESSAGE(refused([](GgufBuilder&) {}), path, "'general.architecture' is missing");
  GT_EXPECT_MESSAGE(refused([](GgufBuilder& b) { b.text("general.architecture", "llama"); }), path,
                    "'llama.embedding_length' is missing; expected an integer");
  GT_EXPECT_MESSAGE(refused(plus([](GgufBuilder& b) { b.text("llama.rope.scaling.type", "yarn"); })), path,
                    "'yarn'");
  GT_EXPECT_MESSAGE(refused(plus([](GgufBuilder& b) { b.scalar("llama.expert_count", 4, uint32_t{8}); })),
                    path, "mixtures of experts");
  GT_EXPECT_MESSAGE(refuse(plain, "model.layers.1.self_attn.q_proj.weight", none), path,
                    "model.layers.1.self_attn.q_proj.weight");
  GT_EXPECT_MESSAGE(refuse(plain, "model.embed_tokens.weight", none), path, "no tensor 'token_embd.weight'");
  GT_EXPECT_MESSAGE(
      refuse(plain, "", [](GgufBuilder& b) { b.tensor("blk.0.attn_rot.weight", {1}, 0, "1234"); }), path,
      "blk.0.attn_rot.weight");
  GT_EXPECT_MESSAGE(refuse(plain, "", [](GgufBuilder& b) { b.tensor("rope_freqs.weight", {1}, 0, "1234"); }),
                    path, "rope_freqs.weight: expected 3 factors");
  GT_EXPECT_MESSAGE(
      refuse(plain, "", [](GgufBuilder& b) { b.tensor("rope_freqs.weight", {3}, 0, std::string(12, '\0')); }),
      path, "expected positive factors, got 0");
}

TEST_F(FormatsWeights, GgufHeadWithoutOutputIsTied) {
  LlamaConfig c = small_config();
  c.tie_word_embeddings = true;
  c.attention_bias = c.mlp_bias = false;
  const Model m(c);
  GgufBuilder b = gguf_metadata(c);
  for (const TensorEntry& e : m.entries) put_gguf(b, m, e.name, e.shape);
  const auto w = open_weights(folder_.write("m.gguf", b.bytes()));
  EXPECT_TRUE(w->config().tie_word_embeddings);
  EXPECT_FALSE(w->config().attention_bias || w->config().mlp_bias);
  expect_same_rows(*w, m);
}

// --- against the outside packages: make_gguf_fixture.py writes the files and what they must read as

// Logits of every position of a short text.
std::vector<float> outputs(const std::string& path) {
  const auto device = test::make_cpu(1);
  const auto llama = Llama::load(*device, open_weights(path), DType::kF32);
  PackedBatch batch;
  batch.add(-1, std::vector<int32_t>{1, 4, 9, 2, 5, 3, 7});
  Runner runner(*device, *llama);
  runner.forward(batch, {}, Saving::kNothing);
  const std::vector<int32_t> all{0, 1, 2, 3, 4, 5, 6};
  const OwnedTensor rows = upload(*device, std::span<const int32_t>(all));
  OwnedTensor logits(*device, DType::kF32, {7, llama->config().vocab_size});
  HeadLogits op{.x = runner.output(),
                .rows = rows,
                .gain = llama->final_gain(),
                .w = &llama->head(),
                .eps = llama->config().rms_norm_eps,
                .logits = logits,
                .scratch = {}};
  OwnedTensor scratch(*device, DType::kU8, {std::max<int64_t>(1, head_logits_scratch(*device, op))});
  op.scratch = scratch;
  head_logits(*device, op);
  return download(*device, logits);
}

TEST_F(FormatsWeights, SlowAgainstTheGgufAndSafetensorsPackages) {
  const fs::path source = test::source_folder();
  const fs::path stories = test::data_folder() / "ci" / "stories260K" / "stories260K.bin";
  std::string command = fmt::format("'{}' witness '{}' '{}'", (source / "tools/venv").string(),
                                    (source / "tests/model/make_gguf_fixture.py").string(), folder_.path());
  if (fs::exists(stories)) command += fmt::format(" '{}'", stories.string());
  ASSERT_EQ(std::system(command.c_str()), 0) << command;

  // Every block type, dequantised by the gguf package.
  const GgufFile blocks(folder_.file("blocks.gguf"));
  const SafetensorsFile expected(folder_.file("blocks.safetensors"));
  ASSERT_EQ(blocks.tensors().size(), 8u);
  for (const GgufFile::Tensor& t : blocks.tensors()) {
    const ConstTensor e = expected.tensor(t.name);
    ASSERT_EQ(e.shape(), t.shape) << t.name;
    std::vector<float> v(static_cast<size_t>(t.shape.count()));
    blocks.read_rows(t, 0, t.shape[0], v.data());
    EXPECT_EQ(std::memcmp(v.data(), e.raw(), v.size() * sizeof(float)), 0) << t.name;
    blocks.read_rows(t, 3, 2, v.data());
    EXPECT_EQ(std::memcmp(v.data(), e.data<float>() + 3 * t.shape[1], static_cast<size_t>(t.shape[1]) * 8), 0)
        << t.name;
  }

  // The same models in two formats, written by others.
  std::vector<std::pair<std::string, std::string>> twins{{folder_.file("llama"), folder_.file("llama.gguf")}};
  if (fs::exists(stories)) {
    twins.push_back({stories.string(), folder_.file("stories.gguf")});
    twins.push_back({stories.string(), folder_.file("stories")});
  }
  for (const auto& [one, other] : twins) {
    SCOPED_TRACE(one + " and " + other);
    const auto a = open_weights(one), b = open_weights(other);
    ASSERT_EQ(a->tensors().size(), b->tensors().size());
    for (const TensorEntry& e : a->tensors()) {
      ASSERT_TRUE(b->has(e.name)) << e.name;
      std::vector<float> x(static_cast<size_t>(e.shape.count())), y = x;
      const int64_t rows = e.shape.rank == 1 ? 1 : e.shape[0];
      a->read_rows(e.name, 0, rows, x.data());
      b->read_rows(e.name, 0, rows, y.data());
      EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << e.name;
    }
    // llama3's scaling stands in config.json for one and in rope_freqs.weight, rounded to f32, for the other.
    const std::vector<float> f = rope_inverse_frequencies(a->config()),
                             g = rope_inverse_frequencies(b->config());
    ASSERT_EQ(f.size(), g.size());
    for (size_t i = 0; i < f.size(); ++i)
      EXPECT_TRUE(std::abs(f[i] - g[i]) <= 2e-7f * f[i]) << i << ": " << f[i] << ' ' << g[i];
    // The same bits in, the same bits out.
    if (f == g) {
      EXPECT_EQ(outputs(one), outputs(other));
    }
    EXPECT_EQ(a->config().head_dim, b->config().head_dim);
    EXPECT_EQ(a->config().num_kv_heads, b->config().num_kv_heads);
    EXPECT_EQ(a->config().rms_norm_eps, b->config().rms_norm_eps);
  }
  if (!fs::exists(stories))
    GTEST_SKIP() << stories << " is missing: compared all but stories260K; set GANTRAIN_DATA";
}

}  // namespace
}  // namespace gantrain
