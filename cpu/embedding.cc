#include <cstring>

#include "cpu/cpu_matrix.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {

namespace {

const bf16* bf16_row(const CpuMatrix& table, int64_t row) {
  if (!table.weights()) return static_cast<const bf16*>(table.row(row));
  auto* expanded = reinterpret_cast<bf16*>(thread_scratch(0, table.cols()));
  table.weights()->expand_row(row, 0, table.cols(), expanded);
  return expanded;
}

void f32_row(const CpuMatrix& table, int64_t row, float* to) {
  if (table.weights())
    table.weights()->expand_row(row, 0, table.cols(), to);
  else
    std::memcpy(to, table.row(row), static_cast<size_t>(table.cols()) * sizeof(float));
}

}  // namespace

void CpuOps::embed_forward(const EmbedForward& a) {
  const CpuMatrix& table = as_cpu(*a.table);
  const int32_t* tokens = a.tokens.data<int32_t>();
  const float* prompt = a.prompt.empty() ? nullptr : a.prompt.data<float>();
  float* x = a.x.data<float>();
  const int64_t c = table.cols();
  pool_.parallel_ranges(a.tokens.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = tokens[i];
      if (token < 0)
        std::memcpy(x + i * c, prompt + (-1 - token) * c, static_cast<size_t>(c) * sizeof(float));
      else if (table.dtype() == DType::kF32)
        f32_row(table, token, x + i * c);
      else
        convert_to_f32(bf16_row(table, token), x + i * c, c);
    }
  });
}

void CpuOps::embed_backward(const EmbedBackward& a) {
  const float* dx = a.dx.data<float>();
  const int32_t* tokens = a.tokens.data<int32_t>();
  float* dprompt = a.dprompt.data<float>();
  const int64_t n = a.tokens.dim(0), c = a.dprompt.dim(1);
  // A chunk owns columns: several rows may add to one prompt row, in order of n.
  pool_.parallel_ranges(c, 128, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; ++i) {
      if (tokens[i] >= 0) continue;
      float* to = dprompt + (-1 - int64_t{tokens[i]}) * c;
      for (int64_t j = begin; j < end; ++j) to[j] += dx[i * c + j];
    }
  });
}

}  // namespace gantrain
