#include "cuda/runtime/plan.h"

#include <algorithm>
#include <cstring>

#include "cuda/runtime/check.h"

namespace gantrain::cuda {
namespace {

constexpr size_t kKept = 32;

// Tasks of at most `few` queries come last.
std::vector<QueryTask> query_tasks(const AttentionPlan& plan, int32_t block, int32_t few) {
  std::vector<QueryTask> tasks;
  for (size_t s = 0; s < plan.segments.size(); ++s)
    for (int32_t q = 0; q < plan.segments[s].q_count; q += block)
      tasks.push_back({static_cast<int32_t>(s), q, std::min(block, plan.segments[s].q_count - q)});
  // Later queries of a causal segment see more keys: the longest tasks start first.
  std::stable_sort(tasks.begin(), tasks.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.count <= few, -a.begin) < std::pair(b.count <= few, -b.begin);
  });
  return tasks;
}

std::vector<std::vector<KeyPart>> key_parts(const AttentionPlan& plan, int64_t rows, int32_t block) {
  std::vector<std::vector<KeyPart>> parts(static_cast<size_t>((rows + block - 1) / block));
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const AttentionSegment& s = plan.segments[i];
    int32_t key = 0;
    const auto add = [&](int32_t begin, int32_t count) {
      for (int32_t row = begin; row < begin + count;) {
        const int32_t end = std::min(begin + count, (row / block + 1) * block);
        parts[static_cast<size_t>(row / block)].push_back(
            {static_cast<int32_t>(i), row, end - row, key + row - begin});
        row = end;
      }
      key += count;
    };
    if (s.q_count == 0) continue;
    for (int32_t p = 0; p < s.span_count; ++p) {
      const KvSpan& span = plan.spans[static_cast<size_t>(s.span_begin + p)];
      add(span.begin, span.count);
    }
    if (s.kv_begin >= 0) add(s.kv_begin, s.q_count);
  }
  return parts;
}

// Appends the items' words; returns where they begin.
template <typename T>
size_t append(std::vector<int32_t>& words, const std::vector<T>& items) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0 && alignof(T) == alignof(int32_t));
  const size_t begin = words.size();
  words.resize(begin + items.size() * sizeof(T) / sizeof(int32_t));
  if (!items.empty()) std::memcpy(words.data() + begin, items.data(), items.size() * sizeof(T));
  return begin;
}

}  // namespace

PlanCache::~PlanCache() {
  for (Entry& e : entries_) (void)cudaFreeAsync(e.memory, context_.stream);
}

const DevicePlan& PlanCache::get(const AttentionPlan& plan, const PlanShape& shape) {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) {
    return e.shape == shape && e.plan.segments == plan.segments && e.plan.spans == plan.spans;
  });
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front().device;
  }
  Entry e{.plan = plan, .shape = shape, .words = {}, .memory = nullptr, .device = {}};
  const std::vector<QueryTask> tasks = query_tasks(plan, shape.queries_per_task, shape.few_queries);
  const auto blocks = key_parts(plan, shape.key_rows, shape.keys_per_block);
  std::vector<int32_t> offsets{0};
  std::vector<KeyPart> parts;
  for (const auto& block : blocks) {
    parts.insert(parts.end(), block.begin(), block.end());
    offsets.push_back(static_cast<int32_t>(parts.size()));
  }
  const size_t segments = append(e.words, plan.segments), spans = append(e.words, plan.spans);
  const size_t task = append(e.words, tasks), offset = append(e.words, offsets),
               part = append(e.words, parts);
  const size_t bytes = e.words.size() * sizeof(int32_t);
  if (entries_.size() == kKept) {
    (void)cudaFreeAsync(entries_.back().memory, context_.stream);
    entries_.pop_back();
  }
  GT_CUDA(cudaMallocAsync(&e.memory, bytes, context_.stream));
  entries_.push_front(std::move(e));
  Entry& entry = entries_.front();
  GT_CUDA(cudaMemcpyAsync(entry.memory, entry.words.data(), bytes, cudaMemcpyHostToDevice, context_.stream));
  const auto* base = static_cast<const int32_t*>(entry.memory);
  int64_t queries = 0;
  for (const AttentionSegment& s : plan.segments) queries += s.q_count;
  entry.device = {
      .segments = reinterpret_cast<const AttentionSegment*>(base + segments),
      .spans = reinterpret_cast<const KvSpan*>(base + spans),
      .tasks = reinterpret_cast<const QueryTask*>(base + task),
      .part_offsets = base + offset,
      .parts = reinterpret_cast<const KeyPart*>(base + part),
      .task_count = static_cast<int32_t>(tasks.size()),
      .key_blocks = static_cast<int32_t>(blocks.size()),
      .few_begin = static_cast<int32_t>(std::count_if(
          tasks.begin(), tasks.end(), [&](const QueryTask& t) { return t.count > shape.few_queries; })),
      .covers_queries = queries == shape.query_rows};
  return entry.device;
}

}  // namespace gantrain::cuda
