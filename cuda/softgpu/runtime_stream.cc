// Streams, events, and capture of streams into graphs. Work runs when it is issued, in the order of issue.
#include <fmt/format.h>

#include <algorithm>

#include "cuda/softgpu/runtime.h"

namespace softgpu {

Stream* find_stream(cudaStream_t s) {
  Runtime& r = runtime();
  if (s == nullptr || s == cudaStreamLegacy) return &r.legacy;
  if (s == cudaStreamPerThread) return &r.per_thread;
  Stream* p = reinterpret_cast<Stream*>(s);
  return r.streams.count(p) ? p : nullptr;
}

namespace {
void join(std::vector<Node*>* into, const std::vector<Node*>& more) {
  for (Node* n : more)
    if (std::find(into->begin(), into->end(), n) == into->end()) into->push_back(n);
}
Event* find_event(cudaEvent_t e) {
  Event* p = reinterpret_cast<Event*>(e);
  return runtime().events.count(p) ? p : nullptr;
}
}  // namespace

cudaError_t submit(cudaStream_t s, Operation op) {
  Stream* stream = find_stream(s);
  if (!stream) return complain(cudaErrorInvalidResourceHandle, "the stream does not exist (destroyed?)");
  if (stream->capture) {
    if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (op.kind == Operation::kMemcpy || op.kind == Operation::kMemset) {
      const cudaError_t e = check_copy(op);
      if (e != cudaSuccess) return e;
    }
    Node* n = stream->capture->into->add(std::move(op), stream->last);
    stream->last = {n};
    return cudaSuccess;
  }
  if (stream == &runtime().legacy) {
    // The legacy stream waits for every blocking stream, captured ones included.
    for (const auto& c : runtime().captures) {
      for (const Stream* other : c->streams) {
        if (other->flags & cudaStreamNonBlocking) continue;
        c->invalid = true;
        return complain(
            cudaErrorStreamCaptureImplicit,
            "work in the default stream while a blocking stream is captured: the capture is void");
      }
    }
  }
  return execute(op);
}

}  // namespace softgpu

using namespace softgpu;

SOFTGPU_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  SOFTGPU_ENTER;
  Stream* p = new Stream;
  p->flags = flags, p->priority = std::clamp(priority, -5, 0), p->id = ++runtime().next_id;
  runtime().streams.insert(p);
  *s = reinterpret_cast<cudaStream_t>(p);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
SOFTGPU_EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
SOFTGPU_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p || p == &runtime().legacy || p == &runtime().per_thread)
    return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) p->capture->invalid = true, p->capture->streams.erase(p);
  runtime().streams.erase(p);
  delete p;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) {
    p->capture->invalid = true;
    return finish(complain(cudaErrorStreamCaptureUnsupported,
                           "cudaStreamSynchronize on a stream that is being captured: the capture is void"));
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) {
    p->capture->invalid = true;
    return finish(complain(cudaErrorStreamCaptureUnsupported,
                           "cudaStreamQuery on a stream that is being captured: the capture is void"));
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaDeviceSynchronize(void) {
  SOFTGPU_ENTER;
  return finish(not_in_capture("cudaDeviceSynchronize"));
}
SOFTGPU_EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int* v) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  *v = p->priority;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* v) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  *v = p->flags;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long* v) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  *v = p->id;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamGetDevice(cudaStream_t, int* d) {
  SOFTGPU_ENTER;
  *d = 0;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamSetAttribute(cudaStream_t s, cudaStreamAttrID,
                                                  const cudaStreamAttrValue*) {
  SOFTGPU_ENTER;
  return find_stream(s) ? cudaSuccess : finish(cudaErrorInvalidResourceHandle);
}
SOFTGPU_EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void* user) {
  SOFTGPU_ENTER;
  Operation op;
  op.kind = Operation::kHost;
  op.host = fn, op.user = user;
  return finish(submit(s, std::move(op)));
}
SOFTGPU_EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t callback, void* user,
                                                 unsigned) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) {
    p->capture->invalid = true;
    return finish(cudaErrorStreamCaptureUnsupported);
  }
  callback(s, cudaSuccess, user);
  return cudaSuccess;
}

SOFTGPU_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  SOFTGPU_ENTER;
  Event* p = new Event;
  p->flags = flags;
  runtime().events.insert(p);
  *e = reinterpret_cast<cudaEvent_t>(p);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
SOFTGPU_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) {
  SOFTGPU_ENTER;
  Event* p = find_event(e);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  runtime().events.erase(p);
  delete p;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
  SOFTGPU_ENTER;
  Event* p = find_event(e);
  Stream* stream = find_stream(s);
  if (!p || !stream) return finish(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    if (stream->capture->invalid) return finish(cudaErrorStreamCaptureInvalidated);
    p->capture = stream->capture;
    p->nodes = stream->last;
    if (flags & cudaEventRecordExternal) {
      Operation op;
      op.kind = Operation::kEventRecord;
      op.event = e;
      p->capture.reset();
      return finish(submit(s, std::move(op)));
    }
    return cudaSuccess;
  }
  p->capture.reset();
  p->nodes.clear();
  Operation op;
  op.kind = Operation::kEventRecord;
  op.event = e;
  return finish(execute(op));
}
SOFTGPU_EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  return cudaEventRecordWithFlags(e, s, 0);
}
SOFTGPU_EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
  SOFTGPU_ENTER;
  Event* p = find_event(e);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) {
    p->capture->invalid = true;
    return finish(
        complain(cudaErrorCapturedEvent, "cudaEventQuery on an event of a capture: the capture is void"));
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  SOFTGPU_ENTER;
  Event* p = find_event(e);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p->capture) {
    p->capture->invalid = true;
    return finish(complain(cudaErrorCapturedEvent,
                           "cudaEventSynchronize on an event of a capture: the capture is void"));
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  SOFTGPU_ENTER;
  const Event* p = find_event(a);
  const Event* q = find_event(b);
  if (!p || !q || !p->recorded || !q->recorded || ((p->flags | q->flags) & cudaEventDisableTiming))
    return finish(cudaErrorInvalidResourceHandle);
  *ms = static_cast<float>((q->time - p->time) * 1e3);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
  SOFTGPU_ENTER;
  Event* p = find_event(e);
  Stream* stream = find_stream(s);
  if (!p || !stream) return finish(cudaErrorInvalidResourceHandle);
  if (!p->capture) {
    if (stream->capture && !(flags & cudaEventWaitExternal) && p->recorded) {
      stream->capture->invalid = true;
      return finish(
          complain(cudaErrorStreamCaptureIsolation,
                   "a captured stream waits for an event recorded outside the capture: the capture is void"));
    }
    return cudaSuccess;
  }
  if (p->capture->invalid) return finish(cudaErrorStreamCaptureInvalidated);
  if (stream->capture && stream->capture != p->capture) {
    stream->capture->invalid = p->capture->invalid = true;
    return finish(complain(cudaErrorStreamCaptureMerge, "a wait would merge two captures: both are void"));
  }
  if (!stream->capture) {
    if (stream == &runtime().legacy) return finish(cudaErrorStreamCaptureImplicit);
    stream->capture = p->capture;
    stream->last.clear();
    p->capture->streams.insert(stream);
  }
  join(&stream->last, p->nodes);
  return cudaSuccess;
}

// --- capture
// -----------------------------------------------------------------------------------------------------------

SOFTGPU_EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  if (p == &runtime().legacy)
    return finish(complain(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured"));
  if (p->capture) return finish(complain(cudaErrorIllegalState, "the stream is being captured already"));
  auto c = std::make_shared<Capture>();
  c->graph = std::make_unique<Graph>();
  c->into = c->graph.get();
  c->mode = mode;
  c->id = ++runtime().next_id;
  c->origin = p;
  c->streams.insert(p);
  p->capture = c;
  p->last.clear();
  runtime().captures.push_back(c);
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t graph,
                                                         const cudaGraphNode_t* before,
                                                         const cudaGraphEdgeData*, size_t n,
                                                         cudaStreamCaptureMode mode) {
  SOFTGPU_ENTER;
  const cudaError_t e = cudaStreamBeginCapture(s, mode);
  if (e != cudaSuccess) return e;
  Stream* p = find_stream(s);
  p->capture->graph.reset();
  p->capture->into = reinterpret_cast<Graph*>(graph);
  for (size_t i = 0; i < n; ++i) p->last.push_back(reinterpret_cast<Node*>(before[i]));
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* out) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p || !p->capture) return finish(cudaErrorIllegalState);
  const auto c = p->capture;
  if (c->origin != p) {
    c->invalid = true;
    return finish(complain(cudaErrorStreamCaptureUnmatched, "the capture was begun on another stream"));
  }
  // Work forked into other streams must have come back: every node reaches one that `last` names.
  bool unjoined = false;
  if (!c->invalid) {
    std::set<const Node*> reached;
    std::vector<const Node*> open(p->last.begin(), p->last.end());
    while (!open.empty()) {
      const Node* n = open.back();
      open.pop_back();
      if (!reached.insert(n).second) continue;
      for (const Node* b : n->before) open.push_back(b);
    }
    for (const Stream* other : c->streams)
      for (const Node* n : other->last) unjoined |= !reached.count(n);
  }
  for (Stream* other : c->streams) other->capture.reset(), other->last.clear();
  auto& list = runtime().captures;
  list.erase(std::remove(list.begin(), list.end(), c), list.end());
  for (Event* e : runtime().events)
    if (e->capture == c) e->capture.reset(), e->nodes.clear();
  *out = nullptr;
  if (c->invalid) return finish(cudaErrorStreamCaptureInvalidated);
  if (unjoined)
    return finish(complain(cudaErrorStreamCaptureUnjoined,
                           "work forked into another stream was not joined before the end of the capture"));
  if (c->graph) {
    runtime().graphs.insert(c->graph.get());
    *out = reinterpret_cast<cudaGraph_t>(c->graph.release());
  } else {
    *out = reinterpret_cast<cudaGraph_t>(c->into);
  }
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  *status = !p->capture           ? cudaStreamCaptureStatusNone
            : p->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status,
                                                    unsigned long long* id, cudaGraph_t* graph,
                                                    const cudaGraphNode_t** before,
                                                    const cudaGraphEdgeData** edges, size_t* n) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p) return finish(cudaErrorInvalidResourceHandle);
  cudaStreamIsCapturing(s, status);
  if (!p->capture) return cudaSuccess;
  if (id) *id = p->capture->id;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(p->capture->into);
  if (before) *before = reinterpret_cast<const cudaGraphNode_t*>(p->last.data());
  if (edges) *edges = nullptr;
  if (n) *n = p->last.size();
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t* nodes,
                                                               const cudaGraphEdgeData*, size_t n,
                                                               unsigned flags) {
  SOFTGPU_ENTER;
  Stream* p = find_stream(s);
  if (!p || !p->capture) return finish(cudaErrorIllegalState);
  if (flags == cudaStreamSetCaptureDependencies) p->last.clear();
  for (size_t i = 0; i < n; ++i) join(&p->last, {reinterpret_cast<Node*>(nodes[i])});
  return cudaSuccess;
}
SOFTGPU_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  thread_local cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
  std::swap(own, *mode);
  return cudaSuccess;
}
