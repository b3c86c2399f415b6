"""Write small random Llamas of many shapes as Hugging Face folders, for witness_probe.py.

usage: tools/venv witness tests/model/make_random_llamas.py FOLDER

Norm gains are random too, and weights are large enough that logits differ by several nats: a wrong RoPE pair, a missing gain
or a head mapped to the wrong keys changes them visibly. The same seeds give the same files.
"""

import json
import pathlib
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# name, hidden, heads, kv heads, head size, mlp, layers, more
MODELS = [
    ("tied_mha_d16", 64, 4, 4, 16, 96, 2, {"tie_word_embeddings": True}),
    ("untied_gqa3_d64", 192, 3, 1, 64, 256, 2, {}),
    ("gqa4_d64_llama3", 256, 4, 1, 64, 320, 2, {"rope_parameters": LLAMA3}),
    ("gqa8_d16", 128, 8, 1, 16, 160, 3, {"tie_word_embeddings": True}),
    ("d100", 200, 2, 2, 100, 144, 2, {}),
    ("d128_not_c_over_h", 96, 3, 3, 128, 200, 2, {}),
    ("attention_bias", 96, 6, 2, 16, 128, 2, {"attention_bias": True}),
    ("mlp_bias", 96, 6, 2, 16, 128, 2, {"mlp_bias": True, "attention_bias": True}),
    ("sharded_bf16", 192, 3, 1, 64, 256, 3, {"_dtype": torch.bfloat16, "_shard": "200KB", "tie_word_embeddings": True}),
    ("sharded_f16", 160, 5, 5, 32, 224, 2, {"_dtype": torch.float16, "_shard": "150KB"}),
    ("theta_1e5_old_spelling", 96, 3, 1, 32, 128, 2, {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
                                                      "_old": True}),
    ("llama3_old_spelling", 128, 4, 2, 32, 192, 2, {"rope_parameters": dict(LLAMA3, factor=8.0), "_old": True}),
    ("linear_rope", 128, 4, 2, 32, 192, 2, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    ("one_layer_wide_mlp", 64, 2, 1, 32, 512, 1, {"rms_norm_eps": 1e-6}),
]


def make(folder, name, hidden, heads, kv, head_dim, mlp, layers, more):
    more = dict(more)
    dtype, shard, old = more.pop("_dtype", torch.float32), more.pop("_shard", "5GB"), more.pop("_old", False)
    config = LlamaConfig(vocab_size=311, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv, head_dim=head_dim,
                         intermediate_size=mlp, num_hidden_layers=layers, max_position_embeddings=256,
                         **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False, **more})
    torch.manual_seed(sum(map(ord, name)))
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1.0 + 0.3 * torch.randn_like(p))
            elif key.endswith("bias"):
                p.copy_(0.2 * torch.randn_like(p))
            elif "embed" in key or "lm_head" in key:
                p.copy_(0.5 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) / p.shape[1] ** 0.5)
    path = pathlib.Path(folder) / name
    model.to(dtype).save_pretrained(path, max_shard_size=shard)
    if old:  # as transformers 4 wrote it
        file = path / "config.json"
        config = json.loads(file.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            rope["type"] = rope.pop("rope_type")
            config["rope_scaling"] = rope
        file.write_text(json.dumps(config))
    return path


if __name__ == "__main__":
    for model in MODELS:
        print(make(sys.argv[1], *model))
