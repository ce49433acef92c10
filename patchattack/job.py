"""What a run trains with, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from patchattack.attacks.attack import Attack
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError, VictimError, one_line
from patchattack.evaluation import Evaluator, References
from patchattack.patch import Patch
from patchattack.scene import Source
from patchattack.search import SearchPlan
from patchattack.victims import contract
from patchattack.victims.journal import Journal
from patchattack.victims.victim import Victim

ORDER, TRAINING, VALIDATION, TEST, VICTIM, SEARCH, STARTS = range(7)  # what a generator is for, besides the seed
EXECUTIONS = ("eager", "compiled", "captured")  # of the victim


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: updates of the patch.
        batch: scenes per update, over all processes.
        draws: EoT draws of each scene in a batch.
        zoom: training scenes are enlarged by a random factor of up to this one, as :func:`patchattack.eot.zoom.zoomed`.
        accumulate: batches whose gradients make one update.
        grow: the last updates see this many times as many scenes as the first, and all together as many as with 1.
        cutout: longest side, as a fraction of the patch's, of a grey rectangle that hides a part of it in each view of
            the training, as in T-SEA (Huang et al. 2023): for patches that shall fool networks unseen in training.
        starts, candidates, stages: as in :class:`patchattack.search.SearchPlan`; None takes what suits optimiser and
            patch.
        max_queries: the run stops before the step after which the victim would have answered about more views and
            clean scenes than these, validation included; None knows no limit. The final measurement comes on top.
        log_every: steps between two rows of the metrics.
        validate_every: steps between two comparisons with the random patch on held-out scenes.
        checkpoint_every: steps between two checkpoints.
        split: fractions of the scenes for training, validation and test, in the source's order, so that neighbouring
            frames of a video do not fall on both sides.
        validation_scenes: at most this many of the validation scenes are used.
        test_scenes: at most this many of the test scenes are used.
        test_draws: EoT draws of each test scene.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: how many processes, of each node.
        nodes: how many machines, each of which starts the same command under ``torchrun`` or SLURM.
        precision: ``auto``, or one that Lightning Fabric knows, such as ``32-true`` and ``bf16-mixed``.
        tune: ``auto`` measures before the first step what makes this victim faster for this batch, among those of the
            next two and autocast that the settings leave open, as :mod:`patchattack.tuning` says; ``off`` measures
            nothing, and None stands for false and eager. ``off`` is the default on every device: a measured choice may
            be another the next time, and with it the last digits of a run, which else a seed fixes to the bit.
        channels_last: the victim's convolutions take the channels last in memory: often faster, with other rounding.
        execution: of the victim's forward and backward pass in a step: ``eager``, ``compiled`` by ``torch.compile``, or
            ``captured`` as a CUDA graph. Where that fails, the run says why and goes on without it.
        workers: processes that load scenes.
        memory_gb: of scenes and clean references to remember.

    Raises:
        InputError: a number that cannot be.
    """

    steps: int
    batch: int
    draws: int = 1
    zoom: float = 1.0
    accumulate: int = 1
    grow: float = 1.0
    cutout: float = 0.0
    starts: int | None = None
    candidates: int | None = None
    stages: int | None = None
    max_queries: int | None = None
    log_every: int = 10
    validate_every: int = 50
    checkpoint_every: int = 50
    split: Sequence[float] = (0.6, 0.1, 0.3)
    validation_scenes: int = 16
    test_scenes: int = 64
    test_draws: int = 4
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "auto"
    tune: str = "off"
    channels_last: bool | None = None
    execution: str | None = None
    workers: int = 0
    memory_gb: float = 2.0

    def __post_init__(self) -> None:
        for name in (
            *("steps", "batch", "draws", "accumulate", "log_every", "validate_every", "checkpoint_every"),
            *("validation_scenes", "test_scenes", "test_draws", "devices", "nodes"),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"trainer.{name}: expected at least 1, got {getattr(self, name)}")
        for name, least in (("starts", 0), ("candidates", 1), ("stages", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"trainer.{name}: expected at least {least}, or null, got {value}")
        if self.tune not in ("auto", "off"):
            raise InputError(f"trainer.tune: expected auto or off, got {self.tune}")
        if self.execution not in (None, *EXECUTIONS):
            raise InputError(f"trainer.execution: expected {', '.join(EXECUTIONS)} or null, got {self.execution}")
        if self.batch % self.processes:
            on_nodes = f" × trainer.nodes={self.nodes}" if self.nodes > 1 else ""
            raise InputError(
                f"trainer.batch: expected a multiple of trainer.devices={self.devices}{on_nodes}, got {self.batch}; "
                "every process takes the same share"
            )
        if len(self.split) != 3 or min(self.split) <= 0 or sum(self.split) > 1 + 1e-6:
            raise InputError(
                "trainer.split: expected three positive shares [training, validation, test] of at most 1 in all, "
                f"got {list(self.split)}"
            )
        if self.max_queries is not None and self.max_queries < 1:
            raise InputError(f"trainer.max_queries: expected at least 1, or null, got {self.max_queries}")
        if not 1 <= self.zoom < math.inf:
            raise InputError(f"trainer.zoom: expected a factor of 1 or more, got {self.zoom:g}")
        if not 1 <= self.grow < math.inf:
            raise InputError(f"trainer.grow: expected a factor of 1 or more, got {self.grow:g}")
        if self.grow > 1 and self.processes > 1:
            raise InputError(
                f"trainer.grow: expected 1 for {self.processes} processes, which take equal shares of a batch"
            )
        if not 0 <= self.cutout < 1:
            raise InputError(f"trainer.cutout: expected a fraction of 0 or more and less than 1, got {self.cutout:g}")
        if self.workers < 0 or self.memory_gb < 0:
            raise InputError(
                f"trainer: expected workers and memory_gb of 0 or more, got {self.workers} and {self.memory_gb}"
            )

    @property
    def processes(self) -> int:
        """Of all nodes."""
        return self.devices * self.nodes

    def scenes_at(self, step: int) -> int:
        """Scenes of a batch of update ``step``, over all processes: they grow exponentially about their mean."""
        if self.grow == 1:
            return self.batch
        place = (step + 0.5) / self.steps
        return max(1, round(self.batch * self.grow**place * math.log(self.grow) / (self.grow - 1)))

    def split_indices(self, scenes: int) -> tuple[list[int], list[int], list[int]]:
        """Numbers of the scenes for training, validation and test.

        Raises:
            InputError: too few scenes for all three.
        """
        ends = [round(scenes * sum(self.split[: n + 1])) for n in range(3)]
        indices = list(range(scenes))
        parts = indices[: ends[0]], indices[ends[0] : ends[1]], indices[ends[1] : ends[2]]
        if not all(parts):
            raise InputError(
                f"data: expected at least one scene each for training, validation and test, got {scenes} scenes split "
                f"into {', '.join(str(len(part)) for part in parts)}; give more scenes or another trainer.split"
            )
        return parts[0], spread(parts[1], self.validation_scenes), spread(parts[2], self.test_scenes)


@dataclass(frozen=True)
class Mode:
    """How the victim computes, beyond what the settings say.

    Attributes:
        channels_last: its convolutions take the channels last in memory.
        half: under autocast to bfloat16.
        execution: one of :data:`EXECUTIONS`.

    Raises:
        ValueError: a value that cannot be.
    """

    channels_last: bool = False
    half: bool = False
    execution: str = "eager"

    def __post_init__(self) -> None:
        if {type(self.channels_last), type(self.half)} != {bool} or self.execution not in EXECUTIONS:
            raise ValueError(f"expected a mode of a victim, got {self}")

    def __str__(self) -> str:
        words = ["channels last"] * self.channels_last + ["bfloat16"] * self.half
        return ", ".join([*words, self.execution] if self.execution != "eager" else words) or "plain"


class Fabric(Protocol):
    """Device and processes, as Lightning Fabric has them."""

    device: torch.device
    global_rank: int
    world_size: int

    def autocast(self) -> AbstractContextManager[None]:
        """The run's precision."""

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any:
        """Combine a tensor over all processes."""

    def broadcast(self, data: Any) -> Any:
        """What the first process has."""


@dataclass
class Job:
    """Everything that one run trains with.

    Attributes:
        patch: to be optimised, on the victim's device.
        victim: on its device.
        attack: loss and metrics.
        renderer: EoT.
        regularizers: name to a module ``(texture, mask) -> scalar`` with a ``weight``.
        optimizer: of the patch's parameters.
        schedule: of the optimizer's learning rate, one step per update.
        source: of scenes.
        settings: how to train.
        plan: of the search.
        seed: of every draw.
        fabric: device and processes.
        queries: views of a frame or a pair that the victim has answered about, in this run, over all processes; on
            clean scenes not counted. The whole count is :func:`patchattack.budget.queries`.
        journal: of the answers of a victim without gradient, started when that was made; None for any other.
        mode: in which the victim computes; None until it is settled.
        fast: the victim compiled or captured, for batches of :attr:`rows` that are followed by gradients.
    """

    patch: Patch
    victim: Victim
    attack: Attack
    renderer: Renderer
    regularizers: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    source: Source
    settings: Settings
    plan: SearchPlan
    seed: int
    fabric: Fabric
    journal: Journal | None
    queries: int = 0
    mode: Mode | None = None
    fast: Callable[[Tensor], Any] | None = None
    references: References = field(init=False)

    def __post_init__(self) -> None:
        self.forget()
        self._shapes: dict[Victim, list[int]] = {}  # of the first output of each member, without the batch

    def predict(self, frames: Tensor) -> Any:
        """The victim's output in the run's precision, for frames on any device; each counts as a query.

        Raises:
            VictimError: it failed, ran out of memory, or gave an output of another shape than before; or, of a victim
                that only answers, numbers that are not finite.
        """
        self.queries += len(frames)
        return self._ask(frames) if self.journal is None else self.journal.note(frames, self._ask)

    def predict_once(self, frames: Tensor) -> Any:
        """The same, before the run has a folder: a black-box victim is not asked again when it is resumed."""
        self.queries += len(frames)
        return self.clean(frames)

    def clean(self, frames: Tensor) -> Any:
        """The output on clean frames, which :attr:`queries` leaves out."""
        return self._ask(frames) if self.journal is None else self.journal.keep(frames, self._ask)

    def forget(self) -> None:
        """All answers on clean frames, as when the victim computes in another mode."""
        self.references = References(self.clean, self.settings.memory_gb * 1e9)

    @property
    def rows(self) -> int:
        """Views of one candidate in a batch of this process, where batches do not grow."""
        return self.settings.batch // self.fabric.world_size * self.settings.draws

    def _ask(self, frames: Tensor) -> Any:
        follows = self.fast is not None and torch.is_grad_enabled() and len(frames) == self.rows
        answer = _answer(self.victim, frames, self.fabric, self.fast if follows else None)
        if not self.victim.differentiable:  # of others the loss tells, without a wait in the step
            _check_finite(self.victim, answer)
        for member, found in contract.members(self.victim, answer):
            expected = [len(frames), *self._shapes.setdefault(member, list(found.shape[1:]))]
            if list(found.shape) != expected:
                raise VictimError(
                    f"victim {member.name}: expected an output {expected} as before, got {list(found.shape)}"
                )
        return answer

    def _predict_finite(self, frames: Tensor) -> Any:
        """:meth:`predict` where the answer counts: a verdict on NaN would be one on nothing."""
        return _check_finite(self.victim, self.predict(frames))

    @property
    def candidates(self) -> int:
        """How many patches are optimised side by side now."""
        return len(self.patch.parameter) if self.patch.parameter.ndim == 4 else 1

    @property
    def columns(self) -> list[str]:
        """Names of the scalars that the loop logs."""
        losses = ["loss", "attack", *self.regularizers]
        return [*losses, "learning_rate", "queries", "validation/loss", "validation/patch", "validation/random"]

    def evaluator(self, purpose: int) -> Evaluator:
        """Measures on fixed draws of their own for each purpose."""
        return Evaluator(
            self._predict_finite if purpose == TEST else self.predict,
            self.attack,
            self.renderer,
            self.references,
            self.patch,
            self.source,
            self.fabric.device,
            (self.seed, purpose),
        )


def check_tasks(attack: Attack, victims: Mapping[str, Victim]) -> None:
    """Before any of ``victims`` is asked.

    Raises:
        InputError: one is for another task.
    """
    for name, victim in victims.items():
        if victim.task != attack.task:
            raise InputError(f"victims: expected victims for {attack.task}, got {name} for {victim.task}")


def bind_victim(
    attack: Attack, victim: Victim, source: Source, fabric: Fabric
) -> tuple[Attack, Callable[[Tensor], Any], Source]:
    """One of several victims of an attack, on the device.

    Returns:
        a copy of the attack that knows the victim, the victim's answers in the run's precision, and the scenes that the
        attack can use on it.

    Raises:
        InputError: the attack does not fit the victim or the scenes.
    """
    attack = attack.bound(victim, source)
    victim.to(fabric.device)
    predict = asking(victim, fabric)
    return attack, predict, attack.scenes(source, predict)


def asking(victim: Victim, fabric: Fabric) -> Callable[[Tensor], Any]:
    """The victim's outputs in the fabric's precision, for ``frames [B, T, 3, H, W]`` on any device.

    It raises a VictimError where the victim fails, and an InputError where its first output cannot be one of its task.
    """
    checked = False

    def ask(frames: Tensor) -> Any:
        nonlocal checked
        output = _check_finite(victim, _answer(victim, frames, fabric))
        if not checked:
            contract.check_output(victim, frames, output)
            checked = True
        return output

    return ask


def _answer(victim: Victim, frames: Tensor, fabric: Fabric, fast: Callable[[Tensor], Any] | None = None) -> Any:
    """The victim's output, or a VictimError of one line, in whatever way it fails; ``fast`` is the same, but faster."""
    try:
        with fabric.autocast():
            return (victim if fast is None else fast)(frames.to(fabric.device))
    except (InputError, VictimError):
        raise
    except (Exception, SystemExit) as error:  # of somebody else's code
        raise VictimError(f"victim {victim.name}: expected an answer, got '{one_line(error)}'") from error


def _check_finite(victim: Victim, output: Any) -> Any:
    """``output``, where it is finite.

    Raises:
        VictimError: it is not.
    """
    if not _finite(output):
        raise VictimError(f"victim {victim.name}: expected finite numbers, got NaN or infinite ones")
    return output


def _finite(output: Any) -> bool:
    """Of a tensor, or of an ensemble's tuple with None where a member was not asked."""
    if isinstance(output, Tensor):
        return bool(output.isfinite().all())
    return output is None or all(map(_finite, output))


def spread(indices: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``indices``, evenly spread."""
    if len(indices) <= most:
        return list(indices)
    return [indices[i * len(indices) // most] for i in range(most)]
