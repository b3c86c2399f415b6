#include "cuda/softgpu/fatbin.h"

#include <fmt/format.h>
#include <lz4.h>
#include <zstd.h>

#include <cstring>
#include <stdexcept>

namespace softgpu {
namespace {

// Layout found by reading what nvcc 13.0 and 12 write (the format has no public description). The device code
// that follows each entry header is padded to 8 bytes; `stored` is its true size where it is compressed.
struct FatHeader {
  uint32_t magic;  // 0xba55ed50
  uint16_t version, header_size;
  uint64_t size;  // of all entries
};
struct EntryHeader {
  uint16_t kind;  // 1 PTX, 2 machine code
  uint16_t version;
  uint32_t header_size;
  uint64_t size;  // payload with padding
  uint32_t stored;
  uint32_t options_offset;
  uint16_t minor, major;
  uint32_t arch;
  uint32_t name_offset, name_size;
  uint64_t flags;
  uint64_t reserved;
  uint64_t full_size;  // after decompression
};
constexpr uint32_t kMagic = 0xba55ed50;
constexpr uint64_t kFlagLz4 = 0x2000, kFlagZstd = 0x8000, kFlagSpecific = 0x100000;
constexpr uint64_t kLargestPtx = uint64_t{1} << 31;

}  // namespace

std::vector<PtxImage> read_fatbin(const void* data) {
  const char* p = static_cast<const char*>(data);
  FatHeader head;
  std::memcpy(&head, p, sizeof head);
  if (head.magic != kMagic)
    throw std::runtime_error(fmt::format("fat binary: expected magic {:#x}, got {:#x}", kMagic, head.magic));
  std::vector<PtxImage> images;
  uint64_t at = 0;
  while (at + sizeof(EntryHeader) <= head.size) {
    const char* entry_at = p + head.header_size + at;
    EntryHeader e;
    std::memcpy(&e, entry_at, sizeof e);
    if (e.header_size < sizeof e || e.header_size > head.size - at || e.size > head.size - at - e.header_size)
      throw std::runtime_error(
          fmt::format("fat binary: entry at byte {} (header {}, payload {}) leaves the container of {}", at,
                      e.header_size, e.size, head.size));
    at += e.header_size + e.size;
    if (e.kind != 1) continue;
    const char* payload = entry_at + e.header_size;
    PtxImage image;
    image.arch = static_cast<int>(e.arch);
    image.specific = (e.flags & kFlagSpecific) != 0;
    if (e.name_offset && e.name_offset + uint64_t{e.name_size} <= e.header_size)
      image.name.assign(entry_at + e.name_offset, e.name_size);
    if (e.flags & (kFlagZstd | kFlagLz4)) {
      if (e.full_size > kLargestPtx || e.stored > e.size)
        throw std::runtime_error(fmt::format("fat binary: compressed entry of {} of {} bytes, {} unpacked",
                                             e.stored, e.size, e.full_size));
      image.text.resize(e.full_size);
      if (e.flags & kFlagZstd) {
        const size_t got = ZSTD_decompress(image.text.data(), image.text.size(), payload, e.stored);
        if (ZSTD_isError(got) || got != e.full_size)
          throw std::runtime_error(fmt::format("fat binary: zstd: {}", ZSTD_getErrorName(got)));
      } else {
        const int got = LZ4_decompress_safe(payload, image.text.data(), static_cast<int>(e.stored),
                                            static_cast<int>(e.full_size));
        if (got < 0 || static_cast<uint64_t>(got) != e.full_size)
          throw std::runtime_error(
              fmt::format("fat binary: LZ4: expected {} bytes, got {}", e.full_size, got));
      }
    } else {
      image.text.assign(payload, e.size);
    }
    while (!image.text.empty() && image.text.back() == '\0') image.text.pop_back();
    images.push_back(std::move(image));
  }
  return images;
}

const PtxImage* choose_image(const std::vector<PtxImage>& images, int arch) {
  const PtxImage* best = nullptr;
  for (const PtxImage& image : images) {
    if (image.arch > arch || (image.specific && image.arch != arch)) continue;
    if (!best || image.arch > best->arch || (image.arch == best->arch && image.specific)) best = &image;
  }
  return best;
}

}  // namespace softgpu
