// `--ranks N`: N processes on this machine, without another program to start them.
#pragma once

#include <functional>

#include "train/communicator/ranks.h"

namespace gantrain {

// Forks `count` processes, each of which runs `work` with its own Ranks and returns what that returns. In the
// parent it waits for them, passes SIGINT and SIGTERM on to all, and returns 0 or the exit code of the first
// that ended otherwise (128 + N by signal N). An Error of the ranks is thrown in the parent, once: of several
// one that is no other rank's loss. To be called before there are threads.
int run_ranks(int count, const std::function<int(const Ranks&)>& work);

}  // namespace gantrain
