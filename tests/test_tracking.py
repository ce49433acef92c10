from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from patchattack import tracking
from patchattack.errors import InputError
from patchattack.tracking import Csv, MetricsCsv, NullTracker, Wandb

ROWS = [
    {"condition": "random", "metric": "cosine", "region": "outside", "mean": 0.9, "low": 0.8, "high": 1.0, "n": 3},
    {"condition": "patch", "metric": "cosine", "region": "outside", "mean": 0.1, "low": 0.0, "high": 0.2, "n": 3},
]


def fill(metrics: MetricsCsv, steps: range) -> None:
    for step in steps:
        scalars = {"attack": 1 / (step + 1)}
        if step % 2:
            scalars["validation/patch"] = math.sqrt(step)
        metrics.log(step, scalars)
    metrics.close()


def test_metrics_are_on_disk_at_once_and_lose_no_precision(tmp_path: Path) -> None:
    metrics = MetricsCsv(tmp_path / "metrics.csv", ["attack", "tv"])
    metrics.log(0, {"tv": 0.1 + 0.2})
    metrics.log(10, {"attack": float("nan"), "tv": torch.tensor(0.5)})  # type: ignore[dict-item]
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,attack,tv\n0,,0.30000000000000004\n10,nan,0.5\n"
    assert MetricsCsv.read(tmp_path / "metrics.csv")[0] == {"step": 0, "tv": 0.1 + 0.2}
    metrics.close()


def test_unknown_scalar_is_a_programming_error(tmp_path: Path) -> None:
    metrics = MetricsCsv(tmp_path / "metrics.csv", ["attack"])
    with pytest.raises(ValueError, match="no column \\['atack'\\]"):
        metrics.log(0, {"atack": 1.0})
    metrics.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,attack\n"


@pytest.mark.parametrize("torn", ["", "7", "7,0.12", "12,0.1,\n3"])
def test_resumed_metrics_have_the_bytes_of_an_undisturbed_run(tmp_path: Path, torn: str) -> None:
    columns = ["attack", "validation/patch"]
    fill(MetricsCsv(tmp_path / "whole.csv", columns), range(10))
    fill(MetricsCsv(tmp_path / "resumed.csv", columns), range(7))
    with (tmp_path / "resumed.csv").open("a") as file:
        file.write(torn)
    fill(MetricsCsv(tmp_path / "resumed.csv", columns, resume_at=4), range(5, 10))
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_metrics_that_are_deleted_are_written_again(tmp_path: Path) -> None:
    fill(MetricsCsv(tmp_path / "whole.csv", ["attack", "validation/patch"]), range(4))
    metrics = MetricsCsv(tmp_path / "run" / "metrics.csv", ["attack", "validation/patch"])
    metrics.log(0, {"attack": 1.0})
    shutil.rmtree(tmp_path / "run")
    fill(metrics, range(1, 4))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_fresh_run_keeps_no_metrics_of_an_older_one(tmp_path: Path) -> None:
    fill(MetricsCsv(tmp_path / "metrics.csv", ["attack", "validation/patch"]), range(3))
    MetricsCsv(tmp_path / "metrics.csv", ["attack"]).close()
    assert (tmp_path / "metrics.csv").read_text() == "step,attack\n"


def test_resuming_needs_the_same_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(InputError, match=r"got no such table; start a new run \(drop resume=\)"):
        MetricsCsv(path, ["attack"], resume_at=3)
    path.write_text("step,attack\n1,0.5\n")
    with pytest.raises(InputError, match=r"expected the columns 'step,attack,tv', got 'step,attack'"):
        MetricsCsv(path, ["attack", "tv"], resume_at=3)
    assert path.read_text() == "step,attack\n1,0.5\n"


def test_trackers_without_a_service_leave_what_they_say(tmp_path: Path) -> None:
    for tracker in (NullTracker(folder=tmp_path, config={}, run_id=None), Csv(folder=tmp_path, config={}, run_id=None)):
        assert not list(tmp_path.iterdir())
        tracker.log(0, {"attack": 1.0}, {"patch": torch.zeros(3, 2, 2)})
        tracker.finish(ROWS, [])
        tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    table = (tmp_path / "results.csv").read_text().splitlines()
    assert table[0] == "condition,metric,region,mean,low,high,n"
    assert table[2] == "patch,cosine,outside,0.1,0.0,0.2,3"


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An environment without W&B key, settings or server."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that it is restored
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # its environment is read once per process
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_account")
def test_wandb_without_a_key_keeps_the_run_below_its_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = tmp_path / "my run", "https://example.org/?token=s3cret"
    monkeypatch.setattr(sys, "argv", typed := ["train.py", f"victim.url='{url}'"])
    config = {"seed": 3, "patch": {"size_mm": [100, 100]}, "victim": {"url": url}}
    tracker = Wandb(folder=folder, config=config, run_id=None)
    assert sys.argv is typed
    tracker.log(0, {"loss/attack": 0.25}, {"view": torch.full((3, 4, 6), 0.5)})
    (folder / "patch.png").write_bytes(b"pixels")
    tracker.finish(ROWS, [folder / "patch.png"])
    tracker.close()

    (run,) = folder.glob("wandb/offline-run-*")
    assert run.name.endswith(f"-{tracker.run_id}")
    (log,) = run.glob("*.wandb")
    for said in (b"loss/attack", b"size_mm", b"patch.png"):
        assert said in log.read_bytes()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    (image,) = run.glob("files/media/images/*.png")
    assert (cv2.imread(str(image)) == 128).all()  # a flat grey stays that grey
    (table,) = run.glob("files/media/table/*.json")
    assert json.loads(table.read_text())["data"][1] == ["patch", "cosine", "outside", 0.1, 0.0, 0.2, 3]
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".log"]
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "W&B is offline: no API key, run `wandb login` or set WANDB_API_KEY",
        f"W&B is offline, to upload the run: wandb sync '{run}'",
    ]


@pytest.mark.usefixtures("no_account")
def test_wandb_without_a_network_goes_on_offline_under_the_same_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(tracking, "_PATIENCE", 1)
    begin = time.monotonic()
    tracker = Wandb(folder=tmp_path, config={}, run_id="abcd1234")
    assert time.monotonic() - begin < 8
    tracker.close()
    assert tracker.run_id == "abcd1234"
    assert len(list(tmp_path.glob("wandb/offline-run-*-abcd1234"))) == 1
    assert "W&B is offline" in capsys.readouterr().out


@pytest.mark.usefixtures("no_account")
def test_wandb_online_on_demand_is_an_error_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracker.mode=online: expected .*, got 'no API key"):
        Wandb(folder=tmp_path, config={}, mode="online")


@pytest.mark.usefixtures("no_account")
def test_wandb_mode_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = Wandb(folder=tmp_path / "run", config={})
    tracker.log(0, {"attack": 1.0})
    tracker.close()
    assert not list((tmp_path / "run").iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_account")
def test_wandb_offline_looks_up_no_name_and_connects_to_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own process too: it is told to send no telemetry, which is all that it would do offline."""
    told = []
    popen, connect = subprocess.Popen.__init__, socket.socket.connect

    def started(self: Any, command: Any, *given: Any, **named: Any) -> None:
        told.append(command)
        popen(self, command, *given, **named)

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "localhost"), address
        connect(self, address)

    def refused(*_: Any) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")  # so that it is restored
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    tracker = Wandb(folder=tmp_path, config={})
    tracker.log(0, {"attack": 1.0})
    tracker.close()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert any("--no-observability" in command for command in told)
    assert capsys.readouterr().out.startswith("W&B is offline, to upload the run")


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("onlin", "WANDB_MODE: expected auto, online, offline or disabled, got 'onlin'"),
        ("run", "tracker.mode=online: expected W&B to accept the run, got 'no API key"),
    ],
)
def test_what_wandb_will_refuse_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    mode: str,
    message: str,
) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", mode)
    outcome = command("attack=flow", *tiny, "tracker=wandb", f"output={tmp_path / 'run'}")
    assert outcome.status == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_wandb_rejects_an_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected auto, online, offline or disabled, got 'onlin'"):
        Wandb(folder=tmp_path, config={}, mode="onlin")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.usefixtures("no_account")
def test_wandb_asks_nothing_even_at_a_terminal(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "import pathlib, patchattack.tracking; patchattack.tracking.Wandb(pathlib.Path('.'), {}).close()"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60
    )
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert said.count("\n") == 2
    assert "to upload the run: wandb sync" in said
