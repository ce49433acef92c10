"""One-pixel attacks on images of the test part, one after another, each compared with random pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from patchattack.evaluation import Verdict
from patchattack.job import Fabric, Settings, asking
from patchattack.pipeline import versions
from patchattack.scene import Source
from patchattack.studies.single_image.one_pixel import OnePixel, attack_images
from patchattack.studies.single_image.one_pixel_report import publish
from patchattack.studies.single_image.subject import check_victim, choose_scenes
from patchattack.victims.journal import Journal
from patchattack.victims.victim import Victim


class OnePixelStudy:
    """What is attacked, checked before the work starts.

    Args:
        attack: on one image.
        victim: put on the fabric's device.
        source: of scenes; the test part is attacked.
        settings: the split.
        images: how many of the test part.
        seed: of every draw.
        journal: of the answers of a black-box victim; closed when the work ends.
        fabric: device and precision.

    Raises:
        InputError: no single classifier, or fewer images than asked for.
    """

    def __init__(
        self,
        attack: OnePixel,
        victim: Victim,
        source: Source,
        settings: Settings,
        images: int,
        seed: int,
        journal: Journal,
        fabric: Fabric,
    ) -> None:
        check_victim(victim)
        choose_scenes(settings, len(source), images)
        self.victim, self.seed, self.journal = victim.to(fabric.device), seed, journal
        self._ask = asking(victim, fabric)
        self.attack = attack.bound(victim, source)
        self.source = self.attack.scenes(source, self._clean)
        self.indices = choose_scenes(settings, len(self.source), images)

    def _clean(self, frames: Tensor) -> Any:
        """Asked once, in this call or an earlier one."""
        return self._ask(frames) if self.victim.differentiable else self.journal.keep(frames, self._ask)

    def _predict(self, frames: Tensor) -> Any:
        return self._ask(frames) if self.victim.differentiable else self.journal.note(frames, self._ask)

    def attack_images(self, folder: Path, command: str) -> Verdict:
        """Write ``images.csv``, a row after each image, then ``results.json``, ``report.html`` and ``pictures``.

        Images that are in the table are not attacked again, and what a black-box victim has said about the one in
        work is in the journal.

        Raises:
            VictimError: it gave no usable answer; what was done is kept.
        """

        def progress(left: Iterable[int]) -> Iterator[int]:
            for number in tqdm(left, desc="attacking images", unit="image", dynamic_ncols=True):
                yield number
                self.journal.checkpoint()  # the image has its row

        with contextlib.closing(self.journal):
            if not self.victim.differentiable:
                self.journal.open(folder)
            table = folder / "images.csv"
            results = attack_images(
                *(self.attack, self.victim, self.source, self.indices, table, self.seed, self._predict, progress)
            )
            return publish(self.attack, self.victim, self.source, results, folder, command, versions())
