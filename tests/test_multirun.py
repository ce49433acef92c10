"""Many runs by ``-m``: what they say, and that neither a death nor a failure loses the others."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchattack import cells, checkpoint, files, folders, training
from patchattack.cells import Cell
from patchattack.commands import train
from patchattack.errors import InputError

SEEDS = "seed=0,1"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., Any], tiny: tuple[str, ...]) -> Path:
    """A sweep that nothing has stopped; nobody may change it."""
    folder: Path = tmp_path_factory.mktemp("whole") / "sweep"
    outcome = command("-m", "attack=flow", SEEDS, *tiny, f"output={folder}")
    assert outcome.status == 0, outcome.err
    names = [cell.name for cell in cells.read_all(folder)]
    assert [name.rpartition("_")[0] for name in names] == ["seed-0", "seed-1"]
    for words in (f"2 runs of train into {folder}", f"seed=0  {names[0]}", f"seed=1  {names[1]}", "cosine"):
        assert words in outcome.out
    assert "finished: seed=1" in outcome.err
    return folder


def table(folder: Path) -> bytes:
    return (folder / "table.csv").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process to kill")
def test_a_killed_sweep_resumes_and_does_nothing_twice(
    whole: Path, tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "sweep"
    arguments = ["-m", "attack=flow", SEEDS, *tiny, f"output={sweep}"]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # other tests' threads stay behind
        child = os.fork()
    if child == 0:
        save, left = checkpoint.save, iter(range(6, -1, -1))  # each run saves twice at the start, and at steps 2 and 4

        def save_and_die(*given: Any) -> None:
            save(*given)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save = save_and_die
        sys.argv = ["patchattack train", *arguments]
        sys.stdout = sys.stderr = io.StringIO()
        try:
            train.main()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [cell.status for cell in cells.read_all(sweep)] == ["finished", "running"]

    steps = []
    update = training.Update
    monkeypatch.setattr(training, "Update", lambda job, step, batches: steps.append(step) or update(job, step, batches))
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert "finished" in outcome.out
    assert "to resume" in outcome.out
    assert steps == [2, 3]  # of the second alone
    assert table(sweep) == table(whole)
    assert command(*arguments).status == 0
    assert steps == [2, 3]


def test_processes_of_joblib_make_the_same_table(
    whole: Path, tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    outcome = command("-m", "attack=flow", SEEDS, *tiny, *launcher, f"output={tmp_path / 'sweep'}")
    assert outcome.status == 0, outcome.err
    assert table(tmp_path / "sweep") == table(whole)
    assert "flow attack on" in (cells.read_all(tmp_path / "sweep")[0].folder / cells.LOG).read_text()


def test_compare_takes_the_folder_of_a_sweep(whole: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command(str(whole), f"output={tmp_path / 'out'}", entry="compare")
    assert outcome.status == 0, outcome.err
    assert table(tmp_path / "out") == table(whole)
    assert "seed-1_" in (tmp_path / "out" / "report_flow.html").read_text()


def test_one_run_of_a_sweep_can_be_resumed_alone(whole: Path, command: Callable[..., Any]) -> None:
    run = cells.read_all(whole)[0].folder
    before = (run / "results.json").read_bytes()
    assert command(f"resume={run}").status == 0
    assert (run / "results.json").read_bytes() == before


def test_what_fails_is_a_gap_with_its_reason(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    outcome = command("-m", "attack=flow,depth", "trainer.devices=2", "seed=-2", *tiny)
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("patchattack: 2 of the runs are missing, the first: attack=depth: ")
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [(cell.status, cell.reason[:16]) for cell in cells.read_all(sweep)] == [("failed", "trainer.devices:")] * 2
    assert (sweep / "table.csv").read_text().count("expected 1 in a sweep, got 2") == 2
    assert outcome.out.count("expected 1 in a sweep, got 2") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("seed=0,1", "hydra/launcher=ray"), "hydra/launcher=ray: expected its package, got none; pip install"),
        (("seed=0,1", "victim=flow_matching,flow_machting"), "did you mean flow_matching?"),
        (("output=a,b",), "output: expected one folder, in which each run has its own, got output=a,b"),
        (("seed=0,1", "resume=a"), "resume: expected the folder of a run"),
    ],
)
def test_what_is_wrong_for_all_is_said_before_anything_is_made(
    given: tuple[str, ...], message: str, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outcome = command("-m", "attack=flow", *given)
    assert outcome.status == 2
    assert message in outcome.err.splitlines()[-1]
    assert not list(tmp_path.rglob("cell.json"))


def test_no_file_and_no_line_has_the_token_of_an_address(
    tmp_path: Path, command: Callable[..., Any], tiny: tuple[str, ...]
) -> None:
    url = "victim.url='http://127.0.0.1:9/?token=s3cret'"
    victim = ("victim=http", "victim.task=flow", url, "victim.retries=0", "victim.timeout=1")
    tiny = tuple(one for one in tiny if not one.startswith("victim."))
    outcome = command("-m", "attack=flow", *victim, *tiny, SEEDS)
    assert outcome.status == 2
    assert "token=***" in outcome.out
    assert "s3cret" not in outcome.out + outcome.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == cells.LOG for path in written)
    assert not [path for path in written if b"s3cret" in path.read_bytes()]


def test_a_folder_that_another_process_works_in_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = files.claim(tmp_path)
    other.__enter__()
    monkeypatch.setattr("time.sleep", lambda _: other.__exit__(None, None, None))
    folders.claim(tmp_path, waits=True)
    folders.claim(tmp_path)  # it is ours already
    with pytest.raises(InputError, match="another process works in"):
        files.claim(tmp_path).__enter__()
    folders.release()


def test_the_folder_follows_from_the_overrides() -> None:
    names = [
        cells.name_of(given, ["seed", "data.root"]) for given in (["a=1", "seed=0"], ["seed=0", "a=1"], ["seed=0"])
    ]
    assert len({*names}) == 3 - 1
    assert names[0].startswith("seed-0_")
    assert cells.name_of(["+x.a@y=1=2"], ["x.a"]).startswith("a-1-2_")
    assert cells.name_of(["data.root='/x y/ü'"], ["data.root"]).startswith("root--x-y-ü_")


def test_cells_are_in_the_order_of_numbers_and_damaged_ones_refused(tmp_path: Path) -> None:
    for name in ("seed-10", "seed-9", "other"):
        Cell(tmp_path / name, "train", ["seed=1"]).write()
    assert [cell.name for cell in cells.read_all(tmp_path)] == ["other", "seed-9", "seed-10"]
    for text in ("[]", '{"status": "x"}', "{"):
        (tmp_path / "other" / cells.FILE).write_text(text)
        with pytest.raises(InputError, match=r"cell.json: expected what a sweep has written"):
            cells.read_all(tmp_path)
