from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from patchattack import geometry
from patchattack.attacks import classification
from patchattack.attacks.classification import DISTANCES, GOALS, ClassificationAttack
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.scene import Scene, Source, View

SIGNS = ("give way", "no entry", "no_overtaking", "priority-road", "roundabout", "Speed limit 30", "stop", "turn right")
STOP, ROUNDABOUT, GIVE_WAY = 6, 4, 0
VIEW = View(torch.zeros(1), torch.zeros(1), torch.zeros(1))  # not looked at


class Shelf(Source):
    """A source of given scenes that counts how many are taken."""

    def __init__(self, scenes: Sequence[Scene] = (), classes: tuple[str, ...] = ()) -> None:
        self.scenes, self.classes, self.taken = list(scenes), classes, 0

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        self.taken += 1
        return self.scenes[index]


def victim(classes: Sequence[str] = SIGNS) -> SimpleNamespace:
    return SimpleNamespace(name="tiny", classes=tuple(classes))


def attack(goal: str = "targeted", target: str | int | None = "stop", **options: object) -> ClassificationAttack:
    bound = ClassificationAttack(goal, target, **options)  # type: ignore[arg-type]
    bound.bind(victim(), Shelf())
    return bound


def scene(*labels: int) -> Scene:
    count = len(labels)
    return Scene(torch.zeros(count, 1, 3, 4, 4), torch.arange(count), label=torch.tensor(labels))


def unlabelled(count: int) -> Scene:
    return Scene(torch.zeros(count, 1, 3, 4, 4), torch.arange(count))


def logits(**of: float) -> Tensor:
    """``[1, 8]``: 0 but for the signs whose numbers are given as ``s6=1.0``."""
    row = torch.zeros(1, len(SIGNS))
    for name, value in of.items():
        row[0, int(name[1:])] = value
    return row


def random(seed: int, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, len(SIGNS), generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def value(metrics: dict[tuple[str, str], Tensor], name: str) -> list[float | None]:
    """A metric's values, None for those that are not known."""
    return [None if math.isnan(one) else one for one in metrics[name, "all"].tolist()]


@pytest.mark.parametrize(
    ("goal", "distance", "expected"),
    [
        # e² of 7 + e² for sign 6, 1 of 7 + e² for the true sign 0 and for sign 3, which is the least likely when clean
        ("targeted", "log_probability", -math.log(math.exp(2) / (7 + math.exp(2)))),
        ("untargeted", "log_probability", math.log(1 / (7 + math.exp(2)))),
        ("least_likely", "log_probability", -math.log(1 / (7 + math.exp(2)))),
        ("targeted", "logit", -2.0),
        ("untargeted", "logit", 0.0),
        ("least_likely", "logit", 0.0),
        ("targeted", "margin", -2.0),
        ("untargeted", "margin", -2.0),
        ("least_likely", "margin", 2.0),
    ],
)
def test_losses_by_hand(goal: str, distance: str, expected: float) -> None:
    loss = attack(goal, distance=distance, confidence=10.0).loss(logits(s6=2), logits(s0=5, s3=-1), scene(0), VIEW)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("goal", GOALS)
def test_a_margin_that_is_won_weighs_no_more(goal: str) -> None:
    """Below -κ the loss stands still; above it, it is the margin to the next best class."""
    bound = attack(goal, distance="margin", confidence=1.5)
    clean, number = logits(s6=-9, s0=5), (GIVE_WAY if goal == "untargeted" else STOP)
    for lead, expected in ((1.0, -1.0), (4.0, -1.5), (-3.0, 3.0)):
        output = logits(**{f"s{number}": -lead if goal == "untargeted" else lead}).requires_grad_()
        loss = bound.loss(output, clean, scene(GIVE_WAY), VIEW)
        assert loss.item() == pytest.approx(expected)
        (gradient,) = torch.autograd.grad(loss.sum(), output)
        assert (gradient[0, number].item() == 0) == (lead > 1.5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("goal", GOALS)
def test_the_gradient_is_the_slope(goal: str, distance: str) -> None:
    bound = attack(goal, distance=distance, confidence=100.0)
    clean, direction = random(0, dtype=torch.float64), random(2, dtype=torch.float64)
    output = random(1, dtype=torch.float64).requires_grad_()

    def weighted(output: Tensor) -> Tensor:
        return (bound.loss(output, clean, scene(0, 6, -1, 3), VIEW) * torch.arange(1.0, 5.0)).sum()

    (gradient,) = torch.autograd.grad(weighted(output), output)
    assert gradient.abs().amax(dim=1).min() > 0  # every scene pulls, those of the target class too
    step = 1e-6
    with torch.no_grad():
        slope = (weighted(output + step * direction) - weighted(output - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("goal", GOALS)
def test_descent_succeeds(goal: str, distance: str) -> None:
    bound, clean = attack(goal, distance=distance), random(0)
    where = unlabelled(4)
    output = clean.clone().requires_grad_()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(bound.loss(output, clean, where, VIEW).sum(), output)
        output = (output - 0.5 * gradient).detach().requires_grad_()
    assert set(value(bound.metrics(output, clean, where, VIEW), "success")) <= {1.0, None}


def test_confident_logits_have_finite_gradients() -> None:
    for goal in GOALS:
        output = logits(s6=1e4, s0=-1e4).requires_grad_()
        (gradient,) = torch.autograd.grad(attack(goal).loss(output, logits(s0=1), scene(0), VIEW).sum(), output)
        assert gradient.isfinite().all()


def test_targeted_success_counts_what_a_patch_can_win() -> None:
    """Won, missed, of the target class anyway, wrong without a patch, and two without label: one is the target."""
    clean = torch.cat([logits(s0=5), logits(s0=5), logits(s6=5), logits(s1=5), logits(s3=5), logits(s6=5)])
    output = torch.cat([logits(s6=9), logits(s3=9, s6=-1), *[logits(s6=9)] * 4])
    metrics = attack().metrics(output, clean, scene(0, 0, STOP, 2, -1, -1), VIEW)
    assert set(metrics) == {(name, "all") for name in ClassificationAttack.metric_info}
    assert value(metrics, "success") == [1, 0, None, None, 1, None]
    assert value(metrics, "success_top5") == [1, 0, None, None, 1, None]
    assert value(metrics, "accuracy") == [0, 0, 1, 0, None, None]
    sure = math.exp(9) / (math.exp(9) + 7)
    expected = [sure, math.exp(-1) / (math.exp(9) + 6 + math.exp(-1)), None, None, sure, None]
    for found, wanted in zip(value(metrics, "confidence"), expected, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-3))


def test_untargeted_success_is_any_other_class() -> None:
    """The target's own scenes can be won here: targeted and untargeted rates are different things."""
    clean = torch.cat([logits(s0=5), logits(s0=5), logits(s6=5), logits(s1=5), logits(s3=5)])
    output = torch.cat([logits(s1=1), logits(s0=1), logits(s0=1), logits(s5=1), logits(s6=1)])
    where = scene(0, 0, STOP, 2, -1)
    metrics = attack("untargeted", None).metrics(output, clean, where, VIEW)
    assert value(metrics, "success") == [1, 0, 1, None, 1]
    assert value(metrics, "accuracy") == [0, 1, 0, 0, None]
    sure = math.e / (math.e + 7)
    left = 1 - 1 / (math.e + 7)
    assert metrics["confidence", "all"][:3].tolist() == pytest.approx([left, 1 - sure, left])
    assert value(attack().metrics(output, clean, where, VIEW), "success") == [0, 0, None, None, 1]


def test_the_least_likely_class_is_each_scenes_own() -> None:
    clean = torch.cat([logits(s0=5, s2=-1), logits(s3=5, s7=-1), logits(s3=5, s7=-1)])
    output = torch.cat([logits(s2=3), logits(s2=3), logits(s7=3)])
    metrics = attack("least_likely", None).metrics(output, clean, scene(0, -1, 0), VIEW)
    assert value(metrics, "success") == [1, 0, None]


def test_five_best_of_the_classes() -> None:
    clean = logits(s0=5)
    fifth = torch.tensor([[8.0, 7, 6, 5, 1, 2, 4, 3]])  # sign 6 is fifth, sign 7 sixth
    for sign, inside in ((6, True), (7, False)):
        metrics = attack(target=sign).metrics(fifth, clean, scene(0), VIEW)
        assert value(metrics, "success_top5") == [float(inside)]
        assert value(metrics, "success") == [0]
        away = attack("untargeted").metrics(fifth, logits(**{f"s{sign}": 5}), scene(sign), VIEW)
        assert value(away, "success_top5") == [float(not inside)]
        assert value(away, "success") == [1]
    few = ClassificationAttack("targeted", "b")
    few.bind(victim("abcde"), Shelf())
    assert ("success_top5", "all") not in few.metrics(torch.zeros(1, 5), torch.zeros(1, 5), scene(0), VIEW)


@pytest.mark.parametrize("goal", GOALS)
def test_the_clean_frames_are_no_success(goal: str) -> None:
    clean = random(0, 64)
    labels = scene(*clean.argmax(dim=1).tolist())
    for where in (labels, unlabelled(64)):
        metrics = attack(goal).metrics(clean, clean, where, VIEW)
        assert set(value(metrics, "success")) - {None} == {0}
    assert metrics["accuracy", "all"].isnan().all()  # without labels there is none
    assert (attack(goal).metrics(clean, clean, labels, VIEW)["accuracy", "all"] == 1).all()


@pytest.mark.parametrize("goal", GOALS)
def test_scenes_of_a_batch_are_measured_apart(goal: str) -> None:
    bound, clean, output = attack(goal), random(0), random(1)
    labels = [int(clean[0].argmax()), 6, -1, 3]
    together = bound.metrics(output, clean, scene(*labels), VIEW) | {
        ("loss", "all"): bound.loss(output, clean, scene(*labels), VIEW)
    }
    for row, label in enumerate(labels):
        part = slice(row, row + 1)
        alone = bound.metrics(output[part], clean[part], scene(label), VIEW)
        alone["loss", "all"] = bound.loss(output[part], clean[part], scene(label), VIEW)
        for key, values in together.items():
            torch.testing.assert_close(alone[key][0], values[row], equal_nan=True)


def test_metrics_carry_no_gradient_and_are_known() -> None:
    metrics = attack().metrics(random(1).requires_grad_(), random(0), scene(0, 1, 2, 3), VIEW)
    assert not any(values.requires_grad for values in metrics.values())
    assert all(values.shape == (4,) for values in metrics.values())
    assert ClassificationAttack.primary_metric in metrics


@pytest.mark.parametrize("name", ["stop", "STOP", " Stop ", 6, "6"])
def test_a_target_is_found_by_name_or_number(name: str | int) -> None:
    assert attack(target=name).legend()[1].endswith("The target, stop, is orange.")


@pytest.mark.parametrize("name", ["priority road", "Priority_Road", "PRIORITY-ROAD", "priority  road"])
def test_spaces_underscores_and_hyphens_are_the_same(name: str) -> None:
    assert "The target, priority-road" in attack(target=name).legend()[1]


def test_synonyms_stand_for_their_class_unless_another_is_called_so() -> None:
    classes = ("tench, Tinca tinca", "missile", "projectile, missile", "crane", "crane", "7")

    def number(target: str | int) -> Tensor:
        """Where the gradient pushes."""
        bound = ClassificationAttack("targeted", target)
        bound.bind(victim(classes), Shelf())
        output = torch.zeros(1, 6, requires_grad=True)
        return torch.autograd.grad(bound.loss(output, output.detach(), scene(0), VIEW).sum(), output)[0].argmin()

    assert [number(name) for name in ("tinca tinca", "missile", "Projectile", "tench, tinca tinca")] == [0, 1, 2, 0]
    assert [number(name) for name in (4, "7", 0)] == [4, 5, 0]
    with pytest.raises(InputError, match=r"got crane, which names its classes 3 and 4; give the number"):
        number("crane")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("stopp", r"expected a class of victim tiny, by name or as 0 to 7, got stopp; the nearest names are stop, "),
        ("no overtake", r"got no overtake; the nearest names are no_overtaking, "),
        (8, r"expected a class of victim tiny, by name or as 0 to 7, got 8;"),
        (-1, r"by name or as 0 to 7, got -1;"),
    ],
)
def test_an_unknown_target_is_refused(target: str | int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        attack(target=target)
    assert "\n" not in str(caught.value)


def test_a_victim_without_names_is_refused() -> None:
    with pytest.raises(InputError, match="victim tiny: expected the names of its classes, got none"):
        ClassificationAttack("untargeted").bind(victim(()), Shelf())


def test_the_sources_classes_are_mapped_to_the_victims() -> None:
    """In another order, in part, written otherwise; and what is unknown stays unknown."""
    bound = ClassificationAttack("untargeted")
    bound.bind(victim(), Shelf(classes=("Stop", "no overtaking", "stop", "4")))
    clean = torch.cat([logits(s6=5), logits(s2=5), logits(s6=5), logits(s4=5), logits(s1=5)])
    metrics = bound.metrics(clean, clean, scene(0, 1, 2, 3, -1), VIEW)
    assert value(metrics, "accuracy") == [1, 1, 1, 1, None]
    assert value(metrics, "success") == [0, 0, 0, 0, 0]
    loss = bound.loss(clean, clean, scene(0, 1, 2, 3, -1), VIEW)
    torch.testing.assert_close(loss, clean.log_softmax(dim=1).amax(dim=1))


def test_equal_classes_need_no_names_of_their_own() -> None:
    bound = ClassificationAttack("untargeted")
    bound.bind(victim(("crane", "crane", "dog")), Shelf(classes=("crane", "crane", "dog")))
    clean = torch.eye(3)
    assert value(bound.metrics(clean, clean, scene(0, 1, 2), VIEW), "accuracy") == [1, 1, 1]


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (("stop", "yield", "8"), r"got 2 that it has not or has twice: yield, 8; rename them .* \(give way, "),
        (tuple("abcdefgh"), r"data: expected classes that victim tiny tells apart, got 8 .*: a, b, c, d, e, \.\.\.;"),
    ],
)
def test_classes_that_the_victim_does_not_know_are_refused(theirs: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ClassificationAttack("untargeted").bind(victim(), Shelf(classes=theirs))
    assert "\n" not in str(caught.value)


def test_copies_meet_victims_of_their_own() -> None:
    first, second = (copy.copy(one) for one in [ClassificationAttack("targeted", "stop")] * 2)
    first.bind(victim(), Shelf())
    second.bind(victim(("stop", "go")), Shelf())
    assert first.loss(logits(s6=50), logits(s0=1), scene(0), VIEW).item() == pytest.approx(0)
    assert second.loss(torch.tensor([[50.0, 0.0]]), torch.zeros(1, 2), scene(0), VIEW).item() == pytest.approx(0)


def flat(label: int | None, shade: int) -> Scene:
    """A frame of one shade."""
    frames = torch.full((1, 1, 3, 20, 30), shade, dtype=torch.uint8)
    return Scene(frames, torch.tensor([shade]), label=None if label is None else torch.tensor([label]))


def test_the_control_shows_scenes_of_the_target_class() -> None:
    labels = [0, STOP, 2, STOP, STOP, STOP, STOP, STOP]
    shelf = Shelf([flat(label, 10 * number) for number, label in enumerate(labels)])
    patch = Patch.create(resolution=6, size_mm=(60, 40))
    control = attack().controls(shelf, patch)["photo"]
    assert shelf.taken == 6  # no scene after the fourth
    assert control(0).shape == (3, 4, 6)
    shades = [control(repetition).mean().item() * 255 for repetition in range(6)]
    assert shades == pytest.approx([10, 30, 40, 50, 10, 30])
    assert attack("untargeted").controls(shelf, patch) == attack("least_likely").controls(shelf, patch) == {}


def test_without_a_scene_of_the_target_class_there_is_no_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "SEARCHED", 5)
    patch = Patch.create(resolution=4)
    others, strangers = Shelf([flat(0, 0)] * 20), Shelf([flat(None, 0)] * 20)
    assert attack().controls(others, patch) == attack().controls(strangers, patch) == {}
    assert (others.taken, strangers.taken) == (5, 1)
    bound = ClassificationAttack("targeted", "stop")
    ours = Shelf([flat(0, 0)] * 20, classes=("give way", "roundabout"))
    bound.bind(victim(), ours)
    assert bound.controls(ours, patch) == {}
    assert ours.taken == 0


def test_the_control_counts_in_the_victims_numbers() -> None:
    bound = ClassificationAttack("targeted", "stop")
    shelf = Shelf([flat(STOP, 50), flat(0, 90)], classes=("stop", "roundabout", "4", "5", "7", "1", "no entry", "2"))
    with pytest.raises(InputError, match="expected classes"):
        bound.bind(victim(SIGNS[1:]), shelf)
    bound.bind(victim(), shelf)
    assert bound.controls(shelf, Patch.create(resolution=4))["photo"](0).mean().item() == pytest.approx(90 / 255)


@pytest.mark.parametrize("side", [12, 120])
def test_a_surface_is_seen_from_the_front(side: int) -> None:
    """Four colours on a board seen in perspective, near and far, become four quarters; around it is nothing of them."""
    size = (160, 200)
    corners = torch.tensor([[0.0, 0.1], [1.0, 0.0], [0.9, 1.0], [0.1, 0.8]]) * side + 20
    to_board = torch.linalg.inv(geometry.homography_from_corners(corners))
    a, b = geometry.project(to_board, geometry.pixel_grid(size).double()).unbind(-1)
    board = torch.stack([a > 0.5, b > 0.5, torch.ones_like(a, dtype=torch.bool)])
    frame = torch.where(((a - 0.5).abs() < 0.5) & ((b - 0.5).abs() < 0.5), board * 250, 0).to(torch.uint8)
    seen = Scene(
        frame[None, None],
        torch.tensor([0]),
        label=torch.tensor([STOP]),
        surface=corners[None, None],
    )
    photo = attack().controls(Shelf([seen]), Patch.create(resolution=8))["photo"](0) * 255
    expected = torch.zeros(3, 8, 8)
    expected[0, :, 4:] = expected[1, 4:] = expected[2] = 250
    inside = [1, 2, 5, 6]  # texels that touch neither the rim nor the edges between colours
    found, wanted = (image[:, inside][:, :, inside] for image in (photo, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=30 if side == 12 else 1)


def test_many_pixels_to_a_texel_are_averaged() -> None:
    """A fine chequered surface is grey, not a moiré of its pixels."""
    y, x = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    frame = ((x + y) % 2 * 200).to(torch.uint8).expand(1, 1, 3, 100, 100)
    corners = torch.tensor([[10.0, 10.0], [90.0, 10.0], [90.0, 90.0], [10.0, 90.0]])
    seen = Scene(frame, torch.tensor([0]), label=torch.tensor([STOP]), surface=corners[None, None])
    photo = attack().controls(Shelf([seen]), Patch.create(resolution=7))["photo"](0) * 255
    assert (photo - 100).abs().max() < 10


def test_a_photo_of_ones_own_is_the_control(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (50, 30), (255, 0, 51)).save(path)
    shelf = Shelf([flat(STOP, 0)])
    control = attack(photo=str(path)).controls(shelf, Patch.create(resolution=4))["photo"]
    assert shelf.taken == 0
    assert control(3).shape == (3, 4, 4)
    torch.testing.assert_close(control(3).mean(dim=(1, 2)), torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize(("frame", "size"), [((64, 64), (160, 160)), ((40, 100), (160, 400)), ((200, 300), (200, 300))])
def test_pictures_have_the_frames_proportions(frame: tuple[int, int], size: tuple[int, int]) -> None:
    pictures = attack().pictures([logits(s6=3), logits(s0=3)], [torch.zeros(1, 3, *frame)] * 2)
    assert [picture.shape for picture in pictures] == [(3, *size)] * 2
    assert all(picture.min() >= 0 and picture.max() == 1 for picture in pictures)


def bars(picture: Tensor, colour: tuple[int, int, int]) -> list[float]:
    """Of each fifth of a picture, the fraction of the width that its longest run of one colour takes."""
    same = ((picture * 255).round() == torch.tensor(colour).view(3, 1, 1)).all(dim=0)
    return [round(part.sum(dim=1).max().item() / picture.shape[2], 2) for part in same.tensor_split(5)]


def test_bars_show_probabilities_and_the_target_in_orange() -> None:
    orange, grey = (0xC2, 0x41, 0x0C), (0x9A, 0xA1, 0xAB)
    chances = torch.tensor([0.4, 0.02, 0.03, 0.05, 0.06, 0.04, 0.3, 0.1])
    picture, plain = (
        attack(goal).pictures([chances.log()[None]], [torch.zeros(1, 3, 200, 200)])[0] for goal in GOALS[:2]
    )
    inside = 1 - 2 * 0.2 / 5  # the bars' full width is the picture's without its margins
    assert bars(picture, orange) == pytest.approx([0, 0.3 * inside, 0, 0, 0], abs=0.01)
    assert bars(picture, grey) == pytest.approx([0.4 * inside, 0, 0.1 * inside, 0.06 * inside, 0.05 * inside], abs=0.01)
    assert bars(plain, orange) == [0] * 5
    assert attack("untargeted").legend()[0] is None
    assert "orange" not in attack("untargeted").legend()[1]


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("targeted", "makes the victim see stop in {} of the images"),
        ("untargeted", "makes the victim wrong on {} of the images"),
        ("least_likely", "makes the victim see the least likely class in {} of the images"),
    ],
)
def test_a_verdict_speaks_of_the_goal(goal: str, words: str) -> None:
    size = attack(goal, STOP).size  # by its number
    assert size is not None
    assert (size.metric, size.words) == (("success", "all"), words)


def test_changes_show_a_bar_without_the_patch_above_one_with_it() -> None:
    """Classes are those that are likeliest in either."""
    pale, orange = (0xD5, 0xD9, 0xDE), (0xC2, 0x41, 0x0C)
    before = torch.tensor([0.9, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01])
    after = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.1, 0.0, 0.8, 0.0]) + 1e-9
    (picture,) = attack().changes([after.log()[None]], before.log()[None], [torch.zeros(1, 3, 200, 200)])
    inside = 1 - 2 * 0.2 / 5
    assert bars(picture, pale)[:3] == pytest.approx([0.9 * inside, 0.01 * inside, 0.01 * inside], abs=0.01)
    assert bars(picture, orange)[:3] == pytest.approx([0, 0.8 * inside, 0], abs=0.01)
    assert attack().changes_legend() == (
        None,
        "The upper bar of each class is its probability without a patch, the lower one with it.",
    )


def test_long_names_stay_clear_of_the_percentage() -> None:
    bound = ClassificationAttack("untargeted")
    bound.bind(victim(["a very long name indeed of a class that does not fit", "b"]), Shelf())
    picture = bound.pictures([torch.tensor([[4.0, 0.0]])], [torch.zeros(1, 3, 160, 160)])[0]
    columns = (picture[:, :18] < 1).any(dim=0).any(dim=0)  # of the first line of text
    assert columns[6:100].sum() > 40
    runs = "".join("#" if ink else " " for ink in columns).split("      ")  # six white columns between the two
    assert len([run for run in runs if "#" in run]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "away"}, r"attack: expected goal of targeted, untargeted, least_likely and distance of .*, got away"),
        ({"distance": "l2"}, r"distance of log_probability, margin, logit, got targeted and l2"),
        ({"target": None}, r"attack\.target: expected the name or number of a class for attack\.goal=targeted"),
        ({"confidence": -1.0}, r"attack\.confidence: expected a margin of logits of 0 or more, got -1"),
        ({"confidence": math.nan}, r"attack\.confidence: .* got nan"),
        ({"photo": "nowhere.png"}, r"attack\.photo: expected a readable image file, got nowhere\.png"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ClassificationAttack(**({"goal": "targeted", "target": "stop"} | options))
    assert "\n" not in str(caught.value)
