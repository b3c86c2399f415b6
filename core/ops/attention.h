// Attention over packed rows: variable lengths, GQA, causal, shared context, in one contract.
//
// A segment is a run of query rows. Every query of it sees all rows of its context spans, and, if kv_begin >=
// 0, query j (counted from 0 in the segment) also sees rows kv_begin .. kv_begin + j. So:
//   plain causal sequence:    no spans, kv_begin = q_begin
//   shared soft prompt:       the prompt is a segment of its own; each text names the prompt's rows as a span
//   several answers to one x: x is a segment (span: prompt); each answer names prompt and x as spans
//   decoding one token:       q_count = 1, span = the cached rows, kv_begin = the row just appended
//   cross- or full attention: spans only, kv_begin = -1
// Keys and values are stored once however many segments see them; their gradients are summed over all of
// them.
// S and T, the types of what is kept and of gradients: see core/ops/qkv.h.
//   o = softmax(scale * q k^T) v   (online softmax; Milakov & Gimelshein 1805.02867, Dao 2307.08691)
#pragma once

#include <vector>

#include "core/device.h"

namespace gantrain {

struct KvSpan {
  int32_t begin = 0, count = 0;
  bool operator==(const KvSpan&) const = default;
};
struct AttentionSegment {
  int32_t q_begin = 0, q_count = 0;  // query rows; segments are disjoint and may leave rows out (o = 0 there)
  int32_t span_begin = 0, span_count = 0;  // into AttentionPlan::spans
  int32_t kv_begin = -1;                   // own causal rows, or -1
  bool operator==(const AttentionSegment&) const = default;
};
// Host side; a backend may keep a device copy keyed on the address while the plan lives.
struct AttentionPlan {
  std::vector<AttentionSegment> segments;
  std::vector<KvSpan> spans;
  uint64_t id = 0;  // of Ops::open_plan: changes in place, made current by update_plan. 0: a plan of its own
};
// Number of (query, key) pairs over all segments: the unit of attention's cost.
int64_t attention_pairs(const AttentionPlan&);

struct AttentionForward {
  ConstTensor q;              // (N, H, D) S
  ConstTensor k;              // (M, K, D) S; N = M in training, the cache's rows in decoding
  ConstTensor v;              // (M, K, D) S
  const AttentionPlan* plan;  // every segment sees at least one key
  float scale;
  Tensor o;        // (N, H, D) S  =
  Tensor lse;      // (N, H) f32  =  log-sum-exp of scale * q k^T, saved for backward; empty: not wanted
  Tensor scratch;  // (bytes) u8
};
struct AttentionBackward {
  ConstTensor q;    // (N, H, D) S
  ConstTensor k;    // (M, K, D) S
  ConstTensor v;    // (M, K, D) S
  ConstTensor o;    // (N, H, D) S
  ConstTensor lse;  // (N, H) f32
  ConstTensor d_o;  // (N, H, D) T
  const AttentionPlan* plan;
  float scale;
  Tensor dq;       // (N, H, D) T  =
  Tensor dk;       // (M, K, D) T  =  rows nobody sees get 0
  Tensor dv;       // (M, K, D) T  =
  Tensor scratch;  // (bytes) u8
  // Where queries and the last N rows of keys and values are one projection's (core/ops/qkv.h), its gradient:
  // dq is empty, and dk and dv are (M - N, K, D), of the rows in front (empty where there are none).
  Tensor dy = {};           // (N, (H + 2K) D) T  =  [dq; dk; dv], dq and dk before RoPE
  ConstTensor rotary = {};  // (N, D) f32  rotary_table's, of dy's rows
  // (N, H + K) f32  =  parts of <dq, q> + <dk, k> + <dv, v> of each row, in any division; empty: not wanted
  Tensor dot = {};
};
// Copies rows into a cache:  k_cache[slots[n]] = k[n],  v_cache[slots[n]] = v[n].
struct KvAppend {
  ConstTensor k;      // (N, K, D) S
  ConstTensor v;      // (N, K, D) S
  ConstTensor slots;  // (N) i32, distinct; negative: the row is not cached
  Tensor k_cache;     // (M, K, D) S  = at the slots
  Tensor v_cache;     // (M, K, D) S  = at the slots
};

void attention_forward(Device&, const AttentionForward&);
void attention_backward(Device&, const AttentionBackward&);
void kv_append(Device&, const KvAppend&);
int64_t attention_forward_scratch(Device&, const AttentionForward&);
int64_t attention_backward_scratch(Device&, const AttentionBackward&);
int64_t attention_forward_bytes(const AttentionForward&);
int64_t attention_forward_flops(const AttentionForward&);  // 4 H D per pair
int64_t attention_backward_bytes(const AttentionBackward&);
int64_t attention_backward_flops(const AttentionBackward&);  // 10 H D per pair
int64_t kv_append_bytes(const KvAppend&);

}  // namespace gantrain
