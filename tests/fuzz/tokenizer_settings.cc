// tokenizer_config.json and its neighbours, over a tokenizer that is always the same. The first byte chooses
// the file.
#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/formats.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gantrain;
  // Opened once: that cost most of an execution.
  static const auto tokenizer = read_tokenizer_json(fuzz::Scratch().write(
      "tokenizer.json",
      R"({"added_tokens":[{"id":2,"content":"<s>","special":true}],"model":{"type":"BPE","vocab":{"a":0,"b":1},)"
      R"("merges":[]}})"));
  static const TokenizerInfo info = tokenizer->info();
  return fuzz::expect_refusal_or_success(data, size, [](std::string_view bytes) {
    if (bytes.empty()) return;
    constexpr const char* kFiles[] = {"config.json", "generation_config.json", "special_tokens_map.json",
                                      "tokenizer_config.json", "chat_template.jinja"};
    // A folder for each file, so that none has to go away again.
    static const fuzz::Scratch folders[std::size(kFiles)];
    const size_t choice = static_cast<unsigned char>(bytes[0]) % std::size(kFiles);
    folders[choice].hold(kFiles[choice], bytes.substr(1));
    tokenizer->set_info(info);
    read_folder_settings(folders[choice].path(), *tokenizer);
    complete_end_ids(*tokenizer);
    detect_chat_template(*tokenizer);
  });
}
