// Graphs: made by capture or node by node, instantiated, updated, launched. Nodes run one at a time in an
// order that keeps every dependency; with a seed, a random one among those.
#include <fmt/format.h>

#include <algorithm>

#include "cuda/softgpu/runtime.h"

namespace softgpu {

Node* Graph::add(Operation op, std::vector<Node*> before) {
  auto n = std::make_unique<Node>();
  n->op = std::move(op);
  n->before = std::move(before);
  n->graph = this;
  n->id = next_id++;
  nodes.push_back(std::move(n));
  return nodes.back().get();
}

std::unique_ptr<Graph> Graph::clone(std::unordered_map<const Node*, Node*>* map) const {
  auto g = std::make_unique<Graph>();
  for (const auto& n : nodes) {
    Node* copy = g->add(n->op, {});
    copy->enabled = n->enabled;
    (*map)[n.get()] = copy;
  }
  for (const auto& n : nodes)
    for (const Node* b : n->before)
      if (map->count(b)) (*map)[n.get()]->before.push_back((*map)[b]);
  return g;
}

namespace {

Graph* find_graph(cudaGraph_t g) {
  Graph* p = reinterpret_cast<Graph*>(g);
  return runtime().graphs.count(p) ? p : nullptr;
}
GraphExec* find_exec(cudaGraphExec_t g) {
  GraphExec* p = reinterpret_cast<GraphExec*>(g);
  return runtime().execs.count(p) ? p : nullptr;
}

cudaError_t run_nodes(Graph& g, uint64_t salt) {
  std::unordered_map<const Node*, size_t> waits;
  std::unordered_map<const Node*, std::vector<Node*>> after;
  std::vector<Node*> ready;
  for (const auto& n : g.nodes) {
    waits[n.get()] = n->before.size();
    for (const Node* b : n->before) after[b].push_back(n.get());
    if (n->before.empty()) ready.push_back(n.get());
  }
  uint64_t rng = (options().seed + 1) * 0x9e3779b97f4a7c15ull + salt * 0xd1342543de82ef95ull;
  size_t done = 0;
  while (!ready.empty()) {
    size_t pick = 0;
    if (options().seed) {
      rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
      pick = rng % ready.size();
    }
    Node* n = ready[pick];
    ready.erase(ready.begin() + static_cast<long>(pick));
    if (n->enabled) {
      const cudaError_t e =
          n->op.kind == Operation::kChild ? run_nodes(*n->op.child, salt + 1) : execute(n->op);
      if (e != cudaSuccess) return e;
      if (runtime().sticky != cudaSuccess) return cudaSuccess;
    }
    ++done;
    for (Node* next : after[n])
      if (--waits[next] == 0) ready.push_back(next);
  }
  return done == g.nodes.size() ? cudaSuccess : complain(cudaErrorInvalidValue, "the graph has a cycle");
}

bool acyclic(const Graph& g) {
  std::unordered_map<const Node*, size_t> waits;
  std::unordered_map<const Node*, std::vector<const Node*>> after;
  std::vector<const Node*> ready;
  for (const auto& n : g.nodes) {
    waits[n.get()] = n->before.size();
    for (const Node* b : n->before) after[b].push_back(n.get());
    if (n->before.empty()) ready.push_back(n.get());
  }
  size_t done = 0;
  for (; !ready.empty(); ++done) {
    const Node* n = ready.back();
    ready.pop_back();
    for (const Node* next : after[n])
      if (--waits[next] == 0) ready.push_back(next);
  }
  return done == g.nodes.size();
}

cudaError_t add_node(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* before, size_t n,
                     Operation op) {
  Graph* g = find_graph(graph);
  if (!g) return cudaErrorInvalidValue;
  std::vector<Node*> list;
  for (size_t i = 0; i < n; ++i) list.push_back(reinterpret_cast<Node*>(before[i]));
  *out = reinterpret_cast<cudaGraphNode_t>(g->add(std::move(op), std::move(list)));
  return cudaSuccess;
}
cudaError_t kernel_operation(const cudaKernelNodeParams* p, Operation* op) {
  if (p->extra) return complain(cudaErrorNotSupported, "kernel node parameters through `extra`");
  return make_launch(find_kernel(p->func), p->gridDim, p->blockDim, p->kernelParams, p->sharedMemBytes,
                     nullptr, 0, op);
}
Operation memset_operation(const cudaMemsetParams& p) {
  Operation op;
  op.kind = Operation::kMemset;
  op.dst = p.dst, op.dst_pitch = p.pitch, op.value = p.value, op.element = p.elementSize, op.width = p.width,
  op.height = p.height;
  if (op.element == 1) op.value &= 255;
  return op;
}
Operation memcpy_operation(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  Operation op;
  op.kind = Operation::kMemcpy;
  op.dst = dst, op.src = src, op.width = n, op.copy_kind = kind;
  return op;
}
Node* node_of(GraphExec* e, cudaGraphNode_t n) {
  const auto it = e->from.find(reinterpret_cast<const Node*>(n));
  return it == e->from.end() ? nullptr : it->second;
}

}  // namespace

cudaError_t run_graph(GraphExec& exec) { return run_nodes(*exec.graph, ++exec.launches); }

}  // namespace softgpu

using namespace softgpu;

SOFTGPU_EXPORT cudaError_t cudaGraphCreate(cudaGraph_t* out, unsigned) {
  SOFTGPU_ENTER;
  Graph* g = new Graph;
  runtime().graphs.insert(g);
  *out = reinterpret_cast<cudaGraph_t>(g);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  SOFTGPU_ENTER;
  Graph* g = find_graph(graph);
  if (!g) return finish(cudaErrorInvalidValue);
  runtime().graphs.erase(g);
  delete g;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphClone(cudaGraph_t* out, cudaGraph_t graph) {
  SOFTGPU_ENTER;
  Graph* g = find_graph(graph);
  if (!g) return finish(cudaErrorInvalidValue);
  std::unordered_map<const Node*, Node*> map;
  Graph* copy = g->clone(&map).release();
  runtime().graphs.insert(copy);
  *out = reinterpret_cast<cudaGraph_t>(copy);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                  const cudaGraphNode_t* before, size_t n,
                                                  const cudaKernelNodeParams* p) {
  SOFTGPU_ENTER;
  Operation op;
  const cudaError_t e = kernel_operation(p, &op);
  return finish(e == cudaSuccess ? add_node(out, g, before, n, std::move(op)) : e);
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                  const cudaGraphNode_t* before, size_t n,
                                                  const cudaMemsetParams* p) {
  SOFTGPU_ENTER;
  return finish(add_node(out, g, before, n, memset_operation(*p)));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* out, cudaGraph_t g,
                                                    const cudaGraphNode_t* before, size_t n, void* dst,
                                                    const void* src, size_t count, cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  return finish(add_node(out, g, before, n, memcpy_operation(dst, src, count, kind)));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddHostNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                const cudaGraphNode_t* before, size_t n,
                                                const cudaHostNodeParams* p) {
  SOFTGPU_ENTER;
  Operation op;
  op.kind = Operation::kHost;
  op.host = p->fn, op.user = p->userData;
  return finish(add_node(out, g, before, n, std::move(op)));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddEmptyNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                 const cudaGraphNode_t* before, size_t n) {
  SOFTGPU_ENTER;
  return finish(add_node(out, g, before, n, Operation()));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                      const cudaGraphNode_t* before, size_t n,
                                                      cudaGraph_t child) {
  SOFTGPU_ENTER;
  Graph* c = find_graph(child);
  if (!c) return finish(cudaErrorInvalidValue);
  Operation op;
  op.kind = Operation::kChild;
  std::unordered_map<const Node*, Node*> map;
  op.child = c->clone(&map);
  return finish(add_node(out, g, before, n, std::move(op)));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddEventRecordNode(cudaGraphNode_t* out, cudaGraph_t g,
                                                       const cudaGraphNode_t* before, size_t n,
                                                       cudaEvent_t e) {
  SOFTGPU_ENTER;
  Operation op;
  op.kind = Operation::kEventRecord;
  op.event = e;
  return finish(add_node(out, g, before, n, std::move(op)));
}
SOFTGPU_EXPORT cudaError_t cudaGraphAddDependencies(cudaGraph_t, const cudaGraphNode_t* from,
                                                    const cudaGraphNode_t* to, const cudaGraphEdgeData*,
                                                    size_t n) {
  SOFTGPU_ENTER;
  for (size_t i = 0; i < n; ++i)
    reinterpret_cast<Node*>(to[i])->before.push_back(reinterpret_cast<Node*>(from[i]));
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* n) {
  SOFTGPU_ENTER;
  Graph* g = find_graph(graph);
  if (!g) return finish(cudaErrorInvalidValue);
  for (size_t i = 0; nodes && i < std::min(*n, g->nodes.size()); ++i)
    nodes[i] = reinterpret_cast<cudaGraphNode_t>(g->nodes[i].get());
  *n = g->nodes.size();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* n) {
  SOFTGPU_ENTER;
  Graph* g = find_graph(graph);
  if (!g) return finish(cudaErrorInvalidValue);
  size_t k = 0;
  for (const auto& node : g->nodes) {
    if (!node->before.empty()) continue;
    if (nodes && k < *n) nodes[k] = reinterpret_cast<cudaGraphNode_t>(node.get());
    ++k;
  }
  *n = k;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphGetEdges(cudaGraph_t graph, cudaGraphNode_t* from, cudaGraphNode_t* to,
                                             cudaGraphEdgeData*, size_t* n) {
  SOFTGPU_ENTER;
  Graph* g = find_graph(graph);
  if (!g) return finish(cudaErrorInvalidValue);
  size_t k = 0;
  for (const auto& node : g->nodes) {
    for (Node* b : node->before) {
      if (from && to && k < *n)
        from[k] = reinterpret_cast<cudaGraphNode_t>(b), to[k] = reinterpret_cast<cudaGraphNode_t>(node.get());
      ++k;
    }
  }
  *n = k;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  SOFTGPU_ENTER;
  static constexpr cudaGraphNodeType types[] = {
      cudaGraphNodeTypeKernel,    cudaGraphNodeTypeMemcpy, cudaGraphNodeTypeMemset,
      cudaGraphNodeTypeHost,      cudaGraphNodeTypeEmpty,  cudaGraphNodeTypeEventRecord,
      cudaGraphNodeTypeWaitEvent, cudaGraphNodeTypeGraph,  cudaGraphNodeTypeMemAlloc,
      cudaGraphNodeTypeMemFree,   cudaGraphNodeTypeKernel};
  *type = types[reinterpret_cast<Node*>(node)->op.kind];
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* p) {
  SOFTGPU_ENTER;
  Node* n = reinterpret_cast<Node*>(node);
  if (n->op.kind != Operation::kKernel) return finish(cudaErrorInvalidValue);
  const Launch& l = n->op.launch;
  *p = {};
  p->func = n->op.entry;
  p->gridDim = dim3(l.grid.x, l.grid.y, l.grid.z);
  p->blockDim = dim3(l.block.x, l.block.y, l.block.z);
  p->sharedMemBytes = l.dynamic_shared;
  static thread_local std::vector<void*> args;
  args.clear();
  for (const KernelParam& k : n->op.entry->kernel->params)
    args.push_back(n->op.launch.params.data() + k.offset);
  p->kernelParams = args.data();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphKernelNodeSetParams(cudaGraphNode_t node, const cudaKernelNodeParams* p) {
  SOFTGPU_ENTER;
  return finish(kernel_operation(p, &reinterpret_cast<Node*>(node)->op));
}

static cudaError_t instantiate(cudaGraphExec_t* out, cudaGraph_t graph) {
  Graph* g = find_graph(graph);
  if (!g) return cudaErrorInvalidValue;
  if (!acyclic(*g)) return complain(cudaErrorInvalidValue, "the graph has a cycle");
  auto e = std::make_unique<GraphExec>();
  e->graph = g->clone(&e->from);
  runtime().execs.insert(e.get());
  *out = reinterpret_cast<cudaGraphExec_t>(e.release());
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  SOFTGPU_ENTER;
  return finish(instantiate(out, graph));
}
SOFTGPU_EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph,
                                                         unsigned long long) {
  SOFTGPU_ENTER;
  return finish(instantiate(out, graph));
}
SOFTGPU_EXPORT cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* out, cudaGraph_t graph,
                                                          cudaGraphInstantiateParams* p) {
  SOFTGPU_ENTER;
  p->errNode_out = nullptr;
  const cudaError_t e = instantiate(out, graph);
  p->result_out = e == cudaSuccess ? cudaGraphInstantiateSuccess : cudaGraphInstantiateError;
  return finish(e);
}
SOFTGPU_EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  if (!e) return finish(cudaErrorInvalidValue);
  runtime().execs.erase(e);
  delete e;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  SOFTGPU_ENTER;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Stream* stream = find_stream(s);
  if (!e || !stream) return finish(cudaErrorInvalidValue);
  if (stream->capture) {
    Operation op;
    op.kind = Operation::kChild;
    std::unordered_map<const Node*, Node*> map;
    op.child = e->graph->clone(&map);
    return finish(submit(s, std::move(op)));
  }
  return finish(run_graph(*e));
}
SOFTGPU_EXPORT cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                            const cudaKernelNodeParams* p) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Node* n = e ? node_of(e, node) : nullptr;
  if (!n || n->op.kind != Operation::kKernel) return finish(cudaErrorInvalidValue);
  return finish(kernel_operation(p, &n->op));
}
SOFTGPU_EXPORT cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                              void* dst, const void* src, size_t count,
                                                              cudaMemcpyKind kind) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Node* n = e ? node_of(e, node) : nullptr;
  if (!n || n->op.kind != Operation::kMemcpy) return finish(cudaErrorInvalidValue);
  n->op = memcpy_operation(dst, src, count, kind);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphExecMemsetNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                            const cudaMemsetParams* p) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Node* n = e ? node_of(e, node) : nullptr;
  if (!n || n->op.kind != Operation::kMemset) return finish(cudaErrorInvalidValue);
  n->op = memset_operation(*p);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                               cudaGraphExecUpdateResultInfo* info) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Graph* g = find_graph(graph);
  if (!e || !g) return finish(cudaErrorInvalidValue);
  bool same = e->graph->nodes.size() == g->nodes.size();
  for (size_t i = 0; same && i < g->nodes.size(); ++i) {
    const Node& a = *e->graph->nodes[i];
    const Node& b = *g->nodes[i];
    same = a.op.kind == b.op.kind && a.before.size() == b.before.size() &&
           (a.op.kind != Operation::kKernel || a.op.entry == b.op.entry) &&
           (a.op.kind != Operation::kLibrary || a.op.library->name == b.op.library->name);
  }
  if (info) info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
  if (!same) return finish(cudaErrorGraphExecUpdateFailure);
  e->from.clear();
  e->graph = g->clone(&e->from);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t exec, cudaGraphNode_t node,
                                                   unsigned enabled) {
  SOFTGPU_ENTER;
  GraphExec* e = find_exec(exec);
  Node* n = e ? node_of(e, node) : nullptr;
  if (!n) return finish(cudaErrorInvalidValue);
  n->enabled = enabled != 0;
  return cudaSuccess;
}
