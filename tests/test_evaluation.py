from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchattack import hand_drawn
from patchattack.attacks.attack import Metric
from patchattack.attacks.depth import DepthAttack
from patchattack.attacks.flow import FlowAttack
from patchattack.controls import CONDITIONS, NO_RIVALS, always
from patchattack.eot.appearance import Brightness
from patchattack.eot.bend import Cylinder
from patchattack.eot.camera import Defocus, Gamma
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.evaluation import (
    Evaluator,
    Measured,
    References,
    judge,
    per_scene,
    summarise,
)
from patchattack.hand_drawn import HandDrawn
from patchattack.patch import Patch, random_texture
from patchattack.scene import Scene
from patchattack.statistics import Outcome, bootstrap

SIZE = (32, 48)
SCENES = 10
HEADLINE = ("cosine", "outside")


class Pictures(Dataset[Scene]):
    """Scenes of random pictures, the same whenever they are asked for, with a known flow."""

    def __len__(self) -> int:
        return SCENES

    def __getitem__(self, index: int) -> Scene:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Scene:
        frames = [
            torch.randint(0, 256, (2, 3, *SIZE), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            for i in indices
        ]
        flow = torch.ones(len(indices), 2, *SIZE)
        return Scene(frames=torch.stack(frames), index=torch.tensor(indices), flow=flow)


class Victim:
    """Flow from colours alone, each scene for itself; counts the scenes that it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.seen += len(frames)
        spread = torch.nn.functional.avg_pool2d(frames.flatten(1, 2), 5, 1, 2)
        return torch.stack([spread[:, 0] - spread[:, 4], spread[:, 2] * 3 - 1], dim=1)


def evaluator(victim: Victim | None = None, key: tuple[int, ...] = (0, 1)) -> Evaluator:
    victim = victim or Victim()
    return Evaluator(
        victim=victim,
        attack=FlowAttack(still=0.05),
        renderer=Renderer(
            Uniform(side=0.5, tilt=10, motion="random"),
            {"brightness": Brightness()},
            {"defocus": Defocus((0.1, 0.6)), "gamma": Gamma()},
            bend=Cylinder(),
        ),
        references=References(victim),
        patch=Patch.create(shape="circle", resolution=16),
        source=Pictures(),
        device=torch.device("cpu"),
        key=key,
    )


def textures() -> dict[str, Callable[[int], Tensor]]:
    patch = Patch.create(resolution=16, seed=5)
    grey = torch.full_like(patch.mask, 0.5).repeat(3, 1, 1)
    return {
        "grey": lambda _: grey,
        "random": lambda repetition: random_texture(16, 16, repetition),
        "patch": lambda _: patch().detach(),
    }


def test_a_medium_has_the_places_of_this_eot_and_nothing_else_of_it() -> None:
    texture, plain = torch.zeros(3, 16, 16), evaluator()
    bare = replace(plain, renderer=Renderer(plain.renderer.placement, bend=plain.renderer.bend))
    flat = replace(plain, renderer=Renderer(plain.renderer.placement))
    first, second = (one.in_media({"patch": always(texture)}, range(3)) for one in (plain, bare))
    assert first == second != flat.in_media({"patch": always(texture)}, range(3))
    assert [one.condition for one in first] == ["patch_digital"] * 3 + ["patch_photographed"] * 3
    black = [
        one.metrics["epe_clean", "patch"]
        for one in bare.measure({"p": always(texture)}, range(3))
        if one.condition == "p"
    ]
    assert [one.metrics["epe_clean", "patch"] for one in first[:3]] == black
    assert all(one.metrics["epe_clean", "patch"] != other for one, other in zip(first[3:], black, strict=True))


# References


def test_each_scene_is_predicted_once() -> None:
    victim = Victim()
    references, source = References(victim), Pictures()
    first = references(source.__getitems__([0, 1, 2]).to("cpu"))
    again = references(source.__getitems__([2, 3, 0, 2]).to("cpu"))
    assert victim.seen == 4
    assert torch.equal(again[[0, 2, 3]], first[[2, 0, 2]])


def test_references_are_what_the_victim_says_whatever_the_batch() -> None:
    scene = Pictures().__getitems__([4, 1, 7]).to("cpu")
    references = References(Victim())
    references(Pictures()[1].to("cpu"))
    direct = torch.cat([Victim()(scene.frames[i : i + 1]) for i in range(3)])
    assert torch.equal(references(scene), direct)
    assert not references(scene).requires_grad


def test_references_remember_no_more_than_their_budget() -> None:
    victim = Victim()
    one = Victim()(Pictures()[0].to("cpu").frames).nbytes
    references = References(victim, budget=2.5 * one)
    scene = Pictures().__getitems__([0, 1, 2, 3]).to("cpu")
    first = references(scene)
    assert victim.seen == 4
    assert torch.equal(references(scene), first)
    assert victim.seen == 4 + 2  # two are remembered, two computed again


# Evaluator


def test_numbers_do_not_depend_on_the_batch() -> None:
    alone = evaluator().measure(textures(), range(SCENES), repetitions=2, batch=1)
    together = evaluator().measure(textures(), range(SCENES), repetitions=2, batch=8)
    for condition in ("clean", "grey", "random", "patch"):
        for metric in alone[0].metrics:
            a, b = (per_scene(measured, condition, metric) for measured in (alone, together))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_scene_condition_and_draw_is_measured_once() -> None:
    victim = Victim()
    measured = evaluator(victim).measure(textures(), [3, 1, 4], repetitions=2, batch=2)
    found = sorted((one.condition, one.number) for one in measured)
    assert found == sorted((c, n) for c in ("clean", "grey", "random", "patch") for n in (3, 1, 4) for _ in range(2))
    assert victim.seen == 3 + 3 * 3 * 2  # each clean scene once


def test_every_condition_has_the_same_draws_and_every_repetition_its_own() -> None:
    texture = random_texture(16, 16, 0)
    same: dict[str, Callable[[int], Tensor]] = {"patch": lambda _: texture, "random": lambda _: texture}
    measured = evaluator().measure(same, range(4), repetitions=2)
    values = {c: [one.metrics for one in measured if one.condition == c] for c in ("patch", "random")}
    assert values["patch"] == values["random"]
    assert values["patch"][:4] != values["patch"][4:]


@pytest.mark.parametrize(("repetitions", "batch"), [(1, 8), (1, 2), (2, 3)])
def test_what_varies_is_another_for_every_scene_and_draw(repetitions: int, batch: int) -> None:
    asked: list[int] = []

    def varying(number: int) -> Tensor:
        asked.append(number)
        return random_texture(16, 16, number)

    measured = evaluator().measure({"patch": textures()["patch"], "random": varying}, range(4, 10), repetitions, batch)
    assert sorted(asked) == list(range(6 * repetitions))  # so all four sizes of cells come in turn
    alone = evaluator().measure({"random": varying}, range(4, 10), repetitions, batch=1)
    for metric in alone[0].metrics:
        a, b = (per_scene(one, "random", metric) for one in (measured, alone))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_key_names_the_draws() -> None:
    first, again, other = (evaluator(key=key).measure(textures(), [0, 1]) for key in ((0, 1), (0, 1), (0, 2)))
    assert first == again
    assert first != other


def test_clean_frames_are_measured_without_a_patch() -> None:
    rows = summarise(evaluator().measure(textures(), range(SCENES)), FlowAttack())
    clean = {(row["metric"], row["region"]): row["mean"] for row in rows if row["condition"] == "clean"}
    for region in ("all", "outside", "patch"):
        assert clean["epe_clean", region] == 0
        assert clean["cosine", region] == pytest.approx(1, abs=1e-6)
        assert clean["turned", region] == 0
    assert clean["epe_truth", "all"] > 0
    assert clean["loss", "all"] == pytest.approx(1, abs=1e-6)
    output = {(row["metric"], row["region"]): row["mean"] for row in rows if row["condition"] == "patch"}
    assert output["epe_clean", "patch"] > 10 * output["epe_clean", "outside"] > 0


def test_evaluation_disturbs_no_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    evaluator().measure(textures(), [0])
    assert torch.equal(torch.rand(4), expected)


def test_progress_sees_the_work() -> None:
    seen: list[Any] = []

    def progress(work: Any) -> Any:
        seen.extend(work)
        return iter(work)

    evaluator().measure(textures(), [0, 1, 2], repetitions=2, batch=2, progress=progress)
    assert seen == [([0, 1], 0), ([0, 1], 1), ([2], 0), ([2], 1)]


# Statistics


def one(condition: str, number: int, value: float, metric: tuple[str, str] = HEADLINE) -> Measured:
    return Measured(condition, number, {metric: value})


def test_the_draws_of_a_scene_count_as_one_value() -> None:
    """A hundred draws of three scenes are three values: their interval is no narrower than that of three."""
    measured = [one("patch", n, 10.0 * n + d) for d in (-1.0, 0.0, 1.0) for n in (2, 0, 1)]
    assert per_scene(measured, "patch", HEADLINE).tolist() == [0, 10, 20]  # in the scenes' order
    many = [one("patch", n, 10.0 * n) for n in (0, 1, 2) for _ in range(100)]
    (row,) = summarise(many, FlowAttack())
    assert row["n"] == 3
    assert (row["mean"], row["low"], row["high"]) == bootstrap(np.array([0.0, 10, 20]))


def test_what_is_unknown_does_not_count() -> None:
    measured = [one("patch", 0, 1.0), one("patch", 0, math.nan), one("patch", 1, math.nan), one("patch", 2, 3.0)]
    np.testing.assert_array_equal(per_scene(measured, "patch", HEADLINE), [1.0, np.nan, 3.0])
    (row,) = summarise(measured, FlowAttack())
    assert row["mean"] == 2
    assert row["n"] == 2
    assert per_scene(measured, "random", HEADLINE).size == 0


def test_rows_name_what_they_are() -> None:
    measured = [one(c, n, 0.5) for c in ("patch", "other", "clean", "random", "grey") for n in range(3)]
    rows = summarise(measured, FlowAttack())
    assert [row["condition"] for row in rows] == ["clean", "grey", "random", "patch", "other"]
    expected = {"condition": "clean", "metric": "cosine", "region": "outside"}
    words = {"label": "cosine similarity to the clean flow", "stronger": "lower"}
    assert rows[0] == expected | words | {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 3}


def run(
    clean: Sequence[float],
    random: Sequence[float] | np.ndarray,
    patch: Sequence[float] | np.ndarray,
    metric: tuple[str, str] = HEADLINE,
) -> list[Measured]:
    columns = {"clean": clean, "random": random, "patch": patch}
    return [one(c, n, float(value), metric) for c, values in columns.items() for n, value in enumerate(values)]


def test_a_strong_patch_worked() -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(2, 20))
    noise -= noise.mean(axis=1, keepdims=True)
    verdict = judge(run([1.0] * 20, 0.9 + noise[0], 0.5 + noise[1]), FlowAttack())
    assert verdict.works
    assert verdict.factor == pytest.approx(5)
    assert verdict.sentence == "The patch works: it has 5.0 times the effect of a random patch of its size."
    assert "outside the patch: 1.000 without a patch, 0.900 [0.8" in verdict.facts
    assert "0.500 [0.4" in verdict.facts
    assert "(20 held-out scenes, 95 % intervals), 5.0 times the random patch's effect." in verdict.facts


def test_an_error_is_stronger_when_it_is_higher() -> None:
    attack = FlowAttack(target="zero", distance="epe")
    assert attack.primary_metric == ("epe_clean", "outside")
    assert judge(run([0] * 9, [1] * 9, [3] * 9, attack.primary_metric), attack).factor == pytest.approx(3)
    assert judge(run([0] * 9, [1] * 9, [3] * 9, attack.primary_metric), attack).works
    assert not judge(run([0] * 9, [3] * 9, [1] * 9, attack.primary_metric), attack).works


@pytest.mark.parametrize("patch", [0.9, 0.95], ids=["equal", "weaker"])
def test_what_a_random_patch_does_as_well_did_not_work(patch: float) -> None:
    """However far both are from the clean frames."""
    verdict = judge(run([1.0] * 20, [0.9] * 20, [patch] * 20), FlowAttack())
    assert not verdict.works
    assert verdict.outcome is Outcome.FAILS
    assert verdict.sentence == "The patch does not work: a random patch does as much."


def test_the_patch_itself_out_of_focus_or_on_paper_is_no_rival() -> None:
    measured = run([1.0] * 20, [0.9] * 20, [0.5] * 20)
    same = [one(condition, n, 0.5) for condition in NO_RIVALS[2:] for n in range(20)]
    assert len(same) == 140
    assert judge(measured + same, FlowAttack()).sentence == judge(measured, FlowAttack()).sentence


@pytest.mark.parametrize(
    ("drawn", "says"),
    [(0.6, "it beats both: 0.600"), (0.5, "it does not beat the best hand-drawn texture: 0.500")],
)
@pytest.mark.parametrize(
    ("medium", "words"),
    [("photographed", "Printed and photographed, by the model"), ("digital", "Digital, in focus")],
)
def test_the_facts_say_what_the_patch_does_in_each_medium_beside_its_controls(
    medium: str, words: str, drawn: float, says: str
) -> None:
    shown = {"drawn": drawn, "random": 0.9, "patch": 0.5}
    measured = run([1.0] * 20, [0.9] * 20, [0.1] * 20)
    measured += [one(f"{name}_{medium}", n, value) for name, value in shown.items() for n in range(20)]
    facts = judge(measured, FlowAttack()).facts
    assert f"{words}, {says}" in facts
    assert "0.900 [0.900, 0.900] random patch, 0.500 [0.500, 0.500] optimised patch." in facts


def test_one_lucky_scene_is_no_success() -> None:
    patch = [0.9] * 19 + [-1.0]
    assert not judge(run([1.0] * 20, [0.9] * 20, patch), FlowAttack()).works


def test_a_random_patch_without_effect_gives_no_factor() -> None:
    verdict = judge(run([0.9] * 20, [0.95] * 20, [0.2] * 20), FlowAttack())
    assert verdict.works
    assert verdict.factor == math.inf
    assert verdict.sentence == "The patch works, and a random patch of its size has no effect."
    assert "effect" not in verdict.facts


def test_a_pattern_must_beat_a_plain_card_too() -> None:
    measured = run([1.0] * 20, [0.9] * 20, [0.5] * 20)
    weaker = [one("black", n, 0.8) for n in range(20)]
    assert judge(measured + weaker, FlowAttack()).works
    verdict = judge(measured + weaker + [one("white", n, 0.5) for n in range(20)], FlowAttack())
    assert not verdict.works
    assert verdict.factor == pytest.approx(5)
    assert verdict.sentence == "The patch does not work: a white card does as much."
    assert "0.500 [0.500, 0.500] with a white card, 0.900 [0.900, 0.900] with a random patch" in verdict.facts


@pytest.mark.parametrize("first", ["grey", "white", "black", "mean", "shuffled"])
def test_of_controls_that_do_as_much_the_first_is_told(first: str) -> None:
    """The words hang on no order but that of the controls: one of a set differs from process to process."""
    conditions = dict.fromkeys(["clean", first, "grey", "white", "black", "mean", "shuffled", "random", "patch"])
    verdict = judge([one(name, n, float(name != "patch")) for name in conditions for n in range(9)], FlowAttack())
    assert f"with a {CONDITIONS[first]}, 1.000 [1.000, 1.000] with a random patch" in verdict.facts


def test_scenes_are_compared_with_themselves() -> None:
    """A small gain in every scene shows although the scenes differ far more."""
    level = np.linspace(-0.5, 0.9, 20)
    assert judge(run([1.0] * 20, level, level - 0.02), FlowAttack()).works


def test_pure_noise_hardly_ever_works() -> None:
    """At least 94 of 100 runs in which patch and random patch are alike end with "did not work"."""
    draw = np.random.default_rng(1)
    worked = 0
    for _ in range(300):
        level = draw.normal(0.7, 0.2, size=24)
        random, patch = level + draw.normal(scale=0.1, size=(2, 24))
        worked += judge(run([1.0] * 24, random, patch), FlowAttack()).works
    assert worked <= 18


def test_where_nothing_is_known_nothing_worked() -> None:
    nothing = [math.nan] * 4
    verdict = judge(run(nothing, nothing, nothing), FlowAttack())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.sentence == "Inconclusive: 0 held-out scenes are too few (at least 6 are needed)."
    assert verdict.facts.endswith("(0 held-out scenes, 95 % intervals).")


Flow = tuple[float, float, float]  # of a condition: the cosine, its spread over the scenes, and the share that turned


def flows(scenes: int = 20, **conditions: Flow) -> list[Measured]:
    """Every other scene lies above the mean cosine and below, and the share that turned the other way."""
    measured = []
    for condition, (mean, spread, turned) in {"clean": (1.0, 0.0, 0.0), **conditions}.items():
        for n in range(scenes):
            off = spread * (-1) ** n
            values = {HEADLINE: mean + off, ("turned", "outside"): turned - off}
            measured.append(Measured(condition, n, values))
    return measured


@pytest.mark.parametrize(
    ("conditions", "outcome", "sentence"),
    [
        (
            {"random": (0.9, 0, 0.03), "patch": (-0.2, 0, 0.62)},
            Outcome.WORKS,
            "The patch works: it turns the motion of 62 % of the moving pixels outside it by more than 90° "
            "(random patch: 3.0 %).",
        ),
        (  # every control counts, not the random patch alone
            {"random": (0.9, 0, 0.03), "stripes": (0.3, 0, 0.55), "patch": (0.2, 0, 0.62)},
            Outcome.WORKS,
            "The patch works, but does little more than a stripes: it turns the motion of 62 % of the "
            "moving pixels outside it by more than 90° (stripes: 55 %).",
        ),
        (
            {"random": (0.9, 0, 0.03), "white": (0.8, 0, 0.07), "patch": (0.8, 0, 0.06)},
            Outcome.FAILS,
            "The patch does not work: a white card does as much. It turns the motion of 6.0 % of the moving pixels "
            "outside it by more than 90° (white card: 7.0 %).",
        ),
        (  # what it may do beyond chance is no small thing
            {"random": (0.8, 0, 0.1), "patch": (0.7, 0.5, 0.2)},
            Outcome.INCONCLUSIVE,
            "Inconclusive: 20 held-out scenes cannot tell the patch from a random patch. It turns the motion of 20 % "
            "of the moving pixels outside it by more than 90° (random patch: 10 %).",
        ),
        (  # one that is surely matched decides, though another is in doubt
            {"random": (0.8, 0.5, 0.1), "white": (0.7, 0, 0.2), "patch": (0.7, 0, 0.2)},
            Outcome.FAILS,
            "The patch does not work: a white card does as much. It turns the motion of 20 % of the moving pixels "
            "outside it by more than 90° (white card: 20 %).",
        ),
    ],
)
def test_the_verdict_names_the_size_of_the_effect(conditions: dict[str, Flow], outcome: Outcome, sentence: str) -> None:
    verdict = judge(flows(**conditions), FlowAttack())
    assert (verdict.outcome, verdict.sentence) == (outcome, sentence)
    assert "by less than 10 % (fraction of pixels whose flow turned" in verdict.rule


def test_of_few_scenes_nothing_is_concluded() -> None:
    verdict = judge(flows(5, random=(0.9, 0, 0.03), patch=(-0.2, 0, 0.62)), FlowAttack())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.sentence == "Inconclusive: 5 held-out scenes are too few (at least 6 are needed)."


@pytest.mark.parametrize(
    ("goal", "is_metric", "sentence"),
    [
        ("near", True, "The patch works: it makes its place look 12 m nearer (random patch: 5.0 m)."),
        ("far", False, "it makes its place look farther by 1200 % of the scene's range (random patch: 500 %)."),
    ],
)
def test_the_size_is_the_way_from_the_clean_value(goal: str, is_metric: bool, sentence: str) -> None:
    """A depth attack's primary metric is what is left of the way to the target: 20 m without a patch."""
    attack = DepthAttack(goal)
    attack.bind(SimpleNamespace(name="v", is_metric=is_metric, depth_range=(0.0, 80.0)), Pictures())
    verdict = judge(run([20.0] * 9, [15.0] * 9, [8.0] * 9, attack.primary_metric), attack)
    assert verdict.sentence.endswith(sentence)


def test_rates_have_wilsons_interval_and_other_metrics_the_bootstraps() -> None:
    class Rates(FlowAttack):
        metric_info = {**FlowAttack.metric_info, "turned": Metric("turned", "higher", rate=True)}  # noqa: RUF012

    measured = [Measured("patch", n, {("turned", "all"): float(n < 8), ("cosine", "all"): n / 10}) for n in range(10)]
    turned, cosine = summarise(measured, Rates())
    assert (turned["low"], turned["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (cosine["low"], cosine["high"]) == bootstrap(np.arange(10) / 10)[1:]


def test_the_references_of_an_ensemble_are_tuples() -> None:
    victims = Victim(), Victim()
    references = References(lambda frames: tuple(victim(frames) for victim in victims))
    scene = Pictures().__getitems__([2, 5, 2]).to("cpu")
    first, second = references(scene)
    assert torch.equal(first, victims[0](scene.frames))
    assert torch.equal(first, second)
    seen = victims[0].seen
    assert torch.equal(references(scene.select(torch.tensor([1, 0])))[0], first[[1, 0]])
    assert victims[0].seen == seen


# Hand-drawn textures


def test_the_best_hand_drawn_texture_is_the_strongest_on_these_scenes() -> None:
    measures = evaluator()
    mine = HandDrawn("stripes", 3, 40, colours=("001", "110"))
    tried = {str(one): one for one in (*hand_drawn.standard_textures(), mine)}
    textures = {name: always(one.texture(16, 16)) for name, one in tried.items()}
    measured = measures.measure(textures, [1, 4, 7])
    scores = {name: per_scene(measured, name, HEADLINE).mean() for name in tried}
    best = measures.best_drawn([1, 4, 7], [mine])
    assert scores[str(best)] == min(scores.values())
    assert measures.best_drawn([1, 4, 7]) in hand_drawn.standard_textures()
