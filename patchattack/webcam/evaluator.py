"""The whole of it: measure until the end, predict, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchattack.errors import InputError
from patchattack.webcam.capture import Capture
from patchattack.webcam.digital import predict
from patchattack.webcam.screen import Screen
from patchattack.webcam.session import Session, Setup
from patchattack.webcam.summary import Origin, publish


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        verdict: one sentence.
        counts: of frames, by what became of them.
        ended: why the source failed midway, or None.
    """

    verdict: str
    counts: dict[str, int]
    ended: str | None


def evaluate(
    setup: Setup,
    capture: Capture,
    screen: Screen,
    folder: Path,
    origin: Origin,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Outcome:
    """Measure until the source ends or the user quits, then predict and write the report.

    Args:
        setup: what is measured, and how.
        capture: of the frames; closed here.
        screen: shows the live picture; closed here.
        folder: gets ``frames.csv``, ``predicted.csv``, ``summary.json``, ``report.html``, and the frames kept.
        origin: for the report.
        progress: wraps the shots that are predicted.

    Raises:
        InputError: no frame came, or none showed a sheet of the run; what was recorded is there.
    """
    session = Session(setup, capture, screen, folder)
    kept = session.run()
    tally = session.tally
    nothing = tally.states["found"] - sum(round(sums[0]) for sums in tally.won.values())
    counts = {
        "frames": capture.frames,
        "with the sheet": tally.states["found"],
        "without it": tally.states["lost"],
        "with a patch that the frame cuts off": tally.states["cut"],
        "with a sheet of another run": tally.states["other"],
        "of those with the sheet, nothing to win": nothing,
        "dropped, because a newer one was there or they were damaged": capture.dropped,
        "gaps in the source": capture.gaps,
    }
    if not tally.states["found"]:
        raise InputError(_nothing_found(setup, capture, tally.strangers.most_common(1), folder))
    printed = [one for one in kept if one.record.kind == "patch"]
    predicted = predict(progress(printed), setup.trials, setup.patch, session.stencil)
    trial = setup.trials[0]
    label = trial.metric.label
    verdict = publish(folder, predicted, printed, counts, trial.rule, label, setup.independent, origin)
    return Outcome(verdict, counts, capture.ended)


def _nothing_found(setup: Setup, capture: Capture, strangers: list[tuple[int, int]], folder: Path) -> str:
    wanted = ", ".join(str(sheet.number) for sheet in setup.sheets)
    why = f" ({capture.ended})" if capture.ended else ""
    if strangers:
        number, times = strangers[0]
        return (
            f"source: expected sheet {wanted}, got sheet {number} in {times} of {capture.frames} frames{why}; "
            "print the sheet of this run, or name the run that the sheet was printed for with run=RUN"
        )
    return (
        f"source: expected sheet {wanted} in some frame, got none in {capture.frames} frames{why}; go nearer, give "
        f"more light, and keep the markers in the frame and flat (every frame is listed in {folder}/frames.csv)"
    )
