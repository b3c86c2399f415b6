#include "train/plan/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <thread>

#include "model/runner.h"
#include "train/communicator/tcp.h"
#include "train/plan/counting_device.h"
#include "train/play/evaluate.h"
#include "train/play/pairs.h"
#include "train/trainer.h"

namespace gantrain {
namespace {

std::string megabytes(int64_t bytes) { return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6); }

using Size = std::function<int64_t(const TokenizedExample&)>;

// The `count` items that are largest by `size`.
std::vector<TokenizedExample> longest(const std::vector<TokenizedExample>& items, int64_t count,
                                      const Size& size) {
  std::vector<const TokenizedExample*> order = pointers(items);
  const auto most = static_cast<std::ptrdiff_t>(std::min<size_t>(order.size(), static_cast<size_t>(count)));
  std::partial_sort(
      order.begin(), order.begin() + most, order.end(),
      [&](const TokenizedExample* a, const TokenizedExample* b) { return size(*a) > size(*b); });
  std::vector<TokenizedExample> out;
  for (std::ptrdiff_t i = 0; i < most; ++i) out.push_back(*order[static_cast<size_t>(i)]);
  return out;
}

// What takes items in their order takes one of these: the largest of the groups of `count`.
std::vector<TokenizedExample> largest_group(ExampleSpan items, int64_t count, const Size& size) {
  size_t best = 0;
  int64_t most = -1;
  const size_t step = static_cast<size_t>(count);
  for (size_t at = 0; at < items.size(); at += step) {
    int64_t sum = 0;
    for (size_t i = at; i < std::min(items.size(), at + step); ++i) sum += size(*items[i]);
    if (sum > most) most = sum, best = at;
  }
  std::vector<TokenizedExample> out;
  for (size_t i = best; i < std::min(items.size(), best + step); ++i) out.push_back(*items[i]);
  return out;
}

// The largest batches that one of the ranks of a run has: of training items, and of those held out beside
// them. The order of a run is known before it begins.
struct Batches {
  std::vector<TokenizedExample> training, heldout;
};
Batches largest_batches(const TrainConfig& c, int ranks, const TokenizedDataset& data, const Size& size) {
  const auto& other = data.valid.empty() ? data.train : data.valid;
  constexpr int64_t kVisited = 100'000;  // a tenth of a second
  if (Trainer::steps_of(c, std::ssize(data.train)) > kVisited / c.train.accumulate) {
    // More than is worth looking at: some batch comes near to this.
    const int64_t batch = (c.train.batch + ranks - 1) / ranks;
    return {longest(data.train, batch, size), longest(other, std::max<int64_t>(1, batch / 2), size)};
  }
  struct Most {
    int64_t sum = -1;
    std::vector<int64_t> items;
  } training, heldout;
  Trainer::visit_batches(c, data.train, data.valid, [&](bool held, const std::vector<int64_t>& items) {
    const auto& from = held ? other : data.train;
    Most& most = held ? heldout : training;
    for (int rank = 0; rank < ranks; ++rank) {
      const Part part = part_of(items.size(), rank, ranks);
      int64_t sum = 0;
      for (size_t i = part.begin; i < part.end; ++i) sum += size(from[static_cast<size_t>(items[i])]);
      if (sum > most.sum)
        most = {sum,
                {items.begin() + static_cast<std::ptrdiff_t>(part.begin),
                 items.begin() + static_cast<std::ptrdiff_t>(part.end)}};
    }
  });
  Batches out;
  for (const int64_t i : training.items) out.training.push_back(data.train[static_cast<size_t>(i)]);
  for (const int64_t i : heldout.items) out.heldout.push_back(other[static_cast<size_t>(i)]);
  return out;
}

// Tokens that an answer may consist of: none ends it, and a text of them is spelled as they are, so that the
// discriminator reads as many.
std::vector<int32_t> answer_tokens(const Tokenizer& tokenizer) {
  const auto usable = [&](int32_t id) {
    return std::find(tokenizer.end_ids().begin(), tokenizer.end_ids().end(), id) == tokenizer.end_ids().end();
  };
  std::vector<int32_t> out;
  for (const char* word : {" the", " of", " and", " to", " in", " is", " was", " for", " on", " with", " as",
                           " he", " it", " at", " by", " that"}) {
    std::vector<int32_t> two = tokenizer.encode(std::string(" a") + word);
    if (!two.empty() && usable(two.back()) && std::find(out.begin(), out.end(), two.back()) == out.end())
      out.push_back(two.back());
  }
  const std::vector<int32_t> mixed(out.begin(), out.end());
  const auto again = canonical_tokens(tokenizer, mixed);
  if (!out.empty() && again && *again == mixed) return out;
  // Small vocabularies: any tokens that no text would spell otherwise, or all that do not end an answer.
  std::vector<int32_t> alone, any;
  for (int32_t id = 0; id < static_cast<int32_t>(tokenizer.vocab_size()) && alone.size() < 64; ++id) {
    if (!usable(id)) continue;
    any.push_back(id);
    const std::vector<int32_t> run(8, id);
    const auto spelled = canonical_tokens(tokenizer, run);
    if (spelled && *spelled == run) alone.push_back(id);
  }
  if (!alone.empty()) return alone;
  return any.empty() ? std::vector<int32_t>{0} : any;
}

// The cause of an allocation by the ranges it was made in.
const char* cause_of(const std::string& label) {
  const auto inside = [&](const char* range) { return label.find(range) != std::string::npos; };
  if (inside("optimizer state")) return "optimisers of the players";
  if (inside("generate")) return "rollouts: cache of keys and values, and decoding";
  if (inside("activations")) return "activations and scratch of the largest batch";
  if (inside("contexts")) return "keys and values of inputs that nothing trained changes";
  if (inside("head")) return "scored rows: scratch of head and losses";
  if (inside("step") || inside("evaluation") || inside("validation"))
    return "what a step holds besides: features and the discriminator's reading";
  return "players";
}

// A run as short as can be that still has every phase, both players training in it.
TrainConfig shortened(const TrainConfig& config) {
  TrainConfig c = config;
  const bool adversarial = c.loss.kind != LossKind::kCe;
  c.train.warmup_ce_steps = adversarial ? 1 : 0;
  c.train.discriminator_steps = adversarial ? 1 : 0;
  c.train.steps = adversarial ? 5 : 2;
  c.train.gate_d = 1.0;
  c.train.gate_g = 0.0;
  c.discriminator.spectral_norm = false;  // works on the host, without memory worth counting
  c.data.bucket = false;
  return c;
}

// Returns the numbers of the larger player: what is summed over ranks.
int64_t rehearse(CountingDevice& device, const Llama& llama, const Tokenizer& tokenizer,
                 const TrainConfig& whole, int ranks, const TokenizedDataset& data, const Size& size) {
  TrainConfig c = shortened(whole);
  c.train.batch = (whole.train.batch + ranks - 1) / ranks;
  const int64_t together = whole.train.batch;  // in an evaluation: ranks take turns
  const bool has_test = !data.test.empty(), adversarial = whole.loss.kind != LossKind::kCe;
  Batches largest = largest_batches(whole, ranks, data, size);
  const auto validated = pointers(data.valid, whole.eval.max_items);
  if (!adversarial) largest.heldout = largest_group(validated, together, size);
  if (data.valid.empty()) largest.heldout.clear();
  Trainer trainer(device, llama, tokenizer, c,
                  {std::move(largest.training), std::move(largest.heldout),
                   Trainer::context_rows(data.train, data.valid)});
  while (!trainer.done()) trainer.step();
  const int64_t trained = std::max(trainer.generator_parameters(), trainer.discriminator_parameters());
  Runner runner(device, llama);
  PromptMaker& maker = trainer.deployed();
  if (!validated.empty()) {
    const Range range(device, "validation");
    const auto items = largest_group(validated, together, size);
    evaluate_loss(runner, maker, pointers(items), c.generator.placement, together);
  }
  // The evaluation at the end of a run.
  const auto items =
      largest_group(pointers(has_test ? data.test : data.valid, whole.eval.max_items), together, size);
  if (items.empty()) return trained;
  const Range range(device, "evaluation");
  const auto part = pointers(items);
  const auto labels = find_labels(pointers(data.train));
  if (!labels.empty()) {
    label_scores(runner, maker, part, labels, c.generator.placement, together);
    return trained;
  }
  evaluate_loss(runner, maker, part, c.generator.placement, together);
  GenerationSettings g;
  g.max_new = static_cast<int32_t>(c.train.max_new_tokens);
  g.samples = c.eval.samples;
  const auto asked =
      largest_group(pointers(has_test ? data.test_merged : data.valid_merged, whole.eval.max_items), g.batch,
                    [](const TokenizedExample& e) { return static_cast<int64_t>(e.prompt.size()); });
  generate_texts(runner, tokenizer, maker, pointers(asked), c.generator.placement, g);
  return trained;
}

// What the CPU's threads keep for themselves (cpu/parallel.h, thread_scratch): a tile of 128 rows of the
// longest product with its result of 384 columns, where there are no bf16 instructions the tile of the weight
// as well, and the blocks of attention, of which a bf16 backward holds 1536 rows. And what oneDNN keeps for
// all: machine code of the products met.
int64_t scratch_of_threads(const Device& device, const Llama& llama, int64_t threads) {
  if (device.kind() != DeviceKind::kCpu) return 0;
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  const LlamaConfig& c = llama.config();
  const int64_t longest = std::max({c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim});
  const int64_t attention =
      (int64_t{1} << 20) + (llama.dtype() == DType::kBF16 ? 1536 * 14 * ((c.head_dim + 31) / 32 * 32) : 0);
  const bool converted = llama.dtype() == DType::kBF16 && !device.has_fast_bf16();
  const int64_t packed = llama.packed_parameters() > 0 ? std::max<int64_t>(1 << 17, 8 * longest) : 0;
  constexpr int64_t kRows = 128, kColumns = 384, kLibrary = int64_t{12} << 20;
  return threads * (4 * (kRows * longest + kRows * kColumns + (converted ? kColumns * longest : 0) + packed) +
                    attention) +
         kLibrary;
}

int64_t read_number(const std::string& path) {
  std::ifstream in(path);
  int64_t value = -1;
  in >> value;
  return in ? value : -1;  // "max" is no number: no limit
}

// A line "NAME VALUE" of a file; 0 where there is none.
int64_t read_entry(const std::string& path, const std::string& name) {
  std::ifstream in(path);
  std::string word;
  for (int64_t value = 0; in >> word >> value;)
    if (word == name) return value;
  return 0;
}

// What a control group leaves to this process: its limit less what others of it hold. Caches of files are
// given up when memory is asked for. -1: no limit.
int64_t left_by_group(const std::string& limit, const std::string& usage, const std::string& stat,
                      const char* cache, int64_t held) {
  const int64_t most = read_number(limit), taken = read_number(usage);
  if (most <= 0 || taken < 0) return -1;
  const int64_t others = std::max<int64_t>(0, taken - held - read_entry(stat, cache));
  return std::max<int64_t>(0, most - others);
}

}  // namespace

ProcessMemory process_memory() {
  ProcessMemory m;
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    for (const auto& [name, to] :
         {std::pair("RssAnon:", &m.own), {"RssFile:", &m.files}, {"VmHWM:", &m.peak}})
      if (line.starts_with(name)) *to = std::stoll(line.substr(std::string(name).size())) * 1024;
  return m;
}

int64_t MemoryPlan::total() const {
  int64_t sum = 0;
  for (const MemoryItem& item : items) sum += item.bytes;
  return sum;
}

std::string MemoryPlan::text() const {
  std::string out = fmt::format("memory plan: {}\n", megabytes(total()));
  for (const MemoryItem& item : items)
    out += fmt::format("  {:>12}  {}\n", megabytes(item.bytes), item.cause);
  return out;
}

MemoryPlan plan_memory(Device& device, const Llama& llama, const Tokenizer& tokenizer,
                       const TrainConfig& config, const TokenizedDataset& data, const ProcessMemory& now,
                       int ranks) {
  // Long inputs make large caches, long items large batches; they need not be the same items.
  CountingDevice by_length(device, answer_tokens(tokenizer)), by_input(device, answer_tokens(tokenizer));
  // All layers hold all rows, but for the last one, which goes on with those that are scored.
  const int64_t layers = llama.config().num_layers;
  const int64_t answers =
      config.loss.kind == LossKind::kCe
          ? 0
          : std::max(config.loss.samples, config.train.discriminator_samples) * config.train.max_new_tokens;
  const int64_t trained =
      rehearse(by_length, llama, tokenizer, config, ranks, data, [&](const TokenizedExample& e) {
        return layers * std::ssize(e.prompt) + (layers + 1) * (std::ssize(e.completion) + answers);
      });
  rehearse(by_input, llama, tokenizer, config, ranks, data,
           [](const TokenizedExample& e) { return static_cast<int64_t>(e.prompt.size()); });
  const CountingDevice& most = by_input.peak() > by_length.peak() ? by_input : by_length;

  MemoryPlan plan;
  const bool own_memory = device.kind() == DeviceKind::kCpu;  // else the weights are not in this process
  const int64_t weights = llama.weight_bytes(), held = own_memory ? weights : 0;
  plan.items.push_back({"weights", weights});
  plan.buffers = most.peak();
  if (ranks > 1) {
    const int64_t summed = 4 * std::min(trained, Trainer::kSummedTogether);
    plan.items.push_back({"gradients on their way to other ranks", summed});
    plan.buffers += summed;
    plan.items.push_back({"messages of other ranks", kTcpBufferBytes});
  }
  if (!own_memory) {
    // Buffers of one reservation leave gaps: an eighth, and a megabyte for the attention's plans.
    const int64_t between = plan.buffers / 8 + (int64_t{1} << 20);
    plan.items.push_back({"between buffers", between});
    plan.buffers += between;
  }
  std::map<std::string, int64_t> causes;
  for (const auto& [label, bytes] : most.at_peak()) causes[cause_of(label)] += bytes;
  for (const auto& [cause, bytes] : causes)
    if (bytes > 0) plan.items.push_back({cause, bytes});
  plan.items.push_back({"tokenizer, data and the program's own", std::max<int64_t>(0, now.own - held)});
  plan.items.push_back({"the program, its libraries and mapped model files, as far as read", now.files});
  if (const int64_t bytes = scratch_of_threads(device, llama, config.threads); bytes > 0)
    plan.items.push_back({"scratch of threads, oneDNN's machine code", bytes});
  // Reading may have held more than training will.
  if (own_memory && now.peak > plan.total())
    plan.items.push_back({"held while the model was read, above all that", now.peak - plan.total()});
  return plan;
}

MemoryLimit memory_limit(int64_t configured, const ProcessMemory& now) {
  if (configured > 0) return {configured, "memory_limit"};
  MemoryLimit limit;
  std::ifstream in("/proc/meminfo");
  const int64_t held = now.own;
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("MemAvailable:"))
      limit = {std::stoll(line.substr(13)) * 1024 + held, "what this machine has free"};
  std::vector<int64_t> groups{left_by_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                            "/sys/fs/cgroup/memory/memory.stat", "cache", held)};
  // Version 2: this process's group and all above it, "0::/a/b".
  std::ifstream own("/proc/self/cgroup");
  for (std::string line; std::getline(own, line);) {
    if (!line.starts_with("0::")) continue;
    for (std::string path = line.substr(3);;) {
      const std::string folder = "/sys/fs/cgroup" + path + "/";
      groups.push_back(left_by_group(folder + "memory.max", folder + "memory.current", folder + "memory.stat",
                                     "file", held));
      if (path.size() <= 1) break;
      path.erase(std::max<size_t>(path.rfind('/'), 1));
    }
  }
  for (const int64_t left : groups)
    if (left >= 0 && (limit.bytes == 0 || left < limit.bytes)) limit = {left, "the control group's limit"};
  return limit;
}

void check_memory(const MemoryPlan& plan, const MemoryLimit& limit, const TrainConfig& config,
                  const std::function<MemoryPlan(const TrainConfig&)>& plan_of) {
  if (limit.bytes <= 0 || plan.total() <= limit.bytes) return;
  // Cheapest first: what changes neither result nor gradient, then what changes the estimate's noise, then
  // the task.
  struct Remedy {
    std::string text;
    int64_t total;
  };
  std::vector<Remedy> remedies;
  const auto consider = [&](const std::string& text, const std::function<void(TrainConfig&)>& change) {
    TrainConfig changed = config;
    change(changed);
    const int64_t total = plan_of(changed).total();
    constexpr int64_t kWorthIt = 1'000'000;
    if (total + kWorthIt < plan.total()) remedies.push_back({text, total});
  };
  for (const auto& [level, price] : {std::pair(Recompute::kGateUp, "a fifth"),
                                     {Recompute::kMlp, "a quarter"},
                                     {Recompute::kLayer, "a third"}}) {
    if (level <= config.train.recompute) continue;
    consider(fmt::format("train.recompute={} (same bits, about {} more time)",
                         kRecomputeNames[static_cast<size_t>(level)], price),
             [level = level](TrainConfig& c) { c.train.recompute = level; });
    // The cheapest that is enough, or the one that frees most.
    if (remedies.empty()) continue;
    if (remedies.back().total <= limit.bytes) break;
    if (level != Recompute::kLayer) remedies.pop_back();
  }
  if (config.train.context_cache > 0)
    consider("train.context_cache=0 (inputs are run anew in every batch)",
             [](TrainConfig& c) { c.train.context_cache = 0; });
  for (int64_t batch = config.train.batch / 2; batch >= 1; batch /= 2) {
    const int64_t times = config.train.accumulate * config.train.batch / batch;
    consider(fmt::format("train.batch={} train.accumulate={} (the same batch in parts)", batch, times),
             [&](TrainConfig& c) {
               c.train.batch = batch;
               c.train.accumulate = times;
             });
    if (!remedies.empty() && remedies.back().total <= limit.bytes) break;
  }
  if (config.train.recompute != Recompute::kLayer)
    consider("train.recompute=layer train.batch=1 with train.accumulate as many times the batch",
             [&](TrainConfig& c) {
               c.train.recompute = Recompute::kLayer;
               c.train.accumulate *= c.train.batch;
               c.train.batch = 1;
             });
  if (config.loss.kind != LossKind::kCe &&
      std::max(config.loss.samples, config.train.discriminator_samples) > 2)
    consider(config.train.discriminator_samples > 2
                 ? "loss.samples=2 train.discriminator_samples=0 (a noisier reward)"
                 : "loss.samples=2 (a noisier reward)",
             [](TrainConfig& c) {
               c.loss.samples = 2;
               c.train.discriminator_samples = 0;
             });
  if (config.loss.kind != LossKind::kCe)
    consider(
        fmt::format("train.max_new_tokens={} (shorter answers)",
                    std::max<int64_t>(1, config.train.max_new_tokens / 2)),
        [](TrainConfig& c) { c.train.max_new_tokens = std::max<int64_t>(1, c.train.max_new_tokens / 2); });
  // Those that are enough come first, in this order.
  std::stable_partition(remedies.begin(), remedies.end(),
                        [&](const Remedy& r) { return r.total <= limit.bytes; });
  std::string list;
  for (size_t i = 0; i < remedies.size() && i < 3; ++i)
    list += fmt::format("\n  {}: {}{}", remedies[i].text, megabytes(remedies[i].total),
                        remedies[i].total <= limit.bytes ? "" : ", still too much");
  throw Error(fmt::format("the run needs {}, and {} is {}. Cheapest remedies:{}", megabytes(plan.total()),
                          limit.source, megabytes(limit.bytes),
                          list.empty() ? " a smaller model, or dtype=bf16" : list),
              ErrorKind::kOutOfMemory);
}

}  // namespace gantrain
