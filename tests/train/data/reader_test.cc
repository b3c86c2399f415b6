#include "train/data/reader.h"

#include <gtest/gtest.h>

#include "core/check.h"

namespace gantrain {
namespace {

using Strings = std::vector<std::string>;

struct Read {
  std::vector<Example> examples;
  DataReport report;
  std::string error;
};

Read read(const std::string& text, DataFormat format = DataFormat::kJsonl, DataConfig config = {}) {
  Read result;
  try {
    result.examples = parse_examples(text, "file", format, config, result.report);
    int64_t dropped = 0;
    for (const auto& [reason, count] : result.report.dropped) dropped += count.items;
    EXPECT_EQ(result.report.read, result.report.kept + dropped);
    EXPECT_EQ(result.report.kept, static_cast<int64_t>(result.examples.size()));
  } catch (const Error& error) {
    result.error = error.what();
  }
  return result;
}

DataConfig templates(const std::string& prompt, const std::string& completion) {
  DataConfig config;
  config.prompt_template = prompt;
  config.completion_template = completion;
  return config;
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "got: " << (text) << "\nwanted: " << (part)

TEST(Reader, JsonShapes) {
  const Read r = read(
      "{\"prompt\": \"a\", \"completion\": \"b\"}\n"
      "{\"instruction\": \"do\", \"input\": \"\", \"output\": \"c\"}\r\n"
      "\n"
      "{\"input\": \"x\", \"output\": \"y\", \"id\": 3, \"extra\": [1]}\n"
      "{\"text\": \"story\"}\n"
      "{\"prompt\": \"a2\", \"completion\": \"b\", \"references\": [\"b\", \"b2\", \"  \"]}");
  ASSERT_EQ(r.error, "");
  ASSERT_EQ(r.examples.size(), 5u);
  EXPECT_EQ(r.examples[0].prompt, "a");
  EXPECT_EQ(r.examples[0].completion, "b");
  EXPECT_TRUE(r.examples[1].prompt.ends_with("### Instruction:\ndo\n\n### Response:\n"));
  EXPECT_EQ(r.examples[2].prompt, "x");
  EXPECT_EQ(r.examples[2].line, 4);  // the empty line counts
  EXPECT_EQ(r.examples[3].prompt, "");
  EXPECT_EQ(r.examples[3].completion, "story");
  EXPECT_EQ(r.examples[4].references, Strings{"b2"});
}

TEST(Reader, Messages) {
  const std::string text =
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})";
  EXPECT_HAS(read(text).error, "choose data.chat_template");
  DataConfig config;
  config.chat_template = ChatTemplateChoice::kChatML;
  const Read r = read(text, DataFormat::kJsonl, config);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.examples[0].messages, (std::vector<ChatTurn>{{"system", "s"}, {"user", "q"}}));
  EXPECT_EQ(r.examples[0].completion, "a");
  const auto bad = [&](const std::string& line) { return read(line, DataFormat::kJsonl, config).error; };
  EXPECT_HAS(bad(R"({"messages": [{"role": "user", "content": "q"}]})"), "the last of at least two");
  EXPECT_HAS(
      bad(R"({"messages": [{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}]})"),
      "got \"robot\"");
  EXPECT_HAS(bad(R"({"messages": [{"role": "user"}]})"), "\"messages\"[0]");
  EXPECT_HAS(bad(R"({"messages": {"role": "user"}})"), "expected a list, got an object");
}

TEST(Reader, JsonArray) {
  const Read r = read("\n [ {\"text\": \"a\"},\n {\"text\": \"b\"} ]\n");
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.examples.at(1).line, 2);
}

TEST(Reader, BadJsonNamesTheLine) {
  EXPECT_HAS(read("{\"text\": \"a\"}\n{\"text\": \n").error, "file:2: not JSON: at column");
  EXPECT_HAS(read("{\"text\": \"a\"}\n[1]\n").error, "file:2: expected a JSON object, got a list");
  EXPECT_HAS(read("{\"prompt\": \"a\", \"completion\": true}\n").error,
             "file:1: \"completion\": expected a string, got a boolean");
  EXPECT_HAS(read("{\"prompt\": \"a\", \"completion\": null}\n").error, "got null");
  EXPECT_HAS(read("{\"prompt\": \"a\", \"completion\": \"x\\u0000y\"}\n").error, "NUL");
  EXPECT_HAS(read("{\"question\": \"a\", \"answer\": \"b\"}\n").error,
             "got: answer, question. Set data.prompt_template");
  EXPECT_HAS(read(std::string(100000, '[') + "\n").error, "not JSON");
}

TEST(Reader, DropInsteadOfError) {
  DataConfig config;
  config.bad_items = BadItems::kDrop;
  const Read r = read(
      "{\"prompt\": \"a\", \"completion\": \"b\"}\nnot json\n{\"prompt\": \"a\", \"completion\": false}\n"
      "{\"prompt\": \"a\", \"completion\": \" \\n\"}\n{\"prompt\": \"c\", \"completion\": \"\"}\n",
      DataFormat::kJsonl, config);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.report.kept, 1);
  EXPECT_EQ(r.report.read, 5);
  EXPECT_EQ(r.report.dropped.at("not JSON").first_line, 2);
  EXPECT_EQ(r.report.dropped.at("field is no string").items, 1);
  EXPECT_EQ(r.report.dropped.at("empty completion").items, 2);
  EXPECT_HAS(to_string(r.report), "5 items, 1 kept");
  EXPECT_HAS(to_string(r.report), "2 dropped: empty completion (first at line 4)");
  EXPECT_HAS(read("{\"prompt\": \"a\", \"completion\": \"\"}\n").error,
             "none of the 1 items can be used: 1 empty completion");
}

// Dropped or refused, an item is judged by the same rules: each of these is refused in words, and dropped
// under its reason from beside one that is kept.
TEST(Reader, DroppedItemsAreThoseThatAreRefused) {
  DataConfig plain, labels = templates("{text}", "{label}"), chat, lines;
  labels.label_map = {{"0", "no"}, {"1", "yes"}};
  labels.label_column = "label";
  chat.chat_template = ChatTemplateChoice::kChatML;
  lines.line_pattern = "{label}: {text}.";
  lines.prompt_template = "{text}";
  lines.completion_template = "{label}";
  const std::string good_chat =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})";
  struct Case {
    DataFormat format;
    DataConfig config;
    std::string good, bad, reason, words;
  };
  const Case cases[] = {
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"text": )", "not JSON", "not JSON: at column"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"text": "a", "text": "b"})", "not JSON",
       "the key 'text' stands twice"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", std::string(40, '['), "not JSON", "deeper than 32"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", "7", "not a JSON object", "got a number"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"other": "a"})", "unknown shape", "got: other"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"text": "a\u0000"})", "NUL character",
       "\"text\" holds a NUL"},
      // A shape that fits does not excuse a field that was read before it and is no string.
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"prompt": 0.5, "text": "a"})", "field is no string",
       "\"prompt\": expected a string, got a number"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", R"({"text": "a", "references": ["b", 1]})",
       "field is no string", "\"references\"[1]: expected a string"},
      {DataFormat::kJsonl, plain, R"({"text": "a"})", good_chat, "messages without a chat template",
       "choose data.chat_template"},
      {DataFormat::kJsonl, chat, good_chat, R"({"messages": []})", "bad messages",
       "the last of at least two"},
      {DataFormat::kJsonl, chat, good_chat, R"({"messages": [{"role": "user", "content": 1}]})",
       "field is no string", "\"messages\"[0].content: expected a string"},
      {DataFormat::kJsonl, labels, R"({"text": "a", "label": 1})", R"({"text": "a"})", "missing column",
       "no column 'label' (data.label_column)"},
      {DataFormat::kJsonl, labels, R"({"text": "a", "label": 1})", R"({"text": "a", "label": 2})",
       "label not in data.label_map", "label \"2\" is not in data.label_map; it has: 0, 1"},
      {DataFormat::kJsonl, labels, R"({"text": "a", "label": 1})", R"({"text": [], "label": 1})",
       "field is no string", "\"text\": expected a string, got a list"},
      {DataFormat::kCsv, plain, "prompt,completion\na,b", "a,\"b\"c", "bad quoting",
       "text after a closing quote in column 2"},
      {DataFormat::kCsv, plain, "prompt,completion\na,b", "a", "wrong number of columns",
       "expected 2 columns, got 1"},
      {DataFormat::kLines, lines, "l: t.", "l, t.", "line does not fit the pattern", "expected \": \" after"},
      {DataFormat::kLines, lines, "l: t.", "l: t. u", "line does not fit the pattern", "text after the end"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.bad);
    const std::string text = c.good + "\n" + c.bad + "\n";
    EXPECT_HAS(read(text, c.format, c.config).error, c.words);
    DataConfig dropping = c.config;
    dropping.bad_items = BadItems::kDrop;
    const Read r = read(text, c.format, dropping);
    EXPECT_EQ(r.error, "");
    EXPECT_EQ(r.report.kept, 1);
    ASSERT_TRUE(r.report.dropped.contains(c.reason)) << to_string(r.report);
    EXPECT_EQ(r.report.dropped.at(c.reason).items, 1);
  }
}

TEST(Reader, TemplatesAndFields) {
  const std::string text = "{\"question\": \"2+2?\", \"answer\": 4, \"score\": 0.5}\n";
  const Read r = read(text, DataFormat::kJsonl, templates("Q: {question} {{!}}\nA:", " {answer}"));
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.examples[0].prompt, "Q: 2+2? {!}\nA:");
  EXPECT_EQ(r.examples[0].completion, " 4");
  EXPECT_HAS(read(text, DataFormat::kJsonl, templates("{qestion}", "{answer}")).error,
             "file:1: no column 'qestion' (data.prompt_template); did you mean 'question'?; there are: "
             "answer, question");
  EXPECT_HAS(read(text, DataFormat::kJsonl, templates("{question}", "{score}")).error,
             "\"score\": expected a string, got a number");
  for (const char* bad : {"{", "a } b", "{}", "{a{b}}"})
    EXPECT_HAS(read(text, DataFormat::kJsonl, templates(bad, "x")).error, "data.prompt_template") << bad;
}

TEST(Reader, Csv) {
  const Read r =
      read("mr,ref\r\n\"name[A], area[B]\",\"He said \"\"hi\"\"\r\nthere\"\r\nplain,x y\r\n\r\nlast,end",
           DataFormat::kCsv, templates("{mr}", "{ref}"));
  ASSERT_EQ(r.error, "");
  ASSERT_EQ(r.examples.size(), 3u);
  EXPECT_EQ(r.examples[0].prompt, "name[A], area[B]");
  EXPECT_EQ(r.examples[0].completion, "He said \"hi\"\r\nthere");
  EXPECT_EQ(r.examples[1].line, 4);
  EXPECT_EQ(r.examples[1].completion, "x y");
  EXPECT_EQ(r.examples[2].line, 6);
  EXPECT_EQ(r.examples[2].completion, "end");
  const auto t = templates("{1}", "{2}");
  EXPECT_HAS(read("a,b\nc,d\ne\n", DataFormat::kCsv, t).error, "file:3: expected 2 columns, got 1");
  EXPECT_HAS(read("a,b\n\"c,d\n", DataFormat::kCsv, t).error, "file:2: a quote is opened and never closed");
  EXPECT_HAS(read("a,b\n\"c\"x,d\n", DataFormat::kCsv, t).error,
             "file:2: text after a closing quote in column 1");
  EXPECT_HAS(read("a,a\nc,d\n", DataFormat::kCsv, t).error, "file:1: column 'a' stands twice");
  EXPECT_HAS(read("a,b\nc,d\n", DataFormat::kCsv, templates("{a}", "{ref}")).error, "no column 'ref'");
}

TEST(Reader, TsvHasNoQuotingAndKeepsOddSpaces) {
  DataConfig config = templates("{2}", "{1}");
  config.columns = {"label", "text"};
  const Read r = read("0\t\"quoted\" and\xc2\x85next\xe2\x80\xa8 line\n1\tb ", DataFormat::kTsv, config);
  ASSERT_EQ(r.error, "");
  ASSERT_EQ(r.examples.size(), 2u);
  EXPECT_EQ(r.examples[0].prompt, "\"quoted\" and\xc2\x85next\xe2\x80\xa8 line");
  EXPECT_EQ(r.examples[1].prompt, "b ");
  EXPECT_HAS(read("0\ta\nmissing tab\n", DataFormat::kTsv, config).error,
             "file:2: expected 2 columns, got 1");
  config.header = Tristate::kYes;
  EXPECT_EQ(read("x\ty\n0\ta\n", DataFormat::kTsv, config).examples.size(), 1u);
  config.columns.clear();
  config.header = Tristate::kNo;
  EXPECT_EQ(read("x\ty\n0\ta\n", DataFormat::kTsv, config).examples.size(), 2u);
}

TEST(Reader, LinesWithALabelMap) {
  DataConfig config = templates("Review: {text}\nSentiment:", "{label}");
  config.label_map = {{"0", " negative"}, {"1", " positive"}};
  const Read r = read("0 so bad .\r\n1 so  good", DataFormat::kLines, config);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.examples[0].prompt, "Review: so bad .\nSentiment:");
  EXPECT_EQ(r.examples[0].completion, " negative");
  EXPECT_EQ(r.examples[1].prompt, "Review: so  good\nSentiment:");
  EXPECT_HAS(read("0 x\n2 y\n", DataFormat::kLines, config).error,
             "file:2: label \"2\" is not in data.label_map; it has: 0, 1");
  EXPECT_HAS(read("0 x\nnospace\n", DataFormat::kLines, config).error,
             "file:2: expected \" \" after {label}");
  config.label_map.clear();
  config.line_pattern = "{label}:{fine} {text}";
  EXPECT_EQ(read("DESC:manner How ?\n", DataFormat::kLines, config).examples.at(0).completion, "DESC");
  config.line_pattern = "{label}{text}";
  EXPECT_HAS(read("0 x\n", DataFormat::kLines, config).error, "no text between");
}

TEST(Reader, BytesThatAreNoText) {
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_HAS(read("").error, "the file is empty");
  EXPECT_HAS(read("\n \n").error, "no items");
  EXPECT_EQ(read("\xef\xbb\xbf" + good).examples.size(), 1u);
  EXPECT_HAS(read("\xff\xfe{").error, "UTF-16");
  EXPECT_HAS(read(good + std::string(1, '\0') + good).error, "file:2: a NUL byte at byte 14");
  EXPECT_HAS(
      read(good + "{\"text\": \"caf\xe9\"}").error,
      "file:2: not UTF-8 at byte 27 of the file (0xe9); if the file is Latin-1, set data.encoding=latin1");
  DataConfig config;
  config.encoding = TextEncoding::kLatin1;
  EXPECT_EQ(read("{\"text\": \"caf\xe9\"}", DataFormat::kJsonl, config).examples.at(0).completion,
            "caf\xc3\xa9");
  EXPECT_HAS(read("{\"text\": \"" + std::string((16 << 20) + 1, 'x') + "\"}").error, "file:1: a line of");
}

TEST(Reader, FormatOfFileNames) {
  EXPECT_EQ(format_of("a.jsonl"), DataFormat::kJsonl);
  EXPECT_EQ(format_of("a.csv"), DataFormat::kCsv);
  EXPECT_THROW(format_of("a.txt"), Error);
  DataReport report;
  EXPECT_THROW(read_examples("no/such.jsonl", {}, report), Error);
}

}  // namespace
}  // namespace gantrain
