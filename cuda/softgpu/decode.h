// From the PTX tree to what the machine runs. Each family of instructions has a decode_* function (in its
// exec_*.cc) that recognises an instruction and emits a handler with its operands.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cuda/softgpu/machine.h"
#include "cuda/softgpu/ptx.h"

namespace softgpu {

// A type modifier: kind 'u','s','b','f','h' (f16),'B' (bf16),'p','t' (tf32),'e' (8-bit floats), width of one
// element.
struct Type {
  char kind = 0;
  int bits = 0;  // of the whole, 32 for f16x2
  bool pair = false;
  std::string name;
  bool is_float() const { return kind == 'f' || kind == 'h' || kind == 'B'; }
};
bool parse_type(std::string_view name, Type* out);

struct Symbol {
  ptx::Space space = ptx::Space::kNone;
  uint64_t address = 0;  // global: device address; shared, local, param: offset
  uint64_t size = 0;
};
using Globals = std::unordered_map<std::string, Symbol>;

class Decoder {
 public:
  Decoder(const ptx::Module& module, const ptx::Function& function, const Globals& globals);
  std::unique_ptr<Kernel> run();

  // --- what families use; all about the instruction being decoded
  // ------------------------------------------------
  const ptx::Instruction& in() const { return *in_; }
  const std::string& name() const { return in_->op[0]; }
  bool has(std::string_view modifier) const;
  const std::vector<Type>& types() const { return types_; }
  const Type& type() const { return types_.back(); }
  size_t args() const { return in_->args.size(); }
  const ptx::Operand& arg(size_t i) const;

  Ref dst(size_t i, int bits);
  Ref dst(const ptx::Operand& o, int bits);
  Ref src(size_t i, int bits, char kind = 'b');  // kind decides how a float constant is stored
  Ref src(const ptx::Operand& o, int bits, char kind = 'b');
  Ref pred(const ptx::Operand& o);  // source predicate; negation is the caller's
  Ref second(size_t i);             // q of p|q
  Ref any(const ptx::Operand& o, int bits_if_constant, char kind = 'b');  // whatever width the register has
  Ref scratch(int bits);
  Ref constant(int bits, uint64_t value);
  uint16_t width(const ptx::Operand& o) const;                          // of a register, 0 for others
  Ref address(const ptx::Operand& o, Symbol* symbol, int64_t* offset);  // [reg+imm] or [symbol+imm]
  bool symbol(const std::string& name, Symbol* out);
  uint32_t label(const std::string& name) const;

  Inst& emit(Handler fn, Class cls, std::vector<Ref> ops);
  Kernel& kernel() { return *kernel_; }
  const std::vector<std::string>* branch_targets(const std::string& name) const;
  template <class T>
  const T* keep(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    kernel_->ext.emplace_back(sizeof(T));
    std::memcpy(kernel_->ext.back().data(), &value, sizeof(T));
    return reinterpret_cast<const T*>(kernel_->ext.back().data());
  }
  [[noreturn]] void unknown(const std::string& why) const;

 private:
  void flatten(const ptx::Function& f, const std::string& suffix,
               const std::unordered_map<std::string, std::string>& map, int depth);
  void layout_variables();
  void decode_one();
  void allocate_registers();
  Ref make(uint32_t id, uint16_t bits) const { return Ref{id, 0, 0, bits}; }

  const ptx::Module& module_;
  const ptx::Function& function_;
  const Globals& globals_;
  std::unique_ptr<Kernel> kernel_;
  ptx::Function flat_;
  std::unordered_map<std::string, uint32_t> ids_;
  std::vector<uint16_t> id_bits_;
  std::unordered_map<std::string, Symbol> locals_;
  std::map<Special, uint32_t> special_ids_;
  std::map<std::pair<int, uint64_t>, uint32_t> constants_;
  std::vector<char> constant_bytes_;
  const ptx::Instruction* in_ = nullptr;
  std::vector<Type> types_;
  std::vector<uint32_t>
      first_inst_;  // PTX instruction -> first Inst (one PTX instruction may become several)
  std::vector<std::pair<uint32_t, uint32_t>> fixups_;
  int inline_count_ = 0;
};

// Thrown inside decode_*; becomes an instruction that stops with its text when it is reached.
struct Unknown : std::runtime_error {
  using std::runtime_error::runtime_error;
};

bool decode_integer(Decoder& d);
bool decode_float(Decoder& d);
bool decode_half(Decoder& d);
bool decode_convert(Decoder& d);
bool decode_compare(Decoder& d);
bool decode_move(Decoder& d);
bool decode_control(Decoder& d);
bool decode_memory(Decoder& d);
bool decode_atomic(Decoder& d);
bool decode_warp(Decoder& d);
bool decode_barrier(Decoder& d);
bool decode_async(Decoder& d);
bool decode_bulk(Decoder& d);
bool decode_matrix(Decoder& d);
bool decode_wgmma(Decoder& d);
bool decode_call(Decoder& d);

}  // namespace softgpu
