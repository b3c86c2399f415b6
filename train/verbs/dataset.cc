#include "train/verbs/dataset.h"

namespace gantrain {

TokenizedDataset open_dataset(const DataConfig& config, uint64_t seed, const Tokenizer& tokenizer,
                              int64_t max_positions) {
  Dataset raw = load_dataset(config, seed);
  TokenizedDataset out;
  for (const DataReport& r : raw.reports) out.report += to_string(r);
  auto tokens = [&](const std::vector<Example>& examples, const char* split, bool say) {
    DataReport report;
    report.file = fmt::format("{} as tokens", split);
    report.read = static_cast<int64_t>(examples.size());
    std::vector<TokenizedExample> items =
        tokenize_examples(examples, tokenizer, config, max_positions, report);
    if (say && !examples.empty()) out.report += to_string(report);
    if (items.empty() && !examples.empty())
      fail(
          "every item of the {} split was dropped; look at the data.max_... settings and the model's "
          "positions:\n{}",
          split, to_string(report));
    return items;
  };
  out.train = tokens(raw.train, "train", true);
  out.valid = tokens(raw.valid, "valid", true);
  out.test = tokens(raw.test, "test", true);
  out.valid_merged = tokens(merge_references(raw.valid), "valid", false);
  out.test_merged = tokens(merge_references(raw.test), "test", false);
  return out;
}

std::vector<const TokenizedExample*> pointers(const std::vector<TokenizedExample>& items, int64_t most) {
  std::vector<const TokenizedExample*> out;
  for (const TokenizedExample& e : items) {
    if (most > 0 && static_cast<int64_t>(out.size()) >= most) break;
    out.push_back(&e);
  }
  return out;
}

}  // namespace gantrain
