#include "train/config.h"

#include <toml++/toml.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <span>
#include <sstream>
#include <utility>
#include <variant>

#include "core/check.h"
#include "train/suggest.h"
#include "train/text.h"

namespace gantrain {
namespace {

constexpr double kHuge = 1e300;
constexpr int64_t kMany = int64_t{1} << 40;

using TextList = std::vector<std::string>;
using NumberList = std::vector<double>;
using TextMap = std::map<std::string, std::string>;

// One row of the table: how a key is read, written and explained. `get` gives the value as TOML text.
struct Key {
  std::string name;
  std::string type;  // for people: "integer in [1, 64]", "one of a|b|c"
  std::string doc;
  std::function<void(TrainConfig&, const toml::node&, const std::string& place)> set;
  std::function<std::string(const TrainConfig&)> get;
  bool text = false;  // a bare word in an override is meant as a string
  bool list = false;  // bare words with commas are meant as a list
  bool map = false;   // key.word=value sets one entry
};

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
          out += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
        else
          out += c;
    }
  }
  out += '"';
  return out;
}

// The shortest text that reads back to the same double, with the point or exponent that TOML wants.
std::string number(double x) {
  std::string out = fmt::format("{}", x);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

// A value as a person wrote it, cut short, for "got ...".
std::string shown(const toml::node& node) {
  std::ostringstream out;
  if (const auto* text = node.as_string()) {
    out << quote(text->get());
  } else if (node.is_table()) {
    out << "a table";
  } else if (node.is_array()) {
    out << "a list";
  } else {
    node.visit([&](auto& value) { out << value; });
  }
  std::string s = out.str();
  if (s.size() > 60) s = s.substr(0, 57) + "...";
  return s;
}

[[noreturn]] void wrong(const std::string& place, const std::string& expected, const toml::node& got) {
  fail_usage("{}: expected {}, got {}", place, expected, shown(got));
}

std::string range_name(const char* what, double low, double high) {
  const auto end = [](double x) { return fmt::format("{}", x); };
  if (low <= -kHuge && high >= kHuge) return what;
  if (high >= static_cast<double>(kMany)) return fmt::format("{} >= {}", what, end(low));
  return fmt::format("{} in [{}, {}]", what, end(low), end(high));
}

template <typename Access>
Key integer_key(const char* name, Access access, int64_t low, int64_t high, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = range_name("integer", static_cast<double>(low), static_cast<double>(high));
  key.set = [=, type = key.type](TrainConfig& config, const toml::node& node, const std::string& place) {
    const auto* value = node.as_integer();
    if (!value || value->get() < low || value->get() > high) wrong(place, type, node);
    access(config) = value->get();
  };
  key.get = [=](const TrainConfig& config) {
    return fmt::format("{}", access(const_cast<TrainConfig&>(config)));
  };
  return key;
}

double real_value(const toml::node& node, double low, double high, const std::string& type,
                  const std::string& place) {
  double x = std::numeric_limits<double>::quiet_NaN();
  if (const auto* real = node.as_floating_point()) x = real->get();
  if (const auto* integer = node.as_integer()) x = static_cast<double>(integer->get());
  if (!(x >= low && x <= high)) wrong(place, type, node);  // NaN fails here too
  return x;
}

template <typename Access>
Key real_key(const char* name, Access access, double low, double high, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = range_name("number", low, high);
  key.set = [=, type = key.type](TrainConfig& config, const toml::node& node, const std::string& place) {
    access(config) = real_value(node, low, high, type, place);
  };
  key.get = [=](const TrainConfig& config) { return number(access(const_cast<TrainConfig&>(config))); };
  return key;
}

template <typename Access>
Key bool_key(const char* name, Access access, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = "true or false";
  key.set = [=](TrainConfig& config, const toml::node& node, const std::string& place) {
    const auto* value = node.as_boolean();
    if (!value) wrong(place, "true or false", node);
    access(config) = value->get();
  };
  key.get = [=](const TrainConfig& config) {
    return access(const_cast<TrainConfig&>(config)) ? "true" : "false";
  };
  return key;
}

// A string that came from outside: no NUL (it would end a file name early), bounded.
const std::string& text_value(const toml::node& node, const std::string& place) {
  const auto* value = node.as_string();
  if (!value) wrong(place, "a string in quotes", node);
  const std::string& text = value->get();
  if (text.find('\0') != std::string::npos) fail_usage("{}: the string holds a NUL character", place);
  if (text.size() > (1u << 20)) fail_usage("{}: the string is longer than 1 MiB", place);
  return text;
}

template <typename Access>
Key text_key(const char* name, Access access, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = "string";
  key.text = true;
  key.set = [=](TrainConfig& config, const toml::node& node, const std::string& place) {
    access(config) = text_value(node, place);
  };
  key.get = [=](const TrainConfig& config) { return quote(access(const_cast<TrainConfig&>(config))); };
  return key;
}

template <typename Access>
Key bytes_key(const char* name, Access access, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = "bytes: an integer or \"8GiB\"";
  key.text = true;
  key.set = [=](TrainConfig& config, const toml::node& node, const std::string& place) {
    if (const auto* value = node.as_integer()) {
      if (value->get() < 0) wrong(place, "a number of bytes >= 0", node);
      access(config) = value->get();
    } else {
      access(config) = parse_bytes(text_value(node, place), place);
    }
  };
  key.get = [=](const TrainConfig& config) {
    return fmt::format("{}", access(const_cast<TrainConfig&>(config)));
  };
  return key;
}

// `names` in the order of the enumeration's values, which count from 0.
template <typename Access>
Key choice_key(const char* name, Access access, TextList names, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = fmt::format("one of {}", join(names, "|"));
  key.text = true;
  key.set = [=](TrainConfig& config, const toml::node& node, const std::string& place) {
    using Enum = std::remove_reference_t<decltype(access(config))>;
    std::string word;
    if (const auto* flag = node.as_boolean())
      word = flag->get() ? "true" : "false";  // add_bos = true
    else
      word = text_value(node, place);
    const auto found = std::find(names.begin(), names.end(), word);
    if (found == names.end())
      fail_usage("{}: expected one of {}, got {}{}", place, join(names, "|"), shown(node),
                 did_you_mean(word, names));
    access(config) = static_cast<Enum>(found - names.begin());
  };
  key.get = [=](const TrainConfig& config) {
    return quote(names.at(static_cast<size_t>(access(const_cast<TrainConfig&>(config)))));
  };
  return key;
}

template <typename Access>
Key text_list_key(const char* name, Access access, TextList allowed, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = allowed.empty() ? "list of strings" : fmt::format("list of {}", join(allowed, "|"));
  key.text = key.list = true;
  key.set = [=, type = key.type](TrainConfig& config, const toml::node& node, const std::string& place) {
    const auto* array = node.as_array();
    if (!array) wrong(place, fmt::format("a {}", type), node);
    TextList values;
    for (const auto& item : *array) {
      const std::string& word = text_value(item, place);
      if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), word) == allowed.end())
        fail_usage("{}: expected one of {}, got {}{}", place, join(allowed, "|"), quote(word),
                   did_you_mean(word, allowed));
      if (std::find(values.begin(), values.end(), word) != values.end())
        fail_usage("{}: {} stands twice in the list", place, quote(word));
      values.push_back(word);
    }
    access(config) = std::move(values);
  };
  key.get = [=](const TrainConfig& config) {
    TextList quoted;
    for (const std::string& word : access(const_cast<TrainConfig&>(config))) quoted.push_back(quote(word));
    return fmt::format("[{}]", join(quoted, ", "));
  };
  return key;
}

template <typename Access>
Key number_list_key(const char* name, Access access, double low, double high, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = fmt::format("list of {}", range_name("numbers", low, high));
  key.list = true;
  key.set = [=, type = key.type](TrainConfig& config, const toml::node& node, const std::string& place) {
    const auto* array = node.as_array();
    if (!array) wrong(place, fmt::format("a {}", type), node);
    NumberList values;
    for (const auto& item : *array)
      values.push_back(real_value(item, low, high, range_name("a number", low, high), place));
    access(config) = std::move(values);
  };
  key.get = [=](const TrainConfig& config) {
    TextList shown;
    for (const double x : access(const_cast<TrainConfig&>(config))) shown.push_back(number(x));
    return fmt::format("[{}]", join(shown, ", "));
  };
  return key;
}

template <typename Access>
Key text_map_key(const char* name, Access access, const char* doc) {
  Key key;
  key.name = name;
  key.doc = doc;
  key.type = "table of strings";
  key.map = true;
  key.set = [=](TrainConfig& config, const toml::node& node, const std::string& place) {
    const auto* table = node.as_table();
    if (!table) wrong(place, "a table such as { \"0\" = \"no\", \"1\" = \"yes\" }", node);
    TextMap values = access(config);
    for (const auto& [word, value] : *table) values[std::string(word.str())] = text_value(value, place);
    access(config) = std::move(values);
  };
  key.get = [=](const TrainConfig& config) {
    TextList pairs;
    for (const auto& [word, value] : access(const_cast<TrainConfig&>(config)))
      pairs.push_back(fmt::format("{} = {}", quote(word), quote(value)));
    return pairs.empty() ? std::string("{}") : fmt::format("{{ {} }}", join(pairs, ", "));
  };
  return key;
}

#define GT_AT(path) \
  [](TrainConfig & c) -> auto& { return c.path; }

std::vector<Key> make_keys() {
  return {
      text_key("model", GT_AT(model),
               "the frozen model: a Hugging Face folder, a .gguf file or a llama2.c .bin"),
      choice_key(
          "method", GT_AT(method), {std::begin(kMethodNames), std::end(kMethodNames)},
          "what is trained: gan, a prompt made for each input; prompt, a table of vectors; ptuning, "
          "that table "
          "through an MLP; lora, low-rank adapters and no prompt; qlora, the same over a packed base; "
          "prefix, "
          "keys and values before every layer's; adapter, bottlenecks in every layer; full, all weights; "
          "where it is not set, generator.kind says it"),
      choice_key(
          "model_quantize", GT_AT(model_quantize),
          {std::begin(kBasePackingNames), std::end(kBasePackingNames)},
          "how the model's matrices lie in memory: none, every value in dtype; file, those a .gguf file "
          "holds packed stay so; nf4, q8_0, q4_0, q4_1, all others are quantised to that besides; auto: nf4 "
          "for method qlora, else none"),
      text_key("adapter", GT_AT(adapter),
               "a PEFT folder to start from: LORA for method lora, PREFIX_TUNING for prefix, else "
               "PROMPT_TUNING or "
               "P_TUNING; a folder of method adapter's own export"),
      choice_key("device", GT_AT(device), {"cpu", "cuda"}, "where the model runs"),
      choice_key(
          "gemm", GT_AT(gemm), {"default", "own", "cublaslt", "auto"},
          "who multiplies matrices on a GPU: our kernels, cuBLASLt, or what timing finds faster; default: "
          "$GANTRAIN_GEMM, else own"),
      choice_key(
          "dtype", GT_AT(dtype), {"auto", "f32", "bf16"},
          "storage of the frozen weights and activations; auto: bf16 where the hardware multiplies it"),
      integer_key("threads", GT_AT(threads), 0, 1024, "CPU threads; 0: one a core"),
      integer_key("seed", GT_AT(seed), 0, std::numeric_limits<int64_t>::max(),
                  "the one seed of the run: weights, batches, noise, sampling"),
      text_key("output", GT_AT(output), "run folder: checkpoints, resolved configuration, logs"),
      bytes_key(
          "memory_limit", GT_AT(memory_limit),
          "a run whose memory plan is larger is refused before it starts; 0: what is free on this machine"),

      text_key("data.train", GT_AT(data.train), "training file"),
      text_key("data.valid", GT_AT(data.valid),
               "validation file; empty: data.valid_fraction of the training file"),
      text_key("data.test", GT_AT(data.test), "test file; empty: data.test_fraction of the training file"),
      choice_key(
          "data.format", GT_AT(data.format), {"auto", "jsonl", "tsv", "csv", "lines"},
          "auto: by the ending, .jsonl .json .tsv .csv; lines: one item a line, see data.line_pattern"),
      choice_key("data.encoding", GT_AT(data.encoding), {"utf8", "latin1"}, "latin1 is converted to UTF-8"),
      text_key("data.prompt_template", GT_AT(data.prompt_template),
               "the prompt, with {column} for a column or JSON field, {{ and }} for braces; empty: {prompt}"),
      text_key("data.completion_template", GT_AT(data.completion_template),
               "the completion, in the same way; empty: {completion}"),
      text_list_key("data.columns", GT_AT(data.columns), {},
                    "names of a TSV or CSV file's columns; empty: its first line holds them"),
      choice_key("data.header", GT_AT(data.header), {"auto", "true", "false"},
                 "whether a table's first line names its columns; auto: when data.columns is empty"),
      text_key("data.delimiter", GT_AT(data.delimiter), "one character; empty: tab for tsv, comma for csv"),
      text_key(
          "data.line_pattern", GT_AT(data.line_pattern),
          "lines only: {columns} parted by fixed text; each but the last ends where that text first occurs"),
      text_map_key(
          "data.label_map", GT_AT(data.label_map),
          "what the values of data.label_column are replaced by; a value that is not in it is an error"),
      text_key("data.label_column", GT_AT(data.label_column), "the column that data.label_map is about"),
      choice_key("data.chat_template", GT_AT(data.chat_template),
                 {"none", "auto", "chatml", "llama2", "llama3"},
                 "wraps prompts (and messages) as a chat; auto: the model's own"),
      text_key("data.system", GT_AT(data.system),
               "system message of the chat template; empty: the template's own"),
      integer_key("data.max_prompt_tokens", GT_AT(data.max_prompt_tokens), 1, 1 << 20,
                  "items with a longer prompt are dropped and counted"),
      integer_key("data.max_completion_tokens", GT_AT(data.max_completion_tokens), 1, 1 << 20,
                  "longer completions are cut here, without an end token, and counted"),
      choice_key("data.add_bos", GT_AT(data.add_bos), {"auto", "true", "false"},
                 "begin with the model's BOS token; auto: as its tokenizer says"),
      bool_key("data.append_eos", GT_AT(data.append_eos), "end completions with the model's end token"),
      real_key("data.valid_fraction", GT_AT(data.valid_fraction), 0.0, 0.9,
               "share of the training file kept for validation, chosen by content hash"),
      real_key("data.test_fraction", GT_AT(data.test_fraction), 0.0, 0.9,
               "share of the training file kept for testing, chosen by content hash"),
      choice_key("data.bad_items", GT_AT(data.bad_items), {"error", "drop"},
                 "what to do with an item that cannot be read: stop, or leave it out and count it"),
      choice_key(
          "data.duplicates", GT_AT(data.duplicates), {"error", "drop"},
          "the same prompt in two splits: stop, or leave it out of the training (or validation) split"),
      integer_key("data.max_train_items", GT_AT(data.max_train_items), 0, kMany,
                  "use only this many training items, drawn by the seed; 0: all"),
      integer_key("data.max_valid_items", GT_AT(data.max_valid_items), 0, kMany,
                  "use only this many validation items, drawn by the seed; 0: all"),
      bool_key("data.bucket", GT_AT(data.bucket), "put items of similar length into the same batch"),

      choice_key(
          "generator.kind", GT_AT(generator.kind), {"static", "mlp", "conditional"},
          "static: a learned table; mlp: a table through an MLP; conditional: a prompt for each input"),
      integer_key("generator.prompt_length", GT_AT(generator.prompt_length), 0, 4096,
                  "soft prompt vectors P; 0: none, the base model"),
      choice_key(
          "generator.init", GT_AT(generator.init), {"text", "vocabulary"},
          "start from a text's embeddings or from sampled vocabulary rows; prefix: from their keys and "
          "values"),
      text_key("generator.init_text", GT_AT(generator.init_text),
               "the text for generator.init = \"text\", repeated or cut to P tokens"),
      integer_key("generator.width", GT_AT(generator.width), 8, 8192,
                  "conditional: width w of its attention; mlp: width of its learned rows"),
      integer_key("generator.blocks", GT_AT(generator.blocks), 1, 8, "conditional: cross-attention blocks"),
      integer_key("generator.noise_dim", GT_AT(generator.noise_dim), 0, 4096,
                  "size of the noise z; 0: the same input always gives the same prompt"),
      integer_key("generator.hidden", GT_AT(generator.hidden), 8, 65536, "mlp: hidden width"),
      integer_key("generator.feature_layer", GT_AT(generator.feature_layer), 0, 1024,
                  "conditional: reads the input's embeddings (0) or the frozen states after this layer"),
      choice_key("generator.placement", GT_AT(generator.placement), {"prefix", "suffix"},
                 "the soft prompt stands before or after the input"),
      real_key("generator.norm_penalty", GT_AT(generator.norm_penalty), 0.0, 100.0,
               "weight of log(rms prompt / rms embeddings)^2"),

      integer_key("lora.rank", GT_AT(lora.rank), 1, 4096, "rank r of each adapter"),
      real_key("lora.alpha", GT_AT(lora.alpha), 1e-6, 1e6, "an adapter adds alpha / r times B A"),
      bool_key("lora.rslora", GT_AT(lora.rslora), "alpha / sqrt(r) in place of alpha / r"),
      text_list_key("lora.targets", GT_AT(lora.targets), {"q", "k", "v", "o", "gate", "up", "down", "all"},
                    "the linear layers of each transformer layer that get an adapter"),
      real_key("lora.dropout", GT_AT(lora.dropout), 0.0, 0.99,
               "share of an adapter's inputs that a training step leaves out"),

      integer_key("prefix.length", GT_AT(prefix.length), 1, 4096,
                  "virtual positions P; generator.init says where their keys and values start"),
      bool_key("prefix.projection", GT_AT(prefix.projection),
               "an MLP's output is added to the trained table"),
      integer_key("prefix.hidden", GT_AT(prefix.hidden), 8, 65536, "hidden width of that MLP"),

      integer_key("bottleneck.width", GT_AT(bottleneck.width), 1, 65536,
                  "method adapter: width of each bottleneck"),
      choice_key("bottleneck.activation", GT_AT(bottleneck.activation), {"silu", "gelu", "tanh"},
                 "its nonlinearity"),
      text_list_key("bottleneck.places", GT_AT(bottleneck.places), {"attention", "mlp"},
                    "what they stand behind in each transformer layer: attention, mlp or both"),

      integer_key("discriminator.feature_layer", GT_AT(discriminator.feature_layer), -1, 1024,
                  "the frozen layer it reads; -1: a third of the model's depth"),
      integer_key("discriminator.width", GT_AT(discriminator.width), 8, 8192, "width of its head"),
      choice_key("discriminator.loss", GT_AT(discriminator.loss), {"relativistic", "bce", "hinge"},
                 "relativistic pairs; bce: the textbook GAN with labels 1 and 0; hinge"),
      real_key("discriminator.gamma", GT_AT(discriminator.gamma), 0.0, 1000.0,
               "weight of the approximated gradient penalties R1 and R2; 0: none"),
      real_key("discriminator.gamma_end", GT_AT(discriminator.gamma_end), 0.0, 1000.0,
               "gamma at the last step"),
      real_key("discriminator.sigma", GT_AT(discriminator.sigma), 1e-6, 10.0,
               "noise of the penalty's copies, as a share of the features' rms"),
      real_key("discriminator.center_penalty", GT_AT(discriminator.center_penalty), 0.0, 10.0,
               "weight of Dr^2 + Df^2"),
      real_key("discriminator.label_smoothing", GT_AT(discriminator.label_smoothing), 0.0, 0.5,
               "bce: real answers are labelled 1 minus this"),
      bool_key("discriminator.spectral_norm", GT_AT(discriminator.spectral_norm),
               "after each update, divide its matrices whose largest singular value is above 1 by it"),
      real_key("discriminator.replay", GT_AT(discriminator.replay), 0.0, 0.9,
               "false answers of earlier steps that it sees again, as a share of the step's fresh ones"),

      choice_key("loss.kind", GT_AT(loss.kind), {"ce", "rloo", "gumbel"},
                 "ce: cross-entropy only, no adversary; rloo: score function; gumbel: straight-through"),
      real_key("loss.alpha", GT_AT(loss.alpha), 0.0, 100.0,
               "weight of the cross-entropy beside the adversarial loss"),
      real_key("loss.alpha_end", GT_AT(loss.alpha_end), 0.0, 100.0,
               "alpha at the last step (cosine between)"),
      real_key("loss.beta", GT_AT(loss.beta), -1.0, 100.0,
               "weight of the KL divergence from the warmed-up generator; -1: 1 where the adversary is alone "
               "after a warm-up (loss.alpha = loss.alpha_end = 0), else 0.005"),
      integer_key("loss.samples", GT_AT(loss.samples), 1, 256, "sampled answers N an input"),
      choice_key("loss.weighting", GT_AT(loss.weighting), {"leave_one_out", "softmax"},
                 "rloo: how rewards become weights"),
      choice_key("loss.credit", GT_AT(loss.credit), {"answer", "token"},
                 "rloo: what a token is paid for: the answer's score, or the discriminator's logits from "
                 "that token on"),
      real_key("loss.reward_temperature", GT_AT(loss.reward_temperature), 1e-3, 1e3,
               "weighting = \"softmax\": temperature of the rewards"),
      real_key("loss.tau", GT_AT(loss.tau), 1e-3, 100.0, "gumbel: softmax temperature"),
      real_key("loss.tau_end", GT_AT(loss.tau_end), 1e-3, 100.0, "tau at the last step"),
      integer_key("loss.top_k", GT_AT(loss.top_k), 1, 4096, "gumbel: tokens in the relaxed softmax"),

      real_key("optimizer.lr", GT_AT(optimizer.lr), 0.0, 10.0,
               "generator's learning rate once the discriminator is there; 0: chosen by method"),
      real_key("optimizer.lr_end", GT_AT(optimizer.lr_end), -1.0, 10.0,
               "its value at the last step; -1: chosen by method"),
      real_key("optimizer.lr_ce", GT_AT(optimizer.lr_ce), 0.0, 10.0,
               "generator's learning rate in the cross-entropy warm-up, or all through a run of loss.kind = "
               "\"ce\", "
               "where it goes to 0; 0: chosen by method"),
      real_key("optimizer.lr_d", GT_AT(optimizer.lr_d), 0.0, 10.0, "discriminator's learning rate"),
      real_key("optimizer.lr_d_end", GT_AT(optimizer.lr_d_end), 0.0, 10.0, "its value at the last step"),
      real_key("optimizer.beta1", GT_AT(optimizer.beta1), -1.0, 0.9999,
               "Adam's first moment once the discriminator is there (before that 0.9); -1: 0"),
      real_key("optimizer.beta2", GT_AT(optimizer.beta2), -1.0, 0.99999,
               "Adam's second moment once the discriminator is there (before that 0.999); -1: 0.99"),
      real_key("optimizer.eps", GT_AT(optimizer.eps), 1e-16, 1.0, "Adam's epsilon"),
      real_key("optimizer.weight_decay", GT_AT(optimizer.weight_decay), 0.0, 10.0, "decoupled weight decay"),
      real_key("optimizer.clip", GT_AT(optimizer.clip), 0.0, 1e6,
               "largest norm of a player's gradient; 0: not clipped"),
      integer_key("optimizer.warmup_steps", GT_AT(optimizer.warmup_steps), 0, kMany,
                  "first steps of the cross-entropy warm-up, in which the learning rate rises linearly"),
      choice_key("optimizer.schedule", GT_AT(optimizer.schedule), {"cosine", "linear", "constant"},
                 "how learning rates go to their values at the last step"),

      real_key("train.epochs", GT_AT(train.epochs), 0.0, 1e6,
               "passes over the training data when train.steps is 0"),
      integer_key("train.steps", GT_AT(train.steps), 0, kMany,
                  "optimiser steps; 0: counted from train.epochs"),
      integer_key("train.batch", GT_AT(train.batch), 1, 65536, "sequences a batch"),
      integer_key("train.accumulate", GT_AT(train.accumulate), 1, 2048, "batches an optimiser step"),
      integer_key("train.warmup_ce_steps", GT_AT(train.warmup_ce_steps), 0, kMany,
                  "steps of cross-entropy alone before the discriminator appears"),
      integer_key("train.discriminator_steps", GT_AT(train.discriminator_steps), 0, kMany,
                  "most steps of the discriminator alone after that; ends earlier at train.target_low"),
      integer_key("train.discriminator_samples", GT_AT(train.discriminator_samples), 0, 256,
                  "sampled answers an input in those steps; 0: loss.samples"),
      real_key("train.target_low", GT_AT(train.target_low), 0.0, 1.0,
               "the discriminator alone trains until its running pair accuracy is at least this"),
      real_key("train.target_high", GT_AT(train.target_high), 0.0, 1.0,
               "upper end of that target; beyond it the phase is over as well, and the gate takes over"),
      real_key("train.gate_d", GT_AT(train.gate_d), 0.0, 1.0,
               "the discriminator trains only while its running pair accuracy is below this"),
      real_key("train.gate_g", GT_AT(train.gate_g), 0.0, 1.0,
               "the generator trains only while it is above this"),
      real_key("train.gate_ema", GT_AT(train.gate_ema), 0.0, 0.9999, "memory of the running pair accuracy"),
      bool_key("train.gate_ce", GT_AT(train.gate_ce),
               "in a step in which the gate holds the generator back it learns from the references all the "
               "same (loss.alpha)"),
      bool_key("train.hold_d", GT_AT(train.hold_d),
               "after its own steps the discriminator stands still, and the generator trains in every step: "
               "no gate"),
      real_key("train.ema", GT_AT(train.ema), 0.0, 0.999999,
               "memory of the averaged generator, which is evaluated and used once the discriminator is "
               "there; 0: the last "
               "one"),
      integer_key("train.average_from", GT_AT(train.average_from), -1, kMany,
                  "with loss.kind = \"ce\": after this many steps the same average begins; -1: never, the "
                  "last one is evaluated and used"),
      integer_key("train.max_new_tokens", GT_AT(train.max_new_tokens), 1, 1 << 20, "longest sampled answer"),
      choice_key(
          "train.recompute", GT_AT(train.recompute),
          TextList(std::begin(kRecomputeNames), std::end(kRecomputeNames)),
          "what the backward pass computes again in the place of keeping it, for the same bits in more time "
          "and less memory; gate_up: the MLP's first product; mlp: the product in front of it too; layer: "
          "all "
          "but each layer's input"),
      bytes_key("train.context_cache", GT_AT(train.context_cache),
                "keys and values of inputs that nothing trained changes are kept up to this size and not run "
                "anew: those "
                "before a prompt (generator.placement = \"suffix\") and those that the discriminator reads; "
                "0: none"),
      integer_key("train.eval_every", GT_AT(train.eval_every), 0, kMany,
                  "steps between validations; 0: at the end only"),
      integer_key("train.save_every", GT_AT(train.save_every), 0, kMany,
                  "steps between checkpoints; 0: at the end only"),
      integer_key("train.keep", GT_AT(train.keep), 1, 1000000, "checkpoints kept beside the best"),

      number_list_key("eval.temperatures", GT_AT(eval.temperatures), 0.0, 10.0,
                      "temperatures of the quality and diversity curves; 0 is greedy"),
      integer_key("eval.samples", GT_AT(eval.samples), 1, 256, "answers sampled an input and temperature"),
      integer_key("eval.max_items", GT_AT(eval.max_items), 0, kMany,
                  "evaluate on the first of this many items; 0: all"),
  };
}

#undef GT_AT

const std::vector<Key>& keys() {
  static const std::vector<Key> table = make_keys();
  return table;
}

const Key* find_key(std::string_view name) {
  for (const Key& key : keys())
    if (key.name == name) return &key;
  return nullptr;
}

std::vector<std::string> known_names() {
  std::vector<std::string> names;
  for (const Key& key : keys()) names.push_back(key.name);
  return names;
}

bool is_section(std::string_view name) {
  for (const Key& key : keys())
    if (key.name.size() > name.size() && key.name.compare(0, name.size(), name) == 0 &&
        key.name[name.size()] == '.')
      return true;
  return false;
}

[[noreturn]] void unknown(const std::string& place, const std::string& name) {
  fail_usage("{}: unknown key '{}'{} (all keys: gantrain train --help-config)", place, name,
             did_you_mean(name, known_names()));
}

// Names of the keys that were set.
using Seen = std::set<std::string>;

void apply_table(TrainConfig& config, Seen& seen, const toml::table& table, const std::string& prefix,
                 const std::string& file) {
  for (const auto& [word, node] : table) {
    const std::string name = prefix + std::string(word.str());
    const std::string place = fmt::format("{}:{}", file, word.source().begin.line);
    if (const Key* key = find_key(name)) {
      key->set(config, node, fmt::format("{}: {}", place, name));
      seen.insert(name);
    } else if (is_section(name)) {
      const toml::table* section = node.as_table();
      if (!section)
        fail_usage("{}: {} is a section: expected [{}] with keys under it, got {}", place, name, name,
                   shown(node));
      apply_table(config, seen, *section, name + ".", file);
    } else {
      unknown(place, name);
    }
  }
}

// The value of an override as a TOML node: as TOML where it is that, else bare text.
void apply_override(TrainConfig& config, Seen& seen, const std::string& override_text) {
  const std::string place = fmt::format("command line: {}", override_text.substr(0, 80));
  const size_t equals = override_text.find('=');
  if (equals == std::string::npos || equals == 0) fail_usage("{}: expected key=value", place);
  const std::string name = override_text.substr(0, equals), value = override_text.substr(equals + 1);
  if (const size_t bad = find_bad_utf8(override_text); bad != std::string::npos)
    fail_usage("command line: {}: not UTF-8 at byte {}", name, bad);
  const Key* key = find_key(name);
  std::string entry;  // of a map
  if (!key) {
    for (const Key& candidate : keys())
      if (candidate.map && name.size() > candidate.name.size() + 1 &&
          name.compare(0, candidate.name.size() + 1, candidate.name + ".") == 0) {
        key = &candidate;
        entry = name.substr(candidate.name.size() + 1);
      }
  }
  if (!key) {
    if (is_section(name))
      fail_usage("{}: {} is a section; set one of its keys: {}.KEY=VALUE", place, name, name);
    unknown("command line", name);
  }

  std::string text = value;
  if (!entry.empty()) {
    text = fmt::format("{{ {} = {} }}", quote(entry), value.starts_with('"') ? value : quote(value));
  } else if (key->list && !value.starts_with('[')) {
    std::vector<std::string> items;
    for (size_t begin = 0; begin <= value.size() && !value.empty();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      const std::string item = value.substr(begin, end - begin);
      items.push_back(key->text ? quote(item) : item);
      begin = end + 1;
    }
    text = fmt::format("[{}]", join(items, ", "));
  } else if (key->text && !key->list && !value.starts_with('"') && !value.starts_with('\'')) {
    text = quote(value);
  }
  toml::table parsed;
  try {
    parsed = toml::parse(fmt::format("value = {}", text));
  } catch (const toml::parse_error& error) {
    fail_usage("{}: expected {}, got {} ({})", place, key->type, value.empty() ? "nothing" : value,
               error.description());
  }
  if (parsed.size() != 1) fail_usage("{}: expected one value, got {}", place, value);
  key->set(config, *parsed.get("value"), fmt::format("command line: {}", name));
  seen.insert(key->name);
}

// method and generator.kind say the same thing of a prompt: either may be left out, and what the command line
// says wins over both of the file's.
void resolve_method(TrainConfig& c, const Seen& file, const Seen& line) {
  using enum GeneratorKind;
  constexpr std::array kKinds{kConditional, kStatic, kMlp, kStatic, kStatic, kStatic, kStatic, kStatic};
  constexpr std::array kNames{"conditional", "static", "mlp",    "static",
                              "static",      "static", "static", "static"};
  const bool by_line = line.contains("method") || line.contains("generator.kind");
  const Seen& last = by_line ? line : file;
  if (!last.contains("method")) {
    c.method = c.generator.kind == GeneratorKind::kStatic ? Method::kPrompt
               : c.generator.kind == GeneratorKind::kMlp  ? Method::kPtuning
                                                          : Method::kGan;
  } else {
    const auto m = static_cast<size_t>(c.method);
    if (last.contains("generator.kind") && c.generator.kind != kKinds[m])
      fail_usage(
          "configuration: method and generator.kind: this method has generator.kind = \"{}\"; leave one of "
          "them out",
          kNames[m]);
    c.generator.kind = kKinds[m];
  }
  const char* const length = "generator.prompt_length";
  if (!has_prompt(c.method)) {
    if ((line.contains(length) || (!by_line && file.contains(length))) && c.generator.prompt_length != 0)
      fail_usage(
          "configuration: method and generator.prompt_length: {} has no prompt; leave prompt_length out",
          kMethodNames[static_cast<size_t>(c.method)]);
    c.generator.prompt_length = 0;
  } else if (by_line && c.generator.prompt_length == 0 && !line.contains(length)) {
    c.generator.prompt_length = GeneratorConfig().prompt_length;  // the file was a run's of adapters
  }
}

void resolve(TrainConfig& c) {
  if (c.model_quantize == BasePacking::kAuto)
    c.model_quantize = c.method == Method::kQlora ? BasePacking::kNf4 : BasePacking::kNone;
  const bool adversary = c.loss.kind != LossKind::kCe;
  const bool table = c.method == Method::kPrompt;
  const bool prefix = c.method == Method::kPrefix && !c.prefix.projection;
  // A bare table moves by its own rate alone and wants a larger one than a network's weights do; the model's
  // own weights, which are right already, a far smaller one.
  if (c.optimizer.lr == 0.0)
    c.optimizer.lr = c.method == Method::kFull ? 1e-5
                     : prefix                  ? 2e-3
                     : !table                  ? 1e-3
                     : adversary               ? 3e-3
                                               : 1e-2;
  if (c.optimizer.lr_end < 0.0) c.optimizer.lr_end = c.optimizer.lr / (table && adversary ? 3.0 : 5.0);
  if (c.optimizer.lr_ce == 0.0)
    c.optimizer.lr_ce = c.method == Method::kFull ? 5e-5 : table ? 1e-2 : prefix ? 5e-3 : 1e-3;
  // Alone, at the weight at which its best answerer is the references' distribution (docs/method.md): with
  // less it goes where the discriminator was never asked. Beside cross-entropy, which has to move the
  // generator away from the warmed-up one, with little.
  if (c.loss.beta < 0.0)
    c.loss.beta = c.loss.alpha == 0.0 && c.loss.alpha_end == 0.0 && c.train.warmup_ce_steps > 0 ? 1.0 : 5e-3;
  if (c.optimizer.beta1 < 0.0) c.optimizer.beta1 = adversary ? 0.0 : 0.9;
  if (c.optimizer.beta2 < 0.0) c.optimizer.beta2 = adversary ? 0.99 : 0.999;
}

void check_together(const TrainConfig& c) {
  const auto refuse = [](bool wrong, const char* first, const char* second, const std::string& why) {
    if (wrong) fail_usage("configuration: {} and {}: {}", first, second, why);
  };
  refuse(
      c.data.valid_fraction + c.data.test_fraction > 0.95, "data.valid_fraction", "data.test_fraction",
      fmt::format("together {}: nothing is left to train on", c.data.valid_fraction + c.data.test_fraction));
  refuse(!c.data.valid.empty() && c.data.valid_fraction > 0.0, "data.valid", "data.valid_fraction",
         "give one or the other");
  refuse(!c.data.test.empty() && c.data.test_fraction > 0.0, "data.test", "data.test_fraction",
         "give one or the other");
  refuse(c.train.target_low > c.train.target_high, "train.target_low", "train.target_high",
         fmt::format("{} is above {}", c.train.target_low, c.train.target_high));
  // Between the gates both players train; with gate_g >= gate_d there would be a band where neither does.
  refuse(c.train.gate_g >= c.train.gate_d, "train.gate_g", "train.gate_d",
         fmt::format("expected gate_g < gate_d, got {} and {}: neither player would train between them",
                     c.train.gate_g, c.train.gate_d));
  refuse(c.train.hold_d && c.train.discriminator_steps == 0, "train.hold_d", "train.discriminator_steps",
         "a discriminator that is held still and has no steps of its own learns nothing");
  refuse(c.loss.kind == LossKind::kRloo && c.loss.samples < 2, "loss.kind", "loss.samples",
         "rloo compares an answer with the others of its input: expected samples >= 2");
  refuse(c.generator.init == PromptInit::kText && c.generator.init_text.empty(), "generator.init",
         "generator.init_text", "init = \"text\" needs a text");
  refuse(c.method == Method::kQlora && c.model_quantize == BasePacking::kNone, "method", "model_quantize",
         "qlora trains over a packed base: expected file, nf4, q8_0, q4_0 or q4_1");
  refuse(trains_lora(c.method) && c.lora.targets.empty(), "method", "lora.targets",
         "lora needs at least one linear layer");
  refuse(c.method == Method::kAdapter && c.bottleneck.places.empty(), "method", "bottleneck.places",
         "adapters need at least one place");
  refuse(c.method == Method::kFull && c.model_quantize != BasePacking::kNone, "method", "model_quantize",
         "full trains every value of the file: expected none");
  refuse(c.train.steps == 0 && c.train.epochs == 0.0, "train.steps", "train.epochs",
         "both are 0: nothing to do");
  refuse(!c.data.delimiter.empty() && (c.data.delimiter.size() != 1 || c.data.delimiter == "\"" ||
                                       c.data.delimiter == "\n" || c.data.delimiter == "\r"),
         "data.delimiter", "data.format", "a delimiter is one ASCII character, not a quote or a line end");
}

}  // namespace

int64_t parse_bytes(const std::string& text, const std::string& place) {
  size_t digits = 0;
  double value = 0.0;
  try {
    value = std::stod(text, &digits);
  } catch (const std::exception&) {
    digits = 0;
  }
  std::string unit = text.substr(digits);
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  static const std::map<std::string, double> kUnits = {
      {"", 1.0},    {"B", 1.0},      {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
  const auto found = kUnits.find(unit);
  if (digits == 0 || found == kUnits.end() || !(value >= 0.0) || !(value * found->second <= 9e18))
    fail_usage("{}: expected a number of bytes such as 8GiB or 500MB, got {}", place, quote(text));
  return static_cast<int64_t>(value * found->second);
}

TrainConfig parse_train_config(std::string_view text, const std::string& name,
                               const std::vector<std::string>& overrides,
                               const std::vector<std::string>& own) {
  TrainConfig config;
  if (const size_t bad = find_bad_utf8(text); bad != std::string::npos)
    fail_usage("{}:{}: not UTF-8 at byte {} of the file (0x{:02x}); save it as UTF-8", name,
               1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bad), '\n'), bad,
               static_cast<unsigned char>(text[bad]));
  toml::table table;
  try {
    table = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    fail_usage("{}:{}: not TOML: {}", name, error.source().begin.line, error.description());
  }
  Seen file, line;
  apply_table(config, file, table, "", name);
  for (const std::string& text_of : overrides) apply_override(config, own.empty() ? line : file, text_of);
  for (const std::string& text_of : own) apply_override(config, line, text_of);
  resolve_method(config, file, line);
  resolve(config);
  check_together(config);
  return config;
}

TrainConfig load_train_config(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                              const std::vector<std::string>& own) {
  if (file.empty()) return parse_train_config("", "(no file)", overrides, own);
  return parse_train_config(read_text_file(file, int64_t{16} << 20), file.string(), overrides, own);
}

std::string to_toml(const TrainConfig& config) {
  std::string out, section;
  for (const Key& key : keys()) {
    const size_t dot = key.name.find('.');
    const std::string own = dot == std::string::npos ? "" : key.name.substr(0, dot);
    if (own != section) {
      out += fmt::format("\n[{}]\n", own);
      section = own;
    }
    out += fmt::format("{} = {}\n", key.name.substr(dot == std::string::npos ? 0 : dot + 1), key.get(config));
  }
  return out;
}

std::vector<std::string> config_changes(const TrainConfig& from, const TrainConfig& to) {
  std::vector<std::string> changes;
  for (const Key& key : keys()) {
    // Where the run lies and how many threads it gets are not part of what it computes.
    if (key.name == "output" || key.name == "threads") continue;
    if (const std::string before = key.get(from), after = key.get(to); before != after)
      changes.push_back(fmt::format("{}: {} -> {}", key.name, before, after));
  }
  return changes;
}

std::string config_help() {
  const TrainConfig defaults;
  std::string out;
  for (const Key& key : keys())
    out += fmt::format("{} = {}\n    {}\n    {}\n", key.name, key.get(defaults), key.doc, key.type);
  return out;
}

std::string config_markdown() {
  const TrainConfig defaults;
  const auto cell = [](const std::string& text) {  // a bar would end the table's cell
    std::string out;
    for (const char c : text) {
      if (c == '|') out += '\\';
      out += c;
    }
    return out;
  };
  std::string out =
      "# Configuration\n\n"
      "A run is described by a TOML file and by `section.key=value` words behind it, which win:\n\n"
      "```\ngantrain train run.toml train.batch=16 loss.kind=ce output=runs/first\n```\n\n"
      "The resolved configuration, with every key, is saved as `config.toml` in the run folder and can be "
      "used\n"
      "as the file of another run. Unknown keys and values out of range are errors. File names are relative "
      "to the\n"
      "folder the program is started in. On the command line a string needs no quotes, a list may be written "
      "as\n"
      "`eval.temperatures=0.7,1.0`, and `data.label_map.1=\" yes\"` sets one entry of a table.\n\n"
      "This page is written from the program's own table of keys (`gantrain train --help-config` prints the "
      "same);\n"
      "the test `Config.DocumentationIsUpToDate` writes it anew when `GANTRAIN_UPDATE_DOCS=1` is set.\n";
  std::string section = "?";
  for (const Key& key : keys()) {
    const size_t dot = key.name.find('.');
    const std::string own = dot == std::string::npos ? "" : key.name.substr(0, dot);
    if (own != section) {
      out += own.empty() ? "\n## Top level\n" : fmt::format("\n## [{}]\n", own);
      out += "\n| key | default | values | meaning |\n|---|---|---|---|\n";
      section = own;
    }
    out += fmt::format("| `{}` | `{}` | {} | {} |\n", key.name.substr(dot == std::string::npos ? 0 : dot + 1),
                       cell(key.get(defaults)), cell(key.type), cell(key.doc));
  }
  return out;
}

}  // namespace gantrain
