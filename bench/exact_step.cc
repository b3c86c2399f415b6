#include "bench/exact_step.h"

#include <bit>
#include <chrono>
#include <numeric>

#include "bench/support/random_llama.h"
#include "core/ops.h"
#include "model/runner.h"
#include "train/networks/parameters.h"

namespace gantrain::bench {
namespace {

constexpr uint64_t kTexts = 4;  // batches of them, in turns

// A batch, and what the head is asked about it.
struct ExactBatch {
  PackedBatch batch;
  HeadRequest head;
  BatchRows rows;
  int64_t scored = 0;
  std::vector<int32_t> ids;      // with a gradient of the table: tokens of the vocabulary that stand in it,
  std::vector<int32_t> id_rows;  // and their rows
};

struct Sizes {
  int64_t inputs, length, prompt, samples, vocab;
};

// Tokens of sequence b with their first half as input; 2 or more.
int64_t length_of(const ExactMethod& method, const Sizes& s, int64_t b) {
  if (!method.uneven) return s.length;
  const int64_t least = std::max<int64_t>(2, s.length / 4);
  return s.inputs == 1 ? s.length : least + (s.length - least) * b / (s.inputs - 1);
}

ExactBatch compose(const ExactMethod& method, const Sizes& s, uint64_t number) {
  const Without& without = method.without;
  ExactBatch out;
  PackedBatch& batch = out.batch;
  int32_t prompt = -1;
  std::vector<int32_t> rows, labels;  // that are scored
  for (int64_t b = 0; b < s.inputs; ++b) {
    const auto draw = [&](int64_t count, uint64_t which) {
      return random_tokens(count, s.vocab, (number * 4096 + static_cast<uint64_t>(b)) * 4096 + which);
    };
    const int64_t length = length_of(method, s, b);
    const std::vector<int32_t> input = draw(length / 2, 0);
    int32_t context = -1;
    for (int64_t i = 0; i < s.samples; ++i) {
      if (i == 0 || without.shared_input) {
        if (prompt < 0 || (without.shared_prompt && i == 0)) prompt = batch.add_prompt(0, s.prompt);
        context = batch.add(prompt, input);
      }
      labels = draw(length - length / 2, static_cast<uint64_t>(1 + i));
      std::vector<int32_t> read = labels;
      read.pop_back();  // predicted and never read
      if (without.packing)
        for (int64_t pad = length; pad < s.length; ++pad) read.push_back(0);
      const int32_t answer = batch.add(context, read);
      for (size_t t = 0; t < labels.size(); ++t)
        out.head.rows.push_back(t == 0 ? batch.last_row(context)
                                       : batch.segment(answer).row_begin + static_cast<int32_t>(t) - 1);
      out.head.labels.insert(out.head.labels.end(), labels.begin(), labels.end());
    }
  }
  out.scored = std::ssize(out.head.rows);
  const float weight = 1.0f / static_cast<float>(out.scored);
  out.head.ce_weight.assign(out.head.rows.size(), weight);
  if (!without.last_layer) out.rows.read = out.head.rows;
  std::vector<int32_t> all(static_cast<size_t>(batch.rows()));
  std::iota(all.begin(), all.end(), 0);
  if (without.first_layer) out.rows.gradient = all;
  if (without.scored_head) {
    // Every row once, in the batch's order.
    HeadRequest whole;
    whole.rows = all;
    whole.labels.assign(all.size(), 0);
    whole.ce_weight.assign(all.size(), 0.0f);
    for (size_t i = 0; i < out.head.rows.size(); ++i) {
      whole.labels[static_cast<size_t>(out.head.rows[i])] = out.head.labels[i];
      whole.ce_weight[static_cast<size_t>(out.head.rows[i])] = weight;
    }
    out.head = std::move(whole);
  }
  if (without.embedding)
    for (const int32_t row : all)
      if (const int32_t token = batch.tokens()[static_cast<size_t>(row)]; token >= 0) {
        out.ids.push_back(token);
        out.id_rows.push_back(row);
      }
  return out;
}

// Prompt, optimiser and whatever a step needs.
class ExactStep {
 public:
  ExactStep(const ExactMethod& method, const Sizes& sizes, Device& device, BenchModel model)
      : method_(method),
        sizes_(sizes),
        device_(device),
        model_(std::move(model)),
        runner_(device, *model_.llama),
        parameters_(device) {
    const Llama& llama = *model_.llama;
    parameters_.add("prompt", {sizes_.prompt, llama.config().hidden_size},
                    values_init(llama.embedding_rows(random_tokens(sizes_.prompt, sizes_.vocab, 1u << 30))));
    if (method_.without.embedding)
      table_gradient_ = OwnedTensor(device, DType::kF32, {sizes_.vocab, llama.config().hidden_size});
  }

  Measured operator()() {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from, Clock::time_point to) {
      return std::chrono::duration<double>(to - from).count();
    };
    const auto begin = Clock::now();
    const ExactBatch b = compose(method_, sizes_, steps_++ % kTexts);
    const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(b.batch.rows())));
    HeadReading losses;
    Clock::time_point queued;
    device_.region("warm-up step", size, 0, [&] {
      parameters_.zero_grad();
      runner_.forward(b.batch, parameters_.value(0), Saving::kAll, -1, {}, b.rows);
      runner_.begin_backward();
      losses = runner_.head_later(b.head, true);
      runner_.backward();
      runner_.add_prompt_gradient(parameters_.grad(0));
      if (method_.without.embedding) {
        device_.fill_zero(table_gradient_);
        const OwnedTensor dx = runner_.input_gradient_rows(b.id_rows),
                          ids = upload(device_, std::span<const int32_t>(b.ids));
        scatter_add_rows(device_, {.dy = dx, .rows = ids, .dx = table_gradient_});
      }
      queued = Clock::now();
      parameters_.start_step({});
    });
    const std::vector<float> nll = losses.get().nll;
    parameters_.finish_step();
    const auto end = Clock::now();
    double ce = 0;
    for (size_t i = 0; i < nll.size(); ++i)
      if (b.head.ce_weight[i] > 0) ce += static_cast<double>(nll[i]);
    // On a device that queues its work the host has waited at the end for all of it.
    const auto parted = device_.queues_work() ? end : queued;
    int64_t tokens = 0;
    for (int64_t i = 0; i < sizes_.inputs; ++i) {
      const int64_t length = length_of(method_, sizes_, i);
      tokens += length / 2 + sizes_.samples * (length - length / 2);
    }
    const Llama& llama = *model_.llama;
    const BatchEnds ends =
        ends_of(b.batch, b.rows, static_cast<int>(llama.layers().size()), true, Adapters());
    Measured m;
    m.seconds = seconds(begin, end);
    m.counters = {{"tokens/s", static_cast<double>(tokens) / m.seconds},
                  {"forward_backward_seconds", seconds(begin, parted)},
                  {"optimizer_seconds", seconds(parted, end)},
                  {"rows", static_cast<double>(b.batch.rows())},
                  {"head_rows", static_cast<double>(b.head.rows.size())},
                  {"ce", ce / static_cast<double>(b.scored)},
                  {"weight_bytes", static_cast<double>(llama.weight_bytes())},
                  {"parameters", static_cast<double>(parameters_.count())},
                  {"saved_activation_bytes",
                   static_cast<double>(saved_bytes(device_, llama, b.batch.rows(), Saving::kAll, {}, ends))},
                  {"peak_memory_bytes", static_cast<double>(peak_resident_bytes())}};
    return m;
  }

 private:
  const ExactMethod method_;
  const Sizes sizes_;
  Device& device_;
  const BenchModel model_;  // outlives the runner
  Runner runner_;
  ParameterSet parameters_;
  OwnedTensor table_gradient_;
  uint64_t steps_ = 0;
};

}  // namespace

const std::vector<ExactMethod>& exact_methods() {
  static const std::vector<ExactMethod> table{
      {.name = "exact", .without = {}},
      {.name = "exact_last_whole", .without = {.last_layer = true}},
      {.name = "exact_head_whole", .without = {.last_layer = true, .scored_head = true}},
      {.name = "exact_first_whole", .without = {.first_layer = true}},
      {.name = "exact_embedding_whole", .without = {.first_layer = true, .embedding = true}},
      {.name = "exact_prompt_repeated", .without = {.shared_prompt = true}},
      {.name = "exact_none",
       .without = {.last_layer = true,
                   .scored_head = true,
                   .first_layer = true,
                   .embedding = true,
                   .shared_prompt = true}},
      {.name = "exact_uneven", .without = {}, .uneven = true},
      {.name = "exact_uneven_padded", .without = {.packing = true}, .uneven = true},
      {.name = "exact_answers", .without = {}, .answers = true},
      {.name = "exact_answers_apart", .without = {.shared_input = true}, .answers = true},
  };
  return table;
}

Timed prepare_exact(const ExactMethod& method, const Point& p, Device& device,
                    const std::function<void()>& after_first) {
  const int64_t length = p.at("length");
  if (length < 2) fail_usage("--axis length={}: expected 2 or more, one to read and one to score", length);
  BenchModel model = open_bench_model(device, p.model, p.config, p.dtype);
  const Sizes sizes{.inputs = p.at("batch"),
                    .length = length,
                    .prompt = p.at("prompt"),
                    .samples = method.answers ? p.at("samples") : 1,
                    .vocab = model.llama->config().vocab_size};
  const auto step = std::make_shared<ExactStep>(method, sizes, device, std::move(model));
  (*step)();  // memory is taken, kernels are written
  after_first();
  return [step] { return (*step)(); };
}

int64_t saved_bytes(Device& device, const Llama& llama, int64_t rows, Saving saving, const Adapters& adapters,
                    const BatchEnds& ends) {
  const auto peak = [&](int layers) {
    Arena counting;
    take_activations(counting, device, llama, rows, saving, layers, AttentionPlan(), adapters, ends);
    return counting.peak();
  };
  return peak(static_cast<int>(llama.layers().size())) - peak(0);
}

}  // namespace gantrain::bench
