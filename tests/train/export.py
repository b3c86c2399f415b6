"""What every method trains leaves the program and comes back: train, export --verify, generate from the files, train on from them.

usage: export.py GANTRAIN

On the tiny model of bad_inputs.py. For each method and loss: two runs of a few steps; each format that the method has; answers of
`generate --adapter` are those of `generate --checkpoint`; a run that starts from the folder begins with its loss; formats that
the method has not are refused. Python's standard library only.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bad_inputs  # noqa: E402

# name, settings, formats that it has, whether it reads its input
METHODS = (
    ("lora", ["method=lora", "lora.rank=2", "lora.alpha=3"], ("peft", "merged", "gguf-lora"), False),
    ("lora all", ["method=lora", "lora.rank=3", "lora.targets=all", "lora.rslora=true"], ("peft", "merged", "gguf-lora"), False),
    ("prompt", ["method=prompt", "generator.prompt_length=2"], ("peft",), False),
    ("ptuning", ["method=ptuning", "generator.prompt_length=2", "generator.width=8", "generator.hidden=8", "generator.noise_dim=0"],
     ("peft",), False),
    ("prefix", ["method=prefix", "prefix.length=2"], ("peft",), False),
    ("prefix mlp", ["method=prefix", "prefix.length=2", "prefix.projection=true", "prefix.hidden=8"], ("peft",), False),
    ("adapter", ["method=adapter", "bottleneck.width=2", "bottleneck.places=attention,mlp"], ("peft",), False),
    ("full", ["method=full"], ("merged",), False),
    ("gan", ["method=gan", "generator.prompt_length=2", "generator.width=8", "generator.noise_dim=3"], ("peft",), True),
)  # fmt: skip
COMMON = ["train", "model=model", "data.train=data.jsonl", "data.valid=valid.jsonl", "train.steps=4", "train.warmup_ce_steps=2",
          "train.discriminator_steps=1", "train.batch=2", "train.max_new_tokens=4", "loss.samples=2", "discriminator.width=8", "threads=1",
          "dtype=f32", "eval.max_items=2", "eval.samples=1", "eval.temperatures=1.0"]  # fmt: skip


def main():
    program, checked = str(pathlib.Path(sys.argv[1]).resolve()), 0

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def run(*words, status=0):
            done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, errors="replace")
            if done.returncode != status:
                sys.exit(f"FAIL: gantrain {' '.join(words)}: exit status {done.returncode}, expected {status}\n{done.stderr}")
            return done

        def losses(path):
            events = [json.loads(line) for line in (folder / path / "events.jsonl").read_text().splitlines()]
            return [e["ce"] for e in events if e["event"] == "eval"]

        bad_inputs.trained()(folder)
        (folder / "valid.jsonl").write_text('{"prompt": "v1", "completion": "w1"}\n{"prompt": "v2", "completion": "w2"}\n')
        for method, settings, formats, reads in METHODS:
            for loss in ("ce", "rloo", "gumbel"):
                out = f"{method} {loss}".replace(" ", "-")
                run(*COMMON, *settings, f"loss.kind={loss}", f"output={out}")
                base = json.loads((folder / out / "summary.json").read_text())["run"]
                if not base["base_unchanged"] or base["method"] != settings[0].split("=")[1]:
                    sys.exit(f"FAIL: {out}: {base}")
                latest = f"{out}/checkpoints/latest"
                words = ["--prompt", "p1"] if reads else []
                for form in ("peft", "merged", "gguf-lora"):
                    command = ["export", "--run", latest, "--format", form, "--output", f"{out}-{form}", "--verify", "--seed", "5"]
                    if form not in formats:
                        run(*command, *words, status=2)
                        continue
                    if "verified: " not in run(*command, *words).stderr:
                        sys.exit(f"FAIL: {out}: {form} was not verified")
                    run(*command, *words, status=1)  # nothing is written over
                    checked += 1
                if reads:
                    run("export", "--run", latest, "--output", "nowhere", status=2)  # whose prompt?
                    (folder / "inputs.txt").write_text("p1\np2\n")
                    run("export", "--run", latest, "--input", "inputs.txt", "--output", f"{out}-two", "--verify", "--seed", "5")
                    whole = [(folder / p / "adapter_model.safetensors").read_bytes() for p in (f"{out}-two/1", f"{out}-two/2", f"{out}-peft")]
                    if whole[0] != whole[2] or whole[0] == whole[1]:
                        sys.exit(f"FAIL: {out}: prompts of two inputs")
                ask = ["generate", "--model", "model", "--prompt", "p1", "--max-new", "8", "--temperature", "0.8", "--seed", "5", "--json",
                       "--dtype", "f32", "--threads", "1"]  # fmt: skip
                if "peft" in formats:
                    answers = [run(*ask, *words).stdout for words in (["--checkpoint", latest], ["--adapter", f"{out}-peft"])]
                else:
                    merged = [f"{out}-merged" if word == "model" else word for word in ask]
                    answers = [run(*ask, "--checkpoint", latest).stdout, run(*merged).stdout]
                if answers[0] != answers[1]:
                    sys.exit(f"FAIL: {out}: the run answers {answers[0]}, its folder {answers[1]}")
                checked += 1
                if loss == "ce" and method not in ("gan", "full"):
                    # A table is what a prompt's or prefix's folder holds, whatever made it: it goes on as one.
                    again = [s for s in settings if not s.startswith(("method=ptuning", "generator.width", "generator.hidden", "prefix.proj"))]
                    again += ["method=prompt"] if method == "ptuning" else []
                    run(*COMMON, *again, "loss.kind=ce", f"adapter={out}-peft", f"output={out}-on")
                    first, before = losses(f"{out}-on")[0], losses(out)[-1]
                    if not abs(first - before) <= 1e-6 * before:
                        sys.exit(f"FAIL: {out}: a run from its folder begins at {first}, it ended at {before}")
                    checked += 1
    print(f"{checked} exports, answers and continuations are what the runs were")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
