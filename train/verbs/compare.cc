// gantrain compare: the runs, one process each, and what is written about them.
//
//   OUTPUT/jobs/BUDGET/ARM/seed-N.toml    the resolved configuration that the run is started with
//   OUTPUT/runs/BUDGET/ARM/seed-N/        its run folder, with log.txt and eval.json besides
//   OUTPUT/untrained/                     what the model does without training, for its runs to share
//   OUTPUT/results.{md,csv,json}, OUTPUT/peft/ARM--seed-N.json, OUTPUT/report.html
#include "train/verbs/compare.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>

#include "core/check.h"
#include "train/checkpoint/checkpoint.h"
#include "train/log/progress.h"
#include "train/text.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMostText = int64_t{256} << 20;
volatile std::sig_atomic_t g_signal = 0;
void on_signal(int signal) { g_signal = signal; }

struct Budget {
  std::string name, title;  // "tokens", "seconds"; "none": of arms that train nothing
};

struct Job {
  ComparedArm arm;
  std::string budget;
  int64_t seed = 1;
  TrainConfig config;
  fs::path file, folder;
  // Filled in when it ran.
  std::string status = "waiting", reason;  // waiting, done, collapsed, failed
  double seconds = 0;                      // of both its processes, this time
};

json read_json(const fs::path& file) {
  try {
    return json::parse(read_text_file(file, kMostText));
  } catch (const json::exception& error) {
    fail("{}: not the JSON that gantrain writes ({}); remove the file and run the command again",
         file.string(), error.what());
  }
}

void write_text(const fs::path& file, const std::string& text) {
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  if (error) fail("{}: cannot make the folder: {}", file.parent_path().string(), error.message());
  write_file_atomically(file.string(), {{text.data(), text.size()}});
}

// A child that runs this very program. Its output is added to `log`. In a process group of its own, so that
// Ctrl-C reaches it once, through us; it is stopped with us, however we end.
pid_t start(const std::vector<std::string>& words, const fs::path& log) {
  std::vector<std::string> all{"gantrain"};
  all.insert(all.end(), words.begin(), words.end());
  std::vector<char*> argv;
  for (std::string& word : all) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (out < 0) fail("{}: cannot be written: {}", log.string(), std::strerror(errno));
  const pid_t parent = ::getpid(), child = ::fork();
  if (child < 0) {
    const int error = errno;
    ::close(out);
    fail("a process for a run cannot be started: {}", std::strerror(error));
  }
  if (child == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    ::execv("/proc/self/exe", argv.data());
    ::_exit(127);
  }
  ::close(out);
  return child;
}

// The program's own words about its failure, or the end of its log.
std::string last_error(const fs::path& log) {
  std::string text;
  try {
    text = read_text_file(log, kMostText);
  } catch (const Error&) {
    return "its log cannot be read";
  }
  const size_t at = text.rfind("gantrain: error: ");
  std::string line = at == std::string::npos ? text.substr(text.size() - std::min<size_t>(text.size(), 200))
                                             : text.substr(at + 17, text.find('\n', at) - at - 17);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line.empty() ? "it said nothing" : line;
}

std::vector<std::string> train_words(const Job& job, const fs::path& output) {
  std::vector<std::string> words{"train", "--untrained", (output / "untrained").string()};
  if (fs::exists(job.folder / "checkpoints" / "latest"))
    words.insert(words.end(), {"--resume", "output=" + job.folder.string()});
  else
    words.push_back(job.file.string());
  return words;
}
std::vector<std::string> eval_words(const Job& job, const CompareOptions& options) {
  std::vector<std::string> words{"eval",
                                 "--run",
                                 (job.folder / "checkpoints" / "latest").string(),
                                 "--json",
                                 (job.folder / "eval.json").string(),
                                 "--arms",
                                 options.drift_file.empty() ? "trained" : "none,trained"};
  if (options.judges > 0)
    // As many different inputs as there are: few of them with many answers each are no held-out pairs.
    words.insert(words.end(), {"--judges", fmt::format("{}", options.judges), "--judge-pairs",
                               fmt::format("{}", options.judge_pairs), "--judge-arms", "trained",
                               "--max-items", "0", "--judge-reads", join(options.judge_reads, ",")});
  if (!options.drift_file.empty()) words.insert(words.end(), {"--drift", options.drift_file});
  if (job.config.data.test.empty() && job.config.data.test_fraction == 0)
    words.insert(words.end(), {"--split", "valid"});
  return words;
}
bool wants_eval(const CompareOptions& options) { return options.judges > 0 || !options.drift_file.empty(); }
// What an eval.json was made with: another question asks for another answer.
std::string eval_question(const CompareOptions& options) {
  return fmt::format("judges {} pairs {} read {} drift {} of all items", options.judges, options.judge_pairs,
                     join(options.judge_reads, ","), options.drift_file);
}

bool trained(const Job& job) { return fs::exists(job.folder / "summary.json"); }
bool measured(const Job& job, const CompareOptions& options) {
  if (!wants_eval(options)) return true;
  if (!fs::exists(job.folder / "eval.json") || !fs::exists(job.folder / "eval.question")) return false;
  return read_text_file(job.folder / "eval.question", kMostText) == eval_question(options);
}

class Comparison {
 public:
  explicit Comparison(const CompareOptions& options) : options_(options) {}

  int run() {
    std::vector<ComparedArm> arms;
    for (const std::string& method : options_.methods) arms.push_back(parse_method(method));
    for (const std::string& arm : options_.arms) arms.push_back(parse_arm(arm));
    for (size_t i = 0; i < arms.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (arms[i].name == arms[j].name)
          fail_usage("compare: two arms are called '{}'; give one of them a name of its own with --arm",
                     arms[i].name);
    base_ = load_train_config(options_.config_file, options_.overrides);
    if (base_.output.empty()) fail_usage("no folder for the comparison: --output FOLDER");
    if (base_.data.train.empty()) fail_usage("no training data: set data.train");
    output_ = base_.output;
    for (const ComparedArm& arm : arms)
      for (const int64_t seed : options_.seeds)
        jobs_.push_back(make_job(arm, arm.trains ? "tokens" : "none", seed, {}));
    average_all();
    if (!averaged_.empty()) fmt::print(stderr, "{}\n", averaged_text(averaged_));
    if (options_.dry_run) {
      for (const Job& job : jobs_) {
        fmt::print("{}\n", shell_line({"train", job.file.string()}));
        if (wants_eval(options_)) fmt::print("{}\n", shell_line(eval_words(job, options_)));
      }
      if (options_.seconds > 0)
        fmt::print(stderr, "and each arm that trains once more, with the steps that fit into {} s\n",
                   options_.seconds);
      return 0;
    }
    for (const Job& job : jobs_) prepare(job);
    const Signals signals;
    int code = run_from(0);
    if (code == 0 && options_.seconds > 0) {
      const size_t at_equal_tokens = jobs_.size();
      for (size_t i = 0; i < at_equal_tokens; ++i)
        if (jobs_[i].arm.trains && jobs_[i].status != "failed") jobs_.push_back(timed_job(jobs_[i]));
      for (size_t i = at_equal_tokens; i < jobs_.size(); ++i) prepare(jobs_[i]);
      code = run_from(at_equal_tokens);
    }
    fmt::print("{}", write());
    fmt::print(stderr, "\nwritten: {}/results.md, .csv, .json and peft/\n", output_.string());
    if (code != 0) {
      fmt::print(stderr, "stopped; the same command goes on from here\n");
      return code;
    }
    report();
    const auto failed =
        std::count_if(jobs_.begin(), jobs_.end(), [](const Job& j) { return j.status == "failed"; });
    if (failed > 0) {
      fmt::print(stderr,
                 "{} of {} runs failed; see the end of {}, and run the command again to try once more\n",
                 failed, jobs_.size(), (output_ / "results.md").string());
      return 1;
    }
    return 0;
  }

 private:
  struct Signals {
    struct sigaction before[2];
    static constexpr int kSignals[2] = {SIGINT, SIGTERM};
    Signals() {
      g_signal = 0;
      for (int i = 0; i < 2; ++i) {
        struct sigaction action {};
        action.sa_handler = on_signal;  // without SA_RESTART: waiting ends
        ::sigaction(kSignals[i], &action, &before[i]);
      }
    }
    ~Signals() {
      for (int i = 0; i < 2; ++i) ::sigaction(kSignals[i], &before[i], nullptr);
    }
  };

  Job make_job(const ComparedArm& arm, const std::string& budget, int64_t seed,
               const std::vector<std::string>& more) const {
    Job job;
    job.arm = arm;
    job.budget = budget;
    job.seed = seed;
    const std::string place = fmt::format("{}/{}/seed-{}", budget, arm.name, seed);
    job.file = output_ / "jobs" / (place + ".toml");
    job.folder = output_ / "runs" / place;
    std::vector<std::string> words = arm.settings;
    words.insert(words.end(), more.begin(), more.end());
    words.push_back(fmt::format("seed={}", seed));
    words.push_back("output=" + job.folder.string());
    if (options_.jobs > 1 && base_.threads == 0) {
      const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
      words.push_back(fmt::format("threads={}", std::max<int64_t>(1, cores / options_.jobs)));
    }
    try {
      job.config = load_train_config(options_.config_file, options_.overrides, words);
      if (arm.shots > 0) {
        job.config.data.prompt_template =
            few_shot_template(job.config.data, arm.shots, static_cast<uint64_t>(seed));
        job.config.data.max_prompt_tokens =
            std::min<int64_t>(int64_t{1} << 20, job.config.data.max_prompt_tokens * (arm.shots + 1) +
                                                    job.config.data.max_completion_tokens * arm.shots);
      }
    } catch (const Error& error) {
      throw Error(fmt::format("arm {}: {}", arm.name, error.what()), error.kind());
    }
    return job;
  }

  // An adversarial arm is measured by an average of weights since its warm-up's end. Arms of cross-entropy
  // alone get the same, or the average would pass for the adversary's work.
  void average_all() {
    int64_t from = -1;
    for (const Job& job : jobs_)
      if (job.arm.trains && job.config.loss.kind != LossKind::kCe) {
        const int64_t end = job.config.train.warmup_ce_steps;
        from = from < 0 ? end : std::min(from, end);
      }
    const auto sets = [](const std::vector<std::string>& words) {
      return std::any_of(words.begin(), words.end(),
                         [](const std::string& word) { return word.starts_with("train.average_from="); });
    };
    if (from < 0 || base_.train.average_from >= 0 || sets(options_.overrides)) return;
    for (Job& job : jobs_) {
      if (!job.arm.trains || job.config.loss.kind != LossKind::kCe || sets(job.arm.settings)) continue;
      job.arm.settings.push_back(fmt::format("train.average_from={}", from));
      job = make_job(job.arm, job.budget, job.seed, {});
      averaged_["from"] = from;
      if (job.seed == options_.seeds.front()) averaged_["arms"].push_back(job.arm.name);
    }
  }

  // The same arm with as many steps as fit into the seconds, at the pace of its run at equal tokens; the
  // phases keep their shares.
  Job timed_job(const Job& of) const {
    const json summary = read_json(of.folder / "summary.json");
    const double seconds = summary.at("cost").at("train_seconds");
    const int64_t steps = summary.at("run").at("steps");
    const double factor = options_.seconds / std::max(seconds, 1e-6);
    const auto scaled = [&](int64_t n) {
      return std::max<int64_t>(1, static_cast<int64_t>(std::llround(static_cast<double>(n) * factor)));
    };
    const TrainingConfig& t = of.config.train;
    std::vector<std::string> words{
        fmt::format("train.steps={}", scaled(steps)),
        fmt::format("train.warmup_ce_steps={}", scaled(t.warmup_ce_steps)),
        fmt::format("train.discriminator_steps={}", scaled(t.discriminator_steps))};
    if (t.average_from > 0) words.push_back(fmt::format("train.average_from={}", scaled(t.average_from)));
    return make_job(of.arm, "seconds", of.seed, words);
  }

  // The configuration's file; and what stands in the run's folder must be of the same one.
  void prepare(const Job& job) const {
    const fs::path saved = job.folder / "config.toml";
    if (fs::exists(saved)) {
      const std::vector<std::string> changes = config_changes(load_train_config(saved), job.config);
      if (!changes.empty())
        fail_usage(
            "{}: this run was made with another configuration:\n  {}\nremove {} to run it anew, or take "
            "another "
            "--output",
            saved.string(), join(changes, "\n  "), job.folder.string());
      // Killed before its first checkpoint: nothing to go on from.
      if (!trained(job) && !fs::exists(job.folder / "checkpoints" / "latest")) fs::remove_all(job.folder);
    }
    write_text(job.file, to_toml(job.config));
    fs::create_directories(job.folder);
  }

  // Runs what is not there yet of jobs_ from `first` on, `jobs` at a time, and writes the tables of what is
  // there after each: a comparison that is killed leaves them. 0, or 128 + the signal that stopped it.
  int run_from(size_t first) {
    struct Running {
      Job* job;
      bool evaluates;
      Clock::time_point since;
    };
    std::deque<Job*> waiting;
    std::map<pid_t, Running> running;
    int64_t done = 0;
    for (Job& job : std::span(jobs_).subspan(first)) {
      if (trained(job) && measured(job, options_)) {
        finish(job);
        ++done;
      } else {
        waiting.push_back(&job);
      }
    }
    Progress progress("compare", static_cast<int64_t>(jobs_.size() - first), done);
    if (done > 0) progress.say(fmt::format("{} of {} runs are there already", done, jobs_.size() - first));
    const auto launch = [&](Job& job) {
      const bool evaluates = trained(job);
      const pid_t child =
          start(evaluates ? eval_words(job, options_) : train_words(job, output_), job.folder / "log.txt");
      running[child] = {&job, evaluates, Clock::now()};
    };
    bool told = false;
    while (!running.empty() || (!waiting.empty() && g_signal == 0)) {
      while (g_signal == 0 && !waiting.empty() && static_cast<int64_t>(running.size()) < options_.jobs) {
        launch(*waiting.front());
        waiting.pop_front();
      }
      if (g_signal != 0 && !told) {
        told = true;
        progress.say("stopping: the runs end their steps and save");
        for (const auto& [child, of] : running) ::kill(child, SIGTERM);
      }
      int status = 0;
      const pid_t child = ::waitpid(-1, &status, 0);
      if (child < 0) {
        if (errno == EINTR) continue;
        fail("waiting for the runs failed: {}", std::strerror(errno));
      }
      const auto it = running.find(child);
      if (it == running.end()) continue;
      const Running of = it->second;
      running.erase(it);
      Job& job = *of.job;
      job.seconds += std::chrono::duration<double>(Clock::now() - of.since).count();
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      if (g_signal != 0 && (code != 0 || !trained(job) || !measured(job, options_)))
        continue;  // goes on another day
      if (code != 0) {
        job.status = "failed";
        job.reason = fmt::format("exit code {}: {}", code, last_error(job.folder / "log.txt"));
      } else if (of.evaluates) {
        write_text(job.folder / "eval.question", eval_question(options_));
      }
      if (code == 0 && !measured(job, options_)) {
        launch(job);
        continue;
      }
      if (code == 0) finish(job);
      write();
      progress.say(fmt::format("{}, seed {}: {}{}", job.arm.name, job.seed, job.status,
                               job.reason.empty() ? "" : ": " + job.reason));
      progress.update(++done, fmt::format("{} at equal {}", job.arm.name, job.budget));
    }
    progress.finish();
    return g_signal == 0 ? 0 : 128 + g_signal;
  }

  void finish(Job& job) const {
    job.reason = collapse_of(read_json(job.folder / "summary.json"));
    job.status = job.reason.empty() ? "done" : "collapsed";
  }

  // The tables of the runs that have ended; gives results.md back.
  std::string write() const {
    json runs = json::array();
    for (const Job& job : jobs_) {
      if (job.status == "waiting") continue;
      const bool there = trained(job);
      const json summary = there ? read_json(job.folder / "summary.json") : json::object();
      json eval = json::object();
      if (wants_eval(options_) && fs::exists(job.folder / "eval.json"))
        eval = read_json(job.folder / "eval.json");
      // The evaluation's where there is one: it may have read more items than the run's own end.
      json curve = json::array();
      for (const json* from : {&summary, static_cast<const json*>(&eval)})
        if (from->contains("arms"))
          for (const json& arm : from->at("arms"))
            if (arm.at("arm") == "trained") curve = arm.at("temperatures");
      json figures = json::object();
      for (const auto& [key, value] : run_figures(summary, eval)) figures[key] = value;
      json run{{"budget", job.budget},
               {"arm", job.arm.name},
               {"seed", job.seed},
               {"status", job.status},
               {"reason", job.reason},
               {"settings", job.arm.settings},
               {"command", shell_line({"train", job.file.string()})},
               {"folder", job.folder.string()},
               {"figures", figures},
               {"curve", curve},
               {"version", options_.version},
               {"finished_at", there ? file_time(job.folder / "summary.json") : ""}};
      if (job.seconds > 0) run["total_seconds"] = job.seconds;
      if (wants_eval(options_)) run["eval_command"] = shell_line(eval_words(job, options_));
      write_text(output_ / "peft" /
                     fmt::format("{}{}--seed-{}.json", job.budget == "seconds" ? "seconds--" : "",
                                 job.arm.name, job.seed),
                 peft_result(run, summary, job.config).dump(2) + "\n");
      runs.push_back(std::move(run));
    }
    json budgets = json::array();
    budgets.push_back({{"name", "tokens"}, {"title", "At equal tokens: the same batches, as many steps"}});
    if (options_.seconds > 0)
      budgets.push_back(
          {{"name", "seconds"},
           {"title", fmt::format("At equal wall clock: as many steps as fit into {} s", options_.seconds)}});
    json comparison{{"command", options_.command},   {"version", options_.version},  {"model", base_.model},
                    {"data", base_.data.train},      {"seeds", options_.seeds},      {"budgets", budgets},
                    {"columns", compared_figures()}, {"arms", summarise_runs(runs)}, {"runs", runs}};
    if (!averaged_.empty()) {
      comparison["averaged"] = averaged_;
      comparison["averaged"]["text"] = averaged_text(averaged_);
    }
    const std::string markdown = compare_markdown(comparison);
    write_text(output_ / "results.json",
               comparison.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
    write_text(output_ / "results.csv", compare_csv(comparison));
    write_text(output_ / "results.md", markdown);
    return markdown;
  }

  static std::string file_time(const fs::path& file) {
    struct stat about {};
    if (::stat(file.c_str(), &about) != 0) return "";
    std::tm utc{};
    ::gmtime_r(&about.st_mtime, &utc);
    char text[32];
    return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &utc)};
  }

  // The page with the plots is tools/report's work. It is found beside the sources that the program was built
  // in; without it the tables stand alone.
  void report() const {
    std::error_code error;
    fs::path at = fs::read_symlink("/proc/self/exe", error);
    fs::path tool;
    for (int up = 0; up < 5 && !error && at.has_relative_path(); ++up) {
      at = at.parent_path();
      if (fs::exists(at / "tools" / "report")) {
        tool = at / "tools" / "report";
        break;
      }
    }
    if (tool.empty()) {
      fmt::print(stderr, "tools/report {} (in the sources) makes report.html of it\n", output_.string());
      return;
    }
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(STDERR_FILENO, STDOUT_FILENO);
      ::execl(tool.c_str(), tool.c_str(), output_.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    int status = 1;
    while (child > 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (child < 0 || status != 0)
      fmt::print(stderr, "the page could not be made; {} {} tries again\n", tool.string(), output_.string());
  }

  CompareOptions options_;
  TrainConfig base_;
  fs::path output_;
  std::vector<Job> jobs_;
  json averaged_;  // null, or as averaged_text reads it
};

}  // namespace

int run_compare(const CompareOptions& options) { return Comparison(options).run(); }

}  // namespace gantrain
