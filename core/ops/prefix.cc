#include "core/ops/prefix.h"

#include "core/ops/contract.h"

namespace gantrain {
namespace {

// Shapes of one call: key and value are (P, K, D), the table (P, 2 L, K D).
void check_prefix(const contract::Checker& check, const ConstTensor& table, const ConstTensor& k,
                  const ConstTensor& v, int64_t layer) {
  check.rank("table", table, 3);
  check.rank("k", k, 3);
  const int64_t p = table.dim(0), width = table.dim(2);
  GT_CHECK(k.dim(1) * k.dim(2) == width, "{}: {} heads of {} beside a table {}", check.op(), k.dim(1),
           k.dim(2), to_string(table.shape()));
  GT_CHECK(layer >= 0 && 2 * layer + 1 < table.dim(1), "{}: layer {} of a table {}", check.op(), layer,
           to_string(table.shape()));
  check.tensor("table", table, DType::kF32, table.shape());
  check.tensor("k", k, k.dtype(), {p, k.dim(1), k.dim(2)});
  check.tensor("v", v, k.dtype(), k.shape());
}

}  // namespace

void prefix_forward(Device& device, const PrefixForward& a) {
  const contract::Checker check("prefix_forward", device);
  check_prefix(check, a.table, a.k, a.v, a.layer);
  const DType s = a.k.dtype();
  GT_CHECK(s == DType::kF32 || s == DType::kBF16 || s == DType::kF16,
           "prefix_forward: k is {}, expected f32, bf16 or f16", dtype_name(s));
  if (a.k.count() > 0) device.ops().prefix_forward(a);
}

void prefix_backward(Device& device, const PrefixBackward& a) {
  const contract::Checker check("prefix_backward", device);
  check_prefix(check, a.dtable, a.dk, a.dv, a.layer);
  const DType t = a.dk.dtype();
  GT_CHECK(t == DType::kF32 || t == DType::kBF16, "prefix_backward: dk is {}, expected f32 or bf16",
           dtype_name(t));
  if (a.dk.count() > 0) device.ops().prefix_backward(a);
}

int64_t prefix_forward_bytes(const PrefixForward& a) {
  return 2 * 4 * a.k.count() + a.k.bytes() + a.v.bytes();
}
int64_t prefix_backward_bytes(const PrefixBackward& a) {
  return a.dk.bytes() + a.dv.bytes() + 2 * 2 * 4 * a.dk.count();
}

}  // namespace gantrain
