"""tools/show_skips.py: every skipped test is listed with its reason, and ctest's summary stays last and whole."""

import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "show_skips.py")

OUTPUT = """\
    Start 1: A.B
1/3 Test #1: A.B ...***Skipped   0.00 sec
{}
Total Test time (real) =   0.12 sec

The following tests did not run:
\t  1 - A.B (Skipped)
"""

RESULTS = """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="(empty)" tests="4" failures="1" skipped="3">
  <testcase name="A.B" status="notrun"><skipped message="x"/><system-out>[ RUN      ] A.B
/some/place/a_test.cc:2: Skipped
data/x is missing; \x01set GANTRAIN_DATA

[  SKIPPED ] A.B (0 ms)
</system-out></testcase>
  <testcase name="script" status="notrun"><skipped/><system-out>first line
SKIP: no clang-format 14
</system-out></testcase>
  <testcase name="silent" status="notrun"><skipped/><system-out/></testcase>
  <testcase name="A.C" status="run"><system-out>A.C says Skipped in passing
</system-out></testcase>
  <testcase name="A.D" status="fail"><failure/><system-out>a.cc:3: Skipped
no, failed</system-out></testcase>
</testsuite>
"""


def shown(results, summary="75% tests passed, 1 tests failed out of 4"):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "results.xml")
        if results is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(results)
        run = subprocess.run(
            [sys.executable, SCRIPT, path],
            input=OUTPUT.format(summary),
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout


class ShowSkips(unittest.TestCase):
    def test_skips_are_listed_before_the_summary(self):
        text = shown(RESULTS)
        self.assertIn(
            "\nSkipped: 3\n  A.B: data/x is missing; ?set GANTRAIN_DATA\n  script: no clang-format 14\n"
            "  silent: gave no reason\n\n75% tests passed",
            text,
        )
        self.assertTrue(
            text.endswith(OUTPUT.format("75% tests passed, 1 tests failed out of 4").split("sec\n", 1)[1])
        )
        self.assertTrue(text.startswith("    Start 1: A.B\n1/3"))

    def test_no_results_are_said_not_hidden(self):
        self.assertIn("could not be read", shown(None))
        self.assertIn("could not be read", shown("<testsuite"))

    def test_output_without_a_summary_passes_through(self):
        self.assertEqual(shown(RESULTS, "ctest: cannot go on"), OUTPUT.format("ctest: cannot go on"))


if __name__ == "__main__":
    unittest.main()
