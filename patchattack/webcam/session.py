"""The loop before the camera: find the sheet, measure, record, show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError, VictimError
from patchattack.patch import Patch
from patchattack.printing import fiducials
from patchattack.printing.fiducials import Layout, Sighting
from patchattack.webcam import overlay, paper
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import Capture, Shot
from patchattack.webcam.counterfactual import Stencil, coverage, versions
from patchattack.webcam.digital import draw_patch
from patchattack.webcam.frames import to_array, to_tensor
from patchattack.webcam.overlay import Text
from patchattack.webcam.paper import White
from patchattack.webcam.pose import Lens, pose
from patchattack.webcam.records import CORNERS, Kept, Log, Record, Store
from patchattack.webcam.screen import Recorder, Screen

VERSIONS = ("as seen", "grey card", "inpainted")  # of a frame, as the victim gets them
_WAIT = 1 / 30  # seconds between two looks at the keys while the picture stands still


@dataclass(frozen=True)
class Setup:
    """What is measured, and how.

    Attributes:
        trials: the victims; the first is asked until the user chooses another.
        patch: of the run; on the sheet, and drawn by AR mode.
        sheets: that belong to the run: the first carries the patch, the others are controls.
        lens: of the camera.
        size: ``(h, w)`` of the frames that the victims get; None leaves them as they come.
        keep: shots at most that are stored, for the prediction and the report.
        record: a video from the start.
        independent: seconds; frames of one such stretch of time count as one in the intervals.

    Raises:
        InputError: a number that cannot be.
    """

    trials: Sequence[CameraVictim]
    patch: Patch
    sheets: Sequence[Layout]
    lens: Lens
    size: tuple[int, int] | None = None
    keep: int = 200
    record: bool = False
    independent: float = 0.5

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 16):
            raise InputError(f"size: expected [height, width] of at least 16 pixels, or null, got {list(self.size)}")
        if self.keep < 0:
            raise InputError(f"keep: expected 0 or more stored shots, got {self.keep}")
        if not self.independent > 0:
            raise InputError(f"independent: expected seconds above 0, got {self.independent}")


@dataclass
class Switches:
    """What the keys have set.

    Attributes:
        paused, drawing, quitting: as their keys say.
        recording: the pictures go to a video.
        version: of :data:`VERSIONS`, which is shown.
        victim: number of the trial.
        screenshot: is asked for.
    """

    recording: bool = False
    paused: bool = False
    drawing: bool = False
    quitting: bool = False
    screenshot: bool = False
    version: int = 0
    victim: int = 0

    def press(self, key: str) -> None:
        """Change what ``key`` stands for; other keys change nothing."""
        if key in ("q", "\x1b"):
            self.quitting = True
        elif key in ("p", " "):
            self.paused = not self.paused
        elif key == "r":
            self.recording = not self.recording
        elif key == "a":
            self.drawing = not self.drawing
        elif key == "s":
            self.screenshot = True
        elif key == "c":
            self.version = (self.version + 1) % len(VERSIONS)
        elif key == "v":
            self.victim += 1

    @property
    def keys(self) -> dict[str, bool]:
        """What each key does, and whether it is on."""
        return {
            "p pause": self.paused,
            "s screenshot": False,
            "r record": self.recording,
            "c counterfactual": self.version > 0,
            "v victim": False,
            "a draw the patch (AR)": self.drawing,
            "q quit": False,
        }


@dataclass
class Tally:
    """How it stands, for the window and for those who wait."""

    states: Counter[str] = field(default_factory=Counter)
    strangers: Counter[int] = field(default_factory=Counter)
    won: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Count a record."""
        self.states[record.state] += 1
        if record.state == "other":
            self.strangers[record.sheet] += 1
        if record.success == record.success:
            sums = self.won.setdefault((record.victim, record.kind), [0.0, 0.0, 0.0])
            for place, value in enumerate((1.0, record.success, record.grey_success)):
                sums[place] += value

    def line(self, victim: str, kind: str) -> str:
        """The success so far, in words."""
        count, patch, grey = self.won.get((victim, kind), [0.0, 0.0, 0.0])
        if not count:
            return "nothing measured yet"
        return f"won {patch / count:.0%} of {count:.0f} frames, grey card {grey / count:.0%}"


@dataclass(frozen=True)
class _Seen:
    """One sheet in all frames of a shot, at the victim's size; ``versions [3, T, 3, H, W]`` uint8."""

    record: Record
    versions: Tensor
    coverage: Tensor
    corners: np.ndarray
    whites: list[White]


@dataclass(frozen=True)
class Step:
    """One shot, measured.

    Attributes:
        record: what is written of it.
        draw: makes the live picture ``[h, w, 3]`` uint8 RGB, as the controls are then.
        seen: the sheet, where all of the patch is in sight.
    """

    record: Record
    draw: Callable[[], np.ndarray]
    seen: _Seen | None = None


class Session:
    """Measures until the capture ends or the user quits; memory does not grow with time.

    Args:
        setup: what is measured, and how.
        capture: of the frames.
        screen: shows the live picture.
        folder: gets ``frames.csv``, ``frames/``, screenshots and videos.

    Attributes:
        tally: how it stands.
        interrupted: Ctrl-C has ended it.
        failure: what else has ended it before the source did.
    """

    def __init__(self, setup: Setup, capture: Capture, screen: Screen, folder: Path) -> None:
        self.setup, self.capture, self.screen, self.folder = setup, capture, screen, folder
        self.switches = Switches(recording=setup.record)
        self.tally = Tally()
        self.interrupted = False
        self.failure: InputError | VictimError | None = None
        self.store = Store(folder / "frames", setup.keep)
        self.stencil = Stencil(setup.patch.mask)
        self._foreign = [
            fiducials.layout(setup.sheets[0].size_mm, number)
            for number in range(fiducials.SHEETS)
            if number not in {sheet.number for sheet in setup.sheets}
        ]
        self._before: tuple[int, Sighting | None] = (-1, None)  # number of the last frame that was searched
        self._last: Sighting | None = None
        self._recorder: Recorder | None = None
        self._recordings = self._screenshots = 0

    @property
    def trial(self) -> CameraVictim:
        """The one whose victim is asked now."""
        return self.setup.trials[self.switches.victim % len(self.setup.trials)]

    def run(self) -> list[Kept]:
        """Measure all shots; Ctrl-C ends it as quitting does, and a victim or a file that fails ends it too.

        Returns:
            The shots that were kept on disk.
        """
        log = Log(self.folder / "frames.csv")
        try:
            for shot in self.capture.shots():
                step = self.step(shot)
                log.write(step.record)
                self.tally.add(step.record)
                self._keep(shot, step)
                if self.screen.visible or self.switches.recording:
                    self._present(shot, step)
                if self.switches.quitting:
                    break
        except KeyboardInterrupt:
            self.interrupted = True
        except (InputError, VictimError) as error:
            self.failure = error
        finally:
            log.close()
            self._stop_recording()
            self.capture.close()
            self.screen.close()
        return self.store.kept

    def step(self, shot: Shot) -> Step:
        """Measure one shot."""
        sightings = self._search(shot)
        whites = [_white(image, one, self._sheet(one)) for image, one in zip(shot.images, sightings, strict=False)]
        if not sightings or None in whites:
            record = self._unmeasured_record(shot, sightings)
            return Step(record, partial(self._picture_of_nothing, shot, record))
        seen = self._look(shot, sightings, [one for one in whites if one is not None])
        verdicts = self.trial.judge(seen.versions, seen.coverage, torch.from_numpy(seen.corners)[None])
        record = seen.record
        record.patch, record.grey, record.inpainted = verdicts.values
        record.success, record.grey_success, _ = verdicts.success
        return Step(record, partial(self._picture, shot, seen, verdicts.outputs), seen)

    def _search(self, shot: Shot) -> list[Sighting]:
        """The sheet in each frame of the shot; nothing where it is not in all of them."""
        found: list[Sighting] = []
        first = shot.number - len(shot.images) + 1
        for number, image in enumerate(shot.images, first):
            known, sighting = self._before
            if number != known:
                sightings = fiducials.find(image, self.setup.sheets, self._last)
                if found:  # the same sheet as in the first frame, of several in sight
                    sightings = [one for one in sightings if one.number == found[0].number]
                sighting = sightings[0] if sightings else None
                self._before = number, sighting
            self._last = sighting
            if sighting is None or (found and sighting.number != found[0].number):
                return []
            found.append(sighting)
        return found

    def _sheet(self, sighting: Sighting) -> Layout:
        return next(one for one in self.setup.sheets if one.number == sighting.number)

    def _unmeasured_record(self, shot: Shot, sightings: list[Sighting]) -> Record:
        """The record of a shot that does not show a sheet of the run, or not all of its patch."""
        record = Record(shot.number, shot.time, self.trial.name, "lost")
        if sightings:
            return replace(record, state="cut", sheet=sightings[0].number)
        if self._last is not None:
            return record
        # A picture is mirrored from the first frame on, or never. Mirrored markers may read as another sheet's.
        if not self.tally.states["found"] and fiducials.find(cv2.flip(shot.images[-1], 1), self.setup.sheets):
            return replace(record, state="mirrored")
        strangers = fiducials.find(shot.images[-1], self._foreign)
        return replace(record, state="other", sheet=strangers[0].number) if strangers else record

    def _look(self, shot: Shot, sightings: list[Sighting], whites: list[White]) -> _Seen:
        """Pose, light, and the versions of a shot whose frames all show the whole patch."""
        sheet = self._sheet(sightings[0])
        newest, sighting = shot.images[-1], sightings[-1]
        here = pose(sighting, sheet, self.setup.lens, (newest.shape[0], newest.shape[1]))
        kind = "drawn" if self.switches.drawing else "patch" if sheet is self.setup.sheets[0] else "control"
        record = Record(
            frame=shot.number,
            time=shot.time,
            victim=self.trial.name,
            state="found",
            sheet=sheet.number,
            kind=kind,
            markers=sighting.markers,
            error=sighting.error,
            **dict(zip(CORNERS, sighting.corners.ravel().tolist(), strict=True)),
            size_px=here.side,
            distance_m=here.distance,
            yaw=here.yaw,
            pitch=here.pitch,
            roll=here.roll,
            tilt=here.tilt,
            light=float(whites[-1].at(sighting.corners.mean(axis=0)) @ paper.LUMINANCE),
            sharpness=paper.sharpness(newest, sighting, sheet),
        )
        images = [self._resize(image) for image in shot.images]
        factors = images[-1].shape[1] / newest.shape[1], images[-1].shape[0] / newest.shape[0]
        corners = np.stack([(one.corners + 0.5) * factors - 0.5 for one in sightings])
        whites = [one.scale(*factors) for one in whites]
        if kind == "drawn":
            images = draw_patch(images, corners, self.setup.patch)
        without = [self.stencil.replace(*one) for one in zip(images, corners, whites, strict=True)]
        return _Seen(record, versions(images, without), coverage(without), corners, whites)

    def _keep(self, shot: Shot, step: Step) -> None:
        """Offer a shot that shows the printed sheet to the store."""
        seen = step.seen
        if seen is not None and seen.record.kind != "drawn":
            images = [to_array(frame) for frame in seen.versions[0]]
            self.store.offer(seen.record, images, seen.corners, seen.whites, shot.images[-1])

    def _resize(self, image: np.ndarray) -> np.ndarray:
        """The frame as the victim gets it."""
        size = self.setup.size
        if size is None or image.shape[:2] == tuple(size):
            return image
        return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)

    def _picture(self, shot: Shot, seen: _Seen, outputs: Any) -> np.ndarray:
        """The live picture of a shot that shows the sheet."""
        record, version = seen.record, self.switches.version
        frames = [seen.versions[row].float() / 255 for row in (2, version)]
        rows = [outputs[row : row + 1] for row in (2, version)]  # the first sets the scale
        picture = self.trial.attack.pictures(rows, frames)[1]
        shown = shot.images[-1]
        if version > 0 or record.kind == "drawn":
            size = shown.shape[1], shown.shape[0]
            shown = cv2.resize(to_array(seen.versions[version, -1]), size, interpolation=cv2.INTER_NEAREST)
        state = "nothing to win" if record.success != record.success else "WON" if record.success > 0.5 else "not won"
        measured = zip(VERSIONS, (record.patch, record.grey, record.inpainted), strict=True)
        values = ", ".join(f"{name} {value:.3g}" for name, value in measured).replace("nan", "-")
        where = (
            f"sheet {record.sheet} ({record.kind}): {record.distance_m:.2f} m, tilt {record.tilt:.0f} deg, "
            f"{record.size_px:.0f} px, light {record.light:.2f}, sharpness {record.sharpness:.2f}"
        )
        lines = [self.tally.line(record.victim, record.kind), f"{_ascii(self.trial.metric.label)}: {values}", where]
        return self._compose(shown, record.corners, picture, Text(state, record.success > 0.5, lines))

    def _picture_of_nothing(self, shot: Shot, record: Record) -> np.ndarray:
        """The live picture without the sheet."""
        images = [self._resize(image) for image in shot.images]
        frames = to_tensor(images)[None]
        picture = self.trial.attack.pictures([self.trial.outputs(frames)], [frames[0].float() / 255])[0]
        wanted = ", ".join(str(sheet.number) for sheet in self.setup.sheets)
        state, reason = {
            "mirrored": ("mirrored", f"the picture is mirrored; give {self.capture.other_way}"),
            "other": ("wrong sheet", f"sheet {record.sheet} is not of this run"),
            "cut": ("cut off", "the patch is not all in the frame"),
        }.get(record.state, ("no sheet", "go nearer, give more light, keep the markers in the frame and flat"))
        lines = [self.tally.line(record.victim, "patch"), reason, f"looking for sheet {wanted}"]
        return self._compose(shot.images[-1], None, picture, Text(state, False, lines))

    def _compose(self, frame: np.ndarray, corners: np.ndarray | None, picture: Tensor, text: Text) -> np.ndarray:
        """With what is asked, what is shown, what runs, and the keys."""
        trials = self.setup.trials
        about = [
            f"victim {_ascii(self.trial.name)} ({self.switches.victim % len(trials) + 1} of {len(trials)})",
            f"shown {VERSIONS[self.switches.version]}",
            *(name for name in ("paused", "recording", "drawing") if getattr(self.switches, name)),
            f"{self.capture.dropped} frames dropped",
        ]
        legend, _ = self.trial.attack.legend()
        text = replace(text, lines=[*text.lines, ", ".join(about)], keys=self.switches.keys)
        return overlay.compose(frame, corners, picture, legend, text)

    def _present(self, shot: Shot, step: Step) -> None:
        """Show the picture and do what the keys say; while paused, they act on the same shot."""
        picture = step.draw()
        self._film(picture, shot.time)
        key = self._hear(picture)
        while self.switches.paused and not self.switches.quitting:
            if key:
                picture = self.step(shot).draw()
            time.sleep(_WAIT)
            key = self._hear(picture)

    def _hear(self, picture: np.ndarray) -> str:
        """Show the picture; the key that was pressed, after it has been obeyed."""
        key = self.screen.show(picture)
        self.switches.press(key)
        if self.switches.screenshot:
            self.switches.screenshot = False
            self._screenshots += 1
            path = self.folder / f"screenshot_{self._screenshots}.png"
            files.write(path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
        return key

    def _film(self, picture: np.ndarray, moment: float) -> None:
        if not self.switches.recording:
            self._stop_recording()
            return
        if self._recorder is None:
            self._recordings += 1
            self._recorder = Recorder(self.folder / f"recording_{self._recordings}.mp4", moment)
        self._recorder.write(picture, moment)

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None


def _white(image: np.ndarray, sighting: Sighting, sheet: Layout) -> White | None:
    """The paper's brightness; None where the frame shows none of it, or not all of the patch."""
    height, width = image.shape[:2]
    whole = ((sighting.corners >= -0.5) & (sighting.corners <= (width - 0.5, height - 0.5))).all()
    return paper.white(image, sighting, sheet) if whole else None


def _ascii(text: str) -> str:
    """What OpenCV can write of a text."""
    return text.replace("°", " deg").encode("ascii", "replace").decode()
