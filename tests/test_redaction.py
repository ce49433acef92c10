from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from patchattack import files
from patchattack.redaction import all_redacted, is_redacted, quote, redact

ADDRESSES = {
    "rtsp://user:s3cret@10.0.0.5:554/live": "rtsp://***@10.0.0.5:554/live",
    "http://s3cret@example.org/x": "http://***@example.org/x",
    "https://user:s3cret@s3cret@example.org": "https://***@example.org",
    "rtsp://user:s3c/r#e?t@host/live": "rtsp://***@host/live",
    "//user:s3cret@host/live": "//***@host/live",
    "user:s3cret@host/live": "***@host/live",
    "user:s3c@ret@10.0.0.5:554": "***@10.0.0.5:554",
    "rtsp:user:s3cret@host": "rtsp:***@host",
    "RTSP:user:s3cret@[::1]:554/live": "RTSP:***@[::1]:554/live",
    "http://host/x?a=1&token=s3cret&b=2#top": "http://host/x?a=1&token=***&b=2#top",
    r"http://host/x?a\=1&token\=s3cret": r"http://host/x?a\=1&token\=***",
    "http://host/x?access_token=s3cret": "http://host/x?access_token=***",
    "http://host/x?key=s3cret;size=2": "http://host/x?key=***",
    "http://host/x?API-Key=s3cret%20": "http://host/x?API-Key=***",
    "http://host/videostream.cgi?user=s3cret&pwd=s3cret&rate=0": (
        "http://host/videostream.cgi?user=***&pwd=***&rate=0"
    ),
    "http://host/x#access_token=s3cret": "http://host/x#access_token=***",
    "HTTPConnectionPool: refused with url: /x?password=s3cret (Caused by": (
        "HTTPConnectionPool: refused with url: /x?password=*** (Caused by"
    ),
    "Authorization: Bearer s3cret": "Authorization: Bearer ***",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_nobody_else_may_read_is_hidden(address: str) -> None:
    assert redact(address) == ADDRESSES[address]
    assert redact(ADDRESSES[address]) == ADDRESSES[address]
    # As shells, JSON and pages write it; a page that is made of it is redacted again.
    typed = shlex.join(["python", "x.py", f"source={address}", "rate=5"])
    for written in (typed, json.dumps({"source": address}), f"<dd>{address.replace('&', '&amp;')}</dd>"):
        assert "s3c" not in redact(written)
    assert redact(typed).endswith("rate=5")


@pytest.mark.parametrize(
    "text",
    [
        *("http://host:8080/users/@me", "https://host/a@b?size=2", "outputs/flow/2026", "victim.key_variable=MY_KEY"),
        *(
            "a@b.org",
            "ratio 3:4 @ 5 px",
            "C:\\a@b.png",
            "git@host.org:user/x",
            "a:hover{color:red}@media print{}",
            "+victim@victims.a=my/file.py:build",
            "tokens = 3; key: 7",
            "C:\\data",
            "?author=me&monk=1",
            "data:image/png;base64,==",
        ),
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert redact(text) == text
    assert not is_redacted(text)


def test_what_was_hidden_is_known() -> None:
    assert is_redacted("victim.url=https://***@host")
    assert is_redacted("source=http://host/x?token=***&b=2")
    assert is_redacted("source=***@host/live")
    assert is_redacted("source=rtsp:***@host/live")


def test_texts_within_lists_and_dicts() -> None:
    config = {"url": "http://a:b@c", "parts": [{"url": "http://c/?key=d"}, 3, None]}
    assert all_redacted(config) == {"url": "http://***@c", "parts": [{"url": "http://c/?key=***"}, 3, None]}


def test_no_text_file_has_a_password(tmp_path: Path) -> None:
    files.write(tmp_path / "a.yaml", "url: http://a:s3cret@c\n")
    assert (tmp_path / "a.yaml").read_text() == "url: http://***@c\n"
    files.write(tmp_path / "a.png", b"http://a:b@c")
    assert (tmp_path / "a.png").read_bytes() == b"http://a:b@c"


def test_a_stranger_s_text_is_one_short_line_that_steers_no_terminal() -> None:
    said = quote("\x1b[2J\x1b]0;owned\x07red\n\n of KEY-1 \u202e" + "x" * 1000, 60, "KEY-1")
    assert said.startswith("\ufffd[2J\ufffd]0;owned\ufffdred of *** \ufffd")
    assert len(said) == 60
    assert said.endswith("…")
