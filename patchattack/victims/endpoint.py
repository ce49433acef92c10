"""A service that answers over HTTP as a victim.

From the command line::

    python train.py attack=classification optimizer=nes victim=http victim.task=classification \\
        victim.url=https://example.org/classify victim.answer=probabilities victim.classes=names.txt \\
        victim.key_variable=EXAMPLE_KEY victim.rate=5 victim.cache=answers.sqlite

A request is a POST of JSON, ``{"images": [...]}``: each image a PNG in base64, or with ``victim.images=lists`` rows of
pixels of three numbers, red, green and blue from 0 to 255. For flow ``"next_images"`` are the second frames. The
response is JSON too, an object that has the answers, one for each image in their order, under what
``victim.answer`` says: ``{"probabilities": [[0.1, 0.9], ...]}``; see :mod:`patchattack.victims.answers`. A service that
speaks otherwise is wrapped in a Python function: see :mod:`patchattack.victims.callable`.

A request that finds nobody, gets no answer in time, or a status of 429, 500, 502, 503 or 504 is sent again: after as
long as the service asks for by ``Retry-After``, or after half a second, one, two, and so on. The answers of a request
are written to the run's journal before the next is sent. A request whose answer never arrived, as one that was on its
way when the run was killed, is sent again too: the service may have seen it twice, and nobody here can know.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from patchattack.errors import InputError, VictimError
from patchattack.victims.answers import KINDS, Memory, answering, as_bytes
from patchattack.victims.own import Output, said
from patchattack.victims.victim import Victim

PASSING = (429, 500, 502, 503, 504)  # statuses that another try may mend
LONGEST = 120.0  # seconds between two tries, where the service does not ask for more
SHOWN = 120  # characters of a response in a message


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
    metric: bool = False,
    reach: Sequence[float] = (0.0, math.inf),
    scale: float = 1.0,
    shift: float = 0.0,
    inverse: bool = False,
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
        timeout: seconds to wait for a connection, and for more of an answer.
        cache: a file that remembers every answer, so that nothing is asked twice; None does not.
        size, multiple, classes, metric, reach, scale, shift, inverse: as of :class:`patchattack.victims.own.Output`.

    Raises:
        InputError: an option does not fit, the key is not there, or the service does not answer as it should.
    """
    output = Output(task, size, multiple, classes, metric, reach, scale, shift, inverse)
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
    service = _Service(parts.hostname, url, kind, retries, timeout, _key(key_variable, key_header))
    memory = None if cache is None else Memory(Path(cache).expanduser())
    pace = _Pace(rate)

    def ask(*given: Tensor) -> list[Any]:
        pace.wait(len(given[0]))
        written = ([_written(image, images) for image in as_bytes(one)] for one in given)
        return service.post(dict(zip(("images", "next_images"), written, strict=False)))

    about = f"{url} {task} {kind} {classes}"
    return answering(output, kind, parts.hostname, ask, about, batch=batch, memory=memory)


def _key(variable: str | None, header: str) -> dict[str, str]:
    """The header that carries the key."""
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(
            f"victim.key_variable: expected an environment variable {variable} with the key, got "
            f"{'one with characters that no key has' if key else 'none'}; export {variable}=..."
        )
    return {header: f"Bearer {key}" if header == "Authorization" else key}


def _written(image: np.ndarray, form: str) -> Any:
    """``[h, w, 3]`` uint8 as JSON can have it."""
    if form == "lists":
        return image.tolist()
    import cv2

    return base64.b64encode(cv2.imencode(".png", image[..., ::-1])[1].tobytes()).decode()


class _Service:
    """Posts requests and gives the list of answers."""

    def __init__(self, name: str, url: str, kind: str, retries: int, timeout: float, headers: dict[str, str]) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        self.name, self.url, self.kind, self.retries, self.timeout = name, url, kind, retries, timeout
        again = Retry(
            retries,
            backoff_factor=0.5,
            backoff_max=LONGEST,
            status_forcelist=PASSING,
            allowed_methods=None,  # POST too: to ask again does no harm
            raise_on_status=False,
        )
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=again))
        self.failures = requests.RequestException

        def signed(request: Any) -> Any:  # as requests' own auth, or a .netrc would replace the header
            request.headers.update(headers)
            return request

        self.session.auth = signed

    def post(self, content: dict[str, list[Any]]) -> list[Any]:
        """The answers to a request's images, as many.

        Raises:
            VictimError: there are none, after all tries.
        """
        count = len(content["images"])
        expected = f'victim {self.name}: expected JSON {{"{self.kind}": [...]}} with {count} answer(s) from {self.url}'
        try:
            response = self.session.post(self.url, json=content, timeout=self.timeout, allow_redirects=False)
            text = response.text
        except self.failures as error:
            raise VictimError(
                f"{expected}, got none in {self.retries + 1} tries of {self.timeout:g} s: {said(error)}"
            ) from error
        shown = " ".join(text.split())[:SHOWN] or "nothing"
        if response.status_code != 200:
            tries = f" after {self.retries + 1} tries" if response.status_code in PASSING else ""
            raise VictimError(f"{expected}, got {response.status_code} {response.reason}{tries}: {shown}")
        try:
            answers = json.loads(text)[self.kind]
        except (ValueError, KeyError, TypeError) as error:
            raise VictimError(f"{expected}, got {shown}") from error
        if not isinstance(answers, list) or len(answers) != count or None in answers:
            many = f"{len(answers)} of them" if isinstance(answers, list) else type(answers).__name__
            raise VictimError(f"{expected}, got {many}: {shown}")
        return answers


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
