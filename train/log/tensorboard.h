// TensorBoard event files, written without TensorFlow: TFRecord framing (length, masked CRC-32C, data, masked
// CRC-32C; tensorflow/core/lib/io/record_writer.h) around Event protocol buffers
// (tensorflow/core/util/event.proto).
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

namespace gantrain {

class TensorBoard {
 public:
  // A new file in `folder` (made when missing). `resumed_at` >= 0 tells TensorBoard to drop the points of
  // earlier files from that step on.
  explicit TensorBoard(const std::filesystem::path& folder, int64_t resumed_at = -1);
  TensorBoard(const TensorBoard&) = delete;
  TensorBoard& operator=(const TensorBoard&) = delete;
  ~TensorBoard();

  void scalar(std::string_view tag, int64_t step, double value);
  void text(std::string_view tag, int64_t step, std::string_view markdown);
  void flush();
  const std::filesystem::path& file() const { return file_; }

 private:
  void record(std::string_view event);

  std::filesystem::path file_;
  std::FILE* out_ = nullptr;
};

}  // namespace gantrain
