#include "train/communicator/tcp.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "core/check.h"

namespace gantrain {
namespace {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Small messages go out at once; a machine that vanishes without a word is noticed within a minute.
void configure(int fd) {
  const auto set = [&](int level, int name, int value) {
    (void)::setsockopt(fd, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 15);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
}

std::string error_text(int error) { return std::strerror(error); }

// Milliseconds for poll(), not negative.
int left(Deadline deadline) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(ms, 0, 1 << 30));
}

// What went wrong with a connection: empty, it is fine.
using Trouble = std::string;

Trouble transfer(int fd, char* in, const char* out, size_t bytes, Deadline deadline) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = in ? ::recv(fd, in + done, bytes - done, MSG_DONTWAIT)
                         : ::send(fd, out + done, bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    if (n == 0 && in) return "its connection was closed";
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return error_text(errno);
    pollfd p{fd, static_cast<short>(in ? POLLIN : POLLOUT), 0};
    const int ready = ::poll(&p, 1, left(deadline));
    if (ready == 0) return "no answer";
    if (ready < 0 && errno != EINTR) return error_text(errno);
  }
  return {};
}

enum Kind : uint32_t { kHello = 1, kWelcome, kGather, kSum, kBroadcast, kEnd };
constexpr const char* kKindNames[] = {"?",          "hello",     "welcome", "all_gather",
                                      "all_reduce", "broadcast", "end"};
struct Header {
  uint32_t magic = 0x6e746e67;  // "gntn"
  uint32_t kind = 0;
  uint64_t number = 0;  // of the call, so that ranks which are not at the same place notice
  uint64_t bytes = 0;   // that follow
};
struct Hello {
  uint32_t version = 1;
  int32_t rank = 0, size = 0, reserved = 0;
};
constexpr uint64_t kMostBytes = uint64_t{1} << 36;

class Tcp final : public HostCommunicator {
 public:
  explicit Tcp(const Ranks& ranks) : ranks_(ranks), peers_(static_cast<size_t>(ranks.size)) {
    const Deadline deadline = this->deadline();
    ranks.rank == 0 ? accept_all(deadline) : connect(deadline);
  }
  ~Tcp() override { stop_watching(); }

  int rank() const override { return ranks_.rank; }
  int size() const override { return ranks_.size; }
  std::string description() const override {
    return fmt::format("rank {} of {}, over TCP with rank 0 at {}:{}", ranks_.rank, ranks_.size,
                       ranks_.address, ranks_.port);
  }

  std::vector<std::string> all_gather(std::string_view bytes) override {
    ++number_;
    std::vector<std::string> out(peers_.size());
    if (ranks_.rank == 0) {
      out[0] = std::string(bytes);
      for (int r = 1; r < size(); ++r) out[index(r)] = receive(r, kGather);
      // All of it as one message: lengths, then contents.
      std::string all;
      for (const std::string& s : out) {
        const uint64_t n = s.size();
        all.append(reinterpret_cast<const char*>(&n), sizeof n);
      }
      for (const std::string& s : out) all += s;
      for (int r = 1; r < size(); ++r) send(r, kGather, all);
      return out;
    }
    send(0, kGather, bytes);
    const std::string all = receive(0, kGather);
    size_t at = out.size() * sizeof(uint64_t);
    for (size_t r = 0; r < out.size(); ++r) {
      uint64_t n = 0;
      if (all.size() >= (r + 1) * sizeof n) std::memcpy(&n, all.data() + r * sizeof n, sizeof n);
      if (at > all.size() || n > all.size() - at) fail("{}: rank 0 sent a message that is cut off", who());
      out[r] = all.substr(at, n);
      at += n;
    }
    return out;
  }

  void all_reduce(Tensor t) override {
    host_f32("all_reduce", t);
    ++number_;
    auto* values = static_cast<float*>(t.raw());
    constexpr int64_t kPiece = kTcpBufferBytes / static_cast<int64_t>(sizeof(float));
    piece_.resize(static_cast<size_t>(std::min(kPiece, t.count())));
    for (int64_t at = 0; at < t.count(); at += kPiece) {
      const auto n = static_cast<size_t>(std::min(kPiece, t.count() - at));
      const std::span<float> own(values + at, n);
      if (ranks_.rank == 0) {
        for (int r = 1; r < size(); ++r) {
          receive(r, kSum, bytes_of(std::span(piece_).first(n)));
          for (size_t i = 0; i < n; ++i) own[i] += piece_[i];
        }
        for (int r = 1; r < size(); ++r) send(r, kSum, text_of(own));
      } else {
        send(0, kSum, text_of(own));
        receive(0, kSum, bytes_of(own));
      }
    }
  }

  void broadcast(Tensor t, int from) override {
    host_f32("broadcast", t);
    GT_CHECK(from >= 0 && from < size(), "a broadcast from rank {} of {}", from, size());
    ++number_;
    const std::span<float> own(static_cast<float*>(t.raw()), static_cast<size_t>(t.count()));
    if (ranks_.rank == 0) {
      if (from != 0) receive(from, kBroadcast, bytes_of(own));
      for (int r = 1; r < size(); ++r)
        if (r != from) send(r, kBroadcast, text_of(own));
    } else if (ranks_.rank == from) {
      send(0, kBroadcast, text_of(own));
    } else {
      receive(0, kBroadcast, bytes_of(own));
    }
  }

  void watch(std::function<void(const std::string&)> lost) override {
    GT_CHECK(!watcher_.joinable(), "a second watch");
    wake_ = Socket(::eventfd(0, EFD_CLOEXEC));
    if (!wake_) fail("eventfd: {}", error_text(errno));
    watcher_ = std::thread([this, lost = std::move(lost)] {
      // Neither readable data nor a full buffer: only that the other side will send no more.
      std::vector<pollfd> all{{wake_.get(), POLLIN, 0}};
      std::vector<int> of{-1};
      for (int r = 0; r < size(); ++r)
        if (peers_[index(r)]) {
          all.push_back({peers_[index(r)].get(), POLLRDHUP, 0});
          of.push_back(r);
        }
      for (;;) {
        if (::poll(all.data(), all.size(), -1) < 0) {
          if (errno == EINTR) continue;
          return;
        }
        if (all[0].revents != 0) return;
        for (size_t i = 1; i < all.size(); ++i)
          if (all[i].revents != 0) {
            lost(gone(of[i], "its connection was closed"));
            return;
          }
      }
    });
  }

  void leave() override {
    stop_watching();
    barrier();
  }

 private:
  static size_t index(int rank) { return static_cast<size_t>(rank); }
  static std::span<char> bytes_of(std::span<float> v) {
    return {reinterpret_cast<char*>(v.data()), v.size_bytes()};
  }
  static std::string_view text_of(std::span<const float> v) {
    return {reinterpret_cast<const char*>(v.data()), v.size_bytes()};
  }
  static void host_f32(const char* what, const Tensor& t) {
    GT_CHECK(t.dtype() == DType::kF32, "{} of {}", what, dtype_name(t.dtype()));
  }
  Deadline deadline() const {
    return Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(ranks_.timeout * 1e3));
  }
  std::string who() const { return fmt::format("rank {} of {}", ranks_.rank, ranks_.size); }
  std::string gone(int peer, const Trouble& trouble) const {
    if (trouble == "no answer")
      return fmt::format(
          "{}: no answer from rank {} within {} s; if it is only slow, set GANTRAIN_TIMEOUT to more seconds",
          who(), peer, ranks_.timeout);
    return fmt::format("{}: rank {} is gone ({}); its own output says why. Go on with --resume", who(), peer,
                       trouble);
  }
  // Rank 0 tells the others who it was: they are connected with it alone.
  [[noreturn]] void lost(int peer, const Trouble& trouble) {
    const std::string what = gone(peer, trouble);
    if (ranks_.rank == 0) tell_end(what, peer);
    fail("{}", what);
  }
  void tell_end(const std::string& what, int but) {
    const Deadline soon = Clock::now() + std::chrono::seconds(1);
    const std::string text = what.substr(what.find(": ") + 2);
    for (int r = 1; r < size(); ++r)
      if (r != but && peers_[index(r)]) {
        const Header h{.kind = kEnd, .number = number_, .bytes = text.size()};
        if (transfer(peers_[index(r)].get(), nullptr, reinterpret_cast<const char*>(&h), sizeof h, soon)
                .empty())
          (void)transfer(peers_[index(r)].get(), nullptr, text.data(), text.size(), soon);
      }
  }

  void send(int peer, Kind kind, std::string_view bytes) {
    const Deadline until = deadline();
    const Header h{.kind = kind, .number = number_, .bytes = bytes.size()};
    const int fd = peers_[index(peer)].get();
    Trouble t = transfer(fd, nullptr, reinterpret_cast<const char*>(&h), sizeof h, until);
    if (t.empty()) t = transfer(fd, nullptr, bytes.data(), bytes.size(), until);
    if (t.empty()) return;
    // Rank 0 may have said why before it closed the connection.
    if (ranks_.rank != 0) (void)receive_header(peer, kind, Clock::now() + std::chrono::seconds(1), t);
    lost(peer, t);
  }
  // The header of the expected message. `before`: what went wrong earlier, to say if there is none.
  Header receive_header(int peer, Kind kind, Deadline until, const Trouble& before = {}) {
    Header h;
    const int fd = peers_[index(peer)].get();
    const Trouble t = transfer(fd, reinterpret_cast<char*>(&h), nullptr, sizeof h, until);
    if (!t.empty()) lost(peer, before.empty() ? t : before);
    if (h.magic != Header().magic || h.bytes > kMostBytes)
      lost(peer, "what it sent is not this program's; do all ranks run the same version?");
    if (h.kind == kEnd) {
      std::string text(std::min<uint64_t>(h.bytes, 4096), '\0');
      (void)transfer(fd, text.data(), nullptr, text.size(), until);
      fail("{}: {}", who(), text);
    }
    if (h.kind != kind || h.number != number_)
      lost(peer, fmt::format("it is at call {}, {}, and this rank at call {}, {}; do all ranks have the same "
                             "configuration and data?",
                             h.number, h.kind <= kEnd ? kKindNames[h.kind] : "?", number_, kKindNames[kind]));
    return h;
  }
  std::string receive(int peer, Kind kind) {
    const Deadline until = deadline();
    std::string bytes(receive_header(peer, kind, until).bytes, '\0');
    const Trouble t = transfer(peers_[index(peer)].get(), bytes.data(), nullptr, bytes.size(), until);
    if (!t.empty()) lost(peer, t);
    return bytes;
  }
  void receive(int peer, Kind kind, std::span<char> into) {
    const Deadline until = deadline();
    const Header h = receive_header(peer, kind, until);
    if (h.bytes != into.size())
      lost(peer, fmt::format("it sent {} bytes for {} of {}", h.bytes, kKindNames[kind], into.size()));
    const Trouble t = transfer(peers_[index(peer)].get(), into.data(), nullptr, into.size(), until);
    if (!t.empty()) lost(peer, t);
  }

  // ---- meeting

  void accept_all(Deadline until) {
    Socket listener(ranks_.listener >= 0 ? ranks_.listener : listen());
    for (int missing = size() - 1; missing > 0;) {
      pollfd p{listener.get(), POLLIN, 0};
      const int ready = ::poll(&p, 1, left(until));
      if (ready < 0 && errno == EINTR) continue;
      if (ready <= 0) {
        std::string names;
        for (int r = 1; r < size(); ++r)
          if (!peers_[index(r)]) names += fmt::format("{}{}", names.empty() ? "" : ", ", r);
        fail(
            "rank 0: waited {} s on port {} for the ranks {} of {}; were all of them started, with this "
            "machine's address in MASTER_ADDR?",
            ranks_.timeout, ranks_.port, names, size());
      }
      Socket peer(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!peer) continue;
      configure(peer.get());
      // Something else may knock on this port: it is not waited for long.
      const Deadline soon = std::min(until, Clock::now() + std::chrono::seconds(5));
      struct {
        Header h;
        Hello hello;
      } m;
      static_assert(sizeof m == sizeof(Header) + sizeof(Hello));
      if (!transfer(peer.get(), reinterpret_cast<char*>(&m), nullptr, sizeof m, soon).empty() ||
          m.h.magic != Header().magic || m.h.kind != kHello)
        continue;
      std::string why;
      if (m.hello.version != Hello().version)
        why = "another version of the program";
      else if (m.hello.size != size())
        why = fmt::format("WORLD_SIZE is {} there and {} at rank 0", m.hello.size, size());
      else if (m.hello.rank <= 0 || m.hello.rank >= size() || peers_[index(m.hello.rank)])
        why = fmt::format("there is a rank {} already; each process needs a RANK of its own", m.hello.rank);
      const Header answer{.kind = why.empty() ? kWelcome : kEnd, .bytes = why.size()};
      (void)transfer(peer.get(), nullptr, reinterpret_cast<const char*>(&answer), sizeof answer, soon);
      if (!why.empty()) {
        (void)transfer(peer.get(), nullptr, why.data(), why.size(), soon);
        tell_end("rank 0: a process could not join: " + why, -1);
        fail("rank 0: a process could not join: {}", why);
      }
      peers_[index(m.hello.rank)] = std::move(peer);
      --missing;
    }
  }

  int listen() {
    Socket s(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage at{};
    socklen_t length = 0;
    if (s) {
      const int off = 0;
      (void)::setsockopt(s.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
      auto* a = reinterpret_cast<sockaddr_in6*>(&at);
      a->sin6_family = AF_INET6;
      a->sin6_addr = in6addr_any;
      a->sin6_port = htons(static_cast<uint16_t>(ranks_.port));
      length = sizeof *a;
    } else {
      s = Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      auto* a = reinterpret_cast<sockaddr_in*>(&at);
      a->sin_family = AF_INET;
      a->sin_addr.s_addr = htonl(INADDR_ANY);
      a->sin_port = htons(static_cast<uint16_t>(ranks_.port));
      length = sizeof *a;
    }
    const int on = 1;
    if (s) (void)::setsockopt(s.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (!s || ::bind(s.get(), reinterpret_cast<sockaddr*>(&at), length) != 0 || ::listen(s.get(), 128) != 0)
      fail("rank 0: cannot listen on port {}: {}; set GANTRAIN_PORT to a free one for all ranks", ranks_.port,
           error_text(errno));
    return ::dup(s.get());
  }

  void connect(Deadline until) {
    std::string last = "nobody listens there";
    while (Clock::now() < until) {
      Socket s = try_connect(until, last);
      if (s) {
        struct {
          Header h;
          Hello hello;
        } m;
        m.h.kind = kHello;
        m.h.bytes = sizeof(Hello);
        m.hello.rank = ranks_.rank;
        m.hello.size = size();
        if (transfer(s.get(), nullptr, reinterpret_cast<const char*>(&m), sizeof m, until).empty()) {
          peers_[0] = std::move(s);
          // Once rank 0 has answered, what happens is told.
          Header h;
          const Trouble t = transfer(peers_[0].get(), reinterpret_cast<char*>(&h), nullptr, sizeof h, until);
          if (t.empty() && h.magic == Header().magic && h.kind == kWelcome) return;
          if (t.empty() && h.magic == Header().magic && h.kind == kEnd) {
            std::string why(std::min<uint64_t>(h.bytes, 4096), '\0');
            (void)transfer(peers_[0].get(), why.data(), nullptr, why.size(), until);
            fail("{}: rank 0 at {}:{} refused: {}", who(), ranks_.address, ranks_.port, why);
          }
          last = t.empty() ? "what listens there is not rank 0 of this program" : t;
          peers_[0] = Socket();
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    fail(
        "{}: cannot reach rank 0 at {}:{} within {} s: {}; is it running, and are MASTER_ADDR and "
        "MASTER_PORT its own?",
        who(), ranks_.address, ranks_.port, ranks_.timeout, last);
  }

  Socket try_connect(Deadline until, std::string& why) const {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    const int error =
        ::getaddrinfo(ranks_.address.c_str(), std::to_string(ranks_.port).c_str(), &hints, &list);
    if (error != 0) {
      why = ::gai_strerror(error);
      return {};
    }
    Socket found;
    for (const addrinfo* a = list; a && !found; a = a->ai_next) {
      Socket s(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol));
      if (!s) continue;
      configure(s.get());
      if (::connect(s.get(), a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) {
        why = error_text(errno);
        continue;
      }
      pollfd p{s.get(), POLLOUT, 0};
      int state = 0;
      socklen_t length = sizeof state;
      if (::poll(&p, 1, std::min(left(until), 5000)) <= 0) {
        why = "no answer";
      } else if (::getsockopt(s.get(), SOL_SOCKET, SO_ERROR, &state, &length) == 0 && state == 0) {
        found = std::move(s);
      } else {
        why = error_text(state);
      }
    }
    ::freeaddrinfo(list);
    return found;
  }

  void stop_watching() {
    if (!watcher_.joinable()) return;
    const uint64_t one = 1;
    while (::write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) {
    }
    watcher_.join();
  }

  const Ranks ranks_;
  std::vector<Socket> peers_;  // rank 0: of each other rank; others: of rank 0 alone
  std::vector<float> piece_;
  uint64_t number_ = 0;  // of the present call
  Socket wake_;
  std::thread watcher_;
};

}  // namespace

std::unique_ptr<HostCommunicator> meet_over_tcp(const Ranks& ranks) { return std::make_unique<Tcp>(ranks); }

Listener listen_on_free_port() {
  Listener l;
  Socket s(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof at;
  if (!s || ::bind(s.get(), reinterpret_cast<sockaddr*>(&at), length) != 0 || ::listen(s.get(), 128) != 0 ||
      ::getsockname(s.get(), reinterpret_cast<sockaddr*>(&at), &length) != 0)
    fail("cannot listen on 127.0.0.1: {}", error_text(errno));
  l.port = ntohs(at.sin_port);
  l.socket = ::dup(s.get());
  return l;
}

}  // namespace gantrain
