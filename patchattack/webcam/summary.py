"""What came out: success against distance, angle, light and sharpness, compared with the prediction."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchattack import files
from patchattack.errors import InputError, one_line
from patchattack.job import spread
from patchattack.reporting.webcam import Curve, Field, Photo, Section, write_field
from patchattack.statistics import FEWEST, Outcome, difference, too_few, wilson
from patchattack.webcam import pass_bys
from patchattack.webcam.digital import Prediction
from patchattack.webcam.pass_bys import PassByRule
from patchattack.webcam.records import check_shares, load_frame, photo_of, read
from patchattack.webcam.session import Setup

# Columns of the records against which success is shown, in words.
AXES = {
    "distance_m": "distance (m)",
    "tilt": "angle between the sheet's normal and the line of sight (°)",
    "size_px": "size of the patch in the frame (px)",
    "light": "light: luminance of the white paper",
    "sharpness": "sharpness (inverse of the blur's width)",
}
BINS = 6  # of an axis, at most
IN_BIN = 4  # stretches of time at least
PHOTOS = 6  # frames shown that worked, and that did not


@dataclass(frozen=True)
class SessionOrigin:
    """Where the measurement comes from.

    Attributes:
        title: names it.
        setup: names and values for the report.
        command: repeats it.
        versions: package to version.
    """

    title: str
    setup: list[tuple[str, str]]
    command: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Series:
    """One condition, shot by shot.

    Attributes:
        success: ``[n]`` in [0, 1], NaN where nothing was measured.
        stretch: ``[n]`` which stretch of time a shot belongs to.
        values: ``[n]`` of the attack's primary metric.
    """

    success: np.ndarray
    stretch: np.ndarray
    values: np.ndarray

    def within(self, rows: np.ndarray) -> np.ndarray:
        """``[m]`` mean success of each stretch that has any, over the shots at ``rows [n]`` bool."""
        return by_stretch(self.success[rows], self.stretch[rows])


def by_stretch(values: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """``[m]`` mean of each stretch's known values: neighbouring frames are alike and must not count as many."""
    known = ~np.isnan(values)
    _, place = np.unique(stretch[known], return_inverse=True)
    return np.bincount(place, values[known]) / np.maximum(np.bincount(place), 1)


def summarise(
    records: Mapping[str, np.ndarray], predicted: Mapping[int, Prediction], independent: float
) -> dict[str, dict[str, Any]]:
    """All numbers, by victim.

    Args:
        records: columns of ``frames.csv``.
        predicted: by frame number.
        independent: seconds; frames of one such stretch of time count as one in the intervals.

    Returns:
        For each victim: ``rows`` (condition, mean, low, high of the success, n stretches, frames, and value,
        the mean of the primary metric), ``curves`` by axis and condition (x, mean, low, high, n), ``gap``
        (predicted minus measured success on the same frames: mean, low, high), ``destroyed`` (fraction of
        predicted successes that failed on camera, Kurakin et al. 2016: mean, low, high, n) and ``excess``
        (success of the patch beyond that of the grey card in the same frames: mean, low, high).
    """
    return {victim: _of_victim(part, predicted, independent) for victim, part in _by_victim(records).items()}


def _by_victim(records: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The frames with a sheet of each victim."""
    found = {}
    for victim in dict.fromkeys(records["victim"][records["state"] == "found"].tolist()):
        rows = (records["victim"] == victim) & (records["state"] == "found")
        found[victim] = {name: column[rows] for name, column in records.items()}
    return found


def _of_victim(part: Mapping[str, np.ndarray], predicted: Mapping[int, Prediction], seconds: float) -> dict[str, Any]:
    stretch = np.floor(part["time"] / seconds)
    unknown = Prediction(np.nan, np.nan)
    guesses = [predicted.get(int(frame), unknown) for frame in part["frame"]]
    kinds = {kind: np.where(part["kind"] == kind, part["success"], np.nan) for kind in ("patch", "control", "drawn")}
    on_paper = part["kind"] == "patch"
    series = {
        "patch": Series(kinds["patch"], stretch, part["patch"]),
        "grey": Series(np.where(on_paper, part["grey_success"], np.nan), stretch, part["grey"]),
        "control": Series(kinds["control"], stretch, part["patch"]),
        "drawn": Series(kinds["drawn"], stretch, part["patch"]),
        "predicted": Series(
            np.array([one.success for one in guesses]), stretch, np.array([one.value for one in guesses])
        ),
    }
    series = {name: one for name, one in series.items() if not np.isnan(one.success).all()}
    results: dict[str, Any] = {
        "rows": [_row(name, one) for name, one in series.items()],
        "curves": {axis: _curves(part[axis], series) for axis in AXES},
    }
    if "patch" in series:
        results["excess"] = _difference(series["patch"], series["grey"])
    if "predicted" in series:
        results["gap"] = _difference(series["predicted"], series["patch"])
        promised = series["predicted"].success >= 0.5
        lost = by_stretch(1 - series["patch"].success[promised], stretch[promised])
        results["destroyed"] = _interval(wilson(lost)) | {"n": int(promised.sum())}
    return results


def _row(condition: str, series: Series) -> dict[str, Any]:
    known = ~np.isnan(series.success)
    stretches = series.within(known)
    counts = {"n": len(stretches), "frames": int(known.sum()), "value": float(np.nanmean(series.values[known]))}
    return {"condition": condition} | _interval(wilson(stretches)) | counts


def _difference(one: Series, other: Series) -> dict[str, float]:
    """Mean and interval of the paired difference of two successes, stretch by stretch."""
    return _interval(difference(by_stretch(one.success - other.success, one.stretch), rate=True))


def _interval(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), values, strict=True))


def _curves(x: np.ndarray, series: Mapping[str, Series]) -> dict[str, list[dict[str, float]]]:
    """Success in bins of ``x [n]`` with about as many stretches each, the same for all conditions."""
    some = next(iter(series.values()), None)
    known = np.isfinite(x)
    if some is None or not known.any():
        return {}
    count = int(np.clip(len(np.unique(some.stretch[known])) // IN_BIN, 1, BINS))
    edges = np.unique(np.quantile(x[known], np.linspace(0, 1, count + 1)))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    curves: dict[str, list[dict[str, float]]] = {}
    for name, one in series.items():
        for number in range(max(len(edges) - 1, 1)):
            rows = known & (place == number) & ~np.isnan(one.success)
            if rows.any():
                point = {"x": float(x[rows].mean()), "n": len(one.within(rows))}
                curves.setdefault(name, []).append(point | _interval(wilson(one.within(rows))))
    return curves


def percent(share: float, sign: str = "") -> str:
    """In whole percent; with ``sign="+"`` always signed."""
    return f"{100 * share:{sign}.0f} %"


def verdict(found: Mapping[str, Any]) -> tuple[Outcome, str]:
    """Whether the printed patch does more than a grey card, and the sentence that says so."""
    rows = {row["condition"]: row for row in found["rows"]}
    if "patch" not in rows:
        if "drawn" in rows:
            row = rows["drawn"]
            sentence = f"A rehearsal: the patch that was drawn on the sheet won {percent(row['mean'])} of the frames."
            return Outcome.INCONCLUSIVE, sentence
        return Outcome.INCONCLUSIVE, "Nothing was measured of the printed patch."
    patch, grey = rows["patch"], rows["grey"]
    share = f"{percent(patch['mean'])} of the frames, a grey card in its place {percent(grey['mean'])}"
    if patch["n"] < FEWEST:
        return Outcome.INCONCLUSIVE, too_few(patch["n"], "stretches of time")
    if found["excess"]["low"] > 0:
        return Outcome.WORKS, f"It works on camera: the printed patch won {share}."
    return Outcome.FAILS, f"It does not work on camera: the printed patch won {share}."


@dataclass(frozen=True)
class SessionResult:
    """How it ended.

    Attributes:
        verdict: one sentence, on the victim that was asked most.
        counts: of frames, by what became of them.
        faults: why it is not all that was to be measured.
        pass_bys: by condition, as of :func:`patchattack.webcam.pass_bys.summarise`, for the same victim.
        interrupted: Ctrl-C has ended it.
    """

    verdict: str
    counts: dict[str, int]
    faults: list[str]
    pass_bys: list[dict[str, Any]]
    interrupted: bool = False


def note(
    folder: Path, origin: SessionOrigin, setup: Setup, source: Mapping[str, int] | None, faults: Sequence[str]
) -> None:
    """Write ``session.json``: what a report needs to know besides what was measured.

    Args:
        folder: of the session.
        origin: of the measurement.
        setup: of the session.
        source: how many ``frames`` came from it, how many were ``dropped``, and the ``gaps`` in it; None while they
            come.
        faults: as of :class:`SessionResult`.
    """
    trial = setup.trials[0]
    facts = {"rule": trial.rule, "label": trial.metric.label, "independent_s": float(setup.independent)}
    facts["pass_by"] = asdict(setup.pass_by) | {"latch": list(setup.pass_by.latch)}
    known = {**asdict(origin), **facts, "source": source, "faults": [*faults]}
    files.write_json(folder / "session.json", known)


def note_predicted(folder: Path, predicted: Mapping[int, Prediction]) -> None:
    """Write ``predicted.csv``."""
    lines = [f"{frame},{one.value:.6g},{one.success:.6g}" for frame, one in sorted(predicted.items())]
    files.write(folder / "predicted.csv", "\n".join(["frame,value,success", *lines]) + "\n")


def publish(folder: Path, changes: Mapping[str, Any] | None = None) -> SessionResult:
    """Write ``summary.json``, ``pass_bys.csv`` and ``report.html`` of what a session's folder has.

    It has at least ``frames.csv``; ``session.json``, ``predicted.csv`` and the photographs in ``frames/`` are used
    where they are.

    Args:
        folder: of the session.
        changes: what is asked of each pass-by, where it is something else than in the session.

    Raises:
        InputError: there is no such table, a file is none of a session's, or one cannot be written.
    """
    records, about, predicted = (
        read(folder / "frames.csv"),
        _read_notes(folder),
        _read_predicted(folder / "predicted.csv"),
    )
    rule = replace(about["pass_by"], **(changes or {}))
    found = summarise(records, predicted, about["independent_s"])
    passed = {victim: pass_bys.pass_bys(part, rule) for victim, part in _by_victim(records).items()}
    for victim, one in found.items():
        one["pass_bys"] = pass_bys.summarise(passed[victim])
    _write_pass_bys(folder / "pass_bys.csv", passed)
    counts, faults = _counts(records, about["source"]), about["faults"]
    if about["source"] is None:
        faults = [*faults, "it was ended before all was written down"]
    summary = {"counts": counts, "faults": faults, "rule": about["rule"], "independent_s": about["independent_s"]}
    files.write_json(folder / "summary.json", {**summary, "pass_by": asdict(rule), "victims": found})
    main: Mapping[str, Any] = max(
        found.values(), key=lambda one: sum(row["frames"] for row in one["rows"]), default={"rows": [], "pass_bys": []}
    )
    outcome, sentence = verdict(main)
    field = Field(
        title=about["title"],
        verdict=sentence,
        facts=_facts(main),
        faults=faults,
        outcome=outcome,
        rule=f"{about['rule'][:1].upper()}{about['rule'][1:]}.",
        label=about["label"],
        independent=about["independent_s"],
        pass_bys=pass_bys.DEFINITION,
        columns={pass_bys.NAMES[name]: (name, meaning) for name, meaning in rule.meanings().items()},
        counts=list(counts.items()),
        sections=[_section(name, one) for name, one in found.items()],
        won=_photos(folder / "frames", records, predicted, won=True),
        lost=_photos(folder / "frames", records, predicted, won=False),
        setup=about["setup"],
        command=about["command"],
        versions=about["versions"],
    )
    write_field(folder / "report.html", field)
    return SessionResult(sentence, counts, faults, main["pass_bys"])


def _write_pass_bys(path: Path, passed: Mapping[str, list[dict[str, Any]]]) -> None:
    """A line for each pass-by of each victim and condition."""
    stream = io.StringIO()
    rows = [{"victim": victim} | row for victim, found in passed.items() for row in found]
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["victim"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    files.write(path, stream.getvalue())


def _read_notes(folder: Path) -> dict[str, Any]:
    """What :func:`note` wrote; what can be said without it, where it is missing."""
    path = folder / "session.json"
    unknown: dict[str, Any] = {
        "title": "A printed patch before the camera",
        "setup": [("Folder", str(folder))],
        "command": "unknown",
        "versions": {},
        "rule": "the rule was not written down",
        "label": "primary metric",
        "independent_s": 0.5,
        "pass_by": {},
        "source": None,
        "faults": [],
    }
    if not path.exists():
        return unknown | {"pass_by": pass_bys.STANDARD}
    try:
        known = unknown | files.read_json(path)
        for name, value in unknown.items():
            if value is not None and not isinstance(known[name], type(value)):
                raise TypeError(f"another {name}")
        files.number(known["independent_s"], 1e-6)
        known["pass_by"] = PassByRule(**known["pass_by"])
        if not all(isinstance(line, list | tuple) and len(line) == 2 for line in known["setup"]):
            raise TypeError("another setup")
        if known["source"] is not None:
            known["source"] = {name: files.integer(known["source"][name]) for name in ("frames", "dropped", "gaps")}
    except (OSError, ValueError, TypeError, KeyError, InputError) as error:
        raise InputError(f"{path}: expected what the evaluator wrote, got {one_line(error)}; remove it") from error
    return known


def _read_predicted(path: Path) -> dict[int, Prediction]:
    """What :func:`note_predicted` wrote; nothing where it is missing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        rows = [[float(cell) for cell in line.split(",")] for line in lines]
        predicted = {int(frame): Prediction(value, success) for frame, value, success in rows}
        check_shares(np.array([one.success for one in predicted.values()]))
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: expected what the evaluator wrote, got {one_line(error)}; remove it") from error
    return predicted


def _counts(records: Mapping[str, np.ndarray], source: Mapping[str, int] | None) -> dict[str, int]:
    """Frames by what became of them; of the source, where that is known."""
    states = Counter(records["state"].tolist())
    measured = {
        "with the sheet": states["found"],
        "without it": states["lost"],
        "with a patch that the frame cuts off": states["cut"],
        "with a sheet of another run": states["other"],
        "with a mirrored sheet": states["mirrored"],
        "of those with the sheet, nothing to win": int(np.isnan(records["success"][records["state"] == "found"]).sum()),
    }
    if source is None:
        return {"frames": len(records["frame"]), **measured}
    return {
        "frames": source["frames"],
        **measured,
        "dropped, because a newer one was there or they were damaged": source["dropped"],
        "gaps in the source": source["gaps"],
    }


def _facts(found: Mapping[str, Any]) -> str:
    """The gap to the prediction, in words."""
    if "gap" not in found:
        return "There is no prediction to compare with."
    gap, destroyed = found["gap"], found["destroyed"]
    (promised,) = (row["mean"] for row in found["rows"] if row["condition"] == "predicted")
    facts = (
        f"The digital patch, rendered at the same places in the same frames, wins {percent(promised)} of them: a gap "
        f"of {percent(gap['mean'], '+')} [{percent(gap['low'], '+')}, {percent(gap['high'], '+')}] between screen and "
        "paper"
    )
    if not destroyed["n"]:
        return f"{facts}; it promised no success that a camera could have destroyed."
    mean, low, high = (percent(destroyed[key]) for key in ("mean", "low", "high"))
    return f"{facts}; of the successes that it promised, {mean} [{low}, {high}] failed on camera."


def _section(victim: str, found: Mapping[str, Any]) -> Section:
    curves = [
        Curve(AXES[axis], lines)
        for axis, lines in found["curves"].items()
        if any(len(points) > 1 for points in lines.values())
    ]
    return Section(victim, found["rows"], curves, found["pass_bys"], found.get("gap"), found.get("destroyed"))


def _photos(
    folder: Path, records: Mapping[str, np.ndarray], predicted: Mapping[int, Prediction], won: bool
) -> list[Photo]:
    """Some of the printed patch's frames whose photograph is kept, from near to far."""
    success = records["success"] > 0.5 if won else records["success"] <= 0.5
    rows = np.flatnonzero((records["state"] == "found") & (records["kind"] == "patch") & success)
    rows = rows[np.argsort(records["distance_m"][rows], kind="stable")]
    chosen = [row for row in rows.tolist() if photo_of(folder, int(records["frame"][row])).is_file()]
    photos = []
    for row in spread(chosen, PHOTOS):
        frame = int(records["frame"][row])
        distance, tilt, size = (records[name][row] for name in ("distance_m", "tilt", "size_px"))
        caption = f"frame {frame}: {distance:.2f} m, {tilt:.0f}°, {size:.0f} px"
        guess = predicted.get(frame)
        if guess is not None and guess.success == guess.success:
            caption += ", predicted " + ("won" if guess.success > 0.5 else "not won")
        image = torch.from_numpy(load_frame(photo_of(folder, frame))).permute(2, 0, 1).float() / 255
        photos.append(Photo(image, caption))
    return photos
