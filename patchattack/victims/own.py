"""What a victim of the user's own needs, whatever it is made of: code that is found, an input, classes, units."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.devices import constant
from patchattack.errors import InputError, one_line
from patchattack.names import class_names
from patchattack.victims.victim import (
    ClassificationVictim,
    DepthVictim,
    DetectionVictim,
    FlowVictim,
    Victim,
    resize,
)

SHAPES = {
    "classification": "[B, K]",
    "depth": "[B, 1, h, w] or [B, h, w]",
    "flow": "[B, 2, h, w] of its input's size",
    "detection": "[B, A, 4 + K]",
}


@dataclass(frozen=True)
class Output:
    """What a network of the user's own is for, and how it becomes a victim of its task.

    Attributes:
        task: "classification", "depth", "flow" or "detection".
        size: ``(h, w)`` of the network's input, to which frames are resized; None pads them to ``multiple``.
        multiple: both sides of the network's input are divisible by it; a classifier has ``size`` for that.
        classes: names in the order of the outputs, or a file of them (one per line, or JSON: a list, or an object
            from numbers to names); None numbers them.
        is_metric: depth: the output is metres; otherwise inverse depth up to scale and shift, larger where nearer.
        depth_range: depth: nearest and farthest metres that a metric network can express.
        scale: depth: the network's output is multiplied by it ...
        shift: depth: ... then this is added ...
        inverse: depth: ... then one is divided by it. Disparity of a metric network is ``is_metric`` and ``inverse``.
        centres: detection: a box is its centre, width and height, instead of two corners.
    """

    task: str
    size: Sequence[int] | None = None
    multiple: int = 1
    classes: Sequence[str] | str | None = None
    is_metric: bool = False
    depth_range: Sequence[float] = (0.0, math.inf)
    scale: float = 1.0
    shift: float = 0.0
    inverse: bool = False
    centres: bool = False

    def check(self, kind: str, flow_has_size: bool = False) -> None:
        """Refuse what no network of the task can have.

        Args:
            kind: what the victim is called in messages, as "custom".
            flow_has_size: a flow network of this kind may have an input of fixed size.

        Raises:
            InputError: no such task, sizes that cannot be, or options of another task.
        """
        task, size = self.task, self.size
        if task not in SHAPES:
            raise InputError(f"victim.task: expected one of {', '.join(SHAPES)}, got {task}")
        if (size is not None and (len(size) != 2 or min(size) < 1)) or self.multiple < 1:
            raise InputError(
                f"victim {kind}: expected size [h,w] or null and multiple >= 1, got size={size} and "
                f"multiple={self.multiple}"
            )
        if self.centres and task != "detection":
            raise InputError(f"victim.centres: expected false for {task}, which has no boxes, got true")
        units = self.is_metric, self.scale, self.shift, self.inverse
        ignored = {
            "size": task == "flow" and size is not None and not flow_has_size,
            "multiple": task == "classification" and self.multiple != 1,
            "is_metric, scale, shift and inverse": task != "depth" and units != (False, 1.0, 0.0, False),
            "classes": task in ("flow", "depth") and self.classes is not None,
        }
        if any(ignored.values()):
            names = "; ".join(name for name, given in ignored.items() if given)
            raise InputError(f"victim {kind}: expected options of a {task} network, got {names} too; leave them out")

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The size, as victims take it."""
        return None if self.size is None else (self.size[0], self.size[1])

    @property
    def trial_size(self) -> tuple[int, int]:
        """``(h, w)`` of images that the network can take."""
        return self.fixed_size or (-(-128 // self.multiple) * self.multiple,) * 2

    def victim(self, network: nn.Module, name: str, count: int) -> Victim:
        """``network``, which takes images in [0, 1], as a victim.

        Args:
            network: from images ``[B, 3, h, w]`` (flow: two of them) to what :data:`SHAPES` has for the task.
            name: of the victim.
            count: of the classes that it tells apart; 0 without.

        Raises:
            InputError: another number of names.
        """
        if self.task == "flow":
            return _Flow(network, name, self.fixed_size, self.multiple)
        if self.task == "depth":
            nearest, farthest = self.depth_range
            units = self.scale, self.shift, self.inverse
            return _Depth(network, name, units, self.is_metric, (nearest, farthest), self.fixed_size, self.multiple)
        names = choose_class_names(self.classes, name, count)
        if self.task == "detection":
            return _Detection(network, name, names, self.fixed_size, self.multiple, self.centres)
        return ClassificationVictim(network, name, names, self.fixed_size)


class Prepared(nn.Module):
    """The user's network between its own idea of an image, ``[B, 3, h, w]`` RGB in [0, 1] here, and of an output.

    Args:
        network: takes images ``[B, 3, h, w]``, one argument each.
        bgr: it takes blue first.
        ends: of its input's range, before ``mean`` and ``std``.
        mean: subtracted then, in units of the range and in the network's order of channels.
        std: divided by then.
        output: where the output lies in what it returns: keys and indices joined by points; "" for all of it.

    Raises:
        InputError: a range that is none.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        network: nn.Module,
        bgr: bool,
        ends: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        output: str = "",
    ) -> None:
        super().__init__()
        if len(ends) != 2 or len(mean) != 3 or len(std) != 3 or 0 in std:
            raise InputError(
                "victim: expected range [low,high], mean of three channels and std of three other than 0, "
                f"got range={list(ends)}, mean={list(mean)} and std={list(std)}"
            )
        self.network, self.bgr = network, bgr
        self.path = output.split(".") if output else []
        low, high = ((torch.tensor([end] * 3) - torch.tensor(mean)) / torch.tensor(std) for end in ends)
        self.register_buffer("low", low.view(3, 1, 1), persistent=False)  # what 0 becomes
        self.register_buffer("high", high.view(3, 1, 1), persistent=False)  # what 1 becomes

    def forward(self, *images: Tensor) -> Any:
        """What the network makes of ``images``, or the part of it that is meant."""
        given = (image.flip(1) if self.bgr else image for image in images)
        found = self.network(*(self.low + (self.high - self.low) * image for image in given))
        for step in self.path:
            found = found[step] if isinstance(found, Mapping) else found[int(step)]
        return found


class _Depth(DepthVictim):
    def __init__(self, network: nn.Module, name: str, units: tuple[float, float, bool], *given: Any) -> None:
        super().__init__(network, name, *given)
        self.scale, self.shift, self.inverse = units

    def depth(self, images: Tensor) -> Tensor:
        found = self.network(images)
        found = (found.unsqueeze(1) if found.ndim == 3 else found) * self.scale + self.shift
        return 1 / found if self.inverse else found


class _Flow(FlowVictim):
    def __init__(self, network: nn.Module, name: str, size: tuple[int, int] | None, multiple: int) -> None:
        super().__init__(network, name, multiple)
        self.size = size

    def flow(self, frames: Tensor) -> Tensor:
        if self.size is None:
            return self.network(*frames.unbind(1))
        height, width = frames.shape[-2:]
        found = self.network(*(resize(frame, self.size) for frame in frames.unbind(1)))
        stretch = constant((width / self.size[1], height / self.size[0]), found.dtype, found.device).view(2, 1, 1)
        return resize(found, (height, width)) * stretch


class _Detection(DetectionVictim):
    def __init__(
        self,
        network: nn.Module,
        name: str,
        classes: Sequence[str],
        size: tuple[int, int] | None,
        multiple: int,
        centres: bool,
    ) -> None:
        super().__init__(network, name, classes, size, multiple)
        self.centres = centres

    def candidates(self, images: Tensor) -> Tensor:
        found = self.network(images)
        if not self.centres:
            return found
        middle, half = found[..., :2], found[..., 2:4] / 2
        return torch.cat([middle - half, middle + half, found[..., 4:]], dim=-1)


def import_object(name: str) -> Any:
    """What ``my.module.name`` or ``path/to/file.py:name`` names.

    Its folder joins the end of Python's path: the user's file imports its neighbours.
    """
    place, _, attribute = name.rpartition(":" if ":" in name else ".")
    path = Path(place).expanduser() if ":" in name else Path("module.py")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    if ":" not in name:
        return getattr(importlib.import_module(place), attribute)
    spec = importlib.util.spec_from_file_location(f"custom_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    return getattr(module, attribute)


def read_classes(classes: Sequence[str] | str | None) -> list[str] | None:
    """The names, from the file of them if need be; None where none are given.

    Raises:
        InputError: the file cannot be read.
    """
    if classes is None or not isinstance(classes, str):
        return None if classes is None else list(class_names(classes, "victim.classes"))
    path = Path(classes).expanduser()
    try:
        text = path.read_text()
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        found = json.loads(text)
        if isinstance(found, dict):
            found = [found[key] for key in sorted(found, key=int)]
        return list(class_names(found, path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"victim.classes: expected names, or a file with one per line or a JSON list, got {path}: "
            f"{error_text(error)}"
        ) from error


def choose_class_names(
    classes: Sequence[str] | str | None, victim: str, count: int, known: Sequence[str] = ()
) -> list[str]:
    """The names of a victim's ``count`` classes: those that are given, else those ``known`` where they are as many.

    Args:
        classes: names, a file of them, or None.
        victim: that tells them apart.
        count: how many it does.
        known: names of the classes that the network is published with.

    Raises:
        InputError: another number of names, or the file cannot be read.
    """
    names = read_classes(classes)
    if names is None:
        return list(known) if len(known) == count else [f"class {number}" for number in range(count)]
    if len(names) != count:
        raise InputError(
            f"victim.classes: expected {count} names, as many as {victim} tells apart, got {len(names)}; "
            "give one for each output in order, or null to number them"
        )
    return names


def error_text(error: Exception) -> str:
    """What somebody else's code ended in, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
