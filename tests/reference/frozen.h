// The frozen Llama's ops in one scalar template, from their formulas; row-major vectors, shapes as arguments.
#pragma once

#include <cstddef>
#include <vector>

#include "tests/reference/networks.h"

namespace gantrain::reference {

// Half-split RoPE (Su et al. 2104.09864): pair (i, i + D/2) of each head turns by position * inv_freq[i].
template <typename T>
std::vector<T> rope(std::vector<T> x, const std::vector<int>& positions, const std::vector<double>& inv_freq,
                    size_t heads) {
  const size_t half = inv_freq.size(), d = 2 * half;
  for (size_t n = 0; n < positions.size(); ++n)
    for (size_t h = 0; h < heads; ++h)
      for (size_t i = 0; i < half; ++i) {
        T &a = x[(n * heads + h) * d + i], &b = x[(n * heads + h) * d + half + i];
        const double angle = positions[n] * inv_freq[i];
        const T a0 = a, b0 = b;
        a = a0 * std::cos(angle) - b0 * std::sin(angle);
        b = b0 * std::cos(angle) + a0 * std::sin(angle);
      }
  return x;
}

template <typename T>
struct Qkv {
  std::vector<T> q, k, v;
};
// xhat = rmsnorm(x) * gain; [q; k; v] = xhat w^T + bias; RoPE on q and k.
template <typename T>
Qkv<T> qkv(const std::vector<T>& x, const std::vector<T>& gain, const std::vector<T>& w,
           const std::vector<T>& bias, const std::vector<int>& positions, const std::vector<double>& inv_freq,
           size_t heads, size_t kv_heads, size_t width, double eps) {
  const size_t n = positions.size(), d = 2 * inv_freq.size(), out = (heads + 2 * kv_heads) * d;
  const auto y = linear(rmsnorm(x, gain, width, eps), w, bias, n, width, out);
  Qkv<T> r;
  for (size_t i = 0; i < n; ++i) {
    const auto row = y.begin() + static_cast<long>(i * out);
    r.q.insert(r.q.end(), row, row + static_cast<long>(heads * d));
    r.k.insert(r.k.end(), row + static_cast<long>(heads * d),
               row + static_cast<long>((heads + kv_heads) * d));
    r.v.insert(r.v.end(), row + static_cast<long>((heads + kv_heads) * d), row + static_cast<long>(out));
  }
  r.q = rope(r.q, positions, inv_freq, heads);
  r.k = rope(r.k, positions, inv_freq, kv_heads);
  return r;
}

// dy (N, (H + 2K) D), the gradient of the product before RoPE, as that of q, k and v.
inline Qkv<double> apart(const std::vector<double>& dy, const std::vector<int>& positions,
                         const std::vector<double>& inv_freq, size_t heads, size_t kv_heads) {
  const size_t d = 2 * inv_freq.size(), all = heads + 2 * kv_heads;
  Qkv<double> r;
  for (size_t i = 0; i < dy.size(); ++i) {
    const size_t head = i / d % all;
    (head < heads ? r.q : head < heads + kv_heads ? r.k : r.v).push_back(dy[i]);
  }
  r.q = rope(r.q, positions, inv_freq, heads);
  r.k = rope(r.k, positions, inv_freq, kv_heads);
  return r;
}

template <typename T>
struct Attended {
  std::vector<T> o, lse;
};
// o = softmax(scale q k^T) v; sees[n]: the key rows that query row n sees (none: o = 0, lse = 0). Query head
// h reads key head h / (heads / kv_heads).
template <typename T>
Attended<T> grouped_attention(const std::vector<T>& q, const std::vector<T>& k, const std::vector<T>& v,
                              const std::vector<std::vector<int>>& sees, size_t heads, size_t kv_heads,
                              size_t d, double scale) {
  Attended<T> r{std::vector<T>(q.size(), T(0.0)), std::vector<T>(sees.size() * heads, T(0.0))};
  for (size_t n = 0; n < sees.size(); ++n)
    for (size_t h = 0; h < heads; ++h) {
      if (sees[n].empty()) continue;
      const size_t at = (n * heads + h) * d, head = h / (heads / kv_heads);
      std::vector<T> score;
      double most = -1e300;
      for (const int row : sees[n]) {
        T s(0.0);
        for (size_t c = 0; c < d; ++c)
          s += q[at + c] * k[(static_cast<size_t>(row) * kv_heads + head) * d + c];
        score.push_back(s * scale);
        most = std::max(most, real_part(score.back()));
      }
      T sum(0.0);
      for (T& s : score) sum += s = std::exp(s - most);
      for (size_t j = 0; j < score.size(); ++j)
        for (size_t c = 0; c < d; ++c)
          r.o[at + c] += score[j] / sum * v[(static_cast<size_t>(sees[n][j]) * kv_heads + head) * d + c];
      r.lse[n * heads + h] = std::log(sum) + most;
    }
  return r;
}

struct AttendedGradients {
  std::vector<double> dq, dk, dv;
};
// The gradients of <o, d_o>, with o of grouped_attention: p = softmax(scale q k^T), dv = p^T d_o,
// ds = p * (d_o v^T - <o, d_o>), dq = scale ds k, dk = scale ds^T q.
inline AttendedGradients grouped_attention_gradients(const std::vector<double>& q,
                                                     const std::vector<double>& k,
                                                     const std::vector<double>& v,
                                                     const std::vector<double>& d_o,
                                                     const std::vector<std::vector<int>>& sees, size_t heads,
                                                     size_t kv_heads, size_t d, double scale) {
  AttendedGradients g{std::vector<double>(q.size()), std::vector<double>(k.size()),
                      std::vector<double>(v.size())};
  const Attended<double> a = grouped_attention(q, k, v, sees, heads, kv_heads, d, scale);
  for (size_t n = 0; n < sees.size(); ++n)
    for (size_t h = 0; h < heads; ++h) {
      const size_t at = (n * heads + h) * d, head = h / (heads / kv_heads);
      double delta = 0;
      for (size_t c = 0; c < d; ++c) delta += a.o[at + c] * d_o[at + c];
      for (const int row : sees[n]) {
        const size_t key = (static_cast<size_t>(row) * kv_heads + head) * d;
        double score = 0, dp = 0;
        for (size_t c = 0; c < d; ++c) score += q[at + c] * k[key + c], dp += d_o[at + c] * v[key + c];
        const double p = std::exp(score * scale - a.lse[n * heads + h]), ds = scale * p * (dp - delta);
        for (size_t c = 0; c < d; ++c) {
          g.dq[at + c] += ds * k[key + c];
          g.dk[key + c] += ds * q[at + c];
          g.dv[key + c] += p * d_o[at + c];
        }
      }
    }
  return g;
}

// silu(g) * u
template <typename T>
std::vector<T> swiglu(const std::vector<T>& g, const std::vector<T>& u) {
  std::vector<T> a;
  for (size_t i = 0; i < g.size(); ++i) a.push_back(g[i] * sigmoid(g[i]) * u[i]);
  return a;
}
template <typename T>
struct GateUp {
  std::vector<T> g, u;
};
// [g; u] = rmsnorm(x) * gain w^T + bias, w (2F, C)
template <typename T>
GateUp<T> gate_up(const std::vector<T>& x, const std::vector<T>& gain, const std::vector<T>& w,
                  const std::vector<T>& bias, size_t width, size_t f, double eps) {
  const size_t n = x.size() / width;
  const auto y = linear(rmsnorm(x, gain, width, eps), w, bias, n, width, 2 * f);
  GateUp<T> r;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < f; ++j) {
      r.g.push_back(y[i * 2 * f + j]);
      r.u.push_back(y[i * 2 * f + f + j]);
    }
  return r;
}

// The gradients of g and u under SwiGLU, from that of a = silu(g) * u: dg, then du of each row of f.
inline std::vector<double> swiglu_gradient(const std::vector<double>& g, const std::vector<double>& u,
                                           const std::vector<double>& da, size_t f) {
  std::vector<double> dy;
  for (size_t i = 0; i < g.size(); i += f)
    for (const bool gate : {true, false})
      for (size_t j = i; j < i + f; ++j) {
        const double s = sigmoid(g[j]);
        dy.push_back(gate ? da[j] * u[j] * s * (1 + g[j] * (1 - s)) : da[j] * g[j] * s);
      }
  return dy;
}
// The gradient of <dy, (x * rstd * gain) w^T> in x, rstd being 1 / rms(x): d = dy w * gain, xhat = x * rstd,
// dx = rstd (d - xhat mean(d xhat)). w (out, width).
inline std::vector<double> norm_product_gradient(const std::vector<double>& x,
                                                 const std::vector<double>& gain,
                                                 const std::vector<double>& w, const std::vector<double>& dy,
                                                 size_t width, double eps) {
  const size_t n = x.size() / width, out = w.size() / width;
  std::vector<double> dx(x.size());
  for (size_t i = 0; i < n; ++i) {
    const double* xi = x.data() + i * width;
    double squares = 0, dot = 0;
    for (size_t j = 0; j < width; ++j) squares += xi[j] * xi[j];
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
    std::vector<double> d(width);
    for (size_t o = 0; o < out; ++o)
      for (size_t j = 0; j < width; ++j) d[j] += dy[i * out + o] * w[o * width + j];
    for (size_t j = 0; j < width; ++j) dot += (d[j] *= gain.empty() ? 1 : gain[j]) * xi[j] * rstd;
    for (size_t j = 0; j < width; ++j)
      dx[i * width + j] = rstd * (d[j] - xi[j] * rstd * dot / static_cast<double>(width));
  }
  return dx;
}

// log softmax of one row
template <typename T>
std::vector<T> log_softmax(const std::vector<T>& l) {
  double most = real_part(l[0]);
  for (const T& v : l) most = std::max(most, real_part(v));
  T sum(0.0);
  for (const T& v : l) sum += std::exp(v - most);
  std::vector<T> y;
  for (const T& v : l) y.push_back(v - most - std::log(sum));
  return y;
}
// sum p log(p / q) of two rows of log-probabilities
template <typename T>
T kl(const std::vector<T>& log_p, const std::vector<T>& log_q) {
  T sum(0.0);
  for (size_t j = 0; j < log_p.size(); ++j) sum += std::exp(log_p[j]) * (log_p[j] - log_q[j]);
  return sum;
}
// <softmax((l + noise) / tau), t> over the entries of `kept` (all if empty)
template <typename T>
T soft_choice(const std::vector<T>& l, const std::vector<double>& noise, const std::vector<double>& t,
              double tau, const std::vector<bool>& kept) {
  T sum(0.0), value(0.0);
  for (size_t j = 0; j < l.size(); ++j) {
    if (!kept.empty() && !kept[j]) continue;
    const T e = std::exp((l[j] + noise[j]) / tau);
    sum += e;
    value += e * t[j];
  }
  return value / sum;
}

}  // namespace gantrain::reference
