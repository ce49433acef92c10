"""Devices and processes: one of each without Lightning Fabric, whose import alone takes seconds; more with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from patchattack.errors import InputError
from patchattack.job import Fabric, Settings

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class OneDevice:
    """One process on one device: the part of Lightning Fabric that runs use, :class:`patchattack.job.Fabric`.

    Args:
        device: to work on.
        dtype: of mixed precision; None for full precision.
    """

    global_rank, world_size = 0, 1

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device, self.dtype = device, dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision."""
        return contextlib.nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def all_reduce(self, data: Any, *, reduce_op: str) -> Any:
        """``data`` as it is: there is no other process."""
        return data

    def broadcast(self, data: Any) -> Any:
        """``data`` as it is: there is no other process."""
        return data


def start(settings: Settings) -> Fabric:
    """The device that the settings name; of several processes, this one among them.

    Raises:
        InputError: there is no such device, or it cannot do this precision.
    """
    accelerator, cuda = settings.accelerator, torch.cuda
    if accelerator not in ACCELERATORS:
        raise InputError(f"trainer.accelerator: expected auto, cpu, cuda or mps, got {accelerator}")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("trainer.accelerator=mps: expected an Apple GPU, got none; use trainer.accelerator=cpu")
    on_gpu = accelerator in ("cuda", "gpu") or (accelerator == "auto" and cuda.is_available())
    apple = accelerator != "cpu" and not on_gpu and torch.backends.mps.is_available()
    there, what = (1, "Apple GPU") if apple else (os.cpu_count() or 1, "core(s)")
    if on_gpu:
        there, what = cuda.device_count(), "CUDA device(s)"
    if there < settings.devices:
        raise InputError(
            f"trainer.accelerator={accelerator}: expected {settings.devices} {what}, got {there}; "
            "use trainer.accelerator=cpu, or fewer trainer.devices"
        )
    if settings.execution == "captured" and not on_gpu:
        raise InputError("trainer.execution=captured: expected a CUDA device, got none; use compiled or eager")
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and cuda.is_bf16_supported() else "32-true"
    torch.set_flush_denormal(True)  # gradients that vanish through a recurrent network cost a CPU a tenth of a step
    _keep_freed_memory()
    if settings.processes > 1 or precision not in _AUTOCAST:
        return _several(settings, precision)
    return OneDevice(torch.device("cuda:0" if on_gpu else "mps:0" if apple else "cpu"), _AUTOCAST[precision])


def _keep_freed_memory() -> None:
    """Have glibc keep up to a gigabyte of what is freed, as the next step needs as much.

    By default it hands every large block back, and the system clears each page anew: a tenth of a step on a CPU, and
    half the time in which the world renders a scene.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        mallopt(-4, 0)  # M_MMAP_MAX


def _several(settings: Settings, precision: str) -> Fabric:
    """Lightning Fabric, its processes started."""
    from lightning_fabric import Fabric as Lightning

    if settings.nodes > 1 and not {"WORLD_SIZE", "SLURM_NTASKS"} & os.environ.keys():
        raise InputError(
            f"trainer.nodes: expected {settings.nodes} nodes, started by torchrun or srun, got one; on each node type "
            f"torchrun --nnodes={settings.nodes} --nproc-per-node={settings.devices} --node-rank=... "
            "--master-addr=... train.py and the overrides"
        )
    make: Callable[..., Any] = Lightning
    given = {"accelerator": settings.accelerator, "devices": settings.devices, "num_nodes": settings.nodes}
    try:
        fabric = make(**given, precision=precision)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"trainer: expected a device and a precision that Fabric knows, got: {error}") from error
    fabric.launch()
    if fabric.world_size != settings.processes:
        raise InputError(
            f"trainer: expected {settings.processes} processes (devices={settings.devices}, nodes={settings.nodes}), "
            f"got {fabric.world_size}; start as many with torchrun or srun"
        )
    return fabric
