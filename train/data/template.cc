#include "train/data/template.h"

#include "core/check.h"

namespace gantrain {

TextTemplate::TextTemplate(std::string_view text, const std::string& name) {
  std::string fixed;
  const auto flush = [&] {
    if (!fixed.empty()) pieces_.push_back({false, fixed});
    fixed.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      fixed += c;
      ++i;
    } else if (c == '}') {
      fail_usage("{}: a lone }} at character {} of \"{}\"; write }}}} for a brace", name, i + 1, text);
    } else if (c == '{') {
      const size_t end = text.find_first_of("{}", i + 1);
      if (end == std::string_view::npos || text[end] == '{' || end == i + 1)
        fail_usage("{}: expected {{column}} at character {} of \"{}\"; write {{{{ for a brace", name, i + 1,
                   text);
      flush();
      pieces_.push_back({true, std::string(text.substr(i + 1, end - i - 1))});
      i = end;
    } else {
      fixed += c;
    }
  }
  flush();
}

std::string TextTemplate::fill(const std::function<std::string(const std::string& column)>& lookup) const {
  std::string out;
  for (const Piece& piece : pieces_) out += piece.column ? lookup(piece.text) : piece.text;
  return out;
}

}  // namespace gantrain
