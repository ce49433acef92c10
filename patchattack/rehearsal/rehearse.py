"""The rehearsal: the run's sheet from the printer to the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchattack import files, pictures
from patchattack.errors import InputError
from patchattack.patch import MILLIMETRES_PER_INCH, Patch, random_texture
from patchattack.printing import calibration
from patchattack.printing.fiducials import Layout
from patchattack.printing.sheet import Sheet
from patchattack.rehearsal.film import Paper, film, photograph_chart, write_truth
from patchattack.rehearsal.poses import BARS, SMALLEST, STEEPEST, by_take, compare
from patchattack.rehearsal.street import DriveBy, Lab, Street
from patchattack.rehearsal.unknown import Unknown
from patchattack.rehearsal.wrap import wrapped
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import open_source
from patchattack.webcam.evaluator import evaluate
from patchattack.webcam.pass_bys import STANDARD, PassByRule
from patchattack.webcam.pose import Lens
from patchattack.webcam.records import read
from patchattack.webcam.screen import NoScreen
from patchattack.webcam.session import Setup
from patchattack.webcam.summary import SessionOrigin

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class RehearsalPlan:
    """What is rehearsed.

    Attributes:
        setup: of the evaluator; its first sheet is the patch's.
        printer: of the sheet, with the settings that the run's layout was made with.
        street: through which the camera drives.
        unknown: printer and camera.
        fps: frames a second of the videos.
        control: the camera's ways are also filmed with the second of the sheets, which carries a random patch.
        radius_mm: of the upright cylinder that the sheet is wrapped around; None for a flat sheet.

    Raises:
        InputError: no markers, a sheet that was laid out with other settings, or a number that cannot be.
    """

    setup: Setup
    printer: Sheet
    street: Street
    unknown: Unknown
    fps: float
    control: bool = False
    radius_mm: float | None = None

    def __post_init__(self) -> None:
        sheet = self.setup.sheets[0]
        if not self.printer.fiducials:
            raise InputError("print.fiducials: expected true, got false; without markers no camera finds the sheet")
        if self.printer.layout(sheet.size_mm, sheet.number).marker_mm != sheet.marker_mm:
            raise InputError(
                f"print={self.printer.page}: expected the page that the run's layout.json was made with, got another "
                "size of the markers; give print=PAGE as then, or anew: patchattack print run=RUN"
            )
        if self.control and len(self.setup.sheets) < 2:
            raise InputError("control: expected a run whose layout.json has a control sheet, got none; print it anew")
        if not 0 < self.fps <= 240:
            raise InputError(f"fps: expected frames a second above 0, up to 240, got {self.fps}")
        wrapped(sheet, self.radius_mm)


def make_plan(
    trial: CameraVictim,
    patch: Patch,
    sheets: Sequence[Layout],
    printer: Sheet,
    data: Mapping[str, Any],
    unknown: Unknown,
    seed: int,
    *,
    size: Sequence[int],
    fps: float,
    keep: int,
    independent: float,
    pass_by: PassByRule = STANDARD,
    control: bool = False,
    radius_mm: float | None = None,
) -> RehearsalPlan:
    """A plan in which the victim sees the world as it saw its data: frames, field of view and height of the camera.

    Args:
        trial: of the victim.
        patch: on the first of the sheets.
        sheets: of the run.
        printer: of the sheets.
        data: config of the run's scenes.
        unknown: printer and camera.
        seed: of the world and of the camera's way.
        size: ``(h, w)`` within which the videos are as large as the proportions of the victim's frames allow.
        fps: frames a second of the videos.
        keep, independent, pass_by: as of :class:`Setup`; the scale of the pass-bys is the street's.
        control, radius_mm: as of :class:`RehearsalPlan`.

    Raises:
        InputError: as of :class:`Plan`, :class:`Setup` and :func:`frame_size`.
    """
    field_of_view = data.get("field_of_view", 90.0)
    setup = Setup(
        trials=[trial],
        patch=patch,
        sheets=sheets,
        lens=Lens(field_of_view),
        size=data.get("size"),
        keep=keep,
        independent=independent,
    )
    street = Street(
        sheets[0],
        trial.attack.task,
        frame_size(size, setup.size),
        field_of_view,
        data.get("camera_height", [1.2, 2.0]),
        seed,
    )
    setup = replace(setup, pass_by=replace(pass_by, scale=street.model))
    return RehearsalPlan(setup, printer, street, unknown, fps, control, radius_mm)


def frame_size(most: Sequence[int], victim: Sequence[int] | None) -> tuple[int, int]:
    """The largest even ``(h, w)`` within ``most`` that has the proportions of the victim's frames.

    Raises:
        InputError: it would be too small, or ``most`` is no size.
    """
    if not isinstance(most, Sequence) or len(most) != 2:
        raise InputError(f"size: expected [height, width] in pixels, got {most}")
    height, width = most if victim is None else victim
    scale = min(most[0] / height, most[1] / width)
    size = round(height * scale / 2) * 2, round(width * scale / 2) * 2
    if min(size) < 120:
        raise InputError(f"size: expected frames at least 120 pixels high and wide, got {list(size)}")
    return size


def print_sheet(path: Path, printer: Sheet, sheet: Layout, patch: Patch, unknown: Unknown) -> Paper:
    """The run's sheet as the unknown printer prints it; what it is told to is written to ``path`` as PNG.

    That is what the PDF has between its cut marks, in pixels of ``print.dpi``.
    """
    printer.write_png(path, patch().detach(), patch.mask, patch.size_mm, sheet.number)
    pixels = pictures.read(path).permute(1, 2, 0).numpy()
    scale = printer.dpi / MILLIMETRES_PER_INCH
    left, top = sheet.bounds_mm[:2]
    matrix = np.array([(scale, 0, -left * scale - 0.5), (0, scale, -top * scale - 0.5), (0, 0, 1.0)])
    return Paper(unknown.print_image(pixels), matrix)


def rehearse(
    plan: RehearsalPlan, parts: dict[str, Lab | DriveBy], folder: Path, origin: SessionOrigin, progress: Progress = iter
) -> dict[str, Any]:
    """Film each part, give the video to the evaluator, and compare what it measures with the truth.

    Args:
        plan: what is rehearsed.
        parts: by name, each of which gets a folder.
        folder: gets ``sheet.png``, ``control.png``, ``rehearsal.json``, and a folder for each part with ``video.mp4``,
            ``truth.csv`` and what the evaluator writes.
        origin: for the reports; their titles begin with it.
        progress: wraps what takes time.

    Returns:
        What ``rehearsal.json`` holds: ``printer`` (the seed says all of it), ``model``, as of :class:`Street`, ``size``
        of the videos, and for each of the ``parts`` its ``verdict``, ``counts`` of frames, ``poses`` and ``takes``, as
        of :func:`compare` and :func:`by_take` (those with the control last), and ``pass_bys`` by condition.

    Raises:
        InputError: a file cannot be written, or the sheet is found in no frame.
        KeyboardInterrupt: Ctrl-C, also while a video is measured.
    """
    patch, sheets = plan.setup.patch, plan.setup.sheets
    papers = [print_sheet(folder / "sheet.png", plan.printer, sheets[0], patch, plan.unknown)]
    if plan.control:
        height, width = patch.mask.shape[1:]
        other = Patch(random_texture(height, width, 0), patch.mask.cpu(), patch.size_mm)
        papers.append(print_sheet(folder / "control.png", plan.printer, sheets[1], other, plan.unknown))
    wrap = wrapped(sheets[0], plan.radius_mm)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        video = own / "video.mp4"
        truths = film(video, plan.street, part.takes(plan.street), papers, plan.unknown, plan.fps, wrap, progress)
        write_truth(own / "truth.csv", truths)
        frames = plan.setup.trials[0].frames
        capture = open_source(str(video), frames)
        facts = [*origin.setup, ("Video", f"{video}, made by the rehearsal"), ("World", world(plan.street))]
        about = replace(origin, title=f"{origin.title}: {name.replace('_', '-')}", setup=facts)
        outcome = evaluate(plan.setup, capture, NoScreen(), own, about, progress)
        if outcome.interrupted:  # Ctrl-C ends a measurement, as it should before a camera
            raise KeyboardInterrupt
        records = read(own / "frames.csv")
        poses, takes = compare(records, truths, frames), by_take(records, truths)
        found[name] = {"verdict": outcome.verdict, "counts": outcome.counts, "poses": poses, "takes": takes}
        found[name]["pass_bys"] = outcome.pass_bys
    printer = {key: getattr(plan.unknown, key) for key in ("seed", "gain", "vignetting", "blur", "noise")}
    result = {"printer": printer, "model": plan.street.model, "size": list(plan.street.frame), "parts": found}
    files.write_json(folder / "rehearsal.json", result)
    return result


def calibrate(folder: Path, unknown: Unknown) -> Path:
    """Photograph the chart through the unknown printer and camera, and fit it.

    Returns:
        The calibration's file; the photograph ``chart.png`` and a picture of the fit, ``calibration.png``, are beside
        it.

    Raises:
        InputError: the photograph is refused, or a file cannot be written.
    """
    photo, path = folder / "chart.png", folder / "calibration.json"
    photograph_chart(photo, unknown)
    fit = calibration.fit([photo])
    calibration.write_picture(path.with_suffix(".png"), fit)
    if fit.verdict != "good":
        raise InputError(f"printer={unknown.seed}: {fit.verdict}; expected a chart that can be read, try another one")
    fit.calibration.save(path)
    return path


def world(street: Street) -> str:
    """What surrounds the sheet, in words."""
    height, width = street.frame
    return f"procedural, a model of 1 : {street.model:.1f} around the {street.subject} with the sheet, {width}×{height}"


def lines(found: dict[str, Any]) -> list[str]:
    """The table of a rehearsal's poses, for people."""
    units = dict(zip(BARS, ("px", "%", "°"), strict=True))
    head = [f"{name.split('_')[0]} ({unit})" for name, unit in units.items()]
    table = [f"{'largest errors, 95 % below':28}" + "".join(f"{title:>22}" for title in head) + f"{'within all':>14}"]
    for name, part in found["parts"].items():
        poses = part["poses"]
        row = f"{name.replace('_', '-'):10}{poses['found']} of {poses['shown']} frames"
        cells = [
            f"{poses[bar]['largest']:.2f}, {poses[bar]['p95']:.2f} (≤ {BARS[bar]:g})" if bar in poses else "-"
            for bar in BARS
        ]
        table.append(
            f"{row:28}" + "".join(f"{cell:>22}" for cell in cells) + f"{poses['within']:>8} of {poses['found']}"
        )
    return [
        *table,
        f"Of frames in which the patch spans {SMALLEST} px or more and is turned away by {STEEPEST}° or less.",
    ]
