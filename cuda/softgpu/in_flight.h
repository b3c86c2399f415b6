// What wgmma has under way between its issue and its wait_group: accumulators and registers of a that nothing
// else may touch, shared memory that nothing may write. Values are computed at the issue; all this is for the
// checks.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cuda/softgpu/machine.h"

namespace softgpu {

// Of a kernel: the instructions that access registers of a wgmma (or registers these are copied from or to by
// mov). Each runs through a handler that looks at the registers first.
struct WgmmaTable {
  struct Touch {
    Handler fn = nullptr;                 // its own handler
    bool move = false;                    // a copy: passes on what is known of its source
    std::vector<uint32_t> reads, writes;  // numbers of tracked registers
  };
  struct Operands {
    std::vector<uint32_t> d, a;
  };
  std::vector<Touch> touches;      // by place
  std::vector<Operands> operands;  // by place
  std::vector<uint32_t> index;     // an instruction's place in either, by its index
  uint32_t registers = 0;
};
// Before registers get their places: operands still carry their ids.
void track_wgmma(Kernel& k);

// Of a warp.
struct InFlight {
  struct Chunk {  // 16 bytes of shared memory
    uint32_t offset, inst;
  };
  bool fenced = false;
  std::vector<uint32_t> written, read;  // by register: the group that writes it, or reads it as a; 0 none
  std::vector<uint32_t> source;         // by register: the wgmma's index, for messages
  std::vector<uint32_t> touched;        // by register: 1 + index of the last access since the fence, 0 none
  uint32_t committed = 0;               // groups; an uncommitted wgmma belongs to the next
  std::deque<std::vector<Chunk>> groups;
  std::vector<Chunk> open;
};

// A wgmma is about to run: its registers must be settled; they are under way from now on.
void start_wgmma(Warp& w, const Inst& in);
// It reads 16 bytes of the block's shared memory until it is waited for.
void keep_for_wgmma(Warp& w, const Inst& in, uint32_t offset);
void fence_wgmma(Warp& w);
void commit_wgmma(Warp& w);
void wait_wgmma(Warp& w, uint32_t left);

}  // namespace softgpu
