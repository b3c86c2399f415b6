"""What a training step issues on the CUDA backend: ops with their `_bytes` and `_flops`, and the launches of each, read from
the program itself (tests/model_tools/step_door.cc) on the software GPU, executed and counted, or not executed at all."""

import os
import re
import subprocess
import sys
import tempfile

LAUNCH = re.compile(r"launch \d+ (\S+) grid (\d+)x(\d+)x(\d+) block (\d+)x(\d+)x(\d+) cluster \d+ shared (\d+)\+(\d+) ms \S+(.*)")
OP = re.compile(r"op (\w+) bytes (\d+) flops (\d+) scratch (\d+) weight (\d+) (\d+) ranks([ \d]*)$")
COUNTS = ("loads", "load_sectors", "load_bytes", "stores", "store_sectors", "store_bytes", "shared", "wavefronts", "ideal", "madds", "warps",
          "lanes")  # fmt: skip
# L, C, H, K, D, F, V, tied
MODELS = {
    "SmolLM2-135M": (30, 576, 9, 3, 64, 1536, 49152, 1),
    "Llama-3.2-1B": (16, 2048, 32, 8, 64, 8192, 128256, 1),
    "Llama-3-8B": (32, 4096, 32, 8, 128, 14336, 128256, 0),
}


def walk(root, build, arch, shape, batch, counted=False, memory=120000, lora=()):
    """(rows, [op]) of one step of a model of that shape; batch is sequences, tokens, prompt rows, scored rows of each;
    lora, where it is not empty, the adapters' rank and targets. An op has
    name, bytes, flops, scratch, weight (rows, columns; 0, 0 without one), ranks (of its adapters) and launches; a launch kernel, blocks, threads, static, dynamic, and with `counted` its counts."""
    command = [os.path.join(root, "tools/softgpu"), "--build", build, "--arch", str(arch), "--trace", "-"]
    with tempfile.TemporaryDirectory() as folder:
        if counted:  # the tests look for races and unwritten memory; here only counts are wanted
            command += ["--no-races", "--no-init", "--counters", os.path.join(folder, "counters.json")]
        else:
            command += ["--dry", "--memory", str(memory)]
        command += [os.path.join(build, "bin/step_door"), *map(str, (*shape, *batch, *lora))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "GANTRAIN_GEMM": "own"})
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: status {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    rows, ops = 0, []
    for line in done.stderr.splitlines():
        if match := re.match(r"step rows (\d+)", line):
            rows, ops = int(match.group(1)), []
        elif match := OP.match(line):
            ops.append({"name": match.group(1), "bytes": int(match.group(2)), "flops": int(match.group(3)),
                        "scratch": int(match.group(4)), "weight": (int(match.group(5)), int(match.group(6))),
                        "ranks": [int(r) for r in match.group(7).split()], "launches": []})  # fmt: skip
        elif (match := LAUNCH.match(line)) and ops:
            g = [int(v) for v in match.groups()[1:9]]
            launch = {"kernel": match.group(1), "grid": g[:3], "blocks": g[0] * g[1] * g[2], "threads": g[3] * g[4] * g[5], "static": g[6], "dynamic": g[7]}
            if counted:
                launch.update(zip(COUNTS, (int(v) for v in re.findall(r"\d+", match.group(10)))))
            ops[-1]["launches"].append(launch)
    missing = {"embed_forward", "qkv_forward", "attention_backward", "down_backward", "gate_up_backward", "head_loss"} - {o["name"] for o in ops}
    if missing or not rows:
        sys.exit(f"step_door told of no {', '.join(sorted(missing))}: are the ops' names and argument types still what it wraps?")
    return rows, ops


def whole_model(ops, walked, layers):
    """The ops of a model of `layers` layers, from a walk of `walked` (at least 3): the first and the last layer stand for
    themselves, a middle one for all between. Rows are gathered in those two alone. [(op, how often)]"""
    by_name = {}
    for op in ops:
        by_name.setdefault(op["name"], []).append(op)
    out = []
    for calls in by_name.values():
        if len(calls) % walked or calls[0]["name"] == "gather_rows":
            out += [(op, 1) for op in calls]
            continue
        each = len(calls) // walked
        out += [(op, 1) for op in [*calls[:each], *calls[-each:]]]
        out += [(op, layers - 2) for op in calls[each : 2 * each]]
    return out
