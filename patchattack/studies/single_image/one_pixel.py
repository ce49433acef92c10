"""One-pixel and few-pixel attacks: differential evolution on each image (Su, Vargas & Sakurai 2019)."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
from patchattack.scene import Scene, Source
from patchattack.studies.single_image.subject import Goal, check_victim
from patchattack.victims.victim import Victim

STOPS = ("confident", "won")
FEWEST = 5  # children: SciPy's differential evolution takes no fewer
EVOLVING, DRAWING = range(2)  # what a generator is for, besides seed and image


class OnePixel(Goal):
    """Change the class of an image by ``pixels`` of its pixels: max f_adv(x + e) subject to ‖e‖₀ ≤ d.

    A candidate is (x, y, r, g, b) for each pixel. The first candidates have uniform places and colours that are normal
    about 128 with a standard deviation of 127; a child is x_r1 + (x_r2 - x_r3) / 2, without crossover, and takes its
    own father's place where it is better. Places are whole pixels and colours have 8 bits, so that every candidate is
    an image that a file can hold. It asks for probabilities and for no gradient.

    Args:
        pixels: d, how many pixels may change.
        goal: ``untargeted``, ``targeted`` or ``least_likely``, as of the classification patch.
        target: name or number of a class of the victim, for ``targeted`` alone.
        children: candidates of each generation.
        generations: at most so many after the first candidates.
        stop: when an image is done: ``confident`` as the paper, when the class has changed and the true one's
            probability is below 5 %, or the target's above 90 %; ``won`` as soon as the class has changed.
        batch: frames that the victim gets at once at most.

    Raises:
        InputError: a number or an option that cannot be.
    """

    def __init__(
        self,
        pixels: int = 1,
        goal: str = "untargeted",
        target: str | int | None = None,
        children: int = 400,
        generations: int = 100,
        stop: str = "confident",
        batch: int = 400,
    ) -> None:
        super().__init__(goal, target)
        least = {"pixels": 1, "children": FEWEST, "generations": 1, "batch": 1}
        given = {"pixels": pixels, "children": children, "generations": generations, "batch": batch}
        for name, value in given.items():
            if not isinstance(value, int) or value < least[name]:
                raise InputError(f"{name}: expected an integer >= {least[name]}, got {value}")
        if stop not in STOPS:
            raise InputError(f"stop: expected {' or '.join(STOPS)}, got {stop}")
        self.pixels, self.children, self.generations = pixels, children, generations
        self.stop, self.batch = stop, batch

    def enough(self) -> float:
        """The score from which on a won image is done."""
        if self.stop == "won":
            return 0.0
        return 0.95 if self.goal == "untargeted" else 0.9

    def first(self, count: int, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """``[count, 5 * pixels]`` random candidates for frames of ``size``, the first ones and those of the control."""
        low, high = self.bounds(size)
        places = generator.uniform(low, high, (count, len(low)))
        colours = generator.normal(128, 127, (count, len(low)))
        return np.where(np.arange(len(low)) % 5 < 2, places, colours).clip(low, high)

    def bounds(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest candidate, each ``[5 * pixels]``; a place spans its whole pixel."""
        height, width = size
        high = [width - 0.5, height - 0.5, 255, 255, 255]
        return np.array([-0.5, -0.5, 0, 0, 0] * self.pixels), np.array(high * self.pixels)

    def judge(self, logits: Tensor, clean: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
        """Score and success of ``logits [n, K]`` for one image, each ``[n]``.

        Args:
            logits: of candidates.
            clean: ``[1, K]``, of the image as it is.
            scene: the image with its label.

        Returns:
            the probability of the class aimed at, or of any but the true one; and whether the image is won.
        """
        aim = self.aim(clean, scene)
        probability, won = logits.softmax(dim=1)[:, int(aim)], self.succeeds(logits.argmax(dim=1), aim)
        return (1 - probability, won) if self.goal == "untargeted" else (probability, won)


class Found(NamedTuple):
    """A candidate and what the victim made of it; of two the one that won is better, then the one of higher score.

    Attributes:
        won, score: as :meth:`OnePixel.judge` says.
        prediction: number of the first class.
        confidence: its probability.
        pixels: int64 ``[d, 5]``: x, y, red, green, blue.
    """

    won: bool
    score: float
    prediction: int
    confidence: float
    pixels: Tensor


class _EnoughError(Exception):
    """The search is over before its last generation."""


class _Search:
    """Asks the victim about candidates for one image, counts and keeps the best."""

    def __init__(
        self, attack: OnePixel, predict: Callable[[Tensor], Tensor], scene: Scene, clean: Tensor, enough: float
    ) -> None:
        self.attack, self.predict, self.scene, self.clean, self.enough = attack, predict, scene, clean, enough
        self.queries = 0
        self.queries_to_win: int | None = None
        self.best: Found | None = None

    def ask(self, candidates: np.ndarray) -> np.ndarray:
        """The costs ``[n]`` of ``candidates [n, 5 * pixels]``: what differential evolution makes small.

        Raises:
            _EnoughError: the best candidate so far is good enough.
        """
        scores = []
        for part in np.split(candidates, range(self.attack.batch, len(candidates), self.attack.batch)):
            pixels = whole(part, self.scene.size)
            logits = self.predict(with_pixels(self.scene.frames, pixels))
            score, won = self.attack.judge(logits, self.clean, self.scene)
            self._keep(pixels, logits, score, won)
            scores.append(score.double().cpu().numpy())
        if self.best is not None and self.best.won and self.best.score >= self.enough:
            raise _EnoughError
        return 1 - np.concatenate(scores)

    def _keep(self, pixels: Tensor, logits: Tensor, score: Tensor, won: Tensor) -> None:
        if self.queries_to_win is None and won.any():
            self.queries_to_win = self.queries + int(won.int().argmax()) + 1
        self.queries += len(pixels)
        row = int((score + 2 * won).argmax())
        confidence, prediction = (float(value) for value in logits[row].softmax(dim=0).max(dim=0))
        found = Found(bool(won[row]), float(score[row]), int(prediction), confidence, pixels[row])
        self.best = found if self.best is None else max(self.best, found, key=lambda one: one[:2])


def whole(candidates: np.ndarray, size: tuple[int, int]) -> Tensor:
    """``[n, 5 * pixels]`` as whole pixels and 8-bit colours, int64 ``[n, pixels, 5]``: x, y, red, green, blue."""
    height, width = size
    last = torch.tensor([width - 1, height - 1, 255, 255, 255])
    rounded = torch.from_numpy(candidates).round().long().unflatten(1, (-1, 5))
    return rounded.clamp(torch.zeros_like(last), last)


def with_pixels(frames: Tensor, pixels: Tensor) -> Tensor:
    """``frames [1, 1, 3, H, W]`` once for each of ``pixels [n, d, 5]``, which are set there; of two in one place the
    last counts.
    """
    changed = frames.repeat(len(pixels), 1, 1, 1, 1)
    rows = torch.arange(len(pixels), device=frames.device)
    for x, y, *colour in pixels.to(frames.device).permute(1, 2, 0):
        changed[rows, 0, :, y, x] = torch.stack(colour, dim=1) / frames.new_tensor(255)
    return changed


def evolve(search: _Search, generator: np.random.Generator) -> None:
    """Differential evolution until the search has enough or the generations are over."""
    from scipy.optimize import differential_evolution

    attack, size = search.attack, search.scene.size
    with contextlib.suppress(_EnoughError):
        differential_evolution(
            lambda columns: search.ask(columns.T),
            list(zip(*attack.bounds(size), strict=True)),
            init=attack.first(attack.children, size, generator),
            strategy="rand1bin",
            mutation=0.5,
            recombination=1.0,
            maxiter=attack.generations,
            tol=0,
            atol=-1,  # candidates that are all alike have found nothing: it goes on
            polish=False,
            updating="deferred",
            vectorized=True,
            rng=generator,
        )


@dataclass(frozen=True)
class Result:
    """One image: a row of ``images.csv``.

    Attributes:
        number: of the scene in its source.
        label: the class that the data names; empty where it names none.
        clean: the victim's class without the attack.
        clean_confidence: its probability.
        counted: the attack can win the image; otherwise it was not attacked and the rest says nothing.
        won: the class is another, or the target's, after the attack.
        prediction: the class after it.
        confidence: its probability.
        pixels: ``x y r g b`` of each pixel that was set, with ``;`` between them.
        queries: frames that the victim was asked about by the search.
        queries_to_win: of these, up to the first that won; empty where none did.
        random_won, random_prediction, random_confidence, random_pixels: the same of the best of as many random
            candidates.
        single_won: the same of the first one of them.
    """

    number: int
    label: str
    clean: str
    clean_confidence: float
    counted: bool
    won: bool = False
    prediction: str = ""
    confidence: float = float("nan")
    pixels: str = ""
    queries: int = 0
    queries_to_win: int | None = None
    random_won: bool = False
    random_prediction: str = ""
    random_confidence: float = float("nan")
    random_pixels: str = ""
    single_won: bool = False


def attack_images(
    attack: OnePixel,
    victim: Victim,
    source: Source,
    indices: Sequence[int],
    path: Path,
    seed: int = 0,
    predict: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Result]:
    """Attack images one after another, each compared with random pixels with as many queries.

    The draws of an image depend on the seed and its number alone. ``path`` is written after every image; an image
    that has its row there is not asked about again.

    Args:
        attack: bound here.
        victim: on its device; it need not be differentiable.
        source: of the images.
        indices: of the images in ``source``.
        path: of the CSV file.
        seed: of every draw.
        predict: the victim in the run's precision, if not as it is; it gets frames on the host.
        progress: wraps the indices of the images that are left.

    Returns:
        The rows in the order of ``indices``.

    Raises:
        InputError: the victim is no single classifier or answers NaN, an image does not exist, or the file is no such
            table. What was done before is kept.
    """
    check_victim(victim)
    if indices and not 0 <= min(indices) <= max(indices) < len(source):
        raise InputError(f"images: expected numbers from 0 to {len(source) - 1}, got {min(indices)} to {max(indices)}")
    attack = attack.bound(victim, source)
    results = {result.number: result for result in read_results(path)}
    for place in progress([place for place in indices if place not in results]):
        results[place] = _attack_image(attack, victim, predict or victim, source, place, seed)
        files.write(path, _table(results.values()))
    return [results[place] for place in indices]


@torch.no_grad()
def _attack_image(
    attack: OnePixel, victim: Victim, predict: Callable[[Tensor], Tensor], source: Source, place: int, seed: int
) -> Result:
    scene = source[place].to("cpu")

    def answer(frames: Tensor) -> Tensor:
        logits = predict(frames).float().cpu()
        if logits.isnan().any():
            raise InputError(f"victim {victim.name}: expected numbers, got NaN for image {place}; check the model")
        return logits

    clean = answer(scene.frames)
    confidence, first = (float(value) for value in clean[0].softmax(dim=0).max(dim=0))
    label = "" if scene.label is None or scene.label < 0 else (source.classes or victim.classes)[int(scene.label)]
    known = (place, label, victim.classes[int(first)], confidence)
    if not attack.winnable(clean, scene):
        return Result(*known, counted=False)
    search = _Search(attack, answer, scene, clean, attack.enough())
    evolve(search, np.random.default_rng((seed, place, EVOLVING)))
    control = _Search(attack, answer, scene, clean, float("inf"))
    candidates = attack.first(search.queries, scene.size, np.random.default_rng((seed, place, DRAWING)))
    control.ask(candidates[:1])
    assert control.best is not None
    single = control.best
    for start in range(1, len(candidates), attack.children):
        control.ask(candidates[start : start + attack.children])
    best, random = search.best, control.best
    assert best is not None
    return Result(
        *known,
        counted=True,
        won=best.won,
        prediction=victim.classes[best.prediction],
        confidence=best.confidence,
        pixels=_written(best),
        queries=search.queries,
        queries_to_win=search.queries_to_win,
        random_won=random.won,
        random_prediction=victim.classes[random.prediction],
        random_confidence=random.confidence,
        random_pixels=_written(random),
        single_won=single.won,
    )


def _written(found: Found) -> str:
    return "; ".join(" ".join(map(str, pixel)) for pixel in found.pixels.tolist())


def pixels_of(written: str) -> Tensor:
    """``[P, 5]``: x, y and the colour of each pixel that :attr:`Result.pixels` tells.

    Raises:
        ValueError: it tells none.
    """
    pixels = [[int(value) for value in pixel.split()] for pixel in written.split(";")]
    if any(len(one) != 5 or min(one) < 0 or max(one[:2]) >= 2**31 or max(one[2:]) > 255 for one in pixels):
        raise ValueError(f"expected x, y and a colour of each pixel, got {written!r}")
    return torch.tensor(pixels)


def _table(results: Iterable[Result]) -> str:
    """The CSV file of ``results``, by their numbers."""
    text = io.StringIO()
    names = [field.name for field in fields(Result)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for result in sorted(results, key=lambda one: one.number):
        writer.writerow([getattr(result, name) for name in names])
    return text.getvalue()


def read_results(path: Path) -> list[Result]:
    """The rows of an ``images.csv``; none where there is no such file.

    Raises:
        InputError: it is no such table.
    """
    if not path.exists():
        return []
    read: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": float,
        "bool": lambda text: {"True": True, "False": False}[text],
        "int | None": lambda text: int(text) if text else None,
    }
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        results = [
            Result(**{field.name: read[str(field.type)](row[field.name]) for field in fields(Result)}) for row in rows
        ]
        for pixels in (one.pixels for one in results if one.counted):
            pixels_of(pixels)
        return results
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected a table of images as this attack writes it, got {error!r}; name another output"
        ) from error
