"""What one-pixel attacks have come to: rates, those of random pixels, a page and a picture of each image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchattack import files, statistics
from patchattack.errors import InputError
from patchattack.evaluation import Verdict
from patchattack.reporting.single_image import Cell, Dot, Page, Picture, Table, write_per_image
from patchattack.scene import Source
from patchattack.statistics import Outcome
from patchattack.studies.single_image.before_after import Side, before_after
from patchattack.studies.single_image.one_pixel import OnePixel, Result, pixels_of, with_pixels
from patchattack.victims.victim import Victim

CONDITIONS = {
    "single": "one random draw",
    "random": "random pixels, as many queries",
    "evolution": "differential evolution",
}
PAPER = (
    "For context, on other networks and images: of CIFAR-10's test images (32×32 pixels), Su et al. (2019) could bring "
    "68 % to at least one other class with one pixel, at a mean confidence of 74 %; of ImageNet's (227×227), 16 % at "
    "23 %. A random pixel is no part of those figures."
)
SHOWN = 12  # images that the report shows, of those that were won and of those that were not


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Rows of condition, metric, region, mean, low, high (95 %) and n (images that count).

    ``success`` is a rate with Wilson's interval; ``confidence`` the probability of the new class where the image was
    won; ``queries`` and ``queries_to_win`` are means over the images attacked, and over those won; ``excess`` is the
    paired difference of the success from that of random pixels with as many queries, whose interval is NaN where all
    images agree.
    """
    counted = [result for result in results if result.counted]
    won = {
        "single": np.array([result.single_won for result in counted], dtype=float),
        "random": np.array([result.random_won for result in counted], dtype=float),
        "evolution": np.array([result.won for result in counted], dtype=float),
    }
    sure = {
        "random": [result.random_confidence for result in counted if result.random_won],
        "evolution": [result.confidence for result in counted if result.won],
    }
    columns = {
        **{(condition, "success"): values for condition, values in won.items()},
        ("evolution", "excess"): won["evolution"] - won["random"],
        **{(condition, "confidence"): np.array(values, dtype=float) for condition, values in sure.items()},
        ("evolution", "queries"): np.array([result.queries for result in counted], dtype=float),
        ("evolution", "queries_to_win"): np.array(
            [result.queries_to_win for result in counted if result.queries_to_win is not None], dtype=float
        ),
    }
    rows = []
    for (condition, metric), values in columns.items():
        mean, low, high = statistics.interval(values, metric == "success")
        if metric == "excess" and len(set(values.tolist())) == 1:
            low = high = float("nan")  # resampling what is all alike tells nothing of what other images would do
        row = {"condition": condition, "metric": metric, "region": "all", "mean": mean, "low": low, "high": high}
        rows.append(row | {"n": len(values)})
    return rows


def publish(
    attack: OnePixel,
    victim: Victim,
    source: Source,
    results: Sequence[Result],
    folder: Path,
    command: str,
    versions: dict[str, str],
) -> Verdict:
    """Write ``results.json``, ``report.html`` and a picture of each image attacked; return the verdict."""
    rows = summarise(results)
    files.write_json(folder / "results.json", rows)
    pictures = {result.number: _picture(result, source) for result in results if result.counted}
    for place, picture in pictures.items():
        files.write(folder / "pictures" / f"{place:06}.png", _png(picture))
    found = {(row["condition"], row["metric"]): row for row in rows}
    won, random, excess = found["evolution", "success"], found["random", "success"], found["evolution", "excess"]
    count = "One pixel" if attack.pixels == 1 else f"{attack.pixels} pixels"
    goal = {
        "untargeted": "into another class",
        "targeted": f"into the class {attack.target}",
        "least_likely": "into the least likely class",
    }[attack.goal]
    sentence = (
        f"{count} of their own {'takes' if attack.pixels == 1 else 'take'} {_percent(won)} of {won['n']} images "
        f"{goal}; as many random tries take {_percent(random)}."
    )
    if not won["n"]:
        sentence = "There was no image to attack: the victim gets none right that is not of the target class already."
    spent, to_win = found["evolution", "queries"], found["evolution", "queries_to_win"]
    wins = f", {to_win['mean']:,.0f} to the first win where there was one" if to_win["n"] else ""
    more = (
        f"The excess over random pixels is {_percent(excess)} of the images. " if math.isfinite(excess["low"]) else ""
    )
    facts = (
        f"{more}The search took {spent['mean']:,.0f} "
        f"queries an image{wins}. Only images that the victim gets right without the attack count. 95 % intervals."
    )

    def table() -> Table:
        lines = []
        for condition, name in CONDITIONS.items():
            success, sure = found[condition, "success"], found.get((condition, "confidence"))
            queries = "1" if condition == "single" else f"{spent['mean']:,.0f}"
            confidence = Cell("–") if sure is None else Cell(_percent(sure), f"n = {sure['n']}")
            lines.append((name, [Cell(_percent(success), f"n = {success['n']}"), confidence, Cell(queries)]))
        return Table("The numbers", "", ["Pixels", "images won", "confidence there", "queries an image"], lines)

    chosen = [[r for r in results if r.counted and r.won is hit][:SHOWN] for hit in (True, False)]
    names = ("Images that were won", "Images that were not won: the best try")
    write_per_image(
        folder / "report.html",
        Page(
            title=f"{count} of an image against {victim.name}",
            verdict=sentence,
            facts=facts,
            dots=[
                Dot(name, *_interval(found[condition, "success"]), role)
                for (condition, name), role in zip(CONDITIONS.items(), ("muted", "random", "patch"), strict=True)
            ],
            label="fraction of images won",
            note=PAPER,
            tables=[table()],
            pictures=[
                (name, [Picture(pictures[r.number], f"Image {r.number}: {r.pixels}") for r in part])
                for name, part in zip(names, chosen, strict=True)
            ],
            setup=[
                ("Victim", victim.name),
                ("Data", f"{type(source).__name__}, {len(results)} images, {won['n']} of them attacked"),
                ("Goal", attack.goal if attack.target is None else f"{attack.goal}, {attack.target}"),
                ("Search", f"{attack.children} children, {attack.generations} generations at most"),
                ("Ends", "as soon as it wins" if attack.stop == "won" else f"when it wins with {attack.enough():.0%}"),
            ],
            command=command,
            versions=versions,
        ),
    )
    factor = won["mean"] / random["mean"] if random["mean"] else math.nan
    outcome = Outcome.WORKS if excess["low"] > 0 else Outcome.FAILS
    return Verdict(outcome, sentence, facts, factor)


def _interval(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["mean"], row["low"], row["high"]


def _percent(row: dict[str, Any]) -> str:
    if row["n"] == 0:
        return "–"
    mean, low, high = (100 * value for value in _interval(row))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]".replace("-", "−")


def _png(picture: Tensor) -> bytes:
    """``[3, h, w]`` in [0, 1] as PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def _picture(result: Result, source: Source) -> Tensor:
    """Before and after, from a row and its image alone: nothing is asked."""
    frames = source[result.number].to("cpu").frames
    pixels = pixels_of(result.pixels)
    if (pixels[:, :2] >= torch.tensor(frames.shape[-2:]).flip(0)).any():
        raise InputError(f"images.csv: expected pixels of image {result.number}, got {result.pixels}; remove its row")
    places = [(x, y) for x, y, *_ in pixels.tolist()]
    return before_after(
        Side(frames[0, 0], f"{result.clean} {result.clean_confidence:.0%}", places),
        Side(with_pixels(frames, pixels[None])[0, 0], f"{result.prediction} {result.confidence:.0%}", places),
    )
