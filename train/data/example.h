// One item of a data file after templates, before tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gantrain {

struct ChatTurn {
  std::string role;  // system, user or assistant
  std::string content;
  bool operator==(const ChatTurn&) const = default;
};

struct Example {
  std::string prompt;                   // "" for plain text
  std::string completion;               // never empty
  std::vector<std::string> references;  // further right answers, the completion not among them
  std::vector<ChatTurn> messages;       // a chat's turns before the completion; `prompt` is then ""
  int64_t line = 0;                     // where the item begins in its file, from 1 (JSON array: its number)
};

// What an example asks: two examples with the same key belong to the same split. The prompt or the turns; for
// plain text the completion.
std::string content_key(const Example& example);

}  // namespace gantrain
