#include "model/tokenizer/tokenize_command.h"

#include <istream>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>

#include "core/check.h"
#include "model/formats/json_text.h"
#include "model/tokenizer/tokenizer.h"

namespace gantrain {
namespace {

using nlohmann::json;

std::string encode_line(const Tokenizer& tokenizer, const json& value, bool special) {
  if (!value.is_string()) fail("expected a JSON string, got {}", value.type_name());
  const std::vector<int32_t> ids = tokenizer.encode(value.get_ref<const std::string&>(), special);
  std::string line = "[";
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) line += ", ";
    line += std::to_string(ids[i]);
  }
  return line + "]";
}

std::string decode_line(const Tokenizer& tokenizer, const json& value) {
  if (!value.is_array()) fail("expected a JSON array of token ids, got {}", value.type_name());
  std::vector<int32_t> ids;
  for (const json& entry : value) {
    if (!entry.is_number_integer()) fail("expected a token id, got {}", entry.dump());
    const bool huge =
        entry.is_number_unsigned() && entry.get<uint64_t>() > std::numeric_limits<int32_t>::max();
    const int64_t id = huge ? -1 : entry.get<int64_t>();
    if (id < 0 || id >= tokenizer.vocab_size())
      fail("token id {} is outside the vocabulary [0, {})", entry.dump(), tokenizer.vocab_size());
    ids.push_back(static_cast<int32_t>(id));
  }
  return json(tokenizer.decode_text(ids)).dump();
}

}  // namespace

int tokenize_command(const TokenizeOptions& options, std::istream& in, std::ostream& out) {
  const auto tokenizer = open_tokenizer(options.model);
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    try {
      const json value = parse_json(line, "the text");
      out << (options.decode ? decode_line(*tokenizer, value)
                             : encode_line(*tokenizer, value, options.special))
          << '\n';
    } catch (const Error& error) {
      fail("line {}: {}", number, error.what());
    }
  }
  out.flush();
  if (!out) fail("cannot write the output");
  return 0;
}

}  // namespace gantrain
