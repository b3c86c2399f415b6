// Files to splits: reading, splitting by content hash, duplicates across splits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/data/example.h"
#include "train/data/report.h"

namespace gantrain {

enum class Split : uint8_t { kTrain, kValid, kTest };

// The split of an item: a 64-bit hash of its content key (FNV-1a, then a finaliser) as a fraction of 1, the
// first test_fraction to test, the next valid_fraction to validation. It depends on the item alone, not on
// the file's order, the other items, or a seed.
Split split_of(const std::string& key, double valid_fraction, double test_fraction);

struct Dataset {
  std::vector<Example> train, valid, test;
  std::vector<DataReport> reports;  // one a file
};

// Reads data.train, data.valid and data.test (whichever are given) and splits them. Every item of a content
// key goes to one split; the same key in two files is an error naming both places, or, with data.duplicates =
// "drop", left out of training (then of validation) and counted. data.max_*_items are drawn by the seed and
// keep the file's order. Throws Error when a split that was asked for comes out empty.
Dataset load_dataset(const DataConfig& config, uint64_t seed);

// Items with the same content key become one, the first, with the others' completions as references: how
// several right answers to one question are evaluated.
std::vector<Example> merge_references(const std::vector<Example>& examples);

}  // namespace gantrain
