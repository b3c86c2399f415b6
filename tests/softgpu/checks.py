"""Every check of the software GPU stops its broken program under every seed and never accuses the sound twin.

usage: checks.py ROOT BUILD [PROGRAM]    prints a line per case; exit code 1 where one is wrong
"""

import os
import re
import subprocess
import sys

SEEDS = range(9)  # 0 is the plain order

# program: case: what standard error must say
CASES = {
    "checks": {
        "reverse_block": r"race in shared memory: (read|write) of byte \d+, which thread \d+ (wrote|read)",
        "reuse_tile": r"race in shared memory",
        "warp_exchange": r"race in shared memory",
        "byte_exchange": r"race in shared memory",
        "histogram": r"race in shared memory",
        "half_barrier": r"race in shared memory|never written",
        "wrong_warps": r"race in shared memory|never written",
        "off_by_one": r"write of 4 bytes at .* 0 bytes past the end of an allocation of 1024 bytes",
        "read_before": r"read of 4 bytes at .* before an allocation",
        "misaligned": r"misaligned read of 8 bytes",
        "shared_bounds": r"at byte 252 of shared memory, of which the block has 252",
        "local_bounds": r"outside the thread's \d+ bytes of local memory",
        "freed": r"a freed allocation of 1024 bytes",
        "unwritten_shared": r"shared memory: byte 0 was never written",
        "unwritten_global": r"byte 1020 of a live allocation of 1024 bytes: byte 0 was never written",
        "divergent_barrier": r"divergent barrier",
        "early_exit": r"deadlock: barrier 2 has 224 of 256 threads",
        "wrong_mask": r"member mask names lanes 0xffff0000, which never arrive",
        "not_named": r"member mask 0xffff does not name the executing lane",
        "undefined_lane": r"write of 4 bytes at",
        "trap": r"thread \(5,0,0\): trap",
        "async_no_wait": r"belongs to an asynchronous copy that has not been waited for",
        "async_wait_short": r"belongs to an asynchronous copy that has not been waited for",
        "async_no_barrier": r"race in shared memory|never written|not been waited for",
        "async_overwrite": r"write of 4 bytes.* not been waited for",
        "swapped_fragment": r"row \d+, column \d+: got -?\d+, want -?\d+",  # found by the program's own comparison
        "launch_threads": r"at most 1024 threads",
        "launch_shared": r"49153 bytes of dynamic shared memory",
        "copy_past_end": r"leaves its allocation of 1024 bytes by 4",
        "double_free": r"a freed allocation",
        "capture": r"cudaMalloc while a stream is captured",
    },
    "hopper_checks": {
        "bulk_no_wait": r"has not been waited for|race in shared memory|never written",
        "wrong_parity": r"has not been waited for|race in shared memory|never written",
        "wrong_bytes": r"deadlock: waits for something that nobody will do",
        "no_init": r"holds no mbarrier|never written",
        "init_no_fence": r"the mbarrier at byte \d+ of shared memory was set up with no fence.mbarrier_init",
        "reuse_stage": r"has not been waited for|race in shared memory",
        "store_overwritten": r"still to be read by an asynchronous copy",
        "store_no_barrier": r"race in shared memory|never written",
        "bulk_size": r"a bulk copy of 24 bytes: no multiple of 16",
        "too_many_arrivals": r"mbarrier: 3 arrivals, 2 are left",
        "cluster_no_barrier": r"race in shared memory|never written",
        "cluster_exited": r"whose threads have all exited",
        "wgmma_no_wait": r"read of a register that holds the result of a wgmma which has not been waited for",
        "wgmma_no_commit": r"read of a register that holds the result of a wgmma which has not been waited for",
        "wgmma_wait_short": r"read of a register that holds the result of a wgmma which has not been waited for",
        "wgmma_first_fence": r"wgmma with no wgmma.fence before the warp's first",
        "wgmma_no_fence": r"a register of d was accessed since the last wgmma.fence, at PTX line \d+: (mul|fma)",
        "wgmma_registers": r"write of a register that is read by a wgmma which has not been waited for",
        "wgmma_overwrite": r"write of 2 bytes.* still to be read by an asynchronous",
        "wgmma_refill": r"has not been waited for|race in shared memory",
        "wgmma_no_proxy": r"was written by thread \d+ through the generic proxy .* no fence.proxy.async between",
        "wgmma_proxy_of_one": r"was written by thread \d+ through the generic proxy .* no fence.proxy.async between",
        "store_no_proxy": r"was written by thread \d+ through the generic proxy .* no fence.proxy.async between",
        "tensor_rank": r"the tensor map is of rank 2, the instruction of 1",
    },
    "cublaslt": {
        "input_bounds": r"cublasLtMatmul 64 64 64: read of A: .* leave the allocation: it starts at byte 0 of a live",
        "output_bounds": r"write of D: .* leave the allocation",
        "input_unwritten": r"read of B: .* byte 16380 was never written",
        "addend_unwritten": r"read of C: .* byte 0 was never written",
        "input_freed": r"read of A: .* byte 0 of a freed allocation",
        "host_memory": r"read of B: .* in no allocation",
        "overlap": r"D and A share memory|A and D share memory",
        "shape": r"INVALID_VALUE: cublasLtMatmul: op\(A\) is 64 x 64, op\(B\) 63 x 64",
        "leading_dimension": r"INVALID_VALUE: cublasLtMatmul: B: leading dimension 63, expected at least the 64 rows",
        "types": r"NOT_SUPPORTED: cublasLtMatmul: CUBLAS_COMPUTE_32F with A 32F, B 16BF",
        "pointer_mode": r"read of alpha: .* in no allocation",
        "bias_bounds": r"read of the bias: .* leave the allocation",
        "aux_missing": r"INVALID_VALUE: .* needs CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER",
        "alignment": r"INVALID_VALUE: cublasLtMatmul: A at .* is misaligned",
        "workspace_short": r"INVALID_VALUE: cublasLtMatmul: a workspace of 65280 bytes, the algorithm needs 65536",
        "workspace_bounds": r"write of the workspace: .* leave the allocation",
        "workspace_kept": r"never written",
        "other_algorithm": r"INVALID_VALUE: .* other transforms of A and B",
        "captured_freed": r"read of A: .* byte 0 of a freed allocation",
    },
}


def main():
    root, build = sys.argv[1:3]
    programs = sys.argv[3:] or list(CASES)
    wrong = 0
    for program in programs:
        for case, pattern in CASES[program].items():
            bad = []
            for seed in SEEDS:
                for kind in ("broken", "sound"):
                    command = [os.path.join(root, "tools/softgpu"), "--build", build, "--seed", str(seed)]
                    command += [os.path.join(build, "bin/softgpu", program), case, kind]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    stopped = done.returncode == 86 and re.search(pattern, done.stderr)
                    passed = done.returncode == 0 and "softgpu:" not in done.stderr
                    if not (stopped if kind == "broken" else passed):
                        bad.append(f"{kind}, seed {seed}: status {done.returncode}: {done.stdout}{done.stderr}")
            print(f"{'WRONG' if bad else 'ok'}: {program} {case}: {len(SEEDS)} seeds")
            for line in bad[:3]:
                print("   ", line.strip())
            wrong += bool(bad)
    sys.exit(1 if wrong else 0)


main()
