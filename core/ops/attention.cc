#include "core/ops/attention.h"

#include <algorithm>

#include "core/ops/contract.h"

namespace gantrain {
namespace {

// Segments inside [0, n) and disjoint, spans and causal rows inside [0, m), at least one key for every query.
void check_plan(const contract::Checker& check, const AttentionPlan* plan, int64_t n, int64_t m) {
  const char* op = check.op();
  GT_CHECK(plan != nullptr, "{}: plan is missing", op);
  for (const KvSpan& s : plan->spans) {
    GT_CHECK(s.begin >= 0 && s.count >= 0 && int64_t{s.begin} + s.count <= m,
             "{}: span [{}, +{}) is outside the {} key rows", op, s.begin, s.count, m);
  }
  int64_t end = 0;
  bool sorted = true;
  for (const AttentionSegment& s : plan->segments) {
    GT_CHECK(s.q_count >= 0 && s.q_begin >= 0 && int64_t{s.q_begin} + s.q_count <= n,
             "{}: segment of queries [{}, +{}) is outside the {} query rows", op, s.q_begin, s.q_count, n);
    GT_CHECK(s.span_begin >= 0 && s.span_count >= 0 &&
                 int64_t{s.span_begin} + s.span_count <= static_cast<int64_t>(plan->spans.size()),
             "{}: segment names spans [{}, +{}) of {}", op, s.span_begin, s.span_count, plan->spans.size());
    GT_CHECK(s.kv_begin >= -1 && (s.kv_begin < 0 || int64_t{s.kv_begin} + s.q_count <= m),
             "{}: segment's own keys [{}, +{}) are outside the {} key rows", op, s.kv_begin, s.q_count, m);
    int64_t keys = s.kv_begin >= 0 ? 1 : 0;
    for (int32_t i = 0; i < s.span_count; ++i)
      keys += plan->spans[static_cast<size_t>(s.span_begin + i)].count;
    GT_CHECK(keys > 0 || s.q_count == 0, "{}: the segment of query {} sees no key", op, s.q_begin);
    sorted = sorted && s.q_begin >= end;
    end = int64_t{s.q_begin} + s.q_count;
  }
  if (sorted) return;
  std::vector<AttentionSegment> order = plan->segments;
  std::erase_if(order, [](const AttentionSegment& s) { return s.q_count == 0; });
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.q_begin < b.q_begin; });
  for (size_t i = 1; i < order.size(); ++i) {
    GT_CHECK(order[i].q_begin >= order[i - 1].q_begin + order[i - 1].q_count,
             "{}: two segments share query row {}", op, order[i].q_begin);
  }
}

void check_heads(const contract::Checker& check, const ConstTensor& q, const ConstTensor& k) {
  check.rank("q", q, 3);
  check.rank("k", k, 3);
  const int64_t h = q.dim(1), heads_kv = k.dim(1);
  GT_CHECK(heads_kv > 0 && h % heads_kv == 0, "{}: {} query heads are no multiple of {} key heads",
           check.op(), h, heads_kv);
  GT_CHECK(q.dtype() == DType::kF32 || q.dtype() == DType::kBF16 || q.dtype() == DType::kF16,
           "{}: q is {}, expected f32, bf16 or f16", check.op(), dtype_name(q.dtype()));
}

}  // namespace

int64_t attention_pairs(const AttentionPlan& plan) {
  int64_t pairs = 0;
  for (const AttentionSegment& s : plan.segments) {
    const int64_t n = s.q_count;
    for (int32_t i = 0; i < s.span_count; ++i)
      pairs += n * plan.spans[static_cast<size_t>(s.span_begin + i)].count;
    if (s.kv_begin >= 0) pairs += n * (n + 1) / 2;
  }
  return pairs;
}

void attention_forward(Device& device, const AttentionForward& a) {
  const contract::Checker check("attention_forward", device);
  check_heads(check, a.q, a.k);
  const int64_t n = a.q.dim(0), h = a.q.dim(1), d = a.q.dim(2), m = a.k.dim(0), k = a.k.dim(1);
  const DType t = a.q.dtype();
  check.tensor("q", a.q, t, {n, h, d});
  check.tensor("k", a.k, t, {m, k, d});
  check.tensor("v", a.v, t, {m, k, d});
  check.tensor("o", a.o, t, {n, h, d});
  check.optional("lse", a.lse, DType::kF32, {n, h});
  check_plan(check, a.plan, n, m);
  if (n == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().attention_forward(a);
}

void attention_backward(Device& device, const AttentionBackward& a) {
  const contract::Checker check("attention_backward", device);
  check_heads(check, a.q, a.k);
  const int64_t n = a.q.dim(0), h = a.q.dim(1), d = a.q.dim(2), m = a.k.dim(0), k = a.k.dim(1);
  const DType t = a.q.dtype();
  check.tensor("q", a.q, t, {n, h, d});
  check.tensor("k", a.k, t, {m, k, d});
  check.tensor("v", a.v, t, {m, k, d});
  check.tensor("o", a.o, t, {n, h, d});
  check.tensor("lse", a.lse, DType::kF32, {n, h});
  const DType grad = t == DType::kF16 ? DType::kBF16 : t;
  check.tensor("d_o", a.d_o, grad, {n, h, d});
  if (a.dy.empty()) {
    check.tensor("dq", a.dq, grad, {n, h, d});
    check.tensor("dk", a.dk, grad, {m, k, d});
    check.tensor("dv", a.dv, grad, {m, k, d});
    GT_CHECK(a.rotary.empty() && a.dot.empty(), "attention_backward: rotary and dot belong to dy");
  } else {
    GT_CHECK(d % 2 == 0, "attention_backward: RoPE needs an even head size, got {}", d);
    GT_CHECK(m >= n, "attention_backward: dy with {} queries of {} keys", n, m);
    GT_CHECK(a.dq.empty(), "attention_backward: dq is part of dy");
    check.tensor("dy", a.dy, grad, {n, (h + 2 * k) * d});
    check.tensor("rotary", a.rotary, DType::kF32, {n, d});
    check.optional("dot", a.dot, DType::kF32, {n, h + k});
    GT_CHECK(m == n ? a.dk.empty() && a.dv.empty() : !a.dk.empty() && !a.dv.empty(),
             "attention_backward: dk and dv are of the {} rows of keys in front of dy's", m - n);
    check.optional("dk", a.dk, grad, {m - n, k, d});
    check.optional("dv", a.dv, grad, {m - n, k, d});
  }
  check_plan(check, a.plan, n, m);
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().attention_backward(a);
}

void kv_append(Device& device, const KvAppend& a) {
  const contract::Checker check("kv_append", device);
  check.rank("k", a.k, 3);
  check.rank("k_cache", a.k_cache, 3);
  const int64_t n = a.k.dim(0), k = a.k.dim(1), d = a.k.dim(2), m = a.k_cache.dim(0);
  const DType t = a.k.dtype();
  check.tensor("k", a.k, t, {n, k, d});
  check.tensor("v", a.v, t, {n, k, d});
  check.tensor("slots", a.slots, DType::kI32, {n});
  check.tensor("k_cache", a.k_cache, t, {m, k, d});
  check.tensor("v_cache", a.v_cache, t, {m, k, d});
  check.indices("slots", a.slots, -(int64_t{1} << 31), m);
  if (n > 0) device.ops().kv_append(a);
}

int64_t attention_forward_scratch(Device& device, const AttentionForward& a) {
  return device.ops().scratch(a);
}
int64_t attention_backward_scratch(Device& device, const AttentionBackward& a) {
  return device.ops().scratch(a);
}

namespace {
// Keys and values of every segment, read once a segment: shared rows are stored once but read by each.
int64_t key_bytes(const AttentionPlan& plan, const ConstTensor& k) {
  int64_t keys = 0;
  for (const AttentionSegment& s : plan.segments) {
    if (s.q_count == 0) continue;
    for (int32_t i = 0; i < s.span_count; ++i)
      keys += plan.spans[static_cast<size_t>(s.span_begin + i)].count;
    if (s.kv_begin >= 0) keys += s.q_count;
  }
  return 2 * keys * k.dim(1) * k.dim(2) * dtype_size(k.dtype());
}
}  // namespace

int64_t attention_forward_bytes(const AttentionForward& a) {
  return a.q.bytes() + key_bytes(*a.plan, a.k) + a.o.bytes() + contract::bytes_of(a.lse);
}
int64_t attention_forward_flops(const AttentionForward& a) {
  return 4 * a.q.dim(1) * a.q.dim(2) * attention_pairs(*a.plan);
}
int64_t attention_backward_bytes(const AttentionBackward& a) {
  return a.q.bytes() + key_bytes(*a.plan, a.k) + a.o.bytes() + a.lse.bytes() + a.d_o.bytes() +
         contract::bytes_of(a.dq) + contract::bytes_of(a.dk) + contract::bytes_of(a.dv) +
         contract::bytes_of(a.dy) + contract::bytes_of(a.rotary) + contract::bytes_of(a.dot);
}
int64_t attention_backward_flops(const AttentionBackward& a) {
  return 10 * a.q.dim(1) * a.q.dim(2) * attention_pairs(*a.plan);
}
int64_t kv_append_bytes(const KvAppend& a) {  // as if every row were cached
  return 2 * a.k.bytes() + 2 * a.v.bytes() + a.slots.bytes();
}

}  // namespace gantrain
