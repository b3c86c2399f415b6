"""Runs every benchmark executable on a few small cases and looks at what it writes.

usage: executables_test.py BIN_FOLDER NAME...                 on the CPU
       executables_test.py --softgpu "COMMAND..." BIN_FOLDER NAME...   on the software GPU, by that command

The JSON must be in Google Benchmark's form with context and counters, CSV and Markdown tables must hold the same cases.
On the software GPU there is no time anywhere, and the label says so.
"""

import csv
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

# A few rows and no probe: seconds for all of them. Axes that a program does not have are refused by name.
AXES = {
    "embedding_bench": ["tokens=3", "prompt=2"],
    "norm_bench": ["tokens=3"],
    "qkv_bench": ["tokens=3"],
    "attention_bench": ["batch=2", "length=5", "prompt=2", "context=7"],
    "projection_bench": ["tokens=3"],
    "mlp_bench": ["tokens=3"],
    "head_bench": ["rows=3"],
    "sampling_bench": ["batch=2"],
    "trainable_bench": ["rows=3", "width=8", "batch=2", "prompt=2"],
    "adversarial_bench": ["pairs=2", "length=3", "rows=2"],
    "optimizer_bench": ["parameters=100"],
    "step_bench": ["batch=2", "length=6", "prompt=2", "samples=2"],
    "decode_bench": ["batch=1,2", "length=5", "context=4", "new=2"],
}
TIMED = ("step_bench", "decode_bench")
# step_bench's steps without one of the exact tricks, at those sizes: rows through the model, rows through the head.
# Each group computes one loss.
EXACT = (
    {
        "exact": (12, 6),
        "exact_last_whole": (12, 6),
        "exact_head_whole": (12, 12),
        "exact_first_whole": (12, 6),
        "exact_embedding_whole": (12, 6),
        "exact_prompt_repeated": (14, 6),
        "exact_none": (14, 14),
    },
    {"exact_uneven": (8, 4), "exact_uneven_padded": (12, 4)},
    {"exact_answers": (16, 12), "exact_answers_apart": (22, 12)},
)
CONTEXT = ("commit", "compiler", "build", "device", "threads", "command")


def run(command, expect=0):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != expect:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def check_exact(runs):
    """Of step_bench: without a trick a step takes more rows and has the same loss. In f32 sums are grouped otherwise;
    in bf16 a row's attention may be cut elsewhere, and what follows is rounded to 2^-8 a dozen times."""
    found = {tuple(entry["name"].split("/")[i] for i in (0, 2)): entry for entry in runs}
    assert {m for m, _ in found if m.startswith("exact")} == {m for group in EXACT for m in group}, sorted(found)
    for group in EXACT:
        for dtype, share in (("dtype:f32", 1e-5), ("dtype:bf16", 1e-2)):
            want = found[next(iter(group)), dtype]["ce"]
            assert want > 0, want
            for method, rows in group.items():
                entry = found[method, dtype]
                assert (entry["rows"], entry["head_rows"]) == rows, f"{method}: {entry}"
                assert abs(entry["ce"] - want) <= share * want, f"{method}, {dtype}: {entry['ce']}, expected {want}"
    kept = {method: found[method, "dtype:f32"]["saved_activation_bytes"] for method in EXACT[0]}
    assert kept["exact"] < kept["exact_last_whole"] < kept["exact_none"], kept


def check(program, prefix, folder):
    name = program.name
    files = {kind: folder / f"{name}.{kind}" for kind in ("json", "csv", "markdown")}
    command = [*prefix, program, "--model=stories260k", "--iterations=1", "--benchmark_min_time=0.001"]
    command += ["--probe-seconds=0"] if prefix or name in TIMED else ["--probe-seconds=0.05"]
    if name not in TIMED:
        command += ["--benchmark_repetitions=2"]
    if prefix:
        command += ["--device=cuda", "--dtype=bf16"] + (["--benchmark_filter=^(prompt|decode)/"] if name in TIMED else [])
    command += [f"--axis={axis}" for axis in AXES[name]]
    run([*command, *(f"--{kind}={path}" for kind, path in files.items())])

    data = json.loads(files["json"].read_text(encoding="utf-8"))
    for key in CONTEXT:
        assert data["context"].get(key), f"{name}: no {key} in the context"
    assert "--axis" in data["context"]["command"], data["context"]["command"]
    runs = [r for r in data["benchmarks"] if r["run_type"] == "iteration"]
    assert runs, f"{name}: no case ran"
    skipped = 0
    for entry in runs:
        if "_cudnn/" in entry["name"] and entry.get("error_message", "").startswith("skipped: "):
            skipped += 1  # where the library, or a GPU, is missing: the row says so
            continue
        assert not entry.get("error_occurred"), entry
        if prefix:
            assert entry["label"] == "predicted/none", entry
            times = [key for key in entry if "time" in key or key.endswith(("/s", "_seconds"))]
            assert not times, f"{name}: {times} from the software GPU"
        else:
            assert entry["real_time"] > 0, entry
        wanted = {"bytes"} if name not in TIMED else {"peak_memory_bytes"}
        if not prefix:
            wanted |= {"bytes/s", "bandwidth_share"} if name not in TIMED else {"tokens/s"}
        if name == "step_bench":
            wanted |= {"saved_activation_bytes", "rows", "parameters"}
            if not prefix:
                wanted |= {"forward_backward_seconds", "optimizer_seconds"}
        if name in ("mlp_bench", "qkv_bench", "projection_bench", "head_bench") and "rotary_table" not in entry["name"]:
            wanted |= {"flops"} if prefix else {"flops", "flops/s", "flops_share"}
        missing = wanted - set(entry)
        assert not missing, f"{name}: {entry['name']} lacks {missing}"
        if "bytes" in entry:
            assert entry["bytes"] > 0, entry
    if name == "step_bench" and not prefix:
        check_exact(runs)
    assert name != "attention_bench" or skipped or not prefix, f"{name}: no row of cuDNN on the software GPU"
    cases = {re.sub(r"/(real_time|manual_time|iterations:\d+|repeats:\d+)", "", r["run_name"]) for r in runs}

    rows = list(csv.DictReader(files["csv"].open(encoding="utf-8", newline="")))
    assert {row["case"] for row in rows} == cases, f"{name}: the CSV has other cases"
    assert ("seconds" in rows[0]) != bool(prefix), f"{name}: {rows[0]}"
    text = files["markdown"].read_text(encoding="utf-8")
    for case in cases:
        assert f"| {case} |" in text, f"{name}: no row of {case} in the Markdown"
    assert ("predicted/none" in text) == bool(prefix)
    return len(cases)


def main():
    arguments, prefix = sys.argv[1:], []
    if arguments[0] == "--softgpu":
        prefix, arguments = shlex.split(arguments[1]), arguments[2:]
    folder, names = pathlib.Path(arguments[0]), arguments[1:]
    assert set(names) == set(AXES), f"executables and this test's list differ: {set(names) ^ set(AXES)}"
    cases = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            cases += check(folder / name, prefix, pathlib.Path(scratch))
        if not prefix:
            program = folder / "mlp_bench"
            listed = run([program, "--list", "--model=all", "--axis=tokens=1:4:x2,7:9:1", "--dtype=bf16"]).stdout.split()
            tokens = sorted({int(re.search(r"tokens:(\d+)", line)[1]) for line in listed})
            assert tokens == [1, 2, 4, 7, 8, 9], tokens
            assert len({line.split("/")[1] for line in listed}) == 4, listed
            listed = run([program, "--list", "--axis=hidden=64,128", "--axis=intermediate=96"]).stdout
            assert "hidden:128/intermediate:96" in listed, listed
            for bad, words in (
                (["--axis=words=3"], "no case has an axis 'words'"),
                (["--axis=tokens=0"], "is no number above 0"),
                (["--axis=tokens=4:1:1"], "is empty or endless"),
                (["--axis=tokens=1:4:x1"], "is empty or endless"),
                (["--model=gpt"], "no shape 'gpt'"),
                (["--dtype=f64"], "expected f32 or bf16"),
                (["--bogus=1"], "unknown option --bogus=1"),
                (["--benchmark_filter=nothing", "--probe-seconds=0"], "no case fits"),
            ):
                error = run([program, *bad], expect=2).stderr
                assert words in error, f"{bad}: {error}"
    print(f"{len(names)} executables, {cases} cases")


if __name__ == "__main__":
    main()
