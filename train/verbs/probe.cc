#include "model/probe.h"

#include "model/weights.h"
#include "train/verbs/session.h"

namespace gantrain {

int run_probe(const ProbeOptions& options, const DeviceFactory& devices) {
  // No tokenizer: the door speaks in token ids.
  const std::unique_ptr<Device> device = devices(options.device);
  const auto llama = open_llama(*device, open_weights(options.model), resolved(options.packing),
                                choose_dtype(options.dtype, *device));
  probe(*device, *llama, {options.input, options.output, options.adapter, options.weights});
  return 0;
}

}  // namespace gantrain
