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
  // The text with each column replaced by lookup(name).
  std::string fill(const std::function<std::string(const std::string& column)>& lookup) const;

 private:
  std::vector<Piece> pieces_;
};

}  // namespace gantrain
