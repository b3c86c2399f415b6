"""The metrics against independent programs (sacrebleu, rouge-score, numpy) on thousands of texts.

usage: tools/venv witness tests/train/witness_metrics.py METRICS_DOOR
Numbers must agree within 1e-9 (of 100 or of 1): the same formula in another order of double operations
differs by some 1e-13. Counts and tokens must be equal.
"""

import itertools
import json
import math
import random
import subprocess
import sys

import numpy
import sacrebleu
from rouge_score import rouge_scorer, tokenize
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

LIMIT = 1e-9
SEED = 20261123

WORDS = (
    "the a cat mat sat on of restaurant The Aldo's riverside cheap don't it's e.g. U.S. 3.5 1,000 4-5 12:30 "
    "£20 €5 $3.50 50% naïve café İstanbul \u212aelvin Straße ΑΒΓς Привет 你好 こんにちは नमस्ते مرحبا 🙂 👩‍👩‍👧 well-known "
    "(yes) [no] {x} <skipped> &amp; &quot;q&quot; &lt;b&gt; &amp;lt; a&b \"quoted\" 'single' -- --- ... . , ! ? ; : / \\ "
    "@user #tag ^ _under_score ~ ` | = + * http://x.y/z?q=1&r=2 1. 2, .5 5. ,5 -3 3- 3-a a-3 ²½ ٣٤ é e\u0301 \u0130i"
).split()
SPACES = [" "] * 24 + [
    "  ",
    "\t",
    "\n",
    "-\n",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u2028",
    "\u3000",
    "\x85",
    "\x1c",
    "\x0b",
    "",
]
ALPHABET = "ab 1.,-'\"&;<>!é你 \u00a0\n/"

SENTENCES = [
    "Aldo's is a moderately priced Thai restaurant by the riverside, rated 4 of 5.",
    "Near the riverside you will find Aldo's, which serves Thai food at moderate prices.",
    "The 10:45 to Oxford leaves from platform 3; it calls at Reading and Didcot Parkway.",
    "At 9 a.m. the station reported 12.5 °C, light rain and a north-westerly wind of 15 km/h.",
    "It costs $3.50 (or about €3,20), i.e. less than a cup of coffee.",
    "“Quotation marks”, dashes – like this – and ellipses… are everywhere.",
]


def random_text(rng):
    """Words and white space of many kinds, or noise over a small alphabet; now and then nothing."""
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(["", " ", "\n", ".", "\u3000"])
    if kind < 0.2:
        return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 30)))
    if kind < 0.25:
        return "".join(
            chr(rng.choice([rng.randint(1, 0x24F), rng.randint(0x2000, 0x206F)])) for _ in range(20)
        )
    return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 25)))


def changed(rng, sentence):
    """A sentence with some words dropped, doubled, swapped or replaced, so that n-grams match in part."""
    words = sentence.split(" ")
    for _ in range(rng.randint(0, 4)):
        if not words:
            break
        i = rng.randrange(len(words))
        action = rng.randrange(4)
        if action == 0:
            del words[i]
        elif action == 1:
            words.insert(i, words[i])
        elif action == 2:
            j = rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
        else:
            words[i] = rng.choice(WORDS)
    return " ".join(words)


def segment(rng):
    """(hypothesis, one to five references) that share words most of the time."""
    if rng.random() < 0.3:
        return random_text(rng), [random_text(rng) for _ in range(rng.randint(1, 5))]
    base = rng.choice(SENTENCES) if rng.random() < 0.5 else random_text(rng)
    hypothesis = "" if rng.random() < 0.05 else changed(rng, base)
    return hypothesis, [changed(rng, base) for _ in range(rng.randint(1, 5))]


def bleu_fields(score):
    return {
        "score": score.score,
        "bp": score.bp,
        "precisions": list(score.precisions),
        "matches": [int(x) for x in score.counts],
        "totals": [int(x) for x in score.totals],
        "lengths": [score.sys_len, score.ref_len],
    }


def corpus_bleu(hypotheses, references):
    """sacrebleu wants one stream a reference number, None where a segment has fewer."""
    streams = list(itertools.zip_longest(*references))
    return bleu_fields(sacrebleu.corpus_bleu(hypotheses, [list(stream) for stream in streams]))


def cases(rng):
    """(request for the door, the witness's answer) for every case."""
    tokenizer = Tokenizer13a()
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    sentence_metric = BLEU(effective_order=True)
    for _ in range(4000):
        text = random_text(rng)
        yield {"metric": "tokenize_13a", "text": text}, tokenizer(text.rstrip())
        yield {"metric": "tokenize_rouge", "text": text}, " ".join(tokenize.tokenize(text, None))
    for _ in range(4000):
        hypothesis, references = segment(rng)
        request = {"hypothesis": hypothesis, "references": references}
        yield {"metric": "sentence_bleu", **request}, bleu_fields(
            sentence_metric.sentence_score(hypothesis, references)
        )
        best = rouge.score_multi(references, hypothesis)["rougeL"]
        yield {"metric": "rouge_l", **request}, [best.precision, best.recall, best.fmeasure]
    for _ in range(400):
        pairs = [segment(rng) for _ in range(rng.randint(1, 20))]
        hypotheses, references = [h for h, _ in pairs], [r for _, r in pairs]
        yield (
            {"metric": "corpus_bleu", "hypotheses": hypotheses, "references": references},
            corpus_bleu(hypotheses, references),
        )
    for _ in range(200):
        texts = [segment(rng)[0] for _ in range(rng.randint(2, 9))]
        for n in (2, 3, 4, 5):
            metric = BLEU(max_ngram_order=n, effective_order=True)
            scores = [
                metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)
            ]
            yield {"metric": "self_bleu", "texts": texts, "n": n}, math.fsum(scores) / len(scores)
        for n in (1, 2, 3):
            grams = []
            for text in texts:
                tokens = tokenizer(text.rstrip()).split()
                grams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            share = len(set(grams)) / len(grams) if grams else 0
            yield {"metric": "distinct", "texts": texts, "n": n}, share
    for _ in range(200):
        values = [rng.gauss(3, 2) for _ in range(rng.randint(1, 40))]
        wanted = [numpy.mean(values), *numpy.percentile(values, [0, 25, 50, 75, 100])]
        yield {"metric": "summary", "values": values}, [float(x) for x in wanted]
        rows, labels = rng.randint(1, 20), rng.randint(1, 6)
        scores = numpy.array([rng.choice([-1.0, -2.0, rng.gauss(0, 1)]) for _ in range(rows * labels)])
        right = [rng.randrange(labels) for _ in range(rows)]
        accuracy = float(numpy.mean(scores.reshape(rows, labels).argmax(1) == numpy.array(right)))
        yield (
            {"metric": "label_accuracy", "scores": list(scores), "labels": right, "label_count": labels},
            accuracy,
        )


def difference(got, wanted):
    """The largest difference of two answers; infinite where they differ in form, type or text."""
    if isinstance(wanted, dict):
        if not isinstance(got, dict) or got.keys() != wanted.keys():
            return math.inf
        return max(difference(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return math.inf
        return max((difference(a, b) for a, b in zip(got, wanted)), default=0.0)
    if isinstance(wanted, str) or isinstance(got, str) or got is None:
        return 0.0 if got == wanted else math.inf
    return abs(got - wanted)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    rng = random.Random(SEED)
    questions = list(cases(rng))
    run = subprocess.run(
        [sys.argv[1]],
        input="".join(json.dumps(request) + "\n" for request, _ in questions).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = [json.loads(line) for line in run.stdout.decode().splitlines()]
    if len(answers) != len(questions):
        sys.exit(f"{len(questions)} requests, but {len(answers)} answers")
    worst, count, wrong = {}, {}, 0
    for (request, wanted), got in zip(questions, answers):
        name = request["metric"]
        apart = difference(got, wanted)
        count[name] = count.get(name, 0) + 1
        worst[name] = max(worst.get(name, 0.0), apart)
        if not apart <= LIMIT:
            wrong += 1
            if wrong <= 5:
                print(f"DIFFERENT by {apart}: {json.dumps(request)}\n  got    {got}\n  wanted {wanted}")
    for name in sorted(count):
        print(f"{name}: {count[name]} cases, largest difference {worst[name]:.3g} (limit {LIMIT:g})")
    if wrong:
        sys.exit(f"{wrong} of {len(questions)} cases differ")


if __name__ == "__main__":
    main()
