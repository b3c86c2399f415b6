// Bytes and flops of every op that has them, counted by hand on one small shape each: what benches and the
// memory plan stand on.
#include <gtest/gtest.h>

#include "core/ops.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;

class OpCounts : public OpsTest {};
GT_ALL_DEVICES(OpCounts);

// N = 2 rows, C = 3, F = 4, H = 2, K = 1, D = 4, V = 5; weights bf16, kept in f16 where the contract lets it.
constexpr int64_t kN = 2, kC = 3, kF = 4, kH = 2, kK = 1, kD = 4, kV = 5;
constexpr int64_t kOut = (kH + 2 * kK) * kD;

class Maker {
 public:
  explicit Maker(Device& d) : device_(d), memory_(d) {}
  Tensor of(Shape s, DType t = DType::kF32) { return memory_.output(s, t); }
  const FrozenMatrix* matrix(int64_t rows, int64_t cols) {
    kept_.push_back(frozen(device_, random_normal(rows * cols, 1), rows, cols, DType::kBF16));
    return kept_.back().get();
  }

 private:
  Device& device_;
  GuardedMemory memory_;
  std::vector<std::unique_ptr<const FrozenMatrix>> kept_;
};
constexpr DType kI32 = DType::kI32, kBF16 = DType::kBF16, kF16 = DType::kF16;

TEST_P(OpCounts, EmbeddingAndNorm) {
  Maker m(device());
  const Tensor x = m.of({kN, kC}), w = m.of({kC}), r = m.of({kN}), tokens = m.of({kN}, kI32);
  EXPECT_EQ(embed_forward_bytes({.table = m.matrix(kV, kC), .tokens = tokens, .prompt = {}, .x = x}),
            2 * 4 + 6 * 2 + 6 * 4);
  EXPECT_EQ(embed_backward_bytes({.dx = x, .tokens = tokens, .dprompt = m.of({7, kC})}),
            2 * 4 + 6 * 4 + 2 * 21 * 4);
  EXPECT_EQ(row_rstd_bytes({.x = x, .rstd = r}), (6 + 2) * 4);
  EXPECT_EQ(rmsnorm_forward_bytes({.x = x, .w = w, .y = x, .rstd = r}), (6 + 3 + 6 + 2) * 4);
  EXPECT_EQ(rmsnorm_forward_bytes({.x = x, .w = {}, .y = x, .rstd = r}), (6 + 6 + 2) * 4);
  EXPECT_EQ(rmsnorm_backward_bytes({.x = x, .w = w, .rstd = r, .dy = x, .dx = x, .dw = w}),
            (6 + 3 + 2 + 6 + 2 * 6 + 2 * 3) * 4);
}

TEST_P(OpCounts, Products) {
  Maker m(device());
  const Tensor x = m.of({kN, kC}), gain = m.of({kC}), r = m.of({kN}), rotary = m.of({kN, kD});
  const FrozenMatrix *qkv = m.matrix(kOut, kC), *gate_up = m.matrix(2 * kF, kC), *down = m.matrix(kC, kF);
  const auto heads = [&](int64_t h, DType t) { return m.of({kN, h, kD}, t); };
  const QkvForward q{.x = x,
                     .rstd = r,
                     .gain = gain,
                     .w = qkv,
                     .bias = m.of({kOut}),
                     .rotary = rotary,
                     .q = heads(kH, kF16),
                     .k = heads(kK, kF16),
                     .v = heads(kK, kF16),
                     .scratch = {}};
  EXPECT_EQ(rotary_table_bytes({.positions = m.of({kN}, kI32), .inv_freq = m.of({kD / 2}), .table = rotary}),
            (2 + 2 + 8) * 4);
  EXPECT_EQ(qkv_forward_bytes(q), (6 + 2 + 3) * 4 + 48 * 2 + 16 * 4 + 8 * 4 + (16 + 8 + 8) * 2);
  EXPECT_EQ(qkv_forward_flops(q), 2 * 2 * 3 * 16);
  const QkvBackward qb{.x = x,
                       .rstd = r,
                       .gain = gain,
                       .w = qkv,
                       .dy = m.of({kN, kOut}, kBF16),
                       .dx = x,
                       .scratch = {},
                       .dot = m.of({kN, 3})};
  EXPECT_EQ(qkv_backward_bytes(qb), (6 + 2 + 3) * 4 + 48 * 2 + 32 * 2 + 6 * 4 + 2 * 6 * 4);
  EXPECT_EQ(qkv_backward_flops(qb), 2 * 2 * 3 * 16);
  const Tensor f = m.of({kN, kF}, kBF16);
  const GateUpForward g{.x = x,
                        .rstd = r,
                        .gain = gain,
                        .w = gate_up,
                        .bias = m.of({2 * kF}),
                        .g = f,
                        .u = f,
                        .a = f,
                        .scratch = {}};
  EXPECT_EQ(gate_up_forward_bytes(g), (6 + 2 + 3) * 4 + 24 * 2 + 8 * 4 + 3 * 8 * 2);
  EXPECT_EQ(gate_up_forward_flops(g), 2 * 2 * 3 * 8);
  const Tensor dy = m.of({kN, 2 * kF}, kBF16), xb = m.of({kN, kC}, kBF16);
  const GateUpBackward gb{.x = x,
                          .rstd = r,
                          .gain = gain,
                          .w = gate_up,
                          .dy = dy,
                          .dx = x,
                          .scratch = {},
                          .dot = r,
                          .dx_bf16 = xb};
  EXPECT_EQ(gate_up_backward_bytes(gb), (6 + 2 + 3) * 4 + 24 * 2 + 2 * 8 * 2 + 2 * 4 + 2 * 6 * 4 + 6 * 2);
  EXPECT_EQ(gate_up_backward_flops(gb), 2 * 2 * 3 * 8);
  const DownBackward db{
      .dout = x, .w = down, .g = f, .u = f, .dy = dy, .scratch = {}, .dout_bf16 = xb, .dot = r};
  EXPECT_EQ(down_backward_bytes(db), 6 * 2 + 12 * 2 + 4 * 8 * 2 + 2 * 4);
  EXPECT_EQ(down_backward_flops(db), 2 * 2 * 4 * 3);
  const ProjectForward p{.a = f, .w = down, .bias = {}, .residual = x, .out = x, .rstd = r, .scratch = {}};
  EXPECT_EQ(project_forward_bytes(p), 8 * 2 + 12 * 2 + (6 + 6 + 2) * 4);
  EXPECT_EQ(project_forward_flops(p), 2 * 2 * 4 * 3);
  const ProjectBackward pb{.dout = x, .w = down, .da = f, .scratch = {}};
  EXPECT_EQ(project_backward_bytes(pb), 6 * 4 + 12 * 2 + 8 * 2);
  EXPECT_EQ(project_backward_flops(pb), 2 * 2 * 4 * 3);
}

TEST_P(OpCounts, Attention) {
  Maker m(device());
  AttentionPlan
      plan;  // two rows of prompt; then three queries that see them and themselves; an empty segment
  plan.spans = {{0, 2}};
  plan.segments = {{0, 2, 0, 0, 0}, {2, 3, 0, 1, 2}, {5, 0, 0, 1, -1}};
  EXPECT_EQ(attention_pairs(plan), 3 + 3 * 2 + 6);
  const Tensor q = m.of({5, kH, kD}, kBF16), kv = m.of({5, kK, kD}, kBF16), lse = m.of({5, kH});
  const AttentionForward f{
      .q = q, .k = kv, .v = kv, .plan = &plan, .scale = 1, .o = q, .lse = lse, .scratch = {}};
  const int64_t rows = 5 * 8 * 2, keys = 2 * (2 + 5) * 4 * 2;
  EXPECT_EQ(attention_forward_bytes(f), 2 * rows + keys + 10 * 4);
  EXPECT_EQ(attention_forward_flops(f), 4 * 8 * 15);
  const AttentionBackward b{.q = q,
                            .k = kv,
                            .v = kv,
                            .o = q,
                            .lse = lse,
                            .d_o = q,
                            .plan = &plan,
                            .scale = 1,
                            .dq = q,
                            .dk = kv,
                            .dv = kv,
                            .scratch = {}};
  EXPECT_EQ(attention_backward_bytes(b), 4 * rows + keys + 10 * 4 + 2 * 5 * 4 * 2);
  EXPECT_EQ(attention_backward_flops(b), 10 * 8 * 15);
  AttentionBackward to_projection = b;
  to_projection.dq = to_projection.dk = to_projection.dv = {};
  to_projection.dy = m.of({5, kOut}, kBF16);
  to_projection.rotary = m.of({5, kD});
  to_projection.dot = m.of({5, kH + kK});
  EXPECT_EQ(attention_backward_bytes(to_projection),
            3 * rows + keys + 10 * 4 + 5 * 16 * 2 + 5 * kD * 4 + 5 * 3 * 4);
  EXPECT_EQ(kv_append_bytes({.k = kv, .v = kv, .slots = m.of({5}, kI32), .k_cache = kv, .v_cache = kv}),
            4 * 5 * 4 * 2 + 5 * 4);
}

TEST_P(OpCounts, HeadAndSampling) {
  Maker m(device());
  const Tensor x = m.of({7, kC}), rows = m.of({kN}, kI32), r = m.of({kN}), grad = m.of({kN, kC});
  const FrozenMatrix* w = m.matrix(kV, kC);
  const HeadLogits l{
      .x = x, .rows = rows, .gain = m.of({kC}), .w = w, .logits = m.of({kN, kV}), .scratch = {}};
  EXPECT_EQ(head_logits_bytes(l), (6 + 2 + 3) * 4 + 15 * 2 + 10 * 4);
  EXPECT_EQ(head_logits_flops(l), 2 * 2 * 3 * 5);
  HeadLoss h{.x = x,
             .rows = rows,
             .gain = {},
             .w = w,
             .labels = rows,
             .ce_weight = r,
             .reference = {},
             .kl_weight = {},
             .embedding_grad = {},
             .key = {},
             .counter = {},
             .nll = r,
             .kl = {},
             .argmax = rows,
             .dx = {},
             .scratch = {}};
  EXPECT_EQ(head_loss_bytes(h), (6 + 2) * 4 + 15 * 2 + 4 * 2 * 4);
  EXPECT_EQ(head_loss_flops(h), 2 * 2 * 3 * 5);
  h.dx = x;
  h.reference = grad;
  h.kl = r;
  h.embedding = w;
  h.embedding_grad = grad;
  EXPECT_EQ(head_loss_bytes(h), (6 + 2) * 4 + 15 * 2 + 4 * 2 * 4 + (6 * 4 + 15 * 2 + 2 * 4) +
                                    (6 * 4 + 15 * 2) + (2 * 6 * 4 + 15 * 2));
  EXPECT_EQ(head_loss_flops(h), 4 * 2 * 2 * 3 * 5);
  const ConstTensor longs(x.raw(), DType::kI64, {kN}, device().kind());  // its size alone counts
  EXPECT_EQ(sample_bytes({.logits = l.logits,
                          .temperature = r,
                          .top_k = rows,
                          .top_p = r,
                          .key = longs,
                          .counter = longs,
                          .token = rows,
                          .logp = r,
                          .scratch = {}}),
            10 * 4 + 5 * 2 * 4 + 2 * 2 * 8);
}

TEST_P(OpCounts, TrainableNetworks) {
  Maker m(device());
  const Tensor x = m.of({kN, kC}), w = m.of({kF, kC}), b = m.of({kF}), y = m.of({kN, kF});
  EXPECT_EQ(linear_forward_bytes({.x = x, .w = w, .b = b, .y = y}), (6 + 12 + 4 + 8) * 4);
  EXPECT_EQ(linear_forward_flops({.x = x, .w = w, .b = {}, .y = y}), 2 * 2 * 3 * 4);
  const LinearBackward all{.x = x, .w = w, .dy = y, .dx = x, .dw = w, .db = b};
  EXPECT_EQ(linear_backward_bytes(all), (8 + 12 + 2 * 6 + 6 + 2 * 12 + 2 * 4) * 4);
  EXPECT_EQ(linear_backward_flops(all), 2 * (2 * 2 * 3 * 4) + 8);
  const LinearBackward some{.x = x, .w = w, .dy = y, .dx = x, .dw = {}, .db = {}};
  EXPECT_EQ(linear_backward_bytes(some), (8 + 12 + 2 * 6) * 4);
  EXPECT_EQ(linear_backward_flops(some), 2 * 2 * 3 * 4);
  EXPECT_EQ(activation_forward_bytes({.x = x, .kind = Activation::kSilu, .y = x}), 2 * 6 * 4);
  EXPECT_EQ(activation_backward_bytes({.x = x, .kind = Activation::kSilu, .dy = x, .dx = x}), 4 * 6 * 4);
}

// P = 3 positions, C = 5, B = 2 of a batch; then N = 9 rows of C = 3, of which R = 4 different ones are
// named.
TEST_P(OpCounts, BroadcastsAndRows) {
  Maker m(device());
  const Tensor base = m.of({3, 5}), batch = m.of({2, 5}), large = m.of({2, 3, 5}), s = m.of({1});
  EXPECT_EQ(broadcast_add_forward_bytes({.a = base, .c = batch, .y = large}), (15 + 10 + 30) * 4);
  EXPECT_EQ(broadcast_add_backward_bytes({.dy = large, .da = base, .dc = batch}), (30 + 2 * 15 + 2 * 10) * 4);
  EXPECT_EQ(scaled_add_forward_bytes({.base = base, .x = large, .s = s, .y = large}), (15 + 30 + 1 + 30) * 4);
  EXPECT_EQ(scaled_add_backward_bytes({.x = large, .s = s, .dy = large, .dbase = base, .dx = large, .ds = s}),
            (30 + 1 + 30 + 2 * 15 + 2 * 30 + 2 * 1) * 4);
  const Tensor x = m.of({9, 3}), some = m.of({4, 3}), rows = m.of({4}, kI32);
  EXPECT_EQ(gather_rows_bytes({.x = x, .rows = rows, .y = some}), (4 * 3 + 4 + 12) * 4);
  EXPECT_EQ(scatter_add_rows_bytes({.dy = some, .rows = rows, .dx = x}), (12 + 4 + 2 * 4 * 3) * 4);
  EXPECT_EQ(axpy_bytes({.x = x, .a = 2, .y = x}), (27 + 2 * 27) * 4);
  EXPECT_EQ(add_noise_bytes({.x = x, .sigma = 1, .key = 1, .counter = 0, .y = x}), (27 + 27) * 4);
}

// Two adapters of outputs of one product, I = 6: of rank 2 with O = 3, of rank 1 with O = 4; N = 5 rows.
TEST_P(OpCounts, Adapters) {
  Maker m(device());
  const Tensor a = m.of({2, 6}), b = m.of({3, 2}), z = m.of({5, 2});
  const Tensor a1 = m.of({1, 6}), b1 = m.of({4, 1}), z1 = m.of({5, 1});
  const std::vector<LoraPart> forward{{.a = a, .b = b, .scale = 1, .first = 0, .z = z},
                                      {.a = a1, .b = b1, .scale = 1, .first = 3, .z = z1}};
  const std::vector<LoraPartBackward> backward{
      {.a = a, .b = b, .scale = 1, .first = 0, .z = z, .da = a, .db = b},
      {.a = a1, .b = b1, .scale = 1, .first = 3, .z = z1, .da = a1, .db = b1}};
  EXPECT_EQ(lora_bytes(std::span(forward)), (12 + 6 + 10) * 4 + (6 + 4 + 5) * 4);
  EXPECT_EQ(lora_bytes(std::span(backward)),
            (12 + 6 + 10 + 2 * 12 + 2 * 6) * 4 + (6 + 4 + 5 + 2 * 6 + 2 * 4) * 4);
  const int64_t down = 2 * 5 * 6 * 2 + 2 * 5 * 6 * 1, up = 2 * 5 * 2 * 3 + 2 * 5 * 1 * 4;  // x A^T, z B^T
  EXPECT_EQ(lora_flops(std::span(forward), 5), down + up);
  // dy^T z and dy B are as large as up, dz^T x and dz A as down.
  EXPECT_EQ(lora_flops(std::span(backward), 5), 2 * up + 2 * down);
  const FrozenMatrix* w = m.matrix(7, 6);
  const Tensor in = m.of({5, 6}), out = m.of({5, 7});
  EXPECT_EQ(project_backward_flops({.dout = out, .w = w, .da = in, .scratch = {}, .lora = backward, .a = in}),
            2 * 5 * 6 * 7 + 2 * up + 2 * down);
}

// B = 3 pairs; N = 7 rows of C = 3 in S = 2 segments; a prompt of (4, 3).
TEST_P(OpCounts, PlayersLosses) {
  Maker m(device());
  const Tensor x = m.of({7, 3}), offsets = m.of({3}, kI32), means = m.of({2, 3});
  EXPECT_EQ(segment_mean_forward_bytes({.x = x, .offsets = offsets, .y = means}), (21 + 3 + 6) * 4);
  EXPECT_EQ(segment_mean_backward_bytes({.dy = means, .offsets = offsets, .dx = x}), (6 + 3 + 2 * 21) * 4);
  const Tensor pairs = m.of({3}), one = m.of({1}), prompt = m.of({4, 3});
  PairLoss p{.dr = pairs,
             .df = pairs,
             .dr2 = {},
             .df2 = {},
             .loss = one,
             .ddr = pairs,
             .ddf = pairs,
             .ddr2 = {},
             .ddf2 = {}};
  EXPECT_EQ(pair_loss_bytes(p), (2 * 3 + 1 + 2 * 3) * 4);
  p.dr2 = p.df2 = pairs;
  p.ddr2 = p.ddf2 = pairs;
  EXPECT_EQ(pair_loss_bytes(p), (4 * 3 + 1 + 4 * 3) * 4);
  EXPECT_EQ(generator_pair_loss_bytes({.dr = pairs, .df = pairs, .loss = one, .ddf = pairs}),
            (2 * 3 + 1 + 3) * 4);
  EXPECT_EQ(
      rms_penalty_bytes(
          {.prompt = prompt, .reference_rms = 1, .weight = 1, .loss = one, .rms = one, .dprompt = prompt}),
      (12 + 1 + 1 + 2 * 12) * 4);
}

// Two tensors, of 6 and of 5 values; with the norm and without.
TEST_P(OpCounts, OptimizerSteps) {
  Maker m(device());
  const std::vector<Tensor> t{m.of({2, 3}), m.of({5})};
  const std::vector<ConstTensor> x(t.begin(), t.end());
  const Tensor one = m.of({1});
  EXPECT_EQ(gradient_norm_bytes({.grads = t, .out = one}), (6 + 5 + 1) * 4);
  AdamW step{.params = t,
             .grads = t,
             .m = t,
             .v = t,
             .norm = {},
             .clip = 0,
             .lr = 1,
             .beta1 = 0,
             .beta2 = 0,
             .eps = 1,
             .weight_decay = 0,
             .step = 1};
  EXPECT_EQ(adamw_bytes(step), (2 * 11 + 11 + 2 * 11 + 2 * 11) * 4);
  step.norm = one;
  EXPECT_EQ(adamw_bytes(step), (2 * 11 + 11 + 2 * 11 + 2 * 11 + 1) * 4);
  Ema average{.x = x, .decay = 0.5f, .ema = t, .norm = {}};
  EXPECT_EQ(ema_bytes(average), (11 + 2 * 11) * 4);
  average.norm = one;
  EXPECT_EQ(ema_bytes(average), (11 + 2 * 11 + 1) * 4);
}

}  // namespace
}  // namespace gantrain
