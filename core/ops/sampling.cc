#include "core/ops/sampling.h"

#include "core/ops/contract.h"

namespace gantrain {

void sample(Device& device, const Sample& a) {
  const contract::Checker check("sample", device);
  check.rank("logits", a.logits, 2);
  const int64_t s = a.logits.dim(0), v = a.logits.dim(1);
  check.tensor("logits", a.logits, DType::kF32, {s, v});
  check.tensor("temperature", a.temperature, DType::kF32, {s});
  check.tensor("top_k", a.top_k, DType::kI32, {s});
  check.tensor("top_p", a.top_p, DType::kF32, {s});
  check.tensor("key", a.key, DType::kI64, {s});
  check.tensor("counter", a.counter, DType::kI64, {s});
  check.tensor("token", a.token, DType::kI32, {s});
  check.tensor("logp", a.logp, DType::kF32, {s});
  check.positive("vocabulary", static_cast<double>(v));
  check.indices("top_k", a.top_k, 0, int64_t{1} << 31);
  if (device.kind() == DeviceKind::kCpu) {
    for (int64_t i = 0; i < s; ++i) {
      const float temperature = a.temperature.data<float>()[i], top_p = a.top_p.data<float>()[i];
      GT_CHECK(temperature >= 0.0f, "sample: temperature[{}] is {}, expected 0 or more", i, temperature);
      GT_CHECK(top_p > 0.0f && top_p <= 1.0f, "sample: top_p[{}] is {}, expected more than 0, at most 1", i,
               top_p);
    }
  }
  if (s == 0) return;
  check.scratch(a.scratch, device.ops().scratch(a));
  device.ops().sample(a);
}

int64_t sample_scratch(Device& device, const Sample& a) { return device.ops().scratch(a); }
int64_t sample_bytes(const Sample& a) {
  return a.logits.bytes() + a.temperature.bytes() + a.top_k.bytes() + a.top_p.bytes() + a.key.bytes() +
         a.counter.bytes() + a.token.bytes() + a.logp.bytes();
}

}  // namespace gantrain
