"""The options of tools/softgpu: files they write, limits, what they switch off, seeds, changed PTX; wrong usage.

usage: options.py ROOT BUILD
"""

import json
import os
import re
import subprocess
import sys
import tempfile


def limits_and_switches(run, expect):
    """Options that change what is checked, and how much there is of something."""
    done = run(["--arch", "80", "--steps", "10"], "programs")
    expect("--steps", done, 86, r"the block took more than 10 warp instructions")
    done = run(["--steps", "1000000"], "checks", "reverse_block", "sound")
    expect("--steps, enough", done, 0, "")
    expect("--memory 0", run(["--memory", "0"], "checks", "reverse_block", "sound"), 1, r"out of memory")
    expect("--memory 1", run(["--memory", "1"], "checks", "reverse_block", "sound"), 0, "")
    expect("--no-races", run(["--no-races"], "checks", "reverse_block", "broken"), 0, "")
    expect("--no-init", run(["--no-init"], "checks", "unwritten_global", "broken"), 0, "")
    expect("--no-init leaves races", run(["--no-init"], "checks", "reverse_block", "broken"), 86, r"race in shared")
    expect("--arch 75", run(["--arch", "75"], "programs"), 1, r"no PTX for compute capability 7\.5")
    # Of a program whose race would be found, were it executed.
    expect("--dry", run(["--dry", "--trace", "-"], "checks", "reverse_block", "broken"), 0, r"^launch 1 \S+reverse_block\S+ grid 1x1x1 ")
    expect("--trace -", run(["--trace", "-"], "checks", "reverse_block", "sound"), 0, r"^launch 1 \S+reverse_block\S+ grid 1x1x1 block 256x1x1 ")


def seeds(run, expect):
    """A seed fixes the order of things: the same one gives the same words, others give others."""
    said = {}
    for seed in range(12):
        options = ["--threads", "1", "--seed", str(seed)]
        first, again = (run(options, "checks", "histogram", "broken") for _ in range(2))
        expect(f"--seed {seed}", first, 86, r"race in shared memory")
        if first.stderr != again.stderr:
            expect(f"--seed {seed} twice: {first.stderr} then {again.stderr}", again, None, "")
        said.setdefault(first.stderr, []).append(seed)
    if len(said) < 4:
        expect(f"--seed: only {len(said)} different outcomes of 12 seeds", first, None, "")


def threads(run, expect, folder):
    """However many host threads there are, the same instructions are executed."""
    seen = []
    for count in ("1", "2", "3"):
        path = os.path.join(folder, f"counters{count}")
        done = run(["--arch", "80", "--threads", count, "--counters", path], "programs")
        expect(f"--threads {count}", done, 0, "")
        expect(f"--threads {count}", run(["--threads", count], "checks", "host_threads", "sound"), 0, rf"^{count} host threads$")
        with open(path, encoding="utf-8") as file:
            kernels = json.load(file)["kernels"]
        for kernel in kernels:
            del kernel["seconds"]
        seen.append(kernels)
    if not seen[0] or seen[0] != seen[1] or seen[0] != seen[2]:
        expect(f"--threads: counters differ: {seen}", done, None, "")


def changed_ptx(run, expect, folder):
    """--dump writes the program's PTX, --ptx takes it from there: changed PTX is what runs."""
    ptx = os.path.join(folder, "ptx")
    expect("--dump", run(["--dump", ptx], "checks", "reverse_block", "sound"), 0, "")
    names = os.listdir(ptx)
    if not names or not all(re.fullmatch(r"[0-9a-f]{16}\.ptx", n) for n in names):
        expect(f"--dump wrote {names}", run([], "checks"), None, "")
    expect("--ptx, unchanged", run(["--ptx", ptx], "checks", "reverse_block", "sound"), 0, r"PTX replaced by .*\.ptx")
    removed = 0
    for name in names:
        path = os.path.join(ptx, name)
        with open(path, encoding="utf-8") as file:
            text, n = re.subn(r"(bar\.sync|barrier\.sync)\s+0;", "", file.read())
        removed += n
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    done = run(["--ptx", ptx], "checks", "reverse_block", "sound")
    expect(f"--ptx, {removed} barriers removed", done, 86 if removed else None, r"race in shared memory|never written")
    empty = os.path.join(folder, "empty")
    os.mkdir(empty)
    expect("--ptx, empty", run(["--ptx", empty], "checks", "reverse_block", "sound"), 0, "")


def main():
    root, build = sys.argv[1:3]
    tool = os.path.join(root, "tools/softgpu")
    program = os.path.join(build, "bin/softgpu/programs")
    wrong = []

    def run(options, name, *arguments):
        command = [tool, "--build", build, *options, os.path.join(build, "bin/softgpu", name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def expect(what, done, status, pattern):
        """`status` None: wrong in any case."""
        quiet = pattern or "softgpu:" not in done.stderr
        if done.returncode != status or not quiet or not re.search(pattern, done.stdout + done.stderr, re.MULTILINE):
            wrong.append(f"{what}: status {done.returncode}: {done.stdout}{done.stderr}")

    limits_and_switches(run, expect)
    seeds(run, expect)
    with tempfile.TemporaryDirectory() as folder:
        threads(run, expect, folder)
        changed_ptx(run, expect, folder)
    with tempfile.TemporaryDirectory(prefix="a-name-longer-than-a-short-string-") as folder:
        counters, trace = os.path.join(folder, "counters.json"), os.path.join(folder, "trace.txt")
        command = [tool, "--build", build, "--arch", "80", "--counters", counters, "--trace", trace, program]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if sorted(os.listdir(folder)) != ["counters.json", "trace.txt"]:
            wrong.append(f"files: {os.listdir(folder)}")
        with open(counters, encoding="utf-8") as file:
            data = json.load(file)
        with open(trace, encoding="utf-8") as file:
            lines = file.readlines()
        if len(lines) != data["launches"] or sum(k["launches"] for k in data["kernels"]) != data["launches"]:
            wrong.append(f"launches: {len(lines)} lines, {data['launches']} counted")
        gemm = next(k for k in data["kernels"] if "gemm" in k["name"])
        # Whole tiles of 64 x 64 x 32 of the three sizes in programs.cu.
        products = sum(-(-m // 64) * 64 * -(-n // 64) * 64 * -(-k // 32) * 32 for m, n, k in ((64, 64, 32), (100, 136, 72), (129, 200, 264)))
        if gemm["multiply_adds"] != products:
            wrong.append(f"multiply-adds of the GEMM: {gemm['multiply_adds']}, want {products}")
        # Its swizzle keeps ldmatrix and cp.async free of bank conflicts.
        if gemm["shared_wavefronts"] != gemm["shared_wavefronts_ideal"]:
            wrong.append(f"bank conflicts of the GEMM: {gemm['shared_wavefronts']} of {gemm['shared_wavefronts_ideal']}")
        if sum(gemm["warp_instructions_by_class"].values()) != gemm["warp_instructions"]:
            wrong.append("the classes of instructions do not add up")
        # A product of a library counts as a launch with its multiply-adds.
        library = os.path.join(build, "bin/softgpu/cublaslt_open")
        if os.path.exists(library):
            command = [tool, "--build", build, "--counters", counters, "--trace", trace, library]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with open(counters, encoding="utf-8") as file:
                data = json.load(file)
            with open(trace, encoding="utf-8") as file:
                line = file.read()
            call = data["kernels"][0]
            numbers = [data["launches"], call["launches"], call["multiply_adds"], call["global_load_bytes"], call["global_store_bytes"]]
            if call["name"] != "cublasLtMatmul 2 2 2" or numbers != [1, 1, 8, 32, 16]:
                wrong.append(f"counters of cublasLtMatmul: {call}")
            if not line.startswith("launch 1 cublasLtMatmul 2 2 2 ms "):
                wrong.append(f"trace of cublasLtMatmul: {line}")
    for arguments in (["--no-such"], ["--seed"], []):
        if subprocess.run([tool, *arguments], capture_output=True, check=False).returncode != 2:
            wrong.append(f"usage: {arguments}")
    for line in wrong:
        print("WRONG:", line)
    print(f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
