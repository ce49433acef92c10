"""The whole of it: measure until the end, predict, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchattack.errors import InputError, VictimError
from patchattack.webcam.capture import Capture
from patchattack.webcam.digital import Prediction, predict
from patchattack.webcam.screen import Screen
from patchattack.webcam.session import Session, Setup
from patchattack.webcam.summary import SessionOrigin, SessionResult, note, note_predicted, publish


def evaluate(
    setup: Setup,
    capture: Capture,
    screen: Screen,
    folder: Path,
    origin: SessionOrigin,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> SessionResult:
    """Measure until the source ends or the user quits, then predict and write the report.

    Ctrl-C ends what is being done: the measurement, or the prediction. The report is of what is there then, also where
    the victim fails or a file cannot be written; :func:`patchattack.webcam.summary.publish` makes it again at any time.

    Args:
        setup: what is measured, and how.
        capture: of the frames; closed here.
        screen: shows the live picture; closed here.
        folder: gets ``session.json``, ``frames.csv``, ``predicted.csv``, ``summary.json``, ``report.html``, and the
            frames kept.
        origin: for the report.
        progress: wraps the shots that are predicted.

    Raises:
        InputError: no frame came, or none showed a sheet of the run; what was recorded is there.
        InputError, VictimError: a file cannot be written or the victim fails; the report says so too.
    """
    note(folder, origin, setup, None, [])
    session = Session(setup, capture, screen, folder)
    kept = session.run()
    source = {name: getattr(capture, name) for name in ("frames", "dropped", "gaps")}
    failure, interrupted = session.failure, session.interrupted
    if not session.live.tally.states["found"]:
        raise failure or InputError(_nothing_found(session))
    printed = [one for one in kept if one.record.kind == "patch"]
    faults, predicted = [*capture.faults], dict[int, Prediction]()
    if failure is None:
        note(folder, origin, setup, source, [*faults, "the prediction was not finished"])
        try:
            for frame, prediction in predict(progress(printed), setup.trials, setup.patch, session.stencil):
                predicted[frame] = prediction
        except KeyboardInterrupt:
            interrupted = True
            faults.append(f"interrupted when {len(predicted)} of {len(printed)} frames were predicted")
        except (InputError, VictimError) as error:
            failure = error
    if failure is not None:
        faults.append(str(failure))
    note_predicted(folder, predicted)
    note(folder, origin, setup, source, faults)
    outcome = replace(publish(folder), interrupted=interrupted)
    if failure is not None:
        report = folder / "report.html"
        raise type(failure)(f"{failure} (the report is of what was measured before: {report})") from failure
    return outcome


def _nothing_found(session: Session) -> str:
    capture, tally = session.capture, session.live.tally
    wanted = ", ".join(str(sheet.number) for sheet in session.setup.sheets)
    why = f" ({'; '.join(capture.faults)})" if capture.faults else ""
    if mirrored := tally.states["mirrored"]:
        return (
            f"source: expected sheet {wanted}, got its mirror image in {mirrored} of {capture.frames} frames{why}; "
            f"turn the picture with {capture.other_way}, or switch mirroring off in the camera's settings"
        )
    if tally.strangers:
        number, times = tally.strangers.most_common(1)[0]
        return (
            f"source: expected sheet {wanted}, got sheet {number} in {times} of {capture.frames} frames{why}; "
            "print the sheet of this run, or name the run that the sheet was printed for with run=RUN"
        )
    return (
        f"source: expected sheet {wanted} in some frame, got none in {capture.frames} frames{why}; go nearer, give "
        f"more light, and keep the markers in the frame and flat (every frame is listed in {session.folder}/frames.csv)"
    )
