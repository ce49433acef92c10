"""Where a run stands, on disk and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
from patchattack.job import Job

FILE = "checkpoint.safetensors"  # of a run's folder


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
    values = {row: _apart(value, f"optimizer.{row}", tensors) for row, value in optimizer["state"].items()}
    state = {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "best_loss": progress.best_loss,
        "random_score": progress.random_score,
        "queries": job.queries,
        "optimizer": optimizer["param_groups"],
        "optimizer_state": values,
        "schedule": job.schedule.state_dict(),
    }
    text = files.json_text(_apart(state, "", tensors))
    whole = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"state": text})
    files.write(folder / FILE, whole)
    files.write_json(folder / "state.json", state)
    if job.journal is not None:
        job.journal.checkpoint()


def _apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON has it: tensors by their names, which begin with ``name``, in ``tensors``; NaN as text."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _apart(one, f"{name}.{key}", tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_apart(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value


def _together(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`_apart` took apart."""
    if isinstance(plain, dict):
        if plain.keys() == {"tensor"}:
            return tensors[plain["tensor"]]
        if plain.keys() == {"number"}:
            return float(plain["number"])
        return {key: _together(one, tensors) for key, one in plain.items()}
    return [_together(one, tensors) for one in plain] if isinstance(plain, list) else plain


def resume(job: Job, folder: Path) -> Progress:
    """Restore the job from ``checkpoint.safetensors`` and return where the run stood.

    Raises:
        InputError: there is no checkpoint, or it is another patch's.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{path}: expected the checkpoint of a run, got none: it stopped before the first one; start it again with "
            f"its command and output={folder}"
        )
    try:
        with safetensors.safe_open(path, "pt", device=str(job.fabric.device)) as file:
            text = file.metadata()["state"]
            # Copies: sums of what lies at odd addresses may differ in the last digit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state = _together(json.loads(text), tensors)
        values = {int(row): value for row, value in state["optimizer_state"].items()}
        steps = {name: files.integer(state[name]) for name in ("step", "best_step", "queries")}
        scores = {name: _score(state[name]) for name in ("best_score", "best_loss", "random_score")}
        free, best = tensors["free"], tensors["best"]
        for name, texture in (("free", free), ("best", best)):
            if texture.shape != job.patch.free.shape or not texture.isfinite().all():
                raise ValueError(
                    f"{name}: expected finite values of shape {list(job.patch.free.shape)}, got others of shape "
                    f"{list(texture.shape)}"
                )
        if best.min() < 0 or best.max() > 1:
            raise ValueError("best: expected a texture in [0, 1]")
        job.optimizer.load_state_dict({"state": values, "param_groups": state["optimizer"]})
        job.schedule.load_state_dict(state["schedule"])
    except Exception as error:  # of torch, whose optimisers and schedules take what they are given as it is
        raise InputError(
            f"{path}: expected the checkpoint of a run, got {error!r}; start a new run (drop resume=)"
        ) from error
    job.queries = steps.pop("queries")
    with torch.no_grad():
        job.patch.free.copy_(free)
    return Progress(best=best, **steps, **scores)


def _score(value: Any) -> float:
    """A number, NaN and infinity among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)
