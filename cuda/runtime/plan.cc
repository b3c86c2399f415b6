#include "cuda/runtime/plan.h"

#include <algorithm>
#include <cstring>

#include "cuda/runtime/check.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/staging.h"

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
  std::vector<int32_t> copy(items.size() * sizeof(T) / sizeof(int32_t));
  if (!items.empty()) std::memcpy(copy.data(), items.data(), items.size() * sizeof(T));
  words.insert(words.end(), copy.begin(), copy.end());
  return begin;
}

}  // namespace

PlanCache::~PlanCache() { forget(); }

void PlanCache::forget() {
  for (auto* list : {&entries_, &open_}) {
    for (Entry& e : *list) context_.memory->release(e.memory);
    list->clear();
  }
}

const DevicePlan& PlanCache::get(const AttentionPlan& plan, const PlanShape& shape) {
  std::list<Entry>& list = plan.id != 0 ? open_ : entries_;
  const auto found = std::find_if(list.begin(), list.end(), [&](const Entry& e) {
    if (!(e.shape == shape)) return false;
    return plan.id != 0 ? e.plan.id == plan.id
                        : e.plan.segments == plan.segments && e.plan.spans == plan.spans;
  });
  if (found != list.end()) {
    list.splice(list.begin(), list, found);
    return list.front().device;
  }
  if (plan.id == 0 && entries_.size() == kKept) {
    context_.memory->release(entries_.back().memory);
    entries_.pop_back();
  }
  list.push_front({.plan = plan, .shape = shape, .device = {}});
  fill(list.front());
  return list.front().device;
}

uint64_t PlanCache::update(const AttentionPlan& plan) {
  for (Entry& e : open_) {
    if (e.plan.id != plan.id) continue;
    const DevicePlan before = e.device;
    e.plan = plan;
    fill(e);
    if (!(e.device == before)) ++revision_;
  }
  return revision_;
}

void PlanCache::close(uint64_t id) {
  for (auto it = open_.begin(); it != open_.end();) {
    if (it->plan.id == id) {
      context_.memory->release(it->memory);
      it = open_.erase(it);
    } else {
      ++it;
    }
  }
}

void PlanCache::fill(Entry& entry) {
  const AttentionPlan& plan = entry.plan;
  const PlanShape& shape = entry.shape;
  const std::vector<QueryTask> tasks = query_tasks(plan, shape.queries_per_task, shape.few_queries);
  const auto blocks = key_parts(plan, shape.key_rows, shape.keys_per_block);
  std::vector<int32_t> offsets{0}, words;
  std::vector<KeyPart> parts;
  for (const auto& block : blocks) {
    parts.insert(parts.end(), block.begin(), block.end());
    offsets.push_back(static_cast<int32_t>(parts.size()));
  }
  const size_t segments = append(words, plan.segments), spans = append(words, plan.spans);
  const size_t task = append(words, tasks), offset = append(words, offsets), part = append(words, parts);
  if (!entry.memory || entry.words < words.size()) {
    context_.memory->release(entry.memory);
    entry.memory = nullptr;
    // A plan that changes in place grows by a part of the keys now and then.
    entry.words = plan.id != 0 ? 2 * words.size() : words.size();
    entry.memory = context_.memory->allocate(static_cast<int64_t>(entry.words * sizeof(int32_t)));
  }
  const size_t bytes = words.size() * sizeof(int32_t);
  std::byte* staged = context_.staging->take(static_cast<int64_t>(bytes));
  std::memcpy(staged, words.data(), bytes);
  GT_CUDA(cudaMemcpyAsync(entry.memory, staged, bytes, cudaMemcpyHostToDevice, context_.stream));
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
}

}  // namespace gantrain::cuda
