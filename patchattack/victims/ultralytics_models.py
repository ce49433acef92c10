"""YOLO as ultralytics has it: detectors and classifiers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack.errors import InputError, one_line
from patchattack.victims.own import choose_class_names, read_classes
from patchattack.victims.ultralytics_import import quietly
from patchattack.victims.victim import ClassificationVictim, DetectionVictim
from patchattack.victims.weights import fetch, initialise, load_fitting

ASSETS = "https://github.com/ultralytics/assets/releases/download/v8.4.0"  # where the package fetches its weights


class UltralyticsDetector(DetectionVictim):
    """A YOLO detector, from version 3 to the newest that the installed ultralytics has.

    Its head gives, for each anchor, a box and a score for each class, without an objectness: channel 4 is the first
    class. The versions 3 and 5 are ultralytics' own (``yolov5nu``), which have this head too.

    Args:
        name: of the network, such as "yolov8n", "yolov5nu" or "yolo26n".
        weights: "hub" (ultralytics' release), "random", or a local file: safetensors, a state dict, or an ultralytics
            checkpoint (``.pt``).
        size: ``(h, w)`` of the network's input, see :class:`DetectionVictim`; both divisible by the largest stride.
        head: "one_to_many" (trained with several anchors for each object, to be followed by non-maximum suppression),
            or "one_to_one" (one anchor for each object), which YOLOv10 (Wang et al., YOLOv10: Real-Time End-to-End
            Object Detection, NeurIPS 2024) and YOLO26 have beside it.
        trust_checkpoint: ultralytics' checkpoints, those of its release too, are pickled objects: reading one runs
            whatever code it holds. With False they are refused.
        classes: names in the order of the outputs, or a file of them as of :class:`patchattack.victims.own.Output`;
            None is the checkpoint's own. Without a checkpoint it is COCO's where there are 80, and numbers others: how
            many there are is in the weights.

    Raises:
        InputError: no such network or head, a size that does not fit, or the weights cannot be had or do not fit.
    """

    network: Any  # ultralytics' DetectionModel, whose layers come without types

    def __init__(
        self,
        name: str,
        weights: str | Path = "hub",
        size: tuple[int, int] | None = None,
        head: str = "one_to_many",
        trust_checkpoint: bool = False,
        classes: Sequence[str] | str | None = None,
    ) -> None:
        network, names = _built("detector", name, weights, trust_checkpoint, classes)
        detect = network.model[-1]
        heads = ["one_to_many", "one_to_one"] if hasattr(detect, "one2one_cv2") else ["one_to_many"]
        if head not in heads:
            raise InputError(f"victim {name}: expected head {' or '.join(heads)}, got head={head}")
        multiple = int(detect.stride.max())
        if size is not None and (len(size) != 2 or min(size) < 1 or any(side % multiple for side in size)):
            raise InputError(
                f"victim {name}: expected size [h, w] of positive multiples of {multiple} or null, got {list(size)}"
            )
        if head == "one_to_one":
            detect.cv2, detect.cv3 = detect.one2one_cv2, detect.one2one_cv3
        detect.one2one_cv2 = detect.one2one_cv3 = None  # the other branch would be computed for nothing
        detect.xyxy = True
        super().__init__(network, name, names, None if size is None else (size[0], size[1]), multiple)
        self._strides: list[float] = detect.stride.tolist()  # on a GPU, reading one back waits for it

    def candidates(self, images: Tensor) -> Tensor:
        """The boxes and scores of all anchors, decoded as ``Detect`` does, but in the images' precision.

        In bfloat16, as autocast has it, an edge would be several pixels off.
        """
        from ultralytics.utils.tal import make_anchors

        detect = self.network.model[-1]
        raw = self.network(images)[1]
        with torch.autocast(images.device.type, enabled=False):
            features = [level.to(images.dtype) for level in raw["feats"]]
            anchors, strides = (values.T for values in make_anchors(features, self._strides))
            distances = detect.dfl(raw["boxes"].to(images.dtype))  # [B, 4, A]
            boxes = detect.decode_bboxes(distances, anchors[None]) * strides
            return torch.cat([boxes, raw["scores"].to(images.dtype).sigmoid()], dim=1).mT


class UltralyticsClassifier(ClassificationVictim):
    """A YOLO classifier, which takes images in [0, 1] as they are.

    Args:
        name: of the network, such as "yolov8n-cls" or "yolo26n-cls".
        weights: as of :class:`UltralyticsDetector`.
        size: ``(h, w)`` of the network's input.
        trust_checkpoint: as of :class:`UltralyticsDetector`.
        classes: the same, with ImageNet's 1000.

    Raises:
        InputError: no such network, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path = "hub",
        size: tuple[int, int] = (224, 224),
        trust_checkpoint: bool = False,
        classes: Sequence[str] | str | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"victim {name}: expected size [h, w] of positive numbers, got {list(size)}")
        network, names = _built("classifier", name, weights, trust_checkpoint, classes)
        super().__init__(network, name, names, (size[0], size[1]))

    def logits(self, images: Tensor) -> Tensor:
        """Before the softmax, which the network gives as well."""
        return self.network(images)[1]


def _built(
    kind: str, name: str, weights: str | Path, trust: bool, classes: Sequence[str] | str | None
) -> tuple[Any, list[str]]:
    """The network called ``name`` with its weights, and the names of its classes."""
    with quietly():
        from ultralytics.nn.tasks import ClassificationModel, DetectionModel, yaml_model_load
        from ultralytics.utils import ROOT, YAML

    model, layers, dataset, examples = {
        "detector": (DetectionModel, ("Detect", "v10Detect"), "coco", "yolov5nu, yolov8n, yolov10n, yolo11n, yolo26n"),
        "classifier": (ClassificationModel, ("Classify",), "ImageNet", "yolov8n-cls, yolo11n-cls, yolo26n-cls"),
    }[kind]
    stem = name.removesuffix(".yaml").removesuffix(".pt")
    old = stem.startswith(("yolov3", "yolov5"))  # their published weights, but not their architectures, end in u
    try:
        architecture = yaml_model_load(f"{stem.removesuffix('u') if old else stem}.yaml")
    except FileNotFoundError:
        architecture = None
    if architecture is None or architecture["head"][-1][2] not in layers:
        raise InputError(f"victim ultralytics: expected name of a {kind} such as {examples}, got name={name}")
    scales = architecture.get("scales", {})
    if not architecture["scale"] and len(scales) > 1:
        raise InputError(f"victim ultralytics: expected a name with a size ({', '.join(scales)}), got name={name}")

    if weights == "hub":
        weights = _fetch_release(f"{stem.removesuffix('u')}u.pt" if old else f"{stem}.pt", trust)
    checkpoint = _checkpoint(Path(weights).expanduser()) if trust and weights != "random" else None
    known = checkpoint.names if checkpoint else YAML.load(ROOT / "cfg" / "datasets" / f"{dataset}.yaml")["names"]
    names = [str(known[number]) for number in range(len(known))]

    def build(count: int) -> Any:
        return model(copy.deepcopy(architecture), nc=count, verbose=False)

    count = len(names)
    if weights == "random" or checkpoint:
        if weights == "random":
            count = len(read_classes(classes) or names)
        network = initialise(lambda: build(count))
    else:
        network, count = load_fitting(build, count, weights, trust, _with_prefix)
    if checkpoint:
        try:
            network.load_state_dict(checkpoint.state_dict())
        except RuntimeError as error:
            found = checkpoint.yaml.get("yaml_file", "another network")
            raise InputError(f"{weights}: expected weights of victim.name={name}, got those of {found}") from error
    return network, choose_class_names(classes, name, count, names)


def _with_prefix(key: str) -> str:
    """The network's key for that of a file saved from its layers, from itself, or from the ``YOLO`` around it."""
    return "model." + key.removeprefix("model.").removeprefix("model.")


def _fetch_release(file: str, trust: bool) -> Path:
    """The local copy of a file of ultralytics' release, fetched where it is not there yet."""
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    if file not in GITHUB_ASSETS_NAMES:
        raise InputError(f"{file}: expected weights that ultralytics publishes, got none; set victim.weights=PATH")
    if not trust:
        raise InputError(
            f"{file}: expected victim.trust_checkpoint=true with weights=hub, because ultralytics publishes pickled "
            "objects and reading one runs its code; set it, or name safetensors with victim.weights=PATH"
        )
    return fetch(f"{ASSETS}/{file}")


def _checkpoint(path: Path) -> Any:
    """The network pickled in a checkpoint of ultralytics; None where the file needs no code to be read."""
    from ultralytics.nn.tasks import load_checkpoint

    try:
        if not torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return None
    except Exception:  # not there or not of torch.save, which load_weights knows how to say
        return None
    try:
        return load_checkpoint(path)[0]
    except Exception as error:  # arbitrary code ends in arbitrary errors
        raise InputError(f"{path}: expected a checkpoint of ultralytics, got '{one_line(error)}'") from error
