#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// Row offsets of `pairs` answers of `length` tokens, twice: references and fakes.
Tensor offsets_of(const Point& p, Memory& m) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i <= 2 * p.at("pairs"); ++i)
    offsets.push_back(static_cast<int32_t>(i * p.at("length")));
  return m.ints(offsets);
}

void define(Suite& suite) {
  const Suite::Axes answers{{"pairs", {16, 64}}, {"length", {64}}};
  suite.op("segment_mean_forward", answers, false, [](const Point& p, Memory& m) {
    const int64_t s = 2 * p.at("pairs"), c = p.config.hidden_size;
    const SegmentMeanForward a{
        .x = m.normal({s * p.at("length"), c}), .offsets = offsets_of(p, m), .y = m.normal({s, c})};
    return Call{[a, &m] { segment_mean_forward(m.device(), a); }, segment_mean_forward_bytes(a)};
  });
  suite.op("segment_mean_backward", answers, false, [](const Point& p, Memory& m) {
    const int64_t s = 2 * p.at("pairs"), c = p.config.hidden_size;
    const SegmentMeanBackward a{
        .dy = m.normal({s, c}), .offsets = offsets_of(p, m), .dx = m.normal({s * p.at("length"), c})};
    return Call{[a, &m] { segment_mean_backward(m.device(), a); }, segment_mean_backward_bytes(a)};
  });
  const Suite::Axes pairs{{"pairs", {16, 64}}};
  for (const auto& [name, kind] : {std::pair("relativistic", PairLossKind::kRelativistic),
                                   {"bce", PairLossKind::kBce},
                                   {"hinge", PairLossKind::kHinge}}) {
    suite.op(std::string("pair_loss_") + name, pairs, false, [kind = kind](const Point& p, Memory& m) {
      const int64_t b = p.at("pairs");
      const PairLoss a{.dr = m.normal({b}),
                       .df = m.normal({b}),
                       .dr2 = m.normal({b}),
                       .df2 = m.normal({b}),
                       .kind = kind,
                       .lam = 10.0f,
                       .smooth = 0.1f,
                       .loss = m.normal({1}),
                       .ddr = m.normal({b}),
                       .ddf = m.normal({b}),
                       .ddr2 = m.normal({b}),
                       .ddf2 = m.normal({b})};
      return Call{[a, &m] { pair_loss(m.device(), a); }, pair_loss_bytes(a)};
    });
    suite.op(std::string("generator_pair_loss_") + name, pairs, false,
             [kind = kind](const Point& p, Memory& m) {
               const int64_t b = p.at("pairs");
               const GeneratorPairLoss a{.dr = m.normal({b}),
                                         .df = m.normal({b}),
                                         .kind = kind,
                                         .loss = m.normal({1}),
                                         .ddf = m.normal({b})};
               return Call{[a, &m] { generator_pair_loss(m.device(), a); }, generator_pair_loss_bytes(a)};
             });
  }
  suite.op("rms_penalty", {{"rows", {20, 160}}}, false, [](const Point& p, Memory& m) {
    const Shape s{p.at("rows"), p.config.hidden_size};
    const RmsPenalty a{.prompt = m.normal(s),
                       .reference_rms = 0.05f,
                       .weight = 1e-3f,
                       .loss = m.normal({1}),
                       .rms = m.normal({1}),
                       .dprompt = m.normal(s)};
    return Call{[a, &m] { rms_penalty(m.device(), a); }, rms_penalty_bytes(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "The players' losses", gantrain::bench::define);
}
