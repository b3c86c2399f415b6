"""A run that is killed again and again and continued ends with the bits of the run that was left alone.

usage: kill_and_resume.py GANTRAIN [--seed N] [--kills N]

Twenty SIGKILLs a case (--kills: another number), each at a random moment: half of them so many events after the start, half
of them while a checkpoint is being written (its temporary file is there). After each one every checkpoint under its final
name must be whole. Python's standard library only.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
STEPS = 30
KILLS = 20
CONFIG = """
model = "{model}"
dtype = "f32"
threads = 1
output = "run"
[data]
train = "{records}/train.jsonl"
valid = "{records}/valid.jsonl"
max_train_items = 60
max_valid_items = 8
[generator]
kind = "conditional"
prompt_length = 4
width = 32
noise_dim = 4
[discriminator]
width = 32
replay = 0.25
[loss]
kind = "{loss}"
samples = 3
[train]
batch = 4
accumulate = 2
steps = {steps}
warmup_ce_steps = 8
discriminator_steps = 4
max_new_tokens = 16
eval_every = 5
save_every = 3
[eval]
max_items = 4
temperatures = [1.0]
samples = 1
"""


def data_folder():
    return pathlib.Path(os.environ.get("GANTRAIN_DATA") or HERE.parents[2] / "shared" / "data")


def start(gantrain, folder, resume):
    """The program, working in `folder`: both runs call their output "run", so their configurations are equal."""
    what = ["--resume", "output=run"] if resume else ["config.toml"]
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen([gantrain, "train", *what], cwd=folder, stdout=log, stderr=log)


def finish(process, folder):
    if process.wait() != 0:
        sys.exit(f"exit status {process.returncode}:\n{(folder / 'log.txt').read_text()[-3000:]}")


def temporary_files(run):
    return list((run / "checkpoints").glob("*.tmp.*"))


def lines_in(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_once(gantrain, folder, resume, rng):
    """Starts or continues the run and kills it. False: it was done before that."""
    run = folder / "run"
    writing = rng.random() < 0.5
    before = None
    process = start(gantrain, folder, resume)
    until = rng.randint(1, 9)
    # The first checkpoint is mostly left to succeed: a run that starts anew each time tests nothing.
    writes, seen = rng.randint(1, 2) + (not resume and rng.random() < 0.8), set()
    delay = rng.random() * (0.01 if writing else 0.12)
    give_up = time.monotonic() + 60
    while process.poll() is None:
        if time.monotonic() > give_up:
            process.kill()
            sys.exit(f"no progress within a minute:\n{(folder / 'log.txt').read_text()[-3000:]}")
        if writing:
            seen.update(file.name for file in temporary_files(run) if file.name.startswith("step-"))
            if len(seen) >= writes:
                time.sleep(delay * 0.3)
                break
        # Counted from the first look after the cut that a continued run makes.
        now = lines_in(run / "events.jsonl")
        before = now if before is None else min(before, now)
        if not writing and now >= before + until:
            time.sleep(delay)
            break
        time.sleep(0.0002 if writing else 0.002)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    killed = process.returncode == -signal.SIGKILL
    if not killed:
        finish(process, folder)
    return killed


def checkpoint(file):
    """(tensors, texts) of a safetensors file: {name: (dtype, shape, bytes)}, {name: parsed JSON}."""
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    texts = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[8 + size + begin : 8 + size + end])
    return tensors, {name[5:]: json.loads(text) for name, text in texts.items() if name.startswith("json.")}


def events(run):
    """Every event without what a clock says."""
    out = []
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        out.append({k: v for k, v in event.items() if not k.endswith("seconds")})
    return out


def summary(run):
    """The summary without what a clock and the system say, and what is counted of one process (its device, its memory)."""
    out = json.loads((run / "summary.json").read_text())
    out["cost"] = {
        k: v
        for k, v in out["cost"].items()
        if "second" not in k and k not in ("device", "peak_memory_bytes", "planned_memory_bytes")
    }
    return out


def folder_state(run):
    folder = run / "checkpoints"
    return {
        file.name: os.readlink(file) if file.is_symlink() else "file" for file in folder.iterdir()
    }


def differences(left_alone, killed):
    """What differs between two finished runs, as sentences."""
    found = []
    tensors, texts = checkpoint(left_alone / "checkpoints" / "latest")
    other_tensors, other_texts = checkpoint(killed / "checkpoints" / "latest")
    for name in sorted(tensors.keys() | other_tensors.keys()):
        if tensors.get(name) != other_tensors.get(name):
            found.append(f"tensor {name} differs")
    for state in (texts["state"], other_texts["state"]):
        del state["totals"]  # seconds
    for run in (texts["run"], other_texts["run"]):
        del run["events_bytes"]  # seconds have more or fewer digits
    for name in sorted(texts.keys() | other_texts.keys()):
        if texts.get(name) != other_texts.get(name):
            found.append(f"text {name}: {texts.get(name)} became {other_texts.get(name)}")
    a, b = events(left_alone), events(killed)
    steps = [event["step"] for event in b if event["event"] == "step"]
    if steps != list(range(1, STEPS + 1)):
        found.append(f"events hold the steps {steps}")
    if len(a) != len(b):
        found.append(f"{len(a)} events became {len(b)}")
    for one, other in zip(a, b):
        if one != other:
            keys = [k for k in one.keys() | other.keys() if one.get(k) != other.get(k)]
            found.append(
                f"event {one['event']} of step {one['step']}: "
                + ", ".join(f"{k} {one.get(k)} became {other.get(k)}" for k in sorted(keys))
            )
    if summary(left_alone) != summary(killed):
        found.append("summary.json differs")
    if folder_state(left_alone) != folder_state(killed):
        found.append(f"checkpoints: {folder_state(left_alone)} became {folder_state(killed)}")
    return found


def damaged(gantrain, run):
    """What the program says about the checkpoints that it cannot read; checksums included."""
    out = []
    for file in sorted((run / "checkpoints").glob("step-*.ckpt")) + [run / "checkpoints" / "latest"]:
        if file.exists():
            result = subprocess.run([gantrain, "inspect", "--kind", "checkpoint", file], capture_output=True, text=True)
            if result.returncode != 0:
                out.append(result.stderr)
    return out


def case(gantrain, folder, loss, text, rng, wanted):
    alone, killed = folder / f"{loss}_alone", folder / f"{loss}_killed"
    for place in (alone, killed):
        place.mkdir()
        (place / "config.toml").write_text(text.replace("{loss}", loss))
    finish(start(gantrain, alone, False), alone)
    state = checkpoint(alone / "run" / "checkpoints" / "latest")[1]["state"]
    if state["phase"] != "adversarial" or min(state["counts"][2:]) < 2:
        sys.exit(f"{loss}: the run does not reach every phase and player: {state['phase']}, {state['counts']}")
    run = killed / "run"
    kills = in_write = anew = 0
    places = []
    while kills < wanted:
        resume = bool(list((run / "checkpoints").glob("step-*.ckpt"))) if run.exists() else False
        if run.exists() and not resume:  # killed before there was anything to continue
            shutil.rmtree(run)
            anew += 1
        if not kill_once(gantrain, killed, resume, rng):
            # Done before its turn came: from the beginning again, for more kills.
            found = differences(alone / "run", run)
            if found:
                return found
            shutil.rmtree(run)
            continue
        kills += 1
        in_write += bool(temporary_files(run))
        found = damaged(gantrain, run)
        if found:
            return found
        places.append(sum(b'"event":"step"' in line for line in (run / "events.jsonl").open("rb"))
                      if (run / "events.jsonl").exists() else 0)
    if list((run / "checkpoints").glob("step-*.ckpt")):
        finish(start(gantrain, killed, True), killed)
    else:
        shutil.rmtree(run)
        finish(start(gantrain, killed, False), killed)
    found = differences(alone / "run", run)
    count = len(checkpoint(run / "checkpoints" / "latest")[0])
    print(f"{loss}: {kills} kills, {in_write} of them inside a checkpoint's writing, {anew} before the first one, "
          f"at steps {' '.join(map(str, places))}; {count} tensors and {len(events(run))} events compared, {len(found)} differences")
    if in_write == 0:
        found.append("no kill fell into a checkpoint's writing: the test did not test that")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gantrain")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=KILLS, help="of each of the two cases")
    options = parser.parse_args()
    gantrain = os.path.abspath(options.gantrain)
    model = (data_folder() / "ci" / "stories260K" / "stories260K.bin").absolute()
    if not model.exists():
        print(f"SKIP: {model} is missing; set GANTRAIN_DATA to the folder of data")
        return 77
    with tempfile.TemporaryDirectory(prefix="gantrain_kill_") as name:
        folder = pathlib.Path(name)
        records = folder / "records"
        subprocess.run(
            [sys.executable, str(HERE.parents[1] / "tools" / "make_records"), str(records)]
            + ["--train", "20", "--valid", "4", "--test", "1"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        text = CONFIG.format(model=model, records=records, steps=STEPS, loss="{loss}")
        for loss in ("rloo", "gumbel"):
            found = case(gantrain, folder, loss, text, random.Random(f"{options.seed} {loss}"), options.kills)
            if found:
                print("\n".join([f"FAILED {loss}:"] + found[:20]))
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
