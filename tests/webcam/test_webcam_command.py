from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from patchattack.patch import Patch
from patchattack.printing.fiducials import Layout, save_layouts

OF_THE_RUN = ("attack=flow", "victim=flow_matching", "victim.weights=random", "output=elsewhere")
SMALL = ("trainer.accelerator=cpu", "size=[64,128]")


@pytest.fixture
def start(command: Callable[..., Any], tmp_path: Path, patch: Patch, sheet: Layout) -> Any:
    """``patchattack webcam`` on a finished run, into ``tmp_path / "out"``."""
    folder = tmp_path / "run"
    patch.save(folder / "patch.png", {})
    (folder / "overrides.yaml").write_text("".join(f"- {one}\n" for one in OF_THE_RUN))
    save_layouts(folder / "print" / "layout.json", [sheet])
    return lambda *given: command(f"run={folder}", f"output={tmp_path / 'out'}", *SMALL, *given, entry="webcam")


def test_a_video_without_a_window(
    start: Any, photo: Callable[..., np.ndarray], wall: np.ndarray, film: Callable[..., Path], tmp_path: Path
) -> None:
    frames = [photo(x=round(0.01 * n, 2), distance=round(0.5 + 0.02 * n, 2)) for n in range(8)]
    path = film(tmp_path / "film.avi", [*frames, wall], fps=4)
    outcome = start(f"source={path}", "show=false", "record=true", "independent=0.25")
    assert (outcome.status, outcome.err) == (0, "")
    out = tmp_path / "out"
    written = {
        "session.json",
        "frames.csv",
        "predicted.csv",
        "pass_bys.csv",
        "summary.json",
        "report.html",
        "recording_1.mp4",
        "frames",
    }
    assert written == {one.name for one in out.iterdir()}
    lines = (out / "frames.csv").read_text().splitlines()
    assert len(lines) == 1 + 8
    assert lines[-1].split(",")[3] == "lost"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["with the sheet"] == 7
    (victim,) = summary["victims"].values()
    assert {row["condition"] for row in victim["rows"]} == {"patch", "grey", "predicted"}
    assert "with the sheet: 7" in outcome.out
    assert str(out / "report.html") in outcome.out
    assert "patchattack webcam" in (out / "report.html").read_text()


def test_a_report_is_made_again_without_source_and_victim(
    start: Any, command: Callable[..., Any], photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(3):
        cv2.imwrite(str(source / f"{number}.png"), photo(x=round(0.01 * number, 2))[..., ::-1])
    first = start(f"source={source}", "show=false")
    page = (out / "report.html").read_text()
    for path in (source, tmp_path / "run"):
        shutil.rmtree(path)
    for name in ("report.html", "summary.json"):
        (out / name).unlink()
    again = command(f"report={out}", entry="webcam")
    assert (again.status, again.err) == (0, "")
    assert again.out == first.out
    assert (out / "report.html").read_text() == page
    assert (out / "summary.json").is_file()
    assert "no pass-by was recorded" in again.out
    asked = command(f"report={out}", "pass_by.speed=50", "pass_by.latch=[5,8]", entry="webcam")
    assert (asked.status, asked.err) == (0, "")
    rule = json.loads((out / "summary.json").read_text())["pass_by"]
    assert (rule["speed"], rule["latch"], rule["reaction"]) == (50, [5, 8], 1)
    slow = command(f"report={out}", "pass_by.speed=slow", entry="webcam")
    assert (slow.status, slow.err) == (2, "patchattack: pass_by.speed: expected a number above 0, got slow\n")
    refused = command(f"report={source}", entry="webcam")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith(f"patchattack: {source}/frames.csv: expected the table")


def test_a_mirrored_video_can_be_turned_back(
    start: Any, photo: Callable[..., np.ndarray], film: Callable[..., Path], tmp_path: Path
) -> None:
    path = film(tmp_path / "film.avi", [photo(x=round(0.01 * n, 2))[:, ::-1] for n in range(3)])
    outcome = start(f"source={path}", "show=false", "mirrored=true")
    assert (outcome.status, outcome.err) == (0, "")
    assert "with the sheet: 2" in outcome.out


def test_a_folder_and_another_victim(start: Any, photo: Callable[..., np.ndarray], tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), photo(x=round(0.01 * number, 2))[..., ::-1])
    outcome = start(f"source={tmp_path}", "show=false", "victims=[flow_encoder_decoder]")
    assert (outcome.status, outcome.err) == (0, "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["victims"]) == ["flow_encoder_decoder"]
    assert "Inconclusive: 2 stretches of time are too few" in outcome.out


def test_a_video_without_the_sheet_says_so_and_keeps_its_table(
    start: Any, wall: np.ndarray, film: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = start(f"source={film(tmp_path / 'film.avi', [wall] * 3)}", "show=false")
    assert outcome.status == 2
    assert outcome.err.startswith("patchattack: source: expected sheet 3 in some frame, got none in 3 frames")
    assert outcome.err.count("\n") == 1
    assert len((tmp_path / "out" / "frames.csv").read_text().splitlines()) == 1 + 2


def test_another_sheet_is_named(start: Any, stranger: np.ndarray, film: Callable[..., Path], tmp_path: Path) -> None:
    outcome = start(f"source={film(tmp_path / 'film.avi', [stranger] * 3)}", "show=false")
    assert outcome.status == 2
    assert "expected sheet 3, got sheet 7 in 2 of 3 frames" in outcome.err


@pytest.fixture
def stream(photo: Callable[..., np.ndarray]) -> Iterator[Callable[[bool], str]]:
    """The address of a network camera that shows the sheet for a while; then it hangs up, or hangs."""
    servers, over = [], threading.Event()

    def serve(hangs: bool) -> str:
        jpegs = [cv2.imencode(".jpg", photo(x=round(0.01 * n, 2))[..., ::-1])[1].tobytes() for n in range(4)]

        class Camera(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(40):
                    jpeg = jpegs[number % 4]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                    time.sleep(0.03)
                if hangs:
                    over.wait()

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Camera))
        threading.Thread(target=servers[0].serve_forever, daemon=True).start()
        return f"http://user:s3cret@127.0.0.1:{servers[0].server_port}/camera.mjpg?size=2&token=s3cret"

    yield serve
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("hangs", "why"), [(False, "it stopped answering"), (True, "no new frame for 2 s")])
def test_what_was_measured_is_saved_when_the_camera_goes(
    start: Any, stream: Callable[[bool], str], hangs: bool, why: str, tmp_path: Path
) -> None:
    outcome = start(f"source='{stream(hangs)}'", "show=false", "timeout=2")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"Not all of it could be measured: {why}, after" in outcome.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"]["with the sheet"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "/camera.mjpg?size=2&amp;token=***" in page
    assert f"Not all of it could be measured: {why}" in page
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert "s3cret" not in outcome.out


def test_an_address_is_not_told(start: Any) -> None:
    outcome = start("source='rtsp://user:s3cret@127.0.0.1:9/x?key=s3cret'", "show=false")
    assert "expected a stream, got no answer from rtsp://***@127.0.0.1:9/x?key=***" in outcome.err
    assert "source: expected the whole address" in start("source=rtsp://***@127.0.0.1:9/x", "show=false").err


def test_no_source_no_run_no_sheet(start: Any, tmp_path: Path) -> None:
    assert "expected run=RUN and source=0" in start("show=false").err
    assert "source: expected a camera's number, a video" in start("show=false", "source=no.mp4").err
    (tmp_path / "run" / "print" / "layout.json").unlink()
    assert "print the sheet first" in start("show=false", "source=no.mp4").err


def test_no_display_is_said_before_the_source_is_opened(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    outcome = start("source=no.mp4")
    assert outcome.status == 2
    assert "use show=false" in outcome.err
