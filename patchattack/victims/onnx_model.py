"""An ONNX file as a black-box (query-only) victim, through onnxruntime.

From the command line::

    patchattack train attack=classification optimizer=nes victim=onnx victim.task=classification \\
        victim.file=model.onnx victim.classes=names.txt \\
        "victim.mean=[0.485,0.456,0.406]" "victim.std=[0.229,0.224,0.225]"

The file itself says what its input is called, whether its channels come first or last, its size and its kind of
numbers. It has one input of RGB images, ``[B, 3, h, w]`` or ``[B, h, w, 3]``, or two of them for flow; where ``B`` is
fixed, images go through it in groups of that size. What its output may be is in :mod:`patchattack.victims.answers`;
candidates may also be ``[B, 4 + K, A]``, as YOLO's exports have them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.pictures import c_path
from patchattack.victims.answers import answering
from patchattack.victims.own import Output, Prepared, error_text, read_classes
from patchattack.victims.victim import Victim

NUMBERS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
NUMBERS |= {"tensor(uint8)": "uint8"}


def build_onnx(
    task: str,
    file: str,
    answer: str | None = None,
    output: str | None = None,
    bgr: bool = False,
    range: Sequence[float] | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    providers: Sequence[str] | None = None,
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
    """The network in ``file`` as a victim. It is run once, so that what does not fit shows at once.

    Args:
        task: "classification", "depth", "flow" or "detection".
        file: the ONNX file.
        answer: what it returns, as in :mod:`patchattack.victims.answers`; None is the task's first there, but
            candidates of a detector.
        output: the name of the output; None where there is one only.
        bgr: the network takes blue first.
        range: of its input, before ``mean`` and ``std``; None is (0, 255) of uint8 and (0, 1) of any other.
        mean: which is subtracted then, in units of ``range`` and in the network's order of channels.
        std: which it is divided by then.
        providers: of onnxruntime, the first that works; None is CUDA where it is there, then the CPU.
        size: as of :class:`patchattack.victims.own.Output`; None is that of the file, where it is fixed there.
        multiple, classes, is_metric, depth_range, scale, shift, inverse, centres: as of
            :class:`patchattack.victims.own.Output`.

    Raises:
        InputError: onnxruntime is not installed, an option does not fit the task, the file is no ONNX file, it has
            other inputs or outputs, or another size.
    """
    meant = Output(task, size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres)
    meant.check("onnx", flow_has_size=True)
    session = _session(Path(file).expanduser(), providers)
    model = _Model(session, file, 2 if task == "flow" else 1, output)
    if meant.size is not None and any(side not in (None, n) for side, n in zip(model.size, meant.size, strict=True)):
        raise InputError(f"victim.size: expected {list(model.size)}, which {file} is made for, got {list(meant.size)}")
    if meant.size is None and None not in model.size:
        meant = replace(meant, size=[side for side in model.size if side is not None])
    ends = range if range is not None else (0, 255) if model.dtype == "uint8" else (0, 1)
    if task == "detection" and answer is None:
        answer = "candidates"

    names = read_classes(classes)

    def ask(*images: Tensor) -> Any:
        found = model(*images)
        return _boxes_last(found, names) if answer == "candidates" else found

    def around(answers: nn.Module) -> nn.Module:
        return Prepared(answers, bgr, ends, mean, std)

    about = f"{file} {output} {task} {answer} {classes}"
    return answering(meant, answer, Path(file).stem, ask, about, around, batch=model.batch)


def _session(path: Path, providers: Sequence[str] | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "victim=onnx: expected the package onnxruntime, got none; pip install patchattack[onnx]"
        ) from error
    if not path.is_file():
        raise InputError(f"victim.file: expected an ONNX file, found none at {path}; check the path")
    there = onnxruntime.get_available_providers()
    if providers is None:
        providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in there]
    if strangers := [one for one in providers if one not in there]:
        raise InputError(f"victim.providers: expected some of {', '.join(there)}, got {', '.join(strangers)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: they become one line, and warnings help nobody here
    name = c_path(path)
    try:
        return onnxruntime.InferenceSession(name, options, providers=list(providers))
    except Exception as error:  # onnxruntime's own kinds have no common name
        raise InputError(
            f"victim.file: expected an ONNX file that onnxruntime can run, got {path}: {error_text(error)}"
        ) from error


class _Model:
    """A session, from images ``[B, 3, h, w]`` of its own range to the array that is meant.

    Attributes:
        batch: images that it takes at once; None where any number will do.
        size: ``(h, w)`` of the images; None where any will do.
        dtype: numpy's, of the images.
    """

    def __init__(self, session: Any, file: str, images: int, output: str | None) -> None:
        inputs = session.get_inputs()
        seen = ", ".join(f"{one.name} {_shape_text(one.shape)} {one.type}" for one in inputs)
        refused = InputError(
            f"victim.file: expected {images} input(s) of images [B, 3, h, w] or [B, h, w, 3], got {len(inputs)} in "
            f"{file}: {seen}"
        )
        if len(inputs) != images or any(len(one.shape) != 4 or one.type not in NUMBERS for one in inputs):
            raise refused
        batch, *shape = inputs[0].shape
        self.channels_last = shape[2] == 3 and shape[0] != 3
        if any(one.shape != inputs[0].shape or one.type != inputs[0].type for one in inputs):
            raise refused
        if not self.channels_last and shape[0] != 3:
            raise refused
        names = [one.name for one in session.get_outputs()]
        if (output is None and len(names) > 1) or (output is not None and output not in names):
            raise InputError(f"victim.output: expected one of {', '.join(names)}, got {output}")
        self.session, self.inputs, self.output = session, [one.name for one in inputs], output or names[0]
        self.batch = batch if isinstance(batch, int) else None
        sides = shape[:2] if self.channels_last else shape[1:]
        height, width = (side if isinstance(side, int) else None for side in sides)
        self.size = height, width
        self.dtype = NUMBERS[inputs[0].type]

    def __call__(self, *images: Tensor) -> np.ndarray:
        """What it says of at most ``batch`` images; the last one fills what is missing."""
        many = len(images[0])
        rows = torch.arange(self.batch or many).clamp(max=many - 1)
        given = {name: self._array(one[rows]) for name, one in zip(self.inputs, images, strict=True)}
        return self.session.run([self.output], given)[0][:many]

    def _array(self, images: Tensor) -> np.ndarray:
        array = (images.permute(0, 2, 3, 1) if self.channels_last else images).contiguous().numpy()
        if self.dtype == "uint8":
            array = array.round().clip(0, 255)
        return array.astype(self.dtype)


def _boxes_last(found: np.ndarray, classes: Sequence[str] | None) -> np.ndarray:
    """``[B, A, 4 + K]`` of candidates that may be ``[B, 4 + K, A]``.

    Where the classes are not known, there are more candidates than numbers in each.
    """
    rows = min(found.shape[1:]) if classes is None else 4 + len(classes)
    return found.transpose(0, 2, 1) if found.ndim == 3 and found.shape[2] != rows == found.shape[1] else found


def _shape_text(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join(str(side or '?') for side in shape)}]"
