// Attention by cuDNN, opened on first use and never linked: cudnn.cc is the only place that sees its headers.
// A build without them has cudnn_absent.cc in its place.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "core/ops/attention.h"

namespace gantrain::cuda {

// Whether a plan is a plain batch: causal sequences one after the other, each of which sees itself alone.
// Shared prompts, decoding and cross-attention are not.
bool is_plain_batch(const AttentionPlan& plan, int64_t query_rows, int64_t key_rows);

class Cudnn {
 public:
  // Null where the library cannot be opened: `why` then says so in one line.
  static std::unique_ptr<Cudnn> open(std::string* why);
  virtual ~Cudnn() = default;
  // Puts attention of a plain batch in bf16 on the stream. False: the library does not take it, and nothing
  // was done.
  virtual bool forward(cudaStream_t, const AttentionForward&) = 0;
  virtual bool backward(cudaStream_t, const AttentionBackward&) = 0;
};

}  // namespace gantrain::cuda
