#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/check.h"
#include "train/crc32c.h"
#include "train/log/events.h"
#include "train/log/progress.h"
#include "train/log/tensorboard.h"
#include "train/text.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

class LogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

std::vector<nlohmann::json> lines_of(const fs::path& file) {
  std::istringstream in(read_text_file(file, 1 << 20));
  std::vector<nlohmann::json> out;
  std::string line;
  while (std::getline(in, line)) out.push_back(nlohmann::json::parse(line));
  return out;
}

TEST(Crc32c, KnownValues) {  // RFC 3720 appendix B.4
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(crc32c(ascending), 0x46DD794Eu);
  EXPECT_EQ(crc32c(ascending.substr(11), crc32c(ascending.substr(0, 11))), 0x46DD794Eu);
}

TEST_F(LogTest, EventsAreOneObjectALine) {
  const fs::path file = folder_ / "events.jsonl";
  {
    EventLog log(file);
    log.write("train", 3,
              {{"loss", 0.1},
               {"tokens", int64_t{12}},
               {"gate", true},
               {"text", std::string("a\n\"b\" \xc3")},
               {"curve", std::vector<double>{1.0, std::nan("")}},
               {"names", std::vector<std::string>{"x", "y"}}});
    log.write("train", 4, {{"loss", std::nan("")}, {"other", -std::numeric_limits<double>::infinity()}});
    EXPECT_EQ(static_cast<uintmax_t>(log.bytes()), fs::file_size(file));
    EXPECT_THROW(log.write("train", 4, {{"step", 1.0}}), Error);
  }
  const auto lines = lines_of(file);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["event"], "train");
  EXPECT_EQ(lines[0]["step"], 3);
  EXPECT_EQ(lines[0]["loss"], 0.1);  // to the last bit
  EXPECT_EQ(lines[0]["text"], "a\n\"b\" \xef\xbf\xbd");
  EXPECT_EQ(lines[0]["not_finite"], nlohmann::json({"curve"}));
  EXPECT_TRUE(lines[1]["loss"].is_null());
  EXPECT_EQ(lines[1]["not_finite"], nlohmann::json({"loss", "other"}));
}

TEST_F(LogTest, AResumedLogDropsWhatCameAfterTheCheckpoint) {
  const fs::path file = folder_ / "events.jsonl";
  int64_t kept = 0;
  {
    EventLog log(file);
    log.write("train", 1, {});
    kept = log.bytes();
    log.write("train", 2, {});
  }
  fs::resize_file(file, fs::file_size(file) - 3);  // killed inside a line
  {
    EventLog log(file, kept);
    log.write("train", 2, {{"again", true}});
  }
  const auto lines = lines_of(file);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["again"], true);
  EXPECT_THROW(EventLog(file, 1 << 20), Error);
  EXPECT_THROW(EventLog(folder_ / "no" / "folder.jsonl"), Error);
}

TEST_F(LogTest, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  EventLog log("/dev/full");
  EXPECT_THROW(log.write("train", 1, {{"loss", 1.0}}), Error);
}

// The framing, read back by hand; the tensorboard package reads the same in
// tests/train/witness_tensorboard.py.
TEST_F(LogTest, TensorBoardRecords) {
  fs::path file;
  {
    TensorBoard board(folder_ / "tb");
    board.scalar("loss", 7, 0.5);
    file = board.file();
    TensorBoard second(folder_ / "tb");  // in the same second: another name
    EXPECT_NE(second.file(), file);
  }
  const std::string bytes = read_text_file(file, 1 << 20);
  const auto masked = [](std::string_view text) {
    const uint32_t crc = crc32c(text);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t size;
    uint32_t crc;
    std::memcpy(&size, &bytes[at], 8);
    std::memcpy(&crc, &bytes[at + 8], 4);
    ASSERT_EQ(crc, masked(std::string_view(bytes).substr(at, 8)));
    ASSERT_LE(at + 16 + size, bytes.size());
    records.push_back(bytes.substr(at + 12, size));
    std::memcpy(&crc, &bytes[at + 12 + size], 4);
    ASSERT_EQ(crc, masked(records.back()));
    at += 16 + size;
  }
  ASSERT_EQ(records.size(), 2u);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
  // wall_time (9 bytes), step 7, summary of 13 bytes { value of 11 { tag "loss", simple_value 0.5f } }
  EXPECT_EQ(records[1].substr(9),
            std::string("\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f", 17));
}

// Draws into a file, so that what a terminal would get can be read.
struct Screen {
  explicit Screen(const fs::path& file) : path(file), out(std::fopen(file.c_str(), "wb")) {}
  ~Screen() {
    if (out) std::fclose(out);
  }
  std::string text() const { return read_text_file(path, 1 << 20); }
  fs::path path;
  std::FILE* out;
};

TEST_F(LogTest, ProgressLine) {
  Screen screen(folder_ / "screen");
  double now = 100.0;
  Progress::Options options;
  options.out = screen.out;
  options.terminal = 0;
  options.clock = [&] { return now; };
  Progress progress("train", 200, 50, options);
  now = 220.0;
  progress.update(90, "loss 2.03");
  // 40 steps in 120 s: 3 s each, 110 to go
  EXPECT_EQ(progress.line(0), "train  45% [=========>          ] 90/200  3.0 s/step  eta 5:30  loss 2.03");
  EXPECT_EQ(progress.line(20), "train  45% [========");
  now = 225.0;
  progress.update(92, "loss 2.02");  // too soon for another line
  now = 231.0;
  progress.update(94, "loss 2.01");
  now = 400.0;
  progress.update(200, "loss 1.5");
  progress.finish();
  progress.finish();
  const std::string text = screen.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_NE(text.find("100% [====================] 200/200  2.0 s/step  took 5:00  loss 1.5\n"),
            std::string::npos)
      << text;
}

TEST_F(LogTest, ProgressOnATerminalRedrawsOneLine) {
  Screen screen(folder_ / "screen");
  double now = 0.0;
  Progress::Options options;
  options.out = screen.out;
  options.terminal = 60;
  options.clock = [&] { return now; };
  Progress progress("train", 10, 0, options);
  for (int step = 1; step <= 10; ++step) {
    now += 1.0;
    progress.update(step, std::string(step == 1 ? 100 : 3, 'x'));
  }
  progress.finish();
  const std::string text = screen.text();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  std::istringstream in(text);
  std::string part;
  std::getline(in, part, '\r');
  int draws = 0;
  while (std::getline(in, part, '\r')) {
    EXPECT_LE(part.size(), 60u);
    ++draws;
  }
  EXPECT_EQ(draws, 11);
}

TEST(Duration, Text) {
  EXPECT_EQ(duration_text(0), "0:00");
  EXPECT_EQ(duration_text(59.6), "1:00");
  EXPECT_EQ(duration_text(3725), "1:02:05");
  EXPECT_EQ(duration_text(360000), "4d 04:00");
  EXPECT_EQ(duration_text(std::nan("")), "?");
}

}  // namespace
}  // namespace gantrain
