"""The table of per-image baselines: CSV, JSON, markdown and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchattack.reporting.page import number
from patchattack.reporting.single_image import Cell, Dot, Page, Table, write_per_image
from patchattack.studies.single_image.baselines import BASELINES
from patchattack.studies.single_image.baselines_study import RATES, BaselinesStudy, Row
from patchattack.studies.study import publish_table, write_csv

NAMES = {
    "none": "nothing (control)",
    **{key: baseline.name for key, baseline in BASELINES.items()},
    "random": "random patch (control)",
    "patch": "optimised patch",
}
COLUMNS = ("Attack", "digital success", "left after print and photograph", "destroyed by it", "L2", "L∞ of 255")


def publish(study: BaselinesStudy, rows: Sequence[Row], folder: Path, command: str, versions: dict[str, str]) -> str:
    """Write ``results.csv``, ``report.html`` and ``table.tex``; return the table in Markdown."""
    write_csv(folder / "results.csv", rows)
    limits = study.limits
    lines = [(_name(study, row) + _paper(row), _cells(row)) for row in rows]
    tried = [row for row in rows if row["attack"] in study.attacks and row["attack"] != "signs" and row["n"]]
    verdict = "No digital attack was tried."
    if tried:
        most = max(tried, key=lambda row: row["left"])
        verdict = (
            f"{sum(row['success'] > 0.5 for row in tried)} of {len(tried)} digital attacks succeed on most images; "
            f"print and photograph leave at most {_percent(most, 'left')}, of {_name(study, most)}."
        )
    (none,) = (row for row in rows if row["attack"] == "none")
    facts = (
        f"Print and photograph alone change the class of {_percent(none, 'left')} of the images. Only images that "
        "the victim gets right without the attack count. 95 % intervals."
    )
    if study.patch is not None:
        (patch,) = (row for row in rows if row["attack"] == "patch")
        if patch["n"]:
            facts += f" The optimised patch keeps {_percent(patch, 'left')} of {_percent(patch, 'success')}."
    write_per_image(
        folder / "report.html",
        Page(
            title=f"Per-image baselines against {study.victim.name}",
            verdict=verdict,
            facts=facts,
            dots=[
                Dot(_name(study, row), row["left"], row["left_low"], row["left_high"], _role(row))
                for row in rows
                if row["n"]
            ],
            label="success afterwards",
            note="What is left of each attack when its image is printed and photographed. The models of print and "
            "camera are those that patches are trained through, with the same draws for every attack, and no new "
            "viewpoint: a real photograph is harder.",
            tables=[
                Table(
                    "The numbers",
                    "Destroyed: of the digital successes, the share that is classified correctly again (Kurakin et al. "
                    "2016). L2 and L∞ are the mean size of the change where it succeeded.",
                    list(COLUMNS),
                    lines,
                )
            ],
            setup=[
                ("Victim", study.victim.name),
                ("Data", f"{type(study.source).__name__}, {study.images} held-out images"),
                ("L∞ bound", f"{limits.eps:g}/255, in {limits.iterations} steps of {limits.step:g}/255"),
                ("Print, camera", ", ".join(type(one).__name__ for one in study.photograph.transforms) or "8 bits"),
                ("Draws", f"{study.draws} of each image, seed {study.seed}"),
            ],
            command=command,
            versions=versions,
        ),
    )
    text = [[name, *(cell.text for cell in cells)] for name, cells in lines]
    return publish_table(folder, COLUMNS, text, 1, verdict, facts)


def _name(study: BaselinesStudy, row: Row) -> str:
    """Of a row: the attack, and the goal where it has one."""
    goals = {"targeted": f", to {study.goal.target}", "least_likely": ", to the least likely class", "untargeted": ""}
    return NAMES[row["attack"]] + ("" if row["attack"] == "least_likely" else goals[row["goal"]])


def _paper(row: Row) -> str:
    known = BASELINES.get(row["attack"])
    return f" ({known.paper})" if known and known.paper else ""


def _role(row: Row) -> str:
    return {"patch": "patch", "random": "random", "none": "muted", "signs": "muted"}.get(row["attack"], "ink")


def _cells(row: Row) -> list[Cell]:
    if not row["n"]:
        return [Cell("–", "n = 0")] + [Cell("–")] * (len(COLUMNS) - 2)
    rates = [Cell(_percent(row, rate), f"n = {row[f'{rate}_n']}") for rate in RATES]
    return [*rates, Cell(number(row["l2"])), Cell(number(255 * row["linf"]))]


def _percent(row: Row, rate: str) -> str:
    if not row[f"{rate}_n"]:
        return "–"
    mean, low, high = (100 * row[rate + end] for end in ("", "_low", "_high"))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]"
