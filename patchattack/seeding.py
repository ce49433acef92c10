"""Random numbers, named by integers: a generator for each purpose, or numbers for all scenes of a batch at once.

A draw depends on what it is for (the run's seed, the step, the scene) and on nothing that happened before it. So a
resumed run needs no saved generator state, evaluation cannot disturb training, and several processes agree.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchattack.devices import constant, transfer

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio, odd: SplitMix64's step from number to number
_PREPARED = 16  # numbers of each stream that are made together with those of the others
_Integers = TypeVar("_Integers", Tensor, np.ndarray[Any, np.dtype[np.int64]])


def generator(*key: int) -> torch.Generator:
    """A generator on the host whose stream is fixed by ``key`` (non-negative integers, such as seed and step)."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """float32 ``shape`` on the host, uniform in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def mix_(values: _Integers) -> _Integers:
    """int64 ``[...]`` as 64 random bits each, as SplitMix64 makes them of its states (Steele, Lea and Flood 2014).

    In place: a bijection, the same on every device. A shift of int64 brings the sign along, which is masked away.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        upper = values >> shift
        upper &= 2 ** (64 - shift) - 1
        values ^= upper
        if factor is not None:
            values *= factor - 2**64
    return values


def numbers(keys: Sequence[Sequence[int]]) -> Numbers:
    """Numbers on the host for N rows, each fixed by its own of ``keys``.

    Args:
        keys: N of one length, of integers from 0 to 2⁶⁴ - 1, such as seed, purpose, step and place in the batch.
    """
    columns = np.array(keys, dtype=np.uint64).view(np.int64)
    return Numbers(torch.from_numpy(mix_(columns + np.arange(1, columns.shape[1] + 1) * GAMMA).sum(axis=1)))


class Numbers:
    """Random numbers for N rows, such as scenes, in a few operations for all of them.

    What a row gets is fixed by its own key: the same in any batch, in any process and on any device, but for the last
    bits of normal numbers, which are the device's. Every call gives the next numbers.

    Args:
        states: ``[N]`` int64, where each row begins to count.
        prepared: ``[N, n]`` the first of their uniform numbers.
    """

    def __init__(self, states: Tensor, prepared: Tensor | None = None) -> None:
        self._states, self._prepared, self._used = states, prepared, 0

    def __len__(self) -> int:
        return len(self._states)

    def streams(self, counts: Mapping[str, int], device: torch.device | str = "cpu") -> list[Numbers]:
        """Numbers of their own for each name, from their beginning, on ``device``; of numbers on the host.

        What a stream gives depends on its name and on nothing else of ``counts``.

        Args:
            counts: name to the number of rows that each row becomes, such as the frames of a scene; they are
                neighbours.
            device: where the numbers are.
        """
        if not counts:
            return []
        # Integers of a few rows are numpy's: the host is done before a GPU were asked.
        rows = self._states.numpy()[:, None]
        states = np.concatenate([(rows + _beginnings(name, count)).ravel() for name, count in counts.items()])
        prepared = _unit(mix_(states[:, None] + np.arange(1, _PREPARED + 1) * GAMMA)).astype(np.float32)
        lengths = [len(self) * count for count in counts.values()]
        parts = (transfer(torch.from_numpy(each), device).split(lengths) for each in (states, prepared))
        return [Numbers(*part) for part in zip(*parts, strict=True)]

    def unit(self, count: int) -> Tensor:
        """``[N, count]`` float32, uniform in [0, 1): multiples of 2⁻²⁴."""
        first, self._used = self._used, self._used + count
        if self._prepared is not None and self._used <= self._prepared.shape[1]:
            return self._prepared.narrow(1, first, count)
        return _unit(_bits(self._states, first, count))

    def uniform(self, *ranges: tuple[float, float]) -> Tensor:
        """``[N, len(ranges)]`` float32, each uniform in its range [low, high)."""
        spans, lows = tuple(high - low for low, high in ranges), tuple(low for low, _ in ranges)
        span, low = (constant(values, torch.float32, self._states.device) for values in (spans, lows))
        return (self.unit(len(ranges)) * span).add_(low)  # not fused: the same on every device

    def normal(self, *shape: int) -> Tensor:
        """``[N, *shape]`` float32, standard normal by the transform of Box and Muller (1958), up to 5.8 in size."""
        count = math.prod(shape)
        pairs = (count + 1) // 2
        first, self._used = self._used, self._used + pairs
        upper, lower = _bits(self._states, first, pairs).view(torch.int32).split(pairs, dim=1)
        radius = ((upper >> 8).add_(2**23 + 1) * 2.0**-24).log_().mul_(-2).sqrt_()  # of ones in (0, 1]
        angle = lower * (math.pi * 2.0**-31)
        both = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
        return both[:, :count].unflatten(1, shape)


@lru_cache(maxsize=64)
def _beginnings(name: str, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``[count]`` int64: how far the stream of a name, and each of its rows, begins from others."""
    return mix_((zlib.crc32(name.encode()) << 32) - 2**63 + np.arange(count))


@lru_cache(maxsize=64)
def _steps(first: int, count: int, device: torch.device) -> Tensor:
    """``[count]`` int64: how far SplitMix64's states from the ``first`` on are from where it begins."""
    return transfer(torch.from_numpy(np.arange(first + 1, first + count + 1) * GAMMA), device)


def _bits(states: Tensor, first: int, count: int) -> Tensor:
    """``[N, count]`` int64: SplitMix64's numbers from the ``first`` on, for each of ``states [N]``."""
    return mix_(states.unsqueeze(1) + _steps(first, count, states.device))


def _unit(bits: Any) -> Any:
    """The upper 24 bits of int64 ``[...]``, a tensor or an array, as numbers in [0, 1)."""
    return (bits >> 40) * 2.0**-24 + 0.5
