"""Where a run stands, on disk and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
from patchattack.hand_drawn import HandDrawn
from patchattack.job import Job


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        best: ``[3, h, w]`` the texture that validation chose.
        best_step: when it was found.
        best_score: its headline metric on the validation scenes, signed so that lower is stronger.
        best_loss: its attack loss there, which decides between patches of the same score.
        random_score: the random patch's.
        hand_drawn: the best hand-drawn texture among the starts, if any was tried.
    """

    step: int
    best: Tensor
    best_step: int = 0
    best_score: float = math.inf
    best_loss: float = math.inf
    random_score: float = math.nan
    hand_drawn: HandDrawn | None = None


def begin(job: Job) -> Progress:
    """The state of a run that has not begun."""
    return Progress(0, job.patch().detach().clone())


def save(job: Job, folder: Path, progress: Progress) -> None:
    """Write ``checkpoint.safetensors``, all that a resumed run needs, and ``state.json``, the same numbers to read.

    The checkpoint is one file, so that it is whole at any moment: numbers travel in its header as JSON.
    """
    if job.fabric.global_rank > 0:
        return
    optimizer = job.optimizer.state_dict()
    tensors = {"free": job.patch.free.detach(), "best": progress.best}
    values = {row: _apart(value, f"optimizer.{row}", tensors) for row, value in optimizer["state"].items()}
    state = {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "best_loss": progress.best_loss,
        "random_score": progress.random_score,
        "hand_drawn": None if progress.hand_drawn is None else progress.hand_drawn.facts(),
        "queries": job.queries,
        "optimizer": optimizer["param_groups"],
        "optimizer_state": values,
        "schedule": job.schedule.state_dict(),
    }
    text = json.dumps(state, indent=2)
    whole = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"state": text})
    files.write(folder / "checkpoint.safetensors", whole)
    files.write(folder / "state.json", text + "\n")
    if job.journal is not None:
        job.journal.checkpoint()


def _apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON has it, its tensors by their names, which begin with ``name``, in ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _apart(one, f"{name}.{key}", tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_apart(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
    return value


def _together(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`_apart` took apart."""
    if isinstance(plain, dict):
        if plain.keys() == {"tensor"}:
            return tensors[plain["tensor"]]
        return {key: _together(one, tensors) for key, one in plain.items()}
    return [_together(one, tensors) for one in plain] if isinstance(plain, list) else plain


def resume(job: Job, folder: Path) -> Progress:
    """Restore the job from ``checkpoint.safetensors`` and return where the run stood.

    Raises:
        InputError: there is no checkpoint, or it is another patch's.
    """
    path = folder / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, "pt", device=str(job.fabric.device)) as file:
            state = json.loads(file.metadata()["state"])
            # Copies: sums of what lies at odd addresses may differ in the last digit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        values = {int(row): _together(value, tensors) for row, value in state["optimizer_state"].items()}
        job.queries = state["queries"]
        job.patch.hold(tensors["free"])
        hand_drawn = None if state["hand_drawn"] is None else HandDrawn.read(state["hand_drawn"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: expected the checkpoint of a run, got {error!r}; start anew without resume"
        ) from error
    job.optimizer.load_state_dict({"state": values, "param_groups": state["optimizer"]})
    job.schedule.load_state_dict(state["schedule"])
    numbers = {name: state[name] for name in ("step", "best_step", "best_score", "best_loss", "random_score")}
    return Progress(best=tensors["best"], hand_drawn=hand_drawn, **numbers)
