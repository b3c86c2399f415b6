// A matrix whose values stay packed (core/packed.h): rows of blocks, of which products and gathers expand
// what they are at. Expanded values are rounded once to the matrix's type, the same bits as those of a matrix
// that was expanded when it was frozen.
#pragma once

#include <memory>
#include <vector>

#include "core/device.h"
#include "cpu/parallel.h"

namespace gantrain {

// One piece of memory of the device's, for all its packed matrices: the part of one that a product is at. It
// grows while matrices are frozen and is never held beyond a product.
struct Expansion {
  std::shared_ptr<void> memory;
  int64_t bytes = 0;
};

class PackedWeights {
 public:
  // Copies the blocks. `tall`: see MatrixSource.
  PackedWeights(ThreadPool& pool, const MatrixSource& source, DType dtype,
                std::shared_ptr<Expansion> expansion);

  int64_t bytes() const { return bytes_; }
  // f(data, bytes) for each piece of what it holds.
  template <typename F>
  void each_piece(F f) const {
    for (const Part& part : parts_) {
      f(part.blocks.get(), part.rows * packed_row_bytes(part.type, cols_));
      if (part.type != PackedType::kNf4) continue;
      f(part.codes.data(), static_cast<int64_t>(part.codes.size()));
      f(part.steps.data(), static_cast<int64_t>(part.steps.size() * sizeof(float)));
      f(&part.mean, static_cast<int64_t>(sizeof part.mean));
    }
  }
  // What a product of k rows at a time needs of the expansion: 256 columns of them at least.
  int64_t wanted() const { return wanted_; }

  // Columns come in whole blocks: multiples of this.
  static constexpr int64_t kColumns = 256;
  // Columns [c0, c1) of row `row`, as stored values of the matrix's type. c0 is a multiple of kColumns, and
  // c1, where it is not the last column's end.
  void expand_row(int64_t row, int64_t c0, int64_t c1, void* to) const;
  // Rows [r0, r0 + n) of these columns, side by side, in the expansion.
  const void* expand(ThreadPool& pool, int64_t r0, int64_t n, int64_t c0, int64_t c1) const;
  int64_t room() const { return expansion_->bytes; }

 private:
  struct Part {
    PackedType type;
    int64_t begin, rows;
    std::vector<uint8_t> codes;
    std::vector<float> steps;
    float mean = 0.0f;
    std::unique_ptr<uint8_t[]> blocks;
  };
  const Part& part_of(int64_t row) const;

  int64_t rows_, cols_, bytes_ = 0, wanted_ = 0;
  DType dtype_;
  std::vector<Part> parts_;
  std::shared_ptr<Expansion> expansion_;
};

}  // namespace gantrain
