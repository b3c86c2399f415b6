#include "train/play/pairs.h"

#include <algorithm>
#include <map>

#include "core/rng.h"
#include "train/text.h"

namespace gantrain {

std::vector<int32_t> strip_end(const std::vector<int32_t>& tokens, const std::vector<int32_t>& end_ids) {
  std::vector<int32_t> out = tokens;
  while (!out.empty() && std::find(end_ids.begin(), end_ids.end(), out.back()) != end_ids.end())
    out.pop_back();
  return out;
}

std::optional<std::vector<int32_t>> canonical_tokens(const Tokenizer& tokenizer,
                                                     const std::vector<int32_t>& tokens) {
  if (tokens.empty()) return tokens;
  // Behind a line break, so that a tokenizer's treatment of a text's beginning (a dummy space) does not
  // count.
  const std::vector<int32_t> anchor = tokenizer.encode("\n");
  std::vector<int32_t> all = anchor;
  all.insert(all.end(), tokens.begin(), tokens.end());
  const std::string text = tokenizer.decode(all);
  if (find_bad_utf8(text) != std::string::npos) return std::nullopt;
  const std::vector<int32_t> again = tokenizer.encode(text);
  if (again.size() < anchor.size() || !std::equal(anchor.begin(), anchor.end(), again.begin()))
    return std::nullopt;
  return std::vector<int32_t>(again.begin() + static_cast<std::ptrdiff_t>(anchor.size()), again.end());
}

std::vector<std::vector<int32_t>> canonical_answers(const Tokenizer& tokenizer,
                                                    std::span<const std::vector<int32_t>> answers) {
  std::vector<std::vector<int32_t>> out;
  for (const std::vector<int32_t>& answer : answers)
    out.push_back(canonical_tokens(tokenizer, answer).value_or(answer));
  return out;
}

std::vector<Rollout> roll_out(Device& device, const Llama& llama, const Tokenizer& tokenizer,
                              const Prompts& prompts, ExampleSpan inputs, Placement placement,
                              std::span<const RolloutGroup> groups, int64_t max_new, bool gumbel,
                              double temperature) {
  SamplingParams params;
  params.temperature = static_cast<float>(temperature);
  params.max_new = static_cast<int32_t>(max_new);
  params.stop = tokenizer.end_ids();
  params.gumbel = gumbel;
  std::vector<GenerationRequest> requests;
  std::vector<Rollout> rollouts;
  for (const RolloutGroup& group : groups)
    for (size_t b = group.begin; b < group.end; ++b) {
      RequestContext context = request_context(prompts, b, *inputs[b], placement);
      GenerationRequest r;
      r.prompt_first = context.prompt_first;
      r.prompt_count = context.prompt_count;
      r.cached = context.cached;
      r.context = std::move(context.tokens);
      for (int64_t i = 0; i < group.samples; ++i) {
        Rollout rollout;
        rollout.input = b;
        rollout.key = derive_key(group.key, group.first + b - group.begin, static_cast<uint64_t>(i));
        r.keys.push_back(rollout.key);
        rollouts.push_back(std::move(rollout));
      }
      requests.push_back(std::move(r));
    }
  std::vector<GeneratedSequence> sequences =
      generate(device, llama, prompts.view(), requests, params, kDecodedTogether, {}, prompts.adapter);
  for (size_t i = 0; i < rollouts.size(); ++i) {
    Rollout& r = rollouts[i];
    r.tokens = std::move(sequences[i].tokens);
    r.ended = sequences[i].finish == FinishReason::kStop;
    std::vector<int32_t> own = r.tokens;
    if (r.ended) own.pop_back();
    const std::optional<std::vector<int32_t>> canonical = canonical_tokens(tokenizer, own);
    r.text = canonical ? *canonical : own;
    r.canonical = canonical && *canonical == own;
  }
  return rollouts;
}

std::optional<AnswerPair> make_pair(size_t input, size_t rollout, const std::vector<int32_t>& real,
                                    const std::vector<int32_t>& fake, size_t ending) {
  size_t length = std::min(real.size(), fake.size());
  if (length == 0) return std::nullopt;
  if (length > 2 * ending) length -= ending;
  AnswerPair pair;
  pair.input = input;
  pair.rollout = rollout;
  pair.real.assign(real.begin(), real.begin() + static_cast<std::ptrdiff_t>(length));
  pair.fake.assign(fake.begin(), fake.begin() + static_cast<std::ptrdiff_t>(length));
  return pair;
}

PairBatch pack_pairs(ExampleSpan inputs, const std::vector<AnswerPair>& pairs, bool merge,
                     const ContextCache::Front& front) {
  // A shorter cut of an answer is a part of the longer one's rows, for no row sees what comes after it.
  struct Answer {
    size_t input;
    bool fake;
    std::vector<int32_t> tokens;
    int32_t segment = -1;
  };
  std::vector<Answer> answers;
  auto place = [&](size_t input, const std::vector<int32_t>& tokens, bool fake) -> size_t {
    if (merge || !fake) {
      for (size_t i = 0; i < answers.size(); ++i) {
        Answer& a = answers[i];
        if (a.input != input || (!merge && a.fake)) continue;
        const size_t n = std::min(a.tokens.size(), tokens.size());
        if (!std::equal(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n), a.tokens.begin()))
          continue;
        if (tokens.size() > a.tokens.size()) a.tokens = tokens;
        return i;
      }
    }
    answers.push_back({input, fake, tokens});
    return answers.size() - 1;
  };
  std::vector<size_t> real, fake;
  for (const AnswerPair& p : pairs) {
    real.push_back(place(p.input, p.real, false));
    fake.push_back(place(p.input, p.fake, true));
  }
  PairBatch out{.batch = batch_behind(front.view), .real = {}, .fake = {}};
  std::map<size_t, int32_t> contexts;
  for (Answer& a : answers) {
    const auto [it, inserted] = contexts.try_emplace(a.input, -1);
    if (inserted) {
      const KvSpan cached = front.spans.empty() ? KvSpan{} : front.spans[a.input];
      it->second =
          cached.count > 0 ? out.batch.add_cached(cached) : out.batch.add(-1, inputs[a.input]->prompt);
    }
    a.segment = out.batch.add(it->second, a.tokens);
  }
  auto rows = [&](size_t answer, size_t length) {
    std::vector<int32_t> r(length);
    for (size_t t = 0; t < length; ++t)
      r[t] = out.batch.segment(answers[answer].segment).row_begin + static_cast<int32_t>(t);
    return r;
  };
  for (size_t i = 0; i < pairs.size(); ++i) {
    out.real.push_back(rows(real[i], pairs[i].real.size()));
    out.fake.push_back(rows(fake[i], pairs[i].fake.size()));
  }
  return out;
}

PairRows rows_of_pairs(const PairBatch& batch, size_t begin, size_t end) {
  PairRows out;
  out.offsets.push_back(0);
  for (const auto* side : {&batch.real, &batch.fake})
    for (size_t i = begin; i < end; ++i) {
      out.rows.insert(out.rows.end(), (*side)[i].begin(), (*side)[i].end());
      out.offsets.push_back(static_cast<int32_t>(out.rows.size()));
    }
  return out;
}

}  // namespace gantrain
