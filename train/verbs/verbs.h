// What the program's verbs do, behind the command line: options in, exit code out. Errors are thrown.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/communicator.h"
#include "core/device.h"
#include "train/config.h"

namespace gantrain {

struct DeviceChoice {
  DeviceKind kind = DeviceKind::kCpu;
  int threads = 0;  // of the CPU; 0: one a core
  Gemm gemm = Gemm::kDefault;
  int index = 0;  // which GPU of the machine
};
// Makes such a device. The composition root provides it.
using DeviceFactory = std::function<std::unique_ptr<Device>(const DeviceChoice&)>;
// What the ranks' devices sum gradients with, given what connects their hosts.
using CommunicatorFactory =
    std::function<std::unique_ptr<Communicator>(Device&, std::unique_ptr<HostCommunicator>)>;

struct TrainOptions {
  std::string config_file;             // TOML, may be empty
  std::vector<std::string> overrides;  // "section.key=value"
  bool dry_run =
      false;  // print the resolved configuration, the data's report and the memory plan; train nothing
  bool resume = false;               // continue the run in `output` from its latest checkpoint
  bool graphs = true;                // false: no CUDA graphs; the bits are the same
  bool allow_config_change = false;  // with resume: under another configuration than it was started with
  int ranks = 0;                     // that many processes on this machine; 0: as the environment says
  int64_t profile_begin = -1, profile_end = -1;  // steps [begin, end) are recorded by a profiler; -1: none
  std::string untrained;  // a folder where runs leave and find what the base does at their end; "": none
};
// With several ranks (train/communicator/ranks.h) this process is one of them.
int run_train(const TrainOptions& options, const DeviceFactory& devices,
              const CommunicatorFactory& communicators);

// Answers compete for each that is given, by the run's discriminator.
struct ChoosingOptions {
  int64_t best_of = 1;
  double temperature = 0;  // 0: the one with the highest score; T: with odds exp(score / T)
};

struct EvalOptions {
  std::string run;                     // a run folder or a checkpoint file
  std::vector<std::string> overrides;  // over the run's own configuration
  std::string split = "test";          // test, valid or train
  std::vector<double> temperatures;    // empty: eval.temperatures of the run
  int64_t max_items = -1;              // -1: eval.max_items of the run; 0: all
  std::string drift_file;              // a text: loss on it with the prompt on and off
  std::string json_file;               // the results as JSON; "-": standard output instead of the table
  bool generate = true;                // texts and their scores; else loss and label likelihood only
  std::vector<std::string> arms = {"none", "warm", "trained"};
  int64_t judges = 0;          // fresh judges an arm and temperature; 0: none
  int64_t judge_pairs = 2000;  // held-out pairs of a reference and an answer that they are asked about
  std::vector<std::string> judged = {"none", "warm", "trained"};  // of the arms
  std::vector<std::string> judge_reads = {"tokens"};              // tokens, features: judges for each
  ChoosingOptions choosing;                                       // of what is scored and judged
};
int run_eval(const EvalOptions& options, const DeviceFactory& devices);

struct CompareOptions {
  std::string config_file;             // TOML, may be empty: what all arms share
  std::vector<std::string> overrides;  // "section.key=value"
  std::vector<std::string> methods;    // as train/verbs/compare.h reads them
  std::vector<std::string> arms;       // "NAME: METHOD KEY=VALUE ..."
  std::vector<int64_t> seeds;
  double seconds = 0;  // > 0: also at equal wall clock, this long a run
  int64_t jobs = 1;    // runs side by side
  int64_t judges = 0, judge_pairs = 2000;
  std::vector<std::string> judge_reads = {"tokens"};
  std::string drift_file;  // a text: what training forgets of it
  bool dry_run = false;    // list the runs and their commands
  std::string command;     // the command line as it was given, for the report
  std::string version;
};
// Trains and measures every arm with every seed, each in a process of its own; writes tables into `output`.
int run_compare(const CompareOptions& options);

struct GenerateOptions {
  std::string model;       // needed without a run
  std::string checkpoint;  // a run folder or checkpoint file, may be empty: the base model
  std::string adapter;     // a PEFT folder in its place, may be empty
  std::vector<std::string> prompts;
  std::string input_file;  // one prompt a line; "-": standard input
  bool raw = false;        // with a run: the texts are whole prompts, its prompt_template is left out
  int64_t max_new = 64, samples = 1;
  double temperature = 1.0, top_p = 1.0;
  int64_t top_k = 0;
  int64_t seed = 1;
  ChoosingOptions choosing;  // with a run
  bool json = false;
  std::string chat_template = "none";  // none, auto, chatml, llama2, llama3: each prompt is a user's turn
  std::string system;
  BasePacking packing = BasePacking::kAuto;  // a run's own, else kNone
  DTypeChoice dtype = DTypeChoice::kAuto;
  DeviceChoice device;
};
int run_generate(const GenerateOptions& options, const DeviceFactory& devices);

struct ExportOptions {
  std::string run;              // a run folder or a checkpoint file
  std::string model;            // when it has moved since the training
  std::string format = "peft";  // peft, merged or gguf-lora
  std::string output;           // a folder; gguf-lora: a file
  std::string weights = "f32";  // merged: f32 or bf16
  std::string prompt;           // a generator that reads its input: the input whose prompt is written
  std::string input_file;       // the same for each line, into OUTPUT/1, OUTPUT/2, ...
  int64_t seed = 1;             // of the generator's noise
  bool verify = false;          // read what was written and hold its logits against the run's
  DeviceChoice device;
};
int run_export(const ExportOptions& options, const DeviceFactory& devices);

struct ProbeOptions {
  std::string model, input, output, adapter;
  BasePacking packing = BasePacking::kAuto;
  bool weights = false;
  DTypeChoice dtype = DTypeChoice::kF32;
  DeviceChoice device;
};
int run_probe(const ProbeOptions& options, const DeviceFactory& devices);

}  // namespace gantrain
