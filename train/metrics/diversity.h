// How varied and how long a set of generated texts is. Tokens are those of `13a`, case kept. (Self-BLEU:
// bleu.h.)
#pragma once

#include <span>
#include <string>

#include "train/metrics/statistics.h"

namespace gantrain::metrics {

// Distinct-n (Li et al. 2016, 1510.03055): different n-grams of the whole set over all its n-grams, 0 to 1;
// n-grams don't cross texts. 0 when there is none. It falls as a set grows: compare sets of the same number
// of texts.
double distinct(std::span<const std::string> texts, int n);

// Tokens a text: mean, quartiles, extremes.
Summary length_summary(std::span<const std::string> texts);

}  // namespace gantrain::metrics
