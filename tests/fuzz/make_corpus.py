"""Writes the seed corpus of the fuzz targets: small whole files of every format and some that are broken in known ways.

usage: make_corpus.py FOLDER    one folder a target; the result is the same each time
"""

import json
import pathlib
import struct
import sys

TINY = {
    "model_type": "llama", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 8, "tie_word_embeddings": True,
}  # fmt: skip
LAYER = {
    "input_layernorm": [4], "self_attn.q_proj": [4, 4], "self_attn.k_proj": [4, 4], "self_attn.v_proj": [4, 4],
    "self_attn.o_proj": [4, 4], "post_attention_layernorm": [4], "mlp.gate_proj": [4, 4], "mlp.up_proj": [4, 4],
    "mlp.down_proj": [4, 4],
}  # fmt: skip
TENSORS = {"model.embed_tokens.weight": [4, 4], "model.norm.weight": [4]} | {
    f"model.layers.0.{part}.weight": shape for part, shape in LAYER.items()
}
GGUF_NAMES = {
    "token_embd": [4, 4], "output_norm": [4], "blk.0.attn_norm": [4], "blk.0.attn_q": [4, 4], "blk.0.attn_k": [4, 4],
    "blk.0.attn_v": [4, 4], "blk.0.attn_output": [4, 4], "blk.0.ffn_norm": [4], "blk.0.ffn_gate": [4, 4],
    "blk.0.ffn_up": [4, 4], "blk.0.ffn_down": [4, 4],
}  # fmt: skip


def count(shape):
    n = 1
    for extent in shape:
        n *= extent
    return n


def text(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# safetensors


def container(header, data):
    head = header if isinstance(header, bytes) else text(header)
    return struct.pack("<Q", len(head)) + head + data


def safetensors(tensors, metadata=None, dtype="F32"):
    size = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}[dtype]
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, shape in tensors.items():
        begin = len(data)
        data += (b"\0\0\x80\x3f" * 2)[-size:] * count(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    return container(header, data)


def safetensors_files():
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield "model_f32", safetensors(TENSORS, {"format": "pt"})
    yield "model_bf16", safetensors(TENSORS, None, "BF16")
    yield "ids_i64", safetensors({"tokens": [1, 3]}, None, "I64")
    yield "empty_header", container({}, b"")
    yield "empty_tensor", container({"a": one | {"shape": [0, 3], "data_offsets": [0, 0]}}, b"")
    yield "overlap", container({"a": one, "b": one | {"data_offsets": [4, 12]}}, bytes(12))
    yield "hole", container({"a": one, "b": one | {"data_offsets": [12, 20]}}, bytes(20))
    yield "leaves_the_file", container({"a": one | {"data_offsets": [0, 1 << 62]}}, bytes(8))
    yield "shape_overflows", container({"a": one | {"shape": [1 << 62, 1 << 62]}}, bytes(8))
    yield "unknown_type", container({"a": one | {"dtype": "F8_E4M3"}}, bytes(8))
    yield "twice", container(b'{"a":%s,"a":%s}' % (text(one), text(one)), bytes(8))
    yield "deep", container(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", b"")
    yield "header_too_long", struct.pack("<Q", (1 << 64) - 1) + b"{}"
    yield "no_json", container(b"[1]", b"")


def index_files():
    where = {name: "a.safetensors" if "self_attn" in name else "b.safetensors" for name in TENSORS}
    yield "whole", text({"metadata": {"total_size": 10}, "weight_map": where})
    yield "outside", text({"weight_map": {"a": "../x.safetensors"}})
    yield "no_such_shard", text({"weight_map": {"a": "c.safetensors"}})
    yield "wrong_shard", text({"weight_map": {name: "a.safetensors" for name in TENSORS}})
    yield "no_map", text({"metadata": {}})
    yield "no_name", text({"weight_map": {"a": 3}})


# GGUF


def gstring(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gvalue(value):
    """(type number, bytes) of a metadata value."""
    if isinstance(value, bool):
        return 7, bytes([value])
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, (str, bytes)):
        return 8, gstring(value)
    kind = gvalue(value[0])[0] if value else 4
    if kind == 4 and any(isinstance(v, int) for v in value):
        kind, parts = 5, [struct.pack("<i", v) for v in value]
    else:
        parts = [gvalue(v)[1] for v in value]
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(parts)


def gguf(values, tensors, version=3, alignment=32):
    """tensors: name -> (extents slowest first, type number, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        kind, raw = gvalue(value)
        out += gstring(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += bytes(-len(data) % alignment)
        out += gstring(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", extent) for extent in reversed(shape))
        out += struct.pack("<IQ", kind, len(data))
        data += raw
    return out + bytes(-len(out) % alignment) + data


def gguf_files():
    shape = {
        "general.architecture": "llama", "llama.embedding_length": 4, "llama.block_count": 1,
        "llama.feed_forward_length": 4, "llama.attention.head_count": 1, "llama.context_length": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
    }  # fmt: skip
    scored = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\u2581a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0], "tokenizer.ggml.token_type": [2, 3, 3, 1],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    merged = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{m}}<|im_end|>{% endfor %}",
    }  # fmt: skip
    dense = {f"{name}.weight": (s, 0, b"\0\0\x80\x3f" * count(s)) for name, s in GGUF_NAMES.items()}
    yield "model_scored", gguf(shape | scored, dense)
    yield "model_merged", gguf(shape | merged, dense)
    yield "version_2", gguf(shape | scored, dense, version=2)
    yield "version_9", gguf(shape, {}, version=9)
    blocks = {"q8": ([1, 32], 8, bytes(34)), "q4_0": ([2, 32], 2, bytes(36)), "q4_1": ([1, 64], 3, bytes(40)),
              "q4_k": ([1, 256], 12, bytes(144)), "q6_k": ([1, 256], 14, bytes(210)),
              "f16": ([3], 1, bytes(6)), "bf16": ([2, 1], 30, bytes(4))}  # fmt: skip
    yield "quantised", gguf({}, blocks)
    yield "unknown_type", gguf({}, {"a": ([256], 13, bytes(176))})
    yield "linear_rope", gguf(shape | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, dense)
    yield "yarn", gguf(shape | {"llama.rope.scaling.type": "yarn"}, dense)
    # The second one's offset, 64, becomes 0.
    yield "overlap", gguf({}, {"a": ([16], 0, bytes(64)), "b": ([16], 0, bytes(64))}).replace(
        struct.pack("<IQ", 0, 64), struct.pack("<IQ", 0, 0))  # fmt: skip
    yield "counts_lie", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)
    yield "bad_utf8", gguf(shape | scored | {"tokenizer.ggml.tokens": ["a", b"\xff", "b", "c"]}, dense)


# llama2.c


def llama2c_files():
    header = struct.pack("<7i", 4, 4, 1, 1, 1, 4, 8)
    floats = sum(count(s) for s in TENSORS.values()) + 2 * 8 * 2
    yield "whole", header + b"\0\0\x80\x3f" * floats
    yield "own_head", struct.pack("<7i", 4, 4, 1, 1, 1, -4, 8) + bytes(4 * (floats + 16))
    yield "cut", header + bytes(100)
    yield "version_1", struct.pack("<7i", 0x616B3432, 1, 4, 4, 1, 1, 1)
    yield "huge", struct.pack("<7i", 131072, 131072, 1024, 1, 1, 16777216, 1 << 30)
    yield "negative", struct.pack("<7i", -1, -1, -1, -1, -1, -1, -1)


def llama2c_tokens(more):
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n"] + [f"<0x{b:02X}>" for b in range(256)] + more
    raw = [t if isinstance(t, bytes) else t.encode() for t in tokens]
    out = struct.pack("<i", max(len(t) for t in raw))
    return out + b"".join(struct.pack("<fi", -i, len(t)) + t for i, t in enumerate(raw))


def llama2c_tokenizer_files():
    yield "whole", llama2c_tokens([" ", "a", "b", " a", "ab"])
    yield "bad_utf8", llama2c_tokens([b"\xff"])
    yield "few", struct.pack("<i", 5) + struct.pack("<fi", 0.0, 5) + b"<unk>"
    yield "length_lies", struct.pack("<i", 5) + struct.pack("<fi", 0.0, -1)


# SentencePiece: protocol buffers by hand


def varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if n == 0:
            return out


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def sentencepiece(pieces, kind=2, normalizer=b""):
    out = b"".join(field(1, field(1, p) + field(2, float(-i)) + field(3, t)) for i, (p, t) in enumerate(pieces))
    return out + field(2, field(3, kind) + field(35, 1)) + field(3, field(1, "identity") + normalizer)


def sentencepiece_files():
    control = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    in_bytes = [(f"<0x{b:02X}>", 6) for b in range(256)]
    words = [("\u2581", 1), ("a", 1), ("b", 1), ("ab", 1), ("\u2581ab", 1)]
    yield "merges", sentencepiece(control + in_bytes + words)
    yield "unigram", sentencepiece(control + words, kind=1)
    yield "user_defined", sentencepiece(control + words + [("<|im_end|>", 4)])
    yield "no_unk", sentencepiece(words)
    yield "twice", sentencepiece(control + words + words)
    yield "empty_piece", sentencepiece(control + [("", 1)])
    yield "char_map", sentencepiece(control + words, normalizer=field(2, struct.pack("<I", 1 << 30) + b"abcd"))
    yield "tiktoken", b"IQ== 0\nIg== 1\n"
    yield "no_protobuf", b"\xff\xff\xff\xff\xff"


# tokenizer.json and its neighbours


def tokenizer_json_files():
    gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
    special = {"id": 5, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False,
               "special": True}  # fmt: skip
    merged = {
        "version": "1.0", "added_tokens": [special],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "Split", "pattern": {"Regex": gpt2}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120a": 4},
                  "merges": ["a b", ["\u0120", "a"]]},
    }  # fmt: skip
    replaced = {
        "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {"<unk>": 0, "\u2581": 1, "a": 2, "\u2581a": 3, "<0x0A>": 4}, "merges": [["\u2581", "a"]]},
    }  # fmt: skip
    yield "byte_level", text(merged)
    yield "byte_fallback", text(replaced)
    yield "metaspace", text(replaced | {"normalizer": None, "pre_tokenizer": {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}})  # fmt: skip
    yield "wordpiece", text({"model": {"type": "WordPiece", "vocab": {}}})
    yield "large_id", text({"model": {"type": "BPE", "vocab": {"a": 16777215}, "merges": []}})
    yield "missing_token", text({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})
    grow = {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 64}
    yield "grows", text(replaced | {"normalizer": {"type": "Sequence", "normalizers": [grow] * 3}})
    yield "slow_regex", text({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {
        "type": "Split", "pattern": {"Regex": "(l+)+(o+)+(\\s+)+x"}, "behavior": "Removed", "invert": False}})  # fmt: skip


def settings_files():
    yield "config", b"\0" + text(TINY | {"bos_token_id": 2, "eos_token_id": [2, 0]})
    yield "generation", b"\1" + text({"bos_token_id": -1, "eos_token_id": 1})
    yield "special", b"\2" + text({"bos_token": {"content": "<s>"}, "eos_token": "<s>"})
    chatml = "{% for m in messages %}{{'<|im_start|>' + m['role']}}<|im_end|>{% endfor %}"
    yield "chat", b"\3" + text({"add_bos_token": True, "chat_template": chatml})
    yield "chats", b"\3" + text({"chat_template": [{"name": "default", "template": chatml}, 3]})
    yield "jinja", b"\4" + chatml.encode()
    yield "odd", b"\3" + text({"bos_token": 3, "chat_template": {}})
    yield "id_outside", b"\0" + text({"bos_token_id": 1 << 63})


def config_files():
    yield "tiny", text(TINY)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    yield "llama3", text(TINY | {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "rope_scaling": llama3})
    yield "linear", text(TINY | {"rope_scaling": {"type": "linear", "factor": 2}, "eos_token_id": [1, 2]})
    yield "yarn", text(TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 2}})
    yield "parameters", text(TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    yield "other", text({"model_type": "gpt2"})
    yield "odd", text(TINY | {"hidden_size": "4", "vocab_size": 1 << 63})
    yield "infinite", b'{"rms_norm_eps": 1e999}'
    yield "quantised", text(TINY | {"quantization_config": {"bits": 4}})


def adapter_files():
    prompt = safetensors({"prompt_embeddings": [2, 4]})
    yield "config", b"\0" + text({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2})
    yield "lora", b"\2" + text({"peft_type": "LORA", "r": 1, "lora_alpha": 2.5, "bias": "none", "use_rslora": True})
    yield "lora_no_rank", b"\2" + text({"peft_type": "LORA"})
    yield "lora_dora", b"\2" + text({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "use_dora": True})
    v = "base_model.model.model.layers.0.self_attn.v_proj.lora_"
    yield "lora_weights", b"\3" + safetensors({v + "A.weight": [1, 4], v + "B.weight": [2, 1]})
    yield "lora_half", b"\3" + safetensors({v + "A.weight": [1, 4]})
    yield "lora_stranger", b"\3" + safetensors({v + "A.weight": [1, 4], v + "B.weight": [2, 1], "x": [1, 1]})
    yield "bottleneck", b"\0" + text({"peft_type": "BOTTLENECK", "width": 1, "activation": "gelu"})
    yield "bottleneck_wide", b"\0" + text({"peft_type": "BOTTLENECK", "width": 1 << 40, "activation": "gelu"})
    yield "prefix_config", b"\0" + text({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "prefix_projection": True})
    m = "model.layers.0.after_mlp."
    yield "bottleneck_weights", b"\5" + safetensors({m + "down.weight": [1, 4], m + "down.bias": [1], m + "up.weight": [4, 1], m + "up.bias": [4]})
    yield "bottleneck_half", b"\5" + safetensors({m + "down.weight": [1, 4], m + "up.weight": [4, 1]})
    yield "prefix_weights", b"\7" + safetensors({"prompt_embeddings": [3, 4]})
    yield "prefix_narrow", b"\7" + safetensors({"prompt_embeddings": [3, 2]})
    yield "weights", b"\1" + prompt
    yield "narrow", b"\1" + safetensors({"prompt_embeddings": [2, 3]})
    yield "wrong_type", b"\1" + safetensors({"prompt_embeddings": [2, 4]}, None, "F16")


# Data


def jsonl_files():
    yield "pairs", b'\0{"prompt":"a","completion":"b"}\r\n\n{"prompt":"","completion":"c","references":["d"]}'
    yield "alpaca", b'\0{"instruction":"i","input":"","output":"o"}\n{"instruction":"i","input":"n","output":"o"}'
    yield "chat", b'\x08{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}'
    yield "array", b'\1[{"text":"a"},{"input":"b","output":"c"},3,null]'
    yield "labels", b'\x47{"prompt":"p","completion":"c","label":1}\n{"prompt":"p","completion":"c","label":7}'
    yield "odd", b'\1{"prompt":1.5,"completion":null}\n{"prompt":"a"}\n[]\n{"prompt":"\\u0000","completion":"c"}\n{'
    yield "lines", '\1\ufeff{"prompt":"a\u0085b\u2028","completion":"\u0085"}\n'.encode()
    yield "latin1", b'\x80{"prompt":"\xe4","completion":"\xff"}'
    yield "deep", b'\1{"prompt":' + b"[" * 200 + b"]" * 200 + b"}"
    yield "surrogate", b'\1{"prompt":"\\ud800","completion":"x"}'
    yield "twice", b'\1{"prompt":"a","prompt":"b","completion":"c"}'
    yield "utf16", b"\0\xff\xfe{\0}\0"


def table_files():
    yield "tsv", b"\0prompt\tcompletion\na\tb\r\nc\td"
    yield "csv", b'\x11prompt,completion\n"a ""quoted"", one","two\nlines"\nx,y,z\n'
    yield "csv_names", b"\x511,2\n3,4\n"
    yield "csv_bar", b'\x91a|b\n"c"d|e\n'
    yield "lines", b"\x360 a sentence\n1 another\n"
    yield "labels", b"\x27prompt,completion\n0,x\n2,y\n"
    yield "open_quote", b'\x11a,b\n"c,d\n'
    yield "empty_header", b"\1\n\na\tb\n"
    yield "twice", b"\x11a,a\n1,2\n"
    yield "mark", "\1\ufeffprompt\tcompletion\n\u0085\tx\n".encode()


def train_config_files():
    yield "small", b'model = "m"\noutput = "run"\n[data]\ntrain = "t.jsonl"\nlabel_map = { "0" = "no" }\n'
    yield "players", b'[loss]\nkind = "gumbel"\nsamples = 2\n[train]\nsteps = 3\n[optimizer]\nlr = 1e-3\n[eval]\n' \
        b"temperatures = [0, 0.7]\n"  # fmt: skip
    yield "dotted", b'data.train = "a"\ntrain.batch = 8\nmemory_limit = "8GiB"\n'
    yield "words", b'train.batch=4\ndata.label_map.1=yes\neval.temperatures=0.5,1\nmodel="a b"\nmemory_limit=1MB\n'
    yield "misspelt", b"[train]\nbacth = 3\n"
    yield "wrong_type", b'[train]\nbatch = "3"\n'
    yield "outside", b"[train]\nbatch = 0\n"
    yield "strings", 'model = "\\u0000\\t\\u0085"\noutput = """\na\r\n"""\n[data]\nsystem = \'\u00e4\'\n'.encode()
    yield "dates", b"model = 1979-05-27T07:32:00Z\nseed = 0x7fffffffffffffff\n"
    yield "deep", b"model = " + b"[" * 300 + b"]" * 300
    yield "twice", b"seed = 1\nseed = 2\n"
    yield "numbers", b"[optimizer]\nlr = inf\nclip = nan\neps = 1e-320\n"


# Checkpoints


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checkpoint(texts, tensors, broken=False):
    """tensors: name -> shape, all f32 zeros."""
    sums = {"tensor": {}, "json": {}}
    for name, shape in tensors.items():
        head = f"{name} f32 ({', '.join(map(str, shape))})".encode()
        sums["tensor"][name] = crc32c(bytes(4 * count(shape)), crc32c(head))
    for name, value in texts.items():
        sums["json"][name] = crc32c(value.encode(), crc32c(name.encode()))
    sums_text = json.dumps(sums)
    metadata = {"format": "gantrain-checkpoint", "version": "1", "checksums": sums_text,
                "checksum": f"{crc32c(sums_text.encode()) ^ broken:08x}"}  # fmt: skip
    header, data = {"__metadata__": metadata | {f"json.{k}": v for k, v in texts.items()}}, b""
    for name, shape in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count(shape)]}
        data += bytes(4 * count(shape))
    return container(header, data)


def checkpoint_files():
    config = 'model = "m"\n[data]\ntrain = "t.jsonl"\n'
    state = {"base": "0" * 16, "phase": "warmup", "step": 3, "config": config, "counts": [3, 3, 0, 0]}
    run = {"events_bytes": 100, "best": None, "alarms": []}
    texts = {"state": json.dumps(state), "run": json.dumps(run)}
    yield "whole", checkpoint(texts, {"generator.table": [2, 4], "adam.m": [8]})
    yield "no_config", checkpoint({"state": "{}"}, {"a": [1]})
    yield "odd_state", checkpoint({"state": "[1]"}, {})
    yield "odd_config", checkpoint({"state": '{"config": 3}'}, {})
    yield "bad_config", checkpoint({"state": json.dumps({"config": "modle = 3"})}, {})
    yield "damaged", checkpoint(texts, {"a": [2]}, broken=True)
    yield "other_file", safetensors({"a": [2]}, {"format": "pt"})


TARGETS = {
    "adapter": adapter_files, "checkpoint": checkpoint_files, "config_json": config_files, "gguf": gguf_files,
    "jsonl": jsonl_files, "llama2c_tokenizer": llama2c_tokenizer_files, "llama2c_weights": llama2c_files,
    "safetensors": safetensors_files, "safetensors_index": index_files, "sentencepiece": sentencepiece_files,
    "table": table_files, "tokenizer_json": tokenizer_json_files, "tokenizer_settings": settings_files,
    "train_config": train_config_files,
}  # fmt: skip


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target, make in TARGETS.items():
        folder = pathlib.Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in make():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
