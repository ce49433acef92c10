"""A Python function as a victim, and how all kinds of answers are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError, VictimError
from patchattack.victims import answers, contract
from patchattack.victims.callable import build_callable
from patchattack.victims.victim import ClassificationVictim, DepthVictim, DetectionVictim, FlowVictim, Victim

MODULE = """
import numpy as np

SEEN = []  # what the functions were given

def means(images):
    SEEN.append(images)
    return images.mean(axis=(1, 2)) * 2 - 100

def shares(images):
    values = images.astype(float).mean(axis=(1, 2)) + 1
    return (values / values.sum(axis=1, keepdims=True)).tolist()

def likeliest(images):
    return [{"green": 0.75, "red": 0.25} for _ in images]

def named(images):
    return [("red", "green", "blue")[number] for number in images.mean(axis=(1, 2)).argmax(axis=1)]

def numbered(images):
    return images.mean(axis=(1, 2)).argmax(axis=1)

def grey(images):
    SEEN.append(images)
    return images[:, ::2, ::2].mean(axis=3)

def flow(first, second):
    SEEN.append(first)
    return second.astype(np.float32)[..., :2] - first[..., :2]

def boxes(images):
    sizes = [(len(image), image.shape[1]) for image in images]
    return [[[0, 0, w, h, 0.25, "car"], [1, 2, 3, 4, 0.5, 1]][: 2 * bool(image.any())]
            for image, (h, w) in zip(images, sizes)]

def crowd(images):
    return [[[0, 0, n, n, n / 200, 0] for n in range(150)] for _ in images]

def candidates(images):
    return np.tile(np.array([1, 2, 3, 4, 0.5, 0.125]), (len(images), 7, 1))

FAILS = False
def moody(images):
    if FAILS:
        raise OSError("the licence\\n has expired")
    return means(images)

INSTEAD = []
def wrong(images):
    return INSTEAD[0] if INSTEAD else means(images)

NUMBER = 3
"""
COLOURS = ["red", "green", "blue"]


@pytest.fixture(autouse=True)
def _functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    sys.modules.pop("mine", None)


def build(task: str, function: str, **options: Any) -> Victim:
    return build_callable(task, f"mine.{function}", **options)


def mine() -> Any:
    return sys.modules["mine"]


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_a_function_sees_images_as_files_have_them_and_its_answer_has_no_gradient() -> None:
    victim = build("classification", "means", classes=COLOURS)
    assert isinstance(victim, ClassificationVictim)
    assert (victim.name, victim.classes, victim.differentiable) == ("means", tuple(COLOURS), False)
    frames = (noise(2, 1, 3, 8, 9) * 255).round() / 255
    logits = victim(frames.requires_grad_())
    assert not logits.requires_grad
    assert mine().SEEN[-1].dtype == np.uint8
    assert np.array_equal(mine().SEEN[-1], (frames.detach()[:, 0] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(logits, frames[:, 0].detach().mean(dim=(2, 3)) * 510 - 100)
    assert torch.equal(victim(torch.full((1, 1, 3, 2, 2), 1.1)), torch.full((1, 3), 410.0))  # no overflow


def test_a_function_may_ask_for_floats_and_for_a_size() -> None:
    victim = build("classification", "means", images="float", size=[4, 6])
    assert victim.classes == ("class 0", "class 1", "class 2")
    frames = noise(2, 1, 3, 4, 6)
    victim(frames)
    assert np.array_equal(mine().SEEN[-1], frames[:, 0].permute(0, 2, 3, 1).numpy())
    victim(noise(1, 1, 3, 40, 30))
    assert mine().SEEN[-1].shape == (1, 4, 6, 3)


def test_probabilities_become_logits() -> None:
    frames = torch.zeros(1, 1, 3, 2, 2)
    frames[:, :, 0] = 2 / 255
    logits = build("classification", "shares", answer="probabilities")(frames)
    torch.testing.assert_close(logits.softmax(dim=1), torch.tensor([[0.6, 0.2, 0.2]]))
    some = build("classification", "likeliest", answer="probabilities", classes=COLOURS)(frames)
    torch.testing.assert_close(some.softmax(dim=1), torch.tensor([[0.25, 0.75, 0.0]]))
    assert some[0, 2] == pytest.approx(np.log(answers.FLOOR))


@pytest.mark.parametrize("function", ["named", "numbered"])
def test_labels_become_probabilities_of_one(function: str) -> None:
    frames = torch.zeros(3, 1, 3, 2, 2)
    for number, channel in enumerate((2, 0, 1)):
        frames[number, :, channel] = 1
    logits = build("classification", function, answer="labels", classes=COLOURS)(frames)
    expected = torch.eye(3)[[2, 0, 1]]
    torch.testing.assert_close(logits.softmax(dim=1), expected, rtol=0, atol=1e-9)
    assert logits.isfinite().all()


def test_depth_comes_in_units_and_at_the_size_of_the_frames() -> None:
    victim = build(
        "depth", "grey", size=[8, 10], is_metric=True, depth_range=[0.5, 80], scale=0.5, shift=1.0, inverse=True
    )
    assert isinstance(victim, DepthVictim)
    assert victim.is_metric
    assert victim.depth_range == (0.5, 80)
    found = victim(torch.full((2, 1, 3, 16, 20), 0.2))
    torch.testing.assert_close(found, torch.full((2, 1, 16, 20), 1 / (0.5 * 51 + 1)))
    assert mine().SEEN[-1].shape == (2, 8, 10, 3)


def test_flow_takes_two_arrays_and_may_have_its_vectors_last() -> None:
    victim = build("flow", "flow", multiple=4)
    assert isinstance(victim, FlowVictim)
    frames = torch.zeros(2, 2, 3, 5, 6)
    frames[:, 1, 0], frames[:, 0, 1] = 3 / 255, 1 / 255
    expected = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 5, 6)
    torch.testing.assert_close(victim(frames), expected)
    assert mine().SEEN[-1].shape == (2, 8, 8, 3)


def test_boxes_become_as_many_candidates_for_every_image() -> None:
    victim = build("detection", "boxes", classes=["car", "sign"])
    assert isinstance(victim, DetectionVictim)
    frames = torch.zeros(2, 1, 3, 8, 12)
    frames[1] = 1
    found = victim(frames)
    assert found.shape == (2, answers.BOXES, 6)
    assert not found[0, :, 4:].any()
    assert found[1, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 0, 0.5]  # the best first; a centre is an integer
    assert found[1, 1].tolist() == [-0.5, -0.5, 11.5, 7.5, 0.25, 0]
    assert not found[1, 2:, 4:].any()
    crowded = build("detection", "crowd", classes=["car"])(frames)
    assert crowded.shape == (2, answers.BOXES, 5)
    assert crowded[0, :, 4].min() == pytest.approx(50 / 200)  # the best are kept


def test_candidates_come_as_they_are() -> None:
    victim = build("detection", "candidates", answer="candidates")
    assert victim.classes == ("class 0", "class 1")
    assert victim(torch.zeros(3, 1, 3, 8, 8))[2, 6].tolist() == [0.5, 1.5, 2.5, 3.5, 0.5, 0.125]


@pytest.mark.parametrize(
    ("task", "function", "options"),
    [
        ("classification", "means", {}),
        ("classification", "named", {"answer": "labels", "classes": COLOURS}),
        ("depth", "grey", {"size": [16, 16]}),
        ("flow", "flow", {}),
        ("detection", "boxes", {"classes": ["car", "sign"]}),
    ],
)
def test_it_keeps_the_contract_of_what_only_answers(task: str, function: str, options: dict[str, Any]) -> None:
    found = {finding.name: finding for finding in contract.check(build(task, function, **options), (16, 24))}
    assert not [finding for finding in found.values() if finding.passed is False]
    assert found["it is a black box"].passed
    assert "gradient to every frame" not in found


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("segmentation", "means", {}, "victim.task: expected one of classification, depth, flow, detection"),
    ("classification", "nowhere", {}, r"victim\.function: expected a function .* got mine\.nowhere: AttributeError"),
    ("classification", "NUMBER", {}, "to be a function, got int"),
    ("classification", "means", {"images": "png"}, "expected uint8 or float, got png"),
    ("classification", "means", {"answer": "boxes"}, "expected logits or probabilities or labels for classification"),
    ("classification", "named", {"answer": "labels"}, "expected the names that answer=labels chooses among, got none"),
    ("detection", "boxes", {}, "expected the names that answer=boxes chooses among"),
    ("classification", "shares", {}, "got probabilities; give victim.answer=probabilities"),
    ("classification", "means", {"answer": "probabilities"}, r"expected probabilities in \[0, 1\], got 156 to 156"),
    ("classification", "likeliest", {"answer": "probabilities"}, "expected victim.classes, among which names choose"),
    ("classification", "means", {"classes": ["a", "b"]}, r"expected logits \[B, 2\], got an array \[1, 3\]"),
    ("classification", "named", {"answer": "labels", "classes": ["blue", "green"]}, "its number below 2, got 'red'"),
    ("classification", "flow", {}, "expected an answer, got TypeError"),
    ("classification", "boxes", {"classes": COLOURS}, "expected logits, got ValueError"),
    ("depth", "means", {}, r"expected depth \[B, h, w\] or \[B, 1, h, w\], got an array \[1, 3\]"),
    ("depth", "grey", {"classes": COLOURS}, "expected options of a depth network, got classes too"),
    ("flow", "flow", {"size": [8, 8]}, "expected options of a flow network, got size too"),
]


@pytest.mark.parametrize(("task", "function", "options", "message"), REFUSED)
def test_what_does_not_fit_is_said_in_one_line(task: str, function: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(task, function, **options)
    assert "\n" not in str(caught.value)


WRONG: dict[str, tuple[Any, str]] = {
    "NaN": (np.full((2, 3), [1, np.nan, 2]), "NaN or infinite ones for 2 of 2 image"),
    "infinite": (np.array([[1, 2, 3], [1, 2, np.inf]]), "NaN or infinite ones for 1 of 2 image"),
    "another shape": (np.zeros((2, 4)), r"expected logits \[B, 3\], got an array \[2, 4\]"),
    "too few": (np.zeros((1, 3)), r"expected answers to 2 image\(s\), got 1"),
    "none": (None, "got nothing"),
    "nothing": ([], "got nothing"),
    "ragged": ([[1, 2, 3], [1]], "expected logits, got ValueError"),
    "words": ([["a", "b", "c"]] * 2, "expected logits, got ValueError"),
    "a number": (3, "expected logits, got TypeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_none_is_one_line_in_the_middle_of_the_work(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = build("classification", "wrong")
    answer, message = WRONG[name]
    monkeypatch.setattr(mine(), "INSTEAD", [answer])
    with pytest.raises(VictimError, match=message) as caught:
        victim(torch.zeros(2, 1, 3, 4, 4))
    assert str(caught.value).startswith("victim wrong: expected ")
    assert "\n" not in str(caught.value)


def test_a_box_beyond_float32_is_refused_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    build("classification", "means")
    monkeypatch.setattr(mine(), "INSTEAD", [[[]]])
    victim = build("detection", "wrong", classes=COLOURS)
    monkeypatch.setattr(mine(), "INSTEAD", [[[[0, 0, 1e300, 4, 0.5, 0]]]])
    with pytest.raises(VictimError, match="NaN or infinite ones for 1 of 1 image"):
        victim(torch.zeros(1, 1, 3, 4, 4))


def test_a_function_that_fails_is_one_line_in_the_middle_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = build("classification", "moody")
    monkeypatch.setattr(mine(), "FAILS", True)
    with pytest.raises(VictimError, match="expected an answer, got OSError: the licence has expired"):
        victim(torch.zeros(1, 1, 3, 4, 4))


def test_an_answer_is_the_victims_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = build("classification", "wrong")
    same = np.zeros((1, 3), np.float32)
    monkeypatch.setattr(mine(), "INSTEAD", [same])
    first = victim(torch.zeros(1, 1, 3, 4, 4))
    same += 1
    assert not first.any()


def test_a_gradient_that_is_denied_is_found() -> None:
    victim = ClassificationVictim(torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()), "mean", COLOURS)
    victim.differentiable = False
    found = {finding.name: finding for finding in contract.check(victim, (4, 4))}
    assert not found["it is a black box"].passed
