"""Bad inputs, each with the exact message and exit code that a person gets: the table is bad_inputs.txt.

usage: bad_inputs.py GANTRAIN [-k WORD] [--write]

A case makes files in a folder of its own and runs the program there. What it says last on standard error, word for word, and
its exit code are held against the table; no run may leave an unfinished file under its final name. --write writes
the table anew: read the difference. Python's standard library only.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fuzz"))
import make_corpus as corpus  # noqa: E402

MODEL = {
    "model_type": "llama", "vocab_size": 259, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYER = {
    "input_layernorm": [8], "self_attn.q_proj": [8, 8], "self_attn.k_proj": [4, 8], "self_attn.v_proj": [4, 8],
    "self_attn.o_proj": [8, 8], "post_attention_layernorm": [8], "mlp.gate_proj": [8, 8], "mlp.up_proj": [8, 8],
    "mlp.down_proj": [8, 8],
}  # fmt: skip
TENSORS = {"model.embed_tokens.weight": [259, 8], "model.norm.weight": [8]} | {
    f"model.layers.0.{part}.weight": shape for part, shape in LAYER.items()
}
PAIRS = b"".join(b'{"prompt": "p%d", "completion": "c%d"}\n' % (i, i) for i in range(8))


def tokenizer():
    special = [{"id": i, "content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    return {"added_tokens": special, "decoder": {"type": "ByteFallback"},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": []}}  # fmt: skip


def weights(change=None):
    """The model's safetensors as (header, data); `change` edits the header or gives new data."""
    rng = random.Random(1)
    header, data = {}, b""
    for name, shape in TENSORS.items():
        begin = len(data)
        data += b"".join(struct.pack("<f", rng.uniform(-0.3, 0.3)) for _ in range(corpus.count(shape)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    if change:
        data = change(header, data) or data
    return corpus.container(header, data)


def model(folder, config=None, change=None, tokens=True):
    """A whole tiny model, or one that is wrong in a known way."""
    place = folder / "model"
    place.mkdir()
    (place / "config.json").write_bytes(corpus.text(MODEL | (config or {})))
    (place / "model.safetensors").write_bytes(weights(change))
    if tokens:
        (place / "tokenizer.json").write_bytes(corpus.text(tokenizer()))


def cut_file(name, size):
    def write(folder):
        model(folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return write


def file(name, content):
    """The model and one file beside it."""

    def write(folder):
        model(folder)
        (folder / name).write_bytes(content() if callable(content) else content)

    return write


def changed(config=None, change=None, tokens=True):
    return lambda folder: model(folder, config, change, tokens)


def trained(config=None, change=None, tokens=True):
    def write(folder):
        model(folder, config, change, tokens)
        (folder / "data.jsonl").write_bytes(PAIRS)

    return write


def run_file(text):
    def write(folder):
        model(folder)
        (folder / "data.jsonl").write_bytes(PAIRS)
        (folder / "run.toml").write_bytes(text)

    return write


def edit(name, **fields):
    def change(header, data):
        header[name] = header[name] | fields

    return change


def drop(name):
    def change(header, data):
        begin, end = header.pop(name)["data_offsets"]
        for entry in header.values():
            if entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
        return data[:begin] + data[end:]

    return change


def scale(factors):
    def change(header, data):
        for name, factor in factors.items():
            begin, end = header[name]["data_offsets"]
            floats = [factor * x for (x,) in struct.iter_unpack("<f", data[begin:end])]
            data = data[:begin] + struct.pack(f"<{len(floats)}f", *floats) + data[end:]
        return data

    return change


def value(name, index, number):
    def change(header, data):
        at = header[name]["data_offsets"][0] + 4 * index
        return data[:at] + struct.pack("<f", number) + data[at + 4 :]

    return change


TRAIN = ["train", "model=model", "data.train=data.jsonl", "output=run", "train.steps=2", "train.warmup_ce_steps=1",
         "train.batch=2", "generator.kind=static", "generator.prompt_length=2", "loss.kind=ce", "threads=1",
         "dtype=f32"]  # fmt: skip
LORA = [word for word in TRAIN if not word.startswith("generator.")] + ["method=lora", "lora.rank=2", "lora.alpha=4", "adapter=peft"]
INSPECT = ["inspect", "model"]
DATA = ["inspect", "data.jsonl"]


def adapter(config, tensors):
    """The model, data, and a PEFT folder."""

    def write(folder):
        trained()(folder)
        (folder / "peft").mkdir()
        (folder / "peft" / "adapter_config.json").write_bytes(corpus.text(config) if isinstance(config, dict) else config)
        (folder / "peft" / "adapter_model.safetensors").write_bytes(corpus.safetensors(tensors) if isinstance(tensors, dict) else tensors)

    return write


def data(content, *settings, name="data.jsonl"):
    return file(name, content), ["inspect", name, *settings]


CASES = []


def case(name, make, command, **options):
    CASES.append((name, make, command, options))


def find_cases():
    # Weights: safetensors, cut at every boundary of the header and where its numbers lie.
    n = len(weights()) - 8 - 4 * sum(corpus.count(s) for s in TENSORS.values())
    for size in (0, 7, 8, 9, 8 + n // 2, 8 + n - 1, 8 + n, -1):
        case(f"safetensors cut at {size}", cut_file("model/model.safetensors", size), INSPECT)
    norm = "model.norm.weight"
    whole = file("model/model.safetensors", lambda: struct.pack("<Q", (1 << 64) - 1) + weights()[8:])
    case("header length overflows", whole, INSPECT)
    for label, change in {
        "shape overflows": edit(norm, shape=[1 << 40, 1 << 40]),
        "extent is negative": edit(norm, shape=[-8]),
        "offsets overlap": edit(norm, data_offsets=[0, 32]),
        "offsets leave the file": edit(norm, data_offsets=[8288, 1 << 40]),
        "offsets backwards": edit(norm, data_offsets=[8320, 8288]),
        "offsets no numbers": edit(norm, data_offsets=["0", "1"]),
        "unknown type": edit(norm, dtype="F8_E5M2"),
        "integer weights": edit(norm, dtype="I32"),
        "wrong shape": edit(norm, shape=[4, 2]),
        "missing tensor": drop("model.layers.0.mlp.up_proj.weight"),
        "NaN": value("model.layers.0.mlp.up_proj.weight", 13, float("nan")),
        "infinite norm": value(norm, 3, float("inf")),
    }.items():
        command = TRAIN if label in ("NaN", "infinite norm") else INSPECT
        case(label, trained(change=change), command)
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    doubled = corpus.container(b"{%s,%s}" % (entry, entry), bytes(4))
    case("doubled tensor", file("model/model.safetensors", doubled), INSPECT)
    case("unexpected tensor", file("model/model.safetensors",
         lambda: weights(lambda h, d: h.update(b={"dtype": "F32", "shape": [1], "data_offsets": [len(d), len(d) + 4]}) or d + bytes(4))), INSPECT)  # fmt: skip
    for label, content in {
        "index is cut": b'{"weight_map": {"a":',
        "index without map": b"{}",
        "index leaves the folder": b'{"weight_map": {"a": "../a.safetensors"}}',
        "index names no file": b'{"weight_map": {"a": "b.safetensors"}}',
        "index misplaces": corpus.text({"weight_map": {"a": "model.safetensors"} | {n: "model.safetensors" for n in TENSORS}}),
    }.items():
        case(label, file("model/model.safetensors.index.json", content), INSPECT)
    # The model's folder.
    case("no such model", lambda f: None, INSPECT)
    case("no config", lambda f: (f / "model").mkdir(), INSPECT)
    case("no tokenizer", trained(tokens=False), TRAIN)
    for label, config in {
        "unknown rope": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "another architecture": {"model_type": "qwen2"},
        "quantised weights": {"quantization_config": {"quant_method": "gptq"}},
        "field of the wrong type": {"hidden_size": "8"},
        "heads do not divide": {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 4},
        "more tokens than rows": {"vocab_size": 100},
        "no width": {"hidden_size": 0},
    }.items():
        case(label, changed(config=config), INSPECT)
    case("config is cut", file("model/config.json", b'{"vocab_size": 25'), INSPECT)
    case("config key twice", file("model/config.json", b'{"vocab_size": 2, "vocab_size": 3}'), INSPECT)
    # GGUF: cut in each field of the header.
    good = dict(corpus.gguf_files())
    for size in (0, 3, 4, 8, 16, 24, 32, 52, 56, 400, 800, -1):
        case(f"gguf cut at {size}", file("m.gguf", good["model_scored"][:size]), ["inspect", "m.gguf"])
    for label in ("unknown_type", "counts_lie", "overlap", "yarn", "version_9", "bad_utf8"):
        case(f"gguf {label}", file("m.gguf", good[label]),
             ["tokenize", "--model", "m.gguf"] if label == "bad_utf8" else ["inspect", "m.gguf"])
    bin_file = dict(corpus.llama2c_files())
    for size in (0, 27, 28, 100, -1):
        case(f"llama2.c cut at {size}", file("m.bin", bin_file["whole"][:size]), ["inspect", "m.bin"])
    case("llama2.c too long", file("m.bin", bin_file["whole"] + bytes(4)), ["inspect", "m.bin"])
    case("llama2.c version 1", file("m.bin", bin_file["version_1"]), ["inspect", "m.bin"])
    case("llama2.c alone", file("m.bin", bin_file["whole"]), ["tokenize", "--model", "m.bin"])
    # Tokenizers.
    tokenize = ["tokenize", "--model", "model"]
    for label, content in {
        "tokenizer is cut": corpus.text(tokenizer())[:-20],
        "tokenizer of another kind": dict(corpus.tokenizer_json_files())["wordpiece"],
        "merge of no token": dict(corpus.tokenizer_json_files())["missing_token"],
        "two tokens one id": corpus.text({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}),
        "id far outside": dict(corpus.tokenizer_json_files())["large_id"],
    }.items():
        case(label, file("model/tokenizer.json", content), tokenize)
    pieces = dict(corpus.sentencepiece_files())
    for label in ("no_protobuf", "tiktoken", "no_unk", "char_map"):
        case(f"sentencepiece {label}", file("t.model", pieces[label]), ["tokenize", "--model", "t.model"])
    case("sentencepiece empty", file("t.model", b""), ["tokenize", "--model", "t.model"])
    case("sentencepiece cut", file("t.model", pieces["merges"][:1000]), ["tokenize", "--model", "t.model"])
    tok = dict(corpus.llama2c_tokenizer_files())
    for size in (0, 3, 4, 8, 12, 14):
        case(f"tokenizer.bin cut at {size}", file("tok.bin", tok["whole"][:size]), ["tokenize", "--model", "tok.bin"])
    # Data.
    for label, content, *settings in (
        ("empty file", b""),
        ("bad UTF-8", b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xe4", "completion": "b"}\n'),
        ("UTF-16", '{"prompt": "a"}'.encode("utf-16")),
        ("NUL byte", b'{"prompt": "a\0", "completion": "b"}\n'),
        ("NUL character", b'{"prompt": "a\\u0000", "completion": "b"}\n'),
        ("not JSON", b'{"prompt": "a", "completion": "b"}\r\n{"prompt": "a" "completion"}\r\n'),
        ("JSON cut", b'{"prompt": "a", "completion": "b'),
        ("non-string field", b'{"prompt": "a", "completion": 1.5}\n'),
        ("list for a string", b'{"prompt": ["a"], "completion": "b"}\n'),
        ("no object", b'["a", "b"]\n'),
        ("no known shape", b'{"question": "a", "answer": "b"}\n'),
        ("missing column", b'{"question": "a", "answer": "b"}\n', "data.prompt_template={qestion}", "data.completion_template={answer}"),
        ("key twice", b'{"prompt": "a", "prompt": "b", "completion": "c"}\n'),
        ("too deep", b'{"prompt": "a", "completion": "c", "x": ' + b"[" * 64 + b"]" * 64 + b"}\n"),
        ("array cut", b'[{"prompt": "a", "completion": "b"},'),
        ("all dropped", b'{"prompt": "a", "completion": ""}\n{"prompt": "b", "completion": " "}\n'),
        ("label unknown", b'{"prompt": "a", "completion": "b", "label": 3}\n', 'data.label_map.1=yes'),
        ("bad template", PAIRS, "data.prompt_template={prompt"),
    ):  # fmt: skip
        case(label, *data(content, *settings))
    case("one line of 100 MB", *data(lambda: b'{"prompt": "' + b"a" * 100_000_000 + b'"}\n'))
    case("row of 100 MB", *data(lambda: b"prompt,completion\nx," + b"a" * 100_000_000, name="data.csv"))
    case("csv quote open", *data(b'prompt,completion\na,"b\nc,d\n', name="data.csv"))
    case("csv columns", *data(b"prompt,completion\na,b,c\n", name="data.csv"))
    case("csv column twice", *data(b"prompt,prompt\na,b\n", name="data.csv"))
    case("csv missing column", *data(b"input,output\na,b\n", "data.prompt_template={inptu}", "data.completion_template={output}", name="data.csv"))  # fmt: skip
    case("unknown ending", *data(PAIRS, name="data.parquet"))
    for label, content in {
        "prompt longer than the context": b'{"prompt": "%s", "completion": "b"}\n' % (b"a" * 100),
    }.items():
        case(label, file("data.jsonl", content), TRAIN)
    # Configuration.
    for label, text in {
        "misspelt key": b"[train]\nbacth = 3\n",
        "misspelt section": b"[optimiser]\nlr = 1e-3\n",
        "wrong type": b'[train]\nbatch = "3"\n',
        "out of range": b"\n\n[train]\nbatch = 0\n",
        "misspelt choice": b'[loss]\nkind = "gumble"\n',
        "not TOML": b"[train\nbatch = 3\n",
        "config key twice ": b"seed = 1\nseed = 2\n",
        "config not UTF-8": b'model = "\xff"\n',
        "not a number": b"[optimizer]\nlr = nan\n",
        "section as value": b"train = 3\n",
    }.items():
        case(label, run_file(text), ["train", "run.toml"])
    case("misspelt word", run_file(b""), [*TRAIN, "train.bacth=3"])
    case("value out of range", run_file(b""), [*TRAIN, "train.batch=99999999"])
    case("gates exclude each other", run_file(b""), [*TRAIN, "train.gate_g=0.9", "train.gate_d=0.5"])
    case("unknown flag", run_file(b""), [*TRAIN, "--resum"])
    case("unknown verb", run_file(b""), ["trian"])
    case("no configuration file", run_file(b""), ["train", "nothing.toml"])
    # Adapters, and what is trained.
    low_rank = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    q, v = (f"base_model.model.model.layers.0.self_attn.{x}_proj.lora_" for x in "qv")
    tensors = {q + "A.weight": [2, 8], q + "B.weight": [8, 2], v + "A.weight": [2, 8], v + "B.weight": [4, 2]}
    case("no adapter folder", trained(), LORA)
    case("adapter config cut", adapter(b'{"peft_type": "LOR', tensors), LORA)
    case("adapter weights cut", adapter(low_rank, corpus.safetensors(tensors)[:-1]), LORA)
    case("adapter of IA3", adapter({"peft_type": "IA3"}, tensors), LORA)
    case("adapter of DoRA", adapter(low_rank | {"use_dora": True}, tensors), LORA)
    case("adapter without a half", adapter(low_rank, {q + "A.weight": [2, 8]}), LORA)
    case("adapter with a stranger", adapter(low_rank, tensors | {"x": [1]}), LORA)
    case("adapter of another width", adapter(low_rank, tensors | {v + "B.weight": [8, 2]}), LORA)
    case("adapter of another rank", adapter(low_rank, tensors), [*LORA, "lora.rank=3"])
    case("adapter on other layers", adapter(low_rank, tensors), [*LORA, "lora.targets=q"])
    case("prompt for an adapter", adapter({"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": [2, 8]}), LORA)
    case("prompt of another length", adapter({"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": [3, 8]}), [*TRAIN, "adapter=peft"])
    case("adapter for a prompt", adapter(low_rank, tensors), [*TRAIN, "adapter=peft"])
    case("method against kind", trained(), [*TRAIN, "method=gan"])
    case("lora with a prompt", trained(), [*TRAIN, "method=lora"])
    case("misspelt layer", trained(), [*LORA, "lora.targets=q,dwon"])
    case("no layer", trained(), [*LORA, "lora.targets=[]"])
    # The run.
    case("output is a file", file("data.jsonl", PAIRS), [*TRAIN, "output=data.jsonl/run"])
    case("output cannot be made", file("data.jsonl", PAIRS), [*TRAIN, "output=/proc/run"])
    case("nothing to resume", file("data.jsonl", PAIRS), ["train", "--resume", "output=run"])
    case("over the memory limit", file("data.jsonl", PAIRS), [*TRAIN, "memory_limit=1KB"])
    # Each weight is finite; gate times up is not.
    huge = {f"model.layers.0.mlp.{part}_proj.weight": 1e25 for part in ("gate", "up", "down")}
    case("NaN loss", trained(change=scale(huge)), TRAIN)
    case("not enough memory", file("data.jsonl", lambda: PAIRS * 200000), [*TRAIN, "data.duplicates=drop"],
         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)))
    # What looks bad and is not.
    fine = ["inspect", "data.jsonl", "--json"]
    case("CRLF", file("data.jsonl", PAIRS.replace(b"\n", b"\r\n")), fine)
    case("byte order mark", file("data.jsonl", b"\xef\xbb\xbf" + PAIRS), fine)
    case("U+0085 in a line", file("data.jsonl", PAIRS.replace(b"p1", "p\u0085\u20281".encode())), fine)
    case("no last line end", file("data.jsonl", PAIRS[:-1]), fine)


def unfinished(run):
    """Files of a run folder that are under their final name and not whole."""
    found = [str(f) for f in run.rglob("*.tmp.*")]
    for checkpoint in run.glob("checkpoints/step-*.ckpt"):
        content = checkpoint.read_bytes()
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if len(content) != 8 + struct.unpack("<Q", content[:8])[0] + max(ends):
            found.append(str(checkpoint))
    for text in run.glob("summary.json"):
        json.loads(text.read_text())
    for text in run.glob("config.toml"):
        if not text.read_text().endswith("\n"):
            found.append(str(text))
    return found


def run(gantrain, case):
    name, make, command, options = case
    with tempfile.TemporaryDirectory(prefix="gantrain_bad_") as folder:
        folder = pathlib.Path(folder)
        make(folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GANTRAIN_")}
        result = subprocess.run([gantrain, *command], cwd=folder, env=environment, capture_output=True, timeout=300,
                                stdin=subprocess.DEVNULL, **options)  # fmt: skip
        said = result.stderr.decode(errors="replace")
        at = said.find("gantrain: error: ")
        said = said[at:].rstrip("\n") if at >= 0 else said.rstrip("\n")
        said = re.sub(r"\b\d+\.\d MB", "N MB", said)  # what the program itself takes is the machine's
        if result.returncode == 0 and "--json" in command:
            facts = json.loads(result.stdout)
            said = f"read {facts['read']}, kept {facts['kept']}; {json.dumps(facts['samples'][1])}"
        left = unfinished(folder / "run")
        return f"## {name} [{result.returncode}]\n{said}\n" + "".join(f"LEFT BEHIND: {file}\n" for file in left)


def full_disk(gantrain):
    """Trains on file systems of 4 KiB, 8 KiB, ... until the run fits. Returns (failures, the files that were cut, a note)."""
    problems, where = [], set()
    with tempfile.TemporaryDirectory(prefix="gantrain_full_") as folder:
        folder = pathlib.Path(folder)
        trained()(folder)
        (folder / "run").mkdir()
        command = [*TRAIN, "train.save_every=1", "train.keep=2", "train.steps=4"]
        for size in range(4, 1024, 4):
            # A mount name space of its own: nothing stays mounted, whatever happens.
            script = f'mount -t tmpfs -o size={size}k tmpfs run || exit 77; "$@"; code=$?; rm -rf out; cp -r run out; exit $code'
            result = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", gantrain, *command], cwd=folder,
                                    capture_output=True, timeout=300)  # fmt: skip
            if result.returncode == 77:
                return problems, where, f"SKIPPED: a small file system cannot be mounted: {result.stderr.decode().strip()}"
            said = result.stderr.decode().rstrip("\n").split("gantrain: error: ")[-1]
            problems += [f"{size} KiB: left behind {f}" for f in unfinished(folder / "out")]
            if result.returncode == 0:
                return problems, where, f"the run needs {size} KiB"
            match = re.match(r"run/([a-z]*)[^:]*: .*No space left on device", said)
            if result.returncode != 1 or not match:
                problems.append(f"{size} KiB: exit code {result.returncode}: {said}")
            else:
                where.add(match[1])
    return [*problems, "the run fits no file system"], where, ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gantrain")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-k", default="")
    options = parser.parse_args()
    gantrain = os.path.abspath(options.gantrain)
    find_cases()
    cases = [c for c in CASES if options.k in c[0]]
    names = [c[0] for c in cases]
    assert len(set(names)) == len(names), "a name stands twice"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda c: run(gantrain, c), cases))
    table = HERE / "bad_inputs.txt"
    if options.write:
        table.write_text("\n".join(texts))
        return 0
    sections = re.split(r"\n(?=## )", table.read_text())
    expected = {s.split(" [")[0][3:]: s.rstrip("\n") for s in sections}
    wrong = 0
    for (name, *_), text in zip(cases, texts):
        if text.rstrip("\n") != expected.get(name):
            wrong += 1
            print(f"expected: {expected.get(name)}\ngot:      {text}")
    if not options.k and set(expected) != set(names):
        wrong += 1
        print(f"the table has cases that are not tried, or the other way round: {set(expected) ^ set(names)}")
    print(f"{len(cases)} bad inputs, {wrong} wrong messages")
    if not options.k:
        problems, where, note = full_disk(gantrain)
        print(f"full disk: failing writes in {', '.join(sorted(where)) or 'nothing'}; {note}", *problems, sep="\n")
        if not note.startswith("SKIPPED") and not {"config", "events", "checkpoints", "tensorboard"} <= where:
            problems.append("not every file met a full disk")
        wrong += len(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
