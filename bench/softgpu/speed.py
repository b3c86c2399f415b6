"""Speed of the GPU in software on simple loops: thread-instructions a second, and multiply-adds a second through mma.

usage: speed.py ROOT BUILD [--launches N]

Instructions are counted in a run of their own. The first rate is that of the fastest of N launches, so that other work
on the machine disturbs it little; the second is over the processor time of all launches, times the threads: what it
would be with a processor for each thread (a loop that does not scale takes more processor time with two).
"""

import json
import os
import re
import resource
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
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            subprocess.run([*command, *options, program, loop, count], check=True)
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            with open(trace, encoding="utf-8") as file:
                return min(float(ms) for ms in re.findall(r" ms ([0-9.]+)", file.read())) / 1e3, used

        print("loop        threads  checks  fastest launch  by processor time   (1e9 a second: instructions, mma: multiply-adds)")
        for loop in LOOPS:
            counters = os.path.join(folder, "counters")
            run(loop, "1", "--counters", counters)
            with open(counters, encoding="utf-8") as file:
                kernel = json.load(file)["kernels"][0]
            work = kernel["multiply_adds"] or kernel["thread_instructions"]
            for threads in ("1", "2"):
                for checks in ("off", "on"):
                    options = ("--threads", threads, *(CHECKS_OFF if checks == "off" else ()))
                    start = run(loop, "1", *options)[1]  # the program itself, and one launch
                    fastest, used = run(loop, launches, *options)
                    by_processor = work * (int(launches) - 1) * int(threads) / max(used - start, 1e-9)
                    print(f"{loop:10}  {threads:>7}  {checks:>6}  {work / fastest / 1e9:14.2f}  {by_processor / 1e9:17.2f}", flush=True)


main()
