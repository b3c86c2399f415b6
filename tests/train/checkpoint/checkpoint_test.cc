#include "train/checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "train/checkpoint/run_folder.h"
#include "train/text.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  fs::path folder_;
};

template <typename Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "got: " << (text) << "\nwanted: " << (part)

CheckpointWriter some_checkpoint(float value) {
  CheckpointWriter writer;
  writer.add_values("adam.m", std::vector<float>{value, -0.0f, 1e-38f});
  writer.add_values("ids", std::vector<int32_t>{1, -2});
  writer.add_values("keys", std::vector<int64_t>{INT64_MIN, 7});
  writer.add_values("bytes", std::vector<uint8_t>{});
  writer.add_json("loader", R"({"epoch": 3})");
  return writer;
}

TEST_F(CheckpointTest, RoundTrip) {
  std::vector<float> weights = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  CheckpointWriter writer = some_checkpoint(0.25f);
  writer.add("w", ConstTensor(weights.data(), DType::kF32, {2, 3}));
  writer.commit(file("a.ckpt"));
  const CheckpointReader reader(file("a.ckpt"));
  EXPECT_EQ(reader.floats("adam.m"), (std::vector<float>{0.25f, -0.0f, 1e-38f}));
  EXPECT_TRUE(std::signbit(reader.floats("adam.m")[1]));
  EXPECT_EQ(reader.ints("ids"), (std::vector<int32_t>{1, -2}));
  EXPECT_EQ(reader.longs("keys"), (std::vector<int64_t>{INT64_MIN, 7}));
  EXPECT_TRUE(reader.bytes("bytes").empty());
  EXPECT_EQ(reader.json("loader"), R"({"epoch": 3})");
  std::vector<float> back(6);
  reader.read_into("w", Tensor(back.data(), DType::kF32, {2, 3}));
  EXPECT_EQ(back, weights);
  EXPECT_HAS(message_of([&] {
               reader.read_into("w", Tensor(back.data(), DType::kF32, {3, 2}));
             }),
             "tensor 'w': expected f32 (3, 2), got f32 (2, 3)");
  EXPECT_HAS(message_of([&] { reader.floats("ids"); }), "expected f32, got i32");
  EXPECT_HAS(message_of([&] { reader.floats("none"); }), "no tensor 'none'");
  EXPECT_HAS(message_of([&] { reader.json("none"); }), "no text 'none'");
  EXPECT_TRUE(reader.has("w"));
  EXPECT_FALSE(reader.has("x"));
}

TEST_F(CheckpointTest, NamesAreUniqueAndTextsAreJson) {
  CheckpointWriter writer = some_checkpoint(1.0f);
  EXPECT_THROW(writer.add_values("ids", std::vector<int32_t>{1}), Error);
  EXPECT_THROW(writer.add_json("loader", "{}"), Error);
  EXPECT_THROW(writer.add_json("other", "{"), Error);
}

// Every single-byte change of the file is refused, wherever it falls.
TEST_F(CheckpointTest, EveryDamagedByteIsCaught) {
  some_checkpoint(1.0f).commit(file("a.ckpt"));
  const std::string good = read_text_file(file("a.ckpt"), 1 << 20);
  int accepted = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x04);
    std::ofstream(file("b.ckpt"), std::ios::binary) << bad;
    try {
      CheckpointReader reader(file("b.ckpt"));
      ++accepted;
      ADD_FAILURE() << "byte " << at << " of " << good.size();
    } catch (const Error&) {
    }
  }
  EXPECT_EQ(accepted, 0);
  for (size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() - 1}) {
    std::ofstream(file("b.ckpt"), std::ios::binary) << good.substr(0, size);
    EXPECT_THROW(CheckpointReader reader(file("b.ckpt")), Error) << size;
  }
  std::ofstream(file("b.ckpt"), std::ios::binary) << good << "x";
  EXPECT_THROW(CheckpointReader reader(file("b.ckpt")), Error);
}

TEST_F(CheckpointTest, OtherFilesAreToldApart) {
  write_safetensors(file("model.safetensors"), {}, {{"format", "pt"}});
  EXPECT_HAS(message_of([&] { CheckpointReader reader(file("model.safetensors")); }),
             "expected a gantrain checkpoint, got a safetensors file of format 'pt'");
  write_safetensors(file("new.ckpt"), {}, {{"format", "gantrain-checkpoint"}, {"version", "99"}});
  EXPECT_HAS(message_of([&] { CheckpointReader reader(file("new.ckpt")); }), "checkpoint version 99");
}

// A child process whose files may not grow past `bytes`: what a full disk looks like to the writer.
int in_a_small_disk(rlim_t bytes, const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);
    try {
      body();
    } catch (const Error&) {
      ::_exit(42);
    } catch (...) {
      ::_exit(43);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(CheckpointTest, AFullDiskLeavesTheOldCheckpoint) {
  some_checkpoint(1.0f).commit(file("a.ckpt"));
  const std::string before = read_text_file(file("a.ckpt"), 1 << 20);
  for (const rlim_t bytes : {rlim_t{0}, rlim_t{10}, rlim_t{500}, static_cast<rlim_t>(before.size() - 1)})
    EXPECT_EQ(in_a_small_disk(bytes, [&] { some_checkpoint(2.0f).commit(file("a.ckpt")); }), 42) << bytes;
  EXPECT_EQ(read_text_file(file("a.ckpt"), 1 << 20), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1)
      << "something left behind";
  EXPECT_EQ(in_a_small_disk(before.size() + 64, [&] { some_checkpoint(2.0f).commit(file("a.ckpt")); }), 0);
  EXPECT_EQ(CheckpointReader(file("a.ckpt")).floats("adam.m")[0], 2.0f);
}

TEST_F(CheckpointTest, RunFolderKeepsTheLastAndTheBest) {
  RunFolder run(folder_ / "run", RunFolder::Mode::kNew);
  for (int64_t step = 100; step <= 500; step += 100)
    run.save(step, some_checkpoint(static_cast<float>(step)), step == 200, 2);
  EXPECT_EQ(run.steps(), (std::vector<int64_t>{200, 400, 500}));
  EXPECT_EQ(run.latest(), folder_ / "run/checkpoints/step-00000500.ckpt");
  EXPECT_EQ(CheckpointReader(find_checkpoint(folder_ / "run").string()).floats("adam.m")[0], 200.0f);  // best
  EXPECT_EQ(find_checkpoint(run.checkpoint_file(400)), run.checkpoint_file(400));
  run.save(600, some_checkpoint(600.0f), true, 1);
  EXPECT_EQ(run.steps(), (std::vector<int64_t>{600}));
  EXPECT_THROW(find_checkpoint(folder_ / "nothing"), Error);
}

// A run that ends between the two links goes on from the older checkpoint; `best` must not be the one missed.
TEST_F(CheckpointTest, TheBestIsMarkedBeforeTheLatest) {
  RunFolder run(folder_ / "run", RunFolder::Mode::kNew);
  run.save(1, some_checkpoint(1.0f), true, 5);
  // Nothing replaces a folder that is not empty: pointing `latest` fails.
  const fs::path in_the_way = folder_ / fmt::format("run/checkpoints/latest.tmp.{}", ::getpid()) / "x";
  fs::create_directories(in_the_way);
  EXPECT_THROW(run.save(2, some_checkpoint(2.0f), true, 5), Error);
  EXPECT_EQ(run.latest(), run.checkpoint_file(1));
  EXPECT_EQ(fs::read_symlink(folder_ / "run/checkpoints/best"), "step-00000002.ckpt");
}

TEST_F(CheckpointTest, ADamagedLatestFallsBackAndSaysSo) {
  RunFolder run(folder_ / "run", RunFolder::Mode::kNew);
  run.save(1, some_checkpoint(1.0f), false, 5);
  run.save(2, some_checkpoint(2.0f), false, 5);
  fs::resize_file(run.checkpoint_file(2), fs::file_size(run.checkpoint_file(2)) / 2);
  std::string note;
  EXPECT_EQ(run.latest(&note), run.checkpoint_file(1));
  EXPECT_HAS(note, "step-00000002.ckpt");
  fs::remove(run.checkpoint_file(1));
  EXPECT_HAS(message_of([&] { run.latest(); }), "no whole checkpoint");
}

TEST_F(CheckpointTest, OneProgramAtATime) {
  const fs::path path = folder_ / "run";
  {
    RunFolder run(path, RunFolder::Mode::kNew);
    EXPECT_HAS(message_of([&] { RunFolder other(path, RunFolder::Mode::kNew); }),
               fmt::format("another run (process {} on", ::getpid()));
    run.write(run.config_file(), "seed = 1\n");
    EXPECT_EQ(read_text_file(run.config_file(), 100), "seed = 1\n");
  }
  EXPECT_HAS(message_of([&] { RunFolder other(path, RunFolder::Mode::kNew); }), "holds a run already");
  EXPECT_HAS(message_of([&] { RunFolder other(path, RunFolder::Mode::kResume); }), "no checkpoint yet");
  EXPECT_HAS(message_of([&] { RunFolder other(folder_ / "no", RunFolder::Mode::kResume); }),
             "nothing to resume");
  EXPECT_HAS(message_of([&] { RunFolder other("", RunFolder::Mode::kNew); }), "no run folder given");
  std::ofstream(path / "checkpoints/step-00000001.ckpt.tmp.77") << "half";
  fs::copy(path, folder_ / "copy", fs::copy_options::recursive);
  fs::remove(folder_ / "copy/config.toml");
  RunFolder clean(folder_ / "copy", RunFolder::Mode::kNew);
  EXPECT_FALSE(fs::exists(folder_ / "copy/checkpoints/step-00000001.ckpt.tmp.77"));
}

}  // namespace
}  // namespace gantrain
