// A door to the tokenizers and chat templates for the outside witness.
// usage: tokenize_door MODEL encode|decode|special   lines as of the verb `tokenize`
//        tokenize_door MODEL chat                    one JSON request a line: {"template", "messages",
//                                                    "add_generation_prompt", "date"}; answer {"text", "ids"}
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/tokenize_command.h"

namespace {

using nlohmann::json;
using namespace gantrain;

json answer(const Tokenizer& tokenizer, const json& request) {
  const std::string name = request.at("template");
  ChatTemplate chat = name == "detect" ? detect_chat_template(tokenizer) : chat_template_by_name(name);
  chat.date = request.value("date", chat.date);
  std::vector<ChatMessage> messages;
  for (const json& m : request.at("messages")) messages.push_back({m.at("role"), m.at("content")});
  const bool open = request.at("add_generation_prompt");
  return {{"text", chat_text(render_chat(chat, messages, open))},
          {"ids", encode_chat(tokenizer, chat, messages, open)}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string model = argc == 3 ? argv[1] : "", what = argc == 3 ? argv[2] : "";
    if (what == "encode" || what == "decode" || what == "special")
      return tokenize_command({model, what == "decode", what == "special"}, std::cin, std::cout);
    if (what != "chat") {
      std::cerr << "usage: tokenize_door MODEL encode|decode|special|chat\n";
      return 2;
    }
    const auto tokenizer = open_tokenizer(model);
    std::string line;
    while (std::getline(std::cin, line)) std::cout << answer(*tokenizer, json::parse(line)).dump() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "tokenize_door: " << error.what() << '\n';
    return 1;
  }
}
