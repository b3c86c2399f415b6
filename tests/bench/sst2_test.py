"""bench/experiments/sst2: the drawn items are those of docs/results.md, the table says what the runs say."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
FOLDER = os.path.join(ROOT, "bench", "experiments", "sst2")
DATA = os.path.join(
    os.environ.get("GANTRAIN_DATA") or os.path.join(ROOT, "..", "shared", "data"), "exp", "sst2"
)
# sha256 of what seed 1 draws: when it changes, the figures in docs/results.md are those of other items.
DRAWN = {
    "train": "4e7fcf31f8626b315d74561ae1fad9e6c871bb40655c182a4deb6cd5e6a4dd79",
    "valid": "d005ae48d95611052fa5ba16fc25df8673d1a59648357a31060bb674628c1e4d",
    "test": "4856f225d3db54c4d22f66559d1ce6483e80e4976afd666ed449dac3e2498c23",
}


def prepare(*arguments):
    run = [sys.executable, os.path.join(FOLDER, "prepare"), *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def write_files(folder, **changed):
    """Thirty small sentences a split; `changed` replaces a split's text."""
    for split in ("train", "test", "dev"):
        text = "".join(f"{i % 2} {split} sentence {i}\n" for i in range(30))
        with open(os.path.join(folder, "stsa.binary." + split), "w", encoding="utf-8") as file:
            file.write(changed.get(split, text))


class Prepare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.source, self.out = (os.path.join(self.folder.name, name) for name in ("source", "out"))
        os.mkdir(self.source)

    def draw(self, *more):
        return prepare(self.source, self.out, "--train", "20", "--valid", "10", "--test", "10", *more)

    def lines(self, name):
        with open(os.path.join(self.out, name + ".txt"), encoding="utf-8") as file:
            return file.read().splitlines()

    def test_draws_without_repetition_and_the_same_again(self):
        write_files(self.source)
        self.assertEqual(self.draw().returncode, 0)
        first = {name: self.lines(name) for name in DRAWN}
        self.assertEqual([len(first[name]) for name in ("train", "valid", "test")], [20, 10, 10])
        for name, split in (("train", "train"), ("valid", "dev"), ("test", "test")):
            self.assertEqual(len(set(first[name])), len(first[name]))
            self.assertTrue(all(line[2:].startswith(split) for line in first[name]))
        self.assertEqual(self.draw().returncode, 0)
        self.assertEqual(first, {name: self.lines(name) for name in DRAWN})
        self.assertEqual(self.draw("--seed", "2").returncode, 0)
        self.assertNotEqual(first["train"], self.lines("train"))

    def test_refuses_what_is_no_labelled_sentence(self):
        for text in ("0 fine\n2 no label\n", "0 fine\n1\n", "0 fine\n\n1 fine\n"):
            write_files(self.source, test=text)
            run = self.draw()
            self.assertNotEqual(run.returncode, 0, text)
            self.assertIn("stsa.binary.test:2: expected", run.stderr)

    def test_refuses_a_sentence_in_two_splits(self):
        write_files(self.source, dev="1 train sentence 3\n" * 10, train="0 train sentence 3\n" * 20)
        self.assertIn("is in the train and the valid split", self.draw().stderr)

    def test_refuses_more_items_than_there_are(self):
        write_files(self.source)
        self.assertIn(
            "--valid asks for 31",
            prepare(self.source, self.out, "--train", "20", "--test", "5", "--valid", "31").stderr,
        )

    def test_the_documented_draw(self):
        if not os.path.isfile(os.path.join(DATA, "stsa.binary.train")):
            self.skipTest(f"{DATA} has no SST-2; set GANTRAIN_DATA")
        self.assertEqual(prepare(DATA, self.out).returncode, 0)
        for name, expected in DRAWN.items():
            with open(os.path.join(self.out, name + ".txt"), "rb") as file:
                self.assertEqual(hashlib.sha256(file.read()).hexdigest(), expected, name)


class Table(unittest.TestCase):
    def test_says_what_the_runs_say(self):
        before = {"label_likelihood": 0.8, "ce": 3.0}
        with tempfile.TemporaryDirectory() as folder:
            for name, accuracy, seed in (("ce_1", 0.915, 1), ("rloo_2", 0.9, 2)):
                os.mkdir(os.path.join(folder, name))
                adversarial = name != "ce_1"
                summary = {
                    "before": before,
                    "after": {"label_likelihood": accuracy, "ce": 0.25},
                    "arms": [{"arm": "no prompt"}]
                    + [{"arm": "warm", "label_likelihood": 0.87}] * adversarial,
                    "run": {"seed": seed, "dtype": "f32"},
                    "cost": {
                        "train_seconds": 61.7,
                        "share_generator_trained": 0.5,
                        "share_discriminator_trained": 0.75,
                    },
                }
                with open(os.path.join(folder, name, "summary.json"), "w", encoding="utf-8") as file:
                    json.dump(summary, file)
                # Steps without a differing pair have no accuracy and count for nothing.
                steps = [("warmup", None, None)] + [
                    ("adversarial", 0.5, 0.6),
                    ("adversarial", 0.7, None),
                ] * adversarial
                with open(os.path.join(folder, name, "events.jsonl"), "w", encoding="utf-8") as file:
                    for phase, own, held_out in steps:
                        event = {
                            "event": "step",
                            "phase": phase,
                            "pair_accuracy": own,
                            "pair_accuracy_heldout": held_out,
                        }
                        file.write(json.dumps(event) + "\n")
            run = subprocess.run(
                [sys.executable, os.path.join(FOLDER, "table"), folder],
                capture_output=True,
                text=True,
                check=True,
            )
            self.assertEqual(
                run.stdout.splitlines()[2:],
                [
                    "| zero-shot |  | 80.0 % | 3.000 |  |  |  |",
                    "| C0 `ce`, f32 | 1 | 91.5 % | 0.250 | 62 s | - | - |",
                    "| C1 `rloo`, f32 | 2 | 90.0 % (warm-up's end 87.0 %) | 0.250 | 62 s | 0.60, 0.60 "
                    "| 50 %, 75 % |",
                ],
            )
            empty = os.path.join(folder, "empty")
            run = subprocess.run(
                [sys.executable, os.path.join(FOLDER, "table"), empty],
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertNotEqual(run.returncode, 0)


if __name__ == "__main__":
    unittest.main()
