// A door to the quantisation of a base for the outside witness.
// usage: pack_door MODEL PACKING OUTPUT   writes the values of every tensor in f32, one behind the other, in
// the
//                                         order of the names that it prints, a line each
#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "model/packing.h"

int main(int argc, char** argv) {
  using namespace gantrain;
  try {
    const auto* const found = argc == 4 ? std::find(std::begin(kBasePackingNames) + 1,
                                                    std::end(kBasePackingNames), std::string(argv[2]))
                                        : std::end(kBasePackingNames);
    if (found == std::end(kBasePackingNames)) {
      std::cerr << "usage: pack_door MODEL none|file|nf4|q8_0|q4_0|q4_1 OUTPUT\n";
      return 2;
    }
    const auto weights =
        with_packing(open_weights(argv[1]), static_cast<BasePacking>(found - std::begin(kBasePackingNames)));
    std::ofstream out(argv[3], std::ios::binary);
    for (const TensorEntry& entry : weights->tensors()) {
      const int64_t rows = entry.shape.rank == 2 ? entry.shape[0] : 1;
      std::vector<float> values(static_cast<size_t>(entry.shape.count()));
      weights->read_rows(entry.name, 0, rows, values.data());
      out.write(reinterpret_cast<const char*>(values.data()),
                static_cast<std::streamsize>(values.size() * 4));
      std::cout << entry.name << '\n';
    }
    return out.flush() ? 0 : 1;
  } catch (const std::exception& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
}
