"""Prompt tuning with PEFT on the SST-2 experiment's own draw: the peer of its C0 arm.

usage: tools/venv witness bench/peers/sst2_peft.py --model FILE.gguf --data FOLDER --output FILE.json
           [--seed 1] [--steps N] [--first N] [--micro 4] [--threads 2]
           [--config bench/experiments/sst2/sst2.toml]

FOLDER is made by bench/experiments/sst2/prepare. Templates, instruction, steps, batch and learning rate are
read from the experiment's TOML, so that both train the same thing: AdamW without decay, a linear warm-up, then
linearly to zero, gradients clipped to norm 1, f32. A batch shorter than train.batch is dropped. --first N trains
on the first N items only; with N = train.batch every batch is all of them, so that its losses can be held
against ours step by step.
"""

import argparse
import json
import pathlib
import sys
import time
import tomllib

import peft
import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "model"))
from witness_probe import from_gguf  # noqa: E402

transformers.utils.logging.disable_progress_bar()


def smollm_tokenizer(path):
    """transformers' reading of the GGUF, with the splitting of digits that it loses."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def read_items(path, config, encode, labels):
    """(prompt ids, index of the label) of each line."""
    items = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            prompt = config["data"]["prompt_template"].replace("{text}", line[2:])
            items.append((encode(prompt), labels.index(line[0])))
    return items


def padded(items):
    """Ids and mask, padded on the right."""
    longest = max(len(ids) for ids, _ in items)
    ids = torch.zeros(len(items), longest, dtype=torch.long)
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    for row, (tokens, _) in enumerate(items):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


@torch.no_grad()
def evaluate(model, items, label_ids, prompt_length, batch=16):
    """Accuracy by label likelihood, and the mean negative log likelihood of the right label."""
    right, nll = 0, 0.0
    order = sorted(items, key=lambda item: len(item[0]))
    for begin in range(0, len(order), batch):
        part = order[begin : begin + batch]
        ids, mask = padded(part)
        logits = model(input_ids=ids, attention_mask=mask).logits
        for row, (tokens, label) in enumerate(part):
            scores = logits[row, prompt_length + len(tokens) - 1].log_softmax(-1)
            right += int(scores[label_ids].argmax()) == label
            nll -= float(scores[label_ids[label]])
    return {"accuracy": right / len(items), "ce": nll / len(items)}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--model", type=pathlib.Path, required=True)
    arguments.add_argument("--data", type=pathlib.Path, required=True)
    arguments.add_argument("--output", type=pathlib.Path, required=True)
    arguments.add_argument(
        "--config",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parents[1] / "experiments/sst2/sst2.toml",
    )
    for name, default in (("seed", 1), ("steps", 0), ("first", 0), ("threads", 2), ("micro", 4)):
        arguments.add_argument("--" + name, type=int, default=default)
    arguments = arguments.parse_args()
    config = tomllib.loads(arguments.config.read_text(encoding="utf-8"))
    steps = arguments.steps or config["train"]["steps"]
    batch = config["train"]["batch"]
    count = config["generator"]["prompt_length"]
    lr, ramp = config["optimizer"]["lr_ce"], config["optimizer"]["warmup_steps"]
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    encode = smollm_tokenizer(arguments.model)
    labels = sorted(config["data"]["label_map"])
    label_ids = [encode(config["data"]["label_map"][label]) for label in labels]
    if any(len(ids) != 1 for ids in label_ids):
        sys.exit(f"labels of one token each are expected, got {label_ids}")
    label_ids = [ids[0] for ids in label_ids]
    splits = {
        name: read_items(arguments.data / f"{name}.txt", config, encode, labels)
        for name in ("train", "valid", "test")
    }
    train = splits["train"][: arguments.first or None]

    base = from_gguf(arguments.model)
    zero_shot = evaluate(base, splits["test"], label_ids, 0) if not arguments.first else None
    random = PromptTuningInit.RANDOM
    tuning = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count, prompt_tuning_init=random
    )
    model = get_peft_model(base, tuning)
    # The same rows that PEFT's own TEXT initialisation copies, without a tokenizer folder to read them by.
    text = encode(config["generator"]["init_text"])
    text = (text * -(-count // len(text)))[:count]
    table = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        table.copy_(base.get_input_embeddings().weight[text])
    trained = [p for p in model.parameters() if p.requires_grad]
    if [p.shape for p in trained] != [table.shape]:
        sys.exit(f"only the prompt should learn, got {[tuple(p.shape) for p in trained]}")
    untrained = evaluate(model, splits["test"], label_ids, count) if not arguments.first else None
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    scale = lambda k: (k + 1) / ramp if k < ramp else 1 - (k - ramp) / max(1, steps - 1 - ramp)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)

    losses, order, seconds = [], [], 0.0
    model.train()
    for step in range(steps):
        begin = time.perf_counter()
        if len(order) < batch:
            order = torch.randperm(len(train)).tolist()
        part, order = [train[i] for i in order[:batch]], order[batch:]
        # Each item scores one token, so micro-batches of like lengths give the whole batch's mean and
        # gradient, with less padding.
        part.sort(key=lambda item: len(item[0]))
        optimizer.zero_grad()
        loss = 0.0
        for at in range(0, batch, arguments.micro):
            micro = part[at : at + arguments.micro]
            ids, mask = padded([(tokens + [label_ids[label]], label) for tokens, label in micro])
            targets = torch.full_like(ids, -100)
            for row, (tokens, label) in enumerate(micro):
                targets[row, len(tokens)] = label_ids[label]
            share = model(input_ids=ids, attention_mask=mask, labels=targets).loss * (len(micro) / batch)
            share.backward()
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(trained, config["optimizer"]["clip"])
        optimizer.step()
        schedule.step()
        losses.append(loss)
        seconds += time.perf_counter() - begin
        if (step + 1) % 10 == 0 or arguments.first:
            print(f"step {step + 1}/{steps}  ce {loss:.6f}  {seconds / (step + 1):.2f} s/step", flush=True)
    model.eval()
    result = {
        "seed": arguments.seed,
        "steps": steps,
        "threads": arguments.threads,
        "train_seconds": seconds,
        "zero_shot": zero_shot,
        "untrained": untrained,
        "valid": None if arguments.first else evaluate(model, splits["valid"], label_ids, count),
        "test": None if arguments.first else evaluate(model, splits["test"], label_ids, count),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "losses": losses,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: result[k] for k in ("zero_shot", "untrained", "valid", "test", "train_seconds")}))


if __name__ == "__main__":
    main()
