"""Write FOLDER/report.html: one self-contained page about a training run, or about a comparison (report_compare.py).

usage: tools/report FOLDER

Reads what the run left behind, and plots and tabulates what is there; what is missing is named at the end:
  config.toml    the resolved configuration
  events.jsonl   one JSON object a line: "event" is step, eval, alarm, or ignored; "step" is its number
  summary.json   "before" and "after" (or "before_after"), "arms", "sweep", "cost", "samples", "run", "gates"
A step that was logged twice (a resumed run) counts once, as last logged.
"""

import html
import io
import json
import math
import os
import re
import sys
import tomllib

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402

# Colours are set by the page, not by the plots, so that one drawing serves light and dark: matplotlib draws
# in these stand-ins, and each becomes a CSS variable.
INK, MUTED, GRID, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band"}
VARIABLES |= {color: f"s{i + 1}" for i, color in enumerate(SERIES)}
BLUE, ORANGE, GREEN, PURPLE, RED, BROWN = SERIES
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), "-.", (0, (6, 2, 1.5, 2, 1.5, 2)), ":")
MARKERS = ("o", "s", "^", "D", "v", "P")

MOST_POINTS = 700  # of a drawn line; more steps than that are averaged in equal stretches
MOST_SAMPLES = 24
PHASES = {"warmup": "warm-up", "warmup_ce": "warm-up", "ce": "cross-entropy"}

# How a figure is called, whether less or more of it is better, and its decimals. Variety is neither: a model
# that copies its input is varied.
METRICS = {
    "loss": ("cross-entropy", "less", 3),
    "ce": ("cross-entropy", "less", 3),
    "cross_entropy": ("cross-entropy", "less", 3),
    "ppl": ("perplexity", "less", 2),
    "perplexity": ("perplexity", "less", 2),
    "bleu": ("BLEU", "more", 1),
    "rouge_l": ("ROUGE-L", "more", 3),
    "exact_match": ("exact match", "more", 3),
    "label_likelihood": ("accuracy by label likelihood", "more", 3),
    "accuracy": ("accuracy", "more", 3),
    "distinct_1": ("distinct-1", "", 3),
    "distinct_2": ("distinct-2", "", 3),
    "distinct_3": ("distinct-3", "", 3),
    "self_bleu_2": ("self-BLEU-2", "", 1),
    "self_bleu_3": ("self-BLEU-3", "", 1),
    "self_bleu_4": ("self-BLEU-4", "", 1),
    "self_bleu_5": ("self-BLEU-5", "", 1),
    "length": ("answer length, tokens", "", 1),
    "length_mean": ("answer length, tokens", "", 1),
    "drift_on": ("loss on unrelated text, prompt on", "less", 3),
    "drift_off": ("loss on unrelated text, prompt off", "less", 3),
    "judge_accuracy": ("accuracy of a fresh judge", "less", 3),
    "judge_ranking": ("pairs that a fresh judge ranks rightly", "less", 3),
    "feature_judge_accuracy": ("accuracy of a fresh judge on frozen features", "less", 3),
    "feature_judge_ranking": ("pairs that it ranks rightly", "less", 3),
}


class Order(tuple):
    """A tuple whose index of what it lacks is its length."""

    def index(self, value):
        return super().index(value) if value in self else len(self)


def number(value):
    """The value as a finite float, or None: JSON may hold null, text or NaN in a number's place."""
    if isinstance(value, dict):
        value = value.get("value", value.get("mean"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def first(source, *names):
    """The value of the first of the names that a dictionary has; None when it has none."""
    if isinstance(source, dict):
        for name in names:
            if source.get(name) is not None:
                return source[name]
    return None


class Run:
    """What a run folder holds. `missing` collects, in words, what it does not."""

    def __init__(self, folder):
        self.folder = folder
        self.missing = []
        self.config_text, self.config = self.read_config()
        self.summary = self.read_summary()
        self.steps, self.evals, self.alarms = self.read_events()

    def text(self, name):
        try:
            with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError as error:
            self.missing.append(f"{name}: {error.strerror}")
            return None

    def read_config(self):
        text = self.text("config.toml")
        if text is None:
            return None, {}
        try:
            return text, tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.missing.append(f"config.toml is no TOML: {error}")
            return text, {}

    def read_summary(self):
        text = self.text("summary.json")
        if text is None:
            return {}
        try:
            summary = json.loads(text)
        except json.JSONDecodeError as error:
            self.missing.append(f"summary.json is no JSON: {error}")
            return {}
        if not isinstance(summary, dict):
            self.missing.append("summary.json holds no JSON object")
            return {}
        return summary

    def read_events(self):
        """(steps by number in order, evals in order, alarms in order)."""
        steps, evals, alarms, bad = {}, {}, [], 0
        path = os.path.join(self.folder, "events.jsonl")
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if not line.strip():
                        continue
                    try:
                        event = json.loads(line)
                    except json.JSONDecodeError:
                        bad += 1
                        continue
                    if not isinstance(event, dict):
                        bad += 1
                        continue
                    kind, step = event.get("event"), number(event.get("step"))
                    if kind == "alarm":
                        alarms.append(event)
                    elif step is None:
                        continue
                    elif kind == "step":
                        steps[step] = event
                    elif kind in ("eval", "valid", "validation"):
                        evals[step] = {**evals.get(step, {}), **event}
        except OSError as error:
            self.missing.append(f"events.jsonl: {error.strerror}")
        if bad:
            self.missing.append(
                f"events.jsonl: {bad} {'line is' if bad == 1 else 'lines are'} no JSON object"
            )
        return [steps[step] for step in sorted(steps)], [evals[step] for step in sorted(evals)], alarms

    def curve(self, names, events=None):
        """([step], [value]) of the first of the field names that any event has."""
        for name in names:
            points = [(number(e.get("step")), number(e.get(name))) for e in (events or self.steps)]
            points = [(step, value) for step, value in points if step is not None and value is not None]
            if points:
                return [step for step, _ in points], [value for _, value in points]
        return [], []

    def setting(self, *path, default=None):
        value = self.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    def phases(self):
        """(first step, last step, name) of each stretch of steps in one phase."""
        stretches = []
        for event in self.steps:
            step, name = number(event.get("step")), event.get("phase")
            if not isinstance(name, str):
                continue
            if stretches and stretches[-1][2] == name:
                stretches[-1][1] = step
            else:
                stretches.append([step, step, name])
        return stretches


# ---------------------------------------------------------------------------------------------------- drawing


def thinned(xs, ys):
    """At most MOST_POINTS points: means over equal stretches."""
    size = math.ceil(len(xs) / MOST_POINTS)
    if size <= 1:
        return xs, ys
    cut = range(0, len(xs), size)
    mean = lambda values, i: sum(values[i : i + size]) / len(values[i : i + size])
    return [mean(xs, i) for i in cut], [mean(ys, i) for i in cut]


def smoothed(ys, width):
    """A centred moving average over `width` points, shorter at the ends."""
    half, total = width // 2, [0.0]
    for y in ys:
        total.append(total[-1] + y)
    windows = ((max(0, i - half), min(len(ys), i + half + 1)) for i in range(len(ys)))
    return [(total[end] - total[begin]) / (end - begin) for begin, end in windows]


def figure(rows, height, ratios=None, columns=1):
    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.size": 10,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": MUTED,
            "axes.titlecolor": INK,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "text.color": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "lines.linewidth": 1.8,
        }
    )
    made, axes = plt.subplots(
        rows,
        columns,
        figsize=(9.6, height),
        sharex=columns == 1,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": ratios},
    )
    made.patch.set_alpha(0)
    for axis in axes.flat:
        axis.patch.set_alpha(0)
    return made, axes


def svg(made, name, description):
    """The figure as inline SVG: colours as CSS variables, ids unique on the page, no document header."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(made)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head = f'<svg role="img" aria-label="{html.escape(description, quote=True)}"'
    text = head + re.sub(r' (width|height)="[\d.]+pt"', "", text[len("<svg") :], count=2)
    return f'<figure class="plot">{text}</figure>'


def shade_phases(axis, phases, labels):
    """Alternating bands behind the curves, one a phase, named at the top of the first axis."""
    for i, (begin, end, name) in enumerate(phases):
        # Phases shorter than a hundredth of the run get no name: it would not fit.
        if i % 2:
            axis.axvspan(begin, end, color=BAND, linewidth=0, zorder=0)
        if labels and (end - begin) > 0.06 * (phases[-1][1] - phases[0][0] or 1):
            axis.annotate(
                PHASES.get(name, name.replace("_", " ")),
                ((begin + end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=MUTED,
            )


def draw(axis, xs, ys, color, label, windows=30, **style):
    """A curve: the values faintly, their moving average over a share of 1/windows strongly."""
    xs, ys = thinned(xs, ys)
    width = len(xs) // windows
    if width >= 3:
        axis.plot(xs, ys, color=color, alpha=0.28, linewidth=0.9)
        ys = smoothed(ys, width)
    axis.plot(xs, ys, color=color, label=label, **style)


def legend(axis):
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), fontsize=9, borderaxespad=0.2)


def plot_losses(run):
    ce, ce_eval = run.curve(("ce", "loss_ce")), (
        run.curve(("ce", "loss"), run.evals) if run.evals else ([], [])
    )
    players = [
        (run.curve(("loss_g", "g_loss")), BLUE, "generator"),
        (run.curve(("loss_d", "d_loss")), ORANGE, "discriminator"),
    ]
    players = [player for player in players if player[0][0]]
    if not (ce[0] or ce_eval[0] or players):
        run.missing.append("losses: events.jsonl has no ce, loss_g or loss_d")
        return ""
    both = bool(ce[0] or ce_eval[0]) + bool(players)
    made, axes = figure(both, 2.3 * both + 0.5)
    axes = list(axes[:, 0])
    for i, axis in enumerate(axes):
        shade_phases(axis, run.phases(), i == 0)
    pad = 16 if run.phases() else 6
    if ce[0] or ce_eval[0]:
        axis = axes.pop(0)
        if ce[0]:
            draw(axis, *ce, BLUE, "training")
        if ce_eval[0]:
            axis.plot(*ce_eval, color=RED, label="validation", marker="o", markersize=4, linestyle=DASHES[1])
        before = first(first(run.summary, "before"), "ce", "loss", "cross_entropy")
        if number(before) is not None:
            axis.axhline(number(before), color=MUTED, linestyle=":", linewidth=1.3, label="no prompt, test")
        axis.set_title("Cross-entropy per answer token", pad=pad)
        axis.set_ylabel("nats")
        legend(axis)
        pad = 6
    if players:
        axis = axes.pop(0)
        for (curve, color, label), dash in zip(players, DASHES):
            draw(axis, *curve, color, label, linestyle=dash)
        axis.set_title("Losses of the two players", pad=pad)
        axis.set_xlabel("step")
        legend(axis)
    return svg(made, "losses", "Training and validation loss against the step")


def plot_players(run):
    curves = [
        (run.curve(("pair_accuracy_heldout", "pair_accuracy_held_out")), ORANGE, "held-out inputs", "-"),
        (run.curve(("pair_accuracy", "pair_accuracy_train")), BLUE, "training pairs", DASHES[1]),
        (run.curve(("gate_accuracy",)), GREEN, "what the gate reads", DASHES[2]),
    ]
    trained = [
        (
            name,
            [(number(e.get("step")), bool(e[key])) for e in run.steps if isinstance(e.get(key), bool)],
            color,
        )
        for name, key, color in (("generator", "trained_g", BLUE), ("discriminator", "trained_d", ORANGE))
    ]
    if run.setting("loss", "kind") == "ce" and not any(curve[0][0] for curve in curves):
        return ""  # cross-entropy alone: there is no second player
    for curve, _, label, _ in curves[:2]:
        if not curve[0]:
            run.missing.append(f"pair accuracy on {label}: not in events.jsonl")
    curves = [curve for curve in curves if curve[0][0]]
    trained = [row for row in trained if row[1]]
    if not trained:
        run.missing.append("who trained: events.jsonl has no trained_g and trained_d")
    if not curves:
        return ""
    made, axes = figure(1 + bool(trained), 3.2 + 0.9 * bool(trained), [4, 1] if trained else None)
    axis = axes[0, 0]
    low, high = number(run.setting("train", "gate_g")), number(run.setting("train", "gate_d"))
    if low is not None and high is not None:
        axis.axhspan(low, high, color=BAND, linewidth=0, zorder=0, label=f"both train ({low:g} to {high:g})")
    axis.axhline(0.5, color=MUTED, linestyle=":", linewidth=1.3, label="guessing")
    for curve, color, label, dash in curves:
        draw(axis, *curve, color, label, windows=12, linestyle=dash)
    axis.set_ylim(min(0.4, *(min(c[0][1]) for c in curves)) - 0.02, 1.02)
    axis.set_title("Pair accuracy: how often the discriminator prefers the reference")
    legend(axis)
    if trained:
        strip = axes[1, 0]
        for row, (name, flags, color) in enumerate(trained):
            bars, begin = [], None
            for (step, on), (after, _) in zip(flags, flags[1:] + [(flags[-1][0] + 1, None)]):
                if on and begin is None:
                    begin = step
                if begin is not None and not on:
                    bars.append((begin, step - begin))
                    begin = None
                elif begin is not None and after == flags[-1][0] + 1:
                    bars.append((begin, after - begin))
            strip.broken_barh(bars, (-row - 0.35, 0.7), facecolor=color, linewidth=0)
        strip.set_yticks([-row for row in range(len(trained))], [name for name, _, _ in trained])
        strip.set_ylim(-len(trained) + 0.4, 0.6)
        strip.grid(False)
        strip.set_title("Who trained")
    axes[-1, 0].set_xlabel("step")
    return svg(made, "players", "Pair accuracy against the step, and which player trained")


def sweep_rows(run):
    rows = first(run.summary, "sweep", "temperature_sweep", "quality_temperature")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [row for row in rows if number(row.get("temperature")) is not None]


def plot_temperature(run):
    rows = sweep_rows(run)
    if not rows:
        run.missing.append("quality against temperature: summary.json has no sweep")
        return ""
    arms = list(dict.fromkeys(str(row.get("arm", "trained")) for row in rows))
    wanted = (
        "bleu",
        "rouge_l",
        "self_bleu_4",
        "distinct_1",
        "distinct_2",
        "distinct_3",
        "length",
        "length_mean",
    )
    shown = [key for key in wanted if any(number(row.get(key)) is not None for row in rows)]
    plane = "bleu" in shown and "self_bleu_4" in shown
    if not shown:
        run.missing.append("quality against temperature: the sweep has none of " + ", ".join(wanted))
        return ""
    shown = [key for key in shown if key not in ("distinct_1", "distinct_3")] if len(shown) > 5 else shown
    cells = len(shown) + plane
    columns = min(3, cells)
    made, axes = figure(math.ceil(cells / columns), 2.5 * math.ceil(cells / columns) + 0.4, columns=columns)
    spare = list(axes.flat)
    axis_of = {}
    if plane:
        axis_of["plane"] = spare.pop(0)
    for key in shown:
        axis_of[key] = spare.pop(0)
    for axis in spare:
        axis.set_visible(False)
    for i, arm in enumerate(arms):
        style = {
            "color": SERIES[i % len(SERIES)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "markersize": 5,
        }
        mine = sorted(
            (row for row in rows if str(row.get("arm", "trained")) == arm), key=lambda r: r["temperature"]
        )
        for key in shown:
            points = [(number(row["temperature"]), number(row.get(key))) for row in mine]
            points = [point for point in points if point[1] is not None]
            axis_of[key].plot(*zip(*points), label=arm, **style) if points else None
        if plane:
            points = [
                (number(r.get("self_bleu_4")), number(r.get("bleu")), number(r["temperature"])) for r in mine
            ]
            points = [point for point in points if None not in point]
            if points:
                axis_of["plane"].plot([p[0] for p in points], [p[1] for p in points], label=arm, **style)
                for x, y, temperature in (
                    (points[0], points[-1]) if len(points) > 1 and arm == arms[-1] else ()
                ):
                    axis_of["plane"].annotate(
                        f"T={temperature:g}",
                        (x, y),
                        xytext=(5, 4),
                        textcoords="offset points",
                        fontsize=8,
                        color=MUTED,
                    )
    for key in shown:
        axis_of[key].set_title(METRICS[key][0])
        axis_of[key].set_xlabel("temperature")
    if plane:
        axis_of["plane"].set_title("BLEU against self-BLEU-4")
        axis_of["plane"].set_xlabel("self-BLEU-4 (left: more varied)")
        axis_of["plane"].margins(0.12)
    handles, labels = axis_of[shown[0]].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), fontsize=9.5)
    return svg(made, "temperature", "Quality and diversity against the sampling temperature for each arm")


def plot_health(run):
    panels = []
    rms = run.curve(("rms_ratio", "prompt_rms_ratio"))
    if rms[0]:
        panels.append(("Size of the prompt: rms(P) / rms(E)", [(rms, BLUE, None)], (0.5, 2.0)))
    else:
        run.missing.append("prompt rms ratio: events.jsonl has no rms_ratio")
    pairs = (
        (
            "Gradient norms before clipping",
            ("grad_norm_g", "gradient_norm_g", "norm_g"),
            ("grad_norm_d", "gradient_norm_d", "norm_d"),
        ),
        ("Learning rates", ("lr_g",), ("lr_d",)),
    )
    for title, of_g, of_d in pairs:
        lines = [(run.curve(of_g), BLUE, "generator"), (run.curve(of_d), ORANGE, "discriminator")]
        lines = [line for line in lines if line[0][0]]
        if lines:
            panels.append((title, lines, None))
    single = (
        ("Length of sampled answers, tokens", ("length", "sample_length", "answer_length")),
        ("KL from the warmed-up generator", ("kl",)),
        ("Mean reward of the sampled answers", ("reward",)),
        ("Share of samples of other tokens than their text's", ("non_canonical",)),
        ("Share of samples equal to their reference", ("identical",)),
    )
    for title, names in single:
        curve = run.curve(names)
        if curve[0]:
            panels.append((title, [(curve, GREEN, None)], None))
    if not panels:
        return ""
    rows = math.ceil(len(panels) / 2)
    made, axes = figure(rows, 2.2 * rows + 0.3, columns=2)
    for axis, panel in zip(axes.flat, panels + [None]):
        if panel is None:
            axis.set_visible(False)
            continue
        title, lines, band = panel
        for (curve, color, label), dash in zip(lines, DASHES):
            draw(axis, *curve, color, label, linestyle=dash)
        if band:
            axis.axhspan(*band, color=BAND, linewidth=0, zorder=0)
            axis.set_yscale("log")
            low, high = min(min(lines[0][0][1]), band[0]), max(max(lines[0][0][1]), band[1])
            axis.set_ylim(low / 1.2, high * 1.2)
            ticks = [
                tick for tick in (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16) if low / 1.2 <= tick <= high * 1.2
            ]
            axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_xlim(0, number(run.steps[-1].get("step")) * 1.02 + 1)
        if any(label for _, _, label in lines):
            axis.legend(fontsize=8.5)
    return svg(made, "health", "Prompt size, learning rates and other quantities that are watched")


# ----------------------------------------------------------------------------------------------------- tables


def said(value, decimals=None):
    """A value as a person reads it."""
    if isinstance(value, dict) and number(value) is not None:
        error = number(first(value, "standard_error", "se", "error"))
        return said(number(value), decimals) + (f" ± {said(error, decimals)}" if error is not None else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if number(value) is None:
        return "–" if value is None or isinstance(value, float) else str(value)
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def cell(value, tag="td", name=""):
    return f"<{tag}{f' class={chr(34)}{name}{chr(34)}' if name else ''}>{html.escape(said(value))}</{tag}>"


def table(head, rows):
    """A table of escaped texts; numbers and their like stand right-aligned by the class of their column."""
    numeric = [
        all(re.fullmatch(r"[-+]?[\d,.]+( ?%| ?[a-zA-Z/]+)?( ± [\d.,]+)?|–|", said(row[i])) for row in rows)
        for i in range(len(head))
    ]
    line = lambda row, tag: "".join(cell(v, tag, "n" if right else "") for v, right in zip(row, numeric))
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def label_of(key):
    return METRICS.get(key, (key.replace("_", " "), "", None))[0]


def before_after(run):
    """[(metric, before, after)] from either form of the summary."""
    given = first(run.summary, "before_after", "comparison")
    if isinstance(given, dict) and ("before" not in given or "after" not in given):
        pairs = [
            (key, first(v, "before"), first(v, "after")) for key, v in given.items() if isinstance(v, dict)
        ]
    elif isinstance(given, list):
        rows = [row for row in given if isinstance(row, dict)]
        pairs = [(str(first(row, "metric", "name")), row.get("before"), row.get("after")) for row in rows]
    else:
        both = given if isinstance(given, dict) else run.summary
        before, after = first(both, "before"), first(both, "after")
        before, after = (x if isinstance(x, dict) else {} for x in (before, after))
        pairs = [(key, before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])]
    pairs = [pair for pair in pairs if pair[0] != "temperature"]  # a condition, not a figure
    pairs.sort(key=lambda pair: rank(pair[0]))
    return [(key, b, a) for key, b, a in pairs if number(b) is not None or number(a) is not None]


def rank(key):
    """Where a figure stands in a table: as in METRICS, then the ones unknown there."""
    return Order(METRICS).index(key)


def drawn_at(run):
    """The temperature at which the answers behind the table of before and after were drawn, or None."""
    return number(first(first(run.summary, "after"), "temperature"))


def before_after_table(run):
    pairs = before_after(run)
    if not pairs:
        run.missing.append("before and after: summary.json has no figures for both")
        return ""
    rows = []
    for key, before, after in pairs:
        name, better, decimals = METRICS.get(key, (key.replace("_", " "), "", None))
        change, verdict, arrow = "", "", ""
        if number(before) is not None and number(after) is not None:
            difference = number(after) - number(before)
            shown = said(abs(difference), decimals)
            arrow = "" if float(shown.replace(",", "")) == 0 else "▲" if difference > 0 else "▼"
            if arrow and better:
                verdict = "good" if (difference > 0) == (better == "more") else "bad"
            word = {"good": "better", "bad": "worse"}.get(verdict, "")
            change = f'{arrow} {shown} <span class="word">{word}</span>'
        rows.append(
            f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(said(before, decimals))}</td>'
            f'<td class="n strong">{html.escape(said(after, decimals))}</td>'
            f'<td class="n {verdict}">{change}</td></tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th>measure</th><th class="n">before</th>'
        '<th class="n">after</th>'
        f'<th class="n">change</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def arms_table(run):
    """One row an arm, where the summary compares more than the two of before and after."""
    arms = first(run.summary, "arms", "methods")
    if isinstance(arms, dict):
        arms = [{"arm": name, **values} for name, values in arms.items() if isinstance(values, dict)]
    arms = [arm for arm in arms if isinstance(arm, dict)] if isinstance(arms, list) else []
    if len(arms) < 3 and before_after(run):
        return ""
    # An arm's figures at each temperature are a list of their own: take those of the table above.
    at = drawn_at(run)
    for i, arm in enumerate(arms):
        for row in arm.get("temperatures") if isinstance(arm.get("temperatures"), list) else ():
            if isinstance(row, dict) and at is not None and number(row.get("temperature")) == at:
                arms[i] = {**arm, **row}
    plain = ("arm", "temperature", "scored_tokens", "texts", "distinct_1", "distinct_3")
    keys = dict.fromkeys(key for arm in arms for key, value in arm.items() if number(value) is not None)
    keys = sorted((k for k in keys if k not in plain and not re.fullmatch("self_bleu_[235]", k)), key=rank)
    if not keys:
        return ""
    decimals = {key: METRICS.get(key, (0, 0, None))[2] for key in keys}
    rows = [
        [arm.get("arm", "")]
        + [said(arm.get(key), decimals[key] if number(arm.get(key)) is not None else None) for key in keys]
        for arm in arms
    ]
    return "<h3>Every arm</h3>" + table(["arm"] + [label_of(key) for key in keys], rows)


def seconds_said(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def bytes_said(size):
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"


# By the first word of a cost figure's name.
COSTS = Order(("parameters", "optimizer", "planned", "peak", "train", "rows", "tokens", "sampled", "share"))


def cost_tables(run):
    cost = first(run.summary, "cost")
    if not isinstance(cost, dict):
        run.missing.append("cost figures: summary.json has no cost")
        return ""
    rows, parts = [], []
    for key, value in sorted(cost.items(), key=lambda item: (COSTS.index(item[0].split("_")[0]), item[0])):
        if isinstance(value, dict) and number(value) is None:
            times = {k: number(v) for k, v in value.items() if number(v) is not None}
            if times:
                whole, most = sum(times.values()), max(times.values()) or 1
                title = "time by phase" if key == "seconds" else label_of(key)
                parts.append(
                    f"<h3>{html.escape(title.capitalize())}</h3>"
                    + '<div class="bars">'
                    + "".join(
                        f'<div class="bar"><span>{html.escape(name.replace("_", " "))}</span>'
                        f'<span class="track"><span style="width:{100 * t / most:.1f}%"></span></span>'
                        f'<span class="n">{html.escape(seconds_said(t))}</span>'
                        f'<span class="n">{100 * t / whole if whole > 0 else 0:.0f} %</span></div>'
                        for name, t in sorted(times.items(), key=lambda item: -item[1])
                    )
                    + "</div>"
                )
        elif number(value) is not None and key.startswith("share"):
            rows.append([key.replace("_", " "), f"{100 * number(value):.0f} %"])
        elif number(value) is not None and key.endswith("bytes"):
            rows.append([key.replace("_bytes", "").replace("_", " "), bytes_said(number(value))])
        elif number(value) is not None and key.endswith("_seconds"):
            rows.append([key.replace("_seconds", " time").replace("_", " "), seconds_said(number(value))])
        else:
            rows.append([key.replace("_", " ").replace(" per second", " a second"), said(value)])
    return (table(["figure", "value"], rows) if rows else "") + "".join(parts)


def trained_share(run):
    """A sentence about how often each player trained while both were in the game."""
    events = [e for e in run.steps if e.get("phase") == "adversarial"]
    if not events:
        return ""
    cost = first(run.summary, "cost")
    shares = [number(first(cost, f"share_{player}_trained")) for player in ("generator", "discriminator")]
    if None in shares:
        shares = [sum(e.get(key) is True for e in events) / len(events) for key in ("trained_g", "trained_d")]
    return (
        f"<p>Of the adversarial steps the generator trained in {100 * shares[0]:.0f}&nbsp;%, "
        f"the discriminator in {100 * shares[1]:.0f}&nbsp;%.</p>"
    )


def alarm_section(run):
    if not run.alarms:
        return "<p>No alarm was raised.</p>" if run.steps else ""
    kinds = {}
    for alarm in run.alarms:
        message = str(first(alarm, "text", "message", "detail") or "")
        # Alarms are of one kind when they have one name, or say the same but for the numbers.
        name = first(alarm, "name", "kind") or re.sub(r"\d+(\.\d+)?", "#", message)
        kinds.setdefault(str(name), []).append((alarm, message))
    rows = []
    for alarms in kinds.values():
        steps = [number(alarm.get("step")) for alarm, _ in alarms if number(alarm.get("step")) is not None]
        span = (
            f"{int(min(steps)):,} to {int(max(steps)):,}"
            if len(steps) > 1
            else said(steps[0]) if steps else "–"
        )
        rows.append(
            [len(alarms), span, alarms[-1][1] or str(first(alarms[-1][0], "name", "kind") or "alarm")]
        )
    count = f"{len(run.alarms):,} alarm{' was' if len(run.alarms) == 1 else 's were'} raised."
    return f"<p>{count}</p>" + table(["times", "steps", "the last time it said"], rows)


def gate_section(run):
    gates = first(run.summary, "gates")
    if isinstance(gates, dict):
        gates = [{"gate": name, **(v if isinstance(v, dict) else {"result": v})} for name, v in gates.items()]
    gates = [gate for gate in gates if isinstance(gate, dict)] if isinstance(gates, list) else []
    if not gates:
        return ""
    known = ("gate", "asks", "value", "standard_error", "limit", "count", "passed")
    seen = list(dict.fromkeys(key for gate in gates for key in gate))
    keys = [key for key in known if key in seen] + [key for key in seen if key not in known]
    rows = [[gate.get(key) for key in keys] for gate in gates]
    return "<h3>Gates</h3>" + table([key.replace("_", " ") for key in keys], rows)


def sample_section(run):
    samples = first(run.summary, "samples")
    samples = [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
    if not samples:
        run.missing.append("samples: summary.json has none")
        return ""
    texts = lambda value: value if isinstance(value, list) else [] if value is None else [value]
    paragraphs = (
        lambda value: "".join(f"<p>{html.escape(str(text))}</p>" for text in texts(value)) or "<p>–</p>"
    )
    cards = []
    for sample in samples[:MOST_SAMPLES]:
        columns = [("before", first(sample, "before", "base")), ("after", first(sample, "after", "trained"))]
        # Samples of further arms stand beside the two.
        known = {
            "prompt",
            "input",
            "references",
            "reference",
            "before",
            "base",
            "after",
            "trained",
            "meaning",
        }
        columns += [
            (key, value)
            for key, value in sample.items()
            if key not in known and isinstance(value, (str, list))
        ]
        blocks = "".join(
            f'<div class="{"after" if name == "after" else "other"}">'
            f'<h4>{html.escape(name.replace("_", " "))}</h4>{paragraphs(value)}</div>'
            for name, value in columns
        )
        references = texts(first(sample, "references", "reference"))
        shown = "".join(f"<li>{html.escape(str(text))}</li>" for text in references)
        cards.append(
            '<article class="sample">'
            f'<p class="prompt">{html.escape(str(first(sample, "prompt", "input") or ""))}</p>'
            f'<div class="sides">{blocks}</div>'
            + (
                f'<details><summary>{len(references)} reference{"s" * (len(references) != 1)}</summary>'
                f"<ul>{shown}</ul></details>"
                if shown
                else ""
            )
            + "</article>"
        )
    more = (
        f"<p>{len(samples) - MOST_SAMPLES} more are in summary.json.</p>"
        if len(samples) > MOST_SAMPLES
        else ""
    )
    return "".join(cards) + more


NEAREST_NOTE = (
    "For each vector of the prompt the token whose embedding lies nearest, with its cosine. A vector is no "
    "word: this only shows where it stands."
)


def nearest_section(run):
    """The tokens nearest to the prompt's vectors, in order. Byte-level BPE writes a space as Ġ."""
    tokens = first(run.summary, "nearest_tokens")
    tokens = [str(token).replace("Ġ", "␣") for token in tokens] if isinstance(tokens, list) else []
    chips = " ".join(f"<span>{html.escape(token)}</span>" for token in tokens)
    return f'<p class="chips">{chips}</p>' if chips else ""


def results_note(run):
    """What the table of before and after compares."""
    about = first(run.summary, "run")
    items, split = number(first(about, "items")), first(about, "split")
    note = "The frozen model without and with the trained prompt"
    note += (
        f", on the same {said(items)} items of the {split} split."
        if items and split
        else ", on the same items."
    )
    if drawn_at(run) is not None:
        note += f" Answers were drawn at temperature {drawn_at(run):g}."
    return note


def headline(run):
    """The few figures a reader wants first, as (label, value, remark)."""
    cards = []
    for key, before, after in before_after(run):
        if key in (
            "ce",
            "loss",
            "cross_entropy",
            "ppl",
            "perplexity",
            "bleu",
            "rouge_l",
            "exact_match",
            "label_likelihood",
            "accuracy",
        ):
            name, _, decimals = METRICS[key]
            if number(after) or number(before):  # both zero: not this task's measure
                cards.append((name, said(number(after), decimals), f"before: {said(before, decimals)}"))
    held_out = run.curve(("pair_accuracy_heldout", "pair_accuracy_held_out"))[1]
    if held_out:
        tail = held_out[-max(1, len(held_out) // 5) :]
        cards.append(
            (
                "held-out pair accuracy",
                f"{sum(tail) / len(tail):.2f}",
                "0.50 is guessing; last fifth",
            )
        )
    cost = first(run.summary, "cost")
    trained, deployed = number(first(cost, "parameters_trained")), number(first(cost, "parameters_deployed"))
    if trained is not None:
        remark = f"deployed: {said(deployed)}" if deployed is not None else ""
        cards.append(("parameters trained", said(trained), remark))
    total = number(first(cost, "train_seconds", "total_seconds"))
    if total is None:
        total = sum(number(event.get("step_seconds")) or 0 for event in run.steps) or None
    if total is not None:
        cards.append(
            (
                "training time",
                seconds_said(total),
                f"{said(number(run.steps[-1].get('step')))} steps" if run.steps else "",
            )
        )
    return "".join(
        f'<div class="card"><span class="label">{html.escape(label)}</span>'
        f'<span class="value">{html.escape(value)}</span>'
        f'<span class="remark">{html.escape(remark)}</span></div>'
        for label, value, remark in cards[:8]
    )


def subtitle(run):
    about = first(run.summary, "run", "about")
    about = about if isinstance(about, dict) else {}
    parts = [
        os.path.basename(str(first(about, "model") or run.setting("model", default=""))),
        first(about, "data", "task") or os.path.basename(str(run.setting("data", "train", default=""))),
    ]
    generator, length = run.setting("generator", "kind"), run.setting("generator", "prompt_length")
    method = run.setting("method")
    if method == "prefix":
        parts.append(f"prefix of keys and values, P = {run.setting('prefix', 'length')}")
    elif method == "adapter":
        places = " and ".join(run.setting("bottleneck", "places", default=[]))
        parts.append(f"bottlenecks behind {places}, width {run.setting('bottleneck', 'width')}")
    elif method == "full":
        parts.append("all weights")
    elif method == "lora":
        layers = ", ".join(run.setting("lora", "targets", default=[]))
        parts.append(f"LoRA on {layers}, r = {run.setting('lora', 'rank')}")
    elif generator:
        parts.append(f"{generator} generator" + (f", P = {length}" if length else ""))
    if run.setting("loss", "kind"):
        parts.append(f"loss {run.setting('loss', 'kind')}")
    if run.setting("seed") is not None:
        parts.append(f"seed {run.setting('seed')}")
    parts += [about[key] for key in ("dtype", "device") if about.get(key)]
    parts += [f"commit {about['commit']}"] if about.get("commit") else []
    return " · ".join(html.escape(str(part)) for part in parts if part)


def shell(name, about, cards, sections, made_from):
    """A page of sections (key, title, note, body); those without a body are left out."""
    with open(
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.css"), encoding="utf-8"
    ) as file:
        style = file.read()
    sections = [section for section in sections if section[3]]
    links = "".join(f' <a href="#{key}">{html.escape(title)}</a>' for key, title, _, _ in sections)
    bodies = "".join(
        f'<section><h2 id="{key}">{html.escape(title)}</h2>'
        + (f'<p class="note">{html.escape(note)}</p>' if note else "")
        + f"{body}</section>"
        for key, title, note, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{style}</style></head><body><main>"
        f'<header><h1>{html.escape(name)}</h1><p class="subtitle">{about}</p>'
        f'{f"<div class={chr(34)}cards{chr(34)}>{cards}</div>" if cards else ""}<nav>{links}</nav></header>'
        f"{bodies}<footer>Made by tools/report from {made_from}.</footer>"
        "</main></body></html>\n"
    )


def page(run):
    """The whole page as text."""
    name = os.path.basename(os.path.abspath(run.folder))
    sections = [
        (
            "results",
            "Before and after",
            results_note(run),
            before_after_table(run) + arms_table(run) + gate_section(run),
        ),
        (
            "temperature",
            "Quality against temperature",
            "Quality and variety trade off, so they are shown as curves and never "
            "as one point. Above and to the left is better in the first panel.",
            plot_temperature(run),
        ),
        ("samples", "Answers side by side", "", sample_section(run)),
        (
            "losses",
            "Losses",
            "Thin: as logged. Thick: moving average. Shaded: every other phase of the training.",
            plot_losses(run),
        ),
        (
            "players",
            "The two players",
            "At 0.5 the discriminator cannot tell references from the model's own answers. The "
            "discriminator trains below the upper edge of the band, the generator above its lower edge.",
            plot_players(run) + trained_share(run),
        ),
        (
            "health",
            "What is watched",
            "The shaded band is where the prompt's size should stay.",
            plot_health(run),
        ),
        ("alarms", "Alarms", "", alarm_section(run)),
        ("cost", "Cost", "", cost_tables(run)),
        ("prompt", "The prompt, in words", NEAREST_NOTE, nearest_section(run)),
        (
            "settings",
            "Settings",
            "",
            (
                "<details><summary>config.toml, every key resolved</summary>"
                f"<pre>{html.escape(run.config_text)}</pre></details>"
                if run.config_text
                else ""
            ),
        ),
    ]
    missing = list(dict.fromkeys(run.missing))
    if missing:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in missing)
        sections.append(("missing", "Not recorded", "", f"<ul>{items}</ul>"))
    files = "config.toml, events.jsonl and summary.json"
    return shell(f"{name}: training report", subtitle(run), headline(run), sections, files)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: tools/report FOLDER")
    folder = sys.argv[1]
    if not os.path.isdir(folder):
        sys.exit(f"tools/report: {folder}: no such folder; expected the output folder of a training run or a comparison")
    known = ("events.jsonl", "summary.json")
    if os.path.isfile(os.path.join(folder, "results.json")):
        import report_compare  # it builds on this module

        try:
            text = report_compare.page(folder)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            sys.exit(
                f"tools/report: {folder}/results.json is not what gantrain compare writes ({error!r}); "
                "run the comparison's command again"
            )
    elif any(os.path.isfile(os.path.join(folder, name)) for name in known):
        text = page(Run(folder))
    else:
        sys.exit(
            f"tools/report: {folder}: none of events.jsonl, summary.json and results.json is there: neither a "
            "run's folder nor a comparison's"
        )
    path = os.path.join(folder, "report.html")
    try:
        with open(path + ".part", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".part", path)
    except OSError as error:
        sys.exit(f"tools/report: {error.filename}: {error.strerror}")
    print(path)


if __name__ == "__main__":
    main()
