#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

void draw(Suite& suite, const std::string& name, int32_t top_k, float top_p, bool gumbel) {
  suite.op(name, {{"batch", {1, 8, 64}}}, false, [=](const Point& p, Memory& m) {
    const int64_t s = p.at("batch");
    Sample a{.logits = m.normal({s, p.config.vocab_size}, DType::kF32, 3.0f),
             .temperature = m.floats({s}, 0.8f),
             .top_k = m.ints(std::vector<int32_t>(static_cast<size_t>(s), top_k)),
             .top_p = m.floats({s}, top_p),
             .key = m.longs({s}),
             .counter = m.longs({s}),
             .gumbel = gumbel,
             .token = m.ints({s}, 0, 2),
             .logp = m.normal({s}),
             .scratch = {}};
    a.scratch = m.scratch(sample_scratch(m.device(), a));
    return Call{[a, &m] { sample(m.device(), a); }, sample_bytes(a)};
  });
}

void define(Suite& suite) {
  draw(suite, "sample", 0, 1.0f, false);
  draw(suite, "sample_top_k", 50, 1.0f, false);
  draw(suite, "sample_top_p", 0, 0.9f, false);
  draw(suite, "sample_gumbel", 0, 1.0f, true);
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Sampling", gantrain::bench::define);
}
