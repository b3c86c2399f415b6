#include <algorithm>

#include "bench/support/harness.h"
#include "core/check.h"

namespace gantrain::bench {
namespace {

struct Named {
  const char* name;
  int64_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, positions;
  bool tied;
  double theta, scaling;  // scaling > 0: llama3
};
// From the config.json of the models: HuggingFaceTB/SmolLM2-135M, meta-llama/Llama-3.2-1B,
// meta-llama/Meta-Llama-3-8B, karpathy/tinyllamas stories260K.
constexpr Named kShapes[] = {
    {"smollm2-135m", 49152, 576, 1536, 30, 9, 3, 64, 8192, true, 1e5, 0},
    {"llama-3.2-1b", 128256, 2048, 8192, 16, 32, 8, 64, 131072, true, 5e5, 32},
    {"llama-3-8b", 128256, 4096, 14336, 32, 32, 8, 128, 8192, false, 5e5, 0},
    {"stories260k", 512, 64, 172, 5, 8, 4, 8, 512, true, 1e4, 0},
};

int64_t number(const std::string& text, const std::string& where) {
  size_t read = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &read);
  } catch (const std::exception&) {
    read = 0;
  }
  if (read == 0 || read != text.size() || value <= 0)
    fail_usage("{}: '{}' is no number above 0; expected 8, 1,8,64, 128:1024:128 or 1:64:x2", where, text);
  return value;
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const Named& s : kShapes) names.push_back(s.name);
  return names;
}

std::string shape_list() {
  std::string out;
  for (const Named& s : kShapes) out.append(out.empty() ? "" : ", ").append(s.name);
  return out;
}

LlamaConfig named_shape(const std::string& name) {
  for (const Named& s : kShapes)
    if (name == s.name) {
      LlamaConfig c;
      c.vocab_size = s.vocab;
      c.hidden_size = s.hidden;
      c.intermediate_size = s.intermediate;
      c.num_layers = s.layers;
      c.num_heads = s.heads;
      c.num_kv_heads = s.kv_heads;
      c.head_dim = s.head_dim;
      c.rms_norm_eps = 1e-5f;
      c.tie_word_embeddings = s.tied;
      c.max_position_embeddings = s.positions;
      c.rope.theta = s.theta;
      if (s.scaling > 0) {
        c.rope.type = RopeType::kLlama3;
        c.rope.factor = s.scaling;
      }
      return c;
    }
  fail_usage("--model: no shape '{}'; there are {}", name, shape_list());
}

int64_t Point::at(const std::string& axis) const {
  const auto found = axes.find(axis);
  GT_CHECK(found != axes.end(), "the case has no axis {}", axis);
  return found->second;
}

std::vector<int64_t> parse_list(const std::string& text, const std::string& where) {
  constexpr size_t kMost = 1000;
  std::vector<int64_t> out;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t first = part.find(':');
    if (first == std::string::npos) {
      out.push_back(number(part, where));
      continue;
    }
    const size_t second = part.find(':', first + 1);
    if (second == std::string::npos)
      fail_usage("{}: '{}' is no range; expected FIRST:LAST:STEP or FIRST:LAST:xFACTOR", where, part);
    const int64_t low = number(part.substr(0, first), where),
                  high = number(part.substr(first + 1, second - first - 1), where);
    std::string step = part.substr(second + 1);
    const bool times = step.starts_with('x');
    if (times) step.erase(0, 1);
    const int64_t by = number(step, where);
    if (low > high || (times && by < 2)) fail_usage("{}: the range '{}' is empty or endless", where, part);
    for (int64_t v = low; v <= high; v = times ? v * by : v + by) {
      out.push_back(v);
      if (out.size() > kMost) fail_usage("{}: '{}' has more than {} values", where, text, kMost);
      if (times && v > high / by) break;
    }
  }
  return out;
}

}  // namespace gantrain::bench
