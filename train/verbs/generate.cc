#include "model/generate.h"

#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/rng.h"
#include "train/checkpoint/run_folder.h"
#include "train/data/template.h"
#include "train/play/pairs.h"
#include "train/verbs/dataset.h"
#include "train/verbs/session.h"

namespace gantrain {
namespace {

constexpr int64_t kMostSamples = 4096;  // sampled answers a prompt

ChatTemplateChoice chat_choice(const std::string& name) {
  for (const auto& [known, choice] : {std::pair("none", ChatTemplateChoice::kNone),
                                      {"auto", ChatTemplateChoice::kAuto},
                                      {"chatml", ChatTemplateChoice::kChatML},
                                      {"llama2", ChatTemplateChoice::kLlama2},
                                      {"llama3", ChatTemplateChoice::kLlama3}})
    if (name == known) return choice;
  fail_usage("--chat-template: expected none, auto, chatml, llama2 or llama3, got '{}'", name);
}

}  // namespace

int run_generate(const GenerateOptions& options, const DeviceFactory& devices) {
  std::vector<std::string> prompts = options.prompts;
  if (!options.input_file.empty()) {
    std::ifstream file;
    if (options.input_file != "-") {
      file.open(options.input_file);
      if (!file) fail("{}: cannot open", options.input_file);
    }
    std::istream& in = options.input_file == "-" ? std::cin : file;
    for (std::string line; std::getline(in, line);) prompts.push_back(line);
  }
  if (prompts.empty()) fail_usage("no prompt; give --prompt TEXT or --input FILE");
  if (options.max_new < 1) fail_usage("--max-new: expected at least 1, got {}", options.max_new);
  const int64_t candidates = options.samples * options.choosing.best_of;
  if (options.samples < 1 || candidates > kMostSamples)
    fail_usage("--samples: expected 1 to {}, got {}{}", kMostSamples / options.choosing.best_of,
               options.samples, options.choosing.best_of > 1 ? ", each of --best-of" : "");

  std::unique_ptr<CheckpointReader> checkpoint;
  TrainConfig config;
  if (!options.checkpoint.empty()) {
    checkpoint = std::make_unique<CheckpointReader>(find_checkpoint(options.checkpoint).string());
    config = checkpoint_config(*checkpoint, {});
  }
  const std::string model = options.model.empty() ? config.model : options.model;
  const BasePacking packing =
      checkpoint && options.packing == BasePacking::kAuto ? config.model_quantize : resolved(options.packing);
  Session session = open_session(model, packing, options.device, options.dtype, devices);
  const Tokenizer& tokenizer = *session.tokenizer;
  const Llama& llama = *session.llama;
  Runner runner(*session.device, llama);

  // With a run, inputs are built as its training inputs were; without one, as the flags say.
  DataConfig data = config.data;
  if (!checkpoint || options.chat_template != "none") data.chat_template = chat_choice(options.chat_template);
  if (!options.system.empty()) data.system = options.system;
  std::unique_ptr<Generator> generator;
  std::unique_ptr<PromptMaker> maker = std::make_unique<NoPrompt>();
  if (checkpoint) {
    generator = load_generator(*checkpoint, config, *session.device, llama, false);
    maker = std::make_unique<GeneratorPrompts>(runner, *generator, config.generator);
  }
  if (!options.adapter.empty())
    maker = std::make_unique<PeftPrompts>(*session.device, llama.config(),
                                          read_peft(options.adapter, llama.config()));
  RunChooser choosing;
  if (checkpoint) choosing = load_chooser(*checkpoint, config, runner, options.choosing);
  SamplingParams params;
  params.temperature = static_cast<float>(options.temperature);
  params.top_k = static_cast<int32_t>(options.top_k);
  params.top_p = static_cast<float>(options.top_p);
  params.max_new = static_cast<int32_t>(options.max_new);
  params.stop = tokenizer.end_ids();
  for (size_t i = 0; i < prompts.size(); ++i) {
    TokenizedExample example;
    const std::string text =
        checkpoint && !options.raw ? prompt_of_text(prompts[i], data.prompt_template) : prompts[i];
    example.prompt = tokenize_prompt(text, tokenizer, data);
    example.prompt_text = prompts[i];
    example.line = static_cast<int64_t>(i) + 1;
    const std::vector<const TokenizedExample*> one{&example};
    const Prompts made = maker->make(one, derive_key(static_cast<uint64_t>(options.seed), 2, i));
    RequestContext context = request_context(made, 0, example, config.generator.placement);
    const int64_t positions = made.count + static_cast<int64_t>(example.prompt.size()) + options.max_new;
    if (positions > llama.config().max_position_embeddings)
      fail("prompt {}: {} positions with prompt and --max-new; the model has {}", i + 1, positions,
           llama.config().max_position_embeddings);
    GenerationRequest request;
    request.prompt_first = context.prompt_first;
    request.prompt_count = context.prompt_count;
    request.context = std::move(context.tokens);
    if (request.context.empty() && request.prompt_count == 0)
      fail("prompt {}: no token to start from; give a text, or a model with a BOS token", i + 1);
    for (int64_t s = 0; s < candidates; ++s)
      request.keys.push_back(derive_key(static_cast<uint64_t>(options.seed), 3,
                                        i * static_cast<uint64_t>(kMostSamples) + static_cast<uint64_t>(s)));
    const std::vector<GeneratedSequence> answers =
        generate(*session.device, llama, made.view(), std::span(&request, 1), params, kDecodedTogether, {},
                 made.adapter);
    std::vector<std::vector<int32_t>> texts;  // the answers' tokens without their end
    for (const GeneratedSequence& g : answers) {
      texts.push_back(g.tokens);
      if (g.finish == FinishReason::kStop) texts.back().pop_back();
    }
    std::vector<size_t> taken(answers.size());
    std::iota(taken.begin(), taken.end(), size_t{0});
    std::vector<float> scores;
    if (choosing.chooser) {
      scores = choosing.chooser->scores(one, std::vector<size_t>(texts.size(), 0),
                                        canonical_answers(tokenizer, texts));
      taken = choosing.chooser->take(scores, derive_key(static_cast<uint64_t>(options.seed), 8, i));
    }
    for (const size_t k : taken) {
      const std::string written = tokenizer.decode_text(texts[k], true);
      if (options.json) {
        nlohmann::json line{{"prompt", prompts[i]},
                            {"ids", answers[k].tokens},
                            {"text", written},
                            {"finish_reason", answers[k].finish == FinishReason::kStop ? "stop" : "length"}};
        // An empty answer has no score.
        if (!scores.empty()) line["score"] = std::isfinite(scores[k]) ? nlohmann::json(scores[k]) : nullptr;
        fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
      } else {
        fmt::print("{}\n", written);
      }
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace gantrain
