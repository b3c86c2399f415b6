// The trainable networks in one scalar template, from their formulas: parameters by name, row-major vectors.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "tests/reference/adversarial.h"
#include "tests/reference/trainable.h"

namespace gantrain::reference {

template <typename T>
using Parameters = std::map<std::string, std::vector<T>>;

// Rows [begin, begin + count) of queries see keys [key_begin, key_begin + key_count), the j-th one only the
// first j + 1 of them if causal.
struct Reach {
  size_t begin, count, key_begin, key_count;
  bool causal;
};

// y = x / sqrt(mean(x^2) + eps) * w; an empty w is all ones
template <typename T>
std::vector<T> rmsnorm(const std::vector<T>& x, const std::vector<T>& w, size_t width, double eps) {
  std::vector<T> y(x.size());
  for (size_t r = 0; r < x.size() / width; ++r) {
    T sum(0.0);
    for (size_t j = 0; j < width; ++j) sum += square(x[r * width + j]);
    const T rstd = 1.0 / std::sqrt(sum / static_cast<double>(width) + eps);
    for (size_t j = 0; j < width; ++j)
      y[r * width + j] = x[r * width + j] * rstd * (w.empty() ? T(1.0) : w[j]);
  }
  return y;
}

// softmax(q k^T / sqrt(d)) v, head by head; width = heads * d
template <typename T>
std::vector<T> attention(const std::vector<T>& q, const std::vector<T>& k, const std::vector<T>& v,
                         const std::vector<Reach>& reach, size_t heads, size_t width) {
  std::vector<T> o(q.size(), T(0.0));
  const size_t d = width / heads;
  for (const Reach& s : reach)
    for (size_t i = 0; i < s.count; ++i)
      for (size_t h = 0; h < heads; ++h) {
        const size_t at = (s.begin + i) * width + h * d, keys = s.causal ? i + 1 : s.key_count;
        std::vector<T> p(keys);
        T sum(0.0);
        for (size_t j = 0; j < keys; ++j) {
          T score(0.0);
          for (size_t c = 0; c < d; ++c) score += q[at + c] * k[(s.key_begin + j) * width + h * d + c];
          sum += p[j] = std::exp(score / std::sqrt(static_cast<double>(d)));
        }
        for (size_t j = 0; j < keys; ++j)
          for (size_t c = 0; c < d; ++c) o[at + c] += p[j] / sum * v[(s.key_begin + j) * width + h * d + c];
      }
  return o;
}

// x w^T + b by the layer's name; the sizes follow from the vectors.
template <typename T>
std::vector<T> layer(const Parameters<T>& p, const std::string& name, const std::vector<T>& x, size_t in) {
  const std::vector<T>& w = p.at(name + ".weight");
  const auto bias = p.find(name + ".bias");
  return linear(x, w, bias == p.end() ? std::vector<T>() : bias->second, x.size() / in, in, w.size() / in);
}

template <typename T>
std::vector<T> sum_of(std::vector<T> a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// Pre-norm attention and SiLU MLP, each with a residual; an empty context is self-attention.
template <typename T>
std::vector<T> block(const Parameters<T>& p, const std::string& name, const std::vector<T>& x,
                     const std::vector<T>& context, size_t width, size_t context_width, size_t heads,
                     const std::vector<Reach>& reach) {
  const auto n1 = rmsnorm(x, p.at(name + ".norm1.weight"), width, 1e-5);
  const auto& source = context.empty() ? n1 : context;
  const auto o = attention(layer(p, name + ".q", n1, width), layer(p, name + ".k", source, context_width),
                           layer(p, name + ".v", source, context_width), reach, heads, width);
  const auto x1 = sum_of(x, layer(p, name + ".o", o, width));
  const auto n2 = rmsnorm(x1, p.at(name + ".norm2.weight"), width, 1e-5);
  const auto hidden = activation(Curve::kSilu, layer(p, name + ".up", n2, width));
  return sum_of(x1, layer(p, name + ".down", hidden, hidden.size() / (x.size() / width)));
}

// rows + z Wz^T for each of `batch` inputs; no noise: z empty.
template <typename T>
std::vector<T> seeds(const Parameters<T>& p, const std::vector<T>& rows, const std::vector<T>& z,
                     size_t batch, size_t width) {
  const auto shift =
      z.empty() ? std::vector<T>(batch * width, T(0.0)) : layer(p, "noise", z, z.size() / batch);
  return broadcast_add(rows, shift, batch, rows.size() / width, width);
}

template <typename T>
std::vector<T> mlp_generator(const Parameters<T>& p, const std::vector<T>& z, size_t batch, size_t width) {
  const auto x = seeds(p, p.at("seeds"), z, batch, width);
  const auto h = activation(Curve::kTanh, layer(p, "up", x, width));
  return scaled_add(p.at("prompt"), layer(p, "down", h, h.size() / (x.size() / width)), T(1.0), batch);
}

// features (N, C): frozen states, normalised inside; reach: which of them each input's prompt rows see.
template <typename T>
std::vector<T> conditional_generator(const Parameters<T>& p, const std::vector<T>& features,
                                     const std::vector<T>& z, const std::vector<Reach>& reach, size_t batch,
                                     size_t width, size_t channels, size_t heads, size_t blocks) {
  const auto f = rmsnorm(features, std::vector<T>(), channels, 1e-5);
  auto x = seeds(p, p.at("queries"), z, batch, width);
  for (size_t i = 0; i < blocks; ++i)
    x = block(p, "block" + std::to_string(i), x, f, width, channels, heads, reach);
  const auto r = rmsnorm(layer(p, "out", x, width), std::vector<T>(), channels, 1.0);
  return scaled_add(p.at("prompt"), r, p.at("scale")[0], batch);
}

// f (N, C) normalised features -> D, one number a segment of `offsets`.
template <typename T>
std::vector<T> discriminator(const Parameters<T>& p, const std::vector<T>& f, const std::vector<int>& offsets,
                             size_t width, size_t channels, size_t heads) {
  std::vector<Reach> reach;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const size_t begin = static_cast<size_t>(offsets[s]), count = static_cast<size_t>(offsets[s + 1]) - begin;
    reach.push_back({begin, count, begin, count, true});
  }
  auto x = layer(p, "in", f, channels);
  x = block(p, "block", x, std::vector<T>(), width, width, heads, reach);
  x = rmsnorm(x, p.at("norm.weight"), width, 1e-5);
  return segment_mean(layer(p, "logit", x, width), offsets, 1);
}

}  // namespace gantrain::reference
