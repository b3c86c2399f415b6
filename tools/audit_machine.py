"""What tools/audit knows of nvcc and of machine code: compiling to cubins, and per kernel its registers, spills,
shared memory and threads, its loops and their instructions. Results are kept by content, so a second run is fast."""

import collections
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

ARCHITECTURES = ("80", "90a", "100")
# Per multiprocessor: shared bytes, threads, blocks (CUDA C++ Programming Guide, table of compute capabilities); and the
# most shared bytes of one block. Each block takes 1 KB of shared memory for the system.
LIMITS = {
    "80": {"shared": 164 << 10, "threads": 2048, "blocks": 32, "block_shared": 163 << 10},
    "90a": {"shared": 228 << 10, "threads": 2048, "blocks": 32, "block_shared": 227 << 10},
    "100": {"shared": 228 << 10, "threads": 2048, "blocks": 32, "block_shared": 227 << 10},
}
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings", "-DFMT_USE_CONSTEXPR=1",
         "-Xcompiler=-Wall,-Wextra"]  # fmt: skip
# ptxas calls it information that wgmma runs one by one or that setmaxnreg has no effect (C75nn): here it is a warning.
WARNING = re.compile(r"\bwarning\b|\(C75\d\d\)")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def find_tool(name):
    """Path of nvcc, cuobjdump or nvdisasm: from PATH, the toolkit, or the packages of requirements-audit.txt."""
    cache = os.environ.get("GANTRAIN_CACHE", os.path.expanduser("~/.cache/gantrain"))
    places = [os.path.join(p, "bin") for p in (os.environ.get("CUDA_HOME"), "/usr/local/cuda", os.path.join(cache, "cuda")) if p]
    try:
        import nvidia

        places += [os.path.join(p, "cu13", "bin") for p in nvidia.__path__]
    except ImportError:
        pass
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if not found:
        sys.exit(f"audit: no {name} in PATH, CUDA_HOME/bin, /usr/local/cuda/bin, {cache}/cuda/bin or the packages of requirements-audit.txt")
    return found


def closure(root, source):
    """The file and every file of ours it includes, directly or not, as sorted paths from the root."""
    found, todo = set(), [source]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        with open(os.path.join(root, path), encoding="utf-8") as file:
            todo += [t for t in INCLUDE.findall(file.read()) if os.path.isfile(os.path.join(root, t))]
    return sorted(found)


def digest(*parts):
    h = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        h.update(str(len(data)).encode() + b":" + data)
    return h.hexdigest()


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


class Compiler:
    """nvcc to cubins; what it made and said is kept in a cache folder under a hash of everything that went in."""

    def __init__(self, root, cache, host_compiler="c++"):
        self.root, self.cache, self.host = root, cache, host_compiler
        self.nvcc = find_tool("nvcc")
        self.version = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        os.makedirs(cache, exist_ok=True)

    def release(self):
        return re.search(r"V([\d.]+)", self.version).group(1)

    def compile(self, source, arch):
        """(path of the cubin, what the compiler said); raises RuntimeError with its text on any warning or error."""
        parts = [self.version, arch, FLAGS, self.host]
        for path in closure(self.root, source):
            parts += [path, read_bytes(os.path.join(self.root, path))]
        base = os.path.join(self.cache, digest(*parts))
        if not os.path.exists(base + ".log"):
            part = f"{base}.{os.getpid()}"
            command = [self.nvcc, *FLAGS, f"-arch=sm_{arch}", "-ccbin", self.host, "-I", self.root, source, "-o", part]
            done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            if done.returncode != 0 or re.search(WARNING, said):
                if os.path.exists(part):
                    os.remove(part)
                told = "\n".join(line for line in said.splitlines() if WARNING.search(line) or "ptxas info" not in line and "bytes stack" not in line)
                raise RuntimeError(f"{source} for sm_{arch}: nvcc has a warning or an error:\n{told}")
            os.replace(part, base + ".cubin")
            with open(part, "w", encoding="utf-8") as file:
                file.write(said)
            os.replace(part, base + ".log")
        with open(base + ".log", encoding="utf-8") as file:
            return base + ".cubin", file.read()


def parse_ptxas(said):
    """Kernel (mangled) -> registers, stack, spill stores and loads, static shared bytes, from what ptxas -v says."""
    kernels, name = {}, None
    for line in said.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            name = match.group(1)
            kernels[name] = {"registers": 0, "stack": 0, "spill": 0, "shared": 0}
        elif match := re.search(r"Function properties for (\S+)", line):
            name = match.group(1) if match.group(1) in kernels else None
        elif name is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name]["stack"] = int(match.group(1))
            kernels[name]["spill"] = int(match.group(2)) + int(match.group(3))
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(match.group(1))
            if shared := re.search(r"(\d+) bytes smem", line):
                kernels[name]["shared"] = int(shared.group(1))
    return kernels


def parse_threads(elf):
    """Kernel (mangled) -> threads of its launch bounds, from cuobjdump -elf."""
    threads, name, wanted = {}, None, False
    for line in elf.splitlines():
        if match := re.match(r"\.nv\.info\.(\S+)", line):
            name = match.group(1)
        elif "EIATTR_MAX_THREADS" in line:
            wanted = True
        elif wanted and (match := re.match(r"\s*Value:\s*(.+)", line)):
            total = 1
            for value in match.group(1).split():
                total *= int(value, 16)
            threads[name], wanted = total, False
    return threads


Instruction = collections.namedtuple("Instruction", "address opcode target")
SECTION = re.compile(r"//-+ \.text\.(\S+) -+")
LABEL = re.compile(r"^(\.L_x_\d+):")
CODE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)(.*);")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


def parse_sass(text):
    """Kernel (mangled) -> list of Instruction, with the branches' targets as addresses, from nvdisasm -c."""
    kernels, labels, pending, code = {}, {}, [], None
    for line in text.splitlines():
        if match := SECTION.match(line):
            code = kernels.setdefault(match.group(1), [])
            labels, pending = {}, []
            kernels[match.group(1) + "\0labels"] = labels
        elif code is None:
            continue
        elif match := LABEL.match(line):
            pending.append(match.group(1))
        elif match := CODE.match(line):
            address = int(match.group(1), 16)
            for label in pending:
                labels[label] = address
            pending = []
            target = TARGET.search(match.group(3))
            code.append(Instruction(address, match.group(2), target.group(1) if target else None))
    result = {}
    for name, code in kernels.items():
        if name.endswith("\0labels"):
            continue
        labels = kernels[name + "\0labels"]
        result[name] = [i._replace(target=labels.get(i.target)) for i in code]
    return result


def width(opcode):
    """Bits a memory instruction moves per thread."""
    for part in opcode.split(".")[1:]:
        if part in ("U8", "S8"):
            return 8
        if part in ("U16", "S16"):
            return 16
        if part in ("64", "128", "256"):
            return int(part)
    return 32


MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS")
COUNTED = ("HMMA", "HGMMA", "LDSM", "STSM", "UTMALDG", "MUFU", "SHFL", "BAR", "FFMA")
DOUBLE = ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX")
ADDRESS = ("IMAD", "IADD3", "LOP3", "LEA", "SHF", "ISETP", "IADD", "IABS", "IMNMX", "PRMT", "SEL", "MOV")


def mix(code):
    """Counts of the instructions worth counting."""
    count = collections.Counter(instructions=len(code))
    for i in code:
        base = i.opcode.split(".")[0]
        if base in MEMORY:
            count[base] += 1
            count[f"{base}.{width(i.opcode)}"] += 1
        elif base in COUNTED:
            count[base] += 1
        elif base in DOUBLE:
            count["F64"] += 1
        elif base in ("ATOM", "ATOMG"):
            count["ATOM"] += 1
        elif base == "ATOMS":  # in shared memory
            count["ATOMS"] += 1
        elif base in ("RED", "REDG"):
            count["RED"] += 1
        elif base in ("LD", "ST"):
            count["GENERIC"] += 1
        # IMAD.MOV and MOV copy registers: they are no address arithmetic, but they do take a slot.
        if base in ADDRESS:
            count["ADDRESS"] += 1
    return dict(count)


def loops(code):
    """The innermost loops: instructions between a back edge's target and its branch, the longest per target. What BRA.DIV jumps to
    (a warp that has diverged at a shuffle or vote) stands behind the kernel and comes back, which is no loop."""
    behind = max((i.address for i in code if i.opcode.startswith("EXIT")), default=0)
    ends, diverged, apart = {}, {i.target for i in code if i.opcode.startswith("BRA.DIV") and (i.target or 0) > behind}, False
    for i in code:
        apart |= i.address in diverged
        if i.opcode.startswith("BRA") and i.target is not None and i.target < i.address:
            if apart:
                apart = False
                continue
            ends[i.target] = max(ends.get(i.target, 0), i.address)
    spans = sorted(ends.items())
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[i for i in code if begin <= i.address <= end] for begin, end in inner]


def hot(found, body):
    """(kind, mix) of the loop that counts: the one with the most mma, then the most bytes of global memory, then the
    longest; the whole body where there is no loop."""
    if not found:
        return "body", body

    def weight(m):
        wide = sum(m.get(f"{op}.{bits}", 0) * bits for op in ("LDG", "STG", "LDGSTS") for bits in (8, 16, 32, 64, 128, 256))
        return m.get("HMMA", 0) + m.get("HGMMA", 0), wide, m["instructions"]

    return "loop", max(found, key=weight)


def analyse(cubin, said, cache):
    """Kernel (mangled) -> what ptxas, the ELF and the machine code say of it. Kept beside the cubin."""
    kept = f"{cubin[:-6]}.{digest(read_bytes(os.path.abspath(__file__)))[:12]}.json"
    if os.path.exists(kept):
        with open(kept, encoding="utf-8") as file:
            return json.load(file)
    kernels = parse_ptxas(said)
    if kernels:
        elf = subprocess.run([find_tool("cuobjdump"), "-elf", cubin], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([find_tool("nvdisasm"), "-c", cubin], capture_output=True, text=True, check=True).stdout
        threads, code = parse_threads(elf), parse_sass(sass)
        for name, k in kernels.items():
            if not code.get(name):
                raise RuntimeError(f"{cubin}: no machine code found for {name}")
            found = [mix(c) for c in loops(code[name])]
            body = mix(code[name])
            k["threads"], k["loops"], k["body"] = threads.get(name, 0), found, body
            k["hot_kind"], k["hot"] = hot(found, body)
    part = f"{kept}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(kernels, file)
    os.replace(part, kept)
    return kernels


def occupancy(k, arch, dynamic=0):
    """(blocks, share of the threads) a multiprocessor holds; 0 blocks where a kernel names no thread count."""
    if not k["threads"]:
        return 0, 0.0
    limit, warps = LIMITS[arch], -(-k["threads"] // 32)
    by_registers = 65536 // (256 * -(-k["registers"] * 32 // 256) * warps)
    by_shared = limit["shared"] // (k["shared"] + dynamic + 1024)
    blocks = min(by_registers, by_shared, limit["threads"] // (32 * warps), limit["blocks"])
    return blocks, blocks * warps * 32 / limit["threads"]


def demangle(names):
    """Mangled -> short name: no return type, namespaces or parameters."""
    names = sorted(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return {mangled: shorten(full) for mangled, full in zip(names, done.stdout.splitlines())}


def shorten(full):
    depth, end = 0, len(full)
    for at, c in enumerate(full):
        if c == "<":
            depth += 1
        elif c == ">":
            depth -= 1
        elif c == "(" and depth == 0 and not full.startswith("(anonymous", at):
            end = at
            break
    name = full[:end].strip()
    name = re.sub(r"^void\s+", "", name)
    name = name.replace("gantrain::cuda::", "").replace("gantrain::", "").replace("(anonymous namespace)::", "")
    name = name.replace("__nv_bfloat16", "bf16").replace("__half", "f16").replace("float", "f32")
    return re.sub(r"\((\w+)\)(\d+)", r"\2", name)


def audit_sources(root, sources, architectures, cache, parallel=2, host="c++"):
    """[{arch, source, name, ...}], one entry for each kernel instantiation; RuntimeError on any compiler warning."""
    compiler = Compiler(root, cache, host)

    def one(job):
        source, arch = job
        cubin, said = compiler.compile(source, arch)
        return source, arch, analyse(cubin, said, cache)

    jobs = [(s, a) for s in sources for a in architectures]
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        done = list(pool.map(one, jobs))
    short = demangle({name for _, _, kernels in done for name in kernels})
    rows, seen = [], set()
    for source, arch, kernels in done:
        for name, k in kernels.items():
            if (name, arch) in seen:  # a static kernel of a shared header: the same code in every source
                continue
            seen.add((name, arch))
            rows.append({"source": source, "arch": arch, "mangled": name, "name": short[name], **k})
    return sorted(rows, key=lambda r: (r["arch"] != "80", r["arch"], r["name"])), compiler.release()
