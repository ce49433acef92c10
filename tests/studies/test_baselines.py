"""The attacks of the lectures: against hand formulas, and what a transformation destroys."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack import files, seeding
from patchattack.attacks.flow import FlowAttack
from patchattack.eot.appearance import Brightness, PrintNoise
from patchattack.eot.camera import SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.errors import InputError
from patchattack.job import Settings
from patchattack.patch import Patch
from patchattack.scene import Scene, Source
from patchattack.studies.single_image.baselines import BASELINES, Limits, Subject, craft, second
from patchattack.studies.single_image.baselines_report import publish
from patchattack.studies.single_image.baselines_study import BaselinesStudy, Photograph, destruction_rate, measure
from patchattack.studies.single_image.subject import Goal
from patchattack.victims.victim import ClassificationVictim

SIZE = (8, 8)
CLASSES = ("red", "green", "blue")


class Linear(ClassificationVictim):
    """Logits are linear in the values, a little of the mean colour and a little of a fixed pattern."""

    def __init__(self) -> None:
        network = nn.Linear(3 * SIZE[0] * SIZE[1], 3)
        with torch.no_grad():
            pattern = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 0.02
            network.weight.copy_((pattern + torch.eye(3).view(3, 3, 1, 1) / 6).flatten(1))
            network.bias.zero_()
        super().__init__(network, "linear", CLASSES)

    def logits(self, images: Tensor) -> Tensor:
        return self.network(images.flatten(1))


class Colours(Source):
    """Noise about grey with a little more of the colour that is the label."""

    classes = CLASSES

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Scene:
        frame = torch.rand(1, 1, 3, *SIZE, generator=seeding.generator(index)) * 100 + 70
        frame[:, :, index % 3] += 15
        return Scene(frame.byte(), torch.tensor([index]), label=torch.tensor([index % 3]))


def images(numbers: list[int]) -> tuple[Tensor, Tensor]:
    scene = Colours().__getitems__(numbers).to("cpu")
    assert scene.label is not None
    return scene.frames[:, 0], scene.label


def subject(**limits: Any) -> Subject:
    return Subject(Linear(), images([3, 4, 5])[0], Limits(**limits), batch=4)


def gradient(victim: Linear, pixels: Tensor, classes: Tensor) -> Tensor:
    """Of the cross-entropy, by hand: W^T (p - y)."""
    error = victim(pixels[:, None]).softmax(dim=1) - F.one_hot(classes, 3)
    return (error @ victim.network.weight).unflatten(1, (3, *SIZE))


# Attacks


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_its_formula(targeted: bool) -> None:
    pixels, classes = images([0, 1, 2, 4, 6])
    if targeted:
        classes = (classes + 1) % 3
    of = subject(eps=6)
    sign = gradient(Linear(), pixels, classes).sign() * (-1 if targeted else 1)
    expected = (pixels + 6 / 255 * sign).clamp(0, 1)
    assert torch.allclose(craft("fgsm", of, pixels, classes, targeted), expected, atol=1e-6)


def test_bim_of_one_step_is_fgsm_and_of_many_stays_within_eps() -> None:
    pixels, classes = images([0, 1, 2])
    one = subject(eps=4, step=4, iterations=1)
    assert torch.allclose(
        craft("bim", one, pixels, classes, False), craft("fgsm", one, pixels, classes, False), atol=1e-6
    )
    many = craft("bim", subject(eps=4, step=3, iterations=5), pixels, classes, False)
    assert (many - pixels).abs().max() <= 4 / 255 + 1e-6


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_attack_succeeds_where_a_linear_victim_lets_it(name: str, targeted: bool) -> None:
    baseline = BASELINES[name]
    if name in ("signs", "universal") or (targeted and baseline.goals == ("untargeted",)):
        return
    pixels, truth = images([0, 1, 2, 6])
    aim = (truth + 2) % 3 if targeted else truth
    of = subject(eps=40, step=8, share=0.5, iterations=10)
    changed = craft(name, of, pixels, aim, targeted)
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    found = of.logits(changed).argmax(dim=1)
    won = found == aim if targeted else found != truth
    assert won.float().mean() >= (0.5 if name == "jsma" else 1.0)
    if name in ("fgsm", "bim", "least_likely", "pgd"):
        assert (changed - pixels).abs().max() <= 40 / 255 + 1e-6


def test_deepfool_of_a_linear_victim_goes_straight_to_the_nearest_border() -> None:
    pixels, truth = images([0, 1, 2])
    victim = Linear()
    changed = craft("deepfool", subject(), pixels, truth, False)
    weights, logits = victim.network.weight, victim(pixels[:, None])
    for row, label in enumerate(truth.tolist()):
        distances = [
            float((logits[row, label] - logits[row, k]) / (weights[label] - weights[k]).norm())
            for k in range(3)
            if k != label
        ]
        assert float((changed[row] - pixels[row]).norm()) == pytest.approx(1.02 * min(distances), rel=0.01)


def test_lbfgs_is_nearly_as_small_as_it_can_be() -> None:
    pixels, truth = images([0, 1])
    aim = (truth + 1) % 3
    weights, logits = Linear().network.weight, Linear()(pixels[:, None])
    changed = craft("lbfgs", subject(searches=10), pixels, aim, True)
    for row in range(2):
        apart = logits[row, truth[row]] - logits[row, aim[row]]
        least = float(apart / (weights[truth[row]] - weights[aim[row]]).norm())
        assert least <= float((changed[row] - pixels[row]).norm()) <= 1.5 * least


def test_the_universal_perturbation_is_one_and_learned_on_other_images() -> None:
    pixels, truth = images([0, 3, 6, 9])  # of one class, as the others: one direction leads away from all
    of = Subject(Linear(), images([12, 15, 18])[0], Limits(eps=40), batch=4)
    change = craft("universal", of, pixels, truth, False) - pixels
    assert (of.logits(pixels + change).argmax(dim=1) != truth).float().mean() > 0.5
    assert change.abs().max() <= 40 / 255 + 1e-6
    assert torch.allclose(change, change[:1].expand_as(change), atol=1e-6)
    with_others = craft("universal", of, pixels[:2], truth[:2], False) - pixels[:2]
    assert torch.allclose(with_others, change[:2], atol=1e-6)


def test_random_signs_are_as_large_as_fgsm() -> None:
    pixels, truth = images([0, 1])
    change = craft("signs", subject(eps=5), pixels, truth, False) - pixels
    assert torch.allclose(change.abs(), torch.tensor(5 / 255), atol=1e-6)
    assert change.sign().mean().abs() < 0.2


def test_attacks_are_the_same_again_and_leave_the_process_its_random_numbers() -> None:
    pixels, truth = images([0, 1])
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    first, again = (craft("pgd", subject(), pixels, truth, False) for _ in range(2))
    assert torch.equal(first, again)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002


def test_second() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert second(logits, torch.tensor([0, 1])).tolist() == [1, 0]


# Print and photograph


def test_destruction_rate_by_hand() -> None:
    truth = torch.tensor([0, 1, 2, 0])
    won = torch.tensor([True, True, True, False])
    after = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 2]])  # two draws
    rate = destruction_rate(truth, won, after)
    assert rate[:3].tolist() == [1.0, 0.5, 0.0]
    assert math.isnan(rate[3])
    assert np.nanmean(rate) == pytest.approx(0.5)


def test_a_photograph_depends_on_its_own_draw_alone_and_prints_8_bits() -> None:
    pixels, _ = images([0, 1, 2])
    take = Photograph({"noise": PrintNoise(), "brightness": Brightness()}, {"sensor": SensorNoise()})
    together = take(pixels, seeding.numbers([(0,), (1,), (2,)]))
    alone = take(pixels[1:2], seeding.numbers([(1,)]))
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.allclose(Photograph({}, {})(pixels + 0.4 / 255, seeding.numbers([(0,)] * 3)), pixels, atol=1e-6)


# The table


def trial(**given: Any) -> BaselinesStudy:
    options: dict[str, Any] = {
        "victim": Linear(),
        "goal": Goal("targeted", "blue"),
        "source": Colours(),
        "settings": Settings(steps=1, batch=1, split=(0.5, 0.1, 0.4)),
        "images": 8,
        "attacks": ["signs", "fgsm", "least_likely"],
        "limits": Limits(eps=30),
        "photograph": Photograph({}, {}),
        "draws": 1,
        "batch": 3,
        "seed": 0,
        "placement": Uniform(side=0.5),
    }
    return BaselinesStudy(**options | given)


def test_the_table_has_a_row_for_every_goal_and_its_controls() -> None:
    rows = measure(trial(patch=Patch.create(resolution=8)))
    found = {(row["attack"], row["goal"]): row for row in rows}
    assert list(found) == [
        ("none", "untargeted"),
        ("signs", "untargeted"),
        ("fgsm", "untargeted"),
        ("fgsm", "targeted"),
        ("least_likely", "least_likely"),
        ("random", "targeted"),
        ("patch", "targeted"),
    ]
    assert found["none", "untargeted"]["success"] == 0
    blue = sum(number % 3 == 2 for number in range(12, 20))
    assert found["none", "untargeted"]["n"] == 8
    assert found["fgsm", "targeted"]["n"] == 8 - blue  # those that are blue already do not count
    untargeted = found["fgsm", "untargeted"]
    assert untargeted["success"] == 1
    assert untargeted["linf"] == pytest.approx(30 / 255, abs=1e-6)
    # A file of 8 bits holds this attack as it is: nothing is destroyed.
    assert (untargeted["left"], untargeted["destroyed"], untargeted["destroyed_n"]) == (1, 0, 8)


def test_what_a_transformation_takes_is_counted() -> None:
    class Whitened(Brightness):
        def apply(self, image: Tensor, parameters: Tensor, origin: Tensor) -> Tensor:
            return image + torch.tensor([0.9, 0.0, 0.0]).view(1, 3, 1, 1)  # all is red

    rows = measure(trial(attacks=["fgsm"], photograph=Photograph({"w": Whitened()}, {})))
    found = {(row["attack"], row["goal"]): row for row in rows}
    red = sum(number % 3 == 0 for number in range(12, 20))
    assert found["none", "untargeted"]["left"] == pytest.approx(1 - red / 8)
    assert found["fgsm", "untargeted"]["destroyed"] == pytest.approx(red / 8)
    assert found["fgsm", "targeted"]["left"] == 0


def test_the_least_likely_class_is_that_of_the_clean_image() -> None:
    goal = Goal("least_likely")
    goal.bind(Linear(), Colours())
    scene = Colours().__getitems__([0, 1]).to("cpu")
    clean = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    assert goal.aim(clean, scene).tolist() == [1, 0]
    assert goal.winnable(clean, scene).tolist() == [True, True]
    assert goal.succeeds(torch.tensor([[1, 1], [0, 0]]), torch.tensor([1, 0])).tolist() == [
        [True, False],
        [False, True],
    ]


def test_it_is_published_as_files_and_as_text(tmp_path: Path) -> None:
    shown = trial(patch=Patch.create(resolution=8))
    rows = measure(shown, path=tmp_path / "results.json")
    text = publish(shown, rows, tmp_path, "patchattack baselines", {"torch": "2"})
    assert "| FGSM, to blue (Goodfellow et al. 2015) |" in text
    assert len(text.splitlines()) == 2 + 2 + len(rows) + 2
    assert json.dumps(files.read_rows(tmp_path / "results.json")) == json.dumps(rows)
    assert (tmp_path / "results.csv").read_text().count("\n") == 1 + len(rows)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "random patch (control)" in page


# Going on


def test_rows_that_are_there_are_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    whole = json.dumps(measure(trial(), path=path))
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))  # interrupted after two of them
    left: list[tuple[str, str]] = []

    def progress(work: Any) -> Any:
        left.extend(work)
        return work

    assert json.dumps(measure(trial(), progress, path)) == whole
    assert left == [("fgsm", "untargeted"), ("fgsm", "targeted"), ("least_likely", "least_likely")]


DAMAGED: dict[str, Any] = {
    "no JSON": "[",
    "no rows": '{"attack": "none"}',
    "no attack": [{"goal": "untargeted", "n": 3}],
    "another attack": [{"attack": "fgsn", "goal": "untargeted", "n": 0}],
    "no such goal": [{"attack": "fgsm", "goal": "least_likely", "n": 0}],
    "twice": [{"attack": "none", "goal": "untargeted", "n": 0}] * 2,
    "no count": [{"attack": "none", "goal": "untargeted"}],
    "no rates": [{"attack": "none", "goal": "untargeted", "n": 3}],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_rows_that_are_damaged_are_refused(tmp_path: Path, name: str) -> None:
    path, damaged = tmp_path / "results.json", DAMAGED[name]
    path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(InputError, match=r"results\.json: expected what a run has written"):
        measure(trial(), path=path)


# Bad input


def test_what_cannot_be_measured_is_said_first() -> None:
    with pytest.raises(InputError, match=r"attacks: expected some of signs, fgsm, .*, got fgms; perhaps fgsm"):
        trial(attacks=["fgms"])
    with pytest.raises(InputError, match=r"images: expected at most 8, .* got 9"):
        trial(images=9)
    with pytest.raises(InputError, match="draws: expected at least 1, got 0"):
        trial(draws=0)
    with pytest.raises(InputError, match="limits: expected 0 < step <= eps <= 255 levels, got 9 and 8"):
        Limits(step=9)
    with pytest.raises(InputError, match="expected attack=classification, got one for flow"):
        Goal.of(FlowAttack())

    class Answering(Linear):
        differentiable = False

    with pytest.raises(InputError, match="expected one with a gradient, got linear, a black-box victim"):
        measure(trial(victim=Answering()))

    class Wrong(Linear):
        def logits(self, images: Tensor) -> Tensor:
            return -super().logits(images)

    with pytest.raises(InputError, match="expected an image that linear gets right, got none of 8"):
        measure(trial(victim=Wrong()))


def test_the_command_stands_the_patch_of_a_run_beside_them(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    rest = [one for one in tiny if not one.startswith("victim")]
    run = tmp_path / "run"
    assert command("attack=classification", *rest, f"output={run}").status == 0
    table = tmp_path / "table"
    outcome = command(f"run={run}", "images=2", "attacks=[fgsm]", "draws=1", f"output={table}", entry="baselines")
    assert outcome.status == 0, outcome.err
    rows = json.loads((table / "results.json").read_text())
    assert [row["attack"] for row in rows] == ["none", "fgsm", "fgsm", "random", "patch"]
    assert "optimised patch, to stop" in outcome.out
    refused = command(f"run={run}", "images=3", f"output={tmp_path / 'other'}", entry="baselines")
    assert refused.status == 2
    assert "images: expected at most 2" in refused.err
    assert refused.err.count("\n") == 1
