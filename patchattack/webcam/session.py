"""The loop before the camera: find the sheet, measure, record, show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from patchattack.errors import InputError, VictimError
from patchattack.patch import Patch
from patchattack.printing import fiducials
from patchattack.printing.fiducials import Layout, Sighting
from patchattack.webcam import paper
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import Capture, Shot
from patchattack.webcam.counterfactual import Stencil, coverage, versions
from patchattack.webcam.digital import draw_patch
from patchattack.webcam.frames import resize, to_array
from patchattack.webcam.live import LiveView, Seen
from patchattack.webcam.paper import White
from patchattack.webcam.pass_bys import STANDARD, PassByRule
from patchattack.webcam.pose import Lens, pose
from patchattack.webcam.records import CORNERS, Kept, Log, Record, Store
from patchattack.webcam.screen import Screen


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
        pass_by: what is asked of each approach of the camera.

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
    pass_by: PassByRule = STANDARD

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 16):
            raise InputError(f"size: expected [height, width] of at least 16 pixels, or null, got {list(self.size)}")
        if self.keep < 0:
            raise InputError(f"keep: expected 0 or more stored shots, got {self.keep}")
        if not self.independent > 0:
            raise InputError(f"independent: expected seconds above 0, got {self.independent}")


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
    seen: Seen | None = None


class Session:
    """Measures until the capture ends or the user quits; memory does not grow with time.

    Args:
        setup: what is measured, and how.
        capture: of the frames.
        screen: shows the live picture.
        folder: gets ``frames.csv``, ``frames/``, screenshots and videos.

    Attributes:
        live: the picture, the keys, and how it stands.
        interrupted: Ctrl-C has ended it.
        failure: what else has ended it before the source did.
    """

    def __init__(self, setup: Setup, capture: Capture, screen: Screen, folder: Path) -> None:
        self.setup, self.capture, self.folder = setup, capture, folder
        own = [sheet.number for sheet in setup.sheets]
        self.live = LiveView(setup.trials, own, setup.size, capture, screen, folder, setup.record)
        self.interrupted = False
        self.failure: InputError | VictimError | None = None
        self.store = Store(folder / "frames", setup.keep)
        self.stencil = Stencil(setup.patch.mask)
        self._foreign = [
            fiducials.layout(setup.sheets[0].size_mm, number) for number in range(fiducials.SHEETS) if number not in own
        ]
        self._before: tuple[int, Sighting | None] = (-1, None)  # number of the last frame that was searched
        self._last: Sighting | None = None

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
                self.live.tally.add(step.record)
                self._keep(shot, step)
                if self.live.wanted:
                    self.live.present(step.draw(), shot.time, partial(self._picture_again, shot))
                if self.live.switches.quitting:
                    break
        except KeyboardInterrupt:
            self.interrupted = True
        except (InputError, VictimError) as error:
            self.failure = error
        finally:
            log.close()
            self.capture.close()
            self.live.close()
        return self.store.kept

    def _picture_again(self, shot: Shot) -> np.ndarray:
        return self.step(shot).draw()

    def step(self, shot: Shot) -> Step:
        """Measure one shot."""
        sightings = self._search(shot)
        whites = [_white(image, one, self._sheet(one)) for image, one in zip(shot.images, sightings, strict=False)]
        if not sightings or None in whites:
            record = self._unmeasured_record(shot, sightings)
            return Step(record, partial(self.live.picture_of_nothing, shot, record))
        seen = self._look(shot, sightings, [one for one in whites if one is not None])
        verdicts = self.live.victim.judge(seen.versions, seen.coverage, torch.from_numpy(seen.corners)[None])
        record = seen.record
        record.patch, record.grey, record.inpainted = verdicts.values
        record.success, record.grey_success, _ = verdicts.success
        return Step(record, partial(self.live.picture, shot, seen, verdicts.outputs), seen)

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
        record = Record(shot.number, shot.time, self.live.victim.name, "lost")
        if sightings:
            return replace(record, state="cut", sheet=sightings[0].number)
        if self._last is not None:
            return record
        # A picture is mirrored from the first frame on, or never. Mirrored markers may read as another sheet's.
        if not self.live.tally.states["found"] and fiducials.find(cv2.flip(shot.images[-1], 1), self.setup.sheets):
            return replace(record, state="mirrored")
        strangers = fiducials.find(shot.images[-1], self._foreign)
        return replace(record, state="other", sheet=strangers[0].number) if strangers else record

    def _look(self, shot: Shot, sightings: list[Sighting], whites: list[White]) -> Seen:
        """Pose, light, and the versions of a shot whose frames all show the whole patch."""
        sheet = self._sheet(sightings[0])
        newest, sighting = shot.images[-1], sightings[-1]
        here = pose(sighting, sheet, self.setup.lens, (newest.shape[0], newest.shape[1]))
        kind = "drawn" if self.live.switches.drawing else "patch" if sheet is self.setup.sheets[0] else "control"
        record = Record(
            frame=shot.number,
            time=shot.time,
            victim=self.live.victim.name,
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
        images = [resize(image, self.setup.size) for image in shot.images]
        factors = images[-1].shape[1] / newest.shape[1], images[-1].shape[0] / newest.shape[0]
        corners = np.stack([(one.corners + 0.5) * factors - 0.5 for one in sightings])
        whites = [one.scale(*factors) for one in whites]
        if kind == "drawn":
            images = draw_patch(images, corners, self.setup.patch)
        without = [self.stencil.replace(*one) for one in zip(images, corners, whites, strict=True)]
        return Seen(record, versions(images, without), coverage(without), corners, whites)

    def _keep(self, shot: Shot, step: Step) -> None:
        """Offer a shot that shows the printed sheet to the store."""
        seen = step.seen
        if seen is not None and seen.record.kind != "drawn":
            images = [to_array(frame) for frame in seen.versions[0]]
            self.store.offer(seen.record, images, seen.corners, seen.whites, shot.images[-1])


def _white(image: np.ndarray, sighting: Sighting, sheet: Layout) -> White | None:
    """The paper's brightness; None where the frame shows none of it, or not all of the patch."""
    height, width = image.shape[:2]
    whole = ((sighting.corners >= -0.5) & (sighting.corners <= (width - 0.5, height - 0.5))).all()
    return paper.white(image, sighting, sheet) if whole else None
