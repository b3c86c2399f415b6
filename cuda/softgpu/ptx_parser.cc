#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cuda/softgpu/ptx.h"

namespace softgpu::ptx {
namespace {

enum class Tok { kEnd, kWord, kNumber, kFloat, kString, kPunct };

struct Token {
  Tok kind = Tok::kEnd;
  std::string_view text;
  int line = 1;
};

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) { advance(); }
  const Token& peek() const { return token_; }
  size_t position() const { return start_; }
  size_t end_of_last() const { return last_end_; }
  std::string_view text() const { return text_; }
  Token next() {
    Token t = token_;
    last_end_ = pos_;
    advance();
    return t;
  }

 private:
  static bool word_start(char c) {
    return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
  }
  static bool word_char(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
  }
  char at(size_t i) const { return i < text_.size() ? text_[i] : '\0'; }
  void skip_space() {
    for (;;) {
      const char c = at(pos_);
      if (c == '\n') {
        ++line_, ++pos_;
      } else if (c == ' ' || c == '\t' || c == '\r') {
        ++pos_;
      } else if (c == '/' && at(pos_ + 1) == '/') {
        while (pos_ < text_.size() && text_[pos_] != '\n') ++pos_;
      } else if (c == '/' && at(pos_ + 1) == '*') {
        while (pos_ < text_.size() && !(text_[pos_] == '*' && at(pos_ + 1) == '/'))
          line_ += text_[pos_++] == '\n';
        pos_ = std::min(pos_ + 2, text_.size());
      } else {
        return;
      }
    }
  }
  void advance() {
    skip_space();
    start_ = pos_;
    token_ = Token{Tok::kEnd, {}, line_};
    if (pos_ >= text_.size()) return;
    const char c = text_[pos_];
    if (word_start(c)) {
      while (word_char(at(pos_)) || (at(pos_) == ':' && at(pos_ + 1) == ':' && word_char(at(pos_ + 2)))) {
        pos_ += at(pos_) == ':' ? 2 : 1;
      }
      token_.kind = Tok::kWord;
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      token_.kind = Tok::kNumber;
      if (c == '0' &&
          (at(pos_ + 1) == 'f' || at(pos_ + 1) == 'F' || at(pos_ + 1) == 'd' || at(pos_ + 1) == 'D'))
        token_.kind = Tok::kFloat;
      bool decimal = false;
      const bool hex = c == '0' && (at(pos_ + 1) == 'x' || at(pos_ + 1) == 'X' || token_.kind == Tok::kFloat);
      while (std::isalnum(static_cast<unsigned char>(at(pos_))) || (!hex && at(pos_) == '.') ||
             (!hex && (at(pos_) == '+' || at(pos_) == '-') && (at(pos_ - 1) == 'e' || at(pos_ - 1) == 'E'))) {
        decimal |= !hex && (at(pos_) == '.' || at(pos_) == 'e');
        ++pos_;
      }
      if (decimal) token_.kind = Tok::kFloat;
    } else if (c == '"') {
      ++pos_;
      while (pos_ < text_.size() && text_[pos_] != '"') ++pos_;
      ++pos_;
      token_.kind = Tok::kString;
    } else {
      ++pos_;
      token_.kind = Tok::kPunct;
    }
    token_.text = text_.substr(start_, std::min(pos_, text_.size()) - start_);
  }

  std::string_view text_;
  size_t pos_ = 0, start_ = 0, last_end_ = 0;
  int line_ = 1;
  Token token_;
};

struct TypeInfo {
  uint32_t size;
  uint16_t reg_bits;
};

// Size in memory and width of a register of a fundamental type.
bool type_info(std::string_view t, TypeInfo* out) {
  static const std::unordered_map<std::string_view, TypeInfo> table = {
      {".pred", {1, 1}},    {".b8", {1, 16}},  {".u8", {1, 16}},  {".s8", {1, 16}},   {".b16", {2, 16}},
      {".u16", {2, 16}},    {".s16", {2, 16}}, {".f16", {2, 16}}, {".bf16", {2, 16}}, {".f16x2", {4, 32}},
      {".bf16x2", {4, 32}}, {".b32", {4, 32}}, {".u32", {4, 32}}, {".s32", {4, 32}},  {".f32", {4, 32}},
      {".b64", {8, 64}},    {".u64", {8, 64}}, {".s64", {8, 64}}, {".f64", {8, 64}},  {".b128", {16, 128}}};
  const auto it = table.find(t);
  if (it == table.end()) return false;
  *out = it->second;
  return true;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : lex_(text), module_(std::make_unique<Module>()) {}

  std::unique_ptr<Module> run() {
    while (lex_.peek().kind != Tok::kEnd) top_level();
    return std::move(module_);
  }

 private:
  [[noreturn]] void error(const std::string& what) const {
    throw std::runtime_error(
        fmt::format("PTX line {}: {}, at '{}'", lex_.peek().line, what, lex_.peek().text));
  }
  bool is(std::string_view s) const { return lex_.peek().text == s && lex_.peek().kind != Tok::kEnd; }
  bool accept(std::string_view s) {
    if (!is(s)) return false;
    lex_.next();
    return true;
  }
  void expect(std::string_view s) {
    if (!accept(s)) error(fmt::format("expected '{}'", s));
  }
  std::string word() {
    if (lex_.peek().kind != Tok::kWord) error("expected a name");
    return std::string(lex_.next().text);
  }
  int64_t integer() {
    bool negative = false;
    while (is("-") || is("+")) negative ^= lex_.next().text == "-";
    if (lex_.peek().kind != Tok::kNumber) error("expected an integer");
    const std::string s(lex_.next().text);
    const uint64_t v = s.size() > 2 && s[0] == '0' && (s[1] == 'b' || s[1] == 'B')
                           ? std::strtoull(s.c_str() + 2, nullptr, 2)
                           : std::strtoull(s.c_str(), nullptr, 0);
    return static_cast<int64_t>(negative ? 0 - v : v);
  }

  void skip_braces() {
    expect("{");
    for (int depth = 1; depth > 0;) {
      if (lex_.peek().kind == Tok::kEnd) error("'}' missing");
      const Token t = lex_.next();
      depth += t.text == "{" ? 1 : t.text == "}" ? -1 : 0;
    }
  }

  void top_level() {
    if (is(".version")) {
      lex_.next();
      const std::string v(lex_.next().text);
      module_->version = static_cast<int>(std::strtod(v.c_str(), nullptr) * 10 + 0.5);
    } else if (is(".target")) {
      lex_.next();
      module_->target = word();
      while (accept(",")) word();
    } else if (is(".address_size")) {
      lex_.next();
      if (integer() != 64) error("only 64-bit addresses are supported");
    } else if (is(".file")) {
      lex_.next();
      const int id = static_cast<int>(integer());
      const std::string_view s = lex_.next().text;
      module_->files[id] = std::string(s.substr(1, s.size() - 2));
      while (accept(",")) integer();
    } else if (is(".section")) {
      lex_.next();
      word();
      skip_braces();
    } else if (is(".loc") || is(".pragma")) {
      skip_line_directive(nullptr);
    } else if (accept(";")) {
    } else {
      declaration();
    }
  }

  void skip_line_directive(Instruction* loc) {
    const Token t = lex_.next();
    if (t.text == ".pragma") {
      while (!accept(";")) lex_.next();
      return;
    }
    const int file = static_cast<int>(integer()), line = static_cast<int>(integer());
    integer();
    int inline_file = 0, inline_line = 0;
    while (accept(",")) {
      const std::string key = word();
      if (key == "function_name") {
        word();
        if (accept("+")) integer();
      } else {  // inlined_at file line column
        inline_file = static_cast<int>(integer());
        inline_line = static_cast<int>(integer());
        integer();
      }
    }
    if (loc && line > 0) {
      loc->file = file, loc->line = line;
      loc->inline_file = inline_file, loc->inline_line = inline_line;
    }
  }

  void declaration() {
    bool is_extern = false;
    for (;;) {
      if (is(".visible") || is(".weak") || is(".common")) {
        lex_.next();
      } else if (is(".extern")) {
        lex_.next();
        is_extern = true;
      } else {
        break;
      }
    }
    if (is(".entry") || is(".func")) {
      function(is_extern);
    } else if (is(".alias")) {
      error(".alias is not supported");
    } else {
      Variable v;
      if (!variable(&v)) error("expected a declaration");
      v.is_extern = is_extern;
      do {
        if (!module_->variables.count(v.name)) module_->variable_order.push_back(v.name);
        module_->variables[v.name] = v;
      } while (accept(",") && (declarator(&v), true));
      expect(";");
    }
  }

  static Space space_of(std::string_view s) {
    if (s == ".reg") return Space::kReg;
    if (s == ".const") return Space::kConst;
    if (s == ".global") return Space::kGlobal;
    if (s == ".local") return Space::kLocal;
    if (s == ".param") return Space::kParam;
    if (s == ".shared") return Space::kShared;
    return Space::kNone;
  }

  // .space [.align n] [.v2|.v4] .type name[...] [= init]; false where no state space stands here.
  bool variable(Variable* v) {
    v->space = space_of(lex_.peek().text);
    if (v->space == Space::kNone) return false;
    lex_.next();
    uint32_t vector = 1;
    bool align_given = false;
    TypeInfo type{0, 0};
    for (;;) {
      const std::string_view t = lex_.peek().text;
      if (t == ".align") {
        lex_.next();
        v->align = static_cast<uint32_t>(integer());
        align_given = true;
      } else if (t == ".v2" || t == ".v4") {
        vector = t == ".v2" ? 2 : 4;
        lex_.next();
      } else if (t == ".attribute") {
        lex_.next();
        expect("(");
        while (!accept(")")) lex_.next();
      } else if (t == ".ptr") {
        lex_.next();
        if (space_of(lex_.peek().text) != Space::kNone) lex_.next();
        if (accept(".align")) integer();
      } else if (type_info(t, &type)) {
        lex_.next();
        if (is(".ptr")) {
          continue;
        }
        break;
      } else {
        error("expected a type");
      }
    }
    if (is(".ptr")) {
      lex_.next();
      if (space_of(lex_.peek().text) != Space::kNone) lex_.next();
      if (accept(".align")) integer();
    }
    v->elem_size = type.size * vector;
    base_size_ = type.size;
    reg_bits_ = type.reg_bits;
    if (!align_given) v->align = v->elem_size;
    declarator(v);
    return true;
  }

  void declarator(Variable* v) {
    v->name = word();
    v->size = v->elem_size;
    v->init.clear();
    v->relocs.clear();
    while (accept("[")) {
      if (accept("]")) {
        v->size = 0;
      } else {
        v->size *= static_cast<uint64_t>(integer());
        expect("]");
      }
    }
    if (accept("=")) initialiser(v);
  }

  void initialiser(Variable* v) {
    uint64_t at = 0;
    init_value(v, &at);
    if (v->size == 0) v->size = at;
    v->init.resize(v->size);
  }
  void init_value(Variable* v, uint64_t* at) {
    if (accept("{")) {
      while (!accept("}")) {
        init_value(v, at);
        accept(",");
      }
      return;
    }
    if (v->init.size() < *at + 8) v->init.resize(*at + 8);
    if (lex_.peek().kind == Tok::kWord) {
      std::string name = word();
      bool generic = false;
      if (name == "generic") {
        generic = true;
        expect("(");
        name = word();
        expect(")");
      }
      int64_t addend = 0;
      if (is("+") || is("-")) addend = integer();
      v->relocs.push_back({*at, name, addend, generic});
    } else if (lex_.peek().kind == Tok::kFloat || is("-")) {
      const Operand o = operand();
      uint64_t bits = static_cast<uint64_t>(o.imm);
      if (o.kind == Operand::kFloat64 && base_size_ == 4) {
        double d;
        std::memcpy(&d, &bits, 8);
        const float f = static_cast<float>(d);
        bits = 0;
        std::memcpy(&bits, &f, 4);
      }
      std::memcpy(v->init.data() + *at, &bits, base_size_);
    } else {
      const uint64_t bits = static_cast<uint64_t>(integer());
      if (base_size_ > 8) error("128-bit initialiser");
      std::memcpy(v->init.data() + *at, &bits, base_size_);
    }
    *at += base_size_;
  }

  void param_list(std::vector<Variable>* out) {
    expect("(");
    while (!accept(")")) {
      Variable v;
      if (!variable(&v)) error("expected a parameter");
      out->push_back(v);
      accept(",");
    }
  }

  void dims(uint32_t out[3]) {
    out[0] = static_cast<uint32_t>(integer());
    out[1] = out[2] = 1;
    for (int i = 1; i < 3 && accept(","); ++i) out[i] = static_cast<uint32_t>(integer());
  }

  void function(bool is_extern) {
    auto f = std::make_unique<Function>();
    f->is_entry = lex_.next().text == ".entry";
    if (is("(")) param_list(&f->results);
    f->name = word();
    if (is("(")) param_list(&f->params);
    while (!is("{") && !is(";")) {
      if (accept(".maxntid")) {
        dims(f->max_threads);
      } else if (accept(".reqntid")) {
        dims(f->required_threads);
      } else if (accept(".minnctapersm") || accept(".maxnreg")) {
        integer();
      } else if (accept(".reqnctapercluster")) {
        dims(f->cluster);
      } else if (accept(".maxclusterrank")) {
        integer();
      } else if (accept(".explicitcluster")) {
        f->explicit_cluster = true;
      } else if (is(".noreturn") || is(".blocksareclusters")) {
        lex_.next();
      } else if (is(".pragma")) {
        skip_line_directive(nullptr);
        continue;
      } else {
        error("unknown directive of a function");
      }
    }
    if (!accept(";")) {
      f->has_body = true;
      body(f.get());
    }
    (void)is_extern;
    auto& slot = module_->functions[f->name];
    if (!slot || f->has_body) slot = std::move(f);
  }

  // --- function bodies
  // -------------------------------------------------------------------------------------------

  struct Scope {
    std::unordered_map<std::string, std::string> names;  // registers, variables: as written -> unique
    std::unordered_map<std::string, std::string> labels;
    std::vector<std::pair<std::string, uint16_t>> ranges;  // .reg .b32 %r<17>: prefix, bits
  };

  void body(Function* f) {
    f_ = f;
    scopes_.clear();
    loc_ = Instruction();
    block();
  }

  void block() {
    expect("{");
    scopes_.emplace_back();
    const size_t first = f_->code.size();
    const int id = scope_count_++;
    const bool outer = scopes_.size() == 1;
    while (!accept("}")) {
      if (lex_.peek().kind == Tok::kEnd) error("'}' missing");
      statement(outer ? -1 : id);
    }
    // Labels of an inner scope were stored under unique names: rename branches to them, inner scopes first.
    if (!scopes_.back().labels.empty()) {
      for (size_t i = first; i < f_->code.size(); ++i)
        rename_labels(&f_->code[i].args, scopes_.back().labels);
    }
    scopes_.pop_back();
  }

  static void rename_labels(std::vector<Operand>* args,
                            const std::unordered_map<std::string, std::string>& map) {
    for (Operand& o : *args) {
      if (o.kind == Operand::kSymbol) {
        const auto it = map.find(o.name);
        if (it != map.end()) o.name = it->second;
      }
      rename_labels(&o.list, map);
    }
  }

  std::string unique(const std::string& name, int scope) const {
    return scope < 0 ? name : fmt::format("{}@{}", name, scope);
  }

  void statement(int scope) {
    const Token& t = lex_.peek();
    if (t.text == "{") {
      block();
      return;
    }
    if (t.text == ";") {
      lex_.next();
      return;
    }
    if (t.text == ".loc" || t.text == ".pragma") {
      skip_line_directive(&loc_);
      return;
    }
    if (t.text == ".reg") {
      reg_declaration(scope);
      return;
    }
    if (space_of(t.text) != Space::kNone) {
      Variable v;
      variable(&v);
      do {
        const std::string name = v.name;
        if (scope >= 0) {
          v.name = unique(v.name, scope);
          scopes_.back().names[name] = v.name;
        }
        f_->locals.push_back(v);
        v.name = name;
      } while (accept(",") && (declarator(&v), true));
      expect(";");
      return;
    }
    if (t.text == "@") {
      instruction();
      return;
    }
    if (t.kind != Tok::kWord) error("expected a statement");
    const std::string first = word();
    if (accept(":")) {
      if (accept(".branchtargets")) {
        auto& list = f_->targets[first];
        do list.push_back(word());
        while (accept(","));
        expect(";");
        return;
      }
      if (is(".callprototype")) {
        while (!accept(";")) lex_.next();
        return;
      }
      const std::string name = unique(first, scope);
      if (scope >= 0) scopes_.back().labels[first] = name;
      f_->labels[name] = static_cast<uint32_t>(f_->code.size());
      return;
    }
    rest_of_instruction(first, "", false);
  }

  void reg_declaration(int scope) {
    lex_.next();
    TypeInfo type{0, 0};
    if (accept(".v2") || accept(".v4")) error("vector registers are not supported");
    if (!type_info(lex_.peek().text, &type)) error("expected a register type");
    lex_.next();
    do {
      const std::string name = word();
      if (accept("<")) {
        const int64_t n = integer();
        expect(">");
        if (n < 0 || n > (1 << 22)) error("register range out of bounds");
        for (int64_t i = 0; i < n; ++i) add_register(name + std::to_string(i), type.reg_bits, scope);
      } else {
        add_register(name, type.reg_bits, scope);
      }
    } while (accept(","));
    expect(";");
  }

  void add_register(const std::string& name, uint16_t bits, int scope) {
    const std::string u = unique(name, scope);
    if (scope >= 0) scopes_.back().names[name] = u;
    f_->registers[u] = bits;
  }

  std::string resolve(const std::string& name) const {
    for (auto it = scopes_.rbegin(); it != scopes_.rend(); ++it) {
      const auto found = it->names.find(name);
      if (found != it->names.end()) return found->second;
    }
    return name;
  }
  bool is_register(const std::string& name) const { return f_ && f_->registers.count(name); }

  void instruction() {
    expect("@");
    const bool negated = accept("!");
    const std::string guard = resolve(word());
    rest_of_instruction(word(), guard, negated);
  }

  static std::vector<std::string> split(const std::string& op) {
    std::vector<std::string> parts;
    size_t from = 0;
    while (from <= op.size()) {
      const size_t dot = std::min(op.find('.', from), op.size());
      parts.push_back(op.substr(from, dot - from));
      from = dot + 1;
    }
    return parts;
  }

  void rest_of_instruction(const std::string& op, const std::string& guard, bool negated) {
    Instruction in = loc_;
    in.guard = guard;
    in.guard_negated = negated;
    in.op = split(op);
    in.ptx_line = lex_.peek().line;
    const size_t from = lex_.position();
    while (!is(";")) {
      if (lex_.peek().kind == Tok::kEnd) error("';' missing");
      in.args.push_back(operand());
      if (!is(";")) {
        if (!accept(",")) error("expected ',' or ';'");
      }
    }
    std::string tail(lex_.text().substr(from, lex_.position() - from));
    for (char& c : tail) c = c == '\n' || c == '\t' || c == '\r' ? ' ' : c;
    in.text = op + (tail.empty() ? "" : " " + tail);
    lex_.next();
    f_->code.push_back(std::move(in));
  }

  Operand operand() {
    Operand o;
    if (accept("!")) {
      o = operand();
      o.negated = true;
      return o;
    }
    if (accept("[")) {
      o.kind = Operand::kMemory;
      if (lex_.peek().kind == Tok::kWord) {
        o.name = resolve(word());
        o.base_is_reg = is_register(o.name) || o.name[0] == '%';
        while (is("+") || is("-")) o.imm += (accept("+"), integer());
      } else {
        o.imm = integer();
      }
      while (accept(",")) o.list.push_back(operand());  // tensor coordinates
      expect("]");
      return o;
    }
    if (accept("{")) {
      o.kind = Operand::kVector;
      while (!accept("}")) {
        o.list.push_back(operand());
        accept(",");
      }
      return o;
    }
    if (accept("(")) {
      o.kind = Operand::kParen;
      while (!accept(")")) {
        o.list.push_back(operand());
        accept(",");
      }
      return o;
    }
    if (is("-") || is("+") || lex_.peek().kind == Tok::kNumber || lex_.peek().kind == Tok::kFloat)
      return number();
    o.name = resolve(word());
    if (o.name == "_") {
      o.kind = Operand::kSink;
    } else if (o.name == "WARP_SZ") {
      o.kind = Operand::kImm;
      o.imm = 32;
    } else if (is_register(o.name) || o.name[0] == '%') {
      o.kind = Operand::kReg;
      if (accept("|")) o.second = resolve(word());
    } else {
      o.kind = Operand::kSymbol;
      if (is("+") || is("-")) {
        accept("+");
        o.imm = integer();
      }
    }
    if (o.kind == Operand::kSink && accept("|")) o.second = resolve(word());
    return o;
  }

  Operand number() {
    Operand o;
    bool negative = false;
    while (is("-") || is("+")) negative ^= lex_.next().text == "-";
    const Token t = lex_.next();
    const std::string s(t.text);
    if (t.kind == Tok::kFloat) {
      if (s.size() > 1 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F') && s.find('.') == std::string::npos) {
        o.kind = Operand::kFloat32;
        o.imm = static_cast<int64_t>(std::strtoull(s.c_str() + 2, nullptr, 16));
        if (negative) o.imm ^= 0x80000000;
      } else if (s.size() > 1 && s[0] == '0' && (s[1] == 'd' || s[1] == 'D') &&
                 s.find('.') == std::string::npos) {
        o.kind = Operand::kFloat64;
        o.imm = static_cast<int64_t>(std::strtoull(s.c_str() + 2, nullptr, 16) ^ (negative ? 1ull << 63 : 0));
      } else {
        o.kind = Operand::kFloat64;
        const double d = std::strtod(s.c_str(), nullptr) * (negative ? -1 : 1);
        std::memcpy(&o.imm, &d, 8);
      }
      return o;
    }
    if (t.kind != Tok::kNumber) error("expected a number");
    o.kind = Operand::kImm;
    const uint64_t v = s.size() > 2 && s[0] == '0' && (s[1] == 'b' || s[1] == 'B')
                           ? std::strtoull(s.c_str() + 2, nullptr, 2)
                           : std::strtoull(s.c_str(), nullptr, 0);
    o.imm = static_cast<int64_t>(negative ? 0 - v : v);
    return o;
  }

  Lexer lex_;
  std::unique_ptr<Module> module_;
  Function* f_ = nullptr;
  std::vector<Scope> scopes_;
  Instruction loc_;
  int scope_count_ = 0;
  uint32_t base_size_ = 4;
  uint16_t reg_bits_ = 32;
};

}  // namespace

std::unique_ptr<Module> parse(std::string_view text) { return Parser(text).run(); }

}  // namespace softgpu::ptx
