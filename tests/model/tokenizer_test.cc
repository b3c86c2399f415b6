// Tokenizers on cases small enough to work out by hand, and on files made to do harm.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/check.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/byte_token.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/tokenize_command.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"
#include "tests/support/paths.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<int32_t>;

// A folder that goes away with the test.
class TokenizerFiles : public ::testing::Test {
 protected:
  TokenizerFiles() {
    folder_ = fs::temp_directory_path() / ("gantrain_tokenizer_" + std::to_string(::getpid()) + "_" +
                                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  ~TokenizerFiles() override { fs::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return (folder_ / name).string();
  }
  std::unique_ptr<Tokenizer> open(const json& spec) {
    return open_tokenizer(write("tokenizer.json", spec.dump()));
  }
  std::string refusal(const std::string& path) {
    return message([&] { open_tokenizer(path); });
  }
  std::string refusal(const json& spec) { return refusal(write("tokenizer.json", spec.dump())); }
  // What the Error says; empty where there was none.
  static std::string message(const std::function<void()>& run) {
    try {
      run();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  fs::path folder_;
};

// a, b, c, then ab, abc, bc; merges "b c" first, "a b" next, "ab c" last.
json tiny() {
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"model",
           {{"type", "BPE"},
            {"vocab", {{"a", 0}, {"b", 1}, {"c", 2}, {"bc", 3}, {"ab", 4}, {"abc", 5}}},
            {"merges", {"b c", "a b", "ab c"}}}},
          {"decoder", {{"type", "Fuse"}}}};
}

json added(int id, const char* content, bool special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

json split(const char* pattern, const char* behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", invert}};
}

// Byte-level with no merges: one id a byte, the byte itself.
json bytes_only() {
  json vocab = json::object();
  for (int b = 0; b < 256; ++b) vocab[byte_level::encode(std::string(1, static_cast<char>(b)))] = b;
  return {
      {"added_tokens", json::array()},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
}

TEST(Utf8, FindsTheFirstByteThatIsNone) {
  EXPECT_EQ(utf8::find_invalid(""), std::string::npos);
  EXPECT_EQ(utf8::find_invalid("a\u00e9\u4f60\U0001f600"), std::string::npos);
  EXPECT_EQ(utf8::find_invalid("ab\xff"), 2u);
  EXPECT_EQ(utf8::find_invalid("\xc0\x80"), 0u);          // overlong
  EXPECT_EQ(utf8::find_invalid("a\xed\xa0\x80"), 1u);     // surrogate
  EXPECT_EQ(utf8::find_invalid("\xf4\x90\x80\x80"), 0u);  // past U+10FFFF
  EXPECT_EQ(utf8::find_invalid("ok\xe4\xbd"), 2u);        // cut off
}

TEST(Utf8, LossyWritesOneMarkAMaximalInvalidPart) {
  EXPECT_EQ(utf8::lossy("a\xff\xfe"), "a\ufffd\ufffd");
  EXPECT_EQ(utf8::lossy("\xe4\xbd"), "\ufffd");  // the start of a character
  EXPECT_EQ(utf8::lossy("\xf0\x9f\x98z"), "\ufffdz");
  EXPECT_EQ(utf8::lossy("\xed\xa0\x80"), "\ufffd\ufffd\ufffd");
}

TEST(ByteLevelAlphabet, IsGpt2s) {
  EXPECT_EQ(byte_level::alphabet()['!'], 0x21u);
  EXPECT_EQ(byte_level::alphabet()[' '], 0x120u);
  EXPECT_EQ(byte_level::alphabet()['\n'], 0x10au);
  EXPECT_EQ(byte_level::alphabet()[0xad], 0x143u);
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    EXPECT_EQ(byte_level::decode(byte_level::encode(byte)), byte);
  }
  EXPECT_EQ(byte_level::decode("\u4f60"), "\u4f60");  // outside the alphabet: its own text
}

std::vector<std::string> pieces(const Pattern& pattern, const std::string& text) {
  std::vector<std::string> out;
  for (const auto& [begin, end] : pattern.find_all(text)) out.push_back(text.substr(begin, end - begin));
  return out;
}

TEST(PatternTest, ReadsClassesAsOnigurumaDoes) {
  // U+180E is no white space for Unicode 6.3 and later; PCRE2's own \s takes it.
  EXPECT_EQ(pieces(Pattern::regex("\\s+", "test"), "a \u3000\u0085b\u180ec"),
            (std::vector<std::string>{" \u3000\u0085"}));
  // Letters and digits that Unicode 15 and 16 assigned.
  EXPECT_EQ(pieces(Pattern::regex("\\p{L}+", "test"), "\u1c89\U0002ebf0 x"),
            (std::vector<std::string>{"\u1c89\U0002ebf0", "x"}));
  EXPECT_EQ(pieces(Pattern::regex("[^\\s\\p{L}\\p{N}]+", "test"), "a1!?\U00010d40"),
            (std::vector<std::string>{"!?"}));
  EXPECT_EQ(pieces(Pattern::regex("x*", "test"), "axxb"),
            (std::vector<std::string>{"xx"}));  // empty ones left out
  EXPECT_EQ(pieces(Pattern::literal("aa"), "aaaaa"), (std::vector<std::string>{"aa", "aa"}));
}

TEST(PatternTest, RefusesWhatTheTwoEnginesReadDifferently) {
  for (const char* bad : {"\\h", "[a&&b]", "[[a]b]", "a{2}+", "(?m:.)", "(?<name>a)", "\\p{Han}", "[\\S]",
                          "\\", "[a", "a{x}", "\\x41", "(?:a"}) {
    EXPECT_THROW(Pattern::regex(bad, "here"), Error) << bad;
  }
}

TEST_F(TokenizerFiles, MergesByRankThenFromTheLeft) {
  const auto t = open(tiny());
  EXPECT_EQ(t->encode("abc"), (Ids{0, 3}));  // b c ranks before a b
  EXPECT_EQ(t->encode("abab"), (Ids{4, 4}));
  EXPECT_EQ(t->encode("aabcc"), (Ids{0, 0, 3, 2}));
  EXPECT_EQ(t->encode(""), Ids{});
  EXPECT_EQ(t->encode("axb"), (Ids{4}));  // no unk: what has no token vanishes, as in the reference
  EXPECT_EQ(t->decode(Ids{0, 3}), "abc");
  EXPECT_EQ(t->vocab_size(), 6);
  EXPECT_EQ(t->find_token("abc"), 5);
  EXPECT_EQ(t->special_id("abc"), std::nullopt);
}

TEST_F(TokenizerFiles, ReadsBothSpellingsOfMerges) {
  json spec = tiny();
  spec["model"]["merges"] = json::parse(R"([["b", "c"], ["a", "b"], ["ab", "c"]])");
  EXPECT_EQ(open(spec)->encode("abcab"), (Ids{0, 3, 4}));
}

TEST_F(TokenizerFiles, IgnoreMergesTakesWholePieces) {
  json spec = tiny();
  spec["model"]["ignore_merges"] = true;
  EXPECT_EQ(open(spec)->encode("abc"), (Ids{5}));
  // But never a special token: text must not become one.
  spec["added_tokens"] = {added(5, "abc")};
  EXPECT_EQ(open(spec)->encode("abc"), (Ids{0, 3}));
  EXPECT_EQ(open(spec)->encode("abc", true), (Ids{5}));
}

TEST_F(TokenizerFiles, UnknownCharactersAndByteFallback) {
  json spec = tiny();
  spec["model"]["vocab"]["<unk>"] = 6;
  spec["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(open(spec)->encode("axyb"), (Ids{0, 6, 6, 1}));
  spec["model"]["fuse_unk"] = true;
  EXPECT_EQ(open(spec)->encode("axyb"), (Ids{0, 6, 1}));
  spec["model"]["byte_fallback"] = true;
  spec["model"]["vocab"]["<0xC3>"] = 7;
  spec["model"]["vocab"]["<0xA9>"] = 8;
  EXPECT_EQ(open(spec)->encode("a\u00e9b"), (Ids{0, 7, 8, 1}));
  EXPECT_EQ(open(spec)->encode("a\u00e8b"), (Ids{0, 6, 1}));  // only one of its bytes is there
  spec["decoder"] = {{"type", "ByteFallback"}};
  EXPECT_EQ(open(spec)->decode(Ids{7, 8, 7}), "\u00e9\xc3");
  EXPECT_EQ(open(spec)->decode_text(Ids{7, 8, 7}), "\ufffd\ufffd\ufffd");  // the run as a whole is no UTF-8
  EXPECT_EQ(open(spec)->decode_text(Ids{7, 8, 0, 7}), "\u00e9a\ufffd");
}

TEST_F(TokenizerFiles, SpecialTokensOnlyWhereAllowed) {
  json spec = bytes_only();
  spec["added_tokens"] = {added(256, "<|end|>"), added(257, "<|end|>!", false)};
  const auto t = open(spec);
  EXPECT_EQ(t->encode("<|end|>").size(), 7u);
  EXPECT_EQ(t->encode("a<|end|>b", true), (Ids{'a', 256, 'b'}));
  EXPECT_EQ(t->encode("<|end|>!", true), (Ids{257}));  // the longest that starts there
  EXPECT_EQ(t->decode(Ids{'a', 256, 257}), "a<|end|><|end|>!");
  EXPECT_EQ(t->decode(Ids{'a', 256, 257}, true), "a<|end|>!");
  EXPECT_EQ(t->special_id("<|end|>"), 256);
  // Across a border of trust nothing is recognised.
  EXPECT_EQ(t->encode_parts(std::vector<TextPart>{{"<|e", true}, {"nd|>", false}}).size(), 7u);
  EXPECT_EQ(t->encode_parts(std::vector<TextPart>{{"<|e", true}, {"nd|>", true}}), (Ids{256}));
  EXPECT_EQ(t->encode_parts(std::vector<TextPart>{{"<|end|>", true}, {"<|end|>", false}}).size(), 8u);
}

TEST_F(TokenizerFiles, AddedTokensStripAndKeepToWords) {
  json spec = bytes_only();
  json strip = added(256, "[x]");
  strip["lstrip"] = strip["rstrip"] = true;
  json word = added(257, "word");
  word["single_word"] = true;
  spec["added_tokens"] = {strip, word};
  const auto t = open(spec);
  EXPECT_EQ(t->encode("a \u3000[x]\n b", true), (Ids{'a', 256, 'b'}));
  EXPECT_EQ(t->encode("word!", true), (Ids{257, '!'}));
  EXPECT_EQ(t->encode("words", true).size(), 5u);
  EXPECT_EQ(t->encode("_word", true).size(), 5u);
}

TEST_F(TokenizerFiles, SplitsInEveryWay) {
  // Whether two neighbours merge shows where the text was cut: "ab" is a token, "ba" is not.
  json spec = tiny();
  const auto ids = [&](const char* behavior, bool invert) {
    spec["pre_tokenizer"] = split("a", behavior, invert);
    return open(spec)->encode("abcab");
  };
  EXPECT_EQ(ids("Isolated", false), (Ids{0, 3, 0, 1}));
  EXPECT_EQ(ids("Removed", false), (Ids{3, 1}));
  EXPECT_EQ(ids("Removed", true), (Ids{0, 0}));
  EXPECT_EQ(ids("MergedWithNext", false), (Ids{0, 3, 4}));
  EXPECT_EQ(ids("MergedWithPrevious", false), (Ids{0, 3, 0, 1}));
  EXPECT_EQ(ids("Contiguous", false), (Ids{0, 3, 0, 1}));
}

TEST_F(TokenizerFiles, Llama3CutsNumbersByThreeAndDigitsOneByOne) {
  json spec = bytes_only();
  json& vocab = spec["model"]["vocab"];
  vocab["12"] = 256;
  vocab["123"] = 257;
  vocab["34"] = 258;
  spec["model"]["merges"] = {"3 4", "1 2", "12 3"};
  spec["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split("\\p{N}{1,3}|[^\\p{N}]+", "Isolated"),
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}}}};
  EXPECT_EQ(open(spec)->encode("1234"), (Ids{257, '4'}));
  spec["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_EQ(open(spec)->encode("a1234"), (Ids{'a', '1', '2', '3', '4'}));
  spec["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_EQ(open(spec)->encode("a1234"), (Ids{'a', 256, 258}));
}

TEST_F(TokenizerFiles, MetaspacePrependsAsAsked) {
  json spec = tiny();
  spec["model"]["vocab"] = {{"\u2581", 0}, {"a", 1}, {"\u2581a", 2}};
  spec["model"]["merges"] = {"\u2581 a"};
  spec["added_tokens"] = {added(3, "<s>")};
  const auto ids = [&](const char* scheme) {
    spec["pre_tokenizer"] = {
        {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", true}};
    return open(spec)->encode("a a<s>a", true);
  };
  EXPECT_EQ(ids("always"), (Ids{2, 2, 3, 2}));
  EXPECT_EQ(ids("first"), (Ids{2, 2, 3, 1}));
  EXPECT_EQ(ids("never"), (Ids{1, 2, 3, 1}));
  spec["decoder"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}, {"split", true}};
  EXPECT_EQ(open(spec)->decode(Ids{2, 2, 1}), "a aa");
}

TEST_F(TokenizerFiles, NormaliserAndItsDecoder) {
  json spec = tiny();
  spec["model"]["vocab"] = {{"\u2581", 0}, {"a", 1}, {"\u2581a", 2}};
  spec["model"]["merges"] = {"\u2581 a"};
  spec["normalizer"] = {{"type", "Sequence"},
                        {"normalizers",
                         {{{"type", "Prepend"}, {"prepend", "\u2581"}},
                          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}};
  spec["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  const auto t = open(spec);
  EXPECT_EQ(t->encode("a a"), (Ids{2, 2}));
  EXPECT_EQ(t->encode(""), Ids{});
  EXPECT_EQ(t->decode(Ids{2, 2}), "a a");
}

TEST_F(TokenizerFiles, BytesComeBackAsTheyAre) {
  const auto t = open(bytes_only());
  std::string all;
  for (int c = 0; c < 0x3000; ++c) utf8::append(all, static_cast<uint32_t>(c));
  EXPECT_EQ(t->decode(t->encode(all)), all);
  EXPECT_EQ(t->decode(Ids{0xe4, 0xbd}), "\xe4\xbd");
  EXPECT_EQ(t->decode_text(Ids{0xe4, 0xbd, 'a'}), "\ufffda");
  EXPECT_NE(message([&] { t->encode("abc\xff"); }).find("byte 3"), std::string::npos);
  EXPECT_NE(message([&] { t->decode(Ids{256}); }).find("[0, 256)"), std::string::npos);
  EXPECT_NE(message([&] { t->decode(Ids{-1}); }), "");
}

TEST(ByteToken, HasTwoCapitalDigits) {
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(byte_token(fmt::format("<0x{:02X}>", byte)), byte);
  for (const char* other : {"", "<0x>", "<0x0>", "<0x000>", "<0xab>", "<0xAg>", "<0X00>", "(0x00>", "<0x00)"})
    EXPECT_EQ(byte_token(other), -1) << other;
}

// Below U+0180 by a table, from there on by the vocabulary.
TEST_F(TokenizerFiles, EveryLowCharacterHasItsOwnId) {
  json vocab = json::object();
  std::string text;
  Ids ids;
  for (int32_t c = 1; c < 0x200; ++c) {
    std::string character;
    utf8::append(character, static_cast<uint32_t>(c));
    vocab[character] = c;
    text += character;
    ids.push_back(c);
  }
  const json file = {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  EXPECT_EQ(open_tokenizer(write("tokenizer.json", file.dump()))->encode(text), ids);
}

TEST_F(TokenizerFiles, LongRunsAreNotQuadratic) {
  json spec = tiny();
  std::string name = "a";
  int id = 10;
  json merges = json::array();
  for (int i = 0; i < 6; ++i) {
    merges.push_back(name + " " + name);
    name += name;
    spec["model"]["vocab"][name] = id++;
  }
  spec["model"]["merges"] = merges;
  const auto t = open(spec);
  const std::clock_t start = std::clock();  // of the process: a busy machine does not count
  EXPECT_EQ(t->encode(std::string(1 << 20, 'a')), Ids((1 << 20) / 64, id - 1));
  // Half a second here; quadratic would take hours.
  EXPECT_LT(std::clock() - start, 20 * CLOCKS_PER_SEC);
}

// Stages that multiply what the one before them made: memory and hours for a text of one letter.
TEST_F(TokenizerFiles, RefusesATextThatGrowsWithoutEnd) {
  const json grow = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(64, 'a')}};
  const auto sequence = [](const char* list, const json& step, size_t times) {
    return json{{"type", "Sequence"}, {list, json::array_t(times, step)}};
  };
  json spec = tiny();
  spec["normalizer"] = sequence("normalizers", grow, 2);
  EXPECT_EQ(open(spec)->encode("a"), Ids(64 * 64, 0));
  spec["normalizer"] = sequence("normalizers", grow, 20);
  const auto normalises = open(spec);
  EXPECT_NE(message([&] { normalises->encode("a"); }).find("normaliser makes more than 4112 bytes"),
            std::string::npos);

  spec = tiny();
  spec["decoder"] = sequence("decoders", grow, 20);
  const auto decodes = open(spec);
  EXPECT_NE(message([&] { decodes->decode(Ids{0}); }).find("decoder makes more than 4112 bytes"),
            std::string::npos);

  spec = tiny();
  spec["pre_tokenizer"] = sequence(
      "pretokenizers", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}, 40);
  const auto cuts = open(spec);
  EXPECT_NE(message([&] { cuts->encode("\u00e9"); }).find("pre-tokenizer makes more than 4128 bytes"),
            std::string::npos);
}

TEST_F(TokenizerFiles, RefusesByNameWhatItDoesNotDo) {
  const auto with = [](const char* key, json value) {
    json spec = tiny();
    spec[key] = std::move(value);
    return spec;
  };
  const auto model = [](const char* key, json value) {
    json spec = tiny();
    spec["model"][key] = std::move(value);
    return spec;
  };
  const std::vector<std::pair<json, std::string>> cases = {
      {with("pre_tokenizer", {{"type", "BertPreTokenizer"}}),
       "pre_tokenizer: type 'BertPreTokenizer' is not supported"},
      {with("normalizer", {{"type", "NFC"}}),
       "normalizer: type 'NFC' is not supported; supported: Sequence, Prepend"},
      {with("decoder", {{"type", "WordPiece"}}), "decoder: type 'WordPiece'"},
      {with("post_processor", {{"type", "BertProcessing"}}), "post_processor: type 'BertProcessing'"},
      {with("truncation", {{"max_length", 3}}), "truncation"},
      {with("surprise", 1), "the setting 'surprise' is not supported"},
      {model("type", "WordPiece"), "model: type 'WordPiece'"},
      {model("dropout", 0.1), "model.dropout"},
      {model("continuing_subword_prefix", "##"), "continuing_subword_prefix"},
      {model("end_of_word_suffix", "</w>"), "end_of_word_suffix"},
      {model("unk_token", "<unk>"), "'<unk>' is not in the vocabulary"},
      {model("merges", {"a x"}), "merge 0 needs the token 'x'"},
      {model("merges", {"a"}), "merges[0]"},
      {model("merges", {"a b c"}), "merges[0]"},
      {model("merges", {{"a", "b", "c"}}), "merges[0]"},
      {model("merges", {"a c"}), "'ac'"},
      {model("vocab", {{"a", -1}}), "outside [0"},
      {model("vocab", {{"a", 1ull << 40}}), "outside [0"},
      {model("vocab", {{"a", "b"}}), "expected an integer"},
      {model("vocab", {{"a", 1}, {"b", 1}}), "has it already"},
      {with("added_tokens", {added(9, "a")}), "'a' has id 9 here and 0"},
      {with("added_tokens", {added(9, "")}), "must not be empty"},
      {with("pre_tokenizer", split("(?m:x)", "Isolated")), "not supported"},
      {with("pre_tokenizer", split("x", "Sideways")), "Sideways"},
  };
  for (const auto& [spec, text] : cases) {
    const std::string said = refusal(spec);
    EXPECT_NE(said.find(text), std::string::npos) << "wanted: " << text << "\ngot: " << said;
    EXPECT_NE(said.find("tokenizer.json"), std::string::npos) << said;
  }
  EXPECT_NE(refusal(write("tokenizer.json", "{")).find("not valid JSON"), std::string::npos);
  EXPECT_NE(refusal(write("tokenizer.json", R"({"model": {}, "model": {}})")).find("'model' stands twice"),
            std::string::npos);
  EXPECT_NE(refusal(write("tokenizer.json", std::string(100, '['))).find("nested deeper"), std::string::npos);
  EXPECT_NE(refusal(write("tokenizer.json", "[]")), "");
  EXPECT_NE(refusal(write("tokenizer.json", "{}")).find("no 'model'"), std::string::npos);
  EXPECT_NE(refusal((folder_ / "nothing.json").string()).find("no such file"), std::string::npos);
}

TEST_F(TokenizerFiles, FolderSettings) {
  json spec = bytes_only();
  spec["added_tokens"] = {added(256, "<s>"), added(257, "</s>"), added(258, "<|eot_id|>")};
  write("tokenizer.json", spec.dump());
  write("tokenizer_config.json",
        R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true,
    "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]})");
  write("generation_config.json", R"({"eos_token_id": [257, 7], "bos_token_id": 256})");
  const auto t = open_tokenizer(folder_.string());
  EXPECT_EQ(t->bos(), 256);
  EXPECT_EQ(t->eos(), 257);
  EXPECT_TRUE(t->adds_bos());
  EXPECT_EQ(t->end_ids(), (Ids{7, 257, 258}));
  EXPECT_EQ(t->chat_template(), "yes");
  write("generation_config.json", R"({"eos_token_id": 100000})");
  EXPECT_NE(refusal(folder_.string()).find("eos_token_id"), std::string::npos);
}

TEST_F(TokenizerFiles, TemplateThatStartsWithBosIsNotedNotApplied) {
  json spec = bytes_only();
  spec["added_tokens"] = {added(256, "<s>")};
  spec["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", json::array()},
      {"special_tokens", json::object()}};
  const auto t = open(spec);
  EXPECT_TRUE(t->adds_bos());
  EXPECT_EQ(t->bos(), 256);
  EXPECT_EQ(t->encode("a"), (Ids{'a'}));
}

// llama2.c's tokenizer.bin with the tokens given behind the 259 that every such file starts with.
std::string llama2c(const std::vector<std::pair<std::string, float>>& tokens) {
  std::string out;
  const auto put = [&](auto value) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const auto token = [&](const std::string& text, float score) {
    put(score);
    put(static_cast<int32_t>(text.size()));
    out += text;
  };
  put(int32_t{27});
  token("<unk>", 0);
  token("\n<s>\n", 0);
  token("\n</s>\n", 0);
  for (int b = 0; b < 256; ++b) token(fmt::format("<0x{:02X}>", b), 0);
  for (const auto& [text, score] : tokens) token(text, score);
  return out;
}

TEST_F(TokenizerFiles, Llama2cMergesTheBestScore) {
  const std::string file = llama2c({{" ", -9}, {"a", -9}, {"b", -9}, {"ab", -2}, {" a", -1}, {"bb", -2}});
  const auto t = open_tokenizer(write("tokenizer.bin", file));
  EXPECT_EQ(t->encode("ab"), (Ids{263, 261}));        // " a" is better than "ab"
  EXPECT_EQ(t->encode("bbb"), (Ids{259, 264, 261}));  // of two equals the left one
  EXPECT_EQ(t->encode("\u00e9"), (Ids{259, 3 + 0xc3, 3 + 0xa9}));
  EXPECT_EQ(t->encode(""), Ids{});
  EXPECT_EQ(t->encode("<s>b", true), (Ids{1, 259, 261}));
  EXPECT_EQ(t->decode(Ids{1, 259, 261}, true), "b");
  EXPECT_EQ(t->decode(Ids{263, 259, 261}), "a b");
  EXPECT_EQ(t->decode(Ids{3 + 0xc3}), "\xc3");
  EXPECT_EQ(t->decode_text(Ids{3 + 0xc3, 261}), "\ufffdb");
  EXPECT_TRUE(t->adds_bos());
  EXPECT_EQ(t->end_ids(), (Ids{2}));
}

TEST_F(TokenizerFiles, HostileLlama2cFiles) {
  const std::string good = llama2c({{"a", -1}});
  for (size_t n = 0; n < good.size(); n += n + 40 < good.size() ? 29 : 1) {
    // Cut anywhere but behind the 259th token, the file is refused.
    const std::string said = refusal(write("tokenizer.bin", good.substr(0, n)));
    EXPECT_EQ(said.empty(), n == good.size() - 9) << n << ": " << said;
  }
  std::string long_token = good;
  const int32_t huge = 1 << 30;
  std::memcpy(long_token.data() + 8, &huge, 4);
  EXPECT_NE(refusal(write("tokenizer.bin", long_token)).find("token 0"), std::string::npos);
  std::string no_number = good;
  const float nan = std::nanf("");
  std::memcpy(no_number.data() + 4, &nan, 4);
  EXPECT_NE(refusal(write("tokenizer.bin", no_number)).find("no finite score"), std::string::npos);
}

TEST_F(TokenizerFiles, HostileModelFiles) {
  EXPECT_NE(refusal(write("tokenizer.model", "")).find("empty"), std::string::npos);
  EXPECT_NE(refusal(write("tokenizer.model", "garbage garbage")).find("sentencepiece"), std::string::npos);
  EXPECT_NE(refusal(write("tokenizer.model", "IQ== 0\nIg== 1\n")).find("tiktoken"), std::string::npos);
  EXPECT_NE(refusal(write("x.txt", "a")).find("supported"), std::string::npos);
  EXPECT_NE(refusal(folder_.string()).find("tiktoken"), std::string::npos);  // the folder has only that
  fs::remove(folder_ / "tokenizer.model");
  EXPECT_NE(refusal(folder_.string()).find("neither tokenizer.json nor tokenizer.model"), std::string::npos);
}

TEST_F(TokenizerFiles, FindsTheTokenizerBesideALlama2cModel) {
  const std::string model = write("stories.bin", "weights");
  EXPECT_NE(refusal(model).find("no tokenizer beside it"), std::string::npos);
  write("tok1.bin", llama2c({{"a", -1}}));
  EXPECT_EQ(open_tokenizer(model)->vocab_size(), 260);
  write("tok2.bin", llama2c({{"a", -1}, {"b", -1}}));
  EXPECT_NE(refusal(model).find("several tokenizers"), std::string::npos);
  write("tokenizer.bin", llama2c({{"a", -1}, {"b", -1}}));
  EXPECT_EQ(open_tokenizer(model)->vocab_size(), 261);
}

TEST_F(TokenizerFiles, TheVerbAnswersLineByLine) {
  const std::string model = write("tokenizer.json", bytes_only().dump());
  std::istringstream in("\"ab\"\n\"\\u00e9\"\n\"\"\n");
  std::ostringstream out;
  EXPECT_EQ(tokenize_command({model, false, false}, in, out), 0);
  EXPECT_EQ(out.str(), "[97, 98]\n[195, 169]\n[]\n");
  std::istringstream ids("[97, 98]\n[195]\n[]");  // no newline at the end
  std::ostringstream text;
  EXPECT_EQ(tokenize_command({model, true, false}, ids, text), 0);
  EXPECT_EQ(text.str(), "\"ab\"\n\"\ufffd\"\n\"\"\n");
  const auto said = [&](bool decode, const std::string& lines) {
    return message([&] {
      std::istringstream bad(lines);
      std::ostringstream ignored;
      tokenize_command({model, decode, false}, bad, ignored);
    });
  };
  EXPECT_NE(said(false, "\"a\"\nabc\n").find("line 2: the text: not valid JSON"), std::string::npos);
  EXPECT_NE(said(true, std::string(100, '[') + std::string(100, ']')).find("nested deeper"),
            std::string::npos);
  EXPECT_NE(said(false, "\"a\"\n\n\"b\"\n").find("line 2"), std::string::npos);
  EXPECT_NE(said(false, "[1]\n").find("line 1: expected a JSON string"), std::string::npos);
  EXPECT_NE(said(false, "\"\\ud800\"\n").find("line 1"), std::string::npos);
  EXPECT_NE(said(true, "[1]\n[256]\n").find("line 2: token id 256"), std::string::npos);
  EXPECT_NE(said(true, "[-1]\n").find("line 1"), std::string::npos);
  EXPECT_NE(said(true, "[1.5]\n").find("line 1"), std::string::npos);
  EXPECT_NE(said(true, "[99999999999999999999]\n").find("line 1"), std::string::npos);
  EXPECT_NE(said(true, "[18446744073709551615]\n").find("line 1"), std::string::npos);
}

TEST(StoriesTokenizer, BothFilesOfOneTokenizerAgree) {
  GT_SKIP_WITHOUT_DATA("ci/stories260K");
  const auto folder = test::data_folder() / "ci/stories260K";
  const auto model = open_tokenizer((folder / "tok512.model").string());
  const auto bin = open_tokenizer((folder / "tok512.bin").string());
  const auto beside = open_tokenizer((folder / "stories260K.bin").string());
  const std::string text = "Once upon a time, there was a little girl named Lily. \u00e9\u4f60!";
  EXPECT_EQ(model->encode(text), bin->encode(text));
  EXPECT_EQ(beside->encode(text), bin->encode(text));
  EXPECT_EQ(model->decode(model->encode(text)), text);
  EXPECT_EQ(model->token_text(1), "<s>");
  EXPECT_EQ(model->bos(), 1);
  EXPECT_EQ(model->end_ids(), (Ids{2}));
}

}  // namespace
}  // namespace gantrain
