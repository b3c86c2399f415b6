#include "train/suggest.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace gantrain {

int edit_distance(std::string_view a, std::string_view b) {
  // Hostile words are cut: the answer only has to be right for words that a person typed.
  a = a.substr(0, 128);
  b = b.substr(0, 128);
  const size_t columns = b.size() + 1;
  std::vector<int> table((a.size() + 1) * columns);
  auto at = [&](size_t i, size_t j) -> int& { return table[i * columns + j]; };
  for (size_t i = 0; i <= a.size(); ++i) at(i, 0) = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) at(0, j) = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const int replace = at(i - 1, j - 1) + (a[i - 1] == b[j - 1] ? 0 : 1);
      at(i, j) = std::min({replace, at(i - 1, j) + 1, at(i, j - 1) + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
    }
  }
  return at(a.size(), b.size());
}

namespace {

// Letters of the longer word that the other one lacks: never more than their edit distance.
int letters_apart(std::string_view a, std::string_view b) {
  std::array<int, 256> left{};
  for (const char c : a) ++left[static_cast<unsigned char>(c)];
  int common = 0;
  for (const char c : b) common += left[static_cast<unsigned char>(c)]-- > 0;
  return static_cast<int>(std::max(a.size(), b.size())) - common;
}

}  // namespace

std::string nearest(std::string_view word, std::span<const std::string> known) {
  const std::string* best = nullptr;
  int best_distance = 1 << 30;
  auto consider = [&](const std::string& candidate, std::string_view compared, int handicap) {
    const int longer = static_cast<int>(std::max(word.size(), compared.size()));
    const int limit = std::min(std::max(longer / 3, 1), best_distance - handicap - 1);
    // Most candidates are ruled out by their length or letters, at a small part of the distance's cost.
    if (longer - static_cast<int>(std::min(word.size(), compared.size())) > limit) return;
    if (letters_apart(word, compared) > limit) return;
    const int distance = edit_distance(word, compared);
    if (distance <= limit) {
      best = &candidate;
      best_distance = distance + handicap;
    }
  };
  for (const std::string& candidate : known) {
    consider(candidate, candidate, 0);
    const size_t dot = candidate.rfind('.');
    if (dot != std::string::npos && word.find('.') == std::string_view::npos)
      consider(candidate, std::string_view(candidate).substr(dot + 1), 1);
  }
  // A right key in a wrong section ([data] batch = 8): the distance of the whole is large, its last part
  // equal.
  if (best == nullptr) {
    const std::string_view last = word.substr(word.rfind('.') + 1);  // npos + 1 == 0: the whole word
    for (const std::string& candidate : known)
      if (!last.empty() && std::string_view(candidate).substr(candidate.rfind('.') + 1) == last)
        return candidate;
  }
  return best == nullptr ? std::string() : *best;
}

std::string did_you_mean(std::string_view word, std::span<const std::string> known) {
  const std::string found = nearest(word, known);
  return found.empty() ? std::string() : fmt::format("; did you mean '{}'?", found);
}

}  // namespace gantrain
