#include "core/ops/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/buffer.h"
#include "core/ops/embedding.h"
#include "core/rng.h"
#include "tests/reference/dequantize.h"
#include "tests/support/devices.h"
#include "tests/support/frozen.h"

namespace gantrain {
namespace {

using namespace test;

class DequantizeOps : public OpsTest {};
GT_ALL_DEVICES(DequantizeOps);

constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1}, {3, 7}, {33, 2}, {130, 3}};  // rows, blocks a row
constexpr PackedType kAll[] = {PackedType::kQ8_0, PackedType::kQ4_0, PackedType::kQ4_1, PackedType::kQ4_K,
                               PackedType::kQ6_K};

double truth(PackedType type, const uint8_t* block, size_t i) {
  switch (type) {
    case PackedType::kQ8_0:
      return reference::q8_0_value(block, i);
    case PackedType::kQ4_0:
      return reference::q4_0_value(block, i);
    case PackedType::kQ4_1:
      return reference::q4_1_value(block, i);
    case PackedType::kQ4_K:
      return reference::q4_k_value(block, i);
    case PackedType::kQ6_K:
      return reference::q6_k_value(block, i);
    case PackedType::kNf4:  // below: its scales lie apart
      break;
  }
  return 0;
}

// Random bytes: every bit of every field takes part. The f16 among them are made finite.
std::vector<uint8_t> random_blocks(PackedType type, int64_t blocks, uint64_t seed) {
  const int64_t size = packed_block(type).bytes;
  std::vector<uint8_t> bytes;
  for (const int32_t b : random_ints(blocks * size, seed, 0, 255)) bytes.push_back(static_cast<uint8_t>(b));
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* block = bytes.data() + b * size;
    const auto finite = [&](int64_t at) {  // the top bit of the exponent: below 2
      block[at + 1] = static_cast<uint8_t>(block[at + 1] & 0xbf);
    };
    finite(type == PackedType::kQ6_K ? 208 : 0);
    if (type == PackedType::kQ4_1 || type == PackedType::kQ4_K) finite(2);
  }
  return bytes;
}

// All values of `rows` rows of `cols`, rounded once to f32.
std::vector<float> expected(PackedType type, const std::vector<uint8_t>& bytes) {
  const PackedBlock block = packed_block(type);
  std::vector<float> out;
  for (size_t b = 0; b < bytes.size(); b += z(block.bytes))
    for (int64_t i = 0; i < block.values; ++i)
      out.push_back(static_cast<float>(truth(type, bytes.data() + b, z(i))));
  return out;
}

// Bytes on the device, from the third on where `shifted`: at an even address that is no multiple of four.
struct Packed {
  Packed(Device& device, const std::vector<uint8_t>& bytes, int64_t rows, bool shifted)
      : storage(device, DType::kU8, {static_cast<int64_t>(bytes.size()) + 2}) {
    std::vector<uint8_t> whole(bytes.size() + 2, 0);
    const size_t at = shifted ? 2 : 0;
    std::copy(bytes.begin(), bytes.end(), whole.begin() + static_cast<std::ptrdiff_t>(at));
    device.copy_in(storage, whole.data());
    tensor = ConstTensor(static_cast<const std::byte*>(storage.view().raw()) + at, DType::kU8,
                         {rows, static_cast<int64_t>(bytes.size()) / rows}, device.kind());
  }
  OwnedTensor storage;
  ConstTensor tensor;
};

// Whether the blocks lie at an odd place, and elements from an aligned address to the first value.
constexpr std::pair<bool, int64_t> kPlaces[] = {{false, 0}, {true, 0}, {false, 1}};

TEST_P(DequantizeOps, EveryBitIsTruth) {
  for (const PackedType type : kAll) {
    const PackedBlock block = packed_block(type);
    for (const auto& [rows, blocks] : kShapes)
      for (const auto& [shifted, shift] : kPlaces)
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
          SCOPED_TRACE(fmt::format("{}, {} rows of {} blocks, {}{}, values from {}", block.name, rows, blocks,
                                   dtype_name(dtype), shifted ? ", at an odd place" : "", shift));
          const auto bytes = random_blocks(type, rows * blocks, static_cast<uint64_t>(rows + blocks));
          const auto got = run_deterministic(
              [&, rows = rows, blocks = blocks, shifted = shifted, shift = shift](Device& d) {
                GuardedMemory m(d, shift);
                const Packed packed(d, bytes, rows, shifted);
                const Tensor y = m.output({rows, blocks * block.values}, dtype);
                dequantize(d, {.packed = packed.tensor, .type = type, .y = y});
                return std::vector<std::vector<float>>{m.read(y)};
              });
          EXPECT_TRUE(bitwise_equal("values", got[0], rounded_to(dtype, expected(type, bytes))));
        }
  }
}

// A tile of rows out of the middle, as a product over a packed base takes it.
TEST_P(DequantizeOps, TakesATileOfRows) {
  const int64_t rows = 9, first = 5, count = 3;
  for (const PackedType type : kAll) {
    const int64_t cols = packed_block(type).values * 3, row = packed_row_bytes(type, cols);
    const auto bytes = random_blocks(type, rows * 3, 7);
    const Packed packed(device(), bytes, rows, false);
    GuardedMemory m(device());
    const Tensor y = m.output({count, cols});
    const ConstTensor tile(static_cast<const std::byte*>(packed.tensor.raw()) + first * row, DType::kU8,
                           {count, row}, device().kind());
    dequantize(device(), {.packed = tile, .type = type, .y = y});
    const auto all = expected(type, bytes);
    EXPECT_TRUE(
        bitwise_equal("tile", m.read(y),
                      std::vector<float>(all.begin() + first * cols, all.begin() + (first + count) * cols)));
    EXPECT_EQ(dequantize_bytes({.packed = tile, .type = type, .y = y}), count * (row + cols * 4));
  }
}

// Rows of two types, one of them in another order than they lie in: as attention's stacked, permuted weights.
TEST_P(DequantizeOps, FreezeExpandsPackedRows) {
  const int64_t cols = 512, upper = 6, lower = 5;
  const auto a = random_blocks(PackedType::kQ4_K, upper * cols / 256, 1),
             b = random_blocks(PackedType::kQ8_0, lower * cols / 32, 2);
  const auto row_of = [](const std::vector<uint8_t>& bytes, PackedType type, int64_t i) {
    return static_cast<const void*>(bytes.data() + i * packed_row_bytes(type, cols));
  };
  const auto swapped = [](int64_t i) { return i ^ 1; };
  std::vector<float> want(z((upper + lower) * cols));
  for (int64_t i = 0; i < upper; ++i)
    unpack_blocks(PackedType::kQ4_K, row_of(a, PackedType::kQ4_K, swapped(i)), cols / 256,
                  want.data() + i * cols);
  for (int64_t i = 0; i < lower; ++i)
    unpack_blocks(PackedType::kQ8_0, row_of(b, PackedType::kQ8_0, i), cols / 32,
                  want.data() + (upper + i) * cols);
  MatrixSource source;
  source.rows = upper + lower;
  source.cols = cols;
  source.read = [&](int64_t begin, int64_t n, float* out) {
    std::copy_n(want.begin() + begin * cols, n * cols, out);
  };
  MatrixSource packed = source;
  packed.packed = {
      {PackedType::kQ4_K, 0, upper, [&](int64_t i) { return row_of(a, PackedType::kQ4_K, swapped(i)); }},
      {PackedType::kQ8_0, upper, lower, [&](int64_t i) { return row_of(b, PackedType::kQ8_0, i); }}};
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < upper + lower; ++i) tokens.push_back(i);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto plain = device().freeze(source, dtype), expanded = device().freeze(packed, dtype);
    EXPECT_EQ(device().hash(*plain), device().hash(*expanded)) << dtype_name(dtype);
    GuardedMemory m(device());
    const Tensor x = m.output({upper + lower, cols});
    embed_forward(
        device(),
        {.table = expanded.get(), .tokens = m.input(tokens, {upper + lower}), .prompt = {}, .x = x});
    EXPECT_TRUE(bitwise_equal("rows", m.read(x), rounded_to(dtype, want))) << dtype_name(dtype);
  }
}

// NF4: blocks, codes, steps and a mean, of a tile of rows out of a tensor.
struct Nf4 {
  static constexpr int64_t kFirst = 5 * 256 - 3;  // of the tile in its tensor: two steps, and a rest, are met
  int64_t rows, row_blocks;
  std::vector<uint8_t> nibbles, codes;
  std::vector<float> steps;
  float mean = 0.11f;

  Nf4(int64_t rows_, int64_t row_blocks_) : rows(rows_), row_blocks(row_blocks_) {
    for (const int32_t b : random_ints(rows * row_blocks * 32, 1, 0, 255))
      nibbles.push_back(static_cast<uint8_t>(b));
    for (const int32_t b : random_ints(rows * row_blocks, 2, 0, 255))
      codes.push_back(static_cast<uint8_t>(b));
    steps = random_uniform((kFirst + rows * row_blocks + 255) / 256, 3, 0.01f, 0.2f);
  }
  // Both operations of a scale are rounded to f32, as the values are.
  std::vector<float> expected() const {
    std::vector<float> out;
    for (size_t b = 0; b < codes.size(); ++b) {
      const double code = reference::dynamic_value(codes[b]);
      const auto product = static_cast<float>(code * static_cast<double>(steps[(z(kFirst) + b) / 256]));
      const auto scale = static_cast<float>(static_cast<double>(product) + static_cast<double>(mean));
      for (size_t i = 0; i < 64; ++i) {
        const auto value = static_cast<float>(reference::nf4_value(nibbles.data() + 32 * b, i));
        out.push_back(static_cast<float>(static_cast<double>(value) * static_cast<double>(scale)));
      }
    }
    return out;
  }
};

struct Nf4OnDevice {
  Nf4OnDevice(Device& d, const Nf4& v, bool shifted)
      : nibbles(d, DType::kU8, {static_cast<int64_t>(v.nibbles.size()) + 4}),
        codes(d, DType::kU8, {static_cast<int64_t>(v.codes.size())}),
        steps(d, DType::kF32, {static_cast<int64_t>(v.steps.size())}),
        values(d, DType::kF32, {256}) {
    std::vector<uint8_t> whole(v.nibbles.size() + 4, 0);
    const int64_t at = shifted ? 4 : 0;
    std::copy(v.nibbles.begin(), v.nibbles.end(), whole.begin() + at);
    d.copy_in(nibbles, whole.data());
    d.copy_in(codes, v.codes.data());
    d.copy_in(steps, v.steps.data());
    d.copy_in(values, nf4_scale_values());
    op = {.packed = ConstTensor(static_cast<const std::byte*>(nibbles.view().raw()) + at, DType::kU8,
                                {v.rows, v.row_blocks * 32}, d.kind()),
          .type = PackedType::kNf4,
          .y = {},
          .codes = codes,
          .steps = steps,
          .values = values,
          .mean = v.mean,
          .first = Nf4::kFirst};
  }
  OwnedTensor nibbles, codes, steps, values;
  Dequantize op;
};

TEST_P(DequantizeOps, EveryBitOfNf4IsTruth) {
  for (const auto& [rows, blocks] : kShapes)
    for (const auto& [shifted, shift] : kPlaces)
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(fmt::format("{} rows of {} blocks, {}{}, values from {}", rows, blocks,
                                 dtype_name(dtype), shifted ? ", at an odd place" : "", shift));
        const Nf4 v(rows, blocks);
        const auto got = run_deterministic([&, blocks = blocks, shifted = shifted, shift = shift](Device& d) {
          GuardedMemory m(d, shift);
          Nf4OnDevice on(d, v, shifted);
          on.op.y = m.output({v.rows, blocks * 64}, dtype);
          dequantize(d, on.op);
          EXPECT_EQ(dequantize_bytes(on.op), v.rows * blocks * (33 + 64 * dtype_size(dtype)));
          return std::vector<std::vector<float>>{m.read(on.op.y)};
        });
        EXPECT_TRUE(bitwise_equal("values", got[0], rounded_to(dtype, v.expected())));
      }
}

TEST_P(DequantizeOps, RefusesNf4WithoutItsScales) {
  const Nf4 v(3, 2);
  GuardedMemory m(device());
  Nf4OnDevice on(device(), v, false);
  on.op.y = m.output({3, 128});
  const auto refused = [&](const std::function<void(Dequantize&)>& change) {
    Dequantize a = on.op;
    change(a);
    EXPECT_THROW(dequantize(device(), a), Error);
  };
  refused([](Dequantize& a) { a.codes = {}; });
  refused([](Dequantize& a) { a.steps = {}; });
  refused([](Dequantize& a) { a.values = {}; });
  refused([](Dequantize& a) { a.first = -1; });
  refused([](Dequantize& a) { a.first += 256; });
  refused([](Dequantize& a) {
    a.packed = ConstTensor(static_cast<const std::byte*>(a.packed.raw()) + 2, DType::kU8, a.packed.shape(),
                           a.packed.device());
  });
}

// The sixteen values: quantiles of the normal distribution, eight above zero and seven below it, scaled to
// end at one (arXiv:2305.14314, section 3). The probabilities run from 1 - 0.9677083 to 0.9677083.
TEST(Nf4, ValuesAreQuantilesOfTheNormalDistribution) {
  const auto quantile = [](double p) {
    double low = -10, high = 10;
    for (int i = 0; i < 200; ++i) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
    }
    return low;
  };
  const double last = 0.9677083, top = quantile(last);
  for (int i = 0; i < 16; ++i) {
    const double p = i >= 7 ? 0.5 + (last - 0.5) * (i - 7) / 8 : 0.5 - (last - 0.5) * (7 - i) / 7;
    // The paper's code takes them in f32.
    EXPECT_NEAR(static_cast<double>(kNf4Values[i]), quantile(p) / top, 2e-7) << i;
  }
}

// A block that is packed has its largest magnitude as its scale, each value the nearest of the sixteen, and
// each scale the nearest of 256.
TEST(Nf4, PacksToTheNearest) {
  const int64_t blocks = 600;
  auto values = random_normal(blocks * 64, 1, 0.02f);
  std::fill_n(values.begin() + 64, 64, 0.0f);
  std::vector<uint8_t> packed(z(blocks * 32));
  std::vector<float> scales(z(blocks));
  pack_nf4(values.data(), blocks, packed.data(), scales.data());
  EXPECT_EQ(scales[1], 0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    float most = 0;
    for (int64_t i = 0; i < 64; ++i) most = std::max(most, std::abs(values[z(b * 64 + i)]));
    EXPECT_EQ(scales[z(b)], most);
    for (int64_t i = 0; i < 64; ++i) {
      const double x =
          static_cast<double>(values[z(b * 64 + i)]) / std::max(1e-30, static_cast<double>(most));
      double least = 10;
      for (const float v : kNf4Values) least = std::min(least, std::abs(static_cast<double>(v) - x));
      // The quotient is rounded to f32 before it is compared: a tie may fall to either side.
      EXPECT_LE(std::abs(reference::nf4_value(packed.data() + 32 * b, z(i)) - x), least + 2e-7)
          << b << ", " << i;
    }
  }
  const Nf4Quantised q = quantise_nf4_scales(scales);
  ASSERT_EQ(q.codes.size(), z(blocks));
  ASSERT_EQ(q.steps.size(), 3u);
  for (size_t b = 0; b < q.codes.size(); ++b) {
    const double x = (static_cast<double>(scales[b]) - static_cast<double>(q.mean)) /
                     static_cast<double>(q.steps[b / 256]);
    EXPECT_LE(std::abs(x), 1 + 1e-6);
    double least = 10;
    for (uint8_t code = 0;; ++code) {
      least = std::min(least, std::abs(reference::dynamic_value(code) - x));
      if (code == 255) break;
    }
    EXPECT_LE(std::abs(reference::dynamic_value(q.codes[b]) - x), least + 2e-7) << b;
  }
}

// Every value is packed within half a step of itself. The step d and, for Q4_1, the least value (here at most
// 0.1) are rounded to f16 after that: q d is off by up to 127 units of d.
TEST(PackBlocks, RoundsToTheNearestStep) {
  for (const PackedType type : {PackedType::kQ8_0, PackedType::kQ4_0, PackedType::kQ4_1}) {
    const PackedBlock block = packed_block(type);
    const int64_t blocks = 50;
    auto values = random_normal(blocks * 32, 4, 0.02f);
    std::fill_n(values.begin() + 32, 32, 0.0f);
    std::vector<uint8_t> packed(z(blocks * block.bytes));
    pack_blocks(type, values.data(), blocks, packed.data());
    for (int64_t b = 0; b < blocks; ++b) {
      const float* x = values.data() + b * 32;
      const double d = std::abs(reference::half_value(packed.data() + b * block.bytes));
      for (int64_t i = 0; i < 32; ++i) {
        const double got = truth(type, packed.data() + b * block.bytes, z(i));
        // Q4_0 has -8 .. 7: the other extreme may be up to a whole step away.
        const double steps = type == PackedType::kQ4_0 ? 1.0 : 0.5;
        const double limit =
            (steps + 127 * kUnitF16) * d + (type == PackedType::kQ4_1 ? 0.1 * kUnitF16 : 0.0);
        EXPECT_LE(std::abs(got - static_cast<double>(x[i])), limit)
            << block.name << ", block " << b << ", value " << i;
      }
    }
  }
}

TEST_P(DequantizeOps, RefusesWrongCalls) {
  const auto bytes = random_blocks(PackedType::kQ4_0, 4, 3);
  const Packed packed(device(), bytes, 2, false);
  GuardedMemory m(device());
  const Tensor y = m.output({2, 64}), narrow = m.output({2, 48}), few = m.output({3, 64});
  const Tensor ints = m.output({2, 64}, DType::kI32);
  const auto refused = [&](const Dequantize& a) { EXPECT_THROW(dequantize(device(), a), Error); };
  refused({.packed = packed.tensor, .type = PackedType::kQ4_1, .y = y});
  refused({.packed = packed.tensor, .type = PackedType::kQ4_0, .y = narrow});
  refused({.packed = packed.tensor, .type = PackedType::kQ4_0, .y = few});
  refused({.packed = packed.tensor, .type = PackedType::kQ4_0, .y = ints});
  refused({.packed = {}, .type = PackedType::kQ4_0, .y = y});
}

}  // namespace
}  // namespace gantrain
