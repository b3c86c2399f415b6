// Data files under all their settings.
#pragma once

#include "tests/fuzz/fuzz.h"
#include "train/config.h"
#include "train/data/reader.h"

namespace gantrain::fuzz {

// Bits of `choice`: 0 drop bad items, 1 templates, 2 a label map, 3 a chat template; tables: 4-5 the format,
// 6 names of columns given, 7 another delimiter or Latin-1.
inline void read_data(unsigned choice, std::string_view bytes, bool json) {
  DataConfig config;
  config.bad_items = choice & 1 ? BadItems::kDrop : BadItems::kError;
  if (choice & 2) {
    config.prompt_template = "{prompt}: {1}";
    config.completion_template = " {completion}";
  }
  if (choice & 4) {
    config.label_map = {{"0", "no"}, {"1", "yes"}};
    config.label_column = choice & 64 ? "label" : "1";
  }
  if (choice & 8) config.chat_template = ChatTemplateChoice::kChatML;
  DataFormat format = DataFormat::kJsonl;
  if (!json) {
    constexpr DataFormat kFormats[] = {DataFormat::kTsv, DataFormat::kCsv, DataFormat::kCsv,
                                       DataFormat::kLines};
    format = kFormats[choice >> 4 & 3];
    if (choice & 64) config.columns = {"prompt", "completion"};
    if (choice & 128) config.delimiter.push_back('|');
  }
  if (choice & 128) config.encoding = TextEncoding::kLatin1;
  DataReport report;
  const std::vector<Example> examples = parse_examples(std::string(bytes), "data", format, config, report);
  int64_t dropped = 0;
  for (const auto& [reason, count] : report.dropped) dropped += count.items;
  // The report accounts for every item; an answer is never empty.
  GT_CHECK(report.read == report.kept + dropped && report.kept == static_cast<int64_t>(examples.size()),
           "read {}, kept {}, dropped {}, {} examples", report.read, report.kept, dropped, examples.size());
  for (const Example& e : examples) {
    GT_CHECK(!e.completion.empty(), "an empty completion in line {}", e.line);
    content_key(e);
  }
}

}  // namespace gantrain::fuzz
