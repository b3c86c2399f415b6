// Devices, attributes, limits, occupancy, versions, names of errors, entry points of the driver.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/softgpu/runtime.h"

namespace softgpu {
namespace {

struct DeviceFacts {
  int shared_per_block = 48 * 1024, shared_optin, shared_per_sm, threads_per_sm = 2048, blocks_per_sm = 32,
      processors;
};
// What the chips of these compute capabilities report; the numbers are those of the CUDA C++ Programming
// Guide.
DeviceFacts facts() {
  DeviceFacts f;
  switch (options().arch) {
    case 80:
      f.shared_optin = 163 * 1024, f.shared_per_sm = 164 * 1024, f.processors = 108;
      break;
    case 86:
    case 89:
      f.shared_optin = 99 * 1024, f.shared_per_sm = 100 * 1024, f.processors = 84, f.threads_per_sm = 1536,
      f.blocks_per_sm = 24;
      break;
    default:
      f.shared_optin = 227 * 1024, f.shared_per_sm = 228 * 1024, f.processors = 132;
      break;
  }
  return f;
}

int occupancy(const Kernel& k, int block, size_t dynamic_shared) {
  const DeviceFacts f = facts();
  if (block <= 0 || block > 1024) return 0;
  const int warps = (block + 31) / 32;
  int n = std::min(f.blocks_per_sm, f.threads_per_sm / (warps * 32));
  const int registers = 256 * ((k.registers_estimate * 32 + 255) / 256) * warps;
  n = std::min(n, 65536 / std::max(registers, 1));
  const size_t shared = k.static_shared + dynamic_shared + 1024;
  if (k.static_shared + dynamic_shared > static_cast<size_t>(f.shared_optin)) return 0;
  return std::min(n, static_cast<int>(static_cast<size_t>(f.shared_per_sm) / shared));
}

std::atomic<int> g_device = -1;  // that the process has set
bool is_device(int d) { return d >= 0 && d < options().devices; }

struct ErrorName {
  int code;
  const char* name;
  const char* text;
};
constexpr ErrorName kErrors[] = {
#include "cuda/softgpu/errors.inc"
};

}  // namespace
}  // namespace softgpu

using namespace softgpu;

SOFTGPU_EXPORT const char* cudaGetErrorName(cudaError_t e) {
  for (const ErrorName& n : kErrors)
    if (n.code == e) return n.name;
  return "unrecognized error code";
}
SOFTGPU_EXPORT const char* cudaGetErrorString(cudaError_t e) {
  for (const ErrorName& n : kErrors)
    if (n.code == e) return n.text;
  return "unrecognized error code";
}
SOFTGPU_EXPORT cudaError_t cudaGetDeviceCount(int* n) {
  *n = options().devices;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGetDevice(int* d) {
  *d = g_device < 0 ? 0 : g_device.load();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaSetDevice(int d) {
  if (!is_device(d)) return finish(cudaErrorInvalidDevice);
  // All memory is that of the first one that was set.
  int none = -1;
  if (!g_device.compare_exchange_strong(none, d) && none != d)
    return finish(complain(cudaErrorNotSupported,
                           fmt::format("a process works with one GPU: it has set {}, and now {}", none, d)));
  return finish(cudaSuccess);
}
SOFTGPU_EXPORT cudaError_t cudaInitDevice(int d, unsigned, unsigned) { return cudaSetDevice(d); }
SOFTGPU_EXPORT cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaGetDeviceFlags(unsigned* f) {
  *f = 0;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit limit) {
  *v = limit == cudaLimitStackSize ? 1024 : limit == cudaLimitPrintfFifoSize ? 1 << 20 : 8 << 20;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int) {
  std::snprintf(s, static_cast<size_t>(n), "0000:00:00.0");
  return cudaSuccess;
}

SOFTGPU_EXPORT cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int device) {
  if (!is_device(device)) return finish(cudaErrorInvalidDevice);
  const DeviceFacts f = facts();
  switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *v = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *v = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      *v = 2147483647;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *v = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *v = f.shared_per_block;
      break;
    case cudaDevAttrTotalConstantMemory:
      *v = 65536;
      break;
    case cudaDevAttrWarpSize:
      *v = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *v = 65536;
      break;
    case cudaDevAttrClockRate:
      *v = 1000000;
      break;
    case cudaDevAttrMemoryClockRate:
      *v = 1000000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *v = 64;
      break;
    case cudaDevAttrMultiProcessorCount:
      *v = f.processors;
      break;
    case cudaDevAttrL2CacheSize:
      *v = 40 << 20;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *v = f.threads_per_sm;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *v = options().arch / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *v = options().arch % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *v = f.shared_per_sm;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *v = f.shared_optin;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *v = 1024;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *v = f.blocks_per_sm;
      break;
    case cudaDevAttrMaxPitch:
      *v = 2147483647;
      break;
    case cudaDevAttrTextureAlignment:
      *v = 512;
      break;
    case cudaDevAttrClusterLaunch:
      *v = options().arch >= 90;
      break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrGlobalL1CacheSupported:
    case cudaDevAttrLocalL1CacheSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrAsyncEngineCount:
    case cudaDevAttrGpuOverlap:
    case cudaDevAttrMemoryPoolsSupported:
      *v = 1;
      break;
    default:
      *v = 0;
      break;
  }
  return cudaSuccess;
}

SOFTGPU_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (!is_device(device)) return finish(cudaErrorInvalidDevice);
  const DeviceFacts f = facts();
  std::memset(p, 0, sizeof *p);
  const std::string name = fmt::format("softgpu (PTX on the CPU, compute capability {}.{})",
                                       options().arch / 10, options().arch % 10);
  std::memcpy(p->name, name.c_str(), name.size() + 1);
  p->totalGlobalMem = options().memory;
  p->sharedMemPerBlock = static_cast<size_t>(f.shared_per_block);
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = options().arch / 10, p->minor = options().arch % 10;
  p->textureAlignment = 512, p->texturePitchAlignment = 32;
  p->multiProcessorCount = f.processors;
  p->canMapHostMemory = p->concurrentKernels = p->asyncEngineCount = p->unifiedAddressing =
      p->streamPrioritiesSupported = 1;
  p->globalL1CacheSupported = p->localL1CacheSupported = p->managedMemory = p->concurrentManagedAccess = 1;
  p->canUseHostPointerForRegisteredMem = p->cooperativeLaunch = p->hostRegisterSupported =
      p->memoryPoolsSupported = 1;
  p->memoryBusWidth = 64;
  p->l2CacheSize = 40 << 20;
  p->maxThreadsPerMultiProcessor = f.threads_per_sm;
  p->sharedMemPerMultiprocessor = static_cast<size_t>(f.shared_per_sm);
  p->sharedMemPerBlockOptin = static_cast<size_t>(f.shared_optin);
  p->reservedSharedMemPerBlock = 1024;
  p->maxBlocksPerMultiProcessor = f.blocks_per_sm;
  p->clusterLaunch = options().arch >= 90;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaChooseDevice(int* d, const cudaDeviceProp*) {
  *d = 0;
  return cudaSuccess;
}

static KernelEntry* decoded(const void* f, cudaError_t* e) {
  KernelEntry* k = find_kernel(f);
  *e = k ? decode(*k) : cudaErrorInvalidDeviceFunction;
  return *e == cudaSuccess ? k : nullptr;
}
SOFTGPU_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k) return finish(e);
  std::memset(a, 0, sizeof *a);
  a->sharedSizeBytes = k->kernel->static_shared;
  a->localSizeBytes = k->kernel->local_bytes;
  const uint32_t* m = k->kernel->max_threads;
  a->maxThreadsPerBlock = m[0] ? static_cast<int>(m[0] * m[1] * m[2]) : 1024;
  a->numRegs = std::min(255, k->kernel->registers_estimate);
  a->ptxVersion = a->binaryVersion = options().arch;
  a->maxDynamicSharedSizeBytes = k->kernel->max_dynamic_shared;
  a->preferredShmemCarveout = k->kernel->preferred_carveout;
  const uint32_t* c = k->kernel->cluster;
  a->requiredClusterWidth = static_cast<int>(c[0]), a->requiredClusterHeight = static_cast<int>(c[1]),
  a->requiredClusterDepth = static_cast<int>(c[2]);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute attribute, int value) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k) return finish(e);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value + static_cast<int>(k->kernel->static_shared) > facts().shared_optin)
      return finish(complain(cudaErrorInvalidValue,
                             fmt::format("{}: {} bytes of dynamic shared memory beside {} static, at most {}",
                                         k->name, value, k->kernel->static_shared, facts().shared_optin)));
    k->kernel->max_dynamic_shared = value;
  } else if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
    k->kernel->preferred_carveout = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    k->kernel->non_portable_cluster = value != 0;
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaFuncSetCacheConfig(const void* f, cudaFuncCache) {
  SOFTGPU_ENTER;
  return finish(find_kernel(f) ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}
SOFTGPU_EXPORT cudaError_t cudaFuncGetName(const char** name, const void* f) {
  SOFTGPU_ENTER;
  KernelEntry* k = find_kernel(f);
  if (!k) return finish(cudaErrorInvalidDeviceFunction);
  *name = k->name.c_str();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaFuncGetParamInfo(const void* f, size_t i, size_t* offset, size_t* size) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k) return finish(e);
  if (i >= k->kernel->params.size()) return finish(cudaErrorInvalidValue);
  *offset = k->kernel->params[i].offset;
  if (size) *size = k->kernel->params[i].size;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f,
                                                                                  int block, size_t shared,
                                                                                  unsigned) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k) return finish(e);
  *n = occupancy(*k->kernel, block, shared);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int block,
                                                                         size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, block, shared, 0);
}
SOFTGPU_EXPORT cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, const void* f, int blocks,
                                                                     int) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k || blocks <= 0) return finish(k ? cudaErrorInvalidValue : e);
  const int each = facts().shared_per_sm / blocks - 1024 - static_cast<int>(k->kernel->static_shared);
  *bytes = static_cast<size_t>(std::clamp(each, 0, facts().shared_optin));
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaOccupancyMaxActiveClusters(int* n, const void* f,
                                                          const cudaLaunchConfig_t* c) {
  SOFTGPU_ENTER;
  cudaError_t e;
  KernelEntry* k = decoded(f, &e);
  if (!k) return finish(e);
  unsigned size = 1;
  for (unsigned i = 0; i < c->numAttrs; ++i)
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension)
      size = c->attrs[i].val.clusterDim.x * c->attrs[i].val.clusterDim.y * c->attrs[i].val.clusterDim.z;
  const int blocks = occupancy(*k->kernel, static_cast<int>(c->blockDim.x * c->blockDim.y * c->blockDim.z),
                               c->dynamicSmemBytes);
  *n = blocks * facts().processors / static_cast<int>(std::max(size, 1u));
  return cudaSuccess;
}

namespace softgpu {
void* driver_function(const char* name);  // driver.cc
}
static cudaError_t entry_point(const char* name, void** f, cudaDriverEntryPointQueryResult* status) {
  *f = driver_function(name);
  if (status) *status = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (!*f)
    complain(cudaErrorSymbolNotFound, fmt::format("the driver's entry point {} is not supported", name));
  return finish(*f || status ? cudaSuccess : cudaErrorSymbolNotFound);
}
SOFTGPU_EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long,
                                                   cudaDriverEntryPointQueryResult* status) {
  return entry_point(name, f, status);
}
SOFTGPU_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned,
                                                            unsigned long long,
                                                            cudaDriverEntryPointQueryResult* status) {
  return entry_point(name, f, status);
}
