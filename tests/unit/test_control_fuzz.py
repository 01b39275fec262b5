# SPDX-License-Identifier: GPL-2.0-or-later
"""Garbled calls at both servers of the control socket: no effect, no crash, no traceback."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer_framework.runtime.control import routes
from consumer_framework.runtime.control.operators import Operator

from .test_control_server import through_threads, through_twisted

if TYPE_CHECKING:
    from collections.abc import Iterator

PATHS = [route.path for route in routes.ROUTES] + ["/metrics", "/v1/openapi.json", "/v2", "*", "/"]
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "BREW"]
HEADERS = [
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5",
    "Content-Length: x",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Connection: close",
    "Expect: 100-continue",
    "Host: ",
    "FM-Login: \x7f\x1b[31m",
    "Accept: " + "x" * 9000,
    "Cookie: a=b; c",
    "no colon",
    ": no name",
    " continued",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["rows", "row", "body", "reason", "file", "level", "where", "x"])
BODIES = st.one_of(
    st.binary(max_size=60),
    VALUES.map(json.dumps).map(str.encode),
    st.dictionaries(NAMES, VALUES, max_size=3).map(json.dumps).map(str.encode),
    st.just(b"[" * 5000),
    st.just(b'{"do": "ping"}'),
)
QUERIES = st.sampled_from(["", "?", "?a", "?rows=x", "?limit=0", "?where=%ff", "?after=1&after=x"])


@st.composite
def call(draw: st.DrawFn) -> bytes:
    """Return the bytes of a call that is more or less one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=80))
    method, path = draw(st.sampled_from(METHODS)), draw(st.sampled_from(PATHS))
    body = draw(BODIES)
    # Most are well-formed, so that they reach more than the parser.
    odd = draw(st.integers(0, 2)) == 0
    version = draw(st.sampled_from(["HTTP/1.0", "HTTP/9.9", ""])) if odd else "HTTP/1.1"
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=3)) if odd else []
    lines = [f"{method} {path}{draw(QUERIES)} {version}", *headers]
    if draw(st.booleans()) or not odd:
        lines.append(f"Content-Length: {len(body)}")
    end = draw(st.sampled_from(["\r\n\r\n", "\r\n", "\n\n"])) if odd else "\r\n\r\n"
    return "\r\n".join(lines).encode() + end.encode() + body


@st.composite
def parts(draw: st.DrawFn) -> list[bytes]:
    """Return the bytes of some calls, one after the other, in pieces."""
    text = b"".join(draw(st.lists(call(), min_size=1, max_size=3)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# It may look and operate, and the orders of these servers change nothing.
SOMEBODY = Operator(4711, 99)


def check(answer: bytes) -> None:
    statuses = re.findall(rb"^HTTP/1\.\d (\d{3})", answer, re.MULTILINE)
    assert b"500" not in statuses, answer


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fm-") as name:
        yield Path(name)


@settings(max_examples=1000)
@given(parts())
def test_a_thousand_garbled_calls_at_an_instance_are_refused_or_answered(text):
    check(through_twisted(None, *text, operator=SOMEBODY))


@settings(max_examples=50)
@given(text=parts())
def test_garbled_calls_at_a_relay_are_refused_or_answered(directory, text):
    check(through_threads(directory, *text))
