#include "bench/support/harness.h"

namespace gantrain::bench {
namespace {

// The players' layers: from the model's width to their own, over `rows` rows; `batch` inputs of `prompt` rows
// each.
void define(Suite& suite) {
  const Suite::Axes wide{{"rows", {160, 1024}}, {"width", {256}}};
  suite.op("linear_forward", wide, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("rows"), i = p.config.hidden_size, o = p.at("width");
    const LinearForward a{
        .x = m.normal({n, i}), .w = m.normal({o, i}), .b = m.normal({o}), .y = m.normal({n, o})};
    return Call{[a, &m] { linear_forward(m.device(), a); }, linear_forward_bytes(a), linear_forward_flops(a)};
  });
  suite.op("linear_backward", wide, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("rows"), i = p.config.hidden_size, o = p.at("width");
    const LinearBackward a{.x = m.normal({n, i}),
                           .w = m.normal({o, i}),
                           .dy = m.normal({n, o}),
                           .dx = m.normal({n, i}),
                           .dw = m.normal({o, i}),
                           .db = m.normal({o})};
    return Call{[a, &m] { linear_backward(m.device(), a); }, linear_backward_bytes(a),
                linear_backward_flops(a)};
  });
  for (const auto& [name, kind] :
       {std::pair("silu", Activation::kSilu), {"gelu", Activation::kGelu}, {"tanh", Activation::kTanh}}) {
    suite.op(std::string("activation_forward_") + name, wide, false,
             [kind = kind](const Point& p, Memory& m) {
               const Shape s{p.at("rows"), p.at("width")};
               const ActivationForward a{.x = m.normal(s), .kind = kind, .y = m.normal(s)};
               return Call{[a, &m] { activation_forward(m.device(), a); }, activation_forward_bytes(a)};
             });
    suite.op(
        std::string("activation_backward_") + name, wide, false, [kind = kind](const Point& p, Memory& m) {
          const Shape s{p.at("rows"), p.at("width")};
          const ActivationBackward a{.x = m.normal(s), .kind = kind, .dy = m.normal(s), .dx = m.normal(s)};
          return Call{[a, &m] { activation_backward(m.device(), a); }, activation_backward_bytes(a)};
        });
  }
  const Suite::Axes prompts{{"batch", {8}}, {"prompt", {20, 100}}};
  suite.op("broadcast_add_forward", prompts, false, [](const Point& p, Memory& m) {
    const int64_t b = p.at("batch"), q = p.at("prompt"), c = p.config.hidden_size;
    const BroadcastAddForward a{.a = m.normal({q, c}), .c = m.normal({b, c}), .y = m.normal({b, q, c})};
    return Call{[a, &m] { broadcast_add_forward(m.device(), a); }, broadcast_add_forward_bytes(a)};
  });
  suite.op("broadcast_add_backward", prompts, false, [](const Point& p, Memory& m) {
    const int64_t b = p.at("batch"), q = p.at("prompt"), c = p.config.hidden_size;
    const BroadcastAddBackward a{.dy = m.normal({b, q, c}), .da = m.normal({q, c}), .dc = m.normal({b, c})};
    return Call{[a, &m] { broadcast_add_backward(m.device(), a); }, broadcast_add_backward_bytes(a)};
  });
  suite.op("scaled_add_forward", prompts, false, [](const Point& p, Memory& m) {
    const int64_t b = p.at("batch"), q = p.at("prompt"), c = p.config.hidden_size;
    const ScaledAddForward a{
        .base = m.normal({q, c}), .x = m.normal({b, q, c}), .s = m.positive({1}), .y = m.normal({b, q, c})};
    return Call{[a, &m] { scaled_add_forward(m.device(), a); }, scaled_add_forward_bytes(a)};
  });
  suite.op("scaled_add_backward", prompts, false, [](const Point& p, Memory& m) {
    const int64_t b = p.at("batch"), q = p.at("prompt"), c = p.config.hidden_size;
    const ScaledAddBackward a{.x = m.normal({b, q, c}),
                              .s = m.positive({1}),
                              .dy = m.normal({b, q, c}),
                              .dbase = m.normal({q, c}),
                              .dx = m.normal({b, q, c}),
                              .ds = m.normal({1})};
    return Call{[a, &m] { scaled_add_backward(m.device(), a); }, scaled_add_backward_bytes(a)};
  });
  const Suite::Axes rows{{"rows", {160, 1024}}};
  suite.op("gather_rows", rows, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("rows"), c = p.config.hidden_size;
    const GatherRows a{.x = m.normal({2 * n, c}),
                       .rows = m.ints({n}, 0, static_cast<int32_t>(2 * n)),
                       .y = m.normal({n, c})};
    return Call{[a, &m] { gather_rows(m.device(), a); }, gather_rows_bytes(a)};
  });
  suite.op("scatter_add_rows", rows, false, [](const Point& p, Memory& m) {
    const int64_t n = p.at("rows"), c = p.config.hidden_size;
    const ScatterAddRows a{.dy = m.normal({n, c}),
                           .rows = m.ints({n}, 0, static_cast<int32_t>(2 * n)),
                           .dx = m.normal({2 * n, c})};
    return Call{[a, &m] { scatter_add_rows(m.device(), a); }, scatter_add_rows_bytes(a)};
  });
  suite.op("axpy", rows, false, [](const Point& p, Memory& m) {
    const Shape s{p.at("rows"), p.config.hidden_size};
    const Axpy a{.x = m.normal(s), .a = 1e-3f, .y = m.normal(s)};
    return Call{[a, &m] { axpy(m.device(), a); }, axpy_bytes(a)};
  });
  suite.op("add_noise", rows, false, [](const Point& p, Memory& m) {
    const Shape s{p.at("rows"), p.config.hidden_size};
    const AddNoise a{.x = m.normal(s), .sigma = 0.07f, .key = 11, .counter = 0, .y = m.normal(s)};
    return Call{[a, &m] { add_noise(m.device(), a); }, add_noise_bytes(a)};
  });
}

}  // namespace
}  // namespace gantrain::bench

int main(int argc, char** argv) {
  return gantrain::bench::run_suite(argc, argv, "Layers of the two players", gantrain::bench::define);
}
