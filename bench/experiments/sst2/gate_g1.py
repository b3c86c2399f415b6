"""Gate G1 of docs/method.md on SST-2: what is left in C0's answers for a discriminator to find, and where?

usage: tools/venv witness bench/experiments/sst2/gate_g1.py --model FILE.gguf --data FOLDER --run FOLDER
           [--train 600] [--threads 2]

--run is a finished C0 run. A pair is a sentence's right label beside its wrong one. C0 samples the wrong one
with a probability of its own for each sentence, and pairs are weighted by it. For each layer a fresh linear
discriminator is fitted, on the first training items, to the frozen model's state at the label as the
trainer's reads it (unprompted, RMSNorm). Printed: its pair accuracy on the validation items, weighted (C0's
samples: G1 asks for over 0.6) and not (how much of the task the layer knows).
"""

import argparse
import pathlib
import sys
import tomllib

import torch
from safetensors import safe_open

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "peers"))
from sst2_peft import from_gguf, padded, read_items, smollm_tokenizer  # noqa: E402


@torch.no_grad()
def wrong_share(model, prompt, items, label_ids, batch=16):
    """C0's probability of an item's wrong label among the two."""
    table = model.get_input_embeddings()
    share = torch.zeros(len(items))
    for rows in by_length(items, batch):
        ids, _ = padded([items[row] for row in rows])
        x = torch.cat([prompt.expand(len(rows), -1, -1), table(ids)], 1)
        h = model.model(inputs_embeds=x).last_hidden_state  # padding is behind: the causal mask hides it
        for at, row in enumerate(rows):
            tokens, label = items[row]
            scores = table.weight[label_ids] @ h[at, len(prompt) + len(tokens) - 1]
            share[row] = scores.softmax(0)[1 - label]
    return share


@torch.no_grad()
def states(model, items, label_ids, layers, batch=16):
    """layer -> (items, 2, width): the normalised state at each label behind the item, right label first."""
    out = {k: torch.zeros(len(items), 2, model.config.hidden_size) for k in layers}
    for rows in by_length(items, batch):
        for side in (0, 1):
            part = [items[row] for row in rows]
            ids, _ = padded([(tokens + [label_ids[abs(label - side)]], label) for tokens, label in part])
            hidden = model.model(ids, output_hidden_states=True).hidden_states
            for k in layers:
                for at, row in enumerate(rows):
                    h = hidden[k][at, len(part[at][0])]
                    out[k][row, side] = h / h.pow(2).mean().sqrt()
    return out


def by_length(items, batch):
    order = sorted(range(len(items)), key=lambda i: len(items[i][0]))
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def fitted(difference, weight, steps=200):
    """A linear discriminator's direction: relativistic pair loss, weighted, with a little decay."""
    direction = torch.zeros(difference.shape[1], requires_grad=True)
    adam = torch.optim.Adam([direction], lr=3e-3)
    for _ in range(steps):
        loss = (weight * torch.nn.functional.softplus(-(difference @ direction))).sum() / weight.sum()
        loss = loss + 1e-3 * direction.pow(2).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return direction.detach()


def accuracy(right, weight):
    """Weighted share, and its standard error."""
    mean = float((weight * right).sum() / weight.sum())
    effective = float(weight.sum() ** 2 / weight.pow(2).sum())
    return mean, (mean * (1 - mean) / effective) ** 0.5


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "data", "run"):
        arguments.add_argument("--" + name, type=pathlib.Path, required=True)
    arguments.add_argument("--train", type=int, default=600)
    arguments.add_argument("--threads", type=int, default=2)
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    config = tomllib.loads((arguments.run / "config.toml").read_text(encoding="utf-8"))
    encode = smollm_tokenizer(arguments.model)
    labels = sorted(config["data"]["label_map"])
    label_ids = [encode(config["data"]["label_map"][label])[0] for label in labels]
    train = read_items(arguments.data / "train.txt", config, encode, labels)[: arguments.train]
    held_out = read_items(arguments.data / "valid.txt", config, encode, labels)
    with safe_open(arguments.run / "checkpoints" / "latest", "pt") as file:
        prompt = file.get_tensor("generator.prompt").view(-1, file.get_tensor("generator.prompt").shape[-1])
    model = from_gguf(arguments.model).eval()
    weights = [wrong_share(model, prompt, items, label_ids) for items in (train, held_out)]
    for name, items, weight in zip(("training", "held-out"), (train, held_out), weights):
        errors = float((weight > 0.5).float().mean())
        print(
            f"{name}: {len(items)} items; C0 samples the wrong label {100 * float(weight.mean()):.1f} % "
            f"of the time, its likelier label is wrong {100 * errors:.1f} %"
        )
    layers = sorted({max(1, round(model.config.num_hidden_layers * k / 6)) for k in range(1, 6)})
    seen, tested = (states(model, items, label_ids, layers) for items in (train, held_out))
    print("| layer | G1: C0's samples, held-out | training | all pairs, held-out |\n|---|---|---|---|")
    for k in layers:
        ours, theirs = (f[k][:, 0] - f[k][:, 1] for f in (seen, tested))
        d = fitted(ours, weights[0])
        g1, error = accuracy((theirs @ d > 0).float(), weights[1])
        fit, _ = accuracy((ours @ d > 0).float(), weights[0])
        plain = fitted(ours, torch.ones(len(train)))
        whole, whole_error = accuracy((theirs @ plain > 0).float(), torch.ones(len(held_out)))
        print(f"| {k} | {g1:.2f} ± {error:.2f} | {fit:.2f} | {whole:.2f} ± {whole_error:.2f} |")


if __name__ == "__main__":
    main()
