"""Random numbers: one generator per purpose, named by integers.

A draw depends on what it is for (the run's seed, the step, the scene) and on nothing that happened before it. So a
resumed run needs no saved generator state, evaluation cannot disturb training, and several processes agree.
"""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A generator on the host whose stream is fixed by ``key`` (non-negative integers, such as seed and step)."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    """float32 ``shape`` on the host, uniform in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low
