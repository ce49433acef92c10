"""Any network of the user's own.

From the command line, where a function or class makes the network::

    patchattack train attack=depth victim=custom victim.task=depth victim.factory=my.module.build \\
        victim.weights=weights.pth "victim.size=[192,640]"

The factory is found from the working directory as ``my.module.build`` or as ``path/to/file.py:build``, and is called
with ``victim.factory_args``. What it returns is a ``torch.nn.Module`` that takes

- ``images [B, 3, h, w]`` and gives logits ``[B, K]``, depth ``[B, 1, h', w']`` or ``[B, h', w']``, or candidates
  ``[B, A, 4 + K]`` (left, top, right, bottom in pixels of its input, then scores in [0, 1], before non-maximum
  suppression);
- two such images, one argument each, and gives flow ``[B, 2, h, w]`` in pixels.

A network that wants or gives anything else is wrapped in a few lines by its factory, or becomes a victim of its own:
a class that derives from the victim of its task in :mod:`patchattack.victims.victim`, builds its network, hands it to
that constructor and overrides the one method that maps prepared frames to the task's output. A YAML with its
``_target_`` in ``conf/victim`` makes it ``victim=NAME``, and ``patchattack check-victim`` tells whether it keeps the
contract: frames ``[B, T, 3, H, W]`` of any size, RGB in [0, 1], to the output of the task in the frames' own pixels,
with gradient to the frames, frozen, in eval mode, and the same for the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims.answers import FLOOR
from patchattack.victims.own import SHAPES, Output, Prepared, error_text, import_object
from patchattack.victims.victim import Victim
from patchattack.victims.weights import initialise, load_weights


def build_custom(
    task: str,
    factory: str,
    factory_args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    trust_checkpoint: bool = False,
    bgr: bool = False,
    range: Sequence[float] = (0.0, 1.0),
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    size: Sequence[int] | None = None,
    multiple: int = 1,
    output: str = "",
    classes: Sequence[str] | str | None = None,
    is_metric: bool = False,
    depth_range: Sequence[float] = (0.0, math.inf),
    scale: float = 1.0,
    shift: float = 0.0,
    inverse: bool = False,
    centres: bool = False,
    answer: str | None = None,
) -> Victim:
    """The network that ``factory`` makes, as a victim. It is tried once, so that what does not fit shows at once.

    Its input is made of frames in this order: ``bgr``, ``range``, ``mean``, ``std``.

    Args:
        task: "classification", "depth", "flow" or "detection".
        factory: ``my.module.build`` or ``path/to/file.py:build``; a function or class that makes the network.
        factory_args: what it is called with.
        weights: a local file; None where the factory loads them.
        trust_checkpoint: read a file of weights that runs code when it is read.
        bgr: the network takes blue first.
        range: of the network's input, such as (0, 255) or (-1, 1), before ``mean`` and ``std``.
        mean: which is subtracted then, in units of ``range`` and in the network's order of channels.
        std: which it is divided by then.
        size: ``(h, w)`` of the network's input, to which frames are resized; None pads them to ``multiple``. A flow
            network takes frames as they are.
        multiple: both sides of the network's input are divisible by it; a classifier has ``size`` for that.
        output: where the output lies in what the network returns: "" for all of it, or keys and indices joined by
            points, as "depth", "-1" or "flows.0".
        classes: names in the order of the outputs, or a file of them (one per line, or JSON: a list, or an object
            from numbers to names); None numbers them.
        is_metric: depth: the output is metres; otherwise inverse depth up to scale and shift, larger where nearer.
        depth_range: depth: nearest and farthest metres that a metric network can express.
        scale: depth: the network's output is multiplied by it ...
        shift: depth: ... then this is added ...
        inverse: depth: ... then one is divided by it. Disparity of a metric network is ``is_metric`` and ``inverse``.
        centres: detection: a box is its centre, width and height, instead of two corners.
        answer: classification: "logits", or "probabilities", whose logarithm is taken; None is logits.

    Raises:
        InputError: an option does not fit the task, there is no such factory, it makes no network, the weights do not
            fit, or the network's output has another shape than its task's, or no gradient to its input.
    """
    meant = Output(task, size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres)
    meant.check("custom")
    answers = (None, "logits", "probabilities") if task == "classification" else (None,)
    if answer not in answers:
        raise InputError(
            f"victim.answer: expected logits or probabilities, for classification alone, got {answer} for {task}"
        )
    made = _call_factory(factory, factory_args or {})
    if weights is not None:
        load_weights(made, weights, trust_checkpoint)
    network = Prepared(made, bgr, range, mean, std, output)
    name = factory.replace(":", ".").rpartition(".")[2]
    count = _outputs(network, task, name, meant.trial_size)
    return meant.victim(nn.Sequential(network, _Logarithm()) if answer == "probabilities" else network, name, count)


class _Logarithm(nn.Module):
    def forward(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp(min=FLOOR).log()


def _call_factory(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What the factory returns."""
    try:
        build = import_object(factory)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"victim.factory: expected a function or class as my.module.build (seen from {Path.cwd()}) or "
            f"path/to/file.py:build, got {factory}: {error_text(error)}"
        ) from error
    try:
        made: object = initialise(lambda: build(**arguments))
    except Exception as error:
        raise InputError(
            f"victim.factory: expected {factory} to make a network of victim.factory_args={dict(arguments)}, "
            f"got {error_text(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"victim.factory: expected {factory} to return a torch.nn.Module, got {type(made).__name__}; "
            "return the network itself"
        )
    return made


def _outputs(network: Prepared, task: str, name: str, size: tuple[int, int]) -> int:
    """How many classes the network tells apart, from a trial on grey images of ``size``; 0 without classes.

    Raises:
        InputError: it fails, or returns something else than its task's output, or without gradient.
    """
    network.requires_grad_(False).eval()
    count = 2 if task == "flow" else 1
    images = [torch.full((1, 3, *size), 0.5, requires_grad=True) for _ in range(count)]
    try:
        found = network(*images)
    except Exception as error:  # of the user's network
        given = "two images" if task == "flow" else "images"
        raise InputError(
            f"victim custom {name}: expected it to take {given} {list(images[0].shape)} and to give what "
            f"victim.output={'.'.join(network.path) or '(all)'} names, got {error_text(error)}; check victim.size, "
            "victim.multiple and victim.output"
        ) from error
    shape = list(found.shape) if isinstance(found, Tensor) else []
    fits = {
        "classification": len(shape) == 2 and shape[0] == 1,
        "depth": len(shape) in (3, 4) and shape[: len(shape) - 2] in ([1], [1, 1]),
        "flow": shape == [1, 2, *size],
        "detection": len(shape) == 3 and shape[0] == 1 and shape[2] > 4,
    }[task]
    if not fits:
        got = f"a tensor {shape}" if isinstance(found, Tensor) else _kind(found)
        raise InputError(
            f"victim custom {name}: expected {SHAPES[task]} for {task}, got {got} for images "
            f"{list(images[0].shape)}; name the part that is meant with victim.output, or reshape it in the factory"
        )
    if not found.requires_grad:
        raise InputError(
            f"victim custom {name}: expected an output with gradient to the images, got one without; "
            "take no_grad, detach and numpy out of its forward"
        )
    return {"classification": shape[-1], "detection": shape[-1] - 4}.get(task, 0)


def _kind(found: object) -> str:
    """What a network returned that is no tensor, with what ``victim.output`` could choose."""
    if isinstance(found, Mapping):
        return f"a {type(found).__name__} of {', '.join(map(str, found))}"
    if isinstance(found, Sequence):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"
