#include "train/communicator/launch.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>

#include "core/check.h"
#include "train/communicator/tcp.h"

namespace gantrain {
namespace {

volatile std::sig_atomic_t g_children = 0;
constexpr int kMostChildren = 1024;
volatile pid_t g_child[kMostChildren];  // 0: none, or it has ended

// What a rank's work has thrown, in memory that it shares with the parent.
struct Thrown {
  ErrorKind kind = ErrorKind::kFailure;
  char text[4096] = "";  // empty: nothing
};
class SharedThrown {
 public:
  explicit SharedThrown(int count) : bytes_(sizeof(Thrown) * static_cast<size_t>(count)) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) fail("--ranks {}: {}", count, std::strerror(errno));
    for (int r = 0; r < count; ++r) new (&(*this)[r]) Thrown();
  }
  SharedThrown(const SharedThrown&) = delete;
  SharedThrown& operator=(const SharedThrown&) = delete;
  ~SharedThrown() { ::munmap(memory_, bytes_); }
  Thrown& operator[](int rank) { return static_cast<Thrown*>(memory_)[rank]; }

 private:
  size_t bytes_;
  void* memory_ = nullptr;
};

// Only calls that a signal handler may make.
void pass_on(int signal) {
  const int before = errno;
  for (int i = 0; i < g_children; ++i)
    if (const pid_t child = g_child[i]; child > 0) (void)::kill(child, signal);
  errno = before;
}

}  // namespace

int run_ranks(int count, const std::function<int(const Ranks&)>& work) {
  if (count < 1 || count > kMostChildren)
    fail_usage("--ranks: {}, expected a whole number from 1 to {}", count, kMostChildren);
  Ranks ranks;
  ranks.timeout = ranks_from_environment().timeout;
  const Listener listener = listen_on_free_port();
  ranks.size = ranks.local_size = count;
  ranks.port = listener.port;
  SharedThrown thrown(count);
  std::fflush(nullptr);  // or each process would write what is in the buffers
  // Children are in no group with the parent: a key on the terminal reaches them through it alone, once.
  sigset_t both, before;
  sigemptyset(&both);
  sigaddset(&both, SIGINT);
  sigaddset(&both, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &both, &before);
  g_children = 0;
  const pid_t parent = ::getpid();
  for (int r = 0; r < count; ++r) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::setpgid(0, 0);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // a parent that is killed takes them along, after a step
      ::sigprocmask(SIG_SETMASK, &before, nullptr);
      if (::getppid() != parent) return 1;
      ranks.rank = ranks.local_rank = r;
      if (r == 0)
        ranks.listener = listener.socket;
      else
        ::close(listener.socket);
      try {
        return work(ranks);
      } catch (const Error& e) {
        thrown[r].kind = e.kind();
        std::snprintf(thrown[r].text, sizeof thrown[r].text, "%s", e.what());
        return e.exit_code();
      }
    }
    if (child < 0) {
      const int error = errno;
      pass_on(SIGKILL);
      fail("--ranks {}: cannot start process {}: {}", count, r, std::strerror(error));
    }
    g_child[r] = child;
    g_children = r + 1;
  }
  ::close(listener.socket);
  struct sigaction action {
  }, old[2];
  action.sa_handler = pass_on;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &old[0]);
  ::sigaction(SIGTERM, &action, &old[1]);
  ::sigprocmask(SIG_SETMASK, &before, nullptr);

  int result = 0;
  for (int left = count; left > 0;) {
    int status = 0;
    const pid_t ended = ::waitpid(-1, &status, 0);
    if (ended < 0) {
      if (errno == EINTR) continue;
      break;
    }
    for (int r = 0; r < count; ++r)
      if (g_child[r] == ended) {
        g_child[r] = 0;
        --left;
        const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        if (WIFSIGNALED(status))
          fmt::print(stderr, "rank {} was ended by signal {} ({})\n", r, WTERMSIG(status),
                     ::strsignal(WTERMSIG(status)));
        if (result == 0) result = code;
      }
  }
  ::sigaction(SIGINT, &old[0], nullptr);
  ::sigaction(SIGTERM, &old[1], nullptr);
  g_children = 0;
  const Thrown* told = nullptr;
  for (int r = 0; r < count; ++r) {
    const Thrown& t = thrown[r];
    const auto consequence = [](const Thrown& x) { return std::strstr(x.text, " is gone (") != nullptr; };
    if (t.text[0] != 0 && (!told || (consequence(*told) && !consequence(t)))) told = &t;
  }
  if (told) throw Error(told->text, told->kind);
  return result;
}

}  // namespace gantrain
