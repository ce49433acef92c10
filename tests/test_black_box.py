"""Runs against victims that only answer: the same loop, every query counted, none asked twice."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from patchattack import assembly, batches, budget, checkpoint, cli, files, pipeline, processes, seeding, training
from patchattack.attacks.classification import ClassificationAttack
from patchattack.checkpoint import Progress
from patchattack.data.world import World
from patchattack.eot.camera import SensorNoise
from patchattack.eot.placement import Uniform
from patchattack.eot.renderer import Renderer
from patchattack.errors import InputError, VictimError
from patchattack.job import Job, Settings
from patchattack.optimizers.evolution import Evolution
from patchattack.optimizers.nes import NES
from patchattack.optimizers.random_search import RandomSearch
from patchattack.optimizers.spsa import SPSA
from patchattack.optimizers.zoo import ZOO
from patchattack.patch import Patch
from patchattack.printing.sheet import Sheet
from patchattack.regularizers.tv import TotalVariation
from patchattack.scene import Scene, Source
from patchattack.tracking import MetricsCsv, NullTracker
from patchattack.update import Update
from patchattack.victims.victim import ClassificationVictim

SETTINGS = Settings(
    steps=4,
    batch=2,
    draws=2,
    log_every=2,
    validate_every=2,
    split=(0.5, 0.25, 0.25),
    test_draws=1,
    accelerator="cpu",
)
OPTIMIZERS = {
    "nes": functools.partial(NES, lr=0.05, population=4, resolution=4),
    "spsa": functools.partial(SPSA, lr=0.05, population=4, resolution=4),
    "zoo": functools.partial(ZOO, lr=0.05, population=4, resolution=4),
    "random_search": functools.partial(RandomSearch, lr=0.5, population=4),
    "evolution": functools.partial(Evolution, population=4, resolution=4),
}
NAMES = ("sky", "road", "sign")


def composed(*choice: str) -> dict[str, Any]:
    with initialize_config_dir(str(files.package_folder("conf").resolve()), version_base="1.3"):
        plain = OmegaConf.to_container(compose("train", [*choice]), resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is tidied up."""


class Remote(ClassificationVictim):
    """Only answers, and notes what it was asked. ``trouble`` happens instead of the answer number ``at``."""

    differentiable = False

    def __init__(
        self, asked: list[bytes] | None = None, at: int = -1, trouble: Any = None, labels: bool = False
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
            network(torch.zeros(1, 3, 32, 32))
        super().__init__(network, "remote", NAMES)
        self.asked = [] if asked is None else asked
        self.left, self.trouble, self.labels = at, trouble, labels

    def forward(self, frames: Tensor) -> Tensor:
        assert not frames.requires_grad
        self.left -= 1
        if self.left == -1:
            if isinstance(self.trouble, BaseException):
                raise self.trouble
            return self.trouble(super().forward(frames))
        self.asked += [hashlib.sha256(frame.numpy().tobytes()).digest() for frame in frames]
        logits = super().forward(frames)
        return 10 * nn.functional.one_hot(logits.argmax(dim=1), 3).float() if self.labels else logits


class Unlabelled(Source):
    """Scenes whose classes nobody knows: what the victim makes of their clean frames counts."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Scene:
        return replace(self.source[index], label=None)


@pytest.fixture(scope="module")
def world() -> Source:
    return Unlabelled(World(scenes=8, size=(32, 32), supersampling=1, frames=1, subject="sign"))


@pytest.fixture
def parts(world: Source) -> Callable[..., assembly.Parts]:
    def parts(victim: Any, optimizer: Any = OPTIMIZERS["nes"], **changes: Any) -> assembly.Parts:
        settings = replace(SETTINGS, **changes)
        return assembly.Parts(
            attack=ClassificationAttack("targeted", target="sign"),
            victim=victim,
            source=world,
            renderer=Renderer(Uniform(area=0.2), {}, {"noise": SensorNoise()}),
            patch=Patch.create(resolution=8, size_mm=60, seed=9),  # seed 0 is a control
            regularizers={"tv": TotalVariation(0.01)},
            optimizer=optimizer,
            schedule=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=settings.steps),
            tracker=lambda folder, config, run_id: NullTracker(folder, config, run_id),
            settings=settings,
            sheet=Sheet(),
            seed=3,
        )

    return parts


def begun(parts: assembly.Parts, folder: Path, resumes: bool = False) -> tuple[Job, Progress]:
    """As :func:`pipeline.run` begins."""
    job = assembly.assemble(parts, processes.start(parts.settings), folder if resumes else None)
    folder.mkdir(exist_ok=True)
    assert job.journal is not None
    job.journal.open(folder)
    if resumes:
        return job, checkpoint.resume(job, folder)
    progress = checkpoint.begin(job)
    checkpoint.save(job, folder, progress)
    return job, progress


class Lines(NullTracker):
    def __init__(self) -> None:
        super().__init__(Path(), {})
        self.found: dict[int, dict[str, float]] = {}

    def log(self, step: int, scalars: dict[str, float], images: Any = None) -> None:
        self.found[step] = scalars


def finish(parts: assembly.Parts, folder: Path, resumes: bool = False) -> tuple[Job, Lines]:
    job, progress = begun(parts, folder, resumes)
    lines = Lines()
    training.train(job, folder, lines, progress)
    return job, lines


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_query_is_counted_and_none_is_asked_twice(
    parts: Callable[..., assembly.Parts], tmp_path: Path, name: str
) -> None:
    victim = Remote()
    job, lines = finish(parts(victim, OPTIMIZERS[name]), tmp_path / "run")
    if name != "random_search":  # whose patch may be the same from one validation to the next
        assert len(victim.asked) == len(set(victim.asked))
    # Clean frames of 4 and 2 scenes; a trial; 2 scenes × 2 draws of a random patch, and of the patch at 0, 2 and 4;
    # 4 steps of 4 losses of 2 scenes × 2 draws.
    assert len(victim.asked) == 6 + 1 + 4 + 3 * 4 + 4 * 4 * 4 == budget.queries(job, 4)
    assert lines.found[0]["queries"] == len(victim.asked) - 4 * 16 - 2 * 4 - 3  # three scenes were not shown yet
    assert lines.found[4]["queries"] == len(victim.asked)
    assert list(lines.found) == [0, 1, 2, 3, 4]  # every step is saved where a victim only answers


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("deaths", [(4,), (9, 11), (14, 2, 6)], ids=str)
def test_an_interrupted_run_asks_nothing_twice_and_ends_the_same_to_the_bit(
    parts: Callable[..., assembly.Parts], tmp_path: Path, name: str, deaths: tuple[int, ...]
) -> None:
    whole = Remote()
    expected, _ = finish(parts(whole, OPTIMIZERS[name]), tmp_path / "whole")
    asked: list[bytes] = []
    folder = tmp_path / "run"
    for number, at in enumerate(deaths):
        trouble, seen = (Killed(), Killed) if number % 2 == 0 else (ValueError("no line"), VictimError)
        with pytest.raises(seen):
            finish(parts(Remote(asked, at, trouble), OPTIMIZERS[name]), folder, resumes=number > 0)
    job, _ = finish(parts(Remote(asked), OPTIMIZERS[name]), folder, resumes=True)
    assert asked == whole.asked
    assert torch.equal(job.patch.parameter, expected.patch.parameter)
    for file in ("checkpoint.safetensors", "state.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_whole_run_that_is_killed_while_it_measures_asks_nothing_twice(
    parts: Callable[..., assembly.Parts], tmp_path: Path
) -> None:
    config = composed("attack=classification")

    def run(victim: Remote, folder: Path, resumes: bool = False) -> None:
        made = parts(victim)
        job = assembly.assemble(made, processes.start(made.settings), folder if resumes else None)
        folder.mkdir(exist_ok=True)
        pipeline.run(made, job, folder, pipeline.Origin(config, "python train.py"), resumes)

    whole = Remote()
    run(whole, tmp_path / "whole")
    asked: list[bytes] = []
    folder = tmp_path / "a run"
    with pytest.raises(VictimError) as stopped:
        run(Remote(asked, 10, RuntimeError("the line\nis dead")), folder)
    assert str(stopped.value) == "victim remote: expected an answer, got 'the line is dead', after step 0 of 4"
    assert (folder / "patch.png").exists()
    with pytest.raises(Killed):
        run(Remote(asked, 25, Killed()), folder, resumes=True)
    assert not (folder / "results.json").exists()
    run(Remote(asked), folder, resumes=True)
    assert asked == whole.asked
    for file in ("patch.png", "results.json", "metrics.csv", "checkpoint.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    told = MetricsCsv.read(folder / "metrics.csv")[-1]["queries"]
    report = (folder / "report.html").read_text()
    assert f"{told:.0f}, and {len(asked) - told:.0f} for this report" in report


@pytest.mark.parametrize("breaks", [lambda answer: answer * math.nan, lambda answer: answer / 0])
def test_numbers_that_are_none_stop_the_run_before_they_do_harm(
    parts: Callable[..., assembly.Parts], tmp_path: Path, breaks: Any
) -> None:
    folder, asked = tmp_path / "run", []  # type: tuple[Path, list[bytes]]
    with pytest.raises(VictimError, match="victim remote: expected finite numbers, got NaN or infinite ones"):
        finish(parts(Remote(asked, 20, breaks)), folder)
    whole = Remote()
    expected, _ = finish(parts(whole), tmp_path / "whole")
    job, _ = finish(parts(Remote(asked)), folder, resumes=True)
    assert asked == whole.asked
    assert torch.equal(job.patch.parameter, expected.patch.parameter)


def test_a_victim_that_fails_at_once_is_said_before_the_work(parts: Callable[..., assembly.Parts]) -> None:
    made = parts(Remote([], 1, OSError("refused")))
    with pytest.raises(InputError, match="victim remote: expected an answer, got 'refused', before the work started"):
        assembly.assemble(made, processes.start(made.settings))


@pytest.mark.parametrize(
    "optimizer", [functools.partial(torch.optim.Adam, lr=0.1), functools.partial(torch.optim.LBFGS, lr=1.0)]
)
def test_an_optimiser_that_needs_a_gradient_is_refused_and_others_are_named(
    parts: Callable[..., assembly.Parts], optimizer: Any
) -> None:
    victim = Remote()
    made = parts(victim, optimizer)
    with pytest.raises(InputError) as refused:
        assembly.assemble(made, processes.start(made.settings))
    assert str(refused.value) == (
        "optimizer: expected one that needs no gradient for remote, a black-box victim, got "
        f"{optimizer.func.__name__}; choose optimizer=random_search, evolution, nes, spsa or zoo"
    )
    assert victim.asked == []
    options = {path.stem for path in pipeline.files.package_folder("conf").glob("optimizer/*.yaml")}
    assert set(assembly.GRADIENT_FREE) == options - {"adam", "sgd", "sign", "clamped", "lbfgs"}


def test_one_process_asks(parts: Callable[..., assembly.Parts]) -> None:
    with pytest.raises(InputError, match=r"trainer.devices: expected 1 for remote, a black-box victim, got 2"):
        assembly.assemble(parts(Remote(), devices=2), processes.start(SETTINGS))


def test_a_budget_stops_the_run_before_the_step_that_would_exceed_it(
    parts: Callable[..., assembly.Parts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Remote()
    _, lines = finish(parts(whole, validate_every=100), tmp_path / "whole")
    validation = 2 * 2
    spent = {step: line["queries"] for step, line in lines.found.items()}
    spent[4] -= validation
    for number, most in enumerate((spent[1] + validation, spent[2] + validation - 1, spent[3] + validation + 3)):
        victim, folder = Remote(), tmp_path / str(number)
        job, lines = finish(parts(victim, max_queries=int(most), validate_every=100), folder)
        stop = max(step for step in spent if spent[step] + validation <= most)
        assert stop == (1, 1, 3)[number]
        assert max(lines.found) == stop == job.schedule.last_epoch
        assert len(victim.asked) == budget.queries(job, stop) == spent[stop] + validation
        assert "validation/patch" in lines.found[stop]
        said = capsys.readouterr().out
        assert f"stopped after step {stop} of 4 and {len(victim.asked)} queries: another step would exceed" in said
        finish(parts(victim, max_queries=int(most), validate_every=100), folder, resumes=True)
        assert len(victim.asked) == spent[stop] + validation


def test_a_budget_smaller_than_a_step_is_refused_with_the_numbers(parts: Callable[..., assembly.Parts]) -> None:
    victim = Remote()
    made = parts(victim, max_queries=30)
    with pytest.raises(
        InputError, match=r"trainer.max_queries: expected at least 3\d \(1\d for clean scenes, starts and the f"
    ):
        assembly.assemble(made, processes.start(made.settings))
    assert victim.asked == []
    with pytest.raises(InputError, match=r"trainer.max_queries: expected at least 1, or null, got 0"):
        replace(SETTINGS, max_queries=0)


def test_labels_alone_are_enough(parts: Callable[..., assembly.Parts], tmp_path: Path) -> None:
    for name in ("random_search", "evolution"):
        _, lines = finish(parts(Remote(labels=True), OPTIMIZERS[name], steps=8), tmp_path / name)
        assert all(math.isfinite(value) for line in lines.found.values() for value in line.values() if value == value)


def test_a_gradient_free_search_takes_a_victim_with_a_gradient_too(
    parts: Callable[..., assembly.Parts], tmp_path: Path
) -> None:
    open_victim, closed = Remote(), Remote()
    open_victim.differentiable = True
    made = parts(open_victim)
    job = assembly.assemble(made, processes.start(made.settings))
    assert job.journal is None
    training.train(job, tmp_path, Lines(), checkpoint.begin(job))
    expected, _ = finish(parts(closed), tmp_path / "closed")
    assert torch.equal(job.patch.parameter, expected.patch.parameter)
    assert job.queries == expected.queries


@pytest.mark.parametrize(
    ("task", "size"),
    [("classification", "[64,64]"), ("flow", "[64,128]"), ("depth", "[64,128]"), ("detection", "[64,128]")],
)
def test_the_estimate_of_nes_is_near_the_gradient_of_a_compact_victim(task: str, size: str) -> None:
    """200 queries of one view, with the optimiser's defaults: of a linear loss a cosine of 0.58 is to be expected."""
    choice = [f"attack={task}", "tracker=none", "trainer.accelerator=cpu", "trainer.draws=1", "patch.start=grey"]
    choice += ["data.scenes=12", f"data.size={size}", "trainer.split=[0.5,0.25,0.25]"]
    choice += ["attack.min_height=6"] if task == "detection" else []
    made = cli.build_parts(composed(*choice))
    job = assembly.assemble(made, processes.start(made.settings))
    scene = job.source.__getitems__([0])
    closure = Update(job, 0, [batches._batch(job, scene, seeding.numbers([(0,)]))])
    closure()
    assert job.patch.parameter.grad is not None
    gradient = job.patch.parameter.grad.clone()
    nes = job.optimizer = NES(job.patch.parameters(), lr=0.1, population=200)
    nes.draw(seeding.generator(1))
    before = job.queries
    estimate, _ = nes.estimate(closure)
    assert job.queries - before == 200
    exact = nes.basis._rows.T @ gradient @ nes.basis._columns
    assert torch.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0) > 0.3
    slope = (estimate * exact).sum() / exact.square().sum()
    assert 0.3 < slope < 3  # of the gradient's scale, though what is tried lies at a distance


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lbfgs"])
def test_every_optimiser_runs_from_the_command_line(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], name: str
) -> None:
    folder = tmp_path / "run"
    few = () if name == "lbfgs" else ("optimizer.population=4",)
    size = ("data.size=[32,32]", "trainer.steps=2")
    outcome = command("attack=classification", f"optimizer={name}", *few, *tiny, *size, f"output={folder}")
    assert outcome.status == 0, outcome.err
    lines = MetricsCsv.read(folder / "metrics.csv")
    assert [line["step"] for line in lines] == [0, 1, 2]
    asked = [line["queries"] for line in lines]
    assert asked == sorted(set(asked))
    assert json.loads((folder / "state.json").read_text())["queries"] < asked[-1]  # clean frames come on top
    before = Patch.create(resolution=16, size_mm=60).parameter.detach()
    assert not torch.equal(safetensors.torch.load_file(folder / "checkpoint.safetensors")["parameter"], before)
    report = (folder / "report.html").read_text()
    assert "Queries" in report
    # Whether texels lack a gradient is asked of an optimizer that needs one alone.
    assert ("texels have no gradient" in report) is (name == "lbfgs")
