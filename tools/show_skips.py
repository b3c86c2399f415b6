"""Pass ctest's output through; just before its closing summary, list the skipped tests and their reasons.

usage: ctest --output-junit RESULTS ... | show_skips.py RESULTS
"""

import re
import sys
import xml.etree.ElementTree as ElementTree


def reason(output):
    """The line in which a skipped test says why: the one that follows gtest's 'Skipped' or starts with SKIP."""
    lines = [line.strip() for line in output.splitlines()]
    for i, line in enumerate(lines):
        if line.startswith("SKIP:"):
            return line[len("SKIP:") :].strip()
        if line.endswith(": Skipped"):
            said = [following for following in lines[i + 1 :] if following and not following.startswith("[")]
            if said:
                return said[0]
    return "gave no reason"


def skipped(path):
    """(name, reason) for every skipped test in ctest's JUnit file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = re.sub(
                r"[^\t\n\r\x20-\ufffd\U00010000-\U0010ffff]", "?", file.read()
            )  # XML takes no others
        cases = ElementTree.fromstring(text.replace('encoding="UTF-8"', "")).iter("testcase")
    except (OSError, ElementTree.ParseError) as error:
        return [("(the list could not be read)", str(error))]
    return [
        (case.get("name", "?"), reason(case.findtext("system-out") or ""))
        for case in cases
        if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled")
    ]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: show_skips.py RESULTS.xml < ctest's output")
    summary = []
    for line in sys.stdin:
        if summary or re.match(r"\d+% tests passed", line):
            summary.append(line)
        else:
            print(line, end="", flush=True)
    if not summary:
        return  # ctest never came to its summary: its own words are above
    tests = skipped(sys.argv[1])
    print(f"\nSkipped: {len(tests)}")
    for name, why in tests:
        print(f"  {name}: {why}")
    print("\n" + "".join(summary), end="", flush=True)


if __name__ == "__main__":
    main()
