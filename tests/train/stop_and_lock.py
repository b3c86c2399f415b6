"""Signals, the run folder's lock, and a continued run under another configuration.

usage: stop_and_lock.py GANTRAIN

Python's standard library only.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import bad_inputs  # noqa: E402

LONG = ["train", "run.toml"]
CONFIG = """
model = "model"
output = "run"
threads = 1
dtype = "f32"
[data]
train = "data.jsonl"
[generator]
kind = "static"
prompt_length = 2
[loss]
kind = "ce"
[train]
batch = 2
steps = 1000000
warmup_ce_steps = 5
"""
failures = []


def expect(what, good, said=""):
    print(f"{'ok' if good else 'FAILED'}: {what}")
    if not good:
        failures.append(what)
        print(said)


class Run:
    """The program in a folder, its standard error in a file."""

    def __init__(self, gantrain, folder, words):
        self.log = folder / f"log{len(list(folder.glob('log*')))}"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([gantrain, *words], cwd=folder, stdout=log, stderr=log)

    def said(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, condition, what):
        give_up = time.monotonic() + 60
        while not condition():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.process.kill()
                sys.exit(f"FAILED: waiting for {what}:\n{self.said()}")
            time.sleep(0.005)

    def end(self):
        return self.process.wait(timeout=60)


def steps(folder):
    file = folder / "run" / "events.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line)["step"] for line in lines if b'"event":"step"' in line]


def made(folder, config=CONFIG):
    folder.mkdir()
    bad_inputs.trained()(folder)
    (folder / "run.toml").write_text(config)
    return folder


def stopping(gantrain, folder):
    first = Run(gantrain, folder, LONG)
    first.wait_for(lambda: len(steps(folder)) >= 3, "three steps")
    first.process.send_signal(signal.SIGINT)
    code = first.end()
    taken = steps(folder)
    words = f"stopped at step {taken[-1]} of 1000000; continue with: gantrain train --resume output=run\n"
    expect("SIGINT: exit code 130", code == 130, first.said())
    expect("SIGINT: says how to continue", first.said().endswith(words), first.said())
    latest = os.readlink(folder / "run" / "checkpoints" / "latest")
    expect("SIGINT: the last step is saved", latest == f"step-{taken[-1]:08}.ckpt", latest)
    again = Run(gantrain, folder, ["train", "--resume", "output=run"])
    again.wait_for(lambda: len(steps(folder)) >= len(taken) + 3, "three more steps")
    again.process.send_signal(signal.SIGTERM)
    expect("SIGTERM: exit code 143", again.end() == 143, again.said())
    expect("the two runs took each step once", steps(folder) == list(range(1, steps(folder)[-1] + 1)))


def stopping_at_once(gantrain, folder):
    # A step of far more seconds than the two signals take: 256 batches of all 2000 items.
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) + "\n" for i in range(2000)))
    (folder / "run.toml").write_text(CONFIG.replace("batch = 2", "batch = 2048\naccumulate = 256").replace("steps = 1000000", "epochs = 1e6"))
    for first, second in ((signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)):
        run = Run(gantrain, folder, [*LONG, f"output={first.name}{second.name}"])
        events = folder / f"{first.name}{second.name}" / "events.jsonl"
        run.wait_for(events.exists, "the start")
        time.sleep(0.3)
        run.process.send_signal(first)
        run.wait_for(lambda: "stopping after this step; once more to stop at once" in run.said(), "the answer")
        run.process.send_signal(second)
        begin = time.monotonic()
        code = run.end()
        took = time.monotonic() - begin
        expect(f"{first.name}, then {second.name}: ends at once with the signal's own effect",
               code == -second and took < 1.0, f"exit code {code} after {took:.2f} s:\n{run.said()}")  # fmt: skip
        expect("and leaves no checkpoint", not list(events.parent.glob("checkpoints/*")), run.said())


def locking(gantrain, folder):
    first = Run(gantrain, folder, [*LONG, "train.save_every=1"])
    first.wait_for(lambda: (folder / "run" / "checkpoints" / "latest").exists(), "a checkpoint")
    for words in (LONG, ["train", "--resume", "output=run"]):
        second = Run(gantrain, folder, words)
        code = second.end()
        message = (f"gantrain: error: run: another run (process {first.process.pid} on {socket.gethostname()}) is writing "
                   "into this folder; wait for it or choose another output\n")  # fmt: skip
        expect(f"{' '.join(words)} beside a run: refused, with the holder", code == 1 and second.said().endswith(message), second.said())
    expect("the first run goes on", first.process.poll() is None)
    first.process.kill()
    first.end()
    third = Run(gantrain, folder, ["train", "--resume", "output=run"])
    before = len(steps(folder))
    third.wait_for(lambda: len(steps(folder)) > before, "a step after the holder was killed")
    third.process.send_signal(signal.SIGINT)
    expect("a killed run leaves no lock", third.end() == 130, third.said())


def changing(gantrain, folder):
    config = CONFIG.replace("1000000", "4").replace("[train]", "[train]\nsave_every = 2")
    (folder / "run.toml").write_text(config)
    first = Run(gantrain, folder, LONG)
    expect("a run to continue", first.end() == 0, first.said())
    before = (folder / "run" / "config.toml").read_text()
    words = ["train", "--resume", "output=run", "train.steps=8", "optimizer.clip=0.5"]
    asked = Run(gantrain, folder, words)
    code = asked.end()
    message = (
        "gantrain: error: run/config.toml: the run was started with another configuration:\n"
        "  optimizer.clip: 1.0 -> 0.5\n  train.steps: 4 -> 8\n"
        "leave these out, or add --allow-config-change to go on with the new values\n"
    )
    expect("a changed configuration is refused, key by key", code == 2 and asked.said() == message, asked.said())
    (folder / "run.toml").write_text(config.replace("batch = 2", "batch = 4"))
    from_file = Run(gantrain, folder, ["train", "run.toml", "--resume"])
    code = from_file.end()
    expect("the same from a file", code == 2 and "configuration:\n  train.batch: 2 -> 4\nleave" in from_file.said(), from_file.said())
    expect("nothing has changed", (folder / "run" / "config.toml").read_text() == before and len(steps(folder)) == 4)
    allowed = Run(gantrain, folder, [*words, "--allow-config-change"])
    code = allowed.end()
    expect("--allow-config-change goes on", code == 0 and steps(folder) == list(range(1, 9)), allowed.said())
    expect("and says what changed", "changed:\n  optimizer.clip: 1.0 -> 0.5\n  train.steps: 4 -> 8\n" in allowed.said(), allowed.said())
    expect("config.toml has the new values", "clip = 0.5" in (folder / "run" / "config.toml").read_text())
    noted = [e for e in map(json.loads, (folder / "run" / "events.jsonl").open()) if e["event"] == "config"]
    expect("so do the events", [e["change"] for e in noted] == ["optimizer.clip: 1.0 -> 0.5", "train.steps: 4 -> 8"], str(noted))
    (folder / "run.toml").write_text(config)
    threads = Run(gantrain, folder, ["train", "--resume", "output=run", "threads=2"])
    expect("the number of threads is free", threads.end() == 0, threads.said())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gantrain")
    gantrain = os.path.abspath(parser.parse_args().gantrain)
    with tempfile.TemporaryDirectory(prefix="gantrain_stop_") as name:
        for test in (stopping, stopping_at_once, locking, changing):
            test(gantrain, made(pathlib.Path(name) / test.__name__))
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
