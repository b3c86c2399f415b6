// Attention on the f32 units, of two segments that share a prompt: forward, backward; and appending to a
// cache.
#include "cuda/kernels/attention_general.cuh"
#include "cuda/kernels/prefix.cuh"
#include "cuda/standalone/attention_truth.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

int main() {
  // Rows 0 .. 4 are the prompt (causal), then 21 and 9 rows that see it and themselves. Two query heads a key
  // head.
  constexpr int kPrompt = 5, kFirst = 21, kSecond = 9, kN = kPrompt + kFirst + kSecond, kHeads = 4, kKv = 2,
                kD = 40;
  constexpr int kGroup = kHeads / kKv, kColumns = 2, kPerTask = kGeneralRows / kGroup;
  constexpr float kScale = 0.17f;
  const std::vector<PlanSegment> segments = {{0, kPrompt, 0, 0, 0},
                                             {kPrompt, kFirst, 0, 1, kPrompt},
                                             {kPrompt + kFirst, kSecond, 0, 1, kPrompt + kFirst}};
  const std::vector<PlanSpan> spans = {{0, kPrompt}};
  std::vector<PlanTask> tasks;
  for (int s = 0; s < 3; ++s)
    for (int i = 0; i < segments[s].q_count; i += kPerTask)
      tasks.push_back(
          {s, i, std::min(kPerTask, segments[s].q_count - i), segments[s].span_count ? kPrompt : 0, -1});
  // For each block of key rows: which rows of which segment's keys lie in it.
  std::vector<PlanPart> parts;
  std::vector<int32_t> offsets = {0};
  constexpr int kBlocks = (kN + kGeneralRows - 1) / kGeneralRows;
  for (int b = 0; b < kBlocks; ++b) {
    const int begin = b * kGeneralRows, end = std::min(kN, begin + kGeneralRows);
    const auto add = [&](int segment, int row, int count, int key) {
      const int low = std::max(row, begin), high = std::min(row + count, end);
      if (low < high) parts.push_back({segment, low, high - low, key + low - row});
    };
    for (int s = 0; s < 3; ++s) {
      if (segments[s].span_count) add(s, 0, kPrompt, 0);
      add(s, segments[s].kv_begin, segments[s].q_count, segments[s].span_count ? kPrompt : 0);
    }
    offsets.push_back(static_cast<int32_t>(parts.size()));
  }
  const auto q = normal(size_t{kN} * kHeads * kD, 1), k = normal(size_t{kN} * kKv * kD, 2),
             v = normal(size_t{kN} * kKv * kD, 3), d_o = normal(size_t{kN} * kHeads * kD, 4);
  Values<float> q_d(q), k_d(k), v_d(v), d_o_d(d_o), o_d(q.size()), lse_d(size_t{kN} * kHeads), dq_d(q.size()),
      dk_d(k.size()), dv_d(v.size());
  Values<float2> statistics_d(size_t{kN} * kHeads);
  Values<PlanSegment> segments_d(segments);
  Values<PlanSpan> spans_d(spans);
  Values<PlanTask> tasks_d(tasks);
  Values<PlanPart> parts_d(parts);
  Values<int32_t> offsets_d(offsets);
  const dim3 block(kWarp, kGeneralWarps), grid(static_cast<unsigned>(tasks.size()), kKv);
  attention_general_forward_kernel<float, kColumns><<<grid, block, general_shared_bytes(kD, false)>>>(
      q_d, k_d, v_d, segments_d, spans_d, tasks_d, kScale, o_d, lse_d, kHeads, kKv, kD);
  finished("attention_general_forward_kernel");
  constexpr int kLanes = 16;  // of four values each
  attention_delta_kernel<float, float, 4>
      <<<(kN * kHeads * kLanes + kDeltaThreads - 1) / kDeltaThreads, kDeltaThreads>>>(
          o_d, d_o_d, lse_d, statistics_d, kN * kHeads, kD, kLanes);
  finished("attention_delta_kernel");
  const AttentionGradients<float> to{dq_d, nullptr, nullptr, dk_d, dv_d, kN, kHeads, nullptr, nullptr};
  attention_general_query_backward_kernel<float, float, kColumns>
      <<<grid, block, general_shared_bytes(kD, true)>>>(q_d, k_d, v_d, d_o_d, statistics_d, segments_d,
                                                        spans_d, tasks_d, kScale, to, kHeads, kKv, kD);
  finished("attention_general_query_backward_kernel");
  attention_general_key_backward_kernel<float, float, kColumns>
      <<<dim3(kBlocks, kKv), block, general_shared_bytes(kD, true)>>>(q_d, k_d, v_d, d_o_d, statistics_d,
                                                                      segments_d, spans_d, offsets_d, parts_d,
                                                                      kScale, to, kN, kHeads, kKv, kD);
  finished("attention_general_key_backward_kernel");

  const AttentionTruth want = attention_truth(segments, spans, {kHeads, kKv, kD}, double(kScale),
                                              to_double(q), to_double(k), to_double(v), to_double(d_o));
  // Rows go to their slots; -1 is not kept.
  std::vector<int32_t> slots;
  std::vector<double> cache(k.size() + size_t{kKv} * kD);
  constexpr size_t kWidth = size_t{kKv} * kD;
  for (int n = 0; n < kN; ++n) {
    slots.push_back(n % 7 == 3 ? -1 : kN - n);
    for (size_t j = 0; j < kWidth && slots[n] >= 0; ++j)
      cache[slots[n] * kWidth + j] = double(k[n * kWidth + j]);
  }
  Values<int32_t> slots_d(slots);
  Values<float> cache_k(cache.size()), cache_v(cache.size());
  kv_append_kernel<float, 64><<<dim3(kN, 2), 64>>>(k_d, k_d, slots_d, cache_k, cache_v, kWidth);
  finished("kv_append_kernel");

  // A prefix: layer 1 of a table of three, and its gradient.
  constexpr int kPrefixRows = 5;
  constexpr size_t kRow = 6 * kWidth;
  const std::vector<float> table = normal(kPrefixRows * kRow, 21);
  std::vector<double> prefix_k, prefix_v, dtable(table.begin(), table.end());
  for (size_t p = 0; p < kPrefixRows; ++p)
    for (size_t j = 0; j < kWidth; ++j) {
      const size_t at = p * kRow + 2 * kWidth + j;
      prefix_k.push_back(double(table[at]));
      prefix_v.push_back(double(table[at + kWidth]));
      dtable[at] += double(k[p * kWidth + j]);
      dtable[at + kWidth] += double(v[p * kWidth + j]);
    }
  Values<float> table_d(table), dtable_d(table), prefix_k_d(prefix_k.size()), prefix_v_d(prefix_v.size());
  prefix_forward_kernel<float, 1, 64>
      <<<dim3(kPrefixRows, 2), 64>>>(table_d + 2 * kWidth, prefix_k_d, prefix_v_d, kRow, kWidth);
  finished("prefix_forward_kernel");
  prefix_backward_kernel<float, 1, 64>
      <<<dim3(kPrefixRows, 2), 64>>>(k_d, v_d, dtable_d + 2 * kWidth, kRow, kWidth);
  finished("prefix_backward_kernel");

  Verdict verdict;
  verdict.check("o", o_d.host(), want.o);
  verdict.check("lse", lse_d.host(), want.lse);
  verdict.check("dq", dq_d.host(), want.dq);
  verdict.check("dk", dk_d.host(), want.dk);
  verdict.check("dv", dv_d.host(), want.dv);
  verdict.check("cache of k", cache_k.host(), cache, 0.0);
  verdict.check("cache of v", cache_v.host(), cache, 0.0);
  verdict.check("prefix k", prefix_k_d.host(), prefix_k, 0.0);
  verdict.check("prefix v", prefix_v_d.host(), prefix_v, 0.0);
  verdict.check("dtable", dtable_d.host(), dtable);
  return verdict.finish();
}
