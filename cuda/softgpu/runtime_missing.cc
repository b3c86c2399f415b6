// Every entry point of the CUDA runtime exists, so that any program links; those that nothing else here
// defines name themselves and stop. A strong definition elsewhere takes the place of the weak one here.
#include <cstdio>
#include <cstdlib>

extern "C" {
__attribute__((noreturn)) static void softgpu_missing(const char* name) {
  std::fprintf(stderr, "softgpu: the CUDA runtime function %s is not supported\n", name);
  std::fflush(nullptr);
  std::_Exit(86);
}
#define SOFTGPU_ENTRY(name) \
  __attribute__((weak, visibility("default"))) void name() { softgpu_missing(#name); }
#include "cuda/softgpu/entry_points.inc"
}
