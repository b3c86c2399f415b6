// What is wanted of a batch at both ends of the layers. The last layer needs no more of its rows than those
// that are read behind it, but for their keys and values; the first one's backward no more than the gradient
// of the rows that are asked for.
#pragma once

#include <span>

#include "model/adapters/adapters.h"
#include "model/batch.h"

namespace gantrain {

struct BatchEnds {
  // Rows whose residual stream after the last layer is read: ascending, distinct. Empty: all.
  std::vector<int32_t> read;
  AttentionPlan read_plan;  // attention of those queries alone
  // Rows whose gradient at the embedding is wanted: ascending, distinct. Empty: all.
  std::vector<int32_t> wanted;
  AttentionPlan wanted_plan;  // what of the first layer's attention has a part in those gradients

  // Rows of the stream after the last layer, of a batch of n.
  int64_t read_rows(int64_t n) const { return read.empty() ? n : std::ssize(read); }
  // Where a row of the batch stands among those that are read, or among the wanted ones.
  int32_t place_read(int32_t row) const { return place(read, row); }
  int32_t place_wanted(int32_t row) const { return place(wanted, row); }
  std::vector<int32_t> places_read(std::span<const int32_t> rows) const;

 private:
  static int32_t place(const std::vector<int32_t>& among, int32_t row);
};

// Which rows a caller names, in any order and with repeats; empty: all.
struct BatchRows {
  std::vector<int32_t> read;      // Runner::head, output_rows, logits and add_output_gradient take these
  std::vector<int32_t> gradient;  // of a backward; empty: the prompt's, if the batch has any
};

// The ends of a batch that runs through `layers` layers with these adapters. Here it is decided where all
// rows are taken after all: with dropout (its masks go by a row's place in the product) and, for the
// gradient's rows, anything that is trained in the model itself.
BatchEnds ends_of(const PackedBatch& batch, const BatchRows& rows, int layers, bool backward,
                  const Adapters& adapters);

// The same attention for some of its queries: runs of them, each behind the rows before it as a span.
AttentionPlan attention_of_queries(const AttentionPlan& whole, std::span<const int32_t> rows, int64_t n);
// Self-attention (row i's own key is front + i) with no more than has a part in the gradients of q, k and v
// of these rows: segments that hold one stay as they are, others see no key but these.
AttentionPlan attention_of_keys(const AttentionPlan& whole, std::span<const int32_t> rows, int64_t n,
                                int32_t front);

}  // namespace gantrain
