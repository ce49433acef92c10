"""The live picture: what the camera shows, how it stands, and what the keys have set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from patchattack import files
from patchattack.webcam import overlay
from patchattack.webcam.camera_victim import CameraVictim
from patchattack.webcam.capture import Capture, Shot
from patchattack.webcam.frames import resize, to_array, to_tensor
from patchattack.webcam.overlay import Text
from patchattack.webcam.paper import White
from patchattack.webcam.records import Record
from patchattack.webcam.screen import Recorder, Screen

VERSIONS = ("as seen", "grey card", "inpainted")  # of a frame, as the victim gets them
_WAIT = 1 / 30  # seconds between two looks at the keys while the picture stands still


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
class Seen:
    """One sheet in all frames of a shot, at the victim's size; ``versions [3, T, 3, H, W]`` uint8."""

    record: Record
    versions: Tensor
    coverage: Tensor
    corners: np.ndarray
    whites: list[White]


class LiveView:
    """Shows shots as they are measured, and obeys the keys.

    Args:
        victims: that the user can choose from; the first is asked until then.
        sheets: numbers of the run's sheets.
        size: ``(h, w)`` of the frames that the victims get; None leaves them as they come.
        capture: of the frames.
        screen: shows the picture.
        folder: gets screenshots and videos.
        recording: a video from the start.

    Attributes:
        switches: what the keys have set.
        tally: how it stands.
    """

    def __init__(
        self,
        victims: Sequence[CameraVictim],
        sheets: Sequence[int],
        size: tuple[int, int] | None,
        capture: Capture,
        screen: Screen,
        folder: Path,
        recording: bool,
    ) -> None:
        self.victims, self.sheets, self.size = victims, sheets, size
        self.capture, self.screen, self.folder = capture, screen, folder
        self.switches, self.tally = Switches(recording=recording), Tally()
        self._recorder: Recorder | None = None
        self._recordings = self._screenshots = 0

    @property
    def victim(self) -> CameraVictim:
        """The one that is asked now."""
        return self.victims[self.switches.victim % len(self.victims)]

    @property
    def wanted(self) -> bool:
        """Whether anybody sees the picture."""
        return self.screen.visible or self.switches.recording

    def picture(self, shot: Shot, seen: Seen, outputs: Any) -> np.ndarray:
        """The live picture of a shot that shows the sheet."""
        record, version = seen.record, self.switches.version
        frames = [seen.versions[row].float() / 255 for row in (2, version)]
        rows = [outputs[row : row + 1] for row in (2, version)]  # the first sets the scale
        picture = self.victim.attack.pictures(rows, frames)[1]
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
        lines = [self.tally.line(record.victim, record.kind), f"{_ascii(self.victim.metric.label)}: {values}", where]
        return self._compose(shown, record.corners, picture, Text(state, record.success > 0.5, lines))

    def picture_of_nothing(self, shot: Shot, record: Record) -> np.ndarray:
        """The live picture without the sheet."""
        images = [resize(image, self.size) for image in shot.images]
        frames = to_tensor(images)[None]
        picture = self.victim.attack.pictures([self.victim.outputs(frames)], [frames[0].float() / 255])[0]
        wanted = ", ".join(map(str, self.sheets))
        state, reason = {
            "mirrored": ("mirrored", f"the picture is mirrored; give {self.capture.other_way}"),
            "other": ("wrong sheet", f"sheet {record.sheet} is not of this run"),
            "cut": ("cut off", "the patch is not all in the frame"),
        }.get(record.state, ("no sheet", "go nearer, give more light, keep the markers in the frame and flat"))
        lines = [self.tally.line(record.victim, "patch"), reason, f"looking for sheet {wanted}"]
        return self._compose(shot.images[-1], None, picture, Text(state, False, lines))

    def _compose(self, frame: np.ndarray, corners: np.ndarray | None, picture: Tensor, text: Text) -> np.ndarray:
        """With what is asked, what is shown, what runs, and the keys."""
        number, count = self.switches.victim % len(self.victims) + 1, len(self.victims)
        about = [
            f"victim {_ascii(self.victim.name)} ({number} of {count})",
            f"shown {VERSIONS[self.switches.version]}",
            *(name for name in ("paused", "recording", "drawing") if getattr(self.switches, name)),
            f"{self.capture.dropped} frames dropped",
        ]
        legend, _ = self.victim.attack.legend()
        text = replace(text, lines=[*text.lines, ", ".join(about)], keys=self.switches.keys)
        return overlay.compose(frame, corners, picture, legend, text)

    def present(self, picture: np.ndarray, moment: float, again: Callable[[], np.ndarray]) -> None:
        """Show a picture and do what the keys say.

        Args:
            picture: ``[h, w, 3]`` uint8 RGB.
            moment: when it was taken, seconds.
            again: makes it as the switches are then, which is asked for while it stands still.
        """
        self._film(picture, moment)
        key = self._hear(picture)
        while self.switches.paused and not self.switches.quitting:
            if key:
                picture = again()
            time.sleep(_WAIT)
            key = self._hear(picture)

    def close(self) -> None:
        """End the video and the picture."""
        self._stop_recording()
        self.screen.close()

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


def _ascii(text: str) -> str:
    """What OpenCV can write of a text."""
    return text.replace("°", " deg").encode("ascii", "replace").decode()
