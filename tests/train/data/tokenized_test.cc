#include "train/data/tokenized.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/check.h"
#include "tests/support/paths.h"

namespace gantrain {
namespace {

using Ids = std::vector<int32_t>;

// Ids 0..255 are bytes; the words after them win over bytes, the longest first; those before `specials` in
// the list are special: recognised in trusted ranges only.
class ToyTokenizer : public Tokenizer {
 public:
  ToyTokenizer() {
    words_ = {"<s>", "<|im_start|>", "<|im_end|>", " good", " bad", ": ", "word", "st"};
    info_.vocab_size = 256 + static_cast<int64_t>(words_.size());
    info_.bos = 256;
    info_.eos = 256;  // not what ends a chat's turn
    info_.end_ids = {258};
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (const int32_t id : ids) out += token_text(id);
    return out;
  }
  std::string decode_text(std::span<const int32_t> ids, bool skip) const override {
    return decode(ids, skip);
  }
  std::string token_text(int32_t id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : words_.at(static_cast<size_t>(id - 256));
  }
  std::optional<int32_t> find_token(std::string_view spelling) const override {
    for (size_t i = 0; i < words_.size(); ++i)
      if (words_[i] == spelling) return 256 + static_cast<int32_t>(i);
    return std::nullopt;
  }
  std::optional<int32_t> special_id(std::string_view text) const override {
    const auto id = find_token(text);
    return id && *id < 256 + kSpecials ? id : std::nullopt;
  }

 protected:
  std::vector<int32_t> encode_text(std::string_view text, Trusted trusted) const override {
    Ids ids;
    for (size_t at = 0; at < text.size();) {
      size_t best = 0;
      int32_t id = static_cast<unsigned char>(text[at]);
      for (size_t i = 0; i < words_.size(); ++i) {
        const std::string& word = words_[i];
        const bool allowed =
            i >= kSpecials || std::any_of(trusted.begin(), trusted.end(), [&](const auto& range) {
              return at >= range.first && at + word.size() <= range.second;
            });
        if (allowed && word.size() > best && text.substr(at).starts_with(word)) {
          best = word.size();
          id = 256 + static_cast<int32_t>(i);
        }
      }
      ids.push_back(id);
      at += std::max<size_t>(best, 1);
    }
    return ids;
  }

 private:
  static constexpr int32_t kSpecials = 3;
  std::vector<std::string> words_;
};

constexpr int32_t kGood = 259, kEnd = 258, kBos = 256, kEos = 256;

Example example(const std::string& prompt, const std::string& completion) {
  Example e;
  e.prompt = prompt;
  e.completion = completion;
  e.line = 1;
  return e;
}

TEST(Tokenized, CompletionFollowsThePromptAndEnds) {
  const ToyTokenizer tokenizer;
  DataReport report;
  Example first = example("S=", " good");
  first.references = {" fine"};
  const auto items = tokenize_examples({first}, tokenizer, {}, 0, report);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].prompt, (Ids{'S', '='}));
  EXPECT_EQ(items[0].completion, (Ids{kGood, kEos}));
  EXPECT_EQ(items[0].references, (std::vector<std::string>{" good", " fine"}));
  EXPECT_EQ(items[0].prompt_text, "S=");
  EXPECT_EQ(report.kept, 1);
  EXPECT_EQ(report.prompt_tokens, 2);
  EXPECT_EQ(report.longest_completion, 2);
  EXPECT_TRUE(report.changed.empty());
  DataConfig config;
  config.add_bos = Tristate::kYes;
  config.append_eos = false;
  const auto bare = tokenize_examples({first}, tokenizer, config, 0, report);
  EXPECT_EQ(bare[0].prompt, (Ids{kBos, 'S', '='}));
  EXPECT_EQ(bare[0].completion, (Ids{kGood}));
  EXPECT_EQ(tokenize_prompt("S=", tokenizer, config), bare[0].prompt);
}

TEST(Tokenized, SpacesAtTheBoundaryBelongToTheCompletion) {
  const ToyTokenizer tokenizer;
  DataReport report;
  const auto items =
      tokenize_examples({example("S: ", "good"), example("S:", " good")}, tokenizer, {}, 0, report);
  EXPECT_EQ(items[0].prompt, items[1].prompt);
  EXPECT_EQ(items[0].completion, items[1].completion);
  // ": " is a token of "S: good" that spans the boundary.
  const auto spanning = tokenize_examples({example("S:", " xgood")}, tokenizer, {}, 0, report);
  EXPECT_EQ(spanning[0].prompt, (Ids{'S', ':'}));
  EXPECT_EQ(tokenizer.decode(spanning[0].completion, false), " xgood<s>");
  EXPECT_EQ(report.changed.at("spaces moved from the prompt's end to the completion").items, 1);
  EXPECT_EQ(report.changed.at("a token spans the end of the prompt: encoded apart").items, 3);
}

TEST(Tokenized, LimitsAreCounted) {
  const ToyTokenizer tokenizer;
  DataConfig config;
  config.max_prompt_tokens = 4;
  config.max_completion_tokens = 3;
  DataReport report;
  const auto items = tokenize_examples({example("abcde", "x"), example("abcd", "xyz"), example("a", "wxyz")},
                                       tokenizer, config, 7, report);
  ASSERT_EQ(items.size(), 1u);                           // "abcd" + "xyz" + end is 8 positions
  EXPECT_EQ(items[0].completion, (Ids{'w', 'x', 'y'}));  // cut: no end token
  EXPECT_EQ(report.dropped.at("prompt longer than data.max_prompt_tokens").items, 1);
  EXPECT_EQ(report.dropped.at("longer than the model's positions").items, 1);
  EXPECT_EQ(report.changed.at("completion cut at data.max_completion_tokens").items, 1);
  EXPECT_EQ(report.kept, 1);
}

TEST(Tokenized, Chat) {
  const ToyTokenizer tokenizer;
  DataConfig config;
  config.chat_template = ChatTemplateChoice::kChatML;
  DataReport report;
  Example chat;
  chat.messages = {{"user", "q<|im_end|>"}};
  chat.completion = "word";
  const auto items = tokenize_examples({chat, example("q<|im_end|>", "word")}, tokenizer, config, 0, report);
  EXPECT_EQ(tokenizer.decode(items[0].prompt, false),
            "<|im_start|>user\nq<|im_end|><|im_end|>\n<|im_start|>assistant\n");
  // What the user wrote is no special token; the template's are.
  EXPECT_EQ(std::count(items[0].prompt.begin(), items[0].prompt.end(), kEnd), 1);
  EXPECT_EQ(items[0].completion, (Ids{262, kEnd}));
  EXPECT_EQ(items[1].prompt, items[0].prompt);
  EXPECT_EQ(items[1].completion, items[0].completion);
  EXPECT_EQ(tokenize_prompt("q<|im_end|>", tokenizer, config), items[0].prompt);
  EXPECT_EQ(items[0].prompt_text, "q<|im_end|>");
  config.system = "S";
  EXPECT_TRUE(tokenizer.decode(tokenize_prompt("q", tokenizer, config), false)
                  .starts_with("<|im_start|>system\nS<|im_end|>\n"));
  config.chat_template = ChatTemplateChoice::kAuto;
  EXPECT_THROW(tokenize_prompt("q", tokenizer, config), Error);
}

// A real SentencePiece vocabulary: no second space before the completion, and the whole text's own ids.
TEST(Tokenized, SentencePieceBoundary) {
  GT_SKIP_WITHOUT_DATA("ci/stories260K/tok512.model");
  const auto tokenizer = open_tokenizer((test::data_folder() / "ci/stories260K/tok512.model").string());
  DataReport report;
  const auto items =
      tokenize_examples({example("Once upon a time", " there was a girl"), example("Once upon a ti", "me.")},
                        *tokenizer, {}, 0, report);
  Ids whole = items[0].prompt;
  whole.insert(whole.end(), items[0].completion.begin(), items[0].completion.end() - 1);
  const Ids expected = tokenizer->encode("Once upon a time there was a girl");
  EXPECT_EQ(items[0].prompt[0], *tokenizer->bos());
  EXPECT_EQ(Ids(whole.begin() + 1, whole.end()), expected);
  Ids apart = items[1].prompt;
  apart.insert(apart.end(), items[1].completion.begin(), items[1].completion.end() - 1);
  EXPECT_EQ(tokenizer->decode(std::span(apart).subspan(1)), "Once upon a time.");
}

}  // namespace
}  // namespace gantrain
