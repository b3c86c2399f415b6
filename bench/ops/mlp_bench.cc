#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

void define(Suite& suite) {
  const Suite::Axes axes{{"tokens", {1, 128, 1024}}};
  suite.op("gate_up_forward", axes, true, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size, f = p.config.intermediate_size;
    const DType kept = m.device().kept_dtype(p.dtype);
    GateUpForward a{.x = m.normal({n, c}),
                    .rstd = m.positive({n}),
                    .gain = {},
                    .w = m.frozen(2 * f, c, p.dtype),
                    .bias = {},
                    .g = m.normal({n, f}, kept),
                    .u = m.normal({n, f}, kept),
                    .a = m.normal({n, f}, p.dtype),
                    .scratch = {}};
    a.scratch = m.scratch(gate_up_forward_scratch(m.device(), a));
    return Call{[a, &m] { gate_up_forward(m.device(), a); }, gate_up_forward_bytes(a),
                gate_up_forward_flops(a)};
  });
  suite.op("down_backward", axes, true, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size, f = p.config.intermediate_size;
    const DType kept = m.device().kept_dtype(p.dtype);
    DownBackward a{.dout = m.normal({n, c}),
                   .w = m.frozen(c, f, p.dtype),
                   .g = m.normal({n, f}, kept),
                   .u = m.normal({n, f}, kept),
                   .dy = m.normal({n, 2 * f}, p.dtype),
                   .scratch = {}};
    a.scratch = m.scratch(down_backward_scratch(m.device(), a));
    return Call{[a, &m] { down_backward(m.device(), a); }, down_backward_bytes(a), down_backward_flops(a)};
  });
  suite.op("gate_up_backward", axes, true, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size, f = p.config.intermediate_size;
    GateUpBackward a{.x = m.normal({n, c}),
                     .rstd = m.positive({n}),
                     .gain = {},
                     .w = m.frozen(2 * f, c, p.dtype),
                     .dy = m.normal({n, 2 * f}, p.dtype),
                     .dx = m.normal({n, c}),
                     .scratch = {},
                     .dot = m.normal({n})};
    a.scratch = m.scratch(gate_up_backward_scratch(m.device(), a));
    return Call{[a, &m] { gate_up_backward(m.device(), a); }, gate_up_backward_bytes(a),
                gate_up_backward_flops(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Gate, up and SwiGLU", gantrain::bench::define);
}
