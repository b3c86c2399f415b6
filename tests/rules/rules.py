"""The rules every source file keeps: who may include whom (docs/design.md), what no file may hold, and that a
page names no file that is not there.

usage: rules.py ROOT    prints one line a broken rule, FILE:LINE: what is wrong; exit code 1 when there is one
"""

import glob
import os
import re
import sys

SOURCE_ENDINGS = (".h", ".cc", ".cuh", ".cu")
TEXT_ENDINGS = SOURCE_ENDINGS + (".py", ".txt", ".cmake", ".toml", ".json", ".md", ".sh", "")
LEFT_OUT = {"build", "runs", "__pycache__"}
FOLDERS = ("core", "cpu", "cuda", "model", "train", "bench", "tests")

# Which folders a folder may include. Dependencies point one way; cpu and cuda never meet outside a root.
MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "model": {"core", "model"},
    "train": {"core", "model", "train"},
    "bench": set(FOLDERS) - {"tests", "cpu", "cuda"} | {"bench"},
    "tests": set(FOLDERS) - {"bench", "cpu", "cuda"} | {"tests"},
}
# The composition roots, the only places that name concrete backends: of the program, the benches, the tests.
# A backend's own tests (tests/cpu, tests/softgpu) may look inside it.
ROOTS = (
    (re.compile(r"train/main\.cc"), {"cpu", "cuda"}),
    (re.compile(r"(bench|tests)/support/.*"), {"cpu", "cuda"}),
    (re.compile(r"(bench|tests)/cpu/.*"), {"cpu"}),
    (re.compile(r"(bench|tests)/(cuda|softgpu)/.*"), {"cuda"}),
)
# Sub-folders with a shorter list: pattern of the including file, pattern of what of ours it may include.
NARROW = (
    (re.compile(r"cuda/kernels/"), re.compile(r"cuda/device/"), "cuda/kernels includes cuda/device only"),
    (
        re.compile(r"cuda/standalone/"),
        re.compile(r"cuda/(kernels|device|standalone)/"),
        "cuda/standalone includes cuda/kernels and cuda/device only",
    ),
    (
        re.compile(r"cuda/device/"),
        re.compile(r"cuda/device/|core/dtype\.h$"),
        "cuda/device includes cuda/device and core/dtype.h only",
    ),
    (
        re.compile(r"tests/reference/"),
        re.compile(r"tests/reference/"),
        "tests/reference includes the standard library only",
    ),
)
# Outside headers that belong to one place: pattern of the header, of the files that may see it, the rule.
OUTSIDE = (
    (re.compile(r"nccl"), re.compile(r"cuda/(runtime/nccl|softgpu/)|tests/softgpu/"), "only the NCCL communicator (and its stand-in) sees NCCL"),
    (
        re.compile(r"(cublas|cudnn)"),
        re.compile(r"cuda/(runtime|softgpu)/|tests/softgpu/"),
        "only cuda/runtime (and their stand-ins) sees cuBLASLt and cuDNN",
    ),
    (
        re.compile(r"(cuda[_a-zA-Z0-9]*\.h|cuda/|cooperative_groups|mma\.h|vector_types\.h)"),
        re.compile(r"cuda/|(bench|tests)/(cuda|softgpu|support)/"),
        "CUDA headers stay in cuda/",
    ),
    (
        re.compile(r"(nlohmann/(?!json_fwd\.hpp)|CLI/|toml\+\+/|toml\.hpp)"),
        re.compile(r".*\.cc$"),
        "json, CLI11 and toml++ are included from .cc files only: they cost seconds a file",
    ),
)
STANDARD = re.compile(r"[a-z0-9_]+$")  # <vector>, <cmath>: no folder, no ending

INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
BACKEND_CONDITION = re.compile(r"\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|GT_GPU|NVCC)")
# Spelled in pieces, so that this file does not break its own rule.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
# In a page: [text](target), and a file or folder of ours between backticks or in a fenced block. A word in capitals
# (FAMILY) or a star stands for anything.
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
NAMED = re.compile(r"(?<![\w./<>$~*-])((?:" + "|".join(FOLDERS + ("tools", "docs")) + r")/[\w.*/-]*\w)")
ANYTHING = re.compile(r"\b[A-Z]{2,}(?=[_./]|$)|\*")
MACHINE_PATH = re.compile(r"(?:^|[^A-Za-z0-9_.~}])/(?:work|farm|root|home|Users)/")


def files(root):
    """Every text file of the tree, as a path from the root with forward slashes, sorted."""
    found = []
    for folder, names, leaves in os.walk(root):
        names[:] = sorted(name for name in names if name not in LEFT_OUT and name != ".git")
        for leaf in leaves:
            if os.path.splitext(leaf)[1] in TEXT_ENDINGS and leaf not in ("LICENSE", ".git"):
                path = os.path.join(folder, leaf)
                if not os.path.islink(path):
                    found.append(os.path.relpath(path, root).replace(os.sep, "/"))
    return sorted(found)


def may_include(path, target):
    """None when the project file `path` may include the project file `target`, else the rule it breaks."""
    for including, allowed, rule in NARROW:
        if including.match(path):
            return None if allowed.match(target) else rule
    top, wanted = path.split("/")[0], target.split("/")[0]
    allowed = set(MAY_INCLUDE.get(top, ()))
    for pattern, more in ROOTS:
        if pattern.fullmatch(path):
            allowed |= more
    if wanted in allowed:
        return None
    if top in ("bench", "tests") and wanted in ("cpu", "cuda"):
        return f"{top} names backends in {top}/support only"
    return f"{top} may include {', '.join(sorted(allowed))}, not {wanted}"


def check_includes(root, path, lines):
    """(line number, message) for every include of one source file that breaks a rule."""
    for number, line in enumerate(lines, 1):
        if path.startswith("core/") and BACKEND_CONDITION.match(line):
            yield number, "core has no #if on a backend"
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, target = match.groups()
        ours = target.split("/")[0] in FOLDERS and os.path.isfile(os.path.join(root, target))
        if quote == '"' and not ours:
            yield number, f'"{target}" is no file of the project: quoted includes are paths from the root'
        elif quote == "<" and ours:
            yield number, f"<{target}> is ours: write it in quotes"
        elif ours:
            rule = may_include(path, target)
            if rule:
                yield number, f'"{target}": {rule}'
        else:
            for header, place, rule in OUTSIDE:
                if header.match(target) and not place.match(path):
                    yield number, f"<{target}>: {rule}"
            if path.startswith("tests/reference/") and not STANDARD.match(target):
                yield number, f"<{target}>: tests/reference includes the standard library only"


def check_text(lines):
    """(line number, message) for every line that no file of the project may hold."""
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            yield number, "a note on unfinished work: finish it, or say in docs/ what is missing"
        if MACHINE_PATH.search(line):
            yield number, "an absolute path of somebody's machine"


def check_names(root, path, lines):
    """(line number, message) for every link and every name of a file in a page that leads nowhere."""
    fenced = False
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        for target in LINK.findall(line):
            file = target.split("#")[0]
            if file and "://" not in file and not os.path.exists(os.path.join(root, os.path.dirname(path), file)):
                yield number, f"the link to {target} leads nowhere"
        for code in [line] if fenced else CODE.findall(line):
            for name in NAMED.findall(code):
                if not glob.glob(os.path.join(glob.escape(root), ANYTHING.sub("*", name))):
                    yield number, f"{name} is not there"


def check(root):
    """Every broken rule under `root` as 'FILE:LINE: message'."""
    broken = []
    for path in files(root):
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
        found = list(check_text(lines))
        if path.endswith(SOURCE_ENDINGS) and path.split("/")[0] in FOLDERS:
            found += check_includes(root, path, lines)
        if path.endswith(".md"):
            found += check_names(root, path, lines)
        broken += [f"{path}:{number}: {message}" for number, message in sorted(found)]
    return broken


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    broken = check(sys.argv[1])
    for line in broken:
        print(line)
    sources = [path for path in files(sys.argv[1]) if path.endswith(SOURCE_ENDINGS)]
    if not sources:
        sys.exit(f"{sys.argv[1]}: no source file found")
    print(f"{len(sources)} sources, {len(broken)} broken rules")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
