"""Substitute model: a small network learns a victim's answers, to be attacked in its place (Papernot et al. 2017).

The victim is asked about scenes; the network learns the answers; and the next points to ask about lie where the
network's own Jacobian says that its answer would change soonest: ``x + λ sign(∂F_y(x)/∂x)``, ``y`` what the victim
says of ``x`` (Papernot et al., Practical Black-Box Attacks against Machine Learning, 2017, equation 3 and algorithm 1).

Theirs are copies of the same few scenes for ever; here a point is also turned, scaled and shifted a little before it
takes its step, and the victim is asked about what comes of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from patchattack import files, seeding, statistics
from patchattack.data.cached import CachedSource
from patchattack.errors import InputError
from patchattack.job import Fabric, Settings, asking
from patchattack.pipeline import versions
from patchattack.scene import Source
from patchattack.victims.journal import Journal
from patchattack.victims.substitute import NOTE, WEIGHTS, initial_network
from patchattack.victims.victim import ClassificationVictim, Victim

ANSWERS = "answers.safetensors"
SCENES, POINTS, ORDER = range(3)  # what a generator is for, besides the seed


@dataclass(frozen=True)
class Recipe:
    """How a substitute learns.

    Attributes:
        rounds: how often the points are augmented; each round doubles them, as long as there are queries.
        step: λ, how far an augmented point lies from its own in each pixel, in units of [0, 1].
        queries: most questions about training points; a random part of a round is asked where all are too many.
        epochs: passes over all answers in each round.
        batch: points in a step, and in a question.
        lr: the highest learning rate of a round's one-cycle schedule.
        size: ``(h, w)`` of the substitute's input.

    Raises:
        InputError: a number that cannot be.
    """

    rounds: int = 4
    step: float = 0.1
    queries: int = 5000
    epochs: int = 10
    batch: int = 32
    lr: float = 3e-3
    size: Sequence[int] = (64, 64)

    def __post_init__(self) -> None:
        if self.rounds < 0 or min(self.epochs, self.batch) < 1 or self.lr <= 0 or not 0 < self.step <= 1:
            raise InputError(
                "substitute: expected rounds >= 0, epochs and batch >= 1, lr > 0 and step in (0, 1], got "
                f"rounds={self.rounds}, epochs={self.epochs}, batch={self.batch}, lr={self.lr:g}, step={self.step:g}"
            )
        if self.queries < self.batch:
            raise InputError(
                f"substitute.queries: expected at least one batch of substitute.batch={self.batch}, got {self.queries}"
            )
        if len(self.size) != 2 or min(self.size) < 16:
            raise InputError(f"substitute.size: expected [h,w] of at least 16 px, got {list(self.size)}")


@dataclass
class Notebook:
    """What was asked and answered, in a file.

    Attributes:
        path: of the file.
        victim: its name.
        points: ``[N, 1, 3, H, W]`` uint8.
        answers: ``[n, K]`` logits of the first ``n`` of them.
        held_out: ``[m, K]`` logits of the first ``m`` of the scenes that measure the agreement.
        round: which the last points are of.
        rows: of the rounds before, each with its round, queries, and agreement with its interval.
    """

    path: Path
    victim: str
    points: Tensor
    answers: Tensor
    held_out: Tensor
    round: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, victim: Victim) -> Notebook:
        """The notebook at ``path``.

        Raises:
            InputError: it is another victim's, or none.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                known = {key: file.get_tensor(key) for key in ("points", "answers", "held_out")}
                note = json.loads(file.metadata()["notebook"])
            named, number, rows = note["victim"], files.integer(note["round"]), note["rows"]
            if len(rows) < number:
                raise ValueError(f"expected a row for each of {number} rounds, got {len(rows)}")
            for row, key in itertools.product(rows, ("round", "queries", "agreement", "low", "high", "n")):
                files.number(row[key])
            points, answers, held_out = (known[key] for key in ("points", "answers", "held_out"))
            fits = points.ndim == 5 and points.shape[1:3] == (1, 3) and answers.ndim == held_out.ndim == 2
            if not fits or points.dtype != torch.uint8:
                raise ValueError("expected points [N, 1, 3, H, W] and answers [n, K]")
            if len(answers) > len(points) or not (answers.isfinite().all() and held_out.isfinite().all()):
                raise ValueError("expected finite answers to the points")
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: expected the answers of an earlier run, got '{error}'; remove it") from error
        if named != victim.name or {answers.shape[1], held_out.shape[1]} != {len(victim.classes)}:
            raise InputError(
                f"{path}: expected answers of {victim.name} with {len(victim.classes)} classes, got those of "
                f"{named} with {answers.shape[1]}; name another folder with output=FOLDER"
            )
        return cls(path, named, points, answers, held_out, number, rows)

    def write(self) -> None:
        """Write all of it."""
        note = {"victim": self.victim, "round": self.round, "rows": self.rows}
        tensors = {"points": self.points, "answers": self.answers, "held_out": self.held_out}
        files.write(self.path, safetensors.torch.save(tensors, {"notebook": files.json_text(note)}))

    def fill(self, of: str, points: Tensor, ask: Callable[[Tensor], Tensor], batch: int) -> None:
        """Ask about every one of ``points`` that has no answer; they are written down before, and the answers after.

        Args:
            of: "answers" or "held_out".
            points: ``[N, 1, 3, H, W]`` uint8.
            ask: gives the logits of a few points.
            batch: how many at once.
        """
        self.write()
        known = getattr(self, of)
        missing = points[len(known) :].split(batch) if len(known) < len(points) else []
        bar = tqdm(missing, f"round {self.round}: asking", unit_scale=batch, dynamic_ncols=True)
        setattr(self, of, torch.cat([known, *map(ask, bar)]))
        self.write()


@dataclass(frozen=True)
class SubstituteStudy:
    """Who learns what.

    Attributes:
        victim: that is asked.
        source: of scenes: the training part is asked about, the test part measures the agreement.
        recipe: how it learns.
        settings: split, scenes and device.
        seed: of every draw.
    """

    victim: Victim
    source: Source
    recipe: Recipe
    settings: Settings
    seed: int


def learn(study: SubstituteStudy, fabric: Fabric, folder: Path) -> Notebook:
    """Teach a substitute, and write it to ``folder``; where that holds answers already, they are not asked for again.

    Every answer is in the journal of ``folder`` before the next question, so that a run that is killed asks none twice.

    Returns:
        The notebook: its rows have, for each round, the queries so far and the agreement with the victim on scenes
        that it was not taught, with its interval.

    Raises:
        InputError: the victim is no classifier, or the folder holds another's answers.
        VictimError: the victim gave no usable answer; the answers so far are in the folder.
    """
    victim = study.victim
    if victim.task != "classification":
        raise InputError(f"victim: expected a classifier to be substituted, got {victim.name} for {victim.task}")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal()
    journal.open(folder)
    with contextlib.closing(journal):
        return _learn(study, fabric, folder, journal)


def _learn(study: SubstituteStudy, fabric: Fabric, folder: Path, journal: Journal) -> Notebook:
    """See :func:`learn`."""
    victim, recipe, device = study.victim, study.recipe, fabric.device
    victim.to(device)
    source = CachedSource(study.source, study.settings.memory_gb * 1e9)
    training, _, test = study.settings.split_indices(len(source))
    asks = asking(victim, fabric)

    @torch.no_grad()
    def ask_victim(points: Tensor) -> Tensor:
        return asks(points.float() / 255).float().cpu()

    def ask(points: Tensor) -> Tensor:
        return journal.keep(points, ask_victim, victim.name)

    held_out = source.__getitems__(test).frames
    notebook = _open(folder / ANSWERS, study, source, training)
    if len(notebook.held_out) > len(held_out):
        raise InputError(
            f"{notebook.path}: expected answers about {len(held_out)} test scenes at most, got "
            f"{len(notebook.held_out)}; name another folder with output=FOLDER"
        )
    notebook.fill("held_out", held_out, ask, recipe.batch)
    network = initial_network(victim.classes).to(device)
    size = (recipe.size[0], recipe.size[1])
    student = ClassificationVictim(network, "substitute", victim.classes, size).to(device)
    while True:
        notebook.fill("answers", notebook.points, ask, recipe.batch)
        _fit(student, notebook, recipe, study.seed)
        said = torch.cat([_labels(student, part) for part in held_out.split(recipe.batch)])
        agrees = (said.argmax(dim=1) == notebook.held_out.argmax(dim=1)).double().numpy()
        mean, low, high = statistics.wilson(agrees)
        row = {"round": notebook.round, "queries": len(notebook.points), "agreement": mean, "low": low, "high": high}
        notebook.rows = [*notebook.rows[: notebook.round], row | {"n": len(agrees)}]
        left = recipe.queries - len(notebook.points)
        if notebook.round >= recipe.rounds or left < 1:
            break
        generator = seeding.generator(study.seed, POINTS, notebook.round)
        chosen = torch.randperm(len(notebook.points), generator=generator)[:left]
        new = [_augment(student, *part, recipe.step, generator) for part in _parts(notebook, chosen, recipe.batch)]
        notebook.points, notebook.round = torch.cat([notebook.points, *new]), notebook.round + 1
    notebook.write()
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    files.write(folder / WEIGHTS, safetensors.torch.save(weights))
    note = {
        "victim": victim.name,
        "classes": list(victim.classes),
        "size": list(size),
        "queries": len(notebook.points) + len(held_out),
        "rounds": notebook.rows,
        "seed": study.seed,
        "versions": versions(),
    }
    files.write_json(folder / NOTE, note)
    return notebook


def _open(path: Path, study: SubstituteStudy, source: Source, training: list[int]) -> Notebook:
    """The notebook of an earlier run, or a new one about the training scenes."""
    if path.is_file():
        return Notebook.read(path, study.victim)
    chosen = torch.randperm(len(training), generator=seeding.generator(study.seed, SCENES))[: study.recipe.queries]
    points = source.__getitems__([training[number] for number in chosen.tolist()]).frames
    nothing = torch.empty(0, len(study.victim.classes))
    return Notebook(path, study.victim.name, points, nothing, nothing)


@torch.no_grad()
def _labels(student: ClassificationVictim, points: Tensor) -> Tensor:
    return student(points.to(student.mean.device).float() / 255).cpu()


def _parts(notebook: Notebook, rows: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Points and answers of ``rows``, batch by batch."""
    return [(notebook.points[part], notebook.answers[part]) for part in rows.split(batch)]


def _fit(student: ClassificationVictim, notebook: Notebook, recipe: Recipe, seed: int) -> None:
    """Teach the student all answers, as probabilities: one that is a label is a probability of one."""
    network, device = student.network.train().requires_grad_(True), student.mean.device
    steps = recipe.epochs * -(-len(notebook.points) // recipe.batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps + 1, pct_start=0.1)
    with tqdm(total=steps, desc=f"round {notebook.round}: learning", dynamic_ncols=True) as bar:
        for epoch in range(recipe.epochs):
            generator = seeding.generator(seed, ORDER, notebook.round, epoch)
            order = torch.randperm(len(notebook.points), generator=generator)
            for points, answers in _parts(notebook, order, recipe.batch):
                loss = F.cross_entropy(student(points.to(device).float() / 255), answers.to(device).softmax(dim=1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    network.eval().requires_grad_(False)


def _augment(
    student: ClassificationVictim, points: Tensor, answers: Tensor, step: float, generator: torch.Generator
) -> Tensor:
    """Each point, moved, and then by ``step`` in every pixel up the slope of the student's logit of its answer."""
    frames = _jitter(points.float() / 255, generator).to(student.mean.device).requires_grad_()
    logits = student(frames).gather(1, answers.argmax(dim=1, keepdim=True).to(frames.device))
    (gradient,) = torch.autograd.grad(logits.sum(), frames)
    moved = (frames.detach() + step * gradient.sign()).clamp(0, 1)
    return (moved * 255).round().byte().cpu()


def _jitter(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 10°, scaled by 0.8 to 1.25 and shifted by up to a tenth, with repeated edges."""
    count, (height, width) = len(frames), frames.shape[-2:]
    turn = torch.deg2rad(seeding.uniform(generator, (count,), -10, 10))
    scale = seeding.uniform(generator, (count,), math.log(0.8), math.log(1.25)).exp()
    shift = seeding.uniform(generator, (count, 2), -0.2, 0.2)  # the frame spans [-1, 1]
    across, along = turn.cos() * scale, turn.sin() * scale
    rows = [across, -along * height / width, shift[:, 0], along * width / height, across, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 3, height, width], align_corners=False)
    images = F.grid_sample(frames[:, 0], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return images.unsqueeze(1)
