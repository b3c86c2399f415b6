#include "train/communicator/ranks.h"

#include <charconv>
#include <cstdlib>
#include <optional>

#include "core/check.h"

namespace gantrain {
namespace {

std::optional<int> number(const char* name, int low, int high) {
  const char* text = std::getenv(name);
  if (!text || !*text) return std::nullopt;
  const std::string_view t = text;
  int value = 0;
  const auto [end, error] = std::from_chars(t.data(), t.data() + t.size(), value);
  if (error != std::errc() || end != t.data() + t.size() || value < low || value > high)
    fail_usage("{}: '{}', expected a whole number from {} to {}", name, t, low, high);
  return value;
}

}  // namespace

Ranks ranks_from_environment() {
  constexpr int kMost = 1 << 16, kPorts = 65535;
  Ranks r;
  r.size = number("WORLD_SIZE", 1, kMost).value_or(1);
  if (r.size == 1) return r;
  const std::optional<int> rank = number("RANK", 0, r.size - 1);
  if (!rank) fail_usage("WORLD_SIZE is {} and RANK is not set; each process needs a RANK of its own", r.size);
  r.rank = *rank;
  const std::optional<int> local_size = number("LOCAL_WORLD_SIZE", 1, r.size);
  const std::optional<int> local_rank = number("LOCAL_RANK", 0, local_size.value_or(r.size) - 1);
  const char* address = std::getenv("MASTER_ADDR");
  const bool here = !address || !*address;
  if (!here) r.address = address;
  // Without them all ranks are taken to be on one machine, unless rank 0's address says otherwise.
  r.local_rank = local_rank.value_or(r.rank);
  r.local_size =
      local_size.value_or(here || r.address == "127.0.0.1" || r.address == "localhost" ? r.size : 1);
  const std::optional<int> own = number("GANTRAIN_PORT", 1, kPorts), port = number("MASTER_PORT", 1, kPorts);
  if (own) {
    r.port = *own;
  } else if (port) {
    // torchrun's agent listens on MASTER_PORT itself.
    const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
    r.port = agent && std::string_view(agent) == "True" ? *port % kPorts + 1 : *port;
  }
  r.timeout = number("GANTRAIN_TIMEOUT", 1, 1 << 30).value_or(600);
  return r;
}

}  // namespace gantrain
