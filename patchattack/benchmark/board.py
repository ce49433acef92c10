"""The board: what rows of one or several people come to, as a page, as tables and as files for the Hugging Face."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml

from patchattack import files, pipeline, statistics
from patchattack.benchmark import rows
from patchattack.benchmark.rows import Row
from patchattack.benchmark.suite import UNDEFENDED
from patchattack.cells import Cell
from patchattack.controls import CONDITIONS, MEDIA
from patchattack.errors import InputError
from patchattack.reporting.board import Board, name_of, write_board
from patchattack.studies.study import markdown, publish_table, write_csv

_SPOT = ("suite", "task", "victim", "defense", "size", "pose", "medium")
_OWN = ("folder", "when", "by")  # of a row: where it lies and who has measured it, which is none of its figures
_FRAMEWORK = "patchattack"


def publish(runs: Sequence[Path], folder: Path, command: str, hub: str | None = None) -> str:
    """Write ``board.html``, ``.csv``, ``.json`` and ``.md`` and ``table.tex``, and for ``hub`` the folder ``hub``.

    Figures and order follow from the rows alone, wherever they lie: ``board.csv`` has the same bytes however the suite
    was cut into parts.

    Args:
        runs: folders with rows.
        folder: to write into.
        command: repeats it.
        hub: OWNER/NAME of a data set on the Hugging Face Hub; None writes nothing for it.

    Returns:
        The table of the victims in Markdown.

    Raises:
        InputError: there are no rows, some cannot be read, no such name, or a file cannot be written.
    """
    if hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub, re.ASCII):
        raise InputError(f"hub: expected OWNER/NAME of a data set, got {hub}")
    found, missing = rows.collect(runs)
    found.sort(key=_order)
    shown, older = rows.newest(found)
    victims = [_victim_line(group, folder) for group in _groups(shown)]
    board = Board(
        title=f"Patch benchmark: {', '.join(dict.fromkeys(row['suite'] for row in shown))}",
        verdict=_verdict(victims),
        filters=_filters(victims, shown),
        victims=victims,
        patches=[row | _where(row, folder) for row in shown if row["primary"] and row["condition"] != "clean"],
        labels={row["metric"]: row["label"] for row in shown},
        gaps=_gaps(missing, victims),
        repeated=_repeated(shown, older),
        command=command,
        versions=pipeline.versions(),
    )
    write_board(folder / "board.html", board)
    newest = {id(row) for row in shown}
    write_csv(folder / "board.csv", [_flat(row) | {"newest": id(row) in newest} for row in found])
    told = [row | {"folder": str(row["folder"]), "newest": id(row) in newest} for row in found]
    files.write_json(folder / "board.json", told)
    if hub is not None:
        _write_hub(folder / "hub", hub, victims)
    text = _victim_table(folder, board)
    gaps = [f"- {name}: {why}" for name, why in board.gaps]
    more = ["## Patches", "", _patch_table(board.patches), *(["", "## What is missing", "", *gaps] if gaps else [])]
    files.write(folder / "board.md", "\n".join([f"# {board.title}", "", text, "", *more, ""]))
    return text


def _order(row: Row) -> tuple[object, ...]:
    conditions = [*reversed(CONDITIONS)]  # patches first
    place = conditions.index(row["condition"]) if row["condition"] in conditions else len(conditions)
    defended = row["defense"] != UNDEFENDED
    spot = (row["suite"], row["task"], row["victim"], defended, row["defense"], row["size"], row["pose"], row["medium"])
    return (*spot, row["shape"], not row["primary"], row["metric"], place, row["name"], row["sha256"], row["when"])


def _groups(shown: Sequence[Row]) -> list[list[Row]]:
    """The rows of each victim behind a defence at a size in a medium."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in shown:
        groups.setdefault(tuple(row[key] for key in _SPOT), []).append(row)
    return list(groups.values())


def _where(row: Row, folder: Path) -> Row:
    path = Path(os.path.relpath(row["folder"], folder)).as_posix()
    return {"link": quote(path) + "/", "when": row["when"], "by": row["by"]}


def _victim_line(group: Sequence[Row], folder: Path) -> Row:
    """Two scores, in the metric that says how good an output is; where the data know none, in the attack's own."""
    own = [row for row in group if not row["primary"]] or group
    patches = [row for row in own if row["condition"] == "patch" and rows.known(row, "mean")]
    sign = 1 if own[0]["stronger"] == "higher" else -1
    strongest = max(patches, key=lambda row: sign * row["mean"], default=None)
    why = ""
    if not any(row["adaptive"] for row in patches):
        behind = "" if own[0]["defense"] == UNDEFENDED else f" through {own[0]['defense']}"
        why = f"no adaptive patch: none was trained on it{behind}" if patches else "no patch was tried"
        strongest = None
    shape = strongest["shape"] if strongest else own[0]["shape"]
    controls = {row["condition"]: row for row in own if row["shape"] == shape}
    spot = {key: own[0][key] for key in (*_SPOT, "metric", "label", "stronger")}
    scores = {"clean": controls.get("clean"), "strongest": strongest, "random": controls.get("random"), "why": why}
    return spot | scores | {"knowledge": strongest["knowledge"] if strongest else ""} | _where(own[0], folder)


def _verdict(victims: Sequence[Row]) -> str:
    met = [line for line in victims if line["strongest"]]
    if not met:
        return "No adaptive patch has met any of the victims: there are clean scores alone."
    beats = sum(line["strongest"]["unbeaten"] == [] for line in met)
    text = f"In {beats} of {len(met)} measurements the strongest patch does more than every control"
    lacking = len(victims) - len(met)
    return f"{text}; {lacking} more lack an adaptive patch." if lacking else f"{text}."


def _filters(victims: Sequence[Row], shown: Sequence[Row]) -> dict[str, tuple[str, list[str], str]]:
    """What lines can be told apart by. Where there is a size ``default``, that is chosen at first, and a photograph."""
    labels = {"task": "Task", "knowledge": "Knowledge of the attacker", "size": "Size", "defense": "Defence"}
    values = {key: list(dict.fromkeys(line[key] for line in victims)) for key in (*labels, "medium")}
    used = {row["knowledge"] for row in shown}
    values["knowledge"] = [one for one in rows.KNOWLEDGE if one in used]
    first = {key: values[key][0] if len(values[key]) == 1 else "" for key in values}
    for key, wanted in (("size", "default"), ("medium", [*MEDIA][-1])):
        first[key] = wanted if wanted in values[key] else first[key]
    first["knowledge"] = ""
    return {key: (label, values[key], first[key]) for key, label in (labels | {"medium": "Medium"}).items()}


def _gaps(missing: Sequence[Cell], victims: Sequence[Row]) -> list[tuple[str, str]]:
    """Cells that are not finished, and scores that lack an adaptive patch."""
    measured = {_joined([line[key] for key in ("task", "victim", "defense", "size")]) for line in victims}
    gaps = []
    for cell in missing:
        name = _joined([one.partition("=")[2] for one in cell.overrides])
        if name not in measured:  # by now, with other patches
            gaps.append((name, cell.reason or "not measured yet"))
    lacking = {_joined([line[key] for key in ("task", "victim", "defense")]): line["why"] for line in victims}
    return sorted(gaps) + sorted((name, why) for name, why in lacking.items() if why)


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words)


def _repeated(shown: Sequence[Row], older: Sequence[Row]) -> list[tuple[str, str]]:
    """Whose rows there are of the same, and whether under the same settings."""
    by_key = {tuple(row[key] for key in rows.TEXT): row for row in shown}
    found: dict[str, str] = {}
    for row in older:
        now = by_key[tuple(row[key] for key in rows.TEXT)]
        who = [f"{one['when'] or 'at an unknown time'} by {one['by'] or 'somebody'}" for one in (now, row)]
        other = "" if now.get("settings") == row.get("settings") else ", under other settings"
        found[_joined([row[key] for key in ("task", "victim", "defense", "size")])] = (
            f"shown: {who[0]}; also measured: {who[1]}{other}"
        )
    return sorted(found.items())


def _flat(row: Row) -> Row:
    """A row for a table of one value in each cell."""
    told = {key: "" if value != value else value for key, value in row.items() if key not in _OWN}
    told["versions"] = ", ".join(f"{name} {version}" for name, version in sorted(row["versions"].items()))
    return told | {"unbeaten": "" if row["unbeaten"] is None else ", ".join(row["unbeaten"]) or "none"}


def _score(row: Row | None) -> str:
    return statistics.with_interval(row) if row and rows.known(row, "mean") else "–"


def _victim_table(folder: Path, board: Board) -> str:
    heads = ["task", "victim", "defence", "size", "medium", "metric", "strongest patch", "clean", "patch", "random"]
    lines = [
        [
            *(line[key] for key in ("task", "victim", "defense", "size", "medium", "metric")),
            line["strongest"]["name"] if line["strongest"] else line["why"],
            *(_score(line[key]) for key in ("clean", "strongest", "random")),
        ]
        for line in board.victims
    ]
    note = "Means and 95 % intervals: without a patch, under the strongest patch and under a random one."
    return publish_table(folder, heads, lines, 7, board.verdict, note)


def _patch_table(patches: Sequence[Row]) -> str:
    words = ["task", "victim", "defence", "size", "medium", "patch", "knowledge", "metric", "matched by"]
    lines = [
        [
            *(row[key] for key in ("task", "victim", "defense", "size", "medium")),
            row["name"] or name_of(row["condition"]),
            *(row[key] for key in ("knowledge", "metric")),
            ", ".join(map(name_of, row["unbeaten"] or [])) or "–",
            _score(row),
            *(_difference(row, control) for control in rows.OVER),
        ]
        for row in patches
    ]
    return markdown([*words, "mean", "over random", "over hand-drawn"], lines, len(words))


def _difference(row: Row, control: str) -> str:
    if not rows.known(row, f"over_{control}"):
        return "–"
    told = {"mean": row[f"over_{control}"], "low": row[f"over_{control}_low"], "high": row[f"over_{control}_high"]}
    return statistics.with_interval(told, sign="+")


def _write_hub(folder: Path, hub: str, victims: Sequence[Row]) -> None:
    """The files by which the Hugging Face Hub shows a leaderboard of its own.

    ``eval.yaml`` goes into the data set and ``MODEL/.eval_results/patchattack.yaml`` into each model's repository, as
    https://huggingface.co/docs/hub/eval-results has it (huggingface/hub-docs at 064c754, which calls it unfinished).
    Each task has two scores for each size and medium, ``clean`` and ``patch``; only undefended victims are models.
    """
    tasks: dict[str, None] = {}
    results: dict[str, list[dict[str, object]]] = {}
    for line in victims:
        if line["defense"] != UNDEFENDED:
            continue
        for kind, score in (("clean", line["clean"]), ("patch", line["strongest"])):
            if score is None or not rows.known(score, "mean"):
                continue
            words = (line["task"], line["size"], line["pose"], line["medium"], kind)
            task = re.sub(r"[^\w.]+", "-", "_".join(words)).strip("-")
            tasks[task] = None
            notes = f"{line['label']}, 95 % interval [{score['low']:.3f}, {score['high']:.3f}], n = {score['n']:g}"
            if kind == "patch":
                notes += f", under {score['name']} ({score['knowledge']})"
            entry = {"dataset": {"id": hub, "task_id": task}, "value": round(score["mean"], 6), "notes": notes}
            results.setdefault(line["victim"], []).append(entry | ({"date": line["when"][:10]} if line["when"] else {}))
    described: Mapping[str, object] = {
        "name": hub.partition("/")[2],
        "description": "How well vision models do without a printed patch, and under the strongest one.",
        "evaluation_framework": _FRAMEWORK,
        "tasks": [{"id": task, "config": "default", "split": "test"} for task in tasks],
    }
    files.write(folder / "eval.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    for victim, entries in results.items():
        path = folder / re.sub(r"[^\w.-]+", "-", victim) / ".eval_results" / f"{_FRAMEWORK}.yaml"
        files.write(path, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
