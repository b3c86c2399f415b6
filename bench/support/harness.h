// What every benchmark executable is made of: axes on the command line, random operands, counters, tables.
//
// An executable names its cases with Suite::op and calls run_suite. A case is prepared once a point of its
// axes and then called as often as Google Benchmark likes. On the software GPU nothing is timed: every case
// runs once, and the tables hold its counts.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/timer.h"
#include "core/buffer.h"
#include "core/ops.h"
#include "model/config.h"

namespace gantrain::bench {

// Whole numbers from "8", "1,8,64", "128:1024:128" (steps of 128, both ends) or "1:64:x2" (times 2).
std::vector<int64_t> parse_list(const std::string& text, const std::string& where);

// A Llama's shape by name: smollm2-135m, llama-3.2-1b, llama-3-8b, stories260k.
LlamaConfig named_shape(const std::string& name);
std::vector<std::string> shape_names();
std::string shape_list();  // the names with commas

// What a case is prepared for.
struct Point {
  std::string model;
  LlamaConfig config;  // of the model, with the axes laid over it
  DType dtype = DType::kF32;
  std::map<std::string, int64_t> axes;
  int64_t at(const std::string& axis) const;
};

// Operands in device memory, all of them random: products of zeros are faster than products of numbers on
// some machines. Values are taken from 65,537 draws of a generator, so that gigabytes are filled in seconds.
class Memory {
 public:
  explicit Memory(Device& device) : device_(device) {}
  Device& device() { return device_; }
  Tensor normal(Shape shape, DType dtype = DType::kF32, float scale = 1.0f);
  Tensor positive(Shape shape);                         // between 1/2 and 3/2
  Tensor ints(Shape shape, int32_t low, int32_t high);  // low .. high - 1
  Tensor ints(const std::vector<int32_t>& values);
  Tensor longs(Shape shape);
  Tensor floats(Shape shape, float value);  // settings that are the same in every row
  const FrozenMatrix* frozen(int64_t rows, int64_t cols, DType dtype);
  Tensor scratch(int64_t bytes);
  const AttentionPlan* plan(AttentionPlan plan);

 private:
  Tensor keep(OwnedTensor t);
  Device& device_;
  std::deque<OwnedTensor> tensors_;
  std::deque<std::unique_ptr<const FrozenMatrix>> matrices_;
  std::deque<AttentionPlan> plans_;
  uint64_t next_ = 0;  // where in the draws the next operand begins
};

// One prepared case.
struct Call {
  std::function<void()> run;
  int64_t bytes = 0, flops = 0;  // FUNCTION_bytes and FUNCTION_flops; 0: the op has none
};

// What a step or a generation did, beside its time.
struct Measured {
  double seconds = 0;
  std::map<std::string, double> counters;  // means over the iterations of a case
};
// A case that times itself: called once an iteration.
using Timed = std::function<Measured()>;

// Thrown where a case cannot be run here: its row says why, and the program does not fail.
class Skipped : public Error {
 public:
  explicit Skipped(const std::string& why) : Error("skipped: " + why, ErrorKind::kUsage) {}
};

class Suite {
 public:
  using Axes = std::map<std::string, std::vector<int64_t>>;
  // A case for each point of model x dtype x axes (defaults, which the command line replaces). `typed` false:
  // f32 alone.
  void op(const std::string& name, Axes axes, bool typed, std::function<Call(const Point&, Memory&)> prepare);
  // The same for work that times itself; it runs `iterations` times a repetition.
  using TimedFactory = std::function<Timed(const Point&, Device&)>;
  void timed(const std::string& name, Axes axes, TimedFactory prepare);

  struct Entry {
    std::string name;
    Axes axes;
    bool typed = true;
    std::function<Call(const Point&, Memory&)> prepare;
    TimedFactory prepare_timed;
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

// Options of one executable beside those that all have: name -> (help, default); the values are read after
// parsing.
struct ExtraOptions {
  std::map<std::string, std::pair<std::string, std::string*>> options;
};

// A whole benchmark program: parses, runs, writes. `define` is called after parsing. Returns the exit code.
int run_suite(int argc, char** argv, const std::string& title, const std::function<void(Suite&)>& define,
              const ExtraOptions& extra = {});

// The most memory this process has held since the last reset, and forgetting it (both by /proc, Linux).
int64_t peak_resident_bytes();
void reset_peak_resident();

}  // namespace gantrain::bench
