#include "model/context_cache.h"

#include <numeric>

#include "model/runner.h"

namespace gantrain {

ContextCache::ContextCache(Device& device, const Llama& llama, int64_t kept, int64_t together)
    : device_(device), kept_(kept), together_(together) {
  const Range range(device, "contexts");
  cache_ = std::make_unique<KvCache>(device, llama, kept + together);
}

int64_t ContextCache::bytes_of_row(const Device& device, const Llama& llama) {
  const LlamaConfig& c = llama.config();
  return 2 * c.num_layers * c.num_kv_heads * c.head_dim * dtype_size(device.kept_dtype(llama.dtype()));
}

ContextCache::Front ContextCache::place(Runner& runner,
                                        const std::vector<const std::vector<int32_t>*>& contexts) {
  const Range range(device_, "contexts");
  std::map<std::vector<int32_t>, KvSpan> passing;  // behind the kept ones, for this batch alone
  int64_t passing_used = 0;
  std::vector<KvSpan> cached;
  for (const std::vector<int32_t>* tokens : contexts) {
    if (!tokens || tokens->empty()) {
      cached.emplace_back();
      continue;
    }
    const auto n = static_cast<int32_t>(tokens->size());
    if (const auto it = kept_spans_.find(*tokens); it != kept_spans_.end()) {
      cached.push_back(it->second);
      continue;
    }
    const bool keep = kept_used_ + n <= kept_;
    const auto [it, inserted] = (keep ? kept_spans_ : passing).try_emplace(*tokens, KvSpan{0, n});
    if (inserted) {
      int64_t& used = keep ? kept_used_ : passing_used;
      it->second.begin = static_cast<int32_t>((keep ? 0 : kept_) + used);
      used += n;
      GT_CHECK(passing_used <= together_, "{} rows of contexts together, room for {}", passing_used,
               together_);
      PackedBatch alone;
      alone.add(-1, *tokens);
      std::vector<int32_t> slots(tokens->size());
      std::iota(slots.begin(), slots.end(), it->second.begin);
      runner.fill(alone, *cache_, slots);
    }
    cached.push_back(it->second);
  }

  Front front;
  std::vector<int32_t> to(static_cast<size_t>(kept_ + together_), -1);
  int32_t rows = 0;
  for (const KvSpan& s : cached) {
    if (s.count == 0) {
      front.spans.emplace_back();
      continue;
    }
    int32_t& first = to[static_cast<size_t>(s.begin)];
    if (first < 0)
      for (int32_t i = 0; i < s.count; ++i) to[static_cast<size_t>(s.begin + i)] = rows++;
    front.spans.push_back({first, s.count});
  }
  front.slots = upload(device_, std::span<const int32_t>(to));
  front.view = {.cache = cache_.get(), .slots = front.slots, .rows = rows};
  return front;
}

}  // namespace gantrain
