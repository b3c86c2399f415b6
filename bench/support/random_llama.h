// A Llama of any shape whose weights are random numbers, made while they are read: no file, no second copy in
// memory.
#pragma once

#include <memory>

#include "model/llama.h"
#include "model/packing.h"
#include "model/tokenizer/tokenizer.h"
#include "model/weights.h"

namespace gantrain::bench {

std::shared_ptr<const Weights> random_weights(const LlamaConfig& config);

// A token a number, spelled "<12>": every text has one spelling, and no token ends an answer.
std::unique_ptr<Tokenizer> number_tokenizer(int64_t vocab);

// A model for timing: the file's, if `model` is one, else random weights of the shape; and a tokenizer for it
// without end tokens, so that every answer has the length that was asked for. The last one opened is kept.
struct BenchModel {
  std::shared_ptr<const Llama> llama;
  std::shared_ptr<const Tokenizer> tokenizer;
};
BenchModel open_bench_model(Device& device, const std::string& model, const LlamaConfig& config, DType dtype,
                            BasePacking packing = BasePacking::kNone);
void close_bench_model();  // lets go of the last one, before its device ends

// `count` random tokens of a vocabulary, another sequence for every number.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t number);

}  // namespace gantrain::bench
