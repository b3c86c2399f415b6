// Which rank of how many this process is, and where rank 0 is met: by the variables that torchrun and other
// launchers set.
#pragma once

#include <string>

namespace gantrain {

struct Ranks {
  int rank = 0, size = 1;              // RANK, WORLD_SIZE
  int local_rank = 0, local_size = 1;  // on this machine: LOCAL_RANK, LOCAL_WORLD_SIZE
  std::string address = "127.0.0.1";   // of rank 0: MASTER_ADDR
  int port = 29500;                    // GANTRAIN_PORT, else MASTER_PORT; see the .cc for torchrun's own port
  double timeout = 600;                // seconds a rank waits for another one: GANTRAIN_TIMEOUT
  int listener = -1;                   // a listening socket of rank 0's that is open already; -1: none
};

// Throws Error of kind usage naming the variable that is wrong or missing.
Ranks ranks_from_environment();

}  // namespace gantrain
