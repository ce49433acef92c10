"""MiDaS through torch.hub: code from its own repository, weights read by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack.errors import InputError, one_line
from patchattack.victims.victim import HALF, IMAGENET, DepthVictim, check_side, in_proportion
from patchattack.victims.weights import initialise, load_hub, load_weights, short_timeout

RELEASES = "https://github.com/isl-org/MiDaS/releases/download"
NETWORKS = {  # entry of hubconf.py: shorter side of the input in training, its normalisation, the weights
    "MiDaS": (384, IMAGENET, f"{RELEASES}/v2_1/midas_v21_384.pt"),
    "MiDaS_small": (256, IMAGENET, f"{RELEASES}/v2_1/midas_v21_small_256.pt"),
    "DPT_Hybrid": (384, HALF, f"{RELEASES}/v3/dpt_hybrid_384.pt"),
    "DPT_Large": (384, HALF, f"{RELEASES}/v3/dpt_large_384.pt"),
}
REPOSITORY = "intel-isl/MiDaS:master"  # the branch is named, so that torch.hub need not ask for it
MULTIPLE = 32  # pixels of the input for one of the coarsest features


class Midas(DepthVictim):
    """Relative inverse depth by a network trained on many data sets (Ranftl et al. 2020; DPT: Ranftl et al. 2021).

    The repository's Python code runs with all your rights, which it may only where you say so. Of MiDaS_small it
    fetches the encoder's code from a second repository.

    Args:
        name: ``MiDaS``, ``MiDaS_small``, ``DPT_Hybrid`` or ``DPT_Large``.
        weights: ``hub`` (those of the name), ``random``, or a local file, which is read as data.
        repository: a local clone of MiDaS; null takes torch.hub's copy, fetched from GitHub where there is none.
        side: shorter side of the network's input in pixels; null takes that of its training.
        trust_checkpoint: run the repository's code.

    Raises:
        InputError: no such name, a side that is too short, no trust, or the code or the weights cannot be had.
    """

    def __init__(
        self,
        name: str = "DPT_Hybrid",
        weights: str | Path = "hub",
        repository: str | None = None,
        side: int | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        if name not in NETWORKS:
            raise InputError(f"victim.name: expected one of {', '.join(NETWORKS)}, got {name}")
        usual, (mean, std), url = NETWORKS[name]
        self.side = check_side(usual if side is None else side, MULTIPLE)
        source = repository or REPOSITORY
        if not trust_checkpoint:
            raise InputError(
                f"victim midas: expected victim.trust_checkpoint=true, got false; {source} builds the network by its "
                "own Python code, which can do whatever you can: look at it first, or take a DPT of victim=transformers"
            )
        network = initialise(lambda: _built(name, source, local=repository is not None))
        if weights == "hub":
            load_hub(network, url)
        elif weights != "random":
            load_weights(network, weights)
        super().__init__(network, f"midas_{name}", is_metric=False, mean=mean, std=std)

    def depth(self, images: Tensor) -> Tensor:
        """Of the images in the network's resolution."""
        return self.network(in_proportion(images, self.side, MULTIPLE)).unsqueeze(1)


def _built(name: str, source: str, local: bool) -> Any:
    """The network without its weights, by the code in ``source``."""
    try:
        with short_timeout():
            return torch.hub.load(
                str(Path(source).expanduser()) if local else source,
                name,
                source="local" if local else "github",
                trust_repo=True,
                skip_validation=True,
                verbose=False,
                pretrained=False,
            )
    except Exception as error:  # foreign code ends in arbitrary errors
        raise InputError(
            f"victim midas: expected {source} to build {name}, got '{one_line(error)}'; "
            "clone https://github.com/isl-org/MiDaS and name the folder with victim.repository=FOLDER"
        ) from error
