# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets an operator edit a message."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import Refusal

if TYPE_CHECKING:
    from consumer_framework.core.delivery import Delivery


def edit(delivery: Delivery) -> dict[str, Any]:
    """Let the operator edit the body of *delivery*; returns what it shall be.

    Raises:
        Refusal: Nothing was edited, or what was is no JSON object.
    """
    from .views import pretty  # noqa: PLC0415

    _check_encoding(delivery)
    before = pretty(delivery)
    text = before or delivery.body.decode("utf-8", "backslashreplace")
    descriptor, name = tempfile.mkstemp(prefix=f"fm-consumer-row-{delivery.row}-", suffix=".json")
    file = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{text}\n")
        body = _changed(file)
    except _KeptError:
        raise
    except BaseException:
        file.unlink()
        raise
    file.unlink()
    if before is not None and body == json.loads(before):
        raise Refusal("the message is what it was; nothing was replayed")
    return body


def _changed(file: Path) -> dict[str, Any]:
    """Open the editor on *file*, and read what comes of it."""
    before = file.read_bytes()
    click.edit(filename=str(file))
    after = file.read_bytes()
    if after == before:
        raise Refusal("nothing was edited; nothing was replayed")
    return _parsed(after, file)


class _KeptError(Refusal):
    """The operator's work is in a file."""


def _parsed(data: bytes, file: Path) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = f"that is no JSON ({error}); nothing was replayed, your text is in {file}"
        raise _KeptError(what) from None
    if not isinstance(body, dict):
        raise _KeptError(f"that is no JSON object; nothing was replayed, your text is in {file}")
    return body


def _check_encoding(delivery: Delivery) -> None:
    """Refuse a message whose properties would make any body undecodable."""
    encoding = getattr(delivery.properties, "content_encoding", None)
    try:
        "{}".encode(encoding or "utf-8")
    except (LookupError, TypeError, ValueError):
        what = f"its content_encoding {encoding!r} lets nobody read any body"
        cure = "export it, mend that and publish it, or drop it"
        raise Refusal(f"row {delivery.row} cannot be mended by an edit: {what}; {cure}") from None
