// What forward saves and backward reads, one struct, a shape on every field, taken from one arena: the same
// code that takes the tensors counts their bytes when the arena only counts.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "model/batch_ends.h"
#include "model/llama.h"

namespace gantrain {

// How much of a layer is kept for its backward. What is not kept is computed again there, by the same ops on
// the same inputs, which give the same bits; one layer's share of it exists at a time.
enum class Saving {
  kAll,         // everything backward needs: fastest backward
  kButGateUp,   // all but g and u: the gate's and up's product again
  kButMlp,      // all but h, g and u: o's product again as well
  kLayerInput,  // only each layer's input: the layer's forward again, but for the down product
  kNothing,     // inference: no backward
};

// The last layer has R rows, those of BatchEnds::read, where others have N: behind attention, which leaves
// the rest of o at zero.
struct LayerActivations {
  Tensor x;      // (N, C) f32      layer input, the residual stream
  Tensor rstd1;  // (N) f32         1 / rms of x
  Tensor q;      // (N, H, D) S     after RoPE; S is Device::kept_dtype
  Tensor k;      // (N, K, D) S     after RoPE
  Tensor v;      // (N, K, D) S
  // (P + N, K, D) S: a prefix's, and k and v behind it; without one k and v themselves
  Tensor keys, values;
  Tensor o;      // (N, H, D) S     attention output
  Tensor lse;    // (N, H) f32      log-sum-exp of the scores
  Tensor h;      // (N, C) f32      residual stream after attention
  Tensor rstd2;  // (N) f32         1 / rms of h
  Tensor g;      // (N, F) S        gate, before SwiGLU
  Tensor u;      // (N, F) S        up
  // (N, R) f32     of each adapter, by target; empty without
  std::array<Tensor, kLoraTargets> z;
  // With bottlenecks, behind attention and the MLP: what they read, (N, C) f32, and its narrow form, (N, R)
  // f32
  std::array<Tensor, 2> narrow_x, narrow_z;
};

struct Activations {
  Saving saving = Saving::kAll;
  int64_t rows = 0;                      // N
  std::vector<LayerActivations> layers;  // what is not kept is one set that they share
  Tensor x_out;                          // (R, C) f32   residual stream after the last layer that ran
  Tensor rstd_out;                       // (R) f32
  Tensor o_read;   // (R, H, D) S  those rows of the last layer's o; empty where all are read
  Tensor a;        // (N, F) T     SwiGLU output, not saved
  Tensor x_bf16;   // (N, C) bf16  stream * the next norm's gain, where the device fuses norms; not saved
  Tensor rotary;   // (N, D) f32   cos and sin of the rows' angles, the same in all layers
  Tensor scratch;  // (bytes) u8   for ops
  // Bottlenecks' own, not saved:
  Tensor active;  // (N, R) f32
  Tensor wide;    // (N, C) f32

  // Backward's own buffers; empty unless saving allows a backward.
  Tensor dx;                    // (N, C) f32   gradient of the residual stream, in and out
  Tensor dx_out;                // (R, C) f32   gradient of x_out; where all rows are read, dx itself
  Tensor d_o;                   // (N, H, D) T
  Tensor dqkv;                  // (N, (H + 2K) D) T
  Tensor dk_prefix, dv_prefix;  // (P, K, D) T; empty without a prefix
  Tensor dy;                    // (N, 2F) T    of gate and up
  // Where the device fuses norms:
  Tensor dx_bf16;  // (N, C) bf16  dx rounded
  Tensor dot;      // (N) f32      <dy, [g; u]>
  Tensor dot_qkv;  // (N, H + K) f32  parts of <dqkv, [q; k; v]>
  // Where some rows are read: gradients of theirs, and a row of zeros for all others.
  Tensor dx_read;  // (R + 1, C) f32  dx_out in front
  Tensor do_read;  // (R + 1, H, D) T
  // Of the W rows of BatchEnds::wanted, if it has any: what the first layer's last product needs, and the
  // gradient at the embedding.
  Tensor x_wanted, dx_wanted;  // (W, C) f32
  Tensor rstd_wanted;          // (W) f32
  Tensor dqkv_wanted;          // (W, (H + 2K) D) T
  Tensor dot_wanted;           // (W, H + K) f32
  // With bottlenecks:
  Tensor dout;     // (N, C) f32   gradient of what attention or the MLP adds
  Tensor dnarrow;  // (2, N, R) f32
  // With trained weights:
  Tensor normed, dnormed;  // (N, C) f32
  // With trained weights or bottlenecks:
  Tensor rstd_again;  // (N) f32
};

// A layer's adapters on some targets, as an op takes them: what forward needs, and what backward does.
struct LoraParts {
  std::array<LoraPart, 3> forward;
  std::array<LoraPartBackward, 3> backward;
  size_t count = 0;
  // No low-rank adapters, or none there: none.
  LoraParts(const Adapters& adapters, const LlamaConfig& config, size_t layer,
            std::initializer_list<LoraTarget> targets, const std::array<Tensor, kLoraTargets>& z);
  operator std::span<const LoraPart>() const { return {forward.data(), count}; }           // NOLINT
  operator std::span<const LoraPartBackward>() const { return {backward.data(), count}; }  // NOLINT
};

// Takes all tensors for N rows of layers [0, layers). Rewinds nothing: the caller marks and releases the
// arena.
Activations take_activations(Arena& arena, Device& device, const Llama& llama, int64_t rows, Saving saving,
                             int layers, const AttentionPlan& plan, const Adapters& adapters = {},
                             const BatchEnds& ends = {});

}  // namespace gantrain
