"""Where a run stands, on disk and back."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from patchattack import files
from patchattack.errors import InputError
from patchattack.hand_drawn import HandDrawn
from patchattack.job import Job, Mode

FILE = "checkpoint.safetensors"  # of a run's folder


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        best: ``[3, h, w]`` the texture that validation chose.
        best_step: when it was found.
        best_score: its primary metric on the validation scenes, signed so that lower is stronger.
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
    """The state of a run that has not started."""
    return Progress(0, job.patch().detach().clone())


def save(job: Job, folder: Path, progress: Progress) -> None:
    """Write ``checkpoint.safetensors``, all that a resumed run needs, and ``state.json``, the same numbers to read.

    The checkpoint is one file, so that it is whole at any moment: numbers travel in its header as JSON.
    """
    if job.fabric.global_rank > 0:
        return
    optimizer = job.optimizer.state_dict()
    tensors = {"parameter": job.patch.parameter.detach(), "best": progress.best}
    values = {row: _flatten(value, f"optimizer.{row}", tensors) for row, value in optimizer["state"].items()}
    state = {
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "best_loss": progress.best_loss,
        "random_score": progress.random_score,
        "hand_drawn": None if progress.hand_drawn is None else progress.hand_drawn.facts(),
        "queries": job.queries,
        "mode": None if job.mode is None else asdict(job.mode),
        "optimizer": optimizer["param_groups"],
        "optimizer_state": values,
        "schedule": job.schedule.state_dict(),
    }
    text = files.json_text(_flatten(state, "", tensors))
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    about = {"state": f"{digest(text, tensors)} {text}"}  # one entry: of several, the order is another every time
    files.write(folder / FILE, safetensors.torch.save(tensors, about))
    files.write_json(folder / "state.json", state)
    if job.journal is not None:
        job.journal.checkpoint()


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Of a checkpoint's ``text`` and ``tensors``: damage to what an optimiser takes as it is would show too late."""
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON has it: tensors by their names, which begin with ``name``, in ``tensors``; NaN as text."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {key: _flatten(one, f"{name}.{key}", tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_flatten(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value


def _unflatten(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`_flatten` took apart."""
    if isinstance(plain, dict):
        if plain.keys() == {"tensor"}:
            return tensors[plain["tensor"]]
        if plain.keys() == {"number"}:
            return float(plain["number"])
        return {key: _unflatten(one, tensors) for key, one in plain.items()}
    return [_unflatten(one, tensors) for one in plain] if isinstance(plain, list) else plain


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
            known, _, text = file.metadata()["state"].partition(" ")
            # Copies: sums of what lies at odd addresses may differ in the last digit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if known != digest(text, tensors):
            raise ValueError("a damaged one, or one of an earlier version")
        state = _unflatten(json.loads(text), tensors)
        numbers: dict[str, Any] = {name: files.integer(state[name]) for name in ("step", "best_step", "queries")}
        numbers |= {name: _score(state[name]) for name in ("best_score", "best_loss", "random_score")}
        hand_drawn = None if state["hand_drawn"] is None else HandDrawn.read(state["hand_drawn"])
        mode = None if state.get("mode") is None else Mode(**state["mode"])
        parameter, best = tensors["parameter"], tensors["best"]
        _check_textures(parameter, best, *job.patch.mask.shape[1:])
        _load(job, parameter, copy.deepcopy(state))
        _try_step(job)
        _load(job, parameter, state)
    except Exception as error:  # torch's optimisers and schedules raise anything
        raise InputError(
            f"{path}: expected the checkpoint of a run, got {error!r}; start a new run (drop resume=)"
        ) from error
    job.queries, job.mode = numbers.pop("queries"), mode
    return Progress(best=best, hand_drawn=hand_drawn, **numbers)


def _load(job: Job, parameter: Tensor, state: dict[str, Any]) -> None:
    """Give the patch, the optimiser and the schedule of ``job`` what a checkpoint holds."""
    job.patch.hold(parameter)
    memories = {int(row): value for row, value in state["optimizer_state"].items()}
    job.optimizer.load_state_dict({"state": memories, "param_groups": state["optimizer"]})
    job.schedule.load_state_dict(state["schedule"])


def _try_step(job: Job) -> None:
    """Let the optimiser and the schedule take a step: they accept any state, and fail where they use it.

    Raises:
        Exception: whatever a state leads to that no optimiser or schedule has left.
        ValueError: the step leads to NaN or infinity.
    """
    parameter = job.patch.parameter

    def slope() -> Tensor:
        parameter.grad = torch.ones_like(parameter)
        return torch.zeros((), device=parameter.device)

    slope()
    job.optimizer.step(slope)  # type: ignore[arg-type]  # torch's closures return tensors too
    job.schedule.step()
    parameter.grad = None
    if not parameter.isfinite().all():
        raise ValueError("an optimiser's state that leads to NaN")


def _check_textures(parameter: Tensor, best: Tensor, height: int, width: int) -> None:
    """Refuse what is no texture of a patch of ``height`` and ``width`` texels.

    Raises:
        ValueError: another shape, NaN, or a best one that is outside [0, 1].
    """
    if best.shape != (3, height, width) or not (best.min() >= 0 and best.max() <= 1):
        raise ValueError(f"best: expected [3, {height}, {width}] in [0, 1], got another texture of {list(best.shape)}")
    coarse = (
        parameter.ndim in (3, 4)
        and parameter.shape[-3] == 3
        and parameter.shape[-2] <= height
        and parameter.shape[-1] <= width
    )
    if not (coarse and parameter.isfinite().all()):
        raise ValueError(
            f"parameter: expected finite [3, h, w] of at most {height} × {width}, got {list(parameter.shape)}"
        )


def _score(value: Any) -> float:
    """A number, NaN and infinity among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)
