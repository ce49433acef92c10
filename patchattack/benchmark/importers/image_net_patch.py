"""The ten patches of ImageNet-Patch.

Source: Pintor et al., ImageNet-Patch: A dataset for benchmarking machine learning robustness against adversarial
patches, Pattern Recognition 134, 2023; ``assets/patches.gz`` of https://github.com/pralab/ImageNet-Patch. The file is a
gzipped pickle of two tensors: images ``[10, 3, 224, 224]``, with the patch in the central 50 × 50 pixels, and the
numbers ``[10]`` of their ImageNet classes.
Licence: the repository states none.

Nothing is unpickled. The file's opcodes are read, and those that place numbers, texts, bytes and tuples on the stack
are followed; of what they would call, three names are known here and done by hand, and any other ends the work.
"""

from __future__ import annotations

import gzip
import io
import math
import pickletools
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack.benchmark.importers.importer import Details, PatchImporter, width_mm
from patchattack.benchmark.patch_file import PatchFile
from patchattack.errors import InputError
from patchattack.patch import Patch

_SIDE = 50  # pixels of a patch, in the middle of its image
_MOST = 256 * 2**20  # bytes that the unzipped file may have
_TENSOR, _STORAGE, _DICT = (
    "torch._utils _rebuild_tensor_v2",
    "torch.storage _load_from_bytes",
    "collections OrderedDict",
)
_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ImageNetPatch(PatchImporter):
    """``patches.gz``, trained on three networks together."""

    name = "image_net_patch"
    source = "Pintor et al., Pattern Recognition 2023, https://github.com/pralab/ImageNet-Patch"
    licence = "none stated"

    def patches(self, path: Path, details: Details) -> list[PatchFile]:
        """As :class:`PatchImporter` says; a target is the number of an ImageNet class."""
        size_mm = width_mm(details)
        try:
            with gzip.open(path) as file:
                data = file.read(_MOST + 1)
            images, targets = _read_tensors(data)
            if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < _SIDE or len(images) != len(targets):
                raise ValueError(f"tensors {list(images.shape)} and {list(targets.shape)}")
            if targets.dtype != torch.int64:
                raise ValueError(f"targets of {targets.dtype}")
            if not (images.is_floating_point() and images.min() >= 0 and images.max() <= 1):
                raise ValueError("images that are not in [0, 1]")
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(
                f"{path}: expected ImageNet-Patch's assets/patches.gz, images [n, 3, h, w] in [0, 1] and targets [n], "
                f"got {error}; download it again"
            ) from error
        top, left = ((side - _SIDE) // 2 for side in images.shape[2:])
        return [
            PatchFile(
                patch=Patch(
                    image[:, top : top + _SIDE, left : left + _SIDE].float(),
                    torch.ones(1, _SIDE, _SIDE),
                    (size_mm, size_mm),
                ),
                name=f"image_net_patch {int(target)}",
                task="classification",
                victims=details.victims or ["alexnet", "resnet18", "squeezenet"],
                knowledge="white box",
                goal="targeted",
                target=str(int(target)),
                source=self.source,
                licence=details.licence or self.licence,
            )
            for image, target in zip(images, targets, strict=True)
        ]


def _read_tensors(data: bytes) -> tuple[Tensor, Tensor]:
    """The two tensors of a pickle of protocol 3 to 5, by its opcodes.

    Raises:
        ValueError: it holds anything else.
    """
    if len(data) > _MOST:
        raise ValueError(f"more than {_MOST // 2**20} MiB")
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case "GLOBAL":
                    stack.append(_Name(argument))
                case "STACK_GLOBAL":
                    stack[-2:] = [_Name(f"{stack[-2]} {stack[-1]}")]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    start = marks.pop()
                    stack[start:] = [tuple(stack[start:])]
                case "REDUCE":
                    stack[-2:] = [_call(*stack[-2:])]
                case name if name in _PUSHED:
                    stack.append(argument)
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _TUPLES:
                    stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
                case name:
                    raise ValueError(f"the opcode {name}")
        ((images, targets),) = stack
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a damaged file ({error!r})") from error
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor) or targets.ndim != 1:
        raise ValueError("something else than two tensors")
    return images, targets


class _Name(str):
    """What a pickle would import."""


def _call(name: Any, arguments: Any) -> Any:
    """What one of three known names makes of its arguments."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of no name")
    if name == _DICT and not arguments:
        return None
    if name == _STORAGE:
        return _read_storage(*arguments)
    if name == _TENSOR:
        values, offset, size, stride = arguments[:4]
        if not isinstance(values, Tensor) or math.prod(size) > len(values):
            raise ValueError("a tensor without its numbers")
        try:
            return values.as_strided(size, stride, offset)
        except RuntimeError as error:
            raise ValueError(f"a tensor of {list(size)} beyond its numbers") from error
    raise ValueError(f"a call of {name[:80]}")


def _read_storage(data: Any) -> Tensor:
    """``[n]`` the numbers that torch has saved; its reader of weights builds nothing but numbers."""
    if not isinstance(data, bytes):
        raise ValueError("a storage without bytes")
    try:
        with warnings.catch_warnings(action="ignore"):  # storages with a type are deprecated
            storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    except Exception as error:  # torch's reader ends in any kind of error
        raise ValueError("a storage that cannot be read") from error
