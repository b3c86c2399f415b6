// What a run will hold in memory, by cause, before any of it is taken (docs/design.md, "Forward, backward,
// memory").
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/llama.h"
#include "model/tokenizer/tokenizer.h"
#include "train/config.h"
#include "train/verbs/dataset.h"

namespace gantrain {

struct MemoryItem {
  std::string cause;
  int64_t bytes = 0;
};

// Of a process: what it holds now, split into its own pages and those of mapped files, and the most so far.
// Linux.
struct ProcessMemory {
  int64_t own = 0, files = 0, peak = 0;
};
ProcessMemory process_memory();

struct MemoryPlan {
  std::vector<MemoryItem> items;  // weights first; they add up to total()
  int64_t buffers = 0;            // of total(): what the device hands out, with what lies between on a GPU
  int64_t total() const;
  std::string text() const;  // a line an item, for people
};

// The plan of a run whose model and data are loaded: training and evaluation run on a CountingDevice over the
// largest of the batches that the run will take, whose order is known; over the longest items together where
// there are more than 100,000 steps. `now` is what the process holds at this point; of several `ranks` it is
// the plan of one, with the largest part of a batch.
MemoryPlan plan_memory(Device& device, const Llama& llama, const Tokenizer& tokenizer,
                       const TrainConfig& config, const TokenizedDataset& data, const ProcessMemory& now,
                       int ranks = 1);

// What this machine can still give: MemAvailable, and what the control group leaves, whichever is less. What
// the process holds already counts as given.
struct MemoryLimit {
  int64_t bytes = 0;
  std::string source;  // for people: "memory_limit", ...
};
MemoryLimit memory_limit(int64_t configured, const ProcessMemory& now);

// Throws Error of kind kOutOfMemory with the three cheapest remedies, each with the plan it leads to, if
// `plan` is above the limit. `plan_of` makes the plan of a changed configuration.
void check_memory(const MemoryPlan& plan, const MemoryLimit& limit, const TrainConfig& config,
                  const std::function<MemoryPlan(const TrainConfig&)>& plan_of);

}  // namespace gantrain
