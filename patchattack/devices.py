"""Ways onto a device on which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def transfer(value: Tensor, device: torch.device | str) -> Tensor:
    """``value`` on ``device``; from the host to a GPU through pinned memory, so that the host goes on at once."""
    device = torch.device(device)
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
