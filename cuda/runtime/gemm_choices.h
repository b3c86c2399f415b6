// What timing has found about products, by shape: whether cuBLASLt is faster than our own kernels
// (cuda/ops/matmul.cu). Kept for the process and in a small file of the user's.
//
// The file is text, one choice a line, between a first line that names the device, the library and this
// program and a last one with the number of choices and a checksum. Anything else in it, or another first
// line, and it is as if it were not there; it is written anew, whole or not at all, with the next choice.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace gantrain::cuda {

class GemmChoices {
 public:
  // m, n, k, lda, ldb, ldc, and types, orders and what follows the product as bits.
  using Key = std::array<int64_t, 7>;

  // Of the process alone.
  GemmChoices() = default;
  // `file` is read at once where it is there, its folder made when there is something to write. `identity`:
  // one line; choices of another device, library or program are worth nothing.
  GemmChoices(std::string file, std::string identity);
  std::optional<bool> find(const Key& key) const;
  void remember(const Key& key, bool library);
  size_t size() const { return choices_.size(); }

 private:
  std::map<Key, bool> read() const;
  void write() const;

  std::string file_, identity_;
  std::map<Key, bool> choices_;
};

// gemm-HASH.txt, by identity, in $GANTRAIN_CACHE, else $XDG_CACHE_HOME/gantrain, else ~/.cache/gantrain;
// empty where there is none of them.
std::string gemm_choices_file(const std::string& identity);

}  // namespace gantrain::cuda
