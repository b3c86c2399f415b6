// What became of a file's items: kept, dropped or changed, by reason, each with the first place it happened.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace gantrain {

struct DataReport {
  struct Count {
    int64_t items = 0;
    int64_t first_line = 0;
  };
  std::string file;
  int64_t read = 0, kept = 0;
  std::map<std::string, Count> dropped;  // reason -> items; read = kept + sum of these
  std::map<std::string, Count> changed;  // kept, but not as they stood in the file (cut, boundary moved)
  // Tokens of the kept items; 0 before tokenisation.
  int64_t prompt_tokens = 0, completion_tokens = 0, longest_prompt = 0, longest_completion = 0;

  void drop(const std::string& reason, int64_t line) { add(dropped[reason], line); }
  void change(const std::string& reason, int64_t line) { add(changed[reason], line); }

 private:
  static void add(Count& count, int64_t line) {
    if (count.items++ == 0) count.first_line = line;
  }
};

// A small table for people, one line an entry, ending in a newline.
std::string to_string(const DataReport& report);

}  // namespace gantrain
