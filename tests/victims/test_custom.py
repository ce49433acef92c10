from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims.custom import build_custom
from patchattack.victims.victim import ClassificationVictim, DepthVictim, DetectionVictim, FlowVictim

REAL = Path(__file__).parents[2] / "../shared/real"

MODULE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Options:
    width: int = 3

class Means(nn.Module):
    '''Means of the channels it is given: what it sees can be read off what it says.'''
    def forward(self, images):
        return images.mean(dim=(2, 3))

class Linear(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.head = nn.Linear(3, classes)
    def forward(self, images):
        return self.head(images.mean(dim=(2, 3)))

class Grey(nn.Module):
    '''Depth without a dimension of channels, at half the size, among other things.'''
    def forward(self, images):
        half = nn.functional.avg_pool2d(images, 2).mean(dim=1)
        return {"depth": [half, half * 0], "name": "grey"}

class Flow(nn.Module):
    def forward(self, first, second):
        return None, (first - second)[:, :2]

class Detector(nn.Module):
    def forward(self, images):
        value = images.mean(dim=(1, 2, 3))
        width = torch.full_like(value, images.shape[-1])
        height = torch.full_like(value, images.shape[-2])
        return torch.stack([0 * value, 0 * value, width, height, value, 1 - value], dim=-1).unsqueeze(1)

class Softmax(Linear):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)

class Centres(Detector):
    '''The same boxes as their centres and sizes.'''
    def forward(self, images):
        found = super().forward(images)
        low, high = found[..., :2], found[..., 2:4]
        return torch.cat([(low + high) / 2, high - low, found[..., 4:]], dim=-1)

class Detached(nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3)).detach()

class Stubborn(nn.Module):
    def forward(self, images):
        raise RuntimeError("sides have to be\\n divisible by 7")

def build(options=None, **others):
    return Linear(**others)

def nothing():
    return "a network"

def broken():
    raise OSError("no weights")

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's in the working directory."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name in ("own_networks", "custom_own_networks"):
        sys.modules.pop(name, None)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factory", ["own_networks.Linear", "own_networks.py:Linear", "./own_networks.py:build"])
def test_a_classifier_from_the_working_directory(factory: str) -> None:
    victim = build_custom("classification", factory, {"classes": 5})
    assert isinstance(victim, ClassificationVictim)
    assert victim.name == factory.replace(":", ".").rpartition(".")[2]
    assert victim.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    frames = noise(2, 1, 3, 8, 9)
    torch.testing.assert_close(victim(frames), victim.network.network.head(frames[:, 0].mean(dim=(2, 3))))
    assert not any(p.requires_grad for p in victim.parameters())


def test_a_file_elsewhere_finds_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "neighbour.py").write_text("from own_networks import Means as build\n")
    monkeypatch.chdir(tmp_path / "work")
    assert build_custom("classification", "../neighbour.py:build").classes == ("class 0", "class 1", "class 2")


def test_the_input_is_made_in_the_order_that_is_promised() -> None:
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    victim = build_custom(
        "classification", "own_networks.Means", bgr=True, range=(0, 255), mean=mean, std=std, size=(6, 7)
    )
    frames = noise(1, 1, 3, 6, 7)
    bgr = frames[:, 0].flip(1).mean(dim=(2, 3)) * 255
    torch.testing.assert_close(victim(frames), (bgr - torch.tensor(mean)) / torch.tensor(std))
    signed = build_custom("classification", "own_networks.Means", range=[-1, 1])
    torch.testing.assert_close(signed(frames), frames[:, 0].mean(dim=(2, 3)) * 2 - 1)


def test_depth_in_all_its_units() -> None:
    options: dict[str, Any] = {"output": "depth.0", "size": [8, 10]}
    frames = torch.full((2, 1, 3, 16, 20), 0.25)
    plain = build_custom("depth", "own_networks.Grey", **options)
    assert isinstance(plain, DepthVictim)
    assert not plain.is_metric
    torch.testing.assert_close(plain(frames), torch.full((2, 1, 16, 20), 0.25))
    metric = build_custom(
        "depth", "own_networks.Grey", is_metric=True, depth_range=(1, 80), scale=2, shift=0.5, inverse=True, **options
    )
    assert isinstance(metric, DepthVictim)
    assert metric.is_metric
    assert metric.depth_range == (1, 80)
    torch.testing.assert_close(metric(frames), torch.full((2, 1, 16, 20), 1 / (0.25 * 2 + 0.5)))


def test_flow_takes_two_images() -> None:
    victim = build_custom("flow", "own_networks.Flow", output="1", multiple=4)
    assert isinstance(victim, FlowVictim)
    frames = noise(2, 2, 3, 9, 11).requires_grad_()
    flow = victim(frames)
    torch.testing.assert_close(flow, (frames[:, 0] - frames[:, 1])[:, :2])
    flow.sum().backward()
    assert frames.grad is not None
    assert frames.grad[:, :, :2].abs().min() == 1


def test_a_detectors_boxes_come_back_in_pixels_of_the_frames() -> None:
    victim = build_custom("detection", "own_networks.Detector", size=(32, 32), classes=["car", "sign"])
    assert isinstance(victim, DetectionVictim)
    assert victim.classes == ("car", "sign")
    found = victim(noise(1, 1, 3, 16, 64))
    assert found.shape == (1, 1, 6)
    # 64 × 16 becomes 32 × 8 with 12 rows of grey above and below: the whole input is 64 × 64 pixels of the frame.
    torch.testing.assert_close(found[0, 0, :4], torch.tensor([-0.5, -24.5, 63.5, 39.5]))


def test_boxes_by_their_centres_are_the_same_boxes() -> None:
    frames = noise(2, 1, 3, 16, 64)
    by_corners = build_custom("detection", "own_networks.Detector", size=(32, 32))
    by_centres = build_custom("detection", "own_networks.Centres", size=(32, 32), centres=True)
    torch.testing.assert_close(by_centres(frames), by_corners(frames))


def test_probabilities_become_logits() -> None:
    frames = noise(2, 1, 3, 8, 8).requires_grad_()
    plain = build_custom("classification", "own_networks.Linear")(frames)
    victim = build_custom("classification", "own_networks.Softmax", answer="probabilities")
    torch.testing.assert_close(victim(frames), plain.log_softmax(dim=1))
    victim.network[0].network.head.weight.mul_(1e4)  # a network that is sure says exactly 0 and 1
    assert victim(frames).isfinite().all()


@pytest.mark.parametrize("kind", ["txt", "list.json", "object.json"])
def test_names_of_classes_come_from_files(tmp_path: Path, kind: str) -> None:
    names = [f"name {number}" for number in range(11)]
    found = {
        "txt": "\n".join(names) + "\n\n",
        "list.json": json.dumps(names),
        "object.json": json.dumps({str(number): names[number] for number in (10, *range(10))}),
    }
    (tmp_path / f"names.{kind}").write_text(found[kind])
    victim = build_custom("classification", "own_networks.Linear", {"classes": 11}, classes=f"names.{kind}")
    assert victim.classes == tuple(names)


def test_weights_load_and_have_to_fit(tmp_path: Path) -> None:
    state = {"head.weight": noise(4, 3), "head.bias": noise(4)}
    torch.save({"state_dict": state}, "weights.pt")
    victim = build_custom("classification", "own_networks.Linear", weights="weights.pt")
    assert torch.equal(victim.network.network.head.weight, state["head.weight"])
    with pytest.raises(InputError, match=r"expected the weights of Linear .* \[4, 3\] instead of \[5, 3\]"):
        build_custom("classification", "own_networks.Linear", {"classes": 5}, weights=tmp_path / "weights.pt")
    torch.save(victim.network.network, "network.pt")
    with pytest.raises(InputError, match="trust_checkpoint=true"):
        build_custom("classification", "own_networks.Linear", weights="network.pt")
    trusted = build_custom("classification", "own_networks.Linear", weights="network.pt", trust_checkpoint=True)
    assert torch.equal(trusted.network.network.head.bias, state["head.bias"])


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("segmentation", "own_networks.Means", {}, "victim.task: expected one of classification, depth, flow, detection"),
    ("classification", "own_networks.Nowhere", {}, r"seen from .*got own_networks\.Nowhere: AttributeError"),
    ("classification", "no_such_module.build", {}, "got no_such_module.build: ModuleNotFoundError"),
    ("classification", "build", {}, "expected a function or class as my.module.build"),
    ("classification", "nowhere.py:build", {}, "nowhere.py is no Python file"),
    ("classification", "own_networks.NUMBER", {}, "TypeError: 'int' object is not callable"),
    ("classification", "own_networks.nothing", {}, r"to return a torch\.nn\.Module, got str"),
    ("classification", "own_networks.broken", {}, "OSError: no weights"),
    (
        "classification",
        "own_networks.Means",
        {"factory_args": {"width": 3}},
        r"factory_args=\{'width': 3\}, got TypeEr",
    ),
    ("classification", "own_networks.Stubborn", {}, "RuntimeError: sides have to be divisible by 7; check victim.size"),
    ("classification", "own_networks.Grey", {}, r"expected \[B, K\] for classification, got a dict of depth, name"),
    ("classification", "own_networks.Detached", {}, "expected an output with gradient to the images"),
    ("classification", "own_networks.Means", {"output": "logits"}, r"victim\.output=logits names, got ValueError"),
    ("classification", "own_networks.Means", {"answer": "labels"}, "expected logits or probabilities, .* got labels"),
    ("depth", "own_networks.Grey", {"answer": "probabilities"}, "for classification alone, got probabilities for dep"),
    ("depth", "own_networks.Grey", {"centres": True, "output": "depth.0"}, "victim.centres: expected false for depth"),
    ("classification", "own_networks.Means", {"classes": ["a", "b"]}, "expected 3 names, .* got 2"),
    ("classification", "own_networks.Means", {"classes": "no.txt"}, r"got no\.txt: FileNotFoundError"),
    ("classification", "own_networks.Means", {"is_metric": True}, "got is_metric, scale, shift and inverse too"),
    ("classification", "own_networks.Means", {"size": [3]}, r"expected size \[h,w\] or null"),
    ("depth", "own_networks.Means", {}, r"expected \[B, 1, h, w\] or \[B, h, w\] for depth, got a tensor \[1, 3\]"),
    ("depth", "own_networks.Grey", {"output": "depth"}, "got a list of 2"),
    ("flow", "own_networks.Flow", {}, "got a tuple of 2 for images"),
    ("flow", "own_networks.Means", {}, "expected it to take two images .* got TypeError"),
    ("flow", "own_networks.Flow", {"size": [64, 64], "output": "1"}, "options of a flow network, got size too"),
    ("detection", "own_networks.Means", {}, r"expected \[B, A, 4 \+ K\]"),
]


@pytest.mark.parametrize(("task", "factory", "options", "message"), REFUSED)
def test_what_does_not_fit_is_said_in_one_line(task: str, factory: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_custom(task, factory, **options)
    assert "\n" not in str(caught.value)


def test_random_weights_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_custom("classification", "own_networks.Linear")
    assert torch.equal(torch.rand(1), expected)
    second = build_custom("classification", "own_networks.Linear")
    assert torch.equal(first.network.network.head.weight, second.network.network.head.weight)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real test material in ../shared/real")
def test_a_users_own_depth_network_sees_the_road() -> None:
    victim = build_custom(
        "depth",
        f"{REAL}/networks/rtmonodepth_s.py:RTMonoDepthS",
        weights=REAL / "depth" / "rtmonodepth_s_m_640x192.safetensors",
        size=[192, 640],
    )
    image = cv2.imread(str(REAL / "frames_kitti_drive" / "000000.jpg"), cv2.IMREAD_COLOR_RGB)
    lidar = cv2.imread(str(REAL / "frames_kitti_drive" / "000000_lidar_depth_x256.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert lidar is not None
    with torch.no_grad():
        disparity = victim(torch.from_numpy(image).permute(2, 0, 1)[None, None].float() / 255)
    truth = torch.from_numpy(lidar.astype(np.float32)) / 256
    assert disparity.shape == (1, 1, *truth.shape)
    known = (truth > 0.1) & (truth < 80)
    estimate = 1 / (0.01 + 9.99 * disparity[0, 0][known])
    estimate *= truth[known].median() / estimate.median()
    error = ((estimate - truth[known]).abs() / truth[known]).mean()
    assert error < 0.3  # 0.22 over the whole drive
    assert isinstance(victim.network.network, nn.Module)
