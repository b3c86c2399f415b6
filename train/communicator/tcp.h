// Ranks that meet over TCP: every one is connected with rank 0, which adds up and hands out. For the CPU
// device it carries the gradients themselves; beside NCCL it carries what the hosts agree on.
//
// A sum takes 2 (size - 1) times its bytes through rank 0's network card, 1 MiB at a time, and is added in
// the order of ranks.
#pragma once

#include <memory>

#include "core/communicator.h"
#include "train/communicator/ranks.h"

namespace gantrain {

// How much memory a rank of it keeps for sums.
inline constexpr int64_t kTcpBufferBytes = int64_t{1} << 20;

// Waits for all ranks, `ranks.timeout` seconds at most. Takes over ranks.listener. Throws Error that says who
// is missing, or what two ranks disagree on.
std::unique_ptr<HostCommunicator> meet_over_tcp(const Ranks& ranks);

// A socket that listens on a free port of 127.0.0.1, and that port.
struct Listener {
  int socket = -1, port = 0;
};
Listener listen_on_free_port();

}  // namespace gantrain
