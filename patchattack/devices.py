"""Ways onto a device on which the host does not wait for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values``, nested as deep as the tensor has dimensions, made once for each device; nobody may change it."""
    return transfer(torch.tensor(values, dtype=dtype), device)


@lru_cache(maxsize=256)
def numbered(count: int, device: torch.device) -> Tensor:
    """``[count, 1, 1]`` int64 from 0 on: which image of a batch, for indices; nobody may change it."""
    return torch.arange(count, device=device).view(-1, 1, 1)


def transfer(value: Tensor, device: torch.device | str) -> Tensor:
    """``value`` on ``device``; from the host to a GPU through pinned memory, so that the host goes on at once."""
    device = torch.device(device)
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
