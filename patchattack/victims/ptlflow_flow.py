"""The flow networks of ptlflow (PyTorch Lightning Optical Flow)."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchattack.errors import InputError, nearest, one_line
from patchattack.victims.victim import FlowVictim
from patchattack.victims.weights import initialise, load_hub, load_weights


class PtlflowFlow(FlowVictim):
    """Any of ptlflow's networks for a pair of frames.

    Args:
        name: as in ``ptlflow.get_model_names``, such as "raft_small" or "liteflownet".
        weights: "hub", "random", or a local file.
        checkpoint: which of the hub's weights, such as "things", "sintel" or "kitti".
        trust_checkpoint: read a local file that runs code when it is read.

    Raises:
        InputError: ptlflow is not installed, it has no such network or checkpoint, or the weights cannot be had or do
            not fit.
    """

    network: Any  # ptlflow's BaseModel, which comes without types

    def __init__(
        self, name: str, weights: str | Path = "hub", checkpoint: str = "things", trust_checkpoint: bool = False
    ) -> None:
        ptlflow = _ptlflow()
        if name not in (names := ptlflow.get_model_names()):
            raise InputError(f"victim.name: expected a network of ptlflow such as {nearest(name, names)}, got {name}")
        urls = getattr(ptlflow.get_model_reference(name), "pretrained_checkpoints", None) or {}
        if weights == "hub" and checkpoint not in urls:
            raise InputError(
                f"victim.checkpoint: expected one of {name}'s ({', '.join(urls) or 'it has none'}), got {checkpoint}"
            )
        try:
            with _quiet():
                network = initialise(lambda: ptlflow.get_model(name))
        except Exception as error:  # a few need compiled extensions, or fetch a backbone of theirs
            raise InputError(
                f"victim ptlflow {name}: expected a network, got '{one_line(error)}'; choose another name"
            ) from error
        if weights == "hub":
            load_hub(network, urls[checkpoint])
        elif weights != "random":
            load_weights(network, weights, trust_checkpoint)
        # RAFT's kin build four levels of correlation of features at 1/8: the coarsest needs two places along each side.
        super().__init__(network, f"ptlflow_{name}", multiple=network.output_stride or 1, minimum=128)
        # ptlflow 0.4's LiteFlowNet takes a channel for a frame (img2_warped[:, 1]), which mixes the pairs of a batch.
        self.one_by_one = name == "liteflownet"

    def flow(self, frames: Tensor) -> Tensor:
        """The flow of the pair."""
        bgr = frames.flip(2)  # ptlflow reads its images with OpenCV; a network of RGB turns them around itself
        pairs = bgr.split(1) if self.one_by_one else [bgr]
        return torch.cat([self.network({"images": pair})["flows"][:, 0] for pair in pairs])


def _ptlflow() -> Any:
    """ptlflow with its networks registered."""
    try:
        with _quiet():
            import ptlflow
            import ptlflow.models
    except ImportError as error:
        raise InputError(
            f"victim ptlflow: expected ptlflow, got '{error}'; pip install 'patchattack[ptlflow]'"
        ) from error
    return ptlflow


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what ptlflow's parts print and warn of: which extensions are not compiled, what is deprecated."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
