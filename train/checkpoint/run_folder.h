// A run's folder:
//   config.toml     the resolved configuration
//   events.jsonl    the diary (train/log/events.h)
//   summary.json    what came out, written at the end
//   tensorboard/    event files
//   checkpoints/    step-00000200.ckpt ..., and links `latest` and `best`
//   lock            held while a program writes here
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint/checkpoint.h"

namespace gantrain {

class RunFolder {
 public:
  enum class Mode { kNew, kResume };
  // Makes or opens the folder and locks it. kNew refuses a folder that holds a run; kResume wants one with a
  // checkpoint. Throws Error when another program holds the lock (its process id and host are named), or the
  // folder cannot be written. Left-over temporary files of killed runs are removed.
  RunFolder(const std::filesystem::path& path, Mode mode);
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  ~RunFolder();  // releases the lock

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_file() const { return path_ / "config.toml"; }
  std::filesystem::path events_file() const { return path_ / "events.jsonl"; }
  std::filesystem::path summary_file() const { return path_ / "summary.json"; }
  std::filesystem::path tensorboard() const { return path_ / "tensorboard"; }

  // A whole small file, written to a temporary name and renamed.
  void write(const std::filesystem::path& file, const std::string& text) const;

  // Commits the checkpoint of `step`, points `latest` (and with `best` also `best`) to it, then removes all
  // but the newest `keep` and the best. A crash anywhere leaves `latest` on a whole checkpoint.
  void save(int64_t step, const CheckpointWriter& writer, bool best, int64_t keep);

  // The last part of `save` by itself: for a run that was killed in the middle of its last one.
  void remove_old(int64_t newest, int64_t keep) const;

  // Steps of the checkpoints that are there, ascending.
  std::vector<int64_t> steps() const;
  std::filesystem::path checkpoint_file(int64_t step) const;
  // Where `latest` points; when that one is damaged or gone, the newest whole one, and `note` says so.
  std::filesystem::path latest(std::string* note = nullptr) const;

 private:
  void point(const char* name, const std::string& target) const;

  std::filesystem::path path_;
  int lock_ = -1;
};

// The checkpoint file meant by `where`: a file itself, a run folder's `best`, or else its `latest`. Throws
// Error when there is none. Needs no lock.
std::filesystem::path find_checkpoint(const std::filesystem::path& where);

}  // namespace gantrain
