// The program's composition root: the only place that names concrete backends.
#include "core/check.h"
#include "cpu/cpu_device.h"
#include "cuda/cuda_device.h"
#include "train/cli/cli.h"

int main(int argc, char** argv) {
  using namespace gantrain;
  const DeviceFactory devices = [](const DeviceChoice& choice) {
    return choice.kind == DeviceKind::kCuda
               ? make_cuda_device({.index = choice.index, .gemm = choice.gemm, .pooled = true})
               : make_cpu_device(choice.threads);
  };
  const CommunicatorFactory communicators =
      [](Device& device, std::unique_ptr<HostCommunicator> hosts) -> std::unique_ptr<Communicator> {
    if (device.kind() == DeviceKind::kCuda) return make_cuda_communicator(device, std::move(hosts));
    return hosts;
  };
  return run_cli(
      argc, argv,
      {.train = [&](const TrainOptions& options) { return run_train(options, devices, communicators); },
       .eval = [&](const EvalOptions& options) { return run_eval(options, devices); },
       .compare = run_compare,
       .generate = [&](const GenerateOptions& options) { return run_generate(options, devices); },
       .probe = [&](const ProbeOptions& options) { return run_probe(options, devices); },
       .export_run = [&](const ExportOptions& options) { return run_export(options, devices); }});
}
