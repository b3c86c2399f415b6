#include "cuda/runtime/cudnn.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <vector>

#include "cuda/runtime/check.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // where the front end looks the library's functions up
}

namespace gantrain::cuda {
namespace {

namespace fe = cudnn_frontend;

constexpr const char* kLibrary = "libcudnn.so.9";
constexpr size_t kGraphs = 64;  // that are remembered

// The tensors of a graph, by number.
enum Id : int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kStats,
  kDo,
  kDq,
  kDk,
  kDv,
  kLengths,
  kRowsH,
  kRowsK,
  kRowsStats,
  kRowsDy
};

// Sequences of different lengths lie packed, and so does what belongs to each: tensors are (B, heads,
// longest, D) with the strides of (N, heads, D), and sequence b begins at an offset that is read from device
// memory.
class CudnnLibrary final : public Cudnn {
 public:
  explicit CudnnLibrary(cudnnHandle_t handle) : handle_(handle) {}
  ~CudnnLibrary() override {
    graphs_.clear();
    (void)cudaFree(workspace_);
    (void)fe::detail::destroy_handle(handle_);
  }

  bool forward(cudaStream_t stream, const AttentionForward& a) override {
    Graph* g = graph_for(stream, *a.plan, a.q.dim(1), a.k.dim(1), a.q.dim(2), a.scale,
                         a.lse.empty() ? kForward : kForwardWithLse);
    if (!g) return false;
    std::unordered_map<int64_t, void*> pack = metadata(*g);
    pack[kQ] = read_only(a.q), pack[kK] = read_only(a.k), pack[kV] = read_only(a.v), pack[kO] = a.o.raw();
    if (!a.lse.empty()) pack[kStats] = a.lse.raw();
    run(stream, *g, pack);
    return true;
  }
  bool backward(cudaStream_t stream, const AttentionBackward& a) override {
    Graph* g = graph_for(stream, *a.plan, a.q.dim(1), a.k.dim(1), a.q.dim(2), a.scale,
                         a.dy.empty() ? kBackward : kBackwardToDy);
    if (!g) return false;
    std::unordered_map<int64_t, void*> pack = metadata(*g);
    pack[kQ] = read_only(a.q), pack[kK] = read_only(a.k), pack[kV] = read_only(a.v),
    pack[kO] = read_only(a.o);
    pack[kStats] = read_only(a.lse), pack[kDo] = read_only(a.d_o);
    if (a.dy.empty()) {
      pack[kDq] = a.dq.raw(), pack[kDk] = a.dk.raw(), pack[kDv] = a.dv.raw();
    } else {
      auto* dy = static_cast<std::byte*>(a.dy.raw());
      const int64_t head = a.q.dim(2) * dtype_size(a.dy.dtype()), k = a.q.dim(1), v = k + a.k.dim(1);
      pack[kDq] = dy, pack[kDk] = dy + k * head, pack[kDv] = dy + v * head;
    }
    run(stream, *g, pack);
    return true;
  }

 private:
  enum Kind { kForward, kForwardWithLse, kBackward, kBackwardToDy };
  struct Key {
    Kind kind;
    int64_t heads, kv_heads, d;
    float scale;
    std::vector<int32_t> begins;  // of the sequences, and the end
    auto operator<=>(const Key&) const = default;
  };
  struct Graph {
    fe::graph::Graph graph;
    bool built = false;
    // Lengths, then offsets of (N, H, D), (N, K, D), (N, H) and (N, H + 2K, D); copied once.
    std::vector<int32_t> words;
    int32_t* memory = nullptr;
    size_t sequences = 0;
    int64_t workspace = 0;
    ~Graph() { (void)cudaFree(memory); }
  };

  // The front end's variant pack is of plain pointers.
  static void* read_only(const ConstTensor& t) { return const_cast<void*>(t.raw()); }
  static void call(fe::error_t status, const char* what) {
    if (!status.is_good())
      fail("{}: {}: {}; GANTRAIN_ATTENTION=own does without it", kLibrary, what, status.get_message());
  }

  static std::unordered_map<int64_t, void*> metadata(const Graph& g) {
    const size_t b = g.sequences;
    return {{kLengths, g.memory},
            {kRowsH, g.memory + b},
            {kRowsK, g.memory + 2 * b + 1},
            {kRowsStats, g.memory + 3 * b + 2},
            {kRowsDy, g.memory + 4 * b + 3}};
  }
  void run(cudaStream_t stream, Graph& g, std::unordered_map<int64_t, void*>& pack) {
    if (g.workspace > workspace_bytes_) {
      GT_CUDA(cudaStreamSynchronize(stream));
      (void)cudaFree(workspace_);
      workspace_ = nullptr, workspace_bytes_ = 0;
      GT_CUDA(cudaMalloc(&workspace_, static_cast<size_t>(g.workspace)));
      workspace_bytes_ = g.workspace;
    }
    if (fe::detail::set_stream(handle_, stream) != CUDNN_STATUS_SUCCESS)
      fail("{}: cudnnSetStream failed", kLibrary);
    call(g.graph.execute(handle_, pack, workspace_), "execute");
  }

  // Null: the library does not take it.
  Graph* graph_for(cudaStream_t stream, const AttentionPlan& plan, int64_t heads, int64_t kv_heads, int64_t d,
                   float scale, Kind kind) {
    Key key{kind, heads, kv_heads, d, scale, {}};
    for (const AttentionSegment& s : plan.segments) key.begins.push_back(s.q_begin);
    key.begins.push_back(plan.segments.back().q_begin + plan.segments.back().q_count);
    if (int64_t{key.begins.back()} * (heads + 2 * kv_heads) * d >= int64_t{1} << 31)
      return nullptr;  // offsets are i32
    auto found = graphs_.find(key);
    if (found == graphs_.end()) {
      if (graphs_.size() == kGraphs) {
        GT_CUDA(cudaStreamSynchronize(stream));
        graphs_.clear();
      }
      found = graphs_.emplace(key, std::make_unique<Graph>()).first;
      try {
        build(stream, key, *found->second);
      } catch (const Error&) {
        throw;
      } catch (const std::runtime_error& e) {  // the front end's: what it opens itself is missing
        fail("{}: {}; GANTRAIN_ATTENTION=own does without it", kLibrary, e.what());
      }
    }
    return found->second->built ? found->second.get() : nullptr;
  }

  void build(cudaStream_t stream, const Key& key, Graph& g) {
    const size_t sequences = key.begins.size() - 1;
    const auto b = static_cast<int64_t>(sequences);
    int64_t longest = 0;
    g.sequences = sequences;
    for (size_t i = 0; i < sequences; ++i) {
      g.words.push_back(key.begins[i + 1] - key.begins[i]);
      longest = std::max<int64_t>(longest, g.words.back());
    }
    const int64_t dy_heads = key.heads + 2 * key.kv_heads;
    for (const int64_t width : {key.heads * key.d, key.kv_heads * key.d, key.heads, dy_heads * key.d})
      for (const int32_t begin : key.begins) g.words.push_back(static_cast<int32_t>(begin * width));

    fe::graph::Graph& graph = g.graph;
    graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    using Attributes = fe::graph::Tensor_attributes;
    const auto list = [&](Id id, int64_t count) {
      return graph.tensor(Attributes()
                              .set_uid(id)
                              .set_data_type(fe::DataType_t::INT32)
                              .set_dim({count, 1, 1, 1})
                              .set_stride({1, 1, 1, 1}));
    };
    const auto lengths = list(kLengths, b), rows_h = list(kRowsH, b + 1), rows_k = list(kRowsK, b + 1),
               rows_stats = list(kRowsStats, b + 1);
    const auto shape = [&](Attributes& t, Id id, int64_t heads, int64_t d,
                           const std::shared_ptr<Attributes>& rows) {
      t.set_uid(id)
          .set_dim({b, heads, longest, d})
          .set_stride({heads * longest * d, d, heads * d, 1})
          .set_ragged_offset(rows);
    };
    const auto input = [&](Id id, int64_t heads, int64_t d, const std::shared_ptr<Attributes>& rows) {
      Attributes t;
      shape(t, id, heads, d, rows);
      if (id == kStats) t.set_data_type(fe::DataType_t::FLOAT);
      return graph.tensor(t);
    };
    const auto output = [&](const std::shared_ptr<Attributes>& t, Id id, int64_t heads, int64_t d,
                            const std::shared_ptr<Attributes>& rows, int64_t row_heads = 0) {
      shape(*t, id, heads, d, rows);
      if (row_heads > 0) t->set_stride({row_heads * longest * d, d, row_heads * d, 1});
      t->set_output(true);
      if (id == kStats) t->set_data_type(fe::DataType_t::FLOAT);
    };
    const auto q = input(kQ, key.heads, key.d, rows_h), k = input(kK, key.kv_heads, key.d, rows_k),
               v = input(kV, key.kv_heads, key.d, rows_k);
    const auto options = [&](auto attributes) {
      attributes.set_attn_scale(key.scale)
          .set_causal_mask(true)
          .set_padding_mask(true)
          .set_seq_len_q(lengths)
          .set_seq_len_kv(lengths);
      return attributes;
    };
    if (key.kind == kBackward || key.kind == kBackwardToDy) {
      const auto o = input(kO, key.heads, key.d, rows_h), d_o = input(kDo, key.heads, key.d, rows_h);
      const auto stats = input(kStats, key.heads, 1, rows_stats);
      auto attributes = options(fe::graph::SDPA_backward_attributes().set_name("attention_backward"));
      attributes.set_deterministic_algorithm(true);
      const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, o, d_o, stats, attributes);
      if (key.kind == kBackward) {
        output(dq, kDq, key.heads, key.d, rows_h);
        output(dk, kDk, key.kv_heads, key.d, rows_k);
        output(dv, kDv, key.kv_heads, key.d, rows_k);
      } else {
        const auto rows_dy = list(kRowsDy, b + 1);
        output(dq, kDq, key.heads, key.d, rows_dy, dy_heads);
        output(dk, kDk, key.kv_heads, key.d, rows_dy, dy_heads);
        output(dv, kDv, key.kv_heads, key.d, rows_dy, dy_heads);
      }
    } else {
      auto attributes = options(fe::graph::SDPA_attributes().set_name("attention_forward"));
      attributes.set_generate_stats(key.kind == kForwardWithLse);
      const auto [o, stats] = graph.sdpa(q, k, v, attributes);
      output(o, kO, key.heads, key.d, rows_h);
      if (stats) output(stats, kStats, key.heads, 1, rows_stats);
    }
    // What the installed library or this GPU does not support is refused here, and done by our kernels.
    if (!graph.build(handle_, {fe::HeurMode_t::A}).is_good()) return;
    call(graph.get_workspace_size(g.workspace), "workspace size");
    const size_t bytes = g.words.size() * sizeof(int32_t);
    GT_CUDA(cudaMalloc(reinterpret_cast<void**>(&g.memory), bytes));
    GT_CUDA(cudaMemcpyAsync(g.memory, g.words.data(), bytes, cudaMemcpyHostToDevice, stream));
    g.built = true;
  }

  cudnnHandle_t handle_;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
  std::map<Key, std::unique_ptr<Graph>> graphs_;
};

}  // namespace

std::unique_ptr<Cudnn> Cudnn::open(std::string* why) {
  fe::cudnn_dlhandle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);  // for the life of the process
  if (!fe::cudnn_dlhandle) {
    *why = fmt::format("cuDNN cannot be opened: {}", dlerror());
    return nullptr;
  }
  cudnnHandle_t handle = nullptr;
  const cudnnStatus_t status = fe::detail::create_handle(&handle);
  if (status != CUDNN_STATUS_SUCCESS) {
    *why = fmt::format("cuDNN cannot be used here: {}", fe::detail::get_error_string(status));
    return nullptr;
  }
  return std::make_unique<CudnnLibrary>(handle);
}

}  // namespace gantrain::cuda
