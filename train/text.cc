#include "train/text.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/check.h"

namespace gantrain {

std::string read_text_file(const std::filesystem::path& file, int64_t limit) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (!std::filesystem::exists(status)) fail("{}: no such file", file.string());
  if (std::filesystem::is_directory(status)) fail("{}: expected a file, got a folder", file.string());
  // A pipe has no size: read until the end or the limit, whatever the file is.
  std::ifstream in(file, std::ios::binary);
  if (!in) fail("{}: cannot be opened: {}", file.string(), std::strerror(errno));
  std::string text;
  if (std::filesystem::is_regular_file(status)) {
    const auto size = std::filesystem::file_size(file, error);
    if (!error && size > static_cast<uintmax_t>(limit))
      fail("{}: {} bytes, expected at most {}", file.string(), size, limit);
    if (!error) text.reserve(size);
  }
  char block[1 << 16];
  while (in.read(block, sizeof block) || in.gcount() > 0) {
    text.append(block, static_cast<size_t>(in.gcount()));
    if (static_cast<int64_t>(text.size()) > limit) fail("{}: more than {} bytes", file.string(), limit);
  }
  if (in.bad()) fail("{}: cannot be read: {}", file.string(), std::strerror(errno));
  return text;
}

size_t find_bad_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const unsigned char c = p[i];
    size_t more;
    unsigned char low = 0x80, high = 0xbf;  // bounds of the second byte
    if (c < 0x80) {
      ++i;
      continue;
    } else if (c >= 0xc2 && c <= 0xdf) {
      more = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
      more = 2;
      if (c == 0xe0) low = 0xa0;
      if (c == 0xed) high = 0x9f;

    } else if (c >= 0xf0 && c <= 0xf4) {
      more = 3;
      if (c == 0xf0) low = 0x90;
      if (c == 0xf4) high = 0x8f;
    } else {
      return i;
    }
    for (size_t k = 1; k <= more; ++k) {
      if (i + k >= n || p[i + k] < low || p[i + k] > high) return i;
      low = 0x80;
      high = 0xbf;
    }
    i += more + 1;
  }
  return std::string::npos;
}

std::string latin1_to_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xc0 | (byte >> 6));
      out += static_cast<char>(0x80 | (byte & 0x3f));
    }
  }
  return out;
}

namespace {

std::string shell_word(const std::string& word) {
  if (!word.empty() && word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                              "_-+=./:,@%") == std::string::npos)
    return word;
  std::string out(1, '\'');
  for (const char c : word) {
    if (c == '\'')
      out.append("'\\''");
    else
      out.push_back(c);
  }
  out.push_back('\'');
  return out;
}
}  // namespace

std::string join(const std::vector<std::string>& words, std::string_view between) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i)
    out.append(i == 0 ? std::string_view() : between).append(words[i]);
  return out;
}

std::string shell_line(const std::vector<std::string>& words) {
  std::string out = "gantrain";
  for (const std::string& word : words) out.append(" ").append(shell_word(word));
  return out;
}

}  // namespace gantrain
