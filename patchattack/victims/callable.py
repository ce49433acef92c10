"""A Python function as a black-box (query-only) victim.

From the command line::

    patchattack train attack=classification optimizer=nes victim=callable victim.task=classification \\
        victim.function=path/to/file.py:predict "victim.classes=[cat,dog]"

The function is found from the working directory as ``my.module.predict`` or as ``path/to/file.py:predict``. It is
called with ``images [B, h, w, 3]`` RGB, as uint8 or as float32 in [0, 1]; for flow with two such arrays, the first and
the second frames. What it may return is in :mod:`patchattack.victims.answers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from patchattack.errors import InputError
from patchattack.victims.answers import answering, as_bytes
from patchattack.victims.own import Output, error_text, import_object
from patchattack.victims.victim import Victim


def build_callable(
    task: str,
    function: str,
    answer: str | None = None,
    images: str = "uint8",
    size: Sequence[int] | None = None,
    multiple: int = 1,
    classes: Sequence[str] | str | None = None,
    is_metric: bool = False,
    depth_range: Sequence[float] = (0.0, math.inf),
    scale: float = 1.0,
    shift: float = 0.0,
    inverse: bool = False,
    centres: bool = False,
) -> Victim:
    """The function as a victim. It is called once, so that what does not fit shows at once.

    Args:
        task: "classification", "depth", "flow" or "detection".
        function: ``my.module.predict`` or ``path/to/file.py:predict``.
        answer: what it returns, as in :mod:`patchattack.victims.answers`; None is the first that the task has there.
        images: "uint8", as of files and cameras, or "float": float32 in [0, 1], not rounded.
        size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres: as of
            :class:`patchattack.victims.own.Output`.

    Raises:
        InputError: an option does not fit the task, there is no such function, or it fails or returns something else.
    """
    output = Output(task, size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres)
    output.check("callable")
    if images not in ("uint8", "float"):
        raise InputError(f"victim.images: expected uint8 or float, got {images}")
    try:
        predict = import_object(function)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"victim.function: expected a function as my.module.predict (seen from {Path.cwd()}) or "
            f"path/to/file.py:predict, got {function}: {error_text(error)}"
        ) from error
    if not callable(predict):
        raise InputError(f"victim.function: expected {function} to be a function, got {type(predict).__name__}")

    def ask(*given: Tensor) -> Any:
        arrays = (as_bytes(one) if images == "uint8" else one.permute(0, 2, 3, 1).contiguous().numpy() for one in given)
        return predict(*arrays)

    name = function.replace(":", ".").rpartition(".")[2]
    return answering(output, answer, name, ask, about=f"{function} {task} {answer} {images} {classes}")
