"""The classifiers of timm (PyTorch Image Models)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchattack.errors import InputError, nearest, one_line
from patchattack.victims.own import choose_class_names, read_classes
from patchattack.victims.torchvision_classifier import imagenet_classes
from patchattack.victims.victim import ClassificationVictim
from patchattack.victims.weights import fetch, fetch_from_hugging_face, initialise, load_fitting


class TimmClassifier(ClassificationVictim):
    """Any of timm's classifiers, with the input size and the normalisation that its weights were trained with.

    Args:
        name: as in ``timm.list_models``, such as "resnet50", with or without a tag of its weights ("resnet50.a1_in1k").
        weights: "hub" (those of the tag, or timm's default), "random", or a local file, whose head says how many
            classes the network tells apart.
        trust_checkpoint: read a local file that runs code when it is read.
        classes: as of :class:`patchattack.victims.torchvision_classifier.TorchvisionClassifier`.

    Raises:
        InputError: timm is not installed, it has no such classifier, or the weights or the names of the classes cannot
            be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path = "hub",
        trust_checkpoint: bool = False,
        classes: Sequence[str] | str | None = None,
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise InputError("victim timm: expected timm, got none; pip install 'patchattack[timm]'") from error

        if ":" in name or not timm.is_model(name):  # a colon: a network that is described on the hub alone
            choices = nearest(name, timm.list_models())
            raise InputError(f"victim.name: expected a classifier of timm such as {choices}, got {name}")
        try:
            network: Any = initialise(lambda: timm.create_model(name))
        except RuntimeError as error:  # of a tag that there is not
            tags = nearest(name, timm.list_pretrained(name.partition(".")[0] + ".*"))
            raise InputError(f"victim.name: expected weights such as {tags}, got {name}: {one_line(error)}") from error
        if not network.num_classes:
            raise InputError(f"victim.name: expected a classifier, got {name}, which ends in features; choose another")
        config = network.pretrained_cfg

        def build(count: int) -> Any:
            return timm.create_model(name, num_classes=count)

        if weights == "hub":
            # timm fits them itself: it knows the keys of old files and the classes that count from 1.
            overlay = {"file": str(_fetch(name, config))}
            network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        elif weights != "random":
            network, _ = load_fitting(build, network.num_classes, weights, trust_checkpoint)
        elif given := read_classes(classes):
            network = initialise(lambda: build(len(given)))
        names = choose_class_names(classes, name, network.num_classes, imagenet_classes())
        super().__init__(network, f"timm_{name}", names, config["input_size"][1:], config["mean"], config["std"])


def _fetch(name: str, config: dict[str, Any]) -> Path:
    if repository := config.get("hf_hub_id"):
        return fetch_from_hugging_face(repository, config.get("hf_hub_filename") or "model.safetensors")
    if url := config.get("url"):
        return fetch(url)
    raise InputError(f"victim timm {name}: expected published weights, got none; choose weights=random or a local file")
