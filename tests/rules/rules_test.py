"""The rules test tested: a tree that keeps the rules passes; each way to break one is caught, at its line."""

import os
import tempfile
import unittest

import rules

GOOD = {
    "core/check.h": "#include <string>\n",
    "core/dtype.h": "#include <cstdint>\n",
    "core/ops/norm.h": '#include "core/check.h"\n',
    "cpu/norm.cc": '#include "core/ops/norm.h"\n#include <oneapi/dnnl/dnnl.hpp>\n',
    "cpu/device.h": '#include "core/check.h"\n',
    "cuda/device/reduce.cuh": '#include "core/dtype.h"\n',
    "cuda/kernels/norm.cuh": '#include "cuda/device/reduce.cuh"\n',
    "cuda/runtime/lt.cc": "#include <cublasLt.h>\n#include <cuda_runtime.h>\n",
    "cuda/device.h": '#include "core/check.h"\n',
    "model/llama.h": '#include "core/check.h"\n',
    "model/json.cc": "#include <nlohmann/json.hpp>\n",
    "train/main.cc": '#include "cpu/device.h"\n#include "cuda/device.h"\n#include "model/llama.h"\n',
    "cuda/runtime/nccl.cc": "#include <nccl.h>\n",
    "tests/reference/norm.h": "#include <cmath>\n",
    "tests/support/devices.cc": '#include "cpu/device.h"\n#include "tests/reference/norm.h"\n',
    "docs/good.md": "[a](../core/check.h) [b](https://x.org/y) `core/ops/FAMILY.h` `tools/go.py --x` train/ce\n",
    "tools/go.py": "print('a todo list in a string is fine in lower case')\n",
}
# (file, its text, a piece of the message expected); each is laid over GOOD on its own.
BAD = [
    ("core/a.h", '\n#include "model/llama.h"\n', "core may include core, not model"),
    ("core/a.h", "\n#ifdef GANTRAIN_CUDA\n#endif\n", "no #if on a backend"),
    ("core/a.h", "\n#include <cuda_runtime.h>\n", "CUDA headers stay in cuda/"),
    ("model/a.cc", '\n#include "cpu/device.h"\n', "not cpu"),
    ("model/a.cc", '\n#include "cuda/device.h"\n', "not cuda"),
    ("model/a.cc", '\n#include "train/communicator.h"\n', "no file of the project"),
    ("model/a.h", "\n#include <nlohmann/json.hpp>\n", ".cc files only"),
    ("train/a.h", "\n#  include <CLI/CLI.hpp>\n", ".cc files only"),
    ("cpu/a.cc", '\n#include "cuda/device.h"\n', "not cuda"),
    ("cuda/a.cc", '\n#include "cpu/device.h"\n', "not cpu"),
    ("train/a.cc", '\n#include "cpu/device.h"\n', "not cpu"),
    ("train/a.cc", "\n#include <nccl.h>\n", "NCCL"),
    ("cuda/ops/a.cu", "\n#include <cublasLt.h>\n", "cuBLASLt"),
    ("cuda/kernels/a.cuh", '\n#include "core/dtype.h"\n', "cuda/device only"),
    ("cuda/kernels/a.cuh", '\n#include "cuda/device.h"\n', "cuda/device only"),
    ("cuda/device/a.cuh", '\n#include "core/check.h"\n', "core/dtype.h only"),
    ("tests/reference/a.h", '\n#include "core/check.h"\n', "standard library only"),
    ("tests/reference/a.h", "\n#include <fmt/format.h>\n", "standard library only"),
    ("tests/model/a.cc", '\n#include "cpu/device.h"\n', "tests/support only"),
    ("core/a.h", "\n#include <core/check.h>\n", "in quotes"),
    ("core/ops/a.h", '\n#include "norm.h"\n', "paths from the root"),
    ("docs/a.md", "\nthis is a TO" + "DO\n", "unfinished"),
    ("core/a.h", "\nint x;  // FIX" + "ME: later\n", "unfinished"),
    ("docs/a.md", "\n[a](nowhere.md#part)\n", "link to nowhere.md#part"),
    ("docs/a.md", "\nsee `core/nowhere.h` and `core/check.h`\n", "core/nowhere.h is not there"),
    ("docs/a.md", "```\ntools/nowhere --flag\n```\n", "tools/nowhere is not there"),
    ("docs/a.md", "\n`cpu/FAMILY.cuh`\n", "cpu/FAMILY.cuh is not there"),
    ("tools/a", "\ncd /wo" + "rk/main\n", "somebody's machine"),
    ("docs/a.md", "\nsee `/ro" + "ot/x`\n", "somebody's machine"),
]


class Rules(unittest.TestCase):
    def check(self, tree):
        with tempfile.TemporaryDirectory() as root:
            for path, text in tree.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                    file.write(text)
            return rules.check(root)

    def test_a_tree_that_keeps_the_rules_passes(self):
        self.assertEqual(self.check(GOOD), [])

    def test_each_broken_rule_is_caught_alone_and_at_its_line(self):
        for path, text, expected in BAD:
            with self.subTest(path=path, text=text):
                broken = self.check({**GOOD, path: text})
                self.assertEqual(len(broken), 1, broken)
                self.assertTrue(broken[0].startswith(f"{path}:2: "), broken)
                self.assertIn(expected, broken[0])

    def test_build_folders_are_left_out(self):
        self.assertEqual(self.check({**GOOD, "build/x/a.h": '#include "nowhere.h"\n'}), [])


if __name__ == "__main__":
    unittest.main()
