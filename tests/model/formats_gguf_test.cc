// The GGUF reader: metadata, block formulas, hostile files.
#include <gtest/gtest.h>

#include "model/formats/gguf.h"
#include "tests/model/formats_support.h"

namespace gantrain {
namespace {

using test::append;
using test::append_half;
using test::GgufBuilder;
using test::message_of;

class FormatsGguf : public ::testing::Test {
 protected:
  std::string path() const { return folder_.file("x.gguf"); }
  std::string refusal(const std::string& bytes) {
    folder_.write("x.gguf", bytes);
    return message_of([&] { GgufFile file(path()); });
  }
  test::TemporaryFolder folder_;
};

std::string floats(size_t n) {
  std::string bytes;
  for (size_t i = 0; i < n; ++i) append(bytes, static_cast<float>(i) * 0.5f);
  return bytes;
}

TEST_F(FormatsGguf, ReadsEveryKindOfMetadata) {
  GgufBuilder b;
  b.text("s", "text \xe2\x96\x81").scalar("u8", 0, uint8_t{200}).scalar("i8", 1, int8_t{-5});
  b.scalar("u16", 2, uint16_t{65535}).scalar("i16", 3, int16_t{-300}).scalar("u32", 4, uint32_t{4000000000u});
  b.scalar("i32", 5, int32_t{-7})
      .scalar("f32", 6, 0.5f)
      .scalar("yes", 7, uint8_t{1})
      .scalar("no", 7, uint8_t{0});
  b.scalar("u64", 10, uint64_t{1} << 40).scalar("i64", 11, int64_t{-1}).scalar("f64", 12, 1e-5);
  b.array<std::string>("strings", 8, {"", "a\nb", std::string("\0x", 2)})
      .array<float>("floats", 6, {1.0f, -2.5f});
  b.array<int32_t>("ints", 5, {1, -1}).array<uint8_t>("bools", 7, {1, 0}).array<std::string>("none", 8, {});
  folder_.write("x.gguf", b.bytes());
  const GgufFile f(path());
  EXPECT_EQ(f.get_string("s"), "text \xe2\x96\x81");
  EXPECT_EQ(f.get_int("u8"), 200);
  EXPECT_EQ(f.get_int("i8"), -5);
  EXPECT_EQ(f.get_int("u16"), 65535);
  EXPECT_EQ(f.get_int("i16"), -300);
  EXPECT_EQ(f.get_int("u32"), 4000000000);
  EXPECT_EQ(f.get_int("i32"), -7);
  EXPECT_EQ(f.get_float("f32"), 0.5);
  EXPECT_TRUE(f.get_bool("yes"));
  EXPECT_FALSE(f.get_bool("no"));
  EXPECT_EQ(f.get_int("u64"), int64_t{1} << 40);
  EXPECT_EQ(f.get_int("i64"), -1);
  EXPECT_EQ(f.get_float("f64"), 1e-5);
  EXPECT_EQ(f.get_strings("strings"), (std::vector<std::string>{"", "a\nb", std::string("\0x", 2)}));
  EXPECT_EQ(f.get_floats("floats"), (std::vector<double>{1.0, -2.5}));
  EXPECT_EQ(f.get_ints("ints"), (std::vector<int64_t>{1, -1}));
  EXPECT_EQ(f.get_ints("bools"), (std::vector<int64_t>{1, 0}));
  EXPECT_TRUE(f.get_strings("none").empty());
  EXPECT_EQ(f.keys().size(), 18u);
  EXPECT_FALSE(f.has("absent"));
  GT_EXPECT_MESSAGE(message_of([&] { f.get_int("absent"); }), path(),
                    "'absent' is missing; expected an integer");
  GT_EXPECT_MESSAGE(message_of([&] { f.get_int("s"); }), path(), "'s': expected an integer, got a string");
  GT_EXPECT_MESSAGE(message_of([&] { f.get_strings("s"); }), path(), "'s': expected strings, got a string");
  GT_EXPECT_MESSAGE(message_of([&] { f.get_bool("u8"); }), path(),
                    "'u8': expected a boolean, got an integer");
}

// One block of each type, its numbers chosen so that every value is known by hand.
TEST_F(FormatsGguf, BlockFormulas) {
  std::string q8, q40, q41, half, brain;
  append_half(q8, 0.5f);
  for (int i = 0; i < 32; ++i) append(q8, static_cast<int8_t>(i * 8 - 128));
  append_half(q40, -0.25f);
  append_half(q41, 2.0f), append_half(q41, -3.0f);
  for (int i = 0; i < 16; ++i) {
    const auto nibbles = static_cast<uint8_t>(i | (15 - i) << 4);  // low: value i; high: value i + 16
    append(q40, nibbles), append(q41, nibbles);
  }
  append_half(half, 65504.0f), append_half(half, 5.9604645e-8f);
  append(brain, bf16(3.140625f).bits), append(brain, uint16_t{0x0001});
  GgufBuilder b;
  b.tensor("f32", {3}, 0, floats(3)).tensor("f16", {2}, 1, half).tensor("bf16", {2}, 30, brain);
  b.tensor("q8_0", {32}, 8, q8).tensor("q4_0", {32}, 2, q40).tensor("q4_1", {32}, 3, q41);
  folder_.write("x.gguf", b.bytes());
  const GgufFile f(path());
  auto values = [&](const char* name) {
    const GgufFile::Tensor* t = f.find(name);
    std::vector<float> v(static_cast<size_t>(t->shape.count()));
    f.read_rows(*t, 0, 1, v.data());
    return v;
  };
  EXPECT_EQ(values("f32"), (std::vector<float>{0.0f, 0.5f, 1.0f}));
  EXPECT_EQ(values("f16"), (std::vector<float>{65504.0f, 0x1p-24f}));
  EXPECT_EQ(values("bf16"), (std::vector<float>{3.140625f, 0x1p-133f}));
  const auto v8 = values("q8_0"), v40 = values("q4_0"), v41 = values("q4_1");
  for (size_t i = 0; i < 32; ++i) {
    const float q = static_cast<float>(i < 16 ? i : 15 - (i - 16));
    EXPECT_EQ(v8[i], 0.5f * (static_cast<float>(i) * 8 - 128)) << i;
    EXPECT_EQ(v40[i], -0.25f * (q - 8)) << i;
    EXPECT_EQ(v41[i], 2.0f * q - 3.0f) << i;
  }
  EXPECT_FALSE(f.direct(*f.find("f16")).empty());
  EXPECT_TRUE(f.direct(*f.find("q8_0")).empty());
}

TEST_F(FormatsGguf, RowsAreTheSlowExtent) {
  folder_.write("x.gguf", GgufBuilder().tensor("w", {4, 3}, 0, floats(12)).bytes());  // 3 rows of 4
  const GgufFile f(path());
  EXPECT_EQ(f.find("w")->shape, (Shape{3, 4}));
  std::vector<float> row(4);
  f.read_rows(*f.find("w"), 2, 1, row.data());
  EXPECT_EQ(row, (std::vector<float>{4.0f, 4.5f, 5.0f, 5.5f}));
  EXPECT_THROW(f.read_rows(*f.find("w"), 2, 2, row.data()), Error);
  EXPECT_THROW(f.read_rows(*f.find("w"), -1, 1, row.data()), Error);
}

TEST_F(FormatsGguf, EveryTruncationIsAnError) {
  GgufBuilder b;
  b.text("general.architecture", "llama").array<std::string>("tokens", 8, {"a", "bc"});
  b.array<float>("scores", 6, {1.0f}).tensor("w", {4, 2}, 0, floats(8));
  const std::string whole = b.bytes();
  for (size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    GT_EXPECT_MESSAGE(refusal(whole.substr(0, n)), path(), "");
  }
  folder_.write("x.gguf", whole);
  EXPECT_EQ(GgufFile(path()).tensors().size(), 1u);
}

TEST_F(FormatsGguf, LyingHeaders) {
  const std::string huge(8, '\xff');
  auto kv = [](std::string_view key, uint32_t type, std::string_view value) {
    return GgufBuilder().raw(key, type, value).bytes();
  };
  auto array = [](uint32_t element, uint64_t n, const std::string& rest = "") {
    std::string bytes;
    append(bytes, element);
    append(bytes, n);
    return GgufBuilder().raw("k", 9, bytes + rest).bytes();
  };
  auto tensor = [](const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset = 0) {
    return GgufBuilder().tensor_at("w", ne, type, offset).append_data(floats(64)).bytes();
  };
  auto with = [](auto&& change) {
    GgufBuilder b;
    b.text("k", "v").tensor("w", {4}, 0, floats(4));
    change(b);
    return b.bytes();
  };
  const std::pair<std::string, const char*> cases[] = {
      {with([](GgufBuilder& b) { b.version = 1; }), "version 1 is not supported; supported: 2, 3"},
      {with([](GgufBuilder& b) { b.version = 0x03000000; }),
       "is not supported; supported: 2, 3"},  // big-endian
      {with([](GgufBuilder& b) { b.tensor_count = int64_t{1} << 60; }), "tensor count at byte 8"},
      {with([](GgufBuilder& b) { b.kv_count = int64_t{1} << 60; }), "metadata count at byte 16"},
      {with([](GgufBuilder& b) { b.kv_count = 2; }), "expected rank 1 to 4"},
      {"GGUX" + GgufBuilder().bytes().substr(4), "expected the magic 'GGUF'"},
      {kv("k", 8, huge), "k at byte"},
      {kv("k", 8, huge.substr(0, 7) + std::string(1, '\x7f')), "k at byte"},
      {kv("k", 13, "12345678"), "unknown metadata type 13"},
      {kv("", 0, "1"), "metadata key 0 has 0 bytes"},
      {array(5, ~uint64_t{0}), "elements do not fit"},
      {array(5, uint64_t{1} << 62), "elements do not fit"},
      {array(8, 1000), "elements do not fit"},
      {array(0, 1000), "elements do not fit"},
      {array(9, 1, std::string(64, '\0')), "arrays of type 9"},
      {array(77, 1, std::string(64, '\0')), "arrays of type 77"},
      {with([](GgufBuilder& b) { b.text("k", "again"); }), "'k' appears twice"},
      {with([](GgufBuilder& b) { b.tensor("w", {4}, 0, floats(4)); }), "'w' appears twice"},
      {tensor({}, 0), "expected rank 1 to 4, got 0"},
      {tensor({1, 1, 1, 1, 1}, 0), "expected rank 1 to 4, got 5"},
      {tensor({4, 0}, 0), "extent 1 of 0 is out of range"},
      {tensor({uint64_t{1} << 63}, 0), "out of range"},
      {tensor({uint64_t{1} << 40, uint64_t{1} << 40}, 0), "out of range"},
      {tensor({256}, 13),
       "type Q5_K is not supported; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"},
      {tensor({256}, 10), "type Q2_K"},
      {tensor({128}, 12), "row of 128 values is not a multiple of Q4_K's block of 256"},
      {tensor({512}, 14), "the file is truncated"},
      {tensor({32}, 4), "type with number 4"},
      {tensor({33}, 8), "row of 33 values is not a multiple of Q8_0's block of 32"},
      {tensor({4}, 0, 16), "offset 16 is not aligned to 32"},
      {tensor({65}, 0), "the file is truncated"},
      {tensor({4}, 0, ~uint64_t{0} - 31), "the file is truncated"},
      {tensor({4}, 0, uint64_t{1} << 40), "the file is truncated"},
      {GgufBuilder().tensor_at("a", {9}, 0, 0).tensor_at("b", {4}, 0, 32).append_data(floats(64)).bytes(),
       "tensors 'a' and 'b' overlap"},
      {GgufBuilder().scalar("general.alignment", 4, uint32_t{0}).bytes(), "general.alignment"},
      {GgufBuilder().scalar("general.alignment", 4, uint32_t{12}).bytes(), "general.alignment"},
      {GgufBuilder().scalar("general.alignment", 4, uint32_t{1} << 30).bytes(), "general.alignment"},
      {GgufBuilder().text("general.alignment", "32").bytes(), "'general.alignment': expected an integer"},
  };
  for (const auto& [bytes, part] : cases) {
    SCOPED_TRACE(part);
    GT_EXPECT_MESSAGE(refusal(bytes), path(), part);
  }
}

TEST_F(FormatsGguf, OtherAlignmentsAndVersion2) {
  GgufBuilder b;
  b.alignment = 64;
  b.version = 2;
  b.scalar("general.alignment", 4, uint32_t{64})
      .tensor("a", {3}, 0, floats(3))
      .tensor("b", {2}, 0, floats(2));
  folder_.write("x.gguf", b.bytes());
  const GgufFile f(path());
  EXPECT_EQ(f.find("b")->offset - f.find("a")->offset, 64);
  EXPECT_EQ(f.find("a")->offset % 64, 0);
  std::vector<float> v(2);
  f.read_rows(*f.find("b"), 0, 1, v.data());
  EXPECT_EQ(v, (std::vector<float>{0.0f, 0.5f}));
}

}  // namespace
}  // namespace gantrain
