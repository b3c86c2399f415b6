"""bench/experiments/stories: no story is in two splits, the windows are what the page says, the table says what the runs say."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
FOLDER = os.path.join(ROOT, "bench", "experiments", "stories")

# Stands for `gantrain tokenize`: a word is one token, and so is a line's end.
TOKENIZE = """#!{python}
import json, sys
assert sys.argv[1:] == ["tokenize", "--model", "model.bin"], sys.argv
for line in sys.stdin:
    text = json.loads(line)
    print([0] * (1 + text.count(" ") + 2 * text.count("\\n")))
"""


class Prepare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.program = os.path.join(self.folder, "gantrain")
        with open(self.program, "w", encoding="utf-8") as file:
            file.write(TOKENIZE.replace("{python}", sys.executable))
        os.chmod(self.program, os.stat(self.program).st_mode | stat.S_IXUSR)

    def prepare(self, text, *words):
        path = os.path.join(self.folder, "text.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        command = [sys.executable, os.path.join(FOLDER, "prepare"), "model.bin", path, self.folder, *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GANTRAIN": self.program}, check=False)

    def items(self, split):
        with open(os.path.join(self.folder, split + ".jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @staticmethod
    def story(n, words=100, first="Once upon a time"):
        return first + "".join(f" s{n}w{i}" for i in range(4, words))

    def test_windows_lie_in_one_story_and_stories_in_one_split(self):
        text = "\n\n".join(self.story(n) for n in range(12))
        done = self.prepare(text, "--train", "9", "--valid", "3", "--test", "6")
        self.assertEqual(done.returncode, 0, done.stderr)
        stories, prompts = {}, []
        for split, count, stride in (("test", 6, 24), ("valid", 3, 24), ("train", 9, 20)):
            items = self.items(split)
            self.assertEqual(len(items), count)
            starts = {}
            for item in items:
                whole = (item["prompt"] + item["completion"]).split(" ")
                self.assertEqual(len(item["prompt"].split(" ")), 16)
                self.assertEqual(len(whole), 48)
                self.assertTrue(item["completion"].startswith(" "))
                named = {word.split("w")[0] for word in whole if word.startswith("s") and "w" in word}
                self.assertEqual(len(named), 1, "a window over a story's end")
                story = named.pop()
                self.assertEqual(stories.setdefault(story, split), split)
                first = whole[0].rpartition("w")[2]
                starts.setdefault(story, []).append(int(first) if first.isdigit() else 0)
                prompts.append(item["prompt"])
            for places in starts.values():
                self.assertEqual(places, list(range(0, stride * len(places), stride)))
        self.assertEqual(len(set(prompts)), len(prompts))

    def test_only_a_sure_beginning_begins_a_split(self):
        # The second paragraph opens like a story and may belong to the first.
        text = "\n\n".join((self.story(0), self.story(1, first="One day, a"), self.story(2), self.story(3)))
        self.assertEqual(self.prepare(text, "--train", "1", "--valid", "1", "--test", "1").returncode, 0)
        used = [self.items(split)[0]["completion"].split("w")[0] for split in ("test", "valid", "train")]
        self.assertEqual(used, [" s0", " s2", " s3"])

    def test_inputs_come_once_and_twice_encoded_quotes_are_mended(self):
        twice = self.story(1).replace(" s1w30", " \u00e2\u20ac\u0153s1w30\u00e2\u20ac")
        other = self.story(2).replace(" s2w30", " s2w30\u00e9")
        text = "\n\n".join((self.story(0), self.story(0), twice, other, self.story(3), self.story(4)))
        done = self.prepare(text, "--train", "1", "--valid", "3", "--test", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(all("s0w" in item["completion"] for item in self.items("test")))
        self.assertIn(' "s1w30"', self.items("valid")[0]["completion"])
        self.assertIn("s3w", self.items("train")[0]["completion"])

    def test_a_text_that_is_too_short_is_an_error(self):
        done = self.prepare(self.story(0), "--train", "5", "--valid", "1", "--test", "1")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the stories end after 0 of 1 items for valid", done.stderr)


class Table(unittest.TestCase):
    def test_differences_are_taken_seed_by_seed(self):
        def run(arm, seed, ce, judge, status="done"):
            return f"tokens,{arm},{seed},{status},{ce},640,1,{judge},0.8\n"

        runs = [run("C0", 1, 1.8, 0.60), run("C0", 2, 1.9, 0.64), run("C1", 1, 1.9, 0.61), run("C1", 2, 2.0, 0.65)]
        runs.append(run("C1", 3, 9.0, 0.9, "failed"))
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "results.csv"), "w", encoding="utf-8") as file:
                file.write("budget,arm,seed,status,ce,parameters_trained,temperature,judge_accuracy,distinct_3\n" + "".join(runs))
            command = [sys.executable, os.path.join(FOLDER, os.pardir, "table"), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            other = subprocess.run([*command, "--base", "C9"], capture_output=True, text=True, check=False)
            with open(os.path.join(folder, "results.csv"), "w", encoding="utf-8") as file:
                file.write("arm,seed,status,ce,parameters_trained,temperature,label_likelihood\nC0,1,done,0.5,10,,0.9\nC1,1,done,0.4,20,,0.925\n")
            labels = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            wrong = subprocess.run([*command, "--figures", "bleurt"], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 4)
        self.assertEqual(lines[2], "| C0 | 2 | 640 | 1 | 1.8500 [1.8000, 1.9000] |  | 0.620 [0.600, 0.640] |  | 0.800 [0.800, 0.800] |")
        self.assertIn("| 1.9500 [1.9000, 2.0000] | +0.1000 ± 0.0000 | 0.630 [0.610, 0.650] | +0.010 ± 0.000 |", lines[3])
        self.assertIn("no arm C9", other.stderr)
        # A task with labels has no temperature, judge or text.
        self.assertEqual(labels[0], "| arm | seeds | parameters | cross-entropy | less C0's | right labels, % | less C0's |")
        self.assertEqual(labels[3], "| C1 | 1 | 20 | 0.4000 | -0.1000 | 92.5 | +2.5 |")
        self.assertIn("no figure bleurt", wrong.stderr)


# Stands for `gantrain train` and `gantrain eval`: judges name 0.6 of a prompt's answers, 0.5 of those drawn, plus the seed's hundredth.
ODDS = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    print(" ".join(words), file=calls)
if words[0] == "train":
    folder = [word[7:] for word in words if word.startswith("output=")][0]
    os.makedirs(folder)
    file, result = os.path.join(folder, "summary.json"), {{}}
else:
    seed = int(words[words.index("--run") + 1].split("seed-")[1].split("/")[0])
    file, row = words[words.index("--json") + 1], {{}}
    drawn = "--choose-temperature" in words
    for name in ("judge_accuracy", "judge_ranking", "feature_judge_accuracy", "feature_judge_ranking"):
        row[name] = (0.5 if drawn else 0.6) + 0.01 * seed
    row["distinct_3"] = 0.8
    if drawn and words[words.index("--choose-temperature") + 1] != "0":
        row["chosen_ce_gain"] = 0.02 + 0.001 * seed
    row["temperature"] = 1.0
    result = {{"cost": {{"parameters_trained": 640}}, "arms": [{{"ce": 1.7, "temperatures": [row]}}]}}
with open(file, "w") as out:
    json.dump(result, out)
"""


class Odds(unittest.TestCase):
    def test_the_table_says_what_the_runs_say_and_nothing_runs_twice(self):
        with tempfile.TemporaryDirectory() as folder:
            program, calls = os.path.join(folder, "gantrain"), os.path.join(folder, "calls")
            with open(program, "w", encoding="utf-8") as file:
                file.write(ODDS.format(python=sys.executable))
            os.chmod(program, os.stat(program).st_mode | stat.S_IXUSR)
            command = [sys.executable, os.path.join(FOLDER, "odds"), "m.bin", "data", os.path.join(folder, "out"), "--seeds", "1,2,3"]
            command += ["--temperatures", "1,0", "threads=2"]
            for _ in range(2):
                ran = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "GANTRAIN": program, "CALLS": calls}, check=False
                )
                self.assertEqual(ran.returncode, 0, ran.stderr)
                lines = ran.stdout.splitlines()
                self.assertEqual(
                    lines[2], "| all | 3 | 640 | 1 | 1.7000 [1.7000, 1.7000] |  | " + "0.620 [0.610, 0.630] |  | " * 4 + "0.800 [0.800, 0.800] |"
                )
                self.assertEqual(
                    lines[3],
                    "| 1 of 8 at 1 | 3 | 640 | 1 | 1.6780 [1.6770, 1.6790] | -0.0220 ± 0.0025 | "
                    + "0.520 [0.510, 0.530] | -0.100 ± 0.000 | " * 4
                    + "0.800 [0.800, 0.800] |",
                )
                self.assertTrue(lines[4].startswith("| 1 of 8 at 0 | 3 | 640 | 1 | - | - | 0.520"), lines[4])
            with open(calls, encoding="utf-8") as file:
                called = file.read().splitlines()
            self.assertEqual(len(called), 3 * 4)
            self.assertTrue(all("threads=2" in line for line in called if line.startswith("train")))


if __name__ == "__main__":
    unittest.main()
