"""Speed of the GPU in software on simple loops: thread-instructions a second, and multiply-adds a second through mma.

usage: speed.py ROOT BUILD [--launches N]

Instructions are counted in a run of their own; the time is that of the fastest of N launches, so that other work on
the machine disturbs little.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

LOOPS = ("arithmetic", "memory", "shared", "shuffle", "mma")
CHECKS_OFF = ("--no-races", "--no-init")


def main():
    root, build = sys.argv[1:3]
    launches = sys.argv[sys.argv.index("--launches") + 1] if "--launches" in sys.argv else "25"
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "speed.cu")
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "speed")
        code = "-gencode=arch=compute_80,code=compute_80"
        subprocess.run(["nvcc", "-std=c++20", "-O3", "-cudart", "shared", code, source, "-o", program], check=True)

        def run(loop, count, *options):
            trace = os.path.join(folder, "trace")
            command = [os.path.join(root, "tools/softgpu"), "--build", build, "--arch", "80", "--trace", trace]
            subprocess.run([*command, *options, program, loop, count], check=True)
            with open(trace, encoding="utf-8") as file:
                return min(float(ms) for ms in re.findall(r" ms ([0-9.]+)", file.read())) / 1e3

        print("loop        threads  checks  1e9 thread-instructions/s  1e9 multiply-adds/s")
        for loop in LOOPS:
            counters = os.path.join(folder, "counters")
            run(loop, "1", "--counters", counters)
            with open(counters, encoding="utf-8") as file:
                kernel = json.load(file)["kernels"][0]
            for threads in ("1", "2"):
                for checks in ("off", "on"):
                    seconds = run(loop, launches, "--threads", threads, *(CHECKS_OFF if checks == "off" else ()))
                    rate = kernel["thread_instructions"] / seconds / 1e9
                    products = kernel["multiply_adds"] / seconds / 1e9
                    shown = f"{products:19.2f}" if products else " " * 19
                    print(f"{loop:10}  {threads:>7}  {checks:>6}  {rate:25.2f}  {shown}", flush=True)


main()
