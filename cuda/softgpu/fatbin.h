// Reads NVIDIA fat binaries: the container nvcc puts into a host program, holding PTX and machine code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace softgpu {

struct PtxImage {
  int arch = 0;           // 80, 90, ... as in compute_80
  bool specific = false;  // compute_90a: runs on exactly this architecture
  std::string name;       // source file name as recorded by the compiler, may be empty
  std::string text;
};

// All PTX images of one fat binary. `data` points at the container's header (magic 0xba55ed50).
// Throws std::runtime_error where the container is not understood (place, expected, got).
std::vector<PtxImage> read_fatbin(const void* data);

// The image a device of compute capability `arch` (80, 90, ...) runs: the newest one not newer than the
// device, an architecture-specific one only on its own architecture. nullptr where none fits.
const PtxImage* choose_image(const std::vector<PtxImage>& images, int arch);

}  // namespace softgpu
