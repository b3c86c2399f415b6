#include "cuda/runtime/plan.h"

#include <algorithm>
#include <cstring>

#include "cuda/runtime/check.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/staging.h"

namespace gantrain::cuda {
namespace {

constexpr size_t kKept = 32;

int32_t span_keys(const AttentionPlan& plan, const AttentionSegment& s) {
  int32_t keys = 0;
  for (int32_t i = 0; i < s.span_count; ++i) keys += plan.spans[static_cast<size_t>(s.span_begin + i)].count;
  return keys;
}
int32_t task_keys(const AttentionPlan& plan, const QueryTask& t) {
  return t.span_keys + (plan.segments[static_cast<size_t>(t.segment)].kv_begin >= 0 ? t.begin + t.count : 0);
}

// Whether a task is all of a segment of at most `few` queries. The last few of a longer segment are not:
// blocks beside theirs walk as many keys, so that cutting theirs into pieces shortens nothing and costs a
// launch.
bool of_few(const AttentionPlan& plan, const QueryTask& t, int32_t few) {
  return plan.segments[static_cast<size_t>(t.segment)].q_count <= few;
}

// Tasks of segments of at most `few` queries come last.
std::vector<QueryTask> query_tasks(const AttentionPlan& plan, int32_t block, int32_t few) {
  std::vector<QueryTask> tasks;
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    const int32_t keys = span_keys(plan, plan.segments[s]);
    for (int32_t q = 0; q < plan.segments[s].q_count; q += block)
      tasks.push_back({static_cast<int32_t>(s), q, std::min(block, plan.segments[s].q_count - q), keys, -1});
  }
  // Later queries of a causal segment see more keys: the longest tasks start first.
  std::stable_sort(tasks.begin(), tasks.end(), [&](const auto& a, const auto& b) {
    return std::pair(of_few(plan, a, few), -a.begin) < std::pair(of_few(plan, b, few), -b.begin);
  });
  return tasks;
}

// The rows of every segment's keys, once a segment, and the tasks' places in the list.
std::vector<int32_t> list_keys(const AttentionPlan& plan, const PlanShape& shape,
                               std::vector<QueryTask>& tasks) {
  std::vector<int32_t> list, begins(plan.segments.size(), -1);
  for (QueryTask& t : tasks) {
    if (shape.lists == PlanShape::Lists::kMany && of_few(plan, t, shape.few_queries)) continue;
    const AttentionSegment& s = plan.segments[static_cast<size_t>(t.segment)];
    int32_t& begin = begins[static_cast<size_t>(t.segment)];
    if (begin < 0) {
      begin = static_cast<int32_t>(list.size());
      const auto add = [&](int32_t row, int32_t count) {
        for (int32_t i = 0; i < count; ++i) list.push_back(row + i);
      };
      for (int32_t i = 0; i < s.span_count; ++i) {
        const KvSpan& span = plan.spans[static_cast<size_t>(s.span_begin + i)];
        add(span.begin, span.count);
      }
      if (s.kv_begin >= 0) add(s.kv_begin, s.q_count);
      while (list.size() % kListed != 0) list.push_back(list.back());
      GT_CHECK(list.size() < (size_t{1} << 31), "attention: {} keys over all segments", list.size());
    }
    t.keys = begin;
  }
  list.resize(list.size() + 2 * kListed, 0);  // kernels look up to two tiles ahead
  return list;
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

// A block's parts as runs of tiles, in the order of the plan. Tiles begin at multiples of run_queries in
// their segment, so that a key's gradient is summed in the same order whatever else lies in its block.
void add_runs(const AttentionPlan& plan, const PlanShape& shape, int32_t base,
              const std::vector<KeyPart>& parts, std::vector<KeyRun>& runs) {
  const auto rows = static_cast<int32_t>(std::min<int64_t>(shape.keys_per_block, shape.key_rows - base));
  for (const KeyPart& p : parts) {
    const AttentionSegment& s = plan.segments[static_cast<size_t>(p.segment)];
    const int32_t spans = span_keys(plan, s), low = p.row - base, high = low + p.count;
    const int32_t per = shape.run_queries, tiles_end = s.q_count;
    const bool own = p.key >= spans;
    // Row r of the block is seen from the segment's query r + shift on.
    const int32_t shift = own ? p.key - low - spans : -shape.keys_per_block;
    const int32_t begin = own ? (p.key - spans) / per * per : 0;
    const bool whole = low == 0 && high >= rows;
    const int32_t edge = std::max(0, rows - 1 + shift);  // the first query that sees every row, where whole
    const int32_t unmasked =
        whole ? std::min(tiles_end, std::max(begin, (edge + per - 1) / per * per)) : tiles_end;
    for (int32_t head = 0; head < shape.group; head += shape.run_heads) {
      const int32_t width = std::min(shape.run_heads, shape.group - head);
      const auto add = [&](int32_t from, int32_t to, int32_t masked) {
        if (from < to)
          runs.push_back(
              {s.q_begin + from, to - from, head, width, own ? shift - from : shift, low, high, masked});
      };
      add(begin, unmasked, 1);
      add(unmasked, tiles_end, 0);
    }
  }
}

// Contexts of few queries, cut into pieces by themselves alone: a task's cut does not depend on its
// neighbours.
void add_pieces(const AttentionPlan& plan, const PlanShape& shape, const std::vector<QueryTask>& tasks,
                int32_t few_begin, std::vector<KeyPiece>& pieces, std::vector<PieceMerge>& merges) {
  int32_t slot = 0;
  for (auto t = static_cast<size_t>(few_begin); t < tasks.size(); ++t) {
    const int32_t keys = task_keys(plan, tasks[t]), count = (keys + shape.piece_keys - 1) / shape.piece_keys;
    if (count > 1) merges.push_back({static_cast<int32_t>(t), slot, count});
    for (int32_t i = 0; i < count; ++i)
      pieces.push_back({static_cast<int32_t>(t), i * shape.piece_keys, count > 1 ? slot++ : -1});
  }
}

int32_t few_from(const AttentionPlan& plan, const std::vector<QueryTask>& tasks, int32_t few) {
  return static_cast<int32_t>(
      std::count_if(tasks.begin(), tasks.end(), [&](const QueryTask& t) { return !of_few(plan, t, few); }));
}

// Appends the items' words at a multiple of 16 bytes; returns where they begin.
template <typename T>
size_t append(std::vector<int32_t>& words, const std::vector<T>& items) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  words.resize((words.size() + 3) / 4 * 4);
  const size_t begin = words.size();
  std::vector<int32_t> copy(items.size() * sizeof(T) / sizeof(int32_t));
  if (!items.empty()) std::memcpy(copy.data(), items.data(), items.size() * sizeof(T));
  words.insert(words.end(), copy.begin(), copy.end());
  return begin;
}

}  // namespace

PartialResults partial_results(const AttentionPlan& plan, const PlanShape& shape) {
  PartialResults r;
  const std::vector<QueryTask> tasks = query_tasks(plan, shape.queries_per_task, shape.few_queries);
  for (auto t = static_cast<size_t>(few_from(plan, tasks, shape.few_queries)); t < tasks.size(); ++t) {
    const int32_t keys = task_keys(plan, tasks[t]);
    if (keys <= shape.piece_keys) continue;
    r.slots += (keys + shape.piece_keys - 1) / shape.piece_keys;
    r.queries = std::max(r.queries, tasks[t].count);
  }
  return r;
}

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
  std::vector<QueryTask> tasks = query_tasks(plan, shape.queries_per_task, shape.few_queries);
  const int32_t few_begin = few_from(plan, tasks, shape.few_queries);
  std::vector<int32_t> keys;
  if (shape.lists != PlanShape::Lists::kNone) keys = list_keys(plan, shape, tasks);
  std::vector<KeyPiece> pieces;
  std::vector<PieceMerge> merges;
  if (shape.piece_keys > 0) add_pieces(plan, shape, tasks, few_begin, pieces, merges);
  // The other direction: from keys to the queries that see them.
  std::vector<std::vector<KeyPart>> blocks;
  if (shape.keys_per_block > 0) blocks = key_parts(plan, shape.key_rows, shape.keys_per_block);
  std::vector<int32_t> part_offsets{0}, run_offsets{0}, words;
  std::vector<KeyPart> parts;
  std::vector<KeyRun> runs;
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (shape.run_queries > 0) {
      add_runs(plan, shape, static_cast<int32_t>(b) * shape.keys_per_block, blocks[b], runs);
    } else {
      parts.insert(parts.end(), blocks[b].begin(), blocks[b].end());
    }
    part_offsets.push_back(static_cast<int32_t>(parts.size()));
    run_offsets.push_back(static_cast<int32_t>(runs.size()));
  }
  const size_t segment = append(words, plan.segments), span = append(words, plan.spans);
  const size_t task = append(words, tasks), key = append(words, keys);
  const size_t part_offset = append(words, part_offsets), part = append(words, parts);
  const size_t run_offset = append(words, run_offsets), run = append(words, runs);
  const size_t piece = append(words, pieces), merge = append(words, merges);
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
  entry.device = {.segments = reinterpret_cast<const AttentionSegment*>(base + segment),
                  .spans = reinterpret_cast<const KvSpan*>(base + span),
                  .tasks = reinterpret_cast<const QueryTask*>(base + task),
                  .keys = base + key,
                  .part_offsets = base + part_offset,
                  .parts = reinterpret_cast<const KeyPart*>(base + part),
                  .run_offsets = base + run_offset,
                  .runs = reinterpret_cast<const KeyRun*>(base + run),
                  .pieces = reinterpret_cast<const KeyPiece*>(base + piece),
                  .merges = reinterpret_cast<const PieceMerge*>(base + merge),
                  .task_count = static_cast<int32_t>(tasks.size()),
                  .key_blocks = static_cast<int32_t>(blocks.size()),
                  .piece_count = static_cast<int32_t>(pieces.size()),
                  .merge_count = static_cast<int32_t>(merges.size()),
                  .few_begin = few_begin,
                  .covers_queries = queries == shape.query_rows};
}

}  // namespace gantrain::cuda
