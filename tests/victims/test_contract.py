from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.errors import InputError
from patchattack.victims import contract
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.contract import Finding
from patchattack.victims.victim import ClassificationVictim, DepthVictim, DetectionVictim, FlowVictim, Victim

SIZE = (16, 24)


class Net(nn.Module):
    """A convolution, batch norm and a bounded output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.last = nn.Conv2d(8, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.first(images)).tanh())


class Classifier(ClassificationVictim):
    def __init__(self, classes: int = 4) -> None:
        super().__init__(Net(4), "classifier", [str(number) for number in range(classes)])

    def logits(self, images: Tensor) -> Tensor:
        return self.network(images).mean(dim=(2, 3))


class Depth(DepthVictim):
    def __init__(self, depth_range: tuple[float, float] = (1, 80)) -> None:
        super().__init__(Net(1), "depth", is_metric=True, depth_range=depth_range)

    def depth(self, images: Tensor) -> Tensor:
        return 1 + 79 * self.network(images).sigmoid()


class Flow(FlowVictim):
    def __init__(self) -> None:
        super().__init__(Net(2), "flow", multiple=4)

    def flow(self, frames: Tensor) -> Tensor:
        return self.network(frames[:, 0]) - self.network(frames[:, 1])


class Detector(DetectionVictim):
    def __init__(self) -> None:
        super().__init__(Net(7), "detector", ["a", "b", "c"], multiple=8)

    def candidates(self, images: Tensor) -> Tensor:
        found = self.network(images).flatten(2).mT
        corner = found[..., :2] * 10
        return torch.cat([corner, corner + found[..., 2:4].exp(), found[..., 4:].sigmoid()], dim=-1)


VICTIMS: dict[str, Callable[[], Victim]] = {
    "classification": Classifier,
    "depth": Depth,
    "relative depth": lambda: DepthVictim(Net(1), "relative", is_metric=False, size=(16, 16)),
    "flow": Flow,
    "detection": Detector,
    "compact": lambda: CompactFlow("encoder_decoder", weights="random"),
}


def changed(victim: Victim, **methods: Any) -> Victim:
    """The victim with some of its methods replaced."""
    other: Any = type(f"Other{type(victim).__name__}", (type(victim),), methods)
    victim.__class__ = other
    return victim


def findings(victim: Victim, size: tuple[int, int] = SIZE) -> dict[str, Finding]:
    return {finding.name: finding for finding in contract.check(victim, size)}


@pytest.mark.parametrize("name", VICTIMS)
def test_an_honest_victim_passes_and_stays_as_it_is(name: str) -> None:
    victim = VICTIMS[name]()
    before = copy.deepcopy(victim.state_dict())
    found = findings(victim)
    assert len(found) == 10
    assert [finding for finding in found.values() if not finding.passed] == []
    assert "float64" in found["gradient is the slope"].detail
    assert all(torch.equal(value, before[key]) for key, value in victim.state_dict().items())


def test_the_check_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    findings(Classifier())
    assert torch.equal(torch.rand(1), expected)


def detached_frame(self: Any, frames: Tensor) -> Tensor:
    return self.network(frames[:, 0]) - self.network(frames[:, 1].detach())


def divided(self: Any, images: Tensor) -> Tensor:
    return Classifier.logits(self, images) / images.std()


def in_place(self: Any, frames: Tensor) -> Tensor:
    frames.data.sub_(0.5)
    return ClassificationVictim.forward(self, frames)


def trains(self: Any, mode: bool = True) -> Any:
    return nn.Module.train(self, mode)


def batch_statistics(self: Any, images: Tensor) -> Tensor:
    return Classifier.logits(self, images - images.mean(dim=0))


def noisy(self: Any, images: Tensor) -> Tensor:
    return Classifier.logits(self, images + torch.randn_like(images))


def grey(self: Any, images: Tensor) -> Tensor:
    return Classifier.logits(self, images.mean(dim=1, keepdim=True).expand_as(images))


def argmax(self: Any, images: Tensor) -> Tensor:
    return F.one_hot(Classifier.logits(self, images).argmax(dim=1), 4).float()


def halves_gradient(self: Any, images: Tensor) -> Tensor:  # as recurrent networks do that cut their graph
    return Classifier.logits(self, images / 2 + images.detach() / 2)


def reversed_gradient(self: Any, images: Tensor) -> Tensor:
    return Classifier.logits(self, 2 * images.detach() - images)


def counts(self: Any, images: Tensor) -> Tensor:
    self.network.norm.running_mean += 1
    return Classifier.logits(self, images)


def no_padding(self: Any, frames: Tensor) -> Tensor:
    return self.flow(frames[..., : frames.shape[-2] // 4 * 4, : frames.shape[-1] // 4 * 4])


def centres(self: Any, images: Tensor) -> Tensor:
    found = Detector.candidates(self, images)
    return torch.cat([found[..., :2] + 100, found[..., 2:]], dim=-1)


BROKEN: dict[str, tuple[Callable[[], Victim], str, bool | None, str]] = {
    "nan on flat images": (lambda: changed(Classifier(), logits=divided), "finite on black", False, "black, white"),
    "too few names": (lambda: Classifier(classes=3), "shape of the output", False, r"\[1, 4\], expected \[1, 3\]"),
    "probabilities": (
        lambda: changed(Classifier(), logits=lambda self, images: Classifier.logits(self, images).softmax(1)),
        "units of the output",
        False,
        "expected logits",
    ),
    "depth out of reach": (lambda: Depth(depth_range=(1, 40)), "units of the output", False, "within 1 to 40 m"),
    "negative metres": (
        lambda: DepthVictim(Net(1), "depth", is_metric=True),
        "units of the output",
        False,
        "expected above 0",
    ),
    "scores without sigmoid": (
        lambda: changed(Detector(), candidates=lambda self, images: self.network(images).flatten(2).mT * 9),
        "units of the output",
        False,
        "expected 0 to 1",
    ),
    "centres and sizes": (
        lambda: changed(Detector(), candidates=centres),
        "units of the output",
        None,
        "100% of the boxes end before they begin",
    ),
    "even sizes only": (lambda: changed(Flow(), forward=no_padding), "any size", False, r"\[1, 2, 16, 24\], expected"),
    "noise": (lambda: changed(Classifier(), logits=noisy), "the same again", False, "two calls differ"),
    "in place": (lambda: changed(Classifier(), forward=in_place), "the same again", False, "writes into its input"),
    "batch statistics": (
        lambda: changed(Classifier(), logits=batch_statistics),
        "alone as in",
        False,
        "batch of three",
    ),
    "grey": (lambda: changed(Classifier(), logits=grey), "order of channels", None, "does it see colour"),
    "a frame without gradient": (lambda: changed(Flow(), flow=detached_frame), "gradient to every", False, r", 0$"),
    "no gradient": (lambda: changed(Classifier(), logits=argmax), "gradient to every", False, "RuntimeError"),
    "half a gradient": (lambda: changed(Classifier(), logits=halves_gradient), "gradient is", None, "by 200% of"),
    "reversed gradient": (lambda: changed(Classifier(), logits=reversed_gradient), "gradient is", False, "by -100% of"),
    "train mode": (lambda: changed(Classifier(), train=trains), "frozen", False, "in train mode: the victim, network"),
    "buffers change": (
        lambda: changed(Classifier(), logits=counts),
        "frozen",
        False,
        "step: network.norm.running_mean",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_promise_is_found(name: str) -> None:
    build, promise, passed, detail = BROKEN[name]
    (finding,) = [finding for key, finding in findings(build()).items() if key.startswith(promise)]
    assert finding.passed is passed
    assert re.search(detail, finding.detail), finding.detail


def test_boxes_that_fill_up_an_answer_are_not_counted() -> None:
    """Of what is there, one box in three is a centre and a size, and then all of them."""
    frames = torch.zeros(1, 1, 3, *SIZE)
    answer = torch.zeros(1, 9, 7)
    answer[0, :3, :6] = torch.tensor([[2.0, 2, 8, 8, 0.5, 0], [2, 2, 8, 8, 0.5, 0], [9, 9, 4, 4, 0.5, 0]])
    contract.check_output(Detector(), frames, answer)
    contract.check_output(Detector(), frames, answer[:, :0])  # it finds nothing
    with pytest.raises(InputError, match="100% of the boxes end before they begin"):
        contract.check_output(Detector(), frames, answer[:, 2:])
    answer[0, 3:, :5] = torch.tensor([4, 4, 5, 5, 0.001])  # boxes of nothing, which may be corners as well
    with pytest.raises(InputError, match="by score 99% of the boxes end before they begin"):
        contract.check_output(Detector(), frames, answer[:, 2:])


def test_weights_that_are_not_frozen_are_found() -> None:
    victim = Classifier()
    victim.network.first.bias.requires_grad_(True)
    assert findings(victim)["frozen, in eval mode"].detail == "not frozen: network.first.bias"
    assert victim.network.first.bias.grad is None


@pytest.mark.parametrize("cast", [False, True])
def test_a_network_that_fixes_its_precision_is_compared_in_float32(cast: bool) -> None:
    def single(_: Any, images: Tensor) -> Tensor:
        given = images.float() if cast else images
        return F.conv2d(given, torch.arange(108.0).view(4, 3, 3, 3) / 1000).tanh().mean(dim=(2, 3))

    finding = findings(changed(Classifier(), logits=single))["gradient is the slope"]
    assert finding.passed, finding.detail
    assert "float32" in finding.detail


def test_a_victim_that_fails_is_a_finding_in_one_line() -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("out of\nmemory")

    found = findings(changed(Classifier(), forward=fails))
    assert {finding.detail for finding in found.values()} == {"RuntimeError: out of memory"}
    assert not any(finding.passed for finding in found.values())
