#include "model/tokenizer/utf8.h"

namespace gantrain::utf8 {
namespace {

// Of the character that starts at `at`: how many bytes are fine, and how many it would need (0: no lead
// byte).
struct Scan {
  int good, needed;
};

Scan scan(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return {1, 1};
  int needed = 0;
  unsigned char low = 0x80, high = 0xbf;  // what the second byte may be
  if (lead >= 0xc2 && lead <= 0xdf) {
    needed = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    needed = 3;
    if (lead == 0xe0) low = 0xa0;   // shorter form exists
    if (lead == 0xed) high = 0x9f;  // surrogates
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    needed = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;  // past U+10FFFF
  } else {
    return {0, 0};
  }
  int good = 1;
  for (; good < needed && at + good < text.size(); ++good) {
    const unsigned char next = byte(at + good);
    if (next < low || next > high) break;
    low = 0x80;
    high = 0xbf;
  }
  return {good, needed};
}

}  // namespace

int length_at(std::string_view text, size_t at) {
  if (at >= text.size()) return 0;
  const Scan s = scan(text, at);
  return s.needed > 0 && s.good == s.needed ? s.needed : 0;
}

size_t find_invalid(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const int n = length_at(text, at);
    if (n == 0) return at;
    at += n;
  }
  return std::string_view::npos;
}

uint32_t next(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t lead = byte(at);
  if (lead < 0x80) {
    ++at;
    return lead;
  }
  const int n = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t value = lead & (0xff >> (n + 1));
  for (int i = 1; i < n; ++i) value = value << 6 | (byte(at + i) & 0x3f);
  at += n;
  return value;
}

void append(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

std::string lossy(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Scan s = scan(bytes, at);
    if (s.needed > 0 && s.good == s.needed) {
      out.append(bytes.substr(at, s.good));
      at += s.good;
    } else {
      out += kReplacement;
      at += s.good > 0 ? s.good : 1;
    }
  }
  return out;
}

}  // namespace gantrain::utf8
