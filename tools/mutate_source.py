"""Mutations of the launch code (cuda/ops, cuda/runtime): places in a C++ file and what to put there, and the test programs
built again with one changed file. As in mutate_ptx, a place is the n-th of its kind in a file."""

import glob
import os
import re
import subprocess


def balanced(text, at):
    """Index behind the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += text[i] in "([{"
        depth -= text[i] in ")]}"
        if depth == 0:
            return i + 1
    return len(text)


def arguments(text, at):
    """(begin, end) of each argument of the call whose bracket opens at `at`."""
    end, depth, begin, out = balanced(text, at) - 1, 0, at + 1, []
    for i in range(at + 1, end):
        depth += text[i] in "([{"
        depth -= text[i] in ")]}"
        if text[i] == "<" and text[i - 1] not in " <":  # a template's list: no comma of the call lies in it
            depth += 1
        elif text[i] == ">" and text[i - 1] not in " -" and depth:
            depth -= 1
        elif text[i] == "," and depth == 0:
            out.append((begin, i))
            begin = i + 1
    return [*out, (begin, end)]


def replace(pattern, new, where=None):
    """An operator: every match of the pattern, replaced; in files whose path matches `where`."""

    def operator(path, text):
        if where is None or re.search(where, path):
            for match in re.finditer(pattern, text, re.MULTILINE):
                yield match.start(), match.end(), match.expand(new)

    return operator


def calls(name, change):
    def operator(_, text):
        for match in re.finditer(r"(?<![\w.])(?:" + name + r")\(", text):
            yield from change(text, match.start(), match.end() - 1)

    return operator


def fewer_blocks(text, at, bracket):
    end = balanced(text, bracket)
    yield at, end, f"({text[at:end]} - 1)"


def always(text, at, bracket):
    if not re.search(r"\bbool $", text[:at]):  # not its definition
        yield at, balanced(text, bracket), "(true)"


def less_shared(text, at, bracket):
    a = arguments(text, bracket)
    if len(a) > 4:
        begin, end = a[3]
        if text[begin:end].strip() not in ("0", "size_t shared_bytes", "shared_bytes"):
            yield begin, end, f" ({text[begin:end].strip()}) - 16"


def no_launch(text, at, _):
    if re.search(r"(^|[;{}\n])\s*$", text[:at]):
        yield at, at, "if (false) "


OPERATORS = {
    "fewer_blocks": calls("blocks_for", fewer_blocks),
    "less_shared": calls("launch", less_shared),
    "no_launch": calls("launch", no_launch),
    "always_aligned": calls(r"aligned_to|aligned_heads<\w+(?:<\w+>)?>", always),
    "no_clear": replace(r"GT_CUDA\(cudaMemsetAsync\([^;]*;", ";"),
    "not_transposed": replace(r"\.transpose_([ab]) = true", r".transpose_\1 = false"),
    "leading_dimension": replace(r"\.ld([abc]) = ([\w.]+)", r".ld\1 = (\2) + 8"),
    "extent": replace(r"\.([mnk]) = ([\w.]+)(?=[,\n}])", r".\1 = (\2) - 1"),
    "left_out": replace(r"\.(bias|addend|squares|gain) = (?!nullptr)[^,;}]+(?=[,}])", r".\1 = nullptr"),
    "scratch": replace(r"\btake<([\w:]+)>\(([^;{}?]*?)\)(?=[,;})])", r"take<\1>((\2) / 2)"),
    "multiple": replace(r"% (4|8|16) == 0", "% 2 == 0"),
    "chunk_offset": replace(r"\+ (r0|row|begin)\b(?! <)", ""),
    "reciprocal": replace(r"1\.0f / ", ""),
    "bound": replace(r"(?<=[\w\])]) < (?=[\w(])", " <= ", r"runtime/plan\.cc"),
    "off_by_one": replace(r"(?<=[\w\])]) ([+-]) 1\b", "", r"runtime/plan\.cc|cuda/ops/"),
    "library_layout": replace(r"layout\(([\w.]+), ([\w.]+), ([\w.]+), ([\w.]+)\)", r"layout(\1, \3, \2, \4)", "blaslt"),
    "library_transpose": replace(r"CUBLAS_OP_T : CUBLAS_OP_N", "CUBLAS_OP_N : CUBLAS_OP_T", "blaslt"),
    "library_beta": replace(r"p\.addend \? 1 : 0", "0", "blaslt"),
}


class Place:
    def __init__(self, path, operator, ordinal, text, begin, end, new):
        self.path, self.operator, self.ordinal, self.begin, self.end, self.new = path, operator, ordinal, begin, end, new
        self.line = text.count("\n", 0, begin) + 1
        self.before = text[begin:end] or text[begin : text.find("\n", begin)]
        self.changed = text[:begin] + new + text[end:]


def places(root):
    out = []
    for path in sorted(glob.glob(os.path.join(root, "cuda/ops/*.cu")) + glob.glob(os.path.join(root, "cuda/runtime/*.cc"))):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        plain = re.sub(r"//[^\n]*", lambda m: " " * len(m.group()), text)  # comments are no code
        for name, operator in OPERATORS.items():
            for n, (begin, end, new) in enumerate(operator(os.path.relpath(path, root), plain)):
                out.append(Place(os.path.relpath(path, root), name, n, text, begin, end, new))
    return out


class Rebuild:
    """The commands that made a test program, run again with one source changed, without touching the build folder."""

    def __init__(self, root, build):
        self.root, self.build = root, build
        self.commands = {}
        for program in ("ops_test", "cuda_test"):
            done = subprocess.run(["ninja", "-C", build, "-t", "commands", f"bin/{program}"], capture_output=True, text=True, check=True)
            self.commands[program] = done.stdout.splitlines()

    def object_of(self, path):
        """(the command that compiles the source, its object's path as the archive's command names it)"""
        source = os.path.join(self.root, path)
        for command in self.commands["ops_test"]:
            if re.search(rf"-c {re.escape(source)}(\s|$)", command):
                return command, re.search(r"-o (\S+)", command).group(1)
        raise RuntimeError(f"{path}: no command of {self.build} compiles it")

    def run(self, command, cwd):
        done = subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def compile(self, path, text, folder):
        """Compiles the changed file and makes an archive of the backend with it in `folder`; (status, what was said)."""
        command, made = self.object_of(path)
        # The changed file stands in a tree of its own, looked into first.
        source = os.path.join(folder, "tree", path)
        os.makedirs(os.path.dirname(source), exist_ok=True)
        with open(source, "w", encoding="utf-8") as file:
            file.write(text)
        new = os.path.join(folder, os.path.basename(made))
        command = command.split(" && ")
        command = next(c for c in command if " -c " in c)
        command = re.sub(r"\S*ccache\s+", "", command)
        command = re.sub(r"-M[DF]\s+-MF \S+|-MD|-M[FT] \S+", "", command)
        command = command.replace("-Werror all-warnings", "").replace("-Werror=missing-field-initializers", "").replace("-Werror", "")
        command = command.replace(os.path.join(self.root, path), source).replace(f"-o {made}", f"-o {new}")
        where = self.build if "CMakeFiles" in made else os.path.join(self.build, "cuda")
        status, said = self.run(command, where)
        if status:
            return status, said
        archive = os.path.join(folder, "libgantrain_cuda.a")
        return self.run(f"cp {self.build}/cuda/libgantrain_cuda.a {archive} && ar r {archive} {new}", folder)

    def link(self, program, folder):
        """The test program with the changed archive; its path."""
        out = os.path.join(folder, program)
        command = self.commands[program][-1]
        command = command.replace("cuda/libgantrain_cuda.a", os.path.join(folder, "libgantrain_cuda.a"))
        command = command.replace(f"-o bin/{program}", f"-o {out}").split(" && ")
        status, said = self.run(next(c for c in command if f"-o {out}" in c), self.build)
        if status:
            raise RuntimeError(f"{program} does not link: {said[-800:]}")
        return out

    def kernels_of(self, path):
        """Names of the kernels that the source's object launches."""
        _, made = self.object_of(path)
        made = made if os.path.isabs(made) else os.path.join(self.build, made)
        said = subprocess.run(["nm", made], capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"\b[tTW] (?:\w*__device_stub__)?(_Z\w+)", said))
