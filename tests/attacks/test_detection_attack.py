from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patchattack.attacks.detection import (
    GOALS,
    KEPT,
    LOST,
    NEW,
    DetectionAttack,
    average_precision,
    match,
)
from patchattack.attacks.objects import Objects
from patchattack.detections import Detections, detections
from patchattack.errors import InputError
from patchattack.scene import Scene, Source, View

NAN = (math.nan,) * 5
SIZE = (64, 96)
VICTIM = SimpleNamespace(name="toy", classes=("person", "traffic light", "car"))
PERSON, LIGHT, CAR = range(3)
LEFT, RIGHT = (10.0, 10.0, 40.0, 40.0), (50.0, 10.0, 90.0, 50.0)  # boxes of objects


class Toy(Source):
    """Scenes with the given boxes, which number ``Car``, ``traffic_light`` and ``tree``."""

    classes = ("Car", "traffic_light", "tree")

    def __init__(self, *boxes: list[tuple[float, ...]] | None) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Scene:
        rows = self.boxes[index]
        boxes = None if rows is None else torch.tensor(rows).view(1, -1, 5)
        frames = torch.full((1, 1, 3, *SIZE), index, dtype=torch.uint8)
        return Scene(frames=frames, index=torch.tensor([index]), boxes=boxes)


def bound(source: Source | None = None, **options: Any) -> DetectionAttack:
    attack = DetectionAttack(**options)
    attack.bind(VICTIM, source or Toy([(*LEFT, 0)]))
    return attack


def candidates(*rows: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """``[1, A, 7]`` of boxes and scores."""
    return torch.tensor([[*box, *scores] for box, scores in rows]).view(1, -1, 7)


def scene(*boxes: list[tuple[float, ...]]) -> Scene:
    """Boxes of each image; rows of NaN fill up."""
    most = max(len(rows) for rows in boxes)
    filled = torch.tensor([rows + [NAN] * (most - len(rows)) for rows in boxes])
    return Scene(frames=torch.zeros(len(boxes), 1, 3, *SIZE), index=torch.arange(len(boxes)), boxes=filled)


def view(count: int = 1, box: tuple[float, ...] = LEFT) -> View:
    left, top, right, bottom = box
    corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=torch.float64)
    empty = torch.zeros(count, 1, 3, *SIZE)
    return View(empty, empty[:, :, :1], corners.expand(count, 1, 4, 2))


def random(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[2, 60, 7]`` around both objects, scores away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([LEFT, RIGHT], dtype=dtype).repeat(30, 1).expand(2, -1, -1)
    boxes = boxes + 6 * torch.randn(2, 60, 4, generator=generator, dtype=dtype)
    return torch.cat([boxes, 0.05 + 0.9 * torch.rand(2, 60, 3, generator=generator, dtype=dtype)], dim=-1)


def loss_of(*scores: float) -> float:
    return math.log(1 + sum(s / (1 - s) for s in scores))


# The loss.


def test_hiding_sees_every_candidate_of_the_object() -> None:
    """Neither the first alone nor the best; other classes and candidates that hardly overlap do not count."""
    output = candidates(
        (LEFT, (0.9, 0.9, 0.2)),
        ((10, 10, 40, 38), (0, 0, 0.8)),
        ((10, 10, 40, 20), (0, 0, 0.5)),  # IoU 1/3
        ((10, 10, 40, 18), (0, 0, 0.7)),  # IoU 0.27
        (RIGHT, (0, 0, 0.99)),
    ).requires_grad_()
    loss = bound().loss(output, output, scene([(*LEFT, 0), (*RIGHT, 0)]), view())
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(loss_of(0.2, 0.8, 0.5), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert (gradient[0, :3, 4 + CAR] > 0).all()
    gradient[0, :3, 4 + CAR] = 0
    assert gradient.abs().max() == 0  # and none to the boxes


@pytest.mark.parametrize("score", [0.01, 0.5, 0.999])
def test_one_candidate_for_an_object_is_enough(score: float) -> None:
    """Heads that give one candidate per object are attacked like those that give many."""
    alone = candidates((LEFT, (0, 0, score)), (RIGHT, (0, 0, 0.3)))
    assert bound().loss(alone, alone, scene([(*LEFT, 0)]), view()).item() == pytest.approx(
        -math.log(1 - score), rel=1e-3
    )
    many = candidates(*[(LEFT, (0, 0, score))] + [(LEFT, (0, 0, 0.0))] * 9)
    assert bound().loss(many, many, scene([(*LEFT, 0)]), view()).item() == pytest.approx(-math.log(1 - score), rel=1e-3)


def test_the_highest_candidate_sinks_fastest() -> None:
    logits = torch.tensor([3.0, 0.0, -3.0], requires_grad=True)
    output = torch.cat([torch.tensor(LEFT).expand(3, 4), torch.zeros(3, 2), logits.sigmoid().unsqueeze(1)], 1)
    loss = bound().loss(output.unsqueeze(0), output, scene([(*LEFT, 0)]), view())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    odds = logits.detach().exp()
    torch.testing.assert_close(gradient, odds / (1 + odds.sum()))


@pytest.mark.parametrize("goal", GOALS)
def test_without_a_candidate_there_is_nothing_to_gain(goal: str) -> None:
    """Zero loss, zero gradient, both finite; the other scene of the batch is not touched."""
    away = candidates(((60, 50, 70, 60), (0.9, 0.9, 0.9)), ((5, 5, 5, 5), (1, 1, 1)))
    there = candidates((LEFT, (0, 0, 0.5)), ((60, 50, 70, 60), (0, 0, 0.5)))
    output = torch.cat([away, there]).requires_grad_()
    loss = bound(goal=goal, target="car").loss(output, output, scene([(*LEFT, 0)], [(*LEFT, 0)]), view(2))
    assert loss.tolist() == pytest.approx([0, math.log(2)])
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() == 0
    assert gradient[1, 0, 4 + CAR] == pytest.approx(-2 if goal == "appear" else 2)


def test_scores_of_zero_and_one_have_finite_gradients() -> None:
    for goal in GOALS:
        for score in (0.0, 1.0):
            output = candidates((LEFT, (0, 0, score))).requires_grad_()
            loss = bound(goal=goal, target="car").loss(output, output, scene([(*LEFT, 0)]), view())
            (gradient,) = torch.autograd.grad(loss.sum(), output)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()
    certain = candidates((LEFT, (0, 0, 1.0))).requires_grad_()
    (gradient,) = torch.autograd.grad(bound().loss(certain, certain, scene([(*LEFT, 0)]), view()).sum(), certain)
    assert gradient[0, 0, 4 + CAR] > 0  # certainty is no way out


def test_a_class_is_hidden_in_all_of_its_objects() -> None:
    """Objects of another class, too small ones, unknown ones and rows of NaN do not count."""
    small = (10.0, 42.0, 40.0, 62.0)
    boxes = [(*LEFT, 0), (*RIGHT, 0), (*small, 0), NAN, (*RIGHT, 1), (*RIGHT, 2)]
    output = candidates((LEFT, (0, 0, 0.2)), (RIGHT, (0.5, 0.9, 0.6)), (small, (0, 0, 0.7)))
    attack = bound(goal="hide_class", target="car")
    loss = attack.loss(output, output, scene(boxes), view())
    assert loss.item() == pytest.approx((loss_of(0.2) + loss_of(0.6)) / 2, rel=1e-5)
    assert bound(target="car").loss(output, output, scene(boxes), view()).item() == pytest.approx(
        loss_of(0.2), rel=1e-5
    )
    of_light = bound(goal="hide_class", target="Traffic-Light", source=Toy([(*LEFT, 1)])).loss(
        output, output, scene(boxes), view()
    )
    assert of_light.item() == pytest.approx(loss_of(0.9), rel=1e-5)
    nobody = scene([NAN, NAN])
    assert attack.loss(output, output, nobody, view()).tolist() == [0]


def test_making_one_appear_lifts_the_best_candidate_on_the_patch() -> None:
    output = candidates(
        ((0, 0, 30, 30), (0.9, 0, 0.2)),  # centre (15, 15)
        ((15, 15, 95, 63), (0, 0, 0.8)),  # centre (55, 39)
        ((35, 35, 43, 43), (0, 0, 0.1)),
    ).requires_grad_()
    attack = bound(goal="appear", target="car")
    loss = attack.loss(output, output, scene([NAN]), view())
    assert loss.item() == pytest.approx(-math.log(0.2))
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert gradient[0, 0, 4 + CAR] == pytest.approx(-5)
    assert gradient.count_nonzero() == 1


@pytest.mark.parametrize("goal", GOALS)
def test_the_gradient_is_the_slope(goal: str) -> None:
    attack = bound(goal=goal, target="car")
    where = scene([(*LEFT, 0), (*RIGHT, 0)], [(*RIGHT, 0)])
    output = random(0, torch.float64).requires_grad_()
    direction = random(1, torch.float64)
    direction[..., :4] = 0  # boxes carry no gradient

    def value(output: Tensor) -> Tensor:
        return (attack.loss(output, output, where, view(2)) * torch.tensor([1.0, 2.0])).sum()

    (gradient,) = torch.autograd.grad(value(output), output)
    step = 1e-7
    with torch.no_grad():
        slope = (value(output + step * direction) - value(output - step * direction)) / (2 * step)
    assert slope.abs() > 1e-3
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


# Detections and matching.


def test_suppression_keeps_images_and_classes_apart() -> None:
    nearly = (10.0, 10.0, 40.0, 39.0)
    first = candidates((nearly, (0.45, 0, 0.6)), (LEFT, (0, 0, 0.9)), (RIGHT, (0, 0, 0.39)))
    second = candidates((nearly, (0, 0, 0.7)), (RIGHT, (0, 0, 0.8)), (LEFT, (0, 0, 0.1)))
    one, two = detections(torch.cat([first, second]), 0.4)
    assert one.classes.tolist() == [CAR, PERSON]
    assert one.scores.tolist() == pytest.approx([0.9, 0.45])
    assert one.boxes.tolist() == [list(LEFT), list(nearly)]
    assert two.scores.tolist() == pytest.approx([0.8, 0.7])
    assert len(detections(candidates((LEFT, (0, 0, 0.39))), 0.4)[0].scores) == 0


def test_an_object_is_found_once_and_by_its_own_class() -> None:
    objects, classes = torch.tensor([LEFT, RIGHT, NAN[:4]]), torch.tensor([CAR, LIGHT, -1])
    found = Detections(
        torch.tensor([(10.0, 10, 40, 36), LEFT, RIGHT, RIGHT]),
        torch.tensor([0.9, 0.8, 0.7, 0.6]),
        torch.tensor([CAR, CAR, CAR, LIGHT]),
    )
    assert match(found, objects, classes, 0.5) == [0, None, None, 1]
    assert match(found, objects, classes, 0.9) == [None, 0, None, 1]
    assert match(found, objects[:0], classes[:0], 0.5) == [None] * 4
    # The detection between two objects takes the one that it fits better, and leaves the other.
    beside = torch.tensor([(10.0, 10, 40, 40), (14.0, 10, 44, 40)])
    between = Detections(torch.tensor([(13.0, 10, 43, 40), (14.0, 10, 44, 40)]), torch.tensor([0.9, 0.8]), classes[:1])
    assert match(between, beside, torch.tensor([CAR, CAR]), 0.5) == [1, 0]


@pytest.mark.parametrize(
    ("right", "objects", "area"),
    [
        ([True, True], 2, 1.0),
        ([True, False], 2, 0.5),
        ([False, True], 1, 0.5),
        ([False, True, True], 2, 2 / 3),  # precision 0, 1/2, 2/3: interpolated to 2/3 at both
        ([True, False, True], 3, (1 + 2 / 3) / 3),
        ([], 2, 0.0),
    ],
)
def test_average_precision_by_hand(right: list[bool], objects: int, area: float) -> None:
    boxes = torch.arange(objects).view(-1, 1) * 50 + torch.tensor([0.0, 0, 30, 30])
    free = iter(boxes)
    found = torch.stack([next(free) if one else torch.tensor([0.0, 500, 9, 509]) for one in right] or [boxes[0]])
    scores = torch.linspace(0.9, 0.5, len(found))
    count = len(right)
    one = Detections(found[:count], scores[:count], torch.full((count,), CAR))
    assert average_precision(one, boxes, torch.full((objects,), CAR)).item() == pytest.approx(area)


def test_average_precision_is_the_mean_of_the_classes_that_are_there() -> None:
    found = Detections(torch.tensor([LEFT, LEFT]), torch.tensor([0.9, 0.8]), torch.tensor([CAR, PERSON]))
    both = torch.tensor([LEFT, RIGHT])
    assert average_precision(found, both, torch.tensor([CAR, LIGHT])).item() == 0.5
    assert average_precision(found, both, torch.tensor([CAR, -1])).item() == 1
    assert average_precision(found, both, torch.tensor([-1, -1])).isnan()


# Metrics.


def test_boxes_of_images_are_matched_in_their_image() -> None:
    """Concatenated, each image's detection would find the other image's object."""
    here, there = candidates((LEFT, (0, 0, 0.9))), candidates((RIGHT, (0, 0, 0.9)))
    attack = bound()
    where = scene([(*LEFT, 0)], [(*RIGHT, 0)])
    right = attack.metrics(torch.cat([here, there]), torch.cat([here, there]), where, view(2))
    swapped = attack.metrics(torch.cat([there, here]), torch.cat([here, there]), where, view(2))
    for name, values in {"recall": (1, 0), "success": (0, 1), "false_positives": (0, 1), "ap50": (1, 0)}.items():
        assert right[name, "all"].tolist() == [values[0]] * 2, name
        assert swapped[name, "all"].tolist() == [values[1]] * 2, name
    assert right["score", "all"].tolist() == pytest.approx([0.9, 0.9])
    assert swapped["score", "all"].tolist() == [0, 0]


def test_what_is_measured_of_one_scene() -> None:
    """Two cars and a light; one car is lost, the other is found twice, the patch is taken for a light."""
    boxes = [(*LEFT, 0), (*RIGHT, 0), (0.0, 50.0, 10.0, 60.0, 1), NAN]
    patch = (60.0, 52.0, 70.0, 62.0)
    clean = candidates((LEFT, (0, 0, 0.9)), (RIGHT, (0, 0, 0.8)), (patch, (0, 0, 0)))
    output = candidates(
        (LEFT, (0.3, 0, 0.35)), (RIGHT, (0, 0, 0.6)), ((50, 10, 90, 34), (0, 0, 0.5)), (patch, (0, 0.7, 0))
    )
    together = bound(goal="hide_class", target="car").metrics(output, clean, scene(boxes), view())
    assert {name: value.item() for (name, _), value in together.items()} == pytest.approx(
        {
            "recall": 0.5,
            "success": 0.5,
            "score": (0.35 + 0.6) / 2,
            "false_positives": 1,
            "ap50": 0.25,  # half of the cars, at full precision; the light is not found
        }
    )
    alone = bound().metrics(output, clean, scene(boxes), view())
    assert [alone[name, "all"].item() for name in ("recall", "success")] == [0, 1]
    assert alone["score", "all"].item() == pytest.approx(0.35)
    unfound = bound().metrics(output, output, scene(boxes), view())
    assert unfound["success", "all"].isnan().all()  # it was not there to be hidden
    strict = bound(confidence=0.3).metrics(output, clean, scene(boxes), view())
    assert strict["recall", "all"].item() == 1


def test_a_found_neighbour_is_not_the_object() -> None:
    """One detection does not find two objects that overlap."""
    behind = (12.0, 10.0, 42.0, 40.0)
    output = candidates((LEFT, (0, 0, 0.9)))
    metrics = bound().metrics(output, output, scene([(*behind, 0), (*LEFT, 0)]), view())
    assert metrics["recall", "all"].item() == 0


def test_nothing_found_and_nothing_to_find() -> None:
    none = candidates((LEFT, (0, 0, 0.0)))
    metrics = bound().metrics(none, none, scene([NAN]), view())
    assert {name: value.item() for (name, _), value in metrics.items() if not value.isnan()} == {"false_positives": 0}
    lost = bound().metrics(none, candidates((LEFT, (0, 0, 0.5))), scene([(*LEFT, 0)]), view())
    assert [lost[name, "all"].item() for name in ("recall", "success", "ap50")] == [0, 1, 0]


def test_success_of_making_one_appear() -> None:
    empty, low, high = (candidates((LEFT, (0.9, 0, score))) for score in (0, 0.3, 0.5))
    elsewhere = candidates((RIGHT, (0, 0, 0.9)))
    output = torch.cat([low, high, high, elsewhere])
    clean = torch.cat([empty, low, high, elsewhere])
    metrics = bound(goal="appear", target="car").metrics(output, clean, scene(*[[NAN]] * 4), view(4))
    success = metrics["success", "all"]
    assert success[[0, 1, 3]].tolist() == [0, 1, 0]
    assert success[2].isnan()  # there was one already
    assert metrics["appear_score", "all"].tolist() == pytest.approx([0.3, 0.5, 0.5, 0])


@pytest.mark.parametrize("goal", GOALS)
def test_scenes_of_a_batch_are_measured_apart(goal: str) -> None:
    attack = bound(goal=goal, target="car")
    output, clean = random(0).requires_grad_(), random(1)
    where = scene([(*LEFT, 0), (*RIGHT, 0)], [(*RIGHT, 0)])
    together = attack.metrics(output, clean, where, view(2)) | {
        ("loss", "all"): attack.loss(output, clean, where, view(2))
    }
    for i in range(2):
        part = slice(i, i + 1)
        args = output[part], clean[part], where.select(part), view()
        alone = attack.metrics(*args) | {("loss", "all"): attack.loss(*args)}
        for key, values in together.items():
            assert values.shape == (2,)
            torch.testing.assert_close(alone[key][0], values[i], equal_nan=True)
    names = {name for name, _ in together} - {"loss"}
    assert names <= set(DetectionAttack.metric_info)
    assert attack.primary_metric[0] in names
    assert not any(value.requires_grad for (name, _), value in together.items() if name != "loss")


# Names, and where objects come from.


@pytest.mark.parametrize("target", ["traffic light", "Traffic_Light", "traffic-light", 1])
def test_names_agree_whatever_their_spelling(target: str | int) -> None:
    attack = bound(Toy([(*LEFT, 1)]), target=target)
    output = candidates((LEFT, (0, 0.6, 0.9)))
    assert attack.loss(output, output, scene([(*LEFT, 1)]), view()).item() == pytest.approx(loss_of(0.6), rel=1e-5)
    assert attack.loss(output, output, scene([(*LEFT, 0)]), view()).item() == 0  # a car
    assert (
        attack.loss(output, output, scene([(*LEFT, 2)]), view()).item() == 0
    )  # a tree, which the victim does not know


def test_each_object_is_hidden_as_what_it_is() -> None:
    attack = bound()
    output = candidates((LEFT, (0, 0.6, 0.9)))
    losses = [attack.loss(output, output, scene([(*LEFT, number)]), view()).item() for number in range(3)]
    assert losses == pytest.approx([loss_of(0.9), loss_of(0.6), 0], rel=1e-5)


def test_labels_make_the_scenes() -> None:
    source = Toy([(*LEFT, 0), (*RIGHT, 1)], [(*LEFT, 2)], [(*RIGHT, 0)])
    attack = bound(source)
    objects = attack.scenes(source, pytest.fail)  # labels need no victim
    assert len(objects) == 3
    assert objects.classes == source.classes
    assert [objects[i].boxes[0, 0, 4].item() for i in range(3)] == [0, 1, 0]
    assert len(bound(source, target="car").scenes(source, pytest.fail)) == 2
    assert len(bound(source, goal="hide_class", target="car").scenes(source, pytest.fail)) == 2
    assert len(bound(source, target="car", min_height=31).scenes(source, pytest.fail)) == 1
    assert bound(source, goal="appear", target="person").scenes(source, pytest.fail) is source


@pytest.mark.parametrize(("labels", "boxes"), [(None, "auto"), ([(*LEFT, 0)], "victim")])
def test_the_victims_detections_make_the_scenes(labels: list | None, boxes: str) -> None:
    """On floats without gradient, and numbered as the victim numbers them."""
    source = Toy(labels, labels, labels)

    def predict(frames: Tensor) -> Tensor:
        assert frames.shape == (1, 1, 3, *SIZE)
        assert frames.dtype == torch.float32
        assert not torch.is_grad_enabled()
        number = round(frames.max().item() * 255)
        return candidates((RIGHT, (0, 0, (0.9, 0.2, 0.5)[number])), ((0, 0, 9, 23), (0.9, 0, 0)))

    attack = bound(source, boxes=boxes)
    objects = attack.scenes(source, predict)
    assert len(objects) == 2  # the second scene shows none, and the person is too small
    assert objects.classes == VICTIM.classes
    assert objects[1].boxes[0, 0].tolist() == [*RIGHT, CAR]
    assert objects[1].frames.max() == 2
    output = predict_once = candidates((RIGHT, (0, 0, 0.5)))
    assert attack.loss(output, predict_once, objects[1], view()).item() == pytest.approx(loss_of(0.5), rel=1e-5)


def test_a_second_victim_takes_the_scenes_as_they_are() -> None:
    """Its classes have other numbers; the boxes stay the first victim's."""
    source = Toy(None)
    attack = bound(source, boxes="victim")
    objects = attack.scenes(source, lambda _: candidates((RIGHT, (0, 0, 0.9))))
    assert isinstance(objects, Objects)
    other = copy.copy(attack)
    other.bind(SimpleNamespace(name="other", classes=("CAR", "dog")), objects)
    output = torch.tensor([[[*RIGHT, 0.5, 0.9]]])
    assert other.loss(output, output, objects[0], view()).item() == pytest.approx(loss_of(0.5), rel=1e-5)


# Pictures.


def test_pictures_show_what_is_found() -> None:
    frame = torch.full((1, 3, *SIZE), 0.5)
    found = candidates((RIGHT, (0, 0, 0.9)), ((5, 5, 30, 60), (0.8, 0, 0)), (LEFT, (0, 0, 0.3)))
    nothing = candidates((LEFT, (0, 0, 0.3)))
    attack = bound(target="car")
    shown, empty = attack.pictures([found, nothing], [frame, frame])
    larger = empty.shape[-1] // SIZE[1]  # a small frame is shown enlarged
    assert shown.shape == empty.shape == (3, larger * SIZE[0], larger * SIZE[1])
    assert larger > 1
    assert torch.equal(empty[:, ::larger, ::larger], frame[0])
    shown = shown[:, larger // 2 :: larger, larger // 2 :: larger]
    orange, blue = (torch.tensor(colour) / 255 for colour in ((0xC2, 0x41, 0x0C), (0x2F, 0x66, 0x90)))
    torch.testing.assert_close(shown[:, 50, 70], orange)
    torch.testing.assert_close(shown[:, 60, 20], blue)
    torch.testing.assert_close(shown[:, 40, 35], frame[0, :, 40, 35], rtol=0, atol=1 / 255)
    picture, text = attack.legend()
    assert picture is None
    assert text == ("Boxes are detections of at least 0.4 with class and score; those of car are orange.")
    (own,) = bound().pictures([found], [frame])
    torch.testing.assert_close(own[:, 60 * larger + larger // 2, 20 * larger + larger // 2], orange)
    assert bound().legend()[1] == "Boxes are detections of at least 0.4 with class and score."


def test_changes_tell_what_is_lost_from_what_is_kept_and_what_is_new() -> None:
    """A second detection of the same object is neither new nor lost."""
    twice = (1.0 + RIGHT[0], *RIGHT[1:])
    clean = candidates((RIGHT, (0, 0, 0.9)), (LEFT, (0, 0, 0.8)))
    kept = candidates((twice, (0, 0, 0.5)), (LEFT, (0, 0, 0.3)), ((5, 5, 30, 60), (0.8, 0, 0)))
    frame = torch.full((1, 3, *SIZE), 0.5)
    (same, changed) = bound(target="car").changes([clean, kept], clean, [frame] * 2)

    def share(picture: Tensor, colour: tuple[int, int, int]) -> float:
        found = ((picture * 255).round() == torch.tensor(colour).view(3, 1, 1)).all(dim=0)
        return float(found.float().mean())

    assert same.shape == changed.shape
    assert [share(same, colour) > 0 for colour in (LOST, KEPT, NEW)] == [False, True, False]
    assert [share(changed, colour) > 0 for colour in (LOST, KEPT, NEW)] == [True, True, True]
    assert share(changed, KEPT) == pytest.approx(share(same, KEPT) / 2, rel=0.3)  # one of two, of about the same size
    assert "dashed red boxes are lost" in bound().changes_legend()[1]
    nothing = bound().changes([candidates()], candidates(), [frame])
    assert share(nothing[0], KEPT) == 0


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("hide", "hides {} of the objects that are found without it"),
        ("hide_class", "hides {} of all objects of class car that are found without it"),
        ("appear", "makes an object of class car appear in {} of the scenes"),
    ],
)
def test_a_verdict_speaks_of_the_goal(goal: str, words: str) -> None:
    size = bound(goal=goal, target=CAR).size
    assert size is not None
    assert (size.metric, size.words) == (("success", "all"), words)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "show"}, r"attack: expected goal of hide, hide_class, appear and boxes of .*, got show and auto"),
        ({"boxes": "both"}, r"attack: expected .* boxes of labels, victim, auto, got hide and both"),
        ({"goal": "appear"}, r"attack\.goal=appear: expected the class that it is about, got none"),
        ({"goal": "hide_class"}, r"attack\.goal=hide_class: expected the class that it is about, got none"),
        ({"confidence": 0}, r"attack\.confidence: expected a number between 0 and 1, got 0"),
        ({"iou": 1.5}, r"attack\.iou: expected a number between 0 and 1, got 1\.5"),
        ({"overlap": -0.1}, r"attack\.overlap: expected a number between 0 and 1, got -0\.1"),
        ({"min_height": -1}, r"attack\.min_height: expected pixels of 0 or more, got -1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DetectionAttack(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "source", "message"),
    [
        ({"target": "trafic lite"}, Toy(None), r"got trafic lite; the nearest names are traffic light"),
        (
            {"target": "xyz"},
            Toy(None),
            r"expected a class of victim toy, by name or as 0 to 2, got xyz; the nearest names are ",
        ),
        ({"target": 3}, Toy(None), r"attack\.target: expected a class of victim toy, by name or as 0 to 2, got 3"),
        ({"target": -1}, Toy(None), r"attack\.target: expected a class of victim toy, by name or as 0 to 2, got -1"),
        ({"boxes": "labels"}, Toy(None), r"attack\.boxes=labels: expected data with boxes, got none"),
        ({"target": "person"}, Toy([]), r"expected boxes of person, got data with Car, traffic_light, tree"),
    ],
)
def test_what_does_not_fit_is_said_before_the_work(options: dict, source: Source, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bound(source, **options)
    assert "\n" not in str(caught.value)


def test_data_of_unknown_classes_is_refused() -> None:
    stranger = SimpleNamespace(name="other", classes=("dog",))
    with pytest.raises(InputError, match=r"victim other: expected boxes of a class that it knows, got data with Car"):
        DetectionAttack().bind(stranger, Toy([(*LEFT, 0)]))
    DetectionAttack(boxes="victim").bind(stranger, Toy([(*LEFT, 0)]))  # labels are not read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "car", "min_height": 50}, r"expected car, labelled and at least 50 px high, got none in 1 scenes"),
        ({"min_height": 50}, r"data: expected an object of a class that the victim knows, labelled and at least 50 px"),
        ({"boxes": "victim", "target": "car"}, r"expected car, detected by the victim at 0\.4 or more and at least 24"),
    ],
)
def test_data_without_an_object_is_refused(options: dict, message: str) -> None:
    source = Toy([(*LEFT, 0)])
    with pytest.raises(InputError, match=message) as caught:
        bound(source, **options).scenes(source, lambda _: candidates((LEFT, (0.9, 0.9, 0.1))))
    assert "\n" not in str(caught.value)
