// Every op that reads a frozen matrix, over one that stays packed: the bits of the same op over the same
// values expanded. What those are worth, the op's own tests say.
#include <gtest/gtest.h>

#include <functional>

#include "core/ops.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"
#include "tests/support/packed.h"

namespace gantrain {
namespace {

using namespace test;

class PackedOps : public OpsTest {};
GT_ALL_DEVICES(PackedOps);

constexpr int64_t kC = 256, kF = 512, kH = 3, kK = 1, kD = 64;
constexpr int64_t kQkv = (kH + 2 * kK) * kD;
const std::vector<PackedType> kEvery(std::begin(kPackedTypes), std::end(kPackedTypes));

using Results = std::vector<std::vector<float>>;
// What an op leaves behind with this matrix.
using Run = std::function<Results(Device&, GuardedMemory&, const FrozenMatrix&)>;

// One adapter at the outputs [first, first + out).
struct Lora {
  int64_t in, out, first;
  static constexpr int64_t kRank = 3;
  std::vector<float> a() const { return random_normal(kRank * in, 71, 0.1f); }
  std::vector<float> b() const { return random_normal(out * kRank, 72, 0.1f); }
  LoraPart forward(GuardedMemory& m, int64_t n) const {
    return {m.input(a(), {kRank, in}), m.input(b(), {out, kRank}), 0.5f, first, m.output({n, kRank})};
  }
  LoraPartBackward backward(GuardedMemory& m, int64_t n) const {
    return {m.input(a(), {kRank, in}),
            m.input(b(), {out, kRank}),
            0.5f,
            first,
            m.input(random_normal(n * kRank, 73), {n, kRank}),
            m.accumulator(std::vector<float>(z(kRank * in), 1.0f), {kRank, in}),
            m.accumulator(std::vector<float>(z(out * kRank), 2.0f), {out, kRank})};
  }
};

// The last token in turn of every type's rows, and the prompt's.
Results embed(Device& d, GuardedMemory& m, const FrozenMatrix& w) {
  Results results;
  auto tokens = random_ints(12, 3, -2, static_cast<int32_t>(w.rows()) - 1);
  for (int32_t last = -1; last < w.rows(); last += 4) {
    tokens.back() = last;
    const Tensor x = m.output({12, w.cols()});
    embed_forward(d, {.table = &w,
                      .tokens = m.input(tokens, {12}),
                      .prompt = m.input(random_normal(2 * w.cols(), 4), {2, w.cols()}),
                      .x = x});
    results.push_back(m.read(x));
  }
  return results;
}

Run qkv(int64_t n, bool lora) {
  return [=](Device& d, GuardedMemory& m, const FrozenMatrix& w) {
    const DType t = w.dtype(), s = d.kept_dtype(t);
    const auto x = m.input(random_normal(n * kC, 1), {n, kC});
    const auto rstd = m.input(random_uniform(n, 2, 0.8f, 1.2f), {n}),
               gain = m.input(random_normal(kC, 3), {kC}),
               rotary = m.input(angles_of(random_ints(n, 5, 0, 90), random_uniform(kD / 2, 4, 0.01f, 1.0f)),
                                {n, kD});
    const Lora shape{kC, kD, kD};
    std::vector<LoraPart> forward;
    std::vector<LoraPartBackward> backward;
    if (lora) forward.push_back(shape.forward(m, n)), backward.push_back(shape.backward(m, n));
    QkvForward f{.x = x,
                 .rstd = rstd,
                 .gain = gain,
                 .w = &w,
                 .bias = m.input(random_normal(kQkv, 6), {kQkv}),
                 .rotary = rotary,
                 .q = m.output({n, kH, kD}, s),
                 .k = m.output({n, kK, kD}, s),
                 .v = m.output({n, kK, kD}, s),
                 .scratch = {},
                 .lora = forward};
    f.scratch = m.scratch(qkv_forward_scratch(d, f));
    qkv_forward(d, f);
    QkvBackward b{.x = x,
                  .rstd = rstd,
                  .gain = gain,
                  .w = &w,
                  .dy = m.input(random_normal(n * kQkv, 7), {n, kQkv}, t),
                  .dx = m.accumulator(random_normal(n * kC, 10), {n, kC}),
                  .scratch = {},
                  .lora = backward};
    b.scratch = m.scratch(qkv_backward_scratch(d, b));
    qkv_backward(d, b);
    Results r{m.read(f.q), m.read(f.k), m.read(f.v), m.read(b.dx)};
    for (const auto& p : forward) r.push_back(m.read(p.z));
    for (const auto& p : backward) r.push_back(m.read(p.da)), r.push_back(m.read(p.db));
    return r;
  };
}

Run project(int64_t n, bool lora) {
  return [=](Device& d, GuardedMemory& m, const FrozenMatrix& w) {
    const DType t = w.dtype(), s = d.kept_dtype(t);
    const auto a = m.input(random_normal(n * kF, 1), {n, kF}, s);
    const Lora shape{kF, kC, 0};
    std::vector<LoraPart> forward;
    std::vector<LoraPartBackward> backward;
    if (lora) forward.push_back(shape.forward(m, n)), backward.push_back(shape.backward(m, n));
    ProjectForward f{.a = a,
                     .w = &w,
                     .bias = {},
                     .residual = m.input(random_normal(n * kC, 2), {n, kC}),
                     .out = m.output({n, kC}),
                     .rstd = m.output({n}),
                     .scratch = {},
                     .lora = forward};
    f.scratch = m.scratch(project_forward_scratch(d, f));
    project_forward(d, f);
    ProjectBackward b{.dout = m.input(random_normal(n * kC, 3), {n, kC}),
                      .w = &w,
                      .da = m.output({n, kF}, t),
                      .scratch = {},
                      .lora = backward};
    if (lora) b.a = a;
    b.scratch = m.scratch(project_backward_scratch(d, b));
    project_backward(d, b);
    Results r{m.read(f.out), m.read(f.rstd), m.read(b.da)};
    for (const auto& p : forward) r.push_back(m.read(p.z));
    for (const auto& p : backward) r.push_back(m.read(p.da)), r.push_back(m.read(p.db));
    return r;
  };
}

Run down(int64_t n, bool lora) {
  return [=](Device& d, GuardedMemory& m, const FrozenMatrix& w) {
    const DType t = w.dtype(), s = d.kept_dtype(t);
    std::vector<LoraPartBackward> backward;
    if (lora) backward.push_back(Lora{kF, kC, 0}.backward(m, n));
    DownBackward b{.dout = m.input(random_normal(n * kC, 1), {n, kC}),
                   .w = &w,
                   .g = m.input(random_normal(n * kF, 2), {n, kF}, s),
                   .u = m.input(random_normal(n * kF, 3), {n, kF}, s),
                   .dy = m.output({n, 2 * kF}, t),
                   .scratch = {},
                   .dot = m.output({n}),
                   .lora = backward};
    if (lora) b.a = m.input(random_normal(n * kF, 4), {n, kF}, s);
    b.scratch = m.scratch(down_backward_scratch(d, b));
    down_backward(d, b);
    Results r{m.read(b.dy), m.read(b.dot)};
    for (const auto& p : backward) r.push_back(m.read(p.da)), r.push_back(m.read(p.db));
    return r;
  };
}

Run gate_up(int64_t n, bool lora) {
  return [=](Device& d, GuardedMemory& m, const FrozenMatrix& w) {
    const DType t = w.dtype(), s = d.kept_dtype(t);
    const auto x = m.input(random_normal(n * kC, 1), {n, kC});
    const auto rstd = m.input(random_uniform(n, 2, 0.8f, 1.2f), {n}),
               gain = m.input(random_normal(kC, 3), {kC});
    const Lora shape{kC, kF, kF};
    std::vector<LoraPart> forward;
    std::vector<LoraPartBackward> backward;
    if (lora) forward.push_back(shape.forward(m, n)), backward.push_back(shape.backward(m, n));
    GateUpForward f{.x = x,
                    .rstd = rstd,
                    .gain = gain,
                    .w = &w,
                    .bias = {},
                    .g = m.output({n, kF}, s),
                    .u = m.output({n, kF}, s),
                    .a = m.output({n, kF}, t),
                    .scratch = {},
                    .lora = forward};
    f.scratch = m.scratch(gate_up_forward_scratch(d, f));
    gate_up_forward(d, f);
    GateUpBackward b{.x = x,
                     .rstd = rstd,
                     .gain = gain,
                     .w = &w,
                     .dy = m.input(random_normal(n * 2 * kF, 4), {n, 2 * kF}, t),
                     .dx = m.accumulator(random_normal(n * kC, 5), {n, kC}),
                     .scratch = {},
                     .lora = backward};
    b.scratch = m.scratch(gate_up_backward_scratch(d, b));
    gate_up_backward(d, b);
    Results r{m.read(f.g), m.read(f.u), m.read(f.a), m.read(b.dx)};
    for (const auto& p : forward) r.push_back(m.read(p.z));
    for (const auto& p : backward) r.push_back(m.read(p.da)), r.push_back(m.read(p.db));
    return r;
  };
}

// Logits, and every part of the loss's seed; the gradient of the embedding goes through the same table.
Results head(Device& d, GuardedMemory& m, const FrozenMatrix& w) {
  const int64_t n = 6, r = 5, v = w.rows(), c = w.cols();
  const auto x = m.input(random_normal(n * c, 1), {n, c}), gain = m.input(random_normal(c, 2), {c});
  const auto rows = m.input(random_ints(r, 3, 0, n - 1), {r});
  HeadLogits l{.x = x, .rows = rows, .gain = gain, .w = &w, .logits = m.output({r, v}), .scratch = {}};
  l.scratch = m.scratch(head_logits_scratch(d, l));
  head_logits(d, l);
  HeadLoss loss{.x = x,
                .rows = rows,
                .gain = gain,
                .w = &w,
                .labels = m.input(random_ints(r, 4, 0, static_cast<int32_t>(v) - 1), {r}),
                .ce_weight = m.input(random_uniform(r, 5, 0.5f, 1.0f), {r}),
                .reference = m.input(random_normal(r * c, 6), {r, c}),
                .kl_weight = m.input(random_uniform(r, 7, 0.5f, 1.0f), {r}),
                .embedding = &w,
                .embedding_grad = m.input(random_normal(r * c, 8), {r, c}),
                .key = m.input(std::vector<int64_t>(z(r), 77), {r}),
                .counter = m.input(std::vector<int64_t>{1, 2, 3, 4, 5}, {r}),
                .nll = m.output({r}),
                .kl = m.output({r}),
                .argmax = {},
                .dx = m.accumulator(random_normal(n * c, 9), {n, c}),
                .scratch = {}};
  loss.scratch = m.scratch(head_loss_scratch(d, loss));
  head_loss(d, loss);
  return {m.read(l.logits), m.read(loss.nll), m.read(loss.kl), m.read(loss.dx)};
}

// shift: elements from an aligned address to where the op's tensors begin.
void compare(Device& device, const char* name, const PackedMatrix& matrix, const Run& run,
             int64_t shift = 0) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(fmt::format("{}, {}", name, dtype_name(t)));
    const auto packed = matrix.packed(device, t), expanded = matrix.expanded(device, t);
    EXPECT_TRUE(packed->packed());
    EXPECT_FALSE(expanded->packed());
    EXPECT_LT(packed->bytes(), expanded->bytes() * 3 / 5);  // Q8_0's 34 bytes of 64
    const uint64_t before = device.hash(*packed);
    const auto results = [&](const FrozenMatrix& w) {
      GuardedMemory memory(device, shift);
      return run(device, memory, w);
    };
    const Results got = results(*packed), want = results(*expanded);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(bitwise_equal(fmt::format("output {}", i), got[i], want[i]));
    EXPECT_EQ(device.hash(*packed), before);
  }
}

TEST_P(PackedOps, GiveTheBitsOfExpandedWeights) {
  compare(device(), "embedding", PackedMatrix(61, kC, kEvery, 1), embed);
  compare(device(), "head", PackedMatrix(300, kC, kEvery, 2, true), head);
  for (const bool lora : {false, true}) {
    SCOPED_TRACE(lora ? "with an adapter" : "alone");
    for (const int64_t n : {int64_t{1}, int64_t{20}}) {
      compare(device(), "qkv", PackedMatrix(kQkv, kC, kEvery, 3), qkv(n, lora));
      compare(device(), "project", PackedMatrix(kC, kF, kEvery, 4), project(n, lora));
      compare(device(), "down", PackedMatrix(kC, kF, kEvery, 5), down(n, lora));
      compare(device(), "gate and up", PackedMatrix(2 * kF, kC, kEvery, 6), gate_up(n, lora));
    }
  }
}

// A width that is no multiple of 256 values, as small models have.
TEST_P(PackedOps, TakeNarrowBlocks) {
  const std::vector<PackedType> narrow{PackedType::kQ8_0, PackedType::kNf4, PackedType::kQ4_0};
  for (const int64_t shift : {0, 1})
    compare(device(), "embedding", PackedMatrix(61, 64, narrow, 1), embed, shift);
  compare(device(), "head", PackedMatrix(75, 576, narrow, 2, true), head);
  compare(device(), "head", PackedMatrix(33, 320, {PackedType::kNf4}, 3, true), head);
}

// More rows than a head's products take at a time.
TEST_P(PackedOps, TakeATallHeadInRanges) {
  const PackedMatrix matrix(kTallRows + 70, 64, {PackedType::kQ8_0}, 2, true);
  const auto packed = matrix.packed(device(), DType::kBF16),
             expanded = matrix.expanded(device(), DType::kBF16);
  EXPECT_EQ(device().expansion_bytes() % (64 * 2), 0);
  const auto results = [&](const FrozenMatrix& w) {
    GuardedMemory memory(device());
    return head(device(), memory, w);
  };
  const Results got = results(*packed), want = results(*expanded);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(bitwise_equal(fmt::format("output {}", i), got[i], want[i]));
  // The gradient sums over the vocabulary, in ranges: on the CPU as with expanded weights, on the GPU in
  // another order. The sum has some 8,000 f32 terms, whose roundings of 2^-24 of the partial sums add up at
  // random.
  const auto reference = to_double(want[3]);
  EXPECT_TRUE(
      within("dx", got[3], reference, std::vector<double>(reference.size(), 4e-6 * largest(reference))));
  if (host_sees_values()) {
    EXPECT_TRUE(bitwise_equal("dx", got[3], want[3]));
  }
}

// A matrix that does not fit the memory for expanding, 32 MiB, is taken some columns at a time.
TEST(PackedOpsOnTheCpu, TakeALargeMatrixInPieces) {
  const auto device = make_cpu(2);
  const int64_t rows = 2400, cols = 4096, n = 3;
  const PackedMatrix matrix(rows, cols, {PackedType::kQ4_K, PackedType::kNf4}, 8);
  const auto packed = matrix.packed(*device, DType::kF32), expanded = matrix.expanded(*device, DType::kF32);
  EXPECT_EQ(device->expansion_bytes(), int64_t{32} << 20);
  EXPECT_LT(device->expansion_bytes(), rows * cols * 4);
  const auto results = [&](const FrozenMatrix& w) {
    GuardedMemory m(*device);
    ProjectBackward b{.dout = m.input(random_normal(n * rows, 3), {n, rows}),
                      .w = &w,
                      .da = m.output({n, cols}),
                      .scratch = {}};
    b.scratch = m.scratch(project_backward_scratch(*device, b));
    project_backward(*device, b);
    return m.read(b.da);
  };
  EXPECT_TRUE(bitwise_equal("da", results(*packed), results(*expanded)));
}

// The hash sees each part of what is held.
TEST_P(PackedOps, TheHashSeesEveryPart) {
  std::vector<uint64_t> hashes;
  for (const uint64_t seed : {1, 2})
    for (const PackedType type : {PackedType::kQ8_0, PackedType::kNf4})
      hashes.push_back(device().hash(*PackedMatrix(6, 256, {type}, seed).packed(device(), DType::kF32)));
  const PackedMatrix nf4(6, 256, {PackedType::kNf4}, 1);
  const auto hash_with = [&](const std::function<void(Nf4Quantised&)>& change) {
    MatrixSource source = nf4.source();
    source.keep_packed = true;
    Nf4Quantised scales = source.packed[0].scales();
    change(scales);
    source.packed[0].scales = [&scales] { return scales; };
    return device().hash(*device().freeze(source, DType::kF32));
  };
  EXPECT_EQ(hash_with([](Nf4Quantised&) {}), hashes[1]);
  hashes.push_back(hash_with([](Nf4Quantised& s) { s.codes.back() ^= 1; }));
  hashes.push_back(hash_with([](Nf4Quantised& s) { s.steps[0] *= 2; }));
  hashes.push_back(hash_with([](Nf4Quantised& s) { s.mean += 1; }));
  for (size_t i = 0; i < hashes.size(); ++i)
    for (size_t j = 0; j < i; ++j) EXPECT_NE(hashes[i], hashes[j]) << i << " and " << j;
}

}  // namespace
}  // namespace gantrain
