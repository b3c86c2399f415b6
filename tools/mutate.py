"""Break kernels and launch code one place at a time and see that a test notices: tools/mutate, docs/mutations.md."""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import tomllib

import audit_machine
import mutate_ptx
import mutate_source

PROGRAMS = ("ops_test", "cuda_test")
FILTER = "*/cuda"
QUICK = ":".join(f"*{family}Ops.*/cuda" for family in ("Norm", "Embedding", "Optimizer", "Adversarial"))  # of the sample
FATBIN = b"\x50\xed\x55\xba"
BEGIN, END = "<!-- mutations: made by tools/mutate --write -->", "<!-- end of mutations -->"
STEPS = 20_000_000  # warp instructions a block may take; the tests' longest take less than a tenth
WANTED, WANTED_OF_SAMPLE = 0.95, 0.75  # a sample is small: it shows that the script works
SEEDS = (0, 3)


def digest(*parts):
    return hashlib.sha256("\0".join(str(p) for p in parts).encode()).hexdigest()


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def newer_ptx(data):
    """Whether a program's fat binaries hold PTX for more than compute_80 (layout: cuda/softgpu/fatbin.cc)."""
    at = data.find(FATBIN)
    while at >= 0:
        header, size = struct.unpack_from("<HQ", data, at + 6)
        entry, end = at + header, min(at + header + size, len(data) - 64)
        while entry < end:
            kind, _, head, payload, _, _, _, _, arch = struct.unpack_from("<HHIQIIHHI", data, entry)
            if kind == 1 and arch > 80:
                return True
            entry += max(64, head + payload)
        at = data.find(FATBIN, at + 4)
    return False


class Runner:
    """Test programs on the software GPU."""

    def __init__(self, root, build):
        self.root, self.build = root, build

    def run(self, program, arguments, arch, seed, ptx=None, dump=None, trace=False, cpu_seconds=600):
        """(exit status, everything that was printed). The limit is on processor time, so that a loaded machine changes nothing."""
        command = ["prlimit", f"--cpu={int(cpu_seconds)}", os.path.join(self.root, "tools/softgpu"), "--build", self.build,
                   "--arch", arch, "--seed", str(seed), "--threads", "1", "--steps", str(STEPS)]  # fmt: skip
        command += ["--ptx", ptx] if ptx else []
        command += ["--dump", dump] if dump else []
        command += ["--trace", "-"] if trace else []
        command += [program, "--gtest_color=no", "--gtest_brief=0", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd=self.build)
        return done.returncode, done.stdout.decode(errors="replace")


class Baseline:
    """What the tests do when nothing is broken: PTX of every module, and the tests that launch each kernel with their times."""

    def __init__(self, runner, folder, chosen=FILTER):
        self.modules = {}  # hash -> (arch, lines, {kernel: Kernel})
        self.tests = collections.defaultdict(dict)  # (arch, kernel) -> {(program, test): seconds}
        self.seconds = {}  # (program, test) -> seconds
        build = runner.build
        self.programs = {p: os.path.join(build, "bin", p) for p in PROGRAMS}
        libraries = [os.path.realpath(os.path.join(build, "softgpu", f"lib{n}.so.13")) for n in ("cudart", "cublasLt")]
        files = [*self.programs.values(), *libraries]
        self.chosen = chosen
        self.hash = digest(chosen, *(hashlib.sha256(read_bytes(f)).hexdigest() for f in files if os.path.exists(f)))
        folder = os.path.join(folder, self.hash[:16])
        # Copies, so that the build folder may change while this runs.
        runner.build = os.path.join(folder, "build")
        if not os.path.isdir(runner.build):
            part = runner.build + ".part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(os.path.join(build, "softgpu"), os.path.join(part, "softgpu"), symlinks=True)
            os.makedirs(os.path.join(part, "bin"))
            for program in self.programs.values():
                shutil.copy2(program, os.path.join(part, "bin"))
            os.replace(part, runner.build)
        self.programs = {p: os.path.join(runner.build, "bin", p) for p in PROGRAMS}
        for arch in ("80", "90"):
            dump = os.path.join(folder, arch)
            for name, program in list(self.programs.items())[: 1 if chosen != FILTER else None]:
                # A device of capability 9.0 takes the same PTX as one of 8.0 where there is none for compute_90a.
                if arch == "80" or newer_ptx(read_bytes(program)):
                    self.learn(runner, name, program, arch, dump)
            self.take(dump, arch)

    def learn(self, runner, name, program, arch, dump):
        log = os.path.join(dump, name + ".log")
        if not os.path.exists(log):  # else the same programs ran before
            os.makedirs(dump, exist_ok=True)
            status, out = runner.run(program, [f"--gtest_filter={self.chosen}"], arch, 0, dump=dump, trace=True)
            if status != 0:
                sys.exit(f"mutate: {program} fails before anything is broken (status {status}, --arch {arch}):\n{out[-3000:]}")
            with open(log + ".part", "w", encoding="utf-8") as file:
                file.write(out)
            os.replace(log + ".part", log)
        test, launched = None, set()
        for line in read(log).splitlines():
            if match := re.match(r"\[ RUN      \] (\S+)", line):
                test, launched = match.group(1), set()
            elif match := re.match(r"launch \d+ (\S+) grid", line):
                launched.add(match.group(1))
            elif match := re.match(r"\[       OK \] (\S+) \((\d+) ms\)", line):
                seconds = int(match.group(2)) / 1000
                self.seconds[name, test] = max(seconds, self.seconds.get((name, test), 0))
                for kernel in launched:
                    self.tests[arch, kernel][name, test] = seconds

    def take(self, dump, arch):
        for name in sorted(n for n in os.listdir(dump) if n.endswith(".ptx")) if os.path.isdir(dump) else []:
            text = read(os.path.join(dump, name))
            if name[:-4] in self.modules or (arch == "90" and ".target sm_90a" not in text):
                continue
            lines, found = mutate_ptx.kernels(text)
            self.modules[name[:-4]] = (arch, lines, found)

    def chunks(self, tests):
        """Lists of tests, the fastest first: half a second, then eight, then the rest."""
        out, limits = [[]], [0.5, 8, float("inf")]
        total = 0
        for key in sorted(tests, key=lambda k: (self.seconds[k], k)):
            total += self.seconds[key]
            if total > limits[len(out) - 1] and out[-1]:
                out.append([])
            out[-1].append(key)
        return out


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


class Mutant:
    def __init__(self, kind, family, kernel, operator, ordinal, place, source_line, before, after, key, data):
        self.kind, self.family, self.kernel, self.operator, self.ordinal = kind, family, kernel, operator, ordinal
        self.place, self.source_line, self.before, self.after, self.key, self.data = place, source_line, before, after, key, data

    def name(self):
        return f"{self.kernel}/{self.operator}#{self.ordinal}"


class SourceLines:
    def __init__(self, root):
        self.root, self.files = root, {}

    def at(self, source):
        if not source:
            return ""
        path = os.path.join(self.root, source[0])
        if path not in self.files:
            self.files[path] = read(path).split("\n") if os.path.isfile(path) else []
        lines = self.files[path]
        return lines[source[1] - 1].strip() if 0 < source[1] <= len(lines) else ""


def family_of(kernel):
    """The file its first instruction comes from."""
    for s in kernel.statements:
        place = kernel.location.get(s.line)
        if place and "/kernels/" in place[0]:
            return re.sub(r"\.cuh$", "", os.path.basename(place[0]))
    return "other"


def choose_ptx(baseline, root, seed):
    """Mutants of the kernels: of each kernel template a few, of the products and of attention more, each of another kind
    before one comes again; which, the seed decides for each kernel alone, so that a changed kernel does not change the others'."""
    source, groups, reached = SourceLines(root), collections.defaultdict(list), set()
    short = audit_machine.demangle({k for _, _, found in baseline.modules.values() for k in found})
    holders = collections.defaultdict(list)  # (arch, kernel) -> modules: a header's static kernel may lie in several
    for module, (arch, _, found) in sorted(baseline.modules.items(), key=lambda m: (m[1][0], m[0])):
        for name, kernel in found.items():
            # compute_90a's PTX repeats what compute_80's has; only the kernels made for it are broken there.
            if arch == "80" or any(s.op.startswith("wgmma") for s in kernel.statements):
                holders[arch, name].append(module)
    for (arch, name), modules in holders.items():
        if (arch, name) in baseline.tests:
            reached.add(name)
            groups[re.sub(r"<.*", "", short[name])].append((modules, arch, baseline.modules[modules[0]][2][name], short[name]))
    unreached = {short[name] for arch, name in holders if name not in reached and not (arch == "80" and ("90", name) in holders)}
    mutants = []
    for base, members in sorted(groups.items()):
        by_operator = collections.defaultdict(list)
        seen = set()
        for modules, arch, kernel, name in members:
            for place in mutate_ptx.places(baseline.modules[modules[0]][1], kernel):
                rank = digest(seed, name, place.operator, place.ordinal)
                by_operator[place.operator].append((rank, modules, arch, kernel, name, place))
        tensor = any("mma" in s.op for _, _, k, _ in members for s in k.statements)
        quota = 12 if tensor else 6 if sum(map(len, by_operator.values())) > 1000 else 3
        for candidates in by_operator.values():
            candidates.sort(key=lambda c: c[0])
        order = sorted(by_operator, key=lambda o: digest(seed, base, o))
        number = 0
        while quota and any(number < len(by_operator[o]) for o in order):
            for operator in order:
                if quota and number < len(by_operator[operator]):
                    _, modules, arch, kernel, name, place = by_operator[operator][number]
                    if (name, place.line, place.after) in seen:
                        continue
                    seen.add((name, place.line, place.after))
                    body = "\n".join(baseline.modules[modules[0]][1][kernel.begin : kernel.end])
                    mutants.append(Mutant(
                        "ptx", family_of(kernel), name, operator, place.ordinal,
                        f"{place.source[0]}:{place.source[1]}" if place.source else "", source.at(place.source),
                        place.before.strip(), place.after.strip(), digest("ptx", body, place.line - kernel.begin, place.after),
                        (modules, arch, kernel.name, place)))  # fmt: skip
                    quota -= 1
            number += 1
    return mutants, sorted(unreached)


def choose_source(root, seed):
    """Mutants of the launch code: of each file a few, each of another kind before one comes again."""
    by_file = collections.defaultdict(lambda: collections.defaultdict(list))
    for place in mutate_source.places(root):
        by_file[place.path][place.operator].append(place)
    mutants = []
    for path, operators in sorted(by_file.items()):
        quota = 5 if re.search(r"attention|matmul|plan|head|blaslt", path) else 2
        order = sorted(operators, key=lambda o: digest(seed, path, o))
        for operator in order:
            operators[operator].sort(key=lambda p: digest(seed, path, operator, p.ordinal))
        number = 0
        while quota and any(number < len(operators[o]) for o in order):
            for operator in order:
                if quota and number < len(operators[operator]):
                    p = operators[operator][number]
                    line = p.changed.split("\n")[p.line - 1].strip()
                    mutants.append(Mutant("source", "launch code", p.path, operator, p.ordinal, f"{p.path}:{p.line}", line,
                                          p.before, p.new, digest("source", p.path, p.changed), p))  # fmt: skip
                    quota -= 1
            number += 1
    return mutants


REFUSED = re.compile(r"cudaErrorInvalidKernelImage|cudaErrorInvalidPtx|is not supported|not implemented|unknown instruction")


def verdict(status, out):
    """(outcome, how it was noticed) of one run of some tests."""
    if REFUSED.search(out):
        return "invalid", REFUSED.search(out).group(0)
    if status == 0:
        return "survived", ""
    failed = re.search(r"^\[  FAILED  \] ([^\s,]+)", out, re.MULTILINE)
    fault = re.search(r"^softgpu: fault: (.*)$", out, re.MULTILINE)
    if status in (-9, -24, 137, 152) or (fault and "warp instructions" in fault.group(1)):
        return "caught", "limit"
    if fault:
        return "caught", "fault: " + re.sub(r"\s+", " ", fault.group(1))[:160]
    if failed:
        return "caught", "test: " + failed.group(1)
    if status < 0 or status > 128:
        return "caught", f"signal {-status if status < 0 else status - 128}"
    return "invalid", f"status {status} with no failed test: {out[-300:]}"


class Campaign:
    def __init__(self, o, runner, baseline):
        self.o, self.runner, self.baseline = o, runner, baseline
        self.rebuild = mutate_source.Rebuild(o.root, o.build)
        self.lock, self.kept, self.rows = threading.Lock(), {}, {}
        if os.path.exists(o.out) and not o.fresh:
            with open(o.out, encoding="utf-8") as file:
                kept = json.load(file)
            self.kept = {r["key"]: r for r in kept["mutants"] if r["outcome"] == "caught" and (o.trust or r["programs"] == self.baseline.hash)}

    def tests_of(self, mutant):
        if mutant.kind == "ptx":
            return dict(self.baseline.tests[mutant.data[1], mutant.data[2]])
        tests = {}
        names = self.rebuild.kernels_of(mutant.kernel)
        for (arch, kernel), launching in self.baseline.tests.items():
            if kernel in names:
                tests.update(launching)
        if not tests:  # the runtime's own files: everything
            tests = dict(self.baseline.seconds)
        return tests

    def attempt(self, tests, programs, arch, seed, ptx):
        """Runs tests until one notices."""
        for chunk in self.baseline.chunks(tests):
            for name in PROGRAMS:
                chosen = [t for p, t in chunk if p == name]
                if not chosen:
                    continue
                budget = 30 + 10 * sum(self.baseline.seconds[name, t] for t in chosen)
                status, out = self.runner.run(programs(name), ["--gtest_fail_fast", "--gtest_filter=" + ":".join(chosen)], arch,
                                              seed, ptx=ptx, cpu_seconds=budget)  # fmt: skip
                if ptx and "PTX replaced by" not in out:
                    return "invalid", f"{name} never loaded the changed module"
                outcome, how = verdict(status, out)
                if outcome != "survived":
                    return outcome, how
        return "survived", ""

    def judge(self, mutant):
        if mutant.key in self.kept:
            return {**self.kept[mutant.key], "kept": True}
        tests = self.tests_of(mutant)
        reached = None
        with tempfile.TemporaryDirectory() as folder:
            if mutant.kind == "ptx":
                modules, arch, name, place = mutant.data

                def put(change):
                    for module in modules:
                        _, lines, found = self.baseline.modules[module]
                        there = place if module == modules[0] else next(
                            p for p in mutate_ptx.places(lines, found[name]) if (p.operator, p.ordinal) == (place.operator, place.ordinal))
                        with open(os.path.join(folder, module + ".ptx"), "w", encoding="utf-8") as file:
                            file.write(change(lines, there))

                put(mutate_ptx.apply)
                for seed in SEEDS[: 1 if self.o.sample else None]:
                    outcome, how = self.attempt(tests, self.baseline.programs.get, arch, seed, folder)
                    if outcome != "survived":
                        break
                if outcome == "survived" and not self.o.sample:
                    put(mutate_ptx.probe)
                    reached = self.attempt(tests, self.baseline.programs.get, arch, 0, folder)[0] == "caught"
            else:
                status, said = self.rebuild.compile(mutant.data.path, mutant.data.changed, folder)
                if status:
                    outcome, how = "invalid", "it does not compile: " + said[-200:]
                else:
                    linked = {}

                    def program(name):
                        if name not in linked:
                            linked[name] = self.rebuild.link(name, folder)
                        return linked[name]

                    for arch, seed in list(zip(("80", "90"), SEEDS))[: 1 if self.o.sample else None]:
                        outcome, how = self.attempt(tests, program, arch, seed, None)
                        if outcome != "survived":
                            break
        return {"key": mutant.key, "programs": self.baseline.hash, "kind": mutant.kind, "family": mutant.family,
                "kernel": mutant.kernel, "operator": mutant.operator, "ordinal": mutant.ordinal, "place": mutant.place,
                "line": mutant.source_line, "before": mutant.before, "after": mutant.after, "tests": len(tests),
                "outcome": outcome, "how": how, "reached": reached}  # fmt: skip

    def run(self, mutants):
        done = [0]

        def one(mutant):
            row = self.judge(mutant)
            with self.lock:
                done[0] += 1
                self.rows[mutant.key] = row
                print(f"{done[0]:4}/{len(mutants)} {row['outcome']:8} {mutant.name()} {mutant.place}: {row['how'] or row['before']}",
                      flush=True)  # fmt: skip
                if done[0] % 10 == 0:
                    self.save([m for m in mutants if m.key in self.rows])
            return row

        with concurrent.futures.ThreadPoolExecutor(self.o.jobs) as pool:
            list(pool.map(one, mutants))
        self.save(mutants)
        return [self.rows[m.key] for m in mutants]

    def save(self, mutants):
        os.makedirs(os.path.dirname(self.o.out), exist_ok=True)
        new = {m.key for m in mutants}
        rows = [self.rows[m.key] for m in mutants] + [r for k, r in self.kept.items() if k not in new]
        part = self.o.out + ".part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"commit": commit(self.o.root), "seed": self.o.seed, "mutants": rows}, file, indent=1)
        os.replace(part, self.o.out)


def commit(root):
    done = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read_reasons(path):
    with open(path, "rb") as file:
        entries = tomllib.load(file).get("survivor", [])
    for e in entries:
        if set(e) - {"kernel", "operator", "line", "before", "equivalent", "reason"} or not {"kernel", "operator", "equivalent", "reason"} <= set(e):
            sys.exit(f"{path}: a survivor has kernel, operator, equivalent, reason, and line or before: not {e}")
    return entries


def explain(rows, entries):
    """Gives each survivor the entry that names it; the entries that name none."""
    used = set()
    for row in rows:
        row["reason"], row["equivalent"] = "", False
        if row["outcome"] != "survived":
            continue
        for n, e in enumerate(entries):
            if (re.fullmatch(e["kernel"], row["kernel"]) and e["operator"] == row["operator"] and e.get("line", "") in row["line"]
                    and re.search(e.get("before", ""), row["before"])):  # fmt: skip
                row["reason"], row["equivalent"] = e["reason"], e["equivalent"]
                used.add(n)
                break
    return [e for n, e in enumerate(entries) if n not in used]


def shares(rows):
    """(counted, caught, equivalent, other survivors); invalid mutants do not count."""
    valid = [r for r in rows if r["outcome"] != "invalid"]
    caught = [r for r in valid if r["outcome"] == "caught"]
    equivalent = [r for r in valid if r["outcome"] == "survived" and r["equivalent"]]
    return valid, caught, equivalent, [r for r in valid if r["outcome"] == "survived" and not r["equivalent"]]


def quoted(text, most=90):
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return "`" + (text if len(text) <= most else text[: most - 3] + "...") + "`"


def page(rows, unreached, seed, at):
    valid, caught, equivalent, left = shares(rows)
    share = len(caught) / max(1, len(valid) - len(equivalent))
    lines = [f"`tools/mutate --write`, commit {at}, seed {seed}: **{len(valid)} mutants, {len(caught)} caught, {len(equivalent)} of the "
             f"others equivalent, {len(left)} survive: {share:.1%} of those that could be caught are.**", "",
             "| family | mutants | caught by a test | by a fault | by a limit | equivalent | survive |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for family in [*sorted({r["family"] for r in valid} - {"launch code"}), "launch code", "all"]:
        group = [r for r in valid if family in ("all", r["family"])]
        how = collections.Counter(r["how"].split(":")[0] for r in group if r["outcome"] == "caught")
        other = sum(n for k, n in how.items() if k not in ("test", "fault"))
        lines.append(f"| {family} | {len(group)} | {how['test']} | {how['fault']} | {other} | {sum(r in equivalent for r in group)} | "
                     f"{sum(r in left for r in group)} |")  # fmt: skip
    lines += ["", "| operator | mutants | caught |", "|---|---|---|"]
    for operator in sorted({r["operator"] for r in valid}):
        group = [r for r in valid if r["operator"] == operator]
        lines.append(f"| {operator} | {len(group)} | {sum(r['outcome'] == 'caught' for r in group)} |")
    lines += ["", "### Survivors", ""]
    if left or equivalent:
        lines += ["| mutant | place | changed | equivalent | reason |", "|---|---|---|---|---|"]
        for r in [*left, *equivalent]:
            lines.append(f"| {quoted(r['kernel'])} {r['operator']} | {quoted(r['line'])} | {quoted(r['before'], 60)} | "
                         f"{'yes' if r['equivalent'] else 'no'} | {r['reason'] or 'not explained'} |")  # fmt: skip
    else:
        lines.append("None.")
    if unreached:
        lines += ["", f"Not broken, because no op test launches them: {', '.join(quoted(u, 200) for u in unreached)}."]
    return "\n".join(lines)


def options():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    p = argparse.ArgumentParser(prog="tools/mutate", description="Break the CUDA backend one place at a time and see that a test notices.")
    p.add_argument("--build", default=os.path.join(root, "build/release"), help="the build folder (default %(default)s)")
    p.add_argument("--jobs", type=int, default=2, help="mutants at a time (default %(default)s)")
    p.add_argument("--seed", type=int, default=6, help="chooses the mutants (default %(default)s)")
    p.add_argument("--only", metavar="REGEX", default="", help="only mutants whose name (KERNEL/OPERATOR#N) or place matches")
    p.add_argument("--sample", type=int, metavar="N", help="N quick mutants of different kinds, and PTX that is not changed")
    p.add_argument("--list", action="store_true", help="print the mutants and stop")
    p.add_argument("--fresh", action="store_true", help="forget what earlier runs of the same programs found")
    p.add_argument("--trust", action="store_true", help="keep mutants caught by other builds if their kernel is unchanged")
    p.add_argument("--write", action="store_true", help="put the table into docs/mutations.md")
    p.add_argument("--out", help="result file (default BUILD/mutations.json); a run goes on where it stopped")
    o = p.parse_args()
    o.root, o.build = root, os.path.abspath(o.build)
    o.out = os.path.abspath(o.out or os.path.join(o.build, "mutations.json"))
    return o


def sample(mutants, count):
    """The first mutant of each operator, in the seed's order, and one of the launch code."""
    out, operators = [], set()
    for m in sorted(mutants, key=lambda m: m.key):
        if m.kind == "ptx" and m.operator not in operators:
            operators.add(m.operator)
            out.append(m)
    source = [m for m in mutants if m.kind == "source" and m.kernel.endswith("embedding.cu")][:1]
    return [*out[: count - len(source)], *source]


def check_identity(campaign, baseline):
    """Changing nothing must be noticed by nobody, or 'caught' would mean nothing."""
    homes = collections.Counter((arch, k) for arch, _, found in baseline.modules.values() for k in found)
    for module, (arch, lines, found) in sorted(baseline.modules.items()):
        # A kernel that lies in other modules too may be launched from one of those.
        name = next((k for k in sorted(found) if (arch, k) in baseline.tests and homes[arch, k] == 1), None)
        if name is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, module + ".ptx"), "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n// unchanged\n")
            quick = sorted(baseline.tests[arch, name].items(), key=lambda t: t[1])[:2]
            outcome, how = campaign.attempt(dict(quick), baseline.programs.get, arch, 0, folder)
        if outcome != "survived":
            sys.exit(f"mutate: {module}: PTX that was not changed is '{outcome}' ({how})")


def main():
    o = options()
    for tool in ("prlimit", "ninja", "c++filt", "nm", "ar"):
        if not shutil.which(tool):
            sys.exit(f"mutate: no {tool} here")
    runner = Runner(o.root, o.build)
    for program in PROGRAMS:
        if not os.path.exists(os.path.join(o.build, "bin", program)):
            sys.exit(f"mutate: no {program} in {o.build}/bin: run tools/build with nvcc in reach")
    baseline = Baseline(runner, os.path.join(o.build, "mutate"), QUICK if o.sample else FILTER)
    mutants, unreached = choose_ptx(baseline, o.root, o.seed)
    mutants += choose_source(o.root, o.seed)
    whole = not o.only and not o.sample
    mutants = [m for m in mutants if re.search(o.only, m.name()) or re.search(o.only, m.place)]
    if o.sample:
        mutants = sample(mutants, o.sample)
    if o.list:
        for m in mutants:
            print(f"{m.family}: {m.name()} {m.place}: {quoted(m.before)} -> {quoted(m.after)}")
        print(f"{len(mutants)} mutants; no op test launches: {', '.join(unreached) or 'none'}")
        return
    campaign = Campaign(o, runner, baseline)
    if o.sample:
        check_identity(campaign, baseline)
    mutants.sort(key=lambda m: m.key)  # slow and quick ones mixed
    rows = campaign.run(mutants)
    reasons = os.path.join(o.root, "cuda/mutations.toml")
    unused = explain(rows, read_reasons(reasons))
    valid, caught, equivalent, left = shares(rows)
    for r in left:
        print(f"SURVIVED: {r['kernel']} {r['operator']}#{r['ordinal']} at {r['place']} ({r['line']}): {r['before']!r} -> {r['after']!r}; "
              f"{'reached by tests' if r['reached'] else 'no test gets there' if r['reached'] is False else 'launch code'}; "
              f"{r['reason'] or 'no reason in cuda/mutations.toml'}")  # fmt: skip
    for r in rows:
        if r["outcome"] == "invalid":
            print(f"INVALID: {r['kernel']} {r['operator']}#{r['ordinal']} at {r['place']}: {r['before']!r} -> {r['after']!r}: {r['how']}")
    if whole:
        for e in unused:
            print(f"UNUSED: {reasons}: nothing survives any more that is {e}")
    share = len(caught) / max(1, len(valid) - len(equivalent))
    print(f"{len(valid)} mutants: {len(caught)} caught, {len(equivalent)} equivalent, {len(left)} survive; {share:.1%} of those that could "
          f"be caught; {len(rows) - len(valid)} invalid")  # fmt: skip
    if o.write:
        if not whole:
            sys.exit("mutate: --write needs the whole run")
        path = os.path.join(o.root, "docs/mutations.md")
        text = read(path)
        head, rest = text.split(BEGIN, 1)
        made = head + BEGIN + "\n\n" + page(rows, unreached, o.seed, commit(o.root)) + "\n\n" + END + rest.split(END, 1)[1]
        with open(path, "w", encoding="utf-8") as file:
            file.write(made)
    if o.sample:
        sys.exit(1 if share < WANTED_OF_SAMPLE or not valid else 0)
    unexplained = [r for r in left if not r["reason"]]
    sys.exit(1 if share < WANTED or unexplained or (whole and unused) or not valid else 0)


if __name__ == "__main__":
    main()
