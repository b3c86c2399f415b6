#include "train/data/tokenized.h"

#include <algorithm>
#include <optional>
#include <span>

#include "core/check.h"
#include "model/tokenizer/chat_template.h"

namespace gantrain {
namespace {

using Ids = std::vector<int32_t>;

bool starts_with(const Ids& whole, const Ids& head) {
  return whole.size() >= head.size() && std::equal(head.begin(), head.end(), whole.begin());
}

// The ids of `text` as they come behind other text. Tokenizers that put a space before a text's first word
// (SentencePiece) must not do so in the middle of one: the encoding of "\n" + text is taken without "\n".
Ids encode_behind(const Tokenizer& tokenizer, const std::string& text) {
  const Ids whole = tokenizer.encode("\n" + text), head = tokenizer.encode("\n");
  if (starts_with(whole, head))
    return Ids(whole.begin() + static_cast<std::ptrdiff_t>(head.size()), whole.end());
  return tokenizer.encode(text);
}

std::optional<ChatTemplate> chat_of(const DataConfig& config, const Tokenizer& tokenizer) {
  ChatTemplate chat;
  switch (config.chat_template) {
    case ChatTemplateChoice::kNone:
      return std::nullopt;
    case ChatTemplateChoice::kAuto:
      chat = detect_chat_template(tokenizer);
      if (chat.kind == ChatTemplateKind::kNone)
        fail(
            "data.chat_template = \"auto\": the model has no chat template; choose none, chatml, llama2 or "
            "llama3");
      return chat;
    case ChatTemplateChoice::kChatML:
      return chat_template_by_name("chatml");
    case ChatTemplateChoice::kLlama2:
      return chat_template_by_name("llama2");
    case ChatTemplateChoice::kLlama3:
      return chat_template_by_name("llama3");
  }
  return std::nullopt;
}

std::vector<ChatMessage> messages_of(const Example& example, const DataConfig& config) {
  std::vector<ChatMessage> messages;
  const bool own_system = !example.messages.empty() && example.messages.front().role == "system";
  if (!config.system.empty() && !own_system) messages.push_back({"system", config.system});
  for (const ChatTurn& turn : example.messages) messages.push_back({turn.role, turn.content});
  if (example.messages.empty()) messages.push_back({"user", example.prompt});
  return messages;
}

// BOS before a text that is no chat; chat templates bring their own.
void begin(Ids& ids, const Tokenizer& tokenizer, const DataConfig& config) {
  const bool wanted =
      config.add_bos == Tristate::kYes || (config.add_bos == Tristate::kAuto && tokenizer.adds_bos());
  if (!wanted) return;
  if (!tokenizer.bos()) fail("data.add_bos = \"true\": the tokenizer names no BOS token");
  ids.push_back(*tokenizer.bos());
}

int32_t end_token(const Tokenizer& tokenizer) {
  if (tokenizer.eos()) return *tokenizer.eos();
  if (!tokenizer.end_ids().empty()) return tokenizer.end_ids().front();
  fail("data.append_eos = true: the tokenizer names no end token; set data.append_eos=false");
}

struct Pair {
  Ids prompt, completion;      // the completion without an end token
  std::optional<int32_t> end;  // the end token that a chat template wrote itself
  bool moved_space = false, split_token = false;
};

Pair encode_plain(const Example& example, const Tokenizer& tokenizer, const DataConfig& config) {
  Pair pair;
  std::string prompt = example.prompt, completion = example.completion;
  const size_t end = prompt.find_last_not_of(' ') + 1;  // npos + 1 == 0: nothing but spaces
  if (end < prompt.size()) {
    completion.insert(0, prompt, end);
    prompt.resize(end);
    pair.moved_space = true;
  }
  begin(pair.prompt, tokenizer, config);
  const Ids head = tokenizer.encode(prompt), whole = tokenizer.encode(prompt + completion);
  pair.prompt.insert(pair.prompt.end(), head.begin(), head.end());
  if (starts_with(whole, head)) {
    pair.completion.assign(whole.begin() + static_cast<std::ptrdiff_t>(head.size()), whole.end());
  } else {
    pair.completion = encode_behind(tokenizer, completion);
    pair.split_token = true;
  }
  return pair;
}

Pair encode_as_chat(const Example& example, const Tokenizer& tokenizer, const ChatTemplate& chat,
                    const DataConfig& config) {
  Pair pair;
  std::vector<ChatMessage> messages = messages_of(example, config);
  pair.prompt = encode_chat(tokenizer, chat, messages, true);
  messages.push_back({"assistant", example.completion});
  const Ids whole = encode_chat(tokenizer, chat, messages, false);
  if (starts_with(whole, pair.prompt)) {
    pair.completion.assign(whole.begin() + static_cast<std::ptrdiff_t>(pair.prompt.size()), whole.end());
    const std::vector<int32_t>& ends = tokenizer.end_ids();
    const auto end = std::find_if(pair.completion.begin(), pair.completion.end(), [&](int32_t id) {
      return std::binary_search(ends.begin(), ends.end(), id);
    });
    if (end != pair.completion.end()) pair.end = *end;
    pair.completion.erase(end, pair.completion.end());
  } else {
    pair.completion = encode_behind(tokenizer, example.completion);
    pair.split_token = true;
  }
  return pair;
}

}  // namespace

std::vector<TokenizedExample> tokenize_examples(const std::vector<Example>& examples,
                                                const Tokenizer& tokenizer, const DataConfig& config,
                                                int64_t max_positions, DataReport& report) {
  const std::optional<ChatTemplate> chat = chat_of(config, tokenizer);
  std::vector<TokenizedExample> out;
  out.reserve(examples.size());
  for (const Example& example : examples) {
    // A plain text has no user's turn to wrap.
    const bool as_chat = chat && (!example.messages.empty() || !example.prompt.empty());
    Pair pair = as_chat ? encode_as_chat(example, tokenizer, *chat, config)
                        : encode_plain(example, tokenizer, config);
    if (static_cast<int64_t>(pair.prompt.size()) > config.max_prompt_tokens) {
      report.drop("prompt longer than data.max_prompt_tokens", example.line);
      continue;
    }
    if (pair.completion.empty()) {
      report.drop("completion without tokens", example.line);
      continue;
    }
    const bool cut = static_cast<int64_t>(pair.completion.size()) > config.max_completion_tokens;
    if (cut)
      pair.completion.resize(static_cast<size_t>(config.max_completion_tokens));
    else if (config.append_eos)
      pair.completion.push_back(pair.end ? *pair.end : end_token(tokenizer));
    const auto prompt_tokens = static_cast<int64_t>(pair.prompt.size()),
               completion_tokens = static_cast<int64_t>(pair.completion.size());
    if (max_positions > 0 && prompt_tokens + completion_tokens > max_positions) {
      report.drop("longer than the model's positions", example.line);
      continue;
    }
    if (cut) report.change("completion cut at data.max_completion_tokens", example.line);
    if (pair.moved_space) report.change("spaces moved from the prompt's end to the completion", example.line);
    if (pair.split_token) report.change("a token spans the end of the prompt: encoded apart", example.line);
    TokenizedExample item;
    item.prompt = std::move(pair.prompt);
    item.completion = std::move(pair.completion);
    item.references = example.references;
    item.references.insert(item.references.begin(), example.completion);
    item.prompt_text = example.messages.empty() ? example.prompt : example.messages.back().content;
    item.line = example.line;
    ++report.kept;
    report.prompt_tokens += prompt_tokens;
    report.completion_tokens += completion_tokens;
    report.longest_prompt = std::max(report.longest_prompt, prompt_tokens);
    report.longest_completion = std::max(report.longest_completion, completion_tokens);
    out.push_back(std::move(item));
  }
  return out;
}

std::vector<int32_t> tokenize_prompt(const std::string& text, const Tokenizer& tokenizer,
                                     const DataConfig& config) {
  if (const std::optional<ChatTemplate> chat = chat_of(config, tokenizer)) {
    Example example;
    example.prompt = text;
    return encode_chat(tokenizer, *chat, messages_of(example, config), true);
  }
  Ids ids;
  begin(ids, tokenizer, config);
  const Ids more = tokenizer.encode(text);
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

}  // namespace gantrain
