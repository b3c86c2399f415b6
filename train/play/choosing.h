// One of several answers, by the discriminator they were trained against: what its reward is worth, apart
// from whether a generator learned to earn it.
#pragma once

#include <span>
#include <vector>

#include "model/runner.h"
#include "train/networks/discriminator.h"
#include "train/play/prompts.h"

namespace gantrain {

class Chooser {
 public:
  // The discriminator reads what the first `layers` layers of the runner's frozen model make of input and
  // answer; `among` answers an input compete; `batch` answers are read together. Both must outlive this.
  // `temperature`: 0 takes the answer with the highest D; above, one with odds exp(D / temperature). A
  // discriminator of pairs that is right has D = log p(reference) / p(answer) + a constant of the input, so
  // at 1 what is taken approaches the references' own distribution as `among` grows (sampling-importance
  // resampling, Rubin 1987; of a GAN's samples: Azadi et al., arXiv 1810.06758, Turner et al., 1811.11357).
  Chooser(Runner& runner, Discriminator& discriminator, int layers, int64_t among, int64_t batch,
          double temperature = 0);

  int64_t among() const { return among_; }
  double temperature() const { return temperature_; }
  // D of each answer (canonical tokens without an end token) to inputs[input_of[i]], cut before its ending as
  // in a pair; an empty one has -infinity.
  std::vector<float> scores(ExampleSpan inputs, const std::vector<size_t>& input_of,
                            const std::vector<std::vector<int32_t>>& answers);
  // Of each `among` answers in a row, which are all to one input, the index of the one that is taken; of
  // equal ones the first, and of empty ones too. `key`: the draw's randomness.
  std::vector<size_t> choose(ExampleSpan inputs, const std::vector<size_t>& input_of,
                             const std::vector<std::vector<int32_t>>& answers, uint64_t key);
  // The same with the scores at hand.
  std::vector<size_t> take(std::vector<float> scores, uint64_t key) const;
  // How much likelier a reference is among what is taken than among the generator's own answers, in nats: a
  // draw whose mean is at most log(q / p). Among N answers of p one with weight w = exp(D / temperature) is
  // taken as q = p E[N w / (w + the weights of N - 1 draws)], and a mean of logs is at most the log of the
  // mean. So the cross-entropy of what is taken is at most the generator's less this. `others`: the scores of
  // N - 1 answers to the reference's input. Needs a temperature above 0.
  double reference_gain(float reference, std::span<const float> others) const;

 private:
  Runner& runner_;
  Discriminator& discriminator_;
  int layers_;
  int64_t among_, batch_;
  double temperature_;
};

}  // namespace gantrain
