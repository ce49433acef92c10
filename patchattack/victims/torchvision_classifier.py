"""The classifiers of torchvision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchattack.errors import InputError, nearest
from patchattack.victims.own import choose_class_names, read_classes
from patchattack.victims.victim import ClassificationVictim
from patchattack.victims.weights import initialise, load_fitting, load_hub


class TorchvisionClassifier(ClassificationVictim):
    """Any of torchvision's classifiers, with the input size, the normalisation and the classes of its weights.

    Frames are resized to the network's input as a whole; nothing is cropped away, so no patch is either.

    Args:
        name: as in ``torchvision.models.list_models``, such as "resnet50".
        weights: "hub" (torchvision's default weights), "random", or a local file, whose head says how many classes
            the network tells apart.
        trust_checkpoint: read a local file that runs code when it is read.
        classes: their names in the order of the outputs, or a file of them as of
            :class:`patchattack.victims.own.Output`; None is ImageNet's where there are 1000, and numbers others.

    Raises:
        InputError: no such network, or the weights or the names cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path = "hub",
        trust_checkpoint: bool = False,
        classes: Sequence[str] | str | None = None,
    ) -> None:
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise InputError(
                f"victim.name: expected a classifier of torchvision such as {nearest(name, names)}, got {name}"
            )
        default = models.get_model_weights(name).DEFAULT
        preset = default.transforms()
        (side,) = preset.crop_size
        options: dict[str, bool | int] = {}  # what torchvision tells its builders together with its weights alone
        if name in ("googlenet", "inception_v3"):
            options = {"transform_input": True, "init_weights": False}
        elif name.startswith("vit_"):
            options = {"image_size": side}

        known = default.meta["categories"]

        def build(count: int) -> Any:
            own = {} if count == len(known) else {"num_classes": count}
            return models.get_model(name, **options, **own)

        count = len(known)
        if weights in ("hub", "random"):
            if weights == "random":
                count = len(read_classes(classes) or known)
            network = initialise(lambda: build(count))
        else:
            network, count = load_fitting(build, count, weights, trust_checkpoint, _densenet_key)
        if weights == "hub":
            load_hub(network, default.url, _densenet_key)
        names = choose_class_names(classes, name, count, known)
        super().__init__(network, name, names, (side, side), preset.mean, preset.std)


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes: the same for every victim that tells them apart."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def _densenet_key(key: str) -> str:
    """The key of a DenseNet's layer as it is called today: "norm1" was "norm.1" when the weights were published."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
