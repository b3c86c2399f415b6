// The trainer as a whole, on a random Llama of three layers: it learns, what must not matter does not, and a
// run that was saved and loaded goes on with the same bits.
#include "train/trainer.h"
#include "train/verbs/arms.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/devices.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/fill.h"
#include "tests/support/tiny_llama.h"
#include "tests/train/letters.h"
#include "train/checkpoint/checkpoint.h"
#include "train/verbs/session.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using testing::FakeTokenizer;

// A run of 12 steps that reaches every phase: 4 of cross-entropy, at most 3 of the discriminator, then both.
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
[discriminator]
width = 16
replay = 0.5
[loss]
kind = "ce"
samples = 3
beta = 0.01
top_k = 16
[optimizer]
warmup_steps = 0
[train]
batch = 4
steps = 12
warmup_ce_steps = 4
discriminator_steps = 3
max_new_tokens = 10
)";

struct TestRun {
  std::unique_ptr<Device> device;
  std::unique_ptr<const Llama> llama;
  FakeTokenizer tokenizer;
  std::unique_ptr<Trainer> trainer;
  std::vector<StepRecord> records;

  explicit TestRun(const std::vector<std::string>& overrides, int threads = 1,
                   std::vector<int32_t> end_ids = {1})
      : device(test::make_cpu(threads)),
        llama(Llama::load(*device, std::make_shared<testing::MemoryWeights>(testing::tiny_config()),
                          DType::kF32)),
        tokenizer(std::move(end_ids)),
        trainer(std::make_unique<Trainer>(*device, *llama, tokenizer,
                                          parse_train_config(kConfig, "kConfig", overrides),
                                          Trainer::Data{testing::letters(24, 1), testing::letters(6, 2)})) {}
  // Until `step` steps are taken, -1: all.
  TestRun& to(int64_t step = -1) {
    while (!trainer->done() && (step < 0 || trainer->step_number() < step))
      records.push_back(trainer->step());
    return *this;
  }
};

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("gantrain_trainer_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string save(const TestRun& run, const std::string& name = "a") const {
    CheckpointWriter writer;
    run.trainer->save(writer);
    const std::string path = (folder_ / (name + ".ckpt")).string();
    writer.commit(path);
    return path;
  }
  // Everything a checkpoint of the run holds, but for seconds and the configuration: name -> bytes.
  std::map<std::string, std::string> state_of(const TestRun& run) const {
    const CheckpointReader reader(save(run, "state"));
    std::map<std::string, std::string> out;
    for (const std::string& name : reader.tensor_names()) {
      const ConstTensor t = reader.tensor(name);
      out[name] = std::string(static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes()));
    }
    for (const std::string& name : reader.json_names()) {
      nlohmann::json j = nlohmann::json::parse(reader.json(name));
      if (name == "state") {
        j.erase("totals");
        j.erase("config");
      }
      out["json " + name] = j.dump();
    }
    return out;
  }
  // The names of what differs.
  static std::string difference(const std::map<std::string, std::string>& a,
                                const std::map<std::string, std::string>& b) {
    std::string out;
    for (const auto& [name, bytes] : a)
      if (!b.contains(name) || b.at(name) != bytes) out += name + " ";
    for (const auto& [name, bytes] : b)
      if (!a.contains(name)) out += name + " ";
    return out;
  }
  // The gradient of the run's only step so far, by tensor: Adam's first moment is 1 - beta1 of it.
  std::map<std::string, std::vector<float>> first_moments(const TestRun& run) const {
    const CheckpointReader reader(save(run, "moments"));
    std::map<std::string, std::vector<float>> out;
    for (const std::string& name : reader.tensor_names())
      if (name.starts_with("generator.") && name.ends_with(".m")) {
        const ConstTensor t = reader.tensor(name);
        const float* v = t.data<float>();
        out[name] = std::vector<float>(v, v + t.count());
      }
    return out;
  }

  fs::path folder_;
};

// What a step says, as bits; seconds are left out.
std::vector<uint64_t> bits_of(const StepRecord& r) {
  std::vector<uint64_t> out{static_cast<uint64_t>(r.step), static_cast<uint64_t>(r.phase), r.trained_g,
                            r.trained_d, static_cast<uint64_t>(r.tokens)};
  for (const double v : {r.ce, r.loss_adv, r.loss_d, r.kl, r.reward, r.pair_accuracy, r.heldout_accuracy,
                         r.gate_accuracy, r.grad_norm_g, r.grad_norm_d, r.lr_g, r.lr_d, r.rms_ratio,
                         r.mean_length, r.non_canonical, r.identical})
    out.push_back(std::isnan(v) ? ~uint64_t{0} : std::bit_cast<uint64_t>(v));
  return out;
}
void expect_same_records(const std::vector<StepRecord>& a, const std::vector<StepRecord>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(bits_of(a[i]), bits_of(b[i])) << "step " << a[i].step;
}

struct Case {
  const char *generator, *loss;
};
constexpr Case kCases[] = {{"static", "ce"},       {"static", "rloo"},       {"static", "gumbel"},
                           {"mlp", "ce"},          {"mlp", "rloo"},          {"mlp", "gumbel"},
                           {"conditional", "ce"},  {"conditional", "rloo"},  {"conditional", "gumbel"},
                           {"lora", "ce"},         {"lora", "rloo"},         {"lora", "gumbel"},
                           {"lora dropout", "ce"}, {"lora dropout", "rloo"}, {"lora dropout", "gumbel"},
                           {"prefix", "ce"},       {"prefix", "rloo"},       {"prefix", "gumbel"},
                           {"prefix mlp", "ce"},   {"prefix mlp", "rloo"},   {"prefix mlp", "gumbel"},
                           {"adapter", "ce"},      {"adapter", "rloo"},      {"adapter", "gumbel"},
                           {"full", "ce"},         {"full", "rloo"},         {"full", "gumbel"}};
// What is trained on the model itself: every method, its variants included.
const char* const kOnModel[] = {"lora", "prefix", "prefix mlp", "adapter", "full"};
// The kind of a generator, or a method that trains something on the model.
std::vector<std::string> with_generator(const std::string& kind, std::vector<std::string> more = {}) {
  const std::map<std::string, std::vector<std::string>> methods{
      {"lora", {"method=lora", "lora.rank=3", "lora.targets=all"}},
      {"lora dropout", {"method=lora", "lora.rank=3", "lora.targets=all", "lora.dropout=0.3"}},
      {"prefix", {"method=prefix", "prefix.length=3"}},
      {"prefix mlp", {"method=prefix", "prefix.length=3", "prefix.projection=true", "prefix.hidden=24"}},
      {"adapter", {"method=adapter", "bottleneck.width=6", "bottleneck.places=attention,mlp"}},
      // A random model has more to learn than a trained one.
      {"full", {"method=full", "optimizer.lr_ce=2e-3", "optimizer.lr=1e-3"}}};
  const auto method = methods.find(kind);
  if (method == methods.end()) {
    more.push_back("generator.kind=" + kind);
    return more;
  }
  more.insert(more.begin(), method->second.begin(), method->second.end());
  more.push_back("generator.prompt_length=0");
  return more;
}
std::vector<std::string> overrides_of(const Case& c, std::vector<std::string> more = {}) {
  more = with_generator(c.generator, more);
  more.push_back(std::string("loss.kind=") + c.loss);
  return more;
}
std::string name_of(const Case& c) { return std::string(c.generator) + " " + c.loss; }

TEST_F(TrainerTest, CrossEntropyAloneLowersTheLoss) {
  for (const char* kind :
       {"static", "mlp", "conditional", "lora", "lora dropout", "prefix", "prefix mlp", "adapter", "full"}) {
    TestRun run(with_generator(kind, {"train.steps=80"}));
    const double before = run.trainer->validate().ce;
    run.to();
    const double after = run.trainer->validate().ce;
    // Completions are made of 5 letters of 97 in no order: a prompt can do no better than guess among those
    // and has several nats to win on a random model. One of them shows that it learns.
    EXPECT_LT(after, before - 1.0) << kind;
    EXPECT_EQ(run.trainer->phase(), Phase::kDone);
  }
}

TEST_F(TrainerTest, AccumulatedBatchesEqualOneBatch) {
  // Without noise, whose draws are numbered by batch. Nothing clipped, so that moments are gradients.
  for (const char* kind :
       {"static", "mlp", "conditional", "lora", "prefix", "prefix mlp", "adapter", "full"}) {
    const std::vector<std::string> common =
        with_generator(kind, {"generator.noise_dim=0", "optimizer.clip=0"});
    auto with = [&](const std::string& batch, const std::string& accumulate) {
      std::vector<std::string> o = common;
      o.insert(o.end(), {"train.batch=" + batch, "train.accumulate=" + accumulate});
      return o;
    };
    TestRun whole(with("8", "1")), parts(with("4", "2"));
    whole.to(1);
    parts.to(1);
    // f32 sums of some hundred terms in another grouping: 100 * 2^-24 = 6e-6 of the sum of their sizes, which
    // is a few times the sum itself.
    EXPECT_NEAR(whole.records[0].ce, parts.records[0].ce, 1e-5 * whole.records[0].ce) << kind;
    EXPECT_NEAR(whole.records[0].grad_norm_g, parts.records[0].grad_norm_g,
                3e-5 * whole.records[0].grad_norm_g)
        << kind;
    const auto a = first_moments(whole), b = first_moments(parts);
    ASSERT_EQ(a.size(), b.size());
    double error = 0, norm = 0;
    for (const auto& [name, values] : a) {
      ASSERT_EQ(values.size(), b.at(name).size());
      for (size_t i = 0; i < values.size(); ++i) {
        const double d = static_cast<double>(values[i]) - b.at(name)[i];
        error += d * d;
        norm += static_cast<double>(values[i]) * values[i];
      }
    }
    EXPECT_GT(norm, 0.0);
    EXPECT_LE(std::sqrt(error), 3e-5 * std::sqrt(norm)) << kind;
  }
}

// The adversary's own gradient in its first step. An answer of one token has one logit: both kinds of credit
// are one. Longer answers' are not, and one thread or two give the same bits.
TEST_F(TrainerTest, CreditByTokenIsThatOfTheAnswerWhereItHasOneToken) {
  const auto run = [](const char* credit, int longest, int threads) {
    TestRun r({"loss.kind=rloo", std::string("loss.credit=") + credit, "loss.alpha=0", "loss.alpha_end=0",
               "loss.beta=0", "generator.norm_penalty=0", "optimizer.clip=0", "train.gate_g=0.01",
               "loss.samples=6", fmt::format("train.max_new_tokens={}", longest)},
              threads);
    r.to();
    for (const StepRecord& s : r.records)
      if (s.phase == Phase::kAdversarial && s.trained_g) return s.grad_norm_g;
    ADD_FAILURE() << "the generator never trained";
    return 0.0;
  };
  const double one = run("answer", 1, 1), long_one = run("answer", 10, 1);
  EXPECT_GT(one, 0.0);
  EXPECT_NEAR(run("token", 1, 1), one, 1e-5 * one);
  const double by_token = run("token", 10, 1);
  EXPECT_GT(std::abs(by_token - long_one), 0.01 * long_one);
  EXPECT_EQ(run("token", 10, 2), by_token);
}

TEST_F(TrainerTest, RecomputationGivesTheSameBits) {
  size_t level = 0;  // all of them in turn: three losses of a method come one after the other
  for (const Case& c : kCases) {
    const std::string recompute =
        fmt::format("train.recompute={}", kRecomputeNames[1 + (level + level / 3) % 3]);
    ++level;
    TestRun kept(overrides_of(c)), again(overrides_of(c, {recompute}));
    kept.to();
    again.to();
    expect_same_records(kept.records, again.records);
    EXPECT_EQ(difference(state_of(kept), state_of(again)), "") << name_of(c) << ", " << recompute;
  }
}

constexpr Case kCachedCases[] = {{"static", "ce"},        {"static", "rloo"},        {"static", "gumbel"},
                                 {"conditional", "rloo"}, {"conditional", "gumbel"}, {"lora", "rloo"}};

// Inputs that nothing trained changes: those before a prompt, and those the discriminator reads.
TEST_F(TrainerTest, CachedInputsChangeNothing) {
  for (const Case& c : kCachedCases)
    for (const std::string placement : {"prefix", "suffix"}) {
      const auto with = [&](const std::string& cache, int64_t steps) {
        auto run = std::make_unique<TestRun>(
            overrides_of(c, {"generator.placement=" + placement, "train.context_cache=" + cache}));
        run->to(steps);
        return run;
      };
      const std::string name = name_of(c) + " " + placement;
      const bool before = placement == "suffix" && std::string(c.generator) != "lora";
      const auto none = with("0", -1), all = with("1MiB", -1);
      // 24 rows of 30 inputs' 165 stay, the others pass.
      const auto some =
          with(std::to_string(24 * ContextCache::bytes_of_row(*none->device, *none->llama)), -1);
      expect_same_records(all->records, some->records);
      EXPECT_EQ(difference(state_of(*all), state_of(*some)), "") << name;
      ASSERT_EQ(all->records.size(), none->records.size()) << name;
      for (size_t i = 0; i < all->records.size(); ++i) {
        const StepRecord &cached = all->records[i], &run = none->records[i];
        EXPECT_EQ(cached.answers, run.answers) << name << " " << i;
        // The same terms; an answer's keys lie elsewhere, so that sums over them may be grouped otherwise.
        if (!std::isnan(run.ce)) {
          EXPECT_TRUE(std::abs(cached.ce - run.ce) <= 1e-5 * run.ce) << name << " " << i;
          EXPECT_TRUE(std::abs(cached.grad_norm_g - run.grad_norm_g) <= 1e-4 * run.grad_norm_g)
              << name << " " << i;
          EXPECT_EQ(cached.tokens < run.tokens, before) << name << " " << i;
        }
        if (!std::isnan(run.loss_d)) {
          EXPECT_TRUE(std::abs(cached.loss_d - run.loss_d) <= 1e-4) << name << " " << i;
        }
      }
      // The first step's gradient, number by number.
      const auto a = first_moments(*with("1MiB", 1)), b = first_moments(*with("0", 1));
      ASSERT_EQ(a.size(), b.size());
      for (const auto& [tensor, values] : b) {
        double error = 0, size = 0;
        for (size_t i = 0; i < values.size(); ++i) {
          error = std::max(error, std::abs(static_cast<double>(values[i]) - a.at(tensor)[i]));
          size = std::max(size, std::abs(static_cast<double>(values[i])));
        }
        EXPECT_TRUE(error <= 1e-5 * size) << name << " " << tensor << ": " << error << " of " << size;
      }
    }
}

TEST_F(TrainerTest, ALoadedRunWithCachedInputsGoesOnWithTheSameBits) {
  for (const Case& c : kCachedCases) {
    const auto overrides = overrides_of(c, {"generator.placement=suffix"});
    TestRun straight(overrides);
    straight.to(7);
    const std::string saved = save(straight, "behind");
    straight.to();
    TestRun again(overrides);
    again.trainer->load(CheckpointReader(saved));
    again.to();
    const std::vector<StepRecord> rest(straight.records.begin() + 7, straight.records.end());
    expect_same_records(rest, again.records);
    EXPECT_EQ(difference(state_of(straight), state_of(again)), "") << name_of(c);
  }
}

TEST_F(TrainerTest, OneAndTwoThreadsGiveTheSameBitsAndTheBaseStays) {
  for (const Case& c : kCases) {
    TestRun one(overrides_of(c), 1), two(overrides_of(c), 2);
    const uint64_t base = one.llama->memory_hash();
    one.to();
    two.to();
    expect_same_records(one.records, two.records);
    EXPECT_EQ(difference(state_of(one), state_of(two)), "") << name_of(c);
    EXPECT_EQ(one.llama->memory_hash(), base) << name_of(c);
    EXPECT_EQ(two.llama->memory_hash(), base) << name_of(c);
  }
}

TEST_F(TrainerTest, ALoadedRunGoesOnWithTheSameBits) {
  for (const Case& c : kCases) {
    TestRun straight(overrides_of(c));
    std::map<int64_t, std::string> saved;
    std::vector<Phase> phases;
    // In every phase, at the steps where one ends, and between.
    for (const int64_t at : {1, 4, 5, 7, 9, 11}) {
      straight.to(at);
      saved[at] = save(straight, std::to_string(at));
      phases.push_back(straight.trainer->phase());
    }
    straight.to();
    if (std::string(c.loss) != "ce") {
      EXPECT_EQ(std::set<Phase>(phases.begin(), phases.end()).size(), 3u)
          << name_of(c) << ": a phase is missing";
    }
    const auto want = state_of(straight);
    for (const auto& [at, path] : saved) {
      TestRun loaded(overrides_of(c));
      loaded.trainer->load(CheckpointReader(path));
      EXPECT_EQ(loaded.trainer->step_number(), at);
      loaded.to();
      expect_same_records(std::vector<StepRecord>(straight.records.begin() + at, straight.records.end()),
                          loaded.records);
      EXPECT_EQ(difference(want, state_of(loaded)), "") << name_of(c) << " saved at step " << at;
    }
  }
}

// Of every tensor in a saved run whose name begins with `prefix`, without it: its values.
std::map<std::string, std::vector<float>> values_of(const std::string& path, const std::string& prefix) {
  const CheckpointReader reader(path);
  std::map<std::string, std::vector<float>> out;
  for (const std::string& name : reader.tensor_names()) {
    if (!name.starts_with(prefix) || name.ends_with(".m") || name.ends_with(".v")) continue;
    const ConstTensor t = reader.tensor(name);
    out[name.substr(prefix.size())] = {t.data<float>(), t.data<float>() + t.count()};
  }
  return out;
}

// With train.average_from = 4 the average begins as the generator after step 4 and takes in each later step;
// it is what is validated and what a checkpoint deploys. The training itself does not notice.
TEST_F(TrainerTest, CrossEntropyAloneKeepsAnAverageFromAStepOn) {
  for (const char* kind : {"static", "conditional", "lora", "prefix mlp", "adapter", "full"}) {
    for (const double ema : {0.999, 0.25}) {
      const auto settings = with_generator(kind, {"train.average_from=4", fmt::format("train.ema={}", ema)});
      TestRun run(settings), plain(with_generator(kind));
      EXPECT_TRUE(values_of(save(run.to(4)), "average.").empty()) << kind;
      std::map<std::string, std::vector<double>> want;
      for (const auto& [name, now] : values_of(save(run), "generator."))
        want[name].assign(now.begin(), now.end());
      for (int t = 1; t <= 8; ++t) {
        const double decay = std::min(ema, (1.0 + t) / (10.0 + t));
        for (const auto& [name, now] : values_of(save(run.to(4 + t)), "generator."))
          for (size_t i = 0; i < now.size(); ++i)
            want[name][i] = decay * want[name][i] + (1.0 - decay) * static_cast<double>(now[i]);
      }
      const std::string path = save(run);
      const auto got = values_of(path, "average.");
      ASSERT_EQ(got.size(), want.size()) << kind;
      for (const auto& [name, values] : want)
        for (size_t i = 0; i < values.size(); ++i)
          ASSERT_NEAR(got.at(name)[i], values[i], 1e-6 * std::max(1.0, std::abs(values[i])))
              << kind << " " << name << " " << i;

      EXPECT_EQ(values_of(path, "generator."), values_of(save(plain.to(), "plain"), "generator.")) << kind;
      const CheckpointReader reader(path);
      const std::unique_ptr<Generator> deployed =
          load_generator(reader, checkpoint_config(reader, {}), *run.device, *run.llama, false);
      for (size_t i = 0; i < deployed->parameters().size(); ++i) {
        const std::string& name = deployed->parameters().name(i);
        EXPECT_EQ(download(*run.device, std::as_const(*deployed).parameters().value(i)), got.at(name))
            << kind << " " << name;
      }
      EXPECT_EQ(load_generator(reader, checkpoint_config(reader, {}), *run.device, *run.llama, true),
                nullptr);
      EXPECT_NE(run.trainer->validate().ce, plain.trainer->validate().ce) << kind;
    }
  }
}

TEST_F(TrainerTest, ALoadedRunWithAnAverageGoesOnWithTheSameBits) {
  for (const char* kind : {"static", "lora", "full"}) {
    const auto settings = with_generator(kind, {"train.average_from=4"});
    TestRun straight(settings);
    std::map<int64_t, std::string> saved;
    for (const int64_t at : {3, 4, 5, 9}) saved[at] = save(straight.to(at), std::to_string(at));
    const auto want = state_of(straight.to());
    const double ce = straight.trainer->validate().ce;
    for (const auto& [at, path] : saved) {
      TestRun loaded(settings);
      loaded.trainer->load(CheckpointReader(path));
      EXPECT_EQ(difference(want, state_of(loaded.to())), "") << kind << " saved at step " << at;
      EXPECT_EQ(loaded.trainer->validate().ce, ce) << kind << " saved at step " << at;
    }
  }
  // Continued with another train.average_from: asked for too late it begins at once, asked for no more it is
  // dropped, asked for later it begins anew.
  TestRun without({}), with({"train.average_from=4"});
  const std::string none = save(without.to(6), "none"), some = save(with.to(6), "some");
  TestRun late({"train.average_from=4"}), dropped({}), again({"train.average_from=8"});
  late.trainer->load(CheckpointReader(none));
  dropped.trainer->load(CheckpointReader(some));
  again.trainer->load(CheckpointReader(some));
  for (TestRun* run : {&without, &dropped}) run->to(7);
  EXPECT_EQ(difference(state_of(without), state_of(dropped)), "");
  const auto before = values_of(none, "generator."), now = values_of(save(late.to(7)), "generator.");
  for (const auto& [name, average] : values_of(save(late), "average."))
    for (size_t i = 0; i < average.size(); ++i)
      EXPECT_NEAR(average[i], 2.0 / 11.0 * before.at(name)[i] + 9.0 / 11.0 * now.at(name)[i], 1e-6) << name;
  EXPECT_TRUE(values_of(save(again.to(8)), "average.").empty());
  EXPECT_FALSE(values_of(save(again.to(9)), "average.").empty());
}

// Before the first step a method that adds to the model is the model, bit for bit; a prefix is the tokens it
// was made from, but for the order of attention's sums.
TEST_F(TrainerTest, OffIsTheBaseExactly) {
  TestRun none({"generator.prompt_length=0"});
  const double base = none.trainer->validate().ce;
  for (const char* kind : kOnModel) {
    TestRun run(with_generator(kind));
    const double ce = run.trainer->validate().ce;
    if (std::string(kind).starts_with("prefix")) {
      TestRun hard({"generator.kind=static", "generator.prompt_length=3"});
      // Sums of some hundred terms of some units each in f32.
      EXPECT_NEAR(ce, hard.trainer->validate().ce, 1e-5 * ce) << kind;
      EXPECT_NE(ce, base) << kind;
    } else {
      EXPECT_EQ(ce, base) << kind;
    }
    run.to(2);
    EXPECT_NE(run.trainer->validate().ce, ce) << kind;
  }
}

TEST_F(TrainerTest, ACheckpointOfOtherDataOrBaseIsRefused) {
  TestRun run({});
  const std::string path = save(run.to(2));
  TestRun other({});
  Trainer changed(*other.device, *other.llama, other.tokenizer, parse_train_config(kConfig, "kConfig"),
                  {testing::letters(24, 3), testing::letters(6, 2)});
  EXPECT_THROW(changed.load(CheckpointReader(path)), Error);
  const auto base = Llama::load(
      *other.device, std::make_shared<testing::MemoryWeights>(testing::tiny_config(), 2), DType::kF32);
  Trainer elsewhere(*other.device, *base, other.tokenizer, parse_train_config(kConfig, "kConfig"),
                    {testing::letters(24, 1), testing::letters(6, 2)});
  EXPECT_THROW(elsewhere.load(CheckpointReader(path)), Error);
  // Cross-entropy alone has no discriminator to go on with.
  TestRun adversarial({"loss.kind=rloo"}), alone({});
  const std::string behind = save(adversarial.to(6));
  EXPECT_THROW(alone.trainer->load(CheckpointReader(behind)), Error);
}

// An adapter is what it was when a run starts from it; another kind or size is refused.
TEST_F(TrainerTest, ARunStartsFromAnAdapter) {
  const std::vector<std::string> lora = with_generator("lora");
  TestRun first(lora);
  first.to(3);
  const std::vector<const TokenizedExample*> none;
  const auto adapter = [&](TestRun& run) {
    return lora_from_device(*run.device, *run.trainer->deployed().make(none, 0).adapter.lora);
  };
  const std::string folder = (folder_ / "peft").string();
  write_peft(folder, adapter(first), testing::tiny_config(), "memory");
  const PeftAdapter file = read_peft(folder, testing::tiny_config());
  TestRun second(lora);
  EXPECT_NE(adapter(second).layers[1][0].b, file.layers[1][0].b);
  second.trainer->start_from(file, folder);
  for (size_t l = 0; l < file.layers.size(); ++l)
    for (size_t t = 0; t < kLoraTargets; ++t) {
      EXPECT_EQ(adapter(second).layers[l][t].a, file.layers[l][t].a);
      EXPECT_EQ(adapter(second).layers[l][t].b, file.layers[l][t].b);
    }
  EXPECT_EQ(second.trainer->validate().ce, first.trainer->validate().ce);
  // The others that a folder can hold.
  for (const char* kind : {"prefix", "adapter"}) {
    TestRun from(with_generator(kind)), to(with_generator(kind, {"seed=9"}));
    from.to(3);
    const std::string other = (folder_ / kind).string();
    write_peft(other, adapter_from_device(*from.device, from.trainer->deployed().make(none, 0).adapter),
               testing::tiny_config(), "memory");
    EXPECT_NE(to.trainer->validate().ce, from.trainer->validate().ce) << kind;
    to.trainer->start_from(read_peft(other, testing::tiny_config()), other);
    EXPECT_EQ(to.trainer->validate().ce, from.trainer->validate().ce) << kind;
    EXPECT_THROW(second.trainer->start_from(read_peft(other, testing::tiny_config()), other), Error) << kind;
    TestRun small(with_generator(kind, {"prefix.length=2", "bottleneck.width=5"}));
    EXPECT_THROW(small.trainer->start_from(read_peft(other, testing::tiny_config()), other), Error) << kind;
  }
  TestRun prompt({}), narrow(with_generator("lora", {"lora.alpha=3"}));
  EXPECT_THROW(prompt.trainer->start_from(file, folder), Error);
  EXPECT_THROW(narrow.trainer->start_from(file, folder), Error);

  PeftAdapter table;
  table.type = "PROMPT_TUNING";
  table.prompt = test::random_normal(3 * testing::tiny_config().hidden_size, 9);
  prompt.trainer->start_from(table, "table");
  EXPECT_EQ(prompt.trainer->prompt_table(), table.prompt);
  EXPECT_THROW(second.trainer->start_from(table, "table"), Error);
  table.prompt.resize(table.prompt.size() / 3);
  EXPECT_THROW(prompt.trainer->start_from(table, "table"), Error);
}

// Whatever the gate reads, a step of the adversarial phase trains somebody.
void expect_somebody_trains(const std::vector<std::string>& overrides, std::vector<int32_t> end_ids) {
  TestRun run(overrides, 1, std::move(end_ids));
  run.to();
  int64_t adversarial = 0;
  for (const StepRecord& r : run.records)
    if (r.phase == Phase::kAdversarial) {
      ++adversarial;
      EXPECT_TRUE(r.trained_g || r.trained_d) << "step " << r.step << ", gate at " << r.gate_accuracy;
    }
  EXPECT_GT(adversarial, 3);
}

TEST_F(TrainerTest, NeverAreBothPlayersOff) {
  for (const char* loss : {"loss.kind=rloo", "loss.kind=gumbel"})
    for (const char* generator : {"static", "conditional", "lora", "prefix", "adapter", "full"})
      for (const char* gate : {"train.gate_g=0.55", "train.gate_g=0", "train.gate_g=0.79"})
        expect_somebody_trains(with_generator(generator, {loss, gate, "train.steps=20"}), {1});
}

// A step in which the gate holds the generator back: references teach it all the same, or the batch passes
// by.
TEST_F(TrainerTest, HeldBackByTheGateTheGeneratorLearnsFromReferences) {
  for (const char* loss : {"loss.kind=rloo", "loss.kind=gumbel"})
    for (const bool learns : {true, false}) {
      TestRun run({loss, "train.gate_g=0.79", "train.steps=20",
                   learns ? "train.gate_ce=true" : "train.gate_ce=false"},
                  1);
      int64_t held_back = 0;
      while (!run.trainer->done()) {
        const StepRecord r = run.trainer->step();
        if (r.phase == Phase::kAdversarial && !r.trained_g) {
          ++held_back;
          EXPECT_EQ(std::isfinite(r.ce), learns) << loss << " step " << r.step;
          EXPECT_EQ(std::isfinite(r.grad_norm_g) && r.grad_norm_g > 0, learns) << loss << " step " << r.step;
        }
      }
      EXPECT_GT(held_back, 0) << loss;
    }
}

// The discriminator learns alone, on as many answers as it is said to, and then never again.
TEST_F(TrainerTest, AHeldDiscriminatorStandsStillWhileTheGeneratorAlwaysTrains) {
  for (const char* loss : {"loss.kind=rloo", "loss.kind=gumbel"}) {
    std::vector<int64_t> sampled;
    for (const char* samples : {"train.discriminator_samples=1", "train.discriminator_samples=12"}) {
      TestRun run({loss, samples, "train.hold_d=true", "train.discriminator_steps=3", "train.target_low=1",
                   "train.target_high=1", "train.gate_g=0.79", "train.steps=20"},
                  1);
      int64_t alone = 0, both = 0;
      while (!run.trainer->done()) {
        const int64_t before = run.trainer->totals().sampled_tokens;
        const StepRecord r = run.trainer->step();
        if (r.phase == Phase::kDiscriminator) {
          if (alone++ == 0) sampled.push_back(run.trainer->totals().sampled_tokens - before);
          EXPECT_TRUE(r.trained_d && !r.trained_g) << loss << " step " << r.step;
        } else if (r.phase == Phase::kAdversarial) {
          ++both;
          EXPECT_TRUE(r.trained_g && !r.trained_d) << loss << " step " << r.step;
        }
      }
      EXPECT_EQ(alone, 3) << loss;
      EXPECT_GT(both, 3) << loss;
    }
    EXPECT_GT(sampled[1], 3 * sampled[0]) << loss;
  }
}

// With labels an arm's loss comes from their scores; without, from a pass of its own.
TEST_F(TrainerTest, WithLabelsTheLossIsThatOfTheRightOnes) {
  TestRun run({"loss.kind=ce"});
  run.to(2);
  const std::vector<std::vector<int32_t>> labels{{3, 4}, {5}, {6, 7, 8}};
  std::vector<TokenizedExample> items = testing::letters(7, 3);
  std::vector<const TokenizedExample*> pointers;
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].completion = labels[i % labels.size()];
    pointers.push_back(&items[i]);
  }
  Runner runner(*run.device, *run.llama);
  ArmSettings settings;
  settings.batch = 3;
  settings.generate = false;
  const Arm arm{"trained", &run.trainer->deployed()};
  const ArmResult with = evaluate_arm(runner, run.tokenizer, arm, pointers, {}, labels, settings),
                  without = evaluate_arm(runner, run.tokenizer, arm, pointers, {}, {}, settings);
  EXPECT_EQ(with.loss.tokens, without.loss.tokens);
  EXPECT_EQ(with.loss.tokens, 3 * 2 + 2 * 1 + 2 * 3);
  // The same sums of f32 values in another order.
  EXPECT_LE(std::abs(with.loss.ce - without.loss.ce), 1e-6 * without.loss.ce);
  EXPECT_GE(with.label_accuracy, 0.0);
  EXPECT_EQ(without.label_accuracy, -1.0);
}

// Every answer ends at once: nothing to judge. The generator must learn to speak from the references.
TEST_F(TrainerTest, EmptyAnswersDoNotStopTheRun) {
  std::vector<int32_t> everything;
  for (int32_t id = 0; id < FakeTokenizer::kVocab; ++id) everything.push_back(id);
  for (const char* loss : {"loss.kind=rloo", "loss.kind=gumbel"})
    expect_somebody_trains({loss, "train.discriminator_steps=2"}, everything);
}

}  // namespace
}  // namespace gantrain
