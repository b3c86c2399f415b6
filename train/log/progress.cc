#include "train/log/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace gantrain {
namespace {

constexpr int kBar = 20;

int terminal_columns(std::FILE* out) {
  const int descriptor = ::fileno(out);
  if (descriptor < 0 || !::isatty(descriptor)) return 0;
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 10) return size.ws_col;
  return 80;
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0.0) || seconds > 1e9) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 86400) return fmt::format("{}d {:02}:{:02}", s / 86400, s / 3600 % 24, s / 60 % 60);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

Progress::Progress(std::string what, int64_t total, int64_t done, Options options)
    : what_(std::move(what)), total_(total), first_(done), done_(done), options_(std::move(options)) {
  if (!options_.clock)
    options_.clock = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
  if (options_.terminal < 0) options_.terminal = terminal_columns(options_.out);
  started_ = options_.clock();
  // The first plain line comes with the first step: it says that the run goes on.
}

Progress::~Progress() { finish(); }

std::string Progress::line(int columns) const {
  const double elapsed = options_.clock() - started_;
  const int64_t steps = done_ - first_;
  const double each = steps > 0 ? elapsed / static_cast<double>(steps) : 0.0;
  std::string out = what_;
  if (total_ > 0) {
    const double share = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
    const int filled = static_cast<int>(share * kBar);
    std::string bar(static_cast<size_t>(filled), '=');
    if (filled < kBar) bar += '>';
    bar.resize(kBar, ' ');
    out += fmt::format(" {:3.0f}% [{}] {}/{}", std::floor(share * 100.0), bar, done_, total_);
  } else {
    out += fmt::format(" {}", done_);
  }
  if (steps > 0) {
    out += each >= 1.0 ? fmt::format("  {:.1f} s/step", each)
                       : fmt::format("  {:.3g} steps/s", 1.0 / std::max(each, 1e-9));
    if (total_ > done_)
      out += fmt::format("  eta {}", duration_text(each * static_cast<double>(total_ - done_)));
  }
  if (total_ > 0 && done_ >= total_) out += fmt::format("  took {}", duration_text(elapsed));
  if (!facts_.empty()) out += "  " + facts_;
  if (columns > 0 && out.size() > static_cast<size_t>(columns)) {
    size_t cut = static_cast<size_t>(columns);
    while (cut > 0 && (static_cast<unsigned char>(out[cut]) & 0xc0) == 0x80) --cut;  // not inside a character
    out.resize(cut);
  }
  return out;
}

void Progress::draw() {
  drawn_ = options_.clock();
  if (options_.terminal > 0) {
    std::string text = line(options_.terminal - 1);
    const size_t width = text.size();
    if (width < shown_) text.append(shown_ - width, ' ');
    shown_ = width;
    fmt::print(options_.out, "\r{}", text);
  } else {
    fmt::print(options_.out, "{}\n", line(0));
  }
  std::fflush(options_.out);
}

void Progress::update(int64_t done, const std::string& facts) {
  done_ = done;
  facts_ = facts;
  const double wait = options_.terminal > 0 ? options_.redraw_seconds : options_.line_seconds;
  if (options_.clock() - drawn_ >= wait) draw();
}

void Progress::say(const std::string& text) {
  if (options_.terminal > 0 && shown_ > 0) {
    fmt::print(options_.out, "\r{}\r", std::string(shown_, ' '));
    shown_ = 0;
  }
  fmt::print(options_.out, "{}\n", text);
  if (options_.terminal > 0 && !finished_) draw();
  std::fflush(options_.out);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (done_ > first_ || shown_ > 0) {
    draw();
    if (options_.terminal > 0) fmt::print(options_.out, "\n");
  }
  shown_ = 0;
  std::fflush(options_.out);
}

}  // namespace gantrain
