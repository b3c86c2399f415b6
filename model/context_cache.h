// Keys and values of contexts that nothing trained changes, kept from batch to batch.
//
// Rows that stand before every soft prompt (inputs with the prompt behind them, inputs that are read without
// one) have the same keys and values as long as the weights are frozen: they are run once, without saving
// anything, and take part in no backward (docs/method.md). A batch finds them in front of its own rows, as it
// finds a prefix's.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "model/llama_forward.h"

namespace gantrain {

class Runner;

class ContextCache {
 public:
  // Keeps `kept` rows of contexts, those that came first, and besides up to `together` rows of a batch's
  // others.
  ContextCache(Device& device, const Llama& llama, int64_t kept, int64_t together);

  // A batch's contexts, in front of its own rows.
  struct Front {
    std::vector<KvSpan> spans;  // of each context, among the front rows; equal contexts share theirs
    OwnedTensor slots;          // (rows of the cache) i32: the front row a cached row becomes, or -1
    CachedContexts view;        // what Adapters take; valid while this and the cache live
  };
  // Runs those that are not here yet through `runner`, each by itself: its bits then depend on nothing but
  // its tokens, and a run that is continued with an empty cache has the same ones. Empty contexts, and null
  // ones, get an empty span. What an earlier call returned is not valid any more.
  Front place(Runner& runner, const std::vector<const std::vector<int32_t>*>& contexts);

  static int64_t bytes_of_row(const Device& device, const Llama& llama);

 private:
  Device& device_;
  int64_t kept_, together_;
  std::unique_ptr<KvCache> cache_;
  std::map<std::vector<int32_t>, KvSpan> kept_spans_;  // rows of the cache
  int64_t kept_used_ = 0;
};

}  // namespace gantrain
