#include "train/cli/cli.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "train/checkpoint/run_folder.h"

namespace gantrain {
namespace {

struct Ran {
  int code = -1;
  std::string out, err;
  TrainOptions train;
  EvalOptions eval;
  GenerateOptions generate;
  ProbeOptions probe;
};

Ran run(std::vector<const char*> words) {
  Ran ran;
  VerbTable verbs;
  verbs.train = [&](const TrainOptions& o) { return ran.train = o, 0; };
  verbs.eval = [&](const EvalOptions& o) { return ran.eval = o, 0; };
  verbs.generate = [&](const GenerateOptions& o) { return ran.generate = o, 0; };
  verbs.probe = [&](const ProbeOptions& o) { return ran.probe = o, 0; };
  words.insert(words.begin(), "gantrain");
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  ran.code = run_cli(static_cast<int>(words.size()), words.data(), verbs);
  ran.out = ::testing::internal::GetCapturedStdout();
  ran.err = ::testing::internal::GetCapturedStderr();
  return ran;
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "got: " << (text) << "\nwanted: " << (part)

// Usage errors: exit code 2, nothing on stdout, one line on stderr.
#define EXPECT_USAGE(part, ...)                            \
  do {                                                     \
    const Ran ran = run({__VA_ARGS__});                    \
    EXPECT_EQ(ran.code, 2);                                \
    EXPECT_EQ(ran.out, "");                                \
    EXPECT_TRUE(ran.err.starts_with("gantrain: error: ")); \
    EXPECT_HAS(ran.err, part);                             \
  } while (false)

TEST(Cli, Train) {
  const Ran ran =
      run({"train", "run.toml", "train.batch=4", "data.train=a b.jsonl", "--dry-run", "-o", "runs/x"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.train.config_file, "run.toml");
  EXPECT_EQ(ran.train.overrides,
            (std::vector<std::string>{"train.batch=4", "data.train=a b.jsonl", "output=runs/x"}));
  EXPECT_TRUE(ran.train.dry_run);
  EXPECT_FALSE(ran.train.resume);
  EXPECT_TRUE(run({"train", "--resume", "seed=1"}).train.resume);
  EXPECT_USAGE("expected key=value, got 'b.toml'", "train", "a.toml", "b.toml");
  EXPECT_USAGE("expected key=value, got 'b.toml'", "train", "seed=1", "b.toml");
  EXPECT_HAS(run({"train", "--help-config"}).out, "loss.kind = \"rloo\"\n");
}

TEST(Cli, Eval) {
  const Ran ran = run({"eval", "--run", "r", "--temperatures", "0.5,1", "--split", "valid", "--json", "-",
                       "--drift", "t.txt", "seed=3"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.eval.run, "r");
  EXPECT_EQ(ran.eval.temperatures, (std::vector<double>{0.5, 1.0}));
  EXPECT_EQ(ran.eval.split, "valid");
  EXPECT_EQ(ran.eval.json_file, "-");
  EXPECT_EQ(ran.eval.drift_file, "t.txt");
  EXPECT_EQ(ran.eval.overrides, (std::vector<std::string>{"seed=3"}));
  EXPECT_TRUE(ran.eval.generate);
  EXPECT_FALSE(run({"eval", "-r", "r", "--no-generate"}).eval.generate);
  const Ran other = run({"eval", "-r", "r", "--data", "f.jsonl", "--model", "m"});
  EXPECT_EQ(other.eval.split, "test");
  // These settings must be ones that the configuration takes.
  EXPECT_EQ(load_train_config("", other.eval.overrides).data.test, "f.jsonl");
  EXPECT_EQ(load_train_config("", other.eval.overrides).model, "m");
  const Ran judged =
      run({"eval", "-r", "r", "--judges", "2", "--judge-reads", "tokens,features", "--best-of", "4"});
  EXPECT_EQ(judged.eval.judge_reads, (std::vector<std::string>{"tokens", "features"}));
  EXPECT_EQ(judged.eval.choosing.best_of, 4);
  EXPECT_EQ(judged.eval.choosing.temperature, 0.0);
  EXPECT_EQ(run({"eval", "-r", "r", "--best-of", "8", "--choose-temperature", "1"}).eval.choosing.temperature,
            1.0);
  EXPECT_USAGE("give --best-of too", "eval", "-r", "r", "--choose-temperature", "1");
  EXPECT_EQ(other.eval.judge_reads, (std::vector<std::string>{"tokens"}));
  EXPECT_EQ(other.eval.choosing.best_of, 1);
  EXPECT_USAGE("expected one of tokens, features, got 'feature'; did you mean 'features'?", "eval", "-r", "r",
               "--judge-reads", "feature");
  EXPECT_USAGE("expected a number from 1 to 256", "eval", "-r", "r", "--best-of", "0");
  EXPECT_USAGE("leave --no-generate out", "eval", "-r", "r", "--best-of", "2", "--no-generate");
  EXPECT_USAGE("--run is needed", "eval");
  EXPECT_USAGE("expected one of test, valid, train, got 'tets'; did you mean 'test'?", "eval", "-r", "r",
               "--split", "tets");
  EXPECT_USAGE("expected a number from 0 to 10, got nan", "eval", "-r", "r", "--temperatures", "nan");
}

TEST(Cli, Generate) {
  const Ran ran = run({"generate", "--model", "m.gguf",    "--prompt",  "Once, a=b",
                       "--prompt", "two",     "--max-new", "5",         "--temperature",
                       "0",        "--top-k", "3",         "--top-p",   "0.9",
                       "--seed",   "9",       "--json",    "--samples", "2",
                       "--dtype",  "bf16",    "--threads", "2",         "--chat-template",
                       "chatml"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.generate.prompts, (std::vector<std::string>{"Once, a=b", "two"}));
  EXPECT_EQ(ran.generate.max_new, 5);
  EXPECT_EQ(ran.generate.temperature, 0.0);
  EXPECT_EQ(ran.generate.top_k, 3);
  EXPECT_EQ(ran.generate.top_p, 0.9);
  EXPECT_EQ(ran.generate.seed, 9);
  EXPECT_EQ(ran.generate.samples, 2);
  EXPECT_EQ(ran.generate.dtype, DTypeChoice::kBF16);
  EXPECT_EQ(ran.generate.device.threads, 2);
  EXPECT_EQ(ran.generate.chat_template, "chatml");
  EXPECT_TRUE(ran.generate.json);
  const char* m = "m";
  EXPECT_USAGE("--model or --checkpoint is needed", "generate", "--prompt", "x");
  EXPECT_USAGE("--prompt or --input is needed", "generate", "--model", m);
  EXPECT_USAGE("one or the other", "generate", "-m", m, "-p", "x", "-i", "f");
  const Ran chosen = run({"generate", "-c", "r", "-p", "x", "--best-of", "8", "--choose-temperature", "1"});
  EXPECT_EQ(chosen.generate.choosing.best_of, 8);
  EXPECT_EQ(chosen.generate.choosing.temperature, 1.0);
  EXPECT_EQ(ran.generate.choosing.best_of, 1);
  EXPECT_USAGE("give --checkpoint", "generate", "-m", m, "-p", "x", "--best-of", "2");
  EXPECT_USAGE("--best-of chooses among sampled ones", "generate", "-c", "r", "-p", "x", "--best-of", "2",
               "-t", "0");
  EXPECT_USAGE("give --best-of too", "generate", "-c", "r", "-p", "x", "--choose-temperature", "1");
  EXPECT_USAGE("--temperature: expected a number from 0 to 100, got -1", "generate", "-m", m, "-p", "x", "-t",
               "-1");
  EXPECT_USAGE("--top-p", "generate", "-m", m, "-p", "x", "--top-p", "nan");
  EXPECT_USAGE("--max-new", "generate", "-m", m, "-p", "x", "--max-new", "four");
  EXPECT_USAGE("--max-new", "generate", "-m", m, "-p", "x", "--max-new", "0");
  EXPECT_USAGE("--device: expected one of cpu, cuda, got 'gpu'", "generate", "-m", m, "-p", "x", "--device",
               "gpu");
  EXPECT_USAGE("unknown flag '--temprature'; did you mean '--temperature'?", "generate", "-m", m, "-p", "x",
               "--temprature=1");
  EXPECT_USAGE("unknown word 'stray'", "generate", "-m", m, "-p", "x", "stray");
}

TEST(Cli, EnvironmentMirrors) {
  ::setenv("GANTRAIN_THREADS", "3", 1);
  const Ran from_environment = run({"generate", "-m", "m", "-p", "x"});
  const Ran flag_wins = run({"generate", "-m", "m", "-p", "x", "--threads", "1"});
  ::unsetenv("GANTRAIN_THREADS");
  EXPECT_EQ(from_environment.generate.device.threads, 3);
  EXPECT_EQ(flag_wins.generate.device.threads, 1);
}

TEST(Cli, Probe) {
  const Ran ran = run({"probe", "--model", "m", "--input", "i", "--output", "o", "--device", "cpu"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.probe.dtype, DTypeChoice::kF32);  // the witnesses' default
  EXPECT_EQ(ran.probe.input, "i");
  EXPECT_USAGE("--output is needed", "probe", "--model", "m", "--input", "i");
}

TEST(Cli, VerbsAndHelp) {
  EXPECT_USAGE("unknown verb 'trian'; did you mean 'train'?", "trian");
  EXPECT_USAGE("unknown flag '--versoin'; did you mean '--version'?", "--versoin");
  const Ran none = run({});
  EXPECT_EQ(none.code, 2);
  EXPECT_EQ(none.out, "");
  const Ran help = run({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_HAS(help.out, "generate");
  EXPECT_HAS(run({"generate", "--help"}).out, "Usage: gantrain generate");
  EXPECT_HAS(run({"version"}).out, "gantrain 0.");
  EXPECT_EQ(run({"--version"}).out, run({"version"}).out);
}

TEST(Cli, FailuresHaveTheirExitCodes) {
  const auto code_of = [](auto body) {
    VerbTable verbs;
    verbs.train = [&](const TrainOptions&) -> int { return body(); };
    const char* words[] = {"gantrain", "train"};
    ::testing::internal::CaptureStderr();
    const int code = run_cli(2, words, verbs);
    EXPECT_HAS(::testing::internal::GetCapturedStderr(), "gantrain: error: ");
    return code;
  };
  EXPECT_EQ(code_of([]() -> int { fail("broken"); }), 1);
  EXPECT_EQ(code_of([]() -> int { fail_usage("wrong"); }), 2);
  EXPECT_EQ(code_of([]() -> int { throw Error("no room", ErrorKind::kOutOfMemory); }), 3);
  EXPECT_EQ(code_of([]() -> int { throw std::bad_alloc(); }), 3);
  EXPECT_EQ(code_of([]() -> int { throw std::runtime_error("other"); }), 1);
}

TEST(Cli, Tokenize) {
  EXPECT_USAGE("--model is needed", "tokenize");
  const Ran ran = run({"tokenize", "--model", "no/such.gguf"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_HAS(ran.err, "no/such.gguf");
}

class InspectTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
};

TEST_F(InspectTest, DataFile) {
  const std::string file = (folder_ / "a.jsonl").string();
  std::ofstream(file)
      << "{\"q\": \"x\", \"a\": \"one\"}\n{\"q\": \"x\", \"a\": \"\"}\n{\"q\": \"yy\", \"a\": \"three\"}\n";
  const Ran ran =
      run({"inspect", file.c_str(), "data.prompt_template={q}", "data.completion_template={a}", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto facts = nlohmann::json::parse(ran.out);
  EXPECT_EQ(facts["read"], 3);
  EXPECT_EQ(facts["kept"], 2);
  EXPECT_EQ(facts["dropped"]["empty completion"]["first_line"], 2);
  EXPECT_EQ(facts["completion_bytes"]["longest"], 5);
  EXPECT_EQ(facts["distinct_prompts"], 2);
  EXPECT_EQ(run({"inspect", file.c_str()}).code, 1);
  EXPECT_USAGE("did you mean 'data.prompt_template'", "inspect", file.c_str(), "data.promt_template={q}");
  EXPECT_HAS(run({"inspect", (folder_ / "none").c_str()}).err, "no such file or folder");
}

TEST_F(InspectTest, RunAndCheckpoint) {
  {
    RunFolder folder(folder_ / "run", RunFolder::Mode::kNew);
    CheckpointWriter writer;
    writer.add_values("g.prompt", std::vector<float>{1.0f, 2.0f});
    writer.add_json("state", "{\"step\": 7}");
    folder.save(7, writer, true, 2);
  }
  const Ran ran = run({"inspect", (folder_ / "run").c_str(), "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto facts = nlohmann::json::parse(ran.out);
  EXPECT_EQ(facts["kind"], "run");
  EXPECT_EQ(facts["texts"]["state"]["step"], 7);
  EXPECT_EQ(facts["tensors"][0]["name"], "g.prompt");
  const std::string file = (folder_ / "run/checkpoints/step-00000007.ckpt").string();
  EXPECT_HAS(run({"inspect", file.c_str()}).out, "g.prompt");
  EXPECT_USAGE("settings are for data files", "inspect", file.c_str(), "data.format=csv");
}

}  // namespace
}  // namespace gantrain
