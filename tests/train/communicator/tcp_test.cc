// Ranks in threads of one process, connected over 127.0.0.1.
#include "train/communicator/tcp.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

#include "core/check.h"
#include "tests/support/fill.h"

namespace gantrain {
namespace {

// What each rank's work ended with: an error's text, or nothing.
std::vector<std::string> on_ranks(int size, const std::function<void(HostCommunicator&)>& work,
                                  const std::function<void(Ranks&)>& change = {}, double timeout = 60) {
  const Listener listener = listen_on_free_port();
  std::vector<std::string> ends(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      Ranks ranks{.rank = r, .size = size, .port = listener.port, .timeout = timeout};
      if (r == 0) ranks.listener = listener.socket;
      try {
        if (change) change(ranks);
        work(*meet_over_tcp(ranks));
      } catch (const Error& e) {
        ends[static_cast<size_t>(r)] = e.what();
      }
    });
  for (std::thread& t : threads) t.join();
  return ends;
}
using Ends = std::vector<std::string>;

TEST(TcpCommunicator, GathersInTheOrderOfRanksWhateverTheLengths) {
  for (const int size : {2, 3, 5}) {
    const Ends ends = on_ranks(size, [&](HostCommunicator& c) {
      for (int round = 0; round < 3; ++round) {
        const auto own = [&](int r) {
          return std::string(static_cast<size_t>(r * 70'000 * round), static_cast<char>('a' + r));
        };
        const auto all = c.all_gather(own(c.rank()));
        if (all.size() != static_cast<size_t>(size)) fail("{} parts", all.size());
        for (int r = 0; r < size; ++r)
          if (all[static_cast<size_t>(r)] != own(r)) fail("round {}: part {} differs", round, r);
      }
      c.leave();
    });
    EXPECT_EQ(ends, Ends(static_cast<size_t>(size)));
  }
}

TEST(TcpCommunicator, SumsAreThoseOfTheRanksInOrderBitForBit) {
  // Sizes around a piece of kTcpBufferBytes.
  for (const int64_t n : {int64_t{1}, int64_t{1000}, kTcpBufferBytes / 4, kTcpBufferBytes / 2 + 17})
    for (const int size : {2, 3}) {
      std::vector<float> want = test::random_normal(n, 1);
      for (int r = 1; r < size; ++r) {
        const std::vector<float> more = test::random_normal(n, static_cast<uint64_t>(r) + 1);
        for (size_t i = 0; i < want.size(); ++i) want[i] += more[i];
      }
      const Ends ends = on_ranks(size, [&](HostCommunicator& c) {
        std::vector<float> own = test::random_normal(n, static_cast<uint64_t>(c.rank()) + 1);
        c.all_reduce(Tensor(own.data(), DType::kF32, {n}));
        if (own != want) fail("the sum differs");
        const std::vector<double> sum =
            sum_values(c, std::vector<double>{1.5, static_cast<double>(c.rank())});
        if (sum != std::vector<double>{1.5 * size, size * (size - 1) / 2.0})
          fail("the sum of numbers differs");
      });
      EXPECT_EQ(ends, Ends(static_cast<size_t>(size)));
    }
}

TEST(TcpCommunicator, BroadcastsFromAnyRank) {
  const Ends ends = on_ranks(3, [&](HostCommunicator& c) {
    for (int from = 0; from < 3; ++from) {
      std::vector<float> own(1000, static_cast<float>(c.rank()));
      c.broadcast(Tensor(own.data(), DType::kF32, {1000}), from);
      if (own != std::vector<float>(1000, static_cast<float>(from))) fail("from {}: differs", from);
    }
  });
  EXPECT_EQ(ends, Ends(3));
}

TEST(TcpCommunicator, ARankThatEndsIsNamedByAllOthers) {
  const auto begin = std::chrono::steady_clock::now();
  const Ends ends = on_ranks(4, [](HostCommunicator& c) {
    c.barrier();
    if (c.rank() == 2) return;
    std::vector<float> own(10, 1.0f);
    c.all_reduce(Tensor(own.data(), DType::kF32, {10}));
    c.barrier();
  });
  EXPECT_EQ(ends[0],
            "rank 0 of 4: rank 2 is gone (its connection was closed); its own output says why. Go on with "
            "--resume");
  for (const size_t r : {1u, 3u}) EXPECT_NE(ends[r].find("rank 2 is gone"), std::string::npos) << ends[r];
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST(TcpCommunicator, ARankThatIsSilentIsNotWaitedForForEver) {
  std::atomic<bool> over = false;
  const Ends ends = on_ranks(
      2,
      [&](HostCommunicator& c) {
        if (c.rank() == 1) {
          while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(10));
          return;
        }
        try {
          c.barrier();
        } catch (...) {
          over = true;
          throw;
        }
        over = true;
      },
      {}, 3);
  EXPECT_NE(ends[0].find("no answer from rank 1 within 3 s"), std::string::npos) << ends[0];
}

TEST(TcpCommunicator, RanksAtDifferentPlacesNotice) {
  const Ends ends = on_ranks(2, [](HostCommunicator& c) {
    std::vector<float> own(10, 1.0f);
    if (c.rank() == 1) c.all_reduce(Tensor(own.data(), DType::kF32, {10}));
    c.barrier();
  });
  EXPECT_NE(ends[0].find("it is at call 1, all_reduce, and this rank at call 1, all_gather"),
            std::string::npos)
      << ends[0];
  EXPECT_FALSE(ends[1].empty());
}

TEST(TcpCommunicator, WhatDoesNotBelongTogetherIsRefused) {
  const auto nothing = [](HostCommunicator&) {};
  const Ends twice = on_ranks(3, nothing, [](Ranks& r) {
    if (r.rank == 2) r.rank = 1;
  });
  EXPECT_NE(twice[0].find("there is a rank 1 already"), std::string::npos) << twice[0];
  const Ends sizes = on_ranks(2, nothing, [](Ranks& r) {
    if (r.rank == 1) r.size = 3;
  });
  EXPECT_NE(sizes[0].find("WORLD_SIZE is 3 there and 2 at rank 0"), std::string::npos) << sizes[0];
  EXPECT_NE(sizes[1].find("WORLD_SIZE is 3 there"), std::string::npos) << sizes[1];
  const Ends missing = on_ranks(
      3, [](HostCommunicator&) {},
      [](Ranks& r) {
        if (r.rank == 2) throw Error("not started");
      },
      3);
  EXPECT_NE(missing[0].find("for the ranks 2 of 3"), std::string::npos) << missing[0];
}

TEST(TcpCommunicator, AWatchNoticesWithoutACall) {
  std::mutex mutex;
  std::string said;
  std::atomic<bool> lost = false;
  const Ends ends = on_ranks(2, [&](HostCommunicator& c) {
    c.barrier();
    if (c.rank() == 1) return;
    c.watch([&](const std::string& what) {
      const std::lock_guard lock(mutex);
      said = what;
      lost = true;
    });
    for (int i = 0; i < 3000 && !lost; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  });
  EXPECT_EQ(ends, Ends(2));
  const std::lock_guard lock(mutex);
  EXPECT_NE(said.find("rank 1 is gone"), std::string::npos) << said;
}

class Environment : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const char* name : kNames) ::unsetenv(name);
  }
  static constexpr const char* kNames[] = {"RANK",
                                           "WORLD_SIZE",
                                           "LOCAL_RANK",
                                           "LOCAL_WORLD_SIZE",
                                           "MASTER_ADDR",
                                           "MASTER_PORT",
                                           "GANTRAIN_PORT",
                                           "GANTRAIN_TIMEOUT",
                                           "TORCHELASTIC_USE_AGENT_STORE"};
  static void set(std::initializer_list<std::pair<const char*, const char*>> values) {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : values) ::setenv(name, value, 1);
  }
};

TEST_F(Environment, IsReadAsLaunchersSetIt) {
  set({});
  EXPECT_EQ(ranks_from_environment().size, 1);
  set({{"RANK", "5"},
       {"WORLD_SIZE", "8"},
       {"LOCAL_RANK", "1"},
       {"LOCAL_WORLD_SIZE", "4"},
       {"MASTER_ADDR", "node0"},
       {"MASTER_PORT", "1234"}});
  Ranks r = ranks_from_environment();
  EXPECT_EQ(r.rank, 5);
  EXPECT_EQ(r.size, 8);
  EXPECT_EQ(r.local_rank, 1);
  EXPECT_EQ(r.local_size, 4);
  EXPECT_EQ(r.address, "node0");
  EXPECT_EQ(r.port, 1234);
  ::setenv("TORCHELASTIC_USE_AGENT_STORE", "True", 1);
  EXPECT_EQ(ranks_from_environment().port, 1235);
  ::setenv("GANTRAIN_PORT", "99", 1);
  EXPECT_EQ(ranks_from_environment().port, 99);
  set({{"RANK", "1"}, {"WORLD_SIZE", "2"}});
  r = ranks_from_environment();
  EXPECT_EQ(r.local_rank, 1);
  EXPECT_EQ(r.local_size, 2);
}

TEST_F(Environment, MistakesAreNamed) {
  const auto said = [](std::initializer_list<std::pair<const char*, const char*>> values) -> std::string {
    set(values);
    try {
      ranks_from_environment();
    } catch (const Error& e) {
      return e.kind() == ErrorKind::kUsage ? e.what() : "no usage error";
    }
    return "nothing";
  };
  EXPECT_EQ(said({{"WORLD_SIZE", "2"}}),
            "WORLD_SIZE is 2 and RANK is not set; each process needs a RANK of its own");
  EXPECT_EQ(said({{"WORLD_SIZE", "2"}, {"RANK", "2"}}), "RANK: '2', expected a whole number from 0 to 1");
  EXPECT_EQ(said({{"WORLD_SIZE", "two"}}), "WORLD_SIZE: 'two', expected a whole number from 1 to 65536");
  EXPECT_EQ(said({{"WORLD_SIZE", "2"}, {"RANK", "0"}, {"MASTER_PORT", "0"}}),
            "MASTER_PORT: '0', expected a whole number from 1 to 65535");
}

}  // namespace
}  // namespace gantrain
