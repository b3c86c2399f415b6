"""The predicted time of a training step, kernel by kernel: tools/predict, docs/predicted.md. Nothing here was measured."""

import argparse
import functools
import glob
import os
import re
import sys

import audit_machine
import step_walk

BEGIN, END = "<!-- predicted: made by tools/predict --write -->", "<!-- end of predicted -->"
# Rates in FLOP/s and bytes/s. H100 SXM: measured peaks (8192^3 bf16 product on random data, copy); A100 SXM: data sheet.
# f32: data sheet. `mma`: cycles of one m16n8k16 bf16 product with f32 accumulators on a quarter of a multiprocessor.
CARDS = {
    "A100": {"arch": "80", "softgpu": 80, "tensor": 312e12, "f32": 19.5e12, "memory": 2.04e12, "processors": 108, "l2": 40e6, "mma": 8},
    "H100": {"arch": "90a", "softgpu": 90, "tensor": 798e12, "f32": 67e12, "memory": 3.0e12, "processors": 132, "l2": 50e6, "mma": 4},
}
GAP = 1.0e-6  # seconds between two kernels of a graph
# What first-rate kernels reach of their bound: main loops of products, attention over short rows, streaming.
REACHED = {"product": 0.85, "attention": 0.55, "streaming": 0.85}
# Seconds of the roofline: products of all rows at the peak, at 4,256 rows (8 sequences of 512 tokens and 20 prompt rows each).
FLOORS = {("SmolLM2-135M", "A100"): 9.6e-3, ("SmolLM2-135M", "H100"): 4.0e-3, ("Llama-3.2-1B", "A100"): 65e-3,
          ("Llama-3.2-1B", "H100"): 25.4e-3, ("Llama-3-8B", "A100"): 417e-3, ("Llama-3-8B", "H100"): 162e-3}  # fmt: skip
BATCH = (8, 512, 20, 256)
# What is held beside each other: the batch, and rank and targets of low-rank adapters.
METHODS = {
    "soft prompt, P = 20": (BATCH, ()),
    "soft prompt, P = 100": ((8, 512, 100, 256), ()),
    "LoRA r8, q v": ((8, 512, 0, 256), (8, "q,v")),
    "LoRA r8, all": ((8, 512, 0, 256), (8, "q,k,v,o,gate,up,down")),
}
# A layer small enough to be executed, with the head size of the model: what is multiplied for one `_flops`.
COUNTED = {64: (1, 576, 9, 3, 64, 1536, 2048, 1), 128: (1, 1024, 8, 2, 128, 3584, 2048, 1)}


def mma_count(mix):
    return mix.get("HMMA", 0) + mix.get("HGMMA", 0)


def main_loop(row):
    """The hot loop; the whole kernel where its products lie in a loop around the innermost ones."""
    return row["hot"] if mma_count(row["hot"]) else row["body"]


WGMMA_TILE = re.compile(r"matmul_wgmma_kernel<WgmmaTile<(\d+), (\d+), \d+, (\d+)>")


def issue_bound(row, card):
    """Share of the tensor cores' rate that the hot loop can reach: instructions, special functions and shared memory share
    the cycles of a quarter of a multiprocessor. wgmma runs beside other instructions and reads shared memory by itself: 64
    rows and N columns of 16 bf16 at 128 bytes a cycle, where the multiplications of 64 x N x 16 take N / 2 cycles."""
    mix = main_loop(row)
    if mix.get("HGMMA"):
        columns = int(WGMMA_TILE.match(row["name"]).group(2))
        return min(1, 2 * columns / (64 + columns))
    tensor = mix.get("HMMA", 0) * card["mma"]
    wide = mix.get("LDSM", 0) + mix.get("LDS.128", 0) + mix.get("STS.128", 0) + mix.get("LDGSTS", 0)
    narrow = sum(mix.get(f"{op}.{bits}", 0) for op in ("LDS", "STS") for bits in (8, 16, 32, 64))
    return 1 / max(1, mix["instructions"] / tensor, 8 * mix.get("MUFU", 0) / tensor, (16 * wide + 4 * narrow) / tensor)


def tiles_of(op, index, count, row):
    """Tiles of product `index` of `count` in a call, by Hopper's kernel, whose blocks take tiles in turn; None for another kernel."""
    match = WGMMA_TILE.match(row["name"])
    if not match:
        return None
    tile_rows, tile_columns, _ = map(int, match.groups())
    # The head's two products come in turn, chunk by chunk: the logits, then their gradient.
    backward = op["name"].endswith("_backward") or (op["name"] == "head_loss" and index % 2 == 1)
    columns = op["weight"][1 if backward else 0]
    rows = op.get("rows") or round(op["flops"] / (2 * op["weight"][0] * op["weight"][1] * count))
    return -(-rows // tile_rows) * -(-columns // tile_columns)


def wave_share(launch, row, card, tiles=None):
    """Share of the last wave of blocks, and of all before, that does work. Of a persistent kernel the grid: a block takes as many
    tiles as the busiest, and the blocks of a multiprocessor share it."""
    blocks = launch["blocks"]
    if tiles:
        return tiles / (card["processors"] * -(-blocks // card["processors"]) * -(-tiles // blocks))
    each = audit_machine.occupancy({**row, "threads": launch["threads"]}, card["arch"], launch["dynamic"])[0]
    at_once = card["processors"] * max(1, each)
    return blocks / (at_once * -(-blocks // at_once))


def shares(op, launches, rows, per_block):
    """What part of an op's products each launch does. Kernels alike do as much; between others blocks times what was counted for
    one decides, because a launch of a few blocks may stand beside one of thousands."""
    kinds = [rows[n["kernel"]]["name"].split("<")[0] for n in launches]
    if len(set(kinds)) == 1:
        return [1 / len(launches)] * len(launches)
    missing = [k for k in kinds if (op["name"], k) not in per_block]
    if missing:
        sys.exit(f"predict: {op['name']} launches {', '.join(missing)}, which the counted step does not: give COUNTED a shape that does")
    work = [n["blocks"] * per_block[op["name"], k] for n, k in zip(launches, kinds)]
    return [w / sum(work) for w in work]


def of_adapters(row):
    """Whether a kernel is there for low-rank adapters alone: cuda/kernels/lora.cuh."""
    return row["name"].startswith("lora_")


def up_to(value, step):
    return -(-value // step) * step


def predict_adapters(op, n, rows, card):
    """The times of an op's kernels that are its adapters' alone, as predict_op gives them, and the op without them: its product,
    with k longer by the ranks. What they read and write is named here, because `_bytes` counts the least and no kernel twice."""
    out_width, in_width = op["weight"]
    backward = op["name"].endswith("_backward")
    ranks, normed = sum(up_to(r, 8) for r in op["ranks"]), op["name"] in ("qkv_backward", "gate_up_backward")
    groups = up_to(ranks, 32) // 32  # of ranks: what a block multiplies at least, and has a reading of the rows to itself

    def passed(count):  # f32 that one block or kernel leaves for another
        return 4 * count * (1 if 4 * count > card["l2"] / 2 else 1 / 3)

    out, parts = [], 0
    for launch in op["launches"]:
        row = rows[launch["kernel"]]
        if not of_adapters(row):
            continue
        flops = 0
        if row["name"].startswith("lora_pack"):
            moved = 6 * ranks * (in_width + out_width + (n if backward else 0))
        elif row["name"].startswith("lora_ranks"):
            width = out_width if backward else in_width
            splits = launch["grid"][0]
            flops = 2 * n * 32 * groups * width * (2 if backward else 1)
            moved = 2 * n * width * groups + 2 * ranks * width + (4 if backward else 6) * n * ranks + 2 * passed(splits * n * ranks)
            if backward:
                parts += launch["grid"][2] * ranks * width
                moved += passed(launch["grid"][2] * ranks * width)
        elif row["name"].startswith("lora_gradient"):
            flops = 2 * n * 32 * groups * in_width
            parts += launch["grid"][2] * ranks * in_width
            moved = n * in_width * groups * (4 if normed else 2) + 2 * n * ranks + passed(launch["grid"][2] * ranks * in_width)
        elif row["name"].startswith("lora_sum"):
            moved = passed(parts) + 8 * ranks * (in_width + out_width)
        else:
            sys.exit(f"predict: {row['name']} is no kernel of adapters that is known here")
        compute = flops / (card["tensor"] * issue_bound(row, card) * wave_share(launch, row, card)) if flops else 0
        memory = moved / card["memory"]
        out.append((launch["kernel"], 1, "compute" if compute > memory else "memory", max(compute, memory),
                    max(compute / REACHED["product"], memory / REACHED["streaming"])))  # fmt: skip
    if not out:
        sys.exit(f"predict: {op['name']} has adapters and no kernel for them: are they still fused?")
    rest = [launch for launch in op["launches"] if not of_adapters(rows[launch["kernel"]])]
    depth = 64 if any("wgmma" in rows[r["kernel"]]["name"] for r in rest) else 32
    flops = 2 * n * (out_width * in_width + up_to(ranks, depth) * (in_width if backward else out_width))
    # Forward's input is read for the gradient alone.
    kept = 2 * n * in_width if op["name"] in ("project_backward", "down_backward") else 0
    return out, {**op, "rows": n, "ranks": [], "launches": rest, "flops": flops, "bytes": op["bytes"] - kept, "scratch": 0}


def predict_op(op, n, ratio, per_block, rows, card):
    """[(kernel, launches, bound by, seconds at the bound, seconds expected)] of one call of an op over n rows."""
    if op["ranks"]:
        own, rest = predict_adapters(op, n, rows, card)
        return own + predict_op(rest, n, ratio, per_block, rows, card)
    kind = "attention" if op["name"].startswith("attention") else "product"
    multiplying = [n for n in op["launches"] if mma_count(rows[n["kernel"]]["body"])]
    beside = [n for n in op["launches"] if n not in multiplying]
    # What an op keeps between its kernels is written and read once: in memory unless it stays in half of the L2.
    between = 2 * op["scratch"] / card["memory"] * (1 if op["scratch"] > card["l2"] / 2 else 1 / 3) if len(op["launches"]) > 1 else 0
    out = []
    if op["flops"] and multiplying:
        for index, (launch, weight) in enumerate(zip(multiplying, shares(op, multiplying, rows, per_block))):
            row = rows[launch["kernel"]]
            busy = wave_share(launch, row, card, tiles_of(op, index, len(multiplying), row))
            compute = op["flops"] * ratio * weight / (card["tensor"] * issue_bound(row, card) * busy)
            memory = op["bytes"] * weight / card["memory"]
            out.append((launch["kernel"], 1, "compute" if compute > memory else "memory", max(compute, memory),
                        max(compute / REACHED[kind], memory / REACHED["streaming"])))  # fmt: skip
        whole = between
    elif op["flops"]:  # the f32 units
        compute, memory = op["flops"] * ratio / card["f32"], op["bytes"] / card["memory"]
        whole = max(compute, memory) + between
    else:
        whole = op["bytes"] / card["memory"] + between
    for launch in beside:
        out.append((launch["kernel"], 1, "memory", whole / len(beside), whole / len(beside) / REACHED["streaming"]))
    return out


def machine_rows(root, cache):
    """arch -> kernel (mangled) -> what its machine code is like."""
    sources = sorted(os.path.relpath(p, root) for p in glob.glob(os.path.join(root, "cuda/ops/*.cu")))
    found, _ = audit_machine.audit_sources(root, sources, sorted({c["arch"] for c in CARDS.values()}), cache)
    out = {}
    for row in found:
        out.setdefault(row["arch"], {})[row["mangled"]] = row
    return out


def counted_products(root, build, card, head, rows):
    """Op -> multiply-adds executed, times two, over `_flops`; and (op, kernel) -> multiply-adds of one block."""
    _, ops = step_walk.walk(root, build, card["softgpu"], COUNTED[head], (1, 512, 20, 256), counted=True)
    counted, wanted, madds, blocks = {}, {}, {}, {}
    for op in ops:
        counted[op["name"]] = counted.get(op["name"], 0) + 2 * sum(n["madds"] for n in op["launches"])
        wanted[op["name"]] = wanted.get(op["name"], 0) + op["flops"]
        for launch in op["launches"]:
            key = op["name"], rows[launch["kernel"]]["name"].split("<")[0]
            madds[key] = madds.get(key, 0) + launch["madds"]
            blocks[key] = blocks.get(key, 0) + launch["blocks"]
    return ({name: counted[name] / wanted[name] if wanted[name] and counted[name] else 1.0 for name in wanted},
            {key: madds[key] / blocks[key] for key in madds if madds[key]})  # fmt: skip


def predict(root, build, model, card_name, method, machine, counted):
    """The rows of a step, and lines of the table: (op, kernel) -> launches, seconds at the bound, expected seconds, bounds."""
    card, shape = CARDS[card_name], step_walk.MODELS[model]
    code = machine[card["arch"]]
    ratio, per_block = counted(card_name, shape[4])
    batch, lora = METHODS[method]
    rows, ops = step_walk.walk(root, build, card["softgpu"], (3, *shape[1:]), batch, lora=lora)
    lines = {}
    for op, times in step_walk.whole_model(ops, 3, shape[0]):
        for kernel, launches, bound, least, expected in predict_op(op, rows, ratio.get(op["name"], 1.0), per_block, code, card):
            line = lines.setdefault((op["name"], template(code, kernel)), {"launches": 0, "bound": set(), "least": 0.0, "expected": 0.0})
            line["launches"] += launches * times
            line["bound"].add(bound)
            line["least"] += least * times
            line["expected"] += expected * times
    return rows, lines


def template(code, mangled):
    return re.sub(r"<.*", "", code[mangled]["name"])


def whole(lines):
    """Launches, seconds at the bound and expected seconds of a step."""
    launches = sum(line["launches"] for line in lines.values())
    return launches, *(sum(line[key] for line in lines.values()) + GAP * launches for key in ("least", "expected"))


def beside(model, card, steps):
    """The table that holds methods beside each other: expected milliseconds of each op and kernel."""
    keys = sorted({k for _, lines in steps.values() for k in lines}, key=lambda k: -max(lines.get(k, {"expected": 0})["expected"] for _, lines in steps.values()))
    out = [f"### {model} on {card}, a soft prompt and LoRA, predicted", "", f"| op | kernel | {' | '.join(f'{m}, ms' for m in steps)} |",
           f"|---|---|{'---|' * len(steps)}"]  # fmt: skip
    for op, kernel in keys:
        cells = [f"{lines[op, kernel]['expected'] * 1e3:.2f}" if (op, kernel) in lines else "" for _, lines in steps.values()]
        out.append(f"| {op} | `{kernel}` | {' | '.join(cells)} |")
    totals = [(rows, *whole(lines)) for rows, lines in steps.values()]
    out.append(f"| | between kernels | {' | '.join(f'{launches * GAP * 1e3:.2f}' for _, launches, _, _ in totals)} |")
    out.append(f"| | **step** | {' | '.join(f'**{expected * 1e3:.2f}**' for _, _, _, expected in totals)} |")
    return [*out, ""]


def page(root, build, machine, models):
    @functools.cache
    def counted(card, head):
        return counted_products(root, build, CARDS[card], head, machine[CARDS[card]["arch"]])

    out, methods, summary, comparison = [], [], [], []
    for model in models:
        for card in CARDS:
            steps = {method: predict(root, build, model, card, method, machine, counted) for method in METHODS}
            rows, merged = next(iter(steps.values()))
            launches, least, expected = whole(merged)
            floor = FLOORS[model, card]
            summary.append(f"| {model} | {card} | {rows} | {launches} | {least * 1e3:.1f} | {expected * 1e3:.1f} | {rows / expected:,.0f} | "
                           f"{floor * 1e3:.1f} | {expected / floor:.2f} |")  # fmt: skip
            out += [f"### {model} on {card}, predicted", "", "| op | kernel | launches | bound by | at the bound, ms | predicted ms | share |",
                    "|---|---|---|---|---|---|---|"]  # fmt: skip
            for (op, kernel), line in sorted(merged.items(), key=lambda i: -i[1]["expected"]):
                out.append(f"| {op} | `{kernel}` | {line['launches']} | {', '.join(sorted(line['bound']))} | {line['least'] * 1e3:.2f} | "
                           f"{line['expected'] * 1e3:.2f} | {line['expected'] / expected:.1%} |")  # fmt: skip
            out += [f"| | between kernels | {launches} | {GAP * 1e6:.1f} us each | {launches * GAP * 1e3:.2f} | {launches * GAP * 1e3:.2f} | "
                    f"{launches * GAP / expected:.1%} |", ""]  # fmt: skip
            methods += beside(model, card, steps)
            for method, (n, lines) in steps.items():
                count, _, seconds = whole(lines)
                comparison.append(f"| {model} | {card} | {method} | {n} | {count} | {seconds * 1e3:.1f} | {seconds / expected:.3f} |")
    head = ["| model | card | rows | launches | at the bound, ms | predicted ms | predicted rows/s | floor, ms | predicted / floor |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    other = ["", "The same 8 x 512 tokens by a soft prompt and by LoRA (rank 8, no dropout, no optimizer in either):", "",
             "| model | card | method | rows | launches | predicted ms | of P = 20 |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    return "\n".join([*head, *summary, *other, *comparison, "", *out, *methods])


def structure(text):
    """What the page must have in any case: the model, the card and the ops of a step. Kernels come and go."""
    return sorted(set(re.findall(r"^### .*$", text, re.MULTILINE)) | set(re.findall(r"^\| (\w+) \| `", text, re.MULTILINE)))


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    cache = os.path.join(os.environ.get("GANTRAIN_CACHE", os.path.expanduser("~/.cache/gantrain")), "audit")
    p = argparse.ArgumentParser(prog="tools/predict", description="Predict the time of a training step, kernel by kernel.")
    p.add_argument("--build", default=os.path.join(root, "build/release"), help="the build folder (default %(default)s)")
    p.add_argument("--model", choices=sorted(step_walk.MODELS), action="append", help="only this model; may be repeated")
    p.add_argument("--write", action="store_true", help="put the tables into docs/predicted.md")
    p.add_argument("--check", action="store_true", help="fail where docs/predicted.md has other models, cards or ops than this run")
    p.add_argument("--cache", default=cache, help="where compiled kernels are kept by content (default %(default)s)")
    o = p.parse_args()
    models = o.model or list(step_walk.MODELS)
    try:
        machine = machine_rows(root, o.cache)
    except RuntimeError as error:
        sys.exit(f"predict: {error}")
    made = page(root, os.path.abspath(o.build), machine, models)
    path = os.path.join(root, "docs/predicted.md")
    with open(path, encoding="utf-8") as file:
        head, rest = file.read().split(BEGIN, 1)
    kept, tail = rest.split(END, 1)
    if o.write:
        if o.model:
            sys.exit("predict: --write needs all models")
        with open(path, "w", encoding="utf-8") as file:
            file.write(head + BEGIN + "\n\n" + made.strip() + "\n\n" + END + tail)
    elif o.check:
        sections = {s.split("\n", 1)[0]: s for s in re.split(r"^(?=### )", kept, flags=re.MULTILINE)}
        for section in re.split(r"^(?=### )", made, flags=re.MULTILINE)[1:]:
            title = section.split("\n", 1)[0]
            if structure(section) != structure(sections.get(title, "")):
                sys.exit(f"predict: docs/predicted.md, '{title}', has other ops than this run: run tools/predict --write and commit the page")
        print(made.split("### ")[0].strip())
    else:
        print(made)


if __name__ == "__main__":
    main()
