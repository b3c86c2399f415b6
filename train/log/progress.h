// What a person sees while a run goes on: one line that is redrawn on a terminal, plain lines elsewhere.
// Always on stderr: stdout is for data.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace gantrain {

class Progress {
 public:
  struct Options {
    std::FILE* out = stderr;
    int terminal = -1;              // columns; 0: no terminal; -1: find out
    double redraw_seconds = 0.1;    // on a terminal
    double line_seconds = 10.0;     // elsewhere
    std::function<double()> clock;  // seconds; empty: the steady clock
  };
  // `what`: "train", "load"; `total`: steps in all, 0 if unknown; `done`: already behind us (a resumed run).
  Progress(std::string what, int64_t total, int64_t done, Options options);
  Progress(std::string what, int64_t total, int64_t done = 0)
      : Progress(std::move(what), total, done, Options()) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // ends the line

  // `done` steps are behind us; `facts` ("loss 2.03, acc 0.71") stands at the end. Draws when it is time to.
  void update(int64_t done, const std::string& facts = "");
  // A line of its own, above the bar.
  void say(const std::string& line);
  // Draws the last state whatever the time, and ends the line.
  void finish();

  // "train  45% [=====>     ] 90/200  1.2 s/step  eta 2:12  loss 2.03", at most `columns` long when > 0.
  std::string line(int columns) const;

 private:
  void draw();

  std::string what_, facts_;
  int64_t total_, first_, done_;
  Options options_;
  double started_ = 0.0, drawn_ = -1e300;
  size_t shown_ = 0;  // columns of the bar on the screen
  bool finished_ = false;
};

// "0:07", "12:05", "3:02:01", "4d 03:02".
std::string duration_text(double seconds);

}  // namespace gantrain
