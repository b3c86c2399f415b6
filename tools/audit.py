"""Compile, read and judge every kernel of cuda/ops: see tools/audit and docs/audit.md."""

import argparse
import glob
import json
import os
import re
import sys
import tomllib

import audit_counts
import audit_machine

# How a page's table is marked, so that a run can replace it.
BEGIN, END = "<!-- audit: made by tools/audit --write -->", "<!-- end of audit -->"
COUNTS_BEGIN, COUNTS_END = "<!-- counts: made by tools/audit --build --write -->", "<!-- end of counts -->"
AT_LEAST = ("occupancy", "mma_share", "mma_per_load", "wide", "hgmma", "tma")


def wide_share(kind, m):
    """Share of the accesses (in a loop) or of the bytes (in a body) to global memory that have 16 bytes or more; 1 for none."""
    total = good = 0
    for op in ("LDG", "STG", "LDGSTS"):
        for bits in (8, 16, 32, 64, 128, 256):
            n = m.get(f"{op}.{bits}", 0) * (1 if kind == "loop" else bits)
            total += n
            good += n if bits >= 128 else 0
    return good / total if total else 1.0


def measures(row, dynamic):
    """What the thresholds are held against."""
    m = row["hot"]
    mma = m.get("HMMA", 0) + m.get("HGMMA", 0)
    loads = m.get("LDSM", 0)
    return {
        "registers": row["registers"],
        "spill": row["spill"],
        "stack": row["stack"],
        "occupancy": audit_machine.occupancy(row, row["arch"], dynamic)[1],
        "wide": wide_share(row["hot_kind"], m),
        "subword": sum(m.get(f"{op}.{bits}", 0) for op in ("LDG", "STG") for bits in (8, 16)),
        "local": (m.get("LDL", 0) + m.get("STL", 0)) if row["hot_kind"] == "loop" else 0,
        "f64": row["body"].get("F64", 0),
        "atomics": max((x.get("ATOM", 0) for x in row["loops"]), default=0),
        "hmma": row["body"].get("HMMA", 0),
        "hgmma": m.get("HGMMA", 0),
        "tma": row["body"].get("UTMALDG", 0),
        "mma_share": mma / m["instructions"],
        "mma_per_load": mma / loads if loads else float("inf"),
        "barriers": m.get("BAR", 0) if row["hot_kind"] == "loop" else 0,
        "address_share": m.get("ADDRESS", 0) / m["instructions"],
    }


def wanted(family):
    """Thresholds as numbers; `wide` means all of the accesses in a loop and half of the bytes in a body."""
    return {k: v for k, v in family.items() if k not in ("name", "kernels", "arch", "why", "wide", "dynamic_shared")}


def read_thresholds(path):
    with open(path, "rb") as file:
        given = tomllib.load(file)
    default = given["default"]
    for entry in given.get("family", []):
        unknown = set(entry) - set(default) - {"name", "kernels", "arch", "why"}
        if unknown or "why" not in entry or "kernels" not in entry:
            sys.exit(f"{path}: family {entry.get('name')}: it needs kernels and why, and knows nothing of {sorted(unknown)}")
    for entry in given.get("miss", []):
        if isinstance(entry.get("kernels"), str):
            entry["kernels"] = [entry["kernels"]]
        if set(entry) != {"kernels", "check", "got", "why"} or entry["check"] not in default:
            sys.exit(f"{path}: a miss has kernels, check (one of {', '.join(default)}), got and why, not {entry}")
    return default, given.get("family", []), given.get("miss", [])


def judge(rows, default, families, known):
    """Sets row['family'] and row['misses'] (text, whether it is known); returns lines of what is wrong with the file."""
    used, excused = set(), set()
    for row in rows:
        family = {**default, "name": "default"}
        for number, entry in enumerate(families):
            if row["arch"] == entry.get("arch", row["arch"]) and re.fullmatch(entry["kernels"], row["name"]):
                family, _ = {**default, **entry}, used.add(number)
                break
        got = measures(row, family["dynamic_shared"])
        row["family"], row["measures"], row["misses"] = family["name"], got, []
        limits = wanted(family)
        if family["wide"]:
            limits["wide"] = 1.0 if row["hot_kind"] == "loop" else 0.5
        if row["shared"] + family["dynamic_shared"] > audit_machine.LIMITS[row["arch"]]["block_shared"]:
            row["misses"].append((f"shared memory: {row['shared'] + family['dynamic_shared']} bytes is more than a block may have", False))
        for check, limit in limits.items():
            value, least = got[check], check in AT_LEAST
            if check == "occupancy" and not row["threads"]:
                continue
            if value >= limit if least else value <= limit:
                continue
            text = f"{check}: got {value:.4g}, expected at {'least' if least else 'most'} {limit:.4g}"
            is_known = False
            for number, entry in enumerate(known):
                for pattern in entry["kernels"]:
                    if entry["check"] == check and re.fullmatch(pattern, row["name"]):
                        excused.add((number, pattern))
                        is_known = value >= entry["got"] if least else value <= entry["got"]
            row["misses"].append((text, is_known))
    wrong = [f"family '{f['name']}': {f['kernels']} matches no kernel" for n, f in enumerate(families) if n not in used]
    wrong += [
        f"miss {pattern}, {k['check']}: nothing misses it any more: remove the pattern"
        for n, k in enumerate(known)
        for pattern in k["kernels"]
        if (n, pattern) not in excused
    ]
    return wrong


def span(values, form="{:g}"):
    low, high = min(values), max(values)
    return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"


def table(rows, release):
    """The page's table: one line for each kernel template and architecture, over its instantiations."""
    lines = [f"Compiled with nvcc {release}, `-O3`, for sm_80, sm_90a and sm_100, without a warning.", ""]
    for arch in audit_machine.ARCHITECTURES:
        lines += [f"### sm_{arch}", "", "| kernel | instances | family | registers | spill B | shared B | threads | occupancy | hot | instructions | mma | ldmatrix | cp.async | 16-byte | misses |", "|" + "---|" * 15]  # fmt: skip
        groups = {}
        for row in rows:
            if row["arch"] == arch:
                groups.setdefault((row["name"].split("<")[0], row["family"]), []).append(row)
        for (name, family), group in sorted(groups.items()):
            hot = [r["hot"] for r in group]
            misses = sorted({text.split(":")[0] for r in group for text, _ in r["misses"]})
            cells = [
                f"`{name}`", len(group), family, span([r["registers"] for r in group]), span([r["spill"] for r in group]),
                span([r["shared"] for r in group]), span([r["threads"] for r in group]),
                span([r["measures"]["occupancy"] * 100 for r in group], "{:.0f}") + " %",
                "loop" if any(r["hot_kind"] == "loop" for r in group) else "body",
                span([h["instructions"] for h in hot]), span([r["measures"]["mma_share"] * 100 for r in group], "{:.0f}") + " %",
                span([h.get("LDSM", 0) for h in hot]), span([h.get("LDGSTS", 0) for h in hot]),
                span([r["measures"]["wide"] * 100 for r in group], "{:.0f}") + " %", ", ".join(misses) or "none",
            ]  # fmt: skip
            lines.append("| " + " | ".join(str(c) for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def replace_section(page, begin, end, text):
    """The page with the part between the marks replaced; exits where the marks are missing."""
    if begin not in page or end not in page:
        sys.exit(f"docs/audit.md: the marks '{begin}' and '{end}' are missing")
    head, rest = page.split(begin, 1)
    return head + begin + "\n\n" + text.strip() + "\n\n" + end + rest.split(end, 1)[1]


def options():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    cache = os.path.join(os.environ.get("GANTRAIN_CACHE", os.path.expanduser("~/.cache/gantrain")), "audit")
    p = argparse.ArgumentParser(prog="tools/audit", description="Audit the machine code of every kernel.")
    p.add_argument("--write", action="store_true", help="put the tables into docs/audit.md")
    p.add_argument("--check", action="store_true", help="fail where docs/audit.md has another table than this run's")
    p.add_argument("--json", metavar="FILE", help="write everything that was read, as JSON")
    p.add_argument("--strict", action="store_true", help="known misses fail as well")
    p.add_argument("--kernel", metavar="REGEX", help="print what is known of the kernels whose name matches, and stop")
    p.add_argument("--build", metavar="DIR", help="count a step on the software GPU of this build as well, against cuda/counts.toml")
    p.add_argument("--thresholds", metavar="FILE", default=os.path.join(root, "cuda/audit.toml"), help=argparse.SUPPRESS)
    p.add_argument("--sources", metavar="GLOB", default="cuda/ops/*.cu", help="sources, from --root (default cuda/ops/*.cu)")
    p.add_argument("--root", default=root, help=argparse.SUPPRESS)
    p.add_argument("--cache", default=cache, help="where compiled kernels are kept by content (default %(default)s)")
    return p.parse_args()


def main():
    o = options()
    sources = sorted(os.path.relpath(p, o.root) for p in glob.glob(os.path.join(o.root, o.sources)))
    if not sources:
        sys.exit(f"audit: no source matches {o.sources} under {o.root}")
    try:
        rows, release = audit_machine.audit_sources(o.root, sources, audit_machine.ARCHITECTURES, o.cache)
    except RuntimeError as error:
        sys.exit(f"audit: {error}")
    wrong = judge(rows, *read_thresholds(o.thresholds))
    if o.kernel:
        for row in rows:
            if re.search(o.kernel, row["name"]):
                print(json.dumps({k: row[k] for k in row if k not in ("mangled", "body")}, indent=1))
        return
    fresh = 0
    for row in rows:
        for text, known in row["misses"]:
            fresh += not known
            print(f"{'known miss' if known else 'MISS'}: sm_{row['arch']} {row['name']} ({row['family']}): {text}")
    for line in wrong:
        print(f"WRONG: {o.thresholds}: {line}")
    if o.json:
        with open(o.json, "w", encoding="utf-8") as file:
            json.dump({"nvcc": release, "kernels": rows}, file, indent=1)
    counts = None
    if o.build:
        limits = os.path.join(o.root, "cuda/counts.toml")
        counts, count_misses, notes = audit_counts.run(o.root, os.path.abspath(o.build), limits)
        for text, known in count_misses:
            fresh += not known or o.strict
            print(f"{'known miss' if known else 'MISS'}: {text}")
        for note in notes:
            print(f"{limits}: {note}")
    page_path = os.path.join(o.root, "docs/audit.md")
    stale = False
    if o.write or o.check:
        with open(page_path, encoding="utf-8") as file:
            page = file.read()
        made = replace_section(page, BEGIN, END, table(rows, release))
        if counts:
            made = replace_section(made, COUNTS_BEGIN, COUNTS_END, counts)
        stale = made != page
        if stale and o.write:
            with open(page_path, "w", encoding="utf-8") as file:
                file.write(made)
            stale = False
        if stale:
            print("STALE: docs/audit.md has another table than this run's: run tools/audit --write and commit the page")
    misses = sum(len(r["misses"]) for r in rows)
    print(f"{len(rows)} kernels of {len(sources)} sources for sm_{', sm_'.join(audit_machine.ARCHITECTURES)}, no warning; "
          f"{misses} misses, {fresh} of them new")  # fmt: skip
    sys.exit(1 if fresh or wrong or stale or (o.strict and misses) else 0)


if __name__ == "__main__":
    main()
