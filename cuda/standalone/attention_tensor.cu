// Attention on tensor cores, heads of 64 and of 128: two segments that share a prompt, forward and backward,
// and decoding of one query over many keys, in one piece and in several that are merged.
#include "cuda/kernels/attention_decode.cuh"
#include "cuda/kernels/attention_tensor.cuh"
#include "cuda/standalone/attention_truth.cuh"

using namespace gantrain::cuda;
using namespace gantrain::standalone;

namespace {

constexpr int kHeads = 6, kKv = 2, kGroup = kHeads / kKv;
constexpr float kScale = 0.11f;

template <typename Kernel>
void allow(Kernel* kernel, int bytes) {
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
       "cudaFuncSetAttribute");
}

// Queries, keys and values of a problem, on the device and in double.
struct Operands {
  Operands(int queries, int keys, int d, unsigned seed)
      : q_host(to_bf16(normal(size_t(queries) * kHeads * d, seed))),
        k_host(to_bf16(normal(size_t(keys) * kKv * d, seed + 1))),
        v_host(to_bf16(normal(size_t(keys) * kKv * d, seed + 2))),
        do_host(to_bf16(normal(size_t(queries) * kHeads * d, seed + 3))),
        q(q_host),
        k(k_host),
        v(v_host),
        d_o(do_host),
        o(q_host.size()),
        lse(size_t(queries) * kHeads) {}
  AttentionTruth truth(const std::vector<PlanSegment>& segments, const std::vector<PlanSpan>& spans,
                       int d) const {
    return attention_truth(segments, spans, {kHeads, kKv, d}, double(kScale), to_double(q_host),
                           to_double(k_host), to_double(v_host), to_double(do_host));
  }
  std::vector<__nv_bfloat16> q_host, k_host, v_host, do_host;
  Values<__nv_bfloat16> q, k, v, d_o, o;
  Values<float> lse;
};

// Rows 0 .. 22 are the prompt (causal), then 150 and 41 rows that see it and themselves.
template <int kD>
void training(Verdict& verdict) {
  constexpr int kPrompt = 23, kFirst = 150, kSecond = 41, kN = kPrompt + kFirst + kSecond;
  const std::vector<PlanSegment> segments = {{0, kPrompt, 0, 0, 0},
                                             {kPrompt, kFirst, 0, 1, kPrompt},
                                             {kPrompt + kFirst, kSecond, 0, 1, kPrompt + kFirst}};
  const std::vector<PlanSpan> spans = {{0, kPrompt}};
  constexpr int kPerTask = kTensorRows / kGroup;
  std::vector<PlanTask> tasks;
  std::vector<int32_t>
      keys;  // rows of a segment's keys, to a multiple of the longest tile, and two tiles more
  for (int s = 0; s < 3; ++s) {
    const auto begin = static_cast<int32_t>(keys.size());
    const int span = segments[s].span_count ? kPrompt : 0;
    for (int i = 0; i < span; ++i) keys.push_back(i);
    for (int i = 0; i < segments[s].q_count; ++i) keys.push_back(segments[s].kv_begin + i);
    while (keys.size() % kForwardKeys != 0) keys.push_back(keys.back());
    for (int i = 0; i < segments[s].q_count; i += kPerTask)
      tasks.push_back({s, i, std::min(kPerTask, segments[s].q_count - i), span, begin});
  }
  keys.resize(keys.size() + 2 * kForwardKeys, 0);
  // For each block of 64 key rows the queries that see them: first those for whom some are masked.
  constexpr int kPer = kBackwardTile<kD> / kGroup, kBlocks = (kN + kTensorRows - 1) / kTensorRows;
  std::vector<PlanRun> runs;
  std::vector<int32_t> offsets = {0};
  for (int b = 0; b < kBlocks; ++b) {
    const int base = b * kTensorRows, rows = std::min(kTensorRows, kN - base);
    for (const PlanSegment& s : segments) {
      const auto add = [&](int row, int count, bool own) {
        const int low = std::max(row - base, 0), high = std::min(row + count - base, rows);
        if (low >= high) return;
        // Row r of the block is seen from query r + shift of the segment on.
        const int shift = own ? base - row : -kTensorRows;
        const int from = own ? (low + shift) / kPer * kPer : 0;
        const bool whole = low == 0 && high == rows;
        const int all =
            whole ? std::min(s.q_count, (std::max(0, rows - 1 + shift) + kPer - 1) / kPer * kPer) : s.q_count;
        if (from < all)
          runs.push_back({s.q_begin + from, all - from, 0, kGroup, own ? shift - from : shift, low, high, 1});
        if (all < s.q_count) runs.push_back({s.q_begin + all, s.q_count - all, 0, kGroup, 0, low, high, 0});
      };
      if (s.span_count) add(0, kPrompt, false);
      add(s.kv_begin, s.q_count, true);
    }
    offsets.push_back(static_cast<int32_t>(runs.size()));
  }

  Operands x(kN, kN, kD, 1);
  Values<float2> statistics(size_t{kN} * kHeads);
  // Gradients side by side, as the product in front of attention wants them, before rotation by `angles`.
  constexpr int kRowHeads = kHeads + 2 * kKv;
  Values<__nv_bfloat16> dy(size_t{kN} * kRowHeads * kD);
  Values<float> dot(size_t{kN} * (kHeads + kKv));
  std::vector<float> angles;
  for (int n = 0; n < kN; ++n)
    for (int j = 0; j < kD; ++j) {
      const double angle = (7 * n + 1) * std::pow(0.01, double(j % (kD / 2)) / (kD / 2));
      angles.push_back(float(j < kD / 2 ? std::cos(angle) : std::sin(angle)));
    }
  Values<float> angles_d(angles);
  const AttentionGradients<__nv_bfloat16> to{
      dy, dy + kHeads * kD, dy + (kHeads + kKv) * kD, nullptr, nullptr, 0, kRowHeads, angles_d, dot};
  Values<PlanSegment> segments_d(segments);
  Values<PlanTask> tasks_d(tasks);
  Values<PlanRun> runs_d(runs);
  Values<int32_t> keys_d(keys), offsets_d(offsets);
  const dim3 grid(static_cast<unsigned>(tasks.size()), kKv);
  constexpr int kForwardBytes = kForwardShared<kD>;
  auto* forward = attention_tensor_forward_kernel<kD>;
  allow(forward, kForwardBytes);
  forward<<<grid, kTensorThreads, kForwardBytes>>>(x.q, x.k, x.v, segments_d, tasks_d, keys_d, kScale, x.o,
                                                   x.lse, kHeads, kKv);
  finished("attention_tensor_forward_kernel");
  constexpr int kQueryBytes = kQueryBackwardShared<kD>;
  auto* query_backward = attention_tensor_query_backward_kernel<kD>;
  allow(query_backward, kQueryBytes);
  query_backward<<<grid, kTensorThreads, kQueryBytes>>>(x.q, x.k, x.v, x.o, x.d_o, x.lse, statistics,
                                                        segments_d, tasks_d, keys_d, kScale, to, kHeads, kKv);
  finished("attention_tensor_query_backward_kernel");
  constexpr int kKeyBytes = kKeyBackwardShared<kD>;
  auto* key_backward = attention_tensor_key_backward_kernel<kD>;
  allow(key_backward, kKeyBytes);
  key_backward<<<dim3(kBlocks, kKv), kTensorThreads, kKeyBytes>>>(
      x.q, x.k, x.v, x.d_o, statistics, offsets_d, runs_d, kScale, kPer, kGroup, to, kN, kHeads, kKv);
  finished("attention_tensor_key_backward_kernel");

  const AttentionTruth want = x.truth(segments, spans, kD);
  std::printf("heads of %d\n", kD);
  verdict.check("o", x.o.host(), want.o, kUnitsBf16);
  verdict.check("lse", x.lse.host(), want.lse, kUnits);
  // Of gradients the weights and their gradient are rounded as well.
  std::vector<double> want_dy, want_dot;
  for (size_t n = 0; n < kN; ++n)
    for (int head = 0; head < kRowHeads; ++head) {
      const bool query = head < kHeads, key = !query && head < kHeads + kKv;
      const size_t at = (query ? n * kHeads + head : n * kKv + (head - kHeads) % kKv) * kD;
      const auto& gradient = query ? want.dq : key ? want.dk : want.dv;
      const auto& kept = query ? x.q_host : key ? x.k_host : x.v_host;
      double sum = 0;
      for (int j = 0; j < kD; ++j) {
        const double own = gradient[at + j], other = gradient[at + (j + kD / 2) % kD];
        const double c = double(angles[n * kD + j % (kD / 2)]),
                     s = double(angles[n * kD + kD / 2 + j % (kD / 2)]);
        want_dy.push_back(query || key ? own * c + (j < kD / 2 ? other : -other) * s : own);
        sum += own * double(kept[at + j]);
      }
      if (query || key)
        want_dot.push_back(sum);
      else
        want_dot[n * (kHeads + kKv) + head - kKv] += sum;
    }
  verdict.check("dy", dy.host(), want_dy, 2 * kUnitsBf16);
  verdict.check("dot", dot.host(), want_dot, 2 * kUnitsBf16);
}

// Two queries of segments of their own: 70 cached rows and 1,100, in two spans, each and the row just
// appended.
template <int kD>
void decoding(Verdict& verdict) {
  constexpr int kShort = 70, kLong = 1100, kShared = 30, kKeys = kShort + kLong + 2;
  const std::vector<PlanSpan> spans = {{0, kShort}, {0, kShared}, {kShort, kLong - kShared}};
  const std::vector<PlanSegment> segments = {{0, 1, 0, 1, kKeys - 2}, {1, 1, 1, 2, kKeys - 1}};
  const std::vector<PlanTask> tasks = {{0, 0, 1, kShort, -1}, {1, 0, 1, kLong, -1}};
  std::vector<PlanPiece> pieces = {{0, 0, -1}};
  for (int first = 0; first < kLong + 1; first += kPieceKeys)
    pieces.push_back({1, first, static_cast<int32_t>(pieces.size()) - 1});
  const auto slots = static_cast<int32_t>(pieces.size()) - 1;
  const std::vector<PlanMerge> merges = {{1, 0, slots}};

  Operands x(2, kKeys, kD, 11);
  Values<float> partial(size_t(slots) * kKv * kGroup * kD);
  Values<PartialRow> relative(size_t(slots) * kKv * kGroup);
  Values<PlanSegment> segments_d(segments);
  Values<PlanSpan> spans_d(spans);
  Values<PlanTask> tasks_d(tasks);
  Values<PlanPiece> pieces_d(pieces);
  Values<PlanMerge> merges_d(merges);
  constexpr int kThreads = kDecodeWarps<kD> * kWarp;
  constexpr int kDecodeBytes = kDecodeShared<kD>;
  auto* decode = attention_decode_kernel<kD>;
  allow(decode, kDecodeBytes);
  decode<<<dim3(static_cast<unsigned>(pieces.size()), kKv), kThreads, kDecodeBytes>>>(
      x.q, x.k, x.v, segments_d, spans_d, tasks_d, pieces_d, kScale, x.o, x.lse, partial, relative, kGroup,
      kHeads, kKv);
  finished("attention_decode_kernel");
  auto* merge = attention_merge_kernel<kD>;
  merge<<<dim3(1, kKv), kMergeThreads>>>(partial, relative, segments_d, tasks_d, merges_d, x.o, x.lse, kGroup,
                                         kHeads, kKv);
  finished("attention_merge_kernel");

  const AttentionTruth want = x.truth(segments, spans, kD);
  verdict.check("o of decoding", x.o.host(), want.o, kUnitsBf16);
  verdict.check("lse of decoding", x.lse.host(), want.lse, kUnits);
}

}  // namespace

int main() {
  Verdict verdict;
  training<64>(verdict);
  training<128>(verdict);
  decoding<64>(verdict);
  decoding<128>(verdict);
  return verdict.finish();
}
