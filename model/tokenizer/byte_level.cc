#include "model/tokenizer/byte_level.h"

#include "model/tokenizer/utf8.h"

namespace gantrain::byte_level {

const std::array<uint32_t, 256>& alphabet() {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    uint32_t others = 0;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      t[b] = printable ? b : 0x100 + others++;
    }
    return t;
  }();
  return table;
}

std::string encode(std::string_view bytes) {
  std::string out;
  out.reserve(2 * bytes.size());
  for (char b : bytes) utf8::append(out, alphabet()[static_cast<unsigned char>(b)]);
  return out;
}

std::string decode(std::string_view token) {
  static const std::array<int16_t, 0x180> bytes = [] {
    std::array<int16_t, 0x180> t;
    t.fill(-1);
    for (int b = 0; b < 256; ++b) t[alphabet()[b]] = static_cast<int16_t>(b);
    return t;
  }();
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const uint32_t c = utf8::next(token, at);
    if (c >= bytes.size() || bytes[c] < 0) return std::string(token);
    out += static_cast<char>(bytes[c]);
  }
  return out;
}

}  // namespace gantrain::byte_level
