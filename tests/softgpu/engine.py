"""The whole engine on its CUDA backend, run by the software GPU, follows the CPU: the same losses step by step.

usage: engine.py ROOT BUILD [--method gan|prompt|ptuning|lora|qlora|prefix|adapter|full] [--dtype f32|bf16] [--loss rloo|gumbel]
                 [--steps N] [--seed N] [--resume]
                 [--settings KEY=VALUE ...] [--same WORD ...]

Trains a conditional generator, or one of the methods that train something on the model, on a handful of sentences with both devices, from the same seed, and compares the losses of
every step. In f32 they agree to 1e-4; a sampled token that differs would show at once. In bf16 both round on their own way,
so tokens may differ, and with them whose turn it is: the warm-up is compared, and everything must be finite. With --agree N both
players train in every step there, so that no rounding decides whose turn it is, and steps are compared in everything for as long as
both runs have sampled the same tokens (`answers` of the event), N steps at least; from there on by the cross-entropy of the
references alone. With --resume the CUDA
run is continued from its middle and must end with the bits that it had when it was left alone. With --same there is one more
CUDA run under these words, which must end with the same bits; with --no-graphs among them every buffer is an allocation of its
own as well, so that the software GPU knows the bounds of each.

How often the host waits for the device in a step is counted: once in a warm-up step; in an adversarial one once at its end,
once a micro-batch for the discriminator's scores, and once for every eight tokens that are sampled.
"""

import argparse
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

CONFIG = """
model = "{model}"
method = "{method}"
dtype = "{dtype}"
threads = 2
[data]
train = "{folder}/train.jsonl"
valid = "{folder}/valid.jsonl"
{player}
[discriminator]
width = 16
[loss]
kind = "{loss}"
samples = 2
[train]
batch = 2
steps = {steps}
warmup_ce_steps = 3
discriminator_steps = 2
max_new_tokens = {max_new}
eval_every = {steps}
save_every = {middle}
[eval]
max_items = 1
temperatures = [1.0]
samples = 1
"""
PLAYERS = {
    "gan": "[generator]\nprompt_length = 2\nwidth = 16\nnoise_dim = 4",
    "prompt": "[generator]\nprompt_length = 2",
    "ptuning": "[generator]\nprompt_length = 2\nwidth = 16\nhidden = 16\nnoise_dim = 4",
    "lora": "[lora]\nrank = 3\ntargets = [\"all\"]",
    "prefix": "[prefix]\nlength = 2\nprojection = true\nhidden = 16",
    "adapter": "[bottleneck]\nwidth = 4\nplaces = [\"attention\", \"mlp\"]",
    "full": "",
}
PLAYERS["qlora"] = PLAYERS["lora"]
SENTENCES = [("Once upon a", " time, there was a cat."), ("Tom and", " Lily play."), ("The sun", " was hot."),
             ("A big dog", " ran to the tree."), ("Mom said", " yes."), ("It was a", " red ball.")]
# With --agree: both players train whatever the discriminator's accuracy, whose phase alone has its full length; and answers are short,
# so that it is long before one token falls otherwise.
BOTH_TRAIN = ("train.gate_d=1", "train.gate_g=0", "train.target_low=1", "train.target_high=1", "train.max_new_tokens=2")
COMPARED = ("ce", "loss_g", "loss_d", "kl", "reward", "pair_accuracy", "grad_norm_g", "grad_norm_d")


def steps_of(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] == "step"]


MAX_NEW = 6


def waits_of(step, accumulate):
    """The most synchronisations this step may have."""
    if step["phase"] == "warmup":
        return 1
    generations = accumulate  # held-out inputs are sampled with the training ones
    return 1 + accumulate + generations * math.ceil((MAX_NEW - 1) / 8)


def tensors(checkpoint):
    """The bytes of a checkpoint's tensors; its texts hold seconds."""
    data = checkpoint.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("root", type=pathlib.Path)
    arguments.add_argument("build", type=pathlib.Path)
    arguments.add_argument("--method", default="gan", choices=PLAYERS)
    arguments.add_argument("--dtype", default="f32", choices=("f32", "bf16"))
    arguments.add_argument("--loss", default="rloo", choices=("rloo", "gumbel"))
    arguments.add_argument("--steps", type=int, default=25)
    arguments.add_argument("--seed", default="0", help="of the software GPU")
    arguments.add_argument("--agree", type=int, default=0, help="bf16: steps that must have sampled the same answers (three are warm-up)")
    arguments.add_argument("--resume", action="store_true")
    arguments.add_argument("--settings", nargs="*", default=[], help="further key=value settings of both runs")
    arguments.add_argument("--same", nargs=argparse.REMAINDER, default=[], help="words of one more CUDA run, which ends with the same bits")
    a = arguments.parse_args()
    data = pathlib.Path(os.environ.get("GANTRAIN_DATA") or a.root.resolve().parent / "shared" / "data")
    model = data / "ci" / "stories260K" / "stories260K.bin"
    if not model.exists():
        print(f"SKIP: {model} is missing (set GANTRAIN_DATA)")
        return 77
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for split, items in (("train", SENTENCES), ("valid", [("One day, a boy", " saw a bird.")])):
            (folder / f"{split}.jsonl").write_text(
                "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in items))
        config, middle = folder / "run.toml", 2 * a.steps // 3
        config.write_text(CONFIG.format(model=model, method=a.method, player=PLAYERS[a.method], dtype=a.dtype, loss=a.loss, folder=folder, steps=a.steps, middle=middle, max_new=MAX_NEW))
        if a.agree:
            a.settings = [*BOTH_TRAIN, *a.settings]
        gantrain = a.build / "bin" / "gantrain"
        software = [a.root / "tools" / "softgpu", "--build", a.build, "--seed", a.seed, gantrain]

        def run(program, *words, **environment):
            done = subprocess.run([str(w) for w in [*program, *words]], capture_output=True, text=True,
                                  env={**os.environ, "GANTRAIN_CACHE": str(folder / "cache"), **environment})
            if done.returncode != 0:
                print(f"FAIL: {' '.join(map(str, words))}: exit status {done.returncode}\n{done.stderr[-2000:]}")
            return done.returncode == 0

        good &= run([gantrain], "train", config, *a.settings, "--device", "cpu", "-o", folder / "cpu")
        good &= run(software, "train", config, *a.settings, "--device", "cuda", "-o", folder / "cuda")
        if not good:
            return 1
        worst, finite, tokens, same_answers = {}, True, 0, 0
        cpu, cuda = steps_of(folder / "cpu"), steps_of(folder / "cuda")
        for want, got in zip(cpu, cuda, strict=True):
            tokens += got["tokens"]
            if same_answers == got["step"] - 1 and want["answers"] == got["answers"]:
                same_answers = got["step"]
            for key in ("trained_g", "trained_d"):
                good &= want[key] == got[key] or same_answers < got["step"]
            for key in COMPARED:
                x, y = want.get(key), got.get(key)
                finite &= y is None or math.isfinite(y)
                if not a.agree and a.dtype != "f32" and want["phase"] != "warmup":
                    continue  # other tokens, another accuracy, and so another player's turn
                if a.dtype != "f32" and (key == "pair_accuracy" or (same_answers < got["step"] and key != "ce")):
                    continue  # whole pairs at a tie, or other tokens
                if x is None or y is None:
                    good &= x is None and y is None
                    continue
                error = abs(x - y) / max(1.0, abs(x))
                if not error <= worst.get(key, (0.0, 0))[0]:
                    worst[key] = (error, want["step"])
        limit = 1e-4 if a.dtype == "f32" else 3e-2
        for key, (error, step) in worst.items():
            mine = limit * (10 if key.startswith("grad") else 1)  # a norm's f32 sums differ by more than a mean's
            good &= error <= mine
            print(f"{'ok  ' if error <= mine else 'FAIL'} {key:16} largest difference {error:.1e} of {mine:.0e}, at step {step}")
        good &= finite and len(cuda) == a.steps and (a.dtype != "f32" or same_answers == a.steps)
        good &= same_answers >= a.agree
        print(f"{'ok  ' if same_answers >= a.agree else 'FAIL'} the same answers up to step {same_answers}")
        accumulate = next((int(w.split("=")[1]) for w in a.settings if w.startswith("train.accumulate=")), 1)
        for step in cuda:
            # The discriminator's own phase ends with a measurement that is no part of a step's work.
            if step["phase"] != "discriminator" and not 1 <= step["synchronisations"] <= waits_of(step, accumulate):
                good = False
                print(f"FAIL step {step['step']} waited {step['synchronisations']} times, expected at most {waits_of(step, accumulate)}")
        last = f"checkpoints/step-{a.steps:08}.ckpt"
        used = json.loads((folder / "cuda" / "summary.json").read_text())["cost"]["device"]
        # Answers of two tokens are over before a decoding step is launched again as it was.
        for key in ("graphs_instantiated", "graphs_updated", *([] if a.agree else ["graphs_replayed"])):
            good &= used[key] > 0
            print(f"{'ok  ' if used[key] > 0 else 'FAIL'} {key}: {used[key]}")
        # The plan is what is taken, beside the loader's vectors, and it suffices.
        planned = used["reservations"] == 2 and 0 <= used["reserved_bytes"] - used["planned_bytes"] <= (2 << 20) + 256
        good &= planned and used["peak_bytes"] <= used["reserved_bytes"]
        print(f"{'ok  ' if planned else 'FAIL'} memory: planned {used['planned_bytes']}, reserved {used['reserved_bytes']} in "
              f"{used['reservations']} pieces, most in use {used['peak_bytes']} bytes")
        if a.same:
            plain = {"GANTRAIN_POOL": "0"} if "--no-graphs" in a.same else {}
            good &= run(software, "train", config, *a.settings, *a.same, "--device", "cuda", "-o", folder / "same", **plain)
            same = (folder / "same" / last).exists() and tensors(folder / "same" / last) == tensors(folder / "cuda" / last)
            print(f"{'ok  ' if same else 'FAIL'} with {' '.join(a.same)}: every tensor of the last checkpoint has the same bits")
            good &= same
            if plain:
                used = json.loads((folder / "same" / "summary.json").read_text())["cost"]["device"]
                good &= used["graphs_instantiated"] == 0 and used["reservations"] == 0
        if a.resume:
            # As if the run had been killed after its middle: the later checkpoint is gone.
            last = folder / "cuda" / last
            bits = tensors(last)
            last.unlink()
            good &= run(software, "train", "--resume", "-o", folder / "cuda")
            same = last.exists() and tensors(last) == bits
            print(f"{'ok  ' if same else 'FAIL'} resumed at step {middle}: every tensor of the last checkpoint has the same bits")
            good &= same
        adversarial = sum(e["phase"] == "adversarial" for e in cuda)
        print(f"{len(cuda)} steps, {adversarial} of them adversarial, {tokens} rows, finite: {finite}")
    print("agrees" if good else "DISAGREES")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
