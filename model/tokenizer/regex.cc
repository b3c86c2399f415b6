#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>

#include "core/check.h"
#include "model/tokenizer/unicode_additions.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

// PCRE2's \s also takes U+180E, which Unicode no longer counts as white space.
constexpr std::string_view kWhiteSpace =
    R"(\x{09}-\x{0d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

bool is_quantifier(char c) { return c == '*' || c == '+' || c == '?'; }

// The categories that may stand in \p{...}: those to which Unicode 15 and 16 only added.
bool is_category(std::string_view name) {
  constexpr std::string_view known[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "N",  "Nd", "Nl",
                                        "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",
                                        "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
  for (std::string_view k : known)
    if (name == k) return true;
  return false;
}

// The members of a class that stand for \p{name}.
std::string category_members(std::string_view name) {
  std::string members = fmt::format("\\p{{{}}}", name);
  for (const unicode::Addition& a : unicode::kAdditions)
    if (std::string_view(a.category).substr(0, name.size()) == name)
      members += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", a.first, a.last);
  return members;
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        braces();
      } else if (c == '}' || c == ']') {
        refuse("an unpaired bracket", 1);
      } else {
        out_ += c;
        ++at_;
      }
    }
    return out_;
  }

 private:
  [[noreturn]] void refuse(std::string_view what, size_t length) const {
    fail(
        "{}: the regular expression '{}' has {} ('{}' at byte {}), which is not supported; supported: "
        "literals, "
        "escapes \\s \\S \\r \\n \\t, \\p{{category}}, character classes, (?:...), (?i:...), look-around, "
        "alternation and quantifiers",
        where_, in_, what, in_.substr(at_, length), at_);
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse("a backslash at its end", 1);
    const char c = in_[at_ + 1];
    if (c == 's' || c == 'S') {
      if (in_class && c == 'S') refuse("\\S inside a class", 2);
      out_ += in_class ? std::string(kWhiteSpace) : fmt::format("[{}{}]", c == 'S' ? "^" : "", kWhiteSpace);
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      size_t name = at_ + 2;
      if (name >= in_.size() || in_[name] != '{') refuse("a property without braces", 3);
      const size_t close = in_.find('}', ++name);
      if (close == std::string_view::npos) refuse("a property without its closing brace", 3);
      bool negated = c == 'P';
      if (in_[name] == '^') {
        negated = !negated;
        ++name;
      }
      const std::string_view category = in_.substr(name, close - name);
      if (!is_category(category)) refuse("a property", close + 1 - at_);
      if (in_class && negated) refuse("a negated property inside a class", close + 1 - at_);
      const std::string members = category_members(category);
      out_ += in_class ? members : fmt::format("[{}{}]", negated ? "^" : "", members);
      at_ = close + 1;
    } else if (c == 'r' || c == 'n' || c == 't' || c == 'f') {
      out_ += {'\\', c};
      at_ += 2;
    } else if (static_cast<unsigned char>(c) < 0x80 && std::ispunct(static_cast<unsigned char>(c))) {
      out_ += {'\\', c};
      at_ += 2;
    } else {
      refuse("an escape", 2);
    }
  }

  void character_class() {
    out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == '^') out_ += in_[at_++];
    if (at_ < in_.size() && in_[at_] == ']') refuse("an empty class", 1);
    while (true) {
      if (at_ >= in_.size()) refuse("a class without its closing bracket", 0);
      const char c = in_[at_];
      if (c == ']') break;
      if (c == '[') refuse("a class inside a class", 2);
      if (in_.substr(at_, 2) == "&&") refuse("an intersection of classes", 2);
      if (c == '\\') {
        escape(true);
      } else {
        out_ += c;
        ++at_;
      }
    }
    out_ += in_[at_++];
  }

  void group() {
    if (at_ + 1 < in_.size() && in_[at_ + 1] == '?') {
      for (std::string_view known : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
        if (in_.substr(at_, known.size()) == known) {
          out_ += known;
          at_ += known.size();
          return;
        }
      }
      refuse("a group", 4);
    }
    out_ += in_[at_++];
  }

  void braces() {
    const size_t close = in_.find('}', at_);
    const std::string_view inside =
        close == std::string_view::npos ? std::string_view() : in_.substr(at_ + 1, close - at_ - 1);
    const size_t comma = inside.find(',');
    const std::string_view low = inside.substr(0, comma);
    const bool number = !low.empty() && low.find_first_not_of("0123456789") == std::string_view::npos;
    const std::string_view high = comma == std::string_view::npos ? "" : inside.substr(comma + 1);
    if (!number || high.find_first_not_of("0123456789") != std::string_view::npos)
      refuse("a brace that is no quantifier", 1);
    // Ruby reads {n,m}+ as a repetition of a repetition, PCRE2 as possessive; {n}? differs as well.
    if (close + 1 < in_.size() && is_quantifier(in_[close + 1]))
      refuse("a quantifier on a quantifier", close + 2 - at_);
    out_ += in_.substr(at_, close + 1 - at_);
    at_ = close + 1;
  }

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
};

template <typename T, void (*Free)(T*)>
struct Handle {
  T* p = nullptr;
  explicit Handle(T* handle) : p(handle) { GT_CHECK(p != nullptr, "PCRE2 is out of memory"); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { Free(p); }
};

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

std::string translate_regex(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

struct Pattern::Compiled {
  explicit Compiled(pcre2_code* compiled) : code(compiled) {}
  Handle<pcre2_code, pcre2_code_free> code;
};

Pattern::Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern Pattern::literal(std::string text) {
  Pattern p;
  p.literal_ = std::move(text);
  return p;
}

Pattern Pattern::regex(std::string_view oniguruma, const std::string& where) {
  if (const size_t bad = utf8::find_invalid(oniguruma); bad != std::string_view::npos)
    fail("{}: the regular expression is no valid UTF-8 at byte {}", where, bad);
  const std::string translated = translate_regex(oniguruma, where);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                   &offset, nullptr);
  if (!code)
    fail("{}: the regular expression '{}' (as PCRE2's '{}') is wrong at byte {} of the latter: {}", where,
         oniguruma, translated, offset, pcre2_message(error));
  Pattern p;
  p.compiled_ = std::make_unique<Compiled>(code);
  // Where there is no JIT compiler the interpreter does the same, only slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return p;
}

std::vector<ByteRange> Pattern::find_all(std::string_view text) const {
  std::vector<ByteRange> found;
  if (!compiled_) {
    if (literal_.empty()) return found;
    for (size_t at = text.find(literal_); at != std::string_view::npos;
         at = text.find(literal_, at + literal_.size()))
      found.emplace_back(at, at + literal_.size());
    return found;
  }
  // One set of scratch memory a thread: a piece of text is often a few bytes long.
  struct Scratch {
    Handle<pcre2_match_context, pcre2_match_context_free> context{pcre2_match_context_create(nullptr)};
    Handle<pcre2_jit_stack, pcre2_jit_stack_free> stack{pcre2_jit_stack_create(64 << 10, 16 << 20, nullptr)};
    Handle<pcre2_match_data, pcre2_match_data_free> data{pcre2_match_data_create(1, nullptr)};
    Scratch() { pcre2_jit_stack_assign(context.p, nullptr, stack.p); }
  };
  thread_local const Scratch scratch;
  for (size_t at = 0; at < text.size();) {
    const int rc = pcre2_match(compiled_->code.p, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                               PCRE2_NO_UTF_CHECK, scratch.data.p, scratch.context.p);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0)
      fail(
          "the tokenizer's regular expression gave up at byte {} of a piece of {} bytes: {}; cut the text "
          "into "
          "shorter parts",
          at, text.size(), pcre2_message(rc));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.data.p);
    if (range[1] > range[0]) {
      found.emplace_back(range[0], range[1]);
      at = range[1];
    } else {
      at = range[1];
      if (at < text.size()) utf8::next(text, at);
    }
  }
  return found;
}

}  // namespace gantrain
