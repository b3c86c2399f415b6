#include "train/log/tensorboard.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/check.h"
#include "train/crc32c.h"

namespace gantrain {
namespace {

// Protocol buffer wire format: a key is field * 8 + wire type (0 varint, 1 eight bytes, 2 length-delimited,
// 5 four bytes).
void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(0x80 | (value & 0x7f));
  out += static_cast<char>(value);
}
template <typename T>
void put_fixed(std::string& out, T value) {  // little-endian, as is every machine this runs on
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}
void put_int(std::string& out, uint32_t field, int64_t value) {
  put_varint(out, field * 8);
  put_varint(out, static_cast<uint64_t>(value));
}
void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_varint(out, field * 8 + 2);
  put_varint(out, bytes.size());
  out += bytes;
}

// Event: wall_time = 1 (double), step = 2, file_version = 3, summary = 5, session_log = 7.
std::string event(int64_t step, uint32_t field, std::string_view content) {
  std::string out;
  put_varint(out, 1 * 8 + 1);
  put_fixed(out, std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count());
  put_int(out, 2, step);
  put_bytes(out, field, content);
  return out;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

}  // namespace

TensorBoard::TensorBoard(const std::filesystem::path& folder, int64_t resumed_at) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("{}: cannot be made: {}", folder.string(), error.message());
  char host[65] = "host";
  ::gethostname(host, sizeof host - 1);
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  // TensorBoard reads a folder's files in the order of their names; two opened in one second get a number.
  for (int number = 0;; ++number) {
    file_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{:03}", seconds, host, ::getpid(), number);
    out_ = std::fopen(file_.c_str(), "wbx");
    if (out_) break;
    if (errno != EEXIST || number == 999)
      fail("{}: cannot be opened for writing: {}", file_.string(), std::strerror(errno));
  }
  record(event(0, 3, "brain.Event:2"));
  if (resumed_at >= 0) {
    std::string session;
    put_int(session, 1, 1);  // SessionLog.status = START
    record(event(resumed_at, 7, session));
  }
  flush();
}

TensorBoard::~TensorBoard() {
  if (out_) std::fclose(out_);
}

void TensorBoard::scalar(std::string_view tag, int64_t step, double value) {
  std::string entry, summary;  // Summary.value = 1; Value: tag = 1, simple_value = 2 (float)
  put_bytes(entry, 1, tag);
  put_varint(entry, 2 * 8 + 5);
  put_fixed(entry, static_cast<float>(value));
  put_bytes(summary, 1, entry);
  record(event(step, 5, summary));
}

void TensorBoard::text(std::string_view tag, int64_t step, std::string_view markdown) {
  // Value: tag = 1, tensor = 8, metadata = 9. TensorProto: dtype = 1 (7: string), tensor_shape = 2,
  // string_val = 8. SummaryMetadata.plugin_data = 1, PluginData.plugin_name = 1.
  std::string dim, shape, tensor, plugin, metadata, entry, summary;
  put_int(dim, 1, 1);
  put_bytes(shape, 2, dim);
  put_int(tensor, 1, 7);
  put_bytes(tensor, 2, shape);
  put_bytes(tensor, 8, markdown);
  put_bytes(plugin, 1, "text");
  put_bytes(metadata, 1, plugin);
  put_bytes(entry, 1, tag);
  put_bytes(entry, 8, tensor);
  put_bytes(entry, 9, metadata);
  put_bytes(summary, 1, entry);
  record(event(step, 5, summary));
}

void TensorBoard::record(std::string_view content) {
  std::string out;
  put_fixed(out, static_cast<uint64_t>(content.size()));
  const uint32_t length_crc = masked_crc(out);
  put_fixed(out, length_crc);
  out += content;
  put_fixed(out, masked_crc(content));
  if (std::fwrite(out.data(), 1, out.size(), out_) != out.size())
    fail("{}: cannot be written: {}", file_.string(), std::strerror(errno));
}

void TensorBoard::flush() {
  if (std::fflush(out_) != 0) fail("{}: cannot be written: {}", file_.string(), std::strerror(errno));
}

}  // namespace gantrain
