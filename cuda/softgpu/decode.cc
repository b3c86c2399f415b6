#include "cuda/softgpu/decode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "cuda/softgpu/in_flight.h"

namespace softgpu {

bool parse_type(std::string_view t, Type* out) {
  static const std::unordered_map<std::string_view, Type> table = {
      {"u8", {'u', 8, false, ""}},     {"s8", {'s', 8, false, ""}},    {"b8", {'b', 8, false, ""}},
      {"u16", {'u', 16, false, ""}},   {"s16", {'s', 16, false, ""}},  {"b16", {'b', 16, false, ""}},
      {"u32", {'u', 32, false, ""}},   {"s32", {'s', 32, false, ""}},  {"b32", {'b', 32, false, ""}},
      {"u64", {'u', 64, false, ""}},   {"s64", {'s', 64, false, ""}},  {"b64", {'b', 64, false, ""}},
      {"b128", {'b', 128, false, ""}}, {"f32", {'f', 32, false, ""}},  {"f64", {'f', 64, false, ""}},
      {"f16", {'h', 16, false, ""}},   {"bf16", {'B', 16, false, ""}}, {"f16x2", {'h', 32, true, ""}},
      {"bf16x2", {'B', 32, true, ""}}, {"pred", {'p', 1, false, ""}},  {"tf32", {'t', 32, false, ""}},
      {"e4m3", {'e', 8, false, ""}},   {"e5m2", {'e', 8, false, ""}},  {"e4m3x2", {'e', 16, true, ""}},
      {"e5m2x2", {'e', 16, true, ""}}, {"s4", {'s', 4, false, ""}},    {"u4", {'u', 4, false, ""}},
      {"b1", {'b', 1, false, ""}},     {"u16x2", {'u', 32, true, ""}}, {"s16x2", {'s', 32, true, ""}}};
  const auto it = table.find(t);
  if (it == table.end()) return false;
  *out = it->second;
  out->name = std::string(t);
  return true;
}

Decoder::Decoder(const ptx::Module& module, const ptx::Function& function, const Globals& globals)
    : module_(module), function_(function), globals_(globals), kernel_(std::make_unique<Kernel>()) {}

void Decoder::unknown(const std::string& why) const { throw Unknown(why); }

bool Decoder::has(std::string_view modifier) const {
  return std::find(in_->op.begin() + 1, in_->op.end(), modifier) != in_->op.end();
}
const ptx::Operand& Decoder::arg(size_t i) const {
  if (i >= in_->args.size()) unknown(fmt::format("operand {} is missing", i + 1));
  return in_->args[i];
}

// --- calls become copies of their functions
// ------------------------------------------------------------------------

namespace {
void rename(ptx::Operand* o, const std::string& suffix,
            const std::unordered_map<std::string, std::string>& map, const ptx::Function& f) {
  const auto apply = [&](std::string* name) {
    if (name->empty()) return;
    const auto it = map.find(*name);
    if (it != map.end()) {
      *name = it->second;
    } else if (f.registers.count(*name) || f.labels.count(*name) || f.targets.count(*name) ||
               std::any_of(f.locals.begin(), f.locals.end(),
                           [&](const auto& v) { return v.name == *name; })) {
      *name += suffix;
    }
  };
  apply(&o->name);
  apply(&o->second);
  for (ptx::Operand& inner : o->list) rename(&inner, suffix, map, f);
}
}  // namespace

void Decoder::flatten(const ptx::Function& f, const std::string& suffix,
                      const std::unordered_map<std::string, std::string>& map, int depth) {
  for (const auto& [name, bits] : f.registers) flat_.registers[name + suffix] = bits;
  for (ptx::Variable v : f.locals) {
    v.name += suffix;
    flat_.locals.push_back(v);
  }
  for (const auto& [name, list] : f.targets) {
    auto& out = flat_.targets[name + suffix];
    for (const std::string& l : list) out.push_back(l + suffix);
  }
  const std::string end = "$end" + suffix;
  std::vector<uint32_t> at(f.code.size() + 1);
  for (size_t i = 0; i < f.code.size(); ++i) {
    at[i] = static_cast<uint32_t>(flat_.code.size());
    ptx::Instruction in = f.code[i];
    if (!suffix.empty()) {
      for (ptx::Operand& o : in.args) rename(&o, suffix, map, f);
      if (!in.guard.empty()) in.guard += suffix;
    }
    if (in.op[0] == "ret" && depth > 0) {
      in.op = {"bra"};
      ptx::Operand target;
      target.kind = ptx::Operand::kSymbol;
      target.name = end;
      in.args = {target};
    }
    const ptx::Function* callee = nullptr;
    size_t name_at = 0;
    if (in.op[0] == "call") {
      while (name_at < in.args.size() && in.args[name_at].kind == ptx::Operand::kParen) ++name_at;
      if (name_at < in.args.size() && in.args[name_at].kind == ptx::Operand::kSymbol) {
        const auto it = module_.functions.find(in.args[name_at].name);
        if (it != module_.functions.end() && it->second->has_body && depth < 24) callee = it->second.get();
      }
    }
    if (!callee) {
      flat_.code.push_back(std::move(in));
      continue;
    }
    const std::string inner = fmt::format("#{}", ++inline_count_);
    if (!in.guard.empty()) {
      ptx::Instruction skip = in;
      skip.op = {"bra"};
      ptx::Operand target;
      target.kind = ptx::Operand::kSymbol;
      target.name = "$end" + inner;
      skip.args = {target};
      skip.guard_negated = !in.guard_negated;
      flat_.code.push_back(skip);
    }
    std::unordered_map<std::string, std::string> names;
    const auto bind = [&](const std::vector<ptx::Variable>& formal, const std::vector<ptx::Operand>& actual) {
      for (size_t k = 0; k < formal.size() && k < actual.size(); ++k) names[formal[k].name] = actual[k].name;
    };
    if (name_at == 1) bind(callee->results, in.args[0].list);
    if (name_at + 1 < in.args.size()) bind(callee->params, in.args[name_at + 1].list);
    flatten(*callee, inner, names, depth + 1);
    flat_.labels["$end" + inner] = static_cast<uint32_t>(flat_.code.size());
  }
  at[f.code.size()] = static_cast<uint32_t>(flat_.code.size());
  for (const auto& [name, index] : f.labels) flat_.labels[name + suffix] = at[index];
}

void Decoder::layout_variables() {
  Kernel& k = *kernel_;
  uint32_t offset = 0;
  for (const ptx::Variable& v : function_.params) {
    offset = (offset + v.align - 1) / v.align * v.align;
    locals_[v.name] = {ptx::Space::kParam, offset, v.size};
    k.params.push_back({offset, static_cast<uint32_t>(v.size)});
    offset += static_cast<uint32_t>(v.size);
  }
  k.param_bytes = offset;
  for (const ptx::Variable& v : flat_.locals) {
    if (v.space == ptx::Space::kLocal || v.space == ptx::Space::kParam) {
      const uint32_t align = std::max(v.align, 1u);
      k.local_bytes = (k.local_bytes + align - 1) / align * align;
      locals_[v.name] = {ptx::Space::kLocal, k.local_bytes, v.size};
      k.local_bytes += static_cast<uint32_t>(v.size);
    } else if (v.space == ptx::Space::kShared && v.size > 0) {
      k.static_shared = (k.static_shared + v.align - 1) / v.align * v.align;
      locals_[v.name] = {ptx::Space::kShared, k.static_shared, v.size};
      k.static_shared += static_cast<uint32_t>(v.size);
    }
  }
  // Module-level shared variables belong to the kernels that name them.
  std::set<std::string> used;
  const std::function<void(const ptx::Operand&)> visit = [&](const ptx::Operand& o) {
    if (!o.name.empty()) used.insert(o.name);
    for (const ptx::Operand& inner : o.list) visit(inner);
  };
  for (const ptx::Instruction& in : flat_.code)
    for (const ptx::Operand& o : in.args) visit(o);
  uint32_t dynamic_align = 16;
  for (const std::string& name : module_.variable_order) {
    const ptx::Variable& v = module_.variables.at(name);
    if (v.space != ptx::Space::kShared || !used.count(name)) continue;
    if (v.size == 0) {
      dynamic_align = std::max(dynamic_align, v.align);
      continue;
    }
    k.static_shared = (k.static_shared + v.align - 1) / v.align * v.align;
    locals_[name] = {ptx::Space::kShared, k.static_shared, v.size};
    k.static_shared += static_cast<uint32_t>(v.size);
  }
  k.static_shared =
      k.static_shared == 0 ? 0 : (k.static_shared + dynamic_align - 1) / dynamic_align * dynamic_align;
  for (const std::string& name : module_.variable_order) {
    const ptx::Variable& v = module_.variables.at(name);
    if (v.space == ptx::Space::kShared && v.size == 0)
      locals_[name] = {ptx::Space::kShared, k.static_shared, 0};
  }
  for (const ptx::Variable& v : flat_.locals)
    if (v.space == ptx::Space::kShared && v.size == 0)
      locals_[v.name] = {ptx::Space::kShared, k.static_shared, 0};
  k.local_bytes = (k.local_bytes + 15) / 16 * 16;
}

bool Decoder::symbol(const std::string& name, Symbol* out) {
  const auto local = locals_.find(name);
  if (local != locals_.end()) {
    *out = local->second;
    return true;
  }
  const auto global = globals_.find(name);
  if (global == globals_.end()) return false;
  *out = global->second;
  return true;
}

uint32_t Decoder::label(const std::string& name) const {
  const auto it = flat_.labels.find(name);
  if (it == flat_.labels.end()) unknown("label " + name + " is not defined");
  return it->second;
}

const std::vector<std::string>* Decoder::branch_targets(const std::string& name) const {
  const auto it = flat_.targets.find(name);
  return it == flat_.targets.end() ? nullptr : &it->second;
}

// --- operands
// ------------------------------------------------------------------------------------------------------

namespace {
const std::unordered_map<std::string, Special>& special_registers() {
  static const std::unordered_map<std::string, Special> table = {
      {"%tid.x", Special::kTidX},
      {"%tid.y", Special::kTidY},
      {"%tid.z", Special::kTidZ},
      {"%ntid.x", Special::kNtidX},
      {"%ntid.y", Special::kNtidY},
      {"%ntid.z", Special::kNtidZ},
      {"%ctaid.x", Special::kCtaidX},
      {"%ctaid.y", Special::kCtaidY},
      {"%ctaid.z", Special::kCtaidZ},
      {"%nctaid.x", Special::kNctaidX},
      {"%nctaid.y", Special::kNctaidY},
      {"%nctaid.z", Special::kNctaidZ},
      {"%laneid", Special::kLaneid},
      {"%warpid", Special::kWarpid},
      {"%nwarpid", Special::kNwarpid},
      {"%smid", Special::kSmid},
      {"%nsmid", Special::kNsmid},
      {"%gridid", Special::kGridid},
      {"%lanemask_eq", Special::kLaneEq},
      {"%lanemask_le", Special::kLaneLe},
      {"%lanemask_lt", Special::kLaneLt},
      {"%lanemask_ge", Special::kLaneGe},
      {"%lanemask_gt", Special::kLaneGt},
      {"%cluster_ctaid.x", Special::kClusterCtaidX},
      {"%cluster_ctaid.y", Special::kClusterCtaidY},
      {"%cluster_ctaid.z", Special::kClusterCtaidZ},
      {"%cluster_nctaid.x", Special::kClusterNctaidX},
      {"%cluster_nctaid.y", Special::kClusterNctaidY},
      {"%cluster_nctaid.z", Special::kClusterNctaidZ},
      {"%cluster_ctarank", Special::kClusterCtarank},
      {"%cluster_nctarank", Special::kClusterNctarank},
      {"%clusterid.x", Special::kClusteridX},
      {"%clusterid.y", Special::kClusteridY},
      {"%clusterid.z", Special::kClusteridZ},
      {"%nclusterid.x", Special::kNclusteridX},
      {"%nclusterid.y", Special::kNclusteridY},
      {"%nclusterid.z", Special::kNclusteridZ},
      {"%is_explicit_cluster", Special::kIsExplicitCluster},
      {"%dynamic_smem_size", Special::kDynamicSmem},
      {"%total_smem_size", Special::kTotalSmem}};
  return table;
}
uint16_t special_bits(Special s) {
  return s == Special::kGridid ? 64 : s == Special::kIsExplicitCluster ? 1 : 32;
}
}  // namespace

uint16_t Decoder::width(const ptx::Operand& o) const {
  if (o.kind != ptx::Operand::kReg) return 0;
  const auto it = flat_.registers.find(o.name);
  if (it != flat_.registers.end()) return it->second;
  const auto special = special_registers().find(o.name);
  if (special != special_registers().end()) return special_bits(special->second);
  return 0;
}

Ref Decoder::scratch(int bits) {
  id_bits_.push_back(static_cast<uint16_t>(bits));
  return make(static_cast<uint32_t>(id_bits_.size() - 1), static_cast<uint16_t>(bits));
}

Ref Decoder::any(const ptx::Operand& o, int bits_if_constant, char kind) {
  const uint16_t w = width(o);
  return src(o, w ? w : bits_if_constant, kind);
}

Ref Decoder::src(size_t i, int bits, char kind) { return src(arg(i), bits, kind); }

Ref Decoder::src(const ptx::Operand& o, int bits, char kind) {
  using K = ptx::Operand;
  switch (o.kind) {
    case K::kReg: {
      const uint16_t w = width(o);
      if (!w) unknown("register " + o.name + " is not declared");
      const auto special = special_registers().find(o.name);
      if (special != special_registers().end() && !flat_.registers.count(o.name)) {
        auto [it, fresh] = special_ids_.try_emplace(special->second, 0);
        if (fresh) it->second = scratch(w).off;
        if (w != bits && !(w == 32 && bits == 16) && !(w == 64 && bits == 32))
          unknown(fmt::format("{} is {} bits wide, {} are needed", o.name, w, bits));
        return make(it->second, static_cast<uint16_t>(bits == 16 && w == 32 ? 32 : w));
      }
      if (w != bits) unknown(fmt::format("register {} is {} bits wide, {} are needed", o.name, w, bits));
      auto [it, fresh] = ids_.try_emplace(o.name, 0);
      if (fresh) it->second = scratch(w).off;
      return make(it->second, w);
    }
    case K::kImm: {
      if (kind == 'f') {  // an integer where a float is meant, as in "mov.f32 %f1, 1"
        const double d = static_cast<double>(o.imm);
        ptx::Operand f = o;
        f.kind = K::kFloat64;
        std::memcpy(&f.imm, &d, 8);
        return src(f, bits, kind);
      }
      return constant(bits, static_cast<uint64_t>(o.imm));
    }
    case K::kFloat32:
      if (bits == 64 && kind == 'f') {
        float f;
        const uint32_t u = static_cast<uint32_t>(o.imm);
        std::memcpy(&f, &u, 4);
        const double d = f;
        uint64_t v;
        std::memcpy(&v, &d, 8);
        return constant(64, v);
      }
      return constant(bits, static_cast<uint64_t>(o.imm));
    case K::kFloat64: {
      if (bits == 64) return constant(64, static_cast<uint64_t>(o.imm));
      double d;
      std::memcpy(&d, &o.imm, 8);
      const float f = static_cast<float>(d);
      uint32_t u;
      std::memcpy(&u, &f, 4);
      if (bits == 32) return constant(32, u);
      unknown("float constant for a 16-bit operand");
    }
    case K::kSymbol: {
      Symbol s;
      if (!symbol(o.name, &s)) unknown("symbol " + o.name + " is not defined");
      return constant(bits, s.address + static_cast<uint64_t>(o.imm));
    }
    default:
      unknown("operand not understood");
  }
}

Ref Decoder::constant(int bits, uint64_t value) {
  if (bits < 64) value &= (uint64_t{1} << bits) - 1;
  auto [it, fresh] = constants_.try_emplace({bits, value}, 0);
  if (fresh) {
    const size_t at = (constant_bytes_.size() + 63) / 64 * 64;
    it->second = static_cast<uint32_t>(at);
    if (bits == 1) {
      const Mask m = value ? kAll : 0;
      constant_bytes_.resize(at + 4);
      std::memcpy(constant_bytes_.data() + at, &m, 4);
    } else {
      const size_t n = static_cast<size_t>(bits) / 8;
      constant_bytes_.resize(at + kLanes * n);
      for (int i = 0; i < kLanes; ++i) {
        std::memset(constant_bytes_.data() + at + static_cast<size_t>(i) * n, 0, n);
        std::memcpy(constant_bytes_.data() + at + static_cast<size_t>(i) * n, &value, std::min<size_t>(n, 8));
      }
    }
  }
  return Ref{it->second, 1, 0, static_cast<uint16_t>(bits)};
}

Ref Decoder::dst(size_t i, int bits) { return dst(arg(i), bits); }

Ref Decoder::dst(const ptx::Operand& o, int bits) {
  if (o.kind == ptx::Operand::kSink) {
    Ref r = scratch(bits);
    r.def = 1;
    return r;
  }
  if (o.kind != ptx::Operand::kReg || !flat_.registers.count(o.name)) unknown("destination is no register");
  Ref r = src(o, bits);
  r.def = 1;
  return r;
}

Ref Decoder::pred(const ptx::Operand& o) { return src(o, 1); }

Ref Decoder::second(size_t i) {
  if (arg(i).second.empty()) return kNoRef;
  ptx::Operand o;
  o.kind = arg(i).second == "_" ? ptx::Operand::kSink : ptx::Operand::kReg;
  o.name = arg(i).second;
  return dst(o, 1);
}

Ref Decoder::address(const ptx::Operand& o, Symbol* out, int64_t* offset) {
  *out = Symbol();
  *offset = o.imm;
  if (o.kind == ptx::Operand::kReg ||
      o.kind == ptx::Operand::kSymbol) {  // some instructions take a bare address
    *offset = 0;
    ptx::Operand m = o;
    m.kind = ptx::Operand::kMemory;
    m.base_is_reg = o.kind == ptx::Operand::kReg;
    return address(m, out, offset);
  }
  if (o.kind != ptx::Operand::kMemory) unknown("expected an address");
  if (o.name.empty()) return constant(64, 0);
  if (o.base_is_reg) {
    ptx::Operand r;
    r.kind = ptx::Operand::kReg;
    r.name = o.name;
    return any(r, 64);
  }
  if (!symbol(o.name, out)) unknown("symbol " + o.name + " is not defined");
  return constant(64, out->address);
}

Inst& Decoder::emit(Handler fn, Class cls, std::vector<Ref> ops) {
  Inst inst;
  inst.fn = fn;
  inst.cls = cls;
  if (ops.size() > 255) unknown("too many operands");
  inst.nops = static_cast<uint8_t>(ops.size());
  kernel_->operands.push_back(std::move(ops));
  inst.ops = kernel_->operands.back().data();
  if (!in_->guard.empty()) {
    ptx::Operand g;
    g.kind = ptx::Operand::kReg;
    g.name = in_->guard;
    inst.guard = pred(g);
    inst.guard_negated = in_->guard_negated;
  }
  inst.index = static_cast<uint32_t>(kernel_->code.size());
  if (name() == "mov") inst.flags |= kFlagMove;
  kernel_->code.push_back(inst);
  kernel_->lines.push_back(
      {in_->ptx_line, in_->file, in_->line, in_->inline_file, in_->inline_line, in_->text});
  return kernel_->code.back();
}

namespace {
void run_unknown(Warp& w, const Inst& in, Mask mask) {
  fault(w, in, mask ? __builtin_ctz(mask) : 0, kFaultInstruction,
        fmt::format("instruction not supported: {}", reinterpret_cast<const char*>(in.ext)));
}
}  // namespace

void Decoder::decode_one() {
  types_.clear();
  for (size_t i = 1; i < in_->op.size(); ++i) {
    Type t;
    if (parse_type(in_->op[i], &t)) types_.push_back(t);
  }
  static constexpr bool (*families[])(Decoder&) = {
      decode_integer, decode_float,  decode_half,   decode_compare, decode_convert, decode_move,
      decode_control, decode_memory, decode_atomic, decode_warp,    decode_barrier, decode_async,
      decode_bulk,    decode_matrix, decode_wgmma,  decode_call};
  const size_t before = kernel_->code.size();
  std::string why = "no such instruction is known";
  try {
    for (const auto family : families)
      if (family(*this)) return;
  } catch (const Unknown& e) {
    why = e.what();
  }
  kernel_->code.resize(before);
  kernel_->lines.resize(before);
  Inst& inst = emit(run_unknown, Class::kControl, {});
  const std::string text = fmt::format("{} ({})", in_->text, why);
  kernel_->ext.emplace_back(text.begin(), text.end());
  kernel_->ext.back().push_back(0);
  inst.ext = kernel_->ext.back().data();
}

std::unique_ptr<Kernel> Decoder::run() {
  Kernel& k = *kernel_;
  k.name = function_.name;
  k.files = module_.files;
  std::copy_n(function_.max_threads, 3, k.max_threads);
  std::copy_n(function_.required_threads, 3, k.required_threads);
  std::copy_n(function_.cluster, 3, k.cluster);
  flatten(function_, "", {}, 0);
  layout_variables();
  ptx::Instruction end;
  end.op = {"exit"};
  end.text = "(end of kernel)";
  end.ptx_line = flat_.code.empty() ? 0 : flat_.code.back().ptx_line;
  flat_.code.push_back(end);
  first_inst_.resize(flat_.code.size());
  for (size_t i = 0; i < flat_.code.size(); ++i) {
    first_inst_[i] = static_cast<uint32_t>(k.code.size());
    in_ = &flat_.code[i];
    decode_one();
  }
  // Branches were decoded with the index of a PTX instruction.
  for (Inst& inst : k.code) {
    if (inst.flags & kFlagBranch)
      inst.target = first_inst_[std::min<size_t>(inst.target, first_inst_.size() - 1)];
  }
  for (auto& table : k.targets)
    for (uint32_t& t : table) t = first_inst_[std::min<size_t>(t, first_inst_.size() - 1)];
  track_wgmma(k);
  allocate_registers();
  const size_t bytes = (constant_bytes_.size() + 127) / 64 * 64;
  k.constants = static_cast<char*>(std::aligned_alloc(64, bytes));
  std::memcpy(k.constants, constant_bytes_.data(), constant_bytes_.size());
  return std::move(kernel_);
}

// --- registers
// -----------------------------------------------------------------------------------------------------

// PTX registers are many and short-lived; keeping the live ones together keeps a warp in the cache. Liveness
// is per lane (a lane's slice of a slot is touched by that lane alone), so divergence does not matter to it.
// A slot is never shared between a source and a destination of one instruction: handlers may write before
// they have read everything.
void Decoder::allocate_registers() {
  Kernel& k = *kernel_;
  const uint32_t n = static_cast<uint32_t>(k.code.size()), ids = static_cast<uint32_t>(id_bits_.size());
  std::vector<char> leader(n + 1, 0);
  leader[0] = 1;
  const auto table_of = [&](const Inst& i) -> const std::vector<uint32_t>& { return k.targets[i.aux]; };
  for (uint32_t i = 0; i < n; ++i) {
    const Inst& inst = k.code[i];
    if (inst.flags & kFlagBranch) leader[inst.target] = 1, leader[i + 1] = 1;
    if (inst.flags & kFlagTable) {
      for (uint32_t t : table_of(inst)) leader[t] = 1;
      leader[i + 1] = 1;
    }
    if (inst.flags & kFlagStops) leader[i + 1] = 1;
  }
  std::vector<uint32_t> block_of(n), starts;
  for (uint32_t i = 0; i < n; ++i) {
    if (leader[i]) starts.push_back(i);
    block_of[i] = static_cast<uint32_t>(starts.size() - 1);
  }
  const uint32_t blocks = static_cast<uint32_t>(starts.size());
  starts.push_back(n);
  const size_t words = (ids + 63) / 64;
  std::vector<uint64_t> gen(blocks * words), kill(blocks * words), live_in(blocks * words),
      live_out(blocks * words);
  const auto for_refs = [&](const Inst& inst, auto&& use, auto&& def) {
    if (inst.guard.present()) use(inst.guard.off);
    for (int o = 0; o < inst.nops; ++o) {
      const Ref& r = inst.ops[o];
      if (!r.present() || r.base != 0) continue;
      if (r.def != 1) use(r.off);
    }
    for (int o = 0; o < inst.nops; ++o) {
      const Ref& r = inst.ops[o];
      if (r.present() && r.base == 0 && r.def) def(r.off, !inst.guard.present() && r.def == 1);
    }
  };
  for (uint32_t b = 0; b < blocks; ++b) {
    uint64_t* g = &gen[b * words];
    uint64_t* d = &kill[b * words];
    for (uint32_t i = starts[b]; i < starts[b + 1]; ++i) {
      for_refs(
          k.code[i],
          [&](uint32_t id) {
            if (!(d[id / 64] >> (id % 64) & 1)) g[id / 64] |= 1ull << (id % 64);
          },
          [&](uint32_t id, bool whole) {
            if (whole) d[id / 64] |= 1ull << (id % 64);
          });
    }
  }
  std::vector<std::vector<uint32_t>> next(blocks);
  for (uint32_t b = 0; b < blocks; ++b) {
    const uint32_t last = starts[b + 1] - 1;
    const Inst& inst = k.code[last];
    if (inst.flags & kFlagBranch) next[b].push_back(block_of[inst.target]);
    if (inst.flags & kFlagTable)
      for (uint32_t t : table_of(inst)) next[b].push_back(block_of[t]);
    const bool unconditional = (inst.flags & kFlagStops) && !inst.guard.present();
    if (!unconditional && b + 1 < blocks) next[b].push_back(b + 1);
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (uint32_t b = blocks; b-- > 0;) {
      uint64_t* out = &live_out[b * words];
      uint64_t* in = &live_in[b * words];
      for (uint32_t s : next[b])
        for (size_t x = 0; x < words; ++x) out[x] |= live_in[s * words + x];
      for (size_t x = 0; x < words; ++x) {
        const uint64_t v = gen[b * words + x] | (out[x] & ~kill[b * words + x]);
        changed |= v != in[x];
        in[x] = v;
      }
    }
  }
  std::vector<uint32_t> first(ids, UINT32_MAX), last(ids, 0);
  const auto touch = [&](uint32_t id, uint32_t at) {
    first[id] = std::min(first[id], at);
    last[id] = std::max(last[id], at);
  };
  for (uint32_t b = 0; b < blocks; ++b) {
    for (size_t x = 0; x < words; ++x) {
      for (uint64_t m = live_in[b * words + x]; m; m &= m - 1)
        touch(static_cast<uint32_t>(x * 64) + static_cast<uint32_t>(__builtin_ctzll(m)), starts[b]);
      for (uint64_t m = live_out[b * words + x]; m; m &= m - 1)
        touch(static_cast<uint32_t>(x * 64) + static_cast<uint32_t>(__builtin_ctzll(m)), starts[b + 1] - 1);
    }
    for (uint32_t i = starts[b]; i < starts[b + 1]; ++i)
      for_refs(
          k.code[i], [&](uint32_t id) { touch(id, i); }, [&](uint32_t id, bool) { touch(id, i); });
  }
  for (const auto& [special, id] : special_ids_) {
    if (first[id] == UINT32_MAX) continue;
    first[id] = 0;
  }
  std::vector<std::vector<uint32_t>> begins(n), ends(n);
  for (uint32_t id = 0; id < ids; ++id) {
    if (first[id] == UINT32_MAX) continue;
    begins[first[id]].push_back(id);
    ends[last[id]].push_back(id);
  }
  const auto slot_class = [](uint16_t bits) {
    return bits == 1 ? 0 : bits == 16 ? 1 : bits == 32 ? 2 : bits == 64 ? 3 : 4;
  };
  static constexpr uint32_t slot_bytes[] = {4, 64, 128, 256, 512};
  std::vector<uint32_t> free_slots[5], where(ids, 0);
  uint32_t predicates = 0, top = 0;
  int live = 0, most = 0;
  constexpr uint32_t kPredicateArea = 4096;
  for (uint32_t i = 0; i < n; ++i) {
    for (uint32_t id : begins[i]) {
      const int c = slot_class(id_bits_[id]);
      live += c == 0 ? 0 : c == 3 ? 2 : c == 4 ? 4 : 1;
      if (!free_slots[c].empty()) {
        where[id] = free_slots[c].back();
        free_slots[c].pop_back();
      } else if (c == 0 && predicates + 4 <= kPredicateArea) {
        where[id] = predicates;
        predicates += 4;
      } else {
        const uint32_t bytes = std::max(slot_bytes[c], 64u);
        where[id] = kPredicateArea + top;
        top += bytes;
      }
    }
    most = std::max(most, live);
    for (uint32_t id : ends[i]) {
      const int c = slot_class(id_bits_[id]);
      live -= c == 0 ? 0 : c == 3 ? 2 : c == 4 ? 4 : 1;
      free_slots[c].push_back(where[id]);
    }
  }
  // Predicates sit in front; close the gap so that the registers start right behind them.
  const uint32_t shift = kPredicateArea - (predicates + 63) / 64 * 64;
  for (uint32_t& at : where)
    if (at >= kPredicateArea) at -= shift;
  for (auto& list : k.operands)
    for (Ref& r : list)
      if (r.present() && r.base == 0) r.off = where[r.off];
  for (Inst& inst : k.code)
    if (inst.guard.present() && inst.guard.base == 0) inst.guard.off = where[inst.guard.off];
  for (const auto& [special, id] : special_ids_)
    if (first[id] != UINT32_MAX) k.specials.push_back({where[id], special});
  k.register_bytes = kPredicateArea - shift + top;
  k.registers_estimate = std::max(16, most + 8);
}

}  // namespace softgpu
