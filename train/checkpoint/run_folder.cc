#include "train/checkpoint/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/check.h"

namespace gantrain {
namespace {

namespace fs = std::filesystem;

// The step of "step-00000200.ckpt", or -1.
int64_t step_of(const std::string& name) {
  if (!name.starts_with("step-") || !name.ends_with(".ckpt")) return -1;
  const std::string digits = name.substr(5, name.size() - 10);
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
    return -1;
  return std::stoll(digits);
}

std::vector<int64_t> steps_in(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (const int64_t step = step_of(entry.path().filename().string()); step >= 0) steps.push_back(step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08}.ckpt", step); }

}  // namespace

RunFolder::RunFolder(const fs::path& path, Mode mode) : path_(path) {
  if (path.empty()) fail_usage("no run folder given: set output=FOLDER");
  std::error_code error;
  if (mode == Mode::kResume && !fs::is_directory(path))
    fail("{}: no such run folder; there is nothing to resume", path.string());
  fs::create_directories(path / "checkpoints", error);
  if (error)
    fail("{}: cannot be made: {}; choose another output", (path / "checkpoints").string(), error.message());

  const fs::path lock = path / "lock";
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) fail("{}: cannot be opened: {}", lock.string(), std::strerror(errno));
  // The kernel drops the lock with the process, however it ends: no stale locks.
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    char holder[128] = {};
    const ssize_t n = ::pread(lock_, holder, sizeof holder - 1, 0);
    ::close(lock_);
    lock_ = -1;
    fail("{}: another run (process {}) is writing into this folder; wait for it or choose another output",
         path.string(), n > 0 ? std::string(holder, static_cast<size_t>(n)) : "unknown");
  }
  char host[65] = "an unknown host";
  ::gethostname(host, sizeof host - 1);
  const std::string id = fmt::format("{} on {}", ::getpid(), host);
  if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, id.data(), id.size(), 0) < 0) {
    const int reason = errno;
    ::close(lock_);
    lock_ = -1;
    fail("{}: cannot be written: {}", lock.string(), std::strerror(reason));
  }
  if (mode == Mode::kNew && (fs::exists(config_file()) || !steps_in(path / "checkpoints").empty())) {
    ::close(lock_);
    lock_ = -1;
    fail("{}: the folder holds a run already; resume it with --resume, or choose another output",
         path.string());
  }
  // With the lock held, whatever has a temporary name was left by a killed run.
  for (const fs::path& folder : {path_, path_ / "checkpoints"}) {
    std::vector<fs::path> left;
    for (const auto& entry : fs::directory_iterator(folder, error))
      if (entry.path().filename().string().find(".tmp.") != std::string::npos) left.push_back(entry.path());
    for (const fs::path& file : left) fs::remove(file, error);
  }
  if (mode == Mode::kResume && steps().empty()) {
    ::close(lock_);
    lock_ = -1;
    fail("{}: the run has no checkpoint yet; start it anew in another folder", path.string());
  }
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

void RunFolder::write(const fs::path& file, const std::string& text) const {
  write_file_atomically(file.string(), {{text.data(), text.size()}});
}

fs::path RunFolder::checkpoint_file(int64_t step) const {
  return path_ / "checkpoints" / checkpoint_name(step);
}

std::vector<int64_t> RunFolder::steps() const { return steps_in(path_ / "checkpoints"); }

void RunFolder::point(const char* name, const std::string& target) const {
  // A link cannot be changed in place: a new one takes the old one's name, which is atomic.
  const fs::path link = path_ / "checkpoints" / name;
  const fs::path temporary = fmt::format("{}.tmp.{}", link.string(), ::getpid());
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  if (!error) fs::rename(temporary, link, error);
  if (error) fail("{}: cannot be pointed to {}: {}", link.string(), target, error.message());
}

void RunFolder::save(int64_t step, const CheckpointWriter& writer, bool best, int64_t keep) {
  GT_CHECK(step >= 0 && keep >= 1, "checkpoint of step {}, keep {}", step, keep);
  writer.commit(checkpoint_file(step).string());
  // `latest` last: a run killed between the two goes on from the older one and comes past here again.
  if (best) point("best", checkpoint_name(step));
  point("latest", checkpoint_name(step));
  remove_old(step, keep);
}

void RunFolder::remove_old(int64_t newest, int64_t keep) const {
  std::error_code error;
  const fs::path best_target = fs::read_symlink(path_ / "checkpoints" / "best", error);
  const int64_t best_step = error ? -1 : step_of(best_target.filename().string());
  std::vector<int64_t> old = steps();
  // What a resumed run leaves behind from a later time is older than what it writes now, whatever its step.
  std::erase_if(old, [&](int64_t s) { return s == newest; });
  old.push_back(newest);
  const int64_t surplus = static_cast<int64_t>(old.size()) - keep;
  for (int64_t i = 0; i < surplus; ++i)
    if (old[static_cast<size_t>(i)] != best_step)
      fs::remove(checkpoint_file(old[static_cast<size_t>(i)]), error);
}

fs::path RunFolder::latest(std::string* note) const {
  std::vector<fs::path> candidates;
  std::error_code error;
  const fs::path target = fs::read_symlink(path_ / "checkpoints" / "latest", error);
  if (!error) candidates.push_back(path_ / "checkpoints" / target.filename());
  const std::vector<int64_t> all = steps();
  for (auto step = all.rbegin(); step != all.rend(); ++step) candidates.push_back(checkpoint_file(*step));
  std::string first_problem;
  for (const fs::path& candidate : candidates) {
    try {
      CheckpointReader check(candidate.string());
      if (note) *note = first_problem;
      return candidate;
    } catch (const Error& problem) {
      if (first_problem.empty()) first_problem = problem.what();
    }
  }
  fail("{}: no whole checkpoint: {}", path_.string(),
       first_problem.empty() ? "there is none" : first_problem);
}

fs::path find_checkpoint(const fs::path& where) {
  std::error_code error;
  if (fs::is_regular_file(where, error)) return where;
  if (!fs::is_directory(where, error)) fail("{}: no such checkpoint or run folder", where.string());
  const fs::path folder = fs::is_directory(where / "checkpoints", error) ? where / "checkpoints" : where;
  for (const char* name : {"best", "latest"})
    if (fs::is_regular_file(folder / name, error)) return folder / name;
  const std::vector<int64_t> steps = steps_in(folder);
  if (steps.empty()) fail("{}: no checkpoint in the folder", where.string());
  return folder / checkpoint_name(steps.back());
}

}  // namespace gantrain
