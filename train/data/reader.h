// Reads data files into examples: JSON Lines, JSON arrays, TSV, CSV, lines with a pattern. docs/data.md is
// the user's page.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/data/example.h"
#include "train/data/report.h"

namespace gantrain {

// Every good item of the file, in its order. Items with an empty completion are dropped and counted; a broken
// item is an error with file and line, or dropped and counted with data.bad_items = "drop". Throws Error
// when the file is missing, empty, not UTF-8 (with the byte's offset), or has no good item.
std::vector<Example> read_examples(const std::filesystem::path& file, const DataConfig& config,
                                   DataReport& report);

// The same over text already in memory; `name` stands for the file in messages.
std::vector<Example> parse_examples(std::string text, const std::string& name, DataFormat format,
                                    const DataConfig& config, DataReport& report);

// The format that data.format = "auto" means for a file name. Throws Error for an ending it does not know.
DataFormat format_of(const std::filesystem::path& file);

}  // namespace gantrain
