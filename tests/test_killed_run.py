"""A run against a service over HTTP that is killed: what was answered is never asked again."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from patchattack.commands import train
from patchattack.victims.compact.classification import CLASSES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process to kill")


class Service(ThreadingHTTPServer):
    """Answers, but for the request that ``left`` comes down to: then it kills whoever asks.

    Attributes:
        answered: the images that it has answered about, as they were sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answered: list[str] = []
        self.left, self.asker = -1, 0
        self.started = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"]
        self.server.left -= 1
        if self.server.left == 0:
            self.server.started.wait()
            os.kill(self.server.asker, signal.SIGKILL)
            return
        body = json.dumps({"logits": [logits(image) for image in images]})
        self.server.answered += images
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def logits(image: str) -> list[float]:
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    means = cv2.resize(pixels, (4, 4), interpolation=cv2.INTER_AREA)[..., 0].flatten() / 255
    return [float(value) for value in 10 * means[: len(CLASSES)]]


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(service: Service, *arguments: str, killed_at: int = -1) -> int:
    """The status of ``train.py`` in a process of its own, which the service kills at that request."""
    service.left = killed_at
    service.started.clear()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the service's thread stays behind
        child = os.fork()
    if child == 0:
        sys.argv = ["patchattack train", *arguments]
        sys.stdout = sys.stderr = io.StringIO()
        try:
            train.main()
        except BaseException:
            os._exit(1)
        os._exit(0)
    service.asker = child
    service.started.set()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_no_frame_is_answered_more_often_than_in_a_run_that_is_not_killed(
    service: Service, tmp_path: Path, command: Callable[..., Any], tiny_training: tuple[str, ...]
) -> None:
    url = f"http://127.0.0.1:{service.server_port}/?token=s3cret-"
    arguments = (
        *("attack=classification", "data.scenes=8", "data.size=[32,32]", "data.supersampling=1"),
        *("victim=http", "victim.task=classification", f"victim.url='{url}one'"),
        *(f"victim.classes=[{','.join(CLASSES)}]", "victim.batch=1", "victim.retries=0"),
        *("optimizer=nes", "optimizer.population=2", "optimizer.resolution=4"),
        *(one for one in tiny_training if not one.startswith(("victim", "trainer.steps", "trainer.test_draws"))),
        *("trainer.steps=2", "trainer.test_draws=1"),
    )
    assert command(*arguments, f"output={tmp_path / 'whole'}").status == 0
    whole, service.answered = service.answered, []

    folder = tmp_path / "run"
    # The first three requests, the trials before there is a run, cannot be gone on with. Each view is a request.
    assert run(service, *arguments, f"output={folder}", killed_at=6) == -signal.SIGKILL
    for at in (1, 8):
        assert run(service, f"resume={folder}", f"victim.url='{url}two'", killed_at=at) == -signal.SIGKILL
    refused = command(f"resume={folder}")
    assert (refused.status, "victim.url: expected the whole address" in refused.err) == (2, True)
    assert run(service, f"resume={folder}", f"victim.url='{url}two'") == 0
    written = {path.name for path in folder.rglob("*") if path.is_file() and b"token=" in path.read_bytes()}
    assert written == {"config.yaml", "overrides.yaml", "report.html"}
    assert not [path for path in folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert Counter(service.answered) == Counter(whole)  # the views that the report shows are asked for again in any run
    for file in ("results.json", "metrics.csv", "checkpoint.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
