// The CUDA device: our own kernels on an NVIDIA GPU of compute capability 8.0 or newer.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/communicator.h"
#include "core/device.h"

namespace gantrain {

// Why a CUDA device cannot be made here, in one line; empty: it can.
std::string cuda_unavailable();

// "own", "cublaslt" or "auto"; fails with a usage error that names `where`.
inline Gemm parse_gemm(const std::string& text, const std::string& where) {
  if (text == "own") return Gemm::kOwn;
  if (text == "cublaslt") return Gemm::kCublasLt;
  if (text == "auto") return Gemm::kAuto;
  fail_usage("{}: '{}', expected own, cublaslt or auto", where, text);
}

// Who computes attention of plain causal batches in bf16; the rest is always ours.
enum class CudaAttention : uint8_t { kOwn, kCudnn };
// "own" or "cudnn"; fails with a usage error that names `where`.
inline CudaAttention parse_cuda_attention(const std::string& text, const std::string& where) {
  if (text == "own") return CudaAttention::kOwn;
  if (text == "cudnn") return CudaAttention::kCudnn;
  fail_usage("{}: '{}', expected own or cudnn", where, text);
}

struct CudaOptions {
  int index = 0;  // of the CUDA runtime
  // kOwn opens no library, and a row's bits do not depend on its neighbours; kCublasLt takes cuBLASLt
  // wherever it has an algorithm; kAuto times both at the first product of a shape and remembers what was
  // faster (cuda/runtime/gemm_choices.h): ours where the library is absent, or not faster.
  Gemm gemm = Gemm::kDefault;
  std::optional<CudaAttention> attention = {};  // not given: the environment's GANTRAIN_ATTENTION, else kOwn
  // Buffers are pieces of few large reservations, and regions (core/device.h) become graphs; the
  // environment's GANTRAIN_POOL=0 turns off both, GANTRAIN_GRAPHS=0 the graphs. Off: each buffer is an
  // allocation of its own, so that what checks accesses (tools/softgpu, compute-sanitizer) knows its bounds.
  bool pooled = false;
};
// Throws Error with the line of cuda_unavailable() and what to do, or if cuBLASLt or cuDNN is asked for and
// cannot be opened.
std::unique_ptr<Device> make_cuda_device(const CudaOptions& options = {});
// Sums over ranks by NCCL, put on this CUDA device's stream; `hosts` connects the ranks' processes. Every
// rank calls it. Throws Error if NCCL is not there or cannot connect the GPUs.
std::unique_ptr<Communicator> make_cuda_communicator(Device& device, std::unique_ptr<HostCommunicator> hosts);
// The stream (cudaStream_t) that all work of this CUDA device is put on: for timing it by events.
void* cuda_stream(const Device& device);

}  // namespace gantrain
