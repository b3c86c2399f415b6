// A frozen Llama: configuration and weights on a device. Nothing here can be written to after loading.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "model/config.h"

namespace gantrain {

class Weights;

// A vector of frozen values (norm gains, biases, rotary frequencies): f32, read only.
class FrozenVector {
 public:
  FrozenVector() = default;
  FrozenVector(Device& device, const std::vector<float>& values);
  // Over values that belong to someone else: Device::matrix_over.
  explicit FrozenVector(ConstTensor values) : view_(values) {}
  ConstTensor view() const { return view_; }
  operator ConstTensor() const { return view_; }  // NOLINT: implicit on purpose
  int64_t bytes() const { return storage_.view().bytes(); }

 private:
  OwnedTensor storage_;
  ConstTensor view_;
};

struct LlamaLayer {
  FrozenVector attention_gain;                  // (C)
  std::unique_ptr<const FrozenMatrix> qkv;      // ((H + 2K) D, C)
  FrozenVector qkv_bias;                        // ((H + 2K) D) or empty
  std::unique_ptr<const FrozenMatrix> o;        // (C, H D)
  FrozenVector o_bias;                          // (C) or empty
  FrozenVector mlp_gain;                        // (C)
  std::unique_ptr<const FrozenMatrix> gate_up;  // (2F, C)
  FrozenVector gate_up_bias;                    // (2F) or empty
  std::unique_ptr<const FrozenMatrix> down;     // (C, F)
  FrozenVector down_bias;                       // (C) or empty
};

class Llama {
 public:
  // Reads every tensor once, converting to `dtype` (f32 or bf16); `progress(done, total)` in tensors, may be
  // empty. With `keep_packed`, matrices whose tensors are all packed (Weights::packed) stay so in memory, and
  // their values are rounded to `dtype` when they are read. Throws Error naming the file and tensor if a
  // value is not finite.
  static std::unique_ptr<const Llama> load(Device& device, std::shared_ptr<const Weights> weights,
                                           DType dtype,
                                           const std::function<void(int64_t, int64_t)>& progress = {},
                                           bool keep_packed = false);

  // A model of the same shape in f32 whose weights lie where `values` says, change with them and must outlive
  // it.
  struct Values {
    struct Layer {
      ConstTensor attention_gain, qkv, qkv_bias, o, o_bias, mlp_gain, gate_up, gate_up_bias, down, down_bias;
    };
    std::vector<Layer> layers;
    ConstTensor embedding, head, final_gain;  // head: empty where it is the embedding
  };
  static std::unique_ptr<const Llama> over(Device& device, const Llama& base, const Values& values);

  const LlamaConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  const std::vector<LlamaLayer>& layers() const { return layers_; }
  const FrozenMatrix& embedding() const { return *embedding_; }              // (V, C)
  const FrozenMatrix& head() const { return head_ ? *head_ : *embedding_; }  // (V, C)
  ConstTensor final_gain() const { return final_gain_; }                     // (C)
  ConstTensor inv_freq() const { return inv_freq_; }                         // (D / 2)
  float attention_scale() const;
  // Root mean square over the whole embedding table: the scale a soft prompt should keep.
  float embedding_rms() const { return embedding_rms_; }
  int64_t parameters() const { return parameters_; }
  // Memory held by this object, and by the device for expanding packed matrices.
  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t packed_parameters() const { return packed_parameters_; }  // of parameters(): in packed matrices
  // Types of packed blocks and how many parameters have them, "nothing" where none is packed.
  const std::string& packing() const { return packing_; }
  const Weights& weights() const { return *weights_; }  // as they were read
  // A hash of every value as read from the file: the same file gives the same hash whatever the dtype or
  // device.
  uint64_t content_hash() const { return content_hash_; }
  // A hash of the weights as they are in memory now (CPU devices): equal before and after training, by test.
  uint64_t memory_hash() const;

  // Rows of the embedding table as f32, on the host: (ids.size(), C).
  std::vector<float> embedding_rows(const std::vector<int32_t>& ids) const;

 private:
  Llama() = default;
  Device* device_ = nullptr;
  LlamaConfig config_;
  DType dtype_ = DType::kF32;
  std::vector<LlamaLayer> layers_;
  std::unique_ptr<const FrozenMatrix> embedding_, head_;
  FrozenVector final_gain_, inv_freq_;
  float embedding_rms_ = 0.0f;
  int64_t parameters_ = 0, weight_bytes_ = 0, packed_parameters_ = 0;
  std::string packing_;
  uint64_t content_hash_ = 0;
  std::shared_ptr<const Weights> weights_;  // the mapped file stays open: matrices may borrow its pages
};

}  // namespace gantrain
