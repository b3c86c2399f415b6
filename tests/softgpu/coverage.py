"""The part of docs/softgpu.md that lists what the software GPU covers, made from its source.

usage: coverage.py ROOT [--write]    without --write: exit code 1 where the document is not up to date
"""

import os
import re
import sys

BEGIN, END = "<!-- coverage: made by tests/softgpu/coverage.py --write -->", "<!-- end of coverage -->"


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def wrap(words):
    lines, line = [], ""
    for word in words:
        if line and len(line) + 1 + len(word) > 110:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join(lines + [line])


def instructions(folder):
    """[(family, [(instruction, [modifiers its decoder looks at])])] from the decode_* functions."""
    out = []
    for name in sorted(os.listdir(folder)):
        if not (name.startswith("exec_") and name.endswith(".cc")):
            continue
        text = read(os.path.join(folder, name))
        code = text[text.find("bool decode_") :]
        # Names are compared with the instruction's first word, or are the keys of a table of handlers.
        words = set(re.findall(r"\b(?:op|name|n|o) (?:==|!=) \"([a-z0-9_]+)\"", text))
        words |= set(re.findall(r"d\.name\(\) (?:==|!=) \"([a-z0-9_]+)\"", text))
        words -= {"eq", "equ", "ge", "geu", "e5m2", "e5m2x2", "f16x2"}  # comparisons and types, looked at as well
        words |= set(re.findall(r"^ +\{\"([a-z0-9_]+)\", ", text, re.MULTILINE))
        modifiers = sorted(set(re.findall(r"\bhas\(\"([^\"]+)\"\)", code)))
        out.append((name[5:-3], sorted(words), modifiers))
    return out


def entry_points(folder):
    every = re.findall(r"SOFTGPU_ENTRY\((\w+)\)", read(os.path.join(folder, "entry_points.inc")))
    defined = set()
    for name in os.listdir(folder):
        if name.endswith(".cc") and not name.startswith("cublaslt"):
            defined |= set(re.findall(r"SOFTGPU_EXPORT[^;{(]*?\b(\w+)\(", read(os.path.join(folder, name))))
    return sorted(e for e in every if e in defined), sorted(e for e in every if e not in defined)


def cublaslt(folder):
    """(functions of cuBLASLt that are there, those that name themselves and stop)"""
    done = re.findall(r"SOFTGPU_EXPORT[^;{(]*?\b(\w+)\(", read(os.path.join(folder, "cublaslt.cc")))
    return sorted(done), sorted(re.findall(r"^SOFTGPU_ENTRY\((\w+)\)", read(os.path.join(folder, "cublaslt_missing.cc")), re.MULTILINE))


def section(root):
    folder = os.path.join(root, "cuda/softgpu")
    special = re.findall(r"\{\"(%[a-z_.]+)\", Special::", read(os.path.join(folder, "decode.cc")))
    types = re.findall(r"\{\"([a-z0-9]+)\", \{'", read(os.path.join(folder, "decode.cc")))
    done, missing = entry_points(folder)
    driver = re.findall(r"strcmp\(name, \"(\w+)\"\)", read(os.path.join(folder, "driver.cc")))
    lines = [BEGIN, "", "### Instructions", ""]
    lines += ["By the file that executes them; the modifiers are those its decoder looks at, to take or to refuse", "them. A form that is not known stops with its text when it is reached.", ""]
    for family, words, modifiers in instructions(folder):
        lines.append(wrap([f"- **{family}**:"] + [f"`{w}`" for w in words] + (["with"] + [f"`.{m}`" for m in modifiers] if modifiers else [])))
    lines += ["", "Types: " + wrap([f"`.{t}`" for t in types]), "", "### Special registers", "", wrap([f"`{s}`" for s in special])]
    lines += ["", f"### Runtime entry points ({len(done)})", "", wrap([f"`{e}`" for e in done])]
    lines += ["", "Of the driver, by `cudaGetDriverEntryPoint`: " + wrap([f"`{d}`" for d in driver])]
    lines += ["", f"The other {len(missing)} that the runtime exports (`entry_points.inc`) name themselves and stop."]
    lt, lt_missing = cublaslt(folder)
    lines += ["", f"### cuBLASLt ({len(lt)})", "", wrap([f"`{e}`" for e in lt])]
    lines += ["", wrap(["Name themselves and stop:"] + [f"`{e}`" for e in lt_missing]), "", END]
    return "\n".join(lines)


def main():
    root = sys.argv[1]
    path = os.path.join(root, "docs/softgpu.md")
    text = read(path)
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{path}: the marks of the coverage list are missing")
    head, rest = text.split(BEGIN)
    want = head + section(root) + rest.split(END)[1]
    if "--write" in sys.argv:
        with open(path, "w", encoding="utf-8") as file:
            file.write(want)
    elif want != text:
        sys.exit(f"{path}: the coverage list is not up to date; run tests/softgpu/coverage.py . --write")
    print("coverage list is up to date")


main()
