"""Hold packed bases against the gguf package and bitsandbytes: the values that quantising leaves, and QLoRA beside PEFT.

usage: tools/venv witness tests/model/witness_packing.py GANTRAIN PACK_DOOR

For some of the models of make_random_llamas.py, in f32:
  1. Every matrix quantised to Q8_0, Q4_0 and Q4_1 must have, bit for bit, the values that the gguf package's own quantisation leaves.
     NF4 with double quantisation: those of bitsandbytes.
  2. transformers loads the model in 4 bits (bitsandbytes, NF4, double quantisation) on the CPU, PEFT puts a LoRA adapter over it:
     `gantrain probe --model-quantize nf4` must have its logits, loss and the gradient of every adapter.
  3. PEFT and `gantrain train method=qlora` take ten AdamW steps from the same adapter; the losses must agree step by step. What was trained
     is exported with --verify, read by PEFT over the 4-bit base, and has the same logits there.
"""

import pathlib
import subprocess
import sys
import tempfile

import bitsandbytes
import gguf
import numpy as np
import torch
from bitsandbytes import functional
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

import make_random_llamas
import witness_peft as peft_witness
from witness_peft import MODELS

# Name, and whether QLoRA is run on it: not where a weight lies midway between two of the sixteen values and became the other one there.
MODELS_HERE = (("tied_mha_d16", False), ("gqa4_d64_llama3", False), ("untied_gqa3_d64", True), ("one_layer_wide_mlp", True))
EXACT = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0, "q4_1": gguf.GGMLQuantizationType.Q4_1}
# bitsandbytes' search for a scale's code on the CPU (0.50) misses the nearest of the 256 where a scale lies between two, by up to some 1e-5 of
# the step: of a thousand scales one has the code beside. Such a scale is off by half the distance of two codes, 0.7 % of a step.
# Everything else is the same but for roundings (the mean of the scales is summed in f32 there, in f64 here).
OTHER_CODES = 5e-3


def values_of(door, path, packing, work):
    file = work / "values.bin"
    run = subprocess.run([door, path, packing, file], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"FAIL pack_door {path} {packing}\n{run.stderr}")
    return run.stdout.split(), np.fromfile(file, dtype=np.float32)


def tensors(path):
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        found.update({k: v.to(torch.float32) for k, v in load_file(file).items()})
    return found


def compare_values(door, path, work):
    stored = tensors(path)
    for packing in ("none", "file", *EXACT, "nf4"):
        names, flat = values_of(door, path, packing, work)
        at, packed, other, total, largest = 0, 0, 0, 0, 0.0
        for name in names:
            want = stored[name].numpy()
            got = flat[at:at + want.size].reshape(want.shape)
            at += want.size
            matrix = want.ndim == 2
            if packing in EXACT and matrix and want.shape[1] % 32 == 0:
                want = gguf.quants.dequantize(gguf.quants.quantize(want, EXACT[packing]), EXACT[packing])
                packed += 1
            elif packing == "nf4" and matrix and want.shape[1] % 64 == 0 and name not in ("model.embed_tokens.weight", "lm_head.weight"):
                q, state = functional.quantize_4bit(torch.from_numpy(want), blocksize=64, compress_statistics=True, quant_type="nf4")
                scale = np.abs(want).reshape(-1, 64).max(axis=1).repeat(64).reshape(want.shape)
                # A value midway between two of the sixteen, to f32's rounding of the quotient, may become either.
                table = state.code.numpy().astype(np.float64)
                midway = np.abs((want / scale)[..., None] - (table[1:] + table[:-1]) / 2).min(axis=-1) < 1e-6
                want = functional.dequantize_4bit(q, state).numpy()
                packed += 1
                error = np.where(midway, 0, np.abs(got - want) / scale)
                if midway.sum() > 10:
                    sys.exit(f"FAIL {path.name} {name}: {midway.sum()} values lie midway")
                off = error > 1e-6
                other += int(off.sum())
                total += off.size
                largest = max(largest, float(error[off].max(initial=0)))
                if not largest <= 0.015:
                    sys.exit(f"FAIL {path.name} {name}: nf4 off by {largest:.2e} of the block's largest value")
                continue
            if not np.array_equal(got, want):
                sys.exit(f"FAIL {path.name} {name}: {packing} off by {np.abs(got - want).max():.2e} at most, expected the same bits")
        if at != flat.size or (packing in ("none", "file")) != (packed == 0):
            sys.exit(f"FAIL {path.name}: {packing}: {packed} matrices packed, {at} of {flat.size} values")
        if total and not other <= OTHER_CODES * total:
            sys.exit(f"FAIL {path.name}: nf4: {other} of {total} values have another scale")
        print(f"ok   {path.name}: {packing}, {packed} matrices" + (f", {other} of {total} values with another scale" if total else ""), flush=True)


def in_four_bits(path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32, device_map="cpu")
    # The codes of scales as the layout means them, the nearest: what is compared from here on is the arithmetic.
    stored = tensors(path)
    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # else it multiplies in bf16 where no gradient is asked for
            state = layer.weight.quant_state
            scales = (stored[name + ".weight"].reshape(-1, 64).abs().amax(dim=1) - state.offset).double()
            steps = state.state2.absmax.double().repeat_interleave(256)[:scales.numel()]
            state.absmax = ((scales / steps)[:, None] - state.state2.code.double()[None]).abs().argmin(dim=1).to(torch.uint8)
    return model


def main():
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, qlora) in enumerate(MODELS_HERE):
            work = pathlib.Path(folder) / str(i)
            work.mkdir()
            path = make_random_llamas.make(work, *MODELS[name])
            compare_values(peft_witness.DOOR, path, work)
            if not qlora:
                continue
            what = f"QLoRA on {name}"
            layers = peft_witness.ALL if name == "untied_gqa3_d64" else ["q_proj", "v_proj"]
            config = LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM")
            model = get_peft_model(in_four_bits(path), config)
            peft_witness.randomise(model, i)
            model.save_pretrained(work / "theirs")
            generator = torch.Generator().manual_seed(100 + i)
            sequences = [torch.randint(0, 311, (n,), generator=generator).tolist() for n in (37, 2, 18)]
            loss, logits = peft_witness.loss_of(model, sequences, [1, 1, 1])
            loss.backward()
            out = peft_witness.probe(path, work / "theirs", sequences, [1, 1, 1], work, "--model-quantize", "nf4")
            peft_witness.compare(what, out, loss, logits)
            peft_witness.gradients(what, out, model, 2 * len(layers) * MODELS[name][6])
            dense = peft_witness.probe(path, work / "theirs", sequences, [1, 1, 1], work)
            if not (dense["logits"] - logits).abs().max() > 100 * peft_witness.LOGITS * logits.abs().max():
                sys.exit(f"FAIL {what}: the dense base has these logits too: this comparison shows nothing")

            torch.manual_seed(i)
            fresh = get_peft_model(in_four_bits(path), config)
            fresh.save_pretrained(work / "start")
            data, text, scored = peft_witness.items(path, work)
            short = ",".join(layer.removesuffix("_proj") for layer in layers)
            here = peft_witness.train_here(path, work / "start", data, work / "run", "method=qlora", f"lora.targets={short}")
            peft_witness.beside(what, here, peft_witness.train_there(fresh, text, scored))
            peft_witness.export(work / "run", "peft", work / "ours")
            ours = PeftModel.from_pretrained(in_four_bits(path), work / "ours")
            loss, logits = peft_witness.loss_of(ours, text, scored)
            out = peft_witness.probe(path, work / "ours", text, scored, work, "--model-quantize", "nf4")
            peft_witness.compare(what + ", exported", out, loss, logits)
            peft_witness.export(work / "run", "merged", work / "merged")
            print(f"ok   {name}: losses {here[0]:.4f} to {here[-1]:.4f} over a base in NF4", flush=True)
    print(f"{peft_witness.cases} comparisons; largest differences: " +
          ", ".join(f"{k} {v:.1e}" for k, v in sorted(peft_witness.worst.items())))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    peft_witness.PROGRAM, peft_witness.DOOR = sys.argv[1:]
    torch.set_num_threads(2)
    sys.exit(main())
