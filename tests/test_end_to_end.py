"""Whole runs: what they leave, that they repeat to the byte, and that nothing can stop them for good."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from patchattack import checkpoint, evaluation, pipeline, update
from patchattack.attacks.flow import FlowAttack
from patchattack.commands import train
from patchattack.controls import CONDITIONS, NO_RIVALS, controls
from patchattack.patch import Patch
from patchattack.tracking import MetricsCsv

PROJECT = Path(__file__).parents[1]
NUMBERS = ("patch.png", "results.json", "metrics.csv", "checkpoint.safetensors")
FILES = {
    *NUMBERS,
    *(
        "config.yaml",
        "overrides.yaml",
        "patch.json",
        "state.json",
        "evidence.json",
        "report.html",
        "print/a4.pdf",
        "print/layout.json",
    ),
}
LONGER = ("trainer.steps=12", "trainer.checkpoint_every=4", "trainer.validate_every=3", "trainer.log_every=2")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run by its name. What a kill interrupted leaves its unfinished file behind, hidden."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def texture(folder: Path) -> Tensor:
    """What the last update left."""
    return safetensors.torch.load_file(folder / "checkpoint.safetensors")["parameter"]


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return found


def strike(moment: str, number: int) -> None:
    """Let this process be killed, or interrupted, at the n-th ``moment`` of its run."""
    count = 0

    def before(place: Any, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        original = getattr(place, name)

        def struck(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), sign)
            return original(*arguments, **named)

        setattr(place, name, struck)

    if moment == "update":
        before(update, "losses_of")
    elif moment == "interrupt":
        before(update, "losses_of", signal.SIGINT)
    elif moment == "write":
        before(os, "fsync")
    elif moment == "measurement":
        before(evaluation, "summarise")


def child(arguments: list[str], terminal: Path, moment: str, number: int) -> None:
    with terminal.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["patchattack train", *arguments]
    strike(moment, number)
    train.main()


@pytest.fixture(scope="module")
def process() -> Callable[..., tuple[int, str]]:
    """A run in a process of its own that is struck at a given moment: its exit code and what it said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "kornia", "torchvision", "patchattack.pipeline"])

    def start(terminal: Path, *arguments: str, moment: str = "never", number: int = 0) -> tuple[int, str]:
        run = context.Process(target=child, args=(list(arguments), terminal, moment, number))
        run.start()
        run.join(timeout=120)
        assert run.exitcode is not None
        return run.exitcode, terminal.read_text()

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], tiny: tuple[str, ...]) -> Path:
    folder: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert command("attack=flow", *tiny, *LONGER, f"output={folder}").status == 0
    return folder


def test_a_run_leaves_exactly_what_is_promised(undisturbed: Path) -> None:
    assert contents(undisturbed).keys() == FILES
    assert list(undisturbed.rglob(".*")) == []
    assert all(contents(undisturbed).values())
    assert list(undisturbed.parent.iterdir()) == [undisturbed]


def test_results_are_rows_of_conditions_metrics_and_regions(undisturbed: Path) -> None:
    found = rows(undisturbed)
    columns = ["condition", "metric", "region", "mean", "low", "high", "n", "label", "stronger"]
    assert all(list(row) == columns for row in found)
    conditions = sorted([*controls(Patch.create()), "drawn", *NO_RIVALS], key=[*CONDITIONS].index)
    assert list(dict.fromkeys(row["condition"] for row in found)) == conditions
    assert {row["region"] for row in found} == {"all", "outside", "patch"}
    names = {row["metric"] for row in found}
    assert names == {*FlowAttack.metric_info, "loss"}
    expected = {(metric, region) for metric in FlowAttack.metric_info for region in ("all", "outside", "patch")}
    for condition in conditions:
        mine = [row for row in found if row["condition"] == condition]
        assert sorted((row["metric"], row["region"]) for row in mine) == sorted(expected | {("loss", "all")})
    assert all(row["n"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in found)
    clean = {(row["metric"], row["region"]): row["mean"] for row in found if row["condition"] == "clean"}
    assert clean["cosine", "all"] == pytest.approx(1, abs=1e-5)
    assert clean["turned", "all"] == clean["epe_clean", "all"] == 0
    assert clean["epe_truth", "all"] > 0


def test_the_patch_that_is_kept_is_the_one_that_validation_chose(undisturbed: Path) -> None:
    lines = [line for line in MetricsCsv.read(undisturbed / "metrics.csv") if "validation/patch" in line]
    assert [line["step"] for line in lines] == [0, 3, 6, 9, 12]
    best = min(lines, key=lambda line: line["validation/patch"])
    state = json.loads((undisturbed / "state.json").read_text())
    facts = json.loads((undisturbed / "patch.json").read_text())
    assert state["best_step"] == facts["step"] == best["step"]
    assert state["best_score"] == best["validation/patch"]
    kept = safetensors.torch.load_file(undisturbed / "checkpoint.safetensors")["best"]
    shown = Patch.load(undisturbed / "patch.png")
    assert (shown().detach() - kept).abs().max() <= 0.5 / 255 + 1e-6
    assert shown.size_mm == (60, 60)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> tuple[Path, set[str]]:
    """The undisturbed run in another process, to which Python gives another order of sets; and what it imports."""
    folder: Path = tmp_path_factory.mktemp("elsewhere") / "run"
    program = "import sys; from patchattack import commands; commands.main(); print('imported', *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program, "train", "attack=flow", *tiny, *LONGER, f"output={folder}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert result.returncode == 0, result.stderr
    return folder, set(result.stdout.splitlines()[-1].split())


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    undisturbed: Path,
    elsewhere: tuple[Path, set[str]],
    tmp_path: Path,
    command: Callable[..., Any],
    tiny: tuple[str, ...],
) -> None:
    (same, _), other = elsewhere, tmp_path / "other"
    command("attack=flow", *tiny, "seed=1", f"output={other}")
    expected = contents(undisturbed)
    # Some files say where the run is.
    assert contents(same) == {name: held.replace(bytes(undisturbed), bytes(same)) for name, held in expected.items()}
    assert not torch.equal(texture(other), texture(undisturbed))
    assert contents(other)["patch.json"] != expected["patch.json"]


def test_a_run_imports_nothing_that_it_does_not_use(elsewhere: tuple[Path, set[str]]) -> None:
    unused = {"lightning_fabric", "torchmetrics", "transformers", "ultralytics", "timm", "ptlflow", "wandb", "polars"}
    assert not elsewhere[1] & (unused | {"onnxruntime", "art", "cma"})


def test_workers_that_load_change_nothing(
    undisturbed: Path, tmp_path: Path, process: Callable[..., tuple[int, str]], tiny: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    arguments = ("attack=flow", *tiny, *LONGER, "trainer.workers=2", f"output={folder}")
    assert process(tmp_path / "terminal", *arguments)[0] == 0
    for name in NUMBERS:
        assert contents(folder)[name] == contents(undisturbed)[name], name


# Writes 1 and 2 are the configs, 3 and 4 a checkpoint before anything else and its state.json, 5 the head of
# metrics.csv, 6 and 7 the checkpoint of step 0 and its state.json, 8 and 9 those of step 4, 10 and 11 those of step 8.
# A write is struck when its content is there and not yet in its place.
@pytest.mark.parametrize(
    ("moment", "number", "reached"),
    [("update", 3, 0), ("write", 10, 4), ("write", 11, 8), ("measurement", 1, 12)],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    undisturbed: Path,
    tmp_path: Path,
    process: Callable[..., tuple[int, str]],
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    moment: str,
    number: int,
    reached: int,
) -> None:
    folder = tmp_path / "run"
    arguments = ("attack=flow", *tiny, *LONGER, f"output={folder}")
    status, _ = process(tmp_path / "terminal", *arguments, moment=moment, number=number)
    assert status == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    with safetensors.safe_open(folder / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"].partition(" ")[2])["step"] == reached
    outcome = command(f"resume={folder}")
    assert outcome.status == 0, outcome.err
    assert contents(folder).keys() == FILES
    for name in (*NUMBERS, "state.json", "patch.json"):
        assert contents(folder)[name] == contents(undisturbed)[name], name


def test_an_interrupted_run_is_saved_says_so_and_goes_on_to_the_same_bytes(
    undisturbed: Path,
    tmp_path: Path,
    process: Callable[..., tuple[int, str]],
    command: Callable[..., Any],
    tiny: tuple[str, ...],
) -> None:
    folder = tmp_path / "a run"
    arguments = ("attack=flow", *tiny, *LONGER, f"output='{folder}'")
    status, said = process(tmp_path / "terminal", *arguments, moment="interrupt", number=7)
    assert status == 130
    assert f"interrupted after step 7 of 12. Resume with: patchattack train resume='{folder}'\n" in said
    assert "Traceback" not in said
    assert json.loads((folder / "state.json").read_text())["step"] == 7
    assert command(f"resume='{folder}'", "trainer.workers=0").status == 0
    for name in (*NUMBERS, "state.json", "patch.json"):
        assert contents(folder)[name] == contents(undisturbed)[name], name


def test_an_interrupt_while_the_last_checkpoint_is_written_is_heard(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def struck(job: Any, folder: Path, progress: Any) -> None:
        if progress.step == job.settings.steps:
            os.kill(os.getpid(), signal.SIGINT)
        save(job, folder, progress)

    monkeypatch.setattr(checkpoint, "save", struck)
    folder = tmp_path / "a=b"
    outcome = command("attack=flow", *tiny, f'output="{folder}"')
    assert outcome.status == 130
    assert f"interrupted after step 4 of 4. Resume with: patchattack train 'resume=\"{folder}\"'\n" in outcome.out
    assert not (folder / "patch.png").exists()


def test_a_folder_that_is_deleted_during_the_work_is_made_again(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, losses = tmp_path / "run", update.losses_of
    updates = 0

    def deleting(*given: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates == 2:
            shutil.rmtree(folder)
        return losses(*given)

    monkeypatch.setattr(update, "losses_of", deleting)
    outcome = command("attack=flow", *tiny, f"output={folder}")
    assert outcome.status == 0, outcome.err
    assert contents(folder).keys() == FILES
    assert [line["step"] for line in MetricsCsv.read(folder / "metrics.csv")] == [0, 1, 2, 3, 4]


def test_nan_in_the_final_measurement_is_no_verdict(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = pipeline._export

    def poisoned(parts: Any, *given: Any) -> Any:
        parts.victim.forward = lambda frames: torch.full((len(frames), 2, *frames.shape[-2:]), math.nan)
        return export(parts, *given)

    monkeypatch.setattr(pipeline, "_export", poisoned)
    folder = tmp_path / "run"
    outcome = command("attack=flow", *tiny, f"output={folder}")
    assert outcome.status == 2
    assert "expected finite numbers, got NaN or infinite ones, after step 4 of 4" in outcome.err.splitlines()[-1]
    assert f"patchattack train resume={folder}" in outcome.err.splitlines()[-1]
    assert outcome.out.count("\n") == 1
    assert (folder / "patch.png").exists()
    assert not (folder / "results.json").exists()


def test_what_a_run_writes_is_json(finished: Path) -> None:
    def refused(constant: str) -> None:
        raise ValueError(constant)

    found = sorted(finished.rglob("*.json"))
    assert {path.name for path in found} == {"results.json", "evidence.json", "patch.json", "state.json", "layout.json"}
    for path in found:
        json.loads(path.read_text(), parse_constant=refused)
    with safetensors.safe_open(finished / "checkpoint.safetensors", "pt") as file:
        json.loads(file.metadata()["state"].partition(" ")[2], parse_constant=refused)


def test_a_finished_run_can_be_resumed_and_stays_what_it_is(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    assert command("attack=flow", *tiny, f"output={folder}").status == 0
    before = contents(folder)
    assert command(f"resume={folder}").status == 0
    assert contents(folder) == before


class BreakingAttack(FlowAttack):
    """Its loss is NaN from the sixth update on."""

    updates = 0

    def loss(self, output: Tensor, clean: Tensor, scene: Any, view: Any) -> Tensor:
        loss = super().loss(output, clean, scene, view)
        if loss.requires_grad:
            self.updates += 1
        return loss * math.nan if self.updates > 5 else loss


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_patch(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    outcome = command(
        "attack=flow", "attack._target_=test_end_to_end.BreakingAttack", *tiny, *LONGER, f"output={folder}"
    )
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert last == (
        "patchattack: expected a finite loss, got NaN or infinity by step 6; the last good patch is "
        f"{folder / 'patch.png'}; try a lower optimizer.lr"
    )
    assert "Traceback" not in outcome.err
    facts = json.loads((folder / "patch.json").read_text())
    assert facts["step"] in (0, 3)
    best = safetensors.torch.load_file(folder / "checkpoint.safetensors")["best"]
    assert (Patch.load(folder / "patch.png")().detach() - best).abs().max() <= 0.5 / 255 + 1e-6
    assert json.loads((folder / "state.json").read_text())["step"] == 4
    assert not (folder / "results.json").exists()


def as_nodes(count: int) -> list[dict[str, str]]:
    """The environments that torchrun gives the process of each of so many nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": "0"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(rank), "GROUP_RANK": str(rank)} for rank in range(count)]


@pytest.mark.parametrize("choice", ["trainer.devices=2", "trainer.nodes=2"])
def test_two_processes_train_the_patch_of_one(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], choice: str
) -> None:
    arguments = ("attack=flow", *tiny, "optimizer=sgd", "trainer.draws=2")
    assert command(*arguments, f"output={tmp_path / 'one'}").status == 0
    here = tmp_path / "here"
    here.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, PROJECT / "train.py", *arguments, choice],
            cwd=here,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in ([{}] if "devices" in choice else as_nodes(2))
    ]
    printed = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * len(started), printed
    # One folder, although two processes made their way to it, and nothing else.
    (two,) = (here / "outputs" / "flow").iterdir()
    assert [path.name for path in here.iterdir()] == ["outputs"]
    assert contents(two).keys() == FILES
    assert "".join(out for out, _ in printed).count("into outputs/flow") == 1
    torch.testing.assert_close(texture(two), texture(tmp_path / "one"), rtol=0, atol=1e-5)
    ours, theirs = (MetricsCsv.read(folder / "metrics.csv") for folder in (two, tmp_path / "one"))
    assert [line["step"] for line in ours] == [0, 1, 2, 3, 4]
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    "choice",
    [
        ("placement.motion=static", "optimizer=sign", "patch.shape=circle", "renderer.whole_frame=true"),
        (
            "placement.motion=random",
            "optimizer=adam",
            "schedule=onecycle",
            "patch.parameterisation=tanh",
            "placement.tilt=20",
        ),
        ("placement.motion=scene", "optimizer=sgd", "schedule=step", "patch.shape=circle", "renderer.whole_frame=true"),
    ],
    ids=["static", "random", "scene"],
)
def test_everything_at_once(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], choice: tuple[str, ...]
) -> None:
    stacks = {
        group: ",".join(sorted(path.stem for path in (PROJECT / "conf" / group).glob("*.yaml")))
        for group in ("appearance", "camera", "regularizers")
    }
    folder = tmp_path / "run"
    cv2.imwrite(str(tmp_path / "poster.png"), np.full((8, 8, 3), 99, np.uint8))
    outcome = command(
        "attack=flow",
        "victim=flow_matching",
        f"regularizers.content.image={tmp_path / 'poster.png'}",
        *(f"{group}=[{options}]" for group, options in stacks.items()),
        *tiny,
        *choice,
        f"output={folder}",
    )
    assert outcome.status == 0, outcome.err
    assert contents(folder).keys() == FILES
    assert all(math.isfinite(row["mean"]) for row in rows(folder))
    lines = MetricsCsv.read(folder / "metrics.csv")
    assert {"attack", "content", "nps", "tv"} <= lines[-1].keys()
    assert all(math.isfinite(value) for line in lines for value in line.values())
    start = Patch.create(resolution=16, size_mm=60).parameter.detach()
    assert "parameterisation=tanh" in "".join(choice) or (texture(folder) - start).abs().max() > 1e-4
    shown = Patch.load(folder / "patch.png")
    assert (shown.mask.mean() < 0.9) == ("patch.shape=circle" in choice)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames of a texture that moves by two pixels."""
    folder: Path = tmp_path_factory.mktemp("frames")
    wide = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 24, 3), dtype=np.uint8), (96, 32))
    for number in range(10):
        cv2.imwrite(str(folder / f"{number}.png"), wide[:, 2 * number : 2 * number + 64])
    return folder


@pytest.mark.parametrize("motion", ["static", "random"])
def test_frames_of_ones_own_need_no_ground_truth(
    tmp_path: Path, command: Callable[..., Any], tiny_training: tuple[str, ...], frames: Path, motion: str
) -> None:
    folder = tmp_path / "run"
    choice = ("data=frames", f"data.root={frames}", f"placement.motion={motion}")
    outcome = command("attack=flow", *choice, *tiny_training, f"output={folder}")
    assert outcome.status == 0, outcome.err
    assert contents(folder).keys() == FILES
    assert {row["metric"] for row in rows(folder)} == {"cosine", "turned", "epe_clean", "loss"}


def test_frames_of_ones_own_carry_no_scene(
    tmp_path: Path, command: Callable[..., Any], tiny_training: tuple[str, ...], frames: Path
) -> None:
    choice = ("data=frames", f"data.root={frames}", "placement.motion=scene")
    outcome = command("attack=flow", *choice, *tiny_training, f"output={tmp_path / 'run'}")
    assert outcome.status == 2
    assert outcome.err.startswith("patchattack: placement.motion=scene: expected data with a surface")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_where_everything_is(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("attack=flow", *tiny, "tracker=csv", "print=letter")
    (folder,) = (tmp_path / "outputs" / "flow").iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert contents(folder).keys() == FILES - {"print/a4.pdf"} | {"print/letter.pdf", "results.csv"}
    shown = [Path(line.split()[-1]) for line in outcome.out.splitlines() if "outputs/flow/" in line]
    assert [path.name for path in shown] == [folder.name, "report.html", "patch.png", "letter.pdf", "results.json"]
    assert all((tmp_path / path).exists() for path in shown)
    assert "random patch" in outcome.out
    assert "a random patch" in (folder / "report.html").read_text()


def test_a_sweep_goes_on_where_a_run_fails(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("-m", "attack=flow", *(one for one in tiny if "accel" not in one), "seed=-2,1")
    assert outcome.status == 2  # of the first
    assert "1 of the runs is missing, the first: seed=-2: seed: expected an integer >= 0, got -2" in outcome.err
    (folder,) = (path.parent for path in tmp_path.glob("outputs/sweeps/*/*/report.html"))
    overrides = (folder / "overrides.yaml").read_text()
    assert "- seed=1\n" in overrides
    assert "-2" not in overrides
    assert f"{folder.name}," in (folder.parent / "table.csv").read_text()
    assert "seed: expected an integer &gt;= 0, got -2" in (folder.parent / "report_flow.html").read_text()
