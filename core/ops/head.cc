#include "core/ops/head.h"

#include "core/ops/contract.h"

namespace gantrain {

void head_logits(Device& device, const HeadLogits& a) {
  const contract::Checker check("head_logits", device);
  check.rank("x", a.x, 2);
  GT_CHECK(a.w != nullptr, "head_logits: w is missing");
  const int64_t n = a.x.dim(0), c = a.x.dim(1), r = a.rows.dim(0), v = a.w->rows();
  check.matrix("w", a.w, v, c);
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rows", a.rows, DType::kI32, {r});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.tensor("logits", a.logits, DType::kF32, {r, v});
  check.indices("rows", a.rows, 0, n);
  if (r == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().head_logits(a);
}

void head_loss(Device& device, const HeadLoss& a) {
  const contract::Checker check("head_loss", device);
  check.rank("x", a.x, 2);
  GT_CHECK(a.w != nullptr, "head_loss: w is missing");
  const int64_t n = a.x.dim(0), c = a.x.dim(1), r = a.rows.dim(0), v = a.w->rows();
  check.matrix("w", a.w, v, c);
  check.tensor("x", a.x, DType::kF32, {n, c});
  check.tensor("rows", a.rows, DType::kI32, {r});
  check.optional("gain", a.gain, DType::kF32, {c});
  check.tensor("labels", a.labels, DType::kI32, {r});
  check.optional("ce_weight", a.ce_weight, DType::kF32, {r});
  check.optional("reference", a.reference, DType::kF32, {r, c});
  check.optional("kl_weight", a.kl_weight, DType::kF32, {r});
  GT_CHECK(a.kl_weight.empty() || !a.reference.empty(), "head_loss: kl_weight needs reference");
  GT_CHECK(a.reference_gain.empty() == (a.reference_w == nullptr),
           "head_loss: reference_gain and reference_w are given together or not at all");
  if (a.reference_w) {
    check.matrix("reference_w", a.reference_w, v, c);
    GT_CHECK(a.reference_w->dtype() == a.w->dtype(), "head_loss: reference_w is {}, w {}",
             dtype_name(a.reference_w->dtype()), dtype_name(a.w->dtype()));
    check.tensor("reference_gain", a.reference_gain, DType::kF32, {c});
  }
  check.optional("embedding_grad", a.embedding_grad, DType::kF32, {r, c});
  if (!a.embedding_grad.empty()) {
    check.matrix("embedding", a.embedding, v, c);
    check.tensor("key", a.key, DType::kI64, {r});
    check.tensor("counter", a.counter, DType::kI64, {r});
    check.positive("tau", static_cast<double>(a.tau));
    GT_CHECK(a.top_k >= 0, "head_loss: top_k is {}, expected 0 or more", a.top_k);
  }
  check.tensor("nll", a.nll, DType::kF32, {r});
  if (!a.reference.empty()) check.tensor("kl", a.kl, DType::kF32, {r});
  check.optional("argmax", a.argmax, DType::kI32, {r});
  check.optional("dx", a.dx, DType::kF32, {n, c});
  check.trained(a.w->dtype(), !a.dw.empty() || !a.dgain.empty());
  GT_CHECK(!a.dx.empty() || (a.dw.empty() && a.dgain.empty()), "head_loss: dw and dgain come with dx");
  check.optional("dw", a.dw, DType::kF32, {v, c});
  check.optional("dgain", a.dgain, DType::kF32, {c});
  check.indices("rows", a.rows, 0, n);
  check.indices("labels", a.labels, 0, v);
  if (r == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().head_loss(a);
}

int64_t head_logits_scratch(Device& device, const HeadLogits& a) { return device.ops().scratch(a); }
int64_t head_loss_scratch(Device& device, const HeadLoss& a) { return device.ops().scratch(a); }

int64_t head_logits_bytes(const HeadLogits& a) {
  return a.rows.dim(0) * a.x.dim(1) * 4 + a.rows.bytes() + contract::bytes_of(a.gain) +
         contract::bytes_of(a.w) + a.logits.bytes();
}
int64_t head_logits_flops(const HeadLogits& a) { return 2 * a.rows.dim(0) * a.w->rows() * a.w->cols(); }
// The weights are counted once a product: forward, reference, Gumbel, gradient.
int64_t head_loss_bytes(const HeadLoss& a) {
  const int64_t row_bytes = a.rows.dim(0) * a.x.dim(1) * 4;
  int64_t bytes = row_bytes + a.rows.bytes() + contract::bytes_of(a.gain) + contract::bytes_of(a.w) +
                  contract::bytes_of(a.labels) + contract::bytes_of(a.ce_weight) + contract::bytes_of(a.nll) +
                  contract::bytes_of(a.argmax);
  if (!a.reference.empty()) bytes += a.reference.bytes() + contract::bytes_of(a.w) + contract::bytes_of(a.kl);
  if (!a.embedding_grad.empty()) bytes += a.embedding_grad.bytes() + contract::bytes_of(a.embedding);
  if (!a.dx.empty()) bytes += 2 * row_bytes + contract::bytes_of(a.w);
  bytes += 2 * (contract::bytes_of(a.dw) + contract::bytes_of(a.dgain));
  return bytes;
}
int64_t head_loss_flops(const HeadLoss& a) {
  const int64_t product = 2 * a.rows.dim(0) * a.w->rows() * a.w->cols();
  return product * (1 + !a.reference.empty() + !a.embedding_grad.empty() + !a.dx.empty() + !a.dw.empty());
}

}  // namespace gantrain
