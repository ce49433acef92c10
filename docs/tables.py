"""The tables of the results, from the files in docs/results: for the site, the README and its test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parent / "results" / "default_runs.json"
PATCHES = Path(__file__).parents[1] / "assets" / "benchmark"
# What each task's primary metric says, in a few words.
MEASURED = {
    "flow": "optical flow: cosine to the clean flow, outside the patch",
    "classification": 'classification: signs classified as "stop"',
    "depth": "depth: metres left to the target of 3 m",
    "detection": "detection: vehicles still detected",
}
MEDIA = {"digital": "digital", "photographed": "photographed, by the model"}
TEXTURES = {"random": "random patch", "drawn": "best hand-drawn texture", "patch": "**optimised patch**"}
IN_MEDIA = {
    f"{texture}_{medium}": f"{words}, {of}" for medium, of in MEDIA.items() for texture, words in TEXTURES.items()
}
COLUMNS = TEXTURES | {"coarse": "optimised patch, low-passed"}
ALL = {"clean": "no patch", "grey": "grey card", "white": "white card", "black": "black card"} | {
    "mean": "card of its mean colour",
    "shuffled": "its own texels, shuffled",
    "photo": "photo of the target",
    **COLUMNS,
    **IN_MEDIA,
}

# Files that certify.py wrote, with what the table calls their networks.
CERTIFIED_CLASSES = {
    "certified_cutout": "`classifier_residual`, trained with `--mix cutout`",
    "certified_on_cutout": "the same, then with `--mix greedy_cutout`",
    "certified_photographs": "`mobilenet_v2` with published weights, photographs",
}
CERTIFIED_OBJECTS = {"certified_yolo": "`detector_yolo`", "certified_centre": "`detector_centre`"}


def load() -> list[dict[str, Any]]:
    """The runs, by task and seed."""
    runs: list[dict[str, Any]] = _read(RUNS.name)
    return sorted(runs, key=lambda run: ([*MEASURED].index(run["task"]), run["seed"]))


def default_runs() -> str:
    """One line for each run: its primary metric as the run's own EoT has it."""
    return _by_run(COLUMNS)


def in_media() -> str:
    """One line for each run: its primary metric in both media."""
    return _by_run(IN_MEDIA)


def beaten() -> str:
    """Of each task and medium the seeds whose patch beats the random one and the best hand-drawn texture."""
    lines = _head("task", *MEDIA.values())
    for task, words in MEASURED.items():
        runs = [run for run in load() if run["task"] == task]
        won = [[run for run in runs if not run["unbeaten"][medium]] for medium in MEDIA]
        cells = [
            f"{len(those)} of {len(runs)}" + (f" (seed {_seeds(those)})" if 0 < len(those) < len(runs) else "")
            for those in won
        ]
        lines.append(_line(words.partition(":")[0], *cells))
    return "\n".join(lines)


def _seeds(runs: list[dict[str, Any]]) -> str:
    return ", ".join(str(run["seed"]) for run in runs)


def of_four_tasks() -> str:
    """The README's table: of each task the run with the lowest seed."""
    shown = {
        "random_digital": "random patch",
        "drawn_digital": "best hand-drawn texture",
        "patch_digital": "**optimised patch**",
        "drawn_photographed": "hand-drawn, photographed*",
        "patch_photographed": "**optimised, photographed***",
    }
    lines = _head("task", *shown.values())
    first = {run["task"]: run for run in reversed(load())}
    for task, words in MEASURED.items():
        primary = first[task]["metrics"][first[task]["primary_metric"]]
        cells = [_cell(primary, condition) for condition in shown]
        lines.append(_line(f"{words} {_arrow(primary)}", *cells))
    return "\n".join(lines)


def details() -> str:
    """Of each task's first run all metrics under all conditions."""
    parts = []
    for run in {run["task"]: run for run in reversed(load())}.values():
        metrics = run["metrics"]
        lines = _head("", *(f"{metric['label']} {_arrow(metric)}" for metric in metrics.values()))
        for condition, words in ALL.items():
            if condition in metrics[run["primary_metric"]]["values"]:
                lines.append(_line(words, *(_cell(metric, condition) for metric in metrics.values())))
        title = f"### {run['task'].capitalize()}\n\n`{run['command']}`, {run['victim']}, {run['scenes']} scenes"
        where = {"outside": ", outside the patch", "patch": ", on the patch"}.get(run["region"], "")
        parts.append(f"{title}{where}\n\n" + "\n".join(lines))
    return "\n\n".join(reversed(parts))


def gallery() -> str:
    """Each run's patch with its size, victim and effect."""
    parts = []
    for run in load():
        primary = run["metrics"][run["primary_metric"]]
        width, height = run["size_mm"]
        cells = [f"{words} {_cell(primary, name)}" for name, words in (COLUMNS | IN_MEDIA).items()]
        parts.append(
            f"## {run['task'].capitalize()}, seed {run['seed']}\n\n"
            f"![{run['task']} patch, seed {run['seed']}](../pictures/{run['picture']})"
            '{: style="width: 14rem; image-rendering: pixelated" }\n\n'
            f"{width:g} × {height:g} mm on paper, {run['texels'][0]} × {run['texels'][1]} texels, against "
            f"`{run['victim']}`, by `{run['command']}`.\n\n"
            f"{MEASURED[run['task']].partition(': ')[2].capitalize()} {_arrow(primary)}, {run['scenes']} scenes:\n\n"
            + "\n".join(f"- {cell}" for cell in cells)
        )
    return "\n\n".join(parts)


def speed() -> str:
    """The rows of the benchmark's suites ``step`` and ``peer``."""
    lines = _head("", "median ratio", "quartiles", "medians")
    for suite in ("step", "peer"):
        for row in _read(f"speed_{suite}.json")["rows"]:
            low, median, high = (f"{row[key]:.3f}" for key in ("low", "median", "high"))
            took = re.sub(r"[\d.]+e\+\d+", lambda number: f"{float(number[0]):.0f}", row["note"])
            lines.append(_line(row["name"], median, f"{low} to {high}", took))
    return "\n".join(lines)


def pass_bys() -> str:
    """What whole approaches of the rehearsal's camera came to, from the drive-by's ``summary.json``."""
    summary = _read("pass_bys.json")
    (victim,) = summary["victims"].values()
    rows = {row["condition"]: row for row in victim["pass_bys"]}
    textures = {"grey": "grey card", "control": "random patch, printed", "patch": "**optimised patch**"}
    latch, window = summary["pass_by"]["latch"]
    shown = {
        "won": "frames won",
        "whole": "won throughout",
        "latched": f"latched: {latch} of {window} frames in a row",
        "missed": f"would not stop at {summary['pass_by']['speed']} km/h",
    }
    lines = _head("", *textures.values())
    for key, words in shown.items():
        cells = [[rows[name][key][end] for end in ("mean", "low", "high")] for name in textures]
        lines.append(_line(words, *("{:.2f} [{:.2f}, {:.2f}]".format(*cell) for cell in cells)))
    return "\n".join(lines)


def certified_classes() -> str:
    """Clean and certified accuracy of classifiers, for each size of patch."""
    shown = {("undefended", "accuracy", "all"): "accuracy", ("defended", "accuracy", "all"): "behind the defence"}
    return _certified(CERTIFIED_CLASSES, shown | {("certified", "accuracy", "all"): "certified"})


def certified_objects() -> str:
    """Clean quality of detectors and certified recall, for each size of patch."""
    shown = {
        ("undefended", "ap50", "all"): "AP50",
        ("defended", "ap50", "all"): "behind the defence",
        ("undefended", "false_positives", "all"): "false positives",
        ("defended", "false_positives", "all"): "behind it",
    }
    places = {("certified", "recall", place): f"certified, {place}" for place in ("far", "close", "over")}
    return _certified(CERTIFIED_OBJECTS, shown | places)


def _certified(networks: dict[str, str], shown: dict[tuple[str, str, str], str]) -> str:
    lines = _head("network", "patch", *shown.values(), "scenes")
    for file, words in networks.items():
        for path in sorted(RUNS.parent.glob(f"{file}_*.json"), key=lambda path: -_read(path.name)["area"]):
            found = _read(path.name)
            rows = {(row["condition"], row["metric"], row["region"]): row for row in found["rows"]}
            cells = ["{mean:.2f} [{low:.2f}, {high:.2f}]".format(**rows[key]) for key in shown]
            area = f"{100 * found['area']:.2g} % of the frame"
            lines.append(_line(words, area, *cells, rows[next(reversed(shown))]["n"]))
    return "\n".join(lines)


def benchmark() -> str:
    """What ``bench board`` says of the victims, at the size that patches are trained at and at the others."""
    verdict, lines = _board("victims")
    kept = ("task", "victim", "defence", "size", "medium", "metric", "strongest patch", "clean", "patch", "random")
    default = [line for line in lines if line["size"] == "default"]
    smaller = [line for line in lines if line["size"] != "default" and line["defence"] == "none"]
    parts = [verdict, _of(default, [name for name in kept if name != "size"]), "### Other sizes, without a defence"]
    return "\n\n".join([*parts, _of(smaller, [name for name in kept if name != "defence"])])


def benchmark_patches() -> str:
    """The shipped patches with what they do to the victim that they were trained for, photographed by the model."""
    _, lines = _board("patches")
    parts = []
    for path in sorted(PATCHES.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        defense = facts["defenses"][0] if facts["defenses"] else "none"
        wanted = {"victim": facts["victims"][0], "defence": defense, "size": "default", "medium": "photographed"}
        here = {line["patch"]: line for line in lines if wanted.items() <= line.items()}
        shown = {name: here[name] for name in (facts["name"], "random patch", "best hand-drawn texture")}
        effects = "; ".join(f"{name} {line['mean']}" for name, line in shown.items())
        matched = shown[facts["name"]]["matched by"]
        width, height = facts["size_mm"]
        behind = f", through `{defense}`" if facts["defenses"] else ""
        parts.append(
            f"### {facts['name']}\n\n"
            f"![{facts['name']}](../pictures/{path.stem}.png)"
            '{: style="width: 10rem; image-rendering: pixelated" }\n\n'
            f"{facts['task'].capitalize()}, trained on `{facts['victims'][0]}`{behind} by `{facts['source']}`, "
            f"{width:g} × {height:g} mm. {shown[facts['name']]['metric'].capitalize()}, photographed: {effects}; "
            + ("beats every control." if matched == "–" else f"not shown to beat: {matched}.")
        )
    return "\n\n".join(parts)


def _board(which: str) -> tuple[str, list[dict[str, str]]]:
    """The verdict of a board, and the lines of its table of ``victims`` or of ``patches``."""
    victims, patches = (RUNS.parent / "benchmark.md").read_text(encoding="utf-8").split("\n## Patches\n")
    verdict = victims.split("\n\n")[1]
    table = [line.strip("| ").split(" | ") for line in {"victims": victims, "patches": patches}[which].splitlines()]
    rows = [line for line in table if len(line) > 1]
    return verdict, [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def _of(lines: list[dict[str, str]], columns: list[str]) -> str:
    return "\n".join([*_head(*columns), *(_line(*(line[name] for name in columns)) for line in lines)])


def _read(name: str) -> Any:
    return json.loads((RUNS.parent / name).read_text(encoding="utf-8"))


def _by_run(shown: dict[str, str]) -> str:
    lines = _head("task", "seed", *shown.values(), "scenes")
    for run in load():
        primary = run["metrics"][run["primary_metric"]]
        cells = [_cell(primary, condition) for condition in shown]
        lines.append(_line(f"{MEASURED[run['task']]} {_arrow(primary)}", run["seed"], *cells, run["scenes"]))
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [_line(*names), _line(*["---"] * len(names))]


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _arrow(metric: dict[str, Any]) -> str:
    return {"lower": "↓", "higher": "↑"}[metric["stronger"]]


def _cell(metric: dict[str, Any], condition: str) -> str:
    if condition not in metric["values"]:
        return "–"
    mean, low, high = metric["values"][condition][:3]
    if mean is None:
        return "–"
    small = all(abs(value[0] or 0) <= 1 for value in metric["values"].values())  # a fraction or a cosine
    return f"{_shown(mean, small)} [{_shown(low, small)}, {_shown(high, small)}]"


def _shown(value: float, small: bool) -> str:
    decimals = 3 if small else 2 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}".replace("-", "−")
