"""tools/audit must see what it is there for: each kernel below is one that it has to name, and one is good.

usage: audit_test.py ROOT
"""

import os
import shutil
import subprocess
import sys
import tempfile

HEAD = """#include <cuda_runtime.h>
__global__ __launch_bounds__(256) void good_kernel(const float4* __restrict__ x, float4* __restrict__ y, int n) {
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += 256 * gridDim.x) y[i] = x[i];
}
"""
SPILL = """__global__ __launch_bounds__(256, 8) void spill_kernel(const float* a, float* b) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = a[i * threadIdx.x];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i * 7 + 1) % 64] + a[i];
#pragma unroll
  for (int i = 0; i < 64; ++i) b[i * threadIdx.x] = v[i];
}
"""
NARROW = """__global__ __launch_bounds__(256) void narrow_kernel(const short* __restrict__ x, short* __restrict__ y, int n) {
  for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += 256 * gridDim.x) y[i] = x[i];
}
"""
DOUBLE = """__global__ __launch_bounds__(256) void double_kernel(double* x) {
  atomicAdd(x, 1.0);
  x[1 + threadIdx.x] *= 3.0;
}
"""
WARNING = "__global__ void warned_kernel(int* x) { int unused; *x = 1; }\n"
# The sums are touched between two wgmma that nobody waits for: ptxas runs them one by one.
SERIAL = """__global__ __launch_bounds__(128) void serial_kernel(float* x, unsigned long long a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  float d[4] = {};
  for (int i = 0; i < 4; ++i) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %4, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a));
    d[0] *= 2.0f;
  }
  *reinterpret_cast<float4*>(x) = make_float4(d[0], d[1], d[2], d[3]);
#endif
}
"""
ARCH = '[[family]]\nname = "one"\nkernels = "good_kernel"\narch = "90a"\nwhy = "a test"\nhgmma = 1\n'
NOTHING = '[[family]]\nname = "gone"\nkernels = "gone_kernel"\nwhy = "it was here"\n'
EXCUSE = '[[miss]]\nkernels = "narrow_kernel"\ncheck = "subword"\ngot = {}\nwhy = "a test"\n'
STALE = '[[miss]]\nkernels = "good_kernel"\ncheck = "spill"\ngot = 4\nwhy = "a test"\n'

# source, added to the thresholds, exit status, what the output must name
CASES = (
    ("", "", 0, ("3 kernels", "0 misses")),
    (SPILL, "", 1, ("MISS: sm_80 spill_kernel", "spill: got", "stack: got", "expected at most 0")),
    (NARROW, "", 1, ("MISS: sm_90a narrow_kernel", "wide: got 0, expected at least 1", "subword: got")),
    (DOUBLE, "", 1, ("MISS: sm_100 double_kernel", "f64: got")),
    (WARNING, "", 1, ("a warning or an error", "unused")),
    (SERIAL, "", 1, ("for sm_90a: nvcc has a warning", "serialized")),
    ("", ARCH, 1, ("MISS: sm_90a good_kernel (one): hgmma: got 0, expected at least 1", "1 misses")),
    ("", NOTHING, 1, ("family 'gone': gone_kernel matches no kernel",)),
    (NARROW, EXCUSE.format(100), 1, ("known miss: sm_80 narrow_kernel (default): subword",)),
    (NARROW, EXCUSE.format(1), 1, ("MISS: sm_80 narrow_kernel (default): subword",)),
    ("", STALE, 1, ("nothing misses it any more",)),
)


def loops_are_loops(root):
    """Of a kernel with a loop, and a way back from what stands behind it for warps that have diverged, the loop alone."""
    sys.path.insert(0, os.path.join(root, "tools"))
    from audit_machine import Instruction, loops

    code = [Instruction(16 * at, opcode, None if target is None else 16 * target)
            for at, (opcode, target) in enumerate((("MOV", None), ("LDG.E.128", None), ("BRA", 1), ("BRA.DIV", 7), ("SHFL", None), ("STG.E", None),
                                                   ("EXIT", None), ("CALL.REL.NOINC", None), ("BRA", 4), ("BRA", 9)))]  # fmt: skip
    found = [[i.opcode for i in loop] for loop in loops(code)]
    if found != [["LDG.E.128", "BRA"]]:
        print(f"WRONG: the loops are {found}")
    return found == [["LDG.E.128", "BRA"]]


def main():
    root = sys.argv[1]
    if not shutil.which("nvcc", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin:" + os.path.join(os.environ.get("GANTRAIN_CACHE", os.path.expanduser("~/.cache/gantrain")), "cuda/bin")):
        print("SKIP: no nvcc on this machine")
        sys.exit(77)
    with open(os.path.join(root, "cuda/audit.toml"), encoding="utf-8") as file:
        default = file.read().split("[[family]]")[0]
    wrong = 0 if loops_are_loops(root) else 1
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(os.path.join(folder, "cuda/ops"))
        thresholds = os.path.join(folder, "audit.toml")
        for source, more, status, named in CASES:
            with open(os.path.join(folder, "cuda/ops/kernels.cu"), "w", encoding="utf-8") as file:
                file.write(HEAD + source)
            with open(thresholds, "w", encoding="utf-8") as file:
                file.write(default + more)
            command = [os.path.join(root, "tools/audit"), "--root", folder, "--thresholds", thresholds, "--cache", os.path.join(folder, "cache")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            missing = [text for text in named if text not in said]
            if done.returncode != status or missing:
                wrong += 1
                print(f"WRONG: {source or 'good kernel alone'} {more}: exit {done.returncode}, expected {status}; not named: {missing}\n{said}")
    print(f"{len(CASES)} cases, {wrong} wrong")
    sys.exit(1 if wrong else 0)


main()
