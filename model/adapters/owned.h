// An adapter out of a file, whatever its type, on a device.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/adapters/bottleneck.h"
#include "model/adapters/peft.h"

namespace gantrain {

// What a PeftAdapter of a type that sits on the model is there: LORA, PREFIX_TUNING or BOTTLENECK.
class OwnedAdapter {
 public:
  // gradients: beside it, set to zero.
  OwnedAdapter(Device& device, const LlamaConfig& config, const PeftAdapter& adapter, bool gradients);
  Adapters adapters() const;
  // Gradients by the names of the file's tensors, on the host.
  struct Gradient {
    std::string name;
    Shape shape;
    std::vector<float> values;
  };
  std::vector<Gradient> gradients(Device& device) const;

 private:
  std::unique_ptr<OwnedLora> lora_;
  std::unique_ptr<OwnedBottleneck> bottleneck_;
  OwnedTensor table_, dtable_;
  PrefixAdapter prefix_;
};

// An adapter's values back from the device.
PeftAdapter adapter_from_device(Device& device, const Adapters& adapters);

}  // namespace gantrain
