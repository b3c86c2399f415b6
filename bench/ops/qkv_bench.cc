#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// The gain is folded into the weights where a model is loaded, so it is left out here too.
void define(Suite& suite) {
  const Suite::Axes axes{{"tokens", {1, 128, 1024}}};
  suite.op("qkv_forward", axes, true, [](const Point& p, Memory& m) {
    const LlamaConfig& l = p.config;
    const int64_t n = p.at("tokens"), c = l.hidden_size, h = l.num_heads, k = l.num_kv_heads, d = l.head_dim;
    const DType kept = m.device().kept_dtype(p.dtype);
    QkvForward a{.x = m.normal({n, c}),
                 .rstd = m.positive({n}),
                 .gain = {},
                 .w = m.frozen((h + 2 * k) * d, c, p.dtype),
                 .bias = {},
                 .rotary = m.normal({n, d}),
                 .q = m.normal({n, h, d}, kept),
                 .k = m.normal({n, k, d}, kept),
                 .v = m.normal({n, k, d}, kept),
                 .scratch = {}};
    a.scratch = m.scratch(qkv_forward_scratch(m.device(), a));
    return Call{[a, &m] { qkv_forward(m.device(), a); }, qkv_forward_bytes(a), qkv_forward_flops(a)};
  });
  suite.op("rotary_table", axes, true, [](const Point& p, Memory& m) {
    const int64_t n = p.at("tokens"), d = p.config.head_dim;
    const RotaryTable a{
        .positions = m.ints({n}, 0, 512), .inv_freq = m.positive({d / 2}), .table = m.normal({n, d})};
    return Call{[a, &m] { rotary_table(m.device(), a); }, rotary_table_bytes(a), 0};
  });
  suite.op("qkv_backward", axes, true, [](const Point& p, Memory& m) {
    const LlamaConfig& l = p.config;
    const int64_t n = p.at("tokens"), c = l.hidden_size,
                  out = (l.num_heads + 2 * l.num_kv_heads) * l.head_dim;
    QkvBackward a{.x = m.normal({n, c}),
                  .rstd = m.positive({n}),
                  .gain = {},
                  .w = m.frozen(out, c, p.dtype),
                  .dy = m.normal({n, out}, p.dtype),
                  .dx = m.normal({n, c}),
                  .scratch = {}};
    a.scratch = m.scratch(qkv_backward_scratch(m.device(), a));
    return Call{[a, &m] { qkv_backward(m.device(), a); }, qkv_backward_bytes(a), qkv_backward_flops(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "QKV projection with RMSNorm and RoPE",
                                    gantrain::bench::define);
}
