"""What every suite measures with: interleaved pairs, medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

Work = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        device: where to run.
        pairs: measurements of either side of a ratio.
        small: sizes that show that a suite runs, and nothing else.
        weights, images: SqueezeNet's weights and a folder of photographs, for the race to a success.
    """

    device: torch.device
    pairs: int
    small: bool = False
    weights: Path | None = None
    images: Path | None = None


@dataclass(frozen=True)
class Row:
    """One result, less is better.

    Attributes:
        name: what was measured.
        unit: of the numbers.
        low, median, high: over the measurements, ``low`` and ``high`` the quartiles.
        note: what is behind them.
    """

    name: str
    unit: str
    low: float
    median: float
    high: float
    note: str = ""

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float], note: str = "") -> Row:
        """Of measured ``values``, one or more."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
        low, median, high = (float(f"{value:.4g}") for value in quartiles)
        return cls(name, unit, low, median, high, note)


class Operations(TorchDispatchMode):
    """Counts the operations that are asked of a device, backward ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def seconds(work: Work, device: torch.device) -> float:
    """Of one call, the device's work included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def in_turn(name: str, first: Work, second: Work, options: Options) -> list[tuple[float, float]]:
    """Seconds of both in each pair, after a call of each; which one goes first changes from pair to pair."""
    first()
    second()
    pairs = []
    for number in tqdm(range(options.pairs), desc=name, leave=False, disable=None):
        if number % 2:
            one = seconds(first, options.device)
            pairs.append((one, seconds(second, options.device)))
        else:
            other = seconds(second, options.device)
            pairs.append((seconds(first, options.device), other))
    return pairs


def ratio(name: str, first: Work, second: Work, options: Options, per: float = 1.0) -> Row:
    """Of the times of ``first`` and ``second``; with ``per``, of those of one of so many parts of ``first``."""
    pairs = in_turn(name, first, second, options)
    medians = " / ".join(f"{statistics.median(values) * 1000:.3g} ms" for values in zip(*pairs, strict=True))
    return Row.of(name, "ratio", [one / other / per for one, other in pairs], medians)


def milliseconds(name: str, work: Work, options: Options) -> Row:
    """Of a call of ``work``."""
    work()
    return Row.of(name, "ms", [1000 * seconds(work, options.device) for _ in range(options.pairs)])


def difference(name: str, first: Work, second: Work, options: Options) -> Row:
    """Milliseconds that ``first`` takes more than ``second``."""
    pairs = in_turn(name, first, second, options)
    return Row.of(name, "ms more", [1000 * (one - other) for one, other in pairs])
