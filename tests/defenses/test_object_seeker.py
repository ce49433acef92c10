from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import seeding
from patchattack.attacks.detection import DetectionAttack
from patchattack.data.world import World
from patchattack.defenses.defense import Predict
from patchattack.defenses.jpeg import JpegDefense
from patchattack.defenses.object_seeker import EXTRA, ObjectSeeker, half_masks, line_places
from patchattack.defenses.patch_cleanser import mask_out
from patchattack.detections import Detections, area, detections, intersection
from patchattack.errors import InputError
from patchattack.scene import Scene
from patchattack.victims.compact.classification import CompactClassifier
from patchattack.victims.compact.detection import CompactDetector
from patchattack.victims.defended import Defended
from patchattack.webcam.camera_victim import SingleScene

SIZE = (12, 18)
LEFT, RIGHT = (0.5, 3.5, 5.5, 8.5), (11.5, 3.5, 16.5, 8.5)
OBJECTS = torch.tensor([[[*LEFT, 0], [*RIGHT, 1], [torch.nan] * 5, [*LEFT, -1]]])
CONFIDENCE = 0.4


def rows(*candidates: tuple[tuple[float, ...], int, float]) -> Tensor:
    """``[1, A, 6]`` of box, class of two and score."""
    return torch.tensor([[*box, *(score if k == kind else 0.0 for k in (0, 1))] for box, kind, score in candidates])[
        None
    ]


def left_and_right(frames: Tensor) -> Tensor:
    """A box around each white object, as far as it is white, that is sure of it from a third of its pixels on."""
    found = []
    for frame in frames[:, 0]:
        white = frame.amin(dim=0) == 1
        for kind, columns in ((0, slice(None, 9)), (1, slice(9, None))):
            y, x = white[:, columns].nonzero(as_tuple=True)
            x = x + (columns.start or 0)
            box = (x.min(), y.min(), x.max(), y.max()) if len(x) else (0, 0, 0, 0)
            edges = [float(side) + out for side, out in zip(box, (-0.5, -0.5, 0.5, 0.5), strict=True)]
            found.append(rows((tuple(edges), kind, 0.9 if len(x) >= 8 else 0.0)))
    return torch.cat(found, dim=1).view(len(frames), 2, 6)


def two_objects() -> Tensor:
    frames = torch.zeros(1, 1, 3, *SIZE)
    for left, top, right, bottom in (LEFT, RIGHT):
        frames[..., int(top + 0.5) : int(bottom + 0.5), int(left + 0.5) : int(right + 0.5)] = 1
    return frames


def covered(found: Detections, box: tuple[float, ...], kind: int) -> float:
    """The largest share of an object that a detection of its class covers."""
    boxes = found.boxes[found.classes == kind]
    target = torch.tensor([box])
    return (intersection(target, boxes) / area(target)).amax().item() if len(boxes) else 0.0


def scripted(answers: list[Tensor]) -> Predict:
    """Gives its answers in turn: the whole frame's first, then those under the masks."""
    turn = itertools.cycle(answers)
    return lambda _: next(turn)


def test_a_mask_hides_all_that_lies_on_one_side_of_a_line() -> None:
    assert line_places(12, 3).tolist() == [3, 6, 9]
    masks = half_masks(SIZE, 3)
    assert masks.shape == (12, 1, 1, *SIZE)
    assert masks[0, 0, 0, :, 5].tolist() == [True] * 3 + [False] * 9
    assert torch.equal(masks[:3], ~masks[3:6])
    assert masks[6, 0, 0, 5].nonzero().flatten().tolist() == [*range(line_places(18, 3)[0])]
    assert torch.equal(masks[6:9], ~masks[9:])


NOTHING = rows(((0, 0, 0, 0), 0, 0.0))
BOX = (1.5, 1.5, 9.5, 9.5)  # 64 pixels


@pytest.mark.parametrize(
    ("whole", "masked", "expected"),
    [
        # One in the whole frame that covers 0.6 of it stands for it; with less, or of another class, it does not.
        ([((1.5, 1.5, 11.5, 11.5), 0, 0.5)], [(BOX, 0, 0.9)], [((1.5, 1.5, 11.5, 11.5), 0, 0.5)]),
        ([((1.5, 1.5, 6, 9.5), 0, 0.5)], [(BOX, 0, 0.9)], [(BOX, 0, 0.9), ((1.5, 1.5, 6, 9.5), 0, 0.5)]),
        ([(BOX, 1, 0.5)], [(BOX, 0, 0.9)], [(BOX, 0, 0.9), (BOX, 1, 0.5)]),
        # Not sure enough under the mask, or in the whole frame.
        ([], [(BOX, 0, 0.5)], []),
        ([(BOX, 0, 0.3)], [(BOX, 0, 0.9)], [(BOX, 0, 0.9)]),
        # One inside the other is the same object, and the score is the higher one; others stay apart.
        (
            [],
            [((1.5, 1.5, 5.5, 9.5), 0, 0.9), (BOX, 0, 0.7), ((10.5, 1.5, 14.5, 5.5), 0, 0.6), (BOX, 1, 0.8)],
            [(BOX, 0, 0.9), ((10.5, 1.5, 14.5, 5.5), 0, 0.6), (BOX, 1, 0.8)],
        ),
        # What lies out of the frame is cut off.
        ([], [((-9.0, -9.0, 3.5, 4.5), 0, 0.7)], [((-0.5, -0.5, 3.5, 4.5), 0, 0.7)]),
        # Two strips and their corner become one box. Suppression would drop it for another, which covers neither strip.
        (
            [((1.9, 0.5, 10.5, 9.1), 0, 0.95)],
            [((0.5, 8.5, 10.5, 10.5), 0, 0.6), ((0.5, 0.5, 2.5, 10.5), 0, 0.6), ((0.5, 8.5, 2.5, 10.5), 0, 0.6)],
            [((0.5, 0.5, 10.5, 10.5), 0, 0.95)],
        ),
        # The new box drops the first of three in a row; the second, whom that one had dropped, must not drop the third.
        (
            [((3, 3, 13, 13), 0, 0.9), ((4.5, 3, 14.5, 13), 0, 0.8), ((6, 3, 16, 13), 0, 0.7)],
            [((1.5, 13, 13, 14), 0, 0.6), ((1.5, 3, 3, 14), 0, 0.6), ((1.5, 13, 3, 14), 0, 0.6)],
            [((1.5, 3, 13, 14), 0, 0.9), ((6, 3, 16, 13), 0, 0.7)],
        ),
    ],
)
def test_masked_detections_count_once_and_only_where_nothing_stands_for_them(
    whole: list[Any], masked: list[Any], expected: list[Any]
) -> None:
    under = [rows(one) for one in masked]
    answers = [rows(*whole) if whole else NOTHING, *under, *[NOTHING] * (4 - len(under))]
    frames = torch.zeros(1, 1, 3, 20, 20)
    (found,) = detections(ObjectSeeker(lines=1)(frames, scripted(answers)), CONFIDENCE)
    listed = sorted(zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True))
    assert [kind for _, kind, _ in listed] == [kind for _, kind, _ in sorted(expected)]
    for (box, _, score), (wanted, _, of) in zip(listed, sorted(expected), strict=True):
        assert [*box, score] == pytest.approx([*wanted, of])


@pytest.mark.parametrize(
    ("height", "overlap", "proved"),
    [(3, 0.0, False), (4, 0.0, False), (5, 0.0, True), (5, 0.19, True), (5, 0.2, False)],
)
def test_what_stands_for_a_detection_may_lie_beside_the_object(height: int, overlap: float, proved: bool) -> None:
    """0.6 of a detection of 100 pixels count: of an object of 50 pixels inside it, 10 are left at least."""
    found = rows(((0.5, 0.5, 10.5, 10.5), 0, 0.9))
    objects = torch.tensor([[[0.5, 0.5, 10.5, 0.5 + height, 0]]])
    defense = ObjectSeeker(lines=1, side=0.05, overlap=overlap)
    places = defense.certify_objects(torch.zeros(1, 1, 3, 20, 20), scripted([found]), objects, CONFIDENCE)
    assert all(one.item() == proved for one in places.values())


def test_where_a_patch_may_lie_is_proved_by_hand() -> None:
    """Lines before rows 4 and 8 and columns 6 and 12: one alone keeps each object whole and hides the other."""
    defense = ObjectSeeker(lines=2, side=0.25)
    proved = defense.certify_objects(two_objects(), left_and_right, OBJECTS, CONFIDENCE)
    assert {name: one.tolist() for name, one in proved.items()} == {
        "far": [[True, True, False, False]],
        "close": [[False, False, False, False]],  # between an object and its edge of the frame lies no line
        "over": [[False, False, False, False]],
    }
    # With lines everywhere, a patch of a pixel is hidden where it is: a third of an object is enough to see it.
    proved = ObjectSeeker(lines=11, side=0.01).certify_objects(two_objects(), left_and_right, OBJECTS, CONFIDENCE)
    assert proved["close"].tolist() == [[True, True, False, False]]
    assert proved["over"].tolist() == [[True, True, False, False]]
    # More than half must stay covered: 0.6 of the whole object is enough, but not of what a mask leaves of it.
    strict = ObjectSeeker(lines=11, side=0.01, overlap=0.5)
    assert not strict.certify_objects(two_objects(), left_and_right, OBJECTS, CONFIDENCE)["over"].any()


class Adversary:
    """A detector that answers what it likes as soon as it sees any of the patch, which is neither 0 nor 1 nor grey."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, frames: Tensor) -> Tensor:
        seen = (frames == 0.25).flatten(1).any(dim=1)
        honest = F.pad(left_and_right(torch.where(frames == 0.25, 0, frames)), (0, 0, 0, 8))
        objects = torch.tensor([LEFT, RIGHT]).repeat(5, 1)
        boxes = objects + (torch.rand(len(frames), 10, 4, generator=self.generator) - 0.5) * 8
        scores = torch.rand(len(frames), 10, 2, generator=self.generator)
        return torch.where(seen.view(-1, 1, 1), torch.cat([boxes, scores], dim=2), honest)


@pytest.mark.parametrize(("overlap", "pruning"), [(0.0, 0.6), (0.2, 0.8)])
def test_a_certified_object_is_found_whatever_a_network_makes_of_the_patch(overlap: float, pruning: float) -> None:
    """All places of a patch, in and half out of the frame, with a network that the patch rules completely."""
    defense = ObjectSeeker(lines=5, side=0.25, overlap=overlap, pruning=pruning)
    clean, patch = two_objects(), 3
    proved = defense.certify_objects(clean, left_and_right, OBJECTS, CONFIDENCE)
    height, width = SIZE
    kinds = {name: {True: 0, False: 0} for name in proved}
    for number, (top, left) in enumerate(itertools.product(range(-2, height, 3), range(-2, width, 2))):
        frames = clean.clone()
        y, x = slice(max(top, 0), max(top + patch, 0)), slice(max(left, 0), max(left + patch, 0))
        frames[..., y, x] = 0.25
        (found,) = detections(defense(frames, Adversary(number)), CONFIDENCE)
        for kind, box in enumerate((LEFT, RIGHT)):
            gaps = (box[1] - y.stop + 0.5, y.start - 0.5 - box[3], box[0] - x.stop + 0.5, x.start - 0.5 - box[2])
            over = max(gaps) < 0
            near = max(gaps[:2]) < 0.1 * height and max(gaps[2:]) < 0.1 * width
            name = "over" if over else "close" if near else "far"
            kinds[name][bool(proved[name][0, kind])] += 1
            if proved[name][0, kind]:
                assert covered(found, box, kind) > overlap, (top, left, kind)
    assert kinds["far"][True] > 40  # otherwise this tests nothing


class Boxed(SingleScene):
    """One scene with its boxes."""

    classes = ("vehicle", "sign")


@pytest.fixture(scope="module")
def road() -> tuple[Defended, DetectionAttack, Scene]:
    """A compact detector behind the defence, and a vehicle that it finds."""
    world = World(scenes=8, size=(64, 128), frames=1, subject="vehicle", supersampling=1, seed=3)
    victim = CompactDetector("centre")
    attack = DetectionAttack(goal="hide", target="vehicle", min_height=12)
    attack = attack.bound(victim, world)
    scene = attack.scenes(world, victim).__getitems__([3]).to("cpu")
    return Defended(victim, [ObjectSeeker(lines=5, masked_confidence=0.4, side=0.15)]), attack, scene


def test_no_attack_of_ours_hides_a_certified_object(road: tuple[Defended, DetectionAttack, Scene]) -> None:
    """Sign gradient steps through the defence, far from the object and over it, where they hide what is not proved."""
    victim, attack, scene = road
    proved = attack.certified(victim, scene)
    assert proved is not None
    assert scene.boxes is not None
    *box, _ = scene.boxes[0, 0].tolist()
    side, width = 10, scene.size[1]
    places = {"far": (0, 0 if box[0] > width / 2 else width - side), "over": (int(box[3]) - side, int(box[0]) + 2)}
    generator = seeding.generator(0)
    for place, (top, left) in places.items():
        texture = torch.full((3, side, side), 0.5, requires_grad=True)
        for _ in range(12):
            frames = scene.frames.repeat(4, 1, 1, 1, 1)
            frames[..., top : top + side, left : left + side] = texture
            many = Scene(frames, torch.arange(4), boxes=scene.boxes.repeat(4, 1, 1))
            with victim.randomised(generator):
                output = victim(frames)
            attack.loss(output, output, many, None).sum().backward()  # type: ignore[arg-type]
            assert texture.grad is not None
            with torch.no_grad():
                texture -= 0.1 * texture.grad.sign()
                texture.clamp_(0, 1)
            texture.grad = None
        frames = scene.frames.clone()
        frames[..., top : top + side, left : left + side] = texture.detach()
        (found,) = detections(victim(frames), attack.confidence)
        assert bool(proved["recall", place]) == (place == "far")
        assert (covered(found, tuple(box), 0) > 0) == (place == "far"), place


def test_the_certificate_is_of_the_attacked_objects_alone(road: tuple[Defended, DetectionAttack, Scene]) -> None:
    victim, attack, scene = road
    appear = DetectionAttack(goal="appear", target="vehicle").bound(victim, Boxed(scene))
    assert appear.certified(victim, scene) is None
    behind = Defended(victim.network, [JpegDefense(), *victim.defenses])
    assert attack.certified(behind, scene) is None
    sure = DetectionAttack(goal="hide", target="vehicle", confidence=0.6).bound(victim, Boxed(scene))
    with pytest.raises(InputError, match=r"object_seeker\.confidence: expected at least attack\.confidence \(0\.6\)"):
        sure.certified(victim, scene)


def test_an_adaptive_attack_sees_one_mask_of_all_at_a_time_and_the_same_again() -> None:
    defense, asked = ObjectSeeker(lines=3), list[Tensor]()

    def predict(frames: Tensor) -> Tensor:
        asked.append(frames)
        return left_and_right(frames)

    frames = two_objects().repeat(64, 1, 1, 1, 1)
    for seed in (1, 1, 2):
        defense.randomise(seeding.generator(seed))
        assert defense(frames, predict).shape == (64, EXTRA + 2, 6)  # as of the whole answer
    defense.randomise(None)
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])
    allowed = [two_objects(), *(mask_out(two_objects(), mask) for mask in half_masks(SIZE, 3))]
    shown = {next(n for n, one in enumerate(allowed) if torch.equal(frame, one[0])) for frame in asked[0]}
    assert len(shown) > 8


def test_scores_have_a_gradient_and_a_crowd_becomes_one_box_for_each_class() -> None:
    crowd = [
        ((x, y, x + 1.0, y + 1.0), x % 4 // 2, 0.6 + (x + y) / 200) for x in range(0, 22, 2) for y in range(0, 22, 2)
    ]
    whole, under = rows(((0, 0, 0, 0), 0, 0.3)).requires_grad_(), rows(*crowd).requires_grad_()
    answers = [whole, under, NOTHING, NOTHING, NOTHING]
    output = ObjectSeeker(lines=1)(torch.zeros(1, 1, 3, 30, 30), scripted(answers))
    assert output.shape == (1, EXTRA + 1, 6)
    (found,) = detections(output, CONFIDENCE)
    assert found.boxes.tolist() == [[0, 0, 21, 21], [2, 0, 19, 21]]
    assert found.scores.tolist() == pytest.approx([0.8, 0.79])
    output[..., 4:].sum().backward()
    assert under.grad is not None
    assert under.grad.nonzero().tolist() == [[0, len(crowd) - 12, 5], [0, len(crowd) - 1, 4]]  # the highest of each
    assert whole.grad is not None
    assert whole.grad[0, 0, 4] == 1


def test_an_answer_depends_on_its_frame_alone() -> None:
    victim = Defended(CompactDetector("centre", weights="random"), [ObjectSeeker(1, 0.02, 0.02)])  # much is detected
    frames = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(victim(frames[1:])[0], victim(frames)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lines": 0}, r"lines: expected at least 1"),
        ({"overlap": 1.0}, r"overlap: expected a number of 0 or more"),
        ({"side": 0.0}, r"side: expected a number between 0 and 1"),
        ({"masked_confidence": 0.3}, r"masked_confidence: expected at least defense\.object_seeker\.confidence"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=rf"defense\.object_seeker\.{message}"):
        ObjectSeeker(**options)  # type: ignore[arg-type]


def test_a_classifier_has_no_objects() -> None:
    with pytest.raises(InputError, match="expected a victim for detection, where object_seeker is defined"):
        Defended(CompactClassifier(weights="random"), [ObjectSeeker()])
