#include "core/ops/dequantize.h"

#include <gtest/gtest.h>

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

TEST_P(DequantizeOps, EveryBitIsTruth) {
  for (const PackedType type : kAll) {
    const PackedBlock block = packed_block(type);
    for (const auto& [rows, blocks] : kShapes)
      for (const bool shifted : {false, true})
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
          SCOPED_TRACE(fmt::format("{}, {} rows of {} blocks, {}{}", block.name, rows, blocks,
                                   dtype_name(dtype), shifted ? ", at an odd place" : ""));
          const auto bytes = random_blocks(type, rows * blocks, static_cast<uint64_t>(rows + blocks));
          const auto got = run_deterministic([&, rows = rows, blocks = blocks](Device& d) {
            GuardedMemory m(d);
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
