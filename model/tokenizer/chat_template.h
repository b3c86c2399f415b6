// Chat templates, built in: a model's Jinja text is recognised, never run. An unknown one is refused.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace gantrain {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string content;
};

enum class ChatTemplateKind { kNone, kLlama2, kLlama3, kLlama31, kChatMl };

struct ChatTemplate {
  ChatTemplateKind kind = ChatTemplateKind::kNone;
  std::string
      default_system;  // kChatMl: the system message where the first message is none; empty: no such block
  std::string date =
      "26 Jul 2024";  // kLlama31 writes "Today Date: ..." into every prompt: pinned, so that runs repeat
};

// The template that the tokenizer's Jinja text asks for; kNone where there is no text. Throws Error for a
// text that is not known, with the list of names for chat_template_by_name.
ChatTemplate detect_chat_template(const Tokenizer& tokenizer);

// none, llama2, llama3, llama3.1, chatml, smollm2. Throws a usage Error with this list for another name.
ChatTemplate chat_template_by_name(std::string_view name);

// The messages in the template, as text and special tokens (trusted) and what people wrote (not trusted). The
// text starts with the template's own BOS, where it has one: add none. `add_generation_prompt` opens the
// assistant's answer. kNone writes the contents alone, a newline between two. Throws Error on an unknown
// role, and where llama2 finds messages that do not alternate user, assistant, user, ... (after at most one
// system message).
std::vector<TextPart> render_chat(const ChatTemplate& chat, std::span<const ChatMessage> messages,
                                  bool add_generation_prompt);

// The parts' texts in a row.
std::string chat_text(std::span<const TextPart> parts);

// The ids of the rendered messages. No content can become a special token. Throws Error when the vocabulary
// lacks a special token of the template.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                 std::span<const ChatMessage> messages, bool add_generation_prompt);

}  // namespace gantrain
