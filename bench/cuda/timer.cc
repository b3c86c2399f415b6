#include "bench/timer.h"

#include <cuda_runtime_api.h>

#include "cuda/cuda_device.h"
#include "cuda/runtime/check.h"

namespace gantrain::bench {
namespace {

using cuda::check_call;

class EventTimer final : public CudaTimer {
 public:
  explicit EventTimer(Device& device) : stream_(static_cast<cudaStream_t>(cuda_stream(device))) {
    GT_CUDA(cudaEventCreate(&begin_));
    GT_CUDA(cudaEventCreate(&end_));
    int now = 0, cache = 0;
    GT_CUDA(cudaGetDevice(&now));
    GT_CUDA(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, now));
    flush_bytes_ = 2 * static_cast<size_t>(cache);
    if (flush_bytes_ > 0) GT_CUDA(cudaMalloc(&flush_, flush_bytes_));
  }
  ~EventTimer() override {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
    (void)cudaFree(flush_);
  }
  double seconds(const std::function<void()>& work) override {
    if (flush_) GT_CUDA(cudaMemsetAsync(flush_, ++round_ & 0xff, flush_bytes_, stream_));
    GT_CUDA(cudaEventRecord(begin_, stream_));
    work();
    GT_CUDA(cudaEventRecord(end_, stream_));
    GT_CUDA(cudaEventSynchronize(end_));
    float milliseconds = 0;
    GT_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  void* flush_ = nullptr;
  size_t flush_bytes_ = 0;
  int round_ = 0;
};

}  // namespace

std::unique_ptr<CudaTimer> make_cuda_timer(Device& device) { return std::make_unique<EventTimer>(device); }

Peaks cuda_peaks() {
  int now = 0;
  GT_CUDA(cudaGetDevice(&now));
  const auto attribute = [&](cudaDeviceAttr a) {
    int value = 0;
    GT_CUDA(cudaDeviceGetAttribute(&value, a, now));
    return static_cast<double>(value);
  };
  const double processors = attribute(cudaDevAttrMultiProcessorCount);
  const double hertz = attribute(cudaDevAttrClockRate) * 1e3;
  const int capability = static_cast<int>(10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                                          attribute(cudaDevAttrComputeCapabilityMinor));
  // Operations a multiprocessor does in a clock: f32 units, and bf16 tensor cores with f32 sums, without
  // sparsity (NVIDIA's architecture papers of GA100, GA102, AD102, GH100, GB100).
  struct Rate {
    int capability;
    double f32, bf16;
  };
  constexpr Rate kRates[] = {{80, 128, 2048}, {86, 256, 512},   {87, 256, 1024},  {89, 256, 512},
                             {90, 256, 4096}, {100, 256, 8192}, {103, 256, 8192}, {120, 256, 512}};
  Peaks peaks;
  peaks.source = "the device's properties";
  for (const Rate& rate : kRates)
    if (rate.capability == capability) {
      peaks.flops_f32 = processors * hertz * rate.f32;
      peaks.flops_bf16 = processors * hertz * rate.bf16;
    }
  // Two transfers a clock.
  peaks.bandwidth =
      2e3 * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8;
  return peaks;
}

}  // namespace gantrain::bench
