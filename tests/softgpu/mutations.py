"""The per-instruction programs must notice a wrong instruction: each is run with changed PTX and must fail.

usage: mutations.py ROOT BUILD
"""

import os
import re
import subprocess
import sys
import tempfile

# program, what is changed in its PTX, the cases that must fail (all others must pass).
MUTATIONS = (
    ("integer", r"\bmad\.hi\.s32\b", "mad.hi.u32", "mad_hi_s32"),
    ("integer", r"\bshr\.s16\b", "shr.u16", "shr_s16"),
    ("integer", r"lop3\.b32 (.*), 0xe8", r"lop3.b32 \1, 0xe9", "lop3_e8"),
    ("integer", r"\bshf\.l\.clamp", "shf.l.wrap", "shf_l_clamp"),
    ("floating", r"\badd\.rz\.f32", "add.rn.f32", "add_rz"),
    ("floating", r" min\.f32 r", " max.f32 r", "min_f32"),
    ("floating", r"fma\.rn\.bf16 ", "fma.rn.relu.bf16 ", "fma_bf16"),
    ("floating", r"cvt\.rn\.bf16x2\.f32", "cvt.rz.bf16x2.f32", "f32_to_bf16x2"),
    ("floating", r"cvt\.rpi\.s64\.f32", "cvt.rmi.s64.f32", "f32_to_s64_rp"),
    ("matrix", r"(mma\S+m16n8k16\S+\.bf16\.bf16\.f32\s+\{[^}]*\},\s*\{)([^,]+, *)([^,]+, *)([^,]+, *)([^}]+\})", r"\1\2\4\3\5", "bf16_k16"),
    ("matrix", r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.u8\.s8", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8", "u8_s8_k32"),
    ("matrix", r"(ldmatrix\S+\.x4)(\.shared)", r"\1.trans\2", "ldmatrix_4_false"),
    ("matrix", r"m16n8k32\.row\.col\.satfinite\.s32\.s8", "m16n8k32.row.col.s32.s8", "s8_k32_sat"),
    ("matrix", r"m16n8k64\.row\.col\.s32\.u4\.s4", "m16n8k64.row.col.s32.s4.s4", "u4_s4_k64"),
    ("matrix", r"stmatrix(\S+)\.x1\.trans", r"stmatrix\1.x1", "stmatrix_1_true"),
    ("floating", r"setp\.ltu\.f32", "setp.lt.f32", "setp_ltu"),
)


def run(root, build, program, *options):
    """(exit status, standard output) of a test program under tools/softgpu."""
    command = [os.path.join(root, "tools/softgpu"), "--build", build, *options, os.path.join(build, "bin/softgpu", program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def main():
    root, build = sys.argv[1:3]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for program in sorted({m[0] for m in MUTATIONS}):
            run(root, build, program, "--dump", os.path.join(folder, program))
        for number, (program, pattern, replacement, case) in enumerate(MUTATIONS):
            changed = os.path.join(folder, str(number))
            os.mkdir(changed)
            count = 0
            for name in os.listdir(os.path.join(folder, program)):
                with open(os.path.join(folder, program, name), encoding="utf-8") as file:
                    text, n = re.subn(pattern, replacement, file.read())
                count += n
                with open(os.path.join(changed, name), "w", encoding="utf-8") as file:
                    file.write(text)
            status, out = run(root, build, program, "--ptx", changed)
            failed = re.findall(r"^(\w+): operands", out, re.MULTILINE)
            good = count > 0 and status == 1 and failed == [case]
            wrong += not good
            print(f"{'ok' if good else 'WRONG'}: {program}: {pattern} -> {replacement}: {count} places, failed: {failed}")
    sys.exit(1 if wrong else 0)


main()
