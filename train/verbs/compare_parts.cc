#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/check.h"
#include "core/rng.h"
#include "train/data/dataset.h"
#include "train/metrics/statistics.h"
#include "train/suggest.h"
#include "train/text.h"
#include "train/verbs/compare.h"

namespace gantrain {
namespace {

using nlohmann::json;

constexpr const char* kZeroShot = "zero-shot";
constexpr const char* kFewShot = "few-shot";
// What must be the same for all arms, or the figures compare nothing.
constexpr const char* kShared[] = {"model",        "device",        "dtype",        "threads",
                                   "seed",         "output",        "memory_limit", "gemm",
                                   "train.epochs", "train.steps",   "train.batch",  "train.accumulate",
                                   "eval.samples", "eval.max_items"};

// How a figure is called, its decimals, a factor for people, and whether less or more of it is better.
struct Figure {
  const char *key, *title;
  int decimals;
  double scale;
};
constexpr Figure kFigures[] = {
    {"label_likelihood", "accuracy, %", 1, 100.0},
    {"ce", "cross-entropy", 4, 1.0},
    {"bleu", "BLEU", 2, 1.0},
    {"rouge_l", "ROUGE-L, %", 2, 100.0},
    {"exact_match", "exact match, %", 1, 100.0},
    {"distinct_2", "distinct-2", 3, 1.0},
    {"distinct_3", "distinct-3", 3, 1.0},
    {"self_bleu_4", "self-BLEU-4", 2, 1.0},
    {"length", "words", 1, 1.0},
    {"judge_accuracy", "judges' accuracy", 3, 1.0},
    {"feature_judge_accuracy", "judges' accuracy on features", 3, 1.0},
    {"drift", "forgetting, nats", 4, 1.0},
    {"parameters_trained", "parameters trained", 0, 1.0},
    {"parameters_deployed", "deployed", 0, 1.0},
    {"optimizer_bytes", "optimiser, MB", 2, 1e-6},
    {"peak_memory_bytes", "peak memory, MB", 0, 1e-6},
    {"steps", "steps", 0, 1.0},
    {"train_seconds", "training, s", 1, 1.0},
    {"rows_per_second", "rows/s", 0, 1.0},
};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  size_t at = 0;
  while ((at = text.find_first_not_of(' ', at)) != std::string::npos) {
    const size_t end = std::min(text.find(' ', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

std::optional<double> number_at(const json& j, const char* key) {
  const auto it = j.find(key);
  if (it == j.end() || !it->is_number()) return std::nullopt;
  return it->get<double>();
}

std::string braces_doubled(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '{' || c == '}') out += c;
    out += c;
  }
  return out;
}

const json* arm_named(const json& arms, const char* name) {
  for (const json& arm : arms)
    if (arm.value("arm", "") == name) return &arm;
  return nullptr;
}

// The temperature that answers are drawn at by default, 1, or the nearest to it.
const json* nearest_to_one(const json& temperatures) {
  const json* best = nullptr;
  for (const json& row : temperatures)
    if (!best ||
        std::abs(row.value("temperature", 0.0) - 1.0) < std::abs(best->value("temperature", 0.0) - 1.0))
      best = &row;
  return best;
}

}  // namespace

ComparedArm parse_method(const std::string& text) {
  ComparedArm arm;
  arm.name = text;
  if (text == kZeroShot || text.starts_with(std::string(kFewShot))) {
    arm.trains = false;
    if (text != kZeroShot) {
      const std::string count = text.size() > 9 && text[8] == ':' ? text.substr(9) : "";
      if (count.empty() || count.size() > 3 || count.find_first_not_of("0123456789") != std::string::npos ||
          std::stoi(count) < 1)
        fail_usage("compare: expected few-shot:K with K from 1 to 999, got '{}'", text);
      arm.shots = std::stoi(count);
      arm.name = fmt::format("{}-{}", kFewShot, arm.shots);
    }
    // The base model through the same door: no prompt, and one step that has nothing to move.
    arm.settings = {"method=prompt", "generator.prompt_length=0", "loss.kind=ce", "train.steps=1",
                    "train.warmup_ce_steps=1"};
    return arm;
  }
  const size_t plus = text.find('+');
  const std::string method = text.substr(0, plus);
  const std::vector<std::string> methods(std::begin(kMethodNames), std::end(kMethodNames));
  if (std::find(methods.begin(), methods.end(), method) == methods.end()) {
    std::vector<std::string> known = methods;
    known.insert(known.end(), {kZeroShot, std::string(kFewShot) + ":4"});
    fail_usage(
        "compare: unknown method '{}'{}; expected one of {}, each with +ce, +rloo, +gumbel or +placebo where "
        "it is trained",
        method, did_you_mean(method, known), join(known, ", "));
  }
  std::string loss = method == "gan" ? "rloo" : "ce";
  if (plus != std::string::npos) {
    loss = text.substr(plus + 1);
    const std::vector<std::string> losses{"ce", "rloo", "gumbel", "placebo"};
    if (std::find(losses.begin(), losses.end(), loss) == losses.end())
      fail_usage("compare: unknown loss '{}' in '{}'{}; expected ce, rloo, gumbel or placebo", loss, text,
                 did_you_mean(loss, losses));
  }
  arm.settings = {"method=" + method, "loss.kind=" + (loss == "placebo" ? "rloo" : loss)};
  if (loss == "placebo")
    arm.settings.insert(arm.settings.end(), {"optimizer.lr_d=0", "optimizer.lr_d_end=0", "train.gate_g=0"});
  return arm;
}

ComparedArm parse_arm(const std::string& text) {
  const size_t colon = text.find(": ");
  const std::vector<std::string> words =
      colon == std::string::npos ? std::vector<std::string>() : words_of(text.substr(colon + 1));
  if (words.empty()) fail_usage("compare: expected --arm 'NAME: METHOD KEY=VALUE ...', got '{}'", text);
  ComparedArm arm = parse_method(words.front());
  arm.name = text.substr(0, colon);
  if (arm.name.empty() || arm.name.size() > 60 ||
      arm.name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-") !=
          std::string::npos ||
      arm.name.front() == '.')
    fail_usage("compare: an arm's name is made of letters, digits, '.', '_', '+' and '-', got '{}'",
               arm.name);
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos)
      fail_usage("compare: arm {}: expected KEY=VALUE, got '{}'", arm.name, words[i]);
    const std::string key = words[i].substr(0, equals);
    const bool shared = std::find(std::begin(kShared), std::end(kShared), key) != std::end(kShared);
    if (shared || key.starts_with("data."))
      fail_usage("compare: arm {}: {} must be the same for all arms; set it for the whole comparison",
                 arm.name, key);
    arm.settings.push_back(words[i]);
  }
  return arm;
}

std::string few_shot_template(const DataConfig& data, int64_t shots, uint64_t seed) {
  const std::vector<Example> items = load_dataset(data, seed).train;
  if (static_cast<int64_t>(items.size()) < shots)
    fail("few-shot:{}: there are {} training items to take examples from", shots, items.size());
  std::map<std::string, std::vector<const Example*>> by_answer;
  for (const Example& item : items) {
    if (!item.messages.empty() || item.prompt.empty())
      fail("few-shot:{}: training item {} is a chat or plain text; examples need a prompt and a completion",
           shots, item.line);
    by_answer[item.completion].push_back(&item);
  }
  constexpr size_t kMostLabels = 16;
  std::vector<std::vector<const Example*>> groups;
  if (by_answer.size() <= kMostLabels) {
    for (auto& [answer, group] : by_answer) groups.push_back(std::move(group));
  } else {
    groups.emplace_back();
    for (const Example& item : items) groups.front().push_back(&item);
  }
  // Drawn without putting back: the k-th draw takes one of the group's remaining items.
  std::string text;
  for (int64_t k = 0; k < shots; ++k) {
    size_t g = static_cast<size_t>(k) % groups.size();
    while (groups[g].empty()) g = (g + 1) % groups.size();
    std::vector<const Example*>& group = groups[g];
    const size_t at = derive_key(seed, 23, static_cast<uint64_t>(k)) % group.size();
    text.append(group[at]->prompt).append(group[at]->completion).append("\n\n");
    group.erase(group.begin() + static_cast<std::ptrdiff_t>(at));
  }
  return braces_doubled(text) + (data.prompt_template.empty() ? "{prompt}" : data.prompt_template);
}

std::map<std::string, double> run_figures(const json& summary, const json& eval) {
  std::map<std::string, double> out;
  const auto take = [&](const json& from, std::initializer_list<const char*> keys) {
    for (const char* key : keys)
      if (const auto value = number_at(from, key)) out[key] = *value;
  };
  const json none = json::object();
  const auto part = [&](const json& of, const char* key) -> const json& {
    const auto it = of.find(key);
    return it == of.end() ? none : *it;
  };
  take(part(summary, "run"), {"steps"});
  take(part(summary, "cost"),
       {"parameters_trained", "parameters_deployed", "parameters_discriminator", "optimizer_bytes",
        "peak_memory_bytes", "train_seconds", "rows", "rows_per_second", "sampled_tokens"});
  if (const auto it = part(summary, "cost").find("seconds"); it != part(summary, "cost").end())
    for (const auto& [name, seconds] : it->items())
      if (seconds.is_number()) out["seconds " + name] = seconds;
  // What the evaluation measured wins: it may have read more items than the run's own end.
  const json& measured = part(eval, "arms");
  for (const json* arms : {&part(summary, "arms"), &measured})
    if (const json* trained = arm_named(*arms, "trained")) {
      take(*trained, {"ce", "ppl", "label_likelihood"});
      if (const json* row = nearest_to_one(part(*trained, "temperatures")))
        take(*row, {"temperature", "exact_match", "bleu", "rouge_l", "distinct_1", "distinct_2", "distinct_3",
                    "self_bleu_4", "length", "judge_accuracy", "judge_error", "judge_ranking", "judge_pairs",
                    "feature_judge_accuracy", "feature_judge_error", "feature_judge_ranking"});
    }
  const json *off = arm_named(measured, "no prompt"), *on = arm_named(measured, "trained");
  if (off && on && number_at(*on, "drift_ce") && number_at(*off, "drift_ce"))
    out["drift"] = *number_at(*on, "drift_ce") - *number_at(*off, "drift_ce");
  return out;
}

std::string collapse_of(const json& summary) {
  const auto arms = summary.find("arms");
  if (arms != summary.end()) {
    const json *off = arm_named(*arms, "no prompt"), *on = arm_named(*arms, "trained");
    if (off && on) {
      constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
      const double before = number_at(*off, "ce").value_or(kNone),
                   after = number_at(*on, "ce").value_or(kNone);
      if (!(after <= before))
        return fmt::format("its loss, {:.4f}, is above that of the model without it, {:.4f}", after, before);
    }
  }
  if (const auto raised = summary.find("alarms_raised"); raised != summary.end())
    for (const char* alarm : {"self_bleu", "length", "cross_entropy"})
      if (raised->value(alarm, int64_t{0}) > 0) return fmt::format("the alarm {} went off", alarm);
  return "";
}

json summarise_runs(const json& runs) {
  json out = json::array();
  std::set<std::pair<std::string, std::string>> seen;
  for (const json& first : runs) {
    if (!seen.emplace(first.at("budget").get<std::string>(), first.at("arm").get<std::string>()).second)
      continue;
    json row{{"budget", first.at("budget")},
             {"arm", first.at("arm")},
             {"runs", 0},
             {"failed", 0},
             {"collapsed", 0}};
    std::map<std::string, std::vector<double>> values;
    for (const json& run : runs) {
      if (run.at("budget") != first.at("budget") || run.at("arm") != first.at("arm")) continue;
      const std::string status = run.at("status");
      row["runs"] = row["runs"].get<int64_t>() + 1;
      if (status == "failed") row["failed"] = row["failed"].get<int64_t>() + 1;
      if (status == "collapsed") row["collapsed"] = row["collapsed"].get<int64_t>() + 1;
      // A collapsed run counts like any other: leaving it out would flatter its method.
      if (status != "done" && status != "collapsed") continue;
      for (const auto& [key, value] : run.at("figures").items()) values[key].push_back(value.get<double>());
    }
    row["figures"] = json::object();
    for (const auto& [key, list] : values) {
      const metrics::Summary s = metrics::summarize(list);
      row["figures"][key] = {{"median", s.median},   {"q1", s.lower_quartile}, {"q3", s.upper_quartile},
                             {"minimum", s.minimum}, {"maximum", s.maximum},   {"count", s.count}};
    }
    out.push_back(std::move(row));
  }
  return out;
}

json compared_figures() {
  json out = json::array();
  for (const Figure& f : kFigures)
    out.push_back({{"key", f.key}, {"title", f.title}, {"decimals", f.decimals}, {"scale", f.scale}});
  return out;
}

std::string averaged_text(const json& averaged) {
  return fmt::format(
      "Adversarial arms are measured by an average of their weights since the end of their warm-up. So are "
      "{}, "
      "of "
      "cross-entropy alone, since step {} (train.average_from).",
      join(averaged.at("arms").get<std::vector<std::string>>(), ", "), averaged.at("from").get<int64_t>());
}

std::string compare_markdown(const json& comparison) {
  std::vector<std::string> seeds;
  for (const json& seed : comparison.at("seeds")) seeds.push_back(fmt::format("{}", seed.get<int64_t>()));
  std::string out = fmt::format(
      "# Comparison\n\nModel `{}`, data `{}`, seeds {}. Made by\n\n```\n{}\n```\n\n"
      "Medians over the seeds, with the quartiles in brackets where there are three or more. A collapsed run "
      "(a loss above that "
      "of the model without it, or an alarm about self-BLEU, length or cross-entropy) is counted and not "
      "left "
      "out. Text scores at the temperature nearest to 1; every temperature of every run is in results.csv.\n",
      comparison.at("model").get<std::string>(), comparison.at("data").get<std::string>(), join(seeds, ", "),
      comparison.at("command").get<std::string>());
  if (comparison.contains("averaged")) out += "\n" + averaged_text(comparison.at("averaged")) + "\n";
  for (const json& budget : comparison.at("budgets")) {
    const auto name = budget.at("name").get<std::string>();
    std::vector<const json*> rows;
    for (const json& row : comparison.at("arms"))
      if (row.at("budget") == name || row.at("budget") == "none") rows.push_back(&row);
    std::vector<const Figure*> figures;
    for (const Figure& f : kFigures)
      if (std::any_of(rows.begin(), rows.end(),
                      [&](const json* r) { return r->at("figures").contains(f.key); }))
        figures.push_back(&f);
    out += fmt::format("\n## {}\n\n| arm | runs |", budget.at("title").get<std::string>());
    for (const Figure* f : figures) out += fmt::format(" {} |", f->title);
    out += "\n|---|---|";
    for (size_t i = 0; i < figures.size(); ++i) out += "---|";
    out += "\n";
    for (const json* row : rows) {
      out += fmt::format("| {} | {}", row->at("arm").get<std::string>(), row->at("runs").get<int64_t>());
      for (const char* what : {"failed", "collapsed"})
        if (const int64_t n = row->at(what); n > 0) out += fmt::format(", {} {}", n, what);
      out += " |";
      for (const Figure* f : figures) {
        const auto it = row->at("figures").find(f->key);
        if (it == row->at("figures").end()) {
          out += " |";
          continue;
        }
        const auto value = [&](const char* key) {
          return fmt::format("{:.{}f}", it->at(key).get<double>() * f->scale, f->decimals);
        };
        out.append(" ").append(value("median"));
        if (it->at("count").get<int64_t>() >= 3 && value("q1") != value("q3"))
          out += fmt::format(" [{}, {}]", value("q1"), value("q3"));
        out += " |";
      }
      out += "\n";
    }
  }
  std::string bad;
  for (const json& run : comparison.at("runs"))
    if (run.at("status") == "failed" || run.at("status") == "collapsed")
      bad += fmt::format("- {}, seed {}, {}: {}: {}\n", run.at("arm").get<std::string>(),
                         run.at("seed").get<int64_t>(), run.at("budget").get<std::string>(),
                         run.at("status").get<std::string>(), run.at("reason").get<std::string>());
  if (!bad.empty()) out += "\n## Runs that failed or collapsed\n\n" + bad;
  return out;
}

std::string compare_csv(const json& comparison) {
  // A line a run and temperature; text scores differ between the lines of a run, the rest repeats.
  const char* kText[] = {
      "temperature",         "exact_match",          "bleu",          "rouge_l",
      "distinct_1",          "distinct_2",           "distinct_3",    "self_bleu_2",
      "self_bleu_3",         "self_bleu_4",          "self_bleu_5",   "length",
      "judge_accuracy",      "judge_error",          "judge_ranking", "feature_judge_accuracy",
      "feature_judge_error", "feature_judge_ranking"};
  const char* kRun[] = {"steps",
                        "ce",
                        "ppl",
                        "label_likelihood",
                        "drift",
                        "parameters_trained",
                        "parameters_deployed",
                        "parameters_discriminator",
                        "optimizer_bytes",
                        "peak_memory_bytes",
                        "train_seconds",
                        "rows",
                        "rows_per_second",
                        "sampled_tokens"};
  std::string out = "budget,arm,seed,status";
  for (const char* key : kRun) out += fmt::format(",{}", key);
  for (const char* key : kText) out += fmt::format(",{}", key);
  out += "\n";
  const auto cell = [](const json& from, const char* key) {
    const auto value = number_at(from, key);
    return value ? fmt::format(",{}", *value) : std::string(",");
  };
  for (const json& run : comparison.at("runs")) {
    std::string head =
        fmt::format("{},{},{},{}", run.at("budget").get<std::string>(), run.at("arm").get<std::string>(),
                    run.at("seed").get<int64_t>(), run.at("status").get<std::string>());
    for (const char* key : kRun) head += cell(run.at("figures"), key);
    const json& curve = run.at("curve");
    if (curve.empty()) out.append(head).append(std::size(kText), ',').append("\n");
    for (const json& row : curve) {
      out += head;
      for (const char* key : kText) out += cell(row, key);
      out += "\n";
    }
  }
  return out;
}

json peft_result(const json& run, const json& summary, const TrainConfig& config) {
  const json& figures = run.at("figures");
  const auto figure = [&](const char* key) { return number_at(figures, key); };
  const auto or_null = [](const std::optional<double>& v) { return v ? json(*v) : json(nullptr); };
  const json cost = summary.value("cost", json::object());
  const json about = summary.value("run", json::object());
  json metrics{{"step", or_null(figure("steps"))},
               {"test loss", or_null(figure("ce"))},
               {"test samples", about.value("items", 0)},
               {"train time", or_null(figure("train_seconds"))},
               {"train tokens", or_null(figure("rows"))}};
  if (figure("label_likelihood"))
    metrics["test accuracy"] = *figure("label_likelihood");
  else if (figure("exact_match"))
    metrics["test accuracy"] = *figure("exact_match");
  for (const char* key : {"bleu", "rouge_l", "self_bleu_4", "judge_accuracy", "feature_judge_accuracy"})
    if (figure(key)) metrics[key] = *figure(key);
  const double deployed = figure("parameters_deployed").value_or(0),
               base = cost.value("parameters_base", 0.0), trained = figure("parameters_trained").value_or(0),
               peak = figure("peak_memory_bytes").value_or(0);
  return {
      {"run_info",
       {{"created_at", run.at("finished_at")},
        {"total_time", or_null(number_at(run, "total_seconds"))},
        {"experiment_name",
         fmt::format("{}/seed-{}", run.at("arm").get<std::string>(), run.at("seed").get<int64_t>())},
        {"peft_branch", nullptr},
        {"train_config",
         {{"model_id", config.model},
          {"dtype", about.value("dtype", "")},
          {"batch_size", config.train.batch},
          {"max_steps", or_null(figure("steps"))},
          {"seed", config.seed},
          {"grad_norm_clip", config.optimizer.clip},
          {"optimizer_type", "AdamW"},
          {"optimizer_kwargs",
           {{"lr", config.loss.kind == LossKind::kCe ? config.optimizer.lr_ce : config.optimizer.lr},
            {"weight_decay", config.optimizer.weight_decay}}},
          {"lr_scheduler", config.optimizer.schedule == Schedule::kCosine ? json("cosine") : json(nullptr)}}},
        {"peft_config", {{"peft_type", about.value("method", "")}, {"settings", run.at("settings")}}},
        {"error_msg", run.at("status") == "failed" ? run.at("reason") : json("")}}},
      {"train_info",
       {{"accelerator_memory_reserved_avg", peak},
        {"accelerator_memory_max", peak},
        {"accelerator_memory_reserved_99th", peak},
        {"train_time", or_null(figure("train_seconds"))},
        {"file_size", 4.0 * deployed},
        {"num_trainable_params", trained},
        {"num_total_params", base + trained},
        {"status", run.at("status") == "failed" ? "failed" : "success"},
        {"metrics", json::array({metrics})}}},
      {"meta_info",
       {{"model_info", {{"sha", nullptr}, {"created_at", nullptr}}},
        {"dataset_info", {{config.data.train, {{"sha", nullptr}, {"created_at", nullptr}}}}},
        {"package_info", {{"gantrain", run.at("version")}}},
        {"system_info", {{"system", "Linux"}, {"accelerator", about.value("device", "")}}},
        {"pytorch_info", nullptr}}}};
}

}  // namespace gantrain
