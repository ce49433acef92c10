"""Where a run stands, on disk and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
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
    """

    step: int
    best: Tensor
    best_step: int = 0
    best_score: float = math.inf
    best_loss: float = math.inf
    random_score: float = math.nan


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
    for row, values in optimizer["state"].items():
        tensors |= {f"optimizer.{row}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
    state = {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "best_loss": progress.best_loss,
        "random_score": progress.random_score,
        "optimizer": optimizer["param_groups"],
        "schedule": job.schedule.state_dict(),
    }
    text = json.dumps(state, indent=2)
    whole = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"state": text})
    files.write(folder / "checkpoint.safetensors", whole)
    files.write(folder / "state.json", text + "\n")


def resume(job: Job, folder: Path) -> Progress:
    """Restore the job from ``checkpoint.safetensors`` and return where the run stood.

    Raises:
        InputError: there is no checkpoint, or it is another patch's.
    """
    path = folder / "checkpoint.safetensors"
    try:
        with safetensors.safe_open(path, "pt", device=str(job.fabric.device)) as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            job.patch.free.copy_(tensors["free"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: expected the checkpoint of a run, got {error!r}; start anew without resume"
        ) from error
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, row, key = name.split(".", 2)
            values.setdefault(int(row), {})[key] = tensor
    job.optimizer.load_state_dict({"state": values, "param_groups": state["optimizer"]})
    job.schedule.load_state_dict(state["schedule"])
    numbers = {name: state[name] for name in ("step", "best_step", "best_score", "best_loss", "random_score")}
    return Progress(best=tensors["best"], **numbers)
