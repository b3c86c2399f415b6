"""Mutations of PTX: kernels of a module, the places an operator can break, and the broken text. Nothing here knows a
kernel: a place is the n-th of its kind in a kernel, whatever the kernel does."""

import dataclasses
import re

STATEMENT = re.compile(r"^(\s*(?:\{\s*)?)(@!?%p\w+\s+)?([a-z][\w.:]*)\s*(.*?);(\s*\}?\s*)$")
LOCATION = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)\s+\d+(?:,.*inlined_at\s+(\d+)\s+(\d+)\s+\d+)?")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"')
INTEGER = {"s16", "u16", "s32", "u32", "s64", "u64", "b32", "b64"}
ORDER = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi"}
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


@dataclasses.dataclass
class Statement:
    line: int
    before: str
    guard: str
    op: str
    args: str
    after: str

    def parts(self):
        return self.op.split(".")

    def operands(self):
        return split_operands(self.args)

    def text(self, op=None, args=None, guard=None):
        guard = self.guard if guard is None else guard
        return f"{self.before}{guard}{op or self.op} {self.args if args is None else args};{self.after}"


@dataclasses.dataclass
class Kernel:
    name: str  # as mangled
    begin: int  # line of the name
    body: int  # line after the opening brace
    end: int  # line of the closing brace
    statements: list
    location: dict  # line -> (path from the project's root, line there)


@dataclasses.dataclass
class Place:
    kernel: str
    operator: str
    ordinal: int  # the n-th place of this operator in the kernel
    line: int
    before: str
    after: str  # may hold several lines, or be empty
    source: tuple  # (path, line) or None
    insert: tuple = ()  # (line, text): put in front of that line, besides


def split_operands(args):
    """'{a, b}, [c], d' -> ['{a, b}', '[c]', 'd']"""
    out, depth, now = [], 0, ""
    for c in args:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            out.append(now.strip())
            now = ""
        else:
            now += c
    return out + [now.strip()] if now.strip() else out


def registers(group):
    return [r.strip() for r in group.strip("{} ").split(",")]


def project_path(path):
    match = re.search(r"(?:^|/)(cuda/(?:kernels|device|ops)/[\w./]+)$", path)
    return match.group(1) if match else None


def kernels(text):
    """(lines, {name: Kernel}) of a module."""
    lines = text.split("\n")
    files = {}
    for line in lines:
        if match := FILE.match(line):
            files[match.group(1)] = project_path(match.group(2))
    found, at = {}, 0
    while at < len(lines):
        match = re.match(r"^\.visible\s+\.entry\s+(\w+)\s*\(|^\.entry\s+(\w+)\s*\(", lines[at])
        if not match:
            at += 1
            continue
        name, begin = match.group(1) or match.group(2), at
        while lines[at].strip() != "{":
            at += 1
        body, depth = at + 1, 1
        at += 1
        statements, location, here = [], {}, None
        while depth:
            line = lines[at]
            if loc := LOCATION.match(line):
                place = files.get(loc.group(1))
                if place:
                    here = (place, int(loc.group(2)))
                elif loc.group(3) and files.get(loc.group(3)):
                    here = (files[loc.group(3)], int(loc.group(4)))
            elif not line.startswith("."):
                for part in statement_of(line, at):
                    statements.append(part)
                    location[at] = here
            depth += line.count("{") - line.count("}")
            at += 1
        found[name] = Kernel(name, begin, body, at - 1, statements, location)
    return lines, found


def statement_of(line, at):
    match = STATEMENT.match(line)
    if match and ";" not in match.group(4):
        yield Statement(at, match.group(1), match.group(2) or "", match.group(3), match.group(4).strip(), match.group(5))


# Operators: statement, kernel context -> texts to put in its place. Each is a kind of mistake a person makes.


class Context:
    """What an operator needs to know of the whole kernel."""

    def __init__(self, kernel):
        self.pointers = set()
        copies = {}
        for s in kernel.statements:
            o = s.operands()
            if s.op.startswith("cvta.to.") and len(o) == 2:
                self.pointers.add(o[1])
            elif s.op.startswith("mov.") and len(o) == 2:
                copies[o[0]] = o[1]
            elif s.op.startswith(("ld.", "st.", "cp.async")):
                self.pointers.update(re.findall(r"\[(%rd\d+)", s.args))
        self.pointers.update(copies[p] for p in list(self.pointers) if p in copies)
        self.params = [s for s in kernel.statements if s.op.startswith("ld.param.") and not s.op.startswith("ld.param.v")]

    def kind(self, s):
        """pointer, integer or float: of what a parameter's load reads."""
        target = s.operands()[0]
        if target in self.pointers:
            return "pointer"
        return "float" if s.parts()[-1].startswith("f") else "integer"


def drop_barrier(s, _):
    if re.match(r"(bar(rier)?(\.warp)?\.sync|barrier\.cluster\.wait)", s.op):
        yield ""


def drop_wait(s, _):
    if re.match(r"(cp\.async\.(bulk\.)?wait_(group|all)|wgmma\.wait_group)", s.op):
        yield ""
    elif re.match(r"mbarrier\.(try|test)_wait", s.op):
        yield s.text(op="setp.eq.u32", args=s.operands()[0] + ", 0, 0")


def later_wait(s, _):
    if re.match(r"(cp\.async\.(bulk\.)?wait_group|wgmma\.wait_group)", s.op) and re.fullmatch(r"\d+", s.args.split(",")[0]):
        yield s.text(args=str(int(s.args) + 1))


def drop_fence(s, _):
    if re.match(r"(wgmma\.fence|fence\.proxy|fence\.mbarrier_init|cp\.async\.(bulk\.)?commit_group|wgmma\.commit_group)", s.op):
        yield ""


def swap_fragment(s, _):
    if s.op.startswith("mma."):
        o = s.operands()
        for index in (1, 2):
            r = registers(o[index])
            pairs = [(i, j) for i in range(len(r)) for j in range(i + 1, len(r)) if r[i] != r[j]]
            for i, j in pairs:
                q = list(r)
                q[i], q[j] = q[j], q[i]
                yield s.text(args=", ".join([*o[:index], "{" + ", ".join(q) + "}", *o[index + 1 :]]))


def swap_result(s, _):
    """Two accumulators of a product change places."""
    if s.op.startswith("mma."):
        o = s.operands()
        d, c = registers(o[0]), registers(o[3])
        if d == c and len(d) == 4:
            for i, j in ((0, 1), (1, 2)):
                q = list(d)
                q[i], q[j] = q[j], q[i]
                group = "{" + ", ".join(q) + "}"
                yield s.text(args=", ".join([group, o[1], o[2], group]))


def drop_accumulate(s, _):
    if s.op.startswith("fma.") and not re.match(r"0[fd]0+$", s.operands()[3]):
        o = s.operands()
        yield s.text(op=s.op.replace("fma.", "mul."), args=", ".join(o[:3]))
    elif re.match(r"add\.(rn\.)?(ftz\.)?f(32|64)$", s.op):
        o = s.operands()
        yield s.text(op="mov." + s.parts()[-1], args=f"{o[0]}, {o[2]}")
    elif s.op.startswith("mma.") and s.op.split(".")[-4:][0] == "f32":
        c = registers(s.operands()[3])
        yield "\n".join([*(f"mov.f32 {r}, 0f00000000;" for r in c if r.startswith("%")), s.text()])


def drop_scale(s, _):
    if re.match(r"mul\.(rn\.)?(ftz\.)?f(32|64)$", s.op):
        o = s.operands()
        if o[1] != o[2]:
            yield s.text(op="mov." + s.parts()[-1], args=f"{o[0]}, {o[1]}")


def wrong_bound(s, _):
    p = s.parts()
    if p[0] == "setp" and len(p) == 3 and p[1] in ORDER and p[2] in INTEGER:
        yield s.text(op=f"setp.{ORDER[p[1]]}.{p[2]}")


def drop_guard(s, _):
    if not s.guard:
        return
    if s.op == "bra":
        yield ""
    elif not s.op.startswith(("bra", "ret", "exit")):
        yield s.text(guard="")


def drop_mask(s, _):
    o = s.operands()
    if s.op.startswith("selp."):
        yield s.text(op="mov." + s.parts()[1], args=f"{o[0]}, {o[1]}")
    elif s.op in ("and.pred", "or.pred"):
        yield s.text(op="mov.pred", args=f"{o[0]}, {o[1]}")
    elif s.op.startswith("cp.async.c") and len(o) == 4:
        yield s.text(args=", ".join(o[:3]))


def access_bytes(s):
    p = s.parts()
    size = next((SIZES[t[1:]] for t in reversed(p) if t[1:] in SIZES and t[0] in "bsuf"), 4)
    return size * {"v2": 2, "v4": 4, "v8": 8}.get(next((t for t in p if re.fullmatch(r"v\d", t)), ""), 1)


def wrong_offset(s, _):
    if re.match(r"(ld|st)\.(global|shared)|ldmatrix|stmatrix|cp\.async\.c[ag]|red\.|atom\.", s.op):
        step = 16 if s.op.startswith(("ldmatrix", "stmatrix", "cp.async")) else access_bytes(s)
        for match in re.finditer(r"\[([%\w$]+)(?:\+(-?\d+))?\]", s.args):
            yield s.text(args=s.args[: match.start()] + f"[{match.group(1)}+{int(match.group(2) or 0) + step}]" + s.args[match.end() :])


def wrong_stride(s, _):
    o = s.operands()
    if re.match(r"(mul\.(lo|wide)|mad\.lo)\.[su](32|64)$", s.op):
        if re.fullmatch(r"-?\d+", o[2]):
            yield s.text(args=", ".join([o[0], o[1], str(int(o[2]) + 1), *o[3:]]))
        elif s.op.startswith("mul.lo."):
            yield s.text(op=s.op.replace("mul.", "mad."), args=", ".join([*o, o[1]]))
    elif re.match(r"shl\.b(32|64)$", s.op) and re.fullmatch(r"\d+", o[2]):
        yield s.text(args=f"{o[0]}, {o[1]}, {int(o[2]) + 1}")


def wrong_rounding(s, _):
    if re.match(r"cvt\.rn\.(bf16|f16|bf16x2|f16x2)\.f32", s.op):
        yield s.text(op=s.op.replace("cvt.rn.", "cvt.rz."))


def wrong_lane(s, _):
    if s.op.startswith("shfl.sync.bfly"):
        o = s.operands()
        if re.fullmatch(r"\d+", o[2]):
            yield s.text(args=", ".join([o[0], o[1], str(int(o[2]) // 2 or 2), *o[3:]]))


def wrong_constant(s, _):
    if re.match(r"(fma|mul|add|sub|div)\.", s.op):
        for match in re.finditer(r"0f([0-9A-F]{8})", s.args):
            if match.group(1) not in ("00000000", "3F800000", "BF800000", "80000000"):
                value = int(match.group(1), 16) ^ 0x00080000
                yield s.text(args=s.args[: match.start()] + f"0f{value:08X}" + s.args[match.end() :])


def wrong_identity(s, _):
    """A sum or a largest value that starts at something else."""
    if s.op == "mov.f32" and re.search(r", 0fFF(800000|7FFFFF)$", s.args):
        yield s.text(args=s.operands()[0] + ", 0f00000000")
    elif s.op in ("mov.f32", "mov.f64") and re.search(r", 0[fd]0+$", s.args):
        yield s.text(args=s.operands()[0] + (", 0f3F800000" if s.op == "mov.f32" else ", 0d3FF0000000000000"))


def wrong_extreme(s, _):
    if re.match(r"(max|min)\.f(32|64)", s.op):
        swapped = s.op.replace("max", "MIN").replace("min", "max").replace("MIN", "min")
        yield s.text(op=swapped)


def wrong_sign(s, _):
    o = s.operands()
    if re.match(r"sub\.(rn\.)?(ftz\.)?f(32|64)$", s.op):
        yield s.text(args=f"{o[0]}, {o[2]}, {o[1]}")
    elif re.match(r"neg\.f(32|64)$", s.op):
        yield s.text(op="mov." + s.parts()[-1])


def wrong_key(s, _):
    """A constant of the random numbers."""
    if re.match(r"(mul\.(hi|lo|wide)|add|xor|mad\.lo)\.[sub]32$", s.op):
        for match in re.finditer(r"(?<![\w%])(-?\d{8,})(?!\w)", s.args):
            yield s.text(args=s.args[: match.start()] + str(int(match.group(1)) ^ 1) + s.args[match.end() :])


def wrong_transpose(s, _):
    if s.op.startswith("ldmatrix.") and ".trans" in s.op:
        yield s.text(op=s.op.replace(".trans", ""))
    elif s.op.startswith("ldmatrix."):
        yield s.text(op=re.sub(r"(\.x[124])", r"\1.trans", s.op))


def drop_store(s, _):
    if re.match(r"(st\.(global|shared)|red\.|stmatrix)", s.op):
        yield ""


def wrong_argument(s, context):
    """The launch passes another number."""
    if s in context.params:
        target, kind = s.operands()[0], context.kind(s)
        if kind == "integer":
            size = "64" if s.parts()[-1].endswith("64") else "32" if s.parts()[-1].endswith("32") else None
            if size:
                yield s.text() + f"\nadd.s{size} {target}, {target}, 1;"
        elif kind == "float":
            yield s.text() + f"\nadd.f32 {target}, {target}, {target};"


def wrong_pointer(s, context):
    if s in context.params and context.kind(s) == "pointer":
        target = s.operands()[0]
        yield s.text() + f"\nadd.s64 {target}, {target}, 16;"


def no_pointer(s, context):
    """The launch leaves out a tensor, as if there were no bias."""
    if s in context.params and context.kind(s) == "pointer":
        yield s.text() + f"\nmov.u64 {s.operands()[0]}, 0;"


def swap_arguments(s, context):
    if s in context.params:
        at, kind = context.params.index(s), context.kind(s)
        for other in context.params[at + 1 :]:
            if other.op == s.op and context.kind(other) == kind and other.operands()[1] != s.operands()[1]:
                # The other load's target is given the value of this one, and this one's the other's.
                yield ("swap", s.text(args=f"{s.operands()[0]}, {other.operands()[1]}"), other,
                       other.text(args=f"{other.operands()[0]}, {s.operands()[1]}"))  # fmt: skip
                break


OPERATORS = (
    drop_barrier, drop_wait, later_wait, drop_fence, swap_fragment, swap_result, drop_accumulate, drop_scale, wrong_bound,
    drop_guard, drop_mask, wrong_offset, wrong_stride, wrong_rounding, wrong_lane, wrong_constant, wrong_identity,
    wrong_extreme, wrong_sign, wrong_key, wrong_transpose, drop_store, wrong_argument, wrong_pointer, no_pointer, swap_arguments,
)  # fmt: skip


def wide_divisions(kernel):
    """Lines of basic blocks that hold a 64-bit division: the compiler's slow path for numbers of 2^32 and more, beside one
    in 32 bits."""
    out, block, slow = set(), [], False
    for s in kernel.statements:
        block.append(s.line)
        slow = slow or re.match(r"(div|rem)\.[su]64", s.op) is not None
        if s.op.startswith(("bra", "ret", "exit")):
            out.update(block if slow else ())
            block, slow = [], False
    return out


def places(lines, kernel):
    """Every place of every operator in a kernel."""
    context, skip, counts, out = Context(kernel), wide_divisions(kernel), {}, []

    def add(operator, line, before, after, insert=()):
        n = counts.get(operator, 0)
        counts[operator] = n + 1
        out.append(Place(kernel.name, operator, n, line, before, after, kernel.location.get(line), insert))

    for s in kernel.statements:
        if s.line in skip:
            continue
        for operator in OPERATORS:
            for after in operator(s, context):
                insert = ()
                if isinstance(after, tuple):
                    _, after, other, text = after
                    insert = (other.line, text)
                if after == "" and s.before.strip() == "{":
                    after = "{ }"
                add(operator.__name__, s.line, lines[s.line], after, insert)
    used = "\n".join(lines[kernel.body : kernel.end])
    for axis in "xyz":
        if f"%ctaid.{axis}" in used:
            early = (
                f".reg .pred %mutant_p;\n.reg .b32 %mutant_r<2>;\nmov.u32 %mutant_r0, %ctaid.{axis};\nadd.u32 %mutant_r0, %mutant_r0, 1;\n"
                f"mov.u32 %mutant_r1, %nctaid.{axis};\nsetp.eq.u32 %mutant_p, %mutant_r0, %mutant_r1;\n@%mutant_p ret;"
            )
            add("short_grid", kernel.body, "", early + "\n" + lines[kernel.body])
    for at in range(kernel.begin, kernel.end):
        match = re.match(r"^(\s*\.shared\s+\.align\s+(\d+)\s+\.b8\s+\w+)\[(\d+)\];", lines[at])
        if match and int(match.group(3)) > 4:  # half: its end may be padding
            add("short_shared", at, lines[at], f"{match.group(1)}[{int(match.group(3)) // 2}];")
    return out


def apply(lines, place):
    """The module's text with one place broken."""
    out = list(lines)
    out[place.line] = place.after
    if place.insert:
        out[place.insert[0]] = place.insert[1]
    return "\n".join(out)


def probe(lines, place):
    """The module's text with a trap at the place: shows whether a test gets there at all."""
    out = list(lines)
    out[place.line] = "trap;\n" + out[place.line] if place.operator != "short_shared" else out[place.line]
    return "\n".join(out)
