// Text with {columns}: "Review: {text}\nSentiment:". {{ and }} are braces.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace gantrain {

class TextTemplate {
 public:
  // Throws Error (usage) naming `name` (the key it came from) where braces do not match or are empty.
  TextTemplate(std::string_view text, const std::string& name);

  struct Piece {
    bool column = false;
    std::string text;  // fixed text, or the column's name
  };
  const std::vector<Piece>& pieces() const { return pieces_; }
  // Appends the text with each column replaced by *lookup(name); false, and the text as far as it goes, where
  // that is null.
  bool fill(const std::function<const std::string*(const std::string& column)>& lookup,
            std::string& into) const;

 private:
  std::vector<Piece> pieces_;
};

// The prompt of a text that comes alone, as on a command line: it fills a template of one column, and is the
// whole prompt where the template is empty or has several.
std::string prompt_of_text(const std::string& text, const std::string& prompt_template);

}  // namespace gantrain
