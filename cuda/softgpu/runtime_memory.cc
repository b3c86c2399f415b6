// Allocation, copies, fills, symbols, pointers.
#include <fmt/format.h>

#include <cstdlib>

#include "cuda/softgpu/runtime.h"

namespace softgpu {
namespace {

// A range the device owns must lie in one live allocation.
cudaError_t check_range(const void* p, size_t bytes, const char* what, bool must_be_device) {
  if (bytes == 0) return cudaSuccess;
  const uint64_t a = reinterpret_cast<uint64_t>(p);
  const Allocation* al = memory().find(a);
  if (!al) {
    if (memory().in_arena(a) || must_be_device)
      return complain(cudaErrorInvalidValue,
                      fmt::format("{} at {} is no device memory: {}", what, p, memory().describe(a)));
    return cudaSuccess;
  }
  if (!al->live)
    return complain(cudaErrorInvalidValue, fmt::format("{} at {}: {}", what, p, memory().describe(a)));
  if (a + bytes > al->end())
    return complain(cudaErrorInvalidValue,
                    fmt::format("{} of {} bytes at {} leaves its allocation of {} bytes by {}", what, bytes,
                                p, al->size, a + bytes - al->end()));
  return cudaSuccess;
}

size_t extent(size_t width, size_t pitch, size_t height, size_t slice, size_t depth) {
  return width == 0 || height == 0 || depth == 0 ? 0 : (depth - 1) * slice + (height - 1) * pitch + width;
}

cudaError_t allocate(void** out, size_t size, AllocKind kind) {
  if (!out) return cudaErrorInvalidValue;
  if (size == 0) return *out = nullptr, cudaSuccess;
  const uint64_t a = memory().allocate(size, kind);
  if (!a) return cudaErrorMemoryAllocation;
  *out = reinterpret_cast<void*>(a);
  return cudaSuccess;
}

cudaError_t copy(cudaStream_t s, void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (!dst || !src) return cudaErrorInvalidValue;
  Operation op;
  op.kind = Operation::kMemcpy;
  op.dst = dst, op.src = src, op.width = bytes, op.copy_kind = kind;
  return submit(s, std::move(op));
}
cudaError_t copy2d(cudaStream_t s, void* dst, size_t dpitch, const void* src, size_t spitch, size_t width,
                   size_t height, cudaMemcpyKind kind) {
  if (width == 0 || height == 0) return cudaSuccess;
  if (!dst || !src || width > dpitch || width > spitch) return cudaErrorInvalidPitchValue;
  Operation op;
  op.kind = Operation::kMemcpy;
  op.dst = dst, op.src = src, op.width = width, op.height = height, op.dst_pitch = dpitch,
  op.src_pitch = spitch, op.copy_kind = kind;
  return submit(s, std::move(op));
}
cudaError_t fill(cudaStream_t s, void* p, int value, size_t pitch, size_t width, size_t height) {
  if (width == 0 || height == 0) return cudaSuccess;
  Operation op;
  op.kind = Operation::kMemset;
  op.dst = p, op.value = static_cast<unsigned>(value) & 255, op.width = width, op.height = height,
  op.dst_pitch = pitch;
  return submit(s, std::move(op));
}
cudaError_t symbol_range(const void* symbol, size_t count, size_t offset, char** out) {
  Symbol s;
  if (!find_symbol(symbol, &s)) return cudaErrorInvalidSymbol;
  if (offset > s.size || count > s.size - offset)
    return complain(cudaErrorInvalidValue,
                    fmt::format("copy of {} bytes at {} of a symbol of {} bytes", count, offset, s.size));
  *out = reinterpret_cast<char*>(s.address) + offset;
  return cudaSuccess;
}

}  // namespace

cudaError_t check_copy(const Operation& op) {
  const bool set = op.kind == Operation::kMemset;
  const size_t width = set ? op.width * op.element : op.width;
  const bool to_device =
      set || op.copy_kind == cudaMemcpyHostToDevice || op.copy_kind == cudaMemcpyDeviceToDevice;
  const bool from_device = op.copy_kind == cudaMemcpyDeviceToHost || op.copy_kind == cudaMemcpyDeviceToDevice;
  cudaError_t e = check_range(op.dst, extent(width, op.dst_pitch, op.height, op.dst_slice, op.depth),
                              set ? "fill" : "copy to", to_device);
  if (e == cudaSuccess && !set)
    e = check_range(op.src, extent(width, op.src_pitch, op.height, op.src_slice, op.depth), "copy from",
                    from_device);
  return e;
}

cudaError_t not_in_capture(const char* name) {
  for (const auto& c : runtime().captures) {
    if (c->mode == cudaStreamCaptureModeRelaxed || c->invalid) continue;
    c->invalid = true;
    return complain(cudaErrorStreamCaptureUnsupported,
                    fmt::format("{} while a stream is captured: the capture is void", name));
  }
  return cudaSuccess;
}

}  // namespace softgpu

using namespace softgpu;
#define NOT_IN_CAPTURE(name) \
  if (const cudaError_t softgpu_e = not_in_capture(name); softgpu_e != cudaSuccess) return finish(softgpu_e)

SOFTGPU_EXPORT cudaError_t cudaMalloc(void** p, size_t size) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMalloc");
  return finish(allocate(p, size, AllocKind::kDevice));
}
SOFTGPU_EXPORT cudaError_t cudaMallocPitch(void** p, size_t* pitch, size_t width, size_t height) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMallocPitch");
  *pitch = (width + 511) / 512 * 512;
  return finish(allocate(p, *pitch * height, AllocKind::kDevice));
}
SOFTGPU_EXPORT cudaError_t cudaMallocManaged(void** p, size_t size, unsigned) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMallocManaged");
  return finish(allocate(p, size, AllocKind::kManaged));
}
SOFTGPU_EXPORT cudaError_t cudaMallocHost(void** p, size_t size) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMallocHost");
  return finish(allocate(p, size, AllocKind::kPinned));
}
SOFTGPU_EXPORT cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaHostAlloc");
  return finish(allocate(p, size, AllocKind::kPinned));
}
// Streams run in the order of issue, so an allocation in stream order is one at once.
SOFTGPU_EXPORT cudaError_t cudaMallocAsync(void** p, size_t size, cudaStream_t s) {
  SOFTGPU_ENTER;
  Stream* stream = find_stream(s);
  if (!stream) return finish(cudaErrorInvalidResourceHandle);
  const cudaError_t e = allocate(p, size, AllocKind::kDevice);
  if (e != cudaSuccess || !stream->capture) return finish(e);
  Operation op;
  op.kind = Operation::kAlloc;
  op.dst = *p;
  return finish(submit(s, std::move(op)));
}
SOFTGPU_EXPORT cudaError_t cudaMallocFromPoolAsync(void** p, size_t size, cudaMemPool_t, cudaStream_t s) {
  return cudaMallocAsync(p, size, s);
}
SOFTGPU_EXPORT cudaError_t cudaFreeAsync(void* p, cudaStream_t s) {
  SOFTGPU_ENTER;
  Stream* stream = find_stream(s);
  if (!stream) return finish(cudaErrorInvalidResourceHandle);
  if (!p) return cudaSuccess;
  if (stream->capture) {  // memory of a captured graph lives as long as the program
    Operation op;
    op.kind = Operation::kFree;
    op.dst = p;
    return finish(submit(s, std::move(op)));
  }
  return finish(memory().release(reinterpret_cast<uint64_t>(p)) ? cudaSuccess : cudaErrorInvalidValue);
}
SOFTGPU_EXPORT cudaError_t cudaFree(void* p) {
  SOFTGPU_ENTER;
  if (!p) return cudaSuccess;
  NOT_IN_CAPTURE("cudaFree");
  if (memory().release(reinterpret_cast<uint64_t>(p))) return cudaSuccess;
  return finish(complain(cudaErrorInvalidValue,
                         fmt::format("free of {}: {}", p, memory().describe(reinterpret_cast<uint64_t>(p)))));
}
SOFTGPU_EXPORT cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
SOFTGPU_EXPORT cudaError_t cudaHostRegister(void* p, size_t size, unsigned) {
  SOFTGPU_ENTER;
  return finish(memory().register_host(reinterpret_cast<uint64_t>(p), size)
                    ? cudaSuccess
                    : cudaErrorHostMemoryAlreadyRegistered);
}
SOFTGPU_EXPORT cudaError_t cudaHostUnregister(void* p) {
  SOFTGPU_ENTER;
  return finish(memory().unregister_host(reinterpret_cast<uint64_t>(p)) ? cudaSuccess
                                                                        : cudaErrorHostMemoryNotRegistered);
}
SOFTGPU_EXPORT cudaError_t cudaHostGetDevicePointer(void** d, void* h, unsigned) {
  SOFTGPU_ENTER;
  if (!memory().find(reinterpret_cast<uint64_t>(h))) return finish(cudaErrorInvalidValue);
  *d = h;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaHostGetFlags(unsigned* flags, void* p) {
  SOFTGPU_ENTER;
  if (!memory().find(reinterpret_cast<uint64_t>(p))) return finish(cudaErrorInvalidValue);
  *flags = cudaHostAllocMapped;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  SOFTGPU_ENTER;
  *total = options().memory;
  *free_bytes = options().memory - std::min<uint64_t>(memory().used(), options().memory);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  SOFTGPU_ENTER;
  *a = cudaPointerAttributes{};
  const Allocation* al = memory().find(reinterpret_cast<uint64_t>(p));
  void* q = const_cast<void*>(p);
  if (!al || !al->live) {
    a->type = cudaMemoryTypeUnregistered;
    a->device = -1;
    a->hostPointer = q;
    return cudaSuccess;
  }
  const bool device = al->kind == AllocKind::kDevice || al->kind == AllocKind::kSymbol;
  a->type = device                            ? cudaMemoryTypeDevice
            : al->kind == AllocKind::kManaged ? cudaMemoryTypeManaged
                                              : cudaMemoryTypeHost;
  a->devicePointer = q;
  a->hostPointer = device ? nullptr : q;
  return cudaSuccess;
}

SOFTGPU_EXPORT cudaError_t cudaMemcpy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemcpy");
  return finish(copy(nullptr, dst, src, n, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t n, cudaMemcpyKind kind,
                                           cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(copy(s, dst, src, n, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyPeerAsync(void* dst, int, const void* src, int, size_t n,
                                               cudaStream_t s) {
  return cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToDevice, s);
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyPeer(void* dst, int, const void* src, int, size_t n) {
  return cudaMemcpy(dst, src, n, cudaMemcpyDeviceToDevice);
}
SOFTGPU_EXPORT cudaError_t cudaMemcpy2D(void* dst, size_t dp, const void* src, size_t sp, size_t w, size_t h,
                                        cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemcpy2D");
  return finish(copy2d(nullptr, dst, dp, src, sp, w, h, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpy2DAsync(void* dst, size_t dp, const void* src, size_t sp, size_t w,
                                             size_t h, cudaMemcpyKind kind, cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(copy2d(s, dst, dp, src, sp, w, h, kind));
}
static cudaError_t copy3d(const cudaMemcpy3DParms* p, cudaStream_t s) {
  if (p->srcArray || p->dstArray)
    return complain(cudaErrorNotSupported, "copies of CUDA arrays are not supported");
  Operation op;
  op.kind = Operation::kMemcpy;
  op.width = p->extent.width, op.height = p->extent.height, op.depth = p->extent.depth;
  op.dst_pitch = p->dstPtr.pitch, op.src_pitch = p->srcPtr.pitch;
  op.dst_slice = p->dstPtr.pitch * p->dstPtr.ysize, op.src_slice = p->srcPtr.pitch * p->srcPtr.ysize;
  op.dst = static_cast<char*>(p->dstPtr.ptr) + p->dstPos.x + p->dstPos.y * op.dst_pitch +
           p->dstPos.z * op.dst_slice;
  op.src = static_cast<const char*>(p->srcPtr.ptr) + p->srcPos.x + p->srcPos.y * op.src_pitch +
           p->srcPos.z * op.src_slice;
  op.copy_kind = p->kind;
  if (!op.width || !op.height || !op.depth) return cudaSuccess;
  return submit(s, std::move(op));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* p) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemcpy3D");
  return finish(copy3d(p, nullptr));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* p, cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(copy3d(p, s));
}
SOFTGPU_EXPORT cudaError_t cudaMemset(void* p, int v, size_t n) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemset");
  return finish(fill(nullptr, p, v, n, n, 1));
}
SOFTGPU_EXPORT cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(fill(s, p, v, n, n, 1));
}
SOFTGPU_EXPORT cudaError_t cudaMemset2D(void* p, size_t pitch, int v, size_t w, size_t h) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemset2D");
  return finish(fill(nullptr, p, v, pitch, w, h));
}
SOFTGPU_EXPORT cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h,
                                             cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(fill(s, p, v, pitch, w, h));
}

SOFTGPU_EXPORT cudaError_t cudaGetSymbolAddress(void** p, const void* symbol) {
  SOFTGPU_ENTER;
  Symbol s;
  if (!find_symbol(symbol, &s)) return finish(cudaErrorInvalidSymbol);
  *p = reinterpret_cast<void*>(s.address);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGetSymbolSize(size_t* n, const void* symbol) {
  SOFTGPU_ENTER;
  Symbol s;
  if (!find_symbol(symbol, &s)) return finish(cudaErrorInvalidSymbol);
  *n = s.size;
  return cudaSuccess;
}
static cudaError_t to_symbol(cudaStream_t s, const void* symbol, const void* src, size_t n, size_t offset,
                             cudaMemcpyKind kind) {
  char* p;
  const cudaError_t e = symbol_range(symbol, n, offset, &p);
  return e == cudaSuccess ? copy(s, p, src, n, kind) : e;
}
static cudaError_t from_symbol(cudaStream_t s, void* dst, const void* symbol, size_t n, size_t offset,
                               cudaMemcpyKind kind) {
  char* p;
  const cudaError_t e = symbol_range(symbol, n, offset, &p);
  return e == cudaSuccess ? copy(s, dst, p, n, kind) : e;
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* src, size_t n, size_t offset,
                                              cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemcpyToSymbol");
  return finish(to_symbol(nullptr, symbol, src, n, offset, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyFromSymbol(void* dst, const void* symbol, size_t n, size_t offset,
                                                cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  NOT_IN_CAPTURE("cudaMemcpyFromSymbol");
  return finish(from_symbol(nullptr, dst, symbol, n, offset, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* src, size_t n,
                                                   size_t offset, cudaMemcpyKind kind, cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(to_symbol(s, symbol, src, n, offset, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemcpyFromSymbolAsync(void* dst, const void* symbol, size_t n, size_t offset,
                                                     cudaMemcpyKind kind, cudaStream_t s) {
  SOFTGPU_ENTER;
  return finish(from_symbol(s, dst, symbol, n, offset, kind));
}
SOFTGPU_EXPORT cudaError_t cudaMemPrefetchAsync(const void*, size_t, cudaMemLocation, unsigned,
                                                cudaStream_t) {
  SOFTGPU_ENTER;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, cudaMemLocation) {
  SOFTGPU_ENTER;
  return cudaSuccess;
}
// One pool stands for all.
SOFTGPU_EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = reinterpret_cast<cudaMemPool_t>(&runtime());
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int d) {
  return cudaDeviceGetDefaultMemPool(pool, d);
}
SOFTGPU_EXPORT cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
SOFTGPU_EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* v) {
  *static_cast<uint64_t*>(v) = memory().used();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  return cudaDeviceGetDefaultMemPool(pool, 0);
}
SOFTGPU_EXPORT cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
