"""What the command line says, and that bad input ends in one line before anything is written."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

from patchattack import cli, files, folders
from patchattack.cli.checks import fits
from patchattack.errors import InputError, assignment
from patchattack.victims.compact.flow import CompactFlow
from patchattack.victims.victim import Victim

PROJECT = Path(__file__).parents[1]
FLOW = "attack=flow"


class DepthVictim(Victim):
    """A victim of another task, as a user would plug it in."""

    task = "depth"
    frames = 1

    def __init__(self, network: str, weights: str) -> None:
        super().__init__(nn.Identity(), "my_depth")

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, 0].mean(dim=1, keepdim=True)


# Overrides, and what the line has to say. {here} is a folder with: empty/, file, matching.pt.
BAD: dict[str, tuple[list[str], list[str]]] = {
    "no attack": ([], ["attack", "Available options: classification depth detection flow"]),
    "unknown attack": (
        ["attack=flwo"],
        ["attack: expected one of classification, depth, detection, flow", "did you mean flow?", "got flwo"],
    ),
    "attack that is a number": (["attack=3"], ["must be a string"]),
    "unknown victim": ([FLOW, "victim=raft_smal"], ["victim: expected one of", "raft_large", "got raft_smal"]),
    "no option": ([FLOW, "victim="], ["victim: expected one of", "got nothing"]),
    "unknown group": ([FLOW, "victm=raft_small"], ["victm: expected one of", "did you mean victim?"]),
    "unknown key": ([FLOW, "trainer.stepz=3"], ["trainer.stepz: expected one of steps, batch", "did you mean steps?"]),
    "unknown key of a part": ([FLOW, "data.root=x"], ["data.root: expected one of scenes, size", "got root"]),
    "unknown key below an unknown key": ([FLOW, "data.nope.x=3"], ["data.nope: expected one of scenes, size"]),
    "added key that nothing takes": ([FLOW, "+trainer.foo=3"], ["trainer", "foo"]),
    "added key of no part": ([FLOW, "+trainr=3"], ["trainr: expected one of ", "(did you mean trainer?), got trainr"]),
    "added key below no part": ([FLOW, "++foo.x=3"], ["foo: expected one of ", "got foo"]),
    "drops without a step between": (
        [FLOW, "schedule=step", "schedule.step_size=0"],
        ["schedule.step_size: expected a number above 0, got 0"],
    ),
    "drops that turn around": ([FLOW, "schedule=step", "schedule.gamma=-0.5"], ["schedule.gamma: expected", "-0.5"]),
    "a cosine of no length": ([FLOW, "schedule.T_max=-5"], ["schedule.T_max: expected a number above 0, got -5"]),
    "learning rates that turn around": (
        [FLOW, "schedule.eta_min=-1"],
        ["schedule: expected learning rates of 0 or more, got -0.", "in step 2"],
    ),
    "a schedule that is too short": (
        [FLOW, "schedule=onecycle", "schedule.total_steps=2"],
        ["optimizer and schedule: expected values that torch accepts, got 'Tried to step 3 times"],
    ),
    "a factor above 1": ([FLOW, "schedule=constant", "schedule.factor=2"], ["expected values that torch accepts"]),
    "unknown option of a stacked group": ([FLOW, "camera=[jpeg,jpg]"], ["camera: expected one of defocus", "got jpg"]),
    "option that is not chosen": (
        [FLOW, "camera.jpeg.range=[9,10]"],
        ["camera.jpeg: expected one of defocus"],
    ),
    "malformed override": ([FLOW, "trainer.steps"], ["'trainer.steps'", "EQUAL"]),
    "override without a key": ([FLOW, "=3"], ["must be a string"]),
    "override with an open bracket": ([FLOW, "data.size=[1"], ["[1"]),
    "nothing of a group": ([FLOW, "data=[]"], ["data: expected one of coco, depth", "got none"]),
    "a value with =": ([FLOW, "output=a=b"], ["output=a=b: expected one value", """quote it: 'output="a=b"'"""]),
    "a value with brackets": ([FLOW, "output=run (1)"], ["output=run (1): ", """quote it: 'output="run (1)"'"""]),
    "a value with '": ([FLOW, "output=it's"], ["output=it's: ", """quote it: 'output="it'"'"'s"'"""]),
    "a value beyond ASCII": ([FLOW, "output=ü/图"], ["output=ü/图: ", """quote it: 'output="ü/图"'"""]),
    "a value with commas": ([FLOW, "output=a,b"], ["output=a,b: ", "GROUP=[A,B]", """quote it: 'output="a,b"'"""]),
    "a folder with = to resume": (["resume=a=b"], ["resume=a=b: ", """quote it: 'resume="a=b"'"""]),
    "an unknown mode of the tracker": (
        [FLOW, "tracker=wandb", "tracker.mode=onlin"],
        ["tracker.mode: expected one of auto, online, offline, disabled, got onlin"],
    ),
    "text for a number": ([FLOW, "trainer.steps=abc"], ["trainer.steps: expected int, got abc"]),
    "fraction for a whole number": ([FLOW, "trainer.batch=1.5"], ["trainer.batch: expected int, got 1.5"]),
    "text for an optional number": ([FLOW, "placement.area=x"], ["placement.area: expected float | None, got x"]),
    "number for a list": ([FLOW, "placement.scale=3"], ["placement.scale: expected Sequence[float], got 3"]),
    "list of text": ([FLOW, "attack.target=[a,b]"], ["attack.target: expected", "Sequence[float]", "got ['a', 'b']"]),
    "number for text": ([FLOW, "victim.weights=5"], ["victim.weights: expected str", "got 5"]),
    "text for a truth": ([FLOW, "renderer.whole_frame=yep"], ["renderer.whole_frame: expected bool, got yep"]),
    "text in a part made late": ([FLOW, "schedule.eta_min=x"], ["schedule.eta_min: expected float, got x"]),
    "text for torch": ([FLOW, "optimizer.lr=x"], ["optimizer.lr: expected float", "got x"]),
    "text in a stacked part": ([FLOW, "regularizers.tv.weight=x"], ["regularizers.tv.weight: expected float, got x"]),
    "target that is not there": ([FLOW, "victim._target_=my.Net"], ["victim._target_: expected", "got my.Net"]),
    "seed that is text": ([FLOW, "seed=x"], ["seed: expected an integer >= 0, got x"]),
    "seed below 0": ([FLOW, "seed=-1"], ["seed: expected an integer >= 0, got -1"]),
    "batch of none": ([FLOW, "trainer.batch=0"], ["trainer.batch: expected at least 1, got 0"]),
    "steps below 0": ([FLOW, "trainer.steps=-1"], ["trainer.steps: expected at least 1, got -1"]),
    "batch that does not split": (
        [FLOW, "trainer.batch=3", "trainer.devices=2"],
        ["trainer.batch: expected a multiple of trainer.devices=2, got 3"],
    ),
    "learning rate below 0": ([FLOW, "optimizer.lr=-1"], ["optimizer", "Invalid learning rate: -1"]),
    "no root": ([FLOW, "data=frames"], ["data.root: expected a value, got none; give data.root=VALUE"]),
    "missing folder": ([FLOW, "data=frames", "data.root={here}/no"], ["{here}/no: expected a folder of images"]),
    "folder without frames": ([FLOW, "data=kitti", "data.root={here}/empty"], ["{here}/empty: expected KITTI"]),
    "frames of no size": ([FLOW, "data.size=[0,0]"], ["size [h, w] >= [16, 16]", "size=[0, 0]"]),
    "too few scenes": ([FLOW, "data.scenes=2"], ["data: expected at least one scene each", "got 2 scenes"]),
    "patch that is no share": ([FLOW, "placement.area=2"], ["placement.area: expected", "(0, 1], got 2"]),
    "patch larger than the frame": (
        [FLOW, "placement.area=0.6", "patch.size_mm=[30,60]"],
        ["placement: expected a patch that fits into the frame of 64×32 px", "lower placement.area"],
    ),
    "patch larger than the page": ([FLOW, "patch.size_mm=900"], ["print=a4: expected a patch that fits", "900 × 900"]),
    "missing weights": ([FLOW, "victim.weights={here}/no.pt"], ["{here}/no.pt: expected a file of weights", "none"]),
    "weights of another network": (
        [FLOW, "victim.weights={here}/matching.pt"],
        ["{here}/matching.pt: expected the weights of Correlation", "missing: ", "unexpected: "],
    ),
    "weights that run code": (
        [FLOW, "victim.weights={here}/code.pt"],
        ["which is refused; where you trust its author, convert its weights to safetensors"],
    ),
    "missing palette": (
        [FLOW, "regularizers.nps.palette={here}/no.csv"],
        ["{here}/no.csv: expected a palette", "'default'"],
    ),
    "unknown precision": ([FLOW, "trainer.precision=best"], ["trainer: expected", "precision", "best"]),
    "unknown device": ([FLOW, "trainer.accelerator=tpu"], ["trainer.accelerator: expected auto, cpu", "got tpu"]),
    "victim of another task": (
        [FLOW, "victim._target_=test_cli.DepthVictim"],
        ["attack: expected a victim for flow, got my_depth for depth"],
    ),
    "file in the way": ([FLOW, "output={here}/file"], ["output={here}/file: expected a folder that can be written"]),
    "file in the way above": ([FLOW, "output={here}/file/run"], ["output={here}/file/run: expected a folder"]),
    "resume of nothing": (["resume={here}/no"], ["resume: expected the folder of a run, got {here}/no"]),
    "resume of a folder": (["resume={here}/empty"], ["resume: expected the folder of a run, got {here}/empty"]),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a run would drop into the working folder is seen there


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("here")
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    torch.save(CompactFlow("matching", "random").network.state_dict(), folder / "matching.pt")
    torch.save(nn.Identity(), folder / "code.pt")
    return folder


def one_line(outcome: Any) -> str:
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("patchattack: ")
    assert outcome.err.count("\n") == 1, outcome.err
    return str(outcome.err)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str,
    here: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    tiny_training: tuple[str, ...],
) -> None:
    overrides, fragments = ([text.format(here=here) for text in texts] for texts in BAD[case])
    base = tiny_training if "data=" in "".join(overrides) else tiny
    if overrides and overrides[0].startswith("resume="):
        base = ()
    before = set(here.rglob("*"))
    line = one_line(command(*base, *overrides))
    for fragment in fragments:
        assert fragment in line
    assert set(here.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_missing_gpu(command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = one_line(command(FLOW, *tiny, "trainer.accelerator=cuda"))
    assert "trainer.accelerator=cuda: expected 1 CUDA device(s), got 0" in line
    assert "trainer.accelerator=cpu" in line


def test_another_run_is_not_written_over(finished: Path, command: Callable[..., Any], tiny: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    line = one_line(command(FLOW, *tiny, f"output={finished}"))
    assert f"output={finished}: expected a new folder, got that of another run" in line
    assert f"resume={finished}" in line
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_resume_says_what_differs(finished: Path, command: Callable[..., Any]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    line = one_line(command(f"resume={finished}", "trainer.batch=4", "victim=flow_matching"))
    assert "trainer.batch was 2, is 4" in line
    assert "victim.network was correlation, is matching" in line
    assert "seed" not in line
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["missing", "cut", "of another patch"])
def test_resume_without_a_checkpoint_that_fits(
    finished: Path, tmp_path: Path, command: Callable[..., Any], damage: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = folder / "checkpoint.safetensors"
    if damage == "missing":
        checkpoint.unlink()
    elif damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    else:
        for name, given, other in (
            ("config.yaml", "resolution: 16", "resolution: 8"),
            ("overrides.yaml", "resolution=16", "resolution=8"),
        ):
            text = (folder / name).read_text()
            assert given in text
            (folder / name).write_text(text.replace(given, other))
    outcome = command(f"resume={folder}")
    assert outcome.status == 2
    assert outcome.err.startswith(f"patchattack: {checkpoint}: expected the checkpoint of a run")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "value",
    ["a=b", "run (1)", "it's", "ü/图", "a,b", 'say "x"', "C:\\x\\", "a b", " a", "7", "null", "{x}", "#", "x/y:z", "~"],
)
def test_what_is_quoted_is_read_as_it_was(value: str) -> None:
    (word,) = shlex.split(assignment("output", value))
    assert OverridesParser.create().parse_override(word).value() == value


def test_messages_do_not_quote_at_length(command: Callable[..., Any], tiny: tuple[str, ...]) -> None:
    line = one_line(command(FLOW, *tiny, f"trainer.accelerator={'x' * 3000}"))
    assert line.startswith("patchattack: trainer.accelerator: expected auto, cpu, cuda or mps, got xxx")
    assert " [...] xxx" in line
    assert len(line) < 1100


def test_a_folder_that_is_not_there_is_not_made_to_go_on_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder that can be written, got 'No such file"):
        folders.claim(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def start(folder: Path) -> None:
    """What a run leaves that fails between its first word and its first checkpoint."""
    for name in ("config.yaml", "overrides.yaml", "metrics.csv", "tracker.json", "answers.sqlite"):
        files.write(folder / name, "{}")


def test_the_folder_of_an_unfinished_start_is_as_good_as_new(
    finished: Path, tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "on")
    outcome = command(FLOW, *tiny, "tracker=wandb", f"output={folder}")
    assert (outcome.status, outcome.err.splitlines()[-1][:30]) == (2, "patchattack: WANDB_MODE: expec")
    assert not folder.exists()
    shutil.copytree(finished, folder)
    (folder / "checkpoint.safetensors").unlink()  # as if it had failed before the first one
    refused = command(f"resume={folder}", "tracker=none")
    assert "got none: it stopped before the first one; start it again with its command and output=" in refused.err
    folder = tmp_path / "earlier"
    start(folder)
    with contextlib.closing(folders._claims):
        assert folders.new_folder(str(folder), "flow") == folder
        assert not {"config.yaml", "answers.sqlite"} & {path.name for path in folder.iterdir()}
    start(folder)
    (folder / "notes.txt").write_text("somebody's work")
    with (
        contextlib.closing(folders._claims),
        pytest.raises(InputError, match="expected a new folder, got that of another"),
    ):
        folders.new_folder(str(folder), "flow")


def test_a_folder_that_another_process_works_in_is_left_alone(
    finished: Path, tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    (tmp_path / "run").mkdir()
    for folder, given in ((tmp_path / "run", (FLOW, *tiny, "output=")), (finished, ("resume=",))):
        with files.claim(folder):
            line = one_line(command(*given[:-1], f"{given[-1]}{folder}"))
            assert f"{folder}: expected a folder that nothing else writes into" in line


def test_an_interrupt_before_there_is_a_folder_is_a_line(
    command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", stopped)
    outcome = command(FLOW, *tiny)
    assert (outcome.status, outcome.out, outcome.err) == (130, "interrupted.\n", "")


def test_a_folder_may_be_a_number(command: Callable[..., Any], tiny_training: tuple[str, ...]) -> None:
    assert "got 7 without" in one_line(command("resume=7"))
    assert "got 7" in one_line(command(FLOW, *tiny_training, "data=frames", "data.root=7"))


@pytest.mark.parametrize(("texels", "said"), [(8, True), (12, False)])
def test_a_coarse_patch_is_said(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], texels: int, said: bool
) -> None:
    placed = ("placement.area=0.125", "placement.scale=[1,1]", "placement.rotation=[0,0]")  # 16 px of 32 × 64
    run = (FLOW, *tiny, *placed, f"patch.resolution={texels}", "trainer.steps=1", f"output={tmp_path / 'run'}")
    outcome = command(*run)
    assert outcome.status == 0
    assert (f"{texels} texels along the patch's longer side, which is about 16 px long" in outcome.out) == said
    assert ("patch.resolution=16 would leave more" in outcome.out) == said


def test_help_lists_the_groups_without_waiting_for_torch(tmp_path: Path) -> None:
    program = (
        "import os, sys; from patchattack import commands\n"
        "try: commands.main()\n"
        "finally: assert 'torch' not in sys.modules and os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, "train", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    for group in (
        "attack",
        "appearance",
        "camera",
        "data",
        "optimizer",
        "placement",
        "print",
        "regularizers",
        "victim",
    ):
        assert f"\n{group}: " in shown.stdout
    assert "patchattack train attack=flow" in shown.stdout
    assert "\n  steps: " in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_of_an_attack(command: Callable[..., Any]) -> None:
    assert "network: matching" in command("attack=flow", "victim=flow_matching", "--help").out


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("800000 100000", None)]
)
def test_a_container_gets_no_more_threads_than_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cores: int | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert cli._quota(tmp_path / "cpu.max") == cores
    assert cli._quota(tmp_path / "nothing") is None


def test_train_py_is_an_entry(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, PROJECT / "train.py", "attack=flwo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr == "patchattack: attack: expected one of classification, depth, detection, flow "
        "(did you mean flow?), got flwo\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_speaks(
    command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    outcome = command(FLOW, *tiny, "trainer.batch=0")
    assert (outcome.status, outcome.err) == (2, "")


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (1, int, True),
        (1, float, True),
        (True, int, False),
        (1.0, int, False),
        (None, float, False),
        (None, float | None, True),
        ("x", float | None, False),
        ("x", float | torch.Tensor, False),
        ([1, 2.5], Sequence[float], True),
        ([1, "x"], tuple[float, float], False),
        ("cpu", torch.device | None, None),  # whoever takes it may make a device of it
        ({"_target_": "a.Tensor"}, float, None),
        ([1, 2], Sequence, None),
    ],
)
def test_only_what_an_annotation_excludes_is_refused(value: object, hint: object, answer: bool | None) -> None:
    assert fits(value, hint) is answer


def test_full_errors_on_demand(
    command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"trainer\.batch: expected at least 1"):
        command(FLOW, *tiny, "trainer.batch=0")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_mistake_of_ours_keeps_its_traceback(
    command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(cli, "build_parts", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        command(FLOW, *tiny)
    assert os.environ.get("HYDRA_FULL_ERROR", "0") == "0"  # the processes that a run starts inherit it


def test_names_that_look_like_numbers_are_quoted(command: Callable[..., Any]) -> None:
    outcome = command("attack=classification", "victim=resnet50", "victim.classes=[car,30]")
    assert outcome.err.startswith(
        "patchattack: victim.classes: expected Sequence[str] | str | None, got ['car', 30]; quote"
    )
