"""Holds the memory plan of `gantrain train` against the memory that the process reaches.

usage: memory_plan.py GANTRAIN [--model FILE] [--only NAME]

Each run of the matrix takes a few steps of every phase and the evaluation at its end; its peak (VmHWM) must be within
2 % and 32 MiB of what was planned before it began, and what summary.json calls planned must be what the run printed and,
for the small model, what --dry-run prints. Items are equally long, so that every batch is the largest one; in the
cases named uneven they are not, and the plan must know the largest batch that comes. Then a run that does not fit is refused: exit code 3, the plan, and remedies, the first of which fits.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLACK = 32 << 20
WORDS = "the of and to in is was for on with as he it at by that".split()

STATIC, MLP, CONDITIONAL = ("method=" + kind for kind in ("prompt", "ptuning", "gan"))
CE, RLOO, GUMBEL = ("loss.kind=" + kind for kind in ("ce", "rloo", "gumbel"))
# name -> (model, words of prompt and completion, the least and the most where there are two, settings)
SMALL, LARGE = "stories", "smollm"
MATRIX = {
    "stories prompt": (SMALL, 12, 12, [STATIC, CE]),
    "stories c1": (SMALL, 12, 12, [CONDITIONAL, RLOO, "loss.samples=4"]),
    "stories c2 recompute": (SMALL, 12, 12, [CONDITIONAL, GUMBEL, "train.recompute=layer", "loss.samples=2"]),
    "stories long": (SMALL, 60, 60, [MLP, CE, "train.batch=32"]),
    "smollm prompt": (LARGE, 20, 20, [STATIC, CE, "train.batch=8"]),
    "smollm prompt f32 recompute": (LARGE, 20, 20, [STATIC, CE, "dtype=f32", "train.recompute=layer"]),
    "smollm c1": (LARGE, 16, 16, [STATIC, RLOO, "loss.samples=2", "train.batch=4"]),
    "smollm suffix c1": (
        LARGE, 16, 16, [STATIC, RLOO, "generator.placement=suffix", "train.context_cache=8MiB", "loss.samples=2", "train.batch=4"],
    ),
    "smollm c1 conditional accumulated": (
        LARGE, 12, 12, [CONDITIONAL, RLOO, "loss.samples=2", "train.batch=2", "train.accumulate=2"],
    ),
    "smollm lora": (LARGE, 20, 20, ["method=lora", "lora.targets=all", CE, "train.batch=4"]),
    "smollm prefix": (LARGE, 20, 20, ["method=prefix", "prefix.projection=true", CE, "train.batch=4"]),
    "smollm adapter": (LARGE, 20, 20, ["method=adapter", "bottleneck.places=attention,mlp", CE, "train.batch=4"]),
    "stories full c1": (SMALL, 12, 12, ["method=full", RLOO, "loss.samples=4"]),
    "stories full averaged": (SMALL, 12, 12, ["method=full", CE, "train.average_from=1"]),
    "smollm full": (LARGE, 12, 12, ["method=full", CE, "train.batch=2"]),
    "smollm qlora": (LARGE, 20, 20, ["method=qlora", "lora.targets=all", CE, "train.batch=4"]),
    "smollm packed c1": (LARGE, 16, 16, [STATIC, RLOO, "model_quantize=file", "loss.samples=2", "train.batch=4"]),
    "stories uneven": (SMALL, (4, 200), (4, 60), [STATIC, CE, "train.batch=16", "train.steps=4"]),
    "smollm uneven": (LARGE, (4, 80), (4, 40), [STATIC, CE, "train.batch=8", "train.steps=4"]),
    "smollm uneven c1": (LARGE, (4, 60), (4, 16), [STATIC, RLOO, "loss.samples=2", "train.batch=4"]),
    "smollm c2": (LARGE, 12, 12, [CONDITIONAL, GUMBEL, "loss.samples=1", "train.batch=4"]),
}


def text(words, seed):
    return " ".join(WORDS[(seed * 7 + i * i + i // 3) % len(WORDS)] for i in range(words))


def words_of(length, n):
    """A number of words; between two, few items are long, as in most data."""
    if isinstance(length, int):
        return length
    least, most = length
    return least + round((most - least) * (n * 37 % 64 / 63) ** 4)


def write_data(folder, prompt, completion):
    for split, count, first in (("train", 64, 0), ("valid", 8, 1000)):
        lines = [
            json.dumps({"prompt": f"{n}: {text(words_of(prompt, n), n)}", "completion": " " + text(words_of(completion, n + 5), n + 3)})
            for n in range(first, first + count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(gantrain, arguments):
    return subprocess.run([gantrain, "train", *arguments], capture_output=True, text=True, check=False)


def settings(model, folder, completion, own):
    adversarial = CE not in own
    return [
        f"model={model}",
        f"data.train={folder}/train.jsonl",
        f"data.valid={folder}/valid.jsonl",
        f"output={folder}/run",
        *(["generator.prompt_length=8"] if own[0] in (STATIC, MLP, CONDITIONAL) else []),
        "optimizer.warmup_steps=0",
        f"train.steps={6 if adversarial else 3}",
        "train.warmup_ce_steps=2",
        "train.discriminator_steps=1",
        f"train.max_new_tokens={completion if isinstance(completion, int) else completion[1]}",
        "train.gate_d=1",
        "train.gate_g=0",
        "eval.samples=1",
        "eval.temperatures=1",
        "threads=2",
        *own,
    ]


def megabytes(value):
    return f"{value / 1e6:.1f} MB"


def printed_plan(text):
    """The total of a plan on the standard error stream and its items, MB; NaN without one."""
    total = re.search(r"^memory plan: ([\d.]+) MB$", text, re.MULTILINE)
    return float(total[1]) if total else math.nan, [float(n) for n in re.findall(r"^ +([\d.]+) MB  \S", text, re.MULTILINE)]


def plan_errors(cost, ran, dry):
    """What is wrong with the plan in summary.json, beside what the run printed and, if not None, a dry run."""
    total, items = printed_plan(ran)
    rounded = 0.05001  # what is printed, to a tenth
    checks = [("the run printed", total, rounded), ("the items printed add up to", sum(items), rounded * len(items))]
    if dry is not None:  # another process: it holds a few pages more or less when the plan is made
        checks.append(("--dry-run printed", printed_plan(dry)[0], 2))
    planned = cost["planned_memory_bytes"] / 1e6
    return [
        f"{what} {value:.1f} MB, summary.json has {planned:.1f} MB"
        for what, value, most in checks
        if not abs(value - planned) <= most
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gantrain")
    parser.add_argument("--model", help="SmolLM2; default: tools/fetch_model's")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    data = pathlib.Path(os.environ.get("GANTRAIN_DATA") or ROOT.parent / "shared" / "data")
    stories = data / "ci" / "stories260K" / "stories260K.bin"
    if not stories.exists():
        print(f"SKIP: no {stories}: set GANTRAIN_DATA to the data folder")
        return 77
    models = {SMALL: stories}
    if any(row[0] == LARGE for name, row in MATRIX.items() if arguments.only in name):
        fetched = subprocess.run([ROOT / "tools" / "fetch_model"], capture_output=True, text=True, check=False)
        if fetched.returncode != 0 and not arguments.model:
            print(f"SKIP: SmolLM2 cannot be had: {fetched.stderr.strip().splitlines()[-1:]}")
            return 77
        models[LARGE] = arguments.model or fetched.stdout.strip()
    failed = 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, (model, prompt, completion, own) in MATRIX.items():
            if arguments.only not in name:
                continue
            folder = pathlib.Path(scratch) / re.sub(r"\W", "_", name)
            folder.mkdir()
            write_data(folder, prompt, completion)
            asked = settings(models[model], folder, completion, own)
            dry = run(arguments.gantrain, [*asked, "--dry-run"]).stderr if model == SMALL else None
            done = run(arguments.gantrain, asked)
            if done.returncode != 0:
                print(f"{name}: exit code {done.returncode}\n{done.stderr}")
                failed += 1
                continue
            cost = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["cost"]
            planned, reached = cost["planned_memory_bytes"], cost["peak_memory_bytes"]
            limit = 0.02 * planned + SLACK
            share = abs(reached - planned) / limit
            worst = max(worst, share)
            good = abs(reached - planned) <= limit
            failed += not good
            print(
                f"{name}: planned {megabytes(planned)}, reached {megabytes(reached)}, off by "
                f"{megabytes(reached - planned)} of {megabytes(limit)}{'' if good else '  TOO FAR'}"
            )
            if not good:
                print(done.stderr[done.stderr.index("memory plan"):][:1500])
            for error in plan_errors(cost, done.stderr, dry):
                print(f"{name}: {error}")
                failed += 1
        # Refused before anything is written; the first remedy is one that fits.
        name, (model, prompt, completion, own) = next(iter(MATRIX.items()))
        folder = pathlib.Path(scratch) / "refused"
        folder.mkdir()
        write_data(folder, 60, 60)
        big = settings(models[SMALL], folder, 60, [STATIC, CE, "train.batch=64"])
        planned = float(re.search(r"memory plan: ([\d.]+) MB", run(arguments.gantrain, [*big, "--dry-run"]).stderr)[1])
        done = run(arguments.gantrain, [*big, f"memory_limit={int(planned * 0.8e6)}"])
        remedies = re.findall(r"^  (\S+=\S+).*: ([\d.]+) MB(, still too much)?$", done.stderr, re.MULTILINE)
        print(f"refused: planned {planned} MB, limit {planned * 0.8:.1f} MB, remedies {remedies}")
        if done.returncode != 3 or (folder / "run").exists() or not remedies or len(remedies) > 3:
            print(f"expected exit code 3, no run folder, one to three remedies; got {done.returncode}\n{done.stderr}")
            failed += 1
        elif remedies[0][2] or float(remedies[0][1]) > planned * 0.8:
            print(f"the first remedy does not fit: {remedies[0]}")
            failed += 1
        else:
            again = run(arguments.gantrain, [*big, f"memory_limit={int(planned * 0.8e6)}", remedies[0][0], "--dry-run"])
            if again.returncode != 0:
                print(f"the first remedy, {remedies[0][0]}, is refused as well:\n{again.stderr}")
                failed += 1
    print(f"{len(MATRIX)} runs in the matrix, {failed} failed; the worst used {100 * worst:.0f} % of its limit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
