"""What the software GPU counts over one training step, op by op, against `_bytes` and `_flops` and the limits of
cuda/counts.toml: the second half of tools/audit."""

import os
import re
import sys
import tomllib

import step_walk

# One layer each (L, C, H, K, D, F, V, tied), and the batch: sequences, tokens, prompt rows, scored rows. 512 rows, because a
# batch is packed to whole tiles.
SHAPES = {
    "SmolLM2-135M, one layer": ((1, 576, 9, 3, 64, 1536, 2048, 1), (1, 492, 20, 256)),
    "a quarter of Llama-3-8B's layer": ((1, 1024, 8, 2, 128, 3584, 2048, 0), (2, 248, 16, 128)),
}
CHECKS = ("bytes", "efficiency", "conflicts", "lanes", "flops")
AT_LEAST = ("efficiency", "lanes")


def measure(calls):
    """What is held against the limits, of all calls of an op."""
    launches = [n for op in calls for n in op["launches"]]
    total = {key: sum(n[key] for n in launches) for key in step_walk.COUNTS}
    sectors = total["load_sectors"] + total["store_sectors"]
    wanted, flops = sum(op["bytes"] for op in calls), sum(op["flops"] for op in calls)
    return {
        "calls": len(calls),
        "launches": len(launches),
        "wanted": wanted,
        "moved": 32 * sectors,
        "bytes": 32 * sectors / wanted,
        "efficiency": (total["load_bytes"] + total["store_bytes"]) / (32 * sectors) if sectors else 1.0,
        "conflicts": total["wavefronts"] / total["ideal"] if total["ideal"] else 1.0,
        "lanes": total["lanes"] / (32 * total["warps"]) if total["warps"] else 1.0,
        "flops": 2 * total["madds"] / flops if flops and total["madds"] else None,
    }


def count(root, build, arch):
    """[(shape, op, measures)] and {shape: (launches of a layer's ops, of the others)}."""
    rows, launches = [], {}
    for name, (shape, batch) in SHAPES.items():
        _, ops = step_walk.walk(root, build, arch, shape, batch, counted=True)
        by_name = {}
        for op in ops:
            by_name.setdefault(op["name"], []).append(op)
        for op, calls in sorted(by_name.items()):
            rows.append((name, op, measure(calls)))
        # The one layer here is the last, whose backward rounds the head's gradient; between layers it is handed over rounded.
        layer = sum("convert_kernel" not in n["kernel"] for o in ops if re.match(r"(qkv|attention|project|gate_up|down)_", o["name"]) for n in o["launches"])
        # The head works on chunks of its rows: one chunk's launches count.
        head = next(o for o in ops if o["name"] == "head_loss")
        chunks = sum("head_row_kernel" in n["kernel"] for n in head["launches"])
        launches[name] = (layer, sum(len(o["launches"]) for o in ops) - layer - len(head["launches"]) + len(head["launches"]) // chunks)
    return rows, launches


def read_limits(path):
    with open(path, "rb") as file:
        given = tomllib.load(file)
    for entry in [*given.get("op", []), *given.get("miss", [])]:
        if "ops" not in entry or "why" not in entry:
            sys.exit(f"{path}: {entry}: it needs ops and why")
    return given


def judge(rows, launches, given):
    """[(text, whether it is known)] of what falls short, and notes on entries that nothing needs any more."""
    out, used = [], set()
    for shape, op, m in rows:
        limits = dict(given["default"])
        for entry in given.get("op", []):
            if re.fullmatch(entry["ops"], op):
                limits.update({k: v for k, v in entry.items() if k in CHECKS})
        for check, limit in limits.items():
            if check not in CHECKS or m.get(check) is None:
                continue
            value, least = m[check], check in AT_LEAST
            if value >= limit if least else value <= limit:
                continue
            known = False
            for number, entry in enumerate(given.get("miss", [])):
                if re.fullmatch(entry["ops"], op) and entry["check"] == check:
                    used.add(number)
                    known = value >= entry["got"] if least else value <= entry["got"]
            out.append((f"{shape}: {op}: {check}: got {value:.3f}, expected at {'least' if least else 'most'} {limit}", known))
    for shape, (layer, rest) in launches.items():
        for check, value in (("launches_layer", layer), ("launches_rest", rest)):
            if value > given["launches"][check]:
                out.append((f"{shape}: {check}: got {value}, expected at most {given['launches'][check]}", False))
    notes = [f"no op misses {e['check']} as '{e['ops']}' any more: remove the entry" for n, e in enumerate(given.get("miss", [])) if n not in used]
    return out, notes


def table(rows, launches):
    lines = []
    for shape, (layer, rest) in launches.items():
        model, batch = SHAPES[shape]
        lines += [f"### {shape}", "", f"{batch[0]} x {batch[1]} tokens behind {batch[2]} rows of a shared prompt, {batch[3]} scored rows each, bf16; hidden "
                  f"size {model[1]}, {model[2]} heads of {model[4]}, {model[3]} of keys, MLP {model[5]}, vocabulary {model[6]}. A layer takes {layer} launches, "
                  f"all else {rest} and a chunk of the head.", "",
                  "| op | calls | launches | `_bytes` | moved / `_bytes` | useful / moved | bank wavefronts / ideal | active lanes | multiply-adds x 2 / `_flops` |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, op, m in rows:
            if name == shape:
                flops = "-" if m["flops"] is None else f"{m['flops']:.3f}"
                lines.append(f"| {op} | {m['calls']} | {m['launches']} | {m['wanted']:,} | {m['bytes']:.2f} | {m['efficiency']:.2f} | {m['conflicts']:.2f} | "
                             f"{m['lanes']:.2f} | {flops} |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def run(root, build, limits):
    """(table, misses, notes)"""
    if not os.path.exists(os.path.join(build, "bin/step_door")):
        sys.exit(f"audit: no step_door in {build}/bin: run tools/build with nvcc in reach")
    rows, launches = count(root, build, 80)
    misses, notes = judge(rows, launches, read_limits(limits))
    return table(rows, launches), misses, notes
