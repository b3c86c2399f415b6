#include "train/losses/balance.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/check.h"
#include "train/losses/replay.h"
#include "train/losses/schedule.h"

namespace gantrain {
namespace {

BalanceGate::Turn advance(BalanceGate& gate) {
  const auto turn = gate.turn();
  gate.took(turn);
  return turn;
}

TEST(BalanceGate, WarmsUpTheDiscriminatorAloneUntilItSeesSomething) {
  BalanceGate gate({});
  for (const double accuracy : {0.5, 0.55, 0.6}) {
    gate.observe(accuracy, 4);
    const auto turn = advance(gate);
    EXPECT_TRUE(turn.warmup && turn.discriminator && !turn.generator);
  }
  EXPECT_FALSE(gate.warmed_up());
  for (int i = 0; i < 60 && !gate.warmed_up(); ++i) {
    gate.observe(0.75, 4);
    advance(gate);
  }
  EXPECT_TRUE(gate.warmed_up() && gate.signal() && gate.in_target());
  EXPECT_EQ(gate.steps(), 0);
}

TEST(BalanceGate, RunningAccuracyIsTheAverageItSays) {
  BalanceGate gate({});
  EXPECT_EQ(gate.accuracy(), 0.5);
  gate.observe(0.75, 4);
  EXPECT_NEAR(gate.accuracy(), (0.9 * 4 + 3) / (0.9 * 8 + 4), 1e-15);
  gate.observe(0.5, 2);
  EXPECT_NEAR(gate.accuracy(), (0.81 * 4 + 0.9 * 3 + 1) / (0.81 * 8 + 0.9 * 4 + 2), 1e-15);
  EXPECT_THROW(gate.observe(std::numeric_limits<double>::quiet_NaN(), 4), Error);
  EXPECT_THROW(gate.observe(1.01, 4), Error);
  EXPECT_THROW(gate.observe(0.5, 0), Error);
}

// As it went on E2E: one unlucky step of four pairs, then a discriminator that is always right.
TEST(BalanceGate, TheFirstStepDoesNotDecideForTheNextTwenty) {
  BalanceSettings s;
  s.warmup_limit = 0;
  BalanceGate gate(s);
  gate.observe(0.0, 4);
  EXPECT_FALSE(gate.turn().generator);
  for (int i = 0; i < 2; ++i) gate.observe(1.0, 4);
  EXPECT_TRUE(gate.turn().generator) << gate.accuracy();
  // Nor does a single pair.
  BalanceGate lucky({});
  lucky.observe(1.0, 1);
  advance(lucky);
  EXPECT_FALSE(lucky.warmed_up()) << lucky.accuracy();
}

TEST(BalanceGate, GivesUpOnTheWarmUpWhereThereIsNoSignal) {
  BalanceSettings s;
  s.warmup_limit = 5;
  BalanceGate gate(s);
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(gate.warmed_up());
    gate.observe(0.5, 4);
    advance(gate);
  }
  EXPECT_TRUE(gate.warmed_up());
  EXPECT_FALSE(gate.signal());
  EXPECT_EQ(gate.warmup_steps(), 5);
}

TEST(BalanceGate, TrainsTheWeakerSideAndNeverNeither) {
  BalanceSettings s;
  s.warmup_limit = 0;
  s.ema = 0.0;
  BalanceGate gate(s);
  struct Case {
    double accuracy;
    bool d, g;
  };
  for (const Case& c : {Case{0.30, true, false},
                        {0.55, true, false},
                        {0.56, true, true},
                        {0.79, true, true},
                        {0.80, false, true},
                        {1.0, false, true}}) {
    gate.observe(c.accuracy, 4);
    const auto turn = advance(gate);
    EXPECT_EQ(turn.discriminator, c.d) << c.accuracy;
    EXPECT_EQ(turn.generator, c.g) << c.accuracy;
  }
  EXPECT_EQ(gate.steps(), 6);
  EXPECT_NEAR(gate.discriminator_share(), 4.0 / 6.0, 1e-15);
  EXPECT_NEAR(gate.generator_share(), 4.0 / 6.0, 1e-15);
  std::swap(s.gate_d, s.gate_g);  // the wrong way round: between the gates both would be off
  BalanceGate wrong(s);
  wrong.observe(0.7, 4);
  EXPECT_TRUE(wrong.turn().discriminator && wrong.turn().generator);
}

TEST(BalanceGate, GoesOnAsItWasSaved) {
  BalanceGate a({}), b({});
  for (const double accuracy : {0.61, 0.72, 0.83, 0.9, 0.7}) {
    a.observe(accuracy, 4);
    advance(a);
  }
  b.load(a.save());
  a.observe(0.77, 4), b.observe(0.77, 4);
  advance(a), advance(b);
  EXPECT_EQ(a.save(), b.save());
  EXPECT_EQ(a.accuracy(), b.accuracy());
  EXPECT_THROW(b.load(std::vector<int64_t>{1, 2}), Error);
  EXPECT_THROW(b.load(std::vector<int64_t>(9, -1)), Error);
}

TEST(BalanceGate, RefusesSettingsThatMakeNoSense) {
  for (auto change :
       {+[](BalanceSettings& s) { s.gate_d = 1.5; }, +[](BalanceSettings& s) { s.target_low = 0.9; },
        +[](BalanceSettings& s) { s.ema = 1.0; }}) {
    BalanceSettings s;
    change(s);
    EXPECT_THROW(BalanceGate{s}, Error);
  }
}

Fake fake(int64_t i) { return {.input = i, .tokens = {static_cast<int32_t>(i), 7}}; }

TEST(ReplayBuffer, FillsThenReplacesEvenly) {
  ReplayBuffer buffer(50, 3);
  for (int64_t i = 0; i < 50; ++i) buffer.add(fake(i));
  EXPECT_EQ(buffer.size(), 50);
  EXPECT_EQ(buffer.fakes()[49], fake(49));
  for (int64_t i = 50; i < 100; ++i) buffer.add(fake(i));
  EXPECT_EQ(buffer.size(), 50);
  int64_t old = 0;
  for (const Fake& f : buffer.fakes()) old += f.input < 50;
  // 50 replacements leave 50 (1 - 1/50)^50 = 18 of the first 50; standard deviation below 3.
  EXPECT_GT(old, 18 - 12);
  EXPECT_LT(old, 18 + 12);
  EXPECT_THROW(buffer.add({.input = 1, .tokens = {}}), Error);
  EXPECT_THROW(ReplayBuffer(0, 1), Error);
}

TEST(ReplayBuffer, DrawsTheShareAskedForAndNoMoreThanItHas) {
  ReplayBuffer buffer(10, 3);
  EXPECT_EQ(buffer.old_of(8, 0.25), 0);
  EXPECT_THROW(buffer.draw(1), Error);
  EXPECT_TRUE(buffer.draw(0).empty());
  for (int64_t i = 0; i < 10; ++i) buffer.add(fake(i));
  EXPECT_EQ(buffer.old_of(8, 0.25), 2);
  EXPECT_EQ(buffer.old_of(100, 0.25), 10);
  std::vector<int> seen(10, 0);
  for (const Fake& f : buffer.draw(1000)) ++seen[static_cast<size_t>(f.input)];
  for (int n : seen) EXPECT_NEAR(n, 100, 50);  // five standard deviations
}

TEST(ReplayBuffer, GoesOnAsItWasSaved) {
  ReplayBuffer a(5, 3), b(5, 3);
  for (int64_t i = 0; i < 9; ++i) a.add(fake(i));
  a.draw(3);
  b.load(a.save());
  EXPECT_EQ(a.draw(20), b.draw(20));
  a.add(fake(77)), b.add(fake(77));
  EXPECT_EQ(a.save(), b.save());
}

TEST(ReplayBuffer, RefusesDamagedStates) {
  ReplayBuffer a(5, 3);
  for (int64_t i = 0; i < 4; ++i) a.add(fake(i));
  const auto good = a.save();
  for (size_t cut = 0; cut < good.size(); ++cut) {
    ReplayBuffer b(5, 3);
    EXPECT_THROW(b.load(std::span(good).first(cut)), Error) << cut;
  }
  for (const auto& [at, value] : {std::pair<size_t, int64_t>{0, -1},
                                  {1, 6},
                                  {1, -1},
                                  {2, -5},
                                  {3, 0},
                                  {3, 1 << 30},
                                  {4, -1},
                                  {4, int64_t{1} << 40}}) {
    auto bad = good;
    bad[at] = value;
    ReplayBuffer b(5, 3);
    EXPECT_THROW(b.load(bad), Error) << at << " " << value;
    EXPECT_EQ(b.size(), 0);
  }
  auto longer = good;
  longer.push_back(1);
  EXPECT_THROW(a.load(longer), Error);
}

TEST(Schedule, StartsWarmsUpAndEndsWhereItShould) {
  for (const Schedule kind : {Schedule::kCosine, Schedule::kLinear}) {
    EXPECT_EQ(scheduled(kind, 1.0, 0.1, 0, 101), 1.0);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 50, 101), 0.55, 1e-15);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 100, 101), 0.1, 1e-15);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 5000, 101), 0.1, 1e-15);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 0, 111, 10), 0.1, 1e-15);  // a tenth of the way up, not 0
    EXPECT_EQ(scheduled(kind, 1.0, 0.1, 9, 111, 10), 1.0);
    EXPECT_EQ(scheduled(kind, 1.0, 0.1, 10, 111, 10), 1.0);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 60, 111, 10), 0.55, 1e-15);
    EXPECT_NEAR(scheduled(kind, 1.0, 0.1, 0, 1), 0.1, 1e-15);
  }
  EXPECT_NEAR(scheduled(Schedule::kLinear, 1.0, 0.0, 25, 101), 0.75, 1e-15);
  EXPECT_GT(scheduled(Schedule::kCosine, 1.0, 0.0, 25, 101), 0.85);  // flat at first: (1 + cos(pi/4)) / 2
  EXPECT_EQ(scheduled(Schedule::kConstant, 3.0, 1.0, 70, 100), 3.0);
  EXPECT_THROW(scheduled(Schedule::kLinear, 1.0, 0.0, -1, 100), Error);
}

}  // namespace
}  // namespace gantrain
