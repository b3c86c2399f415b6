#include "train/data/reader.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/check.h"
#include "model/formats/json_text.h"
#include "train/data/template.h"
#include "train/suggest.h"
#include "train/text.h"

namespace gantrain {
namespace {

using nlohmann::json;

constexpr int64_t kMaxFileBytes = int64_t{4} << 30;
constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kMaxColumns = 4096;

// Why an item cannot be used: `reason` is the report's row, `story` the rest without file and line. The story
// is only told where someone will read it: a file may hold millions of items to be dropped.
class Problem {
 public:
  explicit Problem(bool told) : told_(told) {}
  bool told() const { return told_; }
  // Notes it, and is false: what a reader of parts gives back. `tell` makes the story.
  template <typename Tell>
  bool operator()(const char* reason, Tell tell) {
    reason_ = reason;
    if (told_) story_ = tell();
    return false;
  }
  const char* reason() const { return reason_; }
  const std::string& story() const { return story_; }

 private:
  bool told_;
  const char* reason_ = "";
  std::string story_;
};

// One item as named fields, before templates.
struct Record {
  std::map<std::string, std::string> fields;
  std::vector<std::string> numbered;  // the same by position, where the format has positions
  std::optional<std::vector<ChatTurn>> messages;
  std::vector<std::string> references;
  int64_t line = 0;
};

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) {
    if (!out.empty()) out += ", ";
    out += word;
    if (out.size() > 300) return out + ", ...";
  }
  return out;
}

bool blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos; }

const char* kind_of(const json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "a boolean";
  if (value.is_number()) return "a number";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return "a string";
}

// `what()` names the place.
template <typename What>
bool string_of(const json& value, What what, std::string& into, Problem& problem) {
  if (!value.is_string())
    return problem("field is no string",
                   [&] { return fmt::format("{}: expected a string, got {}", what(), kind_of(value)); });
  into = value.get_ref<const std::string&>();
  if (into.find('\0') != std::string::npos)
    return problem("NUL character",
                   [&] { return fmt::format("{} holds a NUL character (\\u0000)", what()); });
  return true;
}

bool turns_of(const json& value, std::vector<ChatTurn>& turns, Problem& problem) {
  constexpr const char* kReason = "bad messages";
  if (!value.is_array())
    return problem(kReason,
                   [&] { return fmt::format("\"messages\": expected a list, got {}", kind_of(value)); });
  for (const json& turn : value) {
    const auto place = [&](const char* part) {
      return [&turns, part] { return fmt::format("\"messages\"[{}]{}", turns.size(), part); };
    };
    if (!turn.is_object() || !turn.contains("role") || !turn.contains("content"))
      return problem(kReason, [&] {
        return fmt::format("{}: expected {{\"role\", \"content\"}}, got {}", place("")(),
                           turn.is_object() ? "an object without them" : kind_of(turn));
      });
    ChatTurn read;
    if (!string_of(turn["role"], place(".role"), read.role, problem) ||
        !string_of(turn["content"], place(".content"), read.content, problem))
      return false;
    if (read.role != "system" && read.role != "user" && read.role != "assistant")
      return problem(kReason, [&] {
        return fmt::format("{}: expected role system, user or assistant, got \"{}\"", place("")(), read.role);
      });
    turns.push_back(std::move(read));
  }
  if (turns.size() < 2 || turns.back().role != "assistant")
    return problem(kReason, [] {
      return std::string("\"messages\": expected the last of at least two to be the assistant's");
    });
  return true;
}

// Fields that are neither strings nor integers are left out of `fields`; a template that asks for one says
// so.
bool record_of(const json& item, Record& record, std::map<std::string, std::string>& odd, Problem& problem) {
  if (!item.is_object())
    return problem("not a JSON object",
                   [&] { return fmt::format("expected a JSON object, got {}", kind_of(item)); });
  for (const auto& [name, value] : item.items()) {
    if (name == "messages") {
      if (!turns_of(value, record.messages.emplace(), problem)) return false;
    } else if (name == "references" && value.is_array()) {
      for (const json& reference : value) {
        const auto place = [&] { return fmt::format("\"references\"[{}]", record.references.size() - 1); };
        if (!string_of(reference, place, record.references.emplace_back(), problem)) return false;
      }
    } else if (value.is_string()) {
      const auto place = [&, &key = name] { return fmt::format("\"{}\"", key); };
      if (!string_of(value, place, record.fields[name], problem)) return false;
    } else if (value.is_number_integer()) {
      record.fields[name] = value.dump();  // {"label": 1}: one spelling only, so no harm
    } else {
      odd[name] = kind_of(value);
    }
  }
  return true;
}

// Turns records into examples: label map, templates, the shapes that need none.
class Builder {
 public:
  Builder(std::string name, const DataConfig& config, DataReport& report)
      : name_(std::move(name)), config_(config), report_(report) {
    if (!config.prompt_template.empty()) prompt_.emplace(config.prompt_template, "data.prompt_template");
    if (!config.completion_template.empty())
      completion_.emplace(config.completion_template, "data.completion_template");
  }

  const std::string& name() const { return name_; }
  std::map<std::string, std::string> odd;  // of the record at hand: field -> what it is instead of a string

  // Runs make(record, problem) for the item at `line`, and keeps, drops or refuses what comes.
  template <typename Make>
  void item(int64_t line, Make make) {
    ++report_.read;
    odd.clear();
    Record record;
    record.line = line;
    Example example;
    Problem problem(config_.bad_items == BadItems::kError);
    if (!make(record, problem) || !build(record, example, problem)) {
      if (problem.told())
        fail("{}:{}: {} (data.bad_items=drop leaves such items out)", name_, line, problem.story());
      report_.drop(problem.reason(), line);
    } else if (blank(example.completion)) {
      report_.drop("empty completion", line);
    } else {
      examples_.push_back(std::move(example));
      ++report_.kept;
    }
  }

  std::vector<Example> take() {
    if (report_.read == 0) fail("{}: no items in the file", name_);
    if (examples_.empty()) {
      std::string reasons;
      for (const auto& [reason, count] : report_.dropped)
        reasons += fmt::format("{}{} {}", reasons.empty() ? "" : ", ", count.items, reason);
      fail("{}: none of the {} items can be used: {}", name_, report_.read, reasons);
    }
    return std::move(examples_);
  }

 private:
  // The column's text in `record`, or null and the problem.
  const std::string* lookup(const Record& record, const std::string& column, const char* asked_by,
                            Problem& problem) const {
    const auto found = record.fields.find(column);
    if (found != record.fields.end()) return &found->second;
    if (const size_t number = column_number(column); number > 0 && number <= record.numbered.size())
      return &record.numbered[number - 1];
    if (odd.contains(column)) {
      is_odd(column, problem);
      return nullptr;
    }
    problem("missing column", [&] {
      const std::vector<std::string> known = names(record);
      return fmt::format("no column '{}' ({}){}; there are: {}", column, asked_by,
                         did_you_mean(column, known), joined(known));
    });
    return nullptr;
  }

  bool is_odd(const std::string& column, Problem& problem) const {
    return problem("field is no string",
                   [&] { return fmt::format("\"{}\": expected a string, got {}", column, odd.at(column)); });
  }

  static std::vector<std::string> names(const Record& record) {
    std::vector<std::string> out;
    for (const auto& [name, value] : record.fields) out.push_back(name);
    if (record.messages) out.push_back("messages");
    if (out.empty())
      for (size_t i = 0; i < record.numbered.size(); ++i) out.push_back(fmt::format("{}", i + 1));
    return out;
  }

  bool build(Record& record, Example& example, Problem& problem) const {
    if (!config_.label_map.empty() && !map_label(record, problem)) return false;
    example.line = record.line;
    // Each is read where the record has it; one that is there and no string spoils the item.
    bool odd_field = false;
    const auto field = [&](const char* name) -> const std::string* {
      const auto found = record.fields.find(name);
      if (found != record.fields.end()) return &found->second;
      if (!odd_field && odd.contains(name)) odd_field = !is_odd(name, problem);
      return nullptr;
    };
    const bool chat = config_.chat_template != ChatTemplateChoice::kNone;
    const auto fill = [&](const TextTemplate& from, const char* key, std::string& into) {
      return from.fill([&](const std::string& column) { return lookup(record, column, key, problem); }, into);
    };
    if (prompt_ || completion_) {
      if (prompt_) {
        if (!fill(*prompt_, "data.prompt_template", example.prompt)) return false;
      } else if (const std::string* given = field("prompt")) {
        example.prompt = *given;
      }
      if (odd_field) return false;
      if (completion_) {
        if (!fill(*completion_, "data.completion_template", example.completion)) return false;
      } else {
        const std::string* given = lookup(record, "completion", "data.completion_template is empty", problem);
        if (!given) return false;
        example.completion = *given;
      }
    } else if (record.messages) {
      if (!chat)
        return problem("messages without a chat template", [] {
          return std::string(
              "the item is a chat (\"messages\"); choose data.chat_template: auto, chatml, llama2 or llama3");
        });
      example.messages = std::move(*record.messages);
      example.completion = std::move(example.messages.back().content);
      example.messages.pop_back();
    } else if (!shaped(field, chat, example)) {
      if (odd_field) return false;
      return problem("unknown shape", [&] {
        return fmt::format(
            "expected prompt and completion, messages, instruction and output, input and "
            "output, or text; got: {}. Set data.prompt_template and data.completion_template",
            joined(names(record)));
      });
    }
    if (odd_field) return false;
    for (std::string& reference : record.references)
      if (reference != example.completion && !blank(reference))
        example.references.push_back(std::move(reference));
    if (blank(example.completion) && !example.references.empty()) {
      example.completion = example.references.front();
      example.references.erase(example.references.begin());
    }
    return true;
  }

  // The shapes that need no template; field(name) is null for one that is not there.
  template <typename Field>
  static bool shaped(Field field, bool chat, Example& example) {
    if (field("prompt") && field("completion")) {
      example.prompt = *field("prompt");
      example.completion = *field("completion");
    } else if (field("instruction") && field("output")) {
      alpaca(*field("instruction"), field("input") ? *field("input") : "", chat, example);
      example.completion = *field("output");
    } else if (field("input") && field("output")) {
      example.prompt = *field("input");
      example.completion = *field("output");
    } else if (field("text")) {
      example.completion = *field("text");
    } else {
      return false;
    }
    return true;
  }

  bool map_label(Record& record, Problem& problem) const {
    const std::string* value = lookup(record, config_.label_column, "data.label_column", problem);
    if (!value) return false;
    const auto found = config_.label_map.find(*value);
    if (found == config_.label_map.end())
      return problem("label not in data.label_map", [&] {
        std::vector<std::string> known;
        for (const auto& [label, text] : config_.label_map) known.push_back(label);
        return fmt::format("label \"{}\" is not in data.label_map; it has: {}", value->substr(0, 80),
                           joined(known));
      });
    record.fields[config_.label_column] = found->second;
    // A template may name the column by its number too.
    if (const size_t number = column_number(config_.label_column);
        number > 0 && number <= record.numbered.size())
      record.numbered[number - 1] = found->second;
    return true;
  }

  // 3 for "3", 0 for a name.
  static size_t column_number(const std::string& column) {
    const bool digits =
        !column.empty() && column.size() < 6 && column.find_first_not_of("0123456789") == std::string::npos;
    return digits ? std::stoul(column) : 0;
  }

  // The wording of the Stanford Alpaca data set; as a chat the template does the wrapping.
  static void alpaca(const std::string& instruction, const std::string& input, bool chat, Example& example) {
    if (chat)
      example.prompt = input.empty() ? instruction : instruction + "\n\n" + input;
    else if (input.empty())
      example.prompt = fmt::format(
          "Below is an instruction that describes a task. Write a response that appropriately completes the "
          "request.\n\n### Instruction:\n{}\n\n### Response:\n",
          instruction);
    else
      example.prompt = fmt::format(
          "Below is an instruction that describes a task, paired with an input that provides further "
          "context. "
          "Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### "
          "Input:\n{}\n\n### Response:\n",
          instruction, input);
  }

  std::string name_;
  const DataConfig& config_;
  DataReport& report_;
  std::optional<TextTemplate> prompt_, completion_;
  std::vector<Example> examples_;
};

// Calls each(line number, line without its end) for every line. Lines end at LF or CRLF and nowhere else:
// U+0085, U+2028 and form feeds are text.
template <typename Each>
void for_each_line(std::string_view text, const std::string& name, Each each) {
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) end = text.size();  // the last line may lack its end
    ++line;
    std::string_view piece = text.substr(begin, end - begin);
    if (piece.size() > kMaxLineBytes)
      fail("{}:{}: a line of {} bytes, expected at most {}; is it a text file of one item a line?", name,
           line, piece.size(), kMaxLineBytes);
    if (!piece.empty() && piece.back() == '\r') piece.remove_suffix(1);
    each(line, piece);
    begin = end + 1;
  }
}

// Refuses deep nesting and doubled keys too.
bool item_json(std::string_view text, json& value, Problem& problem) {
  std::string found = read_json(text, value, problem.told());
  if (found.empty()) return true;
  return problem("not JSON", [&] {
    // The caller names the file's line.
    constexpr std::string_view kOneLine = "not valid JSON at line 1, ", kPlaced = "not valid JSON ";
    if (found.starts_with(kOneLine))
      found = fmt::format("at {}", found.substr(kOneLine.size()));
    else if (found.starts_with(kPlaced))
      found.erase(0, kPlaced.size());
    return fmt::format("not JSON: {}", found);
  });
}

void read_json_lines(std::string_view text, Builder& builder) {
  for_each_line(text, builder.name(), [&](int64_t line, std::string_view piece) {
    if (blank(piece)) return;
    builder.item(line, [&](Record& record, Problem& problem) {
      json item;
      return item_json(piece, item, problem) && record_of(item, record, builder.odd, problem);
    });
  });
}

void read_json_array(std::string_view text, Builder& builder) {
  json items;
  Problem problem(true);
  if (!item_json(text, items, problem))
    fail("{}: {}; the file is cut off or damaged", builder.name(), problem.story());
  int64_t number = 0;
  for (const json& item : items) {
    ++number;
    builder.item(number, [&](Record& record, Problem& refused) {
      return record_of(item, record, builder.odd, refused);
    });
  }
}

struct Row {
  std::vector<std::string> cells;
  int64_t line = 0;
  std::string problem;  // of the quoting; "" for none
};

// RFC 4180 with any one-byte delimiter and either line end. Quotes are special only at a cell's first byte;
// what follows a closing quote other than a delimiter or line end is a problem of that row.
template <typename Each>
void for_each_csv_row(std::string_view text, char delimiter, const std::string& name, Each each) {
  int64_t line = 1;
  for (size_t i = 0; i < text.size();) {
    Row row;
    row.line = line;
    size_t bytes = 0;
    for (bool more = true; more;) {
      std::string cell;
      if (i < text.size() && text[i] == '"') {
        const int64_t opened = line;
        for (++i;; ++i) {
          if (i >= text.size()) fail("{}:{}: a quote is opened and never closed", name, opened);
          if (text[i] == '"') {
            if (i + 1 < text.size() && text[i + 1] == '"') {
              cell += '"';
              ++i;
              continue;
            }
            ++i;
            break;
          }
          if (text[i] == '\n') ++line;
          cell += text[i];
          if (cell.size() > kMaxLineBytes)
            fail("{}:{}: a quoted cell of more than {} bytes; is a quote left open?", name, opened,
                 kMaxLineBytes);
        }
        while (i < text.size() && text[i] != delimiter && text[i] != '\n') {
          if (text[i] != '\r' && row.problem.empty())
            row.problem = fmt::format("text after a closing quote in column {}", row.cells.size() + 1);
          ++i;
        }
      } else {
        size_t end = i;
        while (end < text.size() && text[end] != delimiter && text[end] != '\n') ++end;
        cell = std::string(text.substr(i, end - i));
        if ((end == text.size() || text[end] == '\n') && !cell.empty() && cell.back() == '\r')
          cell.pop_back();
        i = end;
      }
      bytes += cell.size();
      if (bytes > kMaxLineBytes)
        fail("{}:{}: a row of more than {} bytes, expected at most that; is a quote not closed?", name,
             row.line, kMaxLineBytes);
      row.cells.push_back(std::move(cell));
      if (row.cells.size() > kMaxColumns)
        fail("{}:{}: more than {} columns; is data.delimiter right?", name, row.line, kMaxColumns);
      more = i < text.size() && text[i] == delimiter;
      if (more) ++i;
    }
    if (i < text.size()) ++i;  // the line end
    ++line;
    each(row);
  }
}

void read_table(std::string_view text, DataFormat format, const DataConfig& config, Builder& builder) {
  const std::string& name = builder.name();
  std::vector<std::string> columns = config.columns;
  bool header = config.header == Tristate::kAuto ? columns.empty() : config.header == Tristate::kYes;
  size_t width = columns.size();
  const auto take_row = [&](const Row& row) {
    if (row.cells.size() == 1 && blank(row.cells[0]) && width != 1) return;  // an empty line
    if (header) {
      header = false;
      if (!row.problem.empty()) fail("{}:{}: {}", name, row.line, row.problem);
      if (columns.empty()) {
        columns = row.cells;
        std::set<std::string> seen;
        for (const std::string& column : columns)
          if (!seen.insert(column).second)
            fail("{}:{}: column '{}' stands twice in the header; name them with data.columns", name, row.line,
                 column);
      }
      if (columns.size() != row.cells.size())
        fail("{}:{}: data.columns names {} columns, the header has {}", name, row.line, columns.size(),
             row.cells.size());
      width = columns.size();
      return;
    }
    if (width == 0) width = row.cells.size();  // no header, no names: the first row says how many
    builder.item(row.line, [&](Record& record, Problem& problem) {
      if (!row.problem.empty()) return problem("bad quoting", [&] { return row.problem; });
      if (row.cells.size() != width)
        return problem("wrong number of columns",
                       [&] { return fmt::format("expected {} columns, got {}", width, row.cells.size()); });
      record.numbered = row.cells;
      for (size_t i = 0; i < columns.size(); ++i) record.fields[columns[i]] = row.cells[i];
      return true;
    });
  };
  char delimiter = format == DataFormat::kTsv ? '\t' : ',';
  if (!config.delimiter.empty()) delimiter = config.delimiter[0];
  if (format == DataFormat::kCsv) {
    for_each_csv_row(text, delimiter, name, take_row);
    return;
  }
  // TSV has no quoting: a quote is a quote.
  for_each_line(text, name, [&](int64_t line, std::string_view piece) {
    Row row;
    row.line = line;
    for (size_t begin = 0; begin <= piece.size();) {
      const size_t end = std::min(piece.find(delimiter, begin), piece.size());
      row.cells.emplace_back(piece.substr(begin, end - begin));
      if (row.cells.size() > kMaxColumns)
        fail("{}:{}: more than {} columns; is data.delimiter right?", name, line, kMaxColumns);
      begin = end + 1;
    }
    take_row(row);
  });
}

void read_pattern_lines(std::string_view text, const DataConfig& config, Builder& builder) {
  const TextTemplate pattern(config.line_pattern, "data.line_pattern");
  bool previous_is_column = false;
  for (const TextTemplate::Piece& piece : pattern.pieces()) {
    if (piece.column && previous_is_column)
      fail_usage("data.line_pattern: {{{}}} follows another column with no text between them in \"{}\"",
                 piece.text, config.line_pattern);
    previous_is_column = piece.column;
  }
  for_each_line(text, builder.name(), [&](int64_t line, std::string_view rest) {
    if (blank(rest)) return;
    builder.item(line, [&](Record& record, Problem& problem) {
      constexpr const char* kReason = "line does not fit the pattern";
      const std::vector<TextTemplate::Piece>& pieces = pattern.pieces();
      for (size_t i = 0; i < pieces.size(); ++i) {
        if (!pieces[i].column) {
          if (!rest.starts_with(pieces[i].text))
            return problem(kReason, [&] {
              return fmt::format("expected \"{}\" (data.line_pattern \"{}\"), got \"{}\"", pieces[i].text,
                                 config.line_pattern, rest.substr(0, 40));
            });
          rest.remove_prefix(pieces[i].text.size());
          continue;
        }
        size_t end = rest.size();
        if (i + 1 < pieces.size()) {
          end = rest.find(pieces[i + 1].text);
          if (end == std::string_view::npos)
            return problem(kReason, [&] {
              return fmt::format("expected \"{}\" after {{{}}} (data.line_pattern \"{}\"), got \"{}\"",
                                 pieces[i + 1].text, pieces[i].text, config.line_pattern, rest.substr(0, 40));
            });
        }
        record.fields[pieces[i].text] = std::string(rest.substr(0, end));
        record.numbered.emplace_back(rest.substr(0, end));
        rest.remove_prefix(end);
      }
      if (!rest.empty())
        return problem(kReason, [&] {
          return fmt::format("text after the end of data.line_pattern: \"{}\"", rest.substr(0, 40));
        });
      return true;
    });
  });
}

int64_t line_of(std::string_view text, size_t offset) {
  return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(offset), '\n');
}

}  // namespace

std::string content_key(const Example& example) {
  if (!example.messages.empty()) {
    std::string key;
    for (const ChatTurn& turn : example.messages) key += turn.role + '\0' + turn.content + '\0';
    return key;
  }
  return blank(example.prompt) ? example.completion : example.prompt;
}

DataFormat format_of(const std::filesystem::path& file) {
  const std::string ending = file.extension().string();
  if (ending == ".jsonl" || ending == ".json" || ending == ".ndjson") return DataFormat::kJsonl;
  if (ending == ".tsv") return DataFormat::kTsv;
  if (ending == ".csv") return DataFormat::kCsv;
  fail(
      "{}: the format cannot be told from the ending \"{}\" (.jsonl, .json, .tsv and .csv can); set "
      "data.format",
      file.string(), ending);
}

std::vector<Example> parse_examples(std::string text, const std::string& name, DataFormat format,
                                    const DataConfig& config, DataReport& report) {
  report.file = name;
  if (text.empty()) fail("{}: the file is empty; expected items to train on", name);
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff"))
    fail("{}: the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8", name);
  size_t skipped = 0;
  if (text.starts_with("\xef\xbb\xbf")) {  // a byte order mark
    text.erase(0, 3);
    skipped = 3;
  }
  if (config.encoding == TextEncoding::kLatin1) {
    text = latin1_to_utf8(text);
  } else if (const size_t bad = find_bad_utf8(text); bad != std::string::npos) {
    fail(
        "{}:{}: not UTF-8 at byte {} of the file (0x{:02x}); if the file is Latin-1, set "
        "data.encoding=latin1",
        name, line_of(text, bad), bad + skipped, static_cast<unsigned char>(text[bad]));
  }
  if (const size_t nul = text.find('\0'); nul != std::string::npos)
    fail("{}:{}: a NUL byte at byte {} of the file; is it a text file?", name, line_of(text, nul),
         nul + skipped);
  if (format == DataFormat::kAuto) format = format_of(name);

  Builder builder(name, config, report);
  switch (format) {
    case DataFormat::kAuto:
    case DataFormat::kJsonl: {
      const size_t first = text.find_first_not_of(" \t\r\n");
      if (first != std::string::npos && text[first] == '[')
        read_json_array(text, builder);
      else
        read_json_lines(text, builder);
      break;
    }
    case DataFormat::kTsv:
    case DataFormat::kCsv:
      read_table(text, format, config, builder);
      break;
    case DataFormat::kLines:
      read_pattern_lines(text, config, builder);
      break;
  }
  return builder.take();
}

std::vector<Example> read_examples(const std::filesystem::path& file, const DataConfig& config,
                                   DataReport& report) {
  const DataFormat format = config.format == DataFormat::kAuto ? format_of(file) : config.format;
  return parse_examples(read_text_file(file, kMaxFileBytes), file.string(), format, config, report);
}

}  // namespace gantrain
