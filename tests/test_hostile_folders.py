"""The folder of a run may be a stranger's: whatever it holds is data, and bad data ends in one line."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from patchattack import checkpoint, files, pipeline
from patchattack.eot.calibrated import Calibration
from patchattack.errors import InputError
from patchattack.patch import Patch
from patchattack.printing.fiducials import load_layouts
from patchattack.reporting.compare import load_run
from patchattack.runs import load_image

PROJECT = Path(__file__).parents[1]
COMMANDS = ("evaluate", "webcam", "rehearse", "defenses", "baselines")  # that take run=


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


@pytest.fixture
def stranger(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run's folder, with code that would leave a file ``was_run`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "stranger"
    shutil.copytree(finished, folder)
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('was_run').touch()\ndef build(*_): pass\n")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil()))
    return folder


def stored(folder: Path, *overrides: Any) -> None:
    before = [one for one in yaml.safe_load((folder / "overrides.yaml").read_text()) if not one.startswith("victim")]
    (folder / "overrides.yaml").write_text(yaml.safe_dump([*overrides, *before]))


def refusal(outcome: Any) -> str:
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1, outcome.err
    assert not Path("was_run").exists()
    return str(outcome.err)


@pytest.mark.parametrize(
    "override",
    [
        *("--experimental-rerun=stranger/evil.pth", "-m", "--config-dir=stranger", "nonsense", "", 7, ["seed=1"]),
        *("hydra.searchpath=[stranger]", "hydra/launcher=basic", "+camera@hydra.callbacks.x=jpeg", "seed=1,2"),
        *(
            "victim=../../stranger/evil",
            "victim=/stranger/evil",
            "camera=[../../stranger/evil]",
            "+a/b=..",
            "+x=${seed}",
        ),
        '+regularizers.x=${oc.create:"{_target_: numpy.load, file: stranger/evil.pth, allow_pickle: true}"}',
    ],
)
def test_what_is_no_setting_is_refused(stranger: Path, command: Callable[..., Any], override: Any) -> None:
    stored(stranger, override)
    line = refusal(command("resume=stranger"))
    assert f"overrides.yaml: expected KEY=VALUE of the project's own keys, got {override!r}" in line


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(
            ("overrides.yaml", content)
            for content in ("", "a: 1", "- [", "\udcff", "text", "- !!python/name:os.getcwd")
        ),
        *(("config.yaml", content) for content in ("- 1", "\udcff")),
    ],
)
def test_settings_that_are_none_are_refused(
    stranger: Path, command: Callable[..., Any], file: str, content: str
) -> None:
    (stranger / file).write_bytes(content.encode(errors="surrogateescape"))
    assert f"stranger/{file}: expected what a run has written" in refusal(command("resume=stranger"))


FACTORY = ("victim=custom", "victim.task=flow", "victim.factory=stranger/evil.py:build")
CODE: dict[str, tuple[tuple[str, ...], str]] = {
    "a factory": (FACTORY, "victim.factory=stranger/evil.py:build"),
    "a function": (
        ("victim=callable", "victim.task=flow", "victim.function=stranger/evil.py:build"),
        "victim.function=stranger/evil.py:build",
    ),
    "a factory by its place": (
        ("victim=callable", "victim.task=flow", "+victim._args_=[flow,'stranger/evil.py:build']"),
        "victim._args_",
    ),
    "trust": (("victim=resnet50", "victim.trust_checkpoint=true"), "victim.trust_checkpoint=true"),
    "a service": (("victim=http", "victim.task=flow", "victim.url=http://127.0.0.1:9"), "victim.url"),
    "a target": (
        ("+regularizers.x={_target_:numpy.load,file:stranger/evil.pth,allow_pickle:true}",),
        "++regularizers.x._target_=numpy.load",
    ),
}


@pytest.mark.parametrize("case", CODE)
def test_code_of_a_stranger_is_not_run(stranger: Path, command: Callable[..., Any], case: str) -> None:
    overrides, again = CODE[case]
    stored(stranger, *overrides)
    line = refusal(command("resume=stranger"))
    assert "expected it to be typed, since it runs code or sends data" in line
    assert again in line.partition("add to the command: ")[2]


@pytest.mark.parametrize("script", COMMANDS)
def test_no_command_runs_the_code_of_a_stranger(stranger: Path, command: Callable[..., Any], script: str) -> None:
    stored(stranger, *FACTORY)
    assert "add to the command: victim.factory=" in refusal(command("run=stranger", entry=script))
    stored(stranger, "--experimental-rerun=stranger/evil.pth")
    assert "expected KEY=VALUE" in refusal(command("run=stranger", entry=script))


def test_code_that_is_typed_is_run(stranger: Path, command: Callable[..., Any]) -> None:
    stored(stranger, *FACTORY)
    outcome = command("run=stranger", FACTORY[-1], "source=0", entry="webcam")
    assert outcome.status == 2  # it makes no network
    assert Path("was_run").exists()


def test_a_comparison_imports_nothing_that_a_stranger_names(stranger: Path, command: Callable[..., Any]) -> None:
    config = yaml.safe_load((stranger / "config.yaml").read_text())
    config["attack"]["_target_"] = "antigravity.fly"
    (stranger / "config.yaml").write_text(yaml.safe_dump(config))
    assert command("stranger", "stranger", "output=out", entry="compare").status == 0
    assert "antigravity" not in sys.modules


# What stands in a file, or a way to change it; and who reads it.
NO_JSON = ("", "{", "[]", "7", "[" * 100_000, "\udcff", '{"sheets": 1, "size_mm": 1}')
NUMBERS = ("12", -1, 0, 1e-320, 1e19, "NaN", "Infinity", None, True, [1], [1, 2, 3], 10**400)


def with_number(value: Any) -> str:
    return json.dumps(value) if value not in ("NaN", "Infinity") else str(value)


@pytest.mark.parametrize("content", [*NO_JSON, *(f'{{"size_mm": {with_number(one)}}}' for one in NUMBERS)])
@pytest.mark.parametrize("read", [Patch.load, load_image])
def test_a_patch_of_no_size_is_refused(stranger: Path, read: Callable[..., Any], content: str) -> None:
    (stranger / "patch.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"patch.json: expected JSON with size_mm"):
        read(stranger / "patch.png", *([150.0] if read is load_image else []))


@pytest.mark.parametrize("side", NUMBERS)
def test_sides_that_no_patch_has_are_refused(stranger: Path, side: Any) -> None:
    for size in (f"[{with_number(side)}, 60]", f"[60, {with_number(side)}]"):
        (stranger / "patch.json").write_text(f'{{"size_mm": {size}}}')
        with pytest.raises(InputError, match=r"patch.json: expected JSON with size_mm"):
            Patch.load(stranger / "patch.png")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("size_mm", [60, side]) for side in (-60, "60", 0, 1e-320, 1e19)),
        *(("size_mm", size) for size in ("60", 60, [60], [60, 60, 60], None)),
        *(("number", number) for number in (-1, 1.5, "0", None, 10**9, True)),
        *(("marker_mm", side) for side in (-5, 0, 1e-9, "5", 1e9, None, [5])),
    ],
)
def test_layouts_that_no_sheet_has_are_refused(stranger: Path, key: str, value: Any) -> None:
    path = stranger / "print" / "layout.json"
    facts = files.read_json(path)
    facts["sheets"][0][key] = value
    files.write_json(path, facts)
    with pytest.raises(InputError, match=r"layout.json: expected the layouts of printed sheets"):
        load_layouts(path)


@pytest.mark.parametrize("content", [*NO_JSON, '{"sheets": []}'])
def test_what_is_no_layout_is_refused(stranger: Path, content: str) -> None:
    (stranger / "layout.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"layout.json: expected the layouts of printed sheets"):
        load_layouts(stranger / "layout.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("table", [[1e19] * 3] * 8),
        ("table", [[float("nan")] * 3] * 8),
        ("table", [[0.5] * 3] * 7),
        ("side", 1),
        ("side", "2"),
        ("spread", "0.1"),
        ("spread", -0.1),
        ("blur", -1),
        ("noise", "x"),
        ("format", 2),
    ],
)
def test_a_calibration_of_no_colours_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "calibration.json"
    Calibration(torch.rand(2, 2, 2, 3), 0.1, None, 0.01, "").save(path)
    assert Calibration.load(path).noise == 0.01
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=r"calibration.json: expected a calibration"):
        Calibration.load(path)


def write(folder: Path, text: str, tensors: dict[str, torch.Tensor]) -> None:
    about = {"state": f"{checkpoint.digest(text, tensors)} {text}"}
    safetensors.torch.save_file(tensors, folder / checkpoint.FILE, about)


def test_a_checkpoint_that_is_damaged_is_refused(stranger: Path, job: Any) -> None:
    """What an optimiser takes as it is would show in the first step, in any kind of error."""
    path = stranger / checkpoint.FILE
    checkpoint.resume(job, stranger)
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if name.startswith("optimizer"))
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b'\\"lr\\": 0.', b'\\"lr\\": 1.'),
        safetensors.torch.save(tensors | {name: tensors[name] + 1}, checkpoint_about(path)),
        whole[:-1] + bytes([whole[-1] ^ 1]),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="a damaged one, or one of an earlier version"):
            checkpoint.resume(job, stranger)


def checkpoint_about(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


STATE: dict[str, Any] = {
    "step": [-1, "4", None, 1.5, True],
    "queries": [-1, "4", None],
    "best_score": ["x", None, []],
    # What torch takes as it is, and what only its next step would stumble over.
    "optimizer": [None, 3, [], [{"lr": 1}], [{"params": [0]}], [{"params": [0], "lr": math.nan}]],
    "optimizer_state": [None, [1], {"a": {}}, {"0": {"step": 3}}, {"0": {"step": "x", "exp_avg": 1}}],
    "schedule": [None, 3, {"base_lrs": "x"}, {"last_epoch": "x"}, {"optimizer": 1}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in STATE.items() for value in values])
def test_a_checkpoint_of_no_run_is_refused(stranger: Path, job: Any, key: str, value: Any) -> None:
    with safetensors.safe_open(stranger / checkpoint.FILE, "pt") as file:
        state = json.loads(file.metadata()["state"].partition(" ")[2]) | {key: value}
    tensors = safetensors.torch.load_file(stranger / checkpoint.FILE)
    write(stranger, json.dumps(state), tensors)
    with pytest.raises(InputError, match="expected the checkpoint of a run"):
        checkpoint.resume(job, stranger)


@pytest.mark.parametrize(
    ("name", "texture"),
    [
        ("parameter", torch.full((3, 16, 16), torch.nan)),
        ("parameter", torch.zeros(3, 17, 16)),
        ("parameter", torch.zeros(1, 16, 16)),
        ("best", torch.full((3, 16, 16), torch.inf)),
        ("best", torch.zeros(3, 8, 8)),
        ("best", torch.full((3, 16, 16), 2.0)),
    ],
)
def test_a_texture_that_no_patch_has_is_refused(stranger: Path, job: Any, name: str, texture: torch.Tensor) -> None:
    with safetensors.safe_open(stranger / checkpoint.FILE, "pt") as file:
        text = file.metadata()["state"].partition(" ")[2]
    tensors = safetensors.torch.load_file(stranger / checkpoint.FILE)
    write(stranger, text, tensors | {name: texture})
    before = job.patch.parameter.detach().clone()
    with pytest.raises(InputError, match="expected the checkpoint of a run"):
        checkpoint.resume(job, stranger)
    assert torch.equal(job.patch.parameter, before)


@pytest.fixture(scope="module")
def job() -> Any:
    """What :func:`checkpoint.resume` asks of a job."""
    from types import SimpleNamespace

    patch = Patch.create(resolution=16, size_mm=60)
    optimizer = torch.optim.Adam(patch.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    fabric = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(patch=patch, optimizer=optimizer, schedule=schedule, fabric=fabric, queries=0)


@pytest.mark.parametrize("content", [*NO_JSON, '{"run_id": 7}', '{"run_id": "../../x"}', '{"run_id": ""}'])
def test_the_name_of_a_run_is_a_word(tmp_path: Path, content: str) -> None:
    (tmp_path / "tracker.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"tracker.json: expected the name of the run to its tracker"):
        pipeline._run_id(tmp_path / "tracker.json")


@pytest.mark.parametrize("file", ["results.json", "patch.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", "{", "7", "\udcff"])
def test_what_is_no_run_is_not_compared(stranger: Path, file: str, content: str) -> None:
    (stranger / file).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="stranger"):
        load_run(stranger)
