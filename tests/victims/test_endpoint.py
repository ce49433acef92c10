"""A service over HTTP as a victim, against one on this machine."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError, VictimError
from patchattack.victims import endpoint
from patchattack.victims.endpoint import build_endpoint
from patchattack.victims.victim import Victim


class Service(ThreadingHTTPServer):
    """Answers with the means of the channels, and before that with whatever is in ``replies``.

    Attributes:
        replies: status, headers and body, one for each request to come; None hangs up.
        asked: the requests' content and headers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, dict[str, str], str | bytes] | None] = []
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.released = threading.Event()  # of a request that waits

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/classify"

    @property
    def images(self) -> list[int]:
        """How many there were in each request."""
        return [len(content["images"]) for content, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((content, dict(self.headers)))
        means = [[float(value) for value in decoded(image).mean(axis=(0, 1))] for image in content["images"]]
        ordinary = (200, {}, json.dumps({"logits": means}))
        reply = self.server.replies.pop(0) if self.server.replies else ordinary
        if reply is None:
            return
        status, headers, body = reply
        if "Wait" in headers:
            self.server.released.wait(20)
            return
        if headers.get("Drip") == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self.drip(b"X-More: y\r\n")
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if "Drip" in headers:
            self.drip(b" ")
            return
        with contextlib.suppress(ConnectionError):  # of somebody who has read enough
            self.wfile.write(body.encode() if isinstance(body, str) else body)

    def drip(self, drop: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            while not self.server.released.wait(0.05):
                self.wfile.write(drop)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def decoded(image: Any) -> np.ndarray:
    if isinstance(image, list):
        return np.array(image)
    raw = np.frombuffer(base64.b64decode(image), np.uint8)
    found = cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB)
    assert found is not None
    return found


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait between two tries would have been."""
    waited: list[float] = []
    monkeypatch.setattr(endpoint, "sleep", waited.append)
    return waited


def build(service: Service, **options: Any) -> Victim:
    victim = build_endpoint("classification", service.url, **options)
    service.asked.clear()  # of the trial
    return victim


def frames(count: int) -> Tensor:
    values = torch.rand(count, 1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    return (values * 255).round() / 255


def expected(given: Tensor) -> Tensor:
    return given[:, 0].mean(dim=(2, 3)) * 255


@pytest.mark.parametrize("images", ["png", "lists"])
def test_a_service_sees_every_pixel_in_batches(service: Service, images: str) -> None:
    victim = build(service, images=images, batch=2, classes=["r", "g", "b"])
    assert (victim.name, victim.classes, victim.differentiable) == ("127.0.0.1", ("r", "g", "b"), False)
    given = frames(5)
    torch.testing.assert_close(victim(given), expected(given))
    assert service.images == [2, 2, 1]


def test_flow_sends_both_frames(service: Service) -> None:
    def answer(height: int, width: int) -> tuple[int, dict[str, str], str]:
        return 200, {}, json.dumps({"flow": np.full((1, height, width, 2), [1, 2]).tolist()})

    service.replies += [answer(128, 128), answer(5, 7)]
    victim = build_endpoint("flow", service.url)
    given = frames(2).view(1, 2, 3, 5, 7)
    found = victim(given)
    assert found[0, :, 4, 6].tolist() == [1, 2]
    content, _ = service.asked[-1]
    for key, frame in zip(("images", "next_images"), given[0], strict=True):
        assert np.array_equal(decoded(content[key][0]), (frame * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_another_try_may_mend_is_tried_again(service: Service, waits: list[float], status: int) -> None:
    victim = build(service)
    service.replies += [(status, {}, "busy")] * 3
    torch.testing.assert_close(victim(frames(2)), expected(frames(2)))
    assert service.images == [2, 2, 2, 2]
    assert waits == [0.5, 1, 2]


def test_it_waits_for_as_long_as_the_service_asks_and_says_so(
    service: Service, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    victim = build(service)
    service.replies += [
        (429, {"Retry-After": wait}, "") for wait in ("7", "900", "soon", "Thu, 01 Jan 1970 00:00:00 GMT")
    ]
    victim(frames(1))
    assert waits == [7, 900, 2, 0]
    assert caplog.messages == ["victim 127.0.0.1 asks to wait for 900 s"]


@pytest.mark.parametrize("wait", ["99999999", "3601", "Fri, 31 Dec 2399 23:59:59 GMT"])
def test_nobody_waits_for_days(service: Service, waits: list[float], wait: str) -> None:
    victim = build(service)
    service.replies.append((429, {"Retry-After": wait}, ""))
    with pytest.raises(VictimError, match=f"got 429 and Retry-After: {wait}, more than 3600 s; go on later"):
        victim(frames(1))
    assert not waits


@pytest.mark.parametrize("packed", [False, True])
def test_no_answer_is_read_beyond_what_it_may_have(
    service: Service, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(endpoint, "ROOM", (2**20, 64))
    victim = build(service)
    bomb = b'{"logits": [[' + b"0" * 2**25
    body, headers = (gzip.compress(bomb), {"Content-Encoding": "gzip"}) if packed else (bomb, {})
    service.replies.append((200, headers, body))
    tracemalloc.start()
    with pytest.raises(VictimError, match="got more than 1 MiB"):
        victim(frames(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    torch.testing.assert_close(victim(frames(1)), expected(frames(1)))


@pytest.mark.parametrize("part", ["body", "headers"])
def test_a_byte_now_and_then_is_no_answer(service: Service, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(endpoint, "WHOLE", 1.5)
    victim = build(service, timeout=0.2)
    service.replies.append((200, {"Drip": part}, ""))
    with pytest.raises(VictimError, match=r"got no end of it in 0\.3 s"):
        victim(frames(1))


def test_what_a_service_says_steers_no_terminal_and_tells_no_secret(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret-4711")
    url = service.url + "?size=2&token=s3cret-4712"
    victim = build_endpoint("classification", url, key_variable="SOME_KEY", retries=0)
    service.replies += [
        (401, {}, "invalid key: Bearer s3cret-4711 of http://me:s3cret-4713@host\x1b[2J\x1b]0;owned\x07" + 999 * "x"),
        (200, {}, '{"key": "s3cret-4711"}'),
        None,
    ]
    said = []
    for _ in range(3):
        with pytest.raises(VictimError) as caught:
            victim(frames(1))
        said.append(str(caught.value))
    assert "got 401 Unauthorized: invalid key: Bearer *** of http://***@host" in said[0]
    assert all("s3cret" not in one and one.isprintable() and len(one) < 600 for one in said)
    assert all("?size=2&token=***" in one for one in said)


def test_another_token_changes_no_answer(service: Service, tmp_path: Path) -> None:
    for token in ("one", "two"):
        options: dict[str, Any] = {"cache": str(tmp_path / "known.sqlite")}
        build_endpoint("classification", f"{service.url}?token={token}", **options)(frames(2))
    assert service.images == [1, 2]  # the trial and these, once


def test_a_service_that_hangs_up_or_is_too_slow_is_asked_again(service: Service) -> None:
    victim = build(service, timeout=1)
    service.replies += [None, (200, {"Wait": "yes"}, "")]
    torch.testing.assert_close(victim(frames(1)), expected(frames(1)))
    assert not service.replies
    assert len(service.asked) >= 3  # more where this machine is slower than the timeout


FAILURES: dict[str, tuple[tuple[int, dict[str, str], str] | None, str]] = {
    "busy": ((429, {}, "slow down"), r"got 429 Too Many Requests after 3 tries: slow down"),
    "fails": ((500, {}, "<h1>\nsorry</h1>"), r"got 500 Internal Server Error after 3 tries: <h1> sorry</h1>"),
    "hangs up": (None, "got none in 3 tries of 30 s: ConnectionError"),
    "stops in the middle": (
        (200, {"Content-Length": "5000"}, "{"),
        "got none in 3 tries of 30 s: ChunkedEncodingError",
    ),
    "nests": ((200, {}, "[" * 200_000), r"got \[\[\["),
    "refuses": ((401, {}, '{"error": "no key"}'), r'got 401 Unauthorized: {"error": "no key"}'),
    "moved": ((302, {"Location": "/"}, ""), "got 302 Found: nothing"),
    "empty": ((200, {}, ""), "got nothing"),
    "no JSON": ((200, {}, "<html>"), "got <html>"),
    "another object": ((200, {}, '{"scores": [[1, 2, 3]]}'), 'got {"scores"'),
    "a list": ((200, {}, "[[1, 2, 3]]"), r"got \[\[1, 2, 3\]\]"),
    "too many": ((200, {}, '{"logits": [[1, 2, 3], [1, 2, 3]]}'), "got 2 of them"),
    "none": ((200, {}, '{"logits": null}'), "got NoneType"),
    "NaN": ((200, {}, '{"logits": [[NaN, 1, 2]]}'), "expected finite numbers, got NaN"),
    "another shape": ((200, {}, '{"logits": [[1, 2]]}'), r"expected logits \[B, 3\], got an array \[1, 2\]"),
    "words": ((200, {}, '{"logits": [["a", "b", "c"]]}'), "expected logits, got ValueError"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_service_that_fails_in_the_middle_of_the_work_is_one_line(service: Service, name: str) -> None:
    reply, message = FAILURES[name]
    victim = build(service, retries=2)
    service.replies += [reply] * 3
    with pytest.raises(VictimError, match=message) as caught:
        victim(frames(1))
    assert str(caught.value).startswith("victim 127.0.0.1: expected ")
    assert "\n" not in str(caught.value)


def test_a_service_that_is_too_slow_is_one_line(service: Service) -> None:
    victim = build(service, retries=1, timeout=1)
    service.replies += [(200, {"Wait": "yes"}, "")] * 2
    with pytest.raises(VictimError, match=r"got none in 2 tries of 1 s: ReadTimeout: .*timed out") as caught:
        victim(frames(1))
    assert "\n" not in str(caught.value)


def test_a_service_that_is_not_there_is_refused_at_once(service: Service) -> None:
    url = service.url.replace("/classify", "")
    service.server_close()
    with pytest.raises(InputError, match=r"got none in 1 tries .* \(asked about a grey image of 128 × 128 px\)"):
        build_endpoint("classification", url, retries=0)


def test_no_more_images_than_the_rate_allows(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(endpoint, "monotonic", lambda: now[0])
    monkeypatch.setattr(endpoint, "sleep", sleep)
    victim = build(service, rate=4, batch=2)  # the trial's image has its quarter of a second
    victim(frames(5))
    assert waited == pytest.approx([0.25, 0.5, 0.5])
    now[0] += 10
    victim(frames(1))
    assert len(waited) == 3


def test_nothing_is_asked_twice_with_a_cache(service: Service, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": 2, "retries": 0, "cache": str(tmp_path / "answers" / "known.sqlite")}
    victim = build(service, **options)
    given = frames(6)
    service.replies += [(200, {}, json.dumps({"logits": expected(given[:2]).tolist()})), (500, {}, "")]
    with pytest.raises(VictimError):
        victim(given)
    assert service.images == [2, 2]
    again = build(service, **options)  # as a resumed run has it
    torch.testing.assert_close(again(given), expected(given))
    assert service.images == [2, 2]  # the last four
    torch.testing.assert_close(again(given.flip(0)), expected(given).flip(0))
    assert len(service.asked) == 2
    another = build_endpoint("classification", service.url, images="lists", cache=options["cache"])
    torch.testing.assert_close(another(given[:1]), expected(given[:1]))
    assert len(service.asked) == 2  # how images are sent changes no answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [("boxes", [[[10, 20, 4, 6, 0.5, "car"]]]), ("candidates", [[[10, 20, 4, 6, 0.5, 0.0]]])],
)
def test_boxes_may_be_centres_and_sizes(service: Service, answer: str, said: Any) -> None:
    reply: Any = (200, {}, json.dumps({answer: said}))
    service.replies += [reply] * 2
    victim = build_endpoint("detection", service.url, answer, size=(32, 32), classes=["car", "sign"], centres=True)
    # Pixels of a service span [0, w], ours [-0.5, w - 0.5].
    found = victim(torch.rand(1, 1, 3, 32, 32))[0, 0]
    assert found.tolist() == [7.5, 16.5, 11.5, 22.5, 0.5, 0]


def test_a_wrong_answer_is_not_remembered(service: Service, tmp_path: Path) -> None:
    victim = build(service, cache=str(tmp_path / "known.sqlite"))
    service.replies.append((200, {}, '{"logits": [[NaN, 1, 2]]}'))
    with pytest.raises(VictimError):
        victim(frames(1))
    torch.testing.assert_close(victim(frames(1)), expected(frames(1)))


def test_a_cache_that_is_deleted_is_written_again(service: Service, tmp_path: Path) -> None:
    victim = build(service, cache=str(tmp_path / "known.sqlite"))
    victim(frames(1))
    for path in tmp_path.iterdir():
        path.unlink()
    victim(frames(2))
    build(service, cache=str(tmp_path / "known.sqlite"))(frames(2))
    assert not service.asked


def test_an_answer_that_is_damaged_is_refused(service: Service, tmp_path: Path) -> None:
    victim = build(service, cache=str(tmp_path / "known.sqlite"))
    victim(frames(1))
    with contextlib.closing(sqlite3.connect(tmp_path / "known.sqlite")) as file, file:
        file.execute("UPDATE answers SET answer = 'text'")
    with pytest.raises(InputError, match="expected an answer from the file of answers, got 'a bytes-like"):
        victim(frames(1))


def test_a_cache_that_is_none_is_refused(service: Service, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database, but long enough to be looked at " * 40)
    with pytest.raises(InputError, match=r"notes\.txt: expected a file of answers that can be read and written"):
        build(service, cache=str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(("header", "sent"), [("Authorization", "Bearer s3cret"), ("X-Api-Key", "s3cret")])
def test_the_key_comes_from_the_environment(
    service: Service, monkeypatch: pytest.MonkeyPatch, header: str, sent: str
) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    victim = build(service, key_variable="SOME_KEY", key_header=header, retries=0)
    victim(frames(1))
    assert service.asked[-1][1][header] == sent
    service.replies.append((403, {}, "no"))
    with pytest.raises(VictimError) as caught:
        victim(frames(1))
    assert "s3cret" not in str(caught.value)


def test_a_netrc_does_not_replace_the_key(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SOME_KEY", "s3cret")
    build(service, key_variable="SOME_KEY")(frames(1))
    assert service.asked[-1][1]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "example.org/classify"}, r"victim\.url: expected http\(s\)://HOST/PATH"),
        ({"url": "http://me:s3cret@example.org"}, "got one with a password"),
        ({"images": "jpeg"}, "expected png or lists, got jpeg"),
        ({"rate": 0}, "rate > 0 images/s or null, got .*rate=0"),
        ({"batch": 0}, "expected batch >= 1"),
        ({"answer": "flow"}, "expected logits or probabilities or labels for classification, got flow"),
        ({"key_variable": "NO_SUCH_KEY"}, r"environment variable NO_SUCH_KEY with the key, got none; export"),
    ],
)
def test_bad_options_are_refused_before_anything_is_asked(
    service: Service, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_endpoint(**{"task": "classification", "url": service.url, **options})
    assert not service.asked
    assert "s3cret" not in str(caught.value)
