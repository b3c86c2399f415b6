"""What `odds` and `anchored` share: commands of gantrain that are not run again, fresh judges' figures of one prompt, their table."""

import csv
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
GANTRAIN = os.environ.get("GANTRAIN", str(HERE.parents[2] / "build" / "release" / "bin" / "gantrain"))
JUDGED = "judge_accuracy judge_ranking feature_judge_accuracy feature_judge_ranking distinct_3".split()


def call(done, *words):
    """Runs gantrain with `words`, which makes the file or folder `done`, unless that is there."""
    if done.exists():
        return
    command = [GANTRAIN, *map(str, words)]
    print(" ".join(command), file=sys.stderr)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        sys.exit(f"exit status {finished.returncode}\n{finished.stderr[-2000:]}")


def train_words(model, data):
    """The keys of a training run on stories."""
    return [HERE / "stories.toml", f"model={model}", *(f"data.{split}={data / split}.jsonl" for split in ("train", "valid", "test"))]


def measure(run, name, arm, judges, *words):
    """A row of results.csv: one evaluation of the run's `arm`, kept in the file `name`, and what choosing gains in cross-entropy
    (None where nothing is chosen)."""
    file = run / f"{name}.json"
    words = ["--judge-pairs", 2000, "--judge-reads", "tokens,features", "--max-items", 0, "--json", file, *words]
    call(file, "eval", "--run", run / "checkpoints" / "latest", "--arms", arm, "--judges", judges, *words)
    measured = json.loads(file.read_text(encoding="utf-8"))
    found = measured["arms"][0]
    row = found["temperatures"][0]
    figures = {
        "status": "done",
        "parameters_trained": measured["cost"]["parameters_trained"],
        "temperature": row["temperature"],
        "ce": found["ce"],
        **{figure: row[figure] for figure in JUDGED},
    }
    return figures, row.get("chosen_ce_gain")


def write(out, rows, base, ce="ce"):
    """OUT/results.csv and its table on standard output, differences to the arm `base`; ce: the column of cross-entropy."""
    with open(out / "results.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    subprocess.run([sys.executable, HERE.parent / "table", "--base", base, "--figures", ",".join([ce, *JUDGED]), out], check=True)
