"""The options of tools/softgpu that write files: counters as JSON, the trace of launches; wrong usage.

usage: options.py ROOT BUILD
"""

import json
import os
import subprocess
import sys
import tempfile


def main():
    root, build = sys.argv[1:3]
    tool = os.path.join(root, "tools/softgpu")
    program = os.path.join(build, "bin/softgpu/programs")
    wrong = []
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
