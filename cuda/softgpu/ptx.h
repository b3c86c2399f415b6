// PTX as text and as a tree: modules, variables, functions, instructions with their operands. No meaning yet:
// the decoder (decode.h) gives an instruction its meaning.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace softgpu::ptx {

enum class Space : uint8_t { kNone, kReg, kConst, kGlobal, kLocal, kParam, kShared };

struct Variable {
  std::string name;
  Space space = Space::kNone;
  uint32_t align = 1;
  uint32_t elem_size = 4;
  uint64_t size = 0;  // bytes; 0 for an array without bound (dynamic shared memory)
  bool is_extern = false;
  std::vector<uint8_t> init;  // empty: zero
  struct Reloc {
    uint64_t at;
    std::string symbol;
    int64_t addend;
    bool generic;
  };
  std::vector<Reloc> relocs;
};

struct Operand {
  enum Kind : uint8_t {
    kReg,
    kImm,
    kFloat32,
    kFloat64,
    kSymbol,
    kMemory,
    kVector,
    kSink,
    kParen
  } kind = kSink;
  bool negated = false;       // !%p
  std::string name;           // register, symbol or label; in kMemory the base, empty where absolute
  bool base_is_reg = false;   // kMemory
  int64_t imm = 0;            // kImm the value, kFloat* the bits, kMemory/kSymbol the offset
  std::vector<Operand> list;  // kVector, kParen, and the coordinates of a tensor address
  std::string second;         // %p|%q: the second destination
};

struct Instruction {
  std::string guard;  // predicate register, empty where unconditional
  bool guard_negated = false;
  std::vector<std::string>
      op;  // "ld.global.v4.f32" -> {"ld","global","v4","f32"}; "shared::cluster" stays whole
  std::vector<Operand> args;
  int ptx_line = 0;
  int file = 0, line = 0;                // .loc
  int inline_file = 0, inline_line = 0;  // inlined_at of .loc
  std::string text;
};

struct Register {
  std::string name;
  uint16_t bits;  // 1 for predicates, else 16, 32, 64, 128
};

struct Function {
  std::string name;
  bool is_entry = false;
  bool has_body = false;
  std::vector<Variable> params, results;
  std::vector<Variable> locals;  // .local, .shared and .param variables declared in the body
  std::unordered_map<std::string, uint16_t> registers;  // name -> bits
  std::vector<Instruction> code;
  std::unordered_map<std::string, uint32_t> labels;                   // -> index into code
  std::unordered_map<std::string, std::vector<std::string>> targets;  // .branchtargets
  uint32_t max_threads[3] = {0, 0, 0};                                // .maxntid, 0 where absent
  uint32_t required_threads[3] = {0, 0, 0};                           // .reqntid
  uint32_t cluster[3] = {0, 0, 0};                                    // .reqnctapercluster
  bool explicit_cluster = false;
};

struct Module {
  int version = 0;  // 90 for PTX 9.0
  std::string target;
  std::unordered_map<std::string, Variable> variables;
  std::vector<std::string> variable_order;
  std::unordered_map<std::string, std::unique_ptr<Function>> functions;
  std::map<int, std::string> files;
};

// Throws std::runtime_error with the PTX line where the text is not understood.
std::unique_ptr<Module> parse(std::string_view text);

}  // namespace softgpu::ptx
