#include "core/ops/prefix.h"

#include <gtest/gtest.h>

#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;

class PrefixOps : public OpsTest {};
GT_ALL_DEVICES(PrefixOps);

// Rows, layers, heads, head size: widths that are vectors of 16 bytes in every type, in some and in none.
struct Problem {
  int64_t p, layers, k, d;
  int64_t shift = 0;  // elements from an aligned address to where tensors begin
};
constexpr Problem kProblems[] = {{1, 1, 1, 2},   {7, 3, 2, 16},   {7, 3, 2, 16, 1},
                                 {31, 2, 1, 4},  {20, 2, 3, 64},  {33, 1, 1, 6},
                                 {5, 2, 3, 100}, {257, 1, 1, 33}, {1000, 1, 1, 8}};

TEST_P(PrefixOps, KeysAndValuesOfALayer) {
  for (const DType kept : {DType::kF32, DType::kBF16, DType::kF16})
    for (const Problem& q : kProblems)
      for (int64_t layer = 0; layer < q.layers; ++layer) {
        const int64_t width = q.k * q.d;
        const auto table = random_normal(q.p * 2 * q.layers * width, 1);
        const auto got = run_deterministic([&](Device& d) {
          GuardedMemory m(d, q.shift);
          const Tensor k = m.output({q.p, q.k, q.d}, kept), v = m.output({q.p, q.k, q.d}, kept);
          prefix_forward(
              d, {.table = m.input(table, {q.p, 2 * q.layers, width}), .layer = layer, .k = k, .v = v});
          return std::vector<std::vector<float>>{m.read(k), m.read(v)};
        });
        for (const int64_t part : {0, 1}) {
          std::vector<float> want;
          for (int64_t i = 0; i < q.p; ++i)
            for (int64_t j = 0; j < width; ++j)
              want.push_back(table[z((i * 2 * q.layers + 2 * layer + part) * width + j)]);
          EXPECT_TRUE(bitwise_equal(part == 0 ? "k" : "v", got[z(part)], rounded_to(kept, want)));
        }
      }
}

TEST_P(PrefixOps, TheGradientIsAddedToTheLayersPartAlone) {
  for (const DType type : {DType::kF32, DType::kBF16})
    for (const Problem& q : kProblems)
      for (int64_t layer = 0; layer < q.layers; ++layer) {
        const int64_t width = q.k * q.d, count = q.p * width;
        const auto dk = rounded_to(type, random_normal(count, 1)),
                   dv = rounded_to(type, random_normal(count, 2));
        const auto start = random_normal(2 * q.layers * count, 3);
        const auto got = run_deterministic([&](Device& d) {
          GuardedMemory m(d, q.shift);
          const Tensor dtable = m.accumulator(start, {q.p, 2 * q.layers, width});
          prefix_backward(d, {.dk = m.input(dk, {q.p, q.k, q.d}, type),
                              .dv = m.input(dv, {q.p, q.k, q.d}, type),
                              .layer = layer,
                              .dtable = dtable});
          return std::vector<std::vector<float>>{m.read(dtable)};
        });
        std::vector<float> want = start;  // one sum each: the same bits
        for (int64_t i = 0; i < q.p; ++i)
          for (int64_t j = 0; j < width; ++j) {
            want[z((i * 2 * q.layers + 2 * layer) * width + j)] += dk[z(i * width + j)];
            want[z((i * 2 * q.layers + 2 * layer + 1) * width + j)] += dv[z(i * width + j)];
          }
        EXPECT_TRUE(bitwise_equal("dtable", got[0], want));
      }
}

TEST_P(PrefixOps, WrongShapesThrow) {
  GuardedMemory m(device());
  const auto call = [&](Shape table, int64_t layer, Shape k, Shape v) {
    prefix_forward(device(), {.table = m.accumulator(std::vector<float>(z(table.count())), table),
                              .layer = layer,
                              .k = m.output(k),
                              .v = m.output(v)});
  };
  EXPECT_NO_THROW(call({3, 4, 8}, 1, {3, 2, 4}, {3, 2, 4}));
  EXPECT_THROW(call({3, 4, 8}, 2, {3, 2, 4}, {3, 2, 4}), Error);  // there are two layers
  EXPECT_THROW(call({3, 4, 8}, -1, {3, 2, 4}, {3, 2, 4}), Error);
  EXPECT_THROW(call({3, 4, 8}, 0, {2, 2, 4}, {2, 2, 4}), Error);  // other rows
  EXPECT_THROW(call({3, 4, 8}, 0, {3, 2, 3}, {3, 2, 3}), Error);  // another width
  EXPECT_THROW(call({3, 4, 8}, 0, {3, 2, 4}, {3, 4, 2}), Error);  // a value unlike the key
  EXPECT_THROW(prefix_backward(device(), {.dk = m.output({3, 2, 4}, DType::kF16),
                                          .dv = m.output({3, 2, 4}, DType::kF16),
                                          .layer = 0,
                                          .dtable = m.output({3, 4, 8})}),
               Error);  // gradients are never f16
}

// P = 3, two layers, K D = 8: key and value of one layer.
TEST_P(PrefixOps, Counts) {
  GuardedMemory m(device());
  const Tensor table = m.output({3, 4, 8}), k = m.output({3, 2, 4}, DType::kBF16);
  EXPECT_EQ(prefix_forward_bytes({.table = table, .layer = 0, .k = k, .v = k}), 2 * 24 * (4 + 2));
  EXPECT_EQ(prefix_backward_bytes({.dk = k, .dv = k, .layer = 0, .dtable = table}), 2 * 24 * (2 + 2 * 4));
}

}  // namespace
}  // namespace gantrain
