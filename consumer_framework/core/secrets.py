# SPDX-License-Identifier: GPL-2.0-or-later
"""The secrets that this process knows, so that none of them is ever shown.

Whoever reads a secret says so with :func:`keep`; whoever writes text for people (the log, errors,
the status, what the journal keeps of failures) passes it through :func:`redact`. Messages
themselves are never changed.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any
from urllib.parse import quote

# Characters. What is shorter is in every other word, and no secret.
SHORTEST = 4
# Characters of a line of a secret that has several: shorter ones are brackets and the like.
SHORTEST_LINE = 8


class _Known:
    """What to look for. Replaced as a whole: readers in other threads need no lock."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        # The longest first: a secret may be in another one.
        forms = sorted(labels, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, forms))) if forms else None


_known = _Known({})
_lock = threading.Lock()


def keep(secret: str, label: str) -> None:
    """Show *label* wherever *secret* would be shown from now on, for the life of the process.

    Args:
        secret: Its text; one of fewer than 4 characters is not looked for.
        label: What stands for it, such as ``credential:token``; shown between ``<`` and ``>``.
    """
    global _known  # noqa: PLW0603 -- see the module's own text
    with _lock:
        forms = dict.fromkeys(_forms(secret), f"<{label}>")
        if forms.keys() - _known.labels.keys():
            _known = _Known({**forms, **_known.labels})


def _forms(secret: str) -> set[str]:
    """How the secret may look in text: as it is, as literals, in a URL, line by line."""
    lines = [line.strip() for line in secret.splitlines()]
    telling = [line for line in lines if len(line) >= SHORTEST_LINE] if len(lines) > 1 else []
    texts = {secret, *telling}
    forms = {form for text in texts for form in _written(text)}
    return {form for form in forms if len(form) >= SHORTEST}


def _written(text: str) -> tuple[str, ...]:
    literal = repr(text)[1:-1]
    return text, literal, json.dumps(text)[1:-1], quote(text, safe=""), repr(text.encode())[2:-1]


def redact(text: str) -> str:
    """Return *text* with the label of each known secret in its place."""
    known = _known
    if known.pattern is None:
        return text
    return known.pattern.sub(lambda found: known.labels[found[0]], text)


def redacted(value: Any) -> Any:
    """Return a value for JSON with every text in it redacted; keys are left as they are."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: redacted(inner) for key, inner in value.items()}
        case list() | tuple():
            return [redacted(inner) for inner in value]
    return value
