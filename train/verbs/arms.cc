#include "train/verbs/arms.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/digest.h"
#include "core/rng.h"
#include "train/checkpoint/checkpoint.h"
#include "train/metrics/accuracy.h"
#include "train/text.h"

namespace gantrain {
namespace {

// The length first, so that no two lists run into each other.
template <typename List>
void add_list(Digest& digest, const List& list) {
  const auto add = [&](const void* data, size_t bytes) {
    digest.add_bytes({static_cast<const char*>(data), bytes});
  };
  const uint64_t size = list.size();
  add(&size, sizeof size);
  add(list.data(), list.size() * sizeof(list.data()[0]));
}

uint64_t digest_of(ExampleSpan items) {
  Digest digest;
  for (const TokenizedExample* e : items) {
    add_list(digest, e->prompt);
    add_list(digest, e->completion);
    for (const std::string& reference : e->references) add_list(digest, reference);
  }
  return digest.value;
}

// What to_json has written.
ArmResult from_json(const nlohmann::json& j) {
  ArmResult r;
  r.name = j.at("arm");
  r.loss.ce = j.at("ce");
  r.loss.tokens = j.at("scored_tokens");
  r.label_accuracy = j.value("label_likelihood", -1.0);
  for (const nlohmann::json& row : j.at("temperatures")) {
    TextScores s;
    s.temperature = row.at("temperature");
    s.exact_match = 100.0 * row.at("exact_match").get<double>();
    s.bleu = row.at("bleu");
    s.rouge_l = 100.0 * row.at("rouge_l").get<double>();
    s.distinct_1 = row.at("distinct_1");
    s.distinct_2 = row.at("distinct_2");
    s.distinct_3 = row.at("distinct_3");
    for (int n = 2; n <= 5; ++n) s.self_bleu[n - 2] = row.at(fmt::format("self_bleu_{}", n));
    s.mean_length = row.at("length");
    s.texts = row.at("texts");
    r.texts.push_back(s);
  }
  return r;
}

}  // namespace

ArmResult evaluate_arm(Runner& runner, const Tokenizer& tokenizer, const Arm& arm, ExampleSpan items,
                       ExampleSpan merged, const std::vector<std::vector<int32_t>>& labels,
                       const ArmSettings& settings) {
  ArmResult r;
  r.name = arm.name;
  if (labels.empty()) {
    r.loss = evaluate_loss(runner, *arm.maker, items, settings.placement, settings.batch);
  } else {
    const std::vector<double> scores =
        label_scores(runner, *arm.maker, items, labels, settings.placement, settings.batch);
    std::vector<int64_t> right;
    for (const TokenizedExample* e : items) {
      const auto it = std::find(labels.begin(), labels.end(), e->completion);
      if (it == labels.end())
        fail("line {}: its completion is none of the {} labels of the training items", e->line,
             labels.size());
      right.push_back(it - labels.begin());
    }
    r.label_accuracy = metrics::label_accuracy(scores, right, labels.size());
    // The right label's likelihood is the loss: the model need not run once more for it.
    double sum = 0.0;
    for (size_t i = 0; i < right.size(); ++i) {
      const size_t label = static_cast<size_t>(right[i]);
      sum -= scores[i * labels.size() + label];
      r.loss.tokens += static_cast<int64_t>(labels[label].size());
    }
    if (r.loss.tokens > 0) r.loss.ce = sum / static_cast<double>(r.loss.tokens);
  }
  if (settings.generate) {
    const ExampleSpan part = merged.subspan(
        0, std::min(merged.size(), static_cast<size_t>(std::max<int64_t>(0, settings.max_generate))));
    for (double temperature : settings.temperatures) {
      GenerationSettings g;
      g.temperature = static_cast<float>(temperature);
      g.max_new = static_cast<int32_t>(settings.max_new);
      g.samples = settings.samples;
      g.seed = settings.seed;
      g.chooser = settings.chooser;
      const auto [texts, gain, gain_tokens] =
          generate_texts(runner, tokenizer, *arm.maker, part, settings.placement, g);
      r.texts.push_back(score_texts(part, texts, settings.samples, temperature));
      if (gain_tokens > 0) r.texts.back().chosen_gain = gain / static_cast<double>(gain_tokens);
      if (r.samples.empty())
        for (size_t i = 0; i < texts.size(); i += static_cast<size_t>(settings.samples))
          r.samples.push_back(texts[i]);
    }
  }
  if (settings.judges > 0 && settings.generate) {
    for (double temperature : settings.temperatures) {
      const auto pairs = [&](ExampleSpan from, int64_t count, uint64_t purpose) {
        return answer_pairs(runner, tokenizer, *arm.maker, from, settings.placement, count, settings.max_new,
                            temperature, derive_key(settings.seed, purpose), settings.chooser);
      };
      JudgeSettings judge;
      judge.judges = settings.judges;
      judge.seed = settings.seed;
      const auto train = pairs(settings.judge_train, 2 * settings.judge_pairs, 6),
                 held_out = pairs(merged, settings.judge_pairs, 7);
      if (settings.judge_tokens)
        r.verdicts.push_back(
            judge_answers(runner.device(), runner.llama().config().vocab_size, train, held_out, judge));
      if (settings.judge_features) {
        const auto features = [&](ExampleSpan inputs, const std::vector<AnswerPair>& of) {
          return answer_features(runner, inputs, of, settings.feature_layers, settings.batch);
        };
        r.feature_verdicts.push_back(judge_features(runner.device(), train,
                                                    features(settings.judge_train, train), held_out,
                                                    features(merged, held_out), judge));
      }
    }
  }
  if (!settings.drift_text.empty())
    r.drift =
        evaluate_drift(runner, tokenizer, *arm.maker, settings.drift_text, 128, 32, settings.placement).ce;
  return r;
}

ArmResult evaluate_untrained(const std::string& folder, const std::string& base, Runner& runner,
                             const Tokenizer& tokenizer, ExampleSpan items, ExampleSpan merged,
                             const std::vector<std::vector<int32_t>>& labels, const ArmSettings& settings) {
  GT_CHECK(settings.judges == 0 && settings.drift_text.empty() && !settings.chooser,
           "judges, a second text and chosen answers are not kept for other runs");
  using nlohmann::json;
  const json question{{"base", base},
                      {"items", digest_of(items)},
                      {"merged", digest_of(merged)},
                      {"labels", labels},
                      {"temperatures", settings.temperatures},
                      {"samples", settings.samples},
                      {"max_new", settings.max_new},
                      {"max_generate", settings.max_generate},
                      {"seed", settings.seed},
                      {"batch", settings.batch},
                      {"placement", static_cast<int>(settings.placement)},
                      {"generate", settings.generate}};
  Digest name;
  add_list(name, question.dump());
  const std::filesystem::path file =
      std::filesystem::path(folder) / fmt::format("untrained-{:016x}.json", name.value);
  if (std::filesystem::exists(file)) {
    try {
      const json kept = json::parse(read_text_file(file, int64_t{256} << 20));
      if (kept.at("question") == question) {
        ArmResult r = from_json(kept.at("result"));
        r.samples = kept.at("samples").get<std::vector<std::string>>();
        return r;
      }
    } catch (const json::exception&) {  // not what this program writes: measured anew
    }
  }
  NoPrompt none;
  ArmResult r = evaluate_arm(runner, tokenizer, {"no prompt", &none}, items, merged, labels, settings);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("{}: cannot make the folder: {}", folder, error.message());
  const std::string text =
      json{{"question", question}, {"result", json::parse(to_json(r))}, {"samples", r.samples}}.dump(
          2, ' ', false, json::error_handler_t::replace);
  write_file_atomically(file.string(), {{text.data(), text.size()}});
  return r;
}

std::string to_json(const ArmResult& r) {
  nlohmann::json j{
      {"arm", r.name}, {"ce", r.loss.ce}, {"ppl", r.loss.perplexity()}, {"scored_tokens", r.loss.tokens}};
  if (r.label_accuracy >= 0) j["label_likelihood"] = r.label_accuracy;
  if (r.drift >= 0) j["drift_ce"] = r.drift;
  j["temperatures"] = nlohmann::json::array();
  for (const TextScores& s : r.texts)
    j["temperatures"].push_back({{"arm", r.name},
                                 {"temperature", s.temperature},
                                 {"exact_match", s.exact_match / 100.0},
                                 {"bleu", s.bleu},
                                 {"rouge_l", s.rouge_l / 100.0},
                                 {"distinct_1", s.distinct_1},
                                 {"distinct_2", s.distinct_2},
                                 {"distinct_3", s.distinct_3},
                                 {"self_bleu_2", s.self_bleu[0]},
                                 {"self_bleu_3", s.self_bleu[1]},
                                 {"self_bleu_4", s.self_bleu[2]},
                                 {"self_bleu_5", s.self_bleu[3]},
                                 {"length", s.mean_length},
                                 {"texts", s.texts}});
  for (size_t i = 0; i < r.texts.size(); ++i)
    if (std::isfinite(r.texts[i].chosen_gain))
      j["temperatures"][i]["chosen_ce_gain"] = r.texts[i].chosen_gain;
  const auto add_verdicts = [&](const std::vector<Verdict>& verdicts, const std::string& judge) {
    for (size_t i = 0; i < verdicts.size(); ++i)
      j["temperatures"][i].update({{judge + "_accuracy", verdicts[i].accuracy},
                                   {judge + "_error", verdicts[i].standard_error},
                                   {judge + "_accuracies", verdicts[i].accuracies},
                                   {judge + "_ranking", verdicts[i].ranking},
                                   {judge + "_pairs", verdicts[i].held_out_pairs}});
  };
  add_verdicts(r.verdicts, "judge");
  add_verdicts(r.feature_verdicts, "feature_judge");
  return j.dump();
}

std::string arms_table(const std::vector<ArmResult>& results) {
  std::string out = fmt::format("{:<12} {:>8} {:>10}", "arm", "loss", "perplexity");
  const bool labels =
      std::any_of(results.begin(), results.end(), [](const ArmResult& r) { return r.label_accuracy >= 0; });
  const bool drift =
      std::any_of(results.begin(), results.end(), [](const ArmResult& r) { return r.drift >= 0; });
  if (labels) out += fmt::format(" {:>9}", "labels");
  if (drift) out += fmt::format(" {:>9}", "drift");
  out += "\n";
  for (const ArmResult& r : results) {
    out += fmt::format("{:<12} {:>8.4f} {:>10.2f}", r.name, r.loss.ce, r.loss.perplexity());
    if (labels) out += fmt::format(" {:>8.1f}%", 100.0 * r.label_accuracy);
    if (drift) out += fmt::format(" {:>9.4f}", r.drift);
    out += "\n";
  }
  size_t temperatures = 0;
  for (const ArmResult& r : results) temperatures = std::max(temperatures, r.texts.size());
  if (temperatures == 0) return out;
  out += fmt::format("\n{:<12} {:>5} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9} {:>7}\n", "arm", "T", "BLEU",
                     "ROUGE-L", "exact", "dist-1", "dist-2", "sBLEU-4", "words");
  const auto any = [&](std::vector<Verdict> ArmResult::*verdicts) {
    return std::any_of(results.begin(), results.end(),
                       [&](const ArmResult& r) { return !(r.*verdicts).empty(); });
  };
  struct Column {
    std::vector<Verdict> ArmResult::*verdicts;
    const char* title;
  };
  std::vector<Column> judges;
  for (const Column& c :
       {Column{&ArmResult::verdicts, "judge"}, Column{&ArmResult::feature_verdicts, "feature judge"}})
    if (any(c.verdicts)) judges.push_back(c);
  for (const Column& c : judges) out.insert(out.size() - 1, fmt::format(" {:>14}", c.title));
  for (size_t t = 0; t < temperatures; ++t)
    for (const ArmResult& r : results) {
      if (t >= r.texts.size()) continue;
      const TextScores& s = r.texts[t];
      out += fmt::format("{:<12} {:>5.2f} {:>7.2f} {:>7.2f} {:>6.1f}% {:>7.3f} {:>7.3f} {:>9.2f} {:>7.1f}\n",
                         r.name, s.temperature, s.bleu, s.rouge_l, s.exact_match, s.distinct_1, s.distinct_2,
                         s.self_bleu[2], s.mean_length);
      for (const Column& c : judges) {
        const std::vector<Verdict>& verdicts = r.*c.verdicts;
        out.insert(
            out.size() - 1,
            fmt::format(" {:>14}", t < verdicts.size() ? fmt::format("{:.3f} +- {:.3f}", verdicts[t].accuracy,
                                                                     verdicts[t].standard_error)
                                                       : std::string()));
      }
    }
  for (const ArmResult& r : results)
    for (const TextScores& s : r.texts)
      if (std::isfinite(s.chosen_gain))
        out += fmt::format(
            "{} at T = {:.2f}: the loss of what is drawn is at most the generator's there less {:.4f}\n",
            r.name, s.temperature, s.chosen_gain);
  return out;
}

}  // namespace gantrain
