#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

void define(Suite& suite) {
  const Suite::Axes axes{{"tokens", {1, 128, 1024}}};
  suite.op("row_rstd", axes, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size;
    const RowRstd a{.x = m.normal({n, c}), .rstd = m.positive({n})};
    return Call{[a, &m] { row_rstd(m.device(), a); }, row_rstd_bytes(a)};
  });
  suite.op("rmsnorm_forward", axes, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size;
    const RmsNormForward a{
        .x = m.normal({n, c}), .w = m.positive({c}), .y = m.normal({n, c}), .rstd = m.positive({n})};
    return Call{[a, &m] { rmsnorm_forward(m.device(), a); }, rmsnorm_forward_bytes(a)};
  });
  suite.op("rmsnorm_backward", axes, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size;
    const RmsNormBackward a{.x = m.normal({n, c}),
                            .w = m.positive({c}),
                            .rstd = m.positive({n}),
                            .dy = m.normal({n, c}),
                            .dx = m.normal({n, c}),
                            .dw = m.normal({c})};
    return Call{[a, &m] { rmsnorm_backward(m.device(), a); }, rmsnorm_backward_bytes(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "RMSNorm", gantrain::bench::define);
}
