"""One peer run: some training steps with PyTorch, transformers and PEFT, in a process of its own.

usage: tools/venv witness bench/peers/peft_step.py --model FILE.gguf --method prompt|prefix|lora_qv|lora_all|qlora_nf4|full --dtype f32|bf16
           --batch 8 --length 128 --prompt 20 --steps 2 --threads 2 --output FILE.json

Random token ids, the second half of the positions scored, AdamW, clipping to norm 1: what bench/step_bench does.
`full` is transformers alone: every weight, in --dtype, with AdamW's state in it too. The first step is not timed. Written: seconds of each step, peak memory (VmHWM), when the first step ended (Unix time).
"""

import argparse
import json
import pathlib
import sys
import time

import peft
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "model"))
from witness_probe import from_gguf  # noqa: E402

transformers.utils.logging.disable_progress_bar()


def adapter(method, prompt):
    if method == "prompt":
        return peft.PromptTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=prompt)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=prompt)
    every = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    return peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM, r=8, lora_alpha=16, lora_dropout=0.0,
        target_modules=every if method == "lora_all" else ["q_proj", "v_proj"],
    )


def in_four_bits(base, compute):
    """Every linear layer but the head as bitsandbytes' NF4 with double quantisation, in place."""
    import bitsandbytes

    for module in list(base.modules()):
        for name, linear in list(module.named_children()):
            if type(linear) is not torch.nn.Linear or name == "lm_head":
                continue
            packed = bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=compute,
                compress_statistics=True, quant_type="nf4",
            )
            packed.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            )
            if linear.bias is not None:
                packed.bias = linear.bias
            setattr(module, name, packed.to("cpu"))


def peak_memory():
    for line in pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--method", choices=("prompt", "prefix", "lora_qv", "lora_all", "qlora_nf4", "full"), required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    for name, default in (("batch", 8), ("length", 128), ("prompt", 20), ("steps", 2), ("threads", 2)):
        parser.add_argument("--" + name, type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)

    base = from_gguf(arguments.model)
    if arguments.dtype == "bf16":
        base = base.to(torch.bfloat16)
    if arguments.method == "qlora_nf4":
        in_four_bits(base, torch.bfloat16 if arguments.dtype == "bf16" else torch.float32)
    model = base.requires_grad_(True) if arguments.method == "full" else peft.get_peft_model(base, adapter(arguments.method, arguments.prompt))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    vocab = base.config.vocab_size
    seconds, first_step_end, losses = [], None, []
    for step in range(arguments.steps + 1):
        ids = torch.randint(vocab, (arguments.batch, arguments.length))
        labels = ids.clone()
        labels[:, : arguments.length // 2] = -100
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            first_step_end = time.time()
        else:
            seconds.append(time.perf_counter() - begin)
    arguments.output.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "first_step_end": first_step_end,
                "peak_memory_bytes": peak_memory(),
                "parameters": sum(p.numel() for p in trained),
                "losses": losses,
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "peft": peft.__version__,
                },
            }
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
