"""The tokenizers against the tokenizers and sentencepiece packages: 10,000 strings each, encoded and decoded.

usage: tools/venv witness tests/model/witness_tokenizers.py TOKENIZE_DOOR [--data FOLDER] [--gguf FILE] [--count N]
Ids and texts must be equal. Files that are not there are counted as skipped; the others are made here: small
tokenizers trained on the words of the test itself, saved by the tokenizers package in every form that is read.
"""

import argparse
import copy
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_pb
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from witness_chat_templates import SMOLLM2

SEED = 20261123
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    " \n",
    "\n ",
    "\t\t ",
    "\u00a0",
    "\u1680",
    "\u2000",
    "\u2003",
    "\u2009",
    "\u200a",
    "\u200b",
    "\u200c",
    "\u200d",
    "\u2028",
    "\u2029",
    "\u202f",
    "\u205f",
    "\u2060",
    "\u3000",
    "\ufeff",
    "\u0085",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\u180e",
    "\u2581",
    " \u2581",
    "\u2581\u2581",
]
WORDS = (
    "the a of and to in is it that was he for on are with his they at be this have from or one had by word but not "
    "what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part "
    "Hello World LLAMA camelCase snake_case kebab-case CONSTANT_NAME résumé naïve café coöperate Straße İstanbul ıI "
    "ſtrange \u212aelvin ΑΒΓ λόγος Ωmega Привет мир съешь ещё этих שלום עולם مرحبا بالعالم नमस्ते दुनिया বাংলা தமிழ் "
    "ไทย ภาษาไทย ქართული հայերեն አማርኛ 你好 世界 中文字符 こんにちは カタカナ ｶﾀｶﾅ 한국어 안녕하세요 ᄒᆞᆫ글 ᏣᎳᎩ ꦗꦮ "
    "𝒜𝓁𝓅𝒽𝒶 𝟘𝟙𝟚 𐍈𐌰 𓀀𓀁 don't I'll we've you're it's he'd I'm DON'T I'LL WE'VE YOU'RE IT'S HE'D I'M 'S 'ſ 'Ll "
    "don’t I’ll we’ve ‘quoted’ “double” «guillemets» rock'n'roll 'tis o'clock 's't've x's' ''s"
).split()
NUMBERS = [
    "0",
    "7",
    "42",
    "007",
    "1234",
    "12345678901234567890",
    "3.14159",
    "1,000,000",
    "1e-9",
    "0x1F",
    "½",
    "²³",
    "Ⅷ",
    "٣٤٥",
    "१२३",
    "１２３",
    "𝟘𝟙",
    "①②",
    "1st",
    "2nd",
    "10:45",
    "\U00011de0\U00011de5",
    "\U00010d40",
    "50%",
    "-273.15",
]
SYMBOLS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "...",
    "—",
    "–",
    "…",
    "€",
    "£",
    "¥",
    "₿",
    "©",
    "™",
    "→",
    "≤",
    "∑",
    "√",
    "\u20dd",
    "//",
    "/*",
    "*/",
    "==",
    "!=",
    "->",
    "{{",
    "}}",
    "<div>",
    "</p>",
    "&amp;",
    "```",
    "§",
    "¶",
    "\u2019",
    "\u2018",
    "\u02bc",
]
EMOJI = [
    "😀",
    "👍🏽",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪",
    "🇯🇵🇧🇷",
    "❤️",
    "☺︎",
    "1️⃣",
    "🧑🏿‍🚀",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\U0001fae8",
    "\U0001f1e6",
    "\ufe0f",
    "🫱🏻‍🫲🏿",
]
MARKS = [
    "e\u0301",
    "a\u0308\u0323",
    "n\u0303",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
    "\u0301",
    "\u0915\u094d\u0937",
    "ក្ខ",
    "\u0e33\u0e49",
    "\u06dd",
    "각",
    "각",
]
CONTROLS = [
    chr(c)
    for c in list(range(0x00, 0x20))
    + [0x7F, 0x80, 0x84, 0x9F, 0xAD, 0x202A, 0x202E, 0xFFFD, 0xFFFE, 0xFFFF, 0xE000, 0x10FFFF]
]
NEW_LETTERS = [
    "\u1c89",
    "\ua7cb",
    "\U00010d4a",
    "\U00011f04",
    "\U00016d40",
    "\U0001e5d0",
    "\U0002ebf0",
    "\U00031350",
    "\U0001171e",
]


def random_code_point(rng):
    while True:
        top = rng.choice([0x7F, 0x7F, 0x24F, 0x7FF, 0x2FFF, 0xFFFF, 0x1FFFF, 0x10FFFF])
        c = rng.randint(0, top)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def piece(rng, specials):
    kind = rng.random()
    if kind < 0.38:
        return rng.choice(WORDS) + (" " if rng.random() < 0.7 else "")
    if kind < 0.52:
        return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7])
    if kind < 0.62:
        return rng.choice(NUMBERS)
    if kind < 0.72:
        return rng.choice(SYMBOLS) * rng.choice([1, 1, 2, 4])
    if kind < 0.79:
        return rng.choice(EMOJI)
    if kind < 0.84:
        return rng.choice(MARKS)
    if kind < 0.88:
        return rng.choice(CONTROLS)
    if kind < 0.90:
        return rng.choice(NEW_LETTERS)
    if kind < 0.96:
        return "".join(random_code_point(rng) for _ in range(rng.randint(1, 6)))
    return rng.choice(specials)


def strings(rng, count, specials):
    """`count` strings: a few fixed ones, long runs, and mixtures of everything above."""
    out = ["", " ", "  ", "\n", "a", " a", "a ", "\u2581", "\u3000", "\x00", "'", "'s", "\ufeff", "\u0301"]
    out += SPACES + CONTROLS + EMOJI + MARKS + NEW_LETTERS + NUMBERS + list(specials)
    for run in (
        " ",
        "\n",
        "\t",
        "a",
        "ab",
        "9",
        "!",
        "é",
        "你",
        "😀",
        " \n",
        "\u00a0",
        "the ",
        "\u200d",
        "A b",
    ):
        out.append(run * 3000)
        out.append("x" + run * rng.randint(50, 300) + "y")
    while len(out) < count:
        out.append("".join(piece(rng, specials) for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 30]))))
    return out[:count]


class Door:
    def __init__(self, program):
        self.program = program

    def ask(self, model, what, values):
        lines = "".join(json.dumps(value) + "\n" for value in values)
        run = subprocess.run(
            [self.program, model, what], input=lines.encode(), stdout=subprocess.PIPE, check=True
        )
        answers = [json.loads(line) for line in run.stdout.decode().split("\n")[:-1]]
        if len(answers) != len(values):
            sys.exit(f"{model}: {len(values)} questions, {len(answers)} answers")
        return answers


class Judge:
    """Compares, counts, prints the first differences of each comparison."""

    def __init__(self):
        self.wrong = 0
        self.lines = []

    def compare(self, name, questions, got, wanted):
        bad = [i for i in range(len(questions)) if got[i] != wanted[i]]
        for i in bad[:3]:
            print(f"DIFFERENT {name}: {json.dumps(questions[i])[:600]}")
            print(f"  got    {json.dumps(got[i])[:600]}\n  wanted {json.dumps(wanted[i])[:600]}")
        self.wrong += len(bad)
        self.lines.append(f"{name}: {len(questions)} compared, {len(bad)} different")
        print(self.lines[-1], flush=True)


def random_ids(rng, lists, vocab_size):
    """Id lists that no text gives: cut in the middle of characters, shuffled, random."""
    out = []
    for ids in lists:
        kind = rng.random()
        if kind < 0.5 and len(ids) > 1:
            a = rng.randrange(len(ids))
            out.append(ids[a : a + rng.randint(1, 20)])
        else:
            out.append([rng.randrange(vocab_size) for _ in range(rng.randint(0, 12))])
    return out


def check_huggingface(door, judge, name, path, tokenizer, specials, count, seed):
    """One model file of ours against a tokenizers.Tokenizer."""
    rng = random.Random(seed)
    texts = strings(rng, count, specials)
    with_special = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    # Without special tokens in the text: the same tokenizer, with none added.
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = []
    spec["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(spec))
    without = [e.ids for e in plain.encode_batch(texts, add_special_tokens=False)]
    judge.compare(f"{name} encode", texts, door.ask(path, "encode", texts), without)
    judge.compare(f"{name} encode --special", texts, door.ask(path, "special", texts), with_special)
    lists = with_special[: count // 2] + random_ids(
        rng, with_special[count // 2 :], tokenizer.get_vocab_size()
    )
    wanted = tokenizer.decode_batch(lists, skip_special_tokens=False)
    judge.compare(f"{name} decode", lists, door.ask(path, "decode", lists), wanted)


def split_specials(text, specials):
    """Leftmost, longest: [(text, None) or (special, id)]."""
    out, begin, at = [], 0, 0
    ordered = sorted(specials, key=len, reverse=True)
    while at < len(text):
        hit = next((s for s in ordered if text.startswith(s, at)), None)
        if hit is None:
            at += 1
            continue
        if begin < at:
            out.append((text[begin:at], None))
        out.append((hit, specials[hit]))
        at += len(hit)
        begin = at
    if begin < len(text):
        out.append((text[begin:], None))
    return out


def check_sentencepiece(door, judge, name, path, processor, count, seed):
    """One model file of ours against the sentencepiece library."""
    rng = random.Random(seed)
    specials = {
        processor.id_to_piece(i): i
        for i in range(processor.vocab_size())
        if processor.is_control(i) or processor.is_unknown(i)
    }
    texts = strings(rng, count, list(specials))
    without = processor.encode(texts)
    judge.compare(f"{name} encode", texts, door.ask(path, "encode", texts), without)
    with_special = [
        [
            i
            for part, special in split_specials(text, specials)
            for i in ([special] if special is not None else processor.encode(part))
        ]
        for text in texts
    ]
    judge.compare(f"{name} encode --special", texts, door.ask(path, "special", texts), with_special)
    lists = with_special[: count // 2] + random_ids(
        rng, with_special[count // 2 :], processor.vocab_size()
    )
    # Special ids are rare among all: put them in front of, behind and into some lists.
    for ids in lists[:: 7]:
        ids.insert(rng.randint(0, len(ids)), rng.choice(list(specials.values())))
    for ids in lists[:: 11]:
        ids.insert(0, rng.choice(list(specials.values())))
    judge.compare(
        f"{name} decode", lists, door.ask(path, "decode", lists), [processor.decode(ids) for ids in lists]
    )


def corpus(rng):
    return ["".join(piece(rng, ["!"]) for _ in range(40)) for _ in range(1500)]


def train(tokenizer, rng, vocab_size, specials, initial):
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=initial,
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus(rng), trainer)
    return tokenizer


def llama3(rng):
    """Llama-3's stages over a small vocabulary; the special tokens lie behind it, as in the real file."""
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.decoder = decoders.ByteLevel()
    train(t, rng, 3000, [], pre_tokenizers.ByteLevel.alphabet())
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    # Tokens that no merge makes: only ignore_merges finds them.
    spec = json.loads(t.to_str())
    vocab = spec["model"]["vocab"]
    for word in ("Ġthere", "ĠpeopleĠ", "zzzz", "Ġword", "Hello", "ĠWorld", "123", "ðŁĺĢðŁĺĢ", "Ċ" * 9):
        vocab.setdefault(word, len(vocab))
    t = Tokenizer.from_str(json.dumps(spec))
    t.add_special_tokens(specials)
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))],
            ),
        ]
    )
    return t, specials


def gpt2(rng):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    train(t, rng, 3000, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    # Added tokens of every kind.
    t.add_tokens(
        [
            AddedToken("[strip]", lstrip=True, rstrip=True),
            AddedToken("wörd", single_word=True),
            AddedToken("<tool>", normalized=False),
        ]
    )
    return t, ["<|endoftext|>", " [strip]\n ", "[strip]", "wörd", " wörd.", "<tool>", "<tool", "<|endoftext|"]


def gpt2_prefix(rng):
    t, specials = gpt2(rng)
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return t, specials


def smollm(rng):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    t.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    train(t, rng, 3000, specials, pre_tokenizers.ByteLevel.alphabet())
    return t, specials


def llama2_vocab(model):
    """Vocabulary and merges of a SentencePiece BPE model, as transformers converts them."""
    vocab = {p.piece: i for i, p in enumerate(model.pieces)}
    merges = []
    for text, rank in vocab.items():
        for i in range(1, len(text)):
            left, right = text[:i], text[i:]
            if left in vocab and right in vocab:
                merges.append((left, right, rank))
    scores = {p.piece: p.score for p in model.pieces}
    merges.sort(key=lambda m: (-scores[m[0] + m[1]], len(m[0]), len(m[1])))
    return vocab, [(a, b) for a, b, _ in merges]


def llama2(model, metaspace):
    vocab, merges = llama2_vocab(model)
    t = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=metaspace == "split")
        t.decoder = decoders.Sequence(
            [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.add_tokens([AddedToken("<pad>", normalized=True), AddedToken("[ x ]", normalized=True, special=False)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t, ["<unk>", "<s>", "</s>", "<pad>", " <pad>", "[ x ]"]


def legacy(path, target):
    """The same file with merges as "a b"."""
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    spec["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(spec, file)


def load_model(path):
    model = sentencepiece_pb.ModelProto()
    with open(path, "rb") as file:
        model.ParseFromString(file.read())
    return model


def keeping_spaces(model):
    """The model without its removal of double spaces, which GGUF and tokenizer.bin cannot say."""
    model = copy.deepcopy(model)
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


def write_gguf(path, model):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([p.piece.encode() for p in model.pieces])
    writer.add_token_scores([p.score for p in model.pieces])
    writer.add_token_types([p.type for p in model.pieces])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_bpe(path, pre, spec):
    """A tokenizer.json's vocabulary and merges as GGUF's gpt2 model."""
    import gguf

    added = {t["id"]: t for t in spec["added_tokens"]}
    names = {i: text for text, i in spec["model"]["vocab"].items()}
    names.update({i: t["content"] for i, t in added.items()})
    tokens = [names[i] for i in range(len(names))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [1 if i not in added else 3 if added[i]["special"] else 4 for i in range(len(tokens))]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def smollm2_from_gguf(path):
    """WITNESSES: transformers' own conversion loses the splitting of digits, so the stages are put together here."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    t.decoder = decoders.ByteLevel()
    specials = [text for text, kind in zip(tokens, types) if kind == 3]
    t.add_special_tokens(specials)
    return t, specials, fields["tokenizer.chat_template"].contents()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("door")
    parser.add_argument(
        "--data", default=os.environ.get("GANTRAIN_DATA") or os.path.join("..", "shared", "data")
    )
    parser.add_argument(
        "--gguf", help="SmolLM2-135M-Instruct; by default looked for in the user's cache folder"
    )
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    door, judge, skipped = Door(args.door), Judge(), []
    count = args.count

    def wanted(name):
        return args.only in name

    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)

        made = {"llama3": llama3, "gpt2": gpt2, "gpt2_prefix": gpt2_prefix, "smollm": smollm}
        for number, (name, make) in enumerate(made.items()):
            if not wanted(name):
                continue
            tokenizer, specials = make(random.Random(SEED + number))
            path = at(name + ".json")
            tokenizer.save(path)
            spec = json.loads(tokenizer.to_str())
            if not isinstance(spec["model"]["merges"][0], list):
                sys.exit("the tokenizers package no longer writes merges as pairs")
            check_huggingface(door, judge, name, path, tokenizer, specials, count, SEED + number)
            legacy(path, at(name + "_legacy.json"))
            texts = strings(random.Random(SEED), min(count, 1000), specials)
            judge.compare(
                f"{name} with merges as text",
                texts,
                door.ask(at(name + "_legacy.json"), "encode", texts),
                door.ask(path, "encode", texts),
            )
            pre = {"llama3": "llama-bpe", "gpt2": "gpt-2", "smollm": "smollm"}.get(name)
            if pre and name != "gpt2":  # GGUF has no lstrip, rstrip, single_word
                write_gguf_bpe(at(name + ".gguf"), pre, spec)
                check_huggingface(
                    door,
                    judge,
                    name + " GGUF",
                    at(name + ".gguf"),
                    tokenizer,
                    specials,
                    count,
                    SEED + 50 + number,
                )

        sets = {
            "tok512": os.path.join(args.data, "ci", "stories260K", "tok512.model"),
            "openllama": os.path.join(args.data, "exp", "tok_openllama", "tokenizer.model"),
        }
        for number, (name, path) in enumerate(sets.items()):
            if not os.path.exists(path):
                skipped.append(path)
                continue
            model = load_model(path)
            if wanted(name + " sentencepiece"):
                check_sentencepiece(
                    door,
                    judge,
                    name + " sentencepiece",
                    path,
                    sentencepiece.SentencePieceProcessor(model_file=path),
                    count,
                    SEED + 10 + number,
                )
            kept = keeping_spaces(model)
            processor = sentencepiece.SentencePieceProcessor(model_proto=kept.SerializeToString())
            if wanted(name + " GGUF"):
                write_gguf(at(name + ".gguf"), kept)
                check_sentencepiece(
                    door,
                    judge,
                    name + " GGUF scores",
                    at(name + ".gguf"),
                    processor,
                    count,
                    SEED + 20 + number,
                )
            if wanted(name + " bin") and os.path.exists(path[: -len("model")] + "bin"):
                check_sentencepiece(
                    door,
                    judge,
                    name + " bin",
                    path[: -len("model")] + "bin",
                    processor,
                    count,
                    SEED + 30,
                )
            if name == "openllama":
                for style in ("", "whole", "split"):
                    full = f"llama2 {style or 'normalizer'}"
                    if not wanted(full):
                        continue
                    tokenizer, specials = llama2(model, style)
                    tokenizer.save(at("llama2.json"))
                    check_huggingface(
                        door, judge, full, at("llama2.json"), tokenizer, specials, count, SEED + 40
                    )

        cache = os.environ.get("GANTRAIN_CACHE") or os.path.expanduser("~/.cache/gantrain")
        found = [
            f
            for depth in ("*", "*/*", "*/*/*")
            for f in glob.glob(f"{cache}/{depth}/SmolLM2-135M-Instruct*.gguf")
        ]
        found += glob.glob(f"{cache}/SmolLM2-135M-Instruct*.gguf")
        gguf_path = args.gguf or (sorted(found) or [None])[0]
        if not gguf_path or not os.path.exists(gguf_path):
            skipped.append(
                "SmolLM2-135M-Instruct's GGUF in the cache folder (tools/quickstart puts it there)"
            )
        elif wanted("SmolLM2"):
            tokenizer, specials, jinja = smollm2_from_gguf(gguf_path)
            if jinja != SMOLLM2:
                sys.exit(
                    "the model's chat template is not the one that witness_chat_templates.py compares with"
                )
            check_huggingface(door, judge, "SmolLM2", gguf_path, tokenizer, specials, count, SEED + 60)

    if judge.wrong:
        sys.exit(f"{judge.wrong} answers differ")
    if skipped:
        print(f"SKIP: missing: {', '.join(skipped)}; the {len(judge.lines)} comparisons that were made agree")
        sys.exit(77)  # a counted skip: the comparison is not complete


if __name__ == "__main__":
    main()
