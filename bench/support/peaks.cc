// What this machine's processors reach, measured: the yardstick of the shares in every CPU table.
#include <omp.h>

#include <atomic>
#include <chrono>
#include <oneapi/dnnl/dnnl.hpp>
#include <thread>
#include <vector>

#include "bench/timer.h"
#include "core/dtype.h"
#include "cpu/matmul.h"

namespace gantrain::bench {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Calls work(thread) on all threads over and over for `seconds`; returns the most rounds a second that all
// threads together reached in one of five windows of that time.
double best_rate(int threads, double seconds, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> stop{false};
  std::vector<std::atomic<int64_t>> rounds(static_cast<size_t>(threads));
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t)
    running.emplace_back([&, t] {
      omp_set_num_threads(1);
      work(t);  // first use: pages, and the kernel that oneDNN writes
      ++ready;
      while (!stop) {
        work(t);
        rounds[static_cast<size_t>(t)].fetch_add(1, std::memory_order_relaxed);
      }
    });
  while (ready < threads) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto count = [&] {
    int64_t sum = 0;
    for (const auto& r : rounds) sum += r.load(std::memory_order_relaxed);
    return sum;
  };
  double best = 0;
  for (int window = 0; window < 5; ++window) {
    const double begin = now();
    const int64_t before = count();
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds / 5));
    const double rate = static_cast<double>(count() - before) / (now() - begin);
    best = rate > best ? rate : best;
  }
  stop = true;
  for (std::thread& t : running) t.join();
  return best;
}

double product_rate(int threads, double seconds, DType dtype) {
  using namespace dnnl;
  constexpr int64_t kSize = 512;  // 1 to 3 MB of operands a thread: they stay in its second-level cache
  const engine cpu(engine::kind::cpu, 0);
  const auto type = dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
  const memory::desc in({kSize, kSize}, type, memory::format_tag::any),
      plain({kSize, kSize}, type, memory::format_tag::ab),
      out({kSize, kSize}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(plain, in, out),
                                        cpu);  // the right side as oneDNN likes it
  struct Operands {
    memory a, b, c;
    stream s;
  };
  std::vector<Operands> operands;
  for (int t = 0; t < threads; ++t) {
    operands.push_back({memory(pd.src_desc(), cpu), memory(pd.weights_desc(), cpu),
                        memory(pd.dst_desc(), cpu), stream(cpu)});
    // Values between 1 and 2: the bytes of a packed format mean the same in any order.
    for (const memory& m : {operands.back().a, operands.back().b}) {
      const size_t size = dtype == DType::kF32 ? 4 : 2, n = m.get_desc().get_size() / size;
      for (size_t i = 0; i < n; ++i) {
        const float value = 1.0f + static_cast<float>(i * 2654435761u % 1024) / 1024.0f;
        if (dtype == DType::kF32)
          static_cast<float*>(m.get_data_handle())[i] = value;
        else
          static_cast<bf16*>(m.get_data_handle())[i] = bf16(value);
      }
    }
  }
  const dnnl::matmul product(pd);
  const double rounds = best_rate(threads, seconds, [&](int t) {
    Operands& o = operands[static_cast<size_t>(t)];
    product.execute(o.s, {{DNNL_ARG_SRC, o.a}, {DNNL_ARG_WEIGHTS, o.b}, {DNNL_ARG_DST, o.c}});
    o.s.wait();
  });
  return rounds * 2.0 * kSize * kSize * kSize;
}

double read_rate(int threads, double seconds) {
  constexpr size_t kFloats = size_t{24} << 20,
                   kPiece = size_t{1} << 18;  // 96 MiB a thread, read 1 MiB at a time
  std::vector<std::vector<float>> arrays(static_cast<size_t>(threads));
  std::vector<size_t> at(static_cast<size_t>(threads), 0);
  std::vector<std::array<float, 16>> sums(static_cast<size_t>(threads));
  std::vector<std::thread> fill;
  for (auto& a : arrays) fill.emplace_back([&a] { a.assign(kFloats, 1.5f); });
  for (std::thread& t : fill) t.join();
  const double rounds = best_rate(threads, seconds, [&](int thread) {
    const size_t t = static_cast<size_t>(thread);
    const float* p = arrays[t].data() + at[t];
    std::array<float, 16> sum{};
    for (size_t i = 0; i < kPiece; i += 16)
      for (size_t j = 0; j < 16; ++j) sum[j] += p[i + j];
    sums[t] = sum;
    at[t] = (at[t] + kPiece) % kFloats;
  });
  return rounds * static_cast<double>(kPiece) * 4;
}

}  // namespace

Peaks measure_cpu_peaks(int threads, double seconds) {
  Peaks peaks;
  if (seconds <= 0) {
    peaks.source = "not measured";
    return peaks;
  }
  peaks.source = "measured at start: oneDNN products of 512 x 512 matrices, a sum over 96 MiB a thread";
  peaks.flops_f32 = product_rate(threads, seconds, DType::kF32);
  // Without the instructions bf16 products are emulated: they are held against what f32 reaches.
  peaks.flops_bf16 = cpu_has_bf16() ? product_rate(threads, seconds, DType::kBF16) : peaks.flops_f32;
  peaks.bandwidth = read_rate(threads, seconds);
  return peaks;
}

}  // namespace gantrain::bench
