#include "model/formats/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "core/check.h"
#include "model/formats/held_file.h"

// Under the address sanitizer a file is read into a block of exactly its size: past a mapping's end there is
// the rest of a page, and reading it would go unnoticed.
#if defined(__SANITIZE_ADDRESS__)
#define GT_EXACT_COPY 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GT_EXACT_COPY 1
#endif
#endif

namespace gantrain {

#ifdef GT_EXACT_COPY
namespace {

struct Held {
  std::string path;
  std::span<const unsigned char> bytes;
};
std::vector<Held> g_held;  // a fuzz target's few files

Held* find_held(const std::string& path) {
  for (Held& h : g_held)
    if (h.path == path) return &h;
  return nullptr;
}

}  // namespace

bool hold_in_memory(const std::string& path, std::span<const unsigned char> bytes) {
  if (Held* held = find_held(path))
    held->bytes = bytes;
  else
    g_held.push_back({path, bytes});
  return true;
}
#else
bool hold_in_memory(const std::string&, std::span<const unsigned char>) { return false; }
#endif

MappedFile::MappedFile(const std::string& path) : path_(path) {
#ifdef GT_EXACT_COPY
  if (const Held* held = find_held(path)) {
    size_ = static_cast<int64_t>(held->bytes.size());
    auto* copy = new unsigned char[held->bytes.size()];
    data_ = copy;
    if (size_ > 0) std::memcpy(copy, held->bytes.data(), held->bytes.size());
    return;
  }
#endif
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // never waits for a pipe's writer
  if (fd < 0) fail("{}: cannot open: {}", path, std::strerror(errno));
  struct stat s {};
  if (::fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
    ::close(fd);
    fail("{}: not a regular file", path);
  }
  size_ = s.st_size;
#ifdef GT_EXACT_COPY
  auto* copy = new unsigned char[static_cast<size_t>(size_)];
  data_ = copy;
  for (int64_t at = 0; at < size_;) {
    const ssize_t n = ::read(fd, copy + at, static_cast<size_t>(size_ - at));
    if (n <= 0) fail("{}: cannot read {} bytes", path, size_);
    at += n;
  }
  ::close(fd);
  return;
#endif
  if (size_ > 0) {
    void* p = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    ::close(fd);
    if (p == MAP_FAILED)
      throw Error(fmt::format("{}: cannot map {} bytes: {}", path, size_, std::strerror(error)),
                  error == ENOMEM ? ErrorKind::kOutOfMemory : ErrorKind::kFailure);
    data_ = static_cast<const unsigned char*>(p);
  } else {
    ::close(fd);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
#ifdef GT_EXACT_COPY
  delete[] data_;
  return;
#endif
  if (data_) ::munmap(const_cast<unsigned char*>(data_), static_cast<size_t>(size_));
}

}  // namespace gantrain
