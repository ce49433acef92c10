"""One-pixel attacks: what they find, what they ask, and what a begun table saves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchattack import processes
from patchattack.errors import InputError, VictimError
from patchattack.job import Settings
from patchattack.scene import Scene, Source
from patchattack.studies.single_image.one_pixel import OnePixel, Result, attack_images, read_results, whole, with_pixels
from patchattack.studies.single_image.one_pixel_report import summarise
from patchattack.studies.single_image.one_pixel_study import OnePixelStudy
from patchattack.studies.single_image.subject import choose_scenes
from patchattack.victims.journal import of_run
from patchattack.victims.victim import ClassificationVictim, FlowVictim

SIZE = (6, 8)
SPOT = (5, 2)  # x, y


class Greys(Source):
    """Grey images of class 0; the fourth is labelled 1."""

    classes = ("dark", "bright", "other")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Scene:
        frames = torch.full((1, 1, 3, *SIZE), 100, dtype=torch.uint8)
        return Scene(frames, torch.tensor([index]), label=torch.tensor([int(index == 3)]))


class Counting(ClassificationVictim):
    """Looks at one pixel and counts the frames that it is asked about; has no gradient."""

    differentiable = False

    def __init__(self, threshold: float = 0.7, steepness: float = 20.0) -> None:
        super().__init__(nn.Identity(), "counting", Greys.classes)
        self.threshold, self.steepness = threshold, steepness
        self.batches: list[int] = []
        self.seen: list[Tensor] = []

    def logits(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.seen.append(images.clone())
        spot = images[:, 0, SPOT[1], SPOT[0]]  # red
        score = self.steepness * (spot - self.threshold)
        return torch.stack([torch.zeros_like(score), score, torch.full_like(score, -3.0)], dim=1)


def small(**options: Any) -> OnePixel:
    return OnePixel(**{"children": 40, "generations": 20, "batch": 40} | options)


def run(attack: OnePixel, victim: ClassificationVictim, path: Path, numbers: tuple[int, ...] = (0,)) -> list[Result]:
    return attack_images(attack, victim, Greys(), numbers, path / "images.csv")


# The search


@pytest.mark.parametrize("options", [{}, {"goal": "targeted", "target": "bright"}, {"pixels": 3}])
def test_it_finds_the_one_pixel_that_decides(tmp_path: Path, options: dict[str, Any]) -> None:
    (result,) = run(small(**options), Counting(), tmp_path)
    assert result.counted
    assert result.won
    assert (result.label, result.clean, result.prediction) == ("dark", "dark", "bright")
    pixels = [[int(value) for value in pixel.split()] for pixel in result.pixels.split(";")]
    assert len(pixels) == options.get("pixels", 1)
    red = [r for x, y, r, _, _ in pixels if (x, y) == SPOT][-1]
    assert red / 255 > 0.7
    assert result.confidence > 0.9
    assert result.queries_to_win is not None
    assert 1 <= result.queries_to_win <= result.queries


def test_the_written_pixels_are_what_the_victim_saw(tmp_path: Path) -> None:
    victim = Counting()
    (result,) = run(small(), victim, tmp_path)
    x, y, *colour = (int(value) for value in result.pixels.split())
    frame = Greys()[0].to("cpu").frames
    changed = with_pixels(frame, torch.tensor([[[x, y, *colour]]]))
    assert changed[0, 0, :, y, x].tolist() == pytest.approx([value / 255 for value in colour])
    assert int(((changed != frame).any(dim=2)).sum()) == 1
    probability = victim(changed).softmax(dim=1)[0, 1]
    assert float(probability) == pytest.approx(result.confidence, abs=1e-6)


def test_what_no_pixel_can_flip_is_a_failure_at_full_price(tmp_path: Path) -> None:
    victim = Counting(threshold=1.1)
    (result,) = run(small(generations=3), victim, tmp_path)
    assert result.counted
    assert not result.won
    assert result.queries_to_win is None
    assert result.prediction == "dark"
    assert result.queries == 40 * (1 + 3)


def test_a_flat_answer_is_searched_to_the_end(tmp_path: Path) -> None:
    (result,) = run(small(generations=2), Counting(steepness=0.0), tmp_path)  # the first of equals is dark
    assert result.queries == 40 * 3
    assert not result.won


@pytest.mark.parametrize("batch", [40, 15])
def test_every_frame_that_is_asked_about_is_counted(tmp_path: Path, batch: int) -> None:
    victim = Counting(threshold=1.1)
    (result,) = run(small(generations=2, batch=batch), victim, tmp_path)
    clean, search, control = 1, result.queries, result.queries
    assert sum(victim.batches) == clean + search + control
    assert max(victim.batches) == batch
    if batch == 40:
        assert victim.batches[:4] == [1, 40, 40, 40]  # one batch for each generation


def test_no_candidate_leaves_the_frame_or_changes_more_than_its_pixels(tmp_path: Path) -> None:
    victim = Counting(threshold=1.1)
    run(small(pixels=3, generations=3), victim, tmp_path)
    frame = Greys()[0].to("cpu").frames[:, 0]
    seen = torch.cat(victim.seen)
    assert 0 <= seen.min() <= seen.max() <= 1
    assert torch.equal((seen * 255).round() / 255, seen)  # colours of 8 bits
    assert ((seen != frame).any(dim=1).flatten(1).sum(dim=1) <= 3).all()


def test_places_cover_the_frame_evenly_and_colours_are_the_papers() -> None:
    pixels = whole(OnePixel().first(40_000, SIZE, np.random.default_rng(0)), SIZE)[:, 0]
    counts = torch.bincount(pixels[:, 1] * SIZE[1] + pixels[:, 0], minlength=48)
    assert (counts.float() / 40_000 - 1 / 48).abs().max() < 0.004  # borders too
    assert (pixels[:, 2:] == 0).float().mean() == pytest.approx(0.16, abs=0.01)  # 128 / 127 deviations away
    assert pixels[:, 2:].float().mean() == pytest.approx(128, abs=1.5)


def test_of_two_pixels_in_one_place_the_last_counts() -> None:
    frame = torch.zeros(1, 1, 3, *SIZE)
    pixels = torch.tensor([[[1, 2, 255, 0, 0], [1, 2, 0, 255, 0]]])
    assert with_pixels(frame, pixels)[0, 0, :, 2, 1].tolist() == [0, 1, 0]


@pytest.mark.parametrize("stop", ["won", "confident"])
def test_it_stops_where_the_paper_does_or_at_the_first_win(tmp_path: Path, stop: str) -> None:
    # The class changes above 70 % red; its probability exceeds 95 % above 85 %.
    (result,) = run(small(stop=stop, children=10, generations=200), Counting(), tmp_path)
    assert result.won
    if stop == "won":
        assert result.queries_to_win is not None
        assert result.queries - result.queries_to_win < 10  # to the end of the generation
    else:
        assert result.confidence > 0.95


def test_only_images_that_are_right_and_not_of_the_target_are_attacked(tmp_path: Path) -> None:
    victim = Counting()
    results = run(small(), victim, tmp_path, (0, 3))
    assert [result.counted for result in results] == [True, False]
    assert results[1].queries == 0
    (same,) = attack_images(small(goal="targeted", target="dark"), victim, Greys(), [0], tmp_path / "other.csv")
    assert not same.counted


def test_random_pixels_get_as_many_queries_and_the_rates_stand_side_by_side() -> None:
    def result(number: int, **given: Any) -> Result:
        return Result(number, "a", "a", 0.9, **{"counted": True, "queries": 10} | given)

    rows = summarise(
        [
            result(0, won=True, confidence=0.8, queries_to_win=4, random_won=True, random_confidence=0.6),
            result(1, won=True, confidence=0.6, queries_to_win=8),
            result(2),
            result(3, won=True, counted=False),
        ]
    )
    found = {(row["condition"], row["metric"]): row for row in rows}
    assert found["evolution", "success"]["mean"] == pytest.approx(2 / 3)
    assert found["evolution", "success"]["n"] == 3
    assert (found["evolution", "success"]["low"], found["evolution", "success"]["high"]) == pytest.approx(
        (0.2077, 0.9385), abs=1e-4
    )
    assert found["random", "success"]["mean"] == pytest.approx(1 / 3)
    assert found["single", "success"]["mean"] == 0
    assert found["evolution", "excess"]["mean"] == pytest.approx(1 / 3)
    assert found["evolution", "confidence"]["mean"] == pytest.approx(0.7)
    assert found["evolution", "queries_to_win"]["mean"] == 6


# Going on


def test_a_row_that_is_there_is_not_asked_about_again(tmp_path: Path) -> None:
    whole_run = run(small(), Counting(), tmp_path / "whole", (0, 1, 2))
    first = run(small(), Counting(), tmp_path, (0, 1))
    victim = Counting()
    again = run(small(), victim, tmp_path, (0, 1))
    assert victim.batches == []
    assert again == first
    resumed = run(small(), victim, tmp_path, (0, 1, 2))
    assert sum(victim.batches) == 1 + 2 * resumed[2].queries
    assert resumed == whole_run
    assert (tmp_path / "images.csv").read_bytes() == (tmp_path / "whole" / "images.csv").read_bytes()


@pytest.mark.parametrize(
    "pixels", ["", "1 2 3 4", "1 2 3 4 5 6", "1 2 3 4 five", "-1 2 3 4 5", "1 2 3 4 256", f"{10**30} 2 3 4 5", "1 2;"]
)
def test_pixels_that_are_damaged_are_refused(tmp_path: Path, pixels: str) -> None:
    run(small(), Counting(), tmp_path, (0,))
    path = tmp_path / "images.csv"
    (one,) = read_results(path)
    path.write_text(path.read_text().replace(one.pixels, pixels))
    with pytest.raises(InputError, match=r"images\.csv: expected a table of images"):
        run(small(), Counting(), tmp_path, (0,))


def test_what_is_done_is_kept_when_the_victim_fails(tmp_path: Path) -> None:
    class Failing(Counting):
        def logits(self, images: Tensor) -> Tensor:
            if len(self.batches) > asked:
                raise ConnectionError("gone")
            return super().logits(images)

    asked = 10**9
    first = Counting()
    run(small(), first, tmp_path / "one")
    asked = len(first.batches) + 1
    with pytest.raises(ConnectionError):
        run(small(), Failing(), tmp_path, (0, 1))
    assert [result.number for result in read_results(tmp_path / "images.csv")] == [0]


def test_a_run_that_is_killed_in_the_middle_of_an_image_asks_no_frame_twice(tmp_path: Path) -> None:
    class Remote(Counting):
        """``trouble`` happens instead of the answer number ``at``."""

        def __init__(self, asked: list[bytes], at: int = -1, trouble: BaseException | None = None) -> None:
            super().__init__(threshold=1.1)
            self.asked, self.at, self.trouble = asked, at, trouble

        def logits(self, images: Tensor) -> Tensor:
            self.at -= 1
            if self.at == -1 and self.trouble is not None:
                raise self.trouble
            self.asked += [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
            return super().logits(images)

    def go(victim: Remote, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        settings = Settings(steps=1, batch=1, split=(0.25, 0.25, 0.5), accelerator="cpu")
        attack = OnePixel(pixels=2, children=10, generations=2)
        fabric = processes.start(settings)
        study = OnePixelStudy(attack, victim, Greys(), settings, 2, 0, of_run(folder), fabric)
        study.attack_images(folder, "patchattack one-pixel")

    class Killed(BaseException):
        pass

    everything: list[bytes] = []
    go(Remote(everything), tmp_path / "whole")
    asked: list[bytes] = []
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        go(Remote(asked, 2, Killed()), folder)
    with pytest.raises(VictimError, match="got 'no line'"):
        go(Remote(asked, 3, OSError("no line")), folder)
    with pytest.raises(Killed):
        go(Remote(asked, 1, Killed()), folder)
    go(Remote(asked), folder)
    assert asked == everything
    for file in ("images.csv", "results.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixels": 0}, "pixels: expected an integer >= 1, got 0"),
        ({"pixels": 1.5}, r"pixels: expected an integer >= 1, got 1\.5"),
        ({"children": 4}, "children: expected an integer >= 5, got 4"),
        ({"stop": "soon"}, "stop: expected confident or won, got soon"),
        ({"goal": "targeted"}, "attack.target: expected the name or number of a class"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnePixel(**options)


def test_images_and_victims_that_cannot_be(tmp_path: Path) -> None:
    class Still(FlowVictim):
        def flow(self, frames: Tensor) -> Tensor:
            return frames[:, 0, :2]

    with pytest.raises(InputError, match="expected one image classifier, got still for flow"):
        attack_images(small(), Still(nn.Identity(), "still"), Greys(), [0], tmp_path / "images.csv")
    with pytest.raises(InputError, match="images: expected numbers from 0 to 3, got 0 to 4"):
        run(small(), Counting(), tmp_path, (0, 4))
    (tmp_path / "images.csv").write_text("number,label\n1,a\n")
    with pytest.raises(InputError, match="expected a table of images as this attack writes it"):
        run(small(), Counting(), tmp_path)


def test_an_answer_that_is_no_number_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="victim counting: expected numbers, got NaN for image 0"):
        run(small(), Counting(threshold=float("nan")), tmp_path)


def test_no_more_images_than_the_test_part_has() -> None:
    settings = Settings(steps=1, batch=1)
    assert choose_scenes(settings, 400, 100)[:2] == [280, 281]
    assert len(choose_scenes(settings, 400, 120)) == 120
    with pytest.raises(InputError, match=r"images: expected at most 120, .* of 400 scenes has, got 121"):
        choose_scenes(settings, 400, 121)
    with pytest.raises(InputError, match="images: expected an integer >= 1, got 0"):
        choose_scenes(settings, 400, 0)


# The command

TINY = (
    *("data.scenes=8", "data.size=[32,32]", "data.supersampling=1", "trainer.accelerator=cpu"),
    *("trainer.split=[0.25,0.25,0.5]", "attack.children=5", "attack.generations=1"),
)


def test_the_command_writes_rows_pictures_and_a_report_and_resumes(tmp_path: Path, command: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    given = (*TINY, "images=3", "pixels=3", f"output={folder}")
    outcome = command(*given, entry="one-pixel")
    assert outcome.status == 0, outcome.err
    assert "3 pixels of their own take" in outcome.out
    assert str(folder / "images.csv") in outcome.out
    rows = read_results(folder / "images.csv")
    assert len(rows) == 3
    counted = [row for row in rows if row.counted]
    assert counted
    assert len(list((folder / "pictures").glob("*.png"))) == len(counted)
    results = json.loads((folder / "results.json").read_text())
    assert {row["condition"] for row in results} == {"single", "random", "evolution"}
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(counted)
    assert "<script" not in page
    assert "CIFAR-10" in page
    before = (folder / "images.csv").read_text()
    (folder / "images.csv").write_text("".join(before.splitlines(keepends=True)[:2]))  # killed after the first image
    assert command(*given, entry="one-pixel").status == 0
    assert (folder / "images.csv").read_text() == before
    refused = command(*given, "seed=1", entry="one-pixel")
    assert refused.status == 2
    assert "expected the settings that it was made with, got other ones: seed=1" in refused.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pixels=0", "pixels: expected an integer >= 1, got 0"),
        ("images=5", "images: expected at most 4, which the test part of 8 scenes has, got 5"),
        ("victim=flow_matching", "expected one image classifier, got flow_matching for flow"),
        ("victim=[classifier_residual,classifier_transformer]", "expected one image classifier, got the ensemble"),
        ("optimizer=nes", "optimizer"),
        ("trainer.steps=9", "trainer.steps: expected one of split, accelerator, precision"),
    ],
)
def test_bad_input_is_one_line(command: Callable[..., Any], tmp_path: Path, given: str, message: str) -> None:
    outcome = command(*TINY, "images=2", given, f"output={tmp_path / 'run'}", entry="one-pixel")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_it_is_no_attack_of_a_training(command: Callable[..., Any]) -> None:
    outcome = command("attack=one_pixel", "images=2")
    assert outcome.err == (
        "patchattack: attack=one_pixel: expected the command patchattack one-pixel, its name today, "
        "got attack=one_pixel\n"
    )
