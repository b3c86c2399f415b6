// Registration of fat binaries, modules, kernels, launches, errors, options, and what is written at exit.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cuda/softgpu/runtime.h"

namespace softgpu {
namespace {

uint64_t number(const char* name, uint64_t otherwise) {
  const char* v = std::getenv(name);
  if (!v || !*v) return otherwise;
  char* end;
  const uint64_t n = std::strtoull(v, &end, 0);
  if (*end) {
    fmt::print(stderr, "softgpu: {}={}: expected a number\n", name, v);
    std::_Exit(86);
  }
  return n;
}
std::string text(const char* name) {
  const char* v = std::getenv(name);
  return v ? v : "";
}
Options read_options() {
  Options o;
  o.arch = static_cast<int>(number("SOFTGPU_ARCH", 90));
  o.init = number("SOFTGPU_INIT", 1);
  o.races = number("SOFTGPU_RACES", 1);
  o.dry = number("SOFTGPU_DRY", 0);
  o.seed = number("SOFTGPU_SEED", 0);
  o.threads = static_cast<int>(number("SOFTGPU_THREADS", 0));
  o.devices = static_cast<int>(number("SOFTGPU_DEVICES", 1));
  o.memory = number("SOFTGPU_MEMORY_MB", 16384) << 20;
  o.step_limit = number("SOFTGPU_STEP_LIMIT", 0);
  o.counters = text("SOFTGPU_COUNTERS");
  o.trace = text("SOFTGPU_TRACE");
  o.ptx_dir = text("SOFTGPU_PTX");
  o.dump_dir = text("SOFTGPU_DUMP");
  return o;
}

thread_local cudaError_t last_error = cudaSuccess;

std::string fnv_hash(const std::string& s) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const char c : s) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return fmt::format("{:016x}", h);
}

void write_counters() {
  if (options().counters.empty()) return;
  nlohmann::ordered_json kernels = nlohmann::ordered_json::array();
  uint64_t launches = 0;
  const auto add = [&](const std::string& name, const KernelEntry& e) {
    if (!e.launches) return;
    launches += e.launches;
    const Counters& c = e.counters;
    static constexpr const char* classes[] = {"integer", "float",   "convert", "move",  "control", "memory",
                                              "atomic",  "shuffle", "barrier", "async", "mma"};
    nlohmann::ordered_json by = nlohmann::ordered_json::object();
    for (int i = 0; i < kClasses; ++i) by[classes[i]] = c.by_class[i];
    kernels.push_back({{"name", name},
                       {"launches", e.launches},
                       {"seconds", e.seconds},
                       {"warp_instructions", c.warp_instructions},
                       {"thread_instructions", c.thread_instructions},
                       {"warp_instructions_by_class", by},
                       {"global_load_requests", c.global_loads},
                       {"global_load_sectors", c.load_sectors},
                       {"global_load_bytes", c.load_bytes},
                       {"global_store_requests", c.global_stores},
                       {"global_store_sectors", c.store_sectors},
                       {"global_store_bytes", c.store_bytes},
                       {"shared_requests", c.shared_requests},
                       {"shared_wavefronts", c.shared_wavefronts},
                       {"shared_wavefronts_ideal", c.shared_ideal},
                       {"multiply_adds", c.multiply_adds},
                       {"async_copy_bytes", c.async_bytes}});
  };
  for (const auto& m : runtime().modules)
    for (const auto& [name, e] : m->kernels) add(name, *e);
  for (const auto& [name, e] : runtime().libraries) add(name, e);
  std::ofstream(options().counters)
      << nlohmann::ordered_json{{"launches", launches}, {"kernels", kernels}}.dump(1) << "\n";
}

// A program that ignores its errors must not look as if it had succeeded.
struct AtExit {
  ~AtExit() {
    write_counters();
    if (!runtime().faulted) return;
    std::fflush(nullptr);
    fmt::print(stderr, "softgpu: the program ends with status 86 because of the fault above\n");
    std::_Exit(86);
  }
} at_exit;

}  // namespace

const Options& options() {
  static const Options* o = new Options(read_options());  // outlives what runs at exit
  return *o;
}

Runtime& runtime() {
  static Runtime* r = new Runtime;
  return *r;
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cudaError_t finish(cudaError_t e) {
  if (e != cudaSuccess && e != cudaErrorNotReady) last_error = e;
  return e;
}
cudaError_t sticky() { return runtime().sticky; }
cudaError_t complain(cudaError_t e, const std::string& what) {
  fmt::print(stderr, "softgpu: {}: {}\n", cudaGetErrorName(e), what);
  return e;
}

cudaError_t load(Module& m) {
  if (m.loaded) return m.error;
  m.loaded = true;
  m.error = cudaErrorInvalidKernelImage;
  try {
    const auto images = read_fatbin(m.fatbin);
    const PtxImage* image = choose_image(images, options().arch);
    if (!image) {
      std::string have;
      for (const auto& i : images) have += fmt::format(" compute_{}{}", i.arch, i.specific ? "a" : "");
      m.error = cudaErrorNoKernelImageForDevice;
      if (images.empty())
        return m.error;  // nvcc adds empty containers; only a kernel launch would miss something
      return complain(
          m.error,
          fmt::format("no PTX for compute capability {}.{} in a fat binary with{}; compile with -gencode"
                      " arch=compute_{},code=compute_{}",
                      options().arch / 10, options().arch % 10, have, options().arch, options().arch));
    }
    m.hash = fnv_hash(image->text);
    std::string source = image->text;
    if (!options().dump_dir.empty()) {
      mkdir(options().dump_dir.c_str(), 0777);
      std::ofstream(fmt::format("{}/{}.ptx", options().dump_dir, m.hash)) << source;
    }
    if (!options().ptx_dir.empty()) {
      const std::string path = fmt::format("{}/{}.ptx", options().ptx_dir, m.hash);
      std::ifstream in(path);
      if (in) {
        std::stringstream s;
        s << in.rdbuf();
        source = s.str();
        fmt::print(stderr, "softgpu: PTX replaced by {}\n", path);
      }
    }
    m.ptx = ptx::parse(source);
    for (const std::string& name : m.ptx->variable_order) {
      const ptx::Variable& v = m.ptx->variables.at(name);
      if (v.space != ptx::Space::kGlobal && v.space != ptx::Space::kConst) continue;
      if (v.is_extern) {
        for (const auto& other : runtime().modules) {
          const auto it = other->globals.find(name);
          if (it != other->globals.end()) m.globals[name] = it->second;
        }
        continue;
      }
      const uint64_t at = memory().allocate(v.size, AllocKind::kSymbol, name);
      if (!at) throw std::runtime_error("out of device memory for variable " + name);
      std::memset(reinterpret_cast<void*>(at), 0, v.size);
      if (!v.init.empty())
        std::memcpy(reinterpret_cast<void*>(at), v.init.data(), std::min<size_t>(v.init.size(), v.size));
      m.globals[name] = {v.space, at, v.size};
    }
    for (const std::string& name : m.ptx->variable_order) {
      const ptx::Variable& v = m.ptx->variables.at(name);
      for (const auto& r : v.relocs) {
        const auto it = m.globals.find(r.symbol);
        if (it == m.globals.end())
          throw std::runtime_error(
              fmt::format("variable {} refers to {}, which is not defined", name, r.symbol));
        const uint64_t value = it->second.address + static_cast<uint64_t>(r.addend);
        std::memcpy(reinterpret_cast<void*>(m.globals[name].address + r.at), &value, 8);
      }
    }
    m.error = cudaSuccess;
  } catch (const std::exception& e) {
    return complain(m.error, e.what());
  }
  return m.error;
}

cudaError_t decode(KernelEntry& e) {
  if (e.kernel) return cudaSuccess;
  const cudaError_t err = load(*e.module);
  if (err != cudaSuccess) return err;
  const auto it = e.module->ptx->functions.find(e.name);
  if (it == e.module->ptx->functions.end())
    return complain(cudaErrorInvalidDeviceFunction, "the PTX has no kernel " + e.name);
  try {
    e.kernel = Decoder(*e.module->ptx, *it->second, e.module->globals).run();
  } catch (const std::exception& x) {
    return complain(cudaErrorInvalidKernelImage, fmt::format("kernel {}: {}", e.name, x.what()));
  }
  return cudaSuccess;
}

KernelEntry* find_kernel(const void* function) {
  const auto it = runtime().functions.find(function);
  return it == runtime().functions.end() ? nullptr : it->second;
}

bool find_symbol(const void* symbol, Symbol* out) {
  const auto it = runtime().variables.find(symbol);
  if (it == runtime().variables.end() || load(*it->second.module) != cudaSuccess) return false;
  const auto found = it->second.module->globals.find(it->second.name);
  if (found == it->second.module->globals.end()) return false;
  *out = found->second;
  return true;
}

cudaError_t make_launch(KernelEntry* e, dim3 grid, dim3 block, void** args, size_t shared,
                        const cudaLaunchAttribute* attributes, unsigned attribute_count, Operation* out) {
  if (!e)
    return complain(cudaErrorInvalidDeviceFunction, "launch of a function that is no kernel of this program");
  const cudaError_t err = decode(*e);
  if (err != cudaSuccess) return err;
  const Kernel& k = *e->kernel;
  const auto bad = [&](cudaError_t code, const std::string& what) {
    return complain(code, fmt::format("launch of {}: {}", e->name, what));
  };
  Launch& l = out->launch;
  l = Launch();
  bool cooperative = false, cluster_given = k.cluster[0] != 0;
  Dim3 cluster{std::max(k.cluster[0], 1u), std::max(k.cluster[1], 1u), std::max(k.cluster[2], 1u)};
  for (unsigned i = 0; i < attribute_count; ++i) {
    if (attributes[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& c = attributes[i].val.clusterDim;
      if (cluster_given && (c.x != cluster.x || c.y != cluster.y || c.z != cluster.z))
        return bad(cudaErrorInvalidClusterSize,
                   "the launch's cluster dimensions differ from the kernel's __cluster_dims__");
      cluster = {c.x, c.y, c.z};
      cluster_given = true;
    } else if (attributes[i].id == cudaLaunchAttributeCooperative) {
      cooperative = attributes[i].val.cooperative != 0;
    }
  }
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !threads)
    return bad(cudaErrorInvalidConfiguration,
               fmt::format("grid ({},{},{}), block ({},{},{}): no dimension may be 0", grid.x, grid.y, grid.z,
                           block.x, block.y, block.z));
  if (threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64)
    return bad(cudaErrorInvalidConfiguration,
               fmt::format("block ({},{},{}): at most 1024 threads, 1024 in x and y, 64 in z", block.x,
                           block.y, block.z));
  if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
    return bad(cudaErrorInvalidConfiguration,
               fmt::format("grid ({},{},{}): at most 2147483647, 65535, 65535", grid.x, grid.y, grid.z));
  if (k.max_threads[0]) {
    const uint64_t most = uint64_t{k.max_threads[0]} * k.max_threads[1] * k.max_threads[2];
    if (threads > most)
      return bad(cudaErrorInvalidValue,
                 fmt::format("{} threads in a block, __launch_bounds__ allows {}", threads, most));
  }
  if (k.required_threads[0] && (k.required_threads[0] != block.x || k.required_threads[1] != block.y ||
                                k.required_threads[2] != block.z))
    return bad(cudaErrorInvalidValue, "the block's dimensions differ from the required ones");
  const size_t limit = options().arch >= 90 ? 227 * 1024 : options().arch == 80 ? 163 * 1024 : 99 * 1024;
  if (shared > static_cast<size_t>(k.max_dynamic_shared) || shared + k.static_shared > limit)
    return bad(cudaErrorInvalidValue,
               fmt::format("{} bytes of dynamic shared memory beside {} static; allowed are {} dynamic "
                           "(cudaFuncAttributeMaxDynamicSharedMemorySize) and {} in all",
                           shared, k.static_shared, k.max_dynamic_shared, limit));
  const uint64_t blocks_in_cluster = cluster.count();
  if (blocks_in_cluster > 1) {
    if (options().arch < 90) return bad(cudaErrorInvalidClusterSize, "clusters need compute capability 9.0");
    if (!cluster.x || !cluster.y || !cluster.z || grid.x % cluster.x || grid.y % cluster.y ||
        grid.z % cluster.z)
      return bad(cudaErrorInvalidClusterSize, "the grid is no multiple of the cluster");
    if (blocks_in_cluster > (k.non_portable_cluster ? 16u : 8u))
      return bad(cudaErrorInvalidClusterSize,
                 fmt::format("{} blocks in a cluster, at most {}", blocks_in_cluster,
                             k.non_portable_cluster ? 16 : 8));
  }
  if (cooperative) {
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (blocks > 132 * 8)
      return bad(cudaErrorCooperativeLaunchTooLarge,
                 fmt::format("{} blocks cannot be resident together", blocks));
  }
  l.kernel = &k;
  l.grid = {grid.x, grid.y, grid.z};
  l.block = {block.x, block.y, block.z};
  l.cluster = cluster;
  l.cooperative = cooperative;
  l.dynamic_shared = static_cast<uint32_t>(shared);
  l.params.assign(k.param_bytes + 16, 0);
  for (size_t i = 0; i < k.params.size(); ++i) {
    if (!args || !args[i]) return bad(cudaErrorInvalidValue, fmt::format("argument {} is missing", i));
    std::memcpy(l.params.data() + k.params[i].offset, args[i], k.params[i].size);
  }
  l.params.resize(k.param_bytes);
  out->kind = Operation::kKernel;
  out->entry = e;
  return cudaSuccess;
}

uint64_t next_launch() {
  static uint64_t last = 0;
  return ++last;
}
void trace(const std::string& line) {
  if (options().trace.empty()) return;
  static std::FILE* out = options().trace == "-" ? stderr : std::fopen(options().trace.c_str(), "w");
  if (!out) return;
  std::fputs(line.c_str(), out);
  std::fflush(out);
}
void record_fault(cudaError_t code, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "softgpu: fault: {}\n", message);
  runtime().sticky = code;
  runtime().faulted = true;
  last_error = code;
}

namespace {
cudaError_t run_kernel(Operation& op) {
  KernelEntry& e = *op.entry;
  op.launch.id = next_launch();
  op.launch.kernel = e.kernel.get();
  op.launch.count = !options().counters.empty();
  const Counters before = e.counters;
  const double start = now_seconds();
  cudaError_t result = cudaSuccess;
  std::string message;
  try {
    if (!options().dry) run_launch(op.launch, &e.counters);
  } catch (const Fault& f) {
    result = static_cast<cudaError_t>(f.code);
    message = f.what();
  }
  const double seconds = now_seconds() - start;
  ++e.launches;
  e.seconds += seconds;
  const Launch& l = op.launch;
  std::string counted;
  if (l.count) {
    const Counters& c = e.counters;
    counted = fmt::format(
        " loads {} sectors {} bytes {} stores {} sectors {} bytes {} shared {} wavefronts {} ideal {} madds "
        "{} warps {} "
        "lanes {}",
        c.global_loads - before.global_loads, c.load_sectors - before.load_sectors,
        c.load_bytes - before.load_bytes, c.global_stores - before.global_stores,
        c.store_sectors - before.store_sectors, c.store_bytes - before.store_bytes,
        c.shared_requests - before.shared_requests, c.shared_wavefronts - before.shared_wavefronts,
        c.shared_ideal - before.shared_ideal, c.multiply_adds - before.multiply_adds,
        c.warp_instructions - before.warp_instructions, c.thread_instructions - before.thread_instructions);
  }
  trace(fmt::format("launch {} {} grid {}x{}x{} block {}x{}x{} cluster {} shared {}+{} ms {:.3f}{}{}\n", l.id,
                    e.name, l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, l.cluster.count(),
                    e.kernel->static_shared, l.dynamic_shared, seconds * 1e3, counted,
                    result == cudaSuccess ? "" : " FAULT"));
  if (result != cudaSuccess) record_fault(result, message);
  return cudaSuccess;  // as on hardware, the launch succeeded; the next call learns of the fault
}
// Without execution there are no values on the device: the host gets zeros, and the device nothing.
cudaError_t dry_copy(const Operation& op) {
  if (memory().in_arena(reinterpret_cast<uint64_t>(op.dst))) return cudaSuccess;
  for (size_t z = 0; z < op.depth; ++z)
    for (size_t y = 0; y < op.height; ++y)
      std::memset(static_cast<char*>(op.dst) + z * op.dst_slice + y * op.dst_pitch, 0, op.width);
  return cudaSuccess;
}
}  // namespace

cudaError_t execute(Operation& op) {
  switch (op.kind) {
    case Operation::kKernel:
      return run_kernel(op);
    case Operation::kMemcpy: {
      if (options().dry) return dry_copy(op);
      const cudaError_t e = check_copy(op);
      if (e != cudaSuccess) return e;
      for (size_t z = 0; z < op.depth; ++z) {
        for (size_t y = 0; y < op.height; ++y) {
          char* to = static_cast<char*>(op.dst) + z * op.dst_slice + y * op.dst_pitch;
          const char* from = static_cast<const char*>(op.src) + z * op.src_slice + y * op.src_pitch;
          std::memmove(to, from, op.width);
          memory().copy_shadow(reinterpret_cast<uint64_t>(to), reinterpret_cast<uint64_t>(from), op.width);
        }
      }
      return cudaSuccess;
    }
    case Operation::kMemset: {
      if (options().dry) return cudaSuccess;
      const cudaError_t e = check_copy(op);
      if (e != cudaSuccess) return e;
      for (size_t y = 0; y < op.height; ++y) {
        char* to = static_cast<char*>(op.dst) + y * op.dst_pitch;
        for (size_t x = 0; x < op.width && op.element > 1; ++x)
          std::memcpy(to + x * op.element, &op.value, op.element);
        if (op.element == 1) std::memset(to, static_cast<int>(op.value), op.width);
        memory().mark_written(reinterpret_cast<uint64_t>(to), op.width * op.element);
      }
      return cudaSuccess;
    }
    case Operation::kHost:
      op.host(op.user);
      return cudaSuccess;
    case Operation::kLibrary:
      return run_library(op);
    case Operation::kEventRecord: {
      Event* e = reinterpret_cast<Event*>(op.event);
      e->recorded = true;
      e->time = now_seconds();
      return cudaSuccess;
    }
    default:
      return cudaSuccess;
  }
}

}  // namespace softgpu

using namespace softgpu;

SOFTGPU_EXPORT void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const void* data;
    void* more;
  };
  const std::lock_guard lock(runtime().mutex);
  const auto* w = static_cast<const Wrapper*>(wrapper);
  if (w->magic != 0x466243b1) {
    fmt::print(stderr, "softgpu: fat binary wrapper: expected magic 0x466243b1, got {:#x}\n", w->magic);
    std::_Exit(86);
  }
  runtime().modules.push_back(std::make_unique<Module>());
  runtime().modules.back()->fatbin = w->data;
  return reinterpret_cast<void**>(runtime().modules.back().get());
}
SOFTGPU_EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
SOFTGPU_EXPORT void __cudaUnregisterFatBinary(void**) {}
SOFTGPU_EXPORT char __cudaInitModule(void** handle) {
  const std::lock_guard lock(runtime().mutex);
  return load(*reinterpret_cast<Module*>(handle)) == cudaSuccess;
}
SOFTGPU_EXPORT void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int,
                                           uint3*, uint3*, dim3*, dim3*, int*) {
  const std::lock_guard lock(runtime().mutex);
  Module* m = reinterpret_cast<Module*>(handle);
  auto& slot = m->kernels[name];
  if (!slot) slot = std::make_unique<KernelEntry>();
  slot->module = m;
  slot->name = name;
  runtime().functions[host] = slot.get();
  runtime().functions[slot.get()] = slot.get();
}
SOFTGPU_EXPORT void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, size_t size,
                                      int, int) {
  const std::lock_guard lock(runtime().mutex);
  runtime().variables[host] = {reinterpret_cast<Module*>(handle), name, size};
}
SOFTGPU_EXPORT void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int,
                                             size_t size, int, int) {
  const std::lock_guard lock(runtime().mutex);
  Module* m = reinterpret_cast<Module*>(handle);
  runtime().variables[host] = {m, name, size, host};
  if (load(*m) == cudaSuccess && m->globals.count(name))
    *host = reinterpret_cast<void*>(m->globals[name].address);
}
SOFTGPU_EXPORT void __cudaRegisterHostVar(void** handle, const char* name, char* host, size_t size) {
  const std::lock_guard lock(runtime().mutex);
  runtime().variables[host] = {reinterpret_cast<Module*>(handle), name, size};
}

namespace {
struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<CallConfiguration> configurations;
}  // namespace

SOFTGPU_EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                                    cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
SOFTGPU_EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return finish(cudaErrorMissingConfiguration);
  const CallConfiguration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

static cudaError_t launch_kernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                                 cudaStream_t stream, const cudaLaunchAttribute* attributes, unsigned count) {
  SOFTGPU_ENTER;
  Operation op;
  const cudaError_t e = make_launch(find_kernel(f), grid, block, args, shared, attributes, count, &op);
  if (e != cudaSuccess) return finish(e);
  return finish(submit(stream, std::move(op)));
}

SOFTGPU_EXPORT cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** args, size_t shared,
                                            cudaStream_t stream) {
  return launch_kernel(f, grid, block, args, shared, stream, nullptr, 0);
}
SOFTGPU_EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void** args,
                                              size_t shared, cudaStream_t stream) {
  return launch_kernel(f, grid, block, args, shared, stream, nullptr, 0);
}
SOFTGPU_EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** args) {
  if (!c) return finish(cudaErrorInvalidValue);
  return launch_kernel(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream, c->attrs,
                       c->numAttrs);
}
SOFTGPU_EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 grid, dim3 block, void** args,
                                                       size_t shared, cudaStream_t stream) {
  cudaLaunchAttribute a{};
  a.id = cudaLaunchAttributeCooperative;
  a.val.cooperative = 1;
  return launch_kernel(f, grid, block, args, shared, stream, &a, 1);
}
SOFTGPU_EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* f) {
  const std::lock_guard lock(runtime().mutex);
  KernelEntry* e = find_kernel(f);
  *out = reinterpret_cast<cudaKernel_t>(e);
  return e ? cudaSuccess : finish(cudaErrorInvalidDeviceFunction);
}
SOFTGPU_EXPORT cudaError_t cudaGetKernel(cudaKernel_t* out, const void* f) { return __cudaGetKernel(out, f); }
SOFTGPU_EXPORT cudaError_t cudaGetFuncBySymbol(cudaFunction_t* out, const void* f) {
  return __cudaGetKernel(reinterpret_cast<cudaKernel_t*>(out), f);
}

SOFTGPU_EXPORT cudaError_t cudaGetLastError(void) {
  const cudaError_t e = sticky() != cudaSuccess ? sticky() : last_error;
  last_error = cudaSuccess;
  return e;
}
SOFTGPU_EXPORT cudaError_t cudaPeekAtLastError(void) {
  return sticky() != cudaSuccess ? sticky() : last_error;
}
