// Attention over a plan of segments, and its gradients, in double on the CPU: what both programs compare
// with.
#pragma once

#include "cuda/device/plan.cuh"
#include "cuda/standalone/harness.cuh"

namespace gantrain::standalone {

struct AttentionTruth {
  std::vector<double> o, lse, dq, dk, dv;
};
struct HeadSizes {
  int heads, kv_heads, d;
};
// q, d_o (N, H, D), k and v (M, K, D)
inline AttentionTruth attention_truth(const std::vector<cuda::PlanSegment>& segments,
                                      const std::vector<cuda::PlanSpan>& spans, const HeadSizes& z,
                                      double scale, const std::vector<double>& q,
                                      const std::vector<double>& k, const std::vector<double>& v,
                                      const std::vector<double>& d_o) {
  const auto d = size_t(z.d);
  AttentionTruth t{std::vector<double>(q.size()), std::vector<double>(q.size() / d),
                   std::vector<double>(q.size()), std::vector<double>(k.size()),
                   std::vector<double>(v.size())};
  for (const cuda::PlanSegment& s : segments)
    for (int i = 0; i < s.q_count; ++i)
      for (int h = 0; h < z.heads; ++h) {
        const size_t row = (size_t(s.q_begin + i) * z.heads + h) * d;
        std::vector<size_t> keys;  // where the rows that it sees begin
        const auto see = [&](int key) {
          keys.push_back((size_t(key) * z.kv_heads + h / (z.heads / z.kv_heads)) * d);
        };
        for (int n = 0; n < s.span_count; ++n)
          for (int j = 0; j < spans[s.span_begin + n].count; ++j) see(spans[s.span_begin + n].begin + j);
        for (int j = 0; s.kv_begin >= 0 && j <= i; ++j) see(s.kv_begin + j);
        std::vector<double> p;
        double max = -INFINITY, sum = 0, delta = 0;
        for (size_t key : keys) {
          double score = 0;
          for (size_t j = 0; j < d; ++j) score += q[row + j] * k[key + j];
          p.push_back(score * scale);
          max = std::fmax(max, p.back());
        }
        for (double x : p) sum += std::exp(x - max);
        t.lse[row / d] = max + std::log(sum);
        for (size_t n = 0; n < keys.size(); ++n) {
          p[n] = std::exp(p[n] - t.lse[row / d]);
          for (size_t j = 0; j < d; ++j) t.o[row + j] += p[n] * v[keys[n] + j];
        }
        for (size_t j = 0; j < d; ++j) delta += t.o[row + j] * d_o[row + j];
        for (size_t n = 0; n < keys.size(); ++n) {
          double dp = 0;
          for (size_t j = 0; j < d; ++j) dp += d_o[row + j] * v[keys[n] + j];
          const double ds = p[n] * (dp - delta) * scale;
          for (size_t j = 0; j < d; ++j) {
            t.dq[row + j] += ds * k[keys[n] + j];
            t.dk[keys[n] + j] += ds * q[row + j];
            t.dv[keys[n] + j] += p[n] * d_o[row + j];
          }
        }
      }
  return t;
}

}  // namespace gantrain::standalone
