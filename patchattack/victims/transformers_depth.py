"""Depth networks of the transformers library: Depth Anything, DPT, ZoeDepth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchattack.errors import InputError, one_line
from patchattack.victims.victim import HALF, IMAGENET, DepthVictim, check_side, in_proportion
from patchattack.victims.weights import initialise, load_weights


@dataclass(frozen=True)
class _Family:
    """What a family's networks were trained with: mean and deviation, the input's shorter side and its divisor."""

    normalising: tuple[tuple[float, ...], tuple[float, ...]]
    side: int
    multiple: int


FAMILIES = {  # by the config's model_type
    "depth_anything": _Family(IMAGENET, side=518, multiple=14),
    "dpt": _Family(HALF, side=384, multiple=32),
    "zoedepth": _Family(HALF, side=384, multiple=32),
}


class TransformersDepth(DepthVictim):
    """A depth network in the format of the Hugging Face hub.

    Depth Anything (Yang et al. 2024) and DPT (Ranftl et al. 2021) give relative inverse depth; ZoeDepth (Bhat et al.
    2023) and Depth Anything V2's metric variants give metres, in the range that their config states. Weights are read
    from safetensors alone, and no code of a repository runs.

    Frames are resized in their proportions, for DPT to a square, as the library itself does. ZoeDepth's own padding,
    which mends a border of a few pixels, is left out.

    Args:
        name: repository on the hub, such as ``depth-anything/Depth-Anything-V2-Small-hf``, or a local folder with its
            ``config.json``.
        weights: ``hub`` (those of the name, on the hub or in the folder), ``random``, or a local file.
        side: shorter side of the network's input in pixels; null takes that of the family's training.

    Raises:
        InputError: transformers is not installed, the config or the weights cannot be had or do not fit, the network
            is of another family, or it cannot take the side.
    """

    def __init__(self, name: str, weights: str | Path = "hub", side: int | None = None) -> None:
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                "victim transformers: expected the package transformers, got none; "
                "pip install patchattack[transformers]"
            ) from error
        folder = _folder(name, with_weights=weights == "hub")
        try:
            config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # arbitrary JSON ends in arbitrary errors
            raise InputError(
                f"{name}: expected a config.json that transformers {transformers.__version__} reads, got "
                f"'{one_line(error)}'; fetch it again or name another network"
            ) from error
        kind = config.model_type
        if kind == "dpt" and getattr(config.backbone_config, "model_type", None) == "dinov2":
            kind = "dpt on dinov2"  # gives metres, in a range that its config does not state
        if kind not in FAMILIES:
            raise InputError(f"{name}: expected a network of {', '.join(FAMILIES)}, got {kind}; name another one")
        family = FAMILIES[kind]
        side = check_side(family.side if side is None else side, family.multiple)
        if getattr(config, "is_hybrid", False) and side != config.image_size:
            raise InputError(f"victim.side: expected {config.image_size} for {name}, the only one it takes, got {side}")
        network: nn.Module
        if weights == "hub":
            network = _pretrained(name, folder, config)
        else:
            build = transformers.AutoModelForDepthEstimation.from_config
            network = initialise(lambda: build(config, dtype=torch.float32))  # whatever its weights were saved in
            if weights != "random":
                load_weights(network, weights)
        depth_range = _depth_range(config)
        mean, std = family.normalising
        super().__init__(
            network,
            Path(name).name,
            is_metric=depth_range is not None,
            depth_range=depth_range or (0.0, math.inf),
            size=(side, side) if kind == "dpt" else None,
            mean=mean,
            std=std,
        )
        self.side, self.divisor = side, family.multiple

    def depth(self, images: Tensor) -> Tensor:
        """Of the images in the network's resolution."""
        return self.network(in_proportion(images, self.side, self.divisor)).predicted_depth.unsqueeze(1)


def _folder(name: str, with_weights: bool) -> Path:
    """Where the config and the weights of ``name`` lie: there, or in the hub's cache, fetched if need be."""
    import huggingface_hub

    path = Path(name).expanduser()
    if path.is_dir():
        return path
    patterns = ["config.json"] + ["model*.safetensors", "model.safetensors.index.json"] * with_weights
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client changes its library for HTTP, and with it its errors
        raise InputError(
            f"{name}: expected a local folder or a repository on the Hugging Face hub, got '{one_line(error)}'; fetch "
            "it elsewhere (config.json and model.safetensors) and name its folder with victim.name=FOLDER"
        ) from error


def _pretrained(name: str, folder: Path, config: Any) -> nn.Module:
    """The network with all its weights from the safetensors in ``folder``."""
    from transformers import AutoModelForDepthEstimation

    if not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{name}: expected weights in model.safetensors, got none; pickled weights (.bin) can run code when they "
            "are read: convert them, or name the file with victim.weights=PATH, where it is read as data"
        )
    try:
        network, report = AutoModelForDepthEstimation.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file and a foreign shape end in different errors
        raise InputError(
            f"{name}: expected weights that fit its config.json, got '{one_line(error)}'; fetch both again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{name}: expected all weights of {type(network).__name__}, got a file without {len(missing)} of them "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); fetch it again or name another"
        )
    return network


def _depth_range(config: Any) -> tuple[float, float] | None:
    """Nearest and farthest metres that a metric network's config states; None for a relative one."""
    if config.model_type == "zoedepth":
        heads = config.bin_configurations
        return min(head["min_depth"] for head in heads), max(head["max_depth"] for head in heads)
    if getattr(config, "depth_estimation_type", "relative") == "metric":
        return 0.0, float(config.max_depth)
    return None
