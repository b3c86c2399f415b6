#include "train/play/choosing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/rng.h"
#include "train/play/pairs.h"

namespace gantrain {

Chooser::Chooser(Runner& runner, Discriminator& discriminator, int layers, int64_t among, int64_t batch,
                 double temperature)
    : runner_(runner),
      discriminator_(discriminator),
      layers_(layers),
      among_(among),
      batch_(batch),
      temperature_(temperature) {
  GT_CHECK(among > 0 && batch > 0 && temperature >= 0, "one of {} answers, {} at a time, at {}", among, batch,
           temperature);
}

std::vector<float> Chooser::scores(ExampleSpan inputs, const std::vector<size_t>& input_of,
                                   const std::vector<std::vector<int32_t>>& answers) {
  GT_CHECK(input_of.size() == answers.size(), "{} answers to {} inputs", answers.size(), input_of.size());
  std::vector<float> out(answers.size(), -std::numeric_limits<float>::infinity());
  const auto batch = static_cast<size_t>(batch_);
  for (size_t begin = 0; begin < answers.size(); begin += batch) {
    // An answer beside itself is a pair cut as the discriminator's are.
    std::vector<AnswerPair> pairs;
    for (size_t i = begin; i < std::min(answers.size(), begin + batch); ++i)
      if (auto pair = make_pair(input_of[i], i, answers[i], answers[i])) pairs.push_back(std::move(*pair));
    if (pairs.empty()) continue;
    const PairBatch packed = pack_pairs(inputs, pairs, true);
    PairRows rows = rows_of_pairs(packed, 0, pairs.size());
    rows.offsets.resize(pairs.size() + 1);  // one side of each
    rows.rows.resize(static_cast<size_t>(rows.offsets.back()));
    runner_.forward(packed.batch, {}, Saving::kNothing, layers_, {}, {.read = rows.rows, .gradient = {}});
    Device& device = runner_.device();
    const OwnedTensor d = discriminator_.forward(
        Discriminator::normalise(device, runner_.output_rows(rows.rows)), rows.offsets);
    std::vector<float> values(pairs.size());
    device.copy_out(values.data(), d.view());
    for (size_t i = 0; i < pairs.size(); ++i) out[pairs[i].rollout] = values[i];
  }
  return out;
}

std::vector<size_t> Chooser::choose(ExampleSpan inputs, const std::vector<size_t>& input_of,
                                    const std::vector<std::vector<int32_t>>& answers, uint64_t key) {
  return take(scores(inputs, input_of, answers), key);
}

std::vector<size_t> Chooser::take(std::vector<float> d, uint64_t key) const {
  const auto among = static_cast<size_t>(among_);
  GT_CHECK(d.size() % among == 0, "{} answers in groups of {}", d.size(), among);
  // The largest of log odds plus Gumbel noise is a draw with those odds.
  if (temperature_ > 0)
    for (size_t i = 0; i < d.size(); ++i)
      d[i] = d[i] / static_cast<float>(temperature_) + gumbel(Philox{key}(0, i)[0]);
  std::vector<size_t> taken;
  for (size_t begin = 0; begin < d.size(); begin += among) {
    const auto first = d.begin() + static_cast<std::ptrdiff_t>(begin);
    taken.push_back(static_cast<size_t>(std::max_element(first, first + among_) - d.begin()));
  }
  return taken;
}

double Chooser::reference_gain(float reference, std::span<const float> others) const {
  GT_CHECK(temperature_ > 0 && static_cast<int64_t>(others.size()) + 1 == among_,
           "{} answers beside a reference, {} in a group, at {}", others.size(), among_, temperature_);
  double sum = 1.0;  // of the weights, in units of the reference's
  for (const float d : others)
    sum += std::exp((static_cast<double>(d) - static_cast<double>(reference)) / temperature_);
  return std::log(static_cast<double>(among_) / sum);
}

}  // namespace gantrain
