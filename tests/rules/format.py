"""Every C++ and CUDA source is formatted by clang-format 14 with the project's .clang-format.

usage: format.py ROOT [FILE...]    exit code 0 formatted, 1 not, 77 skipped (no clang-format 14)
"""

import os
import re
import shutil
import subprocess
import sys

import rules

MAJOR = "14"  # another release lays out some lines differently


def find_clang_format():
    """The path of a clang-format of release MAJOR, or None."""
    for name in (f"clang-format-{MAJOR}", "clang-format"):
        path = shutil.which(name)
        if path:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.search(r"version (\d+)\.", said)
            if match and match.group(1) == MAJOR:
                return path
    return None


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.strip())
    root = sys.argv[1]
    sources = sys.argv[2:] or [path for path in rules.files(root) if path.endswith(rules.SOURCE_ENDINGS)]
    if not sources:
        sys.exit(f"{root}: no source file found")
    program = find_clang_format()
    if program is None:
        print(f"SKIP: clang-format {MAJOR} is not installed (tools/setup installs it)")
        sys.exit(77)
    run = subprocess.run(
        [program, "--dry-run", "--Werror", "--style=file", *sources],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    bad = sorted(set(re.findall(r"^(.+?):\d+:\d+: error:", run.stderr, re.MULTILINE)))
    if run.returncode == 0:
        print(f"{len(sources)} sources are formatted")
        return
    print("\n".join(bad) or run.stderr)
    print(f"{len(bad)} of {len(sources)} sources are not formatted: clang-format-14 -i FILE mends one")
    sys.exit(1)


if __name__ == "__main__":
    main()
