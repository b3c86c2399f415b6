"""Hold every method against PEFT and torch: folders read here and there, gradients, and ten optimiser steps beside theirs.

usage: tools/venv witness tests/model/witness_peft.py GANTRAIN

For some of the models of make_random_llamas.py, in f32:
  1. PEFT makes a LoRA adapter with random A and B and saves it; `gantrain probe --adapter` must have its logits, loss and the
     gradient of every tensor.
  2. PEFT and `gantrain train` start from the same folder and take ten AdamW steps on the same items (LoRA, and a soft prompt);
     the losses must agree step by step.
  3. The trained runs are exported; PeftModel.from_pretrained must have the logits that `gantrain probe --adapter` has, and what
     training ended with; merged weights loaded by transformers alone must have the adapter's logits.
  4. The same for prefix tuning (PEFT's), for bottleneck adapters (torch modules hooked behind attention and the MLP of
     transformers' model; PEFT has none) and for all weights trained (transformers' model itself; `gantrain probe --weights`).
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

import transformers

import make_random_llamas

transformers.utils.logging.disable_progress_bar()

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {spec[0]: spec for spec in make_random_llamas.MODELS}
# model, rank, alpha, rsLoRA, layers
ADAPTERS = [
    ("tied_mha_d16", 8, 16, False, ["q_proj", "v_proj"]),
    ("mlp_bias", 16, 8, True, ALL),
    ("d100", 3, 5, False, ["k_proj", "o_proj", "down_proj"]),
]
STEPS, LR = 10, 1e-2
# Of the model's own weights: at 1e-3 torch in f32 and torch in f64 part by 1.3e-5.
FULL_LR = 1e-4
# Of bottlenecks: at 1e-2 torch in f32 and torch in f64 part by 6e-6 within ten steps, which says nothing about us.
NARROW_LR = 3e-3
PAIRS = [("The harbour at dawn", " was quiet and grey."), ("Seven", " boats lay side by side,"), ("Rain", " fell on the roofs of the old town"),
         ("Nobody in the square", " said a word.")]

# logits: of the largest; loss: relative; gradients: of the tensor's largest. f32 sums of some hundred terms on both sides.
LOGITS, LOSS, GRADIENT = 1e-4, 1e-5, 5e-4
# Ten AdamW steps divide by the root of a running square: losses stay as close as the issue asks for.
TRAINING = 1e-5

worst = {}
cases = 0


def hold(what, kind, error, limit):
    global cases
    cases += 1
    if not error <= limit:
        sys.exit(f"FAIL {what}: {kind} off by {error:.2e}, at most {limit:.0e} wanted")
    worst[kind] = max(worst.get(kind, 0.0), error)


def gantrain(*words):
    run = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"FAIL gantrain {' '.join(map(str, words))}\n{run.stderr}")
    return run.stdout


def randomise(peft_model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
            elif "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def loss_of(model, sequences, scored):
    """Mean cross-entropy of the scored tokens, a sequence at a time; logits of the text rows."""
    losses, logits = [], []
    for ids, first in zip(sequences, scored):
        y = model(input_ids=torch.tensor([ids])).logits[0, -len(ids):]
        logits.append(y)
        losses.append(torch.nn.functional.cross_entropy(y[first - 1:-1], torch.tensor(ids[first:]), reduction="sum"))
    return sum(losses) / sum(len(i) - f for i, f in zip(sequences, scored)), torch.cat(logits)


class Bottleneck(torch.nn.Module):
    """y + up(act(down(y))): what gantrain's method=adapter puts behind attention or the MLP."""

    def __init__(self, width, rank, activation):
        super().__init__()
        self.down, self.up, self.activation = torch.nn.Linear(width, rank), torch.nn.Linear(rank, width), activation

    def forward(self, y):
        return y + self.up(self.activation(self.down(y)))


def with_bottlenecks(model, rank, activation, places, seed):
    """The frozen model with bottlenecks behind these parts of every layer; their modules, by gantrain's names."""
    torch.manual_seed(seed)
    acts = {"gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "silu": torch.nn.functional.silu, "tanh": torch.tanh}
    model.requires_grad_(False)
    model.adapters = torch.nn.ModuleDict()
    for number, layer in enumerate(model.model.layers):
        for place in places:
            b = Bottleneck(model.config.hidden_size, rank, acts[activation])
            for p in b.parameters():
                p.data.copy_(0.3 * torch.randn(p.shape))
            model.adapters[f"model/layers/{number}/after_{place}"] = b
            part = layer.self_attn if place == "attention" else layer.mlp
            # Called with b bound: attention gives a tuple, the MLP a tensor.
            part.register_forward_hook(lambda _m, _i, out, b=b: (b(out[0]), *out[1:]) if isinstance(out, tuple) else b(out))
    return model


def save_bottlenecks(model, rank, activation, folder):
    folder.mkdir()
    save_file({name.replace("adapters.", "").replace("/", "."): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad},
              folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BOTTLENECK", "width": rank, "activation": activation}))


def probe(path, adapter, sequences, scored, work, *more):
    longest = max(map(len, sequences))
    tokens = torch.zeros((len(sequences), longest), dtype=torch.int64)
    labels = torch.full_like(tokens, -100)
    for b, (ids, first) in enumerate(zip(sequences, scored)):
        tokens[b, :len(ids)] = torch.tensor(ids)
        labels[b, first:len(ids)] = torch.tensor(ids[first:])
    save_file({"tokens": tokens, "lengths": torch.tensor([len(s) for s in sequences]), "labels": labels}, work / "in.safetensors")
    gantrain("probe", "--model", path, "--input", work / "in.safetensors", "--output", work / "out.safetensors",
             *(["--adapter", adapter] if adapter else ["--weights"]), "--dtype", "f32", *more)
    return load_file(work / "out.safetensors")


def compare(what, out, loss, logits):
    hold(what, "logits", ((out["logits"] - logits).abs().max() / logits.abs().max()).item(), LOGITS)
    hold(what, "loss", (abs(out["loss"] - loss) / loss).item(), LOSS)


def gradients(what, out, peft_model, expected):
    seen = 0
    for name, p in peft_model.named_parameters():
        if p.grad is None:
            continue
        key = "grad." + name.replace(".default", "").replace("prompt_encoder.embedding.weight", "prompt_embeddings").replace("adapters.", "").replace("/", ".")
        hold(what + " " + key, "gradient", ((out[key] - p.grad).abs().max() / p.grad.abs().max()).item(), GRADIENT)
        seen += 1
    if seen != expected or sum(k.startswith("grad.") for k in out) != expected:
        sys.exit(f"FAIL {what}: {seen} gradients there, {[k for k in out if k.startswith('grad.')]} here")


def with_tokenizer(path):
    """A tokenizer of single bytes beside the weights, so that text can be trained on."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer


def items(path, work):
    tokenizer = with_tokenizer(path)
    data = work / "items.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in PAIRS))
    sequences = [tokenizer.encode(p).ids + tokenizer.encode(c).ids for p, c in PAIRS]
    return data, sequences, [len(tokenizer.encode(p).ids) for p, _ in PAIRS]


def train_here(path, adapter, data, output, *more, lr=LR):
    gantrain("train", f"model={path}", f"data.train={data}", *([f"adapter={adapter}"] if adapter else []), f"output={output}", "dtype=f32", "loss.kind=ce",
             "data.append_eos=false", f"train.batch={len(PAIRS)}", f"train.steps={STEPS}", f"optimizer.lr_ce={lr}", "optimizer.clip=0",
             "optimizer.schedule=constant", "optimizer.warmup_steps=0", "generator.norm_penalty=0", *more)
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return [e["ce"] for e in events if e["event"] == "step"]


def train_there(model, sequences, scored, lr=LR):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = loss_of(model, sequences, scored)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def beside(what, here, there):
    if len(here) != STEPS or len(there) != STEPS:
        sys.exit(f"FAIL {what}: {len(here)} and {len(there)} steps")
    for step, (a, b) in enumerate(zip(here, there)):
        hold(f"{what}, step {step + 1}", "loss in training", abs(a - b) / b, TRAINING)
    if not there[-1] < there[0] - 0.05:
        sys.exit(f"FAIL {what}: the loss went from {there[0]} to {there[-1]}: this training shows nothing")


def export(run, form, output, *more):
    gantrain("export", "--run", run, "--format", form, "--output", output, "--verify", *more)


def base(path):
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, rank, alpha, rslora, layers) in enumerate(ADAPTERS):
            work = pathlib.Path(folder) / str(i)
            work.mkdir()
            path = make_random_llamas.make(work, *MODELS[name])
            what = f"LoRA on {name}"
            config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=layers, task_type="CAUSAL_LM")
            model = get_peft_model(base(path), config)
            randomise(model, i)
            model.save_pretrained(work / "theirs")
            generator = torch.Generator().manual_seed(100 + i)
            sequences = [torch.randint(0, 311, (n,), generator=generator).tolist() for n in (37, 2, 18)]
            loss, logits = loss_of(model, sequences, [1, 1, 1])
            loss.backward()
            out = probe(path, work / "theirs", sequences, [1, 1, 1], work)
            compare(what, out, loss, logits)
            gradients(what, out, model, 2 * len(layers) * MODELS[name][6])

            # Beside PEFT's training, from where PEFT begins: Kaiming-uniform A, zero B.
            torch.manual_seed(i)
            fresh = get_peft_model(base(path), config)
            fresh.save_pretrained(work / "start")
            data, text, scored = items(path, work)
            short = ",".join(layer.removesuffix("_proj") for layer in layers)
            here = train_here(path, work / "start", data, work / "run", "method=lora", f"lora.rank={rank}", f"lora.alpha={alpha}",
                              f"lora.rslora={str(rslora).lower()}", f"lora.targets={short}")
            beside(what, here, train_there(fresh, text, scored))

            export(work / "run", "peft", work / "ours")
            ours = PeftModel.from_pretrained(base(path), work / "ours", is_trainable=True)
            loss, logits = loss_of(ours, text, scored)
            loss.backward()
            out = probe(path, work / "ours", text, scored, work)
            compare(what + ", exported", out, loss, logits)
            gradients(what + ", exported", out, ours, 2 * len(layers) * MODELS[name][6])
            # Both trained from the same start: the same adapter but for rounding.
            hold(what + ", exported", "loss in training", (abs(loss - loss_of(fresh, text, scored)[0]) / loss).item(), 10 * TRAINING)

            export(work / "run", "merged", work / "merged")
            merged = base(work / "merged")
            compare(what + ", merged", {"logits": loss_of(merged, text, scored)[1], "loss": loss_of(merged, text, scored)[0]}, loss, logits)
            export(work / "run", "gguf-lora", work / "adapter.gguf")

            # A soft prompt from the same base.
            what = f"prompt tuning on {name}"
            config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
            fresh = get_peft_model(base(path), config)
            with torch.no_grad():
                table = fresh.prompt_encoder["default"].embedding.weight
                table.copy_(0.5 * torch.randn(table.shape, generator=generator))
            fresh.save_pretrained(work / "prompt_start")
            here = train_here(path, work / "prompt_start", data, work / "prompt_run", "method=prompt", "generator.prompt_length=5")
            beside(what, here, train_there(fresh, text, scored))
            export(work / "prompt_run", "peft", work / "prompt")
            ours = PeftModel.from_pretrained(base(path), work / "prompt")
            ours.prompt_encoder["default"].embedding.weight.requires_grad_(True)
            loss, logits = loss_of(ours, text, scored)
            loss.backward()
            out = probe(path, work / "prompt", text, scored, work)
            compare(what + ", exported", out, loss, logits)
            gradients(what + ", exported", out, ours, 1)
            print(f"ok   {name}: losses {here[0]:.4f} to {here[-1]:.4f} with a prompt", flush=True)

            # Prefix tuning: PEFT's folder here, training, ours there.
            what = f"prefix tuning on {name}"
            config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
            fresh = get_peft_model(base(path), config)
            with torch.no_grad():
                table = fresh.prompt_encoder["default"].embedding.weight
                table.copy_(0.7 * torch.randn(table.shape, generator=generator))
            fresh.save_pretrained(work / "prefix_start")
            loss, logits = loss_of(fresh, sequences, [1, 1, 1])
            loss.backward()
            out = probe(path, work / "prefix_start", sequences, [1, 1, 1], work)
            compare(what, out, loss, logits)
            gradients(what, out, fresh, 1)
            here = train_here(path, work / "prefix_start", data, work / "prefix_run", "method=prefix", "prefix.length=4")
            beside(what, here, train_there(fresh, text, scored))
            export(work / "prefix_run", "peft", work / "prefix")
            ours = PeftModel.from_pretrained(base(path), work / "prefix")
            ours.prompt_encoder["default"].embedding.weight.requires_grad_(True)
            loss, logits = loss_of(ours, text, scored)
            loss.backward()
            out = probe(path, work / "prefix", text, scored, work)
            compare(what + ", exported", out, loss, logits)
            gradients(what + ", exported", out, ours, 1)

            # P-tuning's folder has PEFT's own type.
            train_here(path, None, data, work / "ptuning_run", "method=ptuning", "generator.prompt_length=5", "generator.width=8", "generator.hidden=16",
                       "generator.noise_dim=0")
            export(work / "ptuning_run", "peft", work / "ptuning")
            ours = PeftModel.from_pretrained(base(path), work / "ptuning")
            if type(ours.peft_config["default"]).__name__ != "PromptEncoderConfig":
                sys.exit(f"FAIL P-tuning on {name}: PEFT reads {ours.peft_config['default']}")
            loss, logits = loss_of(ours, text, scored)
            compare(f"P-tuning on {name}, exported", probe(path, work / "ptuning", text, scored, work), loss, logits)

            # Bottlenecks behind one part, the other, both, with each nonlinearity.
            what = f"bottlenecks on {name}"
            activation, places = [("gelu", ["mlp"]), ("silu", ["attention", "mlp"]), ("tanh", ["attention"])][i]
            fresh = with_bottlenecks(base(path), 6, activation, places, 50 + i)
            save_bottlenecks(fresh, 6, activation, work / "bottleneck_start")
            loss, logits = loss_of(fresh, sequences, [1, 1, 1])
            loss.backward()
            out = probe(path, work / "bottleneck_start", sequences, [1, 1, 1], work)
            compare(what, out, loss, logits)
            gradients(what, out, fresh, 4 * len(places) * MODELS[name][6])
            here = train_here(path, work / "bottleneck_start", data, work / "bottleneck_run", "method=adapter", "bottleneck.width=6",
                              f"bottleneck.activation={activation}", f"bottleneck.places={','.join(places)}", lr=NARROW_LR)
            beside(what, here, train_there(fresh, text, scored, lr=NARROW_LR))

            # All weights: tied and untied heads, with biases and without.
            what = f"all weights of {name}"
            fresh = base(path)
            loss, logits = loss_of(fresh, sequences, [1, 1, 1])
            loss.backward()
            out = probe(path, None, sequences, [1, 1, 1], work)
            compare(what, out, loss, logits)
            gradients(what, out, fresh, len(list(fresh.parameters())))
            here = train_here(path, None, data, work / "full_run", "method=full", lr=FULL_LR)
            beside(what, here, train_there(fresh, text, scored, lr=FULL_LR))
            export(work / "full_run", "merged", work / "full")
            merged = base(work / "full")
            loss, logits = loss_of(merged, text, scored)
            hold(what + ", exported", "loss in training", (abs(loss - loss_of(fresh, text, scored)[0]) / loss).item(), 10 * TRAINING)
            print(f"ok   {name}: prefix, bottlenecks and all weights; losses {here[0]:.4f} to {here[-1]:.4f} with all", flush=True)
    print(f"{cases} comparisons; largest differences: " + ", ".join(f"{k} {v:.1e}" for k, v in sorted(worst.items())))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    PROGRAM = sys.argv[1]
    torch.set_num_threads(2)
    sys.exit(main())
