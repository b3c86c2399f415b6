"""Several processes train what one does: `gantrain train --ranks 2`, and two processes told who they are by the environment.

usage: distributed.py GANTRAIN [--only TEST...] [--losses LOSS...] [--victims RANK...] [--softgpu COMMAND...]

On the smallest real model, in f32: cross-entropy, C1 and C2 with a conditional generator. Two ranks give one process's losses up
to rounding, and the same bits when run again or continued. A signal to one rank stops all after the same step; a rank that is
killed makes the other one fail with a message; ranks that do not belong together are refused. With --softgpu the ranks are on
software GPUs, and sums go through the stand-in for NCCL. Python's standard library only.
"""

import argparse
import json
import math
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = """
model = "{model}"
dtype = "f32"
threads = 1
output = "run"
[data]
train = "train.jsonl"
valid = "valid.jsonl"
[generator]
kind = "conditional"
prompt_length = 2
width = 16
noise_dim = 4
[discriminator]
width = 16
[loss]
kind = "{loss}"
samples = 2
[optimizer]
eps = 1e-5
[train]
batch = 8
steps = {steps}
warmup_ce_steps = 3
discriminator_steps = 2
gate_d = 1.0
gate_g = 0.0
max_new_tokens = 6
eval_every = {steps}
save_every = {every}
keep = 100
[eval]
max_items = 2
temperatures = [1.0]
samples = 1
"""
PEOPLE, VERBS, THINGS = ["Tom", "Lily", "Mom", "A big dog"], ["saw", "wanted", "had"], ["a red ball.", "the sun.", "a cat and a bird."]
SENTENCES = [(f"{p} {v}", f" {t}") for p in PEOPLE for v in VERBS for t in THINGS]
COMPARED = ("ce", "loss_g", "loss_d", "kl", "reward", "pair_accuracy", "pair_accuracy_heldout", "grad_norm_g", "grad_norm_d", "rms_ratio", "length")
failures = []


def expect(what, good, said=""):
    print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)
    if not good:
        failures.append(what)
        print(said)


class Case:
    """A folder with a configuration and its data."""

    def __init__(self, base, name, options, model, loss="rloo", steps=9, every=4):
        self.folder, self.options, self.steps, self.every = base / name, options, steps, every
        self.folder.mkdir()
        (self.folder / "run.toml").write_text(CONFIG.format(model=model, loss=loss, steps=steps, every=every))
        for split, items in (("train", SENTENCES[:20]), ("valid", SENTENCES[27:32])):
            (self.folder / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in items))

    def start(self, *words, output="run", **environment):
        log = self.folder / f"log{len(list(self.folder.glob('log*')))}"
        # Clean of what starts this test itself.
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        with open(log, "wb") as to:
            process = subprocess.Popen([*self.options.program, "train", *words, f"output={output}", *self.options.words], cwd=self.folder, stdout=to,
                                       stderr=to, env=env | {"GANTRAIN_CACHE": str(self.folder)} | environment)  # fmt: skip
        process.log = log
        return process

    def run(self, *words, output="run", code=0, **environment):
        process = self.start(*words, output=output, **environment)
        ended = process.wait()
        if ended != code:
            sys.exit(f"FAIL {words}: exit status {ended}, expected {code}\n{process.log.read_text()[-3000:]}")
        return process.log.read_text()

    def events(self, output="run"):
        file = self.folder / output / "events.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [e for e in map(json.loads, lines) if e["event"] == "step"]

    def tensors(self, output="run", step=None):
        """The bytes of a checkpoint's tensors; its texts hold seconds."""
        data = (self.folder / output / "checkpoints" / f"step-{step or self.steps:08}.ckpt").read_bytes()
        return data[8 + struct.unpack("<Q", data[:8])[0] :]

    def wait_for_steps(self, process, count, output="run"):
        give_up = time.monotonic() + 300
        while len(self.events(output)) < count:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                sys.exit(f"FAIL waiting for {count} steps:\n{process.log.read_text()}")
            time.sleep(0.02)


def ranks_of(process):
    """Process ids of the ranks, in order: they are started one after the other."""
    return [int(pid) for pid in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def same_losses(base, options, model):
    for loss in options.losses:
        case = Case(base, f"same_{loss}", options, model, loss)
        case.run("run.toml", output="one")
        case.run("run.toml", "--ranks", "2", output="two")
        one, two = case.events("one"), case.events("two")
        worst = ("nothing", 0.0, 0)
        good = len(one) == len(two) == case.steps
        for a, b in zip(one, two):
            good &= a["phase"] == b["phase"] and a["trained_g"] == b["trained_g"] and a["trained_d"] == b["trained_d"]
            for key in COMPARED:
                x, y = a.get(key), b.get(key)
                if x is None or y is None:
                    good &= x is None and y is None
                    continue
                # Sums in another grouping; norms of gradients are sums of terms that cancel.
                limit = (1e-4 if key.startswith("grad") else 1e-5) * max(1.0, abs(x))
                share = abs(x - y) / limit
                good &= math.isfinite(y) and share <= 1
                if not share <= worst[1]:
                    worst = (key, share, a["step"])
        phases = {e["phase"] for e in two}
        good &= phases == ({"warmup"} if loss == "ce" else {"warmup", "discriminator", "adversarial"})
        expect(f"{loss}: two ranks of batch 4 have one process's losses of batch 8 over {len(two)} steps: at most {worst[1]:.3f} of the limit"
               f" ({worst[0]}, step {worst[2]})", good)  # fmt: skip
        case.run("run.toml", "--ranks", "2", output="again")
        expect(f"{loss}: two runs of two ranks end with the same bits", case.tensors("two") == case.tensors("again"))
        (case.folder / "again" / "checkpoints" / f"step-{case.steps:08}.ckpt").unlink()
        case.run("--resume", "--ranks", "2", output="again")
        expect(f"{loss}: so does one continued from step {case.every * (case.steps // case.every)}", case.tensors("two") == case.tensors("again"))
        summary = json.loads((case.folder / "two" / "summary.json").read_text())
        expect(f"{loss}: the summary says how many ranks", summary["run"]["ranks"] == 2, str(summary["run"]))


def stopping(base, options, model):
    case = Case(base, "stopping", options, model, steps=100000, every=0)
    straight = Case(base, "straight", options, model, steps=100000, every=0)
    process = case.start("run.toml", "--ranks", "2")
    case.wait_for_steps(process, 3)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    code = process.wait(timeout=300)
    said = process.log.read_text()
    taken = [e["step"] for e in case.events()]
    expect(f"SIGTERM to rank 1 alone: all stop after step {taken[-1]}, exit code 143", code == 143, f"{code}\n{said}")
    expect("it is said how to go on", f"stopped at step {taken[-1]} of 100000; continue with: gantrain train --resume" in said, said)
    expect("the step is saved", os.readlink(case.folder / "run" / "checkpoints" / "latest") == f"step-{taken[-1]:08}.ckpt")
    process = case.start("--resume", "--ranks", "2")
    case.wait_for_steps(process, len(taken) + 2)
    process.send_signal(signal.SIGINT)  # to the parent, which passes it on
    code = process.wait(timeout=300)
    expect("SIGINT to the parent: exit code 130", code == 130, f"{code}\n{process.log.read_text()}")
    end = case.events()[-1]["step"]
    expect("each step was taken once", [e["step"] for e in case.events()] == list(range(1, end + 1)))
    # The same bits as a run that was never stopped.
    (straight.folder / "run.toml").write_text((straight.folder / "run.toml").read_text().replace("save_every = 0", f"save_every = {end}"))
    process = straight.start("run.toml", "--ranks", "2")
    give_up = time.monotonic() + 300
    while not (straight.folder / "run" / "checkpoints" / f"step-{end:08}.ckpt").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=300)
    expect(f"stopped and continued, it has the bits of a run left alone at step {end}", case.tensors(step=end) == straight.tensors(step=end))


def orphaned(base, options, model):
    case = Case(base, "orphaned", options, model, steps=100000, every=0)
    process = case.start("run.toml", "--ranks", "2")
    case.wait_for_steps(process, 3)
    process.kill()
    process.wait()
    latest = case.folder / "run" / "checkpoints" / "latest"
    give_up = time.monotonic() + 300
    while "stopped at step" not in process.log.read_text() and time.monotonic() < give_up:
        time.sleep(0.02)
    expect("the parent is killed: the ranks stop after a step, which is saved", latest.exists() and "stopped at step" in process.log.read_text(),
           process.log.read_text())  # fmt: skip


def dying(base, options, model):
    for victim in options.victims:
        case = Case(base, f"dying{victim}", options, model, steps=100000, every=0)
        process = case.start("run.toml", "--ranks", "2")
        case.wait_for_steps(process, 4)
        ranks = ranks_of(process)
        os.kill(ranks[victim], signal.SIGKILL)
        begin = time.monotonic()
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        said = process.log.read_text()
        expect(f"rank {victim} is killed: the other one ends too ({time.monotonic() - begin:.1f} s), with a message and not with success",
               code not in (0, None) and f"rank {victim} is gone" in said and f"rank {victim} was ended by signal 9" in said, f"{code}\n{said}")  # fmt: skip
        expect("no process is left", not any(pathlib.Path(f"/proc/{pid}").exists() for pid in ranks))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def by_environment(base, options, model):
    case = Case(base, "environment", options, model)
    case.run("run.toml", "--ranks", "2", output="launched")

    def both(first, second):
        port = str(free_port())
        env = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for r in range(2)]
        processes = [case.start(*words, output="run", **e) for words, e in zip((first, second), env)]
        return [(p.wait(timeout=300), p.log.read_text()) for p in processes]

    ends = both(["run.toml"], ["run.toml"])
    expect("RANK and WORLD_SIZE in the environment do what --ranks does", [code for code, _ in ends] == [0, 0] and case.tensors("launched") == case.tensors("run"),
           str(ends))  # fmt: skip
    ends = both(["run.toml"], ["run.toml", "train.batch=4", "loss.beta=0.5"])
    message = "rank 1 has another configuration than rank 0:\n  loss.beta: 0.005 -> 0.5\n  train.batch: 8 -> 4\n"
    expect("another configuration is refused by both, key by key", all(code == 2 and message in said for code, said in ends), str(ends))
    odd = case.run("run.toml", "train.batch=7", "--ranks", "2", output="odd", code=2)
    expect("a batch that cannot be shared is refused, in one line", odd == "gantrain: error: train.batch is 7, which 2 ranks cannot share evenly; set a multiple of 2\n", odd)
    lost = case.run("run.toml", "model=nowhere", "--ranks", "2", output="lost", code=1)
    expect("what all ranks fail of is said once", lost.count("\n") == 1 and "nowhere" in lost, lost)
    alone = case.run("run.toml", output="alone", code=1, RANK="1", WORLD_SIZE="2", MASTER_PORT=str(free_port()), GANTRAIN_TIMEOUT="1")
    expect("a rank that nobody meets says so", "rank 1 of 2: cannot reach rank 0 at 127.0.0.1:" in alone, alone)
    twice = case.run("run.toml", "--ranks", "2", output="twice", code=2, RANK="1", WORLD_SIZE="2")
    expect("--ranks under a launcher is refused", "--ranks starts processes itself" in twice, twice)
    plans = [case.run("run.toml", "--dry-run", *more, output="plan") for more in ([], ["--ranks", "2"])]
    expect("the memory plan of two ranks counts what is on its way", "gradients on their way to other ranks" in plans[1] and "other ranks" not in plans[0], plans[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gantrain")
    parser.add_argument("--only", nargs="*", choices=("same_losses", "stopping", "orphaned", "dying", "by_environment"))
    parser.add_argument("--softgpu", nargs=argparse.REMAINDER, help="the command that runs a program on two software GPUs")
    parser.add_argument("--losses", nargs="*", default=["ce", "rloo", "gumbel"])
    parser.add_argument("--victims", nargs="*", type=int, default=[1, 0], help="ranks that are killed, each in a run of its own")
    options = parser.parse_args()
    options.program = [*(options.softgpu or []), os.path.abspath(options.gantrain)]
    options.words = ["--device", "cuda"] if options.softgpu else []
    data = pathlib.Path(os.environ.get("GANTRAIN_DATA") or HERE.parents[2] / "shared" / "data")
    model = (data / "ci" / "stories260K" / "stories260K.bin").absolute()
    if not model.exists():
        print(f"SKIP: {model} is missing; set GANTRAIN_DATA to the folder of data")
        return 77
    with tempfile.TemporaryDirectory(prefix="gantrain_ranks_") as name:
        for test in (same_losses, stopping, orphaned, dying, by_environment):
            if not options.only or test.__name__ in options.only:
                test(pathlib.Path(name), options, model)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
