"""Who multiplies matrices: with each --gemm the program says the same, and only those that may open cuBLASLt do.

usage: providers.py ROOT BUILD

Greedy answers of the smallest model in bf16, by the software GPU. The dynamic linker lists the files it opens. With auto the
choices are in a file afterwards: a second run times nothing (its trace has fewer launches) and leaves the file alone; a damaged
one is written anew.
"""

import os
import pathlib
import subprocess
import sys
import tempfile


def main():
    root, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    data = pathlib.Path(os.environ.get("GANTRAIN_DATA") or root.resolve().parent / "shared" / "data")
    model = data / "ci" / "stories260K" / "stories260K.bin"
    if not model.exists():
        print(f"SKIP: {model} is missing (set GANTRAIN_DATA)")
        return 77
    good = True

    def expect(condition, what):
        nonlocal good
        good &= bool(condition)
        print(f"{'ok  ' if condition else 'FAIL'} {what}")

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cache = folder / "cache"
        runs = 0

        def run(*flags, **environment):
            """The answer, the launches, and whether cuBLASLt was opened."""
            nonlocal runs
            runs += 1
            trace, linker = folder / f"trace{runs}", folder / f"linker{runs}"
            env = {k: v for k, v in os.environ.items() if not k.startswith("GANTRAIN_")}
            done = subprocess.run(
                [root / "tools" / "softgpu", "--build", build, "--trace", trace, build / "bin" / "gantrain", "generate", "--model",
                 model, "--device", "cuda", "--dtype", "bf16", "--prompt", "Once upon a time", "--max-new", "3", "--temperature", "0",
                 *flags], capture_output=True, text=True,
                env=env | {"GANTRAIN_CACHE": str(cache), "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(linker)} | environment)
            if done.returncode != 0:
                print(f"FAIL {flags}: exit status {done.returncode}\n{done.stderr[-2000:]}")
                return None, 0, None
            opened = any("libcublasLt" in p.read_text(errors="replace") for p in folder.glob(f"{linker.name}.*"))
            return done.stdout, len(trace.read_text().splitlines()), opened

        own, _, opened = run("--gemm", "own")
        expect(own is not None and opened is False, "own opens no cuBLASLt")
        by_default, _, opened = run()
        expect(by_default == own and opened is False, "own is the default")
        library, _, opened = run("--gemm", "cublaslt")
        expect(library == own and opened, "cublaslt opens it, and says the same")
        by_environment, _, opened = run(GANTRAIN_GEMM="cublaslt")
        expect(by_environment == own and opened, "so it does by the environment")
        flag_wins, _, opened = run("--gemm", "own", GANTRAIN_GEMM="cublaslt")
        expect(flag_wins == own and opened is False, "a flag wins over the environment")
        expect(not cache.exists(), "none of these writes a file of choices")
        first, launches, opened = run("--gemm", "auto")
        files = list(cache.glob("gemm-*.txt"))
        expect(first == own and opened and len(files) == 1, "auto says the same, and leaves one file")
        if len(files) == 1:
            text = files[0].read_bytes()
            again, fewer, _ = run("--gemm", "auto")
            expect(again == own and fewer < launches and files[0].read_bytes() == text,
                   f"the second time nothing is timed: {fewer} launches, {launches} before")
            files[0].write_bytes(text[:-9] + b"000000000")
            _, more, _ = run("--gemm", "auto")
            expect(more > fewer and files[0].read_bytes() != text[:-9] + b"000000000",
                   f"a damaged file does not count, and is written anew: {more} launches")
    print("agrees" if good else "DISAGREES")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
