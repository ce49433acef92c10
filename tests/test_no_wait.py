"""A whole step, of every task with every part, on a device that computes nothing: the host may never wait for it.

The device is ``meta``: what it is asked has shapes and no values. So whatever reads one back raises, and so does, here,
all that would mix devices, or copy to the device without going on at once.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from patchattack import batches, cli, files, seeding
from patchattack.assembly import Parts
from patchattack.data.cached import CachedSource
from patchattack.devices import transfer
from patchattack.eot.placement import MOTIONS
from patchattack.eot.renderer import Renderer
from patchattack.job import Job
from patchattack.scene import Scene
from patchattack.search import SearchPlan
from patchattack.update import Update

CONF = files.package_folder("conf").resolve()
DEVICE = torch.device("meta")
SIZES = {"classification": (32, 32), "detection": (64, 128)}


def options(group: str) -> list[str]:
    """Names of its YAMLs."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def ours() -> dict[str, str]:
    """Our own victims, each with its task."""
    targets = {
        name: str(OmegaConf.load(CONF / "victim" / f"{name}.yaml").get("_target_")) for name in options("victim")
    }
    return {name: target.split(".")[-2] for name, target in targets.items() if ".victims.compact." in target}


class Device(TorchDispatchMode):
    """Refuses operations on two devices, and copies for which the host waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = itertools.chain.from_iterable(one if isinstance(one, list | tuple) else [one] for one in args)
        tensors = [one for one in given if isinstance(one, Tensor) and one.ndim > 0]
        where = {one.device.type for one in tensors}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            goes = torch.device(kwargs.get("device") or args[0].device).type
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            assert where <= {goes} or (goes == DEVICE.type and not waits), f"{func}: waits, from {where} to {goes}"
        else:
            assert len(where) < 2, f"{func}: on two devices, {[(one.device.type, list(one.shape)) for one in tensors]}"
        return func(*args, **kwargs)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Tensors of Python's numbers on the device are refused too: they are made on the host, and copied in vain."""

    def watching(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            result = make(*args, **kwargs)
            assert result.device.type == "cpu", f"{make}: made on the host, {args}"
            return result

        return made

    with Device(), pytest.MonkeyPatch.context() as patches:
        for where, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
            patches.setattr(where, name, watching(getattr(where, name)))
        patches.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
        yield


@functools.cache
def parts(task: str) -> Parts:
    """Of a run with every transform and regulariser."""
    height, width = SIZES.get(task, (32, 64))
    every = [f"{group}=[{','.join(options(group))}]" for group in ("appearance", "camera", "regularizers")]
    small = ("trainer.draws=1", "patch.resolution=16", "data.supersampling=1", "data.scenes=2", "tracker=none")
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.NamedTemporaryFile(suffix=".png") as image:
        image.write(cv2.imencode(".png", np.full((8, 8, 3), 128, dtype=np.uint8))[1].tobytes())
        image.flush()
        given = (f"attack={task}", f"data.size=[{height},{width}]", f"regularizers.content.image={image.name}")
        plain: Any = OmegaConf.to_container(compose("train", [*given, *every, *small]), resolve=True)
        found: Parts = cli.build_parts(plain)
    return found


def instantiated(group: str, name: str, **changes: Any) -> Any:
    return instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"), _convert_="all", **changes)


def scenes(task: str) -> Scene:
    """Two, as their source gives them, with a surface."""
    scene = parts(task).source.__getitems__([0, 1])
    square = torch.tensor([[4.0, 4.0], [24, 5], [25, 24], [5, 25]]).expand(*scene.frames.shape[:2], 4, 2)
    return scene if scene.surface is not None else dataclasses.replace(scene, surface=square)


NUMBERS = seeding.numbers([(0,), (1,)])
PLACES: list[tuple[str, dict[str, Any], str]] = [(name, {}, "") for name in options("placement")]
PLACES += [("uniform", {"motion": motion, "tilt": 10.0}, "") for motion in MOTIONS]
PLACES += [("uniform", {"motion": "random"}, bend) for bend in options("bend")]


def job(victim: str, renderer: Renderer | None = None) -> Job:
    """On the device, of the victim's task."""
    task = ours()[victim]
    whole, model = parts(task), instantiated("victim", victim, weights="random")
    attack, patch = copy.copy(whole.attack), copy.deepcopy(whole.patch).to(DEVICE)
    attack.bind(model, whole.source)
    model(scenes(task).to("cpu").frames)  # what a network makes of its own when it is first asked, for frames of a size
    optimizer = whole.optimizer(patch.parameters())
    fabric: Any = SimpleNamespace(device=DEVICE, global_rank=0, world_size=1, autocast=contextlib.nullcontext)
    return Job(
        *(patch, model.to(DEVICE), attack, renderer or whole.renderer),
        *({name: module.to(DEVICE) for name, module in whole.regularizers.items()}, optimizer),
        *(
            whole.schedule(optimizer),
            CachedSource(whole.source, 1e9),
            whole.settings,
            SearchPlan(0, 1, 1),
            0,
            fabric,
            None,
        ),
    )


@pytest.mark.parametrize("victim", ours())
def test_no_step_waits(victim: str) -> None:
    task, whole = ours()[victim], job(victim)
    with watched():
        update = Update(whole, 0, [batches._batch(whole, scenes(task), NUMBERS)])
        whole.optimizer.step(update)  # type: ignore[arg-type]
        whole.schedule.step()
        whole.patch.project_()
        losses = update.losses()
    assert {"attack", *options("regularizers")} == losses.keys()
    assert {value.device for value in losses.values()} == {DEVICE}
    assert whole.patch.parameter.grad is not None


def test_a_placement_by_depth_does_not_wait() -> None:
    whole = job("flow_matching", Renderer(instantiated("placement", "uniform", motion="scene")))
    scene = dataclasses.replace(scenes("flow"), surface=None)
    assert scene.depth is not None
    with watched():
        batch = batches._batch(whole, scene, NUMBERS)
    assert not torch.equal(*batch.draw.corners.unbind(1))
    assert batch.scene.depth.device == DEVICE


@pytest.mark.parametrize(("placement", "changes", "bend"), PLACES)
def test_no_placement_waits(placement: str, changes: dict[str, Any], bend: str) -> None:
    whole = parts("flow")
    lies_on = instantiated("bend", bend) if bend else None
    renderer = Renderer(instantiated("placement", placement, **changes), whole_frame=True, bend=lies_on)
    patch = copy.deepcopy(whole.patch).to(DEVICE)
    with watched():
        scene = scenes("flow").to(DEVICE)
        renderer(patch(), patch.mask, scene, renderer.draw(scene, patch, NUMBERS)).frames.sum().backward()
    assert patch.parameter.grad is not None


def test_waits_are_seen() -> None:
    there, here = torch.empty(3, device=DEVICE), torch.ones(3)
    waits: list[Callable[[], object]] = [
        lambda: there.sum().item(),
        lambda: bool((there > 0).all()),
        lambda: there[there > 0],
        lambda: there.tolist(),
        lambda: there.cpu(),
        lambda: there + here,
        lambda: there[here.long()],
        lambda: here.to(DEVICE),
        lambda: torch.tensor([1.0], device=DEVICE),
        lambda: there.new_tensor([1.0]),
    ]
    for wait in waits:
        with watched(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            wait()
    with watched():
        assert transfer(here, DEVICE).device == DEVICE


def test_what_goes_to_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda value: seen.append("pinned") or value)
    monkeypatch.setattr(Tensor, "to", lambda _, device, non_blocking: seen.append((device.type, non_blocking)))
    transfer(torch.ones(3), "cuda:0")
    assert seen == ["pinned", ("cuda", True)]
