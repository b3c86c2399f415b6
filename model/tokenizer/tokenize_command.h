// The verb `tokenize`: a door through which any program can question a tokenizer.
#pragma once

#include <iosfwd>
#include <string>

namespace gantrain {

struct TokenizeOptions {
  std::string model;     // as for open_tokenizer
  bool decode = false;   // ids to text instead of text to ids
  bool special = false;  // added tokens in the text are recognised; without it they are plain text
};

// One JSON string a line in, one JSON array of ids a line out; with `decode` the other way round (bytes that
// form no character come out as U+FFFD). No BOS is added. Returns the exit code 0, or throws Error with the
// line's number.
int tokenize_command(const TokenizeOptions& options, std::istream& in, std::ostream& out);

}  // namespace gantrain
