"""tools/report on run folders made here: whole, partial, torn and hostile ones.

usage: tools/venv report tests/tools/report_test.py            run the tests
       tools/venv report tests/tools/report_test.py FOLDER     write a run folder to look at
"""

import html.parser
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "report.py")

CONFIG = """\
model = "SmolLM2-135M-Instruct.Q4_1.gguf"
seed = 1
output = "runs/quickstart"

[data]
train = "data/train.jsonl"

[generator]
kind = "conditional"
prompt_length = 20

[loss]
kind = "rloo"

[train]
gate_d = 0.8
gate_g = 0.55
"""


def step_events(rng):
    """A run of 200 warm-up, 60 discriminator and 540 adversarial steps that behaves like a real one."""
    accuracy, seconds = 0.5, 0.0
    for step in range(1, 801):
        phase = "warmup" if step <= 200 else "discriminator" if step <= 260 else "adversarial"
        seconds += 0.7 if phase == "warmup" else 1.4
        event = {
            "event": "step",
            "step": step,
            "phase": phase,
            "seconds": round(seconds, 2),
            "tokens": 400 * step,
        }
        event["ce"] = 1.1 + 1.6 * math.exp(-step / 70) + rng.gauss(0, 0.05) - 0.0001 * step
        event["rms_ratio"] = 1 + 0.35 * (1 - math.exp(-step / 150)) + rng.gauss(0, 0.01)
        event["lr_g"] = 1e-3 * (0.2 + 0.8 * (1 + math.cos(math.pi * step / 800)) / 2)
        event["trained_g"], event["trained_d"] = phase != "discriminator", phase != "warmup"
        if phase != "warmup":
            drift = 0.02 if phase == "discriminator" else 0.004 * math.sin(step / 25)
            accuracy = min(0.86, max(0.5, accuracy + drift + rng.gauss(0, 0.012)))
            event["pair_accuracy"] = min(1, accuracy + 0.03 + rng.gauss(0, 0.02))
            event["pair_accuracy_heldout"] = accuracy
            event["loss_d"] = 0.9 - 0.5 * (accuracy - 0.5) + rng.gauss(0, 0.05)
            event["lr_d"] = 1e-3
        if phase == "adversarial":
            event["loss_g"] = 0.2 * (accuracy - 0.6) + rng.gauss(0, 0.06)
            event["trained_g"], event["trained_d"] = accuracy > 0.55, accuracy < 0.8
            event["length"] = 33 + 2 * math.sin(step / 60) + rng.gauss(0, 1)
        yield event


def summary():
    sweep = []
    for arm, base, spread in (("no prompt", 5, 1.0), ("ce", 31, 1.0), ("rloo", 33, 0.94)):
        for temperature in (0.5, 0.7, 0.85, 1.0, 1.2):
            sweep.append(
                {
                    "arm": arm,
                    "temperature": temperature,
                    "bleu": base * (1.25 - 0.45 * temperature),
                    "rouge_l": 0.3 + 0.008 * base - 0.12 * temperature,
                    "distinct_1": 0.2 + 0.12 * temperature,
                    "distinct_2": 0.42 + 0.3 * temperature * spread,
                    "self_bleu_4": 60 - 28 * temperature / spread,
                    "length": 36 - 3 * temperature,
                }
            )
    return {
        "run": {
            "model": "SmolLM2-135M-Instruct",
            "data": "records",
            "commit": "0123abc",
            "device": "cpu",
            "dtype": "bf16",
        },
        "before": {
            "ce": 2.71,
            "ppl": 15.03,
            "bleu": 4.2,
            "rouge_l": 0.231,
            "distinct_2": 0.81,
            "self_bleu_4": 21.0,
        },
        "after": {
            "ce": 1.02,
            "ppl": 2.77,
            "bleu": {"value": 31.8, "standard_error": 0.9},
            "rouge_l": 0.512,
            "distinct_2": 0.7,
            "self_bleu_4": 33.0,
        },
        "cost": {
            "parameters_trained": 1482752,
            "parameters_deployed": 1482752,
            "optimizer_bytes": 11862016,
            "peak_memory_bytes": 1932735283,
            "tokens_per_second": 341.2,
            "train_seconds": 612.4,
            "seconds_by_phase": {
                "rollout": 231.0,
                "forward": 120.1,
                "backward": 140.9,
                "discriminator": 64.0,
                "optimizer": 9.5,
            },
        },
        "gates": [
            {
                "gate": "G1",
                "what": "a fresh judge tells samples from references",
                "value": 0.71,
                "passed": True,
            }
        ],
        "sweep": sweep,
        "samples": [
            {
                "prompt": "name[The Old Lemon] | food[Indian] | near[Crown Hotel] | rating[3 of 5] | family[no]",
                "references": [
                    "The Old Lemon, which is not suitable for children, is an Indian restaurant near the Crown Hotel. "
                    "It scores three out of five.",
                    "Close to the Crown Hotel there is an Indian restaurant called The Old Lemon.",
                ],
                "before": "name[The Old Lemon] | food[Indian] | near[Crown Hotel] | rating[4 of 5] | family[yes]",
                "after": "The Old Lemon is an Indian restaurant not far from the Crown Hotel. It is not family-friendly "
                "and is rated 3 out of 5.",
            }
            for _ in range(3)
        ],
    }


def write_run(folder, leave_out=()):
    os.makedirs(folder, exist_ok=True)
    rng = random.Random(1)
    lines = [json.dumps(event) for event in step_events(rng)]
    for step in range(50, 801, 50):
        ce = 1.08 + 1.5 * math.exp(-step / 75) - 0.00008 * step
        lines.append(json.dumps({"event": "eval", "step": step, "ce": ce, "ppl": math.exp(ce)}))
    for step in (531, 532, 610):
        lines.append(
            json.dumps(
                {
                    "event": "alarm",
                    "step": step,
                    "text": "pair accuracy 0.98 for 200 steps",
                }
            )
        )
    contents = {
        "config.toml": CONFIG,
        "events.jsonl": "\n".join(lines) + "\n",
        "summary.json": json.dumps(summary()),
    }
    for name, text in contents.items():
        if name not in leave_out:
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)


def run_report(folder):
    return subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)


class Balanced(html.parser.HTMLParser):
    """Follows a page's tags; every opened one must be closed, and nothing may point outside the page."""

    VOID = {"meta", "br", "img", "link", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.counts, self.ids = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.wrong.append(f"{key}={value}")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")


class Report(unittest.TestCase):
    def report(self, folder):
        run = run_report(folder)
        self.assertEqual(run.returncode, 0, run.stderr)
        with open(os.path.join(folder, "report.html"), encoding="utf-8") as file:
            text = file.read()
        page = Balanced(text)
        self.assertEqual((page.open, page.wrong), ([], []))
        self.assertEqual(len(page.ids), len(set(page.ids)), "an id twice on the page")
        return text, page

    def test_a_whole_run(self):
        with tempfile.TemporaryDirectory() as folder:
            write_run(folder)
            text, page = self.report(folder)
            self.assertEqual(page.counts["svg"], 4)
            self.assertEqual(page.counts["article"], 3)
            for wanted in (
                "31.8 ± 0.9",
                "1,482,752",
                "1.80 GiB",
                "10.2 min",
                "pair accuracy 0.98",
                "The Old Lemon",
                "G1",
            ):
                self.assertIn(wanted, text)
            self.assertNotIn("Not recorded", text)
            # No colour of the drawing's stand-ins is left, and no default of matplotlib's either.
            self.assertNotRegex(text, r"#0[1-5]0[0-9]0[0-9]|#1f77b4|#000000")
            before = text
            self.assertEqual(self.report(folder)[0], before)  # the same bytes again

    def test_what_is_missing_is_named_and_the_rest_is_shown(self):
        for left_out, named in (
            (("summary.json",), "before and after: summary.json has no figures"),
            (("config.toml",), "config.toml: No such file"),
            (("events.jsonl",), "losses: events.jsonl has no ce"),
        ):
            with self.subTest(left_out=left_out), tempfile.TemporaryDirectory() as folder:
                write_run(folder, left_out)
                text, _ = self.report(folder)
                self.assertIn("Not recorded", text)
                self.assertIn(named, text)

    def test_a_torn_line_a_step_twice_and_values_that_are_no_numbers(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "events.jsonl"), "w", encoding="utf-8") as file:
                for step, ce in (
                    (1, 3.0),
                    (2, 2.5),
                    (3, None),
                    (4, float("nan")),
                    (2, 2.4),
                    (5, "x"),
                    (6, True),
                ):
                    file.write(json.dumps({"event": "step", "step": step, "ce": ce}) + "\n")
                file.write('[1, 2]\n{"event": "step", "step": 7, "c')
            text, page = self.report(folder)
            self.assertIn("2 lines are no JSON object", text)
            self.assertEqual(page.counts["svg"], 1)

    def test_text_of_the_run_cannot_become_markup(self):
        with tempfile.TemporaryDirectory() as folder:
            evil = '<script>alert(1)</script>"><img src=http://x.y/z>'
            with open(os.path.join(folder, "summary.json"), "w", encoding="utf-8") as file:
                sweep = [{"arm": evil, "temperature": t, "bleu": 1} for t in (0.5, 1)]
                both = {evil: 1.0}
                sample = {"prompt": evil, "references": [evil], "before": evil, "after": evil, evil: evil}
                cost = {evil: evil, "seconds": {evil: 2}}
                json.dump(
                    {
                        "before": both,
                        "after": both,
                        "sweep": sweep,
                        "samples": [sample],
                        "cost": cost,
                        "run": {"data": evil},
                    },
                    file,
                )
            with open(os.path.join(folder, "events.jsonl"), "w", encoding="utf-8") as file:
                file.write(json.dumps({"event": "alarm", "step": 1, "name": evil, "message": evil}) + "\n")
                for step in range(3):
                    file.write(json.dumps({"event": "step", "step": step, "phase": evil, "ce": 1}) + "\n")
            with open(os.path.join(folder, "config.toml"), "w", encoding="utf-8") as file:
                file.write(f"model = '{evil}'\n")
            text, page = self.report(folder)
            self.assertNotIn("script", page.counts)
            self.assertNotIn("img", page.counts)

    def test_figures_that_are_not_finite_are_shown_as_missing(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "summary.json"), "w", encoding="utf-8") as file:
                both = {"ce": math.nan, "bleu": math.inf, "rouge_l": 0.5}
                json.dump(
                    {"before": both, "after": {**both, "bleu": 7.0}, "cost": {"tokens_per_second": math.nan}},
                    file,
                )
            text, _ = self.report(folder)
            body = text[text.index("</style>") :]
            self.assertNotRegex(body, r"\b(nan|inf)\b")
            self.assertIn("–", body)

    def test_shapes_that_nobody_promised(self):
        for given in (
            [],
            {"before": [], "after": 3, "sweep": {}, "cost": [], "samples": "x", "gates": 4, "arms": {"a": 1}},
        ):
            with self.subTest(given=given), tempfile.TemporaryDirectory() as folder:
                with open(os.path.join(folder, "summary.json"), "w", encoding="utf-8") as file:
                    json.dump(given, file)
                self.report(folder)

    def test_wrong_folders_are_refused(self):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as compared:
            with open(os.path.join(compared, "results.json"), "w", encoding="utf-8") as file:
                json.dump({"arms": 3}, file)
            for wrong, words in (
                (os.path.join(folder, "none"), "no such folder"),
                (folder, "neither a run"),
                (compared, "not what gantrain compare writes"),
            ):
                run = run_report(wrong)
                self.assertNotEqual(run.returncode, 0)
                self.assertIn(words, run.stderr)
                self.assertNotIn("Traceback", run.stderr)


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        write_run(sys.argv[1])
    else:
        unittest.main()
