#include "train/losses/schedule.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace gantrain {

double scheduled(Schedule kind, double start, double end, int64_t step, int64_t total, int64_t warmup) {
  GT_CHECK(step >= 0 && warmup >= 0, "a schedule at step {} with {} steps of warm-up", step, warmup);
  if (step < warmup) return start * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (kind == Schedule::kConstant) return start;
  // The last step, total - 1, gets `end` itself.
  const int64_t span = total - 1 - warmup;
  const double share =
      span <= 0 ? 1.0 : std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(span));
  if (kind == Schedule::kLinear) return start + (end - start) * share;
  return end + (start - end) * 0.5 * (1.0 + std::cos(3.14159265358979323846 * share));
}

}  // namespace gantrain
