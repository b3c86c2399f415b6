#include "train/data/template.h"

#include <set>

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

bool TextTemplate::fill(const std::function<const std::string*(const std::string& column)>& lookup,
                        std::string& into) const {
  for (const Piece& piece : pieces_) {
    const std::string* text = piece.column ? lookup(piece.text) : &piece.text;
    if (!text) return false;
    into += *text;
  }
  return true;
}

std::string prompt_of_text(const std::string& text, const std::string& prompt_template) {
  const TextTemplate t(prompt_template, "data.prompt_template");
  std::set<std::string> columns;
  for (const TextTemplate::Piece& piece : t.pieces())
    if (piece.column) columns.insert(piece.text);
  if (columns.size() != 1) return text;
  std::string out;
  t.fill([&](const std::string&) { return &text; }, out);
  return out;
}

}  // namespace gantrain
