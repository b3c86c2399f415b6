#include "train/play/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>

#include "core/rng.h"
#include "train/metrics/accuracy.h"
#include "train/metrics/bleu.h"
#include "train/metrics/diversity.h"
#include "train/metrics/rouge.h"
#include "train/metrics/text.h"
#include "train/play/pairs.h"

namespace gantrain {

double LossResult::perplexity() const { return std::exp(ce); }

namespace {

// Scores `tokens` as the continuation of `context`: one row a token, in `request`.
void score_continuation(PackedBatch& batch, int32_t context, const std::vector<int32_t>& tokens,
                        HeadRequest& request) {
  // The last token is never read, only predicted.
  const int32_t s = batch.add(context, std::span<const int32_t>(tokens.data(), tokens.size() - 1));
  for (size_t t = 0; t < tokens.size(); ++t) {
    request.rows.push_back(t == 0 ? batch.last_row(context)
                                  : batch.segment(s).row_begin + static_cast<int32_t>(t) - 1);
    request.labels.push_back(tokens[t]);
  }
}

}  // namespace

LossResult evaluate_loss(Runner& runner, PromptMaker& maker, ExampleSpan examples, Placement placement,
                         int64_t batch_size, Communicator* ranks) {
  LossResult result;
  const size_t step = static_cast<size_t>(batch_size);
  std::vector<double> sums((examples.size() + step - 1) / step);  // of each batch: the same, whoever took it
  for (size_t at = 0; at < examples.size(); at += step) {
    const size_t number = at / step;
    if (ranks && number % static_cast<size_t>(ranks->size()) != static_cast<size_t>(ranks->rank())) continue;
    const ExampleSpan part = examples.subspan(at, std::min(examples.size() - at, step));
    const Prompts prompts = maker.make(part, derive_key(0, 1, at));
    PackedBatch batch = batch_behind(prompts.adapter);
    ContextBuilder contexts(batch, prompts, placement);
    HeadRequest request;
    for (size_t b = 0; b < part.size(); ++b)
      score_continuation(batch, contexts.add(b, *part[b]), part[b]->completion, request);
    runner.forward(batch, prompts.view(), Saving::kNothing, -1, prompts.adapter,
                   {.read = request.rows, .gradient = {}});
    for (float nll : runner.head(request, false).nll) sums[number] += nll;
    result.tokens += static_cast<int64_t>(request.rows.size());
  }
  if (ranks && ranks->size() > 1) {
    sums.push_back(static_cast<double>(result.tokens));
    sums = sum_values(*ranks, sums);
    result.tokens = static_cast<int64_t>(sums.back());
    sums.pop_back();
  }
  double sum = 0.0;
  for (double s : sums) sum += s;
  if (result.tokens > 0) result.ce = sum / static_cast<double>(result.tokens);
  return result;
}

std::vector<std::vector<int32_t>> find_labels(ExampleSpan train, size_t limit) {
  std::set<std::vector<int32_t>> labels;
  for (const TokenizedExample* e : train) {
    labels.insert(e->completion);
    if (labels.size() > limit) return {};
  }
  // A label comes again and again; a handful of items with few texts is not a classification task.
  if (labels.size() < 2 || train.size() < 8 * labels.size()) return {};
  return {labels.begin(), labels.end()};
}

std::vector<double> label_scores(Runner& runner, PromptMaker& maker, ExampleSpan examples,
                                 const std::vector<std::vector<int32_t>>& labels, Placement placement,
                                 int64_t batch_size) {
  std::vector<double> scores;
  for (size_t at = 0; at < examples.size(); at += static_cast<size_t>(batch_size)) {
    const ExampleSpan part =
        examples.subspan(at, std::min(examples.size() - at, static_cast<size_t>(batch_size)));
    const Prompts prompts = maker.make(part, derive_key(0, 1, at));
    PackedBatch batch = batch_behind(prompts.adapter);
    ContextBuilder contexts(batch, prompts, placement);
    HeadRequest request;
    for (size_t b = 0; b < part.size(); ++b) {
      const int32_t context = contexts.add(b, *part[b]);
      for (const std::vector<int32_t>& label : labels) score_continuation(batch, context, label, request);
    }
    runner.forward(batch, prompts.view(), Saving::kNothing, -1, prompts.adapter,
                   {.read = request.rows, .gradient = {}});
    const std::vector<float> nll = runner.head(request, false).nll;
    size_t row = 0;
    for (size_t b = 0; b < part.size(); ++b)
      for (const std::vector<int32_t>& label : labels) {
        double sum = 0.0;
        for (size_t t = 0; t < label.size(); ++t) sum -= nll[row++];
        scores.push_back(sum);
      }
  }
  return scores;
}

GeneratedTexts generate_texts(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                              ExampleSpan examples, Placement placement, const GenerationSettings& settings) {
  SamplingParams params;
  params.temperature = settings.temperature;
  params.top_k = settings.top_k;
  params.top_p = settings.top_p;
  params.max_new = settings.max_new;
  params.stop = tokenizer.end_ids();
  GeneratedTexts out;
  for (size_t at = 0; at < examples.size(); at += static_cast<size_t>(settings.batch)) {
    const ExampleSpan part =
        examples.subspan(at, std::min(examples.size() - at, static_cast<size_t>(settings.batch)));
    const Prompts prompts = maker.make(part, derive_key(settings.seed, 2, at));
    const int64_t samples = settings.samples * (settings.chooser ? settings.chooser->among() : 1);
    std::vector<GenerationRequest> requests;
    std::vector<size_t> input_of;
    for (size_t b = 0; b < part.size(); ++b) {
      RequestContext context = request_context(prompts, b, *part[b], placement);
      GenerationRequest r;
      r.prompt_first = context.prompt_first;
      r.prompt_count = context.prompt_count;
      r.context = std::move(context.tokens);
      input_of.insert(input_of.end(), static_cast<size_t>(samples), b);
      for (int64_t i = 0; i < samples; ++i)
        r.keys.push_back(derive_key(settings.seed, 3, (at + b) * 4096 + static_cast<uint64_t>(i)));
      requests.push_back(std::move(r));
    }
    std::vector<std::vector<int32_t>> answers;
    for (GeneratedSequence& s : generate(runner.device(), runner.llama(), prompts.view(), requests, params,
                                         kDecodedTogether, {}, prompts.adapter)) {
      if (s.finish == FinishReason::kStop) s.tokens.pop_back();
      answers.push_back(std::move(s.tokens));
    }
    std::vector<size_t> taken(answers.size());
    std::iota(taken.begin(), taken.end(), size_t{0});
    if (settings.chooser) {
      std::vector<std::vector<int32_t>> canonical = canonical_answers(tokenizer, answers);
      const bool references = settings.chooser->temperature() > 0;
      if (references)
        for (size_t b = 0; b < part.size(); ++b) {
          std::vector<int32_t> reference = part[b]->completion;
          reference.resize(std::min(reference.size(), static_cast<size_t>(settings.max_new)));
          out.gain_tokens += static_cast<int64_t>(reference.size());
          canonical.push_back(strip_end(reference, tokenizer.end_ids()));
          input_of.push_back(b);
        }
      std::vector<float> scores = settings.chooser->scores(part, input_of, canonical);
      if (references)
        for (size_t b = 0; b < part.size(); ++b)
          out.gain += settings.chooser->reference_gain(
              scores[answers.size() + b],
              std::span(scores).subspan(b * static_cast<size_t>(samples),
                                        static_cast<size_t>(settings.chooser->among() - 1)));
      scores.resize(answers.size());
      taken = settings.chooser->take(std::move(scores), derive_key(settings.seed, 8, at));
    }
    for (const size_t i : taken) out.texts.push_back(tokenizer.decode(answers[i], true));
  }
  return out;
}

TextScores score_texts(ExampleSpan examples, const std::vector<std::string>& texts, int64_t samples,
                       double temperature) {
  GT_CHECK(texts.size() == examples.size() * static_cast<size_t>(samples),
           "{} texts for {} examples of {} samples", texts.size(), examples.size(), samples);
  TextScores s;
  s.temperature = temperature;
  s.texts = static_cast<int64_t>(texts.size());
  if (texts.empty()) return s;
  std::vector<std::vector<std::string>> references;
  std::vector<std::string> first;
  for (size_t i = 0; i < texts.size(); ++i) {
    const size_t example = i / static_cast<size_t>(samples);
    references.push_back(examples[example]->references);
    if (i % static_cast<size_t>(samples) == 0) first.push_back(texts[i]);
    s.rouge_l += metrics::rouge_l(texts[i], references.back()).f_measure;
  }
  s.rouge_l *= 100.0 / static_cast<double>(texts.size());
  s.bleu = metrics::corpus_bleu(texts, references).score;
  s.exact_match = 100.0 * metrics::exact_match_rate(texts, references);
  s.distinct_1 = metrics::distinct(first, 1);
  s.distinct_2 = metrics::distinct(first, 2);
  s.distinct_3 = metrics::distinct(first, 3);
  for (int n = 2; n <= 5; ++n) s.self_bleu[n - 2] = metrics::self_bleu(first, n);
  s.mean_length = metrics::length_summary(texts).mean;
  return s;
}

LossResult evaluate_drift(Runner& runner, const Tokenizer& tokenizer, PromptMaker& maker,
                          const std::string& text, int64_t window, int64_t max_windows, Placement placement) {
  GT_CHECK(window >= 2, "windows of {} tokens", window);
  std::vector<int32_t> ids = tokenizer.encode(text);
  std::vector<TokenizedExample> windows;
  for (size_t at = 0; at + 2 <= ids.size() && static_cast<int64_t>(windows.size()) < max_windows;
       at += static_cast<size_t>(window)) {
    const size_t n = std::min(ids.size() - at, static_cast<size_t>(window));
    if (n < 2) break;
    TokenizedExample e;
    // The first token is the input, so that prompt and no prompt are scored on the same tokens.
    if (tokenizer.adds_bos() && tokenizer.bos()) e.prompt.push_back(*tokenizer.bos());
    e.prompt.push_back(ids[at]);
    e.completion.assign(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                        ids.begin() + static_cast<std::ptrdiff_t>(at + n));
    windows.push_back(std::move(e));
  }
  std::vector<const TokenizedExample*> pointers;
  for (const TokenizedExample& e : windows) pointers.push_back(&e);
  return evaluate_loss(runner, maker, pointers, placement, 4);
}

}  // namespace gantrain
