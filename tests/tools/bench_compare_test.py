"""tools/bench_compare on made-up result files: verdicts, refusals, and the p values against known ones."""

import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench_compare"
CONTEXT = {"device": "cpu: X", "threads": "2", "build": "Release", "compiler": "GNU 12", "commit": "abc"}


def module():
    loader = importlib.machinery.SourceFileLoader("bench_compare", str(TOOL))
    spec = importlib.util.spec_from_loader("bench_compare", loader)
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


def result(cases, context=CONTEXT, **more):
    runs = []
    for name, times in cases.items():
        for i, time in enumerate(times):
            runs.append(
                {"name": name, "run_name": name, "run_type": "iteration", "repetition_index": i, "iterations": 1,
                 "real_time": time, "cpu_time": time, "time_unit": "us", "peak_memory_bytes": 1000 * time} | more
            )
        runs.append({"name": name + "_mean", "run_name": name, "run_type": "aggregate", "real_time": 1e9,
                     "time_unit": "us"})
    return {"context": context, "benchmarks": runs}


class BenchCompare(unittest.TestCase):
    def run_tool(self, a, b, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, content in (("a.json", a), ("b.json", b)):
                paths.append(str(pathlib.Path(folder) / name))
                pathlib.Path(paths[-1]).write_text(
                    content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
                )
            done = subprocess.run([sys.executable, TOOL, *paths, *arguments], capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr

    def test_a_clear_change_is_seen_and_noise_is_not(self):
        times = [100.0 + i for i in range(10)]
        a = result({"slow": times, "same": times, "fast": times})
        b = result({"slow": [t + 50 for t in times], "same": [t + 0.5 for t in times], "fast": [t / 2 for t in times]})
        code, out, _ = self.run_tool(a, b)
        self.assertEqual(code, 1)
        verdicts = {line.split("|")[1].strip(): line.split("|")[6].strip() for line in out.splitlines() if line.startswith("| s") or line.startswith("| f")}
        self.assertEqual(verdicts, {"slow": "slower", "same": "same", "fast": "faster"})
        self.assertIn("1.478", out)  # the ratio of the medians 154.5 and 104.5
        self.assertEqual(self.run_tool(b, b)[0], 0)
        # Faster alone is no failure; a threshold above the change makes it none.
        self.assertEqual(self.run_tool(result({"x": times}), result({"x": [t / 2 for t in times]}))[0], 0)
        self.assertIn("0 changed", self.run_tool(result({"x": times}), result({"x": [t * 1.5 for t in times]}), "--min-change", "0.6")[1])

    def test_few_repetitions_give_no_verdict(self):
        code, out, _ = self.run_tool(result({"x": [1.0, 1.1]}), result({"x": [9.0, 9.1]}))
        self.assertEqual(code, 0)
        self.assertIn("too few repetitions", out)

    def test_counters(self):
        times = [100.0 + i for i in range(10)]
        code, out, _ = self.run_tool(result({"x": times}), result({"x": [2 * t for t in times]}), "--counter", "peak_memory_bytes")
        self.assertEqual(code, 1)
        self.assertIn("more", out)

    def test_unlike_files_are_refused(self):
        a = result({"x": [1.0, 2.0]})
        for key in ("device", "threads", "build", "compiler"):
            code, _, error = self.run_tool(a, result({"x": [1.0, 2.0]}, CONTEXT | {key: "other"}))
            self.assertEqual(code, 2)
            self.assertIn(f"unlike {key}", error)
        without = {key: value for key, value in CONTEXT.items() if key != "build"}
        self.assertEqual(self.run_tool(a, result({"x": [1.0]}, without))[0], 2)
        self.assertEqual(self.run_tool(a, result({"y": [1.0]}))[0], 2)
        self.assertEqual(self.run_tool(a, "{")[0], 2)
        self.assertEqual(self.run_tool(a, "[]")[0], 2)
        # Another commit is what it is for.
        self.assertEqual(self.run_tool(a, result({"x": [1.0, 2.0]}, CONTEXT | {"commit": "def"}))[0], 0)

    def test_counts_of_the_software_gpu_are_refused(self):
        counts = {"context": CONTEXT, "benchmarks": [{"name": "x", "run_name": "x", "run_type": "iteration",
                                                      "label": "predicted/none", "bytes": 5}]}
        code, _, error = self.run_tool(counts, counts)
        self.assertEqual(code, 2)
        self.assertIn("predicted/none", error)

    def test_the_test_itself(self):
        tool = module()
        # Mann and Whitney 1947, table for n = m = 4: P(U <= 0) = .014, P(U <= 3) = .100; n = 3, m = 5: P(U <= 1) = .036.
        self.assertAlmostEqual(tool.exact_p(4, 4, 0), 2 / 70, places=12)
        self.assertAlmostEqual(tool.exact_p(4, 4, 3) / 2, 0.100, places=3)
        self.assertAlmostEqual(tool.exact_p(3, 5, 1) / 2, 0.036, places=3)
        self.assertAlmostEqual(tool.exact_p(3, 5, 14), tool.exact_p(3, 5, 1), places=12)
        self.assertEqual(tool.mann_whitney([1, 1, 1], [1, 1, 1]), 1.0)
        # Against a count of all orders.
        import itertools
        a, b = [1, 4, 6, 9], [2, 8, 10]
        u = tool.u_statistic(a, b)
        as_far = 0
        splits = list(itertools.combinations(sorted(a + b), len(a)))
        for chosen in splits:
            rest = [x for x in a + b if x not in chosen]
            as_far += abs(tool.u_statistic(chosen, rest) - 6) >= abs(u - 6)
        self.assertAlmostEqual(tool.mann_whitney(a, b), as_far / len(splits), places=12)
        # Many values: the approximation is near the exact p.
        c, d = [float(i) for i in range(20)], [i + 4.5 for i in range(20)]
        self.assertAlmostEqual(tool.mann_whitney(c, d), tool.mann_whitney(c + [100.0], d + [100.0]), delta=0.02)


if __name__ == "__main__":
    unittest.main()
