// What a user can set (environment variables, which tools/softgpu fills from its command line).
#pragma once

#include <cstdint>
#include <string>

namespace softgpu {

struct Options {
  int arch = 90;      // SOFTGPU_ARCH: compute capability * 10
  bool init = true;   // SOFTGPU_INIT: reads of memory never written, bytes of unfinished copies
  bool races = true;  // SOFTGPU_RACES: shared-memory races
  bool dry = false;   // SOFTGPU_DRY: nothing is executed or copied to the device; what is read back is zero
  uint64_t seed = 0;  // SOFTGPU_SEED: order of blocks, warps, time slices, completion of async copies
  int threads = 0;    // SOFTGPU_THREADS: 0 for one per processor
  int devices = 1;    // SOFTGPU_DEVICES: GPUs that are counted; a process works with one of them
  uint64_t memory = 16ull << 30;  // SOFTGPU_MEMORY_MB
  uint64_t step_limit = 0;        // SOFTGPU_STEP_LIMIT: warp instructions a block may take, 0 for no limit
  std::string counters;           // SOFTGPU_COUNTERS: file for counters as JSON, written at exit
  std::string trace;              // SOFTGPU_TRACE: file for a line per launch ("-" is stderr)
  std::string
      ptx_dir;  // SOFTGPU_PTX: folder whose <hash>.ptx or <kernel module>.ptx replace the program's own
  std::string dump_dir;  // SOFTGPU_DUMP: folder into which the program's PTX is written, under those names
};

const Options& options();

}  // namespace softgpu
