# SPDX-License-Identifier: GPL-2.0-or-later
"""The secrets that this process knows, so that none of them is ever shown.

Code that reads a secret calls :func:`hide` with it. Code that writes text for people (the log,
errors, the status, the failures in the store) passes the text through :func:`redact`. Messages
themselves are never changed.

A long or random secret is hidden everywhere. A short plain word is not: with the password
"fedora", hiding the word in every topic would make the log useless, and tell everybody the
password. Such a word is hidden in the places of secrets: in a URL, after a name such as
``password`` or ``token``, and after the name of its credential.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any
from urllib.parse import quote

# Characters of a line of a secret that has several: shorter ones are brackets and the like.
SHORTEST_LINE = 8
# A secret of so many characters is hidden everywhere: of any kind; with letters and digits; with
# three kinds of characters, or with characters that no name has.
_LONG, _MIXED, _RANDOM = 20, 12, 8
_KINDS = ("[a-z]", "[A-Z]", "[0-9]", "[^A-Za-z0-9]")
_NAMES = (
    r"password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|authorization|credentials?|(?<![A-Za-z])(?:pass|auth|pin)"
)


class _Patterns:
    """The patterns of all secrets. Replaced as a whole, so that readers need no lock."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        # The longest first: a secret may be in another one.
        forms = sorted(labels, key=len, reverse=True)
        telling = [form for form in forms if _is_telling(form)]
        self.words = [form for form in forms if not _is_telling(form)]
        self.anywhere = re.compile("|".join(map(re.escape, telling))) if telling else None
        # A label has the name of its credential, which says the purpose: "<credential:token>".
        own = sorted({label[1:-1].partition(":")[2] for label in labels.values()} - {""})
        self.names = "|".join([_NAMES, *(rf"(?<!\w){re.escape(name)}" for name in own)])
        self.in_place = self._in_place() if self.words else None

    def _in_place(self) -> re.Pattern[str]:
        # The text before a secret. The bounds keep the search linear in the text.
        value = r"""\\?["']?\s{0,3}[:=]\s{0,3}(?:bearer\s|basic\s)?b?\\?["']?"""
        before = rf"://[^\s/@:]{{0,255}}:|(?:{self.names}){value}|\bbearer\s|\\x00"
        words = "|".join(map(re.escape, self.words))
        return re.compile(rf"({before})({words})(?!\w)", re.IGNORECASE)

    def is_named(self, name: str) -> bool:
        """Tell whether the value of *name* may be a secret."""
        return re.search(rf"(?:{self.names})\Z", name, re.IGNORECASE) is not None


_patterns = _Patterns({})
_lock = threading.Lock()


def hide(secret: str, label: str) -> None:
    """Show *label* wherever *secret* would be shown from now on, for the life of the process.

    Args:
        secret: Its text.
        label: The text in its place, such as ``credential:token``; shown between ``<`` and ``>``.
    """
    global _patterns  # noqa: PLW0603 -- see the module's own text
    with _lock:
        forms = dict.fromkeys(_forms(secret), f"<{label}>")
        if forms.keys() - _patterns.labels.keys():
            _patterns = _Patterns({**forms, **_patterns.labels})


def _is_telling(form: str) -> bool:
    kinds = sum(re.search(kind, form) is not None for kind in _KINDS)
    is_mixed = re.search("[0-9]", form) is not None and re.search("[A-Za-z]", form) is not None
    is_odd = kinds >= 3 or re.search(r"[^\w. -]", form, re.ASCII) is not None  # noqa: PLR2004
    return (
        len(form) >= _LONG
        or (len(form) >= _MIXED and is_mixed)
        or (len(form) >= _RANDOM and is_odd)
    )


def _forms(secret: str) -> set[str]:
    """Return the forms of a secret in text: as it is, as literals, in a URL, line by line."""
    lines = [line.strip() for line in secret.splitlines()]
    telling = [line for line in lines if len(line) >= SHORTEST_LINE] if len(lines) > 1 else []
    texts = {secret, *telling}
    return {form for text in texts for form in _written(text)} - {""}


def _written(text: str) -> tuple[str, ...]:
    literal = repr(text)[1:-1]
    return text, literal, json.dumps(text)[1:-1], quote(text, safe=""), repr(text.encode())[2:-1]


def redact(text: str) -> str:
    """Return *text* with the label of each known secret in its place."""
    patterns = _patterns
    if patterns.anywhere is not None:
        text = patterns.anywhere.sub(lambda found: patterns.labels[found[0]], text)
    if patterns.in_place is not None and any(word in text for word in patterns.words):
        text = patterns.in_place.sub(
            lambda found: found[1] + patterns.labels.get(found[2], found[2]), text
        )
    return text


def redact_value(name: str, text: str) -> str:
    """Return *text*, which is the value of something called *name*, without secrets."""
    patterns = _patterns
    if text in patterns.words and patterns.is_named(name):
        return patterns.labels[text]
    return redact(text)


def may_be_secret(name: str) -> bool:
    """Tell whether *name* is that of a secret, such as ``db_password`` or ``api_key``."""
    return _patterns.is_named(name)


def redacted(value: Any, name: str = "") -> Any:
    """Return a value for JSON with every text in it redacted; keys are left as they are.

    Args:
        value: Anything that JSON has.
        name: The key that it has, if any.
    """
    match value:
        case str():
            return redact_value(name, value)
        case dict():
            return {key: redacted(inner, str(key)) for key, inner in value.items()}
        case list() | tuple():
            return [redacted(inner, name) for inner in value]
    return value
