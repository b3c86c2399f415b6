#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// 11,520: a prompt of 20 rows of width 576; 1,000,000: about what the conditional generator has.
void define(Suite& suite) {
  const Suite::Axes axes{{"parameters", {11520, 1000000}}};
  suite.op("gradient_norm", axes, false, [](const Point& p, Memory& m) {
    // Held by the call: the argument is a span.
    const auto grads = std::make_shared<std::vector<Tensor>>(1, m.normal({p.at("parameters")}));
    const GradientNorm a{.grads = *grads, .out = m.normal({1})};
    return Call{[a, grads, &m] { gradient_norm(m.device(), a); }, gradient_norm_bytes(a)};
  });
  suite.op("adamw", axes, false, [](const Point& p, Memory& m) {
    const Shape s{p.at("parameters")};
    const AdamW a{.param = m.normal(s),
                  .grad = m.normal(s),
                  .m = m.normal(s),
                  .v = m.positive(s),
                  .lr = 1e-3f,
                  .beta1 = 0.9f,
                  .beta2 = 0.999f,
                  .eps = 1e-8f,
                  .weight_decay = 0.01f,
                  .grad_scale = 0.5f,
                  .step = 100};
    return Call{[a, &m] { adamw(m.device(), a); }, adamw_bytes(a)};
  });
  suite.op("ema", axes, false, [](const Point& p, Memory& m) {
    const Shape s{p.at("parameters")};
    const Ema a{.x = m.normal(s), .decay = 0.999f, .ema = m.normal(s)};
    return Call{[a, &m] { ema(m.device(), a); }, ema_bytes(a)};
  });
  suite.op("all_finite", axes, false, [](const Point& p, Memory& m) {
    const Tensor t = m.normal({p.at("parameters")});
    return Call{[t, &m] {
                  if (!all_finite(m.device(), t)) fail("random numbers are not finite");
                },
                t.bytes()};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Optimiser", gantrain::bench::define);
}
