// What `gantrain compare` makes of names, configurations and results.
#include "train/verbs/compare.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "tests/support/devices.h"
#include "tests/support/fill.h"
#include "train/play/judging.h"

namespace gantrain {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

std::string refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
#define EXPECT_SAYS(call, part) \
  EXPECT_NE(refused([&] { call; }).find(part), std::string::npos) << refused([&] { call; })

TEST(Compare, MethodsAndArms) {
  EXPECT_EQ(parse_method("lora").settings, (Words{"method=lora", "loss.kind=ce"}));
  EXPECT_EQ(parse_method("gan").settings, (Words{"method=gan", "loss.kind=rloo"}));
  EXPECT_EQ(parse_method("lora+gumbel").settings, (Words{"method=lora", "loss.kind=gumbel"}));
  EXPECT_TRUE(parse_method("lora+gumbel").trains);
  EXPECT_EQ(parse_method("prompt+placebo").settings,
            (Words{"method=prompt", "loss.kind=rloo", "optimizer.lr_d=0", "optimizer.lr_d_end=0",
                   "train.gate_g=0"}));
  EXPECT_EQ(parse_method("prompt+placebo").name, "prompt+placebo");
  EXPECT_FALSE(parse_method("zero-shot").trains);
  const ComparedArm few = parse_method("few-shot:8");
  EXPECT_EQ(few.shots, 8);
  EXPECT_EQ(few.name, "few-shot-8");
  EXPECT_FALSE(few.trains);
  const ComparedArm arm = parse_arm("long: prompt+rloo generator.prompt_length=100");
  EXPECT_EQ(arm.name, "long");
  EXPECT_EQ(arm.settings, (Words{"method=prompt", "loss.kind=rloo", "generator.prompt_length=100"}));

  EXPECT_SAYS(parse_method("lorra"), "did you mean 'lora'?");
  EXPECT_SAYS(parse_method("lora+rlo"), "did you mean 'rloo'?");
  EXPECT_SAYS(parse_method("lora+placebos"), "did you mean 'placebo'?");
  for (const char* bad : {"few-shot", "few-shot:", "few-shot:0", "few-shot:x", "few-shot4", "few-shot:99999"})
    EXPECT_SAYS(parse_method(bad), "few-shot:K");
  EXPECT_SAYS(parse_arm("prompt"), "expected --arm 'NAME: METHOD");
  EXPECT_SAYS(parse_arm("../x: prompt"), "an arm's name");
  EXPECT_SAYS(parse_arm("a: prompt generator"), "expected KEY=VALUE");
  for (const char* shared : {"train.batch=4", "train.steps=9", "data.train=x", "seed=3", "model=y"})
    EXPECT_SAYS(parse_arm(std::string("a: prompt ") + shared), "must be the same for all arms");
}

class FewShot : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = ::testing::TempDir() + "few_shot_" + std::to_string(::getpid()) + ".jsonl";
    std::ofstream out(file_);
    for (int i = 0; i < 12; ++i)
      out << json{{"text", "t{" + std::to_string(i) + "}"}, {"label", i % 2 ? "yes" : "no"}}.dump() << "\n";
    data_.train = file_;
    data_.prompt_template = "Q: {text}\nA:";
    data_.completion_template = " {label}";
  }
  void TearDown() override { std::filesystem::remove(file_); }
  std::string file_;
  DataConfig data_;
};

TEST_F(FewShot, ExamplesStandBeforeTheTemplateLabelsInTurn) {
  const std::string text = few_shot_template(data_, 4, 7);
  EXPECT_TRUE(text.ends_with("\n\nQ: {text}\nA:")) << text;
  size_t yes = 0, no = 0;
  for (size_t at = 0; (at = text.find(" yes\n", at)) != std::string::npos; ++at) ++yes;
  for (size_t at = 0; (at = text.find(" no\n", at)) != std::string::npos; ++at) ++no;
  EXPECT_EQ(yes, 2u);
  EXPECT_EQ(no, 2u);
  EXPECT_NE(text.find("Q: t{{"), std::string::npos) << "braces of an example are text";
  EXPECT_EQ(text, few_shot_template(data_, 4, 7));
  EXPECT_NE(text, few_shot_template(data_, 4, 8));
  // All of them, none twice.
  const std::string all = few_shot_template(data_, 12, 1);
  for (int i = 0; i < 12; ++i) EXPECT_NE(all.find("t{{" + std::to_string(i) + "}}"), std::string::npos);
  EXPECT_SAYS(few_shot_template(data_, 13, 1), "12 training items");
}

json summary_of(double before, double after) {
  return {
      {"run", {{"steps", 10}, {"items", 5}}},
      {"arms",
       {{{"arm", "no prompt"}, {"ce", before}, {"temperatures", json::array()}},
        {{"arm", "trained"},
         {"ce", after},
         {"temperatures", {{{"temperature", 0.5}, {"bleu", 1.0}}, {{"temperature", 0.9}, {"bleu", 2.0}}}}}}},
      {"cost", {{"parameters_trained", 7}, {"train_seconds", 3.5}, {"seconds", {{"rollout", 1.5}}}}}};
}

TEST(Compare, FiguresOfARun) {
  const json eval{{"arms",
                   {{{"arm", "no prompt"}, {"drift_ce", 3.0}, {"temperatures", json::array()}},
                    {{"arm", "trained"},
                     {"drift_ce", 3.25},
                     {"ce", 1.25},
                     {"temperatures", {{{"temperature", 1.0}, {"judge_accuracy", 0.75}, {"bleu", 4.0}}}}}}}};
  const auto alone = run_figures(summary_of(2.0, 1.5), json::object());
  EXPECT_EQ(alone.at("ce"), 1.5);
  EXPECT_EQ(alone.at("bleu"), 2.0) << "at the temperature nearest to 1";
  const auto figures = run_figures(summary_of(2.0, 1.5), eval);
  EXPECT_EQ(figures.at("ce"), 1.25) << "the evaluation's, which read more";
  EXPECT_EQ(figures.at("bleu"), 4.0);
  EXPECT_EQ(figures.at("drift"), 0.25);
  EXPECT_EQ(figures.at("judge_accuracy"), 0.75);
  EXPECT_EQ(figures.at("seconds rollout"), 1.5);
  EXPECT_EQ(figures.count("label_likelihood"), 0u);
  EXPECT_TRUE(run_figures(json::object(), json::object()).empty());
}

TEST(Compare, ACollapsedRunIsOneWorseThanNothingOrWithAnAlarm) {
  EXPECT_EQ(collapse_of(summary_of(2.0, 2.0)), "");
  EXPECT_NE(collapse_of(summary_of(2.0, 2.0001)), "");
  json alarmed = summary_of(2.0, 1.0);
  alarmed["alarms_raised"] = {{"rms", 3}};
  EXPECT_EQ(collapse_of(alarmed), "");
  alarmed["alarms_raised"]["self_bleu"] = 1;
  EXPECT_NE(collapse_of(alarmed).find("self_bleu"), std::string::npos);
}

json run_of(const char* arm, int64_t seed, const char* status, double ce) {
  return {{"budget", "tokens"},
          {"arm", arm},
          {"seed", seed},
          {"status", status},
          {"reason", ""},
          {"settings", Words{}},
          {"version", "1"},
          {"finished_at", ""},
          {"command", "c"},
          {"figures", status == std::string("failed") ? json::object() : json{{"ce", ce}}},
          {"curve", json::array()}};
}

TEST(Compare, MediansCountCollapsedRunsAndLeaveOutFailedOnes) {
  json runs = json::array();
  const double ce[] = {1.0, 2.0, 4.0, 9.0};
  for (int i = 0; i < 4; ++i) runs.push_back(run_of("a", i, i == 3 ? "collapsed" : "done", ce[i]));
  runs.push_back(run_of("b", 0, "failed", 0));
  const json rows = summarise_runs(runs);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["runs"], 4);
  EXPECT_EQ(rows[0]["collapsed"], 1);
  EXPECT_EQ(rows[0]["figures"]["ce"]["median"], 3.0);
  EXPECT_EQ(rows[0]["figures"]["ce"]["q1"], 1.75);  // numpy.quantile([1, 2, 4, 9], 0.25)
  EXPECT_EQ(rows[0]["figures"]["ce"]["q3"], 5.25);
  EXPECT_EQ(rows[1]["failed"], 1);
  EXPECT_TRUE(rows[1]["figures"].empty());

  const json comparison{{"command", "gantrain compare"},
                        {"model", "m"},
                        {"data", "d"},
                        {"seeds", {0, 1}},
                        {"budgets", {{{"name", "tokens"}, {"title", "At equal tokens"}}}},
                        {"arms", rows},
                        {"runs", runs}};
  const std::string markdown = compare_markdown(comparison);
  EXPECT_NE(markdown.find("| a | 4, 1 collapsed | 3.0000 [1.7500, 5.2500] |"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("| b | 1, 1 failed | |"), std::string::npos) << markdown;
  const std::string csv = compare_csv(comparison);
  size_t columns = 0;
  for (size_t at = 0, line = 0; at < csv.size(); ++line) {
    const size_t end = csv.find('\n', at);
    const auto commas = static_cast<size_t>(std::count(csv.begin() + static_cast<std::ptrdiff_t>(at),
                                                       csv.begin() + static_cast<std::ptrdiff_t>(end), ','));
    if (line == 0) columns = commas;
    EXPECT_EQ(commas, columns) << csv.substr(at, end - at);
    at = end + 1;
  }
}

class Judging : public test::OpsTest {};

// Answers whose words only one side uses are told apart; answers from one source are not.
TEST_P(Judging, FreshJudgesFindADifferenceAndNoneWhereThereIsNone) {
  for (const bool differ : {true, false}) {
    std::vector<AnswerPair> train, held_out;
    uint64_t state = 12345;
    const auto word = [&](int32_t first) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      return first + static_cast<int32_t>((state >> 40) % 6);
    };
    for (int i = 0; i < 240; ++i) {
      AnswerPair pair;
      for (int t = 0; t < 4; ++t) {
        pair.real.push_back(word(differ ? 4 : 0));
        pair.fake.push_back(word(0));
      }
      (i < 160 ? train : held_out).push_back(pair);
    }
    JudgeSettings settings;
    settings.judges = 2;
    settings.width = 16;
    settings.epochs = 4;
    settings.lr = 1e-2;
    const Verdict verdict = judge_answers(device(), 10, train, held_out, settings);
    EXPECT_EQ(verdict.held_out_pairs, 80);
    EXPECT_EQ(verdict.accuracies.size(), 2u);
    if (differ)
      EXPECT_GT(verdict.accuracy, 0.9);
    else  // five standard errors of a coin's
      EXPECT_NEAR(verdict.accuracy, 0.5, 5 * 0.5 / std::sqrt(160.0));
    EXPECT_LT(verdict.standard_error, 0.06);
    settings.judges = 1;
    settings.epochs = 12;
    settings.patience = 12;
    EXPECT_EQ(judge_answers(device(), 10, train, held_out, settings).epochs, std::vector<int64_t>{12});
    settings.patience = 1;  // sixteen pairs set aside: their accuracy does not rise twelve times in a row
    EXPECT_LT(judge_answers(device(), 10, train, held_out, settings).epochs.front(), 12);
  }
  EXPECT_SAYS(judge_answers(device(), 10, {}, {}, {}), "20 pairs");
}

// The same of features: rows that are shifted apart are told from each other, rows of one distribution are
// not.
TEST_P(Judging, JudgesOfFeaturesFindADifferenceAndNoneWhereThereIsNone) {
  constexpr int64_t kC = 12;
  for (const float shift : {0.5f, 0.0f}) {
    const auto draw = [&](size_t count, uint64_t seed, std::vector<AnswerPair>& pairs) {
      AnswerFeatures features;
      std::vector<float> rows;
      for (size_t i = 0; i < count; ++i) {
        const size_t length = 2 + (i * 7 + seed) % 4;
        pairs.emplace_back();
        pairs.back().real.assign(length, 0);
        pairs.back().fake.assign(length, 0);
        for (const float side : {1.0f, -1.0f}) {
          features.begin.push_back(static_cast<int32_t>(rows.size()) / static_cast<int32_t>(kC));
          for (float x :
               test::random_normal(static_cast<int64_t>(length) * kC, seed + 2 * i + (side > 0), 1.0f))
            rows.push_back(x + side * shift);
        }
      }
      features.rows = OwnedTensor(device(), DType::kF32, {static_cast<int64_t>(rows.size()) / kC, kC});
      device().copy_in(features.rows, rows.data());
      return features;
    };
    std::vector<AnswerPair> train, held_out;
    const AnswerFeatures of_train = draw(160, 1000, train), of_held_out = draw(80, 90000, held_out);
    JudgeSettings settings;
    settings.judges = 2;
    settings.width = 16;
    settings.epochs = 4;
    settings.lr = 1e-2;
    const Verdict verdict = judge_features(device(), train, of_train, held_out, of_held_out, settings);
    EXPECT_EQ(verdict.held_out_pairs, 80);
    if (shift > 0) {
      EXPECT_GT(verdict.accuracy, 0.9);
      EXPECT_GT(verdict.ranking, 0.95);
    } else {  // five standard errors of a coin's
      EXPECT_NEAR(verdict.accuracy, 0.5, 5 * 0.5 / std::sqrt(160.0));
      EXPECT_NEAR(verdict.ranking, 0.5, 5 * 0.5 / std::sqrt(80.0));
    }
  }
}
GT_ALL_DEVICES(Judging);

}  // namespace
}  // namespace gantrain
