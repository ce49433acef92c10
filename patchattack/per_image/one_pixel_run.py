"""One-pixel attacks as a run: ``python train.py attack=one_pixel pixels=3 images=100``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from patchattack.evaluation import Verdict
from patchattack.job import Job, Settings
from patchattack.per_image.one_pixel import OnePixel, attack_images
from patchattack.per_image.one_pixel_report import publish
from patchattack.per_image.subject import check_victim, chosen
from patchattack.pipeline import Origin, PerImage, versions
from patchattack.scene import Source
from patchattack.victims.victim import Victim


class OnePixelRun(OnePixel, PerImage):
    """The attack of :class:`OnePixel` on images of the test part, one after another, each beside random pixels.

    A run that was interrupted goes on after its last query: done images are in its table, and what a victim that only
    answers has said about the one in work is in its journal.
    """

    uses = (
        *("attack", "pixels", "images", "victim", "data", "defense", "seed", "output"),
        *("trainer.split", "trainer.accelerator", "trainer.precision"),
    )

    def check(self, victim: Victim, source: Source, settings: Settings) -> None:
        """Refuse another victim than a single classifier, and more images than the test part has."""
        check_victim(victim)
        chosen(settings, len(source), self.images)

    def attack_images(self, job: Job, folder: Path, origin: Origin) -> Verdict:
        """Write ``images.csv``, a row after each image, then ``results.json``, ``report.html`` and ``pictures``."""

        def progress(left: Iterable[int]) -> Iterator[int]:
            for number in tqdm(left, desc="attacking images", unit="image", dynamic_ncols=True):
                yield number
                if job.journal is not None:
                    job.journal.checkpoint()  # the image has its row

        numbers = chosen(job.settings, len(job.source), self.images)
        table = folder / "images.csv"
        results = attack_images(self, job.victim, job.source, numbers, table, job.seed, job.predict, progress)
        return publish(self, job.victim, job.source, results, folder, origin.command, versions())
