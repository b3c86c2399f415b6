// Inside the CUDA runtime stand-in: modules, streams, graphs, errors. The exported functions are in
// runtime_*.cc; their contracts are those of NVIDIA's CUDA Runtime API documentation.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/softgpu/decode.h"
#include "cuda/softgpu/fatbin.h"
#include "cuda/softgpu/library.h"
#include "cuda/softgpu/machine.h"
#include "cuda/softgpu/options.h"

namespace softgpu {

struct Module;

struct KernelEntry {
  Module* module = nullptr;
  std::string name;
  std::unique_ptr<Kernel> kernel;  // decoded on first use
  Counters counters;
  uint64_t launches = 0;
  double seconds = 0;
};

struct Module {
  const void* fatbin = nullptr;
  bool loaded = false;
  cudaError_t error = cudaSuccess;
  std::string hash;
  std::unique_ptr<ptx::Module> ptx;
  Globals globals;
  std::map<std::string, std::unique_ptr<KernelEntry>> kernels;
};

// Work of another library's stand-in (library.h); copies of a graph share it.
struct LibraryCall {
  explicit LibraryCall(const SoftgpuCall& c);
  ~LibraryCall();
  LibraryCall(const LibraryCall&) = delete;
  SoftgpuCall call;
  std::string name;
};

// One operation of a stream, or one node of a graph.
struct Operation {
  enum Kind {
    kKernel,
    kMemcpy,
    kMemset,
    kHost,
    kEmpty,
    kEventRecord,
    kEventWait,
    kChild,
    kAlloc,
    kFree,
    kLibrary
  } kind = kEmpty;
  // kKernel
  KernelEntry* entry = nullptr;
  Launch launch;
  // kMemcpy: rows of `width` bytes
  void* dst = nullptr;
  const void* src = nullptr;
  size_t width = 0, height = 1, depth = 1, dst_pitch = 0, src_pitch = 0, dst_slice = 0, src_slice = 0;
  cudaMemcpyKind copy_kind = cudaMemcpyDefault;
  // kMemset: `width` elements of `element` bytes
  unsigned value = 0, element = 1;
  // kHost
  cudaHostFn_t host = nullptr;
  void* user = nullptr;
  cudaEvent_t event = nullptr;
  std::shared_ptr<struct Graph> child;
  std::shared_ptr<LibraryCall> library;  // kLibrary
};

struct Node {
  Operation op;
  std::vector<Node*> before;  // dependencies
  struct Graph* graph = nullptr;
  uint64_t id = 0;
  bool enabled = true;
};
struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
  uint64_t next_id = 1;
  Node* add(Operation op, std::vector<Node*> before);
  std::unique_ptr<Graph> clone(std::unordered_map<const Node*, Node*>* map) const;
};
struct GraphExec {
  std::unique_ptr<Graph> graph;
  std::unordered_map<const Node*, Node*> from;  // node of the source graph -> own
  uint64_t launches = 0;
};

struct Capture {
  std::unique_ptr<Graph> graph;
  Graph* into = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  uint64_t id = 0;
  bool invalid = false;
  std::set<struct Stream*> streams;
  struct Stream* origin = nullptr;
};
struct Stream {
  unsigned flags = 0;
  int priority = 0;
  uint64_t id = 0;
  std::shared_ptr<Capture> capture;
  std::vector<Node*> last;  // of the capture
};
struct Event {
  unsigned flags = 0;
  bool recorded = false;
  double time = 0;  // seconds
  std::shared_ptr<Capture> capture;
  std::vector<Node*> nodes;
};

struct Runtime {
  std::recursive_mutex mutex;
  std::vector<std::unique_ptr<Module>> modules;
  std::unordered_map<const void*, KernelEntry*> functions;  // host stub or handle -> kernel
  struct HostVariable {
    Module* module;
    std::string name;
    size_t size;
    void** managed = nullptr;
  };
  std::unordered_map<const void*, HostVariable> variables;
  std::map<std::string, KernelEntry> libraries;  // what other libraries did, by name
  cudaError_t sticky = cudaSuccess;
  bool faulted = false;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Graph*> graphs;
  std::set<GraphExec*> execs;
  std::vector<std::shared_ptr<Capture>> captures;
  Stream legacy, per_thread;
  uint64_t next_id = 1;
};
Runtime& runtime();

// Every exported function ends through this: keeps the error for cudaGetLastError.
cudaError_t finish(cudaError_t e);
// The error of an earlier fault, which every later call reports.
cudaError_t sticky();
// A line on standard error for what a program did wrong; the error code goes back to the program.
cudaError_t complain(cudaError_t e, const std::string& what);

cudaError_t load(Module& m);
KernelEntry* find_kernel(const void* function);
cudaError_t decode(KernelEntry& e);
bool find_symbol(const void* symbol, Symbol* out);

Stream* find_stream(cudaStream_t s);
// Runs the operation, or adds it to the graph the stream is captured into.
cudaError_t submit(cudaStream_t s, Operation op);
cudaError_t execute(Operation& op);
cudaError_t run_library(Operation& op);
uint64_t next_launch();
void trace(const std::string& line);  // with its newline
// A fault while work ran: said on standard error, and every later call reports it.
void record_fault(cudaError_t code, const std::string& message);
cudaError_t run_graph(GraphExec& exec);
// For calls that a capture forbids: an error (and the capture is void) where one is under way.
cudaError_t not_in_capture(const char* name);
cudaError_t check_copy(const Operation& op);
cudaError_t make_launch(KernelEntry* e, dim3 grid, dim3 block, void** args, size_t shared,
                        const cudaLaunchAttribute* attributes, unsigned attribute_count, Operation* out);
double now_seconds();

#define SOFTGPU_EXPORT extern "C" __attribute__((visibility("default")))
// Holds the runtime's lock; returns at once where an earlier fault is sticky.
#define SOFTGPU_ENTER                                                        \
  const std::lock_guard<std::recursive_mutex> softgpu_lock(runtime().mutex); \
  if (sticky() != cudaSuccess) return finish(sticky())

}  // namespace softgpu
