"""A service that answers over HTTP as a victim.

From the command line::

    patchattack train attack=classification optimizer=nes victim=http victim.task=classification \\
        victim.url=https://example.org/classify victim.answer=probabilities victim.classes=names.txt \\
        victim.key_variable=EXAMPLE_KEY victim.rate=5 victim.cache=answers.sqlite

A request is a POST of JSON, ``{"images": [...]}``: each image a PNG in base64, or with ``victim.images=lists`` rows of
pixels of three numbers, red, green and blue from 0 to 255. For flow ``"next_images"`` are the second frames. The
response is JSON too, an object that has the answers, one for each image in their order, under what
``victim.answer`` says: ``{"probabilities": [[0.1, 0.9], ...]}``; see :mod:`patchattack.victims.answers`. A service that
speaks otherwise is wrapped in a Python function: see :mod:`patchattack.victims.callable`.

A request that finds nobody, gets no answer in time, or a status of 429, 500, 502, 503 or 504 is sent again: after as
long as the service asks for by ``Retry-After``, or after half a second, one, two, and so on. What a service may say is
bounded: the size of a response, unpacked, the time that all of it takes, and an hour for ``Retry-After``. The answers
of a request are written to the run's journal before the next is sent. A request whose answer never arrived, as one that
was on its way when the run was killed, is sent again too: the service may have seen it twice, and nobody here can know.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from patchattack.errors import InputError, VictimError
from patchattack.redaction import quote, redact
from patchattack.victims.answers import KINDS, AnswerCache, answering, as_bytes
from patchattack.victims.own import Output, error_text
from patchattack.victims.victim import Victim

PASSING = (429, 500, 502, 503, 504)  # statuses that another try may mend
LONGEST = 120.0  # seconds between two tries, where the service does not ask for more
LATEST = 3600.0  # seconds that it may ask for
TOLD = 10.0  # seconds that it asks for, of which the user is told
WHOLE = 4  # times the timeout: seconds that all of a response may take
ROOM = 16 * 2**20, 64  # most bytes of a response: of any, and for each pixel that it is about
SHOWN = 120  # characters of a response in a message

_PART = 2**16  # bytes of a response at a time
_log = logging.getLogger(__name__)


def build_endpoint(
    task: str,
    url: str,
    answer: str | None = None,
    images: str = "png",
    key_variable: str | None = None,
    key_header: str = "Authorization",
    batch: int = 8,
    rate: float | None = None,
    retries: int = 5,
    timeout: float = 30.0,
    cache: str | None = None,
    size: Sequence[int] | None = None,
    multiple: int = 1,
    classes: Sequence[str] | str | None = None,
    is_metric: bool = False,
    depth_range: Sequence[float] = (0.0, math.inf),
    scale: float = 1.0,
    shift: float = 0.0,
    inverse: bool = False,
    centres: bool = False,
) -> Victim:
    """The service as a victim. It is asked once, so that what does not fit shows at once.

    Args:
        task: "classification", "depth", "flow" or "detection".
        url: that requests are posted to.
        answer: what it returns, as in :mod:`patchattack.victims.answers`; None is the first that the task has there.
        images: "png" or "lists".
        key_variable: name of the environment variable that holds the key to the service; None where it needs none. The
            key itself is never written anywhere.
        key_header: that the key is sent in; "Authorization" sends it as "Bearer KEY", any other as it is.
        batch: most images in a request.
        rate: most images per second; None does not wait.
        retries: how often a request is sent again.
        timeout: seconds to wait for a connection, and for more of an answer; four times as long for all of it.
        cache: a file that remembers every answer, so that nothing is asked twice; None does not.
        size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres: as of
            :class:`patchattack.victims.own.Output`.

    Raises:
        InputError: an option does not fit, the key is not there, or the service does not answer as it should.
    """
    output = Output(task, size, multiple, classes, is_metric, depth_range, scale, shift, inverse, centres)
    output.check("http")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InputError(
            "victim.url: expected http(s)://HOST/PATH without a password (victim.key_variable is for keys), got "
            f"{url if parts.username is None else 'one with a password'}"
        )
    if images not in ("png", "lists"):
        raise InputError(f"victim.images: expected png or lists, got {images}")
    if batch < 1 or retries < 0 or timeout <= 0 or (rate is not None and rate <= 0):
        raise InputError(
            f"victim http: expected batch >= 1, retries >= 0, timeout > 0 s and rate > 0 images/s or null, "
            f"got batch={batch}, retries={retries}, timeout={timeout:g} and rate={rate}"
        )
    kind = KINDS[task][0] if answer is None else answer
    service = _Service(parts.hostname, url, kind, retries, timeout, _key(key_variable), key_header)
    memory = None if cache is None else AnswerCache(Path(cache).expanduser())
    pace = _Pace(rate)

    def ask(*given: Tensor) -> list[Any]:
        pace.wait(len(given[0]))
        written = ([_written(image, images) for image in as_bytes(one)] for one in given)
        base, each = ROOM
        pixels = given[0][:, 0].numel()
        return service.post(dict(zip(("images", "next_images"), written, strict=False)), base + each * pixels)

    about = f"{redact(url)} {task} {kind} {classes}"  # another token changes no answer
    return answering(output, kind, parts.hostname, ask, about, batch=batch, memory=memory)


def _key(variable: str | None) -> str | None:
    """The key that an environment variable holds."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(
            f"victim.key_variable: expected an environment variable {variable} with the key, got "
            f"{'one with characters that no key has' if key else 'none'}; export {variable}=..."
        )
    return key


def _written(image: np.ndarray, form: str) -> Any:
    """``[h, w, 3]`` uint8 as JSON can have it."""
    if form == "lists":
        return image.tolist()
    import cv2

    return base64.b64encode(cv2.imencode(".png", image[..., ::-1])[1].tobytes()).decode()


class _UnboundedError(Exception):
    """A response has no end."""


class _Response(NamedTuple):
    status: int
    reason: str
    text: str
    retry_after: str | None


class _Service:
    """Posts requests and gives the list of answers."""

    def __init__(
        self, name: str, url: str, kind: str, retries: int, timeout: float, key: str | None, key_header: str
    ) -> None:
        import requests

        self.name, self.url, self.kind, self.retries, self.timeout = name, url, kind, retries, timeout
        self.secrets = () if key is None else (key,)
        self.session = requests.Session()
        self.failures = requests.RequestException

        def sign(request: Any) -> Any:  # as requests' own auth, or a .netrc would replace the header
            if key is not None:
                request.headers[key_header] = f"Bearer {key}" if key_header == "Authorization" else key
            return request

        self.session.auth = sign

    def post(self, content: dict[str, list[Any]], most: int) -> list[Any]:
        """The answers to a request's images, as many, of ``most`` bytes.

        Raises:
            VictimError: there are none, after all tries.
        """
        count = len(content["images"])
        shape = f'JSON {{"{self.kind}": [...]}} with {count} answer(s)'
        expected = f"victim {self.name}: expected {shape} from {redact(self.url)}"
        response = self._ask(content, most, expected)
        shown = self._quote(response.text) or "nothing"
        if response.status != 200:
            tries = f" after {self.retries + 1} tries" if response.status in PASSING else ""
            raise VictimError(f"{expected}, got {response.status} {self._quote(response.reason)}{tries}: {shown}")
        try:
            answers = json.loads(response.text)[self.kind]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise VictimError(f"{expected}, got {shown}") from error
        if not isinstance(answers, list) or len(answers) != count or None in answers:
            many = f"{len(answers)} of them" if isinstance(answers, list) else type(answers).__name__
            raise VictimError(f"{expected}, got {many}: {shown}")
        return answers

    def _quote(self, text: str, most: int = SHOWN) -> str:
        return quote(text, most, *self.secrets)

    def _ask(self, content: dict[str, list[Any]], most: int, expected: str) -> _Response:
        """The response to the last of all tries that it takes."""
        for tried in range(self.retries + 1):
            last, response = tried == self.retries, None
            try:
                response = self._attempt(content, most)
            except _UnboundedError as error:
                raise VictimError(f"{expected}, got {error}") from error
            except self.failures as error:
                if last:
                    tries, why = (
                        f"{self.retries + 1} tries of {self.timeout:g} s",
                        self._quote(error_text(error), 3 * SHOWN),
                    )
                    raise VictimError(f"{expected}, got none in {tries}: {why}") from error
            if response is not None and (last or response.status not in PASSING):
                return response
            self._wait(response, min(0.5 * 2.0**tried, LONGEST), expected)
        raise AssertionError("the last try returns or raises")

    def _attempt(self, content: dict[str, list[Any]], most: int) -> _Response:
        """One try, in a thread of its own: of a service that says a byte now and then, no read ever takes too long."""
        found: list[_Response | Exception] = []

        def exchange() -> None:
            try:
                found.append(self._exchange(content, most))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=exchange, name="request", daemon=True)
        thread.start()
        thread.join(WHOLE * self.timeout)
        if not found:
            raise _UnboundedError(f"no end of it in {WHOLE * self.timeout:g} s")
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _exchange(self, content: dict[str, list[Any]], most: int) -> _Response:
        with self.session.post(
            self.url, json=content, timeout=self.timeout, allow_redirects=False, stream=True
        ) as response:
            body = bytearray()
            for part in response.iter_content(_PART):  # unpacked as it comes
                body += part
                if len(body) > most:
                    raise _UnboundedError(f"more than {most / 2**20:.0f} MiB")
            text = body.decode(errors="replace")
            return _Response(response.status_code, response.reason or "", text, response.headers.get("Retry-After"))

    def _wait(self, response: _Response | None, pause: float, expected: str) -> None:
        """``pause`` seconds until the next try, or as many as the service asks for."""
        from urllib3.exceptions import InvalidHeader
        from urllib3.util import Retry

        if response is not None and response.retry_after is not None:
            with contextlib.suppress(InvalidHeader, ValueError, OverflowError):  # a word, or a year that is none
                pause = Retry().parse_retry_after(response.retry_after)
            if pause > LATEST:
                asked = self._quote(response.retry_after)
                raise VictimError(
                    f"{expected}, got {response.status} and Retry-After: {asked}, more than {LATEST:g} s; go on later"
                )
            if pause > TOLD:
                _log.warning("victim %s asks to wait for %.0f s", self.name, pause)
        sleep(pause)


class _Pace:
    """Waits, so that no more than ``rate`` images go out in a second."""

    def __init__(self, rate: float | None) -> None:
        self.rate, self.free = rate, 0.0

    def wait(self, images: int) -> None:
        """Until the images before these had their time."""
        if self.rate is None:
            return
        now = monotonic()
        if now < self.free:
            sleep(self.free - now)
        self.free = max(now, self.free) + images / self.rate
