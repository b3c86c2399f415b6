// A training step of prompt tuning put together here out of what the trainer is made of, so that what the
// engine leaves out can be computed after all: the price of not having an exact trick (docs/benchmarks.md).
#pragma once

#include "bench/support/harness.h"
#include "model/activations.h"
#include "model/llama.h"

namespace gantrain::bench {

// What is not left out. Without changing a result: every method of one kind of batch has the same loss.
struct Without {
  bool last_layer = false;   // it goes on with all rows, read or not
  bool scored_head = false;  // the head gets all rows, others than scored ones with weight 0; with last_layer
  bool first_layer = false;  // its backward gives the gradient of all rows
  bool embedding = false;    // the table of embeddings has a gradient, (V, C); with first_layer
  bool shared_prompt = false;  // each input has the prompt's rows to itself
  bool packing = false;        // rows of no meaning behind all but the longest sequence
  bool shared_input = false;   // an input is run for each of its answers
};
struct ExactMethod {
  const char* name;
  Without without;
  bool uneven = false;   // lengths between a quarter of `length` and all of it
  bool answers = false;  // `samples` answers to each input
};
const std::vector<ExactMethod>& exact_methods();
// Takes the first step, which is not timed, and calls `after_first`.
Timed prepare_exact(const ExactMethod& method, const Point& point, Device& device,
                    const std::function<void()>& after_first);

// Bytes that the layers keep of `rows` rows between forward and backward.
int64_t saved_bytes(Device& device, const Llama& llama, int64_t rows, Saving saving, const Adapters& adapters,
                    const BatchEnds& ends = {});

}  // namespace gantrain::bench
