# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a test of a quarantined message, which fails as the message did until that is mended.

The test is a file for pytest that stands alone. It runs the consumer in the test harness, with the
``[consumer_config]`` of the instance and one attempt. Secrets and personal details are replaced
(:mod:`.anonymous`), in the message, in the configuration and in the tracebacks.
"""

from __future__ import annotations

import datetime as dt
import decimal
import difflib
import json
import math
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.core.delivery import codec_of, readable
from consumer_framework.core.text import moment, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from consumer_framework.core.attempt import Attempt
    from consumer_framework.core.delivery import Delivery

    from .anonymous import Anonymizer

_WIDTH = 96
# Lines of one traceback, which is a comment.
_LONGEST_TRACEBACK = 60
# One attempt: a test needs no retry. The rest of the recovery settings stays.
_ONE_ATTEMPT = {"immediate": 0, "delays": []}
# A body that is nested deeper is written as its bytes.
_DEEPEST = 100
# Settings of the instance that a test has no use for.
_NOT_FOR_TESTS = ("outbox", "store", "start_timeout", "stop_timeout")


@dataclass(frozen=True, slots=True)
class FailedMessage:
    """A quarantined message, and the consumer that failed with it.

    Attributes:
        instance: The name of the instance.
        row: The number of the message in its store.
        reason: The reason for its quarantine.
        delivery: The message, with its failed attempts.
        callback: ``module:object``, or ``path/to/file.py:object``.
        config: ``[consumer_config]`` as the file has it, with ``framework``.
    """

    instance: str
    row: int
    reason: str
    delivery: Delivery
    callback: str
    config: Mapping[str, Any]

    @property
    def has_failed(self) -> bool:
        """False for a message that only waits behind another one."""
        history = self.delivery.history
        return bool(history.attempts or history.crashes)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The parts that may have details: body, headers and configuration."""
        return self.body, dict(self.delivery.properties.headers or {}), dict(self.config)

    @property
    def body(self) -> Any:
        """The body as an object; its bytes if it is none."""
        encoding = getattr(self.delivery.properties, "content_encoding", None) or "utf-8"
        try:
            if codec_of(encoding) != "utf-8":
                return self.delivery.body
            found = json.loads(self.delivery.body.decode())
            # Whatever a test writes must be what the consumer got.
            is_same = json.loads(json.dumps(found)) == found
        except (ValueError, LookupError, RecursionError):
            return self.delivery.body
        is_usable = isinstance(found, dict) and is_same and _is_shallow(found, _DEEPEST)
        return found if is_usable else self.delivery.body


def _is_shallow(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


def source_of_test(message: FailedMessage, names: Anonymizer) -> str:
    """Return the text of the test.

    Args:
        message: The message.
        names: Replaces secrets and personal details.
    """
    for part in message.parts:
        names.learn(part)
    return _Writer(message, names).text()


def differences(message: FailedMessage, names: Anonymizer) -> list[str]:
    """Return the difference that *names* made to the message and its configuration, as lines."""
    lines: list[str] = []
    for title, part in zip(("body", "headers", "consumer_config"), message.parts, strict=True):
        before, after = _lines(part), _lines(names.cleaned(part))
        found = difflib.unified_diff(before, after, title, f"{title} of the test", "", "", 0, "")
        lines += (line for line in found if not line.startswith("@@"))
    return lines


def _lines(value: Any) -> list[str]:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").splitlines()
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).splitlines()


@dataclass(frozen=True, slots=True)
class _Writer:
    message: FailedMessage
    names: Anonymizer

    def text(self) -> str:
        body = "\n\n".join(filter(None, [self._data(), self._comment(), self._test()]))
        imports = self._imports(body)
        return f'"""{self._docstring()}\n"""\n\n{imports}\n\n{body}\n'

    def _docstring(self) -> str:
        message = self.message
        failed = printable(self.names.text(message.reason))
        first = textwrap.fill(
            _plain(f"Row {message.row} of {message.instance} failed: {failed}"), 96
        )
        command = f"fm-consumer quarantine to-test {message.instance} {message.row}"
        told = f"Made by `{command}`. Secrets and personal details have other values."
        return f"{first}\n\n{told}"

    def _imports(self, body: str) -> str:
        wanted = [name for name in ("datetime", "decimal", "json", "runpy") if f"{name}." in body]
        standard = "\n".join(f"import {name}" for name in wanted)
        own = "from consumer_framework.testing import Harness"
        return "\n\n".join(filter(None, [standard, own]))

    def _data(self) -> str:
        message = self.message
        framework = dict(message.config.get("framework") or {})
        settings = {key: framework[key] for key in framework if key not in _NOT_FOR_TESTS}
        settings["recovery"] = {**dict(framework.get("recovery") or {}), **_ONE_ATTEMPT}
        config = {key: value for key, value in message.config.items() if key != "framework"}
        body = self.names.cleaned(message.body)
        has_object = not isinstance(body, bytes)
        values = {
            "CONSUMER": _Raw(self._consumer()),
            "CONFIG": self.names.cleaned(config),
            "SETTINGS": self.names.cleaned(settings),
            "TOPIC": readable(message.delivery.routing_key),
            "HEADERS": self.names.cleaned(message.delivery.properties.headers),
            "MESSAGE": body,
            **({"BODY": _Raw("json.dumps(MESSAGE).encode()")} if has_object else {}),
        }
        if not has_object:
            values["BODY"] = values.pop("MESSAGE")
        return "\n".join(f"{name} = {literal(value)}" for name, value in values.items())

    def _consumer(self) -> str:
        before, _, name = self.message.callback.rpartition(":")
        if before.endswith(".py"):
            return f"runpy.run_path({literal(before)})[{literal(name)}]"
        return literal(self.message.callback)

    def _comment(self) -> str:
        attempts = self.message.delivery.history.attempts
        lines: list[str] = []
        for number, attempt in enumerate(attempts, 1):
            lines += self._attempt_lines(number, attempt)
        return "\n".join(f"# {line}".rstrip() for line in lines)

    def _attempt_lines(self, number: int, attempt: Attempt) -> Iterator[str]:
        attempts = self.message.delivery.history.attempts
        yield f"Attempt {number} of {len(attempts)}, {moment(attempt.at)}:"
        first = [earlier.traceback for earlier in attempts].index(attempt.traceback) + 1
        if attempt.traceback and first < number:
            yield f"  the traceback of attempt {first}"
            return
        text = attempt.traceback.rstrip("\n") or f"{attempt.error}: {attempt.message}"
        lines = self.names.text(text).splitlines()
        for line in lines[-_LONGEST_TRACEBACK:]:
            yield f"  {printable(line.expandtabs())}"

    def _test(self) -> str:
        message = self.message
        name = re.sub(r"\W", "_", message.instance)
        attempts = message.delivery.history.attempts
        error = attempts[-1].error if attempts else ""
        expected = f"# Until it is mended: {error}.\n" if error else _CRASHES
        encoding = getattr(message.delivery.properties, "content_encoding", None)
        given = {
            "headers": _Raw("HEADERS"),
            "message_id": message.delivery.message_id or None,
            "routing_key": _Raw("TOPIC"),
            **({} if encoding == "utf-8" else {"content_encoding": encoding}),
        }
        arguments = "".join(f"            {key}={literal(v)},\n" for key, v in given.items())
        return _TEST.format(
            row=message.row,
            name=name,
            arguments=arguments,
            expected=textwrap.indent(expected, "    "),
        )


_CRASHES = "# It killed the process of the instance, and may kill this one.\n"
_TEST = """
def test_row_{row}_of_{name}_is_handled():
    with Harness(CONSUMER, config=CONFIG, settings=SETTINGS) as harness:
        harness.deliver_raw(
            BODY,
{arguments}        )
        # A batch may wait for more, and a coroutine may sleep.
        harness.advance("1h")
        failures = harness.attempts(BODY)
{expected}    assert not failures, failures[-1].traceback
    assert BODY in [*harness.acked, *harness.rejected, *harness.deferred]"""


class _Raw(str):
    """Source of Python, in the place of a value."""

    __slots__ = ()


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def literal(value: Any, indent: int = 0) -> str:
    """Return the source of a value, as a formatter would write it."""
    flat = _flat(value)
    if len(flat) + indent + 12 <= _WIDTH or not isinstance(value, dict | list) or not value:
        return flat
    pad, brackets = " " * (indent + 4), "{}" if isinstance(value, dict) else "[]"
    if isinstance(value, dict):
        items = [f"{_flat(k)}: {literal(v, indent + 4)}" for k, v in value.items()]
    else:
        items = [literal(each, indent + 4) for each in value]
    inner = "".join(f"{pad}{item},\n" for item in items)
    return f"{brackets[0]}\n{inner}{' ' * indent}{brackets[1]}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flat, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, decimal.Decimal):
        return f'decimal.Decimal("{value}")'
    is_known = isinstance(value, _LITERALS)
    return _quoted(repr(value if is_known else str(value)))


_LITERALS = (str, bytes, bool, int, float, type(None), dt.datetime, dt.date, dt.time)


def _quoted(source: str) -> str:
    """Return the source of a text with double quotes where that takes no escape."""
    prefix, quote, inner = source.partition("'")
    if not quote or prefix not in {"", "b"} or '"' in inner:
        return source
    return f'{prefix}"{inner[:-1]}"'
