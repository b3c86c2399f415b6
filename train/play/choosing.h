// The best of several answers by the discriminator they were trained against: what its reward is worth, apart
// from whether a generator learned to earn it.
#pragma once

#include <vector>

#include "model/runner.h"
#include "train/networks/discriminator.h"
#include "train/play/prompts.h"

namespace gantrain {

class Chooser {
 public:
  // The discriminator reads what the first `layers` layers of the runner's frozen model make of input and
  // answer; `among` answers an input compete; `batch` answers are read together. Both must outlive this.
  Chooser(Runner& runner, Discriminator& discriminator, int layers, int64_t among, int64_t batch);

  int64_t among() const { return among_; }
  // D of each answer (canonical tokens without an end token) to inputs[input_of[i]], cut before its ending as
  // in a pair; an empty one has -infinity.
  std::vector<float> scores(ExampleSpan inputs, const std::vector<size_t>& input_of,
                            const std::vector<std::vector<int32_t>>& answers);
  // Of each `among` answers in a row, which are all to one input, the index of that with the highest score;
  // of equal ones the first.
  std::vector<size_t> choose(ExampleSpan inputs, const std::vector<size_t>& input_of,
                             const std::vector<std::vector<int32_t>>& answers);

 private:
  Runner& runner_;
  Discriminator& discriminator_;
  int layers_;
  int64_t among_, batch_;
};

}  // namespace gantrain
