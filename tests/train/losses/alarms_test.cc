#include "train/losses/alarms.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "core/check.h"

namespace gantrain {
namespace {

AlarmInput healthy() {
  return {.accuracy_held_out = 0.7,
          .accuracy_train = 0.75,
          .pairs_held_out = 1e6,
          .pairs_train = 1e6,
          .mean_length = 40.0,
          .self_bleu = 0.3,
          .cross_entropy = 2.0,
          .rms_ratio = 1.0,
          .non_canonical = 0.01,
          .noise_change = 0.1};
}

// Where a run started is the mean of its first steps, not the few answers of one: an odd first step raises no
// alarm, and a drift that lasts does.
TEST(FollowedMean, StartsWithTheMeanOfTheFirstStepsAndThenFades) {
  FollowedMean length;
  AlarmMonitor m;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto observe = [&](int64_t step, double now) {
    length.add(now);
    AlarmInput in;
    in.mean_length = length.value();
    return m.observe(step, in).size();
  };
  EXPECT_EQ(observe(0, 20.0), 0u);
  EXPECT_EQ(observe(1, nan), 0u);  // no answers: no value, and none in the mean
  for (int64_t step = 2; step < 10; ++step) EXPECT_EQ(observe(step, 30.0), 0u);
  EXPECT_FALSE(length.value());
  EXPECT_EQ(observe(10, 30.0), 0u);
  ASSERT_TRUE(length.value());
  EXPECT_DOUBLE_EQ(*length.value(), 29.0);
  EXPECT_EQ(observe(11, 39.0), 0u);
  EXPECT_DOUBLE_EQ(*length.value(), 30.0);
  size_t raised = 0;
  for (int64_t step = 12; step < 60; ++step) raised += observe(step, 39.0);
  EXPECT_EQ(raised, 1u);  // 39 is a third above 29
}

TEST(AlarmMonitor, IsQuietInAHealthyRun) {
  AlarmMonitor m;
  for (int64_t step = 0; step < 1000; ++step) EXPECT_TRUE(m.observe(step, healthy()).empty());
  EXPECT_TRUE(m.active().empty());
  EXPECT_TRUE(m.observe(1000, {}).empty());  // nothing measured, nothing judged
}

// Each limit: just inside stays quiet, just outside raises this alarm and no other, and says so once.
TEST(AlarmMonitor, EachLimitRaisesItsOwnAlarmOnce) {
  struct Case {
    AlarmKind kind;
    void (*inside)(AlarmInput&);
    void (*outside)(AlarmInput&);
  };
  const Case cases[] = {
      {AlarmKind::kMemorising, [](AlarmInput& i) { i.accuracy_train = 0.79; },
       [](AlarmInput& i) { i.accuracy_train = 0.81; }},
      {AlarmKind::kLength, [](AlarmInput& i) { i.mean_length = 49.9; },
       [](AlarmInput& i) { i.mean_length = 50.1; }},
      {AlarmKind::kLength, [](AlarmInput& i) { i.mean_length = 30.1; },
       [](AlarmInput& i) { i.mean_length = 29.9; }},
      {AlarmKind::kSelfBleu, [](AlarmInput& i) { i.self_bleu = 0.39; },
       [](AlarmInput& i) { i.self_bleu = 0.41; }},
      {AlarmKind::kCrossEntropy, [](AlarmInput& i) { i.cross_entropy = 2.39; },
       [](AlarmInput& i) { i.cross_entropy = 2.41; }},
      {AlarmKind::kRms, [](AlarmInput& i) { i.rms_ratio = 0.5; }, [](AlarmInput& i) { i.rms_ratio = 0.49; }},
      {AlarmKind::kRms, [](AlarmInput& i) { i.rms_ratio = 2.0; }, [](AlarmInput& i) { i.rms_ratio = 2.01; }},
      {AlarmKind::kNonCanonical, [](AlarmInput& i) { i.non_canonical = 0.05; },
       [](AlarmInput& i) { i.non_canonical = 0.06; }},
      {AlarmKind::kNoiseUnused, [](AlarmInput& i) { i.noise_change = 0.001; },
       [](AlarmInput& i) { i.noise_change = 0.0; }},
  };
  for (const Case& c : cases) {
    AlarmMonitor m;
    m.observe(0, healthy());
    AlarmInput in = healthy();
    c.inside(in);
    EXPECT_TRUE(m.observe(1, in).empty()) << alarm_name(c.kind);
    c.outside(in);
    const auto raised = m.observe(2, in);
    ASSERT_EQ(raised.size(), 1u) << alarm_name(c.kind);
    EXPECT_EQ(raised[0].kind, c.kind);
    EXPECT_FALSE(raised[0].text.empty());
    EXPECT_TRUE(m.observe(3, in).empty());  // still on, not said again
    EXPECT_EQ(m.active(), std::vector<AlarmKind>{c.kind});
    m.observe(4, healthy());
    EXPECT_TRUE(m.active().empty());
    EXPECT_EQ(m.observe(5, in).size(), 1u);  // came back
    EXPECT_EQ(m.times_raised(c.kind), 2);
  }
}

TEST(AlarmMonitor, AccuracyMustStayBeyondItsLimitFor200Steps) {
  for (const auto& [kind, bad] :
       {std::pair{AlarmKind::kAccuracyHigh, 0.98}, std::pair{AlarmKind::kAccuracyLow, 0.51}}) {
    AlarmMonitor m;
    AlarmInput in;
    in.accuracy_held_out = bad;
    for (int64_t step = 0; step < 200; ++step) EXPECT_TRUE(m.observe(step, in).empty()) << step;
    AlarmInput good;
    good.accuracy_held_out = 0.7;
    EXPECT_TRUE(m.observe(200, good).empty());  // the count starts again
    for (int64_t step = 201; step < 401; ++step) EXPECT_TRUE(m.observe(step, in).empty()) << step;
    const auto raised = m.observe(401, in);
    ASSERT_EQ(raised.size(), 1u);
    EXPECT_EQ(raised[0].kind, kind);
  }
}

// Few pairs differ by chance, and a discriminator no better than chance on its own pairs remembers nothing.
TEST(AlarmMonitor, MemorisingNeedsMoreThanChance) {
  const auto raised = [](double train, double held_out, double pairs) {
    AlarmInput in;
    in.accuracy_held_out = held_out;
    in.accuracy_train = train;
    in.pairs_held_out = pairs;
    in.pairs_train = 4 * pairs;
    return AlarmMonitor().observe(0, in).size();
  };
  EXPECT_EQ(raised(0.80, 0.60, 40), 0u);   // 0.08 standard error
  EXPECT_EQ(raised(0.80, 0.60, 400), 1u);  // 0.026
  EXPECT_EQ(raised(0.95, 0.60, 40), 1u);
  EXPECT_EQ(raised(0.406, 0.293, 1e4), 0u);
  EXPECT_EQ(raised(1.0, 0.4, 2), 0u);
  EXPECT_NEAR(accuracy_error(0.5, 98), 0.05, 1e-12);
  EXPECT_GT(accuracy_error(1.0, 5), 0.1);
}

TEST(AlarmMonitor, ValuesThatAreNotFiniteRaise) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  AlarmMonitor m;
  m.observe(0, healthy());
  AlarmInput in = {.accuracy_held_out = nan,
                   .accuracy_train = nan,
                   .mean_length = nan,
                   .self_bleu = nan,
                   .cross_entropy = nan,
                   .rms_ratio = nan,
                   .non_canonical = nan,
                   .noise_change = nan};
  EXPECT_EQ(m.observe(1, in).size(), kAlarmKinds);
}

TEST(AlarmMonitor, GoesOnAsItWasSaved) {
  AlarmMonitor a, b;
  AlarmInput in = healthy();
  in.accuracy_held_out = 0.99;
  a.observe(0, healthy());
  in.rms_ratio = 5.0;
  for (int64_t step = 1; step < 150; ++step) a.observe(step, in);
  b.load(a.save());
  EXPECT_EQ(a.active(), b.active());
  for (int64_t step = 150; step < 220; ++step)
    EXPECT_EQ(a.observe(step, in).size(), b.observe(step, in).size());
  EXPECT_TRUE(b.active(AlarmKind::kAccuracyHigh));
  EXPECT_EQ(a.save(), b.save());
  EXPECT_THROW(b.load(std::vector<int64_t>(3, 0)), Error);
}

TEST(AlarmMonitor, NamesAreDistinct) {
  std::set<std::string> names;
  for (size_t i = 0; i < kAlarmKinds; ++i) names.insert(alarm_name(static_cast<AlarmKind>(i)));
  EXPECT_EQ(names.size(), kAlarmKinds);
}

}  // namespace
}  // namespace gantrain
