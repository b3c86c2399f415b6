#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace gantrain {

void CpuOps::prefix_forward(const PrefixForward& a) {
  const int64_t rows = a.table.dim(0), stride = a.table.dim(1) * a.table.dim(2), width = a.table.dim(2);
  const float* from = a.table.data<float>() + 2 * a.layer * width;
  with_kept(a.k.dtype(), [&]<typename S>(S*) {
    S *k = a.k.data<S>(), *v = a.v.data<S>();
    pool_.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        narrow(from + i * stride, k + i * width, width);
        narrow(from + i * stride + width, v + i * width, width);
      }
    });
  });
}

void CpuOps::prefix_backward(const PrefixBackward& a) {
  const int64_t rows = a.dtable.dim(0), stride = a.dtable.dim(1) * a.dtable.dim(2), width = a.dtable.dim(2);
  float* to = a.dtable.data<float>() + 2 * a.layer * width;
  const auto add = [&]<typename T>(const T* dk, const T* dv) {
    pool_.parallel_ranges(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < width; ++j) {
          to[i * stride + j] += load(dk + i * width + j);
          to[i * stride + width + j] += load(dv + i * width + j);
        }
    });
  };
  if (a.dk.dtype() == DType::kF32)
    add(a.dk.data<float>(), a.dv.data<float>());
  else
    add(a.dk.data<bf16>(), a.dv.data<bf16>());
}

}  // namespace gantrain
