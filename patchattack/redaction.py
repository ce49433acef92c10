"""Text without what nobody else may read: the name and password of an address, and the keys and tokens in its query.

What is written, printed or sent to a tracker goes through :func:`redacted` where it leaves the program, and only there:
what the program works with stays as it is.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

# Name and password before a host. What a parser takes for a host and a port is none, even where an @ follows later.
_USER = re.compile(r"""(?<=//)(?:[^\s/?#"<>]*@|[^\s/?#"<>:@]*:(?!\d*(?:[/?#\s"'<>]|$))[^\s"<>]*@)""")
# The same without //, as people write addresses; of what a page or a shell may hold besides, no brackets and no paths.
_BARE_USER = re.compile(
    r"""(?<![^\s"'=,;(\[<>{])((?:[a-z][a-z\d+.-]*:)?)[^\s"'<>{}()\[\];,=/:@]+:(?!\\|\*{3}@)"""
    r"""[^\s"'<>{}()\[\];,/]+@(?=[\w\[])""",
    re.IGNORECASE,
)
_NAMES = (
    r"token|key|passw(?:or)?d|pass?|pwd|pw|secret|sig(?:nature)?|auth(?:orization)?|credentials?|jwt|session(?:id)?|"
    r"user(?:name)?|usr|login(?:use|pas)?"
)
_QUERY = re.compile(rf"""([?&;#][\w.%\[\]-]*(?:{_NAMES})\\*=)[^\s&#"'<>]*""", re.IGNORECASE)  # \ is Hydra's
_BEARER = re.compile(r"(\bBearer\s+)[^\s\"',]+")
_MARKED = re.compile(rf"(?://|[=:]){re.escape(HIDDEN)}@|={re.escape(HIDDEN)}")


def redact(text: str) -> str:
    """``text`` with :data:`HIDDEN` in place of what nobody else may read."""
    hidden = _BARE_USER.sub(rf"\g<1>{HIDDEN}@", _USER.sub(f"{HIDDEN}@", text))
    return _BEARER.sub(rf"\g<1>{HIDDEN}", _QUERY.sub(rf"\g<1>{HIDDEN}", hidden))


def all_redacted(node: Any) -> Any:
    """``node`` with every text in its lists, and among the values of its dicts, redacted."""
    if isinstance(node, dict):
        return {key: all_redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [all_redacted(value) for value in node]
    return redact(node) if isinstance(node, str) else node


def is_redacted(text: str) -> bool:
    """Whether something is missing in ``text`` that :func:`redacted` has taken out."""
    return _MARKED.search(text) is not None


def printable(text: str) -> str:
    """``text`` without what would steer a terminal."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)


def quote(text: str, most: int, *secrets: str) -> str:
    """What a stranger says, as one line of ``most`` characters at most that can be printed.

    Args:
        text: of the stranger.
        most: characters.
        secrets: that must not be in it, besides what :func:`redacted` takes out.
    """
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    line = redact(printable(" ".join(text.split())))
    return line if len(line) <= most else f"{line[: most - 1]}…"
