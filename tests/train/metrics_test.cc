// The metrics on cases small enough to check by hand; witness_metrics.py holds them against sacrebleu and
// rouge-score.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/check.h"
#include "train/metrics/accuracy.h"
#include "train/metrics/bleu.h"
#include "train/metrics/diversity.h"
#include "train/metrics/rouge.h"
#include "train/metrics/statistics.h"
#include "train/metrics/text.h"

namespace gantrain::metrics {
namespace {

using Strings = std::vector<std::string>;
using Lists = std::vector<Strings>;

// Rounding of a dozen operations in double on values of at most 100.
constexpr double kRounding = 1e-12;

TEST(MetricText, TokensOf13a) {
  EXPECT_EQ(tokenize_13a("It's $3.50, (or 4-5) e.g. U.S.A.: \"x\"").joined,
            "It's $ 3.50 , ( or 4 - 5 ) e . g . U . S . A . : \" x \"");
  EXPECT_EQ(tokenize_13a("a&amp;lt;b &quot;x&quot;<skipped> end-\nless\nline  \n").joined,
            "a < b \" x \" endless line");
  EXPECT_EQ(tokenize_13a("a..b 1,2 1,a ,").joined, "a . . b 1,2 1 , a ,");
  EXPECT_EQ(tokenize_13a(" \xC2\xA0\xE3\x80\x80").size(), 0u);
}

TEST(MetricText, TokensOfRouge) {
  EXPECT_EQ(tokenize_rouge("The caf\xC3\xA9's 42nd,\n\xE2\x84\xAA-\xC4\xB0t").joined, "the caf s 42nd k i t");
  EXPECT_EQ(tokenize_rouge("\xF0\x9F\x99\x82 ...").size(), 0u);
}

TEST(MetricText, BrokenUtf8IsKept) {
  const std::string broken = "a\xE2\x80 b\xC2";
  EXPECT_EQ(tokenize_13a(broken).joined, broken);
}

TEST(MetricText, NormalizeAnswer) {
  EXPECT_EQ(normalize_answer(" Positive. \n"), "positive");
  EXPECT_EQ(normalize_answer("New\t York?!"), "new york");
  EXPECT_EQ(normalize_answer("3.5"), "3.5");
  EXPECT_EQ(normalize_answer(" ... "), "");
}

TEST(Bleu, ByHand) {
  // Six tokens against seven: matches 5, 3, 1, 0 of 6, 5, 4, 3; the last smoothed to 1/(2*3).
  const Strings references{"the cat sat on the mat today"};
  const Bleu bleu = corpus_bleu(Strings{"the cat is on the mat"}, Lists{references});
  EXPECT_NEAR(bleu.score, 100 * std::exp(1 - 7.0 / 6) * std::pow(5.0 / 6 * 3 / 5 * 1 / 4 * 1 / 6, 0.25),
              kRounding);
}

TEST(Bleu, PerfectEmptyAndClippedByTheBestReference) {
  const Strings one{"a b c d e"};
  EXPECT_NEAR(sentence_bleu("a b c d e", one).score, 100, kRounding);
  EXPECT_EQ(sentence_bleu("", one).score, 0);
  EXPECT_EQ(corpus_bleu({}, {}).score, 0);
  EXPECT_EQ(bleu_statistics("a a a a", Strings{"a x", "a a y y"}).matches[0], 2);
}

TEST(Bleu, ClosestReferenceTheShorterOfTwo) {
  EXPECT_EQ(bleu_statistics("a b c", Strings{"a b c d", "a b"}).reference_length, 2);
  EXPECT_EQ(bleu_statistics("a b c", Strings{"a b c d", "a"}).reference_length, 4);
}

TEST(Bleu, ShortSentencesNeedEffectiveOrder) {
  const Strings references{"two words"};
  EXPECT_NEAR(sentence_bleu("two words", references).score, 100, kRounding);
  EXPECT_EQ(corpus_bleu(Strings{"two words"}, Lists{references}).score, 0);
}

TEST(Bleu, WrongCallsThrow) {
  EXPECT_THROW(sentence_bleu("a", {}), Error);
  EXPECT_THROW(corpus_bleu(Strings{"a", "b"}, Lists{Strings{"a"}}), Error);
  EXPECT_THROW(self_bleu(Strings{"a", "b"}, 6), Error);
  EXPECT_THROW(bleu_score({}, 0), Error);
}

TEST(SelfBleu, EqualTextsAndStrangers) {
  EXPECT_NEAR(self_bleu(Strings{"a b c d e", "a b c d e"}, 4), 100, kRounding);
  EXPECT_EQ(self_bleu(Strings{"a b c d e", "f g h i j"}, 4), 0);
  EXPECT_EQ(self_bleu(Strings{"a b"}, 2), 0);
}

TEST(SelfBleu, IsTheMeanSentenceBleuAgainstTheOthers) {
  const Strings texts{"a b c a b", "a b c d", "b c d d a b c", "x", "a b c a b", ""};
  double sum = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    Strings others = texts;
    others.erase(others.begin() + static_cast<long>(i));
    sum += sentence_bleu(texts[i], others).score;
  }
  EXPECT_NEAR(self_bleu(texts, 4), sum / static_cast<double>(texts.size()), kRounding);
}

TEST(RougeL, ByHandAndTheBestReference) {
  const Rouge rouge = rouge_l("the cat is on the mat", std::string_view("the cat sat on a mat today"));
  EXPECT_EQ(rouge.precision, 4.0 / 6);  // the cat on mat
  EXPECT_EQ(rouge.recall, 4.0 / 7);
  EXPECT_NEAR(rouge.f_measure, 2 * 4.0 / 13, kRounding);
  EXPECT_EQ(rouge_l("A b.", Strings{"x", "a, b", "a b c"}).f_measure, 1);
  EXPECT_EQ(rouge_l("...", Strings{"a"}).f_measure, 0);
  EXPECT_THROW(rouge_l("a", std::span<const std::string>{}), Error);
}

TEST(Diversity, DistinctAndLengths) {
  const Strings texts{"a b a b", "a b c", ""};
  EXPECT_EQ(distinct(texts, 1), 3.0 / 7);
  EXPECT_EQ(distinct(texts, 2), 3.0 / 5);  // ab ba ab, ab bc
  EXPECT_EQ(distinct(texts, 5), 0);
  EXPECT_EQ(distinct(Strings{"A a"}, 1), 1);
  EXPECT_EQ(length_summary(texts).median, 3);
  EXPECT_EQ(length_summary(texts).maximum, 4);
  EXPECT_THROW(distinct(texts, 0), Error);
}

TEST(Accuracy, ExactMatch) {
  EXPECT_TRUE(exact_match(" Negative.", Strings{"positive", "negative"}));
  EXPECT_FALSE(exact_match("not negative", Strings{"negative"}));
  EXPECT_FALSE(exact_match("", {}));
  EXPECT_EQ(exact_match_rate(Strings{"a", "b"}, Lists{Strings{"A"}, Strings{"c"}}), 0.5);
}

TEST(Accuracy, Labels) {
  EXPECT_EQ(most_likely_label(std::vector{-2.0, -1.0, -1.0}), 1u);  // the first of equals
  EXPECT_EQ(label_accuracy(std::vector{-1.0, -2.0, -3.0, -0.5, -1.0, -2.0}, std::vector<int64_t>{0, 1, 1}, 2),
            2.0 / 3);
  EXPECT_THROW(most_likely_label(std::vector{0.0, std::nan("")}), Error);
  EXPECT_THROW(label_accuracy(std::vector{0.0, 1.0}, std::vector<int64_t>{2}, 2), Error);
  EXPECT_THROW(label_accuracy(std::vector{0.0}, std::vector<int64_t>{0}, 2), Error);
}

TEST(MetricStatistics, Quantiles) {
  const std::vector<double> values{4, 1, 3, 2};
  EXPECT_EQ(quantile(values, 0), 1);
  EXPECT_EQ(quantile(values, 0.25), 1.75);
  EXPECT_EQ(median(values), 2.5);
  EXPECT_EQ(quantile(values, 1), 4);
  EXPECT_EQ(summarize(values).interquartile_range(), 1.5);
  EXPECT_EQ(summarize({}).count, 0u);
  EXPECT_THROW(median({}), Error);
  EXPECT_THROW(median(std::vector{1.0, std::numeric_limits<double>::infinity()}), Error);
}

TEST(MetricStatistics, BootstrapOfTheMeanFindsItsStandardError) {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(i % 2);
  const double exact = 0.5 / std::sqrt(400.0);
  // 2,000 resamples know a standard deviation to 1/sqrt(2*2000) = 1.6 % of itself; four of those.
  EXPECT_NEAR(bootstrap_standard_error(values, 2000), exact, 0.064 * exact);
  EXPECT_EQ(bootstrap_standard_error(values, 50, 7), bootstrap_standard_error(values, 50, 7));
  EXPECT_NE(bootstrap_standard_error(values, 50, 7), bootstrap_standard_error(values, 50, 8));
  EXPECT_EQ(bootstrap_standard_error(std::vector{1.0}), 0);
}

}  // namespace
}  // namespace gantrain::metrics
