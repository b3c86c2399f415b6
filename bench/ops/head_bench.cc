#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// `rows` scored rows out of twice as many. Cross-entropy alone, with a KL term, with the Gumbel seed.
void loss(Suite& suite, const std::string& name, bool kl, bool gumbel) {
  suite.op(name, {{"rows", {128, 512}}}, true, [kl, gumbel](const Point& p, Memory& m) {
    const int64_t r = p.at("rows"), n = 2 * r, c = p.config.hidden_size, v = p.config.vocab_size;
    const FrozenMatrix* w = m.frozen(v, c, p.dtype);
    HeadLoss a{.x = m.normal({n, c}),
               .rows = m.ints({r}, 0, static_cast<int32_t>(n)),
               .gain = m.positive({c}),
               .w = w,
               .labels = m.ints({r}, 0, static_cast<int32_t>(v)),
               .ce_weight = gumbel ? ConstTensor() : m.positive({r}),
               .reference = kl ? m.normal({r, c}) : Tensor(),
               .kl_weight = kl ? m.positive({r}) : Tensor(),
               .embedding = gumbel ? w : nullptr,
               .embedding_grad = gumbel ? m.normal({r, c}) : Tensor(),
               .key = gumbel ? m.longs({r}) : Tensor(),
               .counter = gumbel ? m.longs({r}) : Tensor(),
               .tau = 1.0f,
               .top_k = gumbel ? 64 : 0,
               .nll = m.positive({r}),
               .kl = kl ? m.positive({r}) : Tensor(),
               .argmax = {},
               .dx = m.normal({n, c}),
               .scratch = {}};
    a.scratch = m.scratch(head_loss_scratch(m.device(), a));
    return Call{[a, &m] { head_loss(m.device(), a); }, head_loss_bytes(a), head_loss_flops(a)};
  });
}

void define(Suite& suite) {
  suite.op("head_logits", {{"rows", {1, 8, 64}}}, true, [](const Point& p, Memory& m) {
    const int64_t r = p.at("rows"), c = p.config.hidden_size, v = p.config.vocab_size;
    HeadLogits a{.x = m.normal({r, c}),
                 .rows = m.ints({r}, 0, static_cast<int32_t>(r)),
                 .gain = m.positive({c}),
                 .w = m.frozen(v, c, p.dtype),
                 .logits = m.normal({r, v}),
                 .scratch = {}};
    a.scratch = m.scratch(head_logits_scratch(m.device(), a));
    return Call{[a, &m] { head_logits(m.device(), a); }, head_logits_bytes(a), head_logits_flops(a)};
  });
  loss(suite, "head_loss", false, false);
  loss(suite, "head_loss_kl", true, false);
  loss(suite, "head_loss_gumbel", false, true);
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Head, losses and their gradients", gantrain::bench::define);
}
