#include <benchmark/benchmark.h>
#include <gantrain_commit.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>

#include "bench/support/devices.h"
#include "bench/support/harness.h"
#include "bench/support/random_llama.h"
#include "bench/support/table.h"
#include "model/weights.h"

namespace gantrain::bench {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string device = "cpu", dtypes, models = "smollm2-135m", json, csv, markdown, filter;
  std::vector<std::string> axes;
  int threads = 0;
  int64_t iterations = 3;
  double probe_seconds = 0.5;
  bool list = false;
};

// The shape's own extents may be axes as well.
int64_t* extent(LlamaConfig& c, const std::string& axis) {
  const std::pair<const char*, int64_t*> extents[] = {
      {"hidden", &c.hidden_size}, {"intermediate", &c.intermediate_size}, {"layers", &c.num_layers},
      {"heads", &c.num_heads},    {"kv_heads", &c.num_kv_heads},          {"head_dim", &c.head_dim},
      {"vocab", &c.vocab_size}};
  for (const auto& [name, value] : extents)
    if (axis == name) return value;
  return nullptr;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

struct Case {
  const Suite::Entry* entry;
  Point point;
  std::string name;
};

std::vector<Case> expand(const Suite& suite, const std::vector<std::string>& models,
                         const std::vector<DType>& dtypes, const Suite::Axes& given) {
  std::map<std::string, bool> used;
  for (const auto& [axis, values] : given) used[axis] = false;
  std::vector<Case> cases;
  for (const Suite::Entry& e : suite.entries())
    for (const std::string& model : models) {
      LlamaConfig config =
          fs::exists(model) ? LlamaConfig(open_weights(model)->config()) : named_shape(model);
      Suite::Axes axes = e.axes;
      for (const auto& [axis, values] : given)
        if (axes.contains(axis) || extent(config, axis)) {
          axes[axis] = values;
          used[axis] = true;
        }
      for (const DType dtype : dtypes) {
        if (!e.typed && dtype != dtypes.front()) continue;
        std::vector<Point> points{{model, config, e.typed ? dtype : DType::kF32, {}}};
        for (const auto& [axis, values] : axes) {
          std::vector<Point> more;
          for (const Point& p : points)
            for (const int64_t v : values) {
              more.push_back(p);
              more.back().axes[axis] = v;
              if (int64_t* x = extent(more.back().config, axis)) *x = v;
            }
          points = std::move(more);
        }
        for (Point& p : points) {
          std::string name =
              e.name + "/model:" + fs::path(model).filename().string() + "/dtype:" + dtype_name(p.dtype);
          for (const auto& [axis, value] : p.axes) name += fmt::format("/{}:{}", axis, value);
          cases.push_back({&e, std::move(p), std::move(name)});
        }
      }
    }
  for (const auto& [axis, seen] : used)
    if (!seen) {
      std::map<std::string, bool> known;
      for (const Suite::Entry& e : suite.entries())
        for (const auto& [name, values] : e.axes) known[name] = true;
      std::string names;
      for (const auto& [name, yes] : known) names += name + ", ";
      fail_usage(
          "--axis: no case has an axis '{}'; there are {}and the shape's hidden, intermediate, layers, "
          "heads, "
          "kv_heads, head_dim, vocab",
          axis, names);
    }
  return cases;
}

// The case that is in memory: one at a time, kept over the calls that Google Benchmark needs for one result.
class Prepared {
 public:
  explicit Prepared(Device& device) : device_(device) {}
  Call& call(const Case& c) {
    load(c);
    return call_;
  }
  Timed& timed(const Case& c) {
    load(c);
    return timed_;
  }

 private:
  void load(const Case& c) {
    if (name_ == c.name) return;
    name_.clear();
    call_ = Call();
    timed_ = nullptr;
    memory_.reset();
    reset_peak_resident();
    if (c.entry->prepare) {
      memory_.emplace(device_);
      call_ = c.entry->prepare(c.point, *memory_);
    } else {
      timed_ = c.entry->prepare_timed(c.point, device_);
    }
    name_ = c.name;
  }
  Device& device_;
  std::string name_;
  std::optional<Memory> memory_;
  Call call_;
  Timed timed_;
};

// Shows results as they come, and keeps them for the tables.
class Collector final : public benchmark::ConsoleReporter {
 public:
  Collector() : ConsoleReporter(OO_Tabular) {}
  benchmark::BenchmarkReporter* file = nullptr;  // JSON, or none
  std::vector<Row> rows;
  bool failed = false;

  bool ReportContext(const Context& context) override {
    if (file) file->ReportContext(context);
    return ConsoleReporter::ReportContext(context);
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    if (file) file->ReportRuns(runs);
    for (const Run& r : runs) {
      if (r.run_type != Run::RT_Iteration) continue;
      const std::string name = r.run_name.function_name;
      if (rows.empty() || rows.back().name != name) rows.push_back({name, {}, {}, {}});
      Row& row = rows.back();
      if (r.error_occurred) {
        row.error = r.error_message;
        failed |= !row.error.starts_with("skipped: ");
        continue;
      }
      row.seconds.push_back(r.real_accumulated_time / static_cast<double>(r.iterations));
      for (const auto& [counter, value] : r.counters) row.counters[counter].push_back(value.value);
    }
  }
  void Finalize() override {
    ConsoleReporter::Finalize();
    if (file) file->Finalize();
  }
};

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  out << text;
  out.flush();
  if (!out) fail("{}: cannot be written", path);
}

int run(int argc, char** argv, const std::string& title, const std::function<void(Suite&)>& define,
        const ExtraOptions& extra) {
  Options o;
  CLI::App app{title};
  app.allow_extras();
  app.footer(fmt::format(
      "LIST is 8, or 1,8,64, or 128:1024:128 (a step), or 1:64:x2 (a factor).\nShapes: {}; or a model file.\n"
      "All options of Google Benchmark are taken as well: --benchmark_filter=REGEX, "
      "--benchmark_repetitions=N,\n"
      "--benchmark_min_time=SECONDS, ...",
      shape_list()));
  app.add_option("--device", o.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "CPU threads; 0: one a core")->capture_default_str();
  app.add_option("--model", o.models, "shapes, with commas; all: every one")->capture_default_str();
  app.add_option("--dtype", o.dtypes, "f32, bf16 or both with a comma (default: both)");
  app.add_option("--axis", o.axes, "NAME=LIST: the values of an axis, in the place of its defaults");
  app.add_option("--json", o.json, "results as Google Benchmark's JSON, for tools/bench_compare");
  app.add_option("--csv", o.csv, "results as CSV, a line a repetition");
  app.add_option("--markdown", o.markdown, "results as a Markdown table of medians");
  app.add_option("--iterations", o.iterations, "of a case that times itself: whole steps, generations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--probe-seconds", o.probe_seconds,
                 "time for measuring what the CPU reaches, before anything else; 0: no shares")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--list", o.list, "print the cases' names and run none");
  for (const auto& [name, option] : extra.options)
    app.add_option(name, *option.second, option.first)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    throw Error(e.what(), ErrorKind::kUsage);
  }
  std::vector<std::string> rest = app.remaining();
  rest.insert(rest.begin(), argv[0]);
  std::vector<char*> pointers;
  for (std::string& r : rest) {
    if (r.starts_with("--benchmark_filter=")) o.filter = r.substr(19);
    pointers.push_back(r.data());
  }
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (count > 1)
    fail_usage("unknown option {}; see {} --help", pointers[1], fs::path(argv[0]).filename().string());

  std::vector<DType> dtypes;
  for (const std::string& d : words(o.dtypes.empty() ? "f32,bf16" : o.dtypes)) {
    if (d != "f32" && d != "bf16") fail_usage("--dtype: '{}', expected f32 or bf16", d);
    dtypes.push_back(d == "f32" ? DType::kF32 : DType::kBF16);
  }
  Suite::Axes axes;
  for (const std::string& a : o.axes) {
    const size_t equals = a.find('=');
    if (equals == std::string::npos || equals == 0) fail_usage("--axis: '{}', expected NAME=LIST", a);
    axes[a.substr(0, equals)] = parse_list(a.substr(equals + 1), "--axis " + a);
  }
  Suite suite;
  define(suite);
  const std::vector<Case> cases =
      expand(suite, o.models == "all" ? shape_names() : words(o.models), dtypes, axes);
  if (o.list) {
    for (const Case& c : cases) fmt::print("{}\n", c.name);
    return 0;
  }

  const std::unique_ptr<Device> device =
      make_device(o.device == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu, o.threads);
  const bool cuda = device->kind() == DeviceKind::kCuda, timed = !is_software_gpu(*device);
  Peaks peaks;
  if (!cuda)
    peaks = measure_cpu_peaks(thread_count(o.threads), o.probe_seconds);
  else if (timed)
    peaks = cuda_peaks();
  std::string command = fs::path(argv[0]).filename().string();
  for (int i = 1; i < argc; ++i) command.append(" ").append(argv[i]);
  Facts facts{{"commit", GANTRAIN_COMMIT},
              {"compiler", GANTRAIN_COMPILER},
              {"build", GANTRAIN_BUILD},
              {"device", device->description()},
              {"threads", std::to_string(thread_count(o.threads))},
              {"command", command}};
  if (timed && peaks.bandwidth > 0)
    facts.insert(facts.end(), {{"peak_f32", fmt::format("{:.1f} GFLOP/s", peaks.flops_f32 * 1e-9)},
                               {"peak_bf16", fmt::format("{:.1f} GFLOP/s", peaks.flops_bf16 * 1e-9)},
                               {"peak_bandwidth", fmt::format("{:.1f} GB/s", peaks.bandwidth * 1e-9)},
                               {"peaks", peaks.source}});
  if (!timed)
    facts.emplace_back("times", "predicted/none: the software GPU has counts, its times mean nothing");

  struct CloseModel {
    ~CloseModel() { close_bench_model(); }
  } close_model;
  Prepared prepared(*device);
  std::vector<Row> rows;
  bool failed = false;
  if (!timed) {
    // Google Benchmark would time it. Every case that the filter takes runs once.
    const std::regex filter(o.filter.empty() || o.filter == "all" ? "." : o.filter);
    for (const Case& c : cases) {
      if (!std::regex_search(c.name, filter)) continue;
      Row row{c.name, {}, {}, {}};
      try {
        if (c.entry->prepare) {
          Call& call = prepared.call(c);
          call.run();
          device->synchronize();
          row.counters["bytes"] = {static_cast<double>(call.bytes)};
          if (call.flops > 0) row.counters["flops"] = {static_cast<double>(call.flops)};
        } else {
          // What a case that times itself has counted; nothing of it that is a time or a rate.
          for (const auto& [name, value] : prepared.timed(c)().counters)
            if (!name.ends_with("_seconds") && !name.ends_with("/s")) row.counters[name] = {value};
        }
      } catch (const Skipped& e) {
        row.error = e.what();
      } catch (const Error& e) {
        row.error = e.what();
        failed = true;
      }
      rows.push_back(std::move(row));
    }
    std::cout << to_markdown(title, facts, rows, false);
    if (!o.json.empty()) write_file(o.json, to_count_json(facts, rows));
  } else {
    for (const auto& [name, value] : facts) benchmark::AddCustomContext(name, value);
    std::unique_ptr<CudaTimer> timer;
    if (cuda) timer = make_cuda_timer(*device);
    for (const Case& c : cases) {
      auto* b = benchmark::RegisterBenchmark(c.name.c_str(), [&](benchmark::State& state) {
        try {
          if (!c.entry->prepare) {
            std::map<std::string, double> sums;
            double n = 0;
            for (auto _ : state) {
              const Measured m = prepared.timed(c)();
              state.SetIterationTime(m.seconds);
              for (const auto& [name, value] : m.counters) sums[name] += value;
              ++n;
            }
            for (const auto& [name, sum] : sums) state.counters[name] = sum / n;
            return;
          }
          Call& call = prepared.call(c);
          call.run();  // pages, and kernels written on first use
          device->synchronize();
          double seconds = 0;
          if (timer) {
            for (auto _ : state) {
              const double once = timer->seconds(call.run);
              state.SetIterationTime(once);
              seconds += once;
            }
          } else {
            const auto begin = std::chrono::steady_clock::now();
            for (auto _ : state) call.run();
            seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
          }
          const double bytes = static_cast<double>(call.bytes), flops = static_cast<double>(call.flops);
          const double calls_a_second = static_cast<double>(state.iterations()) / seconds;
          const auto count = [&](const char* name, const char* rate, const char* share, double n,
                                 double peak) {
            state.counters[name] = n;
            state.counters[rate] = n * calls_a_second;
            if (peak > 0) state.counters[share] = n * calls_a_second / peak;
          };
          count("bytes", "bytes/s", "bandwidth_share", bytes, peaks.bandwidth);
          if (flops > 0) count("flops", "flops/s", "flops_share", flops, peaks.flops(c.point.dtype));
        } catch (const std::exception& e) {
          state.SkipWithError(e.what());
        }
      });
      if (!c.entry->prepare)
        b->Iterations(o.iterations)->UseManualTime()->Unit(benchmark::kMillisecond);
      else if (timer)
        b->UseManualTime()->Unit(benchmark::kMicrosecond);
      else
        b->UseRealTime()->Unit(benchmark::kMicrosecond);
    }
    Collector collector;
    benchmark::JSONReporter json;
    std::ofstream json_file;
    if (!o.json.empty()) {
      json_file.open(o.json);
      json.SetOutputStream(&json_file);
      json.SetErrorStream(&std::cerr);
      collector.file = &json;
    }
    benchmark::RunSpecifiedBenchmarks(&collector);
    if (!o.json.empty()) {
      json_file.flush();
      if (!json_file) fail("{}: cannot be written", o.json);
    }
    rows = std::move(collector.rows);
    failed = collector.failed;
  }
  if (rows.empty()) fail_usage("no case fits --benchmark_filter={}; --list names them", o.filter);
  if (!o.csv.empty()) write_file(o.csv, to_csv(rows, timed));
  if (!o.markdown.empty()) write_file(o.markdown, to_markdown(title, facts, rows, timed));
  return failed ? 1 : 0;
}

}  // namespace

void Suite::op(const std::string& name, Axes axes, bool typed,
               std::function<Call(const Point&, Memory&)> prepare) {
  entries_.push_back({name, std::move(axes), typed, std::move(prepare), nullptr});
}
void Suite::timed(const std::string& name, Axes axes, TimedFactory prepare) {
  entries_.push_back({name, std::move(axes), true, nullptr, std::move(prepare)});
}

int run_suite(int argc, char** argv, const std::string& title, const std::function<void(Suite&)>& define,
              const ExtraOptions& extra) {
  try {
    return run(argc, argv, title, define, extra);
  } catch (const Error& e) {
    std::cerr << fs::path(argv[0]).filename().string() << ": error: " << e.what() << "\n";
    return e.exit_code();
  } catch (const std::exception& e) {
    std::cerr << fs::path(argv[0]).filename().string() << ": error: " << e.what() << "\n";
    return 1;
  }
}

}  // namespace gantrain::bench
