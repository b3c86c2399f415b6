#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// Tokens of a batch, the first `prompt` of them rows of the soft prompt.
Tensor tokens_of(const Point& p, Memory& m) {
  std::vector<int32_t> tokens(static_cast<size_t>(p.at("tokens")));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int64_t>(i) < p.at("prompt")
                    ? static_cast<int32_t>(-1 - static_cast<int64_t>(i))
                    : static_cast<int32_t>(i * 2654435761u % static_cast<uint64_t>(p.config.vocab_size));
  return m.ints(tokens);
}

void define(Suite& suite) {
  const Suite::Axes axes{{"tokens", {1, 128, 1024}}, {"prompt", {20}}};
  suite.op("embed_forward", axes, true, [](const Point& p, Memory& m) {
    const int64_t c = p.config.hidden_size;
    const EmbedForward a{.table = m.frozen(p.config.vocab_size, c, p.dtype),
                         .tokens = tokens_of(p, m),
                         .prompt = m.normal({p.at("prompt"), c}),
                         .x = m.normal({p.at("tokens"), c})};
    return Call{[a, &m] { embed_forward(m.device(), a); }, embed_forward_bytes(a)};
  });
  suite.op("embed_backward", axes, false, [](const Point& p, Memory& m) {
    const int64_t c = p.config.hidden_size;
    const EmbedBackward a{.dx = m.normal({p.at("tokens"), c}),
                          .tokens = tokens_of(p, m),
                          .dprompt = m.normal({p.at("prompt"), c})};
    return Call{[a, &m] { embed_backward(m.device(), a); }, embed_backward_bytes(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Embedding and soft prompt", gantrain::bench::define);
}
