"""`gantrain compare` from end to end: tables, going on after a stop, runs that fail, configurations that changed.

usage: compare.py GANTRAIN

On the tiny model of bad_inputs.py with 60 items. A comparison that was stopped and goes on gives the figures of one that was not;
a third call runs nothing. Python's standard library only, but for the page, which tools/report makes with its own packages.
"""

import csv
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import bad_inputs  # noqa: E402

METHODS = "zero-shot,few-shot:2,prompt,lora+rloo"
SHARED = ["model=model", "data.train=items.jsonl", "data.valid_fraction=0.1", "data.test_fraction=0.3", "train.steps=4",
          "train.warmup_ce_steps=2", "train.discriminator_steps=1", "train.batch=2", "train.max_new_tokens=4", "loss.samples=2",
          "discriminator.width=8", "dtype=f32", "eval.max_items=6", "eval.samples=1", "eval.temperatures=1.0,0.5",
          "generator.prompt_length=2", "lora.rank=2"]  # fmt: skip
ASKED = ["--methods", METHODS, "--arm", "wide: lora lora.rank=4 train.average_from=3", "--seeds", "1,2", "--judges", "1", "--judge-pairs", "24",
         "--judge-reads", "tokens,features", "--drift", "drift.txt"]  # fmt: skip
ARMS = ["zero-shot", "few-shot-2", "prompt", "lora+rloo", "wide"]


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())

    def fail(text):
        sys.exit(f"FAIL: {text}")

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        bad_inputs.trained()(folder)
        items = [{"prompt": f"p{i}", "completion": f" w{i % 7}x{i % 3}"} for i in range(60)]
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        (folder / "drift.txt").write_text("w1 p2 x " * 40)

        def run(*words, status=0):
            done = subprocess.run([program, "compare", *words], cwd=folder, capture_output=True, text=True, errors="replace")
            if done.returncode != status:
                fail(f"gantrain compare {' '.join(words)}: exit status {done.returncode}, expected {status}\n{done.stderr}")
            return done

        def figures(out):
            """What does not depend on the clock."""
            runs = json.loads((folder / out / "results.json").read_text())["runs"]
            keep = ("ce", "bleu", "judge_accuracy", "feature_judge_accuracy", "drift", "parameters_trained", "steps")
            return {(r["arm"], r["seed"]): (r["status"], [r["figures"].get(k) for k in keep], r["curve"]) for r in runs}

        listed = run(*SHARED, *ASKED, "-o", "dry", "--dry-run").stdout.splitlines()
        if len(listed) != 2 * 2 * len(ARMS) or (folder / "dry").exists():
            fail(f"--dry-run: {len(listed)} lines, or a folder")

        done = run(*SHARED, *ASKED, "-o", "whole")
        whole = folder / "whole"
        results = json.loads((whole / "results.json").read_text())
        if [row["arm"] for row in results["arms"]] != ARMS or any(row["runs"] != 2 or row["failed"] for row in results["arms"]):
            fail(f"arms {[(row['arm'], row['runs'], row['failed']) for row in results['arms']]}")
        for row in results["arms"]:
            if not {"ce", "bleu", "judge_accuracy", "judge_ranking", "feature_judge_accuracy", "feature_judge_ranking", "drift", "train_seconds", "peak_memory_bytes"} <= row["figures"].keys():
                fail(f"{row['arm']}: figures {sorted(row['figures'])}")
        # The judges, and with them all figures, read the whole split and not eval.max_items of it.
        summary, evaluated = (json.loads((whole / "runs" / "tokens" / "wide" / "seed-1" / name).read_text()) for name in ("summary.json", "eval.json"))
        if not summary["run"]["items"] == 6 < evaluated["items"]:
            fail(f"the run's end read {summary['run']['items']} items, its evaluation {evaluated['items']}")
        if figures("whole")["wide", 1][1][0] != evaluated["arms"][-1]["ce"] or figures("whole")["wide", 1][2] != evaluated["arms"][-1]["temperatures"]:
            fail("the figures are not those of the evaluation on the whole split")
        by_arm = {row["arm"]: row["figures"] for row in results["arms"]}
        if by_arm["zero-shot"]["drift"]["median"] != 0 or by_arm["zero-shot"]["parameters_trained"]["median"] != 0:
            fail("zero-shot trained something")
        if by_arm["wide"]["parameters_trained"]["median"] != 2 * by_arm["lora+rloo"]["parameters_trained"]["median"]:
            fail("an arm's own settings were not used")
        rows = list(csv.DictReader((whole / "results.csv").read_text().splitlines()))
        if len(rows) != 2 * 2 * len(ARMS) or {row["temperature"] for row in rows} != {"1", "0.5"}:
            fail(f"results.csv: {len(rows)} lines")
        if done.stdout != (whole / "results.md").read_text() or "few-shot-2" not in done.stdout:
            fail("standard output is not results.md")
        # What the model does untrained is measured once a seed and template, and is what a run by itself measures.
        kept = sorted((whole / "untrained").iterdir())
        if len(kept) != 2 * 2:
            fail(f"{len(kept)} files in untrained/, expected those of two seeds with and without examples before the inputs")
        alone = [program, "train", str(whole / "jobs" / "tokens" / "wide" / "seed-2.toml"), "output=alone"]
        subprocess.run(alone, cwd=folder, check=True, capture_output=True)
        ends = [json.loads((at / "summary.json").read_text()) for at in (folder / "alone", whole / "runs" / "tokens" / "wide" / "seed-2")]
        if any(ends[0][key] != ends[1][key] for key in ("arms", "sweep", "before", "after", "samples")):
            fail("a run of the comparison has another end than the same run by itself")
        # Of an adversarial run's warm-up the loss alone, which G0 asks.
        adversarial = json.loads((whole / "runs" / "tokens" / "lora+rloo" / "seed-1" / "summary.json").read_text())
        by_name = {arm["arm"]: arm for arm in adversarial["arms"]}
        if list(by_name) != ["no prompt", "warm", "trained"] or by_name["warm"]["temperatures"] or not by_name["trained"]["temperatures"]:
            fail(f"an adversarial run of the comparison measured {[(name, len(arm['temperatures'])) for name, arm in by_name.items()]}")
        if adversarial["gates"][0]["gate"] != "G0" or adversarial["gates"][0]["value"] != by_name["warm"]["ce"]:
            fail(f"G0 asks {adversarial['gates'][0]['value']}, expected the warm-up's loss {by_name['warm']['ce']}")
        # A file there that is not one of its own is no loss.
        for file in kept:
            file.write_text("{")
        alone[-1:] = ["output=again", "--untrained", str(whole / "untrained")]
        subprocess.run(alone, cwd=folder, check=True, capture_output=True)
        if json.loads((folder / "again" / "summary.json").read_text())["arms"] != ends[0]["arms"]:
            fail("a broken file in untrained/ changed a result")
        # Beside an adversarial arm those of cross-entropy alone keep its average, but where they say otherwise.
        def average_from(out, arm):
            return tomllib.loads((folder / out / "jobs" / arm / "seed-1.toml").read_text())["train"]["average_from"]

        averaged = {arm: average_from("whole", ("none/" if "shot" in arm else "tokens/") + arm) for arm in ARMS}
        if averaged != {"zero-shot": -1, "few-shot-2": -1, "prompt": 2, "lora+rloo": -1, "wide": 3}:
            fail(f"train.average_from: {averaged}")
        if "So are prompt, of cross-entropy alone, since step 2 (train.average_from)" not in done.stdout or results["averaged"]["arms"] != ["prompt"]:
            fail("results.md does not say which arms keep an average")
        # One process measures what training forgets and judges the trained arm alone.
        off, on = evaluated["arms"]
        if any("judge_accuracy" in row for row in off["temperatures"]) or not all("judge_accuracy" in row for row in on["temperatures"]):
            fail("other arms were judged than the trained one")
        # The best of several answers by the run's discriminator, where it has one.
        runs = whole / "runs" / "tokens"
        best = [program, "eval", "--best-of", "3", "--judges", "1", "--judge-pairs", "24", "--json", "-", "--run"]
        chosen = subprocess.run([*best, str(runs / "lora+rloo" / "seed-1" / "checkpoints" / "latest"), "--choose-temperature", "1"], cwd=folder, capture_output=True, text=True)
        if chosen.returncode or (found := json.loads(chosen.stdout))["best_of"] != 3 or len(found["arms"]) != 3:
            fail(f"eval --best-of: exit status {chosen.returncode}\n{chosen.stderr}")
        if not all(isinstance(arm["temperatures"][0].get("chosen_ce_gain"), float) for arm in found["arms"]) or found["choose_temperature"] != 1:
            fail(f"eval --choose-temperature: {found['arms']}")
        highest = subprocess.run([*best, str(runs / "lora+rloo" / "seed-1" / "checkpoints" / "latest")], cwd=folder, capture_output=True, text=True)
        if highest.returncode or "chosen_ce_gain" in highest.stdout:
            fail(f"eval --best-of at 0: exit status {highest.returncode}\n{highest.stderr}")
        refused = subprocess.run([*best, str(runs / "prompt" / "seed-1" / "checkpoints" / "latest")], cwd=folder, capture_output=True, text=True)
        if refused.returncode != 2 or "has no discriminator to choose by: loss.kind is ce" not in refused.stderr:
            fail(f"eval --best-of without a discriminator: exit status {refused.returncode}\n{refused.stderr}")
        # generate: six answers compete, two by two, three by three and all at once; the best is the same one, and one of those
        # that come without a choice.
        def generated(*flags, seed=3):
            ask = [program, "generate", "--checkpoint", str(runs / "lora+rloo" / "seed-1" / "checkpoints" / "latest"), "--prompt", "a", "--max-new", "6", "--seed", str(seed), "--json", *flags]
            ran = subprocess.run(ask, cwd=folder, check=True, capture_output=True, text=True)
            return [json.loads(line) for line in ran.stdout.splitlines()]

        def best_one(lines):
            return max(lines, key=lambda line: -1e9 if line["score"] is None else line["score"])

        plain, single = generated("--samples", "6"), generated("--best-of", "6")
        two, three = generated("--samples", "3", "--best-of", "2"), generated("--samples", "2", "--best-of", "3")
        if [len(plain), len(single), len(two), len(three)] != [6, 1, 3, 2] or "score" in plain[0]:
            fail("generate --best-of: as many answers as --samples asks for, and a score for each")
        if single[0] != best_one(two) or single[0] != best_one(three) or single[0]["ids"] not in [line["ids"] for line in plain]:
            fail(f"generate --best-of: {single}, {two}, {three} of {plain}")
        drawn = [generated("--best-of", "6", "--choose-temperature", "100", seed=seed) == generated("--best-of", "6", seed=seed) for seed in range(4, 12)]
        if all(drawn):
            fail("generate --choose-temperature 100: always the highest of six, in eight draws")
        peft = json.loads((whole / "peft" / "wide--seed-2.json").read_text())
        if peft["train_info"]["status"] != "success" or peft["train_info"]["num_trainable_params"] <= 0:
            fail(f"peft: {peft['train_info']}")
        page = (whole / "report.html").read_text()
        if "wide" not in page or "<svg" not in page or "http://" in page.replace("http://www.w3.org", ""):
            fail("report.html is no page, or needs something beside itself")

        # Stopped when the tables of its first run were there; then to its end; then once more.
        words = [*SHARED, *ASKED, "-o", "stopped"]
        child = subprocess.Popen([program, "compare", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and not (folder / "stopped" / "results.md").exists():
            time.sleep(0.01)
        if child.poll() is not None:
            fail("no tables before the last run's end")
        child.send_signal(signal.SIGTERM)
        said = child.communicate()[1]
        if child.returncode != 143 or "the same command goes on" not in said:
            fail(f"stopped: exit status {child.returncode}, {said}")
        there = len(list((folder / "stopped").glob("runs/*/*/*/summary.json")))
        if not 1 <= there < 2 * len(ARMS):
            fail(f"{there} runs are there after the stop")
        run(*words)
        if figures("stopped") != figures("whole"):
            fail("a comparison that was stopped has other figures than one that was not")
        if f"{2 * len(ARMS)} of {2 * len(ARMS)} runs are there already" not in run(*words).stderr:
            fail("a finished comparison ran something again")

        # Another configuration in the same folder; an arm that cannot run beside one that can.
        changed = run(*[w.replace("train.batch=2", "train.batch=3") for w in words], status=2).stderr
        if "train.batch: 2 -> 3" not in changed or "another" not in changed:
            fail(changed)
        failed = run(*SHARED, "--methods", "prompt", "--arm", "bad: lora adapter=nowhere", "-o", "bad", status=1)
        if "1 of 2 runs failed" not in failed.stderr or "nowhere" not in failed.stdout:
            fail(f"a failed run: {failed.stdout}\n{failed.stderr}")
        if average_from("bad", "tokens/prompt") != -1 or "average" in failed.stdout:
            fail("an average with no adversarial arm beside it")
        run(*SHARED, "train.average_from=1", "--methods", "prompt,prompt+rloo", "-o", "own")
        if average_from("own", "tokens/prompt") != 1:
            fail("the comparison's own train.average_from was not kept")
        timed = run(*SHARED, "--methods", "zero-shot,prompt", "--seconds", "0.2", "--jobs", "2", "-o", "timed")
        results = json.loads((folder / "timed" / "results.json").read_text())
        if [row["budget"] for row in results["arms"]] != ["none", "tokens", "seconds"] or "At equal wall clock" not in timed.stdout:
            fail("no runs at equal wall clock")
    print(f"{len(ARMS)} arms with 2 seeds: stopped and whole agree")


if __name__ == "__main__":
    main()
