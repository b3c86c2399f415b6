#include "train/data/dataset.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "core/check.h"
#include "core/digest.h"
#include "train/data/loader.h"
#include "train/data/reader.h"

namespace gantrain {
namespace {

constexpr uint64_t kSubsetPurpose = 0x73756273;  // one purpose of the seed: see derive_key

void keep_some(std::vector<Example>& examples, int64_t wanted, uint64_t seed, uint64_t which,
               DataReport& report) {
  const int64_t have = static_cast<int64_t>(examples.size());
  if (wanted == 0 || wanted >= have) return;
  std::vector<int64_t> order = permutation(have, derive_key(seed, kSubsetPurpose, which));
  std::vector<bool> chosen(static_cast<size_t>(have), false);
  for (int64_t i = 0; i < wanted; ++i) chosen[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  std::vector<Example> kept;
  for (size_t i = 0; i < examples.size(); ++i) {
    if (chosen[i]) {
      kept.push_back(std::move(examples[i]));
    } else {
      report.drop("beyond data.max_items", examples[i].line);
      --report.kept;
    }
  }
  examples = std::move(kept);
}

}  // namespace

Split split_of(const std::string& key, double valid_fraction, double test_fraction) {
  Digest digest;
  digest.add_bytes(key);
  const double u = static_cast<double>(derive_key(digest.value, 0) >> 11) * 0x1p-53;
  if (u < test_fraction) return Split::kTest;
  if (u < test_fraction + valid_fraction) return Split::kValid;
  return Split::kTrain;
}

Dataset load_dataset(const DataConfig& config, uint64_t seed) {
  Dataset data;
  if (config.train.empty() && config.valid.empty() && config.test.empty())
    fail_usage("data.train: no data file given");
  struct Source {
    const std::string* file;
    std::vector<Example>* into;
  };
  // Test first: what stands there is left out elsewhere.
  const Source sources[] = {
      {&config.test, &data.test}, {&config.valid, &data.valid}, {&config.train, &data.train}};
  std::unordered_map<std::string, std::string> places;  // content key -> "file:line" of an earlier file
  for (const Source& source : sources) {
    if (source.file->empty()) continue;
    DataReport& report = data.reports.emplace_back();
    std::vector<Example> examples = read_examples(*source.file, config, report);
    std::unordered_map<std::string, std::string> own;
    for (Example& example : examples) {
      const std::string key = content_key(example);
      if (const auto found = places.find(key); found != places.end()) {
        if (config.duplicates == Duplicates::kError)
          fail(
              "{}:{}: the same prompt stands in another split at {}; remove one, or set data.duplicates=drop",
              *source.file, example.line, found->second);
        report.drop("duplicate of another split", example.line);
        --report.kept;
        continue;
      }
      own.try_emplace(key, fmt::format("{}:{}", *source.file, example.line));
      std::vector<Example>* into = source.into;
      if (into == &data.train) {
        const Split split = split_of(key, config.valid_fraction, config.test_fraction);
        if (split == Split::kTest) into = &data.test;
        if (split == Split::kValid) into = &data.valid;
      }
      into->push_back(std::move(example));
    }
    places.merge(own);
  }
  DataReport& last = data.reports.back();
  const auto refuse_empty = [](bool asked, const std::vector<Example>& split, const char* name,
                               const char* keys) {
    if (asked && split.empty()) fail("the {} split is empty; look at {}", name, keys);
  };
  refuse_empty(!config.train.empty(), data.train, "training",
               "data.train, data.valid_fraction, data.test_fraction");
  refuse_empty(!config.valid.empty() || config.valid_fraction > 0.0, data.valid, "validation",
               "data.valid, data.valid_fraction");
  refuse_empty(!config.test.empty() || config.test_fraction > 0.0, data.test, "test",
               "data.test, data.test_fraction");
  keep_some(data.train, config.max_train_items, seed, 0, last);
  // The validation items are the last file's too unless they have their own.
  const bool own_file = !config.valid.empty() && !config.train.empty();
  keep_some(data.valid, config.max_valid_items, seed, 1,
            own_file ? data.reports[data.reports.size() - 2] : last);
  return data;
}

std::vector<Example> merge_references(const std::vector<Example>& examples) {
  std::vector<Example> merged;
  std::unordered_map<std::string, size_t> index;
  for (const Example& example : examples) {
    const auto [found, fresh] = index.try_emplace(content_key(example), merged.size());
    if (fresh || (example.prompt.empty() && example.messages.empty())) {
      if (fresh) merged.push_back(example);
      continue;
    }
    Example& into = merged[found->second];
    std::vector<std::string> more = {example.completion};
    more.insert(more.end(), example.references.begin(), example.references.end());
    for (const std::string& answer : more)
      if (answer != into.completion &&
          std::find(into.references.begin(), into.references.end(), answer) == into.references.end())
        into.references.push_back(answer);
  }
  return merged;
}

}  // namespace gantrain
