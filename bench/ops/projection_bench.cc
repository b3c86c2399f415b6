#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// After attention (`o`, H D wide) and after SwiGLU (`down`, F wide): the same op, two shapes. What `o` reads
// is kept in the type that attention writes.
void add(Suite& suite, const std::string& which, bool down) {
  const Suite::Axes axes{{"tokens", {1, 128, 1024}}};
  const auto width = [down](const LlamaConfig& l) {
    return down ? l.intermediate_size : l.num_heads * l.head_dim;
  };
  suite.op("project_forward_" + which, axes, true, [width, down](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size, i = width(p.config);
    ProjectForward a{.a = m.normal({n, i}, down ? p.dtype : m.device().kept_dtype(p.dtype)),
                     .w = m.frozen(c, i, p.dtype),
                     .bias = {},
                     .residual = m.normal({n, c}),
                     .out = m.normal({n, c}),
                     .rstd = m.positive({n}),
                     .scratch = {}};
    a.scratch = m.scratch(project_forward_scratch(m.device(), a));
    return Call{[a, &m] { project_forward(m.device(), a); }, project_forward_bytes(a),
                project_forward_flops(a)};
  });
  suite.op("project_backward_" + which, axes, true, [width](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), c = p.config.hidden_size, i = width(p.config);
    ProjectBackward a{.dout = m.normal({n, c}),
                      .w = m.frozen(c, i, p.dtype),
                      .da = m.normal({n, i}, p.dtype),
                      .scratch = {}};
    a.scratch = m.scratch(project_backward_scratch(m.device(), a));
    return Call{[a, &m] { project_backward(m.device(), a); }, project_backward_bytes(a),
                project_backward_flops(a)};
  });
}

void define(Suite& suite) {
  add(suite, "o", false);
  add(suite, "down", true);
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Projections to the residual stream",
                                    gantrain::bench::define);
}
