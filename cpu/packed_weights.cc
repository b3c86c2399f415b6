#include "cpu/packed_weights.h"

#include <algorithm>
#include <cstring>

#include "cpu/matmul.h"

namespace gantrain {

constexpr int64_t kRun = 1024;  // values on their way from blocks to bf16, in L1: whole blocks of any type

PackedWeights::PackedWeights(ThreadPool& pool, const MatrixSource& source, DType dtype,
                             std::shared_ptr<Expansion> expansion)
    : rows_(source.rows), cols_(source.cols), dtype_(dtype), expansion_(std::move(expansion)) {
  int64_t done = 0;
  for (const PackedRows& from : source.packed) {
    const PackedBlock block = packed_block(from.type);
    GT_CHECK(from.begin == done && from.rows > 0 && cols_ % block.values == 0,
             "packed rows of {} from {} on, {} of them, {} wide: expected rows from {} on and whole blocks",
             block.name, from.begin, from.rows, cols_, done);
    done += from.rows;
    const int64_t row = packed_row_bytes(from.type, cols_), bytes = from.rows * row;
    Part part{from.type, from.begin, from.rows, {}, {}, 0.0f, nullptr};
    part.blocks = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes));
    pool.parallel_ranges(from.rows, std::clamp<int64_t>((1 << 16) / cols_, 1, from.rows),
                         [&](int64_t begin, int64_t end) {
                           for (int64_t i = begin; i < end; ++i)
                             std::memcpy(part.blocks.get() + i * row, from.row(i), static_cast<size_t>(row));
                         });
    bytes_ += bytes;
    if (from.type == PackedType::kNf4) {
      GT_CHECK(from.scales, "packed rows of NF4 need their scales");
      Nf4Quantised q = from.scales();
      const auto blocks = static_cast<size_t>(from.rows * cols_ / block.values);
      GT_CHECK(q.codes.size() == blocks && q.steps.size() == (blocks + kNf4Group - 1) / kNf4Group,
               "NF4 scales: {} codes and {} steps for {} blocks", q.codes.size(), q.steps.size(), blocks);
      part.codes = std::move(q.codes);
      part.steps = std::move(q.steps);
      part.mean = q.mean;
      bytes_ += static_cast<int64_t>(part.codes.size() + part.steps.size() * sizeof(float) + sizeof(float));
    }
    parts_.push_back(std::move(part));
  }
  GT_CHECK(done == rows_, "packed rows: {} of {}", done, rows_);
  // A product with the whole matrix, where it is small; else some columns at a time, and the rows of a tall
  // one in ranges.
  const int64_t at_once = source.tall ? std::min(rows_, kTallRows) : rows_;
  const int64_t least = std::max(at_once * std::min(cols_, kColumns), cols_ * std::min(rows_, kColumns));
  wanted_ =
      std::min(rows_ * cols_ * dtype_size(dtype_), std::max(int64_t{32} << 20, least * dtype_size(dtype_)));
}

const PackedWeights::Part& PackedWeights::part_of(int64_t row) const {
  size_t i = 0;
  while (row >= parts_[i].begin + parts_[i].rows) ++i;
  return parts_[i];
}

void PackedWeights::expand_row(int64_t row, int64_t c0, int64_t c1, void* to) const {
  const Part& part = part_of(row);
  const PackedBlock block = packed_block(part.type);
  const int64_t begin = row - part.begin, row_blocks = cols_ / block.values;
  const uint8_t* blocks = part.blocks.get() + begin * packed_row_bytes(part.type, cols_);
  const auto unpack = [&](int64_t at, int64_t values, float* out) {
    const int64_t first = at / block.values, count = values / block.values;
    const uint8_t* from = blocks + first * block.bytes;
    if (part.type != PackedType::kNf4) return unpack_blocks(part.type, from, count, out);
    const int64_t number = begin * row_blocks + first;
    unpack_nf4(
        from,
        {.codes = part.codes.data() + number, .steps = part.steps.data(), .mean = part.mean, .first = number},
        count, out);
  };
  if (dtype_ == DType::kF32) return unpack(c0, c1 - c0, static_cast<float*>(to));
  alignas(64) float values[kRun];
  for (int64_t at = c0; at < c1; at += kRun) {
    const int64_t count = std::min(kRun, c1 - at);
    unpack(at, count, values);
    convert_to_bf16(values, static_cast<bf16*>(to) + (at - c0), count);
  }
}

const void* PackedWeights::expand(ThreadPool& pool, int64_t r0, int64_t n, int64_t c0, int64_t c1) const {
  const int64_t width = (c1 - c0) * dtype_size(dtype_);
  GT_CHECK(n * width <= expansion_->bytes, "expansion of {} bytes is too small for {} rows of {}",
           expansion_->bytes, n, width);
  auto* to = static_cast<std::byte*>(expansion_->memory.get());
  pool.parallel_ranges(n, std::clamp<int64_t>((1 << 15) / (c1 - c0), 1, n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) expand_row(r0 + i, c0, c1, to + i * width);
  });
  return to;
}

}  // namespace gantrain
