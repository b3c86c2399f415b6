#include "model/tokenizer/chat_template.h"

#include "core/check.h"
#include "model/tokenizer/utf8.h"

namespace gantrain {
namespace {

constexpr std::string_view kSmolLm2System =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
constexpr const char* kNames = "none, llama2, llama3, llama3.1, chatml, smollm2";

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// What Python's str.strip takes away, which is what Jinja's trim and strip call.
bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

std::string_view strip_left(std::string_view text) {
  while (utf8::length_at(text, 0) > 0) {
    size_t next = 0;
    if (!is_python_space(utf8::next(text, next))) break;
    text.remove_prefix(next);
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    if (utf8::length_at(text, begin) == 0) break;
    size_t next = begin;
    if (!is_python_space(utf8::next(text, next))) break;
    text = text.substr(0, begin);
  }
  return text;
}

std::string_view strip(std::string_view text) { return strip_right(strip_left(text)); }

// Collects parts; neighbours of one kind become one.
class Parts {
 public:
  void trusted(std::string_view text) { add(text, true); }
  void content(std::string_view text) { add(text, false); }
  std::vector<TextPart> take() { return std::move(parts_); }

 private:
  void add(std::string_view text, bool trusted) {
    if (text.empty()) return;
    if (!parts_.empty() && parts_.back().trusted == trusted)
      parts_.back().text += text;
    else
      parts_.push_back({std::string(text), trusted});
  }
  std::vector<TextPart> parts_;
};

void render_chatml(const ChatTemplate& chat, std::span<const ChatMessage> messages, bool open, Parts& parts) {
  if (!chat.default_system.empty() && !messages.empty() && messages[0].role != "system")
    parts.trusted("<|im_start|>system\n" + chat.default_system + "<|im_end|>\n");
  for (const ChatMessage& m : messages) {
    parts.trusted("<|im_start|>" + m.role + "\n");
    parts.content(m.content);
    parts.trusted("<|im_end|>\n");
  }
  if (open) parts.trusted("<|im_start|>assistant\n");
}

void render_llama3(const ChatTemplate& chat, std::span<const ChatMessage> messages, bool open, Parts& parts) {
  const auto header = [&](std::string_view role) {
    parts.trusted(fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n", role));
  };
  const bool dated = chat.kind == ChatTemplateKind::kLlama31;
  if (dated || !messages.empty()) parts.trusted("<|begin_of_text|>");
  if (dated) {
    header("system");
    parts.trusted("Cutting Knowledge Date: December 2023\nToday Date: " + chat.date + "\n\n");
    if (!messages.empty() && messages[0].role == "system") {
      parts.content(strip(messages[0].content));
      messages = messages.subspan(1);
    }
    parts.trusted("<|eot_id|>");
  }
  for (const ChatMessage& m : messages) {
    header(m.role);
    parts.content(strip(m.content));
    parts.trusted("<|eot_id|>");
  }
  if (open) header("assistant");
}

void render_llama2(std::span<const ChatMessage> messages, Parts& parts) {
  const ChatMessage* system = nullptr;
  if (!messages.empty() && messages[0].role == "system") {
    system = &messages[0];
    messages = messages.subspan(1);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const char* expected = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != expected)
      fail(
          "llama2 template: message {} has the role '{}', expected '{}': roles alternate user, assistant, "
          "user, ... "
          "after at most one system message",
          i + (system ? 1 : 0), messages[i].role, expected);
    if (i % 2 == 0) {
      parts.trusted("<s>[INST] ");
      if (i == 0 && system) {
        // The strip is that of the whole block, so the message keeps its leading white space.
        parts.trusted("<<SYS>>\n");
        parts.content(system->content);
        // What lies before an empty message is stripped as well.
        const std::string_view message = strip_right(messages[i].content);
        parts.trusted(message.empty() ? "\n<</SYS>>" : "\n<</SYS>>\n\n");
        parts.content(message);
      } else {
        parts.content(strip(messages[i].content));
      }
      parts.trusted(" [/INST]");
    } else {
      parts.trusted(" ");
      parts.content(strip(messages[i].content));
      parts.trusted(" </s>");
    }
  }
}

std::vector<std::string_view> special_tokens(ChatTemplateKind kind) {
  switch (kind) {
    case ChatTemplateKind::kNone:
      return {};
    case ChatTemplateKind::kLlama2:
      return {"<s>", "</s>"};
    case ChatTemplateKind::kLlama3:
    case ChatTemplateKind::kLlama31:
      return {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
    case ChatTemplateKind::kChatMl:
      return {"<|im_start|>", "<|im_end|>"};
  }
  return {};
}

}  // namespace

ChatTemplate detect_chat_template(const Tokenizer& tokenizer) {
  const std::string_view jinja = tokenizer.chat_template();
  if (strip(jinja).empty()) return {};
  if (has(jinja, "<|start_header_id|>") && has(jinja, "<|eot_id|>"))
    return chat_template_by_name(has(jinja, "Cutting Knowledge Date: December 2023") ? "llama3.1" : "llama3");
  if (has(jinja, "[INST]") && has(jinja, "<<SYS>>") && has(jinja, "bos_token"))
    return chat_template_by_name("llama2");
  // ChatML has many dialects (tools, thoughts, other system messages): only the plain ones are taken.
  const bool plain =
      !has(jinja, "tool") && !has(jinja, "think") && !has(jinja, "trim") && !has(jinja, "strip");
  if (plain && has(jinja, "<|im_start|>") && has(jinja, "<|im_end|>")) {
    const bool default_system = has(jinja, "<|im_start|>system");
    if (default_system && has(jinja, kSmolLm2System)) return chat_template_by_name("smollm2");
    if (!default_system) return chat_template_by_name("chatml");
  }
  std::string start(jinja.substr(0, 120));
  fail("the model's chat template is not one of those built in (it starts with '{}'); choose one by name: {}",
       utf8::lossy(start), kNames);
}

ChatTemplate chat_template_by_name(std::string_view name) {
  ChatTemplate chat;
  if (name == "none") return chat;
  if (name == "llama2")
    chat.kind = ChatTemplateKind::kLlama2;
  else if (name == "llama3")
    chat.kind = ChatTemplateKind::kLlama3;
  else if (name == "llama3.1")
    chat.kind = ChatTemplateKind::kLlama31;
  else if (name == "chatml" || name == "smollm2")
    chat.kind = ChatTemplateKind::kChatMl;
  else
    fail_usage("no chat template '{}'; built in: {}", name, kNames);
  if (name == "smollm2") chat.default_system = kSmolLm2System;
  return chat;
}

std::vector<TextPart> render_chat(const ChatTemplate& chat, std::span<const ChatMessage> messages,
                                  bool add_generation_prompt) {
  for (size_t i = 0; i < messages.size(); ++i)
    if (const std::string& role = messages[i].role; role != "system" && role != "user" && role != "assistant")
      fail("message {} has the role '{}'; expected system, user or assistant", i, role);
  Parts parts;
  switch (chat.kind) {
    case ChatTemplateKind::kNone:
      for (size_t i = 0; i < messages.size(); ++i) {
        if (i > 0) parts.content("\n");
        parts.content(messages[i].content);
      }
      break;
    case ChatTemplateKind::kLlama2:
      render_llama2(messages, parts);
      break;
    case ChatTemplateKind::kLlama3:
    case ChatTemplateKind::kLlama31:
      render_llama3(chat, messages, add_generation_prompt, parts);
      break;
    case ChatTemplateKind::kChatMl:
      render_chatml(chat, messages, add_generation_prompt, parts);
      break;
  }
  return parts.take();
}

std::string chat_text(std::span<const TextPart> parts) {
  std::string text;
  for (const TextPart& part : parts) text += part.text;
  return text;
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                 std::span<const ChatMessage> messages, bool add_generation_prompt) {
  for (std::string_view token : special_tokens(chat.kind))
    if (!tokenizer.special_id(token))
      fail("the tokenizer has no special token '{}', which this chat template writes; choose another: {}",
           token, kNames);
  return tokenizer.encode_parts(render_chat(chat, messages, add_generation_prompt));
}

}  // namespace gantrain
