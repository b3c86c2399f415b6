// Writes event files into the folder named, for tests/train/witness_tensorboard.py to read back.
#include <cstdio>
#include <exception>
#include <string>

#include "train/log/tensorboard.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: tensorboard_door FOLDER\n", stderr);
    return 2;
  }
  try {
    {
      gantrain::TensorBoard board(argv[1]);
      for (int64_t step = 0; step < 300; ++step)
        board.scalar("loss/g", step, 1.0 / static_cast<double>(step + 1));
      board.text("samples", 5, "**hello** w\xc3\xb6rld " + std::string(300, 'x'));
    }
    gantrain::TensorBoard resumed(argv[1], 250);
    for (int64_t step = 250; step < 260; ++step) resumed.scalar("loss/g", step, -1.0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tensorboard_door: %s\n", error.what());
    return 1;
  }
}
