"""Write FOLDER/report.html about a comparison: one self-contained page.

Reads results.json, as `gantrain compare` wrote it, and the events.jsonl of its runs. tools/report calls this for a folder
that holds a comparison.
"""

import html
import json
import math
import os

import report
from report import DASHES, MARKERS, MUTED, SERIES, draw, figure, number, said, svg, table

# Key, title, and whether less or more of it is better; the first one that the runs have is "quality".
QUALITY = (
    ("label_likelihood", "accuracy by label likelihood", "more"),
    ("bleu", "BLEU", "more"),
    ("ce", "cross-entropy", "less"),
)
PHASES = ("rollout", "features", "discriminator", "generator forward and backward", "optimizer", "validation")


def style_of(i):
    return {"color": SERIES[i % len(SERIES)], "marker": MARKERS[(i // len(SERIES) + i) % len(MARKERS)]}


def of_budget(rows, budget):
    return [row for row in rows if row["budget"] in (budget, "none")]


def value(row, key, what="median"):
    return number(row["figures"].get(key, {}).get(what)) if key in row["figures"] else None


def results_table(rows, columns):
    columns = [(c["key"], c["title"], c["decimals"], c["scale"]) for c in columns]
    shown = [column for column in columns if any(column[0] in row["figures"] for row in rows)]
    lines = []
    for row in rows:
        runs = str(row["runs"])
        for what in ("failed", "collapsed"):
            runs += f", {row[what]} {what}" if row[what] else ""
        line = [row["arm"], runs]
        for key, _, decimals, scale in shown:
            middle = value(row, key)
            if middle is None:
                line.append("–")
                continue
            texts = [f"{scale * value(row, key, what):,.{decimals}f}" for what in ("median", "q1", "q3")]
            spread = f" [{texts[1]}, {texts[2]}]" if row["figures"][key]["count"] >= 3 and texts[1] != texts[2] else ""
            line.append(texts[0] + spread)
        lines.append(line)
    return table(["arm", "runs"] + [title for _, title, _, _ in shown], lines)


def plot_costs(rows, name):
    """Quality against what it costs: parameters, time, memory. Bars span the quartiles."""
    quality = next((q for q in QUALITY if sum(value(row, q[0]) is not None for row in rows) > 1), None)
    costs = (
        ("parameters_trained", "parameters trained", 1),
        ("train_seconds", "training, s", 1),
        ("peak_memory_bytes", "peak memory, MB", 1e-6),
    )
    if quality is None:
        return ""
    key, title, better = quality
    made, axes = figure(1, 3.6, columns=len(costs))
    for axis, (cost, label, scale) in zip(axes.flat, costs):
        positive = [value(row, cost) for row in rows if (value(row, cost) or 0) > 0]
        for i, row in enumerate(rows):
            x, y = value(row, cost), value(row, key)
            if x is None or y is None:
                continue
            bars = lambda k, s: [[s * (value(row, k) - value(row, k, "q1"))], [s * (value(row, k, "q3") - value(row, k))]]
            axis.errorbar(scale * x, y, xerr=bars(cost, scale), yerr=bars(key, 1), label=row["arm"], markersize=7,
                          linestyle="none", elinewidth=1, **style_of(i))
        if positive and max(positive) > 20 * min(positive):
            axis.set_xscale("symlog", linthresh=scale * min(positive))
        axis.set_xlabel(label)
        axis.margins(0.1)
    axes[0, 0].set_ylabel(f"{title} ({better} is better)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), fontsize=9)
    return svg(made, f"costs-{name}", f"{title} of each arm against parameters, training time and memory")


def medians(runs, keys):
    """[(temperature, median of each key)] over the runs of one arm."""
    by_temperature = {}
    for run in runs:
        for row in run["curve"]:
            by_temperature.setdefault(row["temperature"], []).append(row)
    points = []
    for temperature in sorted(by_temperature):
        middles = []
        for key in keys:
            values = sorted(number(row.get(key)) for row in by_temperature[temperature] if number(row.get(key)) is not None)
            half = len(values) // 2
            middles.append(None if not values else values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2)
        points.append((temperature, *middles))
    return points


def plot_curves(rows, runs, name):
    """Quality and diversity over the temperatures: each arm a curve of medians."""
    have = lambda key: any(number(r.get(key)) is not None for run in runs for r in run["curve"])
    planes = [
        (x, y, title)
        for x, y, title in (
            ("self_bleu_4", "bleu", "BLEU against self-BLEU-4"),
            ("distinct_2", "bleu", "BLEU against distinct-2"),
            ("self_bleu_4", "judge_accuracy", "judges against self-BLEU-4"),
        )
        if have(x) and have(y)
    ]
    if not planes:
        return ""
    made, axes = figure(1, 3.6, columns=len(planes))
    for axis, (x, y, title) in zip(axes.flat, planes):
        for i, row in enumerate(rows):
            mine = [run for run in runs if run["arm"] == row["arm"]]
            points = [p for p in medians(mine, (x, y)) if None not in p]
            if points:
                axis.plot([p[1] for p in points], [p[2] for p in points], label=row["arm"], markersize=5,
                          linestyle=DASHES[i % len(DASHES)], **style_of(i))
        axis.set_title(title)
        axis.set_xlabel({"self_bleu_4": "self-BLEU-4 (left: more varied)", "distinct_2": "distinct-2"}[x])
        axis.margins(0.12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), fontsize=9)
    return svg(made, f"curves-{name}", "Quality against diversity over the sampling temperatures, each arm a curve")


def plot_forgetting(rows, name):
    rows = [row for row in rows if value(row, "drift") is not None]
    if not rows:
        return ""
    made, axes = figure(1, 0.6 + 0.36 * len(rows))
    axis = axes[0, 0]
    for i, row in enumerate(rows):
        y = len(rows) - i
        axis.barh(y, value(row, "drift"), 0.6, color=SERIES[i % len(SERIES)])
        axis.plot([value(row, "drift", "q1"), value(row, "drift", "q3")], [y, y], color=MUTED, linewidth=2)
    axis.axvline(0, color=MUTED, linewidth=1)
    axis.set_yticks([len(rows) - i for i in range(len(rows))], [row["arm"] for row in rows])
    axis.set_xlabel("nats a token that the other text lost (right: forgotten)")
    return svg(made, f"forgetting-{name}", "Loss on unrelated text with what was trained, less that of the base model")


def plot_players(runs, folder, name):
    """Training curves of the arms with two players, one seed each: the lowest."""
    first, missing = {}, 0
    for run in sorted(runs, key=lambda r: r["seed"]):
        if any(s in ("loss.kind=rloo", "loss.kind=gumbel") for s in run["settings"]):
            first.setdefault(run["arm"], run)
    curves = []
    for arm, run in first.items():
        place = run["folder"]
        # The comparison may have moved since; its runs moved with it.
        if not os.path.isdir(place):
            place = os.path.join(folder, "runs", run["budget"], arm, f"seed-{run['seed']}")
        if not os.path.isfile(os.path.join(place, "events.jsonl")):
            missing += 1
            continue
        curves.append((arm, report.Run(place)))
    if not curves:
        return "<p>The runs' folders are gone.</p>" if missing else ""
    made, axes = figure(2, 5.4)
    for i, (arm, run) in enumerate(curves):
        color, dash = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
        for axis, names in zip(axes.flat, (("ce",), ("gate_accuracy", "pair_accuracy_heldout"))):
            xs, ys = run.curve(names)
            if xs:
                draw(axis, xs, ys, color, arm, linestyle=dash)
    axes[0, 0].set_title("Cross-entropy of the references in training")
    axes[1, 0].set_title("Held-out pair accuracy of the discriminator, running")
    axes[1, 0].axhline(0.5, color=MUTED, linestyle=":", linewidth=1.3)
    axes[1, 0].set_xlabel("step")
    report.legend(axes[0, 0])
    return svg(made, f"players-{name}", "Training curves of the arms with a generator and a discriminator")


def phases_table(rows):
    shown = [p for p in PHASES if any(value(row, "seconds " + p) is not None for row in rows)]
    lines = [[row["arm"]] + [said(value(row, "seconds " + p), 1) for p in shown] for row in rows]
    return table(["arm"] + [f"{p}, s" for p in shown], lines) if shown else ""


def commands_table(runs):
    lines = [
        [run["arm"], run["seed"], run["budget"], run["status"] + (": " + run["reason"] if run["reason"] else ""),
         run["command"] + ("; " + run["eval_command"] if run.get("eval_command") else "")]
        for run in runs
    ]
    return "<details><summary>every run, and the command that made it</summary>" + table(
        ["arm", "seed", "budget", "status", "command"], lines) + "</details>"


def page(folder):
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as file:
        results = json.load(file)
    made_by = f"Made by: {results['command']}"
    averaged = results["averaged"]["text"] + " " if "averaged" in results else ""
    sections = []
    for budget in results["budgets"]:
        name = budget["name"]
        rows, runs = of_budget(results["arms"], name), of_budget(results["runs"], name)
        sections += [
            (f"results-{name}", budget["title"], "Medians over the seeds, quartiles in brackets. A collapsed run is counted "
             "and not left out. Text scores at the temperature nearest to 1. " + averaged + made_by, results_table(rows, results["columns"])),
            (f"costs-{name}", "Quality against cost", made_by, plot_costs(rows, name)),
            (f"curves-{name}", "Quality and diversity", "Each arm's medians over its seeds, one point a temperature. "
             + made_by, plot_curves(rows, runs, name)),
            (f"forgetting-{name}", "Forgetting", "On a text that has nothing to do with the task. " + made_by,
             plot_forgetting(rows, name)),
            (f"players-{name}", "The two players", "The run with the lowest seed of each adversarial arm. " + made_by,
             plot_players(runs, folder, name)),
            (f"phases-{name}", "Where the time went", "Medians over the seeds.", phases_table(rows)),
        ]
    sections.append(("runs", "Runs", "", commands_table(results["runs"])))
    subtitle = " · ".join(html.escape(str(part)) for part in (
        os.path.basename(results["model"]), os.path.basename(results["data"]),
        "seeds " + ", ".join(map(str, results["seeds"])), results["version"]))
    name = os.path.basename(os.path.abspath(folder))
    return report.shell(f"{name}: comparison", subtitle, "", sections, "results.json and the runs' events.jsonl")
