// Several ranks train what one would: threads of one process, each with a device and a model of its own,
// connected over 127.0.0.1.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <thread>

#include "tests/support/devices.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"
#include "tests/train/letters.h"
#include "train/checkpoint/checkpoint.h"
#include "train/communicator/tcp.h"
#include "train/trainer.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using testing::FakeTokenizer;

// Twelve steps through every phase. 25 items: each epoch has a batch of one, which all ranks but one have no
// part of; a held-out input a step and rank, or none. A penalty of the prompts that is large enough to be
// seen.
const char* kConfig = R"(
model = "memory"
dtype = "f32"
[data]
train = "memory"
bucket = false
[generator]
kind = "static"
prompt_length = 3
width = 16
noise_dim = 4
hidden = 24
norm_penalty = 20.0
[discriminator]
width = 16
replay = 0.5
[loss]
kind = "rloo"
samples = 3
beta = 0.01
top_k = 16
[optimizer]
warmup_steps = 0
eps = 1e-4
[train]
batch = 4
steps = 12
warmup_ce_steps = 4
discriminator_steps = 3
gate_d = 1.0
gate_g = 0.0
max_new_tokens = 10
)";
constexpr int64_t kItems = 25;

using State = std::map<std::string, std::string>;  // of a checkpoint: name -> bytes
struct Outcome {
  std::vector<StepRecord> records;
  State state;
  std::string error;
  LossResult valid;
};
struct Options {
  int64_t until = -1;     // steps; -1: all
  std::string load = {};  // a checkpoint to begin with
  std::string save = {};  // rank 0's, at the end
};

class RanksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("gantrain_ranks_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const std::string& name) const { return (folder_ / name).string(); }

  std::vector<Outcome> train(int size, const std::vector<std::string>& overrides,
                             const Options& options = {}) {
    std::vector<Outcome> out(static_cast<size_t>(size));
    const Listener listener = size > 1 ? listen_on_free_port() : Listener{};
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank)
      threads.emplace_back([&, rank] {
        Outcome& o = out[static_cast<size_t>(rank)];
        try {
          std::unique_ptr<HostCommunicator> group;
          if (size > 1)
            group = meet_over_tcp({.rank = rank,
                                   .size = size,
                                   .port = listener.port,
                                   .listener = rank == 0 ? listener.socket : -1});
          const auto device = test::make_cpu(1);
          const auto llama = Llama::load(
              *device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
          const FakeTokenizer tokenizer({1});
          Trainer trainer(*device, *llama, tokenizer, parse_train_config(kConfig, "kConfig", overrides),
                          {testing::letters(kItems, 1), testing::letters(6, 2)}, group.get());
          if (!options.load.empty()) trainer.load(CheckpointReader(options.load));
          while (!trainer.done() && (options.until < 0 || trainer.step_number() < options.until))
            o.records.push_back(trainer.step());
          trainer.compare_ranks();
          o.valid = trainer.validate();
          const std::string path = file(fmt::format("{}.ckpt", rank));
          CheckpointWriter writer;
          trainer.save(writer);
          writer.commit(path);
          const CheckpointReader reader(path);
          for (const std::string& name : reader.tensor_names()) {
            const ConstTensor t = reader.tensor(name);
            o.state[name] = std::string(static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes()));
          }
          if (rank == 0 && !options.save.empty()) fs::copy_file(path, options.save);
          if (group) group->leave();
        } catch (const Error& e) {
          o.error = e.what();
        }
      });
    for (std::thread& t : threads) t.join();
    for (const Outcome& o : out) EXPECT_EQ(o.error, "");
    return out;
  }

  fs::path folder_;
};

constexpr const char* kTensorsOfLog = "alarms";  // rank 0 alone watches
std::string difference(const State& a, const State& b) {
  std::string out;
  for (const auto& [name, bytes] : a)
    if (name != kTensorsOfLog && (!b.contains(name) || b.at(name) != bytes)) out += name + " ";
  return out;
}

struct Figures {
  const char* name;
  double StepRecord::*value;
};
constexpr Figures kFigures[] = {{"ce", &StepRecord::ce},
                                {"loss_adv", &StepRecord::loss_adv},
                                {"loss_d", &StepRecord::loss_d},
                                {"kl", &StepRecord::kl},
                                {"reward", &StepRecord::reward},
                                {"pair_accuracy", &StepRecord::pair_accuracy},
                                {"heldout_accuracy", &StepRecord::heldout_accuracy},
                                {"gate_accuracy", &StepRecord::gate_accuracy},
                                {"grad_norm_g", &StepRecord::grad_norm_g},
                                {"grad_norm_d", &StepRecord::grad_norm_d},
                                {"lr_g", &StepRecord::lr_g},
                                {"lr_d", &StepRecord::lr_d},
                                {"rms_ratio", &StepRecord::rms_ratio},
                                {"length", &StepRecord::mean_length},
                                {"non_canonical", &StepRecord::non_canonical},
                                {"identical", &StepRecord::identical}};

// Sums in another grouping: 1e-7 a step to begin with, and each step works on the one before. Losses stay
// within 1e-5 of their size or of one, whichever is more; norms of gradients, sums of cancelling terms,
// within ten times that.
void expect_close(const std::vector<StepRecord>& one, const std::vector<StepRecord>& several,
                  const std::string& what) {
  ASSERT_EQ(one.size(), several.size()) << what;
  double worst = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].phase, several[i].phase) << what << " step " << one[i].step;
    EXPECT_EQ(one[i].trained_g, several[i].trained_g) << what << " step " << one[i].step;
    EXPECT_EQ(one[i].trained_d, several[i].trained_d) << what << " step " << one[i].step;
    for (const Figures& f : kFigures) {
      const double a = one[i].*f.value, b = several[i].*f.value;
      if (std::isnan(a) && std::isnan(b)) continue;
      const double limit =
          (std::string(f.name).starts_with("grad") ? 1e-4 : 1e-5) * std::max(1.0, std::abs(a));
      EXPECT_LE(std::abs(a - b), limit)
          << what << " step " << one[i].step << " " << f.name << ": " << a << " alone, " << b;
      worst = std::max(worst, std::abs(a - b) / limit);
    }
  }
  std::printf("%s: largest share of the limit %.3f\n", what.c_str(), worst);
}

TEST_F(RanksTest, TwoRanksTrainWhatOneDoes) {
  for (const char* kind : {"static", "mlp", "conditional", "lora"})
    for (const char* loss : {"ce", "rloo", "gumbel"}) {
      std::vector<std::string> o{std::string("loss.kind=") + loss, "train.average_from=5"};
      if (std::string(kind) == "lora")
        o.insert(o.end(), {"method=lora", "generator.prompt_length=0", "lora.rank=3", "lora.targets=all"});
      else
        o.push_back(std::string("generator.kind=") + kind);
      const auto one = train(1, o), two = train(2, o);
      const std::string what = std::string(kind) + " " + loss;
      expect_close(one[0].records, two[0].records, what);
      expect_close(two[0].records, two[1].records, what + ", between the ranks");
      EXPECT_EQ(difference(two[0].state, two[1].state), "") << what;
      EXPECT_NEAR(one[0].valid.ce, two[0].valid.ce, 1e-5 * one[0].valid.ce) << what;
      EXPECT_EQ(one[0].valid.tokens, two[1].valid.tokens);
      EXPECT_EQ(two[0].valid.ce, two[1].valid.ce);
    }
}

TEST_F(RanksTest, SoDoFourWithAccumulationAndEveryPairLoss) {
  for (const char* loss : {"rloo", "gumbel"})
    for (const char* pairs : {"relativistic", "bce", "hinge"}) {
      std::vector<std::string> o{"generator.kind=conditional", std::string("loss.kind=") + loss,
                                 std::string("discriminator.loss=") + pairs, "train.accumulate=2"};
      if (std::string(pairs) == "bce") o.push_back("loss.credit=token");
      const auto one = train(1, o), four = train(4, o);
      const std::string what = std::string(loss) + " " + pairs;
      expect_close(one[0].records, four[0].records, what);
      for (size_t r = 1; r < 4; ++r) EXPECT_EQ(difference(four[0].state, four[r].state), "") << what;
    }
}

TEST_F(RanksTest, TwoRunsHaveTheSameBitsAndSoHasAContinuedOne) {
  for (const char* loss : {"rloo", "gumbel"}) {
    const std::vector<std::string> o{"generator.kind=conditional", std::string("loss.kind=") + loss};
    const auto first = train(2, o), second = train(2, o);
    for (size_t r = 0; r < 2; ++r) {
      EXPECT_EQ(difference(first[r].state, second[r].state), "") << loss;
      ASSERT_EQ(first[r].records.size(), 12u);
    }
    for (const int64_t at : {2, 4, 6, 9}) {
      const std::string path = file(fmt::format("{}{}.saved", loss, at));
      train(2, o, {.until = at, .save = path});
      const auto rest = train(2, o, {.load = path});
      EXPECT_EQ(difference(first[0].state, rest[0].state), "") << loss << " continued at " << at;
      // With another number of ranks it goes on as well, up to rounding.
      const auto alone = train(1, o, {.load = path});
      expect_close(rest[0].records, alone[0].records, fmt::format("{} from {} on, alone", loss, at));
    }
  }
}

TEST_F(RanksTest, ABatchThatCannotBeSharedIsRefused) {
  const auto device = test::make_cpu(1);
  const auto llama =
      Llama::load(*device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()), DType::kF32);
  class Three final : public Communicator {
   public:
    int rank() const override { return 0; }
    int size() const override { return 3; }
    std::string description() const override { return "three"; }
    void all_reduce(Tensor) override {}
    void broadcast(Tensor, int) override {}
    std::vector<std::string> all_gather(std::string_view) override { return {}; }
    void leave() override {}
  } three;
  try {
    const Trainer trainer(*device, *llama, FakeTokenizer({1}), parse_train_config(kConfig, "kConfig"),
                          {testing::letters(kItems, 1), testing::letters(6, 2)}, &three);
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "train.batch is 4, which 3 ranks cannot share evenly; set a multiple of 3");
  }
}

}  // namespace
}  // namespace gantrain
