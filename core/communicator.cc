#include "core/communicator.h"

#include <cstring>

#include "core/check.h"

namespace gantrain {

std::vector<std::vector<double>> gather_values(Communicator& group, std::span<const double> values) {
  const std::vector<std::string> all =
      group.all_gather({reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  std::vector<std::vector<double>> out;
  for (size_t r = 0; r < all.size(); ++r) {
    GT_CHECK(all[r].size() == values.size_bytes(), "rank {} gave {} bytes, expected {}", r, all[r].size(),
             values.size_bytes());
    out.emplace_back(values.size());
    if (!values.empty()) std::memcpy(out.back().data(), all[r].data(), all[r].size());
  }
  return out;
}

std::vector<double> sum_values(Communicator& group, std::span<const double> values) {
  std::vector<double> sum(values.size(), 0.0);
  for (const std::vector<double>& of_rank : gather_values(group, values))
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += of_rank[i];
  return sum;
}

}  // namespace gantrain
