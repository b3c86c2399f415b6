// The safetensors reader against hostile files, and the writer.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "model/formats/safetensors.h"
#include "tests/model/formats_support.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using test::message_of;
using test::safetensors_bytes;

class FormatsSafetensors : public ::testing::Test {
 protected:
  std::string refusal(const std::string& bytes) {
    const std::string path = folder_.write("x.safetensors", bytes);
    return message_of([&] { SafetensorsFile file(path); });
  }
  test::TemporaryFolder folder_;
};

TEST_F(FormatsSafetensors, ReadsEveryTypeAndRank) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("s":{"dtype":"I64","shape":[],"data_offsets":[24,32]},"none":{"dtype":"F16","shape":[0,7],"data_offsets":[32,32]},)"
      R"("b":{"dtype":"BF16","shape":[1,2,1,1],"data_offsets":[32,36]},"i":{"dtype":"I32","shape":[1],"data_offsets":[36,40]},)"
      R"("u":{"dtype":"U8","shape":[3],"data_offsets":[40,43]}}    )";  // padded
  const std::string path = folder_.write("x.safetensors", safetensors_bytes(header, 43));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.entries().size(), 6u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensor("a").shape(), (Shape{2, 3}));
  EXPECT_EQ(file.tensor("s").rank(), 0);
  EXPECT_EQ(file.tensor("s").dtype(), DType::kI64);
  EXPECT_EQ(file.tensor("none").count(), 0);
  EXPECT_EQ(file.tensor("b").dtype(), DType::kBF16);
  EXPECT_EQ(file.tensor("u").bytes(), 3);
  EXPECT_EQ(file.find("absent"), nullptr);
  GT_EXPECT_MESSAGE(message_of([&] { file.tensor("absent"); }), path, "no tensor 'absent'");
  EXPECT_TRUE(
      SafetensorsFile(folder_.write("empty.safetensors", safetensors_bytes("{}", 0))).entries().empty());
}

TEST_F(FormatsSafetensors, EveryTruncationIsAnError) {
  const std::string whole = safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    GT_EXPECT_MESSAGE(refusal(whole.substr(0, n)), folder_.path(), "x.safetensors");
  }
  const SafetensorsFile file(folder_.write("x.safetensors", whole));
  EXPECT_EQ(file.entries().size(), 1u);
}

TEST_F(FormatsSafetensors, LyingHeaders) {
  auto one = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  const std::pair<std::string, const char*> cases[] = {
      {one(R"("dtype":"F64","shape":[1],"data_offsets":[0,8])"), "'w': type F64 is not supported"},
      {one(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"), "'w': type F8_E4M3"},
      {one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "needs 12 bytes, data_offsets give 8"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), "needs 4 bytes, data_offsets give 8"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])"), "leave the data of 8 bytes"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[8,4])"), "leave the data of 8 bytes"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "leave a hole"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), "4 bytes after the last tensor"},
      {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"), "overflows"},
      {one(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])"), "overflows"},
      {one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "not a size"},
      {one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "not a size"},
      {one(R"("dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8])"), "rank 5"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), "expected [begin, end]"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,"8"])"), "expected [begin, end]"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])"), "expected [begin, end]"},
      {one(R"("dtype":"F32","shape":[2])"), "expected an object with dtype, shape and data_offsets"},
      {one(R"("dtype":5,"shape":[2],"data_offsets":[0,8])"), "expected an object with dtype"},
      {R"({"w":[]})", "'w': expected an object"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "overlap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "'a' stands twice"},
      {R"({"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})", "'dtype' stands twice"},
      {R"({"__metadata__":{"n":5},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "__metadata__.n"},
      {R"({"__metadata__":[],"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "__metadata__ is not"},
      {R"([1, 2])", "byte 8: expected '{'"},
      {R"( {"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "byte 8: expected '{'"},
      {"\xef\xbb\xbf{}", "byte 8: expected '{'"},
      {R"({"w":)", "not valid JSON"},
      {"{\"\xff\":1}", "not valid JSON"},
      {R"({} {})", "not valid JSON"},
      {R"({"w":{"dtype":"F32","shape":)" + std::string(100000, '[') + std::string(100000, ']') +
           R"(,"data_offsets":[0,8]}})",
       "nested deeper"},
  };
  for (const auto& [header, part] : cases) {
    SCOPED_TRACE(header.substr(0, 120));
    GT_EXPECT_MESSAGE(refusal(safetensors_bytes(header, 8)), folder_.path(), part);
  }
}

TEST_F(FormatsSafetensors, LyingHeaderLengths) {
  for (uint64_t n :
       {uint64_t{0}, uint64_t{1}, uint64_t{3}, uint64_t{100000001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    SCOPED_TRACE(n);
    std::string bytes;
    test::append(bytes, n);
    GT_EXPECT_MESSAGE(refusal(bytes + "{}"), folder_.path(), "header length");
  }
}

TEST_F(FormatsSafetensors, WhatIsNoFile) {
  const std::string absent = folder_.file("absent");
  GT_EXPECT_MESSAGE(message_of([&] { SafetensorsFile file(absent); }), absent, "cannot open");
  GT_EXPECT_MESSAGE(message_of([&] { SafetensorsFile file(folder_.path()); }), folder_.path(),
                    "not a regular file");
  const std::string pipe = folder_.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  GT_EXPECT_MESSAGE(message_of([&] { SafetensorsFile file(pipe); }), pipe, "not a regular file");
}

TEST_F(FormatsSafetensors, WrittenFilesReadBackTheSame) {
  const std::vector<uint8_t> u{1, 2, 3};
  const std::vector<float> a{1.5f, -0.0f, 3e-42f, 1e38f, 5.0f, 6.0f};
  const std::vector<int64_t> i{-100, int64_t{1} << 40};
  const std::vector<uint16_t> b{0x3f80, 0x7fc1};
  const float scalar = 0.25f;
  const std::string path = folder_.file("w.safetensors");
  write_safetensors(path,
                    {{"u", ConstTensor(u.data(), DType::kU8, {3})},
                     {"a \"quoted\" \n", ConstTensor(a.data(), DType::kF32, {2, 3})},
                     {"b", ConstTensor(b.data(), DType::kBF16, {2})},
                     {"scalar", ConstTensor(&scalar, DType::kF32, {})},
                     {"none", ConstTensor(a.data(), DType::kF32, {0, 4})},
                     {"i", ConstTensor(i.data(), DType::kI64, {2, 1})}},
                    {{"format", "pt"}, {"note", "x"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.entries().size(), 6u);
  EXPECT_EQ(file.metadata().at("note"), "x");
  auto same = [&](const char* name, const void* data, size_t bytes) {
    const ConstTensor t = file.tensor(name);
    ASSERT_EQ(t.bytes(), static_cast<int64_t>(bytes)) << name;
    EXPECT_EQ(std::memcmp(t.raw(), data, bytes), 0) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % static_cast<uintptr_t>(dtype_size(t.dtype())), 0u)
        << name;
  };
  same("u", u.data(), 3);
  same("a \"quoted\" \n", a.data(), 24);
  same("b", b.data(), 4);
  same("scalar", &scalar, 4);
  same("i", i.data(), 16);
  EXPECT_EQ(file.tensor("scalar").rank(), 0);
  EXPECT_EQ(file.tensor("none").shape(), (Shape{0, 4}));
  EXPECT_THROW(write_safetensors(path, {{"u", ConstTensor(u.data(), DType::kU8, {3})},
                                        {"u", ConstTensor(u.data(), DType::kU8, {3})}}),
               Error);
}

// A disk that takes 4 KiB and no more: the old file stays as it was, and no temporary file is left.
TEST_F(FormatsSafetensors, AShortWriteLeavesTheOldFile) {
  const std::vector<float> small{1.0f, 2.0f}, big(100000, 3.0f);
  const std::string path = folder_.file("w.safetensors");
  write_safetensors(path, {{"t", ConstTensor(small.data(), DType::kF32, {2})}});
  const std::string before = test::read_all(path);
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit tight{4096, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  std::string message;
  try {
    write_safetensors(path, {{"t", ConstTensor(big.data(), DType::kF32, {100000})}});
  } catch (const Error& e) {
    message = e.what();
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  GT_EXPECT_MESSAGE(message, path, "cannot write: File too large");
  EXPECT_EQ(test::read_all(path), before);
  size_t files = 0;
  for (const auto& f : fs::directory_iterator(folder_.path())) files += f.exists();
  EXPECT_EQ(files, 1u);
  const std::string nowhere = folder_.file("no/such/w.safetensors");
  GT_EXPECT_MESSAGE(message_of([&] {
                      write_safetensors(nowhere, {{"t", ConstTensor(small.data(), DType::kF32, {2})}});
                    }),
                    nowhere, "cannot create");
}

}  // namespace
}  // namespace gantrain
