#include "train/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "core/check.h"
#include "tests/support/paths.h"
#include "train/suggest.h"
#include "train/text.h"

namespace gantrain {
namespace {

// A file in the tests' temporary folder, removed at the end of the test.
struct TextFile {
  explicit TextFile(const std::string& text, const std::string& name = "config_test.toml")
      : path(std::filesystem::path(::testing::TempDir()) /
             (std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + "_" + name)) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~TextFile() { std::filesystem::remove(path); }
  std::filesystem::path path;
};

std::string message_of(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  try {
    TextFile file(toml);
    load_train_config(file.path, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 2) << error.what();
    return error.what();
  }
  return "no error";
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << "got: " << (text) << "\nwanted: " << (part)

TEST(Config, DefaultsLoadFromNothing) {
  const TrainConfig config = load_train_config("");
  EXPECT_EQ(config.generator.prompt_length, 20);
  EXPECT_EQ(config.loss.samples, 8);
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_EQ(config.optimizer.beta1, 0.0);
}

TEST(Config, ChosenValuesFollowKindAndLoss) {
  const TrainConfig table = load_train_config("", {"generator.kind=static", "loss.kind=ce"});
  EXPECT_EQ(table.optimizer.lr, 1e-2);
  EXPECT_EQ(table.optimizer.beta1, 0.9);
  EXPECT_EQ(table.optimizer.beta2, 0.999);
  const TrainConfig adversarial = load_train_config("", {"generator.kind=static", "loss.kind=gumbel"});
  EXPECT_EQ(adversarial.optimizer.lr, 3e-3);
  EXPECT_DOUBLE_EQ(adversarial.optimizer.lr_end, 1e-3);
  const TrainConfig own =
      load_train_config("", {"optimizer.lr=0.5", "optimizer.lr_end=0", "optimizer.beta1=0.5"});
  EXPECT_EQ(own.optimizer.lr, 0.5);
  EXPECT_EQ(own.optimizer.lr_end, 0.0);
  EXPECT_EQ(own.optimizer.beta1, 0.5);
  const auto beta = [](const std::vector<std::string>& words) {
    return load_train_config("", words).loss.beta;
  };
  EXPECT_EQ(beta({}), 0.005);
  EXPECT_EQ(beta({"loss.alpha=0", "loss.alpha_end=0"}), 1.0);
  EXPECT_EQ(beta({"loss.alpha=0"}), 0.005);      // cross-entropy comes in
  EXPECT_EQ(beta({"loss.alpha_end=0"}), 0.005);  // and goes out
  EXPECT_EQ(beta({"loss.alpha=0", "loss.alpha_end=0", "train.warmup_ce_steps=0"}), 0.005);
  EXPECT_EQ(beta({"loss.alpha=0", "loss.alpha_end=0", "loss.beta=0"}), 0.0);
}

TEST(Config, MethodAndGeneratorKindSayTheSameThing) {
  const auto method = [](const std::vector<std::string>& words) {
    return kMethodNames[static_cast<size_t>(load_train_config("", words).method)];
  };
  EXPECT_STREQ(method({}), "gan");
  EXPECT_STREQ(method({"generator.kind=static"}), "prompt");
  EXPECT_STREQ(method({"generator.kind=mlp"}), "ptuning");
  EXPECT_EQ(load_train_config("", {"method=prompt"}).generator.kind, GeneratorKind::kStatic);
  EXPECT_EQ(load_train_config("", {"method=ptuning"}).generator.kind, GeneratorKind::kMlp);
  EXPECT_THROW(load_train_config("", {"method=prompt", "generator.kind=mlp"}), Error);
  EXPECT_EQ(load_train_config("", {"method=lora"}).generator.prompt_length, 0);
  EXPECT_THROW(load_train_config("", {"method=lora", "generator.prompt_length=3"}), Error);
  for (const char* method : {"method=prefix", "method=adapter", "method=full"}) {
    EXPECT_EQ(load_train_config("", {method}).generator.prompt_length, 0) << method;
    EXPECT_THROW(load_train_config("", {method, "generator.prompt_length=3"}), Error) << method;
    EXPECT_THROW(load_train_config("", {method, "generator.kind=mlp"}), Error) << method;
  }
  EXPECT_EQ(positions_before(load_train_config("", {"method=prefix", "prefix.length=7"})), 7);
  EXPECT_EQ(positions_before(load_train_config("", {"method=adapter"})), 0);
  EXPECT_THROW(load_train_config("", {"method=adapter", "bottleneck.places=[]"}), Error);
  // A run's own file has all keys: it reads back, and the command line wins over it.
  TextFile lora(to_toml(load_train_config("", {"method=lora"}))),
      prompt(to_toml(load_train_config("", {"method=prompt"})), "prompt.toml");
  EXPECT_EQ(load_train_config(lora.path).method, Method::kLora);
  EXPECT_EQ(load_train_config(prompt.path, {"generator.kind=conditional"}).method, Method::kGan);
  EXPECT_EQ(load_train_config(prompt.path, {"method=lora"}).generator.prompt_length, 0);
  const TrainConfig back = load_train_config(lora.path, {"method=ptuning"});
  EXPECT_EQ(back.generator.kind, GeneratorKind::kMlp);
  EXPECT_EQ(back.generator.prompt_length, 20);
}

TEST(Config, FileThenOverridesInOrder) {
  TextFile file("model = 'm'\nseed = 5\n[train]\nbatch = 4\n[data]\nlabel_map = { '0' = ' negative' }\n");
  const TrainConfig config = load_train_config(
      file.path, {"train.batch=16", "train.batch=32", "seed=7", "data.label_map.1= positive", "threads=2"});
  EXPECT_EQ(config.model, "m");
  EXPECT_EQ(config.train.batch, 32);
  EXPECT_EQ(config.seed, 7);
  EXPECT_EQ(config.threads, 2);
  EXPECT_EQ(config.data.label_map,
            (std::map<std::string, std::string>{{"0", " negative"}, {"1", " positive"}}));
}

TEST(Config, OverridesTakeBareWordsAndToml) {
  const TrainConfig config = load_train_config(
      "", {"data.train=my file.jsonl", "data.prompt_template=\"{a}\\n{b}\"", "eval.temperatures=0.5,1",
           "data.columns=x,y z", "memory_limit=2GiB", "data.add_bos=true", "data.delimiter=\";\"",
           "data.label_map={\"a=b\" = \"c,d\"}", "loss.kind=ce", "output=a=b"});
  EXPECT_EQ(config.data.train, "my file.jsonl");
  EXPECT_EQ(config.data.prompt_template, "{a}\n{b}");
  EXPECT_EQ(config.eval.temperatures, (std::vector<double>{0.5, 1.0}));
  EXPECT_EQ(config.data.columns, (std::vector<std::string>{"x", "y z"}));
  EXPECT_EQ(config.memory_limit, int64_t{2} << 30);
  EXPECT_EQ(config.data.add_bos, Tristate::kYes);
  EXPECT_EQ(config.data.label_map.at("a=b"), "c,d");
  EXPECT_EQ(config.output, "a=b");
}

// Every key is given another value than its default, written, read back: the texts agree, and each value
// arrived (so no key shares another's field).
TEST(Config, WrittenConfigurationLoadsBackTheSame) {
  const std::string given =
      "model=\"a\\\"b\\\\c\"\ndevice='cuda'\ngemm='auto'\ndtype='bf16'\nthreads=3\nseed="
      "9223372036854775807\noutput="
      "\"x\\ty\"\n"
      "memory_limit=12345\nmethod='ptuning'\nmodel_quantize='q4_0'\nadapter='z'\n"
      "[data]\ntrain='t'\nvalid='v'\ntest='w'\nformat='csv'\nencoding='latin1'\nprompt_template=\"{x}"
      "\\né\"\n"
      "completion_template='{y}'\ncolumns=['x','y']\ndelimiter=\"\\t\"\nline_pattern='{a}:{b}'\n"
      "label_map={'0'='no','a b'='yes'}\nlabel_column='y'\nchat_template='llama3'\nsystem='s'\n"
      "max_prompt_tokens=11\nmax_completion_tokens=12\nadd_bos='false'\nappend_eos=false\n"
      "bad_items='drop'\nduplicates='drop'\nheader='true'\nmax_train_items=13\nmax_valid_items=14"
      "\nbucket=false\n"
      "[generator]\nkind='mlp'\nprompt_length=5\ninit='text'\ninit_text='hello'\nwidth=64\nblocks=2\nnoise_"
      "dim=1\n"
      "hidden=99\nfeature_layer=3\nplacement='suffix'\nnorm_penalty=0.25\n"
      "[lora]\nrank=7\nalpha=0.5\nrslora=true\ntargets=['k','up']\ndropout=0.05\n"
      "[prefix]\nlength=6\nprojection=true\nhidden=98\n"
      "[bottleneck]\nwidth=9\nactivation='tanh'\nplaces=['attention']\n"
      "[discriminator]\nfeature_layer=4\nwidth=65\nloss='hinge'\ngamma=0.3\ngamma_end=0.2\n"
      "sigma=0.11\ncenter_penalty=0.12\nlabel_smoothing=0.13\nspectral_norm=true\nreplay=0.14\n"
      "[loss]\nkind='gumbel'\nalpha=0.15\nalpha_end=0.16\nbeta=0.17\nsamples=3\n"
      "weighting='softmax'\ncredit='answer'\nreward_temperature=0.18\ntau=0.19\ntau_end=0.2\ntop_k=21\n"
      "[optimizer]\nlr=0.23\nlr_end=0.24\nlr_ce=0.25\nlr_d=0.26\nlr_d_end=0.27\nbeta1=0.28\nbeta2=0.29\n"
      "eps=1e-07\nweight_decay=0.31\nclip=0.32\nwarmup_steps=33\nschedule='linear'\n"
      "[train]\nepochs=0.1\nsteps=34\nbatch=35\naccumulate=36\nwarmup_ce_steps=37\ndiscriminator_steps=38\n"
      "target_low=0.39\ntarget_high=0.4\ngate_d=0.7\ngate_g=0.6\ngate_ema=0.41\ngate_ce=false\nhold_d="
      "true\ndiscriminator_samples=3\nema=0."
      "42\naverage_from="
      "45\nmax_new_tokens=43\n"
      "recompute='layer'\ncontext_cache=50\neval_every=44\nsave_every=46\nkeep=47\n"
      "[eval]\ntemperatures=[0.1,1.0,0.30000000000000004]\nsamples=48\nmax_items=49\n";
  TextFile first(given);
  const TrainConfig config = load_train_config(first.path);
  const std::string written = to_toml(config);
  TextFile second(written, "again.toml");
  EXPECT_EQ(to_toml(load_train_config(second.path)), written);
  // Every given line stands in the written text, in its section, and differs from the default's.
  const auto lines_of = [](const std::string& text) {
    std::set<std::string> lines;
    std::istringstream in(text);
    std::string line, section;
    while (std::getline(in, line)) {
      std::erase(line, ' ');
      std::replace(line.begin(), line.end(), '\'', '"');
      if (line.starts_with('[')) section = line;
      if (line.find('=') != std::string::npos) lines.insert(section + line);
    }
    return lines;
  };
  const std::set<std::string> ours = lines_of(written), wanted = lines_of(given),
                              defaults = lines_of(to_toml(load_train_config("")));
  for (const std::string& line : wanted) {
    EXPECT_TRUE(ours.contains(line)) << line << " was not written";
    EXPECT_FALSE(defaults.contains(line)) << line << " is the default";
  }
  // data.valid_fraction and data.test_fraction exclude data.valid and data.test, given above.
  EXPECT_EQ(ours.size(), wanted.size() + 2) << "a key is missing from this test";
}

TEST(Config, UnknownKeysComeWithAPlaceAndASuggestion) {
  const std::string typo = message_of("seed = 1\n[train]\nbacth = 4\n");
  EXPECT_HAS(typo, ".toml:3: unknown key 'train.bacth'; did you mean 'train.batch'?");
  EXPECT_HAS(message_of("[data]\nbatch = 4\n"), "unknown key 'data.batch'; did you mean 'train.batch'?");
  EXPECT_HAS(message_of("batch = 4\n"), "did you mean 'train.batch'?");
  EXPECT_HAS(message_of("zzzzzz = 4\n"), "unknown key 'zzzzzz' (all keys");
  EXPECT_HAS(message_of("", {"los.kind=ce"}),
             "command line: unknown key 'los.kind'; did you mean 'loss.kind'?");
  EXPECT_HAS(message_of("[data.train.x]\ny = 1\n"), ": data.train: expected a string in quotes, got a table");
  EXPECT_HAS(message_of("train = 3\n"), "train is a section");
  EXPECT_HAS(message_of("", {"train=3"}), "train is a section");
}

TEST(Config, WrongTypesAndRangesNameExpectedAndGot) {
  EXPECT_HAS(message_of("[train]\n\nbatch = 'four'\n"),
             ".toml:3: train.batch: expected integer in [1, 65536], got \"four\"");
  EXPECT_HAS(message_of("[train]\nbatch = 0\n"), "train.batch: expected integer in [1, 65536], got 0");
  EXPECT_HAS(message_of("[train]\nbatch = 1.5\n"), "got 1.5");
  EXPECT_HAS(message_of("[train]\nema = nan\n"), "train.ema: expected number in [0, 0.999999], got nan");
  EXPECT_HAS(message_of("[train]\nema = inf\n"), "got inf");
  EXPECT_HAS(message_of("[loss]\nkind = 'rlo'\n"),
             "expected one of ce|rloo|gumbel, got \"rlo\"; did you mean 'rloo'?");
  EXPECT_HAS(message_of("[data]\nappend_eos = 1\n"), "expected true or false, got 1");
  EXPECT_HAS(message_of("memory_limit = '8 parsecs'\n"), "expected a number of bytes");
  EXPECT_HAS(message_of("model = \"a\\u0000b\"\n"), "NUL");
  EXPECT_HAS(message_of("", {"train.batch=four"}), "train.batch");
  EXPECT_HAS(message_of("", {"train.batch=4\nseed=1"}), "train.batch");
  EXPECT_HAS(message_of("", {"train.batch"}), "expected key=value");
  EXPECT_HAS(message_of("", {"model=\xff"}), "not UTF-8 at byte 6");
  EXPECT_HAS(message_of("model = 'a'\nmodel = 'b'\n"), "not TOML");
  EXPECT_HAS(message_of("[train\n"), ".toml:1: not TOML");
}

TEST(Config, KeysAreCheckedAgainstEachOther) {
  EXPECT_HAS(message_of("", {"train.gate_g=0.9"}), "gate_g < gate_d");
  EXPECT_HAS(message_of("", {"loss.samples=1"}), "samples >= 2");
  EXPECT_HAS(message_of("", {"generator.init=text"}), "needs a text");
  EXPECT_HAS(message_of("", {"data.valid=x", "data.valid_fraction=0.1"}), "one or the other");
  EXPECT_HAS(message_of("", {"data.valid_fraction=0.5", "data.test_fraction=0.5"}), "nothing is left");
  EXPECT_HAS(message_of("", {"train.epochs=0"}), "nothing to do");
  EXPECT_HAS(message_of("", {"data.delimiter=ab"}), "one ASCII character");
}

TEST(Config, MissingFileIsNamed) {
  try {
    load_train_config("no/such/file.toml");
    FAIL();
  } catch (const Error& error) {
    EXPECT_HAS(error.what(), "no/such/file.toml: no such file");
  }
}

TEST(Config, Bytes) {
  EXPECT_EQ(parse_bytes("0", ""), 0);
  EXPECT_EQ(parse_bytes("1.5 KiB", ""), 1536);
  EXPECT_EQ(parse_bytes("2GB", ""), 2000000000);
  for (const char* bad : {"", "GB", "-1", "1e30TB", "nan", "1 2"})
    EXPECT_THROW(parse_bytes(bad, ""), Error) << bad;
}

TEST(Config, DocumentationIsUpToDate) {
  const std::filesystem::path page = test::source_folder() / "docs/configuration.md";
  if (std::getenv("GANTRAIN_UPDATE_DOCS")) std::ofstream(page) << config_markdown();
  EXPECT_HAS(config_markdown(), "| `dtype` | `\"auto\"` | one of auto\\|f32\\|bf16 | ");
  EXPECT_TRUE(read_text_file(page, 1 << 20) == config_markdown())
      << page << " differs from the table of keys; GANTRAIN_UPDATE_DOCS=1 with this test writes it anew";
}

TEST(Suggest, Distances) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("bacth", "batch"), 1);
  const std::vector<std::string> known = {"train", "eval", "generate"};
  EXPECT_EQ(nearest("trian", known), "train");
  EXPECT_EQ(nearest("generat", known), "generate");
  EXPECT_EQ(nearest("quickstart", known), "");
}

TEST(Text, BadUtf8IsFoundAtItsByte) {
  const auto none = std::string::npos;
  EXPECT_EQ(find_bad_utf8("plain"), none);
  EXPECT_EQ(find_bad_utf8("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf"), none);
  EXPECT_EQ(find_bad_utf8("ab\x80"), 2u);
  EXPECT_EQ(find_bad_utf8("a\xc0\x80"), 1u);          // overlong NUL
  EXPECT_EQ(find_bad_utf8("a\xe0\x9f\xbf"), 1u);      // overlong
  EXPECT_EQ(find_bad_utf8("a\xed\xa0\x80"), 1u);      // surrogate
  EXPECT_EQ(find_bad_utf8("a\xf4\x90\x80\x80"), 1u);  // past U+10FFFF
  EXPECT_EQ(find_bad_utf8("a\xf0\x9f\x98"), 1u);      // cut off
  EXPECT_EQ(latin1_to_utf8("caf\xe9"), "caf\xc3\xa9");
}

}  // namespace
}  // namespace gantrain
