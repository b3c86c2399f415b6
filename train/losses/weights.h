// From rewards to cross-entropy weights. Every loss of the family is seeded through HeadLoss, whose part for
// a row is  ce_weight * (p - onehot(label)).  So a positive weight makes the label likelier, a negative one
// less so.
//
// Rewards come as B groups of N samples, group by group: reward of sample i of input b is rewards[b * N + i].
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gantrain {

// A_i = r_i - mean over j != i of r_j  (Kool et al. 2019; Ahmadian et al. 2402.14740). N >= 2. Sums to 0 in a
// group.
std::vector<float> leave_one_out_advantages(std::span<const float> rewards, int64_t samples);

// A_i = N * softmax(r / temperature)_i - 1: at temperature 1 and r the logit of an optimal D, the gradient of
// the forward KL (Norouzi et al. 1609.00150). N >= 2, temperature > 0. Sums to 0 in a group.
std::vector<float> softmax_advantages(std::span<const float> rewards, int64_t samples, double temperature);

// The C1 seed -(A_i / (N T_max)) (onehot - p), mean over the B inputs, as HeadLoss weights: one value a
// sampled token,
//   ce_weight = A_i / (B N T_max)
// for all tokens of sample i. `lengths` (B * N): sampled tokens, the ending one included; `max_length`:
// T_max, the longest that sampling allows, a constant: dividing by each sample's own length would favour long
// bad answers. Returns sum(lengths) weights in order of the samples.
std::vector<float> rloo_weights(std::span<const float> advantages, std::span<const int32_t> lengths,
                                int64_t samples, int64_t max_length);

// Per-token credit from a causal D: token t of sample i gets (G_{i,t} - mean over j != i of G_{j,t}) / (B N
// T_max), G_{i,t} = (1/T_i) * sum over s >= t of token_logits[i, s]: the logits that token t can still change
// (those before it are fixed, D being causal). The other samples are a baseline that does not depend on
// sample i; one that ended before t counts as G = 0. Exact for answers of one length; else the divisor 1/T_i,
// which token t can change too, is taken as a constant. `token_logits`: sum(lengths) values in order of the
// samples.
std::vector<float> token_rloo_weights(std::span<const float> token_logits, std::span<const int32_t> lengths,
                                      int64_t samples, int64_t max_length);

// Of a causal D, which read the first logits.size() tokens of `text`, the canonical writing of the answer
// that was sampled as the tokens `sampled` (no end token in either): a value for each of the first `length`
// sampled tokens, such that a token's own value and those after it hold every logit that it can change. Where
// both writings agree, from the front or from the back, that is the token's own logit; the logits between go
// to the last sampled token between, which no token before it loses by; what is behind `length` goes to the
// last one. The values' mean is the logits' mean, D.
std::vector<float> logits_of_samples(std::span<const float> logits, std::span<const int32_t> text,
                                     std::span<const int32_t> sampled, size_t length);

// C4, SPIN and SODA's form, mean over B pairs:
//   L = softplus(-b m),  m = (logp(y) - logp0(y)) - (logp(yhat) - logp0(yhat)),  logp summed over an answer's
//   tokens.
// As weights of every token:  on y  +b sigmoid(-b m) / B,  on yhat  -b sigmoid(-b m) / B.
struct ContrastiveWeights {
  double loss = 0.0;
  double accuracy = 0.0;                  // share of pairs with m > 0
  std::vector<float> reference, sampled;  // (B): weight of each token of y, of yhat
};
ContrastiveWeights contrastive_weights(std::span<const double> logp_reference,
                                       std::span<const double> logp0_reference,
                                       std::span<const double> logp_sampled,
                                       std::span<const double> logp0_sampled, double beta);

// Share of pairs that D ranks right, a tie counting half; B >= 1.
double pair_accuracy(std::span<const float> reference_scores, std::span<const float> fake_scores);

}  // namespace gantrain
