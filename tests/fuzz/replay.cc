// A fuzz target as a plain program: every file of the named folders, each cut off at every byte where it is
// small, and N random changes of them. The bounded half of fuzzing, for builds without clang.
//
// usage: fuzz_NAME [--mutate N] [--seed S] FILE_OR_FOLDER...
// A crash leaves its input in crash-NAME and names it.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

const char* g_name = "?";
const uint8_t* g_data = nullptr;
size_t g_size = 0;

// Only calls that a signal handler may make.
void leave_input(int signal) {
  char file[300];
  std::snprintf(file, sizeof file, "crash-%s", g_name);
  const int fd = ::open(file, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const bool written = fd >= 0 && ::write(fd, g_data, g_size) == static_cast<ssize_t>(g_size);
  const char* const said[] = {"\nFAILED: signal while reading the input, which is in ", file,
                              written ? "\n" : " (not written)\n"};
  for (const char* part : said)
    if (::write(2, part, std::strlen(part)) < 0) break;
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void run(const std::string& bytes) {
  // Exactly sized and on the heap, for the sanitizers.
  std::vector<uint8_t> copy(bytes.begin(), bytes.end());
  g_data = copy.data();
  g_size = copy.size();
  ::alarm(20);  // a reader that hangs
  LLVMFuzzerTestOneInput(copy.data(), copy.size());
  ::alarm(0);
}

std::string changed(const std::vector<std::string>& corpus, std::mt19937_64& rng) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : rng() % n; };
  std::string out = corpus[below(corpus.size())];
  static const uint64_t kInteresting[] = {
      0,          1,          0x7f,          0x80,  0xff,       0x7fff,     0x8000,    0xffff,
      0x7fffffff, 0x80000000, 0xffffffffull, ~0ull, ~0ull >> 1, 1ull << 63, 1ull << 40};
  for (size_t times = 1 + below(6); times > 0; --times) {
    const size_t at = below(out.size());
    switch (rng() % 7) {
      case 0:
        if (!out.empty()) out[at] = static_cast<char>(rng());
        break;
      case 1:
        if (!out.empty()) out[at] = static_cast<char>(out[at] ^ (1 << rng() % 8));
        break;
      case 2:
        out.resize(at);
        break;
      case 3:
        out.erase(at, 1 + below(16));
        break;
      case 4:
        out.insert(at, 1 + below(4), static_cast<char>(rng()));
        break;
      case 5: {  // a piece of another one
        const std::string& other = corpus[below(corpus.size())];
        const size_t from = below(other.size());
        out.insert(at, other.substr(from, 1 + below(64)));
        break;
      }
      case 6: {  // a number with a history of trouble, as 1 to 8 bytes
        const uint64_t value = kInteresting[below(std::size(kInteresting))];
        const size_t width = size_t{1} << rng() % 4;
        if (at + width <= out.size()) std::memcpy(out.data() + at, &value, width);
        break;
      }
    }
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  const fs::path program(argv[0]);
  const std::string name = program.filename().string();
  g_name = name.c_str();
  uint64_t mutations = 0, seed = 1;
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if ((word == "--mutate" || word == "--seed") && i + 1 < argc) {
      (word == "--seed" ? seed : mutations) = std::strtoull(argv[++i], nullptr, 10);
    } else if (fs::is_directory(word)) {
      for (const auto& entry : fs::recursive_directory_iterator(word))
        if (entry.is_regular_file()) files.push_back(entry.path());
    } else if (fs::is_regular_file(word)) {
      files.push_back(word);
    }  // a target may have no regressions yet
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    std::fprintf(stderr, "%s: no files given\n", g_name);
    return 2;
  }
  for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGALRM}) ::signal(signal, leave_input);
  std::vector<std::string> corpus;
  uint64_t cuts = 0;
  for (const fs::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    const std::string& bytes = corpus.back();
    run(bytes);
    if (bytes.size() <= 2048)
      for (size_t n = 0; n < bytes.size(); ++n, ++cuts) run(bytes.substr(0, n));
  }
  std::mt19937_64 rng(seed);
  for (uint64_t i = 0; i < mutations; ++i) run(changed(corpus, rng));
  std::printf("%s: %zu files, %llu cut short, %llu changed at random\n", g_name, files.size(),
              static_cast<unsigned long long>(cuts), static_cast<unsigned long long>(mutations));
  return 0;
}
