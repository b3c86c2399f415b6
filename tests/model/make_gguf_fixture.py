"""Files for the test of the weight readers, written by the gguf and safetensors packages.

usage: tools/venv witness tests/model/make_gguf_fixture.py OUTDIR [stories260K.bin]
blocks.gguf, blocks.safetensors    a tensor of each type read, and its values as the gguf package dequantises them
llama/, llama.gguf                 one random Llama as a Hugging Face folder and as GGUF (biases, GQA, llama3 scaling)
stories/, stories.gguf             stories260K in both formats
"""

import json
import math
import pathlib
import struct
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

TYPES = gguf.GGMLQuantizationType


def to_pairs(w, heads):
    """Half-split to adjacent-pair order of the rows, as llama.cpp's converter does it."""
    return np.ascontiguousarray(w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def to_halves(w, heads):
    """Adjacent-pair to half-split order, as the converter of Meta's checkpoints does it."""
    return np.ascontiguousarray(w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def write_blocks(out):
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(out / "blocks.gguf", "llama")
    expected = {}
    for kind in (TYPES.F32, TYPES.F16, TYPES.BF16, TYPES.Q8_0, TYPES.Q4_0, TYPES.Q4_1):
        values = (rng.standard_normal((7, 96)) * np.exp(3 * rng.standard_normal((7, 1)))).astype(np.float32)
        values[2, :32] = 0
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, packed, raw_dtype=kind)
        expected[kind.name] = np.ascontiguousarray(gguf.quants.dequantize(packed, kind).astype(np.float32))
    # The package does not quantise to these: random blocks, every bit of which counts, with finite scales.
    for kind, size, halves in ((TYPES.Q4_K, 144, (0, 2)), (TYPES.Q6_K, 210, (208,))):
        packed = rng.integers(0, 256, (7, 2 * size), dtype=np.uint8)
        for block in (0, size):
            for at in halves:
                packed[:, block + at + 1] &= 0xBF
        writer.add_tensor(kind.name, packed, raw_dtype=kind)
        expected[kind.name] = np.ascontiguousarray(gguf.quants.dequantize(packed, kind).astype(np.float32))
    finish(writer)
    save_file(expected, out / "blocks.safetensors")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}.get(name, name)  # fmt: skip
    if name.startswith("model.layers."):
        layer, rest = name[len("model.layers.") :].split(".", 1)
        part, kind = rest.rsplit(".", 1)
        name = f"blk.{layer}.{PARTS[part]}.{kind}"
    return name


def write_both(out, name, config, tensors, factors=None):
    folder = out / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out / f"{name}.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for key, value in tensors.items():
        if ".q_proj." in key:
            value = to_pairs(value, heads)
        if ".k_proj." in key:
            value = to_pairs(value, kv_heads)
        writer.add_tensor(gguf_name(key), value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    finish(writer)


def shapes(c):
    q, kv, h, f = (c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"], c["hidden_size"],
                   c["intermediate_size"])  # fmt: skip
    yield "model.embed_tokens.weight", (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for part, rows, cols in (("self_attn.q_proj", q, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h),
                                 ("self_attn.o_proj", h, q), ("mlp.gate_proj", f, h), ("mlp.up_proj", f, h),
                                 ("mlp.down_proj", h, f)):  # fmt: skip
            yield p + part + ".weight", (rows, cols)
            yield p + part + ".bias", (rows,)
        yield p + "input_layernorm.weight", (h,)
        yield p + "post_attention_layernorm.weight", (h,)
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (c["vocab_size"], h)


def write_random(out):
    rng = np.random.default_rng(2)
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config = {
        "vocab_size": 40, "hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": scaling, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes(config)}
    # The factors as llama.cpp's converter writes them.
    factors = []
    for i in range(config["head_dim"] // 2):
        frequency = config["rope_theta"] ** (-2 * i / config["head_dim"])
        wave = 2 * math.pi / frequency
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if wave < 8192 / high:
            factors.append(1.0)
        elif wave > 8192 / low:
            factors.append(scaling["factor"])
        else:
            smooth = (8192 / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    write_both(out, "llama", config, tensors, factors)


def write_stories(out, path):
    data = pathlib.Path(path).read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack_from("<7i", data)
    assert vocab > 0, "stories260K has a tied head"
    head_dim, at, tensors = dim // heads, 28, {}

    def take(*shape):
        nonlocal at
        count = math.prod(shape)
        values = np.frombuffer(data, dtype="<f4", count=count, offset=at).reshape(shape).copy()
        at += 4 * count
        return values

    tensors["model.embed_tokens.weight"] = take(vocab, dim)
    for part, rows, cols in (("input_layernorm", dim, 0), ("self_attn.q_proj", dim, dim),
                             ("self_attn.k_proj", kv_heads * head_dim, dim), ("self_attn.v_proj", kv_heads * head_dim, dim),
                             ("self_attn.o_proj", dim, dim), ("post_attention_layernorm", dim, 0),
                             ("mlp.gate_proj", hidden, dim), ("mlp.down_proj", dim, hidden), ("mlp.up_proj", hidden, dim)):  # fmt: skip
        for i in range(layers):
            value = take(rows, cols) if cols else take(rows)
            if part.endswith("q_proj"):
                value = to_halves(value, heads)
            if part.endswith("k_proj"):
                value = to_halves(value, kv_heads)
            tensors[f"model.layers.{i}.{part}.weight"] = value
    tensors["model.norm.weight"] = take(dim)
    config = {
        "vocab_size": vocab, "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    write_both(out, "stories", config, tensors)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write_blocks(out)
    write_random(out)
    if len(sys.argv) > 2:
        write_stories(out, sys.argv[2])


if __name__ == "__main__":
    main()
