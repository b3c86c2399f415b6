// Generation: reading a text, and answers token by token.
#include <chrono>

#include "bench/support/harness.h"
#include "bench/support/random_llama.h"
#include "core/rng.h"
#include "model/generate.h"

namespace gantrain::bench {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Job {
  BenchModel model;
  std::vector<GenerationRequest> requests;
};
Job job_of(const Point& p, Device& device, int64_t length) {
  Job job{open_bench_model(device, p.model, p.config, p.dtype), {}};
  for (int64_t b = 0; b < p.at("batch"); ++b) {
    GenerationRequest r;
    r.context = random_tokens(length, job.model.llama->config().vocab_size, static_cast<uint64_t>(b));
    r.keys = {derive_key(20261128, 8, static_cast<uint64_t>(b))};
    job.requests.push_back(std::move(r));
  }
  return job;
}

// Seconds to the first token, and from there to the last.
std::pair<double, double> run(const Job& job, Device& device, int64_t tokens) {
  SamplingParams params;
  params.max_new = static_cast<int32_t>(tokens);
  const double start = now();
  double first = 0;
  generate(device, *job.model.llama, {}, job.requests, params, static_cast<int64_t>(job.requests.size()),
           [&](int64_t, int32_t) { first = first == 0 ? now() : first; });
  return {first - start, now() - first};
}

void define(Suite& suite) {
  // The text goes through the model, its last row through the head and one draw.
  suite.timed("prefill", {{"batch", {1}}, {"length", {512}}}, [](const Point& p, Device& device) -> Timed {
    const auto job = std::make_shared<Job>(job_of(p, device, p.at("length")));
    run(*job, device, 1);
    const double tokens = static_cast<double>(p.at("batch") * p.at("length"));
    return [job, tokens, &device] {
      const double seconds = run(*job, device, 1).first;
      return Measured{seconds,
                      {{"tokens/s", tokens / seconds},
                       {"peak_memory_bytes", static_cast<double>(peak_resident_bytes())}}};
    };
  });
  // `new` steps of decoding, after the first token, which the prefill gives.
  suite.timed("decode", {{"batch", {1, 8, 64}}, {"context", {128}}, {"new", {32}}},
              [](const Point& p, Device& device) -> Timed {
                const auto job = std::make_shared<Job>(job_of(p, device, p.at("context")));
                const int64_t steps = p.at("new");
                run(*job, device, steps + 1);
                const double tokens = static_cast<double>(p.at("batch") * steps);
                return [job, steps, tokens, &device] {
                  const auto [prefill, seconds] = run(*job, device, steps + 1);
                  return Measured{seconds,
                                  {{"tokens/s", tokens / seconds},
                                   {"prefill_seconds", prefill},
                                   {"peak_memory_bytes", static_cast<double>(peak_resident_bytes())}}};
                };
              });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Prefill and decoding", gantrain::bench::define);
}
