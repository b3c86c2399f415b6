// `gantrain probe`: the door through which any outside program can question the engine. Reads tokens, labels
// and a soft prompt from a safetensors file; writes logits, loss and the gradient at the soft prompt.
//
//   in   tokens I64 (B, T); lengths I64 (B), optional; labels I64 (B, T), optional, -100 is not scored,
//   logits at t
//        predict the label at t + 1; soft_prompt F32 (P, C) or (B, P, C), optional, before the tokens,
//        positions 0..P-1
//   out  logits F32 (sum of lengths, V); loss F32 (), mean over all scored labels; soft_prompt_grad F32, as
//   soft_prompt
//
// With `adapter`, a PEFT folder: PROMPT_TUNING or P_TUNING gives the soft prompt, PREFIX_TUNING, LORA and
// BOTTLENECK sit on the model (a soft_prompt may stand beside them). The gradient of each of its tensors is
// written as `grad.NAME`. With `weights` the gradient of every weight of the model is, by Hugging Face's
// names, in f32.
#pragma once

#include <string>

#include "model/llama.h"

namespace gantrain {

struct ProbeFiles {
  std::string input, output, adapter;
  bool weights = false;
};
void probe(Device& device, const Llama& llama, const ProbeFiles& files);

}  // namespace gantrain
